//! Compares every place that repeats the table with it.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::env_example;
use crate::config::table::{DefaultValue, Scope, VARIABLES, Variable};
use crate::config::{Config, Sources};

const BEGIN: &str = "<!-- From src/config/variables.rs; `make docs` writes it anew. -->\n";
const END: &str = "<!-- End of what is from src/config/variables.rs. -->\n";

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Writes the file under `make docs`, and otherwise compares it.
#[track_caller]
fn assert_current(path: &str, current: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(root().join(path), current).expect("a file that can be written");
    }
    assert!(read(path) == current, "{path} is out of date: `make docs`, or UPDATE_DOCS=1 cargo test --lib config");
}

#[test]
fn env_example_is_current() {
    assert_current(".env.example", &env_example());
}

#[test]
fn the_table_of_the_readme_is_current() {
    let text = read("README.md");
    let (before, rest) = text.split_once(BEGIN).expect("the place where the table begins");
    let (_, after) = rest.split_once(END).expect("the place where it ends");
    assert_current("README.md", &format!("{before}{BEGIN}\n{}\n{END}{after}", markdown_table()));
}

/// README's table.
fn markdown_table() -> String {
    let mut text = "| variable | default | what it does | in every replica |\n| --- | --- | --- | --- |\n".to_owned();
    for Variable { name, default, help, scope, .. } in VARIABLES.iter() {
        let default = match default {
            DefaultValue::Text(text) => format!("`{text}`"),
            DefaultValue::Described(words) => (*words).to_owned(),
        };
        let replicas = match scope {
            Scope::Replica => "",
            Scope::Fleet => "the same",
            Scope::Store => "the same store",
        };
        writeln!(text, "| `{name}` | {default} | {help} | {replicas} |").expect("writing to memory");
    }
    text
}

#[test]
fn rows_are_fit_for_markdown_and_comments() {
    for Variable { name, help, accepted, .. } in VARIABLES.iter() {
        assert!(help.ends_with('.') && !help.contains(['\n', '|']), "{name}: {help:?}");
        assert!(!accepted.ends_with('.') && !accepted.contains('\n'), "{name}: {accepted:?}");
    }
    let names: BTreeSet<_> = VARIABLES.iter().map(|variable| variable.name).collect();
    assert_eq!(names.len(), VARIABLES.len(), "no name twice");
    assert!(VARIABLES[0].heading.is_some());
}

fn is_known(name: &str) -> bool {
    let stem = name.strip_suffix("_FILE").unwrap_or(name);
    VARIABLES.iter().any(|variable| variable.name == name || variable.name == stem)
}

