//! Where the bytes for a subscriber go: one small record for each connection or session of a core.

use std::mem;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::backlog::Load;
use super::{Backlog, Backpressure, Batch, Dropped, Frame, Owed, Policy};
use crate::limits;
use crate::protocol::ws::deflate::{Deflater, Settings};

/// What leads from an outlet to its client.
///
/// ```
/// use sockring::fanout::{Outlets, Via};
/// let mut outlets = Outlets::new(1024, 0);
/// let id = outlets.open(Via::Layer);
/// outlets.redirect(id, Via::Connection(3));
/// assert_eq!(outlets.via(id), Some(Via::Connection(3)));
/// outlets.close(id);
/// assert_eq!(outlets.via(id), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A connection of this core: the runtime sends the joined bytes. The number is a hint where to look,
    /// since it is given again once the connection is closed: the connection is the one that has the
    /// outlet's handle.
    Connection(u32),
    /// A layer above takes what is owed when it can (a long-polling session with a waiting request).
    Layer,
}

/// A handle on an outlet that stays void once the outlet is closed, however often its slot is used again.
///
/// ```
/// use sockring::fanout::{Outlets, Via};
/// let mut outlets = Outlets::new(1024, 0);
/// let old = outlets.open(Via::Layer);
/// outlets.close(old);
/// let new = outlets.open(Via::Layer);
/// assert!(old.slot() == new.slot() && old != new);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OutletId {
    slot: u32,
    generation: u32,
}

impl OutletId {
    /// The index of the outlet on its core, for the tables of a broadcast, whose members leave before their
    /// outlets are closed: [`Outlets::push_slot`] and its like take nothing else, and nothing but these
    /// takes it.
    pub fn slot(self) -> u32 {
        self.slot
    }
}

/// What became of a message.
///
/// ```
/// use sockring::fanout::{Delivery, Frame, Outlets, Via};
/// let mut outlets = Outlets::new(1024, 0);
/// let id = outlets.open(Via::Layer);
/// assert_eq!(outlets.push(id, &Frame::raw("a")), Delivery::Sent);
/// outlets.block(id);
/// assert_eq!(outlets.push(id, &Frame::raw("b")), Delivery::Queued);
/// outlets.close(id);
/// assert_eq!(outlets.push(id, &Frame::raw("c")), Delivery::Dropped);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It leaves at the end of this turn.
    Sent,
    /// The client is slow, or has no poll waiting: it leaves when the client takes it.
    Queued,
    /// It will not leave: the client is gone, or slow beyond its limit, or the message was volatile.
    Dropped,
}

/// What is special about an outlet: outlets of the same class share it.
///
/// ```
/// use sockring::fanout::{Class, Delivery, Frame, Outlets, Via};
/// let mut outlets = Outlets::new(1 << 20, 0);
/// let id = outlets.open(Via::Connection(0));
/// let small = Class { max_waiting: Some(100), close_when_over: false, ..Class::default() };
/// assert!(outlets.set_class(id, &small));
/// assert_eq!(outlets.push(id, &Frame::raw(vec![0; 200])), Delivery::Sent);
/// assert_eq!(outlets.push(id, &Frame::raw("x")), Delivery::Dropped);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Messages are compressed as these settings say.
    pub deflate: Option<Settings>,
    /// Each message builds on those before it: the outlet has a compressor of its own.
    pub deflate_context: bool,
    /// Bytes that may wait for the client; `None` for the limit of all.
    pub max_waiting: Option<usize>,
    /// Whether the client is closed when more would wait; otherwise the message is dropped.
    pub close_when_over: bool,
}

impl Default for Class {
    /// What an outlet is without a class: nothing is compressed, and the usual limit closes.
    fn default() -> Self {
        Self { deflate: None, deflate_context: false, max_waiting: None, close_when_over: true }
    }
}

/// A class and the compressor that its outlets share.
#[derive(Debug)]
struct Shared {
    class: Class,
    deflater: Option<Deflater>,
}

