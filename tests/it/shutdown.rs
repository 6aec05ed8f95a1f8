//! A replica shuts down: no request is lost.
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::fleet::{Fleet, PASSWORD, PATIENTLY, PROMPTLY, within};

/// Far longer than any test waits, so a replica that ends sooner didn't wait for it.
const NEVER: &str = "10m";

#[tokio::test]
async fn a_replica_leaves_without_losing_a_request() {
    let mut fleet = Fleet::builder().replicas(2).env("DRAIN_DELAY", "2s").start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let before = fleet[0].get("/profile").session(&session).send().await.expect(200);
    assert_ne!(before.header("connection"), Some("close"));
    let mut idle = fleet[0].raw().await;
    idle.write(b"GET /profile HTTP/1.1\r\nHost: x\r\n\r\n").await;
    idle.read_until("session_invalid").await;

    let begin = Instant::now();
    fleet[0].signal(Signal::TERM);
    let not_ready = async || fleet[0].ops("/readyz").await.status == 503;
    within(Duration::from_secs(1), "readiness fails at once", not_ready).await;
    let readiness = fleet[0].ops("/readyz").await.expect(503).json();
    assert_eq!((&readiness["draining"], &readiness["sessions"]["status"]), (&true.into(), &"ok".into()));
    fleet[0].ops("/livez").await.expect(200);
    // Balancers may not have noticed yet, so requests on old connections and on new ones are answered.
    let late = fleet[0].get("/profile").session(&session).send().await.expect(200);
    assert_eq!(late.header("connection"), Some("close"));
    fleet[0].try_login("ada", PASSWORD).send().await.expect(200);
    idle.write(b"GET /profile HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let said = idle.read_to_end(PATIENTLY).await.expect("closed after the answer");
    assert!(said.contains("HTTP/1.1 401") && said.to_lowercase().contains("connection: close"), "{said}");

    let status = fleet[0].ended().await;
    assert!(begin.elapsed() >= Duration::from_secs(2), "DRAIN_DELAY");
    assert_eq!(status.code(), Some(0));
    assert!(fleet[0].get("/profile").try_send().await.is_err(), "nobody listens");
    assert!(fleet[0].log().iter().any(|line| line["message"] == "authfleet is down"), "the log is whole");
    assert_eq!(fleet[1].check(&session).await, 200);
}

/// nginx never repeats a POST, so the client of one that is cut off gets a 503.
#[tokio::test]
async fn a_connection_that_was_made_before_the_end_gets_its_answer() {
    let mut fleet = Fleet::builder().env("DRAIN_DELAY", "0s").start().await;
    let mut accepted = fleet[0].raw().await;
    fleet[0].signal(Signal::TERM);
    let closed = async || fleet[0].get("/profile").try_send().await.is_err();
    within(PATIENTLY, "the listener is closed", closed).await;
    // The request of a balancer that had only connected when the listener closed.
    accepted.write(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
    let said = accepted.read_to_end(PATIENTLY).await.expect("closed after the answer");
    assert!(said.starts_with("HTTP/1.1 415 ") && said.to_lowercase().contains("connection: close"), "{said}");
    assert_eq!(fleet[0].ended().await.code(), Some(0));

    fleet[0].start().await;
    fleet[0].signal(Signal::STOP);
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let mut connection = fleet[0].raw().await;
        connection.write(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
        waiting.push(connection);
    }
    fleet[0].signal(Signal::TERM);
    fleet[0].signal(Signal::CONT);
    // The kernel has accepted these, and the replica hadn't when it closed its listener.
    for mut connection in waiting {
        let said = connection.read_to_end(PATIENTLY).await.expect("closed after the answer");
        assert!(said.starts_with("HTTP/1.1 415 "), "{said}");
    }
    assert_eq!(fleet[0].ended().await.code(), Some(0));
}

#[tokio::test]
async fn requests_in_flight_are_finished() {
    let mut fleet = Fleet::builder().env("DRAIN_DELAY", "0s").start().await;
    fleet[0].register("ada").await;
    let body = format!(r#"{{"email":"ada@example.org","password":"{PASSWORD}"}}"#);
    let head =
        format!("POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    let mut slow = fleet[0].raw().await;
    slow.write(format!("{head}\r\n\r\n{}", &body[..10]).as_bytes()).await;
    // Idle connections don't delay the end.
    let _silent = fleet[0].raw().await;
    let mut idle = fleet[0].raw().await;
    idle.write(b"GET /profile HTTP/1.1\r\nHost: x\r\n\r\n").await;
    idle.read_until("session_invalid").await;
    let in_flight = async || fleet[0].count("authfleet_http_requests_in_flight", &[]).await == 1;
    within(PATIENTLY, "the request is in flight", in_flight).await;

    fleet[0].signal(Signal::INT);
    let closed = async || fleet[0].get("/profile").try_send().await.is_err();
    within(PATIENTLY, "the listener is closed", closed).await;
    slow.write(&body.as_bytes()[10..]).await;
    let said = slow.read_to_end(PATIENTLY).await.expect("closed after the answer");
    assert!(said.starts_with("HTTP/1.1 200 ") && said.contains("Login successful"), "{said}");
    assert_eq!(fleet[0].ended().await.code(), Some(0));
}

/// A login whose client has hung up goes on without a connection, so only the login itself can delay the shutdown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_its_client_gave_up_is_finished_and_recorded() {
    let mut fleet = Fleet::builder().env("DRAIN_DELAY", "0s").start().await;
    let ada = fleet[0].register("ada").await;
    // The parameters differ from those of the stored hash, so the login stores a new hash, for which it waits here.
    fleet[0].restart(&[("ARGON2_ITERATIONS", "2")]).await;
    let mut db = fleet.sql().await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut db).await.expect("the lock");
    let login = tokio::spawn(fleet[0].try_login("ada", PASSWORD).try_send());
    let attempts = format!("throttle:{{account:{}}}:attempts", ada.id);
    within(PATIENTLY, "verified", async || fleet.redis.run::<bool>(&["EXISTS", &attempts])).await;
    login.abort();

    fleet[0].signal(Signal::TERM);
    assert_eq!(fleet[0].ended().await.code(), Some(0));
    let is_recorded = |line: &Value| line["event"] == "login" && line["user_id"] == ada.id.as_str();
    assert!(fleet[0].log().iter().any(is_recorded), "{}", fleet[0].output_text());
}

/// Otherwise guesses would be free while replicas are replaced (ASVS 5.0 6.3.1).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guess_that_its_client_gave_up_is_charged_and_recorded() {
    let mut fleet = Fleet::builder().env("DRAIN_DELAY", "0s").start().await;
    let ada = fleet[0].register("ada").await;
    // A hash that takes long enough to hang up meanwhile. Its parameters no longer fit its output, so any password is
    // wrong.
    let hash = fleet.query("SELECT password_hash FROM users").await.remove(0);
    let hash = format!("$argon2id$v=19$m=65536,t=2,p=1${}", hash.splitn(5, '$').nth(4).expect("salt and output"));
    let update = sqlx::query("UPDATE users SET password_hash = ?1").bind(hash);
    update.execute(&mut fleet.sql().await).await.expect("an update");
    // The registration's hashing thread may not have reported yet that it has finished.
    within(PATIENTLY, "no hashing", async || fleet[0].count("authfleet_hash_running", &[]).await == 0).await;
    let login = tokio::spawn(fleet[0].try_login("ada", PASSWORD).try_send());
    within(PATIENTLY, "hashing", async || fleet[0].count("authfleet_hash_running", &[]).await == 1).await;
    login.abort();
    // Shorter than a replica waits for Redis. The guess can't be charged before the hashing thread has finished.
    fleet.redis.run::<String>(&["CLIENT", "PAUSE", "700"]);

    fleet[0].signal(Signal::TERM);
    assert_eq!(fleet[0].ended().await.code(), Some(0));
    let is_recorded = |line: &Value| line["event"] == "login_failed" && line["user_id"] == ada.id.as_str();
    assert!(fleet[0].log().iter().any(is_recorded), "{}", fleet[0].output_text());
    let failures: Option<u32> = fleet.redis.run(&["GET", &format!("throttle:{{account:{}}}:failures", ada.id)]);
    assert_eq!(failures, Some(1));
}

#[tokio::test]
async fn a_request_without_end_does_not_hold_the_end_up() {
    let mut fleet = Fleet::builder().env("DRAIN_DELAY", "0s").env("DRAIN_TIMEOUT", "500ms").start().await;
    let mut slow = fleet[0].raw().await;
    slow.write(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
        .await;
    let in_flight = async || fleet[0].count("authfleet_http_requests_in_flight", &[]).await == 1;
    within(PATIENTLY, "the request is in flight", in_flight).await;
    fleet[0].signal(Signal::TERM);
    let status = fleet[0].ended().await;
    assert_eq!(status.code(), Some(1), "it says that a request was lost");
    assert!(fleet[0].output_text().contains("DRAIN_TIMEOUT"));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    for second in [Signal::TERM, Signal::INT] {
        let mut fleet = Fleet::builder().env("DRAIN_DELAY", NEVER).start().await;
        fleet[0].signal(Signal::TERM);
        within(PROMPTLY, "draining", async || fleet[0].ops("/readyz").await.status == 503).await;
        fleet[0].signal(second);
        assert_eq!(fleet[0].ended().await.code(), Some(1));
        assert!(fleet[0].output_text().contains("second signal"));
    }
}
