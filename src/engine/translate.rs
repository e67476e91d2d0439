//! Sessions whose packets are not written as version 4 writes them: clients of version 3, and those that want
//! base64 over WebSocket.
//!
//! A broadcast makes frames of version 4 for everybody, and owes them to outlets. The outlet of such a
//! session stays the layer's own whatever carries the session, like that of a polling one: here each frame
//! that it is owed gets its other form, which the frame keeps for the next, and goes on to the outlet of the
//! connection.

use smallvec::SmallVec;

use super::Socket;
use super::server::{Entry, Inner, Link};
use super::websocket::Carrier;
use crate::app::{Request, WebSocket};
use crate::fanout::{Backlog, Frame, OutletId};
use crate::limits;
use crate::protocol::eio::v3::Mode;
use crate::protocol::eio::{Dialect, Revision, SEPARATOR};

/// The dialect that a request speaks.
pub(super) fn dialect(request: &Request) -> Dialect {
    let truthy = |key: &str| request.query_param(key).is_some_and(|value| !value.is_empty());
    Dialect {
        revision: Revision::of_query(request.query_param("EIO").as_deref()),
        // Answers that are scripts are text.
        base64: truthy("b64") || request.query_param("j").is_some(),
    }
}

/// The body of a poll's answer.
pub(super) fn payload<'a>(dialect: Dialect, frames: impl Iterator<Item = &'a Frame> + Clone) -> Vec<u8> {
    let mut out = Vec::new();
    match dialect.revision {
        Revision::V4 => {
            for frame in frames {
                if !out.is_empty() {
                    out.push(SEPARATOR);
                }
                out.extend_from_slice(frame.polling());
            }
        }
        Revision::V3 => {
            let binary = !dialect.base64 && frames.clone().any(Frame::has_binary);
            let mode = if binary { Mode::Binary } else { Mode::Text };
            frames.for_each(|frame| out.extend_from_slice(frame.polling_v3(mode)));
        }
    }
    out
}

/// The body of an answer that has only packets of this layer in it: each is one digit.
pub(super) fn digits(dialect: Dialect, packets: &[u8]) -> Vec<u8> {
    let frames: SmallVec<[Frame; 2]> =
        packets.iter().map(|digit| Frame::message(&[&[*digit]], &[])).collect();
    payload(dialect, frames.iter())
}

/// The content type of text.
pub(super) const TEXT: &str = "text/plain; charset=UTF-8";

/// The content type of a body that [`payload`] has made. A binary one begins with 0 or 1; all others begin
/// with a digit or `b`.
pub(super) fn content_type(body: &[u8]) -> &'static str {
    match body.first() {
        Some(0 | 1) => "application/octet-stream",
        _ => TEXT,
    }
}

impl Entry {
    /// Whether the outlet of the connection is that of the session.
    pub(super) fn is_carried(&self) -> bool {
        matches!(self.link, Link::WebSocket(_)) && self.dialect == Dialect::default()
    }

    /// The WebSocket whose frames are translated.
    fn translated(&self) -> Option<(WebSocket<Carrier>, Dialect)> {
        match self.link {
            Link::WebSocket(ws) if !self.is_carried() => Some((ws, self.dialect)),
            _ => None,
        }
    }
}

impl Inner {
    /// How the packets of a session are written. One that has ended may still be told so.
    pub(super) fn dialect(&self, socket: Socket) -> Dialect {
        self.with_any(socket, |entry| entry.dialect).unwrap_or_default()
    }

    /// The outlet of a connection that is not that of its session.
    pub(super) fn own_outlet(&self, socket: Socket) -> Option<OutletId> {
        self.with(socket, |entry| entry.translated()).flatten()?.0.outlet()
    }

