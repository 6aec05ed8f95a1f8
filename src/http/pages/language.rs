//! The texts of the pages: one file per language, and the choice by `Accept-Language` (RFC 9110, section 12.5.4).
use std::borrow::Cow;
use std::sync::LazyLock;

use http::HeaderMap;
use http::header::ACCEPT_LANGUAGE;
use serde::Deserialize;

use crate::auth::{Mistake, PolicyViolation, RefusedName};

/// Every text, in one language. A text that a file lacks, or has too much, fails the test of this module.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Texts {
    pub(super) language: String,
    pub(super) time: String,
    pub(super) sign_in: String,
    pub(super) sign_out: String,
    pub(super) sign_out_what: String,
    pub(super) register: String,
    pub(super) account: String,
    pub(super) identifier: String,
    pub(super) email: String,
    pub(super) username: String,
    pub(super) username_optional: String,
    pub(super) password: String,
    pub(super) current_password: String,
    pub(super) new_password: String,
    pub(super) password_hint: String,
    pub(super) no_account: String,
    pub(super) have_account: String,
    pub(super) going_to: String,
    pub(super) made_by: String,
    pub(super) answered_by: String,
    pub(super) replicas_seen: String,
    pub(super) sessions: String,
    pub(super) this_session: String,
    pub(super) unknown_device: String,
    pub(super) address: String,
    pub(super) made: String,
    pub(super) last_seen: String,
    pub(super) applications: String,
    pub(super) end_session: String,
    pub(super) end_others: String,
    pub(super) change_password: String,
    pub(super) change_password_what: String,
    pub(super) delete_account: String,
    pub(super) delete_account_what: String,
    pub(super) notice_registered: String,
    pub(super) notice_signed_out: String,
    pub(super) notice_deleted: String,
    pub(super) notice_ended: String,
    pub(super) notice_others_ended: String,
    pub(super) notice_password: String,
    pub(super) failed: String,
    pub(super) session_invalid: String,
    pub(super) invalid_credentials: String,
    pub(super) wrong_password: String,
    pub(super) email_taken: String,
    pub(super) username_taken: String,
    pub(super) missing: String,
    pub(super) email_wrong: String,
    pub(super) email_too_long: String,
    pub(super) email_domain: String,
    pub(super) username_too_long: String,
    pub(super) username_is_email: String,
    pub(super) white_space: String,
    pub(super) invisible: String,
    pub(super) unassigned: String,
    pub(super) password_too_short: String,
    pub(super) password_too_long: String,
    pub(super) password_contextual: String,
    pub(super) password_repetitive: String,
    pub(super) password_common: String,
    pub(super) validation_failed: String,
    pub(super) one_second: String,
    pub(super) seconds: String,
    pub(super) minutes: String,
    pub(super) throttled: String,
    pub(super) overloaded: String,
    pub(super) store_unavailable: String,
    pub(super) session_not_found: String,
    pub(super) cross_site: String,
    pub(super) registration_closed: String,
    pub(super) internal: String,
    pub(super) unexpected: String,
}

impl Texts {
    /// How long to wait. Minutes are rounded up, so that nobody comes back too early.
    pub(super) fn wait(&self, seconds: u64) -> String {
        match seconds {
            0 | 1 => self.one_second.clone(),
            2..120 => self.seconds.replace("{seconds}", &seconds.to_string()),
            _ => self.minutes.replace("{minutes}", &seconds.div_ceil(60).to_string()),
        }
    }

