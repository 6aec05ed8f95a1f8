//! What the stores promise, and how they fail.
mod redis;
pub mod sessions;
pub mod throttle;
pub mod users;

use ::redis::{ErrorKind, ServerErrorKind};

pub use self::redis::{Operation, RedisHandle, ServerState};

/// A store did not answer, or refused: the request that needed it fails closed, with 503.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    message: String,
    is_refusal: bool,
}

impl StoreError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_refusal: false }
    }

    /// Whether the store answered that this user may not ask that, or that it knows no such command: asking again won't
    /// help.
    pub fn is_refusal(&self) -> bool {
        self.is_refusal
    }
}

impl From<::redis::RedisError> for StoreError {
    fn from(error: ::redis::RedisError) -> Self {
        let is_refusal = match error.kind() {
            ErrorKind::Server(ServerErrorKind::NoPerm) => true,
            ErrorKind::Server(ServerErrorKind::ResponseError) => {
                error.detail().is_some_and(|detail| detail.starts_with("unknown command"))
            }
            _ => false,
        };
        Self { message: format!("redis: {error}"), is_refusal }
    }
}
