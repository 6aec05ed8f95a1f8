//! Revocation: users end one session or all, change the password, or delete the account. An ended session has ended on
//! every replica, at once and for good.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use serde_json::json;

use crate::fleet::{Fleet, PASSWORD, Session};
use crate::session_list::listed;

const NEW_PASSWORD: &str = "staple a battery horse";

async fn expect_alive(fleet: &Fleet, sessions: &[(&Session, bool)]) {
    for replica in fleet.replicas() {
        for (session, alive) in sessions {
            assert_eq!(replica.check(session).await, if *alive { 200 } else { 401 }, "{}", session.id);
        }
    }
}

async fn change_password(
    fleet: &Fleet,
    replica: usize,
    session: &Session,
    current: &str,
    new: &str,
) -> crate::fleet::Answer {
    let body = json!({ "current_password": current, "new_password": new });
    fleet[replica].post("/auth/password").session(session).json(&body).send().await
}

async fn delete_account(fleet: &Fleet, replica: usize, session: &Session, password: &str) -> crate::fleet::Answer {
    fleet[replica].call("DELETE", "/auth/account").session(session).json(&json!({ "password": password })).send().await
}

/// `SESSIONS_PER_USER` holds even if many sign in at once (ASVS 5.0 7.1.2).
#[tokio::test]
async fn asvs_7_1_2_one_session_too_many_ends_the_oldest() {
    let fleet = Fleet::builder().replicas(3).env("SESSIONS_PER_USER", "3").start().await;
    let (ada, eve) = (fleet[0].register("ada").await, fleet[0].register("eve").await);
    let of_eve = fleet[0].login(&eve).await;
    let mut sessions = Vec::new();
    for n in 0..5 {
        sessions.push(fleet[n % 3].login(&ada).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let alive: Vec<_> = sessions.iter().enumerate().map(|(n, session)| (session, n >= 2)).collect();
    expect_alive(&fleet, &alive).await;

    // An expired session makes room, so that no living one has to end.
    fleet.redis.run::<i64>(&["DEL", &sessions[3].key()]);
    let sixth = fleet[0].login(&ada).await;
    expect_alive(&fleet, &[(&sessions[2], true), (&sessions[4], true), (&sixth, true)]).await;

    let logins = join_all((0..12).map(|n| fleet[n % 3].login(&ada))).await;
    let mut count = 0;
    for session in &logins {
        count += u32::from(fleet[0].check(session).await == 200);
    }
    assert_eq!(count, 3);
    assert_eq!(fleet.redis.sessions_of(&ada.id).len(), 3);
    let survivor = fleet[1].login(&ada).await;
    assert_eq!(listed(&fleet, 2, &survivor).await.len(), 3);
    expect_alive(&fleet, &[(&of_eve, true)]).await;
}

#[tokio::test]
async fn asvs_7_5_2_one_session_is_revoked_everywhere_at_once() {
    let fleet = Fleet::start(3).await;
    let (ada, eve) = (fleet[0].register("ada").await, fleet[0].register("eve").await);
    let of_eve = fleet[0].login(&eve).await;
    let [first, second, third] = [fleet[0].login(&ada).await, fleet[1].login(&ada).await, fleet[2].login(&ada).await];
    let revoke = |replica: usize, by: &Session, id: &str| {
        fleet[replica].call("DELETE", &format!("/auth/sessions/{id}")).session(by).send()
    };
    let done = revoke(1, &first, &second.id).await.expect(204);
    assert!(done.body.is_empty() && done.header("set-cookie").is_none());
    assert_eq!(done.header("cache-control"), Some("no-store"));
    expect_alive(&fleet, &[(&first, true), (&second, false), (&third, true), (&of_eve, true)]).await;

    // The answer is the same for an ended session, somebody else's, one that never existed, and an invalid id.
    let never = "A".repeat(22);
    for id in [&*second.id, &*of_eve.id, &*never, "nonsense", "%00", "%ff", "..", &first.token, &"x".repeat(4000)] {
        let answer = revoke(2, &first, id).await;
        // Except `..`, which clients resolve into another path.
        if id != ".." {
            answer.expect_problem(404, "session_not_found");
        }
    }
    expect_alive(&fleet, &[(&first, true), (&third, true), (&of_eve, true)]).await;
    revoke(0, &second, &first.id).await.expect_problem(401, "session_invalid");
    // The session that makes the request can be ended in the same way.
    revoke(2, &first, &first.id).await.expect(204);
    expect_alive(&fleet, &[(&first, false), (&third, true), (&of_eve, true)]).await;
}

#[tokio::test]
async fn asvs_7_5_2_all_sessions_are_revoked_everywhere_at_once() {
    let fleet = Fleet::start(3).await;
    let (ada, eve) = (fleet[0].register("ada").await, fleet[0].register("eve").await);
    let of_eve = fleet[0].login(&eve).await;
    let [first, second, third] = [fleet[0].login(&ada).await, fleet[1].login(&ada).await, fleet[2].login(&ada).await];
    let delete = |path: &str, by: &Session| fleet[1].call("DELETE", path).session(by).send();
    for wrong in ["?keep=all", "?keep=", "?keep=Current", "?keep=current&keep=current", "?keep=%ff"] {
        let answer = delete(&format!("/auth/sessions{wrong}"), &first).await.expect_problem(422, "validation_failed");
        assert_eq!(answer.invalid_fields(), ["keep"], "{wrong}");
    }
    expect_alive(&fleet, &[(&first, true), (&second, true), (&third, true)]).await;

    let kept = delete("/auth/sessions?keep=current", &first).await.expect(204);
    assert!(kept.body.is_empty() && kept.header("set-cookie").is_none(), "the cookie still names a session");
    expect_alive(&fleet, &[(&first, true), (&second, false), (&third, false), (&of_eve, true)]).await;

    let fourth = fleet[2].login(&ada).await;
    let all = delete("/auth/sessions?unknown=ignored", &fourth).await.expect(204);
    assert!(
        all.header("set-cookie").is_some_and(|cookie| cookie.starts_with("session=;") && cookie.contains("Max-Age=0"))
    );
    expect_alive(&fleet, &[(&first, false), (&fourth, false), (&of_eve, true)]).await;
    delete("/auth/sessions", &fourth).await.expect_problem(401, "session_invalid");
    let next = fleet[0].login(&ada).await;
    assert_eq!(fleet[1].check(&next).await, 200, "a revocation keeps nobody from signing in");
}

/// ASVS 5.0 6.2.2, 6.2.3, 7.2.4 and 7.4.3.
#[tokio::test]
async fn asvs_6_2_3_a_changed_password_ends_every_other_session() {
    let fleet = Fleet::start(3).await;
    let (ada, eve) = (fleet[0].register("ada").await, fleet[0].register("eve").await);
    let of_eve = fleet[0].login(&eve).await;
    let [first, second] = [fleet[0].login(&ada).await, fleet[1].login(&ada).await];

    change_password(&fleet, 0, &first, "a wrong password", NEW_PASSWORD)
        .await
        .expect_problem(403, "invalid_credentials");
    let missing = fleet[0].post("/auth/password").session(&first).json(&json!({})).send().await;
    assert_eq!(missing.expect_problem(422, "validation_failed").invalid_fields(), ["current_password", "new_password"]);
    let missing = fleet[0].post("/auth/password").session(&first).json(&json!({ "current_password": PASSWORD }));
    let missing = missing.send().await.expect_problem(422, "validation_failed");
    assert_eq!(missing.invalid_fields(), ["new_password"]);
    let weak = change_password(&fleet, 0, &first, PASSWORD, "short").await.expect_problem(422, "validation_failed");
    assert_eq!(weak.invalid_fields(), ["new_password"]);
    let body = json!({ "current_password": PASSWORD, "new_password": NEW_PASSWORD });
    fleet[0].post("/auth/password").json(&body).send().await.expect_problem(401, "session_invalid");
    expect_alive(&fleet, &[(&first, true), (&second, true)]).await;

    let changed = change_password(&fleet, 2, &first, PASSWORD, NEW_PASSWORD).await.expect(200);
    let third = Session::opened_by(&changed);
    let login = fleet[0].try_login("eve", PASSWORD).send().await.expect(200);
    let fields = |answer: &crate::fleet::Answer| {
        let mut keys: Vec<_> = answer.json().as_object().expect("an object").keys().cloned().collect();
        keys.sort();
        keys
    };
    assert_eq!(fields(&changed), fields(&login), "as a login answers");
    let attributes = |answer: &crate::fleet::Answer| {
        answer.header("set-cookie").expect("a cookie").split_once(';').expect("attributes").1.to_owned()
    };
    assert_eq!(attributes(&changed), attributes(&login));
    assert!(third.token != first.token && third.id != first.id);
    expect_alive(&fleet, &[(&first, false), (&second, false), (&third, true), (&of_eve, true)]).await;
    assert_eq!(listed(&fleet, 0, &third).await.len(), 1);
    for replica in fleet.replicas() {
        replica.try_login("ada", PASSWORD).send().await.expect_problem(401, "invalid_credentials");
        replica.try_login("ada", NEW_PASSWORD).send().await.expect(200);
    }
    change_password(&fleet, 0, &third, PASSWORD, "another staple horse")
        .await
        .expect_problem(403, "invalid_credentials");
}

/// Of two changes at once, one wins, and the other learns that its password is no longer the current one.
#[tokio::test]
async fn of_two_changes_at_once_one_wins() {
    let fleet = Fleet::start(3).await;
    for round in 0..5 {
        let ada = fleet[0].register(&format!("ada-{round}")).await;
        let sessions = join_all((0..3).map(|n| fleet[n].login(&ada))).await;
        let passwords = ["staple the first horse", "staple the second horse", "staple the third horse"];
        let changes = (0..3).map(|n| change_password(&fleet, n, &sessions[n], PASSWORD, passwords[n]));
        let answers = join_all(changes).await;
        let winners: Vec<_> = (0..3).filter(|n| answers[*n].status == 200).collect();
        let &[winner] = &*winners else { panic!("{answers:?}") };
        for answer in answers.iter().filter(|answer| answer.status != 200) {
            // The other change came first, so the password is a different one, and the session may have ended.
            assert!(answer.status == 403 || answer.status == 401, "{answer:?}");
        }
        let opened = Session::opened_by(&answers[winner]);
        assert_eq!(fleet[0].check(&opened).await, 200);
        assert_eq!(fleet.redis.sessions_of(&ada.id), [opened.key()]);
        for (n, password) in passwords.iter().enumerate() {
            let expected = if n == winner { 200 } else { 401 };
            fleet[n].try_login(&ada.email, password).send().await.expect(expected);
        }
    }
}

/// ASVS 5.0 7.4.2.
#[tokio::test]
async fn asvs_7_4_2_a_deleted_account_leaves_no_session() {
    let fleet = Fleet::start(3).await;
    let (ada, eve) = (fleet[0].register("ada").await, fleet[0].register("eve").await);
    let [first, second, of_eve] = [fleet[0].login(&ada).await, fleet[1].login(&ada).await, fleet[2].login(&eve).await];
    delete_account(&fleet, 0, &first, "a wrong password").await.expect_problem(403, "invalid_credentials");
    let missing = fleet[0].call("DELETE", "/auth/account").session(&first).json(&json!({})).send().await;
    assert_eq!(missing.expect_problem(422, "validation_failed").invalid_fields(), ["password"]);
    fleet[0].call("DELETE", "/auth/account").session(&first).send().await.expect_problem(415, "unsupported_media_type");
    let unknown = fleet[0].call("DELETE", "/auth/account").json(&json!({ "password": PASSWORD })).send().await;
    unknown.expect_problem(401, "session_invalid");
    expect_alive(&fleet, &[(&first, true), (&second, true)]).await;

    let deleted = delete_account(&fleet, 1, &first, PASSWORD).await.expect(204);
    assert!(deleted.header("set-cookie").is_some_and(|cookie| cookie.starts_with("session=;")));
    expect_alive(&fleet, &[(&first, false), (&second, false), (&of_eve, true)]).await;
    fleet[2].try_login("ada", PASSWORD).send().await.expect_problem(401, "invalid_credentials");
    assert_eq!(fleet.query("SELECT username FROM users").await, ["eve"]);
    // What stays in Redis keeps late logins out, says nothing about the person, and expires.
    for key in fleet.redis.keys(&format!("*{}*", ada.id)) {
        assert!(key.ends_with(":fence") || key.starts_with("throttle:"), "{key}");
        assert!(fleet.redis.run::<i64>(&["TTL", &key]) > 0, "{key}");
    }
    // A new account with the same name is a different account.
    let next = fleet[0].register("ada").await;
    assert_ne!(next.id, ada.id);
    expect_alive(&fleet, &[(&first, false)]).await;
}

/// While Redis is down, nothing is changed, and no answer says otherwise (ASVS 5.0 16.5.2, 16.5.3).
#[tokio::test]
async fn asvs_16_5_3_without_redis_nothing_changes() {
    let mut fleet = Fleet::builder().replicas(2).redis_over_tcp().start().await;
    let ada = fleet[0].register("ada").await;
    let (session, other) = (fleet[0].login(&ada).await, fleet[1].login(&ada).await);
    fleet.redis.kill();
    let change = json!({ "current_password": PASSWORD, "new_password": NEW_PASSWORD });
    let calls = [
        fleet[0].get("/auth/sessions"),
        fleet[0].call("DELETE", "/auth/sessions"),
        fleet[0].call("DELETE", "/auth/sessions?keep=current"),
        fleet[0].call("DELETE", &format!("/auth/sessions/{}", other.id)),
        fleet[0].post("/auth/password").json(&change),
        fleet[0].call("DELETE", "/auth/account").json(&json!({ "password": PASSWORD })),
    ];
    for call in calls {
        let answer = call.session(&session).send().await.expect_problem(503, "store_unavailable");
        assert_eq!(answer.header("set-cookie"), None, "the cookie is left alone");
    }
    fleet.redis.start().await;
    let back = async || fleet[0].check(&session).await == 200 && fleet[1].check(&other).await == 200;
    crate::fleet::within(crate::fleet::PATIENTLY, "the sessions are back", back).await;
    fleet[0].try_login("ada", NEW_PASSWORD).send().await.expect(401);
    fleet[0].try_login("ada", PASSWORD).send().await.expect(200);
}

/// While SQLite is down, the old password stays valid, and it can be changed once SQLite is back.
#[tokio::test]
async fn asvs_16_5_3_without_sqlite_the_old_password_holds() {
    let fleet = Fleet::start(2).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let mut db = fleet.sql().await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut db).await.expect("the lock");
    change_password(&fleet, 0, &session, PASSWORD, NEW_PASSWORD).await.expect_problem(503, "store_unavailable");
    sqlx::query("ROLLBACK").execute(&mut db).await.expect("the lock is free");
    fleet[1].try_login("ada", NEW_PASSWORD).send().await.expect_problem(401, "invalid_credentials");
    let session = fleet[1].login(&ada).await;
    let changed = Session::opened_by(&change_password(&fleet, 0, &session, PASSWORD, NEW_PASSWORD).await);
    expect_alive(&fleet, &[(&session, false), (&changed, true)]).await;
}

/// Sessions keep the limits with which they were created. A revocation must find them, whatever the limits are now.
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
    // A rolling restart has reached the second of two replicas.
    fleet[1].restart(&SHORT).await;
    let mut late = Vec::new();
    for (_, user) in &users {
        late.push(fleet[1].login(user).await);
    }
    // For longer than any limit that the second replica knows, the first one keeps all sessions in use.
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

/// Until 0.1, the index was scored by time of creation, and lived for as long as the limit of the replica that touched
/// it last.
#[tokio::test]
async fn an_index_of_the_previous_version_is_taken_over() {
    let fleet = Fleet::builder().session_format("classic").start().await;
    let ada = fleet[0].register("ada").await;
    let index = format!("user:{{{}}}:sessions", ada.id);
    let old = fleet[0].login(&ada).await;
    let time = |session: &Session, field: &str| -> i64 {
        let time: Timestamp = session.body[field].as_str().expect("a time").parse().expect("a time");
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

/// If a renewal wrote the session back, a request that began before the logout would revive it.
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
