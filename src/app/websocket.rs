//! Raw WebSockets (RFC 6455): behaviours and handles.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::Request;
use super::service::{Inner, State, UserData, Whole, with_current};
use crate::fanout::{Delivery, Frame, OutletId};
use crate::protocol::ws::frame::{OpCode, close_payload, write_frame};
use crate::protocol::ws::handshake::write_response;
use crate::protocol::ws::message::{self, Decoder, Limits};
use crate::runtime::{ConnectionId, Ended};
use crate::time::Millis;

/// A message of a WebSocket, lent for the length of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A text message; it is valid UTF-8.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
}

/// How a WebSocket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed<'a> {
    /// The code of the peer's close frame, or of ours if we closed first (RFC 6455 section 7.4);
    /// 1005 if the frame had none, 1006 if the connection ended without one.
    pub code: u16,
    /// The reason that came with the code.
    pub reason: &'a str,
}

type Callback<U> = Box<dyn Fn(WebSocket<U>)>;
type OnMessage<U> = Box<dyn Fn(WebSocket<U>, Message<'_>)>;
type OnClose<U> = Box<dyn Fn(WebSocket<U>, Closed<'_>)>;
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
    open: Callback<U>,
    message: OnMessage<U>,
    drain: Callback<U>,
    close: OnClose<U>,
    limits: Limits,
    idle_timeout: Millis,
}

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

impl<U: 'static> Behavior<U> {
    /// A behaviour that decides about each handshake: see [`Upgrade`].
    pub fn new(upgrade: impl Fn(Request, Upgrade<U>) + 'static) -> Self {
        Self {
            upgrade: Box::new(upgrade),
            open: Box::new(|_| ()),
            message: Box::new(|_, _| ()),
            drain: Box::new(|_| ()),
            close: Box::new(|_, _| ()),
            limits: Limits::default(),
            idle_timeout: 120_000,
        }
    }

    /// Runs when a socket is open.
    #[must_use]
    pub fn open(mut self, f: impl Fn(WebSocket<U>) + 'static) -> Self {
        self.open = Box::new(f);
        self
    }

    /// Runs for each message.
    #[must_use]
    pub fn message(mut self, f: impl Fn(WebSocket<U>, Message<'_>) + 'static) -> Self {
        self.message = Box::new(f);
        self
    }

    /// Runs when everything that waited for a slow client has left.
    #[must_use]
    pub fn drain(mut self, f: impl Fn(WebSocket<U>) + 'static) -> Self {
        self.drain = Box::new(f);
        self
    }

    /// Runs once when a socket has ended, whoever ended it. Its data is still there.
    #[must_use]
    pub fn close(mut self, f: impl Fn(WebSocket<U>, Closed<'_>) + 'static) -> Self {
        self.close = Box::new(f);
        self
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
}

/// A handshake that waits for a decision, now or later. Dropped without one, it is refused with 500.
///
/// ```
/// use sockring::app::{Behavior, Request, Upgrade};
/// let guarded = Behavior::new(|request: Request, upgrade: Upgrade<String>| {
///     match request.query_param("name") {
///         Some(name) => upgrade.accept(name.into_owned()),
///         None => upgrade.refuse(403, "who are you?"),
///     }
/// });
/// ```
pub struct Upgrade<U> {
    app: Rc<Inner>,
    id: ConnectionId,
    sequence: u32,
    key: String,
    behavior: Option<Rc<Behavior<U>>>,
    headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    protocol: Option<String>,
}

impl<U> fmt::Debug for Upgrade<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrade").field("connection", &self.id).finish_non_exhaustive()
    }
}

impl<U: 'static> Upgrade<U> {
    /// Adds a header to the 101 response.
    #[must_use]
    pub fn header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Chooses one of the subprotocols that the client offered (RFC 6455 section 1.9).
    #[must_use]
    pub fn protocol(mut self, protocol: impl Into<String>) -> Self {
        self.protocol = Some(protocol.into());
        self
    }

    /// Opens the socket.
    pub fn accept(mut self, data: U) {
        let Some(behavior) = self.behavior.take() else { return };
        let mut response = Vec::with_capacity(256);
        let headers = self.headers.iter().map(|(name, value)| (&**name, &**value));
        write_response(&mut response, &self.key, self.protocol.as_deref(), headers);
        let socket = Socket {
            decoder: Decoder::default(),
            behavior: behavior.clone(),
            data: Rc::new(data),
            closing: false,
            pinged: false,
        };
        let (app, id) = (self.app.clone(), self.id);
        let Some(mut ahead) = app.switch(id, self.sequence, response, socket) else { return };
        let whole = Whole::begin(&app, id);
        (behavior.open)(WebSocket::new(id));
        if !ahead.is_empty() {
            app.websocket_received(id, &mut ahead);
        }
        whole.end();
    }

    /// Answers with an HTTP error, with the headers that were added, and closes.
    pub fn refuse(mut self, status: u16, body: impl Into<Bytes>) {
        self.behavior = None;
        let headers = std::mem::take(&mut self.headers);
        self.app.refuse_upgrade(self.id, self.sequence, status, headers, &body.into());
    }

    /// Whether the client is gone.
    pub fn is_aborted(&self) -> bool {
        !self.app.awaits(self.id, self.sequence)
    }

    /// Moves the connection, with the handshake unanswered, to another core.
    pub(crate) fn hand_over(mut self, core: usize) {
        self.behavior = None;
        self.app.hand_over(self.id, self.sequence, core);
    }
}

