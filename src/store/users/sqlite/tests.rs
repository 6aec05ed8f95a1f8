//! What is SQLite's own: on real files, with interference by other connections, threads and processes.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::future::join_all;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, SqlSafeStr};
use tempfile::TempDir;

use super::*;
use crate::store::users::MigrationReport;
use crate::store::users::names::{self, Unusual, UnusualNames, Why};

/// The contract: 503 within 2 s.
const BOUND: Duration = Duration::from_secs(2);

struct Bench {
    dir: TempDir,
    store: SqliteUsers,
}

impl Bench {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        migrate(&dir.path().join("users.db")).await.unwrap();
        let store = open(&dir.path().join("users.db")).await;
        Self { dir, store }
    }

    fn path(&self) -> PathBuf {
        self.file("users.db")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn create(&self, email: &str) -> Result<User, UserStoreError> {
        self.store.create(new(email, None)).await
    }
}

async fn open(path: &Path) -> SqliteUsers {
    SqliteUsers::open(path, Clock::system()).await.unwrap()
}

async fn foreign(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

async fn execute(db: &mut SqliteConnection, statement: &'static str) {
    sqlx::query(statement).execute(db).await.unwrap();
}

fn new(email: &str, username: Option<&str>) -> NewUser {
    NewUser { email: email.into(), username: username.map(Into::into), password_hash: "$argon2id$fake".into() }
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
fn unavailable<T: fmt::Debug>(result: Result<T, UserStoreError>) -> String {
    match result {
        Err(error @ UserStoreError::Unavailable(_)) => error.to_string(),
        other => panic!("expected Unavailable, got {other:?}"),
    }
}

// Locks.

#[tokio::test]
async fn a_locked_database_is_unavailable_in_time_and_works_again_at_once() {
    let bench = Bench::new().await;
    let user = bench.create("ada@example.org").await.unwrap();
    let mut other = foreign(&bench.path()).await;
    execute(&mut other, "BEGIN IMMEDIATE").await;

    let started = Instant::now();
    // More writers than one deadline could serve one after the other; one caller loses patience of its own.
    let emails: Vec<_> = (0..8).map(|n| format!("u{n}@example.org")).collect();
    let impatient = tokio::time::timeout(Duration::from_millis(100), bench.create("impatient@example.org"));
    let (results, impatient) = tokio::join!(join_all(emails.iter().map(|email| bench.create(email))), impatient);
    assert!(started.elapsed() < BOUND, "{:?}", started.elapsed());
    assert!(impatient.is_err());
    for result in results {
        unavailable(result);
    }
    // Readers don't mind a writer.
    assert!(bench.store.by_id(user.id).await.unwrap().is_some());
    bench.store.ping().await.unwrap();

    execute(&mut other, "COMMIT").await;
    let started = Instant::now();
    bench.create("bob@example.org").await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(bench.store.list(None, 100).await.unwrap().len(), 2, "a refused write came through");
}

#[tokio::test]
async fn a_write_outlives_the_request_that_began_it() {
    let bench = Bench::new().await;
    let user = bench.create("ada@example.org").await.unwrap();
    // Dropped at whatever point: the connection must stay usable and the row whole.
    for micros in (0..3000).step_by(150) {
        let epoch = bench.store.current_epoch(user.id).await.unwrap().unwrap();
        let change = bench.store.disable(user.id, epoch);
        tokio::time::timeout(Duration::from_micros(micros), change).await.ok();
        bench.store.enable(user.id).await.unwrap();
    }
    let after = bench.store.by_id(user.id).await.unwrap().unwrap();
    assert!(after.disabled_at.is_none());
}

/// As a full disk does: SQLite ends the transaction on its own account.
#[tokio::test]
async fn a_transaction_that_sqlite_rolled_back_itself_does_not_spoil_the_next() {
    let bench = Bench::new().await;
    let mut other = foreign(&bench.path()).await;
    let trigger = "CREATE TRIGGER full BEFORE INSERT ON users WHEN NEW.username = 'big' \
                   BEGIN SELECT RAISE(ROLLBACK, 'disk full'); END";
    execute(&mut other, trigger).await;
    for n in 0..3 {
        assert!(unavailable(bench.create("big@example.org").await).contains("disk full"));
        bench.create(&format!("small{n}@example.org")).await.unwrap();
    }
}

// Files that go away.

#[tokio::test]
async fn a_moved_database_is_unavailable_until_it_is_back() {
    let bench = Bench::new().await;
    let user = bench.create("ada@example.org").await.unwrap();
    fs::rename(bench.path(), bench.file("elsewhere.db")).unwrap();
    assert!(unavailable(bench.create("bob@example.org").await).contains("there is no database at"));
    unavailable(bench.store.by_id(user.id).await);
    unavailable(bench.store.ping().await);
    assert!(!bench.path().exists(), "an empty database was made");
    fs::rename(bench.file("elsewhere.db"), bench.path()).unwrap();
    assert!(bench.store.by_id(user.id).await.unwrap().is_some());
    bench.create("bob@example.org").await.unwrap();
}

#[tokio::test]
async fn a_deleted_database_stays_unavailable_and_migrate_refuses_to_build_on_its_journal() {
    let bench = Bench::new().await;
    bench.create("ada@example.org").await.unwrap();
    fs::remove_file(bench.path()).unwrap();
    unavailable(bench.create("bob@example.org").await);
    let refused = migrate(&bench.path()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Leftover { .. }), "{refused}");
    assert!(refused.to_string().contains("-wal is left over"), "{refused}");

    for name in ["users.db-wal", "users.db-shm"] {
        fs::remove_file(bench.file(name)).unwrap();
    }
    unavailable(bench.store.ping().await);
    assert!(migrate(&bench.path()).await.unwrap().created);
    bench.store.ping().await.unwrap();
    assert!(bench.store.list(None, 10).await.unwrap().is_empty());
    bench.create("bob@example.org").await.unwrap();
}

/// A backup moved over the live file, as an operator in a hurry does, with three replicas running and the old journal
/// full of pages that must not get into the new file.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_replaced_database_is_opened_anew_without_the_old_journal() {
    let bench = Bench::new().await;
    let stores = [bench.store.clone(), open(&bench.path()).await, open(&bench.path()).await];
    bench.create("before@example.org").await.unwrap();
    let mut live = foreign(&bench.path()).await;
    sqlx::query("VACUUM INTO ?1").bind(bench.file("backup.db").to_str()).execute(&mut live).await.unwrap();
    live.close().await.unwrap();
    for n in 0..50 {
        bench.create(&format!("lost{n}@example.org")).await.unwrap();
    }
    fs::rename(bench.path(), bench.file("old.db")).unwrap();
    fs::rename(bench.file("backup.db"), bench.path()).unwrap();

    let attempts = (0..30).map(|n: usize| {
        let store = stores[n % 3].clone();
        tokio::spawn(async move { store.create(new(&format!("after{n}@example.org"), None)).await.is_ok() })
    });
    let created = join_all(attempts).await.into_iter().filter(|ok| *ok.as_ref().unwrap()).count();
    for (n, store) in stores.iter().enumerate() {
        store.create(new(&format!("last{n}@example.org"), None)).await.unwrap();
    }
    for store in &stores {
        let emails: Vec<_> = store.list(None, 1000).await.unwrap().into_iter().map(|user| user.email).collect();
        assert!(emails.contains(&"before@example.org".to_owned()));
        assert!(!emails.iter().any(|email| email.starts_with("lost")), "{emails:?}");
        assert!(emails.len() >= 1 + created + 3, "acknowledged users are missing: {created} and {emails:?}");
    }
    assert_sound(&bench.path()).await;
    // What was moved away is whole as well.
    let mut old = foreign(&bench.file("old.db")).await;
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM users").fetch_one(&mut old).await.unwrap();
    assert_eq!(kept, 51);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn users_in_a_journal_that_was_deleted_are_saved() {
    for removed in [&["users.db-wal", "users.db-shm"][..], &["users.db-wal"], &["users.db-shm"]] {
        let bench = Bench::new().await;
        let stores = [bench.store.clone(), open(&bench.path()).await, open(&bench.path()).await];
        for n in 0..9 {
            stores[n % 3].create(new(&format!("before{n}@example.org"), None)).await.unwrap();
        }
        for name in removed {
            fs::remove_file(bench.file(name)).unwrap();
        }
        let attempts = (0..30).map(|n: usize| {
            let store = stores[n % 3].clone();
            tokio::spawn(async move { store.create(new(&format!("after{n}@example.org"), None)).await.is_ok() })
        });
        let created = join_all(attempts).await.into_iter().filter(|ok| *ok.as_ref().unwrap()).count();
        for store in &stores {
            let users = store.list(None, 1000).await.unwrap().len();
            assert!(users >= 9 + created, "{removed:?}: {created} acknowledged, {users} there");
        }
        stores[1].create(new("last@example.org", None)).await.unwrap();
        assert_sound(&bench.path()).await;
        // The journal that is open now is the one that others find.
        let mut other = foreign(&bench.path()).await;
        let last: i64 = sqlx::query_scalar("SELECT count(*) FROM users WHERE email = 'last@example.org'")
            .fetch_one(&mut other)
            .await
            .unwrap();
        assert_eq!(last, 1, "{removed:?}");
    }
}

#[tokio::test]
async fn a_replacement_that_is_no_database_is_refused_until_it_is_one() {
    let bench = Bench::new().await;
    let mut live = foreign(&bench.path()).await;
    sqlx::query("VACUUM INTO ?1").bind(bench.file("backup.db").to_str()).execute(&mut live).await.unwrap();
    live.close().await.unwrap();
    fs::write(bench.file("garbage"), "no database at all, only text".repeat(100)).unwrap();
    fs::rename(bench.file("garbage"), bench.path()).unwrap();
    unavailable(bench.create("ada@example.org").await);
    fs::File::create(bench.file("empty")).unwrap();
    fs::rename(bench.file("empty"), bench.path()).unwrap();
    assert!(unavailable(bench.create("ada@example.org").await).contains("authfleet migrate"));
    fs::rename(bench.file("backup.db"), bench.path()).unwrap();
    bench.create("ada@example.org").await.unwrap();
}

async fn assert_sound(path: &Path) {
    let mut db = foreign(path).await;
    let verdict: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut db).await.unwrap();
    assert_eq!(verdict, "ok");
}

