//! Request heads: the request line and the header section (RFC 9112 3 and 5).
//!
//! `httparse` finds the tokens. Here is what it leaves open: where the head ends and how long it may be, line
//! ends, targets, hosts, how the body is delimited, and what exactly was wrong.

mod cut;

use std::mem::MaybeUninit;
use std::sync::Arc;

use compact_str::CompactString;

use super::shapes::{self, BETWEEN, Field, Parsed, Shape, Shapes, Span};
use super::{HttpError, is_token_byte};

/// The largest value [`HeadLimits::head_bytes`] can have, in bytes; more is taken as this. An obs-text byte
/// may become two bytes of UTF-8, and the offsets into the kept head are 16 bits wide.
pub const MAX_HEAD_BYTES: usize = 32 * 1024 - 1;

/// What is on a request line besides the target: the longest method known, two spaces, the version, CR.
const REQUEST_LINE_OVERHEAD: usize = 32;

/// Heads with at most this many fields are parsed without an allocation for the fields' places: more than
/// browsers and proxies send. The places are not written before they are used, so they cost nothing. A head
/// with more gets them from the allocator, 32 bytes for each field that it has, while it is parsed.
const FIELDS_IN_PLACE: usize = 100;

pub(super) const METHODS: [&str; 8] = ["GET", "POST", "OPTIONS", "HEAD", "PUT", "DELETE", "PATCH", "TRACE"];

/// How much of a request head is accepted.
///
/// ```
/// use sockring::protocol::http::{Head, HeadLimits};
///
/// let limits = HeadLimits { target_bytes: 4, ..HeadLimits::default() };
/// let error = Head::parse(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n", &limits).unwrap_err();
/// assert_eq!(error.status(), 414);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes of the whole head, with its empty line. 16 KiB by default, at most [`MAX_HEAD_BYTES`]. Beyond:
    /// 431.
    pub head_bytes: usize,
    /// Bytes of the request target. 16 KiB by default, so that only the size of the whole head counts, as in
    /// Node: clients put tokens into the query. A request line without end within the head's limit, and a
    /// longer target: 414.
    pub target_bytes: usize,
    /// Number of fields. 2,000 by default, as in Node; the size of the head allows for twice as many at
    /// most. Beyond: 431.
    pub headers: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { head_bytes: 16 * 1024, target_bytes: 16 * 1024, headers: 2000 }
    }
}

/// The versions of HTTP that are served (RFC 9112 2.3).
///
/// ```
/// use sockring::protocol::http::{Head, HeadLimits, Version};
///
/// let (head, _) = Head::parse(b"GET / HTTP/1.0\r\n\r\n", &HeadLimits::default())?.expect("a whole head");
/// assert_eq!(head.version(), Version::Http10);
/// assert!(!head.keep_alive());
/// # Ok::<(), sockring::protocol::http::HttpError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: the connection ends with the answer.
    Http10,
    /// HTTP/1.1: the connection persists unless one side says `close`.
    Http11,
}

/// How the body behind a head is delimited (RFC 9112 6.3).
///
/// ```
/// use sockring::protocol::http::Framing;
///
/// assert!(Framing::Length(10).check(9).is_err());
/// assert!(Framing::Chunked.check(9).is_ok());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// This many bytes follow.
    Length(u64),
    /// Chunks follow; read them with a [`ChunkedDecoder`](super::ChunkedDecoder).
    Chunked,
}

impl Framing {
    /// Refuses a body whose announced length is beyond `max_body` bytes. Chunked bodies pass: only their
    /// decoder can tell.
    ///
    /// # Errors
    ///
    /// [`HttpError::BodyTooLarge`] (413, RFC 9110 15.5.14).
    pub fn check(self, max_body: u64) -> Result<(), HttpError> {
        match self {
            Self::Length(length) if length > max_body => Err(HttpError::BodyTooLarge),
            _ => Ok(()),
        }
    }
}

