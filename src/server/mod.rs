//! Listeners, accept loops, drain.
mod connections;
mod write_timeout;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::gauge;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connections::{Acceptor, Places};
use crate::auth::password::{HashGate, PasswordPolicy};
use crate::auth::rules::{AccessRules, RulesError};
use crate::auth::target::Targets;
use crate::auth::throttle::{self, Throttle};
use crate::auth::token::TokenKeys;
use crate::auth::{Auth, Flows};
use crate::clock::Clock;
use crate::config::Config;
use crate::gauges;
use crate::http::ops::{self, Ops};
use crate::http::verify::{FrontDoor, HostCookie};
use crate::http::{App, Brand, BrandError, SessionCookie};
use crate::metrics::{HTTP_CONNECTIONS, HTTP_CONNECTIONS_LIMIT};
use crate::store::Stores;

/// Connections that the ops listener serves at once, for orchestrators and Prometheus. They are counted apart from the
/// public ones, so that the replica can be watched while those are used up.
const OPS_CONNECTIONS: usize = 64;
/// File descriptors that the process needs besides its connections: for databases, Redis, logs.
const OTHER_FILES: usize = 128;
/// How often the recorder sorts observations into buckets. Until then it keeps each one.
const METRICS_UPKEEP: Duration = Duration::from_secs(1);

/// Why the server can't start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("{variable}={address}: {source}")]
    Bind { variable: &'static str, address: SocketAddr, source: io::Error },
    #[error("DATABASE_URL: {0}")]
    Users(#[from] crate::store::users::OpenError),
    #[error("HASH_CONCURRENCY: {0}")]
    Threads(io::Error),
    #[error("ACCESS_RULES: {0}")]
    Rules(#[from] RulesError),
    #[error("BRAND_LOGO: {0}")]
    Brand(#[from] BrandError),
    #[error("{0}")]
    Sessions(#[from] crate::store::StoreError),
}

#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) public: TcpListener,
    /// `/livez`, `/readyz`, `/metrics`.
    pub(crate) ops: TcpListener,
}

impl Listeners {
    /// Binds both addresses. An error names the variable to change.
    pub(crate) async fn bind(config: &Config) -> Result<Self, StartError> {
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
/// Fails if the database can't be used or an address can't be parsed. If Redis doesn't answer yet, the replica starts
/// anyway, and becomes ready by itself once Redis answers.
pub(crate) async fn build(config: &Config, clock: Clock) -> Result<Arc<App>, StartError> {
    let stores = Stores::open(config, clock.clone())?;
    let users = stores.users().await?.clone();
    let Stores { sessions, throttle: failures, limits, .. } = stores;
    let throttle = Throttle::new(
        failures,
        throttle::Limits {
            per_account: config.throttle.per_account,
            per_address: config.throttle.per_address,
            attempts_per_account: config.throttle.attempts_per_account,
            attempts_per_address: config.throttle.attempts_per_address,
            registrations: config.throttle.registrations,
            window: config.throttle.window,
        },
    );
    let auth = Auth {
        users,
        sessions,
        gate: HashGate::start(&config.hashing).map_err(StartError::Threads)?,
        flows: Flows::default(),
        policy: PasswordPolicy::new(&config.password, &config.pages.brand_name),
        registration: config.pages.registration,
        throttle,
        keys: TokenKeys::new(&config.session.secrets),
        limits,
        format: config.session.format,
        clock: clock.clone(),
        replica: config.replica_id.clone(),
    };
    Ok(Arc::new(App {
        auth,
        cookie: SessionCookie::new(config.session.cookie_secure, config.forward_auth.cookie_domain.as_deref()),
        front_door: front_door(config)?,
        brand: Brand::open(&config.pages)?,
        trusted_proxies: config.trusted_proxies.clone(),
        served_by: config.replica_id.parse().expect("checked with the configuration"),
        api_docs: config.api_docs,
        clock,
        drain: CancellationToken::new(),
    }))
}

fn front_door(config: &Config) -> Result<Option<FrontDoor>, StartError> {
    let forward_auth = &config.forward_auth;
    let Some(targets) = Targets::of(forward_auth) else { return Ok(None) };
    Ok(Some(FrontDoor {
        rules: AccessRules::open(forward_auth.access_rules.as_deref(), targets.protected())?,
        targets,
        shares_cookie: forward_auth.cookie_domain.is_some(),
        cookie: HostCookie::new(config.session.cookie_secure),
    }))
}

/// Serves until `stop` is cancelled, then drains. For `drain_delay`, readiness fails and answers close their
/// connections, so that balancers choose other replicas. Then the listener closes, and requests in flight have
/// `drain_timeout` to finish, including those whose clients have hung up. Returns whether all of them finished.
pub(crate) async fn run(
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
    let limit = affordable(config.max_connections);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    gauge!(HTTP_CONNECTIONS_LIMIT).set(limit as f64);
    let public = Acceptor {
        router: crate::http::router(Arc::clone(&app)),
        places: Places::counted(limit, gauge!(HTTP_CONNECTIONS)),
        served_by: app.served_by.clone(),
        closing: closing.clone(),
        drain_timeout: config.drain_timeout,
        connections: requests.clone(),
    };
    let public = tokio::spawn(public.run(listeners.public));
    // The ops listener answers until the process ends, so that the drain can be watched.
    let ops = Acceptor {
        router: ops::router(Ops { app: Arc::clone(&app), metrics, process }),
        places: Places::uncounted(OPS_CONNECTIONS),
        served_by: app.served_by.clone(),
        closing: CancellationToken::new(),
        drain_timeout: config.drain_timeout,
        connections: TaskTracker::new(),
    };
    tokio::spawn(ops.run(listeners.ops));

    tokio::spawn(gauges::watch(Arc::clone(&app)));

    stop.cancelled().await;
    app.drain.cancel();
    gauges::drain_begins();
    // With sessions in memory there is one replica, so no balancer has to notice.
    let delay = if app.auth.sessions.is_shared() { config.drain_delay } else { Duration::ZERO };
    tracing::info!(?delay, timeout = ?config.drain_timeout, "draining");
    tokio::time::sleep(delay).await;
    closing.cancel();
    drop(public.await);
    requests.close();
    let finished = async {
        requests.wait().await;
        // Waits for flows after the requests, which start them, and before the gate closes, which they need.
        app.auth.flows.finished().await;
    };
    let is_drained = tokio::time::timeout(config.drain_timeout, finished).await.is_ok();
    if !is_drained {
        tracing::warn!(
            connections = requests.len(),
            flows = app.auth.flows.count(),
            "requests were still in flight after DRAIN_TIMEOUT"
        );
    }
    app.auth.gate.close().await;
    is_drained
}

/// The number of connections, at most `wanted`, for which the process may open enough files. Raises the limit of open
/// files as far as allowed, and logs a warning if that isn't enough.
fn affordable(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let needed = (wanted + OPS_CONNECTIONS + OTHER_FILES) as u64;
    let limits = getrlimit(Resource::Nofile);
    let mut allowed = limits.current.unwrap_or(u64::MAX);
    if allowed < needed {
        let raised = needed.min(limits.maximum.unwrap_or(u64::MAX));
        if setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limits.maximum }).is_ok() {
            allowed = raised;
        }
    }
    if allowed >= needed {
        return wanted;
    }
    let rest = usize::try_from(allowed).unwrap_or(usize::MAX).saturating_sub(OPS_CONNECTIONS + OTHER_FILES).max(1);
    tracing::warn!(
        "MAX_CONNECTIONS={wanted}: this process may open {allowed} files only (ulimit -n), so it takes {rest} \
         connections"
    );
    rest
}
