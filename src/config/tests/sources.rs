//! Environment, `.env` and `NAME_FILE`.
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use super::super::{Config, Sources};
use super::{KEY_A, KEY_B, exposed, load, ok, problem, with_dotenv};

#[test]
fn misspelt_names_are_warned_of() {
    for (name, meant) in [
        ("SESSION_IDLE_TTL_S", "SESSION_IDLE_TTL?"),
        ("SESION_SECRET", "SESSION_SECRET?"),
        ("SESION_SECRET_FILE", "SESSION_SECRET?"),
        ("session_secret", "SESSION_SECRET?"),
        ("SESSIONS_PER_USERS", "SESSIONS_PER_USER?"),
        ("REDIS_URI", "REDIS_URL?"),
        ("ARGON2_SALT", "ignored"),
        ("HASH_THREADS", "ignored"),
        ("PASSWORD_PEPPER", "ignored"),
        ("LOGIN_URL", "ignored"),
        ("DRAIN_SECONDS", "ignored"),
    ] {
        let config = ok([(name, "Zq7")]);
        let [warning] = &config.warnings[..] else { panic!("{name}: {:?}", config.warnings) };
        let warning = warning.to_string();
        assert!(warning.starts_with(name) && warning.contains(meant) && !warning.contains("Zq7"), "{warning}");
    }
    let usual = ["HOME", "PATH", "LANG", "HOSTNAME", "SESSION_MANAGER", "LOGNAME", "RUST_BACKTRACE", "REDIS_PORT"];
    for name in usual {
        assert!(ok([(name, "x")]).warnings.is_empty(), "{name}");
    }
    // Where the misspelt variable is missed, the error tells both.
    let errors = load([("REDIS_URL", "redis://host"), ("SESION_SECRET", KEY_A)]).unwrap_err().to_string();
    assert!(errors.contains("SESSION_SECRET: not set") && errors.contains("hint: SESION_SECRET is not"), "{errors}");
    assert!(!errors.contains("Zq7"), "{errors}");
    assert_eq!(with_dotenv([], "SESION_SECRET=x\nUNRELATED=1\n").unwrap().warnings.len(), 1);
}

#[test]
fn the_environment_goes_before_dotenv() {
    let dotenv = "\u{feff}# comment\nREPLICA_ID=from-file\nexport SESSION_IDLE_TTL='10m'\nSESSIONS_PER_USER=\n";
    let config = with_dotenv([("REPLICA_ID", "from-env")], dotenv).unwrap();
    assert_eq!(config.replica_id, "from-env");
    assert_eq!(config.session.idle_ttl, Duration::from_mins(10));
    assert_eq!(config.session.per_user, 100);

    // Also when one gives the value and the other a file: only within one source is that a contradiction.
    let config = with_dotenv([("REPLICA_ID", "from-env")], "REPLICA_ID_FILE=/nonexistent\n").unwrap();
    assert_eq!(config.replica_id, "from-env");

    // An empty variable, as compose files pass on what is not set, hides nothing.
    assert_eq!(with_dotenv([("REPLICA_ID", "")], "REPLICA_ID=from-file").unwrap().replica_id, "from-file");

    let absent = Sources { dotenv: Some(PathBuf::from("/nonexistent/.env")), ..Sources::from([("", ""); 0]) };
    Config::from_sources(&absent).unwrap();
}

#[test]
fn a_bad_value_in_dotenv_is_said_to_be_there() {
    let errors = with_dotenv([], "HASH_QUEUE=many\n").unwrap_err();
    let [problem] = errors.problems() else { panic!("{errors}") };
    assert!(problem.variable.starts_with("HASH_QUEUE (") && problem.variable.ends_with("/.env)"), "{problem}");
}

