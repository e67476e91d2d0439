//! The cookie that a polling handshake may set (RFC 6265).

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::time::nearest_http_date;

/// A cookie with the session's id, so that a load balancer can keep a client on one server. Off unless it is
/// set: see [`Options::cookie`](super::Options::cookie). Anybody who has the id can act as the client, so
/// it is best left `HttpOnly`.
///
/// ```
/// use sockring::engine::{Cookie, SameSite};
/// let cookie = Cookie { name: "at".to_owned(), same_site: Some(SameSite::Strict), ..Cookie::default() };
/// assert_eq!(cookie.header("abc"), "at=abc; Path=/; HttpOnly; SameSite=Strict");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// The name; `io` by default. It must be a token (RFC 9110 section 5.6.2), or no cookie is sent.
    pub name: String,
    /// The path below which it is sent back; `/` by default, `None` for that of the request.
    pub path: Option<String>,
    /// The domain; by default the host alone that has set it.
    pub domain: Option<String>,
    /// Hidden from scripts; yes by default.
    pub http_only: bool,
    /// Whether other sites' requests carry it; `Lax` by default.
    pub same_site: Option<SameSite>,
    /// Sent back over TLS only.
    pub secure: bool,
    /// Kept apart for each top-level site.
    pub partitioned: bool,
    /// How long it is kept; by default as long as the browser runs.
    pub max_age: Option<Duration>,
    /// Until when it is kept; `max_age` counts first. Times that a date of HTTP cannot say (before 1970,
    /// after the year 9999) are sent as the nearest that it can.
    pub expires: Option<SystemTime>,
}

/// Which requests of other sites carry a cookie.
///
/// ```
/// assert_ne!(sockring::engine::SameSite::Lax, sockring::engine::SameSite::Strict);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// None.
    Strict,
    /// Those that lead the user here.
    Lax,
    /// All; it must be [`secure`](Cookie::secure) too.
    None,
}

impl Default for Cookie {
    fn default() -> Self {
        Self {
            name: "io".to_owned(),
            path: Some("/".to_owned()),
            domain: None,
            http_only: true,
            same_site: Some(SameSite::Lax),
            secure: false,
            partitioned: false,
            max_age: None,
            expires: None,
        }
    }
}

/// What `encodeURIComponent` leaves as it is.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'!')
    .remove(b'~')
    .remove(b'*')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')');

impl Cookie {
    /// The value of the `Set-Cookie` header for a session.
    pub fn header(&self, sid: &str) -> String {
        let mut out = format!("{}={}", self.name, utf8_percent_encode(sid, VALUE));
        let mut attribute = |name: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = write!(out, "; {name}={value}");
        };
        if let Some(max_age) = self.max_age {
            attribute("Max-Age", &max_age.as_secs().to_string());
        }
        if let Some(domain) = &self.domain {
            attribute("Domain", domain);
        }
        if let Some(path) = &self.path {
            attribute("Path", path);
        }
        if let Some(expires) = self.expires {
            attribute("Expires", &nearest_http_date(expires));
        }
        for (set, flag) in
            [(self.http_only, "HttpOnly"), (self.secure, "Secure"), (self.partitioned, "Partitioned")]
        {
            if set {
                out.push_str("; ");
                out.push_str(flag);
            }
        }
        match self.same_site {
            None => {}
            Some(SameSite::Strict) => out.push_str("; SameSite=Strict"),
            Some(SameSite::Lax) => out.push_str("; SameSite=Lax"),
            Some(SameSite::None) => out.push_str("; SameSite=None"),
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::tests::odd_times;

    #[test]
    fn the_defaults_and_every_attribute() {
        assert_eq!(Cookie::default().header("a+b"), "io=a%2Bb; Path=/; HttpOnly; SameSite=Lax");
        let bare = Cookie { path: None, http_only: false, same_site: None, ..Cookie::default() };
        assert_eq!(bare.header("x"), "io=x");
        let all = Cookie {
            domain: Some("example.org".to_owned()),
            same_site: Some(SameSite::None),
            secure: true,
            partitioned: true,
            max_age: Some(Duration::from_secs(60)),
            expires: Some(SystemTime::UNIX_EPOCH),
            ..Cookie::default()
        };
        assert_eq!(
            all.header("x"),
            "io=x; Max-Age=60; Domain=example.org; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; \
             HttpOnly; Secure; Partitioned; SameSite=None"
        );
    }

    #[test]
    fn times_that_dates_cannot_say() {
        for time in odd_times() {
            let text = Cookie { expires: Some(time), ..Cookie::default() }.header("x");
            assert!(
                text.contains("Expires=Thu, 01 Jan 1970") || text.contains("Expires=Fri, 31 Dec 9999"),
                "{text}"
            );
        }
    }
}
