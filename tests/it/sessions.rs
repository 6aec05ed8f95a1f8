//! Sessions over a fleet: made, renewed and ended anywhere, and at once everywhere.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use redis::Value;
use serde_json::json;

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

/// Whoever reads Redis, its files, the database or the logs can't sign in, however much is logged.
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
    // Any stretch of a token that says more than whose it is: after the version and user id come 256 random bits.
    secrets.extend(sessions.iter().map(|session| session.token[24..44].to_owned()));
    secrets.extend(sessions.iter().map(|session| session.token[96..].to_owned()));
    let mut places: Vec<(String, Vec<u8>)> =
        fleet.files().into_iter().map(|(path, content)| (path.display().to_string(), content)).collect();
    for key in fleet.redis.keys("*") {
        let value = match fleet.redis.run::<String>(&["TYPE", &key]).as_str() {
            "hash" => fleet.redis.run::<Value>(&["HGETALL", &key]),
            "zset" => fleet.redis.run::<Value>(&["ZRANGE", &key, "0", "-1", "WITHSCORES"]),
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

/// Sessions live by the limits under which they were made. A revocation must find them whatever the limits are by then.
#[tokio::test]
async fn a_revocation_finds_sessions_that_were_made_under_other_limits() {
    const SHORT: [(&str, &str); 2] = [("SESSION_MAX_AGE", "3s"), ("SESSION_IDLE_TTL", "3s")];
    let mut fleet = Fleet::start(2).await;
    let ways = ["password", "revoke all", "account", "disable", "delete"];
    let mut users = Vec::new();
    for (round, _) in ways.iter().enumerate() {
        let user = fleet[0].register(&format!("ada-{round}")).await;
        users.push((fleet[0].login(&user).await, user));
    }
    // A rolling restart has reached one of two replicas.
    fleet[1].restart(&SHORT).await;
    let mut late = Vec::new();
    for (_, user) in &users {
        late.push(fleet[1].login(user).await);
    }
    // Longer than whatever the second replica knows of. The first one keeps all in use.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for (session, _) in &users {
            assert_eq!(fleet[0].check(session).await, 200);
        }
    }
    for ((way, (session, user)), _) in ways.into_iter().zip(&users).zip(&late) {
        let asking = fleet[1].login(user).await;
        let name = user.email.split('@').next().expect("a name");
        let change = json!({ "current_password": PASSWORD, "new_password": "staple a battery horse" });
        match way {
            "password" => {
                fleet[1].post("/auth/password").session(&asking).json(&change).send().await.expect(200);
            }
            "revoke all" => drop(fleet[1].call("DELETE", "/auth/sessions").session(&asking).send().await.expect(204)),
            "account" => {
                let body = json!({ "password": PASSWORD });
                fleet[1].call("DELETE", "/auth/account").session(&asking).json(&body).send().await.expect(204);
            }
            "disable" => drop(fleet.command(&["user", "disable", name], &SHORT).await.expect_code(0)),
            _ => drop(fleet.command(&["user", "delete", name, "--yes"], &SHORT).await.expect_code(0)),
        }
        assert_eq!(fleet[0].check(session).await, 401, "{way}");
    }
}

/// A lowered limit is for sessions that exist, too: nobody lowers it to have them go on.
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

/// Until 0.1 the index was scored by creation and lived by the limit of the replica that touched it last.
#[tokio::test]
async fn an_index_of_the_previous_version_is_taken_over() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let index = format!("user:{{{}}}:sessions", ada.id);
    let old = fleet[0].login(&ada).await;
    let time = |session: &Session, field: &str| -> i64 {
        let time: jiff::Timestamp = session.body[field].as_str().expect("a time").parse().expect("a time");
        time.as_millisecond()
    };
    fleet.redis.run::<i64>(&["ZADD", &index, &(time(&old, "created_at") - 1000).to_string(), &old.id]);
    fleet.redis.run::<i64>(&["ZADD", &index, "1", "AAAAAAAAAAAAAAAAAAAAAA"]);
    fleet.redis.run::<i64>(&["PEXPIRE", &index, "60000"]);
    let new = fleet[0].login(&ada).await;
    let entries: Vec<(String, i64)> = fleet.redis.run(&["ZRANGE", &index, "0", "-1", "WITHSCORES"]);
    let expected = [&old, &new].map(|session| (session.id.clone(), time(session, "expires_at")));
    assert_eq!(entries, expected, "scored by their ends, and what has ended is forgotten");
    assert!(fleet.redis.run::<i64>(&["PTTL", &index]) > 24 * 3600 * 1000, "it outlives them");
}

/// "The oldest goes" is about age, also where sessions have lives of different lengths.
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

