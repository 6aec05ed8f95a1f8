//! Facts about a database, which `authfleet doctor` judges.
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
    /// Its path.
    pub path: PathBuf,
    /// Size of the file, without its journal.
    pub bytes: u64,
    /// Its permission bits.
    pub mode: u32,
    /// Files beside it that its owner can't use, each with its own owner's number.
    pub out_of_owners_reach: Vec<(PathBuf, u32)>,
    /// The kind of filesystem, such as `ext4`. `None` if it isn't known.
    pub filesystem: Option<&'static str>,
    /// How many bytes this user can still write to the filesystem.
    pub free_bytes: u64,
    /// SQLite's version.
    pub version: String,
    /// Whether processes can safely share a database with that version.
    pub is_recent: bool,
    /// The journal's mode, which should be `wal`.
    pub journal_mode: String,
    /// The schema's newest migration, or why a server can't work with it.
    pub schema: Result<i64, OpenError>,
    /// Accounts without canonical names. Empty if the schema is wrong.
    pub unusual: UnusualNames,
    /// How long a commit to disk took, or why it failed.
    pub commit: Result<Duration, OpenError>,
}

/// Looks at the database at `path`, without changing anything.
///
/// # Errors
///
/// [`OpenError`] if there is no database, or it is in a place where it can't be used.
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

/// Times a commit that changes nothing, because it writes a number that is there already.
async fn commit(db: &mut SqliteConnection) -> sqlx::Result<Duration> {
    let begin = Instant::now();
    let mut transaction = db.begin_with("BEGIN IMMEDIATE").await?;
    let number: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *transaction).await?;
    let again = sqlx::AssertSqlSafe(format!("PRAGMA user_version = {number}"));
    sqlx::query(again).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(begin.elapsed())
}

/// The kind of filesystem, by the numbers of `linux/magic.h` and statfs(2). Network filesystems were refused before.
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
