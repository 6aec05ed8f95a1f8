//! The scripts that create and end sessions, in both formats. Each touches the keys of one user and one format, which
//! are in one slot.
use std::sync::LazyLock;

use redis::Script;

use crate::config::SessionFormat;

/// The scripts of one format. Their first arguments, USER, are the user's id and tag; the classic format needs neither.
pub(super) struct Scripts {
    /// KEYS: session, index, fence. ARGV: USER, epoch, created ms, idle ms, expires ms, limit, key prefix, id, replaced
    /// id or '', margin ms, then the hash's fields and values. Returns {1, evicted, replaced} or {0, fence, 0}.
    pub(super) create: Script,
    /// KEYS: session, index; and if replicas must confirm it, confirm and unconfirmed. ARGV: USER, id, confirm's life
    /// in ms. Returns whether the session was alive, or had been ended without confirmation. It removes more than it
    /// adds, so it may run while Redis is full.
    pub(super) end: Script,
    /// KEYS: index, fence, and confirm if replicas must confirm it. ARGV: USER, key prefix, id to keep or '', epoch or
    /// '', fence's life in ms, confirm's life in ms. Ends nothing if the fence is at this epoch or above. Returns how
    /// many were alive. It removes more than the fence adds, so it may run while Redis is full.
    pub(super) end_all: Script,
}

/// KEYS: confirm. ARGV: its life in ms. Writes, so that replicas have something to confirm.
pub(super) static CONFIRM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"#!lua flags=allow-oom
return redis.call('SET', KEYS[1], 1, 'PX', ARGV[1])
",
    )
});

/// KEYS: index of the compact format. ARGV: USER. Returns the ids in the index that may be those of the user's
/// sessions, oldest first.
pub(super) static COMPACT_IDS: LazyLock<Script> =
    LazyLock::new(|| Script::new(&format!("#!lua flags=no-writes\n{COMPACT_INDEX}return entries(KEYS[1])")));

static CLASSIC: LazyLock<Scripts> = LazyLock::new(|| Scripts::new(CLASSIC_INDEX, CLASSIC_CREATE));
static COMPACT: LazyLock<Scripts> = LazyLock::new(|| Scripts::new(COMPACT_INDEX, COMPACT_CREATE));

impl Scripts {
    pub(super) fn of(format: SessionFormat) -> &'static Self {
        match format {
            SessionFormat::Classic => &CLASSIC,
            SessionFormat::Compact => &COMPACT,
        }
    }

    fn new(index: &str, create: &str) -> Self {
        Self {
            create: Script::new(&format!("{index}{create}")),
            end: Script::new(&format!("#!lua flags=allow-oom\n{index}{END}")),
            end_all: Script::new(&format!("#!lua flags=allow-oom\n{index}{END_ALL}")),
        }
    }
}

/// What the scripts of the classic format know about its index, a sorted set of one user's ids.
const CLASSIC_INDEX: &str = r"
local function entries(index) return redis.call('ZRANGE', index, 0, -1) end
local function remove(index, id) redis.call('ZREM', index, id) end
local function is_theirs(key) return true end
";

/// What the scripts of the compact format know about its index, a list of the ids of all users in a bucket, oldest
/// first. What has no user's id is ended rather than kept: somebody has edited it.
const COMPACT_INDEX: &str = r"
local function entries(index)
  local found = {}
  for _, id in ipairs(redis.call('LRANGE', index, 0, -1)) do
    if string.sub(id, 1, #ARGV[2]) == ARGV[2] then found[#found + 1] = id end
  end
  return found
end
local function remove(index, id) redis.call('LREM', index, 1, id) end
local function is_theirs(key)
  local user = redis.pcall('HGET', key, 'user_id')
  return type(user) ~= 'string' or user == ARGV[1]
end
";

/// `time_of`: the time that a session's hash has in `field` (RFC 3339, UTC), in ms since the epoch, or nil. Days are
/// counted as in <https://howardhinnant.github.io/date_algorithms.html#days_from_civil>.
const CLASSIC_CREATE: &str = r"
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
local fence = tonumber(redis.call('GET', KEYS[3]) or '0')
if fence > tonumber(ARGV[3]) then return {0, fence, 0} end
local created, expires, limit, prefix = tonumber(ARGV[4]), tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local replaced = 0
if ARGV[10] ~= '' then
  replaced = redis.call('DEL', prefix .. ARGV[10])
  remove(KEYS[2], ARGV[10])
end
-- What should have ended by its score is forgotten only if it has: a clock may be wrong, and an entry of an older version
-- has the time of its session's creation.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', created)) do
  local key = prefix .. id
  if redis.call('EXISTS', key) == 0 then
    remove(KEYS[2], id)
  else
    redis.call('ZADD', KEYS[2], time_of(key, 'expires_at') or expires, id)
  end
