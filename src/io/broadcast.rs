//! To whom a message goes, and the way to all cores that have some of them.

use std::fmt;
use std::hash::Hash;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use smallvec::SmallVec;

use super::namespace::{NspInner, escape, unescape};
use super::recovery::{Audience, Emitted, Offset};
use super::registry::Registry;
use super::server::by_path;
use super::server_side::named;
use super::{Adapter, BroadcastOptions, SocketId};
use crate::engine::SocketSid;
use crate::fanout::{Backpressure, Cores, Delivery, Frame, Key, Moment, Policy, RoomKey, Space, Task};
use crate::protocol::sio::{EncodeError, NspName, is_reserved};
use crate::runtime::{self, Core, Shared};

/// A namespace as all threads see it.
pub(super) struct Scope {
    pub(super) shared: Arc<Shared>,
    pub(super) path: Arc<str>,
    pub(super) nsp: NspName,
    /// The namespace's number in the directory of rooms.
    pub(super) space: Space,
    pub(super) registry: Arc<Registry>,
}

impl Scope {
    pub(super) fn new(shared: Arc<Shared>, path: Arc<str>, registry: Arc<Registry>, nsp: NspName) -> Self {
        // Paths have no NUL, names of namespaces may: what is before the first one is the path.
        let space = shared.directory.space(&format!("{path}\0{nsp}"));
        Self { shared, path, nsp, space, registry }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("path", &self.path).field("nsp", &self.nsp).finish_non_exhaustive()
    }
}

/// Which sockets of a namespace: members of any of the rooms (of all sockets, if there is none), and of
/// none of the excepted ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    pub(super) rooms: SmallVec<[Box<str>; 1]>,
    pub(super) except: SmallVec<[Box<str>; 1]>,
    pub(super) volatile: bool,
    /// The reference's `compress(false)`.
    pub(super) plain: bool,
    /// When its cores were looked up: members of rooms that were born later are not meant.
    pub(super) moment: Moment,
}

/// One room or several: a string, a [`SocketId`], or a list of either.
///
/// ```
/// use sockring::io::RoomNames;
/// let mut names = Vec::new();
/// ["a", "b"].each(|name| names.push(name.to_owned()));
/// String::from("c").each(|name| names.push(name.to_owned()));
/// assert_eq!(names, ["a", "b", "c"]);
/// ```
pub trait RoomNames {
    /// Calls `f` with each name.
    fn each(&self, f: impl FnMut(&str));
}

impl RoomNames for str {
    fn each(&self, mut f: impl FnMut(&Self)) {
        f(self);
    }
}

impl RoomNames for String {
    fn each(&self, mut f: impl FnMut(&str)) {
        f(self);
    }
}

impl RoomNames for SocketId {
    fn each(&self, mut f: impl FnMut(&str)) {
        f(&self.to_string());
    }
}

impl<T: RoomNames + ?Sized> RoomNames for &T {
    fn each(&self, f: impl FnMut(&str)) {
        (**self).each(f);
    }
}

impl<T: RoomNames> RoomNames for [T] {
    fn each(&self, mut f: impl FnMut(&str)) {
        for names in self {
            names.each(&mut f);
        }
    }
}

impl<T: RoomNames, const N: usize> RoomNames for [T; N] {
    fn each(&self, f: impl FnMut(&str)) {
        self.as_slice().each(f);
    }
}

impl<T: RoomNames> RoomNames for Vec<T> {
    fn each(&self, f: impl FnMut(&str)) {
        self.as_slice().each(f);
    }
}

