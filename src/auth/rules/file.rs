//! The file that `ACCESS_RULES` names.
//!
//! ```toml
//! groups = ["admins", "staff"]          # all that the rules name
//!
//! [[rule]]
//! name = "the admin area"               # in metrics and audit events; else "rule 1"
//! hosts = ["app.example.org"]           # out of PROTECTED_HOSTS; all of them if absent
//! paths = ["/admin/*"]                  # all if absent
//! methods = ["GET", "HEAD"]             # all if absent
//! allow = { groups = ["admins"], users = ["ada"] }
//!
//! [[rule]]
//! allow = "signed-in"                   # or "anyone", "nobody"
//! ```
use std::fmt;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::path::PathPattern;
use super::{Allow, Members, Rule};
use crate::auth::hosts::ProtectedHosts;
use crate::config::SitePattern;
use crate::store::users::groups::check_name;
use crate::store::users::login_key;

/// Bytes of a file that are read.
pub(super) const LARGEST_FILE: usize = 256 * 1024;
/// Rules of a file. Each has its own label in metrics.
const MOST_RULES: usize = 500;
/// Characters of a rule's name.
const LONGEST_NAME: usize = 64;

/// Everything that is wrong with a file, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistakes(pub(super) Vec<Mistake>);

/// One mistake, in this line (counted from 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) line: usize,
    pub(super) message: String,
}

impl std::error::Error for Mistakes {}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Mistake { line, message }) in self.0.iter().enumerate() {
            write!(f, "{}line {line}: {message}", if n == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

/// Where a list stands, and each of its entries.
type TextList = Spanned<Vec<Spanned<String>>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    name: Option<Spanned<String>>,
    hosts: Option<TextList>,
    paths: Option<TextList>,
    methods: Option<TextList>,
    allow: Spanned<AllowText>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected \"anyone\", \"signed-in\", \"nobody\" or { users = […], groups = […] }")]
