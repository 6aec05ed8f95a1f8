//! Sessions in Redis: every key, time to live and script. Queries that change nothing are in [`queries`].
//!
//! | key | type | what | time to live |
//! | --- | --- | --- | --- |
//! | `session:{USER_ID}:SESSION_ID` | hash | one session, readable | the idle limit, never past the absolute one |
//! | `user:{USER_ID}:sessions` | sorted set | the index: the user's session ids, scored by the session's absolute limit, in ms since the epoch | to the last of these, and [`CLOCK_MARGIN`] |
//! | `user:{USER_ID}:code:HASH` | hash | see [`super::codes`] | 30 s |
//! | `user:{USER_ID}:fence` | string | the lowest epoch that a new session may have | an hour |
//! | `user:{USER_ID}:confirm` | string | nothing: see below | a second |
//! | `user:{USER_ID}:unconfirmed:SESSION_ID` | string | the session was ended, but replicas didn't confirm it | [`UNCONFIRMED_TTL`] |
//!
//! The braces put all keys of one user into one Redis Cluster slot. `DEL` of a session's key is a logout. The entry
//! that it leaves in the index is removed when it is next read.
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
//! Builds before the first release scored entries by creation. Such an entry has a score in the past while its session
//! lives, and the next session of the same user gives it its proper score. A replica of such a build takes a score in
//! the future for a very young session, and keeps it.
mod queries;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::{Script, Value, cmd};
use uuid::Uuid;

use super::{Created, Limits, NewSession, Session, SessionId, SessionKey};
use crate::clock::{Clock, millis};
use crate::store::redis::{Operation, RedisHandle, operation};
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
/// The beginning of all keys of sessions.
const SESSIONS: &str = "session:";

/// Lua code at the beginning of several scripts: the time that a session's hash has in `field` (RFC 3339, UTC), in ms
/// since the epoch, or nil. Days are counted as in
/// <https://howardhinnant.github.io/date_algorithms.html#days_from_civil>.
const TIME_OF: &str = r"
local function time_of(key, field)
  local text = redis.call('HGET', key, field) or ''
  local y, m, d, h, min, sec, rest = string.match(text, '^(%d%d%d%d)%-(%d%d)%-(%d%d)T(%d%d):(%d%d):(%d%d)(.*)Z$')
  if not y then return nil end
  y, m, d = tonumber(y), tonumber(m), tonumber(d)
  if m <= 2 then y = y - 1 end
  local era = math.floor(y / 400)
  local year = y - era * 400
  local day = math.floor((153 * ((m + 9) % 12) + 2) / 5) + d - 1
  local days = era * 146097 + year * 365 + math.floor(year / 4) - math.floor(year / 100) + day - 719468
  local seconds = ((days * 24 + tonumber(h)) * 60 + tonumber(min)) * 60 + tonumber(sec)
  return seconds * 1000 + math.floor((tonumber('0' .. rest) or 0) * 1000)
end
";

/// KEYS: session, index, fence. ARGV: epoch, created ms, idle ms, expires ms, limit, key prefix, id, replaced id or '',
/// margin ms, then the hash's fields and values. Returns {1, evicted, replaced} or {0, fence}.
static CREATE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{TIME_OF}{}",
        r"
local fence = tonumber(redis.call('GET', KEYS[3]) or '0')
if fence > tonumber(ARGV[1]) then return {0, fence, 0} end
local created, expires, limit, prefix = tonumber(ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local replaced = 0
if ARGV[8] ~= '' then
  replaced = redis.call('DEL', prefix .. ARGV[8])
  redis.call('ZREM', KEYS[2], ARGV[8])
end
-- What should have ended by its score is forgotten only if it has: a clock may be wrong, and an entry of an older version
-- has the time of its session's creation.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', created)) do
  local key = prefix .. id
  if redis.call('EXISTS', key) == 0 then
    redis.call('ZREM', KEYS[2], id)
  else
    redis.call('ZADD', KEYS[2], time_of(key, 'expires_at') or expires, id)
  end
end
local evicted = 0
if redis.call('ZCARD', KEYS[2]) >= limit then
  -- Idle or deleted sessions don't count: forget them before a live one has to go.
  local alive = {}
  for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    local key = prefix .. id
    if redis.call('EXISTS', key) == 0 then
      redis.call('ZREM', KEYS[2], id)
    else
      alive[#alive + 1] = {id, time_of(key, 'created_at') or 0}
    end
  end
  local excess = #alive - limit + 1
  if excess > 0 then
    table.sort(alive, function(a, b) return a[2] < b[2] or (a[2] == b[2] and a[1] < b[1]) end)
    for n = 1, excess do
      evicted = evicted + redis.call('DEL', prefix .. alive[n][1])
      redis.call('ZREM', KEYS[2], alive[n][1])
    end
  end
end
redis.call('HSET', KEYS[1], unpack(ARGV, 10))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], expires, ARGV[7])
local last = tonumber(redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2])
redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), last - created + tonumber(ARGV[9])))
return {1, evicted, replaced}
"
    ))
});

