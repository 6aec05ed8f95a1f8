//! Every metric: its name, help, unit and buckets. Dashboards and alerts are checked against this file.

/// Seconds for requests and round trips: 250 µs to 10 s.
pub const LATENCY_BUCKETS: &[f64] =
    &[0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Seconds for password hashing and its queue: 5 ms to 10 s.
pub const HASH_BUCKETS: &[f64] = &[0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 10.0];

/// HTTP requests finished. Labels: `method`, `route`, `status`.
pub const HTTP_REQUESTS: &str = "authfleet_http_requests_total";
/// HTTP requests being answered now.
pub const HTTP_IN_FLIGHT: &str = "authfleet_http_requests_in_flight";
/// Seconds to answer. Labels: `method`, `route`.
pub const HTTP_SECONDS: &str = "authfleet_http_request_duration_seconds";
/// Session checks. Label: `result` (`valid`, `no_cookie`, `bad_signature`, `expired`, `unknown`, `error`).
pub const SESSION_CHECKS: &str = "authfleet_session_checks_total";
/// Sessions created.
pub const SESSIONS_CREATED: &str = "authfleet_sessions_created_total";
/// Sessions ended. Label: `reason` (`logout`, `replaced`, `evicted`, `revoked`, `password_changed`, `account_deleted`).
pub const SESSIONS_ENDED: &str = "authfleet_sessions_ended_total";
/// Logins. Label: `result` (`success`, `invalid_credentials`, `throttled`, `overloaded`, `unavailable`, `internal`).
pub const LOGINS: &str = "authfleet_logins_total";
/// Registrations. Label: `result` (`success`, `conflict`, `invalid`, `throttled`, `overloaded`, `unavailable`,
/// `internal`).
pub const REGISTRATIONS: &str = "authfleet_registrations_total";
/// Seconds that one password hash took on its thread. Label: `operation` (`hash`, `verify`).
pub const HASH_SECONDS: &str = "authfleet_hash_duration_seconds";
/// Seconds that hashing work waited for a thread.
pub const HASH_QUEUE_SECONDS: &str = "authfleet_hash_queue_duration_seconds";
/// Hashing jobs waiting for a thread.
pub const HASH_QUEUED: &str = "authfleet_hash_queued";
/// Hashing jobs refused because the queue was full.
pub const HASH_SHED: &str = "authfleet_hash_shed_total";
/// Hashing jobs dropped before they began because nobody waited for them any more.
pub const HASH_ABANDONED: &str = "authfleet_hash_abandoned_total";
/// Seconds per Redis round trip. Label: `operation`.
pub const REDIS_SECONDS: &str = "authfleet_redis_duration_seconds";
/// Redis round trips that failed. Label: `operation`.
pub const REDIS_ERRORS: &str = "authfleet_redis_errors_total";
/// Connections opened to Redis.
pub const REDIS_CONNECTS: &str = "authfleet_redis_connects_total";
/// Seconds per SQL operation, waiting for a connection included. Label: `operation`.
pub const SQL_SECONDS: &str = "authfleet_sql_duration_seconds";
/// SQL operations that failed. Label: `operation`.
pub const SQL_ERRORS: &str = "authfleet_sql_errors_total";
/// 1, with the build's facts as labels: `version`, `replica`.
pub const BUILD_INFO: &str = "authfleet_build_info";
