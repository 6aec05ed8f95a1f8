//! Which passwords may be chosen. Applies when one is set, never when one is verified.
use std::cmp::Ordering;

use secrecy::ExposeSecret as _;
use unicode_normalization::UnicodeNormalization as _;

use super::normalize;
use crate::config::PasswordConfig;

/// Code points that a password may have, after NFKC. ASVS 5.0 6.2.9 asks for at least 64.
pub(super) const MAX_LENGTH: usize = 128;

/// Words that are about this service rather than about the user (ASVS 5.0 6.1.2).
const SERVICE_WORDS: &[&str] = &["authfleet", "auth-fleet", "auth fleet"];

/// 30 000 passwords from breaches, lower case, ASCII, sorted by byte, one per line. It's searched in place, so it costs
/// no memory until it's used. It is the list of the crate zxcvbn, whose estimate costs up to 0.4 s for 60 hostile
/// characters, and 8 MB for its tables.
static COMMON: &str = include_str!("common.txt");

/// Rows and diagonals of keyboards. No stretch of one, in either direction, may be a password.
const KEYBOARD_RUNS: &[&str] = &[
    "1234567890",
    "qwertyuiopasdfghjklzxcvbnm",
    "qwertzuiopasdfghjklyxcvbnm",
    "azertyuiopqsdfghjklmwxcvbn",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p",
    "qazwsxedcrfvtgbyhnujmikolp",
    "1q2w3e4r5t6y7u8i9o0p",
];

/// Why a password was refused. The messages are for the person who chose the password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PolicyViolation {
    #[error("must have at least {min} characters")]
    TooShort { min: usize },
    #[error("must have at most {MAX_LENGTH} characters")]
    TooLong,
    /// The e-mail, a part of it, the username or the service's name.
    #[error("must not be the e-mail address, the username or the name of this service")]
    Contextual,
    /// One character or a few over and over, an alphabetical or numerical sequence, or neighbouring keys.
    #[error("must not be a repetition, a sequence or a run of neighbouring keys")]
    Repetitive,
    #[error("must not be one of the most common passwords")]
    Common,
}

/// The rules for new passwords: length and a blocklist; no composition rules (ASVS 5.0 6.2.5).
#[derive(Clone, Debug)]
pub(crate) struct PasswordPolicy {
    min_length: usize,
    blocklist: bool,
    /// `BRAND_NAME`, which users know this service by.
    brand: String,
}

impl PasswordPolicy {
    pub(crate) fn new(config: &PasswordConfig, brand: &str) -> Self {
        Self { min_length: config.min_length, blocklist: config.blocklist, brand: brand.to_owned() }
    }

    /// The shortest password, in characters.
    pub(crate) fn min_length(&self) -> usize {
        self.min_length
    }

    /// Checks a password as typed. `context` is what an attacker knows about the user: e-mail address, username.
    ///
    /// The blocklist compares whole passwords regardless of case, as NIST SP 800-63B-4 §3.1.1.2 asks, not substrings.
    ///
    /// # Errors
    ///
    /// Every rule that the password breaks, but of the blocklist's three kinds only the one that explains most.
    pub(crate) fn check(&self, password: &str, context: &[&str]) -> Result<(), Vec<PolicyViolation>> {
        let password = normalize(password);
        let password = password.expose_secret();
        let length = password.chars().count();
        let mut violations = Vec::new();
        if length < self.min_length {
            violations.push(PolicyViolation::TooShort { min: self.min_length });
        }
        if length > MAX_LENGTH {
            // No list has anything as long, and anybody can send such a text, so it gets no more work.
            return Err(vec![PolicyViolation::TooLong]);
        }
        if self.blocklist {
            violations.extend(self.blocked(password, context));
        }
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }

    fn blocked(&self, password: &str, context: &[&str]) -> Option<PolicyViolation> {
        let lower = password.to_lowercase();
        let unit = period(&lower);
        let words: Vec<String> = context.iter().copied().chain([&*self.brand]).flat_map(context_words).collect();
        // A blocked password written twice is no better.
        let blocked = |is_blocked: &dyn Fn(&str) -> bool| is_blocked(&lower) || is_blocked(unit);
        if blocked(&|word| SERVICE_WORDS.contains(&word) || words.iter().any(|own| own == word)) {
            Some(PolicyViolation::Contextual)
        } else if (unit.len() < lower.len() && unit.chars().count() < self.min_length) || blocked(&is_run) {
            Some(PolicyViolation::Repetitive)
        } else if blocked(&is_common) {
            Some(PolicyViolation::Common)
        } else {
            None
        }
    }
}