end
local evicted = 0
if redis.call('ZCARD', KEYS[2]) >= limit then
  -- Idle or deleted sessions don't count: forget them before a live one has to go.
  local alive = {}
  for _, id in ipairs(entries(KEYS[2])) do
    local key = prefix .. id
    if redis.call('EXISTS', key) == 0 then
      remove(KEYS[2], id)
    else
      alive[#alive + 1] = {id, time_of(key, 'created_at') or 0}
    end
  end
  local excess = #alive - limit + 1
  if excess > 0 then
    table.sort(alive, function(a, b) return a[2] < b[2] or (a[2] == b[2] and a[1] < b[1]) end)
    for n = 1, excess do
      evicted = evicted + redis.call('DEL', prefix .. alive[n][1])
      remove(KEYS[2], alive[n][1])
    end
  end
end
redis.call('HSET', KEYS[1], unpack(ARGV, 12))
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('ZADD', KEYS[2], expires, ARGV[9])
local last = tonumber(redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2])
redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), last - created + tonumber(ARGV[11])))
return {1, evicted, replaced}
";

/// The number of entries that each creation looks at to find those of ended sessions is in it. If every session ends
/// without anybody telling the index, one entry in 8 is one of those.
const COMPACT_CREATE: &str = r"
local fence = tonumber(redis.call('GET', KEYS[3]) or '0')
if fence > tonumber(ARGV[3]) then return {0, fence, 0} end
local created, expires, limit, prefix = tonumber(ARGV[4]), tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local replaced = 0
if ARGV[10] ~= '' and is_theirs(prefix .. ARGV[10]) then
  replaced = redis.call('DEL', prefix .. ARGV[10])
  remove(KEYS[2], ARGV[10])
end
-- Before the index is tidied up, because a Redis that is full refuses a script's first write, and only that one.
redis.call('HSET', KEYS[1], unpack(ARGV, 12))
redis.call('PEXPIRE', KEYS[1], ARGV[5])
local all, alive, evicted = redis.call('LRANGE', KEYS[2], 0, -1), {}, 0
local function is_forgotten(id)
  if redis.call('EXISTS', prefix .. id) == 1 then return false end
  remove(KEYS[2], id)
  return true
end
for _, id in ipairs(all) do
  if string.sub(id, 1, #ARGV[2]) == ARGV[2] and not is_forgotten(id) and is_theirs(prefix .. id) then
    alive[#alive + 1] = id
  end
end
for n = 1, #alive + 1 - limit do
  evicted = evicted + redis.call('DEL', prefix .. alive[n])
  remove(KEYS[2], alive[n])
end
for n = 1, math.min(8, #all) do is_forgotten(all[(created + n) % #all + 1]) end
redis.call('RPUSH', KEYS[2], ARGV[9])
-- By both clocks, of which one may be wrong.
local now = redis.call('TIME')
local lasts = expires - math.min(created, now[1] * 1000)
redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), lasts + tonumber(ARGV[11])))
return {1, evicted, replaced}
";

const END: &str = r"
local alive = 0
if is_theirs(KEYS[1]) then
  remove(KEYS[2], ARGV[3])
  alive = redis.call('DEL', KEYS[1])
end
if KEYS[3] then
  redis.call('SET', KEYS[3], 1, 'PX', ARGV[4])
  alive = math.max(alive, redis.call('DEL', KEYS[4]))
end
return alive
";

const END_ALL: &str = r"
if KEYS[3] then redis.call('SET', KEYS[3], 1, 'PX', ARGV[7]) end
if ARGV[5] ~= '' then
  local fence, epoch = tonumber(redis.call('GET', KEYS[2]) or '0'), tonumber(ARGV[5])
  redis.call('SET', KEYS[2], math.max(fence, epoch), 'PX', math.max(redis.call('PTTL', KEYS[2]), tonumber(ARGV[6])))
  if fence >= epoch then return 0 end
end
local ended = 0
for _, id in ipairs(entries(KEYS[1])) do
  local key = ARGV[3] .. id
  if id ~= ARGV[4] and is_theirs(key) then
    ended = ended + redis.call('DEL', key)
    remove(KEYS[1], id)
  end
end
return ended
";
