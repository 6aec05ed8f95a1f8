//! A small OpenTelemetry collector: it receives traces by OTLP over HTTP and keeps them.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::net::TcpListener;

/// Listens on a port of its own until the test ends.
pub struct Collector {
    address: String,
    kept: Arc<Kept>,
}

#[derive(Default)]
struct Kept {
    spans: Mutex<Vec<Span>>,
    headers: Mutex<HeaderMap>,
    /// The status of its answers. With 0 it accepts spans.
    refusal: AtomicU16,
}

/// A span as it was received, with the resource that it came from.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace_id: String,
    pub id: String,
    /// Empty for a trace's first span.
    pub parent: String,
    pub name: String,
    /// 1 internal, 2 server, 3 client.
    pub kind: i32,
    /// 0 unset, 2 error.
    pub status: i32,
    /// Nanoseconds since 1970.
    pub begin: u64,
    pub end: u64,
    pub attributes: BTreeMap<String, String>,
    pub resource: BTreeMap<String, String>,
}

impl Span {
    /// The replica that made this span.
    pub fn replica(&self) -> &str {
        &self.resource["service.instance.id"]
    }

    /// An attribute. Empty if there is none of this name.
    pub fn at(&self, attribute: &str) -> &str {
        self.attributes.get(attribute).map_or("", String::as_str)
    }
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let kept = Arc::<Kept>::default();
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&kept));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, kept }
    }

    /// The value for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers with this status from now on, and keeps nothing. 0 makes it accept spans again.
    pub fn refuse(&self, status: u16) {
        self.kept.refusal.store(status, Ordering::Relaxed);
    }

    /// The spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.kept.spans.lock().clone()
    }

    /// The spans of one trace, in the order in which they began.
    pub fn trace(&self, trace_id: &str) -> Vec<Span> {
        let mut spans: Vec<_> = self.spans().into_iter().filter(|span| span.trace_id == trace_id).collect();
        spans.sort_by_key(|span| span.begin);
        spans
    }

    /// A header of the latest request.
    pub fn header(&self, name: &str) -> Option<String> {
        self.kept.headers.lock().get(name).map(|value| value.to_str().expect("ASCII").to_owned())
    }
}

async fn take(State(kept): State<Arc<Kept>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if let Ok(refusal) = StatusCode::from_u16(kept.refusal.load(Ordering::Relaxed)) {
        return refusal;
    }
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body).expect("OTLP");
    for of_resource in request.resource_spans {
        let resource = texts(of_resource.resource.map(|resource| resource.attributes).unwrap_or_default());
        for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            assert!(span.events.is_empty(), "log lines are not traces: {span:?}");
            kept.spans.lock().push(Span {
                trace_id: hex::encode(&span.trace_id),
                id: hex::encode(&span.span_id),
                parent: hex::encode(&span.parent_span_id),
                name: span.name,
                kind: span.kind,
                status: span.status.map_or(0, |status| status.code),
                begin: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
                attributes: texts(span.attributes),
                resource: resource.clone(),
            });
        }
    }
    *kept.headers.lock() = headers;
    StatusCode::OK
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: any_value::Value| match value {
        any_value::Value::StringValue(text) => text,
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::BoolValue(truth) => truth.to_string(),
        other => format!("{other:?}"),
    };
    let pair = |pair: KeyValue| Some((pair.key, text(pair.value?.value?)));
    attributes.into_iter().filter_map(pair).collect()
}
