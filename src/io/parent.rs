//! Namespaces that come into being when a client asks for them: parents and their children.

use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use regex::Regex;
use serde::Serialize;

use super::broadcast::{BroadcastOperator, RoomNames};
use super::extract::Handler;
use super::namespace::{Namespace, NspInner};
use super::registry::Registry;
use super::server::{Inner, by_index};
use super::unfinished::{First, Later, Relay, first_step, weight};
use super::{EventError, Handshake, ServerEvent, Socket};
use crate::app::{AsyncFn, SyncFn};
use crate::engine;
use crate::fanout::{Backpressure, Delivery};
use crate::protocol::Shown;
use crate::protocol::sio::{EncodeError, NspName, Value};
use crate::runtime;

/// All namespaces of a pattern, or those that a function allows: made by
/// [`Server::of_pattern`](super::Server::of_pattern) and [`Server::of_fn`](super::Server::of_fn). Each name
/// that a client asks for becomes a [`Namespace`] of its own, with rooms of its own.
///
/// What is registered here before a child is made, the child has from the start; what is registered later,
/// only later children have. The closure that sets the server up is the place for it, in the same order on
/// each core.
///
/// ```no_run
/// # use sockring::io::{Failure, Server, Socket};
/// # fn set_up(io: &Server) -> Result<(), Box<dyn std::error::Error>> {
/// let games = io.of_pattern(regex::Regex::new(r"^/game-\d+$")?);
/// games.middleware(|socket: Socket| {
///     let known = socket.handshake().is_some_and(|handshake| handshake.auth.get("name").is_some());
///     if known { Ok(()) } else { Err(Failure::new("who are you?")) }
/// });
/// games.on_connection(|socket: Socket| println!("{} in {}", socket.id(), socket.nsp()));
/// // Reaches the clients of all games.
/// let _ = games.emit("maintenance", "in five minutes")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ParentNamespace(pub(super) Rc<Parent>);

