//! Every metric, as Prometheus reads it from a working replica.
pub mod exposition;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use authfleet::metrics::{
    CATALOGUE, CLOCK_SKEW, CONFIG_INFO, DRAINING, HTTP_CONNECTIONS, PART_READY, READY, REDIS_CONNECTED, REDIS_ERRORS,
    REDIS_EVICTED, REDIS_MEMORY, REDIS_MEMORY_LIMIT, REDIS_PERSISTENCE_OK, REDIS_SECONDS, SECRET_FILE_TIME,
    SESSIONS_ACCEPTED, SESSIONS_ALIVE, SQL_ACQUIRE_SECONDS, SQL_ACQUIRE_TIMEOUTS, SQL_CONNECTIONS,
    SQL_CONNECTIONS_LIMIT, SQL_CONNECTS, TRACE_SPANS, USERS_DATABASE_BYTES, USERS_PRIMARY, USERS_VOLUME_BYTES,
    USERS_VOLUME_FREE_BYTES,
};
use futures::future::join_all;
use rustix::process::Signal;
use serde_json::json;

use self::exposition::{Exposition, Labels};
use crate::fleet::{Engine, Fleet, PATIENTLY, Replica, SECRET, within};

const SESSIONS_PART: &[(&str, &str)] = &[("part", "sessions")];
const USERS_PART: &[(&str, &str)] = &[("part", "users")];

pub async fn value(replica: &Replica, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    Exposition::of(replica).await.value(name, labels)
}

/// Waits until a metric has this value, which may be NaN.
async fn expect_value(replica: &Replica, name: &str, labels: &[(&str, &str)], expected: f64) {
    within(PATIENTLY, &format!("{name} {labels:?} is {expected}"), async || {
        value(replica, name, labels).await.is_some_and(|found| found.total_cmp(&expected).is_eq())
    })
    .await;
}

fn secret_file(directory: &Path) -> String {
    let path = directory.join("session-secret");
    std::fs::write(&path, SECRET).expect("a file");
    path.display().to_string()
}

