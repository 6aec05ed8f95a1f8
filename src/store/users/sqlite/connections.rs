//! Connections to the database file: one writer, a few readers, and what happens if the file is replaced or deleted.
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnection, SqliteJournalMode, SqlitePoolOptions};

use super::engine::{self, BUSY_TIMEOUT};
use super::files::{self, Fate, FileId, Files, Paths};
use super::{OpenError, UserStoreError, schema};
use crate::store::users::observed::{DEADLINE, acquired, observed};

/// How long a starting server waits for a migration, and for a database that is locked or answers slowly.
const START_PATIENCE: Duration = Duration::from_secs(10);
const START_PAUSE: Duration = Duration::from_millis(100);
/// The number of readers. Statements take microseconds, so more readers would only cost a thread and a page cache each.
pub(super) const READERS: u32 = 4;
/// How long an operation waits for a connection. Less than [`DEADLINE`], so that it is this time-out that comes, and is
/// counted; more than [`BUSY_TIMEOUT`], the longest that the writer waits for other processes.
const ACQUIRE_LIMIT: Duration = Duration::from_millis(1200);
const READER_IDLE: Duration = Duration::from_mins(1);

/// A borrowed future that can move between threads.
pub(super) type Work<'t, T> = Pin<Box<dyn Future<Output = Result<T, UserStoreError>> + Send + 't>>;

/// Connections to one database file, all on the same three inodes.
struct Opened {
    paths: Paths,
    files: Files,
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Opened {
    async fn open(path: &Path) -> Result<Self, OpenError> {
        let paths = Paths::resolve(path)?;
        files::check_place(path)?;
        let io = |source| OpenError::Io { path: path.into(), source };
        let sqlite = |source| OpenError::Sqlite { path: path.into(), source };

        let before = FileId::at(&paths.db).map_err(io)?;
        // The writer stays open, because then no other process removes `-wal` and `-shm` when it closes the database.
        let writer = SqlitePoolOptions::new()
            .min_connections(1)
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(ACQUIRE_LIMIT)
            .test_before_acquire(false)
            .connect_with(
                engine::options(path).journal_mode(SqliteJournalMode::Wal).thread_name(|_| "sqlite-writer".into()),
            )
            .await
            .map_err(sqlite)?;
        {
            let mut db = writer.acquire().await.map_err(sqlite)?;
            engine::check(path, &mut db).await?;
            schema::check(path, &mut db, &schema::embedded()).await?;
        }
        let files = Files::at(&paths).map_err(io)?.filter(|files| Some(files.db) == before);
        let Some(files) = files else { return Err(OpenError::Changed { path: path.into() }) };

        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .idle_timeout(READER_IDLE)
            .max_lifetime(None)
            .acquire_timeout(ACQUIRE_LIMIT)
            .test_before_acquire(false)
            .connect_lazy_with(
                engine::options(path).pragma("query_only", "on").thread_name(|_| "sqlite-reader".into()),
            );
        Ok(Self { paths, files, writer, readers })
    }

    fn fate(&self) -> Result<Fate, OpenError> {
        self.files.fate(&self.paths).map_err(|source| OpenError::Io { path: self.paths.db.clone(), source })
    }

    fn ensure_in_place(&self) -> Result<(), OpenError> {
        match self.fate()? {
            Fate::Same => Ok(()),
            Fate::Missing | Fate::Replaced | Fate::JournalLost { .. } => {
                Err(OpenError::Changed { path: self.paths.db.clone() })
            }
        }
    }

    /// Copies the whole journal into the database.
    async fn write_back(&self) -> sqlx::Result<()> {
        let (busy, frames, copied): (i64, i64, i64) =
            sqlx::query_as("PRAGMA wal_checkpoint(FULL)").fetch_one(&self.writer).await?;
        if busy == 0 && frames == copied {
            Ok(())
        } else {
            Err(sqlx::Error::Protocol(format!("checkpoint incomplete: {copied} of {frames} frames, busy {busy}")))
        }
    }

    /// Removes `-wal` and `-shm` from their paths if they are the ones that these connections have open.
    fn remove_journal(&self) -> Result<(), OpenError> {
        for (path, own) in [(&self.paths.wal, self.files.wal), (&self.paths.shm, self.files.shm)] {
            let io = |source| OpenError::Io { path: path.clone(), source };
            if FileId::at(path).map_err(io)? == Some(own) {
                std::fs::remove_file(path).map_err(io)?;
            }
        }
        Ok(())
    }

    /// Closes all connections. Fails if a statement is still in progress, and may then be called again.
    async fn close(&self) -> Result<(), OpenError> {
        let io = |source| OpenError::Io { path: self.paths.wal.clone(), source };
        // The last connection to a database removes `-wal` by its path. Another journal may be there by now, with users
        // whose replica was killed before it could copy them. A second name keeps that journal.
        let kept = files::with_suffix(&self.paths.wal, ".kept");
        if FileId::at(&self.paths.wal).map_err(io)?.is_some_and(|wal| wal != self.files.wal) {
            std::fs::remove_file(&kept).or_else(not_found_is_fine).map_err(io)?;
            std::fs::hard_link(&self.paths.wal, &kept).map_err(io)?;
        }
        tokio::time::timeout(BUSY_TIMEOUT, async {
            self.readers.close().await;
            self.writer.close().await;
        })
        .await
        .map_err(|_| OpenError::Changed { path: self.paths.db.clone() })?;
        if FileId::at(&self.paths.wal).map_err(io)?.is_some() {
            std::fs::remove_file(&kept)
        } else {
            std::fs::rename(&kept, &self.paths.wal)
        }
        .or_else(not_found_is_fine)
        .map_err(io)
    }
}

fn not_found_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// The database at a path, whichever file is there at the moment.
pub(super) struct Database {
    path: PathBuf,
    state: Mutex<State>,
    /// Locked while a task reopens the database.
    reopening: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
enum State {
    Open(Arc<Opened>),
    /// Nothing is opened before the last of these is closed. All connections of a process to one database share one
    /// `-shm`, so a new connection would combine the old `-shm` with a new `-wal`.
    Closing(Arc<Opened>),
    Closed,
}

impl Database {
    pub(super) async fn open(path: &Path) -> Result<Self, OpenError> {
        Paths::resolve(path)?;
        files::check_place(path)?;
        let deadline = Instant::now() + START_PATIENCE;
        let opened = loop {
            let one_attempt = async {
                // Waits while another replica saves a journal.
                let _lock = files::lock(path, deadline.saturating_duration_since(Instant::now())).await?;
                Opened::open(path).await
            };
            match one_attempt.await {
                // An operation's limits are too short for a start: while a backup has the database for itself, or the
                // machine is busy, the server would end and be started again and again.
                Err(error) if error.may_pass() && Instant::now() < deadline => {
                    tracing::warn!(%error, "the users database can't be used yet");
                    tokio::time::sleep(START_PAUSE).await;
                }
                opened => break Arc::new(opened?),
            }
        };
        Ok(Self { path: path.into(), state: Mutex::new(State::Open(opened)), reopening: tokio::sync::Mutex::new(()) })
    }

