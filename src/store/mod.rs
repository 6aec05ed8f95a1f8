//! What the stores promise, and how they fail.
mod redis;
pub mod sessions;
pub mod throttle;
pub mod users;

pub use self::redis::{Operation, RedisHandle};

/// A store did not answer, or refused: the request that needed it fails closed, with 503.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    message: String,
}

impl StoreError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

impl From<::redis::RedisError> for StoreError {
    fn from(error: ::redis::RedisError) -> Self {
        Self::new(format!("redis: {error}"))
    }
}
