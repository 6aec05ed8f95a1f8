//! `/account`: who I am, my sessions, the password, the end of the account.
use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue, Uri};
use jiff::Timestamp;

use super::form::Form;
use super::language::Texts;
use super::sign_out::gone;
use super::{Asked, Page, redirect, sign_in};
use crate::auth::{AuthError, Client, SessionEntry, SessionId, SignedIn, device};
use crate::http::App;
use crate::http::error::Problem;
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
    /// Browser and system, or what the client said about itself.
    device: String,
    /// What the client said, where that isn't all of `device`.
    user_agent: Option<String>,
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
        let said = Some(entry.user_agent).filter(|text| !text.trim().is_empty());
        // Older sessions have the text as it was sent.
        let device = said.as_deref().and_then(device::name);
        let (device, user_agent) = match (device, said) {
            (Some(device), said) => (device, said),
            (None, Some(said)) => (said, None),
            (None, None) => (texts.unknown_device.clone(), None),
        };
        Self {
            id: entry.session_id,
            current: entry.session_id == current,
            device,
            user_agent,
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

async fn show(page: Page, headers: &HeaderMap, who: &SignedIn) -> Response {
    let app = Arc::clone(&page.app);
    let entries = match app.auth.list(who.claims.user_id).await {
        Ok(entries) => entries,
        Err(error) => return page.failure(error),
    };
    let mut sessions: Vec<_> =
        entries.into_iter().map(|entry| Listed::new(entry, who.claims.session_id, page.texts)).collect();
    sessions.sort_by_key(|listed| !listed.current);
    let answered_by = app.served_by.to_str().unwrap_or_default();
    let seen = seen(&app, headers, answered_by);
    let name = seen_cookie(&app);
    let secure = if name.starts_with("__") { "; Secure" } else { "" };
    let cookie = format!("{name}={}; Path=/account; HttpOnly; SameSite=Strict; Max-Age=1800{secure}", seen.join("~"));
    let mut response = page.answer(&AccountPage { page: &page, who, answered_by, seen, sessions }, None);
    response.headers_mut().insert(SET_COOKIE, HeaderValue::from_str(&cookie).expect("names of replicas"));
    response
}

pub(super) async fn get(State(app): State<Arc<App>>, page: Page, uri: Uri, headers: HeaderMap) -> Response {
    match app.auth.check(cookies(&headers, app.cookie.name())).await {
        Ok(who) => show(page.noticing(&Asked::of(&uri).notice), &headers, &who).await,
        Err(AuthError::SessionInvalid) => redirect("/sign-in"),
        Err(error) => page.failure(error),
    }
}

/// Does what the pressed button says.
pub(super) async fn post(
    State(app): State<Arc<App>>,
    client: Client,
    page: Page,
    headers: HeaderMap,
    mut form: Form,
) -> Response {
    let who = match app.auth.check(cookies(&headers, app.cookie.name())).await {
        Ok(who) => who,
        Err(error @ AuthError::SessionInvalid) => {
            return sign_in::show(&page.failed(error), &Destination::default(), "");
        }
        Err(error) => return page.failure(error),
    };
    match form.text("action").as_str() {
        "end" => {
            let ended = match SessionId::parse(&form.text("session")) {
                Some(id) => app.auth.revoke(&who.claims, id, &client).await,
                None => Err(AuthError::SessionNotFound),
            };
            match ended {
                Ok(()) => redirect("/account?notice=ended"),
                Err(error) => show(page.failed(error), &headers, &who).await,
            }
        }
        "end-others" => match app.auth.revoke_all(&who.claims, true, &client).await {
            Ok(_) => redirect("/account?notice=others-ended"),
            Err(error) => page.failure(error),
        },
        "password" => change_password(page, client, &headers, &who, form).await,
        "delete" => delete(page, client, &headers, &who, form).await,
        _ => page.failure(Problem::validation_failed(Vec::new())),
    }
}

async fn change_password(
    mut page: Page,
    client: Client,
    headers: &HeaderMap,
    who: &SignedIn,
    mut form: Form,
) -> Response {
    let (current, new) = (form.password("current_password"), form.password("new_password"));
    let missing = [("current_password", current.is_none()), ("new_password", new.is_none())];
    let (Some(current), Some(new)) = (current, new) else {
        return show(page.missing(missing), headers, who).await;
    };
    let _present = client.gone.clone().drop_guard();
    let (app, asking) = (Arc::clone(&page.app), who.clone());
    let change = async move { app.auth.change_password(&asking, current, new, &client).await };
    match page.app.auth.flows.run(change).await {
        Ok(opened) => {
            let mut response = redirect("/account?notice=password");
            response.headers_mut().insert(SET_COOKIE, page.app.cookie.set(&opened.token));
            response
        }
        Err(error) => {
            if matches!(error, AuthError::WrongPassword) {
                page.mistake_in("current_password", &page.texts.wrong_password);
            }
            show(page.failed(error), headers, who).await
        }
    }
}

async fn delete(mut page: Page, client: Client, headers: &HeaderMap, who: &SignedIn, mut form: Form) -> Response {
    let Some(password) = form.password("password_to_delete") else {
        return show(page.missing([("password_to_delete", true)]), headers, who).await;
    };
    let _present = client.gone.clone().drop_guard();
    let (app, asking) = (Arc::clone(&page.app), who.clone());
    let delete = async move { app.auth.delete_account(&asking, password, &client).await };
    match page.app.auth.flows.run(delete).await {
        Ok(()) => gone(&page.app, "/sign-in?notice=deleted"),
        Err(error) => {
            if matches!(error, AuthError::WrongPassword) {
                page.mistake_in("password_to_delete", &page.texts.wrong_password);
            }
            show(page.failed(error), headers, who).await
        }
    }
}
