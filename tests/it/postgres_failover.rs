//! PostgreSQL's primary dies and its standby takes over: streaming replication, `pg_ctl promote`, and a name that then
//! leads to the new primary, as docs/operations.md says.
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::fleet::postgres::Postgres;
use crate::fleet::{Engine, Fleet, PASSWORD, PATIENTLY, PROMPTLY, PasswordChanges, Registrations, Session, within};

/// A fleet whose `DATABASE_URL` names a link to the directory of one of two servers' sockets.
struct Pair {
    fleet: Fleet,
    standby: Postgres,
    name: PathBuf,
    _names: tempfile::TempDir,
}

impl Pair {
    async fn start(replicas: usize) -> Self {
        let names = tempfile::Builder::new().prefix("names-").tempdir().expect("a temporary directory");
        let name = names.path().join("primary");
        let url = format!("postgres:///authfleet?host={}&port=5432&user=authfleet", name.display());
        let builder = Fleet::builder().users_in(Engine::OwnPostgres).replicas(0).unmigrated();
        let builder = builder.env("DATABASE_URL", &url).env("LOGIN_FAILURES_PER_ACCOUNT", "1000000");
        let mut fleet = builder.start().await;
        let primary = fleet.postgres.as_ref().expect("a server");
        std::os::unix::fs::symlink(&primary.directory, &name).expect("a name");
        let mut standby = Postgres::standby_of(primary, &fleet.path().join("standby"));
        standby.start().await;
        fleet.command(&["migrate"], &[]).await.expect_code(0);
        for _ in 0..replicas {
            fleet.add_replica().await;
        }
        Self { fleet, standby, name, _names: names }
    }

    /// From now on, a commit is acknowledged only when the standby has it.
    async fn synchronous(&self) {
        let primary = self.primary();
        primary.query("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'").await;
        primary.query("postgres", "SELECT pg_reload_conf()").await;
        within(PATIENTLY, "the standby is synchronous", async || {
            primary.query("postgres", "SELECT sync_state FROM pg_stat_replication").await == ["sync"]
        })
        .await;
    }

    fn primary(&self) -> &Postgres {
        self.fleet.postgres.as_ref().expect("a server")
    }

    /// Points the name at another server in one step, as with DNS or a virtual address.
    fn lead_to(&self, directory: &std::path::Path) {
        let new = self.name.with_extension("new");
        std::os::unix::fs::symlink(directory, &new).expect("a name");
        std::fs::rename(new, &self.name).expect("the name is moved");
    }

    /// Kills the primary, promotes the standby and moves the name. Returns when the primary died and when the name
    /// moved.
    fn fail_over(&mut self) -> (Instant, Instant) {
        let died = Instant::now();
        self.fleet.postgres.as_mut().expect("a server").kill();
        self.take_over();
        (died, Instant::now())
    }

    fn take_over(&mut self) {
        self.standby.promote();
        self.lead_to(&self.standby.directory);
        std::mem::swap(self.fleet.postgres.as_mut().expect("a server"), &mut self.standby);
    }

    async fn registers(&self, name: &str) -> u16 {
        self.fleet[0].try_register(name).send().await.status
    }
}

/// With a synchronous standby, nothing that was acknowledged is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_standby_has_all_that_was_acknowledged() {
    let mut pair = Pair::start(3).await;
    pair.synchronous().await;
    let changes = PasswordChanges::begin(&pair.fleet).await;
    let registrations = Registrations::begin(&pair.fleet);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (died, moved) = pair.fail_over();
    let mut tries = 0;
    within(PROMPTLY, "registrations again, without a restart", async || {
        tries += 1;
        pair.registers(&format!("after-{tries}")).await == 201
    })
    .await;
    println!(
        "promotion took {:.2} s; 201 came {:.2} s after the name had moved",
        (moved - died).as_secs_f64(),
        moved.elapsed().as_secs_f64()
    );
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (registered, passwords) = tokio::join!(registrations.end(), changes.end());
    assert_eq!(registered.unanswered, 0, "the replicas were up");
    registered.expect_kept(&pair.fleet).await;
    passwords.expect_kept(&pair.fleet).await;
    for replica in pair.fleet.replicas() {
        replica.ops("/readyz").await.expect(200);
    }
}

/// Without a synchronous standby, what docs/security.md names can be lost. So the other test would notice a loss.
#[tokio::test]
async fn a_standby_that_is_behind_loses_what_it_did_not_get() {
    let mut pair = Pair::start(1).await;
    let kept = pair.fleet[0].register("kept").await;
    let primary = pair.primary();
    within(PATIENTLY, "the standby has it", async || {
        let behind = "SELECT pg_current_wal_lsn() = replay_lsn FROM pg_stat_replication";
        primary.query("postgres", behind).await == ["t"]
    })
    .await;
    pair.standby.kill();
    let lost = pair.fleet[0].register("lost").await;
    let session = pair.fleet[0].login(&lost).await;
    pair.fleet.postgres.as_mut().expect("a server").kill();
    pair.standby.start().await;
    pair.take_over();
    within(PROMPTLY, "logins again", async || {
        pair.fleet[0].try_login(&kept.email, PASSWORD).send().await.status == 200
    })
    .await;
    pair.fleet[0].try_login(&lost.email, PASSWORD).send().await.expect_problem(401, "invalid_credentials");
    // The session is in Redis, where it lives until it expires, as docs/security.md says.
    assert_eq!(pair.fleet[0].check(&session).await, 200);
}

