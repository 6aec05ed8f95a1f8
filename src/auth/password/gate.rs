//! The hashing gate: a fixed number of threads, a bounded queue, an answer at once when it's full.
//!
//! - Room is shared fairly: addresses and accounts take turns, and when the queue is full, the last job of whoever has
//!   most in it makes room for somebody who has less. So one address with some accounts of its own keeps nobody else
//!   from signing in.
//! - A thread is the permit. The work takes it, not the request, so a request that goes away neither frees it early nor
//!   leaks it. Work that nobody waits for any more is dropped before it begins. Once it has begun, it runs to its end.
//! - The threads run at a lower priority and let others run every 50 µs ([`paced_argon2`]), so that session checks keep
//!   their latency during a storm of logins. The verification of a predecessor's bcrypt hash can't be interrupted that
//!   way. In containers they also leave one CPU of the machine alone (`HASH_RESERVE_CPU`).
//! - A verification costs the same whether the user exists or not (ASVS 5.0 6.3.8): one hash with the configured
//!   parameters. A hash with other parameters costs its own time until the user's next login upgrades it.
//! - The threads share Argon2's memory and reuse what was used last. What is unused for [`IDLE`] goes back to the
//!   operating system.
mod job;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::VecDeque;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem};

use metrics::{counter, gauge, histogram};
use parking_lot::{Condvar, Mutex, MutexGuard};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{Span, error, warn};

use self::job::{Job, Work};
use self::turns::Turns;
use super::stored::{Blocks, ComputeError, Scheme, StoredError};
use crate::config::HashingConfig;
use crate::metrics::{
    HASH_ABANDONED, HASH_QUEUE_LIMIT, HASH_QUEUE_SECONDS, HASH_QUEUED, HASH_RUNNING, HASH_SECONDS, HASH_SHED,
    HASH_THREADS,
};
use crate::telemetry::{chain, traces};

/// Argon2's memory goes back to the operating system when it has been unused for this long.
const IDLE: Duration = Duration::from_secs(1);
/// Added to the nice value of the hashing threads.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;
/// An estimate of what writing a block of Argon2 costs, until the first hash is measured.
const SECONDS_PER_BLOCK: f64 = 1e-6;
/// The weight of the latest job in the moving average of their time.
const SMOOTHING: f64 = 0.125;

/// The result of a verification.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The password is wrong, there is no such user, or the stored hash can't be used.
    Mismatch,
    Match {
        /// A new hash to store, if the stored one has other parameters or another algorithm than configured.
        upgraded: Option<SecretString>,
    },
}

/// Why a password was neither hashed nor verified.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HashError {
    #[error("too many passwords are waiting to be hashed")]
    Overloaded {
        /// When the work that is waiting now will be done, in whole seconds, at least one.
        retry_after: Duration,
    },
    /// The client went away before the work began.
    #[error("nobody waits for the password to be hashed any more")]
    Abandoned,
    /// The server is shutting down.
    #[error("password hashing has ended")]
    Closed,
    /// No memory, no randomness, or a bug.
    #[error("password hashing failed")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
}

/// The threads that hash and verify passwords, and their queue. One per process.
#[derive(Debug)]
pub(crate) struct HashGate {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    scheme: Scheme,
    concurrency: usize,
    capacity: usize,
    #[cfg(target_os = "linux")]
    reserve_cpu: bool,
    state: Mutex<State>,
    wake: Condvar,
    #[cfg(test)]
    probe: tests::Probe,
}

struct State {
    /// In the order of their turns.
    queue: VecDeque<Job>,
    turns: Turns,
    /// How many threads wait for work. As many jobs in the queue are about to begin.
    idle: usize,
    closed: bool,
    /// Memory that no thread uses now, the least recently used first.
    spare: Vec<(Instant, Blocks)>,
    /// Moving average of a job's time on its thread, in seconds.
    mean: f64,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("queued", &self.queue.len())
            .field("idle", &self.idle)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

/// For whom a password is hashed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    /// The client's network and the account, among which the queue is shared fairly. 0 stands for none.
    pub flows: [u64; 2],
    /// Cancelled when the client has gone. Work that has not begun by then is dropped.
    pub gone: CancellationToken,
}

