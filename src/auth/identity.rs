//! E-mail addresses and usernames as users type them.
use unicode_normalization::UnicodeNormalization as _;

/// RFC 5321 §4.5.3.1.3, less the angle brackets.
const EMAIL_LIMIT: usize = 254;
/// Characters of a username.
const USERNAME_LIMIT: usize = 64;

/// Reads an e-mail address: NFKC, one `@`, a domain, no more than 254 bytes (RFC 5321).
///
/// # Errors
///
/// What is wrong, for the client to read.
pub fn email(text: &str) -> Result<String, &'static str> {
    let email: String = text.trim().nfkc().collect();
    if email.len() > EMAIL_LIMIT {
        return Err("must be at most 254 bytes long");
    }
    let options = email_address::Options::default().without_display_text().without_domain_literal();
    match email_address::EmailAddress::parse_with_options(&email, options) {
        Ok(_) if email.chars().any(char::is_control) => Err("must be an e-mail address such as ada@example.org"),
        Ok(_) => Ok(email),
        Err(_) => Err("must be an e-mail address such as ada@example.org"),
    }
}

/// Reads a username: NFKC, 1 to 64 characters, no `@` (so it can't be taken for an e-mail address), no white space, no
/// control characters.
///
/// # Errors
///
/// What is wrong, for the client to read.
pub fn username(text: &str) -> Result<String, &'static str> {
    let name: String = text.trim().nfkc().collect();
    match name.chars().count() {
        0 => Err("must not be empty"),
        n if n > USERNAME_LIMIT => Err("must be at most 64 characters long"),
        _ if name.contains('@') => Err("must not contain @: that would be an e-mail address"),
        _ if name.chars().any(|c| c.is_whitespace() || c.is_control() || is_invisible(c)) => {
            Err("must not contain white space or invisible characters")
        }
        _ => Ok(name),
    }
}

/// Characters that make two names look alike without being seen.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emails() {
        for good in ["ada@example.org", " ada+tag@example.org ", "o'hara@exämple.org", "x@localhost"] {
            assert!(email(good).is_ok(), "{good}");
        }
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
        for bad in ["", "  ", "a@b", "a b", "a\u{200b}b", "a\nb", &long] {
            assert!(username(bad).is_err(), "{bad:?}");
        }
    }
}
