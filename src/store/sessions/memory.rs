//! Sessions in this process's memory, for trying out one replica. They end with the process.
use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use uuid::Uuid;

use super::codes::{CODE_TTL, HOSTS_KEPT, NewCode, Taken};
use super::{ClientOf, Created, Limits, NewSession, Session, SessionEntry, SessionId, SessionKey};
use crate::clock::{Clock, millis};
use crate::store::ServerState;

#[derive(Debug)]
pub(crate) struct MemorySessions {
    clock: Clock,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    users: HashMap<Uuid, User>,
    /// Codes by their hash, each with the time at which it expires.
    codes: HashMap<String, (NewCode, i64)>,
    /// Creations since the last sweep.
    since_sweep: usize,
}

#[derive(Debug, Default)]
struct User {
    /// Oldest first.
    sessions: Vec<Entry>,
    fence: i64,
}

#[derive(Debug)]
struct Entry {
    id: SessionId,
    idle_expires_at_ms: i64,
    session: Session,
    expires_at: Timestamp,
    ip: String,
    user_agent: String,
    /// Separated by commas, the latest first.
    hosts: String,
}

impl MemorySessions {
    pub(crate) fn new(clock: Clock, limits: Limits) -> Self {
        Self { clock, limits, state: Mutex::default() }
    }

    pub(super) fn check(&self, key: SessionKey, idle_for: Duration) -> Option<Session> {
        let now = self.clock.now_ms();
        let mut state = self.state.lock();
        let entry = state.entry(key, now)?;
        entry.idle_expires_at_ms = now + millis(idle_for);
        Some(entry.session.clone())
    }

    pub(super) fn create(&self, new: &NewSession) -> Created {
        let now = self.clock.now_ms();
        let mut state = self.state.lock();
        state.sweep(now);
        let user = state.users.entry(new.key.user_id).or_default();
        if user.fence > new.epoch {
            return Created::Overtaken { fence: user.fence };
        }
        user.sessions.retain(|entry| entry.is_alive(now));
        let replaced = new.replaces.is_some_and(|id| user.remove(id));
        let excess = (user.sessions.len() + 1).saturating_sub(self.limits.per_user as usize);
        user.sessions.drain(..excess);
        let idle = millis(self.limits.idle).min(new.expires_at.as_millisecond() - new.created_at.as_millisecond());
        user.sessions.push(Entry {
            id: new.key.session_id,
            idle_expires_at_ms: now + idle,
            session: Session {
                username: new.username.clone(),
                email: new.email.clone(),
                created_at: new.created_at,
                created_by: new.created_by.clone(),
                groups: new.groups.clone(),
            },
            expires_at: new.expires_at,
            ip: new.ip.clone(),
            user_agent: new.user_agent.clone(),
            hosts: String::new(),
        });
        Created::Done { evicted: u32::try_from(excess).unwrap_or(u32::MAX), replaced }
    }

    pub(super) fn put_code(&self, code: &NewCode) -> bool {
        let now = self.clock.now_ms();
        let mut state = self.state.lock();
        if state.entry(code.key, now).is_none() {
            return false;
        }
        state.codes.retain(|_, (_, ends)| now < *ends);
        state.codes.insert(code.hash.clone(), (code.clone(), now + millis(CODE_TTL)));
        true
    }

    pub(super) fn take_code(&self, user_id: Uuid, hash: &str, host: &str, start: &str) -> Option<Taken> {
        let now = self.clock.now_ms();
        let mut state = self.state.lock();
        let (code, ends) = state.codes.remove(hash)?;
        if code.key.user_id != user_id || code.host != host || code.start != start || now >= ends {
            return None;
        }
        let entry = state.entry(code.key, now)?;
        let others = entry.hosts.split(',').filter(|known| !known.is_empty() && *known != host).take(HOSTS_KEPT - 1);
        entry.hosts = std::iter::once(host).chain(others).collect::<Vec<_>>().join(",");
        let NewCode { key, expires_at_ms, to, .. } = code;
        Some(Taken { key, expires_at_ms, to })
    }

    pub(super) fn end(&self, key: SessionKey) -> bool {
        let now = self.clock.now_ms();
        let mut state = self.state.lock();
        let Some(user) = state.users.get_mut(&key.user_id) else { return false };
        user.sessions.retain(|entry| entry.is_alive(now));
        user.remove(key.session_id)
    }

    pub(super) fn forget(&self, key: SessionKey) {
        self.end(key);
    }

