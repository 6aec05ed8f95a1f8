//! A real PostgreSQL server for one test, in a directory of its own, run by an unprivileged user.
//!
//! The unit tests of the users' store use this file too, so it uses none of the others.
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tempfile::TempDir;

/// The database user who owns everything in the server.
pub const USER: &str = "authfleet";
/// Only a hanging test takes this long.
const PATIENTLY: Duration = Duration::from_secs(30);
/// The user `nobody` of every Linux.
const NOBODY: &str = "65534";

/// A server that listens on a socket in its directory. It is killed when dropped.
#[derive(Debug)]
pub struct Postgres {
    /// The directory of its socket.
    pub directory: PathBuf,
    /// Part of the socket's name. The server doesn't listen on a TCP port unless `settings` say so.
    pub port: u16,
    /// Further settings, which override the usual ones.
    pub settings: Vec<String>,
    process: Option<Child>,
}

/// A server that the tests of this process share. It ends with the last of them.
#[derive(Debug)]
pub struct Shared {
    pub server: Postgres,
    _directory: TempDir,
}

/// An empty database for one test, on the shared server.
#[derive(Debug)]
pub struct Empty {
    pub shared: Arc<Shared>,
    pub name: String,
}

/// Makes an empty database.
pub async fn empty() -> Empty {
    static SHARED: tokio::sync::Mutex<Weak<Shared>> = tokio::sync::Mutex::const_new(Weak::new());
    static NUMBER: AtomicUsize = AtomicUsize::new(1);
    let mut kept = SHARED.lock().await;
    let shared = if let Some(shared) = kept.upgrade() {
        shared
    } else {
        let directory = tempfile::Builder::new().prefix("postgres-").tempdir().expect("a temporary directory");
        let mut server = Postgres::new(&directory.path().join("server"));
        server.start().await;
        let shared = Arc::new(Shared { server, _directory: directory });
        *kept = Arc::downgrade(&shared);
        shared
    };
    drop(kept);
    let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    shared.server.query("postgres", &format!("CREATE DATABASE {name}")).await;
    Empty { shared, name }
}

/// One of PostgreSQL's programs. If tests run as root, `nobody` runs it, because the server refuses root.
pub fn program(name: &str) -> Command {
    let path = binaries().join(name);
    if rustix::process::getuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(path);
        command
    } else {
        Command::new(path)
    }
}

/// The directory of the newest version's programs. Debian keeps each version in a directory of its own.
fn binaries() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|version| Path::new(&format!("/usr/lib/postgresql/{version}/bin/postgres")).exists())
        .max();
    let in_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).find(|directory| directory.join("postgres").exists())
    };
    newest
        .map(|version| format!("/usr/lib/postgresql/{version}/bin").into())
        .or_else(in_path)
        .expect("PostgreSQL's server must be installed: tools/local/install.sh --dev")
}

/// Gives a directory or file to the user that [`program`] runs as.
pub fn hand_over(path: &Path) {
    if rustix::process::getuid().is_root() {
        let nobody = NOBODY.parse().expect("a number");
        std::os::unix::fs::chown(path, Some(nobody), Some(nobody)).expect("root may give files away");
    }
}

