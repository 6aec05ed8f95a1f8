//! The session cookie's value.
//!
//! 87 bytes, as 116 characters of base64url:
//!
//! ```text
//!  0      1             17                 49           55          87
//!  +------+-------------+------------------+------------+-----------+
//!  | 0x01 | user id, 16 | secret, 32       | expires, 6 | MAC, 32   |
//!  +------+-------------+------------------+------------+-----------+
//! ```
//!
//! - The first byte is 0x01 for a session that is kept in the classic format, and 0x03 for one in the compact format
//!   (`SESSION_FORMAT`). So a check knows which key to read.
//! - The secret is 256 bits from the operating system's CSPRNG (ASVS 5.0 7.2.3 asks for 128).
//! - `expires` is the session's absolute limit in milliseconds since the epoch: it lets one round trip both read the
//!   session and renew it without ever passing that limit.
//! - The user id says in which Redis Cluster slot the session's key is.
//! - The MAC is HMAC-SHA256 (RFC 2104) over the first 55 bytes: just what fits into one SHA-256 block with its
//!   padding. A cookie that fails it costs no round trip to the store.
//!
//! A **host-bound token** is the value of an application's own cookie (forward auth). It names the same session, so it
//! dies with it, and is good at one host alone:
//!
//! ```text
//!  0      1             17               33           39              55          87
//!  +------+-------------+----------------+------------+---------------+-----------+
//!  | 0x02 | user id, 16 | session id, 16 | expires, 6 | host hash, 16 | MAC, 32   |
//!  +------+-------------+----------------+------------+---------------+-----------+
//! ```
//!
//! It holds no secret of the session, so the session's own token can't be made from it. The first byte keeps the two
//! apart; it is 0x04 if the session is kept in the compact format. The host's hash is the beginning of the SHA-256 of its name, without a port, since browsers share cookies
//! between ports.
//!
//! Lengths are multiples of three, so each token has exactly one text: no ignored trailing bits.
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretSlice, SecretString};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::config::SessionFormat::{self, Classic, Compact};
use crate::store::sessions::SessionId;

/// The first bytes of sessions' own tokens.
const OWN: [(u8, SessionFormat); 2] = [(1, Classic), (3, Compact)];
/// The first bytes of host-bound tokens.
const HOST_BOUND: [(u8, SessionFormat); 2] = [(2, Classic), (4, Compact)];
const USER: std::ops::Range<usize> = 1..17;
const SECRET: std::ops::Range<usize> = 17..49;
const EXPIRES: std::ops::Range<usize> = 49..55;
const BOUND_SESSION: std::ops::Range<usize> = 17..33;
const BOUND_EXPIRES: std::ops::Range<usize> = 33..39;
const BOUND_HOST: std::ops::Range<usize> = 39..55;
const SIGNED: usize = 55;
const LENGTH: usize = SIGNED + 32;
/// Characters of a cookie value.
pub(crate) const TEXT_LENGTH: usize = LENGTH / 3 * 4;

/// What a genuine cookie says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claims {
    pub user_id: Uuid,
    /// The session's public name.
    pub session_id: SessionId,
    /// How the session is kept.
    pub format: SessionFormat,
    /// The absolute limit, in milliseconds since the epoch.
    pub expires_at_ms: i64,
}

/// What binds a token to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostHash([u8; 16]);

impl HostHash {
    /// Of a host's name, without the port.
    pub(crate) fn of(name: &str) -> Self {
        let digest = Sha256::digest(name);
        Self(digest[..16].try_into().expect("16 of 32 bytes"))
    }
}

/// What a cookie value says, genuine or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inspected {
    /// If no key of ours signed it, anybody can have written this.
    pub claims: Claims,
    /// The key that signed it, counted from 0 in the order of `SESSION_SECRET`.
    pub key: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session cookie's signature is not ours")]
pub(crate) struct NotOurs;

/// Issues and reads cookie values.
#[derive(Clone)]
pub(crate) struct TokenKeys {
    /// The key schedules are computed in advance, so that a check costs two SHA-256 blocks.
    signing: Hmac<Sha256>,
    accepted: Vec<Hmac<Sha256>>,
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenKeys({})", self.accepted.len())
    }
}

impl TokenKeys {
    /// Signs with the first secret and accepts all, so that secrets are rotated without logging anyone out.
    ///
    /// # Panics
    ///
    /// Without any secret; the configuration refuses that.
    pub(crate) fn new(secrets: &[SecretSlice<u8>]) -> Self {
        let accepted: Vec<_> = secrets
            .iter()
            .map(|secret| Hmac::new_from_slice(secret.expose_secret()).expect("HMAC takes a key of any length"))
            .collect();
        Self { signing: accepted.first().expect("at least one session secret").clone(), accepted }
    }

