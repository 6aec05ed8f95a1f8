//! Processes that end with the test.
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
#[cfg(target_os = "linux")]
use rustix::thread::{CpuSet, sched_getaffinity};

use super::PATIENTLY;

/// A child process, killed when dropped. Its output goes to files; if the test fails, they are printed.
pub struct Process {
    child: Child,
    name: String,
    output: PathBuf,
}

impl Process {
    /// Starts `command`. Its standard output is appended to `output`, and its standard error to `errors`.
    pub fn spawn(name: &str, command: &mut Command, output: &Path, errors: &Path) -> Self {
        Self::spawn_into(name, command, output, append(output), append(errors))
    }

    /// Starts `command` with these streams. A failed test prints the files in `output`.
    pub fn spawn_into(
        name: &str,
        command: &mut Command,
        output: &Path,
        stdout: impl Into<Stdio>,
        stderr: impl Into<Stdio>,
    ) -> Self {
        let program = command.get_program().to_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap_or_else(|error| panic!("{} must be installed: {error}", program.display()));
        Self { child, name: name.to_owned(), output: output.to_owned() }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// The names of its threads, and the CPUs that each may use.
    #[cfg(target_os = "linux")]
    pub fn threads(&self) -> Vec<(String, CpuSet)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("its threads");
        // A thread may end meanwhile.
        let thread = |task: fs::DirEntry| {
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            let id = task.file_name().to_str()?.parse().ok()?;
            Some((name.trim_end().to_owned(), sched_getaffinity(Pid::from_raw(id)).ok()?))
        };
        tasks.filter_map(|task| thread(task.expect("a thread"))).collect()
    }

    /// Its exit status. `None` while it runs.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for it to end by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.status() {
                return status;
            }
            assert!(begin.elapsed() < PATIENTLY, "{} did not end within {PATIENTLY:?}", self.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kills it with SIGKILL, which also works on a stopped process.
    pub fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- output of {} (pid {}) ---\n{}", self.name, self.child.id(), read(&self.output));
        }
    }
}

fn append(path: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text of a file. Empty if it doesn't exist yet.
pub fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// The binary, with only these variables.
pub fn binary(directory: &Path, settings: &BTreeMap<String, String>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_authfleet"));
    command.env_clear().envs(settings).current_dir(directory);
    command
}

/// The user `nobody` of every Linux.
pub const NOBODY: u32 = 65534;

/// The binary, run by a user who isn't root. If tests run as root, as in containers, `nobody` runs a copy in
/// `directory`, since that user may not have access to the build's directory.
pub fn unprivileged(directory: &Path) -> Command {
    let original = Path::new(env!("CARGO_BIN_EXE_authfleet"));
    let mut command = if rustix::process::getuid().is_root() {
        let copy = directory.join("authfleet");
        if !copy.exists() {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("an own directory");
            // Copied by another process. If this one opened the file for writing, a child that another test starts
            // meanwhile would inherit it, and Linux doesn't run a file that is open for writing.
            let copied = Command::new("cp").arg(original).arg(&copy).status().expect("cp runs");
            assert!(copied.success(), "the binary can't be copied");
        }
        // Without groups, as in a container.
        let mut command = Command::new("setpriv");
        let nobody = NOBODY.to_string();
        command.args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"]).arg(copy);
        command
    } else {
        Command::new(original)
    };
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// The result of a command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code. `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Runs a command to its end, without input.
    pub fn of(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output().expect("the command runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Fails the test if the exit code is a different one.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Parses standard output as JSON, or standard error if there is no output.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let text = if self.stdout.trim().is_empty() { &self.stderr } else { &self.stdout };
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

/// Runs the binary in `directory` until it ends, with only these variables.
pub async fn authfleet(directory: &Path, arguments: &[&str], settings: &BTreeMap<String, String>) -> Finished {
    authfleet_with_errors_to(None, directory, arguments, settings).await
}

/// As [`authfleet`], with standard error going to any stream.
pub async fn authfleet_with_errors_to(
    stderr: Option<Stdio>,
    directory: &Path,
    arguments: &[&str],
    settings: &BTreeMap<String, String>,
) -> Finished {
    static RUNS: AtomicU64 = AtomicU64::new(1);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let [output, errors] = ["stdout", "stderr"].map(|stream| directory.join(format!("run-{run}.{stream}")));
    let name = format!("authfleet {}", arguments.join(" "));
    let mut command = binary(directory, settings);
    let stderr = stderr.unwrap_or_else(|| append(&errors).into());
    let mut process = Process::spawn_into(&name, command.args(arguments), &output, append(&output), stderr);
    // Closes the stream's other end, which the command holds open.
    drop(command);
    let status = process.ended().await;
    assert!(status.code().is_some(), "{name} was ended by signal {:?}", status.signal());
    Finished { code: status.code(), stdout: read(&output), stderr: read(&errors) }
}
