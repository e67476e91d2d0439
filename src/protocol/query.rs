//! The query part of a request target, read as Node's `querystring` reads it for the reference server.
//!
//! `&` separates pairs, the first `=` separates key and value, `+` is a space, `%XX` is a byte. A `%` that no
//! two hexadecimal digits follow stands for itself. Bytes that are not UTF-8 become U+FFFD. Keys are only
//! strings: `__proto__` and `constructor` mean nothing here.
//!
//! ```
//! use sockring::protocol::query::{self, Query};
//!
//! let raw = "EIO=4&transport=polling&name=J%C3%BCrgen+B";
//! assert_eq!(query::find(raw, "EIO").as_deref(), Some("4"));
//! assert_eq!(Query::parse(raw).get("name"), Some("Jürgen B"));
//! ```

use std::borrow::Cow;

use percent_encoding::percent_decode;

/// How many pairs of a query are looked at; the rest is ignored. Socket.IO itself uses six keys.
pub const MAX_PAIRS: usize = 64;

/// The decoded pairs of a query, in order, owned: two allocations at most.
///
/// ```
/// use sockring::protocol::query::Query;
///
/// let query = Query::parse("a=1&a=2&b");
/// assert_eq!(query.get("a"), Some("1"));
/// assert_eq!(query.iter().collect::<Vec<_>>(), [("a", "1"), ("a", "2"), ("b", "")]);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    text: Box<str>,
    /// Where key and value of each pair end in `text`; each starts where the one before it ends.
    ends: Box<[(u32, u32)]>,
}

impl Query {
    /// Decodes `raw`, the query without its `?`. Never fails; pairs after the first [`MAX_PAIRS`] are
    /// dropped.
    #[must_use]
    pub fn parse(raw: &str) -> Self {
        let mut text = String::with_capacity(raw.len());
        let mut ends = Vec::new();
        // A query longer than 4 GiB cannot come out of a head; offsets beyond would only shorten values.
        let offset = |text: &String| u32::try_from(text.len()).unwrap_or(u32::MAX);
        for (key, value) in pairs(raw) {
            text.push_str(&decode(key));
            let key_end = offset(&text);
            text.push_str(&decode(value));
            ends.push((key_end, offset(&text)));
        }
        Self { text: text.into_boxed_str(), ends: ends.into_boxed_slice() }
    }

    /// The value of the **first** pair with this key. Node would give an array for a repeated key, which then
    /// equals none of the strings the engine compares it with; taking the first is the closest to what was
    /// meant.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    /// Every pair, decoded, in order, repeated keys included.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut start = 0;
        self.ends.iter().map(move |(key_end, value_end)| {
            let (key_end, value_end) = (*key_end as usize, *value_end as usize);
            let key = self.text.get(start..key_end).unwrap_or_default();
            start = value_end;
            (key, self.text.get(key_end..value_end).unwrap_or_default())
        })
    }

    /// Whether there is no pair at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

/// The decoded value of the first pair of `raw` whose decoded key is `key`, without building a list: the same
/// as `Query::parse(raw).get(key)`. Allocates only if the value has something to decode.
#[must_use]
pub fn find<'a>(raw: &'a str, key: &str) -> Option<Cow<'a, str>> {
    pairs(raw).find(|(known, _)| decode(known) == key).map(|(_, value)| decode(value))
}

fn pairs(raw: &str) -> impl Iterator<Item = (&str, &str)> {
    raw.split('&')
        .filter(|pair| !pair.is_empty())
        .take(MAX_PAIRS)
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn decode(part: &str) -> Cow<'_, str> {
    if !part.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(part);
    }
    // `+` first: a `%2B` is a plus, not a space.
    let spaced = part.replace('+', " ");
    Cow::Owned(percent_decode(spaced.as_bytes()).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decodes_as_node_does() {
        for (raw, value) in [
            ("k=a+b", "a b"),
            ("k=a%2Bb", "a+b"),
            ("k=%", "%"),
            ("k=%4", "%4"),
            ("k=%zz", "%zz"),
            ("k=%E2%82%AC", "€"),
            ("k=%ff", "\u{fffd}"),
            ("k=a=b", "a=b"),
            ("k", ""),
            ("&&k=1&", "1"),
            ("%6B=1", "1"),
            ("k=1&k=2", "1"),
            ("k=%00", "\0"),
        ] {
            assert_eq!(Query::parse(raw).get("k"), Some(value), "{raw}");
            assert_eq!(find(raw, "k").as_deref(), Some(value), "{raw}");
        }
        assert_eq!(find("", "k"), None);
        assert!(Query::parse("").is_empty());
        assert_eq!(Query::parse("=x").get(""), Some("x"));
    }

    #[test]
    fn odd_keys_are_plain_keys() {
        let query = Query::parse("__proto__=a&constructor=b&transport=c");
        assert_eq!(query.get("__proto__"), Some("a"));
        assert_eq!(query.get("toString"), None);
        assert_eq!(query.iter().count(), 3);
    }

    #[test]
    fn looks_at_so_many_pairs_and_no_more() {
        let raw: String = (0..MAX_PAIRS + 1).map(|n| format!("k{n}=v&")).collect();
        assert_eq!(Query::parse(&raw).iter().count(), MAX_PAIRS);
        assert_eq!(find(&raw, "k64"), None);
        assert!(find(&raw, "k63").is_some());
    }

    proptest! {
        #[test]
        fn finding_is_getting(raw in "[a-c=&+%0-9é]{0,40}", key in "[a-c ]{0,2}") {
            let query = Query::parse(&raw);
            let found = find(&raw, &key);
            prop_assert_eq!(found.as_deref(), query.get(&key));
        }

        #[test]
        fn round_trip(pairs in prop::collection::vec((".{0,6}", ".{0,6}"), 0..8)) {
            use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
            let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            let pair = |(k, v): &(String, String)| format!("{}={}", encode(k), encode(v));
            let raw: Vec<String> = pairs.iter().map(pair).collect();
            let query = Query::parse(&raw.join("&"));
            let back: Vec<_> = query.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            prop_assert_eq!(back, pairs);
        }

        #[test]
        fn any_text_is_taken(raw in ".{0,200}") {
            let _ = Query::parse(&raw).iter().count();
        }
    }
}