/// KEYS: confirm. ARGV: its life in ms. Writes, so that replicas have something to confirm.
static CONFIRM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"#!lua flags=allow-oom
return redis.call('SET', KEYS[1], 1, 'PX', ARGV[1])
",
    )
});

/// KEYS: session, index; and if replicas must confirm it, confirm and unconfirmed. ARGV: id, confirm's life in ms.
/// Returns whether the session was alive, or had been ended without confirmation. It removes more than it adds, so it
/// may run while Redis is full.
static END: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"#!lua flags=allow-oom
redis.call('ZREM', KEYS[2], ARGV[1])
local alive = redis.call('DEL', KEYS[1])
if KEYS[3] then
  redis.call('SET', KEYS[3], 1, 'PX', ARGV[2])
  alive = math.max(alive, redis.call('DEL', KEYS[4]))
end
return alive
",
    )
});

/// KEYS: index, fence, and confirm if replicas must confirm it. ARGV: key prefix, id to keep or '', epoch or '',
/// fence's life in ms, '1' to end nothing if the fence is at this epoch or above, confirm's life in ms. Returns how
/// many were alive. It removes more than the fence adds, so it may run while Redis is full.
static END_ALL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"#!lua flags=allow-oom
if KEYS[3] then redis.call('SET', KEYS[3], 1, 'PX', ARGV[6]) end
if ARGV[3] ~= '' then
  local fence, epoch = tonumber(redis.call('GET', KEYS[2]) or '0'), tonumber(ARGV[3])
  redis.call('SET', KEYS[2], math.max(fence, epoch), 'PX', math.max(redis.call('PTTL', KEYS[2]), tonumber(ARGV[4])))
  if ARGV[5] == '1' and fence >= epoch then return 0 end
end
local ended = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if id ~= ARGV[2] then
    ended = ended + redis.call('DEL', ARGV[1] .. id)
    redis.call('ZREM', KEYS[1], id)
  end
end
return ended
",
    )
});

static CHECK_TRIP: Operation = operation!("check");
static CONFIRM_TRIP: Operation = operation!("confirm");
static CREATE_TRIP: Operation = operation!("create");
static END_TRIP: Operation = operation!("end");
static END_ALL_TRIP: Operation = operation!("end_all");
static FORGET_TRIP: Operation = operation!("forget");
static PING_TRIP: Operation = operation!("ping");

#[derive(Debug)]
pub(crate) struct RedisSessions {
    pub(super) redis: Arc<RedisHandle>,
    clock: Clock,
    limits: Limits,
}

pub(super) fn prefix(user_id: Uuid) -> String {
    format!("session:{{{}}}:", user_id.hyphenated())
}

pub(super) fn session_key(key: SessionKey) -> String {
    let mut text = String::with_capacity(8 + 38 + 1 + 22);
    text.push_str("session:{");
    text.push_str(key.user_id.hyphenated().encode_lower(&mut [0; 36]));
    text.push_str("}:");
    text.push_str(key.session_id.as_str());
    text
}

fn index_key(user_id: Uuid) -> String {
    format!("user:{{{}}}:sessions", user_id.hyphenated())
}

fn fence_key(user_id: Uuid) -> String {
    format!("user:{{{}}}:fence", user_id.hyphenated())
}

fn confirm_key(user_id: Uuid) -> String {
    format!("user:{{{}}}:confirm", user_id.hyphenated())
}

impl RedisSessions {
    /// Keeps sessions in this Redis.
    pub(crate) fn new(redis: Arc<RedisHandle>, clock: Clock, limits: Limits) -> Self {
        Self { redis, clock, limits }
    }

