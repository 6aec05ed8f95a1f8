//! Access rules and groups: who may use which application, and how rules and groups are changed.
use rustix::process::Signal;
use serde_json::json;

use crate::fleet::{APP, Engine, Fleet, PROMPTLY, Proxy, Replica, identity, opened_at, within};

const RULES: &str = r#"
groups = ["admins", "staff"]

[[rule]]
name = "admin"
paths = ["/admin/*"]
allow = { groups = ["admins"], users = ["eve"] }

[[rule]]
name = "rest"
allow = "signed-in"
"#;

async fn admin(replica: &Replica, cookie: &str) -> u16 {
    Proxy::Forward.ask(replica, "GET", APP, "/admin").cookie(cookie).send().await.status
}

/// When the command returns, the change holds on all replicas, because the account's sessions have ended.
#[tokio::test]
async fn a_change_of_groups_holds_when_the_command_returns() {
    for engine in Engine::each() {
        let fleet = Fleet::builder().replicas(3).users_in(engine).with_rules(RULES).start().await;
        let ada = fleet[0].register("ada").await;
        let bob = fleet[0].login(&fleet[0].register("bob").await).await;
        let group = async |arguments: &[&str]| {
            let all: Vec<_> = ["user", "group"].iter().chain(arguments).copied().collect();
            fleet.command(&all, &[]).await
        };
        let session = fleet[0].login(&ada).await;
        let cookie = opened_at(&fleet[0], &session, APP).await;
        assert_eq!(admin(&fleet[1], &cookie).await, 403);

        let added = group(&["add", "ada", "admins", "--json"]).await.expect_code(0).json();
        assert_eq!(added, json!({ "user_id": ada.id, "username": "ada", "changed": true, "sessions_ended": 1 }));
        for replica in fleet.replicas() {
            assert_eq!(replica.check(&session).await, 401);
            assert_eq!(admin(replica, &cookie).await, 401);
        }
        let session = fleet[1].login(&ada).await;
        let cookie = opened_at(&fleet[2], &session, APP).await;
        for replica in fleet.replicas() {
            let answer = Proxy::Nginx.ask(replica, "GET", APP, "/admin").cookie(&cookie).send().await.expect(200);
            assert_eq!(identity(&answer)[3], "admins");
        }
        // A command that changes nothing ends no session.
        let again = group(&["add", "ada", "admins", "--json"]).await.expect_code(0).json();
        assert_eq!(again["changed"], false);
        assert_eq!(fleet[0].check(&session).await, 200);
        assert_eq!(fleet[0].check(&bob).await, 200);

        let listed = group(&["list", "ada"]).await.expect_code(0);
        assert_eq!(listed.stdout, "admins\n");
        let shown = fleet.command(&["user", "show", "ada", "--json"], &[]).await.expect_code(0).json();
        assert_eq!(shown["groups"], json!(["admins"]));

        group(&["add", "ada", "staff"]).await.expect_code(0);
        group(&["remove", "ada", "admins"]).await.expect_code(0);
        let session = fleet[2].login(&ada).await;
        let cookie = opened_at(&fleet[0], &session, APP).await;
        for replica in fleet.replicas() {
            assert_eq!(admin(replica, &cookie).await, 403);
        }
        assert_eq!(group(&["remove", "ada", "admins", "--json"]).await.expect_code(0).json()["changed"], false);
        assert_eq!(group(&["list", "ada", "--json"]).await.expect_code(0).json()["groups"], json!(["staff"]));
        for bad in ["Admins", "a b", "", "a,b"] {
            let refused = group(&["add", "ada", bad]).await.expect_code(1);
            assert!(refused.stderr.contains("group must be 1 to 64 characters"), "{}", refused.stderr);
        }
        group(&["add", "nobody", "staff"]).await.expect_code(1);
    }
}