#[tokio::test]
async fn every_metric_is_exposed_as_the_catalogue_says() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let secret = secret_file(directory.path());
    let builder = Fleet::builder().replicas(2).env("SESSION_SECRET", "").env("SESSION_SECRET_FILE", &secret);
    let fleet = builder.with_applications().start().await;
    for (replica, name) in fleet.replicas().iter().zip(["ada", "eve"]) {
        let user = replica.register(name).await;
        replica.try_login(name, "a wrong password").send().await.expect(401);
        let session = replica.login(&user).await;
        for checked_by in fleet.replicas() {
            assert_eq!(checked_by.check(&session).await, 200);
        }
        replica.post("/auth/logout").session(&session).send().await.expect(200);
        assert_eq!(replica.check(&session).await, 401);
    }
    for (replica, name) in fleet.replicas().iter().zip(["replica-1", "replica-2"]) {
        within(PATIENTLY, "sessions are counted", async || value(replica, SESSIONS_ALIVE, &[]).await.is_some()).await;
        let exposition = Exposition::of(replica).await;
        assert_eq!(exposition.value(TRACE_SPANS, &[]), None, "tracing is off");
        for metric in CATALOGUE.iter().filter(|metric| metric.name != TRACE_SPANS) {
            let of = |texts: &BTreeMap<String, String>| texts.get(metric.name).cloned().unwrap_or_default();
            assert_eq!(of(&exposition.help), metric.help, "{}", metric.name);
            assert_eq!(of(&exposition.kinds), metric.kind.prometheus_type(), "{}", metric.name);
            let suffix = if metric.kind.buckets().is_some() { "_count" } else { "" };
            let of_metric = |(sample, _, _): &&(String, Labels, f64)| *sample == format!("{}{suffix}", metric.name);
            let samples: Vec<_> = exposition.samples.iter().filter(of_metric).collect();
            assert!(!samples.is_empty(), "{} has no value", metric.name);
            for (_, labels, _) in &samples {
                expect_labels(metric, labels, name);
            }
            if metric.kind.prometheus_type() == "counter"
                && let Some(series) = metric.series()
            {
                assert_eq!(samples.len(), series.len(), "{}: all that are known, used or not", metric.name);
            }
            let mut bounds: Vec<_> =
                metric.kind.buckets().unwrap_or_default().iter().map(ToString::to_string).collect();
            if !bounds.is_empty() {
                bounds.push("+Inf".to_owned());
            }
            let bucket = format!("{}_bucket", metric.name);
            let is_first = |labels: &Labels| samples[0].1.iter().all(|(label, value)| labels.get(label) == Some(value));
            let buckets = exposition.samples.iter().filter(|(sample, labels, _)| *sample == bucket && is_first(labels));
            assert_eq!(buckets.map(|(_, labels, _)| labels["le"].clone()).collect::<Vec<_>>(), bounds, "{bucket}");
        }
        // Every metric is in the catalogue, and every series names its replica.
        for (sample, labels, _) in &exposition.samples {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| sample.strip_suffix(suffix));
            let is_ours = |metric: &&authfleet::metrics::Metric| {
                metric.name == sample || metric.kind.buckets().is_some() && Some(metric.name) == base
            };
            assert!(sample.starts_with("process_") || CATALOGUE.iter().any(|metric| is_ours(&metric)), "{sample}");
            assert_eq!(labels.get("replica").map(String::as_str), Some(name), "{sample}");
        }
        for part in ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "start_time_seconds", "threads"] {
            assert!(exposition.value(&format!("process_{part}"), &[]).is_some(), "process_{part}");
        }
        for made_by in ["self", "other"] {
            assert_eq!(exposition.value(SESSIONS_ACCEPTED, &[("made_by", made_by)]), Some(1.0), "{made_by}");
        }
        let bytes = |name: &str| exposition.value(name, &[]).unwrap_or_default();
        assert!(bytes(USERS_DATABASE_BYTES) > 0.0 && bytes(REDIS_MEMORY) > 0.0);
        assert!(0.0 < bytes(USERS_VOLUME_FREE_BYTES) && bytes(USERS_VOLUME_FREE_BYTES) <= bytes(USERS_VOLUME_BYTES));
        assert!(exposition.value(CLOCK_SKEW, &[]).is_some_and(|skew| skew.abs() < 1.0), "one clock for both");
        let changed = std::fs::metadata(&secret).and_then(|file| file.modified()).expect("a time");
        let changed = changed.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        assert_eq!(exposition.value(SECRET_FILE_TIME, &[("variable", "SESSION_SECRET")]), Some(changed));
        assert_eq!(exposition.value(SECRET_FILE_TIME, &[("variable", "REDIS_URL")]), None, "not from a file");
    }
}

/// Fails the test unless a series has exactly the metric's labels and `replica`, with values from the catalogue.
fn expect_labels(metric: &authfleet::metrics::Metric, labels: &Labels, replica: &str) {
    let mut expected: BTreeSet<_> = metric.labels.iter().map(|(label, _)| *label).collect();
    expected.insert("replica");
    assert_eq!(labels.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected, "{}", metric.name);
    assert_eq!(labels["replica"], replica);
    for (label, values) in metric.labels {
        let value = labels[*label].as_str();
        assert!(values.is_empty() || values.contains(&value), "{} {label}={value}", metric.name);
        assert!(!value.is_empty(), "{} {label}", metric.name);
    }
}

/// Clients choose paths, methods, names and ids freely. A series for each would fill Prometheus's memory.
#[tokio::test]
async fn odd_requests_make_no_series() {
    let fleet = Fleet::start(1).await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    within(PATIENTLY, "all is looked at once", async || value(&fleet[0], SESSIONS_ALIVE, &[]).await.is_some()).await;
    let odd = async |n: usize| {
        let id = format!("id-{n}-{:032x}", fastrand::u128(..));
        let paths = [
            format!("/{id}"),
            format!("/{id}/profile?{id}={id}"),
            format!("/docs/{id}"),
            format!("/profile/{id}"),
            format!("/%22%0a{id}"),
        ];
        let methods = [format!("M{n}"), format!("BREW{n}"), "GET".to_owned(), "DELETE".to_owned()];
        let calls = paths.iter().flat_map(|path| methods.iter().map(move |method| (method, path)));
        let calls = calls.map(|(method, path)| fleet[0].call(method, path).header("x-request-id", &id).send());
        join_all(calls).await;
        fleet[0].call(&methods[0], "/profile").session(&session).send().await.expect(405);
        fleet[0].call("DELETE", &format!("/auth/sessions/{id}")).session(&session).send().await;
        fleet[0].get("/profile").cookie(&format!("session={id}")).header("host", &id).send().await.expect(401);
        fleet[0].try_login(&id, &id).header("user-agent", &id).send().await.expect(401);
        let body = json!({ "email": id, "username": id, "password": id });
        fleet[0].post("/auth/register").json(&body).send().await.expect(422);
        for request in [format!("{id}\r\n\r\n"), format!("GET /{id} HTTP/1.1\r\n{id}: \0\r\n\r\n")] {
            let mut raw = fleet[0].raw().await;
            raw.write(request.as_bytes()).await;
            raw.read_to_end(PATIENTLY).await.expect("closed");
        }
    };
    odd(0).await;
    let known = Exposition::of(&fleet[0]).await.series();
    for n in 1..20 {
        odd(n).await;
    }
    let new: Vec<_> = Exposition::of(&fleet[0]).await.series().difference(&known).cloned().collect();
    assert!(new.is_empty(), "{new:?}");
}

