//! The one table of variables. A variable is a field with its row above it; reading it, showing it, the messages about
//! it, `.env.example`, README's table and the fingerprint follow from that.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use secrecy::{SecretSlice, SecretString};

use super::formats::{self, Format, whole};
use super::sources::Values;
use super::table::{DefaultValue, Field, Scope, Variable, setting, settings};
use super::{
    Color, DatabaseUrl, LogFormat, OtlpProtocol, PublicUrl, RedisUrl, Registration, SessionFormat, SitePattern,
    TraceSampler, Warning,
};

settings! {
    /// The effective configuration of one process.
    #[derive(Clone, Debug)]
    pub(crate) struct Config {
        /// Address and port of the public HTTP listener, behind nginx.
        #[setting("LISTEN_ADDR", heading: "This replica",
            values: formats::address(), default: "0.0.0.0:3000", scope: Replica)]
        pub listen_addr: SocketAddr,

        /// Address and port of `/livez`, `/readyz` and `/metrics`. Never publish it.
        #[setting("OPS_ADDR", values: formats::address(), default: "0.0.0.0:9464", scope: Replica)]
        pub ops_addr: SocketAddr,

        /// Name of this replica in `X-Served-By`, logs and sessions (`created_by`).
        #[setting("REPLICA_ID", values: formats::replica_id(), default: "the host's name" => Values::host_name,
            scope: Replica)]
        pub replica_id: String,

        /// Threads that answer requests. One thread costs the least CPU per request; to scale, add replicas.
        #[setting("WORKER_THREADS", values: whole(1..=1024), default: "1", scope: Replica)]
        pub worker_threads: usize,

        /// Connections that the public listener serves at once; further ones get a 503.
        #[setting("MAX_CONNECTIONS", values: whole(1..=1_000_000), default: "10000", scope: Replica)]
        pub max_connections: usize,

        /// Whether `/docs` (Swagger UI) and `/openapi.json` are served.
        #[setting("API_DOCS", values: formats::boolean("on", "off"), default: "on", scope: Fleet)]
        pub api_docs: bool,

        /// What is logged, and how.
        #[setting(group)]
        pub log: LogConfig,

        /// Where traces go and which requests are traced.
        #[setting(group)]
        pub traces: TracesConfig,

        /// Redis that holds the sessions of the whole fleet.
        #[setting(group)]
        pub redis: RedisConfig,

        /// Where users are kept: one SQLite file that all replicas of the host share, or a database on a PostgreSQL
        /// server, for replicas on many hosts.
        #[setting("DATABASE_URL", values: formats::database_url(), default: "sqlite://data/authfleet.db", scope: Store)]
        pub database: DatabaseUrl,

        /// Cookie and session life.
        #[setting(group)]
        pub session: SessionConfig,

        /// Proxies whose `X-Forwarded-For` is trusted.
        #[setting("TRUSTED_PROXIES",
            values: formats::networks(), default: "none: `X-Forwarded-For` is ignored" => |_| Vec::new(), scope: Replica)]
        pub trusted_proxies: Vec<IpNet>,

        /// Which applications ask who is signed in.
        #[setting(group)]
        pub forward_auth: ForwardAuthConfig,

        /// What the pages look like, and who may register.
        #[setting(group)]
        pub pages: PagesConfig,

        /// Which passwords users may choose.
        #[setting(group)]
        pub password: PasswordConfig,

        /// Password hashing: parameters and admission.
        #[setting(group)]
        pub hashing: HashingConfig,

        /// Limits on failed logins and on registrations.
        #[setting(group)]
        pub throttle: ThrottleConfig,

        /// How long `/readyz` fails after SIGTERM before the listener closes, so that load balancers notice. Must be
        /// longer than they keep idle connections to a replica (nginx.conf: 3 s), because these end with the listener.
        #[setting("DRAIN_DELAY", heading: "Shutdown", values: formats::pause(), default: "5s", scope: Replica)]
        pub drain_delay: Duration,

        /// How long requests in flight may take to finish once the listener has closed.
        #[setting("DRAIN_TIMEOUT", values: formats::pause(), default: "30s", scope: Replica)]
        pub drain_timeout: Duration,

        /// Variables of secrets that came from a file, and when that was last changed.
        #[setting(derived)]
        pub secret_files: Vec<(&'static str, SystemTime)>,

        /// What an operator should be told at start.
        #[setting(derived)]
        pub warnings: Vec<Warning>,
    }
}

