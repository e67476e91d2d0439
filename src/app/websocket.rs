//! Raw WebSockets (RFC 6455): behaviours and handles.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;

use super::behavior::{Behavior, Upgradable, last_data};
use super::input::{Reader, Reading};
use super::service::{Due, Inner, State, UserData, Whole, with_current};
use crate::fanout::{Delivery, Frame, OutletId};
use crate::protocol::ws::deflate::Inflater;
use crate::protocol::ws::extensions::Agreed;
use crate::protocol::ws::frame::{CONTROL_BYTES, OpCode, close_payload, write_frame};
use crate::protocol::ws::handshake::{Handshake, write_response};
use crate::protocol::ws::message::{self, Decoder};
use crate::runtime::{ConnectionId, Ended};
use crate::time::Millis;

/// A message of a WebSocket, lent for the length of the call.
///
/// ```
/// use sockring::app::{Behavior, Message};
/// let sizes = Behavior::<()>::default().message(|ws, message| {
///     let _ = match message {
///         Message::Text(text) => ws.send_text(&format!("{} characters", text.chars().count())),
///         Message::Binary(data) => ws.send_text(&format!("{} bytes", data.len())),
///     };
/// });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A text message; it is valid UTF-8.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
}

/// How a WebSocket ended.
///
/// ```
/// use sockring::app::Behavior;
/// let behavior = Behavior::<()>::default().close(|_, closed| {
///     println!("a client left with {} {:?}", closed.code, closed.reason);
/// });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed<'a> {
    /// The code of the peer's close frame, or of ours if we closed first (RFC 6455 section 7.4);
    /// 1005 if the frame had none, 1006 if the connection ended without one.
    pub code: u16,
    /// The reason that came with the code.
    pub reason: &'a str,
}

/// What of a handshake is answered when it is accepted.
pub(super) struct Asked {
    key: String,
    /// The subprotocol that was chosen of those that the client offers. The others are not kept: a head has
    /// room for thousands.
    protocol: Option<String>,
    deflate: Option<Agreed>,
}

impl Asked {
    pub(super) fn new(handshake: &Handshake<'_>, protocol: Option<&str>, deflate: Option<Agreed>) -> Self {
        let (key, protocol) = (handshake.key.to_owned(), protocol.map(str::to_owned));
        Self { key, protocol, deflate }
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
    asked: Asked,
    behavior: Option<Rc<Behavior<U>>>,
    headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
}

impl<U> fmt::Debug for Upgrade<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrade").field("connection", &self.id).finish_non_exhaustive()
    }
}

impl<U: 'static> Upgrade<U> {
    pub(super) fn new(
        app: Rc<Inner>,
        id: ConnectionId,
        sequence: u32,
        asked: Asked,
        behavior: Rc<Behavior<U>>,
    ) -> Self {
        Self { app, id, sequence, asked, behavior: Some(behavior), headers: Vec::new() }
    }

    /// Adds a header to the 101 response.
    #[must_use]
    pub fn header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Chooses one of the subprotocols that the client offered (RFC 6455 section 1.9), instead of the one
    /// that [`Behavior::protocols`] has chosen. A client fails the connection if it is told one that it did
    /// not offer.
    #[must_use]
    pub fn protocol(mut self, protocol: impl Into<String>) -> Self {
        self.asked.protocol = Some(protocol.into());
        self
    }

    /// Opens the socket.
    pub fn accept(self, data: U) {
        self.open(UserData::Any(Rc::new(data)));
    }

    /// Opens a socket that carries a word and no `U`: see [`WebSocket::word`].
    pub(crate) fn accept_word(self, word: u64) {
        self.open(UserData::Word(word));
    }

    fn open(mut self, data: UserData) {
        let Some(behavior) = self.behavior.take() else { return };
        let mut response = Vec::with_capacity(256);
        let agreed = self.asked.deflate;
        let extensions = agreed.map(|agreed| agreed.response());
        let extensions = extensions.as_deref().map(|value| ("Sec-WebSocket-Extensions", value));
        let headers = self.headers.iter().map(|(name, value)| (&**name, &**value));
        let headers = extensions.into_iter().chain(headers);
        write_response(&mut response, &self.asked.key, self.asked.protocol.as_deref(), headers);
        let socket = Socket {
            decoder: Decoder::default(),
            behavior: behavior.number,
            data,
            closing: false,
            pinged: false,
            inflation: match agreed {
                None => Inflation::None,
                Some(Agreed { client_no_context_takeover: true, .. }) => Inflation::Shared,
                Some(_) => Inflation::Own,
            },
            pongs: 0,
        };
        let (app, id) = (self.app.clone(), self.id);
        let Some(ahead) = app.switch(id, self.sequence, response, socket) else { return };
        if !app.core.set_class(id, &behavior.class(agreed.as_ref())) {
            // Without a class nothing is compressed, which is always allowed, and the usual limit holds.
            tracing::warn!("too many different limits and compressions on one core");
        }
        let whole = Whole::begin(&app, id);
        (behavior.open)(WebSocket::new(id));
        if !ahead.is_empty() {
            // The turn reads it: this may be anybody's stack.
            app.keep(id, &ahead, Reading::Spent);
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
        self.app.hand_over(self.id, self.sequence, core, &[]);
    }
}

