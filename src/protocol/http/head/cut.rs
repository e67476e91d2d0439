//! Heads that are kept for long, without their largest parts.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::sync::Arc;

use compact_str::CompactString;

use super::{Builder, Head, Span, parse_target, sub_span};
use crate::protocol::http::shapes::{Field, Shape};

/// Bytes that a field takes beside its name and its value.
const FIELD_BYTES: usize = size_of::<Field>();

impl Head {
    /// Bytes that this head keeps for itself. What other heads share with it does not count.
    ///
    /// ```
    /// use sockring::protocol::http::{Head, HeadLimits};
    ///
    /// let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    /// let (head, _) = Head::parse(bytes, &HeadLimits::default())?.expect("a whole head");
    /// assert!(head.own_bytes() < 50);
    /// # Ok::<(), sockring::protocol::http::HttpError>(())
    /// ```
    #[must_use]
    pub fn own_bytes(&self) -> usize {
        let shared = Arc::strong_count(&self.shape) > 1;
        let shape = if shared { 0 } else { self.shape.text.len() + self.shape.fields.len() * FIELD_BYTES };
        self.own.len() + shape
    }

    /// A copy of at most so many bytes: the largest fields are left out first, whole. A target that is larger
    /// than half of it loses the largest parameters of its query, and is cut off if that is not enough. How
    /// the body is delimited and whether the connection persists stays known.
    ///
    /// ```
    /// use sockring::protocol::http::{Head, HeadLimits};
    ///
    /// let text = format!("GET /a?b=c HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "x".repeat(9000));
    /// let (head, _) = Head::parse(text.as_bytes(), &HeadLimits::default())?.expect("a whole head");
    /// let cut = head.cut(1000);
    /// assert_eq!((cut.target(), cut.host(), cut.header("x-long")), ("/a?b=c", Some("a"), None));
    /// # Ok::<(), sockring::protocol::http::HttpError>(())
    /// ```
    #[must_use]
    pub fn cut(&self, bytes: usize) -> Self {
        let target = cut_target(self.target(), bytes / 2);
        let mut fields: Vec<Option<(&str, &str)>> = self.headers().map(Some).collect();
        let cost = |(name, value): (&str, &str)| name.len() + value.len() + FIELD_BYTES;
        let mut total = target.len() + fields.iter().flatten().map(|field| cost(*field)).sum::<usize>();
        let mut by_size: Vec<usize> = (0..fields.len()).collect();
        by_size.sort_by_key(|at| Reverse(fields[*at].map_or(0, cost)));
        for at in by_size {
            if total <= bytes {
                break;
            }
            total -= fields[at].take().map_or(0, cost);
        }
        let mut builder = Builder::with_room(total + self.method().len());
        let method = builder.push(self.method());
        let whole = builder.push(&target);
        let fields = fields.into_iter().flatten().map(|(name, value)| {
            let name = builder.push(name);
            Field { name, value: builder.push(value) }
        });
        let fields: Box<[Field]> = fields.collect();
        let parts = parse_target(self.method(), &target).ok();
        let span_of =
            |part: Option<&str>| part.map_or(Span::default(), |part| sub_span(&target, whole, part));
        let shape = Shape {
            path: span_of(Some(parts.as_ref().map_or(&*target, |parts| parts.path))),
            query: span_of(parts.as_ref().map(|parts| parts.query)),
            authority: span_of(parts.as_ref().map(|parts| parts.authority)),
            text: builder.text.into_boxed_str(),
            fields,
            framing: self.shape.framing,
            method,
            target: whole,
            version: self.shape.version,
            keep_alive: self.shape.keep_alive,
            expects_continue: self.shape.expects_continue,
        };
        Self { shape: Arc::new(shape), own: CompactString::const_new("") }
    }
}

