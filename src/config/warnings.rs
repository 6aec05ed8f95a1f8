//! What an operator should be told although the configuration can be used.
use std::fmt;
use std::path::PathBuf;

use super::Config;
use super::formats::size_text;

/// A weak setting, a name that looks like a misspelt variable, or a `.env` out of reach. It is shown as one line, which
/// begins with the variable or the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Warning {
    /// A variable was set that looks like one of ours and is none.
    UnknownVariable {
        name: String,
        /// The variable that was probably meant.
        meant: Option<&'static str>,
    },
    /// The directory of `.env` may not be searched, so nobody can say whether it has one.
    DotenvOutOfReach { path: PathBuf, error: String },
    /// A file that holds a secret may be read by every user of this machine.
    SecretReadableByOthers {
        /// The variable whose value it holds.
        variable: &'static str,
        /// A `NAME_FILE`, or `.env`.
        path: PathBuf,
        /// The last nine bits of the file's mode.
        mode: u32,
    },
    /// A parameter of Argon2id or the shortest password is below its default.
    WeakerThanDefault { variable: &'static str, value: String, default: &'static str },
    /// `COOKIE_SECURE=false`.
    CookieOverHttp,
    /// `TRUSTED_PROXIES` covers every address.
    EveryPeerTrusted,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownVariable { name, meant } => {
                write!(f, "{name} is not a variable of authfleet and is ignored")?;
                meant.iter().try_for_each(|meant| write!(f, "; did you mean {meant}?"))
            }
            Self::DotenvOutOfReach { path, error } => {
                write!(f, "{} was not looked for, because its directory cannot be searched: {error}", path.display())
            }
            Self::SecretReadableByOthers { variable, path, mode } => {
                write!(f, "{variable}: every user of this machine may read {} (mode {mode:03o})", path.display())
            }
            Self::WeakerThanDefault { variable, value, default } => {
                write!(f, "{variable}={value} is weaker than the default {default}")
            }
            Self::CookieOverHttp => f.write_str("COOKIE_SECURE=false: the session cookie travels over plain http too"),
            Self::EveryPeerTrusted => f.write_str("TRUSTED_PROXIES covers every address: any client can forge its own"),
        }
    }
}

impl Config {
    /// The warnings that the values in force deserve.
    pub(super) fn weak_settings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let mut weaker = |variable, is_weak: bool, value: String, default| {
            if is_weak {
                warnings.push(Warning::WeakerThanDefault { variable, value, default });
            }
        };
        // The default is the OWASP Password Storage Cheat Sheet's Argon2id recommendation.
        let hashing = self.hashing;
        weaker("ARGON2_MEMORY", hashing.memory_kib < 19_456, size_text(hashing.memory_kib), "19MiB");
        weaker("ARGON2_ITERATIONS", hashing.iterations < 2, hashing.iterations.to_string(), "2");
        // NIST SP 800-63B-4, section 3.1.1.2.
        let shortest = self.password.min_length;
        weaker("PASSWORD_MIN_LENGTH", shortest < 8, shortest.to_string(), "8");
        if !self.session.cookie_secure {
            warnings.push(Warning::CookieOverHttp);
        }
        if self.trusted_proxies.iter().any(|network| network.prefix_len() == 0) {
            warnings.push(Warning::EveryPeerTrusted);
        }
        warnings
    }
}
