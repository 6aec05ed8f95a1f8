//! Every form of `REDIS_URL` works with real servers, and messages about a wrong one don't contain its password.
use crate::fleet::{Access, Fleet, Group, SPECIAL};

/// Access with a user and password at Redis and at the Sentinels, with or without TLS.
fn closed(tls: bool) -> Access {
    Access {
        login: Some(SPECIAL),
        sentinel_login: Some(("watch", "who: watches?")),
        tls,
        client_certificates: tls,
        own_addresses: false,
    }
}

/// Fails the test unless replicas with this URL create, find and end a session.
pub(crate) async fn expect_sessions(group: &Group, url: &str) {
    let fleet = Fleet::builder().sessions_in(group).env("REDIS_URL", url).replicas(2).start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    assert_eq!(fleet[1].check(&session).await, 200, "{url}");
    fleet[1].ops("/readyz").await.expect(200);
    fleet[1].post("/auth/logout").session(&session).send().await.expect(200);
    assert_eq!(fleet[0].check(&session).await, 401, "{url}");
    fleet[0].login(&ada).await;
}

/// Fails the test unless `doctor`, with these variables changed, reports one of `messages` and the name of a variable.
pub(crate) async fn expect_message(group: &Group, changes: &[(&str, &str)], messages: &[&str]) {
    let fleet = Fleet::builder().sessions_in(group).replicas(0).start().await;
    let finished = fleet.command(&["doctor"], changes).await;
    let said = format!("{}{}", finished.stdout, finished.stderr);
    assert_ne!(finished.code, Some(0), "{changes:?}: {said}");
    let about =
        said.lines().filter(|line| line.contains("REDIS_") || line.starts_with("FAIL")).collect::<Vec<_>>().join("\n");
    assert!(messages.iter().any(|message| about.contains(message)), "{changes:?}: {said}");
    let secrets = [SPECIAL[1].0, SPECIAL[1].1, "who: watches?", "Zq7wrong"];
    assert!(secrets.iter().all(|secret| !said.contains(secret)), "{changes:?}: {said}");
}

/// The databases that contain keys.
fn databases(group: &Group, server: usize) -> Vec<String> {
    let text: String = group.servers[server].run(&["INFO", "keyspace"]);
    text.lines()
        .filter_map(|line| Some(line.split_once(':')?.0.to_owned()).filter(|name| name.starts_with("db")))
        .collect()
}

#[tokio::test]
async fn one_redis_is_reached_by_tcp_and_by_socket() {
    let group = Group::single(closed(false)).await;
    expect_sessions(&group, &format!("{}/3", group.url())).await;
    assert_eq!(databases(&group, 0), ["db3"]);
    group.servers[0].run::<String>(&["FLUSHALL"]);
    let [(_, name), (_, password)] = SPECIAL;
    let socket = group.servers[0].socket().display().to_string();
    expect_sessions(&group, &format!("unix://{socket}?db=5&user={name}&pass={password}")).await;
    assert_eq!(databases(&group, 0), ["db5"]);

    let port = group.servers[0].address();
    for (url, messages) in [
        (group.url().replace("redis://", "rediss://"), &[&*port][..]),
        (group.url().replace("redis://", "redis-cluster://"), &["cluster"]),
        (group.url().replace("redis://", "redis-sentinel://") + "/main", &["Sentinel"]),
        (format!("redis://{name}:Zq7wrong@{port}"), &["uthentication failed"]),
        (format!("redis://{port}"), &["NOAUTH"]),
        (format!("redis://{name}:{password}@127.0.0.1:1"), &["127.0.0.1:1"]),
        (format!("redis://{name}:{password}@nowhere.invalid"), &["nowhere.invalid"]),
        (format!("redis-cluster://{name}:{password}@{port}/1"), &["database number"]),
        (format!("unix://{socket}-not?user={name}&pass={password}"), &["redis.sock-not"]),
        (format!("http://{name}:{password}@{port}"), &["begins neither"]),
    ] {
        expect_message(&group, &[("REDIS_URL", &url)], messages).await;
    }
}

#[tokio::test]
async fn sentinels_lead_to_the_primary() {
    let group = Group::sentinel(closed(false)).await;
    expect_sessions(&group, &format!("{}?db=2", group.url())).await;
    assert_eq!(databases(&group, 0), ["db2"]);
    let [(_, name), (_, password)] = SPECIAL;
    let sentinel = group.sentinels[0].address();
    for (changes, message) in [
        (("REDIS_URL", format!("redis-sentinel://{name}:{password}@{sentinel}/other")), "\"other\""),
        (("REDIS_URL", format!("redis-sentinel://{name}:Zq7wrong@{sentinel}/main")), "uthentication failed"),
        (("REDIS_URL", format!("redis-sentinel://{name}:{password}@127.0.0.1:1/main")), "127.0.0.1:1"),
        (("REDIS_SENTINEL_PASSWORD", "Zq7wrong".to_owned()), "uthentication failed"),
    ] {
        expect_message(&group, &[(changes.0, &changes.1)], &[message]).await;
    }
}

#[tokio::test]
async fn a_cluster_is_reached_by_any_of_its_members() {
    let group = Group::cluster(closed(false)).await;
    expect_sessions(&group, &group.url()).await;
    let [(_, name), (_, password)] = SPECIAL;
    let replica = group.servers[5].address();
    expect_sessions(&group, &format!("redis-cluster://{name}:{password}@127.0.0.1:1,{replica}")).await;
    for (url, message) in [
        (format!("redis-cluster://{name}:Zq7wrong@{replica}"), "uthentication failed"),
        (format!("redis-cluster://{name}:{password}@127.0.0.1:1"), "127.0.0.1:1"),
        (format!("redis-cluster://{name}:{password}@{replica}?db=1"), "database number"),
        (format!("redis://{name}:{password}@{}", group.servers[0].address()), "which has only a part of the sessions"),
    ] {
        expect_message(&group, &[("REDIS_URL", &url)], &[message]).await;
    }
}