settings! {
    /// What is logged, and how.
    #[derive(Clone, Debug)]
    pub(crate) struct LogConfig {
        /// How log lines are written.
        #[setting("LOG_FORMAT",
            values: formats::one_of([("json", LogFormat::Json), ("pretty", LogFormat::Pretty)]),
            default: "`json`, or `pretty` when standard output is a terminal"
                => |given| if given.sources.terminal { LogFormat::Pretty } else { LogFormat::Json },
            scope: Replica)]
        pub format: LogFormat,

        /// Which log lines are written, optionally per module; `info,request=off` turns request lines off.
        #[setting("RUST_LOG", values: formats::log_filter(), default: "info", scope: Replica)]
        pub filter: String,
    }
}

settings! {
    /// Where traces go and which requests are traced, in OpenTelemetry's own variables.
    #[derive(Clone, Debug)]
    pub(crate) struct TracesConfig {
        /// OpenTelemetry collector that traces are sent to, as OTLP over HTTP (usually port 4318).
        #[setting("OTEL_EXPORTER_OTLP_ENDPOINT",
            heading: "Traces: OpenTelemetry's own variables (OTEL_BSP_* for the exporter's queue are read too)",
            values: formats::collector(), default: "none: no traces are sent" => |_| None, scope: Replica)]
        pub endpoint: Option<String>,

        /// Headers sent to the collector, for example an API key.
        #[setting("OTEL_EXPORTER_OTLP_HEADERS",
            values: formats::headers(), default: "none" => |_| Vec::new(), scope: Replica)]
        pub headers: Vec<(String, SecretString)>,

        /// How traces are sent. Only this value is supported; the variable is accepted because it is often set for all
        /// services.
        #[setting("OTEL_EXPORTER_OTLP_PROTOCOL",
            values: formats::otlp_protocol(), default: "http/protobuf", scope: Replica)]
        pub protocol: OtlpProtocol,

        /// Which requests are traced. With `parentbased_`, a caller that sends a `traceparent` header decides.
        #[setting("OTEL_TRACES_SAMPLER",
            values: formats::trace_sampler(), default: "parentbased_always_on", scope: Replica)]
        pub sampler: TraceSampler,

        /// The share of requests that the `traceidratio` sampler traces.
        #[setting("OTEL_TRACES_SAMPLER_ARG", values: formats::share(), default: "1", scope: Replica)]
        pub sampler_arg: f64,

        /// This service's name in traces.
        #[setting("OTEL_SERVICE_NAME", values: formats::service_name(), default: "authfleet", scope: Replica)]
        pub service_name: String,

        /// Further attributes of this service in traces, for example `deployment.environment.name=production`.
        #[setting("OTEL_RESOURCE_ATTRIBUTES",
            values: formats::pairs(), default: "none" => |_| Vec::new(), scope: Replica)]
        pub resource_attributes: Vec<(String, String)>,
    }
}

settings! {
    /// Where sessions are kept, and how Redis is reached.
    #[derive(Clone, Debug)]
    pub(crate) struct RedisConfig {
        /// Redis that holds the sessions of the whole fleet: one server, a primary that Sentinels watch, or a cluster.
        #[setting("REDIS_URL", heading: "What the replicas share",
            values: formats::redis_url(),
            default: "none: sessions stay in this process's memory, for one replica only" => |_| None,
            scope: Store)]
        pub url: Option<RedisUrl>,

        /// File with the certificates (PEM) of the authorities that sign Redis's and the Sentinels'. Read again at each
        /// new connection.
        #[setting("REDIS_CA_FILE",
            values: formats::file(), default: "the authorities that this system trusts" => |_| None, scope: Replica)]
        pub ca_file: Option<PathBuf>,

        /// File with the certificate (PEM) that this replica shows to Redis and the Sentinels, with those that lead to
        /// its authority. Needs `REDIS_KEY_FILE`.
        #[setting("REDIS_CERT_FILE", values: formats::file(), default: "none" => |_| None, scope: Replica)]
        pub cert_file: Option<PathBuf>,

        /// File with the key (PEM) of `REDIS_CERT_FILE`.
        #[setting("REDIS_KEY_FILE", values: formats::file(), default: "none" => |_| None, scope: Replica)]
        pub key_file: Option<PathBuf>,

        /// User at the Sentinels, whose accounts are not those of Redis.
        #[setting("REDIS_SENTINEL_USERNAME", values: formats::user_name(), default: "none" => |_| None, scope: Replica)]
        pub sentinel_username: Option<String>,

        /// Password at the Sentinels.
        #[setting("REDIS_SENTINEL_PASSWORD", values: formats::password(), default: "none" => |_| None, scope: Replica)]
        pub sentinel_password: Option<SecretString>,

        /// Replicas of Redis that must have a revocation before it is acknowledged; until then it is answered with a
        /// 503.
        #[setting("REDIS_REVOCATION_REPLICAS",
            values: whole(0..=5),
            default: "0 for one Redis, 1 with Sentinel and in a cluster"
                => |_| url.as_ref().map_or(0, RedisUrl::usual_replicas),
            scope: Fleet)]
        pub revocation_replicas: u32,
    }
}

