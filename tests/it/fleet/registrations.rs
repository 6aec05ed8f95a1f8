//! Several clients register users at once while a test kills servers. Every acknowledged registration must be kept.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use tokio::task::JoinHandle;

use super::{Fleet, PASSWORD};

const CLIENTS: usize = 6;

/// Clients that register one new user after another, spread over the replicas, until [`Registrations::end`].
pub struct Registrations {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Registered>>,
}

/// What the clients were told.
#[derive(Default)]
pub struct Registered {
    /// The e-mail addresses whose registration was answered with 201.
    pub acknowledged: Vec<String>,
    /// How many requests got no answer, because the replica was killed.
    pub unanswered: usize,
}

impl Registrations {
    pub fn begin(fleet: &Fleet) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        // A reused connection would break with the replica, and be counted as unanswered once more.
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("an HTTP client");
        let addresses: Vec<_> = fleet.replicas().iter().map(|replica| replica.address().to_owned()).collect();
        let clients = (0..CLIENTS)
            .map(|n| {
                let url = format!("http://{}/auth/register", addresses[n % addresses.len()]);
                tokio::spawn(register_until(Arc::clone(&stop), http.clone(), url, n))
            })
            .collect();
        Self { stop, clients }
    }

    /// Lets every client finish its last request. Panics if one was answered with anything except 201 or 503.
    pub async fn end(self) -> Registered {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Registered::default();
        for client in join_all(self.clients).await {
            let client = client.expect("every answer was 201 or 503");
            all.acknowledged.extend(client.acknowledged);
            all.unanswered += client.unanswered;
        }
        all
    }
}

impl Registered {
    /// Fails the test unless every acknowledged user is in the database, and there were enough to be meaningful.
    pub async fn expect_kept(&self, fleet: &Fleet) {
        let kept = fleet.query("SELECT email FROM users").await;
        let acknowledged = self.acknowledged.len();
        let lost: Vec<_> = self.acknowledged.iter().filter(|email| !kept.contains(email)).collect();
        println!("{acknowledged} acknowledged, {} kept, {} lost", kept.len(), lost.len());
        assert!(acknowledged > 20, "only {acknowledged} registrations");
        assert!(lost.is_empty(), "of {acknowledged} acknowledged users lost: {lost:?}");
    }
}

async fn register_until(stop: Arc<AtomicBool>, http: reqwest::Client, url: String, client: usize) -> Registered {
    let mut registered = Registered::default();
    for i in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let email = format!("user-{client}-{i}@example.org");
        let body = json!({ "email": email, "password": PASSWORD });
        let Ok(response) = http.post(&url).json(&body).send().await else {
            registered.unanswered += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        match response.status().as_u16() {
            201 => registered.acknowledged.push(email),
            status => assert_eq!(status, 503),
        }
    }
    registered
}
