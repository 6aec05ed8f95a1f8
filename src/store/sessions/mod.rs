//! What a session store promises. Both stores pass the same suite, in `conformance`.
mod codes;
#[cfg(test)]
mod conformance;
mod id;
mod memory;
mod place;
mod redis;

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

pub(crate) use self::codes::{NewCode, Taken};
pub(crate) use self::id::SessionId;
pub(crate) use self::memory::MemorySessions;
pub(crate) use self::redis::RedisSessions;
use super::{ServerState, StoreError};
use crate::clock::millis;
use crate::config::SessionFormat;
use crate::store::users::groups::Groups;

/// Identifies a session: its user, its id, and how it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionKey {
    pub user_id: Uuid,
    pub session_id: SessionId,
    /// Where in Redis it is. Memory has one place for all.
    pub format: SessionFormat,
}

impl SessionKey {
    /// The keys that a user's session with this name may have: its format is part of the token, not of the name.
    pub(crate) fn named(user_id: Uuid, session_id: SessionId) -> impl Iterator<Item = Self> {
        let compact = session_id.has_tag_of(user_id).then_some(SessionFormat::Compact);
        compact.into_iter().chain([SessionFormat::Classic]).map(move |format| Self { user_id, session_id, format })
    }
}

/// What a check reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub username: String,
    pub email: String,
    pub created_at: Timestamp,
    /// The replica that created it.
    pub created_by: String,
    /// The groups that the user is in. Changing them ends the session.
    pub groups: Groups,
}

/// A living session, as its user's list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionEntry {
    pub session_id: SessionId,
    /// When it was created.
    pub created_at: Timestamp,
    /// The absolute limit: its own, or that of the limits in force if it comes first.
    pub expires_at: Timestamp,
    /// When it ends if it isn't used before.
    pub idle_expires_at: Timestamp,
    /// When it was last used, computed from its time to live and the idle limit in force. Near the absolute limit, use
    /// no longer extends the time to live, so this is then the earliest possible time.
    pub last_seen_at: Timestamp,
    /// The replica that created it.
    pub created_by: String,
    /// The client's address when it was created.
    pub ip: String,
    /// Browser and system of the client that created it, or its `User-Agent` if they weren't recognised.
    pub user_agent: String,
    /// The hosts of applications at which it was opened, the latest first.
    pub hosts: Vec<String>,
}

/// A session to be created.
#[derive(Clone, Debug)]
pub(crate) struct NewSession {
    /// Its user and its id.
    pub key: SessionKey,
    pub username: String,
    pub email: String,
    pub groups: Groups,
    /// In whole seconds in the compact format, as the absolute limit.
    pub created_at: Timestamp,
    /// The absolute limit.
    pub expires_at: Timestamp,
    pub created_by: String,
    pub ip: String,
    /// Browser and system of the client, or its `User-Agent`, bounded.
    pub user_agent: String,
    /// The user's epoch as read before the password was verified.
    pub epoch: i64,
    /// A session of the same user and the same format that the new one replaces.
    pub replaces: Option<SessionId>,
}

/// The outcome of a request to create a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Created {
    /// The session exists, and these have ended.
    Done {
        /// Oldest sessions ended because the user had too many.
        evicted: u32,
        /// Whether the session to be replaced was alive.
        replaced: bool,
    },
    /// Nothing was created: since the password was verified, something happened that ends the user's sessions.
    Overtaken {
        /// The epoch that a session must have at least.
        fence: i64,
    },
}

/// Limits that the store applies to every session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// A session unused for this long ends.
    pub idle: Duration,
    /// A session this old ends.
    pub max_age: Duration,
    /// How many sessions a user may have. One more ends the oldest.
    pub per_user: u32,
}

/// What is known about the client of a session.
#[derive(Clone, Copy, Debug)]
struct ClientOf<'a> {
    ip: &'a str,
    user_agent: &'a str,
    /// Separated by commas.
    hosts: &'a str,
}

impl Limits {
    /// When a session ends at the latest: at its own limit, or at the limit in force if that comes first, so that a
    /// lowered `SESSION_MAX_AGE` also ends older sessions.
    pub(crate) fn end_of(&self, created_at: Timestamp, expires_at: Timestamp) -> Timestamp {
        created_at.checked_add(self.max_age).unwrap_or(Timestamp::MAX).min(expires_at)
    }

    /// The entry of a session that has `left_ms` to live. `None` if it has outlived a lowered limit.
    fn entry(
        &self,
        session_id: SessionId,
        session: &Session,
        expires_at: Timestamp,
        client: ClientOf<'_>,
        now_ms: i64,
        left_ms: i64,
    ) -> Option<SessionEntry> {
        let created_at = session.created_at;
        let expires_at = self.end_of(created_at, expires_at);
        let at = |ms| Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX);
        let now = at(now_ms);
        if expires_at <= now {
            return None;
        }
        let idle_ends = now_ms.saturating_add(left_ms);
        // The last renewal may have used another idle limit. So the result is kept between the session's creation and
        // now.
        let last_seen_at = at(idle_ends.saturating_sub(millis(self.idle))).max(created_at).min(now);
        Some(SessionEntry {
            session_id,
            created_at,
            expires_at,
            idle_expires_at: at(idle_ends).min(expires_at),
            last_seen_at,
            created_by: session.created_by.clone(),
            ip: client.ip.to_owned(),
            user_agent: client.user_agent.to_owned(),
            hosts: client.hosts.split(',').filter(|host| !host.is_empty()).map(str::to_owned).collect(),
        })
    }
}

