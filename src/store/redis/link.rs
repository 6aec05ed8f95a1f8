//! One connection to one server, which is kept open and replaced when it breaks.
//!
//! The connection is multiplexed, so it serves any number of requests at once. No library's pool or connection manager
//! fits:
//!
//! - The connection must be kept. Each checkout from `deadpool-redis` costs an UNWATCH and a PING, which would triple
//!   the commands of a session check.
//! - A useless connection must be noticed. The client library's `ConnectionManager` keeps a connection after a
//!   time-out, and also one to a server that refuses to serve. Here a time-out, a broken stream or a refusal ends it.
//! - A Redis that is down must not be flooded. One request at a time tries to connect, at most every [`RETRY_AFTER`].
//!   The others fail at once.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use redis::{ErrorKind, RedisError, ServerErrorKind, Value};
use tokio_util::task::AbortOnDropHandle;

use super::access::{Access, CONNECT_TIMEOUT, Opened, open};
use super::sentinel::Sentinels;
use super::stream;
use super::wire::Wire;
use super::{Answer, Request};
use crate::config::RedisNode;
use crate::metrics::{REDIS_CONNECTS, REDIS_FAILOVERS};
use crate::store::StoreError;

/// While Redis is down, a connection is tried at most this often, by one request at a time. The others fail at once
/// instead of waiting for it.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// A connection to a Redis that refuses to serve is kept for this long after it was made. The next one may lead to the
/// same Redis, and without this pause each refusal would cost a connection.
const REFUSED_AFTER: Duration = Duration::from_secs(1);

/// Where a link leads.
#[derive(Debug)]
pub(super) enum Target {
    /// To this server.
    Node(RedisNode),
    /// To the server on this socket.
    Unix(std::path::PathBuf),
    /// To the server that the Sentinels name as the primary.
    Sentinel(Arc<Sentinels>),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(node) => node.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
            Self::Sentinel(sentinels) => sentinels.fmt(f),
        }
    }
}

/// A connection that is made when it is first needed, and replaced when it has become useless.
pub(super) struct Link {
    access: Arc<Access>,
    target: Arc<Target>,
    /// How long a reply may take.
    patience: Duration,
    lease: RwLock<Option<Lease>>,
    /// Held while connecting, so that one request does it for all.
    connecting: tokio::sync::Mutex<()>,
    /// Since when the server is down, and why. `None` while it isn't known to be down.
    away: RwLock<Option<(Instant, StoreError)>>,
    generation: AtomicU64,
    /// The primary that Sentinels named last.
    primary: RwLock<Option<RedisNode>>,
}

struct Lease {
    wire: Wire,
    driver: AbortOnDropHandle<()>,
    generation: u64,
    since: Instant,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("target", &self.target)
            .field("connected", &self.lease.read().is_some())
            .finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.lease.get_mut().take().is_some() {
            self.access.count(false);
        }
    }
}

impl Link {
    pub(super) fn new(access: Arc<Access>, target: Arc<Target>, patience: Duration) -> Self {
        Self {
            access,
            target,
            patience,
            lease: RwLock::new(None),
            connecting: tokio::sync::Mutex::default(),
            away: RwLock::new(None),
            generation: AtomicU64::new(0),
            primary: RwLock::new(None),
        }
    }

    /// Returns the replies to a pipeline, including errors. Loads a script that the server doesn't know.
    ///
    /// # Errors
    ///
    /// When the server can't be reached or doesn't answer in time.
    pub(super) async fn exchange(
        &self,
        pipeline: &redis::Pipeline,
        script: Option<&redis::ScriptInvocation<'_>>,
    ) -> Result<Vec<Value>, StoreError> {
        let (mut wire, generation) = self.connection().await?;
        let mut replies = wire.pipeline(pipeline).await;
        if let (Ok(received), Some(script)) = (&replies, script)
            && received.iter().any(is_unknown_script)
        {
            replies = match script.load_async(&mut wire).await {
                Ok(_) => wire.pipeline(pipeline).await,
                Err(error) => Err(error),
            };
        }
        self.look_at(generation, &replies);
        Ok(replies?)
    }

    /// As [`Link::exchange`], for a request that is packed by hand.
    pub(super) async fn ask(&self, request: &Request<'_>) -> Result<Answer, StoreError> {
        let (wire, generation) = self.connection().await?;
        let answer = match wire.ask(request.commands.len(), |to| request.pack(to)).await {
            Ok(replies) if !replies.has_error => return Ok(Answer::Bytes(replies.bytes)),
            Ok(replies) => replies.values(),
            Err(error) => Err(error),
        };
        self.look_at(generation, &answer);
        Ok(Answer::Values(answer?))
    }

    /// Gives the connection up if the answer shows that it has become useless.
    fn look_at(&self, generation: u64, answer: &Result<Vec<Value>, RedisError>) {
        let failed = match answer {
            // For the client library, an error is a reply like any other.
            Ok(replies) => replies.iter().find_map(|reply| match reply {
                Value::ServerError(error) => Some(RedisError::from(error.clone())),
                _ => None,
            }),
            Err(error) => Some(error.clone()),
        };
        if let Some(error) = failed {
            self.give_up_if_useless(generation, &error);
        }
    }

    async fn connection(&self) -> Result<(Wire, u64), StoreError> {
        match self.lent() {
            Some(lent) => Ok(lent),
            // Boxed: inline, its states would make the future of every request several times as large.
            None => Box::pin(self.connect()).await,
        }
    }

