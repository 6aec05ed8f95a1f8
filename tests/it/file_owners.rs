//! Root runs commands in the directory of the server's user: that user must still be able to use the files.
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sqlx::ConnectOptions as _;

use crate::fleet::{Finished, NOBODY, unprivileged};

/// The directory of the service, with its database.
struct Service {
    directory: tempfile::TempDir,
}

impl Service {
    /// Makes the directory, without a database. If the tests run as root, it belongs to the user `nobody`.
    fn new() -> Self {
        let service = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        std::fs::create_dir(service.data()).expect("a directory");
        set_mode(&service.data(), 0o700);
        if is_root() {
            chown(service.data(), Some(NOBODY), Some(NOBODY)).expect("root may give files away");
        }
        service
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.data().join(name)
    }

    fn settings(&self, command: &mut Command) {
        let url = format!("sqlite://{}", self.file("users.db").display());
        command.env("DATABASE_URL", url).env("LOG_FORMAT", "json").current_dir("/");
        command.env("LISTEN_ADDR", "127.0.0.1:0").env("OPS_ADDR", "127.0.0.1:0");
    }

    /// Runs a command as the user that the tests run as: root, in a container.
    fn as_root(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(env!("CARGO_BIN_EXE_authfleet"));
        command.env_clear().args(arguments);
        self.settings(&mut command);
        Finished::of(&mut command)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = unprivileged(self.directory.path());
        command.args(arguments);
        self.settings(&mut command);
        command
    }

    /// Runs a command as the user that the server runs as.
    fn as_service(&self, arguments: &[&str]) -> Finished {
        Finished::of(&mut self.command(arguments))
    }

    /// Starts a server. Returns what it logs until it is up or gives up.
    fn served(&self) -> String {
        let mut server = self.command(&["serve"]).stdout(Stdio::piped()).spawn().expect("the binary runs");
        let mut said = String::new();
        for line in BufReader::new(server.stdout.take().expect("a pipe")).lines() {
            said += &line.expect("UTF-8");
            if said.contains("authfleet is up") {
                break;
            }
        }
        drop(server.kill());
        drop(server.wait());
        said
    }

    #[track_caller]
    fn expect_owner(&self, uid: u32, gid: u32, mode: u32) {
        let mut seen = Vec::new();
        for entry in std::fs::read_dir(self.data()).expect("a directory") {
            let path = entry.expect("an entry").path();
            let file = std::fs::metadata(&path).expect("a file");
            assert_eq!((file.uid(), file.gid(), file.mode() & 0o777), (uid, gid, mode), "{}", path.display());
            seen.push(path.file_name().expect("a name").to_owned());
        }
        assert!(seen.contains(&"users.db".into()) && seen.contains(&"users.db.lock".into()), "{seen:?}");
    }
}

fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("an own file");
}

/// Users of one group may share a database; everybody can run this.
#[tokio::test]
async fn files_beside_the_database_have_its_mode() {
    let service = Service::new();
    service.as_service(&["migrate"]).expect_code(0);
    set_mode(&service.file("users.db"), 0o660);
    std::fs::remove_file(service.file("users.db.lock")).expect("the lock of a migration");
    service.as_service(&["user", "list"]).expect_code(0);
    let owner = std::fs::metadata(service.data()).expect("a directory");
    service.expect_owner(owner.uid(), owner.gid(), 0o660);
}

#[tokio::test]
async fn what_root_runs_leaves_the_service_able_to_start() {
    if !is_root() {
        // Only root can make files of another owner. CI runs as root.
        return eprintln!("not root: only files_beside_the_database_have_its_mode says something here");
    }
    for first in ["root", "service"] {
        let service = Service::new();
        let migrated = if first == "root" { service.as_root(&["migrate"]) } else { service.as_service(&["migrate"]) };
        migrated.expect_code(0);
        // Opens a connection, so that there is a journal, as while a server runs.
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(service.file("users.db"));
        let mut journal = options.connect().await.expect("the database opens");
        sqlx::query("SELECT count(*) FROM users").execute(&mut journal).await.expect("a sound statement");
        assert!(service.file("users.db-wal").exists() && service.file("users.db-shm").exists());
        std::fs::remove_file(service.file("users.db.lock")).expect("the lock of the migration");
        service.as_root(&["user", "list"]).expect_code(0);
        service.as_root(&["doctor"]);
        service.expect_owner(NOBODY, NOBODY, 0o600);
        drop(journal);
        service.as_service(&["user", "list"]).expect_code(0);
        let said = service.served();
        assert!(said.contains("authfleet is up"), "{said}");
    }
}

/// An older release left such a lock behind.
#[tokio::test]
async fn a_lock_that_root_left_behind_is_explained_and_repaired() {
    if !is_root() {
        return eprintln!("not root: a lock of root's can't be made");
    }
    let service = Service::new();
    service.as_service(&["migrate"]).expect_code(0);
    let lock = service.file("users.db.lock");
    chown(&lock, Some(0), Some(0)).expect("root may take files");
    let advice = format!("chown --reference={} {}", service.file("users.db").display(), lock.display());
    for finished in [
        service.as_service(&["user", "list"]).expect_code(1).stderr,
        service.as_service(&["migrate"]).expect_code(1).stdout,
        service.as_service(&["doctor"]).expect_code(1).stdout,
        service.served(),
    ] {
        assert!(finished.contains("belongs to user id 0") && finished.contains(&advice), "{finished}");
    }
    let found = service.as_root(&["doctor"]).expect_code(1).stdout;
    assert!(found.contains("FAIL  database.owner") && found.contains("users.db.lock belongs to user id 0"), "{found}");

    service.as_root(&["user", "list"]).expect_code(0);
    service.expect_owner(NOBODY, NOBODY, 0o600);
    assert!(service.served().contains("authfleet is up"));
}

/// The service's user can put anything into its directory. Root must not change the owner of a link's target.
#[tokio::test]
async fn root_gives_nothing_away_that_a_link_leads_to() {
    if !is_root() {
        return eprintln!("not root: there is nothing to give away");
    }
    let service = Service::new();
    service.as_service(&["migrate"]).expect_code(0);
    let (lock, treasure) = (service.file("users.db.lock"), service.directory.path().join("treasure"));
    std::fs::write(&treasure, "").expect("a file");
    std::fs::remove_file(&lock).expect("the lock of the migration");
    symlink(&treasure, &lock).expect("a link");
    service.as_root(&["user", "list"]).expect_code(1);
    std::fs::remove_file(&lock).expect("the link");
    std::fs::hard_link(&treasure, &lock).expect("a link");
    service.as_root(&["user", "list"]).expect_code(0);
    assert_eq!(std::fs::metadata(&treasure).expect("a file").uid(), 0);
}
