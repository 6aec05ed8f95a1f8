//! An HTTP client that does nothing by itself: it stores no cookies, follows no redirects, keeps no connections and
//! uses no proxies.
use std::time::{Duration, Instant};

use reqwest::header::{COOKIE, HeaderMap, SET_COOKIE};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{PATIENTLY, PROMPTLY};

/// The password of every account that the harness makes.
pub const PASSWORD: &str = "correct horse battery staple";

pub(super) fn http() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .timeout(PATIENTLY)
        .build()
        .expect("an HTTP client")
}

/// A request that is being put together.
pub struct Call(reqwest::RequestBuilder);

impl Call {
    pub(super) fn new(request: reqwest::RequestBuilder) -> Self {
        Self(request)
    }

    /// Adds a header.
    pub fn header(self, name: &str, value: &str) -> Self {
        Self(self.0.header(name, value))
    }

    /// Adds `Cookie`: `name=value`.
    pub fn cookie(self, cookie: &str) -> Self {
        Self(self.0.header(COOKIE, cookie))
    }

    /// Adds the session's cookie.
    pub fn session(self, session: &Session) -> Self {
        self.cookie(&session.cookie)
    }

    /// Sets a JSON body.
    pub fn json(self, body: &Value) -> Self {
        Self(self.0.json(body))
    }

    /// Sets any body. The caller sets `Content-Type`.
    pub fn body(self, body: impl Into<reqwest::Body>) -> Self {
        Self(self.0.body(body))
    }

    /// Sends it and reads the whole answer. Fails the test if there is none.
    pub async fn send(self) -> Answer {
        self.try_send().await.expect("an answer")
    }

    /// Sends it and reads the whole answer.
    ///
    /// # Errors
    ///
    /// If nobody answers.
    pub async fn try_send(self) -> reqwest::Result<Answer> {
        let begin = Instant::now();
        let response = self.0.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes().await?.to_vec(), took: begin.elapsed() })
    }
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// From sending to the end of the answer.
    pub took: Duration,
}

impl Answer {
    /// Fails the test if the status is a different one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:?}\n{}", self.headers, self.text());
        self
    }

    /// Fails the test unless the answer came in time, says that a store is unavailable, and leaves the cookie alone.
    #[track_caller]
    pub fn expect_unavailable(self) {
        let answer = self.expect_problem(503, "store_unavailable");
        assert!(answer.took < PROMPTLY, "{:?}", answer.took);
        assert_eq!(answer.header("set-cookie"), None, "the cookie is left alone");
        assert_eq!(answer.header("clear-site-data"), None);
    }

    /// Fails the test unless this is the contract's problem+json with this status and code.
    #[track_caller]
    pub fn expect_problem(self, status: u16, code: &str) -> Self {
        let answer = self.expect(status);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert!(answer.header("x-request-id").is_some() && answer.header("x-served-by").is_some());
        let problem = answer.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["type"], "about:blank");
        assert_eq!(problem["status"], status);
        for field in ["title", "detail"] {
            assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {problem}");
        }
        assert_eq!(problem.get("errors").is_some(), code == "validation_failed", "{problem}");
        if status == 503 || status == 429 {
            let seconds = answer.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
            assert!(seconds.is_some_and(|seconds| seconds >= 1), "Retry-After: {:?}", answer.headers);
        }
        answer
    }

    /// The fields that a 422 names.
    #[track_caller]
    pub fn invalid_fields(&self) -> Vec<String> {
        let body = self.json();
        let errors = body["errors"].as_array().expect("errors");
        assert!(errors.iter().all(|error| error["message"].as_str().is_some_and(|text| !text.is_empty())), "{body}");
        errors.iter().map(|error| error["field"].as_str().expect("a field").to_owned()).collect()
    }

    /// A header. `None` if it is missing.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("ASCII"))
    }

    /// The cookie that this answer sets, and its attributes, sorted. Fails the test unless there is exactly one cookie.
    #[track_caller]
    pub fn set_cookie(&self) -> (String, Vec<String>) {
        assert_eq!(self.headers.get_all(SET_COOKIE).iter().count(), 1, "one cookie");
        let mut parts = self.header("set-cookie").expect("a cookie").split("; ").map(str::to_owned);
        let cookie = parts.next().expect("a cookie");
        let mut attributes: Vec<_> = parts.collect();
        attributes.sort();
        (cookie, attributes)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// A string of the JSON body.
    #[track_caller]
    pub fn text_at(&self, field: &str) -> String {
        self.json()[field].as_str().unwrap_or_else(|| panic!("no text {field}: {}", self.text())).to_owned()
    }
}

