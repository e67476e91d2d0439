//! What a request's headers ask of a representation: its content coding (RFC 9110 section 12.5.3), and
//! whether the client has it already (section 13.1.2).

/// A content coding.
///
/// ```
/// use sockring::protocol::http::Coding;
/// assert_eq!(Coding::Brotli.name(), Some("br"));
/// assert_eq!(Coding::Identity.name(), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Coding {
    /// As it is.
    Identity,
    /// `gzip`.
    Gzip,
    /// `deflate`: the zlib format (RFC 1950).
    Deflate,
    /// `br`: Brotli.
    Brotli,
}

impl Coding {
    /// The name in `Content-Encoding`; `None` for [`Identity`](Self::Identity), which is not named there.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Deflate => Some("deflate"),
            Self::Brotli => Some("br"),
        }
    }

    fn is_named(self, name: &str) -> bool {
        let x_gzip = self == Self::Gzip && name.eq_ignore_ascii_case("x-gzip");
        x_gzip || self.name().unwrap_or("identity").eq_ignore_ascii_case(name)
    }
}

/// Which coding to answer with, of those `offered` in the server's order of preference.
///
/// The client's weights (`q`) come first, the server's order decides between equals. Without the header, or
/// when it allows none of those offered, the answer is [`Coding::Identity`], which need not be offered: an
/// answer in a form that the client did not ask for is of more use to it than none. An element that is
/// malformed counts as absent.
///
/// ```
/// use sockring::protocol::http::{Coding, negotiate};
/// let offered = [Coding::Brotli, Coding::Gzip];
/// assert_eq!(negotiate(Some("gzip, deflate, br"), &offered), Coding::Brotli);
/// assert_eq!(negotiate(Some("br;q=0.5, gzip"), &offered), Coding::Gzip);
/// assert_eq!(negotiate(None, &offered), Coding::Identity);
/// ```
pub fn negotiate(accept_encoding: Option<&str>, offered: &[Coding]) -> Coding {
    let Some(accept) = accept_encoding else { return Coding::Identity };
    let mut best = (weight(accept, Coding::Identity), Coding::Identity);
    for coding in offered.iter().rev() {
        let weight = weight(accept, *coding);
        if weight > 0 && weight >= best.0 {
            best = (weight, *coding);
        }
    }
    best.1
}

/// The weight of a coding in thousandths; 0 if it is not acceptable.
fn weight(accept: &str, coding: Coding) -> u16 {
    let mut any = None;
    for element in accept.split(',') {
        let (name, parameters) = element.split_once(';').unwrap_or((element, ""));
        let name = name.trim();
        let Some(weight) = read_weight(parameters.trim()) else { continue };
        if coding.is_named(name) {
            return weight;
        }
        if name == "*" {
            any = any.or(Some(weight));
        }
    }
    // What nobody names is refused, except that one may always answer with what needs no decoding.
    any.unwrap_or(0)
}

/// `q=0.5` in thousandths (RFC 9110 section 12.4.2); 1000 if there is none.
fn read_weight(parameters: &str) -> Option<u16> {
    if parameters.is_empty() {
        return Some(1000);
    }
    let (name, value) = parameters.split_once('=')?;
    if !name.trim_end().eq_ignore_ascii_case("q") {
        return None;
    }
    let (whole, part) = value.trim_start().split_once('.').unwrap_or((value.trim_start(), ""));
    if part.len() > 3 || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let thousandths = format!("{part:0<3}").parse().ok()?;
    match (whole, thousandths) {
        ("0", thousandths) => Some(thousandths),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

/// Whether an `If-None-Match` names this entity tag, so that 304 is the answer. The comparison is weak: a
/// `W/` in front of either does not count. `etag` has its quotes.
///
/// ```
/// use sockring::protocol::http::none_match;
/// assert!(none_match("\"a\", W/\"4.8.1\"", "\"4.8.1\""));
/// assert!(!none_match("\"4.8\"", "\"4.8.1\""));
/// ```
pub fn none_match(if_none_match: &str, etag: &str) -> bool {
    let etag = etag.strip_prefix("W/").unwrap_or(etag);
    let mut rest = if_none_match.trim();
    if rest == "*" {
        return true;
    }
    // A tag may hold commas, so the list is read tag by tag.
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        rest = rest.strip_prefix("W/").unwrap_or(rest);
        let Some(tag) = rest.strip_prefix('"') else { return false };
        let Some(end) = tag.find('"') else { return false };
        if rest[..end + 2] == *etag {
            return true;
        }
        rest = &tag[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Coding::{Brotli, Deflate, Gzip, Identity};
    use super::*;

    const ALL: [Coding; 3] = [Brotli, Gzip, Deflate];

    #[test]
    fn weights_come_first_and_then_the_servers_order() {
        for (accept, expected) in [
            ("gzip, deflate, br, zstd", Brotli),
            ("gzip, deflate", Gzip),
            ("deflate", Deflate),
            ("GZIP", Gzip),
            ("x-gzip", Gzip),
            ("br;q=0.2, gzip;q=0.8, deflate;q=0.5", Gzip),
            ("br ; Q=0.1 , gzip ; q=0.001", Brotli),
            ("*", Brotli),
            ("br;q=0, *", Gzip),
            ("*;q=0.1, deflate", Deflate),
            ("gzip;q=0.5, identity", Identity),
            ("gzip, identity", Gzip),
            ("identity;q=0.5, gzip;q=0.4", Identity),
            ("identity;q=0, gzip;q=0.001", Gzip),
        ] {
            assert_eq!(negotiate(Some(accept), &ALL), expected, "{accept}");
        }
    }

    #[test]
    fn what_nobody_accepts_is_left_as_it_is() {
        for accept in ["", "zstd", "identity", "gzip;q=0", "gzip;q=0.000", "*;q=0", "identity;q=0", " , ,"] {
            assert_eq!(negotiate(Some(accept), &ALL), Identity, "{accept}");
        }
        assert_eq!(negotiate(None, &ALL), Identity);
        assert_eq!(negotiate(Some("br, gzip"), &[]), Identity);
    }

    #[test]
    fn malformed_elements_count_as_absent() {
        for accept in
            ["gzip;q=2", "gzip;q=1.001", "gzip;q=0.1234", "gzip;q=", "gzip;q=-1", "gzip;x=1", "gzip;"]
        {
            let expected = if accept == "gzip;" { Gzip } else { Identity };
            assert_eq!(negotiate(Some(accept), &ALL), expected, "{accept}");
        }
        assert_eq!(negotiate(Some("br;q=nonsense, deflate"), &ALL), Deflate);
    }

    #[test]
    fn entity_tags() {
        let etag = "\"4.8.1\"";
        for known in
            [etag, "W/\"4.8.1\"", "\"x\", \"4.8.1\"", "\"a,b\" ,W/\"4.8.1\"", "*", " * ", ",\"4.8.1\""]
        {
            assert!(none_match(known, etag), "{known}");
        }
        for other in ["", "4.8.1", "\"4.8.10\"", "\"4.8.1", "\"x\" 4.8.1", "w/\"4.8.1\"", "\"*\"", "\"\""] {
            assert!(!none_match(other, etag), "{other}");
        }
        assert!(none_match("\"v\"", "W/\"v\""));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[a-z*;=,.0-9\"W/ \u{e4}]{0,40}") {
            let coding = negotiate(Some(&text), &ALL);
            prop_assert!(coding == Identity || ALL.contains(&coding));
            none_match(&text, "\"v\"");
        }
    }
}
