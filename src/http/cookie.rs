//! The session cookie (RFC 6265bis; ASVS 5.0 3.3.1 to 3.3.5).
use http::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};

/// Name and attributes of the session cookie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionCookie {
    secure: bool,
}

impl SessionCookie {
    /// `__Host-session` with `Secure`, or, for plain http, `session` without.
    pub(crate) fn new(secure: bool) -> Self {
        Self { secure }
    }

    /// The cookie's name. `__Host-` makes browsers refuse it from a sibling domain, another path or plain http.
    pub(crate) fn name(self) -> &'static str {
        if self.secure { "__Host-session" } else { "session" }
    }

    fn attributes(self) -> &'static str {
        if self.secure { "; Path=/; HttpOnly; SameSite=Lax; Secure" } else { "; Path=/; HttpOnly; SameSite=Lax" }
    }

    /// `Set-Cookie` with this token. It has no age, because the server ends sessions, not the browser.
    pub(crate) fn set(self, token: &SecretString) -> HeaderValue {
        let text = format!("{}={}{}", self.name(), token.expose_secret(), self.attributes());
        let mut value = HeaderValue::from_str(&text).expect("base64url in a header");
        value.set_sensitive(true);
        value
    }

    /// `Set-Cookie` that makes the browser forget the session.
    pub(crate) fn clear(self) -> HeaderValue {
        let text = format!("{}={}; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT", self.name(), self.attributes());
        HeaderValue::from_str(&text).expect("our own words in a header")
    }
}
