//! Sessions: check, sign out, list, revoke.
use std::time::Duration;

use jiff::Timestamp;
use metrics::counter;
use uuid::Uuid;

use super::token::{Claims, SessionId};
use super::{Auth, AuthError, Client, SignedIn, key_of};
use crate::metrics::{SESSION_CHECKS, SESSIONS_ENDED};
use crate::store::StoreError;
use crate::store::sessions::{SessionEntry, SessionKey};

/// Cookies of our name that are looked at in one request; more than a few is an attack.
const COOKIES_READ: usize = 4;

impl Auth {
    /// Checks the session that a cookie names and renews its idle limit.
    ///
    /// # Errors
    ///
    /// No session, or no store.
    pub async fn check<'a>(&self, cookies: impl Iterator<Item = &'a [u8]>) -> Result<SignedIn, AuthError> {
        let claims = match self.read(cookies) {
            Ok(claims) => claims,
            Err(result) => {
                counter!(SESSION_CHECKS, "result" => result).increment(1);
                return Err(AuthError::SessionInvalid);
            }
        };
        let now_ms = self.clock.now_ms();
        let left_ms = u64::try_from(claims.expires_at_ms - now_ms).unwrap_or(0);
        if left_ms == 0 {
            counter!(SESSION_CHECKS, "result" => "expired").increment(1);
            return Err(AuthError::SessionInvalid);
        }
        let idle_for = self.limits.idle.min(Duration::from_millis(left_ms));
        let found = self.sessions.check(key_of(&claims), idle_for).await;
        let result = match &found {
            Ok(Some(_)) => "valid",
            Ok(None) => "unknown",
            Err(_) => "error",
        };
        counter!(SESSION_CHECKS, "result" => result).increment(1);
        let session = found?.ok_or(AuthError::SessionInvalid)?;
        let idle_ms = i64::try_from(idle_for.as_millis()).unwrap_or(i64::MAX);
        let idle_expires_at = Timestamp::from_millisecond(now_ms.saturating_add(idle_ms)).unwrap_or(Timestamp::MAX);
        Ok(SignedIn { claims, session, idle_expires_at })
    }

    /// Ends the session that a cookie names.
    ///
    /// # Errors
    ///
    /// No living session, or no store.
    pub async fn sign_out<'a>(
        &self,
        cookies: impl Iterator<Item = &'a [u8]>,
        client: &Client,
    ) -> Result<(), AuthError> {
        let claims = self.read(cookies).map_err(|_| AuthError::SessionInvalid)?;
        if self.end(key_of(&claims), "logout", client).await? { Ok(()) } else { Err(AuthError::SessionInvalid) }
    }

    pub(super) async fn end(&self, key: SessionKey, reason: &'static str, client: &Client) -> Result<bool, StoreError> {
        let was_alive = self.sessions.end(key).await?;
        if was_alive {
            counter!(SESSIONS_ENDED, "reason" => reason).increment(1);
            tracing::info!(target: "audit", event = "session_ended", reason, user_id = %key.user_id,
                session_id = %key.session_id, ip = %client.ip, request_id = %client.request_id);
        }
        Ok(was_alive)
    }

    /// The first cookie that is ours, or why there is none.
    pub(super) fn read<'a>(&self, cookies: impl Iterator<Item = &'a [u8]>) -> Result<Claims, &'static str> {
        let mut result = Err("no_cookie");
        for cookie in cookies.take(COOKIES_READ) {
            match self.keys.read(cookie) {
                Ok(claims) => return Ok(claims),
                Err(_) => result = Err("bad_signature"),
            }
        }
        result
    }

    /// The user's living sessions, newest first.
    ///
    /// # Errors
    ///
    /// No store.
    pub async fn list(&self, user_id: Uuid) -> Result<Vec<SessionEntry>, AuthError> {
        Ok(self.sessions.list(user_id).await?)
    }

    /// Ends one of the user's sessions.
    ///
    /// # Errors
    ///
    /// The user has no such session; no store.
    pub async fn revoke(&self, user_id: Uuid, session_id: SessionId, client: &Client) -> Result<(), AuthError> {
        let was_alive = self.end(SessionKey { user_id, session_id }, "revoked", client).await?;
        if was_alive { Ok(()) } else { Err(AuthError::SessionNotFound) }
    }

    /// Ends all of the user's sessions except `keep`; says how many.
    ///
    /// # Errors
    ///
    /// No store.
    pub async fn revoke_all(
        &self,
        user_id: Uuid,
        keep: Option<SessionId>,
        client: &Client,
    ) -> Result<u32, AuthError> {
        let ended = self.sessions.end_all(user_id, keep, None).await?;
        self.ended_many(user_id, ended, "revoked", client);
        Ok(ended)
    }

    /// Counts and records that `ended` of a user's sessions are no more.
    pub(super) fn ended_many(&self, user_id: Uuid, ended: u32, reason: &'static str, client: &Client) {
        counter!(SESSIONS_ENDED, "reason" => reason).increment(ended.into());
        tracing::info!(target: "audit", event = "sessions_ended", reason, count = ended, user_id = %user_id,
            ip = %client.ip, request_id = %client.request_id);
    }
}
