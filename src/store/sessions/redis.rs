//! Sessions in Redis: every key, time to live and script. The names of keys are in [`keys`], scripts in [`scripts`],
//! queries that change nothing in [`queries`].
//!
//! There are two formats (`SESSION_FORMAT`). New sessions have that of the replica that creates them. Everything else
//! works on both: a session is read, renewed, listed and ended in the format that its token names, and whatever is
//! about all of a user's sessions is about those of both formats.
//!
//! **The classic format** has all keys of a user in one slot of Redis Cluster, by the braces:
//!
//! | key | type | what | time to live |
//! | --- | --- | --- | --- |
//! | `session:{USER_ID}:SESSION_ID` | hash | one session, readable, with times in RFC 3339 | the idle limit, never past the absolute one |
//! | `user:{USER_ID}:sessions` | sorted set | the index: the user's session ids, scored by the session's absolute limit, in ms since the epoch | to the last of these, and [`CLOCK_MARGIN`] |
//! | `user:{USER_ID}:code:HASH` | hash | see [`super::codes`] | 30 s |
//! | `user:{USER_ID}:fence` | string | the lowest epoch that a new session may have | an hour |
//! | `user:{USER_ID}:confirm` | string | nothing: see below | a second |
//! | `user:{USER_ID}:unconfirmed:SESSION_ID` | string | the session was ended, but replicas didn't confirm it | [`UNCONFIRMED_TTL`] |
//!
//! **The compact format** has one index for all users of a bucket ([`super::place`]), because one of its own for each
//! user takes as much memory as half a session:
//!
//! | key | type | what | time to live |
//! | --- | --- | --- | --- |
//! | `session:{BUCKET}:SESSION_ID` | hash | one session, readable, with times in seconds since the epoch | the idle limit, never past the absolute one |
//! | `user:{BUCKET}:sessions` | list | the index: the bucket's session ids, oldest first | to the last absolute limit, and [`CLOCK_MARGIN`] |
//! | `user:{BUCKET}:USER_ID:…` | | `code:HASH`, `fence`, `confirm` and `unconfirmed:SESSION_ID`, as above | as above |
//!
//! The bucket's number has four hexadecimal digits. The first three characters of an id say which entries of the index
//! may be a user's; the `user_id` of the hash says which of them are.
//!
//! `DEL` of a session's key is a logout. The entry that it leaves in the index is removed when it is next read, or in
//! the compact format by other sessions' creations, each of which looks at a few entries.
//!
//! A revocation finds sessions only through the index. So an entry stays as long as its session's key exists, and the
//! index's time to live is only ever extended. Neither depends on the limits in force at the time of reading, which may
//! differ from those under which a session was made.
//!
//! `WAIT` is about the last write on its connection. If an earlier attempt ended the session without being confirmed,
//! the next one finds nothing to remove, would write nothing, and `WAIT` would confirm nothing. So every revocation
//! writes `confirm`, in the slot of the user's other keys. A replica that has this key also has everything written
//! before it.
//!
//! Builds before the first release scored entries of the classic index by creation. Such an entry has a score in the
//! past while its session lives, and the next session of the same user gives it its proper score. A replica of such a
//! build takes a score in the future for a very young session, and keeps it.
mod keys;
mod queries;
mod scripts;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use redis::{Script, ScriptInvocation, Value, cmd};
use uuid::Uuid;

use self::keys::SESSIONS;
pub(super) use self::keys::{Keys, session_key};
use self::scripts::{CONFIRM, Scripts};
use super::id::tag_text;
use super::{Created, Limits, NewSession, Session, SessionId, SessionKey};
use crate::clock::{Clock, millis};
use crate::config::SessionFormat;
use crate::store::redis::{Answer, Operation, Reader, RedisHandle, Request, Unexpected, operation};
use crate::store::users::groups::Groups;
use crate::store::{ServerState, Shard, StoreError};

/// How long [`CONFIRM`]'s key lives, in ms. It only has to be written, because nothing reads it.
const CONFIRM_TTL: u32 = 1000;
/// If replicas didn't confirm the end of a session, a repeated request gets the same answer as the first one for this
/// long.
const UNCONFIRMED_TTL: Duration = Duration::from_mins(10);
/// How long a fence lasts. It must outlive every login that read the epoch before the change. Later logins read the new
/// epoch from SQL.
const FENCE_TTL: Duration = Duration::from_hours(1);
/// How much longer than its sessions an index lives. A replica whose clock is behind renews a session for longer, and
/// the index must not expire before it.
const CLOCK_MARGIN: Duration = Duration::from_hours(24);
/// Both formats.
const FORMATS: [SessionFormat; 2] = [SessionFormat::Classic, SessionFormat::Compact];

