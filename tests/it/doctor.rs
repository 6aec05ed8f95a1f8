//! `authfleet doctor` finds what is wrong with a deployment, and reports nothing if all is well.
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::fleet::{Fleet, SECRET};

/// A secret that looks random enough for `doctor`.
const RANDOM: &str = "9f2d6c1be07a4853d4c0be127f3a96e59f";

/// Runs `doctor --json`. Returns the exit code and the status of each check.
async fn doctor(fleet: &Fleet, changes: &[(&str, &str)]) -> (Option<i32>, Value) {
    let finished = fleet.command(&["doctor", "--json"], changes).await;
    let report: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("checks").iter();
    let statuses = checks.map(|check| (check["name"].as_str().expect("a name").to_owned(), check["status"].clone()));
    assert!(!finished.stdout.contains(RANDOM) && !finished.stdout.contains(SECRET));
    (finished.code, statuses.collect())
}

#[tokio::test]
async fn the_doctor_finds_what_is_wrong() {
    let mut fleet = Fleet::start(0).await;
    let healthy = [("SESSION_SECRET", RANDOM), ("TRUSTED_PROXIES", "10.0.0.0/16"), ("COOKIE_SECURE", "true")];
    let strong = [healthy[0], healthy[1], healthy[2], ("ARGON2_MEMORY", ""), ("ARGON2_ITERATIONS", "")];
    let (code, found) = doctor(&fleet, &strong).await;
    assert_eq!(code, Some(0), "{found}");
    for name in [
        "configuration",
        "secrets",
        "secrets.files",
        "core_dumps",
        "cookie",
        "proxies",
        "database.sqlite",
        "database.journal",
        "database.schema",
        "database.names",
        "database.write",
        "database.file",
        "database.owner",
        "redis.ping",
        "redis.version",
        "redis.role",
        "redis.cluster",
        "redis.eviction",
        "redis.persistence",
        "redis.clock",
        "redis.permissions",
    ] {
        assert_eq!(found[name], "ok", "{name}: {found}");
    }
    assert_eq!(fleet.redis.keys("*"), Vec::<String>::new(), "the probe leaves nothing");
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/administration.md")).expect("a file");
    let (_, sample) = document.split_once("$ authfleet doctor\n").expect("the sample");
    let rows = sample.lines().take_while(|line| !line.starts_with("```")).map(|line| line.split_whitespace());
    let shown =
        rows.filter_map(|mut words| matches!(words.next(), Some("ok" | "FAIL")).then(|| words.next()).flatten());
    let known = found.as_object().expect("checks").keys().map(String::as_str);
    assert_eq!(shown.collect::<BTreeSet<_>>(), known.collect(), "the sample shows every check");

    let (code, found) = doctor(&fleet, &[("TRUSTED_PROXIES", "0.0.0.0/0"), ("SESSION_SECRET", &"x".repeat(40))]).await;
    assert_eq!(
        (code, &found["secrets"], &found["proxies"], &found["cookie"]),
        (Some(1), &json!("fail"), &json!("warn"), &json!("warn"))
    );
    assert_eq!(found["configuration"], "warn", "weak hashing");

    // Trusts a public network as proxies, and keeps a secret in a file that every user of the machine can read.
    let key = fleet.path().join("key");
    fs::write(&key, RANDOM).expect("a file");
    for (mode, expected) in [(0o644, "warn"), (0o640, "ok")] {
        fs::set_permissions(&key, Permissions::from_mode(mode)).expect("an own file");
        let file = ("SESSION_SECRET_FILE", key.to_str().expect("UTF-8"));
        let changes = [("SESSION_SECRET", ""), file, ("TRUSTED_PROXIES", "198.51.100.0/24")];
        let (_, found) = doctor(&fleet, &changes).await;
        assert_eq!((&found["secrets.files"], &found["proxies"]), (&json!(expected), &json!("warn")), "{mode:o}");
    }

    let set = |name: &str, value: &str| fleet.redis.run::<()>(&["CONFIG", "SET", name, value]);
    set("maxmemory-policy", "allkeys-lru");
    set("appendonly", "no");
    let (code, found) = doctor(&fleet, &strong).await;
    assert_eq!(
        (code, &found["redis.eviction"], &found["redis.persistence"]),
        (Some(0), &json!("warn"), &json!("warn"))
    );
    set("maxmemory", "100mb");
    let (code, found) = doctor(&fleet, &strong).await;
    assert_eq!((code, &found["redis.eviction"]), (Some(1), &json!("fail")));
    set("maxmemory-policy", "noeviction");
    set("appendonly", "yes");

    // The shipped ACL of the fleet's user passes, and one that lacks two commands fails.
    let rights = [
        "~session:*",
        "~user:*",
        "~throttle:*",
        "-@all",
        "+@read",
        "+@write",
        "+@connection",
        "+eval",
        "+evalsha",
        "+script|load",
        "+time",
        "-@dangerous",
        "+info",
    ];
    let acl = |user: &str, more: &[&str]| {
        let words = [&["ACL", "SETUSER", user, "reset", "on", ">pw"], &rights[..], more].concat();
        fleet.redis.run::<()>(&words);
        format!("{}?user={user}&pass=pw", fleet.redis.url())
    };
    let (bundled, lacking) = (acl("bundled", &[]), acl("lacking", &["-zadd", "-evalsha"]));
    let (code, found) = doctor(&fleet, &[&strong[..], &[("REDIS_URL", bundled.as_str())]].concat()).await;
    assert_eq!((code, &found["redis.permissions"]), (Some(0), &json!("ok")), "{found}");
    let (code, found) = doctor(&fleet, &[&strong[..], &[("REDIS_URL", lacking.as_str())]].concat()).await;
    assert_eq!((code, &found["redis.permissions"]), (Some(1), &json!("fail")), "{found}");

    fleet.redis.kill();
    let (code, found) = doctor(&fleet, &strong).await;
    assert_eq!((code, &found["redis"]), (Some(1), &json!("fail")));
    let (code, found) = doctor(&fleet, &[("DATABASE_URL", "sqlite://nowhere.db")]).await;
    assert_eq!((code, &found["database"]), (Some(1), &json!("fail")));
    let (code, found) = doctor(&fleet, &[("SESSION_SECRET", "short")]).await;
    assert_eq!((code, &found["configuration"]), (Some(2), &json!("fail")));
}