impl<U> Drop for Upgrade<U> {
    fn drop(&mut self) {
        if self.behavior.take().is_some() {
            self.app.refuse_upgrade(self.id, self.sequence, 500, Vec::new(), &Bytes::new());
        }
    }
}

/// An open WebSocket of this core. A small copy that stays void once the socket is closed.
///
/// ```
/// use sockring::app::{Behavior, WebSocket};
/// fn welcome(ws: WebSocket<String>) {
///     let name = ws.data().map_or(String::new(), |name| name.to_string());
///     let _ = ws.send_text(&format!("hello {name}"));
///     ws.subscribe("all");
/// }
/// let behavior = Behavior::new(|request, upgrade| {
///     upgrade.accept(request.query_param("name").unwrap_or_default().into_owned());
/// })
/// .open(welcome);
/// ```
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
    pub(super) fn new(id: ConnectionId) -> Self {
        Self { id, data: PhantomData }
    }

    /// The connection.
    pub fn connection(self) -> ConnectionId {
        self.id
    }

    /// What the socket carries; `None` once it is closed.
    pub fn data(self) -> Option<Rc<U>> {
        match self.user_data()? {
            UserData::Any(data) => data.downcast().ok(),
            UserData::Word(_) => None,
        }
    }

    fn user_data(self) -> Option<UserData> {
        let open = with_current(|app| {
            app.entry(self.id, |entry| match &entry.state {
                State::WebSocket(socket) => Some(socket.data.clone()),
                State::Http(_) => None,
            })
        });
        open.flatten().flatten().or_else(|| last_data(self.id))
    }

    /// The word that the socket carries instead of a `U`, while it is open and while its `close` handler
    /// runs.
    pub(crate) fn word(self) -> Option<u64> {
        match self.user_data()? {
            UserData::Word(word) => Some(word),
            UserData::Any(_) => None,
        }
    }

    pub(crate) fn set_word(self, word: u64) {
        with_current(|app| {
            app.entry(self.id, |entry| {
                if let State::WebSocket(socket) = &mut entry.state {
                    socket.data = UserData::Word(word);
                }
            })
        });
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
        let sent = with_current(|app| {
            if app.is_websocket_open(self.id) { app.core.send(self.id, frame) } else { Delivery::Dropped }
        });
        sent.unwrap_or(Delivery::Dropped)
    }

    /// Pings the client, whose answer [`Behavior::pong`] is told. A payload of more than 125 bytes is
    /// [`Dropped`](Delivery::Dropped) (RFC 6455 section 5.5).
    pub fn ping(self, payload: &[u8]) -> Delivery {
        if payload.len() > CONTROL_BYTES {
            return Delivery::Dropped;
        }
        self.send(&control(OpCode::Ping, payload))
    }

    /// Whether messages can be sent: neither side has begun to close.
    pub fn is_open(self) -> bool {
        with_current(|app| app.is_websocket_open(self.id)).unwrap_or(false)
    }

    /// Bytes that the socket is owed and that the kernel has not taken yet, what this turn has sent included.
    pub fn buffered_amount(self) -> usize {
        with_current(|app| app.core.owed_bytes(self.id)).unwrap_or(0)
    }

    /// Starts the closing handshake (RFC 6455 section 7.1.2) with a code and a reason of up to 123 bytes.
    /// Code 1005 sends a close frame without a code, and so does one that may not be sent (below 1000, 1004,
    /// 1006, 1015 to 2999, from 5000 on).
    pub fn close(self, code: u16, reason: &str) {
        with_current(|app| app.websocket_close(self.id, code, reason));
    }

    /// Ends the connection at once, whatever is owed and without a close frame. `close` runs with 1006.
    pub fn terminate(self) {
        with_current(|app| {
            if app.is_websocket_open(self.id) {
                app.core.fail(self.id);
            }
        });
    }

    /// Subscribes to a topic; `false` if it was subscribed already, if the socket is closed, or beyond
    /// [`Options::topics_per_socket`](super::Options::topics_per_socket) and
    /// [`limits::TOPIC_BYTES`](crate::limits::TOPIC_BYTES).
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

    /// Whether it is not the client's fault that nothing was read from it: what it has sent waits for the
    /// turn's budget, or for the client to take what it is owed, and it has taken some since this was last
    /// asked.
    pub(crate) fn is_excused(self) -> bool {
        with_current(|app| app.is_excused(self.id)).unwrap_or(false)
    }

    /// The outlet through which the socket's bytes leave.
    pub(crate) fn outlet(self) -> Option<OutletId> {
        with_current(|app| app.core.outlet(self.id)).flatten()
    }
}

