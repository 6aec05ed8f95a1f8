//! The one error envelope, RFC 9457 `application/problem+json`, and the one place that knows status codes.
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use utoipa::openapi as document;
use utoipa::{IntoResponses, ToSchema};

use crate::auth::{AuthError, Mistake};
use crate::telemetry::chain;

/// A failure, as the client sees it.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    detail: Cow<'static, str>,
    pub(super) errors: Vec<FieldError>,
    pub(super) headers: HeaderMap,
}

/// A mistake in one field of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct FieldError {
    /// The field's name; `body` when it's the body as a whole.
    #[schema(example = "password")]
    pub(super) field: String,
    /// What is wrong, and what would be right.
    pub(super) message: String,
    /// The same, for the pages, which have their own words for it.
    #[serde(skip)]
    pub(super) mistake: Option<Mistake>,
}

impl FieldError {
    pub(super) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), mistake: None }
    }
}

/// RFC 9457 problem details, with a stable `code`.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Body<'a> {
    /// `about:blank`: the status code says what kind of problem it is, `code` which.
    r#type: &'static str,
    /// The status code in words.
    title: &'static str,
    /// The status code.
    status: u16,
    /// This occurrence, in a sentence.
    detail: &'a str,
    /// A stable `snake_case` word to program against.
    #[schema(example = "session_invalid")]
    code: &'static str,
    /// With `validation_failed`: every field that is wrong.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    errors: &'a [FieldError],
}

/// The failures of every call with a JSON body, for the OpenAPI document.
#[derive(Debug)]
pub(super) struct BodyProblems;

impl IntoResponses for BodyProblems {
    fn responses() -> BTreeMap<String, document::RefOr<document::Response>> {
        documented([
            (400, "`malformed_json`, `incomplete_body`"),
            (408, "`request_timeout`"),
            (413, "`body_too_large`"),
            (415, "`unsupported_media_type`"),
            (422, "`validation_failed`, with every field that is wrong"),
        ])
    }
}

/// The failures of every call with a password, for the OpenAPI document.
#[derive(Debug)]
pub(super) struct PasswordProblems;

impl IntoResponses for PasswordProblems {
    fn responses() -> BTreeMap<String, document::RefOr<document::Response>> {
        documented([
            (429, "`throttled`, with `Retry-After`"),
            (503, "`overloaded`, `store_unavailable`, with `Retry-After`"),
        ])
    }
}

/// The failures of every call that only needs a session, for the OpenAPI document.
#[derive(Debug)]
pub(super) struct SessionProblems;

impl IntoResponses for SessionProblems {
    fn responses() -> BTreeMap<String, document::RefOr<document::Response>> {
        documented([(401, "`session_invalid`"), (503, "`store_unavailable`, with `Retry-After`")])
    }
}

