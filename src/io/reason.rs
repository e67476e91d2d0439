//! Why a socket left.

use std::fmt;

use crate::engine::CloseReason;

/// Why a socket has left its namespace, in the reference's words.
///
/// ```
/// use sockring::io::DisconnectReason;
/// let reason = DisconnectReason::ClientNamespaceDisconnect;
/// assert_eq!(reason.to_string(), "client namespace disconnect");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// The client left with `socket.disconnect()`.
    ClientNamespaceDisconnect,
    /// The server called [`Socket::disconnect`](super::Socket::disconnect).
    ServerNamespaceDisconnect,
    /// The connection was closed from this side, because the client broke the protocol or by the engine.
    ForcedClose,
    /// The client's connection ended.
    TransportClose,
    /// The client broke the transport's protocol, or was too slow for what it was sent.
    TransportError,
    /// The client did not answer a ping.
    PingTimeout,
    /// The client sent what is no packet.
    ParseError,
    /// The server stops.
    ServerShuttingDown,
}

impl DisconnectReason {
    /// The reference's string.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientNamespaceDisconnect => "client namespace disconnect",
            Self::ServerNamespaceDisconnect => "server namespace disconnect",
            Self::ForcedClose => "forced close",
            Self::TransportClose => "transport close",
            Self::TransportError => "transport error",
            Self::PingTimeout => "ping timeout",
            Self::ParseError => "parse error",
            Self::ServerShuttingDown => "server shutting down",
        }
    }
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<CloseReason> for DisconnectReason {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::TransportClose => Self::TransportClose,
            CloseReason::TransportError => Self::TransportError,
            CloseReason::PingTimeout => Self::PingTimeout,
            CloseReason::ParseError => Self::ParseError,
            CloseReason::ServerShuttingDown => Self::ServerShuttingDown,
            CloseReason::ForcedClose => Self::ForcedClose,
        }
    }
}
