//! `authfleet users copy`: accounts move between SQLite and PostgreSQL unchanged, and sessions stay alive.
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::fleet::{Finished, Fleet, PASSWORD, PATIENTLY, postgres, within};

/// A fleet whose accounts are in SQLite, and an empty database on PostgreSQL beside it.
struct Move {
    fleet: Fleet,
    other: postgres::Empty,
}

impl Move {
    async fn prepare(replicas: usize) -> Self {
        let fleet = Fleet::start(replicas).await;
        let this = Self { fleet, other: postgres::empty().await };
        this.fleet.command(&["migrate"], &[("DATABASE_URL", &this.target())]).await.expect_code(0);
        this
    }

    fn source(&self) -> &str {
        self.fleet.database_url()
    }

    fn target(&self) -> String {
        self.other.shared.server.url(&self.other.name)
    }

    async fn copy(&self, more: &[&str]) -> Finished {
        let target = self.target();
        self.fleet
            .command(&[&["users", "copy", "--from", self.source(), "--to", &target, "--json"], more].concat(), &[])
            .await
    }

    async fn copied(&self, more: &[&str]) -> Value {
        self.copy(more).await.expect_code(0).json()
    }

    /// Runs one statement on PostgreSQL.
    async fn there(&self, statement: &str) -> Vec<String> {
        self.other.shared.server.query(&self.other.name, statement).await
    }
}

/// Adds accounts of every kind that a database can hold, including those of older releases.
async fn fill(fleet: &Fleet, count: u32) {
    let statement = format!(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) \
         INSERT INTO users (id, email, email_key, email_canonical, username, username_key, username_canonical, \
             password_hash, epoch, disabled_at, created_at, updated_at) \
         SELECT printf('%08x-0000-7000-8000-%012x', i * 40503, i), \
             printf('Zoë.%d@BÜCHER.example', i), printf('zoë.%d@bücher.example', i), \
             CASE WHEN i % 7 THEN printf('zoë.%d@xn--bcher-kva.example', i) END, \
             printf('Ζωή %d \\ \"quoted\" 🦀', i), printf('ζωή %d \\ \"quoted\" 🦀', i), \
             CASE WHEN i % 5 THEN printf('ζωή %d', i) END, \
             CASE i % 3 WHEN 0 THEN '$2b$12$abcdefghijklmnopqrstuv' ELSE printf('$argon2id$v=19$m=19456,t=2,p=1$salt$%d', i) END, \
             1 + i % 11, CASE i % 13 WHEN 0 THEN 1700000000000 + i END, 1600000000000 + i, 1650000000000 + i FROM n"
    );
    fleet.query(&statement).await;
}

/// The columns in the schema, read from the database so that new ones are compared too.
async fn columns(query: impl AsyncFn(&str) -> Vec<String>, of: &str) -> Vec<String> {
    let mut columns = query(of).await;
    columns.sort();
    columns
}
const SQLITE_COLUMNS: &str = "SELECT name FROM pragma_table_info('users')";
const POSTGRES_COLUMNS: &str = "SELECT column_name::text FROM information_schema.columns WHERE table_name = 'users'";

/// Every row with all of these columns.
async fn rows(query: impl AsyncFn(&str) -> Vec<String>, array: &str, columns: &[String]) -> Vec<Value> {
    let statement = format!("SELECT {array}({}) AS text FROM users ORDER BY id", columns.join(", "));
    let statement = if array == "json_array" { statement } else { statement.replace(") AS", ")::text AS") };
    let rows = query(&statement).await;
    rows.iter().map(|row| serde_json::from_str(row).expect("JSON")).collect()
}