#[tokio::test]
async fn gauges_follow_redis_down_and_up() {
    let mut fleet = Fleet::builder().redis_over_tcp().start().await;
    fleet[0].login(&fleet[0].register("ada").await).await;
    let known = [CLOCK_SKEW, REDIS_MEMORY, REDIS_MEMORY_LIMIT, REDIS_EVICTED, REDIS_PERSISTENCE_OK, SESSIONS_ALIVE];
    for round in 0..2 {
        expect_value(&fleet[0], READY, &[], 1.0).await;
        // Counted again as soon as Redis is back, not only when the next count is due.
        within(PATIENTLY, "sessions are counted", async || {
            value(&fleet[0], SESSIONS_ALIVE, &[]).await.is_some_and(f64::is_finite)
        })
        .await;
        let exposition = Exposition::of(&fleet[0]).await;
        for name in known {
            assert!(exposition.value(name, &[]).is_some_and(f64::is_finite), "{name}");
        }
        assert_eq!(exposition.value(REDIS_CONNECTED, &[]), Some(1.0));
        assert_eq!(exposition.value(REDIS_PERSISTENCE_OK, &[]), Some(1.0));
        if round == 1 {
            assert_eq!(exposition.value(SESSIONS_ALIVE, &[]), Some(1.0), "it was on Redis's disk");
            break;
        }
        fleet.redis.kill();
        expect_value(&fleet[0], READY, &[], 0.0).await;
        expect_value(&fleet[0], SESSIONS_ALIVE, &[], f64::NAN).await;
        let exposition = Exposition::of(&fleet[0]).await;
        assert_eq!(exposition.value(PART_READY, SESSIONS_PART), Some(0.0));
        assert_eq!(exposition.value(PART_READY, USERS_PART), Some(1.0));
        assert_eq!(exposition.value(REDIS_CONNECTED, &[]), Some(0.0));
        for name in known {
            assert!(exposition.value(name, &[]).is_some_and(f64::is_nan), "{name}: an old value looks like a new one");
        }
        fleet.redis.start().await;
    }
}

#[tokio::test]
async fn a_users_database_that_is_gone_shows() {
    let fleet = Fleet::start(1).await;
    expect_value(&fleet[0], PART_READY, USERS_PART, 1.0).await;
    let away = fleet.path().join("away.db");
    std::fs::rename(fleet.database(), &away).expect("moved");
    expect_value(&fleet[0], PART_READY, USERS_PART, 0.0).await;
    expect_value(&fleet[0], USERS_DATABASE_BYTES, &[], f64::NAN).await;
    assert_eq!(value(&fleet[0], PART_READY, SESSIONS_PART).await, Some(1.0));
    std::fs::rename(&away, fleet.database()).expect("moved back");
    expect_value(&fleet[0], READY, &[], 1.0).await;
}

