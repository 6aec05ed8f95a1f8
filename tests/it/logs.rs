//! The log: its lines, their limits, and what happens if nobody reads it.
use std::io::{PipeReader, Read as _};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::Value;

use crate::fleet::{Fleet, PASSWORD, PATIENTLY, Replica, within};

/// The longest line, in bytes, as `docs/observability.md` promises.
const LINE_LIMIT: usize = 8192;

#[tokio::test]
async fn one_line_per_request() {
    let fleet = Fleet::builder().env("TRUSTED_PROXIES", "127.0.0.1").start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let call = |id: &str, method: &str, path: &str| {
        fleet[0]
            .call(method, path)
            .header("x-request-id", id)
            .header("x-forwarded-for", "203.0.113.7")
            .session(&session)
    };
    call("profile-1", "GET", "/profile?token=in-the-query").send().await.expect(200);
    let line = fleet[0].request_line("profile-1").await;
    let mut fields: Vec<_> = line.as_object().expect("an object").keys().map(String::as_str).collect();
    fields.sort_unstable();
    let expected = [
        "client_ip",
        "duration_ms",
        "level",
        "method",
        "path",
        "replica",
        "request_id",
        "route",
        "status",
        "target",
        "timestamp",
    ];
    assert_eq!(fields, expected);
    assert_eq!(
        (&line["method"], &line["path"], &line["route"]),
        (&"GET".into(), &"/profile".into(), &"/profile".into())
    );
    assert_eq!((&line["status"], &line["replica"], &line["level"]), (&200.into(), &"replica-1".into(), &"INFO".into()));
    assert_eq!(line["client_ip"], "203.0.113.7");
    assert!(line["duration_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{line}");
    assert!(line["timestamp"].as_str().is_some_and(|time| time.parse::<jiff::Timestamp>().is_ok()), "{line}");

    call("nowhere-1", "DELETE", "/no/where%0a%22injected").send().await.expect(404);
    let line = fleet[0].request_line("nowhere-1").await;
    assert_eq!((&line["status"], &line["route"], &line["method"]), (&404.into(), &Value::Null, &"DELETE".into()));
    assert_eq!(line["path"], "/no/where%0a%22injected");

    // A client that leaves before its answer has a line too.
    let mut raw = fleet[0].raw().await;
    let head = "POST /login HTTP/1.1\r\nHost: x\r\nX-Request-Id: left-1\r\nContent-Type: application/json";
    raw.write(format!("{head}\r\nContent-Length: 100\r\n\r\n{{").as_bytes()).await;
    let in_flight = async || fleet[0].count("authfleet_http_requests_in_flight", &[]).await == 1;
    within(PATIENTLY, "the request is in flight", in_flight).await;
    drop(raw);
    let status = fleet[0].request_line("left-1").await["status"].clone();
    assert!(status == 499 || status == 400, "{status}");

    let all_json = fleet[0].output_text();
    for line in all_json.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(line["replica"], "replica-1");
    }
}

#[tokio::test]
async fn who_did_what_is_recorded() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    fleet[0].try_login("ada", "a wrong password").send().await.expect(401);
    fleet[0].post("/auth/logout").session(&session).send().await.expect(200);
    let audit: Vec<_> = fleet[0].log().into_iter().filter(|line| line["target"] == "audit").collect();
    let events: Vec<_> = audit.iter().map(|line| line["event"].as_str().expect("an event")).collect();
    assert_eq!(events, ["account_created", "login", "login_failed", "session_ended"]);
    for (at, field, value) in [
        (0, "user_id", &ada.id),
        (1, "user_id", &ada.id),
        (1, "session_id", &session.id),
        (3, "session_id", &session.id),
    ] {
        assert_eq!(audit[at][field], *value);
    }
    assert!(audit.iter().all(|line| line["request_id"].is_string() && line["ip"] == "127.0.0.1"), "{audit:?}");
    assert!(!fleet[0].output_text().contains(PASSWORD));
}

/// Writes more log than a pipe and the queues hold, by requests for long paths that don't exist.
async fn fill_the_log(replica: &Replica) {
    let path = format!("/{}", "x".repeat(5000));
    for _ in 0..700 {
        replica.get(&path).send().await.expect(404);
    }
}