/// A request head, owned. Small, because a Socket.IO handshake keeps its head as long as the session lives:
/// what many heads have in common can be [shared](Self::parse_sharing).
///
/// Bytes above 0x7f in field values (obs-text, RFC 9110 5.5) become text like this: a value that is valid
/// UTF-8 is kept as it is, any other value is read as ISO-8859-1. Nothing is lost in either case. In the
/// request line and in field names such bytes are refused.
///
/// ```
/// use sockring::protocol::http::{Head, HeadLimits};
///
/// let bytes = b"GET http://a.b:80/x?y HTTP/1.1\r\nhost: z\r\nConnection: keep-alive, Upgrade\r\n\r\n";
/// let (head, _) = Head::parse(bytes, &HeadLimits::default())?.expect("a whole head");
/// assert_eq!((head.method(), head.path(), head.query()), ("GET", "/x", "y"));
/// assert_eq!(head.header("HOST"), Some("z"));
/// assert_eq!(head.host(), Some("a.b:80"));
/// assert!(head.has_token("connection", "upgrade"));
/// # Ok::<(), sockring::protocol::http::HttpError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Head {
    shape: Arc<Shape>,
    /// The target and the values that the shape does not have, in order.
    own: CompactString,
}

impl Head {
    /// Parses the head at the start of `buf` (RFC 9112 2 to 6). One CRLF before it is skipped.
    ///
    /// `Ok(None)` asks for more bytes: call again with the longer buffer. The end of the head is searched
    /// before anything else is looked at, in at most [`HeadLimits::head_bytes`], so a head that trickles in
    /// costs a bounded number of short scans. The number returned is how many bytes of `buf` the head took,
    /// with the skipped CRLF.
    ///
    /// # Errors
    ///
    /// Any [`HttpError`] about heads. Wrong line ends and exceeded limits are reported as soon as they are
    /// visible, without waiting for the end of the head.
    pub fn parse(buf: &[u8], limits: &HeadLimits) -> Result<Option<(Self, usize)>, HttpError> {
        Self::parse_with(buf, limits, None)
    }

    /// Like [`parse`](Self::parse), and keeps what other heads have said as well only once.
    ///
    /// # Errors
    ///
    /// As of [`parse`](Self::parse).
    pub fn parse_sharing(
        buf: &[u8],
        limits: &HeadLimits,
        shapes: &mut Shapes,
    ) -> Result<Option<(Self, usize)>, HttpError> {
        Self::parse_with(buf, limits, Some(shapes))
    }

    fn parse_with(
        buf: &[u8],
        limits: &HeadLimits,
        shapes: Option<&mut Shapes>,
    ) -> Result<Option<(Self, usize)>, HttpError> {
        let (skipped, rest) = match buf.strip_prefix(b"\r\n") {
            Some(rest) => (2, rest),
            None => (0, buf),
        };
        let Some(extent) = Extent::find(rest, limits)? else { return Ok(None) };
        let head = rest.get(..extent.length).ok_or(HttpError::RequestLine)?;
        // `httparse` wants the places for the fields before it counts them.
        let mut few = [MaybeUninit::uninit(); FIELDS_IN_PLACE];
        let mut many = Vec::new();
        let places = match few.get_mut(..extent.fields) {
            Some(places) => places,
            None => {
                many.resize(extent.fields, MaybeUninit::uninit());
                many.as_mut_slice()
            }
        };
        let mut request = httparse::Request::new(&mut []);
        let status = request
            .parse_with_uninit_headers(head, places)
            .map_err(|error| refusal(error, head, request.method))?;
        let (httparse::Status::Complete(length), Some(method), Some(target), Some(version)) =
            (status, request.method, request.path, request.version)
        else {
            return Err(HttpError::RequestLine);
        };
        if length != head.len() {
            // Two opinions on where a head ends are what smuggling is made of. No input is known to do this.
            return Err(HttpError::RequestLine);
        }
        let version = if version == 0 { Version::Http10 } else { Version::Http11 };
        check_request_line(method, target, limits)?;
        let parsed = Parsed { method, target, version, fields: request.headers };
        Ok(Some((Self::new(&parsed, shapes)?, skipped + extent.length)))
    }

    fn new(parsed: &Parsed<'_>, shapes: Option<&mut Shapes>) -> Result<Self, HttpError> {
        if let Some(shapes) = shapes
            && let Some(hash) = shapes.hash(parsed)
            && let Some((shape, own)) = shapes.shape(hash, parsed, || Builder::build(parsed, true))?
        {
            return Ok(Self { shape, own });
        }
        Ok(Self { shape: Arc::new(Builder::build(parsed, false)?), own: CompactString::const_new("") })
    }

