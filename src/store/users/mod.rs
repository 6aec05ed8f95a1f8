//! Users in SQL: every statement about them is in this file.
//!
//! SQLite, one file shared by the replicas of a host. [`migrate`] makes it, [`UserStore`] works on it.
mod canonical;
mod connections;
mod files;
pub mod names;
mod schema;
mod survey;
#[cfg(test)]
mod tests;
mod usage;

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{FromRow, Row};
use uuid::Uuid;

pub use self::canonical::{Unusual, UnusualNames, Why};
pub use self::names::login_key;
use self::names::{Keys, written};
pub use self::schema::{MigrationReport, migrate};
pub use self::survey::{Survey, survey};
pub use self::usage::{Connections, Usage};
use crate::clock::Clock;

/// Most code points in a username that is made from an e-mail address, number included.
pub const USERNAME_MAX: usize = 64;

/// A user as stored.
#[derive(Clone, Debug)]
pub struct User {
    /// UUIDv7 (RFC 9562 §5.7). Its timestamp is `created_at`, so a session needs no copy of that.
    pub id: Uuid,
    /// As the user typed it, NFKC; unique in whatever spelling ([`names`]).
    pub email: String,
    /// As the user typed it, NFKC; unique in whatever spelling; never contains `@`.
    pub username: String,
    /// PHC string (Argon2) or `$2b$…` (bcrypt).
    pub password_hash: SecretString,
    /// Grows by one with every change that must end the user's sessions. A session is created only if the epoch
    /// that was read before the password was verified is still the current one.
    pub epoch: i64,
    /// Set while the account is disabled.
    pub disabled_at: Option<Timestamp>,
    /// When the account was made, to the millisecond.
    pub created_at: Timestamp,
}

/// A user to be created, validated by the caller.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// Stored as NFKC.
    pub email: String,
    /// Stored as NFKC, without `@`; `None` takes the e-mail's local part, with a number if that is taken.
    pub username: Option<String>,
    /// PHC string (Argon2) or `$2b$…` (bcrypt).
    pub password_hash: SecretString,
}

/// A user of another system.
#[derive(Clone, Debug)]
pub struct Imported {
    id: Uuid,
    created_at: Timestamp,
    user: NewUser,
}

impl Imported {
    /// Gives a user an id of the time when the account was made there, to the millisecond.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`] for a time before 1970, or if the operating system gives no randomness.
    pub fn new(user: NewUser, created_at: Timestamp) -> Result<Self, UserStoreError> {
        Ok(Self { id: id_at(created_at)?, created_at, user })
    }

    /// The id that the user gets here.
    pub fn id(&self) -> Uuid {
        self.id
    }
}

/// Why an operation on users failed.
#[derive(Debug, thiserror::Error)]
pub enum UserStoreError {
    /// Another user has this e-mail address, in some spelling. Reported rather than [`Self::UsernameTaken`] if both are.
    #[error("the e-mail address is taken")]
    EmailTaken,
    /// Another user has this username, in some spelling.
    #[error("the username is taken")]
    UsernameTaken,
    /// The database is locked, gone, full or broken, or took too long. A write may or may not have happened.
    #[error("the users database is unavailable: {0}")]
    Unavailable(Box<dyn Error + Send + Sync>),
}

impl UserStoreError {
    fn unavailable(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unavailable(cause.into())
    }
}

impl From<sqlx::Error> for UserStoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::unavailable(error)
    }
}

impl From<OpenError> for UserStoreError {
    fn from(error: OpenError) -> Self {
        Self::unavailable(error)
    }
}

