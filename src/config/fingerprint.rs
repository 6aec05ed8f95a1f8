//! A short name for the settings that all replicas of a fleet must share. A replica with other settings shows another
//! name.
use std::fmt::Write as _;

use secrecy::ExposeSecret as _;
use sha2::{Digest as _, Sha256};

use super::Config;
use super::table::{Scope, VARIABLES};

impl Config {
    /// Eight hexadecimal digits, which are equal in replicas that are configured alike. They cover the settings that
    /// all replicas must share and, with Redis, the secrets in their order. While a secret is rotated they differ,
    /// until the last replica was restarted.
    ///
    /// They give nothing of a secret away. Secrets have at least 32 bytes, as random as the operator is told to make
    /// them; 32 bits of a digest leave 2^224 of 2^256. Whoever hopes to guess a poor secret doesn't need the
    /// fingerprint: every user has a cookie, whose signature tells a right guess for certain. The digest of a secret is
    /// made for nothing else, and only the ops listener shows the fingerprint.
    pub(crate) fn fingerprint(&self) -> String {
        let mut text = "authfleet settings\n".to_owned();
        for (variable, (name, value)) in VARIABLES.iter().zip(self.effective()) {
            if variable.scope == Scope::Fleet && !variable.secret {
                writeln!(text, "{name}={value}").expect("writing to memory");
            }
        }
        // Without Redis there is one replica, whose secret may be a new random one at each start.
        if self.redis.url.is_some() {
            for secret in &self.session.secrets {
                let digest = Sha256::new().chain_update("authfleet fingerprint of SESSION_SECRET\0");
                let digest = digest.chain_update(secret.expose_secret()).finalize();
                writeln!(text, "SESSION_SECRET={}", hex::encode(digest)).expect("writing to memory");
            }
        }
        hex::encode(&Sha256::digest(text)[..4])
    }
}
