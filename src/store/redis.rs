//! The connection to Redis: one multiplexed connection, owned by the pool and lent for as long as it works.
//!
//! A checkout from deadpool-redis costs an UNWATCH and a PING each time, which would triple the commands of a session
//! check. A multiplexed connection serves any number of requests at once, so it's checked out once, kept, and given
//! back only when it has failed.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use deadpool_redis::{Manager, Pool, PoolConfig, Runtime};
use parking_lot::RwLock;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError, Value};
use secrecy::{ExposeSecret as _, SecretString};

use super::StoreError;
use crate::metrics::{REDIS_CONNECTS, REDIS_ERRORS, REDIS_SECONDS};

/// How long a new connection may take, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
/// How long one reply may take. With a connection attempt before it, still below the two seconds in which the contract
/// promises an answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(1000);

/// A handle on Redis that reconnects by itself.
pub struct RedisHandle {
    pool: Pool,
    lease: RwLock<Option<Lease>>,
    /// Held while connecting: requests that come meanwhile share the attempt and its outcome.
    connecting: tokio::sync::Mutex<Option<(Instant, String)>>,
    generation: AtomicU64,
}

struct Lease {
    connection: deadpool_redis::Connection,
    generation: u64,
}

impl std::fmt::Debug for RedisHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisHandle").field("connected", &self.lease.read().is_some()).finish_non_exhaustive()
    }
}

impl RedisHandle {
    /// Prepares a handle; connects at the first use.
    ///
    /// # Errors
    ///
    /// When `url` can't be read as a Redis address.
    pub fn new(url: &SecretString) -> Result<Self, StoreError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        let manager = Manager::new_with_config(url.expose_secret(), config)?;
        let pool = Pool::builder(manager)
            .config(PoolConfig::new(4))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .recycle_timeout(Some(CONNECT_TIMEOUT))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| StoreError::new(error.to_string()))?;
        let (lease, connecting) = (RwLock::new(None), tokio::sync::Mutex::new(None));
        Ok(Self { pool, lease, connecting, generation: AtomicU64::new(0) })
    }

    /// Sends a pipeline in one round trip and returns its replies.
    ///
    /// # Errors
    ///
    /// When Redis can't be reached, doesn't answer in time, or refuses one of the commands.
    pub async fn pipeline(&self, operation: &'static str, pipeline: &redis::Pipeline) -> Result<Vec<Value>, StoreError> {
        self.timed(operation, async |connection: &mut MultiplexedConnection| {
            connection.send_packed_commands(pipeline, 0, pipeline.len()).await
        })
        .await
    }

    /// Runs a script by its hash, loading it if Redis doesn't know it.
    ///
    /// # Errors
    ///
    /// As [`RedisHandle::pipeline`].
    pub async fn script<T: redis::FromRedisValue>(
        &self,
        operation: &'static str,
        script: &redis::ScriptInvocation<'_>,
    ) -> Result<T, StoreError> {
        self.timed(operation, async |connection: &mut MultiplexedConnection| script.invoke_async(connection).await).await
    }

    /// Sends one command.
    ///
    /// # Errors
    ///
    /// As [`RedisHandle::pipeline`].
    pub async fn command<T: redis::FromRedisValue>(
        &self,
        operation: &'static str,
        command: &redis::Cmd,
    ) -> Result<T, StoreError> {
        self.timed(operation, async |connection: &mut MultiplexedConnection| command.query_async(connection).await).await
    }

    async fn timed<T>(
        &self,
        operation: &'static str,
        run: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, StoreError> {
        let begin = Instant::now();
        let result = match self.connection().await {
            Ok((mut connection, generation)) => run(&mut connection).await.map_err(|error| {
                self.judge(generation, &error);
                StoreError::from(error)
            }),
            Err(error) => Err(error),
        };
        metrics::histogram!(REDIS_SECONDS, "operation" => operation).record(begin.elapsed());
        if result.is_err() {
            metrics::counter!(REDIS_ERRORS, "operation" => operation).increment(1);
        }
        result
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), StoreError> {
        match self.lent() {
            Some(lent) => Ok(lent),
            None => self.connect().await,
        }
    }

    fn lent(&self) -> Option<(MultiplexedConnection, u64)> {
        self.lease.read().as_ref().map(|lease| ((*lease.connection).clone(), lease.generation))
    }

    #[cold]
    async fn connect(&self) -> Result<(MultiplexedConnection, u64), StoreError> {
        let arrived = Instant::now();
        let mut last_failure = self.connecting.lock().await;
        if let Some(lent) = self.lent() {
            return Ok(lent);
        }
        // An attempt that ended while this request waited speaks for it too; otherwise a queue of requests would each
        // spend the whole time-out, one after the other.
        if let Some((_, message)) = last_failure.as_ref().filter(|(at, _)| *at >= arrived) {
            return Err(StoreError::new(message.clone()));
        }
        match self.pool.get().await {
            Ok(connection) => {
                let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
                let lent = (*connection).clone();
                *self.lease.write() = Some(Lease { connection, generation });
                metrics::counter!(REDIS_CONNECTS).increment(1);
                if last_failure.take().is_some() || generation > 1 {
                    tracing::info!("redis answers again");
                }
                Ok((lent, generation))
            }
            Err(error) => {
                let message = format!("cannot connect to Redis: {error}");
                if last_failure.is_none() {
                    tracing::error!(%error, "redis does not answer");
                }
                *last_failure = Some((Instant::now(), message.clone()));
                Err(StoreError::new(message))
            }
        }
    }

    /// Ends the lease if its connection is of no more use. A command that Redis refused is no reason; silence is.
    fn judge(&self, generation: u64, error: &RedisError) {
        if !(error.is_io_error() || error.is_timeout() || error.is_connection_dropped() || error.is_unrecoverable_error())
        {
            return;
        }
        let mut lease = self.lease.write();
        if lease.as_ref().is_some_and(|lease| lease.generation == generation) {
            tracing::warn!(%error, "redis connection given up");
            let failed = lease.take().expect("just seen");
            // Taken out of the pool: it must not be handed out again.
            drop(deadpool_redis::Connection::take(failed.connection));
        }
    }
}