/// A broadcast in the making: every call gives a new one, so one can be kept and narrowed in several ways.
///
/// It may be sent to any thread. On a worker it serves that core's sockets at once and posts one task to each
/// other core that has some; on another thread it posts to all of them.
///
/// **Order.** A socket gets the messages of one sender (a core, or a thread with a [`Handle`](super::Handle))
/// in the order in which they were emitted. Messages of two senders have no common order: two sockets may
/// see them in different orders. Where that matters, number what you send.
///
/// **Names.** The id of a socket is a room's name too. Put a prefix before room names that clients choose, or
/// they can name single sockets.
///
/// ```no_run
/// # fn f(io: &sockring::io::Server) -> Result<(), sockring::io::EncodeError> {
/// let crew = io.to("crew");
/// let _ = crew.except("bridge").emit("alarm", ("deck", 3))?;
/// let _ = crew.volatile().emit("position", [1.0, 2.0])?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "an operator does nothing until it emits"]
pub struct BroadcastOperator {
    pub(super) scope: Arc<Scope>,
    pub(super) selection: Selection,
    local: bool,
    /// Whether it goes by the mailbox to the core that emits as well, and not ahead of what waits there.
    pub(super) in_order: bool,
    /// How long answers are awaited.
    pub(super) timeout: Option<Duration>,
    latest: Option<Key>,
}

impl BroadcastOperator {
    pub(super) fn new(scope: Arc<Scope>) -> Self {
        let selection = Selection { moment: Moment::LAST, ..Selection::default() };
        Self { scope, selection, local: false, in_order: false, timeout: None, latest: None }
    }

    /// The same broadcast in another namespace.
    pub(super) fn with_scope(&self, scope: Arc<Scope>) -> Self {
        Self { scope, ..self.clone() }
    }

    /// Adds rooms to whose members it goes; a socket in several of them gets it once.
    pub fn to(&self, rooms: impl RoomNames) -> Self {
        let mut new = self.clone();
        rooms.each(|room| new.selection.rooms.push(escape(room).into()));
        new
    }

    /// The reference's `in`, which is a keyword here: the same as [`to`](Self::to).
    #[doc(alias = "in")]
    pub fn within(&self, rooms: impl RoomNames) -> Self {
        self.to(rooms)
    }

    /// Leaves the members of rooms out.
    pub fn except(&self, rooms: impl RoomNames) -> Self {
        let mut new = self.clone();
        rooms.each(|room| new.selection.except.push(escape(room).into()));
        new
    }

    /// Keeps it within this process.
    pub fn local(&self) -> Self {
        Self { local: true, ..self.clone() }
    }

    /// Passes those by who cannot take it at once: who are slow, have no poll waiting, or were sent
    /// something in the same turn.
    pub fn volatile(&self) -> Self {
        let mut new = self.clone();
        new.selection.volatile = true;
        new
    }

