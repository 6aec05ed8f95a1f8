//! The HTTP contract: what every call answers, how it refuses wrong requests, and the headers that all answers have.
use serde_json::{Value, json};

use crate::fleet::{Fleet, PASSWORD, Session};

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test]
async fn one_user_from_register_to_logout() {
    let fleet = Fleet::start(3).await;
    let registration = json!({ "email": "Ada@Example.org", "password": PASSWORD });
    let registered = fleet[0].post("/auth/register").json(&registration).send().await.expect(201);
    assert_eq!(keys(&registered.json()), ["created_at", "email", "user_id", "username"]);
    assert_eq!(
        (registered.text_at("email").as_str(), registered.text_at("username").as_str()),
        ("Ada@Example.org", "Ada")
    );
    assert_eq!(registered.header("content-type"), Some("application/json"));
    assert_eq!(registered.header("set-cookie"), None, "a registration signs nobody in");

    let login = fleet[0].try_login("ada@example.org", PASSWORD).send().await.expect(200);
    let session = Session::opened_by(&login);
    let body = login.json();
    let fields =
        ["created_at", "email", "expires_at", "idle_expires_at", "message", "session_id", "user_id", "username"];
    assert_eq!(keys(&body), fields);
    assert_eq!(body["message"], "Login successful");
    assert_eq!(body["user_id"], registered.json()["user_id"]);
    assert_eq!(login.set_cookie().1, ["HttpOnly", "Path=/", "SameSite=Lax"]);

    for replica in fleet.replicas() {
        let profile = replica.get("/profile").session(&session).send().await.expect(200);
        let body = profile.json();
        assert_eq!(keys(&body), ["created_at", "email", "session", "user_id", "username"]);
        assert_eq!(body["created_at"], registered.json()["created_at"]);
        assert_eq!((&body["email"], &body["username"]), (&registered.json()["email"], &registered.json()["username"]));
        let fields = ["created_at", "created_by", "expires_at", "idle_expires_at", "session_id"];
        assert_eq!(keys(&body["session"]), fields);
        assert_eq!(body["session"]["session_id"], session.id);
        assert_eq!(body["session"]["created_by"], "replica-1");
        assert_eq!(body["session"]["created_at"], session.body["created_at"]);
        assert_eq!(body["session"]["expires_at"], session.body["expires_at"]);
        assert_eq!(profile.header("set-cookie"), None);
    }

    let logout = fleet[2].post("/auth/logout").session(&session).send().await.expect(200);
    assert_eq!(logout.json(), json!({ "message": "Logged out" }));
    assert_eq!(logout.header("clear-site-data"), Some("\"cache\", \"storage\""));
    let (cookie, attributes) = logout.set_cookie();
    assert_eq!(cookie, "session=");
    let expired = ["Expires=Thu, 01 Jan 1970 00:00:00 GMT", "HttpOnly", "Max-Age=0", "Path=/", "SameSite=Lax"];
    assert_eq!(attributes, expired);

    for replica in fleet.replicas() {
        let refused = replica.get("/profile").session(&session).send().await.expect_problem(401, "session_invalid");
        assert_eq!(refused.json()["detail"], "Session expired or invalid");
        assert_eq!(refused.header("set-cookie"), None);
        replica.post("/auth/logout").session(&session).send().await.expect_problem(401, "session_invalid");
    }
    fleet[0].get("/profile").send().await.expect_problem(401, "session_invalid");
    fleet[0].post("/auth/logout").send().await.expect_problem(401, "session_invalid");
}

