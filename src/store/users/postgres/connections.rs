//! The connections of one replica: how they are kept and given up.
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool::Runtime;
use deadpool::managed::{
    Manager, Metrics, Object, Pool, PoolError, QueueMode, RecycleError, RecycleResult, TimeoutType,
};

use super::connector::{Connector, Session};
use super::{OpenError, schema};
use crate::config::PostgresUrl;
use crate::metrics::SQL_CONNECTS;
use crate::store::users::observed::{DEADLINE, acquired, observed};
use crate::store::users::{Connections, UserStoreError};

/// The number of connections of one replica. A statement takes about a millisecond, and hashing limits how many are
/// sent.
pub(super) const CONNECTIONS: usize = 5;
/// How long an operation waits for a free or new connection.
const WAIT_LIMIT: Duration = Duration::from_millis(600);
/// A connection that was idle for longer is checked before use, because the server may have been restarted.
const ASK_AFTER: Duration = Duration::from_secs(1);
/// How long that check may take.
const ASK_LIMIT: Duration = Duration::from_millis(300);
/// A connection that was idle for longer is replaced, because firewalls drop idle connections silently.
const IDLE_LIMIT: Duration = Duration::from_mins(1);
/// A connection that is older is replaced, so that a changed DNS entry takes effect.
const LIFE: Duration = Duration::from_mins(30);

/// A borrowed future that can move between threads.
pub(super) type Work<'t, T> = Pin<Box<dyn Future<Output = Result<T, UserStoreError>> + Send + 't>>;

impl Manager for Connector {
    type Type = Session;
    type Error = OpenError;

    async fn create(&self) -> Result<Session, OpenError> {
        let mut attempt = Attempt { result: "failed" };
        let made = self.connect().await;
        attempt.result = match &made {
            Ok(_) => "success",
            Err(OpenError::Standby { .. }) => "standby",
            Err(OpenError::ReadOnly { .. }) => "read_only",
            Err(_) => "failed",
        };
        drop(attempt);
        let mut session = made?;
        schema::check(self, &mut session, &schema::embedded()).await?;
        Ok(session)
    }

    async fn recycle(&self, session: &mut Session, metrics: &Metrics) -> RecycleResult<OpenError> {
        if metrics.age() > LIFE || metrics.last_used() > IDLE_LIMIT {
            return Err(RecycleError::message("old"));
        }
        if session.is_pooled() != self.is_pooled() {
            return Err(RecycleError::message("made before the pooler was noticed"));
        }
        if metrics.last_used() > ASK_AFTER {
            session.ping().await.map_err(|error| self.failed(error))?;
        }
        Ok(())
    }
}

/// An attempt to connect, counted when it ends, also if it is dropped because it takes too long.
struct Attempt {
    result: &'static str,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        metrics::counter!(SQL_CONNECTS, "result" => self.result).increment(1);
    }
}

/// The connections of one replica to its database.
#[derive(Clone, Debug)]
pub(super) struct Database {
    pool: Pool<Connector>,
}

/// A connection in use. If it is dropped without being given back, it is closed, because a statement may still be
/// running on it.
struct Lease(Option<Object<Connector>>);

impl Lease {
    fn session(&mut self) -> &mut Session {
        self.0.as_mut().expect("it was not given back yet")
    }

    fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}

impl Database {
    /// Connects and checks. It is no error if the server can't be reached now, because each operation tries again.
    pub(super) async fn open(url: &PostgresUrl) -> Result<Self, OpenError> {
        let pool = Pool::builder(Connector::new(url))
            .max_size(CONNECTIONS)
            .wait_timeout(Some(WAIT_LIMIT))
            .recycle_timeout(Some(ASK_LIMIT))
            .queue_mode(QueueMode::Lifo)
            .runtime(Runtime::Tokio1)
            .build()
            .expect("a runtime is given");
        let database = Self { pool };
        match database.lease().await {
            Ok(lease) => lease.give_back(),
            Err(error) if error.may_pass() => tracing::warn!(%error, "the users database can't be used yet"),
            Err(error) => return Err(error),
        }
        Ok(database)
    }

    pub(super) fn connections(&self) -> Connections {
        let status = self.pool.status();
        let idle = status.available.min(status.size);
        Connections { pool: "all", limit: status.max_size, idle, busy: status.size - idle }
    }

    /// Whether the server is the primary and takes writes, as it last said; `None` if it didn't answer.
    pub(super) fn is_primary(&self) -> Option<bool> {
        self.pool.manager().is_primary()
    }

    /// Checks that the server is still the primary and accepts writes.
    pub(super) async fn check(&self) -> Result<(), UserStoreError> {
        let database = self.clone();
        self.pool.manager().forget_role();
        self.run("ping", move |session| {
            Box::pin(async move {
                let greeting = session.greet().await?;
                database.pool.manager().check_role(greeting.is_standby, greeting.is_read_only)?;
                Ok(())
            })
        })
        .await
    }

