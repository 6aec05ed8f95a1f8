//! The outermost layer: everything that is the same for each response. Request id, replica, caching, metrics, and the
//! request's line in the log.
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::response::Response;
use http::header::{CACHE_CONTROL, CONNECTION, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

use super::App;
use super::extract::{Peer, RequestId, client_address};
use super::metering::{self, InFlight};
use crate::telemetry::traces::{RequestFacts, RequestTrace};
use crate::telemetry::{self, RequestLine};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_SERVED_BY: HeaderName = HeaderName::from_static("x-served-by");
/// Longer request ids are replaced: they go into every log line.
const REQUEST_ID_LIMIT: usize = 128;

/// What is logged when the client closed the connection before it was answered: nginx's code for it.
static CLIENT_CLOSED_REQUEST: LazyLock<StatusCode> =
    LazyLock::new(|| StatusCode::from_u16(499).expect("a number of three digits"));

/// Adds [`Access`] to a service.
#[derive(Clone, Debug)]
pub struct AccessLayer(pub Arc<App>);

impl<S> Layer<S> for AccessLayer {
    type Service = Access<S>;

    fn layer(&self, inner: S) -> Access<S> {
        Access { inner, app: Arc::clone(&self.0) }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Access<S> {
    inner: S,
    app: Arc<App>,
}

impl<S, B> Service<Request> for Access<S>
where
    S: Service<Request, Response = Response<B>>,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let id = request_id(&request);
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
        let logged = telemetry::request_lines_enabled().then(|| Logged {
            path: request.uri().path().to_owned(),
            client_ip: peer.map(|peer| client_address(peer, request.headers(), &self.app.trusted_proxies)),
        });
        let route = request.extensions().get::<MatchedPath>().cloned();
        let trace = RequestTrace::begin(&RequestFacts {
            method: metering::bounded(request.method()),
            path: request.uri().path(),
            route: route.as_ref().map(MatchedPath::as_str),
            request_id: &id,
            headers: request.headers(),
        });
        let state = State {
            app: Arc::clone(&self.app),
            begin: Instant::now(),
            id: id.clone(),
            method: request.method().clone(),
            route,
            logged,
            trace,
            status: None,
            _in_flight: InFlight::begin(),
        };
        request.extensions_mut().insert(RequestId(id));
        Answer { inner: self.inner.call(request), state: Some(state) }
    }
}

/// Kept until the answer is there, or until nobody waits for it any more.
struct State {
    app: Arc<App>,
    begin: Instant,
    id: HeaderValue,
    method: Method,
    route: Option<MatchedPath>,
    logged: Option<Logged>,
    trace: Option<Box<RequestTrace>>,
    status: Option<StatusCode>,
    _in_flight: InFlight,
}

struct Logged {
    path: String,
    client_ip: Option<IpAddr>,
}

pin_project_lite::pin_project! {
    /// The response, once there is one.
    pub struct Answer<F> {
        #[pin]
        inner: F,
        state: Option<State>,
    }
}

impl<F: Future<Output = Result<Response<B>, E>>, B, E> Future for Answer<F> {
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let entered = this.state.as_ref().and_then(|state| state.trace.as_deref()).map(RequestTrace::enter);
        let answer = this.inner.poll(context);
        drop(entered);
        let mut response = std::task::ready!(answer)?;
        if let Some(mut state) = this.state.take() {
            state.dress(&mut response);
        }
        Poll::Ready(Ok(response))
    }
}

impl State {
    fn dress<B>(&mut self, response: &mut Response<B>) {
        self.status = Some(response.status());
        let headers = response.headers_mut();
        headers.insert(X_REQUEST_ID, self.id.clone());
        headers.insert(X_SERVED_BY, self.app.served_by.clone());
        if is_private(self.route.as_ref().map(MatchedPath::as_str)) {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        if self.app.drain.is_cancelled() {
            // The proxy must not send a next request into a connection that is about to close.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let status = self.status.unwrap_or(*CLIENT_CLOSED_REQUEST);
        let elapsed = self.begin.elapsed();
        let route = self.route.as_ref().map(MatchedPath::as_str);
        metering::finished(&self.method, route, status, elapsed);
        if let Some(trace) = &self.trace {
            trace.answered(status.as_u16());
        }
        if let Some(Logged { path, client_ip }) = self.logged.take() {
            let line = RequestLine {
                method: self.method.as_str(),
                path: &path,
                route,
                status: status.as_u16(),
                duration_ms: elapsed.as_secs_f64() * 1e3,
                request_id: self.id.to_str().unwrap_or_default(),
                trace_id: self.trace.as_ref().map(|trace| trace.id()),
                client_ip,
            };
            telemetry::write_request_line(&self.app.clock, &line);
        }
    }
}

/// Whether answers under this route speak of somebody (ASVS 5.0 14.3.2).
fn is_private(route: Option<&str>) -> bool {
    let Some(route) = route else { return true };
    route.starts_with("/auth") || matches!(route, "/login" | "/logout" | "/profile")
}

fn request_id(request: &Request) -> HeaderValue {
    let is_safe = |id: &&HeaderValue| {
        (1..=REQUEST_ID_LIMIT).contains(&id.len())
            && id.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    if let Some(id) = request.headers().get(X_REQUEST_ID).filter(is_safe) {
        return id.clone();
    }
    // Not a secret: it only has to differ from others.
    HeaderValue::try_from(format!("{:032x}", fastrand::u128(..))).expect("hexadecimal digits")
}