// Opening.

#[tokio::test]
async fn open_says_what_to_do() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("users.db");
    let refused = async || SqliteUsers::open(&path, Clock::system()).await.unwrap_err().to_string();
    let message = refused().await;
    assert!(message.contains("there is no database at") && message.contains("authfleet migrate"), "{message}");
    assert!(names_in(dir.path()).is_empty(), "open created something");

    fs::File::create(&path).unwrap();
    let message = refused().await;
    assert!(message.contains("has no tables yet: run `authfleet migrate`"), "{message}");

    fs::write(&path, "text".repeat(500)).unwrap();
    assert!(refused().await.contains("file is not a database"));
}

#[tokio::test]
async fn open_puts_a_restored_backup_back_into_wal_mode() {
    let bench = Bench::new().await;
    let mut live = foreign(&bench.path()).await;
    sqlx::query("VACUUM INTO ?1").bind(bench.file("backup.db").to_str()).execute(&mut live).await.unwrap();
    let store = open(&bench.file("backup.db")).await;
    let mut other = foreign(&bench.file("backup.db")).await;
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut other).await.unwrap();
    assert_eq!(mode, "wal");
    store.create(new("ada@example.org", None)).await.unwrap();
}

/// On a thread of its own that gives up root, where tests run as root: root may write everywhere.
#[test]
fn what_may_not_be_written_is_refused_by_name() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("users.db");
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime().block_on(migrate(&path)).unwrap();
    let refused = || {
        let path = path.clone();
        let attempt = move || {
            if rustix::process::getuid().is_root() {
                let nobody = rustix::process::Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            runtime().block_on(SqliteUsers::open(&path, Clock::system())).unwrap_err().to_string()
        };
        std::thread::spawn(attempt).join().unwrap()
    };
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let message = refused();
    assert!(message.contains("may not read and write") && !message.contains("users.db"), "{message}");

    // Anybody may write the directory, nobody the file.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let message = refused();
    assert!(message.contains("may not read and write") && message.contains("users.db"), "{message}");
}

