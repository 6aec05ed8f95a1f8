//! Revocation has no race: many clients use three replicas, which are killed now and then, and record what they see.
//! [`history`] looks for violations in the record.
//!
//! `STRESS_SECONDS=300 cargo test --test it stress -- --nocapture` for longer than the 20 s of the suite.
mod failovers;
mod history;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use parking_lot::Mutex;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use self::history::{Event, Generation, SessionNumber, UserNumber, What, figures, violations};
use crate::fleet::{Engine, Fleet, Server};

const USERS: usize = 6;

/// Clients of the whole fleet, and what they have seen.
struct Clients {
    http: reqwest::Client,
    replicas: Vec<String>,
    begin: Instant,
    stop: AtomicBool,
    history: Mutex<Vec<Event>>,
    /// All sessions, living and ended, by number: cookie, public id and user.
    sessions: Mutex<Vec<Arc<Known>>>,
    numbers: AtomicUsize,
    users: Vec<User>,
}

struct Known {
    number: SessionNumber,
    user: UserNumber,
    cookie: String,
    id: String,
}

struct User {
    email: String,
    /// The passwords that may be valid. The first one was valid for certain. The others are of changes without an
    /// answer.
    passwords: Mutex<Vec<Generation>>,
    /// The number of passwords so far.
    generations: AtomicUsize,
}

fn password(user: UserNumber, generation: Generation) -> String {
    format!("wombat {user} counts to {generation} in the dark")
}

impl Clients {
    /// Makes users.
    async fn of(fleet: &Fleet) -> Arc<Self> {
        let http =
            reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().expect("an HTTP client");
        let mut users = Vec::new();
        for user in 0..USERS {
            let email = format!("user-{user}@example.org");
            let body = json!({ "email": email, "password": password(user, 0) });
            fleet[user % 3].post("/auth/register").json(&body).send().await.expect(201);
            users.push(User { email, passwords: Mutex::new(vec![0]), generations: AtomicUsize::new(0) });
        }
        Arc::new(Self {
            http,
            replicas: fleet.replicas().iter().map(|replica| format!("http://{}", replica.address())).collect(),
            begin: Instant::now(),
            stop: AtomicBool::new(false),
            history: Mutex::default(),
            sessions: Mutex::default(),
            numbers: AtomicUsize::new(0),
            users,
        })
    }

    /// Starts all clients, which run until [`Clients::stop`] is set.
    fn start(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let mut tasks = Vec::new();
        for user in 0..USERS {
            let c = Arc::clone(self);
            tasks.push(tokio::spawn(async move { c.change_passwords(user).await }));
            for _ in 0..2 {
                let c = Arc::clone(self);
                tasks.push(tokio::spawn(async move { c.come_and_go(user).await }));
            }
        }
        for _ in 0..4 {
            let c = Arc::clone(self);
            tasks.push(tokio::spawn(async move { c.look_over().await }));
        }
        tasks
    }

    /// Sends a request to a replica. Returns the answer, if there was one, and its times.
    async fn send(
        &self,
        replica: usize,
        method: Method,
        path: &str,
        cookie: &str,
        body: Option<Value>,
    ) -> (Event, Option<Answered>) {
        let mut request =
            self.http.request(method, format!("{}{path}", self.replicas[replica])).header("cookie", cookie);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let start = self.begin.elapsed();
        let answered = async {
            let response = request.send().await?;
            let status = response.status().as_u16();
            let cookie = response.headers().get("set-cookie").and_then(|value| value.to_str().ok());
            let cookie = cookie.and_then(|text| text.split(';').next()).unwrap_or_default().to_owned();
            Ok::<_, reqwest::Error>(Answered { status, cookie, body: response.bytes().await?.to_vec() })
        };
        let answered = match answered.await {
            Ok(answered) => Some(answered),
            Err(error) if error.is_timeout() => panic!("neither an answer nor a lost connection: {error}"),
            Err(_) => {
                // The replica was killed, so wait a moment until it comes back.
                tokio::time::sleep(Duration::from_millis(20)).await;
                None
            }
        };
        (Event { start, end: self.begin.elapsed(), what: What::Unknown }, answered)
    }

    fn record(&self, Event { start, end, .. }: Event, what: What) {
        self.history.lock().push(Event { start, end, what });
    }

