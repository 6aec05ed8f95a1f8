//! What nginx itself does for the fleet: its own answers, its limits, its headers, what it hides and what it logs.
use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fleet::{Answer, Demo, PASSWORD, PATIENTLY, Raw, Session, within};

/// Fails the test unless nginx itself answered, with the contract's problem of this status and code.
#[track_caller]
fn own_problem(answer: Answer, status: u16, code: &str) {
    let answer = answer.expect_problem(status, code);
    assert_eq!((answer.header("x-served-by"), answer.header("cache-control")), (Some("nginx"), Some("no-store")));
    secured(&answer);
}

#[track_caller]
fn secured(answer: &Answer) {
    for (name, value) in [("x-content-type-options", "nosniff"), ("referrer-policy", "same-origin")] {
        assert_eq!(answer.header(name), Some(value), "{name} of {:?}", answer.headers);
        assert_eq!(answer.headers.get_all(name).iter().count(), 1, "{name} once");
    }
    let policy = answer.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src '") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert_eq!(answer.header("strict-transport-security"), None, "never over plain http");
    assert_eq!(answer.header("server"), Some("nginx"), "without its version");
}

#[tokio::test]
async fn what_is_too_large_or_hidden_never_reaches_a_replica() {
    let demo = Demo::start(1, &[]);
    let large = json!({ "email": "ada@example.org", "password": "x".repeat(17 * 1024) });
    own_problem(demo.call("POST", "/auth/login").json(&large).send().await, 413, "body_too_large");
    let long = format!("/{}", "x".repeat(33 * 1024));
    own_problem(demo.call("GET", &long).send().await, 414, "uri_too_long");
    let heavy = demo.call("GET", "/profile").header("x-heavy", &"x".repeat(33 * 1024));
    own_problem(heavy.send().await, 431, "headers_too_large");
    for path in ["/metrics", "/livez", "/readyz", "/ops", "/ops/metrics", "//metrics", "/x/../readyz", "/%6detrics"] {
        own_problem(demo.call("GET", path).send().await, 404, "not_found");
    }
    for method in ["TRACE", "CONNECT"] {
        let answer = demo.call(method, "/").send().await;
        assert!((400..500).contains(&answer.status), "{method}: {}", answer.status);
    }

    let seen = demo.log("replica-1");
    assert!(!seen.contains("x-heavy") && !seen.contains("metrics") && !seen.contains("/auth/login"), "{seen}");
}

/// Other applications of the domain set cookies as well. nginx passes on as many as a replica accepts.
#[tokio::test]
async fn many_cookies_of_others_keep_nobody_from_signing_out() {
    let demo = Demo::start(1, &[]);
    let account = json!({ "email": "ada@example.org", "password": PASSWORD });
    demo.call("POST", "/auth/register").json(&account).send().await.expect(201);
    let session = Session::opened_by(&demo.call("POST", "/auth/login").json(&account).send().await);
    let others: Vec<_> = (0..30).map(|n| format!("other-{n}={}", "x".repeat(1000))).collect();
    let jar = format!("{}; {}", others.join("; "), session.cookie);
    demo.call("GET", "/profile").cookie(&jar).send().await.expect(200);
    demo.call("POST", "/auth/logout").cookie(&jar).send().await.expect(200);
    demo.call("GET", "/profile").cookie(&jar).send().await.expect_problem(401, "session_invalid");
}

/// One address keeps more unfinished heads open than an earlier configuration of nginx had connections.
#[tokio::test]
async fn heads_that_never_end_leave_room_for_others() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    const HEADS: usize = 10_000;
    let limits = getrlimit(Resource::Nofile);
    let wanted = Some(2 * HEADS as u64);
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum.min(wanted).or(wanted), maximum: limits.maximum })
        .expect("a limit on files");
    let demo = Demo::start(1, &[]);
    let mut held = Vec::with_capacity(HEADS);
    for _ in 0..HEADS {
        let stream = tokio::net::TcpStream::connect(demo.address()).await.expect("a connection; ulimit -n allows few?");
        drop(stream.try_write(b"GET /profile HTTP/1.1\r\nX: "));
        held.push(stream);
    }
    for _ in 0..10 {
        demo.call("GET", "/profile").send().await.expect_problem(401, "session_invalid");
    }
}

