//! What handlers take from a request.
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use http::HeaderMap;
use http::header::{CONTENT_TYPE, COOKIE, USER_AGENT};
use http::request::Parts;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::App;
use super::error::{FieldError, Problem};
use super::request::{Peer, RequestId, client_address};
use crate::auth::{Client, SignedIn};

/// The largest body that is read.
pub(super) const BODY_LIMIT: usize = 16 * 1024;
/// How long a whole body may take. A limit on the pause between two frames, as tower-http's `RequestBodyTimeoutLayer`
/// has it, would let a client that sends a byte now and then go on for ever.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a user agent that are kept with each session; `hash-max-listpack-value` in deploy/redis/redis.conf is the
/// same.
const USER_AGENT_LIMIT: usize = 256;

/// A JSON body. Every way in which it can be wrong has its own problem.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

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

/// What would be right in this place. serde also says what was there, which is left out: it may be a password.
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

/// Reads a whole body, within [`BODY_LIMIT`] and [`BODY_TIMEOUT`].
pub(super) async fn read(body: Body) -> Result<bytes::Bytes, Problem> {
    // A declared length that is too large is refused before anything is read.
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
pub(super) fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
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

/// Text of at most [`USER_AGENT_LIMIT`] bytes, without control characters; a replacement character for what isn't
/// UTF-8.
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

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

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

    proptest! {
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
