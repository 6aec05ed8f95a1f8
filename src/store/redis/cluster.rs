//! A Redis Cluster: which server has which keys, and what to do when that changes.
//!
//! The client library has a client for clusters. It isn't used, because as of version 1.8
//!
//! - it sends one `ASKING` before a pipeline, which counts for the first command alone. While a slot moves, the two
//!   commands of a session check would be redirected back and forth until it gives up;
//! - it sends a whole pipeline again when one of its commands is redirected, so an attempt at a login would count
//!   twice;
//! - all requests wait while it reads the cluster's layout again, including those to healthy members, so one frozen
//!   primary would delay every request;
//! - it has its own time-outs and connections, and a request passes through two tasks and is copied.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use futures_util::stream::FuturesUnordered;
use parking_lot::{Mutex, RwLock};
use redis::{Cmd, Value};

use super::access::{Access, CONNECT_TIMEOUT, first_answers};
use super::link::Target;
use super::map::Map;
use super::primary::Primary;
use super::slots::{Detour, SLOTS, View, slot, slot_of};
use super::{Answer, Request, Shard};
use crate::config::RedisNode;
use crate::metrics::REDIS_FAILOVERS;
use crate::store::StoreError;

/// How long to wait for the other members' answers after the first one.
const GRACE: Duration = Duration::from_millis(100);
/// The shortest time between two reads of the cluster's layout.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A command is sent again at most this long after the request began, so that its reply still comes within two seconds.
const DETOURS: Duration = Duration::from_secs(1);
/// The first pause before a command is repeated on a slot that is moving. Each further pause is twice as long.
const PAUSE: Duration = Duration::from_millis(10);

/// A cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    access: Arc<Access>,
    /// Whether primaries have a link for what replicas must confirm.
    confirms: bool,
    /// The members that `REDIS_URL` names.
    seeds: Vec<RedisNode>,
    /// All members seen so far, with their connections. They are kept when the map of slots is replaced.
    members: Mutex<HashMap<RedisNode, Arc<Primary>>>,
    map: RwLock<Arc<Map>>,
    /// Locked while the layout is read, so that one task reads it for all. Holds when the last read ended, and why it
    /// failed.
    looking: tokio::sync::Mutex<Option<(Instant, Option<StoreError>)>>,
    /// Whether a task is about to read the layout.
    is_due: AtomicBool,
}

/// Where a command is sent next.
#[derive(Clone)]
enum Step {
    Done(Value),
    /// To the shard that has the slot.
    Owner,
    /// To this server, after an `ASKING`.
    Ask(RedisNode),
}

impl Cluster {
    pub(super) fn new(access: Arc<Access>, seeds: &[RedisNode], confirms: bool) -> Self {
        Self {
            access,
            confirms,
            seeds: seeds.to_vec(),
            members: Mutex::default(),
            map: RwLock::default(),
            looking: tokio::sync::Mutex::default(),
            is_due: AtomicBool::new(false),
        }
    }

    /// Returns the replies to a pipeline in its order, including errors. A redirected command has not been run, so it
    /// is sent again. The others are not.
    ///
    /// With `confirm`, all commands go to the server that has the first one's key.
    ///
    /// # Errors
    ///
    /// When a server that has one of the keys can't be reached or doesn't answer in time.
    pub(super) async fn run(
        self: &Arc<Self>,
        pipeline: &redis::Pipeline,
        script: Option<&redis::ScriptInvocation<'_>>,
        confirm: bool,
    ) -> Result<Vec<Value>, StoreError> {
        let begin = Instant::now();
        let mut steps = Vec::new();
        if let Some(server) = self.server_of_all(pipeline) {
            let replies = server.exchange(pipeline, script, confirm).await.inspect_err(|_| self.look_soon())?;
            if !replies.iter().any(|reply| matches!(reply, Value::ServerError(_))) {
                return Ok(replies);
            }
            steps = replies.into_iter().map(Step::Done).collect();
        }
        // Boxed, because few requests get here.
        Box::pin(self.detour(pipeline, script, confirm, steps, begin)).await
    }

    /// As [`Cluster::run`], for a request that is packed by hand.
    pub(super) async fn ask(self: &Arc<Self>, request: &Request<'_>) -> Result<Answer, StoreError> {
        let begin = Instant::now();
        let mut steps = Vec::new();
        let server = self.map.read().shard(slot(request.key)).map(|shard| Arc::clone(&shard.primary));
        if let Some(server) = server {
            match server.ask(request).await.inspect_err(|_| self.look_soon())? {
                Answer::Values(replies) => steps = replies.into_iter().map(Step::Done).collect(),
                bytes @ Answer::Bytes(_) => return Ok(bytes),
            }
        }
        Box::pin(async { self.detour(&request.pipeline(), None, false, steps, begin).await.map(Answer::Values) }).await
    }

