//! The adapter of a server that shares a medium with others.

use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::message::{Body, Broadcast, EMITTER, Message, Packet};
use super::node::{Action, Asker, ClusterOptions, Node, Request};
use crate::io::{
    Adapter, BroadcastAcks, BroadcastOptions, ClusterAnswer, Handle, RestoreAnswer, Session, SocketDetails,
};
use crate::protocol::sio::Value;
use crate::time::Millis;

/// What carries messages between the servers of a cluster: Redis, Postgres, or whatever reaches all of them.
///
/// Its methods are called on the thread that acts, which may be a worker's, and must not block: a medium with
/// a connection of its own puts messages into a queue, with a limit, for a thread of its own.
///
/// ```
/// use std::sync::mpsc::SyncSender;
/// use sockring::adapter::{Inbox, Medium, Message};
///
/// /// Hands messages to a thread that speaks to a broker.
/// #[derive(Debug)]
/// struct Queue(SyncSender<String>);
///
/// impl Medium for Queue {
///     fn subscribe(&self, nsp: &str, _uid: &str, _inbox: Inbox) {
///         let _ = self.0.try_send(format!("SUBSCRIBE socket.io#{nsp}#"));
///     }
///     fn unsubscribe(&self, nsp: &str, _uid: &str) {
///         let _ = self.0.try_send(format!("UNSUBSCRIBE socket.io#{nsp}#"));
///     }
///     fn publish(&self, message: &Message) {
///         if let Ok(json) = serde_json::to_string(message) {
///             let _ = self.0.try_send(format!("PUBLISH socket.io#{}# {json}", message.nsp));
///         }
///     }
///     fn publish_response(&self, _uid: &str, message: &Message) {
///         self.publish(message);
///     }
/// }
/// ```
pub trait Medium: Debug + Send + Sync + 'static {
    /// A server has come to a namespace: messages for all, and answers for this uid, go to `inbox` from now
    /// on. Messages of its own may come as well.
    fn subscribe(&self, nsp: &str, uid: &str, inbox: Inbox);

    /// A server has left a namespace.
    fn unsubscribe(&self, nsp: &str, uid: &str);

    /// Carries a message to all servers that have subscribed to its namespace.
    fn publish(&self, message: &Message);

    /// Carries an answer to the server with a uid, at least.
    fn publish_response(&self, uid: &str, message: &Message);

    /// How many servers have subscribed to a namespace, this one included. `None`, the default: the medium
    /// cannot tell, and servers tell each other by heartbeats. The same for all calls.
    fn server_count(&self, nsp: &str) -> Option<usize> {
        let _ = nsp;
        None
    }

    /// Whether it keeps packets, in one order, and sessions: see [`Adapter::keeps_sessions`].
    fn keeps_sessions(&self) -> bool {
        false
    }

    /// Keeps a broadcast, and carries it to all servers, to the sender as well: each takes it by
    /// [`Inbox::deliver_kept`]. See [`Adapter::broadcast_kept`].
    fn publish_kept(&self, message: &Message) {
        let _ = message;
    }

    /// See [`Adapter::persist_session`].
    fn persist_session(&self, nsp: &str, session: Session, lifetime: Duration) {
        let _ = (nsp, session, lifetime);
    }

    /// See [`Adapter::forget_session`].
    fn forget_session(&self, nsp: &str, pid: &str) {
        let _ = (nsp, pid);
    }

    /// See [`Adapter::restore_session`].
    fn restore_session(&self, nsp: &str, pid: &str, offset: &str, answer: RestoreAnswer) {
        let _ = (nsp, pid, offset);
        answer(None);
    }
}

/// Takes the messages that a [`Medium`] brings, on any thread.
///
/// ```
/// use sockring::adapter::{Inbox, Message};
/// /// What a broker's client calls with what has come.
/// fn received(json: &str, inbox: &Inbox) -> serde_json::Result<()> {
///     inbox.deliver(serde_json::from_str::<Message>(json)?);
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Inbox(Arc<dyn Receive>);

/// A server in one namespace, as its medium sees it.
trait Receive: Send + Sync {
    fn receive(&self, message: Message);

    /// The namespace, as long as the server has it.
    fn handle(&self) -> Option<Handle>;
}