    fn running(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Records the session that an answer created.
    fn opened(&self, event: Event, answered: Answered, user: UserNumber, password: Generation) -> Arc<Known> {
        let body: Value = serde_json::from_slice(&answered.body).expect("JSON");
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let id = body["session_id"].as_str().expect("an id").to_owned();
        let session = Arc::new(Known { number, user, cookie: answered.cookie, id });
        self.record(event, What::Opened { session: number, user, password });
        self.sessions.lock().push(Arc::clone(&session));
        session
    }

    /// Signs in with each password that may be valid.
    async fn login(&self, user: UserNumber) -> Option<Arc<Known>> {
        let candidates = self.users[user].passwords.lock().clone();
        for generation in candidates.into_iter().rev() {
            let body = json!({ "email": self.users[user].email, "password": password(user, generation) });
            let (event, answered) = self.send(fastrand::usize(..3), Method::POST, "/auth/login", "", Some(body)).await;
            match answered {
                Some(answered) if answered.status == 200 => {
                    return Some(self.opened(event, answered, user, generation));
                }
                Some(Answered { status: 401 | 503, .. }) | None => self.record(event, What::Unknown),
                Some(other) => panic!("login: {other:?}"),
            }
        }
        None
    }

    /// Whether a replica accepts the session. `None` if it doesn't say.
    async fn check(&self, replica: usize, session: &Known) -> Option<bool> {
        let (event, answered) = self.send(replica, Method::GET, "/profile", &session.cookie, None).await;
        let valid = match answered.map(|answered| answered.status) {
            Some(200) => true,
            Some(401) => false,
            Some(503) | None => {
                self.record(event, What::Unknown);
                return None;
            }
            Some(status) => panic!("check: {status}"),
        };
        self.record(event, What::Checked { session: session.number, valid });
        Some(valid)
    }

    /// Ends a session in one of several ways, then asks every replica about it.
    async fn end(&self, session: &Known) {
        let replica = fastrand::usize(..3);
        let (event, answered) = if fastrand::bool() {
            self.send(replica, Method::POST, "/auth/logout", &session.cookie, None).await
        } else {
            self.send(replica, Method::DELETE, &format!("/auth/sessions/{}", session.id), &session.cookie, None).await
        };
        let acknowledged = match answered.map(|answered| answered.status) {
            Some(200 | 204) => true,
            // The session had already ended.
            Some(401 | 404) => return self.record(event, What::Checked { session: session.number, valid: false }),
            Some(503) | None => false,
            Some(status) => panic!("end: {status}"),
        };
        self.record(event, What::Ended { session: session.number, acknowledged });
        for replica in 0..3 {
            self.check(replica, session).await;
        }
    }

    async fn end_all(&self, by: &Known, keep: bool) {
        let path = if keep { "/auth/sessions?keep=current" } else { "/auth/sessions" };
        let (event, answered) = self.send(fastrand::usize(..3), Method::DELETE, path, &by.cookie, None).await;
        let acknowledged = match answered.map(|answered| answered.status) {
            Some(204) => true,
            Some(401) => return self.record(event, What::Checked { session: by.number, valid: false }),
            Some(503) | None => false,
            Some(status) => panic!("end all: {status}"),
        };
        self.record(event, What::EndedAll { user: by.user, except: keep.then_some(by.number), acknowledged });
    }

    /// Changes the password. Returns the new session if that succeeded.
    async fn change(&self, session: &Known, from: Generation) -> Option<Arc<Known>> {
        let user = &self.users[session.user];
        let to = user.generations.fetch_add(1, Ordering::Relaxed) + 1;
        // Other clients find out which of the two is valid.
        user.passwords.lock().push(to);
        let body =
            json!({ "current_password": password(session.user, from), "new_password": password(session.user, to) });
        let (event, answered) =
            self.send(fastrand::usize(..3), Method::POST, "/auth/password", &session.cookie, Some(body)).await;
        let changed = |acknowledged| What::PasswordChanged { user: session.user, to, acknowledged };
        match answered {
            Some(answered) if answered.status == 200 => {
                self.record(event.clone(), changed(true));
                *user.passwords.lock() = vec![to];
                Some(self.opened(event, answered, session.user, to))
            }
            Some(Answered { status: status @ (401 | 403), .. }) => {
                // The session has ended, or `from` was not the password.
                self.record(
                    event,
                    if status == 401 { What::Checked { session: session.number, valid: false } } else { What::Unknown },
                );
                user.passwords.lock().retain(|generation| *generation != to);
                None
            }
            Some(Answered { status: 503, .. }) | None => {
                self.record(event, changed(false));
                None
            }
            Some(other) => panic!("change: {other:?}"),
        }
    }

    /// A client that changes this user's password now and then.
    async fn change_passwords(&self, user: UserNumber) {
        let mut session: Option<Arc<Known>> = None;
        while self.running() {
            let Some(current) = session.take() else {
                session = self.login(user).await;
                continue;
            };
            let candidates = self.users[user].passwords.lock().clone();
            for from in candidates.into_iter().rev() {
                session = self.change(&current, from).await;
                if session.is_some() {
                    break;
                }
            }
            if let Some(session) = &session {
                if fastrand::u8(..4) == 0 {
                    self.end_all(session, fastrand::bool()).await;
                }
                tokio::time::sleep(Duration::from_millis(fastrand::u64(..150))).await;
            }
        }
    }

    /// A client that signs in, uses its session, and mostly signs out.
    async fn come_and_go(&self, user: UserNumber) {
        while self.running() {
            let Some(session) = self.login(user).await else { continue };
            for _ in 0..fastrand::u8(1..5) {
                self.check(fastrand::usize(..3), &session).await;
            }
            match fastrand::u8(..8) {
                0 => {}
                1 => self.end_all(&session, fastrand::bool()).await,
                _ => self.end(&session).await,
            }
        }
    }

    /// A client that keeps using the sessions of others, most of which have just ended, to provoke races with renewals.
    async fn look_over(&self) {
        while self.running() {
            let session = {
                let sessions = self.sessions.lock();
                let recent = sessions.len().saturating_sub(40);
                let from = if fastrand::u8(..4) == 0 { 0 } else { recent };
                if sessions.is_empty() {
                    None
                } else {
                    Some(Arc::clone(&sessions[fastrand::usize(from..sessions.len())]))
                }
            };
            match session {
                Some(session) => drop(self.check(fastrand::usize(..3), &session).await),
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

#[derive(Debug)]
struct Answered {
    status: u16,
    cookie: String,
    body: Vec<u8>,
}

fn seconds() -> u64 {
    let text = std::env::var("STRESS_SECONDS").unwrap_or_else(|_| "20".to_owned());
    text.parse().unwrap_or_else(|_| panic!("STRESS_SECONDS={text} is not a number of seconds"))
}

/// ASVS 5.0 7.4.1 to 7.4.3 and 15.4.2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asvs_7_4_1_no_acknowledged_revocation_is_undone() {
    stress(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asvs_7_4_1_no_acknowledged_revocation_is_undone_with_users_in_postgresql() {
    stress(Engine::OwnPostgres).await;
}

async fn stress(engine: Engine) {
    let mut fleet = Fleet::builder().users_in(engine).replicas(3).env("LOGIN_FAILURES_PER_ACCOUNT", "1000000");
    fleet = fleet.env("SESSIONS_PER_USER", "10000").env("RUST_LOG", "warn,authfleet=info,request=off");
    let mut fleet = fleet.start().await;
    let clients = Clients::of(&fleet).await;
    let tasks = clients.start();
    let (until, mut kills) = (Instant::now() + Duration::from_secs(seconds()), 0);
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(200..1200))).await;
        let replica = fastrand::usize(..3);
        fleet[replica].kill();
        kills += 1;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..300))).await;
        fleet[replica].start().await;
    }
    clients.stop.store(true, Ordering::Relaxed);
    for task in join_all(tasks).await {
        task.expect("only answers of the contract");
    }

