//! Tests which module may use which. The order is the table in this crate's documentation (`lib.rs`), which
//! `ARCHITECTURE.md` shows too: a module uses only those below it. Sibling modules must not use each other in a circle.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Known violations. An entry that is no longer needed fails the test, so that it gets removed.
const KNOWN: &[(&str, &str)] = &[];

/// Crates that only these modules may name, with what they are used for.
const ROOMS: &[(&str, &[&str], &str)] = &[
    ("clap", &["cli"], "the command line"),
    ("axum", &["http", "server"], "routes, handlers, layers"),
    ("utoipa", &["http"], "the OpenAPI document"),
    ("hyper", &["server", "cli"], "connections; the health check's request"),
    ("argon2", &["auth"], "password hashes"),
    ("paced_argon2", &["auth"], "filling Argon2's memory a stretch at a time"),
    ("bcrypt", &["auth"], "password hashes of other systems"),
    ("sqlx", &["store", "cli"], "users; `import` reads another system's table"),
    ("redis", &["store", "cli"], "sessions, throttle; `doctor`"),
    ("rustls", &["store"], "TLS to Redis"),
    ("deadpool", &["store"], "connections to PostgreSQL"),
    ("opentelemetry", &["telemetry"], "traces"),
];
const BEGIN: &str = "<!-- From src/lib.rs and src/architecture.rs; `make docs` writes it anew. -->\n";
const END: &str = "<!-- End of what is from src/lib.rs and src/architecture.rs. -->\n";

/// Pairs of sibling modules, by path, of which the first uses the second, with one file that shows it.
type Arrows = BTreeMap<(String, String), PathBuf>;

#[test]
fn arrows_between_modules_point_downwards() {
    let order = order();
    let mut upward = BTreeSet::new();
    for ((from, to), file) in arrows() {
        if from.contains("::") {
            continue;
        }
        let place = |name: &str| {
            let place = order.iter().position(|(module, _)| module == name);
            place.unwrap_or_else(|| panic!("{name} is missing from the table of modules in src/lib.rs"))
        };
        if place(&from) > place(&to) && !is_known(&from, &to) {
            upward.insert(format!("{from} uses {to}, which is above it: {}", file.display()));
        }
    }
    assert!(upward.is_empty(), "{upward:#?}");
}

#[test]
fn no_circle_among_modules_beside_each_other() {
    let arrows = arrows();
    assert!(arrows.len() > 60, "only {} arrows were found", arrows.len());
    let circles: Vec<_> = arrows
        .iter()
        .filter(|((from, to), _)| leads(&arrows, to, from) && !is_known(from, to) && !is_known(to, from))
        .collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn what_is_still_to_be_put_right_is_there() {
    let arrows = arrows();
    for (from, to) in KNOWN {
        let arrow = ((*from).to_owned(), (*to).to_owned());
        assert!(arrows.contains_key(&arrow), "{from} doesn't use {to} any more: take it out of KNOWN");
    }
}

#[test]
fn crates_are_named_in_their_rooms_alone() {
    let files = files(&sources());
    for (name, rooms, _) in ROOMS {
        let mut named = BTreeSet::new();
        for (module, file) in &files {
            let code = code(&fs::read_to_string(file).expect("a source file"));
            // Skips a module of ours with the same name, which has a path before it.
            let is_named = code.match_indices(&format!("{name}::")).any(|(place, _)| {
                let before = code[..place].strip_suffix("::").unwrap_or(&code[..place]).chars().next_back();
                before.is_none_or(|c| !c.is_alphanumeric() && c != '_')
            });
            if is_named {
                assert!(rooms.contains(&module[0].as_str()), "{} names the crate {name}", file.display());
                named.insert(module[0].as_str());
            }
        }
        assert_eq!(named.len(), rooms.len(), "{name} is named in {named:?} alone");
    }
}

#[test]
fn the_document_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = fs::read_to_string(&path).expect("ARCHITECTURE.md");
    let (before, rest) = text.split_once(BEGIN).expect("the place where the tables begin");
    let (_, after) = rest.split_once(END).expect("the place where they end");
    let current = format!("{before}{BEGIN}\n{}\n{END}{after}", tables());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path, current).expect("ARCHITECTURE.md is written");
        return;
    }
    assert!(
        text == current,
        "ARCHITECTURE.md is out of date: `make docs`, or UPDATE_DOCS=1 cargo test --lib architecture"
    );
}

/// The two tables for `ARCHITECTURE.md`: the modules, and the crates that only some modules may name.
fn tables() -> String {
    let arrows = arrows();
    let mut text = "| module | what it is about | uses |\n| --- | --- | --- |\n".to_owned();
    let order = order();
    for (module, about) in &order {
        let uses: Vec<_> = order
            .iter()
            .filter(|(other, _)| arrows.contains_key(&(module.clone(), other.clone())))
            .map(|(other, _)| format!("`{other}`"))
            .collect();
        writeln!(text, "| `{module}` | {about} | {} |", uses.join(", ")).expect("writing to memory");
    }
    text.push_str("\n| crate | named only in | for |\n| --- | --- | --- |\n");
    for (name, rooms, purpose) in ROOMS {
        let rooms: Vec<_> = rooms.iter().map(|room| format!("`{room}`")).collect();
        writeln!(text, "| `{name}` | {} | {purpose} |", rooms.join(", ")).expect("writing to memory");
    }
    text
}

