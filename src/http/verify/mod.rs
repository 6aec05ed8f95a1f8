//! Forward auth: a proxy asks whether a request to an application may pass.
//!
//! Three endpoints, because proxies differ in what they can do with an answer. Each takes any method, costs one session
//! check and changes nothing but the session's idle limit. Every answer has every identity header, empty when nobody
//! gets in, so that what a client sent under these names never reaches an application.
mod destination;
mod host;
mod identity;
mod original;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use http::header::{LOCATION, REFERRER_POLICY};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};

pub(super) use self::destination::Destination;
pub(crate) use self::host::HostCookie;
use self::original::{Endpoint, Original};
use super::App;
use super::error::Problem;
use super::extract::cookies;
use super::request::{Peer, RequestId, client_address};
use crate::auth::rules::{AccessRules, Allow, Decision, Outcome};
use crate::auth::target::Targets;
use crate::auth::{AuthError, SignedIn};

/// What forward auth needs. There is one if `PUBLIC_URL` is set.
#[derive(Debug)]
pub(crate) struct FrontDoor {
    pub(crate) targets: Targets,
    pub(crate) rules: AccessRules,
    /// Whether one cookie serves the whole `COOKIE_DOMAIN`.
    pub(crate) shares_cookie: bool,
    pub(crate) cookie: HostCookie,
}

/// What the paths of the questions begin with.
pub(super) const QUESTIONS: &str = "/auth/verify/";

/// The routes, which take every method and so stand in no OpenAPI document.
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/auth/verify/nginx", any(nginx))
        .route("/auth/verify/forward", any(forward))
        .route("/auth/verify/envoy", any(envoy))
        .route("/auth/verify/envoy/", any(envoy))
        .route("/auth/verify/envoy/{*path}", any(envoy))
        .route("/.authfleet/start", get(host::start))
        .route("/.authfleet/callback", get(host::callback))
}

async fn nginx(State(app): State<Arc<App>>, request: Request) -> Response {
    answer(&app, Endpoint::Nginx, request).await
}

async fn forward(State(app): State<Arc<App>>, request: Request) -> Response {
    answer(&app, Endpoint::Forward, request).await
}

async fn envoy(State(app): State<Arc<App>>, request: Request) -> Response {
    answer(&app, Endpoint::Envoy, request).await
}

async fn answer(app: &App, endpoint: Endpoint, request: Request) -> Response {
    let (request, _) = request.into_parts();
    let (mut response, signed_in) = match decide(app, endpoint, &request).await {
        Ok(signed_in) => (StatusCode::OK.into_response(), signed_in),
        Err(refusal) => (refusal, None),
    };
    identity::set(response.headers_mut(), signed_in.as_ref());
    response
}

/// Who is let in (`None`: anyone), or the answer that refuses.
async fn decide(app: &App, endpoint: Endpoint, request: &Parts) -> Result<Option<SignedIn>, Response> {
    let Some(front_door) = &app.front_door else { return Err(Problem::forward_auth_off().into_response()) };
    let original = Original::read(endpoint, request, &app.trusted_proxies, front_door.targets.scheme())
        .map_err(|why| Problem::bad_description(why).into_response())?;
    let rules = front_door.rules.current();
    let decision = rules.decide(original.asked());
    let rule = match decision {
        Decision::Rule(rule) => rule,
        Decision::NoRule => {
            rules.count(decision, Outcome::Denied);
            audit_denied(app, request, &original, "none", None);
            return Err(Problem::access_denied().into_response());
        }
        Decision::Refused(why) => {
            rules.count(decision, Outcome::Denied);
            tracing::info!(host = %original.host, why = %why, "a path was refused");
            return Err(Problem::path_refused(why).into_response());
        }
    };
    if rule.allow == Allow::Nobody {
        rules.count(decision, Outcome::Denied);
        audit_denied(app, request, &original, &rule.name, None);
        return Err(Problem::access_denied().into_response());
    }
    match check(app, front_door, &original, request).await {
        Ok(signed_in) => {
            let is_allowed = match &rule.allow {
                Allow::Members(members) => {
                    members.include(signed_in.claims.user_id, &signed_in.session.username, &signed_in.session.groups)
                }
                _ => true,
            };
            if is_allowed {
                rules.count(decision, Outcome::Allowed);
                return Ok(Some(signed_in));
            }
            rules.count(decision, Outcome::Denied);
            audit_denied(app, request, &original, &rule.name, Some(&signed_in));
            Err(Problem::access_denied().into_response())
        }
        // Whoever may go there unknown may go there while the store is away, unknown.
        Err(_) if rule.allow == Allow::Anyone => {
            rules.count(decision, Outcome::Allowed);
            Ok(None)
        }
        Err(AuthError::SessionInvalid) => {
            rules.count(decision, Outcome::SignIn);
            Err(sign_in(front_door, endpoint, &original, request))
        }
        Err(error) => {
            rules.count(decision, Outcome::Unavailable);
            Err(Problem::from(error).into_response())
        }
    }
}

/// Checks the session that this host's cookie names.
async fn check(app: &App, front_door: &FrontDoor, original: &Original, request: &Parts) -> Result<SignedIn, AuthError> {
    let headers = &request.headers;
    if front_door.shares_cookie || original.host == *front_door.targets.public().site() {
        app.auth.check(cookies(headers, app.cookie.name())).await
    } else {
        app.auth.check_bound(cookies(headers, front_door.cookie.name()), original.host.name()).await
    }
}

/// Sends a browser to sign in; tells everybody else that nobody is signed in.
fn sign_in(front_door: &FrontDoor, endpoint: Endpoint, original: &Original, request: &Parts) -> Response {
    let mut response = Problem::session_invalid().into_response();
    if !original::is_navigation(&request.headers) {
        return response;
    }
    let location = destination::sign_in_url(front_door, original);
    let Ok(location) = HeaderValue::from_str(&location) else { return response };
    let is_safe = matches!(original.method, Method::GET | Method::HEAD);
    let status = match endpoint {
        // nginx makes 500 of a redirect (tinyauth#754). Its recipe turns this into one.
        Endpoint::Nginx => StatusCode::UNAUTHORIZED,
        Endpoint::Forward | Endpoint::Envoy if is_safe => StatusCode::FOUND,
        // The browser must not send the form again, to the page for signing in (RFC 9110, section 15.4.4).
        Endpoint::Forward | Endpoint::Envoy => StatusCode::SEE_OTHER,
    };
    if status != StatusCode::UNAUTHORIZED {
        response = status.into_response();
    }
    response.headers_mut().insert(LOCATION, location);
    response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn audit_denied(app: &App, request: &Parts, original: &Original, rule: &str, signed_in: Option<&SignedIn>) {
    let peer = request.extensions.get::<Peer>().expect("every connection has a peer").0.ip();
    let ip = client_address(peer, &request.headers, &app.trusted_proxies);
    let request_id = request.extensions.get::<RequestId>().and_then(|id| id.0.to_str().ok());
    tracing::info!(target: "audit", event = "access_denied", rule, host = %original.host,
        method = original.method.as_str(), user_id = signed_in.map(|who| tracing::field::display(who.claims.user_id)),
        session_id = signed_in.map(|who| tracing::field::display(who.claims.session_id)), ip = %ip,
        request_id = request_id.unwrap_or_default());
}
