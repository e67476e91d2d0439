//! A namespace on one core: its sockets, rooms and handlers.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};
use slab::Slab;
use smallvec::SmallVec;

use super::ack::PendingAck;
use super::broadcast::{BroadcastOperator, Scope, Selection, broadcasts};
use super::broadcast_ack::AskedById;
use super::entry::{Entry, Extra, Stamp, State};
use super::extract::{BoxedHandler, EventContext, Handler, boxed};
use super::listeners::{Listeners, Place};
use super::parent::Parent;
use super::recovery::{self, Recovery};
use super::room_events::RoomListeners;
use super::server::{Inner, by_index};
use super::server_side::ServerListeners;
use super::{
    DisconnectReason, EventError, ExpiredSession, Handle, Handshake, Joined, Socket, SocketData, SocketId,
};
use crate::app::Request;
use crate::engine::{self, SocketSid};
use crate::fanout::{Backpressure, Delivery, Frame, Moment, Outlets, RoomKey, Rooms};
use crate::protocol::sio::Value;
use crate::runtime::{self, Core};
use crate::time::Millis;

/// A namespace of a server, on this core. A clone is a reference to the same.
///
/// ```no_run
/// # use sockring::io::{Data, Failure, Server, Socket};
/// # fn set_up(io: &Server) {
/// let admin = io.of("/admin");
/// admin.middleware(|Data(token): Data<String>| match token.as_str() {
///     "letmein" => Ok(()),
///     _ => Err(Failure::new("not authorized")),
/// });
/// admin.on_connection(|socket: Socket| socket.join("watchers"));
/// # }
/// ```
#[derive(Clone)]
pub struct Namespace(pub(super) Rc<NspInner>);

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace").field("name", &self.0.scope.nsp).finish_non_exhaustive()
    }
}

impl Namespace {
    /// The name, with its slash.
    pub fn name(&self) -> &str {
        &self.0.scope.nsp
    }

    /// Runs `handler` for each socket that joins, once its middlewares have let it in. [`Data`](super::Data)
    /// reads the auth payload.
    pub fn on_connection<M>(&self, handler: impl Handler<M>) -> &Self {
        self.0.connection.borrow_mut().push(boxed(handler));
        self
    }

    /// Runs `handler` for each socket that wants to join, before `on_connection`, in the order in which they
    /// were added (the reference's `use`). An `Err` refuses the socket: the client's `connect_error` has the
    /// failure's message and data. [`Data`](super::Data) reads the auth payload; one that does not fit is
    /// refused as well.
    #[doc(alias = "use")]
    pub fn middleware<M>(&self, handler: impl Handler<M>) -> &Self {
        self.0.middlewares.borrow_mut().push(boxed(handler));
        self
    }

    /// Registers a handler for an event of every socket of this namespace, without the memory that
    /// [`Socket::on`] takes for each. It runs before those of the socket.
    pub fn sockets_on<M>(&self, event: &str, handler: impl Handler<M>) -> &Self {
        self.0.listeners.borrow_mut().add(event, boxed(handler), Place::default());
        self
    }

    /// Runs when a handler of an event fails: its arguments were not what it takes, or it returned an error;
    /// and when a middleware does because of an error that the client may not read
    /// ([`Failure::cause`](super::Failure::cause)). All of these are logged at WARN as well, and counted
    /// (`handler_failures`).
    pub fn on_error(&self, handler: impl Fn(Socket, &EventError) + 'static) -> &Self {
        self.0.on_error.replace(Some(Rc::new(handler)));
        self
    }

    /// Runs `handler` when a socket that had lost its connection can come back no more: with
    /// [`ConnectionStateRecovery`](super::ConnectionStateRecovery), the moment to tell others that it is
    /// gone. It runs on the core where the socket was.
    pub fn on_session_expired(&self, handler: impl Fn(&ExpiredSession) + 'static) -> &Self {
        if let Some(recovery) = &self.0.recovery {
            recovery.on_expired(handler);
        }
        self
    }

