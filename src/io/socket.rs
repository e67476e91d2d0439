//! The handle on a socket.

use std::any::Any;
use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};

use super::ack::AckFuture;
use super::broadcast::{BroadcastOperator, RoomNames};
use super::entry::Entry;
use super::extract::{BoxedHandler, Handler, Outcome, boxed};
use super::listeners::{General, HandlerId, Listeners, Off, Place};
use super::namespace::{NspInner, push};
use super::server::by_index;
use super::{AckError, ArgsError, Client, Failure, Handshake, Namespace, Server};
use crate::app::Request;
use crate::engine::{self, SocketSid};
use crate::fanout::{Delivery, Key};
use crate::protocol::sio::{self, EncodeError, Value};
use crate::time::{Millis, millis};

/// The public id of a socket. It differs from the engine's session id, which is a secret, but for clients of
/// Socket.IO v2: theirs is the session's id, behind the name of the namespace if that is not `/`.
///
/// ```
/// use sockring::io::SocketId;
/// assert!("not an id".parse::<SocketId>().is_err());
/// assert!("/chat#Zm9vYmFy".parse::<SocketId>().is_ok());
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SocketId(Kind);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Kind {
    /// One of this server's.
    Own(SocketSid),
    /// Any other text: of a client of Socket.IO v2.
    Text(Arc<str>),
}

impl SocketId {
    pub(super) fn own(sid: SocketSid) -> Self {
        Self(Kind::Own(sid))
    }

    /// The id of a client of Socket.IO v2.
    pub(super) fn v2(nsp: &str, session: &str) -> Self {
        let text = if nsp == "/" { session.to_owned() } else { format!("{nsp}#{session}") };
        Self::of_text(&text)
    }

    /// Whatever a server calls a socket.
    pub(super) fn of_text(text: &str) -> Self {
        Self(SocketSid::parse(text).map_or_else(|| Kind::Text(text.into()), Kind::Own))
    }
}

impl fmt::Display for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Own(sid) => sid.fmt(f),
            Kind::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SocketId({self})")
    }
}

impl Serialize for SocketId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for SocketId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(sid) = SocketSid::parse(text) {
            return Ok(Self::own(sid));
        }
        let v2 = text.starts_with('/') && text.contains('#');
        v2.then(|| Self(Kind::Text(text.into()))).ok_or("not the id of a socket")
    }
}

/// What [`Socket::set_data`] takes: anything that can be serialised.
///
/// ```no_run
/// # fn set_up(socket: sockring::io::Socket) {
/// #[derive(serde::Serialize)]
/// struct User {
///     name: String,
/// }
/// socket.set_data(User { name: "Ada".to_owned() });
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a socket's data: it does not implement `serde::Serialize`",
    note = "`fetch_sockets` shows a socket's data to others; give private fields `#[serde(skip)]`"
)]
pub trait SocketData: Any {
    /// The value, as others see it.
    fn to_value(&self) -> Value;
}

impl<T: Serialize + Any> SocketData for T {
    fn to_value(&self) -> Value {
        sio::to_value(self).unwrap_or(Value::Null)
    }
}

/// A socket of this core: one client in one namespace. A small copy that stays void once the socket has
/// left, so keeping one leaks nothing; it belongs to the thread of its core.
///
/// ```no_run
/// # use sockring::io::{Data, DisconnectReason, Server, Socket};
/// # fn set_up(io: &Server) {
/// io.on_connection(|socket: Socket| {
///     socket.join(["lobby", "news"]);
///     socket.on("say", |socket: Socket, Data(text): Data<String>| {
///         socket.to("lobby").emit("said", text)
///     });
///     socket.on("disconnect", |reason: DisconnectReason| println!("left: {reason}"));
/// });
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Socket {
    pub(super) server: u16,
    pub(super) nsp: u16,
    pub(super) slot: u32,
    pub(super) generation: u32,
    pub(super) local: PhantomData<*const ()>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("id", &self.try_id()).finish_non_exhaustive()
    }
}