/// 16 bytes, four to a cache line: nothing else is touched for a healthy member of a broadcast.
#[derive(Debug)]
struct Hot {
    owed: Owed,
    generation: u32,
    connection: u32,
    state: State,
    /// 0 for the usual, else one more than the index in `classes`.
    class: u8,
}

impl Hot {
    /// Whether a volatile message would leave: nothing waits, and nothing was said in this turn.
    fn is_writable(&self) -> bool {
        matches!(self.state, State::Ready | State::ReadyApart) && self.owed == Owed::NOTHING
    }

    /// The state in which it takes what it is owed.
    fn ready(&self) -> State {
        if self.class == 0 { State::Ready } else { State::ReadyApart }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Takes what it is owed at the end of the turn.
    Ready,
    /// So does an outlet that has a class. The path of the others need not look for one.
    ReadyApart,
    /// Cannot take anything now: frames go to the backlog.
    Blocked,
    /// Over its limit, about to be closed: takes nothing any more.
    Overflowed,
}

const NO_CONNECTION: u32 = u32::MAX;

/// The outlets of one core, and what they are owed in this turn.
///
/// ```
/// use sockring::fanout::{Delivery, Frame, Outlets, Via};
/// let mut outlets = Outlets::new(1024, 8);
/// let id = outlets.open(Via::Connection(7));
/// assert_eq!(outlets.push(id, &Frame::raw("hello")), Delivery::Sent);
/// let mut dirty = Vec::new();
/// outlets.take_dirty(&mut dirty);
/// assert_eq!(dirty, [id]);
/// ```
#[derive(Debug)]
pub struct Outlets {
    hot: Vec<Hot>,
    backlogs: Vec<Option<Box<Backlog>>>,
    free: Vec<u32>,
    dirty: Dirty,
    /// Those that are owed something from an earlier turn, which had no time for them.
    put_off: Dirty,
    /// Where the next of them is looked for.
    next_put_off: u32,
    overflowed: Vec<OutletId>,
    /// Outlets whose frames were put into their backlogs although their clients may take them.
    gathered: Vec<OutletId>,
    limit: usize,
    /// The number of the turn: of what is owed between two flushes.
    turn: u32,
    classes: Vec<Shared>,
    /// The compressors of outlets that have one of their own.
    deflaters: HashMap<u32, Deflater, RandomState>,
    dropped: Dropped,
    queued: u64,
    /// Clients that are over their limit, with what they had taken when that was last looked at.
    overdrawn: HashMap<u32, pressure::Overdraft, RandomState>,
    ticks: u32,
    /// Whether the process is short of memory: less may wait for a client then.
    short: bool,
    /// The sequences that this turn's frames make up.
    pub batch: Batch,
}

impl Outlets {
    /// `limit`: bytes that may wait for one client before the next message closes it; [`limits::OVERDRAFT`]
    /// times as many for one that goes on taking some. `reserve`: outlets for which there is room from the
    /// start.
    pub fn new(limit: usize, reserve: usize) -> Self {
        Self {
            hot: Vec::with_capacity(reserve),
            backlogs: Vec::with_capacity(reserve),
            free: Vec::new(),
            dirty: Dirty::default(),
            put_off: Dirty::default(),
            next_put_off: 0,
            overflowed: Vec::new(),
            gathered: Vec::new(),
            limit,
            turn: 0,
            classes: Vec::new(),
            deflaters: HashMap::default(),
            dropped: Dropped::default(),
            queued: 0,
            overdrawn: HashMap::default(),
            ticks: 0,
            short: false,
            batch: Batch::default(),
        }
    }

