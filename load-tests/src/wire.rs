//! The little of RFC 6455 and of Socket.IO framing that the floor and the load client need.
//!
//! The client must hold some 20,000 connections cheaply, so it never buffers a message: [`FrameReader`] walks over
//! the bytes as they come, keeps the first [`PREFIX_BYTES`] of each payload and skips the rest.

use std::fmt;

/// Bytes of each payload that [`FrameReader`] keeps: enough for `42["message","`, the sequence number and the
/// time stamp.
pub(crate) const PREFIX_BYTES: usize = 48;

/// Opcode of a text frame.
pub(crate) const OP_TEXT: u8 = 0x1;
/// Opcode of a close frame.
pub(crate) const OP_CLOSE: u8 = 0x8;
/// Opcode of a WebSocket ping (not of an Engine.IO ping, which is a text message).
pub(crate) const OP_PING: u8 = 0x9;
/// Opcode of a WebSocket pong.
pub(crate) const OP_PONG: u8 = 0xa;

/// Longest header: two bytes, an eight byte length and a mask.
const HEADER_BYTES_MAX: usize = 14;
/// No frame of a load run is as long; a longer one means that the reader lost its place.
const PAYLOAD_BYTES_MAX: u64 = 64 << 20;

/// The peer broke the framing rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WireError {
    /// RSV bits without a negotiated extension.
    Reserved,
    /// A server frame was masked, or a client frame was not.
    Mask,
    /// A length beyond anything a load run sends.
    TooLong,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reserved => "reserved bits set without an extension",
            Self::Mask => "wrong masking for this direction",
            Self::TooLong => "frame longer than any load run sends",
        })
    }
}

impl std::error::Error for WireError {}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Opcode, without the FIN bit.
    pub(crate) opcode: u8,
    /// Bytes of the header itself, mask included.
    pub(crate) header_bytes: usize,
    /// Bytes of the payload.
    pub(crate) payload_bytes: u64,
    /// The mask of a client's frame.
    pub(crate) mask: Option<[u8; 4]>,
}

/// Reads a header; `None` means that more bytes are needed.
pub(crate) fn parse_header(bytes: &[u8]) -> Result<Option<Header>, WireError> {
    let [first, second, ..] = *bytes else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(WireError::Reserved);
    }
    let (length_end, payload_bytes) = match second & 0x7f {
        126 => match bytes.get(2..4) {
            Some(raw) => (4, u64::from(u16::from_be_bytes([raw[0], raw[1]]))),
            None => return Ok(None),
        },
        127 => match bytes.get(2..10).and_then(|raw| <[u8; 8]>::try_from(raw).ok()) {
            Some(raw) => (10, u64::from_be_bytes(raw)),
            None => return Ok(None),
        },
        short => (2, u64::from(short)),
    };
    if payload_bytes > PAYLOAD_BYTES_MAX {
        return Err(WireError::TooLong);
    }
    let masked = second & 0x80 != 0;
    let header_bytes = length_end + if masked { 4 } else { 0 };
    let mask = if masked {
        match bytes.get(length_end..header_bytes).and_then(|raw| <[u8; 4]>::try_from(raw).ok()) {
            Some(mask) => Some(mask),
            None => return Ok(None),
        }
    } else {
        None
    };
    Ok(Some(Header { opcode: first & 0x0f, header_bytes, payload_bytes, mask }))
}

/// Appends the two to ten bytes before a payload, with `mask_bit` 0x80 or 0.
fn push_length(opcode: u8, mask_bit: u8, payload_bytes: usize, out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match payload_bytes {
        0..=125 => out.push(mask_bit | payload_bytes as u8),
        126..=0xffff => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&(payload_bytes as u16).to_be_bytes());
        }
        _ => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
}

/// Appends an unmasked frame whose payload is `parts` one after the other.
pub(crate) fn server_frame(opcode: u8, parts: &[&[u8]], out: &mut Vec<u8>) {
    push_length(opcode, 0, parts.iter().map(|part| part.len()).sum(), out);
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Appends a masked frame.
pub(crate) fn client_frame(opcode: u8, payload: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    push_length(opcode, 0x80, payload.len(), out);
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[start..], mask);
}

