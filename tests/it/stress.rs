//! Revocation has no race: many clients use three replicas, which are killed now and then, and record what they see.
//! They use sessions with the sessions' own cookies and, as a proxy does, with those of applications' hosts.
//! [`history`] looks for violations in the record.
//!
//! `STRESS_SECONDS=300 cargo test --test it stress -- --nocapture` for longer than the 20 s of the suite.
mod failovers;
mod history;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use parking_lot::Mutex;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use self::history::{Event, Generation, SessionNumber, Token, UserNumber, What, figures, story, violations};
use crate::fleet::{
    APP, Builder, Engine, Fleet, LOGIN_HOST, MIXED, Proxy, Question, Server, Settings, WIKI, authfleet,
};

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
    /// For the command line.
    directory: PathBuf,
    settings: Settings,
}

struct Known {
    number: SessionNumber,
    user: UserNumber,
    cookie: String,
    id: String,
    /// The cookies that it got on applications' hosts.
    visited: Mutex<Vec<Visited>>,
}

#[derive(Clone)]
struct Visited {
    host: &'static str,
    cookie: String,
}

impl Known {
    /// Its own cookie and those of hosts.
    fn tokens(&self) -> Vec<Option<Visited>> {
        std::iter::once(None).chain(self.visited.lock().iter().cloned().map(Some)).collect()
    }

