//! Limits on guessing: per account and per client address, over all replicas (ASVS 5.0 6.3.1; NIST SP 800-63B-4
//! §3.2.2). Only failures count.
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::AuthError;
use crate::store::throttle::{Admission, Outcome, Subject, ThrottleStore};

/// An attempt that can't be admitted yet asks again after this,
const ASK_AGAIN: Duration = Duration::from_millis(25);
/// as often as this.
const ASK_TIMES: u32 = 60;

/// The limits, and where the counts are.
#[derive(Clone, Debug)]
pub struct Throttle {
    store: Arc<ThrottleStore>,
    limits: Limits,
}

/// How many failures are too many.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Failures of one account in a window.
    pub per_account: u32,
    /// Failures of one address in a window.
    pub per_address: u32,
    /// Registrations from one address in a window.
    pub registrations: u32,
    /// The window, from the first failure.
    pub window: Duration,
}

impl Throttle {
    /// Counts in `store`.
    pub fn new(store: ThrottleStore, limits: Limits) -> Self {
        Self { store: Arc::new(store), limits }
    }

    /// Admits an attempt at an account's password, or refuses it.
    ///
    /// # Errors
    ///
    /// [`AuthError::Throttled`] with the time to wait; no store.
    pub async fn admit_login(&self, account: &str, ip: IpAddr) -> Result<Attempt, AuthError> {
        let subjects = [
            // The address first: whoever is blocked there can't hold an account's places.
            self.subject("address", &network(ip), self.limits.per_address),
            self.subject("account", account, self.limits.per_account),
        ];
        self.admit(subjects.into()).await
    }

    /// Admits a registration, or refuses it. Each that is not released counts, made or not.
    ///
    /// # Errors
    ///
    /// As [`Throttle::admit_login`].
    pub async fn admit_registration(&self, ip: IpAddr) -> Result<Attempt, AuthError> {
        self.admit(vec![self.subject("registrations", &network(ip), self.limits.registrations)]).await
    }

    fn subject(&self, kind: &str, whose: &str, limit: u32) -> Subject {
        Subject { name: format!("{kind}:{whose}"), limit, window: self.limits.window }
    }

    async fn admit(&self, subjects: Vec<Subject>) -> Result<Attempt, AuthError> {
        let mut attempt = Attempt {
            store: Arc::clone(&self.store),
            id: format!("{:016x}", fastrand::u64(..)),
            reserved: Vec::with_capacity(subjects.len()),
        };
        for subject in subjects {
            attempt.reserve(subject).await?;
        }
        Ok(attempt)
    }
}

/// An IPv4 address; of an IPv6 one the first 64 bits, which are one customer's.
fn network(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => {
            let prefix = std::net::Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX));
            format!("{prefix}/64")
        }
    }
}

/// An admitted attempt. Dropped without a word, as when the client leaves, it gives its places back: the client never
/// learned whether the password was right.
#[derive(Debug)]
pub struct Attempt {
    store: Arc<ThrottleStore>,
    id: String,
    reserved: Vec<Subject>,
}

impl Attempt {
    async fn reserve(&mut self, subject: Subject) -> Result<(), AuthError> {
        for _ in 0..ASK_TIMES {
            match self.store.reserve(&subject, &self.id).await? {
                Admission::Reserved => {
                    self.reserved.push(subject);
                    return Ok(());
                }
                Admission::Blocked(retry_after) => return Err(AuthError::Throttled { retry_after }),
                Admission::Wait => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
        Err(AuthError::Overloaded { retry_after: Duration::from_secs(1) })
    }

    /// Charges a failure to every subject.
    ///
    /// # Errors
    ///
    /// No store: the failure isn't charged, so its outcome must not be told either.
    pub async fn failed(mut self) -> Result<(), AuthError> {
        self.settle(|_| Outcome::Failed).await
    }

    /// Forgets the account's failures; the address keeps its own.
    ///
    /// # Errors
    ///
    /// No store.
    pub async fn succeeded(mut self) -> Result<(), AuthError> {
        self.settle(|subject| if subject.name.starts_with("account:") { Outcome::Reset } else { Outcome::Released })
            .await
    }

    async fn settle(&mut self, outcome: impl Fn(&Subject) -> Outcome) -> Result<(), AuthError> {
        while let Some(subject) = self.reserved.last() {
            self.store.settle(subject, &self.id, outcome(subject)).await?;
            self.reserved.pop();
        }
        Ok(())
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let (store, id, reserved) =
            (Arc::clone(&self.store), std::mem::take(&mut self.id), std::mem::take(&mut self.reserved));
        if reserved.is_empty() {
            return;
        }
        // Dropping can't wait. Should this be lost too, the store gives the place up by itself.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            for subject in reserved {
                drop(store.settle(&subject, &id, Outcome::Released).await);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_customer_is_one_address() {
        let of = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(of("203.0.113.7"), "203.0.113.7");
        assert_eq!(of("::ffff:203.0.113.7"), "203.0.113.7");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    }
}
