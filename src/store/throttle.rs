//! Counts of attempts and of failed ones, shared by all replicas.
//!
//! An attempt first reserves a place with each subject. Counted attempts and those under way together never exceed the
//! limits, so concurrent attempts can't pass them. Afterwards the attempt is settled: it is charged as an attempt, or
//! also as a failure, or it gives its place back.
//!
//! | key | type | what | time to live |
//! | --- | --- | --- | --- |
//! | `throttle:{SUBJECT}:failures` | string | failures in this window | the window, from the first failure |
//! | `throttle:{SUBJECT}:attempts` | string | attempts in this window | the window, from the first attempt |
//! | `throttle:{SUBJECT}:pending` | sorted set | attempts under way, scored by the time at which they are given up | 30 s |
//!
//! The scripts also run while Redis is full; otherwise no password could be changed then. What they add is bounded:
//! each reservation is followed by a hash, which takes thousands of times as long, and every key expires after a
//! window.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::StoreError;
use super::redis::{Operation, RedisHandle, operation};
use crate::clock::{Clock, millis};

/// An attempt that is never settled, because its replica died, gives up its place after this.
const PENDING_TTL: Duration = Duration::from_secs(30);

static THROTTLE_TRIP: Operation = operation!("throttle");

/// KEYS: failures, pending, attempts. ARGV: limit of failures, of attempts, attempt, pending's life in ms.
/// Returns {1, 0}: reserved; {2, 0}: attempts under way take the rest; {0, ms}: blocked for so long.
const RESERVE: &str = r"#!lua flags=allow-oom
local limit, attempts_limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local failures = tonumber(redis.call('GET', KEYS[1]) or '0')
if failures >= limit then return {0, redis.call('PTTL', KEYS[1])} end
local attempts = tonumber(redis.call('GET', KEYS[3]) or '0')
if attempts >= attempts_limit then return {0, redis.call('PTTL', KEYS[3])} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local pending = redis.call('ZCARD', KEYS[2])
if failures + pending >= limit or attempts + pending >= attempts_limit then return {2, 0} end
redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {1, 0}
";

/// KEYS: failures, pending, attempts. ARGV: attempt, charge (see [`Charge::as_str`]), window in ms.
const SETTLE: &str = r"#!lua flags=allow-oom
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[2] == 'nothing' then return 1 end
if redis.call('INCR', KEYS[3]) == 1 then redis.call('PEXPIRE', KEYS[3], ARGV[3]) end
if ARGV[2] == 'failure' then
  if redis.call('INCR', KEYS[1]) == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
elseif ARGV[2] == 'pardon' then
  redis.call('DEL', KEYS[1])
end
return 1
";

/// Something whose attempts are counted, with its limits.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// Such as `account:…` or `address:…`.
    pub name: String,
    /// Failures in a window.
    pub limit: u32,
    /// Attempts in a window, failures included.
    pub attempts: u32,
    /// The window. It begins with the first failure or the first attempt.
    pub window: Duration,
}

/// Whether an attempt has got a place with a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reservation {
    /// The place is held until the attempt is settled.
    Held,
    /// Attempts under way could use up the limit. Try again shortly.
    Wait,
    /// The limit of failures or of attempts is used up, for this long.
    Blocked(Duration),
}

/// What a settled attempt adds to the counts of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Charge {
    /// A failure and an attempt.
    Failure,
    /// An attempt.
    Attempt,
    /// An attempt. Earlier failures are forgotten.
    AttemptAndPardon,
    /// Nothing.
    Nothing,
}

impl Charge {
    fn as_str(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Attempt => "attempt",
            Self::AttemptAndPardon => "pardon",
            Self::Nothing => "nothing",
        }
    }
}

/// The counters: in Redis for a fleet, in memory for one replica.
#[derive(Debug)]
pub(crate) enum ThrottleStore {
    /// Shared by every replica.
    Redis(Arc<RedisHandle>),
    /// Only in this process.
    Memory(MemoryCounters),
}

/// Adds a script for one subject to a pipeline. Each subject has its own slot, so a script serves only one. It is sent
/// as text rather than by its hash, because a pipeline can't load a missing script and repeat the call.
fn call<'a>(pipeline: &'a mut redis::Pipeline, script: &str, subject: &Subject) -> &'a mut redis::Pipeline {
    let key = |kind| format!("throttle:{{{}}}:{kind}", subject.name);
    pipeline.cmd("EVAL").arg(script).arg(3).arg(key("failures")).arg(key("pending")).arg(key("attempts"))
}

impl ThrottleStore {
    /// Reserves a place with each subject in one round trip, for an attempt with the unique name `attempt`. Returns the
    /// result of each subject in the same order. A blocked subject doesn't prevent reservations with the others.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer.
    pub(crate) async fn reserve(&self, subjects: &[Subject], attempt: &str) -> Result<Vec<Reservation>, StoreError> {
        let redis = match self {
            Self::Redis(redis) => redis,
            Self::Memory(counters) => {
                return Ok(subjects.iter().map(|subject| counters.reserve(subject, attempt)).collect());
            }
        };
        let mut pipeline = redis::Pipeline::with_capacity(subjects.len());
        for subject in subjects {
            call(&mut pipeline, RESERVE, subject)
                .arg(subject.limit)
                .arg(subject.attempts)
                .arg(attempt)
                .arg(millis(PENDING_TTL));
        }
        let mut reservations = Vec::with_capacity(subjects.len());
        for answer in redis.pipeline(&THROTTLE_TRIP, &pipeline).await? {
            let (answer, left): (u8, i64) = redis::from_redis_value(answer).map_err(redis::RedisError::from)?;
            reservations.push(match answer {
                1 => Reservation::Held,
                2 => Reservation::Wait,
                _ => Reservation::Blocked(Duration::from_millis(u64::try_from(left).unwrap_or(0))),
            });
        }
        Ok(reservations)
    }

