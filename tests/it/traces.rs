//! Traces: a real collector gets the tree of a request's spans, and one that is down costs nothing but a warning.
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fleet::{Builder, Collector, Demo, Engine, Fleet, PASSWORD, PATIENTLY, Session, Span, within};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const ERROR: i32 = 2;

fn traced(collector: &Collector) -> Builder {
    // Spans are sent at once rather than after 5 s.
    Fleet::builder().env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint()).env("OTEL_BSP_SCHEDULE_DELAY", "50")
}

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

/// Waits for a span of this name, and returns its trace.
async fn trace_with(collector: &Collector, trace_id: &str, name: &str) -> Vec<Span> {
    let is_there = async || collector.trace(trace_id).iter().any(|span| span.name == name);
    within(PATIENTLY, &format!("{name} in {trace_id}"), is_there).await;
    collector.trace(trace_id)
}

fn one<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "{name}: {spans:#?}");
    found[0]
}

fn names_below<'a>(spans: &'a [Span], parent: &Span) -> BTreeSet<&'a str> {
    let below: Vec<_> = spans.iter().filter(|span| span.parent == parent.id).collect();
    for span in &below {
        assert!(parent.begin <= span.begin && span.end >= span.begin, "{span:#?} in {parent:#?}");
        assert_eq!(span.replica(), parent.replica());
    }
    below.iter().map(|span| span.name.as_str()).collect()
}

#[tokio::test]
async fn a_login_and_its_check_are_one_tree_over_nginx_and_two_replicas() {
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    let demo = Demo::start(2, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "50")]);
    let account = json!({ "email": "ada@example.org", "password": PASSWORD });
    let registered = demo.call("POST", "/auth/register").json(&account).send().await.expect(201);

    // If the client sends no trace context, nginx's request id becomes the trace's id, so that nginx's log leads to the
    // trace.
    let request_id = registered.header("x-request-id").expect("an id");
    let spans = trace_with(&collector, request_id, "POST /auth/register").await;
    let root = one(&spans, "POST /auth/register");
    assert_eq!((root.parent.as_str(), root.at("http.response.status_code")), ("", "201"));
    assert!(names_below(&spans, root).is_superset(&["password queue", "password hash", "create users"].into()));

    let send = |method: &str, path: &str| demo.call(method, path).header("traceparent", &traceparent("01"));
    let login = send("POST", "/auth/login").json(&account).send().await;
    let session = Session::opened_by(&login);
    let served_by = login.header("x-served-by").expect("a replica").to_owned();
    let mut checked_by = served_by.clone();
    for _ in 0..20 {
        if checked_by != served_by {
            break;
        }
        let checked = send("GET", "/profile").session(&session).send().await.expect(200);
        checked_by = checked.header("x-served-by").expect("a replica").to_owned();
    }
    assert_ne!(checked_by, served_by, "nginx asks each replica in turn");

    let both = async || {
        let spans = collector.trace(TRACE);
        let of = |name, replica: &str| spans.iter().any(|span| span.name == name && span.replica() == replica);
        of("POST /auth/login", &served_by) && of("GET /profile", &checked_by)
    };
    within(PATIENTLY, "spans of both replicas", both).await;
    let spans = collector.trace(TRACE);
    let login = one(&spans, "POST /auth/login");
    assert_eq!((login.parent.as_str(), login.kind, login.replica()), (CALLER, SERVER, served_by.as_str()));
    assert_eq!((login.at("http.request.method"), login.at("http.route")), ("POST", "/auth/login"));
    assert_eq!((login.at("http.response.status_code"), login.at("url.path")), ("200", "/auth/login"));
    assert_eq!(login.resource["service.name"], "authfleet");
    let expected =
        ["by_login users", "password queue", "password verify", "PIPELINE throttle", "EVALSHA create", "EVALSHA limit"]
            .into();
    let below = names_below(&spans, login);
    assert!(below.is_superset(&expected), "{below:?}");
    assert!(one(&spans, "password queue").end <= one(&spans, "password verify").begin, "first queued, then hashed");
    let create = one(&spans, "EVALSHA create");
    assert_eq!((create.kind, create.at("db.system.name")), (CLIENT, "redis"));
    let found = one(&spans, "by_login users");
    assert_eq!((found.kind, found.at("db.system.name")), (CLIENT, "sqlite"));

    let check = spans.iter().find(|span| span.name == "GET /profile" && span.replica() == checked_by).expect("above");
    assert_eq!((check.parent.as_str(), check.kind), (CALLER, SERVER));
    assert_eq!(names_below(&spans, check), ["PIPELINE check"].into());
    let trip = spans.iter().find(|span| span.parent == check.id).expect("above");
    assert_eq!(trip.at("db.operation.batch.size"), "2", "one trip: read and renew");

    // Traces name no user.
    let token = session.cookie.split('=').nth(1).expect("a value");
    let everything = format!("{:?}", collector.spans());
    for secret in [PASSWORD, token, "ada@example.org", &token[..40]] {
        assert!(!everything.contains(secret), "{secret} in a span");
    }
}