fn run(command: &mut Command) {
    let done = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Postgres {
    /// Makes a server in `directory`, which must not exist yet. It isn't started.
    pub fn new(directory: &Path) -> Self {
        fs::create_dir(directory).expect("a new directory");
        if let Some(parent) = directory.parent().filter(|_| rustix::process::getuid().is_root()) {
            fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).expect("an own directory");
        }
        hand_over(directory);
        let server = Self { directory: directory.to_owned(), port: 5432, settings: Vec::new(), process: None };
        let authentication = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--username", USER];
        run(program("initdb").args(authentication).arg("-D").arg(server.data()));
        server
    }

    /// Makes a standby of a running server in `directory`, which must not exist yet (streaming replication). It isn't
    /// started.
    pub fn standby_of(primary: &Self, directory: &Path) -> Self {
        fs::create_dir(directory).expect("a new directory");
        hand_over(directory);
        let standby = Self { directory: directory.to_owned(), port: primary.port, settings: Vec::new(), process: None };
        let mut copy = program("pg_basebackup");
        copy.args([
            "--write-recovery-conf",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
            "--username",
            USER,
        ]);
        copy.arg("--port").arg(primary.port.to_string()).arg("--host").arg(&primary.directory);
        run(copy.arg("--pgdata").arg(standby.data()));
        standby
    }

    /// Promotes a running standby, and returns when it is the primary.
    pub fn promote(&self) {
        run(program("pg_ctl").args(["promote", "--wait", "--pgdata"]).arg(self.data()));
    }

    /// The directory of its data.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The value for `DATABASE_URL`, by the socket.
    pub fn url(&self, database: &str) -> String {
        format!("postgres:///{database}?host={}&port={}&user={USER}", self.directory.display(), self.port)
    }

    /// Starts it, and returns when it accepts connections.
    pub async fn start(&mut self) {
        self.launch();
        let begin = Instant::now();
        while self.try_connect("postgres").await.is_err() {
            assert!(begin.elapsed() < PATIENTLY, "PostgreSQL does not start: {}", self.log());
            if self.process.as_mut().expect("it was started").try_wait().expect("a child").is_some() {
                // A process that the killed server had just forked keeps its shared memory for a moment longer.
                let is_held = self.log().trim_end().lines().rev().take(3).any(|line| line.contains("is still in use"));
                assert!(is_held, "PostgreSQL does not start: {}", self.log());
                self.process = None;
                self.launch();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts it without waiting.
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("a log");
        let mut command = program("postgres");
        command.arg("-D").arg(self.data());
        let socket = format!("unix_socket_directories={}", self.directory.display());
        // `fsync=off` is safe here: what a process has written survives its end, and no test loses power.
        let usual = ["listen_addresses=", "fsync=off", "shared_buffers=16MB", "max_connections=200", "autovacuum=off"];
        let port = format!("port={}", self.port);
        let own = self.settings.iter().map(String::as_str);
        let settings = usual.into_iter().chain([&*socket, &*port]).chain(own);
        for setting in settings {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.process = Some(command.spawn().expect("the server starts"));
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("server.log")
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Opens a connection by the socket.
    pub async fn try_connect(&self, database: &str) -> sqlx::Result<PgConnection> {
        self.try_connect_as(USER, database).await
    }

    async fn try_connect_as(&self, user: &str, database: &str) -> sqlx::Result<PgConnection> {
        let options = PgConnectOptions::new_without_pgpass().socket(&self.directory).port(self.port);
        options.username(user).database(database).disable_statement_logging().connect().await
    }

    /// Runs statements. Returns the first column of the rows of the last one, as text.
    pub async fn query(&self, database: &str, statement: &str) -> Vec<String> {
        self.query_as(USER, database, statement).await
    }

    /// As [`Self::query`], as another user.
    pub async fn query_as(&self, user: &str, database: &str, statement: &str) -> Vec<String> {
        let mut db = self.try_connect_as(user, database).await.expect("PostgreSQL answers");
        let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).fetch_all(&mut db).await;
        let rows = rows.unwrap_or_else(|error| panic!("{statement}: {error}"));
        // In the simple protocol, every value is text.
        rows.iter().map(|row| sqlx::Row::get_unchecked(row, 0)).collect()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.process.as_ref().expect("it runs"))
    }

    /// The server's process, and those that serve its connections.
    fn pids(&self) -> Vec<Pid> {
        let main = self.pid();
        let children = format!("/proc/{main}/task/{main}/children", main = main.as_raw_nonzero());
        // A process that has ended has no children.
        let children = fs::read_to_string(children).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
        [main].into_iter().chain(children).collect()
    }

    fn signal_all(&self, signal: Signal) {
        for pid in self.pids() {
            // The process may have ended meanwhile.
            rustix::process::kill_process(pid, signal).ok();
        }
    }

    /// Freezes it: it keeps its connections but doesn't answer. The kernel accepts new connections, which wait.
    pub fn freeze(&self) {
        self.signal_all(Signal::STOP);
    }

    /// Lets it continue.
    pub fn thaw(&self) {
        self.signal_all(Signal::CONT);
    }

    /// Kills all its processes with SIGKILL.
    pub fn kill(&mut self) {
        self.signal_all(Signal::KILL);
        drop(self.process.take().expect("it runs").wait());
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.process.is_some() {
            // A frozen process handles no other signal.
            self.thaw();
            rustix::process::kill_process(self.pid(), Signal::QUIT).ok();
            drop(self.process.take().map(|mut process| process.wait()));
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- the end of PostgreSQL's log ---\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

/// `PgBouncer` in transaction mode in front of a server. It is killed when dropped.
#[derive(Debug)]
pub struct Pooler {
    directory: TempDir,
    process: Child,
}

impl Pooler {
    /// Starts it with few connections to the server, so that many clients use each in turn.
    pub async fn start(server: &Postgres, database: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("pooler-").tempdir().expect("a temporary directory");
        hand_over(directory.path());
        let (here, there, port) = (directory.path().display(), server.directory.display(), server.port);
        let settings = format!(
            "[databases]\n{database} = host={there} port={port} dbname={database} user={USER}\n[pgbouncer]\n\
             listen_addr =\nunix_socket_dir = {here}\nlisten_port = 6432\nauth_type = any\npool_mode = transaction\n\
             default_pool_size = 3\nmax_client_conn = 200\n"
        );
        let file = directory.path().join("pgbouncer.ini");
        fs::write(&file, settings).expect("its settings are written");
        let mut command = Command::new("pgbouncer");
        if rustix::process::getuid().is_root() {
            command = Command::new("setpriv");
            command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "pgbouncer"]);
        }
        let path = std::env::var("PATH").unwrap_or_default();
        command.arg(file).env("PATH", format!("{path}:/usr/sbin")).stdin(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("pgbouncer must be installed: tools/local/install.sh --dev");
        let pooler = Self { directory, process };
        let begin = Instant::now();
        while !pooler.directory.path().join(".s.PGSQL.6432").exists() {
            assert!(begin.elapsed() < PATIENTLY, "pgbouncer does not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        pooler
    }

    /// The value for `DATABASE_URL`.
    pub fn url(&self, database: &str) -> String {
        format!("postgres:///{database}?host={}&port=6432&user={USER}", self.directory.path().display())
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
