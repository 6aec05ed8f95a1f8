//! Flows that go on although their client has gone.
//!
//! A client that hangs up drops the future of its request. Whatever hashes must not end with it: a guess is charged and
//! recorded once its hash has begun, or guesses that hang up would be free, and half a change of password would end the
//! sessions and keep the password. So each of these flows runs in a task of its own, and a server that ends waits for
//! them, because no connection does.
use tokio_util::task::TaskTracker;

use super::AuthError;
use crate::telemetry::traces::continued;

/// The flows under way.
#[derive(Debug, Default)]
pub(crate) struct Flows(TaskTracker);

impl Flows {
    /// Runs a flow to its end, also if the future that this returns is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        flow: impl Future<Output = Result<T, AuthError>> + Send + 'static,
    ) -> Result<T, AuthError> {
        self.0.spawn(continued(flow)).await.unwrap_or_else(|error| Err(AuthError::Internal(error.into())))
    }

    /// Waits for those under way. To be called when no request can begin another one.
    pub(crate) async fn finished(&self) {
        self.0.close();
        self.0.wait().await;
    }

    /// How many are under way.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}
