//! Locks and transactions.
use std::time::{Duration, Instant};

use futures::future::join_all;

use super::*;

/// The contract: 503 within 2 s.
const BOUND: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_locked_database_is_unavailable_in_time_and_works_again_at_once() {
    let bench = Bench::new().await;
    let user = bench.create("ada@example.org").await.unwrap();
    let mut other = foreign(&bench.path()).await;
    execute(&mut other, "BEGIN IMMEDIATE").await;

    let started = Instant::now();
    // More writers wait than one deadline allows to run one after the other. One caller gives up even earlier.
    let emails: Vec<_> = (0..8).map(|n| format!("u{n}@example.org")).collect();
    let impatient = tokio::time::timeout(Duration::from_millis(100), bench.create("impatient@example.org"));
    let (results, impatient) = tokio::join!(join_all(emails.iter().map(|email| bench.create(email))), impatient);
    assert!(started.elapsed() < BOUND, "{:?}", started.elapsed());
    assert!(impatient.is_err());
    for result in results {
        unavailable(result);
    }
    // A writer doesn't block readers.
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
    // Wherever the future is dropped, the connection must stay usable and the row complete.
    for micros in (0..3000).step_by(150) {
        let epoch = bench.store.current_epoch(user.id).await.unwrap().unwrap();
        let change = bench.store.disable(user.id, epoch);
        tokio::time::timeout(Duration::from_micros(micros), change).await.ok();
        bench.store.enable(user.id).await.unwrap();
    }
    let after = bench.store.by_id(user.id).await.unwrap().unwrap();
    assert!(after.disabled_at.is_none());
}

/// A full disk has the same effect: SQLite itself rolls the transaction back.
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
