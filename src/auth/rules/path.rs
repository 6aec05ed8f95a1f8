//! Paths, in the one form in which rules compare them.
//!
//! A proxy, authfleet and an application read a path each in its own way. A rule about `/admin` must not be passed by a
//! path that authfleet reads as something else and the application as `/admin`. So a path is brought into one form, and
//! where programs are known to differ it is refused rather than guessed:
//!
//! | in the path | read as |
//! | --- | --- |
//! | `%41` (RFC 3986, section 2.4) | decoded, once |
//! | `%2541`, which some decode twice | refused |
//! | `%`, `%4`, `%zz` | refused |
//! | `%2f`, `%5c`, `\` | refused: some take them for a slash |
//! | `;`, `%3b` | refused: some cut off what follows |
//! | a segment `.` or `..`, encoded or not | refused: browsers never send one |
//! | `#`, `?` encoded or not, control characters, NUL | refused |
//! | bytes that aren't UTF-8 once decoded, overlong forms among them | refused |
//! | `//` | both as it stands and as one slash: rules must decide alike |
//! | upper and lower case | both as it stands and in lower case: rules must decide alike |
//!
//! [`super::Rules`] asks for this form only if a rule about paths has to be decided, so a host whose rules name no
//! paths takes any path.

/// Why a path is in no form that every program reads alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ambiguous {
    #[error("doesn't begin with a slash")]
    NotAbsolute,
    #[error("has a percent sign that begins no encoded byte")]
    BadEncoding,
    #[error("is encoded twice")]
    EncodedTwice,
    #[error("has an encoded slash, or a backslash")]
    Slash,
    #[error("has a semicolon")]
    Semicolon,
    #[error("has a segment of dots")]
    Dots,
    #[error("has a character that doesn't belong in a path")]
    Character,
    #[error("is not UTF-8")]
    NotUtf8,
    #[error("is read in different ways by rules that decide differently")]
    Readings,
}

/// The ways in which programs read a path. Rules must decide alike about all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Readings(Vec<Reading>);

/// One way to read a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    AsWritten(String),
    /// By a program for which `/Admin` and `/admin` are the same.
    InLowerCase(String),
}

impl Readings {
    /// Reads the path of a request as it was sent, without its query.
    pub(crate) fn of(raw: &str) -> Result<Self, Ambiguous> {
        let plain = decode(raw)?;
        let merged = Some(merge_slashes(&plain)).filter(|merged| *merged != plain);
        let all = std::iter::once(plain).chain(merged);
        Ok(Self(all.flat_map(|path| [Reading::InLowerCase(path.to_lowercase()), Reading::AsWritten(path)]).collect()))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Reading> {
        self.0.iter()
    }
}

fn decode(raw: &str) -> Result<String, Ambiguous> {
    if !raw.starts_with('/') {
        return Err(Ambiguous::NotAbsolute);
    }
    let raw = raw.as_bytes();
    let mut bytes = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        let byte = match raw[at] {
            b'%' => {
                let byte = encoded(raw, at).ok_or(Ambiguous::BadEncoding)?;
                at += 2;
                match byte {
                    b'/' => return Err(Ambiguous::Slash),
                    b'%' if is_two_digits(&raw[at + 1..]) => return Err(Ambiguous::EncodedTwice),
                    b'?' | b'#' => return Err(Ambiguous::Character),
                    byte => byte,
                }
            }
            // An octet beyond ASCII must be encoded (RFC 3986, section 2).
            b'?' | b'#' | 0x80.. => return Err(Ambiguous::Character),
            byte => byte,
        };
        match byte {
            b'\\' => return Err(Ambiguous::Slash),
            b';' => return Err(Ambiguous::Semicolon),
            0..0x20 | 0x7f => return Err(Ambiguous::Character),
            _ => bytes.push(byte),
        }
        at += 1;
    }
    let text = String::from_utf8(bytes).map_err(|_| Ambiguous::NotUtf8)?;
    if text.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(Ambiguous::Dots);
    }
    Ok(text)
}