impl<U> Drop for Upgrade<U> {
    fn drop(&mut self) {
        if self.behavior.take().is_some() {
            self.app.refuse_upgrade(self.id, self.sequence, 500, Vec::new(), &Bytes::new());
        }
    }
}

/// A behaviour whose type of data is forgotten.
pub(super) trait Upgradable {
    fn upgrade(
        self: Rc<Self>,
        app: Rc<Inner>,
        id: ConnectionId,
        sequence: u32,
        request: Request,
        key: String,
    );
    fn message(&self, id: ConnectionId, message: Message<'_>);
    fn drain(&self, id: ConnectionId);
    fn close(&self, id: ConnectionId, closed: Closed<'_>, data: &UserData);
    fn limits(&self) -> Limits;
    fn idle_timeout(&self) -> Millis;
}

impl<U: 'static> Upgradable for Behavior<U> {
    fn upgrade(
        self: Rc<Self>,
        app: Rc<Inner>,
        id: ConnectionId,
        sequence: u32,
        request: Request,
        key: String,
    ) {
        let behavior = Some(self.clone());
        let upgrade = Upgrade { app, id, sequence, key, behavior, headers: Vec::new(), protocol: None };
        (self.upgrade)(request, upgrade);
    }

    fn message(&self, id: ConnectionId, message: Message<'_>) {
        (self.message)(WebSocket::new(id), message);
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

    fn idle_timeout(&self) -> Millis {
        self.idle_timeout
    }
}

thread_local! {
    /// The data of the socket whose `close` handler runs: its entry is gone by then.
    static LAST_DATA: RefCell<Option<(ConnectionId, UserData)>> = const { RefCell::new(None) };
}

/// An open WebSocket of this core. A small copy that stays void once the socket is closed.
pub struct WebSocket<U> {
    id: ConnectionId,
    data: PhantomData<*const U>,
}

impl<U> Clone for WebSocket<U> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<U> Copy for WebSocket<U> {}

impl<U> fmt::Debug for WebSocket<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WebSocket").field(&self.id).finish()
    }
}

impl<U> PartialEq for WebSocket<U> {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl<U: 'static> WebSocket<U> {
    fn new(id: ConnectionId) -> Self {
        Self { id, data: PhantomData }
    }

    /// The connection.
    pub fn connection(self) -> ConnectionId {
        self.id
    }

    /// What the socket carries; `None` once it is closed.
    pub fn data(self) -> Option<Rc<U>> {
        let open = with_current(|app| {
            app.entry(self.id, |entry| match &entry.state {
                State::WebSocket(socket) => Some(socket.data.clone()),
                State::Http(_) => None,
            })
        });
        let data = open.flatten().flatten().or_else(|| {
            LAST_DATA
                .with_borrow(|last| last.as_ref().filter(|(id, _)| *id == self.id).map(|(_, d)| d.clone()))
        });
        data?.downcast().ok()
    }

    /// The peer's address.
    pub fn peer(self) -> Option<SocketAddr> {
        with_current(|app| app.core.peer(self.id)).flatten()
    }

    /// Sends a text message.
    pub fn send_text(self, text: &str) -> Delivery {
        self.send(&Frame::message(&[text.as_bytes()], &[]))
    }

    /// Sends a binary message.
    pub fn send_binary(self, data: &[u8]) -> Delivery {
        self.send(&Frame::binary(data))
    }

