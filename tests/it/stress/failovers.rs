//! The same, while Redis's primaries are killed, frozen or cut off, fail over, and come back with old data. None of that
//! may undo an acknowledged revocation. Sessions that were just created may get lost. They are counted.
//!
//! `make chaos` runs longer than the suite does: see CONTRIBUTING.md.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures::future::join_all;

use super::history::{Token, Violation, What, figures, violations};
use super::{Clients, agree, unlisted};
use crate::fleet::{Access, Cut, Fleet, Group, PATIENTLY, Way, Whom, in_own_network, within};

/// A fault of Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// A primary is killed, and comes back with its data after another one was elected.
    PrimaryKilled,
    /// A primary is frozen until another one was elected, and then continues.
    PrimaryFrozen,
    /// A primary is frozen for a moment, too short for an election.
    PrimaryPaused,
    /// An operator makes another server the primary.
    Failover,
    /// Replicas confirm nothing for a moment.
    ReplicasFrozen,
    /// A replica is killed, and comes back with its data.
    ReplicaKilled,
    /// A primary is cut off: from all its peers until another one is elected, from its replicas alone or from its
    /// clients for some seconds.
    CutOff(Cut),
    /// A primary is cut off from its peers, killed when another one is elected, and comes back with what it was told
    /// after the cut.
    CutOffAndKilled,
}

const OF_SERVERS: [Fault; 6] = [
    Fault::PrimaryKilled,
    Fault::PrimaryFrozen,
    Fault::PrimaryPaused,
    Fault::Failover,
    Fault::ReplicasFrozen,
    Fault::ReplicaKilled,
];

fn kinds(with_network: bool) -> Vec<Fault> {
    let mut kinds = OF_SERVERS.to_vec();
    if !with_network {
        return kinds;
    }
    kinds.push(Fault::CutOffAndKilled);
    for whom in [Whom::Servers, Whom::Peers, Whom::Clients] {
        kinds.extend([Way::Both, Way::Arriving, Way::Leaving].map(|way| Fault::CutOff(Cut { whom, way })));
    }
    kinds
}

#[test]
fn asvs_7_4_1_no_acknowledged_revocation_is_undone_by_a_failover_of_sentinel() {
    let name = "stress::failovers::asvs_7_4_1_no_acknowledged_revocation_is_undone_by_a_failover_of_sentinel";
    in_own_network(name, async |is_own| {
        chaos(Group::sentinel(Access { own_addresses: is_own, ..Access::default() }).await, is_own).await;
    });
}

#[test]
fn asvs_7_4_1_no_acknowledged_revocation_is_undone_by_a_failover_of_a_cluster() {
    let name = "stress::failovers::asvs_7_4_1_no_acknowledged_revocation_is_undone_by_a_failover_of_a_cluster";
    in_own_network(name, async |is_own| {
        chaos(Group::cluster(Access { own_addresses: is_own, ..Access::default() }).await, is_own).await;
    });
}

/// The checker finds real violations: if replicas don't confirm revocations, a primary that dies loses some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_confirmation_a_failover_brings_sessions_back() {
    for (replicas, brings_back) in [("0", true), ("1", false)] {
        let mut group = Group::sentinel(Access::default()).await;
        // So that the primary takes writes although its replicas can't reach it.
        for server in &group.servers {
            server.run::<String>(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
        }
        let fleet = fleet(&group, replicas).await;
        let clients = Clients::of(&fleet).await;
        let mut sessions = Vec::new();
        for user in 0..super::USERS {
            let session = clients.login(user).await.expect("signed in");
            assert!(clients.visit(&session).await, "a host got its cookie");
            sessions.push(session);
        }
        group.settled(3).await;
        let primary = group.primary();
        group.cut_off(primary);
        for session in &sessions {
            clients.end(session).await;
        }
        group.servers[primary].kill();
        let elected = async || group.named(&group.sentinels[0]).is_some_and(|named| named != primary);
        within(PATIENTLY, "another primary", elected).await;
        for session in &sessions {
            let answered = async || clients.check_all(session).await.iter().all(Option::is_some);
            within(PATIENTLY, "answers", answered).await;
        }
        let history = clients.history.lock().clone();
        let found = violations(&history);
        for by in [Token::Main, Token::HostBound] {
            let back = |found: &&Violation| matches!(found, Violation::Resurrected(_, token) if *token == by);
            let resurrected = found.iter().filter(back).count();
            println!("REDIS_REVOCATION_REPLICAS={replicas}: {}; {resurrected} times {by:?} is back", figures(&history));
            assert_eq!(resurrected > 0, brings_back, "{by:?}: {found:?}");
        }
    }
}