    /// Runs `work` on a connection, within [`DEADLINE`] and to its end even if nobody waits for it any more. After a
    /// time-out it is unknown what it did.
    pub(super) async fn run<T, F>(&self, operation: &'static str, work: F) -> Result<T, UserStoreError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Session) -> Work<'t, T> + Send + 'static,
    {
        self.run_within(DEADLINE, operation, false, work).await
    }

    /// As [`Database::run`], in a transaction and with a time of its own.
    pub(super) async fn transact<T, F>(
        &self,
        limit: Duration,
        operation: &'static str,
        work: F,
    ) -> Result<T, UserStoreError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Session) -> Work<'t, T> + Send + 'static,
    {
        self.run_within(limit, operation, true, work).await
    }

    async fn run_within<T, F>(
        &self,
        limit: Duration,
        operation: &'static str,
        in_transaction: bool,
        work: F,
    ) -> Result<T, UserStoreError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Session) -> Work<'t, T> + Send + 'static,
    {
        let database = self.clone();
        observed("postgresql", operation, limit, async move {
            // Runs as a task of its own, because a client that hangs up must not cost a connection.
            let attempt = async move {
                let began = Instant::now();
                let outcome = tokio::time::timeout(limit, database.attempt(in_transaction, work)).await;
                outcome.unwrap_or_else(|late| {
                    database.distrust(began);
                    Err(UserStoreError::unavailable(late))
                })
            };
            tokio::spawn(attempt).await.map_err(UserStoreError::unavailable)?
        })
        .await
    }

    async fn attempt<T, F>(&self, in_transaction: bool, work: F) -> Result<T, UserStoreError>
    where
        F: for<'t> FnOnce(&'t mut Session) -> Work<'t, T>,
    {
        let mut lease = self.lease().await?;
        let began = Instant::now();
        let session = lease.session();
        let worked = async {
            if session.is_pooled() {
                session.begin_pooled(self.pool.manager()).await?;
            } else if in_transaction {
                sqlx::raw_sql("BEGIN").execute(session.db()).await?;
            }
            let outcome = work(session).await;
            // An operation that refused a name has changed nothing.
            if matches!(outcome, Err(UserStoreError::Unavailable(_))) {
                return outcome;
            }
            if session.is_pooled() || in_transaction {
                sqlx::raw_sql("COMMIT").execute(session.db()).await?;
            }
            outcome
        }
        .await;
        match &worked {
            Err(UserStoreError::Unavailable(cause)) => {
                let error = cause.downcast_ref::<sqlx::Error>();
                if error.is_some_and(is_lost_statement) {
                    self.pool.manager().note_pooler();
                }
                if error.is_none_or(is_about_the_connection) {
                    drop(lease);
                    self.distrust(began);
                }
            }
            _ => lease.give_back(),
        }
        worked
    }

    /// Closes the idle connections after one was broken or led to the wrong server, because the others are probably no
    /// better. `began` is when the failed attempt began. Connections made since then are kept: when a server comes back,
    /// an attempt that failed must not close what later ones have made.
    pub(super) fn distrust(&self, began: Instant) {
        self.pool.retain(|_, metrics| metrics.created >= began);
    }

    async fn lease(&self) -> Result<Lease, OpenError> {
        let is_late = |error: &OpenError| matches!(error, OpenError::Busy { .. } | OpenError::Silent { .. });
        acquired("all", Box::pin(self.try_lease()), is_late).await
    }

    async fn try_lease(&self) -> Result<Lease, OpenError> {
        let place = || Arc::clone(self.pool.manager().place());
        let began = Instant::now();
        match tokio::time::timeout(WAIT_LIMIT, self.pool.get()).await {
            Ok(Ok(object)) => Ok(Lease(Some(object))),
            Ok(Err(PoolError::Backend(error))) => {
                self.distrust(began);
                Err(error)
            }
            Err(_) | Ok(Err(PoolError::Timeout(TimeoutType::Wait))) if self.pool.status().waiting > 0 => {
                Err(OpenError::Busy { place: place() })
            }
            Err(_) | Ok(Err(_)) => {
                self.distrust(began);
                Err(OpenError::Silent { place: place() })
            }
        }
    }
}

/// Whether the connection or its server is unusable, rather than this one statement.
fn is_about_the_connection(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return true };
    // Class 08 connections, 25006 read only, 26 and 42P05 prepared statements, 53 resources, 57P the server shuts down,
    // XX an internal error.
    let code = error.code().unwrap_or_default();
    ["08", "25006", "26", "42P05", "53", "57P", "XX"].iter().any(|class| code.starts_with(class))
}

/// Whether the server doesn't know a statement that was prepared on this connection, or already has one of that name.
/// That shows a pooler that wasn't noticed before.
fn is_lost_statement(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    error.code().is_some_and(|code| code == "26000" || code == "42P05")
}
