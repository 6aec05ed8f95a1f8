//! Redis's protocol as bytes: commands are packed, and replies are delimited and read, without a tree of values in
//! between. RESP2 and RESP3: <https://redis.io/docs/latest/develop/reference/protocol-spec/>
//!
//! Written by hand for session checks, although the client library and `redis-protocol` parse replies: both make such a
//! tree. Whoever needs one gets it from the client library, by [`Replies::values`].
use std::io;

use bytes::Bytes;
use redis::{RedisResult, Value};

/// A longer string isn't read (`proto-max-bulk-len`'s default).
const LONGEST: usize = 512 << 20;
/// More elements of one reply aren't read.
const MOST: usize = 1 << 30;

/// Appends a command.
pub(super) fn pack(command: &[&[u8]], to: &mut Vec<u8>) {
    header(b'*', command.len(), to);
    for word in command {
        header(b'$', word.len(), to);
        to.extend_from_slice(word);
        to.extend_from_slice(b"\r\n");
    }
}

fn header(kind: u8, number: usize, to: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut first = digits.len();
    let mut rest = number;
    loop {
        first -= 1;
        digits[first] = b'0' + u8::try_from(rest % 10).expect("a digit");
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    to.push(kind);
    to.extend_from_slice(&digits[first..]);
    to.extend_from_slice(b"\r\n");
}

/// The line that a frame begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    kind: u8,
    /// The number behind the kind, if this kind has one; `None` for -1, which stands for null.
    number: Option<usize>,
    /// Where the next line begins.
    end: usize,
}

/// Reads the line at `at`; `None` if it isn't there as a whole.
fn line(bytes: &[u8], at: usize) -> io::Result<Option<Line>> {
    let Some(&kind) = bytes.get(at) else { return Ok(None) };
    let rest = &bytes[at + 1..];
    let Some(length) = rest.iter().position(|&byte| byte == b'\r') else { return Ok(None) };
    match rest.get(length + 1) {
        Some(b'\n') => {}
        Some(_) => return Err(garbled("a line that ends with CR alone")),
        None => return Ok(None),
    }
    let number = match kind {
        b'$' | b'=' | b'!' | b'*' | b'~' | b'%' | b'>' | b'|' => decimal(&rest[..length])?,
        b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => None,
        _ => return Err(garbled("a reply of an unknown kind")),
    };
    Ok(Some(Line { kind, number, end: at + 1 + length + 2 }))
}

fn decimal(digits: &[u8]) -> io::Result<Option<usize>> {
    if digits == b"-1" {
        return Ok(None);
    }
    let mut number = 0_usize;
    for digit in digits {
        if !digit.is_ascii_digit() || number > MOST {
            return Err(garbled("a length that is no number"));
        }
        number = number * 10 + usize::from(digit - b'0');
    }
    if digits.is_empty() || number > MOST { Err(garbled("a length that is no number")) } else { Ok(Some(number)) }
}

fn garbled(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not Redis's protocol: {what}"))
}

/// A search for the end of some replies, which goes on where it stopped when more bytes have come.
#[derive(Debug, Default)]
pub(super) struct Search {
    at: usize,
    /// How many frames must still end. `None` before the search.
    missing: Option<usize>,
    has_error: bool,
}

impl Search {
    /// Where `replies` replies end, and whether an error is among them. `None` if they aren't there as a whole; the next
    /// call must pass the same bytes and those that followed. Messages that the server sends unasked (RESP3's pushes)
    /// don't count as replies.
    ///
    /// # Errors
    ///
    /// When it isn't Redis's protocol.
    pub(super) fn end(&mut self, bytes: &[u8], replies: usize) -> io::Result<Option<(usize, bool)>> {
        let mut missing = self.missing.unwrap_or(replies);
        while missing > 0 {
            let Some(line) = line(bytes, self.at)? else { break };
            let number = line.number.unwrap_or(0);
            let mut end = line.end;
            match line.kind {
                b'$' | b'=' | b'!' if line.number.is_some() => {
                    if number > LONGEST {
                        return Err(garbled("a string that is too long"));
                    }
                    end += number + 2;
                    if bytes.len() < end {
                        break;
                    }
                    if bytes[end - 2..end] != *b"\r\n" {
                        return Err(garbled("a string of another length than announced"));
                    }
                    missing -= 1;
                }
                b'*' | b'~' => missing = missing - 1 + number,
                b'%' => missing = missing - 1 + 2 * number,
                // Neither is a reply: nobody asked for a push, and an attribute is about the reply behind it.
                b'>' => missing += number,
                b'|' => missing += 2 * number,
                _ => missing -= 1,
            }
            self.has_error |= matches!(line.kind, b'-' | b'!');
            self.at = end;
        }
        if missing > 0 {
            self.missing = Some(missing);
            return Ok(None);
        }
        let found = (self.at, self.has_error);
        *self = Self::default();
        Ok(Some(found))
    }
}

