//! The sessions of one core, and the way to them.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use slab::Slab;

use super::polling::Polling;
use super::session::{Due, Heard, Session};
use super::sid::{Pool, SocketSid};
use super::translate;
use super::verify::{Asked, Known, Refusal, Verdict, verify};
use super::websocket::{self, Carrier};
use super::{CloseReason, Message, Options, Socket, Transport};
use crate::app::{App, Layer, Request, WebSocket};
use crate::fanout::{Delivery, Frame, OutletId};
use crate::protocol::eio::{Dialect, Open, Packet, Revision};
use crate::protocol::query;
use crate::runtime::{self, Core};
use crate::time::Millis;

/// What a layer above is told of sessions. See [`Handlers`] for closures instead.
pub trait Events: 'static {
    /// A session has opened.
    fn connection(&self, socket: Socket);
    /// A message came.
    fn message(&self, socket: Socket, message: Message<'_>);
    /// Everything that waited for a slow client has left.
    fn drain(&self, socket: Socket);
    /// A session has ended; the handle is void.
    fn close(&self, socket: Socket, reason: CloseReason);
}

type OnSocket = Box<dyn Fn(Socket)>;
type OnMessage = Box<dyn Fn(Socket, Message<'_>)>;
type OnClose = Box<dyn Fn(Socket, CloseReason)>;

/// Closures for the events of sessions.
///
/// ```
/// use sockring::engine::Handlers;
/// let handlers = Handlers::default()
///     .connection(|socket| println!("{} came", socket.id()))
///     .close(|_, reason| println!("one left: {}", reason.as_str()));
/// ```
pub struct Handlers {
    connection: OnSocket,
    message: OnMessage,
    drain: OnSocket,
    close: OnClose,
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handlers").finish_non_exhaustive()
    }
}

impl Default for Handlers {
    fn default() -> Self {
        Self {
            connection: Box::new(|_| ()),
            message: Box::new(|_, _| ()),
            drain: Box::new(|_| ()),
            close: Box::new(|_, _| ()),
        }
    }
}

impl Handlers {
    /// Runs when a session has opened.
    #[must_use]
    pub fn connection(mut self, f: impl Fn(Socket) + 'static) -> Self {
        self.connection = Box::new(f);
        self
    }

    /// Runs for each message.
    #[must_use]
    pub fn message(mut self, f: impl Fn(Socket, Message<'_>) + 'static) -> Self {
        self.message = Box::new(f);
        self
    }

    /// Runs when everything that waited for a slow client has left.
    #[must_use]
    pub fn drain(mut self, f: impl Fn(Socket) + 'static) -> Self {
        self.drain = Box::new(f);
        self
    }

    /// Runs when a session has ended.
    #[must_use]
    pub fn close(mut self, f: impl Fn(Socket, CloseReason) + 'static) -> Self {
        self.close = Box::new(f);
        self
    }
}

impl Events for Handlers {
    fn connection(&self, socket: Socket) {
        (self.connection)(socket);
    }

    fn message(&self, socket: Socket, message: Message<'_>) {
        (self.message)(socket, message);
    }

    fn drain(&self, socket: Socket) {
        (self.drain)(socket);
    }

    fn close(&self, socket: Socket, reason: CloseReason) {
        (self.close)(socket, reason);
    }
}

/// An engine on one core. A clone is a reference to the same.
#[derive(Clone, Debug)]
pub struct Server(pub(crate) Rc<Inner>);

impl Server {
    /// Serves sessions on an App, below the path of the options.
    pub fn attach(app: &App, options: Options, events: impl Events) -> Self {
        let inner = Rc::new(Inner {
            index: SERVERS.with_borrow(|servers| servers.len() as u16),
            core: app.core().clone(),
            prefix: options.prefix(),
            options,
            events: Box::new(events),
            sessions: RefCell::new(Slab::with_capacity(app.core().table_reserve())),
            generation: Cell::new(0),
            ids: RefCell::default(),
            deadlines: RefCell::new(Vec::with_capacity(app.core().table_reserve())),
            next: Cell::new(Millis::MAX),
            pollers: RefCell::default(),
            ping: Frame::message(&[b"2"], &[]),
            pong: Frame::message(&[b"3"], &[]),
        });
        SERVERS.with_borrow_mut(|servers| servers.push(inner.clone()));
        let websocket = websocket::behavior(&inner);
        app.ws_prefix(&inner.prefix, websocket);
        let http = inner.clone();
        let body_bytes = inner.options.max_http_buffer_size;
        app.prefix(&inner.prefix, body_bytes, move |request, response| http.request(&request, response));
        app.0.add_layer(inner.clone());
        Self(inner)
    }

    /// How many sessions are open on this core.
    pub fn clients_count(&self) -> usize {
        self.0.sessions.borrow().iter().filter(|(_, entry)| entry.ending().is_none()).count()
    }