    /// Of the messages with this event and key only the last one waits for a client that is slow: a later one
    /// takes the place of the one before it, at the end. For prices, positions and cursors. In a cluster, a
    /// key stands for the messages of the process that emits: of those of two processes one each may wait.
    /// Servers on Node.js know nothing of keys.
    ///
    /// ```no_run
    /// # fn f(io: &sockring::io::Server, user: u64) -> Result<(), sockring::io::EncodeError> {
    /// let _ = io.to("board").latest(user).emit("cursor", (user, 120, 45))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn latest(&self, key: impl Hash) -> Self {
        Self { latest: Some(Key::of(&key)), ..self.clone() }
    }

    /// The same with a key that was made already.
    pub(super) fn latest_of(self, latest: Option<Key>) -> Self {
        Self { latest, ..self }
    }

    /// Whether what is emitted may be compressed on its way, as it is by default: `false` for what is
    /// compressed already. It counts for answers to polls; as with the reference, WebSockets do not look at
    /// it.
    pub fn compress(&self, compress: bool) -> Self {
        let mut new = self.clone();
        new.selection.plain = !compress;
        new
    }

    /// Emits an event. A tuple is the list of arguments, `()` an empty one, anything else is one argument:
    /// see [`Socket::emit`](super::Socket::emit). What serialises as bytes (`bytes::Bytes`) travels as
    /// binary.
    ///
    /// [`Delivery::Sent`]: it is on its way to every core that has members; [`Delivery::Dropped`]: a core is
    /// stuck and its mailbox is full; [`Delivery::Queued`]: the adapter has it, which
    /// [keeps](Adapter::keeps_sessions) it for clients that come back.
    ///
    /// # Errors
    ///
    /// A reserved name, or arguments that cannot be written as JSON or are too large.
    pub fn emit<T: Serialize>(&self, event: &str, args: T) -> Result<Delivery, EncodeError> {
        if let Some(keeper) = self.scope.registry.keeper()
            && !self.local
            && !self.selection.volatile
        {
            return self.emit_kept(&**keeper, event, &args);
        }
        let (frame, offset) = self.scope.event_to_keep(event, &args, self.selection.volatile)?;
        let frame = if self.selection.plain { frame.uncompressed() } else { frame };
        let frame = self.scope.bounded(frame, event, self.latest);
        if let Some(adapter) = self.adapter() {
            adapter.broadcast(&self.scope.nsp, named(event, &args)?, &self.options());
        }
        Ok(self.send(&frame, offset))
    }

    /// Has the adapter serve the sockets of all servers, in its order.
    fn emit_kept<T: Serialize + ?Sized>(
        &self,
        keeper: &dyn Adapter,
        event: &str,
        args: &T,
    ) -> Result<Delivery, EncodeError> {
        if is_reserved(event) {
            return Err(EncodeError::ReservedEvent);
        }
        keeper.broadcast_kept(&self.scope.nsp, named(event, args)?, &self.options());
        Ok(Delivery::Queued)
    }

    /// Makes the selected sockets join rooms. What is beyond the [limits](super::Socket::join) of a socket is
    /// refused on its core, which is counted there (`rooms_refused`).
    ///
    /// [`Socket::join`]: super::Socket::join
    pub fn sockets_join(&self, rooms: impl RoomNames) {
        let mut names: Vec<String> = Vec::new();
        rooms.each(|room| names.push(room.to_owned()));
        if let Some(adapter) = self.adapter() {
            adapter.add_sockets(&self.scope.nsp, &self.options(), names.clone());
        }
        let (cores, moment) = self.cores();
        // A broadcast that follows from this thread must find the new members on their cores.
        let announced: Arc<[Announced]> = cores.iter().flat_map(|core| self.announce(core, &names)).collect();
        let arriving = announced.clone();
        let refused = self.on_cores((cores, moment), move |nsp, selection| {
            for socket in nsp.selected(selection) {
                for room in &names {
                    let _ = nsp.join(socket, room);
                }
            }
            arrived(&nsp.scope, &arriving, |core| core == nsp.core.index());
        });
        arrived(&self.scope, &announced, |core| refused.contains(core));
    }

    /// Joins of rooms are on their way to a core.
    fn announce(&self, core: usize, rooms: &[String]) -> impl Iterator<Item = Announced> {
        rooms.iter().map(move |room| {
            let room = escape(room).into_owned();
            let key = RoomKey { space: self.scope.space.number(), room: &room };
            let moment = self.scope.shared.directory.announce(key, core);
            Announced { room, core, moment }
        })
    }

    /// Makes the selected sockets leave rooms.
    pub fn sockets_leave(&self, rooms: impl RoomNames) {
        let mut names: Vec<String> = Vec::new();
        rooms.each(|room| names.push(room.to_owned()));
        if let Some(adapter) = self.adapter() {
            adapter.del_sockets(&self.scope.nsp, &self.options(), names.clone());
        }
        self.on_cores(self.cores(), move |nsp, selection| {
            for socket in nsp.selected(selection) {
                names.iter().for_each(|room| nsp.leave_room(socket, room));
            }
        });
    }

    /// Disconnects the selected sockets; with `close`, their connections too.
    pub fn disconnect_sockets(&self, close: bool) {
        if let Some(adapter) = self.adapter() {
            adapter.disconnect_sockets(&self.scope.nsp, &self.options(), close);
        }
        self.on_cores(self.cores(), move |nsp, selection| {
            for socket in nsp.selected(selection) {
                socket.disconnect(close);
            }
        });
    }

    /// The adapter, unless this stays within the process.
    pub(super) fn adapter(&self) -> Option<&Arc<dyn Adapter>> {
        self.scope.registry.adapter().filter(|_| !self.local)
    }

    /// Sends what is encoded already. With an offset, it is kept for those who may come back.
    pub(super) fn send(&self, frame: &Frame, offset: Option<Offset>) -> Delivery {
        let frame = frame.clone();
        let bytes = frame.wire().len();
        let _outside = (offset.is_some() && self.here().is_none()).then(|| self.scope.shared.outside());
        let (cores, moment) = self.cores();
        let deliver = move |nsp: &Rc<NspInner>, selection: &Selection| {
            nsp.deliver(selection, &frame);
            if let (Some(offset), Some(recovery)) = (offset, &nsp.recovery) {
                let (audience, frame, at) = (selection.audience(), frame.clone(), nsp.core.now());
                recovery.emitted(Emitted { offset, audience, frame, moment, at });
            }
        };
        let refused = self.on_cores_holding((cores, moment), bytes, deliver);
        if refused.is_empty() { Delivery::Sent } else { Delivery::Dropped }
    }

    pub(super) fn options(&self) -> BroadcastOptions {
        let owned = |names: &[Box<str>]| names.iter().map(|name| unescape(name).to_owned()).collect();
        BroadcastOptions {
            rooms: owned(&self.selection.rooms),
            except: owned(&self.selection.except),
            volatile: self.selection.volatile,
            compress: !self.selection.plain,
            timeout: self.timeout,
            local: self.local,
            latest: self.latest,
        }
    }

    /// The cores that may have sockets of the selection, and when they were looked up.
    pub(super) fn cores(&self) -> (Cores, Moment) {
        let directory = &self.scope.shared.directory;
        let moment = directory.now();
        let of = |room: &str| directory.cores(RoomKey { space: self.scope.space.number(), room });
        if self.selection.rooms.is_empty() {
            return (of(super::namespace::ALL), moment);
        }
        let mut cores = Cores::default();
        for room in &self.selection.rooms {
            cores = cores.union(of(room));
            // The room of a socket's own id is on the core that the id names.
            if let Some(sid) = SocketSid::parse(room)
                && sid.core() < self.scope.shared.mesh.cores()
            {
                cores.insert(sid.core());
            }
        }
        (cores, moment)
    }

    /// The core that emits, if it is one of this server, and may act before it reads its mailbox.
    fn here(&self) -> Option<Rc<Core>> {
        let ours = |core: &Rc<Core>| !self.in_order && Arc::ptr_eq(core.shared(), &self.scope.shared);
        runtime::current().filter(ours)
    }

    /// Does something for the selection on each of the cores: here at once, elsewhere as a task. Returns
    /// the cores whose mailboxes are full.
    pub(super) fn on_cores<F>(&self, cores: (Cores, Moment), act: F) -> Cores
    where
        F: Fn(&Rc<NspInner>, &Selection) + Clone + Send + 'static,
    {
        self.on_cores_holding(cores, 0, act)
    }

    /// The same with a closure that keeps so many bytes alive.
    pub(super) fn on_cores_holding<F>(&self, (cores, moment): (Cores, Moment), bytes: usize, act: F) -> Cores
    where
        F: Fn(&Rc<NspInner>, &Selection) + Clone + Send + 'static,
    {
        let here = self.here();
        let mut refused = Cores::default();
        for core in cores.iter() {
            if let Some(current) = &here
                && core == current.index()
            {
                if let Some(nsp) = self.scope.on_this_core() {
                    act(&nsp, &self.selection);
                }
                continue;
            }
            let (scope, act) = (self.scope.clone(), act.clone());
            let selection = Selection { moment, ..self.selection.clone() };
            let task = Task::new(move || {
                if let Some(nsp) = scope.on_this_core() {
                    act(&nsp, &selection);
                }
            })
            .holding(bytes);
            let posted = match &here {
                Some(current) => current.post(core, task),
                None => self.scope.shared.mesh.post(core, task).is_ok(),
            };
            if !posted {
                refused.insert(core);
            }
        }
        refused
    }
}

