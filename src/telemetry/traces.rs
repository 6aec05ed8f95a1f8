//! Traces: which requests are traced, their spans, and how they get to the collector.
//!
//! Whether a request is traced is decided when it begins. A request that isn't traced makes no span at all, neither for
//! itself nor for its parts. With tracing off, or with 1 % of requests traced, the others only look at one header.
//!
//! Span names and attributes follow OpenTelemetry's semantic conventions for HTTP servers and database clients.
use std::cell::Cell;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use metrics::{Counter, counter};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{SpanId, SpanKind, TraceContextExt as _, TraceId, TracerProvider as _};
use opentelemetry::{Context as OtelContext, KeyValue};
use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, IdGenerator, RandomIdGenerator, Sampler, SamplingDecision, SdkTracer,
    SdkTracerProvider, ShouldSample, SpanData, SpanExporter, SpanProcessor,
};
use parking_lot::Mutex;
use secrecy::ExposeSecret as _;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::config::TracesConfig;
use crate::metrics::TRACE_SPANS;

/// The target of all our spans. Spans of other crates aren't exported.
pub(crate) const TARGET: &str = "authfleet::trace";
/// How long a collector may take for one batch. A collector that doesn't answer delays only the thread that sends.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long sending the last spans may take when the process ends: less than orchestrators allow after the drain.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

static TRACING: OnceLock<Tracing> = OnceLock::new();

thread_local! {
    /// The request that this thread is working for.
    static CURRENT: Cell<Current> = const { Cell::new(Current { trace_id: TraceId::INVALID, is_recorded: false }) };
    /// The id of the next trace that begins on this thread.
    static NEXT: Cell<TraceId> = const { Cell::new(TraceId::INVALID) };
}

#[derive(Clone, Copy, Debug)]
struct Current {
    trace_id: TraceId,
    is_recorded: bool,
}

#[derive(Debug)]
struct Tracing {
    provider: SdkTracerProvider,
    sampler: Sampler,
}

/// One of our spans, as a child of the current one, if the request is traced. Otherwise [`Span::none`].
macro_rules! span {
    ($($fields:tt)+) => {
        if $crate::telemetry::traces::is_recorded() {
            ::tracing::info_span!(target: $crate::telemetry::traces::TARGET, $($fields)+)
        } else {
            ::tracing::Span::none()
        }
    };
}
pub(crate) use span;

/// Starts sending traces. Returns the tracer for the subscriber's layer.
///
/// # Errors
///
/// When the exporter can't be made, for example because there are no root certificates.
pub(super) fn start(config: &TracesConfig, endpoint: &str, replica: &str) -> io::Result<SdkTracer> {
    let headers: HashMap<String, String> =
        config.headers.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned())).collect();
    let route = Route::to(endpoint);
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(route.client()?)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{endpoint}/v1/traces"))
        .with_timeout(EXPORT_TIMEOUT)
        .with_headers(headers)
        .build()
        .map_err(io::Error::other)?;
    let own = [
        KeyValue::new("service.name", config.service_name.clone()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", replica.to_owned()),
    ];
    let given = config.resource_attributes.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    let waiting = Arc::new(AtomicUsize::new(0));
    let watched = Watched::new(exporter, endpoint, route, Arc::clone(&waiting));
    let room = queue_size();
    let batches = BatchConfigBuilder::default().with_max_queue_size(room).build();
    let processor = BatchSpanProcessor::builder(watched).with_batch_config(batches).build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(Bounded {
            processor,
            room,
            waiting,
            dropped: counter!(TRACE_SPANS, "result" => "dropped"),
        })
        // `RequestTrace::begin` decides before it makes a span.
        .with_sampler(Sampler::AlwaysOn)
        .with_id_generator(Ids(RandomIdGenerator::default()))
        .with_resource(Resource::builder_empty().with_attributes(given).with_attributes(own).build())
        .build();
    let tracer = provider.tracer("authfleet");
    TRACING.set(Tracing { provider, sampler: sampler(config) }).expect("tracing starts once");
    Ok(tracer)
}

/// Turns our spans into OpenTelemetry's, and no others.
pub(super) fn layer<S>(tracer: SdkTracer) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_level(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == TARGET))
}

fn sampler(config: &TracesConfig) -> Sampler {
    let own = Sampler::TraceIdRatioBased(config.sampled_share());
    if config.sampler.parent_based { Sampler::ParentBased(Box::new(own)) } else { own }
}

/// Sends the remaining spans. Later ones are dropped.
pub(super) fn stop() {
    if let Some(tracing) = TRACING.get()
        && let Err(error) = tracing.provider.shutdown_with_timeout(FLUSH_TIMEOUT)
    {
        tracing::warn!(%error, "the last traces were not sent");
    }
}

