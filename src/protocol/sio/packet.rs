//! Packets and their parts (socket.io-protocol v5, "Packet encoding").

use std::borrow::Borrow;
use std::fmt::{self, Debug, Display};
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use compact_str::CompactString;

use super::value::{Number, Value};

/// The number that ties an acknowledgement to its event.
pub type AckId = u64;

/// The largest acknowledgement id: beyond 2^53 - 1, JavaScript cannot tell neighbours apart.
pub const MAX_ACK_ID: AckId = (1 << 53) - 1;

/// The type of a packet, written as one digit.
///
/// ```
/// use sockring::protocol::sio::Kind;
///
/// assert_eq!(Kind::from_digit(b'5'), Some(Kind::BinaryEvent));
/// assert!(Kind::BinaryEvent.has_attachments());
/// assert_eq!(Kind::Event.digit(), b'2');
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// `0`: joins a namespace.
    Connect = b'0',
    /// `1`: leaves it.
    Disconnect = b'1',
    /// `2`: an event.
    Event = b'2',
    /// `3`: an acknowledgement.
    Ack = b'3',
    /// `4`: the server refuses a namespace.
    ConnectError = b'4',
    /// `5`: an event with attachments.
    BinaryEvent = b'5',
    /// `6`: an acknowledgement with attachments.
    BinaryAck = b'6',
}

impl Kind {
    /// The type of an ASCII digit.
    #[must_use]
    pub fn from_digit(digit: u8) -> Option<Self> {
        Some(match digit {
            b'0' => Self::Connect,
            b'1' => Self::Disconnect,
            b'2' => Self::Event,
            b'3' => Self::Ack,
            b'4' => Self::ConnectError,
            b'5' => Self::BinaryEvent,
            b'6' => Self::BinaryAck,
            _ => return None,
        })
    }

    /// The digit on the wire, in ASCII.
    #[must_use]
    pub fn digit(self) -> u8 {
        self as u8
    }

    /// Whether binary messages follow the packet.
    #[must_use]
    pub fn has_attachments(self) -> bool {
        matches!(self, Self::BinaryEvent | Self::BinaryAck)
    }
}

/// The name of a namespace. The main one, `/`, costs no allocation.
///
/// Hashes and compares like the `str` it stands for, so that a map can be asked with either.
///
/// ```
/// use sockring::protocol::sio::NspName;
///
/// assert_eq!(NspName::from(""), NspName::default());
/// assert_eq!(&*NspName::default(), "/");
/// assert_eq!(NspName::from("chat").as_str(), "/chat");
/// ```
#[derive(Clone, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct NspName(Option<Box<str>>);

impl NspName {
    /// The name, with its slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or("/")
    }

    /// Whether this is `/`.
    #[must_use]
    pub fn is_main(&self) -> bool {
        self.0.is_none()
    }
}

impl From<&str> for NspName {
    /// Takes the name with its slash or without; the empty name is `/`.
    fn from(name: &str) -> Self {
        match name {
            "" | "/" => Self(None),
            name if name.starts_with('/') => Self(Some(name.into())),
            name => Self(Some(format!("/{name}").into_boxed_str())),
        }
    }
}

