//! Redis is absent, killed, frozen or full: the right answers come in time, and nobody is logged out.
use futures::future::join_all;
use serde_json::json;

use crate::fleet::{Call, Fleet, PASSWORD, PATIENTLY, PROMPTLY, Session, within};

/// Fails the test unless every replica gives the answers that are right while Redis doesn't answer.
async fn expect_unavailable(fleet: &Fleet, session: &Session) {
    for replica in fleet.replicas() {
        let calls = [
            replica.get("/profile").session(session),
            replica.post("/auth/logout").session(session),
            replica.try_login("ada", PASSWORD),
            replica.try_login("ada", PASSWORD).session(session),
        ];
        // Many at once. None may wait for the time-outs of others.
        let many = (0..20).map(|_| replica.get("/profile").session(session));
        for answer in join_all(calls.into_iter().chain(many).map(Call::send)).await {
            answer.expect_unavailable();
        }
        // Without a genuine cookie the answer is 401, which doesn't need Redis.
        replica.get("/profile").send().await.expect_problem(401, "session_invalid");
        replica.get("/profile").cookie(&session.forged()).send().await.expect_problem(401, "session_invalid");
        replica.ops("/livez").await.expect(200);
        let readiness = replica.ops("/readyz").await.expect(503);
        assert!(readiness.took < PROMPTLY, "{:?}", readiness.took);
        let readiness = readiness.json();
        assert_eq!((&readiness["status"], &readiness["draining"]), (&"not ready".into(), &false.into()));
        assert_eq!(
            (&readiness["sessions"]["store"], &readiness["sessions"]["status"]),
            (&"redis".into(), &"failing".into())
        );
        assert!(readiness["sessions"]["error"].as_str().is_some_and(|text| !text.is_empty()), "{readiness}");
        assert_eq!(readiness["users"]["status"], "ok");
    }
}

/// Fails the test unless every replica recovers within two seconds of Redis's return.
async fn expect_recovery(fleet: &Fleet, session: &Session) {
    let begin = std::time::Instant::now();
    for replica in fleet.replicas() {
        let left = PROMPTLY.saturating_sub(begin.elapsed());
        within(left, "the session is valid again", async || replica.check(session).await == 200).await;
        within(left, "ready again", async || replica.ops("/readyz").await.status == 200).await;
        replica.try_login("ada", PASSWORD).send().await.expect(200);
    }
}

/// ASVS 5.0 16.5.2, 16.5.3.
#[tokio::test]
async fn redis_killed() {
    let mut fleet = Fleet::builder().replicas(2).redis_over_tcp().start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    for _ in 0..3 {
        fleet.redis.kill();
        expect_unavailable(&fleet, &session).await;
        fleet.redis.start().await;
        expect_recovery(&fleet, &session).await;
    }
}

/// A frozen Redis keeps its connections and takes new ones, but never answers.
#[tokio::test]
async fn redis_frozen() {
    let fleet = Fleet::builder().replicas(2).redis_over_tcp().start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    for _ in 0..2 {
        fleet.redis.freeze();
        expect_unavailable(&fleet, &session).await;
        fleet.redis.thaw();
        expect_recovery(&fleet, &session).await;
    }
}

#[tokio::test]
async fn redis_absent_at_start() {
    let mut fleet = Fleet::builder().replicas(2).redis_over_tcp().redis_down().start().await;
    for replica in fleet.replicas() {
        replica.get("/profile").send().await.expect_problem(401, "session_invalid");
        replica.ops("/livez").await.expect(200);
        assert_eq!(replica.ops("/readyz").await.expect(503).json()["sessions"]["status"], "failing");
        let login = replica.try_login("ada", PASSWORD).send().await.expect_problem(503, "store_unavailable");
        assert!(login.took < PROMPTLY, "{:?}", login.took);
    }
    fleet.redis.start().await;
    for replica in fleet.replicas() {
        within(PROMPTLY, "ready", async || replica.ops("/readyz").await.status == 200).await;
    }
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    assert_eq!(fleet[1].check(&session).await, 200);
}

