//! WebSocket (RFC 6455), the server's side: the opening handshake, frames, unmasking, messages.
//!
//! With permessage-deflate (RFC 7692): its negotiation, compressors, and inflating with a limit.
//!
//! ```
//! use sockring::protocol::ws::{self, frame::OpCode, message::{Decoder, Limits, Message}};
//!
//! let mut wire = Vec::new();
//! ws::frame::write_masked_frame(&mut wire, OpCode::Text, true, [1, 2, 3, 4], b"hello");
//! let mut decoder = Decoder::new();
//! let step = decoder.decode(&mut wire, &Limits::default())?;
//! assert_eq!(step.message, Some(Message::Text("hello")));
//! # Ok::<(), ws::WsError>(())
//! ```

pub mod deflate;
pub mod extensions;
pub mod frame;
pub mod handshake;
pub mod mask;
pub mod message;

use thiserror::Error;

/// Bytes that are not a WebSocket stream of a client. The client is at fault in every case; the connection is
/// to be closed with [`close_code`](Self::close_code).
///
/// ```
/// use sockring::protocol::ws::{WsError, message::{Decoder, Limits}};
///
/// let mut unmasked = *b"\x81\x05hello";
/// let error = Decoder::new().decode(&mut unmasked, &Limits::default()).unwrap_err();
/// assert_eq!((error, error.close_code()), (WsError::Unmasked, 1002));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WsError {
    /// RSV1, RSV2 or RSV3 is set without an extension that gives it a meaning (RFC 6455 5.2).
    #[error("the client set a reserved bit")]
    ReservedBits,
    /// Opcode 3-7 or 11-15 (RFC 6455 5.2).
    #[error("the client used the reserved opcode {0}")]
    ReservedOpcode(u8),
    /// A control frame without FIN (RFC 6455 5.5).
    #[error("the client fragmented a control frame")]
    FragmentedControl,
    /// A control frame of more than 125 bytes (RFC 6455 5.5).
    #[error("the client's control frame is longer than 125 bytes")]
    LongControl,
    /// A length that would have fitted a shorter form (RFC 6455 5.2).
    #[error("the client's frame length is not in its shortest form")]
    NonMinimalLength,
    /// A 64-bit length with its top bit set (RFC 6455 5.2).
    #[error("the client's frame length has its top bit set")]
    LengthTopBit,
    /// A client's frame without a mask (RFC 6455 5.1).
    #[error("the client sent an unmasked frame")]
    Unmasked,
    /// A continuation frame with nothing to continue (RFC 6455 5.4).
    #[error("the client continued a message that was not begun")]
    UnexpectedContinuation,
    /// A text or binary frame in the middle of a fragmented message (RFC 6455 5.4).
    #[error("the client began a message inside another")]
    ExpectedContinuation,
    /// The message is longer than [`Limits::message_bytes`](message::Limits::message_bytes).
    #[error("the client's message is too big")]
    TooBig,
    /// The message has more frames than [`Limits::fragments`](message::Limits::fragments).
    #[error("the client's message has too many fragments")]
    TooManyFragments,
    /// A compressed message that is no DEFLATE (RFC 7692 7.2.2).
    #[error("the client's compressed message is corrupt")]
    Corrupt,
    /// Text, or the reason in a close frame, that is not UTF-8 (RFC 6455 8.1).
    #[error("the client sent text that is not utf-8")]
    InvalidUtf8,
    /// A close frame with half a status code (RFC 6455 5.5.1).
    #[error("the client's close frame has one byte of payload")]
    CloseLength,
    /// A status code that may not be sent (RFC 6455 7.4).
    #[error("the client closed with the invalid code {0}")]
    CloseCode(u16),
}

impl WsError {
    /// The status code to close with (RFC 6455 7.4.1): 1002 protocol error, 1007 not UTF-8 or not DEFLATE,
    /// 1009 too big, 1008 for too many fragments.
    #[must_use]
    pub fn close_code(&self) -> u16 {
        match self {
            Self::InvalidUtf8 | Self::Corrupt => 1007,
            Self::TooManyFragments => 1008,
            Self::TooBig => 1009,
            _ => 1002,
        }
    }
}
