//! The request that a proxy asks about, as the proxy describes it.
//!
//! The description is believed only from `TRUSTED_PROXIES` (CVE-2026-40575, CVE-2026-35051: forwarded headers that
//! clients wrote). What is missing, there twice or malformed is never guessed.
use http::header::{ACCEPT, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method};
use ipnet::IpNet;

use crate::auth::rules;
use crate::config::{Scheme, Site};
use crate::http::request::Peer;

const FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const ORIGINAL_METHOD: HeaderName = HeaderName::from_static("x-original-method");
const ORIGINAL_URL: HeaderName = HeaderName::from_static("x-original-url");
const REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Which proxy asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// nginx, by `auth_request`.
    Nginx,
    /// Traefik, Caddy, `HAProxy`.
    Forward,
    /// Envoy and the Gateway API: the request itself, its path behind a prefix.
    Envoy,
}

/// What is wrong with a description.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadDescription {
    #[error("the peer is not one of TRUSTED_PROXIES")]
    Untrusted,
    #[error("{0} is missing")]
    Missing(HeaderName),
    #[error("{0} is there more than once")]
    Doubled(HeaderName),
    #[error("{0} is malformed")]
    Malformed(HeaderName),
    #[error("the path is missing")]
    NoPath,
    #[error("the request came by {}, and COOKIE_SECURE needs {}", found.as_str(), needed.as_str())]
    Scheme { found: Scheme, needed: Scheme },
}

/// A request for an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Original {
    pub(super) method: Method,
    pub(super) host: Site,
    /// The path with its query, as the client sent it.
    pub(super) target: String,
}

impl Original {
    pub(super) fn read(
        endpoint: Endpoint,
        request: &Parts,
        trusted: &[IpNet],
        scheme: Scheme,
    ) -> Result<Self, BadDescription> {
        let peer = request.extensions.get::<Peer>().expect("every connection has a peer").0.ip().to_canonical();
        if !trusted.iter().any(|net| net.contains(&peer)) {
            return Err(BadDescription::Untrusted);
        }
        let headers = &request.headers;
        let (method, found, host, target, host_header) = match endpoint {
            Endpoint::Nginx => {
                let url = one(headers, &ORIGINAL_URL)?;
                let malformed = || BadDescription::Malformed(ORIGINAL_URL);
                let (proto, rest) = url.split_once("://").ok_or_else(malformed)?;
                let slash = rest.find('/').ok_or_else(malformed)?;
                let (host, target) = rest.split_at(slash);
                let found = proto_of(proto).ok_or_else(malformed)?;
                (method(headers, ORIGINAL_METHOD)?, Some(found), host, target, ORIGINAL_URL)
            }
            Endpoint::Forward => {
                let proto = one(headers, &FORWARDED_PROTO)?;
                let found = proto_of(proto).ok_or(BadDescription::Malformed(FORWARDED_PROTO))?;
                let target = one(headers, &FORWARDED_URI)?;
                let method = method(headers, FORWARDED_METHOD)?;
                (method, Some(found), one(headers, &FORWARDED_HOST)?, target, FORWARDED_HOST)
            }
            Endpoint::Envoy => {
                let prefix = "/auth/verify/envoy";
                let whole = request.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
                let target = whole.strip_prefix(prefix).filter(|rest| rest.starts_with('/'));
                let target = target.ok_or(BadDescription::NoPath)?;
                let found = match one(headers, &FORWARDED_PROTO) {
                    Ok(proto) => Some(proto_of(proto).ok_or(BadDescription::Malformed(FORWARDED_PROTO))?),
                    Err(BadDescription::Missing(_)) => None,
                    Err(why) => return Err(why),
                };
                (request.method.clone(), found, one(headers, &HOST)?, target, HOST)
            }
        };
        if !target.starts_with('/') || target.contains('#') {
            let header = if endpoint == Endpoint::Nginx { ORIGINAL_URL } else { FORWARDED_URI };
            return Err(BadDescription::Malformed(header));
        }
        // Over http the browser never sends the cookie, and over https it would be one that http can overwrite.
        if let Some(found) = found.filter(|found| *found != scheme) {
            return Err(BadDescription::Scheme { found, needed: scheme });
        }
        let host = Site::parse(host, scheme).ok_or(BadDescription::Malformed(host_header))?;
        Ok(Self { method, host, target: target.to_owned() })
    }

