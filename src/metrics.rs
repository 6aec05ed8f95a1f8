//! Every metric: its name, kind, labels, help and buckets. `make docs` writes the tables of `docs/metrics.md` and the
//! list of series in `docs/metrics.json` from this file; tests compare dashboards, rules and alerts with that list.
//!
//! Each series also has the label `replica`, with the name that `X-Served-By`, logs and sessions use.
#[cfg(test)]
mod tests;

use metrics::{Label, Unit};

/// Seconds for requests and round trips: 250 µs to 10 s.
pub const LATENCY_BUCKETS: &[f64] =
    &[0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Seconds for password hashing and its queue: 5 ms to 10 s.
pub const HASH_BUCKETS: &[f64] = &[0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 10.0];

/// What is known of a metric before it has a value.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The name, with its unit.
    pub name: &'static str,
    /// How its values behave.
    pub kind: Kind,
    /// What it counts, in a sentence or two.
    pub help: &'static str,
    /// Names of its labels, with their values. No values are listed where the code has them: routes, operations and so
    /// on. Those are few, and never taken from a client.
    pub labels: &'static [(&'static str, &'static [&'static str])],
}

/// How a metric's values behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises; starts at 0 with the process.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts by bucket, in [`LATENCY_BUCKETS`].
    Latency,
    /// Counts by bucket, in [`HASH_BUCKETS`].
    HashTime,
}

impl Metric {
    /// The unit that the name says, if it has one.
    pub fn unit(&self) -> Option<Unit> {
        let name = self.name.strip_suffix("_total").unwrap_or(self.name);
        match name.rsplit('_').next() {
            Some("seconds") => Some(Unit::Seconds),
            Some("bytes") => Some(Unit::Bytes),
            _ => None,
        }
    }

    /// The labels of each series that it can have; `None` where values turn up only as the server runs.
    pub fn series(&self) -> Option<Vec<Vec<Label>>> {
        let mut all = vec![Vec::new()];
        for &(name, values) in self.labels {
            if values.is_empty() {
                return None;
            }
            let with = |labels: &Vec<Label>, value| [&labels[..], &[Label::from_static_parts(name, value)]].concat();
            all = all.iter().flat_map(|labels| values.iter().map(move |value| with(labels, value))).collect();
        }
        Some(all)
    }
}

impl Kind {
    /// Upper bounds of the buckets of a histogram.
    pub fn buckets(self) -> Option<&'static [f64]> {
        match self {
            Self::Counter | Self::Gauge => None,
            Self::Latency => Some(LATENCY_BUCKETS),
            Self::HashTime => Some(HASH_BUCKETS),
        }
    }

    /// What Prometheus calls it.
    pub fn prometheus_type(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Latency | Self::HashTime => "histogram",
        }
    }
}

