//! Redis over TLS, with a private certificate authority and client certificates, in every form of `REDIS_URL`.
use std::fs;

use crate::fleet::{Access, Authority, Fleet, Group, PATIENTLY, SPECIAL, within};
use crate::redis_urls::{expect_message, expect_sessions};

const TLS: Access =
    Access { login: Some(SPECIAL), sentinel_login: None, tls: true, client_certificates: true, own_addresses: false };

#[tokio::test]
async fn one_redis_by_tls() {
    let group = Group::single(TLS).await;
    expect_sessions(&group, &group.url()).await;
    expect_sessions(&group, &group.url().replace("127.0.0.1", "localhost")).await;

    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let other = Authority::new(&elsewhere.path().join("other"));
    let path = |path: &std::path::Path| path.display().to_string();
    let (ca, certificate, key) = (path(&other.certificate), path(&other.client[0]), path(&other.client[1]));
    let url = group.url();
    for (changes, messages) in [
        (&[("REDIS_CA_FILE", &*ca)][..], &["certificate", "UnknownIssuer"][..]),
        (&[("REDIS_CA_FILE", "")], &["certificate"]),
        (
            &[("REDIS_CERT_FILE", &*certificate), ("REDIS_KEY_FILE", &*key)],
            &["refuses the connection: received fatal alert"],
        ),
        (&[("REDIS_KEY_FILE", &*key)], &["REDIS_KEY_FILE", "REDIS_CERT_FILE"]),
        (&[("REDIS_CERT_FILE", ""), ("REDIS_KEY_FILE", "")], &["CertificateRequired"]),
        (&[("REDIS_CERT_FILE", "")], &["REDIS_CERT_FILE"]),
        (&[("REDIS_CA_FILE", "/nowhere/ca.crt")], &["REDIS_CA_FILE"]),
        (&[("REDIS_URL", &url.replace("rediss://", "redis://"))], &["REDIS_CA_FILE", "TLS"]),
        (&[("REDIS_URL", &url.replace("127.0.0.1", "127.0.0.2"))], &["127.0.0.2"]),
    ] {
        expect_message(&group, changes, messages).await;
    }
}

#[tokio::test]
async fn sentinels_and_their_servers_by_tls() {
    let group = Group::sentinel(Access { sentinel_login: Some(("watch", "who: watches?")), ..TLS }).await;
    expect_sessions(&group, &group.url()).await;
}

#[tokio::test]
async fn a_cluster_by_tls() {
    let group = Group::cluster(TLS).await;
    expect_sessions(&group, &group.url()).await;
}

/// The next connection uses renewed certificates, without a restart.
#[tokio::test]
async fn renewed_certificates_are_read_by_the_next_connection() {
    let mut group = Group::single(TLS).await;
    // So that the kill loses nothing.
    group.servers[0].run::<String>(&["CONFIG", "SET", "appendfsync", "always"]);
    let fleet = Fleet::builder().sessions_in(&group).start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let old = group.authority.as_ref().expect("an authority");
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let new = Authority::new(&elsewhere.path().join("new"));
    let pairs =
        [(&new.certificate, &old.certificate), (&new.client[0], &old.client[0]), (&new.client[1], &old.client[1])];
    for (new, old) in pairs.into_iter().chain(new.server.iter().zip(&old.server)) {
        fs::copy(new, old).expect("a file");
    }
    group.servers[0].kill();
    group.servers[0].start().await;
    within(PATIENTLY, "the session is valid again", async || fleet[0].check(&session).await == 200).await;
}
