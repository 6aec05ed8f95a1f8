//! Who may go where: the rules of `ACCESS_RULES`.
//!
//! The first rule that matches a request's host, path and method decides. If none matches, nobody gets in. Without a
//! file, whoever is signed in may go to `PROTECTED_HOSTS`.
mod file;
mod path;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use metrics::{Counter, counter, gauge};
use parking_lot::RwLock;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

pub(crate) use self::file::Mistakes;
pub(crate) use self::path::Ambiguous;
use self::path::{PathPattern, Readings};
use super::hosts::ProtectedHosts;
use crate::config::{Site, SitePattern};
use crate::metrics::{ACCESS_DECISIONS, ACCESS_RULES_INFO, ACCESS_RULES_RELOADS};
use crate::store::users::groups::Groups;
use crate::store::users::login_key;

/// What a rule says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Allow {
    Anyone,
    SignedIn,
    Nobody,
    Members(Members),
}

/// Users and groups. Whoever is one of the users or in one of the groups gets in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Members {
    ids: Vec<Uuid>,
    /// In the form in which names are compared.
    names: Vec<String>,
    groups: Vec<String>,
}

impl Members {
    pub(crate) fn include(&self, id: Uuid, username: &str, groups: &Groups) -> bool {
        self.ids.contains(&id)
            || self.groups.iter().any(|group| groups.contains(group))
            || (!self.names.is_empty() && self.names.contains(&login_key(username)))
    }
}

/// One rule. A list that is absent matches everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) name: String,
    /// Where it begins in the file, from 1.
    pub(crate) line: usize,
    hosts: Option<Vec<SitePattern>>,
    paths: Option<Vec<PathPattern>>,
    methods: Option<Vec<String>>,
    pub(crate) allow: Allow,
}

impl Rule {
    fn is_about(&self, method: &str, host: &Site) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.iter().any(|known| known == method))
            && self.hosts.as_ref().is_none_or(|hosts| hosts.iter().any(|known| known.matches(host)))
    }

    /// The rule out of `before` that hides this one: together they match all that this one matches.
    fn hidden_by<'a>(&self, before: &'a [Self]) -> Option<&'a Self> {
        fn each<T>(list: Option<&Vec<T>>) -> Vec<Option<&T>> {
            list.map_or_else(|| vec![None], |all| all.iter().map(Some).collect())
        }
        let mut first = None;
        for host in each(self.hosts.as_ref()) {
            for path in each(self.paths.as_ref()) {
                for method in each(self.methods.as_ref()) {
                    let hides = |other: &&Self| {
                        covers(other.hosts.as_ref(), host, SitePattern::covers)
                            && covers(other.paths.as_ref(), path, PathPattern::covers)
                            && covers(other.methods.as_ref(), method, PartialEq::eq)
                    };
                    let found = before.iter().find(hides)?;
                    first.get_or_insert(found);
                }
            }
        }
        first
    }
}

/// Whether a list matches all that one entry of another matches; `None` is everything.
fn covers<T>(list: Option<&Vec<T>>, entry: Option<&T>, one: impl Fn(&T, &T) -> bool) -> bool {
    match (list, entry) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(list), Some(entry)) => list.iter().any(|known| one(known, entry)),
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) host: &'a Site,
    /// As sent, without the query.
    pub(crate) path: &'a str,
}

/// What the rules say about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision<'a> {
    Rule(&'a Rule),
    /// None matches, so nobody gets in.
    NoRule,
    /// A rule about paths would decide, and the path is not one that every program reads alike.
    Refused(Ambiguous),
}

/// What came of a request, as a label in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Allowed,
    /// Nobody is signed in.
    SignIn,
    Denied,
    /// The store didn't answer.
    Unavailable,
}

/// Rules that were read together.
#[derive(Debug)]
pub(crate) struct Rules {
    /// In the order of the file.
    all: Vec<Rule>,
    counters: Vec<[Counter; 4]>,
    no_rule: Counter,
    refused: Counter,
    hosts: ProtectedHosts,
    /// Eight hexadecimal digits, which are equal in replicas with the same file.
    digest: String,
}

impl Rules {
    /// Reads the text of a file.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it, each with its line.
    pub(crate) fn parse(text: &str, hosts: &ProtectedHosts) -> Result<Self, Mistakes> {
        let rules = file::parse(text, hosts)?;
        Ok(Self::new(rules, hosts, hex::encode(&Sha256::digest(text)[..4])))
    }

    /// Without a file: whoever is signed in.
    fn signed_in(hosts: &ProtectedHosts) -> Self {
        let rule = Rule {
            name: "signed-in".to_owned(),
            line: 0,
            hosts: None,
            paths: None,
            methods: None,
            allow: Allow::SignedIn,
        };
        Self::new(vec![rule], hosts, "none".to_owned())
    }

    fn new(rules: Vec<Rule>, hosts: &ProtectedHosts, digest: String) -> Self {
        let counted = |rule: &str, decision: &'static str| counter!(ACCESS_DECISIONS, "rule" => rule.to_owned(), "decision" => decision);
        let of_rule =
            |rule: &Rule| ["allowed", "sign_in", "denied", "unavailable"].map(|decision| counted(&rule.name, decision));
        Self {
            counters: rules.iter().map(of_rule).collect(),
            all: rules,
            no_rule: counted("none", "denied"),
            refused: counted("none", "refused"),
            hosts: hosts.clone(),
            digest,
        }
    }

