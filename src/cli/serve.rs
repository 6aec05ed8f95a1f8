//! `serve`.
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use metrics::gauge;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Config;
use crate::http::App;
use crate::metrics::{BUILD_INFO, CONFIG_INFO, SECRET_FILE_TIME};
use crate::server::{self, Listeners};
use crate::store::users;
use crate::telemetry::{self, chain};

pub(super) async fn serve(config: &Config, kept_private: io::Result<()>) -> ExitCode {
    let begin = Instant::now();
    let metrics = telemetry::install_metrics(&config.replica_id);
    let telemetry = telemetry::start(&config.log, &config.replica_id, Some(&config.traces));
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if let Err(error) = kept_private {
        tracing::warn!(%error, "core dumps could not be switched off: a crash may write keys and passwords to a disk");
    }
    state_settings(config);

    let in_memory = config.redis.url.is_none();
    if in_memory {
        tracing::warn!(
            "REDIS_URL is not set: sessions are in this process's memory. One replica only, for trying it out"
        );
        // So that one command is enough to try it out. A fleet migrates once, before its replicas start.
        if let Err(error) = users::migrate(&config.database).await {
            tracing::error!(error = chain(&error), "the database could not be prepared");
            return ExitCode::FAILURE;
        }
    }
    let started = async {
        let app = server::build(config, Clock::system()).await?;
        Ok::<_, server::StartError>((app, Listeners::bind(config).await?))
    };
    let (app, listeners) = match started.await {
        Ok(started) => started,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            return ExitCode::FAILURE;
        }
    };
    let local = |listener: &tokio::net::TcpListener| listener.local_addr().expect("a bound listener has an address");
    let (public, ops) = (local(&listeners.public), local(&listeners.ops));
    // Connects now, so that the first request needn't. If this fails, readiness reports it.
    drop(app.auth.sessions.ping().await);
    tracing::info!(%public, %ops, sessions = app.auth.sessions.kind(), version = env!("CARGO_PKG_VERSION"),
        started_in_seconds = begin.elapsed().as_secs_f64(), "authfleet is up");
    if in_memory {
        try_it(public, config);
    }

    let stop = CancellationToken::new();
    tokio::spawn(stop_on_signal(stop.clone()));
    if config.forward_auth.access_rules.is_some() {
        tokio::spawn(reload_on_signal(Arc::clone(&app)));
    }
    let is_drained = server::run(app, listeners, metrics, config, stop).await;
    tracing::info!("authfleet is down");
    drop(telemetry);
    if is_drained { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Sets the metrics whose values never change while the process runs.
fn state_settings(config: &Config) {
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1);
    gauge!(CONFIG_INFO, "fingerprint" => config.fingerprint()).set(1);
    for &(variable, changed) in &config.secret_files {
        let since_1970 = changed.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        gauge!(SECRET_FILE_TIME, "variable" => variable).set(since_1970);
    }
}

/// Drains at the first signal, and ends the process at the second.
async fn stop_on_signal(stop: CancellationToken) {
    let mut terminate = signal(SignalKind::terminate()).expect("a handler for SIGTERM");
    let mut interrupt = signal(SignalKind::interrupt()).expect("a handler for SIGINT");
    for is_second in [false, true] {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        if is_second {
            tracing::warn!(signal = name, "second signal: ending at once");
            telemetry::flush();
            std::process::exit(1);
        }
        tracing::info!(signal = name, "asked to stop; a second signal ends at once");
        stop.cancel();
    }
}

/// Reads the access rules again at SIGHUP. Without access rules this isn't called, and SIGHUP ends the process as
/// usual.
async fn reload_on_signal(app: Arc<App>) {
    let mut hangup = signal(SignalKind::hangup()).expect("a handler for SIGHUP");
    while hangup.recv().await.is_some() {
        if let Some(front_door) = &app.front_door {
            front_door.rules.reload();
        }
    }
}

/// Prints commands to try out next, also without a terminal. Only for sessions in memory, the mode for trying it out.
fn try_it(public: SocketAddr, config: &Config) {
    let ip = if public.ip().is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { public.ip() };
    let url = format!("http://{}", SocketAddr::new(ip, public.port())).replace("127.0.0.1", "localhost");
    let hint = if config.session.cookie_secure {
        "\n  (The cookie is Secure; for browsers other than Chrome and Firefox on http set COOKIE_SECURE=false.)"
    } else {
        ""
    };
    let docs = if config.api_docs { format!("API: {url}/docs   ") } else { String::new() };
    telemetry::print(&format!(
        "
  authfleet: one replica, sessions in memory. Try it:

    curl -s {url}/auth/register --json '{{\"email\":\"ada@example.org\",\"password\":\"correct horse battery\"}}'
    curl -s {url}/auth/login -c jar --json '{{\"email\":\"ada@example.org\",\"password\":\"correct horse battery\"}}'
    curl -s {url}/profile -b jar
    curl -s {url}/auth/logout -b jar -X POST

  {docs}The fleet: make demo   Ctrl-C stops.{hint}
"
    ));
}