impl Deref for NspName {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for NspName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl Hash for NspName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl PartialEq<str> for NspName {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for NspName {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl Display for NspName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl Debug for NspName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Debug::fmt(self.as_str(), f)
    }
}

/// The name of an event. On the wire it may also be a number, which is kept as its decimal text.
///
/// ```
/// use sockring::protocol::sio::EventName;
///
/// let name = EventName::from("chat");
/// assert_eq!(name, "chat");
/// assert_eq!(name.len(), 4);
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventName(CompactString);

impl EventName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for EventName {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl From<Number> for EventName {
    /// The number in decimal, or `Infinity` or `-Infinity`, which no JSON can say but `1e400` is.
    fn from(name: Number) -> Self {
        match name {
            Number::F64(name) if name == f64::INFINITY => "Infinity".into(),
            Number::F64(name) if name == f64::NEG_INFINITY => "-Infinity".into(),
            name => name.to_string().into(),
        }
    }
}

impl From<String> for EventName {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl Deref for EventName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for EventName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Hash for EventName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl PartialEq<str> for EventName {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl PartialEq<&str> for EventName {
    fn eq(&self, other: &&str) -> bool {
        &*self.0 == *other
    }
}

impl Display for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl Debug for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Debug::fmt(self.as_str(), f)
    }
}

/// A whole packet, from a client, or for one where the parser is not the default one.
///
/// ```
/// use sockring::protocol::sio::{Body, Decoder, Limits, Parser};
///
/// let (mut decoder, mut parser) = (Decoder::new(), Parser::new());
/// let packet = decoder.text("2/chat,7[\"a\"]", &mut parser, &Limits::default())?.expect("a whole packet");
/// assert_eq!((packet.nsp.as_str(), packet.id), ("/chat", Some(7)));
/// assert_eq!(packet.body, Body::Event { name: "a".into(), args: vec![] });
/// # Ok::<(), sockring::protocol::sio::SioError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    /// The namespace, without a query.
    pub nsp: NspName,
    /// What followed `?` in the namespace, as sent. Clients of Socket.IO v2 put it there; v4 clients do not.
    pub query: Option<Box<str>>,
    /// The acknowledgement id.
    pub id: Option<AckId>,
    /// The rest.
    pub body: Body,
}

impl Packet {
    /// A packet in the namespace of this name, from which a query is taken off.
    ///
    /// ```
    /// use sockring::protocol::sio::{Body, Packet};
    ///
    /// let packet = Packet::new("/chat?token=1", None, Body::Disconnect);
    /// assert_eq!((packet.nsp.as_str(), packet.query.as_deref()), ("/chat", Some("token=1")));
    /// ```
    #[must_use]
    pub fn new(nsp: &str, id: Option<AckId>, body: Body) -> Self {
        let (name, query) = nsp.split_once('?').map_or((nsp, None), |(name, query)| (name, Some(query)));
        Self { nsp: name.into(), query: query.map(Into::into), id, body }
    }
}

/// What a packet says. The binary kinds are not told apart: their attachments are back in place.
///
/// ```
/// use sockring::protocol::sio::{Body, Decoder, Limits, Parser};
///
/// let (mut decoder, mut parser) = (Decoder::new(), Parser::new());
/// let packet = decoder.text("0{\"token\":1}", &mut parser, &Limits::default())?.expect("a whole packet");
/// let Body::Connect(Some(auth)) = packet.body else { panic!("no auth") };
/// assert_eq!(auth.get("token").and_then(|token| token.as_i64()), Some(1));
/// # Ok::<(), sockring::protocol::sio::SioError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// The client wants into the namespace; an object with what it says about itself, if it says anything. Of
    /// the server: the client is in; an object with the `sid` of its socket, and the `pid` if it has one.
    Connect(Option<Value>),
    /// The client leaves the namespace, or has to.
    Disconnect,
    /// An event.
    Event {
        /// Its name, never a reserved one.
        name: EventName,
        /// The arguments after the name.
        args: Vec<Value>,
    },
    /// The answer to an event of ours.
    Ack(Vec<Value>),
    /// The server refuses a namespace; an object with a `message`, and `data` if there is any. A client has
    /// no reason to send it, but the grammar allows it: a string, an object or `null` if absent.
    ConnectError(Value),
}

/// Whether a name may not be used for events, by either side: `connect`, `connect_error`, `disconnect`,
/// `disconnecting`, `newListener`, `removeListener`.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    matches!(
        name,
        "connect" | "connect_error" | "disconnect" | "disconnecting" | "newListener" | "removeListener"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn names_can_be_looked_up_by_text() {
        let map: HashMap<NspName, i32> = [("/", 1), ("/a", 2)].map(|(name, n)| (name.into(), n)).into();
        assert_eq!((map.get("/"), map.get("/a"), map.get("/b")), (Some(&1), Some(&2), None));
        let map: HashMap<EventName, i32> = [("a".into(), 1)].into();
        assert_eq!(map.get("a"), Some(&1));
        assert_eq!(format!("{} {:?}", NspName::from("/x"), EventName::from("y")), "/x \"y\"");
        assert_eq!(size_of::<NspName>(), 16);
    }

    #[test]
    fn digits() {
        for digit in 0..=255u8 {
            assert_eq!(
                Kind::from_digit(digit).map(Kind::digit),
                (b'0'..=b'6').contains(&digit).then_some(digit)
            );
        }
    }
}