#[tokio::test]
async fn a_replica_that_drains_says_so_at_once() {
    let fleet = Fleet::builder().env("DRAIN_DELAY", "10m").start().await;
    expect_value(&fleet[0], READY, &[], 1.0).await;
    assert_eq!(value(&fleet[0], DRAINING, &[]).await, Some(0.0));
    let looks = async || value(&fleet[0], &format!("{REDIS_SECONDS}_count"), &[("operation", "ping")]).await;
    // Right after a look at the parts, the next one is farthest away.
    let before = looks().await;
    within(PATIENTLY, "a look at the parts", async || looks().await != before).await;
    let last = looks().await;
    fleet[0].signal(Signal::TERM);
    expect_value(&fleet[0], DRAINING, &[], 1.0).await;
    let exposition = Exposition::of(&fleet[0]).await;
    assert_eq!(exposition.value(READY, &[]), Some(0.0));
    assert_eq!(looks().await, last, "no look was needed for that");
    // It is still so after the next look, and the parts are still watched.
    within(PATIENTLY, "a look at the parts", async || looks().await != last).await;
    let exposition = Exposition::of(&fleet[0]).await;
    assert_eq!((exposition.value(READY, &[]), exposition.value(DRAINING, &[])), (Some(0.0), Some(1.0)));
    assert_eq!(exposition.value(PART_READY, SESSIONS_PART), Some(1.0));
}

/// Makes keys of sessions and other keys, faster than logins would.
fn fill(fleet: &Fleet, sessions: u32, others: u32) {
    let script = "for i = 1, ARGV[1] do redis.call('HSET', 'session:{' .. i .. '}:x', 'user_id', i) end \
                  for i = 1, ARGV[2] do redis.call('SET', 'user:{' .. i .. '}:sessions', i) end";
    fleet.redis.run::<()>(&["EVAL", script, "0", &sessions.to_string(), &others.to_string()]);
}

#[tokio::test]
async fn sessions_alive_are_counted_or_estimated() {
    // Few keys are counted.
    let mut fleet = Fleet::builder().replicas(0).start().await;
    fill(&fleet, 4321, 5000);
    fleet.redis.run::<()>(&["SET", "sessions", "no session"]);
    fleet.add_replica().await;
    expect_value(&fleet[0], SESSIONS_ALIVE, &[], 4321.0).await;

    // Many keys are estimated from a sample, half of which are other keys. 15 % is five standard deviations.
    let mut fleet = Fleet::builder().replicas(0).start().await;
    fill(&fleet, 12_000, 12_000);
    fleet.add_replica().await;
    within(PATIENTLY, "sessions are counted", async || value(&fleet[0], SESSIONS_ALIVE, &[]).await.is_some()).await;
    let estimate = value(&fleet[0], SESSIONS_ALIVE, &[]).await.unwrap_or_default();
    assert!((estimate - 12_000.0).abs() <= 0.15 * 12_000.0, "{estimate}");
    let commands: String = fleet.redis.run(&["INFO", "commandstats"]);
    assert!(commands.contains("cmdstat_randomkey:calls=1000,") && !commands.contains("cmdstat_scan:"), "{commands}");
}

#[tokio::test]
async fn in_memory_sessions_are_counted_and_redis_is_absent() {
    let fleet = Fleet::builder().without_redis().unmigrated().env("SESSION_SECRET", "").start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    fleet[0].login(&ada).await;
    within(PATIENTLY, "sessions are counted", async || value(&fleet[0], SESSIONS_ALIVE, &[]).await.is_some()).await;
    let exposition = Exposition::of(&fleet[0]).await;
    assert_eq!(exposition.value(READY, &[]), Some(1.0));
    assert_eq!(exposition.value(SESSIONS_ACCEPTED, &[("made_by", "self")]), Some(0.0));
    for name in [CLOCK_SKEW, REDIS_CONNECTED, REDIS_MEMORY, REDIS_MEMORY_LIMIT, REDIS_EVICTED, REDIS_PERSISTENCE_OK] {
        assert_eq!(exposition.value(name, &[]), None, "{name}");
    }
    assert_eq!(fleet[0].check(&session).await, 200);
    assert_eq!(value(&fleet[0], SESSIONS_ACCEPTED, &[("made_by", "self")]).await, Some(1.0));
}

#[tokio::test]
async fn the_fingerprint_tells_replicas_that_are_configured_otherwise() {
    let mut fleet = Fleet::start(2).await;
    let fingerprint = async |replica: &Replica| {
        let exposition = Exposition::of(replica).await;
        let labels = exposition.series().into_iter().find(|(name, _)| name == CONFIG_INFO).expect("there").1;
        labels["fingerprint"].clone()
    };
    let usual = fingerprint(&fleet[0]).await;
    assert_eq!(fingerprint(&fleet[1]).await, usual);
    let rotated = format!("the-next-secret-of-a-fleet-under-test,{SECRET}");
    for (change, back) in [
        (("SESSION_IDLE_TTL", "29m"), ("SESSION_IDLE_TTL", "30m")),
        (("SESSION_SECRET", rotated.as_str()), ("SESSION_SECRET", SECRET)),
    ] {
        fleet[1].restart(&[change]).await;
        assert_ne!(fingerprint(&fleet[1]).await, usual, "{}", change.0);
        fleet[1].restart(&[back, ("LISTEN_ADDR", "127.0.0.1:0"), ("HASH_CONCURRENCY", "3")]).await;
        assert_eq!(fingerprint(&fleet[1]).await, usual, "{}", back.0);
    }
}

