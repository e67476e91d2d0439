//! Whole packets as MessagePack: what npm's `socket.io-msgpack-parser` 3.0.2 reads and writes.
//!
//! A packet is one binary message, a map of `type` (0 to 4: there are no attachments, so binary needs no
//! types of its own), `nsp`, `data` and `id`, written by notepack 2.2. Of its extensions, type 0 is
//! `undefined` (1 byte), a date (8 bytes, milliseconds) or an `ArrayBuffer` (any length behind a length);
//! later versions write dates as the timestamps of the specification. Dates become text here, as they do in
//! JSON.

use bytes::Bytes;
use rmp::{Marker, encode};
use thiserror::Error;

use super::decode::{SioError, allowed};
use super::json::MAX_DEPTH;
use super::packet::{Body, EventName, MAX_ACK_ID, Packet};
use super::value::{Number, Value, drop_duplicates};

/// Bytes that are not one value of MessagePack, or a value that cannot be written as such.
///
/// ```
/// use sockring::protocol::sio::msgpack::{self, MsgpackError};
///
/// assert_eq!(msgpack::read(b"\x92\x01", 10), Err(MsgpackError::Truncated));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MsgpackError {
    /// The message ends where a value, or a part of one, is announced.
    #[error("a value is not all there")]
    Truncated,
    /// Something follows the value.
    #[error("there are bytes behind the value")]
    Trailing,
    /// The one byte that begins nothing.
    #[error("a byte is of no type")]
    Marker,
    /// A key that is neither a string nor a number.
    #[error("a key is neither a string nor a number")]
    Key,
    /// Nested deeper than allowed.
    #[error("it is nested too deep")]
    TooDeep,
    /// Text, bytes, an array or a map of 4 GiB or more.
    #[error("a part is too long")]
    TooLong,
}

/// Reads a value that nests at most `depth` deep; at most [`MAX_DEPTH`] counts.
///
/// `undefined` is null, but in a map, where it is nothing. Text that is not UTF-8 is repaired with U+FFFD. Of
/// a key that is there twice the last value counts. Extensions of other types are arrays of the type and the
/// bytes, as notepack reads them.
///
/// # Errors
///
/// A [`MsgpackError`]. Memory follows what has come, not what is announced.
///
/// ```
/// use sockring::protocol::sio::{Value, msgpack};
///
/// assert_eq!(msgpack::read(b"\x92\x01\xa1a", 10)?, Value::from(vec![Value::from(1), "a".into()]));
/// assert_eq!(msgpack::read(b"\xd7\0\0\0\0\0\0\0\0\x01", 1)?, "1970-01-01T00:00:00.001Z".into());
/// # Ok::<(), msgpack::MsgpackError>(())
/// ```
pub fn read(data: &[u8], depth: usize) -> Result<Value, MsgpackError> {
    let mut reader = Reader(data);
    let value = reader.value(depth.min(MAX_DEPTH))?;
    if reader.0.is_empty() { Ok(value) } else { Err(MsgpackError::Trailing) }
}

/// Writes a value behind what is in `out`. Numbers take the shortest form of their kind: integer, or float of
/// 64 bits.
///
/// # Errors
///
/// [`MsgpackError::TooLong`], or [`MsgpackError::TooDeep`] if it nests deeper than [`MAX_DEPTH`].
///
/// ```
/// use sockring::protocol::sio::{Value, msgpack};
///
/// let mut out = Vec::new();
/// msgpack::write(&mut out, &Value::from(vec![1, -1]))?;
/// assert_eq!(out, b"\x92\x01\xff");
/// # Ok::<(), msgpack::MsgpackError>(())
/// ```
pub fn write(out: &mut Vec<u8>, value: &Value) -> Result<(), MsgpackError> {
    write_value(out, value, MAX_DEPTH)
}

