//! Sessions in a fleet: a session created on one replica is known, renewed and limited on all.
use std::time::Duration;

use redis::Value;

use crate::fleet::{Fleet, PASSWORD, SECRET, Session};

const IDLE_MS: i64 = 30 * 60 * 1000;

#[tokio::test]
async fn any_replica_knows_every_session() {
    let fleet = Fleet::start(3).await;
    let ada = fleet[0].register("ada").await;
    for maker in fleet.replicas() {
        for ender in fleet.replicas() {
            let session = maker.login(&ada).await;
            for replica in fleet.replicas() {
                assert_eq!(replica.check(&session).await, 200);
            }
            ender.post("/auth/logout").session(&session).send().await.expect(200);
            for replica in fleet.replicas() {
                assert_eq!(replica.check(&session).await, 401);
            }
        }
    }
}

/// All requests of a replica share one connection to Redis, whose replies are told apart by their order alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_reach_those_who_asked_while_others_hang_up() {
    const USERS: usize = 8;
    let fleet = Fleet::start(1).await;
    let mut sessions = Vec::new();
    for user in 0..USERS {
        let user = fleet[0].register(&format!("user-{user}")).await;
        sessions.push((user.id.clone(), fleet[0].login(&user).await));
    }
    // The last one is nobody's: its answers differ from the others'.
    fleet[0].post("/auth/logout").session(&sessions[USERS - 1].1).send().await.expect(200);
    let (fleet, sessions) = (&fleet, &sessions);
    let clients = (0..64).map(|_| async move {
        let (mut answered, mut gone) = (0, 0);
        for _ in 0..60 {
            let user = fastrand::usize(..USERS);
            let request = fleet[0].get("/profile").session(&sessions[user].1).send();
            let patience =
                if fastrand::bool() { Duration::from_secs(20) } else { Duration::from_micros(fastrand::u64(..9000)) };
            let Ok(answer) = tokio::time::timeout(patience, request).await else {
                gone += 1;
                continue;
            };
            answered += 1;
            if user == USERS - 1 {
                answer.expect_problem(401, "session_invalid");
            } else {
                assert_eq!(answer.expect(200).text_at("user_id"), sessions[user].0);
            }
        }
        (answered, gone)
    });
    let counts = futures::future::join_all(clients).await;
    let (answered, gone) = counts.iter().fold((0, 0), |(all, none), (answered, gone)| (all + answered, none + gone));
    assert!(answered > 500 && gone > 50, "{answered} answered, {gone} gone: too few to mean anything");
}

#[tokio::test]
async fn a_session_can_be_read_in_redis() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let session =
        Session::opened_by(&fleet[0].try_login("ada", PASSWORD).header("user-agent", "a browser/1").send().await);
    assert_eq!(fleet.redis.keys("session:*"), [session.key()]);
    assert_eq!(fleet.redis.run::<String>(&["TYPE", &session.key()]), "hash");
    let mut fields: Vec<(String, String)> = fleet.redis.run(&["HGETALL", &session.key()]);
    fields.sort();
    let text = |field: &str| session.body[field].as_str().expect("a text").to_owned();
    let expected = [
        ("created_at", text("created_at")),
        ("created_by", "replica-1".to_owned()),
        ("email", ada.email.clone()),
        ("expires_at", text("expires_at")),
        ("ip", "127.0.0.1".to_owned()),
        ("user_agent", "a browser/1".to_owned()),
        ("user_id", ada.id.clone()),
        ("username", "ada".to_owned()),
    ];
    assert_eq!(fields, expected.map(|(field, value)| (field.to_owned(), value)));
    let left: i64 = fleet.redis.run(&["PTTL", &session.key()]);
    assert!((IDLE_MS - 20_000..=IDLE_MS).contains(&left), "the idle limit: {left} ms");

    assert_eq!(fleet.redis.run::<i64>(&["DEL", &session.key()]), 1);
    fleet[0].get("/profile").session(&session).send().await.expect_problem(401, "session_invalid");
    assert!(!fleet.redis.run::<bool>(&["EXISTS", &session.key()]), "it doesn't come back");
    fleet[0].post("/auth/logout").session(&session).send().await.expect_problem(401, "session_invalid");
}