/// Each line of the log is valid JSON, whatever the client sends as its path and user agent.
#[tokio::test]
async fn every_line_of_the_log_is_json() {
    let demo = Demo::start(1, &[]);
    for (path, agent) in [
        (&b"/profile"[..], &b"a browser/1"[..]),
        (b"/profile", b"caf\xe9"),
        (b"/profile", "🦀".as_bytes()),
        (b"/profile", b"quote \" backslash \\ tab \t"),
        (b"/caf\xe9", b"x"),
        (b"/profile?q=\xff", b"x"),
        (b"/\"quote\\", b"x"),
    ] {
        let mut raw = Raw::connect(demo.address()).await;
        let request = [b"GET ", path, b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nUser-Agent: ", agent, b"\r\n\r\n"];
        raw.write(&request.concat()).await;
        let said = raw.read_to_end(PATIENTLY).await.expect("closed");
        assert!(said.starts_with("HTTP/1.1 4"), "{said}");
    }
    let log = demo.log_path("access");
    within(PATIENTLY, "seven lines", async || {
        std::fs::read(&log).is_ok_and(|text| text.split(|byte| *byte == b'\n').count() > 7)
    })
    .await;
    let lines = std::fs::read(&log).expect("a log");
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let shown = String::from_utf8_lossy(line).into_owned();
        let line: Value = serde_json::from_slice(line).unwrap_or_else(|error| panic!("{error}: {shown}"));
        assert!(line["user_agent"].is_string() && line["path"].is_string(), "{line}");
    }
}

/// In a container, the workers write to one pipe, and whoever reads it may be slow. No line ends up within another.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn lines_of_two_workers_stay_whole_in_a_pipe() {
    use tokio::io::AsyncReadExt as _;

    const REQUESTS: usize = 400;
    let demo = Demo::start(1, &[]);
    let mut pipe = demo.nginx_into_a_pipe();
    let agent = "x".repeat(500);
    let call = || tokio::spawn(demo.call("GET", "/metrics").header("user-agent", &agent).send());
    let calls: Vec<_> = (0..REQUESTS).map(|_| call()).collect();
    // A pipe takes 64 KiB. Then the workers wait.
    let is_full = async || rustix::io::ioctl_fionread(&pipe).expect("a pipe") > 48 * 1024;
    within(PATIENTLY, "a full pipe", is_full).await;

    let mut log = Vec::new();
    while !log.ends_with(b"\n") || String::from_utf8_lossy(&log).matches("/metrics").count() < REQUESTS {
        let mut piece = [0; 1000];
        let count = tokio::time::timeout(PATIENTLY, pipe.read(&mut piece)).await.expect("a line for each request");
        log.extend_from_slice(&piece[..count.expect("read")]);
    }
    for answer in calls {
        answer.await.expect("a request").expect_problem(404, "not_found");
    }
    for line in log.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let shown = String::from_utf8_lossy(line);
        assert!(serde_json::from_slice::<Value>(line).is_ok(), "{shown}");
    }
}

/// A request that a replica can't parse must not make nginx mark a replica as failed.
#[tokio::test]
async fn no_input_marks_a_replica_as_failed() {
    let demo = Demo::start(2, &[]);
    for (bytes, _) in crate::hostile_clients::unreadable() {
        let mut raw = Raw::connect(demo.address()).await;
        raw.write(&bytes).await;
        raw.finish().await;
        let said = raw.read_to_end(PATIENTLY).await.expect("closed");
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        // nginx treats some of these as HTTP/0.9, whose answers have no status line.
        let is_refused = said.starts_with("HTTP/1.1 4") || !said.starts_with("HTTP/");
        assert!(is_refused && !said.contains("\"status\":5"), "{shown:?}: {said}");
        for _ in 0..4 {
            demo.call("GET", "/profile").send().await.expect_problem(401, "session_invalid");
        }
    }
}

