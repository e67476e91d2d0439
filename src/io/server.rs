//! A Socket.IO server on one core.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use slab::Slab;

use super::broadcast::{BroadcastOperator, Scope, broadcasts};
use super::broadcast_ack::Watches;
use super::client::Client;
use super::extract::Handler;
use super::namespace::{Namespace, NspInner};
use super::{Handle, Options, Socket, client_files};
use crate::app::{App, Layer};
use crate::engine::{self, CloseReason, Closing, Events, IdPool, Message};
use crate::fanout::OutletId;
use crate::protocol::sio::{NspName, Parser};
use crate::runtime::Core;
use crate::time::Millis;

/// A Socket.IO server on one core. A clone is a reference to the same.
///
/// It stands for the main namespace `/` as well: what a [`Namespace`] does, this does for `/`.
///
/// ```no_run
/// # use sockring::app::App;
/// # use sockring::io::{Options, Server, Socket};
/// # fn set_up(app: &App) {
/// let io = Server::attach_app(app, Options::default());
/// io.on_connection(|socket: Socket| {
///     let _ = socket.broadcast().emit("joined", socket.id());
/// });
/// io.of("/admin").on_connection(|_: Socket| ());
/// # }
/// ```
#[derive(Clone)]
pub struct Server(pub(super) Rc<Inner>);

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("io::Server").field("path", &self.0.path).finish_non_exhaustive()
    }
}

thread_local! {
    static SERVERS: RefCell<Vec<Rc<Inner>>> = const { RefCell::new(Vec::new()) };
}

/// The server of a number that a handle carries; `None` on a foreign thread.
pub(super) fn by_index(index: u16) -> Option<Rc<Inner>> {
    SERVERS.with_borrow(|servers| servers.get(usize::from(index)).cloned())
}

/// The server of this core with a path.
pub(super) fn by_path(path: &str) -> Option<Rc<Inner>> {
    SERVERS.with_borrow(|servers| servers.iter().find(|server| *server.path == *path).cloned())
}

pub(super) struct Inner {
    pub(super) index: u16,
    pub(super) path: Arc<str>,
    pub(super) core: Rc<Core>,
    pub(super) options: Options,
    pub(super) namespaces: RefCell<Vec<Rc<NspInner>>>,
    pub(super) ids: RefCell<IdPool>,
    pub(super) parser: RefCell<Parser>,
    /// By the slot of the engine's session.
    pub(super) clients: RefCell<Vec<Option<Client>>>,
    /// Clients in the order in which they came, with the time by which they must have joined a namespace.
    pub(super) unjoined: RefCell<VecDeque<(Millis, engine::Socket)>>,
    /// Acknowledgements that are awaited, by the time at which they are given up.
    ack_deadlines: RefCell<BinaryHeap<Reverse<(Millis, u16, u64)>>>,
    /// Broadcasts of this core that await answers.
    pub(super) watches: Watches,
    engine: RefCell<Option<engine::Server>>,
}

impl Server {
    /// Serves Socket.IO on an App.
    pub fn attach_app(app: &App, options: Options) -> Self {
        let prefix = options.engine.prefix();
        client_files::serve(app, &prefix, &options);
        let engine_options = options.engine.clone();
        let inner = Rc::new(Inner {
            index: SERVERS.with_borrow(|servers| servers.len() as u16),
            path: prefix.into(),
            core: app.core().clone(),
            options,
            namespaces: RefCell::default(),
            ids: RefCell::default(),
            parser: RefCell::default(),
            clients: RefCell::new(Vec::with_capacity(app.core().table_reserve())),
            unjoined: RefCell::default(),
            ack_deadlines: RefCell::default(),
            watches: Watches::default(),
            engine: RefCell::default(),
        });
        SERVERS.with_borrow_mut(|servers| servers.push(inner.clone()));
        inner.namespace_or_new("/").sockets.replace(Slab::with_capacity(app.core().table_reserve()));
        let engine = engine::Server::attach(app, engine_options, Upward(inner.clone()));
        inner.engine.replace(Some(engine));
        app.0.add_layer(Rc::new(Upward(inner.clone())));
        Self(inner)
    }

    /// A namespace, made if it is new. Clients join it by name; `""` and `"chat"` mean `/` and `/chat`.
    pub fn of(&self, name: &str) -> Namespace {
        Namespace(self.0.namespace_or_new(name))
    }

    /// The main namespace.
    pub fn sockets(&self) -> Namespace {
        self.of("/")
    }

    /// The engine below.
    pub fn engine(&self) -> Option<engine::Server> {
        self.0.engine.borrow().clone()
    }

    /// Closes the server on all cores: its sockets leave with the reason `server shutting down`, those of
    /// this core before this returns, and their connections end. Clients that come, or come back, are
    /// refused. The App goes on, with other servers and routes; [`Running::shutdown`] ends it.
    ///
    /// [`Running::shutdown`]: crate::runtime::Running::shutdown
    pub fn close(&self) -> Closing {
        let path = self.0.path.clone();
        Closing::begin(&self.0.core, move || {
            if let Some(server) = by_path(&path) {
                server.close();
            }
        })
    }

