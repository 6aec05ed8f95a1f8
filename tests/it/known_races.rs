//! Races that other servers have or had, each provoked on purpose.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::join_all;
use serde_json::{Value, json};

use crate::fleet::{Answer, Engine, Fleet, PASSWORD, PATIENTLY, Session, bucket, within};

const NEW_PASSWORD: &str = "staple a battery horse";

fn change(current: &str, new: &str) -> Value {
    json!({ "current_password": current, "new_password": new })
}

/// The keys of a user's fences, one for each format of sessions.
fn fences(user_id: &str) -> [String; 2] {
    [format!("user:{{{user_id}}}:fence"), format!("user:{{{}}}:{user_id}:fence", bucket(user_id))]
}

async fn fenced_off(fleet: &Fleet, user_id: &str) {
    let [classic, compact] = fences(user_id);
    let are_there = async || fleet.redis.run::<i64>(&["EXISTS", &classic, &compact]) == 2;
    within(PATIENTLY, "the sessions are fenced off", are_there).await;
}

/// What must overtake a login that is under way.
#[derive(Clone, Copy)]
enum Overtaking {
    PasswordChange,
    /// A password change that Redis then forgets.
    PasswordChangeForgottenByRedis,
    Deletion,
    Disabling,
    DisablingForgottenByRedis,
}

/// A login reads the account, then another replica acknowledges `overtaking`, and only then is the login's password
/// verified. This order is certain, because the login's replica is stopped meanwhile.
async fn overtake(overtaking: Overtaking) {
    for engine in Engine::each() {
        overtake_on(engine, overtaking).await;
    }
}

