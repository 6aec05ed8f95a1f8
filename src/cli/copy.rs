//! `authfleet users copy`: all accounts from one database into another.
use std::io::{IsTerminal as _, stderr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{USAGE, answer, fail};
use crate::config::{DatabaseUrl, database_url, database_url_in};
use crate::store::users::copy::{CopyOptions, Stage, copy};
use crate::telemetry::chain;

/// How often progress is reported at a terminal, and elsewhere.
const EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Copy all accounts into another database, to move from SQLite to PostgreSQL or back. Sessions stay alive.
    ///
    /// Stop the servers first. Both databases need the schema of this release: `DATABASE_URL=… authfleet migrate`. The
    /// target is changed in one transaction, which is committed only if the target then holds exactly what the source
    /// does. The command can be run again: it copies the accounts that have changed in the source since, and writes
    /// nothing if none has.
    Copy(Arguments),
}

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    target: Target,
    /// Copy even if the target loses accounts that the source lacks, or changes that are newer than the source's.
    #[arg(long)]
    replace: bool,
    /// Copy even while servers use the databases, to try it out: the copy lacks what they write meanwhile.
    #[arg(long)]
    while_running: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// The database to copy from, in the form of `DATABASE_URL`.
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// A file that contains the URL. Other users of the machine can read command lines.
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// The database to copy to.
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// A file that contains the URL.
    #[arg(long, value_name = "FILE")]
    to_file: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    from: String,
    to: String,
    accounts: u64,
    accounts_before: u64,
    unchanged: bool,
    checksum: String,
    seconds: f64,
}

fn read(url: Option<&String>, file: Option<&PathBuf>, option: &str) -> Result<DatabaseUrl, String> {
    match (url, file) {
        (Some(url), _) => database_url(url).map_err(|why| format!("--{option}: {why}")),
        (None, Some(file)) => database_url_in(file).map_err(|why| format!("--{option}-file: {why}")),
        (None, None) => unreachable!("one of the two is required"),
    }
}

pub(super) async fn run(Command::Copy(arguments): Command) -> ExitCode {
    let Arguments { source, target, replace, while_running, json } = arguments;
    let urls = read(source.from.as_ref(), source.from_file.as_ref(), "from")
        .and_then(|from| Ok((from, read(target.to.as_ref(), target.to_file.as_ref(), "to")?)));
    let (from, to) = match urls {
        Ok(urls) => urls,
        Err(why) => return fail(why, USAGE),
    };
    let begin = Instant::now();
    let every = if stderr().is_terminal() { EVERY.0 } else { EVERY.1 };
    let mut said = begin;
    let progress = |stage: Stage, accounts: u64| {
        if said.elapsed() >= every {
            said = Instant::now();
            let what = match stage {
                Stage::Comparing => "compared",
                Stage::Copying => "written",
                Stage::Verifying => "read back",
            };
            eprintln!("{accounts} accounts {what} after {:.0} s", begin.elapsed().as_secs_f64());
        }
    };
    match copy(&from, &to, CopyOptions { replace, while_running }, progress).await {
        Ok(copied) => {
            let report = Report {
                from: from.to_string(),
                to: to.to_string(),
                accounts: copied.accounts,
                accounts_before: copied.before,
                unchanged: copied.unchanged,
                checksum: copied.checksum,
                seconds: begin.elapsed().as_secs_f64(),
            };
            answer(json, &report, || {
                let Report { from, to, accounts, checksum, seconds, .. } = &report;
                let what = if report.unchanged {
                    format!("{to} has the {accounts} accounts of {from} already")
                } else {
                    format!("{accounts} accounts copied from {from} to {to}")
                };
                format!("{what}, in {seconds:.1} s; SHA-256 {checksum}")
            })
        }
        Err(error) => fail(chain(&error), ExitCode::FAILURE),
    }
}
