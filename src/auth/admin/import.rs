//! Import: users of another system, row by row.
use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use super::{Admin, AdminError};
use crate::auth::password::check_hash;
use crate::auth::{Mistake, identity};
use crate::store::users::{Imported, NewUser, UserStoreError, login_key};
use crate::telemetry::chain;

/// Users per transaction: a few milliseconds, so that registrations go on meanwhile.
const BATCH: usize = 200;
/// How often a busy database is asked, and how long to wait in between.
const BATCH_TRIES: u32 = 5;
const BATCH_PAUSE: Duration = Duration::from_millis(500);
/// Faulty rows that are reported one by one; the rest is only counted.
const FAULTS: usize = 1000;

#[derive(Clone, Copy, Debug)]
pub(crate) struct ImportOptions {
    /// Change nothing, but report what would happen.
    pub dry_run: bool,
    /// Make usernames from the e-mail addresses, whatever the rows say.
    pub generate_usernames: bool,
}

/// A user as another system has it, as text. An empty field is absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub email: String,
    pub username: String,
    /// Argon2 or bcrypt.
    pub password_hash: SecretString,
    /// When the account was made: RFC 3339, `2024-01-31 12:00:00` in UTC, or seconds or milliseconds since 1970.
    pub created_at: String,
}

/// What an import did so far; scripts read it as JSON.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ImportReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Rows.
    pub read: u64,
    /// Users added.
    pub imported: u64,
    /// Rows whose e-mail address has an account already.
    pub skipped: u64,
    /// Faulty rows.
    pub failed: u64,
    /// The first of the faults, one per row.
    pub errors: Vec<ImportFault>,
}

/// What is wrong with a row, without any of its content.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ImportFault {
    /// The line of a CSV file, or the number of a table's row.
    pub line: u64,
    pub field: &'static str,
    pub message: String,
}

/// An import under way.
#[derive(Debug)]
pub(crate) struct Import<'a> {
    admin: &'a Admin,
    options: ImportOptions,
    report: ImportReport,
    /// The line in which each name was seen first. Of two rows with one e-mail address only the operator can tell which
    /// is right.
    emails: HashMap<String, u64>,
    usernames: HashMap<String, u64>,
    batch: Vec<(u64, Imported)>,
}

impl Admin {
    pub(crate) async fn import(&self, options: ImportOptions) -> Result<Import<'_>, AdminError> {
        self.users().await?;
        Ok(Import {
            admin: self,
            options,
            report: ImportReport { dry_run: options.dry_run, ..ImportReport::default() },
            emails: HashMap::new(),
            usernames: HashMap::new(),
            batch: Vec::with_capacity(BATCH),
        })
    }
}

