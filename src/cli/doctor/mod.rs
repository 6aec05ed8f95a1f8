//! `doctor`: checks what the server depends on, one by one.
mod database;
mod names;
mod postgres;
mod redis;
mod sqlite;

use std::io;
use std::process::ExitCode;

use ipnet::IpNet;
use secrecy::ExposeSecret as _;
use serde::Serialize;

use super::{answer, memory};
use crate::auth::rules::AccessRules;
use crate::auth::target::Targets;
use crate::config::{Config, ConfigErrors, Warning};
use crate::http::Brand;
use crate::telemetry;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Ok,
    Warn,
    Fail,
}

/// One thing that was checked.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    /// A stable word for scripts, such as `redis.version`.
    name: &'static str,
    status: Status,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, status: Status::Ok, found: found.into(), advice: None }
}

fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { name, status: Status::Warn, found: found.into(), advice: Some(advice.into()) }
}

fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { name, status: Status::Fail, found: found.into(), advice: Some(advice.into()) }
}

/// Runs every check. Exit code 1 if any fails.
pub(super) async fn doctor(config: &Config, json: bool) -> ExitCode {
    let telemetry = telemetry::log_to_stderr(&config.log);
    let mut checks = settings(config);
    checks.push(secrets(config));
    checks.push(secret_files(config));
    checks.push(core_dumps(memory::keep_private()));
    checks.push(cookie(config));
    checks.push(proxies(config));
    checks.extend(forward_auth(config));
    checks.extend(logo(config));
    checks.extend(database::examine(&config.database).await);
    match &config.redis.url {
        Some(_) => checks.extend(redis::examine(&config.redis).await),
        None => checks.push(warn(
            "redis",
            "REDIS_URL is not set: sessions are in the server's memory",
            "fine for one replica that is tried out; a fleet needs Redis, and every restart logs everybody out",
        )),
    }
    drop(telemetry);
    report(&checks, json)
}

/// The checks to report if the configuration can't be used.
pub(super) fn misconfigured(errors: &ConfigErrors) -> Vec<Check> {
    let problems = errors.problems().iter();
    problems.map(|problem| fail("configuration", problem.to_string(), "nothing else was checked")).collect()
}

/// Prints the report.
pub(super) fn report(checks: &[Check], json: bool) -> ExitCode {
    #[derive(Serialize)]
    struct Report<'a> {
        ok: bool,
        failed: usize,
        warned: usize,
        checks: &'a [Check],
    }

    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (failed, warned) = (count(Status::Fail), count(Status::Warn));
    answer(json, &Report { ok: failed == 0, failed, warned, checks }, || {
        let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        let mut lines = Vec::new();
        for Check { name, status, found, advice } in checks {
            let word = match status {
                Status::Ok => "ok",
                Status::Warn => "warn",
                Status::Fail => "FAIL",
            };
            lines.push(format!("{word:<4}  {name:<width$}  {found}"));
            lines.extend(advice.iter().map(|advice| format!("{:4}  {:width$}  -> {advice}", "", "")));
        }
        lines.push(format!("{} checks, {warned} warned, {failed} failed", checks.len()));
        lines.join("\n")
    });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn settings(config: &Config) -> Vec<Check> {
    // Leaves out the cookie, the proxies and files with secrets, which have checks of their own.
    let own = |warning: &&Warning| {
        use Warning::{CookieOverHttp, EveryPeerTrusted, SecretReadableByOthers};
        !matches!(warning, CookieOverHttp | EveryPeerTrusted | SecretReadableByOthers { .. })
    };
    let warnings = config.warnings.iter().filter(own);
    let advice = "authfleet config shows all values";
    let checks: Vec<_> = warnings.map(|warning| warn("configuration", warning.to_string(), advice)).collect();
    if checks.is_empty() { vec![ok("configuration", "valid, no weak values")] } else { checks }
}

fn cookie(config: &Config) -> Check {
    if config.session.cookie_secure {
        ok("cookie", "__Host-session; Secure; HttpOnly; SameSite=Lax")
    } else {
        warn(
            "cookie",
            "COOKIE_SECURE=false: the cookie travels over plain http too",
            "remove COOKIE_SECURE as soon as browsers use https",
        )
    }
}

