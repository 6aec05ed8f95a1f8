//! The schema's version. `authfleet migrate` brings it up to date, and a server only checks it.
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnection, SqliteJournalMode};
use sqlx::{ConnectOptions, Connection};

use super::{OpenError, canonical, engine, files};
use crate::store::users::MigrationReport;
use crate::store::users::names::UnusualNames;

/// How long `migrate` waits for another `migrate`, and for writers of a running fleet.
const PATIENCE: Duration = Duration::from_mins(1);

/// The migration that added canonical names.
const CANONICAL_NAMES: i64 = 2;

/// The migrations in this binary.
pub(super) fn embedded() -> Migrator {
    sqlx::migrate!("migrations/sqlite")
}

/// Creates the database at `path` and its directory if there are none, and brings the schema up to date. It is safe to
/// run while other `migrate`s and servers run: with a lock on `<path>.lock`, one does the work, and the others find it
/// done.
///
/// # Errors
///
/// [`OpenError`]. No migration is applied in part, because each is one transaction. The next run fills in names that
/// are still missing.
pub(in crate::store::users) async fn migrate(path: &Path) -> Result<MigrationReport, OpenError> {
    migrate_with(path, embedded()).await
}

pub(super) async fn migrate_with(path: &Path, mut migrations: Migrator) -> Result<MigrationReport, OpenError> {
    let directory = files::directory_of(path);
    std::fs::create_dir_all(directory).map_err(|source| OpenError::Io { path: directory.into(), source })?;
    files::check_directory(path)?;
    // sqlx takes no lock on SQLite, and creating the file and switching to WAL come before any transaction.
    let _lock = files::lock(path, PATIENCE).await?;

    let created = create_if_missing(path)?;
    files::check_place(path)?;
    let failed = |source| OpenError::Sqlite { path: path.into(), source };
    let mut db = engine::options(path)
        .busy_timeout(PATIENCE)
        .journal_mode(SqliteJournalMode::Wal)
        .connect()
        .await
        .map_err(failed)?;
    engine::check(path, &mut db).await?;
    let before = applied(&mut db).await.map_err(failed)?;
    check_not_too_new(path, &mut db, &migrations).await?;
    // A newer release may have migrated. An older binary's `migrate` during a roll-back then has nothing to do.
    migrations.set_ignore_missing(true);
    migrations.run(&mut db).await.map_err(|source| OpenError::Migration { path: path.into(), source })?;
    let after = applied(&mut db).await.map_err(failed)?;
    let (mut named, mut unusual) = (0, UnusualNames::default());
    if after.contains(&CANONICAL_NAMES) {
        named = canonical::fill(&mut db).await.map_err(failed)?;
        unusual = canonical::unusual(&mut db).await.map_err(failed)?;
    }
    db.close().await.map_err(failed)?;
    Ok(MigrationReport {
        named,
        unusual,
        created,
        version: after.last().copied().unwrap_or_default(),
        applied: after.into_iter().filter(|version| !before.contains(version)).collect(),
    })
}

/// Checks that a server can work with the schema.
pub(super) async fn check(path: &Path, db: &mut SqliteConnection, migrations: &Migrator) -> Result<(), OpenError> {
    let found = applied(db).await.map_err(|source| OpenError::Sqlite { path: path.into(), source })?;
    let Some(&version) = found.last() else { return Err(OpenError::SchemaMissing { path: path.into() }) };
    check_not_too_new(path, db, migrations).await?;
    if let Some(needed) = migrations.iter().map(|migration| migration.version).find(|needed| !found.contains(needed)) {
        return Err(OpenError::SchemaOlder { path: path.into(), needed });
    }
    let known = newest(migrations);
    if version > known {
        tracing::info!(version, known, "the users database was migrated by a newer release, compatible with this one");
    }
    Ok(())
}

async fn check_not_too_new(path: &Path, db: &mut SqliteConnection, migrations: &Migrator) -> Result<(), OpenError> {
    let oldest: i64 = sqlx::query_scalar("PRAGMA user_version")
        .fetch_one(db)
        .await
        .map_err(|source| OpenError::Sqlite { path: path.into(), source })?;
    let known = newest(migrations);
    if oldest > known { Err(OpenError::SchemaNewer { path: path.into(), oldest, known }) } else { Ok(()) }
}

fn newest(migrations: &Migrator) -> i64 {
    migrations.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// The newest migration in the database. 0 without any.
pub(super) async fn version(db: &mut SqliteConnection) -> sqlx::Result<i64> {
    Ok(applied(db).await?.last().copied().unwrap_or_default())
}

/// The applied migrations in ascending order. Empty for a database that authfleet never migrated.
async fn applied(db: &mut SqliteConnection) -> sqlx::Result<Vec<i64>> {
    let migrated: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations')",
    )
    .fetch_one(&mut *db)
    .await?;
    if !migrated {
        return Ok(Vec::new());
    }
    sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success ORDER BY version").fetch_all(db).await
}

/// Creates an empty file that only its owner can read (password hashes). SQLite gives `-wal` and `-shm` the same mode
/// and owner. If root creates it, it belongs to the directory's owner.
fn create_if_missing(path: &Path) -> Result<bool, OpenError> {
    let failed = |source| OpenError::Io { path: path.into(), source };
    if files::FileId::at(path).map_err(failed)?.is_some() {
        return Ok(false);
    }
    for suffix in ["-wal", "-shm"] {
        let leftover = files::with_suffix(path, suffix);
        if files::FileId::at(&leftover).map_err(failed)?.is_some() {
            return Err(OpenError::Leftover { path: path.into(), leftover });
        }
    }
    let owner = files::Owner::beside(path);
    owner.give(&OpenOptions::new().create_new(true).write(true).mode(0o600).open(path).map_err(failed)?);
    Ok(true)
}
