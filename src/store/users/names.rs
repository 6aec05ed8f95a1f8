//! E-mail addresses and usernames: when two spellings are the same name, and which usernames are tried if none is
//! given.
//!
//! One function, [`canonical`], decides it for registration, sign-in, import, the command line and the throttle: white
//! space around the name is dropped, then NFKC (UAX #15) and full case folding (Unicode 3.13, D146: compatibility
//! caseless matching), and the domain of an e-mail address by UTS 46. A name with invisible characters
//! (`Default_Ignorable_Code_Point`), which would look like another name, is refused, and so are code points that
//! Unicode hasn't assigned yet: how they fold may still change.
use std::borrow::Cow;

use icu_casemap::CaseMapper;
use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory};
use icu_properties::{CodePointMapData, CodePointSetData};
use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use unicode_normalization::UnicodeNormalization as _;
use uuid::Uuid;

/// The most code points of a username that is made from an e-mail address, including its number.
const USERNAME_MAX: usize = 64;
/// The most bytes of a domain as it was typed. (RFC 1035 §2.3.4 allows 255 in its ASCII form.)
const DOMAIN_LIMIT: usize = 1024;

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.message())]
pub(crate) enum RefusedName {
    /// A code point with `Default_Ignorable_Code_Point`: a zero-width joiner, a variation selector, a soft hyphen.
    Invisible,
    /// A code point that this release's Unicode data doesn't know.
    Unassigned,
    /// Not a domain by UTS 46: invalid Punycode, a label of more than 63 bytes, characters that no domain has.
    Domain,
}

impl RefusedName {
    /// What is wrong, worded to follow the name of the field.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::Invisible => "must not contain invisible characters",
            Self::Unassigned => "must not contain characters that Unicode has not assigned",
            Self::Domain => "must have a valid domain after the @",
        }
    }
}

/// A name as it is stored and shown: without white space around it, NFKC.
#[must_use]
pub(crate) fn written(name: &str) -> String {
    name.trim().nfkc().collect()
}

/// The one spelling of an e-mail address (if it contains `@`) or username: `Ada@BÜCHER.example` and
/// `ada@xn--bcher-kva.example` have the same. Its own canonical form is itself.
///
/// # Errors
///
/// [`RefusedName`]. No account created by this release has such a name.
pub(crate) fn canonical(name: &str) -> Result<String, RefusedName> {
    let name = written(name);
    let invisible = CodePointSetData::new::<DefaultIgnorableCodePoint>();
    let category = CodePointMapData::<GeneralCategory>::new();
    for c in name.chars().filter(|c| !c.is_ascii()) {
        if invisible.contains(c) {
            return Err(RefusedName::Invisible);
        }
        if category.get(c) == GeneralCategory::Unassigned {
            return Err(RefusedName::Unassigned);
        }
    }
    // The compatibility form of a spacing accent begins with a space.
    let name = name.trim();
    match name.rsplit_once('@') {
        Some((local, domain)) => Ok(format!("{}@{}", folded(local), ascii_domain(domain)?)),
        None => Ok(folded(name).into_owned()),
    }
}

/// A key for a name where no account is looked up, such as in the throttle: equal for all spellings of one name.
#[must_use]
pub(crate) fn login_key(name: &str) -> String {
    canonical(name).unwrap_or_else(|_| exact(name))
}

/// The key of a name in releases before canonical names: NFKC in lower case. Accounts without a canonical name are
/// found only by this key.
pub(super) fn exact(name: &str) -> String {
    // Lower-casing can leave the normal form: U+0130 becomes two code points.
    let key: String = written(name).to_lowercase().nfkc().collect();
    key.trim().to_owned()
}

/// The keys by which an account is found.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) exact: String,
    /// `None` for a name that is refused.
    pub(super) canonical: Option<String>,
}

impl Keys {
    pub(super) fn of(name: &str) -> Self {
        Self { exact: exact(name), canonical: canonical(name).ok() }
    }

    /// Whether the name is an e-mail address. Usernames have no `@`.
    pub(super) fn is_email(&self) -> bool {
        self.exact.contains('@')
    }
}

/// Unicode 3.13, D146, composed.
fn folded(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return if text.bytes().any(|b| b.is_ascii_uppercase()) {
            text.to_ascii_lowercase().into()
        } else {
            text.into()
        };
    }
    let fold = CaseMapper::new();
    let once = fold.fold_string(&text.nfd().collect::<String>()).nfkd().collect::<String>();
    fold.fold_string(&once).nfkc().collect::<String>().into()
}

fn ascii_domain(domain: &str) -> Result<Cow<'_, str>, RefusedName> {
    if domain.len() > DOMAIN_LIMIT {
        return Err(RefusedName::Domain);
    }
    Uts46::new()
        .to_ascii(domain.as_bytes(), AsciiDenyList::URL, Hyphens::Allow, DnsLength::Verify)
        .map_err(|_| RefusedName::Domain)
}

/// Usernames for an e-mail address, to be tried one after the other: its local part alone, then with the numbers 2 to
/// 9, then with random numbers of growing length. With consecutive numbers, a popular name (`info`) would take more
/// tries each time.
pub(super) fn free_usernames(email: &str) -> impl Iterator<Item = String> {
    let base = username_base(email);
    let numbers = (2..=9).chain([4, 4, 4, 6, 6, 8, 8, 8].map(|digits| fastrand::u32(10..10_u32.pow(digits))));
    std::iter::once(String::new()).chain(numbers.map(|number| number.to_string())).map(move |suffix| {
        let kept: String = base.chars().take(USERNAME_MAX - suffix.len()).collect();
        kept + &suffix
    })
}