    /// Runs `handler` when a client that was slow has taken everything that waited for it, and with each poll
    /// that takes what has waited: the moment to go on for who holds back while
    /// [`buffered`](crate::engine::Socket::buffered) is high, or [`Delivery::Queued`] comes back.
    #[doc(alias = "drain")]
    pub fn on_drain(&self, handler: impl Fn(Socket) + 'static) -> &Self {
        self.0.on_drain.borrow_mut().push(Rc::new(handler));
        self
    }

    /// How much of what is emitted in this namespace may wait for one client, and what is done beyond, in
    /// place of what [`Options::backpressure`](super::Options::backpressure) says. It counts for all cores,
    /// and for what is emitted from now on.
    ///
    /// ```no_run
    /// # use sockring::io::{Backpressure, Policy, Server};
    /// # fn set_up(io: &Server) {
    /// // Who does not keep up sees the newest positions, and the server keeps 200 of them at most.
    /// let last = Backpressure { max_messages: 200, policy: Policy::DropOldest, ..Backpressure::default() };
    /// io.of("/positions").set_backpressure(last);
    /// # }
    /// ```
    pub fn set_backpressure(&self, backpressure: Backpressure) -> &Self {
        self.0.scope.registry.set_backpressure(&self.0.scope.nsp, backpressure);
        self
    }

    /// How many sockets this core has in the namespace.
    pub fn local_sockets(&self) -> usize {
        self.0.rooms.borrow().members(ALL).len()
    }

    /// The sockets that this core has in the namespace.
    pub fn sockets(&self) -> Vec<Socket> {
        self.0.selected(&Selection { moment: Moment::LAST, ..Selection::default() })
    }

    /// The socket of this core with an id.
    pub fn socket(&self, id: &SocketId) -> Option<Socket> {
        let text = id.to_string();
        if let Some((slot, _)) = self.0.owner(&text) {
            return Some(self.0.socket(slot, self.0.sockets.borrow().get(slot as usize)?.generation));
        }
        let named = self.0.ids.borrow().iter().find(|(_, known)| *known == id).map(|(slot, _)| *slot)?;
        let generation = self.0.sockets.borrow().get(named as usize)?.generation;
        Some(self.0.socket(named, generation)).filter(|socket| self.0.is_connected(*socket))
    }

    /// The rooms that sockets of this core are in; those of their own ids are left out.
    pub fn rooms(&self) -> Vec<String> {
        let rooms = self.0.rooms.borrow();
        rooms.names().filter(|room| *room != ALL).map(|room| unescape(room).to_owned()).collect()
    }

    /// A handle for other threads.
    pub fn handle(&self) -> Handle {
        Handle::new(self.0.scope.clone())
    }

    fn operator(&self) -> BroadcastOperator {
        BroadcastOperator::new(self.0.scope.clone())
    }
}

broadcasts!(Namespace, "the namespace");

/// The room of all sockets of a namespace. Nobody else can name it: see [`escape`].
pub(super) const ALL: &str = "\0all";

/// The name that [`escape`] was given.
pub(super) fn unescape(room: &str) -> &str {
    room.strip_suffix('\0').filter(|room| room.starts_with(ALL)).unwrap_or(room)
}

/// A room's name as the tables know it. Names come from clients, and none of them may be [`ALL`].
pub(super) fn escape(room: &str) -> Cow<'_, str> {
    if room.starts_with(ALL) { Cow::Owned(format!("{room}\0")) } else { Cow::Borrowed(room) }
}

type OnError = Rc<dyn Fn(Socket, &EventError)>;
type OnDrain = Rc<dyn Fn(Socket)>;

