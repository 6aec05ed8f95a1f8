//! Redis servers for one test: a primary with two replicas and three Sentinels, a cluster of three primaries with a
//! replica each, or a single server with passwords or TLS.
//!
//! The unit tests of the sessions' store use this file too, so of the others it uses only `ports` and `redis_server`.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::ports::Port;
use super::redis_server::{HARNESS, Server, shipped};

/// Only a hanging test takes this long.
const PATIENTLY: Duration = Duration::from_secs(30);
/// The Sentinels' name for the primary.
pub const NAME: &str = "main";
/// `min-replicas-max-lag`, shorter than in the shipped configuration, so that tests take less time.
const LAG: Duration = Duration::from_secs(2);
/// A primary refuses writes at the latest this long after it last heard from its replicas: it counts in whole seconds,
/// once a second.
pub const ISOLATED: Duration = LAG.saturating_add(Duration::from_secs(2));
/// `down-after-milliseconds` and `cluster-node-timeout`. Not less than [`ISOLATED`], so that a primary that is cut off
/// refuses writes before another one is elected.
pub const DOWN_AFTER: Duration = ISOLATED;

/// Who may connect, and how.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Name and password at Redis, each as it is and as it is encoded in a URL.
    pub login: Option<[(&'static str, &'static str); 2]>,
    /// Name and password at the Sentinels. Their variables need no encoding.
    pub sentinel_login: Option<(&'static str, &'static str)>,
    pub tls: bool,
    /// Whether clients must show a certificate.
    pub client_certificates: bool,
    /// Whether each server has an address of its own, from which it also connects to others, so that the network can
    /// tell them apart: [`host`].
    pub own_addresses: bool,
}

/// Where servers with addresses of their own are. Everything under 127 is this machine on Linux. The third part says
/// which of the two kinds it is.
pub fn host(is_sentinel: bool, index: usize) -> String {
    format!("127.1.{}.{}", u8::from(is_sentinel), index + 1)
}

/// A name and a password full of characters with a meaning in URLs or in Redis's configuration, each as it is and as it
/// is encoded in a URL.
pub const SPECIAL: [(&str, &str); 2] = [("fle@et", "fle%40et"), ("p@s/s#?%:, é", "p%40s%2Fs%23%3F%25%3A%2C%20%C3%A9")];

/// Nobody can connect without a name. The user keeps its rights, because Redis and Valkey replay their append-only file
/// as this user: what a script wrote is a transaction there, which they leave out, and start, if the user may not make it.
const NOBODY: &str = "user default reset off ~* &* +@all";

/// A certificate authority for one test, and the certificates that it signed with their keys, as files.
#[derive(Debug)]
pub struct Authority {
    pub certificate: PathBuf,
    /// For servers on this machine.
    pub server: [PathBuf; 2],
    /// The same, but expired.
    pub expired: [PathBuf; 2],
    /// For clients.
    pub client: [PathBuf; 2],
}

impl Authority {
    /// Makes one in a new directory.
    pub fn new(directory: &Path) -> Self {
        fs::create_dir(directory).expect("a new directory");
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            fs::write(&path, text).expect("a file");
            path
        };
        let key = KeyPair::generate().expect("a key");
        // Without a name of its own, a certificate would have its issuer's subject, and be taken for self-signed.
        let named = |name: &str, hosts: &[&str]| {
            let hosts: Vec<_> = hosts.iter().map(|&host| host.to_owned()).collect();
            let mut params = CertificateParams::new(hosts).expect("names");
            params.distinguished_name.push(DnType::CommonName, name);
            params
        };
        let mut params = named("an authority for tests", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        let issuer = Issuer::new(params, key);
        let signed = |name: &str, hosts: &[&str], until: i32| {
            let key = KeyPair::generate().expect("a key");
            let mut params = named(name, hosts);
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
            let certificate = params.signed_by(&key, &issuer).expect("a certificate").pem();
            [write(&format!("{name}.crt"), certificate), write(&format!("{name}.key"), key.serialize_pem())]
        };
        let server = signed("server", &["127.0.0.1", "localhost"], 4096);
        let expired = signed("expired", &["127.0.0.1", "localhost"], 2020);
        let client = signed("client", &["authfleet"], 4096);
        Self { certificate: write("ca.crt", certificate), server, expired, client }
    }
}

/// Servers that belong together. They are killed when it is dropped.
#[derive(Debug)]
pub struct Group {
    pub servers: Vec<Server>,
    /// Empty in a cluster.
    pub sentinels: Vec<Server>,
    kind: Kind,
    access: Access,
    pub authority: Option<Authority>,
    /// The ports of the cluster's bus.
    kept: Vec<Port>,
    // Last, because dropping it removes the directory that the others use.
    directory: TempDir,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Single,
    Sentinel,
    Cluster,
}

