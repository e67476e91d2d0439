//! One core: its ring, its connections, what they are owed, and the verbs that layers above use.

use std::any::Any;
use std::cell::{Cell, Ref, RefCell, RefMut};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use slab::Slab;

use super::adopt::Admission;
use super::buffers::ReceiveBuffers;
use super::connection::{
    Connection, ConnectionId, Connections, Deadline, Ended, Moving, Parcel, Phase, Receive,
};
use super::doorbell::Bell;
use super::guard::guarded;
use super::intake::{Budget, Ready};
use super::listener::Listening;
use super::memory::Memory;
use super::metrics::{Counters, Sample};
use super::places::Places;
use super::ring::{Completion, Kind, Rig, Ring, Target};
use crate::fanout::{Class, Delivery, Directory, Frame, Mesh, OutletId, Outlets, Queue, Task, Via};
use crate::limits;
use crate::time::Millis;

/// What the runtime calls: the protocol above it. One for each core; methods take `&self` because a
/// handler that they run may call back into the core.
///
/// The runtime calls [`ended`](Self::ended) only for connections that end by themselves; one that the
/// layer closes, aborts or hands over is gone for it at once.
///
/// ```no_run
/// use std::rc::Rc;
/// use std::sync::Arc;
/// use sockring::fanout::{Frame, OutletId};
/// use sockring::runtime::{ConnectionId, Core, Ended, Listener, Options, Parcel, Service, start};
///
/// /// Sends back what comes.
/// struct Echo(Rc<Core>);
///
/// impl Service for Echo {
///     fn received(&self, connection: ConnectionId, bytes: &mut [u8]) {
///         let _ = self.0.send(connection, &Frame::raw(bytes.to_vec()));
///     }
///     fn half_closed(&self, _: ConnectionId) -> bool {
///         false
///     }
///     fn opened(&self, _: ConnectionId) {}
///     fn arrived(&self, _: ConnectionId, _: Parcel) {}
///     fn returned(&self, _: ConnectionId, _: Parcel) {}
///     fn ready(&self, _: ConnectionId) {}
///     fn drained(&self, _: ConnectionId) {}
///     fn ended(&self, _: ConnectionId, _: Ended) {}
///     fn owed(&self, _: OutletId) {}
///     fn overflowed(&self, _: OutletId) {}
///     fn tick(&self, _: u64) {}
///     fn shutdown(&self) {}
///     fn stopped(&self) {}
/// }
///
/// let options = Options { listen: vec![Listener::tcp("127.0.0.1:7")?], ..Options::default() };
/// start(&options, Arc::new(|core| Rc::new(Echo(core.clone())) as Rc<dyn Service>))?.run_until_signal()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Service {
    /// A connection was accepted.
    fn opened(&self, connection: ConnectionId);
    /// Bytes came in. They are lent for the length of the call.
    fn received(&self, connection: ConnectionId, bytes: &mut [u8]);
    /// A connection came from another core; its parcel holds bytes that are still to be read.
    fn arrived(&self, connection: ConnectionId, parcel: Parcel);
    /// A connection that was to move could not: it is here again, with its parcel.
    fn returned(&self, connection: ConnectionId, parcel: Parcel);
    /// Input of a connection that the layer has kept may be read: see [`Core::read_again`]. Nobody else is to
    /// read it, so that what one answer leads to never runs inside of what led to it.
    fn ready(&self, connection: ConnectionId);
    /// Everything that waited for a slow client has left.
    fn drained(&self, connection: ConnectionId);
    /// The peer has closed its side: it sends no more, and may still read. Whether the connection is to stay
    /// open for what will be sent to it; otherwise it ends, as [`Ended::Eof`]. A connection that stays may be
    /// asked about again.
    fn half_closed(&self, connection: ConnectionId) -> bool;
    /// A connection ended by itself.
    fn ended(&self, connection: ConnectionId, why: Ended);
    /// An outlet of [`Via::Layer`] is owed something; the layer must take it or block the outlet.
    fn owed(&self, outlet: OutletId);
    /// An outlet of [`Via::Layer`] has more waiting than its limit allows.
    fn overflowed(&self, outlet: OutletId);
    /// Some [`limits::TICK`] has passed.
    fn tick(&self, now: Millis);
    /// The server stops: close what is open, soon.
    fn shutdown(&self);
    /// The server has stopped: drop what may hold handles on it.
    fn stopped(&self);
    /// Somebody wants to know what is going on: adds the service's own numbers.
    fn measure(&self, samples: &mut Vec<Sample>) {
        let _ = samples;
    }
}

