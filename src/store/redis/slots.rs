//! Slots of a Redis Cluster: which key belongs to which slot, and which server has it.
//!
//! <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>
use std::collections::BTreeMap;

use redis::{Arg, Cmd, ServerErrorKind, Value};

use crate::config::RedisNode;

/// How many slots a cluster has.
pub(super) const SLOTS: u16 = 16_384;

/// The slot of a key, or of its hash tag (the text between its first braces) if that isn't empty.
pub(super) fn slot(key: &[u8]) -> u16 {
    const CRC: crc::Crc<u16> = crc::Crc::<u16>::new(&crc::CRC_16_XMODEM);
    let tag = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        rest.iter().position(|&byte| byte == b'}').filter(|&length| length > 0).map(|length| &rest[..length])
    });
    CRC.checksum(tag.unwrap_or(key)) % SLOTS
}

/// The slot of a command's first key; `None` for a command without keys.
pub(super) fn slot_of(command: &Cmd) -> Option<u16> {
    let mut words = command.args_iter().map(|word| match word {
        Arg::Simple(bytes) => bytes,
        _ => &[],
    });
    let key = match words.next()? {
        b"EVAL" | b"EVALSHA" => words.nth(2)?,
        b"CLUSTER" | b"CONFIG" | b"DBSIZE" | b"INFO" | b"PING" | b"RANDOMKEY" | b"ROLE" | b"SCAN" | b"SCRIPT"
        | b"TIME" | b"WAIT" => return None,
        _ => words.next()?,
    };
    Some(slot(key))
}

/// Why a command must go elsewhere or be repeated later.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Detour {
    /// The slot has moved there for good.
    Moved(u16, RedisNode),
    /// The slot is moving, and this key may be there already. The command must follow an `ASKING`.
    Ask(RedisNode),
    /// The slot is moving, and only some of the command's keys are here.
    Later,
}

impl Detour {
    /// Reads a reply; `None` if it is an answer or another kind of error.
    pub(super) fn of(reply: &Value) -> Option<Self> {
        let Value::ServerError(error) = reply else { return None };
        let place = || {
            let (slot, address) = error.details()?.split_once(' ')?;
            let (host, port) = address.rsplit_once(':')?;
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Some((slot.parse().ok()?, RedisNode { host: host.to_owned(), port: port.parse().ok()? }))
        };
        match error.kind()? {
            // A server that doesn't know its own address names none. The next read of the layout helps.
            ServerErrorKind::Moved => Some(match place() {
                Some((slot, node)) if slot < SLOTS && !node.host.is_empty() => Self::Moved(slot, node),
                _ => Self::Later,
            }),
            ServerErrorKind::Ask => Some(match place() {
                Some((_, node)) if !node.host.is_empty() => Self::Ask(node),
                _ => Self::Later,
            }),
            ServerErrorKind::TryAgain => Some(Self::Later),
            _ => None,
        }
    }
}

/// The cluster as one of its members sees it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    /// Whether that member belongs to the majority.
    pub(super) is_ok: bool,
    /// The configuration's number, which grows with each failover.
    pub(super) epoch: u64,
    /// First and last slot of each range, with its primary.
    pub(super) ranges: Vec<(u16, u16, RedisNode)>,
}