    /// The method as sent: one of GET, HEAD, POST, PUT, DELETE, OPTIONS, TRACE, PATCH.
    #[must_use]
    pub fn method(&self) -> &str {
        self.shape.slice(self.shape.method)
    }

    /// The request target as sent (RFC 9112 3.2).
    #[must_use]
    pub fn target(&self) -> &str {
        self.own_target().unwrap_or_else(|| self.shape.slice(self.shape.target))
    }

    /// The path without the query, not decoded. An absolute-form target gives its path (`/` if it has none);
    /// the asterisk-form gives `*`.
    #[must_use]
    pub fn path(&self) -> &str {
        if let Some(target) = self.own_target() {
            return target.split_once('?').map_or(target, |(path, _)| path);
        }
        match self.shape.slice(self.shape.path) {
            "" => "/",
            path => path,
        }
    }

    /// The raw query without its `?`; empty if there is none.
    #[must_use]
    pub fn query(&self) -> &str {
        match self.own_target() {
            Some(target) => target.split_once('?').map_or("", |(_, query)| query),
            None => self.shape.slice(self.shape.query),
        }
    }

    /// The version on the request line.
    #[must_use]
    pub fn version(&self) -> Version {
        self.shape.version
    }

    /// The authority asked for: that of an absolute-form target, else the `Host` field (RFC 9112 3.2.2).
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match self.shape.slice(self.shape.authority) {
            "" => self.header("host"),
            authority => Some(authority),
        }
    }

    /// The value of the first field with this name, in any case; without white space around it.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Every field in order, names as sent.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut own = self.own.split(BETWEEN).skip(usize::from(self.own_target().is_some()));
        self.shape.fields.iter().map(move |field| {
            let value = match field.value {
                Span::OWN => own.next().unwrap_or_default(),
                value => self.shape.slice(value),
            };
            (self.shape.slice(field.name), value)
        })
    }

    /// Whether any of the comma-separated elements of the fields called `name` is `token`, in any case.
    #[must_use]
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.headers().filter(|(known, _)| known.eq_ignore_ascii_case(name)).any(|(_, value)| {
            // Most lists have one element.
            value.eq_ignore_ascii_case(token)
                || value.split(',').any(|e| e.trim_matches([' ', '\t']).eq_ignore_ascii_case(token))
        })
    }

    /// Whether the connection persists after the answer (RFC 9112 9.3). HTTP/1.0 never does here: nobody who
    /// speaks it to a Socket.IO server is helped by the old `keep-alive` extension.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        self.shape.keep_alive
    }

    /// How the body is delimited.
    #[must_use]
    pub fn framing(&self) -> Framing {
        self.shape.framing
    }

    /// Whether the client waits for a `100 Continue` before it sends the body (RFC 9110 10.1.1); never with
    /// HTTP/1.0.
    #[must_use]
    pub fn expects_continue(&self) -> bool {
        self.shape.expects_continue
    }

    /// Whether this asks for a WebSocket: HTTP/1.1 GET with the tokens `Upgrade: websocket` and
    /// `Connection: upgrade` (RFC 6455 4.2.1). The rest is checked by
    /// [`ws::handshake::check`](crate::protocol::ws::handshake::check).
    #[must_use]
    pub fn is_websocket_upgrade(&self) -> bool {
        self.method() == "GET"
            && self.version() == Version::Http11
            && self.has_token("upgrade", "websocket")
            && self.has_token("connection", "upgrade")
    }

    fn own_target(&self) -> Option<&str> {
        (self.shape.target == Span::OWN).then(|| self.own.split(BETWEEN).next()).flatten()
    }
}

// There is one for each session.
const _: () = assert!(size_of::<Head>() <= 32);

/// How far a head reaches, found without reading its lines.
struct Extent {
    /// With the empty line.
    length: usize,
    /// Lines between the request line and the empty line.
    fields: usize,
}

