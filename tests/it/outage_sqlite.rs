//! SQLite is locked or gone: the right answers come in time, and users who are signed in notice nothing.
use sqlx::Connection as _;

use crate::fleet::{Fleet, PASSWORD, PROMPTLY, within};

#[tokio::test]
async fn database_locked() {
    let fleet = Fleet::start(2).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let mut other = fleet.sql().await;
    sqlx::query("BEGIN EXCLUSIVE").execute(&mut other).await.expect("locked");
    for replica in fleet.replicas() {
        replica.try_register("eve").send().await.expect_unavailable();
        // In WAL mode, a writer doesn't block readers.
        replica.try_login("ada", PASSWORD).send().await.expect(200);
        assert_eq!(replica.check(&session).await, 200);
        replica.ops("/readyz").await.expect(200);
    }
    sqlx::query("ROLLBACK").execute(&mut other).await.expect("unlocked");
    for (replica, name) in fleet.replicas().iter().zip(["eve", "mallory"]) {
        within(PROMPTLY, "registrations again", async || replica.try_register(name).send().await.status == 201).await;
    }
    other.close().await.expect("closed");
}

#[tokio::test]
async fn database_moved_away_and_back() {
    let fleet = Fleet::start(2).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let away = fleet.path().join("away");
    std::fs::create_dir(&away).expect("a directory");
    for parts in [["", "-wal", "-shm"].as_slice(), &[""]] {
        let home = |part: &&str| format!("{}{part}", fleet.database().display());
        let moved = |part: &&str| away.join(format!("users.db{part}"));
        for part in parts {
            std::fs::rename(home(part), moved(part)).expect("moved");
        }
        for replica in fleet.replicas() {
            replica.try_register("eve").send().await.expect_unavailable();
            replica.try_login("ada", PASSWORD).send().await.expect_unavailable();
            assert_eq!(replica.check(&session).await, 200);
            replica.ops("/livez").await.expect(200);
            let readiness = replica.ops("/readyz").await.expect(503).json();
            assert_eq!(
                (&readiness["users"]["status"], &readiness["sessions"]["status"]),
                (&"failing".into(), &"ok".into())
            );
            assert!(readiness["users"]["error"].is_string(), "{readiness}");
        }
        assert!(!fleet.database().exists(), "no replica made a new, empty one");
        for part in parts.iter().rev() {
            std::fs::rename(moved(part), home(part)).expect("moved back");
        }
        for replica in fleet.replicas() {
            let login = async || replica.try_login("ada", PASSWORD).send().await.status == 200;
            within(PROMPTLY, "logins again", login).await;
            replica.ops("/readyz").await.expect(200);
        }
    }
    for (replica, name) in fleet.replicas().iter().zip(["eve", "mallory"]) {
        replica.try_register(name).send().await.expect(201);
    }
    let integrity = fleet.query("PRAGMA integrity_check").await;
    assert_eq!(integrity, ["ok"]);
    let names = fleet.query("SELECT username FROM users ORDER BY id").await;
    assert_eq!(names, ["ada", "eve", "mallory"], "and nobody was lost");
}
