//! The pages for people, without a browser: statuses, headers, escaping, and whose forms are taken.
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::sample;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

use crate::fleet::{Answer, Call, Fleet, PASSWORD, Replica};

const FORM: &str = "application/x-www-form-urlencoded";

/// What a browser sends from a form of our own page.
fn form(replica: &Replica, path: &str, fields: &[(&str, &str)]) -> Call {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    replica.post(path).header("content-type", FORM).body(body)
}

async fn submit(replica: &Replica, path: &str, fields: &[(&str, &str)]) -> Answer {
    form(replica, path, fields).header("sec-fetch-site", "same-origin").send().await
}

async fn submit_as(replica: &Replica, cookie: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
    form(replica, path, fields).header("sec-fetch-site", "same-origin").cookie(cookie).send().await
}

/// A page with the headers of each page. Fails the test if it names anything that another host would serve.
#[track_caller]
fn expect_page(answer: Answer, status: u16) -> String {
    let answer = answer.expect(status);
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.header("referrer-policy"), Some("same-origin"));
    let policy = answer.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'; style-src 'self';"), "{policy}");
    let text = answer.text();
    assert!(!text.contains("<script") && !text.contains("style=") && !text.contains("://"), "{text}");
    assert!(text.len() < 20 * 1024, "{} bytes", text.len());
    text
}

#[tokio::test]
async fn a_visit_on_three_replicas() {
    let fleet = Fleet::start(3).await;
    assert_eq!(fleet[0].get("/").send().await.expect(303).header("location"), Some("/account"));
    assert_eq!(fleet[0].get("/account").send().await.expect(303).header("location"), Some("/sign-in"));
    let page = expect_page(fleet[0].get("/sign-in").send().await, 200);
    let style =
        page.split("rel=\"stylesheet\" href=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a style");
    let style = fleet[1].get(style).send().await.expect(200);
    assert_eq!(style.header("content-type"), Some("text/css; charset=utf-8"));
    assert_eq!(style.header("cache-control"), Some("public, max-age=31536000, immutable"));

    let fields = [("email", "ada@example.org"), ("username", "ada"), ("password", PASSWORD)];
    let made = submit(&fleet[0], "/register", &fields).await.expect(303);
    assert_eq!(made.header("location"), Some("/sign-in?notice=registered"));
    let again = expect_page(submit(&fleet[1], "/register", &fields).await, 409);
    assert!(again.contains("id=\"email-error\"") && again.contains("value=\"ada@example.org\""), "{again}");

    let opened = submit(&fleet[1], "/sign-in", &[("username", "ada"), ("password", PASSWORD)]).await.expect(303);
    let (cookie, _) = opened.set_cookie();
    assert_eq!(opened.header("location"), Some("/sign-in"));
    let here = fleet[2].get("/sign-in").cookie(&cookie).send().await.expect(303);
    assert_eq!(here.header("location"), Some("/account"));

    // The page counts the replicas that have answered.
    let first = fleet[0].get("/account").cookie(&cookie).send().await;
    let (seen, _) = first.set_cookie();
    let second = fleet[2].get("/account").cookie(&format!("{cookie}; {seen}")).send().await;
    let page = expect_page(second, 200);
    for shown in ["<dd>ada</dd>", "<dd>ada@example.org</dd>", "<dd>replica-2</dd>", "<dd>2: replica-1, replica-3</dd>"]
    {
        assert!(page.contains(shown), "{shown}: {page}");
    }

    let done = submit_as(&fleet[0], &cookie, "/sign-out", &[]).await.expect(303);
    assert!(done.set_cookie().0.ends_with('='), "the cookie is cleared");
    assert_eq!(done.header("clear-site-data"), Some("\"cache\", \"storage\""));
    submit_as(&fleet[1], &cookie, "/sign-out", &[]).await.expect(303);
    fleet[2].get("/account").cookie(&cookie).send().await.expect(303);
    let late = submit_as(&fleet[2], &cookie, "/account", &[("action", "end-others")]).await;
    assert!(expect_page(late, 401).contains("role=\"alert\""));
}

