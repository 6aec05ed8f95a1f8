//! The sources of values (environment, `.env`, `NAME_FILE`), and the problems found in them.
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use secrecy::SecretSlice;

use super::formats::Format;
use super::table::{VARIABLES, Variable};
use super::{Problem, Warning, parse};

/// The most bytes that are read from a file. No value needs as many, and reading `SESSION_SECRET_FILE=/dev/urandom`
/// must end.
const LARGEST_FILE: u64 = 64 * 1024;
/// The bit of a file's mode that lets every user of the machine read it.
const READABLE_BY_OTHERS: u32 = 0o004;
/// An unknown name that begins with one of these is treated as a mistake.
const OUR_PREFIXES: [&str; 7] = ["SESSION_", "ARGON2_", "HASH_", "PASSWORD_", "LOGIN_", "REGISTRATIONS_", "DRAIN_"];
/// A variable that X11 session managers set.
const NOT_OURS: &str = "SESSION_MANAGER";

/// Everything that a configuration is made from. It has no `Debug`, because it contains secrets.
#[derive(Clone)]
pub(crate) struct Sources {
    /// The environment. Takes precedence over `dotenv`.
    pub(crate) environment: BTreeMap<String, OsString>,
    /// The `.env` file. It need not exist.
    pub(crate) dotenv: Option<PathBuf>,
    /// The host's name, the default of `REPLICA_ID`.
    pub(crate) host_name: String,
    /// Cores that this process may use, the default of `HASH_CONCURRENCY`.
    pub(crate) cores: usize,
    /// Whether standard output is a terminal, which decides the default of `LOG_FORMAT`.
    pub(crate) terminal: bool,
}

impl Sources {
    /// This process's environment, host and standard output, and `.env` in the working directory.
    pub(crate) fn of_process() -> Self {
        Self {
            environment: std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v))).collect(),
            dotenv: Some(PathBuf::from(".env")),
            host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            terminal: io::stdout().is_terminal(),
        }
    }
}

/// Only these variables: no `.env`, the host `localhost`, one core, no terminal.
impl<K: Into<String>, V: Into<OsString>, const N: usize> From<[(K, V); N]> for Sources {
    fn from(variables: [(K, V); N]) -> Self {
        Self {
            environment: variables.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
            dotenv: None,
            host_name: "localhost".to_owned(),
            cores: 1,
            terminal: false,
        }
    }
}

/// The texts found for our variables, and every problem so far.
pub(super) struct Values<'a> {
    pub(super) sources: &'a Sources,
    pub(super) problems: Vec<Problem>,
    found: BTreeMap<&'static str, Found>,
    faulty: BTreeSet<&'static str>,
    unknown: BTreeSet<String>,
    warnings: Vec<Warning>,
}

struct Found {
    text: String,
    /// The variable with where its value came from, for messages.
    label: String,
    /// When the `NAME_FILE` that it came from was last changed.
    file_changed: Option<SystemTime>,
}

impl<'a> Values<'a> {
    pub(super) fn collect(sources: &'a Sources) -> Self {
        let mut values = Self {
            sources,
            problems: Vec::new(),
            found: BTreeMap::new(),
            faulty: BTreeSet::new(),
            unknown: BTreeSet::new(),
            warnings: Vec::new(),
        };
        let dotenv = sources.dotenv.as_deref().map(|path| {
            let (entries, mode) = values.read_dotenv(path);
            (path, entries, mode)
        });
        for variable in VARIABLES.iter() {
            if values.take(variable, &sources.environment, None) {
                continue;
            }
            if let Some((path, entries, mode)) = &dotenv {
                values.take(variable, entries, Some((path, *mode)));
            }
        }
        let names = sources.environment.keys().chain(dotenv.iter().flat_map(|(_, entries, _)| entries.keys()));
        let known = |name: &str| VARIABLES.iter().any(|variable| variable.name == name);
        values.unknown =
            names.filter(|name| !known(name) && !name.strip_suffix("_FILE").is_some_and(known)).cloned().collect();
        values
    }