impl Group {
    /// Starts one server on a port.
    pub async fn single(access: Access) -> Self {
        let mut group = Self::new(Kind::Single, access);
        let port = Port::free();
        let lines = group.common(&port);
        group.add("redis", port, &lines);
        group.start().await
    }

    /// Starts a primary, two replicas and three Sentinels.
    pub async fn sentinel(access: Access) -> Self {
        let mut group = Self::new(Kind::Sentinel, access);
        let ports = [0, 1, 2].map(|index| group.port(false, index));
        // As configurations have it: host, space, port.
        let place = |port: &Port| format!("{} {}", port.host, port.number);
        let primary = place(&ports[0]);
        let mut watched = vec![format!("sentinel monitor {NAME} {primary} 2")];
        for (index, port) in ports.into_iter().enumerate() {
            let mut lines = group.common(&port);
            if index > 0 {
                lines.push(format!("replicaof {primary}"));
                watched.push(format!("sentinel known-replica {NAME} {}", place(&port)));
            }
            group.add(&format!("redis-{index}"), port, &lines);
        }
        watched.push(format!("sentinel auth-user {NAME} sentinel"));
        watched.push(format!("sentinel auth-pass {NAME} sentinel"));
        watched.push(format!("sentinel down-after-milliseconds {NAME} {}", DOWN_AFTER.as_millis()));
        watched.push(format!("sentinel failover-timeout {NAME} 3000"));
        watched.push(format!("sentinel parallel-syncs {NAME} 2"));
        let ports = [0, 1, 2].map(|index| group.port(true, index));
        let places = [0, 1, 2].map(|index: usize| place(&ports[index]));
        for (index, port) in ports.into_iter().enumerate() {
            let mut lines = group.tls(port.number);
            lines.extend(group.source(&port));
            lines.push(format!("sentinel myid {}", id(index)));
            if let Some((name, password)) = group.access.sentinel_login {
                lines.extend([
                    NOBODY.to_owned(),
                    user(name, password, "~* &* +@all"),
                    user(HARNESS, HARNESS, "~* &* +@all"),
                    format!("sentinel sentinel-user {HARNESS}"),
                    format!("sentinel sentinel-pass {HARNESS}"),
                ]);
            }
            lines.extend(watched.iter().cloned());
            for other in (0..3).filter(|&other| other != index) {
                lines.push(format!("sentinel known-sentinel {NAME} {} {}", places[other], id(other)));
            }
            let directory = group.directory.path().join(format!("sentinel-{index}"));
            group.sentinels.push(Server::sentinel(&directory, port, &lines));
        }
        group.start().await
    }

    /// Starts a cluster of three primaries with a replica each.
    pub async fn cluster(access: Access) -> Self {
        let mut group = Self::new(Kind::Cluster, access);
        let ports = [0, 1, 2, 3, 4, 5].map(|index| (group.port(false, index), group.port(false, index)));
        let slots = ["0-5460", "5461-10922", "10923-16383"];
        let members: Vec<_> = ports
            .iter()
            .enumerate()
            .map(|(index, (port, bus))| {
                let place = format!("{} {}@{}", id(index), port.address(), bus.number);
                match slots.get(index) {
                    Some(slots) => (place, format!("master - 0 0 {} connected {slots}", index + 1)),
                    None => (place, format!("slave {} 0 0 {} connected", id(index - 3), index - 2)),
                }
            })
            .collect();
        for (index, (port, bus)) in ports.into_iter().enumerate() {
            let mut lines = group.common(&port);
            lines.extend([
                shipped("cluster.conf"),
                format!("cluster-port {}", bus.number),
                format!("cluster-node-timeout {}", DOWN_AFTER.as_millis()),
                "cluster-allow-replica-migration no".to_owned(),
            ]);
            group.add(&format!("redis-{index}"), port, &lines);
            group.kept.push(bus);
            let nodes: Vec<_> = members
                .iter()
                .enumerate()
                .map(|(other, (place, role))| format!("{place} {}{role}", if other == index { "myself," } else { "" }))
                .collect();
            let nodes = format!("{}\nvars currentEpoch 3 lastVoteEpoch 0\n", nodes.join("\n"));
            fs::write(group.servers[index].directory().join("nodes.conf"), nodes).expect("a file");
        }
        group.start().await
    }

    fn new(kind: Kind, mut access: Access) -> Self {
        if kind != Kind::Single {
            // Without an account, those who are kept out could connect as the default user.
            access.login.get_or_insert(SPECIAL);
        }
        let directory = tempfile::Builder::new().prefix("redis-").tempdir().expect("a temporary directory");
        let authority = access.tls.then(|| Authority::new(&directory.path().join("certificates")));
        Self { servers: Vec::new(), sentinels: Vec::new(), kind, access, authority, kept: Vec::new(), directory }
    }