/// A demoted primary, whose address already leads to its successor, keeps its connections. They answer, but refuse
/// every write.
#[tokio::test]
async fn redis_demoted() {
    for serves_stale_data in ["yes", "no"] {
        let mut fleet = Fleet::builder().replicas(2).start().await;
        let ada = fleet[0].register("ada").await;
        let session = fleet[0].login(&ada).await;
        fleet.redis.run::<String>(&["CONFIG", "SET", "replica-serve-stale-data", serves_stale_data]);
        fleet.redis.demote();
        expect_unavailable(&fleet, &session).await;
        let connects = async || fleet[0].count("authfleet_redis_connects_total", &[]).await;
        let (before, begin) = (connects().await, std::time::Instant::now());
        for _ in 0..10 {
            expect_unavailable(&fleet, &session).await;
        }
        let (made, seconds) = (connects().await - before, begin.elapsed().as_secs());
        assert!(made <= seconds + 2, "{made} connections in {seconds} s: each refusal made one");

        let _demoted = fleet.redis.hand_over().await;
        expect_recovery(&fleet, &session).await;
    }
}

/// A primary that is cut off from its replicas may already have a successor, with revocations that it doesn't know.
#[tokio::test]
async fn redis_cut_off_from_its_replicas() {
    let fleet = Fleet::builder().replicas(2).start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    fleet.redis.run::<String>(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    expect_unavailable(&fleet, &session).await;
    fleet.redis.run::<String>(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    expect_recovery(&fleet, &session).await;
}

/// Ending sessions must work if Redis is full, because it frees memory.
#[tokio::test]
async fn redis_full_ends_sessions_in_every_way() {
    let fleet = Fleet::start(1).await;
    let full = |is_full: bool| {
        let limit = if is_full { "1" } else { "0" };
        fleet.redis.run::<String>(&["CONFIG", "SET", "maxmemory", limit]);
    };
    for (round, way) in ["revoke", "revoke all", "password", "disable", "delete"].into_iter().enumerate() {
        let name = format!("ada-{round}");
        let ada = fleet[0].register(&name).await;
        let (session, other) = (fleet[0].login(&ada).await, fleet[0].login(&ada).await);
        full(true);
        match way {
            "revoke" => {
                for id in [&other.id, &session.id] {
                    let path = format!("/auth/sessions/{id}");
                    fleet[0].call("DELETE", &path).session(&session).send().await.expect(204);
                }
            }
            "revoke all" => drop(fleet[0].call("DELETE", "/auth/sessions").session(&session).send().await.expect(204)),
            "password" => {
                let change = json!({ "current_password": PASSWORD, "new_password": "staple a battery horse" });
                let call = fleet[0].post("/auth/password").session(&session).json(&change);
                // The password has changed, but there may be no room for the new session.
                let answer = call.send().await;
                assert!(matches!(answer.status, 200 | 503), "{}", answer.text());
            }
            "delete" => drop(fleet.command(&["user", "delete", &name, "--yes"], &[]).await.expect_code(0)),
            _ => drop(fleet.command(&["user", "disable", &name], &[]).await.expect_code(0)),
        }
        for ended in [&session, &other] {
            assert_eq!(fleet[0].check(ended).await, 401, "{way}");
        }
        full(false);
        if way == "password" {
            fleet[0].try_login(&name, "staple a battery horse").send().await.expect(200);
        }
    }
}

/// With `noeviction`, a full Redis may refuse logins, but logs nobody out, and users can sign out.
#[tokio::test]
async fn redis_full() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    fleet.redis.run::<String>(&["CONFIG", "SET", "maxmemory", "1"]);
    let login = fleet[0].try_login("ada", PASSWORD).send().await;
    if login.status != 200 {
        assert_eq!(login.expect_problem(503, "store_unavailable").header("set-cookie"), None);
    }
    assert_eq!(fleet[0].check(&session).await, 200);
    fleet[0].post("/auth/logout").session(&session).send().await.expect(200);
    assert_eq!(fleet[0].check(&session).await, 401);
    fleet.redis.run::<String>(&["CONFIG", "SET", "maxmemory", "0"]);
    fleet[0].login(&ada).await;
}

/// As after a failover, scripts are gone and connections are closed.
#[tokio::test]
async fn redis_that_forgot_its_scripts_and_clients() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    fleet.redis.run::<String>(&["SCRIPT", "FLUSH"]);
    let session = fleet[0].login(&ada).await;
    fleet.redis.run::<i64>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    within(PATIENTLY, "the session is valid", async || fleet[0].check(&session).await == 200).await;
}
