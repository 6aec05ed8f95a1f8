//! Checks a PostgreSQL database of users and its server's settings.
use std::time::Duration;

use super::{Check, fail, names, ok, warn};
use crate::store::users::postgres::{OpenError, Survey};

/// A commit that takes longer holds up registrations.
const SLOW_COMMIT: Duration = Duration::from_millis(100);

pub(super) fn checks(survey: &Survey) -> Vec<Check> {
    let mut checks = vec![server(survey), encryption(survey), pooler(survey), connections(survey), durability(survey)];
    if survey.usable.is_ok() {
        checks.push(schema(survey));
        checks.push(names::names(&survey.unusual));
        checks.extend(survey.commit.as_ref().map(written));
    }
    checks
}

/// What to do about an error whose message doesn't say it.
pub(super) fn advice(error: &OpenError) -> &'static str {
    match error {
        OpenError::Certificate { .. } => {
            "sslrootcert, sslcert and sslkey of DATABASE_URL must name files that this user may read"
        }
        OpenError::Silent { .. } | OpenError::Failed { .. } => {
            "check DATABASE_URL (host, port, user, password, database, sslmode) and the server's pg_hba.conf"
        }
        _ => "the server would not become ready with this database",
    }
}

fn server(survey: &Survey) -> Check {
    const NAME: &str = "database.server";
    match &survey.usable {
        Ok(()) => ok(NAME, format!("PostgreSQL {} at {}, the primary", survey.version, survey.place)),
        Err(error) => fail(NAME, error.to_string(), advice(error)),
    }
}

fn encryption(survey: &Survey) -> Check {
    const NAME: &str = "database.tls";
    match &survey.tls {
        Some(version) => ok(NAME, version.clone()),
        None if survey.is_in_the_clear => warn(
            NAME,
            "the connection to the server is not encrypted",
            "password hashes travel over it: set sslmode=verify-full and sslrootcert in DATABASE_URL",
        ),
        None => ok(NAME, "none, within this host"),
    }
}

fn pooler(survey: &Survey) -> Check {
    const NAME: &str = "database.pooler";
    if survey.is_pooled {
        ok(NAME, "a pooler is in between: each operation is a transaction and takes four round trips instead of one")
    } else {
        ok(NAME, "none")
    }
}

fn connections(survey: &Survey) -> Check {
    const NAME: &str = "database.connections";
    let (limit, each) = (survey.connections_limit, survey.connections_per_replica);
    let replicas = limit / i64::try_from(each).unwrap_or(i64::MAX);
    let found = format!("the server takes {limit}, each replica up to {each}: enough for {replicas} replicas");
    if replicas >= 3 || survey.is_pooled {
        ok(NAME, found)
    } else {
        warn(NAME, found, "raise max_connections, or put PgBouncer in between")
    }
}

fn durability(survey: &Survey) -> Check {
    const NAME: &str = "database.durability";
    let commit = &survey.synchronous_commit;
    let standbys = match survey.standbys {
        Some((synchronous, others)) => format!("{synchronous} synchronous standbys, {others} others"),
        None => "standbys are not shown to this user".to_owned(),
    };
    let found = format!("fsync={}, synchronous_commit={commit}; {standbys}", if survey.fsync { "on" } else { "off" });
    if !survey.fsync {
        fail(NAME, found, "a power cut loses or damages the database: set fsync = on")
    } else if commit == "off" {
        warn(
            NAME,
            found,
            "a crash loses the registrations and password changes that were acknowledged last: set \
             synchronous_commit = on",
        )
    } else {
        ok(NAME, found)
    }
}

fn schema(survey: &Survey) -> Check {
    const NAME: &str = "database.schema";
    match &survey.schema {
        Ok(version) => ok(NAME, format!("migration {version}")),
        Err(error) => fail(NAME, error.to_string(), "the server would not start with this schema"),
    }
}

fn written(commit: &Result<Duration, OpenError>) -> Check {
    const NAME: &str = "database.write";
    match commit {
        Ok(time) if *time <= SLOW_COMMIT => ok(NAME, format!("a commit took {:.1} ms", time.as_secs_f64() * 1e3)),
        Ok(time) => {
            let found = format!("a commit took {:.0} ms", time.as_secs_f64() * 1e3);
            warn(NAME, found, "the database server's disk, a synchronous standby or the network is slow")
        }
        Err(error) => fail(NAME, error.to_string(), "no registration can succeed"),
    }
}
