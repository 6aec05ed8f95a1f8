//! What the stores promise, how they fail, and which ones a configuration means.
mod redis;
pub(crate) mod sessions;
pub(crate) mod throttle;
pub(crate) mod users;

use std::error::Error;
use std::sync::Arc;

use ::redis::{ErrorKind, ServerErrorKind};
use tokio::sync::OnceCell;

pub(crate) use self::redis::{Operation, RedisHandle, ServerInfo, ServerState, Shard};
use self::sessions::{Limits, MemorySessions, RedisSessions, SessionStore};
use self::throttle::{MemoryCounters, ThrottleStore};
use self::users::{OpenError, UserStore};
use crate::clock::Clock;
use crate::config::{Config, DatabaseUrl};
use crate::telemetry::chain;

/// The stores that a configuration names, for the server and for the command line.
#[derive(Debug)]
pub(crate) struct Stores {
    /// Sessions: in Redis, or in this process's memory without `REDIS_URL`.
    pub sessions: SessionStore,
    /// Counts of failed attempts, beside the sessions.
    pub throttle: ThrottleStore,
    /// The limits of sessions.
    pub limits: Limits,
    users: OnceCell<UserStore>,
    database: DatabaseUrl,
    clock: Clock,
}

impl Stores {
    /// Reads addresses and connects to nothing: Redis is asked by the first operation, and the users' database is
    /// opened by [`Stores::users`], because not every command needs both.
    ///
    /// # Errors
    ///
    /// When a file with certificates for Redis can't be used.
    pub(crate) fn open(config: &Config, clock: Clock) -> Result<Self, StoreError> {
        let limits = Limits {
            idle: config.session.idle_ttl,
            max_age: config.session.max_age,
            per_user: config.session.per_user,
        };
        let (sessions, throttle) = match RedisHandle::new(&config.redis)? {
            Some(redis) => {
                let redis = Arc::new(redis);
                let sessions = RedisSessions::new(Arc::clone(&redis), clock.clone(), limits);
                (SessionStore::Redis(sessions), ThrottleStore::Redis(redis))
            }
            None => (
                SessionStore::Memory(MemorySessions::new(clock.clone(), limits)),
                ThrottleStore::Memory(MemoryCounters::new(clock.clone())),
            ),
        };
        Ok(Self { sessions, throttle, limits, users: OnceCell::new(), database: config.database.clone(), clock })
    }

    /// The users' store, opened at the first call that succeeds.
    ///
    /// # Errors
    ///
    /// [`OpenError`], with a message for the operator.
    pub(crate) async fn users(&self) -> Result<&UserStore, OpenError> {
        self.users.get_or_try_init(|| UserStore::open(&self.database, self.clock.clone())).await
    }
}

/// A store didn't answer, or refused. The request that needed it fails closed, with 503.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct StoreError {
    message: String,
    is_refusal: bool,
    /// Shared, because every request that fails while Redis is down gets the same one.
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl StoreError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_refusal: false, source: None }
    }

    /// Makes an error whose own message names its cause, because `/readyz` shows only the message.
    fn caused(what: &str, cause: impl Error + Send + Sync + 'static) -> Self {
        let message = format!("{what}: {}", chain(&cause));
        Self { source: Some(Arc::new(cause)), ..Self::new(message) }
    }

    /// Whether the store answered that this user may not run the command, or that it doesn't know the command.
    /// Repeating it won't help.
    pub(crate) fn is_refusal(&self) -> bool {
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
        Self { is_refusal, ..Self::caused("redis", error) }
    }
}
