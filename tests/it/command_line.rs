//! The command line and the configuration.
use std::net::TcpListener;

use crate::fleet::{Finished, Fleet, Settings, authfleet, unprivileged};

/// Runs the binary in a directory of its own, with the text as its `.env` unless it is empty.
async fn run(arguments: &[&str], settings: &[(&str, &str)], dotenv: &str) -> Finished {
    let directory = tempfile::tempdir().expect("a temporary directory");
    if !dotenv.is_empty() {
        std::fs::write(directory.path().join(".env"), dotenv).expect("a file");
    }
    let settings: Settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    authfleet(directory.path(), arguments, &settings).await
}

#[tokio::test]
async fn every_mistake_is_named_in_one_message() {
    let wrong = [
        ("LISTEN_ADDR", "nowhere"),
        ("REDIS_URL", "redis://:hunter2-of-redis@host:notaport"),
        ("DATABASE_URL", "mysql://root:hunter2-of-sql@host/db"),
        ("SESSION_SECRET", "hunter2-too-short"),
        ("SESSION_IDLE_TTL", "for ever"),
        ("COOKIE_SECURE", "maybe"),
        ("TRUSTED_PROXIES", "the proxy"),
        ("ARGON2_MEMORY", "lots"),
        ("HASH_CONCURRENCY", "0"),
        ("LOG_FORMAT", "xml"),
        ("DRAIN_DELAY", "-1s"),
    ];
    for command in [&["serve"][..], &[], &["migrate"], &["healthcheck"], &["config"]] {
        let finished = run(command, &wrong, "").await.expect_code(2);
        assert_eq!(finished.stdout, "", "nothing was begun");
        for (name, _) in wrong {
            let lines = finished.stderr.lines().filter(|line| line.trim_start().starts_with(&format!("{name}:")));
            assert_eq!(lines.count(), 1, "{name}: {}", finished.stderr);
        }
        assert!(!finished.stderr.contains("hunter2-of-redis") && !finished.stderr.contains("hunter2-too-short"));
        assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    }
}

#[tokio::test]
async fn a_fleet_needs_a_secret() {
    let finished = run(&["config"], &[("REDIS_URL", "redis://localhost")], "").await.expect_code(2);
    assert!(finished.stderr.contains("SESSION_SECRET"), "{}", finished.stderr);
    run(&["config"], &[], "").await.expect_code(0);
}

#[tokio::test]
async fn values_come_from_the_environment_files_and_dotenv() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "a secret that an orchestrator has mounted\n").expect("a file");
    let secret = secret.to_str().expect("UTF-8");
    let redis = ("REDIS_URL", "redis://:hunter2-of-redis@localhost:6379/3");

    let dotenv = "REPLICA_ID=from-dotenv\nSESSION_IDLE_TTL=10m # a remark\n";
    let settings = [redis, ("SESSION_SECRET_FILE", secret), ("SESSION_IDLE_TTL", "20m"), ("SESSION_MAX_AGE", "")];
    let finished = run(&["config", "--json"], &settings, dotenv).await.expect_code(0);
    let config = finished.json();
    assert_eq!(config["REPLICA_ID"], "from-dotenv");
    assert_eq!(config["SESSION_IDLE_TTL"], "20m", "the environment goes before .env");
    assert_eq!(config["SESSION_MAX_AGE"], "24h", "empty is not set");
    assert!(config["REDIS_URL"].as_str().is_some_and(|url| url.contains("localhost/3")), "{config}");
    for secret in ["orchestrator", "hunter2"] {
        assert!(!finished.stdout.contains(secret) && !finished.stderr.contains(secret), "{finished:?}");
    }

    let both = [redis, ("SESSION_SECRET_FILE", secret), ("SESSION_SECRET", "another secret of more than 32 bytes")];
    let missing = [redis, ("SESSION_SECRET_FILE", "/nowhere/secret")];
    for settings in [&both[..], &missing] {
        let finished = run(&["config"], settings, "").await.expect_code(2);
        assert!(finished.stderr.contains("SESSION_SECRET"), "{}", finished.stderr);
    }
    let finished =
        run(&["config"], &[], "SESSION_SECRET=\"hunter2 without its end\nREPLICA_ID=x\n").await.expect_code(2);
    assert!(finished.stderr.contains(".env") && !finished.stderr.contains("hunter2"), "{}", finished.stderr);
    let finished = run(&["config"], &[("SESSION_IDEL_TTL", "1m")], "").await.expect_code(0);
    assert!(finished.stderr.contains("SESSION_IDLE_TTL"), "a misspelt name is pointed out: {}", finished.stderr);
}

