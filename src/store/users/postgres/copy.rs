//! One end of a copy in a PostgreSQL database.
use std::time::{Duration, Instant};

use secrecy::ExposeSecret as _;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::connector::{Connector, Session};
use super::{OpenError, schema};
use crate::config::PostgresUrl;
use crate::store::users::account::{Account, COLUMNS};

/// Lifts the time limits of the server's statements, because reading all accounts takes longer.
const UNLIMITED: &str = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";
/// How long the server may take to end the process of a closed connection, for example that of an `authfleet migrate`
/// just before.
const GOODBYE: Duration = Duration::from_secs(2);
/// Begins a transaction on the source, which sees one state of all accounts.
const BEGIN_READING: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// Begins a transaction on the target, which keeps others from writing, but not from reading.
const BEGIN_WRITING: &str = "BEGIN; LOCK TABLE users IN EXCLUSIVE MODE";

/// A connection, and the transaction on it.
pub(in crate::store::users) struct Postgres {
    session: Session,
    connector: Connector,
}

impl Postgres {
    /// Connects, checks what a server would check, and begins a transaction: one that writes for a target.
    pub(in crate::store::users) async fn open(url: &PostgresUrl, is_target: bool) -> Result<Self, OpenError> {
        let connector = Connector::new(url);
        let mut session = connector.connect().await?;
        schema::check(&connector, &mut session, &schema::embedded()).await?;
        let begin = if is_target { BEGIN_WRITING } else { BEGIN_READING };
        for statement in [begin, UNLIMITED] {
            sqlx::raw_sql(statement).execute(session.db()).await.map_err(|error| connector.failed(error))?;
        }
        Ok(Self { session, connector })
    }

    /// The number of connections of authfleet servers. A pooler may hide them.
    pub(in crate::store::users) async fn others(&mut self) -> Result<u64, OpenError> {
        let statement = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND application_name = 'authfleet' AND pid <> pg_backend_pid()";
        let begin = Instant::now();
        loop {
            let found: Result<i64, _> = self.session.scalar(statement).fetch_one(self.session.db()).await;
            let found = found.map_err(|error| self.connector.failed(error))?.unsigned_abs();
            if found == 0 || begin.elapsed() > GOODBYE {
                return Ok(found);
            }
            tokio::time::sleep(GOODBYE / 20).await;
            // A transaction sees the same state of the view until it asks for a new one.
            let again = sqlx::raw_sql("SELECT pg_stat_clear_snapshot()").execute(self.session.db()).await;
            again.map_err(|error| self.connector.failed(error))?;
        }
    }

    pub(in crate::store::users) async fn read(
        &mut self,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Account>, OpenError> {
        let statement = format!("SELECT {COLUMNS} FROM users WHERE $1 IS NULL OR id > $1 ORDER BY id LIMIT {limit}");
        let rows = self.query(statement).bind(after).fetch_all(self.session.db()).await;
        rows.and_then(|rows| rows.iter().map(account).collect()).map_err(|error| self.connector.failed(error))
    }

    pub(in crate::store::users) async fn clear(&mut self) -> Result<(), OpenError> {
        let done = self.session.query("DELETE FROM users").execute(self.session.db()).await;
        done.map(drop).map_err(|error| self.connector.failed(error))
    }

    pub(in crate::store::users) async fn write(&mut self, accounts: &[Account]) -> Result<(), OpenError> {
        fn column<'a, T>(accounts: &'a [Account], value: impl Fn(&'a Account) -> T) -> Vec<T> {
            accounts.iter().map(value).collect()
        }
        let statement = format!(
            "INSERT INTO users ({COLUMNS}) SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], \
             $5::text[], $6::text[], $7::text[], $8::text[], $9::bigint[], $10::bigint[], $11::text[], $12::bigint[], \
             $13::bigint[])"
        );
        let insert = self
            .query(statement)
            .bind(column(accounts, |account| account.id))
            .bind(column(accounts, |account| account.email.as_str()))
            .bind(column(accounts, |account| account.email_key.as_str()))
            .bind(column(accounts, |account| account.email_canonical.as_deref()))
            .bind(column(accounts, |account| account.username.as_str()))
            .bind(column(accounts, |account| account.username_key.as_str()))
            .bind(column(accounts, |account| account.username_canonical.as_deref()))
            .bind(column(accounts, |account| account.password_hash.expose_secret()))
            .bind(column(accounts, |account| account.epoch))
            .bind(column(accounts, |account| account.disabled_at))
            .bind(column(accounts, |account| account.group_names.as_str()))
            .bind(column(accounts, |account| account.created_at))
            .bind(column(accounts, |account| account.updated_at));
        insert.execute(self.session.db()).await.map(drop).map_err(|error| self.connector.failed(error))
    }

    pub(in crate::store::users) async fn commit(mut self) -> Result<(), OpenError> {
        let done = sqlx::raw_sql("COMMIT").execute(self.session.db()).await;
        done.map_err(|error| self.connector.failed(error))?;
        self.session.close().await;
        Ok(())
    }

    fn query<'a>(&self, statement: String) -> Query<'a, sqlx::Postgres, PgArguments> {
        sqlx::query(AssertSqlSafe(statement)).persistent(!self.session.is_pooled())
    }
}

fn account(row: &PgRow) -> sqlx::Result<Account> {
    Account::of(row.try_get("id")?, row)
}