impl Extent {
    /// Finds the end of the head at the start of `buf`, or `None` if more bytes are needed. No LF up to there
    /// is without its CR, and every limit that can be seen from afar is kept.
    fn find(buf: &[u8], limits: &HeadLimits) -> Result<Option<Self>, HttpError> {
        let head_bytes = limits.head_bytes.min(MAX_HEAD_BYTES);
        let request_line_bytes = limits.target_bytes.saturating_add(REQUEST_LINE_OVERHEAD);
        match buf {
            [] | [b'\r'] => return Ok(None),
            // Not the start of any method: a TLS client hello or noise, which might never contain a line end.
            // Nor another empty line: `httparse` would skip any number of them.
            [first, ..] if !is_token_byte(*first) => return Err(HttpError::RequestLine),
            _ => {}
        }
        let mut rest = buf;
        let mut lines = 0;
        while let Some(at) = find_lf(rest) {
            let (line, after) = rest.split_at(at);
            let Some(line) = line.strip_suffix(b"\r") else { return Err(HttpError::LineEnd) };
            if lines == 0 && line.len() > request_line_bytes {
                return Err(HttpError::TargetTooLong);
            }
            rest = after.get(1..).unwrap_or_default();
            let used = buf.len() - rest.len();
            if used > head_bytes {
                return Err(if lines == 0 { HttpError::TargetTooLong } else { HttpError::HeadTooLarge });
            }
            if line.is_empty() {
                // Not the first line, which starts with a byte of a token.
                return Ok(Some(Self { length: used, fields: lines - 1 }));
            }
            lines += 1;
            if lines - 1 > limits.headers {
                return Err(HttpError::TooManyFields);
            }
        }
        if lines == 0 && rest.len() > request_line_bytes.min(head_bytes) {
            return Err(HttpError::TargetTooLong);
        }
        match buf.len() >= head_bytes {
            // No more than the CR of the request line is missing at best, and it has no fields yet.
            true if lines == 0 => Err(HttpError::TargetTooLong),
            true => Err(HttpError::HeadTooLarge),
            false => Ok(None),
        }
    }
}

/// The position of the first LF. Whole blocks are tested without a branch per byte, which the compiler turns
/// into vector instructions.
fn find_lf(bytes: &[u8]) -> Option<usize> {
    const BLOCK: usize = 32;
    let mut skipped = 0;
    for block in bytes.chunks(BLOCK) {
        if block.iter().fold(false, |found, byte| found | (*byte == b'\n')) {
            return block.iter().position(|byte| *byte == b'\n').map(|at| skipped + at);
        }
        skipped += block.len();
    }
    None
}

/// Why `httparse` refused `head`, which ends in an empty line and has no LF without CR. `method` is set if
/// that much of it was read. If there are several faults, this may name a later one.
#[cold]
fn refusal(error: httparse::Error, head: &[u8], method: Option<&str>) -> HttpError {
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let request_line = lines.next().unwrap_or_default();
    let two_spaces = request_line.iter().filter(|byte| **byte == b' ').count() == 2;
    let mut fields = lines;
    match (error, request_line) {
        (httparse::Error::HeaderName, _) => {
            let folds = |line: &[u8]| matches!(line, [b' ' | b'\t', ..]);
            if fields.skip(1).any(folds) { HttpError::Folded } else { HttpError::FieldName }
        }
        (httparse::Error::HeaderValue, _) if fields.any(|line| line.contains(&b'\r')) => HttpError::LineEnd,
        (httparse::Error::HeaderValue, _) => HttpError::FieldValue,
        (httparse::Error::TooManyHeaders, _) => HttpError::TooManyFields,
        _ if !two_spaces => HttpError::RequestLine,
        (httparse::Error::Token, _) if method.is_some() => HttpError::Target,
        // Any version but for `PRI`, which opens HTTP/2: its client would not understand an answer either.
        (
            httparse::Error::Version,
            [.., b' ', b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'],
        ) if method != Some("PRI") => HttpError::Version,
        // The request line is over in time, so a field line starts with CR.
        (httparse::Error::NewLine, [.., b' ', _, _, _, _, _, _, _, _]) => HttpError::LineEnd,
        _ => HttpError::RequestLine,
    }
}

/// What a request line that is made of tokens may still get wrong.
fn check_request_line(method: &str, target: &str, limits: &HeadLimits) -> Result<(), HttpError> {
    // `httparse` lets UTF-8 through.
    if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(HttpError::Target);
    }
    if !METHODS.contains(&method) {
        return Err(HttpError::Method);
    }
    if target.len() > limits.target_bytes {
        return Err(HttpError::TargetTooLong);
    }
    Ok(())
}

