//! The public name of a session.
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::place::{TAG_BITS, tag};

/// Characters of a tag.
const TAG_CHARACTERS: usize = 3;

/// The first 128 bits of SHA-256 over the signed bytes, as 22 characters of base64url.
/// It can be listed, logged and used to revoke, never to sign in.
///
/// In the compact format, the first 18 of these bits are the user's tag ([`super::place`]).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SessionId([u8; 22]);

impl SessionId {
    /// The id of the session whose cookie has these signed bytes.
    pub(crate) fn of(signed: &[u8]) -> Self {
        let hash = Sha256::digest(signed);
        Self::from_bytes(hash[..16].try_into().expect("16 of 32 bytes"))
    }

    /// The id of the session of this user, in the compact format, whose cookie has these signed bytes.
    pub(crate) fn tagged(signed: &[u8], user_id: Uuid) -> Self {
        let hash = Sha256::digest(signed);
        let bits = u128::from_be_bytes(hash[..16].try_into().expect("16 of 32 bytes"));
        Self::from_bytes(((u128::from(tag(user_id)) << (128 - TAG_BITS)) | (bits >> TAG_BITS)).to_be_bytes())
    }

    /// Whether it begins with this user's tag, as all ids of the compact format do, and others by chance.
    pub(super) fn has_tag_of(&self, user_id: Uuid) -> bool {
        self.0[..TAG_CHARACTERS] == tag_text(user_id)
    }

    /// Reads an id as the API shows it; `None` if it can't be one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 22] = text.as_bytes().try_into().ok()?;
        bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')).then_some(Self(bytes))
    }

    /// The id of these 128 bits.
    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        let mut text = [0; 22];
        URL_SAFE_NO_PAD.encode_slice(bytes, &mut text).expect("16 bytes are 22 characters");
        Self(text)
    }

    /// The 128 bits. `None` for a text that [`Self::parse`] takes but no session has: 22 characters have 132 bits.
    pub(crate) fn to_bytes(self) -> Option<[u8; 16]> {
        let mut bytes = [0; 16];
        URL_SAFE_NO_PAD.decode_slice(self.0, &mut bytes).ok().filter(|length| *length == 16)?;
        Some(bytes)
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("base64url is ASCII")
    }
}

/// A user's tag, as ids of the compact format begin.
pub(super) fn tag_text(user_id: Uuid) -> [u8; TAG_CHARACTERS] {
    let bytes = (tag(user_id) << (24 - TAG_BITS)).to_be_bytes();
    let mut text = [0; 4];
    URL_SAFE_NO_PAD.encode_slice(&bytes[5..], &mut text).expect("3 bytes are 4 characters");
    [text[0], text[1], text[2]]
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for SessionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
