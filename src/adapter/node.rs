//! One server's part in the cluster of one namespace: the reference's `ClusterAdapter`, with and without
//! heartbeats. Pure: messages, times and ids come in; actions and the next deadline go out.

use std::collections::VecDeque;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};

use super::message::{
    Answer, Body, Broadcast, ClientCount, Disconnect, EMITTER, Fetch, Fetched, Message, Opts, Packet, Rooms,
    ServerSideEmit,
};
use crate::io::{BroadcastOptions, ClusterError, SocketDetails};
use crate::protocol::sio::Value;
use crate::time::Millis;

/// How the servers of a cluster know of each other and how long they wait, with the reference's defaults.
///
/// ```
/// use std::time::Duration;
/// use sockring::adapter::ClusterOptions;
/// let options = ClusterOptions { heartbeat_timeout: Duration::from_secs(4), ..ClusterOptions::default() };
/// assert_eq!(options.requests_timeout, Duration::from_secs(5));
/// ```
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// A server that has said nothing for so long says that it is there.
    pub heartbeat_interval: Duration,
    /// A server of which nothing was heard for so long counts as gone.
    pub heartbeat_timeout: Duration,
    /// How long answers of other servers are awaited.
    pub requests_timeout: Duration,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(5000),
            heartbeat_timeout: Duration::from_millis(10_000),
            requests_timeout: Duration::from_millis(5000),
        }
    }
}

/// Other servers that are counted. A cluster on one medium has some dozens; a medium that invents senders
/// must not fill the memory.
const NODES_MAX: usize = 1000;

/// Requests that await answers at a time. Beyond, a request fails at once: whoever asks faster than a cluster
/// answers would otherwise fill the memory.
const REQUESTS_MAX: usize = 10_000;

/// Something that the owner of a [`Node`] has to do.
///
/// ```
/// use sockring::adapter::Action;
/// use sockring::io::Handle;
/// fn carry_out(action: Action, sockets: &Handle) {
///     match action {
///         Action::Publish(message) => println!("to all: {message:?}"),
///         Action::Respond(uid, message) => println!("to {uid}: {message:?}"),
///         Action::Broadcast(args, options) => println!("to {:?}: {args:?}", options.rooms),
///         others => println!("{others:?} is for {sockets:?}"),
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// Publish to all other servers.
    Publish(Message),
    /// Publish to one server, that of the uid.
    Respond(String, Message),
    /// Emit to sockets of this server.
    Broadcast(Vec<Value>, BroadcastOptions),
    /// Emit to sockets of this server, and tell the asker how many there are and what they answer.
    Ask(Asker, Vec<Value>, BroadcastOptions),
    /// Make sockets of this server join rooms.
    Join(BroadcastOptions, Vec<String>),
    /// Make sockets of this server leave rooms.
    Leave(BroadcastOptions, Vec<String>),
    /// Disconnect sockets of this server; with `true`, their connections too.
    Disconnect(BroadcastOptions, bool),
    /// Find sockets of this server, and tell the asker.
    Fetch(Asker, BroadcastOptions),
    /// Run the handlers of a server-side event; if somebody asks, tell them the first answer.
    Event(Option<Asker>, Vec<Value>),
    /// A request for sockets has ended.
    Fetched(u64, Result<Vec<SocketDetails>, ClusterError<SocketDetails>>),
    /// A server-side event with an acknowledgement has ended.
    Answered(u64, Result<Vec<Value>, ClusterError<Value>>),
    /// One more server has sent a broadcast of ours to so many sockets.
    Clients(u64, usize),
    /// A socket of another server has answered a broadcast of ours.
    Ack(u64, Value),
    /// Nothing more comes of a broadcast with answers.
    Forget(u64),
}

/// Another server that waits for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The server.
    pub uid: String,
    /// Its request.
    pub request_id: String,
}