#[tokio::test]
async fn a_span_names_the_engine_that_has_the_users() {
    for (engine, name) in Engine::each().zip(["sqlite", "postgresql"]) {
        let collector = Collector::start().await;
        let fleet = traced(&collector).users_in(engine).start().await;
        fleet[0].try_login("nobody", PASSWORD).header("traceparent", &traceparent("01")).send().await.expect(401);
        let spans = trace_with(&collector, TRACE, "by_login users").await;
        assert_eq!(one(&spans, "by_login users").at("db.system.name"), name);
    }
}

#[tokio::test]
async fn the_caller_and_the_ratio_decide_what_is_traced() {
    let collector = Collector::start().await;
    let fleet =
        traced(&collector).env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio").env("OTEL_TRACES_SAMPLER_ARG", "0");
    let fleet = fleet.start().await;
    let get = |id: &str| fleet[0].get("/profile").header("x-request-id", id);
    get("alone-1").send().await.expect(401);
    get("unsampled-1").header("traceparent", &traceparent("00")).send().await.expect(401);
    get("garbage-1").header("traceparent", "00-zz-01").send().await.expect(401);
    get("sampled-1").header("traceparent", &traceparent("01")).send().await.expect(401);
    trace_with(&collector, TRACE, "GET /profile").await;
    let ids: Vec<_> = collector.spans().iter().map(|s| s.at("http.request.header.x-request-id").to_owned()).collect();
    assert_eq!(ids, ["sampled-1"]);
    // The log names the trace even if it isn't recorded.
    for (request, trace_id) in [
        ("alone-1", Value::Null),
        ("garbage-1", Value::Null),
        ("unsampled-1", TRACE.into()),
        ("sampled-1", TRACE.into()),
    ] {
        assert_eq!(fleet[0].request_line(request).await["trace_id"], trace_id, "{request}");
    }

    // A server that ignores its callers' trace contexts.
    let collector = Collector::start().await;
    let fleet = traced(&collector).env("OTEL_TRACES_SAMPLER", "traceidratio").env("OTEL_TRACES_SAMPLER_ARG", "0.5");
    let fleet = fleet.start().await;
    for n in 0..400 {
        let id = format!("{:032x}", u128::MAX / 400 * (n + 1));
        fleet[0].get("/livez").header("x-request-id", &id).send().await.expect(404);
    }
    fleet[0].get("/profile").header("traceparent", &traceparent("01")).send().await.expect(401);
    fleet[0].signal(Signal::TERM);
    let about_half = async || (140..=260).contains(&collector.spans().len());
    within(PATIENTLY, "about half of 400 requests are traced", about_half).await;
}

#[tokio::test]
async fn log_lines_of_a_request_name_its_trace() {
    let collector = Collector::start().await;
    let fleet = traced(&collector).start().await;
    fleet[0].register("ada").await;
    let body = json!({ "email": "ada@example.org", "password": PASSWORD });
    fleet[0].post("/login").header("traceparent", &traceparent("01")).json(&body).send().await.expect(200);
    let login = async || fleet[0].log().iter().any(|line| line["event"] == "login" && line["trace_id"] == TRACE);
    within(PATIENTLY, "the audit event has the trace's id", login).await;
    let others = fleet[0].log().into_iter().filter(|line| line["message"] == "authfleet is up");
    assert!(others.into_iter().all(|line| line["trace_id"].is_null()));
}

#[tokio::test]
async fn work_that_outlives_its_request_stays_in_its_trace() {
    let collector = Collector::start().await;
    let fleet = traced(&collector).start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let body = json!({ "current_password": PASSWORD, "new_password": "another long password" });
    let change = fleet[0].post("/auth/password").session(&session).header("traceparent", &traceparent("01"));
    change.json(&body).send().await.expect(200);
    let spans = trace_with(&collector, TRACE, "POST /auth/password").await;
    let below = names_below(&spans, one(&spans, "POST /auth/password"));
    let expected = ["PIPELINE check", "password verify", "password hash", "replace_password users", "EVALSHA create"];
    assert!(below.is_superset(&expected.into()), "{below:?}");
}

#[tokio::test]
async fn failures_are_marked() {
    let collector = Collector::start().await;
    let mut fleet = traced(&collector).start().await;
    let ada = fleet[0].register("ada").await;
    let session: Session = fleet[0].login(&ada).await;
    fleet.redis.kill();
    let check = fleet[0].get("/profile").session(&session).header("traceparent", &traceparent("01"));
    check.send().await.expect_problem(503, "store_unavailable");
    let spans = trace_with(&collector, TRACE, "GET /profile").await;
    let request = one(&spans, "GET /profile");
    assert_eq!((request.status, request.at("error.type")), (ERROR, "503"));
    assert_eq!(one(&spans, "PIPELINE check").status, ERROR);
}