/// The words of `text`, an e-mail address or a username: itself, and of an address both sides of the `@` and the
/// domain's first label. Words of fewer than four characters are left out, because no password is as short.
fn context_words(text: &str) -> impl Iterator<Item = String> {
    let text: String = text.nfkc().flat_map(char::to_lowercase).collect();
    let parts = match text.rsplit_once('@') {
        Some((local, domain)) => {
            let label = domain.split('.').next().unwrap_or_default().to_owned();
            let untagged = local.split('+').next().unwrap_or_default().to_owned();
            vec![local.to_owned(), untagged, domain.to_owned(), label]
        }
        None => Vec::new(),
    };
    std::iter::once(text).chain(parts).filter(|word| word.chars().count() >= 4)
}

/// The shortest text that gives `text` when it's repeated. That is `text` itself if it isn't a repetition.
fn period(text: &str) -> &str {
    let ends = text.char_indices().map(|(at, _)| at).skip(1).take_while(|at| at * 2 <= text.len());
    ends.map(|end| &text[..end])
        .find(|unit| text.len().is_multiple_of(unit.len()) && unit.repeat(text.len() / unit.len()) == text)
        .unwrap_or(text)
}

/// Whether `text` consists of consecutive code points, up or down, or is a stretch of a keyboard row.
fn is_run(text: &str) -> bool {
    let codes: Vec<i64> = text.chars().map(|c| i64::from(u32::from(c))).collect();
    if codes.len() < 3 {
        return false;
    }
    let step = codes[1] - codes[0];
    if step.abs() == 1 && codes.windows(2).all(|pair| pair[1] - pair[0] == step) {
        return true;
    }
    let reversed: String = text.chars().rev().collect();
    KEYBOARD_RUNS.iter().any(|row| row.contains(text) || row.contains(&reversed))
}