    /// For the server of this number, or the Sentinel.
    fn port(&self, is_sentinel: bool, index: usize) -> Port {
        if self.access.own_addresses { Port::free_at(&host(is_sentinel, index)) } else { Port::free() }
    }

    /// Where a server connects from.
    fn source(&self, port: &Port) -> Option<String> {
        self.access.own_addresses.then(|| format!("bind-source-addr {}", port.host))
    }

    fn tls(&self, port: u16) -> Vec<String> {
        let Some(authority) = &self.authority else { return Vec::new() };
        let [certificate, key] = &authority.server;
        let clients = if self.access.client_certificates { "yes" } else { "no" };
        vec![
            format!("tls-port {port}"),
            format!("tls-cert-file {}", certificate.display()),
            format!("tls-key-file {}", key.display()),
            format!("tls-ca-cert-file {}", authority.certificate.display()),
            format!("tls-auth-clients {clients}"),
            "tls-replication yes".to_owned(),
        ]
    }

    /// The configuration that all servers of the group share.
    fn common(&self, port: &Port) -> Vec<String> {
        let mut lines = self.tls(port.number);
        lines.extend(self.source(port));
        if self.kind != Kind::Single {
            lines.push(shipped("replicated.conf"));
            lines.push(format!("min-replicas-max-lag {}", LAG.as_secs()));
            // Replicas and Sentinels have accounts of their own, so that a test can keep only them out.
            lines.push(user("replica", "replica", "+psync +replconf +ping"));
            lines.push(user("sentinel", "sentinel", "~* &* +@all"));
            lines.push("masteruser replica".to_owned());
            lines.push("masterauth replica".to_owned());
        }
        if self.kind == Kind::Cluster && self.access.tls {
            lines.push("tls-cluster yes".to_owned());
        }
        if let Some([(name, _), (password, _)]) = self.access.login {
            lines.push(NOBODY.to_owned());
            lines.push(user(name, password, "~* &* +@all"));
            lines.push(user(HARNESS, HARNESS, "~* &* +@all"));
        }
        lines
    }

    fn add(&mut self, name: &str, port: Port, lines: &[String]) {
        self.servers.push(Server::redis(&self.directory.path().join(name), Some(port), lines));
    }

    async fn start(mut self) -> Self {
        for server in &mut self.servers {
            server.launch();
        }
        for server in &mut self.servers {
            server.answers().await;
        }
        // Waits for the replicas, because a Sentinel that looks before there are any looks again only after ten
        // seconds.
        self.settled(0).await;
        for sentinel in &mut self.sentinels {
            sentinel.launch();
        }
        for sentinel in &mut self.sentinels {
            sentinel.answers().await;
        }
        self.settled(self.sentinels.len()).await;
        self
    }

    /// `REDIS_URL` and the variables that belong to it.
    pub fn settings(&self) -> BTreeMap<String, String> {
        let mut settings = BTreeMap::from([("REDIS_URL".to_owned(), self.url())]);
        let mut set = |name: &str, value: String| drop(settings.insert(name.to_owned(), value));
        if let Some(Authority { certificate, client: [client, key], .. }) = &self.authority {
            set("REDIS_CA_FILE", certificate.display().to_string());
            if self.access.client_certificates {
                set("REDIS_CERT_FILE", client.display().to_string());
                set("REDIS_KEY_FILE", key.display().to_string());
            }
        }
        if let Some((name, password)) = self.access.sentinel_login.filter(|_| self.kind == Kind::Sentinel) {
            set("REDIS_SENTINEL_USERNAME", name.to_owned());
            set("REDIS_SENTINEL_PASSWORD", password.to_owned());
        }
        settings
    }

    /// `REDIS_URL`.
    pub fn url(&self) -> String {
        let s = if self.access.tls { "s" } else { "" };
        let login =
            self.access.login.map_or_else(String::new, |[(_, name), (_, password)]| format!("{name}:{password}@"));
        let list = |servers: &[Server]| servers.iter().map(Server::address).collect::<Vec<_>>().join(",");
        match self.kind {
            Kind::Single => format!("redis{s}://{login}{}", self.servers[0].address()),
            Kind::Sentinel => format!("redis{s}-sentinel://{login}{}/{NAME}", list(&self.sentinels)),
            Kind::Cluster => format!("redis{s}-cluster://{login}{}", list(&self.servers[..3])),
        }
    }

    /// The servers that call themselves primaries. Don't call this while a server is frozen, because it doesn't answer.
    pub fn primaries(&self) -> Vec<usize> {
        let servers = self.servers.iter().enumerate();
        servers.filter(|(_, server)| server.info("role") == "master").map(|(index, _)| index).collect()
    }

