//! A Redis of the test's own, with the configuration that is shipped.
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use redis::{Connection, FromRedisValue};
use rustix::process::Signal;
use tokio::net::TcpSocket;

use super::process::{Process, hold};
use super::{Fleet, PATIENTLY};

/// `redis-server`, on a socket in the fleet's directory or on a free port.
pub struct Redis {
    process: Option<Process>,
    directory: PathBuf,
    /// The port, and the socket that keeps others from it while Redis is down.
    port: Option<(u16, Option<TcpSocket>)>,
}

impl Redis {
    pub(super) fn new(fleet: &Path, over_tcp: bool) -> Self {
        let directory = fleet.join("redis");
        std::fs::create_dir(&directory).expect("a directory for Redis");
        Self { process: None, directory, port: over_tcp.then(free_port) }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("redis.sock")
    }

    /// `REDIS_URL`.
    pub fn url(&self) -> String {
        match &self.port {
            Some((port, _)) => format!("redis://127.0.0.1:{port}"),
            None => format!("redis+unix://{}", self.socket().display()),
        }
    }

    /// Starts it, in the same place with the same data if it ran before. Returns when it answers.
    pub async fn start(&mut self) {
        let config = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/redis/redis.conf");
        let output = self.directory.join("redis.log");
        let port = self.port.as_ref().map_or(0, |(port, _)| *port);
        let mut command = Command::new("redis-server");
        command.arg(config).args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.arg("--unixsocket").arg(self.socket()).arg("--dir").arg(&self.directory);
        let mut process = Process::spawn("redis-server", &mut command, &output, &output);
        let begin = Instant::now();
        // It listens before it has read its data, and says so until then.
        while self.connect().is_none_or(|mut connection| redis::cmd("PING").exec(&mut connection).is_err()) {
            if let Some(status) = process.status() {
                panic!("redis-server ended: {status}");
            }
            assert!(begin.elapsed() < PATIENTLY, "redis-server does not answer");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.process = Some(process);
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("redis is running")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.take().expect("redis is running").kill();
    }

    /// Stops it: it keeps its connections and answers nothing.
    pub fn freeze(&self) {
        self.running().signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.running().signal(Signal::CONT);
    }

    /// Makes it the replica of a primary that is not there: it keeps its connections and its data, and refuses writes.
    pub fn demote(&self) {
        self.run::<String>(&["REPLICAOF", "127.0.0.1", "1"]);
    }

    /// Another Redis with the data of this one takes over its address. Connections that are open stay where they are; the
    /// old server is returned, so that it lives for as long.
    pub async fn hand_over(&mut self) -> Self {
        // What was written by now is in its append-only file within a second.
        self.run::<String>(&["CONFIG", "SET", "appendfsync", "always"]);
        let directory = self.directory.with_file_name("redis-successor");
        copy(&self.directory, &directory);
        let mut successor = Self { process: None, directory, port: None };
        successor.start().await;
        std::fs::rename(successor.socket(), self.socket()).expect("one file system");
        std::mem::swap(&mut self.process, &mut successor.process);
        successor
    }

    fn connect(&self) -> Option<Connection> {
        let connection = redis::Client::open(self.url()).expect("an address").get_connection().ok()?;
        connection.set_read_timeout(Some(PATIENTLY)).expect("a time-out");
        Some(connection)
    }

    /// Runs a command, as `redis-cli` does.
    #[track_caller]
    pub fn run<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let (name, arguments) = words.split_first().expect("a command");
        let mut connection = self.connect().expect("redis answers");
        redis::cmd(name).arg(arguments).query(&mut connection).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Every key of this pattern, sorted.
    pub fn keys(&self, pattern: &str) -> Vec<String> {
        let mut keys: Vec<String> = self.run(&["KEYS", pattern]);
        keys.sort();
        keys
    }

    /// Counts what clients cost from now on.
    pub fn meter(&self) -> Meter {
        let mut meter = Meter { connection: self.connect().expect("redis answers"), before: Usage::default() };
        // The first question opens the connection, so only the second costs as much as those of `used`.
        meter.read();
        meter.before = meter.read();
        meter
    }
}

impl Fleet {
    /// What `work` costs Redis. Every few seconds a replica asks Redis how it is, for its metrics; if that happens during the
    /// work, the work is done and measured again.
    pub async fn cost(&self, mut work: impl AsyncFnMut()) -> Usage {
        let looks = async || {
            let mut trips = 0;
            for replica in self.replicas() {
                for operation in ["ping", "time", "info", "count"] {
                    let labels = [("operation", operation)];
                    trips += replica.count("authfleet_redis_duration_seconds_count", &labels).await;
                }
            }
            trips
        };
        for _ in 0..20 {
            let before = looks().await;
            let mut meter = self.redis.meter();
            work().await;
            let used = meter.used();
            if looks().await == before {
                return used;
            }
        }
        panic!("replicas look at Redis all the time");
    }
}

/// Counts commands and reads.
pub struct Meter {
    connection: Connection,
    before: Usage,
}

/// What clients cost Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Calls by command, without commands that weren't called.
    pub commands: BTreeMap<String, u64>,
    /// How often something came in over a connection. Redis waits for it, so each is at least one round trip.
    pub reads: u64,
}

impl Meter {
    fn read(&mut self) -> Usage {
        let text: String = redis::cmd("INFO").arg("everything").query(&mut self.connection).expect("INFO");
        let number = |text: &str| text.parse::<u64>().expect("a number");
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        let mut usage = Usage::default();
        for (name, value) in fields {
            if let Some(command) = name.strip_prefix("cmdstat_") {
                let calls = value.split(',').find_map(|part| part.strip_prefix("calls=")).expect("calls");
                usage.commands.insert(command.to_owned(), number(calls));
            } else if name == "total_reads_processed" {
                usage.reads = number(value);
            }
        }
        usage
    }

    /// What was used since the meter was made or asked last; its own questions are taken off.
    pub fn used(&mut self) -> Usage {
        let now = self.read();
        let mut used = Usage { commands: BTreeMap::new(), reads: now.reads - self.before.reads - 1 };
        for (command, calls) in &now.commands {
            let calls = calls - self.before.commands.get(command).unwrap_or(&0) - u64::from(command == "info");
            if calls > 0 {
                used.commands.insert(command.clone(), calls);
            }
        }
        self.before = now;
        used
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a readable directory") {
        let entry = entry.expect("a readable directory");
        let kind = entry.file_type().expect("a file's type");
        if kind.is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else if kind.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a readable file");
        }
    }
}

/// A port that was free just now. Redis takes no socket from its parent, and doesn't say which port it took for 0.
fn free_port() -> (u16, Option<TcpSocket>) {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    (free.port(), hold(&free.to_string()))
}
