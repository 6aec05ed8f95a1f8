//! Gauges of this replica and its parts, refreshed every few seconds whether or not Prometheus asks.
//!
//! A gauge whose part doesn't answer becomes NaN, since an old value would look like a present one. A gauge whose value
//! was never known is absent: those of Redis while sessions are in memory.
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{Gauge, gauge};
use tokio::time::MissedTickBehavior;

use crate::http::App;
use crate::metrics::{
    CLOCK_SKEW, DRAINING, PART_READY, READY, REDIS_EVICTED, REDIS_MEMORY, REDIS_MEMORY_LIMIT, REDIS_PERSISTENCE_OK,
    REDIS_REPLICAS, REDIS_SHARDS_MISSING, SESSIONS_ALIVE, SQL_CONNECTIONS, SQL_CONNECTIONS_LIMIT, USERS_DATABASE_BYTES,
    USERS_JOURNAL_BYTES, USERS_PRIMARY, USERS_VOLUME_BYTES, USERS_VOLUME_FREE_BYTES,
};
use crate::readiness::Readiness;
use crate::store::StoreError;
use crate::store::users::{Connections, Usage};

/// How often everything except the number of sessions is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often sessions are counted. A count takes about a dozen round trips.
const COUNT_EVERY: Duration = Duration::from_secs(30);

/// Refreshes the gauges until the process ends.
pub(crate) async fn watch(app: Arc<App>) {
    let mut gauges = Gauges::new();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        gauges.look(&app).await;
    }
}

/// Shows at once that this replica drains, rather than at the next look.
pub(crate) fn drain_begins() {
    gauge!(DRAINING).set(1);
    gauge!(READY).set(0);
}

struct Gauges {
    ready: Gauge,
    sessions_ready: Gauge,
    users_ready: Gauge,
    clock_skew: Reading,
    memory: Reading,
    memory_limit: Reading,
    evicted: Reading,
    persistence_ok: Reading,
    replicas: Reading,
    shards_missing: Reading,
    alive: Reading,
    primary: Reading,
    database: Reading,
    journal: Reading,
    volume: Reading,
    volume_free: Reading,
    asking_time: Question,
    asking_info: Question,
    asking_count: Question,
    /// When sessions were counted last.
    counted: Option<Instant>,
}

impl Gauges {
    fn new() -> Self {
        // Registers the gauge, which is 0 until the drain begins.
        drop(gauge!(DRAINING));
        let part = |name| gauge!(PART_READY, "part" => name);
        Self {
            ready: gauge!(READY),
            sessions_ready: part("sessions"),
            users_ready: part("users"),
            clock_skew: Reading::of(CLOCK_SKEW),
            memory: Reading::of(REDIS_MEMORY),
            memory_limit: Reading::of(REDIS_MEMORY_LIMIT),
            evicted: Reading::of(REDIS_EVICTED),
            persistence_ok: Reading::of(REDIS_PERSISTENCE_OK),
            replicas: Reading::of(REDIS_REPLICAS),
            shards_missing: Reading::of(REDIS_SHARDS_MISSING),
            alive: Reading::of(SESSIONS_ALIVE),
            primary: Reading::of(USERS_PRIMARY),
            database: Reading::of(USERS_DATABASE_BYTES),
            journal: Reading::of(USERS_JOURNAL_BYTES),
            volume: Reading::of(USERS_VOLUME_BYTES),
            volume_free: Reading::of(USERS_VOLUME_FREE_BYTES),
            asking_time: Question::about("the clocks can't be compared", "TIME"),
            asking_info: Question::about("Redis's memory and persistence are not watched", "INFO"),
            asking_count: Question::about("sessions are not counted", "DBSIZE, SCAN and RANDOMKEY"),
            counted: None,
        }
    }

