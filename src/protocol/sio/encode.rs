//! Typed arguments to the wire (socket.io-protocol v5, "Packet encoding").

use std::fmt;
use std::io;

use bytes::Bytes;
use serde::Serialize;
use serde::ser::{Impossible, Serializer};
use serde_json::ser::Formatter;
use thiserror::Error;

use super::args::{ARGS, is_tuple};
use super::decode::put_back;
use super::json::{MAX_DEPTH, Parser};
use super::packet::{Kind, is_reserved};
use super::value::Value;
use crate::limits;

/// Room that a packet's text gets from the start: most need no more.
const TEXT_BYTES: usize = 128;

/// What one packet is on the wire: a text message, then a binary message for each attachment.
///
/// ```
/// use bytes::Bytes;
/// use sockring::protocol::sio;
///
/// let encoded = sio::event("/", None, "file", &("a.txt", Bytes::from_static(b"abc")))?;
/// assert_eq!(encoded.text, br#"51-["file","a.txt",{"_placeholder":true,"num":0}]"#);
/// assert_eq!(encoded.attachments, [&b"abc"[..]]);
/// # Ok::<(), sio::EncodeError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoded {
    /// The text, without the `4` of Engine.IO.
    pub text: Vec<u8>,
    /// The attachments, in order.
    pub attachments: Vec<Bytes>,
}

impl Encoded {
    /// Nothing yet; allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { text: Vec::new(), attachments: Vec::new() }
    }

    /// What [`event`] makes, in the place of what was there, so that the memory is used again. After an
    /// error it holds nothing of use.
    ///
    /// # Errors
    ///
    /// As [`event`].
    ///
    /// ```
    /// use sockring::protocol::sio::Encoded;
    ///
    /// let mut encoded = Encoded::default();
    /// encoded.set_event("/", None, "a", &1)?;
    /// encoded.set_event("/", Some(3), "b", &2)?;
    /// assert_eq!(encoded.text, br#"23["b",2]"#);
    /// # Ok::<(), sockring::protocol::sio::EncodeError>(())
    /// ```
    pub fn set_event<T: Serialize + ?Sized>(
        &mut self,
        nsp: &str,
        id: Option<u64>,
        name: &str,
        args: &T,
    ) -> Result<(), EncodeError> {
        if is_reserved(name) {
            return Err(EncodeError::ReservedEvent);
        }
        self.encode(Kind::Event, nsp, id, Some(name), args)
    }

    /// What [`ack`] makes, in the place of what was there.
    ///
    /// # Errors
    ///
    /// As [`ack`].
    pub fn set_ack<T: Serialize + ?Sized>(
        &mut self,
        nsp: &str,
        id: u64,
        args: &T,
    ) -> Result<(), EncodeError> {
        self.encode(Kind::Ack, nsp, Some(id), None, args)
    }

    /// Adds an argument to an event, behind all others: the offset of connection state recovery.
    ///
    /// ```
    /// use sockring::protocol::sio;
    /// let mut encoded = sio::event("/", None, "a", &1)?;
    /// encoded.push("AAAA");
    /// assert_eq!(encoded.text, br#"2["a",1,"AAAA"]"#);
    /// # Ok::<(), sio::EncodeError>(())
    /// ```
    pub fn push(&mut self, argument: &str) {
        self.text.pop();
        self.text.push(b',');
        json(&mut self.text, argument);
        self.text.push(b']');
    }

    /// Writes a packet in the place of what was there.
    fn encode<T: Serialize + ?Sized>(
        &mut self,
        kind: Kind,
        nsp: &str,
        id: Option<u64>,
        name: Option<&str>,
        args: &T,
    ) -> Result<(), EncodeError> {
        let Self { text, attachments } = self;
        text.clear();
        text.reserve(TEXT_BYTES);
        attachments.clear();
        write_head(text, kind, nsp, id);
        text.push(b'[');
        if let Some(name) = name {
            json(text, name);
        }
        let start = text.len();
        match Shape::of(args) {
            Shape::Nothing => text.push(b']'),
            Shape::List => {
                write(text, attachments, args)?;
                // The tuple wrote an array of its own. Its closing bracket is that of the packet; its opening
                // one becomes the comma behind the name, or goes.
                let empty = text.get(start + 1) == Some(&b']');
                match text.get_mut(start) {
                    Some(bracket) if name.is_some() && !empty => *bracket = b',',
                    _ => drop(text.remove(start)),
                }
            }
            Shape::One => {
                if name.is_some() {
                    text.push(b',');
                }
                write(text, attachments, args)?;
                text.push(b']');
            }
        }
        if !attachments.is_empty() {
            // Only now is it known that this is a binary packet. They are rare; moving the text is cheaper
            // than looking for binary beforehand every time.
            let kind = if kind == Kind::Event { Kind::BinaryEvent } else { Kind::BinaryAck };
            let count = format!("{}{}-", char::from(kind.digit()), attachments.len());
            text.splice(..1, count.into_bytes());
        }
        Ok(())
    }
}

