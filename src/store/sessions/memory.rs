//! Sessions in this process's memory: for one replica, for trying it out. They end with the process.
use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use uuid::Uuid;

use super::{ClientOf, Created, Limits, NewSession, Session, SessionEntry, SessionId, SessionKey};
use crate::clock::{Clock, millis};
use crate::store::ServerState;

/// Sessions in memory.
#[derive(Debug)]
pub struct MemorySessions {
    clock: Clock,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    users: HashMap<Uuid, User>,
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
    expires_at: String,
    ip: String,
    user_agent: String,
}

impl MemorySessions {
    /// An empty store.
    pub fn new(clock: Clock, limits: Limits) -> Self {
        Self { clock, limits, state: Mutex::default() }
    }

    pub(super) fn check(&self, key: SessionKey, idle_for: Duration) -> Option<Session> {
        let now = self.clock.now_ms();
        let mut state = self.state.lock();
        let user = state.users.get_mut(&key.user_id)?;
        let entry = user.sessions.iter_mut().find(|entry| entry.id == key.session_id && entry.is_alive(now))?;
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
                created_at: new.created_at.to_string(),
                created_by: new.created_by.clone(),
            },
            expires_at: new.expires_at.to_string(),
            ip: new.ip.clone(),
            user_agent: new.user_agent.clone(),
        });
        Created::Done { evicted: u32::try_from(excess).unwrap_or(u32::MAX), replaced }
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

    pub(super) fn end_all(&self, user_id: Uuid, keep: Option<SessionId>, fence: Option<i64>) -> u32 {
        let now = self.clock.now_ms();
        let mut state = self.state.lock();
        let user = state.users.entry(user_id).or_default();
        user.fence = user.fence.max(fence.unwrap_or(0));
        user.sessions.retain(|entry| entry.is_alive(now));
        let before = user.sessions.len();
        user.sessions.retain(|entry| Some(entry.id) == keep);
        u32::try_from(before - user.sessions.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn fence_off(&self, user_id: Uuid, epoch: i64) -> u32 {
        let stands = self.state.lock().users.get(&user_id).is_some_and(|user| user.fence >= epoch);
        // The fence only rises: if it stands by now, somebody else has ended them.
        if stands { 0 } else { self.end_all(user_id, None, Some(epoch)) }
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

    pub(super) fn owner(&self, session_id: SessionId) -> Option<Uuid> {
        let now = self.clock.now_ms();
        let state = self.state.lock();
        let owns = |user: &User| user.sessions.iter().any(|entry| entry.id == session_id && entry.is_alive(now));
        state.users.iter().find(|(_, user)| owns(user)).map(|(id, _)| *id)
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
        let client = ClientOf { ip: &self.ip, user_agent: &self.user_agent };
        limits.entry(self.id, &self.session, &self.expires_at, client, now, self.idle_expires_at_ms - now)
    }
}
