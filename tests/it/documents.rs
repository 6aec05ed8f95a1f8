//! Everything that the documents name exists: links, headings, files, tests, targets of make, commands with their
//! options, variables, metrics, Kubernetes objects. The tests need only the source tree and the binary.
mod markdown;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use self::markdown::{Document, bare};

/// Directories of generated files.
const NOT_OURS: [&str; 4] = ["target", ".git", ".tools", ".run"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of the repository, relative to its root.
fn files() -> Vec<PathBuf> {
    let (mut found, mut directories) = (Vec::new(), vec![root().to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of the repository") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if !path.is_dir() {
                found.push(path.strip_prefix(root()).expect("below the root").to_owned());
            } else if !NOT_OURS.contains(&name.as_str()) && name != "__pycache__" && name != "node_modules" {
                directories.push(path);
            }
        }
    }
    found
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(root().join(path)).expect("a file that can be read")).into_owned()
}

fn documents() -> Vec<Document> {
    let markdown = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    let found: Vec<_> = files().into_iter().filter(markdown).map(Document::read).collect();
    assert!(found.len() > 20, "{}", found.len());
    found
}

/// Names that look like variables: a scheduling policy of the kernel, a variable that libraries read, keys of a Secret.
const NOT_OUR_VARIABLES: [&str; 4] = ["SCHED_IDLE", "HTTPS_PROXY", "ACCESS_KEY_ID", "ACCESS_SECRET_KEY"];

/// Collects everything that is wrong, so that one run names all of it. `seen` guards against a check that finds nothing
/// to check.
#[derive(Default)]
struct Claims {
    seen: usize,
    wrong: BTreeSet<String>,
}

impl Claims {
    fn check(&mut self, document: &Document, claim: &str, holds: bool) {
        self.seen += 1;
        if !holds {
            self.wrong.insert(format!("{}: {claim}", document.path.display()));
        }
    }

    #[track_caller]
    fn all_hold(self, at_least: usize) {
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
        assert!(self.seen >= at_least, "only {} were found", self.seen);
    }
}

#[test]
fn links_lead_to_files_and_headings_that_exist() {
    let (documents, mut claims) = (documents(), Claims::default());
    for document in &documents {
        for link in document.links.iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (file, heading) = link.split_once('#').map_or((link.as_str(), None), |(file, at)| (file, Some(at)));
            let target = root().join(&document.path).parent().expect("a directory").join(file);
            let target = if file.is_empty() { root().join(&document.path) } else { target };
            claims.check(document, link, target.exists());
            if let (Some(heading), Ok(target)) = (heading, target.canonicalize()) {
                let there = documents.iter().find(|document| root().join(&document.path) == target);
                let has_it = there.is_some_and(|there| there.anchors.iter().any(|anchor| anchor == heading));
                claims.check(document, link, has_it);
            }
        }
    }
    claims.all_hold(50);
}

#[test]
fn no_document_has_two_headings_of_one_name() {
    let mut claims = Claims::default();
    // A changelog has a heading "Added" for every release.
    for document in documents().iter().filter(|document| document.is_current()) {
        for (at, anchor) in document.anchors.iter().enumerate() {
            claims.check(document, anchor, !document.anchors[..at].contains(anchor));
        }
    }
    claims.all_hold(150);
}

#[test]
fn files_exist() {
    let mut claims = Claims::default();
    let rooms: BTreeSet<_> = files().iter().filter_map(|path| Some(path.iter().next()?.to_str()?.to_owned())).collect();
    for document in documents().iter().filter(|document| document.is_current()) {
        for word in document.text.split_whitespace().flat_map(|word| word.split([',', '=', '|', '"'])).map(bare) {
            let Some((room, rest)) = word.split_once('/') else { continue };
            if !rooms.contains(room) || rest.is_empty() {
                continue;
            }
            // Only the part before a pattern or a placeholder.
            let whole = word.split('#').next().expect("a first part");
            let plain = whole
                .find(['*', '{', '<', '…', '$'])
                .map_or(whole, |at| whole[..at].rsplit_once('/').expect("a directory before the pattern").0);
            claims.check(document, word, root().join(plain).exists());
        }
    }
    claims.all_hold(150);
}

/// The tests and modules of `tests/it`, `src` and `crates`, as `cargo test` names them. Names from `crates` begin with
/// the crate's name.
fn tests() -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in files().iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
        let module = if let Ok(inside) = path.strip_prefix("crates") {
            let mut parts = inside.iter();
            let name = parts.next().expect("a crate's directory").to_string_lossy().replace('-', "_");
            if parts.next().is_none_or(|part| part != "src") {
                continue;
            }
            Path::new(&name).join(parts.as_path())
        } else if let Ok(module) = path.strip_prefix("tests/it").or_else(|_| path.strip_prefix("src")) {
            module.to_owned()
        } else {
            continue;
        };
        let names = module.with_extension("");
        let names = names.iter().filter_map(|name| name.to_str()).filter(|name| !["mod", "lib", "main"].contains(name));
        let mut module = names.collect::<Vec<_>>().join("::");
        let mut is_test = false;
        found.entry(module.clone()).or_default();
        for line in read(path).lines().map(str::trim) {
            if line.starts_with("mod tests {") {
                module += "::tests";
                found.entry(module.clone()).or_default();
            }
            let signature = line.trim_start_matches("pub ").trim_start_matches("async ");
            if line.starts_with("#[") {
                is_test |= line.contains("test]") || line.contains("test(");
            } else if let Some(rest) = signature.strip_prefix("fn ") {
                if is_test {
                    let name = rest.split(['(', '<']).next().expect("a name");
                    found.get_mut(&module).expect("entered above").insert(name.to_owned());
                }
                is_test = false;
            }
        }
    }
    found
}

