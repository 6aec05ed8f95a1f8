//! Sessions: check, sign out, list, revoke.
use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use metrics::{Counter, counter};
use uuid::Uuid;

use super::token::{Claims, SessionId};
use super::{Auth, AuthError, Client, SignedIn, key_of};
use crate::metrics::{SESSION_CHECKS, SESSIONS_ACCEPTED, SESSIONS_ENDED};
use crate::store::StoreError;
use crate::store::sessions::{SessionEntry, SessionKey};

/// Cookies of our name that are looked at in one request; more than a few is an attack.
const COOKIES_READ: usize = 4;

/// The counters of session checks, by result: looked up once, not per request.
struct Checks(LazyLock<[(&'static str, Counter); 6]>);

static CHECKS: Checks = Checks(LazyLock::new(|| {
    ["valid", "no_cookie", "bad_signature", "expired", "unknown", "error"]
        .map(|result| (result, counter!(SESSION_CHECKS, "result" => result)))
}));

impl Checks {
    fn count(&self, result: &str) {
        if let Some((_, counter)) = self.0.iter().find(|(known, _)| *known == result) {
            counter.increment(1);
        }
    }
}

/// The counters of accepted sessions: those that this replica made, and those that another one made.
static ACCEPTED: LazyLock<[Counter; 2]> =
    LazyLock::new(|| ["self", "other"].map(|made_by| counter!(SESSIONS_ACCEPTED, "made_by" => made_by)));

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
                CHECKS.count(result);
                return Err(AuthError::SessionInvalid);
            }
        };
        let now_ms = self.clock.now_ms();
        let left_ms = u64::try_from(claims.expires_at_ms - now_ms).unwrap_or(0);
        if left_ms == 0 {
            CHECKS.count("expired");
            return Err(AuthError::SessionInvalid);
        }
        let idle_for = self.limits.idle.min(Duration::from_millis(left_ms));
        let found = self.sessions.check(key_of(&claims), idle_for).await;
        let result = match &found {
            Ok(Some(_)) => "valid",
            Ok(None) => "unknown",
            Err(_) => "error",
        };
        CHECKS.count(result);
        let session = found?.ok_or(AuthError::SessionInvalid)?;
        let [by_self, by_other] = &*ACCEPTED;
        if session.created_by == self.replica { by_self } else { by_other }.increment(1);
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
        if self.end(key_of(&claims), "logout", None, client).await? { Ok(()) } else { Err(AuthError::SessionInvalid) }
    }

    /// Ends a session; `by` is the one that asked for it, if another.
    pub(super) async fn end(
        &self,
        key: SessionKey,
        reason: &'static str,
        by: Option<SessionId>,
        client: &Client,
    ) -> Result<bool, StoreError> {
        let was_alive = self.sessions.end(key).await?;
        if was_alive {
            Self::ended(key, reason, by, client);
        }
        Ok(was_alive)
    }

    /// Counts and records that a session is no more.
    pub(super) fn ended(key: SessionKey, reason: &'static str, by: Option<SessionId>, client: &Client) {
        counter!(SESSIONS_ENDED, "reason" => reason).increment(1);
        tracing::info!(target: "audit", event = "session_ended", reason, user_id = %key.user_id,
            session_id = %key.session_id, by_session = by.map(tracing::field::display), ip = %client.ip,
            request_id = %client.request_id);
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

    /// Ends one of the sessions of the user who is signed in.
    ///
    /// # Errors
    ///
    /// The user has no such session; no store.
    pub async fn revoke(&self, claims: &Claims, session_id: SessionId, client: &Client) -> Result<(), AuthError> {
        let key = SessionKey { user_id: claims.user_id, session_id };
        let was_alive = self.end(key, "revoked", Some(claims.session_id), client).await?;
        if was_alive { Ok(()) } else { Err(AuthError::SessionNotFound) }
    }

    /// Ends all sessions of the user who is signed in, or all but the one that asks; says how many.
    ///
    /// # Errors
    ///
    /// No store.
    pub async fn revoke_all(&self, claims: &Claims, keep_current: bool, client: &Client) -> Result<u32, AuthError> {
        let keep = keep_current.then_some(claims.session_id);
        let ended = self.sessions.end_all(claims.user_id, keep, None).await?;
        Self::ended_many(claims.user_id, ended, "revoked", Some(claims.session_id), client);
        Ok(ended)
    }

    /// Counts and records that `ended` of a user's sessions are no more.
    pub(super) fn ended_many(user_id: Uuid, ended: u32, reason: &'static str, by: Option<SessionId>, client: &Client) {
        counter!(SESSIONS_ENDED, "reason" => reason).increment(ended.into());
        tracing::info!(target: "audit", event = "sessions_ended", reason, count = ended, user_id = %user_id,
            by_session = by.map(tracing::field::display), ip = %client.ip, request_id = %client.request_id);
    }
}
