//! How a session gets to the host of an application (forward auth): a cookie of its own for each host.
//!
//! 1. The application's host sets a **start value** in a cookie of its own and sends the browser to sign in, with the
//!    value's hash.
//! 2. Once somebody is signed in, the browser is sent back with a **code**: 256 random bits, good once, for 30 seconds,
//!    for this host and this start value, while the session lives.
//! 3. The application's host takes the code, compares the start value, and sets a host-bound token.
//!
//! The start value keeps an attacker from having somebody else's browser take a code of the attacker's session (login
//! CSRF), and from using a code that was seen on its way. The code begins with the user's id, which says in which slot
//! of a Redis Cluster it is.
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::token::{Claims, HostHash};
use super::{Auth, AuthError, Client, SignedIn, key_of};
use crate::store::sessions::{NewCode, SessionKey};

/// Bytes of a code: the user's id, then random ones.
const CODE: usize = 48;
/// Bytes of a start value.
const START: usize = 32;

/// A start value, as its cookie holds it: 43 characters of base64url.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartValue(String);

impl StartValue {
    /// A new one.
    ///
    /// # Panics
    ///
    /// Without the operating system's random source.
    pub(crate) fn random() -> Self {
        let mut bytes = [0; START];
        getrandom::fill(&mut bytes).expect("the operating system's random source");
        Self(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads a cookie's value. `None` if it can't be one.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; START];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        (length == START).then(|| Self(URL_SAFE_NO_PAD.encode(bytes)))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// What travels in URLs and is kept with the code.
    pub(crate) fn hash(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(&self.0))
    }
}

/// Whether a text is the hash of a start value.
pub(crate) fn is_start_hash(text: &str) -> bool {
    URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes.len() == 32)
}

/// A session that has got to a host.
#[derive(Debug)]
pub(crate) struct HandedOver {
    /// The value of the host's cookie.
    pub(crate) token: SecretString,
    /// Where to go: a path with its query.
    pub(crate) to: String,
}

impl Auth {
    /// Makes a code that takes a session to `host`. `start` is the hash of the browser's start value, `to` the path to
    /// go to.
    ///
    /// # Errors
    ///
    /// [`AuthError::SessionInvalid`] if the session has ended.
    pub(crate) async fn hand_out(
        &self,
        claims: &Claims,
        host: &str,
        start: &str,
        to: &str,
    ) -> Result<String, AuthError> {
        let mut bytes = [0; CODE];
        bytes[..16].copy_from_slice(claims.user_id.as_bytes());
        getrandom::fill(&mut bytes[16..]).map_err(|error| AuthError::Internal(error.into()))?;
        let code = NewCode {
            key: key_of(claims),
            hash: hex::encode(Sha256::digest(bytes)),
            expires_at_ms: claims.expires_at_ms,
            host: host.to_owned(),
            start: start.to_owned(),
            to: to.to_owned(),
        };
        if self.sessions.put_code(&code).await? {
            Ok(URL_SAFE_NO_PAD.encode(bytes))
        } else {
            Err(AuthError::SessionInvalid)
        }
    }

    /// Takes a code at `host`, with the browser's start value. Whoever tries a code uses it up.
    ///
    /// # Errors
    ///
    /// [`AuthError::SessionInvalid`] if the code isn't good here and now, for whatever reason.
    pub(crate) async fn take(
        &self,
        code: &str,
        host: &str,
        start: &StartValue,
        client: &Client,
    ) -> Result<HandedOver, AuthError> {
        let mut bytes = [0; CODE];
        let length = URL_SAFE_NO_PAD.decode_slice(code, &mut bytes).map_err(|_| AuthError::SessionInvalid)?;
        if length != CODE {
            return Err(AuthError::SessionInvalid);
        }
        let user_id = Uuid::from_slice(&bytes[..16]).expect("16 bytes");
        let hash = hex::encode(Sha256::digest(bytes));
        let taken =
            self.sessions.take_code(user_id, &hash, host, &start.hash()).await?.ok_or(AuthError::SessionInvalid)?;
        let SessionKey { session_id, format, .. } = taken.key;
        let claims = Claims { user_id, session_id, format, expires_at_ms: taken.expires_at_ms };
        tracing::info!(target: "audit", event = "session_opened_host", user_id = %user_id,
            session_id = %claims.session_id, host, ip = %client.ip, request_id = %client.request_id);
        Ok(HandedOver { token: self.keys.issue_bound(&claims, HostHash::of(host)), to: taken.to })
    }

    /// Checks the session that a host's own cookie names, and renews its idle limit: one round trip, as
    /// [`Auth::check`].
    pub(crate) async fn check_bound<'a>(
        &self,
        cookies: impl Iterator<Item = &'a [u8]>,
        host: &str,
    ) -> Result<SignedIn, AuthError> {
        let host = HostHash::of(host);
        self.check_signed(Self::read_with(cookies, |cookie| self.keys.read_bound(cookie, host))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_value_reads_back_and_its_hash_says_nothing_of_it() {
        let value = StartValue::random();
        assert_eq!(StartValue::parse(value.as_str().as_bytes()), Some(value.clone()));
        assert_ne!(value, StartValue::random());
        assert!(is_start_hash(&value.hash()) && !value.hash().contains(value.as_str()));
        for bad in ["", "x", &"A".repeat(42), &"A".repeat(44), &"!".repeat(43)] {
            assert_eq!(StartValue::parse(bad.as_bytes()), None, "{bad}");
            assert!(!is_start_hash(bad), "{bad}");
        }
    }
}