/// `sudo -u authfleet authfleet …` in root's home directory can't find out whether there is a `.env`.
#[test]
fn a_working_directory_that_may_not_be_searched_is_a_warning() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for mode in ["000", "600"] {
        let closed = directory.path().join(mode);
        std::fs::create_dir(&closed).expect("a directory");
        let program = unprivileged(directory.path());
        // The process enters the directory before its permissions are removed, because it couldn't enter afterwards.
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "chmod $0 . && exec \"$@\"", mode]).arg(program.get_program()).args(program.get_args());
        let command = shell.arg("config").env_clear().env("PATH", "/usr/bin:/bin").current_dir(&closed);
        let finished = Finished::of(command).expect_code(0);
        std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("open again");
        assert!(finished.stderr.starts_with("warning: .env was not looked for"), "{}", finished.stderr);
        assert!(finished.stdout.contains("SESSION_IDLE_TTL=30m"), "{}", finished.stdout);
    }
    // A file that exists but can't be read is an error, because somebody relies on its settings.
    let there = directory.path().join("there");
    std::fs::create_dir(&there).expect("a directory");
    std::fs::write(there.join(".env"), "SESSION_IDLE_TTL=5m").expect("a file");
    for (path, mode) in [(there.join(".env"), 0o000), (there.clone(), 0o755)] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("an own file");
    }
    let refused = Finished::of(unprivileged(directory.path()).arg("config").current_dir(&there)).expect_code(2);
    assert!(refused.stderr.contains(".env: cannot be read"), "{}", refused.stderr);
}

/// `.env.example` and `config` show the same names and the same defaults.
#[tokio::test]
async fn the_example_lists_every_variable_with_its_default() {
    let example = include_str!("../../.env.example");
    // For somebody who has only the binary: it works without a configuration and with a wrong one.
    let printed = run(&["config", "--example"], &[("LISTEN_ADDR", "nowhere")], "").await.expect_code(0).stdout;
    assert_eq!(printed, example);
    let entries = example.lines().filter_map(|line| line.strip_prefix('#')?.split_once('='));
    let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    let entries: Vec<_> = entries.filter(|(name, _)| is_name(name)).collect();
    let config = run(&["config", "--json"], &[], "").await.expect_code(0).json();
    let mut names: Vec<_> = entries.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    let known: Vec<_> = config.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(names, known);
    // Uncommenting every line changes nothing, so each default that it shows is the real one.
    let uncommented: Vec<_> = entries.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let same = run(&["config", "--json"], &[], &uncommented.join("\n")).await.expect_code(0).json();
    assert_eq!(same, config);
}