settings! {
    /// Cookie and session life.
    #[derive(Clone, Debug)]
    pub(crate) struct SessionConfig {
        /// Keys that sign cookies. With `new,old` the first one signs and all are accepted, so a key can be rotated
        /// without logging anyone out.
        #[setting("SESSION_SECRET",
            values: formats::session_secrets(),
            default: "random; required if `REDIS_URL` is set" => Values::random_secret,
            scope: Fleet)]
        pub secrets: Vec<SecretSlice<u8>>,

        /// A session unused for this long ends.
        #[setting("SESSION_IDLE_TTL", heading: "Sessions and cookie",
            values: formats::lifetime(), default: "30m", scope: Fleet)]
        pub idle_ttl: Duration,

        /// A session this old ends, used or not.
        #[setting("SESSION_MAX_AGE", values: formats::lifetime(), default: "24h", scope: Fleet)]
        pub max_age: Duration,

        /// Sessions that one user may have; a further one ends the oldest.
        #[setting("SESSIONS_PER_USER", values: whole(1..=10_000), default: "100", scope: Fleet)]
        pub per_user: u32,

        /// How new sessions are kept in Redis; those of both formats are accepted. With many sessions, `compact` takes
        /// two thirds of the memory. Builds without this variable refuse such sessions: set it when all replicas know it.
        #[setting("SESSION_FORMAT",
            values: formats::one_of([("classic", SessionFormat::Classic), ("compact", SessionFormat::Compact)]),
            default: "classic",
            scope: Fleet)]
        pub format: SessionFormat,

        /// `true`: the cookie is `__Host-session`, sent over https only. `false`: it is `session`, for a demo over
        /// plain http.
        #[setting("COOKIE_SECURE", values: formats::boolean("true", "false"), default: "true", scope: Fleet)]
        pub cookie_secure: bool,
    }
}

settings! {
    /// Which applications ask who is signed in (forward auth).
    #[derive(Clone, Debug)]
    pub(crate) struct ForwardAuthConfig {
        /// Where people reach authfleet's own pages: scheme and host. Applications send them there to sign in.
        #[setting("PUBLIC_URL", heading: "Forward auth: applications behind a proxy that asks authfleet",
            values: formats::public_url(),
            default: "none: no way back to an application after signing in, no forward auth" => |_| None,
            scope: Fleet)]
        pub public_url: Option<PublicUrl>,

        /// Hosts of the applications. `*.example.net` stands for every name with one label more. A host that isn't
        /// named is refused, and nobody is sent to it.
        #[setting("PROTECTED_HOSTS",
            values: formats::protected_hosts(), default: "none: no forward auth" => |_| Vec::new(), scope: Fleet)]
        pub protected_hosts: Vec<SitePattern>,

        /// File with the rules that say who may go where (TOML). SIGHUP reads it again.
        #[setting("ACCESS_RULES",
            values: formats::file(), default: "none: whoever is signed in may go to `PROTECTED_HOSTS`" => |_| None,
            scope: Replica)]
        pub access_rules: Option<PathBuf>,

        /// Simple mode: one cookie for this domain and every host in it, instead of one per host. Each application of
        /// the domain then gets a key to all the others with every request.
        #[setting("COOKIE_DOMAIN",
            values: formats::cookie_domain(), default: "none: a cookie per host" => |_| None, scope: Fleet)]
        pub cookie_domain: Option<String>,
    }
}

settings! {
    /// What the pages look like, and who may register.
    #[derive(Clone, Debug)]
    pub(crate) struct PagesConfig {
        /// Whether people may make an account themselves. With `closed`, an operator makes accounts with
        /// `authfleet user create`.
        #[setting("REGISTRATION", heading: "Pages: sign in, register, my account",
            values: formats::one_of([("open", Registration::Open), ("closed", Registration::Closed)]), default: "open",
            scope: Fleet)]
        pub registration: Registration,

        /// The name that the pages and their titles show.
        #[setting("BRAND_NAME", values: formats::brand_name(), default: "authfleet", scope: Fleet)]
        pub brand_name: String,

        /// File with a logo, SVG or PNG, at most 64 KiB. The pages show it beside the name, browsers in the tab.
        #[setting("BRAND_LOGO",
            values: formats::file(), default: "none: the first letter of `BRAND_NAME`" => |_| None, scope: Replica)]
        pub brand_logo: Option<PathBuf>,

        /// Colour of buttons and links. On a light background it is darkened, on a dark one lightened, as far as is
        /// needed to read it.
        #[setting("BRAND_COLOR", values: formats::color(), default: "#0b5cad", scope: Fleet)]
        pub brand_color: Color,
    }
}

