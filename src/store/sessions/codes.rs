//! Single-use codes that take a session to another host (forward auth), in Redis and in memory.
//!
//! | key | type | what | time to live |
//! | --- | --- | --- | --- |
//! | `user:{USER_ID}:code:HASH`, or `user:{BUCKET}:USER_ID:code:HASH` | hash | a code that was handed out, by the SHA-256 of it: `session_id`, `expires_at_ms`, `host`, `start`, `to` | [`CODE_TTL`] |
//!
//! It is in the slot of its session, so that one script can take it and look at the session. A leak of the store gives
//! no code away.
use std::sync::LazyLock;
use std::time::Duration;

use redis::Script;
use uuid::Uuid;

use super::redis::{Keys, RedisSessions, session_key};
use super::{SessionId, SessionKey};
use crate::clock::millis;
use crate::config::SessionFormat;
use crate::store::StoreError;
use crate::store::redis::{Operation, operation};

/// How long a code is valid: long enough for a browser to follow two redirects.
pub(super) const CODE_TTL: Duration = Duration::from_secs(30);
/// The most hosts that a session remembers.
pub(super) const HOSTS_KEPT: usize = 20;

/// A code to be handed out.
#[derive(Clone, Debug)]
pub(crate) struct NewCode {
    pub key: SessionKey,
    /// SHA-256 of the code, in hexadecimal digits.
    pub hash: String,
    /// The session's absolute limit, in ms since the epoch.
    pub expires_at_ms: i64,
    /// The host that may take it.
    pub host: String,
    /// The hash of the browser's start cookie.
    pub start: String,
    /// The path and query to go to afterwards.
    pub to: String,
}

/// A code that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The session that it was handed out for.
    pub key: SessionKey,
    pub expires_at_ms: i64,
    pub to: String,
}

static PUT_TRIP: Operation = operation!("put_code");
static TAKE_TRIP: Operation = operation!("take_code");

/// KEYS: code, session. ARGV: its life in ms, then the hash's fields and values. Returns whether the session is alive;
/// if it isn't, there is no code.
static PUT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
",
    )
});

/// KEYS: code. ARGV: prefix of the user's sessions, host, start, hosts to keep. Takes the code away, whoever asks.
/// Returns {session id, absolute limit, where to go} if host, start and a living session fit it, else {}. The session
/// remembers the host.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local code = redis.call('HMGET', KEYS[1], 'session_id', 'expires_at_ms', 'host', 'start', 'to')
if redis.call('DEL', KEYS[1]) == 0 then return {} end
if code[3] ~= ARGV[2] or code[4] ~= ARGV[3] then return {} end
local session = ARGV[1] .. code[1]
if redis.call('EXISTS', session) == 0 then return {} end
local kept, hosts = ARGV[2], 1
for host in string.gmatch(redis.call('HGET', session, 'hosts') or '', '[^,]+') do
  if host ~= ARGV[2] and hosts < tonumber(ARGV[4]) then
    kept, hosts = kept .. ',' .. host, hosts + 1
  end
end
redis.call('HSET', session, 'hosts', kept)
return {code[1], code[2], code[5]}
",
    )
});

impl RedisSessions {
    pub(super) async fn put_code(&self, code: &NewCode) -> Result<bool, StoreError> {
        let keys = Keys::of(code.key.user_id, code.key.format);
        let mut call = PUT.key(keys.code(&code.hash));
        call.key(session_key(code.key)).arg(millis(CODE_TTL));
        for (field, value) in [
            ("session_id", code.key.session_id.as_str()),
            ("expires_at_ms", &code.expires_at_ms.to_string()),
            ("host", &code.host),
            ("start", &code.start),
            ("to", &code.to),
        ] {
            call.arg(field).arg(value);
        }
        self.redis.script(&PUT_TRIP, &call).await
    }

    pub(super) async fn take_code(
        &self,
        user_id: Uuid,
        hash: &str,
        host: &str,
        start: &str,
    ) -> Result<Option<Taken>, StoreError> {
        // The code doesn't say which format its session has. The default comes first.
        for format in [SessionFormat::Classic, SessionFormat::Compact] {
            let keys = Keys::of(user_id, format);
            let mut call = TAKE.key(keys.code(hash));
            call.arg(keys.prefix()).arg(host).arg(start).arg(HOSTS_KEPT);
            let found: Vec<String> = self.redis.script(&TAKE_TRIP, &call).await?;
            let Ok([session_id, expires_at_ms, to]) = <[String; 3]>::try_from(found) else { continue };
            let (Some(session_id), Ok(expires_at_ms)) = (SessionId::parse(&session_id), expires_at_ms.parse()) else {
                continue;
            };
            return Ok(Some(Taken { key: SessionKey { user_id, session_id, format }, expires_at_ms, to }));
        }
        Ok(None)
    }
}