/// A WebSocket in the table of connections.
pub(super) struct Socket {
    decoder: Decoder,
    data: UserData,
    /// Its number.
    pub(super) behavior: u16,
    /// A close frame was sent or received.
    closing: bool,
    /// A ping was sent and nothing has come since.
    pinged: bool,
    inflation: Inflation,
    /// Pongs since nothing waited for the client.
    pongs: u16,
}

/// What inflates a socket's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inflation {
    /// Nothing: permessage-deflate is not agreed.
    None,
    /// The core's inflater, since the client compresses each message on its own.
    Shared,
    /// One of its own, from its first compressed message on.
    Own,
}

/// How long the peer may take to answer a close frame.
const CLOSE_TIMEOUT_MS: Millis = 3000;

/// How long a client that is not read from, and takes what it is owed, is let alone before it is looked at
/// again.
const EXCUSED_MS: Millis = 5000;

impl Socket {
    pub(super) fn ended(self, app: &Inner, id: ConnectionId, _: Ended) {
        if let (false, Some(behavior)) = (self.closing, app.behavior(&self)) {
            behavior.close(id, Closed { code: 1006, reason: "" }, &self.data);
        }
    }
}

/// When a client of this behaviour is to be asked whether it is there, which has just said something.
pub(super) fn first_deadline(behavior: &dyn Upgradable, now: Millis) -> Due {
    match behavior.idle_timeout() {
        0 => Due::at(Millis::MAX),
        idle => Due::at(now + idle * 3 / 4),
    }
}

fn control(opcode: OpCode, payload: &[u8]) -> Frame {
    let mut out = Vec::with_capacity(payload.len() + 2);
    write_frame(&mut out, opcode, payload);
    Frame::raw(out)
}