/// What all cores of a server share.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// use sockring::runtime::Shared;
/// fn count(shared: &Shared) -> usize {
///     let visits: Arc<AtomicUsize> = shared.extension("visits on all cores");
///     visits.fetch_add(1, Ordering::Relaxed)
/// }
/// ```
pub struct Shared {
    /// The mailboxes of the cores.
    pub mesh: Mesh,
    /// Which core has members of which room.
    pub directory: Directory,
    pub(super) rings: Vec<AtomicI32>,
    pub(super) parcels: Vec<Mutex<Slab<Parcel>>>,
    pub(super) admission: Admission,
    pub(super) memory: Memory,
    pub(super) stopping: AtomicBool,
    /// The cores that the process may use, as they were when the server started.
    pub(super) cpus: OnceLock<Vec<usize>>,
    extensions: Mutex<Vec<(String, Arc<dyn Any + Send + Sync>)>>,
    outside: RwLock<()>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("mesh", &self.mesh).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(workers: usize, admission: Admission, memory: Memory) -> Self {
        Self {
            admission,
            memory,
            mesh: Mesh::new(workers),
            directory: Directory::default(),
            rings: (0..workers).map(|_| AtomicI32::new(-1)).collect(),
            parcels: (0..workers).map(|_| Mutex::default()).collect(),
            stopping: AtomicBool::new(false),
            cpus: OnceLock::new(),
            extensions: Mutex::default(),
            outside: RwLock::default(),
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// To be held by a thread that is no core, from when it looks cores up until it has posted to them:
    /// [`Core::fence`] waits for that.
    pub fn outside(&self) -> RwLockReadGuard<'_, ()> {
        self.outside.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when every thread that is no core has posted what it had looked cores up for.
    pub(super) fn wait_for_outside(&self) {
        drop(self.outside.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// The [`extension`](Self::extension) of a name, if a core has made it.
    pub fn known_extension<T: Any + Send + Sync>(&self, name: &str) -> Option<Arc<T>> {
        let extensions = self.extensions.lock().unwrap_or_else(PoisonError::into_inner);
        let known = extensions.iter().filter(|(known, _)| known == name);
        known.filter_map(|(_, any)| any.clone().downcast().ok()).next()
    }

    /// What a layer's cores share beyond this, by a name of the layer's: made when the first core asks.
    pub fn extension<T: Any + Send + Sync + Default>(&self, name: &str) -> Arc<T> {
        let mut extensions = self.extensions.lock().unwrap_or_else(PoisonError::into_inner);
        let known = extensions.iter().filter(|(known, _)| known == name);
        let found = known.filter_map(|(_, any)| any.clone().downcast().ok()).next();
        found.unwrap_or_else(|| {
            let made = Arc::new(T::default());
            extensions.push((name.to_owned(), made.clone()));
            made
        })
    }

    pub(super) fn parcels(&self, core: usize) -> std::sync::MutexGuard<'_, Slab<Parcel>> {
        self.parcels[core].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One core of a running server. It lives on its thread and nowhere else.
///
/// ```
/// // In a handler: what takes long goes elsewhere, and later comes later.
/// if let Some(core) = sockring::runtime::current() {
///     println!("on core {} with {} connections", core.index(), core.connections());
///     core.spawn(async {
///         monoio::time::sleep(std::time::Duration::from_secs(1)).await;
///     });
/// }
/// ```
pub struct Core {
    pub(super) index: usize,
    pub(super) shared: Arc<Shared>,
    // The ring goes before the buffers that the kernel fills through it.
    pub(super) ring: RefCell<Ring>,
    pub(super) buffers: RefCell<ReceiveBuffers>,
    pub(super) listeners: RefCell<Vec<Listening>>,
    pub(super) connections: RefCell<Connections>,
    pub(super) outlets: RefCell<Outlets>,
    /// What came of a header of the PROXY protocol that is not complete.
    pub(super) prefaces: RefCell<HashMap<ConnectionId, Vec<u8>>>,
    /// Gone once the worker has stopped: the service holds the core, and one of them must let go.
    service: RefCell<Option<Rc<dyn Service>>>,
    pub(super) bell: Bell,
    pub(super) budget: Budget,
    /// Connections whose input is to be read although nothing new has come.
    pub(super) ready: RefCell<Ready>,
    pub(super) inbox: RefCell<VecDeque<Completion>>,
    pub(super) work: RefCell<Work>,
    pub(super) outgoing: RefCell<Vec<Queue>>,
    pub(super) places: Places,
    pub(super) direct: bool,
    pub(super) ticked: Cell<bool>,
    pub(super) stop_at: Cell<Option<Millis>>,
    #[cfg(feature = "tls")]
    pub(super) sessions: RefCell<super::secure::Sessions>,
    #[cfg(feature = "tls")]
    pub(super) secure: RefCell<super::secure::Buffers>,
    /// Steps of TLS handshakes since a turn last asked.
    #[cfg(feature = "tls")]
    pub(super) handshakes: Cell<usize>,
    pub(super) counters: Counters,
    pub(super) send_slice: Duration,
    pub(super) shutdown_timeout: Duration,
    pub(super) close_timeout: Cell<Duration>,
    /// How long a client may take nothing of what waits for it.
    pub(super) stall_timeout: Cell<Duration>,
    epoch: Instant,
    now: Cell<Millis>,
}

/// What a turn has to look after once its handlers have run.
#[derive(Default)]
pub(super) struct Work {
    /// Connections that the layer above has closed in this turn, or that became ready to close.
    pub(super) closing: Vec<ConnectionId>,
    /// Blocked outlets whose connections take bytes again.
    pub(super) writable: Vec<OutletId>,
    /// Outlets whose connections are to be told when nothing is owed any more.
    pub(super) drains: Vec<OutletId>,
    /// Connections whose receive is wanted: see [`Receive::Wanted`].
    pub(super) wanted: Vec<ConnectionId>,
    /// Connections whose send has failed, with nobody else to say so.
    pub(super) dead: Vec<ConnectionId>,
    /// Listeners that wait for a free slot before they get another accept.
    pub(super) parked: VecDeque<u16>,
    /// Listeners whose accepts found no descriptor or no memory.
    pub(super) resting: Vec<u16>,
    /// Whether it was said that accepts find none.
    pub(super) exhausted: bool,
    /// Whether a phase with a deadline may exist.
    pub(super) deadlines: bool,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("index", &self.index).finish_non_exhaustive()
    }
}

/// How a core is made; see [`Core::new`].
pub(super) struct Setup {
    pub(super) index: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) rig: Rig,
    pub(super) listeners: Vec<Listening>,
    pub(super) capacity: usize,
    pub(super) connections_per_address: usize,
    pub(super) direct: bool,
    pub(super) backpressure_bytes: usize,
    pub(super) send_slice: Duration,
    pub(super) shutdown_timeout: Duration,
    pub(super) epoch: Instant,
}

impl Core {
    pub(super) fn new(setup: Setup) -> Rc<Self> {
        let workers = setup.shared.mesh.cores();
        let reserve = setup.capacity.min(limits::TABLE_RESERVE);
        Rc::new(Self {
            index: setup.index,
            shared: setup.shared,
            ring: RefCell::new(setup.rig.ring),
            buffers: RefCell::new(setup.rig.buffers),
            listeners: RefCell::new(setup.listeners),
            connections: RefCell::new(Connections::new(reserve, setup.connections_per_address)),
            prefaces: RefCell::default(),
            outlets: RefCell::new(Outlets::new(setup.backpressure_bytes, reserve)),
            service: RefCell::default(),
            bell: Bell::default(),
            budget: Budget::new(setup.epoch),
            ready: RefCell::default(),
            inbox: RefCell::default(),
            work: RefCell::default(),
            outgoing: RefCell::new((0..workers).map(|_| Queue::default()).collect()),
            places: Places::new(setup.capacity),
            direct: setup.direct,
            ticked: Cell::new(false),
            stop_at: Cell::new(None),
            #[cfg(feature = "tls")]
            sessions: RefCell::default(),
            #[cfg(feature = "tls")]
            secure: RefCell::default(),
            #[cfg(feature = "tls")]
            handshakes: Cell::new(0),
            send_slice: setup.send_slice,
            shutdown_timeout: setup.shutdown_timeout,
            close_timeout: Cell::new(setup.shutdown_timeout),
            stall_timeout: Cell::new(limits::STALLED),
            epoch: setup.epoch,
            now: Cell::new(0),
            counters: Counters::default(),
        })
    }

    /// The core's number, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// What all cores of the server share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The time at which this turn began.
    pub fn now(&self) -> Millis {
        self.now.get()
    }

    /// The time at this moment, for what must not be late by the length of a turn.
    pub fn clock(&self) -> Millis {
        self.epoch.elapsed().as_millis() as Millis
    }

    pub(super) fn update_now(&self) -> Millis {
        let now = self.clock();
        self.now.set(now);
        now
    }

    /// How many connections are open on this core.
    pub fn connections(&self) -> usize {
        self.connections.borrow().len()
    }

    /// For how many connections a table beside this one should have room from the start.
    pub fn table_reserve(&self) -> usize {
        self.places.all().min(limits::TABLE_RESERVE)
    }

    /// Runs a future on this core, beside the turns; see [`spawn`](super::spawn).
    #[track_caller]
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        drop(super::spawn(future));
    }

    /// Runs what takes long on a thread that is no worker's and may use any core of the process.
    pub fn background(&self, work: impl FnOnce() + Send + 'static) {
        let cpus = self.shared.cpus.get().cloned().unwrap_or_default();
        let run = move || {
            // Threads inherit the mask of the thread that starts them, and a worker's is a single core.
            if !cpus.is_empty() && monoio::utils::bind_to_cpu_set(cpus).is_err() {
                tracing::debug!("a thread stays on its worker's core");
            }
            work();
        };
        // A thread that cannot be started keeps what it was given: then this one does the work, late.
        let work = Arc::new(Mutex::new(Some(run)));
        let theirs = work.clone();
        let thread = std::thread::Builder::new().name("sockring-work".into());
        if thread.spawn(move || run_once(&theirs)).is_err() {
            run_once(&work);
        }
    }

    /// How many bytes may wait for one client.
    pub fn backpressure_bytes(&self) -> usize {
        self.outlets.borrow().limit()
    }

    /// Asks a core to do something, in the order in which this core asks it; on this core itself, in its
    /// next turn. `false`: that core is stuck and its mailbox is full, the task was dropped.
    pub fn post(&self, core: usize, task: Task) -> bool {
        // A task that comes back is dropped here, behind the borrow: what it holds may call back.
        let posted = self.outgoing.borrow_mut()[core].push(task);
        self.bell.ring();
        posted.is_ok()
    }

    /// The peer's address; `None` when the connection is gone or a Unix socket's.
    pub fn peer(&self, id: ConnectionId) -> Option<SocketAddr> {
        self.with(id, |connection| connection.peer).and_then(Option::from)
    }

    /// For a connection with TLS, the certificates with which the peer has identified itself, its own first;
    /// an empty list if it has not. `None` for one without TLS.
    pub fn peer_certificates(&self, id: ConnectionId) -> Option<Vec<Vec<u8>>> {
        self.with(id, |_| ())?;
        #[cfg(feature = "tls")]
        return self.sessions.borrow().peer_certificates(id);
        #[cfg(not(feature = "tls"))]
        return None;
    }

    /// Owes a connection a frame, to leave at the end of this turn.
    pub fn send(&self, id: ConnectionId, frame: &Frame) -> Delivery {
        match self.outlet(id) {
            Some(outlet) => self.push(outlet, frame),
            None => Delivery::Dropped,
        }
    }

    /// Owes a connection a large frame, which leaves in pieces from the end of this turn on, as the client
    /// takes it; see [`Outlets::push_large`].
    pub fn send_large(&self, id: ConnectionId, frame: &Frame) -> Delivery {
        let Some(outlet) = self.outlet(id) else { return Delivery::Dropped };
        self.bell.ring();
        self.outlets.borrow_mut().push_large(outlet, frame)
    }

    /// Owes an outlet a frame, to leave at the end of this turn.
    pub fn push(&self, outlet: OutletId, frame: &Frame) -> Delivery {
        self.bell.ring();
        self.outlets.borrow_mut().push(outlet, frame)
    }

    /// The outlets of this core. For a broadcast; call [`ring_bell`](Self::ring_bell) afterwards.
    pub fn outlets(&self) -> RefMut<'_, Outlets> {
        self.outlets.borrow_mut()
    }

    /// Makes sure that a turn comes.
    pub fn ring_bell(&self) {
        self.bell.ring();
    }

    /// Where the bytes for a connection go.
    pub fn outlet(&self, id: ConnectionId) -> Option<OutletId> {
        self.with(id, |connection| connection.outlet)
    }

    /// Gives the connection's outlet a class, for what it is owed from now on; see [`Outlets::set_class`].
    pub fn set_class(&self, id: ConnectionId, class: &Class) -> bool {
        self.outlet(id).is_some_and(|outlet| self.outlets.borrow_mut().set_class(outlet, class))
    }

    /// Whether so much waits for a connection that no more should be read from it: more than half of what may
    /// wait before it is closed. `elsewhere`: bytes that wait for the same client in another place.
    pub fn is_pressed(&self, id: ConnectionId, elsewhere: usize) -> bool {
        self.outlet(id).is_some_and(|outlet| self.outlets.borrow().is_pressed(outlet, elsewhere))
    }

    /// Bytes that a slow client has taken since it began to be slow.
    pub fn taken_bytes(&self, id: ConnectionId) -> u64 {
        self.outlet(id).map_or(0, |outlet| self.outlets.borrow().taken(outlet))
    }

    /// Bytes that a connection is owed and that have not left.
    pub fn owed_bytes(&self, id: ConnectionId) -> usize {
        self.outlet(id).map_or(0, |outlet| self.outlets.borrow().waiting(outlet))
    }

    /// Makes sure that [`Service::drained`] runs when everything that a connection is owed has left.
    pub fn notify_drained(&self, id: ConnectionId) {
        if let Some(outlet) = self.outlet(id) {
            self.work.borrow_mut().drains.push(outlet);
            self.bell.ring();
        }
    }

    /// Gives a connection the outlet of the session that it carries from now on. What its own outlet is
    /// owed leaves first, then what waits in the session's.
    ///
    /// No other connection may carry the outlet: it is [detached](Self::detach) from that one first.
    pub fn carry(&self, id: ConnectionId, outlet: OutletId) {
        let carrier = self.carrier(outlet);
        debug_assert!(carrier.is_none(), "two connections own one outlet: {carrier:?} and {id:?}");
        if let Some(carrier) = carrier {
            self.detach(carrier);
            self.close(carrier);
        }
        let own = self.with(id, |connection| std::mem::replace(&mut connection.outlet, outlet));
        let mut outlets = self.outlets.borrow_mut();
        let Some(own) = own else { return outlets.close(outlet) };
        outlets.put_before(own, outlet);
        outlets.close(own);
        outlets.redirect(outlet, Via::Connection(id.slot()));
        self.work.borrow_mut().writable.push(outlet);
        self.bell.ring();
    }

    /// The connection that an outlet leads to.
    pub(super) fn carrier(&self, outlet: OutletId) -> Option<ConnectionId> {
        let via = self.outlets.borrow().via(outlet);
        self.connections.borrow().of_outlet(outlet, via).map(|(id, _)| id)
    }

    /// Takes the outlet of a session away from the connection that has carried it, and leaves it to the
    /// layer above, blocked and empty, for another connection. What has waited in it still leaves over this
    /// one, which has an outlet of its own again. `None`: the connection is gone.
    pub fn detach(&self, id: ConnectionId) -> Option<OutletId> {
        let session = self.outlet(id)?;
        let own = self.outlets.borrow_mut().part(session, Via::Connection(id.slot()));
        self.with(id, |connection| connection.outlet = own);
        self.work.borrow_mut().writable.push(own);
        self.bell.ring();
        Some(session)
    }

    /// An outlet of [`Via::Layer`] can take bytes again.
    pub fn unblock(&self, outlet: OutletId) {
        self.outlets.borrow_mut().unblock(outlet);
    }

    /// Opens an outlet that the layer above empties.
    pub fn open_outlet(&self) -> OutletId {
        self.outlets.borrow_mut().open(Via::Layer)
    }

    /// Closes an outlet that the layer above has opened and that no connection carries.
    pub fn close_outlet(&self, outlet: OutletId) {
        self.outlets.borrow_mut().close(outlet);
    }

    /// Closes a connection once everything that it is owed has left.
    pub fn close(&self, id: ConnectionId) {
        self.begin_close(id, false);
    }

    /// How long a connection that is being closed may go without taking any of what it is owed. As long as
    /// [`Options::shutdown_timeout`](super::Options::shutdown_timeout) unless this is called.
    pub fn set_close_timeout(&self, timeout: Duration) {
        self.close_timeout.set(timeout);
    }

    /// Gives clients at least this time in which they may take nothing of what waits for them, before they
    /// are closed; a minute is the least. For layers whose heartbeats are slower.
    pub fn allow_stalls(&self, time: Duration) {
        self.stall_timeout.set(self.stall_timeout.get().max(time));
    }

    /// Whether something waits for a client since it takes nothing for now. What this turn owes it does not
    /// count.
    pub fn is_blocked(&self, id: ConnectionId) -> bool {
        self.outlet(id).is_some_and(|outlet| self.outlets.borrow().is_blocked(outlet))
    }

    /// Like [`close`](Self::close), for an answer to a client that is still sending: the writing side is
    /// shut down first and what comes is discarded for a while, so that no reset overtakes the answer
    /// (RFC 9112 section 9.6).
    pub fn linger(&self, id: ConnectionId) {
        self.begin_close(id, true);
    }

    fn begin_close(&self, id: ConnectionId, linger: bool) {
        let deadline = Deadline::after(self.now(), self.close_timeout.get());
        let phase = Phase::Closing { deadline, linger };
        if self.with(id, |connection| connection.phase = phase).is_some() {
            let mut work = self.work.borrow_mut();
            work.closing.push(id);
            work.deadlines = true;
            self.bell.ring();
        }
    }

    /// Closes a connection at the end of this turn, whatever it is owed.
    pub fn abort(&self, id: ConnectionId) {
        if self.with(id, |_| ()).is_some() {
            self.remove(id);
        }
    }

    /// Ends a connection as if the peer had reset it, and tells so with [`Service::ended`], in this turn.
    pub fn fail(&self, id: ConnectionId) {
        self.work.borrow_mut().dead.push(id);
        self.bell.ring();
    }

    /// Stops reading from a connection; bytes that are on their way may still come.
    pub fn pause(&self, id: ConnectionId) {
        let tag = self.with(id, |connection| connection.stop_receive(id));
        if let Some(Some(tag)) = tag {
            self.queue(|ring| ring.cancel(tag));
        }
    }

    /// Reads from a paused connection again.
    pub fn resume(&self, id: ConnectionId) {
        // A receive that is still stopping is armed again by its last completion: see `received_last`.
        let idle = self.with(id, |connection| match connection.receive {
            Receive::Idle => true,
            Receive::Stopping => {
                connection.receive = Receive::Armed;
                false
            }
            Receive::Armed | Receive::Wanted | Receive::Ended => false,
        });
        if idle == Some(true) {
            self.arm_receive(id);
        }
    }

    /// Moves a connection to another core: it is gone here at once, and [`Service::arrived`] runs there
    /// with the parcel. What it is owed leaves before it does.
    pub fn hand_over(&self, id: ConnectionId, core: usize, bytes: Vec<u8>, note: Box<dyn Any + Send>) {
        let deadline = Deadline::after(self.now(), limits::DEPARTURE);
        let tag = self.with(id, |connection| {
            let (peer, listener) = (connection.peer.into(), connection.listener);
            let parcel = Parcel::new(bytes, peer, listener, note);
            connection.moving = Some(Box::new(Moving { core, parcel }));
            connection.phase = Phase::Moving { deadline };
            connection.stop_receive(id)
        });
        if let Some(Some(tag)) = tag {
            self.queue(|ring| ring.cancel(tag));
        }
        let mut work = self.work.borrow_mut();
        work.closing.push(id);
        work.deadlines = true;
        self.bell.ring();
    }

    /// Runs `f` on an open connection.
    pub(super) fn with<T>(&self, id: ConnectionId, f: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        let mut connections = self.connections.borrow_mut();
        let connection = connections.get_mut(id).filter(|connection| connection.phase == Phase::Open)?;
        Some(f(connection))
    }

    /// A connection that is there, whatever its phase.
    pub(super) fn connection(&self, id: ConnectionId) -> Option<Ref<'_, Connection>> {
        Ref::filter_map(self.connections.borrow(), |all| all.get(id)).ok()
    }