#[tokio::test]
async fn a_collector_that_fails_costs_a_warning() {
    let collector = Collector::start().await;
    collector.refuse(500);
    let mut fleet = traced(&collector).env("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=a%2Cb").start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let failed = async || fleet[0].count("authfleet_trace_spans_total", &[("result", "failed")]).await > 0;
    within(PATIENTLY, "failed spans are counted", failed).await;
    for _ in 0..20 {
        assert_eq!(fleet[0].check(&session).await, 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let said = |text: &str| {
        let lines = fleet[0].log().into_iter();
        lines.filter(|line| line["message"].as_str().is_some_and(|message| message.contains(text))).count()
    };
    assert_eq!(said("the collector takes no traces"), 1, "said once, not for each batch");
    let noise: Vec<_> = fleet[0].log().into_iter().filter(|line| line["level"] == "ERROR").collect();
    assert!(noise.is_empty(), "{noise:?}");

    collector.refuse(0);
    let taken = async || fleet[0].check(&session).await == 200 && said("traces are taken again") == 1;
    within(PATIENTLY, "traces are taken again", taken).await;
    assert_eq!(collector.header("x-api-key").as_deref(), Some("a,b"));
    let exported = fleet[0].count("authfleet_trace_spans_total", &[("result", "exported")]).await;
    assert!(exported > 0);

    // A collector that is gone doesn't delay the shutdown either.
    fleet[0].restart(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"), ("DRAIN_DELAY", "0s")]).await;
    assert_eq!(fleet[0].check(&session).await, 200);
    let begin = Instant::now();
    fleet[0].signal(Signal::TERM);
    assert_eq!(fleet[0].ended().await.code(), Some(0));
    assert!(begin.elapsed() < PATIENTLY / 2, "{:?}", begin.elapsed());
}

/// Docker puts its client's proxy variables into every container.
#[tokio::test]
async fn a_collector_on_this_machine_is_reached_without_a_proxy() {
    let collector = Collector::start().await;
    let fleet = traced(&collector).env("http_proxy", "http://127.0.0.1:9").env("ALL_PROXY", "http://127.0.0.1:9");
    let fleet = fleet.start().await;
    fleet[0].get("/profile").header("traceparent", &traceparent("01")).send().await.expect(401);
    trace_with(&collector, TRACE, "GET /profile").await;
}

#[tokio::test]
async fn the_warning_names_the_proxy_but_not_its_password() {
    let collector = Collector::start().await;
    let fleet = traced(&collector).env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.invalid:4318");
    let fleet = fleet.env("HTTP_PROXY", "http://ada:hunter2@127.0.0.1:9").start().await;
    let warning = || fleet[0].log().into_iter().find(|line| line["endpoint"] == "http://collector.invalid:4318");
    let warned = async || {
        fleet[0].get("/profile").send().await.expect(401);
        warning().is_some()
    };
    within(PATIENTLY, "traces are not taken", warned).await;
    assert_eq!(warning().expect("a warning")["proxy"], "http://127.0.0.1:9/");
    assert!(!fleet[0].output_text().contains("hunter2"));
}

/// If a collector accepts connections and never answers, spans wait in a bounded queue, and requests don't wait.
#[tokio::test]
async fn spans_without_room_are_counted() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", silent.local_addr().expect("an address"));
    let fleet = Fleet::builder().env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "10");
    let fleet = fleet.env("OTEL_BSP_MAX_QUEUE_SIZE", "4").start().await;
    let dropped = async || {
        fleet[0].get("/profile").send().await.expect(401);
        fleet[0].count("authfleet_trace_spans_total", &[("result", "dropped")]).await > 0
    };
    within(PATIENTLY, "dropped spans are counted", dropped).await;
}

#[tokio::test]
async fn the_last_spans_are_sent_at_the_end() {
    let collector = Collector::start().await;
    let fleet = traced(&collector).env("OTEL_BSP_SCHEDULE_DELAY", "3600000").env("DRAIN_DELAY", "0s");
    let fleet = fleet.env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer the-collector-s-key");
    let mut fleet = fleet.env("RUST_LOG", "trace").start().await;
    fleet[0].get("/profile").header("traceparent", &traceparent("01")).send().await.expect(401);
    assert!(collector.spans().is_empty());
    fleet[0].signal(Signal::TERM);
    assert_eq!(fleet[0].ended().await.code(), Some(0));
    assert_eq!(one(&collector.trace(TRACE), "GET /profile").parent, CALLER);
    assert_eq!(collector.header("authorization").as_deref(), Some("Bearer the-collector-s-key"));
    assert!(!fleet[0].output_text().contains("the-collector-s-key"), "a secret in the log");
}