    /// Runs `work` on the readers.
    pub(super) async fn read<T, F>(
        &self,
        operation: &'static str,
        work: impl FnOnce(SqlitePool) -> F,
    ) -> Result<T, UserStoreError>
    where
        F: Future<Output = Result<T, UserStoreError>>,
    {
        observed("sqlite", operation, DEADLINE, async {
            let opened = self.current().await?;
            work(opened.readers.clone()).await
        })
        .await
    }

    /// Runs `work` in a `BEGIN IMMEDIATE` transaction, which is rolled back if it fails. Once it has the lock, it runs
    /// to its end even if nobody waits for it any more. After a time-out, it is unknown whether it was committed.
    pub(super) async fn write<T, F>(&self, operation: &'static str, work: F) -> Result<T, UserStoreError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut SqliteConnection) -> Work<'t, T> + Send + 'static,
    {
        observed("sqlite", operation, DEADLINE, async {
            let opened = self.current().await?;
            let mut db =
                acquired("writer", opened.writer.acquire(), |error| matches!(error, sqlx::Error::PoolTimedOut)).await?;
            let caller = Arc::new(());
            let waiting = Arc::downgrade(&caller);
            let task = tokio::spawn(async move {
                let result = transact(&mut db, &opened, &waiting, work).await;
                if result.is_err() {
                    // Sent by hand. After some errors (disk full), SQLite has rolled back by itself. sqlx's
                    // `Transaction` wouldn't notice that, and would refuse every later transaction.
                    sqlx::query("ROLLBACK").execute(&mut *db).await.ok();
                }
                result
            });
            let result = task.await.map_err(UserStoreError::unavailable)?;
            drop(caller);
            result
        })
        .await
    }

    /// The configured path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The pools of the writer and of the readers, while there are any.
    pub(super) fn pools(&self) -> Option<[SqlitePool; 2]> {
        match &*self.state.lock() {
            State::Open(opened) | State::Closing(opened) => Some([opened.writer.clone(), opened.readers.clone()]),
            State::Closed => None,
        }
    }

    /// Connections to the file that is at the path now.
    async fn current(&self) -> Result<Arc<Opened>, OpenError> {
        if let Some(opened) = self.usable()? {
            return Ok(opened);
        }
        let _one_task = self.reopening.lock().await;
        if let Some(opened) = self.usable()? {
            return Ok(opened);
        }
        // The other replicas of this host notice at the same time. They save, remove and open files one after the
        // other.
        let _one_process = files::lock(&self.path, BUSY_TIMEOUT).await?;
        let state = self.state.lock().clone();
        if let State::Open(old) = state {
            self.save(&old).await?;
            *self.state.lock() = State::Closing(old);
        }
        let state = self.state.lock().clone();
        if let State::Closing(old) = state {
            old.close().await?;
            *self.state.lock() = State::Closed;
        }
        let opened = Arc::new(Opened::open(&self.path).await?);
        *self.state.lock() = State::Open(Arc::clone(&opened));
        tracing::warn!(path = %self.path.display(), "the users database was opened anew");
        Ok(opened)
    }

    /// The open connections, if their files are in place. A missing database is an error, because it may come back
    /// unchanged.
    fn usable(&self) -> Result<Option<Arc<Opened>>, OpenError> {
        let State::Open(opened) = self.state.lock().clone() else { return Ok(None) };
        match opened.fate()? {
            Fate::Same => Ok(Some(opened)),
            Fate::Missing => Err(OpenError::Missing { path: self.path.clone() }),
            Fate::Replaced | Fate::JournalLost { .. } => Ok(None),
        }
    }

    /// Prepares to close connections whose files are no longer those at the path. No acknowledged user is lost from a
    /// database that is still there, and nothing from a replaced database gets into its successor.
    async fn save(&self, old: &Opened) -> Result<(), OpenError> {
        let path = &self.path;
        match old.fate()? {
            Fate::Same => {}
            Fate::Missing => return Err(OpenError::Missing { path: path.clone() }),
            Fate::Replaced => {
                tracing::error!(path = %path.display(), "the users database was replaced while in use");
                // Completes a database that was moved away. It may also have been deleted, so a failure is only logged.
                if let Err(error) = old.write_back().await {
                    tracing::warn!(path = %path.display(), %error, "the journal could not be written to the old file");
                }
                // SQLite would use the old journal with the new database (howtocorrupt.html §1.4).
                old.remove_journal()?;
            }
            Fate::JournalLost { absent } => {
                tracing::error!(path = %path.display(), absent, "-wal or -shm of the users database was removed");
                // Some users may be only in the lost journal, which only processes that had it open can read. Once
                // anybody writes a new journal, copying from the old one would damage the database.
                if absent {
                    old.write_back().await.map_err(|source| OpenError::Sqlite { path: path.clone(), source })?;
                    // Removes the other file of the pair, which would mislead SQLite together with a new one.
                    old.remove_journal()?;
                }
            }
        }
        Ok(())
    }
}

async fn transact<T, F>(
    db: &mut SqliteConnection,
    opened: &Opened,
    caller: &Weak<()>,
    work: F,
) -> Result<T, UserStoreError>
where
    F: for<'t> FnOnce(&'t mut SqliteConnection) -> Work<'t, T>,
{
    // Immediate, because a transaction that reads first and writes later fails with SQLITE_BUSY without waiting.
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *db).await?;
    if caller.strong_count() == 0 {
        return Err(UserStoreError::unavailable("given up while waiting for the lock"));
    }
    // Checked again under the write lock. Whoever saves a lost journal takes that lock first, so nothing is added to
    // the journal once it is saved.
    opened.ensure_in_place()?;
    let value = work(db).await?;
    sqlx::query("COMMIT").execute(db).await?;
    // If the files were taken away meanwhile, nobody may find the commit, so it is not acknowledged.
    opened.ensure_in_place()?;
    Ok(value)
}