/// Collects a head while its fields are checked.
struct Builder {
    text: String,
    hosts: usize,
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    expects_continue: bool,
}

/// The parts of a request target, as slices of it.
struct Target<'a> {
    authority: &'a str,
    path: &'a str,
    query: &'a str,
}

impl Builder {
    fn with_room(bytes: usize) -> Self {
        Self {
            text: String::with_capacity(bytes),
            hosts: 0,
            content_length: None,
            chunked: false,
            close: false,
            expects_continue: false,
        }
    }

    /// `shared`: leaves out what is a client's own.
    fn build(parsed: &Parsed<'_>, shared: bool) -> Result<Shape, HttpError> {
        let Parsed { method, target: raw_target, version, fields: headers } = *parsed;
        let target = parse_target(method, raw_target)?;
        let own_target = shared && shapes::is_own_target(raw_target);
        // Exact, unless a value is left out, or in ISO-8859-1 and grows.
        let fields_bytes: usize = headers.iter().map(|field| field.name.len() + field.value.len()).sum();
        let mut builder = Self::with_room(method.len() + raw_target.len() + fields_bytes);
        let method = builder.push(method);
        // Pieces of the target lie in it in order: authority, path, query. The text gets the whole target
        // once.
        let whole = if own_target { Span::OWN } else { builder.push(raw_target) };
        let span_of =
            |part: &str| if own_target { Span::default() } else { sub_span(raw_target, whole, part) };
        let (authority, path, query) =
            (span_of(target.authority), span_of(target.path), span_of(target.query));
        let mut fields = Vec::with_capacity(headers.len());
        for field in headers {
            builder.note(field.name, field.value, version)?;
            let name = builder.push(field.name);
            let own = shared && shapes::is_own_field(field.name);
            let value = if own { Span::OWN } else { builder.push_value(field.value) };
            fields.push(Field { name, value });
        }
        let framing = builder.framing()?;
        if builder.hosts == 0 && version == Version::Http11 {
            return Err(HttpError::Host);
        }
        Ok(Shape {
            text: builder.text.into_boxed_str(),
            fields: fields.into_boxed_slice(),
            framing,
            method,
            target: whole,
            path,
            query,
            authority,
            version,
            keep_alive: version == Version::Http11 && !builder.close,
            expects_continue: version == Version::Http11 && builder.expects_continue,
        })
    }

    /// Appends to the kept text. The head is at most `MAX_HEAD_BYTES` long and grows at most twofold, so the
    /// offsets fit.
    fn push(&mut self, part: &str) -> Span {
        let start = self.text.len();
        self.text.push_str(part);
        span(start, self.text.len())
    }

    fn push_value(&mut self, value: &[u8]) -> Span {
        let start = self.text.len();
        match str::from_utf8(value) {
            Ok(text) => self.text.push_str(text),
            Err(_) => self.text.extend(value.iter().copied().map(char::from)),
        }
        span(start, self.text.len())
    }

    /// Acts on the fields that decide about the message's boundaries and the connection.
    fn note(&mut self, name: &str, value: &[u8], version: Version) -> Result<(), HttpError> {
        if name.eq_ignore_ascii_case("host") {
            self.hosts += 1;
            if self.hosts > 1 || !is_authority(value) {
                return Err(HttpError::Host);
            }
        } else if name.eq_ignore_ascii_case("content-length") {
            let length = parse_length(value).ok_or(HttpError::ContentLength)?;
            if self.content_length.replace(length).is_some() {
                return Err(HttpError::ContentLength);
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if self.chunked || version == Version::Http10 {
                return Err(HttpError::TransferEncoding);
            }
            check_codings(value)?;
            self.chunked = true;
        } else if name.eq_ignore_ascii_case("connection") {
            self.close |= elements(value).any(|option| option.eq_ignore_ascii_case(b"close"));
        } else if name.eq_ignore_ascii_case("expect") && version == Version::Http11 {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(HttpError::Expectation);
            }
            self.expects_continue = true;
        }
        Ok(())
    }

