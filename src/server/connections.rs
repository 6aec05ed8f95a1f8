//! Connections: how many are served, and how much each may use.
//!
//! Written by hand, because `axum::serve` supports none of these limits:
//!
//! | what a connection uses | limit |
//! | --- | --- |
//! | time until a request's head has arrived, and between requests | [`HEAD_TIMEOUT`] |
//! | size of a head | [`HEAD_LIMIT`], then 431 |
//! | time in which a client takes its answer | [`WriteTimeout`] |
//! | answers that wait for a client | one, and what hyper buffers: it reads no further request meanwhile |
//! | bytes of answers in the kernel | [`SEND_BUFFER`] |
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::middleware::AddExtension;
use axum::{Extension, Router};
use http::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics::{Counter, Gauge, counter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_layer::Layer as _;

use super::write_timeout::WriteTimeout;
use crate::http::{HEAD_LIMIT, Peer};
use crate::metrics::HTTP_CONNECTIONS_REFUSED;

/// A client that hasn't sent a whole request head by then is cut off. An idle connection is kept for as long. Proxies
/// must close idle connections earlier, or they will send requests into closed ones.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection that has sent nothing yet may still send its first request after the listener has closed. A
/// balancer that has just connected has a request to send, and won't repeat a POST that was cut off.
const FIRST_REQUEST: Duration = Duration::from_secs(2);
/// The largest head, in bytes, that hyper reads before it refuses it. A little more than [`HEAD_LIMIT`], so that most
/// heads that are too large get our answer, which says what is wrong.
const READ_BUFFER: usize = HEAD_LIMIT + 8 * 1024;
/// Bytes of answers that the kernel buffers for a slow client. (Linux doubles the value.) Without a limit it would
/// buffer several MiB.
const SEND_BUFFER: usize = 128 * 1024;
/// Connections that wait in the kernel, at most (as tokio's listener asks for).
const BACKLOG: usize = 1024;
/// The pause after a failed accept, for example when no file descriptors are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The first bytes of a client that speaks nothing but HTTP/2.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// The answer that hyper gives to requests that it can't parse.
const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Limits how many connections are served at once.
pub(super) struct Places {
    free: Arc<Semaphore>,
    open: Gauge,
    refused: Counter,
}

impl Places {
    /// `limit` places, with metrics.
    pub(super) fn counted(limit: usize, open: Gauge) -> Self {
        open.set(0);
        let refused = counter!(HTTP_CONNECTIONS_REFUSED);
        refused.increment(0);
        Self { free: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))), open, refused }
    }

    /// `limit` places, without metrics.
    pub(super) fn uncounted(limit: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(limit)), open: Gauge::noop(), refused: Counter::noop() }
    }

    /// Takes a place, which is given back when it is dropped. `None` if all are taken.
    fn take(&self) -> Option<Place> {
        let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() else {
            self.refused.increment(1);
            return None;
        };
        self.open.increment(1);
        Some(Place { _permit: permit, open: self.open.clone() })
    }
}

struct Place {
    _permit: OwnedSemaphorePermit,
    open: Gauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.decrement(1);
    }
}

/// Serves the connections of one listener.
pub(super) struct Acceptor {
    pub(super) router: Router,
    pub(super) places: Places,
    /// This replica's name.
    pub(super) served_by: HeaderValue,
    /// Cancelled to stop accepting. Each connection then finishes its current request and closes.
    pub(super) closing: CancellationToken,
    /// How long requests that are under way then have.
    pub(super) drain_timeout: Duration,
    pub(super) connections: TaskTracker,
}

impl Acceptor {
    /// Accepts until `closing` is cancelled, and then what the kernel has already accepted.
    pub(super) async fn run(self, listener: TcpListener) {
        if let Err(error) = rustix::net::sockopt::set_socket_send_buffer_size(&listener, SEND_BUFFER) {
            tracing::warn!(%error, "the kernel's buffers for slow clients are not bounded");
        }
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(READ_BUFFER);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.closing.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(&server, stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Closing the listener resets connections that wait in the kernel, with the requests that clients have sent. Asks
        // the kernel itself, because tokio may not have heard of all of them yet.
        let Ok(listener) = listener.into_std() else { return };
        for (stream, peer) in (0..BACKLOG).map_while(|_| listener.accept().ok()) {
            if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                self.admit(&server, stream, peer);
            }
        }
    }

    fn admit(&self, server: &http1::Builder, stream: TcpStream, peer: SocketAddr) {
        let Some(place) = self.places.take() else { return self.refuse(&stream) };
        // Gives each request its peer's address.
        let service = Extension(Peer(peer)).layer(self.router.clone());
        // A connection that stays silent must not look like a request that was lost to DRAIN_TIMEOUT.
        let first = FIRST_REQUEST.min(self.drain_timeout / 2);
        let serving = serve(server.clone(), stream, peer, service, self.closing.clone(), first);
        self.connections.spawn(async move {
            serving.await;
            drop(place);
        });
    }

    /// Answers 503 at once, so that a balancer asks another replica. If the connection waited to be accepted instead,
    /// the replica would look as if it hung. The answer is written once, without waiting for the client.
    fn refuse(&self, stream: &TcpStream) {
        let body = concat!(
            r#"{"type":"about:blank","title":"Service Unavailable","status":503,"#,
            r#""detail":"Too many connections; try again shortly","code":"overloaded"}"#
        );
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\
             Retry-After: 1\r\nCache-Control: no-store\r\nX-Served-By: {}\r\nX-Request-Id: {:032x}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len(),
            self.served_by.to_str().unwrap_or_default(),
            fastrand::u128(..),
        );
        drop(stream.try_write(answer.as_bytes()));
    }
}

async fn serve(
    server: http1::Builder,
    stream: TcpStream,
    peer: SocketAddr,
    service: AddExtension<Router, Peer>,
    closing: CancellationToken,
    first_request: Duration,
) {
    // Answers are small and sent whole, so Nagle's algorithm would only delay them.
    drop(stream.set_nodelay(true));
    let stream = WriteTimeout::new(TokioIo::new(stream));
    let (asked, service) = (AtomicBool::new(false), TowerToHyperService::new(service));
    let service = service_fn(|request| {
        asked.store(true, Ordering::Relaxed);
        service.call(request)
    });
    let mut connection = server.serve_connection(stream, service);
    let stop = async {
        closing.cancelled().await;
        if !asked.load(Ordering::Relaxed) {
            tokio::time::sleep(first_request).await;
        }
    };
    let outcome = tokio::select! {
        outcome = &mut connection => outcome,
        () = stop => {
            Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    let Err(error) = outcome else { return };
    tracing::debug!(%error, %peer, "connection ended");
    // hyper answers every request that it can't parse, except HTTP/2 with prior knowledge (RFC 9113 section 3.3).
    let rest = connection.into_parts();
    if error.is_parse() && rest.read_buf.starts_with(HTTP2_PREFACE) {
        drop(rest.io.into_inner().into_inner().try_write(BAD_REQUEST));
    }
}
