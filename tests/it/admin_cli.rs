//! Administration from the command line, beside a running fleet: users and sessions.
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::fleet::{Engine, Finished, Fleet, PASSWORD, Session};

const NEW_PASSWORD: &str = "nine purple wombats in a row";
/// A secret that looks random enough for `doctor`.
const RANDOM: &str = "9f2d6c1be07a4853d4c0be127f3a96e59f";

/// Runs a command that reads standard input.
pub(crate) fn piped(fleet: &Fleet, arguments: &[&str], changes: &[(&str, &str)], input: &str) -> Finished {
    let mut command = Command::new(env!("CARGO_BIN_EXE_authfleet"));
    command
        .args(arguments)
        .current_dir(fleet.path())
        .env_clear()
        .env("DATABASE_URL", fleet.database_url())
        .env("REDIS_URL", fleet.redis.url())
        .env("SESSION_SECRET", crate::fleet::SECRET)
        .env("LOG_FORMAT", "json")
        .env("ARGON2_MEMORY", "64KiB")
        .env("ARGON2_ITERATIONS", "1")
        .envs(changes.iter().copied());
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().expect("the binary runs");
    // The command may have ended without reading.
    drop(child.stdin.take().expect("a pipe").write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The audit events that a command wrote to standard error.
pub(crate) fn audit(finished: &Finished) -> Vec<Value> {
    let lines = finished.stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "audit").collect()
}

/// Fails the test unless the command recorded exactly this event, with the name of the user who ran it, and showed none
/// of these secrets.
#[track_caller]
fn assert_audited(finished: &Finished, event: &str, user_id: &str, secrets: &[&str]) {
    let events = audit(finished);
    assert_eq!(events.len(), 1, "{}", finished.stderr);
    assert_eq!(events[0]["event"], event);
    assert_eq!(events[0]["user_id"], user_id);
    assert_eq!(events[0]["via"], "cli");
    assert!(events[0]["actor"].as_str().is_some_and(|name| !name.is_empty()));
    for secret in secrets {
        assert!(!finished.stdout.contains(secret) && !finished.stderr.contains(secret), "a secret was shown");
    }
}

/// ASVS 5.0 7.4.2: all sessions end when an account is disabled.
#[tokio::test]
async fn disabling_ends_the_sessions_on_every_replica_and_refuses_logins() {
    for engine in Engine::each() {
        disabling_ends_the_sessions_on_every_replica_and_refuses_logins_on(engine).await;
    }
}

async fn disabling_ends_the_sessions_on_every_replica_and_refuses_logins_on(engine: Engine) {
    let fleet = Fleet::start_on(engine, 2).await;
    let ada = fleet[0].register("ada").await;
    let bob = fleet[0].register("bob").await;
    let (one, two, other) = (fleet[0].login(&ada).await, fleet[1].login(&ada).await, fleet[1].login(&bob).await);

    let done = fleet.command(&["user", "disable", "ADA@example.org", "--json"], &[]).await.expect_code(0);
    let expected = json!({ "user_id": ada.id, "username": "ada", "changed": true, "sessions_ended": 2 });
    assert_eq!(serde_json::from_str::<Value>(&done.stdout).expect("JSON"), expected);
    assert_audited(&done, "account_disabled", &ada.id, &[&one.token, &two.token]);
    for session in [&one, &two] {
        for replica in fleet.replicas() {
            assert_eq!(replica.check(session).await, 401);
        }
    }
    assert_eq!(fleet[0].check(&other).await, 200, "somebody else's session");
    fleet[0].try_login("ada", PASSWORD).send().await.expect_problem(401, "invalid_credentials");

    let again = fleet.command(&["user", "disable", &ada.id, "--json"], &[]).await.expect_code(0).stdout;
    assert_eq!(serde_json::from_str::<Value>(&again).expect("JSON")["changed"], false);
    let shown = fleet.command(&["user", "show", "ada", "--json"], &[]).await.expect_code(0).json();
    assert!(shown["disabled_at"].is_string() && shown["sessions"] == 0, "{shown}");

    let enabled = fleet.command(&["user", "enable", "ada"], &[]).await.expect_code(0);
    assert_audited(&enabled, "account_enabled", &ada.id, &[]);
    fleet[1].login(&ada).await;
    assert_eq!(fleet[0].check(&one).await, 401, "what ended stays so");
}

/// Sessions end before SQL is changed, so the audit log must have them even if the change fails.
#[tokio::test]
async fn sessions_that_ended_are_recorded_although_the_change_failed() {
    for engine in Engine::each() {
        sessions_that_ended_are_recorded_although_the_change_failed_on(engine).await;
    }
}

async fn sessions_that_ended_are_recorded_although_the_change_failed_on(engine: Engine) {
    let fleet = Fleet::start_on(engine, 1).await;
    let ada = fleet[0].register("ada").await;
    for (arguments, reason) in
        [(["disable", "ada"].as_slice(), "account_disabled"), (&["delete", "ada", "--yes"], "account_deleted")]
    {
        let (one, other) = (fleet[0].login(&ada).await, fleet[0].login(&ada).await);
        let held = fleet.hold_writers().await;
        let failed = fleet.command(&[&["user"], arguments].concat(), &[]).await.expect_code(1);
        held.release().await;

        assert_eq!((fleet[0].check(&one).await, fleet[0].check(&other).await), (401, 401));
        assert_audited(&failed, "sessions_ended", &ada.id, &[&one.token]);
        let event = &audit(&failed)[0];
        assert_eq!((&event["reason"], &event["count"]), (&json!(reason), &json!(2)));
    }
}

/// Logins that were verified before the account was disabled must not outlive it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_login_slips_past_a_disable() {
    for engine in Engine::each() {
        no_login_slips_past_a_disable_on(engine).await;
    }
}

