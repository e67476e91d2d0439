//! One core's connections as the App sees them, and what the runtime calls.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::time::SystemTime;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::behavior::{Behavior, Upgradable};
use super::http::Http;
use super::input::Kept;
use super::request::Params;
use super::routes::{BodyEnd, Route, Target};
use super::websocket::Socket;
use super::{App, Options};
use crate::fanout::{Delivery, Frame, Moment, OutletId, RoomKey, Rooms, Space, Task};
use crate::limits;
use crate::protocol::http::Shapes;
use crate::protocol::ws::deflate::Inflater;
use crate::runtime::{self, ConnectionId, Core, Ended, Parcel, Sample, Service, Value, guarded};
use crate::time::{Millis, http_date};

thread_local! {
    static CURRENT: RefCell<Option<Rc<Inner>>> = const { RefCell::new(None) };
}

/// The App of this thread's core; `None` on a thread that is no worker.
pub fn current() -> Option<App> {
    CURRENT.with_borrow(Clone::clone).map(App)
}

/// What layers above the App are told.
pub(crate) trait Layer {
    /// One of the layer's outlets is owed something.
    fn owed(&self, outlet: OutletId);
    /// One of the layer's outlets has more waiting than the limit allows.
    fn overflowed(&self, outlet: OutletId);
    /// Some [`crate::limits::TICK`] has passed.
    fn tick(&self, now: Millis);
    /// The server stops.
    fn shutdown(&self);
    /// The server has stopped: drop what may hold handles on it.
    fn stopped(&self);
    /// Somebody wants to know what is going on: adds the layer's own numbers.
    fn measure(&self, samples: &mut Vec<Sample>);
}

pub(crate) struct Inner {
    pub(crate) core: Rc<Core>,
    pub(super) options: Options,
    routes: RefCell<Vec<Rc<Route>>>,
    /// What the WebSockets of the routes do. A socket knows the number.
    behaviors: RefCell<Vec<Rc<dyn Upgradable>>>,
    pub(super) table: RefCell<Vec<Option<Entry>>>,
    /// What the requests that are kept have in common.
    pub(super) shapes: RefCell<Shapes>,
    topics: RefCell<Rooms>,
    /// Subscriptions beyond the limits.
    topics_refused: Cell<u64>,
    topic_space: Space,
    layers: RefCell<Vec<Rc<dyn Layer>>>,
    /// What inflates the messages of clients that compress each on its own.
    pub(super) inflater: RefCell<Option<Inflater>>,
    /// Those of the others, by the slot of the connection.
    pub(super) inflaters: RefCell<HashMap<u32, Inflater, RandomState>>,
    /// What WebSockets have sent that is still to be read, by the slot of the connection.
    pub(super) kept: RefCell<HashMap<u32, Kept, RandomState>>,
    /// What slow clients, who are late with an answer, had taken of what they are owed.
    pub(super) taken: RefCell<HashMap<u32, u64, RandomState>>,
    swept: Cell<Millis>,
    pub(super) requests: Cell<u64>,
    /// The connection whose request is being given to its handler.
    pub(super) dispatching: Cell<Option<ConnectionId>>,
    date: RefCell<(Millis, Option<String>)>,
}

/// One connection.
pub(super) struct Entry {
    generation: u32,
    /// When [`Inner::expire`] is to look at it.
    pub(super) deadline: Due,
    pub(super) state: State,
}

// There is one for each socket.
const _: () = assert!(size_of::<Option<Entry>>() <= 40);

/// A time in half the words of [`Millis`], rounded up to [`Due::STEP_MS`]: it lasts for eight years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) struct Due(u32);

impl Due {
    /// Far less than how often it is looked at: see [`SWEEP_MS`].
    const STEP_MS: Millis = 64;

    pub(super) fn at(time: Millis) -> Self {
        Self(u32::try_from(time.div_ceil(Self::STEP_MS)).unwrap_or(u32::MAX))
    }

    pub(super) fn millis(self) -> Millis {
        if self.0 == u32::MAX { Millis::MAX } else { Millis::from(self.0) * Self::STEP_MS }
    }
}

pub(super) enum State {
    Http(Box<Http>),
    WebSocket(Socket),
}

/// Guards a piece of work on a connection that runs handlers: one that panics would leave a connection that
/// nobody reads, or in the middle of a message. It is ended then.
pub(super) struct Whole<'a> {
    app: &'a Inner,
    id: ConnectionId,
}

impl<'a> Whole<'a> {
    pub(super) fn begin(app: &'a Inner, id: ConnectionId) -> Self {
        Self { app, id }
    }

    /// All went well.
    pub(super) fn end(self) {
        std::mem::forget(self);
    }
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        self.app.core.fail(self.id);
    }
}

