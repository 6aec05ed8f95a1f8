//! The metrics recorder, made from the catalogue.
use metrics::{Counter, Histogram, counter, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::metrics::{CATALOGUE, Kind, Metric, TRACE_SPANS};

/// Installs the recorder. Every series that it renders has the label `replica`. Histograms have buckets, which can be
/// added up over replicas.
///
/// # Panics
///
/// When called twice in one process.
pub(crate) fn install_metrics(replica: &str) -> PrometheusHandle {
    let mut builder = PrometheusBuilder::new().add_global_label("replica", replica);
    for metric in CATALOGUE {
        if let Some(buckets) = metric.kind.buckets() {
            let matcher = Matcher::Full(metric.name.to_owned());
            builder = builder.set_buckets_for_metric(matcher, buckets).expect("a metric has at least one bucket");
        }
    }
    let handle = builder.install_recorder().expect("metrics are installed once");
    CATALOGUE.iter().for_each(describe);
    // The spans' series exist only while tracing is on.
    CATALOGUE.iter().filter(|metric| metric.name != TRACE_SPANS).for_each(begin_at_zero);
    handle
}

fn describe(metric: &Metric) {
    let (name, unit, help) = (metric.name.into(), metric.unit(), metric.help.into());
    metrics::with_recorder(|recorder| match metric.kind {
        Kind::Counter => recorder.describe_counter(name, unit, help),
        Kind::Gauge => recorder.describe_gauge(name, unit, help),
        Kind::Latency | Kind::HashTime => recorder.describe_histogram(name, unit, help),
    });
}

/// Creates the series that are known beforehand, with the value 0. Prometheus's `rate()` sees no increase if a series
/// begins with 1, so the first failure would go unnoticed.
fn begin_at_zero(metric: &Metric) {
    for labels in metric.series().into_iter().flatten() {
        match metric.kind {
            Kind::Counter => drop::<Counter>(counter!(metric.name, labels)),
            Kind::Latency | Kind::HashTime => drop::<Histogram>(histogram!(metric.name, labels)),
            // A gauge has no value before it is set.
            Kind::Gauge => {}
        }
    }
}
