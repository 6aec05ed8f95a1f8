//! Clients that take their time, never end, or speak something else: cut off by the server itself.
use std::time::Duration;

use crate::fleet::{Fleet, PATIENTLY, within};

/// The server gives a head 30 s and a body 10 s; the rest is for a machine under load.
const HEAD: Duration = Duration::from_secs(40);
const BODY: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(500);

fn post(path: &str, framing: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{framing}\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn whoever_takes_too_long_is_cut_off() {
    let fleet = Fleet::start(1).await;
    let begun = async |bytes: Vec<u8>| {
        let mut raw = fleet[0].raw().await;
        assert!(raw.write(&bytes).await);
        raw
    };
    let silent = async {
        let mut raw = begun(Vec::new()).await;
        assert_eq!(raw.read_to_end(HEAD).await.as_deref(), Some(""), "nothing was asked");
    };
    let slow_head = async {
        let raw = begun(b"GET /profile HTTP/1.1\r\nX-Slow: ".to_vec()).await;
        raw.dribble(b"x", STEP, HEAD).await;
    };
    let idle = async {
        let mut raw = begun(b"GET /profile HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()).await;
        let said = raw.read_to_end(HEAD).await.expect("an idle connection is closed");
        assert!(said.starts_with("HTTP/1.1 401 "), "{said}");
    };
    let slow_body = async {
        let raw = begun(post("/auth/login", "Content-Length: 10000")).await;
        let (said, took) = raw.dribble(b" ", STEP, BODY).await;
        assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("\"request_timeout\""), "{said}");
        assert!(said.contains("application/problem+json"), "{said}");
        assert!(took > Duration::from_secs(5), "a slow line is not cut off at once");
    };
    let slow_chunks = async {
        let raw = begun(post("/auth/register", "Transfer-Encoding: chunked")).await;
        let (said, _) = raw.dribble(b"1\r\n \r\n", STEP, BODY).await;
        assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
    };
    // A path that takes no body must not wait for one either.
    let unread_body = async {
        let raw = begun(post("/auth/logout", "Content-Length: 10000")).await;
        let (said, _) = raw.dribble(b" ", STEP, HEAD).await;
        assert!(said.starts_with("HTTP/1.1 401 "), "{said}");
    };
    let others_meanwhile = async {
        for _ in 0..20 {
            fleet[0].get("/profile").send().await.expect(401);
            tokio::time::sleep(STEP).await;
        }
    };
    tokio::join!(silent, slow_head, idle, slow_body, slow_chunks, unread_body, others_meanwhile);
}

/// Answered as soon as it's clear, and not read any further.
#[tokio::test]
async fn a_body_without_end_is_cut_off() {
    let fleet = Fleet::start(1).await;
    for (path, status) in [("/auth/login", "413"), ("/auth/logout", "401"), ("/nowhere", "404")] {
        let mut raw = fleet[0].raw().await;
        assert!(raw.write(&post(path, "Transfer-Encoding: chunked")).await);
        let chunk = format!("1000\r\n{}\r\n", " ".repeat(4096));
        let flood = async { while raw.write(chunk.as_bytes()).await {} };
        tokio::time::timeout(PATIENTLY, flood).await.unwrap_or_else(|_| panic!("{path}: it is still reading"));
        // The answer may be lost with the reset that ended the flood: ask again, gently.
        let mut raw = fleet[0].raw().await;
        raw.write(&post(path, "Transfer-Encoding: chunked")).await;
        for _ in 0..5 {
            raw.write(chunk.as_bytes()).await;
        }
        let said = raw.read_until("\r\n\r\n").await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {said}");
    }
}

#[tokio::test]
async fn what_is_not_http_gets_a_4xx_or_nothing() {
    let fleet = Fleet::start(1).await;
    let long_head = format!("GET /profile HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
    let many_heads = format!("GET /profile HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(500));
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(64 * 1024));
    let wrong: &[(&[u8], &[&str])] = &[
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &["400"]),
        (b"nonsense\r\n\r\n", &["400"]),
        (b"GET /profile HTTP/9.9\r\n\r\n", &["400", "505"]),
        (b"GET /profile HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", &["400"]),
        (b"GET /profile HTTP/1.1\r\nHost: x\r\nCookie: a\x00b\r\n\r\n", &["400"]),
        (b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", &["400"]),
        (b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", &["400"]),
        (b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: nonsense\r\n\r\n", &["400", "501"]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &["400", "505"]),
        (long_head.as_bytes(), &["431"]),
        (many_heads.as_bytes(), &["431"]),
        (long_path.as_bytes(), &["414", "431"]),
    ];
    for (bytes, expected) in wrong {
        let mut raw = fleet[0].raw().await;
        raw.write(bytes).await;
        let said = raw.read_to_end(PATIENTLY).await.expect("closed");
        let status = said.split(' ').nth(1).unwrap_or_default();
        assert!(status.is_empty() || expected.contains(&status), "{:?}: {said}", String::from_utf8_lossy(bytes));
        assert_eq!(said.matches("HTTP/1.1").count(), usize::from(!status.is_empty()), "one answer: {said}");
    }
    // A body that breaks off, and one whose chunks are no chunks.
    for (framing, body) in [("Transfer-Encoding: chunked", "zz\r\n"), ("Content-Length: 100", "{")] {
        let mut raw = fleet[0].raw().await;
        raw.write(&post("/auth/login", framing)).await;
        raw.write(body.as_bytes()).await;
        raw.finish().await;
        let said = raw.read_to_end(PATIENTLY).await.expect("closed");
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 400 "), "{said}");
    }
    fleet[0].get("/profile").send().await.expect_problem(401, "session_invalid");
    let panics = fleet[0].log().into_iter().filter(|line| line["level"] == "ERROR").collect::<Vec<_>>();
    assert!(panics.is_empty(), "{panics:?}");
}

#[tokio::test]
async fn connections_are_kept_and_pipelined() {
    let fleet = Fleet::start(1).await;
    let mut raw = fleet[0].raw().await;
    let request = "GET /profile HTTP/1.1\r\nHost: x\r\n\r\n";
    raw.write(request.repeat(3).as_bytes()).await;
    raw.write(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let said = raw.read_to_end(PATIENTLY).await.expect("closed as asked");
    assert_eq!(said.matches("HTTP/1.1 401 Unauthorized").count(), 3);
    assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 1);

    // What curl sends before a larger body.
    let mut raw = fleet[0].raw().await;
    raw.write(&post("/auth/login", "Content-Length: 2\r\nExpect: 100-continue")).await;
    raw.read_until("HTTP/1.1 100 Continue").await;
    raw.write(b"{}").await;
    raw.read_until("\"validation_failed\"").await;
}

#[tokio::test]
async fn clients_that_leave_are_forgotten() {
    let fleet = Fleet::start(1).await;
    for _ in 0..50 {
        let mut raw = fleet[0].raw().await;
        raw.write(&post("/auth/login", "Content-Length: 100")).await;
        raw.write(b"{").await;
        drop(raw);
    }
    within(PATIENTLY, "no request is in flight", async || {
        fleet[0].count("authfleet_http_requests_in_flight", &[]).await == 0
    })
    .await;
}