pub(super) struct NspInner {
    pub(super) server: u16,
    pub(super) index: u16,
    pub(super) scope: Arc<Scope>,
    pub(super) core: Rc<Core>,
    pub(super) sockets: RefCell<Slab<Entry>>,
    pub(super) rooms: RefCell<Rooms>,
    pub(super) acks: RefCell<HashMap<u64, PendingAck, RandomState>>,
    /// Of emits to single sockets: even.
    pub(super) next_ack: Cell<u64>,
    pub(super) asked: AskedById,
    connection: RefCell<Vec<BoxedHandler>>,
    pub(super) middlewares: RefCell<Vec<BoxedHandler>>,
    pub(super) listeners: RefCell<Listeners>,
    pub(super) on_error: RefCell<Option<OnError>>,
    pub(super) on_drain: RefCell<Vec<OnDrain>>,
    /// How many sockets of this core listen to what they are sent.
    pub(super) outgoing: Cell<usize>,
    pub(super) room_listeners: RoomListeners,
    pub(super) server_listeners: ServerListeners,
    marks: RefCell<Marks>,
    /// The ids of sockets that are [named](Entry::named), by their slots.
    ids: RefCell<HashMap<u32, SocketId, RandomState>>,
    /// The server's: an index that was used before must not make an old handle valid again.
    generation: Rc<Cell<u32>>,
    /// What the first socket's handle could have been told apart by.
    born: u32,
    pub(super) recovery: Option<Recovery>,
    /// Rooms of one socket, and bytes of the name of one, at most.
    room_limits: (usize, usize),
    /// Whether it stands in the server's list of those that nobody is in.
    pub(super) idle: Cell<bool>,
    /// The number of the parent, if it has one.
    pub(super) parent: Option<u16>,
    /// Whether it was made because a client asked for it.
    pub(super) by_client: bool,
}

/// What a socket is to others.
pub(super) struct Identity {
    pub(super) id: SocketId,
    /// The name of its own room, if it has no record of being in that.
    pub(super) own: Option<String>,
    pub(super) data: Option<Rc<dyn SocketData>>,
}

impl NspInner {
    /// A namespace of a server, without handlers.
    pub(super) fn new(server: &Inner, index: u16, scope: Arc<Scope>) -> Self {
        Self {
            server: server.index,
            index,
            recovery: server.recovery(&scope),
            room_limits: (server.options.rooms_per_socket, server.options.room_name_bytes),
            idle: Cell::new(false),
            scope,
            core: server.core.clone(),
            sockets: RefCell::default(),
            rooms: RefCell::default(),
            acks: RefCell::default(),
            next_ack: Cell::new(server.first_ack.get()),
            asked: RefCell::default(),
            connection: RefCell::default(),
            middlewares: RefCell::default(),
            listeners: RefCell::default(),
            on_error: RefCell::default(),
            on_drain: RefCell::default(),
            room_listeners: RefCell::default(),
            server_listeners: RefCell::default(),
            outgoing: Cell::new(0),
            marks: RefCell::default(),
            ids: RefCell::default(),
            generation: server.generation.clone(),
            born: server.generation.get(),
            parent: None,
            by_client: false,
        }
    }

