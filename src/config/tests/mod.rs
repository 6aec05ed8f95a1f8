//! The table as a whole, and settings that belong together.
mod sources;
mod values;

use std::fs;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::table::{DefaultValue, Scope, VARIABLES};
use super::*;

const KEY_A: &str = "aaaaaaaaaaaaaaaa-Zq7-aaaaaaaaaaaaaaaa";
const KEY_B: &str = "bbbbbbbbbbbbbbbb-Zq7-bbbbbbbbbbbbbbbb";
const REDIS: &str = "redis://fleet:hunter2-Zq7@redis.example:6380/3";

fn load<const N: usize>(variables: [(&str, &str); N]) -> Result<Config, ConfigErrors> {
    Config::from_sources(&Sources::from(variables))
}

fn ok<const N: usize>(variables: [(&str, &str); N]) -> Config {
    load(variables).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The one problem that these variables have.
#[track_caller]
fn problem<const N: usize>(variables: [(&str, &str); N]) -> Problem {
    let errors = load(variables).expect_err("a refused configuration");
    assert_eq!(errors.problems().len(), 1, "{errors}");
    errors.problems()[0].clone()
}

fn with_dotenv<const N: usize>(variables: [(&str, &str); N], dotenv: &str) -> Result<Config, ConfigErrors> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(".env");
    fs::write(&path, dotenv).unwrap();
    Config::from_sources(&Sources { dotenv: Some(path), ..Sources::from(variables) })
}

fn exposed(config: &Config) -> Vec<&[u8]> {
    config.session.secrets.iter().map(ExposeSecret::expose_secret).collect()
}

