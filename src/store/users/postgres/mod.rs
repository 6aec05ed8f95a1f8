//! Users in PostgreSQL: every statement about them is in this file.
//!
//! Every statement is one transaction at READ COMMITTED, which is enough. A conditional change has the expected epoch
//! in its own `WHERE`. If another change comes first, PostgreSQL waits for it and evaluates the condition again.
//! Constraints keep names unique, whatever transactions see of each other.
mod canonical;
mod connections;
mod connector;
pub(super) mod copy;
mod schema;
mod survey;
#[cfg(test)]
pub(super) mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row as _};
use uuid::Uuid;

use self::connections::Database;
use self::connector::Session;
pub(super) use self::schema::migrate;
pub(crate) use self::survey::Survey;
pub(super) use self::survey::survey;
use super::groups::Groups;
use super::names::{Keys, free_usernames, written};
use super::{Imported, NewUser, Usage, User, UserStoreError, id_at};
use crate::clock::Clock;
use crate::config::PostgresUrl;

/// How often a default username is chosen, if others keep taking the chosen one at the same time.
const NAME_TRIES: usize = 50;
/// The time limit of a whole batch of an import, which takes hundreds of round trips.
const IMPORT_LIMIT: Duration = Duration::from_secs(20);

impl From<OpenError> for UserStoreError {
    fn from(error: OpenError) -> Self {
        Self::unavailable(error)
    }
}

/// Why the database can't be used. The text begins with host, port and database, and says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{place} has no tables yet: run `authfleet migrate`")]
    SchemaMissing { place: Arc<str> },
    #[error("{place} has an older schema, without migration {needed}: run `authfleet migrate`")]
    SchemaOlder { place: Arc<str>, needed: i64 },
    #[error(
        "{place} has a newer schema that only binaries with migration {oldest} can work with, and this one ends at \
         {known}: use a newer authfleet"
    )]
    SchemaNewer { place: Arc<str>, oldest: i64, known: i64 },
    #[error("{place} is a standby: the name must lead to the primary")]
    Standby { place: Arc<str> },
    #[error("{place} is read-only (default_transaction_read_only): it must take writes")]
    ReadOnly { place: Arc<str> },
    #[error("{place} is PostgreSQL {found}: 14 or newer is needed")]
    ServerTooOld { place: Arc<str>, found: i32 },
    #[error("{place} has the encoding {found}: create the database with ENCODING 'UTF8'")]
    Encoding { place: Arc<str>, found: String },
    #[error("{}: {source}", path.display())]
    Certificate { path: PathBuf, source: io::Error },
    #[error("{place} does not answer in time")]
    Silent { place: Arc<str> },
    #[error("all connections to {place} are in use")]
    Busy { place: Arc<str> },
    #[error("{place}: migration {version}: {source}")]
    Migration { place: Arc<str>, version: i64, source: sqlx::Error },
    #[error("{place}: {source}")]
    Failed { place: Arc<str>, source: sqlx::Error },
}

impl OpenError {
    /// Whether the problem may pass without a change of settings, because a server starts after its clients or is
    /// replaced by another one.
    fn may_pass(&self) -> bool {
        match self {
            Self::Standby { .. } | Self::ReadOnly { .. } | Self::Silent { .. } | Self::Busy { .. } => true,
            Self::Failed { source, .. } => match source {
                // A refused certificate is reported as InvalidData.
                sqlx::Error::Io(error) => error.kind() != io::ErrorKind::InvalidData,
                // 53: too many connections. 57P: the server starts or stops. 08: a pooler has lost its server.
                sqlx::Error::Database(error) => {
                    error.code().is_some_and(|code| ["53", "57P", "08"].iter().any(|class| code.starts_with(class)))
                }
                _ => false,
            },
            _ => false,
        }
    }
}