/// Why the database can't be used at all. The text says what to do about it.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum OpenError {
    #[error("there is no database at {}: run `authfleet migrate` to create it", path.display())]
    Missing { path: PathBuf },
    #[error("{} has no tables yet: run `authfleet migrate`", path.display())]
    SchemaMissing { path: PathBuf },
    #[error("{} has an older schema, without migration {needed}: run `authfleet migrate`", path.display())]
    SchemaOlder { path: PathBuf, needed: i64 },
    #[error(
        "{} has a newer schema that only binaries with migration {oldest} can work with, and this one ends at {known}: \
         use a newer authfleet", path.display()
    )]
    SchemaNewer { path: PathBuf, oldest: i64, known: i64 },
    #[error(
        "{} is on a {kind} filesystem, where SQLite's locks can't be relied on: use a local disk or a local volume",
        path.display()
    )]
    NetworkFilesystem { path: PathBuf, kind: &'static str },
    #[error(
        "user id {uid} may not read and write {} ({source}): run as the user to whom it belongs, or as root \
         `chown {uid} {}`", path.display(), path.display()
    )]
    NotWritable { path: PathBuf, uid: u32, source: io::Error },
    #[error(
        "{} belongs to user id {owner}, and user id {uid} may not read and write it: as root \
         `chown --reference={} {}`", path.display(), database.display(), path.display()
    )]
    SideFile { database: PathBuf, path: PathBuf, owner: u32, uid: u32 },
    #[error(
        "{} is left over from a database that is no longer at {}: stop the replicas and remove it, or put the database \
         back", leftover.display(), path.display()
    )]
    Leftover { path: PathBuf, leftover: PathBuf },
    #[error("SQLite {found} can corrupt a database that processes share: 3.51.3 or newer is needed")]
    SqliteTooOld { found: String },
    #[error("the database's journal mode is {mode} and can't be set to wal")]
    NotWal { mode: String },
    #[error("the files of {} were deleted or replaced while in use", path.display())]
    Changed { path: PathBuf },
    #[error("another process keeps {} locked", path.display())]
    Locked { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Migration { path: PathBuf, source: sqlx::migrate::MigrateError },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Sqlite { path: PathBuf, source: sqlx::Error },
}

/// The users of a fleet. Cheap to clone; safe to share between tasks, and the file between processes of one host.
///
/// Every call ends within about 1.5 s. One that fails with [`UserStoreError::Unavailable`] needs no reaction but a
/// retry: locks that go away and files that come back are noticed by the next call.
#[derive(Clone)]
pub struct UserStore {
    database: Arc<connections::Database>,
    clock: Clock,
}

impl fmt::Debug for UserStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserStore").finish_non_exhaustive()
    }
}

macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT id, email, username, password_hash, epoch, disabled_at, created_at FROM users ", $rest)
    };
}

impl UserStore {
    /// Opens the database at `path`, which [`migrate`] must have made. Checks the schema, SQLite's version, the
    /// filesystem and the permissions.
    ///
    /// # Errors
    ///
    /// [`OpenError`], with a message for the operator.
    pub async fn open(path: &Path, clock: Clock) -> Result<Self, OpenError> {
        let database = Arc::new(connections::Database::open(path).await?);
        Ok(Self { database, clock })
    }

    /// Adds a user with epoch 1. It is on disk when this returns.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::EmailTaken`], [`UserStoreError::UsernameTaken`], [`UserStoreError::Unavailable`].
    pub async fn create(&self, new: NewUser) -> Result<User, UserStoreError> {
        let now = self.clock.now();
        let id = id_at(now)?;
        self.database.write("create", move |db| Box::pin(insert(db, id, new, now, now))).await
    }

    /// Adds users of another system, in one transaction. The outcome of each; `None` if it is in the database. A call
    /// that failed can be made again with the same users: those that came through count as added.
    ///
    /// With `dry_run` the outcomes are the same and nothing is added.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`]; nothing is known of any of them then.
    pub async fn import(
        &self,
        users: Vec<Imported>,
        dry_run: bool,
    ) -> Result<Vec<Option<UserStoreError>>, UserStoreError> {
        let now = self.clock.now();
        self.database
            .write("import", move |db| {
                Box::pin(async move {
                    sqlx::query("SAVEPOINT import").execute(&mut *db).await?;
                    let mut outcomes = Vec::with_capacity(users.len());
                    for Imported { id, created_at, user } in users {
                        if id_exists(db, id).await? {
                            outcomes.push(None);
                            continue;
                        }
                        match insert(db, id, user, created_at, now).await {
                            Ok(_) => outcomes.push(None),
                            Err(taken @ (UserStoreError::EmailTaken | UserStoreError::UsernameTaken)) => {
                                outcomes.push(Some(taken));
                            }
                            Err(error @ UserStoreError::Unavailable(_)) => return Err(error),
                        }
                    }
                    let end = if dry_run { "ROLLBACK TO import" } else { "RELEASE import" };
                    sqlx::query(end).execute(db).await?;
                    Ok(outcomes)
                })
            })
            .await
    }