impl HashGate {
    /// Starts the threads, named `hash-0` and so on.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] for parameters that Argon2 doesn't know; anything else if the operating system
    /// starts no more threads.
    pub(crate) fn start(config: &HashingConfig) -> io::Result<Arc<Self>> {
        let scheme = Scheme::new(config).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let concurrency = config.concurrency.max(1);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let mean = scheme.block_writes() as f64 * SECONDS_PER_BLOCK;
        let state =
            State { queue: VecDeque::new(), turns: Turns::default(), idle: 0, closed: false, spare: Vec::new(), mean };
        state.report_queued();
        set(HASH_QUEUE_LIMIT, config.queue);
        set(HASH_THREADS, concurrency);
        let gate = Self {
            shared: Arc::new(Shared {
                scheme,
                concurrency,
                capacity: config.queue,
                #[cfg(target_os = "linux")]
                reserve_cpu: config.reserve_cpu,
                state: Mutex::new(state),
                wake: Condvar::new(),
                #[cfg(test)]
                probe: tests::Probe::default(),
            }),
            threads: Mutex::default(),
        };
        for index in 0..concurrency {
            let shared = Arc::clone(&gate.shared);
            let thread = Builder::new().name(format!("hash-{index}")).spawn(move || shared.work_off())?;
            gate.threads.lock().push(thread);
        }
        Ok(Arc::new(gate))
    }

    /// Hashes a password as typed; the result is in the PHC string format.
    ///
    /// # Errors
    ///
    /// At once if the queue is full or the gate is closed; otherwise if the client leaves or the machine can't do it.
    pub(crate) async fn hash(&self, password: SecretString, origin: Origin) -> Result<SecretString, HashError> {
        let (reply, answer) = oneshot::channel();
        self.shared.admit(Work::Hash { password, reply }, origin)?;
        answer.await.unwrap_or_else(|error| Err(HashError::Failed(error.into())))
    }

    /// Compares a password as typed with a stored hash: Argon2 in the PHC string format, or bcrypt. `None`, for a user
    /// who doesn't exist, costs the same and never matches.
    ///
    /// # Errors
    ///
    /// As [`HashGate::hash`].
    pub(crate) async fn verify(
        &self,
        password: SecretString,
        stored: Option<SecretString>,
        origin: Origin,
    ) -> Result<Verdict, HashError> {
        let (reply, answer) = oneshot::channel();
        self.shared.admit(Work::Verify { password, stored, reply }, origin)?;
        answer.await.unwrap_or_else(|error| Err(HashError::Failed(error.into())))
    }

    /// Admits no more work, and returns when all work that somebody waits for is done and the threads have ended.
    pub(crate) async fn close(&self) {
        let threads = self.shut();
        if tokio::task::spawn_blocking(|| join(threads)).await.is_err() {
            warn!("the runtime ended before the hashing threads did");
        }
    }

    fn shut(&self) -> Vec<JoinHandle<()>> {
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_all();
        mem::take(&mut self.threads.lock())
    }
}

/// Waits at most for the hash under way, because whoever waits for an answer keeps the gate.
impl Drop for HashGate {
    fn drop(&mut self) {
        join(self.shut());
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            error!("a hashing thread panicked");
        }
    }
}