    /// A session is owed something. `false`: it is not one whose frames are translated.
    pub(super) fn forward(&self, socket: Socket) -> bool {
        let found = self.with(socket, |entry| Some((entry.translated()?, entry.outlet))).flatten();
        let Some(((ws, dialect), outlet)) = found else { return false };
        let Some(own) = ws.outlet() else { return true };
        let mut outlets = self.core.outlets();
        if outlets.is_blocked(own) {
            // What comes waits here, where one sees that the client is slow: volatile messages are dropped.
            let waiting = outlets.waiting(own);
            outlets.block(outlet);
            if let Some(backlog) = outlets.backlog(outlet) {
                backlog.count_elsewhere(waiting);
            }
            return true;
        }
        let owed = outlets.owed(outlet);
        let frames: SmallVec<[Frame; 8]> = outlets.batch.frames(owed).into_iter().cloned().collect();
        outlets.settle(outlet);
        for frame in frames {
            // What does not fit closes the connection.
            let _ = outlets.push(own, &frame.websocket(dialect));
        }
        drop(outlets);
        self.core.ring_bell();
        if !self.hooks.none(|hooks| &hooks.drain) {
            self.core.notify_drained(ws.connection());
        }
        true
    }

    /// The WebSocket of a session has taken everything and gets some of what waits for it. Whether nothing is
    /// left.
    pub(super) fn refill(&self, socket: Socket) -> bool {
        self.refill_up_to(socket, limits::BACKLOG_SEND_BYTES)
    }

    /// The session ends: its WebSocket gets all that the session is owed.
    pub(super) fn forward_all(&self, socket: Socket) {
        let outlet = self.with(socket, |entry| entry.translated().map(|_| entry.outlet)).flatten();
        if let Some(outlet) = outlet {
            self.core.outlets().block(outlet);
            self.refill_up_to(socket, usize::MAX);
        }
    }

    fn refill_up_to(&self, socket: Socket, bytes: usize) -> bool {
        let found = self.with(socket, |entry| Some((entry.translated()?, entry.outlet))).flatten();
        let Some(((ws, dialect), outlet)) = found else { return true };
        let Some(own) = ws.outlet() else { return true };
        self.core.ring_bell();
        let mut outlets = self.core.outlets();
        let mut given = 0;
        while given < bytes {
            let Some(frame) = outlets.backlog(outlet).and_then(Backlog::pop) else {
                outlets.unblock(outlet);
                return true;
            };
            given += frame.wire().len();
            let _ = outlets.push(own, &frame.websocket(dialect));
        }
        let waiting = outlets.waiting(own);
        if let Some(backlog) = outlets.backlog(outlet) {
            backlog.count_elsewhere(waiting);
        }
        drop(outlets);
        self.core.notify_drained(ws.connection());
        false
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const OLD: Dialect = Dialect { revision: Revision::V3, base64: false };
    const OLDER: Dialect = Dialect { revision: Revision::V3, base64: true };

    fn body(dialect: Dialect, frames: &[Frame]) -> Vec<u8> {
        payload(dialect, frames.iter())
    }

    #[test]
    fn one_binary_packet_makes_the_payload_binary() {
        let text = Frame::message(&[b"4a"], &[]);
        let both = Frame::message(&[b"4b"], &[Bytes::from_static(&[7])]);
        assert_eq!(body(OLD, &[text.clone(), text.clone()]), b"2:4a2:4a");
        let mixed = body(OLD, &[text.clone(), both.clone()]);
        assert_eq!(mixed, b"\x00\x02\xff4a\x00\x02\xff4b\x01\x02\xff\x04\x07");
        assert_eq!(content_type(&mixed), "application/octet-stream");
        let older = body(OLDER, &[text.clone(), both.clone()]);
        assert_eq!(older, b"2:4a2:4b6:b4Bw==");
        assert_eq!(content_type(&older), "text/plain; charset=UTF-8");
        assert_eq!(body(Dialect::default(), &[text, both]), b"4a\x1e4b\x1ebBw==");
        assert_eq!(digits(OLD, b"61"), b"1:61:1");
        assert_eq!(digits(Dialect::default(), b"61"), b"6\x1e1");
    }
}
