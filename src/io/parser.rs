//! Other ways to write packets than the default one.

use std::fmt::Debug;

use bytes::Bytes;

use super::Failure;
use crate::engine::Message;
use crate::protocol::sio::{Limits, Packet};

/// Writes and reads packets in another form than that of the protocol: the reference's `parser` option. The
/// clients need the same. One parser serves a whole server: see [`Options::parser`](super::Options::parser).
///
/// What is emitted is turned into [`Value`](super::Value)s first, and then encoded once for all who get it.
/// Both methods are called on any thread, and must not block.
///
/// ```
/// use serde_json::json;
/// use sockring::engine::Message;
/// use sockring::io::{Encoded, Failure, PacketDecoder, Parser};
/// use sockring::protocol::sio::{Body, Limits, Packet, Value};
///
/// /// `["chat","hello"]`: events of the main namespace, and nothing else.
/// #[derive(Debug)]
/// struct Lines;
///
/// impl Parser for Lines {
///     fn encode(&self, packet: &Packet) -> Result<Vec<Encoded>, Failure> {
///         let line = match &packet.body {
///             Body::Connect(_) => json!(["connected"]),
///             Body::Event { name, args } => json!([name.as_str(), args]),
///             _ => return Err(Failure::new("there is no such line")),
///         };
///         Ok(vec![Encoded::Text(line.to_string())])
///     }
///
///     fn decoder(&self, _: &Limits) -> Box<dyn PacketDecoder> {
///         Box::new(Reader)
///     }
/// }
///
/// struct Reader;
///
/// impl PacketDecoder for Reader {
///     fn add(&mut self, message: Message<'_>) -> Result<Option<Packet>, Failure> {
///         let Message::Text(line) = message else { return Err(Failure::new("bytes are no line")) };
///         let (name, args) = serde_json::from_str::<(String, Vec<Value>)>(line).map_err(|e| e.to_string())?;
///         Ok(Some(Packet::new("/", None, Body::Event { name: name.into(), args })))
///     }
/// }
///
/// let options = sockring::io::Options { parser: Some(std::sync::Arc::new(Lines)), ..Default::default() };
/// ```
pub trait Parser: Debug + Send + Sync {
    /// Writes a packet as the messages that carry it: one at least.
    ///
    /// # Errors
    ///
    /// Why there is no form for it; whoever emits gets it as [`EncodeError::Parser`](super::EncodeError).
    fn encode(&self, packet: &Packet) -> Result<Vec<Encoded>, Failure>;

    /// What reads the messages of one client, and what [`encode`](Self::encode) makes.
    fn decoder(&self, limits: &Limits) -> Box<dyn PacketDecoder>;
}

/// Puts the packets of one client together.
///
/// ```
/// use sockring::engine::Message;
/// use sockring::io::{Failure, PacketDecoder};
/// use sockring::protocol::sio::{Body, Packet};
///
/// /// Each text is an event without arguments.
/// struct Names;
/// impl PacketDecoder for Names {
///     fn add(&mut self, message: Message<'_>) -> Result<Option<Packet>, Failure> {
///         let Message::Text(name) = message else { return Err(Failure::new("bytes are no name")) };
///         Ok(Some(Packet::new("/", None, Body::Event { name: name.into(), args: Vec::new() })))
///     }
/// }
/// ```
pub trait PacketDecoder {
    /// Takes a message, and gives the packet that is whole with it. Its size is limited already
    /// (`max_http_buffer_size`); its values must nest no deeper than [`Limits::depth`], since what is done
    /// with them later costs stack.
    ///
    /// # Errors
    ///
    /// What the client has done wrong: its `error` handlers are told, and its connection is closed. So it
    /// is if this panics, and for an event with a reserved name, which no decoder needs to look for.
    fn add(&mut self, message: Message<'_>) -> Result<Option<Packet>, Failure>;
}

/// A message of Engine.IO, to be sent.
///
/// ```
/// use sockring::io::Encoded;
/// let messages = [Encoded::Text("a line".into()), Encoded::Binary(vec![1, 2].into())];
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Bytes),
}

/// Packets as MessagePack: the counterpart of npm's `socket.io-msgpack-parser`, versions 3. Each packet is
/// one binary message, smaller than JSON with its attachments where there is binary. Dates that clients send
/// are text, as with the default parser.
///
/// ```
/// use std::sync::Arc;
/// use sockring::io::{MsgpackParser, Options};
/// let options = Options { parser: Some(Arc::new(MsgpackParser)), ..Options::default() };
/// ```
#[cfg(feature = "msgpack")]
#[derive(Clone, Copy, Debug, Default)]
pub struct MsgpackParser;

#[cfg(feature = "msgpack")]
mod msgpack {
    use super::{Encoded, Failure, Limits, Message, MsgpackParser, Packet, PacketDecoder, Parser};
    use crate::protocol::sio::msgpack::{decode, encode};

    impl Parser for MsgpackParser {
        fn encode(&self, packet: &Packet) -> Result<Vec<Encoded>, Failure> {
            let message = encode(packet).map_err(|error| Failure::new(error.to_string()))?;
            Ok(vec![Encoded::Binary(message.into())])
        }

        fn decoder(&self, limits: &Limits) -> Box<dyn PacketDecoder> {
            Box::new(Decoder { depth: limits.depth })
        }
    }

    struct Decoder {
        depth: usize,
    }

    impl PacketDecoder for Decoder {
        fn add(&mut self, message: Message<'_>) -> Result<Option<Packet>, Failure> {
            match message {
                Message::Binary(message) => match decode(message, self.depth) {
                    Ok(packet) => Ok(Some(packet)),
                    Err(error) => Err(Failure::new(error.to_string())),
                },
                Message::Text(_) => Err(Failure::new("the client sent text, which no packet is")),
            }
        }
    }
}