async fn no_login_slips_past_a_disable_on(engine: Engine) {
    let fleet = Fleet::start_on(engine, 2).await;
    for round in 0..5 {
        let name = format!("user{round}");
        let user = fleet[0].register(&name).await;
        let logins = async {
            let mut opened: Vec<Session> = Vec::new();
            // Repeats until a login is refused, because the account is disabled.
            loop {
                let (a, b) = tokio::join!(
                    fleet[0].try_login(&user.email, PASSWORD).send(),
                    fleet[1].try_login(&user.email, PASSWORD).send()
                );
                opened.extend(
                    [&a, &b].iter().filter(|answer| answer.status == 200).map(|answer| Session::opened_by(answer)),
                );
                if a.status == 401 && b.status == 401 {
                    return opened;
                }
            }
        };
        let arguments = ["user", "disable", user.email.as_str()];
        let (disabled, opened) = tokio::join!(fleet.command(&arguments, &[]), logins);
        disabled.expect_code(0);
        for session in &opened {
            assert_eq!(fleet[1].check(session).await, 401, "round {round}");
        }
        assert_eq!(fleet.redis.sessions_of(&user.id), Vec::<String>::new());
    }
}

/// ASVS 5.0 7.4.3.
#[tokio::test]
async fn a_password_set_by_an_operator_ends_all_sessions() {
    for engine in Engine::each() {
        a_password_set_by_an_operator_ends_all_sessions_on(engine).await;
    }
}

async fn a_password_set_by_an_operator_ends_all_sessions_on(engine: Engine) {
    let fleet = Fleet::start_on(engine, 2).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;

    let weak = piped(&fleet, &["user", "set-password", "ada"], &[], "password1\n").expect_code(1);
    assert!(weak.stderr.contains("password must not be one of the most common") && !weak.stderr.contains("password1"));
    let quoted = format!("\"{NEW_PASSWORD}\"\n");
    for (input, why) in [("", "no password"), ("one\ntwo\n", "more than one line"), (&quoted, "in quotation marks")] {
        let refused = piped(&fleet, &["user", "set-password", "ada"], &[], input).expect_code(2);
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }
    assert_eq!(fleet[1].check(&session).await, 200, "nothing was changed");

    // With the byte order mark and the line ending that a pipe on Windows adds.
    let input = format!("\u{feff}{NEW_PASSWORD}\r\n");
    let done = piped(&fleet, &["user", "set-password", "ada"], &[], &input).expect_code(0);
    assert_audited(&done, "password_changed", &ada.id, &[NEW_PASSWORD, &session.token, "$argon2"]);
    assert_eq!(fleet[1].check(&session).await, 401);
    fleet[1].try_login("ada", PASSWORD).send().await.expect_problem(401, "invalid_credentials");
    fleet[1].try_login("ada", NEW_PASSWORD).send().await.expect(200);
}

#[tokio::test]
async fn users_are_made_listed_and_deleted() {
    for engine in Engine::each() {
        users_are_made_listed_and_deleted_on(engine).await;
    }
}

