//! The schema's version. `authfleet migrate` brings it up to date, and a server only checks it.
use std::sync::Arc;

use sqlx::Row as _;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnection;

use super::connector::{Connector, Session};
use super::{OpenError, canonical};
use crate::config::PostgresUrl;
use crate::store::users::MigrationReport;

/// Begins a migration. Its lock allows one migration at a time per database. It belongs to the transaction, because
/// behind a pooler a session is shared with others. The number is unique to this program.
const BEGIN: &str = "BEGIN; SET LOCAL statement_timeout = 60000; SET LOCAL idle_in_transaction_session_timeout = 60000; \
     SELECT pg_advisory_xact_lock(4702394921427289921)";
const TABLE: &str = "CREATE TABLE authfleet_migrations (\
     version bigint PRIMARY KEY, \
     description text NOT NULL, \
     checksum bytea NOT NULL, \
     applied_at timestamptz NOT NULL DEFAULT now())";

/// The migrations in this binary.
pub(super) fn embedded() -> Migrator {
    sqlx::migrate!("migrations/postgres")
}

/// Brings the schema of an existing database up to date. It is safe to run while other `migrate`s and servers run: one
/// does the work, and the others wait and find it done.
///
/// # Errors
///
/// [`OpenError`]. Nothing is changed then, because a run is one transaction.
pub(in crate::store::users) async fn migrate(url: &PostgresUrl) -> Result<MigrationReport, OpenError> {
    migrate_with(url, &embedded()).await
}

pub(super) async fn migrate_with(url: &PostgresUrl, migrations: &Migrator) -> Result<MigrationReport, OpenError> {
    let connector = Connector::new(url);
    let mut session = connector.connect().await?;
    let failed = |source| connector.failed(source);
    sqlx::raw_sql(BEGIN).execute(session.db()).await.map_err(failed)?;
    let before = applied(&mut session).await.map_err(failed)?;
    if before.is_empty() {
        sqlx::raw_sql(TABLE).execute(session.db()).await.map_err(failed)?;
    }
    check_not_too_new(&connector, &mut session, &before, migrations).await?;
    let mut now = Vec::new();
    for migration in migrations.iter() {
        if before.contains(&migration.version) {
            continue;
        }
        let failed =
            |source| OpenError::Migration { place: Arc::clone(connector.place()), version: migration.version, source };
        sqlx::raw_sql(migration.sql.clone()).execute(session.db()).await.map_err(failed)?;
        sqlx::query("INSERT INTO authfleet_migrations (version, description, checksum) VALUES ($1, $2, $3)")
            .persistent(false)
            .bind(migration.version)
            .bind(migration.description.to_string())
            .bind(migration.checksum.to_vec())
            .execute(session.db())
            .await
            .map_err(failed)?;
        now.push(migration.version);
    }
    let unusual = canonical::unusual(&mut session).await.map_err(failed)?;
    sqlx::raw_sql("COMMIT").execute(session.db()).await.map_err(failed)?;
    session.close().await;
    let version = before.iter().chain(&now).copied().max().unwrap_or_default();
    Ok(MigrationReport { created: before.is_empty(), applied: now, version, named: 0, unusual })
}

/// Checks that a server can work with the schema.
pub(super) async fn check(
    connector: &Connector,
    session: &mut Session,
    migrations: &Migrator,
) -> Result<(), OpenError> {
    let place = || Arc::clone(connector.place());
    let found = applied(session).await.map_err(|source| connector.failed(source))?;
    let Some(&version) = found.last() else { return Err(OpenError::SchemaMissing { place: place() }) };
    check_not_too_new(connector, session, &found, migrations).await?;
    if let Some(needed) = migrations.iter().map(|migration| migration.version).find(|needed| !found.contains(needed)) {
        return Err(OpenError::SchemaOlder { place: place(), needed });
    }
    let known = newest(migrations);
    if version > known {
        tracing::debug!(version, known, "the users database was migrated by a newer release, compatible with this one");
    }
    Ok(())
}

async fn check_not_too_new(
    connector: &Connector,
    session: &mut Session,
    found: &[i64],
    migrations: &Migrator,
) -> Result<(), OpenError> {
    let known = newest(migrations);
    if found.last().is_none_or(|newest| *newest <= known) {
        return Ok(());
    }
    let row = sqlx::raw_sql("SELECT migration FROM authfleet_oldest").fetch_one(session.db()).await;
    let oldest = row.and_then(|row| row.try_get("migration")).map_err(|source| connector.failed(source))?;
    if oldest > known {
        Err(OpenError::SchemaNewer { place: Arc::clone(connector.place()), oldest, known })
    } else {
        Ok(())
    }
}

fn newest(migrations: &Migrator) -> i64 {
    migrations.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// The newest migration in the database. 0 without any.
pub(super) async fn version(session: &mut Session) -> sqlx::Result<i64> {
    Ok(applied(session).await?.last().copied().unwrap_or_default())
}

/// The applied migrations in ascending order. Empty for a database that authfleet never migrated.
async fn applied(session: &mut Session) -> sqlx::Result<Vec<i64>> {
    if !is_there(session.db()).await? {
        return Ok(Vec::new());
    }
    let statement = "SELECT version FROM authfleet_migrations ORDER BY version";
    let rows = sqlx::raw_sql(statement).fetch_all(session.db()).await?;
    rows.iter().map(|row| row.try_get("version")).collect()
}

async fn is_there(db: &mut PgConnection) -> sqlx::Result<bool> {
    let statement = "SELECT to_regclass('authfleet_migrations') IS NOT NULL AS found";
    sqlx::raw_sql(statement).fetch_one(db).await?.try_get("found")
}
