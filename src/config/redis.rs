//! `REDIS_URL`: where sessions are kept.
use std::fmt;
use std::path::PathBuf;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use secrecy::SecretString;
use url::Url;

/// Redis's port if the URL names none.
const PORT: u16 = 6379;
/// A Sentinel's port if the URL names none.
const SENTINEL_PORT: u16 = 26379;
/// Characters that must be encoded in a part of a URL.
const SPECIAL: &AsciiSet =
    &CONTROLS.add(b' ').add(b'%').add(b'/').add(b':').add(b'?').add(b'#').add(b'@').add(b'&').add(b',').add(b'=');

/// Where sessions are kept.
#[derive(Clone, Debug)]
pub(crate) struct RedisUrl {
    /// The servers.
    pub(crate) topology: RedisTopology,
    /// Whether connections are encrypted, including those to Sentinels.
    pub(crate) tls: bool,
    /// The database's number. 0 in a cluster, which has no other.
    pub(crate) database: i64,
    /// The user who connects. Redis's user `default` if none is named.
    pub(crate) username: Option<String>,
    /// The user's password, if the server wants one.
    pub(crate) password: Option<SecretString>,
    /// Whether to use RESP3. Redis 7 supports both, and nothing here needs the newer one.
    pub(crate) is_resp3: bool,
}

/// Which servers a `REDIS_URL` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RedisTopology {
    /// One server, on TCP.
    Single(RedisNode),
    /// One server, on a Unix socket of this machine.
    Unix(PathBuf),
    /// A primary that these Sentinels know by this name.
    Sentinel {
        /// The Sentinels.
        nodes: Vec<RedisNode>,
        /// What they call the primary.
        primary: String,
    },
    /// A cluster to which these belong.
    Cluster(Vec<RedisNode>),
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RedisNode {
    /// A name, or an address without brackets.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
}

impl fmt::Display for RedisNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl RedisUrl {
    /// How many replicas must confirm a revocation by default: none if there may be none.
    pub(crate) fn usual_replicas(&self) -> u32 {
        match self.topology {
            RedisTopology::Single(_) | RedisTopology::Unix(_) => 0,
            RedisTopology::Sentinel { .. } | RedisTopology::Cluster(_) => 1,
        }
    }

    /// Whether it names Sentinels.
    pub(crate) fn has_sentinels(&self) -> bool {
        matches!(self.topology, RedisTopology::Sentinel { .. })
    }
}

/// As an operator would write it, with `***` for a password.
impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = |text: &str| utf8_percent_encode(text, SPECIAL).to_string();
        let mut parameters = Vec::new();
        let s = if self.tls { "s" } else { "" };
        let user = match (&self.username, &self.password) {
            (None, None) => String::new(),
            (name, password) => {
                let password = if password.is_some() { ":***" } else { "" };
                format!("{}{password}@", name.as_deref().map(encoded).unwrap_or_default())
            }
        };
        let listed = |nodes: &[RedisNode], usual: u16| {
            let shown = nodes.iter().map(|node| {
                let text = node.to_string();
                text.strip_suffix(&format!(":{usual}")).map_or_else(|| text.clone(), str::to_owned)
            });
            shown.collect::<Vec<_>>().join(",")
        };
        let database = Some(self.database).filter(|&number| number != 0);
        match &self.topology {
            RedisTopology::Single(node) => {
                write!(f, "redis{s}://{user}{}", listed(std::slice::from_ref(node), PORT))?;
                database.iter().try_for_each(|number| write!(f, "/{number}"))?;
            }
            RedisTopology::Unix(path) => {
                write!(f, "unix://{}", path.display())?;
                parameters.extend(database.map(|number| format!("db={number}")));
                parameters.extend(self.username.iter().map(|name| format!("user={}", encoded(name))));
                parameters.extend(self.password.iter().map(|_| "pass=***".to_owned()));
            }
            RedisTopology::Sentinel { nodes, primary } => {
                write!(f, "redis{s}-sentinel://{user}{}/{}", listed(nodes, SENTINEL_PORT), encoded(primary))?;
                parameters.extend(database.map(|number| format!("db={number}")));
            }
            RedisTopology::Cluster(nodes) => write!(f, "redis{s}-cluster://{user}{}", listed(nodes, PORT))?,
        }
        if self.is_resp3 {
            parameters.push("protocol=resp3".to_owned());
        }
        if parameters.is_empty() { Ok(()) } else { write!(f, "?{}", parameters.join("&")) }
    }
}

/// Which servers a scheme means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Single,
    Unix,
    Sentinel,
    Cluster,
}

