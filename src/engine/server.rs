//! The sessions of one core, and the way to them.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use slab::Slab;

use super::admission::{self, Admission};
use super::hooks;
use super::ids::{Ids, Reserved};
use super::middleware::Middleware;
use super::polling::{Ending, Polling};
use super::session::{Due, Heard, Session};
use super::sid::{Pool, SocketSid};
use super::taken::Taken;
use super::translate;
use super::websocket::{self, Carrier};
use super::{CloseReason, Closing, Events, Message, Options, ReadyState, Socket, Transport};
use crate::app::{App, Hooks, Layer, Request, WebSocket};
use crate::fanout::{Delivery, Frame, OutletId};
use crate::limits;
use crate::protocol::eio::{Dialect, Open, Packet, PacketType, decode_payload};
use crate::runtime::{self, Core, Sample, Value};
use crate::time::Millis;

/// An engine on one core. A clone is a reference to the same.
///
/// ```no_run
/// # use sockring::app::App;
/// use sockring::engine::{Handlers, Options, Server};
/// # fn set_up(app: &App) {
/// // Several on one App, below different paths:
/// for path in ["/chat", "/telemetry"] {
///     let options = Options { path: path.to_owned(), ..Options::default() };
///     let engine = Server::attach(app, options, Handlers::default());
///     engine.on_connection(move |socket| println!("{path}: {}", socket.id()));
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Server(pub(crate) Rc<Inner>);

impl Server {
    /// Serves sessions on an App, below the path of the options.
    pub fn attach(app: &App, options: Options, events: impl Events) -> Self {
        let shared = app.core().shared();
        let path = options.prefix();
        // A client that is away for less than its heartbeat allows comes back to what has waited for it.
        app.core().allow_stalls(options.ping_interval.saturating_add(options.ping_timeout));
        let inner = Rc::new(Inner {
            index: SERVERS.with_borrow(|servers| servers.len() as u16),
            core: app.core().clone(),
            ids: shared.extension(&format!("engine ids {path}")),
            counts: shared.extension(&format!("engine counts {path}")),
            admission: Admission::new(shared.extension(&format!("engine places {path}"))),
            prefix: path,
            options,
            events: Box::new(events),
            taken: Taken::default(),
            sessions: RefCell::new(Slab::with_capacity(app.core().table_reserve())),
            generation: Cell::new(0),
            messages: Cell::new(0),
            random: RefCell::default(),
            named: RefCell::default(),
            hooks: hooks::Hooks::default(),
            middlewares: RefCell::default(),
            posted: RefCell::default(),
            opening: RefCell::default(),
            deadlines: RefCell::new(Vec::with_capacity(app.core().table_reserve())),
            next: Cell::new(Millis::MAX),
            pollers: RefCell::default(),
            probes: RefCell::default(),
            ping: Frame::message(&[b"2"], &[]),
            pong: Frame::message(&[b"3"], &[]),
        });
        SERVERS.with_borrow_mut(|servers| servers.push(inner.clone()));
        let websocket = websocket::behavior(&inner);
        app.ws_prefix(&inner.prefix, websocket);
        let (http, begun, refused) = (inner.clone(), inner.clone(), inner.clone());
        let body_bytes = inner.options.max_http_buffer_size;
        let hooks = Hooks {
            begun: Rc::new(move |head, connection| begun.begun(head, connection)),
            refused: Rc::new(move |request| refused.refusal(request)),
        };
        app.prefix(&inner.prefix, body_bytes, hooks, move |request, response| {
            http.request(request, response);
        });
        app.0.add_layer(inner.clone());
        Self(inner)
    }

