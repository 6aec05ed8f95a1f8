//! Migrations: several at once, upgrades beside running replicas, and failures.
use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use super::*;
use crate::store::users::MigrationReport;
use crate::store::users::names::UnusualNames;

fn with_migration(version: i64, statements: &'static str) -> Migrator {
    let mut migrations: Vec<_> = schema::embedded().migrations.to_vec();
    let kind = MigrationType::Simple;
    migrations.push(Migration::new(version, "test".into(), kind, statements.into_sql_str(), false));
    Migrator::with_migrations(migrations)
}

#[tokio::test]
async fn migrate_makes_the_directory_reports_and_is_repeatable() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("deep/er/users.db");
    let newest = schema::embedded().iter().last().unwrap().version;
    let first = migrate(&path).await.unwrap();
    assert!(first.created);
    assert_eq!((first.applied.last(), first.version), (Some(&newest), newest));
    let second = migrate(&path).await.unwrap();
    let unchanged = MigrationReport {
        created: false,
        applied: Vec::new(),
        version: newest,
        named: 0,
        unusual: UnusualNames::default(),
    };
    assert_eq!(second, unchanged);
}

#[test]
fn twelve_migrates_in_threads_leave_the_work_to_one() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("users.db");
    let threads: Vec<_> = (0..12)
        .map(|_| {
            let path = path.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            std::thread::spawn(move || runtime.block_on(migrate(&path)))
        })
        .collect();
    let reports: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect();
    assert_eq!(reports.iter().filter(|report| report.created).count(), 1);
    assert_eq!(reports.iter().filter(|report| !report.applied.is_empty()).count(), 1);
}

#[tokio::test]
async fn an_upgrade_keeps_users_and_a_running_replica_of_the_previous_release() {
    let bench = Bench::new().await;
    bench.create("ada@example.org").await.unwrap();
    let release = || with_migration(1000, "ALTER TABLE users ADD COLUMN locale TEXT");

    let mut db = foreign(&bench.path()).await;
    let older = schema::check(&bench.path(), &mut db, &release()).await.unwrap_err().to_string();
    assert!(older.contains("older schema, without migration 1000: run `authfleet migrate`"), "{older}");

    let report = schema::migrate_with(&bench.path(), release()).await.unwrap();
    assert_eq!((report.created, report.applied, report.version), (false, vec![1000], 1000));
    schema::check(&bench.path(), &mut db, &release()).await.unwrap();

    // The old binary works while it is running and when it is started again, and so does its `migrate` after a
    // roll-back.
    assert!(bench.store.by_login("ada").await.unwrap().is_some());
    bench.create("bob@example.org").await.unwrap();
    open(&bench.path()).await.create(new("eve@example.org", None)).await.unwrap();
    assert_eq!(migrate(&bench.path()).await.unwrap().version, 1000);
}

#[tokio::test]
async fn a_schema_that_took_something_away_is_refused_by_older_binaries() {
    let bench = Bench::new().await;
    schema::migrate_with(&bench.path(), with_migration(1000, "PRAGMA user_version = 1000")).await.unwrap();
    for refused in [
        SqliteUsers::open(&bench.path(), Clock::system()).await.unwrap_err(),
        migrate(&bench.path()).await.unwrap_err(),
    ] {
        assert!(matches!(refused, OpenError::SchemaNewer { oldest: 1000, .. }), "{refused}");
    }
}

#[tokio::test]
async fn a_migration_that_fails_leaves_nothing_behind() {
    let bench = Bench::new().await;
    let broken = with_migration(1000, "CREATE TABLE half (id INTEGER) STRICT; INSERT INTO nowhere VALUES (1)");
    let failed = schema::migrate_with(&bench.path(), broken).await.unwrap_err();
    assert!(matches!(failed, OpenError::Migration { .. }), "{failed}");
    let fixed = with_migration(1000, "CREATE TABLE half (id INTEGER) STRICT");
    assert_eq!(schema::migrate_with(&bench.path(), fixed).await.unwrap().applied, [1000]);
}
