//! Closures for the rarer events of an engine, added to it once it is attached.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::headers::Headers;
use super::middleware::Next;
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
pub(super) struct Hooks(RefCell<Lists>);

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
    /// Whether nobody listens to an event: then nothing has to be prepared for it.
    pub(super) fn none<F: ?Sized>(&self, list: impl FnOnce(&Lists) -> &Hook<F>) -> bool {
        list(&self.0.borrow()).is_empty()
    }

    /// Runs the closures of an event, which may add others meanwhile.
    pub(super) fn each<F: ?Sized>(&self, list: impl FnOnce(&Lists) -> &Hook<F>, run: impl FnMut(&F)) {
        let hooks = {
            let lists = self.0.borrow();
            let hooks = list(&lists);
            if hooks.is_empty() {
                return;
            }
            hooks.clone()
        };
        hooks.iter().map(|hook| &**hook).for_each(run);
    }

    /// Runs the closures of an event of a session.
    pub(super) fn tell(&self, list: impl FnOnce(&Lists) -> &Hook<OnSocket>, socket: Socket) {
        self.each(list, |hook| hook(socket));
    }

    fn add(&self, add: impl FnOnce(&mut Lists)) {
        let mut lists = self.0.borrow_mut();
        add(&mut lists);
        if !(lists.packet_create.is_empty() && lists.flush.is_empty() && lists.drain.is_empty()) {
            WATCHED.set(true);
        }
    }

    /// Drops all closures: they may hold the server.
    pub(super) fn clear(&self) {
        self.0.take();
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
