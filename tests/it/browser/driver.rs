//! A headless Chromium of its own, told what to do by chromedriver (W3C `WebDriver`, and Chrome's `DevTools` protocol).
//!
//! Written by hand although there are crates: `thirtyfour` switches on `preserve_order` of `serde_json`, so the server
//! under test would be another one than ships, and `fantoccini` brings second copies of `http` and ICU. What is needed
//! here is a dozen calls.
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

/// Patience with a browser that shares two cores with other tests.
const PATIENTLY: Duration = Duration::from_mins(1);
/// The key of an element's reference (`WebDriver`, section 12).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys that have no character (`WebDriver`, section 17.4.2).
pub const TAB: &str = "\u{e004}";
pub const ENTER: &str = "\u{e007}";

/// A browser with one or more tabs. It ends when dropped, with all its processes.
pub struct Browser {
    driver: Child,
    session: String,
    http: reqwest::Client,
    profile: tempfile::TempDir,
}

impl Browser {
    /// Whether there is a browser. If not, says on standard error that `test` leaves everything out, even though the
    /// test passes then; with `AUTHFLEET_TEST_BROWSER=required` it fails.
    pub fn is_there(test: &str) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if std::env::split_paths(&path).any(|directory| directory.join("chromedriver").exists()) {
            return true;
        }
        let what = format!("{test}: no chromedriver, so no browser looks at the pages (tools/local/install.sh --dev)");
        assert!(std::env::var("AUTHFLEET_TEST_BROWSER").as_deref() != Ok("required"), "{what}");
        // Not by a macro, whose output is shown only if the test fails.
        writeln!(std::io::stderr(), "{what}").expect("standard error takes it");
        false
    }

    /// Starts a browser whose user reads `language`.
    pub async fn start(language: &str) -> Self {
        let profile = tempfile::Builder::new().prefix("browser-").tempdir().expect("a temporary directory");
        let log = profile.path().join("chromedriver.log");
        let output = std::fs::File::create(&log).expect("a file");
        let driver = Command::new("chromedriver")
            .arg("--port=0")
            .env("NO_PROXY", "*")
            // chromium writes its crash handler's state below HOME.
            .env("HOME", profile.path())
            // Where both leave directories behind.
            .env("TMPDIR", profile.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file"))
            .stderr(output)
            .process_group(0)
            .spawn()
            .expect("chromedriver must be installed (tools/local/install.sh --dev)");
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENTLY).build().expect("an HTTP client");
        let mut browser = Self { driver, session: String::new(), http, profile };
        let port = browser.port(&log).await;
        browser.session = format!("http://127.0.0.1:{port}/session");
        let data = browser.profile.path().join("data");
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
            "goog:chromeOptions": {
                "args": [
                    "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-proxy-server",
                    "disable-background-networking", "disable-component-update", "hide-scrollbars",
                    format!("user-data-dir={}", data.display()),
                ],
                "prefs": { "intl.accept_languages": language },
            },
        } } });
        let opened = browser.post("", capabilities).await;
        let id = opened["sessionId"].as_str().expect("a session");
        browser.session = format!("{}/{id}", browser.session);
        browser
    }

    /// The port that chromedriver has chosen.
    async fn port(&mut self, log: &Path) -> u16 {
        let begin = Instant::now();
        loop {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let port = text.split("started successfully on port ").nth(1).and_then(|rest| rest.split('.').next());
            if let Some(port) = port.and_then(|port| port.parse().ok()) {
                return port;
            }
            assert!(self.driver.try_wait().is_ok_and(|status| status.is_none()), "chromedriver ended: {text}");
            assert!(begin.elapsed() < PATIENTLY, "chromedriver did not start: {text}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let url = format!("{}{path}", self.session);
        Self::value(path, self.http.post(url).json(&body)).await
    }

    async fn get(&self, path: &str) -> Value {
        Self::value(path, self.http.get(format!("{}{path}", self.session))).await
    }

    async fn value(path: &str, call: reqwest::RequestBuilder) -> Value {
        let answer = call.send().await.unwrap_or_else(|error| panic!("{path}: {error}"));
        let status = answer.status();
        let mut body: Value = answer.json().await.expect("JSON of chromedriver");
        assert!(status.is_success(), "{path}: {}", body["value"]["message"]);
        body["value"].take()
    }

    pub async fn open(&self, url: &str) {
        self.post("/url", json!({ "url": url })).await;
    }

    pub async fn reload(&self) {
        self.post("/refresh", json!({})).await;
    }

    pub async fn back(&self) {
        self.post("/back", json!({})).await;
    }

    pub async fn url(&self) -> String {
        self.get("/url").await.as_str().expect("a URL").to_owned()
    }

    /// Waits until the page says this. A form is sent some time after its button was pressed.
    pub async fn says(&self, expected: &str) {
        self.until(expected, async || self.text().await, |text| text.contains(expected)).await;
    }

    /// Waits until the page has this URL, or one that begins with it if it ends with `?`.
    pub async fn arrives(&self, expected: &str) {
        let is_there = |url: &str| url == expected || (expected.ends_with('?') && url.starts_with(expected));
        self.until(expected, async || self.url().await, is_there).await;
    }

    async fn until(&self, expected: &str, mut get: impl AsyncFnMut() -> String, is_there: impl Fn(&str) -> bool) {
        let begin = Instant::now();
        loop {
            let found = get().await;
            if is_there(&found) {
                return;
            }
            assert!(begin.elapsed() < PATIENTLY, "not {expected}, but {found}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What the page says, as a person reads it.
    pub async fn text(&self) -> String {
        // Between two pages there is no body.
        let text = self.script("return document.body ? document.body.innerText : ''").await;
        text.as_str().expect("a text").to_owned()
    }

    async fn element(&self, selector: &str) -> String {
        let found = self.post("/element", json!({ "using": "css selector", "value": selector })).await;
        found[ELEMENT].as_str().expect("an element").to_owned()
    }

    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.post(&format!("/element/{element}/click"), json!({})).await;
    }

    /// Types into a field that may hold something already.
    pub async fn fill(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.post(&format!("/element/{element}/clear"), json!({})).await;
        self.post(&format!("/element/{element}/value"), json!({ "text": text })).await;
    }

    /// Presses keys, one after the other, wherever the focus is.
    pub async fn press(&self, keys: &str) {
        let strokes: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() })))
            .collect();
        self.post("/actions", json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": strokes }] })).await;
    }

    /// The value that a script's `return` gives.
    pub async fn script(&self, script: &str) -> Value {
        self.post("/execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// The value that a script gives to its callback, `arguments[0]`.
    pub async fn script_with_callback(&self, script: &str) -> Value {
        self.post("/execute/async", json!({ "script": script, "args": [] })).await
    }

    /// A command of Chrome's `DevTools` protocol.
    pub async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    /// What came into this log since it was last read: `browser` (the console) or `performance` (the network).
    pub async fn log(&self, kind: &str) -> Vec<Value> {
        let Value::Array(entries) = self.post("/se/log", json!({ "type": kind })).await else {
            panic!("a list of entries");
        };
        entries
    }

    /// The tab that is driven.
    pub async fn tab(&self) -> String {
        self.get("/window").await.as_str().expect("a tab").to_owned()
    }

    /// Opens a tab and drives it from now on.
    pub async fn new_tab(&self) -> String {
        let tab = self.post("/window/new", json!({ "type": "tab" })).await;
        let handle = tab["handle"].as_str().expect("a tab").to_owned();
        self.switch(&handle).await;
        handle
    }

    pub async fn switch(&self, tab: &str) {
        self.post("/window", json!({ "handle": tab })).await;
    }

    /// The window's width, and the scheme that its user prefers: `light` or `dark`.
    pub async fn look(&self, width: u32, scheme: &str) {
        let size = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", scheme).await;
    }

    /// A picture of the whole page, as `target/browser/NAME.png`.
    pub async fn picture(&self, name: &str) {
        let whole = json!({ "format": "png", "captureBeyondViewport": true });
        let picture = self.devtools("Page.captureScreenshot", whole).await;
        let data = picture["data"].as_str().expect("a picture");
        let directory = pictures();
        std::fs::create_dir_all(&directory).expect("a directory");
        let bytes = base64::engine::general_purpose::STANDARD.decode(data).expect("base64");
        std::fs::write(directory.join(format!("{name}.png")), bytes).expect("a file");
    }
}

/// Where the pictures are, beside the build.
fn pictures() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the build's directory").join("browser")
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The whole group: chromedriver, the browser, and the browser's processes.
        kill_process_group(Pid::from_child(&self.driver), Signal::KILL).expect("a running chromedriver");
        drop(self.driver.wait());
    }
}
