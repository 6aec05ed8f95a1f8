//! The pages in a real browser: three replicas behind nginx and two applications, as `make demo` starts them.
//!
//! Each page is looked at in both schemes, as wide as a desktop and 320 pixels wide (WCAG 2.2, 1.4.10), and pictures of
//! it are in `target/browser/`.
mod driver;

use std::collections::BTreeSet;

use serde_json::json;

use self::driver::{Browser, ENTER, TAB};
use crate::fleet::{Demo, PASSWORD};

/// axe-core 4.12.1, from the wheel axe-playwright-python 0.1.8; its licence is beside it.
const AXE: &str = include_str!("axe/axe.min.js");
/// `preload` would fetch the style sheet by script, which our policy forbids.
const RUN_AXE: &str = "axe.run({ preload: false }).then(found => arguments[0](found.violations.map(violation =>
    violation.id + ': ' + violation.nodes.map(node => node.html + ' ' + node.failureSummary).join(', '))))";

/// Looks at the page in every way, and takes its pictures.
async fn inspect(browser: &Browser, name: &str) {
    browser.script(AXE).await;
    for scheme in ["light", "dark"] {
        for width in [1024, 320] {
            browser.look(width, scheme).await;
            let widest = browser.script("return document.documentElement.scrollWidth").await;
            assert!(widest.as_u64() <= Some(width.into()), "{name}: {widest} pixels wide at {width}");
            browser.picture(&format!("{name}-{scheme}-{width}")).await;
        }
        // Contrast is among its rules (1.4.3), and so are the targets' sizes (2.5.8).
        let found = browser.script_with_callback(RUN_AXE).await;
        assert_eq!(found, json!([]), "{name}, {scheme}");
    }
    browser.look(1024, "light").await;
    let tree = browser.devtools("Accessibility.getFullAXTree", json!({})).await;
    let nodes = tree["nodes"].as_array().expect("nodes");
    let controls = nodes.iter().filter(|node| {
        matches!(node["role"]["value"].as_str(), Some("button" | "link" | "textbox")) && node["ignored"] == false
    });
    let mut count = 0;
    for control in controls {
        assert!(control["name"]["value"].as_str().is_some_and(|name| !name.trim().is_empty()), "{name}: {control}");
        count += 1;
    }
    assert!(count > 0, "{name}: no control");
}

/// Nothing on the console, and no request to a host that isn't one of `hosts`. A page with an error's status is one of
/// ours, too.
async fn is_quiet(browser: &Browser, hosts: &[&str]) {
    for entry in browser.log("browser").await {
        let text = entry["message"].as_str().expect("a message");
        let is_status = entry["source"] == "network" && text.contains("the server responded with a status of");
        let is_page = is_status && hosts.iter().any(|host| text.starts_with(&format!("http://{host}/")));
        // The browser notes that it has done what we asked for at the sign-out.
        let is_cleared = entry["level"] == "INFO" && text.contains("Cleared data types: \"cache\", \"storage\"");
        assert!(is_cleared || (is_page && !text.contains("/assets/")), "{entry}");
    }
    let mut asked = BTreeSet::new();
    for entry in browser.log("performance").await {
        let message: serde_json::Value = serde_json::from_str(entry["message"].as_str().expect("text")).expect("JSON");
        if message["message"]["method"] == "Network.requestWillBeSent" {
            let url = message["message"]["params"]["request"]["url"].as_str().expect("a URL").to_owned();
            asked.insert(url);
        }
    }
    assert!(!asked.is_empty(), "the network's log is empty");
    // The browser's own first page asks for chrome://… files.
    for url in asked.iter().filter(|url| !url.starts_with("data:") && !url.starts_with("chrome://")) {
        assert!(hosts.iter().any(|host| url.starts_with(&format!("http://{host}/"))), "{url}");
    }
}

async fn sign_in(browser: &Browser, name: &str, password: &str) {
    browser.fill("#username", name).await;
    browser.fill("#password", password).await;
    browser.click("main form button").await;
}