/// The tests run with Redis, and `make test-valkey` runs this one with Valkey, which reports the version of Redis that it
/// is compatible with, beside its own.
#[tokio::test]
async fn the_doctor_names_the_server_and_its_version() {
    let fleet = Fleet::start(0).await;
    let [redis, valkey] = ["redis_version", "valkey_version"].map(|name| fleet.redis.info(name));
    let expected = if valkey.is_empty() { redis } else { format!("Valkey {valkey}, compatible with Redis {redis}") };
    let report = fleet.command(&["doctor", "--json"], &[]).await.json();
    let checks = report["checks"].as_array().expect("checks").iter();
    let found: Vec<_> = checks.filter(|check| check["name"] == "redis.version").collect();
    assert!(found.len() == 1 && found[0]["status"] == "ok", "{found:?}");
    assert_eq!(found[0]["found"], expected.as_str(), "{found:?}");
}

#[tokio::test]
async fn the_doctor_looks_at_the_logo() {
    let fleet = Fleet::start(0).await;
    for (content, expected) in [("<svg/>", "ok"), ("GIF89a", "fail")] {
        fs::write(fleet.path().join("logo"), content).expect("a file");
        let (_, found) = doctor(&fleet, &[("BRAND_LOGO", "logo")]).await;
        assert_eq!(found["brand_logo"], expected, "{content}: {found}");
    }
}

#[tokio::test]
async fn the_doctor_reads_access_rules() {
    let fleet = Fleet::start(0).await;
    let rules = fleet.path().join("rules.toml");
    let settings = [
        ("COOKIE_SECURE", "true"),
        ("TRUSTED_PROXIES", "10.0.0.0/16"),
        ("PUBLIC_URL", "https://login.example.org"),
        ("PROTECTED_HOSTS", "app.example.org"),
        ("ACCESS_RULES", "rules.toml"),
    ];
    for (text, expected) in [("allow = \"signed-in\"", "ok"), ("allow = \"everybody\"", "fail")] {
        fs::write(&rules, format!("[[rule]]\n{text}\n")).expect("a file");
        let (_, found) = doctor(&fleet, &settings).await;
        assert_eq!(found["access_rules"], expected, "{text}: {found}");
    }
}