    /// Issues a token for a session of `user_id` that is kept in this format and ends at `expires_at_ms` at the latest.
    pub(crate) fn issue(&self, user_id: Uuid, format: SessionFormat, expires_at_ms: i64) -> (SecretString, Claims) {
        let mut bytes = [0_u8; LENGTH];
        bytes[0] = first_byte(OWN, format);
        bytes[USER].copy_from_slice(user_id.as_bytes());
        getrandom::fill(&mut bytes[SECRET]).expect("the operating system's random source");
        bytes[EXPIRES].copy_from_slice(&expires_at_ms.to_be_bytes()[2..]);
        let mac = self.signing.clone().chain_update(&bytes[..SIGNED]).finalize().into_bytes();
        bytes[SIGNED..].copy_from_slice(&mac);
        (URL_SAFE_NO_PAD.encode(bytes).into(), claims(&bytes, format))
    }

    /// Issues a token for the session of these claims that is good at one host alone.
    ///
    /// # Panics
    ///
    /// If the session's id is none that [`Self::issue`] made.
    pub(crate) fn issue_bound(&self, claims: &Claims, host: HostHash) -> SecretString {
        let mut bytes = [0_u8; LENGTH];
        bytes[0] = first_byte(HOST_BOUND, claims.format);
        bytes[USER].copy_from_slice(claims.user_id.as_bytes());
        bytes[BOUND_SESSION].copy_from_slice(&claims.session_id.to_bytes().expect("a living session's id"));
        bytes[BOUND_EXPIRES].copy_from_slice(&claims.expires_at_ms.to_be_bytes()[2..]);
        bytes[BOUND_HOST].copy_from_slice(&host.0);
        let mac = self.signing.clone().chain_update(&bytes[..SIGNED]).finalize().into_bytes();
        bytes[SIGNED..].copy_from_slice(&mac);
        URL_SAFE_NO_PAD.encode(bytes).into()
    }

    pub(crate) fn read(&self, text: &[u8]) -> Result<Claims, NotOurs> {
        let (bytes, format) = decode(text, OWN).ok_or(NotOurs)?;
        self.signer(&bytes).map(|_| claims(&bytes, format)).ok_or(NotOurs)
    }

    /// Reads a host-bound token, at this host.
    pub(crate) fn read_bound(&self, text: &[u8], host: HostHash) -> Result<Claims, NotOurs> {
        let (bytes, format) = decode(text, HOST_BOUND).ok_or(NotOurs)?;
        self.signer(&bytes).ok_or(NotOurs)?;
        if bytes[BOUND_HOST] != host.0 {
            return Err(NotOurs);
        }
        Ok(Claims {
            user_id: Uuid::from_slice(&bytes[USER]).expect("16 bytes"),
            session_id: SessionId::from_bytes(bytes[BOUND_SESSION].try_into().expect("16 bytes")),
            format,
            expires_at_ms: expires(&bytes[BOUND_EXPIRES]),
        })
    }

    /// Reads a cookie value whoever signed it, to tell an operator what is wrong with it. `None` if it doesn't have the
    /// form of one.
    pub(crate) fn inspect(&self, text: &[u8]) -> Option<Inspected> {
        let (bytes, format) = decode(text, OWN)?;
        Some(Inspected { claims: claims(&bytes, format), key: self.signer(&bytes) })
    }

    fn signer(&self, bytes: &[u8; LENGTH]) -> Option<usize> {
        let (signed, mac) = bytes.split_at(SIGNED);
        self.accepted.iter().position(|key| key.clone().chain_update(signed).verify_slice(mac).is_ok())
    }
}

fn first_byte(versions: [(u8, SessionFormat); 2], format: SessionFormat) -> u8 {
    versions.into_iter().find(|(_, of)| *of == format).expect("every format has one").0
}

/// The bytes of a token that begins with one of these, and the format that it stands for.
fn decode(text: &[u8], versions: [(u8, SessionFormat); 2]) -> Option<([u8; LENGTH], SessionFormat)> {
    if text.len() != TEXT_LENGTH {
        return None;
    }
    let mut bytes = [0; LENGTH];
    URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
    let (_, format) = versions.into_iter().find(|(version, _)| *version == bytes[0])?;
    Some((bytes, format))
}

fn claims(bytes: &[u8; LENGTH], format: SessionFormat) -> Claims {
    let user_id = Uuid::from_slice(&bytes[USER]).expect("16 bytes");
    let session_id = match format {
        Classic => SessionId::of(&bytes[..SIGNED]),
        Compact => SessionId::tagged(&bytes[..SIGNED], user_id),
    };
    Claims { user_id, session_id, format, expires_at_ms: expires(&bytes[EXPIRES]) }
}

