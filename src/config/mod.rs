//! Every variable that authfleet reads, its default, its checks.
//!
//! [`Config::load`] takes the environment first, then `.env` in the working directory; each variable may also be given
//! as `NAME_FILE`, the path of a file with its value. An empty value counts as not set. All problems are collected
//! into one [`ConfigErrors`], so that an operator repairs them in one round.
mod fingerprint;
mod parse;
mod sources;
#[cfg(test)]
mod tests;
mod variables;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretSlice, SecretString};

pub use self::sources::Sources;
use self::sources::Values;
pub(crate) use self::sources::piped_value;
pub use self::variables::{DefaultValue, VARIABLES, Variable};

/// The effective configuration of one process.
#[derive(Clone, Debug)]
pub struct Config {
    /// `LISTEN_ADDR`: where the public HTTP listener binds.
    pub listen_addr: SocketAddr,
    /// `OPS_ADDR`: where `/livez`, `/readyz` and `/metrics` are served.
    pub ops_addr: SocketAddr,
    /// `REPLICA_ID`: the name in `X-Served-By`, logs and sessions' `created_by`.
    pub replica_id: String,
    /// `WORKER_THREADS`: threads that answer requests.
    pub worker_threads: usize,
    /// `REDIS_URL`: absent means sessions in this process's memory.
    pub redis_url: Option<SecretString>,
    /// `DATABASE_URL`: where users are kept.
    pub database: DatabaseUrl,
    /// Cookie and session life.
    pub session: SessionConfig,
    /// `TRUSTED_PROXIES`: peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Password rules.
    pub password: PasswordConfig,
    /// Password hashing: parameters and admission.
    pub hashing: HashingConfig,
    /// Limits on failed logins.
    pub throttle: ThrottleConfig,
    /// `DRAIN_DELAY`: how long `/readyz` fails before the listener closes.
    pub drain_delay: Duration,
    /// `DRAIN_TIMEOUT`: how long requests in flight may take to finish after that.
    pub drain_timeout: Duration,
    /// Log format and filter.
    pub log: LogConfig,
    /// Where traces go and which requests are traced.
    pub traces: TracesConfig,
    /// Variables of secrets that came from a file, and when that was last changed.
    pub secret_files: Vec<(&'static str, SystemTime)>,
    /// What an operator should be told at start: weak settings, names that look like a misspelt variable.
    pub warnings: Vec<String>,
}

/// Where users are kept.
#[derive(Clone, Debug)]
pub enum DatabaseUrl {
    /// A SQLite file, shared by the replicas of one host.
    Sqlite(PathBuf),
}

/// Cookie and session life.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// `SESSION_SECRET`, split at commas: the first signs, all are accepted. Each at least 32 bytes.
    pub secrets: Vec<SecretSlice<u8>>,
    /// `SESSION_IDLE_TTL`: a session unused for this long ends. Whole seconds.
    pub idle_ttl: Duration,
    /// `SESSION_MAX_AGE`: a session this old ends, used or not. Whole seconds.
    pub max_age: Duration,
    /// `SESSIONS_PER_USER`: one more ends the oldest.
    pub per_user: u32,
    /// `COOKIE_SECURE`: `__Host-session` with `Secure`, or `session` for plain http.
    pub cookie_secure: bool,
}

/// Password rules.
#[derive(Clone, Copy, Debug)]
pub struct PasswordConfig {
    /// `PASSWORD_MIN_LENGTH`, in code points after NFKC.
    pub min_length: usize,
    /// `PASSWORD_BLOCKLIST`: refuse common passwords.
    pub blocklist: bool,
}

/// Argon2id parameters and admission of hashing work.
#[derive(Clone, Copy, Debug)]
pub struct HashingConfig {
    /// `ARGON2_MEMORY` in KiB.
    pub memory_kib: u32,
    /// `ARGON2_ITERATIONS`.
    pub iterations: u32,
    /// `ARGON2_PARALLELISM`.
    pub parallelism: u32,
    /// `HASH_CONCURRENCY`: threads that hash.
    pub concurrency: usize,
    /// `HASH_QUEUE`: jobs that may wait; one more is shed.
    pub queue: usize,
}

