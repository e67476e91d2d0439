//! Where the bytes for a subscriber go: one small record for each connection or session of a core.

use std::mem;

use super::{Backlog, Batch, Frame, Owed};

/// What leads from an outlet to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A connection of this core, by its slot: the runtime sends the joined bytes.
    Connection(u32),
    /// A layer above takes what is owed when it can (a long-polling session with a waiting request).
    Layer,
}

/// A handle on an outlet that stays void once the outlet is closed, however often its slot is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OutletId {
    pub(crate) slot: u32,
    generation: u32,
}

impl OutletId {
    /// The index of the outlet on its core, for [`Outlets::push_slot`].
    pub fn slot(self) -> u32 {
        self.slot
    }
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It leaves at the end of this turn.
    Sent,
    /// The client is slow, or has no poll waiting: it leaves when the client takes it.
    Queued,
    /// It will not leave: the client is gone, or slow beyond its limit, or the message was volatile.
    Dropped,
}

/// 16 bytes, four to a cache line: nothing else is touched for a healthy member of a broadcast.
#[derive(Debug)]
struct Hot {
    owed: Owed,
    generation: u32,
    connection: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Takes what it is owed at the end of the turn.
    Ready,
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
/// assert_eq!(dirty, [id.slot()]);
/// ```
#[derive(Debug)]
pub struct Outlets {
    hot: Vec<Hot>,
    backlogs: Vec<Option<Box<Backlog>>>,
    free: Vec<u32>,
    dirty: Dirty,
    overflowed: Vec<OutletId>,
    limit: usize,
    /// The sequences that this turn's frames make up.
    pub batch: Batch,
}

impl Outlets {
    /// `limit`: bytes that may wait for one client before the next message closes it. `reserve`: outlets for
    /// which there is room from the start.
    pub fn new(limit: usize, reserve: usize) -> Self {
        Self {
            hot: Vec::with_capacity(reserve),
            backlogs: Vec::with_capacity(reserve),
            free: Vec::new(),
            dirty: Dirty::default(),
            overflowed: Vec::new(),
            limit,
            batch: Batch::default(),
        }
    }