    fn lent(&self) -> Option<(Wire, u64)> {
        self.lease.read().as_ref().map(|lease| (lease.wire.clone(), lease.generation))
    }

    #[cold]
    async fn connect(&self) -> Result<(Wire, u64), StoreError> {
        let known = self.away.read().clone();
        let _turn = match known.clone() {
            None => self.connecting.lock().await,
            Some((since, why)) => match self.connecting.try_lock() {
                Ok(turn) if since.elapsed() >= RETRY_AFTER => turn,
                _ => return Err(why),
            },
        };
        // Another request tried to connect while this one waited for the lock. Its result holds for this one too.
        if let Some(lent) = self.lent() {
            return Ok(lent);
        }
        if known.is_none()
            && let Some((_, why)) = self.away.read().clone()
        {
            return Err(why);
        }
        let attempt = tokio::time::timeout(CONNECT_TIMEOUT, self.dial()).await.unwrap_or_else(|_| {
            let (target, limit) = (&self.target, CONNECT_TIMEOUT.as_millis());
            // A port without TLS reads the handshake as the beginning of a command, and waits for the rest.
            let hint = if self.access.dialer.has_tls() { "; does it speak TLS there?" } else { "" };
            Err(StoreError::new(format!("REDIS_URL: no connection to {target} within {limit} ms{hint}")))
        });
        match attempt {
            Ok((wire, driver)) => {
                let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
                let lent = wire.clone();
                self.access.count(true);
                *self.lease.write() = Some(Lease { wire, driver, generation, since: Instant::now() });
                metrics::counter!(REDIS_CONNECTS).increment(1);
                if self.away.write().take().is_some() || generation > 1 {
                    tracing::info!(server = %self.target, "redis answers again");
                }
                Ok((lent, generation))
            }
            Err(why) => {
                if self.away.write().replace((Instant::now(), why.clone())).is_none() {
                    tracing::error!(error = %why, "redis does not answer");
                }
                Err(why)
            }
        }
    }

    async fn dial(&self) -> Result<Opened, StoreError> {
        match &*self.target {
            Target::Node(node) => self.access.open(node, self.patience).await,
            Target::Unix(path) => {
                open(stream::unix(path).await?, &self.access.info, self.patience, &path.display()).await
            }
            Target::Sentinel(sentinels) => {
                let node = sentinels.primary(&self.access.dialer).await?;
                let mut opened = self.access.open(&node, self.patience).await?;
                // Sentinels learn of a change later than the servers, and a Sentinel that is cut off doesn't learn of
                // it at all.
                let role: Vec<Value> = redis::cmd("ROLE").query_async(&mut opened.0).await?;
                if !matches!(role.first(), Some(Value::BulkString(role)) if role == b"master") {
                    return Err(StoreError::new(format!("REDIS_URL: {node} is not a primary, as Sentinels say it is")));
                }
                let before = self.primary.write().replace(node.clone());
                if let Some(before) = before.filter(|before| *before != node) {
                    metrics::counter!(REDIS_FAILOVERS).increment(1);
                    tracing::warn!(%before, now = %node, "redis has another primary");
                }
                Ok(opened)
            }
        }
    }

    /// Records the primary that the Sentinels name. A connection to another server is given up at once.
    pub(super) fn primary_is(&self, node: &RedisNode) {
        if self.primary.read().as_ref().is_none_or(|primary| primary == node) {
            return;
        }
        // The next request may connect at once, even if the last attempt failed.
        *self.away.write() = None;
        let lease = self.lease.write().take();
        if let Some(lease) = lease {
            tracing::warn!(primary = %node, "redis connection given up: another server has become the primary");
            self.end(lease);
        }
    }

    /// Ends the lease if its connection has become useless, because Redis is silent or answers but doesn't serve. A
    /// command that Redis refuses for another reason leaves the connection alone.
    fn give_up_if_useless(&self, generation: u64, error: &RedisError) {
        let is_broken = error.is_io_error()
            || error.is_timeout()
            || error.is_connection_dropped()
            || error.is_unrecoverable_error();
        if !(is_broken || refuses_service(error)) {
            return;
        }
        let is_due =
            |lease: &Lease| lease.generation == generation && (is_broken || lease.since.elapsed() >= REFUSED_AFTER);
        let failed = {
            let mut lease = self.lease.write();
            if lease.as_ref().is_some_and(is_due) { lease.take() } else { None }
        };
        if let Some(failed) = failed {
            tracing::warn!(%error, server = %self.target, "redis connection given up");
            self.end(failed);
        }
    }

    /// Lets requests in progress on the connection get their answers, within a limit, since a silent server would
    /// otherwise keep it open.
    fn end(&self, lease: Lease) {
        self.access.count(false);
        let patience = self.patience;
        tokio::spawn(async move {
            tokio::time::sleep(patience).await;
            drop(lease.driver);
        });
    }
}

fn is_unknown_script(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::NoScript))
}

/// Whether the server can't serve because it became a replica, lost its primary or its replicas, or is still loading
/// its data. Another server may have taken over its address, so a new connection helps, and waiting doesn't.
fn refuses_service(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly};
    match error.kind() {
        ErrorKind::Server(BusyLoading | ClusterDown | MasterDown | ReadOnly) => true,
        // The client library has no variant for this error.
        _ => error.code() == Some("NOREPLICAS"),
    }
}