/// What is asked of the others: an id that no other request has, a number by which the owner knows it again,
/// and how many others there are if no heartbeats tell.
#[derive(Clone, Debug)]
pub struct Request {
    /// 16 hexadecimal digits.
    pub id: String,
    /// Comes back in the [`Action`]s.
    pub ticket: u64,
    /// Other servers.
    pub others: usize,
}

/// Who has not answered yet.
#[derive(Debug)]
enum Missing {
    /// The servers that were there when the question was asked.
    Uids(HashSet<String, RandomState>),
    /// So many of so many, and who has answered.
    Count(usize, HashSet<String, RandomState>),
}

impl Missing {
    /// A server has answered; whether it was expected to.
    fn answered(&mut self, uid: &str) -> bool {
        match self {
            Self::Uids(uids) => uids.remove(uid),
            Self::Count(expected, seen) => seen.len() < *expected && seen.insert(uid.to_owned()),
        }
    }

    /// Whether an answer of a server would still count.
    fn expects(&self, uid: &str) -> bool {
        match self {
            Self::Uids(uids) => uids.contains(uid),
            Self::Count(expected, seen) => seen.len() < *expected && !seen.contains(uid),
        }
    }

    /// A server has gone; whether it had not answered.
    fn gone(&mut self, uid: &str) -> bool {
        match self {
            Self::Uids(uids) => uids.remove(uid),
            Self::Count(..) => false,
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::Uids(uids) => uids.len(),
            Self::Count(expected, seen) => expected - seen.len(),
        }
    }

    /// The reference's words.
    fn timeout(&self) -> String {
        match self {
            Self::Uids(uids) => format!("timeout reached: missing {} responses", uids.len()),
            Self::Count(expected, seen) => {
                format!("timeout reached: only {} responses received out of {expected}", seen.len())
            }
        }
    }
}

#[derive(Debug)]
struct Pending {
    ticket: u64,
    deadline: Millis,
    missing: Missing,
    gathered: Gathered,
}

#[derive(Debug)]
enum Gathered {
    Sockets(Vec<SocketDetails>),
    Values(Vec<Value>),
    /// Of a broadcast, whose answers are passed on as they come: how many more each server owes. Less than
    /// none, where answers come before their number.
    Acks(HashMap<String, i64, RandomState>),
}

/// Which of the three a message answers. One that answers another is nonsense, and must not count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sockets,
    Values,
    Acks,
}

impl Gathered {
    fn kind(&self) -> Kind {
        match self {
            Self::Sockets(_) => Kind::Sockets,
            Self::Values(_) => Kind::Values,
            Self::Acks(_) => Kind::Acks,
        }
    }
}

/// One server's part in the cluster of one namespace.
///
/// After each call, take out what [`poll_action`](Self::poll_action) gives until it gives nothing, and see to
/// it that [`handle_timeout`](Self::handle_timeout) is called at [`poll_timeout`](Self::poll_timeout).
///
/// ```
/// use sockring::adapter::{Action, Body, ClusterOptions, Node};
/// let mut node = Node::with_heartbeats("a1b2c3d4e5f60718", "/", ClusterOptions::default());
/// node.start(0);
/// assert!(matches!(node.poll_action(), Some(Action::Publish(m)) if m.body == Body::InitialHeartbeat));
/// assert_eq!((node.others(), node.poll_timeout()), (0, Some(5000)));
/// ```
#[derive(Debug)]
pub struct Node {
    uid: String,
    nsp: String,
    options: ClusterOptions,
    /// When each other server was last heard of; `None` where the medium counts them.
    nodes: Option<HashMap<String, Millis, RandomState>>,
    pending: HashMap<String, Pending, RandomState>,
    heartbeat: Option<Millis>,
    /// The server has gone: nobody passes time or messages on any more.
    closed: bool,
    /// Not later than the first deadline of all.
    next: Millis,
    actions: VecDeque<Action>,
}

const NEVER: Millis = Millis::MAX;
const CLOSED: &str = "the server has been closed";

