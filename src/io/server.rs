//! A Socket.IO server on one core.

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use regex::Regex;
use slab::Slab;

use super::broadcast::{BroadcastOperator, Scope, broadcasts};
use super::broadcast_ack::Watches;
use super::client::{Client, UNJOINED_MIN};
use super::extract::Handler;
use super::namespace::{ALL, Namespace, NspInner};
use super::parent::{Parent, ParentNamespace, Permit, Rule};
use super::recovery::{Recovery, Usage};
use super::registry::Registry;
use super::told::Told;
use super::unfinished::Unfinished;
use super::wire::Incoming;
use super::{Adapter, Handle, Handshake, Options, Parser, Socket, client_files};
use crate::app::{App, Layer};
use crate::engine::{self, CloseReason, Closing, Events, IdPool, Message};
use crate::fanout::{OutletId, Rooms};
use crate::protocol::Shown;
use crate::protocol::sio::NspName;
use crate::runtime::{self, Core, Sample, Value};
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
    namespaces: RefCell<Namespaces>,
    pub(super) parents: RefCell<Vec<Rc<Parent>>>,
    new_namespace: RefCell<Vec<OnNewNamespace>>,
    /// How many namespaces clients have made.
    pub(super) dynamic: Cell<usize>,
    /// What the next socket's handle is told apart by.
    pub(super) generation: Rc<Cell<u32>>,
    /// Where a new namespace's acknowledgements begin: those that one before it at the same index has
    /// awaited may still have deadlines.
    pub(super) first_ack: Cell<u64>,
    pub(super) registry: Arc<Registry>,
    /// When to look next for sockets that have been gone for too long.
    next_sweep: Cell<Millis>,
    recovery_usage: Rc<Usage>,
    pub(super) ids: RefCell<IdPool>,
    pub(super) incoming: Incoming,
    /// Clients that owe attachments of a packet, and until when.
    pub(super) announced: RefCell<HashMap<engine::Socket, Millis, RandomState>>,
    /// By the slot of the session of this server's own engine.
    pub(super) clients: RefCell<Vec<Option<Client>>>,
    /// Those of other engines.
    pub(super) guests: RefCell<HashMap<engine::Socket, Client, RandomState>>,
    /// The number of the engine.
    pub(super) own: Cell<u16>,
    /// Events that wait for their handlers.
    pub(super) unfinished: Unfinished,
    /// Clients in the order in which they came, with the time by which they must have joined a namespace.
    /// Some have joined since then.
    pub(super) unjoined: RefCell<VecDeque<(Millis, engine::Socket)>>,
    /// How many those may be before those that have joined are taken out.
    pub(super) unjoined_max: Cell<usize>,
    /// Acknowledgements that are awaited, by the time at which they are given up, with their namespace.
    ack_deadlines: RefCell<BTreeSet<(Millis, u16, u64)>>,
    /// Namespaces that clients have made and nobody is in, in the order in which they first became
    /// empty. Some have been joined since then.
    pub(super) idle: RefCell<VecDeque<u16>>,
    pub(super) told: Told,
    /// Broadcasts of this core that await answers.
    pub(super) watches: Watches,
    /// What the application shares between handlers, by type.
    pub(super) state: RefCell<HashMap<TypeId, Rc<dyn Any>, RandomState>>,
    engine: RefCell<Option<engine::Server>>,
}

type OnNewNamespace = Rc<dyn Fn(Namespace)>;

/// The namespaces of this core, by index and by name.
#[derive(Default)]
struct Namespaces {
    slots: Slab<Rc<NspInner>>,
    by_name: HashMap<NspName, u16, RandomState>,
}

/// Sockets that may come back do so for this much longer than they should.
const RECOVERY_SWEEP: Millis = 100;
/// Namespaces that one core can have: an index has 16 bits.
const NAMESPACES_MAX: usize = u16::MAX as usize;
/// Of them, those that clients can make at most: the application has some for itself.
const DYNAMIC_MAX: usize = 60_000;

