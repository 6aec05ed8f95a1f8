use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::json;

use super::{CATALOGUE, HASH_BUCKETS, Kind, LATENCY_BUCKETS, Metric};

const BEGIN: &str = "<!-- From src/metrics.rs; `make docs` writes it anew. -->\n";
const END: &str = "<!-- End of what is from src/metrics.rs. -->\n";

/// Writes the file anew under `make docs`, else compares it.
#[track_caller]
fn assert_current(path: &str, current: impl FnOnce(&str) -> String) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = fs::read_to_string(&file).unwrap_or_default();
    let current = current(&text);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(file, current).expect("a file that can be written");
        return;
    }
    assert!(text == current, "{path} is out of date: `make docs`, or UPDATE_DOCS=1 cargo test --lib metrics");
}

#[test]
fn the_document_is_current() {
    assert_current("docs/metrics.md", |text| {
        let (before, rest) = text.split_once(BEGIN).expect("the place where the tables begin");
        let (_, after) = rest.split_once(END).expect("the place where they end");
        format!("{before}{BEGIN}\n{}\n{END}{after}", tables())
    });
}

/// What checks queries of rules and dashboards: each name that a query may ask, the parts of histograms included.
#[test]
fn the_list_of_series_is_current() {
    let mut lines = Vec::new();
    for Metric { name, kind, labels, .. } in CATALOGUE {
        let (parts, prometheus_type): (&[_], _) = match kind.buckets() {
            Some(_) => (&["_bucket", "_count", "_sum"], Kind::Counter.prometheus_type()),
            None => (&[""], kind.prometheus_type()),
        };
        for part in parts {
            let mut labels: BTreeMap<_, _> = labels.iter().copied().collect();
            if *part == "_bucket" {
                labels.insert("le", &[]);
            }
            lines.push(format!(r#"  "{name}{part}": {}"#, json!({"labels": labels, "type": prometheus_type})));
        }
    }
    assert_current("docs/metrics.json", |_| format!("{{\n{}\n}}\n", lines.join(",\n")));
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
