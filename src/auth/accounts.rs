//! Accounts: register, change the password, delete; disable, from the command line.
use metrics::counter;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;

use super::password::{Origin, Verdict};
use super::revocation::{Change, Revocation, Revoked};
use super::token::Claims;
use super::{Auth, AuthError, Client, Mistake, Opened, Registration, SignedIn, identity};
use crate::config;
use crate::metrics::REGISTRATIONS;
use crate::store::sessions::{Session, SessionId};
use crate::store::users::{NewUser, User, UserStoreError};

impl Auth {
    /// Creates an account. An error names all invalid fields at once.
    pub(crate) async fn register(&self, registration: Registration, client: &Client) -> Result<User, AuthError> {
        let result = self.try_register(registration, client).await;
        if matches!(result, Err(AuthError::Abandoned)) {
            return result;
        }
        let label = result.as_ref().map_or_else(AuthError::label, |_| "success");
        counter!(REGISTRATIONS, "result" => label).increment(1);
        match &result {
            Ok(user) => {
                tracing::info!(target: "audit", event = "account_created", user_id = %user.id, ip = %client.ip,
                    request_id = %client.request_id);
            }
            Err(_) => {
                tracing::info!(target: "audit", event = "registration_failed", reason = label, ip = %client.ip,
                    request_id = %client.request_id);
            }
        }
        result
    }

    async fn try_register(&self, registration: Registration, client: &Client) -> Result<User, AuthError> {
        if self.registration == config::Registration::Closed {
            return Err(AuthError::RegistrationClosed);
        }
        let mut invalid = Vec::new();
        let email = identity::email(&registration.email).map_err(|why| invalid.push(("email", why)));
        let username = registration.username.as_deref().map(identity::username).transpose();
        let username = username.map_err(|why| invalid.push(("username", why)));
        let context = [Some(registration.email.as_str()), registration.username.as_deref()];
        let context: Vec<_> = context.into_iter().flatten().collect();
        if let Err(violations) = self.policy.check(registration.password.expose_secret(), &context) {
            invalid.extend(violations.into_iter().map(|violation| ("password", Mistake::Password(violation))));
        }
        let (Ok(email), Ok(username), true) = (email, username, invalid.is_empty()) else {
            return Err(AuthError::Invalid(invalid));
        };
        let attempt = self.throttle.admit_registration(client.ip, &client.gone).await?;
        // Asked before hashing, so that a form sent twice doesn't cost a hash. The insertion decides.
        match self.users.ensure_free(&email, username.as_deref()).await {
            Ok(()) => {}
            Err(taken @ (UserStoreError::EmailTaken | UserStoreError::UsernameTaken)) => {
                // Charged too. Otherwise anybody could find out which of any number of addresses have an account.
                attempt.charge().await?;
                return Err(taken.into());
            }
            Err(error) => return Err(error.into()),
        }
        let password_hash = self.gate.hash(registration.password, client.origin(&email)).await?;
        attempt.charge().await?;
        Ok(self.users.create(NewUser { email, username, password_hash }).await?)
    }

    /// Sets a new password for somebody who knows the present one. Every session of the user ends, the one that asked
    /// included, and a new one is created (ASVS 5.0 7.4.3).
    ///
    /// # Errors
    ///
    /// Whatever the error, either the old password holds or the new one does, and no session is alive that should have
    /// ended.
    pub(crate) async fn change_password(
        &self,
        signed_in: &SignedIn,
        current: SecretString,
        new: SecretString,
        client: &Client,
    ) -> Result<Opened, AuthError> {
        // What can be refused without a hash is refused first. The session has the user's names.
        self.check_password("new_password", &new, &signed_in.session)?;
        let user = self.confirm(signed_in, current, client).await?;
        // Hashed even if the client has gone, because the present password has been verified and charged.
        let origin = Origin { gone: CancellationToken::new(), ..client.origin(&user.id.to_string()) };
        let new_hash = self.gate.hash(new, origin).await?;
        let asked = signed_in.claims.session_id;
        let (user, epoch) = self.revoke_with(Change::Password(&new_hash), user, asked, client).await?;
        let opened = self.open(User { epoch, password_hash: new_hash, ..user }, Vec::new(), client).await?;
        tracing::info!(target: "audit", event = "session_created", reason = "password_changed",
            user_id = %opened.user.id, session_id = %opened.claims.session_id, ip = %client.ip,
            user_agent = client.user_agent, request_id = %client.request_id);
        Ok(opened)
    }