/// Masks or unmasks in place.
pub(crate) fn apply_mask(payload: &mut [u8], mask: [u8; 4]) {
    for (index, byte) in payload.iter_mut().enumerate() {
        *byte ^= mask[index & 3];
    }
}

/// Walks over a server's frames as their bytes arrive, however they are cut.
pub(crate) struct FrameReader {
    left: u64,
    header: [u8; HEADER_BYTES_MAX],
    header_have: u8,
    prefix: [u8; PREFIX_BYTES],
    prefix_have: u8,
    opcode: u8,
    in_payload: bool,
}

impl FrameReader {
    /// A reader at the start of a frame.
    pub(crate) fn new() -> Self {
        Self {
            left: 0,
            header: [0; HEADER_BYTES_MAX],
            header_have: 0,
            prefix: [0; PREFIX_BYTES],
            prefix_have: 0,
            opcode: 0,
            in_payload: false,
        }
    }

    /// Takes all of `bytes`; calls `on_frame` with opcode and the payload's first bytes for each frame that is
    /// complete (its last byte was among the bytes taken).
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut on_frame: impl FnMut(u8, &[u8]),
    ) -> Result<(), WireError> {
        while !bytes.is_empty() {
            if self.in_payload {
                bytes = self.feed_payload(bytes, &mut on_frame);
            } else if self.header_have == 0 {
                // The usual case: a whole frame lies in the buffer and nothing need be copied.
                match checked_header(bytes)? {
                    Some(header) => {
                        let rest = &bytes[header.header_bytes..];
                        if header.payload_bytes <= rest.len() as u64 {
                            let (payload, next) = rest.split_at(header.payload_bytes as usize);
                            on_frame(header.opcode, &payload[..payload.len().min(PREFIX_BYTES)]);
                            bytes = next;
                        } else {
                            self.start_payload(header);
                            bytes = rest;
                        }
                    }
                    None => {
                        self.header[..bytes.len()].copy_from_slice(bytes);
                        self.header_have = bytes.len() as u8;
                        return Ok(());
                    }
                }
            } else {
                let have = usize::from(self.header_have);
                self.header[have] = bytes[0];
                self.header_have += 1;
                bytes = &bytes[1..];
                if let Some(header) = checked_header(&self.header[..=have])? {
                    self.header_have = 0;
                    self.start_payload(header);
                    if self.left == 0 {
                        self.in_payload = false;
                        on_frame(self.opcode, &[]);
                    }
                }
            }
        }
        Ok(())
    }

    fn start_payload(&mut self, header: Header) {
        self.opcode = header.opcode;
        self.left = header.payload_bytes;
        self.prefix_have = 0;
        self.in_payload = true;
    }

    fn feed_payload<'a>(&mut self, bytes: &'a [u8], on_frame: &mut impl FnMut(u8, &[u8])) -> &'a [u8] {
        let taken = self.left.min(bytes.len() as u64) as usize;
        let have = usize::from(self.prefix_have);
        let kept = taken.min(PREFIX_BYTES - have);
        self.prefix[have..have + kept].copy_from_slice(&bytes[..kept]);
        self.prefix_have += kept as u8;
        self.left -= taken as u64;
        if self.left == 0 {
            self.in_payload = false;
            on_frame(self.opcode, &self.prefix[..usize::from(self.prefix_have)]);
        }
        &bytes[taken..]
    }
}

/// A header of the server's direction: never masked.
fn checked_header(bytes: &[u8]) -> Result<Option<Header>, WireError> {
    // A masked header is recognised by its second byte, before its length is complete.
    if bytes.get(1).is_some_and(|second| second & 0x80 != 0) {
        return Err(WireError::Mask);
    }
    parse_header(bytes)
}

/// What a broadcast's payload says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Number of the broadcast, from 0.
    pub(crate) sequence: u32,
    /// Microseconds on the client's clock at which it was (to be) sent.
    pub(crate) sent_us: u64,
}

