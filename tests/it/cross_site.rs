//! Other sites can't make a browser change anything here (ASVS 5.0 3.5.1 to 3.5.3).
use serde_json::json;

use crate::fleet::{Answer, Fleet, PASSWORD, Session};

/// Every call that changes something.
const UNSAFE: [(&str, &str); 10] = [
    ("POST", "/auth/register"),
    ("POST", "/auth/login"),
    ("POST", "/login"),
    ("POST", "/auth/password"),
    ("POST", "/auth/logout"),
    ("POST", "/logout"),
    ("DELETE", "/auth/sessions"),
    ("DELETE", "/auth/sessions?keep=current"),
    ("DELETE", "/auth/sessions/AAAAAAAAAAAAAAAAAAAAAA"),
    ("DELETE", "/auth/account"),
];

/// Everything that is stored: all columns of users, and Redis's keys and values, without times to live.
async fn stored(fleet: &Fleet) -> Vec<String> {
    let statement = "SELECT id || email || username || password_hash || epoch || updated_at FROM users ORDER BY id";
    let mut stored = fleet.query(statement).await;
    for key in fleet.redis.keys("*") {
        let value = match fleet.redis.run::<String>(&["TYPE", &key]).as_str() {
            "hash" => fleet.redis.run::<redis::Value>(&["HGETALL", &key]),
            "zset" => fleet.redis.run::<redis::Value>(&["ZRANGE", &key, "0", "-1", "WITHSCORES"]),
            "list" => fleet.redis.run::<redis::Value>(&["LRANGE", &key, "0", "-1"]),
            _ => fleet.redis.run::<redis::Value>(&["GET", &key]),
        };
        stored.push(format!("{key} {value:?}"));
    }
    stored
}

async fn send(fleet: &Fleet, session: &Session, (method, path): (&str, &str), headers: &[(&str, &str)]) -> Answer {
    // A body with the fields of all calls.
    let body = json!({
        "email": "ada@example.org", "username": "ada", "password": PASSWORD, "current_password": PASSWORD,
        "new_password": "staple a battery horse",
    });
    let mut call = fleet[0].call(method, path).session(session).json(&body);
    for (name, value) in headers {
        call = call.header(name, value);
    }
    call.send().await
}

#[tokio::test]
async fn asvs_3_5_1_other_sites_change_nothing() {
    let fleet = Fleet::start(1).await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let host = fleet[0].address().to_owned();
    let before = stored(&fleet).await;
    for call in UNSAFE {
        for headers in [
            &[("sec-fetch-site", "cross-site")][..],
            &[("sec-fetch-site", "CROSS-SITE")],
            &[("sec-fetch-site", "")],
            &[("sec-fetch-site", "cross-site"), ("origin", &format!("http://{host}"))],
            &[("origin", "https://elsewhere.example")],
            &[("origin", "null")],
            &[("origin", "")],
            &[("origin", &host)],
            &[("origin", &format!("http://{host}@elsewhere.example"))],
            &[("origin", "https://elsewhere.example"), ("x-forwarded-host", "elsewhere.example")],
            &[("origin", "https://elsewhere.example"), ("forwarded", "host=elsewhere.example")],
        ] {
            let answer = send(&fleet, &session, call, headers).await.expect_problem(403, "cross_site");
            assert_eq!(answer.header("set-cookie"), None, "{call:?} {headers:?}");
        }
    }
    assert_eq!(stored(&fleet).await, before);
    assert_eq!(fleet[0].check(&session).await, 200);
}

#[tokio::test]
async fn asvs_3_5_1_this_site_and_other_programs_pass() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let host = fleet[0].address().to_owned();
    for headers in [
        &[("sec-fetch-site", "same-origin")][..],
        &[("sec-fetch-site", "same-site")],
        &[("sec-fetch-site", "none")],
        &[("sec-fetch-site", "same-origin"), ("origin", "https://behind-another-name.example")],
        &[("origin", &format!("http://{host}"))],
        &[("origin", &format!("https://{}", host.to_uppercase()))],
        &[],
    ] {
        for call in UNSAFE {
            let session = fleet[0].login(&ada).await;
            // Sends none of the required fields, so that the password and the account stay for the next round.
            if call.1 == "/auth/password" || call.1 == "/auth/account" {
                let mut call = fleet[0].call(call.0, call.1).session(&session).json(&json!({}));
                for (name, value) in headers {
                    call = call.header(name, value);
                }
                call.send().await.expect_problem(422, "validation_failed");
                continue;
            }
            let answer = send(&fleet, &session, call, headers).await;
            assert_ne!(answer.status, 403, "{call:?} {headers:?} {}", answer.text());
        }
    }
}

/// Behind a proxy, the site's name is in `X-Forwarded-Host`, which is believed only from trusted proxies.
#[tokio::test]
async fn asvs_3_5_1_the_origin_is_compared_with_the_name_that_the_proxy_saw() {
    let fleet = Fleet::builder().env("TRUSTED_PROXIES", "127.0.0.1").start().await;
    let ada = fleet[0].register("ada").await;
    let forwarded = ("x-forwarded-host", "auth.example.org");
    let session = fleet[0].login(&ada).await;
    for origin in ["https://auth.example.org.elsewhere.example", "https://example.org", "https://auth.example.org:444"]
    {
        let answer = send(&fleet, &session, ("POST", "/auth/logout"), &[forwarded, ("origin", origin)]).await;
        answer.expect_problem(403, "cross_site");
    }
    let address = format!("http://{}", fleet[0].address());
    let answer = send(&fleet, &session, ("POST", "/auth/logout"), &[forwarded, ("origin", &address)]).await;
    answer.expect_problem(403, "cross_site");
    send(&fleet, &session, ("POST", "/auth/logout"), &[forwarded, ("origin", "https://auth.example.org")])
        .await
        .expect(200);
}

