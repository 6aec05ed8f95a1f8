//! Redis in each of its forms: one server, a primary watched by Sentinels, or a cluster, each over TCP or TLS. Nothing
//! above this module knows which one is in use.
//!
//! | file | what it knows |
//! | --- | --- |
//! | `stream.rs` | TCP, TLS, Unix sockets |
//! | `access.rs` | what all connections have in common: credentials, TLS, time limits |
//! | `frames.rs` | the protocol: packing commands, finding the end of replies |
//! | `wire.rs` | one connection, over which any number of requests go at once |
//! | `batches.rs` | how requests that are ready at the same time share a write |
//! | `link.rs` | one connection to one server, which is replaced when it breaks |
//! | `sentinel.rs` | which server is the primary |
//! | `primary.rs` | a server that takes writes, with its two links |
//! | `cluster.rs`, `map.rs`, `slots.rs` | which server has which keys, and what to do when that changes |
//! | `server.rs` | what servers report about themselves |
mod access;
mod batches;
mod cluster;
mod frames;
mod link;
mod map;
mod primary;
mod sentinel;
mod server;
mod slots;
mod stream;
mod wire;

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::join_all;
use metrics::{Counter, Histogram};
use redis::{RedisError, Value};
use tokio_util::task::AbortOnDropHandle;
use tracing::field;

use self::access::Access;
use self::cluster::Cluster;
pub(crate) use self::frames::{Reader, Unexpected};
use self::link::Target;
use self::primary::{CONFIRMATION, Primary};
use self::sentinel::Sentinels;
pub(crate) use self::server::{ServerInfo, ServerState};
use self::stream::Dialer;
use super::StoreError;
use crate::clock::millis;
use crate::config::{RedisConfig, RedisTopology};
use crate::telemetry::traces;

/// A kind of round trip, with its metrics, which are looked up once rather than for each request.
pub(crate) struct Operation {
    name: &'static str,
    handles: LazyLock<(Histogram, Counter)>,
}

impl Operation {
    /// Called by `operation!`, for `static` items.
    pub(crate) const fn new(name: &'static str, handles: fn() -> (Histogram, Counter)) -> Self {
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
#[derive(Debug)]
pub(crate) struct RedisHandle {
    servers: Servers,
    /// How many replicas confirm what [`RedisHandle::confirmed`] writes.
    replicas: u32,
    sentinels: Option<(Arc<Sentinels>, Arc<Access>)>,
    /// Listens to Sentinels until the handle is dropped.
    _watch: Option<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
enum Servers {
    One(Arc<Primary>),
    Cluster(Arc<Cluster>),
}

/// A primary: one of a cluster, or the only one.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    primary: Arc<Primary>,
    /// The hash tag (the text between braces) of keys that this shard holds.
    tag: String,
}

/// The server's address.
impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.primary.fmt(f)
    }
}

impl Shard {
    /// The hash tag (the text between braces) of keys that this shard holds.
    pub(crate) fn tag(&self) -> &str {
        &self.tag
    }
}

/// Commands that all have the same key, packed without the client library because they are sent so often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// Decides which server of a cluster gets the commands.
    pub(crate) key: &'a [u8],
    /// Each command's words.
    pub(crate) commands: &'a [&'a [&'a [u8]]],
}

/// The replies to a [`Request`], none of which is an error.
#[derive(Debug)]
pub(crate) enum Answer {
    /// As they came, for [`Reader`].
    Bytes(Bytes),
    /// Those of commands that were sent again, because a cluster's slots moved.
    Values(Vec<Value>),
}

impl Request<'_> {
    fn pack(&self, to: &mut Vec<u8>) {
        self.commands.iter().for_each(|command| frames::pack(command, to));
    }

    fn pipeline(&self) -> redis::Pipeline {
        let mut pipeline = redis::Pipeline::with_capacity(self.commands.len());
        for command in self.commands {
            let mut packed = redis::Cmd::new();
            packed.arg(command);
            pipeline.add_command(packed);
        }
        pipeline
    }
}