#[tokio::test]
async fn a_whole_visit_on_three_replicas() {
    if !Browser::is_there("browser::a_whole_visit_on_three_replicas") {
        return;
    }
    let demo = Demo::start(3, &[]);
    let host = demo.host();
    let base = format!("http://{host}");
    let browser = Browser::start("en").await;

    browser.open(&base).await;
    browser.arrives(&format!("{base}/sign-in")).await;
    inspect(&browser, "sign-in").await;
    sign_in(&browser, "ada", "wrong").await;
    browser.says("The username or password is wrong.").await;
    inspect(&browser, "sign-in-refused").await;

    // What was typed survives a mistake, and the password doesn't.
    browser.click("a[href='/register']").await;
    inspect(&browser, "register").await;
    browser.fill("#email", "ada@example.org").await;
    browser.fill("#username", "ada").await;
    browser.fill("#password", "password").await;
    browser.click("main form button").await;
    browser.says("many people use this password").await;
    let kept = browser.script("return ['email', 'username', 'password'].map(id => document.getElementById(id).value)");
    assert_eq!(kept.await, json!(["ada@example.org", "ada", ""]));
    inspect(&browser, "register-refused").await;
    browser.fill("#password", PASSWORD).await;
    browser.click("main form button").await;
    browser.says("The account exists. Sign in now.").await;

    sign_in(&browser, "ada", PASSWORD).await;
    browser.arrives(&format!("{base}/account")).await;
    let hosts = [host.as_str()];
    is_quiet(&browser, &hosts).await;
    // Reloads reach every replica, and the page counts them.
    for _ in 0..20 {
        browser.reload().await;
        if browser.text().await.contains("replica-1, replica-2, replica-3") {
            break;
        }
    }
    browser.says("3: replica-1, replica-2, replica-3").await;

    // A second session, from elsewhere, is listed and ended.
    let login = json!({ "username": "ada", "password": PASSWORD });
    let other = demo.call("POST", "/auth/login").json(&login).header("user-agent", "curl/8.5.0").send().await;
    let (other, _) = other.expect(200).set_cookie();
    browser.reload().await;
    browser.says("curl/8.5.0").await;
    browser.says(", Linux").await;
    inspect(&browser, "account").await;
    browser.click("button[value=end]").await;
    browser.says("The session has ended.").await;
    demo.call("GET", "/profile").cookie(&other).send().await.expect(401);

    let change = async |current: &str, new: &str| {
        browser.fill("#current_password", current).await;
        browser.fill("#new_password", new).await;
        browser.click("#password button").await;
    };
    change("wrong", "staple a battery horse").await;
    browser.says("The password is wrong.").await;
    inspect(&browser, "account-refused").await;
    change(PASSWORD, "staple a battery horse").await;
    browser.says("The password has been changed.").await;

    // Signing out in one tab ends the other, and Back shows nothing.
    let first = browser.tab().await;
    browser.new_tab().await;
    browser.open(&format!("{base}/sign-out")).await;
    inspect(&browser, "sign-out").await;
    browser.click("main form button").await;
    browser.says("You have signed out.").await;
    browser.switch(&first).await;
    browser.reload().await;
    browser.says("No account yet?").await;
    browser.back().await;
    assert!(!browser.text().await.contains("ada@example.org"), "{}", browser.text().await);

    browser.open(&format!("{base}/sign-in")).await;
    sign_in(&browser, "ada@example.org", "staple a battery horse").await;
    browser.arrives(&format!("{base}/account")).await;
    browser.open(&format!("{base}/.well-known/change-password")).await;
    browser.arrives(&format!("{base}/account#password")).await;
    browser.fill("#password_to_delete", "staple a battery horse").await;
    browser.click("#delete button").await;
    browser.says("The account has been deleted.").await;
    is_quiet(&browser, &hosts).await;

    demo.part("kill", "redis");
    browser.open(&format!("{base}/sign-in")).await;
    sign_in(&browser, "ada", PASSWORD).await;
    browser.says("Nothing is lost. Try again in 1 second.").await;
    inspect(&browser, "store-away").await;
}

