//! A short name for the settings that all replicas of a fleet must share, so that one that differs is seen.
use std::fmt::Write as _;

use secrecy::ExposeSecret as _;
use sha2::{Digest as _, Sha256};

use super::Config;

/// Replicas that differ in one of these answer differently: a session that one accepts ends earlier at another, a
/// password that one takes is refused by the next. Not here is what may differ: names, addresses, sizes of pools and
/// queues, logging; and where the stores are, as one store may have several addresses.
pub(super) const SHARED: &[&str] = &[
    "SESSION_IDLE_TTL",
    "SESSION_MAX_AGE",
    "SESSIONS_PER_USER",
    "COOKIE_SECURE",
    "PASSWORD_MIN_LENGTH",
    "PASSWORD_BLOCKLIST",
    "ARGON2_MEMORY",
    "ARGON2_ITERATIONS",
    "ARGON2_PARALLELISM",
    "LOGIN_FAILURES_PER_ACCOUNT",
    "LOGIN_FAILURES_PER_ADDRESS",
    "REGISTRATIONS_PER_ADDRESS",
    "LOGIN_FAILURE_WINDOW",
];

impl Config {
    /// Eight hexadecimal digits over the shared settings and, with Redis, the secrets in their order: equal in replicas
    /// that are configured alike. It differs while a secret is rotated, until the last replica was restarted.
    ///
    /// It gives nothing of a secret away. Secrets have at least 32 bytes, as random as the operator is told to make
    /// them; 32 bits of a digest leave 2^224 of 2^256. A secret so poor that it could be guessed anyway would be tried
    /// against the signature of a cookie, which every user has, and which tells a right guess for certain. The digest of
    /// a secret is made for this alone, and only the ops listener shows what becomes of it.
    pub fn fingerprint(&self) -> String {
        let mut text = "authfleet settings\n".to_owned();
        for name in SHARED {
            writeln!(text, "{name}={}", self.value_of(name)).expect("writing to memory");
        }
        // Without Redis there is one replica, whose secret may be a new random one at each start.
        if self.redis_url.is_some() {
            for secret in &self.session.secrets {
                let digest = Sha256::new().chain_update("authfleet fingerprint of SESSION_SECRET\0");
                let digest = digest.chain_update(secret.expose_secret()).finalize();
                writeln!(text, "SESSION_SECRET={}", hex(&digest)).expect("writing to memory");
            }
        }
        hex(&Sha256::digest(text)[..4])
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to memory");
        text
    })
}