#[tokio::test]
async fn sessions_password_and_the_end_of_the_account() {
    let fleet = Fleet::start(2).await;
    let ada = fleet[0].register("ada").await;
    let (mine, other, third) = (fleet[0].login(&ada).await, fleet[1].login(&ada).await, fleet[1].login(&ada).await);
    let account = async |fields: &[(&str, &str)]| submit_as(&fleet[0], &mine.cookie, "/account", fields).await;

    account(&[("action", "end"), ("session", &other.id)]).await.expect(303);
    assert_eq!((fleet[1].check(&other).await, fleet[1].check(&third).await), (401, 200));
    expect_page(account(&[("action", "end"), ("session", &other.id)]).await, 404);
    expect_page(account(&[("action", "nonsense")]).await, 422);
    account(&[("action", "end-others")]).await.expect(303);
    assert_eq!((fleet[1].check(&third).await, fleet[1].check(&mine).await), (401, 200));

    let change = |current: &'static str, new: &'static str| {
        [("action", "password"), ("current_password", current), ("new_password", new)]
    };
    let wrong = expect_page(account(&change("wrong", "staple a battery horse")).await, 403);
    assert!(wrong.contains("id=\"current_password-error\""), "{wrong}");
    let weak = expect_page(account(&change(PASSWORD, "short")).await, 422);
    assert!(weak.contains("id=\"new_password-error\"") && !weak.contains(PASSWORD), "{weak}");
    assert!(weak.contains("Too short: at least 8 characters."), "{weak}");
    let empty = expect_page(account(&change("", "")).await, 422);
    assert!(empty.contains("id=\"current_password-error\"") && empty.contains("id=\"new_password-error\""), "{empty}");
    let changed = account(&change(PASSWORD, "staple a battery horse")).await.expect(303);
    let (cookie, _) = changed.set_cookie();
    assert_eq!(fleet[1].check(&mine).await, 401);

    let delete = async |password| {
        let fields = [("action", "delete"), ("password_to_delete", password)];
        submit_as(&fleet[1], &cookie, "/account", &fields).await
    };
    let kept = expect_page(delete("wrong").await, 403);
    assert!(kept.contains("id=\"password_to_delete-error\""), "{kept}");
    assert_eq!(delete("staple a battery horse").await.expect(303).header("location"), Some("/sign-in?notice=deleted"));
    fleet[0].try_login(&ada.email, "staple a battery horse").send().await.expect_problem(401, "invalid_credentials");
}

/// What somebody typed or sent appears as text, and a password never.
#[tokio::test]
async fn hostile_texts_are_escaped() {
    const HOSTILE: &str = "\"><script>alert(1)</script>'&";
    let fleet = Fleet::start(1).await;
    let fields = [("username", HOSTILE), ("password", "\"><i>secret"), ("host", HOSTILE), ("to", HOSTILE)];
    for (path, status) in [("/sign-in", 401), ("/register", 422)] {
        let page = expect_page(submit(&fleet[0], path, &fields).await, status);
        assert!(page.contains("alert(1)") && !page.contains("secret"), "{page}");
    }
    let ada = fleet[0].register("ada").await;
    let login = fleet[0].try_login(&ada.email, PASSWORD).header("user-agent", HOSTILE).send().await.expect(200);
    let (cookie, _) = login.set_cookie();
    let page = fleet[0].get("/account").cookie(&cookie).cookie("authfleet-seen=<script>~ok~a b").send().await;
    let page = expect_page(page, 200);
    assert!(page.contains("alert(1)") && page.contains("2: ok, replica-1"), "{page}");
}

