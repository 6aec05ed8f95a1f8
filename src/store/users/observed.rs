//! Bounds, counts and traces each operation on users, with either engine.
use std::future::Future;
use std::time::{Duration, Instant};

use tracing::field;

use super::UserStoreError;
use crate::metrics::{SQL_ACQUIRE_SECONDS, SQL_ACQUIRE_TIMEOUTS, SQL_ERRORS, SQL_SECONDS};
use crate::telemetry::traces;

/// Waits for a connection of a pool, and counts how long that took, and whether it took too long.
pub(super) async fn acquired<T, E>(
    pool: &'static str,
    waiting: impl Future<Output = Result<T, E>>,
    is_late: impl FnOnce(&E) -> bool,
) -> Result<T, E> {
    let started = Instant::now();
    let result = waiting.await;
    metrics::histogram!(SQL_ACQUIRE_SECONDS, "pool" => pool).record(started.elapsed());
    if result.as_ref().err().is_some_and(is_late) {
        metrics::counter!(SQL_ACQUIRE_TIMEOUTS, "pool" => pool).increment(1);
    }
    result
}

/// The time limit of one operation, including the wait for a connection. The contract promises a 503 within 2 s.
pub(super) const DEADLINE: Duration = Duration::from_millis(1500);

/// Limits `work` to `limit`, counts it, and makes a span of it. `system` is OpenTelemetry's name of the database.
pub(super) async fn observed<T>(
    system: &'static str,
    operation: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, UserStoreError>>,
) -> Result<T, UserStoreError> {
    let span = traces::span!(
        "sql",
        otel.name = format!("{operation} users"),
        otel.kind = "client",
        otel.status_code = field::Empty,
        error.type = field::Empty,
        db.system.name = system,
        db.collection.name = "users",
        db.query.summary = operation,
    );
    let started = Instant::now();
    let result = tokio::time::timeout(limit, work).await.unwrap_or_else(|late| Err(UserStoreError::unavailable(late)));
    metrics::histogram!(SQL_SECONDS, "operation" => operation).record(started.elapsed());
    // The first success registers the counter, so that the first failure is visible as an increase.
    let errors = metrics::counter!(SQL_ERRORS, "operation" => operation);
    if matches!(result, Err(UserStoreError::Unavailable(_))) {
        errors.increment(1);
        traces::failed(&span, "unavailable");
    }
    result
}