/// Bytes that a stamp takes at the start of a payload.
pub(crate) const STAMP_BYTES: usize = 22;
/// What precedes the payload in a delivery.
const MESSAGE_HEAD: &[u8] = b"42[\"message\",\"";
/// What follows it.
const MESSAGE_TAIL: &[u8] = b"\"]";

impl Stamp {
    /// Appends the payload: two numbers of ten digits, then filler up to `payload_bytes`.
    pub(crate) fn push_payload(self, payload_bytes: usize, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(format!("{:010} {:010} ", self.sequence, self.sent_us).as_bytes());
        out.resize(start + payload_bytes.max(STAMP_BYTES), b'x');
    }

    /// Bytes on the wire of a delivery with such a payload, frame and packet included.
    pub(crate) fn delivery_bytes(payload_bytes: usize) -> usize {
        let mut header = Vec::new();
        let text_bytes = MESSAGE_HEAD.len() + payload_bytes.max(STAMP_BYTES) + MESSAGE_TAIL.len();
        push_length(OP_TEXT, 0, text_bytes, &mut header);
        header.len() + text_bytes
    }

    /// Reads it back from the first bytes of a delivery; `None` for anything that is not one.
    pub(crate) fn parse_message(prefix: &[u8]) -> Option<Self> {
        Self::parse(prefix.strip_prefix(MESSAGE_HEAD)?)
    }

    /// Reads it from the start of a payload.
    pub(crate) fn parse(stamp: &[u8]) -> Option<Self> {
        Some(Self {
            sequence: u32::try_from(digits(stamp.get(..10)?)?).ok()?,
            sent_us: digits(stamp.get(11..21)?)?,
        })
    }
}

fn digits(bytes: &[u8]) -> Option<u64> {
    bytes
        .iter()
        .try_fold(0u64, |value, byte| byte.is_ascii_digit().then(|| value * 10 + u64::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(sequence: u32, payload_bytes: usize) -> Vec<u8> {
        let mut payload = Vec::new();
        Stamp { sequence, sent_us: 77 }.push_payload(payload_bytes, &mut payload);
        let mut out = Vec::new();
        server_frame(OP_TEXT, &[MESSAGE_HEAD, &payload, MESSAGE_TAIL], &mut out);
        assert_eq!(out.len(), Stamp::delivery_bytes(payload_bytes));
        out
    }

    #[test]
    fn frames_survive_every_cut() {
        let mut stream = message(1, 30);
        server_frame(OP_TEXT, &[b"2"], &mut stream);
        stream.extend(message(2, 200));
        server_frame(OP_PING, &[], &mut stream);
        stream.extend(message(3, 70_000));
        stream.extend(message(4, 128));
        for step in [1, 2, 3, 7, 64, 1000, stream.len()] {
            let mut reader = FrameReader::new();
            let mut seen = Vec::new();
            for piece in stream.chunks(step) {
                reader
                    .feed(piece, |opcode, prefix| {
                        seen.push((opcode, Stamp::parse_message(prefix).map(|stamp| stamp.sequence)));
                    })
                    .unwrap();
            }
            let expected = [(1, Some(1)), (1, None), (1, Some(2)), (9, None), (1, Some(3)), (1, Some(4))];
            assert_eq!(seen, expected, "cut into {step}");
        }
    }

    #[test]
    fn client_frames_come_back_unmasked() {
        for length in [0, 5, 125, 126, 65_535, 65_536] {
            let payload = vec![b'a'; length];
            let mut frame = Vec::new();
            client_frame(OP_TEXT, &payload, [1, 2, 3, 4], &mut frame);
            let header = parse_header(&frame).unwrap().unwrap();
            assert_eq!(header.payload_bytes as usize, length);
            let mut body = frame.split_off(header.header_bytes);
            apply_mask(&mut body, header.mask.unwrap());
            assert_eq!(body, payload);
        }
    }

    #[test]
    fn a_server_must_not_mask() {
        let mut frame = Vec::new();
        client_frame(OP_TEXT, b"no", [1, 2, 3, 4], &mut frame);
        assert_eq!(FrameReader::new().feed(&frame, |_, _| {}), Err(WireError::Mask));
    }
}