    /// Sends a message that is encoded already.
    pub fn send(self, frame: &Frame) -> Delivery {
        let open = with_current(|app| {
            let open = app
                .entry(self.id, |entry| matches!(&entry.state, State::WebSocket(socket) if !socket.closing));
            if open == Some(true) { app.core.send(self.id, frame) } else { Delivery::Dropped }
        });
        open.unwrap_or(Delivery::Dropped)
    }

    /// Starts the closing handshake (RFC 6455 section 7.1.2) with a code and a reason of up to 123 bytes.
    /// Code 1005 sends a close frame without a code.
    pub fn close(self, code: u16, reason: &str) {
        with_current(|app| app.websocket_close(self.id, code, reason));
    }

    /// Subscribes to a topic; `false` if it was subscribed already, or the socket is closed.
    pub fn subscribe(self, topic: &str) -> bool {
        with_current(|app| app.subscribe(self.id, topic)).unwrap_or(false)
    }

    /// Leaves a topic; `false` if it was not subscribed.
    pub fn unsubscribe(self, topic: &str) -> bool {
        with_current(|app| app.unsubscribe(self.id, topic)).unwrap_or(false)
    }

    /// Whether the socket is subscribed to a topic.
    pub fn is_subscribed(self, topic: &str) -> bool {
        with_current(|app| app.is_subscribed(self.id, topic)).unwrap_or(false)
    }

    /// Sends a text to all other subscribers of a topic, on all cores.
    pub fn publish_text(self, topic: &str, text: &str) -> Delivery {
        self.publish(topic, &Frame::message(&[text.as_bytes()], &[]))
    }

    /// Sends a frame to all other subscribers of a topic, on all cores.
    pub fn publish(self, topic: &str, frame: &Frame) -> Delivery {
        with_current(|app| app.publish(topic, frame, Some(self.id))).unwrap_or(Delivery::Dropped)
    }

    /// The outlet through which the socket's bytes leave.
    pub(crate) fn outlet(self) -> Option<OutletId> {
        with_current(|app| app.core.outlet(self.id)).flatten()
    }
}

/// A WebSocket in the table of connections.
pub(super) struct Socket {
    decoder: Decoder,
    behavior: Rc<dyn Upgradable>,
    data: UserData,
    /// A close frame was sent or received.
    closing: bool,
    /// A ping was sent and nothing has come since.
    pinged: bool,
}

/// How long the peer may take to answer a close frame.
const CLOSE_TIMEOUT_MS: Millis = 3000;

impl Socket {
    pub(super) fn first_deadline(&self, now: Millis) -> Millis {
        match self.behavior.idle_timeout() {
            0 => Millis::MAX,
            idle => now + idle * 3 / 4,
        }
    }

    pub(super) fn ended(self, id: ConnectionId, _: Ended) {
        if !self.closing {
            self.behavior.close(id, Closed { code: 1006, reason: "" }, &self.data);
        }
    }
}

fn control(opcode: OpCode, payload: &[u8]) -> Frame {
    let mut out = Vec::with_capacity(payload.len() + 2);
    write_frame(&mut out, opcode, payload);
    Frame::raw(out)
}

fn close_frame(code: u16, reason: &str) -> Frame {
    let payload = if code == 1005 { Vec::new() } else { close_payload(code, reason) };
    control(OpCode::Close, &payload)
}