/// The session store: Redis for a fleet, memory for one replica.
#[derive(Debug)]
pub(crate) enum SessionStore {
    Redis(RedisSessions),
    /// In this process only.
    Memory(MemorySessions),
}

macro_rules! either {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Self::Redis(store) => store.$method($($argument),*).await,
            Self::Memory(store) => Ok(store.$method($($argument),*)),
        }
    };
}

impl SessionStore {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Redis(_) => "redis",
            Self::Memory(_) => "memory",
        }
    }

    /// Whether other replicas know these sessions.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Redis(_))
    }

    /// Reads a session and renews its idle limit to `idle_for` from now, both or neither, in one round trip. A session
    /// that has ended never comes back, not even if it ends during this call.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer. `None` is an answer: there is no such session.
    pub(crate) async fn check(&self, key: SessionKey, idle_for: Duration) -> Result<Option<Session>, StoreError> {
        either!(self.check(key, idle_for))
    }

    /// Creates a session if its epoch is still current. Ends the replaced one, and the oldest ones beyond the limit.
    /// Atomic.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer. The session may then exist, but nobody has its token.
    pub(crate) async fn create(&self, session: &NewSession) -> Result<Created, StoreError> {
        either!(self.create(session))
    }

    /// Keeps a code for a living session, for 30 seconds. Returns whether the session is alive. Atomic.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer.
    pub(crate) async fn put_code(&self, code: &NewCode) -> Result<bool, StoreError> {
        either!(self.put_code(code))
    }

    /// Takes a code, so that nobody can take it again. `None` if there is none, if it is for another host or another
    /// browser's start, or if its session has ended. Atomic.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer. The code may then be gone.
    pub(crate) async fn take_code(
        &self,
        user_id: Uuid,
        hash: &str,
        host: &str,
        start: &str,
    ) -> Result<Option<Taken>, StoreError> {
        either!(self.take_code(user_id, hash, host, start))
    }

    /// Whether a session has ended only when replicas of the store confirm it.
    pub(crate) fn confirms(&self) -> bool {
        match self {
            Self::Redis(store) => store.confirms(),
            Self::Memory(_) => false,
        }
    }

    /// Finds out whether replicas would confirm that this user's sessions have ended, without ending any.
    ///
    /// # Errors
    ///
    /// When they don't, or the store doesn't answer.
    pub(crate) async fn confirmable(&self, user_id: Uuid) -> Result<(), StoreError> {
        either!(self.confirmable(user_id))
    }

    /// Ends one session and returns whether it was alive. Atomic. Replicas confirm it even if the session was already
    /// gone.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer, or too few replicas confirm it. The session may then have ended. Repeating the
    /// call is safe.
    pub(crate) async fn end(&self, key: SessionKey) -> Result<bool, StoreError> {
        either!(self.end(key))
    }

    /// Removes a session past its limit. It doesn't wait for replicas, because even if a failover brought the session
    /// back, it would be past its limit.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer.
    pub(crate) async fn forget(&self, key: SessionKey) -> Result<(), StoreError> {
        either!(self.forget(key))
    }

    /// Ends all of a user's sessions except `keep`, and returns how many were alive. Atomic.
    ///
    /// # Errors
    ///
    /// As [`SessionStore::end`].
    pub(crate) async fn end_all(&self, user_id: Uuid, keep: Option<SessionId>) -> Result<u32, StoreError> {
        either!(self.end_all(user_id, keep))
    }

    /// Ends all of a user's sessions of a lower epoch, prevents new ones, and returns how many were alive. If the fence
    /// is already at `epoch`, that has been done, and younger sessions are left alone. Atomic.
    ///
    /// # Errors
    ///
    /// As [`SessionStore::end`].
    pub(crate) async fn fence_off(&self, user_id: Uuid, epoch: i64) -> Result<u32, StoreError> {
        either!(self.fence_off(user_id, epoch))
    }

    /// All of a user's living sessions, newest first. Reading them doesn't renew them.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer.
    pub(crate) async fn list(&self, user_id: Uuid) -> Result<Vec<SessionEntry>, StoreError> {
        either!(self.list(user_id))
    }

    /// Reads a living session in full, without renewing it.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer.
    pub(crate) async fn inspect(&self, key: SessionKey) -> Result<Option<(Session, SessionEntry)>, StoreError> {
        either!(self.inspect(key))
    }

    /// The key of the living session with this name, for operators who have only its name. Looks through all sessions.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer.
    pub(crate) async fn owner(&self, session_id: SessionId) -> Result<Option<SessionKey>, StoreError> {
        either!(self.owner(session_id))
    }

    /// How many sessions are alive: counted if there are few, otherwise estimated from a sample of fixed size.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer.
    pub(crate) async fn count(&self) -> Result<u64, StoreError> {
        either!(self.count())
    }

    /// This machine's clock minus the store's, in seconds. `None` if the store has no clock of its own.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer.
    pub(crate) async fn clock_skew(&self) -> Result<Option<f64>, StoreError> {
        either!(self.clock_skew())
    }

    /// What the store's server reports about itself. `None` if there is no server.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer.
    pub(crate) async fn server_state(&self) -> Result<Option<ServerState>, StoreError> {
        either!(self.server_state())
    }

    /// Asks the store whether a check would succeed now, that is, whether it answers and accepts writes. Returns the
    /// names of the parts that don't, if others do.
    ///
    /// # Errors
    ///
    /// When no part of it does.
    pub(crate) async fn ping(&self) -> Result<Vec<String>, StoreError> {
        either!(self.ping())
    }
}