/// Whose `X-Forwarded-For` is believed.
fn proxies(config: &Config) -> Check {
    const NAME: &str = "proxies";
    let proxies = &config.trusted_proxies;
    let names = |networks: &[&IpNet]| networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let wide: Vec<_> = proxies.iter().filter(|network| is_wide(network)).collect();
    if proxies.iter().any(|network| network.prefix_len() == 0) {
        warn(
            NAME,
            "TRUSTED_PROXIES covers every address: any client can forge its own, and so evade the throttle",
            "name only the addresses of your proxies",
        )
    } else if !wide.is_empty() {
        warn(
            NAME,
            format!(
                "TRUSTED_PROXIES is wider than a network of proxies: every machine in {} can claim any client's \
                 address, and so evade the throttle",
                names(&wide)
            ),
            "name the proxies' addresses, or the smallest network that contains only them",
        )
    } else if !proxies.is_empty() {
        ok(NAME, format!("X-Forwarded-For is believed from {}", names(&proxies.iter().collect::<Vec<_>>())))
    } else if config.redis.url.is_some() {
        warn(
            NAME,
            "TRUSTED_PROXIES is not set: behind a proxy all clients seem to have the proxy's address and are throttled \
             as one",
            "set it to the proxies' addresses; leave it unset only if clients connect directly",
        )
    } else {
        ok(NAME, "none: X-Forwarded-For is ignored")
    }
}

/// Whether there is forward auth, and whether the access rules can be used.
fn forward_auth(config: &Config) -> Option<Check> {
    const NAME: &str = "access_rules";
    let targets = Targets::of(&config.forward_auth)?;
    let hosts = config.forward_auth.protected_hosts.len();
    Some(match AccessRules::open(config.forward_auth.access_rules.as_deref(), targets.protected()) {
        Err(error) => fail(NAME, error.to_string(), "a server would not start with this file"),
        Ok(_) if hosts == 0 => ok(NAME, "no PROTECTED_HOSTS, so no forward auth"),
        Ok(rules) => ok(NAME, format!("{} for {hosts} entries of PROTECTED_HOSTS", rules.current().summary())),
    })
}

/// Whether the logo can be used, if there is one.
fn logo(config: &Config) -> Option<Check> {
    const NAME: &str = "brand_logo";
    let path = config.pages.brand_logo.as_deref()?;
    Some(match Brand::open(&config.pages) {
        Err(error) => fail(NAME, error.to_string(), "a server would not start with this file"),
        Ok(_) => ok(NAME, path.display().to_string()),
    })
}

/// Whether the network has more than one public address, or is a private one larger than a cluster's (/16; IPv6: /48).
fn is_wide(network: &IpNet) -> bool {
    const PRIVATE: [&str; 9] = [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "127.0.0.0/8",
        "fc00::/7",
        "fe80::/10",
        "::1/128",
    ];
    let is_private = PRIVATE.iter().any(|range| range.parse::<IpNet>().expect("a network").contains(network));
    let enough = match network {
        IpNet::V4(_) => 16,
        IpNet::V6(_) => 48,
    };
    if is_private { network.prefix_len() < enough } else { network.prefix_len() < network.max_prefix_len() }
}

/// Whether other users of this machine can read a secret where it is kept.
fn secret_files(config: &Config) -> Check {
    const NAME: &str = "secrets.files";
    let readable = |warning: &&Warning| matches!(warning, Warning::SecretReadableByOthers { .. });
    let found: Vec<_> = config.warnings.iter().filter(readable).map(ToString::to_string).collect();
    if found.is_empty() {
        ok(NAME, "no file with a secret is readable by everybody")
    } else {
        warn(
            NAME,
            found.join("; "),
            "`chmod o= FILE`, and change the secret if anybody else has used this machine; Kubernetes: \
             `defaultMode: 0440`, compose: `mode: 0400`",
        )
    }
}

/// Whether core dumps are off. One of the server would hold its keys and the passwords that are being verified.
fn core_dumps(kept: io::Result<()>) -> Check {
    const NAME: &str = "core_dumps";
    match kept {
        Ok(()) => ok(NAME, "switched off; other processes of the same user can't read the server's memory either"),
        Err(error) => warn(
            NAME,
            format!("they could not be switched off: {error}; a crash may write keys and passwords to disk"),
            "set the limit from outside: LimitCORE=0 in systemd, `ulimits: {core: 0}` in compose",
        ),
    }
}

/// Whether a key of `SESSION_SECRET` looks guessable. Nobody can tell that a key is random, only that it isn't. The
/// configuration checks the length.
fn secrets(config: &Config) -> Check {
    const MAKE: &str = "make one with `openssl rand -hex 32`; put it before the old one, and remove the old one after \
                        SESSION_MAX_AGE";
    let keys = &config.session.secrets;
    let weaknesses = keys.iter().enumerate().map(|(index, key)| (weakness(key.expose_secret()), index + 1));
    // The first of the worst.
    let worst = weaknesses.max_by_key(|((status, _), index)| (*status, std::cmp::Reverse(*index)));
    match worst {
        Some(((Status::Fail, why), key)) => fail("secrets", format!("SESSION_SECRET: key {key} {why}"), MAKE),
        Some(((Status::Warn, why), key)) => warn("secrets", format!("SESSION_SECRET: key {key} {why}"), MAKE),
        _ if config.redis.url.is_none() => ok("secrets", "SESSION_SECRET: given, or made at every start"),
        _ if keys.len() == 1 => ok("secrets", "SESSION_SECRET: one key"),
        _ => ok("secrets", format!("SESSION_SECRET: {} keys accepted, the first signs", keys.len())),
    }
}