impl Import<'_> {
    /// Takes the row in this line. If it's faulty, that goes into the report.
    ///
    /// # Errors
    ///
    /// The database doesn't take it. What it took before stays, and the import can be run again.
    pub(crate) async fn add(&mut self, line: u64, row: Row) -> Result<(), AdminError> {
        match self.read(line, row) {
            Ok(user) => {
                self.report.read += 1;
                self.batch.push((line, user));
            }
            Err((field, message)) => self.fault(line, field, message),
        }
        if self.batch.len() < BATCH { Ok(()) } else { self.write().await }
    }

    /// Counts a row that can't be read.
    pub(crate) fn fault(&mut self, line: u64, field: &'static str, message: String) {
        self.report.read += 1;
        self.failed(line, field, message);
    }

    fn failed(&mut self, line: u64, field: &'static str, message: String) {
        self.report.failed += 1;
        if self.report.errors.len() < FAULTS {
            self.report.errors.push(ImportFault { line, field, message });
        }
    }

    fn read(&mut self, line: u64, row: Row) -> Result<Imported, (&'static str, String)> {
        let fault = |field| move |message: Mistake| (field, message.to_string());
        let email = identity::email(&row.email).map_err(fault("email"))?;
        let wants_username = !self.options.generate_usernames && !row.username.trim().is_empty();
        let username = wants_username.then(|| identity::username(&row.username)).transpose();
        let username = username.map_err(fault("username"))?;
        check_hash(&self.admin.config.hashing, row.password_hash.expose_secret())
            .map_err(|message| ("password_hash", message))?;
        let now = self.admin.clock.now();
        let created_at = created_at(&row.created_at, now).map_err(|message| ("created_at", message.to_owned()))?;
        for (field, name, seen) in
            [("email", Some(&email), &mut self.emails), ("username", username.as_ref(), &mut self.usernames)]
        {
            if let Some(first) = name.and_then(|name| seen.insert(login_key(name), line)) {
                return Err((field, format!("is the same as in line {first}")));
            }
        }
        let user = NewUser { email, username, password_hash: row.password_hash };
        Imported::new(user, created_at).map_err(|error| ("created_at", error.to_string()))
    }

    async fn write(&mut self) -> Result<(), AdminError> {
        let batch = std::mem::take(&mut self.batch);
        let users = self.admin.users().await?;
        let mut tries = 1;
        let outcomes = loop {
            let imported = batch.iter().map(|(_, user)| user.clone()).collect();
            match users.import(imported, self.options.dry_run).await {
                Ok(outcomes) => break outcomes,
                Err(error) if tries == BATCH_TRIES => return Err(error.into()),
                Err(error) => tracing::warn!(error = chain(&error), "import: the database is asked again"),
            }
            tries += 1;
            tokio::time::sleep(BATCH_PAUSE).await;
        };
        for ((line, user), outcome) in batch.into_iter().zip(outcomes) {
            match outcome {
                None => {
                    self.report.imported += 1;
                    if !self.options.dry_run {
                        self.admin.audit("account_imported", user.id(), None);
                    }
                }
                Some(UserStoreError::EmailTaken) => self.report.skipped += 1,
                Some(error) => self.failed(line, "username", error.to_string()),
            }
        }
        Ok(())
    }

    /// Writes the rows that are left.
    pub(crate) async fn finish(&mut self) -> Result<(), AdminError> {
        self.write().await
    }

    pub(crate) fn into_report(mut self) -> ImportReport {
        self.report.errors.sort_by_key(|fault| fault.line);
        self.report
    }
}

/// Reads when an account was made; absent is now.
fn created_at(text: &str, now: Timestamp) -> Result<Timestamp, &'static str> {
    const FORMS: &str = "must be a time such as 2024-01-31T12:00:00Z, 2024-01-31 12:00:00 (UTC) or 1706702400";
    /// In seconds the year 5138, in milliseconds 1973: nobody means either.
    const MILLISECONDS_FROM: i64 = 100_000_000_000;
    let text = text.trim();
    if text.is_empty() {
        return Ok(now);
    }
    let utc = |time: DateTime| time.to_zoned(TimeZone::UTC).ok().map(|time| time.timestamp());
    let number = text.split_once('.').map_or(text, |(whole, _)| whole).parse::<i64>().ok();
    let time = match number {
        Some(ms) if ms >= MILLISECONDS_FROM => Timestamp::from_millisecond(ms).ok(),
        Some(seconds) => Timestamp::from_second(seconds).ok(),
        None => text.parse().ok().or_else(|| text.parse::<DateTime>().ok().and_then(utc)).or_else(|| {
            text.parse::<Date>().ok().and_then(|date| utc(date.to_datetime(jiff::civil::Time::midnight())))
        }),
    };
    match time.ok_or(FORMS)? {
        time if time < Timestamp::UNIX_EPOCH => Err("must not be before 1970"),
        time if time > now => Err("must not be in the future"),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_other_systems_are_understood() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        for text in [
            "2024-01-31T12:00:00Z",
            "2024-01-31T13:00:00+01:00",
            "2024-01-31T12:00:00.000Z",
            "2024-01-31 12:00:00",
            " 2024-01-31T12:00:00 ",
            "1706702400",
            "1706702400000",
            "1706702400000.0",
        ] {
            assert_eq!(created_at(text, now).map(Timestamp::as_second), Ok(1_706_702_400), "{text}");
        }
        assert_eq!(created_at("2024-01-31", now).map(Timestamp::as_second), Ok(1_706_659_200));
        assert_eq!(created_at(" ", now), Ok(now));
        for text in ["yesterday", "2027-01-01T00:00:00Z", "-5", "$2b$10$", "99999999999999999999"] {
            assert!(created_at(text, now).is_err(), "{text}");
        }
    }
}
