//! The flows, without HTTP types.
//!
//! Two rules hold them together. A session is created only under the epoch that its user had before the password was
//! verified (`sign_in`), and whatever ends all of a user's sessions follows one protocol (`revocation`). Wherever that
//! is cut off, no session lives that should be dead.
mod accounts;
pub(crate) mod admin;
pub(crate) mod device;
mod flows;
pub(crate) mod handover;
pub(crate) mod hosts;
mod identity;
pub(crate) mod password;
mod revocation;
pub(crate) mod rules;
mod sessions;
mod sign_in;
pub(crate) mod target;
pub(crate) mod throttle;
pub(crate) mod token;

use std::error::Error;
use std::hash::{Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) use self::flows::Flows;
pub(crate) use self::identity::Mistake;
pub(crate) use self::password::PolicyViolation;
use self::password::{HashError, HashGate, Origin, PasswordPolicy};
use self::throttle::Throttle;
use self::token::{Claims, TokenKeys};
use crate::clock::Clock;
use crate::config::{self, SessionFormat};
use crate::store::StoreError;
use crate::store::sessions::{Limits, Session, SessionKey, SessionStore};
pub(crate) use crate::store::sessions::{SessionEntry, SessionId};
pub(crate) use crate::store::users::names::RefusedName;
use crate::store::users::{User, UserStore, UserStoreError};

/// Everything that the flows need. One per process.
#[derive(Debug)]
pub(crate) struct Auth {
    pub users: UserStore,
    pub sessions: SessionStore,
    pub gate: Arc<HashGate>,
    pub flows: Flows,
    pub policy: PasswordPolicy,
    /// Who may make an account.
    pub registration: config::Registration,
    pub throttle: Throttle,
    pub keys: TokenKeys,
    pub limits: Limits,
    /// How new sessions are kept.
    pub format: SessionFormat,
    pub clock: Clock,
    /// This replica's name.
    pub replica: String,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// The address as trusted proxies report it.
    pub ip: IpAddr,
    /// `User-Agent`, cut at a limit.
    pub user_agent: String,
    pub request_id: String,
    /// Cancelled when the client has gone. What has begun by then is still finished, charged and recorded.
    pub gone: CancellationToken,
}

impl Client {
    /// For whom a password is hashed. The queue is shared fairly among addresses and accounts.
    fn origin(&self, account: &str) -> Origin {
        let flow = |text: &str| {
            let mut hasher = std::hash::DefaultHasher::new();
            text.hash(&mut hasher);
            hasher.finish().max(1)
        };
        Origin { flows: [flow(&throttle::network(self.ip)), flow(account)], gone: self.gone.clone() }
    }
}

/// A checked and renewed session.
#[derive(Clone, Debug)]
pub(crate) struct SignedIn {
    /// What the cookie says.
    pub claims: Claims,
    /// What the store says.
    pub session: Session,
    /// When the session ends if it isn't used before.
    pub idle_expires_at: Timestamp,
}

/// A session that was just created.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub user: User,
    /// The cookie's value.
    pub token: SecretString,
    /// What the token says.
    pub claims: Claims,
    pub created_at: Timestamp,
    /// When the session ends if it isn't used before.
    pub idle_expires_at: Timestamp,
    /// When it ends at the latest.
    pub expires_at: Timestamp,
}

/// A registration as sent.
#[derive(Debug)]
pub(crate) struct Registration {
    pub email: String,
    /// Made from the e-mail address if absent.
    pub username: Option<String>,
    pub password: SecretString,
}

/// What made a flow fail, for the log.
type Cause = Box<dyn Error + Send + Sync>;

/// Why a flow ended without its result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    /// There is no cookie, a forged one, or one whose session has ended.
    #[error("session expired or invalid")]
    SessionInvalid,
    /// The user is unknown or disabled, or the password is wrong. Clients must not be able to tell which.
    #[error("wrong user name or password")]
    InvalidCredentials,
    /// Somebody who is signed in typed a wrong password.
    #[error("wrong password")]
    WrongPassword,
    #[error("no such session")]
    SessionNotFound,
    #[error("too many failed attempts")]
    Throttled {
        /// When the next one is admitted.
        retry_after: Duration,
    },
    #[error("e-mail address taken")]
    EmailTaken,
    #[error("username taken")]
    UsernameTaken,
    /// `REGISTRATION=closed`.
    #[error("registration is closed")]
    RegistrationClosed,
    /// The names of wrong fields, and what is wrong with each.
    #[error("invalid fields: {0:?}")]
    Invalid(Vec<(&'static str, Mistake)>),
    /// The client went away before anything was decided.
    #[error("the client has gone")]
    Abandoned,
    /// The queue for hashing is full.
    #[error("too many logins at present")]
    Overloaded {
        /// When a place should be free.
        retry_after: Duration,
    },
    /// A store failed, so nothing is known.
    #[error("store unavailable")]
    Unavailable(#[source] Cause),
    /// A bug or a broken machine.
    #[error("internal error")]
    Internal(#[source] Cause),
}

impl From<StoreError> for AuthError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.into())
    }
}

impl From<UserStoreError> for AuthError {
    fn from(error: UserStoreError) -> Self {
        match error {
            UserStoreError::EmailTaken => Self::EmailTaken,
            UserStoreError::UsernameTaken => Self::UsernameTaken,
            UserStoreError::Unavailable(_) => Self::Unavailable(error.into()),
        }
    }
}

impl From<HashError> for AuthError {
    fn from(error: HashError) -> Self {
        match error {
            HashError::Overloaded { retry_after } => Self::Overloaded { retry_after },
            HashError::Abandoned => Self::Abandoned,
            // This replica is shutting down. Another one takes the next try.
            HashError::Closed => Self::Overloaded { retry_after: Duration::from_secs(1) },
            HashError::Failed(_) => Self::Internal(error.into()),
        }
    }
}

impl AuthError {
    /// The value in metrics and audit events.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::SessionInvalid => "session_invalid",
            Self::InvalidCredentials | Self::WrongPassword => "invalid_credentials",
            Self::SessionNotFound => "session_not_found",
            Self::Throttled { .. } => "throttled",
            Self::EmailTaken | Self::UsernameTaken => "conflict",
            Self::RegistrationClosed => "closed",
            Self::Invalid(_) => "invalid",
            Self::Abandoned => "abandoned",
            Self::Overloaded { .. } => "overloaded",
            Self::Unavailable(_) => "unavailable",
            Self::Internal(_) => "internal",
        }
    }
}

fn key_of(claims: &Claims) -> SessionKey {
    SessionKey { user_id: claims.user_id, session_id: claims.session_id, format: claims.format }
}

/// When an account was made: the time in its id (UUIDv7, RFC 9562 §5.7).
pub(crate) fn account_created_at(user_id: Uuid) -> Timestamp {
    let (seconds, nanoseconds) = user_id.get_timestamp().map_or((0, 0), |time| time.to_unix());
    let seconds = i64::try_from(seconds).unwrap_or(0);
    let nanoseconds = i32::try_from(nanoseconds).unwrap_or(0);
    Timestamp::new(seconds, nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::chain;

    #[test]
    fn a_failure_keeps_its_cause() {
        let cause = std::io::Error::other("no memory");
        let error = AuthError::from(HashError::Failed(cause.into()));
        assert_eq!(chain(&error), "internal error: password hashing failed: no memory");
    }
}
