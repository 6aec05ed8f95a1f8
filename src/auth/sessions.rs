//! Sessions: check, sign out, list, revoke.
use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use metrics::{Counter, counter};
use uuid::Uuid;

use super::token::{Claims, NotOurs};
use super::{Auth, AuthError, Client, SignedIn, key_of};
use crate::clock::millis;
use crate::metrics::{REVOCATIONS_UNCONFIRMED, SESSION_CHECKS, SESSIONS_ACCEPTED, SESSIONS_ENDED};
use crate::store::StoreError;
use crate::store::sessions::{SessionEntry, SessionId, SessionKey};

/// How many genuine cookies of one request are tried, each of which may cost a round trip to the store. A browser sends
/// several if a sibling domain or another path planted one. Forged cookies don't count, so they can't hide a genuine
/// one. The limit on request heads bounds them.
const COOKIES_TRIED: usize = 4;

/// The genuine cookies of one request, those that expire last first.
pub(super) struct Signed([Option<Claims>; COOKIES_TRIED]);

impl Signed {
    pub(super) fn iter(&self) -> impl Iterator<Item = Claims> {
        self.0.iter().copied().flatten()
    }

    /// Keeps those that expire last.
    fn add(&mut self, mut claims: Claims) {
        for place in &mut self.0 {
            match place {
                Some(known) if known.session_id == claims.session_id => return,
                Some(known) if known.expires_at_ms >= claims.expires_at_ms => {}
                Some(known) => std::mem::swap(known, &mut claims),
                None => {
                    *place = Some(claims);
                    return;
                }
            }
        }
    }
}

/// The counters of session checks, by result. They are looked up once, not per request.
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

/// The counters of accepted sessions: those that this replica created, and those that another one created.
static ACCEPTED: LazyLock<[Counter; 2]> =
    LazyLock::new(|| ["self", "other"].map(|made_by| counter!(SESSIONS_ACCEPTED, "made_by" => made_by)));

/// Why a genuine cookie was refused.
enum Refused {
    /// Its session is older than it may be.
    Expired,
    /// The store has no such session.
    Unknown,
    /// The store didn't answer.
    Unavailable(StoreError),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error)
    }
}

