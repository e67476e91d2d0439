//! What the sockets of a route do, and what is agreed with them.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use super::Request;
use super::service::{Inner, UserData};
use super::websocket::{Asked, Closed, Message, Upgrade, WebSocket};
use crate::fanout::Class;
use crate::protocol::ws::deflate::Settings;
use crate::protocol::ws::extensions::{Agreed, MalformedExtensions, PerMessageDeflate, negotiate};
use crate::protocol::ws::handshake::Handshake;
use crate::protocol::ws::message::Limits;
use crate::runtime::ConnectionId;
use crate::time::Millis;

type Callback<U> = Box<dyn Fn(WebSocket<U>)>;
type OnMessage<U> = Box<dyn Fn(WebSocket<U>, Message<'_>)>;
type OnControl<U> = Box<dyn Fn(WebSocket<U>, &[u8])>;
type OnClose<U> = Box<dyn Fn(WebSocket<U>, Closed<'_>)>;
/// Bytes that wait for a client in another place than its connection's outlet, by the word that it carries.
type Elsewhere<U> = Box<dyn Fn(WebSocket<U>, u64) -> usize>;
type OnUpgrade<U> = Box<dyn Fn(Request, Upgrade<U>)>;

/// What the sockets of a route do. `U` is the data that each socket carries.
///
/// ```
/// use std::cell::Cell;
/// use sockring::app::{Behavior, Message};
///
/// let counting = Behavior::<Cell<u32>>::default().message(|ws, message| {
///     let Some(count) = ws.data() else { return };
///     count.set(count.get() + 1);
///     if let Message::Text(text) = message {
///         let _ = ws.send_text(&format!("{}: {text}", count.get()));
///     }
/// });
/// ```
pub struct Behavior<U> {
    upgrade: OnUpgrade<U>,
    pub(super) open: Callback<U>,
    message: OnMessage<U>,
    ping: OnControl<U>,
    pong: OnControl<U>,
    drain: Callback<U>,
    close: OnClose<U>,
    limits: Limits,
    idle_timeout: Millis,
    pending_pongs: u16,
    protocols: Vec<Cow<'static, str>>,
    deflate: Option<PerMessageDeflate>,
    max_backpressure: Option<usize>,
    close_on_backpressure: bool,
    gives_reasons: bool,
    elsewhere: Option<Elsewhere<U>>,
    /// Its place among the App's.
    pub(super) number: u16,
}

/// Pongs that wait for a client before one more ping ends its connection, as in ws 8.23.
const PENDING_PONGS: u16 = 60;

impl<U> fmt::Debug for Behavior<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behavior").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl<U: Default + 'static> Default for Behavior<U> {
    /// Accepts every handshake, with default data, and does nothing.
    fn default() -> Self {
        Self::new(|_, upgrade| upgrade.accept(U::default()))
    }
}

/// Sets what runs on an event.
macro_rules! handlers {
    ($($(#[$doc:meta])* $event:ident($($given:ty),*);)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $event(mut self, f: impl Fn($($given),*) + 'static) -> Self {
            self.$event = Box::new(f);
            self
        }
    )*};
}

impl<U: 'static> Behavior<U> {
    /// A behaviour that decides about each handshake: see [`Upgrade`].
    pub fn new(upgrade: impl Fn(Request, Upgrade<U>) + 'static) -> Self {
        Self {
            upgrade: Box::new(upgrade),
            open: Box::new(|_| ()),
            message: Box::new(|_, _| ()),
            ping: Box::new(|_, _| ()),
            pong: Box::new(|_, _| ()),
            drain: Box::new(|_| ()),
            close: Box::new(|_, _| ()),
            limits: Limits::default(),
            idle_timeout: 120_000,
            pending_pongs: PENDING_PONGS,
            protocols: Vec::new(),
            deflate: None,
            max_backpressure: None,
            close_on_backpressure: true,
            gives_reasons: true,
            elsewhere: None,
            number: 0,
        }
    }

    handlers! {
        /// Runs when a socket is open.
        open(WebSocket<U>);
        /// Runs for each message.
        message(WebSocket<U>, Message<'_>);
        /// Runs for each ping, with its payload; the pong is sent without it.
        ping(WebSocket<U>, &[u8]);
        /// Runs for each pong, asked for or not.
        pong(WebSocket<U>, &[u8]);
        /// Runs when everything that waited for a slow client has left.
        drain(WebSocket<U>);
        /// Runs once when a socket has ended, whoever ended it. Its data is still there.
        close(WebSocket<U>, Closed<'_>);
    }

    /// Bytes of a message; 1,000,000 by default. A larger one closes the socket with 1009.
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.limits.message_bytes = bytes;
        self
    }

    /// Frames of a message; 16,384 by default. More close the socket with 1008.
    #[must_use]
    pub fn max_fragments(mut self, fragments: usize) -> Self {
        self.limits.fragments = fragments;
        self
    }

    /// How long a client may be silent; 120 s by default, zero for ever. It is pinged after three
    /// quarters of it.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout.as_millis() as Millis;
        self
    }

    /// Pongs that may wait for a client that pings and does not read; 60 by default, as in ws 8.23, and 0
    /// for any number. One more ping ends the connection without a close frame.
    #[must_use]
    pub fn max_pending_pongs(mut self, pongs: u16) -> Self {
        self.pending_pongs = pongs;
        self
    }

    /// The subprotocols that are spoken. Of those that a client offers, the first that is among them is
    /// chosen, unless [`Upgrade::protocol`] chooses another; if none is, the socket opens without one, and it
    /// is the client who may object (RFC 6455 section 4.2.2).
    ///
    /// ```
    /// use sockring::app::Behavior;
    /// let behavior = Behavior::<()>::default().protocols(["chat.v2", "chat.v1"]);
    /// ```
    #[must_use]
    pub fn protocols<P: Into<Cow<'static, str>>>(mut self, protocols: impl IntoIterator<Item = P>) -> Self {
        self.protocols = protocols.into_iter().map(Into::into).collect();
        self
    }

    /// Offers permessage-deflate (RFC 7692) to clients that ask for it; by default it is not.
    ///
    /// ```
    /// use sockring::app::{Behavior, PerMessageDeflate};
    /// let options = PerMessageDeflate { threshold: 512, ..PerMessageDeflate::default() };
    /// let behavior = Behavior::<()>::default().per_message_deflate(options);
    /// ```
    #[must_use]
    pub fn per_message_deflate(mut self, options: PerMessageDeflate) -> Self {
        self.deflate = Some(options);
        self
    }

    /// Bytes that may wait for a client of this route before what more it is sent closes it, or is dropped:
    /// see [`close_on_backpressure`](Self::close_on_backpressure). By default
    /// `runtime::Options::backpressure_bytes`. A message counts as many bytes as it has on the wire, and some
    /// for its record.
    #[must_use]
    pub fn max_backpressure(mut self, bytes: usize) -> Self {
        self.max_backpressure = Some(bytes);
        self
    }

    /// Whether a client over its limit is closed, as by default; with `false` the message is dropped, which
    /// [`WebSocket::send`] tells, and the socket stays open.
    #[must_use]
    pub fn close_on_backpressure(mut self, close: bool) -> Self {
        self.close_on_backpressure = close;
        self
    }

    /// Leaves the text out of close frames that tell a client what it did wrong: the code says it.
    #[must_use]
    pub(crate) fn without_reasons(mut self) -> Self {
        self.gives_reasons = false;
        self
    }

    /// Counts bytes that wait for a client in another place, when it is decided whether to read from it.
    pub(crate) fn elsewhere(mut self, f: impl Fn(WebSocket<U>, u64) -> usize + 'static) -> Self {
        self.elsewhere = Some(Box::new(f));
        self
    }

    /// What is special about the outlet of a socket.
    pub(super) fn class(&self, agreed: Option<&Agreed>) -> Class {
        let deflate = self.deflate.as_ref().zip(agreed);
        Class {
            deflate: deflate.map(|(options, agreed)| Settings::new(options, agreed.server_max_window_bits)),
            deflate_context: agreed.is_some_and(|agreed| !agreed.server_no_context_takeover),
            max_waiting: self.max_backpressure,
            close_when_over: self.close_on_backpressure,
        }
    }
}