    async fn look(&mut self, app: &App) {
        // First, because asking whether the database is ready keeps a connection busy.
        self.look_at_users(&app.auth.users.usage());
        let readiness = Readiness::of(&app.auth, app.drain.is_cancelled()).await;
        self.primary.set(app.auth.users.usage().is_primary.map(flag));
        self.sessions_ready.set(flag(readiness.sessions.is_ready()));
        self.users_ready.set(flag(readiness.users.is_ready()));
        self.ready.set(flag(readiness.is_ready()));
        if app.drain.is_cancelled() {
            // The drain may have begun after readiness was asked for.
            self.ready.set(0);
        }
        let is_there = readiness.sessions.is_ready();
        let missing = readiness.sessions.missing.len() as u64;
        self.shards_missing.set((is_there && app.auth.sessions.is_shared()).then(|| as_f64(missing)));
        self.look_at_sessions(app, is_there).await;
    }

    fn look_at_users(&mut self, usage: &Usage) {
        for &Connections { pool, limit, idle, busy } in &usage.pools {
            for (state, count) in [("idle", idle), ("busy", busy)] {
                gauge!(SQL_CONNECTIONS, "pool" => pool, "state" => state).set(as_f64(count as u64));
            }
            gauge!(SQL_CONNECTIONS_LIMIT, "pool" => pool).set(as_f64(limit as u64));
        }
        self.database.set(usage.database.map(as_f64));
        self.journal.set(usage.journal.map(as_f64));
        self.volume.set(usage.volume.map(as_f64));
        self.volume_free.set(usage.volume_free.map(as_f64));
    }

    async fn look_at_sessions(&mut self, app: &App, is_there: bool) {
        let store = &app.auth.sessions;
        // A store that doesn't answer is asked nothing more, and its sessions are counted as soon as it is back.
        let (skew, state) = if is_there {
            let skew = self.asking_time.ask(store.clock_skew()).await.flatten();
            (skew, self.asking_info.ask(store.server_state()).await.flatten().unwrap_or_default())
        } else {
            self.counted = None;
            Default::default()
        };
        self.clock_skew.set(skew);
        self.memory.set(state.memory.map(as_f64));
        self.memory_limit.set(state.memory_limit.map(as_f64));
        self.evicted.set(state.evicted_keys.map(as_f64));
        self.persistence_ok.set(state.is_persistence_ok.map(flag));
        self.replicas.set(state.replicas.map(as_f64));

        if !is_there {
            self.alive.set(None);
        } else if self.counted.is_none_or(|counted| counted.elapsed() >= COUNT_EVERY) {
            let count = self.asking_count.ask(store.count()).await;
            self.counted = count.map(|_| Instant::now());
            self.alive.set(count.map(as_f64));
        }
    }
}

/// A gauge whose value may be unknown.
struct Reading {
    name: &'static str,
    /// Registered with the first value.
    gauge: Option<Gauge>,
}

impl Reading {
    fn of(name: &'static str) -> Self {
        Self { name, gauge: None }
    }

    fn set(&mut self, value: Option<f64>) {
        match (value, &self.gauge) {
            (Some(value), _) => self.gauge.get_or_insert_with(|| gauge!(self.name)).set(value),
            (None, Some(gauge)) => gauge.set(f64::NAN),
            (None, None) => {}
        }
    }
}

/// A question that Redis's ACL may forbid this user.
struct Question {
    loss: &'static str,
    commands: &'static str,
    is_refused: bool,
}

impl Question {
    fn about(loss: &'static str, commands: &'static str) -> Self {
        Self { loss, commands, is_refused: false }
    }

    /// Asks, unless the answer was refused before. The store reports other failures, and the next look asks again.
    async fn ask<T>(&mut self, answer: impl Future<Output = Result<T, StoreError>>) -> Option<T> {
        if self.is_refused {
            return None;
        }
        let error = match answer.await {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        if error.is_refusal() {
            self.is_refused = true;
            tracing::warn!(%error, commands = self.commands, "{}: Redis's ACL must allow this user these commands, and \
                the replica be restarted", self.loss);
        }
        None
    }
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn as_f64(value: u64) -> f64 {
    value as f64
}