/// Decodes a packet. What `depth` allows is the nesting of its data.
///
/// # Errors
///
/// A [`SioError`]: the rules are those of the default [`Decoder`](super::Decoder), but that an event and an
/// acknowledgement must have an array.
///
/// ```
/// use sockring::protocol::sio::{Body, msgpack};
///
/// let packet = msgpack::decode(b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x91\xa2hi", 10)?;
/// assert_eq!(packet.body, Body::Event { name: "hi".into(), args: vec![] });
/// # Ok::<(), sockring::protocol::sio::SioError>(())
/// ```
pub fn decode(message: &[u8], depth: usize) -> Result<Packet, SioError> {
    let mut reader = Reader(message);
    let entries = match reader.marker()? {
        Marker::FixMap(len) => u32::from(len),
        Marker::Map16 => u32::from(u16::from_be_bytes(reader.array()?)),
        Marker::Map32 => u32::from_be_bytes(reader.array()?),
        _ => return Err(SioError::NoPacket),
    };
    let (mut kind, mut nsp, mut data, mut id) = (None, None, None, None);
    for _ in 0..entries {
        let (key, value) = reader.entry(depth.min(MAX_DEPTH))?;
        match &*key {
            "type" => kind = value,
            "nsp" => nsp = value,
            "data" => data = value,
            "id" => id = value,
            // `options` of the official client, for its transports.
            _ => {}
        }
    }
    if !reader.0.is_empty() {
        return Err(MsgpackError::Trailing.into());
    }
    let kind = kind.and_then(|kind| kind.as_u64()).ok_or(SioError::UnknownKind)?;
    let body = match (kind, data) {
        (0, auth @ (None | Some(Value::Object(_)))) => Body::Connect(auth),
        (1, None) => Body::Disconnect,
        (2, Some(Value::Array(args))) => event(args)?,
        (3, Some(Value::Array(args))) => Body::Ack(args),
        (4, Some(error @ (Value::String(_) | Value::Object(_)))) => Body::ConnectError(error),
        (0..=4, _) => return Err(SioError::Payload),
        _ => return Err(SioError::UnknownKind),
    };
    let id = match id {
        Some(id) => Some(id.as_u64().filter(|id| *id <= MAX_ACK_ID).ok_or(SioError::AckId)?),
        None => None,
    };
    let nsp = nsp.as_ref().and_then(Value::as_str).ok_or(SioError::NoPacket)?;
    Ok(Packet::new(nsp, id, body))
}

/// Encodes a packet; its query is left out.
///
/// # Errors
///
/// A [`MsgpackError`], as [`write`].
///
/// ```
/// use sockring::protocol::sio::{Body, Packet, msgpack};
///
/// let packet = Packet::new("/", None, Body::Disconnect);
/// assert_eq!(msgpack::encode(&packet)?, b"\x82\xa4type\x01\xa3nsp\xa1/");
/// # Ok::<(), msgpack::MsgpackError>(())
/// ```
pub fn encode(packet: &Packet) -> Result<Vec<u8>, MsgpackError> {
    let mut out = Vec::with_capacity(128);
    let (kind, has_data) = match &packet.body {
        Body::Connect(auth) => (0, auth.is_some()),
        Body::Disconnect => (1, false),
        Body::Event { .. } => (2, true),
        Body::Ack(_) => (3, true),
        Body::ConnectError(error) => (4, !error.is_null()),
    };
    write_map_len(&mut out, 2 + usize::from(has_data) + usize::from(packet.id.is_some()))?;
    write_str(&mut out, "type")?;
    write_number(&mut out, Number::I64(kind))?;
    write_str(&mut out, "nsp")?;
    write_str(&mut out, &packet.nsp)?;
    if has_data {
        write_str(&mut out, "data")?;
    }
    match &packet.body {
        Body::Connect(Some(data)) => write_value(&mut out, data, MAX_DEPTH)?,
        Body::ConnectError(error) if has_data => write_value(&mut out, error, MAX_DEPTH)?,
        Body::Event { name, args } => write_args(&mut out, Some(name), args)?,
        Body::Ack(args) => write_args(&mut out, None, args)?,
        _ => {}
    }
    if let Some(id) = packet.id {
        write_str(&mut out, "id")?;
        write_number(&mut out, Number::from(id))?;
    }
    Ok(out)
}