settings! {
    /// Which passwords users may choose.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct PasswordConfig {
        /// Shortest password, in characters (code points after NFKC).
        #[setting("PASSWORD_MIN_LENGTH", heading: "Passwords and their hashing",
            values: whole(1..=128), default: "8", scope: Fleet)]
        pub min_length: usize,

        /// Refuse common passwords, the user's own names, and sequences.
        #[setting("PASSWORD_BLOCKLIST", values: formats::boolean("on", "off"), default: "on", scope: Fleet)]
        pub blocklist: bool,
    }
}

settings! {
    /// Argon2id parameters and admission of hashing work.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct HashingConfig {
        /// Memory that one password hash takes. Hashes made with other parameters are upgraded at login.
        #[setting("ARGON2_MEMORY", values: formats::memory_kib(), default: "19MiB", scope: Fleet)]
        pub memory_kib: u32,

        /// Passes that one password hash makes over its memory.
        #[setting("ARGON2_ITERATIONS", values: whole(1..=1000), default: "2", scope: Fleet)]
        pub iterations: u32,

        /// Lanes of one password hash.
        #[setting("ARGON2_PARALLELISM", values: whole(1..=255), default: "1", scope: Fleet)]
        pub parallelism: u32,

        /// Passwords hashed at the same time; each takes `ARGON2_MEMORY`.
        #[setting("HASH_CONCURRENCY",
            values: whole(1..=1024), default: "the number of cores" => |given| given.sources.cores.clamp(1, 1024),
            scope: Replica)]
        pub concurrency: usize,

        /// `true`: on Linux, hashing leaves one CPU of the machine to everything else, the first that the replica may
        /// use. For replicas in containers, among which the kernel shares the CPUs equally; otherwise low priority
        /// suffices.
        #[setting("HASH_RESERVE_CPU", values: formats::boolean("true", "false"), default: "false", scope: Replica)]
        pub reserve_cpu: bool,

        /// Passwords that may wait to be hashed; further ones get a 503.
        #[setting("HASH_QUEUE",
            values: whole(1..=65_536), default: "16 per `HASH_CONCURRENCY`" => |_| 16 * concurrency, scope: Replica)]
        pub queue: usize,
    }
}

settings! {
    /// Limits on failed logins, on hashing, and on registrations. For IPv6, a /56 has four times and a /48 sixteen
    /// times as much.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct ThrottleConfig {
        /// Failed logins that one account may have within the window; further attempts get a 429.
        #[setting("LOGIN_FAILURES_PER_ACCOUNT", heading: "Limits on logins and registrations",
            values: whole(1..=1_000_000), default: "10", scope: Fleet)]
        pub per_account: u32,

        /// Failed logins that one client address (IPv6: /64) may have within the window; further attempts get a 429.
        #[setting("LOGIN_FAILURES_PER_ADDRESS", values: whole(1..=1_000_000), default: "100", scope: Fleet)]
        pub per_address: u32,

        /// Passwords, correct ones included, that may be hashed for one account within the window; further attempts get
        /// a 429.
        #[setting("LOGIN_ATTEMPTS_PER_ACCOUNT", values: whole(1..=100_000_000), default: "1000", scope: Fleet)]
        pub attempts_per_account: u32,

        /// Passwords, correct ones included, that may be hashed for one client address (IPv6: /64) within the window;
        /// further attempts get a 429.
        #[setting("LOGIN_ATTEMPTS_PER_ADDRESS", values: whole(1..=100_000_000), default: "10000", scope: Fleet)]
        pub attempts_per_address: u32,

        /// Registrations that one client address (IPv6: /64) may make within the window; further ones get a 429.
        #[setting("REGISTRATIONS_PER_ADDRESS", values: whole(1..=1_000_000), default: "1000", scope: Fleet)]
        pub registrations: u32,

        /// The window: how long an attempt, a failed login or a registration counts.
        #[setting("LOGIN_FAILURE_WINDOW", values: formats::lifetime(), default: "15m", scope: Fleet)]
        pub window: Duration,
    }
}
