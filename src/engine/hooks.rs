//! Closures for the rarer events of an engine, added to it once it is attached.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::headers::Headers;
use super::middleware::Next;
use super::server::with_server;
use super::{CloseReason, ConnectionError, Server, Socket};
use crate::app::{Answering, Request};
use crate::protocol::eio::Packet;

/// Closures for one event.
pub(super) type Hook<F> = Vec<Rc<F>>;

type OnError = dyn Fn(&ConnectionError<'_>);
type OnHeaders = dyn Fn(&mut Headers, &Request);
type OnSocket = dyn Fn(Socket);
type OnPacket = dyn Fn(Socket, &Packet<'_>);
type OnClose = dyn Fn(Socket, CloseReason, &str);

/// What the `on_*` methods of [`Server`] have added.
#[derive(Default)]
pub(super) struct Hooks {
    all: RefCell<Lists>,
    /// Those of single sessions.
    own: RefCell<HashMap<Socket, Lists, RandomState>>,
    /// Whether a session has had one for what it is sent.
    own_watched: Cell<bool>,
}

#[derive(Default)]
pub(super) struct Lists {
    pub(super) connection_error: Hook<OnError>,
    pub(super) initial_headers: Hook<OnHeaders>,
    pub(super) headers: Hook<OnHeaders>,
    pub(super) connection: Hook<OnSocket>,
    pub(super) upgrading: Hook<OnSocket>,
    pub(super) upgrade: Hook<OnSocket>,
    pub(super) heartbeat: Hook<OnSocket>,
    pub(super) packet: Hook<OnPacket>,
    pub(super) packet_create: Hook<OnPacket>,
    pub(super) flush: Hook<OnSocket>,
    pub(super) drain: Hook<OnSocket>,
    pub(super) close: Hook<OnClose>,
}

impl Lists {
    /// Whether a closure wants to know what is sent.
    fn watch(&self) -> bool {
        !(self.packet_create.is_empty() && self.flush.is_empty() && self.drain.is_empty())
    }
}

thread_local! {
    /// Whether an engine of this core has a closure for what is sent.
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

/// Whether somebody may want to know of each packet that a session is sent. Layers above that owe frames to
/// outlets themselves, as broadcasts do, go through each session then.
pub(crate) fn is_watched() -> bool {
    WATCHED.get()
}

impl Hooks {
    /// Whether nobody listens to an event of what is sent: then nothing has to be prepared for it.
    pub(super) fn none<F: ?Sized>(&self, list: impl FnOnce(&Lists) -> &Hook<F>) -> bool {
        list(&self.all.borrow()).is_empty() && !self.own_watched.get()
    }

    /// Runs the closures of an event, which may add others meanwhile.
    pub(super) fn each<F: ?Sized>(&self, list: impl FnOnce(&Lists) -> &Hook<F>, run: impl FnMut(&F)) {
        let hooks = {
            let lists = self.all.borrow();
            let hooks = list(&lists);
            if hooks.is_empty() {
                return;
            }
            hooks.clone()
        };
        hooks.iter().map(|hook| &**hook).for_each(run);
    }

    /// Runs the closures of an event of a session: the engine's, then its own.
    pub(super) fn each_of<F: ?Sized>(
        &self,
        socket: Socket,
        list: impl Fn(&Lists) -> &Hook<F>,
        mut run: impl FnMut(&F),
    ) {
        self.each(&list, &mut run);
        let own = {
            let own = self.own.borrow();
            if own.is_empty() {
                return;
            }
            own.get(&socket).map(|lists| list(lists).clone()).unwrap_or_default()
        };
        own.iter().map(|hook| &**hook).for_each(run);
    }

    /// The same where the session is all there is to tell.
    pub(super) fn tell(&self, list: impl Fn(&Lists) -> &Hook<OnSocket>, socket: Socket) {
        self.each_of(socket, list, |hook| hook(socket));
    }

    fn add(&self, add: impl FnOnce(&mut Lists)) {
        let mut lists = self.all.borrow_mut();
        add(&mut lists);
        if lists.watch() {
            WATCHED.set(true);
        }
    }

    fn add_own(&self, socket: Socket, add: impl FnOnce(&mut Lists)) {
        let mut own = self.own.borrow_mut();
        let lists = own.entry(socket).or_default();
        add(lists);
        if lists.watch() {
            self.own_watched.set(true);
            WATCHED.set(true);
        }
    }

    /// A session has ended, and its closures go.
    pub(super) fn forget(&self, socket: Socket) {
        if self.own.borrow().is_empty() {
            return;
        }
        let own = self.own.borrow_mut().remove(&socket);
        drop(own);
    }

    /// Drops all closures: they may hold the server.
    pub(super) fn clear(&self) {
        drop((self.all.take(), self.own.take()));
    }
}

/// Adds a closure for an event.
macro_rules! hooks {
    ($($(#[$doc:meta])* $name:ident: $list:ident($($argument:ty),*);)*) => {$(
        $(#[$doc])*
        pub fn $name(&self, f: impl Fn($($argument),*) + 'static) -> &Self {
            self.0.hooks.add(|lists| lists.$list.push(Rc::new(f)));
            self
        }
    )*};
}

/// Adds a closure for an event of one session.
macro_rules! own_hooks {
    ($($(#[$doc:meta])* $name:ident: $list:ident($($argument:ty),*);)*) => {$(
        $(#[$doc])*
        pub fn $name(self, f: impl Fn($($argument),*) + 'static) -> Self {
            with_server(self, |server| {
                if server.with(self, |_| ()).is_some() {
                    server.hooks.add_own(self, |lists| lists.$list.push(Rc::new(f)));
                }
            });
            self
        }
    )*};
}

/// Events of this session. Closures run behind those of the [`Server`] and go with the session; added to one
/// that has ended, they do nothing.
///
/// ```no_run
/// # use sockring::io::Socket;
/// # fn on_connection(socket: Socket) {
/// let Some(conn) = socket.conn() else { return };
/// conn.on_upgrade(|conn| println!("now over {:?}", conn.transport()));
/// # }
/// ```
impl Socket {
    own_hooks! {
        /// Runs when the client has probed another transport.
        on_upgrading: upgrading(Self);
        /// Runs when the session has moved to another transport.
        on_upgrade: upgrade(Self);
        /// Runs when the client has answered a ping.
        on_heartbeat: heartbeat(Self);
        /// Runs for each packet that comes, before it is handled.
        on_packet: packet(Self, &Packet<'_>);
        /// Runs for each packet that is sent, before it leaves. From the first such closure on, or one of
        /// `on_flush` or `on_drain`, each broadcast of this core goes through every session by itself.
        on_packet_create: packet_create(Self, &Packet<'_>);
        /// Runs when packets are handed to the transport.
        on_flush: flush(Self);
        /// Runs when what was flushed has been handed to the kernel, and nothing waits.
        on_drain: drain(Self);
        /// Runs when the session has ended: with the reason, and with details, which may be empty.
        on_close: close(Self, CloseReason, &str);
    }
}

/// Events and middlewares. Closures run in the order in which they were added, on the core of their request
/// or session; what nobody listens to costs nothing.
impl Server {
    hooks! {
        /// Runs for each request that is refused.
        on_connection_error: connection_error(&ConnectionError<'_>);
        /// Runs before the first answer to a session leaves, and may change its headers: the handshake over
        /// polling, or the 101 of a WebSocket.
        on_initial_headers: initial_headers(&mut Headers, &Request);
        /// Runs before each answer to a session leaves over polling, and before each 101, and may change the
        /// headers.
        on_headers: headers(&mut Headers, &Request);
        /// Runs when a session has opened, after the handler that attached the engine.
        on_connection: connection(Socket);
        /// Runs when a client has probed another transport.
        on_upgrading: upgrading(Socket);
        /// Runs when a session has moved to another transport.
        on_upgrade: upgrade(Socket);
        /// Runs when a client has answered a ping.
        on_heartbeat: heartbeat(Socket);
        /// Runs for each packet of an open session, before it is handled.
        on_packet: packet(Socket, &Packet<'_>);
        /// Runs for each packet that a session is sent, before it leaves: messages, those of broadcasts among
        /// them, pings, and the packets of the handshake. With such a closure, or one for
        /// [`on_flush`](Self::on_flush) or [`on_drain`](Self::on_drain), a broadcast goes through each
        /// session of this core by itself, which costs several times as much.
        on_packet_create: packet_create(Socket, &Packet<'_>);
        /// Runs when packets of a session are handed to its transport: a poll is answered, or something is
        /// sent over a WebSocket.
        on_flush: flush(Socket);
        /// Runs when what was flushed has been handed to the kernel, and nothing waits.
        on_drain: drain(Socket);
        /// Runs when a session has ended, after the handler that attached the engine: with the reason, and
        /// with details, which may be empty.
        on_close: close(Socket, CloseReason, &str);
    }

    /// Adds a middleware, the reference's `use`: it sees every HTTP request below the path, WebSocket
    /// handshakes included, before the engine checks it. It may be async, change the headers of the answer,
    /// and answer the request itself. WebTransport sessions, once there are any, have no request: they are
    /// refused where there are middlewares.
    ///
    /// ```no_run
    /// # use sockring::{app::Request, engine::{Next, Server}};
    /// # fn set_up(engine: &Server) {
    /// engine.middleware(|request: Request, next: Next| async move {
    ///     match request.header("authorization") {
    ///         Some(_) => next.next(),
    ///         None => next.fail("no token"),
    ///     }
    /// });
    /// # }
    /// ```
    pub fn middleware<R, M>(&self, f: impl Fn(Request, Next) -> R + 'static) -> &Self
    where
        R: Answering<M>,
    {
        let middleware = move |request: Request, next: Next| f(request, next).finish();
        self.0.middlewares.borrow_mut().push(Rc::new(middleware));
        self
    }
}
