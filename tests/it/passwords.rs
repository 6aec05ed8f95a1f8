//! Passwords in the whole server: the rules, and hashes made by other programs.
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::json;

use crate::fleet::{Answer, Fleet, PASSWORD, PROMPTLY, Session};

const SALT: &[u8; 16] = b"sixteen-byte-slt";

/// An Argon2 hash as another program writes it.
fn argon2(
    algorithm: Algorithm,
    version: Version,
    (memory, iterations, lanes): (u32, u32, u32),
    password: &str,
) -> String {
    let params = Params::new(memory, iterations, lanes, Some(32)).expect("sound parameters");
    let mut output = [0; 32];
    let argon2 = Argon2::new(algorithm, version, params);
    argon2.hash_password_into(password.as_bytes(), SALT, &mut output).expect("a hash");
    let (salt, output) = (STANDARD_NO_PAD.encode(SALT), STANDARD_NO_PAD.encode(output));
    let version = u32::from(version);
    format!("${algorithm}$v={version}$m={memory},t={iterations},p={lanes}${salt}${output}")
}

/// A bcrypt hash as Node's `bcrypt` writes it.
fn bcrypt(password: &str) -> String {
    bcrypt::hash_with_salt(password, 4, *SALT).expect("a hash").format_for_version(bcrypt::Version::TwoB)
}

async fn store_hash(fleet: &Fleet, hash: &str) {
    let update = sqlx::query("UPDATE users SET password_hash = ?1 WHERE username = 'ada'").bind(hash);
    update.execute(&mut fleet.sql().await).await.expect("an update");
}

async fn stored_hash(fleet: &Fleet) -> String {
    fleet.query("SELECT password_hash FROM users WHERE username = 'ada'").await.remove(0)
}

/// The message of a 422 for each field.
fn errors(answer: &Answer) -> Vec<(String, String)> {
    let body = answer.json();
    let text = |error: &serde_json::Value, field: &str| error[field].as_str().expect("a text").to_owned();
    body["errors"].as_array().expect("errors").iter().map(|e| (text(e, "field"), text(e, "message"))).collect()
}

/// ASVS 5.0 6.2.1, 6.2.4, 6.2.9, 6.2.11, 6.2.12; NIST SP 800-63B-4 §3.1.1.2: the answer says why a password is refused.
#[tokio::test]
async fn asvs_6_2_1_6_2_4_6_2_11_each_rule_is_named() {
    let fleet = Fleet::start(1).await;
    let session = fleet[0].login(&fleet[0].register("ada.lovelace").await).await;
    let common = "must not be one of the most common passwords";
    let run = "must not be a repetition, a sequence or a run of neighbouring keys";
    let own = "must not be the e-mail address, the username or the name of this service";
    for (password, messages) in [
        ("xk7qpz2", &["must have at least 8 characters"][..]),
        ("", &["must have at least 8 characters"]),
        (&"xyz!".repeat(33), &["must have at most 128 characters"]),
        ("trustno1", &[common]),
        ("TrustNo1", &[common]),
        ("letmein1", &[common]),
        ("aaaaaaaaaaaa", &[run]),
        ("qwertyuiop", &[run]),
        ("12345678", &[run]),
        ("123456", &["must have at least 8 characters", run]),
        ("ada.lovelace", &[own]),
        ("ADA.LOVELACE@example.org", &[own]),
        ("authfleet", &[own]),
    ] {
        let expected = |field: &str| messages.iter().map(|m| (field.to_owned(), (*m).to_owned())).collect::<Vec<_>>();
        let body = json!({ "current_password": PASSWORD, "new_password": password });
        let change = fleet[0].post("/auth/password").session(&session).json(&body).send().await;
        assert_eq!(errors(&change.expect_problem(422, "validation_failed")), expected("new_password"), "{password}");
        let body = json!({ "email": "ada.lovelace@example.org", "username": "ada.lovelace", "password": password });
        let register = fleet[0].post("/auth/register").json(&body).send().await;
        assert_eq!(errors(&register.expect_problem(422, "validation_failed")), expected("password"), "{password}");
    }
    assert_eq!(fleet[0].check(&session).await, 200);
}

