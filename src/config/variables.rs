//! The one table of variables; error messages, `authfleet config` and `.env.example` follow it.
use self::DefaultValue::{Described, Text};

/// A variable that authfleet reads. `NAME_FILE` is read too, for every one of them.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name in the environment.
    pub name: &'static str,
    /// What holds when it is not set.
    pub default: DefaultValue,
    /// What it does, in one line.
    pub help: &'static str,
    /// Which values are valid, for error messages.
    pub accepted: &'static str,
    /// Whether its value must never be shown.
    pub secret: bool,
}

/// What holds when a variable is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultValue {
    /// This text, as if it had been set.
    Text(&'static str),
    /// Something found out at start, or nothing; described in words.
    Described(&'static str),
}

/// Every variable, in the order in which they are shown. `.env.example` is checked against this table.
pub const VARIABLES: &[Variable] = &[
    Variable {
        name: "LISTEN_ADDR",
        default: Text("0.0.0.0:3000"),
        help: "Address and port of the public HTTP listener, behind nginx.",
        accepted: ADDRESS,
        secret: false,
    },
    Variable {
        name: "OPS_ADDR",
        default: Text("0.0.0.0:9464"),
        help: "Address and port of /livez, /readyz and /metrics. Never publish it.",
        accepted: ADDRESS,
        secret: false,
    },
    Variable {
        name: "REPLICA_ID",
        default: Described("the host's name"),
        help: "Name of this replica in X-Served-By, logs and sessions.",
        accepted: "1 to 64 characters out of A-Z, a-z, 0-9, '.', '_' and '-'",
        secret: false,
    },
    Variable {
        name: "WORKER_THREADS",
        default: Text("1"),
        help: "Threads that answer requests. One is the cheapest per request; replicas are how a fleet grows.",
        accepted: "a whole number from 1 to 1024",
        secret: false,
    },
    Variable {
        name: "LOG_FORMAT",
        default: Described("json, or pretty when standard output is a terminal"),
        help: "How log lines are written.",
        accepted: "json or pretty",
        secret: false,
    },
    Variable {
        name: "RUST_LOG",
        default: Text("info"),
        help: "Which log lines are written, per module if wanted.",
        accepted: "tracing directives such as info or info,sqlx=warn (levels: off, error, warn, info, debug, trace)",
        secret: false,
    },
    Variable {
        name: "OTEL_EXPORTER_OTLP_ENDPOINT",
        default: Described("none, no traces are sent"),
        help: "OpenTelemetry collector that gets traces, by OTLP over HTTP (port 4318 as a rule).",
        accepted: "an http or https URL such as http://localhost:4318, without user, password, '?' or '#'",
        secret: false,
    },
    Variable {
        name: "OTEL_EXPORTER_OTLP_HEADERS",
        default: Described("none"),
        help: "Headers sent to the collector, for example a key that it asks for.",
        accepted: "name=value pairs separated by commas, values percent-encoded where they hold a comma or a percent sign",
        secret: true,
    },
    Variable {
        name: "OTEL_EXPORTER_OTLP_PROTOCOL",
        default: Text("http/protobuf"),
        help: "How traces are sent. There is one way; the variable is here because others set it for all services.",
        accepted: "http/protobuf",
        secret: false,
    },
    Variable {
        name: "OTEL_TRACES_SAMPLER",
        default: Text("parentbased_always_on"),
        help: "Which requests are traced. parentbased_: as the caller decided, if its traceparent header says so.",
        accepted: "always_on, always_off, traceidratio, or one of these after parentbased_",
        secret: false,
    },
    Variable {
        name: "OTEL_TRACES_SAMPLER_ARG",
        default: Text("1"),
        help: "The share of requests that the sampler traceidratio traces.",
        accepted: "a number from 0 to 1, such as 0.01",
        secret: false,
    },
    Variable {
        name: "OTEL_SERVICE_NAME",
        default: Text("authfleet"),
        help: "This service's name in traces.",
        accepted: "1 to 255 characters",
        secret: false,
    },
    Variable {
        name: "OTEL_RESOURCE_ATTRIBUTES",
        default: Described("none"),
        help: "What traces say of this service besides, for example deployment.environment.name=production.",
        accepted: "key=value pairs separated by commas, values percent-encoded where they hold a comma or a percent sign",
        secret: false,
    },
    Variable {
        name: "REDIS_URL",
        default: Described("none, sessions stay in this process's memory: one replica only"),
        help: "Redis that holds the sessions of the whole fleet.",
        accepted: "redis://[[user]:password@]host[:port][/database] or \
                   redis+unix:///socket[?db=number&user=name&pass=password], special characters percent-encoded",
        secret: true,
    },
    Variable {
        name: "DATABASE_URL",
        default: Text("sqlite://data/authfleet.db"),
        help: "Where users are kept: one SQLite file that all replicas of the host share.",
        accepted: "sqlite://relative/path or sqlite:///absolute/path",
        secret: true,
    },
    Variable {
        name: "SESSION_SECRET",
        default: Described("a random one, but required as soon as REDIS_URL is set"),
        help: "Signs cookies, the same in every replica. new,old signs with the first and accepts all.",
        accepted: "keys of at least 32 bytes, separated by commas; `openssl rand -hex 32` makes one",
        secret: true,
    },
    Variable {
        name: "SESSION_IDLE_TTL",
        default: Text("30m"),
        help: "A session unused for this long ends.",
        accepted: LIFETIME,
        secret: false,
    },
    Variable {
        name: "SESSION_MAX_AGE",
        default: Text("24h"),
        help: "A session this old ends, used or not.",
        accepted: LIFETIME,
        secret: false,
    },
    Variable {
        name: "SESSIONS_PER_USER",
        default: Text("100"),
        help: "Sessions that one user may have; one more ends the oldest.",
        accepted: "a whole number from 1 to 10000",
        secret: false,
    },
    Variable {
        name: "COOKIE_SECURE",
        default: Text("true"),
        help: "true: cookie __Host-session, https only. false: cookie session, for a demo over plain http.",
        accepted: BOOLEAN,
        secret: false,
    },
    Variable {
        name: "TRUSTED_PROXIES",
        default: Described("none, X-Forwarded-For is ignored"),
        help: "Proxies whose X-Forwarded-For is believed.",
        accepted: "addresses and CIDR networks, separated by commas, such as 10.0.0.0/8,fd00::/8,192.0.2.7",
        secret: false,
    },
    Variable {
        name: "PASSWORD_MIN_LENGTH",
        default: Text("8"),
        help: "Shortest password, in characters (code points after NFKC).",
        accepted: "a whole number from 1 to 128",
        secret: false,
    },
    Variable {
        name: "PASSWORD_BLOCKLIST",
        default: Text("on"),
        help: "Refuse common passwords.",
        accepted: BOOLEAN,
        secret: false,
    },
    Variable {
        name: "ARGON2_MEMORY",
        default: Text("19MiB"),
        help: "Memory that one password hash takes.",
        accepted: "a size in whole KiB such as 19MiB or 19456KiB, at least 8KiB per ARGON2_PARALLELISM, at most 4GiB",
        secret: false,
    },
    Variable {
        name: "ARGON2_ITERATIONS",
        default: Text("2"),
        help: "Passes that one password hash makes over its memory.",
        accepted: "a whole number from 1 to 1000",
        secret: false,
    },
    Variable {
        name: "ARGON2_PARALLELISM",
        default: Text("1"),
        help: "Lanes of one password hash.",
        accepted: "a whole number from 1 to 255",
        secret: false,
    },
    Variable {
        name: "HASH_CONCURRENCY",
        default: Described("the number of cores"),
        help: "Passwords hashed at once; each takes ARGON2_MEMORY.",
        accepted: "a whole number from 1 to 1024",
        secret: false,
    },
    Variable {
        name: "HASH_QUEUE",
        default: Described("16 per HASH_CONCURRENCY"),
        help: "Passwords that may wait to be hashed; one more is answered 503.",
        accepted: "a whole number from 1 to 65536",
        secret: false,
    },
    Variable {
        name: "LOGIN_FAILURES_PER_ACCOUNT",
        default: Text("10"),
        help: "Failed logins of one account within the window, then 429.",
        accepted: "a whole number from 1 to 1000000",
        secret: false,
    },
    Variable {
        name: "LOGIN_FAILURES_PER_ADDRESS",
        default: Text("100"),
        help: "Failed logins from one client address (IPv6: /64) within the window, then 429.",
        accepted: "a whole number from 1 to 1000000",
        secret: false,
    },
    Variable {
        name: "REGISTRATIONS_PER_ADDRESS",
        default: Text("1000"),
        help: "Registrations from one client address (IPv6: /64) within the window, then 429.",
        accepted: "a whole number from 1 to 1000000",
        secret: false,
    },
    Variable {
        name: "LOGIN_FAILURE_WINDOW",
        default: Text("15m"),
        help: "How long a failed login or a registration counts.",
        accepted: LIFETIME,
        secret: false,
    },
    Variable {
        name: "DRAIN_DELAY",
        default: Text("5s"),
        help: "After SIGTERM, how long /readyz fails before the listener closes, so that balancers notice.",
        accepted: PAUSE,
        secret: false,
    },
    Variable {
        name: "DRAIN_TIMEOUT",
        default: Text("30s"),
        help: "How long requests in flight may take to finish after that.",
        accepted: PAUSE,
        secret: false,
    },
];

const ADDRESS: &str = "an IP address and port such as 0.0.0.0:3000 or [::]:3000";
const BOOLEAN: &str = "true or false (also 1/0, on/off, yes/no)";
const LIFETIME: &str = "a duration of whole seconds from 1s to 400d, such as 90s, 30m or 24h";
const PAUSE: &str = "a duration from 0s to 1h, such as 500ms, 5s or 1m";

impl Variable {
    /// The entry of `name`.
    ///
    /// # Panics
    ///
    /// If the table has none.
    pub(super) fn named(name: &str) -> &'static Self {
        VARIABLES.iter().find(|variable| variable.name == name).expect("a name from VARIABLES")
    }
}
