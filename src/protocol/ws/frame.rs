//! Frames (RFC 6455 5.2): headers out and in, whole small frames out.

use std::ops::Deref;

use super::{WsError, mask};

/// The longest payload of a control frame, in bytes (RFC 6455 5.5).
pub const CONTROL_BYTES: usize = 125;

/// The bit of a header's first byte that marks a compressed message (RFC 7692 6).
const RSV1: u8 = 0x40;

/// The longest header a client's frame can have, in bytes: two, eight of length, four of mask.
pub const MAX_HEADER_BYTES: usize = 14;

/// What a frame is (RFC 6455 5.2 and 11.8).
///
/// ```
/// use sockring::protocol::ws::frame::OpCode;
///
/// assert!(OpCode::Ping.is_control());
/// assert_eq!(OpCode::Text as u8, 1);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum OpCode {
    /// A further fragment of a message.
    Continuation = 0,
    /// A text message or its first fragment.
    Text = 1,
    /// A binary message or its first fragment.
    Binary = 2,
    /// The closing handshake.
    Close = 8,
    /// A ping, to be answered with a pong of the same payload.
    Ping = 9,
    /// The answer to a ping, or unsolicited.
    Pong = 10,
}

impl OpCode {
    /// Whether this is a close, ping or pong (RFC 6455 5.5).
    #[must_use]
    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }

    fn from_bits(bits: u8) -> Result<Self, WsError> {
        Ok(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            other => return Err(WsError::ReservedOpcode(other)),
        })
    }
}

/// A server's frame header on the stack: 2, 4 or 10 bytes.
///
/// ```
/// use sockring::protocol::ws::frame::{OpCode, header};
///
/// assert_eq!(&*header(OpCode::Text, true, 5), &[0x81, 5]);
/// assert_eq!(&*header(OpCode::Binary, true, 256), &[0x82, 126, 1, 0]);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct HeaderBytes {
    bytes: [u8; 10],
    len: u8,
}

impl Deref for HeaderBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// The header of an unmasked frame with a payload of `len` bytes (RFC 6455 5.2).
#[must_use]
pub fn header(op: OpCode, fin: bool, len: usize) -> HeaderBytes {
    let first = (op as u8) | if fin { 0x80 } else { 0 };
    let mut bytes = [0; 10];
    bytes[0] = first;
    let len = match len {
        0..=125 => {
            bytes[1] = len as u8;
            2
        }
        126..=0xffff => {
            bytes[1] = 126;
            bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            4
        }
        _ => {
            bytes[1] = 127;
            bytes[2..10].copy_from_slice(&(len as u64).to_be_bytes());
            10
        }
    };
    HeaderBytes { bytes, len }
}

/// The header of an unmasked frame whose payload is a whole compressed message: [`header`] with RSV1 set
/// (RFC 7692 6).
#[must_use]
pub fn compressed_header(op: OpCode, len: usize) -> HeaderBytes {
    let mut header = header(op, true, len);
    header.bytes[0] |= RSV1;
    header
}

/// Appends one whole unmasked frame with FIN set.
pub fn write_frame(out: &mut Vec<u8>, op: OpCode, payload: &[u8]) {
    let header = header(op, true, payload.len());
    out.reserve(header.len() + payload.len());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
}

/// Appends one frame as a client sends it. The server never does; tests and load generators do.
pub fn write_masked_frame(out: &mut Vec<u8>, op: OpCode, fin: bool, key: [u8; 4], payload: &[u8]) {
    let mut header = header(op, fin, payload.len());
    header.bytes[1] |= 0x80;
    out.extend_from_slice(&header);
    out.extend_from_slice(&key);
    let start = out.len();
    out.extend_from_slice(payload);
    mask::apply(out.split_at_mut(start).1, key, 0);
}

/// The payload of a close frame: `code` and as much of `reason` as fits into 123 bytes, cut between
/// characters (RFC 6455 5.5.1).
#[must_use]
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    let reason = reason.get(..reason.floor_char_boundary(CONTROL_BYTES - 2)).unwrap_or_default();
    let mut payload = Vec::with_capacity(2 + reason.len());
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(reason.as_bytes());
    payload
}

/// The header of a client's frame.
///
/// ```
/// use sockring::protocol::ws::frame::{FrameHeader, OpCode};
///
/// let (header, used) = FrameHeader::parse(&[0x81, 0x85, 1, 2, 3, 4, 9])?.expect("a whole header");
/// assert_eq!((header.op, header.fin, header.len, header.key), (OpCode::Text, true, 5, [1, 2, 3, 4]));
/// assert_eq!((header.compressed, used), (false, 6));
/// # Ok::<(), sockring::protocol::ws::WsError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is.
    pub op: OpCode,
    /// Whether this is the last frame of its message.
    pub fin: bool,
    /// RSV1: the message that begins here is compressed (RFC 7692 6).
    pub compressed: bool,
    /// Bytes of payload, below 2^63.
    pub len: u64,
    /// The mask.
    pub key: [u8; 4],
}

impl FrameHeader {
    /// Parses the header at the start of `buf`; with it comes its length in bytes. `Ok(None)` asks for more,
    /// and [`MAX_HEADER_BYTES`] are always enough.
    ///
    /// # Errors
    ///
    /// The rules of RFC 6455 5.2 and 5.5, each as soon as the byte that breaks it is there.
    #[inline]
    pub fn parse(buf: &[u8]) -> Result<Option<(Self, usize)>, WsError> {
        Self::parse_extended(buf, false)
    }