    /// Looks for the variable in one source, directly or as a file. Returns whether there was anything, valid or not,
    /// because either form in the environment takes precedence over `.env`.
    fn take(
        &mut self,
        variable: &'static Variable,
        source: &BTreeMap<String, OsString>,
        dotenv: Option<(&Path, u32)>,
    ) -> bool {
        let Variable { name, secret, .. } = *variable;
        let get = |name: &str| source.get(name).filter(|value| !value.is_empty());
        let origin = dotenv.map(|(path, _)| format!(" ({})", path.display())).unwrap_or_default();
        let mut readable = None;
        let result = match (get(name), get(&format!("{name}_FILE"))) {
            (None, None) => return false,
            (Some(_), Some(_)) => Err((format!("{name}{origin}"), format!("set both directly and by {name}_FILE"))),
            (Some(value), None) => match value.to_str().ok_or("not UTF-8").and_then(unquoted) {
                Ok(text) => {
                    // An address without a password is no secret.
                    let is_address = ["REDIS_URL", "DATABASE_URL"].contains(&name);
                    readable = dotenv.filter(|_| secret && (!is_address || text.contains('@')));
                    Ok(Found { text: text.to_owned(), label: format!("{name}{origin}"), file_changed: None })
                }
                Err(message) => Err((format!("{name}{origin}"), message.to_owned())),
            },
            (None, Some(path)) => read_value_file(path, secret)
                .map(|(text, mode, file_changed)| {
                    readable = secret.then_some((Path::new(path), mode));
                    let label = format!("{name} (file {})", Path::new(path).display());
                    Found { text, label, file_changed }
                })
                .map_err(|message| (format!("{name}_FILE{origin}"), message)),
        };
        if let Some((path, mode)) = readable.filter(|(_, mode)| mode & READABLE_BY_OTHERS != 0) {
            self.warnings.push(Warning::SecretReadableByOthers { variable: name, path: path.to_owned(), mode });
        }
        match result {
            Ok(found) => drop(self.found.insert(name, found)),
            Err((label, message)) => {
                self.faulty.insert(name);
                self.problems.push(Problem { variable: label, message, accepted: String::new() });
            }
        }
        true
    }