    pub(super) async fn check(&self, key: SessionKey, idle_for: Duration) -> Result<Option<Session>, StoreError> {
        let name = session_key(key);
        let mut pipeline = redis::Pipeline::with_capacity(2);
        pipeline
            .cmd("HMGET")
            .arg(&name)
            .arg(&["username", "email", "created_at", "created_by", "groups"])
            // EXPIRE, unlike HSET, can't bring back a key that was deleted meanwhile.
            .cmd("PEXPIRE")
            .arg(&name)
            .arg(millis(idle_for));
        let replies = self.redis.pipeline(&CHECK_TRIP, &pipeline).await?;
        let [Value::Array(fields), Value::Int(renewed)] = <[Value; 2]>::try_from(replies).map_err(unexpected)? else {
            return Err(unexpected(()));
        };
        if renewed == 0 {
            return Ok(None);
        }
        let mut fields = fields.into_iter().map(|field| match field {
            Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
            _ => None,
        });
        let mut next = || fields.next().flatten();
        let (Some(username), Some(email), Some(created_at), Some(created_by)) = (next(), next(), next(), next()) else {
            // Not written by us, or edited by hand.
            tracing::warn!(session_id = %key.session_id, user_id = %key.user_id, "session without its fields ignored");
            return Ok(None);
        };
        let groups = next().map(|text| Groups::parse(&text)).unwrap_or_default();
        Ok(Some(Session { username, email, created_at, created_by, groups }))
    }

    pub(super) async fn create(&self, session: &NewSession) -> Result<Created, StoreError> {
        let SessionKey { user_id, session_id } = session.key;
        let idle = self.limits.idle.min(session.expires_at.duration_since(session.created_at).unsigned_abs());
        let (user, created_at, expires_at) =
            (user_id.to_string(), session.created_at.to_string(), session.expires_at.to_string());
        let mut call = CREATE.key(session_key(session.key));
        call.key(index_key(user_id))
            .key(fence_key(user_id))
            .arg(session.epoch)
            .arg(session.created_at.as_millisecond())
            .arg(millis(idle))
            .arg(session.expires_at.as_millisecond())
            .arg(self.limits.per_user)
            .arg(prefix(user_id))
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
        Ok(match done {
            1 => Created::Done { evicted: u32::try_from(first).unwrap_or(0), replaced: second == 1 },
            _ => Created::Overtaken { fence: first },
        })
    }

    pub(super) fn confirms(&self) -> bool {
        self.redis.confirms()
    }

    pub(super) async fn confirmable(&self, user_id: Uuid) -> Result<(), StoreError> {
        if !self.redis.confirms() {
            return Ok(());
        }
        let mut call = CONFIRM.key(confirm_key(user_id));
        call.arg(CONFIRM_TTL);
        let (_, confirmation): (Value, _) = self.redis.confirmed(&CONFIRM_TRIP, &call).await?;
        confirmation
    }

    pub(super) async fn end(&self, key: SessionKey) -> Result<bool, StoreError> {
        let mut call = END.key(session_key(key));
        call.key(index_key(key.user_id)).arg(key.session_id.as_str());
        let mark = format!("user:{{{}}}:unconfirmed:{}", key.user_id.hyphenated(), key.session_id);
        if self.redis.confirms() {
            call.key(confirm_key(key.user_id)).key(&mark).arg(CONFIRM_TTL);
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
        let mut call = END.key(session_key(key));
        call.key(index_key(key.user_id)).arg(key.session_id.as_str());
        self.redis.script::<Value>(&FORGET_TRIP, &call).await.map(drop)
    }

    pub(super) async fn end_all(
        &self,
        user_id: Uuid,
        keep: Option<SessionId>,
        fence: Option<i64>,
    ) -> Result<u32, StoreError> {
        self.run_end_all(user_id, keep, fence, false).await
    }

    pub(super) async fn fence_off(&self, user_id: Uuid, epoch: i64) -> Result<u32, StoreError> {
        self.run_end_all(user_id, None, Some(epoch), true).await
    }

    async fn run_end_all(
        &self,
        user_id: Uuid,
        keep: Option<SessionId>,
        fence: Option<i64>,
        only_if_raised: bool,
    ) -> Result<u32, StoreError> {
        let mut call = END_ALL.key(index_key(user_id));
        call.key(fence_key(user_id))
            .arg(prefix(user_id))
            .arg(keep.as_ref().map_or("", SessionId::as_str))
            .arg(fence.map_or(String::new(), |epoch| epoch.to_string()))
            .arg(millis(FENCE_TTL))
            .arg(u8::from(only_if_raised));
        if self.redis.confirms() {
            call.key(confirm_key(user_id)).arg(CONFIRM_TTL);
        }
        let (ended, confirmation) = self.redis.confirmed(&END_ALL_TRIP, &call).await?;
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

fn unexpected<T>(_: T) -> StoreError {
    StoreError::new("redis: an answer of another shape than the command has")
}
