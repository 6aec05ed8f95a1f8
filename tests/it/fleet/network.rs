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

/// `required` makes it a failure if no namespace can be made.
const REQUIRED: &str = "AUTHFLEET_TEST_NETWORK";
/// What runs a command in a network of its own, after the words that get the rights to do so.
const PREPARED: &str = r#"ip link set lo up && nft add table inet cuts && exec "$@""#;

/// Runs this test's `work` in a network namespace of its own. `name` is the test's, with the modules that it's in. `work`
/// gets `true` there, and `false` where the system lets nobody make one: as root in a container without privileges, or as
/// a user where neither user namespaces are open to all nor sudo works without a password. That is reported on standard
/// error, even if the test passes.
///
/// The namespace belongs to a thread, and its rights to a process that has one thread, so the test binary runs this
/// test once more in there. Needs `unshare`, `ip` and `nft`.
pub fn in_own_network<F: Future<Output = ()>>(name: &str, work: impl FnOnce(bool) -> F) {
    let run = |is_own| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(work(is_own));
    };
    if env::var_os(MARK).is_some() {
        filter(&format!("add chain {TABLE} input {{ type filter hook input priority 0; }}"));
        return run(true);
    }
    let mut reasons = Vec::new();
    let Some(way) = ways().into_iter().find(|way| leads_there(way, &mut reasons)) else {
        let what = format!("{name}: no network of its own, so no server is cut off: {}", reasons.join("; "));
        assert!(env::var(REQUIRED).as_deref() != Ok("required"), "{what}");
        // Not by a macro, whose output is shown only if the test fails.
        writeln!(std::io::stderr(), "{what}").expect("standard error takes it");
        return run(false);
    };
    let mut command = there(&way);
    command.arg(env::current_exe().expect("this binary")).args(["--exact", name, "--nocapture"]);
    // The outer test shows what the inner one writes, if it fails.
    let (read, write) = std::io::pipe().expect("a pipe");
    command.stdin(Stdio::null()).stderr(write.try_clone().expect("a descriptor")).stdout(write);
    let mut child = command.spawn().expect("it ran just now");
    drop(command);
    let mut ran = false;
    for line in BufReader::new(read).lines() {
        let line = line.expect("text");
        ran |= line.contains("running 1 test");
        println!("{line}");
    }
    let status = child.wait().expect("a child");
    assert!(status.success(), "in a network of its own: {status}");
    assert!(ran, "no test is called {name}");
}

/// The ways to make a network namespace, best first.
fn ways() -> Vec<Vec<String>> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect();
    if rustix::process::getuid().is_root() {
        return vec![words("unshare --net")];
    }
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    vec![
        words("unshare --map-root-user --net"),
        // As this user, with the one right that is needed in there.
        words(&format!(
            "sudo --non-interactive --preserve-env unshare --net setpriv --reuid {user} --regid {group} --init-groups \
             --inh-caps +net_admin --ambient-caps +net_admin",
            user = user.as_raw(),
            group = group.as_raw()
        )),
    ]
}

/// A command that is to be run there.
fn there(way: &[String]) -> Command {
    let path = format!("PATH={}:/usr/sbin:/sbin", env::var("PATH").unwrap_or_default());
    let mut command = Command::new(&way[0]);
    // sudo sets PATH itself.
    command.args(&way[1..]).args(["env", &path, &format!("{MARK}=1"), "sh", "-c", PREPARED, "sh"]);
    command
}

/// Whether this way leads to a network in which packets can be dropped. If not, adds the reason.
fn leads_there(way: &[String], reasons: &mut Vec<String>) -> bool {
    let reason = match there(way).arg("true").stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().replace('\n', ", "),
        Err(error) => format!("{}: {error}", way[0]),
    };
    reasons.push(reason);
    false
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