struct Receiver<M> {
    adapter: Weak<Inner<M>>,
    member: Weak<Member>,
}

impl<M: Medium> Receive for Receiver<M> {
    fn receive(&self, message: Message) {
        if let (Some(adapter), Some(member)) = (self.adapter.upgrade(), self.member.upgrade()) {
            adapter.drive(&member, |state, now| state.node.handle_message(now, message));
        }
    }

    fn handle(&self) -> Option<Handle> {
        Some(self.member.upgrade()?.handle.clone())
    }
}

impl Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

impl Inbox {
    /// Takes a message or an answer.
    pub fn deliver(&self, message: Message) {
        self.0.receive(message);
    }

    /// Takes a broadcast that was kept, with the name that it has there: in one order everywhere, and never
    /// on two threads at a time. See [`Handle::deliver_kept`].
    pub fn deliver_kept(&self, message: Message, offset: &str) {
        let Body::Broadcast(Broadcast { packet, opts, .. }) = message.body else { return };
        let Some(handle) = self.0.handle() else { return };
        if let Err(error) = handle.deliver_kept(packet.data, &opts.into(), offset) {
            tracing::debug!("a broadcast is dropped: {error}");
        }
    }

    /// See [`Handle::end_stale_session`].
    pub fn end_stale_session(&self, pid: &str, done: impl FnOnce() + Send + 'static) {
        match self.0.handle() {
            Some(handle) => handle.end_stale_session(pid, done),
            None => done(),
        }
    }

    /// See [`Handle::release_session`].
    pub fn release_session(&self, pid: &str) {
        if let Some(handle) = self.0.handle() {
            handle.release_session(pid);
        }
    }
}

/// Makes one server of several that share a [`Medium`], as the reference's `ClusterAdapter` and
/// `ClusterAdapterWithHeartbeat` do, with their messages. A clone is a reference to the same.
///
/// ```no_run
/// use std::sync::Arc;
/// use sockring::adapter::InProcess;
/// use sockring::app::App;
/// use sockring::io::{Options, Server};
///
/// let hub = InProcess::new();
/// let servers = ["127.0.0.1:3001", "127.0.0.1:3002"].map(|address| {
///     let adapter = Arc::new(hub.adapter());
///     App::builder().listen(address).start(move |app| {
///         let options = Options { adapter: Some(adapter.clone()), ..Options::default() };
///         let io = Server::attach_app(app, options);
///         // Reaches the clients of both.
///         let _ = io.emit("hello", ());
///     })
/// });
/// ```
pub struct ClusterAdapter<M>(Arc<Inner<M>>);

impl<M> Clone for ClusterAdapter<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Debug> Debug for ClusterAdapter<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterAdapter").field("medium", &self.0.medium).finish_non_exhaustive()
    }
}

struct Inner<M> {
    medium: M,
    options: ClusterOptions,
    epoch: Instant,
    members: Mutex<HashMap<String, Arc<Member>, RandomState>>,
    /// Not later than the first deadline of all members.
    next: AtomicU64,
    tickets: AtomicU64,
}

/// This server's part in one namespace.
struct Member {
    nsp: String,
    handle: Handle,
    state: Mutex<State>,
}

struct State {
    node: Node,
    waiting: HashMap<u64, Waiting, RandomState>,
}

/// Who waits for what the other servers say.
enum Waiting {
    Sockets(ClusterAnswer<SocketDetails>),
    Values(ClusterAnswer<Value>),
    Acks(Arc<dyn BroadcastAcks>),
    /// A broadcast with answers of which nobody was told yet how many servers it asks, and how many of these
    /// have gone already.
    Asking(usize),
}

impl<M: Medium> ClusterAdapter<M> {
    /// An adapter on a medium.
    pub fn new(medium: M, options: ClusterOptions) -> Self {
        Self(Arc::new(Inner {
            medium,
            options,
            epoch: Instant::now(),
            members: Mutex::default(),
            next: AtomicU64::new(Millis::MAX),
            tickets: AtomicU64::new(0),
        }))
    }

    /// The medium.
    pub fn medium(&self) -> &M {
        &self.0.medium
    }

