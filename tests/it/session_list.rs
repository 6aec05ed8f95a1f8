//! The list of a user's sessions: which sessions it has, what it says about each, and that reading it changes nothing.
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::fleet::{Fleet, PASSWORD, Session};

const IDLE: Duration = Duration::from_mins(30);

fn time(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no time"))
}

/// The user's sessions, as this replica lists them.
pub(crate) async fn listed(fleet: &Fleet, replica: usize, session: &Session) -> Vec<Value> {
    let answer = fleet[replica].get("/auth/sessions").session(session).send().await.expect(200);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    answer.json()["sessions"].as_array().expect("a list").clone()
}

fn ids(sessions: &[Value]) -> Vec<&str> {
    sessions.iter().map(|session| session["session_id"].as_str().expect("an id")).collect()
}

/// ASVS 5.0 7.5.2.
#[tokio::test]
async fn asvs_7_5_2_a_user_sees_every_session_and_only_their_own() {
    let fleet = Fleet::builder().replicas(3).env("TRUSTED_PROXIES", "127.0.0.1").start().await;
    let (ada, eve) = (fleet[0].register("ada").await, fleet[0].register("eve").await);
    let of_eve = fleet[0].login(&eve).await;
    let mut sessions = Vec::new();
    for (n, replica) in fleet.replicas().iter().enumerate() {
        let login = replica.try_login(&ada.email, PASSWORD).header("user-agent", &format!("browser/{n}"));
        let login = login.header("x-forwarded-for", &format!("203.0.113.{n}")).send().await;
        sessions.push(Session::opened_by(&login));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for replica in 0..3 {
        let list = listed(&fleet, replica, &sessions[1]).await;
        assert_eq!(ids(&list), [&*sessions[2].id, &*sessions[1].id, &*sessions[0].id], "newest first");
        for (entry, n) in list.iter().zip([2, 1, 0]) {
            let mut fields: Vec<_> = entry.as_object().expect("an object").keys().map(String::as_str).collect();
            fields.sort_unstable();
            let expected = [
                "created_at",
                "created_by",
                "current",
                "expires_at",
                "idle_expires_at",
                "ip",
                "last_seen_at",
                "session_id",
                "user_agent",
            ];
            assert_eq!(fields, expected);
            assert_eq!(entry["current"], n == 1, "{entry}");
            assert_eq!(entry["created_by"], format!("replica-{}", n + 1));
            assert_eq!(
                (&entry["ip"], &entry["user_agent"]),
                (&json!(format!("203.0.113.{n}")), &json!(format!("browser/{n}")))
            );
            assert_eq!(entry["created_at"], sessions[n].body["created_at"]);
            assert_eq!(entry["expires_at"], sessions[n].body["expires_at"]);
        }
    }
    assert_eq!(ids(&listed(&fleet, 2, &of_eve).await), [&*of_eve.id]);

    // A session that has ended in any way is no longer listed.
    fleet[0].post("/auth/logout").session(&sessions[0]).send().await.expect(200);
    fleet.redis.run::<i64>(&["DEL", &sessions[2].key()]);
    assert_eq!(ids(&listed(&fleet, 1, &sessions[1]).await), [&*sessions[1].id]);
    fleet[0].get("/auth/sessions").send().await.expect_problem(401, "session_invalid");
    fleet[0].get("/auth/sessions").session(&sessions[0]).send().await.expect_problem(401, "session_invalid");
}

/// Listing writes nothing, and renews only the session that makes the request.
#[tokio::test]
async fn last_seen_follows_from_the_time_to_live() {
    let fleet = Fleet::start(2).await;
    let ada = fleet[0].register("ada").await;
    let (asking, idle) = (fleet[0].login(&ada).await, fleet[0].login(&ada).await);
    let unused_for = SignedDuration::from_mins(10);
    let left = IDLE.saturating_sub(unused_for.unsigned_abs()).as_millis().to_string();
    // Makes the session an hour old for the list, since no session can be seen before it was created.
    let made = (time(&idle.body["created_at"]) - SignedDuration::from_hours(1)).to_string();
    fleet.redis.run::<i64>(&["HSET", &idle.key(), "created_at", &made]);
    fleet.redis.run::<i64>(&["PEXPIRE", &idle.key(), &left]);
    // One more request, so that this session was seen later than the login that it is compared with.
    assert_eq!(fleet[1].check(&asking).await, 200);
    let mut list = Vec::new();
    let used = fleet.cost(async || list = listed(&fleet, 1, &asking).await).await;

    let entry = |session: &Session| list.iter().find(|entry| entry["session_id"] == session.id).expect("listed");
    let seen = |session: &Session| time(&entry(session)["last_seen_at"]);
    let signed_in = time(&asking.body["created_at"]);
    let since = seen(&asking).duration_since(signed_in);
    let (second, slack) = (SignedDuration::from_secs(1), SignedDuration::from_secs(30));
    assert!(-second <= since && since < slack, "the one who asks was seen {since:?} after signing in");
    let apart = seen(&asking).duration_since(seen(&idle));
    assert!(unused_for - slack < apart && apart <= unused_for + slack, "{apart:?}");
    assert_eq!(time(&entry(&idle)["idle_expires_at"]).duration_since(seen(&idle)).unsigned_abs(), IDLE);

    // The check of the session that makes the request, and then only reads: the index of each format, and the sessions.
    let index = [("zrange", 1), ("evalsha", 1), ("lrange", 1)];
    let expected = [("hmget", 1), ("pexpire", 1), index[0], index[1], index[2], ("hgetall", 2), ("pttl", 2)];
    assert_eq!(used.commands, expected.map(|(command, calls)| (command.to_owned(), calls)).into(), "{used:?}");
    assert!(fleet.redis.run::<i64>(&["PTTL", &idle.key()]) <= left.parse::<i64>().expect("a number"));
}
