//! `/register`: a new account.
use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use http::Uri;

use super::form::Form;
use super::{Asked, Failure, Page, bounded, link, redirect};
use crate::auth::{AuthError, Client, Registration};
use crate::http::App;
use crate::http::verify::Destination;

#[derive(Template)]
#[template(path = "register.html", config = "src/http/pages/askama.toml")]
struct RegisterPage<'a> {
    page: &'a Page,
    going: &'a Destination,
    query: String,
    email: &'a str,
    username: &'a str,
}

fn show(page: Page, going: &Destination, email: &str, username: &str) -> Response {
    if !page.takes_registrations() {
        let page = page.failed(AuthError::RegistrationClosed);
        return page.answer(&Failure { page: &page, heading: &page.texts.register }, None);
    }
    let query = link("", going, None);
    page.answer(&RegisterPage { page: &page, going, query, email, username }, None)
}

pub(super) async fn get(page: Page, uri: Uri) -> Response {
    show(page, &Asked::of(&uri).going(), "", "")
}

/// Makes the account and leads to the page for signing in, as the API makes no session either.
pub(super) async fn post(State(app): State<Arc<App>>, client: Client, page: Page, mut form: Form) -> Response {
    let going = bounded(form.going());
    let (email, username) = (form.text("email"), form.text("username"));
    let password = form.password("password");
    let missing = [("email", email.trim().is_empty()), ("password", password.is_none())];
    let (false, Some(password)) = (missing[0].1, password) else {
        return show(page.missing(missing), &going, &email, &username);
    };
    let wanted = Some(username.clone()).filter(|name| !name.trim().is_empty());
    let registration = Registration { email: email.clone(), username: wanted, password };
    let _present = client.gone.clone().drop_guard();
    let registering = Arc::clone(&app);
    let register = async move { registering.auth.register(registration, &client).await };
    match app.auth.flows.run(register).await {
        Ok(_) => redirect(&link("/sign-in", &going, Some("registered"))),
        Err(error) => show(page.failed(error), &going, &email, &username),
    }
}