    /// Opens an outlet, ready to take frames.
    pub fn open(&mut self, via: Via) -> OutletId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.hot.push(Hot {
                owed: Owed::NOTHING,
                generation: 0,
                connection: NO_CONNECTION,
                state: State::Free,
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
        let Some(hot) = self.live(id) else { return };
        hot.generation = hot.generation.wrapping_add(1);
        hot.owed = Owed::NOTHING;
        hot.state = State::Free;
        hot.connection = NO_CONNECTION;
        self.backlogs[id.slot as usize] = None;
        self.free.push(id.slot);
    }

    fn live(&mut self, id: OutletId) -> Option<&mut Hot> {
        let hot = self.hot.get_mut(id.slot as usize)?;
        (hot.generation == id.generation && hot.state != State::Free).then_some(hot)
    }

    /// Whether the outlet is still open.
    pub fn is_open(&self, id: OutletId) -> bool {
        self.hot
            .get(id.slot as usize)
            .is_some_and(|hot| hot.generation == id.generation && hot.state != State::Free)
    }

    /// Leads the outlet elsewhere from now on; what waits goes the new way.
    pub fn redirect(&mut self, id: OutletId, via: Via) {
        if let Some(hot) = self.live(id) {
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
        if hot.state == State::Ready {
            // The limit counts what was owed before this frame, so that one large message always fits.
            if self.batch.cost(hot.owed) <= self.limit {
                hot.owed = self.batch.append(hot.owed, frame);
                self.dirty.set(slot);
                return Delivery::Sent;
            }
            hot.state = State::Overflowed;
            self.overflowed.push(OutletId { slot, generation: hot.generation });
            return Delivery::Dropped;
        }
        self.push_blocked(slot, frame)
    }

    #[cold]
    fn push_blocked(&mut self, slot: u32, frame: &Frame) -> Delivery {
        let hot = &mut self.hot[slot as usize];
        if hot.state != State::Blocked {
            return Delivery::Dropped;
        }
        let backlog = self.backlogs[slot as usize].get_or_insert_default();
        if backlog.cost() > self.limit {
            hot.state = State::Overflowed;
            self.overflowed.push(OutletId { slot, generation: hot.generation });
            return Delivery::Dropped;
        }
        backlog.push(frame.clone());
        Delivery::Queued
    }

    /// Owes the client a frame whatever its limit says: for pings, pongs and closes, which are few and small.
    pub fn push_control(&mut self, id: OutletId, frame: &Frame) -> Delivery {
        let limit = mem::replace(&mut self.limit, usize::MAX);
        let delivery = self.push(id, frame);
        self.limit = limit;
        delivery
    }

    /// Whether a volatile message would leave: nothing waits, and nothing was said in this turn.
    pub fn is_writable(&self, slot: u32) -> bool {
        self.hot.get(slot as usize).is_some_and(|hot| hot.state == State::Ready && hot.owed == Owed::NOTHING)
    }

    /// What leads to the client.
    pub fn via(&self, slot: u32) -> Via {
        match self.hot[slot as usize].connection {
            NO_CONNECTION => Via::Layer,
            connection => Via::Connection(connection),
        }
    }

    /// What the client is owed in this turn; nothing while it is blocked.
    pub fn owed(&self, slot: u32) -> Owed {
        self.hot.get(slot as usize).map_or(Owed::NOTHING, |hot| hot.owed)
    }

    /// The handle of a slot that is in use.
    pub fn id(&self, slot: u32) -> OutletId {
        OutletId { slot, generation: self.hot[slot as usize].generation }
    }

    /// Bytes that wait for the client.
    pub fn waiting(&self, slot: u32) -> usize {
        let backlog = self.backlogs.get(slot as usize).and_then(Option::as_deref);
        self.batch.bytes(self.owed(slot)) + backlog.map_or(0, Backlog::bytes)
    }

    /// Everything that this turn owed has left.
    #[inline]
    pub fn settle(&mut self, slot: u32) {
        self.hot[slot as usize].owed = Owed::NOTHING;
    }

    /// Only the first `sent` bytes of what this turn owed have left: the rest becomes the backlog, and the
    /// outlet is blocked until [`unblock`](Self::unblock).
    pub fn spill(&mut self, slot: u32, sent: usize) {
        let hot = &mut self.hot[slot as usize];
        let owed = mem::take(&mut hot.owed);
        if hot.state == State::Ready {
            hot.state = State::Blocked;
        }
        let frames = self.batch.frames(owed);
        if frames.is_empty() {
            return;
        }
        let backlog = self.backlogs[slot as usize].get_or_insert_default();
        let before = backlog.bytes();
        for frame in frames {
            backlog.push(frame.clone());
        }
        // A send of this turn's bytes happens only while nothing older waits.
        debug_assert!(before == 0 || sent == 0);
        backlog.consume(sent);
    }

    /// Puts bytes in their final form before all frames that wait, and blocks the outlet: they are sent
    /// before anything else (see [`Backlog::seal`]).
    pub fn seal(&mut self, slot: u32, bytes: &[u8]) {
        self.block(slot);
        self.backlogs[slot as usize].get_or_insert_default().seal(bytes);
    }

    /// Puts what `first` is owed before what waits in `second`, which is blocked afterwards.
    pub fn put_before(&mut self, first: OutletId, second: OutletId) {
        if !self.is_open(first) || !self.is_open(second) {
            return;
        }
        self.block(first.slot);
        self.block(second.slot);
        let Some(mut backlog) = self.backlogs[first.slot as usize].take() else { return };
        if let Some(behind) = self.backlogs[second.slot as usize].take() {
            backlog.append(*behind);
        }
        self.backlogs[second.slot as usize] = Some(backlog);
    }

    /// The client takes nothing for now: what is owed, and what comes, waits in the backlog.
    pub fn block(&mut self, slot: u32) {
        self.spill(slot, 0);
    }

    /// The client takes bytes again. The backlog must be empty, or be sent before anything else.
    pub fn unblock(&mut self, slot: u32) {
        let hot = &mut self.hot[slot as usize];
        if hot.state == State::Blocked {
            hot.state = State::Ready;
        }
        // A socket that was slow once is not worth a box for ever.
        if self.backlogs[slot as usize].as_ref().is_some_and(|backlog| backlog.is_empty()) {
            self.backlogs[slot as usize] = None;
        }
    }

    /// What waits for a blocked client.
    pub fn backlog(&mut self, slot: u32) -> Option<&mut Backlog> {
        self.backlogs.get_mut(slot as usize)?.as_deref_mut()
    }

    /// Moves the outlets that are owed something into `out`, in the order of their slots, which is nearly
    /// the order in which the kernel's sockets were made (sending in random order costs 4 %).
    pub fn take_dirty(&mut self, out: &mut Vec<u32>) {
        self.dirty.take(out);
    }

    /// Whether anything is owed to anybody.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Whether an outlet was owed something since [`take_dirty`](Self::take_dirty).
    pub fn is_dirty_slot(&self, slot: u32) -> bool {
        self.dirty.contains(slot)
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

    fn take(&mut self, out: &mut Vec<u32>) {
        for (i, summary) in self.summary.iter_mut().enumerate() {
            for bit in bits(mem::take(summary)) {
                let word = i * 64 + bit as usize;
                let slots = bits(mem::take(&mut self.words[word]));
                out.extend(slots.map(|bit| word as u32 * 64 + bit));
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Frame {
        Frame::raw(text.to_owned())
    }

    #[test]
    fn a_short_send_keeps_the_rest_in_order() {
        let mut outlets = Outlets::new(1000, 0);
        let id = outlets.open(Via::Connection(0));
        for part in ["abc", "def"] {
            assert_eq!(outlets.push(id, &text(part)), Delivery::Sent);
        }
        outlets.spill(id.slot, 4);
        assert!(!outlets.is_writable(id.slot));
        assert_eq!(outlets.push(id, &text("ghi")), Delivery::Queued);
        let mut out = Vec::new();
        outlets.backlog(id.slot).unwrap().copy_to(&mut out, 100);
        assert_eq!(out, b"efghi");
        assert_eq!(outlets.waiting(id.slot), 5);
    }

    #[test]
    fn the_limit_closes_and_control_frames_are_exempt() {
        let mut outlets = Outlets::new(4, 0);
        let id = outlets.open(Via::Connection(0));
        outlets.block(id.slot);
        assert_eq!(outlets.push(id, &text("12345")), Delivery::Queued);
        assert_eq!(outlets.push_control(id, &text("ping")), Delivery::Queued);
        assert_eq!(outlets.push(id, &text("6")), Delivery::Dropped);
        assert_eq!(outlets.push(id, &text("7")), Delivery::Dropped);
        let mut over = Vec::new();
        outlets.take_overflowed(&mut over);
        assert_eq!(over, [id]);
    }

    #[test]
    fn what_one_outlet_is_owed_goes_before_what_waits_in_another() {
        let mut outlets = Outlets::new(1000, 0);
        let (own, session) = (outlets.open(Via::Connection(0)), outlets.open(Via::Layer));
        for (outlet, part) in [(session, "c"), (own, "ab"), (session, "d")] {
            assert_eq!(outlets.push(outlet, &text(part)), Delivery::Sent);
        }
        outlets.spill(own.slot, 1);
        outlets.put_before(own, session);
        assert_eq!(outlets.push(session, &text("e")), Delivery::Queued);
        let mut out = Vec::new();
        outlets.backlog(session.slot).unwrap().copy_to(&mut out, 100);
        assert_eq!(out, b"bcde");
        assert_eq!(outlets.waiting(session.slot), 4);
    }

    #[test]
    fn a_closed_outlet_takes_nothing_and_its_slot_is_used_again() {
        let mut outlets = Outlets::new(100, 0);
        let old = outlets.open(Via::Layer);
        assert_eq!(outlets.push(old, &text("lost")), Delivery::Sent);
        outlets.close(old);
        let new = outlets.open(Via::Connection(3));
        assert_eq!(old.slot, new.slot);
        assert_eq!(outlets.push(old, &text("late")), Delivery::Dropped);
        assert_eq!(outlets.owed(new.slot), Owed::NOTHING);
        assert_eq!(outlets.via(new.slot), Via::Connection(3));
    }

    #[test]
    fn dirty_slots_come_in_order_and_once() {
        let mut dirty = Dirty::default();
        for slot in [70_000, 5, 64, 5, 4096] {
            dirty.set(slot);
        }
        let mut out = Vec::new();
        dirty.take(&mut out);
        assert_eq!(out, [5, 64, 4096, 70_000]);
        assert!(dirty.is_empty());
    }
}
