//! Whether this replica should get requests: what `/readyz` answers and what the metrics say.
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
            users: Part::new(auth.users.kind(), users),
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
    fn new<E: Display>(store: &'static str, outcome: Result<Result<(), E>, Elapsed>) -> Self {
        let error = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {} ms", CHECK_TIMEOUT.as_millis())),
        };
        Self { store, status: if error.is_none() { "ok" } else { "failing" }, error, note: None }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.error.is_none()
    }
}