    /// The entries, and the file's mode.
    fn read_dotenv(&mut self, path: &Path) -> (BTreeMap<String, OsString>, u32) {
        let mut entries = BTreeMap::new();
        let mut reject = |place: String, message: String| {
            self.problems.push(Problem { variable: place, message, accepted: String::new() });
        };
        let (text, mode) = match read_text(path) {
            Ok((text, mode, _)) => (text, mode),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return (entries, 0),
            // The directory may not be searched, so nobody can say whether it has the file. Most likely it has none: a
            // service was started from another user's home directory.
            Err(error)
                if path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) =>
            {
                self.warnings.push(Warning::DotenvOutOfReach { path: path.to_owned(), error: error.to_string() });
                return (entries, 0);
            }
            Err(error) => {
                reject(path.display().to_string(), format!("cannot be read: {error}"));
                return (entries, 0);
            }
        };
        for (line, entry) in dotenv_entries(&text) {
            let place = format!("{} line {line}", path.display());
            match entry {
                None => reject(place, "neither NAME=value nor a comment, or a quote that is not closed".to_owned()),
                // Tools disagree about which of the two counts.
                Some((name, _)) if entries.contains_key(&name) => reject(place, format!("{name} is set a second time")),
                Some((name, value)) => drop(entries.insert(name, OsString::from(value))),
            }
        }
        (entries, mode)
    }

    /// The value of a variable with a textual default.
    pub(super) fn read<T>(&mut self, name: &'static str, format: &Format<T>, default: &str) -> T {
        self.read_optional(name, format).unwrap_or_else(|| (format.parse)(default).expect("a default is valid"))
    }

    /// The value. `None` if none is set or a problem was found.
    pub(super) fn read_optional<T>(&mut self, name: &'static str, format: &Format<T>) -> Option<T> {
        let Found { text, label, .. } = self.found.get(name)?;
        match (format.parse)(text) {
            Ok(value) => Some(value),
            Err(message) => {
                let message = if format.secret { message } else { format!("{}: {message}", parse::quoted(text)) };
                let (variable, accepted) = (label.clone(), format.accepted.clone());
                self.problems.push(Problem { variable, message, accepted });
                self.faulty.insert(name);
                None
            }
        }
    }

    /// Computes a default that isn't a text.
    pub(super) fn compute<T>(&mut self, default: impl FnOnce(&mut Self) -> T) -> T {
        default(self)
    }

    /// The default of `REPLICA_ID`.
    pub(super) fn host_name(&mut self) -> String {
        parse::replica_id_of_host(&self.sources.host_name)
            .unwrap_or_else(|| self.reject("REPLICA_ID", "not set, and this host has no name to use instead"))
    }

    /// The default of `SESSION_SECRET`: 256 random bits, as many as a token has.
    pub(super) fn random_secret(&mut self) -> Vec<SecretSlice<u8>> {
        if self.is_set("REDIS_URL") {
            return self.reject("SESSION_SECRET", "not set, but REDIS_URL is: replicas must share a secret");
        }
        let mut key = vec![0; 32];
        match getrandom::fill(&mut key) {
            Ok(()) => vec![SecretSlice::from(key)],
            Err(error) => self.reject("SESSION_SECRET", &format!("none could be made: {error}")),
        }
    }

    /// Whether a value was given, valid or not.
    pub(super) fn is_set(&self, name: &'static str) -> bool {
        self.found.contains_key(name) || self.faulty.contains(name)
    }

    /// Whether no problem was found with any of these.
    pub(super) fn sound(&self, names: &[&'static str]) -> bool {
        names.iter().all(|name| !self.faulty.contains(name))
    }

    /// The secrets that came from a file, and when that was last changed.
    pub(super) fn secret_files(&self) -> Vec<(&'static str, SystemTime)> {
        let secrets = VARIABLES.iter().filter(|variable| variable.secret).map(|variable| variable.name);
        secrets.filter_map(|name| Some((name, self.found.get(name)?.file_changed?))).collect()
    }

    /// Notes a problem, unless the variable already has one, and gives a placeholder to go on with.
    pub(super) fn reject<T: Default>(&mut self, name: &'static str, message: &str) -> T {
        if !self.faulty.insert(name) {
            return T::default();
        }
        let label = self.found.get(name).map_or(name, |found| &found.label).to_owned();
        let accepted = Variable::named(name).accepted.clone();
        self.problems.push(Problem { variable: label, message: message.to_owned(), accepted });
        T::default()
    }

    /// A `.env` that could not be looked for, and unknown names that look as if they were meant for us.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        self.warnings.iter().cloned().chain(self.unknown.iter().filter_map(|name| misspelt(name))).collect()
    }
}

/// A warning about an unknown name that looks as if it was meant for us.
pub(super) fn misspelt(name: &str) -> Option<Warning> {
    let upper = name.to_ascii_uppercase();
    let stem = upper.strip_suffix("_FILE").unwrap_or(&upper);
    let (distance, nearest) =
        VARIABLES.iter().map(|variable| (strsim::osa_distance(stem, variable.name), variable.name)).min()?;
    if distance <= if nearest.len() < 10 { 1 } else { 2 } {
        Some(Warning::UnknownVariable { name: name.to_owned(), meant: Some(nearest) })
    } else if name != NOT_OURS && OUR_PREFIXES.iter().any(|prefix| upper.starts_with(prefix)) {
        Some(Warning::UnknownVariable { name: name.to_owned(), meant: None })
    } else {
        None
    }
}