    /// Bytes that may wait for one client.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Opens an outlet, ready to take frames.
    pub fn open(&mut self, via: Via) -> OutletId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.hot.push(Hot {
                owed: Owed::NOTHING,
                generation: 0,
                connection: NO_CONNECTION,
                state: State::Free,
                class: 0,
            });
            self.backlogs.push(None);
            self.hot.len() as u32 - 1
        });
        let hot = &mut self.hot[slot as usize];
        hot.state = State::Ready;
        hot.connection = connection_of(via);
        OutletId { slot, generation: hot.generation }
    }

    /// Closes an outlet and forgets what it was owed.
    pub fn close(&mut self, id: OutletId) {
        let Some(hot) = self.hot_mut(id) else { return };
        hot.generation = hot.generation.wrapping_add(1);
        hot.owed = Owed::NOTHING;
        hot.state = State::Free;
        hot.connection = NO_CONNECTION;
        if mem::take(&mut hot.class) != 0 {
            self.deflaters.remove(&id.slot);
        }
        self.backlogs[id.slot as usize] = None;
        self.overdrawn.remove(&id.slot);
        self.free.push(id.slot);
    }

    #[inline]
    fn hot(&self, id: OutletId) -> Option<&Hot> {
        let hot = self.hot.get(id.slot as usize)?;
        (hot.generation == id.generation && hot.state != State::Free).then_some(hot)
    }

    #[inline]
    fn hot_mut(&mut self, id: OutletId) -> Option<&mut Hot> {
        let hot = self.hot.get_mut(id.slot as usize)?;
        (hot.generation == id.generation && hot.state != State::Free).then_some(hot)
    }

    /// Whether the outlet is still open.
    #[inline]
    pub fn is_open(&self, id: OutletId) -> bool {
        self.hot(id).is_some()
    }

    /// Leads the outlet elsewhere from now on; what waits goes the new way.
    pub fn redirect(&mut self, id: OutletId, via: Via) {
        if let Some(hot) = self.hot_mut(id) {
            hot.connection = connection_of(via);
        }
    }

    /// Owes the client a frame.
    pub fn push(&mut self, id: OutletId, frame: &Frame) -> Delivery {
        if self.is_open(id) { self.push_slot(id.slot, frame) } else { Delivery::Dropped }
    }

    /// Owes a frame to a client that is known to be there: the step that a broadcast repeats.
    #[inline]
    pub fn push_slot(&mut self, slot: u32, frame: &Frame) -> Delivery {
        let hot = &mut self.hot[slot as usize];
        if hot.state == State::Ready && self.batch.cost(hot.owed) <= self.limit {
            hot.owed = self.batch.append(hot.owed, frame);
            self.dirty.set(slot);
            return Delivery::Sent;
        }
        self.push_apart(slot, frame, true)
    }

    /// For an outlet that is blocked, has a class, is at its limit, or takes nothing any more.
    #[inline(never)]
    fn push_apart(&mut self, slot: u32, frame: &Frame, limited: bool) -> Delivery {
        if !self.make_room(slot, frame, limited) {
            return Delivery::Dropped;
        }
        let limit = self.limit_of(slot);
        let hot = &mut self.hot[slot as usize];
        let class = self.classes.get_mut(usize::from(hot.class).wrapping_sub(1));
        let made;
        let frame = match class {
            Some(Shared { class: Class { deflate: Some(settings), deflate_context, .. }, deflater }) => {
                if *deflate_context {
                    let deflater = self.deflaters.entry(slot).or_insert_with(|| Deflater::new(settings));
                    made = frame.deflated_next(deflater);
                    &made
                } else {
                    frame.deflated(settings, deflater.get_or_insert_with(|| Deflater::new(settings)))
                }
            }
            _ => frame,
        };
        if hot.state == State::Blocked {
            let backlog = self.backlogs[slot as usize].get_or_insert_default();
            backlog.begin_turn(self.turn, limit);
            backlog.bring(frame.clone());
            self.queued += 1;
            return Delivery::Queued;
        }
        hot.owed = match hot.class {
            0 => self.batch.append(hot.owed, frame),
            class => self.batch.append_apart(class, hot.owed, frame),
        };
        self.dirty.set(slot);
        Delivery::Sent
    }

    /// Whether an outlet may be owed a frame, after what has to give way to it has done so.
    fn make_room(&mut self, slot: u32, frame: &Frame, limited: bool) -> bool {
        let hot = &self.hot[slot as usize];
        let blocked = match hot.state {
            State::Ready | State::ReadyApart => false,
            State::Blocked => true,
            State::Free | State::Overflowed => return false,
        };
        if !limited {
            return true;
        }
        let bounds = self.bounds(hot.class, frame, blocked);
        let limit = self.limit_of(slot);
        if let Some(backlog) = &mut self.backlogs[slot as usize] {
            backlog.begin_turn(self.turn, limit);
        }
        let takes_a_place = blocked
            && frame.key().is_some_and(|key| {
                self.backlogs[slot as usize].as_mut().is_some_and(|backlog| backlog.drop_key(key))
            });
        self.dropped.conflated += u64::from(takes_a_place);
        if self.fits(slot, &bounds) {
            if !self.overdrawn.is_empty() {
                self.overdrawn.remove(&slot);
            }
            return true;
        }
        match bounds.policy {
            Policy::Close if self.came_within(slot, &bounds) => {
                // All of it came in this turn: the client had no chance to read any of it.
                if self.brought(slot) + frame.wire().len() <= limits::TURN_BYTES {
                    return true;
                }
                if !frame.is_raw() {
                    self.dropped.newest += 1;
                    return false;
                }
                self.overflow(slot);
            }
            Policy::Close if self.may_overdraw(slot, frame) => return true,
            Policy::Close => self.overflow(slot),
            Policy::DropNewest => self.dropped.newest += 1,
            Policy::DropOldest | Policy::KeepLatest => {
                if !blocked {
                    // Nothing that is owed can be taken back, what waits can.
                    self.gather(slot);
                }
                while let Some(backlog) = &mut self.backlogs[slot as usize]
                    && backlog.drop_oldest()
                {
                    self.dropped.oldest += 1;
                    if self.fits(slot, &bounds) {
                        return true;
                    }
                }
                if takes_a_place {
                    // Nothing else can go. It weighs about what the one before it did.
                    return true;
                }
                self.dropped.newest += 1;
            }
        }
        false
    }

    /// The client is to be closed, and takes nothing any more.
    fn overflow(&mut self, slot: u32) {
        let hot = &mut self.hot[slot as usize];
        hot.state = State::Overflowed;
        self.overflowed.push(OutletId { slot, generation: hot.generation });
        self.dropped.closed += 1;
    }

    /// Whether no more than the bounds allow had waited for the client when this turn began.
    fn came_within(&self, slot: u32, bounds: &Backpressure) -> bool {
        self.backlogs[slot as usize].as_deref().is_none_or(|backlog| {
            let before = backlog.before();
            !backlog.has_excused()
                && before.cost <= bounds.max_bytes
                && (before.messages == 0 || before.messages < bounds.max_messages)
        })
    }

    /// What this turn owes the client, as it counts against limits.
    fn brought(&self, slot: u32) -> usize {
        let backlog = self.backlogs[slot as usize].as_deref();
        self.batch.cost(self.hot[slot as usize].owed) + backlog.map_or(0, |backlog| backlog.brought().cost)
    }

    /// Bytes that may wait for a client before the next message closes it.
    fn limit_of(&self, slot: u32) -> usize {
        self.limit_of_class(self.hot[slot as usize].class)
    }

    fn limit_of_class(&self, class: u8) -> usize {
        let class = self.classes.get(usize::from(class).wrapping_sub(1));
        let limit = class.and_then(|shared| shared.class.max_waiting).unwrap_or(self.limit);
        if self.short { limit / limits::SHORT_SHARE } else { limit }
    }

    /// Begins a turn: what clients are owed from now on does not close them before they can read it.
    ///
    /// ```
    /// use sockring::fanout::{Delivery, Frame, Outlets, Via};
    /// let mut outlets = Outlets::new(1000, 0);
    /// let id = outlets.open(Via::Layer);
    /// outlets.block(id);
    /// for _ in 0..100 {
    ///     assert_eq!(outlets.push(id, &Frame::raw("a handler says much")), Delivery::Queued);
    /// }
    /// outlets.begin_turn();
    /// assert_eq!(outlets.push(id, &Frame::raw("a while later")), Delivery::Queued);
    /// ```
    pub fn begin_turn(&mut self) {
        self.turn = self.turn.wrapping_add(1);
    }

    /// What counts for a frame: its own bounds, where it has some, within those of the outlet. A frame's own
    /// bounds are about what waits, not about what leaves in this turn.
    fn bounds(&self, class: u8, frame: &Frame, blocked: bool) -> Backpressure {
        let limit = self.limit_of_class(class);
        let class = self.classes.get(usize::from(class).wrapping_sub(1)).map(|shared| shared.class);
        let drops = class.is_some_and(|class| !class.close_when_over);
        let policy = if drops { Policy::DropNewest } else { Policy::Close };
        let outlets = Backpressure { max_bytes: limit, policy, ..Backpressure::default() };
        match frame.backpressure() {
            None => outlets,
            Some(own) if blocked => Backpressure { max_bytes: own.max_bytes.min(limit), ..own },
            Some(Backpressure { policy, .. }) => Backpressure { policy, ..outlets },
        }
    }

    /// Whether so little waits that one more frame may. The limits count what was there before it, so that
    /// one large message always fits.
    fn fits(&self, slot: u32, bounds: &Backpressure) -> bool {
        let backlog = self.backlogs[slot as usize].as_deref();
        let Load { cost, messages } = backlog.map_or_else(Load::default, Backlog::counted);
        cost + self.batch.cost(self.hot[slot as usize].owed) <= bounds.max_bytes
            && (messages == 0 || messages < bounds.max_messages)
    }

    /// Gives the outlet a class, for what it is owed from now on. `false`, and nothing is changed: the core
    /// has too many different ones.
    pub fn set_class(&mut self, id: OutletId, class: &Class) -> bool {
        if !self.is_open(id) {
            return false;
        }
        let number = if *class == Class::default() {
            0
        } else if let Some(at) = self.classes.iter().position(|known| known.class == *class) {
            at + 1
        } else if self.classes.len() < usize::from(u8::MAX) {
            self.classes.push(Shared { class: *class, deflater: None });
            self.classes.len()
        } else {
            return false;
        };
        self.deflaters.remove(&id.slot);
        self.enter_class(id.slot, number as u8);
        true
    }

    fn enter_class(&mut self, slot: u32, class: u8) {
        let hot = &mut self.hot[slot as usize];
        hot.class = class;
        if matches!(hot.state, State::Ready | State::ReadyApart) {
            hot.state = hot.ready();
        }
    }

    /// Gives the second, which is blocked, the class of the first, with the compressor if that has one. What
    /// waits was queued plain, and is put into the form of the class.
    fn inherit_class(&mut self, first: u32, second: u32) {
        let class = self.hot[first as usize].class;
        let backlog = self.backlogs[second as usize].take();
        self.enter_class(second, class);
        if let Some(deflater) = self.deflaters.remove(&first) {
            self.deflaters.insert(second, deflater);
        }
        for frame in backlog.into_iter().flat_map(|backlog| backlog.into_frames()) {
            let _ = self.push_apart(second, &frame, false);
        }
    }

    /// Owes the client a frame whatever its limit says: for pings, pongs and closes, which are few and small.
    pub fn push_control(&mut self, id: OutletId, frame: &Frame) -> Delivery {
        if self.is_open(id) { self.push_apart(id.slot, frame, false) } else { Delivery::Dropped }
    }

    /// Owes a frame to a client that is known to be there, unless it is [busy](Self::is_writable): then the
    /// message is dropped.
    #[inline]
    pub fn push_volatile(&mut self, slot: u32, frame: &Frame) -> Delivery {
        if self.passes_by(slot) { Delivery::Dropped } else { self.push_slot(slot, frame) }
    }

    /// Whether a volatile message is dropped, which is counted.
    pub fn passes_by(&mut self, slot: u32) -> bool {
        let busy = !self.hot.get(slot as usize).is_some_and(Hot::is_writable);
        self.dropped.volatile += u64::from(busy);
        busy
    }

    /// Bytes that wait in all backlogs, and how many connections take nothing for now. Looks at every outlet.
    pub fn census(&self) -> (usize, usize) {
        let queued = self.backlogs.iter().flatten().map(|backlog| backlog.bytes()).sum();
        let slow = |hot: &&Hot| hot.state == State::Blocked && hot.connection != NO_CONNECTION;
        (queued, self.hot.iter().filter(slow).count())
    }

    /// Messages that had to wait for their clients, since the start.
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// What became of messages that could not leave, since the start.
    pub fn dropped(&self) -> Dropped {
        self.dropped
    }

    /// Whether a volatile message would leave: nothing waits, and nothing was said in this turn.
    pub fn is_writable(&self, id: OutletId) -> bool {
        self.hot(id).is_some_and(Hot::is_writable)
    }

    /// Whether the client takes nothing for now.
    pub fn is_blocked(&self, id: OutletId) -> bool {
        self.hot(id).is_some_and(|hot| hot.state == State::Blocked)
    }

    /// What leads to the client; `None` once the outlet is closed.
    #[inline]
    pub fn via(&self, id: OutletId) -> Option<Via> {
        self.hot(id).map(|hot| match hot.connection {
            NO_CONNECTION => Via::Layer,
            connection => Via::Connection(connection),
        })
    }

    /// What the client is owed in this turn; nothing while it is blocked.
    #[inline]
    pub fn owed(&self, id: OutletId) -> Owed {
        self.hot(id).map_or(Owed::NOTHING, |hot| hot.owed)
    }

    /// The handle of a slot that is in use.
    fn id(&self, slot: u32) -> OutletId {
        OutletId { slot, generation: self.hot[slot as usize].generation }
    }

    /// Bytes that wait for the client.
    pub fn waiting(&self, id: OutletId) -> usize {
        let Some(hot) = self.hot(id) else { return 0 };
        let backlog = self.backlogs[id.slot as usize].as_deref();
        self.batch.bytes(hot.owed) + backlog.map_or(0, Backlog::bytes)
    }

    /// Forgets what waits for the client, up to what has left in part.
    pub fn discard(&mut self, id: OutletId) {
        let Some(hot) = self.hot_mut(id) else { return };
        hot.owed = Owed::NOTHING;
        if let Some(backlog) = self.backlog(id) {
            backlog.discard();
        }
    }

    /// Everything that this turn owed has left.
    #[inline]
    pub fn settle(&mut self, id: OutletId) {
        if let Some(hot) = self.hot_mut(id) {
            hot.owed = Owed::NOTHING;
        }
    }

    /// Only the first `sent` bytes of what this turn owed have left: the rest becomes the backlog, and the
    /// outlet is blocked until [`unblock`](Self::unblock).
    pub fn spill(&mut self, id: OutletId, sent: usize) {
        if self.is_open(id) {
            self.spill_slot(id.slot, sent);
        }
    }

    fn spill_slot(&mut self, slot: u32, sent: usize) {
        let limit = self.limit_of(slot);
        let hot = &mut self.hot[slot as usize];
        let owed = mem::take(&mut hot.owed);
        if matches!(hot.state, State::Ready | State::ReadyApart) {
            hot.state = State::Blocked;
        }
        let frames = self.batch.frames(owed);
        if frames.is_empty() {
            return;
        }
        let backlog = self.backlogs[slot as usize].get_or_insert_default();
        backlog.begin_turn(self.turn, limit);
        let before = backlog.bytes();
        for frame in frames {
            backlog.bring(frame.clone());
        }
        // A send of this turn's bytes happens only while nothing older waits.
        debug_assert!(before == 0 || sent == 0);
        backlog.consume(sent);
    }

    /// Puts bytes in their final form before all frames that wait, and blocks the outlet: they are sent
    /// before anything else (see [`Backlog::seal`]).
    pub fn seal(&mut self, id: OutletId, bytes: &[u8]) {
        if self.is_open(id) {
            self.spill_slot(id.slot, 0);
            self.backlogs[id.slot as usize].get_or_insert_default().seal(bytes);
        }
    }

    /// Puts what `first` is owed before what waits in `second`, which is blocked afterwards. The class of
    /// `first`, if it has one, goes over as well: its client reads what waits from now on.
    pub fn put_before(&mut self, first: OutletId, second: OutletId) {
        if !self.is_open(first) || !self.is_open(second) {
            return;
        }
        self.spill_slot(first.slot, 0);
        self.spill_slot(second.slot, 0);
        if self.hot[first.slot as usize].class != 0 {
            self.inherit_class(first.slot, second.slot);
        }
        let Some(mut backlog) = self.backlogs[first.slot as usize].take() else { return };
        if let Some(behind) = self.backlogs[second.slot as usize].take() {
            backlog.append(*behind);
        }
        self.backlogs[second.slot as usize] = Some(backlog);
    }

    /// Opens an outlet for a client that has been reached through a session's, with all that waits in that
    /// one, and with its class. The session's outlet is the layer's from now on, blocked and empty.
    ///
    /// ```
    /// use sockring::fanout::{Frame, Outlets, Via};
    /// let mut outlets = Outlets::new(1024, 0);
    /// let session = outlets.open(Via::Connection(3));
    /// let _ = outlets.push(session, &Frame::raw("for the old connection"));
    /// let own = outlets.part(session, Via::Connection(3));
    /// let _ = outlets.push(session, &Frame::raw("for the next"));
    /// assert_eq!((outlets.waiting(own), outlets.waiting(session)), (22, 12));
    /// assert_eq!(outlets.via(session), Some(Via::Layer));
    /// ```
    pub fn part(&mut self, session: OutletId, via: Via) -> OutletId {
        let own = self.open(via);
        if self.is_open(session) {
            self.put_before(session, own);
            self.enter_class(session.slot, 0);
            self.redirect(session, Via::Layer);
        }
        own
    }

    /// The client takes nothing for now: what is owed, and what comes, waits in the backlog.
    pub fn block(&mut self, id: OutletId) {
        self.spill(id, 0);
    }

    /// The client takes bytes again. The backlog must be empty, or be sent before anything else.
    pub fn unblock(&mut self, id: OutletId) {
        let Some(hot) = self.hot_mut(id) else { return };
        if hot.state == State::Blocked {
            hot.state = hot.ready();
        }
        // A socket that was slow once is not worth a box for ever.
        let backlog = &mut self.backlogs[id.slot as usize];
        if backlog.as_ref().is_some_and(|backlog| backlog.is_empty()) {
            *backlog = None;
        }
    }

    /// What waits for a blocked client.
    pub fn backlog(&mut self, id: OutletId) -> Option<&mut Backlog> {
        self.hot(id)?;
        self.backlogs[id.slot as usize].as_deref_mut()
    }

    /// Moves the outlets that are owed something into `out`, in the order of their slots, which is nearly
    /// the order in which the kernel's sockets were made (sending in random order costs 4 %).
    pub fn take_dirty(&mut self, out: &mut Vec<OutletId>) {
        let hot = &self.hot;
        self.dirty.take(|slot| out.push(OutletId { slot, generation: hot[slot as usize].generation }));
    }

    /// Leaves what outlets are owed to a later turn.
    ///
    /// ```
    /// use sockring::fanout::{Frame, Outlets, Via};
    /// let mut outlets = Outlets::new(1024, 8);
    /// let ids: Vec<_> = (0..4).map(|i| outlets.open(Via::Connection(i))).collect();
    /// outlets.put_off(&ids);
    /// let mut some = Vec::new();
    /// outlets.take_put_off(&mut some, 3);
    /// assert_eq!(some, ids[..3]);
    /// ```
    pub fn put_off(&mut self, ids: &[OutletId]) {
        for id in ids {
            if self.is_open(*id) {
                self.put_off.set(id.slot);
            }
        }
    }

    /// Whether anything was put off.
    pub fn has_put_off(&self) -> bool {
        !self.put_off.is_empty()
    }

    /// Moves at most `max` of the outlets that were put off into `out`, from where the last call has stopped.
    pub fn take_put_off(&mut self, out: &mut Vec<OutletId>, max: usize) {
        let (hot, mut left) = (&self.hot, max);
        for from in [self.next_put_off, 0] {
            left -= self.put_off.take_some(from, left, |slot| {
                out.push(OutletId { slot, generation: hot[slot as usize].generation });
            });
        }
        self.next_put_off = out.last().map_or(0, |last| last.slot + 1);
    }

    /// Whether anything is owed to anybody.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || self.has_put_off()
    }

    /// Whether an outlet was owed something since [`take_dirty`](Self::take_dirty).
    pub fn is_dirty_outlet(&self, id: OutletId) -> bool {
        self.is_open(id) && self.dirty.contains(id.slot)
    }

    /// Moves the outlets into `out` of which something was put into a backlog although they were not blocked.
    /// They are blocked now, and nobody has been asked to tell when they take bytes.
    pub fn take_gathered(&mut self, out: &mut Vec<OutletId>) {
        out.append(&mut self.gathered);
    }

    /// Moves the outlets that went over their limit since the last call into `out`.
    pub fn take_overflowed(&mut self, out: &mut Vec<OutletId>) {
        out.append(&mut self.overflowed);
    }
}