/// A commit waits for the synchronous standby. If the standby is gone, the commit isn't acknowledged: the answer is 503
/// in time, and the account may exist or not. Reads go on.
#[tokio::test]
async fn a_synchronous_standby_that_is_gone_is_503_for_writes() {
    let pair = Pair::start(1).await;
    pair.synchronous().await;
    let ada = pair.fleet[0].register("ada").await;
    pair.standby.freeze();
    for name in ["eve", "bob"] {
        pair.fleet[0].try_register(name).send().await.expect_unavailable();
    }
    let login = Session::opened_by(&pair.fleet[0].try_login(&ada.email, PASSWORD).send().await);
    assert_eq!(pair.fleet[0].check(&login).await, 200);
    pair.standby.thaw();
    within(PROMPTLY, "registrations again", async || [201, 409].contains(&pair.registers("eve").await)).await;
    // The statement's time limit doesn't end the wait: that would acknowledge a commit that the standby doesn't have.
    let log = pair.primary().log();
    assert!(!log.contains("canceling wait for synchronous replication"), "{log}");
    let accounts = pair.standby.query("authfleet", "SELECT username FROM users ORDER BY 1").await;
    assert!(accounts.contains(&"ada".to_owned()), "{accounts:?}");
}

/// If the name leads to a standby, nothing is read there, since its epochs may be old. All works again once the name
/// leads to the primary.
#[tokio::test]
async fn a_connection_to_a_standby_is_given_back() {
    let mut pair = Pair::start(2).await;
    let ada = pair.fleet[0].register("ada").await;
    let session = pair.fleet[0].login(&ada).await;
    pair.lead_to(&pair.standby.directory);
    // Open connections still lead to the primary, and new ones don't.
    pair.fleet[1].restart(&[]).await;
    let log = pair.fleet[1].log();
    let warned = log
        .iter()
        .any(|line| line["level"] == "WARN" && line["error"].as_str().is_some_and(|error| error.contains("standby")));
    assert!(warned, "said at start: {log:?}");
    pair.fleet[1].try_login("ada", PASSWORD).send().await.expect_unavailable();
    pair.fleet[1].try_register("eve").send().await.expect_unavailable();
    let readiness = pair.fleet[1].ops("/readyz").await.expect(503).json();
    assert!(readiness["users"].to_string().contains("standby"), "{readiness}");
    assert_eq!(pair.fleet[1].check(&session).await, 200, "SQL isn't asked");
    let refused = pair.fleet.command(&["migrate"], &[]).await.expect_code(1);
    assert!(refused.stdout.contains("standby"), "{}", refused.stdout);

    let primary = pair.primary().directory.clone();
    pair.lead_to(&primary);
    within(PROMPTLY, "logins again", async || pair.fleet[1].try_login("ada", PASSWORD).send().await.status == 200)
        .await;
    pair.fleet[1].ops("/readyz").await.expect(200);
}

/// The primary that died comes back with its old data. The name doesn't lead to it, so nobody writes there. It becomes
/// a standby after `pg_rewind` (docs/operations.md).
#[tokio::test]
async fn the_old_primary_becomes_a_standby() {
    let mut pair = Pair::start(1).await;
    pair.primary().query("postgres", "ALTER SYSTEM SET wal_log_hints = on").await;
    let data = pair.primary().data();
    pair.fleet.postgres.as_mut().expect("a server").kill();
    pair.fleet.postgres.as_mut().expect("a server").start().await;
    pair.synchronous().await;
    pair.fleet[0].register("ada").await;
    pair.fail_over();
    within(PROMPTLY, "logins again", async || pair.fleet[0].try_login("ada", PASSWORD).send().await.status == 200)
        .await;
    pair.primary().query("postgres", "ALTER SYSTEM RESET synchronous_standby_names").await;
    pair.primary().query("postgres", "SELECT pg_reload_conf()").await;
    pair.fleet[0].register("eve").await;

    // Until its first checkpoint, the new primary still names the old timeline, and pg_rewind would find nothing to do.
    pair.primary().query("postgres", "CHECKPOINT").await;
    // pg_rewind first recovers a server that was killed.
    let source = format!("host={} port=5432 user=authfleet dbname=postgres", pair.primary().directory.display());
    let mut rewind = crate::fleet::postgres::program("pg_rewind");
    rewind.args(["--write-recovery-conf", "--no-sync", "--source-server", &source, "--target-pgdata"]).arg(&data);
    let done = rewind.output().expect("pg_rewind runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    pair.standby.start().await;
    within(PATIENTLY, "the old primary has what the new one wrote", async || {
        pair.standby.query("authfleet", "SELECT username FROM users ORDER BY 1").await == ["ada", "eve"]
    })
    .await;
    assert_eq!(pair.standby.query("postgres", "SELECT pg_is_in_recovery()").await, ["t"]);
}
