//! The fleet of `make demo` with the binary under test: nginx, Redis and replicas as they ship, on free ports.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use super::client::{Call, http};

/// A running demo. It is stopped when dropped.
pub struct Demo {
    directory: tempfile::TempDir,
    url: String,
    applications: Vec<String>,
    http: reqwest::Client,
}

impl Demo {
    /// Starts a demo, with these variables for the replicas.
    pub fn start(replicas: usize, variables: &[(&str, &str)]) -> Self {
        let variables: Vec<String> = variables.iter().map(|(name, value)| format!("--env={name}={value}")).collect();
        Self::start_as(replicas, &variables)
    }

    /// Starts a demo with two applications behind nginx, which ask the replicas.
    pub fn start_with_applications(replicas: usize) -> Self {
        Self::start_as(replicas, &["--apps".to_owned()])
    }

    fn start_as(replicas: usize, options: &[String]) -> Self {
        let directory = tempfile::Builder::new().prefix("demo-").tempdir().expect("a temporary directory");
        let mut up = script(directory.path(), "up");
        // From here on, a failure stops what was started, because `demo` is dropped.
        let mut demo = Self { directory, url: String::new(), applications: Vec::new(), http: http() };
        up.args(["--json", "--auto-ports", "--replicas", &replicas.to_string()]);
        up.args(options);
        let done = run(&mut up);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let addresses: Value = serde_json::from_slice(&done.stdout).expect("JSON");
        addresses["nginx"].as_str().expect("nginx's address").clone_into(&mut demo.url);
        let applications = addresses["applications"].as_object().expect("applications");
        demo.applications =
            applications.values().map(|url| url.as_str().expect("a URL").replace("http://", "")).collect();
        demo
    }

    /// Tries to start a demo on the ports that `environment` names.
    pub fn try_start(environment: &[(&str, String)]) -> Output {
        let directory = tempfile::Builder::new().prefix("demo-").tempdir().expect("a temporary directory");
        let done = run(script(directory.path(), "up").envs(environment.iter().cloned()));
        if done.status.success() {
            run(&mut script(directory.path(), "down"));
        }
        done
    }

    /// Runs one of `fleet.py`'s commands for a part: `kill`, `start` and so on.
    pub fn part(&self, command: &str, part: &str) {
        let done = run(script(self.directory.path(), command).arg(part));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Starts nginx again with its log in a pipe, as in a container. Returns the end to read from.
    #[cfg(target_os = "linux")]
    pub fn nginx_into_a_pipe(&self) -> tokio::net::unix::pipe::Receiver {
        use tokio::net::unix::pipe;

        self.part("stop", "nginx");
        let log = self.log_path("access");
        std::fs::remove_file(&log).expect("removed");
        assert!(run(Command::new("mkfifo").arg(&log)).status.success(), "a pipe");
        // Open for writing too, so that opening it doesn't wait for nginx.
        let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(&log).expect("a pipe");
        self.part("start", "nginx");
        receiver
    }

    /// Host and port of nginx.
    pub fn address(&self) -> &str {
        self.url.strip_prefix("http://").expect("an http URL")
    }

    /// The host of the pages in a browser, `localhost:PORT`.
    pub fn host(&self) -> String {
        self.address().replace("127.0.0.1", "localhost")
    }

    /// The hosts of the applications, if there are any.
    pub fn applications(&self) -> &[String] {
        &self.applications
    }

    /// A request to nginx.
    pub fn call(&self, method: &str, path: &str) -> Call {
        let method = method.parse().expect("a method");
        Call::new(self.http.request(method, format!("{}{path}", self.url)))
    }

    /// The text of a log: a part's name, or `access`.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.log_path(name)).expect("a log")
    }

    /// The path of that log.
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.directory.path().join("log").join(format!("{name}.log"))
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let down = run(&mut script(self.directory.path(), "down"));
        if std::thread::panicking() {
            eprintln!("--- nginx ---\n{}", std::fs::read_to_string(self.log_path("nginx")).unwrap_or_default());
        } else {
            assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
        }
    }
}

fn script(directory: &Path, command: &str) -> Command {
    let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tools/local/fleet.py"));
    script.arg(command).arg("--dir").arg(directory);
    if command == "up" {
        script.args(["--binary", env!("CARGO_BIN_EXE_authfleet")]);
    }
    script
}

fn run(script: &mut Command) -> Output {
    script.output().expect("python3 must be installed")
}
