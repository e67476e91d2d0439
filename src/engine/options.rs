//! What an operator sets about sessions.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use super::decide::{Decide, Decision};
use super::{Cookie, Cors, Origins, Transport};
use crate::app::{PerMessageDeflate, Request};
use crate::fanout::Frame;
use crate::limits;

/// Decides about handshakes: `Ok` lets the client in, `Err` is the message of the refusal.
pub type AllowRequest = Rc<dyn Fn(Request) -> Decision<()>>;

/// Makes the ids of sessions.
pub type GenerateId = Rc<dyn Fn(Request) -> Decision<String>>;

/// Chooses one of the subprotocols that a WebSocket's client offers, or none.
pub type HandleProtocols = Rc<dyn Fn(&[&str], &Request) -> Option<String>>;

/// Compression of long-polling answers.
///
/// ```
/// use sockring::engine::{HttpCompression, Options};
/// let http_compression = Some(HttpCompression { threshold: 4096 });
/// let options = Options { http_compression, ..Options::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpCompression {
    /// Bytes of a payload from which on it is worth it; 1024 by default.
    pub threshold: usize,
}

impl Default for HttpCompression {
    fn default() -> Self {
        Self { threshold: 1024 }
    }
}

/// Options of an engine, with the reference's names and defaults.
///
/// ```
/// use std::time::Duration;
/// use sockring::engine::Options;
/// let options = Options { ping_interval: Duration::from_secs(10), ..Options::default() }
///     .allow_request(|request| async move {
///         match request.header("authorization") {
///             Some(_) => Ok(()),
///             None => Err("who are you?".to_owned()),
///         }
///     });
/// ```
#[derive(Clone)]
pub struct Options {
    /// The path; `/engine.io` by default.
    pub path: String,
    /// Whether the path ends in a slash, so that `/engine.io` alone is no request for the engine; yes by
    /// default.
    pub add_trailing_slash: bool,
    /// How often the client is pinged, counted from its last pong.
    pub ping_interval: Duration,
    /// How long it may take to answer.
    pub ping_timeout: Duration,
    /// How long an upgrade may take.
    pub upgrade_timeout: Duration,
    /// Bytes of one message, and of one polling payload.
    pub max_http_buffer_size: usize,
    /// The transports that are served.
    pub transports: Vec<Transport>,
    /// Whether a polling session may move to WebSocket.
    pub allow_upgrades: bool,
    /// Whether clients of Engine.IO v3, which those of Socket.IO v2 are, are let in (the reference's
    /// `allowEIO3`); no by default.
    pub allow_eio3: bool,
    /// The sessions of all cores that there may be at a time: 1,048,576 by default, 0 for any number. A
    /// session counts once for each 1,024 bytes of its opening request that it keeps, at least once, and
    /// until its place is free again: one that was closed may wait for one more poll. A handshake beyond
    /// it is answered with 503 and `Retry-After`.
    ///
    /// A sixteenth of it is for polling sessions that have done nothing since their handshake, so that a
    /// flood of handshakes cannot take the place of clients. If all of that is used, the oldest of them
    /// that has done nothing for ten seconds gives way; if there is none, the handshake is answered with 503.
    pub max_sessions: usize,
    /// Bytes of its opening request that a session keeps, beside what it shares with others: 16,384 by
    /// default. Of a larger one, the largest header fields and query parameters are left out first, whole:
    /// [`Socket::request`](super::Socket::request) and what is made of it do not have them.
    /// [`allow_request`](Self::allow_request), middlewares and the hooks for headers see the whole request.
    pub kept_head_bytes: usize,
    /// The origins whose scripts may use the engine; any by default, as with the reference. See
    /// [`allowed_origins`](Self::allowed_origins).
    pub allowed_origins: Option<Origins>,
    /// Chooses the subprotocol of a WebSocket; by default the first one that the client offers. See
    /// [`handle_protocols`](Self::handle_protocols).
    pub handle_protocols: Option<HandleProtocols>,
    /// permessage-deflate for WebSockets that offer it; none by default. Unlike the reference's, its own
    /// defaults keep no context of what is sent: see [`PerMessageDeflate`].
    pub per_message_deflate: Option<PerMessageDeflate>,
    /// Compression of polling answers; on by default, from 1024 bytes on.
    pub http_compression: Option<HttpCompression>,
    /// A message that every session gets right behind its handshake; see
    /// [`initial_text`](Self::initial_text).
    pub initial_packet: Option<Frame>,
    /// A cookie with the session's id, set by a polling handshake; none by default.
    pub cookie: Option<Cookie>,
    /// CORS headers; none by default.
    pub cors: Option<Cors>,
    /// Asked before a session opens; see [`allow_request`](Self::allow_request).
    pub allow_request: Option<AllowRequest>,
    /// Makes the ids of sessions; see [`generate_id`](Self::generate_id).
    pub generate_id: Option<GenerateId>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            path: "/engine.io".into(),
            add_trailing_slash: true,
            ping_interval: Duration::from_millis(25_000),
            ping_timeout: Duration::from_millis(20_000),
            upgrade_timeout: Duration::from_millis(10_000),
            max_http_buffer_size: 1_000_000,
            transports: vec![Transport::Polling, Transport::WebSocket],
            allow_upgrades: true,
            allow_eio3: false,
            max_sessions: limits::SESSIONS,
            kept_head_bytes: limits::KEPT_HEAD_BYTES,
            allowed_origins: None,
            handle_protocols: None,
            per_message_deflate: None,
            http_compression: Some(HttpCompression::default()),
            initial_packet: None,
            cookie: None,
            cors: None,
            allow_request: None,
            generate_id: None,
        }
    }
}

