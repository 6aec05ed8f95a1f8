//! What was acknowledged stays: `kill -9` of replicas, and several migrations at once.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use serde_json::json;

use crate::fleet::{Fleet, PASSWORD};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_replicas_lose_no_acknowledged_user() {
    let mut fleet = Fleet::start(3).await;
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
                    // A killed replica breaks connections, but what it answered counts.
                    let Ok(response) = client.post(&url).json(&body).send().await else {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        continue;
                    };
                    match response.status().as_u16() {
                        201 => acknowledged.push(email),
                        status => assert_eq!(status, 503),
                    }
                }
                acknowledged
            })
        })
        .collect();
    for round in 0..9 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        fleet[round % 3].kill();
        fleet[round % 3].start().await;
    }
    stop.store(true, Ordering::Relaxed);
    let acknowledged: Vec<String> =
        join_all(clients).await.into_iter().flat_map(|client| client.expect("every answer was 201 or 503")).collect();
    for replica in 0..3 {
        fleet[replica].kill();
    }
    let kept = fleet.query("SELECT email FROM users").await;
    let lost: Vec<_> = acknowledged.iter().filter(|email| !kept.contains(email)).collect();
    assert!(acknowledged.len() > 20, "only {} registrations", acknowledged.len());
    assert!(lost.is_empty(), "of {} acknowledged users lost: {lost:?}", acknowledged.len());
    assert_eq!(fleet.query("PRAGMA integrity_check").await, ["ok"]);
    fleet[0].start().await;
    for email in acknowledged.iter().step_by(10) {
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
    // And once more beside a running replica.
    fleet.command(&["migrate"], &[]).await.expect_code(0);
    fleet[0].try_login("ada", PASSWORD).send().await.expect(200);
}
