//! Tests of what only PostgreSQL does, on a real server, with other connections that interfere.
use std::time::{Duration, Instant};

use futures::future::join_all;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, SqlSafeStr as _};
use tempfile::TempDir;

use self::server::{Postgres, USER};
use super::*;
use crate::config::{PostgresHost, TlsMode};
use crate::store::users::names::{self, UnusualNames};

#[path = "../../../../tests/it/fleet/postgres.rs"]
#[expect(dead_code, unreachable_pub, reason = "the integration tests use the rest")]
mod server;

/// The contract: 503 within 2 s.
const BOUND: Duration = Duration::from_secs(2);

/// An empty database for one test.
#[derive(Debug)]
pub(in crate::store::users) struct Empty {
    kept: server::Empty,
    pub(in crate::store::users) url: PostgresUrl,
}

fn url_of(server: &Postgres, database: &str) -> PostgresUrl {
    PostgresUrl {
        host: PostgresHost::Socket(server.directory.clone()),
        port: server.port,
        user: USER.to_owned(),
        password: None,
        database: database.to_owned(),
        tls: TlsMode::Disable,
        root_certificates: None,
        client_certificate: None,
    }
}

pub(in crate::store::users) async fn empty() -> Empty {
    let kept = server::empty().await;
    let url = url_of(&kept.shared.server, &kept.name);
    Empty { kept, url }
}

impl Empty {
    async fn connect(&self) -> PgConnection {
        self.kept.shared.server.try_connect(&self.url.database).await.unwrap()
    }

    async fn query(&self, statement: &str) -> Vec<String> {
        self.kept.shared.server.query(&self.url.database, statement).await
    }

    async fn open(&self) -> PostgresUsers {
        PostgresUsers::open(&self.url, Clock::system()).await.unwrap()
    }

    async fn refused(&self) -> String {
        PostgresUsers::open(&self.url, Clock::system()).await.unwrap_err().to_string()
    }
}

async fn migrated() -> (Empty, PostgresUsers) {
    let empty = empty().await;
    migrate(&empty.url).await.unwrap();
    let store = empty.open().await;
    (empty, store)
}

fn new(email: &str) -> NewUser {
    NewUser { email: email.into(), username: None, password_hash: "$argon2id$fake".into() }
}

#[track_caller]
fn unavailable<T: std::fmt::Debug>(result: Result<T, UserStoreError>) -> String {
    match result {
        Err(error @ UserStoreError::Unavailable(_)) => error.to_string(),
        other => panic!("expected Unavailable, got {other:?}"),
    }
}

// Opening.