static CHECK_TRIP: Operation = operation!("check");
static CONFIRM_TRIP: Operation = operation!("confirm");
static CREATE_TRIP: Operation = operation!("create");
static END_TRIP: Operation = operation!("end");
static END_ALL_TRIP: Operation = operation!("end_all");
static FORGET_TRIP: Operation = operation!("forget");
static LIMIT_TRIP: Operation = operation!("limit");
static PING_TRIP: Operation = operation!("ping");

#[derive(Debug)]
pub(crate) struct RedisSessions {
    pub(super) redis: Arc<RedisHandle>,
    clock: Clock,
    limits: Limits,
}

/// Begins a call of one of a format's scripts.
fn call(script: &Script, keys: Keys, first: String) -> ScriptInvocation<'_> {
    let mut call = script.key(first);
    call.arg(keys.user_id.hyphenated().to_string()).arg(&tag_text(keys.user_id)[..]);
    call
}

/// A time that a hash has: in seconds since the epoch, or in RFC 3339. `None` if somebody has written something else.
fn time(text: &str) -> Option<Timestamp> {
    match text.parse() {
        Ok(seconds) => Timestamp::from_second(seconds).ok(),
        Err(_) => text.parse().ok(),
    }
}

impl RedisSessions {
    /// Keeps sessions in this Redis.
    pub(crate) fn new(redis: Arc<RedisHandle>, clock: Clock, limits: Limits) -> Self {
        Self { redis, clock, limits }
    }

    pub(super) async fn check(&self, key: SessionKey, idle_for: Duration) -> Result<Option<Session>, StoreError> {
        let name = session_key(key);
        let name = name.as_bytes();
        let idle_ms = millis(idle_for).to_string();
        let request = Request {
            key: name,
            commands: &[
                &[b"HMGET", name, b"username", b"email", b"created_at", b"created_by", b"groups"],
                // EXPIRE, unlike HSET, can't bring back a key that was deleted meanwhile.
                &[b"PEXPIRE", name, idle_ms.as_bytes()],
            ],
        };
        let answer = self.redis.ask(&CHECK_TRIP, &request).await?;
        let (fields, is_renewed) = checked(answer).map_err(unexpected)?;
        if !is_renewed {
            return Ok(None);
        }
        let [Some(username), Some(email), created_at, Some(created_by), groups] = fields else {
            return Ok(ignored(key));
        };
        let Some(created_at) = created_at.and_then(|text| time(&text)) else { return Ok(ignored(key)) };
        let groups = groups.map(|text| Groups::parse(&text)).unwrap_or_default();
        Ok(Some(Session { username, email, created_at, created_by, groups }))
    }

    pub(super) async fn create(&self, session: &NewSession) -> Result<Created, StoreError> {
        let SessionKey { user_id, session_id, format } = session.key;
        let idle = self.limits.idle.min(session.expires_at.duration_since(session.created_at).unsigned_abs());
        let written = |time: Timestamp| match format {
            SessionFormat::Classic => time.to_string(),
            SessionFormat::Compact => time.as_second().to_string(),
        };
        let (user, created_at, expires_at) =
            (user_id.to_string(), written(session.created_at), written(session.expires_at));
        let keys = Keys::of(user_id, format);
        let mut call = call(&Scripts::of(format).create, keys, session_key(session.key));
        call.key(keys.index())
            .key(keys.fence())
            .arg(session.epoch)
            .arg(session.created_at.as_millisecond())
            .arg(millis(idle))
            .arg(session.expires_at.as_millisecond())
            .arg(self.limits.per_user)
            .arg(keys.prefix())
            .arg(session_id.as_str())
            .arg(session.replaces.as_ref().map_or("", SessionId::as_str))
            .arg(millis(CLOCK_MARGIN));
        for (field, value) in [
            ("user_id", user.as_str()),
            ("username", &session.username),
            ("email", &session.email),
            ("created_at", &created_at),
            ("expires_at", &expires_at),
            ("created_by", &session.created_by),
            ("ip", &session.ip),
            ("user_agent", &session.user_agent),
        ] {
            call.arg(field).arg(value);
        }
        if !session.groups.is_empty() {
            call.arg("groups").arg(session.groups.as_str());
        }
        let (done, first, second): (u8, i64, u8) = self.redis.script(&CREATE_TRIP, &call).await?;
        if done != 1 {
            return Ok(Created::Overtaken { fence: first });
        }
        let more = self.evict_of_both(session.key).await.unwrap_or_else(|error| {
            // The session exists. In a cluster, the shard that has the user's other sessions may be down; the next
            // creation ends what is too much.
            tracing::warn!(%error, user_id = %user_id, "limit of sessions not checked over both formats");
            0
        });
        Ok(Created::Done { evicted: u32::try_from(first).unwrap_or(0) + more, replaced: second == 1 })
    }