    /// The server that has the keys of all commands, if there is one.
    fn server_of_all(&self, pipeline: &redis::Pipeline) -> Option<Arc<Primary>> {
        let mut slots = pipeline.cmd_iter().filter_map(slot_of);
        let first = slots.next()?;
        if slots.any(|slot| slot != first) {
            return None;
        }
        self.map.read().shard(first).map(|shard| Arc::clone(&shard.primary))
    }

    async fn detour(
        self: &Arc<Self>,
        pipeline: &redis::Pipeline,
        script: Option<&redis::ScriptInvocation<'_>>,
        confirm: bool,
        mut steps: Vec<Step>,
        begin: Instant,
    ) -> Result<Vec<Value>, StoreError> {
        let commands: Vec<&Cmd> = pipeline.cmd_iter().collect();
        if steps.is_empty() {
            self.look_at_first().await?;
            steps = vec![Step::Owner; commands.len()];
        }
        let mut pause = PAUSE;
        loop {
            if self.take_detours(&mut steps, confirm) {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            if steps.iter().all(|step| matches!(step, Step::Done(_))) {
                return Ok(steps
                    .into_iter()
                    .filter_map(|step| if let Step::Done(reply) = step { Some(reply) } else { None })
                    .collect());
            }
            if begin.elapsed() > DETOURS {
                return Err(StoreError::new("redis: the cluster's slots are moving, and no shard took the command"));
            }
            let groups = self.groups(&commands, &steps, confirm).await?;
            let trips = groups.into_iter().map(|(server, is_asking, members)| {
                let mut part = redis::Pipeline::with_capacity(members.len() * 2);
                for &index in &members {
                    if is_asking {
                        part.cmd("ASKING");
                    }
                    part.add_command(commands[index].clone());
                }
                async move {
                    let replies = server.exchange(&part, script, confirm).await?;
                    let each = if is_asking { 2 } else { 1 };
                    Ok::<_, StoreError>((members, replies.into_iter().skip(each - 1).step_by(each)))
                }
            });
            for (members, replies) in try_join_all(trips).await.inspect_err(|_| self.look_soon())? {
                for (index, reply) in members.into_iter().zip(replies) {
                    steps[index] = Step::Done(reply);
                }
            }
        }
    }

    /// Turns redirections into further steps. Returns whether one of them needs a pause.
    fn take_detours(self: &Arc<Self>, steps: &mut [Step], confirm: bool) -> bool {
        let mut needs_pause = false;
        let mut together = None;
        for step in steps.iter_mut() {
            let Step::Done(reply) = step else { continue };
            match Detour::of(reply) {
                None => {
                    if matches!(reply, Value::ServerError(_)) {
                        // It may refuse because it is no longer a primary.
                        self.look_soon();
                    }
                    continue;
                }
                Some(Detour::Moved(slot, node)) => {
                    self.learn(slot, &node);
                    self.look_soon();
                    *step = Step::Owner;
                }
                Some(Detour::Ask(node)) => *step = Step::Ask(node),
                Some(Detour::Later) => {
                    self.look_soon();
                    needs_pause = true;
                    *step = Step::Owner;
                }
            }
            together = Some(step.clone());
        }
        if let Some(step) = together.filter(|_| confirm) {
            steps.fill(step);
        }
        needs_pause
    }

    /// Which commands go to which server, and whether after an `ASKING`.
    async fn groups(
        self: &Arc<Self>,
        commands: &[&Cmd],
        steps: &[Step],
        confirm: bool,
    ) -> Result<Vec<(Arc<Primary>, bool, Vec<usize>)>, StoreError> {
        let mut groups: Vec<(Arc<Primary>, bool, Vec<usize>)> = Vec::new();
        let leading = commands.first().and_then(|command| slot_of(command));
        for (index, step) in steps.iter().enumerate() {
            let (server, is_asking) = match step {
                Step::Done(_) => continue,
                Step::Ask(node) => (self.member(node), true),
                Step::Owner => {
                    let slot = if confirm { leading } else { slot_of(commands[index]) };
                    (self.owner(slot).await?, false)
                }
            };
            let known =
                groups.iter_mut().find(|(other, asking, _)| Arc::ptr_eq(other, &server) && *asking == is_asking);
            match known {
                Some((.., members)) => members.push(index),
                None => groups.push((server, is_asking, vec![index])),
            }
        }
        Ok(groups)
    }

    /// The server that has a slot, or any server if there is no slot.
    async fn owner(self: &Arc<Self>, slot: Option<u16>) -> Result<Arc<Primary>, StoreError> {
        self.look_at_first().await?;
        let map = Arc::clone(&*self.map.read());
        let shard = match slot {
            Some(slot) => map.shard(slot),
            None => map.shards().next(),
        };
        shard.map(|shard| Arc::clone(&shard.primary)).ok_or_else(|| {
            self.look_soon();
            StoreError::new("redis: no shard of the cluster has the slot of this key")
        })
    }

    pub(super) async fn shards(self: &Arc<Self>) -> Result<Vec<Shard>, StoreError> {
        self.look_at_first().await?;
        let map = Arc::clone(&*self.map.read());
        Ok(map.shards().filter(|shard| !shard.tag.is_empty()).cloned().collect())
    }

    /// Logs how many slots belong to no shard, if there are any.
    pub(super) fn uncovered(self: &Arc<Self>) -> Option<String> {
        let count = self.map.read().uncovered();
        if count == 0 {
            return None;
        }
        self.look_soon();
        Some(format!("{count} of {SLOTS} slots have no shard"))
    }

    fn member(&self, node: &RedisNode) -> Arc<Primary> {
        let new = || Arc::new(Primary::new(&self.access, Target::Node(node.clone()), self.confirms));
        Arc::clone(self.members.lock().entry(node.clone()).or_insert_with(new))
    }

    /// Records that a slot has moved.
    fn learn(&self, slot: u16, node: &RedisNode) {
        let member = self.member(node);
        let mut map = self.map.write();
        if !map.has(slot, node) {
            Arc::make_mut(&mut map).assign(slot, node, member);
        }
    }

    async fn look_at_first(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.map.read().is_unknown() { self.look().await } else { Ok(()) }
    }

    /// Reads the layout again in a task of its own. The request that noticed a change doesn't wait for it.
    pub(super) fn look_soon(self: &Arc<Self>) {
        if self.is_due.swap(true, Ordering::AcqRel) {
            return;
        }
        let cluster = Arc::clone(self);
        tokio::spawn(async move {
            let last = cluster.looking.lock().await.as_ref().map(|(last, _)| *last);
            if let Some(last) = last {
                tokio::time::sleep(LOOK_AGAIN.saturating_sub(last.elapsed())).await;
            }
            // A change noticed from here on causes another read.
            cluster.is_due.store(false, Ordering::Release);
            if let Err(error) = cluster.look().await {
                tracing::debug!(%error, "no member of the redis cluster says who has which slots");
            }
        });
    }

    async fn look(self: &Arc<Self>) -> Result<(), StoreError> {
        let begin = Instant::now();
        let mut looking = self.looking.lock().await;
        // Another task read the layout while this one waited for the lock. Its result is recent enough.
        if let Some((_, error)) = looking.as_ref().filter(|(last, _)| *last > begin) {
            return error.clone().map_or(Ok(()), Err);
        }
        let result = self.look_now().await;
        *looking = Some((Instant::now(), result.clone().err()));
        result
    }

    async fn look_now(self: &Arc<Self>) -> Result<(), StoreError> {
        let mut nodes: Vec<_> = self.map.read().nodes().cloned().collect();
        nodes.extend(self.seeds.iter().cloned());
        let mut seen = HashSet::new();
        nodes.retain(|node| seen.insert(node.clone()));
        let asked = nodes.iter().map(|node| self.view_of(node)).collect::<FuturesUnordered<_>>();
        let (views, error) = first_answers(asked, CONNECT_TIMEOUT, GRACE).await;
        // A member that is cut off still names the primaries that it knew.
        let best = views.into_iter().max_by_key(|view| (view.is_ok, view.epoch, view.covered()));
        match best {
            Some(view) if !view.ranges.is_empty() => {
                self.accept(&view);
                Ok(())
            }
            Some(_) => Err(StoreError::new("REDIS_URL: no shard of the cluster has any slot")),
            None => Err(error.unwrap_or_else(|| {
                let limit = CONNECT_TIMEOUT.as_millis();
                StoreError::new(format!("REDIS_URL: no member of the cluster answered within {limit} ms"))
            })),
        }
    }

    async fn view_of(&self, node: &RedisNode) -> Result<View, StoreError> {
        let mut questions = redis::Pipeline::with_capacity(2);
        questions.cmd("CLUSTER").arg("SLOTS").cmd("CLUSTER").arg("INFO");
        let replies = self.member(node).exchange(&questions, None, false).await?;
        View::read(replies, node).map_err(|error| StoreError::new(format!("REDIS_URL: {node}: {error}")))
    }

    fn accept(&self, view: &View) {
        let map = Map::of(view, |node| self.member(node));
        let names = |map: &Map| map.nodes().cloned().collect::<HashSet<_>>();
        let now = names(&map);
        let previous = std::mem::replace(&mut *self.map.write(), Arc::new(map));
        let before = names(&previous);
        if !before.is_empty() && !now.is_subset(&before) {
            metrics::counter!(REDIS_FAILOVERS).increment(1);
            let shown: Vec<_> = now.difference(&before).map(ToString::to_string).collect();
            tracing::warn!(new = shown.join(", "), "redis has another primary");
        }
        // Connections to servers without slots are closed.
        self.members.lock().retain(|node, _| now.contains(node) || self.seeds.contains(node));
    }
}
