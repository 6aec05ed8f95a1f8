//! What was acknowledged is kept: replicas are ended by `kill -9`, and several migrations run at once.
use std::time::Duration;

use futures::future::join_all;

use crate::fleet::{Fleet, PASSWORD, Registrations};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_replicas_lose_no_acknowledged_user() {
    let mut fleet = Fleet::start(3).await;
    let registrations = Registrations::begin(&fleet);
    for round in 0..9 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        fleet[round % 3].kill();
        fleet[round % 3].start().await;
    }
    let registered = registrations.end().await;
    for replica in 0..3 {
        fleet[replica].kill();
    }
    registered.expect_kept(&fleet).await;
    assert_eq!(fleet.query("PRAGMA integrity_check").await, ["ok"]);
    fleet[0].start().await;
    for email in registered.acknowledged.iter().step_by(10) {
        fleet[0].try_login(email, PASSWORD).send().await.expect(200);
    }
}

#[tokio::test]
async fn three_may_migrate_at_once() {
    let mut fleet = Fleet::builder().replicas(0).unmigrated().start().await;
    // Before the migration, `serve` says what to do.
    let refused = fleet.command(&["serve"], &[("LISTEN_ADDR", "127.0.0.1:0"), ("OPS_ADDR", "127.0.0.1:0")]).await;
    assert!(refused.expect_code(1).stdout.contains("authfleet migrate"));
    assert!(!fleet.database().exists());

    for _ in 0..2 {
        for migration in join_all((0..3).map(|_| fleet.command(&["migrate"], &[]))).await {
            migration.expect_code(0);
        }
    }
    let applied = fleet.query("SELECT version FROM _sqlx_migrations").await;
    assert!(!applied.is_empty());
    fleet.add_replica().await;
    fleet[0].register("ada").await;
    // Once more, while a replica runs.
    fleet.command(&["migrate"], &[]).await.expect_code(0);
    fleet[0].try_login("ada", PASSWORD).send().await.expect(200);
}