#[tokio::test]
async fn only_the_owner_can_read_the_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let bench = Bench::new().await;
    for name in names_in(bench.dir.path()) {
        let mode = fs::metadata(bench.file(&name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_symbolic_link_to_the_database_works_like_the_database() {
    let bench = Bench::new().await;
    fs::create_dir(bench.file("links")).unwrap();
    let link = bench.file("links/users.db");
    std::os::unix::fs::symlink(bench.path(), &link).unwrap();
    let store = open(&link).await;
    store.create(new("ada@example.org", None)).await.unwrap();
    assert!(matches!(bench.create("ada@example.org").await, Err(UserStoreError::EmailTaken)));
    assert_eq!(names_in(&bench.file("links")), ["users.db"]);
}

/// As the release before canonical names made them, or one that still runs does: by its rule, which was NFKC in lower
/// case without trimming.
async fn insert_as_before(db: &mut SqliteConnection, age: u32, email: &str, username: &str) -> Uuid {
    use unicode_normalization::UnicodeNormalization as _;
    let key = |name: &str| name.nfkc().collect::<String>().to_lowercase().nfkc().collect::<String>();
    let id = id_at(Timestamp::from_second(1_700_000_000 - i64::from(age)).unwrap()).unwrap();
    sqlx::query(
        "INSERT INTO users (id, email, email_key, username, username_key, password_hash, created_at, updated_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, 'x', 0, 0)",
    )
    .bind(id.to_string())
    .bind(email)
    .bind(key(email))
    .bind(username)
    .bind(key(username))
    .execute(db)
    .await
    .unwrap();
    id
}

#[tokio::test]
async fn accounts_of_the_release_before_keep_their_names_and_share_none() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("users.db");
    let before = Migrator::with_migrations(schema::embedded().migrations[..1].to_vec());
    schema::migrate_with(&path, before).await.unwrap();
    let mut db = foreign(&path).await;
    let mut insert = async |age, email, username| insert_as_before(&mut db, age, email, username).await;
    // The younger one is spelt in the canonical way; the oldest of three that aren't; one with invisible characters.
    let older = insert(9, "σίσυφος@example.org", "Straße").await;
    let younger = insert(8, "σίσυφοσ@example.org", "strasse").await;
    let unicode = insert(7, "u@bücher.example", "u1").await;
    let punycode = insert(6, "u@xn--bcher-kva.example", "u2").await;
    let [sharp, capital] = [insert(5, "ß@example.org", "groß").await, insert(4, "ẞß@example.org", "groẞ\u{df}").await];
    let hidden = insert(3, "ada@example.org", "ada\u{fe0f}").await;
    let plain = insert(2, "ada@example.net", "ada").await;

    let report = migrate(&path).await.unwrap();
    assert_eq!(report.applied, [2]);
    let unusual = |field, user_id, why| Unusual { user_id, field, why };
    assert_eq!(
        report.unusual.first,
        [
            unusual("email", older, Why::SharedWith(younger)),
            unusual("username", older, Why::SharedWith(younger)),
            unusual("email", unicode, Why::SharedWith(punycode)),
            unusual("username", hidden, Why::Refused(names::RefusedName::Invisible)),
        ]
    );
    assert_eq!((report.unusual.shared, report.unusual.refused, report.unusual.pending), (3, 1, 0));
    assert_eq!(report.named, 16 - 4);

    let store = open(&path).await;
    let found = async |name: &str| store.by_login(name).await.unwrap().map(|user| user.id);
    // By every spelling that found an account before, that account; by any other, the one that has the name.
    for (name, id) in [
        ("σίσυφος@example.org", older),
        ("Σίσυφος@EXAMPLE.org", older),
        ("Straße", older),
        ("σίσυφοσ@example.org", younger),
        ("STRASSE", younger),
        ("u@BÜCHER.example", unicode),
        ("U@xn--bcher-kva.example", punycode),
        ("ß@example.org", sharp),
        ("SS@example.org", sharp),
        ("grosS", sharp),
        ("ssss@example.org", capital),
        ("ADA\u{fe0f}", hidden),
        (" ada", plain),
    ] {
        assert_eq!(found(name).await, Some(id), "{name}");
    }
    // Nobody new gets any of these names.
    for email in ["ΣΊΣΥΦΟΣ@example.org", "u@bücher.example", "SS@example.org"] {
        let refused = store.create(new(email, Some("new"))).await;
        assert!(matches!(refused, Err(UserStoreError::EmailTaken)), "{email}: {refused:?}");
    }

    let again = migrate(&path).await.unwrap();
    assert_eq!((again.named, again.unusual), (0, report.unusual));
    // The name passes on when whoever has it goes.
    assert!(store.delete(younger, 1).await.unwrap());
    assert_eq!(migrate(&path).await.unwrap().named, 2);
    assert_eq!(found("strasse").await, Some(older));
    assert_sound(&path).await;
}

/// It doesn't know canonical names, and its accounts get them at the next `migrate`.
#[tokio::test]
async fn a_replica_of_the_release_before_goes_on_registering() {
    let bench = Bench::new().await;
    let mut old = foreign(&bench.path()).await;
    let id = insert_as_before(&mut old, 1, "bücher@example.org", "strasse").await;
    let found = async |name: &str| bench.store.by_login(name).await.unwrap().map(|user| user.id);
    for name in ["BÜCHER@example.org", "strasse", "Straße"] {
        assert_eq!(found(name).await, Some(id), "{name}");
    }
    for username in ["STRASSE", "straße"] {
        let refused = bench.store.create(new("new@example.org", Some(username))).await;
        assert!(matches!(refused, Err(UserStoreError::UsernameTaken)), "{username}: {refused:?}");
    }
    let found_by_survey = survey(&bench.path()).await.unwrap().unusual;
    assert_eq!((found_by_survey.pending, found_by_survey.shared), (2, 0));
    assert_eq!(migrate(&bench.path()).await.unwrap().named, 2);
    assert_eq!(survey(&bench.path()).await.unwrap().unusual, UnusualNames::default());

    // And finds those that were made by today's rule, by its own statement.
    bench.create("Ämter@example.org").await.unwrap();
    let by_key = sqlx::query_scalar::<_, String>("SELECT email FROM users WHERE email_key = 'ämter@example.org'");
    assert_eq!(by_key.fetch_one(&mut old).await.unwrap(), "Ämter@example.org");
}

#[tokio::test]
async fn names_of_thousands_of_accounts_are_filled_in_beside_a_running_server() {
    let bench = Bench::new().await;
    let mut db = foreign(&bench.path()).await;
    let many = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 2345) \
                INSERT INTO users (id, email, email_key, username, username_key, password_hash, created_at, updated_at) \
                SELECT printf('01900000-0000-7000-8000-%012x', n), n || '@x.org', n || '@x.org', n, n, 'x', 0, 0 FROM n";
    execute(&mut db, many).await;
    let path = bench.path();
    let (migrated, created) = tokio::join!(migrate(&path), async {
        let mut created = 0;
        for n in 0..20 {
            bench.create(&format!("new{n}@example.org")).await.unwrap();
            created += 1;
        }
        created
    });
    assert_eq!((migrated.unwrap().named, created), (2 * 2345, 20));
}

#[tokio::test]
async fn names_are_looked_up_by_index() {
    let bench = Bench::new().await;
    let mut db = foreign(&bench.path()).await;
    for field in ["email", "username"] {
        let statement = format!(
            "EXPLAIN QUERY PLAN SELECT id FROM users WHERE {field}_key IN (?1, ?2) OR {field}_canonical = ?2 \
             ORDER BY {field}_key = ?1 DESC, {field}_canonical = ?2 DESC LIMIT 1"
        );
        let plan: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(sqlx::AssertSqlSafe(statement)).bind("a").bind("b").fetch_all(&mut db).await.unwrap();
        assert!(plan.iter().all(|step| !step.3.starts_with("SCAN")), "{plan:?}");
    }
}

// Migrations.

fn with_migration(version: i64, statements: &'static str) -> Migrator {
    let mut migrations: Vec<_> = schema::embedded().migrations.to_vec();
    let kind = MigrationType::Simple;
    migrations.push(Migration::new(version, "test".into(), kind, statements.into_sql_str(), false));
    Migrator::with_migrations(migrations)
}

#[tokio::test]
async fn migrate_makes_the_directory_reports_and_is_repeatable() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("deep/er/users.db");
    let newest = schema::embedded().iter().last().unwrap().version;
    let first = migrate(&path).await.unwrap();
    assert!(first.created);
    assert_eq!((first.applied.last(), first.version), (Some(&newest), newest));
    let second = migrate(&path).await.unwrap();
    let unchanged = MigrationReport {
        created: false,
        applied: Vec::new(),
        version: newest,
        named: 0,
        unusual: UnusualNames::default(),
    };
    assert_eq!(second, unchanged);
}

