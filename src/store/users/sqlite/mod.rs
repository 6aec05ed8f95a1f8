//! Users in SQLite: every statement about them is in this file.
//!
//! The replicas of a host share one file. `migrate` creates it, and [`SqliteUsers`] uses it.
mod canonical;
mod connections;
pub(super) mod copy;
mod engine;
mod files;
mod schema;
mod survey;
#[cfg(test)]
mod tests;
mod usage;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{FromRow, Row};
use uuid::Uuid;

pub(super) use self::schema::migrate;
pub(crate) use self::survey::Survey;
pub(super) use self::survey::survey;
use super::groups::Groups;
use super::names::{Keys, free_usernames, written};
use super::{Imported, NewUser, User, UserStoreError, id_at};
use crate::clock::Clock;

/// Primary result codes of SQLite: another process, or another connection of this one, has the database locked.
const BUSY: u32 = 5;
const LOCKED: u32 = 6;

impl From<OpenError> for UserStoreError {
    fn from(error: OpenError) -> Self {
        Self::unavailable(error)
    }
}

/// Why the database can't be used. The text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
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

impl OpenError {
    /// Whether the problem may pass by itself: another process has the database locked, or opening it took too long.
    fn may_pass(&self) -> bool {
        let Self::Sqlite { source, .. } = self else { return false };
        match source {
            sqlx::Error::PoolTimedOut => true,
            // The low byte of an extended code is the primary one (<https://www.sqlite.org/rescode.html>).
            sqlx::Error::Database(error) => error
                .code()
                .and_then(|code| code.parse::<u32>().ok())
                .is_some_and(|code| [BUSY, LOCKED].contains(&(code & 0xff))),
            _ => false,
        }
    }
}

/// The users of one file. Safe to share between tasks, and the file between processes of one host.
#[derive(Clone)]
pub(crate) struct SqliteUsers {
    database: Arc<connections::Database>,
    clock: Clock,
}

impl fmt::Debug for SqliteUsers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteUsers").finish_non_exhaustive()
    }
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, email, username, password_hash, epoch, disabled_at, group_names, created_at FROM users ",
            $rest
        )
    };
}

impl SqliteUsers {
    /// Opens the database at `path`, which [`migrate`] must have prepared. Checks the schema, SQLite's version, the
    /// filesystem and the permissions.
    pub(super) async fn open(path: &Path, clock: Clock) -> Result<Self, OpenError> {
        let database = Arc::new(connections::Database::open(path).await?);
        Ok(Self { database, clock })
    }

    pub(super) async fn create(&self, new: NewUser) -> Result<User, UserStoreError> {
        let now = self.clock.now();
        let id = id_at(now)?;
        self.database.write("create", move |db| Box::pin(insert(db, id, new, now, now))).await
    }

    pub(super) async fn import(
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

    pub(super) async fn ensure_free(&self, email: &str, username: Option<&str>) -> Result<(), UserStoreError> {
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

    pub(super) async fn by_login(&self, identifier: &str) -> Result<Option<User>, UserStoreError> {
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

    pub(super) async fn by_id(&self, id: Uuid) -> Result<Option<User>, UserStoreError> {
        self.database
            .read("by_id", |readers| async move {
                Ok(sqlx::query_as(select!("WHERE id = ?1")).bind(id.to_string()).fetch_optional(&readers).await?)
            })
            .await
    }

    pub(super) async fn current_epoch(&self, id: Uuid) -> Result<Option<i64>, UserStoreError> {
        self.database
            .read("current_epoch", |readers| async move {
                Ok(sqlx::query_scalar("SELECT epoch FROM users WHERE id = ?1 AND disabled_at IS NULL")
                    .bind(id.to_string())
                    .fetch_optional(&readers)
                    .await?)
            })
            .await
    }

    pub(super) async fn list(&self, after: Option<Uuid>, limit: u32) -> Result<Vec<User>, UserStoreError> {
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

    pub(super) async fn ping(&self) -> Result<(), UserStoreError> {
        self.database
            .read("ping", |readers| async move {
                sqlx::query("SELECT EXISTS (SELECT 1 FROM users)").fetch_one(&readers).await?;
                Ok(())
            })
            .await
    }

    pub(super) async fn replace_password(
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

    pub(super) async fn raise_epoch(
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

    pub(super) async fn upgrade_hash(
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

    pub(super) async fn disable(&self, id: Uuid, expected_epoch: i64) -> Result<Option<i64>, UserStoreError> {
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

    pub(super) async fn replace_groups(
        &self,
        id: Uuid,
        expected_epoch: i64,
        groups: &Groups,
    ) -> Result<Option<i64>, UserStoreError> {
        let now = self.clock.now_ms();
        let groups = groups.as_str().to_owned();
        self.database
            .write("replace_groups", move |db| {
                Box::pin(async move {
                    Ok(sqlx::query_scalar(
                        "UPDATE users SET group_names = ?3, epoch = epoch + 1, updated_at = ?4 \
                         WHERE id = ?1 AND epoch = ?2 RETURNING epoch",
                    )
                    .bind(id.to_string())
                    .bind(expected_epoch)
                    .bind(groups)
                    .bind(now)
                    .fetch_optional(db)
                    .await?)
                })
            })
            .await
    }

    pub(super) async fn enable(&self, id: Uuid) -> Result<bool, UserStoreError> {
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

    pub(super) async fn delete(&self, id: Uuid, expected_epoch: i64) -> Result<bool, UserStoreError> {
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

/// Adds a user with epoch 1, in the caller's transaction.
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
         RETURNING id, email, username, password_hash, epoch, disabled_at, group_names, created_at",
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

/// Whether an account has this e-mail address, in any spelling.
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

async fn free_username(db: &mut SqliteConnection, email: &str) -> Result<String, UserStoreError> {
    for candidate in free_usernames(email) {
        if !username_exists(db, &Keys::of(&candidate)).await? {
            return Ok(candidate);
        }
    }
    Err(UserStoreError::UsernameTaken)
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
            groups: Groups::parse(row.try_get("group_names")?),
            created_at: time(row.try_get("created_at")?)?,
        })
    }
}
