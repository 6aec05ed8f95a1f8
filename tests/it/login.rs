//! Login: its answers, and what happens to a session that the browser sends along.
use crate::fleet::{Fleet, PASSWORD, Session};

/// ASVS 5.0 6.3.8.
#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_look_alike() {
    let fleet = Fleet::builder().full_hashing().start().await;
    let ada = fleet[0].register("ada").await;
    let hashes = async || fleet[0].count("authfleet_hash_duration_seconds_count", &[]).await;
    let mut answers = Vec::new();
    let mut before = hashes().await;
    for identifier in [ada.email.as_str(), "ada", "eve@example.org", "eve"] {
        let answer = fleet[0].try_login(identifier, "a wrong password").send().await;
        let answer = answer.expect_problem(401, "invalid_credentials");
        assert_eq!(answer.header("set-cookie"), None);
        let mut headers: Vec<_> = answer.headers.keys().map(|name| name.as_str().to_owned()).collect();
        headers.sort();
        answers.push((answer.text(), headers));
        let after = hashes().await;
        assert_eq!(after - before, 1, "one hash for {identifier}");
        before = after;
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
}

#[tokio::test]
async fn a_disabled_user_is_signed_in_nowhere() {
    let fleet = Fleet::start(2).await;
    let ada = fleet[0].register("ada").await;
    let mut db = fleet.sql().await;
    sqlx::query("UPDATE users SET disabled_at = 1, epoch = epoch + 1").execute(&mut db).await.expect("an update");
    let refused = fleet[1].try_login("ada", PASSWORD).send().await.expect_problem(401, "invalid_credentials");
    let unknown = fleet[1].try_login("nobody", PASSWORD).send().await.expect_problem(401, "invalid_credentials");
    assert_eq!(refused.body, unknown.body);
    assert!(fleet.redis.keys("session:*").is_empty());
    sqlx::query("UPDATE users SET disabled_at = NULL").execute(&mut db).await.expect("an update");
    let session = fleet[1].login(&ada).await;
    assert_eq!(fleet[0].check(&session).await, 200);
}

/// A login with a session cookie creates a new session, so that nobody can plant one, and ends the old one (ASVS 5.0
/// 7.2.4).
#[tokio::test]
async fn a_login_replaces_the_session_that_it_brings() {
    let fleet = Fleet::start(2).await;
    let (ada, eve) = (fleet[0].register("ada").await, fleet[0].register("eve").await);
    let first = fleet[0].login(&ada).await;
    let other_browser = fleet[0].login(&ada).await;
    let again = async |session: &Session, name: &str| {
        Session::opened_by(&fleet[1].try_login(name, PASSWORD).session(session).send().await)
    };
    let second = again(&first, "ada").await;
    assert!(second.token != first.token && second.id != first.id);
    assert_eq!((fleet[0].check(&first).await, fleet[0].check(&second).await), (401, 200));

    let of_eve = again(&second, "eve").await;
    assert_eq!((fleet[0].check(&second).await, fleet[0].check(&of_eve).await), (401, 200));
    assert_eq!(of_eve.user_id, eve.id);

    // A login isn't refused because of an ended or forged session, and a failed login ends nothing.
    let fifth = again(&second, "eve").await;
    let forged = fleet[0].try_login("ada", PASSWORD).cookie(&fifth.forged()).send().await;
    forged.expect(200);
    fleet[0].try_login("ada", "a wrong password").session(&fifth).send().await.expect(401);
    for session in [&other_browser, &of_eve, &fifth] {
        assert_eq!(fleet[0].check(session).await, 200);
    }
}