impl Shared {
    fn admit(&self, work: Work, origin: Origin) -> Result<(), HashError> {
        let waiting = traces::span!("password queue");
        let request = if traces::is_recorded() { Span::current() } else { Span::none() };
        let mut state = self.state.lock();
        if state.closed {
            return Err(HashError::Closed);
        }
        let room = self.capacity + state.idle;
        if state.queue.len() >= room {
            state.drop_abandoned();
        }
        let turn = state.turns.of(origin.flows);
        if state.queue.len() >= room {
            counter!(HASH_SHED).increment(1);
            let error = HashError::Overloaded { retry_after: state.backlog(self.concurrency) };
            if state.queue.back().is_none_or(|last| last.turn <= turn) {
                return Err(error);
            }
            let last = state.queue.pop_back().expect("just seen");
            last.work.refuse(error);
        }
        state.turns.queued(origin.flows, turn);
        let place = state.queue.partition_point(|job| job.turn <= turn);
        let job = Job { work, turn, gone: origin.gone, queued: Instant::now(), waiting, request };
        state.queue.insert(place, job);
        state.report_queued();
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// What each thread does until the gate closes.
    fn work_off(&self) {
        #[cfg(target_os = "linux")]
        {
            lower_priority();
            if self.reserve_cpu {
                reserve_cpu();
            }
        }
        let running = gauge!(HASH_RUNNING);
        let mut done = None;
        while let Some((job, mut blocks)) = self.next(done) {
            let begun = Instant::now();
            histogram!(HASH_QUEUE_SECONDS).record(begun.duration_since(job.queued).as_secs_f64());
            let Job { work, waiting, request, .. } = job;
            drop(waiting);
            let working = if request.is_none() { request } else { work.span(&request) };
            running.increment(1);
            // Otherwise a panic would cost this replica a thread for good. The requester sees the channel closed.
            let ended = catch_unwind(AssertUnwindSafe(|| self.perform(work, &mut blocks)));
            running.decrement(1);
            drop(working);
            if ended.is_err() {
                error!("a hashing job panicked");
            }
            done = Some((blocks, begun.elapsed()));
        }
    }

    /// Takes back the memory of the job that is done, and waits for the next one. `None` when the gate is closed and
    /// the queue empty.
    fn next(&self, done: Option<(Blocks, Duration)>) -> Option<(Job, Blocks)> {
        let mut state = self.state.lock();
        if let Some((blocks, took)) = done {
            state.mean += SMOOTHING * (took.as_secs_f64() - state.mean);
            state.spare.push((Instant::now(), blocks));
        }
        loop {
            while let Some(job) = state.queue.pop_front() {
                state.report_queued();
                let is_last = state.queue.is_empty();
                state.turns.taken(job.turn, is_last);
                if job.is_abandoned() {
                    counter!(HASH_ABANDONED).increment(1);
                    job.work.refuse(HashError::Abandoned);
                    continue;
                }
                let blocks = state.spare.pop().map(|(_, blocks)| blocks).unwrap_or_default();
                return Some((job, blocks));
            }
            if state.closed {
                return None;
            }
            state.idle += 1;
            if state.spare.is_empty() {
                self.wake.wait(&mut state);
            } else if self.wake.wait_for(&mut state, IDLE).timed_out() {
                let fresh = state.spare.iter().position(|(since, _)| since.elapsed() < IDLE);
                let unused = fresh.unwrap_or(state.spare.len());
                let expired: Vec<_> = state.spare.drain(..unused).collect();
                MutexGuard::unlocked(&mut state, || drop(expired));
            }
            state.idle -= 1;
        }
    }

    fn perform(&self, work: Work, blocks: &mut Blocks) {
        #[cfg(test)]
        let _running = self.probe.enter();
        match work {
            Work::Hash { password, reply } => {
                let hash = timed("hash", || self.scheme.hash(&password, blocks));
                drop(reply.send(hash.map_err(HashError::from)));
            }
            Work::Verify { password, stored, reply } => {
                let verdict = self.compare(&password, stored.as_ref(), &reply, blocks);
                drop(reply.send(verdict.map_err(HashError::from)));
            }
        }
    }

    fn compare(
        &self,
        password: &SecretString,
        stored: Option<&SecretString>,
        reply: &oneshot::Sender<Result<Verdict, HashError>>,
        blocks: &mut Blocks,
    ) -> Result<Verdict, ComputeError> {
        let parsed = stored.map(|text| self.scheme.parse(text.expose_secret())).transpose();
        let stored = match parsed {
            Ok(Some(stored)) => stored,
            unusable => {
                if let Err(reason) = unusable {
                    report_unusable(&reason);
                }
                timed("verify", || self.scheme.burn(password, blocks))?;
                return Ok(Verdict::Mismatch);
            }
        };
        if !timed("verify", || self.scheme.matches(&stored, password, blocks))? {
            return Ok(Verdict::Mismatch);
        }
        let upgrade = self.scheme.outdates(&stored, password) && !reply.is_closed();
        // A login that was right is not refused because its upgrade failed.
        let upgraded = upgrade.then(|| timed("hash", || self.scheme.hash(password, blocks))).and_then(|hash| {
            hash.inspect_err(|error| warn!(error = chain(error), "a stored password hash was not upgraded")).ok()
        });
        Ok(Verdict::Match { upgraded })
    }
}

fn report_unusable(reason: &StoredError) {
    error!(%reason, "a stored password hash can't be used; its user can't sign in until the password is set anew");
}

fn timed<T>(operation: &'static str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    histogram!(HASH_SECONDS, "operation" => operation).record(begun.elapsed().as_secs_f64());
    result
}

impl State {
    /// Makes room in a full queue.
    fn drop_abandoned(&mut self) {
        let (abandoned, wanted): (VecDeque<_>, _) = mem::take(&mut self.queue).into_iter().partition(Job::is_abandoned);
        self.queue = wanted;
        counter!(HASH_ABANDONED).increment(abandoned.len() as u64);
        for job in abandoned {
            job.work.refuse(HashError::Abandoned);
        }
        self.report_queued();
    }

