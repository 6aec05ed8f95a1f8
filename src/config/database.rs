//! `DATABASE_URL`: where users are kept.
use std::fmt;
use std::path::PathBuf;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use secrecy::SecretString;
use url::Url;

/// PostgreSQL's port if the URL names none.
const PORT: u16 = 5432;
/// Characters that must be encoded in a part of a URL.
const SPECIAL: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'/').add(b':').add(b'?').add(b'#').add(b'@').add(b'&');

/// Where users are kept.
#[derive(Clone, Debug)]
pub(crate) enum DatabaseUrl {
    /// A SQLite file, shared by the replicas of one host.
    Sqlite(PathBuf),
    /// A PostgreSQL server, shared by the replicas of many hosts.
    Postgres(PostgresUrl),
}

/// A database on a PostgreSQL server, and how to connect to it.
#[derive(Clone, Debug)]
pub(crate) struct PostgresUrl {
    /// Where the server listens.
    pub(crate) host: PostgresHost,
    /// Its port, which is also part of a socket's name.
    pub(crate) port: u16,
    /// The user who connects.
    pub(crate) user: String,
    /// The user's password, if the server wants one.
    pub(crate) password: Option<SecretString>,
    /// The database's name.
    pub(crate) database: String,
    /// Whether the connection is encrypted, and what is checked.
    pub(crate) tls: TlsMode,
    /// A file with the certificates of the authorities that sign the server's. Without one, the system's authorities
    /// are trusted.
    pub(crate) root_certificates: Option<PathBuf>,
    /// Files with this client's certificate and its key.
    pub(crate) client_certificate: Option<(PathBuf, PathBuf)>,
}

/// Where a PostgreSQL server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PostgresHost {
    /// On TCP, at this name or address.
    Tcp(String),
    /// On a Unix socket in this directory.
    Socket(PathBuf),
}

/// `sslmode`, with the same meaning as in libpq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsMode {
    /// Never encrypted.
    Disable,
    /// Encrypted if the server supports it. Nothing is checked.
    Prefer,
    /// Always encrypted. Nothing is checked.
    Require,
    /// The certificate must be signed by an authority that is trusted.
    VerifyCa,
    /// The certificate must also be that of the host.
    VerifyFull,
}

const TLS_MODES: [(&str, TlsMode); 5] = [
    ("disable", TlsMode::Disable),
    ("prefer", TlsMode::Prefer),
    ("require", TlsMode::Require),
    ("verify-ca", TlsMode::VerifyCa),
    ("verify-full", TlsMode::VerifyFull),
];

/// As an operator would write it, with `***` for a password.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::Postgres(url) => url.fmt(f),
        }
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = |text: &str| utf8_percent_encode(text, SPECIAL).to_string();
        let password = if self.password.is_some() { ":***" } else { "" };
        write!(f, "postgres://{}{password}@", encoded(&self.user))?;
        match &self.host {
            PostgresHost::Tcp(host) if host.contains(':') => write!(f, "[{host}]:{}", self.port)?,
            PostgresHost::Tcp(host) => write!(f, "{host}:{}", self.port)?,
            PostgresHost::Socket(directory) => write!(f, "{}:{}", encoded(&directory.to_string_lossy()), self.port)?,
        }
        write!(f, "/{}", encoded(&self.database))?;
        let mode = TLS_MODES.iter().find(|(_, mode)| *mode == self.tls).map_or("", |(name, _)| name);
        let mut parameters = Vec::new();
        if matches!(self.host, PostgresHost::Tcp(_)) {
            parameters.push(format!("sslmode={mode}"));
        }
        let (certificate, key) = self.client_certificate.clone().unzip();
        for (name, path) in [("sslrootcert", &self.root_certificates), ("sslcert", &certificate), ("sslkey", &key)] {
            parameters.extend(path.iter().map(|path| format!("{name}={}", path.display())));
        }
        if parameters.is_empty() { Ok(()) } else { write!(f, "?{}", parameters.join("&")) }
    }
}

/// Parses `DATABASE_URL`. An error says what is wrong and quotes nothing, because a password with a stray `/` or `@`
/// may be in any part.
pub(crate) fn database_url(text: &str) -> Result<DatabaseUrl, String> {
    match text.split_once("://") {
        Some(("postgres" | "postgresql", rest)) => postgres(rest).map(DatabaseUrl::Postgres),
        _ => sqlite(text).map(DatabaseUrl::Sqlite),
    }
}