    /// Settles a reserved attempt with each subject, in one round trip.
    ///
    /// # Errors
    ///
    /// When the store doesn't answer. The places are then held until they expire.
    pub(crate) async fn settle(&self, subjects: &[(Subject, Charge)], attempt: &str) -> Result<(), StoreError> {
        let redis = match self {
            Self::Redis(redis) => redis,
            Self::Memory(counters) => {
                for (subject, charge) in subjects {
                    counters.settle(subject, attempt, *charge);
                }
                return Ok(());
            }
        };
        let mut pipeline = redis::Pipeline::with_capacity(subjects.len());
        for (subject, charge) in subjects {
            call(&mut pipeline, SETTLE, subject).arg(attempt).arg(charge.as_str()).arg(millis(subject.window));
        }
        redis.pipeline(&THROTTLE_TRIP, &pipeline).await.map(drop)
    }
}

/// Counters in this process's memory.
#[derive(Debug)]
pub(crate) struct MemoryCounters {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    subjects: HashMap<String, Counter>,
    /// Reservations since the last sweep.
    since_sweep: usize,
}

impl State {
    /// Now and then removes subjects without counts, so that memory doesn't grow with those that were ever seen.
    fn sweep(&mut self, now: i64) {
        self.since_sweep += 1;
        if self.since_sweep > self.subjects.len() {
            self.since_sweep = 0;
            self.subjects.retain(|_, counter| {
                counter.forget(now);
                !counter.is_empty()
            });
        }
    }
}

#[derive(Debug, Default)]
struct Counter {
    failures: Count,
    attempts: Count,
    pending: Vec<(String, i64)>,
}

/// A count since its window began.
#[derive(Debug, Default)]
struct Count {
    number: u32,
    until_ms: i64,
}

impl Count {
    fn forget(&mut self, now: i64) {
        if self.until_ms <= now {
            self.number = 0;
        }
    }

    fn add(&mut self, now: i64, window: Duration) {
        self.number += 1;
        if self.number == 1 {
            self.until_ms = now.saturating_add(millis(window));
        }
    }

    fn left(&self, now: i64) -> Duration {
        Duration::from_millis(u64::try_from(self.until_ms - now).unwrap_or(0))
    }
}

impl Counter {
    fn forget(&mut self, now: i64) {
        self.failures.forget(now);
        self.attempts.forget(now);
        self.pending.retain(|(_, until)| *until > now);
    }

    fn is_empty(&self) -> bool {
        self.failures.number == 0 && self.attempts.number == 0 && self.pending.is_empty()
    }
}

impl MemoryCounters {
    /// No attempts yet.
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, state: Mutex::default() }
    }

    fn reserve(&self, subject: &Subject, attempt: &str) -> Reservation {
        let now = self.clock.now_ms();
        let mut state = self.state.lock();
        state.sweep(now);
        let counter = state.subjects.entry(subject.name.clone()).or_default();
        counter.forget(now);
        if counter.failures.number >= subject.limit {
            return Reservation::Blocked(counter.failures.left(now));
        }
        if counter.attempts.number >= subject.attempts {
            return Reservation::Blocked(counter.attempts.left(now));
        }
        let pending = u32::try_from(counter.pending.len()).unwrap_or(u32::MAX);
        if counter.failures.number.saturating_add(pending) >= subject.limit
            || counter.attempts.number.saturating_add(pending) >= subject.attempts
        {
            return Reservation::Wait;
        }
        let until = now.saturating_add(millis(PENDING_TTL));
        counter.pending.push((attempt.to_owned(), until));
        Reservation::Held
    }

    fn settle(&self, subject: &Subject, attempt: &str, charge: Charge) {
        let now = self.clock.now_ms();
        let mut state = self.state.lock();
        let counter = state.subjects.entry(subject.name.clone()).or_default();
        counter.pending.retain(|(pending, _)| pending != attempt);
        counter.forget(now);
        if charge != Charge::Nothing {
            counter.attempts.add(now, subject.window);
        }
        match charge {
            Charge::Failure => counter.failures.add(now, subject.window),
            Charge::AttemptAndPardon => counter.failures.number = 0,
            Charge::Attempt | Charge::Nothing => {}
        }
        if counter.is_empty() {
            state.subjects.remove(&subject.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[tokio::test]
    async fn counters_in_memory_are_swept() {
        let clock = Clock::fixed(Timestamp::from_second(1_800_000_000).expect("a time"));
        let store = ThrottleStore::Memory(MemoryCounters::new(clock.clone()));
        let subject =
            |n: u32| Subject { name: format!("name:{n}"), limit: 10, attempts: 10, window: Duration::from_mins(15) };
        let count = || match &store {
            ThrottleStore::Memory(counters) => counters.state.lock().subjects.len(),
            ThrottleStore::Redis(_) => unreachable!(),
        };
        for n in 0..1000 {
            store.reserve(&[subject(n)], "a").await.expect("memory answers");
            store.settle(&[(subject(n), Charge::Failure)], "a").await.expect("memory answers");
        }
        assert_eq!(count(), 1000);
        clock.advance(Duration::from_secs(901));
        for n in 0..1001 {
            store.reserve(&[subject(n % 3)], &n.to_string()).await.expect("memory answers");
        }
        assert!(count() <= 3, "{} subjects are kept whose windows are over", count());
    }
}