impl fmt::Debug for ParentNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParentNamespace").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl ParentNamespace {
    /// A name that no client can join: `/_0`, `/_1` and so on, in the order in which parents were made.
    pub fn name(&self) -> &str {
        &self.0.template.scope.nsp
    }

    /// Runs `handler` for each socket that joins a child; see [`Namespace::on_connection`].
    pub fn on_connection<M>(&self, handler: impl Handler<M>) -> &Self {
        self.template().on_connection(handler);
        self
    }

    /// Runs `handler` for each socket that wants to join a child; see [`Namespace::middleware`].
    #[doc(alias = "use")]
    pub fn middleware<M>(&self, handler: impl Handler<M>) -> &Self {
        self.template().middleware(handler);
        self
    }

    /// Registers a handler for an event of every socket of the children; see [`Namespace::sockets_on`].
    pub fn sockets_on<M>(&self, event: &str, handler: impl Handler<M>) -> &Self {
        self.template().sockets_on(event, handler);
        self
    }

    /// Runs when a handler of a child's event fails; see [`Namespace::on_error`].
    pub fn on_error(&self, handler: impl Fn(Socket, &EventError) + 'static) -> &Self {
        self.template().on_error(handler);
        self
    }

    /// Runs `handler` for an event that another server has sent to a child; see
    /// [`Namespace::on_server_event`].
    pub fn on_server_event(&self, event: &str, handler: impl Fn(ServerEvent) + 'static) -> &Self {
        self.template().on_server_event(event, handler);
        self
    }

    /// Runs `handler` when a slow client of a child has taken everything; see [`Namespace::on_drain`].
    pub fn on_drain(&self, handler: impl Fn(Socket) + 'static) -> &Self {
        self.template().on_drain(handler);
        self
    }

    /// How much of what is emitted in a child may wait for one client; see [`Namespace::set_backpressure`].
    pub fn set_backpressure(&self, backpressure: Backpressure) -> &Self {
        let scope = &self.0.template.scope;
        scope.registry.set_backpressure(&scope.nsp, backpressure);
        for child in scope.registry.children(self.0.number) {
            scope.registry.set_backpressure(&child.nsp, backpressure);
        }
        self
    }

    /// The children that this core has.
    pub fn children(&self) -> Vec<Namespace> {
        by_index(self.0.template.server).map(|server| server.children(self.0.number)).unwrap_or_default()
    }

    /// Emits to all sockets of all children, on all cores.
    ///
    /// # Errors
    ///
    /// A reserved name, or arguments that cannot be written as JSON.
    pub fn emit<T: Serialize>(&self, event: &str, args: T) -> Result<Delivery, EncodeError> {
        self.operator().emit(event, args)
    }

    /// Emits the event `message`, as the reference's `send` and `write`.
    ///
    /// # Errors
    ///
    /// Arguments that cannot be written as JSON.
    #[doc(alias = "write")]
    pub fn send<T: Serialize>(&self, args: T) -> Result<Delivery, EncodeError> {
        self.emit("message", args)
    }

    /// Narrows a broadcast to the members of rooms of the children.
    pub fn to(&self, rooms: impl RoomNames) -> ParentOperator {
        self.operator().to(rooms)
    }

    /// The reference's `in`, which is a keyword here: the same as [`to`](Self::to).
    #[doc(alias = "in")]
    pub fn within(&self, rooms: impl RoomNames) -> ParentOperator {
        self.operator().to(rooms)
    }

    /// Leaves the members of rooms out of a broadcast.
    pub fn except(&self, rooms: impl RoomNames) -> ParentOperator {
        self.operator().except(rooms)
    }

    /// Keeps a broadcast within this process.
    pub fn local(&self) -> ParentOperator {
        self.operator().local()
    }

    /// Lets a broadcast pass those by who cannot take it at once.
    pub fn volatile(&self) -> ParentOperator {
        self.operator().volatile()
    }

    /// See [`BroadcastOperator::compress`].
    pub fn compress(&self, compress: bool) -> ParentOperator {
        self.operator().compress(compress)
    }

    /// See [`BroadcastOperator::latest`].
    pub fn latest(&self, key: impl Hash) -> ParentOperator {
        self.operator().latest(key)
    }

    fn operator(&self) -> ParentOperator {
        let scope = &self.0.template.scope;
        let (registry, parent) = (scope.registry.clone(), self.0.number);
        ParentOperator { registry, parent, template: BroadcastOperator::new(scope.clone()) }
    }

    pub(super) fn template(&self) -> Namespace {
        Namespace(self.0.template.clone())
    }
}

/// A broadcast to the children of a parent. Like a [`BroadcastOperator`], but it can only emit: which servers
/// have which children nobody knows, so there is nothing to wait for.
///
/// ```no_run
/// # fn f(games: &sockring::io::ParentNamespace) -> Result<(), sockring::io::EncodeError> {
/// let _ = games.to("referees").emit("whistle", ())?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "an operator does nothing until it emits"]
pub struct ParentOperator {
    registry: Arc<Registry>,
    parent: u16,
    template: BroadcastOperator,
}

impl ParentOperator {
    /// See [`BroadcastOperator::to`].
    pub fn to(&self, rooms: impl RoomNames) -> Self {
        Self { template: self.template.to(rooms), ..self.clone() }
    }

    /// The reference's `in`, which is a keyword here: the same as [`to`](Self::to).
    #[doc(alias = "in")]
    pub fn within(&self, rooms: impl RoomNames) -> Self {
        self.to(rooms)
    }

    /// See [`BroadcastOperator::except`].
    pub fn except(&self, rooms: impl RoomNames) -> Self {
        Self { template: self.template.except(rooms), ..self.clone() }
    }

    /// See [`BroadcastOperator::local`].
    pub fn local(&self) -> Self {
        Self { template: self.template.local(), ..self.clone() }
    }

    /// See [`BroadcastOperator::volatile`].
    pub fn volatile(&self) -> Self {
        Self { template: self.template.volatile(), ..self.clone() }
    }

    /// See [`BroadcastOperator::compress`].
    pub fn compress(&self, compress: bool) -> Self {
        Self { template: self.template.compress(compress), ..self.clone() }
    }

    /// See [`BroadcastOperator::latest`].
    pub fn latest(&self, key: impl Hash) -> Self {
        Self { template: self.template.latest(key), ..self.clone() }
    }

