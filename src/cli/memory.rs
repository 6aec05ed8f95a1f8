//! Keeps the contents of this process's memory private: keys, and passwords that are being verified.
use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Switches core dumps off, and keeps other processes of the same user from reading this one's memory or tracing it
/// (root still can). Setting the limit to 0 is not enough, because the kernel ignores it where it hands dumps to a
/// program such as systemd-coredump.
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
