//! Whether this replica should get requests: what `/readyz` answers and what the metrics say.
//!
//! A replica is ready as long as any shard of a Redis Cluster answers. If a shard is missing, its users get 503. All
//! replicas use the same shards, so if they reported that they aren't ready, the balancer would drop all of them and
//! everybody would get 503. Instead, the part is `degraded` and names the missing shards, which
//! `authfleet_redis_shards_missing` counts.
use std::fmt::Display;
use std::time::Duration;

use serde::Serialize;
use tokio::time::error::Elapsed;

use crate::auth::Auth;

/// A dependency that takes longer than this isn't ready.
const CHECK_TIMEOUT: Duration = Duration::from_millis(1800);

/// Whether this replica should get requests, and why not.
#[derive(Debug, Serialize)]
pub(crate) struct Readiness {
    status: &'static str,
    replica: String,
    version: &'static str,
    draining: bool,
    pub(crate) sessions: Part,
    pub(crate) users: Part,
}

/// A part that requests depend on.
#[derive(Debug, Serialize)]
pub(crate) struct Part {
    store: &'static str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
    /// The shards that don't answer although others do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) missing: Vec<String>,
}

impl Readiness {
    /// Asks all parts at the same time.
    pub(crate) async fn of(auth: &Auth, draining: bool) -> Self {
        let (sessions, users) = tokio::join!(
            tokio::time::timeout(CHECK_TIMEOUT, auth.sessions.ping()),
            tokio::time::timeout(CHECK_TIMEOUT, auth.users.ping()),
        );
        let mut readiness = Self {
            status: "not ready",
            replica: auth.replica.clone(),
            version: env!("CARGO_PKG_VERSION"),
            draining,
            sessions: Part {
                note: (!auth.sessions.is_shared())
                    .then_some("one replica only: other replicas don't know these sessions; set REDIS_URL"),
                ..Part::new(auth.sessions.kind(), sessions)
            },
            users: Part::new(auth.users.kind(), users.map(|answer| answer.map(|()| Vec::new()))),
        };
        if readiness.is_ready() {
            readiness.status = "ready";
        }
        readiness
    }

    /// Whether this replica should get requests.
    pub(crate) fn is_ready(&self) -> bool {
        !self.draining && self.sessions.is_ready() && self.users.is_ready()
    }
}

impl Part {
    fn new<E: Display>(store: &'static str, outcome: Result<Result<Vec<String>, E>, Elapsed>) -> Self {
        let (missing, error) = match outcome {
            Ok(Ok(missing)) => (missing, None),
            Ok(Err(error)) => (Vec::new(), Some(error.to_string())),
            Err(_) => (Vec::new(), Some(format!("no answer within {} ms", CHECK_TIMEOUT.as_millis()))),
        };
        let status = match &error {
            Some(_) => "failing",
            None if missing.is_empty() => "ok",
            None => "degraded",
        };
        Self { store, status, error, note: None, missing }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.error.is_none()
    }
}