/// ASVS 5.0 6.2.5, 6.2.9.
#[tokio::test]
async fn asvs_6_2_5_6_2_9_anything_else_is_a_password() {
    let fleet = Fleet::start(1).await;
    let long: String = ('!'..='~').cycle().step_by(7).take(128).collect();
    let passwords = [
        "onlylowercaseletters",
        "483920157264",
        "   spaces  only words ",
        "пароль-на-кириллице",
        "🔒🔑🚪🧿🎲🎯🧪🧲",
        "null\0byte\tand\u{7f}",
        &long,
    ];
    for (n, password) in passwords.into_iter().enumerate() {
        let body = json!({ "email": format!("user-{n}@example.org"), "password": password });
        fleet[0].post("/auth/register").json(&body).send().await.expect(201);
        fleet[0].try_login(&format!("user-{n}"), password).send().await.expect(200);
    }
}

/// ASVS 5.0 6.2.8; NIST SP 800-63B-4 §3.1.1.2: the whole password, unchanged except for Unicode normalisation.
#[tokio::test]
async fn asvs_6_2_8_passwords_are_verified_as_sent() {
    let fleet = Fleet::start(1).await;
    let password = " Ångström's Horse ";
    let body = json!({ "email": "ada@example.org", "password": password });
    fleet[0].post("/auth/register").json(&body).send().await.expect(201);
    for same in [password, " A\u{30a}ngstro\u{308}m's Horse ", " \u{212b}ngstr\u{f6}m's Horse "] {
        fleet[0].try_login("ada", same).send().await.expect(200);
    }
    for other in
        ["Ångström's Horse", " ångström's horse ", " Angstrom's Horse ", " Ångström's Hors", " Ångström's Horse  "]
    {
        fleet[0].try_login("ada", other).send().await.expect_problem(401, "invalid_credentials");
    }
}

#[tokio::test]
async fn the_length_and_the_blocklist_are_the_operator_s() {
    let fleet = Fleet::builder().env("PASSWORD_MIN_LENGTH", "15").env("PASSWORD_BLOCKLIST", "off").start().await;
    let register = |name: &str, password: &str| {
        let body = json!({ "email": format!("{name}@example.org"), "password": password });
        fleet[0].post("/auth/register").json(&body).send()
    };
    let short = register("ada", "xk7qpz2mxk7qpz").await.expect_problem(422, "validation_failed");
    assert_eq!(errors(&short), [("password".to_owned(), "must have at least 15 characters".to_owned())]);
    register("ada", "passwordpassword").await.expect(201);
}

/// ASVS 5.0 11.4.2: hashes made by other programs are accepted, and replaced by ours at the next login.
#[tokio::test]
async fn asvs_11_4_2_other_hashes_verify_and_are_upgraded() {
    // The wrong password goes with the username and the right one with the e-mail address, whose success doesn't clear
    // the failures of the username.
    let fleet = Fleet::builder().replicas(3).env("LOGIN_FAILURES_PER_ACCOUNT", "1000").start().await;
    let ada = fleet[0].register("ada").await;
    let ours = stored_hash(&fleet).await.rsplitn(3, '$').nth(2).expect("parameters").to_owned();
    let v13 = Version::V0x13;
    for hash in [
        argon2(Algorithm::Argon2id, v13, (256, 3, 1), PASSWORD),
        argon2(Algorithm::Argon2id, v13, (64, 1, 2), PASSWORD),
        argon2(Algorithm::Argon2i, v13, (64, 3, 1), PASSWORD),
        argon2(Algorithm::Argon2d, v13, (64, 1, 1), PASSWORD),
        argon2(Algorithm::Argon2id, Version::V0x10, (64, 1, 1), PASSWORD),
        bcrypt(PASSWORD),
        bcrypt(PASSWORD).replacen("$2b$", "$2a$", 1),
        bcrypt(PASSWORD).replacen("$2b$", "$2y$", 1),
    ] {
        store_hash(&fleet, &hash).await;
        fleet[0].try_login("ada", "a wrong password").send().await.expect_problem(401, "invalid_credentials");
        assert_eq!(stored_hash(&fleet).await, hash, "a failed login changes nothing");
        let first = fleet[1].login(&ada).await;
        let upgraded = stored_hash(&fleet).await;
        assert!(upgraded.starts_with(&ours) && upgraded != hash, "{hash} became {upgraded}");
        fleet[2].try_login("ada", "a wrong password").send().await.expect_problem(401, "invalid_credentials");
        let second = fleet[2].login(&ada).await;
        assert_eq!(stored_hash(&fleet).await, upgraded, "once is enough");
        assert_eq!(
            (fleet[0].check(&first).await, fleet[0].check(&second).await),
            (200, 200),
            "the password is the same"
        );
    }
}

