//! What an operator sets about sessions.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use super::{Cors, Transport};
use crate::app::{PerMessageDeflate, Request};

/// Decides about handshakes: `Ok` lets the client in, `Err` is the message of the refusal.
pub type AllowRequest = Rc<dyn Fn(Request) -> Pin<Box<dyn Future<Output = Result<(), String>>>>>;

/// Options of an engine, with the reference's names and defaults.
///
/// ```
/// use std::time::Duration;
/// use sockring::engine::Options;
/// let options = Options { ping_interval: Duration::from_secs(10), ..Options::default() }
///     .allow_request(|request| async move {
///         match request.header("authorization") {
///             Some(_) => Ok(()),
///             None => Err("who are you?".to_owned()),
///         }
///     });
/// ```
#[derive(Clone)]
pub struct Options {
    /// The path; a trailing slash is added. `/engine.io` by default.
    pub path: String,
    /// How often the client is pinged, counted from its last pong.
    pub ping_interval: Duration,
    /// How long it may take to answer.
    pub ping_timeout: Duration,
    /// How long an upgrade may take.
    pub upgrade_timeout: Duration,
    /// Bytes of one message, and of one polling payload.
    pub max_http_buffer_size: usize,
    /// The transports that are served.
    pub transports: Vec<Transport>,
    /// Whether a polling session may move to WebSocket.
    pub allow_upgrades: bool,
    /// permessage-deflate for WebSockets that offer it; none by default. Unlike the reference's, its own
    /// defaults keep no context: see [`PerMessageDeflate`].
    pub per_message_deflate: Option<PerMessageDeflate>,
    /// CORS headers; none by default.
    pub cors: Option<Cors>,
    /// Asked before a session opens; see [`allow_request`](Self::allow_request).
    pub allow_request: Option<AllowRequest>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            path: "/engine.io".into(),
            ping_interval: Duration::from_millis(25_000),
            ping_timeout: Duration::from_millis(20_000),
            upgrade_timeout: Duration::from_millis(10_000),
            max_http_buffer_size: 1_000_000,
            transports: vec![Transport::Polling, Transport::WebSocket],
            allow_upgrades: true,
            per_message_deflate: None,
            cors: None,
            allow_request: None,
        }
    }
}

impl Options {
    /// Sets what decides about handshakes, polling and WebSocket alike. An error is answered with 403 to a
    /// polling request and 400 to a WebSocket handshake.
    #[must_use]
    pub fn allow_request<F, R>(mut self, allow: F) -> Self
    where
        F: Fn(Request) -> R + 'static,
        R: Future<Output = Result<(), String>> + 'static,
    {
        self.allow_request = Some(Rc::new(move |request| Box::pin(allow(request))));
        self
    }

    /// The path as a prefix, with its trailing slash.
    pub(crate) fn prefix(&self) -> String {
        format!("/{}/", self.path.trim_matches('/'))
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("path", &self.path)
            .field("ping_interval", &self.ping_interval)
            .field("ping_timeout", &self.ping_timeout)
            .field("transports", &self.transports)
            .finish_non_exhaustive()
    }
}
