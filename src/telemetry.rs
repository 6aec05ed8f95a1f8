//! What the process reports about itself: log lines, traces, and the metrics recorder.
mod chain;
mod output;
mod recorder;
pub(crate) mod traces;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use serde::Serialize;
use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

pub(crate) use self::chain::chain;
use self::output::{Kind, LINE_LIMIT, Output};
pub(crate) use self::recorder::install_metrics;
use crate::clock::Clock;
use crate::config::{LogConfig, LogFormat, TracesConfig};

/// The most bytes of a path in a request's line. Longer paths are cut. In JSON, some bytes take two.
const PATH_LIMIT: usize = 2048;
/// The most bytes of a method in a request's line. HTTP lets clients invent methods.
const METHOD_LIMIT: usize = 32;
/// Marks where text was cut off.
const CUT: &str = "…";

static SINK: OnceLock<Sink> = OnceLock::new();

#[derive(Debug)]
struct Sink {
    format: LogFormat,
    /// What each JSON line begins with: `{"replica":"…",`.
    prefix: String,
    has_request_lines: bool,
    output: Output,
}

/// Proof that logging and tracing have started. When it is dropped, waiting lines and spans are sent.
#[must_use = "lines and spans still waiting are sent when this is dropped"]
#[derive(Debug)]
pub(crate) struct Telemetry(());

impl Drop for Telemetry {
    fn drop(&mut self) {
        traces::stop();
        flush();
    }
}

/// Waits until all lines are written, but at most a second, because perhaps nobody reads them.
pub(crate) fn flush() {
    if let Some(sink) = SINK.get() {
        sink.output.flush();
    }
}

/// Writes a text for people in between the log's lines.
pub(crate) fn print(text: &str) {
    if let Some(sink) = SINK.get() {
        sink.output.append(Kind::Other, |out| out.extend_from_slice(cut(text, LINE_LIMIT).0.as_bytes()));
        sink.output.send(Kind::Other);
    }
}

/// Sends log lines to standard output, each with the replica's name, and traces to the collector if one is named.
///
/// # Panics
///
/// When called twice in one process.
pub(crate) fn start(log: &LogConfig, replica: &str, collector: Option<&TracesConfig>) -> Telemetry {
    let name = serde_json::to_string(replica).expect("a string is JSON");
    start_writing(log, format!("{{\"replica\":{name},"), io::stdout());
    let mut failure = None;
    let tracer = collector.and_then(|config| {
        let endpoint = config.endpoint.as_deref()?;
        traces::start(config, endpoint, replica).map_err(|error| failure = Some(error)).ok()
    });
    let lines = lines(log, io::stdout().is_terminal());
    match tracer {
        // One filter for everything is cheaper than one per layer.
        None => tracing_subscriber::registry().with(lines).with(EnvFilter::new(&log.filter)).init(),
        Some(tracer) => tracing_subscriber::registry()
            .with(lines.with_filter(EnvFilter::new(&log.filter)))
            .with(traces::layer(tracer))
            .init(),
    }
    if let Some(error) = failure {
        tracing::warn!(%error, "OTEL_EXPORTER_OTLP_ENDPOINT: no traces will be sent");
    }
    // The standard library's own report would go to standard error, and block until somebody reads it.
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        tracing::error!(panic = %panic, backtrace, "a bug: the process panicked");
    }));
    Telemetry(())
}

/// Sends log lines to standard error: for commands, whose results go to standard output. A command finishes its work
/// even if nobody reads its log.
///
/// # Panics
///
/// When logging has started already.
pub(crate) fn log_to_stderr(config: &LogConfig) -> Telemetry {
    start_writing(config, "{".to_owned(), io::stderr());
    let lines = lines(config, io::stderr().is_terminal());
    tracing_subscriber::registry().with(lines).with(EnvFilter::new(&config.filter)).init();
    Telemetry(())
}

fn start_writing(log: &LogConfig, prefix: String, stream: impl AsFd + Send + Sync + 'static) {
    let has_request_lines = wants_request_lines(&log.filter);
    let sink = Sink { format: log.format, prefix, has_request_lines, output: Output::new(stream) };
    SINK.set(sink).expect("logging starts once");
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(|| SINK.get().expect("set above").output.run())
        .expect("a thread for log lines");
}