/// The replies to one request, as they came.
#[derive(Clone, Debug)]
pub(super) struct Replies {
    pub(super) bytes: Bytes,
    /// Whether one of them is an error.
    pub(super) has_error: bool,
}

impl Replies {
    /// The replies as the client library's values.
    ///
    /// # Errors
    ///
    /// When they aren't Redis's protocol.
    pub(super) fn values(&self) -> RedisResult<Vec<Value>> {
        let mut values = Vec::new();
        let mut rest = &self.bytes[..];
        while !rest.is_empty() {
            let end = if let Some(end) = push(rest)? {
                end
            } else {
                let (end, _) = Search::default().end(rest, 1)?.ok_or_else(|| garbled("a reply without its end"))?;
                values.push(redis::parse_redis_value(&rest[..end])?);
                end
            };
            rest = &rest[end..];
        }
        Ok(values)
    }
}

/// Where a push ends, if the bytes begin with a whole one.
pub(super) fn push(bytes: &[u8]) -> io::Result<Option<usize>> {
    if bytes.first() != Some(&b'>') {
        return Ok(None);
    }
    let Some(line) = line(bytes, 0)? else { return Ok(None) };
    let mut elements = Search { at: line.end, missing: line.number, has_error: false };
    Ok(elements.end(bytes, 0)?.map(|(end, _)| end))
}

/// Another shape came than the reader was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unexpected;