    /// How long `concurrency` threads need for the work that is queued and under way.
    fn backlog(&self, concurrency: usize) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let jobs_per_thread = (self.queue.len() + concurrency) as f64 / concurrency as f64;
        Duration::from_secs_f64((jobs_per_thread * self.mean).ceil().clamp(1.0, 3600.0))
    }

    fn report_queued(&self) {
        set(HASH_QUEUED, self.queue.len());
    }
}

fn set(name: &'static str, count: usize) {
    #[expect(clippy::cast_precision_loss, reason = "queues and threads are far below 2^52")]
    gauge!(name).set(count as f64);
}

impl From<ComputeError> for HashError {
    fn from(error: ComputeError) -> Self {
        Self::Failed(error.into())
    }
}

#[cfg(target_os = "linux")]
fn lower_priority() {
    use rustix::process::{getpriority_process, setpriority_process};

    // On Linux a nice value belongs to a thread, and "no process" means the calling one.
    let lowered = getpriority_process(None).and_then(|nice| setpriority_process(None, (nice + NICE).min(19)));
    if let Err(error) = lowered {
        warn!(%error, "the priority of a hashing thread could not be lowered; logins may slow down session checks");
    }
}

/// Leaves the first CPU that this thread may use to everything else, if there is another one.
///
/// The kernel shares the CPUs among containers before it looks at the priorities of threads, so a hashing thread gives
/// way only within its own container. Replicas that may use the same CPUs leave the same one.
#[cfg(target_os = "linux")]
fn reserve_cpu() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    let reserved = sched_getaffinity(None).and_then(|mut cpus| {
        if cpus.count() < 2 {
            return Ok(());
        }
        if let Some(first) = (0..CpuSet::MAX_CPU).find(|cpu| cpus.is_set(*cpu)) {
            cpus.unset(first);
        }
        sched_setaffinity(None, &cpus)
    });
    if let Err(error) = reserved {
        warn!(%error, "HASH_RESERVE_CPU: a hashing thread uses all CPUs; logins may slow down session checks");
    }
}
