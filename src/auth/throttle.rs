//! Limits on guessing, and on hashing for one client: per account and per client address, over all replicas (ASVS 5.0
//! 6.3.1; NIST SP 800-63B-4 §3.2.2).
//!
//! A sign-in is counted under three kinds of subjects: the client's networks, the name as typed, and the account that
//! the name belongs to, if any. Only the first two can cause a 429. An account that is blocked because of attempts at
//! another of its names answers as a name without account does, with 401 after a hash, until the count of this name is
//! full. Otherwise a 429 would tell which names belong together, and which exist.
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::AuthError;
use crate::store::throttle::{Charge, Reservation, Subject, ThrottleStore};

/// How long an attempt that can't be admitted yet waits.
const WAIT: Duration = Duration::from_millis(1500);
/// An attempt that waits asks again when one before it has ended in this replica. For those that end in another replica
/// it also asks after this pause, which doubles each time.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How many attempts of one subject wait in this replica. One more is refused at once.
const WAITING: usize = 64;
/// IPv6 prefixes that are counted, each with the factor by which its limit exceeds that of an address. A customer has
/// at least a /64, often a /56, sometimes a /48.
const IPV6_PREFIXES: [(u8, u32); 3] = [(64, 1), (56, 4), (48, 16)];

#[derive(Clone, Debug)]
pub(crate) struct Throttle {
    shared: Arc<Shared>,
    limits: Limits,
}

#[derive(Debug)]
struct Shared {
    store: ThrottleStore,
    queues: Mutex<HashMap<String, Queue>>,
}

/// Attempts in this replica that wait for others of the same subject.
#[derive(Debug, Default)]
struct Queue {
    waiting: usize,
    settled: Arc<Notify>,
}

/// How many of each are admitted within a window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Failures of one account, or of one name.
    pub per_account: u32,
    /// Failures from one address.
    pub per_address: u32,
    /// Passwords that are hashed for one account.
    pub attempts_per_account: u32,
    /// Passwords that are hashed for one address.
    pub attempts_per_address: u32,
    /// Registrations from one address.
    pub registrations: u32,
    /// Begins with the first attempt that is counted.
    pub window: Duration,
}

impl Throttle {
    pub(crate) fn new(store: ThrottleStore, limits: Limits) -> Self {
        Self { shared: Arc::new(Shared { store, queues: Mutex::default() }), limits }
    }

    /// Admits an attempt to sign in. `name` stands for the name as typed, in any spelling.
    ///
    /// # Errors
    ///
    /// [`AuthError::Throttled`]; [`AuthError::Overloaded`]; [`AuthError::Abandoned`]; no store.
    pub(crate) async fn admit_login(
        &self,
        name: &str,
        account: Option<Uuid>,
        ip: IpAddr,
        gone: &CancellationToken,
    ) -> Result<Attempt, AuthError> {
        let mut subjects = self.networks("address", ip, self.limits.per_address, self.limits.attempts_per_address);
        subjects.push(self.account(format!("name:{name}")));
        let hidden = account.map(|id| self.account(format!("account:{id}")));
        self.admit(subjects, hidden, gone).await
    }

    /// Admits an attempt of somebody who is signed in to confirm the password.
    ///
    /// # Errors
    ///
    /// As [`Throttle::admit_login`].
    pub(crate) async fn admit_confirmation(
        &self,
        account: Uuid,
        ip: IpAddr,
        gone: &CancellationToken,
    ) -> Result<Attempt, AuthError> {
        let mut subjects = self.networks("address", ip, self.limits.per_address, self.limits.attempts_per_address);
        subjects.push(self.account(format!("account:{account}")));
        self.admit(subjects, None, gone).await
    }

    /// Admits a registration.
    ///
    /// # Errors
    ///
    /// As [`Throttle::admit_login`].
    pub(crate) async fn admit_registration(&self, ip: IpAddr, gone: &CancellationToken) -> Result<Attempt, AuthError> {
        let subjects = self.networks("registrations", ip, self.limits.registrations, u32::MAX);
        self.admit(subjects, None, gone).await
    }