/// Arguments that cannot be put on the wire. The application is at fault.
///
/// ```
/// use sockring::protocol::sio::{self, EncodeError};
///
/// assert!(matches!(sio::event("/", None, "disconnect", &()), Err(EncodeError::ReservedEvent)));
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A name that [`is_reserved`].
    #[error("the application emitted a reserved event name")]
    ReservedEvent,
    /// A value that has no form in JSON: a map whose keys are not strings, or an error of its own
    /// `Serialize`.
    #[error("the application's arguments cannot be written as json: {0}")]
    Json(#[from] serde_json::Error),
    /// Only from [`to_value`]: the value has binary beside what looks like a placeholder for none.
    #[error("the application's value cannot be held: it contains a placeholder")]
    Value,
    /// Text and attachments together have more bytes than
    /// [`limits::PACKET_BYTES`].
    #[error("the application's packet is too large")]
    TooLarge,
    /// A parser that is not the default one has refused the packet.
    #[error("the parser cannot write the packet: {0}")]
    Parser(Box<str>),
}

/// Encodes an event. `nsp` with its slash, without `,` or `?`. Of `args`, a tuple is the argument list, `()`
/// an empty one, anything else one argument (see [`args`](super::args)). Anything that serialises as bytes
/// becomes an attachment.
///
/// # Errors
///
/// An [`EncodeError`] if the name is reserved, the arguments have no form in JSON, or the packet is too
/// large.
///
/// ```
/// use sockring::protocol::sio;
///
/// assert_eq!(sio::event("/", None, "a", &("x", 1))?.text, br#"2["a","x",1]"#);
/// assert_eq!(sio::event("/b", Some(3), "a", &vec![1, 2])?.text, br#"2/b,3["a",[1,2]]"#);
/// assert_eq!(sio::event("/", None, "a", &[1.5, 2.5])?.text, br#"2["a",[1.5,2.5]]"#);
/// assert_eq!(sio::event("/", None, "a", &None::<u8>)?.text, br#"2["a",null]"#);
/// assert_eq!(sio::event("/", None, "a", &())?.text, br#"2["a"]"#);
/// # Ok::<(), sio::EncodeError>(())
/// ```
pub fn event<T: Serialize + ?Sized>(
    nsp: &str,
    id: Option<u64>,
    name: &str,
    args: &T,
) -> Result<Encoded, EncodeError> {
    let mut encoded = Encoded::default();
    encoded.set_event(nsp, id, name, args)?;
    Ok(encoded)
}

/// Encodes the acknowledgement of the event with this id; the arguments as in [`event`].
///
/// # Errors
///
/// An [`EncodeError`] if the arguments have no form in JSON, or the packet is too large.
///
/// ```
/// use sockring::protocol::sio;
///
/// assert_eq!(sio::ack("/", 12, &(true, "x"))?.text, br#"312[true,"x"]"#);
/// # Ok::<(), sio::EncodeError>(())
/// ```
pub fn ack<T: Serialize + ?Sized>(nsp: &str, id: u64, args: &T) -> Result<Encoded, EncodeError> {
    let mut encoded = Encoded::default();
    encoded.set_ack(nsp, id, args)?;
    Ok(encoded)
}

/// The answer to a CONNECT: the id of the socket, and the private id if the connection can be recovered.
///
/// ```
/// use sockring::protocol::sio;
///
/// assert_eq!(sio::connect("/chat", "abc", None), br#"0/chat,{"sid":"abc"}"#);
/// assert_eq!(sio::connect("/", "abc", Some("def")), br#"0{"sid":"abc","pid":"def"}"#);
/// ```
#[must_use]
pub fn connect(nsp: &str, sid: &str, pid: Option<&str>) -> Vec<u8> {
    let mut text = head(Kind::Connect, nsp, None);
    text.extend_from_slice(b"{\"sid\":");
    json(&mut text, sid);
    if let Some(pid) = pid {
        text.extend_from_slice(b",\"pid\":");
        json(&mut text, pid);
    }
    text.push(b'}');
    text
}

/// A DISCONNECT.
///
/// ```
/// assert_eq!(sockring::protocol::sio::disconnect("/chat"), b"1/chat,");
/// ```
#[must_use]
pub fn disconnect(nsp: &str) -> Vec<u8> {
    head(Kind::Disconnect, nsp, None)
}

