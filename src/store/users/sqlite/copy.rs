//! One end of a copy in a SQLite file.
use std::path::{Path, PathBuf};

use rustix::process::{Flock, FlockOffsetType, FlockType};
use secrecy::ExposeSecret as _;
use sqlx::sqlite::{Sqlite as Engine, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, QueryBuilder, Row as _};
use uuid::Uuid;

use super::{OpenError, engine, files, schema};
use crate::store::users::account::{Account, COLUMNS};

/// The byte of `-shm` on which every connection to the database holds a shared lock
/// (<https://www.sqlite.org/walformat.html#wal_locks>, "DMS").
const IN_USE: u64 = 128;

/// A connection, and the transaction on it.
pub(in crate::store::users) struct Sqlite {
    db: SqliteConnection,
    path: PathBuf,
    others: u64,
}

impl Sqlite {
    /// Connects, checks what a server would check, and begins a transaction: one that writes for a target.
    pub(in crate::store::users) async fn open(path: &Path, is_target: bool) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Sqlite { path: path.into(), source };
        let paths = files::Paths::resolve(path)?;
        files::check_place(path)?;
        // Done before this process has a connection, because closing a file drops all locks that the process has on it.
        let others = u64::from(is_in_use(&paths.shm).map_err(|source| OpenError::Io { path: paths.shm, source })?);
        let mut db = engine::options(path).connect().await.map_err(failed)?;
        engine::check(path, &mut db).await?;
        schema::check(path, &mut db, &schema::embedded()).await?;
        let begin = if is_target { "BEGIN IMMEDIATE" } else { "BEGIN" };
        sqlx::query(begin).execute(&mut db).await.map_err(failed)?;
        Ok(Self { db, path: path.into(), others })
    }

    /// 1 if other processes have the database open, otherwise 0.
    #[expect(clippy::unused_async, reason = "the same shape as for PostgreSQL")]
    pub(in crate::store::users) async fn others(&mut self) -> Result<u64, OpenError> {
        Ok(self.others)
    }

    pub(in crate::store::users) async fn read(
        &mut self,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Account>, OpenError> {
        let after = after.map(|id| id.to_string()).unwrap_or_default();
        let statement = format!("SELECT {COLUMNS} FROM users WHERE id > ?1 ORDER BY id LIMIT {limit}");
        let rows = sqlx::query(AssertSqlSafe(statement)).bind(after).fetch_all(&mut self.db).await;
        rows.and_then(|rows| rows.iter().map(account).collect()).map_err(|source| self.failed(source))
    }

    pub(in crate::store::users) async fn clear(&mut self) -> Result<(), OpenError> {
        let done = sqlx::query("DELETE FROM users").execute(&mut self.db).await;
        done.map(drop).map_err(|source| self.failed(source))
    }

    pub(in crate::store::users) async fn write(&mut self, accounts: &[Account]) -> Result<(), OpenError> {
        let mut insert = QueryBuilder::<Engine>::new(format!("INSERT INTO users ({COLUMNS}) "));
        insert.push_values(accounts, |mut row, account| {
            row.push_bind(account.id.to_string())
                .push_bind(&account.email)
                .push_bind(&account.email_key)
                .push_bind(&account.email_canonical)
                .push_bind(&account.username)
                .push_bind(&account.username_key)
                .push_bind(&account.username_canonical)
                .push_bind(account.password_hash.expose_secret())
                .push_bind(account.epoch)
                .push_bind(account.disabled_at)
                .push_bind(&account.group_names)
                .push_bind(account.created_at)
                .push_bind(account.updated_at);
        });
        let done = insert.build().execute(&mut self.db).await;
        done.map(drop).map_err(|source| self.failed(source))
    }

    pub(in crate::store::users) async fn commit(mut self) -> Result<(), OpenError> {
        let done = sqlx::query("COMMIT").execute(&mut self.db).await;
        done.map_err(|source| self.failed(source))?;
        let path = self.path;
        self.db.close().await.map_err(|source| OpenError::Sqlite { path, source })
    }

    fn failed(&self, source: sqlx::Error) -> OpenError {
        OpenError::Sqlite { path: self.path.clone(), source }
    }
}

fn account(row: &SqliteRow) -> sqlx::Result<Account> {
    let id: String = row.try_get("id")?;
    let id =
        id.parse().map_err(|error| sqlx::Error::ColumnDecode { index: "id".to_owned(), source: Box::new(error) })?;
    Account::of(id, row)
}

/// Whether another process has the database open.
fn is_in_use(shm: &Path) -> std::io::Result<bool> {
    let file = match std::fs::OpenOptions::new().read(true).write(true).open(shm) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    let asked =
        Flock { start: IN_USE, length: 1, pid: None, typ: FlockType::WriteLock, offset_type: FlockOffsetType::Set };
    Ok(rustix::process::fcntl_getlk(&file, &asked)?.is_some())
}