/// A sibling host is allowed if the browser says that it is of the same site. `Origin` alone doesn't tell the server
/// which hosts are of one site.
#[tokio::test]
async fn a_sibling_host_passes_by_the_browser_s_word_alone() {
    let fleet = Fleet::builder().env("TRUSTED_PROXIES", "127.0.0.1").start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let sibling = [("x-forwarded-host", "login.example.org"), ("origin", "https://app.example.org")];
    send(&fleet, &session, ("POST", "/auth/logout"), &sibling).await.expect_problem(403, "cross_site");
    let with_word = [sibling[0], sibling[1], ("sec-fetch-site", "same-site")];
    send(&fleet, &session, ("POST", "/auth/logout"), &with_word).await.expect(200);
}

/// Forms and scripts of other sites can send some media types without a preflight. The server refuses those, whatever
/// else the browser sends.
#[tokio::test]
async fn asvs_3_5_2_bodies_that_need_no_preflight_are_not_read() {
    let fleet = Fleet::start(1).await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let before = stored(&fleet).await;
    let body = json!({ "email": "x@example.org", "password": PASSWORD, "current_password": PASSWORD, "new_password": "a battery" });
    for (method, path) in [
        ("POST", "/auth/register"),
        ("POST", "/auth/login"),
        ("POST", "/login"),
        ("POST", "/auth/password"),
        ("DELETE", "/auth/account"),
    ] {
        for content_type in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "text/plain; application/json",
        ] {
            let call = fleet[0].call(method, path).session(&session).header("content-type", content_type);
            call.body(body.to_string()).send().await.expect_problem(415, "unsupported_media_type");
        }
    }
    assert_eq!(stored(&fleet).await, before);
}

/// No answer allows another site to read it.
#[tokio::test]
async fn asvs_3_4_2_no_other_origin_is_allowed_to_read() {
    let fleet = Fleet::start(1).await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    for (method, path) in
        [("GET", "/profile"), ("GET", "/auth/sessions"), ("OPTIONS", "/auth/login"), ("GET", "/openapi.json")]
    {
        let call = fleet[0].call(method, path).session(&session).header("origin", "https://elsewhere.example");
        let call = call
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "content-type");
        let answer = call.send().await;
        let cors: Vec<_> = answer.headers.keys().filter(|name| name.as_str().starts_with("access-control-")).collect();
        assert!(cors.is_empty(), "{method} {path}: {cors:?}");
    }
}

/// Safe methods change nothing except the time to live of the session that is sent.
#[tokio::test]
async fn asvs_3_5_3_safe_methods_change_nothing() {
    let fleet = Fleet::start(1).await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let document = fleet[0].get("/openapi.json").send().await.expect(200).json();
    let documented =
        document["paths"].as_object().expect("paths").keys().map(|path| path.replace("{session_id}", &session.id));
    let paths: Vec<String> = documented.chain(["/", "/docs/", "/nowhere"].map(str::to_owned)).collect();
    assert!(paths.len() > 10, "{paths:?}");
    let before = stored(&fleet).await;
    for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
        for path in &paths {
            for query in
                ["", "?_method=DELETE&keep=current", "?email=ada@example.org&password=correct+horse+battery+staple"]
            {
                let call = fleet[0].call(method, &format!("{path}{query}")).session(&session);
                let answer =
                    call.header("x-http-method-override", "DELETE").header("sec-fetch-site", "cross-site").send().await;
                assert!(answer.status < 500, "{method} {path}{query}: {}", answer.status);
                assert_eq!(answer.header("set-cookie"), None, "{method} {path}{query}");
            }
        }
    }
    assert_eq!(stored(&fleet).await, before);
    assert_eq!(fleet[0].check(&session).await, 200);
}

#[tokio::test]
async fn other_sites_are_refused() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let host = fleet[0].address().to_owned();
    let logout = |name: &str, value: &str| fleet[0].post("/auth/logout").header(name, value).session(&session).send();
    for (name, value) in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "nonsense"),
        ("origin", "https://elsewhere.example"),
        ("origin", "null"),
        ("origin", &format!("http://{host}.elsewhere.example")),
    ] {
        logout(name, value).await.expect_problem(403, "cross_site");
        let read = fleet[0].get("/profile").header(name, value).session(&session).send().await;
        read.expect(200);
    }
    // X-Forwarded-Host counts only from a trusted proxy.
    let forwarded = fleet[0].post("/auth/logout").header("origin", "https://elsewhere.example");
    let forwarded = forwarded.header("x-forwarded-host", "elsewhere.example").session(&session).send().await;
    forwarded.expect_problem(403, "cross_site");

    for (name, value) in [
        ("sec-fetch-site", "same-origin"),
        ("sec-fetch-site", "none"),
        ("origin", &format!("http://{host}")),
        ("user-agent", "curl/8"),
    ] {
        let session = fleet[0].login(&ada).await;
        let answer = fleet[0].post("/auth/logout").header(name, value).session(&session).send().await;
        answer.expect(200);
    }
}