#[tokio::test]
async fn accounts_move_to_postgres_and_back_with_every_column() {
    let mut this = Move::prepare(1).await;
    this.fleet[0].register("ada").await;
    this.fleet[0].kill();
    fill(&this.fleet, 10_000).await;

    let done = this.copied(&[]).await;
    assert_eq!((&done["accounts"], &done["unchanged"]), (&10_001.into(), &false.into()));
    let names = columns(async |statement| this.fleet.query(statement).await, SQLITE_COLUMNS).await;
    assert_eq!(columns(async |statement| this.there(statement).await, POSTGRES_COLUMNS).await, names);
    let here = rows(async |statement| this.fleet.query(statement).await, "json_array", &names).await;
    let there = rows(async |statement| this.there(statement).await, "json_build_array", &names).await;
    assert_eq!(here.len(), 10_001);
    assert!(here == there, "an account differs");

    let back = format!("sqlite://{}", this.fleet.path().join("back.db").display());
    let target = this.target();
    this.fleet.command(&["migrate"], &[("DATABASE_URL", &back)]).await.expect_code(0);
    let arguments = ["users", "copy", "--from", &target, "--to", &back, "--json"];
    let returned = this.fleet.command(&arguments, &[]).await.expect_code(0).json();
    assert_eq!(returned["checksum"], done["checksum"]);
    let again = ["users", "copy", "--from", this.source(), "--to", &back, "--json"];
    let same = this.fleet.command(&again, &[]).await.expect_code(0).json();
    assert_eq!((&same["unchanged"], &same["checksum"]), (&true.into(), &done["checksum"]));
}