fn connection_of(via: Via) -> u32 {
    match via {
        Via::Connection(slot) => slot,
        Via::Layer => NO_CONNECTION,
    }
}

/// A set of slots, as bits in two levels: cheap to add to, emptied in order.
#[derive(Debug, Default)]
struct Dirty {
    words: Vec<u64>,
    summary: Vec<u64>,
}

impl Dirty {
    #[inline]
    fn set(&mut self, slot: u32) {
        let word = (slot / 64) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
            self.summary.resize(word / 64 + 1, 0);
        }
        self.words[word] |= 1 << (slot % 64);
        self.summary[word / 64] |= 1 << (word % 64);
    }

    fn contains(&self, slot: u32) -> bool {
        self.words.get((slot / 64) as usize).is_some_and(|word| word & (1 << (slot % 64)) != 0)
    }

    fn is_empty(&self) -> bool {
        self.summary.iter().all(|bits| *bits == 0)
    }

    fn take(&mut self, mut each: impl FnMut(u32)) {
        for (i, summary) in self.summary.iter_mut().enumerate() {
            for bit in bits(mem::take(summary)) {
                let word = i * 64 + bit as usize;
                bits(mem::take(&mut self.words[word])).for_each(|bit| each(word as u32 * 64 + bit));
            }
        }
    }

    /// Takes at most `max` slots from `from` on; how many there were.
    fn take_some(&mut self, from: u32, max: usize, mut each: impl FnMut(u32)) -> usize {
        let first = (from / 64) as usize;
        let mut taken = 0;
        for word in first..self.words.len() {
            if self.summary[word / 64] & (1 << (word % 64)) == 0 {
                continue;
            }
            let below = if word == first { (1 << (from % 64)) - 1 } else { 0 };
            for bit in bits(self.words[word] & !below) {
                if taken >= max {
                    return taken;
                }
                self.words[word] &= !(1 << bit);
                each(word as u32 * 64 + bit);
                taken += 1;
            }
            if self.words[word] == 0 {
                self.summary[word / 64] &= !(1 << (word % 64));
            }
        }
        taken
    }
}

fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let bit = word.trailing_zeros();
        word &= word - 1;
        Some(bit)
    })
}

mod pressure;

#[cfg(test)]
mod tests;