/// The users of one database. Cheap to clone, safe to share.
#[derive(Clone, Debug)]
pub(crate) struct PostgresUsers {
    database: Database,
    clock: Clock,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, email, username, password_hash, epoch, disabled_at, group_names, created_at FROM users ",
            $rest
        )
    };
}

/// Adds a user with the first free username of a list. Returns no row if none is free, or if the e-mail address or the
/// id is taken, also if somebody else takes one of them at the same time.
const INSERT: &str = "\
    WITH free AS ( \
        SELECT name.* FROM unnest($6::text[], $7::text[], $8::text[]) WITH ORDINALITY \
            AS name (written, exact, canonical, place) \
        WHERE NOT EXISTS ( \
            SELECT 1 FROM users WHERE username_key IN (name.exact, name.canonical) \
                OR username_canonical = name.canonical) \
        ORDER BY place LIMIT 1) \
    INSERT INTO users (id, email, email_key, email_canonical, username, username_key, username_canonical, \
        password_hash, created_at, updated_at) \
    SELECT $1, $2, $3, $4, free.written, free.exact, free.canonical, $5, $9, $10 FROM free \
    WHERE NOT EXISTS (SELECT 1 FROM users WHERE email_key IN ($3, $4) OR email_canonical = $4) \
    ON CONFLICT DO NOTHING \
    RETURNING id, email, username, password_hash, epoch, disabled_at, group_names, created_at";

/// Whether the e-mail address and the username are taken, in any spelling.
const TAKEN: &str = "\
    SELECT EXISTS (SELECT 1 FROM users WHERE email_key IN ($1, $2) OR email_canonical = $2) AS email, \
        EXISTS (SELECT 1 FROM users WHERE username_key IN ($3, $4) OR username_canonical = $4) AS username";

impl PostgresUsers {
    /// Opens the database of `url`, which [`migrate`] must have prepared. It is no error if it can't be reached now.
    pub(super) async fn open(url: &PostgresUrl, clock: Clock) -> Result<Self, OpenError> {
        Ok(Self { database: Database::open(url).await?, clock })
    }

    pub(super) fn usage(&self) -> Usage {
        let pools = vec![self.database.connections()];
        Usage { pools, is_primary: self.database.is_primary(), ..Usage::default() }
    }

    pub(super) async fn create(&self, new: NewUser) -> Result<User, UserStoreError> {
        let now = self.clock.now();
        let id = id_at(now)?;
        self.database.run("create", move |db| Box::pin(insert(db, id, new, now, now))).await
    }