/// Runs `f` on the namespace of a handle; `None` on a foreign thread.
pub(super) fn with_nsp<T>(socket: Socket, f: impl FnOnce(&Rc<NspInner>) -> T) -> Option<T> {
    let nsp = by_index(socket.server)?.namespace_at(socket.nsp).filter(|nsp| nsp.has(socket))?;
    Some(f(&nsp))
}

impl Socket {
    /// The id; once the socket has left, one that belongs to nobody.
    pub fn id(self) -> SocketId {
        self.try_id().unwrap_or_else(|| SocketId::own(SocketSid::from_parts([0; 12], u8::MAX, u32::MAX)))
    }

    fn try_id(self) -> Option<SocketId> {
        with_nsp(self, |nsp| nsp.id(self)).flatten()
    }

    /// Whether it has joined and not left: not in middlewares, still in handlers of `disconnecting`, and no
    /// longer in those of `disconnect`.
    pub fn connected(self) -> bool {
        with_nsp(self, |nsp| nsp.is_present(self)).unwrap_or(false)
    }

    /// The contrary of [`connected`](Self::connected).
    pub fn disconnected(self) -> bool {
        !self.connected()
    }

    /// The name of its namespace.
    pub fn nsp(self) -> String {
        with_nsp(self, |nsp| nsp.scope.nsp.to_string()).unwrap_or_default()
    }

    /// Its namespace; `None` once that is gone.
    pub fn namespace(self) -> Option<Namespace> {
        with_nsp(self, |nsp| Namespace(nsp.clone()))
    }

    /// Its server.
    pub fn server(self) -> Option<Server> {
        by_index(self.server).map(Server)
    }

    /// The client whose connection it uses; `None` once it has left.
    pub fn client(self) -> Option<Client> {
        self.conn().map(|conn| Client { server: self.server, conn })
    }

    /// The request that opened the connection, as far as `engine::Options::kept_head_bytes` lets it be kept;
    /// `None` once it has left.
    pub fn request(self) -> Option<Request> {
        self.with_entry(|entry| entry.request.clone())
    }

    /// What it came with; `None` once it has left.
    pub fn handshake(self) -> Option<Handshake> {
        with_nsp(self, |nsp| nsp.handshake(self)).flatten()
    }

    /// The session below.
    pub fn conn(self) -> Option<engine::Socket> {
        with_nsp(self, |nsp| nsp.with(self, |entry| entry.conn)).flatten()
    }

    /// Attaches a value of yours, in place of an earlier one. It is serialised when
    /// [`fetch_sockets`](super::Namespace::fetch_sockets) asks for it.
    ///
    /// Returns what [`data`](Self::data) gives from now on. Fields that are nobody else's business, or cannot
    /// be serialised, take `#[serde(skip)]`.
    pub fn set_data<T: SocketData>(self, data: T) -> Rc<T> {
        let data = Rc::new(data);
        // The earlier value may call back when it is dropped: not while the table is borrowed.
        drop(with_nsp(self, |nsp| nsp.with(self, |entry| entry.extra_mut().data.replace(data.clone()))));
        data
    }

    /// The value that was attached, if it is of this type. Put a `Cell` or `RefCell` in to change it.
    pub fn data<T: Any>(self) -> Option<Rc<T>> {
        let data = with_nsp(self, |nsp| nsp.with(self, |entry| entry.data())).flatten().flatten()?;
        (data as Rc<dyn Any>).downcast().ok()
    }

    /// Whether it was there before, lost its connection, and has come back: see
    /// [`ConnectionStateRecovery`](super::ConnectionStateRecovery). It is in its rooms then.
    pub fn recovered(self) -> bool {
        with_nsp(self, |nsp| nsp.with(self, |entry| entry.recovered)).flatten().unwrap_or(false)
    }