/// Whether this thread is working for a request that is traced.
pub(crate) fn is_recorded() -> bool {
    CURRENT.get().is_recorded
}

/// The trace that this thread is working for, whether it is recorded here or only by the caller.
pub(crate) fn current_id() -> Option<TraceId> {
    Some(CURRENT.get().trace_id).filter(|id| *id != TraceId::INVALID)
}

/// What a request's spans record about it.
#[derive(Debug)]
pub(crate) struct RequestFacts<'a> {
    /// The method, or `other`.
    pub(crate) method: &'static str,
    /// The path, without the query.
    pub(crate) path: &'a str,
    pub(crate) route: Option<&'a str>,
    pub(crate) request_id: &'a HeaderValue,
    pub(crate) headers: &'a HeaderMap,
}

/// A request's place in a trace: its span if it is recorded here, or only the caller's trace id.
#[derive(Debug)]
pub(crate) struct RequestTrace {
    span: Span,
    current: Current,
}

impl RequestTrace {
    /// Decides whether the request is traced, and begins its span. `None` if it belongs to no trace, here or elsewhere.
    pub(crate) fn begin(request: &RequestFacts<'_>) -> Option<Box<Self>> {
        let tracing = TRACING.get();
        let parent = request.headers.contains_key("traceparent").then(|| parent_of(request.headers));
        let parent = parent.filter(|parent| parent.span().span_context().is_valid());
        let trace_id = match (&parent, tracing) {
            (None, None) => return None,
            (Some(parent), _) => parent.span().span_context().trace_id(),
            (None, Some(_)) => trace_id_of(request.request_id),
        };
        let is_sampled = |tracing: &Tracing| {
            let result = tracing.sampler.should_sample(parent.as_ref(), trace_id, "", &SpanKind::Server, &[], &[]);
            result.decision == SamplingDecision::RecordAndSample
        };
        if !tracing.is_some_and(is_sampled) {
            let current = Current { trace_id, is_recorded: false };
            return parent.map(|_| Box::new(Self { span: Span::none(), current }));
        }
        let RequestFacts { method, path, route, request_id, .. } = *request;
        let verb = if method == "other" { "HTTP" } else { method };
        let name = route.map_or_else(|| verb.to_owned(), |route| format!("{verb} {route}"));
        let span = tracing::info_span!(
            target: TARGET,
            parent: None,
            "request",
            otel.name = name,
            otel.kind = "server",
            otel.status_code = tracing::field::Empty,
            error.type = tracing::field::Empty,
            http.request.method = if method == "other" { "_OTHER" } else { method },
            http.route = route,
            http.response.status_code = tracing::field::Empty,
            url.path = path,
            url.scheme = "http",
            "http.request.header.x-request-id" = request_id.to_str().ok(),
        );
        if let Some(parent) = parent {
            drop(span.set_parent(parent));
        }
        NEXT.set(trace_id);
        // Asking for the context starts the span, which takes the id.
        let trace_id = span.context().span().span_context().trace_id();
        NEXT.set(TraceId::INVALID);
        Some(Box::new(Self { span, current: Current { trace_id, is_recorded: true } }))
    }

    /// Makes this thread work for the request until the guard is dropped.
    pub(crate) fn enter(&self) -> Entered<'_> {
        Entered { _span: self.span.enter(), before: CURRENT.replace(self.current) }
    }

    /// The trace's id: 32 hexadecimal digits.
    pub(crate) fn id(&self) -> String {
        self.current.trace_id.to_string()
    }

    /// Records how the request was answered. The span ends when this is dropped.
    pub(crate) fn answered(&self, status: u16) {
        self.span.record("http.response.status_code", status);
        // 4xx are errors of the client.
        if status >= 500 {
            self.span.record("otel.status_code", "ERROR");
            self.span.record("error.type", status.to_string());
        }
    }
}

/// See [`RequestTrace::enter`].
#[derive(Debug)]
pub(crate) struct Entered<'a> {
    _span: tracing::span::Entered<'a>,
    before: Current,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

pin_project_lite::pin_project! {
    /// Work that belongs to the request that started it, whichever thread continues it.
    pub(crate) struct Continued<F> {
        #[pin]
        work: F,
        span: Span,
        current: Current,
    }
}

/// Ties work to the current request. The work may outlive the request or move to another task.
pub(crate) fn continued<F: Future>(work: F) -> Continued<F> {
    Continued { work, span: Span::current(), current: CURRENT.get() }
}

impl<F: Future> Future for Continued<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = Entered { _span: this.span.enter(), before: CURRENT.replace(*this.current) };
        this.work.poll(context)
    }
}

/// Marks a span as failed.
pub(crate) fn failed(span: &Span, error: &str) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", error);
}

/// The trace context of the HTTP client. It may be invalid.
fn parent_of(headers: &HeaderMap) -> OtelContext {
    TraceContextPropagator::new().extract_with_context(&OtelContext::new(), &Headers(headers))
}