    fn account(&self, name: String) -> Subject {
        let Limits { per_account, attempts_per_account, window, .. } = self.limits;
        Subject { name, limit: per_account, attempts: attempts_per_account, window }
    }

    fn networks(&self, kind: &str, ip: IpAddr, limit: u32, attempts: u32) -> Vec<Subject> {
        let subject = |(network, factor): (String, u32)| Subject {
            name: format!("{kind}:{network}"),
            limit: limit.saturating_mul(factor),
            attempts: attempts.saturating_mul(factor),
            window: self.limits.window,
        };
        networks(ip).into_iter().map(subject).collect()
    }

    async fn admit(
        &self,
        visible: Vec<Subject>,
        hidden: Option<Subject>,
        gone: &CancellationToken,
    ) -> Result<Attempt, AuthError> {
        let deadline = Instant::now() + WAIT;
        let mut pause = ASK_AGAIN;
        let shown = visible.len();
        let subjects: Vec<_> = visible.into_iter().chain(hidden).collect();
        loop {
            let mut attempt = Attempt {
                shared: Arc::clone(&self.shared),
                id: format!("{:016x}", fastrand::u64(..)),
                reserved: Vec::new(),
                is_decoy: false,
            };
            let said = self.shared.store.reserve(&subjects, &attempt.id).await?;
            let mut blocked: Option<Duration> = None;
            let mut waits_for = None;
            for (n, (subject, reservation)) in subjects.iter().zip(said).enumerate() {
                match reservation {
                    Reservation::Held => attempt.reserved.push(subject.clone()),
                    Reservation::Blocked(_) if n >= shown => attempt.is_decoy = true,
                    Reservation::Blocked(left) => blocked = blocked.max(Some(left)),
                    // Attempts under way may have the right password and free their places, so a decoy would be too
                    // early.
                    Reservation::Wait if n >= shown && Instant::now() >= deadline => attempt.is_decoy = true,
                    Reservation::Wait => waits_for = waits_for.or(Some((subject, n >= shown))),
                }
            }
            if let Some(retry_after) = blocked {
                attempt.release().await?;
                return Err(AuthError::Throttled { retry_after });
            }
            let Some((subject, is_hidden)) = waits_for else { return Ok(attempt) };
            attempt.release().await?;
            let place = self.shared.join(&subject.name)?;
            let until = deadline.min(Instant::now() + pause);
            pause *= 2;
            let waited = tokio::select! {
                () = place.settled.notified() => Ok(()),
                () = tokio::time::sleep_until(until) => Ok(()),
                () = gone.cancelled() => Err(AuthError::Abandoned),
            };
            drop(place);
            waited?;
            if Instant::now() >= deadline && !is_hidden {
                return Err(AuthError::Overloaded { retry_after: Duration::from_secs(1) });
            }
        }
    }
}

impl Shared {
    fn join(self: &Arc<Self>, subject: &str) -> Result<Place, AuthError> {
        let mut queues = self.queues.lock();
        let queue = queues.entry(subject.to_owned()).or_default();
        if queue.waiting >= WAITING {
            return Err(AuthError::Overloaded { retry_after: Duration::from_secs(1) });
        }
        queue.waiting += 1;
        Ok(Place { shared: Arc::clone(self), subject: subject.to_owned(), settled: Arc::clone(&queue.settled) })
    }

    /// Wakes the next attempt of this subject, because one has ended.
    fn settled(&self, subject: &str) {
        if let Some(queue) = self.queues.lock().get(subject) {
            queue.settled.notify_one();
        }
    }
}

/// A place in a [`Queue`], left when dropped.
struct Place {
    shared: Arc<Shared>,
    subject: String,
    settled: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queues = self.shared.queues.lock();
        if let Some(queue) = queues.get_mut(&self.subject) {
            queue.waiting -= 1;
            if queue.waiting == 0 {
                queues.remove(&self.subject);
            }
        }
    }
}

