//! PostgreSQL is frozen, killed, full or read-only: the right answers come in time, and users who are signed in notice
//! nothing.
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::fleet::{Answer, Engine, Fleet, PASSWORD, PROMPTLY, PasswordChanges, Registrations, Session, within};

/// Fails the test unless each replica answers 503 in time where it needs PostgreSQL, and works where it doesn't.
async fn is_out(fleet: &Fleet, session: &Session) {
    for replica in fleet.replicas() {
        // More logins at once than a replica has connections.
        let logins = join_all((0..8).map(|_| replica.try_login("ada", PASSWORD).send())).await;
        logins.into_iter().for_each(Answer::expect_unavailable);
        replica.try_register("eve").send().await.expect_unavailable();
        assert_eq!(replica.check(session).await, 200);
        replica.ops("/livez").await.expect(200);
        let readiness = replica.ops("/readyz").await.expect(503);
        assert!(readiness.took < PROMPTLY, "{:?}", readiness.took);
        let readiness = readiness.json();
        let parts = (&readiness["users"]["store"], &readiness["users"]["status"], &readiness["sessions"]["status"]);
        assert_eq!(parts, (&"postgresql".into(), &"failing".into(), &"ok".into()));
    }
}

/// Waits until every replica works again, without a restart.
async fn is_back(fleet: &Fleet) {
    for replica in fleet.replicas() {
        let login = async || replica.try_login("ada", PASSWORD).send().await.status == 200;
        within(PROMPTLY, "logins again", login).await;
        replica.ops("/readyz").await.expect(200);
    }
}

async fn fleet_with_ada() -> (Fleet, Session) {
    let fleet = Fleet::start_on(Engine::OwnPostgres, 2).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    (fleet, session)
}

#[tokio::test]
async fn postgres_frozen() {
    let (fleet, session) = fleet_with_ada().await;
    let server = fleet.postgres.as_ref().expect("a server");
    server.freeze();
    let frozen = Instant::now();
    fleet[0].try_login("ada", PASSWORD).send().await.expect_unavailable();
    let refused = frozen.elapsed();
    is_out(&fleet, &session).await;
    server.thaw();
    let thawed = Instant::now();
    let login = async || fleet[0].try_login("ada", PASSWORD).send().await.status == 200;
    within(PROMPTLY, "a login again", login).await;
    println!(
        "frozen: 503 after {:.3} s; thawed: 200 after {:.3} s",
        refused.as_secs_f64(),
        thawed.elapsed().as_secs_f64()
    );
    is_back(&fleet).await;
}

#[tokio::test]
async fn postgres_killed_and_started_again() {
    let (mut fleet, session) = fleet_with_ada().await;
    fleet.postgres.as_mut().expect("a server").kill();
    // Connections are refused. A replica that starts meanwhile waits for PostgreSQL too.
    fleet[1].restart(&[]).await;
    is_out(&fleet, &session).await;
    fleet.postgres.as_mut().expect("a server").start().await;
    is_back(&fleet).await;
}

#[tokio::test]
async fn postgres_without_a_free_connection() {
    let (mut fleet, session) = fleet_with_ada().await;
    fleet.query("CREATE ROLE other SUPERUSER LOGIN; ALTER DATABASE authfleet CONNECTION LIMIT 0; ALTER ROLE authfleet NOSUPERUSER; GRANT ALL ON ALL TABLES IN SCHEMA public TO authfleet").await;
    for replica in 0..2 {
        fleet[replica].restart(&[]).await;
    }
    is_out(&fleet, &session).await;
    let server = fleet.postgres.as_ref().expect("a server");
    server.query_as("other", "postgres", "ALTER DATABASE authfleet CONNECTION LIMIT -1").await;
    is_back(&fleet).await;
}

#[tokio::test]
async fn postgres_read_only() {
    let (mut fleet, session) = fleet_with_ada().await;
    fleet.query("ALTER DATABASE authfleet SET default_transaction_read_only = on").await;
    // As after a failover to a server that takes no writes. The connections are new.
    for replica in 0..2 {
        fleet[replica].restart(&[]).await;
    }
    is_out(&fleet, &session).await;
    let server = fleet.postgres.as_ref().expect("a server");
    server.query("postgres", "ALTER DATABASE authfleet RESET default_transaction_read_only").await;
    is_back(&fleet).await;
}

/// SIGKILL of every process of the server, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_postgres_loses_nothing_acknowledged() {
    let builder = Fleet::builder().users_in(Engine::OwnPostgres).replicas(3);
    let mut fleet = builder.env("LOGIN_FAILURES_PER_ACCOUNT", "1000000").start().await;
    let changes = PasswordChanges::begin(&fleet).await;
    let registrations = Registrations::begin(&fleet);
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let server = fleet.postgres.as_mut().expect("a server");
        server.kill();
        server.start().await;
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    let (registered, passwords) = tokio::join!(registrations.end(), changes.end());
    assert_eq!(registered.unanswered, 0, "the replicas were up");
    registered.expect_kept(&fleet).await;
    for email in registered.acknowledged.iter().step_by(20) {
        fleet[0].try_login(email, PASSWORD).send().await.expect(200);
    }
    passwords.expect_kept(&fleet).await;
}

/// A login and a registration send two statements each. Each takes one round trip, because it has been prepared.
#[tokio::test]
async fn a_login_and_a_registration_are_two_statements_each() {
    let mut fleet = Fleet::start_on(Engine::OwnPostgres, 1).await;
    fleet.query("ALTER DATABASE authfleet SET log_statement = 'all'").await;
    fleet[0].restart(&[]).await;
    let statements = |fleet: &Fleet| {
        let log = fleet.postgres.as_ref().expect("a server").log();
        log.lines().filter(|line| line.contains("LOG:  ") && line.contains(" users ")).count()
    };
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;

    let before = statements(&fleet);
    assert!(before >= 4, "the log shows statements: {before}");
    fleet[0].login(&ada).await;
    assert_eq!(statements(&fleet) - before, 2, "the user is read, and the epoch confirmed");
    let before = statements(&fleet);
    fleet[0].register("eve").await;
    assert_eq!(statements(&fleet) - before, 2, "the names are looked up, and the user is inserted");
    let before = statements(&fleet);
    assert_eq!(fleet[0].check(&session).await, 200);
    assert_eq!(statements(&fleet) - before, 0, "a session check asks SQL nothing");
}