    /// What the rules look at.
    pub(super) fn asked(&self) -> rules::Request<'_> {
        let path = self.target.split('?').next().unwrap_or_default();
        rules::Request { method: self.method.as_str(), host: &self.host, path }
    }
}

/// The one value of a header. A list counts as several.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, BadDescription> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or_else(|| BadDescription::Missing(name.clone()))?;
    if values.next().is_some() {
        return Err(BadDescription::Doubled(name.clone()));
    }
    let text = value.to_str().map_err(|_| BadDescription::Malformed(name.clone()))?;
    match text {
        "" => Err(BadDescription::Missing(name.clone())),
        // A path may have commas; that it begins with a slash is looked at by the caller.
        _ if text.contains(',') && *name != FORWARDED_URI && *name != ORIGINAL_URL => {
            Err(BadDescription::Doubled(name.clone()))
        }
        _ => Ok(text),
    }
}

fn method(headers: &HeaderMap, name: HeaderName) -> Result<Method, BadDescription> {
    let text = one(headers, &name)?;
    Method::from_bytes(text.as_bytes()).map_err(|_| BadDescription::Malformed(name))
}

/// Traefik says `ws` and `wss` of a WebSocket.
fn proto_of(text: &str) -> Option<Scheme> {
    match text {
        "ws" => Some(Scheme::Http),
        "wss" => Some(Scheme::Https),
        text => Scheme::parse(text),
    }
}

/// The host of a request that a proxy passes on rather than asks about.
pub(super) fn site_of(request: &Parts, trusted: &[IpNet], scheme: Scheme) -> Option<Site> {
    let headers = &request.headers;
    let peer = request.extensions.get::<Peer>()?.0.ip().to_canonical();
    if headers.contains_key(FORWARDED_HOST) && trusted.iter().any(|net| net.contains(&peer)) {
        return Site::parse(one(headers, &FORWARDED_HOST).ok()?, scheme);
    }
    Site::parse(one(headers, &HOST).ok()?, scheme)
}

/// Whether a person looks at the answer: a browser goes to another page. Scripts, images and API clients get a 401
/// rather than a page in place of what they asked for.
pub(super) fn is_navigation(headers: &HeaderMap) -> bool {
    if headers.contains_key(REQUESTED_WITH) {
        return false;
    }
    // https://www.w3.org/TR/fetch-metadata/#sec-fetch-mode-header
    if let Some(mode) = headers.get(FETCH_MODE) {
        return mode == "navigate";
    }
    headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(prefers_html)
}

