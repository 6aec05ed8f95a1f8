//! Which hosts take part in forward auth: `PUBLIC_URL`, `PROTECTED_HOSTS`, `COOKIE_DOMAIN`.
//!
//! Names are compared in one form: lower case, ASCII (internationalised names as `xn--…`, by UTS 46), no dot at the
//! end, a port only if it isn't the scheme's own.
use std::fmt;

use url::{Host, Url};

/// The most characters of a host name (RFC 1035, section 2.3.4).
const HOST_LIMIT: usize = 253;

/// `http` or `https`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// Reads `http` or `https`, in lower case as proxies write it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "http" => Some(Self::Http),
            "https" => Some(Self::Https),
            _ => None,
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A host as one request names it: `app.example.org`, `app.example.org:8443`, `[::1]:8080`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Site {
    /// An IPv6 address is in brackets.
    name: String,
    /// `None` for the scheme's own.
    port: Option<u16>,
}

impl Site {
    /// Parses the value of `Host` or `X-Forwarded-Host` (RFC 9110, section 7.2). It must be ASCII, as clients send it,
    /// without a dot at the end and without user info.
    pub(crate) fn parse(text: &str, scheme: Scheme) -> Option<Self> {
        let is_usual =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
        if !text.bytes().all(is_usual) {
            return None;
        }
        let (name, port) = parse_host(text).ok()?;
        let port = port.filter(|port| *port != scheme.default_port());
        Some(Self { name, port })
    }

    /// The name without the port. Cookies belong to it: browsers share them between the ports of a host.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// One or more hosts: `app.example.org`, or `*.example.org` for every name with one label more, as in certificates (RFC
/// 6125, section 6.4.3). With a port, only that port. Without, the scheme's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SitePattern {
    is_wildcard: bool,
    site: Site,
}

impl SitePattern {
    /// Reads a pattern. The error says what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (is_wildcard, rest) = text.strip_prefix("*.").map_or((false, text), |rest| (true, rest));
        if rest.contains('*') {
            return Err("has a * that isn't its first label".to_owned());
        }
        let (name, port) = parse_host(rest)?;
        if is_wildcard && (name.starts_with('[') || name.parse::<std::net::IpAddr>().is_ok()) {
            return Err("has a * before an address".to_owned());
        }
        Ok(Self { is_wildcard, site: Site { name, port } })
    }

    /// The same pattern, with a port left out if it is the scheme's own.
    pub(crate) fn under(mut self, scheme: Scheme) -> Self {
        self.site.port = self.site.port.filter(|port| *port != scheme.default_port());
        self
    }

    pub(crate) fn matches(&self, site: &Site) -> bool {
        self.site.port == site.port && self.matches_name(&site.name)
    }

    fn matches_name(&self, name: &str) -> bool {
        if !self.is_wildcard {
            return self.site.name == name;
        }
        let label = name.strip_suffix(&self.site.name).and_then(|rest| rest.strip_suffix('.'));
        label.is_some_and(|label| !label.is_empty() && !label.contains('.'))
    }

    /// Whether every host that `other` matches is one that this pattern matches.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        if other.is_wildcard { self == other } else { self.matches(&other.site) }
    }

    /// Whether every host that this pattern matches is the domain or a part of it.
    pub(super) fn is_under(&self, domain: &str) -> bool {
        is_under(&self.site.name, domain)
    }
}

impl fmt::Display for SitePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.is_wildcard { "*." } else { "" }, self.site)
    }
}

/// Where people reach authfleet itself: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublicUrl {
    scheme: Scheme,
    site: Site,
}

impl PublicUrl {
    pub(crate) fn scheme(&self) -> Scheme {
        self.scheme
    }

    pub(crate) fn site(&self) -> &Site {
        &self.site
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.site)
    }
}

/// Whether `name` is the domain or a part of it.
pub(super) fn is_under(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

pub(super) fn public_url(text: &str) -> Result<PublicUrl, String> {
    if text.contains(['\\', '@', '?', '#']) || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("has more than scheme, host and port".to_owned());
    }
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    let scheme = Scheme::parse(url.scheme()).ok_or("neither http nor https")?;
    if url.path() != "/" {
        return Err("has a path".to_owned());
    }
    let host = url.host_str().ok_or("has no host")?;
    let (name, _) = parse_host(host)?;
    Ok(PublicUrl { scheme, site: Site { name, port: url.port() } })
}

pub(super) fn protected_hosts(text: &str) -> Result<Vec<SitePattern>, String> {
    let pattern = |part: &str| {
        let part = part.trim();
        SitePattern::parse(part).map_err(|why| format!("{} {why}", super::parse::quoted(part)))
    };
    text.split(',').map(pattern).collect()
}

