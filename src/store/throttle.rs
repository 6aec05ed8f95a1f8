//! Counts of failed attempts, shared by all replicas.
//!
//! An attempt first reserves a place: failures and attempts under way together never exceed the limit, so attempts made
//! at once can't pass it. Afterwards it is settled: a failure is charged, anything else gives its place back.
//!
//! | key | type | what | time to live |
//! | --- | --- | --- | --- |
//! | `throttle:{SUBJECT}:failures` | string | failures in this window | the window, from the first failure |
//! | `throttle:{SUBJECT}:pending` | sorted set | attempts under way, scored by when they're given up | 30 s |
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use redis::Script;

use super::StoreError;
use super::redis::{Operation, RedisHandle, operation};
use crate::clock::Clock;

/// An attempt that was never settled, because its replica died, is given up after this.
const PENDING_TTL: Duration = Duration::from_secs(30);

static THROTTLE_TRIP: Operation = operation!("throttle");

/// KEYS: failures, pending. ARGV: limit, attempt, pending's life in ms.
/// Returns {1, 0}: reserved; {2, 0}: attempts under way take the rest; {0, ms}: blocked for so long.
static RESERVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local failures, limit = tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1])
if failures >= limit then return {0, redis.call('PTTL', KEYS[1])} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if failures + redis.call('ZCARD', KEYS[2]) >= limit then return {2, 0} end
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {1, 0}
",
    )
});

/// KEYS: failures, pending. ARGV: attempt, outcome (`failed`, `reset`, `released`), window in ms.
static SETTLE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[2] == 'failed' then
  if redis.call('INCR', KEYS[1]) == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
elseif ARGV[2] == 'reset' then
  redis.call('DEL', KEYS[1])
end
return 1
",
    )
});

/// Whose failures are counted, and how many are too many.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Such as `account:…` or `address:…`.
    pub name: String,
    /// Failures in a window.
    pub limit: u32,
    /// The window, from the first failure.
    pub window: Duration,
}

/// Whether an attempt may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It has a place, and must be settled.
    Reserved,
    /// Attempts under way could use up what is left: ask again shortly.
    Wait,
    /// Too many failures, for this long.
    Blocked(Duration),
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It counts.
    Failed,
    /// It doesn't count, and those before it are forgotten.
    Reset,
    /// It doesn't count.
    Released,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Reset => "reset",
            Self::Released => "released",
        }
    }
}

/// The counters: in Redis for a fleet, in memory for one replica.
#[derive(Debug)]
pub enum ThrottleStore {
    /// Shared by every replica.
    Redis(Arc<RedisHandle>),
    /// In this process alone.
    Memory(MemoryCounters),
}

fn keys(subject: &Subject) -> (String, String) {
    (format!("throttle:{{{}}}:failures", subject.name), format!("throttle:{{{}}}:pending", subject.name))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("a duration below 584 million years")
}

impl ThrottleStore {
    /// Reserves a place for `attempt`, a name of its own.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer.
    pub async fn reserve(&self, subject: &Subject, attempt: &str) -> Result<Admission, StoreError> {
        let redis = match self {
            Self::Redis(redis) => redis,
            Self::Memory(counters) => return Ok(counters.reserve(subject, attempt)),
        };
        let (failures, pending) = keys(subject);
        let mut call = RESERVE.key(failures);
        call.key(pending).arg(subject.limit).arg(attempt).arg(millis(PENDING_TTL));
        let (answer, left): (u8, i64) = redis.script(&THROTTLE_TRIP, &call).await?;
        Ok(match answer {
            1 => Admission::Reserved,
            2 => Admission::Wait,
            _ => Admission::Blocked(Duration::from_millis(u64::try_from(left).unwrap_or(0))),
        })
    }

    /// Settles a reserved attempt.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer; the place is then held until it's given up.
    pub async fn settle(&self, subject: &Subject, attempt: &str, outcome: Outcome) -> Result<(), StoreError> {
        let redis = match self {
            Self::Redis(redis) => redis,
            Self::Memory(counters) => {
                counters.settle(subject, attempt, outcome);
                return Ok(());
            }
        };
        let (failures, pending) = keys(subject);
        let mut call = SETTLE.key(failures);
        call.key(pending).arg(attempt).arg(outcome.as_str()).arg(millis(subject.window));
        redis.script::<i64>(&THROTTLE_TRIP, &call).await.map(drop)
    }
}

/// Counters in this process's memory.
#[derive(Debug)]
pub struct MemoryCounters {
    clock: Clock,
    subjects: Mutex<HashMap<String, Counter>>,
}

#[derive(Debug, Default)]
struct Counter {
    failures: u32,
    until_ms: i64,
    pending: Vec<(String, i64)>,
}

impl Counter {
    fn forget(&mut self, now: i64) {
        if self.until_ms <= now {
            self.failures = 0;
        }
        self.pending.retain(|(_, until)| *until > now);
    }
}

impl MemoryCounters {
    /// No failures yet.
    pub fn new(clock: Clock) -> Self {
        Self { clock, subjects: Mutex::default() }
    }

    fn reserve(&self, subject: &Subject, attempt: &str) -> Admission {
        let now = self.clock.now_ms();
        let mut subjects = self.subjects.lock();
        let counter = subjects.entry(subject.name.clone()).or_default();
        counter.forget(now);
        if counter.failures >= subject.limit {
            return Admission::Blocked(Duration::from_millis(u64::try_from(counter.until_ms - now).unwrap_or(0)));
        }
        if counter.failures as usize + counter.pending.len() >= subject.limit as usize {
            return Admission::Wait;
        }
        let until = now.saturating_add(i64::try_from(millis(PENDING_TTL)).unwrap_or(i64::MAX));
        counter.pending.push((attempt.to_owned(), until));
        Admission::Reserved
    }

    fn settle(&self, subject: &Subject, attempt: &str, outcome: Outcome) {
        let now = self.clock.now_ms();
        let mut subjects = self.subjects.lock();
        let Some(counter) = subjects.get_mut(&subject.name) else { return };
        counter.pending.retain(|(pending, _)| pending != attempt);
        counter.forget(now);
        match outcome {
            Outcome::Failed => {
                counter.failures += 1;
                if counter.failures == 1 {
                    counter.until_ms = now.saturating_add(i64::try_from(millis(subject.window)).unwrap_or(i64::MAX));
                }
            }
            Outcome::Reset => counter.failures = 0,
            Outcome::Released => {}
        }
        if counter.failures == 0 && counter.pending.is_empty() {
            subjects.remove(&subject.name);
        }
    }
}