    /// Like [`parse`](Self::parse); with `deflate` for a connection that has negotiated permessage-deflate,
    /// where the first frame of a message may have RSV1 set (RFC 7692 6).
    ///
    /// # Errors
    ///
    /// As of [`parse`](Self::parse).
    #[inline]
    pub fn parse_extended(buf: &[u8], deflate: bool) -> Result<Option<(Self, usize)>, WsError> {
        let [first, rest @ ..] = buf else { return Ok(None) };
        let op = OpCode::from_bits(first & 0x0f);
        let compressed = first & RSV1 != 0;
        let allowed = deflate && matches!(op, Ok(OpCode::Text | OpCode::Binary));
        if first & 0x30 != 0 || (compressed && !allowed) {
            return Err(WsError::ReservedBits);
        }
        let op = op?;
        let fin = first & 0x80 != 0;
        if op.is_control() && !fin {
            return Err(WsError::FragmentedControl);
        }
        let [second, rest @ ..] = rest else { return Ok(None) };
        if second & 0x80 == 0 {
            return Err(WsError::Unmasked);
        }
        let short = second & 0x7f;
        if op.is_control() && usize::from(short) > CONTROL_BYTES {
            return Err(WsError::LongControl);
        }
        let (len, rest) = match short {
            126 => {
                let Some((bytes, rest)) = rest.split_first_chunk() else { return Ok(None) };
                let len = u64::from(u16::from_be_bytes(*bytes));
                if len < 126 {
                    return Err(WsError::NonMinimalLength);
                }
                (len, rest)
            }
            127 => {
                if rest.first().is_some_and(|top| top & 0x80 != 0) {
                    return Err(WsError::LengthTopBit);
                }
                let Some((bytes, rest)) = rest.split_first_chunk() else { return Ok(None) };
                let len = u64::from_be_bytes(*bytes);
                if len <= 0xffff {
                    return Err(WsError::NonMinimalLength);
                }
                (len, rest)
            }
            short => (u64::from(short), rest),
        };
        let Some((key, rest)) = rest.split_first_chunk() else { return Ok(None) };
        Ok(Some((Self { op, fin, compressed, len, key: *key }, buf.len() - rest.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_a_client_may_not_send() {
        for (bytes, error) in [
            (&[0xc1][..], WsError::ReservedBits),
            (&[0xa1], WsError::ReservedBits),
            (&[0x91], WsError::ReservedBits),
            (&[0x83], WsError::ReservedOpcode(3)),
            (&[0x8b], WsError::ReservedOpcode(11)),
            (&[0x09], WsError::FragmentedControl),
            (&[0x81, 0x05], WsError::Unmasked),
            (&[0x89, 0xfe], WsError::LongControl),
            (&[0x81, 0xfe, 0, 125], WsError::NonMinimalLength),
            (&[0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], WsError::NonMinimalLength),
            (&[0x81, 0xff, 0x80], WsError::LengthTopBit),
        ] {
            assert_eq!(FrameHeader::parse(bytes), Err(error), "{bytes:x?}");
            assert_eq!(error.close_code(), 1002);
        }
    }

    #[test]
    fn rsv1_begins_compressed_messages_only() {
        for first in [0x41, 0xc1, 0x42, 0xc2] {
            assert_eq!(FrameHeader::parse(&[first]), Err(WsError::ReservedBits));
            let (header, _) = FrameHeader::parse_extended(&[first, 0x80, 1, 2, 3, 4], true).unwrap().unwrap();
            assert!(header.compressed);
        }
        for first in [0x40, 0xc0, 0xc8, 0xc9, 0xca, 0xd1, 0xe1, 0xf1, 0x91, 0xa1] {
            assert_eq!(FrameHeader::parse_extended(&[first], true), Err(WsError::ReservedBits), "{first:x}");
        }
        assert_eq!(&*compressed_header(OpCode::Text, 7), &[0xc1, 7]);
    }

    #[test]
    fn close_reasons_are_cut_between_characters() {
        assert_eq!(close_payload(1000, ""), [3, 232]);
        let payload = close_payload(1001, &"é".repeat(100));
        assert_eq!(payload.len(), 124);
        assert!(str::from_utf8(&payload[2..]).is_ok());
        assert_eq!(close_payload(1001, &"x".repeat(200)).len(), 125);
    }

    proptest! {
        #[test]
        fn headers_round_trip(
            len in prop_oneof![0u64..300, 65_500u64..65_600, 0..1u64 << 62],
            key: [u8; 4],
            fin: bool,
        ) {
            let mut bytes = header(OpCode::Binary, fin, len as usize).to_vec();
            bytes[1] |= 0x80;
            bytes.extend_from_slice(&key);
            for cut in 0..bytes.len() {
                prop_assert_eq!(FrameHeader::parse(&bytes[..cut]), Ok(None));
            }
            let header = FrameHeader { op: OpCode::Binary, fin, compressed: false, len, key };
            prop_assert_eq!(FrameHeader::parse(&bytes), Ok(Some((header, bytes.len()))));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let longest = bytes.len().min(MAX_HEADER_BYTES);
            let whole = FrameHeader::parse(&bytes);
            prop_assert_eq!(FrameHeader::parse(&bytes[..longest]), whole);
        }
    }
}
