//! Clients that are slow, never finish, or speak no HTTP: the server itself cuts them off.
use std::time::Duration;

use crate::fleet::{Fleet, PATIENTLY, within};

/// The server allows 30 s for a head and 10 s for a body. The rest is slack for a machine under load.
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

/// A body that is too large is refused as soon as that is clear, and the rest isn't read.
#[tokio::test]
async fn a_body_without_end_is_cut_off() {
    let fleet = Fleet::start(1).await;
    for (path, status) in [("/auth/login", "413"), ("/auth/logout", "401"), ("/nowhere", "404")] {
        let mut raw = fleet[0].raw().await;
        assert!(raw.write(&post(path, "Transfer-Encoding: chunked")).await);
        let chunk = format!("1000\r\n{}\r\n", " ".repeat(4096));
        let flood = async { while raw.write(chunk.as_bytes()).await {} };
        tokio::time::timeout(PATIENTLY, flood).await.unwrap_or_else(|_| panic!("{path}: it is still reading"));
        // The reset that ended the flood may have lost the answer, so a smaller body tries again.
        let mut raw = fleet[0].raw().await;
        raw.write(&post(path, "Transfer-Encoding: chunked")).await;
        for _ in 0..5 {
            raw.write(chunk.as_bytes()).await;
        }
        let said = raw.read_until("\r\n\r\n").await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {said}");
    }
}

/// Bytes that the server's parser refuses, with the status that they get. The connection never closes without an
/// answer, which a proxy would take for a broken replica.
pub fn unreadable() -> Vec<(Vec<u8>, &'static [&'static str])> {
    let request = |head: &[u8]| [b"GET /profile HTTP/1.1\r\nHost: x\r\n", head, b"\r\n\r\n"].concat();
    let fields = |count: usize| "X-Field: y\r\n".repeat(count);
    let mut all: Vec<(Vec<u8>, &'static [&'static str])> = vec![
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), &["400"]),
        (b"nonsense\r\n\r\n".to_vec(), &["400"]),
        (b"GET /profile HTTP/9.9\r\n\r\n".to_vec(), &["400", "505"]),
        (b"GET /caf\xe9 HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &["400"]),
        (b"GET /profile?q=\xff HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &["400"]),
        (b"GET /a\x01b HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &["400"]),
        (request(b"no colon"), &["400"]),
        (request(b"X-Field: a\x01b"), &["400"]),
        (request(b"X-Field: a\x7fb"), &["400"]),
        (request(b"Cookie: a\x00b"), &["400"]),
        (request(b"X Field: a"), &["400"]),
        (request(b"\xff: a"), &["400"]),
        (request(format!("{}X: y", fields(99)).as_bytes()), &["431"]),
        (request(format!("{}X: y", fields(500)).as_bytes()), &["431"]),
        (request(format!("X: {}", "x".repeat(64 * 1024)).as_bytes()), &["431"]),
        (format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(64 * 1024)).into_bytes(), &["414", "431"]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), &["400", "505"]),
    ];
    for framing in ["Content-Length: 1\r\nContent-Length: 2", "Content-Length: -1", "Transfer-Encoding: nonsense"] {
        all.push((post("/login", framing), &["400", "501"]));
    }
    all
}

#[tokio::test]
async fn what_is_not_http_gets_a_4xx() {
    let fleet = Fleet::start(1).await;
    for (bytes, expected) in unreadable() {
        // Alone, and after a valid request on the same connection.
        for before in ["", "GET /profile HTTP/1.1\r\nHost: x\r\n\r\n"] {
            let mut raw = fleet[0].raw().await;
            raw.write(before.as_bytes()).await;
            raw.write(&bytes).await;
            let said = raw.read_to_end(PATIENTLY).await.expect("closed");
            let statuses: Vec<_> = said.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
            let fine = usize::from(!before.is_empty());
            assert_eq!(statuses.len(), fine + 1, "one answer each: {shown:?}: {said:?}");
            assert!(expected.contains(&statuses[fine]), "{shown:?}: {said}");
        }
    }
    // A body that breaks off, and one with malformed chunks.
    for (framing, body) in [("Transfer-Encoding: chunked", "zz\r\n"), ("Content-Length: 100", "{")] {
        let mut raw = fleet[0].raw().await;
        raw.write(&post("/auth/login", framing)).await;
        raw.write(body.as_bytes()).await;
        raw.finish().await;
        let said = raw.read_to_end(PATIENTLY).await.expect("closed");
        assert!(said.starts_with("HTTP/1.1 400 "), "{body}: {said}");
    }
    fleet[0].get("/profile").send().await.expect_problem(401, "session_invalid");
    let panics = fleet[0].log().into_iter().filter(|line| line["level"] == "ERROR").collect::<Vec<_>>();
    assert!(panics.is_empty(), "{panics:?}");
}