    /// Emits an event to the selected sockets of all children, of each child's in one go.
    ///
    /// # Errors
    ///
    /// A reserved name, or arguments that cannot be written as JSON.
    pub fn emit<T: Serialize>(&self, event: &str, args: T) -> Result<Delivery, EncodeError> {
        let mut delivery = Delivery::Sent;
        // With no child at all, a name or arguments that are wrong are wrong all the same.
        self.template.scope.event(None, event, &args)?;
        for child in self.registry.children(self.parent) {
            match self.template.with_scope(child).emit(event, &args)? {
                Delivery::Sent => {}
                other => delivery = other,
            }
        }
        Ok(delivery)
    }
}

/// One parent, on one core.
pub(super) struct Parent {
    /// Its place among the parents, the same on each core.
    pub(super) number: u16,
    rule: Rule,
    /// Holds what children start with; no socket ever joins it.
    pub(super) template: Rc<NspInner>,
}

/// Which names are a parent's.
pub(super) enum Rule {
    Pattern(Regex),
    Function(Box<dyn Fn(String, Handshake) -> Permission>),
}

/// What a function says that decides about a namespace: a `bool`, or a future of one. `M` only tells the two
/// apart; it is inferred.
///
/// ```no_run
/// # use sockring::io::{Handshake, Server};
/// # async fn exists(name: &str) -> bool { true }
/// # fn set_up(io: &Server) {
/// io.of_fn(|name: String, _: Handshake| name.len() < 20);
/// io.of_fn(|name: String, _: Handshake| async move { exists(&name).await });
/// # }
/// ```
pub trait Permit<M>: 'static {
    /// The answer, or the way to it.
    fn permit(self) -> Permission;
}

/// An answer, or the way to it.
///
/// ```
/// use sockring::io::{Permission, Permit};
/// assert!(matches!(true.permit(), Permission::Now(true)));
/// assert!(matches!(async { true }.permit(), Permission::Later(_)));
/// ```
pub enum Permission {
    /// It is there.
    Now(bool),
    /// It is being found.
    Later(Pin<Box<dyn Future<Output = bool>>>),
}

impl fmt::Debug for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now(allowed) => f.debug_tuple("Now").field(allowed).finish(),
            Self::Later(_) => f.write_str("Later"),
        }
    }
}

impl Permit<SyncFn> for bool {
    fn permit(self) -> Permission {
        Permission::Now(self)
    }
}

impl<F: Future<Output = bool> + 'static> Permit<AsyncFn> for F {
    fn permit(self) -> Permission {
        Permission::Later(Box::pin(self))
    }
}

impl Parent {
    pub(super) fn new(number: u16, rule: Rule, template: Rc<NspInner>) -> Self {
        Self { number, rule, template }
    }

    /// Whether a namespace that the application makes by hand is a child of this.
    pub(super) fn has(&self, name: &str) -> bool {
        matches!(&self.rule, Rule::Pattern(pattern) if pattern.is_match(name))
    }

    /// Whether a client may join a namespace. A function that panics refuses.
    fn permits(&self, name: &str, handshake: &Handshake) -> Permission {
        match &self.rule {
            Rule::Pattern(pattern) => Permission::Now(pattern.is_match(name)),
            Rule::Function(function) => {
                let mut permission = Permission::Now(false);
                runtime::guarded(rule_of(name), || permission = function(name.to_owned(), handshake.clone()));
                permission
            }
        }
    }
}

/// A client that wants to join a namespace which this core does not have.
struct Applicant {
    conn: engine::Socket,
    name: NspName,
    auth: Option<Value>,
    handshake: Handshake,
}

impl Inner {
    /// A client wants to join a namespace that there is not. `false`: it asks for too many at once.
    pub(super) fn connect_dynamic(&self, conn: engine::Socket, name: NspName, auth: Option<Value>) -> bool {
        let refused = self.parents.borrow().is_empty() || name.len() > NAME_BYTES_MAX;
        let Some(request) = conn.request().filter(|_| !refused) else {
            self.refuse_namespace(conn, &name);
            return true;
        };
        if self.client(conn, |client| client.is_full()) != Some(false) {
            return false;
        }
        let payload = auth.clone().unwrap_or_else(|| Value::Object(Vec::new()));
        let handshake = Handshake { request, auth: payload, issued: std::time::SystemTime::now() };
        self.ask_parents(Applicant { conn, name, auth, handshake }, 0);
        true
    }