/// `…` stands for any text at the beginning or the end of a test's name.
fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('…'), pattern.strip_suffix('…')) {
        (Some(end), _) => name.ends_with(end),
        (_, Some(start)) => name.starts_with(start),
        _ => name == pattern,
    }
}

#[test]
fn tests_that_are_named_exist() {
    let (tests, mut claims) = (tests(), Claims::default());
    let rooms: BTreeSet<_> =
        tests.keys().filter_map(|module| module.split("::").next()).filter(|room| !room.is_empty()).collect();
    for document in documents().iter().filter(|document| document.is_current()) {
        let mut last = String::new();
        for code in &document.code {
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:…".contains(c);
            if !code.chars().all(is_name) {
                continue;
            }
            if let Some((module, name)) = code.rsplit_once("::") {
                if !rooms.contains(module.split("::").next().expect("a first part")) {
                    continue;
                }
                module.clone_into(&mut last);
                let named = tests.get(module).is_some_and(|names| names.iter().any(|found| matches(name, found)));
                // The name may also be a module's, which need not contain a test.
                let is_module = tests.contains_key(code) || (["", "…"].contains(&name) && tests.contains_key(module));
                claims.check(document, code, named || is_module);
            } else if code.starts_with("…_") {
                let named = tests.get(&last).is_some_and(|names| names.iter().any(|found| matches(code, found)));
                claims.check(document, &format!("{last}::{code}"), named);
            }
        }
    }
    claims.all_hold(100);
}

/// The image is built with the version that `Cargo.toml` states, so building it checks the statement.
#[test]
fn the_oldest_rust_that_is_stated_builds_the_image() {
    let manifest = read(Path::new("Cargo.toml"));
    let stated = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"'));
    let stated = stated.expect("a rust-version");
    let images = read(Path::new("deploy/images.txt"));
    let image = images.lines().find_map(|line| line.strip_prefix("rust:")).expect("the image of the build");
    assert_eq!(image.split('-').next(), Some(stated));
    for document in ["README.md", "CONTRIBUTING.md"] {
        let text = read(Path::new(document)).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(&format!("Rust {stated} or newer")), "{document}");
    }
}

#[test]
fn targets_of_make_exist() {
    let makefile = read(Path::new("Makefile"));
    let targets: BTreeSet<_> = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', '.', '#']) && !line.contains(":="))
        .filter_map(|line| line.split_once(':'))
        .flat_map(|(names, _)| names.split_whitespace())
        .collect();
    let mut claims = Claims::default();
    for document in documents().iter().filter(|document| document.is_current()) {
        for words in document.commands() {
            if let ["make", target, ..] = words[..] {
                claims.check(document, &format!("make {target}"), targets.contains(target));
            }
        }
    }
    claims.all_hold(10);
}

/// What `authfleet … --help` prints.
fn help(of: &[&str]) -> String {
    let done = Command::new(env!("CARGO_BIN_EXE_authfleet")).args(of).arg("--help").output().expect("the binary runs");
    assert!(done.status.success(), "{of:?}");
    String::from_utf8(done.stdout).expect("help is UTF-8")
}

/// The subcommands that a help text lists.
fn subcommands(help: &str) -> BTreeSet<String> {
    let list = help.split_once("Commands:\n").map_or("", |(_, rest)| rest.split("\n\n").next().expect("a first part"));
    // Continued lines are indented further.
    let names = list.lines().filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
    names.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect()
}

#[test]
fn commands_of_authfleet_exist_with_their_options() {
    let mut claims = Claims::default();
    for document in documents().iter().filter(|document| document.is_current()) {
        for words in document.commands() {
            for at in (0..words.len()).filter(|at| words[*at] == "authfleet") {
                // Looks only at places where the command is run, since a namespace, a user and a package have the same
                // name.
                let before = at.checked_sub(1).map(|before| words[before]);
                if before
                    .is_some_and(|word| !["--", "|", "sudo", "&&"].contains(&word) && !word.starts_with("replica-"))
                {
                    continue;
                }
                let (mut path, mut text) = (Vec::new(), help(&[]));
                let rest = words[at + 1..].iter().take_while(|word| !["|", "&&", "<", ">"].contains(*word));
                for word in rest {
                    if let Some(option) = word.strip_prefix("--") {
                        let option = option.split('=').next().expect("a name");
                        claims.check(document, &words.join(" "), text.contains(&format!("--{option}")));
                    } else if !subcommands(&text).is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
                    {
                        let known = subcommands(&text).contains(*word);
                        claims.check(document, &words.join(" "), known);
                        if !known {
                            break;
                        }
                        path.push(*word);
                        text = help(&path);
                    }
                }
            }
        }
    }
    claims.all_hold(25);
}

