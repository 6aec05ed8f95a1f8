//! A short name for the settings that all replicas of a fleet must share, so that one that differs is seen.
use std::fmt::Write as _;

use secrecy::ExposeSecret as _;
use sha2::{Digest as _, Sha256};

use super::Config;
use super::table::{Scope, VARIABLES};

impl Config {
    /// Eight hexadecimal digits over the settings that all replicas must share and, with Redis, the secrets in their
    /// order: equal in replicas that are configured alike. It differs while a secret is rotated, until the last replica
    /// was restarted.
    ///
    /// It gives nothing of a secret away. Secrets have at least 32 bytes, as random as the operator is told to make
    /// them; 32 bits of a digest leave 2^224 of 2^256. A secret so poor that it could be guessed anyway would be tried
    /// against the signature of a cookie, which every user has, and which tells a right guess for certain. The digest of
    /// a secret is made for this alone, and only the ops listener shows what becomes of it.
    pub fn fingerprint(&self) -> String {
        let mut text = "authfleet settings\n".to_owned();
        for (variable, (name, value)) in VARIABLES.iter().zip(self.effective()) {
            if variable.scope == Scope::Fleet && !variable.secret {
                writeln!(text, "{name}={value}").expect("writing to memory");
            }
        }
        // Without Redis there is one replica, whose secret may be a new random one at each start.
        if self.redis_url.is_some() {
            for secret in &self.session.secrets {
                let digest = Sha256::new().chain_update("authfleet fingerprint of SESSION_SECRET\0");
                let digest = digest.chain_update(secret.expose_secret()).finalize();
                writeln!(text, "SESSION_SECRET={}", hex::encode(digest)).expect("writing to memory");
            }
        }
        hex::encode(&Sha256::digest(text)[..4])
    }
}
