//! Sign in: verify a password, create a session.
use jiff::Timestamp;
use metrics::counter;
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::password::Verdict;
use super::token::Claims;
use super::{Auth, AuthError, Client, Opened, device, key_of};
use crate::config::SessionFormat;
use crate::metrics::{LOGINS, SESSIONS_CREATED};
use crate::store::sessions::{Created, NewSession, SessionKey};
use crate::store::users::{User, login_key};
use crate::telemetry::chain;

impl Auth {
    /// Verifies a password and creates a session. Living sessions whose cookies the client sent along end with it. To
    /// be run by [`super::Flows`].
    pub(crate) async fn sign_in(
        &self,
        identifier: &str,
        password: SecretString,
        brought: Vec<Claims>,
        client: &Client,
    ) -> Result<Opened, AuthError> {
        let mut tried = None;
        let result = self.try_sign_in(identifier, password, brought, client, &mut tried).await;
        let label = match &result {
            Ok(_) => "success",
            // The client left before any hash, so nothing has happened.
            Err(AuthError::Abandoned) => return result,
            Err(error) => error.label(),
        };
        counter!(LOGINS, "result" => label).increment(1);
        match &result {
            Ok(Opened { user, claims, .. }) => {
                tracing::info!(target: "audit", event = "login", user_id = %user.id, session_id = %claims.session_id,
                    ip = %client.ip, user_agent = client.user_agent, request_id = %client.request_id);
            }
            Err(error) => {
                // The name as typed isn't recorded, because people type passwords there.
                tracing::info!(target: "audit", event = "login_failed", reason = label, error = chain(error),
                    user_id = tried.map(tracing::field::display), ip = %client.ip, request_id = %client.request_id);
            }
        }
        result
    }

    async fn try_sign_in(
        &self,
        identifier: &str,
        password: SecretString,
        brought: Vec<Claims>,
        client: &Client,
        tried: &mut Option<Uuid>,
    ) -> Result<Opened, AuthError> {
        let user = self.users.by_login(identifier).await?;
        *tried = user.as_ref().map(|user| user.id);
        let name = name_key(identifier);
        let attempt = self.throttle.admit_login(&name, *tried, client.ip, &client.gone).await?;
        // Unknown and disabled users cost a hash too, so that the time doesn't tell them apart (ASVS 5.0 6.3.8).
        let stored = user.as_ref().filter(|_| !attempt.is_decoy()).map(|user| user.password_hash.clone());
        let verdict = self.gate.verify(password, stored, client.origin(&name)).await?;
        let (Some(user), Verdict::Match { upgraded }) = (user.filter(|user| user.disabled_at.is_none()), verdict)
        else {
            attempt.charge().await?;
            return Err(AuthError::InvalidCredentials);
        };
        attempt.pardon().await?;
        if let Some(new_hash) = upgraded {
            // This is not worth failing a login for. The next one tries again.
            if let Err(error) = self.users.upgrade_hash(user.id, &user.password_hash, &new_hash).await {
                tracing::warn!(error = chain(&error), user_id = %user.id, "password hash not upgraded");
            }
        }
        self.open(user, brought, client).await
    }

    /// Creates a session for a user whose password was verified against `user.password_hash`.
    pub(super) async fn open(
        &self,
        mut user: User,
        brought: Vec<Claims>,
        client: &Client,
    ) -> Result<Opened, AuthError> {
        let now = self.clock.now();
        let created_at = match self.format {
            SessionFormat::Classic => now,
            // Cut off rather than rounded, so that a session never outlives a limit.
            SessionFormat::Compact => Timestamp::from_second(now.as_second()).unwrap_or(now),
        };
        let expires_at = created_at + self.limits.max_age;
        let (token, claims) = self.keys.issue(user.id, self.format, expires_at.as_millisecond());
        let key = key_of(&claims);
        let mut predecessor = None;
        for old in brought {
            if old.user_id == user.id && old.format == self.format && predecessor.is_none() {
                predecessor = Some(old.session_id);
            } else {
                // A session of another user or another format is in another slot of the cluster and can't end in the
                // same step, so it ends first.
                self.end(key_of(&old), "replaced", None, client).await?;
            }
        }
        let mut new = NewSession {
            key,
            username: user.username.clone(),
            email: user.email.clone(),
            groups: user.groups.clone(),
            created_at,
            expires_at,
            created_by: self.replica.clone(),
            ip: client.ip.to_string(),
            user_agent: device::name(&client.user_agent).unwrap_or_else(|| client.user_agent.clone()),
            epoch: user.epoch,
            replaces: predecessor,
        };
        let (evicted, replaced) = loop {
            match self.sessions.create(&new).await? {
                Created::Done { evicted, replaced } => break (evicted, replaced),
                // Either the account was changed meanwhile, or a change was cut off after it raised the fence. In the
                // second case SQL still has the user as it was read, and its epoch is raised to the fence.
                Created::Overtaken { fence } => {
                    let epoch = self.users.raise_epoch(user.id, user.epoch, fence).await?;
                    let Some(epoch) = epoch else { return Err(AuthError::InvalidCredentials) };
                    (user.epoch, new.epoch) = (epoch, epoch);
                }
            }
        };
        // SQL decides: a Redis that lost its fences can't let a login through that a change has overtaken.
        if self.users.current_epoch(user.id).await? != Some(user.epoch) {
            self.sessions.end(key).await?;
            return Err(AuthError::InvalidCredentials);
        }
        counter!(SESSIONS_CREATED).increment(1);
        if let Some(old) = predecessor.filter(|_| replaced) {
            Self::ended(SessionKey { session_id: old, ..key }, "replaced", None, client);
        }
        if evicted > 0 {
            Self::ended_many(user.id, evicted, "evicted", Some(claims.session_id), client);
        }
        let idle_expires_at = expires_at.min(now + self.limits.idle);
        Ok(Opened { user, token, claims, created_at, idle_expires_at, expires_at })
    }
}

/// What attempts at a name are counted under, whether or not it has an account. It's a hash, the same for every
/// spelling, because the key can be seen in Redis, and people type passwords as names.
fn name_key(identifier: &str) -> String {
    hex::encode(&Sha256::digest(login_key(identifier))[..16])
}
