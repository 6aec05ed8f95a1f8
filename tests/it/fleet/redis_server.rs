//! One `redis-server` for one test, as a Redis or as a Sentinel, with the shipped configuration.
//!
//! The unit tests of the sessions' store use this file too, so of the others it uses only `ports`.
use std::fs::{self, OpenOptions};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use redis::{Connection, FromRedisValue};
use rustix::process::{Pid, Signal};

use super::ports::Port;

/// Only a hanging test takes this long.
const PATIENTLY: Duration = Duration::from_secs(20);
/// The tests' name and password on a server that doesn't let everybody in.
pub const HARNESS: &str = "harness";

/// A server with a directory of its own, killed when dropped. Tests connect to it by a socket there, whatever its
/// clients use.
#[derive(Debug)]
pub struct Server {
    directory: PathBuf,
    /// The port to which clients connect, if they use TCP.
    pub port: Option<Port>,
    is_sentinel: bool,
    /// Whether the test must log in as [`HARNESS`].
    is_closed: bool,
    process: Option<Child>,
}

impl Server {
    /// Makes a Redis in `directory`, which must not exist yet. It isn't started. `lines` are added to the shipped
    /// configuration.
    pub fn redis(directory: &Path, port: Option<Port>, lines: &[String]) -> Self {
        Self::new(directory, port, false, &shipped("redis.conf"), lines)
    }

    /// Makes a Sentinel.
    pub fn sentinel(directory: &Path, port: Port, lines: &[String]) -> Self {
        Self::new(directory, Some(port), true, "protected-mode no\n", lines)
    }

    fn new(directory: &Path, port: Option<Port>, is_sentinel: bool, first: &str, lines: &[String]) -> Self {
        fs::create_dir(directory).expect("a new directory");
        let has_own_port = lines.iter().any(|line| line.starts_with("tls-port "));
        let number = port.as_ref().filter(|_| !has_own_port).map_or(0, |port| port.number);
        let here = directory.display();
        let host = port.as_ref().map_or("127.0.0.1", |port| &port.host);
        let places = format!("bind {host}\nport {number}\nunixsocket {here}/redis.sock\ndir {here}\n");
        // A copy, because servers write changes of their state into their configuration.
        fs::write(directory.join("redis.conf"), format!("{first}\n{places}{}\n", lines.join("\n"))).expect("a file");
        let is_closed = lines.iter().any(|line| line.starts_with(&format!("user {HARNESS} ")));
        Self { directory: directory.to_owned(), port, is_sentinel, is_closed, process: None }
    }

    /// Makes a server with the present data of this one, in a directory beside it. It isn't started.
    pub fn copy(&self, name: &str) -> Self {
        let directory = self.directory.with_file_name(name);
        copy(&self.directory, &directory);
        let config = directory.join("redis.conf");
        let text = fs::read_to_string(&config).expect("its configuration");
        let text = text.replace(&self.directory.display().to_string(), &directory.display().to_string());
        fs::write(config, text).expect("a file");
        Self { directory, port: None, process: None, ..*self }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("redis.sock")
    }

    /// Host and port.
    pub fn address(&self) -> String {
        self.port.as_ref().expect("it listens on a port").address()
    }