#[test]
fn malformed_dotenv_lines_are_named_and_never_echoed() {
    for (dotenv, line) in [
        ("REPLICA_ID=a\n\n# it's\nSESSION_SECRET Zq7\nHASH_QUEUE=3\n", 4),
        ("REPLICA_ID=a\nSESSION_SECRET='Zq7\nHASH_QUEUE=3\n", 2),
        ("A='x\ny\nz'\n=Zq7", 4),
        ("A=1\r\nSESSION_SECRET=\"Zq7\r\n", 2),
        ("A=1\nSESSION_SECRET=a Zq7", 2),
    ] {
        let errors = with_dotenv([], dotenv).unwrap_err();
        let [problem] = errors.problems() else { panic!("{errors}") };
        assert!(problem.variable.ends_with(&format!(".env line {line}")), "{problem} for {dotenv:?}");
        assert!(!errors.to_string().contains("Zq7"), "{errors}");
    }

    let twice = with_dotenv([], "HASH_QUEUE=1\nREPLICA_ID=r\nHASH_QUEUE=2\n").unwrap_err().to_string();
    assert!(twice.contains(".env line 3: HASH_QUEUE is set a second time"), "{twice}");

    let directory = tempfile::tempdir().unwrap();
    let sources = Sources { dotenv: Some(directory.path().to_owned()), ..Sources::from([("", ""); 0]) };
    assert!(Config::from_sources(&sources).unwrap_err().to_string().contains("cannot be read"));
}

#[test]
fn a_variable_may_be_given_as_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };

    let old_in_quotes = format!("{KEY_B},\"{KEY_A}\"");
    assert_eq!(ok([("SESSION_SECRET_FILE", &file("keys", old_in_quotes.as_bytes()))]).session.secrets.len(), 2);
    for (before, after) in [("", ""), ("", "\n"), ("", "\r\n"), ("\u{feff}", ""), ("\u{feff}", "\r\n")] {
        let (content, bytes) = (format!("{before}{KEY_A}{after}"), KEY_A);
        let config = ok([("SESSION_SECRET_FILE", &file("key", content.as_bytes()))]);
        assert_eq!(exposed(&config), [bytes.as_bytes()]);
    }
    assert_eq!(ok([("REPLICA_ID_FILE", &file("id", b"pod-1\n"))]).replica_id, "pod-1");
    let key = file("dated", KEY_A.as_bytes());
    let changed = fs::metadata(&key).unwrap().modified().unwrap();
    assert_eq!(ok([("SESSION_SECRET_FILE", &key)]).secret_files, [("SESSION_SECRET", changed)]);
    assert_eq!(ok([("SESSION_SECRET", KEY_A)]).secret_files, []);
    let headers = file("headers", b"x-api-key=Zq7");
    let dated =
        ok([("OTEL_EXPORTER_OTLP_HEADERS_FILE", &headers), ("REPLICA_ID_FILE", &file("plain", b"r"))]).secret_files;
    let changed = fs::metadata(&headers).unwrap().modified().unwrap();
    assert_eq!(dated, [("OTEL_EXPORTER_OTLP_HEADERS", changed)], "every secret, and nothing else");
    let by_dotenv = with_dotenv([], &format!("REPLICA_ID_FILE={}\n", file("id", b"pod-2\n"))).unwrap();
    assert_eq!(by_dotenv.replica_id, "pod-2");

    let bad = problem([("HASH_QUEUE_FILE", &file("queue", b"many"))]);
    assert!(bad.variable.starts_with("HASH_QUEUE (file /"), "{bad}");

    let refused = |path: &str, message: &str| {
        let problem = problem([("SESSION_SECRET_FILE", path), ("REDIS_URL", "redis://host")]);
        assert_eq!(problem.variable, "SESSION_SECRET_FILE");
        assert!(problem.message.contains(message), "{problem}");
        problem
    };
    assert!(refused("/nonexistent/key", "No such file").message.contains("/nonexistent/key"));
    refused(directory.path().to_str().unwrap(), "directory");
    refused(&file("empty", b"\n"), "is empty");
    refused(&file("binary", &[0xff; 32]), "not UTF-8");
    refused("/dev/zero", "larger than 64 KiB");
    // The secret itself in the place of its path.
    assert!(!refused(KEY_A, "cannot be read").to_string().contains("Zq7"));
    // UTF-16, as some shells write it.
    refused(&file("utf16", b"\xff\xfeZ\0q\0"), "not UTF-8");
    refused(&file("mark", "\u{feff}\r\n".as_bytes()), "is empty");
    for (name, text) in [("quotes", format!("\"{KEY_A}\"\n")), ("mark-quotes", format!("\u{feff}'{KEY_A}'"))] {
        let quoted = refused(&file(name, text.as_bytes()), "is in quotation marks");
        assert!(!quoted.to_string().contains("Zq7"), "{quoted}");
    }
    // One newline is the editor's; a second one is part of the value.
    let stray = problem([("SESSION_SECRET_FILE", &file("stray", format!("{KEY_A}\n\n").as_bytes()))]);
    assert!(stray.message.contains("white space"), "{stray}");
}