/// What is left of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], MsgpackError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(MsgpackError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MsgpackError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(MsgpackError::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn marker(&mut self) -> Result<Marker, MsgpackError> {
        let [byte] = self.array()?;
        Ok(Marker::from_u8(byte))
    }

    fn len8(&mut self) -> Result<usize, MsgpackError> {
        let [len] = self.array()?;
        Ok(usize::from(len))
    }

    fn len16(&mut self) -> Result<usize, MsgpackError> {
        Ok(usize::from(u16::from_be_bytes(self.array()?)))
    }

    fn len32(&mut self) -> Result<usize, MsgpackError> {
        Ok(u32::from_be_bytes(self.array()?) as usize)
    }

    fn value(&mut self, depth: usize) -> Result<Value, MsgpackError> {
        let marker = self.marker()?;
        match marker {
            Marker::Null => Ok(Value::Null),
            Marker::True => Ok(Value::Bool(true)),
            Marker::False => Ok(Value::Bool(false)),
            Marker::FixStr(len) => self.text(usize::from(len)),
            Marker::Str8 => self.len8().and_then(|len| self.text(len)),
            Marker::Str16 => self.len16().and_then(|len| self.text(len)),
            Marker::Str32 => self.len32().and_then(|len| self.text(len)),
            Marker::Bin8 => self.len8().and_then(|len| self.binary(len)),
            Marker::Bin16 => self.len16().and_then(|len| self.binary(len)),
            Marker::Bin32 => self.len32().and_then(|len| self.binary(len)),
            Marker::FixArray(len) => self.list(usize::from(len), depth),
            Marker::Array16 => self.len16().and_then(|len| self.list(len, depth)),
            Marker::Array32 => self.len32().and_then(|len| self.list(len, depth)),
            Marker::FixMap(len) => self.map(usize::from(len), depth),
            Marker::Map16 => self.len16().and_then(|len| self.map(len, depth)),
            Marker::Map32 => self.len32().and_then(|len| self.map(len, depth)),
            Marker::FixExt1 => self.extension(1, true, depth),
            Marker::FixExt2 => self.extension(2, true, depth),
            Marker::FixExt4 => self.extension(4, true, depth),
            Marker::FixExt8 => self.extension(8, true, depth),
            Marker::FixExt16 => self.extension(16, true, depth),
            Marker::Ext8 => self.len8().and_then(|len| self.extension(len, false, depth)),
            Marker::Ext16 => self.len16().and_then(|len| self.extension(len, false, depth)),
            Marker::Ext32 => self.len32().and_then(|len| self.extension(len, false, depth)),
            Marker::Reserved => Err(MsgpackError::Marker),
            number => self.number(number),
        }
    }

    fn number(&mut self, marker: Marker) -> Result<Value, MsgpackError> {
        Ok(match marker {
            Marker::FixPos(number) => number.into(),
            Marker::FixNeg(number) => number.into(),
            Marker::U8 => u8::from_be_bytes(self.array()?).into(),
            Marker::U16 => u16::from_be_bytes(self.array()?).into(),
            Marker::U32 => u32::from_be_bytes(self.array()?).into(),
            Marker::U64 => u64::from_be_bytes(self.array()?).into(),
            Marker::I8 => i8::from_be_bytes(self.array()?).into(),
            Marker::I16 => i16::from_be_bytes(self.array()?).into(),
            Marker::I32 => i32::from_be_bytes(self.array()?).into(),
            Marker::I64 => i64::from_be_bytes(self.array()?).into(),
            Marker::F32 => f32::from_be_bytes(self.array()?).into(),
            Marker::F64 => f64::from_be_bytes(self.array()?).into(),
            _ => return Err(MsgpackError::Marker),
        })
    }

    fn text(&mut self, len: usize) -> Result<Value, MsgpackError> {
        Ok(Value::String(String::from_utf8_lossy(self.take(len)?).into_owned()))
    }

    fn binary(&mut self, len: usize) -> Result<Value, MsgpackError> {
        Ok(Value::Binary(Bytes::copy_from_slice(self.take(len)?)))
    }

    fn list(&mut self, len: usize, depth: usize) -> Result<Value, MsgpackError> {
        let depth = depth.checked_sub(1).ok_or(MsgpackError::TooDeep)?;
        let mut items = Vec::with_capacity(len.min(RESERVED_MAX));
        for _ in 0..len {
            items.push(self.value(depth)?);
        }
        Ok(Value::Array(items))
    }

    fn map(&mut self, len: usize, depth: usize) -> Result<Value, MsgpackError> {
        let depth = depth.checked_sub(1).ok_or(MsgpackError::TooDeep)?;
        let mut entries = Vec::with_capacity(len.min(RESERVED_MAX));
        for _ in 0..len {
            if let (key, Some(value)) = self.entry(depth)? {
                entries.push((key, value));
            }
        }
        drop_duplicates(&mut entries);
        Ok(Value::Object(entries))
    }

    /// A key of a map and its value; `None` for `undefined`. JSON leaves such keys out, notepack writes them.
    fn entry(&mut self, depth: usize) -> Result<(String, Option<Value>), MsgpackError> {
        let key = match self.value(0) {
            Ok(Value::String(key)) => key,
            Ok(Value::Number(key)) => key.to_string(),
            // Whatever is nested is no key.
            Ok(_) | Err(MsgpackError::TooDeep) => return Err(MsgpackError::Key),
            Err(error) => return Err(error),
        };
        if let [0xd4, 0, _, rest @ ..] = self.0 {
            self.0 = rest;
            return Ok((key, None));
        }
        Ok((key, Some(self.value(depth)?)))
    }

    /// A value of a type that MessagePack itself does not have; `fixed` if its length is that of its marker.
    fn extension(&mut self, len: usize, fixed: bool, depth: usize) -> Result<Value, MsgpackError> {
        let [kind] = self.array()?;
        let data = self.take(len)?;
        Ok(match (kind.cast_signed(), data) {
            (0, [_]) if fixed => Value::Null,
            (0, &[a, b, c, d, e, f, g, h]) if fixed => date(i64::from_be_bytes([a, b, c, d, e, f, g, h])),
            (0, data) => Value::Binary(Bytes::copy_from_slice(data)),
            (-1, data) => timestamp(data),
            _ if depth == 0 => return Err(MsgpackError::TooDeep),
            (kind, data) => Value::Array(vec![kind.into(), Bytes::copy_from_slice(data).into()]),
        })
    }
}