    /// The uid of this server in a namespace that it has.
    pub fn uid(&self, nsp: &str) -> Option<String> {
        Some(self.0.member(nsp)?.lock().node.uid().to_owned())
    }
}

impl Member {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Medium> Inner<M> {
    fn members(&self) -> MutexGuard<'_, HashMap<String, Arc<Member>, RandomState>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn member(&self, nsp: &str) -> Option<Arc<Member>> {
        self.members().get(nsp).cloned()
    }

    fn now(&self) -> Millis {
        self.epoch.elapsed().as_millis() as Millis
    }

    /// Other servers of a namespace, if the medium counts them.
    fn others(&self, nsp: &str) -> usize {
        self.medium.server_count(nsp).map_or(0, |count| count.saturating_sub(1))
    }

    fn request(&self, nsp: &str, ticket: u64) -> Request {
        Request { id: random_id(), ticket, others: self.others(nsp) }
    }

    fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::Relaxed)
    }

    /// Changes a node, and does what comes of it once the lock is gone: messages may come back at once, and
    /// who is told of answers may ask again.
    fn drive(self: &Arc<Self>, member: &Arc<Member>, change: impl FnOnce(&mut State, Millis)) {
        let (actions, ()) = self.change(member, change);
        self.act_all(member, actions);
    }

    fn change<T>(&self, member: &Member, change: impl FnOnce(&mut State, Millis) -> T) -> (Vec<Action>, T) {
        let mut state = member.lock();
        let result = change(&mut state, self.now());
        if let Some(deadline) = state.node.poll_timeout() {
            self.next.fetch_min(deadline, Ordering::Relaxed);
        }
        (std::iter::from_fn(|| state.node.poll_action()).collect(), result)
    }

    fn act_all(self: &Arc<Self>, member: &Arc<Member>, actions: Vec<Action>) {
        for action in actions {
            self.act(member, action);
        }
    }

    fn act(self: &Arc<Self>, member: &Arc<Member>, action: Action) {
        let handle = &member.handle;
        match action {
            Action::Publish(message) => self.medium.publish(&message),
            Action::Respond(uid, message) => self.medium.publish_response(&uid, &message),
            Action::Broadcast(args, options) => {
                if let Err(error) = handle.deliver(args, &options) {
                    tracing::debug!("a broadcast of another server is dropped: {error}");
                }
            }
            Action::Ask(asker, args, options) => {
                let acks = self.back(member, asker);
                if let Err(error) = handle.deliver_with_ack(args, &options, Arc::new(acks)) {
                    tracing::debug!("a broadcast of another server is dropped: {error}");
                }
            }
            Action::Join(options, rooms) => handle.select(&options).sockets_join(rooms),
            Action::Leave(options, rooms) => handle.select(&options).sockets_leave(rooms),
            Action::Disconnect(options, close) => handle.select(&options).disconnect_sockets(close),
            Action::Fetch(asker, options) => {
                let back = self.back(member, asker);
                handle.find_sockets(&options, move |sockets| {
                    back.tell(|node, asker| node.tell_sockets(asker, sockets));
                });
            }
            Action::Event(asker, args) => {
                let back = asker.map(|asker| self.back(member, asker));
                handle.server_event(args, back.map(Back::into_answer));
            }
            Action::Fetched(ticket, result) => {
                if let Some(Waiting::Sockets(answer)) = take(member, ticket) {
                    answer(result);
                }
            }
            Action::Answered(ticket, result) => {
                if let Some(Waiting::Values(answer)) = take(member, ticket) {
                    answer(result);
                }
            }
            Action::Clients(ticket, count) => {
                if let Some(acks) = acks(member, ticket) {
                    acks.clients(count);
                }
            }
            Action::Ack(ticket, value) => {
                if let Some(acks) = acks(member, ticket) {
                    acks.answer(vec![value]);
                }
            }
            Action::Forget(ticket) => drop(take(member, ticket)),
        }
    }

    fn back(self: &Arc<Self>, member: &Arc<Member>, asker: Asker) -> Back<M> {
        Back { adapter: Arc::downgrade(self), member: Arc::downgrade(member), asker }
    }

    /// What needs no answer goes out also for a namespace that this server does not have: then it is an
    /// emitter, and no server of that namespace.
    fn say(self: &Arc<Self>, nsp: &str, say: impl FnOnce(&mut Node, Millis)) {
        if let Some(member) = self.member(nsp) {
            return self.drive(&member, |state, now| say(&mut state.node, now));
        }
        let mut emitter = Node::counted(EMITTER, nsp, self.options.clone());
        say(&mut emitter, self.now());
        while let Some(action) = emitter.poll_action() {
            if let Action::Publish(message) = action {
                self.medium.publish(&message);
            }
        }
    }
}