    fn framing(&self) -> Result<Framing, HttpError> {
        match (self.content_length, self.chunked) {
            //= RFC 9112 6.1: "a request message containing both ... ought to be handled as an error"
            (Some(_), true) => Err(HttpError::ContentLength),
            (None, true) => Ok(Framing::Chunked),
            (Some(0) | None, false) => Ok(Framing::None),
            (Some(length), false) => Ok(Framing::Length(length)),
        }
    }
}

fn span(start: usize, end: usize) -> Span {
    let narrow = |offset: usize| u16::try_from(offset).unwrap_or(u16::MAX);
    Span { start: narrow(start), end: narrow(end) }
}

/// Where `part`, a slice of `whole`, lies in the text, given where `whole` lies.
fn sub_span(whole: &str, at: Span, part: &str) -> Span {
    if part.is_empty() {
        return Span::default();
    }
    let offset = part.as_ptr().addr().saturating_sub(whole.as_ptr().addr());
    let start = usize::from(at.start) + offset;
    span(start, start + part.len())
}

/// Takes a target apart: origin-form, absolute-form, or `*` for OPTIONS (RFC 9112 3.2).
fn parse_target<'a>(method: &str, target: &'a str) -> Result<Target<'a>, HttpError> {
    if target == "*" {
        let path = if method == "OPTIONS" { target } else { return Err(HttpError::Target) };
        return Ok(Target { authority: "", path, query: "" });
    }
    let (authority, rest) = if target.starts_with('/') {
        ("", target)
    } else {
        let (scheme, rest) = target.split_once("://").ok_or(HttpError::Target)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(HttpError::Target);
        }
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if !is_authority(authority.as_bytes()) {
            return Err(HttpError::Target);
        }
        (authority, rest)
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    Ok(Target { authority, path, query })
}

/// `host [":" port]` of RFC 3986 without user information, not empty (RFC 9110 4.2.1). A comma would be legal
/// in a name there, but in practice it means that a proxy joined two `Host` lines.
pub(crate) fn is_authority(text: &[u8]) -> bool {
    let host_end = match text.first() {
        Some(b'[') => {
            let Some(end) = text.iter().position(|byte| *byte == b']') else { return false };
            let inside = text.get(1..end).unwrap_or_default();
            if inside.len() < 2 || !inside.iter().all(|b| b.is_ascii_hexdigit() || b":.".contains(b)) {
                return false;
            }
            end + 1
        }
        _ => {
            let end = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
            let name = text.get(..end).unwrap_or_default();
            if name.is_empty()
                || !name.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(b))
            {
                return false;
            }
            end
        }
    };
    match text.get(host_end..).unwrap_or_default() {
        [] => true,
        [b':', port @ ..] => port.len() <= 5 && port.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// One plain decimal number below 2^63. Signs, lists and leading zeros are refused: what they mean depends on
/// who reads them, and a proxy in front may have read them otherwise.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || (value.len() > 1 && value.first() == Some(&b'0')) {
        return None;
    }
    let mut length: u64 = 0;
    for digit in value {
        if !digit.is_ascii_digit() {
            return None;
        }
        length = length.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    (length <= i64::MAX as u64).then_some(length)
}

/// Accepts `chunked` alone (RFC 9112 6.1).
fn check_codings(value: &[u8]) -> Result<(), HttpError> {
    let last = elements(value).last().unwrap_or_default();
    if !last.eq_ignore_ascii_case(b"chunked") {
        return Err(HttpError::TransferEncoding);
    }
    match elements(value).filter(|coding| coding.eq_ignore_ascii_case(b"chunked")).count() {
        1 if elements(value).count() == 1 => Ok(()),
        1 => Err(HttpError::TransferCoding),
        _ => Err(HttpError::TransferEncoding),
    }
}

fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim)
}

/// Removes optional white space (RFC 9110 5.6.3): spaces and tabs, nothing else.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod tests;
