//! Replicas that keep new sessions in different formats (`SESSION_FORMAT`), as during a rollout of the compact one, in
//! either direction: each knows what the other opens, and ends what the other opens.
use std::time::Duration;

use serde_json::{Value, json};

use crate::fleet::{
    APP, Access, Fleet, Group, MIXED, PASSWORD, PATIENTLY, Proxy, Session, Visitor, bucket, identity, opened_at, within,
};
use crate::session_list::listed;

const NEW_PASSWORD: &str = "staple a battery horse";
const BROWSER: &str =
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36";

/// The first replica keeps sessions in the classic format, the second in the compact one.
async fn mixed() -> Fleet {
    Fleet::builder().session_format(MIXED).replicas(2).start().await
}

async fn expect_alive(fleet: &Fleet, sessions: &[(&Session, bool)]) {
    for replica in fleet.replicas() {
        for (session, alive) in sessions {
            assert_eq!(replica.check(session).await, if *alive { 200 } else { 401 }, "{}", session.key());
        }
    }
}

fn ids(sessions: &[&Session]) -> Vec<String> {
    sessions.iter().map(|session| session.id.clone()).collect()
}

/// Everything that the classic format has can be read in the compact one, in less memory.
#[tokio::test]
async fn a_compact_session_can_be_read_in_redis() {
    let fleet = mixed().await;
    let ada = fleet[0].register("ada").await;
    let mut bytes = Vec::new();
    for replica in fleet.replicas() {
        let session =
            Session::opened_by(&replica.try_login("ada", PASSWORD).header("user-agent", BROWSER).send().await);
        bytes.push(fleet.redis.run::<i64>(&["MEMORY", "USAGE", &session.key()]));
        let mut fields: Vec<(String, String)> = fleet.redis.run(&["HGETALL", &session.key()]);
        fields.sort();
        let time =
            |field: &str| -> jiff::Timestamp { session.body[field].as_str().expect("a time").parse().expect("a time") };
        let (created_at, expires_at) = (time("created_at"), time("expires_at"));
        let written = |time: jiff::Timestamp| {
            if session.is_compact() { time.as_second().to_string() } else { time.to_string() }
        };
        let expected = [
            ("created_at", written(created_at)),
            ("created_by", fields[1].1.clone()),
            ("email", ada.email.clone()),
            ("expires_at", written(expires_at)),
            ("ip", "127.0.0.1".to_owned()),
            ("user_agent", "Chrome 141, Windows".to_owned()),
            ("user_id", ada.id.clone()),
            ("username", "ada".to_owned()),
        ];
        assert_eq!(fields, expected.map(|(field, value)| (field.to_owned(), value)));
        assert_eq!(expires_at.duration_since(created_at), jiff::SignedDuration::from_hours(24));
        // What the text was before it was shortened is in the audit log.
        let log = replica.log();
        let login = log.iter().find(|line| line["event"] == "login" && line["session_id"] == *session.id);
        assert_eq!(login.expect("an audit event")["user_agent"], BROWSER);
        let profile = fleet[0].get("/profile").session(&session).send().await.expect(200).json();
        for field in ["created_at", "expires_at"] {
            assert_eq!(profile["session"][field], session.body[field], "{profile}");
        }
        assert_eq!(fleet.redis.run::<i64>(&["DEL", &session.key()]), 1);
        fleet[1].get("/profile").session(&session).send().await.expect_problem(401, "session_invalid");
    }
    assert!(bytes[1] < bytes[0], "bytes of a classic and a compact session, without the index: {bytes:?}");
}

#[tokio::test]
async fn sessions_of_both_formats_are_listed_and_ended_anywhere() {
    let fleet = mixed().await;
    let (ada, eve) = (fleet[0].register("ada").await, fleet[1].register("eve").await);
    let of_eve = [fleet[0].login(&eve).await, fleet[1].login(&eve).await];
    for ender in [0, 1] {
        let classic = fleet[0].login(&ada).await;
        tokio::time::sleep(Duration::from_millis(1001)).await;
        let compact = fleet[1].login(&ada).await;
        assert_eq!([classic.is_compact(), compact.is_compact()], [false, true]);
        for replica in [0, 1] {
            for by in [&classic, &compact] {
                let seen = listed(&fleet, replica, by).await;
                let seen: Vec<_> = seen.iter().map(|entry| entry["session_id"].as_str().expect("an id")).collect();
                assert_eq!(seen, ids(&[&compact, &classic]), "newest first");
            }
        }
        expect_alive(&fleet, &[(&classic, true), (&compact, true)]).await;
        // One ends the other, whose format it doesn't know.
        let (by, other) = if ender == 0 { (&compact, &classic) } else { (&classic, &compact) };
        let revoke = |id: &str| fleet[ender].call("DELETE", &format!("/auth/sessions/{id}")).session(by).send();
        revoke(&other.id).await.expect(204);
        revoke(&other.id).await.expect_problem(404, "session_not_found");
        for foreign in &of_eve {
            revoke(&foreign.id).await.expect_problem(404, "session_not_found");
        }
        expect_alive(&fleet, &[(other, false), (by, true)]).await;
        fleet[ender].post("/auth/logout").session(by).send().await.expect(200);
        expect_alive(&fleet, &[(by, false), (&of_eve[0], true), (&of_eve[1], true)]).await;
    }
    assert_eq!(fleet.redis.sessions_of(&ada.id), Vec::<String>::new());
}

