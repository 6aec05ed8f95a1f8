//! What every request has: an id, a peer, a client's address. The outermost layer gives it the id, counts it, writes
//! its line in the log, and adds the headers that every response has.
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::response::Response;
use http::header::{CACHE_CONTROL, CONNECTION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use tower_layer::Layer;
use tower_service::Service;

use super::App;
use super::metrics::{self, InFlight};
use crate::telemetry::traces::{RequestFacts, RequestTrace};
use crate::telemetry::{self, RequestLine};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_SERVED_BY: HeaderName = HeaderName::from_static("x-served-by");
/// Longer request ids are replaced: they go into every log line.
const REQUEST_ID_LIMIT: usize = 128;

/// What is logged when the client closed the connection before it was answered: nginx's code for it.
static CLIENT_CLOSED_REQUEST: LazyLock<StatusCode> =
    LazyLock::new(|| StatusCode::from_u16(499).expect("a number of three digits"));

/// Adds [`Observed`] to a service.
///
/// By hand, because every session check passes it: as `axum::middleware::from_fn` it would cost 1240 instructions more
/// per request (counted by callgrind), for a boxed service and a boxed future. tower-http's layers for the id and the
/// headers would cost 2110 more, and leave out the log line, the metrics, and clients that hang up.
#[derive(Clone, Debug)]
pub(super) struct RequestLayer(pub(super) Arc<App>);

impl<S> Layer<S> for RequestLayer {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, app: Arc::clone(&self.0) }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Observed<S> {
    inner: S,
    app: Arc<App>,
}

impl<S, B> Service<Request> for Observed<S>
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
            method: metrics::bounded(request.method()),
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

/// Kept until the answer is there or the client has hung up; what is counted and logged follows when it is dropped.
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
    /// Adds to the response what every response has.
    pub(super) struct Answer<F> {
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
        metrics::finished(&self.method, route, status, elapsed);
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

/// Whether answers of this route are about a user, and so must not be stored (ASVS 5.0 14.3.2). A path that matches no
/// route counts as one that is.
fn is_private(route: Option<&str>) -> bool {
    let Some(route) = route else { return true };
    route.starts_with("/auth")
        || route.starts_with("/.authfleet")
        || matches!(
            route,
            "/login" | "/logout" | "/profile" | "/" | "/sign-in" | "/register" | "/account" | "/sign-out"
        )
}

fn request_id(request: &Request) -> HeaderValue {
    let is_safe = |id: &&HeaderValue| {
        (1..=REQUEST_ID_LIMIT).contains(&id.len())
            && id.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    if let Some(id) = request.headers().get(X_REQUEST_ID).filter(is_safe) {
        return id.clone();
    }
    // It only has to differ from others; nothing depends on its being hard to guess.
    HeaderValue::try_from(format!("{:032x}", fastrand::u128(..))).expect("hexadecimal digits")
}

/// The request's id: nginx's if it sent one, else a new one of the same form (32 hexadecimal digits).
#[derive(Clone, Debug)]
pub(super) struct RequestId(pub(super) HeaderValue);

/// The other end of the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// The client's address: that of the peer, or, if the peer is a trusted proxy, the rightmost address of
/// `X-Forwarded-For` that isn't a trusted proxy. What stands to the left of it was written by somebody who isn't
/// trusted.
///
/// By hand, although `axum-client-ip` exists: that crate has no list of trusted proxies, and believes the header of
/// whoever reaches a replica directly.
pub(super) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
    let mut client = peer;
    if !is_trusted(&peer) {
        return client;
    }
    // As bytes, and from the right up to the first hop that can't be read: what stands before that, even a whole line,
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
    }
}