/// Reads a log from now on, in a thread.
fn read_all(mut log: PipeReader) -> (Arc<Mutex<Vec<u8>>>, JoinHandle<()>) {
    let text = Arc::new(Mutex::new(Vec::new()));
    let reader = std::thread::spawn({
        let text = Arc::clone(&text);
        move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = log.read(&mut buffer) {
                text.lock().extend_from_slice(&buffer[..count]);
            }
        }
    });
    (text, reader)
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_nobody() {
    let mut fleet = Fleet::builder().env("DRAIN_DELAY", "0s").start().await;
    let ada = fleet[0].register("ada").await;
    let log = fleet[0].restart_into_pipe().await;
    fill_the_log(&fleet[0]).await;
    fleet[0].ops("/livez").await.expect(200);
    fleet[0].ops("/readyz").await.expect(200);
    let session = fleet[0].login(&ada).await;
    assert_eq!(fleet[0].check(&session).await, 200);
    fleet[0].post("/auth/logout").session(&session).send().await.expect(200);
    let lost = async |kind| fleet[0].count("authfleet_log_lines_lost_total", &[("kind", kind)]).await;
    let lost_requests = lost("request").await;
    assert!(lost_requests > 0, "the queue took more than a pipe and a mebibyte");
    assert_eq!([lost("audit").await, lost("other").await], [0, 0]);

    // The log is read again: it says what was lost, and no audit event was.
    let (text, reader) = read_all(log);
    let has_been_said = async || String::from_utf8_lossy(&text.lock()).contains("log lines were lost");
    within(PATIENTLY, "the loss is said", has_been_said).await;
    assert_eq!(lost("request").await, lost_requests);
    let requests = fleet[0].count("authfleet_http_requests_total", &[]).await;
    fleet[0].signal(Signal::TERM);
    assert_eq!(fleet[0].ended().await.code(), Some(0));
    reader.join().expect("a log");
    let text = String::from_utf8(std::mem::take(&mut *text.lock())).expect("UTF-8");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |target: &str| lines.iter().filter(|line| line["target"] == target).collect::<Vec<_>>();
    assert_eq!(of("request").len() as u64 + lost_requests, requests, "each request is logged or counted as lost");
    let events: Vec<_> = of("audit").iter().map(|line| line["event"].as_str().expect("an event")).collect();
    assert_eq!(events, ["login", "session_ended"]);
    let said = lines.iter().filter(|line| line["level"] == "WARN" && line["request"].is_number());
    let said: Vec<_> = said.map(|line| (&line["audit"], &line["other"], line["request"].as_u64())).collect();
    assert_eq!(said, [(&0.into(), &0.into(), Some(lost_requests))]);
    assert!(lines.iter().any(|line| line["message"] == "authfleet is down"), "the log is whole");
}

#[tokio::test]
async fn a_replica_ends_although_nobody_reads_its_log() {
    let mut fleet = Fleet::builder().env("DRAIN_DELAY", "0s").start().await;
    let log = fleet[0].restart_into_pipe().await;
    fill_the_log(&fleet[0]).await;
    fleet[0].signal(Signal::TERM);
    assert_eq!(fleet[0].ended().await.code(), Some(0));
    drop(log);
}

/// A closed log makes no request fail and keeps no thread busy.
#[tokio::test]
async fn a_log_that_is_closed_holds_up_nobody() {
    let mut fleet = Fleet::builder().env("DRAIN_DELAY", "0s").start().await;
    let ada = fleet[0].register("ada").await;
    drop(fleet[0].restart_into_pipe().await);
    let session = fleet[0].login(&ada).await;
    let lost = async |kind| fleet[0].count("authfleet_log_lines_lost_total", &[("kind", kind)]).await;
    within(PATIENTLY, "the loss is counted", async || lost("audit").await == 1 && lost("request").await == 1).await;
    assert_eq!(fleet[0].check(&session).await, 200);
    fleet[0].signal(Signal::TERM);
    assert_eq!(fleet[0].ended().await.code(), Some(0));
}

