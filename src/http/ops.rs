//! The ops listener: for orchestrators and Prometheus, never for the public.
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;

use super::App;
use super::error::Problem;

/// A dependency that takes longer than this isn't ready.
const CHECK_TIMEOUT: Duration = Duration::from_millis(1800);

/// What the ops routes can reach.
#[derive(Clone)]
pub struct Ops {
    /// The application.
    pub app: Arc<App>,
    /// The metrics recorder.
    pub metrics: PrometheusHandle,
    /// Metrics of the process itself.
    pub process: metrics_process::Collector,
}

impl std::fmt::Debug for Ops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ops").finish_non_exhaustive()
    }
}

/// `/livez`, `/readyz`, `/metrics`.
pub fn router(ops: Ops) -> Router {
    Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .with_state(ops)
}

/// Whether this replica should get requests, and why not.
#[derive(Debug, Serialize)]
struct Readiness {
    status: &'static str,
    replica: String,
    version: &'static str,
    draining: bool,
    sessions: Part,
    users: Part,
}

#[derive(Debug, Serialize)]
struct Part {
    store: &'static str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

async fn readyz(State(ops): State<Ops>) -> Response {
    let auth = &ops.app.auth;
    let (sessions, users) = tokio::join!(
        tokio::time::timeout(CHECK_TIMEOUT, auth.sessions.ping()),
        tokio::time::timeout(CHECK_TIMEOUT, auth.users.ping()),
    );
    let in_memory = auth.sessions.kind() == "memory";
    let body = Readiness {
        status: "",
        replica: auth.replica.clone(),
        version: env!("CARGO_PKG_VERSION"),
        draining: ops.app.drain.is_cancelled(),
        sessions: Part {
            note: in_memory.then_some("one replica only: other replicas don't know these sessions; set REDIS_URL"),
            ..part(auth.sessions.kind(), sessions)
        },
        users: part("sqlite", users),
    };
    let is_ready = !body.draining && body.sessions.error.is_none() && body.users.error.is_none();
    let (code, status) =
        if is_ready { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") };
    (code, [(CACHE_CONTROL, "no-store")], Json(Readiness { status, ..body })).into_response()
}

fn part<E: std::fmt::Display>(
    store: &'static str,
    outcome: Result<Result<(), E>, tokio::time::error::Elapsed>,
) -> Part {
    let error = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {} ms", CHECK_TIMEOUT.as_millis())),
    };
    Part { store, status: if error.is_none() { "ok" } else { "failing" }, error, note: None }
}

async fn metrics(State(ops): State<Ops>) -> Response {
    ops.process.collect();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], ops.metrics.render()).into_response()
}