impl Options {
    /// Sets what decides about handshakes, polling and WebSocket alike: a closure that returns a `Result`,
    /// or a future of one. An error is answered with 403 to a polling request and 400 to a WebSocket
    /// handshake; its text is what the client is told, an empty one means `Forbidden`.
    #[must_use]
    pub fn allow_request<F, R, M>(mut self, allow: F) -> Self
    where
        F: Fn(Request) -> R + 'static,
        R: Decide<(), M>,
    {
        self.allow_request = Some(Rc::new(move |request| allow(request).decide()));
        self
    }

    /// Sets what makes the ids of sessions: a closure that returns a `Result`, or a future of one. An id is a
    /// secret between server and client: whoever can guess it can take the session over. It has 1 to 128
    /// visible ASCII characters without `" , ; \`. An error, or an id that is in use, refuses the handshake
    /// with code 3.
    ///
    /// The server's own ids say on which core their session is; those of the application are looked up in a
    /// table that the cores share, once for each request.
    ///
    /// ```
    /// use sockring::engine::Options;
    /// let options = Options::default().generate_id(|request| match request.query_param("ticket") {
    ///     Some(ticket) => Ok(ticket.into_owned()),
    ///     None => Err("no ticket".to_owned()),
    /// });
    /// ```
    #[must_use]
    pub fn generate_id<F, R, M>(mut self, generate: F) -> Self
    where
        F: Fn(Request) -> R + 'static,
        R: Decide<String, M>,
    {
        self.generate_id = Some(Rc::new(move |request| generate(request).decide()));
        self
    }

    /// Lets in only requests from scripts of these origins, such as `https://example.com`, over every
    /// transport. A request with another `Origin` is answered with 403 and the reference's code 4,
    /// `Forbidden`.
    ///
    /// Without it a page of any site can open a WebSocket here in its visitor's name: browsers send their
    /// cookies along and do not apply [`cors`](Self::cors) to WebSockets. Set it wherever a session is
    /// trusted because of a cookie, a client certificate, or the network that it comes from.
    ///
    /// A request without `Origin` comes from no script of another site and is let in, as programs and
    /// same-origin polls send it; one for JSONP is refused, since the script element that sends it says
    /// nothing of its site. For anything but a list, set the field to an [`Origins`].
    ///
    /// ```
    /// use sockring::engine::Options;
    /// let options = Options::default().allowed_origins(["https://example.com", "https://example.org"]);
    /// ```
    #[must_use]
    pub fn allowed_origins<S: Into<String>>(mut self, origins: impl IntoIterator<Item = S>) -> Self {
        self.allowed_origins = Some(Origins::List(origins.into_iter().map(Into::into).collect()));
        self
    }

    /// Sets what chooses the subprotocol of a WebSocket (RFC 6455 section 1.9), by the name that `ws` has
    /// for it: a closure that is given those that the client offers, in its order, and the request. It runs
    /// for handshakes that offer any. `None`, or one that was not offered: the answer names none, and a
    /// browser gives up.
    ///
    /// ```
    /// use sockring::engine::Options;
    /// let options = Options::default().handle_protocols(|offered, _| {
    ///     offered.contains(&"chat.v2").then(|| "chat.v2".to_owned())
    /// });
    /// ```
    #[must_use]
    pub fn handle_protocols(
        mut self,
        choose: impl Fn(&[&str], &Request) -> Option<String> + 'static,
    ) -> Self {
        self.handle_protocols = Some(Rc::new(choose));
        self
    }

    /// Sets the [`initial_packet`](Self::initial_packet) to a text.
    #[must_use]
    pub fn initial_text(mut self, text: &str) -> Self {
        self.initial_packet = Some(Frame::message(&[b"4", text.as_bytes()], &[]));
        self
    }

    /// Sets the [`initial_packet`](Self::initial_packet) to binary data.
    #[must_use]
    pub fn initial_binary(mut self, data: &[u8]) -> Self {
        self.initial_packet = Some(Frame::binary(data));
        self
    }

    /// The path as a prefix.
    pub(crate) fn prefix(&self) -> String {
        let path = self.path.trim_matches('/');
        if self.add_trailing_slash && !path.is_empty() { format!("/{path}/") } else { format!("/{path}") }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("path", &self.path)
            .field("ping_interval", &self.ping_interval)
            .field("ping_timeout", &self.ping_timeout)
            .field("transports", &self.transports)
            .finish_non_exhaustive()
    }
}