#[test]
fn nothing_set_gives_the_documented_defaults() {
    let config = ok([]);
    let effective: std::collections::BTreeMap<_, _> = config.effective().into_iter().collect();
    for variable in VARIABLES.iter() {
        if let DefaultValue::Text(default) = variable.default {
            assert_eq!(effective[variable.name], default, "{}", variable.name);
        }
    }
    assert_eq!(effective["REPLICA_ID"], "localhost");
    assert_eq!(effective["REDIS_URL"], "");
    assert_eq!(effective["TRUSTED_PROXIES"], "");
    assert_eq!(effective["HASH_CONCURRENCY"], "1");
    assert_eq!(effective["HASH_QUEUE"], "16");
    assert_eq!(effective["LOG_FORMAT"], "json");
    assert_eq!(config.hashing.memory_kib, 19_456);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn the_host_gives_replica_id_hash_threads_and_log_format() {
    let sources = Sources { host_name: "Web 7".to_owned(), cores: 6, terminal: true, ..Sources::from([("", ""); 0]) };
    let config = Config::from_sources(&sources).unwrap();
    assert_eq!(config.replica_id, "Web-7");
    assert_eq!((config.hashing.concurrency, config.hashing.queue), (6, 96));
    assert_eq!(config.log.format, LogFormat::Pretty);

    let sources = Sources { host_name: format!("{}-x7k2p", "long".repeat(20)), ..sources };
    let config = Config::from_sources(&sources).unwrap();
    assert_eq!(config.replica_id.len(), 64);
    assert!(config.replica_id.ends_with("-x7k2p"), "pods differ at the end: {}", config.replica_id);

    let nameless = Sources { host_name: String::new(), ..sources };
    let errors = Config::from_sources(&nameless).unwrap_err();
    assert!(errors.to_string().contains("REPLICA_ID: not set"), "{errors}");
}

/// What `variable` has an effect with.
fn companions(variable: &str) -> Vec<(&'static str, &'static str)> {
    match variable {
        "REDIS_CA_FILE" => vec![("REDIS_URL", "rediss://redis.example")],
        "REDIS_CERT_FILE" | "REDIS_KEY_FILE" => vec![
            ("REDIS_URL", "rediss://redis.example"),
            ("REDIS_CERT_FILE", "/tls/certificate.pem"),
            ("REDIS_KEY_FILE", "/tls/key.pem"),
        ],
        "REDIS_SENTINEL_USERNAME" | "REDIS_SENTINEL_PASSWORD" => {
            vec![("REDIS_URL", "redis-sentinel://a,b,c/main"), ("REDIS_SENTINEL_PASSWORD", "Zq7-usual")]
        }
        "PROTECTED_HOSTS" | "ACCESS_RULES" => vec![
            ("PUBLIC_URL", "https://login.example.org"),
            ("PROTECTED_HOSTS", "usual.example.org"),
            ("TRUSTED_PROXIES", "10.0.0.0/8"),
        ],
        "COOKIE_DOMAIN" => vec![("PUBLIC_URL", "https://login.apps.example.org")],
        _ => Vec::new(),
    }
}

/// The configuration with these settings besides what a fleet needs.
fn fleet(settings: &[(&str, &str)]) -> Config {
    let needed = [("REDIS_URL", REDIS), ("SESSION_SECRET", KEY_A)];
    let companions: Vec<_> = settings.iter().flat_map(|(name, _)| companions(name)).collect();
    let environment =
        needed.iter().chain(&companions).chain(settings).map(|(k, v)| ((*k).to_owned(), v.into())).collect();
    Config::from_sources(&Sources { environment, ..Sources::from([("", ""); 0]) })
        .unwrap_or_else(|errors| panic!("{settings:?}: {errors}"))
}

#[test]
fn every_variable_takes_effect_alone_and_is_shown_as_it_may_be_written() {
    for variable in VARIABLES.iter() {
        let usual = fleet(&companions(variable.name)).effective();
        let mut shown_values = Vec::new();
        for example in &variable.examples {
            let shown = fleet(&[(variable.name, example)]).effective();
            for ((name, value), (_, usual)) in shown.iter().zip(&usual) {
                // The queue's default follows the threads.
                let follows = variable.name == "HASH_CONCURRENCY" && *name == "HASH_QUEUE";
                assert!(*name == variable.name || value == usual || follows, "{} changes {name}", variable.name);
            }
            let (_, value) = shown.into_iter().find(|(name, _)| *name == variable.name).unwrap();
            assert!(!value.is_empty() && !value.contains("Zq7"), "{}={value}", variable.name);
            if !variable.secret {
                let again = fleet(&[(variable.name, &value)]).effective();
                assert!(again.contains(&(variable.name, value.clone())), "{}={value} reads back", variable.name);
            }
            shown_values.push(value);
        }
        let others =
            usual.iter().filter(|(name, value)| *name == variable.name && shown_values.iter().all(|v| v == value));
        let has_one_value =
            ["OTEL_EXPORTER_OTLP_PROTOCOL", "REDIS_SENTINEL_PASSWORD", "SESSION_SECRET"].contains(&variable.name);
        assert!(has_one_value || others.count() == 0, "{} has no effect", variable.name);
    }
}

#[test]
fn values_become_what_the_code_works_with() {
    let config = ok([
        ("REDIS_URL", REDIS),
        ("DATABASE_URL", "sqlite:///var/lib/authfleet/users.db"),
        ("SESSION_SECRET", &format!("{KEY_A},{KEY_B}")),
        ("SESSION_IDLE_TTL", "90s"),
        ("SESSION_MAX_AGE", "1h 30m"),
        ("COOKIE_SECURE", "No"),
        ("TRUSTED_PROXIES", "10.1.2.3/8, 192.0.2.7,fd00::/8"),
        ("ARGON2_MEMORY", "65536KiB"),
        ("LOG_FORMAT", "Pretty"),
        ("RUST_LOG", "info, authfleet=debug"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.example:4318/otlp/"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=a%2Cb, x-tenant=ours"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging,note=a%2Cb"),
    ]);
    assert_eq!(config.traces.headers[0].1.expose_secret(), "a,b");
    assert_eq!(exposed(&config), [KEY_A.as_bytes(), KEY_B.as_bytes()]);
    let redis = config.redis.url.as_ref().unwrap();
    assert_eq!(redis.password.as_ref().unwrap().expose_secret(), "hunter2-Zq7");
    assert!(matches!(&config.database, DatabaseUrl::Sqlite(path) if path.is_absolute()));
    assert_eq!(config.session.max_age, Duration::from_mins(90));
    assert_eq!(config.hashing.memory_kib, 65_536);
    let effective = config.effective();
    for shown in [
        ("REDIS_URL", "redis://fleet:***@redis.example:6380/3"),
        ("DATABASE_URL", "sqlite:///var/lib/authfleet/users.db"),
        ("SESSION_SECRET", "2 keys (masked)"),
        ("SESSION_IDLE_TTL", "90s"),
        ("SESSION_MAX_AGE", "90m"),
        ("COOKIE_SECURE", "false"),
        ("TRUSTED_PROXIES", "10.0.0.0/8,192.0.2.7/32,fd00::/8"),
        ("ARGON2_MEMORY", "64MiB"),
        ("LOG_FORMAT", "pretty"),
        ("RUST_LOG", "info,authfleet=debug"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.example:4318/otlp"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=***,x-tenant=***"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging,note=a%2Cb"),
    ] {
        assert!(effective.contains(&(shown.0, shown.1.to_owned())), "{shown:?} in {effective:?}");
    }
}

#[test]
fn the_fingerprint_is_of_what_all_replicas_share() {
    let usual = fleet(&[]).fingerprint();
    assert!(usual.len() == 8 && usual.bytes().all(|b| b.is_ascii_hexdigit()), "{usual}");
    for variable in VARIABLES.iter() {
        let usual = fleet(&companions(variable.name)).fingerprint();
        let changed = variable.examples.iter().any(|value| fleet(&[(variable.name, value)]).fingerprint() != usual);
        assert_eq!(changed, variable.scope == Scope::Fleet, "{}", variable.name);
    }

    for same in [
        ("REPLICA_ID", "another"),
        ("LISTEN_ADDR", "127.0.0.1:1"),
        ("REDIS_URL", "redis://elsewhere"),
        ("HASH_CONCURRENCY", "7"),
        ("RUST_LOG", "debug"),
        // Said otherwise, or said though it is the default.
        ("SESSION_IDLE_TTL", "1800s"),
        ("ARGON2_MEMORY", "19456KiB"),
    ] {
        assert_eq!(fleet(&[same]).fingerprint(), usual, "{same:?}");
    }
    let mut seen = std::collections::BTreeSet::from([usual]);
    for other in [
        ("SESSION_IDLE_TTL", "1799s"),
        ("SESSION_MAX_AGE", "23h"),
        ("SESSIONS_PER_USER", "99"),
        ("SESSION_FORMAT", "compact"),
        ("COOKIE_SECURE", "false"),
        ("PUBLIC_URL", "https://login.example.org"),
        ("PROTECTED_HOSTS", "app.example.org"),
        ("PASSWORD_MIN_LENGTH", "9"),
        ("PASSWORD_BLOCKLIST", "off"),
        ("ARGON2_MEMORY", "20MiB"),
        ("ARGON2_ITERATIONS", "3"),
        ("ARGON2_PARALLELISM", "2"),
        ("LOGIN_FAILURES_PER_ACCOUNT", "11"),
        ("LOGIN_FAILURES_PER_ADDRESS", "101"),
        ("LOGIN_ATTEMPTS_PER_ACCOUNT", "1002"),
        ("LOGIN_ATTEMPTS_PER_ADDRESS", "1003"),
        ("REGISTRATIONS_PER_ADDRESS", "1001"),
        ("LOGIN_FAILURE_WINDOW", "16m"),
        ("SESSION_SECRET", KEY_B),
        ("SESSION_SECRET", &format!("{KEY_A},{KEY_B}")),
        ("SESSION_SECRET", &format!("{KEY_B},{KEY_A}")),
    ] {
        assert!(seen.insert(fleet(&[other]).fingerprint()), "{other:?}");
    }
    // Without Redis the secret is a random one.
    assert_eq!(ok([]).fingerprint(), ok([("SESSION_SECRET", KEY_A)]).fingerprint());
}

#[test]
fn no_value_can_break_the_message_into_lines() {
    let value = format!("x\n  LISTEN_ADDR: {}", "long ".repeat(100));
    let message = load([("LOG_FORMAT", &value)]).unwrap_err().to_string();
    assert_eq!(message.lines().count(), 2, "{message}");
    assert!(message.len() < 300, "{message}");
}

#[test]
fn one_message_names_every_mistake() {
    let message = load([
        ("REDIS_URL", "http://Zq7"),
        ("SESSION_IDLE_TTL", "30x"),
        ("SESSION_MAX_AGE", "1m"),
        ("ARGON2_MEMORY", "16KiB"),
        ("ARGON2_PARALLELISM", "3"),
        ("HASH_QUEUE", "-1"),
        ("OPS_ADDR", "127.0.0.1:3000"),
        ("SESSION_SECRET_FILE", "/nonexistent/secret"),
    ])
    .unwrap_err()
    .to_string();
    let lines: Vec<&str> = message.lines().collect();
    assert_eq!(lines[0], "the configuration has 6 problems:");
    assert_eq!(lines.len(), 7, "{message}");
    for name in ["REDIS_URL", "SESSION_IDLE_TTL", "ARGON2_MEMORY", "HASH_QUEUE", "OPS_ADDR", "SESSION_SECRET_FILE"] {
        assert!(lines.iter().any(|line| line.starts_with(&format!("  {name}: "))), "{name} in {message}");
    }
    assert!(!message.contains("Zq7"), "{message}");
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    let longer = problem([("SESSION_IDLE_TTL", "2h"), ("SESSION_MAX_AGE", "90m")]);
    assert_eq!(longer.message, "2h is longer than SESSION_MAX_AGE=90m");
    ok([("SESSION_IDLE_TTL", "2h"), ("SESSION_MAX_AGE", "120m")]);

    let memory = problem([("ARGON2_MEMORY", "31KiB"), ("ARGON2_PARALLELISM", "4")]);
    assert_eq!(memory.message, "31KiB is too little for ARGON2_PARALLELISM=4, which takes 32KiB");
    ok([("ARGON2_MEMORY", "32KiB"), ("ARGON2_PARALLELISM", "4")]);

    for (listen, ops) in [
        ("127.0.0.1:3000", "127.0.0.1:3000"),
        ("0.0.0.0:3000", "127.0.0.1:3000"),
        ("127.0.0.1:3000", "[::]:3000"),
        ("[::]:3000", "0.0.0.0:3000"),
    ] {
        assert_eq!(problem([("LISTEN_ADDR", listen), ("OPS_ADDR", ops)]).variable, "OPS_ADDR", "{listen} {ops}");
    }
    ok([("LISTEN_ADDR", "127.0.0.1:0"), ("OPS_ADDR", "127.0.0.1:0")]);
    ok([("LISTEN_ADDR", "127.0.0.1:3000"), ("OPS_ADDR", "127.0.0.2:3000")]);
}

#[test]
fn what_redis_url_has_no_use_for_is_refused() {
    let (plain, tls) = (("REDIS_URL", "redis://:Zq7@h"), ("REDIS_URL", "rediss://:Zq7@h"));
    let sentinel = ("REDIS_URL", "redis-sentinel://:Zq7@h/main");
    for (url, other, message) in [
        (plain, ("REDIS_CA_FILE", "/ca"), "no TLS"),
        (plain, ("REDIS_SENTINEL_PASSWORD", "Zq7"), "names no Sentinels"),
        (plain, ("REDIS_SENTINEL_USERNAME", "u"), "names no Sentinels"),
        (tls, ("REDIS_CERT_FILE", "/c"), "set without REDIS_KEY_FILE"),
        (tls, ("REDIS_KEY_FILE", "/k"), "set without REDIS_CERT_FILE"),
        (sentinel, ("REDIS_SENTINEL_USERNAME", "u"), "set without REDIS_SENTINEL_PASSWORD"),
        (sentinel, ("REDIS_REVOCATION_REPLICAS", "6"), "above 5"),
    ] {
        let found = problem([("SESSION_SECRET", KEY_A), url, other]);
        assert_eq!(found.variable, other.0);
        assert!(found.message.contains(message) && !found.to_string().contains("Zq7"), "{found}");
    }
    // All at once.
    let all = load([plain, ("REDIS_CA_FILE", "/ca"), ("REDIS_KEY_FILE", "/k"), ("REDIS_SENTINEL_PASSWORD", "Zq7")]);
    assert_eq!(all.expect_err("refused").problems().len(), 4);
}

#[test]
fn forward_auth_that_could_not_work_is_refused() {
    let url = ("PUBLIC_URL", "https://login.example.org");
    let hosts = ("PROTECTED_HOSTS", "app.example.org,*.example.net");
    let proxies = ("TRUSTED_PROXIES", "10.0.0.0/8");
    ok([url, hosts, proxies]);
    ok([url, ("COOKIE_DOMAIN", "example.org"), ("PROTECTED_HOSTS", "*.example.org"), proxies]);
    ok([("PUBLIC_URL", "http://localhost:8080"), ("COOKIE_SECURE", "false")]);

    let refused = |found: Problem, variable: &str, message: &str| {
        assert_eq!(found.variable, variable, "{found}");
        assert!(found.message.contains(message), "{found}");
    };
    refused(problem([hosts, proxies]), "PROTECTED_HOSTS", "without PUBLIC_URL");
    refused(problem([url, hosts]), "PROTECTED_HOSTS", "without TRUSTED_PROXIES");
    refused(problem([url, ("ACCESS_RULES", "rules.toml")]), "ACCESS_RULES", "without PROTECTED_HOSTS");
    refused(problem([("COOKIE_DOMAIN", "example.org")]), "COOKIE_DOMAIN", "without PUBLIC_URL");
    refused(problem([url, ("COOKIE_DOMAIN", "example.net")]), "COOKIE_DOMAIN", "PUBLIC_URL=https://login.example.org");
    refused(problem([url, hosts, proxies, ("COOKIE_DOMAIN", "example.org")]), "COOKIE_DOMAIN", "*.example.net");
    refused(problem([("PUBLIC_URL", "http://login.example.org")]), "PUBLIC_URL", "https, since COOKIE_SECURE=true");
    refused(problem([url, ("COOKIE_SECURE", "false")]), "PUBLIC_URL", "http, since COOKIE_SECURE=false");
    let mistyped = problem([url, proxies, ("PROTECTED_HOSTS", "app.example.org,http://x")]);
    refused(mistyped, "PROTECTED_HOSTS", "\"http://x\"");
}

#[test]
fn replicas_confirm_revocations_where_there_are_some() {
    for (url, usual) in
        [("redis://h", 0), ("unix:///redis.sock", 0), ("redis-sentinel://h/main", 1), ("rediss-cluster://h", 1)]
    {
        let config = |more| ok([("SESSION_SECRET", KEY_A), ("REDIS_URL", url), more]);
        assert_eq!(config(("REPLICA_ID", "r")).redis.revocation_replicas, usual, "{url}");
        assert_eq!(config(("REDIS_REVOCATION_REPLICAS", "2")).redis.revocation_replicas, 2, "{url}");
    }
}

#[test]
fn weak_settings_start_with_a_warning() {
    let weak = ok([
        ("ARGON2_MEMORY", "64KiB"),
        ("ARGON2_ITERATIONS", "1"),
        ("PASSWORD_MIN_LENGTH", "4"),
        ("COOKIE_SECURE", "false"),
        ("TRUSTED_PROXIES", "0.0.0.0/0"),
    ]);
    let weaker =
        |variable, value: &str, default| Warning::WeakerThanDefault { variable, value: value.to_owned(), default };
    assert_eq!(
        weak.warnings,
        [
            weaker("ARGON2_MEMORY", "64KiB", "19MiB"),
            weaker("ARGON2_ITERATIONS", "1", "2"),
            weaker("PASSWORD_MIN_LENGTH", "4", "8"),
            Warning::CookieOverHttp,
            Warning::EveryPeerTrusted,
        ]
    );
    let lines: Vec<_> = weak.warnings.iter().map(ToString::to_string).collect();
    for (line, name) in lines.iter().zip([
        "ARGON2_MEMORY=64KiB",
        "ARGON2_ITERATIONS=1",
        "PASSWORD_MIN_LENGTH=4",
        "COOKIE_SECURE",
        "TRUSTED_PROXIES",
    ]) {
        assert!(line.starts_with(name), "{name} in {line}");
    }
    assert!(ok([("ARGON2_MEMORY", "64MiB"), ("ARGON2_PARALLELISM", "4")]).warnings.is_empty());
}

#[test]
fn no_secret_is_shown() {
    let config = ok([
        ("REDIS_URL", REDIS),
        ("SESSION_SECRET", &format!("{KEY_A},{KEY_B}")),
        ("DATABASE_URL", "sqlite://data/a.db"),
    ]);
    for shown in [format!("{:?}", config.effective()), format!("{config:?}"), format!("{config:#?}")] {
        assert!(!shown.contains("Zq7"), "{shown}");
        // Nor as the list of bytes that a derived Debug would print.
        assert!(!shown.contains("97, 97, 97"), "{shown}");
    }
}

#[test]
fn effective_lists_the_table_in_its_order() {
    let names: Vec<_> = ok([]).effective().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, VARIABLES.iter().map(|variable| variable.name).collect::<Vec<_>>());
}