/// A target without the largest parameters of its query; at most so many bytes.
fn cut_target(target: &str, bytes: usize) -> Cow<'_, str> {
    if target.len() <= bytes {
        return Cow::Borrowed(target);
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    // Targets are ASCII, so that any place is between two characters.
    let path = path.get(..path.len().min(bytes)).unwrap_or(path);
    let mut pairs: Vec<Option<&str>> = query.split('&').filter(|pair| !pair.is_empty()).map(Some).collect();
    let mut total = path.len() + pairs.iter().flatten().map(|pair| pair.len() + 1).sum::<usize>();
    let mut by_size: Vec<usize> = (0..pairs.len()).collect();
    by_size.sort_by_key(|at| Reverse(pairs[*at].map_or(0, str::len)));
    for at in by_size {
        if total <= bytes {
            break;
        }
        total -= pairs[at].take().map_or(0, |pair| pair.len() + 1);
    }
    let mut out = String::with_capacity(total);
    out.push_str(path);
    for (at, pair) in pairs.into_iter().flatten().enumerate() {
        out.push(if at == 0 { '?' } else { '&' });
        out.push_str(pair);
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::{HeadLimits, Shapes};
    use proptest::prelude::*;

    fn head(text: &str) -> Head {
        Head::parse(text.as_bytes(), &HeadLimits::default()).unwrap().unwrap().0
    }

    #[test]
    fn what_fits_stays_as_it_is() {
        let whole = head("GET /p?a=1&b=2 HTTP/1.1\r\nHost: a\r\nCookie: x=1\r\nX-A: b\r\nX-A: c\r\n\r\n");
        let cut = whole.cut(1000);
        assert_eq!(cut.target(), whole.target());
        assert_eq!((cut.path(), cut.query(), cut.host()), ("/p", "a=1&b=2", Some("a")));
        assert!(cut.headers().eq(whole.headers()));
    }

    #[test]
    fn the_largest_goes_first() {
        let big = "x".repeat(3000);
        let whole = head(&format!("GET /p?a={big}&b=2 HTTP/1.1\r\nHost: a\r\nX: {big}\r\nCookie: c\r\n\r\n"));
        let cut = whole.cut(4096);
        assert_eq!(cut.target(), "/p?b=2");
        assert_eq!((cut.header("cookie"), cut.header("x").map(str::len)), (Some("c"), Some(3000)));
        let less = whole.cut(1024);
        assert_eq!((less.header("cookie"), less.header("x")), (Some("c"), None));
        assert!(less.own_bytes() < 200, "{}", less.own_bytes());
    }

    #[test]
    fn what_is_shared_does_not_count() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: long long long\r\nCookie: own\r\n\r\n";
        let mut shapes = Shapes::default();
        let (shared, _) =
            Head::parse_sharing(text.as_bytes(), &HeadLimits::default(), &mut shapes).unwrap().unwrap();
        assert_eq!(shared.own_bytes(), 3);
        assert!(head(text).own_bytes() > 50);
    }

    proptest! {
        /// Whatever is large: no more is kept than was said, and what is kept was there.
        #[test]
        fn a_cut_head_is_small_and_sound(
            path in "[a-z]{0,400}",
            query in prop::collection::vec("[a-z]{1,4}=[a-zé]{0,200}", 0..20),
            fields in prop::collection::vec(("[a-z]{1,20}-x", "[!-~é]{0,300}"), 0..60),
            bytes in 0usize..4000,
        ) {
            let query = query.join("&").replace('é', "%C3%A9");
            let mut text = format!("GET /{path}?{query} HTTP/1.1\r\nHost: some.host\r\n");
            fields.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
            text.push_str("\r\n");
            let limits = HeadLimits { head_bytes: 32_000, ..HeadLimits::default() };
            let Some((whole, _)) = Head::parse(text.as_bytes(), &limits).unwrap() else {
                return Err(TestCaseError::fail("a whole head"));
            };
            let cut = whole.cut(bytes);
            prop_assert!(cut.own_bytes() <= bytes + cut.method().len());
            prop_assert!(whole.target().starts_with(cut.path()) || bytes < 4);
            let known: Vec<_> = whole.headers().collect();
            prop_assert!(cut.headers().all(|field| known.contains(&field)));
            prop_assert!(cut.query().split('&').all(|pair| pair.is_empty() || whole.query().contains(pair)));
            if bytes >= 2 * text.len() + 60 * FIELD_BYTES {
                prop_assert!(cut.headers().eq(whole.headers()));
                prop_assert_eq!(cut.target().trim_end_matches('?'), whole.target().trim_end_matches('?'));
            }
        }
    }
}
