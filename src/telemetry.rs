//! What the process says of itself: log lines, and the metrics recorder.
//!
//! Lines are written by a thread of their own, a few milliseconds after they were said and many at a time: a system
//! call per line would cost more than a session check. Errors and audit events don't wait.
use std::io::{self, IsTerminal as _, Write};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::clock::Clock;
use crate::config::{LogConfig, LogFormat};
use crate::metrics::{HASH_BUCKETS, HASH_QUEUE_SECONDS, HASH_SECONDS, LATENCY_BUCKETS};

/// Lines wait at most this long.
const FLUSH_EVERY: Duration = Duration::from_millis(20);
/// More than this is written without waiting.
const FLUSH_ABOVE: usize = 64 * 1024;

static SINK: OnceLock<Sink> = OnceLock::new();

#[derive(Debug)]
struct Sink {
    format: LogFormat,
    /// What each JSON line begins with: `{"replica":"…",`.
    prefix: String,
    pending: Mutex<Vec<u8>>,
    /// What is being written, and afterwards the room for what comes next. Held meanwhile, so that lines keep their order.
    output: Mutex<Vec<u8>>,
    filled: Condvar,
}

impl Sink {
    fn append(&self, line: impl FnOnce(&mut Vec<u8>)) {
        let mut pending = self.pending.lock();
        let was_empty = pending.is_empty();
        line(&mut pending);
        let is_full = pending.len() > FLUSH_ABOVE;
        drop(pending);
        if is_full {
            self.flush();
        } else if was_empty {
            self.filled.notify_one();
        }
    }

    fn flush(&self) {
        let mut lines = self.output.lock();
        std::mem::swap(&mut *lines, &mut *self.pending.lock());
        // Nobody to tell if standard output is gone.
        drop(io::stdout().write_all(&lines));
        lines.clear();
        lines.shrink_to(FLUSH_ABOVE * 2);
    }

    fn run(&self) {
        loop {
            self.filled.wait_while(&mut self.pending.lock(), |pending| pending.is_empty());
            std::thread::sleep(FLUSH_EVERY);
            self.flush();
        }
    }
}

/// Starts logging. Flushes when dropped.
#[must_use = "lines still waiting are written when this is dropped"]
#[derive(Debug)]
pub struct Logging(());

impl Drop for Logging {
    fn drop(&mut self) {
        flush();
    }
}

/// Writes out whatever waits.
pub fn flush() {
    if let Some(sink) = SINK.get() {
        sink.flush();
    }
}

/// Sends log lines to standard output, each with the replica's name.
///
/// # Panics
///
/// When called twice in one process.
pub fn start_logging(config: &LogConfig, replica: &str) -> Logging {
    let name = serde_json::to_string(replica).expect("a string is JSON");
    SINK.set(Sink {
        format: config.format,
        prefix: format!("{{\"replica\":{name},"),
        pending: Mutex::default(),
        output: Mutex::default(),
        filled: Condvar::new(),
    })
    .expect("logging starts once");
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(|| SINK.get().expect("set above").run())
        .expect("a thread for log lines");

    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&config.filter))
        .with_writer(Lines)
        .with_ansi(config.format == LogFormat::Pretty && io::stdout().is_terminal());
    match config.format {
        LogFormat::Json => subscriber.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
        LogFormat::Pretty => subscriber.compact().init(),
    }

    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(panic = %panic, "a bug: the process panicked");
        flush();
        if SINK.get().is_some_and(|sink| sink.format == LogFormat::Pretty) {
            report(panic);
        }
    }));
    Logging(())
}

/// Sends log lines to standard error, one by one: for commands, whose results go to standard output.
///
/// # Panics
///
/// When logging has started already.
pub fn log_to_stderr(config: &LogConfig) {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&config.filter))
        .with_writer(io::stderr)
        .with_ansi(config.format == LogFormat::Pretty && io::stderr().is_terminal());
    match config.format {
        LogFormat::Json => subscriber.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
        LogFormat::Pretty => subscriber.compact().init(),
    }
}

/// Hands each event's line to the sink.
#[derive(Clone, Copy, Debug)]
struct Lines;

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { at_once: false }
    }

    fn make_writer_for(&'a self, metadata: &tracing::Metadata<'_>) -> Line {
        Line { at_once: *metadata.level() == tracing::Level::ERROR || metadata.target() == "audit" }
    }
}

/// Writes one whole line per call, as the formatter does.
struct Line {
    at_once: bool,
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let sink = SINK.get().expect("set before the subscriber");
        sink.append(|pending| match (sink.format, line.strip_prefix(b"{")) {
            (LogFormat::Json, Some(rest)) => {
                pending.extend_from_slice(sink.prefix.as_bytes());
                pending.extend_from_slice(rest);
            }
            _ => pending.extend_from_slice(line),
        });
        if self.at_once {
            sink.flush();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One answered request.
#[derive(Debug, Serialize)]
pub struct RequestLine<'a> {
    /// The method as sent.
    pub method: &'a str,
    /// The path without its query.
    pub path: &'a str,
    /// The route that matched.
    pub route: Option<&'a str>,
    /// The status code; 499 if the client left before the answer.
    pub status: u16,
    /// Milliseconds from head to answer.
    #[serde(serialize_with = "to_the_microsecond")]
    pub duration_ms: f64,
    /// See `X-Request-Id`.
    pub request_id: &'a str,
    /// The client's address, through trusted proxies.
    pub client_ip: Option<IpAddr>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn to_the_microsecond<S: serde::Serializer>(milliseconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((milliseconds * 1e3).round() / 1e3)
}

/// Whether request lines are wanted: `RUST_LOG` with `request=off` silences them.
pub fn request_lines_enabled() -> bool {
    tracing::enabled!(target: "request", tracing::Level::INFO)
}

/// Logs an answered request. Formatted here and not by `tracing`, whose formatter takes several times as long as the
/// rest of a session check.
pub fn write_request_line(clock: &Clock, line: &RequestLine<'_>) {
    let Some(sink) = SINK.get() else { return };
    let now = clock.now();
    sink.append(|out| {
        let written = match sink.format {
            LogFormat::Json => {
                out.extend_from_slice(sink.prefix.as_bytes());
                write!(out, "\"timestamp\":\"{now:.6}\",\"level\":\"INFO\",\"target\":\"request\",").and_then(|()| {
                    let begin = out.len();
                    serde_json::to_writer(&mut *out, line)?;
                    // The line goes on: its fields stand beside ours.
                    out.remove(begin);
                    Ok(())
                })
            }
            LogFormat::Pretty => {
                let RequestLine { method, path, status, duration_ms, request_id, .. } = line;
                write!(
                    out,
                    "{now:.6}  INFO request: {method} {} {status} {duration_ms:.2}ms id={request_id}",
                    path.escape_debug()
                )
            }
        };
        written.expect("writing to memory");
        out.push(b'\n');
    });
}

/// Installs the metrics recorder: histograms with buckets, which add up over replicas.
///
/// # Panics
///
/// When called twice in one process.
pub fn install_metrics() -> PrometheusHandle {
    PrometheusBuilder::new()
        .set_buckets(LATENCY_BUCKETS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full(HASH_SECONDS.to_owned()), HASH_BUCKETS))
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full(HASH_QUEUE_SECONDS.to_owned()), HASH_BUCKETS))
        .expect("buckets")
        .install_recorder()
        .expect("metrics are installed once")
}
