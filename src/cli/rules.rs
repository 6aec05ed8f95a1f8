//! `rules …`.
use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::users::Output;
use super::{USAGE, administer, answer, fail};
use crate::auth::rules::{AccessRules, Allow, Decision, Request};
use crate::auth::target::Targets;
use crate::config::{Config, Site};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show which rule decides about a request, and how. Exit code 0 if the request would be allowed, 1 if not.
    Test {
        /// The request's method, such as GET.
        method: String,
        /// The whole URL, such as `https://app.example.org/admin`.
        url: String,
        /// Decide for this user (id, e-mail address or username) instead of for somebody who isn't signed in.
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Serialize)]
struct Tested<'a> {
    /// The rule's name; absent if none decides.
    rule: Option<&'a str>,
    /// The line of the file at which the rule begins, from 1. 0 without a file.
    line: usize,
    is_allowed: bool,
    why: String,
}

pub(super) fn run(config: Config, command: Command) -> ExitCode {
    let Command::Test { method, url, user, output } = command;
    let Some(targets) = Targets::of(&config.forward_auth) else {
        return fail("PUBLIC_URL is not set, so there is no forward auth", USAGE);
    };
    let scheme = targets.scheme();
    let rules = match AccessRules::open(config.forward_auth.access_rules.as_deref(), targets.protected()) {
        Ok(rules) => rules.current(),
        Err(error) => return fail(format!("ACCESS_RULES: {error}"), USAGE),
    };
    let Some((host, path)) = parts(&url) else {
        return fail(format!("{url:?} is not a URL such as https://app.example.org/admin"), USAGE);
    };
    let Some(site) = Site::parse(host, scheme) else { return fail(format!("{host:?} is not a host"), USAGE) };
    administer(config, async |admin| {
        let who = match &user {
            Some(name) => Some(admin.user(name).await?),
            None => None,
        };
        let decision = rules.decide(Request { method: &method, host: &site, path });
        let tested = match decision {
            Decision::NoRule if targets.protected().include(&site) => {
                Tested { rule: None, line: 0, is_allowed: false, why: "no rule matches".to_owned() }
            }
            Decision::NoRule => {
                Tested { rule: None, line: 0, is_allowed: false, why: format!("{site} is not in PROTECTED_HOSTS") }
            }
            Decision::Refused(why) => Tested { rule: None, line: 0, is_allowed: false, why: format!("the path {why}") },
            Decision::Rule(rule) => {
                let (is_allowed, why) = match (&rule.allow, &who) {
                    (Allow::Anyone, _) => (true, "anyone may go there".to_owned()),
                    (Allow::Nobody, _) => (false, "nobody may go there".to_owned()),
                    (_, None) => (false, "nobody is signed in".to_owned()),
                    (_, Some(user)) if user.disabled_at.is_some() => (false, format!("{} is disabled", user.username)),
                    (Allow::SignedIn, Some(user)) => (true, format!("{} is signed in", user.username)),
                    (Allow::Members(members), Some(user)) => {
                        let is_member = members.include(user.id, &user.username, &user.groups);
                        let groups = if user.groups.is_empty() { "no groups" } else { user.groups.as_str() };
                        let verb = if is_member { "is" } else { "is not" };
                        (is_member, format!("{} ({groups}) {verb} one of those it names", user.username))
                    }
                };
                Tested { rule: Some(&rule.name), line: rule.line, is_allowed, why }
            }
        };
        answer(output.json, &tested, || {
            let verdict = if tested.is_allowed { "allowed" } else { "denied" };
            match tested.rule {
                Some(name) if tested.line > 0 => {
                    format!("{verdict} by {name:?} (line {}): {}", tested.line, tested.why)
                }
                Some(name) => format!("{verdict} by {name:?}: {}", tested.why),
                None => format!("{verdict}: {}", tested.why),
            }
        });
        Ok(if tested.is_allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// The host of a URL, and its path as a client would send it. A URL library would normalise the path.
fn parts(url: &str) -> Option<(&str, &str)> {
    let (_, rest) = url.split_once("://")?;
    let (host, target) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
    let path = target.split(['?', '#']).next().unwrap_or("/");
    (!host.is_empty()).then_some((host, path))
}