/// An account.
#[derive(Clone, Debug)]
pub struct User {
    pub id: String,
    pub email: String,
}

/// A session, from the client's view.
#[derive(Clone, Debug)]
pub struct Session {
    /// The cookie to send back: `session=TOKEN`.
    pub cookie: String,
    pub token: String,
    pub id: String,
    pub user_id: String,
    /// The body of the answer to the login.
    pub body: Value,
}

impl Session {
    /// Reads the answer to a login.
    #[track_caller]
    pub fn opened_by(answer: &Answer) -> Self {
        let answer = answer.clone().expect(200);
        let set_cookie = answer.header("set-cookie").expect("a cookie");
        let cookie = set_cookie.split(';').next().expect("a cookie").to_owned();
        let token = cookie.split_once('=').expect("a cookie").1.to_owned();
        let body = answer.json();
        Self { cookie, token, id: answer.text_at("session_id"), user_id: answer.text_at("user_id"), body }
    }

    /// Its key in Redis.
    pub fn key(&self) -> String {
        if self.is_compact() {
            return format!("session:{{{}}}:{}", bucket(&self.user_id), self.id);
        }
        format!("session:{{{}}}:{}", self.user_id, self.id)
    }

    /// Whether it is kept in the compact format, by the first byte of its token.
    pub fn is_compact(&self) -> bool {
        self.token.starts_with("Aw")
    }

    /// The same cookie with a different signature.
    pub fn forged(&self) -> String {
        let last = if self.cookie.ends_with('A') { 'B' } else { 'A' };
        format!("{}{last}", &self.cookie[..self.cookie.len() - 1])
    }
}

/// The number of the bucket that has a user's sessions in the compact format, as it is in keys. Written anew from the
/// description, because sessions in a Redis that is in use depend on it.
pub fn bucket(user_id: &str) -> String {
    let mix = |bits: u64| {
        let bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        bits ^ (bits >> 33)
    };
    let digits = user_id.replace('-', "");
    let half = |digits: &str| u64::from_str_radix(digits, 16).expect("a user's id");
    format!("{:04x}", mix(mix(half(&digits[..16])) ^ half(&digits[16..])) >> 50)
}

/// A connection to which a test writes any bytes.
pub struct Raw(TcpStream);

impl Raw {
    pub async fn connect(address: &str) -> Self {
        Self(TcpStream::connect(address).await.expect("a connection"))
    }

    /// Writes. Returns whether the other side still takes it.
    pub async fn write(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok()
    }

    /// Closes the writing half.
    pub async fn finish(&mut self) {
        drop(self.0.shutdown().await);
    }

    /// Everything that the other side sends until it closes. `None` if it doesn't close within `bound`.
    pub async fn read_to_end(&mut self, bound: Duration) -> Option<String> {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(bound, self.0.read_to_end(&mut bytes)).await;
        // A reset also closes.
        read.is_ok().then(|| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Everything that the other side sends until it contains `text`. Fails the test if that never happens.
    pub async fn read_until(&mut self, text: &str) -> String {
        let mut bytes = Vec::new();
        let read = async {
            while !String::from_utf8_lossy(&bytes).contains(text) {
                assert!(self.0.read_buf(&mut bytes).await.expect("readable") > 0, "closed before {text:?}");
            }
        };
        let outcome = tokio::time::timeout(PATIENTLY, read).await;
        let said = String::from_utf8_lossy(&bytes).into_owned();
        assert!(outcome.is_ok(), "never said {text:?}, but {said:?}");
        said
    }

    /// Writes `bytes` slowly, one piece per `pause`, until the other side closes. Returns everything that it sent, and
    /// how long it took. Fails the test if it doesn't close within `bound`.
    pub async fn dribble(self, bytes: &[u8], pause: Duration, bound: Duration) -> (String, Duration) {
        let begin = Instant::now();
        let (mut reader, mut writer) = self.0.into_split();
        let writing = async {
            for byte in bytes.iter().cycle() {
                tokio::time::sleep(pause).await;
                if writer.write_all(&[*byte]).await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        let mut said = Vec::new();
        let reading = async { while reader.read_buf(&mut said).await.is_ok_and(|count| count > 0) {} };
        tokio::select! {
            () = reading => {}
            () = writing => unreachable!("it never ends"),
            () = tokio::time::sleep(bound) => panic!("still open after {bound:?}"),
        }
        (String::from_utf8_lossy(&said).into_owned(), begin.elapsed())
    }
}
