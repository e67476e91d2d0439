//! Limits and timeouts of HTTP and raw WebSockets.

use std::time::Duration;

use crate::protocol::http::HeadLimits;

/// Limits and timeouts of HTTP connections.
///
/// ```
/// use sockring::app::Options;
/// assert_eq!(Options::default().body_bytes, 1_000_000);
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    /// Limits of a request's head.
    pub head: HeadLimits,
    /// Bytes of a request's body, for routes that set no limit of their own: the reference's
    /// `maxHttpBufferSize`.
    pub body_bytes: usize,
    /// From the first byte of a request, or the accept, until its head is complete: an absolute deadline,
    /// so that a client cannot stretch it byte by byte. nginx gives 60 s; browsers need far less.
    pub head_timeout: Duration,
    /// From the first byte of a request until its body is complete.
    pub body_timeout: Duration,
    /// How long a connection may idle between requests. Longer than the 60 s after which common proxies
    /// drop their side, so that they and not we close.
    pub keep_alive: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            head: HeadLimits::default(),
            body_bytes: 1_000_000,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(65),
        }
    }
}