impl Node {
    /// One that counts the others by what it hears of them.
    pub fn with_heartbeats(uid: &str, nsp: &str, options: ClusterOptions) -> Self {
        Self { nodes: Some(HashMap::default()), ..Self::counted(uid, nsp, options) }
    }

    /// One whose medium knows how many others there are.
    pub fn counted(uid: &str, nsp: &str, options: ClusterOptions) -> Self {
        Self {
            uid: uid.to_owned(),
            nsp: nsp.to_owned(),
            options,
            nodes: None,
            pending: HashMap::default(),
            heartbeat: None,
            closed: false,
            next: NEVER,
            actions: VecDeque::new(),
        }
    }

    /// The uid.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// How many other servers there are, as heartbeats tell.
    pub fn others(&self) -> usize {
        self.nodes.as_ref().map_or(0, HashMap::len)
    }

    /// Whether a request is under way.
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, at the latest.
    pub fn poll_timeout(&self) -> Option<Millis> {
        (self.next != NEVER).then_some(self.next)
    }

    /// The server has come.
    pub fn start(&mut self, now: Millis) {
        if self.nodes.is_some() {
            self.publish(now, Body::InitialHeartbeat);
        }
    }

    /// The server goes. What it still waits for has ended, and it is not heard of any more: what is asked of
    /// it from now on ends at once, and what it still emits comes from an emitter.
    pub fn close(&mut self, now: Millis) {
        if self.nodes.is_some() && !self.closed {
            self.publish(now, Body::AdapterClose);
        }
        self.closed = true;
        let pending = std::mem::take(&mut self.pending);
        for (_, pending) in pending {
            self.end(pending, Some(CLOSED.to_owned()));
        }
        (self.heartbeat, self.next) = (None, NEVER);
    }

    /// Emits to the sockets of the other servers.
    pub fn broadcast(&mut self, now: Millis, args: Vec<Value>, options: &BroadcastOptions) {
        self.publish(now, broadcast(args, options, None));
    }

    /// Emits to the sockets of the other servers, which answer. Returns how many servers are asked: each of
    /// them comes back as one [`Action::Clients`], also if it goes meanwhile. Where too many requests are
    /// under way it is not sent, and nothing comes back, so that the silence is noticed.
    pub fn broadcast_with_ack(
        &mut self,
        now: Millis,
        request: Request,
        args: Vec<Value>,
        options: &BroadcastOptions,
    ) -> usize {
        let timeout = options.timeout.unwrap_or(self.options.requests_timeout);
        let id = request.id.clone();
        let servers = if self.closed { 0 } else { self.missing(&request).count() };
        if self.ask(now, request, timeout, Gathered::Acks(HashMap::default())) {
            self.publish(now, broadcast(args, options, Some(id)));
        }
        servers
    }

    /// Makes sockets of the other servers join rooms.
    pub fn add_sockets(&mut self, now: Millis, options: &BroadcastOptions, rooms: Vec<String>) {
        self.publish(now, Body::SocketsJoin(Rooms { opts: options.into(), rooms }));
    }

    /// Makes sockets of the other servers leave rooms.
    pub fn del_sockets(&mut self, now: Millis, options: &BroadcastOptions, rooms: Vec<String>) {
        self.publish(now, Body::SocketsLeave(Rooms { opts: options.into(), rooms }));
    }

    /// Disconnects sockets of the other servers.
    pub fn disconnect_sockets(&mut self, now: Millis, options: &BroadcastOptions, close: bool) {
        self.publish(now, Body::DisconnectSockets(Disconnect { opts: options.into(), close }));
    }

    /// Asks the other servers for sockets: ends with [`Action::Fetched`].
    pub fn fetch_sockets(&mut self, now: Millis, request: Request, options: &BroadcastOptions) {
        let timeout = options.timeout.unwrap_or(self.options.requests_timeout);
        let request_id = request.id.clone();
        if self.ask(now, request, timeout, Gathered::Sockets(Vec::new())) {
            self.publish(now, Body::FetchSockets(Fetch { opts: options.into(), request_id }));
        }
    }

