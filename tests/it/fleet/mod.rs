//! A whole fleet for one test: the real binary, a Redis and a users' database of its own, in a directory of its own.
//!
//! ```ignore
//! let fleet = Fleet::start(3).await;                     // migrated; three replicas that share Redis and SQLite
//! let ada = fleet[0].register("ada").await;              // ada@example.org with `PASSWORD`
//! let session = fleet[0].login(&ada).await;
//! fleet[1].get("/profile").session(&session).send().await.expect(200);
//! fleet.redis.run::<i64>(&["DEL", &session.key()]);      // a logout
//! fleet[2].get("/profile").session(&session).send().await.expect_problem(401, "session_invalid");
//! ```
//!
//! [`Fleet::builder`] sets variables, leaves Redis out or starts it later. A [`Replica`] can be killed, stopped, frozen
//! and restarted on its ports, and so can [`Redis`]. Everything that was started ends with the fleet, even if the test
//! fails. The output of each process is then printed.
//!
//! Hashing is weakened so that tests are quick, and limits per address are very high, because all clients have the same
//! one. Everything else is as shipped: Redis runs with `deploy/redis/redis.conf`.
mod applications;
mod client;
mod collector;
mod demo;
mod network;
mod password_changes;
mod ports;
pub mod postgres;
mod process;
mod redis;
mod redis_group;
mod redis_server;
mod registrations;
mod replica;
mod watch;

use std::collections::BTreeMap;
use std::ops::{Index, IndexMut};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};

pub use self::applications::{APP, LOGIN_HOST, Proxy, Question, Visitor, WIKI, identity, opened_at};
pub use self::client::{Answer, Call, PASSWORD, Raw, Session, bucket};
pub use self::collector::{Collector, Span};
pub use self::demo::Demo;
pub use self::network::{Cut, Way, Whom, in_own_network};
pub use self::password_changes::PasswordChanges;
pub use self::ports::Port;
pub use self::postgres::Postgres;
pub use self::process::{Finished, NOBODY, authfleet, unprivileged};
pub use self::redis::Redis;
pub use self::redis_group::{Access, Authority, Group, ISOLATED, SPECIAL};
pub use self::redis_server::{HARNESS, Server};
pub use self::registrations::Registrations;
pub use self::replica::Replica;
pub use self::watch::{Watch, right_again};

/// The contract's "within 2 seconds", and one more second, because the client and the fleet share the machine's cores
/// with other tests.
pub const PROMPTLY: Duration = Duration::from_secs(3);
/// The limit on waiting for what has no bound in the contract. Only a hanging test takes this long.
pub const PATIENTLY: Duration = Duration::from_secs(20);
/// `SESSION_SECRET` of every fleet that sets no other.
pub const SECRET: &str = "the-secret-of-a-fleet-under-test-0";

/// For [`Builder::session_format`].
pub const MIXED: &str = "mixed";

/// The engine of a fleet's users' database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    /// A database on the server that all tests share.
    Postgres,
    /// A server that the test may stop: [`Fleet::postgres`].
    OwnPostgres,
}

impl Engine {
    /// The engines on which every behaviour is tested. The output of a failed test names the engine.
    pub fn each() -> impl Iterator<Item = Self> {
        [Self::Sqlite, Self::Postgres].into_iter().inspect(|engine| println!("users in {engine:?}"))
    }
}

/// Replicas that share a Redis and a users' database.
pub struct Fleet {
    replicas: Vec<Replica>,
    /// The Redis that they share. It isn't running if the builder was told not to start it.
    pub redis: Redis,
    /// The server of [`Engine::OwnPostgres`].
    pub postgres: Option<Postgres>,
    shared: Option<postgres::Empty>,
    settings: Settings,
    /// Whether its replicas keep new sessions in both formats in turn.
    is_mixed: bool,
    // Last, because dropping it removes the directory that the others use.
    directory: tempfile::TempDir,
}

/// Environment variables.
pub type Settings = BTreeMap<String, String>;

/// The settings of a fleet that is about to start.
pub struct Builder {
    replicas: usize,
    settings: Settings,
    redis: Option<bool>,
    redis_over_tcp: bool,
    engine: Engine,
    migrate: bool,
    /// Access rules.
    rules: Option<String>,
}

/// A lock that keeps others from writing users until it is released. They can still read.
pub enum Held {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Held {
    pub async fn release(self) {
        match self {
            Self::Sqlite(mut db) => drop(sqlx::query("ROLLBACK").execute(&mut db).await.expect("released")),
            Self::Postgres(mut db) => drop(sqlx::query("ROLLBACK").execute(&mut db).await.expect("released")),
        }
    }
}

impl Fleet {
    /// Migrates, and starts this many replicas: `replica-1`, `replica-2` and so on.
    pub async fn start(replicas: usize) -> Self {
        Self::builder().replicas(replicas).start().await
    }