    /// What [`set_data`](Self::set_data) had attached to a socket that has come back: it was serialised when
    /// the connection was lost, and is read as any other type here. [`data`](Self::data) has it as a
    /// [`Value`] until something else is attached. `None` for a socket that is new, or had no data.
    ///
    /// # Errors
    ///
    /// What was attached does not fit the type.
    pub fn recovered_data<T: DeserializeOwned>(self) -> Option<Result<T, ArgsError>> {
        let data = self.data::<Value>().filter(|data| self.recovered() && !data.is_null())?;
        Some(sio::from_args::<(T,)>(&[(*data).clone()]).map(|(data,)| data))
    }

    /// Joins rooms: those that the limits allow ([`rooms_per_socket`](super::Options::rooms_per_socket),
    /// [`room_name_bytes`](super::Options::room_name_bytes)). The result says whether that were all of them.
    pub fn join(self, rooms: impl RoomNames) -> Joined {
        let mut joined = Joined::Gone;
        with_nsp(self, |nsp| {
            joined = Joined::Yes;
            rooms.each(|room| match nsp.join(self, room) {
                Joined::Yes => {}
                other => joined = other,
            });
        });
        joined
    }

    /// Leaves rooms.
    pub fn leave(self, rooms: impl RoomNames) {
        with_nsp(self, |nsp| rooms.each(|room| nsp.leave_room(self, room)));
    }

    /// The rooms that it is in; the first is that of its own id, unless it has left it.
    pub fn rooms(self) -> Vec<String> {
        with_nsp(self, |nsp| nsp.rooms_of(self)).unwrap_or_default()
    }

    /// Registers a handler for an event; several run in the order in which they were added. The events
    /// `disconnecting` (the socket is still in its rooms) and `disconnect` (it is in none) are the server's
    /// own; their handlers may take a [`DisconnectReason`](super::DisconnectReason), and data, id, handshake
    /// and broadcasts from the socket still work in them. The future of an async one runs when the socket has
    /// gone: take what it needs before the `async` block begins.
    pub fn on<M>(self, event: &str, handler: impl Handler<M>) -> HandlerId {
        self.add_listener(event, boxed(handler), Place::default())
    }

    /// Registers a handler for the next event of that name only.
    pub fn once<M>(self, event: &str, handler: impl Handler<M>) -> HandlerId {
        self.add_listener(event, boxed(handler), Place { once: true, first: false })
    }

    /// Like [`on`](Self::on), before the handlers that are there.
    pub fn prepend_listener<M>(self, event: &str, handler: impl Handler<M>) -> HandlerId {
        self.add_listener(event, boxed(handler), Place { once: false, first: true })
    }

    /// Like [`once`](Self::once), before the handlers that are there.
    pub fn prepend_once_listener<M>(self, event: &str, handler: impl Handler<M>) -> HandlerId {
        self.add_listener(event, boxed(handler), Place { once: true, first: true })
    }

    fn add_listener(self, event: &str, handler: BoxedHandler, place: Place) -> HandlerId {
        let added = self.with_entry(|entry| entry.make_listeners().add(event, handler.clone(), place));
        added.unwrap_or_else(HandlerId::next)
    }

    fn with_entry<T>(self, f: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        with_nsp(self, |nsp| nsp.with(self, f)).flatten()
    }