impl RedisHandle {
    /// Prepares a handle. It connects when it is first used. `None` without `REDIS_URL`.
    ///
    /// # Errors
    ///
    /// When a file with certificates can't be used. The message names its variable.
    pub(crate) fn new(config: &RedisConfig) -> Result<Option<Self>, StoreError> {
        let Some(url) = &config.url else { return Ok(None) };
        let access = Arc::new(Access::new(url, Dialer::new(config)?));
        let confirms = config.revocation_replicas > 0;
        let one = |target| Arc::new(Primary::new(&access, target, confirms));
        let (mut watch, mut asked) = (None, None);
        let servers = match &url.topology {
            RedisTopology::Single(node) => Servers::One(one(Target::Node(node.clone()))),
            RedisTopology::Unix(path) => Servers::One(one(Target::Unix(path.clone()))),
            RedisTopology::Sentinel { nodes, primary } => {
                let sentinels = Arc::new(Sentinels::new(config, nodes, primary));
                asked = Some((Arc::clone(&sentinels), Arc::clone(&access)));
                let primary = one(Target::Sentinel(Arc::clone(&sentinels)));
                // Without a runtime no task can listen to the Sentinels. The next command finds the primary instead.
                if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    let watched = Arc::clone(&primary);
                    let watching = sentinels.watch(Arc::clone(&access), move |node| watched.is_at(node));
                    watch = Some(AbortOnDropHandle::new(runtime.spawn(watching)));
                }
                Servers::One(primary)
            }
            RedisTopology::Cluster(nodes) => Servers::Cluster(Arc::new(Cluster::new(access, nodes, confirms))),
        };
        Ok(Some(Self { servers, replicas: config.revocation_replicas, sentinels: asked, _watch: watch }))
    }

    /// Sends a pipeline and returns its replies. This takes one round trip if one server has all the keys. Otherwise
    /// each server gets its part, all at the same time.
    ///
    /// # Errors
    ///
    /// When Redis can't be reached, doesn't answer in time, or refuses one of the commands.
    pub(crate) async fn pipeline(
        &self,
        operation: &Operation,
        pipeline: &redis::Pipeline,
    ) -> Result<Vec<Value>, StoreError> {
        timed(operation, "PIPELINE", Some(pipeline.len()), self.run(pipeline, None, false)).await
    }

    /// As [`RedisHandle::pipeline`], for what must cost as little as possible.
    ///
    /// # Errors
    ///
    /// As [`RedisHandle::pipeline`].
    pub(crate) async fn ask(&self, operation: &Operation, request: &Request<'_>) -> Result<Answer, StoreError> {
        let trip = async {
            let answer = match &self.servers {
                Servers::One(primary) => primary.ask(request).await,
                Servers::Cluster(cluster) => cluster.ask(request).await,
            };
            Ok(match answer? {
                Answer::Values(replies) => Answer::Values(sound(replies)?),
                bytes @ Answer::Bytes(_) => bytes,
            })
        };
        timed(operation, "PIPELINE", Some(request.commands.len()), trip).await
    }

    /// Runs a script by its hash, loading it where Redis doesn't know it.
    ///
    /// # Errors
    ///
    /// As [`RedisHandle::pipeline`].
    pub(crate) async fn script<T: redis::FromRedisValue>(
        &self,
        operation: &Operation,
        script: &redis::ScriptInvocation<'_>,
    ) -> Result<T, StoreError> {
        let mut pipeline = redis::Pipeline::with_capacity(1);
        pipeline.invoke_script(script);
        first(timed(operation, "EVALSHA", None, self.run(&pipeline, Some(script), false)).await?)
    }

    /// Whether replicas confirm what [`RedisHandle::confirmed`] writes.
    pub(crate) fn confirms(&self) -> bool {
        self.replicas > 0
    }

    /// Does what [`RedisHandle::script`] does, then waits until enough replicas have what the script wrote. The second
    /// part of the result is an error if they don't have it in time. The script must write something, because `WAIT` is
    /// about the last write on its connection.
    ///
    /// # Errors
    ///
    /// As [`RedisHandle::pipeline`].
    pub(crate) async fn confirmed<T: redis::FromRedisValue>(
        &self,
        operation: &Operation,
        script: &redis::ScriptInvocation<'_>,
    ) -> Result<(T, Result<(), StoreError>), StoreError> {
        if !self.confirms() {
            return Ok((self.script(operation, script).await?, Ok(())));
        }
        let mut pipeline = redis::Pipeline::with_capacity(2);
        pipeline.invoke_script(script).cmd("WAIT").arg(self.replicas).arg(millis(CONFIRMATION));
        let trip = async {
            let mut replies = self.run(&pipeline, Some(script), true).await?.into_iter();
            let answer = first(vec![replies.next().unwrap_or(Value::Nil)])?;
            let confirmed: u32 = first(replies.collect())?;
            let confirmation = if confirmed >= self.replicas {
                Ok(())
            } else {
                let (wanted, limit) = (self.replicas, CONFIRMATION.as_millis());
                Err(StoreError::new(format!(
                    "redis: {confirmed} of {wanted} replicas confirmed it within {limit} ms (REDIS_REVOCATION_REPLICAS)"
                )))
            };
            Ok((answer, confirmation))
        };
        timed(operation, "EVALSHA", None, trip).await
    }

    /// Sends one command. A command without a key goes to any of the servers.
    ///
    /// # Errors
    ///
    /// As [`RedisHandle::pipeline`].
    pub(crate) async fn command<T: redis::FromRedisValue>(
        &self,
        operation: &Operation,
        command: &redis::Cmd,
    ) -> Result<T, StoreError> {
        let mut pipeline = redis::Pipeline::with_capacity(1);
        pipeline.add_command(command.clone());
        first(timed(operation, name_of(command), None, self.run(&pipeline, None, false)).await?)
    }

    /// Lists the primaries.
    ///
    /// # Errors
    ///
    /// When no member of a cluster answers with them.
    pub(crate) async fn shards(&self) -> Result<Vec<Shard>, StoreError> {
        match &self.servers {
            Servers::One(primary) => Ok(vec![Shard { primary: Arc::clone(primary), tag: "probe".to_owned() }]),
            Servers::Cluster(cluster) => cluster.shards().await,
        }
    }

    /// Sends one command to this primary.
    ///
    /// # Errors
    ///
    /// As [`RedisHandle::pipeline`].
    pub(crate) async fn command_at<T: redis::FromRedisValue>(
        &self,
        shard: &Shard,
        operation: &Operation,
        command: &redis::Cmd,
    ) -> Result<T, StoreError> {
        let mut pipeline = redis::Pipeline::with_capacity(1);
        pipeline.add_command(command.clone());
        let replies = async { sound(shard.primary.exchange(&pipeline, None, false).await?) };
        first(timed(operation, name_of(command), None, replies).await?)
    }

    /// Sends a pipeline to this primary.
    ///
    /// # Errors
    ///
    /// As [`RedisHandle::pipeline`].
    pub(crate) async fn pipeline_at(
        &self,
        shard: &Shard,
        operation: &Operation,
        pipeline: &redis::Pipeline,
    ) -> Result<Vec<Value>, StoreError> {
        let replies = async { sound(shard.primary.exchange(pipeline, None, false).await?) };
        timed(operation, "PIPELINE", Some(pipeline.len()), replies).await
    }

    /// Asks each Sentinel for the primary's address: pairs of the Sentinel's address and its answer. Empty without
    /// Sentinels.
    pub(crate) async fn sentinels(&self) -> Vec<(String, Result<String, StoreError>)> {
        match &self.sentinels {
            Some((sentinels, access)) => sentinels.each(&access.dialer).await,
            None => Vec::new(),
        }
    }

    /// Asks every primary, with `ask`, whether it serves. Returns the names of those that don't, if others do.
    ///
    /// # Errors
    ///
    /// When none serves.
    pub(crate) async fn unreachable<F>(&self, ask: impl Fn(Shard) -> F) -> Result<Vec<String>, StoreError>
    where
        F: Future<Output = Result<(), StoreError>>,
    {
        let shards = self.shards().await?;
        let answers = join_all(shards.iter().cloned().map(ask)).await;
        let mut missing = Vec::new();
        let mut error = None;
        let count = shards.len();
        for (shard, answer) in shards.iter().zip(answers) {
            if let Err(why) = answer {
                missing.push(format!("{shard}: {why}"));
                error = Some(why);
            }
        }
        if let Some(error) = error.filter(|_| missing.len() == count) {
            return Err(error);
        }
        if let Servers::Cluster(cluster) = &self.servers {
            missing.extend(cluster.uncovered());
        }
        Ok(missing)
    }

    async fn run(
        &self,
        pipeline: &redis::Pipeline,
        script: Option<&redis::ScriptInvocation<'_>>,
        confirm: bool,
    ) -> Result<Vec<Value>, StoreError> {
        sound(match &self.servers {
            Servers::One(primary) => primary.exchange(pipeline, script, confirm).await,
            Servers::Cluster(cluster) => cluster.run(pipeline, script, confirm).await,
        }?)
    }
}

