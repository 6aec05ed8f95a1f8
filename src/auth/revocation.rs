//! How a change ends all of a user's sessions, so that none comes back. Written here and nowhere else.
//!
//! A new password, other groups, disabling and deletion end every session of the user. They all take the same three
//! steps:
//!
//! 1. **End the sessions and raise the fence**, in one step in Redis. The fence is a number per user. From now on Redis
//!    creates no session whose epoch is below it.
//! 2. **Change SQL**: the account and its epoch, if the epoch is still the one that was read. If it isn't, somebody
//!    else changed the account meanwhile. The account is then read again, and if the change is still wanted, step 1
//!    follows.
//! 3. **See that the fence still stands.** A Redis that lost it after step 1 may have created a session before step 2, so
//!    all end again. If it stands, there is none of before the change, and what was opened since then, with the new
//!    password, is left alone.
//!
//! A login reads the epoch before it verifies the password and creates its session under that epoch. Afterwards it
//! reads the epoch from SQL again. If that has changed, it ends its own session before anybody gets the token. So a
//! login that began before the change is refused by the fence or by SQL.
//!
//! If the steps are cut off anywhere, sessions have ended too early, never too late. After step 1 alone the account is
//! as it was, and the next login raises its epoch in SQL to the fence. After step 2 alone no login that began before
//! can succeed. Sessions that ended are reported to the caller even if a later step fails, because they have ended all
//! the same.
use secrecy::SecretString;

use crate::store::StoreError;
use crate::store::sessions::SessionStore;
use crate::store::users::{User, UserStore, UserStoreError};

/// A change that ends all of a user's sessions.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change<'a> {
    /// Stores this hash of a new password.
    Password(&'a SecretString),
    /// Puts the user into a group, or takes the user out.
    Group {
        name: &'a str,
        is_member: bool,
    },
    Disabling,
    Deletion,
}

impl Change<'_> {
    /// The name of the audit event, and the reason under which the sessions are counted and recorded.
    pub(super) fn event(self) -> &'static str {
        match self {
            Self::Password(_) => "password_changed",
            Self::Group { .. } => "groups_changed",
            Self::Disabling => "account_disabled",
            Self::Deletion => "account_deleted",
        }
    }

    /// Changes SQL if the account's epoch is still that of `user`. Answers with the epoch that a session needs
    /// afterwards, or with `None` if somebody else changed the account first.
    async fn apply(self, users: &UserStore, user: &User) -> Result<Option<i64>, UserStoreError> {
        match self {
            Self::Password(hash) => users.replace_password(user.id, user.epoch, hash).await,
            Self::Group { name, is_member } => {
                // Made out of the account as it is, so that changes of other groups at the same time are kept.
                let groups = if is_member { user.groups.with(name) } else { Ok(user.groups.without(name)) };
                let groups = groups.map_err(UserStoreError::unavailable)?;
                users.replace_groups(user.id, user.epoch, &groups).await
            }
            // Nothing to change, but an earlier attempt may have been cut off before it ended the sessions.
            Self::Disabling if user.disabled_at.is_some() => Ok(Some(user.epoch)),
            Self::Disabling => users.disable(user.id, user.epoch).await,
            Self::Deletion => Ok(users.delete(user.id, user.epoch).await?.then_some(user.epoch + 1)),
        }
    }
}

/// The stores that a revocation works on.
#[derive(Debug)]
pub(super) struct Revocation<'a> {
    pub(super) users: &'a UserStore,
    /// `None` if no server runs whose sessions could be alive.
    pub(super) sessions: Option<&'a SessionStore>,
}

/// What a revocation did.
#[must_use = "sessions that ended must be recorded even if the change failed"]
pub(super) struct Revoked<E> {
    /// How many sessions ended, whatever came of the rest.
    pub(super) ended: u32,
    /// The account as it was before the change, and the epoch that a session needs from now on.
    pub(super) result: Result<(User, i64), E>,
}