/// The limit on heads is what the documents say, to the byte.
#[tokio::test]
async fn heads_of_32_kib_pass_and_no_larger_ones() {
    let fleet = Fleet::start(1).await;
    for (size, expected) in [(32 * 1024, "401"), (32 * 1024 + 1, "431"), (40_000, "431"), (200_000, "431")] {
        let mut head = "GET /profile HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: ".to_owned();
        head.push_str(&"x".repeat(size - head.len() - 4));
        head.push_str("\r\n\r\n");
        assert_eq!(head.len(), size);
        let mut raw = fleet[0].raw().await;
        raw.write(head.as_bytes()).await;
        let said = raw.read_to_end(PATIENTLY).await.expect("closed");
        assert!(said.starts_with(&format!("HTTP/1.1 {expected} ")), "{size} bytes: {said}");
    }
}

/// Answers that a client never reads must neither pile up nor be kept for ever.
#[tokio::test]
async fn a_client_that_never_reads_is_cheap_and_cut_off() {
    const CLIENTS: u32 = 10;
    let fleet = Fleet::start(1).await;
    let resident = async || fleet[0].metric("process_resident_memory_bytes", &[]).await;
    let open = async || fleet[0].count("authfleet_http_connections", &[]).await;
    let request = "GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n";
    // First, clients that read, to measure what serving them costs.
    for _ in 0..CLIENTS {
        fleet[0].get("/docs/swagger-ui-bundle.js").send().await.expect(200);
    }
    let before = resident().await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut raw = fleet[0].raw().await;
        assert!(raw.write(request.repeat(400).as_bytes()).await);
        clients.push(raw);
    }
    let begin = std::time::Instant::now();
    let mut peak = before;
    while begin.elapsed() < Duration::from_secs(3) {
        peak = peak.max(resident().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(open().await, u64::from(CLIENTS), "they are all there");
    let each = (peak - before) / f64::from(CLIENTS) / 1024.0 / 1024.0;
    assert!(each < 1.0, "{each} MiB each");
    // Other clients are served meanwhile, and the slow ones are cut off half a minute later.
    fleet[0].get("/profile").send().await.expect(401);
    within(Duration::from_secs(30), "cut off", async || open().await == 0).await;
}

/// Connections beyond the limit are refused. The ops listener still answers.
#[tokio::test]
async fn connections_are_limited() {
    let fleet = Fleet::builder().env("MAX_CONNECTIONS", "5").start().await;
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut raw = fleet[0].raw().await;
        raw.write(b"GET /profile HTTP/1.1\r\nHost: x\r\n\r\n").await;
        raw.read_until("session_invalid").await;
        open.push(raw);
    }
    for _ in 0..3 {
        let said = fleet[0].raw().await.read_to_end(PATIENTLY).await.expect("closed");
        let (head, body) = said.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("Retry-After: 1"), "{said}");
        assert!(head.contains("X-Served-By: replica-1") && head.contains("application/problem+json"), "{said}");
        let problem: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!((&problem["status"], &problem["code"]), (&503.into(), &"overloaded".into()));
    }
    fleet[0].ops("/readyz").await.expect(200);
    assert_eq!(fleet[0].count("authfleet_http_connections_refused_total", &[]).await, 3);
    assert_eq!(fleet[0].count("authfleet_http_connections_limit", &[]).await, 5);
    drop(open.pop());
    let serves = async || matches!(fleet[0].get("/profile").try_send().await, Ok(answer) if answer.status == 401);
    within(PATIENTLY, "there is room again", serves).await;
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