/// A behaviour whose type of data is forgotten.
pub(super) trait Upgradable {
    /// What of permessage-deflate is agreed with a client.
    fn negotiate(&self, handshake: &Handshake<'_>) -> Result<Option<Agreed>, MalformedExtensions>;
    /// The first of the subprotocols that a client offers that is spoken.
    fn protocol<'a>(&self, handshake: &Handshake<'a>) -> Option<&'a str>;
    fn upgrade(
        self: Rc<Self>,
        app: Rc<Inner>,
        id: ConnectionId,
        sequence: u32,
        request: Request,
        asked: Asked,
    );
    fn message(&self, id: ConnectionId, message: Message<'_>);
    fn ping(&self, id: ConnectionId, payload: &[u8]);
    fn pong(&self, id: ConnectionId, payload: &[u8]);
    fn drain(&self, id: ConnectionId);
    fn close(&self, id: ConnectionId, closed: Closed<'_>, data: &UserData);
    fn limits(&self) -> Limits;
    /// Bytes that wait for a client beside what its connection is owed.
    fn elsewhere(&self, id: ConnectionId, word: u64) -> usize;
    fn idle_timeout(&self) -> Millis;
    /// Whether the close frame of a client that broke the protocol says why.
    fn gives_reasons(&self) -> bool;
    /// Pongs that may wait; 0 for any number.
    fn pending_pongs(&self) -> u16;
}

impl<U: 'static> Upgradable for Behavior<U> {
    fn negotiate(&self, handshake: &Handshake<'_>) -> Result<Option<Agreed>, MalformedExtensions> {
        match &self.deflate {
            Some(options) => negotiate(handshake.extensions(), options),
            None => Ok(None),
        }
    }

    fn protocol<'a>(&self, handshake: &Handshake<'a>) -> Option<&'a str> {
        handshake.protocols().find(|offer| self.protocols.iter().any(|protocol| protocol == offer))
    }

    fn upgrade(
        self: Rc<Self>,
        app: Rc<Inner>,
        id: ConnectionId,
        sequence: u32,
        request: Request,
        asked: Asked,
    ) {
        (self.upgrade)(request, Upgrade::new(app, id, sequence, asked, self.clone()));
    }

    fn message(&self, id: ConnectionId, message: Message<'_>) {
        (self.message)(WebSocket::new(id), message);
    }

    fn ping(&self, id: ConnectionId, payload: &[u8]) {
        (self.ping)(WebSocket::new(id), payload);
    }

    fn pong(&self, id: ConnectionId, payload: &[u8]) {
        (self.pong)(WebSocket::new(id), payload);
    }

    fn drain(&self, id: ConnectionId) {
        (self.drain)(WebSocket::new(id));
    }

    fn close(&self, id: ConnectionId, closed: Closed<'_>, data: &UserData) {
        LAST_DATA.set(Some((id, data.clone())));
        (self.close)(WebSocket::new(id), closed);
        LAST_DATA.take();
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn elsewhere(&self, id: ConnectionId, word: u64) -> usize {
        self.elsewhere.as_ref().map_or(0, |f| f(WebSocket::new(id), word))
    }

    fn idle_timeout(&self) -> Millis {
        self.idle_timeout
    }

    fn gives_reasons(&self) -> bool {
        self.gives_reasons
    }

    fn pending_pongs(&self) -> u16 {
        self.pending_pongs
    }
}

/// The data of the socket whose `close` handler runs.
pub(super) fn last_data(id: ConnectionId) -> Option<UserData> {
    LAST_DATA.with_borrow(|last| last.as_ref().filter(|(of, _)| *of == id).map(|(_, data)| data.clone()))
}

thread_local! {
    /// The data of the socket whose `close` handler runs: its entry is gone by then.
    static LAST_DATA: RefCell<Option<(ConnectionId, UserData)>> = const { RefCell::new(None) };
}