async fn users_are_made_listed_and_deleted_on(engine: Engine) {
    let fleet = Fleet::start_on(engine, 1).await;
    let created = piped(&fleet, &["user", "create", "ada@example.org", "--json"], &[], PASSWORD).expect_code(0);
    let ada: Value = serde_json::from_str(&created.stdout).expect("JSON");
    let id = ada["user_id"].as_str().expect("an id");
    assert_audited(&created, "account_created", id, &[PASSWORD, "$argon2"]);
    assert_eq!((&ada["username"], &ada["password_scheme"]), (&json!("ada"), &json!("argon2id")));
    let session = Session::opened_by(&fleet[0].try_login("ada", PASSWORD).send().await);

    let twice = piped(&fleet, &["user", "create", "Ada@example.org"], &[], PASSWORD).expect_code(1);
    assert!(twice.stderr.contains("e-mail address is taken"), "{}", twice.stderr);
    let invalid = piped(&fleet, &["user", "create", "ada"], &[], PASSWORD).expect_code(1);
    assert!(invalid.stderr.contains("email must be an e-mail address"), "{}", invalid.stderr);

    piped(&fleet, &["user", "create", "bob@example.org", "--username", "bob"], &[], PASSWORD).expect_code(0);
    let page = fleet.command(&["user", "list", "--limit", "1", "--json"], &[]).await.expect_code(0).json();
    assert_eq!(
        (page["users"].as_array().map(Vec::len), &page["users"][0]["email"]),
        (Some(1), &json!("ada@example.org"))
    );
    let next = page["next"].as_str().expect("there is more").to_owned();
    let page = fleet.command(&["user", "list", "--after", &next, "--json"], &[]).await.expect_code(0).json();
    assert_eq!((&page["users"][0]["username"], &page["next"]), (&json!("bob"), &Value::Null));

    let unasked = fleet.command(&["user", "delete", "ada"], &[]).await.expect_code(2);
    assert!(unasked.stderr.contains("--yes"), "{}", unasked.stderr);
    let deleted = fleet.command(&["user", "delete", "ada", "--yes"], &[]).await.expect_code(0);
    assert_audited(&deleted, "account_deleted", id, &[]);
    assert_eq!(fleet[0].check(&session).await, 401);
    let gone = fleet.command(&["user", "show", "ada"], &[]).await.expect_code(1);
    assert!(gone.stdout.is_empty() && gone.stderr.contains("no user ada"), "{}", gone.stderr);
}

#[tokio::test]
async fn sessions_are_listed_inspected_and_revoked() {
    for engine in Engine::each() {
        sessions_are_listed_inspected_and_revoked_on(engine).await;
    }
}

async fn sessions_are_listed_inspected_and_revoked_on(engine: Engine) {
    let fleet = Fleet::start_on(engine, 2).await;
    let ada = fleet[0].register("ada").await;
    let (one, two) = (fleet[0].login(&ada).await, fleet[1].login(&ada).await);

    let listed = fleet.command(&["session", "list", "ada", "--json"], &[]).await.expect_code(0).json();
    let ids: Vec<_> =
        listed["sessions"].as_array().expect("sessions").iter().map(|s| s["session_id"].clone()).collect();
    assert_eq!(ids, [json!(two.id), json!(one.id)], "newest first");
    assert_eq!(listed["sessions"][1]["created_by"], "replica-1");

    // By id, and by cookie on standard input. The cookie may have its name and attributes, as browsers' developer tools
    // copy it.
    let by_id = fleet.command(&["session", "inspect", "--json", &one.id], &[]).await.expect_code(0).json();
    assert_eq!((&by_id["accepted"], &by_id["username"], &by_id["cookie"]), (&json!(true), &json!("ada"), &Value::Null));
    assert!(by_id["ttl_seconds"].as_i64().is_some_and(|ttl| (1..=1800).contains(&ttl)), "{by_id}");
    for text in [one.token.clone(), format!("Cookie: {}; theme=dark\n", one.cookie)] {
        let by_cookie = piped(&fleet, &["session", "inspect", "-", "--json"], &[], &text).expect_code(0);
        assert!(!by_cookie.stdout.contains(&one.token) && !by_cookie.stderr.contains(&one.token));
        let by_cookie = by_cookie.json();
        assert_eq!(by_cookie["session_id"], one.id);
        assert_eq!((&by_cookie["cookie"]["signature_valid"], &by_cookie["cookie"]["key"]), (&json!(true), &json!(1)));
    }
    let rotated = format!("{RANDOM},{}", crate::fleet::SECRET);
    let old_key = piped(&fleet, &["session", "inspect", "--json"], &[("SESSION_SECRET", &rotated)], &one.token).json();
    assert_eq!((&old_key["cookie"]["key"], &old_key["cookie"]["keys"]), (&json!(2), &json!(2)));
    let other = [("SESSION_SECRET", RANDOM)];
    let no_key = piped(&fleet, &["session", "inspect", "--json"], &other, &one.token).expect_code(1).json();
    assert_eq!((&no_key["accepted"], &no_key["cookie"]["key"]), (&json!(false), &Value::Null));
    assert_eq!(no_key["session"]["session_id"], one.id, "the session is there, the key is not: told apart");
    let argument = fleet.command(&["session", "inspect", &one.token], &[]).await.expect_code(0);
    assert!(
        argument.stderr.contains("shell's history") && !argument.stdout.contains(&one.token),
        "{}",
        argument.stderr
    );
    assert_eq!(fleet[0].check(&one).await, 200);

    let revoked = fleet.command(&["session", "revoke", &one.id], &[]).await.expect_code(0);
    assert_audited(&revoked, "session_ended", &ada.id, &[&one.token]);
    assert_eq!((fleet[1].check(&one).await, fleet[1].check(&two).await), (401, 200));
    fleet.command(&["session", "revoke", &one.id], &[]).await.expect_code(1);
    let ended = piped(&fleet, &["session", "inspect", "--json"], &[], &one.token).expect_code(1).json();
    assert_eq!((&ended["accepted"], &ended["user_id"]), (&json!(false), &json!(ada.id)));
    let all = fleet.command(&["session", "revoke", "--user", "ada", "--json"], &[]).await.expect_code(0);
    assert_eq!(serde_json::from_str::<Value>(&all.stdout).expect("JSON")["sessions_ended"], 1);
    assert_eq!(fleet[0].check(&two).await, 401);

    // An id may begin with a dash.
    let unknown = fleet.command(&["session", "revoke", "-bcdefghijklmnopqrstuv"], &[]).await.expect_code(1);
    assert!(unknown.stderr.contains("no living session -bcdefghijklmnopqrstuv"), "{}", unknown.stderr);
    fleet.command(&["session", "revoke", "short"], &[]).await.expect_code(2);
    fleet.command(&["session", "revoke"], &[]).await.expect_code(2);
    piped(&fleet, &["session", "inspect", "-"], &[], "neither\n").expect_code(2);
}