#[tokio::test]
async fn forms_are_taken_from_our_own_pages_alone() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let ours = format!("http://{}", fleet[0].address());
    let paths = ["/sign-in", "/register", "/account", "/sign-out"];
    for path in paths {
        let send = async |headers: &[(&str, &str)]| {
            let call = form(&fleet[0], path, &[("action", "end-others")]).session(&session);
            headers.iter().fold(call, |call, (name, value)| call.header(name, value)).send().await
        };
        for refused in [
            &[][..],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "cross-site"), ("origin", &ours)],
            &[("origin", "null")],
            &[("origin", "https://elsewhere.example")],
            &[("origin", &format!("{ours}.elsewhere.example"))],
        ] {
            let page = expect_page(send(refused).await, 403);
            assert!(page.contains("role=\"alert\""), "{path} {refused:?}");
        }
        // A body of another kind is refused too.
        let json = fleet[0].post(path).header("sec-fetch-site", "same-origin").header("content-type", "text/plain");
        expect_page(json.body("a=b").session(&session).send().await, 415);
        let large = form(&fleet[0], path, &[("username", &"x".repeat(17_000))]).header("sec-fetch-site", "same-origin");
        expect_page(large.send().await, 413);
    }
    assert_eq!(fleet[0].check(&session).await, 200);
    // A browser that sends no Fetch metadata.
    form(&fleet[0], "/sign-out", &[]).header("origin", &ours).session(&session).send().await.expect(303);
    assert_eq!(fleet[0].check(&session).await, 401);
}

#[tokio::test]
async fn each_failure_has_a_page_in_the_readers_language() {
    let mut fleet = Fleet::builder().env("LOGIN_FAILURES_PER_ACCOUNT", "1").start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let sign_in = async |fleet: &Fleet, password: &str| {
        let call = form(&fleet[0], "/sign-in", &[("username", "ada"), ("password", password)]);
        call.header("accept-language", "de-AT").header("sec-fetch-site", "same-origin").send().await
    };
    let page = expect_page(sign_in(&fleet, "").await, 422);
    assert!(page.contains("<html lang=\"de\">") && page.contains("id=\"password-error\""), "{page}");
    let page = expect_page(sign_in(&fleet, "wrong").await, 401);
    assert!(page.contains("value=\"ada\"") && page.contains("Passwort ist falsch"), "{page}");
    let throttled = sign_in(&fleet, PASSWORD).await;
    let seconds: u64 = throttled.header("retry-after").expect("when to try again").parse().expect("seconds");
    let minutes = seconds.div_ceil(60);
    assert!(expect_page(throttled, 429).contains(&format!("in {minutes} Minuten")), "{seconds} s");

    fleet.redis.kill();
    for path in ["/account", "/sign-in"] {
        let answer = fleet[0].get(path).session(&session).send().await;
        assert_eq!((answer.header("set-cookie"), answer.header("retry-after")), (None, Some("1")));
        assert!(expect_page(answer, 503).contains("in 1 second."));
    }
    let kept = submit_as(&fleet[0], &session.cookie, "/sign-out", &[]).await;
    assert_eq!((kept.header("set-cookie"), kept.header("clear-site-data")), (None, None));
    expect_page(kept, 503);
}

/// Where one is going survives mistakes and the way through the registration.
#[tokio::test]
async fn the_destination_is_carried_along() {
    let fleet = Fleet::start(1).await;
    let going = [("host", "app.example.org"), ("start", "abc"), ("to", "/x?y=1&z")];
    let query = "?host=app.example.org&start=abc&to=%2Fx%3Fy%3D1%26z";
    let page = expect_page(fleet[0].get(&format!("/sign-in{query}")).send().await, 200);
    assert!(page.contains("name=\"start\" value=\"abc\"") && page.contains("name=\"host\""), "{page}");
    let with = |fields: &[(&'static str, &'static str)]| [&going[..], fields].concat();
    let page = expect_page(submit(&fleet[0], "/sign-in", &with(&[("username", "ada"), ("password", "x")])).await, 401);
    assert!(page.contains("name=\"start\" value=\"abc\""), "{page}");
    let made = with(&[("email", "ada@example.org"), ("username", "ada"), ("password", PASSWORD)]);
    let made = submit(&fleet[0], "/register", &made).await.expect(303);
    assert_eq!(made.header("location"), Some(format!("/sign-in{query}&notice=registered").as_str()));
    let opened = submit(&fleet[0], "/sign-in", &with(&[("username", "ada"), ("password", PASSWORD)])).await.expect(303);
    assert_eq!(opened.header("location"), Some(format!("/sign-in{query}").as_str()));
}

