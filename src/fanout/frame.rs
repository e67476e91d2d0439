//! A message that is encoded once and shared by all who are owed it.

use std::iter;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{Backpressure, Key, Policy};
use crate::protocol::eio::{self, Dialect, Revision, v3};
use crate::protocol::ws::deflate::{Deflater, Settings};
use crate::protocol::ws::frame::{OpCode, compressed_header, header};

/// One message in its wire forms, immutable and shared: a clone is a reference.
///
/// The WebSocket form stands ready in one buffer, headers included. The long-polling form of a text
/// message is the same buffer without the header; that of a message with binary attachments is encoded
/// when the first poller needs it, and kept. So are the form for those who have negotiated
/// permessage-deflate, and those for clients that speak another [`Dialect`].
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
    /// The polling form in codings of HTTP, each made when the first poller needs it.
    packed: OnceLock<Box<[OnceLock<Bytes>; PACKED_FORMS]>>,
    deflated: OnceLock<Box<Deflated>>,
    foreign: OnceLock<Box<Foreign>>,
    /// Whether a polling answer is compressed for its sake.
    compress: bool,
    /// What is done when it has to wait; `None` for what is never dropped.
    waiting: Option<Box<Waiting>>,
}

/// How a frame waits for a client that is slow.
#[derive(Clone, Debug, Default)]
struct Waiting {
    bounds: Backpressure,
    key: Option<Key>,
}

/// The forms for clients of other dialects, each made when the first of them needs it.
#[derive(Debug, Default)]
struct Foreign {
    /// For WebSockets of clients that want base64 (version 4), of version 3, and of version 3 with base64.
    websocket: [OnceLock<Frame>; 3],
    /// For payloads of version 3, of text and of bytes.
    payload: [OnceLock<Bytes>; 2],
}

/// How many codings the polling form may be kept in, beside itself.
pub const PACKED_FORMS: usize = 3;

/// The compressed form, a raw frame of its own: whoever is owed it shares no memory with the plain one.
#[derive(Debug)]
struct Deflated {
    settings: Settings,
    /// `None`: no part of the message is worth it, and the plain form is sent.
    frame: Option<Frame>,
    /// The form for other settings.
    next: OnceLock<Box<Self>>,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    start: usize,
    end: usize,
    binary: bool,
}

impl Frame {
    fn new(wire: Bytes, pieces: SmallVec<[Piece; 1]>) -> Self {
        Self(Arc::new(Inner {
            wire,
            pieces,
            polling: OnceLock::new(),
            packed: OnceLock::new(),
            deflated: OnceLock::new(),
            foreign: OnceLock::new(),
            compress: true,
            waiting: None,
        }))
    }

    /// Bytes that leave as they are, for a connection that does not frame: parts of an HTTP response.
    pub fn raw(bytes: impl Into<Bytes>) -> Self {
        Self::new(bytes.into(), SmallVec::new())
    }

    /// A text message, given in parts that are concatenated, and the binary messages that follow it.
    ///
    /// The parts must be UTF-8 together, since they become one WebSocket text frame.
    pub fn message(text: &[&[u8]], attachments: &[Bytes]) -> Self {
        let text_len = text.iter().map(|part| part.len()).sum::<usize>();
        let mut builder = Builder::new(iter::once(text_len).chain(attachments.iter().map(Bytes::len)));
        builder.piece(OpCode::Text, text_len, text);
        for attachment in attachments {
            builder.piece(OpCode::Binary, attachment.len(), &[attachment]);
        }
        builder.finish()
    }

    /// One binary message.
    pub fn binary(data: &[u8]) -> Self {
        let mut builder = Builder::new([data.len()]);
        builder.piece(OpCode::Binary, data.len(), &[data]);
        builder.finish()
    }

