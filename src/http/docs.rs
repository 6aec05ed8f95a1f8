//! The OpenAPI document, and Swagger UI from the binary itself.
use axum::Router;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, Info, License, OpenApi, OpenApiBuilder};
use utoipa_swagger_ui::{Config, SwaggerUi};

/// What stands above the routes.
pub fn head() -> OpenApi {
    let mut info = Info::new("authfleet", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "Session authentication that runs as a fleet: any replica can answer any request.\n\n\
         Failures are RFC 9457 `application/problem+json` with a stable `code`. Every response has `X-Request-Id` \
         and `X-Served-By`."
            .to_owned(),
    );
    info.license = Some(License::new("MIT"));
    let cookie = SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::with_description(
        "__Host-session",
        "Set by a login. Without `COOKIE_SECURE` its name is `session`.",
    )));
    OpenApiBuilder::new()
        .info(info)
        .components(Some(ComponentsBuilder::new().security_scheme("session", cookie).build()))
        .build()
}

/// `/openapi.json`, `/docs`.
pub fn routes<S: Clone + Send + Sync + 'static>(document: OpenApi) -> Router<S> {
    // No validator: by default the page would show the document's address to a server of somebody else's.
    let config = Config::default().try_it_out_enabled(true).validator_url("none");
    SwaggerUi::new("/docs").url("/openapi.json", document).config(config).into()
}