#[tokio::test]
async fn short_paths_do_the_same() {
    let fleet = Fleet::start(1).await;
    fleet[0].register("ada").await;
    let body = json!({ "username": "ada", "password": PASSWORD });
    let login = fleet[0].post("/login").json(&body).send().await.expect(200);
    let session = Session::opened_by(&login);
    assert_eq!(login.header("cache-control"), Some("no-store"));
    assert_eq!(fleet[0].check(&session).await, 200);
    let logout = fleet[0].post("/logout").session(&session).send().await.expect(200);
    assert_eq!(logout.json(), json!({ "message": "Logged out" }));
    assert_eq!(fleet[0].check(&session).await, 401);
    fleet[0].post("/login").json(&json!({})).send().await.expect_problem(422, "validation_failed");
    fleet[0].post("/logout").send().await.expect_problem(401, "session_invalid");
}

#[tokio::test]
async fn bodies_that_are_wrong_are_named() {
    let fleet = Fleet::start(1).await;
    let replica = &fleet[0];
    let post = async |path: &str, body: Vec<u8>| {
        replica.post(path).header("content-type", "application/json").body(body).send().await
    };

    let nested = format!("{{\"x\":{}", "[".repeat(10_000));
    let malformed: &[&[u8]] = &[
        b"",
        b"{",
        b"nonsense",
        b"{\"email\":\"ada@example.org\",}",
        b"{\"email\":\"\xff\xfe@example.org\"}",
        b"{\"email\":\"\\ud800@example.org\"}",
        b"{} {}",
        nested.as_bytes(),
    ];
    for path in ["/auth/register", "/auth/login", "/login"] {
        for body in malformed {
            post(path, body.to_vec()).await.expect_problem(400, "malformed_json");
        }
        for (body, field) in [
            ("null", "body"),
            ("\"text\"", "body"),
            ("[]", "body"),
            (r#"{"email":1}"#, "email"),
            (r#"{"email":"ada@example.org","password":["x"]}"#, "password"),
        ] {
            let answer = post(path, body.into()).await.expect_problem(422, "validation_failed");
            assert_eq!(answer.invalid_fields(), [field], "{path} {body}");
        }
        let twice = post(path, br#"{"email":"a@example.org","email":"b@example.org","password":"x"}"#.to_vec()).await;
        twice.expect_problem(422, "validation_failed");

        let large = format!("{{\"email\":\"{}\"}}", "x".repeat(16 * 1024));
        post(path, large.clone().into_bytes()).await.expect_problem(413, "body_too_large");
        let mut chunked = replica.raw().await;
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked");
        chunked.write(format!("{head}\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n", large.len()).as_bytes()).await;
        assert!(chunked.read_until("body_too_large").await.starts_with("HTTP/1.1 413 "));

        for content_type in
            ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"]
        {
            let answer = replica.post(path).header("content-type", content_type).body("{}").send().await;
            answer.expect_problem(415, "unsupported_media_type");
        }
        replica.post(path).body("{}").send().await.expect_problem(415, "unsupported_media_type");
        for content_type in ["application/json; charset=utf-8", "Application/JSON", "application/merge-patch+json"] {
            let answer = replica.post(path).header("content-type", content_type).body("{}").send().await;
            answer.expect_problem(422, "validation_failed");
        }
    }
}

/// serde would fill fields from an array by position. The server refuses arrays.
#[tokio::test]
async fn an_array_is_no_object() {
    let fleet = Fleet::start(1).await;
    for path in ["/auth/register", "/auth/login", "/login"] {
        for body in [json!(["ada@example.org", "ada", PASSWORD]), json!(["ada@example.org", PASSWORD, "ada"])] {
            let answer = fleet[0].post(path).json(&body).send().await.expect_problem(422, "validation_failed");
            assert_eq!(answer.invalid_fields(), ["body"], "{path} {body}");
        }
    }
}

#[tokio::test]
async fn fields_that_are_wrong_are_named() {
    let fleet = Fleet::start(1).await;
    let register = async |body: Value| {
        let answer = fleet[0].post("/auth/register").json(&body).send().await;
        // A field may be wrong in more than one way.
        let mut fields = answer.expect_problem(422, "validation_failed").invalid_fields();
        fields.dedup();
        fields
    };
    assert_eq!(register(json!({})).await, ["email", "password"]);
    assert_eq!(register(json!({ "email": null, "password": null })).await, ["email", "password"]);
    let all = register(json!({ "email": "ada", "username": "a@b", "password": "short" })).await;
    assert_eq!(all, ["email", "username", "password"]);
    for email in ["", " ", "@", "a@", "@example.org", "a b@example.org", "a\u{0}@example.org", "a@example.org\r\nX: y"]
    {
        assert_eq!(register(json!({ "email": email, "password": PASSWORD })).await, ["email"], "{email:?}");
    }
    let long = format!("{}@example.org", "a".repeat(300));
    assert_eq!(register(json!({ "email": long, "password": PASSWORD })).await, ["email"]);
    for username in ["", "a b", "a\u{0}b", "a\u{200b}b", &"x".repeat(65)] {
        let body = json!({ "email": "ada@example.org", "username": username, "password": PASSWORD });
        assert_eq!(register(body).await, ["username"], "{username:?}");
    }
    for password in ["", "seven77", "password123", "ada@example.org", &"é".repeat(7), &"xyz!".repeat(40)] {
        let body = json!({ "email": "ada@example.org", "password": password });
        assert_eq!(register(body).await, ["password"], "{password:?}");
    }

    let login = async |body: Value| {
        let answer = fleet[0].post("/auth/login").json(&body).send().await;
        answer.expect_problem(422, "validation_failed").invalid_fields()
    };
    assert_eq!(login(json!({})).await, ["email", "password"]);
    assert_eq!(login(json!({ "email": "ada@example.org" })).await, ["password"]);
    assert_eq!(login(json!({ "email": " ", "password": PASSWORD })).await, ["email"]);
}

/// 128 code points of four bytes each are a valid password, and no part of it is ignored.
#[tokio::test]
async fn long_passwords_count_whole() {
    let fleet = Fleet::start(1).await;
    let password: String = (0..128).filter_map(|i| char::from_u32(0x1f400 + i * i % 199)).collect();
    assert_eq!(password.len(), 4 * 128);
    let body = json!({ "email": "ada@example.org", "password": password });
    fleet[0].post("/auth/register").json(&body).send().await.expect(201);
    fleet[0].try_login("ada", &password).send().await.expect(200);
    let last_missing: String = password.chars().take(127).collect();
    for wrong in [last_missing, format!("{password}x"), "x".repeat(15_000), "\u{0}".to_owned()] {
        fleet[0].try_login("ada", &wrong).send().await.expect_problem(401, "invalid_credentials");
    }
    for unknown in ["\u{0}", "' OR 1=1 --", "@", &"x".repeat(15_000)] {
        fleet[0].try_login(unknown, PASSWORD).send().await.expect_problem(401, "invalid_credentials");
    }
}

#[tokio::test]
async fn unknown_paths_and_methods() {
    let fleet = Fleet::start(1).await;
    for method in ["GET", "POST", "DELETE", "OPTIONS", "BREW"] {
        for path in ["/nowhere", "/auth", "/auth/", "/profile/", "/%00", "/%ff", "/..%2f..%2fetc/passwd", "//profile"] {
            let answer = fleet[0].call(method, path).send().await.expect_problem(404, "not_found");
            assert_eq!(answer.header("cache-control"), Some("no-store"));
        }
    }
    // The public listener has no routes for operators, and the ops listener none for the public.
    for path in ["/livez", "/readyz", "/metrics"] {
        fleet[0].get(path).send().await.expect_problem(404, "not_found");
        fleet[0].ops(path).await.expect(200);
    }
    let elsewhere = fleet[0].ops("/profile").await.expect(404);
    assert_eq!(elsewhere.json()["code"], "not_found");

    let routes = [
        ("/auth/register", "POST", ["GET", "PUT", "BREW"]),
        ("/auth/login", "POST", ["GET", "DELETE", "HEAD"]),
        ("/login", "POST", ["GET", "PATCH", "OPTIONS"]),
        ("/auth/logout", "POST", ["GET", "HEAD", "PUT"]),
        ("/logout", "POST", ["GET", "TRACE", "DELETE"]),
        ("/profile", "GET", ["POST", "PUT", "DELETE"]),
        ("/openapi.json", "GET", ["POST", "PUT", "DELETE"]),
    ];
    for (path, allowed, refused) in routes {
        for method in refused {
            let answer = fleet[0].call(method, path).send().await.expect(405);
            let allow: Vec<_> = answer.header("allow").expect("Allow").split(',').map(str::trim).collect();
            assert!(allow.contains(&allowed) && !allow.contains(&method), "{method} {path}: {allow:?}");
            if method != "HEAD" {
                answer.expect_problem(405, "method_not_allowed");
            }
        }
    }
}

#[tokio::test]
async fn head_is_get_without_its_body() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    for path in ["/profile", "/openapi.json", "/docs/"] {
        let get = fleet[0].get(path).session(&session).send().await.expect(200);
        let head = fleet[0].call("HEAD", path).session(&session).send().await.expect(200);
        assert!(head.body.is_empty() && !get.body.is_empty());
        for name in ["content-type", "content-length", "cache-control", "x-served-by"] {
            // The times in a profile are shorter if they end in a zero, so lengths differ.
            if path == "/profile" && name == "content-length" {
                continue;
            }
            assert_eq!(head.header(name), get.header(name), "{path} {name}");
        }
    }
    assert!(fleet[0].call("HEAD", "/profile").send().await.expect(401).body.is_empty());
}

#[tokio::test]
async fn every_answer_says_who_and_which() {
    let fleet = Fleet::start(2).await;
    let paths = ["/", "/docs/", "/openapi.json", "/profile", "/nowhere", "/auth/login"];
    for (replica, name) in fleet.replicas().iter().zip(["replica-1", "replica-2"]) {
        let mut ids = Vec::new();
        for path in paths {
            let answer = replica.get(path).send().await;
            assert_eq!(answer.header("x-served-by"), Some(name), "{path}");
            ids.push(answer.header("x-request-id").expect("an id").to_owned());
            let given = replica.get(path).header("x-request-id", "7f3a.from_nginx-1").send().await;
            assert_eq!(given.header("x-request-id"), Some("7f3a.from_nginx-1"), "{path}");
        }
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())), "{ids:?}");
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), paths.len(), "each its own");
    }
    // Ids that would not be safe in a log line are replaced.
    for unsafe_id in ["", "two words", "\"quoted\"", "a{b}", &"x".repeat(129)] {
        let answer = fleet[0].get("/profile").header("x-request-id", unsafe_id).send().await;
        assert_eq!(answer.header("x-request-id").map(str::len), Some(32), "{unsafe_id:?}");
    }
}

/// ASVS 5.0 14.3.2.
#[tokio::test]
async fn what_is_about_somebody_is_not_kept() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let answers = [
        fleet[0].post("/auth/register").json(&json!({ "email": "eve@example.org", "password": PASSWORD })).send().await,
        fleet[0].post("/auth/register").json(&json!({})).send().await,
        fleet[0].try_login("ada", PASSWORD).send().await,
        fleet[0].try_login("ada", "a wrong password").send().await,
        fleet[0].get("/profile").session(&session).send().await,
        fleet[0].get("/profile").send().await,
        fleet[0].get("/auth/login").send().await,
        fleet[0].post("/auth/logout").session(&session).send().await,
        fleet[0].post("/logout").send().await,
    ];
    assert_eq!(answers.each_ref().map(|answer| answer.status), [201, 422, 200, 401, 200, 401, 405, 200, 401]);
    for answer in answers {
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{}", answer.text());
    }
}
