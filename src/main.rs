//! See [`authfleet::cli`].
use std::process::ExitCode;

fn main() -> ExitCode {
    authfleet::cli::main()
}
