//! What the log says.
use serde_json::Value;

use crate::fleet::{Fleet, PASSWORD};

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
    crate::fleet::within(crate::fleet::PATIENTLY, "the request is in flight", in_flight).await;
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

/// The first metrics, each with what happened.
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
    // Paths are anybody's: they make no series of their own.
    for n in 0..20 {
        fleet[0].get(&format!("/nowhere/{n}")).send().await.expect(404);
    }
    let metrics = fleet[0].ops("/metrics").await.expect(200);
    assert!(metrics.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    assert!(!metrics.text().contains("nowhere"));
    assert!(metrics.text().contains("process_resident_memory_bytes"));
}
