//! A network of a test's own, in which servers can be cut off from each other and from their clients.
//!
//! It is a network namespace with nothing in it but its loopback interface. Packets are dropped there by address, in
//! each direction separately, and nobody is told: as when a switch fails, and unlike when a process dies.
use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use super::Group;

/// Set for a test that runs in its own network.
const MARK: &str = "AUTHFLEET_TEST_OWN_NETWORK";
/// The table of the packet filter, in the namespace.
const TABLE: &str = "inet cuts";

/// Runs this test's `work` in a network namespace of its own. `name` is the test's, with the modules that it's in.
///
/// The namespace belongs to a thread, and its rights to a process that has one thread, so the test binary runs this
/// test once more in there. Needs `unshare`, `ip` and `nft`; not root, where the system lets everybody make user
/// namespaces.
pub fn in_own_network(name: &str, work: impl Future<Output = ()>) {
    if env::var_os(MARK).is_some() {
        filter(&format!("add table {TABLE}\nadd chain {TABLE} input {{ type filter hook input priority 0; }}"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        return runtime.expect("a runtime").block_on(work);
    }
    let mut command = Command::new("unshare");
    if !rustix::process::getuid().is_root() {
        command.arg("--map-root-user");
    }
    // The outer test shows what the inner one writes, if it fails.
    command.args(["--net", "--", "sh", "-c", r#"ip link set lo up && exec "$@" 2>&1"#, "sh"]);
    command.arg(env::current_exe().expect("this binary")).args(["--exact", name, "--nocapture"]);
    command.env(MARK, "1").env("PATH", format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap_or_default()));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("unshare must be installed");
    let mut ran = false;
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
        let line = line.expect("text");
        ran |= line.contains("running 1 test");
        println!("{line}");
    }
    let status = child.wait().expect("a child");
    assert!(status.success(), "in a network of its own: {status}");
    assert!(ran, "no test is called {name}");
}

fn filter(rules: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft must be installed");
    nft.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("nft reads its rules");
    assert!(nft.wait().expect("a child").success(), "nft refused {rules}");
}

/// From whom a server is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whom {
    /// From the other servers, not from Sentinels.
    Servers,
    /// From servers and Sentinels.
    Peers,
    /// From authfleet.
    Clients,
}

/// What gets lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    Both,
    /// What is sent to the server.
    Arriving,
    /// What the server sends.
    Leaving,
}

/// Of a server with an address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    pub whom: Whom,
    pub way: Way,
}

impl Cut {
    pub fn begin(self, group: &Group, server: usize) {
        let server = &group.servers[server].port.as_ref().expect("it has an address").host;
        let others = match self.whom {
            Whom::Servers => "127.1.0.0/24",
            Whom::Peers => "127.1.0.0/16",
            Whom::Clients => "127.0.0.1",
        };
        let drop = |from: &str, to: &str| format!("add rule {TABLE} input ip saddr {from} ip daddr {to} drop\n");
        let (arriving, leaving) = (drop(others, server), drop(server, others));
        filter(&match self.way {
            Way::Both => arriving + &leaving,
            Way::Arriving => arriving,
            Way::Leaving => leaving,
        });
    }

    /// Ends all cuts.
    pub fn end_all() {
        filter(&format!("flush chain {TABLE} input"));
    }
}
