//! authfleet: a session-authentication server that runs as a fleet.
//!
//! A replica keeps nothing about a user or a session: sessions are in Redis and users in SQL, so any replica can answer
//! any request. Each module uses only those below it:
//!
//! ```text
//! cli        the command line: serve, migrate, healthcheck, openapi, config, doctor, user, session, rules, import
//! server     listeners, accept loops, drain
//! gauges     gauges updated every few seconds: health of the parts, clocks, memory, sizes, sessions
//! http       every route, the layer order, error envelope, request and response types
//! readiness  whether this replica should get requests, as `/readyz` answers
//! auth       flows without HTTP types: register, sign in, check, sign out; passwords, tokens, access rules
//! store      users (SQL) and sessions (Redis, memory), and what each store promises
//! telemetry  log output, traces and the metrics recorder
//! config     every variable, its default and its checks
//! metrics    every metric name, its help and its buckets
//! clock      the time source that tests can set
//! ```
//!
//! Only two modules are public: the binary uses `cli`, and the integration tests use `metrics`, to compare the
//! catalogue with what a fleet exposes.
#[cfg(test)]
mod architecture;
pub(crate) mod auth;
pub mod cli;
pub(crate) mod clock;
pub(crate) mod config;
pub(crate) mod gauges;
pub(crate) mod http;
pub mod metrics;
pub(crate) mod readiness;
pub(crate) mod server;
pub(crate) mod store;
pub(crate) mod telemetry;