/// The largest network that may be one client's: its IPv4 address, or its IPv6 /48.
pub(super) fn network(ip: IpAddr) -> String {
    networks(ip).pop().expect("at least one").0
}

/// What an address is counted under, each with the factor of its limit: an IPv4 address itself, and of an IPv6 address
/// the prefixes that may be one customer's.
fn networks(ip: IpAddr) -> Vec<(String, u32)> {
    match ip.to_canonical() {
        IpAddr::V4(ip) => vec![(ip.to_string(), 1)],
        IpAddr::V6(ip) => {
            let network = |(length, factor): (u8, u32)| {
                let prefix = Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << (128 - length)));
                (format!("{prefix}/{length}"), factor)
            };
            IPV6_PREFIXES.map(network).into()
        }
    }
}

/// An admitted attempt. If it's dropped before any password was hashed, it gives its places back.
#[derive(Debug)]
pub(crate) struct Attempt {
    shared: Arc<Shared>,
    id: String,
    reserved: Vec<Subject>,
    is_decoy: bool,
}

impl Attempt {
    /// Whether the account is blocked although the name isn't. The answer must then be that of a wrong password.
    pub(crate) fn is_decoy(&self) -> bool {
        self.is_decoy
    }

    /// Counts the attempt towards the limit of every subject. Failures are charged, and registrations whatever became
    /// of them.
    ///
    /// # Errors
    ///
    /// No store: the attempt isn't charged, so its outcome must not be told either.
    pub(crate) async fn charge(mut self) -> Result<(), AuthError> {
        self.settle(|_| Charge::Failure).await
    }

    /// For a right password: forgets the failures of the account and the name, but not those of the address. The
    /// attempt itself counts only towards the limits of attempts.
    ///
    /// # Errors
    ///
    /// No store.
    pub(crate) async fn pardon(mut self) -> Result<(), AuthError> {
        self.settle(|subject| {
            let is_network = subject.name.starts_with("address:");
            if is_network { Charge::Attempt } else { Charge::AttemptAndPardon }
        })
        .await
    }

    async fn release(mut self) -> Result<(), AuthError> {
        self.settle(|_| Charge::Nothing).await
    }

    async fn settle(&mut self, charge: impl Fn(&Subject) -> Charge) -> Result<(), AuthError> {
        if self.reserved.is_empty() {
            return Ok(());
        }
        let settled: Vec<_> = self.reserved.iter().map(|subject| (subject.clone(), charge(subject))).collect();
        self.shared.store.settle(&settled, &self.id).await?;
        self.reserved.clear();
        for (subject, _) in &settled {
            self.shared.settled(&subject.name);
        }
        Ok(())
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.reserved.is_empty() {
            return;
        }
        let (shared, id, reserved) =
            (Arc::clone(&self.shared), std::mem::take(&mut self.id), std::mem::take(&mut self.reserved));
        // `drop` can't wait. If this task is lost, the store gives the places up by itself.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let released: Vec<_> = reserved.into_iter().map(|subject| (subject, Charge::Nothing)).collect();
            drop(shared.store.settle(&released, &id).await);
            for (subject, _) in &released {
                shared.settled(&subject.name);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_customer_is_one_address() {
        let of = |text: &str| networks(text.parse().expect("an address"));
        assert_eq!(of("203.0.113.7"), [("203.0.113.7".to_owned(), 1)]);
        assert_eq!(of("::ffff:203.0.113.7"), of("203.0.113.7"));
        let expected = [("2001:db8:1:203::/64", 1), ("2001:db8:1:200::/56", 4), ("2001:db8:1::/48", 16)];
        assert_eq!(of("2001:db8:1:203:4:5:6:7"), expected.map(|(network, factor)| (network.to_owned(), factor)));
    }
}
