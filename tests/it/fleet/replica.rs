//! One replica: the real binary on free ports.
use std::io::PipeReader;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use super::client::{Answer, Call, PASSWORD, Raw, Session, User, http};
use super::ports::hold;
use super::process::{Process, binary, read};
use super::{PATIENTLY, Settings, within};

/// A process of `authfleet serve`. It keeps its ports when it is restarted.
pub struct Replica {
    name: String,
    directory: PathBuf,
    settings: Settings,
    process: Option<Process>,
    /// Sockets that reserve the ports from the end of one process to the start of the next.
    held: Vec<TcpSocket>,
    http: reqwest::Client,
}

impl Replica {
    pub(super) fn new(fleet: &Path, name: &str, settings: &Settings) -> Self {
        let mut settings = settings.clone();
        for (variable, value) in [("REPLICA_ID", name), ("LISTEN_ADDR", "127.0.0.1:0"), ("OPS_ADDR", "127.0.0.1:0")] {
            settings.entry(variable.to_owned()).or_insert_with(|| value.to_owned());
        }
        Self {
            name: name.to_owned(),
            directory: fleet.to_owned(),
            settings,
            process: None,
            held: Vec::new(),
            http: http(),
        }
    }

    /// Starts it, on the same ports as before. Returns when it is up, whether it is ready or not.
    pub async fn start(&mut self) {
        assert!(self.process.is_none(), "{} is running", self.name);
        let (output, begin) = (self.output(), Instant::now());
        let lines_before = self.log().len();
        let mut process = Process::spawn(&self.name, &mut binary(&self.directory, &self.settings), &output, &output);
        let up = loop {
            let up = self.log().into_iter().skip(lines_before).find(|line| line["message"] == "authfleet is up");
            if let Some(up) = up {
                break up;
            }
            if let Some(status) = process.status() {
                panic!("{} ended: {status}", self.name);
            }
            assert!(begin.elapsed() < PATIENTLY, "{} is not up", self.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        for (variable, field) in [("LISTEN_ADDR", "public"), ("OPS_ADDR", "ops")] {
            let address = up[field].as_str().expect("an address").to_owned();
            self.settings.insert(variable.to_owned(), address);
        }
        self.process = Some(process);
        self.held.clear();
    }

    /// Kills it with SIGKILL, and starts it with these variables changed.
    pub async fn restart(&mut self, changes: &[(&str, &str)]) {
        self.kill();
        self.start_with(changes).await;
    }

    /// Starts it after its end, with these variables changed.
    pub async fn start_with(&mut self, changes: &[(&str, &str)]) {
        self.settings.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self.start().await;
    }

    /// Kills it with SIGKILL, and starts it with its log going into the returned pipe, which the test may read.
    pub async fn restart_into_pipe(&mut self) -> PipeReader {
        self.kill();
        let (log, stdout) = std::io::pipe().expect("a pipe");
        let mut command = binary(&self.directory, &self.settings);
        let process = Process::spawn_into(&self.name, &mut command, &self.output(), stdout, Stdio::inherit());
        self.process = Some(process);
        self.held.clear();
        let url = format!("http://{}/readyz", self.ops_address());
        let is_ready = async || self.http.get(&url).send().await.is_ok_and(|answer| answer.status() == 200);
        within(PATIENTLY, "the replica is ready", is_ready).await;
        log
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("the replica is running")
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().expect("the replica is running").kill();
        self.held = [self.address(), self.ops_address()].into_iter().filter_map(hold).collect();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.running().signal(signal);
    }

    /// The names of its threads, and the CPUs that each may use.
    #[cfg(target_os = "linux")]
    pub fn threads(&self) -> Vec<(String, rustix::thread::CpuSet)> {
        self.running().threads()
    }

    /// Waits for it to end by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = self.process.as_mut().expect("the replica is running").ended().await;
        self.process = None;
        status
    }

    /// Host and port of the public listener.
    pub fn address(&self) -> &str {
        &self.settings["LISTEN_ADDR"]
    }

    /// Host and port of the ops listener.
    pub fn ops_address(&self) -> &str {
        &self.settings["OPS_ADDR"]
    }

    fn output(&self) -> PathBuf {
        self.directory.join(format!("{}.log", self.name))
    }

    /// Everything that it has written.
    pub fn output_text(&self) -> String {
        read(&self.output())
    }

    /// Its log so far, one JSON object per line.
    pub fn log(&self) -> Vec<Value> {
        // The last line may be half written.
        let text = self.output_text();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for the request's line in the log, and returns it.
    pub async fn request_line(&self, request_id: &str) -> Value {
        let begin = Instant::now();
        loop {
            let lines = self.log().into_iter();
            let found = lines.filter(|line| line["target"] == "request" && line["request_id"] == request_id);
            let found: Vec<_> = found.collect();
            match <[Value; 1]>::try_from(found) {
                Ok([line]) => return line,
                Err(lines) => assert!(lines.is_empty(), "one line per request: {lines:?}"),
            }
            assert!(begin.elapsed() < PATIENTLY, "no line of request {request_id}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Begins a request to the public listener, over a connection of its own.
    pub fn call(&self, method: &str, path: &str) -> Call {
        let method = method.parse().expect("a method");
        Call::new(self.http.request(method, format!("http://{}{path}", self.address())))
    }

    /// `GET`.
    pub fn get(&self, path: &str) -> Call {
        self.call("GET", path)
    }

    /// `POST`.
    pub fn post(&self, path: &str) -> Call {
        self.call("POST", path)
    }

    /// Sends a `GET` to the ops listener.
    pub async fn ops(&self, path: &str) -> Answer {
        Call::new(self.http.get(format!("http://{}{path}", self.ops_address()))).send().await
    }

    /// Opens a connection to the public listener, to which the test can write anything.
    pub async fn raw(&self) -> Raw {
        Raw::connect(self.address()).await
    }

    /// Begins the registration of `NAME@example.org` with the username `NAME`.
    pub fn try_register(&self, name: &str) -> Call {
        let body = json!({ "email": format!("{name}@example.org"), "username": name, "password": PASSWORD });
        self.post("/auth/register").json(&body)
    }

    /// Registers that account.
    pub async fn register(&self, name: &str) -> User {
        let answer = self.try_register(name).send().await.expect(201);
        User { id: answer.text_at("user_id"), email: answer.text_at("email") }
    }

    /// Begins a login by e-mail address or username.
    pub fn try_login(&self, identifier: &str, password: &str) -> Call {
        let field = if identifier.contains('@') { "email" } else { "username" };
        self.post("/auth/login").json(&json!({ field: identifier, "password": password }))
    }

    /// Signs in.
    pub async fn login(&self, user: &User) -> Session {
        Session::opened_by(&self.try_login(&user.email, PASSWORD).send().await)
    }

    /// The status of `GET /profile` with this session.
    pub async fn check(&self, session: &Session) -> u16 {
        self.get("/profile").session(session).send().await.status
    }

    /// Makes the request of [`Replica::check`] each time it is called.
    pub fn checker(&self, session: &Session) -> impl Fn() -> Call + Send + 'static {
        let (http, session, url) = (self.http.clone(), session.clone(), format!("http://{}/profile", self.address()));
        move || Call::new(http.get(&url)).session(&session)
    }

    /// The sum of a metric's series that have all these labels.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name, labels).await.iter().map(|value| value.parse::<f64>().expect("a number")).sum()
    }

    /// As [`Replica::metric`], for a metric of whole numbers.
    pub async fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.series(name, labels).await.iter().map(|value| value.parse::<u64>().expect("a whole number")).sum()
    }

    async fn series(&self, name: &str, labels: &[(&str, &str)]) -> Vec<String> {
        let text = self.ops("/metrics").await.expect(200).text();
        let labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let is_asked = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && labels.iter().all(|label| line.contains(label))
        };
        let values = text.lines().filter(is_asked).filter_map(|line| line.rsplit(' ').next());
        values.map(str::to_owned).collect()
    }
}