    /// A child of a parent, with the handlers that the parent has.
    pub(super) fn child(self, parent: &Parent, by_client: bool) -> Self {
        let template = &parent.template;
        Self {
            connection: template.connection.clone(),
            middlewares: template.middlewares.clone(),
            listeners: template.listeners.clone(),
            on_error: template.on_error.clone(),
            on_drain: template.on_drain.clone(),
            room_listeners: template.room_listeners.clone(),
            server_listeners: template.server_listeners.clone(),
            parent: Some(parent.number),
            by_client,
            ..self
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sockets.borrow().is_empty() && !self.recovery.as_ref().is_some_and(Recovery::is_awaiting)
    }

    /// Lets a child go that no socket is in, if the options say so; otherwise it goes when others need its
    /// place.
    pub(super) fn tidy(self: &Rc<Self>) {
        if self.parent.is_none() || !self.is_empty() {
            return;
        }
        let Some(server) = by_index(self.server) else { return };
        if server.options.cleanup_empty_child_namespaces {
            server.remove(self);
        } else if self.by_client && !self.idle.replace(true) {
            server.idle.borrow_mut().push_back(self.index);
        }
    }

    /// Drops all handlers: they may hold handles on this very namespace.
    pub(super) fn retire(&self) {
        self.retire_sessions();
        self.connection.take();
        self.middlewares.take();
        self.listeners.take();
        self.on_error.take();
        self.on_drain.take();
        self.room_listeners.take();
        self.server_listeners.take();
        self.acks.take();
        self.asked.take();
        self.sockets.take();
    }

    pub(super) fn socket(&self, slot: u32, generation: u32) -> Socket {
        Socket { server: self.server, nsp: self.index, slot, generation, local: PhantomData }
    }

    /// Runs `f` on a socket that has not left.
    pub(super) fn with<T>(&self, socket: Socket, f: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut sockets = self.sockets.borrow_mut();
        let entry = sockets.get_mut(socket.slot as usize)?;
        (entry.generation == socket.generation).then(|| f(entry))
    }

    /// The id of a socket that has not left.
    pub(super) fn id(&self, socket: Socket) -> Option<SocketId> {
        let (sid, named) = self.with(socket, |entry| (entry.sid, entry.named))?;
        if named { self.ids.borrow().get(&socket.slot).cloned() } else { Some(SocketId::own(sid)) }
    }

    /// Whether a socket's handle is of this namespace, and not of one before it at the same index.
    pub(super) fn has(&self, socket: Socket) -> bool {
        let here = |sockets: &Slab<Entry>| {
            sockets.get(socket.slot as usize).is_some_and(|entry| entry.generation == socket.generation)
        };
        // The numbers start again some day: what they say counts for those who have left only.
        self.sockets.try_borrow().is_ok_and(|sockets| here(&sockets))
            || self.born.wrapping_sub(socket.generation).cast_signed() <= 0
    }

    /// Whether a socket has joined, and `disconnect` is not told yet.
    pub(super) fn is_present(&self, socket: Socket) -> bool {
        let present = |entry: &mut Entry| matches!(entry.state, State::Connected | State::Leaving);
        self.with(socket, present).unwrap_or(false)
    }

    pub(super) fn is_connected(&self, socket: Socket) -> bool {
        self.with(socket, |entry| entry.state == State::Connected).unwrap_or(false)
    }

    /// Takes a socket in whose middlewares are still to decide.
    pub(super) fn admit(
        &self,
        conn: engine::Socket,
        random: [u8; 12],
        request: Request,
        auth: Option<Value>,
    ) -> Option<Socket> {
        let outlet = conn.outlet()?;
        let v2 = conn.protocol() == Some(3);
        let mut sockets = self.sockets.borrow_mut();
        let vacant = sockets.vacant_entry();
        let slot = vacant.key() as u32;
        let generation = self.generation.get();
        self.generation.set(generation.wrapping_add(1));
        vacant.insert(Entry {
            sid: SocketSid::from_parts(random, self.core.index() as u8, slot),
            v2,
            named: v2,
            recovered: false,
            generation,
            state: State::Connecting,
            left_own: v2,
            conn,
            outlet: outlet.slot(),
            request,
            issued: Stamp::of(self.core.now()),
            extra: Extra::of_auth(auth),
        });
        if v2 {
            let id = SocketId::v2(&self.scope.nsp, &conn.id());
            self.ids.borrow_mut().insert(slot, id);
        }
        Some(self.socket(slot, generation))
    }

    pub(super) fn auth(&self, socket: Socket) -> Vec<Value> {
        self.with(socket, |entry| vec![entry.auth()]).unwrap_or_default()
    }

    pub(super) fn handshake(&self, socket: Socket) -> Option<Handshake> {
        let age = |issued: Millis| Duration::from_millis(self.core.now().saturating_sub(issued));
        self.with(socket, |entry| Handshake {
            request: entry.request.clone(),
            auth: entry.auth(),
            issued: SystemTime::now() - age(entry.issued.millis()),
        })
    }

    /// Lets a socket in, as the one that it was or as a new one.
    pub(super) fn accept(self: &Rc<Self>, socket: Socket) {
        // It may have left while a middleware ran. What is known of its slot is another's then.
        if !self.is_connecting(socket) {
            return;
        }
        if self.accept_recovered(socket).is_none() && self.accept_new(socket).is_none() {
            return;
        }
        let handlers: SmallVec<[BoxedHandler; 2]> = self.connection.borrow().iter().cloned().collect();
        let auth = self.auth(socket);
        let context = EventContext::new(socket, "connection", &auth);
        if !handlers.iter().all(|handler| self.run(handler, &context)) {
            self.panicked(socket);
        }
    }

    fn accept_new(&self, socket: Socket) -> Option<()> {
        let accepted = self.with(socket, |entry| {
            (entry.state, entry.recovered) = (State::Connected, false);
            (entry.outlet, entry.v2)
        });
        let ((outlet, v2), id) = (accepted?, self.id(socket)?.to_string());
        // Before anybody is told of the socket, who may disconnect it: that ends its session.
        let random = || by_index(self.server)?.ids.borrow_mut().take();
        let recovery = self.recovery.as_ref().filter(|_| !v2);
        let pid = recovery.and_then(|_| self.begin_session(socket.slot, random()?));
        self.join_room(socket, outlet, ALL);
        let answer = if v2 {
            self.join_room(socket, outlet, &escape(&id));
            self.scope.connect_v2()
        } else {
            self.tell_join(socket, &id, true);
            self.scope.connect(&id, pid.map(|pid| pid.to_string()).as_deref())
        };
        let _ = answer.map(|answer| self.send(socket, &answer));
        Some(())
    }

    /// A socket becomes one that was there before. Its outlet.
    pub(super) fn assume(&self, socket: Socket, was: &recovery::State) -> Option<u32> {
        let data: Rc<dyn SocketData> = Rc::new(was.data.clone());
        let outlet = self.with(socket, |entry| {
            (entry.state, entry.named, entry.recovered, entry.left_own) =
                (State::Connected, true, true, true);
            entry.extra_mut().data = Some(data);
            entry.outlet
        })?;
        self.ids.borrow_mut().insert(socket.slot, was.id.clone());
        Some(outlet)
    }

    /// What a socket is that leaves.
    pub(super) fn identity(&self, socket: Socket) -> Option<Identity> {
        let id = self.id(socket)?;
        let (own, data) = self.with(socket, |entry| (!entry.left_own, entry.data()))?;
        Some(Identity { own: own.then(|| id.to_string()), id, data })
    }

    pub(super) fn is_connecting(&self, socket: Socket) -> bool {
        self.with(socket, |entry| entry.state == State::Connecting).unwrap_or(false)
    }

    /// The socket in a slot.
    pub(super) fn socket_at(&self, slot: u32) -> Option<Socket> {
        let generation = self.sockets.borrow().get(slot as usize)?.generation;
        Some(self.socket(slot, generation))
    }

    pub(super) fn room_key<'a>(&self, room: &'a str) -> RoomKey<'a> {
        RoomKey { space: self.scope.space.number(), room }
    }

    /// The client of a socket does not count it any more.
    pub(super) fn drop_client(&self, socket: Socket) {
        if let (Some(server), Some(conn)) = (by_index(self.server), self.with(socket, |entry| entry.conn)) {
            server.client(conn, |client| client.sockets.remove(socket));
        }
    }

    /// A socket has left, or its connection has ended.
    pub(super) fn leave(self: &Rc<Self>, socket: Socket, reason: DisconnectReason, details: &str) {
        let was = self.with(socket, |entry| {
            let was = entry.state;
            if was == State::Connected {
                entry.state = State::Leaving;
            }
            was
        });
        match was {
            Some(State::Connected) => {}
            Some(State::Connecting) => return self.forget(socket),
            Some(State::Leaving | State::Left) | None => return,
        }
        // A handler that panics must not keep the socket in its rooms: its outlet will be another's.
        let left = Some((reason, details));
        let told = |event| self.dispatch(&EventContext { left, ..EventContext::new(socket, event, &[]) });
        runtime::guarded("a handler of a disconnect", || told("disconnecting"));
        self.leave_session(socket, reason);
        self.leave_rooms(socket);
        self.with(socket, |entry| entry.state = State::Left);
        runtime::guarded("a handler of a disconnect", || told("disconnect"));
        self.forget(socket);
    }

    fn leave_rooms(&self, socket: Socket) {
        let watched = self.rooms_are_watched().then(|| (self.id(socket), self.known_rooms(socket)));
        let mut deleted: HashSet<String, RandomState> = HashSet::default();
        let emptied = |room: &str| {
            if self.emptied(room) && watched.is_some() {
                deleted.insert(room.to_owned());
            }
        };
        self.rooms.borrow_mut().leave_all(socket.slot, emptied);
        let own = self.with(socket, |entry| !std::mem::replace(&mut entry.left_own, true));
        if let Some((Some(id), rooms)) = watched {
            if own == Some(true) {
                self.tell_leave(&id, &id.to_string(), true);
            }
            for room in rooms {
                self.tell_leave(&id, &room, deleted.contains(&room));
            }
        }
    }

    /// The rooms of a socket by the names that the tables know, without its own that is not recorded.
    fn known_rooms(&self, socket: Socket) -> Vec<String> {
        if self.with(socket, |_| ()).is_none() {
            return Vec::new();
        }
        self.rooms.borrow().of(socket.slot).map(str::to_owned).collect()
    }

    /// A room has lost its last member here; whether it has none on other cores either.
    fn emptied(&self, room: &str) -> bool {
        match self.held(room) {
            Some(_) => self.is_nowhere_else(room),
            None => self.core.shared().directory.exit(self.room_key(room), self.core.index()),
        }
    }

    /// Whether no other core has members of a room.
    fn is_nowhere_else(&self, room: &str) -> bool {
        let mut cores = self.core.shared().directory.cores(self.room_key(room));
        cores.remove(self.core.index());
        cores.is_empty()
    }

    /// Since when broadcasts find a room here for the sake of sockets that may come back to it.
    fn held(&self, room: &str) -> Option<Moment> {
        self.recovery.as_ref()?.held(room)
    }

    pub(super) fn forget(self: &Rc<Self>, socket: Socket) {
        self.leave_rooms(socket);
        let entry = {
            let mut sockets = self.sockets.borrow_mut();
            let known = sockets.get(socket.slot as usize).is_some_and(|e| e.generation == socket.generation);
            known.then(|| sockets.remove(socket.slot as usize))
        };
        let listeners = entry.as_ref().and_then(|entry| entry.listeners());
        if listeners.and_then(|listeners| listeners.general()).is_some_and(|g| !g.outgoing.is_empty()) {
            self.outgoing.set(self.outgoing.get() - 1);
        }
        if entry.as_ref().is_some_and(|entry| entry.named) {
            self.ids.borrow_mut().remove(&socket.slot);
        }
        if let Some(recovery) = &self.recovery {
            recovery.forget(socket.slot);
        }
        for id in entry.and_then(|entry| entry.extra?.acks).into_iter().flat_map(|acks| *acks) {
            runtime::guarded("the end of an acknowledgement", || self.ack_lost(id));
        }
        self.tidy();
    }

    /// The server lets a socket go.
    pub(super) fn disconnect(self: &Rc<Self>, socket: Socket) {
        let Some(conn) = self.with(socket, |entry| entry.conn) else { return };
        if self.is_connected(socket) {
            let _ = self.scope.disconnect().map(|farewell| conn.send(&farewell));
        }
        self.drop_client(socket);
        self.leave(socket, DisconnectReason::ServerNamespaceDisconnect, "");
    }

    /// Like [`push`], through the session, which tells of it.
    pub(super) fn send_watched(&self, socket: Socket, frame: &Frame, volatile: bool) -> Delivery {
        let outlet = self.with(socket, |entry| entry.outlet);
        if volatile && outlet.is_none_or(|outlet| self.core.outlets().passes_by(outlet)) {
            return Delivery::Dropped;
        }
        self.send(socket, frame)
    }

    pub(super) fn send(&self, socket: Socket, frame: &Frame) -> Delivery {
        match self.with(socket, |entry| entry.conn) {
            Some(conn) => conn.send(frame),
            None => Delivery::Dropped,
        }
    }

    pub(super) fn join_room(&self, socket: Socket, outlet: u32, room: &str) {
        let (mut first, watched) = (false, self.rooms_are_watched());
        let enter = || self.core.shared().directory.enter(self.room_key(room), self.core.index());
        let born = || {
            first = watched && self.is_nowhere_else(room);
            self.held(room).unwrap_or_else(enter)
        };
        let joined = self.rooms.borrow_mut().join(socket.slot, outlet, room, born);
        if joined && watched {
            self.tell_join(socket, room, first);
        }
    }

    /// A socket joins a room; in vain once it is leaving.
    pub(super) fn join(&self, socket: Socket, room: &str) -> Joined {
        let entry = self.with(socket, |entry| {
            let own = entry.is_own(room);
            let again = own && std::mem::replace(&mut entry.left_own, false);
            (entry.outlet, matches!(entry.state, State::Connecting | State::Connected), own, again)
        });
        match entry {
            Some((outlet, true, false, _)) => {
                let room = &*escape(room);
                if !self.may_join(socket, room) {
                    return Joined::Full;
                }
                self.join_room(socket, outlet, room);
            }
            Some((_, _, true, true)) => self.tell_join(socket, room, true),
            Some((_, _, true, false)) => {}
            Some((_, false, false, _)) | None => return Joined::Gone,
        }
        Joined::Yes
    }

    /// Whether a room's name is not too long, and its socket not in too many.
    fn may_join(&self, socket: Socket, room: &str) -> bool {
        let (most, longest) = self.room_limits;
        let refused = |why: std::fmt::Arguments<'_>| {
            if let Some(server) = by_index(self.server) {
                server.told.room_refused(&self.doing("a join of a room", socket, "join"), why);
            }
            false
        };
        if room.len() > longest {
            return refused(format_args!("its name has {} bytes, more than {longest}", room.len()));
        }
        let rooms = self.rooms.borrow();
        if rooms.count_of(socket.slot) > most && !rooms.contains(socket.slot, room) {
            drop(rooms);
            return refused(format_args!("the socket is in {most} rooms already"));
        }
        true
    }

    pub(super) fn leave_room(&self, socket: Socket, room: &str) {
        let own = self
            .with(socket, |entry| entry.is_own(room).then(|| !std::mem::replace(&mut entry.left_own, true)));
        let Some(own) = own else { return };
        let room = &*escape(room);
        let left = self.rooms.borrow_mut().leave(socket.slot, room);
        let mut last = own == Some(true);
        if left == Some(true) {
            last = self.emptied(room);
        }
        if (left.is_some() || own == Some(true))
            && self.rooms_are_watched()
            && let Some(id) = self.id(socket)
        {
            self.tell_leave(&id, room, last);
        }
    }

    /// The rooms of a socket, its own included.
    pub(super) fn rooms_of(&self, socket: Socket) -> Vec<String> {
        let own = self.with(socket, |entry| (!entry.left_own).then(|| entry.sid.to_string()));
        let Some(own) = own else { return Vec::new() };
        let rooms = self.rooms.borrow();
        let joined = rooms.of(socket.slot).filter(|room| *room != ALL).map(str::to_owned);
        own.into_iter().chain(joined).collect()
    }

    /// The socket of this core whose own room has this name.
    fn owner(&self, room: &str) -> Option<(u32, u32)> {
        let sid = SocketSid::parse(room).filter(|sid| sid.core() == self.core.index())?;
        let sockets = self.sockets.borrow();
        let entry = sockets.get(sid.slot() as usize)?;
        let there = entry.sid == sid && entry.state == State::Connected && !entry.left_own;
        there.then_some((sid.slot(), entry.outlet))
    }

    /// Owes a frame to the selected sockets of this core.
    pub(super) fn deliver(self: &Rc<Self>, selection: &Selection, frame: &Frame) {
        let marked = selection.volatile.then(|| self.with_last_offset(frame)).flatten();
        // What a slow socket loses is its own affair: its limit closes it.
        self.owe(selection, marked.as_ref().unwrap_or(frame), |_, _| ());
    }

    /// Owes a frame to the selected sockets of this core; `each` is told the slot and what became of it.
    #[inline]
    pub(super) fn owe(
        self: &Rc<Self>,
        selection: &Selection,
        frame: &Frame,
        mut each: impl FnMut(u32, Delivery),
    ) {
        self.tell_outgoing(selection, frame);
        let volatile = selection.volatile;
        if engine::is_watched() {
            for socket in self.selected(selection) {
                each(socket.slot, self.send_watched(socket, frame, volatile));
            }
            return;
        }
        let mut outlets = self.core.outlets();
        self.select(selection, |slot, outlet| each(slot, push(&mut outlets, outlet, frame, volatile)));
        drop(outlets);
        self.core.ring_bell();
    }

    /// Calls `f` with slot and outlet of each selected socket of this core, once.
    pub(super) fn select(&self, selection: &Selection, mut f: impl FnMut(u32, u32)) {
        let (rooms, moment) = (self.rooms.borrow(), selection.moment);
        // One room and nobody left out is what most broadcasts are: nothing is marked then.
        if let ([] | [_], []) = (&*selection.rooms, &*selection.except) {
            let room = selection.rooms.first().map_or(ALL, |room| room);
            for member in rooms.members_at(room, moment) {
                f(member.member, member.outlet);
            }
            if let Some((slot, outlet)) = self.owner(room)
                && !rooms.contains(slot, room)
            {
                f(slot, outlet);
            }
            return;
        }
        let mut marks = self.marks.borrow_mut();
        marks.clear();
        for room in &selection.except {
            rooms.members(room).iter().for_each(|member| {
                marks.mark(member.member);
            });
            if let Some((slot, _)) = self.owner(room) {
                marks.mark(slot);
            }
        }
        if selection.rooms.is_empty() {
            for member in rooms.members_at(ALL, moment) {
                if marks.mark(member.member) {
                    f(member.member, member.outlet);
                }
            }
        }
        for room in &selection.rooms {
            for member in rooms.members_at(room, moment) {
                if marks.mark(member.member) {
                    f(member.member, member.outlet);
                }
            }
            if let Some((slot, outlet)) = self.owner(room)
                && marks.mark(slot)
            {
                f(slot, outlet);
            }
        }
    }

    /// The selected sockets of this core.
    pub(super) fn selected(&self, selection: &Selection) -> Vec<Socket> {
        let mut slots = Vec::new();
        self.select(selection, |slot, _| slots.push(slot));
        let sockets = self.sockets.borrow();
        let socket = |slot: u32| Some(self.socket(slot, sockets.get(slot as usize)?.generation));
        slots.into_iter().filter_map(socket).collect()
    }
}

/// Owes a frame to an outlet, unless it is volatile and the client is busy.
pub(super) fn push(outlets: &mut Outlets, outlet: u32, frame: &Frame, volatile: bool) -> Delivery {
    if volatile { outlets.push_volatile(outlet, frame) } else { outlets.push_slot(outlet, frame) }
}

/// Which slots were seen, without clearing anything in between.
#[derive(Default)]
struct Marks {
    epoch: u32,
    seen: Vec<u32>,
}

impl Marks {
    fn clear(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.seen.fill(0);
            self.epoch = 1;
        }
    }

    /// Marks a slot; whether it was unmarked.
    fn mark(&mut self, slot: u32) -> bool {
        let slot = slot as usize;
        if self.seen.len() <= slot {
            self.seen.resize(slot + 1, 0);
        }
        std::mem::replace(&mut self.seen[slot], self.epoch) != self.epoch
    }
}