    /// A handle for other threads.
    pub fn handle(&self) -> Handle {
        Handle::new(self.0.main().scope.clone())
    }

    /// The path, with its slashes.
    pub fn path(&self) -> &str {
        &self.0.path
    }

    /// See [`Namespace::on_connection`].
    pub fn on_connection<M>(&self, handler: impl Handler<M>) -> &Self {
        self.sockets().on_connection(handler);
        self
    }

    /// See [`Namespace::middleware`].
    pub fn middleware<M>(&self, handler: impl Handler<M>) -> &Self {
        self.sockets().middleware(handler);
        self
    }

    /// See [`Namespace::sockets_on`].
    pub fn sockets_on<M>(&self, event: &str, handler: impl Handler<M>) -> &Self {
        self.sockets().sockets_on(event, handler);
        self
    }

    /// See [`Namespace::on_error`].
    pub fn on_error(&self, handler: impl Fn(Socket, &super::EventError) + 'static) -> &Self {
        self.sockets().on_error(handler);
        self
    }

    fn operator(&self) -> BroadcastOperator {
        BroadcastOperator::new(self.0.main().scope.clone())
    }
}

broadcasts!(Server, "`/`");

impl Inner {
    pub(super) fn main(&self) -> Rc<NspInner> {
        // The constructor makes it first, and namespaces stay.
        self.namespaces.borrow()[0].clone()
    }

    pub(super) fn namespace(&self, name: &str) -> Option<Rc<NspInner>> {
        self.namespaces.borrow().iter().find(|nsp| *nsp.scope.nsp == *name).cloned()
    }

    pub(super) fn namespace_at(&self, index: u16) -> Option<Rc<NspInner>> {
        self.namespaces.borrow().get(usize::from(index)).cloned()
    }

    fn namespace_or_new(&self, name: &str) -> Rc<NspInner> {
        let name = NspName::from(name);
        if let Some(known) = self.namespace(&name) {
            return known;
        }
        let shared = self.core.shared().clone();
        let space = shared.directory.space(&format!("{}\0{name}", self.path));
        let scope = Arc::new(Scope {
            shared,
            path: self.path.clone(),
            nsp: name,
            space,
            adapter: self.options.adapter.clone(),
        });
        let mut namespaces = self.namespaces.borrow_mut();
        let nsp = Rc::new(NspInner::new(self.index, namespaces.len() as u16, scope, self.core.clone()));
        namespaces.push(nsp.clone());
        nsp
    }

    /// Lets all clients of this core go, and takes no more.
    fn close(&self) {
        let conns: Vec<engine::Socket> =
            self.clients.borrow().iter().flatten().map(|client| client.conn).collect();
        for conn in conns {
            self.client_closed(conn, CloseReason::ServerShuttingDown, "");
        }
        let engine = self.engine.borrow().clone();
        if let Some(engine) = engine {
            engine.retire();
        }
    }

    /// An acknowledgement is given up at a time unless it comes before.
    pub(super) fn await_ack(&self, deadline: Millis, nsp: u16, id: u64) {
        self.ack_deadlines.borrow_mut().push(Reverse((deadline, nsp, id)));
    }

    fn expire(&self, now: Millis) {
        self.watches.expire(now);
        loop {
            let due = self.unjoined.borrow_mut().pop_front_if(|(deadline, _)| *deadline <= now);
            let Some((_, conn)) = due else { break };
            self.connect_timed_out(conn);
        }
        loop {
            let due = match self.ack_deadlines.borrow_mut().peek_mut() {
                Some(first) if first.0.0 <= now => PeekMut::pop(first).0,
                _ => break,
            };
            if let Some(nsp) = self.namespace_at(due.1) {
                nsp.ack_timed_out(due.2);
            }
        }
    }
}

/// The server as the layers below see it.
pub(super) struct Upward(pub(super) Rc<Inner>);

impl Events for Upward {
    fn connection(&self, socket: engine::Socket) {
        self.0.client_connected(socket);
    }

    fn message(&self, socket: engine::Socket, message: Message<'_>) {
        self.0.client_message(socket, message);
    }

    fn drain(&self, _: engine::Socket) {}

    fn close(&self, socket: engine::Socket, reason: CloseReason, details: &str) {
        self.0.client_closed(socket, reason, details);
    }
}

impl Layer for Upward {
    fn owed(&self, _: OutletId) {}

    fn overflowed(&self, _: OutletId) {}

    fn tick(&self, now: Millis) {
        self.0.expire(now);
    }

    fn shutdown(&self) {}

    fn stopped(&self) {
        // The engine's events lead back here, and handlers may hold servers and namespaces.
        self.0.engine.take();
        self.0.watches.clear();
        self.0.namespaces.borrow().iter().for_each(|nsp| nsp.retire());
    }
}