/// The byte that `%XX` at this place stands for.
fn encoded(raw: &[u8], at: usize) -> Option<u8> {
    let digit = |at: usize| raw.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    u8::try_from(digit(at + 1)? * 16 + digit(at + 2)?).ok()
}

fn is_two_digits(rest: &[u8]) -> bool {
    rest.len() >= 2 && rest[..2].iter().all(u8::is_ascii_hexdigit)
}

fn merge_slashes(path: &str) -> String {
    let mut merged = String::with_capacity(path.len());
    for c in path.chars() {
        if !(c == '/' && merged.ends_with('/')) {
            merged.push(c);
        }
    }
    merged
}

/// Which paths a rule is about: `/admin` (with or without a slash at the end), or `/admin/*` (that and everything below
/// it). A `*` elsewhere stands for one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathPattern {
    segments: Vec<Segment>,
    /// The same in lower case.
    lower: Vec<Segment>,
    /// Whether everything below is meant too.
    is_open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Any,
    Text(String),
}

impl Segment {
    fn matches(&self, part: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Text(known) => known == part,
        }
    }

    fn to_lowercase(&self) -> Self {
        match self {
            Self::Any => Self::Any,
            Self::Text(text) => Self::Text(text.to_lowercase()),
        }
    }

    fn covers(&self, other: &Self) -> bool {
        *self == Self::Any || self == other
    }
}

