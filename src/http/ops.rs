//! The ops listener: for orchestrators and Prometheus, never for the public.
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use metrics_exporter_prometheus::PrometheusHandle;

use super::App;
use super::error::Problem;
use crate::readiness::Readiness;

/// What the handlers of the ops listener can reach.
#[derive(Clone)]
pub(crate) struct Ops {
    pub(crate) app: Arc<App>,
    pub(crate) metrics: PrometheusHandle,
    /// Metrics of the process itself.
    pub(crate) process: metrics_process::Collector,
}

impl std::fmt::Debug for Ops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ops").finish_non_exhaustive()
    }
}

pub(crate) fn router(ops: Ops) -> Router {
    Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .with_state(ops)
}

async fn readyz(State(ops): State<Ops>) -> Response {
    let readiness = Readiness::of(&ops.app.auth, ops.app.drain.is_cancelled()).await;
    let code = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, [(CACHE_CONTROL, "no-store")], Json(readiness)).into_response()
}

async fn metrics(State(ops): State<Ops>) -> Response {
    ops.process.collect();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], ops.metrics.render()).into_response()
}
