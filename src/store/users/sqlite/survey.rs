//! What an operator should know of a database: `authfleet doctor` judges it.
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sqlx::sqlite::SqliteConnection;
use sqlx::{ConnectOptions as _, Connection as _};

use super::{OpenError, canonical, engine, files, schema};
use crate::store::users::names::UnusualNames;

/// A database that could be opened.
#[derive(Debug)]
pub(crate) struct Survey {
    /// Where it is.
    pub path: PathBuf,
    /// Size of the file, without its journal.
    pub bytes: u64,
    /// Its permission bits.
    pub mode: u32,
    /// Files beside it that its owner may not use, with the number of their own owner.
    pub out_of_owners_reach: Vec<(PathBuf, u32)>,
    /// The kind of filesystem, such as `ext4`; `None` if it isn't known.
    pub filesystem: Option<&'static str>,
    /// What this user may still write to it, in bytes.
    pub free_bytes: u64,
    /// SQLite's version.
    pub version: String,
    /// Whether that is one that processes can share a database with.
    pub is_recent: bool,
    /// `wal` if all is well.
    pub journal_mode: String,
    /// Whether a server could work with the schema: its newest migration, or what is wrong.
    pub schema: Result<i64, OpenError>,
    /// Accounts without canonical names; empty if the schema is not as it should be.
    pub unusual: UnusualNames,
    /// Whether it can be written: how long a commit took, to the disk and back.
    pub commit: Result<Duration, OpenError>,
}

/// Looks at the database at `path`; writes nothing but what is there already.
///
/// # Errors
///
/// [`OpenError`] if there is none, or it is in a place where it can't be used.
pub(in crate::store::users) async fn survey(path: &Path) -> Result<Survey, OpenError> {
    let io = |source| OpenError::Io { path: path.into(), source };
    files::Paths::resolve(path)?;
    files::check_place(path)?;
    let metadata = std::fs::metadata(path).map_err(io)?;
    let space = rustix::fs::statvfs(path).map_err(|errno| io(errno.into()))?;

    let sqlite = |source| OpenError::Sqlite { path: path.into(), source };
    let mut db = engine::options(path).connect().await.map_err(sqlite)?;
    let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut db).await.map_err(sqlite)?;
    let journal_mode = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut db).await.map_err(sqlite)?;
    let schema = match schema::check(path, &mut db, &schema::embedded()).await {
        Ok(()) => schema::version(&mut db).await.map_err(sqlite),
        Err(error) => Err(error),
    };
    let unusual = match &schema {
        Ok(_) => canonical::unusual(&mut db).await.map_err(sqlite)?,
        Err(_) => UnusualNames::default(),
    };
    let survey = Survey {
        path: path.into(),
        unusual,
        bytes: metadata.len(),
        mode: metadata.mode() & 0o777,
        out_of_owners_reach: files::out_of_owners_reach(&path.canonicalize().map_err(io)?).map_err(io)?,
        filesystem: filesystem(path),
        free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
        is_recent: engine::is_recent(&version),
        version,
        journal_mode,
        schema,
        commit: commit(&mut db).await.map_err(sqlite),
    };
    db.close().await.map_err(sqlite)?;
    Ok(survey)
}

/// A commit that changes nothing: the number that is there is written once more.
async fn commit(db: &mut SqliteConnection) -> sqlx::Result<Duration> {
    let begin = Instant::now();
    let mut transaction = db.begin_with("BEGIN IMMEDIATE").await?;
    let number: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *transaction).await?;
    let again = sqlx::AssertSqlSafe(format!("PRAGMA user_version = {number}"));
    sqlx::query(again).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(begin.elapsed())
}

/// Numbers from `linux/magic.h` and statfs(2); filesystems of other hosts have been refused before.
#[cfg(target_os = "linux")]
fn filesystem(path: &Path) -> Option<&'static str> {
    let stat = rustix::fs::statfs(path).ok()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "magic numbers have 32 bits")]
    match stat.f_type as u32 {
        0xEF53 => Some("ext4"),
        0x5846_5342 => Some("xfs"),
        0x9123_683E => Some("btrfs"),
        0x2FC1_2FC1 => Some("zfs"),
        0xF2F5_2010 => Some("f2fs"),
        0x0102_1994 => Some("tmpfs"),
        0x794C_7630 => Some("overlayfs"),
        _ => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn filesystem(_path: &Path) -> Option<&'static str> {
    None
}
