//! Engine.IO v4 (protocol 4.1): packets, and the payloads that carry several of them through HTTP.
//!
//! A packet is one message of the transport: a WebSocket frame, or a piece of a polling body between
//! separators. Binary packets are always messages; over polling they travel as `b` and base64.
//!
//! Engine.IO v3, which clients of Socket.IO v2 speak, has other payloads and a type before binary: that is
//! [`v3`], with the same [`Packet`]. A [`Dialect`] says which of the two a session speaks.
//!
//! ```
//! use sockring::protocol::eio::{self, Packet, PacketType};
//!
//! let packets: Vec<_> = eio::decode_payload("2\u{1e}4hello").collect::<Result<_, _>>()?;
//! assert_eq!(packets[1], Packet::Text { kind: PacketType::Message, data: "hello" });
//! # Ok::<(), eio::EioError>(())
//! ```

mod dialect;
pub mod packet;
pub mod payload;
pub mod v3;

pub use dialect::{Dialect, Revision};

pub use packet::{EioError, Open, Packet, PacketType, decode_text, write_base64, write_text};
pub use payload::{SEPARATOR, decode_payload, next_packet};
