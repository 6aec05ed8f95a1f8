//! Sessions: list, end, inspect.
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use uuid::Uuid;

use super::{Actor, Admin, AdminError};
use crate::auth::key_of;
use crate::auth::token::{Inspected, TokenKeys};
use crate::store::sessions::{Session, SessionEntry, SessionId, SessionKey};

/// What is known about a cookie or a session.
#[derive(Debug)]
pub(crate) struct Inspection {
    pub session_id: SessionId,
    /// Whose session it is: what the cookie says, or who was found to own the session.
    pub user_id: Option<Uuid>,
    /// What the cookie says, if one was given.
    pub cookie: Option<Inspected>,
    /// How many keys a cookie may be signed with.
    pub keys: usize,
    /// The session, if it's alive.
    pub session: Option<(Session, SessionEntry)>,
    pub now: Timestamp,
}

/// Why a server would refuse a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No key of ours signed the cookie.
    ForeignSignature,
    /// The cookie is past the absolute limit.
    Expired,
    /// The session has ended, or never existed.
    Ended,
}

impl Inspection {
    /// Why a server would refuse the session now; `None` if it would accept it.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        let now_ms = self.now.as_millisecond();
        match &self.cookie {
            Some(Inspected { key: None, .. }) => Some(Refusal::ForeignSignature),
            Some(cookie) if cookie.claims.expires_at_ms <= now_ms => Some(Refusal::Expired),
            _ if self.session.is_none() => Some(Refusal::Ended),
            _ => None,
        }
    }
}

impl Admin {
    /// The user's living sessions, newest first.
    pub(crate) async fn list_sessions(&self, user_id: Uuid) -> Result<Vec<SessionEntry>, AdminError> {
        Ok(self.sessions()?.list(user_id).await?)
    }

    /// Ends a session. Returns whose it was.
    pub(crate) async fn revoke(&self, session_id: SessionId) -> Result<Uuid, AdminError> {
        let sessions = self.sessions()?;
        let key = sessions.owner(session_id).await?.ok_or(AdminError::NoSuchSession(session_id))?;
        let user_id = key.user_id;
        let ended = sessions.end(key).await;
        if !ended.inspect_err(|_| self.audit_unconfirmed("revoked", user_id, Some(session_id)))? {
            return Err(AdminError::NoSuchSession(session_id));
        }
        let Actor { name, sudo_user } = &self.actor;
        tracing::info!(target: "audit", event = "session_ended", reason = "revoked", user_id = %user_id,
            session_id = %session_id, actor = name, sudo_user, via = "cli");
        Ok(user_id)
    }

    /// Ends all of a user's sessions. Returns how many.
    pub(crate) async fn revoke_all(&self, user_id: Uuid) -> Result<u32, AdminError> {
        let ended = self.sessions()?.end_all(user_id, None).await;
        let count = ended.inspect_err(|_| self.audit_unconfirmed("revoked", user_id, None))?;
        self.audit_ended("revoked", user_id, count);
        Ok(count)
    }

    /// Inspects a session by its name.
    pub(crate) async fn inspect(&self, session_id: SessionId) -> Result<Inspection, AdminError> {
        let key = self.sessions()?.owner(session_id).await?;
        self.look_at(session_id, key, None).await
    }

    /// Inspects a cookie and its session; `None` if the value doesn't have the form of a cookie's.
    pub(crate) async fn inspect_cookie(&self, value: &SecretString) -> Result<Option<Inspection>, AdminError> {
        let keys = TokenKeys::new(&self.config.session.secrets);
        let Some(cookie) = keys.inspect(value.expose_secret().as_bytes()) else { return Ok(None) };
        let key = key_of(&cookie.claims);
        self.look_at(key.session_id, Some(key), Some(cookie)).await.map(Some)
    }

    async fn look_at(
        &self,
        session_id: SessionId,
        key: Option<SessionKey>,
        cookie: Option<Inspected>,
    ) -> Result<Inspection, AdminError> {
        let session = match key {
            Some(key) => self.sessions()?.inspect(key).await?,
            None => None,
        };
        let user_id = key.map(|key| key.user_id);
        let keys = self.config.session.secrets.len();
        Ok(Inspection { session_id, user_id, cookie, keys, session, now: self.clock.now() })
    }
}