    /// Runs a step for a connection within a boundary: a panic in it ends this connection alone.
    pub(crate) fn step(&self, id: ConnectionId, doing: &str, f: impl FnOnce()) {
        if guarded(doing, f).is_some() {
            return;
        }
        // The layer may be what is broken: it is told once, and the connection goes in any case.
        guarded("the end of a connection after a panic", || self.end(id, Ended::Panic));
        self.remove(id);
    }

    /// Takes a socket in.
    pub(super) fn admit(&self, target: Target, peer: Option<SocketAddr>, listener: u16) -> ConnectionId {
        let open = |id: ConnectionId| self.outlets.borrow_mut().open(Via::Connection(id.slot()));
        self.connections.borrow_mut().insert(target, peer, listener, open)
    }

    pub(super) fn arm_receive(&self, id: ConnectionId) {
        let mut connections = self.connections.borrow_mut();
        let Some(connection) = connections.get_mut(id) else { return };
        connection.receive = Receive::Armed;
        let target = connection.target;
        drop(connections);
        self.queue(|ring| ring.receive(target, id.tag(Kind::Receive)));
    }

    /// Takes a connection out of the tables, whatever becomes of its socket: the next client with its slot
    /// finds nothing of it.
    pub(super) fn take_out(&self, id: ConnectionId) -> Option<Connection> {
        let connection = self.connections.borrow_mut().remove(id)?;
        self.outlets.borrow_mut().close(connection.outlet);
        self.ready.borrow_mut().forget(id);
        Some(connection)
    }

