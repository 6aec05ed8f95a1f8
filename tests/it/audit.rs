//! The audit log: it records who did what to whom and from where, and never a secret (ASVS 5.0 16.2.1, 16.2.5, 16.3.1
//! to 16.3.3).
use serde_json::{Value, json};

use crate::fleet::{Fleet, PASSWORD, SECRET, Session};

const NEW_PASSWORD: &str = "staple a battery horse";
const WRONG: &str = "somebody's wrong password";

/// The audit events so far. Checks each for the fields that all events have.
fn events(fleet: &Fleet) -> Vec<Value> {
    let lines = fleet[0].log().into_iter().filter(|line| line["target"] == "audit");
    let events: Vec<_> = lines.collect();
    for event in &events {
        for field in ["timestamp", "level", "replica", "event", "ip", "request_id"] {
            assert!(event[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {event}");
        }
        let time = event["timestamp"].as_str().expect("a time");
        assert!(time.ends_with('Z') && time.parse::<jiff::Timestamp>().is_ok(), "UTC: {time}");
    }
    events
}

/// The events after the first `seen`, as (event, reason, user, session, session that did it). Sets `seen` to the
/// number of all events.
fn since<'a>(events: &'a [Value], seen: &mut usize) -> Vec<[&'a str; 5]> {
    let fields = ["event", "reason", "user_id", "session_id", "by_session"];
    let new = events[*seen..].iter().map(|event| fields.map(|field| event[field].as_str().unwrap_or("")));
    *seen = events.len();
    new.collect()
}

#[tokio::test]
async fn asvs_16_3_1_each_event_is_recorded() {
    let fleet = Fleet::builder().env("TRUSTED_PROXIES", "127.0.0.1").env("LOGIN_FAILURES_PER_ACCOUNT", "3");
    let fleet = fleet.env("REGISTRATIONS_PER_ADDRESS", "3").env("SESSIONS_PER_USER", "3").start().await;
    let mut seen = 0;
    macro_rules! expect {
        ($($event:expr),* $(,)?) => {{
            let all = events(&fleet);
            assert_eq!(since(&all, &mut seen), [$($event),*] as [[&str; 5]; _]);
        }};
    }
    let delete = |path: &str, by: &Session| fleet[0].call("DELETE", path).session(by);

    let ada = fleet[0].register("ada").await;
    expect!(["account_created", "", &ada.id, "", ""]);
    let taken = json!({ "email": ada.email, "password": PASSWORD });
    fleet[0].post("/auth/register").json(&taken).send().await.expect(409);
    expect!(["registration_failed", "conflict", "", "", ""]);
    let weak = json!({ "email": "eve@example.org", "password": "short" });
    fleet[0].post("/auth/register").json(&weak).send().await.expect(422);
    expect!(["registration_failed", "invalid", "", "", ""]);

    // The event has the client's address from the trusted proxy, and the request's id, by which to search other logs.
    let login =
        fleet[0].try_login("ada", PASSWORD).header("x-forwarded-for", "203.0.113.7").header("x-request-id", "login-1");
    let first = Session::opened_by(&login.send().await);
    expect!(["login", "", &ada.id, &first.id, ""]);
    let last = events(&fleet).pop().expect("an event");
    assert_eq!((&last["ip"], &last["request_id"]), (&json!("203.0.113.7"), &json!("login-1")));

    fleet[0].try_login("ada", WRONG).send().await.expect(401);
    fleet[0].try_login("nobody", WRONG).send().await.expect(401);
    expect!(
        ["login_failed", "invalid_credentials", &ada.id, "", ""],
        ["login_failed", "invalid_credentials", "", "", ""]
    );

    let again = fleet[0].try_login("ada", PASSWORD).session(&first).send().await;
    let second = Session::opened_by(&again);
    expect!(["session_ended", "replaced", &ada.id, &first.id, ""], ["login", "", &ada.id, &second.id, ""]);
    fleet[0].post("/auth/logout").session(&second).send().await.expect(200);
    expect!(["session_ended", "logout", &ada.id, &second.id, ""]);

    let [asking, other, third] = [fleet[0].login(&ada).await, fleet[0].login(&ada).await, fleet[0].login(&ada).await];
    since(&events(&fleet), &mut seen);
    let fourth = fleet[0].login(&ada).await;
    expect!(["sessions_ended", "evicted", &ada.id, "", &fourth.id], ["login", "", &ada.id, &fourth.id, ""]);
    assert_eq!(fleet[0].check(&asking).await, 401);
    let asking = fourth;
    delete(&format!("/auth/sessions/{}", other.id), &asking).send().await.expect(204);
    expect!(["session_ended", "revoked", &ada.id, &other.id, &asking.id]);
    delete("/auth/sessions?keep=current", &asking).send().await.expect(204);
    expect!(["sessions_ended", "revoked", &ada.id, "", &asking.id]);
    let last = events(&fleet).pop().expect("an event");
    assert_eq!(last["count"], 1, "{} was the other one", third.id);

    let change = |current: &str| json!({ "current_password": current, "new_password": NEW_PASSWORD });
    fleet[0].post("/auth/password").session(&asking).json(&change(WRONG)).send().await.expect(403);
    expect!(["password_confirmation_failed", "invalid_credentials", &ada.id, &asking.id, ""]);
    let changed = fleet[0].post("/auth/password").session(&asking).json(&change(PASSWORD)).send().await;
    let changed = Session::opened_by(&changed);
    expect!(
        ["password_changed", "", &ada.id, &asking.id, ""],
        ["sessions_ended", "password_changed", &ada.id, "", &asking.id],
        ["session_created", "password_changed", &ada.id, &changed.id, ""],
    );

    let eve = fleet[0].register("eve").await;
    let of_eve = fleet[0].login(&eve).await;
    since(&events(&fleet), &mut seen);
    for _ in 0..3 {
        fleet[0].try_login("ada", WRONG).send().await.expect(401);
    }
    since(&events(&fleet), &mut seen);
    fleet[0].try_login("ada", NEW_PASSWORD).send().await.expect(429);
    expect!(["login_failed", "throttled", &ada.id, "", ""]);
    delete("/auth/account", &changed).json(&json!({ "password": NEW_PASSWORD })).send().await.expect(429);
    expect!(["password_confirmation_failed", "throttled", &ada.id, &changed.id, ""]);
    let third = json!({ "email": "third@example.org", "password": PASSWORD });
    fleet[0].post("/auth/register").json(&third).send().await.expect(429);
    expect!(["registration_failed", "throttled", "", "", ""]);

    delete("/auth/account", &of_eve).json(&json!({ "password": PASSWORD })).send().await.expect(204);
    expect!(
        ["account_deleted", "", &eve.id, &of_eve.id, ""],
        ["sessions_ended", "account_deleted", &eve.id, "", &of_eve.id],
    );
    delete("/auth/sessions", &changed).send().await.expect(204);
    expect!(["sessions_ended", "revoked", &ada.id, "", &changed.id]);
}

/// Sessions end before SQL is changed. If SQL then refuses the change, they have ended anyway, and the audit log must
/// say so.
#[tokio::test]
async fn sessions_that_ended_are_recorded_although_the_change_failed() {
    let fleet = Fleet::start(1).await;
    let ended = async || fleet[0].count("authfleet_sessions_ended_total", &[]).await;
    let change = json!({ "current_password": PASSWORD, "new_password": NEW_PASSWORD });
    let delete = json!({ "password": PASSWORD });
    for (name, reason) in [("ada", "password_changed"), ("eve", "account_deleted")] {
        let user = fleet[0].register(name).await;
        let (asking, _other) = (fleet[0].login(&user).await, fleet[0].login(&user).await);
        let (mut seen, before) = (events(&fleet).len(), ended().await);
        let mut db = fleet.sql().await;
        sqlx::query("BEGIN IMMEDIATE").execute(&mut db).await.expect("the lock");
        let call = match reason {
            "password_changed" => fleet[0].post("/auth/password").json(&change),
            _ => fleet[0].call("DELETE", "/auth/account").json(&delete),
        };
        call.session(&asking).send().await.expect_problem(503, "store_unavailable");
        sqlx::query("ROLLBACK").execute(&mut db).await.expect("the lock is free");

        assert_eq!(fleet[0].check(&asking).await, 401);
        let all = events(&fleet);
        assert_eq!(since(&all, &mut seen), [["sessions_ended", reason, &user.id, "", &asking.id]]);
        assert_eq!(all[seen - 1]["count"], 2);
        assert_eq!(ended().await - before, 2, "{reason}");
    }
}

/// ASVS 5.0 14.2.1, 16.2.5: at every log level, and whatever fails, no output contains a password, a token or a key.
#[tokio::test]
async fn asvs_16_2_5_no_password_or_token_is_logged() {
    let mut fleet = Fleet::builder().env("RUST_LOG", "trace").redis_over_tcp().start().await;
    let ada = fleet[0].register("ada").await;
    let mut sessions = vec![fleet[0].login(&ada).await, fleet[0].login(&ada).await];
    let typed_as_name = "a password typed as name";
    fleet[0].try_login(typed_as_name, WRONG).send().await.expect(401);
    fleet[0].try_login("ada", WRONG).send().await.expect(401);
    let json_type = ("content-type", "application/json");
    // Bodies that can't be parsed. A parser's message might quote them.
    for body in [
        format!(r#"{{"username":"ada","password":"{PASSWORD}""#),
        format!(r#"{{"username":"ada","password":["{PASSWORD}"]}}"#),
        format!(r#"{{"username":"ada","password":{{"{PASSWORD}":1}}}}"#),
        format!(r#""{PASSWORD}""#),
        format!(r#""{PASSWORD}, expected nothing""#),
        format!(r#"{{"username":["{PASSWORD}"],"password":"{PASSWORD}"}}"#),
    ] {
        let answer = fleet[0].post("/auth/login").header(json_type.0, json_type.1).body(body).send().await;
        assert!(answer.status == 400 || answer.status == 422, "{}", answer.status);
        assert!(!answer.text().contains(PASSWORD), "{}", answer.text());
    }
    let weak = "letmein1";
    for (current, new, status) in [(WRONG, NEW_PASSWORD, 403), (PASSWORD, weak, 422), (PASSWORD, NEW_PASSWORD, 200)] {
        let body = json!({ "current_password": current, "new_password": new });
        let answer = fleet[0].post("/auth/password").session(&sessions[0]).json(&body).send().await.expect(status);
        if status == 200 {
            sessions.push(Session::opened_by(&answer));
        }
    }
    // Tokens in the wrong place: in the path, the query, another header, another cookie.
    let valid = sessions[2].clone();
    fleet[0].call("DELETE", &format!("/auth/sessions/{}", valid.id)).cookie(&valid.forged()).send().await.expect(401);
    let answer = fleet[0].get("/profile").header("authorization", &format!("Bearer {}", valid.token)).send().await;
    answer.expect(401);
    fleet[0].get(&format!("/profile?token={}", valid.token)).session(&valid).send().await.expect(200);
    // Errors of stores have long messages, which might quote a secret.
    fleet.redis.kill();
    fleet[0].get("/profile").session(&valid).send().await.expect(503);
    fleet[0].try_login("ada", NEW_PASSWORD).send().await.expect(503);
    fleet.redis.start().await;
    crate::fleet::within(crate::fleet::PATIENTLY, "back", async || fleet[0].check(&valid).await == 200).await;
    let mut db = fleet.sql().await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut db).await.expect("the lock");
    let body = json!({ "current_password": NEW_PASSWORD, "new_password": PASSWORD });
    fleet[0].post("/auth/password").session(&valid).json(&body).send().await.expect(503);
    sqlx::query("ROLLBACK").execute(&mut db).await.expect("the lock is free");

    let hashes = fleet.query("SELECT password_hash FROM users").await;
    let mut secrets = vec![PASSWORD, NEW_PASSWORD, WRONG, weak, typed_as_name, SECRET];
    secrets.extend(hashes.iter().map(String::as_str));
    for session in &sessions {
        // The parts of the token after the user's id.
        secrets.extend([&session.token[24..44], &session.token[96..]]);
    }
    let logs: Vec<_> =
        fleet.files().into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "log")).collect();
    assert!(logs.iter().any(|(path, log)| path.ends_with("replica-1.log") && log.len() > 10_000));
    for (path, log) in &logs {
        let log = String::from_utf8_lossy(log);
        for secret in &secrets {
            let line = log.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "{secret} is in {}: {}", path.display(), line.unwrap_or_default());
        }
    }
}
