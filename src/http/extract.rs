//! What handlers take from a request.
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use http::header::{CONTENT_TYPE, COOKIE, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::App;
use super::error::{FieldError, Problem};
use crate::auth::{Client, SignedIn};

/// The largest body that is read.
pub const BODY_LIMIT: usize = 16 * 1024;
/// How long a whole body may take: a client that sends a byte now and then is cut off too.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a user agent that are kept with each session; `hash-max-listpack-value` in deploy/redis/redis.conf is the same.
const USER_AGENT_LIMIT: usize = 256;
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A JSON body. Every way in which it can be wrong has its own problem.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &Arc<App>) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::unsupported_media_type());
        }
        let body = read(request.into_body()).await?;
        let mut json = serde_json::Deserializer::from_slice(&body);
        let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            let cause = error.into_inner();
            if !cause.is_data() {
                return Problem::malformed_json(&cause);
            }
            let field = if path == "." { "body".to_owned() } else { path };
            Problem::validation_failed(vec![FieldError::new(field, mistake(&cause))])
        })?;
        json.end().map_err(|error| Problem::malformed_json(&error))?;
        // serde would fill a struct's fields from an array, by position.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(Problem::validation_failed(vec![FieldError::new("body", "must be a JSON object")]));
        }
        Ok(Self(value))
    }
}

/// What would be right in this place. Not what was there, which serde says as well: it may be a password.
fn mistake(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(", expected ") {
        Some((_, expected)) if expected.starts_with("struct ") => "must be an object".to_owned(),
        Some((_, expected)) => format!("must be {}", expected.split(" at line ").next().unwrap_or_default()),
        None => text.split(" at line ").next().unwrap_or_default().to_owned(),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim();
    let Some((kind, subtype)) = essence.split_once('/') else { return false };
    let subtype = subtype.to_ascii_lowercase();
    kind.eq_ignore_ascii_case("application") && (subtype == "json" || subtype.ends_with("+json"))
}

async fn read(body: Body) -> Result<bytes::Bytes, Problem> {
    // Said up front where the length is declared, so that nothing of it is read.
    if http_body::Body::size_hint(&body).lower() > BODY_LIMIT as u64 {
        return Err(Problem::too_large(BODY_LIMIT));
    }
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_LIMIT).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::too_large(BODY_LIMIT)),
        Ok(Err(_)) => Err(Problem::incomplete_body()),
        Err(_) => Err(Problem::request_timeout()),
    }
}

/// The session that the request's cookie names, checked against the store and renewed.
impl FromRequestParts<Arc<App>> for SignedIn {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        app.auth.check(cookies(&parts.headers, app.cookie.name())).await.map_err(Problem::from)
    }
}

/// The values of every cookie of this name, in order.
pub fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(COOKIE).iter().flat_map(move |header| {
        header.as_bytes().split(|byte| *byte == b';').filter_map(move |pair| {
            let value = pair.trim_ascii_start().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(value.trim_ascii_end())
        })
    })
}

impl FromRequestParts<Arc<App>> for Client {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Self::Rejection> {
        let peer = parts.extensions.get::<Peer>().expect("every connection has a peer").0.ip();
        let user_agent = parts.headers.get(USER_AGENT).map(|value| user_agent(value.as_bytes()));
        let request_id = parts.extensions.get::<RequestId>().and_then(|id| id.0.to_str().ok());
        Ok(Self {
            ip: client_address(peer, &parts.headers, &app.trusted_proxies),
            user_agent: user_agent.unwrap_or_default(),
            request_id: request_id.unwrap_or_default().to_owned(),
            gone: CancellationToken::new(),
        })
    }
}

/// Text of at most [`USER_AGENT_LIMIT`] bytes, without control characters; a replacement character for what isn't UTF-8.
fn user_agent(value: &[u8]) -> String {
    let mut kept = String::with_capacity(value.len().min(USER_AGENT_LIMIT));
    for c in String::from_utf8_lossy(value).chars().filter(|c| !c.is_control()) {
        if kept.len() + c.len_utf8() > USER_AGENT_LIMIT {
            break;
        }
        kept.push(c);
    }
    kept
}

/// The request's id: nginx's if it sent one, else a new one of the same form (32 hexadecimal digits).
#[derive(Clone, Debug)]
pub struct RequestId(pub HeaderValue);

/// The other end of the connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// The client's address: the peer, or, if that is a trusted proxy, the rightmost address of `X-Forwarded-For` that
/// isn't one. Whatever stands further left was written by somebody who isn't trusted.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
    let mut client = peer;
    if !is_trusted(&peer) {
        return client;
    }
    // From the right, byte by byte, up to the first hop that can't be read: whatever stands before that, be it a whole line,
    // may have been written by the client.
    let lines: Vec<_> = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
    for hop in lines.iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b',')) {
        let Some(address) = std::str::from_utf8(hop.trim_ascii()).ok().and_then(parse_hop) else { break };
        client = address;
        if !is_trusted(&address) {
            break;
        }
    }
    client
}

