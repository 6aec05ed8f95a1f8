//! Every variable that authfleet reads, with its default and its checks.
//!
//! [`Config::load`] reads the environment first, then `.env` in the working directory. Each variable can also be given
//! as `NAME_FILE`, the path of a file with its value. An empty value counts as not set. All problems are collected into
//! one [`ConfigErrors`], so that an operator can repair them all at once.
//!
//! A variable is one field in `variables.rs` with its row above it: name, kind of values, default, scope. A new
//! variable changes only the documents besides, which `make docs` writes, and the deployments, which tests name.
//!
//! # Why no crate does this
//!
//! `confique` 0.4 and `figment` 0.10 stop at the first mistake, as serde's deserializers do, but an operator should see
//! all of them. Their messages quote the value, which may be a secret. clap's `env` does both as well. None of the
//! three reads `NAME_FILE`, or describes the values that a variable accepts. The idea to put the row at the field is
//! from `confique`. `dotenvy` parses `.env`, `humantime` durations, `bytesize` sizes, `ipnet` networks.
mod color;
mod database;
mod fingerprint;
mod formats;
mod parse;
mod redis;
mod reference;
mod sites;
mod sources;
mod table;
#[cfg(test)]
mod tests;
mod variables;
mod warnings;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use ipnet::IpNet;

pub(crate) use self::color::Color;
pub(crate) use self::database::{DatabaseUrl, PostgresHost, PostgresUrl, TlsMode, database_url};
use self::formats::{duration_text, size_text};
pub(crate) use self::redis::{RedisNode, RedisTopology, RedisUrl};
pub(crate) use self::reference::env_example;
pub(crate) use self::sites::{PublicUrl, Scheme, Site, SitePattern};
pub(crate) use self::sources::Sources;
use self::sources::Values;
pub(crate) use self::sources::piped_value;
pub(crate) use self::variables::{
    Config, ForwardAuthConfig, HashingConfig, LogConfig, PagesConfig, PasswordConfig, RedisConfig, SessionConfig,
    TracesConfig,
};
pub(crate) use self::warnings::Warning;

/// Reads a `DATABASE_URL` in a file, by the rules of a `NAME_FILE`.
///
/// # Errors
///
/// What is wrong with the file or with the URL, without quoting it.
pub(crate) fn database_url_in(path: &Path) -> Result<DatabaseUrl, String> {
    let (text, ..) = sources::read_value_file(path.as_os_str(), true)?;
    database_url(&text)
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people at a terminal.
    Pretty,
}

/// Whether people may make an account themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Registration {
    Open,
    Closed,
}

/// How a new session is kept in Redis. A server reads, lists and ends sessions of both formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SessionFormat {
    /// The only one that builds without `SESSION_FORMAT` know.
    Classic,
    /// The one that takes less memory.
    Compact,
}

/// How traces are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OtlpProtocol {
    /// OTLP over HTTP, in protobuf.
    HttpProtobuf,
}

/// Which requests are traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceSampler {
    /// Whether a caller that sends a `traceparent` decides.
    pub(crate) parent_based: bool,
    pub(crate) sampling: Sampling,
}

/// Which requests are traced if no caller decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sampling {
    All,
    None,
    /// The share in `OTEL_TRACES_SAMPLER_ARG`.
    Share,
}

/// Everything that is wrong with a configuration. Shows one line per problem, never a secret.
#[derive(Debug)]
pub(crate) struct ConfigErrors {
    problems: Vec<Problem>,
    /// Names that look misspelt, which is often why another one is missing.
    hints: Vec<Warning>,
}

/// One mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The variable, or the file and line that could not be read.
    pub(crate) variable: String,
    /// What is wrong with it. Contains the wrong value unless the variable is secret.
    pub(crate) message: String,
    /// What would be right. Empty if the message already says it.
    pub(crate) accepted: String,
}

