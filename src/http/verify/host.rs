//! `/.authfleet/…` on the host of an application: how that host gets its cookie. Each protected host passes these paths
//! to authfleet.
use std::sync::Arc;

use axum::extract::{FromRequestParts as _, Query, Request, State};
use axum::response::{IntoResponse as _, Response};
use http::header::{LOCATION, REFERRER_POLICY, SET_COOKIE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::destination::{path_of, sign_in_from};
use super::original::site_of;
use super::{App, FrontDoor, cookies};
use crate::auth::handover::StartValue;
use crate::auth::{AuthError, Client};
use crate::config::Site;
use crate::http::error::Problem;

/// How long a browser keeps its start value: as long as somebody may take to sign in.
const START_MAX_AGE: &str = "; Max-Age=1800";

/// Names and attributes of the cookies that an application's host has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostCookie {
    secure: bool,
}

impl HostCookie {
    /// `__Host-authfleet` with `Secure`, or, for plain http, `authfleet` without.
    pub(crate) fn new(secure: bool) -> Self {
        Self { secure }
    }

    pub(super) fn name(self) -> &'static str {
        if self.secure { "__Host-authfleet" } else { "authfleet" }
    }

    fn start_name(self) -> &'static str {
        if self.secure { "__Host-authfleet-start" } else { "authfleet-start" }
    }

    fn set(self, name: &str, value: &str, more: &str) -> HeaderValue {
        let secure = if self.secure { "; Secure" } else { "" };
        let text = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax{secure}{more}");
        let mut value = HeaderValue::from_str(&text).expect("base64url in a header");
        value.set_sensitive(true);
        value
    }

    fn token(self, token: &SecretString) -> HeaderValue {
        self.set(self.name(), token.expose_secret(), "")
    }

    fn start(self, value: &StartValue) -> HeaderValue {
        self.set(self.start_name(), value.as_str(), START_MAX_AGE)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StartQuery {
    to: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CallbackQuery {
    code: String,
}

/// Sends a browser to sign in, with a start value of its own.
pub(super) async fn start(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    let (front_door, site) = here(&app, &parts).ok_or_else(Problem::not_found)?;
    let StartQuery { to } = query(&parts);
    let to = front_door.targets.path(&site, &to).map_or_else(|| "/".to_owned(), |url| path_of(&url));
    // A value that is there serves again: somebody may have several tabs open.
    let known = start_value(front_door, &parts.headers);
    let value = known.unwrap_or_else(StartValue::random);
    let location = sign_in_from(front_door, &site, &value.hash(), &to);
    Ok(redirect(&location, front_door.cookie.start(&value)))
}

/// Takes a code and sets the host's cookie.
pub(super) async fn callback(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let (mut parts, _) = request.into_parts();
    let (front_door, site) = here(&app, &parts).ok_or_else(Problem::not_found)?;
    let CallbackQuery { code } = query(&parts);
    let Ok(client) = Client::from_request_parts(&mut parts, &app).await;
    let value = start_value(front_door, &parts.headers).ok_or_else(Problem::code_invalid)?;
    let taken = app.auth.take(&code, site.name(), &value, &client).await.map_err(|error| match error {
        AuthError::SessionInvalid => Problem::code_invalid(),
        other => Problem::from(other),
    })?;
    let url = front_door.targets.path(&site, &taken.to).or_else(|| front_door.targets.path(&site, "/"));
    let url = url.ok_or_else(Problem::code_invalid)?;
    Ok(redirect(url.as_str(), front_door.cookie.token(&taken.token)))
}

/// The host that was asked for: one of `PROTECTED_HOSTS`, with a cookie of its own.
fn here<'a>(app: &'a App, request: &Parts) -> Option<(&'a FrontDoor, Site)> {
    let front_door = app.front_door.as_ref().filter(|front_door| !front_door.shares_cookie)?;
    let site = site_of(request, &app.trusted_proxies, front_door.targets.scheme())?;
    front_door.targets.protected().include(&site).then_some((front_door, site))
}

fn query<T: Default + for<'de> Deserialize<'de>>(request: &Parts) -> T {
    Query::try_from_uri(&request.uri).map_or_else(|_| T::default(), |Query(query)| query)
}

fn start_value(front_door: &FrontDoor, headers: &HeaderMap) -> Option<StartValue> {
    cookies(headers, front_door.cookie.start_name()).find_map(StartValue::parse)
}

/// # Panics
///
/// If `location` is no URL as a library writes it, which is ASCII.
fn redirect(location: &str, cookie: HeaderValue) -> Response {
    let location = HeaderValue::from_str(location).expect("a URL in a header");
    let headers =
        [(LOCATION, location), (SET_COOKIE, cookie), (REFERRER_POLICY, HeaderValue::from_static("no-referrer"))];
    (StatusCode::FOUND, headers).into_response()
}