impl Auth {
    /// Checks the session that a cookie names and renews its idle limit. Of several genuine cookies the first one whose
    /// session is alive counts.
    pub(crate) async fn check<'a>(&self, cookies: impl Iterator<Item = &'a [u8]>) -> Result<SignedIn, AuthError> {
        self.check_signed(self.read(cookies)).await
    }

    /// Checks the sessions that cookies name, or counts why there is none.
    pub(super) async fn check_signed(&self, signed: Result<Signed, &'static str>) -> Result<SignedIn, AuthError> {
        let signed = match signed {
            Ok(signed) => signed,
            Err(result) => {
                CHECKS.count(result);
                return Err(AuthError::SessionInvalid);
            }
        };
        let mut result = "expired";
        for claims in signed.iter() {
            match self.check_one(claims).await {
                Ok(signed_in) => {
                    CHECKS.count("valid");
                    let [by_self, by_other] = &*ACCEPTED;
                    if signed_in.session.created_by == self.replica { by_self } else { by_other }.increment(1);
                    return Ok(signed_in);
                }
                Err(Refused::Expired) => {}
                Err(Refused::Unknown) => result = "unknown",
                Err(Refused::Unavailable(error)) => {
                    CHECKS.count("error");
                    return Err(error.into());
                }
            }
        }
        CHECKS.count(result);
        Err(AuthError::SessionInvalid)
    }

    async fn check_one(&self, mut claims: Claims) -> Result<SignedIn, Refused> {
        let now_ms = self.clock.now_ms();
        let mut idle_for = self.idle_for(now_ms, claims.expires_at_ms).ok_or(Refused::Expired)?;
        let key = key_of(&claims);
        let session = self.sessions.check(key, idle_for).await?.ok_or(Refused::Unknown)?;
        let ends = Timestamp::from_millisecond(claims.expires_at_ms).unwrap_or(Timestamp::MAX);
        let ends_ms = self.limits.end_of(session.created_at, ends).as_millisecond();
        if ends_ms < claims.expires_at_ms {
            // `SESSION_MAX_AGE` was lowered after the session was created. Only then, and only within the last idle
            // period, does a check take a second round trip, because the first one renewed the session for too long.
            claims.expires_at_ms = ends_ms;
            let Some(less) = self.idle_for(now_ms, ends_ms) else {
                self.sessions.forget(key).await?;
                return Err(Refused::Expired);
            };
            if less < idle_for {
                idle_for = less;
                self.sessions.check(key, less).await?.ok_or(Refused::Unknown)?;
            }
        }
        let idle_ends_ms = now_ms.saturating_add(millis(idle_for));
        let idle_expires_at = Timestamp::from_millisecond(idle_ends_ms).unwrap_or(Timestamp::MAX);
        Ok(SignedIn { claims, session, idle_expires_at })
    }

    /// For how long a session that ends at `ends_ms` is renewed; `None` if it has ended.
    fn idle_for(&self, now_ms: i64, ends_ms: i64) -> Option<Duration> {
        let left_ms = u64::try_from(ends_ms.saturating_sub(now_ms)).unwrap_or(0);
        (left_ms > 0).then(|| self.limits.idle.min(Duration::from_millis(left_ms)))
    }

    /// Ends the sessions that the cookies name. One that is gone already must still be confirmed to be: an earlier
    /// attempt may have ended it where replicas don't know of it yet.
    pub(crate) async fn sign_out<'a>(
        &self,
        cookies: impl Iterator<Item = &'a [u8]>,
        client: &Client,
    ) -> Result<(), AuthError> {
        let signed = self.read(cookies).map_err(|_| AuthError::SessionInvalid)?;
        let mut any_was_alive = false;
        for claims in signed.iter() {
            any_was_alive |= self.end(key_of(&claims), "logout", None, client).await?;
        }
        if any_was_alive { Ok(()) } else { Err(AuthError::SessionInvalid) }
    }

    /// Ends a session. `by` is the session that asked for it, if it was another one. Returns whether it was alive.
    pub(super) async fn end(
        &self,
        key: SessionKey,
        reason: &'static str,
        by: Option<SessionId>,
        client: &Client,
    ) -> Result<bool, StoreError> {
        let ended = self.sessions.end(key).await;
        let was_alive =
            ended.inspect_err(|_| self.unconfirmed(key.user_id, Some(key.session_id), reason, by, client))?;
        if was_alive {
            Self::ended(key, reason, by, client);
        }
        Ok(was_alive)
    }

    /// Counts and records that a session has ended.
    pub(super) fn ended(key: SessionKey, reason: &'static str, by: Option<SessionId>, client: &Client) {
        counter!(SESSIONS_ENDED, "reason" => reason).increment(1);
        tracing::info!(target: "audit", event = "session_ended", reason, user_id = %key.user_id,
            session_id = %key.session_id, by_session = by.map(tracing::field::display), ip = %client.ip,
            request_id = %client.request_id);
    }

    /// What the genuine cookies among these say, those that expire last first.
    pub(crate) fn brought<'a>(&self, cookies: impl Iterator<Item = &'a [u8]>) -> Vec<Claims> {
        self.read(cookies).map_or_else(|_| Vec::new(), |signed| signed.iter().collect())
    }

    /// The genuine cookies, or why there is none.
    pub(super) fn read<'a>(&self, cookies: impl Iterator<Item = &'a [u8]>) -> Result<Signed, &'static str> {
        Self::read_with(cookies, |cookie| self.keys.read(cookie))
    }

    /// As [`Self::read`], for tokens that `read` reads.
    pub(super) fn read_with<'a>(
        cookies: impl Iterator<Item = &'a [u8]>,
        read: impl Fn(&[u8]) -> Result<Claims, NotOurs>,
    ) -> Result<Signed, &'static str> {
        let mut signed = Signed([None; COOKIES_TRIED]);
        let mut reason = "no_cookie";
        for cookie in cookies {
            match read(cookie) {
                Ok(claims) => signed.add(claims),
                Err(_) => reason = "bad_signature",
            }
        }
        if signed.0[0].is_some() { Ok(signed) } else { Err(reason) }
    }

    /// The user's living sessions, newest first.
    pub(crate) async fn list(&self, user_id: Uuid) -> Result<Vec<SessionEntry>, AuthError> {
        Ok(self.sessions.list(user_id).await?)
    }

    /// Ends one of the sessions of the user who is signed in.
    pub(crate) async fn revoke(
        &self,
        claims: &Claims,
        session_id: SessionId,
        client: &Client,
    ) -> Result<(), AuthError> {
        for key in SessionKey::named(claims.user_id, session_id) {
            if self.end(key, "revoked", Some(claims.session_id), client).await? {
                return Ok(());
            }
        }
        Err(AuthError::SessionNotFound)
    }

    /// Ends all sessions of the user who is signed in, or all except the one that asks. Returns how many.
    pub(crate) async fn revoke_all(
        &self,
        claims: &Claims,
        keep_current: bool,
        client: &Client,
    ) -> Result<u32, AuthError> {
        let Claims { user_id, session_id: asking, .. } = *claims;
        let end_all = async |keep| {
            let ended = self.sessions.end_all(user_id, keep).await;
            ended.inspect_err(|_| self.unconfirmed(user_id, None, "revoked", Some(asking), client))
        };
        // What can't be confirmed must be asked for again, and that takes the session that asks. So that one ends last.
        let mut ended = if keep_current || self.sessions.confirms() { end_all(Some(asking)).await? } else { 0 };
        if !keep_current {
            ended += end_all(None).await?;
        }
        Self::ended_many(user_id, ended, "revoked", Some(asking), client);
        Ok(ended)
    }

    /// Counts and records that nobody confirmed that a session, or all of a user's, have ended. They may have.
    pub(super) fn unconfirmed(
        &self,
        user_id: Uuid,
        session_id: Option<SessionId>,
        reason: &'static str,
        by: Option<SessionId>,
        client: &Client,
    ) {
        if !self.sessions.confirms() {
            return;
        }
        counter!(REVOCATIONS_UNCONFIRMED).increment(1);
        let event = if session_id.is_some() { "session_ended" } else { "sessions_ended" };
        tracing::warn!(target: "audit", event, outcome = "unconfirmed", reason, user_id = %user_id,
            session_id = session_id.map(tracing::field::display), by_session = by.map(tracing::field::display),
            ip = %client.ip, request_id = %client.request_id);
    }

    /// Counts and records that `ended` of a user's sessions have ended.
    pub(super) fn ended_many(user_id: Uuid, ended: u32, reason: &'static str, by: Option<SessionId>, client: &Client) {
        counter!(SESSIONS_ENDED, "reason" => reason).increment(ended.into());
        tracing::info!(target: "audit", event = "sessions_ended", reason, count = ended, user_id = %user_id,
            by_session = by.map(tracing::field::display), ip = %client.ip, request_id = %client.request_id);
    }
}
