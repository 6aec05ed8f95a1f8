//! Redis with Sentinel: replicas find the new primary in time, nobody gets a wrong answer meanwhile, and what was
//! revoked stays revoked.
use std::time::{Duration, Instant};

use serde_json::json;

use crate::fleet::{
    Access, Fleet, Group, ISOLATED, PASSWORD, PATIENTLY, PROMPTLY, Replica, Server, Session, Watch, right_again, within,
};

/// Commands that don't come from replicas of the fleet, but from Sentinels, Redis's replicas or the meter.
const OF_OTHERS: [&str; 8] = ["ping", "info", "publish", "replconf", "client|setname", "subscribe", "auth", "hello"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_is_one_round_trip_and_a_revocation_is_confirmed() {
    let group = Group::sentinel(Access::default()).await;
    let fleet = Fleet::builder().sessions_in(&group).replicas(2).start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    expect_one_round_trip(&fleet, &group, 0, &session).await;
    expect_confirmation(&fleet, &group, &[1, 2], &session, 0).await;
}

/// Fails the test unless a check is one round trip of two commands to this server, and sends none to another.
pub(crate) async fn expect_one_round_trip(fleet: &Fleet, group: &Group, server: usize, session: &Session) {
    const REQUESTS: u64 = 100;
    assert_eq!(fleet[0].check(session).await, 200);
    let mut replicas = Vec::new();
    for (index, other) in group.servers.iter().enumerate().filter(|(index, _)| *index != server) {
        replicas.push((index, other.meter()));
    }
    let used = fleet.cost_on(&group.servers[server], async || {
        for _ in 0..REQUESTS {
            assert_eq!(fleet[0].check(session).await, 200);
        }
    });
    let mut used = used.await;
    let before = used.commands.len();
    let mut of_others = 0;
    used.commands.retain(|name, calls| {
        let is_other = OF_OTHERS.contains(&&**name);
        of_others += if is_other { *calls } else { 0 };
        !is_other
    });
    assert_eq!(used.commands, [("hmget".to_owned(), REQUESTS), ("pexpire".to_owned(), REQUESTS)].into(), "{before}");
    // Each command of the others adds at most one read.
    assert!((REQUESTS..=REQUESTS + of_others).contains(&used.reads), "{} reads, {of_others} of others", used.reads);
    for (index, mut meter) in replicas {
        // Only its primary writes to a replica, and nobody reads from it.
        assert_eq!(meter.used().commands.get("hmget"), None, "server {index}");
    }
}

/// Fails the test unless revocations are refused while `replicas`, which follow `primary`, are frozen, and succeed
/// afterwards.
pub(crate) async fn expect_confirmation(
    fleet: &Fleet,
    group: &Group,
    replicas: &[usize],
    session: &Session,
    primary: usize,
) {
    let server = &group.servers[primary];
    // So that only the confirmation is missing. Otherwise, the primary would soon refuse all writes.
    server.run::<String>(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    let user = fleet[0].get("/profile").session(session).send().await.expect(200);
    let (email, name) = (user.text_at("email"), user.text_at("username"));
    let login = async |password: &str| Session::opened_by(&fleet[0].try_login(&email, password).send().await);
    let new_password = "staple a battery horse";
    let change = json!({ "current_password": PASSWORD, "new_password": new_password });
    let unconfirmed =
        || fleet.replicas().iter().flat_map(Replica::log).filter(|line| line["outcome"] == "unconfirmed").count();
    for way in ["logout", "revoke", "revoke all", "password", "disable"] {
        let (asking, other) = (login(PASSWORD).await, login(PASSWORD).await);
        let ask = |replica: usize| match way {
            "logout" => fleet[replica].post("/auth/logout").session(&asking),
            "revoke" => fleet[replica].call("DELETE", &format!("/auth/sessions/{}", other.id)).session(&asking),
            "revoke all" => fleet[replica].call("DELETE", "/auth/sessions").session(&asking),
            _ => fleet[replica].post("/auth/password").session(&asking).json(&change),
        };
        let before = unconfirmed();
        for &replica in replicas {
            group.servers[replica].freeze();
        }
        if way == "disable" {
            fleet.command(&["user", "disable", &name], &[]).await.expect_code(1);
        } else {
            ask(0).send().await.expect_unavailable();
            // At another replica, on a connection that has written nothing yet.
            ask(1).send().await.expect_unavailable();
            server.run::<i64>(&["CLIENT", "KILL", "TYPE", "normal"]);
            for replica in fleet.replicas() {
                within(PATIENTLY, "connected again", async || replica.check(session).await != 503).await;
            }
            ask(0).send().await.expect_unavailable();
            assert!(unconfirmed() >= before + 2, "{way} is not on record");
        }
        for &replica in replicas {
            group.servers[replica].thaw();
        }
        // Succeeds as soon as the replicas have caught up.
        let done = async || {
            if way == "disable" {
                return fleet.command(&["user", "disable", &name], &[]).await.code == Some(0);
            }
            let answer = ask(0).send().await;
            // The first attempt may have ended the session that asks, or changed the password.
            assert!(matches!(answer.status, 200 | 204 | 401 | 403 | 404 | 503), "{way}: {}", answer.text());
            answer.status != 503
        };
        within(PATIENTLY, way, done).await;
        for replica in fleet.replicas() {
            if way != "revoke" {
                assert_eq!(replica.check(&asking).await, 401, "{way}");
            }
            if way != "logout" {
                assert_eq!(replica.check(&other).await, 401, "{way}");
            }
        }
        if way == "password" {
            let again = Session::opened_by(&fleet[0].try_login(&email, new_password).send().await);
            let back = json!({ "current_password": new_password, "new_password": PASSWORD });
            fleet[0].post("/auth/password").session(&again).json(&back).send().await.expect(200);
        }
    }
    server.run::<String>(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
}

/// How a primary fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Demoted,
    Killed,
    Frozen,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_primary_is_found_however_the_first_one_goes() {
    let mut group = Group::sentinel(Access::default()).await;
    let fleet = Fleet::builder().sessions_in(&group).replicas(2).start().await;
    let ada = fleet[0].register("ada").await;
    let (session, ended) = (fleet[0].login(&ada).await, fleet[0].login(&ada).await);
    fleet[1].post("/auth/logout").session(&ended).send().await.expect(200);
    for fault in [Fault::Demoted, Fault::Killed, Fault::Frozen] {
        let old = group.primary();
        let connects = async || {
            fleet[0].count("authfleet_redis_connects_total", &[]).await
                + fleet[1].count("authfleet_redis_connects_total", &[]).await
        };
        let before = connects().await;
        let (alive, dead) = (Watch::over(&fleet, &session), Watch::over(&fleet, &ended));
        let begin = Instant::now();
        match fault {
            Fault::Demoted => drop(group.sentinels[0].run::<String>(&["SENTINEL", "FAILOVER", "main"])),
            Fault::Killed => {
                // One of three Sentinels fails with it.
                group.sentinels[0].kill();
                group.servers[old].kill();
            }
            Fault::Frozen => group.servers[old].freeze(),
        }
        let sentinel = &group.sentinels[2];
        let elected = async || {
            let named = group.named(sentinel).filter(|&named| named != old);
            named.is_some_and(|new| {
                let server = &group.servers[new];
                // The election is over when the new primary takes writes again, which is when another replica follows
                // it.
                server.info("role") == "master" && server.info("min_slaves_good_slaves") != "0"
            })
        };
        within(PATIENTLY, "another primary", elected).await;
        let election = Instant::now();
        within(PATIENTLY, "right answers", async || {
            fleet[0].check(&session).await == 200 && fleet[1].check(&session).await == 200
        })
        .await;
        // The old primary comes back, and knows nothing of what happened meanwhile.
        match fault {
            Fault::Demoted => {}
            Fault::Killed => {
                group.servers[old].start().await;
                group.sentinels[0].start().await;
            }
            Fault::Frozen => group.servers[old].thaw(),
        }
        group.settled(3).await;
        let seen = alive.expect(200).await;
        dead.expect(401).await;
        let waited = right_again(&seen, 200, election).duration_since(election);
        let made = connects().await - before;
        println!(
            "{fault:?}: the election took {:?}, right answers {waited:?} after it, {made} connections made",
            election - begin
        );
        assert!(waited < PROMPTLY, "{fault:?}: {waited:?}");
        // Two links per replica, and as many again if the first lead to a server that is about to be demoted.
        assert!(made <= 12, "{made} connections: a herd");
    }
    // Two of three Sentinels are down. A replica that starts still finds the primary.
    group.sentinels[0].kill();
    group.sentinels[1].freeze();
    let late = Fleet::builder().sessions_in(&group).start().await;
    within(PROMPTLY, "ready", async || late[0].ops("/readyz").await.status == 200).await;
    assert_eq!(fleet[0].check(&session).await, 200);
}

/// However many requests wait for it, a new primary gets a few connections from each replica of authfleet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_primary_meets_no_herd() {
    let mut group = Group::sentinel(Access::default()).await;
    let fleet = Fleet::builder().sessions_in(&group).replicas(3).start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let watches: Vec<_> = (0..10).map(|_| Watch::over(&fleet, &session)).collect();
    let received = |server: &Server| server.info("total_connections_received").parse::<u64>().expect("a number");
    let before: Vec<_> = group.servers.iter().map(received).collect();
    let old = group.primary();
    group.servers[old].kill();
    // Only Sentinels are asked, so that no connection of the test's own is counted.
    let elected = async || group.named(&group.sentinels[0]).is_some_and(|named| named != old);
    within(PATIENTLY, "another primary", elected).await;
    let election = Instant::now();
    within(PATIENTLY, "right answers", async || {
        let mut right = true;
        for replica in fleet.replicas() {
            right &= replica.check(&session).await == 200;
        }
        right
    })
    .await;
    let new = group.primary();
    // One of them asked for the number.
    let opened = received(&group.servers[new]) - before[new] - 1;
    let seconds = election.elapsed().as_secs() + 1;
    let mut refused = 0;
    for watch in watches {
        refused += watch.expect(200).await.iter().flatten().filter(|answer| answer.status == 503).count();
    }
    println!("{opened} connections to the new primary, {refused} requests were refused meanwhile");
    // Three Sentinels with two links each and the other replica, each of them perhaps twice. Two links on each replica
    // of authfleet, each perhaps twice, and once a second while the new primary refuses writes because it has no
    // replica.
    assert!(opened <= 14 + 12 + 6 * seconds, "{opened} connections: a herd");
    assert!(refused > 200, "too little was asked: {refused}");
}

/// A replica tries to connect once at a time and ten times a second, not once per request. The attempts are counted
/// where they arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_away_is_not_flooded() {
    let mut fleet = Fleet::builder().redis_over_tcp().replicas(2).start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let watches: Vec<_> = (0..10).map(|_| Watch::over(&fleet, &session)).collect();
    let address = fleet.redis.address().parse().expect("an address");
    fleet.redis.kill();
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("SO_REUSEADDR");
    socket.bind(address).expect("nobody listens there");
    let listener = socket.listen(1024).expect("it listens");
    let begin = Instant::now();
    let end = tokio::time::Instant::now() + Duration::from_secs(3);
    let mut attempts = 0;
    while let Ok(accepted) = tokio::time::timeout_at(end, listener.accept()).await {
        drop(accepted.expect("a connection"));
        attempts += 1;
    }
    let tenths = begin.elapsed().as_millis() / 100;
    drop(listener);
    fleet.redis.start().await;
    within(PATIENTLY, "right answers", async || {
        fleet[0].check(&session).await == 200 && fleet[1].check(&session).await == 200
    })
    .await;
    let mut refused = 0;
    for watch in watches {
        refused += watch.expect(200).await.iter().flatten().filter(|answer| answer.status == 503).count();
    }
    println!("{attempts} attempts to connect, {refused} requests refused");
    // Two links on each of two replicas.
    assert!((4..=4 * (tenths + 2)).contains(&attempts), "{attempts} attempts in {tenths} tenths of a second");
    assert!(refused > 500, "too little was asked: {refused}");
}

/// The primary is cut off from replicas and Sentinels, but not from clients. Another primary may have been elected, and
/// may have ended any session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_isolated_primary_lets_nobody_in() {
    let mut group = Group::sentinel(Access::default()).await;
    let fleet = Fleet::builder().sessions_in(&group).replicas(2).start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let watch = Watch::over(&fleet, &session);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begin = Instant::now();
    group.servers[1..].iter().for_each(Server::freeze);
    // Sentinels are killed, not frozen. A thawed Sentinel would do nothing for half a minute, because its clock jumped.
    group.sentinels.iter_mut().for_each(Server::kill);
    tokio::time::sleep(ISOLATED + Duration::from_secs(2)).await;
    let end = Instant::now();
    group.servers[1..].iter().for_each(Server::thaw);
    group.sentinels.iter_mut().for_each(Server::launch);
    within(PATIENTLY, "right answers", async || {
        fleet[0].check(&session).await == 200 && fleet[1].check(&session).await == 200
    })
    .await;
    let seen = watch.expect(200).await;
    let accepted = seen.iter().flatten().filter(|answer| answer.status == 200 && answer.begin > begin);
    let accepted: Vec<_> = accepted.filter(|answer| answer.end < end).map(|answer| answer.begin - begin).collect();
    let late = accepted.iter().filter(|&&after| after > ISOLATED).count();
    println!("{} checks accepted after the cut, the last {:?} after it", accepted.len(), accepted.iter().max());
    assert_eq!(late, 0, "accepted more than {ISOLATED:?} after the cut");
    let refused = seen.iter().flatten().filter(|answer| answer.begin > begin + ISOLATED && answer.end < end);
    assert!(refused.count() > 100, "too little was asked");

    // Cut off in a way that the primary notices at once.
    group.settled(3).await;
    let primary = group.primary();
    let watch = Watch::over(&fleet, &session);
    group.cut_off(primary);
    let cut = Instant::now();
    let elected = async || group.named(&group.sentinels[0]).is_some_and(|named| named != primary);
    within(PATIENTLY, "another primary", elected).await;
    let elected = Instant::now();
    let before = elected.checked_sub(Duration::from_millis(200)).expect("later than the start of the clock");
    within(PATIENTLY, "right answers", async || {
        fleet[0].check(&session).await == 200 && fleet[1].check(&session).await == 200
    })
    .await;
    let seen = watch.expect(200).await;
    let accepted = seen.iter().flatten().filter(|answer| answer.status == 200 && answer.begin > cut);
    assert_eq!(accepted.filter(|answer| answer.end < before).count(), 0);
    group.join(primary);
    group.settled(3).await;
    assert_eq!(fleet[0].check(&session).await, 200);
}
