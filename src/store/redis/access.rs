//! What all connections to Redis have in common: credentials, TLS, time limits.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::{ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError, RedisResult, Value};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::batches::in_batches;
use super::stream::{Dialer, Stream};
use super::wire::Wire;
use crate::config::{RedisNode, RedisUrl};
use crate::metrics::REDIS_CONNECTED;
use crate::store::StoreError;

/// How long a new connection may take, including the handshake and the question to the Sentinels.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
/// How long one reply may take. With a connection attempt before it, still below the two seconds in which the contract
/// promises an answer.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_millis(900);
/// How servers are reached.
pub(super) struct Access {
    pub(super) dialer: Dialer,
    /// User, password, database, protocol.
    pub(super) info: RedisConnectionInfo,
    /// How many connections are open.
    open: AtomicUsize,
}

/// Leaves out the password, which the client library's type may show.
impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("dialer", &self.dialer).finish_non_exhaustive()
    }
}

impl Access {
    pub(super) fn new(url: &RedisUrl, dialer: Dialer) -> Self {
        let mut info = login(url.username.as_deref(), url.password.as_ref()).set_db(url.database);
        if url.is_resp3 {
            info = info.set_protocol(ProtocolVersion::RESP3);
        }
        metrics::gauge!(REDIS_CONNECTED).set(0);
        Self { dialer, info, open: AtomicUsize::new(0) }
    }

    /// Connects to a server and logs in.
    pub(super) async fn open(&self, node: &RedisNode, patience: Duration) -> Result<Opened, StoreError> {
        open(self.dialer.tcp(node).await?, &self.info, patience, node).await
    }

    /// Counts a connection that was opened or closed.
    pub(super) fn count(&self, is_open: bool) {
        let now = if is_open {
            self.open.fetch_add(1, Ordering::Relaxed) + 1
        } else {
            self.open.fetch_sub(1, Ordering::Relaxed) - 1
        };
        metrics::gauge!(REDIS_CONNECTED).set(u8::from(now > 0));
    }
}

/// User and password for a handshake.
pub(super) fn login(username: Option<&str>, password: Option<&SecretString>) -> RedisConnectionInfo {
    let mut info = RedisConnectionInfo::default();
    if let Some(username) = username {
        info = info.set_username(username);
    }
    if let Some(password) = password {
        info = info.set_password(password.expose_secret());
    }
    info
}

/// A connection, and the task that moves its bytes.
pub(super) type Opened = (Wire, AbortOnDropHandle<()>);

/// Logs in over a stream. Each reply may take up to `patience`.
pub(super) async fn open(
    stream: Box<dyn Stream>,
    info: &RedisConnectionInfo,
    patience: Duration,
    name: &(dyn std::fmt::Display + Sync),
) -> Result<Opened, StoreError> {
    let (wire, driver) = Wire::new(stream, patience);
    let driver = AbortOnDropHandle::new(tokio::spawn(in_batches(driver)));
    let failed = |error| StoreError::caused(&format!("REDIS_URL: {name} refuses the connection"), error);
    shake_hands(&wire, info).await.map_err(failed)?;
    Ok((wire, driver))
}

/// User, password, protocol, database; and the server learns who is connected, for `CLIENT LIST`.
async fn shake_hands(wire: &Wire, info: &RedisConnectionInfo) -> RedisResult<()> {
    let mut steps = redis::Pipeline::new();
    // What a failure of each step means; `None` if it doesn't matter.
    let mut meanings = Vec::new();
    let credentials = info.password().map(|password| [info.username().unwrap_or("default"), password]);
    if info.protocol() == ProtocolVersion::RESP2 {
        if let Some(password) = info.password() {
            // Without a user's name as a server without ACLs knows it.
            steps.cmd("AUTH").arg(info.username()).arg(password);
            meanings.push(Some((ErrorKind::AuthenticationFailed, "authentication failed")));
        }
    } else {
        steps.cmd("HELLO").arg(3);
        if let Some(credentials) = &credentials {
            steps.arg("AUTH").arg(credentials);
        }
        meanings.push(Some((ErrorKind::AuthenticationFailed, "authentication failed, or RESP3 is unknown")));
    }
    if info.db() != 0 {
        steps.cmd("SELECT").arg(info.db());
        meanings.push(Some((ErrorKind::InvalidClientConfig, "the database can't be selected")));
    }
    for (what, is) in [("LIB-NAME", env!("CARGO_PKG_NAME")), ("LIB-VER", env!("CARGO_PKG_VERSION"))] {
        // An ACL may refuse it, and servers before Redis 7.2 don't know it.
        steps.cmd("CLIENT").arg("SETINFO").arg(what).arg(is);
        meanings.push(None);
    }
    for (reply, meaning) in wire.pipeline(&steps).await?.into_iter().zip(meanings) {
        if let (Value::ServerError(error), Some((kind, meaning))) = (reply, meaning) {
            return Err((kind, meaning, RedisError::from(error).to_string()).into());
        }
    }
    Ok(())
}

/// Collects the answers of several servers that were asked at the same time: those that arrive within `limit`, and at
/// most `grace` after the first one. If none arrives, returns the last failure, if there was one.
pub(super) async fn first_answers<T>(
    mut asked: FuturesUnordered<impl Future<Output = Result<T, StoreError>>>,
    limit: Duration,
    grace: Duration,
) -> (Vec<T>, Option<StoreError>) {
    let (mut answers, mut error) = (Vec::new(), None);
    let mut until = Instant::now() + limit;
    while let Ok(Some(answer)) = timeout_at(until, asked.next()).await {
        match answer {
            Ok(answer) => {
                if answers.is_empty() {
                    until = until.min(Instant::now() + grace);
                }
                answers.push(answer);
            }
            Err(why) => error = Some(why),
        }
    }
    (answers, error)
}