#[test]
fn twelve_migrates_in_threads_leave_the_work_to_one() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("users.db");
    let threads: Vec<_> = (0..12)
        .map(|_| {
            let path = path.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            std::thread::spawn(move || runtime.block_on(migrate(&path)))
        })
        .collect();
    let reports: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect();
    assert_eq!(reports.iter().filter(|report| report.created).count(), 1);
    assert_eq!(reports.iter().filter(|report| !report.applied.is_empty()).count(), 1);
}

/// Runs the ignored test `child_<name>` of this file in a process of its own.
fn child(name: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let test = format!("{}::child_{name}", module_path!().split_once("::").unwrap().1);
    command.args(["--exact", &test, "--ignored", "--nocapture"]).env("AUTHFLEET_TEST_DATABASE", path);
    command
}

fn path_from_parent() -> PathBuf {
    std::env::var_os("AUTHFLEET_TEST_DATABASE").expect("to be started by another test").into()
}

#[test]
fn three_migrates_in_processes_leave_the_work_to_one() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("users.db");
    let spawn = || child("migrate", &path).stdout(Stdio::piped()).spawn().unwrap();
    let children = [spawn(), spawn(), spawn()];
    let outputs = children.map(|child| child.wait_with_output().unwrap());
    assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
    let created =
        outputs.iter().filter(|output| String::from_utf8_lossy(&output.stdout).contains("created: true")).count();
    assert_eq!(created, 1, "{outputs:?}");
}

