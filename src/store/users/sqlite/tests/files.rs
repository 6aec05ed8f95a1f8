//! Database files and journals that are moved, replaced or deleted while replicas use them.
use futures::future::join_all;
use sqlx::Connection;

use super::*;

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

/// An operator moves a backup over the live file while three replicas run. The old journal is full of pages that must
/// not get into the new file.
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
    // The database that was moved away is complete as well.
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
        // The journal that the stores have open now is the one that other processes find.
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
