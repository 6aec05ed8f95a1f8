//! The time source. Everything that compares or stores a time takes a [`Clock`], so that time-outs are tested by
//! moving a clock, not by sleeping.
//!
//! Written by hand, because the crates that could do it lack one half of it: `tokio::time::pause` moves only tokio's
//! timers and needs a runtime of one thread, `quanta` and its like mock a monotonic clock, and what Redis and the
//! users' database keep are dates.
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

/// Wall-clock time, cheap to clone and to read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// The operating system's clock.
    pub(crate) fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still at `now` until [`Clock::advance`] moves it. Clones move together.
    #[cfg(test)]
    pub(crate) fn fixed(now: Timestamp) -> Self {
        Self(Some(Arc::new(AtomicI64::new(now.as_millisecond()))))
    }

    /// The present, to the millisecond.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.now_ms()).expect("a clock between the years -9999 and 9999")
    }

    /// The present in milliseconds since the Unix epoch.
    pub(crate) fn now_ms(&self) -> i64 {
        match &self.0 {
            Some(fixed) => fixed.load(Ordering::Acquire),
            #[expect(clippy::disallowed_methods, reason = "the one place that may ask the system for the time")]
            None => Timestamp::now().as_millisecond(),
        }
    }

    /// The present in microseconds since the Unix epoch.
    pub(crate) fn now_us(&self) -> i64 {
        match &self.0 {
            Some(fixed) => fixed.load(Ordering::Acquire) * 1000,
            #[expect(clippy::disallowed_methods, reason = "as in `now_ms`")]
            None => Timestamp::now().as_microsecond(),
        }
    }

    /// Moves a fixed clock on by `by`.
    ///
    /// # Panics
    ///
    /// On a system clock: a test that meant to move time would otherwise pass for the wrong reason.
    #[cfg(test)]
    pub(crate) fn advance(&self, by: Duration) {
        let fixed = self.0.as_ref().expect("only a fixed clock can be moved");
        fixed.fetch_add(millis(by), Ordering::AcqRel);
    }
}

/// A duration in milliseconds, in the type of [`Clock::now_ms`]. At most 292 million years.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
