//! Limits and timeouts of HTTP and raw WebSockets.

use std::time::{Duration, SystemTime};

use super::TrustProxy;
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
    /// From the end of a request's head until its body is complete, for a body that comes more slowly than
    /// [`body_rate`](Self::body_rate). As long as nginx gives from one read to the next.
    pub body_timeout: Duration,
    /// Bytes of a body that earn its client another second. A large upload is not cut off while it makes
    /// headway, and a client that sends a byte now and then has no more than `body_timeout`. With the
    /// default, 16 KiB, a body of 1 MB may take two minutes. 0: `body_timeout` is all there is.
    pub body_rate: usize,
    /// How long a client may take nothing of what it is owed, before its connection is aborted. The time
    /// counts from the last byte that the kernel took for it. Half of nginx's `send_timeout`.
    pub write_timeout: Duration,
    /// How long a connection may idle between requests. Longer than the 60 s after which common proxies
    /// drop their side, so that they and not we close.
    pub keep_alive: Duration,
    /// Requests that one connection may make; the answer to the last one says `Connection: close`. 0, the
    /// default, means any number, as in Node: nothing here grows with them, and a session that polls would
    /// only open one connection after the other. (nginx has 1,000.)
    pub keep_alive_requests: u32,
    /// Topics that one WebSocket may be subscribed to, since handlers let clients name them; their names are
    /// bounded by [`limits::TOPIC_BYTES`](crate::limits::TOPIC_BYTES). 1,000 by default (Centrifugo has 128).
    /// Beyond, [`WebSocket::subscribe`](super::WebSocket::subscribe) is `false`.
    pub topics_per_socket: usize,
    /// Proxies that are believed what they say about a client's address, scheme and host. Nobody by default.
    pub trust_proxy: TrustProxy,
    /// The wall clock, for the headers `Date` and `Last-Modified`; nothing else depends on it. The system's
    /// by default; a test may give another. Where it shows a time before 1970 or after the year 9999, answers
    /// have no `Date`.
    pub clock: fn() -> SystemTime,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            head: HeadLimits::default(),
            body_bytes: 1_000_000,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            body_rate: 16 * 1024,
            write_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(65),
            keep_alive_requests: 0,
            topics_per_socket: 1000,
            trust_proxy: TrustProxy::default(),
            clock: SystemTime::now,
        }
    }
}