/// A login that read the groups before they were changed gets no session after it.
#[tokio::test]
async fn a_login_under_way_does_not_keep_the_old_groups() {
    let fleet = Fleet::builder().with_rules(RULES).start().await;
    let ada = fleet[0].register("ada").await;
    fleet.command(&["user", "group", "add", "ada", "admins"], &[]).await.expect_code(0);
    let mut refused = 0;
    for round in 0..20 {
        let (from, to) = if round % 2 == 0 { ("remove", false) } else { ("add", true) };
        let logins = (0..4).map(|_| fleet[0].try_login(&ada.email, crate::fleet::PASSWORD).send());
        let arguments = ["user", "group", from, "ada", "admins"];
        let change = fleet.command(&arguments, &[]);
        let (answers, changed) = tokio::join!(futures::future::join_all(logins), change);
        changed.expect_code(0);
        for answer in answers {
            if answer.status == 401 {
                refused += 1;
                continue;
            }
            let session = crate::fleet::Session::opened_by(&answer);
            if fleet[0].check(&session).await == 200 {
                let groups: Option<String> = fleet.redis.run(&["HGET", &session.key(), "groups"]);
                assert_eq!(groups.is_some(), to, "round {round}");
            }
        }
    }
    println!("{refused} logins were overtaken");
}

#[tokio::test]
async fn rules_are_read_again_on_sighup_all_or_none() {
    let fleet = Fleet::builder().with_rules(RULES).start().await;
    let session = fleet[0].login(&fleet[0].register("ada").await).await;
    let cookie = opened_at(&fleet[0], &session, APP).await;
    let file = fleet.path().join("rules.toml");
    let reloads = async |result| fleet[0].count("authfleet_access_rules_reloads_total", &[("result", result)]).await;
    assert_eq!(admin(&fleet[0], &cookie).await, 403);

    std::fs::write(&file, RULES.replace("\"eve\"", "\"ada\"")).expect("a file");
    assert_eq!(admin(&fleet[0], &cookie).await, 403, "nobody has asked for it");
    fleet[0].signal(Signal::HUP);
    within(PROMPTLY, "the new rules are in force", async || admin(&fleet[0], &cookie).await == 200).await;
    assert_eq!(reloads("success").await, 1);

    for broken in ["[[rule]]\nallow = \"every body\"\n", "nonsense", ""] {
        let before = reloads("failure").await;
        std::fs::write(&file, broken).expect("a file");
        fleet[0].signal(Signal::HUP);
        within(PROMPTLY, "the broken file was noticed", async || reloads("failure").await > before).await;
        assert_eq!(admin(&fleet[0], &cookie).await, 200, "the old rules stay");
    }
    std::fs::remove_file(&file).expect("removed");
    fleet[0].signal(Signal::HUP);
    within(PROMPTLY, "the missing file was noticed", async || reloads("failure").await == 4).await;
    assert_eq!(admin(&fleet[0], &cookie).await, 200);
    let complaint =
        fleet[0].log().into_iter().filter(|line| line["level"] == "ERROR").map(|line| line["error"].to_string());
    let complaints: Vec<_> = complaint.collect();
    assert!(complaints[0].contains("rules.toml") && complaints[0].contains("line 2"), "{complaints:?}");
}

#[tokio::test]
async fn a_file_with_mistakes_keeps_the_server_from_starting() {
    let fleet =
        Fleet::builder().replicas(0).with_rules("[[rule]]\nhosts = [\"evil.example\"]\nallow = \"sometimes\"\n");
    let fleet = fleet.start().await;
    let listen = [("LISTEN_ADDR", "127.0.0.1:0"), ("OPS_ADDR", "127.0.0.1:0")];
    let refused = fleet.command(&["serve"], &listen).await.expect_code(1);
    assert!(refused.stdout.contains("ACCESS_RULES: rules.toml has mistakes"), "{}", refused.stdout);
    assert!(refused.stdout.contains("line 3: "), "{}", refused.stdout);
    let missing = [listen[0], listen[1], ("ACCESS_RULES", "missing.toml")];
    let refused = fleet.command(&["serve"], &missing).await.expect_code(1);
    assert!(refused.stdout.contains("ACCESS_RULES: missing.toml: No such file"), "{}", refused.stdout);
}

