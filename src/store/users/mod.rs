//! What a users' store promises: accounts in SQL, each found by id, e-mail address and username.
//!
//! SQLite serves the replicas of one host, PostgreSQL those of many. Both pass the same suite, in `conformance`.
//! Outside of this module, only the configuration and `authfleet doctor` know which engine is in use.
mod account;
#[cfg(test)]
mod conformance;
pub(crate) mod copy;
pub(crate) mod groups;
pub(crate) mod names;
mod observed;
pub(crate) mod postgres;
pub(crate) mod sqlite;

use std::error::Error;

use jiff::Timestamp;
use secrecy::SecretString;
use uuid::Uuid;

use self::groups::Groups;
use self::names::UnusualNames;
pub(crate) use self::names::login_key;
use self::postgres::PostgresUsers;
use self::sqlite::SqliteUsers;
use crate::clock::Clock;
use crate::config::DatabaseUrl;

/// A user as stored.
#[derive(Clone, Debug)]
pub(crate) struct User {
    /// UUIDv7 (RFC 9562 §5.7). Its timestamp is `created_at`, so a session needs no copy of that.
    pub id: Uuid,
    /// As the user typed it, in NFKC. Unique across all spellings ([`names`]).
    pub email: String,
    /// As the user typed it, in NFKC. Unique across all spellings. Never contains `@`.
    pub username: String,
    /// PHC string (Argon2) or `$2b$…` (bcrypt).
    pub password_hash: SecretString,
    /// Grows by one with every change that must end the user's sessions. A session is created only if the epoch
    /// that was read before the password was verified is still the current one.
    pub epoch: i64,
    /// Set while the account is disabled.
    pub disabled_at: Option<Timestamp>,
    /// The groups that the user is in. Sessions contain them, and access rules can name them.
    pub groups: Groups,
    /// When the account was created, to the millisecond.
    pub created_at: Timestamp,
}

/// A user to be created, validated by the caller.
#[derive(Clone, Debug)]
pub(crate) struct NewUser {
    /// Stored as NFKC.
    pub email: String,
    /// Stored as NFKC, without `@`. `None` chooses the e-mail's local part, with a number if that is taken.
    pub username: Option<String>,
    /// PHC string (Argon2) or `$2b$…` (bcrypt).
    pub password_hash: SecretString,
}

/// A user of another system.
#[derive(Clone, Debug)]
pub(crate) struct Imported {
    id: Uuid,
    created_at: Timestamp,
    user: NewUser,
}

impl Imported {
    /// Gives a user an id with the time when the other system created the account, to the millisecond.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`] for a time before 1970, or if the operating system gives no randomness.
    pub(crate) fn new(user: NewUser, created_at: Timestamp) -> Result<Self, UserStoreError> {
        Ok(Self { id: id_at(created_at)?, created_at, user })
    }

    /// The id that the user gets here.
    pub(crate) fn id(&self) -> Uuid {
        self.id
    }
}

/// Why an operation on users failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserStoreError {
    /// Another user has this e-mail address, in some spelling. Reported rather than [`Self::UsernameTaken`] if both
    /// are.
    #[error("the e-mail address is taken")]
    EmailTaken,
    /// Another user has this username, in some spelling.
    #[error("the username is taken")]
    UsernameTaken,
    /// The database is locked, gone, full or broken, or took too long. A write may or may not have happened.
    #[error("the users database is unavailable: {0}")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
}

impl UserStoreError {
    pub(crate) fn unavailable(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Unavailable(cause.into())
    }
}

impl From<sqlx::Error> for UserStoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::unavailable(error)
    }
}

/// Why the database can't be used at all. The text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Sqlite(#[from] sqlite::OpenError),
    #[error(transparent)]
    Postgres(#[from] postgres::OpenError),
}

/// What `migrate` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MigrationReport {
    /// The database did not exist before.
    pub created: bool,
    /// Numbers of the migrations that this run applied, oldest first.
    pub applied: Vec<i64>,
    /// The newest migration in the database now. Higher than this binary knows if a newer release migrated.
    pub version: i64,
    /// How many names without a canonical form got one in this run.
    pub named: u64,
    /// Names that still have no canonical form.
    pub unusual: UnusualNames,
}

/// Connections and bytes in use. Bytes are `None` if there is no file, or if its file system doesn't report them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    /// Each pool of connections.
    pub pools: Vec<Connections>,
    /// Whether the server is the primary and takes writes, as it last said. `None` if it doesn't say.
    pub is_primary: Option<bool>,
    /// Bytes of SQLite's file.
    pub database: Option<u64>,
    /// Bytes of its write-ahead log.
    pub journal: Option<u64>,
    /// Bytes of the file system that holds them.
    pub volume: Option<u64>,
    /// How many bytes this process can still write to that file system.
    pub volume_free: Option<u64>,
}

