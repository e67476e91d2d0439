//! What the request heads of many clients have in common, kept once.
//!
//! A server of a hundred thousand sockets keeps a hundred thousand handshakes, and most of what they say is
//! what thousands of others have said: the same browser, the same languages, the same host. That is a
//! [`Shape`]. What is left is a client's own: its key, its cookies, what a proxy has added about it.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use compact_str::CompactString;
use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::{Framing, Version};

/// Shapes that one table keeps: more than a service has combinations of browsers and languages that many
/// clients share.
const SHAPES_MAX: usize = 1024;

/// Bytes of a head that may be shared. A head with more has something in it that is nobody else's.
const SHAPE_BYTES_MAX: usize = 4096;

/// What stands between the pieces of a client's own text: no target and no field has it.
pub(super) const BETWEEN: char = '\n';

/// Offsets into a shape's text. Always made of lengths of that text, so `get` never misses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u16,
    pub(super) end: u16,
}

impl Span {
    /// Stands for the next piece of the client's own text. Heads are shorter than this offset.
    pub(super) const OWN: Self = Self { start: u16::MAX, end: u16::MAX };
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) name: Span,
    pub(super) value: Span,
}

/// A head without what is its client's own.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) text: Box<str>,
    pub(super) fields: Box<[Field]>,
    pub(super) framing: Framing,
    pub(super) method: Span,
    /// If it is the client's own, it is in origin-form, and the first piece of the own text.
    pub(super) target: Span,
    pub(super) path: Span,
    pub(super) query: Span,
    /// The authority of an absolute-form target; empty otherwise.
    pub(super) authority: Span,
    pub(super) version: Version,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
}

impl Shape {
    pub(super) fn slice(&self, span: Span) -> &str {
        self.text.get(usize::from(span.start)..usize::from(span.end)).unwrap_or_default()
    }

    /// Whether a head is of this shape.
    fn fits(&self, parsed: &Parsed<'_>) -> bool {
        // The method is GET for all of them.
        self.version == parsed.version
            && self.fields.len() == parsed.fields.len()
            && match self.target {
                Span::OWN => is_own_target(parsed.target),
                target => self.slice(target) == parsed.target,
            }
            && self.fields.iter().zip(parsed.fields).all(|(known, field)| {
                // The name says whether the value is shared.
                self.slice(known.name) == field.name
                    && (known.value == Span::OWN || self.slice(known.value).as_bytes() == field.value)
            })
    }
}

/// The parts of a head, before anything is known of their meaning.
pub(super) struct Parsed<'a> {
    pub(super) method: &'a str,
    pub(super) target: &'a str,
    pub(super) version: Version,
    pub(super) fields: &'a [httparse::Header<'a>],
}

impl Parsed<'_> {
    /// What of this head a shape does not have.
    fn own(&self, shape: &Shape) -> CompactString {
        let own_fields = || {
            let fields = shape.fields.iter().zip(self.fields);
            fields.filter(|(known, _)| known.value == Span::OWN).map(|(_, field)| field.value)
        };
        let target = (shape.target == Span::OWN).then_some(self.target.as_bytes());
        let len: usize = target.into_iter().chain(own_fields()).map(|piece| piece.len() + 1).sum();
        // One less: it stands between.
        let mut own = CompactString::with_capacity(len.saturating_sub(1));
        for (i, piece) in target.into_iter().chain(own_fields()).enumerate() {
            if i > 0 {
                own.push(BETWEEN);
            }
            match str::from_utf8(piece) {
                Ok(text) => own.push_str(text),
                Err(_) => own.extend(piece.iter().copied().map(char::from)),
            }
        }
        own
    }
}

/// A target that names more than a service: whose query has more than every handshake's.
pub(super) fn is_own_target(target: &str) -> bool {
    const EVERYBODYS: [&str; 2] = ["EIO", "transport"];
    let Some((_, query)) = target.split_once('?') else { return false };
    !query.split('&').all(|pair| EVERYBODYS.contains(&pair.split_once('=').map_or(pair, |(key, _)| key)))
}