/// Formats each event as one line.
fn lines<S>(config: &LogConfig, is_terminal: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(Lines);
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
        Line { kind: Kind::Other, is_urgent: false }
    }

    fn make_writer_for(&'a self, metadata: &tracing::Metadata<'_>) -> Line {
        let kind = if metadata.target() == "audit" { Kind::Audit } else { Kind::Other };
        Line { kind, is_urgent: kind == Kind::Audit || *metadata.level() == tracing::Level::ERROR }
    }
}

/// Writes one whole line per call, as the formatter does.
struct Line {
    kind: Kind,
    is_urgent: bool,
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let sink = SINK.get().expect("set before the subscriber");
        sink.output.append(self.kind, |out| match (sink.format, line.strip_prefix(b"{")) {
            (LogFormat::Json, Some(rest)) => {
                let begin = out.len();
                out.extend_from_slice(sink.prefix.as_bytes());
                if let Some(id) = traces::current_id() {
                    write!(out, "\"trace_id\":\"{id}\",").expect("writing to memory");
                }
                let room = LINE_LIMIT.saturating_sub(out.len() - begin);
                if rest.len() <= room {
                    out.extend_from_slice(rest);
                } else {
                    out.extend_from_slice(&shortened(line, room)[1..]);
                }
            }
            _ if line.len() <= LINE_LIMIT => out.extend_from_slice(line),
            _ => {
                let line = String::from_utf8_lossy(line);
                out.extend_from_slice(cut(&line, LINE_LIMIT - CUT.len() - 1).0.as_bytes());
                out.extend_from_slice(CUT.as_bytes());
                out.push(b'\n');
            }
        });
        if self.is_urgent {
            sink.output.send(self.kind);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The beginning of a text, at most `limit` bytes, and [`CUT`] or nothing in place of the rest.
fn cut(text: &str, limit: usize) -> (&str, &'static str) {
    if text.len() <= limit {
        return (text, "");
    }
    let end = (0..=limit).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    (&text[..end], CUT)
}

/// Shortens a JSON line that is too long: cuts its longest texts until it fits into `limit` bytes.
fn shortened(line: &[u8], limit: usize) -> Vec<u8> {
    type Fields = serde_json::Map<String, serde_json::Value>;
    let mut fields: Fields = serde_json::from_slice(line).unwrap_or_default();
    let mut longest = limit / 2;
    loop {
        let mut short = serde_json::to_vec(&fields).expect("values that were JSON");
        if short.len() < limit {
            short.push(b'\n');
            return short;
        }
        longest /= 2;
        if longest < 16 {
            // The line has thousands of fields, or very long names. No line of ours is like that.
            fields.retain(|name, _| matches!(name.as_str(), "timestamp" | "level" | "target" | "event" | "message"));
        }
        for value in fields.values_mut() {
            let text = if let serde_json::Value::String(text) = value { text.clone() } else { value.to_string() };
            if let (begin, rest @ CUT) = cut(&text, longest) {
                *value = format!("{begin}{rest}").into();
            }
        }
    }
}

/// One answered request.
#[derive(Debug, Serialize)]
pub(crate) struct RequestLine<'a> {
    #[serde(serialize_with = "method_to_limit")]
    pub(crate) method: &'a str,
    /// The path, without the query.
    #[serde(serialize_with = "path_to_limit")]
    pub(crate) path: &'a str,
    pub(crate) route: Option<&'a str>,
    /// 499 if the client left before the answer.
    pub(crate) status: u16,
    /// From the request's head to the answer.
    #[serde(serialize_with = "to_the_microsecond")]
    pub(crate) duration_ms: f64,
    pub(crate) request_id: &'a str,
    /// The trace that the request belongs to, whether it is recorded here or only by the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trace_id: Option<String>,
    /// The client's address, as trusted proxies report it.
    pub(crate) client_ip: Option<IpAddr>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn to_the_microsecond<S: serde::Serializer>(milliseconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((milliseconds * 1e3).round() / 1e3)
}

fn path_to_limit<S: serde::Serializer>(path: &str, serializer: S) -> Result<S::Ok, S::Error> {
    to_limit(path, PATH_LIMIT, serializer)
}

fn method_to_limit<S: serde::Serializer>(method: &str, serializer: S) -> Result<S::Ok, S::Error> {
    to_limit(method, METHOD_LIMIT, serializer)
}

fn to_limit<S: serde::Serializer>(text: &str, limit: usize, serializer: S) -> Result<S::Ok, S::Error> {
    match cut(text, limit) {
        (whole, "") => serializer.serialize_str(whole),
        (begin, rest) => serializer.collect_str(&format_args!("{begin}{rest}")),
    }
}

/// Whether request lines are wanted: `RUST_LOG` with `request=off` silences them.
pub(crate) fn request_lines_enabled() -> bool {
    SINK.get().is_some_and(|sink| sink.has_request_lines)
}

/// Asks a subscriber made for this question. The global one has a filter for each layer, and would reuse the answer to
/// `enabled!` for the next span.
fn wants_request_lines(filter: &str) -> bool {
    let subscriber = tracing_subscriber::registry().with(EnvFilter::new(filter));
    tracing::subscriber::with_default(subscriber, || tracing::enabled!(target: "request", tracing::Level::INFO))
}

/// Logs an answered request. Formats the line by hand, because the formatter of `tracing` takes several times as long
/// as the rest of a session check.
pub(crate) fn write_request_line(clock: &Clock, line: &RequestLine<'_>) {
    let Some(sink) = SINK.get() else { return };
    let now = clock.now();
    sink.output.append(Kind::Request, |out| {
        let written = match sink.format {
            LogFormat::Json => {
                out.extend_from_slice(sink.prefix.as_bytes());
                write!(out, "\"timestamp\":\"{now:.6}\",\"level\":\"INFO\",\"target\":\"request\",").and_then(|()| {
                    let begin = out.len();
                    serde_json::to_writer(&mut *out, line)?;
                    // Drops its opening brace, so that its fields follow ours.
                    out.remove(begin);
                    Ok(())
                })
            }
            LogFormat::Pretty => {
                let RequestLine { status, duration_ms, request_id, .. } = line;
                let ((method, _), (path, path_rest)) = (cut(line.method, METHOD_LIMIT), cut(line.path, PATH_LIMIT));
                write!(
                    out,
                    "{now:.6}  INFO request: {method} {}{path_rest} {status} {duration_ms:.2}ms id={request_id}",
                    path.escape_debug()
                )
            }
        };
        written.expect("writing to memory");
        out.push(b'\n');
    });
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_long_line_is_cut_and_stays_json() {
        let limit = 1000;
        let many: serde_json::Map<String, Value> = (0..500).map(|n| (format!("field_{n}"), json!(n))).collect();
        for mut line in [
            json!({ "message": "ü".repeat(5000), "user_id": "u-1" }),
            json!({ "message": "\u{1}\"".repeat(5000), "list": vec![1; 5000] }),
            many.into(),
        ] {
            for (name, value) in [("level", "WARN"), ("target", "audit"), ("event", "login"), ("timestamp", "now")] {
                line[name] = value.into();
            }
            let short = shortened(line.to_string().as_bytes(), limit);
            assert!(short.len() <= limit && short.ends_with(b"}\n"), "{}", short.len());
            let short: Value = serde_json::from_slice(&short).expect("JSON");
            assert_eq!([&short["level"], &short["target"], &short["event"]], ["WARN", "audit", "login"]);
            if line["user_id"].is_string() {
                assert_eq!(short["user_id"], "u-1");
                assert!(short["message"].as_str().is_some_and(|text| text.starts_with('ü') && text.ends_with(CUT)));
            }
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("äöü", 6), ("äöü", ""));
        assert_eq!(cut("äöü", 5), ("äö", CUT));
        assert_eq!(cut("ä", 1), ("", CUT));
    }
}