    /// Ends the user's oldest sessions if there are too many of both formats together. The script that creates a
    /// session knows only those of its own format. Of several creations at once, the last one sees all sessions, so the
    /// limit holds as soon as each has returned. They may end more than they have to, if they don't agree on which are
    /// the oldest: each spares its own, and the compact format keeps whole seconds. Returns how many have ended.
    async fn evict_of_both(&self, created: SessionKey) -> Result<u32, StoreError> {
        let other = match created.format {
            SessionFormat::Classic => SessionFormat::Compact,
            SessionFormat::Compact => SessionFormat::Classic,
        };
        let mut all = self.list_of(&LIMIT_TRIP, Keys::of(created.user_id, other)).await?;
        // Users have sessions of both formats only for a time after the format was changed.
        if all.is_empty() {
            return Ok(0);
        }
        all.extend(self.list_of(&LIMIT_TRIP, Keys::of(created.user_id, created.format)).await?);
        all.sort_by_key(|(_, entry)| entry.created_at);
        let excess = all.len().saturating_sub(self.limits.per_user as usize);
        let mut evicted = 0;
        for (key, _) in all.iter().filter(|(key, _)| *key != created).take(excess) {
            evicted += u32::from(self.remove(&LIMIT_TRIP, *key).await?);
        }
        Ok(evicted)
    }

    pub(super) fn confirms(&self) -> bool {
        self.redis.confirms()
    }

    pub(super) async fn confirmable(&self, user_id: Uuid) -> Result<(), StoreError> {
        if !self.redis.confirms() {
            return Ok(());
        }
        let of = |format| self.confirmable_in(Keys::of(user_id, format));
        let (classic, compact) = tokio::join!(of(SessionFormat::Classic), of(SessionFormat::Compact));
        classic.and(compact)
    }

    async fn confirmable_in(&self, keys: Keys) -> Result<(), StoreError> {
        let mut call = CONFIRM.key(keys.confirm());
        call.arg(CONFIRM_TTL);
        let (_, confirmation): (Value, _) = self.redis.confirmed(&CONFIRM_TRIP, &call).await?;
        confirmation
    }

    pub(super) async fn end(&self, key: SessionKey) -> Result<bool, StoreError> {
        let keys = Keys::of(key.user_id, key.format);
        let mut call = call(&Scripts::of(key.format).end, keys, session_key(key));
        call.key(keys.index()).arg(key.session_id.as_str());
        let mark = keys.unconfirmed(key.session_id);
        if self.redis.confirms() {
            call.key(keys.confirm()).key(&mark).arg(CONFIRM_TTL);
        }
        let (was_alive, confirmation) = self.redis.confirmed(&END_TRIP, &call).await?;
        if was_alive && confirmation.is_err() {
            let mut remember = cmd("SET");
            remember.arg(mark).arg(1).arg("PX").arg(millis(UNCONFIRMED_TTL));
            // If this fails, a repeated request is told that there is no such session, which is true as well.
            drop(self.redis.command::<Value>(&CONFIRM_TRIP, &remember).await);
        }
        confirmation.map(|()| was_alive)
    }

    pub(super) async fn forget(&self, key: SessionKey) -> Result<(), StoreError> {
        self.remove(&FORGET_TRIP, key).await.map(drop)
    }