    /// What to say beside a field.
    pub(super) fn mistake(&'static self, mistake: Mistake) -> Cow<'static, str> {
        let text = match mistake {
            Mistake::Empty => &self.missing,
            Mistake::NoEmail => &self.email_wrong,
            Mistake::EmailTooLong => &self.email_too_long,
            Mistake::UsernameTooLong => &self.username_too_long,
            Mistake::UsernameIsEmail => &self.username_is_email,
            Mistake::WhiteSpace => &self.white_space,
            Mistake::Name(RefusedName::Domain) => &self.email_domain,
            Mistake::Name(RefusedName::Invisible) => &self.invisible,
            Mistake::Name(RefusedName::Unassigned) => &self.unassigned,
            Mistake::Password(PolicyViolation::TooShort { min }) => {
                return Cow::Owned(self.password_too_short.replace("{min}", &min.to_string()));
            }
            Mistake::Password(PolicyViolation::TooLong) => &self.password_too_long,
            Mistake::Password(PolicyViolation::Contextual) => &self.password_contextual,
            Mistake::Password(PolicyViolation::Repetitive) => &self.password_repetitive,
            Mistake::Password(PolicyViolation::Common) => &self.password_common,
        };
        Cow::Borrowed(text)
    }
}

const SOURCES: [&str; 2] = [include_str!("languages/en.toml"), include_str!("languages/de.toml")];
/// The first one is for readers of any other language.
static LANGUAGES: LazyLock<[Texts; 2]> =
    LazyLock::new(|| SOURCES.map(|text| toml::from_str(text).expect("a test reads the same files")));

/// The language that the reader likes best among those that there are.
pub(super) fn of(headers: &HeaderMap) -> &'static Texts {
    let lines = headers.get_all(ACCEPT_LANGUAGE).iter().filter_map(|value| value.to_str().ok());
    let mut best = (&LANGUAGES[0], 0.0);
    for entry in lines.flat_map(|line| line.split(',')) {
        let (range, quality) = entry.split_once(';').map_or((entry, 1.0), |(range, weight)| {
            let weight = weight.trim().strip_prefix("q=").and_then(|text| text.parse::<f32>().ok());
            (range, weight.unwrap_or(0.0))
        });
        let primary = range.trim().split('-').next().unwrap_or_default();
        let found = LANGUAGES.iter().find(|texts| texts.language.eq_ignore_ascii_case(primary));
        if let Some(texts) = found.filter(|_| quality > best.1) {
            best = (texts, quality);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_has_every_text_and_the_same_placeholders() {
        let tables = SOURCES.map(|text| text.parse::<toml::Table>().expect("TOML"));
        for (text, table) in SOURCES.iter().zip(&tables) {
            toml::from_str::<Texts>(text).unwrap_or_else(|error| panic!("{error}"));
            for (name, value) in table {
                let placeholders = |table: &toml::Table| {
                    let text = table[name].as_str().expect("a text").to_owned();
                    let known = ["{wait}", "{seconds}", "{minutes}", "{min}"].map(|known| text.matches(known).count());
                    assert_eq!(
                        known.iter().sum::<usize>(),
                        text.matches('{').count(),
                        "{name}: an unknown placeholder"
                    );
                    known
                };
                assert_eq!(placeholders(table), placeholders(&tables[0]), "{name}");
                assert!(value.as_str().is_some_and(|text| !text.trim().is_empty()), "{name}");
            }
        }
    }

    #[test]
    fn waiting_is_told_in_seconds_or_minutes() {
        let texts = of(&HeaderMap::new());
        for (seconds, expected) in [(1, "1 second"), (2, "2 seconds"), (119, "119 seconds"), (121, "3 minutes")] {
            assert_eq!(texts.wait(seconds), expected);
        }
    }

    #[test]
    fn the_reader_gets_the_best_language_that_there_is() {
        let language = |accepted: &'static str| {
            let headers = HeaderMap::from_iter([(ACCEPT_LANGUAGE, http::HeaderValue::from_static(accepted))]);
            of(&headers).language.as_str()
        };
        for german in ["de", "de-AT,en;q=0.9", "fr, DE;q=0.5, en;q=0.4", "en;q=0.1, de"] {
            assert_eq!(language(german), "de", "{german}");
        }
        for english in ["", "fr", "en-GB, de;q=0.9", "de;q=0", "de;q=x", "*", ";;,,q=1"] {
            assert_eq!(language(english), "en", "{english}");
        }
    }
}
