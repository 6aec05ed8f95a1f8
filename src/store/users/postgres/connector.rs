//! One connection to a PostgreSQL server: how it is made and checked.
//!
//! Nothing depends on the state of a session, so a pooler such as `PgBouncer` can give each transaction another server
//! process. [`Connector`] detects a pooler, because it ignores or refuses settings that are sent when connecting.
//! Without a pooler, statements are prepared once per connection and take one round trip each. Behind one, each
//! operation is a transaction with unnamed statements, because sqlx sends the text and the values of a statement
//! separately, and the pooler must not change the process in between.
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use secrecy::ExposeSecret as _;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow, PgSslMode, Postgres};
use sqlx::query::{Query, QueryAs, QueryScalar};
use sqlx::{ConnectOptions as _, Connection as _, FromRow, Row as _};

use super::OpenError;
use crate::config::{PostgresHost, PostgresUrl, TlsMode};

/// How long making a connection may take, including its checks.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How long the server may work on a statement. This limit and the longest wait for a connection together fit into the
/// limit of an operation, so that nothing takes effect after its 503.
const STATEMENT_LIMIT: &str = "900ms";
/// Settings of each session without a pooler. With them, the server ends transactions of clients that are gone.
const SETTINGS: [(&str, &str); 2] =
    [("statement_timeout", STATEMENT_LIMIT), ("idle_in_transaction_session_timeout", "10s")];
/// The same for one transaction behind a pooler. Also asks whether the server is the primary.
const BEGIN_POOLED: &str = "BEGIN; SET LOCAL statement_timeout = '900ms'; \
     SET LOCAL idle_in_transaction_session_timeout = '10s'; \
     SELECT pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS read_only";
/// The oldest supported server, in the form of `server_version_num`.
const OLDEST_SERVER: i32 = 140_000;

/// Makes connections to one database.
pub(super) struct Connector {
    url: PostgresUrl,
    place: Arc<str>,
    is_pooled: AtomicBool,
    /// What the server last said of its role.
    role: AtomicU8,
}

/// Values of [`Connector::role`].
const UNKNOWN: u8 = 0;
const PRIMARY: u8 = 1;
const OTHER: u8 = 2;

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("place", &self.place).finish_non_exhaustive()
    }
}

/// A connection, and how statements are to be sent over it.
#[derive(Debug)]
pub(super) struct Session {
    db: PgConnection,
    is_pooled: bool,
}

/// What a server reports about itself when a connection is made.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) version: i32,
    pub(super) encoding: String,
    pub(super) is_standby: bool,
    pub(super) is_read_only: bool,
    statement_timeout: String,
}

impl Session {
    pub(super) fn db(&mut self) -> &mut PgConnection {
        &mut self.db
    }

    pub(super) fn is_pooled(&self) -> bool {
        self.is_pooled
    }