/// Searches the lines of [`COMMON`], by bisection.
fn is_common(word: &str) -> bool {
    let (list, word) = (COMMON.as_bytes(), word.as_bytes());
    let newline = |byte: &u8| *byte == b'\n';
    let (mut low, mut high) = (0, list.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let start = list[low..middle].iter().rposition(newline).map_or(low, |at| low + at + 1);
        let end = list[middle..].iter().position(newline).map_or(list.len(), |at| middle + at);
        match list[start..end].cmp(word) {
            Ordering::Less => low = end + 1,
            Ordering::Greater => high = start,
            Ordering::Equal => return true,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: PasswordPolicy = PasswordPolicy { min_length: 8, blocklist: true, brand: String::new() };

    fn violations(password: &str) -> Vec<PolicyViolation> {
        POLICY.check(password, &["alice.wonder@example.com", "QueenOfHearts"]).err().unwrap_or_default()
    }

    #[test]
    fn asvs_6_2_1_shorter_than_the_configured_length_is_refused() {
        assert_eq!(violations("xk7qpz2"), [PolicyViolation::TooShort { min: 8 }]);
        assert_eq!(violations("xk7qpz2m"), []);
        let strict = PasswordPolicy::new(&PasswordConfig { min_length: 15, blocklist: true }, "authfleet");
        assert_eq!(strict.check("xk7qpz2mxk7qpz", &[]).unwrap_err()[0], PolicyViolation::TooShort { min: 15 });
        assert_eq!(violations("")[0], PolicyViolation::TooShort { min: 8 });
    }

    /// NIST SP 800-63B-4 §3.1.1.2: each code point counts as one character, after normalisation.
    #[test]
    fn nist_3_1_1_2_length_counts_code_points_after_nfkc() {
        assert_eq!(violations("\u{1f512}\u{1f511}\u{1f6aa}\u{1f9ff}\u{1f3b2}\u{1f3af}\u{1f9ea}\u{1f9f2}"), []);
        let composed_to_seven = "e\u{301}x\u{e9}k7qpz".replace('\u{e9}', "");
        assert_eq!(composed_to_seven.chars().count(), 8);
        assert_eq!(violations(&composed_to_seven), [PolicyViolation::TooShort { min: 8 }]);
    }

    #[test]
    fn asvs_6_2_5_any_composition_is_permitted() {
        for password in
            ["onlylowercaseletters", "ONLYUPPERCASE", "483920157264", "    spaces   only words", "пароль-на-кириллице"]
        {
            assert_eq!(violations(password), [], "{password}");
        }
    }

    #[test]
    fn asvs_6_2_9_sixty_four_and_up_to_128_characters_are_permitted() {
        let long: String = ('a'..='z').cycle().step_by(7).take(MAX_LENGTH).collect();
        let varied = |length: usize| long.chars().take(length).chain("!".chars()).collect::<String>();
        assert_eq!(violations(&varied(63)), []);
        assert_eq!(violations(&varied(MAX_LENGTH - 1)), []);
        assert_eq!(violations(&varied(MAX_LENGTH)), [PolicyViolation::TooLong]);
    }

    #[test]
    fn asvs_6_2_4_common_passwords_are_refused() {
        for password in ["password", "iloveyou", "trustno1", "Password1", "\u{ff50}assword", "password1password1"] {
            assert_eq!(violations(password), [PolicyViolation::Common], "{password}");
        }
    }

    #[test]
    fn asvs_6_2_4_the_list_has_over_3000_passwords_of_the_required_length() {
        assert!(COMMON.lines().filter(|word| word.len() >= 8).count() > 3000);
        assert!(COMMON.lines().zip(COMMON.lines().skip(1)).all(|(a, b)| a < b), "sorted, no word twice");
        for word in COMMON.lines() {
            assert!(is_common(word) && word.is_ascii() && *word == word.to_lowercase(), "{word}");
        }
        for absent in ["", "\n", "a", "zzzzzzzzzzzzzz", "password\n", "passwordx", "\u{10ffff}"] {
            assert!(!is_common(absent), "{absent:?}");
        }
    }

    #[test]
    fn repetitions_sequences_and_keyboard_rows_are_refused() {
        for password in [
            "aaaaaaaaaa",
            "\u{1f512}\u{1f512}\u{1f512}\u{1f512}\u{1f512}\u{1f512}\u{1f512}\u{1f512}",
            "xk7xk7xk7xk7",
            "hunter7hunter7",
            "abcdefgh",
            "ZYXWVUTSRQ",
            "23456789",
            "qwertyui",
            "poiuytrewq",
            "azertyuiop",
            "1q2w3e4r5t",
            "\u{3b1}\u{3b2}\u{3b3}\u{3b4}\u{3b5}\u{3b6}\u{3b7}\u{3b8}",
        ] {
            assert_eq!(violations(password), [PolicyViolation::Repetitive], "{password}");
        }
    }

    /// ASVS 5.0 6.2.11, 6.1.2: the service's name, the user's names.
    #[test]
    fn asvs_6_2_11_words_about_the_user_and_the_service_are_refused() {
        for password in [
            "alice.wonder@example.com",
            "ALICE.WONDER@example.com",
            "alice.wonder",
            "queenofhearts",
            "authfleet",
            "authfleetauthfleet",
            "example.com",
        ] {
            assert_eq!(violations(password), [PolicyViolation::Contextual], "{password}");
        }
        assert_eq!(POLICY.check("boredwombat77", &["bo@x.io", "red"]), Ok(()), "a short name blocks nothing");
    }

    /// NIST SP 800-63B-4 §3.1.1.2: whole passwords are compared, not substrings.
    #[test]
    fn nist_3_1_1_2_a_common_word_inside_a_longer_password_is_fine() {
        for password in [
            "correct horse battery staple",
            "password of a purple giraffe",
            "my-dragon-eats-4-lemons",
            "tr0ub4dor&3-but-longer",
            "Dragon2024!",
            "violet kangaroo violet",
        ] {
            assert_eq!(violations(password), [], "{password}");
        }
    }

    #[test]
    fn without_the_blocklist_only_the_length_counts() {
        let policy = PasswordPolicy::new(&PasswordConfig { min_length: 8, blocklist: false }, "authfleet");
        assert_eq!(policy.check("password", &["password"]), Ok(()));
        assert_eq!(policy.check("passwor", &[]), Err(vec![PolicyViolation::TooShort { min: 8 }]));
    }

    #[test]
    fn every_broken_rule_is_named_in_words_for_the_user() {
        let messages: Vec<String> = violations("123456").iter().map(ToString::to_string).collect();
        assert_eq!(
            messages,
            ["must have at least 8 characters", "must not be a repetition, a sequence or a run of neighbouring keys"]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_checked_without_a_panic(password in "\\PC{0,140}", email in "\\PC{0,40}") {
            let _ = POLICY.check(&password, &[&email]);
        }

        #[test]
        fn a_repetition_is_found_whatever_repeats(unit in "\\PC{1,7}", times in 8usize..12) {
            let text = unit.repeat(times);
            prop_assert!(period(&text).len() <= unit.len());
        }
    }
}
