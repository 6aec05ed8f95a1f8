//! `/sign-in`, with where one is going afterwards.
use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use http::header::SET_COOKIE;
use http::{HeaderMap, Uri};

use super::form::Form;
use super::{Asked, Page, bounded, link, redirect};
use crate::auth::{AuthError, Client};
use crate::http::App;
use crate::http::extract::cookies;
use crate::http::verify::Destination;

#[derive(Template)]
#[template(path = "sign_in.html", config = "src/http/pages/askama.toml")]
struct SignInPage<'a> {
    page: &'a Page,
    going: &'a Destination,
    /// The application's host, if it is known.
    going_to: Option<&'a str>,
    query: String,
    typed: &'a str,
}

pub(super) fn show(page: &Page, going: &Destination, typed: &str) -> Response {
    let origin = going.origin(page.app.front_door.as_ref());
    let going_to = origin.as_deref().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    let query = link("", going, None);
    page.answer(&SignInPage { page, going, going_to, query, typed }, origin.as_deref())
}

/// The page; whoever has a session is sent on at once.
pub(super) async fn get(State(app): State<Arc<App>>, page: Page, uri: Uri, headers: HeaderMap) -> Response {
    let asked = Asked::of(&uri);
    let page = page.noticing(&asked.notice);
    let going = asked.going();
    let target = async {
        let signed_in = app.auth.check(cookies(&headers, app.cookie.name())).await?;
        going.url(app.front_door.as_ref(), &app.auth, &signed_in.claims).await
    };
    match target.await {
        Ok(url) => redirect(url.as_deref().unwrap_or("/account")),
        Err(AuthError::SessionInvalid) => show(&page, &going, ""),
        Err(error) => page.failure(error),
    }
}

/// Signs in. The way to the application begins at the page itself, which knows whoever has a session.
pub(super) async fn post(
    State(app): State<Arc<App>>,
    client: Client,
    page: Page,
    headers: HeaderMap,
    mut form: Form,
) -> Response {
    let going = bounded(form.going());
    let (typed, password) = (form.text("username"), form.password("password"));
    let missing = [("username", typed.trim().is_empty()), ("password", password.is_none())];
    let (false, Some(password)) = (missing[0].1, password) else {
        return show(&page.missing(missing), &going, &typed);
    };
    let brought = app.auth.brought(cookies(&headers, app.cookie.name()));
    let _present = client.gone.clone().drop_guard();
    let (signing_in, identifier) = (Arc::clone(&app), typed.clone());
    let sign_in = async move { signing_in.auth.sign_in(&identifier, password, brought, &client).await };
    match app.auth.flows.run(sign_in).await {
        Ok(opened) => {
            let mut response = redirect(&link("/sign-in", &going, None));
            response.headers_mut().insert(SET_COOKIE, app.cookie.set(&opened.token));
            response
        }
        Err(error) => show(&page.failed(error), &going, &typed),
    }
}
