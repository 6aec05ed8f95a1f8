//! Administration: what an operator does to accounts and sessions from the command line.
//!
//! Whatever ends a user's sessions follows [`super::revocation`], so that a command that was cut off can be run again.
use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use uuid::Uuid;

use super::identity;
use super::password::{HashError, HashGate, Origin, PasswordPolicy, check_hash};
use super::revocation::{Change, Revocation, Revoked};
use super::token::{Inspected, TokenKeys};
use crate::clock::Clock;
use crate::config::{Config, HashingConfig};
use crate::store::sessions::{Session, SessionEntry, SessionId, SessionKey, SessionStore};
use crate::store::users::{Imported, NewUser, OpenError, User, UserStore, UserStoreError, login_key};
use crate::store::{StoreError, Stores};

/// Each try is lost only to somebody else's success.
const TRIES: u32 = 100;
/// Users per transaction of an import: a few milliseconds, so that registrations go on meanwhile.
const BATCH: usize = 200;
/// A busy database is asked again so often,
const BATCH_TRIES: u32 = 5;
/// after this.
const BATCH_PAUSE: Duration = Duration::from_millis(500);
/// Faulty rows that are reported one by one; the rest is counted.
const FAULTS: usize = 1000;

/// Why an operator's wish was not fulfilled.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum AdminError {
    #[error("there is no user {0}")]
    NoSuchUser(String),
    #[error("{0} is the id of one user and the username of another: name the user by e-mail address")]
    Ambiguous(String),
    #[error("there is no living session {0}")]
    NoSuchSession(SessionId),
    #[error("REDIS_URL is not set: sessions are in the memory of the server's process, out of reach from here")]
    OutOfReach,
    #[error(
        "REDIS_URL is not set: sessions in a running server's memory can't be ended from here. Stop the server, then \
         say --offline"
    )]
    MustBeOffline,
    #[error("{field} {message}")]
    Invalid { field: &'static str, message: String },
    #[error("the account kept changing meanwhile; nothing was changed, but its sessions may have ended: try again")]
    Contended,
    #[error("DATABASE_URL: {0}")]
    Database(#[from] OpenError),
    #[error("REDIS_URL: {0}")]
    Redis(#[from] StoreError),
    #[error(transparent)]
    Users(#[from] UserStoreError),
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error("HASH_CONCURRENCY: {0}")]
    Threads(std::io::Error),
    #[error("{file}: {message}")]
    Source { file: String, message: String },
}

/// Who asks: recorded with every change.
#[derive(Clone, Debug)]
pub struct Actor {
    /// The operating system's user.
    pub name: String,
    /// Who became that user by way of `sudo`.
    pub sudo_user: Option<String>,
}

/// A change that was made.
#[derive(Debug)]
pub struct Changed {
    /// The account as it was before.
    pub user: User,
    /// How many sessions ended.
    pub sessions_ended: u32,
}

/// What is to be known of a cookie or session.
#[derive(Debug)]
pub struct Inspection {
    /// Its name.
    pub session_id: SessionId,
    /// Whose it is: what the cookie says, or who was found to own the session.
    pub user_id: Option<Uuid>,
    /// What the cookie says, if one was given.
    pub cookie: Option<Inspected>,
    /// How many keys a cookie may be signed with.
    pub keys: usize,
    /// The session, if it's alive.
    pub session: Option<(Session, SessionEntry)>,
    /// The present.
    pub now: Timestamp,
}

impl Inspection {
    /// Why a server would refuse the session now; `None` if it wouldn't.
    pub fn refused_because(&self) -> Option<&'static str> {
        let now_ms = self.now.as_millisecond();
        match &self.cookie {
            Some(Inspected { key: None, .. }) => Some("the cookie is signed with none of the keys in SESSION_SECRET"),
            Some(cookie) if cookie.claims.expires_at_ms <= now_ms => Some("the cookie is past its absolute limit"),
            _ if self.session.is_none() => Some("the session has ended, or never was"),
            _ => None,
        }
    }
}

/// The flows of an operator. Connects to what a command needs, when it needs it.
#[derive(Debug)]
pub struct Admin {
    config: Config,
    clock: Clock,
    actor: Actor,
    stores: Stores,
}

impl Admin {
    /// Prepares for `actor`; connects to nothing yet.
    ///
    /// # Errors
    ///
    /// When `REDIS_URL` can't be read.
    pub fn new(config: Config, clock: Clock, actor: Actor) -> Result<Self, AdminError> {
        let stores = Stores::open(&config, clock.clone())?;
        Ok(Self { config, clock, actor, stores })
    }

    async fn users(&self) -> Result<&UserStore, AdminError> {
        Ok(self.stores.users().await?)
    }

    fn sessions(&self) -> Result<&SessionStore, AdminError> {
        if self.reaches_sessions() { Ok(&self.stores.sessions) } else { Err(AdminError::OutOfReach) }
    }

    /// Whether sessions can be reached from here.
    pub fn reaches_sessions(&self) -> bool {
        self.config.redis_url.is_some()
    }

    /// The user with this id, e-mail address or username.
    ///
    /// # Errors
    ///
    /// There is none, or there are two.
    pub async fn user(&self, name: &str) -> Result<User, AdminError> {
        let users = self.users().await?;
        let named = users.by_login(name).await?;
        let identified = match Uuid::parse_str(name) {
            Ok(id) => users.by_id(id).await?,
            Err(_) => None,
        };
        match (identified, named) {
            (Some(one), Some(other)) if one.id != other.id => Err(AdminError::Ambiguous(name.to_owned())),
            (found, other) => found.or(other).ok_or_else(|| AdminError::NoSuchUser(name.to_owned())),
        }
    }

    /// Up to `limit` users in the order of their creation, beginning behind `after`.
    ///
    /// # Errors
    ///
    /// No database.
    pub async fn list_users(&self, after: Option<Uuid>, limit: u32) -> Result<Vec<User>, AdminError> {
        Ok(self.users().await?.list(after, limit).await?)
    }

    /// Makes an account, by the same rules as a registration.
    ///
    /// # Errors
    ///
    /// Invalid or taken names; a password against the rules; no database.
    pub async fn create(
        &self,
        email: &str,
        username: Option<&str>,
        password: SecretString,
    ) -> Result<User, AdminError> {
        let (valid_email, valid_username) = Self::names(email, username)?;
        let context: Vec<_> = [Some(email), username].into_iter().flatten().collect();
        self.check_password(&password, &context)?;
        let users = self.users().await?;
        users.ensure_free(&valid_email, valid_username.as_deref()).await?;
        let password_hash = self.hash(password).await?;
        let user = users.create(NewUser { email: valid_email, username: valid_username, password_hash }).await?;
        self.audit("account_created", user.id, None);
        Ok(user)
    }

    /// Reads the names of a new account.
    ///
    /// # Errors
    ///
    /// The first that is invalid.
    pub fn names(email: &str, username: Option<&str>) -> Result<(String, Option<String>), AdminError> {
        let invalid = |field| move |why: &'static str| AdminError::Invalid { field, message: why.to_owned() };
        let email = identity::email(email).map_err(invalid("email"))?;
        let username = username.map(identity::username).transpose().map_err(invalid("username"))?;
        Ok((email, username))
    }

    /// Disables an account and ends its sessions on all replicas. Done again, it ends what is left of them.
    ///
    /// # Errors
    ///
    /// No such user; no database; sessions that can't be reached, unless `offline`.
    pub async fn disable(&self, user: &User, offline: bool) -> Result<Changed, AdminError> {
        self.revoke_with(Change::Disabling, user, offline).await
    }

    /// Enables an account; whether it was disabled.
    ///
    /// # Errors
    ///
    /// No database.
    pub async fn enable(&self, user: &User) -> Result<bool, AdminError> {
        let was_disabled = self.users().await?.enable(user.id).await?;
        if was_disabled {
            self.audit("account_enabled", user.id, None);
        }
        Ok(was_disabled)
    }

    /// Sets a password and ends the account's sessions on all replicas.
    ///
    /// # Errors
    ///
    /// A password against the rules; no such user; no database; sessions that can't be reached, unless `offline`.
    pub async fn set_password(
        &self,
        user: &User,
        password: SecretString,
        offline: bool,
    ) -> Result<Changed, AdminError> {
        self.check_password(&password, &[&user.email, &user.username])?;
        let new_hash = self.hash(password).await?;
        self.revoke_with(Change::Password(&new_hash), user, offline).await
    }

    /// Deletes an account and ends its sessions on all replicas.
    ///
    /// # Errors
    ///
    /// No such user; no database; sessions that can't be reached, unless `offline`.
    pub async fn delete(&self, user: &User, offline: bool) -> Result<Changed, AdminError> {
        self.revoke_with(Change::Deletion, user, offline).await
    }

    async fn revoke_with(&self, change: Change<'_>, user: &User, offline: bool) -> Result<Changed, AdminError> {
        let (user_id, sessions) = (user.id, self.endable(offline)?);
        let users = self.users().await?;
        let mut tries = 0;
        let mut still_wanted = |now: Option<User>| {
            tries += 1;
            match now {
                None => Err(AdminError::NoSuchUser(user_id.to_string())),
                Some(_) if tries > TRIES => Err(AdminError::Contended),
                Some(user) => Ok(user),
            }
        };
        // The operator may have taken time over the password, or over the question whether to go on.
        let user = still_wanted(users.by_id(user_id).await?)?;
        let mut is_changed = false;
        let revocation = Revocation { users, sessions };
        let Revoked { ended, result } = revocation.run(user, change, still_wanted, |_| is_changed = true).await;
        if is_changed {
            self.audit(change.event(), user_id, Some(ended));
        } else if ended > 0 {
            self.audit_ended(change.event(), user_id, ended);
        }
        let (user, _) = result?;
        Ok(Changed { user, sessions_ended: ended })
    }

    /// The sessions that a change must end; none if the operator says that no server runs.
    ///
    /// # Errors
    ///
    /// They can't be reached.
    pub fn endable(&self, offline: bool) -> Result<Option<&SessionStore>, AdminError> {
        match self.sessions() {
            Ok(sessions) => Ok(Some(sessions)),
            Err(_) if offline => Ok(None),
            Err(_) => Err(AdminError::MustBeOffline),
        }
    }

    /// The user's living sessions, newest first.
    ///
    /// # Errors
    ///
    /// Sessions that can't be reached.
    pub async fn list_sessions(&self, user_id: Uuid) -> Result<Vec<SessionEntry>, AdminError> {
        Ok(self.sessions()?.list(user_id).await?)
    }

    /// Ends a session; says whose it was.
    ///
    /// # Errors
    ///
    /// There is no such session; sessions that can't be reached.
    pub async fn revoke(&self, session_id: SessionId) -> Result<Uuid, AdminError> {
        let sessions = self.sessions()?;
        let user_id = sessions.owner(session_id).await?.ok_or(AdminError::NoSuchSession(session_id))?;
        if !sessions.end(SessionKey { user_id, session_id }).await? {
            return Err(AdminError::NoSuchSession(session_id));
        }
        let Actor { name, sudo_user } = &self.actor;
        tracing::info!(target: "audit", event = "session_ended", reason = "revoked", user_id = %user_id,
            session_id = %session_id, actor = name, sudo_user, via = "cli");
        Ok(user_id)
    }

    /// Ends all of a user's sessions; says how many.
    ///
    /// # Errors
    ///
    /// Sessions that can't be reached.
    pub async fn revoke_all(&self, user_id: Uuid) -> Result<u32, AdminError> {
        let count = self.sessions()?.end_all(user_id, None, None).await?;
        self.audit_ended("revoked", user_id, count);
        Ok(count)
    }

    /// Looks at a session by its name.
    ///
    /// # Errors
    ///
    /// Sessions that can't be reached.
    pub async fn inspect(&self, session_id: SessionId) -> Result<Inspection, AdminError> {
        let user_id = self.sessions()?.owner(session_id).await?;
        self.look_at(session_id, user_id, None).await
    }

    /// Looks at a cookie and its session. `None` if this is no cookie value at all.
    ///
    /// # Errors
    ///
    /// Sessions that can't be reached.
    pub async fn inspect_cookie(&self, value: &SecretString) -> Result<Option<Inspection>, AdminError> {
        let keys = TokenKeys::new(&self.config.session.secrets);
        let Some(cookie) = keys.inspect(value.expose_secret().as_bytes()) else { return Ok(None) };
        let claims = cookie.claims;
        self.look_at(claims.session_id, Some(claims.user_id), Some(cookie)).await.map(Some)
    }

    async fn look_at(
        &self,
        session_id: SessionId,
        user_id: Option<Uuid>,
        cookie: Option<Inspected>,
    ) -> Result<Inspection, AdminError> {
        let session = match user_id {
            Some(user_id) => self.sessions()?.inspect(SessionKey { user_id, session_id }).await?,
            None => None,
        };
        let keys = self.config.session.secrets.len();
        Ok(Inspection { session_id, user_id, cookie, keys, session, now: self.clock.now() })
    }

    fn check_password(&self, password: &SecretString, context: &[&str]) -> Result<(), AdminError> {
        let policy = PasswordPolicy::new(&self.config.password);
        policy.check(password.expose_secret(), context).map_err(|violations| {
            let messages: Vec<_> = violations.iter().map(ToString::to_string).collect();
            AdminError::Invalid { field: "password", message: messages.join(", ") }
        })
    }

    async fn hash(&self, password: SecretString) -> Result<SecretString, AdminError> {
        let one = HashingConfig { concurrency: 1, queue: 1, ..self.config.hashing };
        Ok(HashGate::start(&one).map_err(AdminError::Threads)?.hash(password, Origin::default()).await?)
    }

    fn audit(&self, event: &'static str, user_id: Uuid, sessions_ended: Option<u32>) {
        let Actor { name, sudo_user } = &self.actor;
        tracing::info!(target: "audit", event, user_id = %user_id, sessions_ended, actor = name, sudo_user, via = "cli");
    }

    fn audit_ended(&self, reason: &'static str, user_id: Uuid, count: u32) {
        let Actor { name, sudo_user } = &self.actor;
        tracing::info!(target: "audit", event = "sessions_ended", reason, count, user_id = %user_id, actor = name,
            sudo_user, via = "cli");
    }

    /// Begins an import.
    ///
    /// # Errors
    ///
    /// No database.
    pub async fn import(&self, options: ImportOptions) -> Result<Import<'_>, AdminError> {
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

/// How to import.
#[derive(Clone, Copy, Debug)]
pub struct ImportOptions {
    /// Only say what would happen.
    pub dry_run: bool,
    /// Make usernames from the e-mail addresses, whatever the rows say.
    pub generate_usernames: bool,
}

/// A user as another system has it, as text; empty is absent.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// E-mail address.
    pub email: String,
    /// Username, if it has any.
    pub username: String,
    /// Argon2 or bcrypt.
    pub password_hash: SecretString,
    /// When the account was made: RFC 3339, `2024-01-31 12:00:00` in UTC, or seconds or milliseconds since 1970.
    pub created_at: String,
}

/// What became of an import.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ImportReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Rows read.
    pub read: u64,
    /// Users added.
    pub imported: u64,
    /// Rows whose e-mail address has an account already.
    pub skipped: u64,
    /// Rows that are faulty.
    pub failed: u64,
    /// The first faults, one per row.
    pub errors: Vec<ImportFault>,
}