    #[expect(clippy::unused_self, reason = "the same shape as the Redis store")]
    pub(super) fn confirmable(&self, _: Uuid) {}

    pub(super) fn end_all(&self, user_id: Uuid, keep: Option<SessionId>) -> u32 {
        self.state.lock().users.get_mut(&user_id).map_or(0, |user| user.end_all(keep, self.clock.now_ms()))
    }

    pub(super) fn fence_off(&self, user_id: Uuid, epoch: i64) -> u32 {
        let mut state = self.state.lock();
        let user = state.users.entry(user_id).or_default();
        // The fence only rises. If it is at this epoch already, another call has ended the sessions.
        if user.fence >= epoch {
            return 0;
        }
        user.fence = epoch;
        user.end_all(None, self.clock.now_ms())
    }

    pub(super) fn list(&self, user_id: Uuid) -> Vec<SessionEntry> {
        let now = self.clock.now_ms();
        let state = self.state.lock();
        let sessions = state.users.get(&user_id).map_or(&[][..], |user| &user.sessions);
        let alive = sessions.iter().rev().filter(|entry| entry.is_alive(now));
        alive.filter_map(|entry| entry.shown(now, &self.limits)).collect()
    }

    pub(super) fn inspect(&self, key: SessionKey) -> Option<(Session, SessionEntry)> {
        let now = self.clock.now_ms();
        let state = self.state.lock();
        let mut sessions = state.users.get(&key.user_id)?.sessions.iter();
        let entry = sessions.find(|entry| entry.id == key.session_id && entry.is_alive(now))?;
        Some((entry.session.clone(), entry.shown(now, &self.limits)?))
    }

    pub(super) fn owner(&self, session_id: SessionId) -> Option<SessionKey> {
        let now = self.clock.now_ms();
        let state = self.state.lock();
        let owns = |user: &User| user.sessions.iter().any(|entry| entry.id == session_id && entry.is_alive(now));
        let (&user_id, _) = state.users.iter().find(|(_, user)| owns(user))?;
        SessionKey::named(user_id, session_id).next()
    }

    pub(super) fn count(&self) -> u64 {
        let now = self.clock.now_ms();
        let state = self.state.lock();
        state.users.values().flat_map(|user| &user.sessions).filter(|entry| entry.is_alive(now)).count() as u64
    }

    #[expect(clippy::unused_self, reason = "the same shape as the Redis store")]
    pub(super) fn clock_skew(&self) -> Option<f64> {
        None
    }

    #[expect(clippy::unused_self, reason = "the same shape as the Redis store")]
    pub(super) fn server_state(&self) -> Option<ServerState> {
        None
    }

    #[expect(clippy::unused_self, reason = "the same shape as the Redis store")]
    pub(super) fn ping(&self) -> Vec<String> {
        Vec::new()
    }
}

impl State {
    /// A session that is alive.
    fn entry(&mut self, key: SessionKey, now: i64) -> Option<&mut Entry> {
        let user = self.users.get_mut(&key.user_id)?;
        user.sessions.iter_mut().find(|entry| entry.id == key.session_id && entry.is_alive(now))
    }

    /// Forgets ended sessions now and then, so that memory follows the living ones.
    fn sweep(&mut self, now: i64) {
        self.since_sweep += 1;
        if self.since_sweep <= self.users.len() {
            return;
        }
        self.since_sweep = 0;
        self.users.retain(|_, user| {
            user.sessions.retain(|entry| entry.is_alive(now));
            !user.sessions.is_empty() || user.fence > 0
        });
    }
}

impl User {
    /// Ends all sessions except `keep`. Returns how many were alive.
    fn end_all(&mut self, keep: Option<SessionId>, now: i64) -> u32 {
        self.sessions.retain(|entry| entry.is_alive(now));
        let before = self.sessions.len();
        self.sessions.retain(|entry| Some(entry.id) == keep);
        u32::try_from(before - self.sessions.len()).unwrap_or(u32::MAX)
    }

    fn remove(&mut self, id: SessionId) -> bool {
        let before = self.sessions.len();
        self.sessions.retain(|entry| entry.id != id);
        self.sessions.len() < before
    }
}

impl Entry {
    fn is_alive(&self, now: i64) -> bool {
        now < self.idle_expires_at_ms
    }

    fn shown(&self, now: i64, limits: &Limits) -> Option<SessionEntry> {
        let client = ClientOf { ip: &self.ip, user_agent: &self.user_agent, hosts: &self.hosts };
        limits.entry(self.id, &self.session, self.expires_at, client, now, self.idle_expires_at_ms - now)
    }
}