    /// A quick look before the password of a new user is hashed. [`UserStore::create`] decides.
    ///
    /// # Errors
    ///
    /// As [`UserStore::create`].
    pub async fn ensure_free(&self, email: &str, username: Option<&str>) -> Result<(), UserStoreError> {
        let (email, username) = (Keys::of(email), username.map(Keys::of));
        self.database
            .read("ensure_free", |readers| async move {
                let mut db = readers.acquire().await?;
                if email_exists(&mut db, &email).await? {
                    return Err(UserStoreError::EmailTaken);
                }
                match username {
                    Some(username) if username_exists(&mut db, &username).await? => Err(UserStoreError::UsernameTaken),
                    _ => Ok(()),
                }
            })
            .await
    }

    /// The user with this e-mail address (if it contains `@`) or username, in whatever spelling ([`names`]); disabled
    /// ones too. An account that is found by the exact name goes before one that has it in another spelling: only
    /// accounts of older releases can be two of these.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub async fn by_login(&self, identifier: &str) -> Result<Option<User>, UserStoreError> {
        let keys = Keys::of(identifier);
        let statement = if keys.is_email() {
            select!(
                "WHERE email_key IN (?1, ?2) OR email_canonical = ?2 \
                 ORDER BY email_key = ?1 DESC, email_canonical = ?2 DESC LIMIT 1"
            )
        } else {
            select!(
                "WHERE username_key IN (?1, ?2) OR username_canonical = ?2 \
                 ORDER BY username_key = ?1 DESC, username_canonical = ?2 DESC LIMIT 1"
            )
        };
        self.database
            .read("by_login", |readers| async move {
                Ok(sqlx::query_as(statement).bind(keys.exact).bind(keys.canonical).fetch_optional(&readers).await?)
            })
            .await
    }

    /// The user with this id; disabled ones too.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub async fn by_id(&self, id: Uuid) -> Result<Option<User>, UserStoreError> {
        self.database
            .read("by_id", |readers| async move {
                Ok(sqlx::query_as(select!("WHERE id = ?1")).bind(id.to_string()).fetch_optional(&readers).await?)
            })
            .await
    }

    /// The epoch that a session must have been created with; `None` if the user is gone or disabled.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub async fn current_epoch(&self, id: Uuid) -> Result<Option<i64>, UserStoreError> {
        self.database
            .read("current_epoch", |readers| async move {
                Ok(sqlx::query_scalar("SELECT epoch FROM users WHERE id = ?1 AND disabled_at IS NULL")
                    .bind(id.to_string())
                    .fetch_optional(&readers)
                    .await?)
            })
            .await
    }

    /// Up to `limit` users in the order of their ids, which is that of their creation, beginning behind `after`.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub async fn list(&self, after: Option<Uuid>, limit: u32) -> Result<Vec<User>, UserStoreError> {
        let after = after.map(|id| id.to_string()).unwrap_or_default();
        self.database
            .read("list", |readers| async move {
                Ok(sqlx::query_as(select!("WHERE id > ?1 ORDER BY id LIMIT ?2"))
                    .bind(after)
                    .bind(limit)
                    .fetch_all(&readers)
                    .await?)
            })
            .await
    }

    /// Asks the database for anything; also notices files that were deleted or replaced.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub async fn ping(&self) -> Result<(), UserStoreError> {
        self.database
            .read("ping", |readers| async move {
                sqlx::query("SELECT EXISTS (SELECT 1 FROM users)").fetch_one(&readers).await?;
                Ok(())
            })
            .await
    }

    /// Sets a new password and raises the epoch by one, unless it is no longer `expected_epoch`: then another change
    /// came first, or the user is gone, and the answer is `None`. Otherwise the new epoch.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub async fn replace_password(
        &self,
        id: Uuid,
        expected_epoch: i64,
        new_hash: &SecretString,
    ) -> Result<Option<i64>, UserStoreError> {
        let now = self.clock.now_ms();
        let new_hash = new_hash.clone();
        self.database
            .write("replace_password", move |db| {
                Box::pin(async move {
                    Ok(sqlx::query_scalar(
                        "UPDATE users SET password_hash = ?3, epoch = epoch + 1, updated_at = ?4 \
                         WHERE id = ?1 AND epoch = ?2 RETURNING epoch",
                    )
                    .bind(id.to_string())
                    .bind(expected_epoch)
                    .bind(new_hash.expose_secret().to_owned())
                    .bind(now)
                    .fetch_optional(db)
                    .await?)
                })
            })
            .await
    }

    /// Raises the epoch from `expected_epoch` to `at_least`, never lowers it. The epoch afterwards; `None` if it was no
    /// longer `expected_epoch`, or the user is gone or disabled.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub async fn raise_epoch(
        &self,
        id: Uuid,
        expected_epoch: i64,
        at_least: i64,
    ) -> Result<Option<i64>, UserStoreError> {
        let now = self.clock.now_ms();
        self.database
            .write("raise_epoch", move |db| {
                Box::pin(async move {
                    Ok(sqlx::query_scalar(
                        "UPDATE users SET epoch = max(epoch, ?3), updated_at = ?4 \
                         WHERE id = ?1 AND epoch = ?2 AND disabled_at IS NULL RETURNING epoch",
                    )
                    .bind(id.to_string())
                    .bind(expected_epoch)
                    .bind(at_least)
                    .bind(now)
                    .fetch_optional(db)
                    .await?)
                })
            })
            .await
    }

    /// Stores another hash of the same password; sessions live on. Whether `old_hash` was still the stored one: if
    /// not, nothing happens, so that a password change in between is not undone.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub async fn upgrade_hash(
        &self,
        id: Uuid,
        old_hash: &SecretString,
        new_hash: &SecretString,
    ) -> Result<bool, UserStoreError> {
        let now = self.clock.now_ms();
        let (old_hash, new_hash) = (old_hash.clone(), new_hash.clone());
        self.database
            .write("upgrade_hash", move |db| {
                Box::pin(async move {
                    let done = sqlx::query(
                        "UPDATE users SET password_hash = ?3, updated_at = ?4 WHERE id = ?1 AND password_hash = ?2",
                    )
                    .bind(id.to_string())
                    .bind(old_hash.expose_secret().to_owned())
                    .bind(new_hash.expose_secret().to_owned())
                    .bind(now)
                    .execute(db)
                    .await?;
                    Ok(done.rows_affected() == 1)
                })
            })
            .await
    }

    /// Disables a user and raises the epoch by one, unless it is no longer `expected_epoch` or the user is disabled or
    /// gone: then the answer is `None`. Otherwise the new epoch.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub async fn disable(&self, id: Uuid, expected_epoch: i64) -> Result<Option<i64>, UserStoreError> {
        let now = self.clock.now_ms();
        self.database
            .write("disable", move |db| {
                Box::pin(async move {
                    Ok(sqlx::query_scalar(
                        "UPDATE users SET disabled_at = ?3, epoch = epoch + 1, updated_at = ?3 \
                         WHERE id = ?1 AND epoch = ?2 AND disabled_at IS NULL RETURNING epoch",
                    )
                    .bind(id.to_string())
                    .bind(expected_epoch)
                    .bind(now)
                    .fetch_optional(db)
                    .await?)
                })
            })
            .await
    }

    /// Enables a disabled user. Whether there was one.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub async fn enable(&self, id: Uuid) -> Result<bool, UserStoreError> {
        let now = self.clock.now_ms();
        self.database
            .write("enable", move |db| {
                Box::pin(async move {
                    let done = sqlx::query(
                        "UPDATE users SET disabled_at = NULL, updated_at = ?2 WHERE id = ?1 AND disabled_at IS NOT NULL",
                    )
                    .bind(id.to_string())
                    .bind(now)
                    .execute(db)
                    .await?;
                    Ok(done.rows_affected() == 1)
                })
            })
            .await
    }

    /// Deletes a user whose epoch is still `expected_epoch`. Whether there was one.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub async fn delete(&self, id: Uuid, expected_epoch: i64) -> Result<bool, UserStoreError> {
        self.database
            .write("delete", move |db| {
                Box::pin(async move {
                    let done = sqlx::query("DELETE FROM users WHERE id = ?1 AND epoch = ?2")
                        .bind(id.to_string())
                        .bind(expected_epoch)
                        .execute(db)
                        .await?;
                    Ok(done.rows_affected() == 1)
                })
            })
            .await
    }
}