/// Returns the replies, or the first error among them. For the client library, an error is a reply like any other.
fn sound(replies: Vec<Value>) -> Result<Vec<Value>, StoreError> {
    let refused = replies.iter().find_map(|reply| match reply {
        Value::ServerError(error) => Some(error.clone()),
        _ => None,
    });
    refused.map_or(Ok(replies), |error| Err(RedisError::from(error).into()))
}

fn first<T: redis::FromRedisValue>(replies: Vec<Value>) -> Result<T, StoreError> {
    let reply = replies.into_iter().next().unwrap_or(Value::Nil);
    Ok(redis::from_redis_value(reply).map_err(RedisError::from)?)
}

fn name_of(command: &redis::Cmd) -> &str {
    match command.args_iter().next() {
        Some(redis::Arg::Simple(name)) => std::str::from_utf8(name).unwrap_or_default(),
        _ => "",
    }
}

/// Measures a round trip, and traces it.
async fn timed<T>(
    operation: &Operation,
    command: &str,
    batch: Option<usize>,
    trip: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    // The span never has a key or a value, since these name users and sessions.
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
    let result = trip.await;
    let (seconds, errors) = &*operation.handles;
    seconds.record(begin.elapsed());
    if result.is_err() {
        errors.increment(1);
        traces::failed(&span, "redis");
    }
    result
}