    /// Removes this socket's handlers of an event, or the one that a [`HandlerId`] names.
    #[doc(alias = "remove_listener")]
    pub fn off<'a>(self, which: impl Into<Off<'a>>) {
        self.remove_listeners(|listeners| listeners.remove(which.into()));
    }

    /// Removes all of this socket's handlers of events. Those of all events and middlewares stay.
    pub fn remove_all_listeners(self) {
        self.remove_listeners(Listeners::clear);
    }

    fn remove_listeners(self, remove: impl FnOnce(&mut Listeners) -> Vec<BoxedHandler>) {
        // Handlers may own what calls back when it is dropped: not while the table is borrowed.
        let _removed = self.with_entry(|entry| {
            let removed = remove(entry.listeners_mut()?);
            entry.tidy_listeners();
            Some(removed)
        });
    }

    /// The events that this socket has handlers for, each once.
    pub fn event_names(self) -> Vec<String> {
        let names = self.with_entry(|entry| entry.listeners().map(|listeners| listeners.names()));
        names.flatten().unwrap_or_default()
    }

    /// This socket's handlers of an event.
    #[doc(alias = "listener_count")]
    pub fn listeners(self, event: &str) -> Vec<HandlerId> {
        let ids = self.with_entry(|entry| entry.listeners().map(|listeners| listeners.of(event)));
        ids.flatten().unwrap_or_default()
    }

    /// Runs `handler` for every event that comes, before all others and before the socket's middlewares;
    /// [`Event`](super::Event) and [`Args`](super::Args) tell which it is.
    pub fn on_any<M>(self, handler: impl Handler<M>) -> HandlerId {
        self.add_general(handler, |general, handler| general.any.add(handler, false))
    }

    /// Like [`on_any`](Self::on_any), before those that are there.
    pub fn prepend_any<M>(self, handler: impl Handler<M>) -> HandlerId {
        self.add_general(handler, |general, handler| general.any.add(handler, true))
    }

    /// Removes one handler of every event that comes; all of them with `None`.
    pub fn off_any(self, which: impl Into<Option<HandlerId>>) {
        self.change_general(|general| general.any.remove(which.into()));
    }

    /// The handlers of every event that comes.
    pub fn listeners_any(self) -> Vec<HandlerId> {
        self.general(|general| general.any.ids())
    }

    /// Runs `handler` for every event that this socket is sent, broadcasts included, before it leaves.
    /// Acknowledgements are no events. A handler that emits to its own socket is called for that as well.
    pub fn on_any_outgoing<M>(self, handler: impl Handler<M>) -> HandlerId {
        self.add_general(handler, |general, handler| general.outgoing.add(handler, false))
    }

    /// Like [`on_any_outgoing`](Self::on_any_outgoing), before those that are there.
    pub fn prepend_any_outgoing<M>(self, handler: impl Handler<M>) -> HandlerId {
        self.add_general(handler, |general, handler| general.outgoing.add(handler, true))
    }

    /// Removes one handler of every event that is sent; all of them with `None`.
    pub fn off_any_outgoing(self, which: impl Into<Option<HandlerId>>) {
        self.change_general(|general| general.outgoing.remove(which.into()));
    }

    /// The handlers of every event that is sent.
    pub fn listeners_any_outgoing(self) -> Vec<HandlerId> {
        self.general(|general| general.outgoing.ids())
    }

    /// Runs `handler` for each event of this socket before the handlers of that event, in the order in which
    /// middlewares were added (the reference's `use`). An `Err` keeps the event from its handlers, and those
    /// of `error` are told: they may take the [`Failure`](super::Failure). Events do not wait for the
    /// async middleware of an earlier one.
    ///
    /// ```no_run
    /// # use sockring::io::{Event, Failure, Socket};
    /// # fn on_connection(socket: Socket) {
    /// socket.middleware(|Event(name): Event| match &*name {
    ///     "launch" => Err(Failure::new("not yet")),
    ///     _ => Ok(()),
    /// });
    /// socket.on("error", |socket: Socket, failure: Failure| socket.emit("refused", failure.message()));
    /// # }
    /// ```
    #[doc(alias = "use")]
    pub fn middleware<M>(self, handler: impl Handler<M>) {
        self.add_general(handler, |general, handler| general.middlewares.add(handler, false));
    }

    fn add_general<M>(
        self,
        handler: impl Handler<M>,
        add: impl FnOnce(&mut General, BoxedHandler) -> HandlerId,
    ) -> HandlerId {
        let handler = boxed(handler);
        self.change_general(|general| add(general, handler.clone())).unwrap_or_else(HandlerId::next)
    }

    fn change_general<T>(self, change: impl FnOnce(&mut General) -> T) -> Option<T> {
        with_nsp(self, |nsp| nsp.change_general(self, change)).flatten()
    }

    fn general<T: Default>(self, read: impl FnOnce(&General) -> T) -> T {
        let read = self.with_entry(|entry| entry.listeners()?.general().map(read));
        read.flatten().unwrap_or_default()
    }

    /// Emits an event to this client. **A tuple is the list of arguments, `()` an empty one, anything else
    /// is one argument**: an array, a list, a struct of any kind, and `None`, which is `null`. What
    /// serialises as bytes (`bytes::Bytes`) travels as binary.
    ///
    /// ```no_run
    /// # fn greet(socket: sockring::io::Socket) -> Result<(), sockring::io::EncodeError> {
    /// # #[derive(serde::Serialize)]
    /// struct Point(f64, f64);
    /// socket.emit("tick", ())?; // emit("tick")
    /// socket.emit("name", "ada")?; // emit("name", "ada")
    /// socket.emit("move", ("ada", 7))?; // emit("move", "ada", 7)
    /// socket.emit("at", [1.5, 2.5])?; // emit("at", [1.5, 2.5])
    /// socket.emit("at", Point(1.5, 2.5))?; // emit("at", [1.5, 2.5])
    /// socket.emit("path", ([1.5, 2.5], vec![3, 4]))?; // emit("path", [1.5, 2.5], [3, 4])
    /// socket.emit("gone", None::<u32>)?; // emit("gone", null)
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// A reserved name, or arguments that cannot be written as JSON or are too large
    /// ([`limits::PACKET_BYTES`](crate::limits::PACKET_BYTES)).
    pub fn emit<T: Serialize>(self, event: &str, args: T) -> Result<Delivery, EncodeError> {
        self.operator().emit(event, args)
    }

    /// Emits the event `message`, as the reference's `send` and `write`.
    ///
    /// # Errors
    ///
    /// Arguments that cannot be written as JSON.
    #[doc(alias = "write")]
    pub fn send<T: Serialize>(self, args: T) -> Result<Delivery, EncodeError> {
        self.emit("message", args)
    }

    /// Emits an event and awaits the client's answer, for as long as the client is there; see
    /// [`timeout`](Self::timeout). A tuple `T` takes all values of the answer, any other type the first.
    pub fn emit_with_ack<T, A>(self, event: &str, args: A) -> AckFuture<T>
    where
        T: DeserializeOwned,
        A: Serialize,
    {
        self.operator().emit_with_ack(event, args)
    }

    /// Emits an event and calls `done` with the values of the client's answer.
    ///
    /// # Errors
    ///
    /// A reserved name, or arguments that cannot be written as JSON; `done` is not called then.
    pub fn emit_with_callback<A: Serialize>(
        self,
        event: &str,
        args: A,
        done: impl FnOnce(Result<Vec<Value>, AckError>) + 'static,
    ) -> Result<Delivery, EncodeError> {
        self.operator().emit_with_callback(event, args, done)
    }

    /// Limits the time for acknowledgements of what is emitted through the result.
    pub fn timeout(self, timeout: Duration) -> SocketOperator {
        SocketOperator { timeout: Some(millis(timeout)), ..self.operator() }
    }

    /// What is emitted through the result is dropped unless the client can take it at once: nothing waits
    /// for it, and nothing was said to it in this turn.
    pub fn volatile(self) -> SocketOperator {
        SocketOperator { volatile: true, ..self.operator() }
    }

    /// Whether what is emitted through the result may be compressed on its way, as it is by default; see
    /// [`BroadcastOperator::compress`].
    pub fn compress(self, compress: bool) -> SocketOperator {
        SocketOperator { plain: !compress, ..self.operator() }
    }

    /// Of the messages with this event and key only the last one waits while the client is slow; see
    /// [`BroadcastOperator::latest`].
    pub fn latest(self, key: impl Hash) -> SocketOperator {
        self.operator().latest(key)
    }

    fn operator(self) -> SocketOperator {
        SocketOperator { socket: self, timeout: None, volatile: false, plain: false, latest: None }
    }

    /// A broadcast to everybody in the namespace but this socket; to nobody if the namespace is gone.
    pub fn broadcast(self) -> BroadcastOperator {
        let own = with_nsp(self, |nsp| nsp.scope.clone());
        let scope = own.or_else(|| by_index(self.server).map(|server| server.nowhere()));
        match scope {
            Some(scope) => BroadcastOperator::new(scope).except(self.id()),
            None => unreachable!("a socket's handle belongs to its core, and cores keep their servers"),
        }
    }

    /// A broadcast to the members of rooms, but not to this socket.
    pub fn to(self, rooms: impl RoomNames) -> BroadcastOperator {
        self.broadcast().to(rooms)
    }

    /// The reference's `in`, which is a keyword here: the same as [`to`](Self::to).
    #[doc(alias = "in")]
    pub fn within(self, rooms: impl RoomNames) -> BroadcastOperator {
        self.to(rooms)
    }

    /// A broadcast to everybody but this socket and the members of rooms.
    pub fn except(self, rooms: impl RoomNames) -> BroadcastOperator {
        self.broadcast().except(rooms)
    }

    /// A broadcast within this process, but not to this socket.
    pub fn local(self) -> BroadcastOperator {
        self.broadcast().local()
    }

    /// Makes the socket leave its namespace; with `close`, the client's connection is closed, and all its
    /// sockets leave.
    pub fn disconnect(self, close: bool) {
        if !close {
            with_nsp(self, |nsp| nsp.disconnect(self));
            return;
        }
        let Some(conn) = self.conn() else { return };
        let Some(server) = by_index(self.server) else { return };
        let sockets = server.client(conn, |client| client.sockets.clone()).unwrap_or_default();
        for socket in sockets.iter().copied() {
            with_nsp(socket, |nsp| nsp.disconnect(socket));
        }
        conn.close();
    }
}

