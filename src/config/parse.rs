//! Parses text into values. An error says what is wrong. The caller adds the variable, and the text unless it is
//! secret.
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use secrecy::SecretSlice;
use tracing_subscriber::EnvFilter;

use super::{OtlpProtocol, Sampling, TraceSampler};

/// RFC 6265bis, section 5.5: user agents cut a cookie's life to 400 days.
const LONGEST_LIFETIME: Duration = Duration::from_hours(400 * 24);
const LONGEST_PAUSE: Duration = Duration::from_hours(1);
/// Argon2 itself allows more, but no server should spend more than 4 GiB on one login.
const MOST_MEMORY: u64 = 4 << 30;
const SHORTEST_SECRET: usize = 32;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "not an IP address with a port".to_owned())
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" => Ok(true),
        "false" | "0" | "off" | "no" => Ok(false),
        _ => Err("neither true nor false".to_owned()),
    }
}

pub(super) fn integer<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String>
where
    T: TryFrom<u64> + PartialOrd + Display,
{
    move |text| {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err("not a whole number".to_owned());
        }
        match text.parse::<u64>().ok().and_then(|n| T::try_from(n).ok()) {
            Some(n) if n < *range.start() => Err(format!("below {}", range.start())),
            Some(n) if n <= *range.end() => Ok(n),
            _ => Err(format!("above {}", range.end())),
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// Whole seconds, because that is what `EXPIRE` and `Max-Age` count in.
pub(super) fn lifetime(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        d if d.subsec_nanos() != 0 => Err("not whole seconds".to_owned()),
        d if d.is_zero() => Err("below 1s".to_owned()),
        d if d > LONGEST_LIFETIME => Err("above 400d".to_owned()),
        d => Ok(d),
    }
}

pub(super) fn pause(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        d if d > LONGEST_PAUSE => Err("above 1h".to_owned()),
        d => Ok(d),
    }
}

/// A size in KiB, the unit of Argon2's memory parameter.
pub(super) fn memory_kib(text: &str) -> Result<u32, String> {
    let ByteSize(bytes) = text.parse().map_err(|_| "not a size".to_owned())?;
    match bytes {
        ..8192 => Err(format!("below 8KiB ({bytes} bytes)")),
        _ if bytes > MOST_MEMORY => Err("above 4GiB".to_owned()),
        _ if bytes % 1024 != 0 => Err(format!("not whole KiB ({bytes} bytes)")),
        _ => u32::try_from(bytes / 1024).map_err(|_| "above 4GiB".to_owned()),
    }
}

pub(super) fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let network = |part: &str| {
        let part = part.trim();
        part.parse::<IpNet>()
            .map(|network| network.trunc())
            .or_else(|_| part.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| match part {
                "" => "an entry is empty".to_owned(),
                _ => format!("{} is neither an address nor a network", quoted(part)),
            })
    };
    text.split(',').map(network).collect()
}

pub(super) fn replica_id(text: &str) -> Result<String, String> {
    match text.chars().count() {
        1..=64 if text.chars().all(fits_replica_id) => Ok(text.to_owned()),
        n @ 1..=64 => Err(format!("a character among these {n} is not allowed")),
        n => Err(format!("{n} characters")),
    }
}

/// The host's name, made to fit. It is cut at the front, because orchestrators tell replicas apart by the end.
pub(super) fn replica_id_of_host(host_name: &str) -> Option<String> {
    let name: Vec<char> = host_name.chars().map(|c| if fits_replica_id(c) { c } else { '-' }).collect();
    (!name.is_empty()).then(|| name[name.len().saturating_sub(64)..].iter().collect())
}