fn is_name(text: &str) -> bool {
    text.len() > 3 && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// `NAME: value` in the block of docker-compose.yml that the replicas share.
fn compose_environment() -> BTreeMap<String, String> {
    let text = read("docker-compose.yml");
    let (_, rest) = text.split_once("x-environment: &environment\n").expect("the shared environment");
    let (block, _) = rest.split_once("\n\n").expect("its end");
    let entries = block.lines().map(str::trim).filter(|line| !line.starts_with(['#', '<']));
    let entry = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
    entries.map(|line| entry(line).unwrap_or_else(|| panic!("{line:?} is no entry"))).collect()
}

#[test]
fn docker_compose_hands_every_variable_on() {
    // Said by the file itself, or needless in a container; headers are a secret, so mount a file with them.
    let fixed = ["LISTEN_ADDR", "OPS_ADDR", "REPLICA_ID", "LOG_FORMAT"];
    let fixed = fixed.into_iter().chain(["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_HEADERS"]);
    // About another Redis than the one that this file starts.
    let elsewhere = ["REDIS_CA_FILE", "REDIS_CERT_FILE", "REDIS_KEY_FILE", "REDIS_REVOCATION_REPLICAS"];
    let elsewhere = elsewhere.into_iter().chain(["REDIS_SENTINEL_USERNAME", "REDIS_SENTINEL_PASSWORD"]);
    let environment = compose_environment();
    let given: BTreeSet<_> = environment.keys().map(|name| name.strip_suffix("_FILE").unwrap_or(name)).collect();
    let known: BTreeSet<_> = VARIABLES.iter().map(|variable| variable.name).collect();
    let expected: BTreeSet<_> = known.difference(&fixed.chain(elsewhere).collect()).copied().collect();
    assert_eq!(given, expected);

    let mut passed_on = 0;
    let mut defaults = BTreeMap::new();
    for (name, value) in &environment {
        if let Some((from, default)) =
            value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')?.split_once(":-"))
        {
            assert!(from == name || from.starts_with("AUTHFLEET_"), "{name} takes {from}");
            passed_on += 1;
            defaults.insert(name.clone(), default.into());
        }
    }
    assert!(passed_on > 20, "only {passed_on} are read from .env");
    let sources = Sources { environment: defaults, ..Sources::from([("", ""); 0]) };
    Config::from_sources(&sources).unwrap_or_else(|errors| panic!("docker-compose.yml: {errors}"));
}

/// `- NAME=value` and `- name: NAME`, as Kubernetes' files write them.
#[test]
fn kubernetes_sets_only_variables_that_exist() {
    let mut literals = BTreeMap::new();
    for line in read("k8s/base/kustomization.yaml").lines() {
        if let Some((name, value)) = line.trim().strip_prefix("- ").and_then(|line| line.split_once('='))
            && is_name(name)
        {
            assert!(is_known(name), "{name}");
            assert!(!Variable::named(name).secret, "{name} belongs in a Secret");
            literals.insert(name.to_owned(), value.into());
        }
    }
    assert!(literals.len() >= 4, "{literals:?}");
    let sources = Sources { environment: literals, ..Sources::from([("", ""); 0]) };
    let config = Config::from_sources(&sources).unwrap_or_else(|errors| panic!("k8s/base: {errors}"));
    assert_eq!(config.warnings, [], "k8s/base");

    let server = read("k8s/base/server.yaml");
    let names: Vec<_> = server.lines().filter_map(|line| line.trim().strip_prefix("- name: ")).collect();
    let names: Vec<_> = names.into_iter().filter(|name| is_name(name)).collect();
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        assert!(is_known(name), "{name}");
    }
}

/// All documents except the changelog, which may name removed variables, and those of the load tests, which have
/// variables of their own.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = ["docs", "deploy", "k8s"].map(|name| root().join(name)).to_vec();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of the repository") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found.push(root().join("README.md"));
    assert!(found.len() > 12, "{found:?}");
    found
}

/// Placeholders of the examples.
const NO_VARIABLES: [&str; 1] = ["SESSION_ID"];

/// No document names a renamed or removed variable, or states another default.
#[test]
fn documents_name_variables_that_exist_with_their_defaults() {
    let mut stated = 0;
    for path in documents() {
        let text = fs::read_to_string(&path).expect("a document");
        for word in text.split('`').skip(1).step_by(2) {
            let name = word.split_once('=').map_or(word, |(name, _)| name);
            if is_name(name) && !is_known(name) && !NO_VARIABLES.contains(&name) {
                assert_eq!(crate::config::sources::misspelt(name), None, "{}", path.display());
            }
        }
        // Rows that end with a value and the variable that changes it.
        for line in text.lines() {
            let cells: Vec<_> = line.trim_matches(['|', ' ']).split('|').map(str::trim).collect();
            if let [_, .., value, variable] = cells[..]
                && let Some(name) = variable.strip_prefix('`').and_then(|rest| rest.strip_suffix('`'))
                && let Some(variable) = VARIABLES.iter().find(|variable| variable.name == name)
                && let DefaultValue::Text(default) = variable.default
            {
                assert_eq!(value.trim_matches('`'), default, "{name} in {}", path.display());
                stated += 1;
            }
        }
    }
    assert!(stated >= 4, "{stated}");
}
