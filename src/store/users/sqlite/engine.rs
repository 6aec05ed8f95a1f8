//! SQLite itself: its version, its mode, and the settings of each connection.
use std::path::Path;
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteSynchronous};

use super::OpenError;

/// How long SQLite itself waits for another process's lock. Shorter than a call's deadline, so that its own error is
/// reported.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
/// Older versions can corrupt a WAL that processes share (<https://www.sqlite.org/wal.html>, "WAL-reset bug").
const OLDEST_SQLITE: [u32; 3] = [3, 51, 3];

/// The options of every connection. They never create a file.
pub(super) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // Each commit is on disk before it is acknowledged, so it survives a power cut.
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging()
}

/// Refuses a SQLite that is too old and a database that is not in WAL mode.
pub(super) async fn check(path: &Path, db: &mut SqliteConnection) -> Result<(), OpenError> {
    let failed = |source| OpenError::Sqlite { path: path.into(), source };
    let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut *db).await.map_err(failed)?;
    if !is_recent(&version) {
        return Err(OpenError::SqliteTooOld { found: version });
    }
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(db).await.map_err(failed)?;
    if mode == "wal" { Ok(()) } else { Err(OpenError::NotWal { mode }) }
}

pub(super) fn is_recent(version: &str) -> bool {
    let parts: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
    parts.is_some_and(|parts| parts.as_slice() >= OLDEST_SQLITE.as_slice())
}

#[cfg(test)]
mod tests {
    use super::is_recent;

    #[test]
    fn sqlite_versions_compare_as_numbers() {
        for (version, recent) in
            [("3.51.3", true), ("3.51.10", true), ("4.0.0", true), ("3.51.2", false), ("3.9.9", false), ("x", false)]
        {
            assert_eq!(is_recent(version), recent, "{version}");
        }
    }
}
