//! What each kind of values takes and refuses.
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use secrecy::ExposeSecret;

use super::super::formats::{duration_text, size_text, whole};
use super::super::table::Variable;
use super::super::{DatabaseUrl, database, parse, sources};
use super::{KEY_A, KEY_B, exposed, ok, problem};

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
fn redis_url_is_checked_and_never_echoed() {
    for (url, message) in [
        ("Zq7", "begins neither"),
        ("http://Zq7@host", "begins neither"),
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
        ("redis+unix:///run/redis.sock?db=2&user=u&pass=Zq7", "unix:///run/redis.sock?db=2&user=u&pass=***"),
    ] {
        let config = ok([("REDIS_URL", url), ("SESSION_SECRET", KEY_A)]);
        assert!(config.effective().contains(&("REDIS_URL", shown.to_owned())), "{:?}", config.effective());
    }
}

#[test]
fn database_url_is_checked_and_never_echoed() {
    for (url, message) in [
        ("postgres://u:Zq7@db", "names no database"),
        ("postgres://u:Zq7@/auth", "names no host"),
        ("postgres://:Zq7@db/auth", "names no user"),
        ("postgresql://u:Zq7/pass@db/auth", "check host, port and percent-encoding"),
        ("postgres://u:Zq7#pass@db/auth", "%23"),
        ("postgres://u:Zq7?pass@db/auth", "check host, port and percent-encoding"),
        ("postgres://u:Zq7@db/auth?Zq7=1", "%3F"),
        ("postgres://u:Zq7@db:70000/auth", "port"),
        ("postgres://u:Zq7@db/auth?port=Zq7", "not a number up to 65535"),
        ("postgres://u:Zq7@a,b/auth", "several hosts"),
        ("postgres://u:Zq7@a:1,b:2/auth", "several hosts"),
        ("postgres://u:Zq7@db/auth?sslmode=allow", "sslmode=allow is not supported"),
        ("postgres://u:Zq7@db/auth?sslmode=Zq7", "sslmode is none of disable, prefer, require, verify-ca, verify-full"),
        ("postgres://u:Zq7@db/auth?sslrootcert=/Zq7", "sslrootcert needs sslmode=verify-full"),
        ("postgres://u:Zq7@db/auth?sslmode=require&sslrootcert=system", "sslrootcert=system needs"),
        ("postgres://u:Zq7@db/auth?sslcert=/Zq7", "sslcert and sslkey belong together"),
        ("postgres://u:Zq7@db/auth?sslmode=require&sslmode=disable", "twice"),
        ("postgres://u:%FFZq7@db/auth", "not UTF-8"),
        ("postgres://u:Zq7%00@db/auth", "zero byte"),
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
    let database = ok([("DATABASE_URL", "sqlite://data/a.db")]).database;
    assert!(matches!(database, DatabaseUrl::Sqlite(path) if path == Path::new("data/a.db")));
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
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=Zq7%0A", "entry 1 is not an HTTP header"),
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
fn whole_numbers_keep_to_their_range_at_both_ends() {
    let format = whole::<u32>(2..=20);
    for (text, expected) in [("1", Err("below 2")), ("2", Ok(2)), ("20", Ok(20)), ("21", Err("above 20"))] {
        assert_eq!((format.parse)(text), expected.map_err(str::to_owned));
    }
    assert_eq!(format.accepted, "a whole number from 2 to 20");
}

/// Text in the neighbourhood of what the parsers expect, besides any text at all.
fn input() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[0-9.]{0,25} ?(ns|ms|s|m|h|d|y|B|KiB|MiB|GB|EiB|µs)?",
        "[0-9a-f.:/,\\[\\] ]{0,40}",
        "(rediss?(-sentinel|-cluster)?|unix|redis\\+unix|sqlite|postgres)://[a-z0-9:@/?#%=&,.]{0,40}",
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
        if let Ok(url) = super::super::redis::redis_url(&text) {
            prop_assert!(super::super::redis::redis_url(&url.to_string()).is_ok(), "{url}");
        }
        let _ = database::database_url(&text);
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
