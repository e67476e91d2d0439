//! Engine.IO v3 (engine.io-protocol v3): what clients of Socket.IO v2 send and take.
//!
//! Beside the direction of the pings, three things differ from version 4:
//!
//! * a payload of text puts a length and a colon before each packet. The length counts UTF-16 code units, as
//!   JavaScript does;
//! * a payload with binary is binary as a whole ([`Mode::Binary`]), unless the client wants base64;
//! * binary packets have a type: a byte in front, or a digit behind the `b` of base64.
//!
//! Every function here takes time in proportion to its input, whatever the input says about itself
//! (CVE-2020-36048 was about servers that did not).
//!
//! ```
//! use sockring::protocol::eio::{EioError, v3};
//!
//! let packets: Vec<_> = v3::decode_payload("6:4hello1:2").collect::<Result<_, EioError>>()?;
//! assert_eq!(packets.len(), 2);
//! let mut out = Vec::new();
//! v3::write_text(&mut out, v3::Mode::Text, "4héllo");
//! assert_eq!(out, "6:4héllo".as_bytes());
//! # Ok::<(), EioError>(())
//! ```

use std::borrow::Cow;

use super::packet::{self, EioError, Packet, PacketType};

/// How a payload is written.
///
/// ```
/// use sockring::fanout::Frame;
/// use sockring::protocol::eio::v3::Mode;
/// assert_eq!(Frame::message(&[b"4a"], &[]).polling_v3(Mode::Text), b"2:4a");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As text, binary packets in base64.
    Text,
    /// As bytes: for each packet 0 (text) or 1 (binary), the digits of its length as a byte each, 255, and
    /// the packet. The length counts bytes.
    Binary,
}

/// Digits of a length. No payload that any server takes needs more.
const LENGTH_DIGITS_MAX: usize = 10;

/// Ends the digits of a length in a binary payload.
const LENGTH_END: u8 = 0xff;

/// What marks base64.
const BASE64: u8 = b'b';

/// Decodes the text of one packet: a WebSocket text frame, or a packet of a payload. Base64 is read as in
/// [version 4](packet::decode_text).
///
/// # Errors
///
/// An [`EioError`] if there is no type, or an unknown one.
///
/// ```
/// use sockring::protocol::eio::{Packet, v3};
///
/// assert_eq!(v3::decode_text("b4AQID"), Ok(Packet::Binary(vec![1, 2, 3].into())));
/// ```
pub fn decode_text(text: &str) -> Result<Packet<'_>, EioError> {
    let Some(base64) = text.strip_prefix(char::from(BASE64)) else { return packet::decode_text(text) };
    match base64.as_bytes().first() {
        None => Err(EioError::Empty),
        Some(b'4') => Ok(packet::decode_base64(base64.get(1..).unwrap_or_default())),
        Some(_) => Err(EioError::UnknownType),
    }
}

/// Decodes a binary packet: a WebSocket binary frame, or a packet of a payload. Only messages are binary.
///
/// # Errors
///
/// An [`EioError`] if there is no type, or not that of a message.
///
/// ```
/// use sockring::protocol::eio::{Packet, v3};
///
/// assert_eq!(v3::decode_binary(&[4, 1, 2]), Ok(Packet::Binary([1, 2].as_slice().into())));
/// ```
pub fn decode_binary(data: &[u8]) -> Result<Packet<'_>, EioError> {
    match data.split_first() {
        None => Err(EioError::Empty),
        Some((4, data)) => Ok(Packet::Binary(Cow::Borrowed(data))),
        Some(_) => Err(EioError::UnknownType),
    }
}

/// Decodes the packets of a payload of text one by one. The caller is to stop at the first error. An empty
/// body is one error; a packet of length 0 is passed over, since that is how clients write "no packets".
pub fn decode_payload(body: &str) -> impl Iterator<Item = Result<Packet<'_>, EioError>> {
    let first = body.is_empty().then_some(Err(EioError::Empty));
    let mut rest = body;
    first.into_iter().chain(std::iter::from_fn(move || next_packet(&mut rest)))
}