    /// Deletes the account of somebody who knows its password, and ends all its sessions.
    pub(crate) async fn delete_account(
        &self,
        signed_in: &SignedIn,
        password: SecretString,
        client: &Client,
    ) -> Result<(), AuthError> {
        let user = self.confirm(signed_in, password, client).await?;
        self.revoke_with(Change::Deletion, user, signed_in.claims.session_id, client).await.map(drop)
    }

    /// Makes a change for somebody who has just confirmed the password, and ends all sessions; `asked` is the session
    /// that asked for it. Answers with the account as it was before, and the epoch that a session needs from now on.
    async fn revoke_with(
        &self,
        change: Change<'_>,
        user: User,
        asked: SessionId,
        client: &Client,
    ) -> Result<(User, i64), AuthError> {
        let (user_id, confirmed) = (user.id, user.password_hash.clone());
        // A login that met the fence raised the epoch, and the confirmed password is still the right one. If somebody
        // else changed the password first, it no longer is.
        let still_wanted = |now: Option<User>| {
            let is_confirmed = |now: &User| now.password_hash.expose_secret() == confirmed.expose_secret();
            now.filter(|now| now.disabled_at.is_none() && is_confirmed(now)).ok_or(AuthError::WrongPassword)
        };
        let changed = |user: &User| {
            tracing::info!(target: "audit", event = change.event(), user_id = %user.id, session_id = %asked,
                ip = %client.ip, request_id = %client.request_id);
        };
        let unconfirmed = || self.unconfirmed(user_id, None, change.event(), Some(asked), client);
        // The first step ends the session that asks. Where it couldn't be confirmed, nobody could ask again.
        self.sessions.confirmable(user_id).await.inspect_err(|_| unconfirmed())?;
        let revocation = Revocation { users: &self.users, sessions: Some(&self.sessions) };
        let Revoked { ended, result } = revocation.run(user, change, still_wanted, changed).await;
        if matches!(result, Err(AuthError::Unavailable(_))) {
            unconfirmed();
        }
        if ended > 0 || result.is_ok() {
            Self::ended_many(user_id, ended, change.event(), Some(asked), client);
        }
        result
    }

    /// Verifies the password of somebody who is signed in. Failures count as those of a login.
    async fn confirm(&self, signed_in: &SignedIn, password: SecretString, client: &Client) -> Result<User, AuthError> {
        let result = self.try_confirm(signed_in, password, client).await;
        if let Err(error) = &result
            && !matches!(error, AuthError::Abandoned)
        {
            let Claims { user_id, session_id, .. } = signed_in.claims;
            tracing::info!(target: "audit", event = "password_confirmation_failed", reason = error.label(),
                user_id = %user_id, session_id = %session_id, ip = %client.ip, request_id = %client.request_id);
        }
        result
    }

    async fn try_confirm(
        &self,
        signed_in: &SignedIn,
        password: SecretString,
        client: &Client,
    ) -> Result<User, AuthError> {
        let user_id = signed_in.claims.user_id;
        let attempt = self.throttle.admit_confirmation(user_id, client.ip, &client.gone).await?;
        let user = self.users.by_id(user_id).await?.filter(|user| user.disabled_at.is_none());
        let user = user.ok_or(AuthError::SessionInvalid)?;
        let origin = client.origin(&user_id.to_string());
        match self.gate.verify(password, Some(user.password_hash.clone()), origin).await? {
            Verdict::Match { .. } => {
                attempt.pardon().await?;
                Ok(user)
            }
            Verdict::Mismatch => {
                attempt.charge().await?;
                Err(AuthError::WrongPassword)
            }
        }
    }

    fn check_password(&self, field: &'static str, password: &SecretString, user: &Session) -> Result<(), AuthError> {
        self.policy.check(password.expose_secret(), &[&user.email, &user.username]).map_err(|violations| {
            AuthError::Invalid(violations.into_iter().map(|violation| (field, Mistake::Password(violation))).collect())
        })
    }
}
