//! Single packets (engine.io-protocol v4, "Protocol").

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use thiserror::Error;

/// Standard base64, as encoders write it. [`lenient_base64`] reads the rest.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What stands before base64.
const BINARY: u8 = b'b';

/// A packet that cannot be decoded. The client is at fault; the session is to be closed with `parse error`.
///
/// ```
/// use sockring::protocol::eio::{EioError, decode_text};
///
/// assert_eq!(decode_text("9"), Err(EioError::UnknownType));
/// assert_eq!(decode_text(""), Err(EioError::Empty));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EioError {
    /// A packet without a type, or a payload without a packet.
    #[error("the client sent an empty packet")]
    Empty,
    /// The first character is neither `0` to `6` nor `b`.
    #[error("the client sent a packet of unknown type")]
    UnknownType,
    /// Only in version 3: the length before a packet is malformed, or not that of what follows.
    #[error("the client sent a packet with a wrong length")]
    Length,
    /// Only in version 3: text in a binary payload that is not UTF-8.
    #[error("the client sent text that is not utf-8")]
    Utf8,
}

/// The type of a packet, written as one digit.
///
/// ```
/// use sockring::protocol::eio::PacketType;
///
/// assert_eq!(PacketType::Message.digit(), b'4');
/// assert_eq!(PacketType::from_digit(b'6'), Some(PacketType::Noop));
/// assert_eq!(PacketType::from_digit(b'7'), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PacketType {
    /// `0`: the handshake, from the server.
    Open = b'0',
    /// `1`: the transport may be closed.
    Close = b'1',
    /// `2`: a ping; from the client only as the probe `2probe`.
    Ping = b'2',
    /// `3`: a pong.
    Pong = b'3',
    /// `4`: a message.
    Message = b'4',
    /// `5`: the client goes over to the probed transport.
    Upgrade = b'5',
    /// `6`: nothing; ends a waiting poll.
    Noop = b'6',
}

impl PacketType {
    /// The digit on the wire, in ASCII.
    #[must_use]
    pub fn digit(self) -> u8 {
        self as u8
    }

    /// The type of an ASCII digit.
    #[must_use]
    pub fn from_digit(digit: u8) -> Option<Self> {
        Some(match digit {
            b'0' => Self::Open,
            b'1' => Self::Close,
            b'2' => Self::Ping,
            b'3' => Self::Pong,
            b'4' => Self::Message,
            b'5' => Self::Upgrade,
            b'6' => Self::Noop,
            _ => return None,
        })
    }
}

/// A packet, borrowed from where it was received as far as possible.
///
/// ```
/// use sockring::protocol::eio::{Packet, PacketType, decode_text};
///
/// assert_eq!(decode_text("2probe")?, Packet::Text { kind: PacketType::Ping, data: "probe" });
/// assert_eq!(decode_text("bAQID")?, Packet::Binary(vec![1, 2, 3].into()));
/// # Ok::<(), sockring::protocol::eio::EioError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'a> {
    /// A packet with text, which may be empty.
    Text {
        /// Its type.
        kind: PacketType,
        /// What follows the type.
        data: &'a str,
    },
    /// A binary packet; always a message. Owned if it came as base64, borrowed if it came as a binary frame.
    Binary(Cow<'a, [u8]>),
}

/// Decodes the text of one packet: a WebSocket text frame or a piece of a polling payload. `b` and base64 is
/// legal in both.
///
/// Base64 is read as Node's `Buffer.from(text, "base64")` reads it, which is what the reference does: `-` and
/// `_` stand for `+` and `/`, the first `=` ends the data, and any other character is passed over. So it
/// cannot be malformed. Android's encoder breaks lines after 76 characters and at the end.
///
/// ```
/// use sockring::protocol::eio::{Packet, decode_text};
///
/// assert_eq!(decode_text("bAQ\r\nID\n"), Ok(Packet::Binary(vec![1, 2, 3].into())));
/// assert_eq!(decode_text("b-_8==="), Ok(Packet::Binary(vec![0xfb, 0xff].into())));
/// ```
///
/// # Errors
///
/// An [`EioError`] if there is no type, or an unknown one.
pub fn decode_text(text: &str) -> Result<Packet<'_>, EioError> {
    let Some(first) = text.as_bytes().first() else { return Err(EioError::Empty) };
    let data = text.get(1..);
    if *first == BINARY {
        return Ok(decode_base64(data.unwrap_or_default()));
    }
    let kind = PacketType::from_digit(*first).ok_or(EioError::UnknownType)?;
    Ok(Packet::Text { kind, data: data.unwrap_or_default() })
}