fn sqlite(text: &str) -> Result<PathBuf, String> {
    if text.contains(":memory:") {
        return Err("users in memory would be lost at every restart".to_owned());
    }
    let path = text.strip_prefix("sqlite://").ok_or("begins neither with sqlite:// nor with postgres://")?;
    if path.contains('?') {
        return Err("parameters after '?' are not supported".to_owned());
    }
    if path.contains(['%', '#']) || path.contains(char::is_control) || path.trim() != path {
        return Err("the path holds '%', '#', a control character or white space at an end".to_owned());
    }
    if path.is_empty() || path.ends_with('/') {
        return Err("names no file".to_owned());
    }
    Ok(PathBuf::from(path))
}

/// Parses what follows `postgres://`.
fn postgres(rest: &str) -> Result<PostgresUrl, String> {
    if rest.contains('#') {
        return Err("a '#' must be written as %23".to_owned());
    }
    if rest.contains(char::is_control) || rest.trim() != rest {
        return Err("holds a control character or white space at an end".to_owned());
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    if place.contains(',') {
        return Err("names several hosts: one name is needed that always leads to the primary".to_owned());
    }
    // The parser requires a host after a user, but a socket is named in the parameters.
    let filled = if authority.ends_with('@') { "socket" } else { "" };
    let unusable = || "not a usable PostgreSQL URL: check host, port and percent-encoding".to_owned();
    let url = Url::parse(&format!("postgres://{authority}{filled}{tail}")).map_err(|_| unusable())?;
    let decoded = |text: &str| {
        let text = percent_decode_str(text).decode_utf8().map_err(|_| "not UTF-8 when percent-decoded".to_owned())?;
        if text.contains('\0') { Err("holds a zero byte".to_owned()) } else { Ok(text.into_owned()) }
    };

    let mut host = url.host_str().filter(|_| filled.is_empty()).map(decoded).transpose()?;
    let mut port = url.port();
    let mut user = Some(decoded(url.username())?).filter(|user| !user.is_empty());
    let mut password = url.password().map(decoded).transpose()?;
    let mut database = Some(decoded(url.path().trim_start_matches('/'))?).filter(|name| !name.is_empty());
    let (mut tls, mut root_certificates, mut certificate, mut key) = (None, None, None, None);
    let mut seen = Vec::new();
    for (name, value) in url.query_pairs() {
        if value.is_empty() || seen.contains(&name) {
            return Err("a parameter after '?' has no value, or is there twice".to_owned());
        }
        match &*name {
            "host" => host = Some(value.into_owned()),
            "port" => port = Some(value.parse().map_err(|_| "the port is not a number up to 65535".to_owned())?),
            "user" => user = Some(value.into_owned()),
            "password" => password = Some(value.into_owned()),
            "dbname" => database = Some(value.into_owned()),
            "sslmode" => tls = Some(tls_mode(&value)?),
            "sslrootcert" => root_certificates = Some(value.into_owned()),
            "sslcert" => certificate = Some(PathBuf::from(&*value)),
            "sslkey" => key = Some(PathBuf::from(&*value)),
            _ => {
                return Err(
                    "has an unknown parameter after '?' (known are host, port, user, password, dbname, sslmode, \
                            sslrootcert, sslcert and sslkey; a '?' in the password must be written as %3F)"
                        .to_owned(),
                );
            }
        }
        seen.push(name);
    }

    let host = match host {
        None => return Err("names no host (a Unix socket is written ?host=/directory)".to_owned()),
        Some(host) if host.starts_with('/') => PostgresHost::Socket(host.into()),
        Some(host) => PostgresHost::Tcp(host.trim_start_matches('[').trim_end_matches(']').to_owned()),
    };
    let is_socket = matches!(host, PostgresHost::Socket(_));
    let tls = match tls {
        // libpq ignores it there as well, because nobody else can read a socket.
        _ if is_socket => TlsMode::Disable,
        // As in libpq. The documents recommend verify-full.
        None => TlsMode::Prefer,
        Some(mode) => mode,
    };
    let client_certificate = match (certificate, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate, key)),
        _ => return Err("sslcert and sslkey belong together".to_owned()),
    };
    let (tls, root_certificates) = trusted(tls, root_certificates, is_socket)?;
    Ok(PostgresUrl {
        host,
        port: port.unwrap_or(PORT),
        user: user.ok_or("names no user")?,
        password: password.map(SecretString::from),
        database: database.ok_or("names no database")?,
        tls,
        root_certificates,
        client_certificate,
    })
}

fn tls_mode(text: &str) -> Result<TlsMode, String> {
    if text == "allow" {
        return Err("sslmode=allow is not supported: use prefer, or better verify-full".to_owned());
    }
    let known = TLS_MODES.iter().find(|(name, _)| *name == text);
    known.map(|(_, mode)| *mode).ok_or_else(|| {
        let names: Vec<_> = TLS_MODES.iter().map(|(name, _)| *name).collect();
        format!("sslmode is none of {}", names.join(", "))
    })
}

