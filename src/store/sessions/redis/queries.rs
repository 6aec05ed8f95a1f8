//! Queries that change nothing: finding, listing and counting sessions.
use std::collections::{HashMap, HashSet};

use redis::{Value, cmd};
use uuid::Uuid;

use super::scripts::COMPACT_IDS;
use super::{FORMATS, Keys, RedisSessions, SESSIONS, call, session_key, time, unexpected};
use crate::config::SessionFormat;
use crate::store::redis::{Operation, operation};
use crate::store::sessions::{ClientOf, Session, SessionEntry, SessionId, SessionKey};
use crate::store::users::groups::Groups;
use crate::store::{Shard, StoreError};

/// The number of keys that Redis looks at in one step of a search, which takes about a third of a millisecond.
const SCAN_STEP: u32 = 1000;
/// With more keys than this, sessions are estimated instead of counted.
const COUNTED_KEYS: u64 = 10_000;
/// The sample for an estimate: this many round trips with this many keys each. If half of all keys are sessions, as with
/// one session per user, the estimate has a standard deviation of 3 %.
const SAMPLE: (usize, usize) = (10, 100);

static COUNT_TRIP: Operation = operation!("count");
static INSPECT_TRIP: Operation = operation!("inspect");
static LIST_TRIP: Operation = operation!("list");
static SCAN_TRIP: Operation = operation!("scan");

impl RedisSessions {
    pub(in crate::store::sessions) async fn list(&self, user_id: Uuid) -> Result<Vec<SessionEntry>, StoreError> {
        let of = |format| self.list_of(&LIST_TRIP, Keys::of(user_id, format));
        let (classic, compact) = tokio::try_join!(of(SessionFormat::Classic), of(SessionFormat::Compact))?;
        let mut found: Vec<_> = classic.into_iter().chain(compact).map(|(_, entry)| entry).collect();
        found.sort_by_key(|entry| entry.created_at);
        found.reverse();
        Ok(found)
    }

    /// The user's living sessions of one format. Those that were created at the same time are in the order of creation
    /// if the index knows it.
    pub(super) async fn list_of(
        &self,
        operation: &Operation,
        keys: Keys,
    ) -> Result<Vec<(SessionKey, SessionEntry)>, StoreError> {
        let ids: Vec<String> = match keys.format {
            SessionFormat::Classic => {
                let mut index = cmd("ZRANGE");
                index.arg(keys.index()).arg(0).arg(-1);
                self.redis.command(operation, &index).await?
            }
            SessionFormat::Compact => self.redis.script(operation, &call(&COMPACT_IDS, keys, keys.index())).await?,
        };
        let key = |session_id| SessionKey { user_id: keys.user_id, session_id, format: keys.format };
        let names: Vec<_> = ids.iter().filter_map(|id| SessionId::parse(id)).map(key).collect();
        let found = self.read(operation, &names).await?;
        Ok(found.into_iter().map(|(key, _, entry)| (key, entry)).collect())
    }

    pub(in crate::store::sessions) async fn inspect(
        &self,
        key: SessionKey,
    ) -> Result<Option<(Session, SessionEntry)>, StoreError> {
        Ok(self.read(&INSPECT_TRIP, &[key]).await?.pop().map(|(_, session, entry)| (session, entry)))
    }

    /// The key of the session with this name. Finds every session that is alive during the whole search.
    pub(in crate::store::sessions) async fn owner(
        &self,
        session_id: SessionId,
    ) -> Result<Option<SessionKey>, StoreError> {
        let pattern = format!("{SESSIONS}{{*}}:{session_id}");
        for shard in self.redis.shards().await? {
            let mut found = Vec::new();
            self.scan(&SCAN_TRIP, &shard, &pattern, |names| found.extend(names)).await?;
            for name in found {
                let mut owner = cmd("HGET");
                owner.arg(&name).arg("user_id");
                let user_id: Option<String> = self.redis.command(&SCAN_TRIP, &owner).await?;
                let Some(user_id) = user_id.and_then(|text| text.parse().ok()) else { continue };
                let key = FORMATS.map(|format| SessionKey { user_id, session_id, format });
                if let Some(key) = key.into_iter().find(|key| session_key(*key).as_bytes() == name) {
                    return Ok(Some(key));
                }
            }
        }
        Ok(None)
    }