fn is_known(from: &str, to: &str) -> bool {
    KNOWN.contains(&(from, to))
}

/// Whether the arrows lead from `from` to `to`.
fn leads(arrows: &Arrows, from: &str, to: &str) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(module) = next.pop() {
        if module == to {
            return true;
        }
        if seen.insert(module) {
            next.extend(arrows.keys().filter(|(start, _)| start == module).map(|(_, end)| end.as_str()));
        }
    }
    false
}

/// The modules in the order of the table, highest first, each with its description.
fn order() -> Vec<(String, String)> {
    let text = include_str!("lib.rs");
    let (_, rest) = text.split_once("//! ```text\n").expect("the table of modules");
    let (table, _) = rest.split_once("//! ```").expect("its end");
    let rows = table.lines().filter_map(|line| line.strip_prefix("//! ")?.split_once(' '));
    rows.map(|(module, about)| (module.to_owned(), about.trim().to_owned())).collect()
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn arrows() -> Arrows {
    let files = files(&sources());
    let mut arrows = Arrows::new();
    for (module, file) in &files {
        for path in paths(&fs::read_to_string(file).expect("a source file")) {
            let Some(used) = resolve(module, &path, &files) else { continue };
            // The arrow is between siblings: the level at which the two paths part. A module and those within it may
            // use each other.
            let shared = module.iter().zip(&used).take_while(|(a, b)| a == b).count();
            if shared < module.len() && shared < used.len() {
                let arrow = (module[..=shared].join("::"), used[..=shared].join("::"));
                arrows.entry(arrow).or_insert_with(|| file.clone());
            }
        }
    }
    arrows
}

/// Each module's path with its file, without the modules that stand above all others.
fn files(root: &Path) -> BTreeMap<Vec<String>, PathBuf> {
    let (mut found, mut directories) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let name = path.strip_prefix(root).expect("a path below").with_extension("");
            let mut module: Vec<_> = name.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            module.pop_if(|last| last == "mod");
            if !matches!(module[0].as_str(), "lib" | "main" | "architecture") {
                found.insert(module, path);
            }
        }
    }
    found
}

/// The module that a path such as `crate::store::User` or `super::parse` leads to.
fn resolve(at: &[String], path: &[String], files: &BTreeMap<Vec<String>, PathBuf>) -> Option<Vec<String>> {
    let mut module = if path[0] == "crate" { Vec::new() } else { at.to_owned() };
    for part in path {
        match part.as_str() {
            "crate" | "self" => {}
            "super" => drop(module.pop()),
            name => {
                let inner = [&module[..], &[name.to_owned()]].concat();
                if !files.contains_key(&inner) {
                    break;
                }
                module = inner;
            }
        }
    }
    (!module.is_empty()).then_some(module)
}

/// Every path in the text that begins with `crate`, `super` or `self`; `use a::{b, c::d}` gives one for each leaf.
fn paths(text: &str) -> Vec<Vec<String>> {
    let code = code(text);
    let mut found = Vec::new();
    for start in ["crate", "super", "self"] {
        for (place, _) in code.match_indices(&format!("{start}::")) {
            // Skips the end of another word, and the middle of a path that was found from its beginning.
            let before = code[..place].chars().next_back();
            if before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':') {
                branches(&code[place..], &mut Vec::new(), &mut found);
            }
        }
    }
    found
}

/// The text without the lines that are comments.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Adds to `found` the paths of one tree in the syntax of `use`. Returns the text after the tree.
fn branches<'a>(text: &'a str, stem: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> &'a str {
    let mut text = text.trim_start();
    if let Some(rest) = text.strip_prefix('{') {
        text = rest.trim_start();
        while !text.starts_with('}') && !text.is_empty() {
            text = branches(text, stem, found).trim_start();
            // Skips `as other` and the comma.
            let end = text.find([',', '}']).unwrap_or(text.len());
            text = text[end..].trim_start_matches(',').trim_start();
        }
        return text.strip_prefix('}').unwrap_or(text);
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        found.push(stem.clone());
        return &text[text.chars().next().map_or(0, char::len_utf8)..];
    }
    stem.push(name.to_owned());
    let rest = if let Some(inner) = rest.strip_prefix("::") {
        branches(inner, stem, found)
    } else {
        found.push(stem.clone());
        rest
    };
    stem.pop();
    rest
}

#[test]
fn paths_are_found_in_every_form() {
    let joined = |text: &str| paths(text).iter().map(|path| path.join("::")).collect::<BTreeSet<_>>();
    let text = "use crate::a::{b::{self, C}, d as e, f::*};\n//! crate::not\nlet x = super::g::h(crate::i::J { k });\n\
                impl super::super::L for m::crate_::n {}\n";
    let expected = [
        "crate::a::b::self",
        "crate::a::b::C",
        "crate::a::d",
        "crate::a::f",
        "super::g::h",
        "crate::i::J",
        "super::super::L",
    ];
    assert_eq!(joined(text), expected.map(str::to_owned).into());
}
