//! Several users change their passwords at once while a test kills servers. Every acknowledged change must be kept.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;
use tokio::task::JoinHandle;

use super::client::{Answer, Call, PASSWORD, Session, User, http};
use super::{Fleet, PATIENTLY};

const USERS: usize = 6;

/// Users who change their passwords again and again, spread over the replicas, until [`PasswordChanges::end`]. After a
/// failed change they try passwords that may be wrong, so the fleet's limits on failures must be high.
pub struct PasswordChanges {
    stop: Arc<AtomicBool>,
    users: Vec<JoinHandle<Account>>,
}

/// What one user knows after the changes.
pub struct Account {
    email: String,
    /// The password that was acknowledged last, or with which the user signed in since.
    password: String,
    session: Session,
    /// Passwords that an acknowledged change replaced.
    replaced: Vec<String>,
    /// Sessions that an acknowledged change ended.
    ended: Vec<Session>,
    /// The times at which a change was answered with 503.
    pub refused: Vec<Instant>,
}

/// What all users know after the changes.
pub struct Changed(pub Vec<Account>);

impl PasswordChanges {
    pub async fn begin(fleet: &Fleet) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let addresses: Vec<_> = fleet.replicas().iter().map(|replica| replica.address().to_owned()).collect();
        let mut users = Vec::new();
        for n in 0..USERS {
            let User { email, .. } = fleet[0].register(&format!("changing-{n}")).await;
            let session = Session::opened_by(&fleet[0].try_login(&email, PASSWORD).send().await);
            let account = Account {
                email,
                password: PASSWORD.to_owned(),
                session,
                replaced: Vec::new(),
                ended: Vec::new(),
                refused: Vec::new(),
            };
            let url = format!("http://{}", addresses[n % addresses.len()]);
            users.push(tokio::spawn(account.change_until(Arc::clone(&stop), http(), url)));
        }
        Self { stop, users }
    }

    /// Lets every user finish. Panics if a change was answered with anything except 200 or 503, or if a user can't sign
    /// in with any password.
    pub async fn end(self) -> Changed {
        self.stop.store(true, Ordering::Relaxed);
        let users = join_all(self.users).await;
        Changed(users.into_iter().map(|user| user.expect("every answer was one of those expected")).collect())
    }
}

impl Account {
    async fn change_until(mut self, stop: Arc<AtomicBool>, http: reqwest::Client, url: String) -> Self {
        for i in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let new = format!("password number {i} of {}", self.email);
            let body = json!({ "current_password": self.password, "new_password": new });
            let call = Call::new(http.post(format!("{url}/auth/password")));
            let answer = call.session(&self.session).json(&body).send().await;
            if answer.status == 200 {
                self.replaced.push(std::mem::replace(&mut self.password, new));
                self.ended.push(std::mem::replace(&mut self.session, Session::opened_by(&answer)));
            } else {
                answer.expect_problem(503, "store_unavailable");
                self.refused.push(Instant::now());
                self.find_out(&http, &url, new).await;
            }
        }
        self
    }

    /// Finds out which password is valid after a failed change, by signing in.
    async fn find_out(&mut self, http: &reqwest::Client, url: &str, new: String) {
        let begin = Instant::now();
        loop {
            for password in [new.clone(), self.password.clone()] {
                let body = json!({ "email": self.email, "password": password });
                let answer: Answer = Call::new(http.post(format!("{url}/auth/login"))).json(&body).send().await;
                match answer.status {
                    200 => {
                        self.session = Session::opened_by(&answer);
                        self.password = password;
                        return;
                    }
                    401 => {}
                    _ => drop(answer.expect_problem(503, "store_unavailable")),
                }
            }
            assert!(begin.elapsed() < PATIENTLY, "{} can't sign in with either password", self.email);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Changed {
    /// Fails the test unless every user has exactly the last acknowledged password, every ended session stays ended on
    /// every replica, and there were enough changes to be meaningful.
    pub async fn expect_kept(&self, fleet: &Fleet) {
        let acknowledged: usize = self.0.iter().map(|account| account.replaced.len()).sum();
        let (mut forgotten, mut revived) = (Vec::new(), Vec::new());
        for account in &self.0 {
            for replica in fleet.replicas() {
                for session in &account.ended {
                    if replica.check(session).await != 401 {
                        revived.push(&session.id);
                    }
                }
                let is_alive = replica.check(&account.session).await == 200;
                assert!(is_alive, "{}: the session after the last change is gone", account.email);
            }
            for (password, status) in
                account.replaced.last().map(|old| (old, 401)).into_iter().chain([(&account.password, 200)])
            {
                let found = fleet[0].try_login(&account.email, password).send().await.status;
                if found != status {
                    forgotten.push((&account.email, password, found));
                }
            }
        }
        println!(
            "{acknowledged} changes acknowledged, {} forgotten, {} of the sessions that they ended alive",
            forgotten.len(),
            revived.len()
        );
        assert!(acknowledged > 20, "only {acknowledged} changes");
        assert!(forgotten.is_empty(), "of {acknowledged} acknowledged changes forgotten: {forgotten:?}");
        assert!(revived.is_empty(), "of {acknowledged} sessions alive again: {revived:?}");
    }
}
