//! Browser and system of a session, in two words, from what the browser said about itself (`User-Agent`).
//!
//! Browsers have frozen most of this text, and these few names are all that a person needs to tell devices apart. Crates
//! that know hundreds are either unmaintained (`woothee`) or bring thousands of regular expressions (`uaparser`). What
//! isn't recognised is shown as it was sent.

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

/// `Firefox, Linux`; `None` if one of the two isn't recognised.
pub(super) fn name(user_agent: &str) -> Option<String> {
    let find =
        |table: &[(&str, &'static str)]| table.iter().find(|(sign, _)| user_agent.contains(sign)).map(|row| row.1);
    if !user_agent.starts_with("Mozilla/5.0 (") {
        return None;
    }
    Some(format!("{}, {}", find(&BROWSERS)?, find(&SYSTEMS)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_are_told_apart() {
        const WEBKIT: &str = "AppleWebKit/537.36 (KHTML, like Gecko)";
        for (rest, expected) in [
            ("(X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox, Linux"),
            (&format!("(Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/140.0.0.0 Safari/537.36"), "Chrome, Windows"),
            (&format!("(Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/140.0 Safari/537.36 Edg/140.0"), "Edge, Windows"),
            (&format!("(Linux; Android 10; K) {WEBKIT} Chrome/140.0.0.0 Mobile Safari/537.36"), "Chrome, Android"),
            (&format!("(Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Version/18.0 Safari/605.1.15"), "Safari, macOS"),
            (
                &format!("(iPhone; CPU iPhone OS 18_0 like Mac OS X) {WEBKIT} CriOS/140.0 Safari/604.1"),
                "Chrome, iPhone",
            ),
            (&format!("(X11; Linux x86_64) {WEBKIT} HeadlessChrome/140.0.0.0 Safari/537.36"), "Chrome, Linux"),
        ] {
            assert_eq!(name(&format!("Mozilla/5.0 {rest}")).as_deref(), Some(expected));
        }
        for other in ["", "curl/8.5.0", "my Firefox/1 for Linux", "Mozilla/5.0 (X11; Haiku) Firefox/140.0"] {
            assert_eq!(name(other), None, "{other}");
        }
    }
}
