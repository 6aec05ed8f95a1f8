//! Where somebody may be sent after signing in.
//!
//! A link that leads to a foreign host by way of this one helps an attacker to steal passwords (an open redirect, as in
//! oauth2-proxy issue 922 and Authelia's GHSA-36f2-fcrx-fp4j). So every target is read here and nowhere else, with the
//! parser that browsers have (the WHATWG URL standard, crate `url`), and only if its text leaves no doubt.
use url::Url;

use super::hosts::ProtectedHosts;
use crate::config::{ForwardAuthConfig, PublicUrl, Scheme, Site};

/// Bytes of a target. Longer ones are not kept in URLs or in Redis.
const LONGEST: usize = 2048;

/// The hosts that somebody may be sent to.
#[derive(Clone, Debug)]
pub(crate) struct Targets {
    public: PublicUrl,
    protected: ProtectedHosts,
}

impl Targets {
    /// `None` without `PUBLIC_URL`.
    pub(crate) fn of(config: &ForwardAuthConfig) -> Option<Self> {
        let public = config.public_url.clone()?;
        let protected = ProtectedHosts::new(&config.protected_hosts, public.scheme());
        Some(Self { public, protected })
    }

    pub(crate) fn public(&self) -> &PublicUrl {
        &self.public
    }

    pub(crate) fn scheme(&self) -> Scheme {
        self.public.scheme()
    }

    pub(crate) fn protected(&self) -> &ProtectedHosts {
        &self.protected
    }

    /// Reads a whole URL: of `PUBLIC_URL` or of one of `PROTECTED_HOSTS`, with the scheme of `PUBLIC_URL`. Anything
    /// else is `None`.
    pub(crate) fn url(&self, text: &str) -> Option<Url> {
        let scheme = self.public.scheme();
        let rest = text.strip_prefix(scheme.as_str())?.strip_prefix("://")?;
        if !is_plain(text) {
            return None;
        }
        // What is read as the host here must be what the parser reads as the host.
        let host = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
        let site = Site::parse(host, scheme)?;
        if site != *self.public.site() && !self.protected.include(&site) {
            return None;
        }
        let url = Url::parse(text).ok()?;
        let read = Site::parse(&authority(&url)?, scheme)?;
        (url.scheme() == scheme.as_str() && read == site && url.username().is_empty() && url.password().is_none())
            .then_some(url)
    }

    /// Reads a path with its query, such as `/x?y=1`, on one host. Anything else is `None`: `//evil.example/` among
    /// them, which a browser takes for a host.
    pub(crate) fn path(&self, site: &Site, text: &str) -> Option<Url> {
        if !text.starts_with('/') || text.starts_with("//") || !is_plain(text) {
            return None;
        }
        let origin = Url::parse(&format!("{}://{site}", self.public.scheme().as_str())).ok()?;
        let url = origin.join(text).ok()?;
        (url.origin() == origin.origin()).then_some(url)
    }
}

/// Whether every program reads a URL alike: no backslash, white space, control or other character that must be encoded
/// (RFC 3986), and no user info.
fn is_plain(text: &str) -> bool {
    let is_allowed = |byte: u8| {
        byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
    };
    text.len() <= LONGEST && text.bytes().all(is_allowed)
}

