//! `authfleet import`: users of another system, from its SQLite file or from CSV, sign in with the passwords that they
//! had there.
use serde_json::{Value, json};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;

use crate::admin_cli::{audit, piped};
use crate::fleet::{Engine, Fleet, PASSWORD, Session};

#[tokio::test]
async fn users_of_a_predecessor_are_imported_and_sign_in() {
    for engine in Engine::each() {
        users_of_a_predecessor_are_imported_and_sign_in_on(engine).await;
    }
}

async fn users_of_a_predecessor_are_imported_and_sign_in_on(engine: Engine) {
    let fleet = Fleet::start_on(engine, 1).await;
    fleet[0].register("bob").await;
    let hash = bcrypt::hash(PASSWORD, 4).expect("a hash");
    let source = fleet.path().join("express.db");
    let mut db = SqliteConnectOptions::new().filename(&source).create_if_missing(true).connect().await.expect("opens");
    sqlx::raw_sql(
        "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT, username TEXT, password TEXT, created_at TEXT)",
    )
    .execute(&mut db)
    .await
    .expect("a table");
    for (email, username, hash, created_at) in [
        ("ada@example.org", Some("countess"), hash.as_str(), "2024-01-31 12:00:00"),
        ("grace@example.org", None, &hash, "1706702400000"),
        ("BOB@example.org", Some("bobby"), &hash, ""),
        ("no address", None, &hash, ""),
        ("eve@example.org", None, "$2b$31$abcdefghijklmnopqrstuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu", ""),
        ("plain@example.org", None, "hunter2-in-the-clear", ""),
        ("ada@EXAMPLE.org", None, &hash, ""),
        ("late@example.org", None, &hash, "2999-01-01"),
    ] {
        let insert = "INSERT INTO users (email, username, password, created_at) VALUES (?1, ?2, ?3, ?4)";
        let query = sqlx::query(insert).bind(email).bind(username).bind(hash).bind(created_at);
        query.execute(&mut db).await.expect("a row");
    }
    let source = source.to_str().expect("UTF-8");

    let counts =
        |report: &Value| ["read", "imported", "skipped", "failed"].map(|name| report[name].as_u64().unwrap_or(99));
    let dry = fleet.command(&["import", "--sqlite", source, "--dry-run", "--json"], &[]).await.expect_code(1);
    let report: Value = serde_json::from_str(&dry.stdout).expect("JSON");
    assert_eq!((counts(&report), &report["dry_run"]), ([8, 2, 1, 5], &json!(true)));
    assert!(audit(&dry).is_empty() && fleet.query("SELECT email FROM users").await.len() == 1);

    let done = fleet.command(&["import", "--sqlite", source, "--json"], &[]).await.expect_code(1);
    for content in [hash.as_str(), "$2b$31", "hunter2", "plain@example.org"] {
        assert!(!done.stdout.contains(content) && !done.stderr.contains(content), "content of a row was shown");
    }
    let report: Value = serde_json::from_str(&done.stdout).expect("JSON");
    assert_eq!(counts(&report), [8, 2, 1, 5]);
    let faults: Vec<_> =
        report["errors"].as_array().expect("errors").iter().map(|e| (e["line"].clone(), e["field"].clone())).collect();
    let expected = [(4, "email"), (5, "password_hash"), (6, "password_hash"), (7, "email"), (8, "created_at")];
    assert_eq!(faults, expected.map(|(line, field)| (json!(line), json!(field))));
    assert_eq!(audit(&done).iter().filter(|event| event["event"] == "account_imported").count(), 2);

    let again = fleet.command(&["import", "--sqlite", source, "--json"], &[]).await.expect_code(1).stdout;
    assert_eq!(counts(&serde_json::from_str(&again).expect("JSON")), [8, 0, 3, 5], "as after an interruption");

    // The id contains the time of creation. The old password works, and its hash is upgraded.
    let ada = Session::opened_by(&fleet[0].try_login("countess", PASSWORD).send().await);
    let profile = fleet[0].get("/profile").session(&ada).send().await.expect(200);
    assert_eq!(profile.json()["created_at"].as_str().map(|time| &time[..19]), Some("2024-01-31T12:00:00"));
    let hashes = fleet.query("SELECT password_hash FROM users WHERE email = 'ada@example.org'").await;
    assert!(hashes[0].starts_with("$argon2id$"), "upgraded");
    let hashes = fleet.query("SELECT password_hash FROM users WHERE email = 'grace@example.org'").await;
    assert_eq!(hashes[0], hash, "kept until then");
    fleet[0].try_login("grace", PASSWORD).send().await.expect(200);
    fleet[0].try_login("grace", "another password").send().await.expect_problem(401, "invalid_credentials");
}

#[tokio::test]
async fn users_are_imported_from_csv() {
    for engine in Engine::each() {
        users_are_imported_from_csv_on(engine).await;
    }
}

async fn users_are_imported_from_csv_on(engine: Engine) {
    let fleet = Fleet::start_on(engine, 1).await;
    let hash = bcrypt::hash(PASSWORD, 4).expect("a hash");
    let file = format!(
        "mail;full name;pw;since\nada@example.org;Ada Lovelace;{hash};\nshort;row\ngrace@example.org;Grace Hopper;{hash};2024-01-31\n"
    );
    let columns = ["import", "--csv", "-", "--delimiter", ";", "--email-column", "mail", "--password-column", "pw"];
    let with = |more: &[&'static str]| [&columns[..], more].concat();
    let names = ["--username-column", "full name"];
    let refused = piped(&fleet, &with(&names), &[], &file).expect_code(1);
    assert!(refused.stderr.contains("line 2: username: must not contain white space"), "{}", refused.stderr);
    let done = piped(&fleet, &with(&["--created-at-column", "since", "--json"]), &[], &file).expect_code(1);
    let report: Value = serde_json::from_str(&done.stdout).expect("JSON");
    assert_eq!(
        (&report["imported"], &report["failed"], &report["errors"][0]["line"]),
        (&json!(2), &json!(1), &json!(3))
    );
    fleet[0].try_login("ada@example.org", PASSWORD).send().await.expect(200);

    let missing = piped(&fleet, &["import", "--csv", "-", "--delimiter", ";"], &[], &file).expect_code(2);
    assert!(missing.stderr.contains("no column email; there are: mail, full name, pw, since"), "{}", missing.stderr);
    fleet.command(&["import", "--csv", "nowhere.csv"], &[]).await.expect_code(1);
    fleet.command(&["import"], &[]).await.expect_code(2);
}