/// Limits on failed logins.
#[derive(Clone, Copy, Debug)]
pub struct ThrottleConfig {
    /// `LOGIN_FAILURES_PER_ACCOUNT`.
    pub per_account: u32,
    /// `LOGIN_FAILURES_PER_ADDRESS`.
    pub per_address: u32,
    /// `REGISTRATIONS_PER_ADDRESS`.
    pub registrations: u32,
    /// `LOGIN_FAILURE_WINDOW`. Whole seconds.
    pub window: Duration,
}

/// Log format and filter.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `LOG_FORMAT`.
    pub format: LogFormat,
    /// `RUST_LOG`, an `EnvFilter` directive list.
    pub filter: String,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people at a terminal.
    Pretty,
}

/// Where traces go and which requests are traced, in OpenTelemetry's own variables.
#[derive(Clone, Debug)]
pub struct TracesConfig {
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`: absent means that no traces are sent.
    pub endpoint: Option<String>,
    /// `OTEL_EXPORTER_OTLP_HEADERS`: names and values.
    pub headers: Vec<(String, SecretString)>,
    /// `OTEL_TRACES_SAMPLER` with `OTEL_TRACES_SAMPLER_ARG`.
    pub sampler: TraceSampler,
    /// `OTEL_SERVICE_NAME`.
    pub service_name: String,
    /// `OTEL_RESOURCE_ATTRIBUTES`: keys and values.
    pub resource_attributes: Vec<(String, String)>,
}

/// Which requests are traced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceSampler {
    /// A caller that sends a `traceparent` decides.
    pub parent_based: bool,
    /// The share of the others: 0 to 1.
    pub ratio: f64,
}

/// Everything that is wrong with a configuration. Shows one line per problem, never a secret.
#[derive(Debug)]
pub struct ConfigErrors {
    problems: Vec<Problem>,
    /// Names that look misspelt: often the reason why another one is missing.
    hints: Vec<String>,
}

/// One mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The variable, or the file and line that could not be read.
    pub variable: String,
    /// What is wrong with it. Holds the offending value unless the variable is secret.
    pub message: String,
    /// What would be right. Empty where the message says it all.
    pub accepted: String,
}

impl ConfigErrors {
    /// The problems, at least one.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => write!(f, "the configuration has 1 problem:")?,
            n => write!(f, "the configuration has {n} problems:")?,
        }
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))?;
        self.hints.iter().try_for_each(|hint| write!(f, "\n  hint: {hint}"))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.message)?;
        if self.accepted.is_empty() { Ok(()) } else { write!(f, "; accepted: {}", self.accepted) }
    }
}

impl Config {
    /// Reads the process's environment and `.env` in the working directory. The environment is not changed.
    ///
    /// # Errors
    ///
    /// All that is wrong, in one message.
    pub fn load() -> Result<Self, ConfigErrors> {
        Self::from_sources(&Sources::of_process())
    }

    /// As [`Config::load`], from sources that the caller chose.
    ///
    /// # Errors
    ///
    /// All that is wrong, in one message.
    ///
    /// # Example
    ///
    /// ```
    /// use authfleet::config::{Config, Sources};
    ///
    /// let config = Config::from_sources(&Sources::from([("LISTEN_ADDR", "127.0.0.1:0")])).unwrap();
    /// assert_eq!(config.session.idle_ttl.as_secs(), 30 * 60);
    /// ```
    pub fn from_sources(sources: &Sources) -> Result<Self, ConfigErrors> {
        let mut values = Values::collect(sources);

        let listen_addr = values.read("LISTEN_ADDR", parse::address);
        let ops_addr = values.read("OPS_ADDR", parse::address);
        let replica_id = values
            .read_optional("REPLICA_ID", parse::replica_id)
            .or_else(|| parse::replica_id_of_host(&sources.host_name))
            .unwrap_or_else(|| values.reject("REPLICA_ID", "not set, and this host has no name to use instead"));
        let worker_threads = values.read("WORKER_THREADS", parse::integer(1..=1024));
        let redis_url = values.read_optional("REDIS_URL", parse::redis_url);
        let database = values.read("DATABASE_URL", parse::database_url);
        let secrets = values.read_optional("SESSION_SECRET", parse::session_secrets);
        let session = SessionConfig {
            secrets: match secrets {
                Some(secrets) => secrets,
                None if values.is_set("SESSION_SECRET") => Vec::new(),
                None if values.is_set("REDIS_URL") => {
                    values.reject("SESSION_SECRET", "not set, but REDIS_URL is: replicas must share a secret")
                }
                None => random_secret()
                    .unwrap_or_else(|error| values.reject("SESSION_SECRET", &format!("none could be made: {error}"))),
            },
            idle_ttl: values.read("SESSION_IDLE_TTL", parse::lifetime),
            max_age: values.read("SESSION_MAX_AGE", parse::lifetime),
            per_user: values.read("SESSIONS_PER_USER", parse::integer(1..=10_000)),
            cookie_secure: values.read("COOKIE_SECURE", parse::boolean),
        };
        let trusted_proxies = values.read_optional("TRUSTED_PROXIES", parse::networks).unwrap_or_default();
        let password = PasswordConfig {
            min_length: values.read("PASSWORD_MIN_LENGTH", parse::integer(1..=128)),
            blocklist: values.read("PASSWORD_BLOCKLIST", parse::boolean),
        };
        let concurrency = values
            .read_optional("HASH_CONCURRENCY", parse::integer(1..=1024))
            .unwrap_or_else(|| sources.cores.clamp(1, 1024));
        let hashing = HashingConfig {
            memory_kib: values.read("ARGON2_MEMORY", parse::memory_kib),
            iterations: values.read("ARGON2_ITERATIONS", parse::integer(1..=1000)),
            parallelism: values.read("ARGON2_PARALLELISM", parse::integer(1..=255)),
            concurrency,
            queue: values.read_optional("HASH_QUEUE", parse::integer(1..=65_536)).unwrap_or(16 * concurrency),
        };
        let throttle = ThrottleConfig {
            per_account: values.read("LOGIN_FAILURES_PER_ACCOUNT", parse::integer(1..=1_000_000)),
            per_address: values.read("LOGIN_FAILURES_PER_ADDRESS", parse::integer(1..=1_000_000)),
            registrations: values.read("REGISTRATIONS_PER_ADDRESS", parse::integer(1..=1_000_000)),
            window: values.read("LOGIN_FAILURE_WINDOW", parse::lifetime),
        };
        let drain_delay = values.read("DRAIN_DELAY", parse::pause);
        let drain_timeout = values.read("DRAIN_TIMEOUT", parse::pause);
        let log = LogConfig {
            format: values.read_optional("LOG_FORMAT", parse::log_format).unwrap_or(if sources.terminal {
                LogFormat::Pretty
            } else {
                LogFormat::Json
            }),
            filter: values.read("RUST_LOG", parse::log_filter),
        };
        values.read("OTEL_EXPORTER_OTLP_PROTOCOL", parse::otlp_protocol);
        let (parent_based, sampled) = values.read("OTEL_TRACES_SAMPLER", parse::trace_sampler);
        let ratio = values.read("OTEL_TRACES_SAMPLER_ARG", parse::share);
        let headers = values.read_optional("OTEL_EXPORTER_OTLP_HEADERS", parse::headers).unwrap_or_default();
        let traces = TracesConfig {
            endpoint: values.read_optional("OTEL_EXPORTER_OTLP_ENDPOINT", parse::collector),
            headers: headers.into_iter().map(|(name, value)| (name, SecretString::from(value))).collect(),
            sampler: TraceSampler { parent_based, ratio: sampled.unwrap_or(ratio) },
            service_name: values.read("OTEL_SERVICE_NAME", parse::service_name),
            resource_attributes: values.read_optional("OTEL_RESOURCE_ATTRIBUTES", parse::pairs).unwrap_or_default(),
        };

        let mut config = Self {
            listen_addr,
            ops_addr,
            replica_id,
            worker_threads,
            redis_url,
            database,
            session,
            trusted_proxies,
            password,
            hashing,
            throttle,
            drain_delay,
            drain_timeout,
            log,
            traces,
            secret_files: values.secret_files(&["SESSION_SECRET", "REDIS_URL"]),
            warnings: Vec::new(),
        };
        config.check_together(&mut values);
        config.warnings = values.warnings();
        if !values.problems.is_empty() {
            return Err(ConfigErrors { problems: values.problems, hints: config.warnings });
        }
        config.warn_of_weak_settings();
        Ok(config)
    }