/// Parses `REDIS_URL`. An error says what is wrong and quotes nothing, because a password with a stray `/` or `@` may
/// be in any part.
pub(super) fn redis_url(text: &str) -> Result<RedisUrl, String> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let (kind, tls) = match scheme.to_ascii_lowercase().as_str() {
        "redis" => (Kind::Single, false),
        "rediss" => (Kind::Single, true),
        "unix" | "redis+unix" => (Kind::Unix, false),
        "redis-sentinel" => (Kind::Sentinel, false),
        "rediss-sentinel" => (Kind::Sentinel, true),
        "redis-cluster" => (Kind::Cluster, false),
        "rediss-cluster" => (Kind::Cluster, true),
        _ => {
            return Err("begins neither with redis://, redis-sentinel:// or redis-cluster:// (with TLS rediss…) nor \
                        with unix://"
                .to_owned());
        }
    };
    if rest.contains('#') {
        return Err("a '#' must be written as %23".to_owned());
    }
    if rest.contains(char::is_control) || rest.trim() != rest {
        return Err("holds a control character or white space at an end".to_owned());
    }
    let parts = Parts::of(kind, rest)?;
    if parts.username.is_some() && parts.password.is_none() {
        return Err("names a user without a password (a password alone is written redis://:password@host)".to_owned());
    }
    let usual = if kind == Kind::Sentinel { SENTINEL_PORT } else { PORT };
    let mut nodes = parts.hosts.into_iter().map(|(host, port)| RedisNode { host, port: port.unwrap_or(usual) });
    let path = parts.path.trim_start_matches('/');
    let by_path = match kind {
        Kind::Single if !path.is_empty() => Some(path.parse().map_err(|_| unusable())?),
        Kind::Cluster if !path.is_empty() => Some(0),
        _ => None,
    };
    let database = match (by_path, parts.database) {
        (Some(_), Some(_)) => return Err("names a database number twice".to_owned()),
        (None, None) => 0,
        _ if kind == Kind::Cluster => {
            return Err("redis-cluster:// takes no database number: a cluster has only database 0".to_owned());
        }
        (Some(number), None) | (None, Some(number)) if number < 0 => {
            return Err("the database number is negative".to_owned());
        }
        (Some(number), None) | (None, Some(number)) => number,
    };
    let topology = match kind {
        Kind::Unix => RedisTopology::Unix(PathBuf::from(parts.path)),
        Kind::Cluster => RedisTopology::Cluster(nodes.collect()),
        Kind::Sentinel if path.is_empty() => {
            return Err("names no primary: after the Sentinels comes what they call it, \
                        redis-sentinel://host:26379/NAME"
                .to_owned());
        }
        Kind::Sentinel => RedisTopology::Sentinel { nodes: nodes.collect(), primary: path.to_owned() },
        Kind::Single => match (nodes.next(), nodes.next()) {
            (Some(node), None) => RedisTopology::Single(node),
            _ => {
                return Err("names several hosts, which only redis-sentinel:// and redis-cluster:// allow".to_owned());
            }
        },
    };
    Ok(RedisUrl {
        topology,
        tls,
        database,
        username: parts.username,
        password: parts.password.map(SecretString::from),
        is_resp3: parts.is_resp3,
    })
}

fn unusable() -> String {
    "not a usable Redis URL: check host, port, database number and percent-encoding".to_owned()
}

/// The parts of a URL, decoded.
#[derive(Default)]
struct Parts {
    hosts: Vec<(String, Option<u16>)>,
    path: String,
    database: Option<i64>,
    username: Option<String>,
    password: Option<String>,
    is_resp3: bool,
}

impl Parts {
    /// Parses what follows `://`.
    fn of(kind: Kind, rest: &str) -> Result<Self, String> {
        let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (user, places) = authority.rsplit_once('@').map_or(("", authority), |(user, places)| (user, places));
        let user = if user.is_empty() { String::new() } else { format!("{user}@") };
        let mut parts = Self::default();
        if kind == Kind::Unix {
            if !authority.is_empty() || !tail.starts_with('/') {
                return Err("a Unix socket is named by its absolute path: unix:///run/redis.sock".to_owned());
            }
            parts.read_tail(kind, &Url::parse(&format!("redis://socket{tail}")).map_err(|_| unusable())?)?;
            return Ok(parts);
        }
        for (index, place) in places.split(',').enumerate() {
            // The parser supports one host per URL.
            let url = Url::parse(&format!("redis://{user}{place}{tail}")).map_err(|_| unusable())?;
            let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(unusable)?;
            parts.hosts.push((decoded(host.trim_start_matches('[').trim_end_matches(']'))?, url.port()));
            if index == 0 {
                parts.username = Some(decoded(url.username())?).filter(|name| !name.is_empty());
                parts.password = url.password().map(decoded).transpose()?;
                parts.read_tail(kind, &url)?;
            }
        }
        Ok(parts)
    }

