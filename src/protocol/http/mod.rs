//! HTTP/1.1 as a Socket.IO server needs it (RFC 9112): request heads in, chunked bodies in, response heads
//! out.
//!
//! The parser is strict where leniency has led to request smuggling: bare LF and CR, folded lines, spaces
//! before the colon, doubled `Content-Length`, `Transfer-Encoding` next to `Content-Length`, more than one
//! `Host`. No client of Socket.IO and no common proxy sends any of these.
//!
//! ```
//! use sockring::protocol::http::{Framing, Head, HeadLimits};
//!
//! let bytes = b"GET /socket.io/?EIO=4 HTTP/1.1\r\nHost: example.org\r\n\r\nnext";
//! let (head, used) = Head::parse(bytes, &HeadLimits::default())?.expect("a whole head");
//! assert_eq!((head.path(), head.query()), ("/socket.io/", "EIO=4"));
//! assert_eq!(head.framing(), Framing::None);
//! assert_eq!(&bytes[used..], b"next");
//! # Ok::<(), sockring::protocol::http::HttpError>(())
//! ```

mod body;
mod compress;
mod error;
mod forwarded;
mod glimpse;
mod head;
mod negotiation;
mod range;
mod response;
mod shapes;

pub use body::{BodyReader, ChunkedDecoder};
pub use compress::{Effort, compress};
pub use error::HttpError;
pub use forwarded::{Forwarded, forwarded_address};
pub use glimpse::Glimpse;
pub(crate) use head::is_authority;
pub use head::{Framing, Head, HeadLimits, MAX_HEAD_BYTES, Version};
pub use negotiation::{Coding, negotiate, none_match};
pub use range::Ranges;
pub use response::{ConnectionHeader, LAST_CHUNK, reason, write_chunk, write_chunked_head, write_head};
pub use shapes::Shapes;

/// Whether `byte` may stand in a token: a method, a field name, a connection option (RFC 9110 5.6.2).
pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether `byte` may stand in a field value: visible, space, tab or obs-text (RFC 9110 5.5).
pub(crate) fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Whether `text` is a token (RFC 9110 5.6.2): not empty, and made of token bytes only.
pub(crate) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| is_token_byte(*byte))
}