/// What became of joining rooms. A handler that returns [`Full`](Self::Full) has failed.
///
/// ```no_run
/// # use sockring::io::{Data, Failure, Joined, Socket};
/// # fn set_up(socket: Socket) {
/// socket.on("watch", |socket: Socket, Data(topic): Data<String>| match socket.join(topic) {
///     Joined::Full => Err(Failure::new("you watch too much")),
///     Joined::Yes | Joined::Gone => Ok(()),
/// });
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// The socket is in all of the rooms.
    Yes,
    /// The socket has left, or is leaving.
    Gone,
    /// The socket is in too many rooms, or a name is too long: it is in those rooms that fitted.
    Full,
}

impl Outcome for Joined {
    fn into_result(self) -> Result<(), Failure> {
        match self {
            Self::Yes | Self::Gone => Ok(()),
            Self::Full => Err(Failure::internal("the socket cannot join a room")),
        }
    }
}

/// What is emitted to one socket, with conditions. Made by [`Socket::timeout`] and [`Socket::volatile`].
///
/// ```no_run
/// # use std::time::Duration;
/// # use sockring::io::{AckError, Socket};
/// # async fn ask(socket: Socket) {
/// let answer: Result<String, AckError> =
///     socket.timeout(Duration::from_secs(5)).emit_with_ack("name?", ()).await;
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "an operator does nothing until it emits"]
pub struct SocketOperator {
    pub(super) socket: Socket,
    pub(super) timeout: Option<Millis>,
    pub(super) volatile: bool,
    pub(super) plain: bool,
    latest: Option<Key>,
}