    /// Ends all sessions of this core.
    pub fn close(&self) {
        self.0.close_all(CloseReason::ForcedClose);
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

pub(crate) struct Inner {
    index: u16,
    pub(super) core: Rc<Core>,
    prefix: String,
    pub(super) options: Options,
    pub(super) events: Box<dyn Events>,
    pub(super) sessions: RefCell<Slab<Entry>>,
    generation: Cell<u32>,
    ids: RefCell<Pool>,
    /// When each session is to be looked at: one word for each, swept by the tick.
    deadlines: RefCell<Vec<Millis>>,
    next: Cell<Millis>,
    /// The sessions whose outlets no connection carries.
    pub(super) pollers: RefCell<HashMap<u32, u32, RandomState>>,
    ping: Frame,
    pong: Frame,
}

/// One session.
pub(super) struct Entry {
    pub(super) sid: SocketSid,
    generation: u32,
    pub(super) session: Session,
    pub(super) outlet: OutletId,
    pub(super) link: Link,
    pub(super) dialect: Dialect,
    pub(super) request: Request,
}

impl Entry {
    /// The session has ended and waits for one more poll to say so, until this time.
    fn ending(&self) -> Option<Millis> {
        match &self.link {
            Link::Polling(polling) => polling.ending,
            Link::WebSocket(_) => None,
        }
    }

    /// The WebSocket that is about to take over, if there may be one.
    pub(super) fn probe(&mut self) -> Option<&mut Option<WebSocket<Carrier>>> {
        match &mut self.link {
            Link::Polling(polling) => Some(&mut polling.probe),
            Link::WebSocket(_) => None,
        }
    }

    pub(super) fn take_probe(&mut self) -> Option<WebSocket<Carrier>> {
        self.probe()?.take()
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
        let mut sessions = self.sessions.borrow_mut();
        let entry = sessions.get_mut(socket.slot as usize)?;
        (entry.generation == socket.generation && entry.ending().is_none()).then(|| f(entry))
    }

    /// What the reference's checks say of a request.
    pub(super) fn verify(&self, request: &Request, upgrade: bool) -> Result<Verdict, Refusal> {
        let raw = request.query();
        let asked = Asked {
            transport: query::find(raw, "transport"),
            sid: query::find(raw, "sid"),
            revision: Revision::of_query(query::find(raw, "EIO").as_deref()),
            get: request.method() == "GET",
            upgrade,
            origin: request.header("origin"),
        };
        verify(&asked, &self.options.transports, self.options.allow_eio3, |sid| self.known(sid))
    }

    fn known(&self, sid: &SocketSid) -> Known {
        if sid.core() != self.core.index() {
            let workers = self.core.shared().mesh.cores();
            return if sid.core() < workers { Known::Elsewhere(sid.core()) } else { Known::Nowhere };
        }
        let sessions = self.sessions.borrow();
        match sessions.get(sid.slot() as usize) {
            Some(entry) if entry.sid == *sid => {
                Known::Here(entry.session.transport(), entry.session.revision())
            }
            _ => Known::Nowhere,
        }
    }

    /// The handle of a session that [`verify`](Self::verify) has found here.
    pub(super) fn find(&self, sid: &SocketSid) -> Option<Socket> {
        let sessions = self.sessions.borrow();
        let entry = sessions.get(sid.slot() as usize).filter(|entry| entry.sid == *sid)?;
        Some(self.socket(sid.slot(), entry.generation))
    }

    /// Opens a session. `None`: the system has no random numbers, or the table is full.
    pub(super) fn open(
        &self,
        request: Request,
        transport: Transport,
        link: Link,
        outlet: OutletId,
    ) -> Option<Socket> {
        /// The slot has 24 bits of the id.
        const SESSIONS_MAX: usize = 1 << 24;
        let random = self.ids.borrow_mut().take()?;
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
            request,
        });
        let carried = entry.is_carried();
        drop(sessions);
        if !carried {
            self.pollers.borrow_mut().insert(outlet.slot(), slot);
        }
        self.set_deadline(slot, deadline);
        Some(self.socket(slot, generation))
    }

    /// The first packet of a session, with its type.
    pub(super) fn open_packet(&self, socket: Socket) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        self.with(socket, |entry| {
            let sid = entry.sid.to_string();
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
            Heard::Nothing => true,
            Heard::Ping => {
                // The client says how many: they count against what may wait for it.
                let _ = self.send(socket, &self.pong);
                true
            }
            Heard::Message => {
                match packet {
                    Packet::Text { data, .. } => self.events.message(socket, Message::Text(data)),
                    Packet::Binary(data) => self.events.message(socket, Message::Binary(data)),
                }
                self.with(socket, |_| ()).is_some()
            }
            Heard::Close(reason) => {
                self.close(socket, reason);
                false
            }
        }
    }