/// Whether the first type of an `Accept` header is HTML, as that of every browser is.
fn prefers_html(accept: &str) -> bool {
    let first = accept.split(',').next().unwrap_or_default();
    let essence = first.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("text/html") || essence.eq_ignore_ascii_case("application/xhtml+xml")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let (mut request, ()) = http::Request::new(()).into_parts();
        request.uri = uri.parse().expect("a URI");
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("a name");
            request.headers.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        request.extensions.insert(Peer("10.0.0.1:4711".parse().expect("an address")));
        request
    }

    fn read(endpoint: Endpoint, request: &Parts) -> Result<(String, String, String), String> {
        let trusted = ["10.0.0.0/8".parse().expect("a network")];
        Original::read(endpoint, request, &trusted, Scheme::Https)
            .map(|original| (original.method.to_string(), original.host.to_string(), original.target))
            .map_err(|why| why.to_string())
    }

    fn described(method: &str, host: &str, target: &str) -> (String, String, String) {
        (method.to_owned(), host.to_owned(), target.to_owned())
    }

    const FORWARD: [(&str, &str); 4] = [
        ("x-forwarded-method", "POST"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "App.example.org:443"),
        ("x-forwarded-uri", "/x,y?a=1"),
    ];

    #[test]
    fn each_proxy_describes_a_request_in_its_way() {
        let nginx = [("x-original-method", "GET"), ("x-original-url", "https://app.example.org/x?a=b://c")];
        assert_eq!(read(Endpoint::Nginx, &request("/", &nginx)), Ok(described("GET", "app.example.org", "/x?a=b://c")));
        assert_eq!(
            read(Endpoint::Forward, &request("/", &FORWARD)),
            Ok(described("POST", "app.example.org", "/x,y?a=1"))
        );
        let envoy = request("/auth/verify/envoy/x//y?a=1", &[("host", "app.example.org")]);
        assert_eq!(read(Endpoint::Envoy, &envoy), Ok(described("GET", "app.example.org", "/x//y?a=1")));
        let root = request("/auth/verify/envoy/", &[("host", "app.example.org"), ("x-forwarded-proto", "https")]);
        assert_eq!(read(Endpoint::Envoy, &root), Ok(described("GET", "app.example.org", "/")));
    }

    #[test]
    fn what_is_missing_doubled_or_malformed_is_not_guessed() {
        for (at, (name, _)) in FORWARD.iter().enumerate() {
            let without: Vec<_> = FORWARD.iter().filter(|(other, _)| other != name).copied().collect();
            assert_eq!(read(Endpoint::Forward, &request("/", &without)), Err(format!("{name} is missing")));
            let doubled: Vec<_> = FORWARD.iter().chain([&FORWARD[at]]).copied().collect();
            assert_eq!(
                read(Endpoint::Forward, &request("/", &doubled)),
                Err(format!("{name} is there more than once"))
            );
        }
        for (name, value, what) in [
            ("x-forwarded-method", "G ET", "malformed"),
            ("x-forwarded-method", "GET, POST", "more than once"),
            ("x-forwarded-proto", "HTTPS", "malformed"),
            ("x-forwarded-proto", "gopher", "malformed"),
            ("x-forwarded-proto", "https, http", "more than once"),
            ("x-forwarded-proto", "http", "COOKIE_SECURE"),
            ("x-forwarded-proto", "ws", "COOKIE_SECURE"),
            ("x-forwarded-host", "app.example.org, evil.example", "more than once"),
            ("x-forwarded-host", "app.example.org/x", "malformed"),
            ("x-forwarded-host", "app.example.org.", "malformed"),
            ("x-forwarded-host", "äpp.example.org", "malformed"),
            ("x-forwarded-uri", "x", "malformed"),
            ("x-forwarded-uri", "*", "malformed"),
            ("x-forwarded-uri", "https://evil.example/", "malformed"),
            ("x-forwarded-uri", "/admin#/public", "malformed"),
            ("x-forwarded-uri", "/\u{e9}", "malformed"),
            ("x-forwarded-uri", "", "missing"),
        ] {
            let changed: Vec<_> =
                FORWARD.iter().map(|pair| if pair.0 == name { (name, value) } else { *pair }).collect();
            let found = read(Endpoint::Forward, &request("/", &changed)).expect_err(value);
            assert!(found.contains(what), "{name}: {value}: {found}");
        }
        for url in
            ["app.example.org/x", "https:/app.example.org/x", "https://app.example.org", "https:///x", "https://u@h/x"]
        {
            let nginx = [("x-original-method", "GET"), ("x-original-url", url)];
            assert!(read(Endpoint::Nginx, &request("/", &nginx)).is_err(), "{url}");
        }
        assert!(read(Endpoint::Envoy, &request("/auth/verify/envoy", &[("host", "app.example.org")])).is_err());
        assert!(read(Endpoint::Envoy, &request("/auth/verify/envoy/", &[])).is_err());
    }

    #[test]
    fn nobody_else_is_believed() {
        let mut untrusted = request("/", &FORWARD);
        untrusted.extensions.insert(Peer("192.0.2.1:4711".parse().expect("an address")));
        assert_eq!(read(Endpoint::Forward, &untrusted), Err("the peer is not one of TRUSTED_PROXIES".to_owned()));
    }

    #[test]
    fn navigations() {
        let is = |headers: &[(&str, &str)]| is_navigation(&request("/", headers).headers);
        let html = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
        assert!(is(&[("sec-fetch-mode", "navigate")]));
        assert!(is(&[html]));
        assert!(!is(&[("sec-fetch-mode", "cors"), html]));
        assert!(!is(&[("sec-fetch-mode", "no-cors"), html]));
        assert!(!is(&[("sec-fetch-mode", "websocket")]));
        assert!(!is(&[html, ("x-requested-with", "XMLHttpRequest")]));
        assert!(!is(&[("accept", "application/json, text/html")]));
        assert!(!is(&[("accept", "*/*")]));
        assert!(!is(&[]));
    }
}
