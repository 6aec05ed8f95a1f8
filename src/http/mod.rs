//! HTTP: every route, the layer order, request and response types.
mod accounts;
mod cookie;
mod docs;
mod error;
mod extract;
mod metrics;
pub(crate) mod ops;
mod pages;
mod refusals;
mod request;
mod sessions;
pub(crate) mod verify;

use std::sync::Arc;

use axum::Router;
use axum::response::IntoResponse as _;
use http::HeaderValue;
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::validate_request::ValidateRequestHeaderLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) use self::cookie::SessionCookie;
use self::error::Problem;
pub(crate) use self::pages::brand::{Brand, BrandError};
pub(crate) use self::refusals::HEAD_LIMIT;
pub(crate) use self::request::Peer;
use self::verify::FrontDoor;
use crate::auth::Auth;
use crate::clock::Clock;

/// What every handler can reach.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) auth: Auth,
    pub(crate) cookie: SessionCookie,
    /// Forward auth, if `PUBLIC_URL` is set.
    pub(crate) front_door: Option<FrontDoor>,
    /// What the pages look like.
    pub(crate) brand: Brand,
    /// Peers whose `X-Forwarded-*` is believed.
    pub(crate) trusted_proxies: Vec<IpNet>,
    /// `X-Served-By`: this replica's name.
    pub(crate) served_by: HeaderValue,
    /// Whether `/docs` and `/openapi.json` are served.
    pub(crate) api_docs: bool,
    pub(crate) clock: Clock,
    /// Cancelled when the process begins to end.
    pub(crate) drain: CancellationToken,
}

/// The public API: every route, and what each request passes on its way, outermost first.
pub(crate) fn router(app: Arc<App>) -> Router {
    metrics::in_flight();
    let (mut routes, document) = api().split_for_parts();
    routes = routes.merge(verify::routes()).merge(pages::routes(&app.brand));
    if app.api_docs {
        routes = routes.merge(docs::routes(&document));
    }
    routes
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        // In one step: each `layer` of its own would cost every request a boxed service and a boxed future.
        .layer((
            request::RequestLayer(Arc::clone(&app)),
            CatchPanicLayer::custom(|_| Problem::internal().into_response()),
            ValidateRequestHeaderLayer::custom(refusals::Refusals(Arc::clone(&app))),
        ))
        .with_state(app)
}

/// The documented routes; the OpenAPI document is made from them.
fn api() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(docs::head())
        .routes(routes!(accounts::register))
        .routes(routes!(accounts::password))
        .routes(routes!(accounts::delete))
        .routes(routes!(sessions::login))
        .routes(routes!(sessions::login_short))
        .routes(routes!(sessions::logout))
        .routes(routes!(sessions::logout_short))
        .routes(routes!(sessions::profile))
        .routes(routes!(sessions::list, sessions::revoke_all))
        .routes(routes!(sessions::revoke))
}

/// The OpenAPI 3.1 document.
pub(crate) fn openapi() -> utoipa::openapi::OpenApi {
    api().into_openapi()
}
