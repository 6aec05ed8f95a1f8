//! Administration: what an operator does to accounts and sessions from the command line.
//!
//! Whatever ends a user's sessions follows [`super::revocation`], so a command that was cut off can be run again. What
//! an operator reads in the terminal is written in `cli`.
mod accounts;
mod import;
mod sessions;

use uuid::Uuid;

pub(crate) use self::accounts::Changed;
pub(crate) use self::import::{Import, ImportOptions, Row};
pub(crate) use self::sessions::{Inspection, Refusal};
use super::password::HashError;
use crate::clock::Clock;
use crate::config::Config;
use crate::store::sessions::{SessionId, SessionStore};
use crate::store::users::{OpenError, User, UserStore, UserStoreError};
use crate::store::{StoreError, Stores};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    #[error("there is no user {0}")]
    NoSuchUser(String),
    #[error("{0} is the id of one user and the username of another")]
    Ambiguous(String),
    #[error("there is no living session {0}")]
    NoSuchSession(SessionId),
    /// Without `REDIS_URL` sessions are in the memory of the server's process.
    #[error("sessions are in the memory of the server's process")]
    OutOfReach,
    /// As [`Self::OutOfReach`], for a change that must end them.
    #[error("sessions in a running server's memory can't be ended from here")]
    MustBeOffline,
    #[error("{field} {message}")]
    Invalid { field: &'static str, message: String },
    /// Other changes of the account came first, again and again. Its sessions may have ended.
    #[error("the account kept changing meanwhile")]
    Contended,
    #[error(transparent)]
    Database(#[from] OpenError),
    #[error(transparent)]
    Redis(#[from] StoreError),
    #[error(transparent)]
    Users(#[from] UserStoreError),
    #[error(transparent)]
    Hash(#[from] HashError),
    /// The thread that hashes can't be started.
    #[error(transparent)]
    Thread(std::io::Error),
}

/// Who asks. Recorded with every change.
#[derive(Clone, Debug)]
pub(crate) struct Actor {
    /// The operating system's user.
    pub name: String,
    /// Who became that user by way of `sudo`.
    pub sudo_user: Option<String>,
}

/// The flows of an operator. Each connects to the stores that it needs, when it needs them.
#[derive(Debug)]
pub(crate) struct Admin {
    config: Config,
    clock: Clock,
    actor: Actor,
    stores: Stores,
}

impl Admin {
    /// Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// When a file with certificates for Redis can't be used.
    pub(crate) fn new(config: Config, clock: Clock, actor: Actor) -> Result<Self, AdminError> {
        let stores = Stores::open(&config, clock.clone())?;
        Ok(Self { config, clock, actor, stores })
    }

    async fn users(&self) -> Result<&UserStore, AdminError> {
        Ok(self.stores.users().await?)
    }

    fn sessions(&self) -> Result<&SessionStore, AdminError> {
        if self.reaches_sessions() { Ok(&self.stores.sessions) } else { Err(AdminError::OutOfReach) }
    }

    /// Whether sessions are in Redis, where they can be reached from here.
    pub(crate) fn reaches_sessions(&self) -> bool {
        self.config.redis.url.is_some()
    }

    /// The user with this id, e-mail address or username.
    pub(crate) async fn user(&self, name: &str) -> Result<User, AdminError> {
        let users = self.users().await?;
        let named = users.by_login(name).await?;
        let identified = match Uuid::parse_str(name) {
            Ok(id) => users.by_id(id).await?,
            Err(_) => None,
        };
        match (identified, named) {
            (Some(one), Some(other)) if one.id != other.id => Err(AdminError::Ambiguous(name.to_owned())),
            (found, other) => found.or(other).ok_or_else(|| AdminError::NoSuchUser(name.to_owned())),
        }
    }

    fn audit(&self, event: &'static str, user_id: Uuid, sessions_ended: Option<u32>) {
        let Actor { name, sudo_user } = &self.actor;
        tracing::info!(target: "audit", event, user_id = %user_id, sessions_ended, actor = name, sudo_user, via = "cli");
    }

    /// Records that nobody confirmed that sessions have ended. They may have.
    fn audit_unconfirmed(&self, reason: &'static str, user_id: Uuid, session_id: Option<SessionId>) {
        if !self.stores.sessions.confirms() {
            return;
        }
        let Actor { name, sudo_user } = &self.actor;
        let event = if session_id.is_some() { "session_ended" } else { "sessions_ended" };
        tracing::warn!(target: "audit", event, outcome = "unconfirmed", reason, user_id = %user_id,
            session_id = session_id.map(tracing::field::display), actor = name, sudo_user, via = "cli");
    }

    fn audit_ended(&self, reason: &'static str, user_id: Uuid, count: u32) {
        let Actor { name, sudo_user } = &self.actor;
        tracing::info!(target: "audit", event = "sessions_ended", reason, count, user_id = %user_id, actor = name,
            sudo_user, via = "cli");
    }
}
