//! Passwords: what may be chosen ([`PasswordPolicy`]), how it's stored, and the bounded threads that pay for it
//! ([`HashGate`]).
//!
//! A password is brought into NFKC before it's counted, compared with the blocklist or hashed, so that it's the same
//! password when typed on another keyboard or system (NIST SP 800-63B-4 §3.1.1.2). Nothing else is changed: no
//! trimming, no truncation, no change of case (ASVS 5.0 6.2.8). bcrypt hashes come from a predecessor that hashed only
//! the first 72 bytes, as typed. They are verified the predecessor's way.
mod gate;
mod policy;
mod stored;

use secrecy::SecretString;
use unicode_normalization::{IsNormalized, UnicodeNormalization as _, is_nfkc_quick};

use crate::config::HashingConfig;

pub(crate) use self::gate::{HashError, HashGate, Origin, Verdict};
pub(crate) use self::policy::{PasswordPolicy, PolicyViolation};

/// Checks that a hash made elsewhere can be verified here: an Argon2 hash in the PHC string format or a `$2a$`, `$2b$`
/// or `$2y$` bcrypt hash, with parameters within bounds. The error contains no part of the hash.
pub(crate) fn check_hash(config: &HashingConfig, hash: &str) -> Result<(), String> {
    let scheme = stored::Scheme::new(config).map_err(|error| error.to_string())?;
    scheme.parse(hash).map(drop).map_err(|error| error.to_string())
}

/// The NFKC form of a password, wiped when dropped.
pub(crate) fn normalize(password: &str) -> SecretString {
    if is_nfkc_quick(password.chars()) == IsNormalized::Yes {
        return password.into();
    }
    // Sized beforehand, because a string that grows leaves copies of its beginning behind, which are never wiped.
    let mut text = String::with_capacity(password.nfkc().map(char::len_utf8).sum());
    text.extend(password.nfkc());
    text.into()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::normalize;

    /// NIST SP 800-63B-4 §3.1.1.2: the same password whichever way the keyboard composes it.
    #[test]
    fn nist_3_1_1_2_compositions_of_one_text_are_one_password() {
        for (typed, normal) in [
            ("A\u{30a}ngstro\u{308}m", "\u{c5}ngstr\u{f6}m"),
            ("\u{212b}ngstr\u{f6}m", "\u{c5}ngstr\u{f6}m"),
            ("\u{fb01}ne", "fine"),
            ("\u{ff41}\u{ff42}\u{ff43}", "abc"),
        ] {
            assert_eq!(normalize(typed).expose_secret(), normal);
        }
    }

    /// ASVS 5.0 6.2.8: no truncation, no trimming, no change of case; a NUL is a character like any other.
    #[test]
    fn asvs_6_2_8_nothing_else_is_changed() {
        let long = "aB \u{1f512}".repeat(1000);
        for password in ["  Spaces kept  ", "MixedCase", "nul\0inside", "\u{1f512}\u{1f511}", long.as_str()] {
            assert_eq!(normalize(password).expose_secret(), password);
        }
    }
}
