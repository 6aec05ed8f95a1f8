//! A form, as a browser sends it from one of our own pages.
use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::response::Response;
use http::header::CONTENT_TYPE;
use secrecy::SecretString;
use url::form_urlencoded;

use super::Page;
use crate::http::App;
use crate::http::error::Problem;
use crate::http::extract::read;
use crate::http::refusals::is_same_origin;
use crate::http::verify::Destination;

/// The fields of a form. Each is taken out once.
pub(super) struct Form(Vec<(String, String)>);

/// Whatever is wrong with the request as a whole is answered with a page that says so: 403 `cross_site`, 413, 415.
impl FromRequest<Arc<App>> for Form {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Response> {
        let page = Page::new(app, request.headers());
        Self::read(app, request).await.map_err(|problem| page.failure(problem))
    }
}

impl Form {
    async fn read(app: &App, request: Request) -> Result<Self, Problem> {
        if !is_same_origin(app, &request) {
            return Err(Problem::cross_site());
        }
        let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            return Err(Problem::unsupported_media_type());
        }
        let body = read(request.into_body()).await?;
        Ok(Self(form_urlencoded::parse(&body).map(|(name, value)| (name.into_owned(), value.into_owned())).collect()))
    }

    /// The first field of this name; empty if there is none.
    pub(super) fn text(&mut self, name: &str) -> String {
        let at = self.0.iter().position(|(known, _)| known == name);
        at.map_or_else(String::new, |at| self.0.swap_remove(at).1)
    }

    /// As [`Self::text`]; `None` if it is empty or absent.
    pub(super) fn password(&mut self, name: &str) -> Option<SecretString> {
        Some(self.text(name)).filter(|text| !text.is_empty()).map(SecretString::from)
    }

    /// Where one is going after signing in.
    pub(super) fn going(&mut self) -> Destination {
        Destination { host: self.text("host"), start: self.text("start"), to: self.text("to") }
    }
}
