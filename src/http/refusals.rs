//! Requests that are refused before any handler sees them: those with too large a head, and those with an unsafe method
//! from another site (ASVS 5.0 3.5.1 to 3.5.3).
//!
//! Browsers say where a request comes from: in `Sec-Fetch-Site`, or at least in `Origin`. A client that sends neither
//! is no browser. It sends its cookie deliberately, and passes.
//!
//! `same-site`, a request from `https://app.example.org` to `https://login.example.org`, passes: the browser knows
//! where one site ends and another begins (the Public Suffix List), and an application may have a button that signs
//! out. A browser from before 2023 sends `Origin` alone, and then only the host itself passes, because this server has
//! no list of sites.
use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use http::header::{HOST, HeaderName, ORIGIN};
use http::{HeaderMap, Method, Request};
use tower_http::validate_request::ValidateRequest;

use super::App;
use super::error::Problem;
use super::request::Peer;
use super::verify::QUESTIONS;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Bytes of a request's head, as sent, beyond which it's answered 431.
pub(crate) const HEAD_LIMIT: usize = 32 * 1024;

/// The pages that take forms. They have a stricter rule, [`is_same_origin`], and a page that says so.
pub(super) const FORMS: [&str; 4] = ["/sign-in", "/register", "/account", "/sign-out"];

/// Answers 431 to large heads, 403 `cross_site` to unsafe requests from other sites.
#[derive(Clone, Debug)]
pub(super) struct Refusals(pub(super) Arc<App>);

impl<B> ValidateRequest<B> for Refusals {
    type ResponseBody = Body;

    fn validate(&mut self, request: &mut Request<B>) -> Result<(), Response> {
        if head_size(request) > HEAD_LIMIT {
            return Err(Problem::head_too_large(HEAD_LIMIT).into_response());
        }
        let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
        // A proxy asks with the method of somebody else's request, and nothing of ours changes.
        let is_question = request.uri().path().starts_with(QUESTIONS);
        let is_form = FORMS.contains(&request.uri().path());
        if is_safe || is_question || is_form || is_same_site(&self.0, request) {
            Ok(())
        } else {
            Err(Problem::cross_site().into_response())
        }
    }
}

fn is_same_site<B>(app: &App, request: &Request<B>) -> bool {
    let headers = request.headers();
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        return matches!(site.as_bytes(), b"same-origin" | b"same-site" | b"none");
    }
    if !headers.contains_key(ORIGIN) {
        return true;
    }
    has_own_origin(app, request)
}

/// Whether a browser says that one of our own pages sent this. Only browsers send forms, so who says nothing is refused.
pub(super) fn is_same_origin<B>(app: &App, request: &Request<B>) -> bool {
    match request.headers().get(SEC_FETCH_SITE) {
        Some(site) => site.as_bytes() == b"same-origin",
        None => has_own_origin(app, request),
    }
}

fn has_own_origin<B>(app: &App, request: &Request<B>) -> bool {
    let headers = request.headers();
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let Some(origin) = origin.to_str().ok().and_then(|origin| origin.split_once("://")) else { return false };
    let peer = request.extensions().get::<Peer>();
    let is_proxied = peer.is_some_and(|peer| {
        let ip = peer.0.ip().to_canonical();
        app.trusted_proxies.iter().any(|net| net.contains(&ip))
    });
    host(headers, request.uri(), is_proxied).is_some_and(|host| host.eq_ignore_ascii_case(origin.1))
}

/// The host that the client asked for, with its port if it named one.
fn host<'a>(headers: &'a HeaderMap, uri: &'a http::Uri, is_proxied: bool) -> Option<&'a str> {
    let forwarded = if is_proxied { headers.get(X_FORWARDED_HOST) } else { None };
    let named = forwarded.or_else(|| headers.get(HOST)).and_then(|value| value.to_str().ok());
    named.or_else(|| uri.authority().map(http::uri::Authority::as_str))
}

/// Bytes of the request's head as it was sent, without optional white space. hyper limits its buffer instead, which may
/// have grown for other reasons.
fn head_size<B>(request: &Request<B>) -> usize {
    let uri = request.uri();
    let authority = uri.authority().map_or(0, |host| "http://".len() + host.as_str().len());
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let line = request.method().as_str().len() + " ".len() + authority + path + " HTTP/1.1\r\n".len();
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    line + fields.sum::<usize>() + "\r\n".len()
}