pub(super) fn cookie_domain(text: &str) -> Result<String, String> {
    let (name, port) = parse_host(text)?;
    if port.is_some() {
        return Err("has a port".to_owned());
    }
    // RFC 6265bis, section 5.7: a cookie with an address as its domain is good for that address alone.
    if name.starts_with('[') || name.parse::<std::net::IpAddr>().is_ok() {
        return Err("is an address".to_owned());
    }
    if !name.contains('.') {
        return Err("is a name of one label, for which browsers keep no cookie".to_owned());
    }
    Ok(name)
}

/// A host in its normal form, and its port.
fn parse_host(text: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match text.rsplit_once(':') {
        // The last colon may belong to an IPv6 address.
        Some((host, port)) if !port.ends_with(']') => {
            if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err("has a port that isn't a number".to_owned());
            }
            (
                host,
                Some(port.parse::<u16>().ok().filter(|port| *port > 0).ok_or("has a port that isn't from 1 to 65535")?),
            )
        }
        _ => (text, None),
    };
    if host.is_empty() {
        return Err("is empty".to_owned());
    }
    if host.ends_with('.') {
        return Err("ends with a dot".to_owned());
    }
    // The parser decodes these.
    if host.contains('%') {
        return Err("has a percent sign".to_owned());
    }
    let host = Host::parse(host).map_err(|error| format!("is not a host: {error}"))?;
    let name = host.to_string();
    if name.len() > HOST_LIMIT
        || name.split('.').any(|label| label.is_empty() || (label.len() > 63 && !label.starts_with('[')))
    {
        return Err("is not a host name".to_owned());
    }
    Ok((name, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(text: &str) -> Site {
        Site::parse(text, Scheme::Https).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn hosts_of_requests_have_one_form() {
        assert_eq!(site("App.Example.ORG:443"), site("app.example.org"));
        assert_ne!(site("app.example.org:8443"), site("app.example.org"));
        assert_eq!(site("app.example.org:8443").to_string(), "app.example.org:8443");
        assert_eq!(site("[::1]:8080").to_string(), "[::1]:8080");
        assert_eq!(Site::parse("a.example:80", Scheme::Http), Site::parse("a.example", Scheme::Http));
        for bad in [
            "",
            ".",
            "app.example.org.",
            "a..b",
            "app.example.org:",
            "app.example.org:0",
            "app.example.org:99999",
            "app.example.org:8a",
            "user@app.example.org",
            "app.example.org/x",
            "app.example.org\\x",
            "app%2eexample.org",
            "äpp.example.org",
            "app.example.org,evil.example",
            "app.example.org evil.example",
            "[::1",
            "::1",
        ] {
            assert_eq!(Site::parse(bad, Scheme::Https), None, "{bad}");
        }
    }

    #[test]
    fn a_pattern_matches_its_hosts_and_no_others() {
        let exact = SitePattern::parse("App.example.org").expect("a pattern");
        assert!(exact.matches(&site("app.example.org")));
        for other in ["app.example.org:8443", "xapp.example.org", "x.app.example.org", "example.org"] {
            assert!(!exact.matches(&site(other)), "{other}");
        }
        let wildcard = SitePattern::parse("*.example.org").expect("a pattern");
        assert!(wildcard.matches(&site("app.example.org")));
        for other in
            ["example.org", "a.b.example.org", "appexample.org", "app.example.org.evil.example", "evil-example.org"]
        {
            assert!(!wildcard.matches(&site(other)), "{other}");
        }
        assert!(wildcard.covers(&exact) && !exact.covers(&wildcard) && wildcard.covers(&wildcard));
        // "bücher" in two spellings.
        let unicode = SitePattern::parse("BÜCHER.example").expect("a pattern");
        assert!(unicode.matches(&site("xn--bcher-kva.example")));
        for bad in ["", "*", "*.", "a.*.b", "*.10.0.0.1", "*.*.a", "a b", "a/b", "a.example.", "http://a.example"] {
            assert!(SitePattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_public_url_is_an_origin() {
        let shown = |text: &str| public_url(text).map(|url| url.to_string());
        assert_eq!(shown("https://Login.Example.org:443/").as_deref(), Ok("https://login.example.org"));
        assert_eq!(shown("http://localhost:8080").as_deref(), Ok("http://localhost:8080"));
        for bad in [
            "login.example.org",
            "ftp://login.example.org",
            "https://u:p@login.example.org",
            "https://login.example.org/x",
            "https://login.example.org?x",
            "https://login.example.org#x",
            "https:\\\\login.example.org",
            "https://",
            "https://login.example.org.",
            "https://login example.org",
        ] {
            assert!(public_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cookie_domain_is_a_name_of_two_labels_or_more() {
        assert_eq!(cookie_domain("Example.org").as_deref(), Ok("example.org"));
        for bad in ["org", "localhost", "10.0.0.1", "[::1]", "example.org:443", ".example.org", "example.org.", ""] {
            assert!(cookie_domain(bad).is_err(), "{bad}");
        }
        assert!(is_under("a.example.org", "example.org") && is_under("example.org", "example.org"));
        assert!(!is_under("badexample.org", "example.org"));
    }
}
