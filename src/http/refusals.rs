//! Requests that are refused before any handler sees them: heads that are too large, and unsafe methods across sites (ASVS
//! 5.0 3.5.1 to 3.5.3).
//!
//! Browsers say where a request comes from: `Sec-Fetch-Site`, or at least `Origin`. A client that sends neither is no
//! browser, holds its cookie deliberately, and passes.
//!
//! `same-site`, a request from `https://app.example.org` to `https://login.example.org`, passes: the browser knows where one
//! site ends and another begins (the Public Suffix List), and an application may have a button that signs out. By `Origin`
//! alone the same request is refused, since nothing here knows where a site ends: only the host itself passes. That concerns
//! browsers from before 2023.
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use futures_util::future::Either;
use http::header::{HOST, HeaderName, ORIGIN};
use http::{HeaderMap, Method};
use tower_layer::Layer;
use tower_service::Service;

use super::App;
use super::error::Problem;
use super::request::Peer;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Bytes of a request's head, as sent, beyond which it's answered 431.
pub const HEAD_LIMIT: usize = 32 * 1024;

/// Answers 431 to large heads, 403 `cross_site` to unsafe requests from other sites.
#[derive(Clone, Debug)]
pub struct RefusalLayer(pub Arc<App>);

impl<S> Layer<S> for RefusalLayer {
    type Service = Refusal<S>;

    fn layer(&self, inner: S) -> Refusal<S> {
        Refusal { inner, app: Arc::clone(&self.0) }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Refusal<S> {
    inner: S,
    app: Arc<App>,
}

impl<S: Service<Request, Response = Response, Error = Infallible>> Service<Request> for Refusal<S> {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        if head_size(&request) > HEAD_LIMIT {
            return Either::Right(ready(Ok(Problem::head_too_large(HEAD_LIMIT).into_response())));
        }
        let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
        if is_safe || is_same_site(&self.app, &request) {
            return Either::Left(self.inner.call(request));
        }
        Either::Right(ready(Ok(Problem::cross_site().into_response())))
    }
}

fn is_same_site(app: &App, request: &Request) -> bool {
    let headers = request.headers();
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        return matches!(site.as_bytes(), b"same-origin" | b"same-site" | b"none");
    }
    let Some(origin) = headers.get(ORIGIN) else { return true };
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

/// Bytes of the request's head as it was sent, but for optional white space. hyper's own limit is one on its buffer, which
/// may have grown for other reasons.
fn head_size(request: &Request) -> usize {
    let uri = request.uri();
    let authority = uri.authority().map_or(0, |host| "http://".len() + host.as_str().len());
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let line = request.method().as_str().len() + " ".len() + authority + path + " HTTP/1.1\r\n".len();
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    line + fields.sum::<usize>() + "\r\n".len()
}
