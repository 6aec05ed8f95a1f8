//! The session cookie (RFC 6265bis; ASVS 5.0 3.3.1 to 3.3.5).
use http::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};

/// Name and attributes of the session cookie.
#[derive(Clone, Debug)]
pub(crate) struct SessionCookie {
    name: &'static str,
    attributes: String,
}

impl SessionCookie {
    /// `__Host-session` with `Secure`, or, for plain http, `session` without. With a domain, `__Secure-session`, which
    /// every host of the domain gets.
    pub(crate) fn new(secure: bool, domain: Option<&str>) -> Self {
        let name = match (secure, domain) {
            (false, _) => "session",
            (true, None) => "__Host-session",
            (true, Some(_)) => "__Secure-session",
        };
        let domain = domain.map_or_else(String::new, |domain| format!("; Domain={domain}"));
        let secure = if secure { "; Secure" } else { "" };
        Self { name, attributes: format!("; Path=/; HttpOnly; SameSite=Lax{secure}{domain}") }
    }

    /// The cookie's name. `__Host-` makes browsers refuse it from a sibling domain, another path or plain http;
    /// `__Secure-` only from plain http.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// `Set-Cookie` with this token. It has no age, because the server ends sessions, not the browser.
    pub(crate) fn set(&self, token: &SecretString) -> HeaderValue {
        let text = format!("{}={}{}", self.name, token.expose_secret(), self.attributes);
        let mut value = HeaderValue::from_str(&text).expect("base64url in a header");
        value.set_sensitive(true);
        value
    }

    /// `Set-Cookie` that makes the browser forget the session.
    pub(crate) fn clear(&self) -> HeaderValue {
        let text = format!("{}={}; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT", self.name, self.attributes);
        HeaderValue::from_str(&text).expect("our own words in a header")
    }
}
