//! `/account`: who I am, my sessions, the password, the end of the account.
use std::sync::Arc;

use askama::Template;
use axum::extract::{Request, State};
use axum::response::Response;
use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue, Uri};
use jiff::Timestamp;

use super::form::Form;
use super::language::Texts;
use super::sign_out::gone;
use super::{Asked, Page, answer, failure, redirect, sign_in};
use crate::auth::{AuthError, Client, SessionEntry, SessionId, SignedIn};
use crate::http::App;
use crate::http::extract::cookies;
use crate::http::verify::Destination;

/// Replicas that the page remembers having been answered by.
const MOST_SEEN: usize = 16;
/// Characters of a replica's name, as `REPLICA_ID` takes them.
const LONGEST_NAME: usize = 64;

#[derive(Template)]
#[template(path = "account.html", config = "src/http/pages/askama.toml")]
struct AccountPage<'a> {
    page: &'a Page,
    who: &'a SignedIn,
    answered_by: &'a str,
    seen: Vec<&'a str>,
    sessions: Vec<Listed>,
}

/// A session, as its user reads it.
struct Listed {
    id: SessionId,
    current: bool,
    user_agent: String,
    ip: String,
    created_at: Timestamp,
    /// The same time in the reader's form.
    created: String,
    created_by: String,
    last_seen_at: Timestamp,
    last_seen: String,
    hosts: String,
}

impl Listed {
    fn new(entry: SessionEntry, current: SessionId, texts: &Texts) -> Self {
        let time = |time: Timestamp| time.strftime(&texts.time).to_string();
        let is_named = !entry.user_agent.trim().is_empty();
        Self {
            id: entry.session_id,
            current: entry.session_id == current,
            user_agent: if is_named { entry.user_agent } else { texts.unknown_device.clone() },
            ip: entry.ip,
            created_at: entry.created_at,
            created: time(entry.created_at),
            created_by: entry.created_by,
            last_seen_at: entry.last_seen_at,
            last_seen: time(entry.last_seen_at),
            hosts: entry.hosts.join(", "),
        }
    }
}

/// The cookie with the replicas that answered during this visit. It is not signed: it shows its reader nothing but what
/// the reader sent.
fn seen_cookie(app: &App) -> &'static str {
    if app.cookie.name().starts_with("__") { "__Secure-authfleet-seen" } else { "authfleet-seen" }
}

/// The names in that cookie, and the replica that answers now.
fn seen<'a>(app: &'a App, headers: &'a HeaderMap, answered_by: &'a str) -> Vec<&'a str> {
    let cookie = cookies(headers, seen_cookie(app)).find_map(|value| std::str::from_utf8(value).ok());
    let is_name = |name: &&str| {
        (1..=LONGEST_NAME).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    let mut seen = vec![answered_by];
    for name in cookie.unwrap_or_default().split('~').filter(is_name) {
        if seen.len() < MOST_SEEN && !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen.sort_unstable();
    seen
}

async fn show(app: &App, headers: &HeaderMap, page: &Page, who: &SignedIn) -> Response {
    let entries = match app.auth.list(who.claims.user_id).await {
        Ok(entries) => entries,
        Err(error) => return failure(headers, error),
    };
    let sessions = entries.into_iter().map(|entry| Listed::new(entry, who.claims.session_id, page.texts)).collect();
    let answered_by = app.served_by.to_str().unwrap_or_default();
    let seen = seen(app, headers, answered_by);
    let name = seen_cookie(app);
    let secure = if name.starts_with("__") { "; Secure" } else { "" };
    let cookie = format!("{name}={}; Path=/account; HttpOnly; SameSite=Strict; Max-Age=1800{secure}", seen.join("~"));
    let mut response = answer(page, &AccountPage { page, who, answered_by, seen, sessions }, None);
    response.headers_mut().insert(SET_COOKIE, HeaderValue::from_str(&cookie).expect("names of replicas"));
    response
}

pub(super) async fn get(State(app): State<Arc<App>>, uri: Uri, headers: HeaderMap) -> Response {
    match app.auth.check(cookies(&headers, app.cookie.name())).await {
        Ok(who) => show(&app, &headers, &Page::new(&headers).noticing(&Asked::of(&uri).notice), &who).await,
        Err(AuthError::SessionInvalid) => redirect("/sign-in"),
        Err(error) => failure(&headers, error),
    }
}

/// Does what the pressed button says.
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
    let who = match app.auth.check(cookies(&headers, app.cookie.name())).await {
        Ok(who) => who,
        Err(error @ AuthError::SessionInvalid) => {
            return sign_in::show(&app, &Page::new(&headers).failed(error), &Destination::default(), "");
        }
        Err(error) => return failure(&headers, error),
    };
    match form.text("action").as_str() {
        "end" => {
            let ended = match SessionId::parse(&form.text("session")) {
                Some(id) => app.auth.revoke(&who.claims, id, &client).await,
                None => Err(AuthError::SessionNotFound),
            };
            match ended {
                Ok(()) => redirect("/account?notice=ended"),
                Err(error) => show(&app, &headers, &Page::new(&headers).failed(error), &who).await,
            }
        }
        "end-others" => match app.auth.revoke_all(&who.claims, true, &client).await {
            Ok(_) => redirect("/account?notice=others-ended"),
            Err(error) => failure(&headers, error),
        },
        "password" => change_password(&app, client, &headers, &who, form).await,
        "delete" => delete(&app, client, &headers, &who, form).await,
        _ => failure(&headers, crate::http::error::Problem::validation_failed(Vec::new())),
    }
}

async fn change_password(
    app: &Arc<App>,
    client: Client,
    headers: &HeaderMap,
    who: &SignedIn,
    mut form: Form,
) -> Response {
    let mut page = Page::new(headers);
    let (current, new) = (form.password("current_password"), form.password("new_password"));
    let missing = [("current_password", current.is_none()), ("new_password", new.is_none())];
    let (Some(current), Some(new)) = (current, new) else {
        return show(app, headers, &page.missing(missing), who).await;
    };
    let _present = client.gone.clone().drop_guard();
    let (changing, asking) = (Arc::clone(app), who.clone());
    let change = async move { changing.auth.change_password(&asking, current, new, &client).await };
    match app.auth.flows.run(change).await {
        Ok(opened) => {
            let mut response = redirect("/account?notice=password");
            response.headers_mut().insert(SET_COOKIE, app.cookie.set(&opened.token));
            response
        }
        Err(error) => {
            if matches!(error, AuthError::WrongPassword) {
                page.mistakes.push(("current_password", &page.texts.wrong_password));
            }
            show(app, headers, &page.failed(error), who).await
        }
    }
}

async fn delete(app: &Arc<App>, client: Client, headers: &HeaderMap, who: &SignedIn, mut form: Form) -> Response {
    let mut page = Page::new(headers);
    let Some(password) = form.password("password_to_delete") else {
        return show(app, headers, &page.missing([("password_to_delete", true)]), who).await;
    };
    let _present = client.gone.clone().drop_guard();
    let (deleting, asking) = (Arc::clone(app), who.clone());
    let delete = async move { deleting.auth.delete_account(&asking, password, &client).await };
    match app.auth.flows.run(delete).await {
        Ok(()) => gone(app, "/sign-in?notice=deleted"),
        Err(error) => {
            if matches!(error, AuthError::WrongPassword) {
                page.mistakes.push(("password_to_delete", &page.texts.wrong_password));
            }
            show(app, headers, &page.failed(error), who).await
        }
    }
}