    /// What only two variables together can get wrong. Says nothing about a pair of which one is already faulty.
    fn check_together(&self, values: &mut Values) {
        if values.sound(&["LISTEN_ADDR", "OPS_ADDR"]) && would_collide(self.listen_addr, self.ops_addr) {
            values.reject::<()>(
                "OPS_ADDR",
                &format!("{} and LISTEN_ADDR={} cannot both be bound", self.ops_addr, self.listen_addr),
            );
        }
        let SessionConfig { idle_ttl, max_age, .. } = self.session;
        if values.sound(&["SESSION_IDLE_TTL", "SESSION_MAX_AGE"]) && idle_ttl > max_age {
            values.reject::<()>(
                "SESSION_IDLE_TTL",
                &format!("{} is longer than SESSION_MAX_AGE={}", duration_text(idle_ttl), duration_text(max_age)),
            );
        }
        // RFC 9106, section 3.1: at least eight blocks of 1 KiB per lane.
        let HashingConfig { memory_kib, parallelism, .. } = self.hashing;
        if values.sound(&["ARGON2_MEMORY", "ARGON2_PARALLELISM"]) && memory_kib < 8 * parallelism {
            values.reject::<()>(
                "ARGON2_MEMORY",
                &format!(
                    "{} is too little for ARGON2_PARALLELISM={parallelism}, which takes {}KiB",
                    size_text(memory_kib),
                    8 * parallelism
                ),
            );
        }
    }

