//! The pages for people: sign in, register, my account, sign out. They need no script.
//!
//! They run the same flows as the API; only the form of request and answer differs. Routes: `/`, `/sign-in`,
//! `/register`, `/account`, `/sign-out`, `/.well-known/change-password`, and style sheet and icon under their hashes.
mod account;
pub(super) mod brand;
mod form;
mod language;
mod register;
mod sign_in;
mod sign_out;

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;

use askama::Template;
use axum::Router;
use axum::extract::FromRequestParts;
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use http::header::{CONTENT_SECURITY_POLICY, LOCATION, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use url::form_urlencoded::Serializer;

use self::brand::Brand;
use self::language::Texts;
use super::App;
use super::error::Problem;
use super::refusals::FORMS;
use super::verify::Destination;
use crate::config::Registration;

/// Bytes of each part of a destination that are carried through the pages.
const DESTINATION_LIMIT: usize = 4096;
const CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");
/// Not "cookies": that would sign the user out of every application of the whole domain.
const SITE_DATA: HeaderValue = HeaderValue::from_static("\"cache\", \"storage\"");

pub(super) fn routes(brand: &Brand) -> Router<Arc<App>> {
    let [sign_in, register, account, sign_out] = FORMS;
    let mut routes = Router::new()
        .route("/", get(async || redirect("/account")))
        .route(sign_in, get(sign_in::get).post(sign_in::post))
        .route(register, get(register::get).post(register::post))
        .route(account, get(account::get).post(account::post))
        .route(sign_out, get(sign_out::get).post(sign_out::post))
        // https://w3c.github.io/webappsec-change-password-url/
        .route("/.well-known/change-password", get(async || redirect("/account#password")));
    for asset in [&brand.style, &brand.icon] {
        let content = asset.clone();
        routes = routes.route(&asset.path, get(async move || content.answer()));
    }
    routes
}

/// What every page shows besides its content.
struct Page {
    app: Arc<App>,
    texts: &'static Texts,
    status: StatusCode,
    headers: HeaderMap,
    /// What went wrong.
    alert: Option<String>,
    /// What has been done.
    notice: Option<&'static str>,
    /// Names of fields, and what is wrong with each.
    mistakes: Vec<(&'static str, Cow<'static, str>)>,
}

impl FromRequestParts<Arc<App>> for Page {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Infallible> {
        Ok(Self::new(app, &parts.headers))
    }
}

#[derive(Template)]
#[template(path = "failure.html", config = "src/http/pages/askama.toml")]
struct Failure<'a> {
    page: &'a Page,
    heading: &'a str,
}

impl Page {
    fn new(app: &Arc<App>, request: &HeaderMap) -> Self {
        Self {
            app: Arc::clone(app),
            texts: language::of(request),
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            alert: None,
            notice: None,
            mistakes: Vec::new(),
        }
    }

    fn brand(&self) -> &Brand {
        &self.app.brand
    }

    fn takes_registrations(&self) -> bool {
        self.app.auth.registration == Registration::Open
    }

    /// What a new password needs (WCAG 2.2, 3.3.2).
    fn password_hint(&self) -> String {
        self.texts.password_hint.replace("{min}", &self.app.auth.policy.min_length().to_string())
    }

    /// What is wrong with a field, beside which it is shown.
    fn mistake(&self, name: &str) -> Option<&str> {
        self.mistakes.iter().find(|(field, _)| *field == name).map(|(_, text)| &**text)
    }

    fn mistake_in(&mut self, field: &'static str, text: &'static str) {
        self.mistakes.push((field, Cow::Borrowed(text)));
    }

