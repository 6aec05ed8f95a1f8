//! Watches what clients see while something changes: one client per replica sends requests all the time.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::client::Session;
use super::{Fleet, PROMPTLY};

/// Clients that check a session, one per replica.
pub struct Watch {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Seen>>>,
}

/// One answer.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub begin: Instant,
    pub end: Instant,
    pub status: u16,
}

impl Watch {
    pub fn over(fleet: &Fleet, session: &Session) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = fleet.replicas().iter().map(|replica| {
            let (check, stop) = (replica.checker(session), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut seen = Vec::new();
                loop {
                    // The last request is sent after somebody has asked for what was seen.
                    let is_last = stop.load(Ordering::Relaxed);
                    let begin = Instant::now();
                    let status = check().send().await.status;
                    seen.push(Seen { begin, end: Instant::now(), status });
                    if is_last {
                        break seen;
                    }
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            })
        });
        let clients = clients.collect();
        Self { stop, clients }
    }

    /// What each client has seen so far. Fails the test if an answer was neither `right` nor 503, or came too late.
    pub async fn expect(self, right: u16) -> Vec<Vec<Seen>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for client in self.clients {
            let seen = client.await.expect("no panic");
            for answer in &seen {
                assert!(answer.status == right || answer.status == 503, "{} where {right} is right", answer.status);
                assert!(answer.end - answer.begin < PROMPTLY, "{:?}", answer.end - answer.begin);
            }
            assert!(seen.last().is_some_and(|last| last.status == right), "it ended well");
            all.push(seen);
        }
        all
    }
}

/// When the client that waited longest got its first right answer to a request sent after `since`.
pub fn right_again(seen: &[Vec<Seen>], right: u16, since: Instant) -> Instant {
    let first = |seen: &Vec<Seen>| {
        let later = seen.iter().filter(|answer| answer.begin > since && answer.status == right);
        later.map(|answer| answer.end).next().expect("a right answer")
    };
    seen.iter().map(first).max().expect("a replica")
}