/// How guessable a key looks, and why.
fn weakness(key: &[u8]) -> (Status, &'static str) {
    const PLACEHOLDERS: &[&str] =
        &["change", "example", "replace", "placeholder", "insecure", "your-secret", "your_secret", "todo"];
    const WORDS: &[&str] = &["secret", "password", "demo", "test", "session", "authfleet"];
    /// 32 random hexadecimal digits, which are 128 bits, are hardly ever estimated at less.
    const ENOUGH: f64 = 90.0;
    const FAR_TOO_LITTLE: f64 = 40.0;

    let lower = String::from_utf8_lossy(key).to_lowercase();
    let holds = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    match entropy(repeating_part(key)) {
        bits if bits < FAR_TOO_LITTLE => (Status::Fail, "repeats a few characters"),
        _ if holds(PLACEHOLDERS) => (Status::Fail, "is the text of an example"),
        _ if holds(WORDS) => (Status::Warn, "is made of words"),
        bits if bits < ENOUGH => (Status::Warn, "has few different characters"),
        _ => (Status::Ok, ""),
    }
}

/// The shortest beginning that gives the whole key when it is repeated. The last repetition may be incomplete.
fn repeating_part(key: &[u8]) -> &[u8] {
    let length = (1..=key.len() / 2).find(|&length| key.iter().zip(&key[length..]).all(|(a, b)| a == b));
    &key[..length.unwrap_or(key.len())]
}

/// Shannon's entropy of the key, in bits, estimated from how often each byte occurs.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn entropy(key: &[u8]) -> f64 {
    let mut counts = [0_usize; 256];
    for &byte in key {
        counts[usize::from(byte)] += 1;
    }
    let total = key.len() as f64;
    counts.iter().filter(|&&count| count > 0).map(|&count| count as f64 * (total / count as f64).log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessable_keys_are_told_from_random_ones() {
        for (key, expected) in [
            ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", Status::Fail),
            ("abababababababababababababababababab", Status::Fail),
            ("12345678901234567890123456789012", Status::Fail),
            ("please-change-me-please-change-me-0", Status::Fail),
            ("our-grand-secret-nobody-will-find-it", Status::Warn),
            ("0123456789abcdef0123456789abcdef", Status::Warn),
            ("9f2d6c1be07a4853d4c0be127f3a96e5", Status::Ok),
            ("3Qk0h7LxN2vWcRz8TfYp5uBsJdGmAe1i", Status::Ok),
        ] {
            assert_eq!(weakness(key.as_bytes()).0, expected, "{key}");
        }
    }

    #[test]
    fn networks_wider_than_proxies_need_are_told() {
        for (network, expected) in [
            ("0.0.0.0/0", true),
            ("0.0.0.0/1", true),
            ("203.0.113.0/31", true),
            ("203.0.113.7/32", false),
            ("2001:db8::/64", true),
            ("2001:db8::7/128", false),
            ("10.0.0.0/8", true),
            ("10.244.0.0/16", false),
            ("172.16.0.0/12", true),
            ("192.168.0.0/16", false),
            ("100.64.0.0/10", true),
            ("127.0.0.1/32", false),
            ("::1/128", false),
            ("fc00::/7", true),
            ("fd12:3456:789a::/48", false),
        ] {
            assert_eq!(is_wide(&network.parse().expect("a network")), expected, "{network}");
        }
    }

    #[test]
    fn core_dumps_that_stay_on_are_warned_of() {
        assert_eq!(core_dumps(Ok(())).status, Status::Ok);
        let refused = core_dumps(Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(refused.status, Status::Warn);
        assert!(refused.advice.is_some_and(|advice| advice.contains("LimitCORE=0")));
    }

    #[test]
    fn random_keys_pass() {
        use base64::Engine as _;
        for _ in 0..1000 {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).expect("randomness");
            let hex = uuid::Uuid::from_slice(&bytes[..16]).expect("16 bytes").simple().to_string();
            let base64 = base64::engine::general_purpose::STANDARD.encode(bytes);
            for key in [&hex, &base64] {
                // A random key may contain a short word by chance, above all in base64.
                assert!(weakness(key.as_bytes()).1 != "has few different characters", "{key}");
                assert!(weakness(key.as_bytes()).1 != "repeats a few characters", "{key}");
            }
        }
    }
}