#[tokio::test]
async fn answers_of_replicas_pass_with_security_headers() {
    let demo = Demo::start(1, &[]);
    let forged = demo.call("GET", "/profile?token=in-the-query").header("x-request-id", "from-a-client");
    let refused = forged.header("x-forwarded-for", "203.0.113.9").send().await.expect_problem(401, "session_invalid");
    secured(&refused);
    assert_eq!(refused.header("x-served-by"), Some("replica-1"));
    secured(&demo.call("GET", "/openapi.json").send().await.expect(200));
    let docs = demo.call("GET", "/docs/").send().await.expect(200);
    assert!(docs.header("content-security-policy").is_some_and(|policy| policy.contains("style-src 'self'")));

    // nginx makes the id and ignores the client's. The logs of nginx and the replica have the same one.
    let id = refused.header("x-request-id").expect("an id").to_owned();
    assert!(id.len() == 32 && id != "from-a-client", "{id}");
    let line = |log: &str| {
        let lines = demo.log(log);
        let parsed = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        parsed.into_iter().find(|line| line["request_id"] == *id)
    };
    within(PATIENTLY, "both lines", async || line("access").is_some() && line("replica-1").is_some()).await;
    let (edge, replica) = (line("access").expect("above"), line("replica-1").expect("above"));
    assert_eq!((&edge["path"], &edge["status"]), (&"/profile".into(), &401.into()), "without the query: {edge}");
    assert_eq!((&edge["replica"], &edge["client"]), (&"replica-1".into(), &"127.0.0.1".into()), "{edge}");
    assert_eq!(replica["client_ip"], "127.0.0.1", "no client chooses its address: {replica}");
}

/// Replicas believe nginx, so nginx must not pass on what a client claims.
#[tokio::test]
async fn no_client_chooses_the_host_that_its_origin_is_compared_with() {
    let demo = Demo::start(1, &[]);
    let login = |origin: &str| {
        let user = json!({ "email": "nobody@example.org", "password": PASSWORD });
        demo.call("POST", "/auth/login").json(&user).header("origin", origin)
    };
    let claimed = login("http://evil.example").header("x-forwarded-host", "evil.example");
    claimed.header("x-forwarded-proto", "http").send().await.expect_problem(403, "cross_site");
    let forwarded = login("http://evil.example").header("forwarded", "host=evil.example");
    forwarded.send().await.expect_problem(403, "cross_site");
    login(&format!("http://{}", demo.address())).send().await.expect_problem(401, "invalid_credentials");
}

#[tokio::test]
async fn a_flood_of_logins_from_one_address_is_limited_and_checks_are_not() {
    let demo = Demo::start(1, &[]);
    let wrong = json!({ "email": "nobody@example.org", "password": PASSWORD });
    let mut answers = Vec::new();
    for _ in 0..80 {
        answers.push(tokio::spawn(demo.call("POST", "/auth/login").json(&wrong).send()));
    }
    let mut limited = Vec::new();
    for answer in answers {
        let answer = answer.await.expect("an answer");
        if answer.header("x-served-by") == Some("nginx") {
            limited.push(answer);
        }
    }
    // 40 at once and 10 a second pass.
    assert!((1..=40).contains(&limited.len()), "{} of 80 limited", limited.len());
    for answer in limited {
        own_problem(answer, 429, "throttled");
    }
    for _ in 0..80 {
        demo.call("GET", "/profile").send().await.expect_problem(401, "session_invalid");
    }
}

#[tokio::test]
async fn without_any_replica_nginx_answers_503_and_serves_again_when_one_is_back() {
    let demo = Demo::start(1, &[]);
    demo.part("kill", "replica-1");
    own_problem(demo.call("GET", "/profile").send().await, 503, "upstream_unavailable");
    own_problem(demo.call("POST", "/auth/logout").send().await, 503, "upstream_unavailable");
    demo.part("start", "replica-1");
    let serves = async || demo.call("GET", "/profile").send().await.status == 401;
    within(PATIENTLY, "nginx passes requests on again", serves).await;
}

