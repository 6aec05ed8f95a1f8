//! How a session gets to the host of an application: by `start`, the page for signing in, a code, and `callback`; and
//! which attempts at this fail.
use crate::fleet::{APP, Answer, Fleet, LOGIN_HOST, Proxy, Session, Visitor, WIKI, identity, opened_at};

async fn fleet() -> (Fleet, Session) {
    let fleet = Fleet::builder().replicas(3).with_applications().start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    (fleet, session)
}

#[track_caller]
fn refused(answer: Answer) {
    let answer = answer.expect_problem(400, "code_invalid");
    assert_eq!((answer.header("set-cookie"), answer.header("location")), (None, None));
}

/// Each step goes to another replica.
#[tokio::test]
async fn somebody_who_is_signed_in_gets_to_an_application() {
    let (fleet, session) = fleet().await;
    let visitor = Visitor::comes(&fleet[0], APP, "/x?y=1&z=%2F#top").await;
    let callback = visitor.signed_in(&fleet[1], &session).await;
    let answer = visitor.calls_back(&fleet[2], &callback).send().await.expect(302);
    assert_eq!(answer.header("location"), Some("http://app.example.test/x?y=1&z=%2F"));
    assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let (cookie, attributes) = answer.set_cookie();
    assert!(cookie.starts_with("authfleet="), "{cookie}");
    assert_eq!(attributes, ["HttpOnly", "Path=/", "SameSite=Lax"]);
    for replica in fleet.replicas() {
        let answer = Proxy::Forward.ask(replica, "GET", APP, "/x").cookie(&cookie).send().await.expect(200);
        assert_eq!(identity(&answer)[4], session.id);
    }
    // It's the same session, whose list of hosts says so.
    assert_eq!(fleet.redis.run::<String>(&["HGET", &session.key(), "hosts"]), APP);
    opened_at(&fleet[0], &session, WIKI).await;
    assert_eq!(fleet.redis.run::<String>(&["HGET", &session.key(), "hosts"]), format!("{WIKI},{APP}"));
    assert_eq!(fleet.redis.keys("session:*").len(), 1);
}

#[tokio::test]
async fn over_https_both_cookies_are_bound_to_their_host_by_name() {
    let fleet = Fleet::builder().with_applications().env("COOKIE_SECURE", "true");
    let fleet = fleet.env("PUBLIC_URL", &format!("https://{LOGIN_HOST}")).start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let start = fleet[0].get("/.authfleet/start?to=/").header("host", APP).send().await.expect(302);
    let (start_cookie, attributes) = start.set_cookie();
    assert!(start_cookie.starts_with("__Host-authfleet-start="), "{start_cookie}");
    assert_eq!(attributes, ["HttpOnly", "Max-Age=1800", "Path=/", "SameSite=Lax", "Secure"]);
    let sign_in =
        start.header("location").and_then(|url| url.strip_prefix("https://login.example.test")).expect("a path");
    let answer = fleet[0].get(sign_in).session(&session).send().await.expect(303);
    let callback =
        answer.header("location").and_then(|url| url.strip_prefix("https://app.example.test")).expect("a path");
    let opened = fleet[0].get(callback).header("host", APP).cookie(&start_cookie).send().await.expect(302);
    let (cookie, attributes) = opened.set_cookie();
    assert!(cookie.starts_with("__Host-authfleet="), "{cookie}");
    assert_eq!(attributes, ["HttpOnly", "Path=/", "SameSite=Lax", "Secure"]);
}

#[tokio::test]
async fn a_code_is_good_once() {
    let (fleet, session) = fleet().await;
    let visitor = Visitor::comes(&fleet[0], APP, "/").await;
    let callback = visitor.signed_in(&fleet[0], &session).await;
    visitor.calls_back(&fleet[1], &callback).send().await.expect(302);
    refused(visitor.calls_back(&fleet[2], &callback).send().await);

    // Several callbacks at the same time: one gets the session.
    let callback = visitor.signed_in(&fleet[0], &session).await;
    let calls = (0..12).map(|n| visitor.calls_back(&fleet[n % 3], &callback).send());
    let answers = futures::future::join_all(calls).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 302).count(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.status == 400).count(), 11);
}