/// How often deadlines of connections are looked at. They are seconds, so they may be this late.
const SWEEP_MS: Millis = 500;

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("core", &self.core.index()).finish_non_exhaustive()
    }
}

impl Inner {
    pub(super) fn new(core: Rc<Core>, options: Options) -> Rc<Self> {
        let topic_space = core.shared().directory.space("topics");
        let table = Vec::with_capacity(core.table_reserve());
        let inner = Rc::new(Self {
            core,
            options,
            routes: RefCell::default(),
            behaviors: RefCell::default(),
            table: RefCell::new(table),
            shapes: RefCell::default(),
            topics: RefCell::default(),
            topics_refused: Cell::new(0),
            topic_space,
            layers: RefCell::default(),
            inflater: RefCell::default(),
            inflaters: RefCell::default(),
            kept: RefCell::default(),
            taken: RefCell::default(),
            swept: Cell::new(0),
            requests: Cell::new(0),
            dispatching: Cell::new(None),
            date: RefCell::default(),
        });
        inner.core.set_close_timeout(inner.options.write_timeout);
        inner.core.allow_stalls(inner.options.write_timeout);
        CURRENT.set(Some(inner.clone()));
        inner
    }

    pub(super) fn add_route(&self, route: Route) {
        self.routes.borrow_mut().push(Rc::new(route));
    }