/// Somebody who reads Redis, its files, the database or the logs can't sign in, whatever the log level is.
/// ASVS 5.0 3.3.4, 14.2.1, 16.2.5.
#[tokio::test]
async fn tokens_and_passwords_are_kept_nowhere() {
    let fleet = Fleet::builder().replicas(2).env("RUST_LOG", "trace").start().await;
    let ada = fleet[0].register("ada").await;
    let wrong = "a wrong password, but somebody's";
    let mut sessions = vec![fleet[0].login(&ada).await, fleet[1].login(&ada).await];
    fleet[1].try_login("ada", wrong).session(&sessions[0]).send().await.expect(401);
    for session in &sessions {
        assert_eq!(fleet[0].check(session).await, 200);
        fleet[1].get("/profile").cookie(&session.forged()).send().await.expect(401);
        fleet[1].get("/nowhere?q=1").session(session).send().await.expect(404);
    }
    fleet[0].post("/auth/logout").session(&sessions[0]).send().await.expect(200);
    let replacing = Session::opened_by(&fleet[0].try_login("ada", PASSWORD).session(&sessions[1]).send().await);
    sessions.push(replacing);

    let mut secrets = vec![PASSWORD.to_owned(), wrong.to_owned(), SECRET.to_owned()];
    // A part of each token that is secret: after the version and the user's id come 256 random bits.
    secrets.extend(sessions.iter().map(|session| session.token[24..44].to_owned()));
    secrets.extend(sessions.iter().map(|session| session.token[96..].to_owned()));
    let mut places: Vec<(String, Vec<u8>)> =
        fleet.files().into_iter().map(|(path, content)| (path.display().to_string(), content)).collect();
    for key in fleet.redis.keys("*") {
        let value = match fleet.redis.run::<String>(&["TYPE", &key]).as_str() {
            "hash" => fleet.redis.run::<Value>(&["HGETALL", &key]),
            "zset" => fleet.redis.run::<Value>(&["ZRANGE", &key, "0", "-1", "WITHSCORES"]),
            "list" => fleet.redis.run::<Value>(&["LRANGE", &key, "0", "-1"]),
            "string" => fleet.redis.run::<Value>(&["GET", &key]),
            kind => panic!("{key} is a {kind}"),
        };
        places.push((key.clone(), format!("{key} {value:?}").into_bytes()));
    }
    for replica in fleet.replicas() {
        places.push(("metrics".to_owned(), replica.ops("/metrics").await.body));
        places.push(("readiness".to_owned(), replica.ops("/readyz").await.body));
    }
    assert!(places.iter().any(|(place, content)| place.contains("appendonly") && !content.is_empty()));
    assert!(places.iter().any(|(place, content)| place.ends_with("replica-1.log") && !content.is_empty()));
    for (place, content) in &places {
        for secret in &secrets {
            let found = content.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} is in {place}");
        }
    }
}

/// A lowered limit also holds for existing sessions.
#[tokio::test]
async fn a_lowered_limit_ends_older_sessions() {
    let mut fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let old = fleet[0].login(&ada).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let young = fleet[0].login(&ada).await;
    fleet[0].restart(&[("SESSION_MAX_AGE", "3s"), ("SESSION_IDLE_TTL", "3s")]).await;
    let profile = fleet[0].get("/profile").session(&young).send().await.expect(200).json();
    let created: jiff::Timestamp = young.body["created_at"].as_str().expect("a time").parse().expect("a time");
    let ends: jiff::Timestamp = profile["session"]["expires_at"].as_str().expect("a time").parse().expect("a time");
    assert_eq!(ends.as_millisecond(), created.as_millisecond() + 3000, "{profile}");
    assert_eq!(profile["session"]["idle_expires_at"], profile["session"]["expires_at"], "{profile}");
    assert!(fleet.redis.run::<i64>(&["PTTL", &young.key()]) <= 3000, "renewed for no longer than that");
    tokio::time::sleep(Duration::from_millis(1700)).await;
    assert_eq!(fleet[0].check(&old).await, 401, "3.2 s old");
    assert_eq!(fleet[0].check(&young).await, 200, "1.7 s old");
    let listed = fleet[0].get("/auth/sessions").session(&young).send().await.expect(200).json();
    let ids: Vec<_> = listed["sessions"].as_array().expect("a list").iter().map(|entry| &entry["session_id"]).collect();
    assert_eq!(ids, [young.id.as_str()], "{listed}");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(fleet[0].check(&young).await, 401);
}

/// The oldest session ends first, even if its limits are longer than those of others.
#[tokio::test]
async fn the_oldest_session_goes_whatever_its_limits_were() {
    let mut fleet = Fleet::builder().env("SESSIONS_PER_USER", "2").start().await;
    let ada = fleet[0].register("ada").await;
    let oldest = fleet[0].login(&ada).await;
    fleet[0].restart(&[("SESSION_MAX_AGE", "1h")]).await;
    let second = fleet[0].login(&ada).await;
    let third = fleet[0].login(&ada).await;
    let checks = [fleet[0].check(&oldest).await, fleet[0].check(&second).await, fleet[0].check(&third).await];
    assert_eq!(checks, [401, 200, 200]);
}

