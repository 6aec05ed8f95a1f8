//! A Redis for one test, with the shipped configuration.
use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;

use redis::Connection;

use super::Fleet;
use super::ports::Port;
use super::redis_server::Server;

/// `redis-server`, on a socket in the fleet's directory or on a free port.
pub struct Redis(Server);

impl Deref for Redis {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

impl Redis {
    pub(super) fn new(fleet: &Path, over_tcp: bool) -> Self {
        Self(Server::redis(&fleet.join("redis"), over_tcp.then(Port::free), &[]))
    }

    /// `REDIS_URL`.
    pub fn url(&self) -> String {
        if self.port.is_some() { format!("redis://{}", self.address()) } else { self.socket_url() }
    }

    /// Starts it, with its previous address and data if it ran before. Returns when it answers.
    pub async fn start(&mut self) {
        self.0.start().await;
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.0.kill();
    }

    /// Makes it a replica of a primary that doesn't exist: it keeps its connections and its data, and refuses writes.
    pub fn demote(&self) {
        self.run::<String>(&["REPLICAOF", "127.0.0.1", "1"]);
    }

    /// Starts another Redis with the data of this one, which takes over its address. Open connections stay at the old
    /// server, which is returned so that the test keeps it alive.
    pub async fn hand_over(&mut self) -> Self {
        // Writes everything to the append-only file.
        self.run::<String>(&["CONFIG", "SET", "appendfsync", "always"]);
        let mut successor = self.copy("redis-successor");
        successor.start().await;
        std::fs::rename(successor.socket(), self.socket()).expect("one file system");
        // Makes the new server reachable at the old one's address.
        self.0.swap_processes(&mut successor);
        Self(successor)
    }
}

impl Server {
    /// Counts what clients cost from now on.
    pub fn meter(&self) -> Meter {
        let mut meter = Meter { connection: self.connect().expect("redis answers"), before: Usage::default() };
        // The first question opens the connection, so only the second costs as much as the questions of `used`.
        meter.read();
        meter.before = meter.read();
        meter
    }
}

impl Fleet {
    /// Measures what `work` costs Redis.
    pub async fn cost(&self, work: impl AsyncFnMut()) -> Usage {
        self.cost_on(&self.redis, work).await
    }

    /// Measures what `work` costs this server. Every few seconds a replica asks Redis for its metrics. If that happens
    /// during the work, the work is repeated and measured again.
    pub async fn cost_on(&self, server: &Server, mut work: impl AsyncFnMut()) -> Usage {
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
            let mut meter = server.meter();
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
    /// The number of calls of each command that was called.
    pub commands: BTreeMap<String, u64>,
    /// How often Redis read from a connection. Each round trip takes at least one read.
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

    /// What was used since the meter was made or last asked, without its own questions.
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
