//! What can be read of a request head that is not complete, or that is refused.

use super::head::METHODS;
use super::{MAX_HEAD_BYTES, is_token, is_value_byte};

/// The parts of a request head that can be read before it is complete, or although it is refused.
///
/// A request that is refused for its head (400, 408, 414, 431 and others) has no [`Head`](super::Head). Its
/// path and its `Origin` still decide which headers the answer needs, so that a script may read its status.
/// Nothing else may depend on a glimpse: the head that it is taken of was not understood.
///
/// ```
/// use sockring::protocol::http::Glimpse;
///
/// let begun = b"GET /socket.io/?EIO=4 HTTP/1.1\r\nOrigin: https://a.example\r\nCook";
/// let glimpse = Glimpse::of(begun).expect("a request line has begun");
/// assert_eq!((glimpse.method(), glimpse.path()), ("GET", "/socket.io/"));
/// assert_eq!(glimpse.header("origin"), Some("https://a.example"));
/// assert_eq!(glimpse.header("cook"), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glimpse<'a> {
    method: &'a str,
    path: &'a str,
    /// The lines after the request line, as far as they have come.
    fields: &'a [u8],
}

impl<'a> Glimpse<'a> {
    /// Reads what there is of the head at the start of `bytes`. `None` if it does not begin with a method
    /// that is served and the path of a target, or with as much of the path as has come.
    ///
    /// Reads at most [`MAX_HEAD_BYTES`].
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> Option<Self> {
        let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
        let bytes = bytes.get(..MAX_HEAD_BYTES).unwrap_or(bytes);
        let (line, fields) = match bytes.iter().position(|byte| *byte == b'\n') {
            Some(at) => bytes.split_at(at + 1),
            None => (bytes, &[][..]),
        };
        let mut words = line.split(|byte| *byte == b' ' || *byte == b'\r' || *byte == b'\n');
        let method = str::from_utf8(words.next()?).ok().filter(|method| METHODS.contains(method))?;
        let target = words.next()?;
        let path = path_of(target)?;
        Some(Self { method, path, fields })
    }

    /// The method: one that is served.
    #[must_use]
    pub fn method(&self) -> &'a str {
        self.method
    }

    /// The path without the query, not decoded; the beginning of it if no more has come.
    #[must_use]
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// The value of the first field with this name, in any case, whose line is complete and sound; without
    /// white space around it.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let mut rest = self.fields;
        while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(at);
            rest = after.get(1..).unwrap_or_default();
            let line = line.strip_suffix(b"\r")?;
            if line.is_empty() {
                return None;
            }
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let (known, value) = line.split_at(colon);
            if is_token(known) && known.eq_ignore_ascii_case(name.as_bytes()) {
                let value = value.get(1..).unwrap_or_default();
                let sound = value.iter().all(|byte| is_value_byte(*byte));
                return str::from_utf8(value)
                    .ok()
                    .filter(|_| sound)
                    .map(|value| value.trim_matches([' ', '\t']));
            }
        }
        None
    }
}

/// The path of a target in origin-form or absolute-form, or the part of it that has come.
fn path_of(target: &[u8]) -> Option<&str> {
    let end = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let path = str::from_utf8(target.get(..end)?).ok()?;
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    if path.starts_with('/') {
        return Some(path);
    }
    let (_, rest) = path.split_once("://")?;
    rest.find('/').and_then(|at| rest.get(at..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::{Head, HeadLimits};
    use proptest::prelude::*;

    #[test]
    fn parts_are_seen_as_soon_as_they_have_come() {
        let seen = |bytes: &'static [u8]| Glimpse::of(bytes).map(|seen| (seen.method(), seen.path()));
        for nothing in
            [&b""[..], b"GE", b"GET", b"GET ", b"BREW / HTTP/1.1\r\n", b"\x16\x03\x01", b"GET *", b"GET a"]
        {
            assert_eq!(seen(nothing), None, "{}", String::from_utf8_lossy(nothing));
        }
        assert_eq!(seen(b"GET /so"), Some(("GET", "/so")));
        assert_eq!(seen(b"\r\nPOST /a/?b c"), Some(("POST", "/a/")));
        assert_eq!(seen(b"GET http://h/a/?b HTTP/9"), Some(("GET", "/a/")));
        assert_eq!(seen(b"GET http://h?b HTTP/1.1"), None);
        assert_eq!(seen(b"GET /caf\xe9 HTTP/1.1"), None);
        assert_eq!(seen(b"GET /a\tb HTTP/1.1"), None);
    }

    #[test]
    fn fields_are_seen_when_their_lines_are_whole() {
        let head = b"GET / HTTP/1.1\r\nX: y\r\nbad line\r\nORIGIN:\thttp://a \r\nHost: b";
        let seen = Glimpse::of(head).unwrap();
        assert_eq!((seen.header("origin"), seen.header("x")), (Some("http://a"), Some("y")));
        assert_eq!(seen.header("host"), None);
        // Nothing after the end of the head, nothing that could not be sent back.
        let header = |head: &'static [u8]| Glimpse::of(head).unwrap().header("origin");
        assert_eq!(header(b"GET / HTTP/1.1\r\n\r\nOrigin: a\r\n"), None);
        assert_eq!(header(b"GET / HTTP/1.1\r\nOrigin: a\0b\r\n"), None);
        assert_eq!(header(b"GET / HTTP/1.1\r\nOrigin: a\rb\r\n"), None);
        assert_eq!(header(b"GET / HTTP/1.1\r\nOrigin: a\xffb\r\n"), None);
        assert_eq!(header(b"GET / HTTP/1.1\nOrigin: a\n"), None);
        assert_eq!(header(b"GET / HTTP/1.1\r\nOrigin : a\r\n"), None);
    }

    proptest! {
        /// A glimpse of a head that is taken says the same as the head.
        #[test]
        fn agrees_with_the_head(
            method in prop::sample::select(METHODS.as_slice()),
            host in prop::sample::select(vec!["", "http://b.example"]),
            path in "/[a-z/.%]{0,12}",
            query in "(\\?[a-z=&]{0,12})?",
            fields in prop::collection::vec(("(origin|x|Origin)", "[a-z \t]{0,8}"), 0..4),
        ) {
            let mut head = format!("{method} {host}{path}{query} HTTP/1.1\r\nHost: a\r\n");
            for (name, value) in &fields {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            let (whole, _) = Head::parse(head.as_bytes(), &HeadLimits::default()).unwrap().unwrap();
            let seen = Glimpse::of(head.as_bytes()).unwrap();
            prop_assert_eq!((seen.method(), seen.path()), (whole.method(), whole.path()));
            prop_assert_eq!(seen.header("origin"), whole.header("origin"));
        }

        #[test]
        fn any_bytes_are_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let request = [b"GET /".as_slice(), &bytes].concat();
            for bytes in [&bytes, &request] {
                if let Some(seen) = Glimpse::of(bytes) {
                    let value = seen.header("a").unwrap_or_default();
                    prop_assert!(value.bytes().all(is_value_byte));
                    prop_assert!(seen.path().bytes().all(|byte| byte.is_ascii_graphic()));
                }
            }
        }
    }
}