    /// How many there are, and the digest of their file.
    pub(crate) fn summary(&self) -> String {
        format!("{} rules, digest {}", self.all.len(), self.digest)
    }

    /// The rule that decides.
    pub(crate) fn decide(&self, request: Request<'_>) -> Decision<'_> {
        if !self.hosts.include(request.host) {
            return Decision::NoRule;
        }
        let mut candidates = self.all.iter().filter(|rule| rule.is_about(request.method, request.host)).peekable();
        match candidates.peek() {
            None => return Decision::NoRule,
            // The path says nothing here, so it may be any.
            Some(first) if first.paths.is_none() => return Decision::Rule(first),
            Some(_) => {}
        }
        let readings = match Readings::of(request.path) {
            Ok(readings) => readings,
            Err(why) => return Decision::Refused(why),
        };
        let candidates: Vec<_> = candidates.collect();
        let mut decisions = readings.iter().map(|reading| {
            let matches = |rule: &&&Rule| {
                rule.paths.as_ref().is_none_or(|paths| paths.iter().any(|pattern| pattern.matches(reading)))
            };
            candidates.iter().find(matches).copied()
        });
        let decision = decisions.next().flatten();
        if decisions.any(|other| other != decision) {
            return Decision::Refused(Ambiguous::Readings);
        }
        decision.map_or(Decision::NoRule, Decision::Rule)
    }

    /// Counts what came of a decision.
    pub(crate) fn count(&self, decision: Decision<'_>, outcome: Outcome) {
        match decision {
            Decision::NoRule => self.no_rule.increment(1),
            Decision::Refused(_) => self.refused.increment(1),
            Decision::Rule(rule) => {
                let at = self.all.iter().position(|known| std::ptr::eq(known, rule));
                if let Some(counters) = at.and_then(|at| self.counters.get(at)) {
                    counters[outcome as usize].increment(1);
                }
            }
        }
    }
}

/// Why rules could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RulesError {
    #[error("{path}: {source}", path = path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path} is larger than {limit} bytes", path = path.display(), limit = file::LARGEST_FILE)]
    TooLarge { path: PathBuf },
    #[error("{path} has mistakes:\n{mistakes}", path = path.display())]
    Mistakes { path: PathBuf, mistakes: Mistakes },
}

/// The rules in force. A reload puts others in their place, all or none.
#[derive(Debug)]
pub(crate) struct AccessRules {
    path: Option<PathBuf>,
    hosts: ProtectedHosts,
    current: RwLock<Arc<Rules>>,
}

impl AccessRules {
    /// Reads the file of `ACCESS_RULES`, if there is one.
    ///
    /// # Errors
    ///
    /// [`RulesError`]: everything that is wrong with the file.
    pub(crate) fn open(path: Option<&Path>, hosts: &ProtectedHosts) -> Result<Self, RulesError> {
        let rules = read(path, hosts)?;
        let (path, hosts) = (path.map(Path::to_owned), hosts.clone());
        let opened = Self { path, hosts, current: RwLock::new(Arc::new(rules)) };
        opened.state(None);
        Ok(opened)
    }

    pub(crate) fn current(&self) -> Arc<Rules> {
        Arc::clone(&self.current.read())
    }

    /// Reads the file again. A file with mistakes changes nothing.
    pub(crate) fn reload(&self) {
        let Some(path) = &self.path else {
            tracing::info!("SIGHUP: there are no ACCESS_RULES to read again");
            return;
        };
        match read(Some(path), &self.hosts) {
            Ok(rules) => {
                let before = std::mem::replace(&mut *self.current.write(), Arc::new(rules));
                self.state(Some(&before.digest));
                counter!(ACCESS_RULES_RELOADS, "result" => "success").increment(1);
                let now = self.current();
                tracing::info!(path = %path.display(), rules = now.all.len(), digest = now.digest, "access rules read again");
            }
            Err(error) => {
                counter!(ACCESS_RULES_RELOADS, "result" => "failure").increment(1);
                tracing::error!(error = error.to_string(), "access rules not read again: the old ones stay in force");
            }
        }
    }

    /// Shows which file is in force, so that replicas with other rules are noticed.
    fn state(&self, before: Option<&str>) {
        if let Some(before) = before {
            gauge!(ACCESS_RULES_INFO, "digest" => before.to_owned()).set(0);
        }
        gauge!(ACCESS_RULES_INFO, "digest" => self.current().digest.clone()).set(1);
    }
}

fn read(path: Option<&Path>, hosts: &ProtectedHosts) -> Result<Rules, RulesError> {
    use std::io::Read as _;

    let Some(path) = path else { return Ok(Rules::signed_in(hosts)) };
    let limit = file::LARGEST_FILE as u64 + 1;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(limit).read_to_string(&mut text))
        .map_err(|source| RulesError::Unreadable { path: path.into(), source })?;
    if text.len() as u64 >= limit {
        return Err(RulesError::TooLarge { path: path.into() });
    }
    Rules::parse(&text, hosts).map_err(|mistakes| RulesError::Mistakes { path: path.into(), mistakes })
}
