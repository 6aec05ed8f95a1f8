//! Registration in a fleet: each account is unique in all spellings of its names, whichever replica is asked.
use std::collections::BTreeMap;

use futures::future::join_all;
use serde_json::{Value, json};

use crate::fleet::{Fleet, PASSWORD};

/// Sends twelve registrations at once, spread over the replicas. Returns how often each outcome came.
async fn race(fleet: &Fleet, body: impl Fn(usize) -> Value) -> BTreeMap<String, usize> {
    let calls = (0..12).map(|n| fleet[n % fleet.replicas().len()].post("/auth/register").json(&body(n)).send());
    let mut outcomes = BTreeMap::new();
    for answer in join_all(calls).await {
        let outcome = if answer.status == 201 { "201".to_owned() } else { answer.text_at("code") };
        *outcomes.entry(outcome).or_default() += 1;
    }
    outcomes
}

#[tokio::test]
async fn parallel_registrations_make_one_account() {
    let fleet = Fleet::start(3).await;
    for round in 0..5 {
        let spellings = ["ada", "Ada", "ADA", "aDa"].map(|name| format!("{name}{round}@Example.org"));
        let outcomes = race(
            &fleet,
            |n| json!({ "email": spellings[n % 4], "username": format!("user-{round}-{n}"), "password": PASSWORD }),
        );
        assert_eq!(outcomes.await, [("201".to_owned(), 1), ("email_taken".to_owned(), 11)].into());

        let outcomes = race(
            &fleet,
            |n| json!({ "email": format!("eve{round}-{n}@example.org"), "username": spellings[n % 4][..4], "password": PASSWORD }),
        );
        assert_eq!(outcomes.await, [("201".to_owned(), 1), ("username_taken".to_owned(), 11)].into());
    }
    assert_eq!(fleet.query("SELECT count(*) FROM users").await, ["10"]);
}

/// Without a username, each account gets one of its own, even if several would get the same.
#[tokio::test]
async fn usernames_are_made_up() {
    let fleet = Fleet::start(3).await;
    let outcomes = race(&fleet, |n| json!({ "email": format!("info@host-{n}.example"), "password": PASSWORD })).await;
    assert_eq!(outcomes, [("201".to_owned(), 12)].into());
    let names = fleet.query("SELECT DISTINCT username FROM users ORDER BY id").await;
    assert_eq!(names.len(), 12, "{names:?}");
    assert!(names.contains(&"info".to_owned()) && names.contains(&"info2".to_owned()), "{names:?}");
    fleet[0].try_login("INFO2", PASSWORD).send().await.expect(200);
}

#[tokio::test]
async fn names_are_the_same_in_any_case() {
    let fleet = Fleet::start(2).await;
    let register = |email: &str, username: &str| {
        let body = json!({ "email": email, "username": username, "password": PASSWORD });
        fleet[0].post("/auth/register").json(&body).send()
    };
    register("Zoë@Example.org", "ZoË").await.expect(201);
    register("zoë@example.ORG", "other").await.expect_problem(409, "email_taken");
    register("ZOË@EXAMPLE.ORG", "other").await.expect_problem(409, "email_taken");
    register("other@example.org", "zoë").await.expect_problem(409, "username_taken");
    register("other@example.org", "ＺＯＥ\u{308}").await.expect_problem(409, "username_taken");

    for identifier in ["Zoë@Example.org", "zoë@example.org", "ZOË@EXAMPLE.ORG", "ZoË", "zoë", "zoe\u{308}"] {
        let answer = fleet[1].try_login(identifier, PASSWORD).send().await.expect(200);
        assert_eq!((answer.text_at("email"), answer.text_at("username")), ("Zoë@Example.org".into(), "ZoË".into()));
    }
    // Either field accepts either name, because many forms have only one field.
    for (field, identifier) in [("username", "zoë@example.org"), ("email", "zoë")] {
        let body = json!({ field: identifier, "password": PASSWORD });
        fleet[1].post("/auth/login").json(&body).send().await.expect(200);
    }
}

