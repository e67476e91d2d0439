//! What proxies write about the client in front of them: `Forwarded` (RFC 7239) and `X-Forwarded-*`.
//!
//! Nothing here decides whom to believe.

use core::net::{IpAddr, SocketAddr};

/// What one proxy wrote in `Forwarded`.
///
/// ```
/// use sockring::protocol::http::Forwarded;
/// let list = Forwarded::parse("for=192.0.2.60;proto=https, for=\"[2001:db8::1]:4711\"");
/// assert_eq!(list[0].client, "192.0.2.60".parse().ok());
/// assert_eq!(list[0].proto, Some("https"));
/// assert_eq!(list[1].client, "2001:db8::1".parse().ok());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded<'a> {
    /// `for`: who asked the proxy; `None` if it does not say, or hides it.
    pub client: Option<IpAddr>,
    /// `proto`: `http` or `https`.
    pub proto: Option<&'a str>,
    /// `host`: the `Host` that the proxy was asked for.
    pub host: Option<&'a str>,
}

impl<'a> Forwarded<'a> {
    /// Reads the value of a field, the first proxy first. What is malformed counts as not said.
    #[must_use]
    pub fn parse(value: &'a str) -> Vec<Self> {
        split(value, ',').map(Self::element).collect()
    }

    fn element(element: &'a str) -> Self {
        let mut forwarded = Self::default();
        for pair in split(element, ';') {
            let Some((name, value)) = pair.split_once('=') else { continue };
            // None of these values needs an escape; one that has some is none of them.
            let value = value.trim().trim_matches('"');
            match name.trim() {
                name if name.eq_ignore_ascii_case("for") => forwarded.client = address(value),
                name if name.eq_ignore_ascii_case("proto") => forwarded.proto = Some(value),
                name if name.eq_ignore_ascii_case("host") => forwarded.host = Some(value),
                _ => {}
            }
        }
        forwarded
    }
}

/// An address of `Forwarded` or `X-Forwarded-For`, with or without a port; `None` for `unknown` and for
/// names.
///
/// ```
/// use sockring::protocol::http::forwarded_address;
/// assert_eq!(forwarded_address("192.0.2.60:80"), "192.0.2.60".parse().ok());
/// assert_eq!(forwarded_address("unknown"), None);
/// ```
#[must_use]
pub fn forwarded_address(text: &str) -> Option<IpAddr> {
    address(text.trim())
}

fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address| address.to_canonical())
}

/// The parts of a list, without what is in quotes taken for a separator.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        let was_escaped = std::mem::take(&mut escaped);
        match c {
            '\\' if quoted && !was_escaped => escaped = true,
            '"' if !was_escaped => quoted = !quoted,
            _ => return c == separator && !quoted,
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    #[test]
    fn the_examples_of_rfc_7239() {
        let one = |value| Forwarded::parse(value).remove(0);
        assert_eq!(one("for=\"_gazonk\"").client, None);
        assert_eq!(one("For=\"[2001:db8:cafe::17]:4711\"").client, ip("2001:db8:cafe::17"));
        assert_eq!(
            one("for=192.0.2.60;proto=http;by=203.0.113.43"),
            Forwarded { client: ip("192.0.2.60"), proto: Some("http"), host: None }
        );
        let list = Forwarded::parse("for=192.0.2.43, for=198.51.100.17;host=\"a,b;c\"");
        assert_eq!((list.len(), list[1].client, list[1].host), (2, ip("198.51.100.17"), Some("a,b;c")));
    }

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("192.0.2.1", ip("192.0.2.1")),
            (" 192.0.2.1:8080 ", ip("192.0.2.1")),
            ("2001:db8::1", ip("2001:db8::1")),
            ("[2001:db8::1]", ip("2001:db8::1")),
            ("[2001:db8::1]:80", ip("2001:db8::1")),
            ("::ffff:192.0.2.1", ip("192.0.2.1")),
            ("unknown", None),
            ("example.org", None),
            ("", None),
            ("192.0.2.1, 192.0.2.2", None),
        ] {
            assert_eq!(forwarded_address(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn anything_may_be_written(value in "[-a-z0-9=;,:\"\\\\. \\[\\]é]{0,60}") {
            let _ = Forwarded::parse(&value);
            let _ = forwarded_address(&value);
        }
    }
}