/// What is wrong with a row; never holds any of its content.
#[derive(Clone, Debug, Serialize)]
pub struct ImportFault {
    /// The line of a CSV file, or the number of a table's row.
    pub line: u64,
    /// What is faulty.
    pub field: &'static str,
    /// Why.
    pub message: String,
}

/// An import under way.
#[derive(Debug)]
pub struct Import<'a> {
    admin: &'a Admin,
    options: ImportOptions,
    report: ImportReport,
    /// Where a name was seen first. Two rows with one e-mail address are two people's accounts: nobody but the
    /// operator can tell which is right.
    emails: HashMap<String, u64>,
    usernames: HashMap<String, u64>,
    batch: Vec<(u64, Imported)>,
}

impl Import<'_> {
    /// Takes a row, which stands in this line. A faulty one goes into the report.
    ///
    /// # Errors
    ///
    /// The database doesn't take it. What was taken before stays, and the import can be run again.
    pub async fn add(&mut self, line: u64, row: Row) -> Result<(), AdminError> {
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
    pub fn fault(&mut self, line: u64, field: &'static str, message: String) {
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
        let fault = |field| move |message: &'static str| (field, message.to_owned());
        let email = identity::email(&row.email).map_err(fault("email"))?;
        let wants_username = !self.options.generate_usernames && !row.username.trim().is_empty();
        let username = wants_username.then(|| identity::username(&row.username)).transpose();
        let username = username.map_err(fault("username"))?;
        check_hash(&self.admin.config.hashing, row.password_hash.expose_secret())
            .map_err(|message| ("password_hash", message))?;
        let now = self.admin.clock.now();
        let created_at = created_at(&row.created_at, now).map_err(fault("created_at"))?;
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
                Err(error) => tracing::warn!(%error, "import: asking again"),
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

    /// Writes what is left.
    ///
    /// # Errors
    ///
    /// As [`Import::add`].
    pub async fn finish(&mut self) -> Result<(), AdminError> {
        self.write().await
    }

    /// What was done so far.
    pub fn into_report(mut self) -> ImportReport {
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