/// The refusal of a CONNECT. Binary in `data` is written as an array of numbers: this type of packet has no
/// attachments.
///
/// ```
/// use sockring::protocol::sio;
///
/// let text = sio::connect_error("/", "not you", Some(&7.into()));
/// assert_eq!(text, br#"4{"message":"not you","data":7}"#);
/// ```
#[must_use]
pub fn connect_error(nsp: &str, message: &str, data: Option<&Value>) -> Vec<u8> {
    let mut text = head(Kind::ConnectError, nsp, None);
    text.extend_from_slice(b"{\"message\":");
    json(&mut text, message);
    if let Some(data) = data {
        text.extend_from_slice(b",\"data\":");
        json(&mut text, data);
    }
    text.push(b'}');
    text
}

/// The answer to a CONNECT for clients of Socket.IO v2: they know the id of their socket.
///
/// ```
/// assert_eq!(sockring::protocol::sio::connect_v2("/chat"), b"0/chat,");
/// ```
#[must_use]
pub fn connect_v2(nsp: &str) -> Vec<u8> {
    head(Kind::Connect, nsp, None)
}

/// The refusal of a namespace for clients of Socket.IO v2: what their `error` event brings, of any type.
///
/// ```
/// use sockring::protocol::sio::{self, Value};
///
/// assert_eq!(sio::error_v2("/", &Value::from("not you")), br#"4"not you""#);
/// ```
#[must_use]
pub fn error_v2(nsp: &str, error: &Value) -> Vec<u8> {
    let mut text = head(Kind::ConnectError, nsp, None);
    json(&mut text, error);
    text
}

/// Turns any type into a [`Value`], bytes into [`Value::Binary`].
///
/// # Errors
///
/// An [`EncodeError`] if it has no form in JSON, is too large, or has binary beside an object that looks like
/// a placeholder for none. What nests deeper than [`MAX_DEPTH`] is [`Value::Deep`].
///
/// ```
/// use sockring::protocol::sio::{self, Value};
///
/// assert_eq!(sio::to_value(&vec![1, 2])?, Value::from(vec![1, 2]));
/// # Ok::<(), sio::EncodeError>(())
/// ```
pub fn to_value<T: Serialize + ?Sized>(value: &T) -> Result<Value, EncodeError> {
    let (mut text, mut attachments) = (Vec::new(), Vec::new());
    write(&mut text, &mut attachments, value)?;
    let text = String::from_utf8(text).map_err(|_| EncodeError::Value)?;
    let mut value = Parser::new().parse(&text, MAX_DEPTH).map_err(|_| EncodeError::Value)?;
    if !attachments.is_empty() {
        put_back(&mut value, &attachments, &mut { usize::MAX }).map_err(|_| EncodeError::Value)?;
    }
    Ok(value)
}

/// Turns arguments into a list of [`Value`]s, by the rule of [`event`].
///
/// # Errors
///
/// As [`to_value`].
///
/// ```
/// use sockring::protocol::sio::{self, Value};
///
/// assert_eq!(sio::to_args(&("a", 1))?, [Value::from("a"), Value::from(1)]);
/// assert_eq!(sio::to_args(&vec![1])?, [Value::from(vec![1])]);
/// assert!(sio::to_args(&())?.is_empty());
/// # Ok::<(), sio::EncodeError>(())
/// ```
pub fn to_args<T: Serialize + ?Sized>(args: &T) -> Result<Vec<Value>, EncodeError> {
    match Shape::of(args) {
        Shape::Nothing => Ok(Vec::new()),
        Shape::List => match to_value(args)? {
            Value::Array(list) => Ok(list),
            other => Ok(vec![other]),
        },
        Shape::One => Ok(vec![to_value(args)?]),
    }
}

/// `<type>[/nsp,][<id>]`.
fn head(kind: Kind, nsp: &str, id: Option<u64>) -> Vec<u8> {
    let mut text = Vec::with_capacity(TEXT_BYTES);
    write_head(&mut text, kind, nsp, id);
    text
}

fn write_head(text: &mut Vec<u8>, kind: Kind, nsp: &str, id: Option<u64>) {
    text.push(kind.digit());
    if nsp != "/" && !nsp.is_empty() {
        text.extend_from_slice(nsp.as_bytes());
        text.push(b',');
    }
    if let Some(id) = id {
        json(text, &id);
    }
}

/// Appends what cannot fail: strings, numbers and [`Value`]s, whose keys are strings, to memory.
pub(super) fn json<T: Serialize + ?Sized>(text: &mut Vec<u8>, value: &T) {
    let _ = serde_json::to_writer(text, value);
}

