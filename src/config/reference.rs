//! The table of variables as a document: `.env.example`, which `authfleet config --example` prints too.
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use super::table::{DefaultValue, Scope, VARIABLES, Variable};

const INTRODUCTION: &str = "\
# Every variable that authfleet reads, with its default. Copy to .env and uncomment what you change.
#
# The environment takes precedence over .env. Instead of NAME, you can set NAME_FILE to the path of a file that holds
# the value, for secrets that an orchestrator mounts. An empty value counts as not set. In this file, put a value that
# contains $, #, quotes or spaces in 'single quotes'. `authfleet config` prints the values in effect, secrets masked.
";

/// `.env.example`: every variable, commented out, with its default.
pub(crate) fn env_example() -> String {
    let mut text = INTRODUCTION.to_owned();
    for variable in VARIABLES.iter() {
        if let Some(heading) = variable.heading {
            write!(text, "\n# --- {heading} ---\n").expect("writing to memory");
        }
        let Variable { name, accepted, .. } = variable;
        let (default, value) = match variable.default {
            DefaultValue::Text(text) => (String::new(), text),
            DefaultValue::Described(words) => (format!(" Default: {words}."), ""),
        };
        // Backticks are for Markdown.
        let help = format!("{}{default}", variable.help).replace('`', "");
        let scope = match variable.scope {
            Scope::Replica => "",
            Scope::Fleet => " Must be the same in every replica.",
            Scope::Store => " Must be the same store for every replica.",
        };
        write!(text, "# {help}{scope}\n# Accepted: {accepted}.\n").expect("writing to memory");
        if variable.secret {
            writeln!(text, "# Secret: {name}_FILE keeps it out of the environment.").expect("writing to memory");
        }
        writeln!(text, "#{name}={value}").expect("writing to memory");
    }
    text
}