#[tokio::test]
async fn a_code_is_good_for_30_seconds_and_is_not_readable_in_redis() {
    let (fleet, session) = fleet().await;
    let visitor = Visitor::comes(&fleet[0], APP, "/").await;
    let callback = visitor.signed_in(&fleet[0], &session).await;
    let code = callback.strip_prefix("/.authfleet/callback?code=").expect("a code");
    let [key] = <[String; 1]>::try_from(fleet.redis.keys("user:*:code:*")).expect("one code");
    let left: i64 = fleet.redis.run(&["PTTL", &key]);
    assert!((1..=30_000).contains(&left), "{left} ms");
    let kept = format!("{key} {:?}", fleet.redis.run::<Vec<String>>(&["HGETALL", &key]));
    let value = visitor.start.split_once('=').expect("a cookie").1;
    assert!(!kept.contains(code) && !kept.contains(value), "{kept}");
    // The code expires in Redis, so it is gone for every replica.
    fleet.redis.run::<i64>(&["PEXPIRE", &key, "1"]);
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    refused(visitor.calls_back(&fleet[1], &callback).send().await);
}

/// An attacker has somebody else's browser take a code of the attacker's session (login CSRF, RFC 6819 section
/// 4.4.1.8), or steals a code on its way.
#[tokio::test]
async fn another_browser_gets_nothing_for_a_code_and_uses_it_up() {
    let (fleet, session) = fleet().await;
    let visitor = Visitor::comes(&fleet[0], APP, "/").await;
    let other = Visitor::comes(&fleet[0], APP, "/").await;
    assert_ne!(visitor.start, other.start);
    for start in [other.start.as_str(), "", "authfleet-start=", "authfleet-start=AAAA"] {
        let callback = visitor.signed_in(&fleet[0], &session).await;
        let elsewhere = Visitor { start: start.to_owned(), ..visitor.clone() };
        refused(elsewhere.calls_back(&fleet[1], &callback).send().await);
        if start == other.start {
            refused(visitor.calls_back(&fleet[2], &callback).send().await);
        }
    }
    // Nobody can choose the value: one of ours is kept, and anything else is replaced.
    let start = async |cookie: &str| {
        let answer = fleet[0].get("/.authfleet/start?to=/").header("host", APP).cookie(cookie).send().await.expect(302);
        answer.set_cookie().0
    };
    assert_ne!(start("authfleet-start=chosen").await, "authfleet-start=chosen");
    assert_eq!(start(&visitor.start).await, visitor.start, "for several tabs");
}

#[tokio::test]
async fn a_code_is_good_at_its_host_alone() {
    let (fleet, session) = fleet().await;
    let visitor = Visitor::comes(&fleet[0], APP, "/").await;
    for host in [WIKI, LOGIN_HOST, "evil.example", "app.example.test:8080", "x.apps.example.test"] {
        let callback = visitor.signed_in(&fleet[0], &session).await;
        let answer = fleet[0].get(&callback).header("host", host).cookie(&visitor.start).send().await;
        let protected = [WIKI, "x.apps.example.test"].contains(&host);
        if protected {
            refused(answer);
            refused(visitor.calls_back(&fleet[0], &callback).send().await);
        } else {
            assert_eq!(answer.expect_problem(404, "not_found").header("set-cookie"), None);
        }
    }
}

#[tokio::test]
async fn a_code_dies_with_its_session() {
    let (fleet, session) = fleet().await;
    let visitor = Visitor::comes(&fleet[0], APP, "/").await;
    let callback = visitor.signed_in(&fleet[0], &session).await;
    fleet[1].post("/auth/logout").session(&session).send().await.expect(200);
    refused(visitor.calls_back(&fleet[2], &callback).send().await);
    assert!(fleet.redis.keys("session:*").is_empty(), "and brings nothing back");
    // The session has ended.
    let page = fleet[0].get(&visitor.sign_in).session(&session).send().await.expect(200);
    assert!(page.header("location").is_none() && page.text().contains("name=\"password\""), "{}", page.text());
}

#[tokio::test]
async fn malformed_codes_are_refused() {
    let (fleet, _) = fleet().await;
    let visitor = Visitor::comes(&fleet[0], APP, "/").await;
    let long = "A".repeat(4000);
    for code in ["", "x", "AAAA", &"A".repeat(64), &"A".repeat(63), &"!".repeat(64), "%00", "%ff", &long] {
        refused(visitor.calls_back(&fleet[0], &format!("/.authfleet/callback?code={code}")).send().await);
    }
    refused(visitor.calls_back(&fleet[0], "/.authfleet/callback").send().await);
    refused(visitor.calls_back(&fleet[0], "/.authfleet/callback?code=a&code=b").send().await);
}