impl Inner {
    pub(super) fn refuse_upgrade(
        &self,
        id: ConnectionId,
        sequence: u32,
        status: u16,
        mut headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
        body: &Bytes,
    ) {
        // Whoever was refused a WebSocket has nothing more to ask on this connection.
        self.close_after_answer(id, sequence);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            headers.push(("Content-Type".into(), "text/html".into()));
        }
        self.respond(id, sequence, status, &headers, body);
    }

    pub(super) fn websocket_received(&self, id: ConnectionId, mut input: &mut [u8]) {
        let now = self.core.now();
        let taken = self.entry(id, |entry| {
            let State::WebSocket(socket) = &mut entry.state else { return None };
            if !socket.closing {
                socket.pinged = false;
                entry.deadline = socket.first_deadline(now);
            }
            Some((mem::take(&mut socket.decoder), socket.behavior.clone()))
        });
        let Some(Some((mut decoder, behavior))) = taken else { return };
        let limits = behavior.limits();
        while !input.is_empty() {
            let step = match decoder.decode(input, &limits) {
                Ok(step) => step,
                Err(error) => {
                    tracing::debug!("a WebSocket is closed: {error}");
                    return self.websocket_failed(id, error.close_code(), &error.to_string());
                }
            };
            let consumed = step.consumed;
            if let Some(message) = step.message
                && !self.websocket_message(id, &*behavior, message)
            {
                return;
            }
            input = &mut input[consumed..];
        }
        decoder.release();
        self.entry(id, |entry| {
            if let State::WebSocket(socket) = &mut entry.state {
                socket.decoder = decoder;
            }
        });
    }

    /// Handles one message; `false` when the socket reads no more.
    fn websocket_message(
        &self,
        id: ConnectionId,
        behavior: &dyn Upgradable,
        message: message::Message<'_>,
    ) -> bool {
        let closing = self.entry(id, |entry| match &entry.state {
            State::WebSocket(socket) => socket.closing,
            State::Http(_) => true,
        });
        let Some(closing) = closing else { return false };
        match message {
            message::Message::Close(close) => {
                self.websocket_closed_by_peer(id, closing, close);
                return false;
            }
            // After our close frame nothing counts but the peer's (RFC 6455 section 5.5.1).
            _ if closing => {}
            message::Message::Text(text) => behavior.message(id, Message::Text(text)),
            message::Message::Binary(data) => behavior.message(id, Message::Binary(data)),
            message::Message::Ping(payload) => {
                let _ = self.core.send(id, &control(OpCode::Pong, payload));
            }
            message::Message::Pong(_) => {}
        }
        true
    }

    fn websocket_closed_by_peer(&self, id: ConnectionId, closing: bool, close: Option<(u16, &str)>) {
        let Some(State::WebSocket(socket)) = self.forget(id).map(|entry| entry.state) else { return };
        if !closing {
            let (code, reason) = close.unwrap_or((1005, ""));
            let _ = self.core.send(id, &close_frame(code, ""));
            self.core.close(id);
            socket.behavior.close(id, Closed { code, reason }, &socket.data);
        } else {
            self.core.close(id);
        }
    }

    /// The peer broke the protocol: a close frame says how, and the connection ends.
    fn websocket_failed(&self, id: ConnectionId, code: u16, reason: &str) {
        let Some(State::WebSocket(socket)) = self.forget(id).map(|entry| entry.state) else { return };
        if !socket.closing {
            let _ = self.core.send(id, &close_frame(code, reason));
        }
        self.core.linger(id);
        if !socket.closing {
            socket.behavior.close(id, Closed { code, reason }, &socket.data);
        }
    }

    pub(super) fn websocket_close(&self, id: ConnectionId, code: u16, reason: &str) {
        let deadline = self.core.now() + CLOSE_TIMEOUT_MS;
        let socket = self.entry(id, |entry| {
            let State::WebSocket(socket) = &mut entry.state else { return None };
            entry.deadline = deadline;
            (!mem::replace(&mut socket.closing, true)).then(|| (socket.behavior.clone(), socket.data.clone()))
        });
        let Some(Some((behavior, data))) = socket else { return };
        let _ = self.core.send(id, &close_frame(code, reason));
        // The handler must not run inside its caller, who may be in the middle of something. The
        // connection's data travels on this thread only.
        let reason = reason.to_owned();
        self.core.spawn(async move { behavior.close(id, Closed { code, reason: &reason }, &data) });
    }

    pub(super) fn websocket_drained(&self, id: ConnectionId) {
        let behavior = self.entry(id, |entry| match &entry.state {
            State::WebSocket(socket) if !socket.closing => Some(socket.behavior.clone()),
            _ => None,
        });
        if let Some(Some(behavior)) = behavior {
            behavior.drain(id);
        }
    }

    /// Nothing has come for a while: ask, then give up.
    pub(super) fn websocket_expired(&self, id: ConnectionId, now: Millis) {
        let ask = self.entry(id, |entry| {
            let State::WebSocket(socket) = &mut entry.state else { return false };
            if socket.closing || mem::replace(&mut socket.pinged, true) {
                return false;
            }
            entry.deadline = now + socket.behavior.idle_timeout().div_ceil(4);
            true
        });
        if ask == Some(true) {
            let _ = self.core.send(id, &control(OpCode::Ping, b""));
        } else if let Some(State::WebSocket(socket)) = self.forget(id).map(|entry| entry.state) {
            self.core.abort(id);
            socket.ended(id, Ended::Reset);
        }
    }
}