#[tokio::test]
#[ignore = "a process of three_migrates_in_processes_leave_the_work_to_one"]
async fn child_migrate() {
    println!("{:?}", migrate(&path_from_parent()).await.unwrap());
}

/// A process that creates users until it is killed and prints those that were acknowledged.
struct Replica {
    process: std::process::Child,
    acknowledged: std::sync::mpsc::Receiver<String>,
}

impl Replica {
    fn start(path: &Path) -> Self {
        use std::io::{BufRead as _, BufReader};
        let mut process = child("create_for_ever", path).stdout(Stdio::piped()).spawn().unwrap();
        let (lines, acknowledged) = std::sync::mpsc::channel();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || {
            // A line that the kill cut short was not acknowledged.
            let whole = stdout.lines().map(Result::unwrap).filter(|line| line.ends_with("@example.org"));
            whole.for_each(|line| lines.send(line).unwrap_or_default());
        });
        Self { process, acknowledged }
    }

    /// Waits until it acknowledged `count` more.
    fn next(&self, count: usize) -> Vec<String> {
        let next = || self.acknowledged.recv_timeout(Duration::from_secs(30)).expect("an acknowledged user");
        (0..count).map(|_| next()).collect()
    }

    /// `kill -9`, and what was acknowledged until then.
    fn kill(mut self) -> Vec<String> {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.acknowledged.iter().collect()
    }
}