    pub(super) async fn import(
        &self,
        users: Vec<Imported>,
        dry_run: bool,
    ) -> Result<Vec<Option<UserStoreError>>, UserStoreError> {
        let now = self.clock.now();
        self.database
            .transact(IMPORT_LIMIT, "import", move |db| {
                Box::pin(async move {
                    sqlx::raw_sql("SAVEPOINT import").execute(db.db()).await?;
                    let mut outcomes = Vec::with_capacity(users.len());
                    for Imported { id, created_at, user } in users {
                        let exists: bool = db
                            .scalar("SELECT EXISTS (SELECT 1 FROM users WHERE id = $1)")
                            .bind(id)
                            .fetch_one(db.db())
                            .await?;
                        if exists {
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
                    sqlx::raw_sql(end).execute(db.db()).await?;
                    Ok(outcomes)
                })
            })
            .await
    }

    pub(super) async fn ensure_free(&self, email: &str, username: Option<&str>) -> Result<(), UserStoreError> {
        let (email, username) = (Keys::of(email), username.map(Keys::of));
        self.database
            .run("ensure_free", move |db| Box::pin(async move { ensure_free(db, &email, username.as_ref()).await }))
            .await
    }

    pub(super) async fn by_login(&self, identifier: &str) -> Result<Option<User>, UserStoreError> {
        let keys = Keys::of(identifier);
        let statement = if keys.is_email() {
            select!(
                "WHERE email_key IN ($1, $2) OR email_canonical = $2 \
                 ORDER BY email_key = $1 DESC, email_canonical = $2 DESC NULLS LAST LIMIT 1"
            )
        } else {
            select!(
                "WHERE username_key IN ($1, $2) OR username_canonical = $2 \
                 ORDER BY username_key = $1 DESC, username_canonical = $2 DESC NULLS LAST LIMIT 1"
            )
        };
        self.database
            .run("by_login", move |db| {
                Box::pin(async move {
                    let query = db.query_as(statement).bind(keys.exact).bind(keys.canonical);
                    Ok(query.fetch_optional(db.db()).await?)
                })
            })
            .await
    }

    pub(super) async fn by_id(&self, id: Uuid) -> Result<Option<User>, UserStoreError> {
        self.database
            .run("by_id", move |db| {
                Box::pin(
                    async move { Ok(db.query_as(select!("WHERE id = $1")).bind(id).fetch_optional(db.db()).await?) },
                )
            })
            .await
    }

    pub(super) async fn current_epoch(&self, id: Uuid) -> Result<Option<i64>, UserStoreError> {
        self.database
            .run("current_epoch", move |db| {
                Box::pin(async move {
                    let query = db.scalar("SELECT epoch FROM users WHERE id = $1 AND disabled_at IS NULL").bind(id);
                    Ok(query.fetch_optional(db.db()).await?)
                })
            })
            .await
    }

    pub(super) async fn list(&self, after: Option<Uuid>, limit: u32) -> Result<Vec<User>, UserStoreError> {
        self.database
            .run("list", move |db| {
                Box::pin(async move {
                    let query = db.query_as(select!("WHERE id > $1 ORDER BY id LIMIT $2"));
                    let query = query.bind(after.unwrap_or_default()).bind(i64::from(limit));
                    Ok(query.fetch_all(db.db()).await?)
                })
            })
            .await
    }

    /// Checks that the server is still the primary and accepts writes.
    pub(super) async fn ping(&self) -> Result<(), UserStoreError> {
        self.database.check().await
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
            .run("replace_password", move |db| {
                Box::pin(async move {
                    let query = db.scalar(
                        "UPDATE users SET password_hash = $3, epoch = epoch + 1, updated_at = $4 \
                         WHERE id = $1 AND epoch = $2 RETURNING epoch",
                    );
                    let query = query.bind(id).bind(expected_epoch).bind(new_hash.expose_secret()).bind(now);
                    Ok(query.fetch_optional(db.db()).await?)
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
            .run("raise_epoch", move |db| {
                Box::pin(async move {
                    let query = db.scalar(
                        "UPDATE users SET epoch = greatest(epoch, $3), updated_at = $4 \
                         WHERE id = $1 AND epoch = $2 AND disabled_at IS NULL RETURNING epoch",
                    );
                    let query = query.bind(id).bind(expected_epoch).bind(at_least).bind(now);
                    Ok(query.fetch_optional(db.db()).await?)
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
            .run("upgrade_hash", move |db| {
                Box::pin(async move {
                    let query = db.query(
                        "UPDATE users SET password_hash = $3, updated_at = $4 WHERE id = $1 AND password_hash = $2",
                    );
                    let query = query.bind(id).bind(old_hash.expose_secret()).bind(new_hash.expose_secret()).bind(now);
                    Ok(query.execute(db.db()).await?.rows_affected() == 1)
                })
            })
            .await
    }

    pub(super) async fn disable(&self, id: Uuid, expected_epoch: i64) -> Result<Option<i64>, UserStoreError> {
        let now = self.clock.now_ms();
        self.database
            .run("disable", move |db| {
                Box::pin(async move {
                    let query = db.scalar(
                        "UPDATE users SET disabled_at = $3, epoch = epoch + 1, updated_at = $3 \
                         WHERE id = $1 AND epoch = $2 AND disabled_at IS NULL RETURNING epoch",
                    );
                    Ok(query.bind(id).bind(expected_epoch).bind(now).fetch_optional(db.db()).await?)
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
            .run("replace_groups", move |db| {
                Box::pin(async move {
                    let query = db.scalar(
                        "UPDATE users SET group_names = $3, epoch = epoch + 1, updated_at = $4 \
                         WHERE id = $1 AND epoch = $2 RETURNING epoch",
                    );
                    Ok(query.bind(id).bind(expected_epoch).bind(groups).bind(now).fetch_optional(db.db()).await?)
                })
            })
            .await
    }

    pub(super) async fn enable(&self, id: Uuid) -> Result<bool, UserStoreError> {
        let now = self.clock.now_ms();
        self.database
            .run("enable", move |db| {
                Box::pin(async move {
                    let query = db.query(
                        "UPDATE users SET disabled_at = NULL, updated_at = $2 WHERE id = $1 AND disabled_at IS NOT NULL",
                    );
                    Ok(query.bind(id).bind(now).execute(db.db()).await?.rows_affected() == 1)
                })
            })
            .await
    }

    pub(super) async fn delete(&self, id: Uuid, expected_epoch: i64) -> Result<bool, UserStoreError> {
        self.database
            .run("delete", move |db| {
                Box::pin(async move {
                    let query =
                        db.query("DELETE FROM users WHERE id = $1 AND epoch = $2").bind(id).bind(expected_epoch);
                    Ok(query.execute(db.db()).await?.rows_affected() == 1)
                })
            })
            .await
    }
}

/// Adds a user with epoch 1.
async fn insert(
    db: &mut Session,
    id: Uuid,
    new: NewUser,
    created_at: Timestamp,
    now: Timestamp,
) -> Result<User, UserStoreError> {
    let email = written(&new.email);
    let email_keys = Keys::of(&email);
    let chosen = new.username.map(|username| written(&username));
    let candidates = chosen.clone().map_or_else(|| free_usernames(&email).collect(), |username| vec![username]);
    let keys: Vec<_> = candidates.iter().map(|name| Keys::of(name)).collect();
    let exact: Vec<_> = keys.iter().map(|keys| keys.exact.clone()).collect();
    let canonical: Vec<_> = keys.iter().map(|keys| keys.canonical.clone()).collect();
    for _ in 0..NAME_TRIES {
        let query = db.query_as(INSERT).bind(id).bind(email.clone()).bind(email_keys.exact.clone());
        let query = query.bind(email_keys.canonical.clone()).bind(new.password_hash.expose_secret());
        let query = query.bind(candidates.clone()).bind(exact.clone()).bind(canonical.clone());
        let query = query.bind(created_at.as_millisecond()).bind(now.as_millisecond());
        if let Some(user) = query.fetch_optional(db.db()).await? {
            return Ok(user);
        }
        ensure_free(db, &email_keys, chosen.is_some().then(|| &keys[0])).await?;
        // The chosen username was taken meanwhile, or the account that had the name was deleted meanwhile.
    }
    Err(UserStoreError::UsernameTaken)
}

async fn ensure_free(db: &mut Session, email: &Keys, username: Option<&Keys>) -> Result<(), UserStoreError> {
    let query = db.query(TAKEN).bind(email.exact.clone()).bind(email.canonical.clone());
    let query = query.bind(username.map(|keys| keys.exact.clone()));
    let row = query.bind(username.and_then(|keys| keys.canonical.clone())).fetch_one(db.db()).await?;
    if row.try_get("email")? {
        Err(UserStoreError::EmailTaken)
    } else if row.try_get("username")? {
        Err(UserStoreError::UsernameTaken)
    } else {
        Ok(())
    }
}

impl FromRow<'_, PgRow> for User {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let time = |ms| Timestamp::from_millisecond(ms).map_err(|error| sqlx::Error::Decode(error.into()));
        Ok(Self {
            id: row.try_get("id")?,
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