    /// Emits to the other servers themselves; with a request, it ends with [`Action::Answered`].
    pub fn server_side_emit(&mut self, now: Millis, packet: Vec<Value>, request: Option<Request>) {
        let request_id = request.as_ref().map(|request| request.id.clone());
        if let Some(request) = request {
            let timeout = self.options.requests_timeout;
            if !self.ask(now, request, timeout, Gathered::Values(Vec::new())) {
                return;
            }
        }
        self.publish(now, Body::ServerSideEmit(ServerSideEmit { request_id, packet }));
    }

    /// Answers [`Action::Ask`]: so many sockets are asked.
    pub fn tell_clients(&mut self, asker: &Asker, count: usize) {
        let request_id = asker.request_id.clone();
        self.respond(
            asker,
            Body::BroadcastClientCount(ClientCount { request_id, client_count: count as u64 }),
        );
    }

    /// Answers [`Action::Ask`]: one of the sockets has answered.
    pub fn tell_ack(&mut self, asker: &Asker, packet: Value) {
        let request_id = asker.request_id.clone();
        self.respond(asker, Body::BroadcastAck(Answer { request_id, packet }));
    }

    /// Answers [`Action::Fetch`].
    pub fn tell_sockets(&mut self, asker: &Asker, sockets: Vec<SocketDetails>) {
        let request_id = asker.request_id.clone();
        self.respond(asker, Body::FetchSocketsResponse(Fetched { request_id, sockets }));
    }

    /// Answers [`Action::Event`].
    pub fn tell_answer(&mut self, asker: &Asker, packet: Value) {
        let request_id = asker.request_id.clone();
        self.respond(asker, Body::ServerSideEmitResponse(Answer { request_id, packet }));
    }

    /// A message has come. One's own and those of other namespaces are ignored; one that names none, as some
    /// emitters send it, is of the namespace whose channel it came by.
    pub fn handle_message(&mut self, now: Millis, message: Message) {
        let Message { uid, nsp, body } = message;
        if self.closed || uid == self.uid || !(nsp.is_empty() || nsp == self.nsp) {
            return;
        }
        self.heard(now, &uid);
        let asker = |request_id: String| Asker { uid: uid.clone(), request_id };
        match body {
            Body::InitialHeartbeat if self.nodes.is_some() => self.publish(now, Body::Heartbeat),
            Body::InitialHeartbeat | Body::Heartbeat => {}
            Body::AdapterClose => self.remove(&uid),
            Body::Broadcast(Broadcast { packet, opts, request_id }) => {
                let options = BroadcastOptions::from(opts);
                self.actions.push_back(match request_id {
                    Some(id) => Action::Ask(asker(id), packet.data, options),
                    None => Action::Broadcast(packet.data, options),
                });
            }
            Body::SocketsJoin(Rooms { opts, rooms }) => {
                self.actions.push_back(Action::Join(opts.into(), rooms));
            }
            Body::SocketsLeave(Rooms { opts, rooms }) => {
                self.actions.push_back(Action::Leave(opts.into(), rooms));
            }
            Body::DisconnectSockets(Disconnect { opts, close }) => {
                self.actions.push_back(Action::Disconnect(opts.into(), close));
            }
            Body::FetchSockets(Fetch { opts, request_id }) => {
                self.actions.push_back(Action::Fetch(asker(request_id), opts.into()));
            }
            Body::ServerSideEmit(ServerSideEmit { request_id, packet }) => {
                self.actions.push_back(Action::Event(request_id.map(asker), packet));
            }
            Body::FetchSocketsResponse(Fetched { request_id, sockets }) => {
                self.answered(Kind::Sockets, &uid, &request_id, |_, gathered| {
                    if let Gathered::Sockets(all) = gathered {
                        all.extend(sockets);
                    }
                    None
                });
            }
            Body::ServerSideEmitResponse(Answer { request_id, packet }) => {
                self.answered(Kind::Values, &uid, &request_id, |_, gathered| {
                    if let Gathered::Values(all) = gathered {
                        all.push(packet);
                    }
                    None
                });
            }
            Body::BroadcastClientCount(ClientCount { request_id, client_count }) => {
                self.answered(Kind::Acks, &uid, &request_id, |ticket, gathered| {
                    if let Gathered::Acks(owed) = gathered {
                        let more = i64::try_from(client_count).unwrap_or(i64::MAX);
                        let owed = owed.entry(uid.clone()).or_default();
                        *owed = owed.saturating_add(more);
                    }
                    Some(Action::Clients(ticket, usize::try_from(client_count).unwrap_or(usize::MAX)))
                });
            }
            Body::BroadcastAck(Answer { request_id, packet }) => {
                self.acknowledged(&uid, &request_id, packet);
            }
        }
    }

