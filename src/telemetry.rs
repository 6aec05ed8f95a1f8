//! What the process says of itself: log lines, traces, and the metrics recorder.
//!
//! Lines are written by a thread of their own, a few milliseconds after they were said and many at a time: a system
//! call per line would cost more than a session check. Errors and audit events don't wait.
mod recorder;
pub mod traces;

use std::io::{self, IsTerminal as _, Write};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

pub use self::recorder::install_metrics;
use crate::clock::Clock;
use crate::config::{LogConfig, LogFormat, TracesConfig};

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
    has_request_lines: bool,
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

/// Logging and tracing have started. Sends what is left when dropped.
#[must_use = "lines and spans still waiting are sent when this is dropped"]
#[derive(Debug)]
pub struct Telemetry(());

impl Drop for Telemetry {
    fn drop(&mut self) {
        traces::stop();
        flush();
    }
}

/// Writes out whatever waits.
pub fn flush() {
    if let Some(sink) = SINK.get() {
        sink.flush();
    }
}

/// Sends log lines to standard output, each with the replica's name, and traces to the collector if one is named.
///
/// # Panics
///
/// When called twice in one process.
pub fn start(log: &LogConfig, replica: &str, collector: Option<&TracesConfig>) -> Telemetry {
    let name = serde_json::to_string(replica).expect("a string is JSON");
    SINK.set(Sink {
        format: log.format,
        prefix: format!("{{\"replica\":{name},"),
        has_request_lines: wants_request_lines(&log.filter),
        pending: Mutex::default(),
        output: Mutex::default(),
        filled: Condvar::new(),
    })
    .expect("logging starts once");
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(|| SINK.get().expect("set above").run())
        .expect("a thread for log lines");

    let mut failure = None;
    let tracer = collector.and_then(|config| {
        let endpoint = config.endpoint.as_deref()?;
        traces::start(config, endpoint, replica).map_err(|error| failure = Some(error)).ok()
    });
    let lines = lines(log, Lines, io::stdout().is_terminal());
    match tracer {
        // Without a layer that isn't there, each line is filtered once.
        None => tracing_subscriber::registry().with(lines).with(EnvFilter::new(&log.filter)).init(),
        Some(tracer) => tracing_subscriber::registry()
            .with(lines.with_filter(EnvFilter::new(&log.filter)))
            .with(traces::layer(tracer))
            .init(),
    }
    if let Some(error) = failure {
        tracing::warn!(%error, "OTEL_EXPORTER_OTLP_ENDPOINT: no traces will be sent");
    }

    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(panic = %panic, "a bug: the process panicked");
        flush();
        if SINK.get().is_some_and(|sink| sink.format == LogFormat::Pretty) {
            report(panic);
        }
    }));
    Telemetry(())
}

/// Sends log lines to standard error, one by one: for commands, whose results go to standard output.
///
/// # Panics
///
/// When logging has started already.
pub fn log_to_stderr(config: &LogConfig) {
    let lines = lines(config, io::stderr, io::stderr().is_terminal());
    tracing_subscriber::registry().with(lines).with(EnvFilter::new(&config.filter)).init();
}

/// Formats each event as one line.
fn lines<S, W>(config: &LogConfig, writer: W, is_terminal: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match config.format {
        LogFormat::Json => {
            layer.json().flatten_event(true).with_current_span(false).with_span_list(false).with_ansi(false).boxed()
        }
        LogFormat::Pretty => layer.compact().with_ansi(is_terminal).boxed(),
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
                if let Some(id) = traces::current_id() {
                    write!(pending, "\"trace_id\":\"{id}\",").expect("writing to memory");
                }
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
    /// The trace that the request belongs to, traced here or by the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// The client's address, through trusted proxies.
    pub client_ip: Option<IpAddr>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn to_the_microsecond<S: serde::Serializer>(milliseconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((milliseconds * 1e3).round() / 1e3)
}

/// Whether request lines are wanted: `RUST_LOG` with `request=off` silences them.
pub fn request_lines_enabled() -> bool {
    SINK.get().is_some_and(|sink| sink.has_request_lines)
}

/// Asked once and of a subscriber of its own: with filters for each layer, the answer to `enabled!` would also be taken
/// for that to the next span.
fn wants_request_lines(filter: &str) -> bool {
    let subscriber = tracing_subscriber::registry().with(EnvFilter::new(filter));
    tracing::subscriber::with_default(subscriber, || tracing::enabled!(target: "request", tracing::Level::INFO))
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
