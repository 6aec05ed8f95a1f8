use super::*;
use crate::config::Scheme;

const HOSTS: [&str; 3] = ["app.example.org", "wiki.example.org", "*.example.net"];

fn hosts() -> ProtectedHosts {
    ProtectedHosts::new(&HOSTS.map(|host| SitePattern::parse(host).expect("a host")), Scheme::Https)
}

fn rules(text: &str) -> Rules {
    Rules::parse(text, &hosts()).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

fn mistakes(text: &str) -> Vec<String> {
    let mistakes = Rules::parse(text, &hosts()).expect_err("mistakes");
    mistakes.to_string().lines().map(str::to_owned).collect()
}

fn site(text: &str) -> Site {
    Site::parse(text, Scheme::Https).expect("a host")
}

/// The name of the rule that decides, or why none does.
fn decision(rules: &Rules, method: &str, host: &str, path: &str) -> String {
    match rules.decide(Request { method, host: &site(host), path }) {
        Decision::Rule(rule) => rule.name.clone(),
        Decision::NoRule => "no rule".to_owned(),
        Decision::Refused(why) => format!("refused: {why}"),
    }
}

const USUAL: &str = r#"
groups = ["admins"]

[[rule]]
name = "assets"
hosts = ["app.example.org"]
paths = ["/static/*"]
methods = ["GET", "HEAD"]
allow = "anyone"

[[rule]]
name = "admin"
hosts = ["app.example.org"]
paths = ["/admin/*"]
allow = { groups = ["admins"], users = ["Ada", "0190a8f0-0000-7000-8000-000000000000"] }

[[rule]]
name = "preflights"
methods = ["OPTIONS"]
allow = "anyone"

[[rule]]
allow = "signed-in"
"#;

#[test]
fn the_first_rule_that_matches_decides() {
    let rules = rules(USUAL);
    for (method, host, path, rule) in [
        ("GET", "app.example.org", "/static/a.css", "assets"),
        ("POST", "app.example.org", "/static/a.css", "rule 4"),
        ("GET", "wiki.example.org", "/static/a.css", "rule 4"),
        ("GET", "app.example.org", "/admin", "admin"),
        ("DELETE", "app.example.org", "/admin/users/7", "admin"),
        ("OPTIONS", "wiki.example.org", "/", "preflights"),
        ("GET", "x.example.net", "/", "rule 4"),
        ("GET", "evil.example", "/", "no rule"),
        ("GET", "app.example.org:8443", "/", "no rule"),
        ("GET", "a.b.example.net", "/", "no rule"),
    ] {
        assert_eq!(decision(&rules, method, host, path), rule, "{method} {host} {path}");
    }
}

#[test]
fn a_path_that_programs_read_differently_is_refused_only_where_paths_decide() {
    let rules = rules(USUAL);
    for path in ["/x/../admin", "/x%2f..%2fadmin", "/admin;x", "/%61dmin%00", "/x\\admin"] {
        assert!(decision(&rules, "GET", "app.example.org", path).starts_with("refused"), "{path}");
        assert_eq!(decision(&rules, "GET", "wiki.example.org", path), "rule 4", "{path}");
    }
    // Rules decide differently about these, depending on who reads them.
    for path in ["/Admin", "//admin", "/ADMIN//x", "/STATIC/a.css"] {
        assert!(decision(&rules, "GET", "app.example.org", path).contains("decide differently"), "{path}");
    }
    // And alike about these.
    for path in ["/Users//Ada", "/%41dmin-guide"] {
        assert_eq!(decision(&rules, "GET", "app.example.org", path), "rule 4", "{path}");
    }
    assert_eq!(decision(&rules, "GET", "app.example.org", "/%61dmin"), "admin");
}

#[test]
fn members_are_users_by_name_or_id_and_groups() {
    let rules = rules(USUAL);
    let host = site("app.example.org");
    let Decision::Rule(Rule { allow: Allow::Members(members), .. }) =
        rules.decide(Request { method: "GET", host: &host, path: "/admin" })
    else {
        panic!("a rule with members")
    };
    let (id, other) = ("0190a8f0-0000-7000-8000-000000000000".parse().expect("an id"), Uuid::nil());
    let (admins, nobody) = (Groups::parse("admins,staff"), Groups::default());
    assert!(members.include(id, "x", &nobody));
    assert!(members.include(other, "x", &admins));
    assert!(members.include(other, "ada", &nobody) && members.include(other, "ADA", &nobody));
    assert!(!members.include(other, "adam", &Groups::parse("admin,staff")));
}

#[test]
fn without_a_file_whoever_is_signed_in_may_go_to_protected_hosts() {
    let rules = Rules::signed_in(&hosts());
    assert_eq!(decision(&rules, "GET", "app.example.org", "/x/../y"), "signed-in");
    assert_eq!(decision(&rules, "GET", "evil.example", "/"), "no rule");
}

#[test]
fn every_mistake_is_named_with_its_line() {
    let text = r#"groups = ["admins", "Bad Group"]

[[rule]]
hosts = ["evil.example", "app.example.org"]
paths = ["admin", "/a/../b"]
methods = ["get"]
allow = { groups = ["admin"], users = ["ada@example.org"] }

[[rule]]
name = "typo"
pahts = ["/x"]
allow = "signed-in"

[[rule]]
hosts = []
allow = "signed_in"

[[rule]]
allow = {}

[[rule]]
name = 7
allow = "nobody"
"#;
    let found = mistakes(text);
    for expected in [
        "line 1: group \"Bad Group\"",
        "line 4: host \"evil.example\" is not in PROTECTED_HOSTS",
        "line 5: path \"admin\" must begin with a slash",
        "line 5: path \"/a/../b\" must not have a segment of dots",
        "line 6: method \"get\"",
        "line 7: unknown group \"admin\"",
        "line 7: user \"ada@example.org\"",
        "line 11: unknown field `pahts`",
        "line 16: ",
        "line 19: allow names neither",
        "line 22: invalid type",
    ] {
        assert!(found.iter().any(|line| line.starts_with(expected)), "{expected} in {found:#?}");
    }
    for (text, expected) in [
        ("", "line 1: has no [[rule]]"),
        ("[[rule]]\nallow = \"anyone\"\nallow = \"nobody\"\n", "line 3: "),
        ("x = 1\n[[rule]]\nallow = \"anyone\"\n", "line 1: there is no \"x\""),
        ("[rule]\nallow = \"anyone\"\n", "line 1: a rule begins with [[rule]]"),
        ("[[rule]]\nhosts = []\nallow = \"anyone\"\n", "line 2: hosts = [] matches nothing"),
        ("[[rule]]\nname = \"a\"\n", "line 1: missing field `allow`"),
    ] {
        let found = mistakes(text);
        assert!(found.iter().any(|line| line.starts_with(expected)), "{expected} in {found:#?}");
    }
}

#[test]
fn a_rule_that_never_decides_is_a_mistake() {
    let hidden = |rules: &str| mistakes(rules);
    let found =
        hidden("[[rule]]\nallow = \"signed-in\"\n\n[[rule]]\nname = \"late\"\npaths = [\"/x\"]\nallow = \"nobody\"\n");
    assert_eq!(found, ["line 4: \"late\" is never reached: \"rule 1\" in line 1 comes first"]);
    // Two rules hide a third together.
    let found = hidden(
        "[[rule]]\nhosts = [\"app.example.org\"]\nallow = \"anyone\"\n\
         [[rule]]\nhosts = [\"*.example.net\"]\nallow = \"anyone\"\n\
         [[rule]]\nhosts = [\"app.example.org\", \"x.example.net\"]\nmethods = [\"GET\"]\nallow = \"nobody\"\n",
    );
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("line 7: "), "{found:?}");
    // None of these hides a later one.
    rules(
        "[[rule]]\npaths = [\"/x\"]\nallow = \"nobody\"\n\
         [[rule]]\npaths = [\"/x/*\"]\nmethods = [\"GET\"]\nallow = \"nobody\"\n\
         [[rule]]\npaths = [\"/x/*\"]\nallow = \"nobody\"\n\
         [[rule]]\nhosts = [\"app.example.org\"]\nallow = \"signed-in\"\n\
         [[rule]]\nallow = \"anyone\"\n",
    );
    let found = hidden(
        "[[rule]]\nname = \"a\"\npaths = [\"/x\"]\nallow = \"nobody\"\n[[rule]]\nname = \"a\"\nallow = \"anyone\"\n",
    );
    assert_eq!(found, ["line 5: two rules have the name \"a\""]);
}