fn take(member: &Member, ticket: u64) -> Option<Waiting> {
    member.lock().waiting.remove(&ticket)
}

fn acks(member: &Member, ticket: u64) -> Option<Arc<dyn BroadcastAcks>> {
    match member.lock().waiting.get_mut(&ticket) {
        Some(Waiting::Acks(acks)) => Some(acks.clone()),
        Some(Waiting::Asking(gone)) => {
            // Before the message is sent, all that can be heard of a server is that it has gone.
            *gone += 1;
            None
        }
        _ => None,
    }
}

/// The way back to a server that asks.
struct Back<M> {
    adapter: Weak<Inner<M>>,
    member: Weak<Member>,
    asker: Asker,
}

impl<M: Medium> Back<M> {
    fn tell(&self, tell: impl FnOnce(&mut Node, &Asker)) {
        if let (Some(adapter), Some(member)) = (self.adapter.upgrade(), self.member.upgrade()) {
            adapter.drive(&member, |state, _| tell(&mut state.node, &self.asker));
        }
    }

    fn into_answer(self) -> Box<dyn FnOnce(Value) + Send> {
        Box::new(move |value| self.tell(|node, asker| node.tell_answer(asker, value)))
    }
}

impl<M: Medium> BroadcastAcks for Back<M> {
    fn servers(&self, _: usize) {}

    fn clients(&self, count: usize) {
        self.tell(|node, asker| node.tell_clients(asker, count));
    }

    /// As with the reference, only the first value travels.
    fn answer(&self, args: Vec<Value>) {
        let value = args.into_iter().next().unwrap_or_default();
        self.tell(|node, asker| node.tell_ack(asker, value));
    }
}

impl<M: Medium> Adapter for ClusterAdapter<M> {
    fn init(&self, handle: Handle) {
        let nsp = handle.name().to_owned();
        let (uid, options) = (random_id(), self.0.options.clone());
        let node = match self.0.medium.server_count(&nsp) {
            Some(_) => Node::counted(&uid, &nsp, options),
            None => Node::with_heartbeats(&uid, &nsp, options),
        };
        let state = Mutex::new(State { node, waiting: HashMap::default() });
        let member = Arc::new(Member { nsp: nsp.clone(), handle, state });
        self.0.members().insert(nsp.clone(), member.clone());
        let receiver = Receiver { adapter: Arc::downgrade(&self.0), member: Arc::downgrade(&member) };
        self.0.medium.subscribe(&nsp, &uid, Inbox(Arc::new(receiver)));
        self.0.drive(&member, |state, now| state.node.start(now));
    }

    fn close(&self, nsp: &str) {
        let Some(member) = self.0.members().remove(nsp) else { return };
        let uid = member.lock().node.uid().to_owned();
        self.0.drive(&member, |state, now| state.node.close(now));
        self.0.medium.unsubscribe(&member.nsp, &uid);
    }

    fn tick(&self) {
        let now = self.0.now();
        if now < self.0.next.load(Ordering::Relaxed) {
            return;
        }
        self.0.next.store(Millis::MAX, Ordering::Relaxed);
        let members: Vec<Arc<Member>> = self.0.members().values().cloned().collect();
        for member in members {
            self.0.drive(&member, |state, now| state.node.handle_timeout(now));
        }
    }

    fn server_count(&self, nsp: &str) -> usize {
        let counted = self.0.medium.server_count(nsp);
        counted.unwrap_or_else(|| 1 + self.0.member(nsp).map_or(0, |member| member.lock().node.others()))
    }

    fn broadcast(&self, nsp: &str, args: Vec<Value>, options: &BroadcastOptions) {
        self.0.say(nsp, |node, now| node.broadcast(now, args, options));
    }

