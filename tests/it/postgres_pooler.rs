//! `PgBouncer` in transaction mode between a fleet and PostgreSQL.
use futures::future::join_all;
use serde_json::json;

use crate::fleet::postgres::{Pooler, empty};
use crate::fleet::{Fleet, PASSWORD};

/// Twenty clients share three connections to the server. A statement that is sent in two parts would mix with another
/// client's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_works_through_a_pooler_in_transaction_mode() {
    let database = empty().await;
    let pooler = Pooler::start(&database.shared.server, &database.name).await;
    let fleet = Fleet::builder().replicas(2).env("DATABASE_URL", &pooler.url(&database.name)).start().await;
    let fleet = &fleet;
    let clients = (0..20).map(|n| async move {
        for i in 0..5 {
            let email = format!("user-{n}-{i}@example.org");
            let body = json!({ "email": email, "password": PASSWORD });
            let made = fleet[n % 2].post("/auth/register").json(&body).send().await.expect(201);
            let login = fleet[(n + i) % 2].try_login(&email, PASSWORD).send().await.expect(200);
            assert_eq!(login.text_at("user_id"), made.text_at("user_id"));
        }
    });
    join_all(clients).await;
    let kept = database.shared.server.query(&database.name, "SELECT count(*)::text FROM users").await;
    assert_eq!(kept, ["100"]);
    let doctor = fleet.command(&["doctor"], &[]).await;
    assert!(doctor.stdout.contains("a pooler is in between"), "{}", doctor.stdout);
}