impl View {
    /// Reads the replies to `CLUSTER SLOTS` and `CLUSTER INFO` of the server at `asked`.
    ///
    /// # Errors
    ///
    /// What the server said, if it isn't a list of slots.
    pub(super) fn read(replies: Vec<Value>, asked: &RedisNode) -> Result<Self, String> {
        let mut replies = replies.into_iter();
        let ranges = match replies.next() {
            Some(Value::Array(ranges)) => ranges,
            Some(Value::ServerError(error)) => return Err(redis::RedisError::from(error).to_string()),
            _ => return Err("an answer of another shape than CLUSTER SLOTS has".to_owned()),
        };
        let ranges = ranges.into_iter().filter_map(|range| {
            let Value::Array(range) = range else { return None };
            let mut range = range.into_iter();
            let (Value::Int(first), Value::Int(last), Value::Array(primary)) =
                (range.next()?, range.next()?, range.next()?)
            else {
                return None;
            };
            let mut primary = primary.into_iter();
            let host = match primary.next()? {
                Value::BulkString(host) => String::from_utf8(host).ok()?,
                _ => String::new(),
            };
            let Value::Int(port) = primary.next()? else { return None };
            // A member that doesn't know its own name has the one that it was reached by.
            let host = if host.is_empty() || host == "?" { asked.host.clone() } else { host };
            let node = RedisNode { host, port: u16::try_from(port).ok()? };
            Some((u16::try_from(first).ok()?, u16::try_from(last).ok().filter(|last| *last < SLOTS)?, node))
        });
        let ranges = ranges.collect();
        let info: String = replies.next().and_then(|info| redis::from_redis_value(info).ok()).unwrap_or_default();
        let fields: BTreeMap<_, _> = info.lines().filter_map(|line| line.trim().split_once(':')).collect();
        Ok(Self {
            is_ok: fields.get("cluster_state").is_none_or(|state| *state == "ok"),
            epoch: fields.get("cluster_current_epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0),
            ranges,
        })
    }

    /// How many slots have a primary.
    pub(super) fn covered(&self) -> usize {
        self.ranges
            .iter()
            .map(|(first, last, _)| usize::from(*last) + 1 - usize::from(*first).min(usize::from(*last) + 1))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use redis::{cmd, parse_redis_value};

    use super::*;

    fn node(host: &str, port: u16) -> RedisNode {
        RedisNode { host: host.to_owned(), port }
    }

    #[test]
    fn slots_are_those_that_redis_computes() {
        // From the specification, and by CLUSTER KEYSLOT.
        for (key, expected) in [
            ("123456789", 12_739),
            ("foo", 12_182),
            ("bar", 5061),
            ("{foo}bar", 12_182),
            ("x{foo}{bar}", 12_182),
            ("{}foo", 9500),
            ("", 0),
        ] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }

    #[test]
    fn the_key_of_each_kind_of_command_is_found() {
        let mut eval = cmd("EVALSHA");
        eval.arg("hash").arg(2).arg("foo").arg("{foo}2").arg("argument");
        assert_eq!(slot_of(&eval), Some(12_182));
        assert_eq!(slot_of(cmd("HMGET").arg("foo").arg("field")), Some(12_182));
        for keyless in ["TIME", "SCAN", "INFO", "DBSIZE"] {
            assert_eq!(slot_of(cmd(keyless).arg("foo")), None, "{keyless}");
        }
    }

    #[test]
    fn detours_are_read() {
        let detour = |text: &str| Detour::of(&parse_redis_value(format!("-{text}\r\n").as_bytes()).expect("a reply"));
        assert_eq!(detour("MOVED 3999 127.0.0.1:6381"), Some(Detour::Moved(3999, node("127.0.0.1", 6381))));
        assert_eq!(detour("MOVED 3999 ::1:6381"), Some(Detour::Moved(3999, node("::1", 6381))));
        assert_eq!(detour("ASK 3999 redis-1.example:6381"), Some(Detour::Ask(node("redis-1.example", 6381))));
        assert_eq!(detour("MOVED 3999 :6381"), Some(Detour::Later));
        assert_eq!(detour("MOVED 16384 h:1"), Some(Detour::Later));
        assert_eq!(detour("TRYAGAIN Multiple keys request during rehashing of slot"), Some(Detour::Later));
        assert_eq!(detour("CLUSTERDOWN The cluster is down"), None);
        assert_eq!(Detour::of(&Value::Nil), None);
    }

    #[test]
    fn a_member_s_view_is_read() {
        let text = "*2\r\n\
            *3\r\n:0\r\n:8191\r\n*4\r\n$1\r\na\r\n:7000\r\n$2\r\nid\r\n*0\r\n\
            *4\r\n:8192\r\n:16383\r\n*2\r\n$-1\r\n:7001\r\n*2\r\n$1\r\nb\r\n:7002\r\n";
        let slots = parse_redis_value(text.as_bytes()).expect("a reply");
        let info = Value::BulkString(b"cluster_state:fail\r\ncluster_current_epoch:6\r\n".to_vec());
        let view = View::read(vec![slots, info], &node("asked", 1)).expect("a view");
        let ranges = vec![(0, 8191, node("a", 7000)), (8192, 16_383, node("asked", 7001))];
        assert_eq!(view, View { is_ok: false, epoch: 6, ranges });
        assert_eq!(view.covered(), 16_384);
    }
}