/// Takes the next packet off what is left of a payload of text.
///
/// ```
/// use sockring::protocol::eio::v3;
/// let mut rest = "2:4a2:4b";
/// assert!(v3::next_packet(&mut rest).is_some_and(|packet| packet.is_ok()));
/// assert_eq!(rest, "2:4b");
/// ```
pub fn next_packet<'a>(rest: &mut &'a str) -> Option<Result<Packet<'a>, EioError>> {
    while !rest.is_empty() {
        match split_text(rest) {
            Ok(("", after)) => *rest = after,
            Ok((packet, after)) => {
                *rest = after;
                return Some(decode_text(packet));
            }
            Err(error) => {
                *rest = "";
                return Some(Err(error));
            }
        }
    }
    None
}

/// The first packet of a payload of text, and what follows.
fn split_text(payload: &str) -> Result<(&str, &str), EioError> {
    let digits = payload.bytes().take(LENGTH_DIGITS_MAX + 1).take_while(u8::is_ascii_digit).count();
    let (number, rest) = payload.split_at(digits);
    let rest = rest.strip_prefix(':').ok_or(EioError::Length)?;
    let units: usize = match digits {
        1..=LENGTH_DIGITS_MAX => number.parse().map_err(|_| EioError::Length)?,
        _ => return Err(EioError::Length),
    };
    rest.split_at_checked(utf16_prefix(rest, units).ok_or(EioError::Length)?).ok_or(EioError::Length)
}

/// How many bytes so many UTF-16 code units are; `None` if there are not as many, or one of them is half a
/// character.
fn utf16_prefix(text: &str, units: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    // What is ASCII need not be counted.
    if bytes.get(..units)?.is_ascii() {
        return Some(units);
    }
    let mut left = units;
    for (at, character) in text.char_indices() {
        if left == 0 {
            return Some(at);
        }
        left = left.checked_sub(character.len_utf16())?;
    }
    (left == 0).then_some(text.len())
}

/// Decodes the packets of a binary payload one by one. The caller is to stop at the first error. An empty
/// body is one error.
///
/// ```
/// use sockring::protocol::eio::{Packet, PacketType, v3};
///
/// let body = [0, 2, 0xff, b'4', b'a', 1, 2, 0xff, 4, 7];
/// let packets: Vec<_> = v3::decode_binary_payload(&body).collect::<Result<_, _>>()?;
/// let text = Packet::Text { kind: PacketType::Message, data: "a" };
/// assert_eq!(packets, [text, Packet::Binary([7].as_slice().into())]);
/// # Ok::<(), sockring::protocol::eio::EioError>(())
/// ```
pub fn decode_binary_payload(body: &[u8]) -> impl Iterator<Item = Result<Packet<'_>, EioError>> {
    let first = body.is_empty().then_some(Err(EioError::Empty));
    let mut rest = body;
    first.into_iter().chain(std::iter::from_fn(move || next_binary_packet(&mut rest)))
}

/// Takes the next packet off what is left of a binary payload.
///
/// ```
/// use sockring::protocol::eio::v3;
/// let mut rest = &[1, 2, 0xff, 4, 7, 1, 1, 0xff, 4][..];
/// assert!(v3::next_binary_packet(&mut rest).is_some_and(|packet| packet.is_ok()));
/// assert_eq!(rest, [1, 1, 0xff, 4]);
/// ```
pub fn next_binary_packet<'a>(rest: &mut &'a [u8]) -> Option<Result<Packet<'a>, EioError>> {
    if rest.is_empty() {
        return None;
    }
    let (packet, after) = match split_binary(rest) {
        Ok((Piece::Text(text), after)) => (decode_text(text), after),
        Ok((Piece::Binary(data), after)) => (decode_binary(data), after),
        Err(error) => (Err(error), [].as_slice()),
    };
    *rest = after;
    Some(packet)
}

