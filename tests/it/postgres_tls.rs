//! PostgreSQL over TLS, with a private certificate authority and a password full of special characters.
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::fleet::postgres::{USER, hand_over};
use crate::fleet::{Authority, Finished, Fleet, Port, Postgres, SPECIAL};

/// Gives the server a certificate and its key, as files that it accepts.
fn install(server: &Postgres, pair: &[PathBuf; 2]) {
    for (from, name) in pair.iter().zip(["server.crt", "server.key"]) {
        let to = server.directory.join(name);
        fs::copy(from, &to).expect("a file");
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("an own file");
        hand_over(&to);
    }
}

#[tokio::test]
async fn sslmode_is_as_documented_and_refusals_are_clear() {
    let fleet = Fleet::builder().without_redis().unmigrated().replicas(0).start().await;
    let authority = Authority::new(&fleet.path().join("authority"));
    let other = Authority::new(&fleet.path().join("other"));
    let mut server = Postgres::new(&fleet.path().join("tls"));
    let port = Port::free();
    server.port = port.number;
    let directory = server.directory.display().to_string();
    let tls = |on: &str| {
        let files = [format!("ssl_cert_file={directory}/server.crt"), format!("ssl_key_file={directory}/server.key")];
        files
            .into_iter()
            .chain([
                "listen_addresses=127.0.0.1,127.0.0.2".to_owned(),
                format!("ssl={on}"),
                "log_connections=on".to_owned(),
            ])
            .collect()
    };
    server.settings = tls("on");
    install(&server, &authority.server);
    fs::write(server.data().join("pg_hba.conf"), "local all all trust\nhost all all 127.0.0.0/8 scram-sha-256\n")
        .expect("its rules");
    server.start().await;
    let (plain, encoded) = SPECIAL[1];
    server.query("postgres", &format!("ALTER ROLE {USER} PASSWORD '{plain}'")).await;
    server.query("postgres", "CREATE DATABASE authfleet").await;

    let url = |host: &str, parameters: &str| {
        format!("postgres://{USER}:{encoded}@{host}:{}/authfleet?{parameters}", port.number)
    };
    let with_ca =
        |mode: &str, authority: &Authority| format!("sslmode={mode}&sslrootcert={}", authority.certificate.display());
    let migrate = async |url: String| -> Finished { fleet.command(&["migrate"], &[("DATABASE_URL", &url)]).await };
    let refused = async |url: String, reason: &str| {
        let finished = migrate(url).await;
        println!("{reason}: {}", finished.stdout);
        assert_eq!(finished.code, Some(1), "{reason}");
        for part in ["DATABASE_URL", reason] {
            assert!(finished.stdout.contains(part), "{part:?} in {}", finished.stdout);
        }
        for password in [plain, encoded] {
            assert!(!finished.stderr.contains(password) && !finished.stdout.contains(password), "the password");
        }
    };

    let (full, ca) = (with_ca("verify-full", &authority), with_ca("verify-ca", &authority));
    for (host, parameters) in [
        ("127.0.0.1", &*full),
        ("localhost", &*full),
        ("127.0.0.2", &*ca),
        ("127.0.0.2", "sslmode=require"),
        ("127.0.0.1", "sslmode=prefer"),
        ("127.0.0.1", "sslmode=disable"),
    ] {
        migrate(url(host, parameters)).await.expect_code(0);
        let log = server.log();
        let connected = log
            .lines()
            .rfind(|line| line.contains("connection authorized") && line.contains("application_name=authfleet"));
        let is_encrypted = connected.expect("a line for each connection").contains("SSL enabled");
        assert_eq!(is_encrypted, parameters != "sslmode=disable", "{parameters}: {connected:?}");
    }
    let file = fleet.path().join("url");
    fs::write(&file, url("127.0.0.1", &full)).expect("a file");
    let by_file = [("DATABASE_URL", ""), ("DATABASE_URL_FILE", file.to_str().expect("UTF-8"))];
    fleet.command(&["migrate"], &by_file).await.expect_code(0);

    // A server that requires client certificates.
    let demands = "local all all trust\nhostssl all all 127.0.0.0/8 scram-sha-256 clientcert=verify-ca\n";
    let ca_file = server.directory.join("ca.crt");
    fs::copy(&authority.certificate, &ca_file).expect("a file");
    hand_over(&ca_file);
    let rules = server.data().join("pg_hba.conf");
    let usual = fs::read_to_string(&rules).expect("its rules");
    fs::write(&rules, demands).expect("its rules");
    server.query("postgres", &format!("ALTER SYSTEM SET ssl_ca_file = '{}'", ca_file.display())).await;
    server.query("postgres", "SELECT pg_reload_conf()::text").await;
    let own = |authority: &Authority| {
        let [certificate, key] = &authority.client;
        format!("{full}&sslcert={}&sslkey={}", certificate.display(), key.display())
    };
    migrate(url("127.0.0.1", &own(&authority))).await.expect_code(0);
    refused(url("127.0.0.1", &full), "certificate").await;
    refused(url("127.0.0.1", &own(&other)), "fatal alert").await;
    let missing = format!("{full}&sslcert=/nonexistent.crt&sslkey=/nonexistent.key");
    refused(url("127.0.0.1", &missing), "/nonexistent.crt").await;
    fs::write(&rules, usual).expect("its rules");
    server.query("postgres", "SELECT pg_reload_conf()::text").await;

    refused(url("127.0.0.1", &with_ca("verify-full", &other)), "invalid peer certificate: BadSignature").await;
    refused(url("127.0.0.1", &with_ca("verify-ca", &other)), "invalid peer certificate: BadSignature").await;
    refused(url("127.0.0.2", &full), "not valid for name").await;
    install(&server, &authority.expired);
    server.query("postgres", "SELECT pg_reload_conf()::text").await;
    refused(url("127.0.0.1", &full), "expired").await;
    server.kill();
    server.settings = tls("off");
    server.start().await;
    refused(url("127.0.0.1", &full), "TLS").await;
    refused(url("127.0.0.1", "sslmode=require"), "TLS").await;
    migrate(url("127.0.0.1", "sslmode=prefer")).await.expect_code(0);
}
