//! Sessions: sign in, who am I, sign out, list, revoke.
use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, SET_COOKIE};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;
use uuid::Uuid;

use super::App;
use super::error::{self, FieldError, Problem};
use super::extract::{Json, cookies};
use crate::auth::token::Claims;
use crate::auth::{self, Client, Opened, SessionId, SignedIn};

/// Credentials: `email` or `username`, and `password`.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct LoginRequest {
    /// E-mail address.
    #[schema(example = "ada@example.org")]
    email: Option<String>,
    /// Username, instead of the e-mail address.
    #[schema(example = "ada")]
    username: Option<String>,
    /// Password.
    #[schema(required, nullable = false, value_type = String, format = Password, example = "correct horse battery")]
    password: Option<SecretString>,
}

/// A new session. Its token is in `Set-Cookie` alone.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LoginResponse {
    #[schema(example = "Login successful")]
    message: &'static str,
    user_id: Uuid,
    username: String,
    email: String,
    /// The session's public name: good for listing and revoking, not for signing in.
    #[schema(value_type = String, example = "q83vEjRWeJASNFZ4kBI0Vg")]
    session_id: SessionId,
    /// When the session was made.
    #[schema(format = DateTime)]
    created_at: String,
    /// When it ends unless it's used before.
    #[schema(format = DateTime)]
    idle_expires_at: String,
    /// When it ends at the latest.
    #[schema(format = DateTime)]
    expires_at: String,
}

/// Sign in.
#[utoipa::path(
    post, path = "/auth/login", tag = "sessions", request_body = LoginRequest,
    responses(
        (status = 200, description = "Signed in. A living session that was sent along has ended.", body = LoginResponse,
            headers(("set-cookie" = String, description = "The session's token: `HttpOnly; SameSite=Lax; Path=/`, and `Secure`"))),
        (status = 401, description = "`invalid_credentials`: unknown user, wrong password or disabled user", body = error::Body, content_type = "application/problem+json"),
        (status = 403, description = "`cross_site`", body = error::Body, content_type = "application/problem+json"),
        error::BodyProblems,
        error::PasswordProblems,
    )
)]
pub(super) async fn login(
    State(app): State<Arc<App>>,
    client: Client,
    headers: HeaderMap,
    Json(request): Json<LoginRequest>,
) -> Result<Response, Problem> {
    let identifier = request.email.or(request.username).filter(|identifier| !identifier.trim().is_empty());
    let missing = [
        ("email", "email or username is required", identifier.is_none()),
        ("password", "is required", request.password.is_none()),
    ];
    let (Some(identifier), Some(password)) = (identifier, request.password) else {
        let missing = missing.into_iter().filter(|(.., is_missing)| *is_missing);
        return Err(Problem::validation_failed(missing.map(|(field, why, _)| FieldError::new(field, why)).collect()));
    };
    let brought = app.auth.brought(cookies(&headers, app.cookie.name()));
    let _present = client.gone.clone().drop_guard();
    let signing_in = Arc::clone(&app);
    let sign_in = async move { signing_in.auth.sign_in(&identifier, password, brought, &client).await };
    let opened = app.auth.flows.run(sign_in).await?;
    Ok(signed_in(&app, opened))
}

/// The answer to whatever opens a session.
pub(super) fn signed_in(app: &App, opened: Opened) -> Response {
    let cookie = app.cookie.set(&opened.token);
    let body = LoginResponse {
        message: "Login successful",
        user_id: opened.user.id,
        username: opened.user.username,
        email: opened.user.email,
        session_id: opened.claims.session_id,
        created_at: opened.created_at.to_string(),
        idle_expires_at: opened.idle_expires_at.to_string(),
        expires_at: opened.expires_at.to_string(),
    };
    ([(SET_COOKIE, cookie)], axum::Json(body)).into_response()
}