#[tokio::test]
async fn commands_explain_themselves() {
    let help = run(&["--help"], &[], "").await.expect_code(0).stdout;
    for command in ["serve", "migrate", "healthcheck", "openapi", "config"] {
        assert!(help.contains(command), "{help}");
    }
    assert!(run(&["--version"], &[], "").await.expect_code(0).stdout.contains(env!("CARGO_PKG_VERSION")));
    for wrong in [&["nonsense"][..], &["serve", "--nonsense"], &["config", "serve"]] {
        assert!(!run(wrong, &[], "").await.expect_code(2).stderr.is_empty());
    }
    // The document needs no configuration, and a wrong one doesn't matter.
    run(&["openapi"], &[("LISTEN_ADDR", "nowhere")], "").await.expect_code(0).json();
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let fleet = Fleet::builder().replicas(0).start().await;
    for (variable, other) in [("LISTEN_ADDR", "OPS_ADDR"), ("OPS_ADDR", "LISTEN_ADDR")] {
        let finished = fleet.command(&["serve"], &[(variable, &address), (other, "127.0.0.1:0")]).await.expect_code(1);
        assert!(finished.stdout.contains(&format!("{variable}={address}")), "{}", finished.stdout);
    }
}

#[tokio::test]
async fn the_health_check_says_what_readiness_says() {
    let mut fleet = Fleet::start(1).await;
    let address = fleet[0].ops_address().to_owned();
    let settings = [("OPS_ADDR", address.as_str())];
    let ready = fleet.command(&["healthcheck"], &settings).await.expect_code(0);
    assert_eq!(ready.json()["status"], "ready");
    fleet.redis.kill();
    let failing = fleet.command(&["healthcheck"], &settings).await.expect_code(1);
    assert_eq!(failing.json()["sessions"]["status"], "failing");
    fleet.command(&["healthcheck", "--live"], &settings).await.expect_code(0);
    fleet[0].kill();
    for arguments in [&["healthcheck"][..], &["healthcheck", "--live"]] {
        let absent = fleet.command(arguments, &settings).await.expect_code(1);
        assert!(absent.stderr.contains(&address), "{}", absent.stderr);
    }
}

/// The health check finds a listener on all addresses at the loopback address.
#[tokio::test]
async fn the_health_check_finds_a_wildcard_address() {
    let fleet = Fleet::builder().env("OPS_ADDR", "0.0.0.0:0").start().await;
    let address = fleet[0].ops_address().to_owned();
    assert!(address.starts_with("0.0.0.0:"), "{address}");
    fleet.command(&["healthcheck"], &[("OPS_ADDR", &address)]).await.expect_code(0);
}

/// Docker puts its client's proxy variables into every container, but to a proxy `localhost` is another machine. Runs
/// the health checks exactly as in docker-compose.yml.
#[tokio::test]
async fn health_checks_ask_no_proxy() {
    let nowhere = "http://127.0.0.1:9";
    let proxies = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    let fleet = Fleet::start(1).await;
    let mut variables = proxies.map(|name| (name, nowhere)).to_vec();
    variables.push(("OPS_ADDR", fleet[0].ops_address()));
    fleet.command(&["healthcheck"], &variables).await.expect_code(0);

    let compose = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docker-compose.yml")).expect("compose");
    let commands = compose.lines().filter_map(|line| line.trim().strip_prefix("test: [CMD, ")?.strip_suffix(']'));
    let commands: Vec<Vec<_>> =
        commands.map(|command| command.split(", ").map(|word| word.trim_matches('"')).collect()).collect();
    let of = |program: &str| commands.iter().filter(|words| words[0] == program).collect::<Vec<_>>();
    for words in of("curl") {
        let own = format!("http://{}/", fleet[0].address());
        let words = words[1..].iter().map(|word| word.replace("http://127.0.0.1:8080/", &own));
        let mut curl = std::process::Command::new("curl");
        let curl = curl.args(words).envs(proxies.map(|name| (name, nowhere))).output().expect("curl is installed");
        assert!(curl.status.success(), "{}", String::from_utf8_lossy(&curl.stderr));
    }
    // This is BusyBox's `wget`, which ignores NO_PROXY. Only the images have it, so the test can't run it.
    assert!(of("wget").iter().all(|words| words[1..3] == ["-Y", "off"]), "{commands:?}");
    assert_eq!(
        (of("curl").len(), of("wget").len()),
        (1, 2),
        "a health check that this test doesn't know: {commands:?}"
    );
}