    /// A socket of another server has answered a broadcast. It counts if that server was asked, and owes it:
    /// nobody may answer in another's place.
    fn acknowledged(&mut self, uid: &str, request_id: &str, packet: Value) {
        let Some(pending) = self.pending.get_mut(request_id) else { return };
        let Gathered::Acks(owed) = &mut pending.gathered else { return };
        let early = pending.missing.expects(uid) && owed.len() < NODES_MAX;
        match owed.get_mut(uid) {
            Some(owed) if early || *owed > 0 => *owed = owed.saturating_sub(1),
            None if early => drop(owed.insert(uid.to_owned(), -1)),
            _ => return,
        }
        self.actions.push_back(Action::Ack(pending.ticket, packet));
        self.end_if_complete(request_id);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Millis) {
        if now < self.next {
            return;
        }
        if self.heartbeat.is_some_and(|at| at <= now) {
            self.publish(now, Body::Heartbeat);
        }
        let silence = millis(self.options.heartbeat_timeout);
        let nodes = self.nodes.iter().flatten();
        let silent = nodes.filter(|(_, seen)| now.saturating_sub(**seen) > silence);
        let silent: Vec<String> = silent.map(|(uid, _)| uid.clone()).collect();
        silent.iter().for_each(|uid| self.remove(uid));
        let due = self.pending.extract_if(|_, pending| pending.deadline <= now);
        let due: Vec<Pending> = due.map(|(_, pending)| pending).collect();
        for pending in due {
            let why = pending.missing.timeout();
            self.end(pending, Some(why));
        }
        let gone = |seen: &Millis| seen.saturating_add(silence).saturating_add(1);
        let nodes = self.nodes.iter().flatten().map(|(_, seen)| gone(seen));
        let requests = self.pending.values().map(|pending| pending.deadline);
        self.next = nodes.chain(requests).chain(self.heartbeat).min().unwrap_or(NEVER);
    }

    /// Whom a request is to wait for.
    fn missing(&self, request: &Request) -> Missing {
        match &self.nodes {
            Some(nodes) => Missing::Uids(nodes.keys().cloned().collect()),
            None => Missing::Count(request.others, HashSet::default()),
        }
    }

    /// Waits for the others; `false` if it has ended at once: there is nobody to ask, there are too many
    /// questions, or the server has gone.
    fn ask(&mut self, now: Millis, request: Request, timeout: Duration, gathered: Gathered) -> bool {
        let missing = self.missing(&request);
        let deadline = now.saturating_add(millis(timeout));
        let nobody = missing.count() == 0;
        let pending = Pending { ticket: request.ticket, deadline, missing, gathered };
        let error = if self.closed {
            Some(CLOSED)
        } else if self.pending.len() >= REQUESTS_MAX {
            Some("too many requests await answers")
        } else {
            None
        };
        if nobody || error.is_some() {
            self.end(pending, error.map(str::to_owned));
            return false;
        }
        self.next = self.next.min(deadline);
        self.pending.insert(request.id, pending);
        true
    }