    /// How many sessions are open on all cores.
    pub fn clients_count(&self) -> usize {
        self.0.counts.open.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Ends all sessions, of all cores, and drops what waits for them, as the reference's `close`. Those of
    /// this core have ended when this returns, the others when the result is ready. New ones may open.
    pub fn close(&self) -> Closing {
        let path = self.0.prefix.clone();
        Closing::begin(&self.0.core, move || {
            if let Some(server) = by_path(&path) {
                server.close_all(CloseReason::ForcedClose);
            }
        })
    }

    /// Ends all sessions of this core. No core opens another one from now on.
    pub(crate) fn retire(&self) {
        self.0.counts.closed.store(true, Ordering::Relaxed);
        self.0.close_all(CloseReason::ForcedClose);
    }

    /// The path below which requests are the engine's.
    pub fn path(&self) -> &str {
        &self.0.prefix
    }

    /// What its sessions' handles name it by on this core.
    pub(crate) fn number(&self) -> u16 {
        self.0.index
    }

    /// The options.
    pub fn options(&self) -> &Options {
        &self.0.options
    }
}

thread_local! {
    static SERVERS: RefCell<Vec<Rc<Inner>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` on the server of a handle; `None` on a foreign thread.
pub(super) fn with_server<T>(socket: Socket, f: impl FnOnce(&Rc<Inner>) -> T) -> Option<T> {
    let server = SERVERS.with_borrow(|servers| servers.get(usize::from(socket.server)).cloned())?;
    Some(f(&server))
}

/// The server of this core with a path.
fn by_path(path: &str) -> Option<Rc<Inner>> {
    SERVERS.with_borrow(|servers| servers.iter().find(|server| server.prefix == path).cloned())
}

/// What the cores know together.
struct Counts {
    /// The open sessions of each core.
    open: [AtomicUsize; limits::WORKERS_MAX],
    /// Whether no session may open any more.
    closed: AtomicBool,
}

impl Default for Counts {
    fn default() -> Self {
        Self { open: std::array::from_fn(|_| AtomicUsize::new(0)), closed: AtomicBool::new(false) }
    }
}

/// The sessions of this core whose ids the application has made.
#[derive(Default)]
struct Named {
    slots: HashMap<Arc<str>, u32, RandomState>,
    ids: HashMap<u32, Reserved, RandomState>,
}

impl Named {
    fn remove(&mut self, slot: u32) -> Option<Reserved> {
        let name = self.ids.remove(&slot)?;
        self.slots.remove(name.id());
        Some(name)
    }
}

/// Where a session is.
pub(super) enum Place {
    Here(Socket),
    Elsewhere(usize),
    Nowhere,
}

pub(crate) struct Inner {
    pub(super) index: u16,
    pub(super) core: Rc<Core>,
    prefix: String,
    pub(super) options: Options,
    pub(super) events: Box<dyn Events>,
    pub(super) taken: Taken,
    pub(super) sessions: RefCell<Slab<Entry>>,
    generation: Cell<u32>,
    /// How many messages have come.
    messages: Cell<u64>,
    random: RefCell<Pool>,
    pub(super) ids: Arc<Ids>,
    named: RefCell<Named>,
    counts: Arc<Counts>,
    pub(super) admission: Admission,
    pub(super) hooks: hooks::Hooks,
    pub(super) middlewares: RefCell<Vec<Middleware>>,
    /// The POST whose packets are being handled, and its session.
    pub(super) posted: RefCell<Option<(Socket, Request)>>,
    /// The request of a WebSocket that is being opened for a session, and the id if the application made one.
    pub(super) opening: RefCell<Option<(Request, Option<Reserved>)>>,
    /// When each session is to be looked at: one word for each, swept by the tick.
    deadlines: RefCell<Vec<Millis>>,
    next: Cell<Millis>,
    /// The sessions whose outlets no connection carries.
    pub(super) pollers: RefCell<HashMap<OutletId, u32, RandomState>>,
    /// The WebSockets that are about to take sessions over, whatever carries those now.
    pub(super) probes: RefCell<HashMap<Socket, WebSocket<Carrier>, RandomState>>,
    ping: Frame,
    pong: Frame,
}

/// One session.
pub(super) struct Entry {
    sid: SocketSid,
    generation: u32,
    pub(super) session: Session,
    pub(super) outlet: OutletId,
    pub(super) link: Link,
    pub(super) dialect: Dialect,
    /// The places of [`Options::max_sessions`] that it takes.
    pub(super) weight: u8,
    pub(super) request: Request,
}

// There is one for each client.
const _: () = assert!(size_of::<Entry>() <= 88);

impl Entry {
    /// The session has ended and waits for one more poll.
    pub(super) fn ending(&self) -> Option<Ending> {
        match &self.link {
            Link::Polling(polling) => polling.ending,
            Link::WebSocket(_) => None,
        }
    }

    /// Whether the client has done nothing since its handshake.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(&self.link, Link::Polling(polling) if polling.fresh)
    }
}

pub(super) enum Link {
    Polling(Box<Polling>),
    WebSocket(WebSocket<Carrier>),
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("engine::Server").field("path", &self.prefix).finish_non_exhaustive()
    }
}

impl Inner {
    fn socket(&self, slot: u32, generation: u32) -> Socket {
        Socket { server: self.index, slot, generation, local: PhantomData }
    }

    /// Runs `f` on an open session.
    pub(super) fn with<T>(&self, socket: Socket, f: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.with_any(socket, |entry| entry.ending().is_none().then(|| f(entry))).flatten()
    }

    /// Runs `f` on a session that is open, or has ended and waits for one more poll.
    pub(super) fn with_any<T>(&self, socket: Socket, f: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut sessions = self.sessions.borrow_mut();
        let entry = sessions.get_mut(socket.slot as usize)?;
        (entry.generation == socket.generation).then(|| f(entry))
    }

    /// The path below which requests are the engine's.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn ready_state(&self, socket: Socket) -> ReadyState {
        let sessions = self.sessions.borrow();
        match sessions.get(socket.slot as usize).filter(|entry| entry.generation == socket.generation) {
            None => ReadyState::Closed,
            Some(entry) if entry.ending().is_some() => ReadyState::Closing,
            Some(_) => ReadyState::Open,
        }
    }

    pub(super) fn buffered(&self, socket: Socket) -> usize {
        let outlet = self.with(socket, |entry| entry.outlet);
        let outlets = outlet.into_iter().chain(self.own_outlet(socket));
        outlets.map(|outlet| self.core.outlets().waiting(outlet)).sum()
    }

    pub(super) fn data_request(&self, socket: Socket) -> Option<Request> {
        let posted = self.posted.borrow();
        posted.as_ref().filter(|(known, _)| *known == socket).map(|(_, request)| request.clone())
    }

    /// Where the session of an id is, whether it is open or waits to be told that it has ended.
    pub(super) fn place(&self, sid: &str) -> Place {
        let here = self.core.index();
        if self.options.generate_id.is_some() {
            return match self.ids.core(sid) {
                Some(core) if core != here => Place::Elsewhere(core),
                Some(_) => self.named.borrow().slots.get(sid).map_or(Place::Nowhere, |slot| self.at(*slot)),
                None => Place::Nowhere,
            };
        }
        let Some(sid) = SocketSid::parse(sid) else { return Place::Nowhere };
        if sid.core() != here {
            let workers = self.core.shared().mesh.cores();
            return if sid.core() < workers { Place::Elsewhere(sid.core()) } else { Place::Nowhere };
        }
        let known = self.sessions.borrow().get(sid.slot() as usize).is_some_and(|entry| entry.sid == sid);
        if known { self.at(sid.slot()) } else { Place::Nowhere }
    }

    fn at(&self, slot: u32) -> Place {
        let sessions = self.sessions.borrow();
        match sessions.get(slot as usize) {
            Some(entry) => Place::Here(self.socket(slot, entry.generation)),
            None => Place::Nowhere,
        }
    }

    /// The id of an open session.
    pub(super) fn sid(&self, socket: Socket) -> Option<String> {
        let own = self.with(socket, |entry| entry.sid.to_string())?;
        let named = self.named.borrow();
        Some(named.ids.get(&socket.slot).map_or(own, |name| name.id().to_string()))
    }

    /// Whether no session may open any more.
    pub(super) fn is_closed(&self) -> bool {
        self.counts.closed.load(Ordering::Relaxed)
    }

    /// Opens a session. `None`: the server is closed, the system has no random numbers, or the table is full.
    pub(super) fn open(
        &self,
        request: Request,
        transport: Transport,
        link: Link,
        outlet: OutletId,
        name: Option<Reserved>,
    ) -> Option<Socket> {
        /// The slot has 24 bits of the id.
        const SESSIONS_MAX: usize = 1 << 24;
        let max = self.options.max_sessions;
        if self.is_closed() || max > 0 && self.places_taken() >= max {
            return None;
        }
        let request = request.within(self.options.kept_head_bytes);
        let weight = admission::weight(&request);
        let random = self.random.borrow_mut().take()?;
        let mut sessions = self.sessions.borrow_mut();
        if sessions.len() >= SESSIONS_MAX {
            return None;
        }
        let vacant = sessions.vacant_entry();
        let slot = vacant.key() as u32;
        let generation = self.generation.get();
        self.generation.set(generation.wrapping_add(1));
        let millis = |duration: std::time::Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        let dialect = translate::dialect(&request);
        let session = Session::new(
            self.core.now(),
            transport,
            dialect.revision,
            millis(self.options.ping_interval),
            millis(self.options.ping_timeout),
        );
        let deadline = session.deadline();
        let entry = vacant.insert(Entry {
            sid: SocketSid::from_parts(random, self.core.index() as u8, slot),
            generation,
            session,
            outlet,
            link,
            dialect,
            weight,
            request,
        });
        let (carried, fresh) = (entry.is_carried(), entry.is_fresh());
        drop(sessions);
        self.take_place(self.socket(slot, generation), weight, fresh);
        self.count().fetch_add(1, Ordering::Relaxed);
        if let Some(name) = name {
            let mut named = self.named.borrow_mut();
            named.slots.insert(name.id().clone(), slot);
            named.ids.insert(slot, name);
        }
        if !carried {
            self.pollers.borrow_mut().insert(outlet, slot);
        }
        self.set_deadline(slot, deadline);
        Some(self.socket(slot, generation))
    }

    fn count(&self) -> &AtomicUsize {
        &self.counts.open[self.core.index()]
    }

    /// A session is not open any more: it was removed, or only waits to be told so.
    pub(super) fn uncount(&self) {
        self.count().fetch_sub(1, Ordering::Relaxed);
    }

    /// The packets that a session begins with.
    pub(super) fn first_frames(&self, socket: Socket) -> Vec<Frame> {
        let mut frames = vec![Frame::message(&[&self.open_packet(socket)], &[])];
        frames.extend(self.options.initial_packet.clone());
        frames.iter().for_each(|frame| self.creating(socket, frame));
        frames
    }

    /// The first packet of a session, with its type.
    fn open_packet(&self, socket: Socket) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        let Some(sid) = self.sid(socket) else { return out };
        self.with(socket, |entry| {
            let polling = entry.session.transport() == Transport::Polling;
            let offer = polling
                && self.options.allow_upgrades
                && self.options.transports.contains(&Transport::WebSocket);
            Open {
                sid: &sid,
                upgrades: if offer { &["websocket"] } else { &[] },
                ping_interval_ms: self.options.ping_interval.as_millis() as u64,
                ping_timeout_ms: self.options.ping_timeout.as_millis() as u64,
                max_payload: self.options.max_http_buffer_size as u64,
            }
            .write(&mut out);
        });
        out
    }

    pub(super) fn set_deadline(&self, slot: u32, deadline: Millis) {
        let mut deadlines = self.deadlines.borrow_mut();
        if deadlines.len() <= slot as usize {
            deadlines.resize(slot as usize + 1, Millis::MAX);
        }
        deadlines[slot as usize] = deadline;
        self.next.set(self.next.get().min(deadline));
    }

    /// A packet came on the session's own transport. `false`: the session has ended.
    pub(super) fn packet(&self, socket: Socket, packet: &Packet<'_>) -> bool {
        self.hooks.each_of(socket, |hooks| &hooks.packet, |hook| hook(socket, packet));
        let now = self.core.now();
        let heard = self.with(socket, |entry| {
            let before = entry.session.deadline();
            let heard = entry.session.handle_packet(now, packet);
            let after = entry.session.deadline();
            (heard, (before != after).then_some(after))
        });
        let Some((heard, deadline)) = heard else { return false };
        if let Some(deadline) = deadline {
            self.set_deadline(socket.slot, deadline);
        }
        match heard {
            Heard::Nothing => {
                if let Packet::Text { kind: PacketType::Pong, .. } = packet {
                    self.hooks.tell(|hooks| &hooks.heartbeat, socket);
                }
                true
            }
            Heard::Ping => {
                // The client says how many: they count against what may wait for it.
                let _ = self.send(socket, &self.pong);
                self.hooks.tell(|hooks| &hooks.heartbeat, socket);
                self.with(socket, |_| ()).is_some()
            }
            Heard::Message => {
                self.messages.set(self.messages.get() + 1);
                match packet {
                    Packet::Text { data, .. } => {
                        self.tell(socket, |events| events.message(socket, Message::Text(data)));
                    }
                    Packet::Binary(data) => {
                        self.tell(socket, |events| events.message(socket, Message::Binary(data)));
                    }
                }
                self.with(socket, |_| ()).is_some()
            }
            Heard::Close(reason) => {
                let details = match reason {
                    CloseReason::TransportError => "invalid heartbeat direction",
                    _ => "",
                };
                self.close(socket, reason, details);
                false
            }
        }
    }

    /// Tells who listens that packets for one session are made.
    fn creating(&self, socket: Socket, frame: &Frame) {
        if self.hooks.none(|hooks| &hooks.packet_create) || self.with(socket, |_| ()).is_none() {
            return;
        }
        // The polling form has each packet by itself, and is text whatever it carries.
        let payload = String::from_utf8_lossy(frame.polling());
        for packet in decode_payload(&payload).flatten() {
            self.hooks.each_of(socket, |hooks| &hooks.packet_create, |hook| hook(socket, &packet));
        }
    }

    pub(super) fn send(&self, socket: Socket, frame: &Frame) -> Delivery {
        self.creating(socket, frame);
        let Some(outlet) = self.with(socket, |entry| entry.outlet) else { return Delivery::Dropped };
        let delivery = self.core.push(outlet, frame);
        if delivery != Delivery::Dropped {
            self.flushing(socket);
        }
        delivery
    }

    /// A frame for one session is handed to its transport. Polling tells when the poll is answered.
    pub(super) fn flushing(&self, socket: Socket) {
        let (flush, drain) = (!self.hooks.none(|hooks| &hooks.flush), !self.hooks.none(|hooks| &hooks.drain));
        if !flush && !drain {
            return;
        }
        let connection = self.with(socket, |entry| match &entry.link {
            Link::WebSocket(ws) => Some((ws.connection(), entry.is_carried())),
            Link::Polling(_) => None,
        });
        let Some(Some((connection, carried))) = connection else { return };
        self.hooks.tell(|hooks| &hooks.flush, socket);
        // What is translated is not owed to the connection yet: see `forward`.
        if drain && carried {
            self.core.notify_drained(connection);
        }
    }

    /// Everything that a session was owed has left.
    pub(super) fn drained(&self, socket: Socket) {
        self.tell(socket, |events| events.drain(socket));
        self.hooks.tell(|hooks| &hooks.drain, socket);
    }

    /// A session has opened, unless a hook on its first packets has closed it.
    pub(super) fn opened(&self, socket: Socket) {
        if self.with(socket, |_| ()).is_none() {
            return;
        }
        self.assign(socket);
        self.tell(socket, |events| events.connection(socket));
        self.hooks.tell(|hooks| &hooks.connection, socket);
    }

    /// A session has ended.
    fn closed(&self, socket: Socket, reason: CloseReason, details: &str) {
        self.tell(socket, |events| events.close(socket, reason, details));
        self.release(socket);
        self.hooks.each_of(socket, |hooks| &hooks.close, |hook| hook(socket, reason, details));
        self.hooks.forget(socket);
    }

    /// Ends a session from this side, or because of what the client did.
    pub(super) fn close(&self, socket: Socket, reason: CloseReason, details: &str) {
        let Some(polling) = self.with(socket, |entry| matches!(entry.link, Link::Polling(_))) else { return };
        if polling {
            self.close_polling(socket, reason);
        } else {
            self.forward_all(socket);
            if let Some(Entry { link: Link::WebSocket(ws), .. }) = self.take(socket) {
                ws.close(1005, "");
            }
        }
        self.closed(socket, reason, details);
    }

    /// Ends a session at once; what waits for it is dropped.
    pub(super) fn discard(&self, socket: Socket) {
        let known = self.sessions.borrow().get(socket.slot as usize).map(|entry| entry.generation);
        if known != Some(socket.generation) {
            return;
        }
        let Some(outlet) = self.with(socket, |entry| entry.outlet) else {
            // The client was to be told with its next poll; `close` has run.
            self.take(socket);
            return;
        };
        let own = self.own_outlet(socket);
        let mut outlets = self.core.outlets();
        outlets.discard(outlet);
        if let Some(own) = own {
            outlets.discard(own);
        }
        drop(outlets);
        let _ = self.release_poll_with(socket, b"1");
        if let Some(Entry { link: Link::WebSocket(ws), .. }) = self.take(socket) {
            ws.close(1005, "");
        }
        self.closed(socket, CloseReason::ForcedClose, "");
    }

    /// The session's WebSocket is gone.
    pub(super) fn lost(&self, socket: Socket, reason: CloseReason, details: &str) {
        if self.take(socket).is_some() {
            self.closed(socket, reason, details);
        }
    }

    /// Takes a session out of the table; a WebSocket that was about to take over is closed.
    pub(super) fn take(&self, socket: Socket) -> Option<Entry> {
        let mut sessions = self.sessions.borrow_mut();
        let known = sessions.get(socket.slot as usize)?.generation == socket.generation;
        let mut entry = known.then(|| sessions.remove(socket.slot as usize))?;
        drop(sessions);
        self.set_deadline(socket.slot, Millis::MAX);
        let name = self.named.borrow_mut().remove(socket.slot);
        drop(name);
        if entry.ending().is_none() {
            self.uncount();
        }
        self.leave_place(entry.weight, entry.is_fresh());
        self.close_probe(socket);
        let mut posted = None;
        if let Link::Polling(polling) = &mut entry.link {
            self.abort_post(polling);
            posted = polling.reading.take();
        }
        if let Some(posted) = posted {
            posted.finish();
        }
        if !entry.is_carried() {
            self.pollers.borrow_mut().remove(&entry.outlet);
            self.core.close_outlet(entry.outlet);
        }
        Some(entry)
    }

    /// Closes the WebSocket that was about to take a session over.
    pub(super) fn close_probe(&self, socket: Socket) {
        let probe = self.probes.borrow_mut().remove(&socket);
        if let Some(probe) = probe {
            probe.close(1005, "");
        }
    }

    /// Does what is due for a session now, so that it is found as the clock says: ticks come later. To be
    /// called before a session is looked up for a request.
    pub(super) fn catch_up(&self, socket: Socket) {
        let now = self.core.clock();
        let deadline = self.deadlines.borrow().get(socket.slot as usize).copied();
        if deadline.is_some_and(|deadline| deadline <= now) {
            self.due(socket.slot, now);
        }
    }

    fn close_all(&self, reason: CloseReason) {
        let open: Vec<Socket> = {
            let sessions = self.sessions.borrow();
            sessions.iter().map(|(slot, entry)| self.socket(slot as u32, entry.generation)).collect()
        };
        for socket in open {
            // A handler that panics must not keep the others open.
            runtime::guarded("a handler of the end of a session", || match reason {
                CloseReason::ForcedClose => self.discard(socket),
                _ => self.close(socket, reason, ""),
            });
        }
    }

    /// Does what is due for one session.
    fn due(&self, slot: u32, now: Millis) {
        let found = {
            let sessions = self.sessions.borrow();
            sessions.get(slot as usize).map(|entry| (self.socket(slot, entry.generation), entry.ending()))
        };
        let Some((socket, ending)) = found else { return self.set_deadline(slot, Millis::MAX) };
        if let Some(ending) = ending {
            if now >= ending.until {
                self.take(socket);
            }
            return;
        }
        while let Some(due) = self.with(socket, |entry| entry.session.handle_timeout(now)).flatten() {
            match due {
                Due::Ping => {
                    self.creating(socket, &self.ping);
                    if let Some(outlet) = self.with(socket, |entry| entry.outlet) {
                        let _ = self.core.outlets().push_control(outlet, &self.ping);
                        self.core.ring_bell();
                        self.flushing(socket);
                    }
                }
                Due::Noop => self.release_poll(socket),
                Due::AbortUpgrade => self.close_probe(socket),
                // What it has sent is still to be read.
                Due::Close if self.is_excused(socket) => {
                    self.with(socket, |entry| entry.session.postpone(now));
                }
                Due::Close => return self.close(socket, CloseReason::PingTimeout, ""),
            }
        }
        if let Some(deadline) = self.with(socket, |entry| entry.session.deadline()) {
            self.set_deadline(slot, deadline);
        }
    }
}

impl Layer for Inner {
    fn measure(&self, samples: &mut Vec<Sample>) {
        let sessions = self.sessions.borrow();
        for transport in [Transport::Polling, Transport::WebSocket] {
            let over = sessions.iter().filter(|(_, entry)| entry.session.transport() == transport).count();
            let help = "Engine.IO sessions that are open.";
            let sample = Sample::new("engine_sessions", help, Value::Gauge(over as u64));
            samples.push(sample.label("transport", transport.as_str()));
        }
        let opened = Value::Counter(self.generation.get().into());
        samples.push(Sample::new("engine_sessions_opened", "Engine.IO sessions since the start.", opened));
        let help = "Engine.IO messages that clients have sent, attachments included.";
        samples.push(Sample::new("engine_messages_received", help, Value::Counter(self.messages.get())));
        drop(sessions);
        self.measure_places(samples);
    }

    fn owed(&self, outlet: OutletId) {
        let slot = self.pollers.borrow().get(&outlet).copied();
        let Some(Place::Here(socket)) = slot.map(|slot| self.at(slot)) else { return };
        if !self.forward(socket) {
            self.answer_poll(socket, outlet);
        }
    }

    fn overflowed(&self, outlet: OutletId) {
        let slot = self.pollers.borrow().get(&outlet).copied();
        let Some(Place::Here(socket)) = slot.map(|slot| self.at(slot)) else { return };
        self.close(socket, CloseReason::TransportError, "too much waits for the client");
    }

    fn tick(&self, now: Millis) {
        if now < self.next.get() {
            return;
        }
        let due: Vec<u32> = {
            let deadlines = self.deadlines.borrow();
            let due = deadlines.iter().enumerate().filter(|(_, deadline)| **deadline <= now);
            due.map(|(slot, _)| slot as u32).collect()
        };
        for slot in due {
            // Each in a boundary of its own: one that panics must not keep the others.
            runtime::guarded("the heartbeat of a session", || self.due(slot, now));
        }
        self.next.set(self.deadlines.borrow().iter().copied().min().unwrap_or(Millis::MAX));
    }

    fn shutdown(&self) {
        self.close_all(CloseReason::ServerShuttingDown);
    }

    fn stopped(&self) {
        self.sessions.take();
        self.named.take();
        self.probes.take();
        self.clear_places();
        self.count().store(0, Ordering::Relaxed);
        self.hooks.clear();
        self.taken.clear();
        self.middlewares.take();
    }
}
