//! `/sign-out`: a question, and the answer by POST.
use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use http::header::SET_COOKIE;

use super::form::Form;
use super::{CLEAR_SITE_DATA, Page, SITE_DATA, redirect};
use crate::auth::{AuthError, Client};
use crate::http::App;
use crate::http::extract::cookies;

#[derive(Template)]
#[template(path = "sign_out.html", config = "src/http/pages/askama.toml")]
struct SignOutPage<'a> {
    page: &'a Page,
}

pub(super) async fn get(page: Page) -> Response {
    page.answer(&SignOutPage { page: &page }, None)
}

/// Ends the session. One that has ended already, by a second click for example, is as good.
pub(super) async fn post(
    State(app): State<Arc<App>>,
    client: Client,
    page: Page,
    headers: HeaderMap,
    _: Form,
) -> Response {
    match app.auth.sign_out(cookies(&headers, app.cookie.name()), &client).await {
        Ok(()) | Err(AuthError::SessionInvalid) => gone(&app, "/sign-in?notice=signed-out"),
        // The session may be alive, so the cookie is left alone.
        Err(error) => page.failure(error),
    }
}

/// Makes the browser forget the session and what it has stored.
pub(super) fn gone(app: &App, location: &str) -> Response {
    let mut response = redirect(location);
    response.headers_mut().insert(SET_COOKIE, app.cookie.clear());
    response.headers_mut().insert(CLEAR_SITE_DATA, SITE_DATA);
    response
}
