//! The table of variables as a document: `.env.example`, which `authfleet config --example` prints too.
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use super::table::{DefaultValue, Scope, VARIABLES, Variable};

const INTRODUCTION: &str = "\
# Every variable that authfleet reads, with its default. Copy to .env and uncomment what you change.
#
# The environment goes before .env. Each NAME may instead be given as NAME_FILE, the path of a file with the value,
# for secrets that an orchestrator mounts. An empty value counts as not set. Here, put a value that holds $, #, quotes
# or spaces in 'single quotes'. `authfleet config` prints the values in force, secrets masked.
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
            Scope::Fleet => " The same in every replica.",
            Scope::Store => " The same store for every replica.",
        };
        write!(text, "# {help}{scope}\n# Accepted: {accepted}.\n").expect("writing to memory");
        if variable.secret {
            writeln!(text, "# Secret: {name}_FILE keeps it out of the environment.").expect("writing to memory");
        }
        writeln!(text, "#{name}={value}").expect("writing to memory");
    }
    text
}