/// A UUIDv7 (RFC 9562 §5.7) of this time, which must not be before 1970.
fn id_at(time: Timestamp) -> Result<Uuid, UserStoreError> {
    let mut random = [0; 10];
    getrandom::fill(&mut random).map_err(UserStoreError::unavailable)?;
    let ms = u64::try_from(time.as_millisecond()).map_err(UserStoreError::unavailable)?;
    Ok(uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid())
}

/// Adds a user with epoch 1, in the transaction of the caller.
async fn insert(
    db: &mut SqliteConnection,
    id: Uuid,
    new: NewUser,
    created_at: Timestamp,
    now: Timestamp,
) -> Result<User, UserStoreError> {
    let email = written(&new.email);
    let email_keys = Keys::of(&email);
    if email_exists(db, &email_keys).await? {
        return Err(UserStoreError::EmailTaken);
    }
    let username = match new.username {
        Some(username) => written(&username),
        None => free_username(db, &email).await?,
    };
    let username_keys = Keys::of(&username);
    if username_exists(db, &username_keys).await? {
        return Err(UserStoreError::UsernameTaken);
    }
    let inserted: SqliteRow = sqlx::query(
        "INSERT INTO users (id, email, email_key, email_canonical, username, username_key, username_canonical, \
         password_hash, created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
         RETURNING id, email, username, password_hash, epoch, disabled_at, created_at",
    )
    .bind(id.to_string())
    .bind(email)
    .bind(email_keys.exact)
    .bind(email_keys.canonical)
    .bind(username)
    .bind(username_keys.exact)
    .bind(username_keys.canonical)
    .bind(new.password_hash.expose_secret().to_owned())
    .bind(created_at.as_millisecond())
    .bind(now.as_millisecond())
    .fetch_one(db)
    .await?;
    Ok(User::from_row(&inserted)?)
}