    fn read_tail(&mut self, kind: Kind, url: &Url) -> Result<(), String> {
        self.path = decoded(url.path())?;
        let mut seen = Vec::new();
        for (name, value) in url.query_pairs() {
            if value.is_empty() || seen.contains(&name) {
                return Err("a parameter after '?' has no value, or is there twice (a '?' in the password must be \
                            written as %3F)"
                    .to_owned());
            }
            match &*name {
                "db" => self.database = Some(value.parse().map_err(|_| "db is not a number".to_owned())?),
                "protocol" => {
                    self.is_resp3 = match &*value {
                        "2" | "resp2" => false,
                        "3" | "resp3" => true,
                        _ => return Err(format!("{}: protocol is neither resp2 nor resp3", unusable())),
                    }
                }
                // Other clients use this form too, because a socket's URL has no part before an `@`.
                "user" if kind == Kind::Unix => self.username = Some(value.into_owned()),
                "pass" if kind == Kind::Unix => self.password = Some(value.into_owned()),
                _ => {
                    return Err(
                        "has an unknown parameter after '?' (known are db and protocol, with unix:// user and \
                                pass; a '?' in the password must be written as %3F)"
                            .to_owned(),
                    );
                }
            }
            seen.push(name);
        }
        Ok(())
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| "not UTF-8 when percent-decoded".to_owned())?;
    if text.contains('\0') { Err("holds a zero byte".to_owned()) } else { Ok(text.into_owned()) }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn parsed(text: &str) -> RedisUrl {
        redis_url(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn node(host: &str, port: u16) -> RedisNode {
        RedisNode { host: host.to_owned(), port }
    }

    #[test]
    fn every_form_is_read() {
        for (text, topology, tls, database) in [
            ("redis://h", RedisTopology::Single(node("h", 6379)), false, 0),
            ("rediss://[::1]:7000/3", RedisTopology::Single(node("::1", 7000)), true, 3),
            ("redis://h?db=4", RedisTopology::Single(node("h", 6379)), false, 4),
            ("unix:///run/redis.sock?db=2", RedisTopology::Unix("/run/redis.sock".into()), false, 2),
            (
                "redis-sentinel://u:p@a,b:1,[fe80::2]/my%2Fset?db=5",
                RedisTopology::Sentinel {
                    nodes: vec![node("a", 26379), node("b", 1), node("fe80::2", 26379)],
                    primary: "my/set".to_owned(),
                },
                false,
                5,
            ),
            (
                "rediss-sentinel://a/m",
                RedisTopology::Sentinel { nodes: vec![node("a", 26379)], primary: "m".to_owned() },
                true,
                0,
            ),
            ("redis-cluster://a,b:7001/", RedisTopology::Cluster(vec![node("a", 6379), node("b", 7001)]), false, 0),
            ("rediss-cluster://:p@a", RedisTopology::Cluster(vec![node("a", 6379)]), true, 0),
        ] {
            let url = parsed(text);
            assert_eq!((url.topology, url.tls, url.database), (topology, tls, database), "{text}");
        }
    }

    #[test]
    fn user_and_password_are_decoded() {
        for text in [
            "redis://fle%40et:p%40s%2Fs%23%3F%25%3A%2C@h",
            "redis-sentinel://fle%40et:p%40s%2Fs%23%3F%25%3A%2C@a,b/m",
            "rediss-cluster://fle%40et:p%40s%2Fs%23%3F%25%3A%2C@a,b",
            "unix:///s?user=fle%40et&pass=p%40s%2Fs%23%3F%25%3A%2C",
        ] {
            let url = parsed(text);
            assert_eq!(url.username.as_deref(), Some("fle@et"), "{text}");
            assert_eq!(url.password.unwrap().expose_secret(), "p@s/s#?%:,", "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for (text, message) in [
            ("redis-cluster://u:Zq7@h/0", "takes no database number"),
            ("redis-cluster://u:Zq7@h?db=1", "takes no database number"),
            ("redis://u:Zq7@a,b", "names several hosts"),
            ("redis-sentinel://u:Zq7@a", "names no primary"),
            ("redis-sentinel://u:Zq7@a,,b/m", "not a usable"),
            ("redis-sentinel://u:Zq7@a/m?database=1", "unknown parameter"),
            ("redis://u:Zq7@h/1?db=2", "twice"),
            ("redis://u:Zq7@h?db=Zq7", "not a number"),
            ("redis://u:Zq%FF@h", "not UTF-8"),
            ("unix://u:Zq7@/run/redis.sock", "absolute path"),
            ("unix://Zq7", "absolute path"),
        ] {
            let error = redis_url(text).expect_err(text);
            assert!(error.contains(message) && !error.contains("Zq7"), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_shown_reads_back_without_the_password() {
        for text in [
            "redis://u:Zq7%2F@[::1]:7000/1?protocol=resp3",
            "unix:///run/redis.sock?db=2&user=a%26b&pass=Zq7",
            "rediss-sentinel://u:Zq7@a,b:1/my%20set?db=5",
            "redis-cluster://:Zq7@a,[::1]:7",
        ] {
            let shown = parsed(text).to_string();
            assert!(!shown.contains("Zq7"), "{shown}");
            assert_eq!(parsed(&shown).to_string(), shown);
            assert!(!format!("{:?}", parsed(text)).contains("Zq7"));
        }
    }
}