fn documented<const N: usize>(problems: [(u16, &str); N]) -> BTreeMap<String, document::RefOr<document::Response>> {
    let response = |description| {
        let content = document::Content::new(Some(document::Ref::from_schema_name("Problem")));
        document::ResponseBuilder::new().description(description).content("application/problem+json", content).build()
    };
    problems.map(|(status, description)| (status.to_string(), response(description).into())).into()
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, detail: detail.into(), errors: Vec::new(), headers: HeaderMap::new() }
    }

    fn retry_after(mut self, seconds: u64) -> Self {
        self.headers.insert(RETRY_AFTER, seconds.max(1).into());
        self
    }

    /// 400: the body isn't JSON.
    pub(super) fn malformed_json(why: &serde_json::Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed_json", format!("The body is not valid JSON: {why}"))
    }

    /// 400: the body didn't arrive whole.
    pub(super) fn incomplete_body() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "incomplete_body", "The body did not arrive whole")
    }

    /// 401: there is no cookie, or it names no living session.
    pub(super) fn session_invalid() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "session_invalid", "Session expired or invalid")
    }

    /// 401: the same for an unknown user, a wrong password and a disabled user.
    pub(super) fn invalid_credentials() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_credentials", "The user name or password is wrong")
    }

    /// 403: somebody who is signed in got the password wrong.
    pub(super) fn wrong_password() -> Self {
        Self::new(StatusCode::FORBIDDEN, "invalid_credentials", "The password is wrong")
    }

    /// 404: also for another user's session.
    pub(super) fn session_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "session_not_found", "You have no such session")
    }

    /// 403: a browser sent this from another site.
    pub(super) fn cross_site() -> Self {
        Self::new(StatusCode::FORBIDDEN, "cross_site", "This request came from another site")
    }

    /// 403: the access rules don't let this user in, or nobody.
    pub(super) fn access_denied() -> Self {
        Self::new(StatusCode::FORBIDDEN, "access_denied", "You may not go there")
    }

    /// 403: programs read this path in different ways, so no rule can decide about it.
    pub(super) fn path_refused(why: impl Display) -> Self {
        Self::new(StatusCode::FORBIDDEN, "path_refused", format!("The path {why}"))
    }

    /// 400: a proxy didn't say what it asks about, or isn't believed.
    pub(super) fn bad_description(why: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_description", format!("No request to decide about: {why}"))
    }

    /// 400: a code was used before, is too old, or belongs to another browser, host or session.
    pub(super) fn code_invalid() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "code_invalid",
            "This link was used before, has expired or is another browser's",
        )
    }

    /// 404: forward auth is not configured.
    pub(super) fn forward_auth_off() -> Self {
        Self::new(StatusCode::NOT_FOUND, "forward_auth_off", "Forward auth needs PUBLIC_URL and PROTECTED_HOSTS")
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "There is nothing at this path")
    }

    /// The router adds `Allow`, since it knows the methods.
    pub(super) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "This path does not take this method")
    }

    /// 408. The rest of the body is not awaited, so the connection closes.
    pub(super) fn request_timeout() -> Self {
        let mut problem = Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "The body took too long to arrive");
        problem.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        problem
    }

    pub(super) fn email_taken() -> Self {
        Self::new(StatusCode::CONFLICT, "email_taken", "An account with this e-mail address exists")
    }

    pub(super) fn username_taken() -> Self {
        Self::new(StatusCode::CONFLICT, "username_taken", "An account with this username exists")
    }

    /// 403: `REGISTRATION=closed`.
    pub(super) fn registration_closed() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "registration_closed",
            "Nobody can register here; ask whoever runs this server",
        )
    }

    pub(super) fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", format!("The body is larger than {limit} bytes"))
    }

    /// 431 (RFC 6585 section 5). The connection closes: what its client sends next is not worth reading.
    pub(super) fn head_too_large(limit: usize) -> Self {
        let detail = format!("The request line and header fields exceed {limit} bytes");
        let mut problem = Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", detail);
        problem.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        problem
    }

    pub(super) fn unsupported_media_type() -> Self {
        let detail = "The body must be JSON, sent with Content-Type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
    }

    pub(super) fn validation_failed(errors: Vec<FieldError>) -> Self {
        let mut problem =
            Self::new(StatusCode::UNPROCESSABLE_ENTITY, "validation_failed", "The request has invalid fields");
        problem.errors = errors;
        problem
    }

    pub(super) fn throttled(retry_after_seconds: u64) -> Self {
        let detail = "Too many failed attempts; try again later";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "throttled", detail).retry_after(retry_after_seconds)
    }

    /// 500: a bug. The log has the cause, the client its request id.
    pub(super) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something went wrong on our side")
    }

    /// 503: more logins than can be hashed at present.
    pub(super) fn overloaded(retry_after_seconds: u64) -> Self {
        let detail = "Too many logins at present; try again shortly";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(retry_after_seconds)
    }

    /// 503: Redis or SQL didn't answer. Nothing is known about the session, so the answer leaves the cookie alone.
    pub(super) fn store_unavailable() -> Self {
        let detail = "A store that this needs does not answer; try again shortly";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", detail).retry_after(1)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            errors: &self.errors,
        };
        let body = serde_json::to_vec(&body).expect("strings and numbers are JSON");
        let mut response = Response::new(axum::body::Body::from(body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::SessionInvalid => Self::session_invalid(),
            AuthError::InvalidCredentials => Self::invalid_credentials(),
            AuthError::WrongPassword => Self::wrong_password(),
            AuthError::SessionNotFound => Self::session_not_found(),
            AuthError::Throttled { retry_after } => Self::throttled(whole_seconds(retry_after)),
            AuthError::EmailTaken => Self::email_taken(),
            AuthError::UsernameTaken => Self::username_taken(),
            AuthError::RegistrationClosed => Self::registration_closed(),
            AuthError::Invalid(fields) => Self::validation_failed(
                fields
                    .into_iter()
                    .map(|(name, why)| FieldError { mistake: Some(why), ..FieldError::new(name, why.to_string()) })
                    .collect(),
            ),
            AuthError::Overloaded { retry_after } => Self::overloaded(whole_seconds(retry_after)),
            // The client has hung up, so nobody reads this answer.
            AuthError::Abandoned => Self::overloaded(1),
            AuthError::Unavailable(why) => {
                tracing::warn!(why = chain(&*why), "answered 503 store_unavailable");
                Self::store_unavailable()
            }
            AuthError::Internal(why) => {
                tracing::error!(why = chain(&*why), "answered 500");
                Self::internal()
            }
        }
    }
}

/// Rounded up, so that a client who waits this long is not too early.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