    /// The same, with users in another engine.
    pub async fn start_on(engine: Engine, replicas: usize) -> Self {
        Self::builder().users_in(engine).replicas(replicas).start().await
    }

    /// Begins a fleet that differs from the usual one.
    pub fn builder() -> Builder {
        let settings = [
            ("SESSION_SECRET", SECRET),
            ("COOKIE_SECURE", "false"),
            ("LOG_FORMAT", "json"),
            ("ARGON2_MEMORY", "64KiB"),
            ("ARGON2_ITERATIONS", "1"),
            ("HASH_QUEUE", "1000"),
            ("REGISTRATIONS_PER_ADDRESS", "1000000"),
            ("LOGIN_FAILURES_PER_ADDRESS", "1000000"),
            ("LOGIN_ATTEMPTS_PER_ACCOUNT", "100000000"),
            ("LOGIN_ATTEMPTS_PER_ADDRESS", "100000000"),
        ];
        let mut settings: Settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        if let Ok(format) = std::env::var("SESSION_FORMAT") {
            settings.insert("SESSION_FORMAT".to_owned(), format);
        }
        let engine = Engine::Sqlite;
        Builder { replicas: 1, settings, redis: Some(true), redis_over_tcp: false, engine, migrate: true, rules: None }
    }

    /// The directory with all files of this fleet.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// `DATABASE_URL` of the replicas.
    pub fn database_url(&self) -> &str {
        &self.settings["DATABASE_URL"]
    }

    /// The file of the users' database, with SQLite.
    pub fn database(&self) -> PathBuf {
        self.path().join("users.db")
    }

    /// Opens a connection to the users' database, with SQLite, beside those of the replicas.
    pub async fn sql(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.database()).busy_timeout(PATIENTLY);
        options.connect().await.expect("the users' database opens")
    }

    /// The PostgreSQL server with the users' database, and the database's name.
    fn server(&self) -> Option<(&Postgres, &str)> {
        let own = self.postgres.as_ref().map(|server| (server, "authfleet"));
        own.or_else(|| self.shared.as_ref().map(|shared| (&shared.shared.server, &*shared.name)))
    }

    /// Runs a statement on the users' database. Returns the first column of its rows, as text.
    pub async fn query(&self, statement: &str) -> Vec<String> {
        if let Some((server, database)) = self.server() {
            return server.query(database, statement).await;
        }
        let mut db = self.sql().await;
        let rows = sqlx::query(AssertSqlSafe(statement)).fetch_all(&mut db).await;
        // Waits until it is closed. A connection that is dropped may stay open for a moment, and a copy would notice.
        db.close().await.expect("a connection is closed");
        let rows = rows.unwrap_or_else(|error| panic!("{statement}: {error}"));
        rows.iter().map(|row| row.get_unchecked(0)).collect()
    }

    /// Keeps everybody from writing users until the returned lock is released.
    pub async fn hold_writers(&self) -> Held {
        if let Some((server, database)) = self.server() {
            let mut db = server.try_connect(database).await.expect("PostgreSQL answers");
            let lock = "BEGIN; LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE";
            sqlx::raw_sql(lock).execute(&mut db).await.expect("the lock");
            return Held::Postgres(db);
        }
        let mut db = self.sql().await;
        sqlx::query("BEGIN IMMEDIATE").execute(&mut db).await.expect("the lock");
        Held::Sqlite(db)
    }

    /// Waits until nobody waits for the lock any more. PostgreSQL goes on with the statement of a killed replica until
    /// the statement's time-out.
    pub async fn writers_have_given_up(&self) {
        let Some((server, database)) = self.server() else { return };
        let waiting = format!(
            "SELECT count(*)::text FROM pg_stat_activity WHERE datname = '{database}' AND wait_event_type = 'Lock'"
        );
        within(PATIENTLY, "writers give up", async || server.query(database, &waiting).await == ["0"]).await;
    }

    /// The settings of its replicas.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Runs another command of the binary with the fleet's settings, changed by `changes`.
    pub async fn command(&self, arguments: &[&str], changes: &[(&str, &str)]) -> Finished {
        let mut settings = self.settings.clone();
        settings.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        authfleet(self.path(), arguments, &settings).await
    }

    /// As [`Fleet::command`], with standard error going to `stderr`.
    pub async fn command_with_errors_to(&self, stderr: impl Into<Stdio>, arguments: &[&str]) -> Finished {
        process::authfleet_with_errors_to(Some(stderr.into()), self.path(), arguments, &self.settings).await
    }

    /// The replicas.
    pub fn replicas(&self) -> &[Replica] {
        &self.replicas
    }

