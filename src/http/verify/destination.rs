//! The way to the page for signing in, and from there back to an application.
use url::Url;
use url::form_urlencoded::Serializer;

use super::FrontDoor;
use super::original::Original;
use crate::auth::handover::is_start_hash;
use crate::auth::token::Claims;
use crate::auth::{Auth, AuthError};
use crate::config::Site;

/// Where the page for signing in was told to send people, as its URL says it: nothing here is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub(crate) struct Destination {
    /// The application's host.
    pub(crate) host: String,
    /// The hash of the browser's start value at that host.
    pub(crate) start: String,
    /// A path on that host; without a host, a whole URL.
    pub(crate) to: String,
}

impl Destination {
    /// Scheme and host of the application that [`Self::url`] leads to; `None` for a host that isn't known.
    pub(crate) fn origin(&self, front_door: Option<&FrontDoor>) -> Option<String> {
        let targets = &front_door?.targets;
        if self.host.is_empty() {
            return targets.url(&self.to).map(|url| url.origin().ascii_serialization());
        }
        let site = Site::parse(&self.host, targets.scheme()).filter(|site| targets.protected().include(site))?;
        Some(format!("{}://{site}", targets.scheme().as_str()))
    }

    /// The URL to go to once somebody is signed in; `None` for the account page. For another host it holds a code, so
    /// it is good once, for 30 seconds.
    ///
    /// # Errors
    ///
    /// [`AuthError::SessionInvalid`] if the session has ended; [`AuthError::Unavailable`].
    pub(crate) async fn url(
        &self,
        front_door: Option<&FrontDoor>,
        auth: &Auth,
        claims: &Claims,
    ) -> Result<Option<String>, AuthError> {
        let Some(front_door) = front_door else { return Ok(None) };
        let targets = &front_door.targets;
        if self.host.is_empty() {
            let url = targets.url(&self.to).filter(|url| {
                // Another host has a cookie of its own, which only a code leads to.
                front_door.shares_cookie || url.host_str() == Some(targets.public().site().name())
            });
            return Ok(url.map(String::from));
        }
        let site = Site::parse(&self.host, targets.scheme()).filter(|site| targets.protected().include(site));
        let (Some(site), true) = (site, is_start_hash(&self.start) && !front_door.shares_cookie) else {
            return Ok(None);
        };
        let to = targets.path(&site, &self.to).map_or_else(|| "/".to_owned(), |url| path_of(&url));
        let code = auth.hand_out(claims, site.name(), &self.start, &to).await?;
        Ok(Some(format!("{}://{site}/.authfleet/callback?code={code}", targets.scheme().as_str())))
    }
}

/// Where a browser goes that isn't signed in.
pub(super) fn sign_in_url(front_door: &FrontDoor, original: &Original) -> String {
    let targets = &front_door.targets;
    let (scheme, host) = (targets.scheme().as_str(), &original.host);
    let here = targets.path(host, &original.target);
    if front_door.shares_cookie || original.host == *targets.public().site() {
        let to = here.map_or_else(String::new, String::from);
        return format!(
            "{}/sign-in?{}",
            targets.public(),
            Serializer::new(String::new()).append_pair("to", &to).finish()
        );
    }
    let to = here.as_ref().map_or_else(|| "/".to_owned(), path_of);
    format!("{scheme}://{host}/.authfleet/start?{}", Serializer::new(String::new()).append_pair("to", &to).finish())
}

/// The page for signing in, for somebody who comes from `site`.
pub(super) fn sign_in_from(front_door: &FrontDoor, site: &Site, start: &str, to: &str) -> String {
    let query = Serializer::new(String::new())
        .append_pair("host", &site.to_string())
        .append_pair("start", start)
        .append_pair("to", to)
        .finish();
    format!("{}/sign-in?{query}", front_door.targets.public())
}

/// The path with its query.
pub(super) fn path_of(url: &Url) -> String {
    url[url::Position::BeforePath..url::Position::AfterQuery].to_owned()
}