enum AllowText {
    Word(AllowWord),
    Members(MembersText),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum AllowWord {
    Anyone,
    SignedIn,
    Nobody,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MembersText {
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
}

/// Where mistakes are collected.
struct Reader<'a> {
    text: &'a str,
    mistakes: Vec<Mistake>,
    hosts: &'a ProtectedHosts,
    groups: Vec<String>,
}

/// Reads a file.
pub(super) fn parse(text: &str, hosts: &ProtectedHosts) -> Result<Vec<Rule>, Mistakes> {
    let mut reader = Reader { text, mistakes: Vec::new(), hosts, groups: Vec::new() };
    let rules = reader.file();
    if reader.mistakes.is_empty() {
        return Ok(rules);
    }
    reader.mistakes.sort_by_key(|mistake| mistake.line);
    Err(Mistakes(reader.mistakes))
}

impl Reader<'_> {
    fn file(&mut self) -> Vec<Rule> {
        let text = self.text;
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            self.mistake(error.span().unwrap_or_default().start, error.message().to_owned());
        }
        if !self.mistakes.is_empty() {
            return Vec::new();
        }
        let mut rules = Vec::new();
        // The groups first, wherever they stand.
        let mut rest = Vec::new();
        for (key, value) in table.into_inner() {
            let at = value.span().start;
            match key.get_ref().as_ref() {
                "groups" => self.groups(value),
                "rule" => rest.push(value),
                other => self.mistake(at, format!("there is no {other:?}; known are groups and [[rule]]")),
            }
        }
        for value in rest {
            let at = value.span().start;
            let DeValue::Array(array) = value.into_inner() else {
                self.mistake(at, "a rule begins with [[rule]], in two brackets".to_owned());
                continue;
            };
            if array.len() > MOST_RULES {
                self.mistake(at, format!("has {} rules; {MOST_RULES} are allowed", array.len()));
            }
            for rule in array {
                rules.extend(self.rule(rule, rules.len() + 1));
            }
        }
        if rules.is_empty() && self.mistakes.is_empty() {
            self.mistake(0, "has no [[rule]], so it would let nobody in anywhere".to_owned());
        }
        self.find_unreachable(&rules);
        rules
    }

    fn groups(&mut self, value: Spanned<DeValue<'_>>) {
        match read::<Vec<Spanned<String>>>(value) {
            Ok(names) => {
                for name in names {
                    if let Err(why) = check_name(name.get_ref()) {
                        self.mistake(name.span().start, format!("group {:?}: {why}", name.get_ref()));
                    }
                    self.groups.push(name.into_inner());
                }
            }
            Err((at, message)) => self.mistake(at, format!("groups: {message}")),
        }
    }

    fn rule(&mut self, value: Spanned<DeValue<'_>>, number: usize) -> Option<Rule> {
        let begin = value.span().start;
        let RuleText { name, hosts, paths, methods, allow } = match read(value) {
            Ok(rule) => rule,
            Err((at, message)) => {
                self.mistake(if at == 0 { begin } else { at }, message);
                return None;
            }
        };
        let line = self.line_of(begin);
        let name = match name {
            Some(name) if name.get_ref().trim().is_empty() || name.get_ref().chars().count() > LONGEST_NAME => {
                self.mistake(name.span().start, format!("a name has 1 to {LONGEST_NAME} characters"));
                String::new()
            }
            Some(name) if name.get_ref().chars().any(char::is_control) => {
                self.mistake(name.span().start, "a name has no control characters".to_owned());
                String::new()
            }
            Some(name) => name.into_inner(),
            None => format!("rule {number}"),
        };
        let hosts = self.list(hosts, "hosts", Self::host);
        let paths =
            self.list(paths, "paths", |_, text| PathPattern::parse(text).map_err(|why| format!("path {text:?} {why}")));
        let methods = self.list(methods, "methods", |_, text| method(text));
        let at = allow.span().start;
        let allow = self.allow(at, allow.into_inner());
        Some(Rule { name, line, hosts, paths, methods, allow })
    }

    /// Reads a list, of which each entry may have its own mistake. `None` means all; an empty list would mean none,
    /// which is a mistake.
    fn list<T>(
        &mut self,
        list: Option<TextList>,
        name: &str,
        read: impl Fn(&Self, &str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let list = list?;
        let at = list.span().start;
        let list = list.into_inner();
        if list.is_empty() {
            self.mistake(at, format!("{name} = [] matches nothing; leave it out to match all"));
        }
        let mut all = Vec::with_capacity(list.len());
        for text in list {
            match read(self, text.get_ref()) {
                Ok(value) => all.push(value),
                Err(message) => self.mistake(text.span().start, message),
            }
        }
        Some(all)
    }

    fn host(&self, text: &str) -> Result<SitePattern, String> {
        let host = SitePattern::parse(text).map_err(|why| format!("host {text:?} {why}"))?.under(self.hosts.scheme());
        if self.hosts.cover(&host) {
            return Ok(host);
        }
        Err(format!("host {text:?} is not in PROTECTED_HOSTS"))
    }

    fn allow(&mut self, at: usize, allow: AllowText) -> Allow {
        let MembersText { users, groups } = match allow {
            AllowText::Word(AllowWord::Anyone) => return Allow::Anyone,
            AllowText::Word(AllowWord::SignedIn) => return Allow::SignedIn,
            AllowText::Word(AllowWord::Nobody) => return Allow::Nobody,
            AllowText::Members(members) => members,
        };
        if users.is_empty() && groups.is_empty() {
            self.mistake(at, "allow names neither users nor groups; \"nobody\" says that plainly".to_owned());
        }
        for group in &groups {
            if !self.groups.contains(group) {
                self.mistake(at, format!("unknown group {group:?}: name it in groups = […] at the top"));
            }
        }
        let mut members = Members { ids: Vec::new(), names: Vec::new(), groups };
        for user in users {
            match user.parse() {
                Ok(id) => members.ids.push(id),
                Err(_) if user.trim().is_empty() || user.contains('@') => {
                    self.mistake(at, format!("user {user:?} is neither a username nor a user id"));
                }
                Err(_) => members.names.push(login_key(&user)),
            }
        }
        Allow::Members(members)
    }

    /// A rule whose every host, path and method is matched by rules before it never decides.
    fn find_unreachable(&mut self, rules: &[Rule]) {
        for (n, rule) in rules.iter().enumerate() {
            let (before, at) = (&rules[..n], rule.line);
            if let Some(first) = rule.hidden_by(before) {
                let message =
                    format!("{:?} is never reached: {:?} in line {} comes first", rule.name, first.name, first.line);
                self.mistakes.push(Mistake { line: at, message });
            } else if before.iter().any(|other| other.name == rule.name) {
                self.mistakes.push(Mistake { line: at, message: format!("two rules have the name {:?}", rule.name) });
            }
        }
    }

    fn mistake(&mut self, at: usize, message: String) {
        let line = self.line_of(at);
        self.mistakes.push(Mistake { line, message });
    }

    fn line_of(&self, at: usize) -> usize {
        self.text.get(..at).unwrap_or(self.text).matches('\n').count() + 1
    }
}

/// A value by serde, or where its first mistake is.
fn read<'a, T: Deserialize<'a>>(value: Spanned<DeValue<'a>>) -> Result<T, (usize, String)> {
    use serde::de::IntoDeserializer as _;

    let at = value.span().start;
    T::deserialize(value.into_deserializer())
        .map_err(|error| (error.span().map_or(at, |span| span.start), error.message().to_owned()))
}

/// A method is a token (RFC 9110, section 9.1), in upper case as all that are in use.
fn method(text: &str) -> Result<String, String> {
    let is_method =
        (1..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
    if is_method { Ok(text.to_owned()) } else { Err(format!("method {text:?} is not written like GET")) }
}