    /// Takes a socket out and closes it: what is armed on it is cancelled first (R3). Each request is queued
    /// for itself: one that the ring does not take must not keep the socket open.
    pub(super) fn remove(&self, id: ConnectionId) {
        let Some(connection) = self.take_out(id) else { return };
        #[cfg(feature = "tls")]
        self.sessions.borrow_mut().take(id);
        if let Phase::Preface { .. } = connection.phase {
            self.prefaces.borrow_mut().remove(&id);
        }
        let armed = match connection.receive {
            Receive::Armed => Some(Kind::Receive),
            Receive::Ended => Some(Kind::Hangup),
            Receive::Stopping | Receive::Wanted | Receive::Idle => None,
        };
        for kind in armed.into_iter().chain(connection.polled.then_some(Kind::Writable)) {
            self.queue(|ring| ring.cancel(id.tag(kind)));
        }
        self.queue(|ring| ring.close(connection.target));
        self.bell.ring();
    }

    /// Queues requests on the ring. A ring that takes none is beyond help: the next turn submits, fails as
    /// well, and ends the worker.
    pub(super) fn queue(&self, f: impl FnOnce(&mut Ring) -> std::io::Result<()>) {
        let _ = self.try_queue(f);
    }

    /// The same; whether they are queued.
    pub(super) fn try_queue(&self, f: impl FnOnce(&mut Ring) -> std::io::Result<()>) -> bool {
        let queued = f(&mut self.ring.borrow_mut());
        if let Err(error) = &queued {
            tracing::error!("core {}: a request could not be queued: {error}", self.index);
        }
        queued.is_ok()
    }

    pub(super) fn service(&self) -> Option<Rc<dyn Service>> {
        self.service.borrow().clone()
    }

    /// Sets what the runtime calls. Once, before the first turn.
    pub(super) fn install(&self, service: Rc<dyn Service>) {
        self.service.replace(Some(service));
    }

    /// The worker has stopped: handlers, which may hold handles on everything, are dropped.
    pub(super) fn retire(&self) {
        self.shared.rings[self.index].store(-1, Ordering::Release);
        if let Some(service) = self.service.take() {
            guarded("the end of the server", || service.stopped());
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop_at.get().is_some() || self.shared.is_stopping()
    }
}

fn run_once(work: &Mutex<Option<impl FnOnce()>>) {
    let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(work) = work {
        guarded("work in the background", work);
    }
}
