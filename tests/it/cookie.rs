//! The session's cookie: its name and attributes, the token in it, and how it is found among others.
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use crate::fleet::{Fleet, PASSWORD, Session};

/// ASVS 5.0 3.3.1 to 3.3.4.
#[tokio::test]
async fn the_cookie_is_secure_unless_told_otherwise() {
    let fleet = Fleet::builder().env("COOKIE_SECURE", "").start().await;
    fleet[0].register("ada").await;
    let login = fleet[0].try_login("ada", PASSWORD).send().await;
    let session = Session::opened_by(&login);
    let (cookie, attributes) = login.set_cookie();
    assert!(cookie.starts_with("__Host-session="), "{cookie}");
    assert_eq!(attributes, ["HttpOnly", "Path=/", "SameSite=Lax", "Secure"]);
    assert_eq!(fleet[0].check(&session).await, 200);
    let renamed = format!("session={}", session.token);
    fleet[0].get("/profile").cookie(&renamed).send().await.expect_problem(401, "session_invalid");
    let logout = fleet[0].post("/auth/logout").session(&session).send().await.expect(200);
    let (cookie, attributes) = logout.set_cookie();
    assert_eq!(cookie, "__Host-session=");
    assert!(attributes.contains(&"Secure".to_owned()), "browsers take __Host- with Secure alone: {attributes:?}");
}

/// Cookies of other applications are ignored. A forged session cookie, set by a sibling domain, keeps nobody out.
#[tokio::test]
async fn the_session_is_found_among_other_cookies() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let genuine = &session.cookie;
    for cookies in [
        format!("theme=dark; {genuine}"),
        format!("{genuine};theme=dark"),
        format!("session=; {genuine}"),
        format!("{}; {genuine}", session.forged()),
        format!("session_id=1; xsession=2; {genuine}; session"),
    ] {
        fleet[0].get("/profile").cookie(&cookies).send().await.expect(200);
    }
    let both = fleet[0].get("/profile").cookie("theme=dark").session(&session);
    both.send().await.expect(200);
    for cookie in ["session", "session=", "session=\"\"", ";;;", "=", &session.forged(), &format!("x{genuine}")] {
        fleet[0].get("/profile").cookie(cookie).send().await.expect_problem(401, "session_invalid");
    }
}

/// A browser sends several cookies of one name when a sibling domain or another path planted some.
#[tokio::test]
async fn of_several_cookies_the_living_session_counts() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let ended = [fleet[0].login(&ada).await, fleet[0].login(&ada).await];
    for session in &ended {
        fleet[0].post("/auth/logout").session(session).send().await.expect(200);
    }
    let alive = fleet[0].login(&ada).await;
    let forged: Vec<_> = (0..5).map(|n| format!("session={}", "ABCDE"[n..=n].repeat(116))).collect();
    let jars = [
        format!("{}; {}", ended[0].cookie, alive.cookie),
        format!("{}; {}", alive.cookie, ended[0].cookie),
        format!("{}; {}; {}", ended[0].cookie, ended[1].cookie, alive.cookie),
        format!("{}; {}; {}", forged.join("; "), alive.forged(), alive.cookie),
    ];
    for jar in &jars {
        let profile = fleet[0].get("/profile").cookie(jar).send().await.expect(200).json();
        assert_eq!(profile["session"]["session_id"], alive.id.as_str(), "{jar}");
    }
    // A login ends the living session among them and creates another one.
    let next = Session::opened_by(&fleet[0].try_login("ada", PASSWORD).cookie(&jars[0]).send().await);
    assert_eq!((fleet[0].check(&alive).await, fleet[0].check(&next).await), (401, 200));
    // A logout ends every session that the browser sends.
    let other = fleet[0].login(&ada).await;
    let jar = format!("{}; {}; {}; {}", forged.join("; "), ended[0].cookie, next.cookie, other.cookie);
    fleet[0].post("/auth/logout").cookie(&jar).send().await.expect(200);
    assert_eq!((fleet[0].check(&next).await, fleet[0].check(&other).await), (401, 401));
    fleet[0].get("/profile").cookie(&jar).send().await.expect_problem(401, "session_invalid");
}

/// ASVS 5.0 3.3.5, 7.2.3: 256 bits from the operating system in each token, in a cookie that every browser keeps.
#[tokio::test]
async fn asvs_7_2_3_tokens_are_random_and_fit_into_a_cookie() {
    let fleet = Fleet::builder().replicas(3).env("COOKIE_SECURE", "true").start().await;
    // The token doesn't contain names, so the longest ones change nothing.
    let email = format!("{}@{}.org", "a".repeat(64), ["b".repeat(60), "c".repeat(60), "d".repeat(60)].join("."));
    let username = "\u{1f512}".repeat(64);
    let body = json!({ "email": email, "username": username, "password": PASSWORD });
    fleet[0].post("/auth/register").json(&body).send().await.expect(201);
    let mut secrets = Vec::new();
    for n in 0..64 {
        let login = fleet[n % 3].try_login(&email, PASSWORD).send().await.expect(200);
        assert!(login.header("set-cookie").expect("a cookie").len() < 4096);
        let token = URL_SAFE_NO_PAD.decode(Session::opened_by(&login).token);
        secrets.push(token.expect("base64url")[17..49].to_vec());
    }
    let ones: u32 = secrets.iter().flatten().map(|byte| byte.count_ones()).sum();
    // Half of 16384 bits, give or take eight standard deviations.
    assert!((8192 - 512..=8192 + 512).contains(&ones), "{ones} bits of {} are set", 64 * 256);
    secrets.sort();
    secrets.dedup();
    assert_eq!(secrets.len(), 64);
}