/// The local part of `email`. Characters that are allowed only in a quoted one become `-` (RFC 5322 §3.2.3: `atext` and
/// `.` are kept).
fn username_base(email: &str) -> String {
    let local = email.rsplit_once('@').map_or(email, |(local, _)| local);
    let kept = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
    if local.is_empty() { "user".into() } else { local.chars().map(|c| if kept(c) { c } else { '-' }).collect() }
}

/// An e-mail address or username without canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unusual {
    /// The account's id.
    pub user_id: Uuid,
    /// Which of the two: `email` or `username`.
    pub field: &'static str,
    /// Why it has none.
    pub why: Why,
}

/// Why a name has no canonical form in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// By the present rule, another account has the same name.
    SharedWith(Uuid),
    /// The present rule refuses it.
    Refused(RefusedName),
}

/// Names without canonical form, of accounts that older releases made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UnusualNames {
    /// How many of them `authfleet migrate` would fill in.
    pub pending: u64,
    /// How many share their name with another account.
    pub shared: u64,
    /// How many the present rule refuses.
    pub refused: u64,
    /// The first of those that are shared or refused.
    pub first: Vec<Unusual>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spellings_of_one_name_have_one_canonical_form() {
        for (canonical_form, others) in [
            (
                "ada@example.org",
                &["ada@example.org ", "\u{a0}ADA@Example.ORG\r\n", "ａｄａ＠ｅｘａｍｐｌｅ．ｏｒｇ"][..],
            ),
            ("u@xn--bcher-kva.example", &["u@bücher.example", "U@BÜCHER.example", "u@XN--bcher-KVA.example"]),
            ("σίσυφοσ@example.org", &["ΣΊΣΥΦΟΣ@example.org", "σίσυφος@example.org"]),
            ("strasse", &["Straße", "STRASSE", "STRAẞE"]),
            ("ångström", &["ÅNGSTRÖM", "a\u{30a}ngstro\u{308}m", "\u{212b}ngström"]),
            ("fi", &["ﬁ", "FI"]),
            // Cherokee folds to upper case; Greek with iota subscript in any order of its marks.
            ("Ꭰ", &["ꭰ"]),
            ("ᾳ\u{301}", &["α\u{345}\u{301}", "α\u{301}\u{345}"]),
        ] {
            let canonical_form = canonical(canonical_form).expect("a name");
            for other in others {
                assert_eq!(canonical(other).as_deref(), Ok(canonical_form.as_str()), "{other}");
                assert_eq!(login_key(other), canonical_form);
            }
        }
        // Different names: German domains with ß and ss differ, and so do ı and i.
        for (one, other) in [("u@straße.example", "u@strasse.example"), ("ılgaz", "ilgaz"), ("ada", "a.da")] {
            assert_ne!(canonical(one), canonical(other));
        }
    }

    #[test]
    fn what_nobody_sees_is_refused() {
        for c in [
            '\u{fe0f}',
            '\u{34f}',
            '\u{1160}',
            '\u{e0061}',
            '\u{ad}',
            '\u{200b}',
            '\u{200d}',
            '\u{202e}',
            '\u{2066}',
            '\u{feff}',
            '\u{115f}',
            '\u{3164}',
            '\u{ffa0}',
            '\u{180e}',
            '\u{1d173}',
            '\u{17b4}',
            '\u{e01ef}',
        ] {
            for name in [format!("ada{c}"), format!("{c}ada"), format!("a{c}da@example.org"), format!("a@e{c}x.org")] {
                assert_eq!(canonical(&name), Err(RefusedName::Invisible), "{name:?}");
            }
        }
        assert_eq!(canonical("ada\u{378}"), Err(RefusedName::Unassigned));
        for domain in
            ["xn--a", "xn--bcher-kva\u{df}\u{df}", "a..b", "", "example.org.", &"a".repeat(64), &"ü".repeat(600)]
        {
            assert_eq!(canonical(&format!("ada@{domain}")), Err(RefusedName::Domain), "{domain}");
        }
    }

    /// Covers every code point that Unicode has assigned, alone and beside others.
    #[test]
    fn the_canonical_form_is_its_own_and_that_of_the_lower_case() {
        for c in '\0'..='\u{3ffff}' {
            for name in [format!("{c}"), format!("a{c}\u{301}α\u{345}{c}"), format!("a@{c}b.org")] {
                if let Ok(form) = canonical(&name) {
                    assert_eq!(canonical(&form).as_deref(), Ok(form.as_str()), "{name:?}");
                    // The lunate sigma: NFKC makes its small form a final one, which in a domain is a letter of its
                    // own.
                    if c != '\u{3f9}' {
                        assert_eq!(canonical(&name.to_lowercase()).as_deref(), Ok(form.as_str()), "{name:?}");
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_has_at_most_one_canonical_form(text in "\\PC{0,12}(@\\PC{1,12})?") {
            if let Ok(form) = canonical(&text) {
                for other in [form.clone(), written(&text), format!(" {text}\n")] {
                    prop_assert_eq!(canonical(&other), Ok(form.clone()));
                }
            }
            prop_assert_eq!(login_key(&login_key(&text)), login_key(&text));
        }

        /// Any mix of upper and lower case, for text whose upper case has the same letters.
        #[test]
        fn case_and_form_make_no_difference(text in "[a-zäöüßéèçñα-ωάέήίόύώа-яё0-9._-]{1,16}") {
            let form = canonical(&text);
            prop_assert_eq!(canonical(&text.to_uppercase()), form.clone());
            prop_assert_eq!(canonical(&text.nfd().collect::<String>()), form.clone());
            prop_assert_eq!(canonical(&text.to_uppercase().nfkd().collect::<String>()), form);
        }
    }
}