fn close_frame(code: u16, reason: &str) -> Frame {
    let payload = if message::is_close_code(code) { close_payload(code, reason) } else { Vec::new() };
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

    fn is_websocket_open(&self, id: ConnectionId) -> bool {
        let open = self.entry(id, |e| matches!(&e.state, State::WebSocket(socket) if !socket.closing));
        open == Some(true)
    }

    /// Bytes came of a WebSocket.
    pub(super) fn websocket_received(&self, id: ConnectionId, input: &mut [u8]) {
        if self.keep_behind(id, input) {
            return;
        }
        let (used, why) =
            if self.core.is_spent() { (0, Reading::Spent) } else { self.websocket_read(id, input) };
        if used < input.len() && why != Reading::Over {
            self.keep(id, &input[used..], why);
        }
    }

    /// Reads messages: how many bytes of the input are used, and why not all.
    pub(super) fn websocket_read(&self, id: ConnectionId, input: &mut [u8]) -> (usize, Reading) {
        let now = self.core.now();
        let taken = self.entry(id, |entry| {
            let State::WebSocket(socket) = &mut entry.state else { return None };
            let behavior = self.behavior(socket)?;
            if !socket.closing {
                socket.pinged = false;
                entry.deadline = first_deadline(&*behavior, now);
            }
            let word = match socket.data {
                UserData::Word(word) => word,
                UserData::Any(_) => 0,
            };
            Some((mem::take(&mut socket.decoder), behavior, socket.inflation, word))
        });
        let Some(Some((mut decoder, behavior, inflation, word))) = taken else { return (0, Reading::Over) };
        let mut inflater = self.take_inflater(id, inflation);
        let reader = Reader { app: self, id, behavior: &*behavior, word };
        let read = reader.read(input, &mut decoder, inflater.as_mut());
        if let Some(inflater) = inflater {
            self.keep_inflater(id, inflater);
        }
        if read.1 != Reading::Over {
            decoder.release();
            self.entry(id, |entry| {
                if let State::WebSocket(socket) = &mut entry.state {
                    socket.decoder = decoder;
                }
            });
        }
        read
    }

    /// The inflater of a socket, to be given back. A handler that runs meanwhile and reads from another
    /// socket gets a fresh one.
    fn take_inflater(&self, id: ConnectionId, inflation: Inflation) -> Option<Inflater> {
        match inflation {
            Inflation::None => None,
            Inflation::Shared => {
                let inflater = self.inflater.borrow_mut().take();
                Some(inflater.unwrap_or_else(Inflater::alone))
            }
            Inflation::Own => {
                let inflater = self.inflaters.borrow_mut().remove(&id.slot());
                Some(inflater.unwrap_or_else(Inflater::with_context))
            }
        }
    }

    fn keep_inflater(&self, id: ConnectionId, mut inflater: Inflater) {
        inflater.release();
        if !inflater.keeps_context() {
            self.inflater.replace(Some(inflater));
        } else if inflater.is_used() && self.entry(id, |_| ()).is_some() {
            self.inflaters.borrow_mut().insert(id.slot(), inflater);
        }
    }

    /// Handles one message; `false` when the socket reads no more.
    pub(super) fn websocket_message(
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
            message::Message::Ping(payload) => return self.websocket_pinged(id, behavior, payload),
            message::Message::Pong(payload) => behavior.pong(id, payload),
        }
        true
    }

    /// Answers a ping; `false` when too many answers wait for the client already.
    fn websocket_pinged(&self, id: ConnectionId, behavior: &dyn Upgradable, payload: &[u8]) -> bool {
        // What this turn owes the client says nothing about whether it reads.
        let (max, waiting) = (behavior.pending_pongs(), self.core.is_blocked(id));
        let pongs = self.entry(id, |entry| {
            let State::WebSocket(socket) = &mut entry.state else { return 0 };
            socket.pongs = if waiting { socket.pongs.saturating_add(1) } else { 1 };
            socket.pongs
        });
        if max > 0 && pongs.is_some_and(|pongs| pongs > max) {
            tracing::debug!("a WebSocket is closed: it pings and does not read");
            if let Some(State::WebSocket(socket)) = self.forget(id).map(|entry| entry.state) {
                self.core.abort(id);
                socket.ended(self, id, Ended::Overflow);
            }
            return false;
        }
        let _ = self.core.send(id, &control(OpCode::Pong, payload));
        behavior.ping(id, payload);
        true
    }

    /// Owes a connection a close frame, whatever waits for it.
    fn send_close(&self, id: ConnectionId, code: u16, reason: &str) {
        if let Some(outlet) = self.core.outlet(id) {
            let _ = self.core.outlets().push_control(outlet, &close_frame(code, reason));
            self.core.ring_bell();
        }
    }

    fn websocket_closed_by_peer(&self, id: ConnectionId, closing: bool, close: Option<(u16, &str)>) {
        let Some(State::WebSocket(socket)) = self.forget(id).map(|entry| entry.state) else { return };
        if !closing {
            let (code, reason) = close.unwrap_or((1005, ""));
            self.send_close(id, code, "");
            self.core.close(id);
            if let Some(behavior) = self.behavior(&socket) {
                behavior.close(id, Closed { code, reason }, &socket.data);
            }
        } else {
            self.core.close(id);
        }
    }

    /// The peer broke the protocol: a close frame says how, and the connection ends.
    pub(super) fn websocket_failed(&self, id: ConnectionId, code: u16, reason: &str) {
        let Some(State::WebSocket(socket)) = self.forget(id).map(|entry| entry.state) else { return };
        let behavior = self.behavior(&socket);
        if !socket.closing {
            let says = behavior.as_ref().is_none_or(|behavior| behavior.gives_reasons());
            self.send_close(id, code, if says { reason } else { "" });
        }
        self.core.linger(id);
        if let (false, Some(behavior)) = (socket.closing, behavior) {
            behavior.close(id, Closed { code, reason }, &socket.data);
        }
    }

    pub(super) fn websocket_close(&self, id: ConnectionId, code: u16, reason: &str) {
        let deadline = Due::at(self.core.now() + CLOSE_TIMEOUT_MS);
        let socket = self.entry(id, |entry| {
            let State::WebSocket(socket) = &mut entry.state else { return None };
            entry.deadline = deadline;
            let open = !mem::replace(&mut socket.closing, true);
            if open { Some((self.behavior(socket)?, socket.data.clone())) } else { None }
        });
        let Some(Some((behavior, data))) = socket else { return };
        self.send_close(id, code, reason);
        // The handler must not run inside its caller, who may be in the middle of something. The
        // connection's data travels on this thread only.
        let reason = reason.to_owned();
        self.core.spawn(async move { behavior.close(id, Closed { code, reason: &reason }, &data) });
    }

    pub(super) fn websocket_drained(&self, id: ConnectionId) {
        let behavior = self.entry(id, |entry| match &entry.state {
            State::WebSocket(socket) if !socket.closing => self.behavior(socket),
            _ => None,
        });
        if let Some(Some(behavior)) = behavior {
            behavior.drain(id);
        }
    }

    /// Nothing has come for a while: ask, then give up.
    pub(super) fn websocket_expired(&self, id: ConnectionId, now: Millis) {
        if self.is_excused(id) {
            self.entry(id, |entry| entry.deadline = Due::at(now + EXCUSED_MS));
            return;
        }
        let ask = self.entry(id, |entry| {
            let State::WebSocket(socket) = &mut entry.state else { return false };
            if socket.closing || mem::replace(&mut socket.pinged, true) {
                return false;
            }
            let Some(behavior) = self.behavior(socket) else { return false };
            entry.deadline = Due::at(now + behavior.idle_timeout().div_ceil(4));
            true
        });
        if ask == Some(true) {
            let _ = self.core.send(id, &control(OpCode::Ping, b""));
        } else if let Some(State::WebSocket(socket)) = self.forget(id).map(|entry| entry.state) {
            self.core.abort(id);
            socket.ended(self, id, Ended::Reset);
        }
    }
}