#[tokio::test]
async fn open_connections_are_counted_however_they_end() {
    let fleet = Fleet::start(1).await;
    assert_eq!(value(&fleet[0], HTTP_CONNECTIONS, &[]).await, Some(0.0), "those of the ops listener don't count");
    let request = "GET /profile HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut open = Vec::new();
    for said in ["", "GET /pro", request, request] {
        let mut raw = fleet[0].raw().await;
        raw.write(said.as_bytes()).await;
        open.push(raw);
    }
    open[3].read_until("session_invalid").await;
    expect_value(&fleet[0], HTTP_CONNECTIONS, &[], 4.0).await;
    // One connection is closed by the server, because it can't parse the request, and others by the client at every
    // stage.
    open[0].write(b"\x16\x03\x01\r\n\r\n").await;
    open[0].read_to_end(PATIENTLY).await.expect("closed");
    expect_value(&fleet[0], HTTP_CONNECTIONS, &[], 3.0).await;
    drop(open);
    expect_value(&fleet[0], HTTP_CONNECTIONS, &[], 0.0).await;
}

/// What the shipped ACLs of the fleet's user allow, as `ACL SETUSER` takes it.
fn shipped_rules() -> Vec<(&'static str, Vec<String>)> {
    ["deploy/compose/secrets.sh", "k8s/credentials.py"]
        .map(|path| {
            let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a script");
            let line = text.lines().find(|line| line.contains("user authfleet ")).expect("the fleet's user").to_owned();
            let words = line.split_whitespace().filter(|word| word.starts_with(['~', '&', '+', '-']));
            let rules = words.map(|word| word.trim_end_matches("\\n'").to_owned());
            (path, rules.collect())
        })
        .into()
}

#[tokio::test]
async fn the_shipped_acl_is_enough_and_a_narrower_one_is_said_once() {
    let mut fleet = Fleet::builder().replicas(0).start().await;
    fill(&fleet, 6000, 6000);
    let url = fleet.redis.url();
    let allow = |fleet: &Fleet, rules: &[String]| {
        let mut words = vec!["ACL", "SETUSER", "fleet", "reset", "on", ">password"];
        words.extend(rules.iter().map(String::as_str));
        fleet.redis.run::<()>(&words);
    };
    let watched = [CLOCK_SKEW, REDIS_MEMORY, SESSIONS_ALIVE];
    let as_user = format!("{url}?user=fleet&pass=password");
    for (path, rules) in shipped_rules() {
        allow(&fleet, &rules);
        for keys in ["many", "few"] {
            if keys == "few" {
                fleet.redis.run::<()>(&["FLUSHALL"]);
            }
            if fleet.replicas().is_empty() {
                fleet.add_replica().await;
            }
            fleet[0].restart(&[("REDIS_URL", &as_user)]).await;
            within(PATIENTLY, "all is known", async || {
                let exposition = Exposition::of(&fleet[0]).await;
                watched.iter().all(|name| exposition.value(name, &[]).is_some_and(f64::is_finite))
            })
            .await;
            assert!(!fleet[0].output_text().contains("NoPerm"), "{path}, {keys} keys");
        }
        fill(&fleet, 6000, 6000);
    }

    let (_, mut rules) = shipped_rules().remove(0);
    rules.extend(["-info", "-dbsize", "-time", "-hmget"].map(str::to_owned));
    allow(&fleet, &rules);
    fleet[0].restart(&[]).await;
    let warnings = || {
        let log = fleet[0].log().into_iter();
        log.filter(|line| line["error"].as_str().is_some_and(|text| text.contains("NoPerm"))).count()
    };
    within(PATIENTLY, "said", async || warnings() == watched.len()).await;
    let looks = async || value(&fleet[0], &format!("{REDIS_SECONDS}_count"), &[("operation", "ping")]).await;
    let before = looks().await;
    within(PATIENTLY, "two more looks", async || looks().await.unwrap_or_default() > before.unwrap_or_default() + 1.0)
        .await;
    assert_eq!(warnings(), watched.len(), "once each: {}", fleet[0].output_text());
    let exposition = Exposition::of(&fleet[0]).await;
    for name in watched {
        assert_eq!(exposition.value(name, &[]), None, "{name}");
    }
    for operation in ["info", "count", "time"] {
        assert_eq!(exposition.value(REDIS_ERRORS, &[("operation", operation)]), Some(1.0), "asked once: {operation}");
    }
    assert_eq!(exposition.value(READY, &[]), Some(1.0));

    // A refusal within a pipeline is a failure too. (Logins need TIME.)
    fleet.redis.run::<()>(&["ACL", "SETUSER", "fleet", "+time"]);
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    fleet[0].get("/profile").session(&session).send().await.expect_problem(503, "store_unavailable");
    assert_eq!(value(&fleet[0], REDIS_ERRORS, &[("operation", "check")]).await, Some(1.0));
}

