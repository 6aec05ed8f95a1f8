//! What a session check costs Redis.
use crate::fleet::Fleet;

const REQUESTS: u64 = 100;

#[tokio::test]
async fn a_session_check_is_one_round_trip_of_two_commands() {
    for format in ["classic", "compact"] {
        let fleet = Fleet::builder().session_format(format).start().await;
        let session = fleet[0].login(&fleet[0].register("ada").await).await;
        assert_eq!(fleet[0].check(&session).await, 200);
        let checks = async |status: u16| {
            for _ in 0..REQUESTS {
                assert_eq!(fleet[0].check(&session).await, status);
            }
        };
        let used = fleet.cost(async || checks(200).await).await;
        // Nothing else is sent: no PING, no UNWATCH, no second round trip.
        let expected = [("hmget".to_owned(), REQUESTS), ("pexpire".to_owned(), REQUESTS)];
        assert_eq!(used.commands, expected.into(), "{used:?}");
        assert_eq!(used.reads, REQUESTS, "{used:?}");

        // The same for sessions that have ended.
        fleet[0].post("/auth/logout").session(&session).send().await.expect(200);
        let used = fleet.cost(async || checks(401).await).await;
        assert_eq!((used.commands.values().sum::<u64>(), used.reads), (2 * REQUESTS, REQUESTS), "{used:?}");
    }
}

/// ASVS 5.0 7.2.1.
#[tokio::test]
async fn without_a_genuine_cookie_redis_is_not_asked() {
    let fleet = Fleet::start(1).await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let refused = async || {
        for _ in 0..20 {
            for path in ["/profile", "/auth/logout"] {
                let method = if path == "/profile" { "GET" } else { "POST" };
                fleet[0].call(method, path).send().await.expect(401);
                for cookie in [session.forged().as_str(), "session=", "session=nonsense", "theme=dark"] {
                    fleet[0].call(method, path).cookie(cookie).send().await.expect(401);
                }
            }
        }
    };
    let used = fleet.cost(refused).await;
    assert!(used.commands.is_empty() && used.reads == 0, "{used:?}");
}