#[tokio::test]
async fn where_registration_is_closed_nobody_makes_an_account() {
    let fleet = Fleet::builder().env("REGISTRATION", "closed").start().await;
    let fields = serde_json::json!({ "email": "ada@example.org", "password": PASSWORD });
    fleet[0].post("/auth/register").json(&fields).send().await.expect_problem(403, "registration_closed");
    let fields = [("email", "ada@example.org"), ("password", PASSWORD)];
    for answer in [fleet[0].get("/register").send().await, submit(&fleet[0], "/register", &fields).await] {
        let page = expect_page(answer, 403);
        assert!(
            page.contains("New accounts are made by whoever runs this server") && !page.contains("<form"),
            "{page}"
        );
    }
    assert!(!expect_page(fleet[0].get("/sign-in").send().await, 200).contains("/register"));
    fleet[0].try_login("ada@example.org", PASSWORD).send().await.expect_problem(401, "invalid_credentials");
}

/// Each field says what is wrong with it, in the reader's language.
#[tokio::test]
async fn a_mistake_is_explained_beside_its_field() {
    let fleet = Fleet::start(1).await;
    let page = expect_page(fleet[0].get("/register").send().await, 200);
    assert!(page.contains("aria-describedby=\"password-hint\"") && page.contains("At least 8 characters."), "{page}");
    let register = async |email: &str, username: &str, password: &str| {
        let fields = [("email", email), ("username", username), ("password", password)];
        expect_page(submit(&fleet[0], "/register", &fields).await, 422)
    };
    for (email, username, password, expected) in [
        ("ada", "", PASSWORD, "Enter an e-mail address such as"),
        ("ada@xn--a.example", "", PASSWORD, "is not a valid domain"),
        ("ada@example.org", "ada@x", PASSWORD, "A username has no @."),
        ("ada@example.org", "a da", PASSWORD, "No spaces, please."),
        ("ada@example.org", "ada\u{200b}", PASSWORD, "characters that cannot be seen"),
        ("ada@example.org", "", "short", "Too short: at least 8 characters."),
        ("ada@example.org", "", "password1", "many people use this password"),
        ("ada.lovelace@example.org", "", "ada.lovelace", "it is your address, your name"),
        ("ada@example.org", "", "abcdefghij", "a repetition, a sequence"),
    ] {
        let page = register(email, username, password).await;
        assert!(page.contains(expected) && page.matches("class=\"error\"").count() == 1, "{expected}: {page}");
    }
}

#[tokio::test]
async fn the_pages_have_the_name_the_logo_and_the_color_of_who_runs_them() {
    const LOGO: &str = "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>";
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), LOGO).expect("written");
    let fleet = Fleet::builder()
        .env("BRAND_NAME", "Example & <Sons>")
        .env("BRAND_COLOR", "#ffcc00")
        .env("BRAND_LOGO", file.path().to_str().expect("UTF-8"))
        .start()
        .await;
    let page = expect_page(fleet[0].get("/sign-in").send().await, 200);
    assert!(page.contains("<title>Sign in · Example &#38; &#60;Sons&#62;</title>"), "{page}");
    let asset = |before: &str| page.split(before).nth(1).and_then(|rest| rest.split('"').next()).expect("an asset");
    let logo = fleet[0].get(asset("rel=\"icon\" href=\"")).send().await.expect(200);
    assert_eq!(logo.header("content-type"), Some("image/svg+xml"));
    // Opened by itself, it is a document without scripts.
    let policy = logo.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'") && policy.ends_with("sandbox"), "{policy}");
    assert_eq!(logo.text(), LOGO);
    let style = fleet[0].get(asset("rel=\"stylesheet\" href=\"")).send().await.expect(200).text();
    assert!(style.contains("--accent: #ffcc00; --on-accent: #0d1117"), "dark: {style}");
    assert!(!style.contains("--accent: #ffcc00; --on-accent: #fff"), "yellow on white can't be read: {style}");

    // Who knows the service by this name guesses it first.
    let fields = [("email", "ada@example.org"), ("password", "example & <sons>")];
    let refused = expect_page(submit(&fleet[0], "/register", &fields).await, 422);
    assert!(refused.contains("the name of this service"), "{refused}");

    std::fs::write(file.path(), "GIF89a").expect("written");
    let listen = [("LISTEN_ADDR", "127.0.0.1:0"), ("OPS_ADDR", "127.0.0.1:0")];
    let refused = fleet.command(&["serve"], &listen).await.expect_code(1).stdout;
    assert!(refused.contains("BRAND_LOGO: ") && refused.contains("is neither an SVG nor a PNG image"), "{refused}");
}