/// Open connections of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connections {
    /// `writer`, `readers` or `all`, as in metrics.
    pub pool: &'static str,
    /// How many there may be.
    pub limit: usize,
    /// Waiting for work.
    pub idle: usize,
    pub busy: usize,
}

/// What `authfleet doctor` reads from a database that could be opened. Each engine has its own facts.
#[derive(Debug)]
pub(crate) enum Survey {
    Sqlite(sqlite::Survey),
    Postgres(postgres::Survey),
}

/// The users of a fleet. Cheap to clone, safe to share.
///
/// Every call ends within about 1.5 s. A call that fails with [`UserStoreError::Unavailable`] can simply be repeated:
/// the next one notices a lock that was released or a database that is back.
#[derive(Clone, Debug)]
pub(crate) enum UserStore {
    /// In a file that the replicas of one host share.
    Sqlite(SqliteUsers),
    /// On a server that the replicas of many hosts share.
    Postgres(PostgresUsers),
}

macro_rules! engine {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            Self::Sqlite($store) => $call,
            Self::Postgres($store) => $call,
        }
    };
}

/// Brings the schema of the database of `url` up to date. Creates a SQLite file if there is none. It is safe to run
/// while other `migrate`s and servers run.
///
/// # Errors
///
/// [`OpenError`]. No migration is applied in part, and the next run continues where this one stopped.
pub(crate) async fn migrate(url: &DatabaseUrl) -> Result<MigrationReport, OpenError> {
    match url {
        DatabaseUrl::Sqlite(path) => Ok(sqlite::migrate(path).await?),
        DatabaseUrl::Postgres(url) => Ok(postgres::migrate(url).await?),
    }
}

/// Reads facts about the database of `url` for an operator. Writes nothing.
///
/// # Errors
///
/// [`OpenError`] if there is no database, or it is in a place where it can't be used.
pub(crate) async fn survey(url: &DatabaseUrl) -> Result<Survey, OpenError> {
    match url {
        DatabaseUrl::Sqlite(path) => Ok(Survey::Sqlite(sqlite::survey(path).await?)),
        DatabaseUrl::Postgres(url) => Ok(Survey::Postgres(postgres::survey(url).await?)),
    }
}

impl UserStore {
    /// Opens the users of `url`, which [`migrate`] must have prepared.
    ///
    /// # Errors
    ///
    /// [`OpenError`], with a message for the operator.
    pub(crate) async fn open(url: &DatabaseUrl, clock: Clock) -> Result<Self, OpenError> {
        match url {
            DatabaseUrl::Sqlite(path) => Ok(Self::Sqlite(SqliteUsers::open(path, clock).await?)),
            DatabaseUrl::Postgres(url) => Ok(Self::Postgres(PostgresUsers::open(url, clock).await?)),
        }
    }

