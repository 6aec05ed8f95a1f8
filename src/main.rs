//! See [`authfleet::cli`].
use std::process::ExitCode;

/// A session check allocates some dozens of times, and another thread frees most of it. This allocator saves an eighth of a
/// check's CPU time over glibc's (`loadtest/bench --against`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    authfleet::cli::main()
}