/// bcrypt used only the first 72 bytes. An upgrade would also hash what was typed after them, including typing errors.
#[tokio::test]
async fn a_bcrypt_password_of_72_bytes_is_verified_and_left_alone() {
    let fleet = Fleet::start(1).await;
    fleet[0].register("ada").await;
    let password = "correct horse battery staple ".repeat(3);
    store_hash(&fleet, &bcrypt(&password[..72])).await;
    let before = stored_hash(&fleet).await;
    fleet[0].try_login("ada", &password).send().await.expect(200);
    assert_eq!(stored_hash(&fleet).await, before);
}

/// ASVS 5.0 15.2.2: a stored hash states how much work it takes, and that work has a limit.
#[tokio::test]
async fn asvs_15_2_2_absurd_hashes_are_refused_before_they_cost_anything() {
    let fleet = Fleet::builder().env("LOGIN_FAILURES_PER_ACCOUNT", "1000").start().await;
    let (ada, eve) = (fleet[0].register("ada").await, fleet[0].register("eve").await);
    let session = Session::opened_by(&fleet[0].try_login("ada", PASSWORD).send().await);
    let tail = format!("${}${}", STANDARD_NO_PAD.encode(SALT), STANDARD_NO_PAD.encode([7; 32]));
    let long = format!("$argon2id$v=19$m=64,t=1,p=1${}", "A".repeat(1_000_000));
    for hash in [
        format!("$argon2id$v=19$m=4294967295,t=4294967295,p=16777215{tail}"),
        format!("$argon2id$v=19$m=4194304,t=1,p=1{tail}"),
        format!("$argon2id$v=19$m=64,t=4294967295,p=1{tail}"),
        format!("$argon2id$v=19$m=64,t=0,p=0{tail}"),
        format!("$argon2id$v=99$m=64,t=1,p=1{tail}"),
        format!("$argon2id$v=19$m=64,t=1,p=1${}$", STANDARD_NO_PAD.encode(SALT)),
        format!("$scrypt$ln=30,r=8,p=1{tail}"),
        format!("$2b$31${}", "a".repeat(53)),
        format!("$2b$99${}", "a".repeat(53)),
        format!("$2x$04${}", "a".repeat(53)),
        "$2b$".to_owned(),
        "$".to_owned(),
        "plain text".to_owned(),
        "\u{1f512}".repeat(100),
        long,
    ] {
        store_hash(&fleet, &hash).await;
        let answer = fleet[0].try_login(&ada.email, PASSWORD).send().await.expect_problem(401, "invalid_credentials");
        assert!(answer.took < PROMPTLY, "{:?} for {:.60}", answer.took, hash);
        let change = json!({ "current_password": PASSWORD, "new_password": "staple a battery horse" });
        let change = fleet[0].post("/auth/password").session(&session).json(&change).send().await;
        change.expect_problem(403, "invalid_credentials");
        fleet[0].login(&eve).await;
        let shown = hash.get(..60).unwrap_or(&hash);
        assert!(shown.len() < 10 || !fleet[0].output_text().contains(shown), "{shown} is in the log");
    }
    assert_eq!(fleet[0].check(&session).await, 200);
}

/// ASVS 5.0 6.3.2.
#[tokio::test]
async fn asvs_6_3_2_a_new_database_has_no_account() {
    let fleet = Fleet::start(1).await;
    assert!(fleet.query("SELECT id FROM users").await.is_empty());
    for name in ["admin", "root", "sa", "administrator", "authfleet", "admin@example.org"] {
        for password in [name, "", "password", "admin", "changeme"] {
            fleet[0].try_login(name, password).send().await.expect_problem(401, "invalid_credentials");
        }
    }
}