#[tokio::test]
async fn sessions_in_memory_are_out_of_reach_and_that_is_said() {
    for engine in Engine::each() {
        sessions_in_memory_are_out_of_reach_and_that_is_said_on(engine).await;
    }
}

async fn sessions_in_memory_are_out_of_reach_and_that_is_said_on(engine: Engine) {
    let fleet = Fleet::builder().users_in(engine).without_redis().start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    for arguments in [
        &["session", "list", "ada"][..],
        &["session", "revoke", &session.id],
        &["session", "inspect", &session.id],
        &["user", "disable", "ada"],
        &["user", "set-password", "ada"],
        &["user", "delete", "ada", "--yes"],
    ] {
        let refused = fleet.command(arguments, &[]).await.expect_code(1);
        assert!(refused.stderr.contains("REDIS_URL is not set"), "{arguments:?}: {}", refused.stderr);
    }
    assert_eq!(fleet[0].check(&session).await, 200);
    fleet.command(&["user", "show", "ada"], &[]).await.expect_code(0);
    fleet.command(&["user", "disable", "ada", "--offline"], &[]).await.expect_code(0);
    fleet[0].try_login("ada", PASSWORD).send().await.expect_problem(401, "invalid_credentials");
}

#[tokio::test]
async fn nothing_is_changed_while_redis_is_away() {
    for engine in Engine::each() {
        nothing_is_changed_while_redis_is_away_on(engine).await;
    }
}

async fn nothing_is_changed_while_redis_is_away_on(engine: Engine) {
    let mut fleet = Fleet::start_on(engine, 1).await;
    fleet[0].register("ada").await;
    let offline = fleet.command(&["user", "disable", "ada", "--offline"], &[]).await.expect_code(2);
    assert!(offline.stderr.contains("REDIS_URL is set"), "{}", offline.stderr);
    fleet.redis.kill();
    let failed = fleet.command(&["user", "disable", "ada"], &[]).await.expect_code(1);
    assert!(failed.stderr.contains("error: REDIS_URL: ") && audit(&failed).is_empty(), "{}", failed.stderr);
    assert_eq!(fleet.query("SELECT email FROM users WHERE disabled_at IS NULL").await.len(), 1);
    let shown = fleet.command(&["user", "show", "ada", "--json"], &[]).await.expect_code(0);
    assert_eq!(serde_json::from_str::<Value>(&shown.stdout).expect("JSON")["disabled_at"], Value::Null);
}