    /// Starts one more.
    pub async fn add_replica(&mut self) {
        let number = self.replicas.len();
        let mut settings = self.settings.clone();
        if self.is_mixed {
            settings.insert("SESSION_FORMAT".to_owned(), ["classic", "compact"][number % 2].to_owned());
        }
        let mut replica = Replica::new(self.path(), &format!("replica-{}", number + 1), &settings);
        replica.start().await;
        self.replicas.push(replica);
    }

    /// Names and contents of all files: Redis's append-only file, the database, all output.
    pub fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let (mut files, mut directories) = (Vec::new(), vec![self.path().to_owned()]);
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).expect("a readable directory") {
                let entry = entry.expect("a readable directory");
                let kind = entry.file_type().expect("a file's type");
                if kind.is_dir() {
                    directories.push(entry.path());
                } else if kind.is_file() {
                    files.push((entry.path(), std::fs::read(entry.path()).expect("a readable file")));
                }
            }
        }
        files
    }
}

impl Index<usize> for Fleet {
    type Output = Replica;

    fn index(&self, index: usize) -> &Replica {
        &self.replicas[index]
    }
}

impl IndexMut<usize> for Fleet {
    fn index_mut(&mut self, index: usize) -> &mut Replica {
        &mut self.replicas[index]
    }
}

impl Builder {
    /// Sets the number of replicas. The default is one.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// Sets a variable for every replica. An empty value unsets it.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Keeps new sessions in one of the two formats, or with [`MIXED`] in turn: the first replica in the classic one,
    /// the second in the compact one, and so on. The default is the variable `SESSION_FORMAT` of the tests' process, so
    /// that any test can be run in each.
    pub fn session_format(self, format: &str) -> Self {
        self.env("SESSION_FORMAT", format)
    }

    /// Hashes with the default parameters, for tests about hashing.
    pub fn full_hashing(self) -> Self {
        self.env("ARGON2_MEMORY", "").env("ARGON2_ITERATIONS", "").env("HASH_QUEUE", "")
    }

    /// Keeps sessions in memory: `REDIS_URL` is not set.
    pub fn without_redis(mut self) -> Self {
        self.redis = None;
        self
    }

    /// Doesn't start Redis. `fleet.redis.start()` does.
    pub fn redis_down(mut self) -> Self {
        self.redis = Some(false);
        self
    }

    /// Keeps sessions in this Redis instead of the fleet's own, so [`Fleet::redis`] is not running.
    pub fn sessions_in(mut self, group: &Group) -> Self {
        self.redis = None;
        self.settings.extend(group.settings());
        self
    }

    /// Runs Redis on a TCP port instead of a socket in the fleet's directory.
    pub fn redis_over_tcp(mut self) -> Self {
        self.redis_over_tcp = true;
        self
    }

    /// Sets the engine of the users' database. The default is SQLite.
    pub fn users_in(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// Doesn't migrate: the database doesn't exist yet, or is empty.
    pub fn unmigrated(mut self) -> Self {
        self.migrate = false;
        self
    }

    /// Starts it.
    pub async fn start(mut self) -> Fleet {
        let directory = tempfile::Builder::new().prefix("fleet-").tempdir().expect("a temporary directory");
        if let Some(rules) = &self.rules {
            std::fs::write(directory.path().join("rules.toml"), rules).expect("a file");
        }
        let mut redis = Redis::new(directory.path(), self.redis_over_tcp);
        if let Some(runs) = self.redis {
            if runs {
                redis.start().await;
            }
            self.settings.insert("REDIS_URL".to_owned(), redis.url());
        }
        let (mut own, mut shared) = (None, None);
        let database = match self.engine {
            Engine::Sqlite => format!("sqlite://{}", directory.path().join("users.db").display()),
            Engine::Postgres => {
                let empty = postgres::empty().await;
                let url = empty.shared.server.url(&empty.name);
                shared = Some(empty);
                url
            }
            Engine::OwnPostgres => {
                let mut server = Postgres::new(&directory.path().join("postgres"));
                server.start().await;
                server.query("postgres", "CREATE DATABASE authfleet").await;
                let url = server.url("authfleet");
                own = Some(server);
                url
            }
        };
        self.settings.entry("DATABASE_URL".to_owned()).or_insert(database);
        let mut settings = self.settings;
        let is_mixed = settings.get("SESSION_FORMAT").is_some_and(|format| format == MIXED);
        if is_mixed {
            settings.remove("SESSION_FORMAT");
        }
        let replicas = Vec::new();
        let mut fleet = Fleet { replicas, redis, postgres: own, shared, settings, is_mixed, directory };
        if self.migrate {
            fleet.command(&["migrate"], &[]).await.expect_code(0);
        }
        for _ in 0..self.replicas {
            fleet.add_replica().await;
        }
        fleet
    }
}

/// Waits until `condition` holds, and returns how long that took. Fails the test if it takes longer than `bound`.
pub async fn within(bound: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !condition().await {
        assert!(begin.elapsed() < bound, "not within {bound:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    begin.elapsed()
}
