//! The headers by which an application learns who is there.
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::auth::SignedIn;

const USER: HeaderName = HeaderName::from_static("remote-user");
const EMAIL: HeaderName = HeaderName::from_static("remote-email");
const USER_ID: HeaderName = HeaderName::from_static("remote-user-id");
const GROUPS: HeaderName = HeaderName::from_static("remote-groups");
const SESSION_ID: HeaderName = HeaderName::from_static("remote-session-id");

/// What is percent-encoded besides everything beyond ASCII (RFC 3986, section 2.1). The percent sign itself too:
/// otherwise a user called `%C3%A9` would look like one called `é`.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%').add(b' ');

/// Sets every identity header: empty if nobody is known.
pub(super) fn set(headers: &mut HeaderMap, signed_in: Option<&SignedIn>) {
    let text = |value: &str| {
        let encoded = utf8_percent_encode(value, ENCODED).to_string();
        HeaderValue::try_from(encoded).unwrap_or(HeaderValue::from_static(""))
    };
    let who = signed_in.map(|SignedIn { claims, session, .. }| {
        let mut id = [0; 36];
        [
            text(&session.username),
            text(&session.email),
            text(claims.user_id.hyphenated().encode_lower(&mut id)),
            text(session.groups.as_str()),
            text(claims.session_id.as_str()),
        ]
    });
    let values = who.unwrap_or([const { HeaderValue::from_static("") }; 5]);
    for (name, value) in [USER, EMAIL, USER_ID, GROUPS, SESSION_ID].into_iter().zip(values) {
        headers.insert(name, value);
    }
}
