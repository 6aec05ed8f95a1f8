use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use proptest::prelude::*;
use secrecy::ExposeSecret;

use super::formats::whole;
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

/// The configuration with these settings besides what a fleet needs.
fn fleet(settings: &[(&str, &str)]) -> Config {
    let needed = [("REDIS_URL", REDIS), ("SESSION_SECRET", KEY_A)];
    let environment = needed.iter().chain(settings).map(|(k, v)| ((*k).to_owned(), v.into())).collect();
    Config::from_sources(&Sources { environment, ..Sources::from([("", ""); 0]) })
        .unwrap_or_else(|errors| panic!("{settings:?}: {errors}"))
}

#[test]
fn every_variable_takes_effect_alone_and_is_shown_as_it_may_be_written() {
    let usual = fleet(&[]).effective();
    for variable in VARIABLES.iter() {
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
        let has_one_value = ["OTEL_EXPORTER_OTLP_PROTOCOL", "SESSION_SECRET"].contains(&variable.name);
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
    assert_eq!(config.redis_url.as_ref().unwrap().expose_secret(), REDIS);
    assert!(matches!(&config.database, DatabaseUrl::Sqlite(path) if path.is_absolute()));
    assert_eq!(config.session.max_age, Duration::from_secs(90 * 60));
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
        ("COOKIE_SECURE", "false"),
        ("PASSWORD_MIN_LENGTH", "9"),
        ("PASSWORD_BLOCKLIST", "off"),
        ("ARGON2_MEMORY", "20MiB"),
        ("ARGON2_ITERATIONS", "3"),
        ("ARGON2_PARALLELISM", "2"),
        ("LOGIN_FAILURES_PER_ACCOUNT", "11"),
        ("LOGIN_FAILURES_PER_ADDRESS", "101"),
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
fn a_bad_value_is_named_with_what_is_accepted() {
    for (name, value, message) in [
        ("LISTEN_ADDR", "localhost:3000", "not an IP address"),
        ("LISTEN_ADDR", "0.0.0.0", "not an IP address"),
        ("LISTEN_ADDR", "0.0.0.0:65536", "not an IP address"),
        ("OPS_ADDR", ":9464", "not an IP address"),
        ("REPLICA_ID", "a b", "not allowed"),
        ("REPLICA_ID", "r\r\nSet-Cookie: x", "not allowed"),
        ("REPLICA_ID", "répliqué", "not allowed"),
        ("REPLICA_ID", &"r".repeat(65), "65 characters"),
        ("LOG_FORMAT", "xml", "unknown"),
        ("RUST_LOG", "info,authfleet=loud", ""),
        ("RUST_LOG", "inof", "did you mean info?"),
        ("RUST_LOG", "info debug", "white space"),
        ("RUST_LOG", ",", "no directive"),
        ("SESSION_IDLE_TTL", "30", ""),
        ("SESSION_IDLE_TTL", "30 parsecs", "unit"),
        ("SESSION_IDLE_TTL", "-5m", ""),
        ("SESSION_IDLE_TTL", "0s", "below 1s"),
        ("SESSION_IDLE_TTL", "1500ms", "not whole seconds"),
        ("SESSION_MAX_AGE", "401d", "above 400d"),
        ("SESSION_MAX_AGE", "99999999999999999999y", ""),
        ("SESSIONS_PER_USER", "0", "below 1"),
        ("SESSIONS_PER_USER", "10001", "above 10000"),
        ("SESSIONS_PER_USER", "+5", "not a whole number"),
        ("COOKIE_SECURE", "maybe", "neither true nor false"),
        ("TRUSTED_PROXIES", "10.0.0.0/33", "neither an address nor a network"),
        ("TRUSTED_PROXIES", "nginx", "neither an address nor a network"),
        ("TRUSTED_PROXIES", "10.0.0.1,,10.0.0.2", "empty"),
        ("PASSWORD_MIN_LENGTH", "129", "above 128"),
        ("PASSWORD_BLOCKLIST", "2", "neither true nor false"),
        ("ARGON2_MEMORY", "plenty", "not a size"),
        ("ARGON2_MEMORY", "19MB", "not whole KiB (19000000 bytes)"),
        ("ARGON2_MEMORY", "7KiB", "below 8KiB"),
        ("ARGON2_MEMORY", "4097MiB", "above 4GiB"),
        ("ARGON2_MEMORY", "99999999999999999999999EiB", "above 4GiB"),
        ("ARGON2_ITERATIONS", "0", "below 1"),
        ("ARGON2_PARALLELISM", "256", "above 255"),
        ("WORKER_THREADS", "0", "below 1"),
        ("HASH_CONCURRENCY", "0", "below 1"),
        ("HASH_QUEUE", "0", "below 1"),
        ("HASH_QUEUE", "1.5", "not a whole number"),
        ("LOGIN_FAILURES_PER_ACCOUNT", "ten", "not a whole number"),
        ("LOGIN_FAILURES_PER_ADDRESS", "99999999999999999999999999", "above 1000000"),
        ("LOGIN_FAILURE_WINDOW", "0s", "below 1s"),
        ("DRAIN_DELAY", "5", ""),
        ("DRAIN_TIMEOUT", "2h", "above 1h"),
    ] {
        let problem = problem([(name, value)]);
        assert_eq!(problem.variable, name);
        assert!(problem.message.contains(message), "{name}={value}: {problem}");
        assert!(problem.message.contains(&parse::quoted(value)), "{name}={value}: {problem}");
        assert_eq!(problem.accepted, Variable::named(name).accepted);
    }
}

#[test]
fn no_value_can_break_the_message_into_lines() {
    let value = format!("x\n  LISTEN_ADDR: {}", "long ".repeat(100));
    let message = load([("LOG_FORMAT", &value)]).unwrap_err().to_string();
    assert_eq!(message.lines().count(), 2, "{message}");
    assert!(message.len() < 300, "{message}");
}

#[test]
fn redis_url_is_checked_and_never_echoed() {
    for (url, message) in [
        ("Zq7", "begins neither"),
        ("http://Zq7@host", "begins neither"),
        ("rediss://:Zq7@host", "not supported yet"),
        ("redis://", "not a usable"),
        ("redis://:Zq7@host:port", "not a usable"),
        ("redis://:pa/Zq7@host", "not a usable"),
        ("redis://user:12/Zq7@host", "not a usable"),
        ("redis://user:12#Zq7@host", "%23"),
        ("redis://user:12?Zq7@host", "%3F"),
        ("redis://Zq7@host", "without a password"),
        ("redis://host/Zq7", "not a usable"),
        ("redis://host/-1", "negative"),
        ("redis://host?protocol=Zq7", "not a usable"),
        ("unix:///run/redis.sock?password=Zq7", "unknown parameter"),
    ] {
        let problem = problem([("REDIS_URL", url), ("SESSION_SECRET", KEY_A)]);
        assert_eq!(problem.variable, "REDIS_URL");
        assert!(problem.message.contains(message), "{url}: {problem}");
        assert!(!problem.to_string().contains("Zq7"), "{problem}");
    }
}

#[test]
fn redis_url_is_shown_without_its_password() {
    for (url, shown) in [
        ("redis://127.0.0.1", "redis://127.0.0.1"),
        ("redis://:Zq7@[::1]:7000/1", "redis://:***@[::1]:7000/1"),
        ("redis://u:Zq7%2F%40@host?protocol=resp3", "redis://u:***@host?protocol=resp3"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("redis+unix:///run/redis.sock?db=2&user=u&pass=Zq7", "redis+unix:///run/redis.sock?db=2&user=u&pass=***"),
    ] {
        let config = ok([("REDIS_URL", url), ("SESSION_SECRET", KEY_A)]);
        assert!(config.effective().contains(&("REDIS_URL", shown.to_owned())), "{:?}", config.effective());
    }
}

#[test]
fn database_url_is_checked_and_never_echoed() {
    for (url, message) in [
        ("postgres://u:Zq7@db/auth", "PostgreSQL is not supported yet by this build"),
        ("postgresql://u:Zq7@db/auth", "PostgreSQL is not supported yet by this build"),
        ("mysql://u:Zq7@db/auth", "sqlite://"),
        ("Zq7.db", "sqlite://"),
        ("sqlite:Zq7.db", "sqlite://"),
        ("sqlite::memory:", "lost at every restart"),
        ("sqlite://:memory:", "lost at every restart"),
        ("sqlite://Zq7.db?mode=ro", "'?'"),
        ("sqlite://my%20Zq7.db", "'%'"),
        ("sqlite://Zq7.db ", "white space"),
        ("sqlite://", "names no file"),
        ("sqlite:///Zq7/", "names no file"),
    ] {
        let problem = problem([("DATABASE_URL", url)]);
        assert_eq!(problem.variable, "DATABASE_URL");
        assert!(problem.message.contains(message), "{url}: {problem}");
        assert!(!problem.to_string().contains("Zq7"), "{problem}");
    }
    let DatabaseUrl::Sqlite(path) = ok([("DATABASE_URL", "sqlite://data/a.db")]).database;
    assert_eq!(path, PathBuf::from("data/a.db"));
}

#[test]
fn session_secret_is_checked_and_never_echoed() {
    for (secret, message) in [
        ("short-Zq7", "key 1 has only 9 bytes"),
        (&*format!("{KEY_A},short-Zq7"), "key 2 has only 9 bytes"),
        (&*format!("{KEY_A},"), "key 2 of 2 is empty"),
        (&*format!(",{KEY_A}"), "key 1 of 2 is empty"),
        (",", "key 1 of 2 is empty, key 2 of 2 is empty"),
        (&*format!("{KEY_A},{KEY_B},{KEY_A}"), "keys 1 and 3 are the same"),
        (&*format!("{KEY_A}, {KEY_B}"), "key 2 begins or ends with white space"),
        (&*format!("{KEY_A}\n{KEY_B}"), "line break"),
    ] {
        for redis in [("REDIS_URL", "redis://host"), ("REPLICA_ID", "r")] {
            let problem = problem([("SESSION_SECRET", secret), redis]);
            assert_eq!(problem.variable, "SESSION_SECRET");
            assert!(problem.message.contains(message), "{problem}");
            assert!(!problem.to_string().contains("Zq7"), "{problem}");
        }
    }
}

#[test]
fn session_secret_is_required_with_redis_and_random_without() {
    let problem = problem([("REDIS_URL", "redis://host")]);
    assert_eq!(problem.variable, "SESSION_SECRET");
    assert!(problem.message.contains("REDIS_URL"), "{problem}");

    let (one, other) = (ok([]), ok([("REDIS_URL", ""), ("SESSION_SECRET", "")]));
    assert_eq!(exposed(&one)[0].len(), 32);
    assert_ne!(exposed(&one), exposed(&other));

    // 32 bytes, not 32 characters, and exactly 32 are enough.
    assert_eq!(exposed(&ok([("SESSION_SECRET", &"é".repeat(16))]))[0].len(), 32);
}

#[test]
fn what_opentelemetry_s_variables_may_hold() {
    for (name, text, expected) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", "http://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:Zq7@host", "'@'"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "not supported by this build"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "unknown sampler"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "between 0 and 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "NaN", "between 0 and 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "1%", "not a number"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c", "entry 2 has no '='"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization: Bearer Zq7", "entry 1 has no '='"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=Zq7%0A", "entry 1 is no HTTP header"),
    ] {
        let problem = problem([(name, text)]);
        assert_eq!(problem.variable, name);
        assert!(problem.message.contains(expected), "{problem}");
        assert!(!name.ends_with("HEADERS") || !problem.to_string().contains("Zq7"), "{problem}");
    }
    for (sampler, parent_based, share) in [
        ("always_on", false, 1.0),
        ("always_off", false, 0.0),
        ("traceidratio", false, 0.25),
        ("parentbased_always_on", true, 1.0),
        ("parentbased_always_off", true, 0.0),
        ("parentbased_traceidratio", true, 0.25),
    ] {
        let config = ok([("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", "0.25")]);
        let traces = &config.traces;
        assert_eq!(traces.sampler.parent_based, parent_based, "{sampler}");
        assert!((traces.sampled_share() - share).abs() < f64::EPSILON, "{sampler}");
        assert!(config.effective().contains(&("OTEL_TRACES_SAMPLER", sampler.to_owned())));
    }
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
fn booleans_have_four_spellings_each() {
    for (text, expected) in [("true", true), ("1", true), ("ON", true), ("yes", true)].into_iter().chain([
        ("False", false),
        ("0", false),
        ("off", false),
        ("no", false),
    ]) {
        assert_eq!(ok([("COOKIE_SECURE", text)]).session.cookie_secure, expected, "{text}");
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
fn misspelt_names_are_warned_of() {
    for (name, meant) in [
        ("SESSION_IDLE_TTL_S", "SESSION_IDLE_TTL?"),
        ("SESION_SECRET", "SESSION_SECRET?"),
        ("SESION_SECRET_FILE", "SESSION_SECRET?"),
        ("session_secret", "SESSION_SECRET?"),
        ("SESSIONS_PER_USERS", "SESSIONS_PER_USER?"),
        ("REDIS_URI", "REDIS_URL?"),
        ("ARGON2_SALT", "ignored"),
        ("HASH_THREADS", "ignored"),
        ("PASSWORD_PEPPER", "ignored"),
        ("LOGIN_URL", "ignored"),
        ("DRAIN_SECONDS", "ignored"),
    ] {
        let config = ok([(name, "Zq7")]);
        let [warning] = &config.warnings[..] else { panic!("{name}: {:?}", config.warnings) };
        let warning = warning.to_string();
        assert!(warning.starts_with(name) && warning.contains(meant) && !warning.contains("Zq7"), "{warning}");
    }
    let usual = ["HOME", "PATH", "LANG", "HOSTNAME", "SESSION_MANAGER", "LOGNAME", "RUST_BACKTRACE", "REDIS_PORT"];
    for name in usual {
        assert!(ok([(name, "x")]).warnings.is_empty(), "{name}");
    }
    // Where the misspelt variable is missed, the error tells both.
    let errors = load([("REDIS_URL", "redis://host"), ("SESION_SECRET", KEY_A)]).unwrap_err().to_string();
    assert!(errors.contains("SESSION_SECRET: not set") && errors.contains("hint: SESION_SECRET is not"), "{errors}");
    assert!(!errors.contains("Zq7"), "{errors}");
    assert_eq!(with_dotenv([], "SESION_SECRET=x\nUNRELATED=1\n").unwrap().warnings.len(), 1);
}

#[test]
fn the_environment_goes_before_dotenv() {
    let dotenv = "\u{feff}# comment\nREPLICA_ID=from-file\nexport SESSION_IDLE_TTL='10m'\nSESSIONS_PER_USER=\n";
    let config = with_dotenv([("REPLICA_ID", "from-env")], dotenv).unwrap();
    assert_eq!(config.replica_id, "from-env");
    assert_eq!(config.session.idle_ttl, Duration::from_secs(600));
    assert_eq!(config.session.per_user, 100);

    // Also when one gives the value and the other a file: only within one source is that a contradiction.
    let config = with_dotenv([("REPLICA_ID", "from-env")], "REPLICA_ID_FILE=/nonexistent\n").unwrap();
    assert_eq!(config.replica_id, "from-env");

    // An empty variable, as compose files pass on what is not set, hides nothing.
    assert_eq!(with_dotenv([("REPLICA_ID", "")], "REPLICA_ID=from-file").unwrap().replica_id, "from-file");

    let absent = Sources { dotenv: Some(PathBuf::from("/nonexistent/.env")), ..Sources::from([("", ""); 0]) };
    Config::from_sources(&absent).unwrap();
}

#[test]
fn a_bad_value_in_dotenv_is_said_to_be_there() {
    let errors = with_dotenv([], "HASH_QUEUE=many\n").unwrap_err();
    let [problem] = errors.problems() else { panic!("{errors}") };
    assert!(problem.variable.starts_with("HASH_QUEUE (") && problem.variable.ends_with("/.env)"), "{problem}");
}

#[test]
fn malformed_dotenv_lines_are_named_and_never_echoed() {
    for (dotenv, line) in [
        ("REPLICA_ID=a\n\n# it's\nSESSION_SECRET Zq7\nHASH_QUEUE=3\n", 4),
        ("REPLICA_ID=a\nSESSION_SECRET='Zq7\nHASH_QUEUE=3\n", 2),
        ("A='x\ny\nz'\n=Zq7", 4),
        ("A=1\r\nSESSION_SECRET=\"Zq7\r\n", 2),
        ("A=1\nSESSION_SECRET=a Zq7", 2),
    ] {
        let errors = with_dotenv([], dotenv).unwrap_err();
        let [problem] = errors.problems() else { panic!("{errors}") };
        assert!(problem.variable.ends_with(&format!(".env line {line}")), "{problem} for {dotenv:?}");
        assert!(!errors.to_string().contains("Zq7"), "{errors}");
    }

    let twice = with_dotenv([], "HASH_QUEUE=1\nREPLICA_ID=r\nHASH_QUEUE=2\n").unwrap_err().to_string();
    assert!(twice.contains(".env line 3: HASH_QUEUE is set a second time"), "{twice}");

    let directory = tempfile::tempdir().unwrap();
    let sources = Sources { dotenv: Some(directory.path().to_owned()), ..Sources::from([("", ""); 0]) };
    assert!(Config::from_sources(&sources).unwrap_err().to_string().contains("cannot be read"));
}

#[test]
fn a_variable_may_be_given_as_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };

    let old_in_quotes = format!("{KEY_B},\"{KEY_A}\"");
    assert_eq!(ok([("SESSION_SECRET_FILE", &file("keys", old_in_quotes.as_bytes()))]).session.secrets.len(), 2);
    for (before, after) in [("", ""), ("", "\n"), ("", "\r\n"), ("\u{feff}", ""), ("\u{feff}", "\r\n")] {
        let (content, bytes) = (format!("{before}{KEY_A}{after}"), KEY_A);
        let config = ok([("SESSION_SECRET_FILE", &file("key", content.as_bytes()))]);
        assert_eq!(exposed(&config), [bytes.as_bytes()]);
    }
    assert_eq!(ok([("REPLICA_ID_FILE", &file("id", b"pod-1\n"))]).replica_id, "pod-1");
    let key = file("dated", KEY_A.as_bytes());
    let changed = fs::metadata(&key).unwrap().modified().unwrap();
    assert_eq!(ok([("SESSION_SECRET_FILE", &key)]).secret_files, [("SESSION_SECRET", changed)]);
    assert_eq!(ok([("SESSION_SECRET", KEY_A)]).secret_files, []);
    let by_dotenv = with_dotenv([], &format!("REPLICA_ID_FILE={}\n", file("id", b"pod-2\n"))).unwrap();
    assert_eq!(by_dotenv.replica_id, "pod-2");

    let bad = problem([("HASH_QUEUE_FILE", &file("queue", b"many"))]);
    assert!(bad.variable.starts_with("HASH_QUEUE (file /"), "{bad}");

    let refused = |path: &str, message: &str| {
        let problem = problem([("SESSION_SECRET_FILE", path), ("REDIS_URL", "redis://host")]);
        assert_eq!(problem.variable, "SESSION_SECRET_FILE");
        assert!(problem.message.contains(message), "{problem}");
        problem
    };
    assert!(refused("/nonexistent/key", "No such file").message.contains("/nonexistent/key"));
    refused(directory.path().to_str().unwrap(), "directory");
    refused(&file("empty", b"\n"), "is empty");
    refused(&file("binary", &[0xff; 32]), "not UTF-8");
    refused("/dev/zero", "larger than 64 KiB");
    // The secret itself in the place of its path.
    assert!(!refused(KEY_A, "cannot be read").to_string().contains("Zq7"));
    // UTF-16, as some shells write it.
    refused(&file("utf16", b"\xff\xfeZ\0q\0"), "not UTF-8");
    refused(&file("mark", "\u{feff}\r\n".as_bytes()), "is empty");
    for (name, text) in [("quotes", format!("\"{KEY_A}\"\n")), ("mark-quotes", format!("\u{feff}'{KEY_A}'"))] {
        let quoted = refused(&file(name, text.as_bytes()), "is in quotation marks");
        assert!(!quoted.to_string().contains("Zq7"), "{quoted}");
    }
    // One newline is the editor's; a second one is part of the value.
    let stray = problem([("SESSION_SECRET_FILE", &file("stray", format!("{KEY_A}\n\n").as_bytes()))]);
    assert!(stray.message.contains("white space"), "{stray}");
}

/// As `docker run --env-file` passes them on.
#[test]
fn a_value_in_quotation_marks_is_refused_by_name_and_not_echoed() {
    for quoted in [format!("\"{KEY_A}\""), format!("'{KEY_A}'"), format!("\u{201c}{KEY_A}\u{201d}")] {
        let found = problem([("SESSION_SECRET", quoted.as_str()), ("REDIS_URL", "redis://host")]);
        assert_eq!(found.variable, "SESSION_SECRET");
        assert!(found.message.contains("quotation marks") && !found.to_string().contains("Zq7"), "{found}");
    }
    assert_eq!(problem([("SESSION_IDLE_TTL", "\"10m\"")]).variable, "SESSION_IDLE_TTL");
    // A mark at one end, or a single one, is a character like any other.
    for key in [format!("\"{KEY_A}"), format!("{KEY_A}'"), format!("'{KEY_A}\"")] {
        assert_eq!(exposed(&ok([("SESSION_SECRET", &key)])), [key.as_bytes()]);
    }
}

#[test]
fn both_a_value_and_a_file_is_a_contradiction() {
    let both = problem([("SESSION_SECRET", KEY_A), ("SESSION_SECRET_FILE", "/run/secrets/key")]);
    assert_eq!(both.variable, "SESSION_SECRET");
    assert!(both.message.contains("SESSION_SECRET_FILE"), "{both}");
    ok([("SESSION_SECRET", KEY_A), ("SESSION_SECRET_FILE", "")]);
}

#[test]
fn a_value_that_is_not_text_is_refused() {
    let not_utf8 = OsString::from_vec(vec![0xff, 0xfe]);
    let sources = Sources::from([("REPLICA_ID", not_utf8.clone()), ("UNRELATED", not_utf8)]);
    let errors = Config::from_sources(&sources).unwrap_err();
    assert_eq!(errors.problems()[0].to_string(), "REPLICA_ID: not UTF-8");
    assert_eq!(errors.problems().len(), 1);
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
fn whole_numbers_keep_to_their_range_at_both_ends() {
    let format = whole::<u32>(2..=20);
    for (text, expected) in [("1", Err("below 2")), ("2", Ok(2)), ("20", Ok(20)), ("21", Err("above 20"))] {
        assert_eq!((format.parse)(text), expected.map_err(str::to_owned));
    }
    assert_eq!(format.accepted, "a whole number from 2 to 20");
}

#[test]
fn effective_lists_the_table_in_its_order() {
    let names: Vec<_> = ok([]).effective().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, VARIABLES.iter().map(|variable| variable.name).collect::<Vec<_>>());
}

/// Text in the neighbourhood of what the parsers expect, besides any text at all.
fn input() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[0-9.]{0,25} ?(ns|ms|s|m|h|d|y|B|KiB|MiB|GB|EiB|µs)?",
        "[0-9a-f.:/,\\[\\] ]{0,40}",
        "(redis|unix|redis\\+unix|sqlite)://[a-z0-9:@/?#%=&,.]{0,40}",
        "[a-z_:=,\\[\\]{} ]{0,30}",
        "[A-Z_]{1,3}=['\"$ {}#\\\\\na-z]{0,20}",
    ]
}

proptest! {
    #[test]
    fn no_input_makes_a_parser_panic(text in input()) {
        let _ = parse::address(&text);
        let _ = parse::boolean(&text);
        let _ = parse::integer::<u32>(1..=10)(&text);
        let _ = parse::lifetime(&text);
        let _ = parse::pause(&text);
        let _ = parse::memory_kib(&text);
        let _ = parse::networks(&text);
        let _ = parse::collector(&text);
        let _ = parse::share(&text);
        let _ = parse::headers(&text);
        if let Ok(pairs) = parse::pairs(&text) {
            prop_assert_eq!(parse::pairs(&parse::pairs_text(&pairs)), Ok(pairs));
        }
        let _ = parse::replica_id(&text);
        let _ = parse::session_secrets(&text);
        let _ = parse::redis_url(&text);
        let _ = parse::mask_redis_url(&text);
        let _ = parse::database_url(&text);
        let _ = parse::log_filter(&text);
        let _ = sources::dotenv_entries(&text);
    }

    #[test]
    fn any_host_name_makes_a_valid_replica_id(name in any::<String>()) {
        if let Some(id) = parse::replica_id_of_host(&name) {
            prop_assert!(parse::replica_id(&id).is_ok(), "{id:?}");
        }
    }

    #[test]
    fn shown_durations_and_sizes_read_back_the_same(seconds in 1_u64..=400 * 86_400, kib in 8_u32..=4 << 20) {
        let duration = Duration::from_secs(seconds);
        prop_assert_eq!(parse::lifetime(&duration_text(duration)), Ok(duration));
        prop_assert_eq!(parse::memory_kib(&size_text(kib)), Ok(kib));
    }

    #[test]
    fn keys_are_split_at_commas_and_kept_to_the_byte(keys in proptest::collection::hash_set("[!-+.-~]{32,40}", 1..4)) {
        let keys: Vec<String> = keys.into_iter().collect();
        let parsed = parse::session_secrets(&keys.join(",")).unwrap();
        prop_assert_eq!(parsed.len(), keys.len());
        for (parsed, key) in parsed.iter().zip(&keys) {
            prop_assert_eq!(parsed.expose_secret(), key.as_bytes());
        }
    }
}