impl SocketOperator {
    /// See [`Socket::timeout`].
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(millis(timeout)), ..self }
    }

    /// See [`Socket::volatile`].
    pub fn volatile(self) -> Self {
        Self { volatile: true, ..self }
    }

    /// See [`Socket::compress`].
    pub fn compress(self, compress: bool) -> Self {
        Self { plain: !compress, ..self }
    }

    /// See [`BroadcastOperator::latest`].
    pub fn latest(self, key: impl Hash) -> Self {
        Self { latest: Some(Key::of(&key)), ..self }
    }

    /// See [`Socket::emit`].
    ///
    /// # Errors
    ///
    /// A reserved name, or arguments that cannot be written as JSON.
    pub fn emit<T: Serialize>(self, event: &str, args: T) -> Result<Delivery, EncodeError> {
        let sent = with_nsp(self.socket, |nsp| {
            if let Some(operator) = self.kept(nsp) {
                return operator.emit(event, args);
            }
            // In a middleware: the packet leaves before CONNECT, and nobody can have missed it.
            let early = nsp.is_connecting(self.socket);
            let passing = self.volatile || early;
            let (frame, offset) = nsp.scope.event_to_keep(event, &args, passing)?;
            let frame = if self.plain { frame.uncompressed() } else { frame };
            let frame = nsp.scope.bounded(frame, event, self.latest);
            let marked = passing.then(|| nsp.with_last_offset(&frame)).flatten();
            let frame = marked.unwrap_or(frame);
            let here = early || nsp.is_connected(self.socket);
            let outlet = nsp.with(self.socket, |entry| entry.outlet).filter(|_| here);
            let Some(outlet) = outlet else { return Ok(Delivery::Dropped) };
            if let (Some(offset), Some(id)) = (offset, nsp.id(self.socket)) {
                nsp.keep_own(offset, &id, &frame);
            }
            nsp.tell_outgoing_of(self.socket, &frame);
            if engine::is_watched() {
                return Ok(nsp.send_watched(self.socket, &frame, self.volatile));
            }
            nsp.core.ring_bell();
            Ok(push(&mut nsp.core.outlets(), outlet, &frame, self.volatile))
        });
        sent.unwrap_or(Ok(Delivery::Dropped))
    }

    /// The way by the adapter, if that puts into one order what clients who come back may ask for.
    fn kept(self, nsp: &NspInner) -> Option<BroadcastOperator> {
        nsp.scope.registry.keeper().filter(|_| !self.volatile && nsp.is_connected(self.socket))?;
        let own = BroadcastOperator::new(nsp.scope.clone()).to(nsp.id(self.socket)?);
        Some(own.compress(!self.plain).latest_of(self.latest))
    }

    /// See [`Socket::emit_with_ack`].
    pub fn emit_with_ack<T, A>(self, event: &str, args: A) -> AckFuture<T>
    where
        T: DeserializeOwned,
        A: Serialize,
    {
        let (future, done) = AckFuture::new();
        let shared = Rc::new(std::cell::Cell::new(Some(done)));
        let fulfil = shared.clone();
        let emitted = self.emit_with_callback(event, args, move |result| {
            if let Some(done) = fulfil.take() {
                done(result);
            }
        });
        if let Err(error) = emitted
            && let Some(done) = shared.take()
        {
            done(Err(AckError::Encode(error.to_string())));
        }
        future
    }

    /// See [`Socket::emit_with_callback`].
    ///
    /// # Errors
    ///
    /// A reserved name, or arguments that cannot be written as JSON; `done` is not called then.
    pub fn emit_with_callback<A: Serialize>(
        self,
        event: &str,
        args: A,
        done: impl FnOnce(Result<Vec<Value>, AckError>) + 'static,
    ) -> Result<Delivery, EncodeError> {
        let sent = with_nsp(self.socket, |nsp| nsp.emit_with_ack(self, event, &args, Box::new(done)));
        sent.unwrap_or(Ok(Delivery::Dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_their_text() {
        let sid = SocketSid::from_parts([7; 12], 1, 2);
        let own = SocketId::own(sid);
        assert_eq!(SocketId::v2("/", &sid.to_string()), own);
        assert_eq!(own.to_string().parse(), Ok(own.clone()));
        let elsewhere = SocketId::v2("/chat", &sid.to_string());
        assert_eq!(elsewhere.to_string(), format!("/chat#{sid}"));
        assert_eq!(elsewhere.to_string().parse(), Ok(elsewhere.clone()));
        assert_ne!(elsewhere, own);
        // Of an application that makes its own ids for sessions.
        assert_eq!(SocketId::v2("/", "ticket 7").to_string(), "ticket 7");
    }
}