/// Whether a field's values differ from client to client: who it is, where it comes from, what it has.
pub(super) fn is_own_field(name: &str) -> bool {
    const OWN: [&str; 8] = [
        "sec-websocket-key",
        "cookie",
        "authorization",
        "forwarded",
        "referer",
        "traceparent",
        "tracestate",
        "true-client-ip",
    ];
    let starts = |prefix: &str| name.get(..prefix.len()).is_some_and(|own| own.eq_ignore_ascii_case(prefix));
    starts("x-") || starts("cf-") || starts("if-") || OWN.iter().any(|own| own.eq_ignore_ascii_case(name))
}

/// The shapes of the heads that are kept, for [`Head::parse_sharing`](super::Head::parse_sharing). Bounded:
/// when it is full, heads of other shapes share nothing. A shape is forgotten, when the place is needed, once
/// no head has it.
///
/// ```
/// use sockring::protocol::http::{Head, HeadLimits, Shapes};
///
/// let mut shapes = Shapes::default();
/// for cookie in ["a=1", "b=2"] {
///     let text = format!("GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: x\r\nCookie: {cookie}\r\n\r\n");
///     let parsed = Head::parse_sharing(text.as_bytes(), &HeadLimits::default(), &mut shapes)?;
///     assert_eq!(parsed.expect("a whole head").0.header("cookie"), Some(cookie));
/// }
/// assert_eq!(shapes.len(), 1);
/// # Ok::<(), sockring::protocol::http::HttpError>(())
/// ```
#[derive(Debug, Default)]
pub struct Shapes {
    known: HashTable<(u64, Arc<Shape>)>,
    hasher: RandomState,
    /// Heads that found no place since those were looked for that nobody uses.
    turned_away: usize,
}

impl Shapes {
    /// How many shapes are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether no shape is known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// What the shape of a head is looked up by. `None`: it shares nothing.
    pub(super) fn hash(&self, parsed: &Parsed<'_>) -> Option<u64> {
        // Others are seldom kept, and where a body ends must be the head's own to say.
        if parsed.method != "GET" || !parsed.target.starts_with('/') {
            return None;
        }
        let mut hasher = self.hasher.build_hasher();
        let mut bytes = 0;
        let mut add = |piece: &[u8]| {
            bytes += piece.len();
            hasher.write(piece);
        };
        if !is_own_target(parsed.target) {
            add(parsed.target.as_bytes());
        }
        for field in parsed.fields {
            if ["content-length", "transfer-encoding"]
                .iter()
                .any(|name| field.name.eq_ignore_ascii_case(name))
            {
                return None;
            }
            add(field.name.as_bytes());
            if !is_own_field(field.name) {
                // What has to be read as ISO-8859-1 is not kept as it came, and would not be found again.
                str::from_utf8(field.value).ok()?;
                add(field.value);
            }
        }
        (bytes <= SHAPE_BYTES_MAX).then(|| hasher.finish())
    }

    /// The shape of a head, made if there is room for it.
    pub(super) fn shape<E>(
        &mut self,
        hash: u64,
        parsed: &Parsed<'_>,
        make: impl FnOnce() -> Result<Shape, E>,
    ) -> Result<Option<(Arc<Shape>, CompactString)>, E> {
        let found = self.known.find(hash, |(known, shape)| *known == hash && shape.fits(parsed));
        let shape = match found.map(|(_, shape)| shape.clone()) {
            Some(shape) => shape,
            None if !self.has_room() => return Ok(None),
            None => {
                let shape = Arc::new(make()?);
                self.known.insert_unique(hash, (hash, shape.clone()), |(hash, _)| *hash);
                shape
            }
        };
        let own = parsed.own(&shape);
        Ok(Some((shape, own)))
    }

    fn has_room(&mut self) -> bool {
        if self.known.len() < SHAPES_MAX {
            return true;
        }
        self.turned_away += 1;
        // Seldom, because it looks at all of them.
        if self.turned_away >= SHAPES_MAX / 4 {
            self.turned_away = 0;
            self.known.retain(|(_, shape)| Arc::strong_count(shape) > 1);
        }
        self.known.len() < SHAPES_MAX
    }
}