/// Sign in: the short path.
#[utoipa::path(
    post, path = "/login", tag = "sessions", request_body = LoginRequest,
    responses(
        (status = 200, description = "As `/auth/login`.", body = LoginResponse),
        (status = "4XX", description = "As `/auth/login`.", body = error::Body, content_type = "application/problem+json"),
        (status = "5XX", description = "As `/auth/login`.", body = error::Body, content_type = "application/problem+json"),
    )
)]
pub(super) async fn login_short(
    state: State<Arc<App>>,
    client: Client,
    headers: HeaderMap,
    request: Json<LoginRequest>,
) -> Result<Response, Problem> {
    login(state, client, headers, request).await
}

/// A sign-out.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LogoutResponse {
    #[schema(example = "Logged out")]
    message: &'static str,
}

/// Sign out: the session ends on every replica at once.
#[utoipa::path(
    post, path = "/auth/logout", tag = "sessions", security(("session" = [])),
    responses(
        (status = 200, description = "The session has ended, the cookie is cleared.", body = LogoutResponse),
        (status = 401, description = "`session_invalid`", body = error::Body, content_type = "application/problem+json"),
        (status = 403, description = "`cross_site`", body = error::Body, content_type = "application/problem+json"),
        (status = 503, description = "`store_unavailable`: the session may be alive; the cookie is left alone", body = error::Body, content_type = "application/problem+json"),
    )
)]
pub(super) async fn logout(
    State(app): State<Arc<App>>,
    client: Client,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    app.auth.sign_out(cookies(&headers, app.cookie.name()), &client).await?;
    let headers = [
        (SET_COOKIE, app.cookie.clear()),
        // Not "cookies": that would sign the user out of every application of the whole domain.
        (HeaderName::from_static("clear-site-data"), HeaderValue::from_static("\"cache\", \"storage\"")),
    ];
    Ok((headers, axum::Json(LogoutResponse { message: "Logged out" })).into_response())
}

/// Sign out: the short path.
#[utoipa::path(
    post, path = "/logout", tag = "sessions", security(("session" = [])),
    responses(
        (status = 200, description = "As `/auth/logout`.", body = LogoutResponse),
        (status = "4XX", description = "As `/auth/logout`.", body = error::Body, content_type = "application/problem+json"),
        (status = "5XX", description = "As `/auth/logout`.", body = error::Body, content_type = "application/problem+json"),
    )
)]
pub(super) async fn logout_short(
    state: State<Arc<App>>,
    client: Client,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    logout(state, client, headers).await
}

/// Who is signed in.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Profile<'a> {
    user_id: Uuid,
    username: &'a str,
    email: &'a str,
    /// When the account was made.
    #[schema(format = DateTime)]
    created_at: String,
    session: ProfileSession<'a>,
}

/// The session that was sent.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ProfileSession<'a> {
    #[schema(value_type = String, example = "q83vEjRWeJASNFZ4kBI0Vg")]
    session_id: SessionId,
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "time")]
    created_at: Timestamp,
    /// When it ends unless it's used before.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "time")]
    idle_expires_at: Timestamp,
    /// When it ends at the latest.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "time")]
    expires_at: Timestamp,
    /// The replica that made it.
    #[schema(example = "replica-1")]
    created_by: &'a str,
}

/// Writes a time without making a text of it first: this answer is the one that is asked for most.
fn time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

/// Who am I. Renews the session's idle limit.
#[utoipa::path(
    get, path = "/profile", tag = "sessions", security(("session" = [])),
    responses(
        (status = 200, description = "The user and the session.", body = Profile),
        error::SessionProblems,
    )
)]
pub(super) async fn profile(SignedIn { claims, session, idle_expires_at }: SignedIn) -> Response {
    let expires_at = Timestamp::from_millisecond(claims.expires_at_ms).unwrap_or(Timestamp::MAX);
    let body = Profile {
        user_id: claims.user_id,
        username: &session.username,
        email: &session.email,
        created_at: auth::account_created_at(claims.user_id).to_string(),
        session: ProfileSession {
            session_id: claims.session_id,
            created_at: session.created_at,
            idle_expires_at,
            expires_at,
            created_by: &session.created_by,
        },
    };
    let mut json = Vec::with_capacity(512);
    serde_json::to_writer(&mut json, &body).expect("strings are JSON");
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response()
}

/// The user's living sessions, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SessionList {
    sessions: Vec<ListedSession>,
}