    /// Messages in order, each with whether it is binary: the contrary of [`messages`](Self::messages). Those
    /// that are not must be UTF-8.
    ///
    /// ```
    /// use sockring::fanout::Frame;
    /// let frame = Frame::of_messages([(true, &[7][..]), (false, b"4a")]);
    /// assert_eq!(frame.wire(), b"\x82\x01\x07\x81\x024a");
    /// assert_eq!(frame.polling(), b"bBw==\x1e4a");
    /// ```
    pub fn of_messages<'a>(messages: impl IntoIterator<Item = (bool, &'a [u8])>) -> Self {
        let mut builder = Builder::new([]);
        for (binary, message) in messages {
            let opcode = if binary { OpCode::Binary } else { OpCode::Text };
            builder.piece(opcode, message.len(), &[message]);
        }
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

    /// The same bytes as [`polling`](Self::polling), not copied but shared.
    ///
    /// ```
    /// use sockring::fanout::Frame;
    /// let frame = Frame::message(&[b"4", b"hello"], &[]);
    /// assert_eq!(frame.polling_bytes().as_ptr(), frame.polling().as_ptr());
    /// ```
    pub fn polling_bytes(&self) -> Bytes {
        match self.0.pieces.as_slice() {
            [] => self.0.wire.clone(),
            [Piece { start, end, binary: false }] => self.0.wire.slice(*start..*end),
            _ => {
                // It is there now.
                self.polling();
                self.0.polling.get().cloned().unwrap_or_default()
            }
        }
    }

    /// The same message as one that is not worth compressing over HTTP: the reference's `compress: false`.
    /// Answers to polls with nothing else in them leave as they are. WebSockets do not look at it, as there.
    ///
    /// ```
    /// use sockring::fanout::Frame;
    /// let frame = Frame::binary(b"\x89PNG").uncompressed();
    /// assert!(!frame.is_compressible());
    /// ```
    #[must_use]
    pub fn uncompressed(self) -> Self {
        self.changed(|inner| inner.compress = false)
    }

    /// The same message with bounds of its own for the clients that it has to wait for.
    ///
    /// ```
    /// use sockring::fanout::{Backpressure, Frame, Policy};
    /// let bounds = Backpressure { max_messages: 100, policy: Policy::DropNewest, ..Backpressure::default()
    /// }; assert_eq!(Frame::raw("tick").bounded(bounds).backpressure(), Some(bounds));
    /// ```
    #[must_use]
    pub fn bounded(self, bounds: Backpressure) -> Self {
        self.changed(|inner| inner.waiting.get_or_insert_default().bounds = bounds)
    }

    /// The same message as the latest of a key: where one of the same key waits for a slow client, it takes
    /// its place, at the end. See [`Policy::KeepLatest`].
    ///
    /// ```
    /// use sockring::fanout::{Frame, Key, Outlets, Via};
    /// let mut outlets = Outlets::new(1 << 20, 0);
    /// let id = outlets.open(Via::Layer);
    /// outlets.block(id);
    /// for text in ["x=1 ", "y=1 ", "x=2 "] {
    ///     let _ = outlets.push(id, &Frame::raw(text).latest(Key::of(&&text[..1])));
    /// }
    /// let mut out = Vec::new();
    /// outlets.backlog(id).unwrap().copy_to(&mut out, 100);
    /// assert_eq!(out, b"y=1 x=2 ");
    /// ```
    #[must_use]
    pub fn latest(self, key: Key) -> Self {
        self.changed(|inner| {
            let waiting = inner.waiting.get_or_insert_default();
            waiting.key = Some(key);
            waiting.bounds.policy = Policy::KeepLatest;
        })
    }

    /// The same message as another one waits and is compressed: it stands in for that.
    pub(crate) fn waiting_as(self, other: &Self) -> Self {
        let (waiting, compress) = (other.0.waiting.clone(), other.0.compress);
        self.changed(|inner| (inner.waiting, inner.compress) = (waiting, compress))
    }

    /// A frame that nobody shares is changed where it is, another one is made anew: forms that exist already
    /// are made again when they are needed.
    fn changed(self, change: impl FnOnce(&mut Inner)) -> Self {
        let Self(mut inner) = self;
        if Arc::get_mut(&mut inner).is_none() {
            let Self(mut new) = Self::new(inner.wire.clone(), inner.pieces.clone());
            if let Some(new) = Arc::get_mut(&mut new) {
                new.compress = inner.compress;
                new.waiting.clone_from(&inner.waiting);
            }
            inner = new;
        }
        if let Some(inner) = Arc::get_mut(&mut inner) {
            change(inner);
        }
        Self(inner)
    }

    /// Its own bounds, if it has some.
    pub fn backpressure(&self) -> Option<Backpressure> {
        self.0.waiting.as_ref().map(|waiting| waiting.bounds)
    }

    /// Of which key it is the latest message.
    pub(crate) fn key(&self) -> Option<Key> {
        self.0.waiting.as_ref()?.key
    }

    /// Whether it may be dropped for a later one.
    pub(super) fn is_droppable(&self) -> bool {
        let policy = self.backpressure().map(|bounds| bounds.policy);
        matches!(policy, Some(Policy::DropOldest | Policy::KeepLatest))
    }

    /// Whether a polling answer with this message in it may be compressed.
    pub fn is_compressible(&self) -> bool {
        self.0.compress
    }

    /// The packets in it: one, and one for each attachment.
    pub fn packets(&self) -> usize {
        self.0.pieces.len().max(1)
    }

    /// The [polling form](Self::polling) in a coding, of which there are [`PACKED_FORMS`]: made for the first
    /// poller that needs it, on whichever core, and kept.
    pub fn packed(&self, form: usize, make: impl FnOnce(&[u8]) -> Bytes) -> Option<&Bytes> {
        let forms = self.0.packed.get_or_init(Box::default);
        Some(forms.get(form)?.get_or_init(|| make(self.polling())))
    }

    /// The form for those who have negotiated permessage-deflate without context: made when the first of
    /// them is owed the message, on whichever core, and kept. Parts below the threshold, and those that would
    /// not become shorter, are as they are; so are raw frames.
    ///
    /// ```
    /// use sockring::fanout::Frame;
    /// use sockring::protocol::ws::deflate::{Deflater, Settings};
    /// use sockring::protocol::ws::extensions::PerMessageDeflate;
    ///
    /// let settings = Settings::new(&PerMessageDeflate::default(), 15);
    /// let mut deflater = Deflater::new(&settings);
    /// let (short, long) = (Frame::binary(&[7; 100]), Frame::binary(&[7; 2000]));
    /// assert!(short.deflated(&settings, &mut deflater).same(&short));
    /// let packed = long.deflated(&settings, &mut deflater);
    /// assert!(packed.wire().len() < 40 && packed.wire()[0] == 0xc2);
    /// assert!(long.deflated(&settings, &mut deflater).same(packed));
    /// ```
    pub fn deflated(&self, settings: &Settings, deflater: &mut Deflater) -> &Self {
        if self.0.pieces.is_empty() || self.0.wire.len() < settings.threshold {
            return self;
        }
        let mut form = &self.0.deflated;
        loop {
            let made = form.get_or_init(|| {
                let frame = self.compress(|message, out| {
                    message.len() >= settings.threshold && deflater.alone(message, out)
                });
                // Nothing builds on it: it may be dropped as the plain form may.
                let frame = frame.map(|frame| frame.changed(|new| new.waiting.clone_from(&self.0.waiting)));
                Box::new(Deflated { settings: *settings, frame, next: OnceLock::new() })
            });
            if made.settings == *settings {
                return made.frame.as_ref().unwrap_or(self);
            }
            form = &made.next;
        }
    }

    /// The form for one client whose messages build on each other. It must be sent, and nothing that was
    /// made later before it: it is never dropped.
    pub fn deflated_next(&self, deflater: &mut Deflater) -> Self {
        let frame = self.compress(|message, out| {
            deflater.next(message, out);
            true
        });
        frame.unwrap_or_else(|| self.clone())
    }

    /// A raw frame with those parts compressed that `compress` has taken. `None`: it has taken none.
    fn compress(&self, mut compress: impl FnMut(&[u8], &mut Vec<u8>) -> bool) -> Option<Self> {
        let (mut wire, mut payload, mut any) = (Vec::new(), Vec::new(), false);
        for piece in &self.0.pieces {
            let opcode = if piece.binary { OpCode::Binary } else { OpCode::Text };
            let message = self.0.wire.get(piece.start..piece.end).unwrap_or_default();
            payload.clear();
            if compress(message, &mut payload) {
                any = true;
                wire.extend_from_slice(&compressed_header(opcode, payload.len()));
                wire.extend_from_slice(&payload);
            } else {
                wire.extend_from_slice(&header(opcode, true, message.len()));
                wire.extend_from_slice(message);
            }
        }
        any.then(|| Self::raw(wire))
    }

    /// Its messages in order, each with whether it is binary. A raw frame has none.
    ///
    /// ```
    /// use sockring::fanout::Frame;
    /// assert_eq!(Frame::binary(&[1, 2]).messages().collect::<Vec<_>>(), [(true, &[1, 2][..])]);
    /// ```
    pub fn messages(&self) -> impl Iterator<Item = (bool, &[u8])> {
        self.0.pieces.iter().map(|piece| (piece.binary, &self.0.wire[piece.start..piece.end]))
    }

    /// Whether it is bytes that leave as they are, without messages.
    pub(super) fn is_raw(&self) -> bool {
        self.0.pieces.is_empty()
    }

    /// Whether a binary message is part of it.
    pub fn has_binary(&self) -> bool {
        self.0.pieces.iter().any(|piece| piece.binary)
    }

    /// The frame whose [`wire`](Self::wire) a WebSocket of this dialect is sent. Text is the same in all of
    /// them.
    ///
    /// ```
    /// use sockring::fanout::Frame;
    /// use sockring::protocol::eio::{Dialect, Revision};
    /// let v3 = Dialect { revision: Revision::V3, base64: false };
    /// assert_eq!(Frame::binary(&[1, 2]).websocket(v3).wire(), b"\x82\x03\x04\x01\x02");
    /// ```
    #[must_use]
    pub fn websocket(&self, dialect: Dialect) -> Self {
        let form = match dialect {
            Dialect { revision: Revision::V4, base64: false } => return self.clone(),
            Dialect { revision: Revision::V4, base64: true } => 0,
            Dialect { revision: Revision::V3, base64: false } => 1,
            Dialect { revision: Revision::V3, base64: true } => 2,
        };
        if !self.has_binary() {
            return self.clone();
        }
        self.foreign().websocket[form].get_or_init(|| self.translate(dialect)).clone()
    }

    fn translate(&self, dialect: Dialect) -> Self {
        let mut builder = Builder::new([self.0.wire.len() * 4 / 3 + 8]);
        for piece in &self.0.pieces {
            let payload = &self.0.wire[piece.start..piece.end];
            let mut base64 = Vec::new();
            match dialect {
                _ if !piece.binary => builder.piece(OpCode::Text, payload.len(), &[payload]),
                Dialect { base64: false, .. } => {
                    let parts = [&[v3::binary_type()], payload];
                    builder.piece(OpCode::Binary, 1 + payload.len(), &parts);
                }
                Dialect { revision, .. } => {
                    match revision {
                        Revision::V3 => v3::write_base64(&mut base64, payload),
                        Revision::V4 => eio::write_base64(&mut base64, payload),
                    }
                    builder.piece(OpCode::Text, base64.len(), &[&base64]);
                }
            }
        }
        builder.finish()
    }

    /// What a payload of Engine.IO v3 carries for this message: its packets, each with its length.
    ///
    /// ```
    /// use sockring::fanout::Frame;
    /// use sockring::protocol::eio::v3::Mode;
    /// assert_eq!(Frame::message(&[b"4", b"a"], &[]).polling_v3(Mode::Text), b"2:4a");
    /// ```
    pub fn polling_v3(&self, mode: v3::Mode) -> &[u8] {
        let form = match mode {
            v3::Mode::Text => 0,
            v3::Mode::Binary => 1,
        };
        self.foreign().payload[form].get_or_init(|| {
            let mut out = Vec::with_capacity(self.0.wire.len() + 8);
            for piece in &self.0.pieces {
                let payload = &self.0.wire[piece.start..piece.end];
                // Text frames are UTF-8, as `message` demands.
                match (piece.binary, str::from_utf8(payload)) {
                    (false, Ok(text)) => v3::write_text(&mut out, mode, text),
                    _ => v3::write_binary(&mut out, mode, payload),
                }
            }
            out.into()
        })
    }

    fn foreign(&self) -> &Foreign {
        self.0.foreign.get_or_init(Box::default)
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
    /// With room for messages of these lengths: exactly, because `Bytes` takes a full buffer as it is and
    /// allocates a record for one that has room left.
    fn new(messages: impl IntoIterator<Item = usize>) -> Self {
        let bytes = messages.into_iter().map(|len| header(OpCode::Text, true, len).len() + len).sum();
        Self { wire: Vec::with_capacity(bytes), pieces: SmallVec::new() }
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
        Frame::new(self.wire.into(), self.pieces)
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
    fn packed_forms_are_made_once() {
        let frame = Frame::message(&[b"4", b"hello"], &[]);
        let pack = |text: &[u8]| Bytes::from([text, b"!"].concat());
        assert_eq!(frame.packed(0, pack).unwrap(), "4hello!");
        assert_eq!(frame.clone().packed(0, |_| Bytes::new()).unwrap(), "4hello!");
        assert_eq!(frame.packed(PACKED_FORMS, pack), None);
        let plain = frame.clone().uncompressed();
        assert!(frame.is_compressible() && !plain.is_compressible() && !frame.same(&plain));
        assert_eq!((plain.wire(), plain.packets()), (frame.wire(), 1));
    }

    #[test]
    fn other_dialects_differ_in_binary_only() {
        let text = Frame::message(&[b"4", "é".as_bytes()], &[]);
        let both = Frame::message(&[b"4", b"51-[{}]"], &[Bytes::from_static(b"\x01\x02")]);
        let (v3, v4) = (Revision::V3, Revision::V4);
        for (revision, base64, wire) in [
            (v4, false, &b"\x81\x08451-[{}]\x82\x02\x01\x02"[..]),
            (v4, true, b"\x81\x08451-[{}]\x81\x05bAQI="),
            (v3, false, b"\x81\x08451-[{}]\x82\x03\x04\x01\x02"),
            (v3, true, b"\x81\x08451-[{}]\x81\x06b4AQI="),
        ] {
            let dialect = Dialect { revision, base64 };
            assert!(text.websocket(dialect).same(&text));
            let form = both.websocket(dialect);
            assert_eq!(form.wire(), wire);
            assert!(both.websocket(dialect).same(&form), "it is made once");
        }
        assert_eq!(text.polling_v3(v3::Mode::Text), "2:4é".as_bytes());
        assert_eq!(text.polling_v3(v3::Mode::Binary), [0, 3, 0xff, b'4', 0xc3, 0xa9]);
        assert_eq!(both.polling_v3(v3::Mode::Text), b"8:451-[{}]6:b4AQI=");
        assert_eq!(both.polling_v3(v3::Mode::Binary), b"\x00\x08\xff451-[{}]\x01\x03\xff\x04\x01\x02");
    }

    #[test]
    fn long_parts_are_compressed_each_by_itself_and_once() {
        let settings = |window_bits| Settings { threshold: 100, level: 6, mem_level: 8, window_bits };
        let mut deflaters = [15, 9].map(|bits| (settings(bits), Deflater::new(&settings(bits))));
        let (short, long) = (Bytes::from_static(b"\x01\x02"), Bytes::from(vec![7; 500]));
        let frame = Frame::message(&[b"4", b"52-[{},{}]"], &[short, long]);
        let forms =
            deflaters.each_mut().map(|(settings, deflater)| frame.deflated(settings, deflater).clone());
        for ((settings, deflater), form) in deflaters.iter_mut().zip(&forms) {
            assert!(form.wire().starts_with(b"\x81\x0b452-[{},{}]\x82\x02\x01\x02\xc2"));
            assert!(form.wire().len() < 40);
            assert!(frame.deflated(settings, deflater).same(form), "made once");
            assert!(form.deflated(settings, deflater).same(form), "as it is");
        }
        assert!(!forms[0].same(&forms[1]));
        // Nothing to gain: the plain form, and no circle of references.
        let (settings, deflater) = &mut deflaters[0];
        let noise: Vec<u8> = (0..200u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let frame = Frame::binary(&noise);
        assert!(frame.deflated(settings, deflater).same(&frame));
        assert_eq!(Arc::strong_count(&frame.0), 1);
    }

    #[test]
    fn raw_bytes_are_not_framed() {
        let frame = Frame::raw("HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(frame.wire(), frame.polling());
        assert!(frame.same(&frame.clone()));
    }
}