/// Entries of an array or a map that are reserved because they are announced. More come as they come.
const RESERVED_MAX: usize = 16;

/// The timestamps of the specification, of 32, 64 and 96 bits.
fn timestamp(data: &[u8]) -> Value {
    let (seconds, nanos) = match *data {
        [a, b, c, d] => (i64::from(u32::from_be_bytes([a, b, c, d])), 0),
        [a, b, c, d, e, f, g, h] => {
            let both = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            ((both & 0x3_ffff_ffff).cast_signed(), (both >> 34) as u32)
        }
        [n, a, o, s, a1, b, c, d, e, f, g, h] => {
            (i64::from_be_bytes([a1, b, c, d, e, f, g, h]), u32::from_be_bytes([n, a, o, s]))
        }
        _ => return Value::Null,
    };
    date(seconds.saturating_mul(1000).saturating_add(i64::from(nanos / 1_000_000)))
}

/// A date as JavaScript writes it in JSON, from the milliseconds since 1970; null beyond its range.
fn date(millis: i64) -> Value {
    const DAY: i64 = 86_400_000;
    // 100,000,000 days on either side.
    if millis.unsigned_abs() > 8_640_000_000_000_000 {
        return Value::Null;
    }
    let (days, millis) = (millis.div_euclid(DAY), millis.rem_euclid(DAY));
    // Years that begin in March, in eras of 400 years, from the first of March of the year 0.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        10.. => (era * 400 + year + 1, month - 9),
        _ => (era * 400 + year, month + 3),
    };
    let year = match year {
        0..=9999 => format!("{year:04}"),
        _ => format!("{year:+07}"),
    };
    let (seconds, millis) = (millis / 1000, millis % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    Value::String(format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"))
}

fn write_value(out: &mut Vec<u8>, value: &Value, depth: usize) -> Result<(), MsgpackError> {
    let deeper = || depth.checked_sub(1).ok_or(MsgpackError::TooDeep);
    match value {
        Value::Null => written(encode::write_nil(out)),
        Value::Bool(value) => written(encode::write_bool(out, *value)),
        Value::Number(number) => write_number(out, *number),
        Value::String(text) => write_str(out, text),
        Value::Binary(bytes) => {
            length(bytes.len())?;
            written(encode::write_bin(out, bytes))
        }
        Value::Array(items) => {
            let depth = deeper()?;
            written(encode::write_array_len(out, length(items.len())?))?;
            items.iter().try_for_each(|item| write_value(out, item, depth))
        }
        Value::Object(entries) => {
            let depth = deeper()?;
            write_map_len(out, entries.len())?;
            entries.iter().try_for_each(|(key, value)| {
                write_str(out, key)?;
                write_value(out, value, depth)
            })
        }
        Value::Deep(_) => Err(MsgpackError::TooDeep),
    }
}

/// The array of an event, with its name in front, or of an acknowledgement.
fn write_args(out: &mut Vec<u8>, name: Option<&str>, args: &[Value]) -> Result<(), MsgpackError> {
    written(encode::write_array_len(out, length(args.len() + usize::from(name.is_some()))?))?;
    if let Some(name) = name {
        write_str(out, name)?;
    }
    args.iter().try_for_each(|arg| write_value(out, arg, MAX_DEPTH))
}

fn write_number(out: &mut Vec<u8>, number: Number) -> Result<(), MsgpackError> {
    match number {
        Number::I64(number) => written(encode::write_sint(out, number)),
        Number::U64(number) => written(encode::write_uint(out, number)),
        Number::F64(number) => written(encode::write_f64(out, number)),
    }
}

fn write_str(out: &mut Vec<u8>, text: &str) -> Result<(), MsgpackError> {
    length(text.len())?;
    written(encode::write_str(out, text))
}

fn write_map_len(out: &mut Vec<u8>, len: usize) -> Result<(), MsgpackError> {
    written(encode::write_map_len(out, length(len)?))
}

/// A length as the format has it.
fn length(len: usize) -> Result<u32, MsgpackError> {
    u32::try_from(len).map_err(|_| MsgpackError::TooLong)
}

/// Writing to memory does not fail.
fn written<T, E>(result: Result<T, E>) -> Result<(), MsgpackError> {
    result.map(drop).map_err(|_| MsgpackError::TooLong)
}

/// Takes the name from the front of an event's array.
fn event(mut args: Vec<Value>) -> Result<Body, SioError> {
    if args.is_empty() {
        return Err(SioError::Payload);
    }
    let name = match args.remove(0) {
        Value::String(name) => EventName::from(name),
        Value::Number(number) => EventName::from(number),
        _ => return Err(SioError::EventName),
    };
    Ok(Body::Event { name: allowed(name)?, args })
}

#[cfg(test)]
mod tests;