/// As `docker run --env-file` passes them on.
#[test]
fn a_value_in_quotation_marks_is_refused_by_name_and_not_echoed() {
    for quoted in [format!("\"{KEY_A}\""), format!("'{KEY_A}'"), format!("\u{201c}{KEY_A}\u{201d}")] {
        let found = problem([("SESSION_SECRET", quoted.as_str()), ("REDIS_URL", "redis://host")]);
        assert_eq!(found.variable, "SESSION_SECRET");
        assert!(found.message.contains("quotation marks") && !found.to_string().contains("Zq7"), "{found}");
    }
    assert_eq!(problem([("SESSION_IDLE_TTL", "\"10m\"")]).variable, "SESSION_IDLE_TTL");
    // A mark at one end, or a single one, is a character like any other.
    for key in [format!("\"{KEY_A}"), format!("{KEY_A}'"), format!("'{KEY_A}\"")] {
        assert_eq!(exposed(&ok([("SESSION_SECRET", &key)])), [key.as_bytes()]);
    }
}

#[test]
fn both_a_value_and_a_file_is_a_contradiction() {
    let both = problem([("SESSION_SECRET", KEY_A), ("SESSION_SECRET_FILE", "/run/secrets/key")]);
    assert_eq!(both.variable, "SESSION_SECRET");
    assert!(both.message.contains("SESSION_SECRET_FILE"), "{both}");
    ok([("SESSION_SECRET", KEY_A), ("SESSION_SECRET_FILE", "")]);
}

#[test]
fn a_value_that_is_not_text_is_refused() {
    let not_utf8 = OsString::from_vec(vec![0xff, 0xfe]);
    let sources = Sources::from([("REPLICA_ID", not_utf8.clone()), ("UNRELATED", not_utf8)]);
    let errors = Config::from_sources(&sources).unwrap_err();
    assert_eq!(errors.problems()[0].to_string(), "REPLICA_ID: not UTF-8");
    assert_eq!(errors.problems().len(), 1);
}

#[test]
fn secrets_that_everybody_may_read_are_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let readable = |sources: &Sources| {
        let warnings = Config::from_sources(sources).unwrap().warnings;
        warnings.iter().filter(|warning| warning.to_string().contains("every user of this machine")).count()
    };
    let file = |name: &str, content: &str, mode: u32| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    for (mode, expected) in [(0o400, 0), (0o440, 0), (0o600, 0), (0o640, 0), (0o644, 1), (0o444, 1)] {
        let key = file(&format!("key-{mode:o}"), KEY_A, mode);
        assert_eq!(readable(&Sources::from([("SESSION_SECRET_FILE", &key)])), expected, "{mode:o}");
        let id = file(&format!("id-{mode:o}"), "pod-1", mode);
        assert_eq!(readable(&Sources::from([("REPLICA_ID_FILE", &id)])), 0, "no secret");
        for (entry, is_secret) in [
            (format!("SESSION_SECRET={KEY_A}"), 1),
            ("REDIS_URL=redis://:pw@host".to_owned(), 1),
            ("REDIS_URL=redis://host".to_owned(), 0),
            ("LOG_FORMAT=json".to_owned(), 0),
        ] {
            let dotenv = file(".env", &entry, 0o600);
            fs::set_permissions(&dotenv, fs::Permissions::from_mode(mode)).unwrap();
            let sources = Sources { dotenv: Some(dotenv.clone()), ..Sources::from([("SESSION_SECRET", KEY_B)]) };
            let own_key = Sources { dotenv: Some(dotenv.clone()), ..Sources::from([("", ""); 0]) };
            let sources = if entry.starts_with("SESSION_SECRET") { own_key } else { sources };
            assert_eq!(readable(&sources), expected * is_secret, "{entry} {mode:o}");
            fs::remove_file(dotenv).unwrap();
        }
    }
}
