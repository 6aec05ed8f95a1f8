//! The command line.
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::{Config, DatabaseUrl};
use crate::server::{self, Listeners};
use crate::store::users;
use crate::telemetry;

/// Exit code for a command line or configuration that can't be used.
const USAGE: u8 = 2;
/// How long a health check waits: readiness itself answers within two seconds.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// A session-authentication server that runs as a fleet: any replica can answer any request.
///
/// Configured by environment variables; `authfleet config` shows them.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve requests until SIGTERM or SIGINT, then drain (the default).
    Serve,
    /// Create or upgrade the users' database. Safe when several start at once.
    Migrate,
    /// Ask a running replica whether it's ready; exit code 0 or 1. For containers without a shell.
    Healthcheck {
        /// Ask only whether the process answers.
        #[arg(long)]
        live: bool,
    },
    /// Print the OpenAPI document.
    Openapi,
    /// Print the effective configuration, secrets masked.
    Config {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command that the process was called with.
pub fn main() -> ExitCode {
    let command = Arguments::parse().command.unwrap_or(Command::Serve);
    if let Command::Openapi = command {
        return print(&crate::http::openapi().to_pretty_json().expect("the document is JSON"));
    }
    let config = match Config::load() {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(USAGE);
        }
    };
    match command {
        Command::Serve => runtime(serve(&config)),
        Command::Migrate => runtime(migrate(&config)),
        Command::Healthcheck { live } => runtime(healthcheck(&config, live)),
        Command::Config { json } => show(&config, json),
        Command::Openapi => unreachable!("answered above"),
    }
}

fn runtime(command: impl Future<Output = ExitCode>) -> ExitCode {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(command)
}

/// Prints a line or more; a reader that went away (`| head`) is no error.
fn print(text: &str) -> ExitCode {
    drop(writeln!(std::io::stdout(), "{}", text.trim_end()));
    ExitCode::SUCCESS
}

async fn serve(config: &Config) -> ExitCode {
    let begin = Instant::now();
    let logging = telemetry::start_logging(&config.log, &config.replica_id);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let metrics = telemetry::install_metrics();
    let build = [("version", env!("CARGO_PKG_VERSION").to_owned()), ("replica", config.replica_id.clone())];
    metrics::gauge!(crate::metrics::BUILD_INFO, &build).set(1);

    let DatabaseUrl::Sqlite(path) = &config.database;
    let in_memory = config.redis_url.is_none();
    if in_memory {
        tracing::warn!("REDIS_URL is not set: sessions are in this process's memory. One replica only, for trying it out");
        // Trying it out takes one command; a fleet migrates once, before its replicas start.
        if let Err(error) = users::migrate(path).await {
            tracing::error!(%error, "the database could not be prepared");
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
            tracing::error!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let local = |listener: &tokio::net::TcpListener| listener.local_addr().expect("a bound listener has an address");
    let (public, ops) = (local(&listeners.public), local(&listeners.ops));
    // Connected now rather than by the first request; if it fails, readiness says so.
    drop(app.auth.sessions.ping().await);
    tracing::info!(%public, %ops, sessions = app.auth.sessions.kind(), version = env!("CARGO_PKG_VERSION"),
        started_in_ms = begin.elapsed().as_millis() as u64, "authfleet is up");
    if in_memory {
        telemetry::flush();
        try_it(public, config);
    }

    let stop = CancellationToken::new();
    tokio::spawn(stop_on_signal(stop.clone()));
    let is_drained = server::run(app, listeners, metrics, config, stop).await;
    tracing::info!("authfleet is down");
    drop(logging);
    if is_drained { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The first signal drains, the second ends at once.
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

/// What to type next, on a terminal or not: this is the mode for trying it out.
fn try_it(public: SocketAddr, config: &Config) {
    let ip = if public.ip().is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { public.ip() };
    let url = format!("http://{}", SocketAddr::new(ip, public.port())).replace("127.0.0.1", "localhost");
    let hint = if config.session.cookie_secure {
        "\n  (The cookie is Secure; for browsers other than Chrome and Firefox on http set COOKIE_SECURE=false.)"
    } else {
        ""
    };
    drop(writeln!(
        std::io::stdout(),
        "
  authfleet: one replica, sessions in memory. Try it:

    curl -s {url}/auth/register --json '{{\"email\":\"ada@example.org\",\"password\":\"correct horse battery\"}}'
    curl -s {url}/auth/login -c jar --json '{{\"email\":\"ada@example.org\",\"password\":\"correct horse battery\"}}'
    curl -s {url}/profile -b jar
    curl -s {url}/auth/logout -b jar -X POST

  API: {url}/docs   The fleet: make demo   Ctrl-C stops.{hint}
"
    ));
}

async fn migrate(config: &Config) -> ExitCode {
    let _logging = telemetry::start_logging(&config.log, &config.replica_id);
    let DatabaseUrl::Sqlite(path) = &config.database;
    match users::migrate(path).await {
        Ok(report) => {
            tracing::info!(?report, database = %path.display(), "database is up to date");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!("DATABASE_URL: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn healthcheck(config: &Config, live: bool) -> ExitCode {
    let mut address = config.ops_addr;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { "::1".parse().expect("an address") });
    }
    let path = if live { "/livez" } else { "/readyz" };
    match tokio::time::timeout(HEALTHCHECK_TIMEOUT, get(address, path)).await {
        Ok(Ok((true, body))) => print(&body),
        Ok(Ok((false, body))) => {
            eprintln!("{}", body.trim_end());
            ExitCode::FAILURE
        }
        Ok(Err(error)) => {
            eprintln!("http://{address}{path}: {error}");
            ExitCode::FAILURE
        }
        Err(_) => {
            eprintln!("http://{address}{path}: no answer within {} s", HEALTHCHECK_TIMEOUT.as_secs());
            ExitCode::FAILURE
        }
    }
}

async fn get(address: SocketAddr, path: &str) -> Result<(bool, String), Box<dyn std::error::Error>> {
    let stream = TokioIo::new(TcpStream::connect(address).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    tokio::spawn(connection);
    let request = http::Request::get(path).header("host", address.to_string()).body(Empty::<bytes::Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let is_ok = response.status().is_success();
    Ok((is_ok, String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()).into_owned()))
}

fn show(config: &Config, json: bool) -> ExitCode {
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    let effective = config.effective();
    if json {
        let object: serde_json::Map<_, _> =
            effective.into_iter().map(|(name, value)| (name.to_string(), value.to_string().into())).collect();
        return print(&serde_json::to_string_pretty(&object).expect("strings are JSON"));
    }
    print(&effective.iter().map(|(name, value)| format!("{name}={value}\n")).collect::<String>())
}