    fn any_token(&self) -> Option<Visited> {
        let mut tokens = self.tokens();
        tokens.swap_remove(fastrand::usize(..tokens.len()))
    }
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
        let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let http = http.timeout(Duration::from_secs(20)).build().expect("an HTTP client");
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
            directory: fleet.path().to_owned(),
            settings: fleet.settings().clone(),
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
        let c = Arc::clone(self);
        tasks.push(tokio::spawn(async move { c.disable_and_enable().await }));
        tasks
    }

    /// A request for a replica.
    fn request(&self, replica: usize, method: Method, path: &str, cookie: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.replicas[replica])).header("cookie", cookie)
    }

    /// A request for any replica.
    fn any(&self, method: Method, path: &str, cookie: &str) -> RequestBuilder {
        self.request(fastrand::usize(..3), method, path, cookie)
    }

    /// Sends a request. Returns the answer, if there was one, and its times.
    async fn send(&self, request: RequestBuilder) -> (Event, Option<Answered>) {
        let start = self.begin.elapsed();
        let answered = async {
            let response = request.send().await?;
            let status = response.status().as_u16();
            let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let cookie = header("set-cookie").split(';').next().unwrap_or_default().to_owned();
            let location = header("location").to_owned();
            Ok::<_, reqwest::Error>(Answered { status, cookie, location, body: response.bytes().await?.to_vec() })
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
        let session = Arc::new(Known { number, user, cookie: answered.cookie, id, visited: Mutex::default() });
        self.record(event, What::Opened { session: number, user, password });
        self.sessions.lock().push(Arc::clone(&session));
        session
    }

    /// Signs in with each password that may be valid.
    async fn login(&self, user: UserNumber) -> Option<Arc<Known>> {
        let candidates = self.users[user].passwords.lock().clone();
        for generation in candidates.into_iter().rev() {
            let body = json!({ "email": self.users[user].email, "password": password(user, generation) });
            let (event, answered) = self.send(self.any(Method::POST, "/auth/login", "").json(&body)).await;
            match answered {
                Some(answered) if answered.status == 200 => {
                    return Some(self.opened(event, answered, user, generation));
                }
                Some(Answered { status: 401 | 503, .. }) | None => self.record(event, What::Unknown),
                Some(other) => panic!("login: {other:?}"),
            }
        }
        // The user may be disabled.
        tokio::time::sleep(Duration::from_millis(20)).await;
        None
    }

    /// Takes a session to an application's host, each step at any replica. Returns whether the host got a cookie.
    async fn visit(&self, session: &Known) -> bool {
        let host = if fastrand::bool() { APP } else { WIKI };
        let start = self.any(Method::GET, "/.authfleet/start?to=/", "").header("host", host);
        let (event, answered) = self.send(start).await;
        self.record(event, What::Unknown);
        let Some(Answered { status: 302, cookie: start, location, .. }) = answered else { return false };

        let sign_in = location.strip_prefix(&format!("http://{LOGIN_HOST}")).expect("the page for signing in");
        let sign_in = self.any(Method::GET, sign_in, &session.cookie).header("host", LOGIN_HOST);
        let (event, answered) = self.send(sign_in).await;
        let checked = |by, valid| What::Checked { session: session.number, by, valid };
        let location = match answered {
            Some(Answered { status: 303, location, .. }) => location,
            Some(Answered { status: status @ (200 | 503), .. }) => {
                // With 200 it's the form.
                self.record(event, if status == 200 { checked(Token::Main, false) } else { What::Unknown });
                return false;
            }
            None => {
                self.record(event, What::Unknown);
                return false;
            }
            Some(other) => panic!("sign in: {other:?}"),
        };
        self.record(event, checked(Token::Main, true));

        let callback = location.strip_prefix(&format!("http://{host}")).expect("the application's host");
        let (event, answered) = self.send(self.any(Method::GET, callback, &start).header("host", host)).await;
        match answered {
            Some(Answered { status: 302, cookie, .. }) => {
                self.record(event, checked(Token::HostBound, true));
                session.visited.lock().push(Visited { host, cookie });
                true
            }
            // A code may be lost without its session.
            Some(Answered { status: 400 | 503, .. }) | None => {
                self.record(event, What::Unknown);
                false
            }
            Some(other) => panic!("callback: {other:?}"),
        }
    }

    /// Whether a replica accepts a token of the session: its own, or that of a host. `None` if it doesn't say.
    async fn check(&self, replica: usize, session: &Known, token: Option<&Visited>) -> Option<bool> {
        let (event, answered) = match token {
            None => self.send(self.request(replica, Method::GET, "/profile", &session.cookie)).await,
            Some(Visited { host, cookie }) => {
                let proxies = [Proxy::Nginx, Proxy::Forward, Proxy::Envoy];
                let Question { method, path, headers } = proxies[fastrand::usize(..3)].question("GET", host, "/");
                let method = method.parse().expect("a method");
                let question = self.request(replica, method, &path, cookie);
                let question = headers.iter().fold(question, |question, (name, value)| question.header(*name, value));
                self.send(question).await
            }
        };
        let valid = match answered.map(|answered| answered.status) {
            Some(200) => true,
            Some(401) => false,
            Some(503) | None => {
                self.record(event, What::Unknown);
                return None;
            }
            Some(status) => panic!("check: {status}"),
        };
        let by = if token.is_some() { Token::HostBound } else { Token::Main };
        self.record(event, What::Checked { session: session.number, by, valid });
        Some(valid)
    }

    /// Asks every replica about every token of the session.
    async fn check_all(&self, session: &Known) -> Vec<Option<bool>> {
        let tokens = session.tokens();
        let asked = (0..3).flat_map(|replica| tokens.iter().map(move |token| (replica, token)));
        join_all(asked.map(|(replica, token)| self.check(replica, session, token.as_ref()))).await
    }

    /// Ends a session in one of several ways, then asks every replica about it.
    async fn end(&self, session: &Known) {
        let request = if fastrand::bool() {
            self.any(Method::POST, "/auth/logout", &session.cookie)
        } else {
            self.any(Method::DELETE, &format!("/auth/sessions/{}", session.id), &session.cookie)
        };
        let (event, answered) = self.send(request).await;
        let acknowledged = match answered.map(|answered| answered.status) {
            Some(200 | 204) => true,
            // The session had already ended.
            Some(401 | 404) => return self.refused(event, session),
            Some(503) | None => false,
            Some(status) => panic!("end: {status}"),
        };
        self.record(event, What::Ended { session: session.number, acknowledged });
        self.check_all(session).await;
    }

    /// Records that the session's own cookie was refused.
    fn refused(&self, event: Event, session: &Known) {
        self.record(event, What::Checked { session: session.number, by: Token::Main, valid: false });
    }

    async fn end_all(&self, by: &Known, keep: bool) {
        let path = if keep { "/auth/sessions?keep=current" } else { "/auth/sessions" };
        let (event, answered) = self.send(self.any(Method::DELETE, path, &by.cookie)).await;
        let acknowledged = match answered.map(|answered| answered.status) {
            Some(204) => true,
            Some(401) => return self.refused(event, by),
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
        let request = self.any(Method::POST, "/auth/password", &session.cookie).json(&body);
        let (event, answered) = self.send(request).await;
        let changed = |acknowledged| What::PasswordChanged { user: session.user, to, acknowledged };
        match answered {
            Some(answered) if answered.status == 200 => {
                self.record(event.clone(), changed(true));
                *user.passwords.lock() = vec![to];
                Some(self.opened(event, answered, session.user, to))
            }
            Some(Answered { status: 403, .. }) => {
                // `from` was not the password.
                self.record(event, What::Unknown);
                user.passwords.lock().retain(|generation| *generation != to);
                None
            }
            Some(Answered { status: 401, ref body, .. }) if code(body) == "session_invalid" => {
                self.refused(event, session);
                user.passwords.lock().retain(|generation| *generation != to);
                None
            }
            // After the change, the new session was overtaken: somebody disabled the user.
            Some(Answered { status: 401 | 503, .. }) | None => {
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
                if fastrand::bool() {
                    self.visit(session).await;
                }
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
                if fastrand::u8(..4) == 0 {
                    self.visit(&session).await;
                }
                self.check(fastrand::usize(..3), &session, session.any_token().as_ref()).await;
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
                Some(session) => {
                    self.check(fastrand::usize(..3), &session, session.any_token().as_ref()).await;
                }
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// An operator who disables a user now and then, asks every replica about the user's latest sessions, and enables
    /// the user again.
    async fn disable_and_enable(&self) {
        while self.running() {
            let user = fastrand::usize(..USERS);
            let command = async |word| {
                authfleet(&self.directory, &["user", word, &self.users[user].email], &self.settings).await.code
                    == Some(0)
            };
            let start = self.begin.elapsed();
            let acknowledged = command("disable").await;
            let event = Event { start, end: self.begin.elapsed(), what: What::Unknown };
            self.record(event, What::Disabled { user, acknowledged });
            let latest: Vec<_> = {
                let sessions = self.sessions.lock();
                sessions.iter().rev().filter(|session| session.user == user).take(4).cloned().collect()
            };
            join_all(latest.iter().map(|session| self.check_all(session))).await;
            let start = self.begin.elapsed();
            while !command("enable").await {}
            let event = Event { start, end: self.begin.elapsed(), what: What::Unknown };
            self.record(event, What::Enabled { user });
            tokio::time::sleep(Duration::from_millis(fastrand::u64(200..1000))).await;
        }
    }
}

/// The `code` of a problem document.
fn code(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).expect("JSON");
    body["code"].as_str().expect("a code").to_owned()
}

impl Builder {
    /// With applications, without limits on sign-ins and sessions, and without a log line per request.
    fn for_stress(self) -> Self {
        let fleet = self.replicas(3).with_applications().env("LOGIN_FAILURES_PER_ACCOUNT", "1000000");
        fleet.env("SESSIONS_PER_USER", "10000").env("RUST_LOG", "warn,authfleet=info,request=off,audit=off")
    }
}

#[derive(Debug)]
struct Answered {
    status: u16,
    cookie: String,
    location: String,
    body: Vec<u8>,
}

fn seconds() -> u64 {
    let text = std::env::var("STRESS_SECONDS").unwrap_or_else(|_| "20".to_owned());
    text.parse().unwrap_or_else(|_| panic!("STRESS_SECONDS={text} is not a number of seconds"))
}

/// ASVS 5.0 7.4.1 to 7.4.3 and 15.4.2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asvs_7_4_1_no_acknowledged_revocation_is_undone() {
    stress(Fleet::builder(), "users in SQLite").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asvs_7_4_1_no_acknowledged_revocation_is_undone_with_users_in_postgresql() {
    stress(Fleet::builder().users_in(Engine::OwnPostgres), "users in PostgreSQL").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asvs_7_4_1_no_acknowledged_revocation_is_undone_with_sessions_of_both_formats() {
    stress(Fleet::builder().session_format(MIXED), "sessions of both formats").await;
}

async fn stress(builder: Builder, what: &str) {
    let mut fleet = builder.for_stress().start().await;
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
        let session = clients.login(user).await.expect("all replicas are up");
        assert!(clients.visit(&session).await, "all replicas are up");
    }
    // Finally checks every token of every session at every replica. They must agree, and every living session must be
    // revocable.
    let sessions = clients.sessions.lock().clone();
    let mut alive = BTreeSet::new();
    for session in &sessions {
        let seen = clients.check_all(session).await;
        assert!(agree(&seen), "session {}: {seen:?}", session.number);
        if seen[0] == Some(true) {
            alive.insert(session.id.clone());
        }
    }
    let unlisted = unlisted(&fleet.redis);
    assert!(unlisted.is_empty(), "no revocation of all would find {unlisted:?}");

    let history = clients.history.lock().clone();
    let found = violations(&history);
    println!(
        "stress, {what}: {} in {} s on 3 replicas, {kills} kills, {} sessions opened; {} alive at the end; violations: {}",
        figures(&history),
        seconds(),
        sessions.len(),
        alive.len(),
        found.len(),
    );
    if let Some(first) = found.first() {
        println!("{first:?}:\n{}", story(&history, first));
    }
    assert_eq!(found, [], "of {} operations", history.len());
    assert!(kills >= 3 && sessions.len() > 50 && !alive.is_empty(), "too little happened to mean anything");
    let count = |is: fn(&What) -> bool| history.iter().filter(|event| is(&event.what)).count();
    for happened in [
        count(|what| matches!(what, What::Ended { acknowledged: true, .. })),
        count(|what| matches!(what, What::EndedAll { acknowledged: true, .. })),
        count(|what| matches!(what, What::PasswordChanged { acknowledged: true, .. })),
        count(|what| matches!(what, What::Disabled { acknowledged: true, .. })),
        count(|what| matches!(what, What::Checked { by: Token::HostBound, valid: true, .. })),
        count(|what| matches!(what, What::Checked { by: Token::HostBound, valid: false, .. })),
    ] {
        assert!(happened > 5, "too little happened to mean anything");
    }
}

/// Whether all replicas said the same about all tokens.
fn agree(seen: &[Option<bool>]) -> bool {
    seen[0].is_some() && seen.iter().all(|answer| *answer == seen[0])
}

/// Living sessions that are missing from their user's index, by which all sessions of a user are ended.
fn unlisted(redis: &Server) -> Vec<String> {
    let (indexed, mut keys) = (redis.indexed(), redis.keys("session:*"));
    keys.retain(|key| indexed.binary_search(key).is_err());
    keys
}