#[test]
fn scripts_know_the_options_and_scenarios_that_are_named() {
    let mut claims = Claims::default();
    let driver = ["cli", "scenarios"].map(|name| read(&PathBuf::from(format!("loadtest/driver/{name}.py")))).concat();
    for document in documents().iter().filter(|document| document.is_current()) {
        for words in document.commands() {
            // An option belongs to the last program before it.
            let mut program: Option<(&str, String)> = None;
            for word in words {
                if word.contains('/') && root().join(word).exists() {
                    let main = if root().join(word).is_dir() { format!("{word}/__main__.py") } else { word.to_owned() };
                    let text = fs::read_to_string(root().join(main)).unwrap_or_default();
                    program = (text.starts_with("#!") || text.starts_with("\"\"\"")).then_some((word, text));
                } else if ["|", "&&"].contains(&word) {
                    program = None;
                } else if let Some((path, text)) = &program {
                    let claim = format!("{path} {word}");
                    if word.starts_with("--") {
                        let is_known = text.contains(word) || (*path == "loadtest/run" && driver.contains(word));
                        claims.check(document, &claim, is_known);
                    } else if *path == "loadtest/run" && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') {
                        claims.check(document, &claim, driver.contains(&format!("\"{word}\"")));
                    }
                }
            }
        }
    }
    claims.all_hold(15);
}

#[test]
fn variables_are_read_somewhere() {
    let example =
        Command::new(env!("CARGO_BIN_EXE_authfleet")).args(["config", "--example"]).output().expect("it runs");
    let mut read_somewhere = String::from_utf8(example.stdout).expect("UTF-8");
    let markdown = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    for path in files().iter().filter(|path| !markdown(path) && !path.ends_with("documents.rs")) {
        read_somewhere += &read(path);
    }
    let known: BTreeSet<_> = read_somewhere.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let is_name = |word: &&str| {
        word.contains('_')
            && word.starts_with(|c: char| c.is_ascii_uppercase())
            && word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    };
    let mut claims = Claims::default();
    for document in documents().iter().filter(|document| document.is_current()) {
        let words = document.code.iter().flat_map(|code| code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
        for name in words.filter(is_name).filter(|name| !NOT_OUR_VARIABLES.contains(name)) {
            let stem = name.strip_suffix("_FILE").unwrap_or(name);
            claims.check(document, name, known.contains(name) || known.contains(stem));
        }
    }
    claims.all_hold(100);
}

#[test]
fn metrics_and_recorded_series_exist() {
    let mut known: BTreeSet<String> = BTreeSet::new();
    for path in files() {
        if path.starts_with("deploy/prometheus/rules") {
            let text = read(&path);
            known.extend(text.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).map(str::to_owned));
        }
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    known.extend(read(Path::new("docs/metrics.md")).split(|c| !is_part(c)).map(str::to_owned));
    let mut claims = Claims::default();
    for document in documents().iter().filter(|document| document.is_current()) {
        let words = document.code.iter().flat_map(|code| code.split(|c| !is_part(c) && !":*…".contains(c)));
        for name in words.filter(|word| word.starts_with("authfleet_") && word.len() > "authfleet_".len()) {
            let found = match name.split_once(['*', '…']) {
                Some((start, end)) => known.iter().any(|known| known.starts_with(start) && known.ends_with(end)),
                None => ["", "_bucket", "_sum", "_count"]
                    .iter()
                    .any(|end| name.strip_suffix(end).is_some_and(|stem| known.contains(stem))),
            };
            claims.check(document, name, found);
        }
    }
    claims.all_hold(60);
}

#[test]
fn kubernetes_objects_are_in_the_manifests() {
    let yaml =
        |path: &&PathBuf| path.starts_with("k8s") && path.extension().is_some_and(|extension| extension == "yaml");
    let manifests = files().iter().filter(yaml).map(|path| read(path)).collect::<Vec<_>>().join("\n---\n");
    let kinds = [
        ("deployment", "Deployment"),
        ("deploy", "Deployment"),
        ("statefulset", "StatefulSet"),
        ("sts", "StatefulSet"),
        ("service", "Service"),
        ("svc", "Service"),
        ("job", "Job"),
    ];
    let mut claims = Claims::default();
    for document in documents().iter().filter(|document| document.is_current()) {
        for words in document.commands().filter(|words| words.contains(&"kubectl")) {
            for (kind, name) in words.iter().filter_map(|word| word.split_once('/')) {
                let Some((_, kind)) = kinds.iter().find(|(short, _)| *short == kind) else { continue };
                let is_it = |object: &str| {
                    let lines: Vec<_> = object.lines().collect();
                    lines.contains(&format!("kind: {kind}").as_str())
                        && lines.contains(&format!("  name: {name}").as_str())
                };
                claims.check(document, &format!("{kind}/{name}"), manifests.split("\n---\n").any(is_it));
            }
        }
    }
    claims.all_hold(15);
}
