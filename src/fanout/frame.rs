//! A message that is encoded once and shared by all who are owed it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use smallvec::SmallVec;

use crate::protocol::eio;
use crate::protocol::ws::frame::{OpCode, header};

/// One message in its wire forms, immutable and shared: a clone is a reference.
///
/// The WebSocket form stands ready in one buffer, headers included. The long-polling form of a text
/// message is the same buffer without the header; that of a message with binary attachments is encoded
/// when the first poller needs it, and kept.
///
/// ```
/// use sockring::fanout::Frame;
/// let frame = Frame::message(&[b"4", b"2[\"news\",1]"], &[]);
/// assert_eq!(frame.wire(), b"\x81\x0c42[\"news\",1]");
/// assert_eq!(frame.polling(), b"42[\"news\",1]");
/// ```
#[derive(Clone, Debug)]
pub struct Frame(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    wire: Bytes,
    pieces: SmallVec<[Piece; 1]>,
    polling: OnceLock<Bytes>,
}

#[derive(Debug)]
struct Piece {
    start: usize,
    end: usize,
    binary: bool,
}

impl Frame {
    /// Bytes that leave as they are, for a connection that does not frame: parts of an HTTP response.
    pub fn raw(bytes: impl Into<Bytes>) -> Self {
        Self(Arc::new(Inner { wire: bytes.into(), pieces: SmallVec::new(), polling: OnceLock::new() }))
    }

    /// A text message, given in parts that are concatenated, and the binary messages that follow it.
    ///
    /// The parts must be UTF-8 together, since they become one WebSocket text frame.
    pub fn message(text: &[&[u8]], attachments: &[Bytes]) -> Self {
        let text_len = text.iter().map(|part| part.len()).sum::<usize>();
        let total = text_len + attachments.iter().map(Bytes::len).sum::<usize>();
        let mut builder = Builder::new(total, 1 + attachments.len());
        builder.piece(OpCode::Text, text_len, text);
        for attachment in attachments {
            builder.piece(OpCode::Binary, attachment.len(), &[attachment]);
        }
        builder.finish()
    }

    /// One binary message.
    pub fn binary(data: &[u8]) -> Self {
        let mut builder = Builder::new(data.len(), 1);
        builder.piece(OpCode::Binary, data.len(), &[data]);
        builder.finish()
    }

    /// What a WebSocket (or, for a raw frame, the connection) is sent.
    pub fn wire(&self) -> &[u8] {
        &self.0.wire
    }

    /// What a long-polling response carries for this message: its packets, separated as the protocol says.
    pub fn polling(&self) -> &[u8] {
        match self.0.pieces.as_slice() {
            [] => &self.0.wire,
            [Piece { start, end, binary: false }] => &self.0.wire[*start..*end],
            pieces => self.0.polling.get_or_init(|| {
                let mut out = Vec::with_capacity(self.0.wire.len() * 4 / 3 + 8);
                for (i, piece) in pieces.iter().enumerate() {
                    if i > 0 {
                        out.push(eio::SEPARATOR);
                    }
                    let payload = &self.0.wire[piece.start..piece.end];
                    if piece.binary {
                        eio::write_base64(&mut out, payload);
                    } else {
                        out.extend_from_slice(payload);
                    }
                }
                Bytes::from(out)
            }),
        }
    }

    /// Whether both are the same encoding of the same message, by identity.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The frame's identity while it lives.
    pub(super) fn address(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }
}

struct Builder {
    wire: Vec<u8>,
    pieces: SmallVec<[Piece; 1]>,
}

impl Builder {
    fn new(payload_bytes: usize, frames: usize) -> Self {
        const HEADER_MAX: usize = 10;
        Self { wire: Vec::with_capacity(payload_bytes + frames * HEADER_MAX), pieces: SmallVec::new() }
    }

    fn piece(&mut self, opcode: OpCode, len: usize, parts: &[&[u8]]) {
        self.wire.extend_from_slice(&header(opcode, true, len));
        let start = self.wire.len();
        for part in parts {
            self.wire.extend_from_slice(part);
        }
        let binary = matches!(opcode, OpCode::Binary);
        self.pieces.push(Piece { start, end: self.wire.len(), binary });
    }

    fn finish(self) -> Frame {
        Frame(Arc::new(Inner { wire: self.wire.into(), pieces: self.pieces, polling: OnceLock::new() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_follow_the_text_in_both_forms() {
        let frame = Frame::message(&[b"4", b"51-[{}]"], &[Bytes::from_static(b"\x01\x02")]);
        assert_eq!(frame.wire(), b"\x81\x08451-[{}]\x82\x02\x01\x02");
        assert_eq!(frame.polling(), b"451-[{}]\x1ebAQI=");
    }

    #[test]
    fn raw_bytes_are_not_framed() {
        let frame = Frame::raw("HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(frame.wire(), frame.polling());
        assert!(frame.same(&frame.clone()));
    }
}
