//! The command line.
mod copy;
mod doctor;
mod explain;
mod healthcheck;
mod import;
mod memory;
mod prompt;
mod rules;
mod serve;
mod sessions;
mod users;

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::auth::admin::{Actor, Admin, AdminError};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::telemetry;

/// The exit code for a command line or configuration that can't be used.
const USAGE: u8 = 2;

/// A session-authentication server that runs as a fleet: any replica can answer any request.
///
/// Configured by environment variables: `authfleet config --example` explains each, `authfleet config` shows the values
/// in force. Exit codes: 0 done, 1 failed or not found, 2 the command line or the configuration can't be used.
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
    /// Ask a running replica whether it is ready: exit code 0 or 1. For containers without a shell.
    Healthcheck {
        /// Ask only whether the process answers.
        #[arg(long)]
        live: bool,
    },
    /// Print the OpenAPI document.
    Openapi,
    /// Print the effective configuration, with secrets masked.
    Config {
        /// Print it as one JSON object.
        #[arg(long)]
        json: bool,
        /// Print every variable with its default, its meaning and the values that it accepts, as a `.env` to start
        /// from.
        #[arg(long, conflicts_with = "json")]
        example: bool,
    },
    /// Check what the server depends on: filesystem, SQLite, Redis, clock, secrets, proxies. Exit code 1 if anything
    /// fails.
    Doctor {
        /// Print the report as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Administer accounts.
    #[command(subcommand)]
    User(users::Command),
    /// Move all accounts to another database.
    #[command(subcommand)]
    Users(copy::Command),
    /// Show and end sessions.
    #[command(subcommand)]
    Session(sessions::Command),
    /// Try out the access rules of applications behind a proxy.
    #[command(subcommand)]
    Rules(rules::Command),
    /// Bring users with bcrypt or Argon2 hashes over from another system's SQLite table or a CSV file.
    Import(import::Arguments),
}

/// Runs the command that the process was called with.
pub fn main() -> ExitCode {
    let command = Arguments::parse().command.unwrap_or(Command::Serve);
    // Neither of these needs a configuration, so they work with one that is broken.
    match command {
        Command::Openapi => return print(&crate::http::openapi().to_pretty_json().expect("the document is JSON")),
        Command::Config { example: true, .. } => return print(&config::env_example()),
        _ => {}
    }
    let kept_private = memory::keep_private();
    // This command takes its databases from the command line, and needs no configuration either.
    let command = match command {
        Command::Users(command) => return runtime(1, copy::run(command)),
        command => command,
    };
    let config = match Config::load() {
        Ok(config) => config,
        Err(errors) => {
            if let Command::Doctor { json } = command {
                doctor::report(&doctor::misconfigured(&errors), json);
            } else {
                eprintln!("{errors}");
            }
            return ExitCode::from(USAGE);
        }
    };
    match command {
        Command::Serve => runtime(config.worker_threads, serve::serve(&config, kept_private)),
        Command::Migrate => runtime(1, migrate(&config)),
        Command::Healthcheck { live } => runtime(1, healthcheck::healthcheck(&config, live)),
        Command::Config { json, .. } => show(&config, json),
        Command::Doctor { json } => runtime(1, doctor::doctor(&config, json)),
        Command::User(command) => administer(config, async |admin| users::run(admin, command).await),
        Command::Session(command) => administer(config, async |admin| sessions::run(admin, command).await),
        Command::Rules(command) => rules::run(config, command),
        Command::Import(arguments) => administer(config, async |admin| import::run(admin, arguments).await),
        Command::Openapi | Command::Users(_) => unreachable!("answered above"),
    }
}

/// Runs a command. Requests answered by one thread never wait for another to wake up; measured at one replica, more
/// threads cost each session check up to a fifth more CPU.
fn runtime<T>(threads: usize, command: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).enable_all().build().expect("a runtime").block_on(command)
}

/// Runs a command of an operator. Log lines, audit events among them, go to standard error.
fn administer(config: Config, command: impl AsyncFnOnce(&Admin) -> Result<ExitCode, AdminError>) -> ExitCode {
    let telemetry = telemetry::log_to_stderr(&config.log);
    let outcome = runtime(1, async { command(&Admin::new(config, Clock::system(), actor())?).await });
    drop(telemetry);
    outcome.unwrap_or_else(|error| fail(explain::error(&error), ExitCode::FAILURE))
}

/// Who runs this process. A user without an entry in the system's list is named by number.
fn actor() -> Actor {
    let uid = rustix::process::getuid();
    let name = whoami::username().unwrap_or_else(|_| format!("uid {}", uid.as_raw()));
    let sudo_user = uid.is_root().then(|| std::env::var("SUDO_USER").ok()).flatten();
    Actor { name, sudo_user }
}

fn fail(error: impl Display, code: impl Into<ExitCode>) -> ExitCode {
    eprintln!("error: {error}");
    code.into()
}

/// Prints one or more lines. It is no error if the reader has gone away (`| head`).
fn print(text: &str) -> ExitCode {
    drop(writeln!(std::io::stdout(), "{}", text.trim_end()));
    ExitCode::SUCCESS
}

/// Prints a result as JSON for scripts, or as text for people.
fn answer(json: bool, result: &impl Serialize, text: impl FnOnce() -> String) -> ExitCode {
    let printed = if json { serde_json::to_string_pretty(result).expect("our own types are JSON") } else { text() };
    print(&printed)
}

/// Makes text from outside safe for a terminal: replaces control characters, which could rewrite the screen.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Lays out rows in left-aligned columns, each as wide as its widest cell.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

async fn migrate(config: &Config) -> ExitCode {
    let _telemetry = telemetry::start(&config.log, &config.replica_id, None);
    match crate::store::users::migrate(&config.database).await {
        Ok(report) => {
            tracing::info!(created = report.created, applied = ?report.applied, version = report.version,
                names = report.named, database = %config.database, "database is up to date");
            let unusual = &report.unusual;
            if unusual.shared + unusual.refused > 0 {
                tracing::warn!(
                    shared = unusual.shared,
                    refused = unusual.refused,
                    "some names of older releases are other spellings of each other, or are refused today; these \
                     accounts sign in as before, and `authfleet doctor` lists them"
                );
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!("DATABASE_URL: {}", telemetry::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn show(config: &Config, json: bool) -> ExitCode {
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    let effective = config.effective();
    if json {
        let object: serde_json::Map<_, _> =
            effective.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        return print(&serde_json::to_string_pretty(&object).expect("strings are JSON"));
    }
    let lines: Vec<_> = effective.iter().map(|(name, value)| format!("{name}={value}")).collect();
    print(&lines.join("\n"))
}