#[tokio::test]
async fn whatever_ends_all_sessions_ends_those_of_both_formats() {
    let fleet = mixed().await;
    for (n, way) in ["revoke all", "keep current", "password", "account", "disable", "group", "session revoke"]
        .into_iter()
        .flat_map(|way| [(0, way), (1, way)])
    {
        let name = format!("ada-{n}-{}", way.replace(' ', "-"));
        let ada = fleet[0].register(&name).await;
        let (classic, compact) = (fleet[0].login(&ada).await, fleet[1].login(&ada).await);
        let asking = fleet[1 - n].login(&ada).await;
        let change = json!({ "current_password": PASSWORD, "new_password": NEW_PASSWORD });
        let call = |method: &str, path: &str| fleet[n].call(method, path).session(&asking);
        let mut alive = false;
        match way {
            "revoke all" => drop(call("DELETE", "/auth/sessions").send().await.expect(204)),
            "keep current" => {
                call("DELETE", "/auth/sessions?keep=current").send().await.expect(204);
                alive = true;
            }
            "password" => drop(call("POST", "/auth/password").json(&change).send().await.expect(200)),
            "account" => {
                let body = json!({ "password": PASSWORD });
                call("DELETE", "/auth/account").json(&body).send().await.expect(204);
            }
            "disable" => drop(fleet.command(&["user", "disable", &name], &[]).await.expect_code(0)),
            "group" => drop(fleet.command(&["user", "group", "add", &name, "staff"], &[]).await.expect_code(0)),
            _ => {
                let ended = fleet.command(&["session", "revoke", "--user", &name, "--json"], &[]).await.expect_code(0);
                assert_eq!(ended.json()["sessions_ended"], 3);
            }
        }
        expect_alive(&fleet, &[(&classic, false), (&compact, false), (&asking, alive)]).await;
        if matches!(way, "revoke all" | "keep current" | "group" | "session revoke") {
            for replica in fleet.replicas() {
                let next = replica.login(&ada).await;
                expect_alive(&fleet, &[(&next, true)]).await;
            }
        }
    }
}

/// A login that sends a session along ends it, whatever the formats of the two are.
#[tokio::test]
async fn a_login_replaces_a_session_of_either_format() {
    let fleet = mixed().await;
    let ada = fleet[0].register("ada").await;
    for (before, after) in [(0, 1), (1, 0), (1, 1), (0, 0)] {
        let old = fleet[before].login(&ada).await;
        let new = Session::opened_by(&fleet[after].try_login("ada", PASSWORD).session(&old).send().await);
        expect_alive(&fleet, &[(&old, false), (&new, true)]).await;
        let audited = |line: &Value| {
            line["event"] == "session_ended" && line["reason"] == "replaced" && line["session_id"] == *old.id
        };
        assert!(fleet[after].log().iter().any(audited), "it is recorded");
    }
}

#[tokio::test]
async fn the_limit_per_user_holds_over_both_formats() {
    let fleet = Fleet::builder().session_format(MIXED).replicas(2).env("SESSIONS_PER_USER", "3").start().await;
    let (ada, eve) = (fleet[0].register("ada").await, fleet[0].register("eve").await);
    let of_eve = fleet[1].login(&eve).await;
    let mut sessions = Vec::new();
    for n in 0..6 {
        sessions.push(fleet[n % 2].login(&ada).await);
        // The compact format keeps whole seconds.
        tokio::time::sleep(Duration::from_millis(1001)).await;
    }
    let alive: Vec<_> = sessions.iter().enumerate().map(|(n, session)| (session, n >= 3)).collect();
    expect_alive(&fleet, &alive).await;
    futures::future::join_all((0..12).map(|n| fleet[n % 2].login(&ada))).await;
    let left = fleet.redis.sessions_of(&ada.id).len();
    assert!((1..=3).contains(&left), "{left} of those that signed in at once");
    expect_alive(&fleet, &[(&of_eve, true)]).await;
}

/// An application's cookie is good for a session of either format, and dies with it.
#[tokio::test]
async fn sessions_of_both_formats_get_to_applications() {
    let fleet = Fleet::builder().session_format(MIXED).replicas(2).with_applications().start().await;
    let ada = fleet[0].register("ada").await;
    for maker in [0, 1] {
        let session = fleet[maker].login(&ada).await;
        for other in [0, 1] {
            // Each step goes to another replica.
            let visitor = Visitor::comes(&fleet[other], APP, "/").await;
            let callback = visitor.signed_in(&fleet[1 - other], &session).await;
            let answer = visitor.calls_back(&fleet[other], &callback).send().await.expect(302);
            let (cookie, _) = answer.set_cookie();
            let ask = async |replica: usize| {
                Proxy::Forward.ask(&fleet[replica], "GET", APP, "/x").cookie(&cookie).send().await
            };
            for replica in [0, 1] {
                assert_eq!(identity(&ask(replica).await.expect(200))[4], session.id);
            }
            visitor.calls_back(&fleet[1 - other], &callback).send().await.expect(400);
        }
        let cookie = opened_at(&fleet[1 - maker], &session, APP).await;
        fleet[1 - maker].post("/auth/logout").session(&session).send().await.expect(200);
        for replica in fleet.replicas() {
            let answer = Proxy::Nginx.ask(replica, "GET", APP, "/x").cookie(&cookie).send().await;
            assert_eq!(answer.status, 401);
        }
    }
}