#[tokio::test]
async fn open_says_what_to_do() {
    let mut empty = empty().await;
    let message = empty.refused().await;
    assert!(message.contains("has no tables yet: run `authfleet migrate`"), "{message}");

    empty
        .kept
        .shared
        .server
        .query(
            "postgres",
            &format!("CREATE DATABASE latin_{} ENCODING 'LATIN1' TEMPLATE template0", empty.url.database),
        )
        .await;
    let database = std::mem::replace(&mut empty.url.database, "nowhere".to_owned());
    let message = empty.refused().await;
    assert!(message.contains("\"nowhere\" does not exist"), "{message}");
    empty.url.database = format!("latin_{database}");
    let message = empty.refused().await;
    assert!(message.contains("has the encoding LATIN1: create the database with ENCODING 'UTF8'"), "{message}");

    empty.url.user = "stranger".to_owned();
    let message = empty.refused().await;
    assert!(message.contains("role \"stranger\" does not exist"), "{message}");
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_no_reason_not_to_start() {
    let directory = TempDir::new().unwrap();
    let mut server = Postgres::new(&directory.path().join("server"));
    let url = url_of(&server, "postgres");
    let store = PostgresUsers::open(&url, Clock::system()).await.unwrap();
    unavailable(store.ping().await);
    server.start().await;
    assert!(unavailable(store.ping().await).contains("authfleet migrate"));
    migrate(&url).await.unwrap();
    store.ping().await.unwrap();
    store.create(new("ada@example.org")).await.unwrap();
}

// Interference.

#[tokio::test]
async fn a_locked_row_is_unavailable_in_time_and_nothing_comes_through_later() {
    let (empty, store) = migrated().await;
    let user = store.create(new("ada@example.org")).await.unwrap();
    let mut other = empty.connect().await;
    other.execute("BEGIN").await.unwrap();
    other.execute("UPDATE users SET updated_at = updated_at").await.unwrap();

    let started = Instant::now();
    // More operations than there are connections.
    let hash = "late".into();
    let changes = join_all((0..2 * connections::CONNECTIONS).map(|_| store.replace_password(user.id, 1, &hash))).await;
    assert!(started.elapsed() < BOUND, "{:?}", started.elapsed());
    for change in changes {
        unavailable(change);
    }
    assert!(store.by_id(user.id).await.unwrap().is_some(), "readers don't mind a writer");
    other.execute("COMMIT").await.unwrap();
    assert_eq!(store.disable(user.id, 1).await.unwrap(), Some(2));
    let stored = store.by_id(user.id).await.unwrap().unwrap();
    assert_eq!((stored.password_hash.expose_secret(), stored.epoch), ("$argon2id$fake", 2));
}

#[tokio::test]
async fn a_request_that_is_given_up_costs_no_connection() {
    let (empty, store) = migrated().await;
    let user = store.create(new("ada@example.org")).await.unwrap();
    let mine = format!(
        "SELECT pid FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()",
        empty.url.database
    );
    let before = empty.query(&mine).await;
    for micros in (0..3000).step_by(150) {
        tokio::time::timeout(Duration::from_micros(micros), store.by_id(user.id)).await.ok();
        tokio::time::timeout(Duration::from_micros(micros), store.enable(user.id)).await.ok();
    }
    store.ping().await.unwrap();
    let after = empty.query(&mine).await;
    assert!(before.iter().all(|pid| after.contains(pid)), "{before:?} {after:?}");
}

#[tokio::test]
async fn connections_that_the_server_closed_cost_one_operation_at_most() {
    let (empty, store) = migrated().await;
    let user = store.create(new("ada@example.org")).await.unwrap();
    let others = format!(
        "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()",
        empty.url.database
    );
    let several = others.replace("pg_terminate_backend(pid)", "pid");
    // A connection that is quickly free again serves several operations.
    for _ in 0..100 {
        join_all((0..20).map(|_| store.by_id(user.id))).await;
        if empty.query(&several).await.len() > 1 {
            break;
        }
    }
    assert!(empty.query(&others).await.len() > 1);
    store.by_id(user.id).await.ok();
    for _ in 0..20 {
        assert!(store.by_id(user.id).await.unwrap().is_some());
    }
    // After a pause, connections are checked before use.
    empty.query(&others).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(store.by_id(user.id).await.unwrap().is_some());
}

#[tokio::test]
async fn a_server_that_takes_no_writes_is_given_up_and_noticed_when_it_is_back() {
    let (empty, store) = migrated().await;
    let user = store.create(new("ada@example.org")).await.unwrap();
    let database = &empty.url.database;
    empty.query(&format!("ALTER DATABASE {database} SET default_transaction_read_only = on")).await;
    // Connections that are there keep their settings; as after a restart.
    store.database.distrust(Instant::now());
    assert!(unavailable(store.by_id(user.id).await).contains("read-only"));
    unavailable(store.ping().await);
    // An operator's connection, without the database's default.
    let admin = format!("ALTER DATABASE {database} RESET default_transaction_read_only");
    empty.kept.shared.server.query("postgres", &admin).await;
    store.ping().await.unwrap();
}

// Names.

#[tokio::test]
async fn accounts_without_canonical_names_are_found_and_keep_them() {
    let (empty, store) = migrated().await;
    // Two names that are the same by the present rule, as in a SQLite database of an older release.
    for (n, email, canonical) in
        [(1, "straße@example.org", "NULL"), (2, "strasse@example.org", "'strasse@example.org'")]
    {
        let key = names::exact(email);
        empty
            .query(&format!(
                "INSERT INTO users (id, email, email_key, email_canonical, username, username_key, username_canonical, \
                 password_hash, created_at, updated_at) VALUES ('00000000-0000-7000-8000-00000000000{n}', '{email}', \
                 '{key}', {canonical}, 'u{n}', 'u{n}', 'u{n}', 'x', 0, 0)"
            ))
            .await;
    }
    for email in ["straße@example.org", "strasse@example.org"] {
        assert_eq!(store.by_login(email).await.unwrap().unwrap().email, email);
    }
    assert_eq!(store.by_login("STRASSE@example.org").await.unwrap().unwrap().email, "strasse@example.org");
    for email in ["Straße@example.org", "Strasse@example.org"] {
        assert!(matches!(store.create(new(email)).await, Err(UserStoreError::EmailTaken)), "{email}");
    }
    let report = migrate(&empty.url).await.unwrap();
    assert_eq!((report.unusual.shared, report.unusual.pending), (1, 0));
}

#[tokio::test]
async fn names_are_looked_up_by_index() {
    let (empty, _store) = migrated().await;
    empty.query("SET enable_seqscan = off; INSERT INTO users (id, email, email_key, email_canonical, username, username_key, username_canonical, password_hash, created_at, updated_at) SELECT gen_random_uuid(), n || '@x', n || '@x', n || '@x', n, n, n, 'x', 0, 0 FROM generate_series(1, 5000) n; ANALYZE users").await;
    for condition in [
        "email_key IN ('7@x', '8@x') OR email_canonical = '8@x'",
        "username_key IN ('7', '8') OR username_canonical = '8'",
    ] {
        let plan = empty.query(&format!("EXPLAIN SELECT * FROM users WHERE {condition}")).await.join("\n");
        assert!(!plan.contains("Seq Scan"), "{plan}");
    }
}

// Migrations.

fn with_migration(version: i64, statements: &'static str) -> Migrator {
    let mut migrations = schema::embedded().iter().cloned().collect::<Vec<_>>();
    let sql = statements.into_sql_str();
    migrations.push(Migration::new(version, "test".into(), MigrationType::Simple, sql, false));
    Migrator { migrations: migrations.into(), ..Migrator::DEFAULT }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_migrates_leave_the_work_to_one() {
    let empty = empty().await;
    let url = &empty.url;
    let reports = join_all((0..10).map(|_| {
        let url = url.clone();
        tokio::spawn(async move { migrate(&url).await.unwrap() })
    }))
    .await;
    let created = reports.iter().filter(|report| report.as_ref().unwrap().created).count();
    assert_eq!(created, 1);
    for report in reports {
        assert_eq!(report.unwrap().version, 2);
    }
    assert_eq!(empty.query("SELECT version FROM authfleet_migrations ORDER BY 1").await, ["1", "2"]);
}

#[tokio::test]
async fn a_migration_that_fails_leaves_nothing_behind() {
    let empty = empty().await;
    let broken = with_migration(900, "CREATE TABLE half (); SELECT nonsense");
    let error = schema::migrate_with(&empty.url, &broken).await.unwrap_err().to_string();
    assert!(error.contains("migration 900") && error.contains("nonsense"), "{error}");
    assert!(empty.refused().await.contains("has no tables yet"));
    assert!(migrate(&empty.url).await.unwrap().created);
}

/// The previous release is a binary that knows one migration less.
#[tokio::test]
async fn an_upgrade_keeps_users_and_running_replicas_of_the_previous_release() {
    let (empty, previous) = migrated().await;
    let user = previous.create(new("ada@example.org")).await.unwrap();
    let next = with_migration(900, "ALTER TABLE users ADD COLUMN nickname text");
    assert_eq!(schema::migrate_with(&empty.url, &next).await.unwrap().applied, [900]);
    // Uses statements that were prepared before the upgrade, and connections that are made afterwards.
    previous.create(new("bob@example.org")).await.unwrap();
    assert!(previous.by_id(user.id).await.unwrap().is_some());
    let restarted = empty.open().await;
    restarted.create(new("eve@example.org")).await.unwrap();
    assert_eq!(restarted.list(None, 10).await.unwrap().len(), 3);
    // A rollback's `migrate` has nothing to do.
    let report = migrate(&empty.url).await.unwrap();
    assert_eq!((report.applied, report.unusual), (Vec::new(), UnusualNames::default()));

    // The next release, before its migration.
    let connector = connector::Connector::new(&empty.url);
    let mut session = connector.connect().await.unwrap();
    let later = with_migration(901, "SELECT 1");
    let refused = schema::check(&connector, &mut session, &later).await.unwrap_err().to_string();
    assert!(refused.contains("has an older schema, without migration 901: run `authfleet migrate`"), "{refused}");
}

#[tokio::test]
async fn a_schema_that_took_something_away_is_refused_by_older_binaries() {
    let (empty, _) = migrated().await;
    let contracted = with_migration(900, "UPDATE authfleet_oldest SET migration = 900");
    schema::migrate_with(&empty.url, &contracted).await.unwrap();
    let known = schema::embedded().iter().map(|migration| migration.version).max().unwrap();
    let expected = format!("only binaries with migration 900 can work with, and this one ends at {known}: use a newer");
    assert!(empty.refused().await.contains(&expected));
    assert!(migrate(&empty.url).await.unwrap_err().to_string().contains(&expected));
}
