//! What an engine tells whoever has attached it.

use std::fmt;

use super::{CloseReason, Message, Refusal, Socket};
use crate::app::Request;

/// What a layer above is told of sessions. See [`Handlers`] for closures instead, and the `on_*` methods of
/// [`Server`](super::Server) for the rarer events.
///
/// ```
/// use sockring::engine::{CloseReason, Events, Message, Socket};
/// struct Echo;
/// impl Events for Echo {
///     fn connection(&self, _: Socket) {}
///     fn message(&self, socket: Socket, message: Message<'_>) {
///         let _ = match message {
///             Message::Text(text) => socket.send_text(text),
///             Message::Binary(data) => socket.send_binary(data),
///         };
///     }
///     fn drain(&self, _: Socket) {}
///     fn close(&self, _: Socket, _: CloseReason, _: &str) {}
/// }
/// ```
pub trait Events: 'static {
    /// A session has opened.
    fn connection(&self, socket: Socket);
    /// A message came.
    fn message(&self, socket: Socket, message: Message<'_>);
    /// Everything that waited for a slow client has left.
    fn drain(&self, socket: Socket);
    /// A session has ended, with details of the reason, which may be empty; the handle is void.
    fn close(&self, socket: Socket, reason: CloseReason, details: &str);
    /// A request was refused.
    fn connection_error(&self, error: &ConnectionError<'_>) {
        let _ = error;
    }
}

/// A request that was refused, and why: the reference's `connection_error`.
///
/// ```
/// use sockring::engine::Handlers;
/// let handlers = Handlers::default().connection_error(|error| {
///     eprintln!("{}: {} {}", error.request.url(), error.code(), error.refusal.context());
/// });
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct ConnectionError<'a> {
    /// The request.
    pub request: &'a Request,
    /// Why it was refused, with the reference's context.
    pub refusal: &'a Refusal,
}

impl ConnectionError<'_> {
    /// The code that the client is told.
    pub fn code(&self) -> u8 {
        self.refusal.code()
    }

    /// The message of the code.
    pub fn message(&self) -> &'static str {
        self.refusal.message()
    }
}

type OnSocket = Box<dyn Fn(Socket)>;
type OnMessage = Box<dyn Fn(Socket, Message<'_>)>;
type OnClose = Box<dyn Fn(Socket, CloseReason)>;
type OnError = Box<dyn Fn(&ConnectionError<'_>)>;

/// Closures for the events of sessions.
///
/// ```
/// use sockring::engine::Handlers;
/// let handlers = Handlers::default()
///     .connection(|socket| println!("{} came", socket.id()))
///     .close(|_, reason| println!("one left: {}", reason.as_str()));
/// ```
pub struct Handlers {
    connection: OnSocket,
    message: OnMessage,
    drain: OnSocket,
    close: OnClose,
    connection_error: OnError,
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handlers").finish_non_exhaustive()
    }
}

impl Default for Handlers {
    fn default() -> Self {
        Self {
            connection: Box::new(|_| ()),
            message: Box::new(|_, _| ()),
            drain: Box::new(|_| ()),
            close: Box::new(|_, _| ()),
            connection_error: Box::new(|_| ()),
        }
    }
}

impl Handlers {
    /// Runs when a session has opened.
    #[must_use]
    pub fn connection(mut self, f: impl Fn(Socket) + 'static) -> Self {
        self.connection = Box::new(f);
        self
    }

    /// Runs for each message.
    #[must_use]
    pub fn message(mut self, f: impl Fn(Socket, Message<'_>) + 'static) -> Self {
        self.message = Box::new(f);
        self
    }

    /// Runs when everything that waited for a slow client has left.
    #[must_use]
    pub fn drain(mut self, f: impl Fn(Socket) + 'static) -> Self {
        self.drain = Box::new(f);
        self
    }

    /// Runs when a session has ended.
    #[must_use]
    pub fn close(mut self, f: impl Fn(Socket, CloseReason) + 'static) -> Self {
        self.close = Box::new(f);
        self
    }

    /// Runs when a request was refused.
    #[must_use]
    pub fn connection_error(mut self, f: impl Fn(&ConnectionError<'_>) + 'static) -> Self {
        self.connection_error = Box::new(f);
        self
    }
}

impl Events for Handlers {
    fn connection(&self, socket: Socket) {
        (self.connection)(socket);
    }

    fn message(&self, socket: Socket, message: Message<'_>) {
        (self.message)(socket, message);
    }

    fn drain(&self, socket: Socket) {
        (self.drain)(socket);
    }

    fn close(&self, socket: Socket, reason: CloseReason, _: &str) {
        (self.close)(socket, reason);
    }

    fn connection_error(&self, error: &ConnectionError<'_>) {
        (self.connection_error)(error);
    }
}