/// Declares a constant for each name, and the table of all metrics.
macro_rules! catalogue {
    ($(
        $(#[doc = $help:literal])+
        $ident:ident = $kind:ident $name:literal $({ $($label:ident: [$($value:literal),*]),+ })?;
    )+) => {
        $(
            $(#[doc = $help])+
            pub const $ident: &str = $name;
        )+

        /// Every metric of ours, in the order of `docs/metrics.md`.
        pub const CATALOGUE: &[Metric] = &[$(
            Metric {
                name: $name,
                kind: Kind::$kind,
                help: concat!($($help),+).trim_ascii_start(),
                labels: &[$($((stringify!($label), &[$($value),*])),+)?],
            },
        )+];
    };
}

catalogue! {
    /// 1, with the version as a label.
    BUILD_INFO = Gauge "authfleet_build_info" { version: [] };
    /// 1, with a digest over the settings that must be the same in every replica as a label.
    CONFIG_INFO = Gauge "authfleet_config_info" { fingerprint: [] };
    /// 1 if this replica wants requests: all its parts answer and it isn't draining. As `/readyz`, asked every 5 s.
    READY = Gauge "authfleet_ready";
    /// 1 if this part answers.
    PART_READY = Gauge "authfleet_part_ready" { part: ["sessions", "users"] };
    /// 1 from SIGTERM to the end.
    DRAINING = Gauge "authfleet_draining";
    /// This machine's clock minus Redis's, in seconds, as exact as a round trip allows.
    CLOCK_SKEW = Gauge "authfleet_clock_skew_seconds";
    /// When the file that a secret was read from was last changed, in seconds since 1970. Absent for secrets that came
    /// by the environment.
    SECRET_FILE_TIME = Gauge "authfleet_secret_file_timestamp_seconds" { variable: [] };

    /// HTTP requests finished. Status 499: the client left before its answer.
    HTTP_REQUESTS = Counter "authfleet_http_requests_total" { method: [], route: [], status: [] };
    /// HTTP requests being answered now.
    HTTP_IN_FLIGHT = Gauge "authfleet_http_requests_in_flight";
    /// Seconds from a request's head to its answer.
    HTTP_SECONDS = Latency "authfleet_http_request_duration_seconds" { method: [], route: [] };
    /// Connections open to the public listener.
    HTTP_CONNECTIONS = Gauge "authfleet_http_connections";
    /// Connections that the public listener serves at once: `MAX_CONNECTIONS`, or as many files as the process may
    /// open.
    HTTP_CONNECTIONS_LIMIT = Gauge "authfleet_http_connections_limit";
    /// Connections answered 503 at once because there were as many as the limit.
    HTTP_CONNECTIONS_REFUSED = Counter "authfleet_http_connections_refused_total";

    /// Session checks. Only `valid`, `unknown` and `error` asked the store.
    SESSION_CHECKS = Counter "authfleet_session_checks_total" {
        result: ["valid", "no_cookie", "bad_signature", "expired", "unknown", "error"]
    };
    /// Valid session checks by where the session was made: by the replica that checked it, or by another one.
    SESSIONS_ACCEPTED = Counter "authfleet_sessions_accepted_total" { made_by: ["self", "other"] };
    /// Sessions created.
    SESSIONS_CREATED = Counter "authfleet_sessions_created_total";
    /// Sessions ended by somebody. Those whose time ran out are not counted: Redis drops them by itself.
    SESSIONS_ENDED = Counter "authfleet_sessions_ended_total" {
        reason: ["logout", "replaced", "evicted", "revoked", "password_changed", "groups_changed", "account_deleted"]
    };
    /// Sessions in the store, of the whole fleet and the same in each replica: counted if there are few keys, else
    /// estimated from a sample of them. Every 30 s.
    SESSIONS_ALIVE = Gauge "authfleet_sessions_alive";

    /// Decisions about requests for applications (forward auth), by the rule that decided; `none` if no rule matched or
    /// the path was refused.
    ACCESS_DECISIONS = Counter "authfleet_access_decisions_total" { rule: [], decision: [] };
    /// 1 for the access rules in force, with a digest of their file as a label; `none` without a file.
    ACCESS_RULES_INFO = Gauge "authfleet_access_rules_info" { digest: [] };
    /// Times that SIGHUP asked to read the access rules again. After a failure the old rules stay in force.
    ACCESS_RULES_RELOADS = Counter "authfleet_access_rules_reloads_total" { result: ["success", "failure"] };

    /// Logins.
    LOGINS = Counter "authfleet_logins_total" {
        result: ["success", "invalid_credentials", "throttled", "overloaded", "unavailable", "internal"]
    };
    /// Registrations.
    REGISTRATIONS = Counter "authfleet_registrations_total" {
        result: ["success", "conflict", "invalid", "closed", "throttled", "overloaded", "unavailable", "internal"]
    };

    /// Seconds that one password hash took on its thread.
    HASH_SECONDS = HashTime "authfleet_hash_duration_seconds" { operation: ["hash", "verify"] };
    /// Seconds that hashing work waited for a thread.
    HASH_QUEUE_SECONDS = HashTime "authfleet_hash_queue_duration_seconds";
    /// Hashing jobs waiting for a thread.
    HASH_QUEUED = Gauge "authfleet_hash_queued";
    /// Hashing jobs that may wait: `HASH_QUEUE`.
    HASH_QUEUE_LIMIT = Gauge "authfleet_hash_queue_limit";
    /// Hashing jobs on a thread.
    HASH_RUNNING = Gauge "authfleet_hash_running";
    /// Threads that hash: `HASH_CONCURRENCY`.
    HASH_THREADS = Gauge "authfleet_hash_threads";
    /// Hashing jobs refused because the queue was full.
    HASH_SHED = Counter "authfleet_hash_shed_total";
    /// Hashing jobs dropped before they began because nobody waited for them any more.
    HASH_ABANDONED = Counter "authfleet_hash_abandoned_total";

    /// Seconds per Redis round trip.
    REDIS_SECONDS = Latency "authfleet_redis_duration_seconds" { operation: [] };
    /// Redis round trips that failed.
    REDIS_ERRORS = Counter "authfleet_redis_errors_total" { operation: [] };
    /// Connections opened to Redis.
    REDIS_CONNECTS = Counter "authfleet_redis_connects_total";
    /// 1 while there is a connection to Redis, in a cluster to any of its servers.
    REDIS_CONNECTED = Gauge "authfleet_redis_connected";
    /// Times that another server turned out to be the primary, with Sentinel or in a cluster, where a shard that joins
    /// counts too.
    REDIS_FAILOVERS = Counter "authfleet_redis_failovers_total";
    /// Replicas that are connected to the primary; in a cluster, to the primary with the fewest.
    REDIS_REPLICAS = Gauge "authfleet_redis_replicas";
    /// Shards of a Redis Cluster that don't serve, and 1 more if there are slots that none has. 0 without a cluster.
    REDIS_SHARDS_MISSING = Gauge "authfleet_redis_shards_missing";
    /// Revocations that replicas didn't confirm, so that they were answered with a 503. See
    /// `REDIS_REVOCATION_REPLICAS`.
    REVOCATIONS_UNCONFIRMED = Counter "authfleet_revocations_unconfirmed_total";
    /// Bytes that Redis uses, as it says itself; in a cluster, all primaries together.
    REDIS_MEMORY = Gauge "authfleet_redis_memory_bytes";
    /// Redis's `maxmemory` in bytes, in a cluster of all primaries together; 0 for no limit.
    REDIS_MEMORY_LIMIT = Gauge "authfleet_redis_memory_limit_bytes";
    /// Keys that Redis evicted to make room since it started. Each may have been a session.
    REDIS_EVICTED = Gauge "authfleet_redis_evicted_keys";
    /// 1 if Redis's last writes to its disk, AOF and snapshot, went well.
    REDIS_PERSISTENCE_OK = Gauge "authfleet_redis_persistence_ok";

    /// Seconds per SQL operation, waiting for a connection included.
    SQL_SECONDS = Latency "authfleet_sql_duration_seconds" { operation: [] };
    /// SQL operations that failed.
    SQL_ERRORS = Counter "authfleet_sql_errors_total" { operation: [] };
    /// Connections to the users' database: SQLite's `writer` and `readers`, or `all` to PostgreSQL.
    SQL_CONNECTIONS = Gauge "authfleet_sql_connections" { pool: ["writer", "readers", "all"], state: ["idle", "busy"] };
    /// Connections that each pool may have.
    SQL_CONNECTIONS_LIMIT = Gauge "authfleet_sql_connections_limit" { pool: ["writer", "readers", "all"] };
    /// Seconds that SQL operations waited for a connection: for SQLite's one writer, or for one of all to PostgreSQL.
    SQL_ACQUIRE_SECONDS = Latency "authfleet_sql_acquire_duration_seconds" { pool: ["writer", "all"] };
    /// SQL operations that got no connection in time, because all were busy or the server was silent.
    SQL_ACQUIRE_TIMEOUTS = Counter "authfleet_sql_acquire_timeouts_total" { pool: ["writer", "all"] };
    /// Connections made to PostgreSQL, and tries that failed. `standby` and `read_only`: the server was not the
    /// primary.
    SQL_CONNECTS = Counter "authfleet_sql_connects_total" { result: ["success", "failed", "standby", "read_only"] };
    /// 1 if PostgreSQL's server is the primary and takes writes, 0 if it's a standby or read-only, NaN if it doesn't
    /// say. Asked every 5 s. Always 1 for SQLite.
    USERS_PRIMARY = Gauge "authfleet_users_primary";
    /// Bytes of the users' database file.
    USERS_DATABASE_BYTES = Gauge "authfleet_users_database_bytes";
    /// Bytes of its write-ahead log.
    USERS_JOURNAL_BYTES = Gauge "authfleet_users_journal_bytes";
    /// Bytes of the file system that holds the users' database.
    USERS_VOLUME_BYTES = Gauge "authfleet_users_volume_bytes";
    /// Bytes of it that the server may still use.
    USERS_VOLUME_FREE_BYTES = Gauge "authfleet_users_volume_free_bytes";

    /// Spans handed to the trace exporter, by what became of them. Absent while tracing is off.
    TRACE_SPANS = Counter "authfleet_trace_spans_total" { result: ["exported", "failed", "dropped"] };

    /// Log lines that were lost because nobody read the log in time, or it was closed.
    LOG_LINES_LOST = Counter "authfleet_log_lines_lost_total" { kind: ["audit", "other", "request"] };
}