/// The value in a file or on standard input: without the byte order mark that some editors and shells put first
/// (RFC 3629 §6), and without the newline that `echo` and most editors put last. Everything else is part of it.
///
/// # Errors
///
/// The value is in quotation marks: see [`unquoted`].
pub(crate) fn piped_value(text: &str) -> Result<&str, &'static str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    unquoted(text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line)))
}

/// Refuses a value in quotation marks. A shell or `.env` would have removed them; `docker run --env-file`, Kubernetes
/// and files don't, and they would silently become part of the secret.
fn unquoted(text: &str) -> Result<&str, &'static str> {
    let is_quoted = [('"', '"'), ('\'', '\''), ('\u{201c}', '\u{201d}'), ('\u{2018}', '\u{2019}')]
        .iter()
        .any(|(open, close)| text.strip_prefix(*open).is_some_and(|rest| rest.ends_with(*close)));
    if is_quoted { Err("is in quotation marks, which would be part of it: remove them") } else { Ok(text) }
}

/// The content of a `NAME_FILE`, its mode, and when it was last changed.
pub(super) fn read_value_file(path: &OsStr, secret: bool) -> Result<(String, u32, Option<SystemTime>), String> {
    let path = Path::new(path);
    // The operator may have put the secret itself where its path belongs.
    let shown = if secret && !path.is_absolute() {
        "the file (its relative path is not shown, as it may be the secret itself)".to_owned()
    } else {
        parse::quoted(&path.to_string_lossy())
    };
    let (text, mode, changed) = read_text(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    let text = piped_value(&text).map_err(|message| format!("the value in {shown} {message}"))?;
    // Unlike an empty variable, an empty file is never meant: it is a secret that was not delivered.
    if text.is_empty() { Err(format!("{shown} is empty")) } else { Ok((text.to_owned(), mode, changed)) }
}

fn read_text(path: &Path) -> io::Result<(String, u32, Option<SystemTime>)> {
    let (mut bytes, file) = (Vec::new(), File::open(path)?);
    let metadata = file.metadata()?;
    let (mode, changed) = (metadata.mode(), metadata.modified().ok());
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(io::Error::other("larger than 64 KiB"));
    }
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("not UTF-8"))?;
    Ok((text, mode & 0o777, changed))
}

/// Each entry with the number of its last line; for a malformed one `None`, with the number of its first. dotenvy gets
/// the text line by line, because its own errors have no line number. They quote the line instead, which may hold a
/// secret.
pub(super) fn dotenv_entries(text: &str) -> Vec<(usize, Option<(String, String)>)> {
    // From a reader, dotenvy skips no byte order mark, and takes white space at the end of the file for an open quote.
    let text = format!("{}\n", text.trim_start_matches('\u{feff}').trim_end());
    let lines_read = Cell::new(0);
    let lines = LineByLine { rest: text.as_bytes(), lines_read: &lines_read };
    let mut entries = Vec::new();
    for entry in dotenvy::from_read_iter(lines) {
        let last = lines_read.get();
        entries.push(match entry {
            Ok(entry) => (last, Some(entry)),
            Err(dotenvy::Error::LineParse(lines, _)) => {
                (last - lines.trim_end_matches('\n').matches('\n').count(), None)
            }
            Err(_) => (last, None),
        });
    }
    entries
}

struct LineByLine<'a> {
    rest: &'a [u8],
    lines_read: &'a Cell<usize>,
}

impl Read for LineByLine<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let line = self.rest.iter().position(|byte| *byte == b'\n').map_or(self.rest.len(), |i| i + 1);
        let n = line.min(buffer.len());
        let (now, rest) = self.rest.split_at(n);
        buffer[..n].copy_from_slice(now);
        self.rest = rest;
        if now.ends_with(b"\n") {
            self.lines_read.set(self.lines_read.get() + 1);
        }
        Ok(n)
    }
}
