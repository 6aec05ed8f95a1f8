//! PostgreSQL frozen, killed, full or read-only: the right answer, soon, and those who are signed in notice nothing.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use serde_json::json;

use crate::fleet::{Answer, Engine, Fleet, PASSWORD, PROMPTLY, Replica, Session, within};

async fn try_register(replica: &Replica, name: &str) -> Answer {
    let body = json!({ "email": format!("{name}@example.org"), "password": PASSWORD });
    replica.post("/auth/register").json(&body).send().await
}

fn expect_unavailable(answer: Answer) {
    let answer = answer.expect_problem(503, "store_unavailable");
    assert!(answer.took < PROMPTLY, "{:?}", answer.took);
    assert_eq!(answer.header("set-cookie"), None);
}

/// Each replica says 503 in time where it needs PostgreSQL, and goes on where it doesn't.
async fn is_out(fleet: &Fleet, session: &Session) {
    for replica in fleet.replicas() {
        // More at once than a replica has connections.
        let logins = join_all((0..8).map(|_| replica.try_login("ada", PASSWORD).send())).await;
        logins.into_iter().for_each(expect_unavailable);
        expect_unavailable(try_register(replica, "eve").await);
        assert_eq!(replica.check(session).await, 200);
        replica.ops("/livez").await.expect(200);
        let readiness = replica.ops("/readyz").await.expect(503);
        assert!(readiness.took < PROMPTLY, "{:?}", readiness.took);
        let readiness = readiness.json();
        let parts = (&readiness["users"]["store"], &readiness["users"]["status"], &readiness["sessions"]["status"]);
        assert_eq!(parts, (&"postgresql".into(), &"failing".into(), &"ok".into()));
    }
}

/// Without anybody's help.
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
    is_out(&fleet, &session).await;
    server.thaw();
    is_back(&fleet).await;
}

#[tokio::test]
async fn postgres_killed_and_started_again() {
    let (mut fleet, session) = fleet_with_ada().await;
    fleet.postgres.as_mut().expect("a server").kill();
    // Nobody listens: connections are refused. A replica that starts meanwhile waits for it too.
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
    // As after a failover to a server that takes no writes: the connections are new.
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
async fn a_killed_postgres_loses_no_acknowledged_user() {
    let mut fleet = Fleet::start_on(Engine::OwnPostgres, 3).await;
    let stop = Arc::new(AtomicBool::new(false));
    let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("an HTTP client");
    let clients: Vec<_> = (0..6)
        .map(|n| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            let url = format!("http://{}/auth/register", fleet[n % 3].address());
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for i in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let email = format!("user-{n}-{i}@example.org");
                    let body = json!({ "email": email, "password": PASSWORD });
                    let response = client.post(&url).json(&body).send().await.expect("an answer");
                    match response.status().as_u16() {
                        201 => acknowledged.push(email),
                        status => assert_eq!(status, 503),
                    }
                }
                acknowledged
            })
        })
        .collect();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let server = fleet.postgres.as_mut().expect("a server");
        server.kill();
        server.start().await;
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    stop.store(true, Ordering::Relaxed);
    let clients = join_all(clients).await.into_iter();
    let acknowledged: Vec<String> = clients.flat_map(|client| client.expect("every answer was 201 or 503")).collect();
    let kept = fleet.query("SELECT email FROM users").await;
    let lost: Vec<_> = acknowledged.iter().filter(|email| !kept.contains(email)).collect();
    println!("{} acknowledged, {} kept, {} lost, after 5 kills", acknowledged.len(), kept.len(), lost.len());
    assert!(acknowledged.len() > 20, "only {} registrations", acknowledged.len());
    assert!(lost.is_empty(), "of {} acknowledged users lost: {lost:?}", acknowledged.len());
    for email in acknowledged.iter().step_by(20) {
        fleet[0].try_login(email, PASSWORD).send().await.expect(200);
    }
}