    /// The primary that Sentinels name.
    pub fn primary(&self) -> usize {
        self.named(&self.sentinels[0]).expect("the Sentinel names a server of the group")
    }

    /// The primary that one Sentinel names.
    pub fn named(&self, sentinel: &Server) -> Option<usize> {
        let (host, port): (String, u16) = sentinel.try_run(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]).ok()?;
        self.at(&host, port)
    }

    fn at(&self, host: &str, port: u16) -> Option<usize> {
        self.servers
            .iter()
            .position(|server| server.port.as_ref().is_some_and(|own| own.host == host && own.number == port))
    }

    /// The server of a cluster that has this key, according to the server `through`.
    pub fn owner(&self, key: &str, through: usize) -> Option<usize> {
        type Range = (u16, u16, (String, u16, String));
        let slot: u16 = self.servers[through].try_run(&["CLUSTER", "KEYSLOT", key]).ok()?;
        let ranges: Vec<redis::Value> = self.servers[through].try_run(&["CLUSTER", "SLOTS"]).ok()?;
        ranges.into_iter().find_map(|range| {
            let redis::Value::Array(mut parts) = range else { return None };
            parts.truncate(3);
            if let Some(redis::Value::Array(node)) = parts.get_mut(2) {
                node.truncate(3);
            }
            let (from, to, (host, port, _)): Range = redis::from_redis_value(redis::Value::Array(parts)).ok()?;
            if (from..=to).contains(&slot) { self.at(&host, port) } else { None }
        })
    }

    /// Waits until all servers run, know each other, and have their replicas.
    pub async fn settled(&self, sentinels: usize) {
        let begin = Instant::now();
        while let Err(why) = self.is_settled(sentinels) {
            // Sentinels take a while to make a returning primary a replica.
            assert!(begin.elapsed() < 3 * PATIENTLY, "the servers don't come together: {why}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn is_settled(&self, sentinels: usize) -> Result<(), String> {
        let (primaries, replicas) = match self.kind {
            Kind::Single => (1, 0),
            Kind::Sentinel => (1, 2),
            Kind::Cluster => (3, 1),
        };
        let found = self.primaries();
        if found.len() != primaries {
            return Err(format!("primaries are {found:?}"));
        }
        for primary in found {
            let server = &self.servers[primary];
            let good = server.info("min_slaves_good_slaves");
            // The field is empty if a test allows the primary to write without replicas.
            let are_good = good.is_empty() || good == replicas.to_string();
            if replicas > 0 && !(are_good && server.is_followed_by(replicas)) {
                return Err(format!("{primary} has {good:?} good replicas, or they are behind"));
            }
            for sentinel in &self.sentinels[..sentinels] {
                if self.named(sentinel) != Some(primary) {
                    return Err(format!("a Sentinel names {:?}", self.named(sentinel)));
                }
                let state: BTreeMap<String, String> =
                    sentinel.try_run(&["SENTINEL", "MASTER", NAME]).map_err(|error| error.to_string())?;
                let seen = ["flags", "num-slaves", "num-other-sentinels"].map(|name| state[name].as_str());
                if seen != ["master", "2", "2"] {
                    return Err(format!("a Sentinel sees {seen:?}"));
                }
            }
        }
        if self.kind == Kind::Cluster {
            for (index, server) in self.servers.iter().enumerate() {
                let state: String = server.try_run(&["CLUSTER", "INFO"]).map_err(|error| error.to_string())?;
                if !state.contains("cluster_state:ok") || !state.contains("cluster_slots_ok:16384") {
                    return Err(format!("{index} says {state}"));
                }
            }
        }
        Ok(())
    }

    /// Keeps replicas and Sentinels out of a server, but not clients.
    pub fn cut_off(&self, server: usize) {
        for account in ["replica", "sentinel"] {
            self.servers[server].run::<String>(&["ACL", "SETUSER", account, "off"]);
            self.servers[server].run::<i64>(&["CLIENT", "KILL", "USER", account]);
        }
    }

    /// Lets replicas and Sentinels in again.
    pub fn join(&self, server: usize) {
        for account in ["replica", "sentinel"] {
            self.servers[server].run::<String>(&["ACL", "SETUSER", account, "on"]);
        }
        // A Sentinel names itself once per connection, and keeps one on which it was refused: any answer to its PING
        // counts as a sign of life of the connection. Without a name it would stay there for ever.
        self.servers[server].run::<i64>(&["CLIENT", "KILL", "USER", "default"]);
    }
}

/// A line of an ACL.
fn user(name: &str, password: &str, rules: &str) -> String {
    format!("user {name} on \">{password}\" {rules}")
}

/// The id by which other members of a cluster know a server.
fn id(index: usize) -> String {
    format!("{index:040x}")
}