    /// Takes in what the WebSockets of a route do.
    pub(super) fn add_behavior<U: 'static>(&self, mut behavior: Behavior<U>) -> Option<Rc<dyn Upgradable>> {
        let mut behaviors = self.behaviors.borrow_mut();
        let Ok(number) = u16::try_from(behaviors.len()) else {
            tracing::error!("there are too many routes of WebSockets: one is left out");
            return None;
        };
        behavior.number = number;
        let behavior: Rc<dyn Upgradable> = Rc::new(behavior);
        behaviors.push(behavior.clone());
        Some(behavior)
    }

    pub(super) fn behavior(&self, socket: &Socket) -> Option<Rc<dyn Upgradable>> {
        self.behaviors.borrow().get(usize::from(socket.behavior)).cloned()
    }

    pub(crate) fn add_layer(&self, layer: Rc<dyn Layer>) {
        self.layers.borrow_mut().push(layer);
    }

    /// The first route that matches and that `wanted` accepts.
    pub(super) fn find_route(
        &self,
        path: &str,
        mut wanted: impl FnMut(&Target) -> bool,
    ) -> Option<(Rc<Route>, Params)> {
        let routes = self.routes.borrow();
        routes.iter().filter(|route| wanted(&route.target)).find_map(|route| {
            let params = route.matches(path)?;
            Some((route.clone(), params))
        })
    }

    /// All routes that match a path.
    pub(super) fn routes_for(&self, path: &str) -> Vec<Rc<Route>> {
        self.routes.borrow().iter().filter(|route| route.matches(path).is_some()).cloned().collect()
    }

    /// The `Date` header's value, made once a second; `None` if the clock shows no time that it can say.
    pub(super) fn date(&self) -> Option<String> {
        let now = self.core.now() / 1000 + 1;
        let mut date = self.date.borrow_mut();
        if date.0 != now {
            *date = (now, http_date((self.options.clock)()));
        }
        date.1.clone()
    }

    /// The wall clock.
    pub(super) fn clock(&self) -> fn() -> SystemTime {
        self.options.clock
    }

    pub(super) fn insert(&self, id: ConnectionId, state: State, deadline: Due) {
        let mut table = self.table.borrow_mut();
        let slot = id.slot() as usize;
        if table.len() <= slot {
            table.resize_with(slot + 1, || None);
        }
        table[slot] = Some(Entry { generation: id.generation(), deadline, state });
    }

    /// Runs `f` on a connection's entry, if it is still there.
    pub(super) fn entry<T>(&self, id: ConnectionId, f: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut table = self.table.borrow_mut();
        let entry = table.get_mut(id.slot() as usize)?.as_mut()?;
        (entry.generation == id.generation()).then(|| f(entry))
    }

    /// Forgets a connection.
    pub(super) fn forget(&self, id: ConnectionId) -> Option<Entry> {
        let mut table = self.table.borrow_mut();
        let slot = table.get_mut(id.slot() as usize)?;
        if slot.as_ref()?.generation != id.generation() {
            return None;
        }
        let entry = slot.take();
        drop(table);
        self.inflaters.borrow_mut().remove(&id.slot());
        self.kept.borrow_mut().remove(&id.slot());
        self.taken.borrow_mut().remove(&id.slot());
        self.unsubscribe_all(id);
        entry
    }

    fn unsubscribe_all(&self, id: ConnectionId) {
        let (space, core) = (self.topic_space.number(), self.core.index());
        let directory = &self.core.shared().directory;
        let emptied = |room: &str| {
            directory.exit(RoomKey { space, room }, core);
        };
        self.topics.borrow_mut().leave_all(id.slot(), emptied);
    }

    pub(super) fn subscribe(&self, id: ConnectionId, topic: &str) -> bool {
        // A socket whose `close` handler runs is not in the table any more, and nobody would unsubscribe it.
        let open = self.entry(id, |entry| matches!(entry.state, State::WebSocket(_)));
        let Some(outlet) = self.core.outlet(id).filter(|_| open == Some(true)) else { return false };
        let mut topics = self.topics.borrow_mut();
        let full = topics.count_of(id.slot()) >= self.options.topics_per_socket;
        if topic.len() > limits::TOPIC_BYTES || full && !topics.contains(id.slot(), topic) {
            self.topics_refused.set(self.topics_refused.get() + 1);
            tracing::debug!("a WebSocket has too many topics, or one with too long a name");
            return false;
        }
        let key = RoomKey { space: self.topic_space.number(), room: topic };
        let born = || self.core.shared().directory.enter(key, self.core.index());
        topics.join(id.slot(), outlet.slot(), topic, born)
    }

    pub(super) fn unsubscribe(&self, id: ConnectionId, topic: &str) -> bool {
        let left = self.topics.borrow_mut().leave(id.slot(), topic);
        if left == Some(true) {
            let key = RoomKey { space: self.topic_space.number(), room: topic };
            self.core.shared().directory.exit(key, self.core.index());
        }
        left.is_some()
    }

    pub(super) fn is_subscribed(&self, id: ConnectionId, topic: &str) -> bool {
        self.topics.borrow().contains(id.slot(), topic)
    }

    /// Sends a frame to the subscribers of a topic on all cores that have some.
    pub(super) fn publish(&self, topic: &str, frame: &Frame, except: Option<ConnectionId>) -> Delivery {
        let key = RoomKey { space: self.topic_space.number(), room: topic };
        let directory = &self.core.shared().directory;
        let (moment, mut delivery) = (directory.now(), Delivery::Sent);
        for core in directory.cores(key).iter() {
            if core == self.core.index() {
                self.publish_here(topic, Moment::LAST, frame, except);
                continue;
            }
            let (topic, frame) = (topic.to_owned(), frame.clone());
            let bytes = frame.wire().len();
            let publish = Task::new(move || {
                if let Some(App(inner)) = current() {
                    inner.publish_here(&topic, moment, &frame, None);
                }
            });
            if !self.core.post(core, publish.holding(bytes)) {
                delivery = Delivery::Dropped;
            }
        }
        delivery
    }

    fn publish_here(&self, topic: &str, moment: Moment, frame: &Frame, except: Option<ConnectionId>) {
        let topics = self.topics.borrow();
        let mut outlets = self.core.outlets();
        let except = except.map(ConnectionId::slot);
        for member in topics.members_at(topic, moment) {
            if Some(member.member) != except {
                // What a slow subscriber loses is its own affair, and its limit closes it.
                let _ = outlets.push_slot(member.outlet, frame);
            }
        }
        drop(outlets);
        self.core.ring_bell();
    }

    fn layers(&self) -> Vec<Rc<dyn Layer>> {
        self.layers.borrow().clone()
    }

    /// Looks at connections whose deadline has passed.
    fn sweep(&self, now: Millis) {
        let expired = self.connections(|entry| entry.deadline.millis() <= now);
        for id in expired {
            // Each in a boundary of its own: one that panics must not keep the others, now and at each tick.
            self.core.step(id, "the timeout of a connection", || self.expire(id, now));
        }
    }

    /// The connections whose entries are wanted.
    fn connections(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<ConnectionId> {
        let table = self.table.borrow();
        let entries = table.iter().enumerate().filter_map(|(slot, entry)| Some((slot, entry.as_ref()?)));
        let wanted = entries.filter(|(_, entry)| wanted(entry));
        wanted.map(|(slot, entry)| ConnectionId::of(slot as u32, entry.generation)).collect()
    }

    fn expire(&self, id: ConnectionId, now: Millis) {
        let http = self.entry(id, |entry| matches!(entry.state, State::Http(_)));
        match http {
            Some(true) => self.http_expired(id, now),
            Some(false) => self.websocket_expired(id, now),
            None => {}
        }
    }
}

impl Service for Inner {
    fn opened(&self, id: ConnectionId) {
        let deadline = self.core.now() + self.options.head_timeout.as_millis() as Millis;
        self.insert(id, State::Http(Box::default()), Due::at(deadline));
    }

    fn received(&self, id: ConnectionId, bytes: &mut [u8]) {
        let http = self.entry(id, |entry| match &mut entry.state {
            State::Http(http) => {
                http.take(bytes);
                true
            }
            State::WebSocket(_) => false,
        });
        match http {
            Some(true) if self.core.is_spent() => self.put_off(id),
            Some(true) => self.advance(id),
            Some(false) => self.websocket_received(id, bytes),
            None => {}
        }
    }

