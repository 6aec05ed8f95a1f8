//! Accounts: list, create, disable, enable, set the password, delete.
use secrecy::{ExposeSecret as _, SecretString};
use uuid::Uuid;

use super::{Admin, AdminError};
use crate::auth::password::{HashGate, Origin, PasswordPolicy};
use crate::auth::revocation::{Change, Revocation, Revoked};
use crate::auth::{Mistake, identity};
use crate::config::HashingConfig;
use crate::store::sessions::SessionStore;
use crate::store::users::groups::{GroupError, check_name};
use crate::store::users::{NewUser, User};

/// How often a change is tried. Each try fails only if another change of the account succeeded meanwhile.
const TRIES: u32 = 100;

/// A change that was made.
#[derive(Debug)]
pub(crate) struct Changed {
    /// The account as it was before.
    pub user: User,
    pub sessions_ended: u32,
}

impl Admin {
    /// Up to `limit` users in the order of their creation, those after `after`.
    pub(crate) async fn list_users(&self, after: Option<Uuid>, limit: u32) -> Result<Vec<User>, AdminError> {
        Ok(self.users().await?.list(after, limit).await?)
    }

    /// Creates an account, by the rules of a registration.
    pub(crate) async fn create(
        &self,
        email: &str,
        username: Option<&str>,
        password: SecretString,
    ) -> Result<User, AdminError> {
        let (valid_email, valid_username) = Self::names(email, username)?;
        let context: Vec<_> = [Some(email), username].into_iter().flatten().collect();
        self.check_password(&password, &context)?;
        let users = self.users().await?;
        users.ensure_free(&valid_email, valid_username.as_deref()).await?;
        let password_hash = self.hash(password).await?;
        let user = users.create(NewUser { email: valid_email, username: valid_username, password_hash }).await?;
        self.audit("account_created", user.id, None);
        Ok(user)
    }

    /// Reads the names of a new account; the error is about the first that is invalid.
    pub(crate) fn names(email: &str, username: Option<&str>) -> Result<(String, Option<String>), AdminError> {
        let invalid = |field| move |why: Mistake| AdminError::Invalid { field, message: why.to_string() };
        let email = identity::email(email).map_err(invalid("email"))?;
        let username = username.map(identity::username).transpose().map_err(invalid("username"))?;
        Ok((email, username))
    }

    /// Disables an account and ends its sessions on all replicas. For an account that is disabled already, ends the
    /// sessions that an earlier try left.
    pub(crate) async fn disable(&self, user: &User, offline: bool) -> Result<Changed, AdminError> {
        self.revoke_with(Change::Disabling, user, offline).await
    }

    /// Enables an account. Returns whether it was disabled.
    pub(crate) async fn enable(&self, user: &User) -> Result<bool, AdminError> {
        let was_disabled = self.users().await?.enable(user.id).await?;
        if was_disabled {
            self.audit("account_enabled", user.id, None);
        }
        Ok(was_disabled)
    }

    /// Sets a password and ends the account's sessions on all replicas.
    pub(crate) async fn set_password(
        &self,
        user: &User,
        password: SecretString,
        offline: bool,
    ) -> Result<Changed, AdminError> {
        self.check_password(&password, &[&user.email, &user.username])?;
        let new_hash = self.hash(password).await?;
        self.revoke_with(Change::Password(&new_hash), user, offline).await
    }

    /// Deletes an account and ends its sessions on all replicas.
    pub(crate) async fn delete(&self, user: &User, offline: bool) -> Result<Changed, AdminError> {
        self.revoke_with(Change::Deletion, user, offline).await
    }

    /// Puts an account into a group and ends its sessions on all replicas, which carry the groups. Does nothing if it
    /// is in the group already; then the answer is `None`.
    pub(crate) async fn add_group(
        &self,
        user: &User,
        group: &str,
        offline: bool,
    ) -> Result<Option<Changed>, AdminError> {
        self.set_group(user, group, true, offline).await
    }

    /// Takes an account out of a group and ends its sessions on all replicas. Does nothing if it isn't in the group;
    /// then the answer is `None`.
    pub(crate) async fn remove_group(
        &self,
        user: &User,
        group: &str,
        offline: bool,
    ) -> Result<Option<Changed>, AdminError> {
        self.set_group(user, group, false, offline).await
    }

    async fn set_group(
        &self,
        user: &User,
        name: &str,
        is_member: bool,
        offline: bool,
    ) -> Result<Option<Changed>, AdminError> {
        let invalid = |why: GroupError| AdminError::Invalid { field: "group", message: why.to_string() };
        check_name(name).map_err(invalid)?;
        if user.groups.contains(name) == is_member {
            return Ok(None);
        }
        if is_member {
            user.groups.with(name).map_err(invalid)?;
        }
        self.revoke_with(Change::Group { name, is_member }, user, offline).await.map(Some)
    }

    async fn revoke_with(&self, change: Change<'_>, user: &User, offline: bool) -> Result<Changed, AdminError> {
        let (user_id, sessions) = (user.id, self.endable(offline)?);
        let users = self.users().await?;
        let mut tries = 0;
        let mut still_wanted = |now: Option<User>| {
            tries += 1;
            match now {
                None => Err(AdminError::NoSuchUser(user_id.to_string())),
                Some(_) if tries > TRIES => Err(AdminError::Contended),
                Some(user) => Ok(user),
            }
        };
        // Read again, because the operator may have taken time to type the password or to confirm.
        let user = still_wanted(users.by_id(user_id).await?)?;
        let mut is_changed = false;
        let revocation = Revocation { users, sessions };
        let Revoked { ended, result } = revocation.run(user, change, still_wanted, |_| is_changed = true).await;
        if matches!(result, Err(AdminError::Redis(_))) {
            self.audit_unconfirmed(change.event(), user_id, None);
        }
        if is_changed {
            self.audit(change.event(), user_id, Some(ended));
        } else if ended > 0 {
            self.audit_ended(change.event(), user_id, ended);
        }
        let (user, _) = result?;
        Ok(Changed { user, sessions_ended: ended })
    }

    /// The sessions that a change must end, or `None` if they are out of reach and the operator says that no server
    /// runs.
    pub(crate) fn endable(&self, offline: bool) -> Result<Option<&SessionStore>, AdminError> {
        match self.sessions() {
            Ok(sessions) => Ok(Some(sessions)),
            Err(_) if offline => Ok(None),
            Err(_) => Err(AdminError::MustBeOffline),
        }
    }

    fn check_password(&self, password: &SecretString, context: &[&str]) -> Result<(), AdminError> {
        let policy = PasswordPolicy::new(&self.config.password, &self.config.pages.brand_name);
        policy.check(password.expose_secret(), context).map_err(|violations| {
            let messages: Vec<_> = violations.iter().map(ToString::to_string).collect();
            AdminError::Invalid { field: "password", message: messages.join(", ") }
        })
    }

    async fn hash(&self, password: SecretString) -> Result<SecretString, AdminError> {
        let one = HashingConfig { concurrency: 1, queue: 1, ..self.config.hashing };
        Ok(HashGate::start(&one).map_err(AdminError::Thread)?.hash(password, Origin::default()).await?)
    }
}