/// Reads replies of known shapes one after the other.
#[derive(Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(replies: &'a [u8]) -> Self {
        Self(replies)
    }

    /// The number of elements of an array, which follow.
    pub(crate) fn array(&mut self) -> Result<usize, Unexpected> {
        self.head(b'*')?.ok_or(Unexpected)
    }

    /// A string, or null.
    pub(crate) fn text(&mut self) -> Result<Option<&'a [u8]>, Unexpected> {
        if self.0.first() == Some(&b'_') {
            self.0 = self.0.strip_prefix(b"_\r\n").ok_or(Unexpected)?;
            return Ok(None);
        }
        let Some(length) = self.head(b'$')? else { return Ok(None) };
        let (text, rest) = self.0.split_at_checked(length).ok_or(Unexpected)?;
        self.0 = rest.strip_prefix(b"\r\n").ok_or(Unexpected)?;
        Ok(Some(text))
    }

    /// An integer of at least 0.
    pub(crate) fn natural(&mut self) -> Result<usize, Unexpected> {
        let rest = self.0.strip_prefix(b":").ok_or(Unexpected)?;
        let length = rest.iter().position(|&byte| byte == b'\r').ok_or(Unexpected)?;
        let (digits, rest) = rest.split_at(length);
        self.0 = rest.strip_prefix(b"\r\n").ok_or(Unexpected)?;
        decimal(digits).ok().flatten().ok_or(Unexpected)
    }

    fn head(&mut self, kind: u8) -> Result<Option<usize>, Unexpected> {
        let line = line(self.0, 0).ok().flatten().filter(|line| line.kind == kind).ok_or(Unexpected)?;
        self.0 = &self.0[line.end..];
        Ok(line.number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn end(bytes: &[u8], replies: usize) -> Option<(usize, bool)> {
        Search::default().end(bytes, replies).expect("the protocol")
    }

    #[test]
    fn commands_are_packed_as_the_client_library_packs_them() {
        let long = vec![b'x'; 1234];
        let mut ours = b"before".to_vec();
        pack(&[b"HMGET", b"session:{1}:2", b"", &long], &mut ours);
        let mut theirs = redis::cmd("HMGET");
        theirs.arg("session:{1}:2").arg("").arg(&long[..]);
        assert_eq!(ours, [b"before", &theirs.get_packed_command()[..]].concat());
    }

    #[test]
    fn every_kind_of_reply_has_an_end() {
        for reply in [
            "+OK\r\n",
            ":1\r\n",
            ":-1\r\n",
            "$0\r\n\r\n",
            "$5\r\na\r\nbc\r\n",
            "$-1\r\n",
            "*-1\r\n",
            "*0\r\n",
            "_\r\n",
            "#t\r\n",
            ",3.14\r\n",
            "(12345678901234567890\r\n",
            "=7\r\ntxt:abc\r\n",
            "*2\r\n$1\r\na\r\n*1\r\n:7\r\n",
            "~2\r\n:1\r\n:2\r\n",
            "%1\r\n+a\r\n*0\r\n",
            "|1\r\n+ttl\r\n:3\r\n$1\r\na\r\n",
            ">2\r\n+message\r\n+news\r\n:1\r\n",
        ] {
            let bytes = [reply.as_bytes(), b"+next\r\n"].concat();
            assert_eq!(end(&bytes, 1), Some((reply.len(), false)), "{reply:?}");
            assert_eq!(end(&reply.as_bytes()[..reply.len() - 1], 1), None, "{reply:?} without its last byte");
        }
        assert_eq!(end(b"*1\r\n:1\r\n-ERR no\r\n", 2), Some((17, true)));
        assert_eq!(end(b"!6\r\nERR no\r\n", 1), Some((12, true)));
    }

    #[test]
    fn other_bytes_are_refused() {
        for bytes in [
            "HTTP/1.1 200 OK\r\n",
            "$x\r\n",
            "$\r\n",
            "*-2\r\n",
            "$3\r\nabcdef\r\n",
            "+a\rb\r\n",
            "$99999999999999999999\r\n",
        ] {
            let found = Search::default().end(bytes.as_bytes(), 1);
            assert_eq!(found.expect_err(bytes).kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }

    #[test]
    fn replies_become_values_and_pushes_do_not() {
        let bytes = Bytes::from_static(b">1\r\n+news\r\n:1\r\n>1\r\n+news\r\n-ERR no\r\n$1\r\na\r\n");
        assert_eq!(end(&bytes, 3), Some((bytes.len(), true)));
        let values = Replies { bytes, has_error: true }.values().expect("the protocol");
        assert!(matches!(&values[..], [Value::Int(1), Value::ServerError(_), Value::BulkString(text)] if text == b"a"));
    }

    #[test]
    fn known_shapes_are_read() {
        let mut reader = Reader::new(b"*3\r\n$2\r\nab\r\n$-1\r\n_\r\n:12\r\n+OK\r\n");
        assert_eq!(reader.array(), Ok(3));
        assert_eq!(reader.text(), Ok(Some(&b"ab"[..])));
        assert_eq!((reader.text(), reader.text()), (Ok(None), Ok(None)));
        assert_eq!(reader.natural(), Ok(12));
        let none = (Err(Unexpected), Err(Unexpected), Err(Unexpected));
        assert_eq!((reader.array(), reader.text(), reader.natural()), none);
    }

    /// Any reply, as bytes.
    fn reply() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            "[a-z ]{0,9}".prop_map(|text| format!("+{text}\r\n").into_bytes()),
            "[a-z ]{0,9}".prop_map(|text| format!("-ERR {text}\r\n").into_bytes()),
            any::<i64>().prop_map(|number| format!(":{number}\r\n").into_bytes()),
            Just(b"$-1\r\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(|text| [
                format!("${}\r\n", text.len()).as_bytes(),
                &text,
                b"\r\n"
            ]
            .concat()),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            proptest::collection::vec(inner, 0..4)
                .prop_map(|elements| [format!("*{}\r\n", elements.len()).into_bytes(), elements.concat()].concat())
        })
    }

    proptest! {
        #[test]
        fn replies_end_where_they_end_however_they_are_cut(
            replies in proptest::collection::vec(reply(), 1..5),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6)
        ) {
            let bytes = replies.concat();
            let mut lengths: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            lengths.sort_unstable();
            let mut search = Search::default();
            for length in lengths {
                prop_assert_eq!(search.end(&bytes[..length], replies.len()).expect("the protocol"), None);
            }
            let has_error = replies.iter().any(|reply| reply.windows(5).any(|five| five == b"-ERR "));
            let (end, found_error) = search.end(&bytes, replies.len()).expect("the protocol").expect("the end");
            prop_assert_eq!(end, bytes.len());
            // A string may look like an error.
            prop_assert!(has_error || !found_error);
            let values = Replies { bytes: bytes.into(), has_error }.values().expect("the protocol");
            prop_assert_eq!(values.len(), replies.len());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Search::default().end(&bytes, 2);
            let _ = push(&bytes);
            let mut reader = Reader::new(&bytes);
            while reader.array().is_ok() || reader.text().is_ok() || reader.natural().is_ok() {}
        }
    }
}
