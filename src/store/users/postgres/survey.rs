//! Facts about a database, which `authfleet doctor` judges.
use std::time::{Duration, Instant};

use sqlx::Row as _;

use super::connections::CONNECTIONS;
use super::connector::{Connector, Session};
use super::{OpenError, canonical, schema};
use crate::config::PostgresUrl;
use crate::store::users::names::UnusualNames;

/// A server that answered.
#[derive(Debug)]
pub(crate) struct Survey {
    /// Host, port and database.
    pub(crate) place: String,
    /// PostgreSQL's version.
    pub(crate) version: String,
    /// Whether a server could work with it, and if not, why.
    pub(crate) usable: Result<(), OpenError>,
    /// Whether a pooler such as `PgBouncer` is in between.
    pub(crate) is_pooled: bool,
    /// The version of TLS between this host and the server. `None` without encryption, or if a pooler hides it.
    pub(crate) tls: Option<String>,
    /// Whether the connection leaves this host unencrypted.
    pub(crate) is_in_the_clear: bool,
    /// `synchronous_commit`.
    pub(crate) synchronous_commit: String,
    /// `fsync`: whether commits survive a power cut.
    pub(crate) fsync: bool,
    /// The numbers of synchronous and of other standbys, if this user may see them.
    pub(crate) standbys: Option<(i64, i64)>,
    /// How many connections the server accepts from ordinary users.
    pub(crate) connections_limit: i64,
    /// How many connections each replica may open.
    pub(crate) connections_per_replica: usize,
    /// The schema's newest migration, or why a server can't work with it.
    pub(crate) schema: Result<i64, OpenError>,
    /// Accounts without canonical names. Empty if the schema is wrong.
    pub(crate) unusual: UnusualNames,
    /// How long a commit took, or why it failed. `None` if the schema is wrong.
    pub(crate) commit: Option<Result<Duration, OpenError>>,
}

/// Looks at the database of `url`, without changing anything.
///
/// # Errors
///
/// [`OpenError`] if nobody answers.
pub(in crate::store::users) async fn survey(url: &PostgresUrl) -> Result<Survey, OpenError> {
    let connector = Connector::new(url);
    let failed = |source| connector.failed(source);
    let usable = connector.connect().await;
    let is_pooled = usable.as_ref().is_ok_and(Session::is_pooled);
    let (mut session, _) = connector.connect_anyway().await?;
    let row = sqlx::raw_sql(
        "SELECT current_setting('server_version') AS version, current_setting('synchronous_commit') AS commit, \
         current_setting('fsync') = 'on' AS fsync, \
         (SELECT CASE WHEN ssl THEN version END FROM pg_stat_ssl WHERE pid = pg_backend_pid()) AS tls, \
         inet_server_addr() IS NOT NULL AND inet_server_addr() <> inet_client_addr() AS is_remote, \
         (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')) AS synchronous, \
         (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('async', 'potential')) AS asynchronous, \
         (SELECT count(*) FROM pg_stat_replication) AS standbys, \
         current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint \
             AS connections",
    )
    .fetch_one(session.db())
    .await
    .map_err(failed)?;
    let schema = match &usable {
        Ok(_) => match schema::check(&connector, &mut session, &schema::embedded()).await {
            Ok(()) => schema::version(&mut session).await.map_err(failed),
            Err(error) => Err(error),
        },
        Err(_) => Ok(0),
    };
    let is_whole = usable.is_ok() && schema.is_ok();
    let unusual =
        if is_whole { canonical::unusual(&mut session).await.map_err(failed)? } else { UnusualNames::default() };
    let commit = if is_whole {
        let begin = Instant::now();
        let written = sqlx::raw_sql("UPDATE authfleet_oldest SET migration = migration").execute(session.db()).await;
        Some(written.map(|_| begin.elapsed()).map_err(failed))
    } else {
        None
    };
    let get = |name| row.try_get::<i64, _>(name).map_err(failed);
    let (synchronous, asynchronous, standbys) = (get("synchronous")?, get("asynchronous")?, get("standbys")?);
    let tls: Option<String> = row.try_get("tls").map_err(failed)?;
    let survey = Survey {
        place: connector.place().to_string(),
        version: row.try_get("version").map_err(failed)?,
        is_in_the_clear: tls.is_none() && row.try_get::<Option<bool>, _>("is_remote").map_err(failed)? == Some(true),
        tls,
        is_pooled,
        synchronous_commit: row.try_get("commit").map_err(failed)?,
        fsync: row.try_get("fsync").map_err(failed)?,
        // Users without pg_monitor see that there are standbys, but not of which kind.
        standbys: (synchronous + asynchronous == standbys).then_some((synchronous, asynchronous)),
        connections_limit: get("connections")?,
        connections_per_replica: CONNECTIONS,
        schema,
        unusual,
        commit,
        usable: usable.map(drop),
    };
    session.close().await;
    Ok(survey)
}