async fn id_exists(db: &mut SqliteConnection, id: Uuid) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM users WHERE id = ?1)").bind(id.to_string()).fetch_one(db).await
}

/// Whether anybody has this e-mail address, in whatever spelling.
async fn email_exists(db: &mut SqliteConnection, keys: &Keys) -> sqlx::Result<bool> {
    exists(db, "SELECT EXISTS (SELECT 1 FROM users WHERE email_key IN (?1, ?2) OR email_canonical = ?2)", keys).await
}

async fn username_exists(db: &mut SqliteConnection, keys: &Keys) -> sqlx::Result<bool> {
    exists(db, "SELECT EXISTS (SELECT 1 FROM users WHERE username_key IN (?1, ?2) OR username_canonical = ?2)", keys)
        .await
}

async fn exists(db: &mut SqliteConnection, statement: &'static str, keys: &Keys) -> sqlx::Result<bool> {
    sqlx::query_scalar(statement).bind(&keys.exact).bind(&keys.canonical).fetch_one(db).await
}

/// The local part of `email`, or that with a number: 2 to 9, then random ones that grow longer, because a popular name
/// (`info`) would otherwise be counted through from the start each time.
async fn free_username(db: &mut SqliteConnection, email: &str) -> Result<String, UserStoreError> {
    let base = username_base(email);
    let numbers = (2..=9).chain([4, 4, 4, 6, 6, 8, 8, 8].map(|digits| fastrand::u32(10..10_u32.pow(digits))));
    for suffix in std::iter::once(String::new()).chain(numbers.map(|number| number.to_string())) {
        let kept: String = base.chars().take(USERNAME_MAX - suffix.len()).collect();
        let candidate = kept + &suffix;
        if !username_exists(db, &Keys::of(&candidate)).await? {
            return Ok(candidate);
        }
    }
    Err(UserStoreError::UsernameTaken)
}

/// The local part of `email`, with `-` for what only a quoted one may hold (RFC 5322 §3.2.3 `atext` and `.` are kept).
fn username_base(email: &str) -> String {
    let local = email.rsplit_once('@').map_or(email, |(local, _)| local);
    let kept = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
    if local.is_empty() { "user".into() } else { local.chars().map(|c| if kept(c) { c } else { '-' }).collect() }
}

impl FromRow<'_, SqliteRow> for User {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        let time = |ms| Timestamp::from_millisecond(ms).map_err(|error| sqlx::Error::Decode(error.into()));
        Ok(Self {
            id: row.try_get::<&str, _>("id")?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
            email: row.try_get("email")?,
            username: row.try_get("username")?,
            password_hash: row.try_get::<String, _>("password_hash")?.into(),
            epoch: row.try_get("epoch")?,
            disabled_at: row.try_get::<Option<i64>, _>("disabled_at")?.map(time).transpose()?,
            created_at: time(row.try_get("created_at")?)?,
        })
    }
}
