//! The handle on a session.

use super::server::with_server;
use super::session::Transport;
use crate::app::Request;
use crate::fanout::{Delivery, Frame, OutletId};
use crate::protocol::eio::Revision;

/// A message of a session, lent for the length of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
}

/// Why a session ended, in the reference's words.
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
    pub(super) server: u16,
    pub(crate) slot: u32,
    pub(super) generation: u32,
    /// Handles belong to the thread of their core.
    pub(super) local: std::marker::PhantomData<*const ()>,
}

impl Socket {
    /// The session's id, a secret that it shares with its client only; empty once it has ended.
    pub fn id(self) -> String {
        with_server(self, |server| server.with(self, |entry| entry.sid.to_string()))
            .flatten()
            .unwrap_or_default()
    }

    /// How packets travel now; `None` once the session has ended.
    pub fn transport(self) -> Option<Transport> {
        with_server(self, |server| server.with(self, |entry| entry.session.transport())).flatten()
    }

    /// The version of the protocol that the client speaks; `None` once the session has ended. See
    /// [`Options::allow_eio3`](super::Options::allow_eio3).
    pub fn protocol(self) -> Option<Revision> {
        with_server(self, |server| server.with(self, |entry| entry.session.revision())).flatten()
    }

    /// The request that opened the session.
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

    /// Sends a message that is encoded already, the Engine.IO type in front of its text.
    pub fn send(self, frame: &Frame) -> Delivery {
        with_server(self, |server| server.send(self, frame)).unwrap_or(Delivery::Dropped)
    }

    /// Ends the session: the client is told, and `close` runs with
    /// [`ForcedClose`](CloseReason::ForcedClose) before this returns.
    pub fn close(self) {
        with_server(self, |server| server.close(self, CloseReason::ForcedClose));
    }

    /// Where the session's packets go, whatever its transport.
    pub(crate) fn outlet(self) -> Option<OutletId> {
        with_server(self, |server| server.with(self, |entry| entry.outlet)).flatten()
    }
}