impl ConfigErrors {
    /// The problems, at least one.
    pub(crate) fn problems(&self) -> &[Problem] {
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
    pub(crate) fn load() -> Result<Self, ConfigErrors> {
        Self::from_sources(&Sources::of_process())
    }

    /// Does what [`Config::load`] does, with sources that the caller chose.
    ///
    /// # Errors
    ///
    /// All that is wrong, in one message.
    pub(crate) fn from_sources(sources: &Sources) -> Result<Self, ConfigErrors> {
        let mut values = Values::collect(sources);
        let mut config = Self::read(&mut values);
        config.check_together(&mut values);
        config.warnings = values.warnings();
        if !values.problems.is_empty() {
            return Err(ConfigErrors { problems: values.problems, hints: config.warnings });
        }
        config.warnings.extend(config.weak_settings());
        config.secret_files = values.secret_files();
        Ok(config)
    }

    /// Finds contradictions between two variables. A pair is skipped if one of the two is already wrong.
    fn check_together(&self, values: &mut Values<'_>) {
        if values.sound(&["LISTEN_ADDR", "OPS_ADDR"]) && would_collide(self.listen_addr, self.ops_addr) {
            values.reject::<()>(
                "OPS_ADDR",
                &format!("{} and LISTEN_ADDR={} cannot both be bound", self.ops_addr, self.listen_addr),
            );
        }
        self.redis.check_together(values);
        self.forward_auth.check_together(self.session.cookie_secure, &self.trusted_proxies, values);
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

    /// The values in force, in the order of the table, with secrets masked. An absent value is empty.
    pub(crate) fn effective(&self) -> Vec<(&'static str, String)> {
        let mut shown = Vec::new();
        self.show(&mut shown);
        shown
    }
}

impl RedisConfig {
    /// The configuration from `REDIS_URL` and these variables, for tests.
    #[cfg(test)]
    pub(crate) fn of<const N: usize>(url: &str, more: [(&str, &str); N]) -> Self {
        let mut sources = Sources::from(more);
        sources.environment.insert("REDIS_URL".to_owned(), url.into());
        sources.environment.insert("SESSION_SECRET".to_owned(), "s".repeat(32).into());
        Config::from_sources(&sources).unwrap_or_else(|errors| panic!("{errors}")).redis
    }

    /// Finds variables that have no effect with this `REDIS_URL`. They are refused, because they were meant to have
    /// one.
    fn check_together(&self, values: &mut Values<'_>) {
        if !values.sound(&["REDIS_URL"]) {
            return;
        }
        let has_tls = self.url.as_ref().is_some_and(|url| url.tls);
        let has_sentinels = self.url.as_ref().is_some_and(RedisUrl::has_sentinels);
        for (name, is_set) in [
            ("REDIS_CA_FILE", self.ca_file.is_some()),
            ("REDIS_CERT_FILE", self.cert_file.is_some()),
            ("REDIS_KEY_FILE", self.key_file.is_some()),
        ] {
            if is_set && !has_tls {
                values.reject::<()>(name, "REDIS_URL doesn't begin with rediss, so there is no TLS");
            }
        }
        match (&self.cert_file, &self.key_file) {
            (Some(_), None) => values.reject::<()>("REDIS_CERT_FILE", "set without REDIS_KEY_FILE"),
            (None, Some(_)) => values.reject::<()>("REDIS_KEY_FILE", "set without REDIS_CERT_FILE"),
            _ => {}
        }
        for (name, is_set) in [
            ("REDIS_SENTINEL_USERNAME", self.sentinel_username.is_some()),
            ("REDIS_SENTINEL_PASSWORD", self.sentinel_password.is_some()),
        ] {
            if is_set && !has_sentinels {
                values.reject::<()>(name, "REDIS_URL names no Sentinels");
            }
        }
        if self.sentinel_username.is_some() && self.sentinel_password.is_none() {
            values.reject::<()>("REDIS_SENTINEL_USERNAME", "set without REDIS_SENTINEL_PASSWORD");
        }
    }
}

impl ForwardAuthConfig {
    /// Finds combinations that can't work: hosts without a place to sign in, rules without hosts, cookies that a
    /// browser would drop.
    fn check_together(&self, cookie_secure: bool, trusted_proxies: &[IpNet], values: &mut Values<'_>) {
        if !values.sound(&["PUBLIC_URL", "PROTECTED_HOSTS", "ACCESS_RULES", "COOKIE_DOMAIN"]) {
            return;
        }
        if let Some(url) = &self.public_url
            && values.sound(&["COOKIE_SECURE"])
            && cookie_secure != (url.scheme() == Scheme::Https)
        {
            let needed =
                if cookie_secure { "https, since COOKIE_SECURE=true" } else { "http, since COOKIE_SECURE=false" };
            values.reject::<()>("PUBLIC_URL", &format!("{url} must begin with {needed}"));
        }
        if self.public_url.is_none() {
            for (name, is_set) in
                [("PROTECTED_HOSTS", !self.protected_hosts.is_empty()), ("COOKIE_DOMAIN", self.cookie_domain.is_some())]
            {
                if is_set {
                    values.reject::<()>(name, "set without PUBLIC_URL, where people sign in");
                }
            }
        }
        if self.protected_hosts.is_empty() {
            if self.access_rules.is_some() {
                values.reject::<()>("ACCESS_RULES", "set without PROTECTED_HOSTS, to which its rules apply");
            }
        } else if values.sound(&["TRUSTED_PROXIES"]) && trusted_proxies.is_empty() {
            values.reject::<()>(
                "PROTECTED_HOSTS",
                "set without TRUSTED_PROXIES: questions of proxies would not be believed",
            );
        }
        if let (Some(domain), Some(url)) = (&self.cookie_domain, &self.public_url) {
            if !sites::is_under(url.site().name(), domain) {
                values.reject::<()>("COOKIE_DOMAIN", &format!("PUBLIC_URL={url} is not part of {domain}"));
            }
            if let Some(host) = self.protected_hosts.iter().find(|host| !host.is_under(domain)) {
                values.reject::<()>("COOKIE_DOMAIN", &format!("{host} of PROTECTED_HOSTS is not part of {domain}"));
            }
        }
    }
}

impl TracesConfig {
    /// The share of requests that are traced if no caller decides: 0 to 1.
    pub(crate) fn sampled_share(&self) -> f64 {
        match self.sampler.sampling {
            Sampling::All => 1.0,
            Sampling::None => 0.0,
            Sampling::Share => self.sampler_arg,
        }
    }
}

/// Whether the second bind would fail. A wildcard address takes its port on every address.
fn would_collide(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |a: IpAddr, b: IpAddr| a == b || (a.is_unspecified() && (a.is_ipv6() || b.is_ipv4()));
    a.port() != 0 && a.port() == b.port() && (covers(a.ip(), b.ip()) || covers(b.ip(), a.ip()))
}
