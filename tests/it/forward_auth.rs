//! Forward auth: the answers to a proxy that asks about a request for an application.
use serde_json::json;

use crate::fleet::{APP, Call, Fleet, LOGIN_HOST, PROMPTLY, Proxy, Session, WIKI, identity, opened_at, within};

const NOBODY: [&str; 5] = [""; 5];
const RULES: &str = r#"
groups = ["admins"]

[[rule]]
name = "assets"
paths = ["/static/*"]
allow = "anyone"

[[rule]]
name = "admin"
paths = ["/admin/*"]
allow = { groups = ["admins"] }

[[rule]]
name = "closed"
paths = ["/closed"]
allow = "nobody"

[[rule]]
name = "rest"
hosts = ["app.example.test", "*.apps.example.test"]
allow = "signed-in"
"#;

/// Adds the headers with which a browser goes to another page.
fn browser(call: Call) -> Call {
    call.header("sec-fetch-mode", "navigate").header("sec-fetch-site", "none").header("accept", "text/html")
}

#[tokio::test]
async fn each_endpoint_answers_by_the_table() {
    let fleet = Fleet::builder().replicas(2).with_rules(RULES).start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let cookie = opened_at(&fleet[0], &session, APP).await;
    let known = ["ada", "ada@example.org", &ada.id, "", &session.id];
    for proxy in Proxy::each() {
        // Every method is allowed, because the rules don't restrict methods.
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"] {
            // HEAD has no body to read, so Envoy's form of it is asked below.
            let answer = proxy.ask(&fleet[1], method, APP, "/x?y=1").cookie(&cookie).send().await.expect(200);
            assert_eq!(identity(&answer), known, "{method}");
            assert_eq!(answer.header("set-cookie"), None, "nothing to be lost (oauth2-proxy#29)");
            assert_eq!(answer.header("cache-control"), Some("no-store"));
        }
        // Signed in, but not allowed.
        let denied = proxy.ask(&fleet[1], "GET", APP, "/admin/users").cookie(&cookie).send().await;
        assert_eq!(identity(&denied.expect_problem(403, "access_denied")), NOBODY);
        let closed = proxy.ask(&fleet[1], "GET", APP, "/closed").cookie(&cookie).send().await;
        closed.expect_problem(403, "access_denied");
        // No rule matches.
        let wiki = opened_at(&fleet[0], &session, WIKI).await;
        proxy.ask(&fleet[1], "GET", WIKI, "/").cookie(&wiki).send().await.expect_problem(403, "access_denied");
        proxy
            .ask(&fleet[1], "GET", "evil.example", "/")
            .cookie(&cookie)
            .send()
            .await
            .expect_problem(403, "access_denied");

        // A path for anyone, signed in or not.
        let anyone = proxy.ask(&fleet[1], "GET", APP, "/static/a.css").send().await.expect(200);
        assert_eq!(identity(&anyone), NOBODY);
        let anyone = proxy.ask(&fleet[1], "GET", APP, "/static/a.css").cookie(&cookie).send().await.expect(200);
        assert_eq!(identity(&anyone), known);

        // Nobody is signed in: a browser is redirected to sign in, and other clients get 401.
        let start = format!("http://{APP}/.authfleet/start?to=%2Fx%3Fy%3D1%26z%3D%252F");
        for method in ["GET", "HEAD", "POST"] {
            let answer = browser(proxy.ask(&fleet[1], method, APP, "/x?y=1&z=%2F")).send().await;
            let status = match (proxy, method) {
                (Proxy::Nginx, _) => 401,
                (_, "POST") => 303,
                _ => 302,
            };
            let answer = answer.expect(status);
            assert_eq!(answer.header("location"), Some(start.as_str()), "{method}");
            assert_eq!(identity(&answer), NOBODY);
        }
        let script = proxy.ask(&fleet[1], "GET", APP, "/x").header("sec-fetch-mode", "cors").send().await;
        let script = script.expect_problem(401, "session_invalid");
        assert_eq!((identity(&script), script.header("location")), (NOBODY.map(str::to_owned), None));
        // The host of the pages is not protected, so a browser isn't sent to fetch a cookie for it.
        let here = browser(proxy.ask(&fleet[1], "GET", LOGIN_HOST, "/x")).send().await;
        assert_eq!(here.expect_problem(403, "access_denied").header("location"), None, "not protected");
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_503_and_lets_nobody_in() {
    let mut fleet = Fleet::builder().with_rules(RULES).start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let cookie = opened_at(&fleet[0], &session, APP).await;
    fleet.redis.kill();
    for proxy in Proxy::each() {
        let answer = browser(proxy.ask(&fleet[0], "GET", APP, "/x")).cookie(&cookie).send().await;
        assert_eq!(identity(&answer), NOBODY);
        answer.expect_unavailable();
        // A path for anyone stays reachable.
        let anyone = proxy.ask(&fleet[0], "GET", APP, "/static/a.css").cookie(&cookie).send().await.expect(200);
        assert_eq!(identity(&anyone), NOBODY);
        // Without a cookie, Redis isn't asked.
        proxy.ask(&fleet[0], "GET", APP, "/x").send().await.expect_problem(401, "session_invalid");
    }
    fleet.redis.start().await;
    within(PROMPTLY, "sessions are known again", async || {
        Proxy::Forward.ask(&fleet[0], "GET", APP, "/x").cookie(&cookie).send().await.status == 200
    })
    .await;
}

/// If the proxy leaves something out, the server doesn't guess it. What others say isn't believed (CVE-2026-40575,
/// CVE-2026-35051).
#[tokio::test]
async fn a_bad_description_is_denied() {
    let fleet = Fleet::builder().with_rules(RULES).start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let cookie = opened_at(&fleet[0], &session, APP).await;
    let bad = async |call: Call| {
        let answer = call.cookie(&cookie).send().await.expect_problem(400, "bad_description");
        assert_eq!(identity(&answer), NOBODY);
    };
    let forward = |without: &str, more: &[(&str, &str)]| {
        let mut call = fleet[0].get("/auth/verify/forward");
        for (name, value) in [
            ("x-forwarded-method", "GET"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", APP),
            ("x-forwarded-uri", "/static/a.css"),
        ] {
            if name != without {
                call = call.header(name, value);
            }
        }
        more.iter().fold(call, |call, (name, value)| call.header(name, value))
    };
    forward("", &[]).cookie(&cookie).send().await.expect(200);
    for name in ["x-forwarded-method", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-uri"] {
        bad(forward(name, &[])).await;
        bad(forward("", &[(name, "GET")])).await;
        bad(forward(name, &[(name, "")])).await;
    }
    bad(forward("x-forwarded-host", &[("x-forwarded-host", "app.example.test, evil.example")])).await;
    bad(forward("x-forwarded-uri", &[("x-forwarded-uri", "/closed#/static/a.css")])).await;
    bad(forward("x-forwarded-proto", &[("x-forwarded-proto", "https")])).await;
    bad(fleet[0].get("/auth/verify/nginx")).await;
    bad(fleet[0].get("/auth/verify/envoy")).await;
    // Other headers are ignored.
    bad(fleet[0].get("/auth/verify/forward").header("forwarded", "host=app.example.test;proto=http")).await;

    // A peer that isn't a trusted proxy.
    let fleet = Fleet::builder().with_applications().env("TRUSTED_PROXIES", "192.0.2.0/24").start().await;
    for proxy in Proxy::each() {
        let answer = proxy.ask(&fleet[0], "GET", APP, "/").send().await.expect_problem(400, "bad_description");
        assert_eq!(identity(&answer), NOBODY);
    }
    // A fleet without applications.
    let fleet = Fleet::start(1).await;
    let off = Proxy::Forward.ask(&fleet[0], "GET", APP, "/").send().await.expect_problem(404, "forward_auth_off");
    assert_eq!(identity(&off), NOBODY);
}

/// A cookie is accepted only at the host that it was made for (CVE-2026-25748: a malformed cookie let its bearer in).
#[tokio::test]
async fn no_other_cookie_is_let_in() {
    let fleet = Fleet::builder().with_applications().start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let (app, wiki) = (opened_at(&fleet[0], &session, APP).await, opened_at(&fleet[0], &session, WIKI).await);
    let forged = |cookie: &str| Session { cookie: cookie.to_owned(), ..session.clone() }.forged();
    for proxy in Proxy::each() {
        for cookie in [
            "",
            "authfleet=",
            "authfleet=nonsense",
            "authfleet",
            "authfleet=\"\"",
            "authfleet=;authfleet",
            &forged(&app),
            &wiki,
            &session.cookie,
            &format!("authfleet={}", session.token),
            &app.replace("authfleet=", "session="),
            &app.replace("authfleet=", "Authfleet="),
            &format!("authfleet={}", "A".repeat(116)),
            &format!("{app}A"),
        ] {
            let answer = proxy.ask(&fleet[0], "GET", APP, "/").cookie(cookie).send().await;
            assert_eq!(identity(&answer.expect_problem(401, "session_invalid")), NOBODY, "{cookie}");
        }
        // A host's token opens nothing else: neither another host nor the API.
        proxy.ask(&fleet[0], "GET", WIKI, "/").cookie(&app).send().await.expect_problem(401, "session_invalid");
    }
    for name in ["authfleet=", "session="] {
        let cookie = app.replace("authfleet=", name);
        for (method, path) in
            [("GET", "/profile"), ("GET", "/auth/sessions"), ("POST", "/auth/logout"), ("DELETE", "/auth/sessions")]
        {
            fleet[0].call(method, path).cookie(&cookie).send().await.expect_problem(401, "session_invalid");
        }
    }
    // A genuine cookie counts even if there are others.
    let beside = format!("authfleet=nonsense; {wiki}; {app}; theme=dark");
    Proxy::Forward.ask(&fleet[0], "GET", APP, "/").cookie(&beside).send().await.expect(200);
}

/// If a client sends identity headers, no answer repeats them (GHSA-7r4p-vjf4-gxv4, GHSA-f59h-q822-g45g,
/// CVE-2025-64484, CVE-2026-39858). Proxies drop them, which the tests of their recipes show.
#[tokio::test]
async fn identity_is_never_taken_from_a_request() {
    let fleet = Fleet::builder().with_rules(RULES).start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let cookie = opened_at(&fleet[0], &session, APP).await;
    for proxy in Proxy::each() {
        for (path, cookie, user) in [("/static/a.css", "", ""), ("/x", cookie.as_str(), "ada")] {
            let mut call = proxy.ask(&fleet[0], "GET", APP, path).cookie(cookie);
            for name in ["Remote-User", "remote_user", "REMOTE-USER", "Remote-Groups", "X-Remote-User", "Remote-Email"]
            {
                call = call.header(name, "root");
            }
            let answer = call.send().await.expect(200);
            assert_eq!(identity(&answer)[0], user);
            assert!(!format!("{:?}", answer.headers).contains("root"), "{:?}", answer.headers);
        }
    }
}

#[tokio::test]
async fn names_beyond_ascii_are_percent_encoded() {
    let fleet = Fleet::builder().with_applications().start().await;
    for (email, username, encoded) in [
        ("zoe@example.org", "Zoë", "Zo%C3%AB"),
        // Otherwise the two would look alike.
        ("percent@example.org", "Zo%C3%AB", "Zo%25C3%25AB"),
        ("plain@example.org", "a.b-c_d", "a.b-c_d"),
    ] {
        let body = json!({ "email": email, "username": username, "password": crate::fleet::PASSWORD });
        fleet[0].post("/auth/register").json(&body).send().await.expect(201);
        let session = Session::opened_by(&fleet[0].try_login(email, crate::fleet::PASSWORD).send().await);
        let cookie = opened_at(&fleet[0], &session, APP).await;
        let answer = Proxy::Nginx.ask(&fleet[0], "GET", APP, "/").cookie(&cookie).send().await.expect(200);
        assert_eq!(identity(&answer)[..2], [encoded, email]);
    }
}

/// One round trip of two commands, as for a profile. Without a genuine cookie, Redis isn't asked.
#[tokio::test]
async fn a_verification_costs_what_a_session_check_costs() {
    const REQUESTS: u64 = 50;
    let fleet = Fleet::builder().with_rules(RULES).start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let cookie = opened_at(&fleet[0], &session, APP).await;
    for proxy in Proxy::each() {
        let ask = async |cookie: &str, status: u16| {
            for _ in 0..REQUESTS {
                proxy.ask(&fleet[0], "GET", APP, "/x").cookie(cookie).send().await.expect(status);
            }
        };
        ask(&cookie, 200).await;
        let used = fleet.cost(async || ask(&cookie, 200).await).await;
        assert_eq!(
            used.commands,
            [("hmget".to_owned(), REQUESTS), ("pexpire".to_owned(), REQUESTS)].into(),
            "{used:?}"
        );
        assert_eq!(used.reads, REQUESTS, "{used:?}");
        let used = fleet.cost(async || ask("authfleet=nonsense", 401).await).await;
        assert!(used.commands.is_empty(), "{used:?}");
    }
}

/// A proxy's question has the method and the origin of the request that it asks about.
#[tokio::test]
async fn the_rule_about_other_sites_is_not_for_questions() {
    let fleet = Fleet::builder().with_applications().start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let cookie = opened_at(&fleet[0], &session, APP).await;
    let before = fleet.redis.run::<Vec<String>>(&["HGETALL", &session.key()]);
    let foreign =
        |call: Call| call.header("sec-fetch-site", "cross-site").header("origin", "https://elsewhere.example");
    for proxy in Proxy::each() {
        for method in ["POST", "DELETE"] {
            foreign(proxy.ask(&fleet[0], method, APP, "/")).cookie(&cookie).send().await.expect(200);
        }
    }
    foreign(fleet[0].post("/auth/verify/forward")).send().await.expect_problem(400, "bad_description");
    foreign(fleet[0].post("/auth/logout")).session(&session).send().await.expect_problem(403, "cross_site");
    assert_eq!(fleet.redis.run::<Vec<String>>(&["HGETALL", &session.key()]), before, "nothing has changed");
}

/// Preflights have no cookies. Rules decide about them, and a request isn't allowed merely for claiming to be one
/// (oauth2-proxy#735).
#[tokio::test]
async fn a_preflight_is_decided_by_rules_alone() {
    let preflight = |call: Call| {
        call.header("access-control-request-method", "DELETE").header("origin", "https://elsewhere.example")
    };
    let fleet = Fleet::builder().with_applications().start().await;
    for proxy in Proxy::each() {
        preflight(proxy.ask(&fleet[0], "OPTIONS", APP, "/")).send().await.expect_problem(401, "session_invalid");
        preflight(proxy.ask(&fleet[0], "GET", APP, "/")).send().await.expect_problem(401, "session_invalid");
    }
    let rules = "[[rule]]\nmethods = [\"OPTIONS\"]\nallow = \"anyone\"\n[[rule]]\nallow = \"signed-in\"\n";
    let fleet = Fleet::builder().with_rules(rules).start().await;
    for proxy in Proxy::each() {
        preflight(proxy.ask(&fleet[0], "OPTIONS", APP, "/")).send().await.expect(200);
        preflight(proxy.ask(&fleet[0], "DELETE", APP, "/")).send().await.expect_problem(401, "session_invalid");
    }
}

/// A path that programs read differently is refused if a rule about paths would decide (CVE-2019-9901, GHSA-pxq7,
/// GHSA-7rh7).
#[tokio::test]
async fn a_path_that_programs_read_differently_is_refused() {
    let fleet = Fleet::builder().with_rules(RULES).start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let cookie = opened_at(&fleet[0], &session, APP).await;
    for path in [
        "/static/../closed",
        "/static/%2e%2e/closed",
        "/static/..%2fclosed",
        "/static/..;/closed",
        "/static%5cx",
        "/static/%00",
        "/static/%c0%ae%c0%ae/closed",
        "/static/%252e%252e/closed",
        "/Closed",
        "//closed",
        "/STATIC/x",
    ] {
        for proxy in [Proxy::Nginx, Proxy::Forward] {
            let answer = proxy.ask(&fleet[0], "GET", APP, path).cookie(&cookie).send().await;
            assert_eq!(identity(&answer.expect_problem(403, "path_refused")), NOBODY, "{path}");
        }
        // Written by hand, because the test's client would normalise the path. Envoy doesn't.
        let mut raw = fleet[0].raw().await;
        let head = format!(
            "GET /auth/verify/envoy{path} HTTP/1.1\r\nHost: {APP}\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
        );
        assert!(raw.write(head.as_bytes()).await);
        let answer = raw.read_to_end(PROMPTLY).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("\"path_refused\""), "{path}: {answer}");
        assert!(answer.contains("remote-user: \r\n"), "{answer}");
    }
    // The query is not part of the path.
    for path in ["/static/x?/../closed", "/static/x?a=%2f;..//"] {
        for proxy in Proxy::each() {
            proxy.ask(&fleet[0], "GET", APP, path).send().await.expect(200);
        }
    }
}

/// Every replica knows at once, because the host's cookie has no key of its own in Redis (authentik#5674 and #25248
/// failed across replicas).
#[tokio::test]
async fn whatever_ends_a_session_ends_it_at_every_host_on_every_replica() {
    let fleet = Fleet::builder().replicas(3).with_applications().start().await;
    let ada = fleet[0].register("ada").await;
    let verified = async |cookies: &[String; 2], status: u16| {
        for replica in fleet.replicas() {
            for (host, cookie) in [APP, WIKI].iter().zip(cookies) {
                Proxy::Nginx.ask(replica, "GET", host, "/").cookie(cookie).send().await.expect(status);
            }
        }
    };
    let opened = async || {
        let session = fleet[0].login(&ada).await;
        let cookies = [opened_at(&fleet[1], &session, APP).await, opened_at(&fleet[2], &session, WIKI).await];
        verified(&cookies, 200).await;
        (session, cookies)
    };
    let (session, cookies) = opened().await;
    fleet[2].post("/auth/logout").session(&session).send().await.expect(200);
    verified(&cookies, 401).await;

    let (session, cookies) = opened().await;
    let other = fleet[1].login(&ada).await;
    fleet[1].call("DELETE", &format!("/auth/sessions/{}", session.id)).session(&other).send().await.expect(204);
    verified(&cookies, 401).await;

    let (_, cookies) = opened().await;
    fleet[0].call("DELETE", "/auth/sessions").session(&other).send().await.expect(204);
    verified(&cookies, 401).await;

    let (_, cookies) = opened().await;
    fleet.command(&["user", "disable", "ada"], &[]).await.expect_code(0);
    verified(&cookies, 401).await;
    fleet.command(&["user", "enable", "ada"], &[]).await.expect_code(0);

    let (session, cookies) = opened().await;
    let change = json!({ "current_password": crate::fleet::PASSWORD, "new_password": "staple a battery horse" });
    fleet[1].post("/auth/password").session(&session).json(&change).send().await.expect(200);
    verified(&cookies, 401).await;
}

/// One cookie can be shared by the whole domain. The documents say what that costs.
#[tokio::test]
async fn a_shared_cookie_needs_no_handover() {
    let fleet = Fleet::builder().with_applications().env("COOKIE_DOMAIN", "example.test").start().await;
    let ada = fleet[0].register("ada").await;
    let login = fleet[0].try_login("ada", crate::fleet::PASSWORD).send().await;
    let (_, attributes) = login.set_cookie();
    assert_eq!(attributes, ["Domain=example.test", "HttpOnly", "Path=/", "SameSite=Lax"]);
    let session = Session::opened_by(&login);
    for proxy in Proxy::each() {
        for host in [APP, WIKI] {
            let answer = proxy.ask(&fleet[0], "GET", host, "/").session(&session).send().await.expect(200);
            assert_eq!(identity(&answer), ["ada", "ada@example.org", &ada.id, "", &session.id]);
        }
        let answer = browser(proxy.ask(&fleet[0], "GET", APP, "/x?y=1")).send().await;
        let sign_in = format!("http://{LOGIN_HOST}/sign-in?to=http%3A%2F%2Fapp.example.test%2Fx%3Fy%3D1");
        assert_eq!(answer.header("location"), Some(sign_in.as_str()));
    }
    let to = |url: &str| {
        format!("/sign-in?to={}", percent_encoding::utf8_percent_encode(url, percent_encoding::NON_ALPHANUMERIC))
    };
    let location = async |url: &str| {
        let answer = fleet[0].get(&to(url)).session(&session).send().await.expect(303);
        answer.header("location").expect("a place to go to").to_owned()
    };
    assert_eq!(location("http://app.example.test/x?y=1").await, "http://app.example.test/x?y=1");
    for elsewhere in
        ["http://evil.example/", "//evil.example", "http://app.example.test@evil.example/", "javascript:alert(1)"]
    {
        assert_eq!(location(elsewhere).await, "/account", "{elsewhere}");
    }
    fleet[0].get("/.authfleet/start?to=/").header("host", APP).send().await.expect_problem(404, "not_found");
    let cleared = fleet[0].post("/auth/logout").session(&session).send().await.expect(200);
    assert!(cleared.set_cookie().1.contains(&"Domain=example.test".to_owned()));
}
