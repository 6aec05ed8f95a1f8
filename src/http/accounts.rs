//! Accounts: register, change the password, delete.
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use http::header::SET_COOKIE;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::App;
use super::error::{self, FieldError, Problem};
use super::extract::Json;
use super::sessions::{LoginResponse, signed_in as signed_in_response};
use crate::auth::{Client, Registration, SignedIn};

/// A registration.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct RegisterRequest {
    /// E-mail address, unique in all its spellings: case, Unicode forms, `xn--` and Unicode domains.
    #[schema(required, nullable = false, example = "ada@example.org", max_length = 254)]
    email: Option<String>,
    /// 8 to 128 characters. Any characters; only common passwords are refused.
    #[schema(required, nullable = false, value_type = String, format = Password, example = "correct horse battery")]
    password: Option<SecretString>,
    /// Username, unique in all its spellings, without `@`. Made from the e-mail address if absent.
    #[schema(example = "ada", max_length = 64)]
    username: Option<String>,
}

/// The account that was made.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RegisterResponse {
    /// UUIDv7.
    user_id: Uuid,
    email: String,
    username: String,
    /// RFC 3339.
    #[schema(format = DateTime)]
    created_at: String,
}

/// Make an account.
#[utoipa::path(
    post, path = "/auth/register", tag = "accounts", request_body = RegisterRequest,
    responses(
        (status = 201, description = "The account exists.", body = RegisterResponse),
        (status = 403, description = "`cross_site`; `registration_closed`: `REGISTRATION` is closed", body = error::Body, content_type = "application/problem+json"),
        (status = 409, description = "`email_taken`, `username_taken`", body = error::Body, content_type = "application/problem+json"),
        error::BodyProblems,
        error::PasswordProblems,
    )
)]
pub(super) async fn register(
    State(app): State<Arc<App>>,
    client: Client,
    Json(request): Json<RegisterRequest>,
) -> Result<Response, Problem> {
    let missing = [("email", request.email.is_none()), ("password", request.password.is_none())];
    let (Some(email), Some(password)) = (request.email, request.password) else {
        return Err(required(&missing));
    };
    let registration = Registration { email, username: request.username, password };
    let _present = client.gone.clone().drop_guard();
    let registering = Arc::clone(&app);
    let register = async move { registering.auth.register(registration, &client).await };
    let user = app.auth.flows.run(register).await?;
    let created_at = user.created_at.to_string();
    let body = RegisterResponse { user_id: user.id, email: user.email, username: user.username, created_at };
    Ok((StatusCode::CREATED, axum::Json(body)).into_response())
}

/// A change of password.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct PasswordRequest {
    /// The present password.
    #[schema(required, nullable = false, value_type = String, format = Password, example = "correct horse battery")]
    current_password: Option<SecretString>,
    /// The new password, under the same rules as at registration.
    #[schema(required, nullable = false, value_type = String, format = Password, example = "staple a battery horse")]
    new_password: Option<SecretString>,
}

/// Change my password. Every session ends; the answer is a new one.
#[utoipa::path(
    post, path = "/auth/password", tag = "accounts", request_body = PasswordRequest, security(("session" = [])),
    responses(
        (status = 200, description = "Changed. Every other session has ended; this is a new one.", body = LoginResponse,
            headers(("set-cookie" = String, description = "The new session's token"))),
        (status = 401, description = "`session_invalid`", body = error::Body, content_type = "application/problem+json"),
        (status = 403, description = "`invalid_credentials`: the present password is wrong; `cross_site`", body = error::Body, content_type = "application/problem+json"),
        error::BodyProblems,
        error::PasswordProblems,
    )
)]
pub(super) async fn password(
    State(app): State<Arc<App>>,
    signed_in: SignedIn,
    client: Client,
    Json(request): Json<PasswordRequest>,
) -> Result<Response, Problem> {
    let missing =
        [("current_password", request.current_password.is_none()), ("new_password", request.new_password.is_none())];
    let (Some(current), Some(new)) = (request.current_password, request.new_password) else {
        return Err(required(&missing));
    };
    let _present = client.gone.clone().drop_guard();
    // Goes on if the client leaves: half a change would end the sessions and keep the password.
    let changing = Arc::clone(&app);
    let change = async move { changing.auth.change_password(&signed_in, current, new, &client).await };
    let opened = app.auth.flows.run(change).await?;
    Ok(signed_in_response(&app, opened))
}

/// A deletion.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct DeleteRequest {
    /// The password.
    #[schema(required, nullable = false, value_type = String, format = Password, example = "correct horse battery")]
    password: Option<SecretString>,
}

/// Delete my account and all its sessions.
#[utoipa::path(
    delete, path = "/auth/account", tag = "accounts", request_body = DeleteRequest, security(("session" = [])),
    responses(
        (status = 204, description = "User and sessions are gone."),
        (status = 401, description = "`session_invalid`", body = error::Body, content_type = "application/problem+json"),
        (status = 403, description = "`invalid_credentials`: the password is wrong; `cross_site`", body = error::Body, content_type = "application/problem+json"),
        error::BodyProblems,
        error::PasswordProblems,
    )
)]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    signed_in: SignedIn,
    client: Client,
    Json(request): Json<DeleteRequest>,
) -> Result<Response, Problem> {
    let Some(password) = request.password else { return Err(required(&[("password", true)])) };
    let _present = client.gone.clone().drop_guard();
    // Goes on if the client leaves: half a deletion would end the sessions and keep the account.
    let deleting = Arc::clone(&app);
    let delete = async move { deleting.auth.delete_account(&signed_in, password, &client).await };
    app.auth.flows.run(delete).await?;
    Ok((StatusCode::NO_CONTENT, [(SET_COOKIE, app.cookie.clear())]).into_response())
}

fn required(fields: &[(&str, bool)]) -> Problem {
    let missing = fields.iter().filter(|(_, is_missing)| *is_missing);
    Problem::validation_failed(missing.map(|(field, _)| FieldError::new(*field, "is required")).collect())
}
