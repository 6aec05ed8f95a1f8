//! Opening a database: what is refused, with which message, and with which permissions files are created.
use std::time::Duration;

use sqlx::Connection as _;

use super::*;

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
async fn open_waits_for_a_process_that_has_the_database_for_itself() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("users.db");
    migrate(&path).await.unwrap();
    let mut other = foreign(&path).await;
    execute(&mut other, "PRAGMA locking_mode = EXCLUSIVE").await;
    execute(&mut other, "BEGIN IMMEDIATE").await;
    execute(&mut other, "COMMIT").await;

    let opening = tokio::spawn(async move { SqliteUsers::open(&path, Clock::system()).await });
    // Longer than an operation would wait.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!opening.is_finished(), "{:?}", opening.await);
    other.close().await.unwrap();
    opening.await.unwrap().unwrap().create(new("ada@example.org", None)).await.unwrap();
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

/// Root may write everywhere, so a thread that opens the database as root gives up root first.
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

    // Anybody may write to the directory, nobody to the file.
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