/// The questions for metrics must not load Redis.
#[tokio::test]
async fn looking_costs_redis_little() {
    let fleet = Fleet::start(1).await;
    within(PATIENTLY, "the first look", async || value(&fleet[0], SESSIONS_ALIVE, &[]).await.is_some()).await;
    let mut meter = fleet.redis.meter();
    let looks = async || value(&fleet[0], &format!("{REDIS_SECONDS}_count"), &[("operation", "ping")]).await;
    let before = looks().await.unwrap_or_default();
    within(PATIENTLY, "two more looks", async || looks().await.unwrap_or_default() > before + 1.0).await;
    let used = meter.used();
    // Each look sends a PEXPIRE of a key that doesn't exist, a TIME and an INFO of three sections. One look may have
    // been in progress. No count is due yet.
    assert!(used.reads <= 9, "{used:?}");
    let commands: BTreeSet<_> = used.commands.keys().map(String::as_str).collect();
    assert_eq!(commands, ["info", "pexpire", "time"].into(), "{used:?}");
}

/// Connections, how long they are waited for, and the role of the server.
#[tokio::test]
async fn the_connections_to_postgres_and_its_role_are_known() {
    let mut fleet = Fleet::start_on(Engine::OwnPostgres, 1).await;
    fleet[0].register("ada").await;
    expect_value(&fleet[0], USERS_PRIMARY, &[], 1.0).await;
    let exposition = Exposition::of(&fleet[0]).await;
    let all = [("pool", "all")];
    assert_eq!(exposition.value(SQL_CONNECTIONS_LIMIT, &all), Some(5.0));
    let open = ["idle", "busy"].map(|state| exposition.value(SQL_CONNECTIONS, &[("pool", "all"), ("state", state)]));
    assert!(open.iter().flatten().sum::<f64>() >= 1.0, "{open:?}");
    assert!(exposition.value(&format!("{SQL_ACQUIRE_SECONDS}_count"), &all).is_some_and(|count| count >= 2.0));
    assert_eq!(exposition.value(SQL_ACQUIRE_TIMEOUTS, &all), Some(0.0));
    assert!(exposition.value(SQL_CONNECTS, &[("result", "success")]).is_some_and(|made| made >= 1.0));

    // Frozen: connections that are there don't answer, new ones aren't made.
    fleet.postgres.as_ref().expect("a server").freeze();
    expect_value(&fleet[0], USERS_PRIMARY, &[], f64::NAN).await;
    within(PATIENTLY, "a wait for a connection took too long", async || {
        value(&fleet[0], SQL_ACQUIRE_TIMEOUTS, &all).await.is_some_and(|late| late >= 1.0)
    })
    .await;
    fleet.postgres.as_ref().expect("a server").thaw();
    expect_value(&fleet[0], USERS_PRIMARY, &[], 1.0).await;

    // A server that takes no writes is not the one to be connected to.
    fleet.query("ALTER DATABASE authfleet SET default_transaction_read_only = on").await;
    let server = fleet.postgres.as_mut().expect("a server");
    server.kill();
    server.start().await;
    expect_value(&fleet[0], USERS_PRIMARY, &[], 0.0).await;
    within(PATIENTLY, "it is counted", async || {
        value(&fleet[0], SQL_CONNECTS, &[("result", "read_only")]).await.is_some_and(|found| found >= 1.0)
    })
    .await;
}