/// One sign-in opens both applications; one sign-out ends both.
#[tokio::test]
async fn the_front_door_of_two_applications() {
    if !Browser::is_there("browser::the_front_door_of_two_applications") {
        return;
    }
    let demo = Demo::start_with_applications(3);
    let (host, [app1, app2]) = (demo.host(), demo.applications()) else { panic!("two applications") };
    let register = json!({ "email": "ada@example.org", "username": "ada", "password": PASSWORD });
    demo.call("POST", "/auth/register").json(&register).send().await.expect(201);
    let browser = Browser::start("de").await;

    let page = format!("http://{app1}/reports/?year=2026&month=11");
    browser.open(&page).await;
    browser.arrives(&format!("http://{host}/sign-in?")).await;
    browser.says("Nach der Anmeldung geht es weiter zu").await;
    browser.says(app1).await;
    inspect(&browser, "front-door").await;
    // A mistake doesn't lose the way.
    sign_in(&browser, "ada", "wrong").await;
    browser.says("Benutzername oder Passwort ist falsch.").await;
    sign_in(&browser, "ada", PASSWORD).await;
    // Exactly where one wanted to go.
    browser.arrives(&page).await;
    assert!(browser.text().await.contains("ada@example.org"), "the application knows who came");
    browser.look(1024, "light").await;
    browser.picture("application").await;

    // The other application asks nothing more.
    let first = browser.tab().await;
    browser.new_tab().await;
    browser.open(&format!("http://{app2}/")).await;
    browser.arrives(&format!("http://{app2}/")).await;
    browser.open(&format!("http://{host}/account")).await;
    // Which applications were opened.
    browser.says("app2.localhost, app1.localhost").await;
    inspect(&browser, "account-german").await;
    browser.click("a[href='/sign-out']").await;
    inspect(&browser, "sign-out-german").await;
    browser.click("main form button").await;
    browser.says("Sie haben sich abgemeldet.").await;
    for app in [app2, app1] {
        browser.open(&format!("http://{app}/")).await;
        browser.arrives(&format!("http://{host}/sign-in?")).await;
    }
    browser.switch(&first).await;
    browser.reload().await;
    browser.arrives(&format!("http://{host}/sign-in?")).await;
    is_quiet(&browser, &[&host, app1, app2]).await;
}

/// Everything can be done with Tab and Enter, and the focus can be seen (WCAG 2.2, 2.1.1, 2.4.7).
#[tokio::test]
async fn the_keyboard_alone_will_do() {
    if !Browser::is_there("browser::the_keyboard_alone_will_do") {
        return;
    }
    let demo = Demo::start(1, &[]);
    let host = demo.host();
    let browser = Browser::start("en").await;
    browser.open(&format!("http://{host}/register")).await;
    // Moves the focus on until it is on what is looked for, by its name or text.
    let tab_to = async |wanted: &str| {
        for _ in 0..20 {
            browser.press(TAB).await;
            let focus = browser.script(
                "const it = document.activeElement, look = getComputedStyle(it);
                 return [it.id || it.innerText, look.outlineStyle + ' ' + look.outlineWidth, it.tagName]",
            );
            let focus = focus.await;
            // After the last control, the focus leaves the page once.
            if focus[2] == "BODY" {
                continue;
            }
            assert_eq!(focus[1], "solid 3px", "the focus can be seen: {focus}");
            if focus[0] == wanted {
                return;
            }
        }
        panic!("Tab does not lead to {wanted}");
    };
    for (field, text) in [("email", "ada@example.org"), ("username", "ada"), ("password", PASSWORD)] {
        tab_to(field).await;
        browser.press(text).await;
    }
    browser.press(ENTER).await;
    browser.says("The account exists. Sign in now.").await;
    for (field, text) in [("username", "ada"), ("password", PASSWORD)] {
        tab_to(field).await;
        browser.press(text).await;
    }
    tab_to("Sign in").await;
    browser.press(ENTER).await;
    browser.says("My account").await;
    for (field, text) in [("current_password", PASSWORD), ("new_password", "staple a battery horse")] {
        tab_to(field).await;
        browser.press(text).await;
    }
    tab_to("Change the password").await;
    browser.press(ENTER).await;
    browser.says("The password has been changed.").await;
    tab_to("Sign out").await;
    browser.press(ENTER).await;
    tab_to("Sign out").await;
    browser.press(ENTER).await;
    browser.says("You have signed out.").await;
    is_quiet(&browser, &[&host]).await;
}