    fn warn_of_weak_settings(&mut self) {
        // The default is the OWASP Password Storage Cheat Sheet's Argon2id recommendation.
        if self.hashing.memory_kib < 19_456 {
            let memory = size_text(self.hashing.memory_kib);
            self.warnings.push(format!("ARGON2_MEMORY={memory} is weaker than the default 19MiB"));
        }
        if self.hashing.iterations < 2 {
            let iterations = self.hashing.iterations;
            self.warnings.push(format!("ARGON2_ITERATIONS={iterations} is weaker than the default 2"));
        }
        // NIST SP 800-63B-4, section 3.1.1.2.
        if self.password.min_length < 8 {
            let length = self.password.min_length;
            self.warnings.push(format!("PASSWORD_MIN_LENGTH={length} is weaker than the default 8"));
        }
        if !self.session.cookie_secure {
            self.warnings.push("COOKIE_SECURE=false: the session cookie travels over plain http too".to_owned());
        }
        if self.trusted_proxies.iter().any(|network| network.prefix_len() == 0) {
            self.warnings.push("TRUSTED_PROXIES covers every address: any client can forge its own".to_owned());
        }
    }

    /// The values in force, in the order of [`VARIABLES`], secrets masked. An absent value is empty.
    #[must_use]
    pub fn effective(&self) -> Vec<(&'static str, String)> {
        VARIABLES.iter().map(|variable| (variable.name, self.value_of(variable.name))).collect()
    }