/// Decodes what follows `b`.
pub(super) fn decode_base64(text: &str) -> Packet<'static> {
    let bytes = BASE64.decode(text).unwrap_or_else(|_| lenient_base64(text));
    Packet::Binary(Cow::Owned(bytes))
}

/// Decodes base64 that has anything beside its alphabet, as Node does. Node looks at the low byte of each
/// UTF-16 unit; a rest of fewer than eight bits is dropped.
#[cold]
fn lenient_base64(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for unit in text.encode_utf16() {
        let value = match unit as u8 {
            byte @ b'A'..=b'Z' => byte - b'A',
            byte @ b'a'..=b'z' => byte - b'a' + 26,
            byte @ b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            b'=' => break,
            _ => continue,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}

/// Appends a packet with text.
///
/// ```
/// use sockring::protocol::eio::{PacketType, write_text};
///
/// let mut out = Vec::new();
/// write_text(&mut out, PacketType::Message, "hello");
/// assert_eq!(out, b"4hello");
/// ```
pub fn write_text(out: &mut Vec<u8>, kind: PacketType, data: &str) {
    out.reserve(1 + data.len());
    out.push(kind.digit());
    out.extend_from_slice(data.as_bytes());
}

/// Appends a binary message as text: `b` and padded standard base64, without a type.
///
/// ```
/// let mut out = Vec::new();
/// sockring::protocol::eio::write_base64(&mut out, &[1, 2, 3, 4]);
/// assert_eq!(out, b"bAQIDBA==");
/// ```
pub fn write_base64(out: &mut Vec<u8>, data: &[u8]) {
    out.push(BINARY);
    append_base64(out, data);
}

/// Appends padded standard base64 alone.
pub(super) fn append_base64(out: &mut Vec<u8>, data: &[u8]) {
    let start = out.len();
    out.resize(start + base64_len(data.len()), b'=');
    // The room is exactly what padded base64 takes.
    let written = BASE64.encode_slice(data, out.split_at_mut(start).1).unwrap_or(0);
    out.truncate(start + written);
}

/// Characters of padded base64 for so many bytes.
pub(super) fn base64_len(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

/// The handshake (engine.io-protocol v4, "Handshake").
///
/// ```
/// use sockring::protocol::eio::Open;
///
/// let mut out = Vec::new();
/// let open = Open {
///     sid: "abc",
///     upgrades: &["websocket"],
///     ping_interval_ms: 25_000,
///     ping_timeout_ms: 20_000,
///     max_payload: 1_000_000,
/// };
/// open.write(&mut out);
/// assert!(out.starts_with(br#"0{"sid":"abc","upgrades":["websocket"],"pingInterval":25000,"#));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open<'a> {
    /// The session id.
    pub sid: &'a str,
    /// The transports the client may go over to.
    pub upgrades: &'a [&'a str],
    /// Milliseconds between pings.
    pub ping_interval_ms: u64,
    /// Milliseconds the client may take to answer one.
    pub ping_timeout_ms: u64,
    /// Bytes of a polling body or a WebSocket message that the server takes.
    pub max_payload: u64,
}

impl Open<'_> {
    /// Appends the packet, with its type `0`. The keys are exactly `sid`, `upgrades`, `pingInterval`,
    /// `pingTimeout` and `maxPayload`, in this order: the protocol's suite compares them.
    pub fn write(&self, out: &mut Vec<u8>) {
        let json = |out: &mut Vec<u8>, text: &str| {
            // Writing a string to a vector cannot fail.
            let _ = serde_json::to_writer(out, text);
        };
        out.extend_from_slice(b"0{\"sid\":");
        json(out, self.sid);
        out.extend_from_slice(b",\"upgrades\":[");
        for (at, upgrade) in self.upgrades.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            json(out, upgrade);
        }
        let rest = format!(
            "],\"pingInterval\":{},\"pingTimeout\":{},\"maxPayload\":{}}}",
            self.ping_interval_ms, self.ping_timeout_ms, self.max_payload
        );
        out.extend_from_slice(rest.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn knows_every_type() {
        for digit in 0..=255 {
            let kind = PacketType::from_digit(digit);
            assert_eq!(kind.is_some(), (b'0'..=b'6').contains(&digit));
            assert_eq!(kind.map_or(digit, PacketType::digit), digit);
        }
    }

    #[test]
    fn refuses_what_is_not_a_packet() {
        for (text, error) in [
            ("", EioError::Empty),
            ("7", EioError::UnknownType),
            ("é4", EioError::UnknownType),
            ("\u{1e}", EioError::UnknownType),
            ("B", EioError::UnknownType),
        ] {
            assert_eq!(decode_text(text), Err(error), "{text}");
        }
    }

    /// What Node's `Buffer.from(text, "base64")` makes of each.
    #[test]
    fn takes_base64_in_any_dress() {
        for (text, bytes) in [
            ("b", &b""[..]),
            ("bAQ==", &[1]),
            ("bAQ", &[1]),
            ("bAR==", &[1]),
            ("bAQ===", &[1]),
            ("bAQ=", &[1]),
            ("bAQID====", &[1, 2, 3]),
            ("b+/8=", &[0xfb, 0xff]),
            ("b-_8=", &[0xfb, 0xff]),
            ("b-_8", &[0xfb, 0xff]),
            ("bAQ\r\nID\n", &[1, 2, 3]),
            ("bAQ==\n", &[1]),
            ("bAQ\n=\n=\n", &[1]),
            ("bA Q\tI D", &[1, 2, 3]),
            // What follows the end of the data is nothing.
            ("bAQ=ID", &[1]),
            ("bAQIDBA==AQ==", &[1, 2, 3, 4]),
            ("b=AQID", &[]),
            ("bA", &[]),
            ("b!", &[]),
            ("bé", &[]),
            ("b!AQ!ID.", &[1, 2, 3]),
            // The low bytes of these are NUL, "A", and "=".
            ("b\u{100}AQID", &[1, 2, 3]),
            ("b\u{141}QID", &[1, 2, 3]),
            ("bAQ\u{1f600}ID", &[1]),
        ] {
            assert_eq!(decode_text(text), Ok(Packet::Binary(Cow::Borrowed(bytes))), "{text:?}");
        }
    }

    #[test]
    fn the_handshake_escapes_its_strings() {
        let mut out = Vec::new();
        let open = Open {
            sid: "a\"b",
            upgrades: &[],
            ping_interval_ms: 1,
            ping_timeout_ms: 2,
            max_payload: u64::MAX,
        };
        open.write(&mut out);
        let value: serde_json::Value = serde_json::from_slice(&out[1..]).unwrap();
        assert_eq!(value["sid"], "a\"b");
        assert_eq!(value["upgrades"], serde_json::json!([]));
        assert_eq!(value["maxPayload"], u64::MAX);
    }

    proptest! {
        #[test]
        fn round_trip(data in ".{0,40}", bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut out = Vec::new();
            write_text(&mut out, PacketType::Message, &data);
            let expected = Packet::Text { kind: PacketType::Message, data: &data };
            prop_assert_eq!(decode_text(str::from_utf8(&out).unwrap()), Ok(expected));
            out.clear();
            write_base64(&mut out, &bytes);
            prop_assert_eq!(decode_text(str::from_utf8(&out).unwrap()), Ok(Packet::Binary(bytes.into())));
        }

        /// Line breaks, the other alphabet and missing or surplus padding change nothing.
        #[test]
        fn base64_of_any_encoder(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            width in 1usize..80,
            (url, crlf, last) in any::<(bool, bool, bool)>(),
            padding in 0usize..5,
        ) {
            let mut plain = Vec::new();
            write_base64(&mut plain, &bytes);
            let plain = String::from_utf8(plain).unwrap();
            let data: Vec<char> = plain[1..].trim_end_matches('=').chars().collect();
            let end = if crlf { "\r\n" } else { "\n" };
            let lines: Vec<String> = data.chunks(width).map(|line| line.iter().collect()).collect();
            let mut text = format!("b{}{}", lines.join(end), "=".repeat(padding));
            if last {
                text.push_str(end);
            }
            if url {
                text = text.replace('+', "-").replace('/', "_");
            }
            prop_assert_eq!(decode_text(&text), Ok(Packet::Binary(bytes.into())));
        }

        #[test]
        fn any_text_is_taken_or_refused(text in "[0-9b]?.{0,40}") {
            let _ = decode_text(&text);
        }
    }
}
