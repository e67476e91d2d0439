//! Socket.IO v5: packets of namespaces, events, acknowledgements and binary in the midst of JSON.
//!
//! * [`value`]: JSON plus binary, what arguments are made of until they get a type.
//! * [`json`]: parsing it, with limits, and [`deep`]: what nests beyond them.
//! * [`packet`]: packets and their parts.
//! * [`decode`]: Engine.IO messages to packets, attachments put back in place.
//! * [`encode`]: typed arguments to the wire, attachments taken out.
//! * `msgpack`: whole packets as MessagePack instead, with the feature of that name.
//! * [`args`]: argument lists to types.
//!
//! **The argument rule**, both ways: a tuple is the list of arguments, `()` an empty one, and anything else
//! is one argument: an array, a tuple struct, `None` and [`Value::Null`] too. See [`args`].
//!
//! ```
//! use sockring::protocol::sio::{self, Body, Decoder, Limits, Parser};
//!
//! let encoded = sio::event("/", None, "chat", &("hello", 42))?;
//! assert_eq!(encoded.text, br#"2["chat","hello",42]"#);
//!
//! let text = String::from_utf8(encoded.text)?;
//! let packet = Decoder::new().text(&text, &mut Parser::new(), &Limits::default())?.expect("a whole packet");
//! let Body::Event { name, args } = packet.body else { panic!("not an event") };
//! assert_eq!(&*name, "chat");
//! assert_eq!(sio::from_args::<(String, i32)>(&args)?, ("hello".to_owned(), 42));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod args;
pub mod decode;
pub mod deep;
pub mod encode;
pub mod json;
#[cfg(feature = "msgpack")]
pub mod msgpack;
pub mod packet;
mod read;
pub mod value;

pub use args::{ArgsError, from_args};
pub use decode::{Decoder, Limits, SioError};
pub use deep::DeepJson;
pub use encode::{
    EncodeError, Encoded, ack, connect, connect_error, connect_v2, disconnect, error_v2, event, to_args,
    to_value,
};
pub use json::{JsonError, MAX_DEPTH, Parser};
pub use packet::{AckId, Body, EventName, Kind, MAX_ACK_ID, NspName, Packet, is_reserved};
pub use value::{Number, Value};