#[tokio::test]
#[ignore = "a process of other tests"]
async fn child_create_for_ever() {
    let store = open(&path_from_parent()).await;
    println!();
    loop {
        match store.create(new(&format!("{}@example.org", Uuid::now_v7()), None)).await {
            Ok(user) => println!("{}", user.email),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn assert_all_there(store: &SqliteUsers, acknowledged: &[String]) {
    for email in acknowledged {
        assert!(store.by_login(email).await.unwrap().is_some(), "{email} of {} is lost", acknowledged.len());
    }
}

#[tokio::test]
async fn an_acknowledged_user_survives_kill_9() {
    let bench = Bench::new().await;
    for _ in 0..3 {
        let replicas = [Replica::start(&bench.path()), Replica::start(&bench.path())];
        let mut acknowledged: Vec<_> = replicas.iter().flat_map(|replica| replica.next(20)).collect();
        acknowledged.extend(replicas.into_iter().flat_map(Replica::kill));
        assert_all_there(&bench.store, &acknowledged).await;
    }
    assert_sound(&bench.path()).await;
}

#[tokio::test]
async fn processes_go_on_after_the_database_was_replaced_under_them() {
    let bench = Bench::new().await;
    let replicas = [(); 3].map(|()| Replica::start(&bench.path()));
    for replica in &replicas {
        replica.next(20);
    }
    migrate(&bench.file("fresh.db")).await.unwrap();
    fs::rename(bench.file("fresh.db"), bench.path()).unwrap();
    let mut acknowledged = Vec::new();
    for replica in &replicas {
        // Until the first that is in the new file: those before it went with the old one.
        let mut email = replica.next(1).remove(0);
        while bench.store.by_login(&email).await.unwrap().is_none() {
            email = replica.next(1).remove(0);
        }
        acknowledged.extend(replica.next(20));
    }
    acknowledged.extend(replicas.into_iter().flat_map(Replica::kill));
    assert_all_there(&bench.store, &acknowledged).await;
    assert_sound(&bench.path()).await;
}

#[tokio::test]
async fn processes_go_on_after_the_journal_was_deleted_under_them() {
    for removed in [&["users.db-wal", "users.db-shm"][..], &["users.db-wal"], &["users.db-shm"]] {
        let bench = Bench::new().await;
        let replicas = [(); 3].map(|()| Replica::start(&bench.path()));
        let mut acknowledged: Vec<_> = replicas.iter().flat_map(|replica| replica.next(20)).collect();
        for name in removed {
            fs::remove_file(bench.file(name)).unwrap();
        }
        acknowledged.extend(replicas.iter().flat_map(|replica| replica.next(40)));
        acknowledged.extend(replicas.into_iter().flat_map(Replica::kill));
        assert_all_there(&bench.store, &acknowledged).await;
        assert_sound(&bench.path()).await;
    }
}

#[tokio::test]
async fn an_upgrade_keeps_users_and_a_running_replica_of_the_previous_release() {
    let bench = Bench::new().await;
    bench.create("ada@example.org").await.unwrap();
    let release = || with_migration(1000, "ALTER TABLE users ADD COLUMN locale TEXT");

    let mut db = foreign(&bench.path()).await;
    let older = schema::check(&bench.path(), &mut db, &release()).await.unwrap_err().to_string();
    assert!(older.contains("older schema, without migration 1000: run `authfleet migrate`"), "{older}");

    let report = schema::migrate_with(&bench.path(), release()).await.unwrap();
    assert_eq!((report.created, report.applied, report.version), (false, vec![1000], 1000));
    schema::check(&bench.path(), &mut db, &release()).await.unwrap();

    // The old binary: running, started again, and its `migrate` after a roll-back.
    assert!(bench.store.by_login("ada").await.unwrap().is_some());
    bench.create("bob@example.org").await.unwrap();
    open(&bench.path()).await.create(new("eve@example.org", None)).await.unwrap();
    assert_eq!(migrate(&bench.path()).await.unwrap().version, 1000);
}

#[tokio::test]
async fn a_schema_that_took_something_away_is_refused_by_older_binaries() {
    let bench = Bench::new().await;
    schema::migrate_with(&bench.path(), with_migration(1000, "PRAGMA user_version = 1000")).await.unwrap();
    for refused in [
        SqliteUsers::open(&bench.path(), Clock::system()).await.unwrap_err(),
        migrate(&bench.path()).await.unwrap_err(),
    ] {
        assert!(matches!(refused, OpenError::SchemaNewer { oldest: 1000, .. }), "{refused}");
    }
}

#[tokio::test]
async fn a_migration_that_fails_leaves_nothing_behind() {
    let bench = Bench::new().await;
    let broken = with_migration(1000, "CREATE TABLE half (id INTEGER) STRICT; INSERT INTO nowhere VALUES (1)");
    let failed = schema::migrate_with(&bench.path(), broken).await.unwrap_err();
    assert!(matches!(failed, OpenError::Migration { .. }), "{failed}");
    let fixed = with_migration(1000, "CREATE TABLE half (id INTEGER) STRICT");
    assert_eq!(schema::migrate_with(&bench.path(), fixed).await.unwrap().applied, [1000]);
}