    for user in 0..USERS {
        clients.login(user).await.expect("all replicas are up");
    }
    // Finally checks every session at every replica. They must agree, and every living session must be revocable.
    let sessions = clients.sessions.lock().clone();
    let mut alive = BTreeSet::new();
    for session in &sessions {
        let mut seen = Vec::new();
        for replica in 0..3 {
            seen.push(clients.check(replica, session).await.expect("all replicas are up"));
        }
        assert!(seen == [true; 3] || seen == [false; 3], "session {}: {seen:?}", session.number);
        if seen[0] {
            alive.insert(session.id.clone());
        }
    }
    let unlisted = unlisted(&fleet.redis);
    assert!(unlisted.is_empty(), "no revocation of all would find {unlisted:?}");

    let history = clients.history.lock().clone();
    let found = violations(&history);
    println!(
        "stress, users in {engine:?}: {} in {} s on 3 replicas, {kills} kills, {} sessions opened; {} alive at the end; violations: {}",
        figures(&history),
        seconds(),
        sessions.len(),
        alive.len(),
        found.len(),
    );
    assert_eq!(found, [], "of {} operations", history.len());
    assert!(kills >= 3 && sessions.len() > 50 && !alive.is_empty(), "too little happened to mean anything");
    let count = |is: fn(&What) -> bool| history.iter().filter(|event| is(&event.what)).count();
    for happened in [
        count(|what| matches!(what, What::Ended { acknowledged: true, .. })),
        count(|what| matches!(what, What::EndedAll { acknowledged: true, .. })),
        count(|what| matches!(what, What::PasswordChanged { acknowledged: true, .. })),
    ] {
        assert!(happened > 5, "too little happened to mean anything");
    }
}

/// Living sessions that are missing from their user's index, by which all sessions of a user are ended.
fn unlisted(redis: &Server) -> Vec<String> {
    let mut keys = redis.keys("session:*");
    for index in redis.keys("user:*:sessions") {
        let user = index.trim_start_matches("user:").trim_end_matches(":sessions");
        for id in redis.run::<Vec<String>>(&["ZRANGE", &index, "0", "-1"]) {
            keys.retain(|key| *key != format!("session:{user}:{id}"));
        }
    }
    keys
}
