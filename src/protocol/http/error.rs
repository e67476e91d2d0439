//! What can be wrong with a request, and the status that says so.

use thiserror::Error;

/// A request that cannot be served. The client is at fault in every case, and after any of them the
/// boundaries of the next request are unknown: answer with [`status`](Self::status), then close.
///
/// ```
/// use sockring::protocol::http::{Head, HeadLimits, HttpError};
///
/// let error = Head::parse(b"GET / HTTP/2.0\r\n\r\n", &HeadLimits::default()).unwrap_err();
/// assert_eq!((error, error.status()), (HttpError::Version, 505));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The first line is not `method SP target SP version` (RFC 9112 3).
    #[error("the client's request line is malformed")]
    RequestLine,
    /// A CR or LF that is not part of a CRLF (RFC 9112 2.2).
    #[error("the client ended a line with something other than CRLF")]
    LineEnd,
    /// The request target has a form, a byte or an authority that is not allowed (RFC 9112 3.2).
    #[error("the client's request target is malformed")]
    Target,
    /// The request target is longer than [`HeadLimits::target_bytes`](super::HeadLimits::target_bytes), or
    /// the request line than the whole head may be.
    #[error("the client's request target is too long")]
    TargetTooLong,
    /// Neither HTTP/1.0 nor HTTP/1.1 (RFC 9112 2.3).
    #[error("the client speaks a version of http that is not served")]
    Version,
    /// A method outside RFC 9110 9.3 and PATCH, or CONNECT.
    #[error("the client's method is not implemented")]
    Method,
    /// A field name is empty, not a token, preceded or followed by white space, or has no colon (RFC 9112 5).
    #[error("the client sent a malformed field name")]
    FieldName,
    /// A control character in a field value (RFC 9110 5.5).
    #[error("the client sent a control character in a field value")]
    FieldValue,
    /// A line that continues the field before it (obs-fold, RFC 9112 5.2).
    #[error("the client folded a field over several lines")]
    Folded,
    /// `Host` is missing, doubled, empty or not a host (RFC 9112 3.2).
    #[error("the client's host field is missing, repeated or malformed")]
    Host,
    /// The head is longer than [`HeadLimits::head_bytes`](super::HeadLimits::head_bytes) (RFC 6585 5).
    #[error("the client's header section is too long")]
    HeadTooLarge,
    /// More fields than [`HeadLimits::headers`](super::HeadLimits::headers) (RFC 6585 5).
    #[error("the client sent too many fields")]
    TooManyFields,
    /// `Content-Length` is not one plain decimal number, or stands beside `Transfer-Encoding` (RFC 9112 6.3).
    #[error("the client's content length is malformed, repeated or contradicted")]
    ContentLength,
    /// `Transfer-Encoding` is repeated, does not end in one `chunked`, or came with HTTP/1.0 (RFC 9112 6.1).
    #[error("the client's transfer encoding is malformed")]
    TransferEncoding,
    /// A transfer coding other than `chunked` (RFC 9112 6.1).
    #[error("the client used a transfer coding that is not implemented")]
    TransferCoding,
    /// An expectation other than `100-continue` (RFC 9110 10.1.1).
    #[error("the client expects something other than 100-continue")]
    Expectation,
    /// A chunk size that is not plain hexadecimal or does not fit 64 bits (RFC 9112 7.1).
    #[error("the client sent a malformed chunk size")]
    ChunkSize,
    /// Chunk data not followed by CRLF (RFC 9112 7.1).
    #[error("the client's chunk is longer than its size")]
    ChunkData,
    /// Chunk extensions of one body exceed 4 KiB together (RFC 9112 7.1.1).
    #[error("the client sent too many chunk extensions")]
    ChunkExtensions,
    /// The trailer section exceeds 8 KiB (RFC 9112 7.1.2).
    #[error("the client's trailer section is too long")]
    TrailersTooLarge,
    /// The body is longer than the server takes (RFC 9110 15.5.14).
    #[error("the client's body is too large")]
    BodyTooLarge,
}

impl HttpError {
    /// The status code to answer with: 400, 413, 414, 417, 431, 501 or 505.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::TargetTooLong => 414,
            Self::Version => 505,
            Self::Method | Self::TransferCoding => 501,
            Self::HeadTooLarge | Self::TooManyFields | Self::TrailersTooLarge => 431,
            Self::Expectation => 417,
            Self::BodyTooLarge | Self::ChunkExtensions => 413,
            _ => 400,
        }
    }
}