/// A browser sends several cookies of one name when a sibling domain or another path planted some.
#[tokio::test]
async fn of_several_cookies_the_living_session_counts() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let ended = [fleet[0].login(&ada).await, fleet[0].login(&ada).await];
    for session in &ended {
        fleet[0].post("/auth/logout").session(session).send().await.expect(200);
    }
    let alive = fleet[0].login(&ada).await;
    let forged: Vec<_> = (0..5).map(|n| format!("session={}", "ABCDE"[n..=n].repeat(116))).collect();
    let jars = [
        format!("{}; {}", ended[0].cookie, alive.cookie),
        format!("{}; {}", alive.cookie, ended[0].cookie),
        format!("{}; {}; {}", ended[0].cookie, ended[1].cookie, alive.cookie),
        format!("{}; {}; {}", forged.join("; "), alive.forged(), alive.cookie),
    ];
    for jar in &jars {
        let profile = fleet[0].get("/profile").cookie(jar).send().await.expect(200).json();
        assert_eq!(profile["session"]["session_id"], alive.id.as_str(), "{jar}");
    }
    // A login ends what was brought along; the new session is another one.
    let next = Session::opened_by(&fleet[0].try_login("ada", PASSWORD).cookie(&jars[0]).send().await);
    assert_eq!((fleet[0].check(&alive).await, fleet[0].check(&next).await), (401, 200));
    // A logout ends all that the browser holds.
    let other = fleet[0].login(&ada).await;
    let jar = format!("{}; {}; {}; {}", forged.join("; "), ended[0].cookie, next.cookie, other.cookie);
    fleet[0].post("/auth/logout").cookie(&jar).send().await.expect(200);
    assert_eq!((fleet[0].check(&next).await, fleet[0].check(&other).await), (401, 401));
    fleet[0].get("/profile").cookie(&jar).send().await.expect_problem(401, "session_invalid");
}

#[tokio::test]
async fn every_request_renews_wherever_it_arrives() {
    let fleet = Fleet::start(3).await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    for replica in fleet.replicas() {
        // As if it had not been used for almost half an hour.
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
        // The replica says how long is left, and Redis counts from when it hears it: a moment later on a busy machine.
        assert!(expires <= end.as_millisecond() + 1000, "{expires} is past {end}");
        // The session's key would live on: the limit doesn't depend on Redis alone.
        fleet.redis.run::<i64>(&["PERSIST", &session.key()]);
        checks += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(checks > 0, "it was alive before");
    for replica in fleet.replicas() {
        replica.get("/profile").session(&session).send().await.expect_problem(401, "session_invalid");
    }
}

/// Where a renewal writes the session back, a request that began before the logout brings it to life again.
/// ASVS 5.0 7.4.1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_session_never_comes_back() {
    let fleet = Arc::new(Fleet::start(3).await);
    let ada = fleet[0].register("ada").await;
    for round in 0..8 {
        let session = fleet[round % 3].login(&ada).await;
        let (ended, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let touches: Vec<_> = (0..12)
            .map(|n| {
                let (fleet, session) = (Arc::clone(&fleet), session.clone());
                let (ended, stop) = (Arc::clone(&ended), Arc::clone(&stop));
                tokio::spawn(async move {
                    let mut alive = 0;
                    while !stop.load(Ordering::SeqCst) {
                        let was_ended = ended.load(Ordering::SeqCst);
                        match fleet[n % 3].check(&session).await {
                            200 if was_ended => panic!("it came back"),
                            200 => alive += 1,
                            status => assert_eq!(status, 401),
                        }
                    }
                    alive
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
        if round % 2 == 0 {
            fleet[(round + 1) % 3].post("/auth/logout").session(&session).send().await.expect(200);
        } else {
            assert_eq!(fleet.redis.run::<i64>(&["DEL", &session.key()]), 1);
        }
        ended.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.store(true, Ordering::SeqCst);
        let alive: u32 = join_all(touches).await.into_iter().map(|touch| touch.expect("no touch came back")).sum();
        assert!(alive > 0, "it was touched before it ended");
        assert!(fleet.redis.keys("session:*").is_empty());
    }
}

/// A login that brings a session makes a new one, so nobody can plant theirs, and ends the old one (ASVS 5.0 7.2.4).
#[tokio::test]
async fn a_login_replaces_the_session_that_it_brings() {
    let fleet = Fleet::start(2).await;
    let (ada, eve) = (fleet[0].register("ada").await, fleet[0].register("eve").await);
    let first = fleet[0].login(&ada).await;
    let other_browser = fleet[0].login(&ada).await;
    let again = async |session: &Session, name: &str| {
        Session::opened_by(&fleet[1].try_login(name, PASSWORD).session(session).send().await)
    };
    let second = again(&first, "ada").await;
    assert!(second.token != first.token && second.id != first.id);
    assert_eq!((fleet[0].check(&first).await, fleet[0].check(&second).await), (401, 200));

    let of_eve = again(&second, "eve").await;
    assert_eq!((fleet[0].check(&second).await, fleet[0].check(&of_eve).await), (401, 200));
    assert_eq!(of_eve.user_id, eve.id);

    // Ended or forged ones are no reason to refuse, and a login that fails ends nothing.
    let fifth = again(&second, "eve").await;
    let forged = fleet[0].try_login("ada", PASSWORD).cookie(&fifth.forged()).send().await;
    forged.expect(200);
    fleet[0].try_login("ada", "a wrong password").session(&fifth).send().await.expect(401);
    for session in [&other_browser, &of_eve, &fifth] {
        assert_eq!(fleet[0].check(session).await, 200);
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
    // Once the old one is taken away, so are the cookies that it signed.
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

/// The client's address, as it's kept with the session: from proxies only if they are trusted.
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
