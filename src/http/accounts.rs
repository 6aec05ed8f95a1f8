//! Accounts: register.
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::App;
use super::error::{self, FieldError, Problem};
use super::extract::Json;
use crate::auth::{Client, Registration};

/// A registration.
#[derive(Debug, Deserialize, ToSchema)]
pub struct RegisterRequest {
    /// E-mail address, unique regardless of case.
    #[schema(required, nullable = false, example = "ada@example.org", max_length = 254)]
    email: Option<String>,
    /// 8 to 128 characters. Any characters; only common passwords are refused.
    #[schema(required, nullable = false, value_type = String, format = Password, example = "correct horse battery")]
    password: Option<SecretString>,
    /// Username, unique regardless of case, without `@`. Made from the e-mail address if absent.
    #[schema(example = "ada", max_length = 64)]
    username: Option<String>,
}

/// The account that was made.
#[derive(Debug, Serialize, ToSchema)]
pub struct RegisterResponse {
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
        (status = 400, description = "`malformed_json`, `incomplete_body`", body = error::Body, content_type = "application/problem+json"),
        (status = 403, description = "`cross_site`", body = error::Body, content_type = "application/problem+json"),
        (status = 408, description = "`request_timeout`", body = error::Body, content_type = "application/problem+json"),
        (status = 409, description = "`email_taken`, `username_taken`", body = error::Body, content_type = "application/problem+json"),
        (status = 413, description = "`body_too_large`", body = error::Body, content_type = "application/problem+json"),
        (status = 415, description = "`unsupported_media_type`", body = error::Body, content_type = "application/problem+json"),
        (status = 422, description = "`validation_failed`", body = error::Body, content_type = "application/problem+json"),
        (status = 429, description = "`throttled`", body = error::Body, content_type = "application/problem+json"),
        (status = 503, description = "`overloaded`, `store_unavailable`", body = error::Body, content_type = "application/problem+json"),
    )
)]
pub async fn register(
    State(app): State<Arc<App>>,
    client: Client,
    Json(request): Json<RegisterRequest>,
) -> Result<Response, Problem> {
    let missing = [("email", request.email.is_none()), ("password", request.password.is_none())];
    let (Some(email), Some(password)) = (request.email, request.password) else {
        let missing = missing.into_iter().filter(|(_, is_missing)| *is_missing);
        return Err(Problem::validation_failed(missing.map(|(field, _)| FieldError::new(field, "is required")).collect()));
    };
    let registration = Registration { email, username: request.username, password };
    let user = app.auth.register(registration, &client).await?;
    let created_at = user.created_at.to_string();
    let body = RegisterResponse { user_id: user.id, email: user.email, username: user.username, created_at };
    Ok((StatusCode::CREATED, axum::Json(body)).into_response())
}