fn authority(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};

    fn targets() -> Targets {
        let sources = Sources::from([
            ("PUBLIC_URL", "https://login.example.org"),
            ("PROTECTED_HOSTS", "app.example.org,*.example.net,dev.example.org:8443,xn--bcher-kva.example"),
            ("TRUSTED_PROXIES", "10.0.0.0/8"),
        ]);
        Targets::of(&Config::from_sources(&sources).expect("a configuration").forward_auth).expect("PUBLIC_URL")
    }

    #[test]
    fn targets_on_our_hosts_are_taken() {
        for (text, url) in [
            ("https://app.example.org", "https://app.example.org/"),
            ("https://app.example.org/x?y=1&z=%2F#part", "https://app.example.org/x?y=1&z=%2F#part"),
            ("https://app.example.org:443/", "https://app.example.org/"),
            ("https://App.EXAMPLE.org/", "https://app.example.org/"),
            ("https://a.example.net/", "https://a.example.net/"),
            ("https://dev.example.org:8443/", "https://dev.example.org:8443/"),
            ("https://login.example.org/account", "https://login.example.org/account"),
            ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
            ("https://app.example.org/a/../b", "https://app.example.org/b"),
            ("https://app.example.org/@evil.example", "https://app.example.org/@evil.example"),
        ] {
            assert_eq!(targets().url(text).map(String::from).as_deref(), Some(url), "{text}");
        }
    }

    #[test]
    fn every_other_target_is_refused() {
        for text in [
            "",
            "/",
            "//app.example.org/",
            "///app.example.org",
            "/\\app.example.org",
            "\\\\app.example.org",
            "app.example.org",
            "http://app.example.org/",
            "HTTPS://app.example.org/",
            "ftp://app.example.org/",
            "javascript:alert(1)",
            "data:text/html,x",
            "https:app.example.org",
            "https:/app.example.org",
            "https:///app.example.org",
            "https://evil.example/",
            "https://app.example.org.evil.example/",
            "https://app.example.orgevil.example/",
            "https://evilapp.example.org/",
            "https://example.net/",
            "https://a.b.example.net/",
            "https://.example.net/",
            "https://app.example.org./",
            "https://app.example.org:8443/",
            "https://dev.example.org/",
            "https://app.example.org:/",
            "https://app.example.org:443:443/",
            "https://user@app.example.org/",
            "https://user:password@app.example.org/",
            "https://@app.example.org/",
            "https://app.example.org@evil.example/",
            "https://app.example.org:x@evil.example/",
            "https://evil.example#@app.example.org/",
            "https://evil.example?@app.example.org/",
            "https://evil.example\\@app.example.org/",
            "https://app.example.org\\.evil.example/",
            "https://app.example.org\\@evil.example",
            "https://app.example.org%2eevil.example/",
            "https://app.example.org%00.evil.example/",
            "https://app.example.org\t.evil.example/",
            "https://app\n.example.org/",
            " https://app.example.org/",
            "https://app.example.org/ x",
            "https://app.example.org/\r\nX: y",
            "https://app.example.org/\u{0}",
            "https://app.ex\u{430}mple.org/",
            "https://b\u{fc}cher.example/",
            "https://app\u{3002}example.org/",
            "https://app.example.org\u{2044}evil.example/",
            "https://[::1]/",
            "https://app.example.org/<x>",
        ] {
            assert_eq!(targets().url(text), None, "{text:?}");
        }
        assert_eq!(targets().url(&format!("https://app.example.org/{}", "x".repeat(LONGEST))), None);
    }

    #[test]
    fn a_path_stays_on_its_host() {
        let site = Site::parse("app.example.org", Scheme::Https).expect("a host");
        let path = |text: &str| targets().path(&site, text).map(String::from);
        assert_eq!(path("/x?y=1").as_deref(), Some("https://app.example.org/x?y=1"));
        assert_eq!(path("/").as_deref(), Some("https://app.example.org/"));
        assert_eq!(path("/a//b").as_deref(), Some("https://app.example.org/a//b"));
        for bad in [
            "",
            "x",
            "//evil.example",
            "///evil.example",
            "/\\evil.example",
            "/\t/evil.example",
            "/ /evil.example",
            "https://evil.example",
            "javascript:alert(1)",
            "/x\r\n",
            "/\u{e4}",
            "/x\\y",
        ] {
            assert_eq!(path(bad), None, "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_leads_elsewhere(text in "(https?:)?[/\\\\]{0,3}(app\\.example\\.org|evil\\.example|[@:#?%.\\\\/a-z0-9\\t]{0,6}){0,4}") {
            let ours = ["login.example.org", "app.example.org", "dev.example.org", "xn--bcher-kva.example"];
            let site = Site::parse("app.example.org", Scheme::Https).expect("a host");
            for url in [targets().url(&text), targets().path(&site, &text)].into_iter().flatten() {
                let host = url.host_str().expect("a host");
                proptest::prop_assert!(ours.contains(&host) || host.ends_with(".example.net"), "{text} leads to {url}");
            }
        }
    }
}
