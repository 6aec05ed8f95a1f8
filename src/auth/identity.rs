//! E-mail addresses and usernames as users type them.
use super::password::PolicyViolation;
use crate::store::users::names::{RefusedName, canonical, written};

/// Bytes: RFC 5321 §4.5.3.1.3, less the angle brackets.
const EMAIL_LIMIT: usize = 254;
/// Characters of a username.
const USERNAME_LIMIT: usize = 64;

/// What is wrong with a field of a registration, worded to follow the name of the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mistake {
    #[error("must be at most {EMAIL_LIMIT} bytes long")]
    EmailTooLong,
    #[error("must be an e-mail address such as ada@example.org")]
    NoEmail,
    #[error("must not be empty")]
    Empty,
    #[error("must be at most {USERNAME_LIMIT} characters long")]
    UsernameTooLong,
    #[error("must not contain @: that would be an e-mail address")]
    UsernameIsEmail,
    #[error("must not contain white space or control characters")]
    WhiteSpace,
    #[error("{}", .0.message())]
    Name(RefusedName),
    #[error("{0}")]
    Password(PolicyViolation),
}

/// Reads an e-mail address: trimmed, NFKC, one `@`, a domain by UTS 46, at most 254 bytes (RFC 5321), no invisible
/// characters.
pub(super) fn email(text: &str) -> Result<String, Mistake> {
    let email = written(text);
    if email.len() > EMAIL_LIMIT {
        return Err(Mistake::EmailTooLong);
    }
    let options = email_address::Options::default().without_display_text().without_domain_literal();
    let is_address = email_address::EmailAddress::parse_with_options(&email, options).is_ok()
        && !email.chars().any(char::is_control);
    match canonical(&email) {
        // Reported first, because whoever typed the address can't see what is wrong with it.
        Err(refused @ (RefusedName::Invisible | RefusedName::Unassigned)) => Err(Mistake::Name(refused)),
        _ if !is_address => Err(Mistake::NoEmail),
        Err(refused @ RefusedName::Domain) => Err(Mistake::Name(refused)),
        Ok(_) => Ok(email),
    }
}

/// Reads a username: trimmed, NFKC, 1 to 64 characters, no `@` (so it can't be taken for an e-mail address), no white
/// space, no control characters, no invisible characters.
pub(super) fn username(text: &str) -> Result<String, Mistake> {
    let name = written(text);
    match name.chars().count() {
        0 => Err(Mistake::Empty),
        n if n > USERNAME_LIMIT => Err(Mistake::UsernameTooLong),
        _ if name.contains('@') => Err(Mistake::UsernameIsEmail),
        _ if name.chars().any(|c| c.is_whitespace() || c.is_control()) => Err(Mistake::WhiteSpace),
        _ => canonical(&name).map(|_| name).map_err(Mistake::Name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emails() {
        for good in ["ada@example.org", " ada+tag@example.org ", "o'hara@exämple.org", "x@localhost"] {
            assert!(email(good).is_ok(), "{good}");
        }
        for hidden in ["ada\u{fe0f}@example.org", "a\u{34f}da@example.org", "ada@exam\u{e0061}ple.org"] {
            assert_eq!(email(hidden), Err(Mistake::Name(RefusedName::Invisible)));
        }
        assert_eq!(email("u@xn--a.example"), Err(Mistake::Name(RefusedName::Domain)));
        let long = format!("a@{}.org", "b".repeat(250));
        for bad in ["", "ada", "ada@", "@example.org", "a b@example.org", "Ada <ada@example.org>", "a@b@c.org", &long] {
            assert!(email(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn usernames() {
        assert_eq!(username(" ada ").as_deref(), Ok("ada"));
        assert_eq!(username("Ａｄａ").as_deref(), Ok("Ada"), "full width");
        let long = "x".repeat(65);
        for hidden in ['\u{200b}', '\u{fe0f}', '\u{34f}', '\u{1160}', '\u{e0061}'] {
            assert_eq!(username(&format!("ada{hidden}")), Err(Mistake::Name(RefusedName::Invisible)));
        }
        for bad in ["", "  ", "a@b", "a b", "a\nb", "\u{a8}a", &long] {
            assert!(username(bad).is_err(), "{bad:?}");
        }
    }
}