async fn overtake_on(engine: Engine, overtaking: Overtaking) {
    let fleet = Fleet::builder().users_in(engine).replicas(2).env("HASH_CONCURRENCY", "1").start().await;
    let (ada, slow) = (fleet[0].register("ada").await, fleet[0].register("slow").await);
    let session = fleet[1].login(&ada).await;
    // A hash that takes seconds in a build that isn't optimised keeps the only hashing thread of the first replica
    // busy.
    let hash = fleet.query("SELECT password_hash FROM users WHERE username = 'slow'").await.remove(0);
    let hash = format!("$argon2id$v=19$m=65536,t=2,p=1${}", hash.splitn(5, '$').nth(4).expect("salt and output"));
    fleet.query(&format!("UPDATE users SET password_hash = '{hash}' WHERE id = '{}'", slow.id)).await;

    let blocking = tokio::spawn(fleet[0].try_login("slow", PASSWORD).try_send());
    let pending = |id: &str| fleet.redis.run::<i64>(&["ZCARD", &format!("throttle:{{account:{id}}}:pending")]);
    let queued = async || fleet[0].metric("authfleet_hash_queued", &[]).await;
    within(PATIENTLY, "one hash is under way", async || pending(&slow.id) == 1 && queued().await < 0.5).await;
    let overtaken = tokio::spawn(fleet[0].try_login("ada", PASSWORD).try_send());
    within(PATIENTLY, "the login waits behind it", async || pending(&ada.id) == 1 && queued().await > 0.5).await;
    fleet[0].signal(rustix::process::Signal::STOP);
    assert!(!overtaken.is_finished());

    let mut successor = None;
    match overtaking {
        Overtaking::PasswordChange | Overtaking::PasswordChangeForgottenByRedis => {
            let body = change(PASSWORD, NEW_PASSWORD);
            let answer = fleet[1].post("/auth/password").session(&session).json(&body).send().await;
            successor = Some(Session::opened_by(&answer));
        }
        Overtaking::Deletion => {
            let body = json!({ "password": PASSWORD });
            fleet[1].call("DELETE", "/auth/account").session(&session).json(&body).send().await.expect(204);
        }
        Overtaking::Disabling | Overtaking::DisablingForgottenByRedis => {
            fleet.command(&["user", "disable", "ada"], &[]).await.expect_code(0);
        }
    }
    if matches!(overtaking, Overtaking::PasswordChangeForgottenByRedis | Overtaking::DisablingForgottenByRedis) {
        for fence in fences(&ada.id) {
            assert_eq!(fleet.redis.run::<i64>(&["DEL", &fence]), 1);
        }
    }
    fleet[0].signal(rustix::process::Signal::CONT);
    let answer = overtaken.await.expect("no panic").expect("an answer");
    answer.expect_problem(401, "invalid_credentials");
    // Its session was never created, or has ended.
    let expected: Vec<_> = successor.iter().map(Session::key).collect();
    assert_eq!(fleet.redis.sessions_of(&ada.id), expected);
    assert_eq!(fleet[1].check(&session).await, 401);
    if let Some(successor) = successor {
        assert_eq!((fleet[0].check(&successor).await, fleet[1].check(&successor).await), (200, 200));
    }
    drop(blocking.await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_verified_with_the_old_password_does_not_outlive_its_change() {
    overtake(Overtaking::PasswordChange).await;
}

/// The epoch in SQL decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_it_when_redis_forgot_that_there_was_a_change() {
    overtake(Overtaking::PasswordChangeForgottenByRedis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_under_way_does_not_outlive_the_account() {
    overtake(Overtaking::Deletion).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_under_way_does_not_outlive_the_disabling_of_its_user() {
    overtake(Overtaking::Disabling).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_it_when_redis_forgot_that_the_user_was_disabled() {
    overtake(Overtaking::DisablingForgottenByRedis).await;
}

/// A server that renews a session by writing it back would revive one that was revoked meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_under_way_does_not_bring_back_what_was_revoked() {
    for engine in Engine::each() {
        a_refresh_under_way_does_not_bring_back_what_was_revoked_on(engine).await;
    }
}

async fn a_refresh_under_way_does_not_bring_back_what_was_revoked_on(engine: Engine) {
    let fleet = Arc::new(Fleet::start_on(engine, 3).await);
    for (round, way) in ["revoke", "revoke all", "keep current", "password", "account"].into_iter().enumerate() {
        let ada = fleet[0].register(&format!("ada-{round}")).await;
        let (victim, asking) = (fleet[0].login(&ada).await, fleet[1].login(&ada).await);
        let (ended, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let touches: Vec<_> = (0..9)
            .map(|n| {
                let (fleet, victim) = (Arc::clone(&fleet), victim.clone());
                let (ended, stop) = (Arc::clone(&ended), Arc::clone(&stop));
                // Requests that renew a session.
                let path = ["/profile", "/auth/sessions", "/profile"][n / 3];
                tokio::spawn(async move {
                    let mut alive = 0;
                    while !stop.load(Ordering::SeqCst) {
                        let was_ended = ended.load(Ordering::SeqCst);
                        match fleet[n % 3].get(path).session(&victim).send().await.status {
                            200 if was_ended => panic!("it came back"),
                            200 => alive += 1,
                            status => assert_eq!(status, 401),
                        }
                    }
                    alive
                })
            })
            .collect();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let replica = &fleet[round % 3];
        let (call, status) = match way {
            "revoke" => (replica.call("DELETE", &format!("/auth/sessions/{}", victim.id)), 204),
            "revoke all" => (replica.call("DELETE", "/auth/sessions"), 204),
            "keep current" => (replica.call("DELETE", "/auth/sessions?keep=current"), 204),
            "password" => (replica.post("/auth/password").json(&change(PASSWORD, NEW_PASSWORD)), 200),
            _ => (replica.call("DELETE", "/auth/account").json(&json!({ "password": PASSWORD })), 204),
        };
        call.session(&asking).send().await.expect(status);
        ended.store(true, Ordering::SeqCst);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        stop.store(true, Ordering::SeqCst);
        let alive: u32 = join_all(touches).await.into_iter().map(|touch| touch.expect("no touch came back")).sum();
        assert!(alive > 0, "it was touched before it ended");
        assert!(!fleet.redis.run::<bool>(&["EXISTS", &victim.key()]), "{way}");
    }
}

/// If a replica dies between ending the sessions and changing the password, no old session is alive, and the user can
/// sign in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_within_a_password_change_leaves_no_session_and_locks_nobody_out() {
    for engine in Engine::each() {
        a_crash_within_a_password_change_leaves_no_session_and_locks_nobody_out_on(engine).await;
    }
}

async fn a_crash_within_a_password_change_leaves_no_session_and_locks_nobody_out_on(engine: Engine) {
    let mut fleet = Fleet::start_on(engine, 2).await;
    let ada = fleet[0].register("ada").await;
    let (asking, other) = (fleet[0].login(&ada).await, fleet[1].login(&ada).await);
    let held = fleet.hold_writers().await;
    let body = change(PASSWORD, NEW_PASSWORD);
    let changing = tokio::spawn(fleet[0].post("/auth/password").session(&asking).json(&body).try_send());
    fenced_off(&fleet, &ada.id).await;
    fleet[0].kill();
    assert!(changing.await.expect("no panic").is_err(), "nobody answered");
    fleet.writers_have_given_up().await;
    held.release().await;

    assert_eq!((fleet[1].check(&asking).await, fleet[1].check(&other).await), (401, 401));
    assert!(fleet.redis.keys("session:*").is_empty());
    fleet[1].try_login("ada", NEW_PASSWORD).send().await.expect_problem(401, "invalid_credentials");
    // The fence is still there. This login takes over its epoch.
    let session = fleet[1].login(&ada).await;
    assert_eq!(fleet.query("SELECT CAST(epoch AS TEXT) FROM users").await, ["2"]);
    fleet[0].start().await;
    let changed = Session::opened_by(&fleet[0].post("/auth/password").session(&session).json(&body).send().await);
    assert_eq!((fleet[1].check(&session).await, fleet[1].check(&changed).await), (401, 200));
    assert_eq!(fleet[1].check(&asking).await, 401);
}

/// A replica of any version that crashes may leave a fence without its change, with any epoch.
#[tokio::test]
async fn a_fence_without_its_change_locks_nobody_out() {
    for engine in Engine::each() {
        a_fence_without_its_change_locks_nobody_out_on(engine).await;
    }
}

async fn a_fence_without_its_change_locks_nobody_out_on(engine: Engine) {
    let fleet = Fleet::start_on(engine, 3).await;
    let ada = fleet[0].register("ada").await;
    for epoch in ["2", "3", "41"] {
        let before = fleet[0].login(&ada).await;
        for fence in fences(&ada.id) {
            fleet.redis.run::<String>(&["SET", &fence, epoch, "PX", "3600000"]);
        }
        fleet.redis.run::<i64>(&["DEL", &before.key()]);
        let logins = join_all((0..6).map(|n| fleet[n % 3].try_login("ada", PASSWORD).send())).await;
        // Logins that raced for the repair may have to try again, but one succeeded, and none is half signed in.
        let opened: Vec<_> = logins.iter().filter(|answer| answer.status == 200).map(Session::opened_by).collect();
        assert!(!opened.is_empty(), "{logins:?}");
        for session in &opened {
            assert_eq!(fleet[2].check(session).await, 200);
        }
        assert_eq!(fleet[1].check(&before).await, 401);
        assert_eq!(fleet.query("SELECT CAST(epoch AS TEXT) FROM users").await, [epoch]);
        fleet[0].login(&ada).await;
    }
}

/// If a concurrent login could make a password change fail, an attacker who knows the password could keep its owner
/// from changing it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_meanwhile_do_not_stop_a_password_change() {
    for engine in Engine::each() {
        logins_meanwhile_do_not_stop_a_password_change_on(engine).await;
    }
}

async fn logins_meanwhile_do_not_stop_a_password_change_on(engine: Engine) {
    let fleet = Fleet::start_on(engine, 3).await;
    for round in 0..4 {
        let ada = fleet[0].register(&format!("ada-{round}")).await;
        let session = fleet[0].login(&ada).await;
        // Stops the change between its two steps, so that logins happen in between.
        let held = fleet.hold_writers().await;
        let body = change(PASSWORD, NEW_PASSWORD);
        let changing = tokio::spawn(fleet[0].post("/auth/password").session(&session).json(&body).try_send());
        fenced_off(&fleet, &ada.id).await;
        let logins: Vec<_> =
            (0..6).map(|n| tokio::spawn(fleet[1 + n % 2].try_login(&ada.email, PASSWORD).try_send())).collect();
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        held.release().await;
        let changed = changing.await.expect("no panic").expect("an answer");
        let changed = Session::opened_by(&changed);
        for login in join_all(logins).await {
            let answer: Answer = login.expect("no panic").expect("an answer");
            match answer.status {
                // Signed in before the change, which then ended the session.
                200 => assert_eq!(fleet[0].check(&Session::opened_by(&answer)).await, 401),
                503 => drop(answer.expect_problem(503, "store_unavailable")),
                _ => drop(answer.expect_problem(401, "invalid_credentials")),
            }
        }
        assert_eq!(fleet.redis.sessions_of(&ada.id), [changed.key()]);
        assert_eq!(fleet[2].check(&changed).await, 200);
    }
}

/// Session fixation: a login makes a new cookie, whatever cookie was planted in the browser (ASVS 5.0 7.2.4).
#[tokio::test]
async fn asvs_7_2_4_a_planted_session_is_not_signed_in() {
    for engine in Engine::each() {
        asvs_7_2_4_a_planted_session_is_not_signed_in_on(engine).await;
    }
}

async fn asvs_7_2_4_a_planted_session_is_not_signed_in_on(engine: Engine) {
    let fleet = Fleet::start_on(engine, 2).await;
    let (ada, eve) = (fleet[0].register("ada").await, fleet[0].register("eve").await);
    let planted = fleet[0].login(&eve).await;
    let ended = fleet[0].login(&eve).await;
    fleet[0].post("/auth/logout").session(&ended).send().await.expect(200);
    for cookie in [&planted.cookie, &ended.cookie, &planted.forged(), &format!("session={}", "A".repeat(116))] {
        let login = fleet[1].try_login(&ada.email, PASSWORD).cookie(cookie).send().await;
        let session = Session::opened_by(&login);
        assert!(!cookie.contains(&session.token) && session.id != planted.id && session.user_id == ada.id);
        let answer = fleet[0].get("/profile").cookie(cookie).send().await;
        assert_eq!(answer.status, 401, "{}", answer.text());
    }
    // Nothing in a request names the session to be made.
    let body = json!({
        "email": ada.email, "password": PASSWORD, "session_id": planted.id, "token": planted.token, "user_id": eve.id,
    });
    let login = fleet[1].post(&format!("/auth/login?session={}", planted.token)).json(&body).send().await;
    let session = Session::opened_by(&login);
    assert!(session.id != planted.id && session.user_id == ada.id);
}

/// Other servers refuse a revoked token on one instance and keep accepting it on instances that have cached it.
#[tokio::test]
async fn no_replica_remembers_a_session_that_another_one_ended() {
    for engine in Engine::each() {
        no_replica_remembers_a_session_that_another_one_ended_on(engine).await;
    }
}

async fn no_replica_remembers_a_session_that_another_one_ended_on(engine: Engine) {
    let fleet = Fleet::start_on(engine, 3).await;
    let ada = fleet[0].register("ada").await;
    for ender in 0..3 {
        let session = fleet[ender].login(&ada).await;
        for replica in fleet.replicas() {
            for _ in 0..5 {
                assert_eq!(replica.check(&session).await, 200);
            }
        }
        fleet[ender].post("/auth/logout").session(&session).send().await.expect(200);
        for replica in fleet.replicas() {
            assert_eq!(replica.check(&session).await, 401);
        }
    }
}

/// A user who signs in while all sessions are being ended is either signed in or not, and all replicas agree.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoking_all_misses_no_session_that_was_there() {
    for engine in Engine::each() {
        revoking_all_misses_no_session_that_was_there_on(engine).await;
    }
}

async fn revoking_all_misses_no_session_that_was_there_on(engine: Engine) {
    let fleet = Fleet::start_on(engine, 3).await;
    let ada = fleet[0].register("ada").await;
    for _ in 0..10 {
        let asking = fleet[0].login(&ada).await;
        let before = join_all((0..4).map(|n| fleet[n % 3].login(&ada))).await;
        let logins = join_all((0..4).map(|n| fleet[n % 3].login(&ada)));
        let revoking = fleet[1].call("DELETE", "/auth/sessions?keep=current").session(&asking).send();
        let (during, revoked) = tokio::join!(logins, revoking);
        revoked.expect(204);
        for session in &before {
            assert_eq!(fleet[2].check(session).await, 401);
        }
        for session in &during {
            let seen = [fleet[0].check(session).await, fleet[1].check(session).await, fleet[2].check(session).await];
            assert!(seen == [200; 3] || seen == [401; 3], "{seen:?}");
        }
        // Each living session is in the index, where the next revocation finds it.
        let mut listed = fleet.redis.indexed();
        listed.retain(|key| fleet.redis.run::<bool>(&["EXISTS", key]));
        assert_eq!(listed, fleet.redis.sessions_of(&ada.id));
    }
}