impl PathPattern {
    /// Reads a pattern, which is written decoded. The error says what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix('/').ok_or("must begin with a slash")?;
        if text.contains(['%', '?', '#', ';', '\\']) || text.chars().any(char::is_control) {
            return Err("must be a path as people read it: not encoded, without ? # ; and backslash".to_owned());
        }
        let mut parts: Vec<_> = rest.split('/').collect();
        // A slash at the end says nothing: both forms are meant.
        if parts.last() == Some(&"") {
            parts.pop();
        }
        let is_open = parts.last() == Some(&"*");
        if is_open {
            parts.pop();
        }
        let segment = |part: &str| match part {
            "" => Err("must not have an empty segment".to_owned()),
            "." | ".." => Err("must not have a segment of dots".to_owned()),
            "*" => Ok(Segment::Any),
            part if part.contains('*') => Err("may have * for a whole segment only".to_owned()),
            part => Ok(Segment::Text(part.to_owned())),
        };
        let segments: Vec<_> = parts.into_iter().map(segment).collect::<Result<_, _>>()?;
        let lower = segments.iter().map(Segment::to_lowercase).collect();
        Ok(Self { segments, lower, is_open })
    }

    /// Whether the pattern is about a path, read in this way.
    pub(crate) fn matches(&self, reading: &Reading) -> bool {
        let (segments, path) = match reading {
            Reading::AsWritten(path) => (&self.segments, path),
            Reading::InLowerCase(path) => (&self.lower, path),
        };
        let path = path.strip_prefix('/').unwrap_or(path);
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut parts = if path.is_empty() { None } else { Some(path.split('/')) }.into_iter().flatten();
        let begins_alike = segments.iter().all(|segment| parts.next().is_some_and(|part| segment.matches(part)));
        begins_alike && (self.is_open || parts.next().is_none())
    }

    /// Whether every path that `other` is about is one that this pattern is about.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let fits = self.segments.len() <= other.segments.len()
            && self.segments.iter().zip(&other.segments).all(|(mine, others)| mine.covers(others));
        fits && (self.is_open || (!other.is_open && self.segments.len() == other.segments.len()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn readings(raw: &str) -> Result<Vec<String>, Ambiguous> {
        let text = |reading: &Reading| match reading {
            Reading::AsWritten(path) => path.clone(),
            Reading::InLowerCase(path) => format!("({path})"),
        };
        Readings::of(raw).map(|readings| readings.iter().map(text).collect())
    }

    /// Each kind of path that two programs are known to read differently, or that has been used to pass a rule
    /// (CVE-2019-9901: Envoy; GHSA-pxq7 and GHSA-7rh7: oauth2-proxy).
    #[test]
    fn paths_have_one_form_or_none() {
        for (raw, form) in [
            ("/", Ok("/")),
            ("/admin", Ok("/admin")),
            ("/a%64min", Ok("/admin")),
            ("/caf%C3%A9", Ok("/café")),
            ("/a+b%20c", Ok("/a+b c")),
            ("/100%25", Ok("/100%")),
            ("/100%25%20off", Ok("/100% off")),
            ("/.well-known/x", Ok("/.well-known/x")),
            ("/...", Ok("/...")),
            ("/~ada/@b:c=d,e", Ok("/~ada/@b:c=d,e")),
            ("", Err(Ambiguous::NotAbsolute)),
            ("*", Err(Ambiguous::NotAbsolute)),
            ("http://evil.example/", Err(Ambiguous::NotAbsolute)),
            ("/%", Err(Ambiguous::BadEncoding)),
            ("/%4", Err(Ambiguous::BadEncoding)),
            ("/%zz", Err(Ambiguous::BadEncoding)),
            ("/%+1", Err(Ambiguous::BadEncoding)),
            ("/%2561dmin", Err(Ambiguous::EncodedTwice)),
            ("/%252fadmin", Err(Ambiguous::EncodedTwice)),
            ("/public%2f..%2fadmin", Err(Ambiguous::Slash)),
            ("/public%2Fadmin", Err(Ambiguous::Slash)),
            ("/public\\..\\admin", Err(Ambiguous::Slash)),
            ("/public%5cadmin", Err(Ambiguous::Slash)),
            ("/public/..;/admin", Err(Ambiguous::Semicolon)),
            ("/admin;jsessionid=1", Err(Ambiguous::Semicolon)),
            ("/admin%3b", Err(Ambiguous::Semicolon)),
            ("/public/../admin", Err(Ambiguous::Dots)),
            ("/admin/./x", Err(Ambiguous::Dots)),
            ("/admin/..", Err(Ambiguous::Dots)),
            ("/public/%2e%2e/admin", Err(Ambiguous::Dots)),
            ("/public/.%2E/admin", Err(Ambiguous::Dots)),
            ("/admin#public", Err(Ambiguous::Character)),
            ("/admin%23", Err(Ambiguous::Character)),
            ("/admin%3fx", Err(Ambiguous::Character)),
            ("/admin?x", Err(Ambiguous::Character)),
            ("/admin%00", Err(Ambiguous::Character)),
            ("/admin%0a", Err(Ambiguous::Character)),
            ("/admin\u{7f}", Err(Ambiguous::Character)),
            ("/caf\u{e9}", Err(Ambiguous::Character)),
            ("/%c0%af", Err(Ambiguous::NotUtf8)),
            ("/%e0%80%af", Err(Ambiguous::NotUtf8)),
            ("/%ff", Err(Ambiguous::NotUtf8)),
            ("/%ed%a0%80", Err(Ambiguous::NotUtf8)),
        ] {
            assert_eq!(readings(raw).map(|all| all[1].clone()), form.map(str::to_owned), "{raw}");
        }
    }

    #[test]
    fn doubled_slashes_and_case_are_read_both_ways() {
        let readings = |raw| readings(raw).expect("a path");
        assert_eq!(readings("/a/b"), ["(/a/b)", "/a/b"]);
        assert_eq!(readings("//a///b/"), ["(//a///b/)", "//a///b/", "(/a/b/)", "/a/b/"]);
        assert_eq!(readings("/A"), ["(/a)", "/A"]);
    }

    #[test]
    fn patterns() {
        let matches = |pattern: &str, path: &str| {
            PathPattern::parse(pattern).expect(pattern).matches(&Reading::AsWritten(path.to_owned()))
        };
        let insensitive = PathPattern::parse("/Admin").expect("a pattern");
        assert!(insensitive.matches(&Reading::InLowerCase("/admin".to_owned())));
        for (pattern, path) in [
            ("/", "/"),
            ("/*", "/"),
            ("/*", "/a/b"),
            ("/admin", "/admin"),
            ("/admin", "/admin/"),
            ("/admin/", "/admin"),
            ("/admin/*", "/admin"),
            ("/admin/*", "/admin/"),
            ("/admin/*", "/admin/a/b"),
            ("/u/*/x", "/u/ada/x"),
            ("/u/*/x/*", "/u/ada/x/y"),
            ("/café", "/café"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("/", "/a"),
            ("/admin", "/admin/a"),
            ("/admin", "/administrator"),
            ("/admin/*", "/administrator"),
            ("/admin", "/Admin"),
            ("/u/*/x", "/u/x"),
            ("/u/*/x", "/u/a/b/x"),
            ("/admin", "//admin"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
        for bad in ["", "admin", "/a//b", "/a/../b", "/a*", "/%41", "/a?b", "/a;b", "/a\\b", "//", "/a\n"] {
            assert!(PathPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pattern_covers_those_that_are_about_no_other_path() {
        let covers = |a: &str, b: &str| PathPattern::parse(a).expect(a).covers(&PathPattern::parse(b).expect(b));
        for (a, b) in [("/*", "/a/*"), ("/*", "/"), ("/a/*", "/a"), ("/a/*", "/a/b/*"), ("/*/b", "/a/b"), ("/a", "/a/")]
        {
            assert!(covers(a, b), "{a} {b}");
        }
        for (a, b) in [("/a", "/a/*"), ("/a/*", "/*"), ("/a/b", "/*/b"), ("/a/*", "/b")] {
            assert!(!covers(a, b), "{a} {b}");
        }
    }

    /// Paths made of the pieces that programs read differently.
    fn hostile_path() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("/"),
            Just("//"),
            Just("admin"),
            Just("ADMIN"),
            Just("public"),
            Just("."),
            Just(".."),
            Just("%2e"),
            Just("%2f"),
            Just("%5c"),
            Just("\\"),
            Just(";"),
            Just("%3b"),
            Just("%25"),
            Just("%61"),
            Just("%41"),
            Just("%"),
            Just("%00"),
            Just("#"),
            Just("%c0%af"),
            Just("x"),
        ];
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    /// What programs make of a path: any of these steps, in any order, more than once.
    fn as_others_read_it(raw: &str, steps: &[u8]) -> Option<String> {
        let mut path = raw.to_owned();
        for step in steps {
            path = match step {
                0 => percent_encoding::percent_decode_str(&path).decode_utf8().ok()?.into_owned(),
                1 => merge_slashes(&path),
                2 => path.replace('\\', "/"),
                3 => {
                    path.split('/').map(|part| part.split(';').next().unwrap_or_default()).collect::<Vec<_>>().join("/")
                }
                4 => without_dots(&path),
                5 => path.to_lowercase(),
                6 => path.split(['#', '?', '\0']).next().unwrap_or_default().to_owned(),
                _ => path,
            };
        }
        Some(path)
    }

    /// RFC 3986, section 5.2.4.
    fn without_dots(path: &str) -> String {
        let mut kept: Vec<&str> = Vec::new();
        for segment in path.split('/') {
            match segment {
                "." => {}
                ".." => drop(kept.pop()),
                segment => kept.push(segment),
            }
        }
        format!("/{}", kept.join("/").trim_start_matches('/'))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Two programs that read a path differently are never both right: if some reading is under /admin, then one of
        /// ours is, or the path is refused.
        #[test]
        fn what_two_programs_read_differently_is_refused(raw in hostile_path(), steps in proptest::collection::vec(0..7_u8, 0..5)) {
            let admin = PathPattern::parse("/admin/*").expect("a pattern");
            let Some(theirs) = as_others_read_it(&raw, &steps) else { return Ok(()) };
            if admin.matches(&Reading::AsWritten(theirs.clone())) && let Ok(readings) = Readings::of(&raw) {
                prop_assert!(
                    readings.iter().any(|reading| admin.matches(reading)),
                    "{raw} read as {theirs}, here as {readings:?}"
                );
            }
        }

        #[test]
        fn no_path_panics(raw in ".{0,60}") {
            if let Ok(readings) = Readings::of(&raw) {
                for Reading::AsWritten(path) | Reading::InLowerCase(path) in readings.iter() {
                    prop_assert!(path.starts_with('/') && !path.contains(['\\', ';', '\0']));
                }
            }
        }
    }
}