#[tokio::test]
async fn a_client_that_dawdles_holds_nobody_up() {
    let demo = Demo::start(1, &[]);
    let mut slow = Vec::new();
    for _ in 0..50 {
        let stream = tokio::net::TcpStream::connect(demo.address()).await.expect("a connection");
        stream.try_write(b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{").expect("sent");
        slow.push(stream);
    }
    for _ in 0..20 {
        let answer = demo.call("GET", "/profile").send().await.expect(401);
        assert!(answer.took < Duration::from_secs(2), "{:?}", answer.took);
    }
}

#[test]
fn a_taken_port_is_named_before_anything_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    for (variable, what) in [("AUTHFLEET_HTTP_PORT", "nginx"), ("AUTHFLEET_REDIS_PORT", "Redis")] {
        let done = Demo::try_start(&[(variable, port.clone())]);
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{said}");
        let expected = format!("port {port} is taken: end what listens there, or set {variable} (for {what})");
        assert!(said.contains("nothing was started") && said.contains(&expected), "{said}");
        assert!(done.stdout.is_empty(), "{}", String::from_utf8_lossy(&done.stdout));
    }
    let done = Demo::try_start(&[("AUTHFLEET_HTTP_PORT", "http".to_owned())]);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success() && said.contains("AUTHFLEET_HTTP_PORT=http is not a usable port"), "{said}");
}

/// A person who went to a page reads why there is none; a program gets the problem.
#[tokio::test]
async fn to_a_person_nginx_answers_with_a_page() {
    let demo = Demo::start(1, &[]);
    demo.part("kill", "replica-1");
    let page = |answer: Answer, status: u16| {
        let answer = answer.expect(status);
        assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
        assert_eq!((answer.header("x-served-by"), answer.header("cache-control")), (Some("nginx"), Some("no-store")));
        assert!(answer.header("x-request-id").is_some() && answer.header("retry-after") == Some("1"));
        secured(&answer);
        answer.text()
    };
    let navigate = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        let call = demo.call(method, path);
        headers.iter().fold(call, |call, (name, value)| call.header(name, value)).send().await
    };
    for (method, path) in [("GET", "/"), ("GET", "/sign-in?host=x&to=/y"), ("POST", "/sign-in"), ("GET", "/account")] {
        let text = page(navigate(method, path, &[("sec-fetch-mode", "navigate")]).await, 503);
        assert!(text.contains("No server can answer at present.") && text.contains("lang=\"en\""), "{text}");
    }
    let old = [("accept", "text/html,*/*;q=0.8"), ("accept-language", "de-AT,de;q=0.9")];
    let text = page(navigate("GET", "/sign-in", &old).await, 503);
    assert!(text.contains("Zurzeit kann kein Server antworten.") && text.contains("lang=\"de\""), "{text}");
    own_problem(navigate("GET", "/profile", &[("sec-fetch-mode", "navigate")]).await, 503, "upstream_unavailable");
    own_problem(navigate("GET", "/sign-in", &[("accept", "*/*")]).await, 503, "upstream_unavailable");

    let mut limited = None;
    for _ in 0..200 {
        let answer = navigate("POST", "/sign-in", &[("sec-fetch-mode", "navigate")]).await;
        if answer.status == 429 {
            limited = Some(answer);
            break;
        }
    }
    assert!(page(limited.expect("a limit"), 429).contains("Too many requests came from your network."));
}

/// A form may wait in the queue for hashing; a page that is only looked at may not, and another replica is asked.
#[tokio::test]
async fn a_frozen_replica_keeps_nobody_from_the_pages() {
    let demo = Demo::start(2, &[]);
    demo.part("pause", "replica-1");
    for path in ["/sign-in", "/register", "/account", "/sign-out"] {
        let answer = demo.call("GET", path).send().await;
        assert_eq!(answer.header("x-served-by"), Some("replica-2"), "{path}: {}", answer.status);
        if answer.status == 200 {
            let policy = answer.header("content-security-policy").expect("a policy");
            assert!(policy.starts_with("default-src 'none'; style-src 'self';"), "the page's own policy: {policy}");
        }
    }
    demo.part("resume", "replica-1");
}