/// The request's id if it is one of nginx's (128 random bits), so that nginx's log leads to the trace. Otherwise a
/// random id.
fn trace_id_of(request_id: &HeaderValue) -> TraceId {
    let digits = request_id.to_str().ok().filter(|text| text.len() == 32);
    let id = digits.and_then(|digits| TraceId::from_hex(digits).ok()).filter(|id| *id != TraceId::INVALID);
    id.unwrap_or_else(|| TraceId::from(fastrand::u128(1..)))
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Makes random ids, except for a trace whose id was chosen already.
#[derive(Debug)]
struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        match NEXT.get() {
            TraceId::INVALID => self.0.new_trace_id(),
            chosen => chosen,
        }
    }

    fn new_span_id(&self) -> SpanId {
        self.0.new_span_id()
    }
}

/// How the collector is reached.
#[derive(Debug)]
enum Route {
    Direct,
    /// Through the proxy that `HTTP_PROXY` or a similar variable names, with its address without user and password.
    Proxy(String),
}

impl Route {
    /// A collector on this machine is never reached through a proxy, to which `localhost` is another machine. Docker
    /// puts such variables into every container if its client is configured to.
    fn to(endpoint: &str) -> Self {
        let Ok(uri) = endpoint.parse::<Uri>() else { return Self::Direct };
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let is_local = host.parse::<IpAddr>().map_or_else(
            |_| host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost"),
            |ip| ip.is_loopback(),
        );
        match Matcher::from_env().intercept(&uri) {
            Some(proxy) if !is_local => Self::Proxy(proxy.uri().to_string()),
            _ => Self::Direct,
        }
    }

    fn client(&self) -> io::Result<reqwest::blocking::Client> {
        let builder = reqwest::blocking::Client::builder().timeout(EXPORT_TIMEOUT);
        let builder = if let Self::Direct = self { builder.no_proxy() } else { builder };
        // A blocking client starts a runtime, which is forbidden on a thread of our own runtime.
        let built = std::thread::spawn(move || builder.build()).join().expect("a client is made or refused");
        built.map_err(io::Error::other)
    }

    fn proxy(&self) -> Option<&str> {
        if let Self::Proxy(address) = self { Some(address) } else { None }
    }
}

/// How many spans may wait, from OpenTelemetry's variable or its default.
fn queue_size() -> usize {
    std::env::var("OTEL_BSP_MAX_QUEUE_SIZE").ok().and_then(|size| size.parse().ok()).unwrap_or(2048)
}

/// Passes spans on while there is room for them, and counts those that it drops. The processor itself reports that
/// number only when the process ends.
#[derive(Debug)]
struct Bounded<P> {
    processor: P,
    room: usize,
    /// Spans that were passed on and are not exported yet.
    waiting: Arc<AtomicUsize>,
    dropped: Counter,
}

impl<P: SpanProcessor> SpanProcessor for Bounded<P> {
    fn on_start(&self, span: &mut opentelemetry_sdk::trace::Span, context: &OtelContext) {
        self.processor.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.room {
            self.processor.on_end(span);
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped.increment(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

/// An exporter whose failures are counted. The log says once that they begin, and once that they end.
#[derive(Debug)]
struct Watched<E> {
    exporter: E,
    endpoint: String,
    route: Route,
    waiting: Arc<AtomicUsize>,
    is_failing: Mutex<bool>,
    exported: Counter,
    failed: Counter,
}

impl<E> Watched<E> {
    fn new(exporter: E, endpoint: &str, route: Route, waiting: Arc<AtomicUsize>) -> Self {
        Self {
            exporter,
            endpoint: endpoint.to_owned(),
            route,
            waiting,
            is_failing: Mutex::default(),
            exported: counter!(TRACE_SPANS, "result" => "exported"),
            failed: counter!(TRACE_SPANS, "result" => "failed"),
        }
    }

    /// Counts the spans, and logs when the collector starts or stops taking them.
    fn note(&self, spans: u64, result: &OTelSdkResult) {
        let was_failing = std::mem::replace(&mut *self.is_failing.lock(), result.is_err());
        let endpoint = &self.endpoint;
        match result {
            Ok(()) => {
                self.exported.increment(spans);
                if was_failing {
                    tracing::info!(endpoint, "traces are taken again");
                }
            }
            Err(error) => {
                self.failed.increment(spans);
                if !was_failing {
                    tracing::warn!(%error, endpoint, proxy = self.route.proxy(),
                        "the collector takes no traces; requests are answered as ever");
                }
            }
        }
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        self.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
        let result = self.exporter.export(batch).await;
        self.note(spans, &result);
        // The failure has been logged and counted. If it were returned, the processor would log each failed batch.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
