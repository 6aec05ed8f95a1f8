//! Reads what an operator types or pipes in: passwords, cookies, confirmations. Questions go to standard error.
use std::io::{self, IsTerminal as _, Read as _, Write as _};

use secrecy::ExposeSecret as _;
use secrecy::{SecretSlice, SecretString};

use crate::config::piped_value;

/// The most bytes that are read: more than any password or cookie needs.
const LIMIT: usize = 4096;

/// Asks for a new password twice, without echo, on a terminal. Otherwise reads it from standard input
/// ([`piped_value`]).
///
/// # Errors
///
/// A message for the operator. It never contains any part of the input.
pub(super) fn new_password() -> Result<SecretString, String> {
    if !io::stdin().is_terminal() {
        return secret_from_stdin("password");
    }
    let password = hidden("New password: ")?;
    let again = hidden("Repeat the password: ")?;
    if password.expose_secret() == again.expose_secret() {
        Ok(password)
    } else {
        Err("the two passwords differ".to_owned())
    }
}

/// Asks for a secret without echo on a terminal. Otherwise reads it from standard input ([`piped_value`]).
///
/// # Errors
///
/// As [`new_password`].
pub(super) fn secret(what: &str) -> Result<SecretString, String> {
    if io::stdin().is_terminal() { hidden(&format!("{what}: ")) } else { secret_from_stdin(what) }
}

fn hidden(question: &str) -> Result<SecretString, String> {
    rpassword::prompt_password(question).map(SecretString::from).map_err(|error| format!("the terminal: {error}"))
}

fn secret_from_stdin(what: &str) -> Result<SecretString, String> {
    // Allocated at its full size: a buffer that grows leaves copies behind, which are never wiped.
    let mut bytes = Vec::with_capacity(LIMIT + 1);
    let limit = u64::try_from(LIMIT + 1).expect("a small number");
    let read = io::stdin().lock().take(limit).read_to_end(&mut bytes);
    let bytes = SecretSlice::from(bytes);
    read.map_err(|error| format!("standard input: {error}"))?;
    let text = std::str::from_utf8(bytes.expose_secret()).map_err(|_| format!("the {what} is not UTF-8"))?;
    let line = piped_value(text).map_err(|message| format!("the {what} on standard input {message}"))?;
    match line {
        "" => Err(format!("no {what} on standard input")),
        _ if text.len() > LIMIT => Err(format!("the {what} on standard input is longer than {LIMIT} bytes")),
        _ if line.contains('\n') => Err(format!("standard input has more than one line, and the {what} is one")),
        _ => Ok(line.into()),
    }
}

/// Asks for confirmation. `None` without a terminal.
pub(super) fn confirmed(question: &str) -> Option<bool> {
    if !io::stdin().is_terminal() {
        return None;
    }
    eprint!("{question} [y/N] ");
    drop(io::stderr().flush());
    let mut answer = String::new();
    drop(io::stdin().read_line(&mut answer));
    Some(matches!(answer.trim(), "y" | "Y" | "yes"))
}