    /// A server has answered; the request has ended if it was the last.
    fn answered(
        &mut self,
        kind: Kind,
        uid: &str,
        request_id: &str,
        gather: impl FnOnce(u64, &mut Gathered) -> Option<Action>,
    ) {
        let Some(pending) = self.pending.get_mut(request_id) else { return };
        if pending.gathered.kind() != kind || !pending.missing.answered(uid) {
            return;
        }
        self.actions.extend(gather(pending.ticket, &mut pending.gathered));
        self.end_if_complete(request_id);
    }

    fn end_if_complete(&mut self, request_id: &str) {
        let settled = |gathered: &Gathered| match gathered {
            Gathered::Sockets(_) | Gathered::Values(_) => true,
            Gathered::Acks(owed) => owed.values().all(|owed| *owed <= 0),
        };
        let complete = |pending: &Pending| pending.missing.count() == 0 && settled(&pending.gathered);
        if self.pending.get(request_id).is_some_and(complete)
            && let Some(pending) = self.pending.remove(request_id)
        {
            self.end(pending, None);
        }
    }

    /// A request has ended: well, or for a reason.
    fn end(&mut self, pending: Pending, error: Option<String>) {
        let ticket = pending.ticket;
        self.actions.push_back(match (pending.gathered, error) {
            (Gathered::Sockets(sockets), None) => Action::Fetched(ticket, Ok(sockets)),
            (Gathered::Sockets(responses), Some(message)) => {
                Action::Fetched(ticket, Err(ClusterError { message, responses }))
            }
            (Gathered::Values(values), None) => Action::Answered(ticket, Ok(values)),
            (Gathered::Values(responses), Some(message)) => {
                Action::Answered(ticket, Err(ClusterError { message, responses }))
            }
            (Gathered::Acks(_), _) => Action::Forget(ticket),
        });
    }

    /// A server is there.
    fn heard(&mut self, now: Millis, uid: &str) {
        let Some(nodes) = self.nodes.as_mut().filter(|_| uid != EMITTER && !uid.is_empty()) else { return };
        if let Some(seen) = nodes.get_mut(uid) {
            *seen = now;
        } else if nodes.len() < NODES_MAX {
            nodes.insert(uid.to_owned(), now);
            let silence = millis(self.options.heartbeat_timeout);
            self.next = self.next.min(now.saturating_add(silence).saturating_add(1));
        }
    }

    /// A server has gone: nobody waits for it any more.
    fn remove(&mut self, uid: &str) {
        if self.nodes.as_mut().and_then(|nodes| nodes.remove(uid)).is_none() {
            return;
        }
        let mut waited = Vec::new();
        for (id, pending) in &mut self.pending {
            if pending.missing.gone(uid) {
                waited.push(id.clone());
                if let Gathered::Acks(_) = pending.gathered {
                    self.actions.push_back(Action::Clients(pending.ticket, 0));
                }
            }
        }
        waited.iter().for_each(|id| self.end_if_complete(id));
    }

    fn publish(&mut self, now: Millis, body: Body) {
        if self.nodes.is_some() && !self.closed {
            let at = now.saturating_add(millis(self.options.heartbeat_interval));
            self.heartbeat = Some(at);
            self.next = self.next.min(at);
        }
        let message = self.message(body);
        self.actions.push_back(Action::Publish(message));
    }

    fn respond(&mut self, asker: &Asker, body: Body) {
        // Who has said good-bye is not waited for; the answer would make it one of the others again.
        if self.closed && self.nodes.is_some() {
            return;
        }
        let message = self.message(body);
        self.actions.push_back(Action::Respond(asker.uid.clone(), message));
    }

    fn message(&self, body: Body) -> Message {
        let uid = if self.closed { EMITTER } else { &self.uid };
        Message { uid: uid.to_owned(), nsp: self.nsp.clone(), body }
    }
}

fn broadcast(data: Vec<Value>, options: &BroadcastOptions, request_id: Option<String>) -> Body {
    let packet = Packet { r#type: 2, data, nsp: None };
    Body::Broadcast(Broadcast { packet, opts: Opts::from(options), request_id })
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

#[cfg(test)]
mod tests;