fn expires(bytes: &[u8]) -> i64 {
    let mut all = [0; 8];
    all[2..].copy_from_slice(bytes);
    i64::from_be_bytes(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::sessions::SessionKey;

    fn keys(secrets: &[&str]) -> TokenKeys {
        TokenKeys::new(&secrets.iter().map(|s| s.as_bytes().to_vec().into()).collect::<Vec<_>>())
    }

    const FORMATS: [SessionFormat; 2] = [Classic, Compact];

    #[test]
    fn reads_what_it_issued() {
        let keys = keys(&["a secret of at least thirty-two bytes"]);
        for format in FORMATS {
            let user = Uuid::now_v7();
            let (text, claims) = keys.issue(user, format, 1_800_000_000_123);
            assert_eq!(text.expose_secret().len(), TEXT_LENGTH);
            assert_eq!(keys.read(text.expose_secret().as_bytes()), Ok(claims));
            assert_eq!((claims.user_id, claims.format, claims.expires_at_ms), (user, format, 1_800_000_000_123));
        }
    }

    /// These texts are in cookies of people who are signed in.
    #[test]
    fn reads_what_other_builds_issued() {
        let keys = keys(&["a secret of at least thirty-two bytes"]);
        for (text, format, session_id) in [
            (
                "AQGTnC5_OnxBnStejxCktscAAQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHwGjGFxQAG8h74YJLqa4nDdpst9PFUd4let3WuzrmvbuUu5GHzTq",
                Classic,
                "F8OSbMWmF2Q0kzE7I5wNiQ",
            ),
            (
                "AwGTnC5_OnxBnStejxCktscAAQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHwGjGFxQAGlFCm2ZaJIeQcwNqxDDQE3XBBsR9MRdphyohazAc-TN",
                Compact,
                "6zcf-ouetjrqKQBBI9Jg6A",
            ),
        ] {
            let user_id = "01939c2e-7f3a-7c41-9d2b-5e8f10a4b6c7".parse().expect("an id");
            let session_id = SessionId::parse(session_id).expect("an id");
            let claims = Claims { user_id, session_id, format, expires_at_ms: 1_800_000_000_000 };
            assert_eq!(keys.read(text.as_bytes()), Ok(claims));
        }
    }

    /// All of a user's sessions in the compact format have ids with the same beginning, and are found by it.
    #[test]
    fn ids_of_the_compact_format_begin_alike() {
        let keys = keys(&["a secret"]);
        let users: Vec<_> = (0..100).map(|_| Uuid::now_v7()).collect();
        let id = |user, format| keys.issue(user, format, 1_800_000_000_000).1.session_id.as_str().to_owned();
        let beginnings: std::collections::BTreeSet<_> =
            users.iter().map(|user| id(*user, Compact)[..3].to_owned()).collect();
        assert!(beginnings.len() > 95, "they differ by user: {}", beginnings.len());
        for user in users {
            let (one, other) = (id(user, Compact), id(user, Compact));
            assert_eq!(one[..3], other[..3]);
            assert_ne!(one, other);
            let named = SessionKey::named(user, SessionId::parse(&one).expect("an id")).map(|key| key.format);
            assert_eq!(named.collect::<Vec<_>>(), [Compact, Classic]);
        }
        let classic = SessionId::parse(&id(Uuid::nil(), Classic)).expect("an id");
        assert!(SessionKey::named(Uuid::nil(), classic).any(|key| key.format == Classic));
    }

    #[test]
    fn rotation_accepts_old_and_signs_with_new() {
        let (old, both, new) = (keys(&["old"]), keys(&["new", "old"]), keys(&["new"]));
        for format in FORMATS {
            let (before, _) = old.issue(Uuid::nil(), format, 1);
            let (after, _) = both.issue(Uuid::nil(), format, 1);
            assert!(both.read(before.expose_secret().as_bytes()).is_ok());
            assert!(new.read(after.expose_secret().as_bytes()).is_ok());
            assert!(old.read(after.expose_secret().as_bytes()).is_err());
            assert!(new.read(before.expose_secret().as_bytes()).is_err());
        }
    }

    #[test]
    fn an_inspection_names_the_key_or_none() {
        let (old, both, new) = (keys(&["old"]), keys(&["new", "old"]), keys(&["new"]));
        for format in FORMATS {
            let (text, claims) = old.issue(Uuid::now_v7(), format, 1_800_000_000_000);
            let text = text.expose_secret().as_bytes();
            assert_eq!(both.inspect(text), Some(Inspected { claims, key: Some(1) }));
            assert_eq!(new.inspect(text), Some(Inspected { claims, key: None }));
            assert_eq!(both.inspect(&text[1..]), None);
        }
    }

    /// ASVS 5.0 7.2.1: the verification happens at a trusted service; every bit counts.
    #[test]
    fn every_changed_character_is_refused() {
        let keys = keys(&["a secret"]);
        for format in FORMATS {
            let (text, _) = keys.issue(Uuid::now_v7(), format, 1_800_000_000_000);
            let text = text.expose_secret().as_bytes();
            for at in 0..text.len() {
                for other in *b"AQgw_-9z" {
                    let mut changed = text.to_vec();
                    changed[at] = other;
                    assert_eq!(keys.read(&changed).is_ok(), changed == text, "character {at}");
                }
            }
        }
    }

    #[test]
    fn the_id_says_nothing_of_the_token() {
        let keys = keys(&["a secret"]);
        for format in FORMATS {
            let (text, claims) = keys.issue(Uuid::now_v7(), format, 1_800_000_000_000);
            assert!(!text.expose_secret().contains(&claims.session_id.as_str()[3..]));
            assert_eq!(SessionId::parse(claims.session_id.as_str()), Some(claims.session_id));
        }
        assert_eq!(SessionId::parse("too short"), None);
        assert_eq!(SessionId::parse("{0123456789012345678*}"), None);
    }

    #[test]
    fn a_host_bound_token_is_good_at_its_host_alone() {
        let keys = keys(&["a secret"]);
        for format in FORMATS {
            let (session, claims) = keys.issue(Uuid::now_v7(), format, 1_800_000_000_123);
            let (app, wiki) = (HostHash::of("app.example.org"), HostHash::of("wiki.example.org"));
            let bound = keys.issue_bound(&claims, app);
            let (session, bound) = (session.expose_secret().as_bytes(), bound.expose_secret().as_bytes());
            assert_eq!(bound.len(), TEXT_LENGTH);
            assert_eq!(keys.read_bound(bound, app), Ok(claims));
            assert_eq!(keys.read_bound(bound, wiki), Err(NotOurs));
            assert_eq!(keys.read(bound), Err(NotOurs), "no session's own token");
            assert_eq!(keys.read_bound(session, app), Err(NotOurs), "nor the reverse");
            for at in 0..bound.len() {
                for other in *b"AQgw_-9z" {
                    let mut changed = bound.to_vec();
                    changed[at] = other;
                    assert_eq!(keys.read_bound(&changed, app).is_ok(), changed == bound, "character {at}");
                }
            }
        }
    }

    #[test]
    fn rotation_covers_host_bound_tokens() {
        let (old, both, new) = (keys(&["old"]), keys(&["new", "old"]), keys(&["new"]));
        let host = HostHash::of("app.example.org");
        let (_, claims) = old.issue(Uuid::nil(), Compact, 1);
        let before = old.issue_bound(&claims, host);
        assert_eq!(both.read_bound(before.expose_secret().as_bytes(), host), Ok(claims));
        assert_eq!(new.read_bound(before.expose_secret().as_bytes(), host), Err(NotOurs));
        let after = both.issue_bound(&claims, host);
        assert_eq!(new.read_bound(after.expose_secret().as_bytes(), host), Ok(claims));
    }

    /// Every first byte but two is refused, even if we signed the rest.
    #[test]
    fn a_token_of_one_kind_is_none_of_another() {
        let keys = keys(&["a secret"]);
        let host = HostHash::of("app.example.org");
        for first in 0..=255 {
            let mut bytes = [0; LENGTH];
            bytes[0] = first;
            let mac = keys.signing.clone().chain_update(&bytes[..SIGNED]).finalize().into_bytes();
            bytes[SIGNED..].copy_from_slice(&mac);
            let text = URL_SAFE_NO_PAD.encode(bytes);
            let format = |claims: Result<Claims, NotOurs>| claims.ok().map(|claims| claims.format);
            let own = format(keys.read(text.as_bytes()));
            let bound = format(keys.read_bound(text.as_bytes(), HostHash([0; 16])));
            let expected = match first {
                1 => (Some(Classic), None),
                2 => (None, Some(Classic)),
                3 => (Some(Compact), None),
                4 => (None, Some(Compact)),
                _ => (None, None),
            };
            assert_eq!((own, bound), expected, "{first}");
            assert_eq!(keys.read_bound(text.as_bytes(), host), Err(NotOurs));
        }
    }

    proptest! {
        #[test]
        fn no_input_panics_or_passes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(keys(&["a secret"]).read(&bytes), Err(NotOurs));
        }

        #[test]
        fn no_text_of_the_right_length_passes(text in "[A-Za-z0-9_-]{116}") {
            prop_assert_eq!(keys(&["a secret"]).read(text.as_bytes()), Err(NotOurs));
        }
    }
}
