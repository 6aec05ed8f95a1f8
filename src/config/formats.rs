//! The kinds of values that variables have: how each is read, shown, and described in messages and documents.
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::{SecretSlice, SecretString};

use super::database::{DatabaseUrl, database_url as parse_database_url};
use super::redis::{RedisUrl, redis_url as parse_redis_url};
use super::sites::{self, PublicUrl, SitePattern};
use super::table::Field;
use super::{Color, OtlpProtocol, Sampling, TraceSampler, parse};

/// Parses text into a value. An error says what is wrong. The caller adds the variable, and the text unless it is
/// secret.
type Parse<T> = Box<dyn Fn(&str) -> Result<T, String>>;

/// One kind of values.
pub(super) struct Format<T> {
    pub(super) parse: Parse<T>,
    /// Shows a value as an operator would write it, with secrets masked.
    pub(super) show: Box<dyn Fn(&T) -> String>,
    /// The valid values, worded to follow "accepted: " in a message.
    pub(super) accepted: String,
    /// Whether a value must never be shown.
    pub(super) secret: bool,
    /// Two valid values, for tests.
    pub(super) examples: [String; 2],
}

impl<T> Format<T> {
    fn new(
        parse: impl Fn(&str) -> Result<T, String> + 'static,
        show: impl Fn(&T) -> String + 'static,
        accepted: impl Into<String>,
        examples: [&str; 2],
    ) -> Self {
        Self {
            parse: Box::new(parse),
            show: Box::new(show),
            accepted: accepted.into(),
            secret: false,
            examples: examples.map(str::to_owned),
        }
    }

    fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    /// The format itself. It lets the compiler find `T` from the field's type `F`.
    pub(super) fn of_field<F: Field<T>>(format: Self) -> Self {
        format
    }
}

pub(super) fn address() -> Format<SocketAddr> {
    let accepted = "an IP address and port such as 0.0.0.0:3000 or [::]:3000";
    Format::new(parse::address, ToString::to_string, accepted, ["127.0.0.1:1", "[::1]:2"])
}

/// Reads four spellings of each value, and shows these two.
pub(super) fn boolean(on: &'static str, off: &'static str) -> Format<bool> {
    let accepted = match on {
        "on" => "on or off (also true/false, 1/0, yes/no)",
        _ => "true or false (also on/off, 1/0, yes/no)",
    };
    Format::new(parse::boolean, move |value| if *value { on } else { off }.to_owned(), accepted, [on, off])
}

pub(super) fn whole<T>(range: RangeInclusive<T>) -> Format<T>
where
    T: TryFrom<u64> + PartialOrd + Display + Clone + 'static,
{
    let (least, most) = (range.start().to_string(), range.end().to_string());
    let accepted = format!("a whole number from {least} to {most}");
    Format::new(parse::integer(range), ToString::to_string, accepted, [&least, &most])
}