async fn fleet(group: &Group, replicas: &str) -> Fleet {
    Fleet::builder().sessions_in(group).for_stress().env("REDIS_REVOCATION_REPLICAS", replicas).start().await
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no whole number")))
}

async fn chaos(mut group: Group, with_network: bool) {
    let seconds = variable("CHAOS_SECONDS").unwrap_or(25);
    let seed = variable("CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("CHAOS_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let fleet = fleet(&group, "1").await;
    let clients = Clients::of(&fleet).await;
    let tasks = clients.start();
    let until = Instant::now() + Duration::from_secs(seconds);
    let (mut faults, mut next): (BTreeMap<Fault, usize>, Vec<Fault>) = (BTreeMap::new(), Vec::new());
    // One fault may take as long as a short run.
    while Instant::now() < until || faults.values().sum::<usize>() < 2 {
        if next.is_empty() {
            // Each kind happens once before any is repeated.
            next = kinds(with_network);
            rng.shuffle(&mut next);
        }
        let fault = next.pop().expect("there are kinds");
        let struck = Instant::now();
        strike(&mut group, fault, &mut rng).await;
        *faults.entry(fault).or_default() += 1;
        let over = Instant::now();
        group.settled(group.sentinels.len()).await;
        println!("{:?}, and {:?} until all servers were together", over - struck, over.elapsed());
        tokio::time::sleep(Duration::from_millis(rng.u64(..500))).await;
    }
    clients.stop.store(true, Ordering::Relaxed);
    for task in join_all(tasks).await {
        task.expect("only answers of the contract");
    }
    // Finally checks every token of every session at every replica. They must agree, and every living session must be
    // revocable.
    let sessions = clients.sessions.lock().clone();
    for session in &sessions {
        // The servers are together, but a replica that was cut off from one must still find that out.
        let mut answers = Vec::new();
        let answered = async || {
            answers = clients.check_all(session).await;
            answers.iter().all(Option::is_some)
        };
        within(PATIENTLY, "an answer of every replica", answered).await;
        assert!(agree(&answers), "session {}: {answers:?}", session.number);
    }
    for primary in group.primaries() {
        let unlisted = unlisted(&group.servers[primary]);
        assert!(unlisted.is_empty(), "no revocation of all would find {unlisted:?}");
    }
    let history = clients.history.lock().clone();
    let found = violations(&history);
    let is_allowed = |found: &Violation| matches!(found, Violation::Lost(..) | Violation::Flickered(..));
    let forbidden: Vec<_> = found.iter().filter(|found| !is_allowed(found)).collect();
    let lost: BTreeSet<_> = found
        .iter()
        .filter_map(|found| if let Violation::Lost(number, _) = found { Some(number) } else { None })
        .collect();
    let total: usize = faults.values().sum();
    println!(
        "failovers of {}, seed {seed}: {} in {seconds} s on 3 replicas; {total} faults {faults:?}; {} of {} sessions lost; {} \
         accepted after a refusal; violations: {}",
        if group.sentinels.is_empty() { "a cluster" } else { "Sentinel" },
        figures(&history),
        lost.len(),
        sessions.len(),
        found.iter().filter(|found| matches!(found, Violation::Flickered(..))).count(),
        forbidden.len(),
    );
    assert!(forbidden.is_empty(), "seed {seed}: {forbidden:?} of {} operations", history.len());
    let acknowledged = history.iter().filter(|event| {
        matches!(
            event.what,
            What::Ended { acknowledged: true, .. }
                | What::EndedAll { acknowledged: true, .. }
                | What::PasswordChanged { acknowledged: true, .. }
                | What::Disabled { acknowledged: true, .. }
        )
    });
    assert!(total >= 2 && acknowledged.count() > 50, "too little happened to mean anything");
}

async fn strike(group: &mut Group, fault: Fault, rng: &mut Rng) {
    let primaries = group.primaries();
    let primary = primaries[rng.usize(..primaries.len())];
    let replicas: Vec<_> = (0..group.servers.len()).filter(|server| !primaries.contains(server)).collect();
    let replica = replicas[rng.usize(..replicas.len())];
    let moment = Duration::from_millis(rng.u64(300..1500));
    println!("{fault:?} of {primary} or {replica}, {moment:?}");
    match fault {
        Fault::PrimaryKilled => {
            group.servers[primary].kill();
            another(group, primary).await;
            group.servers[primary].start().await;
        }
        Fault::PrimaryFrozen => {
            group.servers[primary].freeze();
            another(group, primary).await;
            tokio::time::sleep(moment).await;
            group.servers[primary].thaw();
        }
        Fault::PrimaryPaused => {
            group.servers[primary].freeze();
            tokio::time::sleep(moment).await;
            group.servers[primary].thaw();
        }
        Fault::Failover if group.sentinels.is_empty() => {
            // The replica asks its primary once, and nobody hears it if it has no link there yet, as just after a cut. It
            // gives up after five seconds. Then it must be told again.
            let mut told: Option<Instant> = None;
            let promoted = async || {
                let server = &group.servers[replica];
                if told.is_none_or(|at| at.elapsed() > Duration::from_secs(6)) {
                    drop(server.try_run::<String>(&["CLUSTER", "FAILOVER"]));
                    told = Some(Instant::now());
                }
                server.info("role") == "master"
            };
            within(3 * PATIENTLY, "it is promoted", promoted).await;
        }
        Fault::Failover => {
            // As docs/operations.md says. Otherwise the old primary goes on for a second, and a revocation may be
            // confirmed by a replica that isn't the one to be promoted.
            group.servers[primary].run::<String>(&["CLIENT", "PAUSE", "10000", "WRITE"]);
            tokio::time::sleep(Duration::from_millis(200)).await;
            group.sentinels[0].run::<String>(&["SENTINEL", "FAILOVER", "main"]);
            another(group, primary).await;
        }
        Fault::ReplicasFrozen => {
            for &replica in &replicas {
                group.servers[replica].freeze();
            }
            tokio::time::sleep(moment).await;
            for &replica in &replicas {
                group.servers[replica].thaw();
            }
        }
        Fault::ReplicaKilled => {
            group.servers[replica].kill();
            tokio::time::sleep(moment).await;
            group.servers[replica].start().await;
        }
        Fault::CutOff(cut) => {
            cut.begin(group, primary);
            if cut.whom == Whom::Peers {
                another(group, primary).await;
                tokio::time::sleep(moment).await;
            } else {
                // Some are too short for anybody to give up.
                tokio::time::sleep(moment * rng.u32(1..4)).await;
            }
            Cut::end_all();
        }
        Fault::CutOffAndKilled => {
            let cut = Cut { whom: Whom::Peers, way: Way::Both };
            cut.begin(group, primary);
            another(group, primary).await;
            group.servers[primary].kill();
            Cut::end_all();
            tokio::time::sleep(moment).await;
            group.servers[primary].start().await;
        }
    }
}

/// Waits until another server has replaced this one, which may be frozen.
async fn another(group: &Group, old: usize) {
    let elected = async || {
        if let Some(sentinel) = group.sentinels.first() {
            return group.named(sentinel).is_some_and(|named| named != old);
        }
        // The other server of the same shard. Replicas follow primaries in the order of shards.
        group.servers[(old + 3) % 6].info("role") == "master"
    };
    within(3 * PATIENTLY, "another primary", elected).await;
}