/// Spaces that phones add, domains as mail programs show them, and the case folding of Greek and German: all spellings
/// are one name in every flow that takes one.
#[tokio::test]
async fn a_name_is_the_same_in_every_spelling() {
    let fleet = Fleet::builder().replicas(2).env("LOGIN_FAILURES_PER_ACCOUNT", "4").start().await;
    let register = |email: &str, username: &str| {
        let body = json!({ "email": email, "username": username, "password": PASSWORD });
        fleet[0].post("/auth/register").json(&body).send()
    };
    for (email, username, spellings) in [
        (
            "ada@example.org ",
            " ada",
            &["ada@example.org", "ada@example.org ", "\u{a0}ADA@example.ORG\n", "ada ", "Ａｄａ"][..],
        ),
        ("u@bücher.example", "Straße", &["u@xn--bcher-kva.example", "U@BÜCHER.example", "STRASSE", "strasse"]),
        ("ΣΊΣΥΦΟΣ@example.org", "k2", &["σίσυφοσ@example.org", "σίσυφος@example.org", "K2"]),
    ] {
        register(email, username).await.expect(201);
        for spelling in spellings.iter().chain([&email, &username]) {
            fleet[1].try_login(spelling, PASSWORD).send().await.expect(200);
            if spelling.contains('@') {
                register(spelling, "other").await.expect_problem(409, "email_taken");
            } else {
                register("other@example.org", spelling).await.expect_problem(409, "username_taken");
            }
            fleet.command(&["user", "show", spelling], &[]).await.expect_code(0);
        }
    }
    for hidden in ['\u{fe0f}', '\u{34f}', '\u{1160}', '\u{e0061}'] {
        for (email, username) in [
            ("new@example.org".to_owned(), format!("ada{hidden}")),
            (format!("ada{hidden}@example.org"), "new".to_owned()),
            (format!("new@exam{hidden}ple.org"), "new".to_owned()),
        ] {
            let refused = register(&email, &username).await.expect_problem(422, "validation_failed").text();
            assert!(refused.contains("must not contain invisible characters"), "{refused}");
        }
        fleet[1].try_login(&format!("ada{hidden}"), PASSWORD).send().await.expect_problem(401, "invalid_credentials");
    }
    let bad_domain = register("u@xn--a.example", "new").await.expect_problem(422, "validation_failed").text();
    assert!(bad_domain.contains("must have a valid domain"), "{bad_domain}");

    // All spellings of a name without account share one limit too.
    for spelling in ["eve@bücher.example", "EVE@xn--bcher-kva.example", " eve@BÜCHER.example", "eve@bücher.example\t"]
    {
        fleet[0].try_login(spelling, "wrong").send().await.expect_problem(401, "invalid_credentials");
    }
    fleet[1].try_login("Eve@Bücher.Example", "wrong").send().await.expect_problem(429, "throttled");
}

/// An older release told more names apart. If the names of two accounts are now the same, both accounts stay, and the
/// operator is told.
#[tokio::test]
async fn accounts_that_have_become_one_name_stay_two() {
    let fleet = Fleet::start(1).await;
    let mut sql = fleet.sql().await;
    fleet[0].register("model").await;
    let hash = fleet.query("SELECT password_hash FROM users").await.remove(0);
    for (n, email, username) in [(1, "σίσυφος@example.org", "sisyphos"), (2, "σίσυφοσ@example.org", "tantalos")]
    {
        sqlx::query(
            "INSERT INTO users (id, email, email_key, username, username_key, password_hash, created_at, updated_at) \
             VALUES (?1, ?2, ?2, ?3, ?3, ?4, 0, 0)",
        )
        .bind(format!("018bcfe5-6800-7000-8000-00000000000{n}"))
        .bind(email)
        .bind(username)
        .bind(&hash)
        .execute(&mut sql)
        .await
        .expect("an account of an older release");
    }
    let doctor = async || fleet.command(&["doctor"], &[]).await.stdout;
    let before = doctor().await;
    assert!(before.contains("4 names of an older release have no canonical form yet"), "{before}");
    let migrated = fleet.command(&["migrate"], &[]).await.expect_code(0).stdout;
    assert!(migrated.contains("\"shared\":1") && migrated.contains("doctor"), "{migrated}");
    let after = doctor().await;
    let said = "email of 018bcfe5-6800-7000-8000-000000000001 is another spelling of that of \
                018bcfe5-6800-7000-8000-000000000002";
    assert!(after.contains(said), "{after}");
    for (email, username) in
        [("σίσυφος@example.org", "sisyphos"), ("σίσυφοσ@example.org", "tantalos"), ("ΣΊΣΥΦΟΣ@example.org", "sisyphos")]
    {
        let signed_in = fleet[0].try_login(email, PASSWORD).send().await.expect(200);
        assert_eq!(signed_in.text_at("username"), username, "{email}");
    }
    let body = json!({ "email": "Σίσυφοσ@example.org", "username": "new", "password": PASSWORD });
    fleet[0].post("/auth/register").json(&body).send().await.expect_problem(409, "email_taken");
}