/// One of the user's sessions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ListedSession {
    #[schema(value_type = String, example = "q83vEjRWeJASNFZ4kBI0Vg")]
    session_id: SessionId,
    /// Whether it's the one that asked.
    current: bool,
    #[schema(format = DateTime)]
    created_at: String,
    /// When it was last used. In the last idle period before `expires_at`: the earliest that it can have been.
    #[schema(format = DateTime)]
    last_seen_at: String,
    #[schema(format = DateTime)]
    idle_expires_at: String,
    #[schema(format = DateTime)]
    expires_at: String,
    /// The replica that made it.
    #[schema(example = "replica-1")]
    created_by: String,
    /// The client's address when it was made.
    #[schema(example = "203.0.113.7")]
    ip: String,
    /// The client's browser and system when it was made, or its `User-Agent` if they weren't recognised.
    #[schema(example = "Firefox 140, Linux")]
    user_agent: String,
}

/// My sessions.
#[utoipa::path(
    get, path = "/auth/sessions", tag = "sessions", security(("session" = [])),
    responses(
        (status = 200, description = "Every living session of the user.", body = SessionList),
        error::SessionProblems,
    )
)]
pub(super) async fn list(State(app): State<Arc<App>>, signed_in: SignedIn) -> Result<axum::Json<SessionList>, Problem> {
    let Claims { user_id, session_id: current, .. } = signed_in.claims;
    let entries = app.auth.list(user_id).await?;
    let sessions = entries.into_iter().map(|entry| ListedSession {
        session_id: entry.session_id,
        current: entry.session_id == current,
        created_at: entry.created_at.to_string(),
        last_seen_at: entry.last_seen_at.to_string(),
        idle_expires_at: entry.idle_expires_at.to_string(),
        expires_at: entry.expires_at.to_string(),
        created_by: entry.created_by,
        ip: entry.ip,
        user_agent: entry.user_agent,
    });
    Ok(axum::Json(SessionList { sessions: sessions.collect() }))
}

/// End one of my sessions.
#[utoipa::path(
    delete, path = "/auth/sessions/{session_id}", tag = "sessions", security(("session" = [])),
    params(("session_id" = String, Path, description = "As listed")),
    responses(
        (status = 204, description = "It has ended, on every replica."),
        (status = 403, description = "`cross_site`", body = error::Body, content_type = "application/problem+json"),
        (status = 404, description = "`session_not_found`: also for another user's", body = error::Body, content_type = "application/problem+json"),
        error::SessionProblems,
    )
)]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    signed_in: SignedIn,
    client: Client,
    path: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    // A path that isn't even text names no session either.
    let session_id = path.ok().and_then(|Path(text)| SessionId::parse(&text)).ok_or_else(Problem::session_not_found)?;
    app.auth.revoke(&signed_in.claims, session_id, &client).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which sessions to spare.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Keep {
    /// The one that asks.
    Current,
}

/// See [`Keep`].
#[derive(Debug, Deserialize)]
pub(super) struct RevokeAllQuery {
    keep: Option<Keep>,
}

/// End all of my sessions.
#[utoipa::path(
    delete, path = "/auth/sessions", tag = "sessions", security(("session" = [])),
    params(("keep" = inline(Option<Keep>), Query, description = "`current` keeps the one that asks")),
    responses(
        (status = 204, description = "They have ended, on every replica."),
        (status = 403, description = "`cross_site`", body = error::Body, content_type = "application/problem+json"),
        (status = 422, description = "`validation_failed`: `keep` is something else; nothing has ended", body = error::Body, content_type = "application/problem+json"),
        error::SessionProblems,
    )
)]
pub(super) async fn revoke_all(
    State(app): State<Arc<App>>,
    signed_in: SignedIn,
    client: Client,
    query: Result<Query<RevokeAllQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Ok(Query(RevokeAllQuery { keep })) = query else {
        return Err(Problem::validation_failed(vec![FieldError::new("keep", "must be `current` or absent")]));
    };
    app.auth.revoke_all(&signed_in.claims, keep.is_some(), &client).await?;
    if keep.is_some() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok((StatusCode::NO_CONTENT, [(SET_COOKIE, app.cookie.clear())]).into_response())
}
