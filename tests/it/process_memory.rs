//! Keys and passwords don't leave the server's memory in a core dump, and the process's metrics still work.
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Stdio};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::Value;

use crate::fleet::{Fleet, unprivileged};

/// Holds although the limit allows core dumps. (Where the kernel pipes dumps into a program, it ignores the limit.)
#[tokio::test]
async fn a_crash_dumps_no_core() {
    let most = getrlimit(Resource::Core).maximum;
    setrlimit(Resource::Core, Rlimit { current: most, maximum: most }).expect("a limit may be raised to its maximum");
    let mut fleet = Fleet::start(1).await;
    fleet[0].register("ada").await;
    fleet[0].signal(Signal::ABORT);
    let status = fleet[0].ended().await;
    assert_eq!((status.signal(), status.core_dumped()), (Some(Signal::ABORT.as_raw()), false));
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The files under `/proc` of a process that can't be dumped belong to root. The server must still be able to read its
/// own, as the user that it runs as.
#[tokio::test]
async fn process_metrics_are_there_without_root() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut command = unprivileged(directory.path());
    let data = directory.path().join("data");
    std::fs::create_dir(&data).expect("an own directory");
    std::fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("an own directory");
    command.env("DATABASE_URL", format!("sqlite://{}/users.db", data.display())).env("LOG_FORMAT", "json");
    command.env("LISTEN_ADDR", "127.0.0.1:0").env("OPS_ADDR", "127.0.0.1:0").current_dir(&data);
    let mut server = Ended(command.stdout(Stdio::piped()).spawn().expect("the server starts"));
    let mut log = BufReader::new(server.0.stdout.take().expect("a pipe")).lines();
    let up = log.by_ref().map(|line| serde_json::from_str::<Value>(&line.expect("a line")).expect("JSON"));
    let up = up.into_iter().find(|line| line["message"] == "authfleet is up").expect("the server is up");
    let url = format!("http://{}/metrics", up["ops"].as_str().expect("an address"));
    let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    let metrics = http.get(url).send().await.expect("an answer").text().await.expect("text");
    for name in [
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_threads",
        "process_virtual_memory_bytes",
    ] {
        let value = metrics.lines().find(|line| line.starts_with(name)).and_then(|line| line.rsplit(' ').next());
        let value: f64 = value.unwrap_or_else(|| panic!("no {name}")).parse().expect("a number");
        assert!(value >= 0.0 && (value > 0.0 || name == "process_cpu_seconds_total"), "{name} {value}");
    }
    drop(log);
}