fn fits_replica_id(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

pub(super) fn session_secrets(text: &str) -> Result<Vec<SecretSlice<u8>>, String> {
    let keys: Vec<&str> = text.split(',').collect();
    let mut faults = Vec::new();
    for (i, key) in keys.iter().enumerate() {
        let n = i + 1;
        if key.is_empty() {
            faults.push(format!("key {n} of {} is empty", keys.len()));
        } else if key.trim() != *key || key.contains(char::is_control) {
            // A replica that gets the key without the stray space would refuse all cookies of the others.
            faults.push(format!("key {n} begins or ends with white space, or holds a line break"));
        } else if key.len() < SHORTEST_SECRET {
            faults.push(format!("key {n} has only {} bytes", key.len()));
        } else if let Some(first) = keys[..i].iter().position(|other| other == key) {
            faults.push(format!("keys {} and {n} are the same", first + 1));
        }
    }
    if faults.is_empty() {
        Ok(keys.iter().map(|key| SecretSlice::from(key.as_bytes().to_vec())).collect())
    } else {
        Err(faults.join(", "))
    }
}

/// A file, by its path. The code that uses the file checks whether it can be read.
pub(super) fn file(text: &str) -> Result<PathBuf, String> {
    if text.contains(char::is_control) || text.trim() != text {
        return Err("holds a control character or white space at an end".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// A user name or a password. A line break at its end comes from a tool, and the server would refuse it.
pub(super) fn credential(text: &str) -> Result<String, String> {
    if text.contains(char::is_control) {
        return Err("holds a control character, such as a line break".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    // A space after a comma would silently become part of a module's name.
    let directives: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    for directive in &directives {
        if directive.contains(char::is_whitespace) && !directive.contains(['[', '{']) {
            return Err(format!("white space within {}", quoted(directive)));
        }
        // `inof` would be read as a module's name, and would silence everything else.
        let word = directive.to_ascii_lowercase();
        let slip = LEVELS.iter().find(|level| word != **level && strsim::osa_distance(&word, level) <= 1);
        if let Some(level) = slip.filter(|_| word.len() > 2 && !LEVELS.contains(&word.as_str())) {
            return Err(format!("{} is not a level; did you mean {level}?", quoted(directive)));
        }
    }
    if directives.is_empty() {
        return Err("no directive".to_owned());
    }
    let filter = directives.join(",");
    EnvFilter::builder().parse(&filter).map_err(|error| error.to_string())?;
    Ok(filter)
}

/// A collector's address, without a slash at its end.
pub(super) fn collector(text: &str) -> Result<String, String> {
    // `authfleet config` would show a password in it. Keys belong in the headers.
    if text.contains(['@', '?', '#']) || text.contains(char::is_whitespace) {
        return Err("holds '@', '?', '#' or white space".to_owned());
    }
    let uri: http::Uri = text.parse().map_err(|_| "not a URL".to_owned())?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("begins neither with http:// nor with https://".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

pub(super) fn otlp_protocol(text: &str) -> Result<OtlpProtocol, String> {
    match text {
        "http/protobuf" => Ok(OtlpProtocol::HttpProtobuf),
        "grpc" | "http/json" => Err("not supported by this build".to_owned()),
        _ => Err("unknown protocol".to_owned()),
    }
}

pub(super) fn trace_sampler(text: &str) -> Result<TraceSampler, String> {
    let (parent_based, own) = match text.strip_prefix("parentbased_") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let sampling = match own {
        "always_on" => Sampling::All,
        "always_off" => Sampling::None,
        "traceidratio" => Sampling::Share,
        _ => return Err("unknown sampler".to_owned()),
    };
    Ok(TraceSampler { parent_based, sampling })
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        Ok(_) => Err("not between 0 and 1".to_owned()),
        Err(_) => Err("not a number".to_owned()),
    }
}

pub(super) fn service_name(text: &str) -> Result<String, String> {
    match text.chars().count() {
        1..=255 if !text.contains(char::is_control) => Ok(text.to_owned()),
        1..=255 => Err("holds a control character".to_owned()),
        n => Err(format!("{n} characters")),
    }
}

/// A name that fits beside a logo.
pub(super) fn brand_name(text: &str) -> Result<String, String> {
    match text.chars().count() {
        1..=40 if !text.contains(char::is_control) && !text.trim().is_empty() => Ok(text.trim().to_owned()),
        1..=40 => Err("blank, or holds a control character".to_owned()),
        n => Err(format!("{n} characters")),
    }
}

/// Percent-encoded pairs, `key=value,key=value`, as in W3C Baggage, whose form OpenTelemetry's variables have.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let pair = |(i, part): (usize, &str)| {
        let n = i + 1;
        let (key, value) = part.split_once('=').ok_or_else(|| format!("entry {n} has no '='"))?;
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(format!("entry {n} has no usable name before its '='"));
        }
        let value = percent_encoding::percent_decode_str(value)
            .decode_utf8()
            .map_err(|_| format!("entry {n} is not UTF-8 when decoded"))?;
        Ok((key.to_owned(), value.into_owned()))
    };
    text.split(',').enumerate().filter(|(_, part)| !part.trim().is_empty()).map(pair).collect()
}

/// Writes pairs as [`pairs`] reads them.
pub(super) fn pairs_text(pairs: &[(String, String)]) -> String {
    const SPECIAL: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b',').add(b'%').add(b' ');
    let pair =
        |(key, value): &(String, String)| format!("{key}={}", percent_encoding::utf8_percent_encode(value, SPECIAL));
    pairs.iter().map(pair).collect::<Vec<_>>().join(",")
}

pub(super) fn headers(text: &str) -> Result<Vec<(String, String)>, String> {
    let pairs = pairs(text)?;
    for (i, (name, value)) in pairs.iter().enumerate() {
        let fits = http::HeaderName::try_from(name).is_ok() && http::HeaderValue::try_from(value).is_ok();
        if !fits {
            return Err(format!("entry {} is not an HTTP header", i + 1));
        }
    }
    Ok(pairs)
}

/// A value in quotes, escaped and cut, so that it can't break the message into lines.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((cut, _)) => format!("{:?}...", &text[..cut]),
        None => format!("{text:?}"),
    }
}