    pub(super) fn query(&self, statement: &'static str) -> Query<'static, Postgres, PgArguments> {
        sqlx::query(statement).persistent(!self.is_pooled)
    }

    pub(super) fn query_as<T>(&self, statement: &'static str) -> QueryAs<'static, Postgres, T, PgArguments>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        sqlx::query_as(statement).persistent(!self.is_pooled)
    }

    pub(super) fn scalar<T>(&self, statement: &'static str) -> QueryScalar<'static, Postgres, T, PgArguments>
    where
        (T,): for<'r> FromRow<'r, PgRow>,
    {
        sqlx::query_scalar(statement).persistent(!self.is_pooled)
    }

    pub(super) async fn greet(&mut self) -> sqlx::Result<Greeting> {
        let row = sqlx::raw_sql(
            "SELECT current_setting('server_version_num')::int AS version, \
             current_setting('server_encoding') AS encoding, current_setting('statement_timeout') AS statement_timeout, \
             pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS read_only",
        )
        .fetch_one(&mut self.db)
        .await?;
        Ok(Greeting {
            version: row.try_get("version")?,
            encoding: row.try_get("encoding")?,
            is_standby: row.try_get("standby")?,
            is_read_only: row.try_get("read_only")?,
            statement_timeout: row.try_get("statement_timeout")?,
        })
    }

    /// Closes the connection. It doesn't matter whether the server notices.
    pub(super) async fn close(self) {
        drop(self.db.close().await);
    }

    pub(super) async fn ping(&mut self) -> sqlx::Result<()> {
        self.db.ping().await
    }

    /// Begins the transaction that an operation is behind a pooler, and checks that it came to the primary.
    pub(super) async fn begin_pooled(&mut self, connector: &Connector) -> Result<(), OpenError> {
        let failed = |error| connector.failed(error);
        let row = sqlx::raw_sql(BEGIN_POOLED).fetch_one(&mut self.db).await.map_err(failed)?;
        connector.check_role(row.try_get("standby").map_err(failed)?, row.try_get("read_only").map_err(failed)?)
    }
}

impl Connector {
    pub(super) fn new(url: &PostgresUrl) -> Self {
        let host = match &url.host {
            PostgresHost::Tcp(host) => host.clone(),
            PostgresHost::Socket(directory) => directory.display().to_string(),
        };
        let place = format!("{host}:{}/{}", url.port, url.database).into();
        if url.tls == TlsMode::VerifyCa {
            // Only in this mode, sqlx's verifier uses the process's default cryptography, and panics if there is none.
            // An error here means that there is one already.
            drop(rustls::crypto::ring::default_provider().install_default());
        }
        Self { url: url.clone(), place, is_pooled: AtomicBool::new(false), role: AtomicU8::new(UNKNOWN) }
    }

    /// Host, port and database, for messages.
    pub(super) fn place(&self) -> &Arc<str> {
        &self.place
    }

    pub(super) fn failed(&self, source: sqlx::Error) -> OpenError {
        OpenError::Failed { place: Arc::clone(&self.place), source }
    }

    fn options(&self) -> PgConnectOptions {
        let url = &self.url;
        let mode = match url.tls {
            TlsMode::Disable => PgSslMode::Disable,
            TlsMode::Prefer => PgSslMode::Prefer,
            TlsMode::Require => PgSslMode::Require,
            TlsMode::VerifyCa => PgSslMode::VerifyCa,
            TlsMode::VerifyFull => PgSslMode::VerifyFull,
        };
        let mut options = PgConnectOptions::new_without_pgpass()
            .port(url.port)
            .username(&url.user)
            .password(url.password.as_ref().map_or("", |password| password.expose_secret()))
            .database(&url.database)
            .ssl_mode(mode)
            .application_name("authfleet")
            // Not sent, because a pooler refuses it.
            .extra_float_digits(None)
            .disable_statement_logging();
        options = match &url.host {
            PostgresHost::Tcp(host) => options.host(host),
            PostgresHost::Socket(directory) => options.socket(directory),
        };
        if let Some(path) = &url.root_certificates {
            options = options.ssl_root_cert(path);
        }
        if let Some((certificate, key)) = &url.client_certificate {
            options = options.ssl_client_cert(certificate).ssl_client_key(key);
        }
        options
    }

    /// Connects to a server that can be used, which is the primary. The schema is not checked.
    pub(super) async fn connect(&self) -> Result<Session, OpenError> {
        let (mut session, greeting) = self.connect_anyway().await?;
        if greeting.version < OLDEST_SERVER {
            return Err(OpenError::ServerTooOld { place: Arc::clone(&self.place), found: greeting.version / 10_000 });
        }
        if greeting.encoding != "UTF8" {
            return Err(OpenError::Encoding { place: Arc::clone(&self.place), found: greeting.encoding });
        }
        self.check_role(greeting.is_standby, greeting.is_read_only)?;
        if greeting.statement_timeout != STATEMENT_LIMIT {
            session.is_pooled = true;
            self.note_pooler();
        }
        Ok(session)
    }

    /// Connects to any server, without checking its role.
    pub(super) async fn connect_anyway(&self) -> Result<(Session, Greeting), OpenError> {
        let (certificate, key) = self.url.client_certificate.clone().unzip();
        for path in [&self.url.root_certificates, &certificate, &key].into_iter().flatten() {
            std::fs::File::open(path).map_err(|source| OpenError::Certificate { path: path.clone(), source })?;
        }
        let connecting = async {
            let mut is_pooled = self.is_pooled.load(Ordering::Relaxed);
            let options = self.options();
            let db = if is_pooled {
                options.connect().await
            } else {
                match options.clone().options(SETTINGS).connect().await {
                    Err(error) if refuses_settings(&error) => {
                        is_pooled = true;
                        options.connect().await
                    }
                    connected => connected,
                }
            };
            let mut session = Session { db: db.map_err(|error| self.failed(error))?, is_pooled };
            let greeting = session.greet().await.map_err(|error| self.failed(error))?;
            Ok((session, greeting))
        };
        let silent = |_| OpenError::Silent { place: Arc::clone(&self.place) };
        let (session, greeting) = tokio::time::timeout(CONNECT_LIMIT, connecting).await.map_err(silent)??;
        if session.is_pooled {
            self.note_pooler();
        }
        Ok((session, greeting))
    }

    /// Records that there is a pooler.
    pub(super) fn note_pooler(&self) {
        if !self.is_pooled.swap(true, Ordering::Relaxed) {
            tracing::info!(
                place = %self.place,
                "a connection pooler is in front of PostgreSQL: every operation is a transaction of its own"
            );
        }
    }

    /// Whether there is a pooler, as far as is known.
    pub(super) fn is_pooled(&self) -> bool {
        self.is_pooled.load(Ordering::Relaxed)
    }

    /// Whether the server said that it is the primary and takes writes; `None` if it said nothing since
    /// [`Self::forget_role`].
    pub(super) fn is_primary(&self) -> Option<bool> {
        match self.role.load(Ordering::Relaxed) {
            UNKNOWN => None,
            role => Some(role == PRIMARY),
        }
    }

    /// What the server said is old.
    pub(super) fn forget_role(&self) {
        self.role.store(UNKNOWN, Ordering::Relaxed);
    }

    /// Refuses a server whose data may be old, or that refuses writes.
    pub(super) fn check_role(&self, is_standby: bool, is_read_only: bool) -> Result<(), OpenError> {
        self.role.store(if is_standby || is_read_only { OTHER } else { PRIMARY }, Ordering::Relaxed);
        if is_standby {
            Err(OpenError::Standby { place: Arc::clone(&self.place) })
        } else if is_read_only {
            Err(OpenError::ReadOnly { place: Arc::clone(&self.place) })
        } else {
            Ok(())
        }
    }
}

/// Whether the peer refuses settings that are sent when connecting. Some poolers do, and servers never do.
fn refuses_settings(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.message().contains("startup parameter"))
}