    /// Finds all keys of this pattern by SCAN in short steps, so that other clients are not delayed.
    async fn scan(
        &self,
        operation: &Operation,
        shard: &Shard,
        pattern: &str,
        mut see: impl FnMut(Vec<Vec<u8>>),
    ) -> Result<(), StoreError> {
        let mut cursor = 0;
        loop {
            let mut step = cmd("SCAN");
            step.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCAN_STEP);
            let (next, names): (u64, Vec<Vec<u8>>) = self.redis.command_at(shard, operation, &step).await?;
            see(names);
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }

    /// Reads those of these sessions that are alive, in the same order.
    async fn read(
        &self,
        operation: &Operation,
        keys: &[SessionKey],
    ) -> Result<Vec<(SessionKey, Session, SessionEntry)>, StoreError> {
        let mut pipeline = redis::Pipeline::with_capacity(keys.len() * 2);
        for key in keys {
            let name = session_key(*key);
            pipeline.cmd("HGETALL").arg(&name).cmd("PTTL").arg(&name);
        }
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let now_ms = self.clock.now_ms();
        let mut replies = self.redis.pipeline(operation, &pipeline).await?.into_iter();
        let mut found = Vec::with_capacity(keys.len());
        for &key in keys {
            let (Some(hash), Some(left)) = (replies.next(), replies.next()) else { return Err(unexpected(())) };
            let mut hash: HashMap<String, String> = redis::from_redis_value(hash).map_err(unexpected)?;
            let left_ms: i64 = redis::from_redis_value(left).map_err(unexpected)?;
            // The session has ended or is about to.
            if left_ms <= 0 || hash.is_empty() {
                continue;
            }
            let mut take = |field| hash.remove(field).unwrap_or_default();
            // Of another user, which an index of the compact format can't tell.
            if key.format == SessionFormat::Compact && take("user_id") != key.user_id.to_string() {
                continue;
            }
            let (Some(created_at), Some(expires_at)) = (time(&take("created_at")), time(&take("expires_at"))) else {
                continue;
            };
            let session = Session {
                username: take("username"),
                email: take("email"),
                created_at,
                created_by: take("created_by"),
                groups: Groups::parse(&take("groups")),
            };
            let (ip, user_agent, hosts) = (take("ip"), take("user_agent"), take("hosts"));
            let client = ClientOf { ip: &ip, user_agent: &user_agent, hosts: &hosts };
            let entry = self.limits.entry(key.session_id, &session, expires_at, client, now_ms, left_ms);
            if let Some(entry) = entry {
                found.push((key, session, entry));
            }
        }
        Ok(found)
    }

    /// The number of sessions: counted if there are few keys, and estimated otherwise, because Redis doesn't count keys by
    /// kind.
    pub(in crate::store::sessions) async fn count(&self) -> Result<u64, StoreError> {
        let mut sessions = 0;
        for shard in self.redis.shards().await? {
            let keys: u64 = self.redis.command_at(&shard, &COUNT_TRIP, &cmd("DBSIZE")).await?;
            sessions +=
                if keys <= COUNTED_KEYS { self.count_each(&shard).await } else { self.estimate(&shard, keys).await }?;
        }
        Ok(sessions)
    }

    async fn count_each(&self, shard: &Shard) -> Result<u64, StoreError> {
        // While Redis resizes its table, SCAN may return a key twice.
        let mut seen = HashSet::new();
        let see = |names: Vec<Vec<u8>>| seen.extend(names);
        self.scan(&COUNT_TRIP, shard, &format!("{SESSIONS}*"), see).await?;
        Ok(seen.len() as u64)
    }

    /// Estimates the number of sessions: `keys` times the share of sessions among random keys.
    async fn estimate(&self, shard: &Shard, keys: u64) -> Result<u64, StoreError> {
        let (trips, size) = SAMPLE;
        let mut pipeline = redis::Pipeline::with_capacity(size);
        for _ in 0..size {
            pipeline.cmd("RANDOMKEY");
        }
        let (mut sessions, mut others) = (0, 0);
        for _ in 0..trips {
            for name in self.redis.pipeline_at(shard, &COUNT_TRIP, &pipeline).await? {
                match name {
                    Value::BulkString(name) if name.starts_with(SESSIONS.as_bytes()) => sessions += 1,
                    _ => others += 1,
                }
            }
        }
        Ok(keys * sessions / (sessions + others))
    }
}