impl Revocation<'_> {
    /// Takes the three steps. `still_wanted` decides about the account as somebody else left it (`None`: deleted): it
    /// returns the account to go on with, or an error to stop. `changed` is called as soon as SQL has the change, so
    /// that it is recorded even if step 3 fails.
    pub(super) async fn run<E>(
        &self,
        mut user: User,
        change: Change<'_>,
        mut still_wanted: impl FnMut(Option<User>) -> Result<User, E>,
        changed: impl FnOnce(&User),
    ) -> Revoked<E>
    where
        E: From<StoreError> + From<UserStoreError>,
    {
        let mut ended = 0;
        let steps = async {
            let epoch = loop {
                if let Some(sessions) = self.sessions {
                    ended += sessions.fence_off(user.id, user.epoch + 1).await?;
                }
                if let Some(epoch) = change.apply(self.users, &user).await? {
                    break epoch;
                }
                user = still_wanted(self.users.by_id(user.id).await?)?;
            };
            changed(&user);
            if let Some(sessions) = self.sessions {
                ended += sessions.fence_off(user.id, epoch).await?;
            }
            Ok((user, epoch))
        };
        let result = steps.await;
        Revoked { ended, result }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::*;
    use crate::auth::AuthError;
    use crate::auth::token::TokenKeys;
    use crate::clock::Clock;
    use crate::config::{DatabaseUrl, SessionFormat};
    use crate::store::sessions::{Created, Limits, MemorySessions, NewSession, SessionKey};
    use crate::store::users::{NewUser, migrate};

    const DAY: Duration = Duration::from_hours(24);

    fn session(user: &User, epoch: i64, clock: &Clock) -> NewSession {
        let created_at = clock.now();
        let expires_at = created_at + DAY;
        let keys = TokenKeys::new(&[b"a secret".to_vec().into()]);
        let (_, claims) = keys.issue(user.id, SessionFormat::Classic, expires_at.as_millisecond());
        NewSession {
            key: SessionKey { user_id: user.id, session_id: claims.session_id, format: claims.format },
            username: user.username.clone(),
            email: user.email.clone(),
            groups: user.groups.clone(),
            created_at,
            expires_at,
            created_by: "replica-1".to_owned(),
            ip: "192.0.2.1".to_owned(),
            user_agent: String::new(),
            epoch,
            replaces: None,
        }
    }

    /// Between the change in SQL and the last step, somebody may sign in with the new password.
    #[tokio::test]
    async fn a_login_with_the_new_password_outlives_the_change() {
        let directory = tempfile::tempdir().expect("a directory");
        let url = DatabaseUrl::Sqlite(directory.path().join("users.db"));
        migrate(&url).await.expect("a new database");
        let clock = Clock::system();
        let users = UserStore::open(&url, clock.clone()).await.expect("a database");
        let hash: SecretString = "$argon2id$fake".into();
        let new = NewUser { email: "ada@example.org".into(), username: None, password_hash: hash.clone() };
        let ada = users.create(new).await.expect("created");
        let limits = Limits { idle: Duration::from_mins(30), max_age: DAY, per_user: 10 };
        let sessions = SessionStore::Memory(MemorySessions::new(clock.clone(), limits));
        let create = |session: &NewSession| {
            sessions.create(session).now_or_never().expect("memory answers at once").expect("memory answers")
        };
        let done = Created::Done { evicted: 0, replaced: false };
        let before = session(&ada, ada.epoch, &clock);
        let (overtaken, after) = (session(&ada, ada.epoch, &clock), session(&ada, ada.epoch + 1, &clock));
        assert_eq!(create(&before), done);

        let revocation = Revocation { users: &users, sessions: Some(&sessions) };
        let revoked = revocation
            .run(
                ada.clone(),
                Change::Password(&hash),
                |_| Err(AuthError::SessionInvalid),
                |_| {
                    assert_eq!(create(&overtaken), Created::Overtaken { fence: ada.epoch + 1 });
                    assert_eq!(create(&after), done);
                },
            )
            .await;
        assert_eq!(revoked.result.expect("nobody else changes anything").1, ada.epoch + 1);
        assert_eq!(revoked.ended, 1);
        for (session, is_alive) in [(&before, false), (&overtaken, false), (&after, true)] {
            let found = sessions.check(session.key, limits.idle).await.expect("memory answers");
            assert_eq!(found.is_some(), is_alive, "of epoch {}", session.epoch);
        }
    }
}
