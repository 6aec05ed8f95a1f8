//! `/register`: a new account.
use std::sync::Arc;

use askama::Template;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderMap, Uri};

use super::form::Form;
use super::{Asked, Page, answer, bounded, failure, link, redirect};
use crate::auth::{Client, Registration};
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

fn show(page: &Page, going: &Destination, email: &str, username: &str) -> Response {
    let query = link("", going, None);
    answer(page, &RegisterPage { page, going, query, email, username }, None)
}

pub(super) async fn get(uri: Uri, headers: HeaderMap) -> Response {
    show(&Page::new(&headers), &Asked::of(&uri).going(), "", "")
}

/// Makes the account and leads to the page for signing in, as the API makes no session either.
pub(super) async fn post(
    State(app): State<Arc<App>>,
    client: Client,
    headers: HeaderMap,
    request: Request,
) -> Response {
    let mut form = match Form::read(&app, request).await {
        Ok(form) => form,
        Err(problem) => return failure(&headers, problem),
    };
    let going = bounded(form.going());
    let page = Page::new(&headers);
    let (email, username) = (form.text("email"), form.text("username"));
    let password = form.password("password");
    let missing = [("email", email.trim().is_empty()), ("password", password.is_none())];
    let (false, Some(password)) = (missing[0].1, password) else {
        return show(&page.missing(missing), &going, &email, &username);
    };
    let wanted = Some(username.clone()).filter(|name| !name.trim().is_empty());
    let registration = Registration { email: email.clone(), username: wanted, password };
    let _present = client.gone.clone().drop_guard();
    let registering = Arc::clone(&app);
    let register = async move { registering.auth.register(registration, &client).await };
    match app.auth.flows.run(register).await {
        Ok(_) => redirect(&link("/sign-in", &going, Some("registered"))),
        Err(error) => show(&page.failed(error), &going, &email, &username),
    }
}