/// A page with its style sheet has at most 20 KB, so that it comes quickly on a slow line.
#[tokio::test]
async fn a_page_is_light() {
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    for _ in 0..2 {
        fleet[0].login(&ada).await;
    }
    let page = expect_page(fleet[0].get("/sign-in").send().await, 200);
    let asset = |before: &str| page.split(before).nth(1).and_then(|rest| rest.split('"').next()).expect("an asset");
    let style = fleet[0].get(asset("rel=\"stylesheet\" href=\"")).send().await.expect(200).body.len();
    let icon = fleet[0].get(asset("rel=\"icon\" href=\"")).send().await.expect(200).body.len();
    println!("style sheet {style} bytes, icon {icon}");
    for path in ["/sign-in", "/register", "/account", "/sign-out"] {
        let call = fleet[0].get(path).header("accept-language", "de");
        let call = if path == "/account" { call.session(&session) } else { call };
        let size = expect_page(call.send().await, 200).len();
        println!("{path} {size} bytes");
        assert!(size + style + icon <= 20_000, "{path}: {size} + {style} + {icon} bytes");
    }
}

/// Whatever a form says, the answer is a page, and what was typed is text in it. Forms aren't in the OpenAPI document,
/// which is for programs, so schemathesis doesn't know them.
#[tokio::test]
async fn generated_forms_get_a_page_or_a_redirect() {
    const MARKUP: &str = "'\"><x-mark a=\"";
    let fleet = Fleet::start(1).await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let mut random = TestRunner::deterministic();
    let fields = vec((sample::select(&NAMES[..]), (".{0,40}", any::<bool>())), 0..8);
    let bodies = vec(any::<u8>(), 0..200);
    for round in 0..400 {
        let path = ["/sign-in", "/register", "/account", "/sign-out"][round % 4];
        let call = if round % 5 == 0 {
            let body = bodies.new_tree(&mut random).expect("a body").current();
            fleet[0].post(path).header("content-type", FORM).body(body)
        } else {
            let fields = fields.new_tree(&mut random).expect("fields").current();
            let text =
                |(text, is_marked): &(String, bool)| if *is_marked { format!("{text}{MARKUP}") } else { text.clone() };
            let fields: Vec<(&str, String)> = fields.iter().map(|(name, value)| (*name, text(value))).collect();
            let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            form(&fleet[0], path, &fields)
        };
        // A sign-out would end it.
        let call = if path == "/sign-out" { call } else { call.session(&session) };
        let answer = call.header("sec-fetch-site", "same-origin").send().await;
        if answer.status == 303 {
            let location = answer.header("location").expect("a location");
            assert!(location.starts_with('/') && !location.starts_with("//"), "{path}: {location}");
        } else {
            assert!((400..500).contains(&answer.status), "{path}: {}", answer.status);
            let status = answer.status;
            assert!(!expect_page(answer, status).contains("<x-mark"), "{path}");
        }
    }
    assert_eq!(fleet[0].check(&session).await, 200);
}

/// The fields of all forms, and one of none.
const NAMES: [&str; 12] = [
    "username",
    "password",
    "email",
    "host",
    "start",
    "to",
    "action",
    "session",
    "current_password",
    "new_password",
    "password_to_delete",
    "other",
];