    pub(super) fn send(&self, socket: Socket, frame: &Frame) -> Delivery {
        match self.with(socket, |entry| entry.outlet) {
            Some(outlet) => self.core.push(outlet, frame),
            None => Delivery::Dropped,
        }
    }

    /// Ends a session from this side, or because of what the client did.
    pub(super) fn close(&self, socket: Socket, reason: CloseReason) {
        let Some(polling) = self.with(socket, |entry| matches!(entry.link, Link::Polling(_))) else { return };
        if polling {
            if !self.close_polling(socket, reason) {
                return;
            }
        } else {
            self.forward_all(socket);
            if let Some(Entry { link: Link::WebSocket(ws), .. }) = self.take(socket) {
                ws.close(1005, "");
            }
        }
        self.events.close(socket, reason);
    }

    /// The session's WebSocket is gone.
    pub(super) fn lost(&self, socket: Socket, reason: CloseReason) {
        if self.take(socket).is_some() {
            self.events.close(socket, reason);
        }
    }

    /// Takes a session out of the table; a WebSocket that was about to take over is closed.
    pub(super) fn take(&self, socket: Socket) -> Option<Entry> {
        let mut sessions = self.sessions.borrow_mut();
        let known = sessions.get(socket.slot as usize)?.generation == socket.generation;
        let mut entry = known.then(|| sessions.remove(socket.slot as usize))?;
        drop(sessions);
        self.set_deadline(socket.slot, Millis::MAX);
        if let Some(probe) = entry.take_probe() {
            probe.close(1005, "");
        }
        if !entry.is_carried() {
            self.pollers.borrow_mut().remove(&entry.outlet.slot());
            self.core.close_outlet(entry.outlet);
        }
        Some(entry)
    }

    fn close_all(&self, reason: CloseReason) {
        let open: Vec<Socket> = {
            let sessions = self.sessions.borrow();
            sessions.iter().map(|(slot, entry)| self.socket(slot as u32, entry.generation)).collect()
        };
        for socket in open {
            // A handler that panics must not keep the others open.
            runtime::survived(|| self.close(socket, reason));
        }
    }

    /// Does what is due for one session.
    fn due(&self, slot: u32, now: Millis) {
        let found = {
            let sessions = self.sessions.borrow();
            sessions.get(slot as usize).map(|entry| (self.socket(slot, entry.generation), entry.ending()))
        };
        let Some((socket, ending)) = found else { return self.set_deadline(slot, Millis::MAX) };
        if let Some(until) = ending {
            if now >= until {
                self.take(socket);
            }
            return;
        }
        while let Some(due) = self.with(socket, |entry| entry.session.handle_timeout(now)).flatten() {
            match due {
                Due::Ping => {
                    if let Some(outlet) = self.with(socket, |entry| entry.outlet) {
                        let _ = self.core.outlets().push_control(outlet, &self.ping);
                        self.core.ring_bell();
                    }
                }
                Due::Noop => self.release_poll(socket),
                Due::AbortUpgrade => {
                    if let Some(Some(probe)) = self.with(socket, Entry::take_probe) {
                        probe.close(1005, "");
                    }
                }
                Due::Close => return self.close(socket, CloseReason::PingTimeout),
            }
        }
        if let Some(deadline) = self.with(socket, |entry| entry.session.deadline()) {
            self.set_deadline(slot, deadline);
        }
    }

    /// The CORS headers of an answer to `request`.
    pub(super) fn cors_headers(&self, request: &Request) -> Vec<(Cow<'static, str>, Cow<'static, str>)> {
        let mut headers = Vec::new();
        if let Some(cors) = &self.options.cors {
            cors.headers(request.header("origin"), &mut headers);
        }
        headers
    }
}

impl Layer for Inner {
    fn owed(&self, outlet: OutletId) {
        let slot = self.pollers.borrow().get(&outlet.slot()).copied();
        if let Some(slot) = slot
            && !self.forward(slot, outlet)
        {
            self.answer_poll(slot, outlet);
        }
    }

    fn overflowed(&self, outlet: OutletId) {
        let slot = self.pollers.borrow().get(&outlet.slot()).copied();
        let Some(slot) = slot else { return };
        let generation = self.sessions.borrow().get(slot as usize).map(|entry| entry.generation);
        if let Some(generation) = generation {
            self.close(self.socket(slot, generation), CloseReason::TransportError);
        }
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
            self.due(slot, now);
        }
        self.next.set(self.deadlines.borrow().iter().copied().min().unwrap_or(Millis::MAX));
    }

    fn shutdown(&self) {
        self.close_all(CloseReason::ServerShuttingDown);
    }

    fn stopped(&self) {
        self.sessions.take();
    }
}
