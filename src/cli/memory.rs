//! What is in this process's memory stays there: keys, and passwords that are being verified.
use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Switches core dumps off, and keeps other processes of the same user from reading this one's memory or tracing it
/// (root still can). The limit alone wouldn't do where the kernel hands dumps to a program, as systemd-coredump: for
/// those it doesn't count.
///
/// # Errors
///
/// When the system refuses.
pub(super) fn keep_private() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}