fn write<T: Serialize + ?Sized>(
    text: &mut Vec<u8>,
    attachments: &mut Vec<Bytes>,
    value: &T,
) -> Result<(), EncodeError> {
    let left = limits::PACKET_BYTES;
    let mut writer =
        serde_json::Serializer::with_formatter(Bounded { text, left }, TakeOut { attachments, left });
    value
        .serialize(&mut writer)
        .map_err(|error| if error.is_io() { EncodeError::TooLarge } else { error.into() })?;
    let bytes = attachments.iter().map(Bytes::len).sum::<usize>();
    if bytes.saturating_add(text.len()) > limits::PACKET_BYTES { Err(EncodeError::TooLarge) } else { Ok(()) }
}

/// Text that ends at a limit: an error before it is too large, and not after.
struct Bounded<'a> {
    text: &'a mut Vec<u8>,
    left: usize,
}

impl io::Write for Bounded<'_> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.write_all(part).map(|()| part.len())
    }

    fn write_all(&mut self, part: &[u8]) -> io::Result<()> {
        spend(&mut self.left, part.len())?;
        self.text.extend_from_slice(part);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes `bytes` out of what is left.
fn spend(left: &mut usize, bytes: usize) -> io::Result<()> {
    *left = left.checked_sub(bytes).ok_or(io::ErrorKind::FileTooLarge)?;
    Ok(())
}

/// Writes compact JSON with placeholders where bytes are, and keeps the bytes.
struct TakeOut<'a> {
    attachments: &'a mut Vec<Bytes>,
    left: usize,
}

impl Formatter for TakeOut<'_> {
    fn write_byte_array<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: &[u8]) -> io::Result<()> {
        spend(&mut self.left, value.len())?;
        write!(writer, "{{\"_placeholder\":true,\"num\":{}}}", self.attachments.len())?;
        self.attachments.push(Bytes::copy_from_slice(value));
        Ok(())
    }
}

/// How arguments are written: see [`args`](super::args).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Nothing,
    List,
    One,
}

impl Shape {
    fn of<T: Serialize + ?Sized>(args: &T) -> Self {
        match args.serialize(Probe) {
            Err(Call::Args) => Self::List,
            Err(Call::Tuple) if is_tuple::<T>() => Self::List,
            Err(Call::Unit) if is_tuple::<T>() => Self::Nothing,
            _ => Self::One,
        }
    }
}

/// The first call that a type makes to be serialised.
#[derive(Debug)]
enum Call {
    Unit,
    Tuple,
    /// That of a list of arguments which is no tuple.
    Args,
    Other,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the shape of a value")
    }
}

impl std::error::Error for Call {}

impl serde::ser::Error for Call {
    /// A type whose `Serialize` fails at once: writing it will fail again, and say so.
    fn custom<M: fmt::Display>(_: M) -> Self {
        Self::Other
    }
}

/// Serialises nothing; its "error" is the first call of what it was given. Looking ahead like this keeps the
/// text writer that of `serde_json`, instead of a second one in front of it.
struct Probe;

macro_rules! one {
    ($($method:ident($($kind:ty),*);)*) => {$(
        fn $method(self $(, _: $kind)*) -> Result<Self::Ok, Call> {
            Err(Call::Other)
        }
    )*};
}

impl Serializer for Probe {
    type Ok = ();
    type Error = Call;
    type SerializeSeq = Impossible<(), Call>;
    type SerializeTuple = Impossible<(), Call>;
    type SerializeTupleStruct = Impossible<(), Call>;
    type SerializeTupleVariant = Impossible<(), Call>;
    type SerializeMap = Impossible<(), Call>;
    type SerializeStruct = Impossible<(), Call>;
    type SerializeStructVariant = Impossible<(), Call>;

    one! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_i128(i128);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_u128(u128);
        serialize_f32(f32);
        serialize_f64(f64);
        serialize_char(char);
        serialize_str(&str);
        serialize_bytes(&[u8]);
        serialize_none();
        serialize_unit_variant(&'static str, u32, &'static str);
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<(), Call> {
        Err(Call::Other)
    }

    fn serialize_unit(self) -> Result<(), Call> {
        Err(Call::Unit)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Call> {
        Err(Call::Other)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, _: &T) -> Result<(), Call> {
        Err(Call::Other)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), Call> {
        Err(Call::Other)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self::SerializeSeq, Call> {
        Err(Call::Other)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, Call> {
        Err(Call::Tuple)
    }

    fn serialize_tuple_struct(
        self,
        name: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleStruct, Call> {
        Err(if name == ARGS { Call::Args } else { Call::Other })
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Call> {
        Err(Call::Other)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, Call> {
        Err(Call::Other)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeStruct, Call> {
        Err(Call::Other)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Call> {
        Err(Call::Other)
    }

    /// The default would format the text, only to throw it away.
    fn collect_str<T: fmt::Display + ?Sized>(self, _: &T) -> Result<(), Call> {
        Err(Call::Other)
    }
}

#[cfg(test)]
mod tests;