enum Piece<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
}

/// The first packet of a binary payload, and what follows.
fn split_binary(payload: &[u8]) -> Result<(Piece<'_>, &[u8]), EioError> {
    let (kind, rest) = payload.split_first().ok_or(EioError::Empty)?;
    let digits = rest.iter().take(LENGTH_DIGITS_MAX + 1).take_while(|digit| **digit <= 9).count();
    let (number, rest) = rest.split_at(digits);
    if !(1..=LENGTH_DIGITS_MAX).contains(&digits) || rest.first() != Some(&LENGTH_END) {
        return Err(EioError::Length);
    }
    let length = number.iter().fold(0u64, |length, digit| length * 10 + u64::from(*digit));
    let length = usize::try_from(length).map_err(|_| EioError::Length)?;
    let rest = rest.get(1..).unwrap_or_default();
    let (packet, after) = rest.split_at_checked(length).ok_or(EioError::Length)?;
    let piece = match kind {
        0 => Piece::Text(simdutf8::basic::from_utf8(packet).map_err(|_| EioError::Utf8)?),
        1 => Piece::Binary(packet),
        _ => return Err(EioError::UnknownType),
    };
    Ok((piece, after))
}

/// Appends a packet with text to a payload; its type stands in front already.
pub fn write_text(out: &mut Vec<u8>, mode: Mode, packet: &str) {
    let length = match mode {
        Mode::Text => utf16_len(packet),
        Mode::Binary => packet.len(),
    };
    write_length(out, mode, 0, length);
    out.extend_from_slice(packet.as_bytes());
}

/// UTF-16 code units: one for each character, and one more for those that take four bytes here.
fn utf16_len(text: &str) -> usize {
    let continues = |byte: u8| byte & 0xc0 == 0x80;
    text.bytes().map(|byte| usize::from(!continues(byte)) + usize::from(byte >= 0xf0)).sum()
}

/// Appends a binary message to a payload.
///
/// ```
/// use sockring::protocol::eio::v3::{Mode, write_binary};
///
/// let (mut text, mut binary) = (Vec::new(), Vec::new());
/// write_binary(&mut text, Mode::Text, &[1, 2, 3]);
/// write_binary(&mut binary, Mode::Binary, &[1, 2, 3]);
/// assert_eq!(text, b"6:b4AQID");
/// assert_eq!(binary, [1, 4, 0xff, 4, 1, 2, 3]);
/// ```
pub fn write_binary(out: &mut Vec<u8>, mode: Mode, data: &[u8]) {
    match mode {
        Mode::Text => {
            write_length(out, mode, 1, 2 + packet::base64_len(data.len()));
            write_base64(out, data);
        }
        Mode::Binary => {
            write_length(out, mode, 1, 1 + data.len());
            out.push(binary_type());
            out.extend_from_slice(data);
        }
    }
}

fn write_length(out: &mut Vec<u8>, mode: Mode, kind: u8, length: usize) {
    let length = length.to_string();
    match mode {
        Mode::Text => {
            out.extend_from_slice(length.as_bytes());
            out.push(b':');
        }
        Mode::Binary => {
            out.push(kind);
            out.extend(length.bytes().map(|digit| digit - b'0'));
            out.push(LENGTH_END);
        }
    }
}

/// Appends a binary message as the text of a packet: `b`, its type and base64.
///
/// ```
/// let mut out = Vec::new();
/// sockring::protocol::eio::v3::write_base64(&mut out, &[1, 2, 3]);
/// assert_eq!(out, b"b4AQID");
/// ```
pub fn write_base64(out: &mut Vec<u8>, data: &[u8]) {
    out.extend_from_slice(&[BASE64, PacketType::Message.digit()]);
    packet::append_base64(out, data);
}

/// What stands in front of a binary message: its type, as a number and not a digit.
#[must_use]
pub fn binary_type() -> u8 {
    PacketType::Message.digit() - b'0'
}

#[cfg(test)]
mod tests;