impl Selection {
    fn audience(&self) -> Audience {
        Audience { rooms: self.rooms.clone(), except: self.except.clone() }
    }
}

impl Scope {
    /// The offset of a packet that is emitted, if clients may come back for it. Where an adapter keeps
    /// packets, it is the adapter that names them.
    pub(super) fn offset(&self, volatile: bool) -> Option<Offset> {
        let named_here = self.registry.has_recovery() && self.registry.keeper().is_none();
        if named_here && !volatile { Offset::next() } else { None }
    }

    /// A message of the application, with what is done when it has to wait for a client.
    pub(super) fn bounded(&self, frame: Frame, event: &str, latest: Option<Key>) -> Frame {
        let bounds = self.registry.backpressure(&self.nsp);
        let key = match bounds {
            _ if latest.is_some() => latest,
            Some(Backpressure { policy: Policy::KeepLatest, .. }) => Some(Key::of(&())),
            _ => None,
        };
        let frame = match bounds {
            Some(bounds) => frame.bounded(bounds),
            None => frame,
        };
        match key {
            Some(key) => frame.latest(Key::of(&(&*self.nsp, event, key))),
            None => frame,
        }
    }

    pub(super) fn on_this_core(&self) -> Option<Rc<NspInner>> {
        by_path(&self.path)?.namespace(&self.nsp)
    }
}