#[tokio::test]
async fn every_request_renews_wherever_it_arrives() {
    let fleet = Fleet::start(3).await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    for replica in fleet.replicas() {
        // As if the session had not been used for almost half an hour.
        fleet.redis.run::<i64>(&["PEXPIRE", &session.key(), "60000"]);
        let profile = replica.get("/profile").session(&session).send().await.expect(200).json();
        let left: i64 = fleet.redis.run(&["PTTL", &session.key()]);
        assert!((IDLE_MS - 20_000..=IDLE_MS).contains(&left), "{left} ms");
        let before: jiff::Timestamp =
            session.body["idle_expires_at"].as_str().expect("a time").parse().expect("a time");
        let now: jiff::Timestamp =
            profile["session"]["idle_expires_at"].as_str().expect("a time").parse().expect("a time");
        assert!(now >= before, "{before} to {now}");
        assert_eq!(profile["session"]["expires_at"], session.body["expires_at"], "the absolute limit stays");
    }
}

/// ASVS 5.0 7.3.1.
#[tokio::test]
async fn an_idle_session_ends() {
    let fleet = Fleet::builder().replicas(2).env("SESSION_IDLE_TTL", "1s").start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    fleet[1].get("/profile").session(&session).send().await.expect_problem(401, "session_invalid");
    assert!(fleet.redis.keys("session:*").is_empty());
}

/// ASVS 5.0 7.3.2.
#[tokio::test]
async fn use_does_not_prolong_a_session_for_ever() {
    let fleet = Fleet::builder().replicas(2).env("SESSION_MAX_AGE", "3s").env("SESSION_IDLE_TTL", "3s").start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let time = |text: &serde_json::Value| text.as_str().expect("a time").parse::<jiff::Timestamp>().expect("a time");
    let end = time(&session.body["expires_at"]);
    assert!(time(&session.body["idle_expires_at"]) <= end);
    let mut checks = 0;
    loop {
        let answer = fleet[checks % 2].get("/profile").session(&session).send().await;
        if answer.status == 401 {
            break;
        }
        assert!(time(&answer.json()["session"]["idle_expires_at"]) <= end);
        let expires: i64 = fleet.redis.run(&["PEXPIRETIME", &session.key()]);
        // The replica sends the remaining time, and Redis counts from when it receives it, which is later on a busy
        // machine.
        assert!(expires <= end.as_millisecond() + 1000, "{expires} is past {end}");
        // Redis keeps the session's key for ever now, but the limit doesn't depend on Redis alone.
        fleet.redis.run::<i64>(&["PERSIST", &session.key()]);
        checks += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(checks > 0, "it was alive before");
    for replica in fleet.replicas() {
        replica.get("/profile").session(&session).send().await.expect_problem(401, "session_invalid");
    }
}

#[tokio::test]
async fn secrets_rotate_without_a_logout() {
    const NEW: &str = "the-secret-that-comes-after-it-0123";
    let mut fleet = Fleet::start(2).await;
    let ada = fleet[0].register("ada").await;
    let before = fleet[0].login(&ada).await;
    let both = format!("{NEW},{SECRET}");
    for replica in [0, 1] {
        fleet[replica].restart(&[("SESSION_SECRET", &both)]).await;
    }
    let after = fleet[0].login(&ada).await;
    for replica in fleet.replicas() {
        assert_eq!((replica.check(&before).await, replica.check(&after).await), (200, 200));
    }
    // Once the old secret is removed, the cookies that it signed are refused.
    fleet[0].restart(&[("SESSION_SECRET", NEW)]).await;
    assert_eq!((fleet[0].check(&before).await, fleet[0].check(&after).await), (401, 200));
    fleet[1].restart(&[("SESSION_SECRET", SECRET)]).await;
    assert_eq!((fleet[1].check(&before).await, fleet[1].check(&after).await), (200, 401));
}

#[tokio::test]
async fn a_session_edited_by_hand_is_none() {
    let fleet = Fleet::start(1).await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    fleet.redis.run::<i64>(&["HDEL", &session.key(), "email"]);
    fleet[0].get("/profile").session(&session).send().await.expect_problem(401, "session_invalid");
}

/// The session records the client's address. A proxy's word for it counts only if the proxy is trusted.
#[tokio::test]
async fn forwarded_addresses_are_believed_from_proxies_alone() {
    for (trusted, expected) in [("", "127.0.0.1"), ("127.0.0.0/8,198.51.100.1", "203.0.113.7")] {
        let fleet = Fleet::builder().env("TRUSTED_PROXIES", trusted).start().await;
        fleet[0].register("ada").await;
        for forwarded in ["203.0.113.7", "192.0.2.66, 203.0.113.7", "nonsense, 203.0.113.7, 198.51.100.1"] {
            let login = fleet[0].try_login("ada", PASSWORD).header("x-forwarded-for", forwarded).send().await;
            let session = Session::opened_by(&login);
            let ip: String = fleet.redis.run(&["HGET", &session.key(), "ip"]);
            assert_eq!(ip, expected, "{forwarded} through {trusted:?}");
        }
    }
}