/// Open redirects (oauth2-proxy#922, Authelia GHSA-36f2-fcrx-fp4j).
#[tokio::test]
async fn nobody_is_sent_anywhere_else() {
    let (fleet, session) = fleet().await;
    for to in [
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "\\/evil.example",
        "https://evil.example/",
        "javascript:alert(1)",
        "/\t/evil.example",
        "evil.example",
        "",
        "@evil.example",
        ".evil.example",
        "/\r\nlocation: https://evil.example",
    ] {
        let visitor = Visitor::comes(&fleet[0], APP, to).await;
        assert!(visitor.sign_in.ends_with("&to=%2F"), "{to}: {}", visitor.sign_in);
        let callback = visitor.signed_in(&fleet[0], &session).await;
        let answer = visitor.calls_back(&fleet[0], &callback).send().await.expect(302);
        assert_eq!(answer.header("location"), Some("http://app.example.test/"), "{to}");
    }
    // The same for targets that somebody writes into the URL of the page for signing in.
    let visitor = Visitor::comes(&fleet[0], APP, "/").await;
    let start = visitor.sign_in.split("start=").nth(1).and_then(|rest| rest.split('&').next()).expect("a hash");
    for query in [
        format!("host=evil.example&start={start}&to=/"),
        format!("host=app.example.test@evil.example&start={start}&to=/"),
        format!("host=app.example.test.&start={start}&to=/"),
        format!("host=app.example.test%2f.evil.example&start={start}&to=/"),
        format!("host=xn--pp-xla.example.test&start={start}&to=/"),
        format!("host=%C3%A4pp.example.test&start={start}&to=/"),
        "host=app.example.test&start=short&to=/".to_owned(),
        "host=app.example.test&to=/".to_owned(),
        "to=http://evil.example/".to_owned(),
        "to=//evil.example/".to_owned(),
        // Another host gets its cookie only by a code.
        "to=http://app.example.test/".to_owned(),
    ] {
        let answer = fleet[0].get(&format!("/sign-in?{query}")).session(&session).send().await.expect(303);
        assert_eq!(answer.header("location"), Some("/account"), "{query}");
    }
    let known = "to=http%3A%2F%2Flogin.example.test%2Faccount%3Fx";
    let answer = fleet[0].get(&format!("/sign-in?{known}")).session(&session).send().await.expect(303);
    assert_eq!(answer.header("location"), Some("http://login.example.test/account?x"));
}

/// The target is kept with the code, never in the session, so that a page and its images, which ask at the same time,
/// don't overwrite each other's target (authentik#6886).
#[tokio::test]
async fn several_tabs_get_where_they_were_going() {
    let (fleet, session) = fleet().await;
    let page = Visitor::comes(&fleet[0], APP, "/page").await;
    let second = fleet[1].get("/.authfleet/start?to=/image.png").header("host", APP).cookie(&page.start).send().await;
    let image = Visitor {
        sign_in: second.expect(302).header("location").expect("a place").replace("http://login.example.test", ""),
        ..page.clone()
    };
    let (to_page, to_image) = (page.signed_in(&fleet[0], &session).await, image.signed_in(&fleet[1], &session).await);
    let answer = image.calls_back(&fleet[2], &to_image).send().await.expect(302);
    assert_eq!(answer.header("location"), Some("http://app.example.test/image.png"));
    let answer = page.calls_back(&fleet[2], &to_page).send().await.expect(302);
    assert_eq!(answer.header("location"), Some("http://app.example.test/page"));
}

#[tokio::test]
async fn a_secret_that_was_rotated_keeps_hosts_signed_in() {
    let (mut fleet, session) = fleet().await;
    let cookie = opened_at(&fleet[0], &session, APP).await;
    let new = format!("{},{}", "n".repeat(40), crate::fleet::SECRET);
    fleet[1].restart(&[("SESSION_SECRET", &new)]).await;
    let check = async |replica: usize, cookie: &str, status: u16| {
        Proxy::Envoy.ask(&fleet[replica], "GET", APP, "/").cookie(cookie).send().await.expect(status);
    };
    check(1, &cookie, 200).await;
    // A cookie signed with the new secret.
    let cookie = opened_at(&fleet[1], &session, APP).await;
    check(1, &cookie, 200).await;
    check(0, &cookie, 401).await;
}

#[tokio::test]
async fn with_sessions_in_memory_it_is_the_same() {
    let fleet = Fleet::builder().without_redis().with_applications().start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let cookie = opened_at(&fleet[0], &session, APP).await;
    Proxy::Nginx.ask(&fleet[0], "GET", APP, "/").cookie(&cookie).send().await.expect(200);
    fleet[0].post("/auth/logout").session(&session).send().await.expect(200);
    Proxy::Nginx.ask(&fleet[0], "GET", APP, "/").cookie(&cookie).send().await.expect(401);
}
