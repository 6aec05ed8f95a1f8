//! The connection to Redis. There is one, which all requests share: it is multiplexed, so it serves any number of them at
//! once.
//!
//! `deadpool-redis` makes it: address, TCP or Unix socket, handshake, database, and the time-outs of each step. Its pool
//! of one counts connections, so that there is never a second one beside the first.
//!
//! What it can't do is written here:
//!
//! - Keeping the connection. Each checkout from a pool costs an UNWATCH and a PING, which would triple the commands of a
//!   session check. So it is checked out once, kept, and cloned for each request.
//! - Noticing that it is useless. A pool tests a connection when it is given back; this one never is. A time-out, a broken
//!   stream, or a Redis that refuses to serve ends it, and it is taken out of the pool.
//! - Sparing a Redis that is away. One request at a time tries to connect, at most every [`RETRY_AFTER`]; the others fail
//!   at once.
mod server;

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use deadpool_redis::{Manager, Pool, PoolConfig, Runtime};
use metrics::{Counter, Histogram};
use parking_lot::RwLock;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError, ServerErrorKind, Value};
use secrecy::{ExposeSecret as _, SecretString};
use tracing::field;

pub use self::server::{ServerInfo, ServerState};
use super::StoreError;
use crate::metrics::{REDIS_CONNECTED, REDIS_CONNECTS};
use crate::telemetry::traces;

/// How long a new connection may take, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
/// How long one reply may take. With a connection attempt before it, still below the two seconds in which the contract
/// promises an answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(900);
/// While Redis is away, connecting is tried this often at most, by one request at a time; the others fail at once
/// instead of queueing up behind it.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// A connection to a Redis that refuses to serve is given up this long after it was made, and no sooner: the next one may
/// lead to the same Redis, and then each refusal would cost a connection.
const REFUSED_AFTER: Duration = Duration::from_secs(1);

/// A kind of round trip, with its metrics: looked up once, not per request.
pub struct Operation {
    name: &'static str,
    handles: LazyLock<(Histogram, Counter)>,
}

impl Operation {
    /// For `static` items, by way of `operation!`.
    pub const fn new(name: &'static str, handles: fn() -> (Histogram, Counter)) -> Self {
        Self { name, handles: LazyLock::new(handles) }
    }
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Operation").field(&self.name).finish()
    }
}

macro_rules! operation {
    ($name:literal) => {
        $crate::store::redis::Operation::new($name, || {
            (
                ::metrics::histogram!($crate::metrics::REDIS_SECONDS, "operation" => $name),
                ::metrics::counter!($crate::metrics::REDIS_ERRORS, "operation" => $name),
            )
        })
    };
}
pub(crate) use operation;

/// A handle on Redis that reconnects by itself.
pub struct RedisHandle {
    pool: Pool,
    lease: RwLock<Option<Lease>>,
    /// Held while connecting, so that one request does it for all.
    connecting: tokio::sync::Mutex<()>,
    /// Since when Redis is away, and why; `None` as long as it isn't known to be.
    away: RwLock<Option<(Instant, StoreError)>>,
    generation: AtomicU64,
}

