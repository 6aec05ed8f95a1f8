//! The OpenAPI document, and Swagger UI from the binary itself.
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use http::{HeaderMap, StatusCode};
use sha2::{Digest as _, Sha256};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, Info, License, OpenApi, OpenApiBuilder};
use utoipa_swagger_ui::Config;

use super::error::Problem;

/// The OpenAPI document before any route is added: title, description, licence, and the session cookie.
pub(super) fn head() -> OpenApi {
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

const FILES: [&str; 9] = [
    "index.html",
    "index.css",
    "swagger-ui.css",
    "swagger-ui-bundle.js",
    "swagger-ui-standalone-preset.js",
    "swagger-initializer.js",
    "favicon-16x16.png",
    "favicon-32x32.png",
    "oauth2-redirect.html",
];
/// For scripts, styles and images: browsers and proxies keep them for a week, then ask whether they have changed.
const CACHED: HeaderValue = HeaderValue::from_static("public, max-age=604800");
/// For the pages that name those files, and for the OpenAPI document: browsers ask each time whether they have changed.
const ASKED_FOR: HeaderValue = HeaderValue::from_static("no-cache");
/// Swagger UI needs inline styles and `data:` images, but no inline scripts.
const UI_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; \
     frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
);
/// For what no browser shows as a page.
const DATA_POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'");

/// A file that is the same for everybody. The process holds its bytes once, however many clients read it.
#[derive(Clone, Debug)]
struct File {
    content: Bytes,
    content_type: HeaderValue,
    etag: HeaderValue,
    caching: HeaderValue,
    policy: HeaderValue,
}

impl File {
    fn new(content: Bytes, content_type: &str, caching: HeaderValue, policy: HeaderValue) -> Self {
        let hash = Sha256::digest(&content);
        let etag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(&hash[..12]));
        Self {
            content,
            content_type: HeaderValue::from_str(content_type).expect("a media type"),
            etag: HeaderValue::from_str(&etag).expect("base64url in quotes"),
            caching,
            policy,
        }
    }

    /// The file, or 304 if the client has it already (RFC 9110 section 13.1.2).
    fn answer(&self, request: &HeaderMap) -> Response {
        let known = request.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let mut known = known.flat_map(|tags| tags.split(',')).map(|tag| tag.trim().trim_start_matches("W/"));
        let headers = [
            (ETAG, self.etag.clone()),
            (CACHE_CONTROL, self.caching.clone()),
            (CONTENT_SECURITY_POLICY, self.policy.clone()),
        ];
        if known.any(|tag| tag == "*" || tag.as_bytes() == self.etag.as_bytes()) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        (headers, [(CONTENT_TYPE, self.content_type.clone())], self.content.clone()).into_response()
    }
}

/// The routes `/openapi.json` and `/docs`.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(document: &OpenApi) -> Router<S> {
    // By default the page would send the document's address to a validator on somebody else's server.
    let config = Config::from("/openapi.json").try_it_out_enabled(true).validator_url("none");
    let config = Arc::new(config);
    let mut files = HashMap::new();
    for name in FILES {
        let Ok(Some(file)) = utoipa_swagger_ui::serve(name, Arc::clone(&config)) else {
            panic!("Swagger UI has no {name}")
        };
        let content = match file.bytes {
            Cow::Borrowed(bytes) => Bytes::from_static(bytes),
            Cow::Owned(bytes) => bytes.into(),
        };
        let is_asked_for = matches!(name, "index.html" | "swagger-initializer.js");
        let caching = if is_asked_for { ASKED_FOR } else { CACHED };
        files.insert(name, File::new(content, &file.content_type, caching, UI_POLICY));
    }
    let index = files["index.html"].clone();
    let files = Arc::new(files);
    let json = document.to_json().expect("the document is JSON");
    let document = File::new(json.into(), "application/json", ASKED_FOR, DATA_POLICY);
    Router::new()
        .route("/docs", get(async || Redirect::temporary("/docs/").into_response()))
        .route("/docs/", get(async move |headers: HeaderMap| index.answer(&headers)))
        .route(
            "/docs/{file}",
            get(async move |Path(name): Path<String>, headers: HeaderMap| match files.get(name.as_str()) {
                Some(file) => file.answer(&headers),
                None => Problem::not_found().into_response(),
            }),
        )
        .route("/openapi.json", get(async move |headers: HeaderMap| document.answer(&headers)))
}
