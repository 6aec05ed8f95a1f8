//! Redis Cluster: users are spread over shards, a check takes one round trip, and answers stay right while slots move
//! and primaries fail.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use redis::FromRedisValue;
use serde_json::json;

use crate::fleet::{Access, Fleet, Group, PATIENTLY, PROMPTLY, Session, Watch, right_again, within};
use crate::redis_sentinel::{expect_confirmation, expect_one_round_trip};

/// Registers users until each shard has one. Returns a session of each, by the number of the shard's server.
async fn one_in_each_shard(fleet: &Fleet, group: &Group, name: &str) -> BTreeMap<usize, Session> {
    let mut sessions = BTreeMap::new();
    for n in 0..60 {
        if sessions.len() == 3 {
            return sessions;
        }
        let user = fleet[n % 2].register(&format!("{name}{n}")).await;
        let session = fleet[n % 2].login(&user).await;
        let owner = group.owner(&session.key(), 0).expect("a server has the key");
        sessions.insert(owner, session);
    }
    panic!("60 users in {:?}", sessions.keys());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_spread_over_the_shards() {
    let group = Group::cluster(Access::default()).await;
    let fleet = Fleet::builder().sessions_in(&group).replicas(2).env("LOGIN_FAILURES_PER_ACCOUNT", "3");
    let mut fleet = fleet.env("LOGIN_FAILURES_PER_ADDRESS", "1000").env("TRUSTED_PROXIES", "127.0.0.1").start().await;
    let sessions = one_in_each_shard(&fleet, &group, "ada").await;
    assert_eq!(sessions.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
    for (&shard, session) in &sessions {
        for replica in fleet.replicas() {
            assert_eq!(replica.check(session).await, 200);
        }
        expect_one_round_trip(&fleet, &group, shard, session).await;
        // By its id alone, which doesn't name its user.
        let found = fleet.command(&["session", "inspect", "--json", &session.id], &[]).await.expect_code(0).json();
        assert_eq!(found["user_id"], session.user_id);
        let email = session.body["email"].as_str().expect("an e-mail");
        let listed = fleet.command(&["session", "list", email, "--json"], &[]).await.expect_code(0).json();
        assert_eq!(listed["sessions"].as_array().expect("a list").len(), 1, "{listed}");
    }
    // All keys of a user are in one shard.
    for (shard, server) in group.servers[..3].iter().enumerate() {
        for key in server.keys("*{*") {
            let tag = key.split_once('{').expect("a tag").1.split_once('}').expect("a tag").0.to_owned();
            assert_eq!(group.owner(&format!("{{{tag}}}"), 0), Some(shard), "{key}");
        }
    }
    let living: usize = group.servers[..3].iter().map(|server| server.keys("session:*").len()).sum();
    // A replica counts sessions when it starts, and then every half minute.
    fleet.add_replica().await;
    let living = u64::try_from(living).expect("few");
    let counted = async || fleet[2].count("authfleet_sessions_alive", &[]).await == living;
    within(PATIENTLY, "every shard's sessions are counted", counted).await;

    slots_move_under_load(&fleet, &group, &sessions).await;
    // Shard 2's replica is frozen. Users of other shards don't wait for it.
    let other = Watch::over(&fleet, &sessions[&0]);
    expect_confirmation(&fleet, &group, &[5], &sessions[&2], 2).await;
    assert!(other.expect(200).await.iter().flatten().all(|answer| answer.status == 200), "another shard waited");
    throttles_over_shards(&fleet, &group, &sessions).await;
}

/// The throttle works if an account and an address are in different shards.
async fn throttles_over_shards(fleet: &Fleet, group: &Group, sessions: &BTreeMap<usize, Session>) {
    let mut shards = BTreeSet::new();
    for n in 0..24_usize {
        let guess = fleet[n % 2].try_login(&format!("nobody-{n}"), "somebody's wrong password");

        guess
            .header("x-forwarded-for", &format!("203.0.113.{n}"))
            .send()
            .await
            .expect_problem(401, "invalid_credentials");
        let key = format!("throttle:{{address:203.0.113.{n}}}:failures");
        let owner = group.owner(&key, 0).expect("a server has the key");
        if group.servers[owner].keys(&key).len() == 1 {
            shards.insert(owner);
        }
    }
    assert_eq!(shards, BTreeSet::from([0, 1, 2]), "addresses are counted in each shard");
    for (_, session) in sessions.iter().filter(|(shard, _)| **shard != 2) {
        let email = session.body["email"].as_str().expect("an e-mail");
        for n in 0..3 {
            let guess = fleet[n % 2].try_login(email, "somebody's wrong password").send().await;
            guess.expect_problem(401, "invalid_credentials");
        }
        fleet[0].try_login(email, crate::fleet::PASSWORD).send().await.expect_problem(429, "throttled");
    }
}

/// Moves the slots of three users to the next shard, as `redis-cli --cluster reshard` does, while their sessions are
/// checked.
async fn slots_move_under_load(fleet: &Fleet, group: &Group, sessions: &BTreeMap<usize, Session>) {
    let watches: Vec<_> = sessions.values().map(|session| Watch::over(fleet, session)).collect();
    for (&from, session) in sessions {
        let to = (from + 1) % 3;
        let slot = group.servers[0].run::<u16>(&["CLUSTER", "KEYSLOT", &session.key()]);
        move_slot(group, slot, from, to).await;
        assert_eq!(group.owner(&session.key(), to), Some(to));
        move_slot(group, slot, to, from).await;
    }
    for watch in watches {
        let seen = watch.expect(200).await;
        let all: Vec<_> = seen.iter().flatten().collect();
        let refused = all.iter().filter(|answer| answer.status != 200).count();
        println!("{} checks while slots moved, {refused} refused", all.len());
        assert_eq!(refused, 0, "a slot that moves is no reason for a 503");
    }
}

async fn move_slot(group: &Group, slot: u16, from: usize, to: usize) {
    let (slot, source, target) = (slot.to_string(), &group.servers[from], &group.servers[to]);
    let ids = [source, target].map(|server| server.run::<String>(&["CLUSTER", "MYID"]));
    target.run::<String>(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &ids[0]]);
    source.run::<String>(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &ids[1]]);
    let address = target.address();
    let (host, port) = address.split_once(':').expect("a port");
    // Moves keys one by one and slowly, so that requests find a slot that has been moved in part.
    loop {
        let keys: Vec<String> = source.run(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"]);
        let Some(key) = keys.first() else { break };
        let (name, password) = (crate::fleet::HARNESS, crate::fleet::HARNESS);
        let moved: redis::Value =
            source.run(&["MIGRATE", host, port, key, "0", "1000", "REPLACE", "AUTH2", name, password]);
        let moved = String::from_redis_value(moved).expect("a status");
        assert!(moved == "OK" || moved == "NOKEY", "{moved}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    for server in [target, source] {
        server.run::<String>(&["CLUSTER", "SETSLOT", &slot, "NODE", &ids[1]]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_whose_primary_goes_is_served_again_soon_and_the_others_all_the_time() {
    let mut group = Group::cluster(Access::default()).await;
    let fleet = Fleet::builder().sessions_in(&group).replicas(2).start().await;
    let sessions = one_in_each_shard(&fleet, &group, "ada").await;
    let ended = {
        let login = fleet[0].try_login(sessions[&1].body["email"].as_str().expect("an e-mail"), crate::fleet::PASSWORD);
        Session::opened_by(&login.send().await)
    };
    fleet[1].post("/auth/logout").session(&ended).send().await.expect(200);
    let (alive, dead) = (Watch::over(&fleet, &sessions[&1]), Watch::over(&fleet, &ended));
    let others = [0, 2].map(|shard| Watch::over(&fleet, &sessions[&shard]));
    let begin = Instant::now();
    group.servers[1].kill();
    let replica = &group.servers[4];
    // The shard has no replica until the old primary is back, and refuses writes without one.
    within(PATIENTLY, "another primary", async || replica.info("role") == "master").await;
    let key = sessions[&1].key();
    within(PATIENTLY, "every server knows it", async || {
        [0, 2, 3, 5].iter().all(|&server| group.owner(&key, server) == Some(4))
    })
    .await;
    group.servers[1].start().await;
    let replica = &group.servers[4];
    within(PATIENTLY, "a replica", async || replica.info("min_slaves_good_slaves") == "1").await;
    let election = Instant::now();
    within(PATIENTLY, "right answers", async || {
        fleet[0].check(&sessions[&1]).await == 200 && fleet[1].check(&sessions[&1]).await == 200
    })
    .await;
    let seen = alive.expect(200).await;
    dead.expect(401).await;
    let waited = right_again(&seen, 200, election).duration_since(election);
    println!("the election took {:?}, right answers {waited:?} after it", election - begin);
    assert!(waited < PROMPTLY, "{waited:?}");
    for other in others {
        assert!(
            other.expect(200).await.iter().flatten().all(|answer| answer.status == 200),
            "another shard was refused"
        );
    }
    // A replica that was just filled gets no writes before its next report to the primary, and it reports once a second.
    // Until then it is in sync by all that the primary says, but confirms nothing.
    within(PROMPTLY, "revocations are confirmed again", async || {
        fleet[0].call("DELETE", "/auth/sessions?keep=current").session(&sessions[&1]).send().await.status == 204
    })
    .await;
    let change = json!({ "current_password": crate::fleet::PASSWORD, "new_password": "staple a battery horse" });
    fleet[0].post("/auth/password").session(&sessions[&1]).json(&change).send().await.expect(200);
    assert_eq!(fleet[1].check(&sessions[&1]).await, 401);
}