#[tokio::test]
async fn a_copy_is_repeated_and_loses_nothing_unasked() {
    let mut this = Move::prepare(1).await;
    for name in ["ada", "bob", "eve"] {
        this.fleet[0].register(name).await;
    }
    this.fleet[0].kill();
    let sources = |done: &Value| [done["accounts"].clone(), done["accounts_before"].clone(), done["unchanged"].clone()];
    assert_eq!(sources(&this.copied(&[]).await), [Value::from(3), 0.into(), false.into()]);
    assert_eq!(sources(&this.copied(&[]).await), [Value::from(3), 3.into(), true.into()]);

    // The fleet continued with SQLite. Two names are swapped, which no sequence of single updates could copy.
    for statement in [
        "UPDATE users SET username_key = username_key || '!', username_canonical = NULL WHERE username IN ('ada', 'bob')",
        "UPDATE users SET username = CASE username WHEN 'ada' THEN 'bob' ELSE 'ada' END, epoch = epoch + 1 \
         WHERE username IN ('ada', 'bob')",
        "UPDATE users SET username_key = username, username_canonical = username WHERE username IN ('ada', 'bob')",
    ] {
        this.fleet.query(statement).await;
    }
    assert_eq!(sources(&this.copied(&[]).await), [Value::from(3), 3.into(), false.into()]);
    let names = "SELECT split_part(email, '@', 1) || ' is ' || username FROM users ORDER BY 1";
    assert_eq!(this.there(names).await, ["ada is bob", "bob is ada", "eve is eve"]);

    // Then it continued with PostgreSQL: a password was changed there, and somebody registered.
    this.there("UPDATE users SET epoch = epoch + 1, password_hash = 'new' WHERE username = 'eve'").await;
    this.there(
        "INSERT INTO users SELECT gen_random_uuid(), 'x' || email, 'x' || email_key, NULL, 'x' || username, \
         'x' || username_key, NULL, password_hash, epoch, disabled_at, created_at, updated_at FROM users",
    )
    .await;
    let refused = this.copy(&[]).await.expect_code(1);
    for words in ["3 that the source doesn't have", "1 with later changes", "--replace"] {
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    assert_eq!(this.there("SELECT count(*)::text FROM users").await, ["6"]);
    assert_eq!(this.there("SELECT password_hash FROM users WHERE username = 'eve'").await, ["new"]);

    assert_eq!(sources(&this.copied(&["--replace"]).await), [Value::from(3), 6.into(), false.into()]);
    assert_eq!(this.there(names).await, ["ada is bob", "bob is ada", "eve is eve"]);
    assert_ne!(this.there("SELECT password_hash FROM users WHERE username = 'eve'").await, ["new"]);
}

#[tokio::test]
async fn what_cannot_be_copied_is_said() {
    let this = Move::prepare(1).await;
    let target = this.target();
    let refused = async |arguments: &[&str], code: i32, words: &str| {
        let done = this.fleet.command(&[&["users", "copy"], arguments].concat(), &[]).await.expect_code(code);
        assert!(done.stderr.contains(words), "{arguments:?}: {}", done.stderr);
        assert!(!done.stderr.contains("hunter2"), "{arguments:?}: {}", done.stderr);
    };
    let source = this.source();
    // A replica is running.
    refused(&["--from", source, "--to", &target], 1, "--from: 1 connections of authfleet servers are open").await;
    refused(&["--from", &target, "--to", source], 1, "--to: 1 connections of authfleet servers are open").await;
    this.fleet[0].register("ada").await;
    this.copied(&["--while-running"]).await;
    assert_eq!(this.there("SELECT username FROM users").await, ["ada"]);

    refused(&["--from", source, "--to", source], 1, "the same database").await;
    refused(&["--from", source], 2, "--to").await;
    refused(&["--from", "mysql://u:hunter2@h/d", "--to", &target], 2, "--from: begins neither with").await;
    let nowhere = format!("sqlite://{}/nowhere.db", this.fleet.path().display());
    refused(&["--from", &nowhere, "--to", &target], 1, "--from: there is no database at").await;
    let empty = postgres::empty().await;
    let unmigrated = empty.shared.server.url(&empty.name);
    refused(&["--from", source, "--to", &unmigrated], 1, "has no tables yet: run `authfleet migrate`").await;
    let deaf = "postgres://u:hunter2@127.0.0.1:1/d?sslmode=disable";
    refused(&["--from", deaf, "--to", &target], 1, "--from: 127.0.0.1:1/d").await;

    let file = this.fleet.path().join("target-url");
    std::fs::write(&file, format!("{target}\n")).expect("a file");
    let file = file.to_str().expect("UTF-8");
    let done =
        this.fleet.command(&["users", "copy", "--from", source, "--to-file", file, "--while-running"], &[]).await;
    assert!(done.expect_code(0).stdout.contains("has the 1 accounts of"));
    refused(&["--from", source, "--to-file", "/nonexistent"], 2, "--to-file: ").await;
}

/// Before the copy is committed, the target's content is compared with what was read from the source.
#[tokio::test]
async fn a_target_that_changes_what_is_written_is_noticed() {
    let this = Move::prepare(1).await;
    this.fleet[0].register("ada").await;
    this.there(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN NEW.epoch = NEW.epoch + 1; RETURN NEW; END $$; \
         CREATE TRIGGER spoil BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION spoil()",
    )
    .await;
    let refused = this.copy(&["--while-running"]).await.expect_code(1);
    assert!(refused.stderr.contains("another checksum than the source"), "{}", refused.stderr);
    assert_eq!(this.there("SELECT count(*)::text FROM users").await, ["0"], "nothing was kept");
    this.there("DROP TRIGGER spoil ON users").await;
    this.copied(&["--while-running"]).await;
}

/// Starts the copy as a process of its own.
fn start_copy(directory: &Path, from: &str, to: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_authfleet"));
    command.args(["users", "copy", "--from", from, "--to", to]).current_dir(directory);
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the binary runs")
}

#[tokio::test]
async fn a_copy_that_is_killed_leaves_the_target_as_it_was() {
    let mut this = Move::prepare(1).await;
    this.fleet[0].register("ada").await;
    this.fleet[0].kill();
    this.copied(&[]).await;
    fill(&this.fleet, 20_000).await;
    let (from, to) = (this.source().to_owned(), this.target());

    let mut copy = start_copy(this.fleet.path(), &from, &to);
    let writing = format!(
        "SELECT count(*)::text FROM pg_stat_activity WHERE datname = '{}' AND query LIKE 'INSERT INTO users%'",
        this.other.name
    );
    within(PATIENTLY, "the copy writes", async || this.there(&writing).await == ["1"]).await;
    copy.kill().expect("it runs");
    copy.wait().expect("it ends");
    within(PATIENTLY, "its connection is gone", async || this.there(&writing).await == ["0"]).await;
    assert_eq!(this.there("SELECT username FROM users").await, ["ada"]);

    this.copied(&[]).await;
    assert_eq!(this.there("SELECT count(*)::text FROM users").await, ["20001"]);
}

/// The peak memory of a copy of `count` accounts, in KiB.
async fn memory_of(count: u32) -> u64 {
    let mut this = Move::prepare(1).await;
    this.fleet[0].kill();
    fill(&this.fleet, count).await;
    let mut copy = start_copy(this.fleet.path(), this.source(), &this.target());
    let mut most = 0;
    while copy.try_wait().expect("a child").is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", copy.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
        most = most.max(line.trim().trim_end_matches(" kB").parse().unwrap_or(0));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(this.there("SELECT count(*)::text FROM users").await, [count.to_string()]);
    most
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn memory_does_not_grow_with_the_number_of_accounts() {
    let (few, many) = (memory_of(3_000).await, memory_of(40_000).await);
    println!("{few} KiB for 3,000 accounts, {many} KiB for 40,000");
    assert!(few > 1_000 && many < few + 4_096, "{few} KiB for 3,000 accounts, {many} KiB for 40,000");
}

#[tokio::test]
async fn sessions_live_on_after_the_move() {
    let mut this = Move::prepare(2).await;
    let ada = this.fleet[0].register("ada").await;
    let bob = this.fleet[1].register("bob").await;
    let session = this.fleet[0].login(&ada).await;
    let revoked_before = this.fleet[0].login(&ada).await;
    let revoked_meanwhile = this.fleet[1].login(&bob).await;
    let disabled = this.fleet[1].login(&bob).await;
    this.fleet[0].post("/auth/logout").session(&revoked_before).send().await.expect(200);

    for replica in 0..2 {
        this.fleet[replica].kill();
    }
    this.copied(&[]).await;
    this.fleet.redis.run::<i64>(&["DEL", &revoked_meanwhile.key()]);
    let target = this.target();
    for replica in 0..2 {
        this.fleet[replica].start_with(&[("DATABASE_URL", &target)]).await;
    }
    for replica in this.fleet.replicas() {
        assert_eq!(replica.check(&session).await, 200);
        assert_eq!(replica.check(&disabled).await, 200);
        assert_eq!(replica.check(&revoked_before).await, 401);
        assert_eq!(replica.check(&revoked_meanwhile).await, 401);
        replica.try_login("ada", PASSWORD).send().await.expect(200);
    }

    // Revocation works as before, because the epochs were copied too.
    let new = serde_json::json!({ "current_password": PASSWORD, "new_password": "another horse, another battery" });
    this.fleet[1].post("/auth/password").session(&session).json(&new).send().await.expect(200);
    this.fleet.command(&["user", "disable", "bob"], &[("DATABASE_URL", &target)]).await.expect_code(0);
    for replica in this.fleet.replicas() {
        assert_eq!(replica.check(&session).await, 401);
        assert_eq!(replica.check(&disabled).await, 401);
        replica.try_login("ada", PASSWORD).send().await.expect(401);
    }
    assert_eq!(
        this.fleet.query("SELECT epoch || '' FROM users WHERE username = 'ada'").await,
        ["1"],
        "SQLite is left alone"
    );
}

/// Copies in both directions through the pooler that many people put in front of PostgreSQL.
#[tokio::test]
async fn a_copy_goes_through_a_pooler() {
    let mut this = Move::prepare(1).await;
    this.fleet[0].kill();
    fill(&this.fleet, 1_200).await;
    let pooler = postgres::Pooler::start(&this.other.shared.server, &this.other.name).await;
    let behind = pooler.url(&this.other.name);
    let arguments = ["users", "copy", "--from", this.source(), "--to", &behind];
    this.fleet.command(&arguments, &[]).await.expect_code(0);
    assert_eq!(this.there("SELECT count(*)::text FROM users").await, ["1200"]);
    let back = ["users", "copy", "--from", &behind, "--to", this.source()];
    let done = this.fleet.command(&back, &[]).await.expect_code(0);
    assert!(done.stdout.contains("has the 1200 accounts"), "{}", done.stdout);
}