impl Server {
    /// Serves Socket.IO on an App.
    pub fn attach_app(app: &App, options: Options) -> Self {
        client_files::serve(app, &options.engine.prefix(), &options);
        let engine_options = options.engine.clone();
        let inner = Self::make(app, options);
        inner.clients.replace(Vec::with_capacity(app.core().table_reserve()));
        let engine = engine::Server::attach(app, engine_options, Upward(inner.clone()));
        inner.own.set(engine.number());
        inner.engine.replace(Some(engine));
        app.0.add_layer(Rc::new(Upward(inner.clone())));
        Self(inner)
    }

    pub(super) fn make(app: &App, mut options: Options) -> Rc<Inner> {
        options.dynamic_namespaces = options.dynamic_namespaces.min(DYNAMIC_MAX);
        let prefix = options.engine.prefix();
        let registry = Registry::of(app.core().shared(), &prefix);
        registry.wire.set(options.parser.clone());
        registry.set_adapter(options.adapter.clone());
        registry.set_usual_backpressure(options.backpressure);
        registry.set_recovery(options.connection_state_recovery.is_some());
        let inner = Rc::new(Inner {
            index: SERVERS.with_borrow(|servers| servers.len() as u16),
            path: prefix.into(),
            core: app.core().clone(),
            options,
            namespaces: RefCell::default(),
            parents: RefCell::default(),
            new_namespace: RefCell::default(),
            dynamic: Cell::new(0),
            generation: Rc::default(),
            first_ack: Cell::new(0),
            registry,
            next_sweep: Cell::new(0),
            recovery_usage: Rc::default(),
            ids: RefCell::default(),
            incoming: Incoming::default(),
            announced: RefCell::default(),
            clients: RefCell::default(),
            guests: RefCell::default(),
            own: Cell::new(u16::MAX),
            unfinished: Unfinished::default(),
            unjoined: RefCell::default(),
            unjoined_max: Cell::new(UNJOINED_MIN),
            ack_deadlines: RefCell::default(),
            idle: RefCell::default(),
            told: Told::default(),
            watches: Watches::default(),
            state: RefCell::default(),
            engine: RefCell::default(),
        });
        SERVERS.with_borrow_mut(|servers| servers.push(inner.clone()));
        let main = inner.create(NspName::default(), None, false);
        main.sockets.replace(Slab::with_capacity(app.core().table_reserve()));
        main.rooms.replace(Rooms::with_reserve(app.core().table_reserve()));
        inner
    }

    /// A namespace, made if it is new. Clients join it by name; `""` and `"chat"` mean `/` and `/chat`. If a
    /// pattern of [`of_pattern`](Self::of_pattern) matches the name, it becomes a child of that parent.
    pub fn of(&self, name: &str) -> Namespace {
        Namespace(self.0.namespace_or_new(name))
    }