    /// Asks the parents from the `from`th on, in the order in which they were made.
    fn ask_parents(&self, applicant: Applicant, from: usize) {
        let parents: Vec<Rc<Parent>> = self.parents.borrow().iter().skip(from).cloned().collect();
        for (i, parent) in parents.into_iter().enumerate() {
            match parent.permits(&applicant.name, &applicant.handshake) {
                Permission::Now(true) => return self.join_child(&parent, applicant),
                Permission::Now(false) => {}
                Permission::Later(mut answer) => match first_step(rule_of(&applicant.name), &mut answer) {
                    First::Ready(true) => return self.join_child(&parent, applicant),
                    First::Ready(false) | First::Panicked => {}
                    First::Waits(relay) => {
                        return self.wait_for_parent((relay, answer), parent, applicant, from + i + 1);
                    }
                },
            }
        }
        self.refuse_namespace(applicant.conn, &applicant.name);
    }

    /// Goes on when a parent has decided; the parents from `next` on are asked if it says no.
    fn wait_for_parent(
        &self,
        waiting: (Arc<Relay>, Later<bool>),
        parent: Rc<Parent>,
        applicant: Applicant,
        next: usize,
    ) {
        self.client(applicant.conn, |client| client.asking += 1);
        let (server, conn) = (self.index, applicant.conn);
        let bytes = applicant.name.len() + applicant.auth.as_ref().map_or(0, weight);
        let doing = rule_of(&applicant.name).to_string();
        self.go_on(Some(conn), bytes, waiting, doing, move |allowed| {
            let Some(server) = by_index(server) else { return };
            if server.client(applicant.conn, |client| client.asking -= 1).is_none() {
                return;
            }
            if allowed == Some(true) {
                server.join_child(&parent, applicant);
            } else {
                server.ask_parents(applicant, next);
            }
        });
    }

    /// A parent lets a client into a namespace, which may have been made in the meantime.
    fn join_child(&self, parent: &Rc<Parent>, applicant: Applicant) {
        let Applicant { conn, name, auth, .. } = applicant;
        if self.client(conn, |_| ()).is_none() {
            return;
        }
        let child = self.namespace(&name).or_else(|| {
            let room = self.make_room_for_a_child();
            room.then(|| self.create(name.clone(), Some(parent), true))
        });
        let Some(child) = child else {
            self.told.namespace_refused(self.core.now(), &name);
            return self.refuse_namespace(conn, &name);
        };
        if !self.connect(conn, &child, auth) {
            conn.close();
        }
        child.tidy();
    }

    pub(super) fn refuse_namespace(&self, conn: engine::Socket, name: &str) {
        let refusal = self.registry.wire.connect_error(name, "Invalid namespace", None);
        let _ = refusal.map(|refusal| conn.send(&refusal));
    }

    /// Whether clients may make one more namespace. At the limit those go that nobody is in, in the
    /// order in which they first became empty.
    fn make_room_for_a_child(&self) -> bool {
        while self.dynamic.get() >= self.options.dynamic_namespaces {
            let Some(index) = self.idle.borrow_mut().pop_front() else { return false };
            // Its place may have become that of another since then, and somebody may have joined it.
            let Some(nsp) = self.namespace_at(index).filter(|nsp| nsp.idle.replace(false)) else { continue };
            if nsp.is_empty() {
                self.remove(&nsp);
            }
        }
        true
    }

    fn children(&self, parent: u16) -> Vec<Namespace> {
        let all = self.all_namespaces().into_iter();
        all.filter(|nsp| nsp.parent == Some(parent)).map(Namespace).collect()
    }
}

/// What is done where the rule of a parent decides about a name, for the log.
fn rule_of(name: &str) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "the rule of a parent namespace, asked for {}", Shown(name)))
}

/// The longest name of a namespace that a client can bring into being. More than any name means; a name is
/// kept several times, and may be as long as a packet otherwise.
const NAME_BYTES_MAX: usize = 256;
