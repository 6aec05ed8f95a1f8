//! E-mail addresses and usernames as users type them.
use crate::store::users::names::{RefusedName, canonical, written};

/// Bytes: RFC 5321 §4.5.3.1.3, less the angle brackets.
const EMAIL_LIMIT: usize = 254;
/// Characters of a username.
const USERNAME_LIMIT: usize = 64;

/// Reads an e-mail address: trimmed, NFKC, one `@`, a domain by UTS 46, at most 254 bytes (RFC 5321), no invisible
/// characters. The error is for the client to read.
pub(super) fn email(text: &str) -> Result<String, &'static str> {
    let email = written(text);
    if email.len() > EMAIL_LIMIT {
        return Err("must be at most 254 bytes long");
    }
    let options = email_address::Options::default().without_display_text().without_domain_literal();
    let is_address = email_address::EmailAddress::parse_with_options(&email, options).is_ok()
        && !email.chars().any(char::is_control);
    match canonical(&email) {
        // Reported first, because whoever typed the address can't see what is wrong with it.
        Err(refused @ (RefusedName::Invisible | RefusedName::Unassigned)) => Err(refused.message()),
        _ if !is_address => Err("must be an e-mail address such as ada@example.org"),
        Err(refused @ RefusedName::Domain) => Err(refused.message()),
        Ok(_) => Ok(email),
    }
}

/// Reads a username: trimmed, NFKC, 1 to 64 characters, no `@` (so it can't be taken for an e-mail address), no white
/// space, no control characters, no invisible characters. The error is for the client to read.
pub(super) fn username(text: &str) -> Result<String, &'static str> {
    let name = written(text);
    match name.chars().count() {
        0 => Err("must not be empty"),
        n if n > USERNAME_LIMIT => Err("must be at most 64 characters long"),
        _ if name.contains('@') => Err("must not contain @: that would be an e-mail address"),
        _ if name.chars().any(|c| c.is_whitespace() || c.is_control()) => {
            Err("must not contain white space or control characters")
        }
        _ => canonical(&name).map(|_| name).map_err(RefusedName::message),
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
            assert_eq!(email(hidden), Err("must not contain invisible characters"));
        }
        assert_eq!(email("u@xn--a.example"), Err("must have a valid domain after the @"));
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
            assert_eq!(username(&format!("ada{hidden}")), Err("must not contain invisible characters"));
        }
        for bad in ["", "  ", "a@b", "a b", "a\nb", "\u{a8}a", &long] {
            assert!(username(bad).is_err(), "{bad:?}");
        }
    }
}