/// An address as proxies write it: bare, in brackets, or with a port.
fn parse_hop(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip())).ok()?;
    Some(IpAddr::to_canonical(&address))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn forwarded<L: AsRef<[u8]>>(lines: &[L]) -> HeaderMap {
        let value = |line: &L| HeaderValue::from_bytes(line.as_ref()).expect("a header value");
        lines.iter().map(|line| (X_FORWARDED_FOR, value(line))).collect()
    }

    fn from<L: AsRef<[u8]>>(peer: &str, lines: &[L], trusted: &[&str]) -> String {
        let trusted: Vec<_> = trusted.iter().map(|net| net.parse().expect("a network")).collect();
        client_address(peer.parse().expect("an address"), &forwarded(lines), &trusted).to_string()
    }

    #[test]
    fn forwarded_addresses_count_only_through_trusted_proxies() {
        let proxies = &["10.0.0.0/8", "127.0.0.1/32"];
        assert_eq!(from("192.0.2.1", &["203.0.113.7"], proxies), "192.0.2.1", "an untrusted peer");
        assert_eq!(from("10.0.0.1", &["203.0.113.7"], proxies), "203.0.113.7");
        assert_eq!(from("10.0.0.1", &["1.1.1.1, 203.0.113.7"], proxies), "203.0.113.7", "what a client made up");
        assert_eq!(from("10.0.0.1", &["1.1.1.1, 203.0.113.7, 10.2.3.4"], proxies), "203.0.113.7", "two proxies");
        assert_eq!(from("10.0.0.1", &["1.1.1.1", "203.0.113.7"], proxies), "203.0.113.7", "two lines");
        assert_eq!(from("10.0.0.1", &["nonsense, 10.2.3.4"], proxies), "10.2.3.4", "stops at nonsense");
        assert_eq!(from::<&str>("10.0.0.1", &[], proxies), "10.0.0.1");
        assert_eq!(from("::ffff:10.0.0.1", &["[2001:db8::1]:4711"], proxies), "2001:db8::1");
        assert_eq!(from("10.0.0.1", &["203.0.113.7:80"], &[]), "10.0.0.1");
    }

    /// A proxy appends the peer's address to whatever the client sent.
    #[test]
    fn what_a_client_wrote_is_not_read() {
        let proxies = &["10.0.0.0/8"];
        let appended = |sent: &[u8]| [sent, b", 203.0.113.7"].concat();
        assert_eq!(from("10.0.0.1", &[appended(b"\xe9")], proxies), "203.0.113.7");
        let lines = [b"9.9.9.9".to_vec(), appended(b"\xe9")];
        assert_eq!(from("10.0.0.1", &lines, proxies), "203.0.113.7", "the client's own line");
        let lines = [b"9.9.9.9".to_vec(), b"\xe9, 10.2.3.4".to_vec()];
        assert_eq!(from("10.0.0.1", &lines, proxies), "10.2.3.4", "stops at what can't be read");
        assert_eq!(from("10.0.0.1", &["9.9.9.9,"], proxies), "10.0.0.1", "nobody named the last hop");
        assert_eq!(from("10.0.0.1", &["9.9.9.9", ""], proxies), "10.0.0.1");
        assert_eq!(from("10.0.0.1", &["9.9.9.9, 203.0.113.7 "], proxies), "203.0.113.7");
    }

    #[test]
    fn a_user_agent_is_bounded_in_bytes() {
        assert_eq!(user_agent(b"a browser/1"), "a browser/1");
        assert_eq!(user_agent("é".repeat(200).as_bytes()).len(), 256);
        assert_eq!(user_agent("🦀".repeat(300).as_bytes()), "🦀".repeat(64));
        assert_eq!(user_agent(format!("x{}", "🦀".repeat(300)).as_bytes()).len(), 253, "no half characters");
        assert_eq!(user_agent(b"caf\xe9\x07/1"), "caf\u{fffd}/1");
    }

    #[test]
    fn finds_every_cookie_of_the_name_and_no_other() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, "a=1; session=x; __Host-session=no; session=y".parse().expect("a header value"));
        headers.append(COOKIE, "session=z ;sessions=no; session".parse().expect("a header value"));
        let found: Vec<_> = cookies(&headers, "session").collect();
        assert_eq!(found, [b"x", b"y", b"z"]);
    }

    /// What a field's value may hold (RFC 9110 section 5.5), bytes beyond ASCII included.
    fn field_byte() -> impl Strategy<Value = u8> {
        prop_oneof![Just(b'\t'), 0x20..0x7f_u8, 0x80..=0xff_u8, Just(b','), Just(b'9'), Just(b'.')]
    }

    proptest! {
        #[test]
        fn nothing_that_a_client_writes_becomes_its_address(
            sent in proptest::collection::vec(proptest::collection::vec(field_byte(), 0..80), 0..4)
        ) {
            let proxies = &["10.0.0.0/8"];
            prop_assert_eq!(from("192.0.2.1", &sent, proxies), "192.0.2.1");
            // A proxy appends to the last line, or adds one.
            let mut appended = sent.clone();
            let mut last = sent.last().cloned().unwrap_or_default();
            last.extend_from_slice(b",203.0.113.7");
            appended.pop();
            appended.push(last);
            prop_assert_eq!(from("10.0.0.1", &appended, proxies), "203.0.113.7");
            let mut added = sent;
            added.push(b"203.0.113.7, 10.9.9.9".to_vec());
            prop_assert_eq!(from("10.0.0.1", &added, proxies), "203.0.113.7");
        }

        #[test]
        fn no_cookie_header_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let headers = HeaderMap::from_iter([(COOKIE, value)]);
                for cookie in cookies(&headers, "session") {
                    prop_assert!(!cookie.contains(&b';'));
                }
            }
        }
    }
}
