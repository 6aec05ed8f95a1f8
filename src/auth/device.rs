//! Browser and system of a session, in a few words, from what the browser said about itself (`User-Agent`).
//!
//! This is what a session keeps, because every session would otherwise carry a hundred bytes of which people can use
//! these few. The text as it was sent is in the audit event of the login.
//!
//! Browsers have frozen most of this text, and these few names are all that a person needs to tell devices apart. Crates
//! that know hundreds are either unmaintained (`woothee`) or bring thousands of regular expressions (`uaparser`). What
//! isn't recognised is kept as it was sent.

/// The first that occurs decides: browsers name those that they descend from, too.
const BROWSERS: [(&str, &str); 9] = [
    ("Edg/", "Edge"),
    ("EdgA/", "Edge"),
    ("OPR/", "Opera"),
    ("SamsungBrowser/", "Samsung Internet"),
    ("Firefox/", "Firefox"),
    ("FxiOS/", "Firefox"),
    ("Chrome/", "Chrome"),
    ("CriOS/", "Chrome"),
    ("Safari/", "Safari"),
];
/// Safari's version doesn't follow its name, where the version of its engine is.
const SAFARI_VERSION: &str = "Version/";
const SYSTEMS: [(&str, &str); 8] = [
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("CrOS", "ChromeOS"),
    ("FreeBSD", "FreeBSD"),
    ("Linux", "Linux"),
];

/// `Firefox 140, Linux`; `None` if one of the two isn't recognised. The version is left out where there is none.
pub(crate) fn name(user_agent: &str) -> Option<String> {
    if !user_agent.starts_with("Mozilla/5.0 (") {
        return None;
    }
    let find =
        |table: &[(&'static str, &'static str)]| table.iter().copied().find(|(sign, _)| user_agent.contains(sign));
    let ((sign, browser), (_, system)) = (find(&BROWSERS)?, find(&SYSTEMS)?);
    let sign = if browser == "Safari" { SAFARI_VERSION } else { sign };
    let after = user_agent.split_once(sign).map_or("", |(_, after)| after);
    let version = &after[..after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len())];
    // A client may write any number of digits there.
    let version = Some(version).filter(|digits| (1..=4).contains(&digits.len()));
    Some(match version {
        Some(version) => format!("{browser} {version}, {system}"),
        None => format!("{browser}, {system}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_are_told_apart() {
        const WEBKIT: &str = "AppleWebKit/537.36 (KHTML, like Gecko)";
        for (rest, expected) in [
            ("(X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox 140, Linux"),
            (&format!("(Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/140.0.0.0 Safari/537.36"), "Chrome 140, Windows"),
            (
                &format!("(Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/140.0 Safari/537.36 Edg/140.0"),
                "Edge 140, Windows",
            ),
            (&format!("(Linux; Android 10; K) {WEBKIT} Chrome/140.0.0.0 Mobile Safari/537.36"), "Chrome 140, Android"),
            (&format!("(Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Version/18.0 Safari/605.1.15"), "Safari 18, macOS"),
            (
                &format!("(iPhone; CPU iPhone OS 18_0 like Mac OS X) {WEBKIT} CriOS/140.0 Safari/604.1"),
                "Chrome 140, iPhone",
            ),
            (&format!("(X11; Linux x86_64) {WEBKIT} HeadlessChrome/140.0.0.0 Safari/537.36"), "Chrome 140, Linux"),
            // Without a version, or with one that is none.
            ("(X11; Linux x86_64) Firefox/", "Firefox, Linux"),
            ("(X11; Linux x86_64) Firefox/x", "Firefox, Linux"),
            ("(X11; Linux x86_64) Firefox/123456789", "Firefox, Linux"),
            (&format!("(iPad; CPU OS 18_0 like Mac OS X) {WEBKIT} Safari/604.1"), "Safari, iPad"),
        ] {
            assert_eq!(name(&format!("Mozilla/5.0 {rest}")).as_deref(), Some(expected));
        }
        for other in [
            "",
            "Chrome 140, Windows",
            "curl/8.5.0",
            "my Firefox/1 for Linux",
            "Mozilla/5.0 (X11; Haiku) Firefox/140.0",
        ] {
            assert_eq!(name(other), None, "{other}");
        }
    }
}