    fn broadcast_with_ack(
        &self,
        nsp: &str,
        args: Vec<Value>,
        options: &BroadcastOptions,
        acks: Arc<dyn BroadcastAcks>,
    ) {
        let Some(member) = self.0.member(nsp) else { return acks.servers(0) };
        let ticket = self.0.ticket();
        let request = self.0.request(nsp, ticket);
        let (actions, servers) = self.0.change(&member, |state, now| {
            state.waiting.insert(ticket, Waiting::Asking(0));
            state.node.broadcast_with_ack(now, request, args, options)
        });
        // Before the message leaves, and with it the first of what it brings; but not under the lock.
        acks.servers(servers);
        let asking = {
            let waiting = &mut member.lock().waiting;
            // A server that was closed in between has forgotten it.
            waiting.get_mut(&ticket).map(|asking| std::mem::replace(asking, Waiting::Acks(acks.clone())))
        };
        if let Some(Waiting::Asking(gone)) = asking {
            (0..gone).for_each(|_| acks.clients(0));
        }
        self.0.act_all(&member, actions);
    }

    fn add_sockets(&self, nsp: &str, options: &BroadcastOptions, rooms: Vec<String>) {
        self.0.say(nsp, |node, now| node.add_sockets(now, options, rooms));
    }

    fn del_sockets(&self, nsp: &str, options: &BroadcastOptions, rooms: Vec<String>) {
        self.0.say(nsp, |node, now| node.del_sockets(now, options, rooms));
    }

    fn disconnect_sockets(&self, nsp: &str, options: &BroadcastOptions, close: bool) {
        self.0.say(nsp, |node, now| node.disconnect_sockets(now, options, close));
    }

    fn fetch_sockets(&self, nsp: &str, options: &BroadcastOptions, answer: ClusterAnswer<SocketDetails>) {
        let Some(member) = self.0.member(nsp) else { return answer(Ok(Vec::new())) };
        let ticket = self.0.ticket();
        let request = self.0.request(nsp, ticket);
        self.0.drive(&member, |state, now| {
            state.waiting.insert(ticket, Waiting::Sockets(answer));
            state.node.fetch_sockets(now, request, options);
        });
    }

    fn server_side_emit(&self, nsp: &str, args: Vec<Value>, answer: Option<ClusterAnswer<Value>>) {
        let Some(answer) = answer else {
            return self.0.say(nsp, |node, now| node.server_side_emit(now, args, None));
        };
        let Some(member) = self.0.member(nsp) else { return answer(Ok(Vec::new())) };
        let ticket = self.0.ticket();
        let request = self.0.request(nsp, ticket);
        self.0.drive(&member, |state, now| {
            state.waiting.insert(ticket, Waiting::Values(answer));
            state.node.server_side_emit(now, args, Some(request));
        });
    }

    fn keeps_sessions(&self) -> bool {
        self.0.medium.keeps_sessions()
    }

    fn broadcast_kept(&self, nsp: &str, args: Vec<Value>, options: &BroadcastOptions) {
        let uid = self.uid(nsp).unwrap_or_else(|| EMITTER.to_owned());
        let packet = Packet { r#type: 2, data: args, nsp: None };
        let body = Body::Broadcast(Broadcast { packet, opts: options.into(), request_id: None });
        self.0.medium.publish_kept(&Message { uid, nsp: nsp.to_owned(), body });
    }

    fn persist_session(&self, nsp: &str, session: Session, lifetime: Duration) {
        self.0.medium.persist_session(nsp, session, lifetime);
    }

    fn forget_session(&self, nsp: &str, pid: &str) {
        self.0.medium.forget_session(nsp, pid);
    }

    fn restore_session(&self, nsp: &str, pid: &str, offset: &str, answer: RestoreAnswer) {
        self.0.medium.restore_session(nsp, pid, offset, answer);
    }
}

/// 16 hexadecimal digits.
fn random_id() -> String {
    let mut bytes = [0; 8];
    if getrandom::fill(&mut bytes).is_err() {
        // Without randomness from the kernel there are no sockets either: their ids need it too.
        tracing::error!("the kernel gives no random bytes");
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
