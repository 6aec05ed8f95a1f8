//! Parses the answer of `/metrics`.
use std::collections::{BTreeMap, BTreeSet};

use crate::fleet::Replica;

pub type Labels = BTreeMap<String, String>;

/// The answer of `/metrics`: the comments before each metric's samples, by name, and the samples.
#[derive(Debug, Default)]
pub struct Exposition {
    pub help: BTreeMap<String, String>,
    pub kinds: BTreeMap<String, String>,
    pub samples: Vec<(String, Labels, f64)>,
}

impl Exposition {
    pub async fn of(replica: &Replica) -> Self {
        let mut exposition = Self::default();
        let text = replica.ops("/metrics").await.expect(200).text();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let described = |rest: &str| {
                let (name, text) = rest.split_once(' ').expect("a name and a text");
                (name.to_owned(), text.to_owned())
            };
            if let Some(rest) = line.strip_prefix("# HELP ") {
                exposition.help.extend([described(rest)]);
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                exposition.kinds.extend([described(rest)]);
            } else {
                exposition.samples.push(sample(line));
            }
        }
        exposition
    }

    /// The one sample with this name and these labels, if it's there.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |sample: &Labels| labels.iter().all(|(label, value)| sample.get(*label).is_some_and(|v| v == value));
        let mut found =
            self.samples.iter().filter(|(n, sample, _)| n == name && has(sample)).map(|(_, _, value)| *value);
        let value = found.next();
        assert_eq!(found.next(), None, "one of {name} {labels:?}");
        value
    }

    pub fn series(&self) -> BTreeSet<(String, Labels)> {
        self.samples.iter().map(|(name, labels, _)| (name.clone(), labels.clone())).collect()
    }
}

/// Parses `name{label="value",…} number`. Values may contain anything, such as the braces of routes.
fn sample(line: &str) -> (String, Labels, f64) {
    let (head, number) = line.rsplit_once(' ').expect("a number at the end");
    let (name, mut rest) = head.split_once('{').unwrap_or((head, "}"));
    let mut labels = Labels::new();
    while rest != "}" {
        let (label, quoted) = rest.split_once("=\"").expect("a label");
        let end = quoted.find('"').expect("the end of a value");
        assert!(!quoted[..end].contains('\\'), "no value of ours is escaped: {line}");
        labels.insert(label.trim_start_matches(',').to_owned(), quoted[..end].to_owned());
        rest = &quoted[end + 1..];
    }
    (name.to_owned(), labels, number.parse().expect("a number"))
}