    /// The engine's name, as `/readyz` and logs show it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            Self::Postgres(_) => "postgresql",
        }
    }

    /// The connections and bytes in use, read without sending a statement.
    pub(crate) fn usage(&self) -> Usage {
        engine!(self, store => store.usage())
    }

    /// Adds a user with epoch 1. It is on disk when this returns.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::EmailTaken`], [`UserStoreError::UsernameTaken`], [`UserStoreError::Unavailable`].
    pub(crate) async fn create(&self, new: NewUser) -> Result<User, UserStoreError> {
        engine!(self, store => store.create(new).await)
    }

    /// Adds users of another system, in one transaction. Returns for each what went wrong, or `None` if the user is in
    /// the database. A call that failed can be repeated with the same users: those that are already there count as
    /// added.
    ///
    /// With `dry_run`, the outcomes are the same and nothing is added.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`]. Then it is unknown which of them were added.
    pub(crate) async fn import(
        &self,
        users: Vec<Imported>,
        dry_run: bool,
    ) -> Result<Vec<Option<UserStoreError>>, UserStoreError> {
        engine!(self, store => store.import(users, dry_run).await)
    }

    /// Checks whether the names are free, before the password of a new user is hashed. [`UserStore::create`] decides.
    ///
    /// # Errors
    ///
    /// As [`UserStore::create`].
    pub(crate) async fn ensure_free(&self, email: &str, username: Option<&str>) -> Result<(), UserStoreError> {
        engine!(self, store => store.ensure_free(email, username).await)
    }

    /// The user with this e-mail address (if it contains `@`) or username in any spelling ([`names`]), disabled or not.
    /// An exact match takes precedence over another spelling. Only accounts made by older releases can be two matches.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub(crate) async fn by_login(&self, identifier: &str) -> Result<Option<User>, UserStoreError> {
        engine!(self, store => store.by_login(identifier).await)
    }

    /// The user with this id, disabled or not.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub(crate) async fn by_id(&self, id: Uuid) -> Result<Option<User>, UserStoreError> {
        engine!(self, store => store.by_id(id).await)
    }

    /// The epoch with which a session must have been created. `None` if the user is gone or disabled.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub(crate) async fn current_epoch(&self, id: Uuid) -> Result<Option<i64>, UserStoreError> {
        engine!(self, store => store.current_epoch(id).await)
    }

    /// Up to `limit` users in the order of their ids, which is the order of creation, starting after `after`.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub(crate) async fn list(&self, after: Option<Uuid>, limit: u32) -> Result<Vec<User>, UserStoreError> {
        engine!(self, store => store.list(after, limit).await)
    }

    /// Sends a small query. Also notices files that were deleted or replaced.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub(crate) async fn ping(&self) -> Result<(), UserStoreError> {
        engine!(self, store => store.ping().await)
    }

    /// Sets a new password, raises the epoch by one, and returns the new epoch. `None` if the epoch is no longer
    /// `expected_epoch`, because another change came first, or if the user is gone.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub(crate) async fn replace_password(
        &self,
        id: Uuid,
        expected_epoch: i64,
        new_hash: &SecretString,
    ) -> Result<Option<i64>, UserStoreError> {
        engine!(self, store => store.replace_password(id, expected_epoch, new_hash).await)
    }

    /// Raises the epoch from `expected_epoch` to `at_least`, or leaves a higher one. Returns the epoch afterwards.
    /// `None` if it was no longer `expected_epoch`, or if the user is gone or disabled.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub(crate) async fn raise_epoch(
        &self,
        id: Uuid,
        expected_epoch: i64,
        at_least: i64,
    ) -> Result<Option<i64>, UserStoreError> {
        engine!(self, store => store.raise_epoch(id, expected_epoch, at_least).await)
    }

    /// Stores another hash of the same password and leaves sessions alone. Returns whether `old_hash` was still the
    /// stored one. If it wasn't, nothing happens, so a password change in between is not undone.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub(crate) async fn upgrade_hash(
        &self,
        id: Uuid,
        old_hash: &SecretString,
        new_hash: &SecretString,
    ) -> Result<bool, UserStoreError> {
        engine!(self, store => store.upgrade_hash(id, old_hash, new_hash).await)
    }

    /// Disables a user, raises the epoch by one, and returns the new epoch. `None` if it is no longer `expected_epoch`,
    /// or if the user is already disabled or gone.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub(crate) async fn disable(&self, id: Uuid, expected_epoch: i64) -> Result<Option<i64>, UserStoreError> {
        engine!(self, store => store.disable(id, expected_epoch).await)
    }

    /// Sets the groups that a user is in, raises the epoch by one, and returns the new epoch. `None` if it is no longer
    /// `expected_epoch`, or if the user is gone.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub(crate) async fn replace_groups(
        &self,
        id: Uuid,
        expected_epoch: i64,
        groups: &Groups,
    ) -> Result<Option<i64>, UserStoreError> {
        engine!(self, store => store.replace_groups(id, expected_epoch, groups).await)
    }

    /// Enables a disabled user. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub(crate) async fn enable(&self, id: Uuid) -> Result<bool, UserStoreError> {
        engine!(self, store => store.enable(id).await)
    }

    /// Deletes a user whose epoch is still `expected_epoch`. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// [`UserStoreError::Unavailable`].
    pub(crate) async fn delete(&self, id: Uuid, expected_epoch: i64) -> Result<bool, UserStoreError> {
        engine!(self, store => store.delete(id, expected_epoch).await)
    }
}

/// Makes a UUIDv7 (RFC 9562 §5.7) with this time, which must not be before 1970.
fn id_at(time: Timestamp) -> Result<Uuid, UserStoreError> {
    let mut random = [0; 10];
    getrandom::fill(&mut random).map_err(UserStoreError::unavailable)?;
    let ms = u64::try_from(time.as_millisecond()).map_err(UserStoreError::unavailable)?;
    Ok(uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid())
}