#[tokio::test]
async fn the_command_line_knows_sessions_of_both_formats() {
    let fleet = mixed().await;
    let ada = fleet[0].register("ada").await;
    let sessions = [fleet[0].login(&ada).await, fleet[1].login(&ada).await];
    let list = fleet.command(&["session", "list", "ada", "--json"], &[]).await.expect_code(0).json();
    assert_eq!(list["sessions"].as_array().expect("a list").len(), 2, "{list}");
    for session in &sessions {
        for named in [&session.id, &session.token] {
            let found = fleet.command(&["session", "inspect", named, "--json"], &[]).await.expect_code(0).json();
            assert_eq!((&found["session_id"], &found["user_id"]), (&json!(session.id), &json!(ada.id)), "{found}");
            assert_eq!(found["session"]["created_at"], session.body["created_at"], "{found}");
        }
        fleet.command(&["session", "revoke", &session.id], &[]).await.expect_code(0);
        expect_alive(&fleet, &[(session, false)]).await;
        fleet.command(&["session", "inspect", &session.id], &[]).await.expect_code(1);
    }
    let mut fleet = fleet;
    fleet[0].login(&ada).await;
    fleet[1].login(&ada).await;
    // A replica counts sessions when it starts.
    fleet.add_replica().await;
    let counted = async || fleet[2].count("authfleet_sessions_alive", &[]).await == 2;
    within(PATIENTLY, "sessions of both formats are counted", counted).await;
}

/// The way back from the compact format. What was kept in it is accepted as long as it lives, and can be ended.
#[tokio::test]
async fn a_fleet_changes_its_format_and_back() {
    let mut fleet = Fleet::builder().session_format("classic").replicas(2).start().await;
    let ada = fleet[0].register("ada").await;
    let mut living = vec![fleet[0].login(&ada).await];
    for format in ["compact", "classic"] {
        for replica in [0, 1] {
            fleet[replica].restart(&[("SESSION_FORMAT", format)]).await;
            living.extend([fleet[0].login(&ada).await, fleet[1].login(&ada).await]);
            for session in &living {
                expect_alive(&fleet, &[(session, true)]).await;
            }
        }
    }
    let compact = living.iter().filter(|session| session.is_compact()).count();
    assert!(compact >= 4 && compact < living.len(), "{compact} of {}", living.len());
    let asking = living.pop().expect("sessions");
    fleet[0].call("DELETE", "/auth/sessions?keep=current").session(&asking).send().await.expect(204);
    for session in &living {
        expect_alive(&fleet, &[(session, false)]).await;
    }
    assert_eq!(fleet.redis.sessions_of(&ada.id), [asking.key()]);
}

/// A revocation is acknowledged once replicas of Redis have it in both formats, which in a cluster are in two shards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_both_formats_shards_confirm_a_revocation() {
    let group = Group::cluster(Access::default()).await;
    let fleet = Fleet::builder().session_format(MIXED).sessions_in(&group).replicas(2).start().await;
    // A user with the two in different shards.
    let mut found = None;
    for n in 0..60 {
        let user = fleet[0].register(&format!("ada{n}")).await;
        let shards = [user.id.clone(), bucket(&user.id)].map(|tag| group.owner(&format!("{{{tag}}}"), 0));
        if shards[0] != shards[1] {
            found = Some((user, shards.map(|shard| shard.expect("a server has the key"))));
            break;
        }
    }
    let (ada, shards) = found.expect("one of 60 users");
    for (asked, shard) in shards.into_iter().enumerate() {
        let asking = fleet[asked].login(&ada).await;
        let others = [fleet[0].login(&ada).await, fleet[1].login(&ada).await];
        // Frozen, its replica confirms nothing.
        group.servers[shard + 3].freeze();
        let revoke = || fleet[asked].call("DELETE", "/auth/sessions?keep=current").session(&asking).send();
        revoke().await.expect_problem(503, "store_unavailable");
        group.servers[shard + 3].thaw();
        let acknowledged = async || revoke().await.status == 204;
        within(PATIENTLY, "asked again, it is confirmed", acknowledged).await;
        expect_alive(&fleet, &[(&others[0], false), (&others[1], false), (&asking, true)]).await;
    }
    // All keys that one script touches are in one slot.
    for (shard, server) in group.servers[..3].iter().enumerate() {
        for key in server.keys("*{*") {
            let tag = key.split_once('{').expect("a tag").1.split_once('}').expect("a tag").0.to_owned();
            assert_eq!(group.owner(&format!("{{{tag}}}"), 0), Some(shard), "{key}");
        }
    }
}