/// The mode that results from the trusted authorities, and the file with their certificates.
fn trusted(tls: TlsMode, roots: Option<String>, is_socket: bool) -> Result<(TlsMode, Option<PathBuf>), String> {
    match (tls, roots) {
        (_, None) => Ok((tls, None)),
        (TlsMode::VerifyFull, Some(roots)) if roots == "system" => Ok((tls, None)),
        // As in libpq, because anybody can get a certificate of a public authority for a host of their own.
        (_, Some(roots)) if roots == "system" => Err("sslrootcert=system needs sslmode=verify-full".to_owned()),
        // As in libpq, because somebody who names authorities wants certificates checked.
        (TlsMode::Require, Some(roots)) => Ok((TlsMode::VerifyCa, Some(roots.into()))),
        (TlsMode::VerifyCa | TlsMode::VerifyFull, Some(roots)) => Ok((tls, Some(roots.into()))),
        (TlsMode::Disable, Some(_)) if is_socket => Ok((tls, None)),
        (TlsMode::Disable | TlsMode::Prefer, Some(_)) => {
            Err("sslrootcert needs sslmode=verify-full, or verify-ca".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn parsed(text: &str) -> PostgresUrl {
        match database_url(text) {
            Ok(DatabaseUrl::Postgres(url)) => url,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn every_part_of_a_postgres_url_is_read() {
        let url = parsed(
            "postgres://fle%40et:p%40s%2Fs%23%3F%25%3A@db.example:5433/auth%20db?sslmode=verify-full&sslrootcert=/etc/ca.pem",
        );
        assert_eq!(url.host, PostgresHost::Tcp("db.example".to_owned()));
        assert_eq!((url.port, &*url.user, &*url.database), (5433, "fle@et", "auth db"));
        assert_eq!(url.password.as_ref().unwrap().expose_secret(), "p@s/s#?%:");
        assert_eq!((url.tls, url.root_certificates), (TlsMode::VerifyFull, Some("/etc/ca.pem".into())));

        let url = parsed("postgresql://u@[::1]/d");
        assert_eq!((url.host, url.port), (PostgresHost::Tcp("::1".to_owned()), 5432));
        assert_eq!((url.tls, url.password.is_none()), (TlsMode::Prefer, true));
    }

    #[test]
    fn a_socket_is_named_in_each_way_that_libpq_takes() {
        for text in [
            "postgres://u:Zq7@/d?host=/run/postgresql",
            "postgres:///d?host=/run/postgresql&user=u&password=Zq7",
            "postgres://u:Zq7@%2Frun%2Fpostgresql/d",
            "postgres://u:Zq7@%2Frun%2Fpostgresql:5432/?dbname=d&sslmode=verify-full",
            "postgres://u:Zq7@elsewhere/d?host=/run/postgresql&port=5432",
        ] {
            let url = parsed(text);
            assert_eq!(url.host, PostgresHost::Socket("/run/postgresql".into()), "{text}");
            assert_eq!((url.port, &*url.user, &*url.database, url.tls), (5432, "u", "d", TlsMode::Disable), "{text}");
            assert_eq!(url.password.as_ref().unwrap().expose_secret(), "Zq7");
            assert_eq!(url.to_string(), "postgres://u:***@%2Frun%2Fpostgresql:5432/d");
        }
    }

    #[test]
    fn authorities_are_asked_as_libpq_asks_them() {
        for (parameters, tls, roots) in [
            ("sslmode=require", TlsMode::Require, None),
            ("sslmode=require&sslrootcert=/ca", TlsMode::VerifyCa, Some("/ca")),
            ("sslmode=verify-ca&sslrootcert=/ca", TlsMode::VerifyCa, Some("/ca")),
            ("sslmode=verify-full&sslrootcert=system", TlsMode::VerifyFull, None),
            ("sslmode=disable", TlsMode::Disable, None),
        ] {
            let url = parsed(&format!("postgres://u@h/d?{parameters}"));
            assert_eq!((url.tls, url.root_certificates), (tls, roots.map(Into::into)), "{parameters}");
        }
    }

    #[test]
    fn what_is_shown_reads_back_without_the_password() {
        for text in [
            "postgres://u:Zq7%40@db.example:5433/auth?sslmode=verify-full&sslrootcert=/ca.pem&sslcert=/c&sslkey=/k",
            "postgres://a%20b@[fe80::1]:1/d%2Fe?sslmode=prefer",
            "postgres://u:Zq7@%2Fsome%20where:7/d",
        ] {
            let shown = parsed(text).to_string();
            assert!(!shown.contains("Zq7"), "{shown}");
            assert_eq!(parsed(&shown).to_string(), shown);
            assert!(!format!("{:?}", parsed(text)).contains("Zq7"));
        }
    }
}