    fn value_of(&self, name: &str) -> String {
        match name {
            "LISTEN_ADDR" => self.listen_addr.to_string(),
            "OPS_ADDR" => self.ops_addr.to_string(),
            "REPLICA_ID" => self.replica_id.clone(),
            "LOG_FORMAT" => match self.log.format {
                LogFormat::Json => "json".to_owned(),
                LogFormat::Pretty => "pretty".to_owned(),
            },
            "RUST_LOG" => self.log.filter.clone(),
            "OTEL_EXPORTER_OTLP_ENDPOINT" => self.traces.endpoint.clone().unwrap_or_default(),
            "OTEL_EXPORTER_OTLP_HEADERS" => {
                self.traces.headers.iter().map(|(name, _)| format!("{name}=***")).collect::<Vec<_>>().join(",")
            }
            "OTEL_EXPORTER_OTLP_PROTOCOL" => "http/protobuf".to_owned(),
            "OTEL_TRACES_SAMPLER" => self.traces.sampler.name().to_owned(),
            "OTEL_TRACES_SAMPLER_ARG" => self.traces.sampler.ratio.to_string(),
            "OTEL_SERVICE_NAME" => self.traces.service_name.clone(),
            "OTEL_RESOURCE_ATTRIBUTES" => parse::pairs_text(&self.traces.resource_attributes),
            "WORKER_THREADS" => self.worker_threads.to_string(),
            "REDIS_URL" => {
                self.redis_url.as_ref().map(|url| parse::mask_redis_url(url.expose_secret())).unwrap_or_default()
            }
            "DATABASE_URL" => match &self.database {
                DatabaseUrl::Sqlite(path) => format!("sqlite://{}", path.display()),
            },
            "SESSION_SECRET" => match self.session.secrets.len() {
                1 => "1 key (masked)".to_owned(),
                n => format!("{n} keys (masked)"),
            },
            "SESSION_IDLE_TTL" => duration_text(self.session.idle_ttl),
            "SESSION_MAX_AGE" => duration_text(self.session.max_age),
            "SESSIONS_PER_USER" => self.session.per_user.to_string(),
            "COOKIE_SECURE" => self.session.cookie_secure.to_string(),
            "TRUSTED_PROXIES" => self.trusted_proxies.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            "PASSWORD_MIN_LENGTH" => self.password.min_length.to_string(),
            "PASSWORD_BLOCKLIST" => if self.password.blocklist { "on" } else { "off" }.to_owned(),
            "ARGON2_MEMORY" => size_text(self.hashing.memory_kib),
            "ARGON2_ITERATIONS" => self.hashing.iterations.to_string(),
            "ARGON2_PARALLELISM" => self.hashing.parallelism.to_string(),
            "HASH_CONCURRENCY" => self.hashing.concurrency.to_string(),
            "HASH_QUEUE" => self.hashing.queue.to_string(),
            "LOGIN_FAILURES_PER_ACCOUNT" => self.throttle.per_account.to_string(),
            "LOGIN_FAILURES_PER_ADDRESS" => self.throttle.per_address.to_string(),
            "REGISTRATIONS_PER_ADDRESS" => self.throttle.registrations.to_string(),
            "LOGIN_FAILURE_WINDOW" => duration_text(self.throttle.window),
            "DRAIN_DELAY" => duration_text(self.drain_delay),
            "DRAIN_TIMEOUT" => duration_text(self.drain_timeout),
            _ => unreachable!("{name} is in VARIABLES but has no value here"),
        }
    }
}

impl TraceSampler {
    /// The value of `OTEL_TRACES_SAMPLER` with this effect.
    pub fn name(self) -> &'static str {
        match (self.parent_based, self.ratio) {
            (true, 1.0..) => "parentbased_always_on",
            (true, ..=0.0) => "parentbased_always_off",
            (true, _) => "parentbased_traceidratio",
            (false, 1.0..) => "always_on",
            (false, ..=0.0) => "always_off",
            (false, _) => "traceidratio",
        }
    }
}

/// 256 bits, as the token's own randomness has.
fn random_secret() -> Result<Vec<SecretSlice<u8>>, getrandom::Error> {
    let mut key = vec![0; 32];
    getrandom::fill(&mut key)?;
    Ok(vec![SecretSlice::from(key)])
}

/// Whether the second bind would fail. A wildcard takes its port on every address.
fn would_collide(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |a: IpAddr, b: IpAddr| a == b || (a.is_unspecified() && (a.is_ipv6() || b.is_ipv4()));
    a.port() != 0 && a.port() == b.port() && (covers(a.ip(), b.ip()) || covers(b.ip(), a.ip()))
}

/// As an operator would write it: `24h`, where humantime says `1day`.
fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if duration.subsec_nanos() != 0 {
        humantime::format_duration(duration).to_string()
    } else if seconds == 0 || !seconds.is_multiple_of(60) {
        format!("{seconds}s")
    } else if !seconds.is_multiple_of(3600) {
        format!("{}m", seconds / 60)
    } else {
        format!("{}h", seconds / 3600)
    }
}

fn size_text(kib: u32) -> String {
    if kib.is_multiple_of(1024) { format!("{}MiB", kib / 1024) } else { format!("{kib}KiB") }
}