/// A join of a room that is on its way to a core.
pub(super) struct Announced {
    pub(super) room: String,
    pub(super) core: usize,
    pub(super) moment: Moment,
}

/// The announced joins of some cores were carried out, or came to nothing.
pub(super) fn arrived(scope: &Scope, announced: &[Announced], on: impl Fn(usize) -> bool) {
    for Announced { room, core, moment } in announced.iter().filter(|announced| on(announced.core)) {
        scope.shared.directory.arrived(RoomKey { space: scope.space.number(), room }, *core, *moment);
    }
}

/// The calls of a namespace that make or finish a broadcast, the same for everything that stands for one.
/// `$all` says whose sockets they mean; the type has a method `operator`.
macro_rules! broadcasts {
    ($type:ty, $all:literal) => {
        impl $type {
            #[doc = concat!("Emits to all sockets of ", $all, ", on all cores.")]
            ///
            /// # Errors
            ///
            /// A reserved name, or arguments that cannot be written as JSON.
            pub fn emit<T: serde::Serialize>(
                &self,
                event: &str,
                args: T,
            ) -> Result<$crate::fanout::Delivery, $crate::protocol::sio::EncodeError> {
                self.operator().emit(event, args)
            }

            /// Narrows a broadcast to the members of rooms.
            pub fn to(&self, rooms: impl $crate::io::RoomNames) -> $crate::io::BroadcastOperator {
                self.operator().to(rooms)
            }

            /// The reference's `in`, which is a keyword here: the same as [`to`](Self::to).
            #[doc(alias = "in")]
            pub fn within(&self, rooms: impl $crate::io::RoomNames) -> $crate::io::BroadcastOperator {
                self.operator().to(rooms)
            }

            /// Leaves the members of rooms out of a broadcast.
            pub fn except(&self, rooms: impl $crate::io::RoomNames) -> $crate::io::BroadcastOperator {
                self.operator().except(rooms)
            }

            /// Keeps a broadcast within this process.
            pub fn local(&self) -> $crate::io::BroadcastOperator {
                self.operator().local()
            }

            /// Lets a broadcast pass those by who cannot take it at once.
            pub fn volatile(&self) -> $crate::io::BroadcastOperator {
                self.operator().volatile()
            }

            /// See [`BroadcastOperator::compress`]($crate::io::BroadcastOperator::compress).
            pub fn compress(&self, compress: bool) -> $crate::io::BroadcastOperator {
                self.operator().compress(compress)
            }

            /// Lets only the last message of a key wait for who is slow; see
            /// [`BroadcastOperator::latest`]($crate::io::BroadcastOperator::latest).
            pub fn latest(&self, key: impl std::hash::Hash) -> $crate::io::BroadcastOperator {
                self.operator().latest(key)
            }

            /// Limits the time for the answers to a broadcast.
            pub fn timeout(&self, timeout: std::time::Duration) -> $crate::io::BroadcastOperator {
                self.operator().timeout(timeout)
            }

            #[doc = concat!("Emits to all sockets of ", $all, ", and awaits an answer of each; see")]
            /// [`BroadcastOperator::emit_with_ack`]($crate::io::BroadcastOperator::emit_with_ack).
            pub fn emit_with_ack<T, A>(&self, event: &str, args: A) -> $crate::io::BroadcastAckFuture<T>
            where
                T: serde::de::DeserializeOwned,
                A: serde::Serialize,
            {
                self.operator().emit_with_ack(event, args)
            }

            #[doc = concat!("Emits the event `message` to all sockets of ", $all, ".")]
            ///
            /// # Errors
            ///
            /// Arguments that cannot be written as JSON.
            #[doc(alias = "write")]
            pub fn send<T: serde::Serialize>(
                &self,
                args: T,
            ) -> Result<$crate::fanout::Delivery, $crate::protocol::sio::EncodeError> {
                self.operator().emit("message", args)
            }

            #[doc = concat!("Makes all sockets of ", $all, " join rooms.")]
            pub fn sockets_join(&self, rooms: impl $crate::io::RoomNames) {
                self.operator().sockets_join(rooms);
            }

            #[doc = concat!("Makes all sockets of ", $all, " leave rooms.")]
            pub fn sockets_leave(&self, rooms: impl $crate::io::RoomNames) {
                self.operator().sockets_leave(rooms);
            }

            #[doc = concat!("Disconnects all sockets of ", $all, "; with `close`, their connections too.")]
            pub fn disconnect_sockets(&self, close: bool) {
                self.operator().disconnect_sockets(close);
            }

            #[doc = concat!("The sockets of ", $all, ", on all cores and servers.")]
            ///
            /// # Errors
            ///
            /// Another server of the cluster has not answered in time.
            pub async fn fetch_sockets(
                &self,
            ) -> Result<Vec<$crate::io::RemoteSocket>, $crate::io::ClusterError<$crate::io::RemoteSocket>>
            {
                self.operator().fetch_sockets().await
            }

            #[doc = concat!("The ids of the sockets of ", $all, ", on all cores and servers.")]
            ///
            /// # Errors
            ///
            /// Another server of the cluster has not answered in time.
            pub async fn all_sockets(
                &self,
            ) -> Result<Vec<$crate::io::SocketId>, $crate::io::ClusterError<$crate::io::SocketId>> {
                self.operator().all_sockets().await
            }

            /// Sends an event to the other servers of the cluster, for those who have registered a handler
            /// with [`on_server_event`]($crate::io::Namespace::on_server_event). A tuple is the list of
            /// arguments, anything else is one argument. Without an adapter there are no other servers.
            ///
            /// # Errors
            ///
            /// A reserved name (`connect`, `connection`, `new_namespace`), or arguments that cannot be
            /// written as JSON.
            pub fn server_side_emit<T: serde::Serialize>(
                &self,
                event: &str,
                args: T,
            ) -> Result<(), $crate::protocol::sio::EncodeError> {
                self.operator().server_side_emit(event, args)
            }

            /// Sends an event to the other servers of the cluster and awaits one value of each, for 5
            /// seconds; the error has those that came.
            pub fn server_side_emit_with_ack<T, A>(
                &self,
                event: &str,
                args: A,
            ) -> $crate::io::ClusterFuture<T>
            where
                T: serde::de::DeserializeOwned,
                A: serde::Serialize,
            {
                self.operator().server_side_emit_with_ack(event, args)
            }
        }
    };
}

pub(super) use broadcasts;
