//! Several processes on one database, some of them killed.
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

/// Runs the ignored test `child_<name>` of this file in a new process.
fn child(name: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let test = format!("{}::child_{name}", module_path!().split_once("::").unwrap().1);
    command.args(["--exact", &test, "--ignored", "--nocapture"]).env("AUTHFLEET_TEST_DATABASE", path);
    command
}

fn path_from_parent() -> PathBuf {
    std::env::var_os("AUTHFLEET_TEST_DATABASE").expect("to be started by another test").into()
}

#[test]
fn three_migrates_in_processes_leave_the_work_to_one() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("users.db");
    let spawn = || child("migrate", &path).stdout(Stdio::piped()).spawn().unwrap();
    let children = [spawn(), spawn(), spawn()];
    let outputs = children.map(|child| child.wait_with_output().unwrap());
    assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
    let created =
        outputs.iter().filter(|output| String::from_utf8_lossy(&output.stdout).contains("created: true")).count();
    assert_eq!(created, 1, "{outputs:?}");
}

#[tokio::test]
#[ignore = "a process of three_migrates_in_processes_leave_the_work_to_one"]
async fn child_migrate() {
    println!("{:?}", migrate(&path_from_parent()).await.unwrap());
}

/// A process that creates users until it is killed, and prints each one that was acknowledged.
struct Replica {
    process: std::process::Child,
    acknowledged: std::sync::mpsc::Receiver<String>,
}

impl Replica {
    fn start(path: &Path) -> Self {
        use std::io::{BufRead as _, BufReader};
        let mut process = child("create_for_ever", path).stdout(Stdio::piped()).spawn().unwrap();
        let (lines, acknowledged) = std::sync::mpsc::channel();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || {
            // A line that the kill cut short was not acknowledged.
            let whole = stdout.lines().map(Result::unwrap).filter(|line| line.ends_with("@example.org"));
            whole.for_each(|line| lines.send(line).unwrap_or_default());
        });
        Self { process, acknowledged }
    }

    /// Waits until it has acknowledged `count` more users.
    fn next(&self, count: usize) -> Vec<String> {
        let next = || self.acknowledged.recv_timeout(Duration::from_secs(30)).expect("an acknowledged user");
        (0..count).map(|_| next()).collect()
    }

    /// Kills the process with SIGKILL and returns the users that it had acknowledged.
    fn kill(mut self) -> Vec<String> {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.acknowledged.iter().collect()
    }
}

#[tokio::test]
#[ignore = "a process of other tests"]
async fn child_create_for_ever() {
    let store = open(&path_from_parent()).await;
    println!();
    loop {
        match store.create(new(&format!("{}@example.org", Uuid::now_v7()), None)).await {
            Ok(user) => println!("{}", user.email),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn assert_all_there(store: &SqliteUsers, acknowledged: &[String]) {
    for email in acknowledged {
        assert!(store.by_login(email).await.unwrap().is_some(), "{email} of {} is lost", acknowledged.len());
    }
}

#[tokio::test]
async fn an_acknowledged_user_survives_kill_9() {
    let bench = Bench::new().await;
    for _ in 0..3 {
        let replicas = [Replica::start(&bench.path()), Replica::start(&bench.path())];
        let mut acknowledged: Vec<_> = replicas.iter().flat_map(|replica| replica.next(20)).collect();
        acknowledged.extend(replicas.into_iter().flat_map(Replica::kill));
        assert_all_there(&bench.store, &acknowledged).await;
    }
    assert_sound(&bench.path()).await;
}

#[tokio::test]
async fn processes_go_on_after_the_database_was_replaced_under_them() {
    let bench = Bench::new().await;
    let replicas = [(); 3].map(|()| Replica::start(&bench.path()));
    for replica in &replicas {
        replica.next(20);
    }
    migrate(&bench.file("fresh.db")).await.unwrap();
    fs::rename(bench.file("fresh.db"), bench.path()).unwrap();
    let mut acknowledged = Vec::new();
    for replica in &replicas {
        // Skip users that were still written to the old file.
        let mut email = replica.next(1).remove(0);
        while bench.store.by_login(&email).await.unwrap().is_none() {
            email = replica.next(1).remove(0);
        }
        acknowledged.extend(replica.next(20));
    }
    acknowledged.extend(replicas.into_iter().flat_map(Replica::kill));
    assert_all_there(&bench.store, &acknowledged).await;
    assert_sound(&bench.path()).await;
}

#[tokio::test]
async fn processes_go_on_after_the_journal_was_deleted_under_them() {
    for removed in [&["users.db-wal", "users.db-shm"][..], &["users.db-wal"], &["users.db-shm"]] {
        let bench = Bench::new().await;
        let replicas = [(); 3].map(|()| Replica::start(&bench.path()));
        let mut acknowledged: Vec<_> = replicas.iter().flat_map(|replica| replica.next(20)).collect();
        for name in removed {
            fs::remove_file(bench.file(name)).unwrap();
        }
        acknowledged.extend(replicas.iter().flat_map(|replica| replica.next(40)));
        acknowledged.extend(replicas.into_iter().flat_map(Replica::kill));
        assert_all_there(&bench.store, &acknowledged).await;
        assert_sound(&bench.path()).await;
    }
}