    fn ready(&self, id: ConnectionId) {
        let http = self.entry(id, |entry| matches!(entry.state, State::Http(_)));
        match http {
            Some(true) => self.http_ready(id),
            Some(false) => self.websocket_ready(id),
            None => {}
        }
    }

    fn arrived(&self, id: ConnectionId, mut parcel: Parcel) {
        self.opened(id);
        self.received(id, &mut parcel.bytes);
    }

    fn returned(&self, id: ConnectionId, parcel: Parcel) {
        // The core that could answer takes no more connections: the client may try again.
        self.opened(id);
        self.entry(id, |entry| {
            if let State::Http(http) = &mut entry.state {
                // The path of the request decides about the headers of the answer.
                http.take(&parcel.bytes);
            }
        });
        self.refuse_and_close(id, 503);
    }

    fn drained(&self, id: ConnectionId) {
        self.http_drained(id);
        self.input_drained(id);
        self.websocket_drained(id);
    }

    fn half_closed(&self, id: ConnectionId) -> bool {
        let refused = self.entry(id, |entry| match &entry.state {
            State::Http(http) => http.refused_status(),
            State::WebSocket(_) => None,
        });
        if let Some(Some(status)) = refused {
            self.refuse_and_close(id, status);
            return true;
        }
        let (kept, on_abort) = self
            .entry(id, |entry| match &mut entry.state {
                State::Http(http) => http.half_close(),
                State::WebSocket(_) => (self.input_ended(id), None),
            })
            .unwrap_or_default();
        if let Some(on_abort) = on_abort {
            on_abort();
        }
        kept
    }

    fn ended(&self, id: ConnectionId, why: Ended) {
        if why == Ended::Eof {
            self.read_rest(id);
        }
        match self.forget(id).map(|entry| entry.state) {
            Some(State::Http(http)) => http.aborted(BodyEnd::Aborted),
            Some(State::WebSocket(socket)) => socket.ended(self, id, why),
            None => {}
        }
    }

    fn owed(&self, outlet: OutletId) {
        for layer in self.layers() {
            layer.owed(outlet);
        }
    }

    fn overflowed(&self, outlet: OutletId) {
        for layer in self.layers() {
            layer.overflowed(outlet);
        }
    }

    fn tick(&self, now: Millis) {
        for layer in self.layers() {
            guarded("the timers of a layer", || layer.tick(now));
        }
        if now >= self.swept.get() + SWEEP_MS {
            self.swept.set(now);
            self.sweep(now);
        }
    }

    fn measure(&self, samples: &mut Vec<Sample>) {
        let gauge = |name, help, value| Sample::new(name, help, Value::Gauge(value));
        let sockets = {
            let table = self.table.borrow();
            table.iter().flatten().filter(|entry| matches!(entry.state, State::WebSocket(_))).count()
        };
        samples.extend([
            gauge("websockets", "Connections that are WebSockets.", sockets as u64),
            gauge("topics", "Topics with subscribers.", self.topics.borrow().len() as u64),
            Sample::new(
                "topics_refused",
                "Subscriptions to topics that were refused for the limits of a socket.",
                Value::Counter(self.topics_refused.get()),
            ),
            Sample::new(
                "http_requests",
                "Requests that a route has answered.",
                Value::Counter(self.requests.get()),
            ),
        ]);
        for layer in self.layers() {
            layer.measure(samples);
        }
    }

    fn stopped(&self) {
        for layer in self.layers.take() {
            layer.stopped();
        }
        self.routes.take();
        self.table.take();
        self.behaviors.take();
    }

    fn shutdown(&self) {
        for layer in self.layers() {
            guarded("the shutdown of a layer", || layer.shutdown());
        }
        for id in self.connections(|_| true) {
            let http = self.entry(id, |entry| match &entry.state {
                // A request that is being answered is not cut off.
                State::Http(http) => Some(http.is_idle()),
                State::WebSocket(_) => None,
            });
            match http {
                Some(Some(true)) => {
                    self.forget(id);
                    self.core.close(id);
                }
                Some(None) => self.websocket_close(id, 1001, "server shutting down"),
                _ => {}
            }
        }
    }
}

/// The user data of a WebSocket, whatever its type.
#[derive(Clone)]
pub(super) enum UserData {
    Any(Rc<dyn Any>),
    /// For layers above, which have tables of their own: no allocation.
    Word(u64),
}

/// Runs `f` on this thread's App.
pub(super) fn with_current<T>(f: impl FnOnce(&Rc<Inner>) -> T) -> Option<T> {
    debug_assert!(runtime::current().is_some(), "sockring handles belong to the thread of their core");
    CURRENT.with_borrow(Clone::clone).map(|inner| f(&inner))
}