#[tokio::test]
async fn rules_test_says_which_rule_decides() {
    let fleet = Fleet::builder().with_rules(RULES).start().await;
    fleet[0].register("ada").await;
    fleet[0].register("eve").await;
    let test = async |arguments: &[&str]| {
        let all: Vec<_> = ["rules", "test"].iter().chain(arguments).copied().collect();
        let done = fleet.command(&all, &[]).await;
        (done.code, done.stdout.trim().to_owned(), done.stderr)
    };
    let url = "http://app.example.test/admin/users?x=1";
    for (arguments, code, text) in [
        (&["GET", url][..], 1, "denied by \"admin\" (line 4): nobody is signed in"),
        (
            &["GET", url, "--user", "ada"],
            1,
            "denied by \"admin\" (line 4): ada (no groups) is not one of those it names",
        ),
        (&["GET", url, "--user", "eve"], 0, "allowed by \"admin\" (line 4): eve (no groups) is one of those it names"),
        (&["GET", "http://app.example.test", "--user", "ada"], 0, "allowed by \"rest\" (line 9): ada is signed in"),
        (&["GET", "http://evil.example/"], 1, "denied: evil.example is not in PROTECTED_HOSTS"),
        (&["GET", "http://app.example.test/x/../admin"], 1, "denied: the path has a segment of dots"),
    ] {
        let (found, said, errors) = test(arguments).await;
        assert_eq!((found, said.as_str()), (Some(code), text), "{errors}");
    }
    assert_eq!(test(&["GET", "nonsense"]).await.0, Some(2));
    assert_eq!(test(&["GET", url, "--user", "nobody"]).await.0, Some(1));
    let (_, json, _) = test(&["GET", url, "--user", "eve", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json["rule"], &json["line"], &json["is_allowed"]), (&json!("admin"), &json!(4), &json!(true)));
    fleet.command(&["rules", "test", "GET", url], &[("ACCESS_RULES", "missing.toml")]).await.expect_code(2);
}

#[tokio::test]
async fn decisions_are_counted_by_rule_and_denials_are_recorded() {
    let fleet = Fleet::builder().with_rules(RULES).start().await;
    let ada = fleet[0].register("ada").await;
    let session = fleet[0].login(&ada).await;
    let cookie = opened_at(&fleet[0], &session, APP).await;
    let ask = async |host: &str, path: &str, cookie: &str| {
        let call = Proxy::Forward.ask(&fleet[0], "GET", host, path).cookie(cookie);
        call.header("x-forwarded-for", "203.0.113.7").send().await.status
    };
    assert_eq!(ask(APP, "/", &cookie).await, 200);
    assert_eq!(ask(APP, "/", "").await, 401);
    assert_eq!(ask(APP, "/admin", &cookie).await, 403);
    assert_eq!(ask("evil.example", "/", &cookie).await, 403);
    assert_eq!(ask(APP, "/x/../admin", &cookie).await, 403);
    for (rule, decision) in
        [("rest", "allowed"), ("rest", "sign_in"), ("admin", "denied"), ("none", "denied"), ("none", "refused")]
    {
        let labels = [("rule", rule), ("decision", decision)];
        assert_eq!(fleet[0].count("authfleet_access_decisions_total", &labels).await, 1, "{rule} {decision}");
    }
    let log = fleet[0].log();
    let denials: Vec<_> = log.iter().filter(|line| line["event"] == "access_denied").collect();
    assert_eq!(denials.len(), 2, "{denials:?}");
    assert_eq!(denials[0]["target"], "audit");
    for (field, value) in [
        ("rule", "admin"),
        ("host", APP),
        ("method", "GET"),
        ("user_id", &ada.id),
        ("session_id", &session.id),
        ("ip", "203.0.113.7"),
    ] {
        assert_eq!(denials[0][field], value, "{field}");
    }
    assert_eq!(denials[1]["host"], "evil.example");
    // Neither the code nor the cookie is in the log.
    let text = fleet[0].output_text();
    assert!(!text.contains(cookie.split_once('=').expect("a cookie").1) && !text.contains("code="), "no secrets");
}
