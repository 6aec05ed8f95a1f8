//! Listeners, accept loops, drain.
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics::{Gauge, gauge};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use crate::auth::Auth;
use crate::auth::password::{HashGate, PasswordPolicy};
use crate::auth::throttle::{self, Throttle};
use crate::auth::token::TokenKeys;
use crate::clock::Clock;
use crate::config::Config;
use crate::http::ops::{self, Ops};
use crate::http::{App, Peer, SessionCookie};
use crate::metrics::HTTP_CONNECTIONS;
use crate::store::Stores;
use crate::vitals;

/// A client that hasn't sent a whole request head by then is cut off; also how long an idle connection is kept. Proxies
/// must keep theirs for less, or they'll send into a closed one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Request heads larger than this are refused with 431.
const HEAD_LIMIT: usize = 32 * 1024;
/// After an accept failed (no descriptors left, say), the next is tried after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often histograms are drained; until then every observation is kept.
const METRICS_UPKEEP: Duration = Duration::from_secs(1);

/// What can go wrong before the server serves.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address can't be bound.
    #[error("{variable}={address}: {source}")]
    Bind {
        /// The variable that names the address.
        variable: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The users' database can't be used.
    #[error("DATABASE_URL: {0}")]
    Users(#[from] crate::store::users::OpenError),
    /// The threads that hash can't be started.
    #[error("HASH_CONCURRENCY: {0}")]
    Threads(io::Error),
    /// The address of Redis can't be read.
    #[error("REDIS_URL: {0}")]
    Sessions(#[from] crate::store::StoreError),
}

/// The two listeners.
#[derive(Debug)]
pub struct Listeners {
    /// The API.
    pub public: TcpListener,
    /// `/livez`, `/readyz`, `/metrics`.
    pub ops: TcpListener,
}

impl Listeners {
    /// Binds both addresses.
    ///
    /// # Errors
    ///
    /// [`StartError::Bind`], with the variable to change.
    pub async fn bind(config: &Config) -> Result<Self, StartError> {
        let bind = async |variable, address| {
            TcpListener::bind(address).await.map_err(|source| StartError::Bind { variable, address, source })
        };
        Ok(Self {
            public: bind("LISTEN_ADDR", config.listen_addr).await?,
            ops: bind("OPS_ADDR", config.ops_addr).await?,
        })
    }
}

/// Opens the stores and puts the application together.
///
/// # Errors
///
/// When the database can't be used or an address can't be read. A Redis that doesn't answer yet is no error: the
/// replica starts, isn't ready, and becomes so by itself.
pub async fn build(config: &Config, clock: Clock) -> Result<Arc<App>, StartError> {
    let stores = Stores::open(config, clock.clone())?;
    let users = stores.users().await?.clone();
    let Stores { sessions, throttle: failures, limits, .. } = stores;
    let throttle = Throttle::new(
        failures,
        throttle::Limits {
            per_account: config.throttle.per_account,
            per_address: config.throttle.per_address,
            registrations: config.throttle.registrations,
            window: config.throttle.window,
        },
    );
    let auth = Auth {
        users,
        sessions,
        gate: HashGate::start(&config.hashing).map_err(StartError::Threads)?,
        policy: PasswordPolicy::new(&config.password),
        throttle,
        keys: TokenKeys::new(&config.session.secrets),
        limits,
        clock: clock.clone(),
        replica: config.replica_id.clone(),
    };
    Ok(Arc::new(App {
        auth,
        cookie: SessionCookie::new(config.session.cookie_secure),
        trusted_proxies: config.trusted_proxies.clone(),
        served_by: config.replica_id.parse().expect("checked with the configuration"),
        clock,
        drain: CancellationToken::new(),
    }))
}

/// Serves until `stop` is cancelled, then drains: readiness fails and answers close their connections for
/// `drain_delay`, while balancers look elsewhere; then the listener closes, and requests in flight have
/// `drain_timeout` to finish. Says whether all of them did.
pub async fn run(
    app: Arc<App>,
    listeners: Listeners,
    metrics: metrics_exporter_prometheus::PrometheusHandle,
    config: &Config,
    stop: CancellationToken,
) -> bool {
    let process = metrics_process::Collector::default();
    process.describe();
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(METRICS_UPKEEP);
        loop {
            ticks.tick().await;
            upkeep.run_upkeep();
        }
    });

    let (closing, requests) = (CancellationToken::new(), TaskTracker::new());
    let open = gauge!(HTTP_CONNECTIONS);
    let routes = crate::http::router(Arc::clone(&app));
    let public = tokio::spawn(accept(listeners.public, routes, open, closing.clone(), requests.clone()));
    // The ops listener answers until the very end: somebody is watching the drain.
    let ops = ops::router(Ops { app: Arc::clone(&app), metrics, process });
    tokio::spawn(accept(listeners.ops, ops, Gauge::noop(), CancellationToken::new(), TaskTracker::new()));

    tokio::spawn(vitals::watch(Arc::clone(&app)));

    stop.cancelled().await;
    app.drain.cancel();
    vitals::drain_begins();
    // A replica alone has no balancer that would have to notice.
    let delay = if app.auth.sessions.kind() == "memory" { Duration::ZERO } else { config.drain_delay };
    tracing::info!(?delay, timeout = ?config.drain_timeout, "draining");
    tokio::time::sleep(delay).await;
    closing.cancel();
    drop(public.await);
    requests.close();
    let is_drained = tokio::time::timeout(config.drain_timeout, requests.wait()).await.is_ok();
    if !is_drained {
        tracing::warn!(connections = requests.len(), "requests were still in flight after DRAIN_TIMEOUT");
    }
    app.auth.gate.close().await;
    is_drained
}

/// Accepts connections until `closing` is cancelled; each then finishes the request under way and closes. `open` is how
/// many there are.
async fn accept(
    listener: TcpListener,
    router: Router,
    open: Gauge,
    closing: CancellationToken,
    connections: TaskTracker,
) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_LIMIT).pipeline_flush(true);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closing.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let counted = OpenConnection::begin(&open);
                let serving = serve(server.clone(), stream, Peer(peer), router.clone(), closing.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(counted);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Counted down when dropped, however the connection ends.
struct OpenConnection(Gauge);

impl OpenConnection {
    fn begin(open: &Gauge) -> Self {
        open.increment(1);
        Self(open.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}

async fn serve(server: http1::Builder, stream: TcpStream, peer: Peer, router: Router, closing: CancellationToken) {
    // Answers are small and whole: waiting for more to send would only delay them.
    drop(stream.set_nodelay(true));
    let service = TowerToHyperService::new(WithPeer { peer, router });
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    let outcome = tokio::select! {
        outcome = &mut connection => outcome,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, peer = %peer.0, "connection ended");
    }
}

/// Tells each request of a connection where it comes from.
#[derive(Clone)]
struct WithPeer {
    peer: Peer,
    router: Router,
}

impl Service<http::Request<hyper::body::Incoming>> for WithPeer {
    type Response = axum::response::Response;
    type Error = Infallible;
    type Future = <Router as Service<axum::extract::Request>>::Future;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<hyper::body::Incoming>) -> Self::Future {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(self.peer);
        self.router.call(request)
    }
}
