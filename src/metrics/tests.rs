use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use super::{CATALOGUE, HASH_BUCKETS, Kind, LATENCY_BUCKETS, Metric};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
const BEGIN: &str = "<!-- From src/metrics.rs; `make docs` writes it anew. -->\n";
const END: &str = "<!-- End of what is from src/metrics.rs. -->\n";

#[test]
fn the_document_is_current() {
    let text = fs::read_to_string(DOCUMENT).expect("docs/metrics.md");
    let (before, rest) = text.split_once(BEGIN).expect("the place where the tables begin");
    let (_, after) = rest.split_once(END).expect("the place where they end");
    let current = format!("{before}{BEGIN}\n{}\n{END}{after}", tables());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(DOCUMENT, current).expect("docs/metrics.md is written");
        return;
    }
    assert!(text == current, "docs/metrics.md is out of date: `make docs`, or UPDATE_DOCS=1 cargo test --lib metrics");
}

fn tables() -> String {
    let mut text = "| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for metric in CATALOGUE {
        let Metric { name, kind, help, .. } = metric;
        let buckets = match kind {
            Kind::Counter | Kind::Gauge => "",
            Kind::Latency => ", latency",
            Kind::HashTime => ", hashing",
        };
        let labels: Vec<_> = metric.labels.iter().map(|(label, values)| label_text(label, values)).collect();
        let row = [&format!("`{name}`"), &format!("{}{buckets}", kind.prometheus_type()), &labels.join("; "), *help];
        writeln!(text, "| {} |", row.join(" | ")).expect("writing to memory");
    }
    let bounds = |buckets: &[f64]| buckets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    write!(
        text,
        "\n| buckets | upper bounds in seconds |\n| --- | --- |\n| latency | {} |\n| hashing | {} |\n",
        bounds(LATENCY_BUCKETS),
        bounds(HASH_BUCKETS)
    )
    .expect("writing to memory");
    text
}

fn label_text(label: &str, values: &[&str]) -> String {
    let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
    if values.is_empty() { format!("`{label}`") } else { format!("`{label}`: {}", values.join(", ")) }
}

/// <https://prometheus.io/docs/practices/naming/>
#[test]
fn names_are_as_prometheus_wants_them() {
    let mut names = BTreeSet::new();
    for metric in CATALOGUE {
        let Metric { name, kind, help, labels } = metric;
        assert!(names.insert(name), "{name} is there twice");
        assert!(name.starts_with("authfleet_"), "{name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        assert_eq!(kind.buckets().is_some(), name.ends_with("_duration_seconds"), "{name}");
        assert!(!help.is_empty() && !help.contains(['\n', '|']) && help.ends_with('.'), "{name}: {help:?}");
        for (label, values) in *labels {
            assert!(!["replica", "le", "job", "instance"].contains(label), "{name}: {label} is somebody else's");
            assert_eq!(values.iter().collect::<BTreeSet<_>>().len(), values.len(), "{name}: {label}");
        }
    }
    for buckets in [LATENCY_BUCKETS, HASH_BUCKETS] {
        assert!(buckets.is_sorted(), "{buckets:?}");
    }
}

#[test]
fn series_are_all_combinations_of_labels() {
    let metric = |labels| Metric { name: "x", kind: Kind::Gauge, help: "", labels };
    let series = metric(&[("pool", &["writer", "readers"]), ("state", &["idle", "busy"])]).series().expect("all known");
    let text: Vec<_> =
        series.iter().map(|labels| labels.iter().map(metrics::Label::value).collect::<Vec<_>>()).collect();
    assert_eq!(text, [["writer", "idle"], ["writer", "busy"], ["readers", "idle"], ["readers", "busy"]]);
    assert_eq!(metric(&[]).series().expect("one").len(), 1);
    assert!(metric(&[("pool", &["writer"]), ("route", &[])]).series().is_none());
}