/// A command that ends sessions finishes, even if nobody reads its messages.
#[tokio::test]
async fn a_command_works_although_nobody_reads_its_log() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let (log, stderr) = std::io::pipe().expect("a pipe");
    // Fills the pipe to the last byte.
    rustix::io::ioctl_fionbio(&stderr, true).expect("a pipe can be non-blocking");
    for size in [4096, 1] {
        while rustix::io::write(&stderr, &vec![b'\n'; size]).is_ok() {}
    }
    rustix::io::ioctl_fionbio(&stderr, false).expect("a pipe can be blocking");
    let done = fleet.command_with_errors_to(stderr, &["user", "disable", "ada"]).await.expect_code(0);
    assert!(done.stdout.contains("disabled"), "{}", done.stdout);
    assert_eq!(fleet[0].check(&session).await, 401);
    fleet[0].try_login("ada", PASSWORD).send().await.expect(401);
    drop(log);
}

#[tokio::test]
async fn a_line_is_bounded_whatever_clients_send() {
    let fleet = Fleet::start(1).await;
    let path = format!("/{}", "%22\"{".repeat(4000));
    let mut raw = fleet[0].raw().await;
    raw.write(format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: long-path\r\n\r\n").as_bytes()).await;
    raw.read_until("not_found").await;
    let line = fleet[0].request_line("long-path").await;
    let logged = line["path"].as_str().expect("a path");
    assert!(logged.strip_suffix('…').is_some_and(|begin| begin.len() > 2000 && path.starts_with(begin)), "{logged}");

    let method = "M".repeat(20_000);
    let mut raw = fleet[0].raw().await;
    let head = format!("{method} /profile HTTP/1.1\r\nHost: x\r\nX-Request-Id: long-method\r\n\r\n");
    raw.write(head.as_bytes()).await;
    raw.read_until("method_not_allowed").await;
    let line = fleet[0].request_line("long-method").await;
    assert!(line["method"].as_str().is_some_and(|method| method.ends_with("M…")), "{line}");

    let text = fleet[0].output_text();
    let longest = text.lines().max_by_key(|line| line.len()).expect("lines");
    assert!(longest.len() < LINE_LIMIT, "{} bytes: {longest}", longest.len());
}

/// Each metric counts what happened.
#[tokio::test]
async fn metrics_count_what_happened() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    fleet[0].try_login("ada", "a wrong password").send().await.expect(401);
    for cookie in [&session.cookie, &session.forged(), "theme=dark"] {
        fleet[0].get("/profile").cookie(cookie).send().await;
    }
    fleet[0].post("/auth/logout").session(&session).send().await.expect(200);
    assert_eq!(fleet[0].check(&session).await, 401);
    let profile = [("method", "GET"), ("route", "/profile")];
    for (name, labels, expected) in [
        ("authfleet_http_requests_total", &[profile[0], profile[1], ("status", "200")][..], 1),
        ("authfleet_http_requests_total", &[profile[0], profile[1], ("status", "401")], 3),
        ("authfleet_http_request_duration_seconds_count", &profile, 4),
        ("authfleet_session_checks_total", &[("result", "valid")], 1),
        ("authfleet_session_checks_total", &[("result", "bad_signature")], 1),
        ("authfleet_session_checks_total", &[("result", "no_cookie")], 1),
        ("authfleet_session_checks_total", &[("result", "unknown")], 1),
        ("authfleet_sessions_created_total", &[], 1),
        ("authfleet_sessions_ended_total", &[("reason", "logout")], 1),
        ("authfleet_logins_total", &[("result", "success")], 1),
        ("authfleet_logins_total", &[("result", "invalid_credentials")], 1),
        ("authfleet_registrations_total", &[("result", "success")], 1),
        ("authfleet_hash_duration_seconds_count", &[], 3),
        ("authfleet_build_info", &[("version", env!("CARGO_PKG_VERSION")), ("replica", "replica-1")], 1),
    ] {
        assert_eq!(fleet[0].count(name, labels).await, expected, "{name} {labels:?}");
    }
    // Clients choose paths, so a path makes no series of its own.
    for n in 0..20 {
        fleet[0].get(&format!("/nowhere/{n}")).send().await.expect(404);
    }
    let metrics = fleet[0].ops("/metrics").await.expect(200);
    assert!(metrics.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    assert!(!metrics.text().contains("nowhere"));
    assert!(metrics.text().contains("process_resident_memory_bytes"));
}