struct Lease {
    connection: deadpool_redis::Connection,
    generation: u64,
    since: Instant,
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
            .config(PoolConfig::new(1))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .recycle_timeout(Some(CONNECT_TIMEOUT))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| StoreError::caused("redis", error))?;
        metrics::gauge!(REDIS_CONNECTED).set(0);
        Ok(Self {
            pool,
            lease: RwLock::new(None),
            connecting: tokio::sync::Mutex::default(),
            away: RwLock::new(None),
            generation: AtomicU64::new(0),
        })
    }

    /// Sends a pipeline in one round trip and returns its replies.
    ///
    /// # Errors
    ///
    /// When Redis can't be reached, doesn't answer in time, or refuses one of the commands.
    pub async fn pipeline(&self, operation: &Operation, pipeline: &redis::Pipeline) -> Result<Vec<Value>, StoreError> {
        let batch = Some(pipeline.len());
        self.timed(operation, "PIPELINE", batch, async |connection: &mut MultiplexedConnection| {
            let replies = connection.send_packed_commands(pipeline, 0, pipeline.len()).await?;
            // To the client library an error is a reply like others.
            let refused = replies.iter().find_map(|reply| match reply {
                Value::ServerError(error) => Some(error.clone()),
                _ => None,
            });
            refused.map_or(Ok(replies), |error| Err(error.into()))
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
        operation: &Operation,
        script: &redis::ScriptInvocation<'_>,
    ) -> Result<T, StoreError> {
        self.timed(operation, "EVALSHA", None, async |connection: &mut MultiplexedConnection| {
            script.invoke_async(connection).await
        })
        .await
    }

    /// Sends one command.
    ///
    /// # Errors
    ///
    /// As [`RedisHandle::pipeline`].
    pub async fn command<T: redis::FromRedisValue>(
        &self,
        operation: &Operation,
        command: &redis::Cmd,
    ) -> Result<T, StoreError> {
        let name = match command.args_iter().next() {
            Some(redis::Arg::Simple(name)) => std::str::from_utf8(name).unwrap_or_default(),
            _ => "",
        };
        self.timed(operation, name, None, async |connection: &mut MultiplexedConnection| {
            command.query_async(connection).await
        })
        .await
    }

    async fn timed<T>(
        &self,
        operation: &Operation,
        command: &str,
        batch: Option<usize>,
        run: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, StoreError> {
        // Never a key or a value: they name users and sessions.
        let span = traces::span!(
            "redis",
            otel.name = format!("{command} {}", operation.name),
            otel.kind = "client",
            otel.status_code = field::Empty,
            error.type = field::Empty,
            db.system.name = "redis",
            db.operation.name = command,
            db.operation.batch.size = batch,
            db.query.summary = operation.name,
        );
        let begin = Instant::now();
        let result = match self.connection().await {
            Ok((mut connection, generation)) => run(&mut connection).await.map_err(|error| {
                self.give_up_if_useless(generation, &error);
                StoreError::from(error)
            }),
            Err(error) => Err(error),
        };
        let (seconds, errors) = &*operation.handles;
        seconds.record(begin.elapsed());
        if result.is_err() {
            errors.increment(1);
            traces::failed(&span, "redis");
        }
        result
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), StoreError> {
        match self.lent() {
            Some(lent) => Ok(lent),
            // Boxed: inline, its states would make the future of every request several times as large.
            None => Box::pin(self.connect()).await,
        }
    }

    fn lent(&self) -> Option<(MultiplexedConnection, u64)> {
        self.lease.read().as_ref().map(|lease| ((*lease.connection).clone(), lease.generation))
    }

    #[cold]
    async fn connect(&self) -> Result<(MultiplexedConnection, u64), StoreError> {
        let known = self.away.read().clone();
        let _turn = match known.clone() {
            None => self.connecting.lock().await,
            Some((since, why)) => match self.connecting.try_lock() {
                Ok(turn) if since.elapsed() >= RETRY_AFTER => turn,
                _ => return Err(why),
            },
        };
        // What another request's attempt came to while this one waited speaks for this one too.
        if let Some(lent) = self.lent() {
            return Ok(lent);
        }
        if known.is_none()
            && let Some((_, why)) = self.away.read().clone()
        {
            return Err(why);
        }
        match self.pool.get().await {
            Ok(connection) => {
                let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
                let lent = (*connection).clone();
                {
                    let mut lease = self.lease.write();
                    *lease = Some(Lease { connection, generation, since: Instant::now() });
                    metrics::gauge!(REDIS_CONNECTED).set(1);
                }
                metrics::counter!(REDIS_CONNECTS).increment(1);
                if self.away.write().take().is_some() || generation > 1 {
                    tracing::info!("redis answers again");
                }
                Ok((lent, generation))
            }
            Err(error) => {
                let why = StoreError::caused("cannot connect to Redis", error);
                if self.away.write().replace((Instant::now(), why.clone())).is_none() {
                    tracing::error!(error = %why, "redis does not answer");
                }
                Err(why)
            }
        }
    }

    /// Ends the lease if its connection is of no more use: Redis is silent on it, or answers but doesn't serve. A command
    /// that was refused for what it is, is no reason.
    fn give_up_if_useless(&self, generation: u64, error: &RedisError) {
        let is_broken = error.is_io_error()
            || error.is_timeout()
            || error.is_connection_dropped()
            || error.is_unrecoverable_error();
        if !(is_broken || refuses_service(error)) {
            return;
        }
        let mut lease = self.lease.write();
        let is_due =
            |lease: &Lease| lease.generation == generation && (is_broken || lease.since.elapsed() >= REFUSED_AFTER);
        if lease.as_ref().is_some_and(is_due) {
            tracing::warn!(%error, "redis connection given up");
            let failed = lease.take().expect("just seen");
            metrics::gauge!(REDIS_CONNECTED).set(0);
            // Taken out of the pool: it must not be handed out again.
            drop(deadpool_redis::Connection::take(failed.connection));
        }
    }
}

/// Whether the server at the other end is not the one to ask: it became a replica, lost its primary or its replicas, or is
/// still reading its data. Another one may be at its address by now, so what helps is a new connection, not a wait.
fn refuses_service(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly};
    match error.kind() {
        ErrorKind::Server(BusyLoading | ClusterDown | MasterDown | ReadOnly) => true,
        // As the client library has no name for it.
        _ => error.code() == Some("NOREPLICAS"),
    }
}