/// These words and no others, in upper or lower case.
pub(super) fn one_of<T, const N: usize>(words: [(&'static str, T); N]) -> Format<T>
where
    T: Copy + PartialEq + 'static,
{
    let names = words.map(|(name, _)| name);
    let parse = move |text: &str| {
        let word = words.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        word.map(|(_, value)| *value).ok_or_else(|| "unknown".to_owned())
    };
    let show = move |value: &T| {
        let word = words.iter().find(|(_, other)| other == value);
        word.expect("each value has a word").0.to_owned()
    };
    Format::new(parse, show, listed(&names), [names[0], names[N - 1]])
}

/// `a`, `a or b`, `a, b or c`.
fn listed(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

pub(super) fn lifetime() -> Format<Duration> {
    let accepted = "a duration of whole seconds from 1s to 400d, such as 90s, 30m or 24h";
    Format::new(parse::lifetime, |value| duration_text(*value), accepted, ["45m", "90m"])
}

pub(super) fn pause() -> Format<Duration> {
    let accepted = "a duration from 0s to 1h, such as 500ms, 5s or 1m";
    Format::new(parse::pause, |value| duration_text(*value), accepted, ["0s", "1s 500ms"])
}

pub(super) fn memory_kib() -> Format<u32> {
    let accepted = "a size in whole KiB such as 19MiB or 19456KiB, at least 8KiB per ARGON2_PARALLELISM, at most 4GiB";
    Format::new(parse::memory_kib, |value| size_text(*value), accepted, ["64MiB", "19457KiB"])
}

pub(super) fn networks() -> Format<Vec<IpNet>> {
    let show = |value: &Vec<IpNet>| value.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let accepted = "addresses and CIDR networks, separated by commas, such as 10.0.0.0/8,fd00::/8,192.0.2.7";
    Format::new(parse::networks, show, accepted, ["10.0.0.0/8,fd00::/8", "192.0.2.7/32"])
}

pub(super) fn replica_id() -> Format<String> {
    let accepted = "1 to 64 characters out of A-Z, a-z, 0-9, '.', '_' and '-'";
    Format::new(parse::replica_id, Clone::clone, accepted, ["replica_1.eu-west", "r2"])
}

pub(super) fn session_secrets() -> Format<Vec<SecretSlice<u8>>> {
    let show = |value: &Vec<SecretSlice<u8>>| match value.len() {
        1 => "1 key (masked)".to_owned(),
        n => format!("{n} keys (masked)"),
    };
    let accepted = "keys of at least 32 bytes, separated by commas; `openssl rand -hex 32` makes one";
    let examples = ["0123456789abcdef-Zq7-0123456789abcdef", "fedcba9876543210-Zq7-fedcba9876543210"];
    Format::new(parse::session_secrets, show, accepted, examples).secret()
}

/// A secret, because it holds a password.
pub(super) fn redis_url() -> Format<RedisUrl> {
    let accepted = "redis://[[user]:password@]host[:port][/database], unix:///socket[?db=number&user=name&pass=password], \
                    redis-sentinel://[[user]:password@]host[:port],…/NAME[?db=number] or \
                    redis-cluster://[[user]:password@]host[:port],…; with TLS rediss://, rediss-sentinel:// and \
                    rediss-cluster://; special characters percent-encoded";
    let examples = ["redis://:Zq7@127.0.0.1:7000/1", "redis://u:Zq7@redis.example"];
    Format::new(parse_redis_url, RedisUrl::to_string, accepted, examples).secret()
}

pub(super) fn file() -> Format<PathBuf> {
    Format::new(parse::file, |value| value.display().to_string(), "the path of a file", ["/etc/ca.pem", "tls/ca.pem"])
}

pub(super) fn public_url() -> Format<PublicUrl> {
    let accepted = "an https URL without a path, such as https://login.example.org (http with COOKIE_SECURE=false)";
    Format::new(
        sites::public_url,
        ToString::to_string,
        accepted,
        ["https://login.example.org", "https://a.example:8443"],
    )
}

pub(super) fn protected_hosts() -> Format<Vec<SitePattern>> {
    let show = |value: &Vec<SitePattern>| value.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let accepted = "host names, separated by commas, such as app.example.org,*.example.net,app.example.org:8443";
    Format::new(sites::protected_hosts, show, accepted, ["app.example.org", "*.apps.example.org,wiki.example.org"])
}

pub(super) fn cookie_domain() -> Format<String> {
    let accepted = "a domain such as example.org, which PUBLIC_URL and all PROTECTED_HOSTS are part of";
    Format::new(sites::cookie_domain, Clone::clone, accepted, ["example.org", "apps.example.org"])
}

pub(super) fn brand_name() -> Format<String> {
    Format::new(parse::brand_name, Clone::clone, "1 to 40 characters", ["Example & Sons", "Größe"])
}

pub(super) fn color() -> Format<Color> {
    let read = |text: &str| text.parse().map_err(str::to_owned);
    Format::new(
        read,
        ToString::to_string,
        "a colour as six hexadecimal digits, such as #0b5cad",
        ["#ffcc00", "#123456"],
    )
}

pub(super) fn user_name() -> Format<String> {
    Format::new(parse::credential, Clone::clone, "a user name", ["sentinel-user", "u"])
}

pub(super) fn password() -> Format<SecretString> {
    let read = |text: &str| parse::credential(text).map(SecretString::from);
    Format::new(read, |_| "***".to_owned(), "a password", ["Zq7", "Zq7-too"]).secret()
}

/// A secret, because the URL of a database server holds a password.
pub(super) fn database_url() -> Format<DatabaseUrl> {
    let accepted = "sqlite://relative/path, sqlite:///absolute/path or \
                    postgres://user:password@host[:port]/database[?sslmode=verify-full&sslrootcert=file], special \
                    characters percent-encoded";
    let examples = ["sqlite://users.db", "postgres://u:Zq7@db.example/auth?sslmode=verify-full"];
    Format::new(parse_database_url, DatabaseUrl::to_string, accepted, examples).secret()
}

pub(super) fn log_filter() -> Format<String> {
    let accepted = "tracing directives such as info or info,sqlx=warn (levels: off, error, warn, info, debug, trace)";
    Format::new(parse::log_filter, Clone::clone, accepted, ["debug", "info,authfleet=debug"])
}

pub(super) fn collector() -> Format<String> {
    let accepted = "an http or https URL such as http://localhost:4318, without user, password, '?' or '#'";
    Format::new(parse::collector, Clone::clone, accepted, ["http://localhost:4318", "https://collector.example/otlp"])
}

pub(super) fn otlp_protocol() -> Format<OtlpProtocol> {
    let (show, examples) = (|_: &OtlpProtocol| "http/protobuf".to_owned(), ["http/protobuf"; 2]);
    Format::new(parse::otlp_protocol, show, "http/protobuf", examples)
}

pub(super) fn trace_sampler() -> Format<TraceSampler> {
    let show = |value: &TraceSampler| {
        let own = match value.sampling {
            Sampling::All => "always_on",
            Sampling::None => "always_off",
            Sampling::Share => "traceidratio",
        };
        if value.parent_based { format!("parentbased_{own}") } else { own.to_owned() }
    };
    let accepted = "always_on, always_off, traceidratio, or one of these after parentbased_";
    Format::new(parse::trace_sampler, show, accepted, ["always_off", "parentbased_traceidratio"])
}

pub(super) fn share() -> Format<f64> {
    Format::new(parse::share, ToString::to_string, "a number from 0 to 1, such as 0.01", ["0", "0.01"])
}

pub(super) fn service_name() -> Format<String> {
    Format::new(parse::service_name, Clone::clone, "1 to 255 characters", ["sign-in", "s"])
}

const PAIRS: &str = "pairs separated by commas, values percent-encoded where they hold a comma or a percent sign";

pub(super) fn pairs() -> Format<Vec<(String, String)>> {
    let show = |value: &Vec<(String, String)>| parse::pairs_text(value);
    Format::new(parse::pairs, show, format!("key=value {PAIRS}"), ["a=b", "deployment.environment.name=x,note=a%2Cb"])
}

pub(super) fn headers() -> Format<Vec<(String, SecretString)>> {
    let read = |text: &str| {
        let pairs = parse::headers(text)?;
        Ok(pairs.into_iter().map(|(name, value)| (name, SecretString::from(value))).collect())
    };
    let show = |value: &Vec<(String, SecretString)>| {
        value.iter().map(|(name, _)| format!("{name}=***")).collect::<Vec<_>>().join(",")
    };
    Format::new(read, show, format!("name=value {PAIRS}"), ["x-api-key=Zq7", "x-tenant=Zq7,x-api-key=a%2Cb"]).secret()
}

/// A duration as an operator would write it: `24h`, where humantime says `1day`.
pub(super) fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if duration.subsec_nanos() != 0 {
        humantime::format_duration(duration).to_string()
    } else if seconds == 0 || !seconds.is_multiple_of(60) {
        format!("{seconds}s")
    } else if !seconds.is_multiple_of(3600) {
        format!("{}m", seconds / 60)
    } else {
        format!("{}h", seconds / 3600)
    }
}

/// A size in KiB as an operator would write it.
pub(super) fn size_text(kib: u32) -> String {
    if kib.is_multiple_of(1024) { format!("{}MiB", kib / 1024) } else { format!("{kib}KiB") }
}