    /// Ends a session without waiting for replicas. Returns whether it was alive.
    async fn remove(&self, operation: &Operation, key: SessionKey) -> Result<bool, StoreError> {
        let keys = Keys::of(key.user_id, key.format);
        let mut call = call(&Scripts::of(key.format).end, keys, session_key(key));
        call.key(keys.index()).arg(key.session_id.as_str());
        self.redis.script(operation, &call).await
    }

    pub(super) async fn end_all(&self, user_id: Uuid, keep: Option<SessionId>) -> Result<u32, StoreError> {
        self.run_end_all(user_id, keep, None).await
    }

    pub(super) async fn fence_off(&self, user_id: Uuid, epoch: i64) -> Result<u32, StoreError> {
        self.run_end_all(user_id, None, Some(epoch)).await
    }

    /// Does it in both formats at the same time, and waits for both even if one fails.
    async fn run_end_all(&self, user_id: Uuid, keep: Option<SessionId>, fence: Option<i64>) -> Result<u32, StoreError> {
        let of = |format| self.end_all_in(Keys::of(user_id, format), keep, fence);
        let (classic, compact) = tokio::join!(of(SessionFormat::Classic), of(SessionFormat::Compact));
        Ok(classic? + compact?)
    }

    async fn end_all_in(&self, keys: Keys, keep: Option<SessionId>, fence: Option<i64>) -> Result<u32, StoreError> {
        let mut call = call(&Scripts::of(keys.format).end_all, keys, keys.index());
        call.key(keys.fence())
            .arg(keys.prefix())
            .arg(keep.as_ref().map_or("", SessionId::as_str))
            .arg(fence.map_or(String::new(), |epoch| epoch.to_string()))
            .arg(millis(FENCE_TTL));
        if self.redis.confirms() {
            call.key(keys.confirm()).arg(CONFIRM_TTL);
        }
        let (ended, confirmation): (u32, _) = self.redis.confirmed(&END_ALL_TRIP, &call).await?;
        confirmation.map(|()| ended)
    }

    pub(super) async fn clock_skew(&self) -> Result<Option<f64>, StoreError> {
        self.redis.clock_skew(&self.clock).await.map(Some)
    }

    pub(super) async fn server_state(&self) -> Result<Option<ServerState>, StoreError> {
        self.redis.server_state().await.map(Some)
    }

    /// A check renews the session that it reads, so Redis is ready if it accepts this write, which changes nothing. A
    /// replica, a primary cut off from its replicas and one with a failing disk also answer PING, but refuse this
    /// write.
    pub(super) async fn ping(&self) -> Result<Vec<String>, StoreError> {
        let renew = async |shard: Shard| {
            let mut renewal = cmd("PEXPIRE");
            // No session has this key.
            renewal.arg(format!("{SESSIONS}{{{}}}:probe", shard.tag())).arg(1);
            self.redis.command::<Value>(&PING_TRIP, &renewal).await.map(drop)
        };
        self.redis.unreachable(renew).await
    }
}

/// For a session that we didn't write, or that was edited by hand.
fn ignored(key: SessionKey) -> Option<Session> {
    tracing::warn!(session_id = %key.session_id, user_id = %key.user_id, "session without its fields ignored");
    None
}

/// The fields that a check reads, those that exist and are UTF-8, and whether the session was renewed.
fn checked(answer: Answer) -> Result<([Option<String>; 5], bool), Unexpected> {
    let mut fields = [const { None }; 5];
    match answer {
        Answer::Bytes(replies) => {
            let mut replies = Reader::new(&replies);
            if replies.array()? != fields.len() {
                return Err(Unexpected);
            }
            for field in &mut fields {
                *field = replies.text()?.and_then(|text| std::str::from_utf8(text).ok()).map(str::to_owned);
            }
            Ok((fields, replies.natural()? == 1))
        }
        Answer::Values(replies) => {
            let Ok([Value::Array(texts), Value::Int(renewed)]) = <[Value; 2]>::try_from(replies) else {
                return Err(Unexpected);
            };
            for (field, text) in fields.iter_mut().zip(texts) {
                if let Value::BulkString(text) = text {
                    *field = String::from_utf8(text).ok();
                }
            }
            Ok((fields, renewed == 1))
        }
    }
}

fn unexpected<T>(_: T) -> StoreError {
    StoreError::new("redis: an answer of another shape than the command has")
}