    /// The namespaces whose names match a pattern, slash included, each of them made when a client asks for
    /// it. Write `^` and `$`, or the pattern may match anywhere in a name. Of several parents that fit the
    /// one made first counts; a namespace that is there goes before all of them.
    ///
    /// ```no_run
    /// # fn set_up(io: &sockring::io::Server) -> Result<(), regex::Error> {
    /// let workspaces = io.of_pattern(regex::Regex::new(r"^/workspace-\d+$")?);
    /// workspaces.on_connection(|socket: sockring::io::Socket| {
    ///     let _ = socket.emit("welcome to", socket.nsp());
    /// });
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "of")]
    pub fn of_pattern(&self, pattern: Regex) -> ParentNamespace {
        self.0.add_parent(Rule::Pattern(pattern))
    }

    /// The namespaces that a function allows, each of them made when a client asks for it: the function is
    /// given the name and the handshake, and returns a `bool` or a future of one. It is asked only about
    /// names of which there is no namespace on this core yet: to decide about each client, use a
    /// [`middleware`](ParentNamespace::middleware).
    ///
    /// ```no_run
    /// # use sockring::io::{Handshake, Server, Socket};
    /// # async fn exists(tenant: &str) -> bool { true }
    /// # fn set_up(io: &Server) {
    /// let tenants = io.of_fn(|name: String, _: Handshake| async move { exists(&name).await });
    /// tenants.on_connection(|socket: Socket| socket.join("everybody"));
    /// # }
    /// ```
    #[doc(alias = "of")]
    pub fn of_fn<R: Permit<M>, M>(
        &self,
        allow: impl Fn(String, Handshake) -> R + 'static,
    ) -> ParentNamespace {
        let function = move |name, handshake| allow(name, handshake).permit();
        self.0.add_parent(Rule::Function(Box::new(function)))
    }

    /// Runs `handler` for each namespace that this core makes from now on: by [`of`](Self::of), or because a
    /// client asked a parent for it. On each core by itself, since each has namespaces of its own.
    #[doc(alias = "new_namespace")]
    pub fn on_new_namespace(&self, handler: impl Fn(Namespace) + 'static) -> &Self {
        self.0.new_namespace.borrow_mut().push(Rc::new(handler));
        self
    }

    /// The main namespace.
    pub fn sockets(&self) -> Namespace {
        self.of("/")
    }

    /// The engine below, if it is the server's own.
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

    /// How long a client may stay connected without joining a namespace.
    pub fn connect_timeout(&self) -> Duration {
        self.0.options.connect_timeout
    }

    /// Whether the client's bundles are served.
    pub fn serve_client(&self) -> bool {
        self.0.options.serve_client
    }

    /// What joins this server to others.
    pub fn adapter(&self) -> Option<Arc<dyn Adapter>> {
        self.0.registry.adapter().cloned()
    }

    /// How packets are written and read, if not in the default way.
    #[doc(alias = "encoder")]
    pub fn parser(&self) -> Option<Arc<dyn Parser>> {
        self.0.registry.wire.parser().cloned()
    }

    /// The options.
    pub fn options(&self) -> &Options {
        &self.0.options
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

    /// See [`Namespace::on_session_expired`].
    pub fn on_session_expired(&self, handler: impl Fn(&super::ExpiredSession) + 'static) -> &Self {
        self.sockets().on_session_expired(handler);
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
        // The constructor makes it first, and it is no parent's child, so it stays.
        self.namespaces.borrow().slots[0].clone()
    }

    pub(super) fn namespace(&self, name: &str) -> Option<Rc<NspInner>> {
        let namespaces = self.namespaces.borrow();
        if name == "/" {
            return namespaces.slots.get(0).cloned();
        }
        let index = *namespaces.by_name.get(name)?;
        namespaces.slots.get(usize::from(index)).cloned()
    }

    pub(super) fn namespace_at(&self, index: u16) -> Option<Rc<NspInner>> {
        self.namespaces.borrow().slots.get(usize::from(index)).cloned()
    }

    pub(super) fn all_namespaces(&self) -> Vec<Rc<NspInner>> {
        self.namespaces.borrow().slots.iter().map(|(_, nsp)| nsp.clone()).collect()
    }

    fn namespace_or_new(&self, name: &str) -> Rc<NspInner> {
        let name = NspName::from(name);
        self.namespace(&name).unwrap_or_else(|| {
            let parent = self.parents.borrow().iter().find(|parent| parent.has(&name)).cloned();
            self.create(name, parent.as_ref(), false)
        })
    }

    /// Makes a namespace.
    pub(super) fn create(&self, name: NspName, parent: Option<&Rc<Parent>>, by_client: bool) -> Rc<NspInner> {
        let scope = self.scope(name.clone());
        let nsp = {
            let mut namespaces = self.namespaces.borrow_mut();
            let full = namespaces.slots.len() >= NAMESPACES_MAX;
            let index = if full { u16::MAX } else { namespaces.slots.vacant_key() as u16 };
            let mut nsp = NspInner::new(self, index, scope.clone());
            if let Some(parent) = parent {
                nsp = nsp.child(parent, by_client);
            }
            let nsp = Rc::new(nsp);
            if full {
                tracing::error!("there are too many namespaces: nobody can join {}", Shown(&name));
                return nsp;
            }
            namespaces.slots.insert(nsp.clone());
            namespaces.by_name.insert(name, index);
            nsp
        };
        self.dynamic.set(self.dynamic.get() + usize::from(by_client));
        if let Some(parent) = parent {
            self.registry.lend_backpressure(&parent.template.scope.nsp, &scope.nsp);
        }
        self.registry.enter(&scope, self.core.index(), nsp.parent);
        if !scope.nsp.is_main() {
            let handlers = self.new_namespace.borrow().clone();
            for handler in handlers {
                runtime::guarded("a handler of new_namespace", || handler(Namespace(nsp.clone())));
            }
        }
        nsp
    }

    /// Lets a namespace go, with its handlers. No socket is in it.
    pub(super) fn remove(&self, nsp: &Rc<NspInner>) {
        {
            let mut namespaces = self.namespaces.borrow_mut();
            let known = namespaces.slots.get(usize::from(nsp.index));
            if !known.is_some_and(|known| Rc::ptr_eq(known, nsp)) {
                return;
            }
            namespaces.slots.remove(usize::from(nsp.index));
            namespaces.by_name.remove(&*nsp.scope.nsp);
        }
        self.first_ack.set(self.first_ack.get().max(nsp.next_ack.get()));
        for (deadline, id) in nsp.ack_deadlines() {
            self.forget_ack(deadline, nsp.index, id);
        }
        self.dynamic.set(self.dynamic.get() - usize::from(nsp.by_client));
        self.registry.exit(&nsp.scope.nsp, self.core.index());
        nsp.retire();
    }

    fn add_parent(&self, rule: Rule) -> ParentNamespace {
        let number = self.parents.borrow().len() as u16;
        let scope = self.scope(NspName::from(&*format!("/_{number}")));
        let template = Rc::new(NspInner::new(self, u16::MAX, scope));
        let parent = Rc::new(Parent::new(number, rule, template));
        self.parents.borrow_mut().push(parent.clone());
        ParentNamespace(parent)
    }

    /// A namespace that nobody is in: a name with a comma cannot be asked for.
    pub(super) fn nowhere(&self) -> Arc<Scope> {
        self.scope(NspName::from(","))
    }

    /// What a namespace remembers of those who may come back, if the options say so.
    pub(super) fn recovery(&self, scope: &Scope) -> Option<Recovery> {
        let options = self.options.connection_state_recovery.as_ref()?;
        Some(Recovery::new(
            scope,
            options,
            options.sessions(&self.options.engine, self.recovery_usage.clone()),
        ))
    }

    fn scope(&self, name: NspName) -> Arc<Scope> {
        let shared = self.core.shared().clone();
        Arc::new(Scope::new(shared, self.path.clone(), self.registry.clone(), name))
    }

    /// Lets all clients of this core go, and takes no more.
    pub(super) fn close(&self) {
        let own = self.own.get();
        let mut conns: Vec<engine::Socket> = {
            let clients = self.clients.borrow();
            let known =
                clients.iter().enumerate().filter_map(|(slot, client)| Some((slot, client.as_ref()?)));
            known.map(|(slot, client)| engine::Socket::of(own, slot as u32, client.generation)).collect()
        };
        let guests: Vec<engine::Socket> = self.guests.borrow().keys().copied().collect();
        conns.extend(&guests);
        for conn in conns {
            self.client_closed(conn, CloseReason::ServerShuttingDown, "");
        }
        guests.into_iter().for_each(engine::Socket::close);
        let engine = self.engine.borrow().clone();
        if let Some(engine) = engine {
            engine.retire();
        }
    }

    /// An acknowledgement is given up at a time unless it comes before.
    pub(super) fn await_ack(&self, deadline: Millis, nsp: u16, id: u64) {
        self.ack_deadlines.borrow_mut().insert((deadline, nsp, id));
    }

    /// An acknowledgement has come.
    pub(super) fn forget_ack(&self, deadline: Millis, nsp: u16, id: u64) {
        self.ack_deadlines.borrow_mut().remove(&(deadline, nsp, id));
    }

    /// While too many may come back, those are given up who have been gone for longest, in any namespace.
    fn limit_sessions(&self) {
        let Some(recovery) = &self.options.connection_state_recovery else { return };
        let usage = &self.recovery_usage;
        let too_many =
            || usage.parked() > recovery.max_sessions || usage.parked_bytes() > recovery.max_session_bytes;
        if !too_many() {
            return;
        }
        let oldest = |nsp: &Rc<NspInner>| Some(Reverse((nsp.oldest_session()?, nsp.index)));
        let mut ends: BinaryHeap<_> = self.all_namespaces().iter().filter_map(oldest).collect();
        while let Some(Reverse((_, index))) = ends.pop().filter(|_| too_many()) {
            if let Some(nsp) = self.namespace_at(index) {
                nsp.give_up_oldest_session();
                ends.extend(oldest(&nsp));
            }
        }
    }

    fn expire(&self, now: Millis) {
        if self.options.connection_state_recovery.is_some() && self.next_sweep.get() <= now {
            self.next_sweep.set(now + RECOVERY_SWEEP);
            self.all_namespaces().iter().for_each(NspInner::expire_sessions);
            self.limit_sessions();
        }
        if !self.announced.borrow().is_empty() {
            self.expire_attachments(now);
        }
        self.watches.expire(now);
        loop {
            let due = self.unjoined.borrow_mut().pop_front_if(|(deadline, _)| *deadline <= now);
            let Some((_, conn)) = due else { break };
            self.connect_timed_out(conn);
        }
        loop {
            let due = {
                let mut deadlines = self.ack_deadlines.borrow_mut();
                match deadlines.first() {
                    Some(first) if first.0 <= now => deadlines.pop_first(),
                    _ => None,
                }
            };
            let Some(due) = due else { break };
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

    fn drain(&self, socket: engine::Socket) {
        self.0.client_drained(socket);
    }

    fn close(&self, socket: engine::Socket, reason: CloseReason, details: &str) {
        self.0.client_closed(socket, reason, details);
    }
}

impl Layer for Upward {
    fn owed(&self, _: OutletId) {}

    fn overflowed(&self, _: OutletId) {}

    fn tick(&self, now: Millis) {
        self.0.expire(now);
        if let Some(adapter) = self.0.registry.adapter() {
            adapter.tick();
        }
    }

    fn shutdown(&self) {}

    fn measure(&self, samples: &mut Vec<Sample>) {
        let (mut sockets, mut rooms, mut acks) = (0, 0, 0);
        let namespaces = self.0.all_namespaces();
        for nsp in &namespaces {
            sockets += nsp.rooms.borrow().members(ALL).len();
            // All sockets of a namespace are a room of their own.
            rooms += nsp.rooms.borrow().len().saturating_sub(1);
            acks += nsp.acks.borrow().len();
        }
        let gauge = |name, help, value: usize| Sample::new(name, help, Value::Gauge(value as u64));
        samples.extend([
            gauge("namespaces", "Namespaces.", namespaces.len()),
            gauge("sockets", "Sockets that have joined a namespace.", sockets),
            gauge("rooms", "Rooms with members, those of the sockets' own ids left out.", rooms),
            gauge(
                "pending_attachments",
                "Clients that have announced attachments and not sent all of them.",
                self.0.announced.borrow().len(),
            ),
            gauge("pending_acks", "Acknowledgements that clients still owe.", acks),
            gauge(
                "ack_deadlines",
                "Times at which acknowledgements are given up.",
                self.0.ack_deadlines.borrow().len(),
            ),
            gauge(
                "unfinished_bytes",
                "What events and connections take that wait for async handlers.",
                self.0.unfinished.bytes(),
            ),
        ]);
        let counter = |name, help, value: u64| Sample::new(name, help, Value::Counter(value));
        let told = &self.0.told;
        samples.extend([
            counter("handler_failures", "Handlers of events that have failed.", told.failures()),
            counter("rooms_refused", "Joins of rooms beyond a socket's limits.", told.rooms_refused()),
            counter(
                "namespaces_refused",
                "Namespaces that clients were refused because there were too many.",
                told.namespaces_refused(),
            ),
            counter(
                "futures_given_up",
                "Futures of handlers that were dropped after their clients had gone.",
                self.0.unfinished.given_up(),
            ),
        ]);
    }

    fn stopped(&self) {
        // The engine's events lead back here, and handlers may hold servers and namespaces.
        self.0.engine.take();
        self.0.watches.clear();
        drop(self.0.state.take());
        self.0.new_namespace.take();
        for parent in self.0.parents.take() {
            parent.template.retire();
        }
        for nsp in self.0.all_namespaces() {
            self.0.registry.exit(&nsp.scope.nsp, self.0.core.index());
            nsp.retire();
        }
    }
}