    /// Starts it, with its previous address and data if it ran before. Returns when it answers. Valkey 8.1.1
    /// sometimes crashes when it comes back into a cluster. It is then started again, as an orchestrator would.
    pub async fn start(&mut self) {
        let begin = Instant::now();
        loop {
            self.launch();
            let Err(status) = self.try_answers().await else { return };
            assert!(status.signal().is_some() && begin.elapsed() < PATIENTLY, "redis-server ended: {status}");
            let log = fs::read_to_string(self.log_path()).unwrap_or_default();
            let Some(at) = log.rfind("VALKEY BUG REPORT START") else { panic!("redis-server crashed: {status}") };
            let report = &log[log.floor_char_boundary(at.saturating_sub(1500))..];
            println!("Valkey crashed while starting: {status}\n{report:.6000}");
            self.process = None;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Starts it without waiting.
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).expect("a log");
        let program = program();
        let mut command = Command::new(&program);
        command.arg(self.directory.join("redis.conf"));
        if self.is_sentinel {
            command.arg("--sentinel");
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.process = Some(command.spawn().unwrap_or_else(|error| panic!("{program} must be installed: {error}")));
    }

    /// Waits until it answers. It listens before it has loaded its data, and refuses commands until then.
    pub async fn answers(&mut self) {
        self.try_answers().await.unwrap_or_else(|status| panic!("redis-server ended: {status}"));
    }

    async fn try_answers(&mut self) -> Result<(), ExitStatus> {
        let begin = Instant::now();
        while self.connect().is_none_or(|mut connection| redis::cmd("PING").exec(&mut connection).is_err()) {
            if let Some(status) = self.process.as_mut().expect("it was started").try_wait().expect("a child") {
                return Err(status);
            }
            assert!(begin.elapsed() < PATIENTLY, "redis-server does not answer");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(self.process.as_ref().expect("redis is running"));
        rustix::process::kill_process(pid, signal).expect("a child can be sent a signal");
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("redis is running");
        drop(process.kill());
        drop(process.wait());
    }

    /// Freezes it: it keeps its connections but doesn't answer.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it continue.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// The `REDIS_URL` of its socket, for a client on this machine.
    pub fn socket_url(&self) -> String {
        let login = if self.is_closed { format!("?user={HARNESS}&pass={HARNESS}") } else { String::new() };
        format!("redis+unix://{}{login}", self.socket().display())
    }

    /// Exchanges the processes of the two servers.
    pub fn swap_processes(&mut self, other: &mut Self) {
        std::mem::swap(&mut self.process, &mut other.process);
    }

    /// Opens a connection for the test. `None` if that fails.
    pub fn connect(&self) -> Option<Connection> {
        let connection = redis::Client::open(self.socket_url()).expect("an address").get_connection().ok()?;
        connection.set_read_timeout(Some(PATIENTLY)).expect("a time-out");
        Some(connection)
    }

    /// Runs a command, as `redis-cli` does.
    ///
    /// # Errors
    ///
    /// If the server is down or refuses the command.
    pub fn try_run<T: FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let (name, arguments) = words.split_first().expect("a command");
        let away = || redis::RedisError::from((redis::ErrorKind::Io, "redis does not answer"));
        redis::cmd(name).arg(arguments).query(&mut self.connect().ok_or_else(away)?)
    }

    /// As [`Server::try_run`]. Fails the test if there is no answer.
    #[track_caller]
    pub fn run<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_run(words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Whether this many replicas have everything that was written. `INFO` calls a replica online before it gets any
    /// data.
    pub fn is_followed_by(&self, replicas: usize) -> bool {
        let Some(mut connection) = self.connect() else { return false };
        // A member of a cluster accepts only keys of its own slots.
        let written = (0..100).any(|n| {
            let mut set = redis::cmd("SET");
            set.arg(format!("harness:{n}")).arg("").arg("PX").arg(1).exec(&mut connection).is_ok()
        });
        let followers: redis::RedisResult<usize> = redis::cmd("WAIT").arg(replicas).arg(200).query(&mut connection);
        written && followers.is_ok_and(|count| count >= replicas)
    }

    /// The value of a line of `INFO`. Empty if there is none.
    pub fn info(&self, name: &str) -> String {
        let text: String = self.try_run(&["INFO", "everything"]).unwrap_or_default();
        let found = text.lines().filter_map(|line| line.split_once(':')).find(|(found, _)| *found == name);
        found.map_or_else(String::new, |(_, value)| value.to_owned())
    }

    /// Every key that matches this pattern, sorted.
    pub fn keys(&self, pattern: &str) -> Vec<String> {
        let mut keys: Vec<String> = self.run(&["KEYS", pattern]);
        keys.sort();
        keys
    }

    /// The keys of sessions that are in an index, where a revocation finds them, sorted.
    pub fn indexed(&self) -> Vec<String> {
        let mut keys = Vec::new();
        for index in self.keys("user:*:sessions") {
            let read = if self.run::<String>(&["TYPE", &index]) == "list" { "LRANGE" } else { "ZRANGE" };
            let tag = index.trim_start_matches("user:").trim_end_matches(":sessions");
            let ids: Vec<String> = self.run(&[read, &index, "0", "-1"]);
            keys.extend(ids.into_iter().map(|id| format!("session:{tag}:{id}")));
        }
        keys.sort();
        keys
    }

    /// The key of every session that this user has, sorted, whatever index it is in.
    pub fn sessions_of(&self, user_id: &str) -> Vec<String> {
        let mut keys = self.keys("session:*");
        keys.retain(|key| self.run::<Option<String>>(&["HGET", key, "user_id"]).as_deref() == Some(user_id));
        keys
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("redis.log")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            let log = String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned();
            let lines: Vec<_> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(12)..].join("\n");
            eprintln!("--- the end of {} ---\n{end}", self.log_path().display());
        }
    }
}

/// What runs as Redis and as Sentinel: `AUTHFLEET_TEST_REDIS_SERVER`, such as `valkey-server`, or else `redis-server`.
fn program() -> String {
    std::env::var("AUTHFLEET_TEST_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

/// A file of the shipped configuration.
pub fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/redis").join(name);
    fs::read_to_string(path).expect("the shipped configuration")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a readable directory") {
        let entry = entry.expect("a readable directory");
        let kind = entry.file_type().expect("a file's type");
        if kind.is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else if kind.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("a readable file");
        }
    }
}
