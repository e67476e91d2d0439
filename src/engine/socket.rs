//! The handle on a session.

use std::net::SocketAddr;

use super::server::with_server;
use super::session::Transport;
use crate::app::Request;
use crate::fanout::{Delivery, Frame, OutletId};

/// A message of a session, lent for the length of the call.
///
/// ```
/// use sockring::engine::{Handlers, Message};
/// let handlers = Handlers::default().message(|socket, message| {
///     if let Message::Text("ping?") = message {
///         let _ = socket.send_text("pong!");
///     }
/// });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
}

/// Why a session ended, in the reference's words.
///
/// ```
/// assert_eq!(sockring::engine::CloseReason::PingTimeout.as_str(), "ping timeout");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client left, or its connection ended.
    TransportClose,
    /// The client broke the protocol of its transport, or was too slow for what it was sent.
    TransportError,
    /// The client did not answer a ping in time.
    PingTimeout,
    /// The client sent something that is no packet.
    ParseError,
    /// This server closed the session.
    ForcedClose,
    /// This server stops.
    ServerShuttingDown,
}

impl CloseReason {
    /// The reference's string.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TransportClose => "transport close",
            Self::TransportError => "transport error",
            Self::PingTimeout => "ping timeout",
            Self::ParseError => "parse error",
            Self::ForcedClose => "forced close",
            Self::ServerShuttingDown => "server shutting down",
        }
    }
}

/// How a message is sent.
///
/// ```no_run
/// use sockring::engine::{Message, SendOptions, Socket};
/// fn send_picture(socket: Socket, jpeg: &[u8]) {
///     let _ = socket.send_with(Message::Binary(jpeg), SendOptions { compress: false });
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendOptions {
    /// Whether an answer to a poll is compressed for its sake; yes by default. As with the reference,
    /// WebSockets do not look at it.
    pub compress: bool,
}

impl Default for SendOptions {
    fn default() -> Self {
        Self { compress: true }
    }
}

/// How far a session's life has come, in the reference's words.
///
/// ```
/// assert_eq!(sockring::engine::ReadyState::Closing.as_str(), "closing");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadyState {
    /// Messages go both ways.
    Open,
    /// It was closed from this side, and the client is told with its next poll.
    Closing,
    /// It is gone.
    Closed,
}

impl ReadyState {
    /// The reference's string.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }
}

/// A session of this core. A small copy that stays void once the session has ended.
///
/// ```no_run
/// use sockring::engine::{Handlers, Message};
/// let greeter = Handlers::default().connection(|socket| {
///     println!("{} over {:?}", socket.id(), socket.transport());
///     let _ = socket.send_text("welcome");
/// });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Socket {
    pub(crate) server: u16,
    pub(crate) slot: u32,
    pub(super) generation: u32,
    /// Handles belong to the thread of their core.
    pub(super) local: std::marker::PhantomData<*const ()>,
}

impl Socket {
    /// What tells it apart from others with its slot, for tables by slot that need no more.
    pub(crate) fn generation(self) -> u32 {
        self.generation
    }

    pub(crate) fn of(server: u16, slot: u32, generation: u32) -> Self {
        Self { server, slot, generation, local: std::marker::PhantomData }
    }

    /// The session's id, a secret that it shares with its client only; empty once it has ended.
    pub fn id(self) -> String {
        with_server(self, |server| server.sid(self)).flatten().unwrap_or_default()
    }

    /// The version of the Engine.IO protocol that the client speaks: 4, or 3 where
    /// [`allow_eio3`](super::Options::allow_eio3) lets older clients in. `None` once the session has ended.
    pub fn protocol(self) -> Option<u8> {
        with_server(self, |server| server.with(self, |entry| entry.session.revision().number())).flatten()
    }

    /// How far the session's life has come.
    pub fn ready_state(self) -> ReadyState {
        with_server(self, |server| server.ready_state(self)).unwrap_or(ReadyState::Closed)
    }

    /// The address of the client, or of the proxy before it; `None` for a Unix socket.
    pub fn remote_address(self) -> Option<SocketAddr> {
        self.request()?.peer()
    }

    /// The POST whose packets are being handled, if this session polls: what a `message` handler sees is the
    /// request that carried its message. `None` over WebSocket, and outside of handlers.
    pub fn data_request(self) -> Option<Request> {
        with_server(self, |server| server.data_request(self)).flatten()
    }

    /// Bytes that wait for the client: what it has not taken, and what leaves at the end of this turn.
    pub fn buffered(self) -> usize {
        with_server(self, |server| server.buffered(self)).unwrap_or(0)
    }

    /// How packets travel now; `None` once the session has ended.
    pub fn transport(self) -> Option<Transport> {
        with_server(self, |server| server.with(self, |entry| entry.session.transport())).flatten()
    }

    /// The request that opened the session. One that is larger than
    /// [`Options::kept_head_bytes`](super::Options::kept_head_bytes) lacks its largest header fields and
    /// query parameters.
    pub fn request(self) -> Option<Request> {
        with_server(self, |server| server.with(self, |entry| entry.request.clone())).flatten()
    }

    /// Whether the session is open.
    pub fn is_open(self) -> bool {
        with_server(self, |server| server.with(self, |_| ()).is_some()).unwrap_or(false)
    }

    /// Sends a text message.
    pub fn send_text(self, text: &str) -> Delivery {
        self.send(&Frame::message(&[b"4", text.as_bytes()], &[]))
    }

    /// Sends a binary message.
    pub fn send_binary(self, data: &[u8]) -> Delivery {
        self.send(&Frame::binary(data))
    }

    /// Sends a message with the reference's options.
    pub fn send_with(self, message: Message<'_>, options: SendOptions) -> Delivery {
        let frame = match message {
            Message::Text(text) => Frame::message(&[b"4", text.as_bytes()], &[]),
            Message::Binary(data) => Frame::binary(data),
        };
        self.send(&if options.compress { frame } else { frame.uncompressed() })
    }

    /// Sends a message that is encoded already, the Engine.IO type in front of its text.
    pub fn send(self, frame: &Frame) -> Delivery {
        with_server(self, |server| server.send(self, frame)).unwrap_or(Delivery::Dropped)
    }

    /// Ends the session: the client gets what waits for it, then it is told, and `close` runs with
    /// [`ForcedClose`](CloseReason::ForcedClose) before this returns.
    pub fn close(self) {
        with_server(self, |server| server.close(self, CloseReason::ForcedClose, ""));
    }

    /// Ends the session because its client has brought about what must not go on.
    pub(crate) fn fail(self, details: &str) {
        with_server(self, |server| server.close(self, CloseReason::TransportError, details));
    }

    /// Ends the session at once, and drops what waits for the client: the reference's `close(true)`. A
    /// session that polls is not kept until the next poll.
    pub fn discard(self) {
        with_server(self, |server| server.discard(self));
    }

    /// Where the session's packets go, whatever its transport.
    pub(crate) fn outlet(self) -> Option<OutletId> {
        with_server(self, |server| server.with(self, |entry| entry.outlet)).flatten()
    }
}