    /// Says in the reader's language what went wrong, with the problem's status and headers.
    fn failed(mut self, problem: impl Into<Problem>) -> Self {
        let problem = problem.into();
        let texts = self.texts;
        self.status = problem.status;
        let seconds = problem.headers.get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let wait = texts.wait(seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or(1));
        let text = match problem.code {
            "session_invalid" => &texts.session_invalid,
            "invalid_credentials" if problem.status == StatusCode::FORBIDDEN => &texts.wrong_password,
            "invalid_credentials" => &texts.invalid_credentials,
            "email_taken" | "username_taken" | "validation_failed" => &texts.validation_failed,
            "session_not_found" => &texts.session_not_found,
            "throttled" => &texts.throttled,
            "overloaded" => &texts.overloaded,
            "store_unavailable" => &texts.store_unavailable,
            "cross_site" => &texts.cross_site,
            "registration_closed" => &texts.registration_closed,
            "internal" => &texts.internal,
            _ => &texts.unexpected,
        };
        self.alert = Some(text.replace("{wait}", &wait));
        match problem.code {
            "email_taken" => self.mistake_in("email", &texts.email_taken),
            "username_taken" => self.mistake_in("username", &texts.username_taken),
            _ => {}
        }
        for error in &problem.errors {
            let field = ["email", "username", "password", "new_password"].into_iter().find(|name| *name == error.field);
            if let (Some(field), Some(mistake)) = (field, error.mistake) {
                self.mistakes.push((field, texts.mistake(mistake)));
            }
        }
        self.headers = problem.headers;
        self
    }

    /// Says which of these fields are empty.
    fn missing<const N: usize>(mut self, fields: [(&'static str, bool); N]) -> Self {
        self.status = StatusCode::UNPROCESSABLE_ENTITY;
        self.alert = Some(self.texts.validation_failed.clone());
        let empty = fields.into_iter().filter(|(_, is_empty)| *is_empty);
        self.mistakes.extend(empty.map(|(name, _)| (name, Cow::Borrowed(self.texts.missing.as_str()))));
        self
    }

    /// Says what has just been done, as the query names it.
    fn noticing(mut self, notice: &str) -> Self {
        let texts = self.texts;
        self.notice = match notice {
            "registered" => Some(&texts.notice_registered),
            "signed-out" => Some(&texts.notice_signed_out),
            "deleted" => Some(&texts.notice_deleted),
            "ended" => Some(&texts.notice_ended),
            "others-ended" => Some(&texts.notice_others_ended),
            "password" => Some(&texts.notice_password),
            _ => None,
        };
        self
    }

    /// The page, with the headers that each page has. `going_to` is the origin of an application that the page's form
    /// may lead to: browsers apply `form-action` to redirects too.
    fn answer(&self, template: &impl Template, going_to: Option<&str>) -> Response {
        let (space, going_to) = going_to.map_or(("", ""), |origin| (" ", origin));
        let policy = format!(
            "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'{space}{going_to}; \
             frame-ancestors 'none'; base-uri 'none'"
        );
        let Ok(html) = template.render() else { return Problem::internal().into_response() };
        let mut response = (self.status, self.headers.clone(), Html(html)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_str(&policy).expect("an origin is ASCII"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        // Not no-referrer: browsers would send `Origin: null` with our own forms.
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
        response
    }

    /// A page that only says what went wrong.
    fn failure(self, problem: impl Into<Problem>) -> Response {
        let page = self.failed(problem);
        page.answer(&Failure { page: &page, heading: &page.texts.failed }, None)
    }
}

/// Sends a browser on with GET (RFC 9110, section 15.4.4).
fn redirect(location: &str) -> Response {
    let Ok(location) = HeaderValue::from_str(location) else { return Problem::not_found().into_response() };
    let headers = [(LOCATION, location), (REFERRER_POLICY, HeaderValue::from_static("no-referrer"))];
    (StatusCode::SEE_OTHER, headers).into_response()
}

/// What a page's query says. Nothing here is believed.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Asked {
    host: String,
    start: String,
    to: String,
    notice: String,
}

impl Asked {
    fn of(uri: &http::Uri) -> Self {
        axum::extract::Query::try_from_uri(uri).map_or_else(|_| Self::default(), |axum::extract::Query(asked)| asked)
    }

    fn going(self) -> Destination {
        bounded(Destination { host: self.host, start: self.start, to: self.to })
    }
}

/// The destination, or none if it is longer than any that we make.
fn bounded(going: Destination) -> Destination {
    let is_short = [&going.host, &going.start, &going.to].iter().all(|part| part.len() <= DESTINATION_LIMIT);
    if is_short { going } else { Destination::default() }
}

/// `path` with the destination as its query, and perhaps a notice.
fn link(path: &str, going: &Destination, notice: Option<&str>) -> String {
    let mut query = Serializer::new(String::new());
    let parts = [("host", going.host.as_str()), ("start", going.start.as_str()), ("to", going.to.as_str())];
    query.extend_pairs(parts.into_iter().chain(notice.map(|notice| ("notice", notice))).filter(|(_, v)| !v.is_empty()));
    let query = query.finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}
