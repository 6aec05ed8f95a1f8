//! See [`authfleet::cli`].
use std::process::ExitCode;

/// It saves an eighth of the CPU time of a session check (`loadtest/bench --against`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    authfleet::cli::main()
}
