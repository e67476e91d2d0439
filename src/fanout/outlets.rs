//! Where the bytes for a subscriber go: one small record for each connection or session of a core.

use std::mem;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::{Backlog, Batch, Frame, Owed};
use crate::protocol::ws::deflate::{Deflater, Settings};

/// What leads from an outlet to its client.
///
/// ```
/// use sockring::fanout::{Outlets, Via};
/// let mut outlets = Outlets::new(1024, 0);
/// let id = outlets.open(Via::Layer);
/// outlets.redirect(id, Via::Connection(3));
/// assert_eq!(outlets.via(id.slot()), Via::Connection(3));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A connection of this core, by its slot: the runtime sends the joined bytes.
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
///
/// ```
/// use sockring::fanout::{Delivery, Frame, Outlets, Via};
/// let mut outlets = Outlets::new(1024, 0);
/// let id = outlets.open(Via::Layer);
/// assert_eq!(outlets.push(id, &Frame::raw("a")), Delivery::Sent);
/// outlets.block(id.slot());
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
    classes: Vec<Shared>,
    /// The compressors of outlets that have one of their own.
    deflaters: HashMap<u32, Deflater, RandomState>,
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
            classes: Vec::new(),
            deflaters: HashMap::default(),
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
        let Some(hot) = self.live(id) else { return };
        hot.generation = hot.generation.wrapping_add(1);
        hot.owed = Owed::NOTHING;
        hot.state = State::Free;
        hot.connection = NO_CONNECTION;
        if mem::take(&mut hot.class) != 0 {
            self.deflaters.remove(&id.slot);
        }
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
        self.push_apart(slot, frame)
    }

    /// For an outlet that is blocked, or has a class, or takes nothing any more.
    #[inline(never)]
    fn push_apart(&mut self, slot: u32, frame: &Frame) -> Delivery {
        let hot = &mut self.hot[slot as usize];
        let backlog = &mut self.backlogs[slot as usize];
        let waiting = match hot.state {
            State::ReadyApart => self.batch.cost(hot.owed),
            State::Blocked => backlog.as_ref().map_or(0, |backlog| backlog.cost()),
            State::Free | State::Ready | State::Overflowed => return Delivery::Dropped,
        };
        let class = self.classes.get_mut(usize::from(hot.class).wrapping_sub(1));
        let (limit, close) = match &class {
            // Of control frames nobody asks how many wait.
            Some(Shared { class, .. }) if self.limit != usize::MAX => {
                (class.max_waiting.unwrap_or(self.limit), class.close_when_over)
            }
            _ => (self.limit, true),
        };
        if waiting > limit {
            if close {
                hot.state = State::Overflowed;
                self.overflowed.push(OutletId { slot, generation: hot.generation });
            }
            return Delivery::Dropped;
        }
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
            backlog.get_or_insert_default().push(frame.clone());
            return Delivery::Queued;
        }
        hot.owed = self.batch.append_apart(hot.class, hot.owed, frame);
        self.dirty.set(slot);
        Delivery::Sent
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
        let limit = mem::replace(&mut self.limit, usize::MAX);
        for frame in backlog.into_iter().flat_map(|backlog| backlog.into_frames()) {
            let _ = self.push_apart(second, &frame);
        }
        self.limit = limit;
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
        self.hot.get(slot as usize).is_some_and(|hot| {
            matches!(hot.state, State::Ready | State::ReadyApart) && hot.owed == Owed::NOTHING
        })
    }

    /// Whether the client takes nothing for now.
    pub fn is_blocked(&self, slot: u32) -> bool {
        self.hot.get(slot as usize).is_some_and(|hot| hot.state == State::Blocked)
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

    /// Forgets what waits for the client, up to what has left in part.
    pub fn discard(&mut self, id: OutletId) {
        let Some(hot) = self.live(id) else { return };
        hot.owed = Owed::NOTHING;
        if let Some(backlog) = self.backlog(id.slot) {
            backlog.discard();
        }
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
        if matches!(hot.state, State::Ready | State::ReadyApart) {
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

    /// Puts what `first` is owed before what waits in `second`, which is blocked afterwards. The class of
    /// `first`, if it has one, goes over as well: its client reads what waits from now on.
    pub fn put_before(&mut self, first: OutletId, second: OutletId) {
        if !self.is_open(first) || !self.is_open(second) {
            return;
        }
        self.block(first.slot);
        self.block(second.slot);
        if self.hot[first.slot as usize].class != 0 {
            self.inherit_class(first.slot, second.slot);
        }
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
            hot.state = hot.ready();
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

    const DEFLATE: Class = Class {
        deflate: Some(Settings { threshold: 20, level: 6, mem_level: 8, window_bits: 15 }),
        deflate_context: false,
        max_waiting: None,
        close_when_over: true,
    };
    const CONTEXT: Class = Class { deflate_context: true, ..DEFLATE };

    fn message(part: &str) -> Frame {
        Frame::message(&[part.repeat(30).as_bytes()], &[])
    }

    /// The messages in a stream of frames to a client.
    fn inflate(mut wire: &[u8], inflater: &mut crate::protocol::ws::deflate::Inflater) -> Vec<String> {
        let mut seen = Vec::new();
        while let [first, len, rest @ ..] = wire {
            let (payload, rest) = rest.split_at(usize::from(*len));
            let text = if first & 0x40 == 0 { payload } else { inflater.message(payload, 1000).unwrap() };
            seen.push(String::from_utf8(text.to_vec()).unwrap());
            wire = rest;
        }
        seen
    }

    #[test]
    fn an_outlet_is_16_bytes() {
        assert_eq!(size_of::<Hot>(), 16);
    }

    #[test]
    fn members_of_a_mixed_room_share_per_form() {
        let mut outlets = Outlets::new(1000, 0);
        let ids: Vec<OutletId> = (0..6).map(|i| outlets.open(Via::Connection(i))).collect();
        for id in ids.iter().skip(1).step_by(2) {
            assert!(outlets.set_class(*id, &DEFLATE));
        }
        for frame in [message("abc"), text("raw"), message("def")] {
            for id in &ids {
                assert_eq!(outlets.push(*id, &frame), Delivery::Sent);
            }
        }
        let owed: Vec<Owed> = ids.iter().map(|id| outlets.owed(id.slot)).collect();
        assert!(owed[0] == owed[2] && owed[2] == owed[4] && owed[0] != owed[1]);
        assert!(owed[1] == owed[3] && owed[3] == owed[5]);
        assert_eq!(outlets.batch.frames(owed[5]).len(), 3);
        let joined = outlets.batch.joined(owed[3]).to_vec();
        assert!(joined.len() < 50 && joined[0] == 0xc1, "{joined:x?}");
        // A backlog holds the compressed form, whenever it was owed.
        outlets.spill(ids[1].slot, 3);
        assert_eq!(outlets.push(ids[1], &message("abc")), Delivery::Queued);
        let mut out = joined[..3].to_vec();
        outlets.backlog(ids[1].slot).unwrap().copy_to(&mut out, 1000);
        assert_eq!(out[..joined.len()], joined);
        assert!(out.len() < joined.len() + 20);
        outlets.close(ids[1]);
        let again = outlets.open(Via::Layer);
        assert_eq!(outlets.push(again, &message("abc")), Delivery::Sent);
        assert_eq!(outlets.batch.joined(outlets.owed(again.slot))[0], 0x81);
    }

    #[test]
    fn messages_build_on_each_other_where_context_is_kept() {
        let mut outlets = Outlets::new(10_000, 0);
        let id = outlets.open(Via::Connection(0));
        assert!(outlets.set_class(id, &CONTEXT));
        for part in ["ab", "ab"] {
            assert_eq!(outlets.push(id, &message(part)), Delivery::Sent);
        }
        outlets.spill(id.slot, 0);
        assert_eq!(outlets.push(id, &message("ab")), Delivery::Queued);
        let mut wire = Vec::new();
        outlets.backlog(id.slot).unwrap().copy_to(&mut wire, 1000);
        let mut inflater = crate::protocol::ws::deflate::Inflater::with_context();
        assert_eq!(inflate(&wire, &mut inflater), vec!["ab".repeat(30); 3]);
        assert!(wire.len() < 30, "{}", wire.len());
    }

    #[test]
    fn a_session_that_moves_to_a_compressing_socket_takes_its_class_over() {
        for class in [DEFLATE, CONTEXT] {
            let mut outlets = Outlets::new(10_000, 0);
            let (own, session) = (outlets.open(Via::Connection(0)), outlets.open(Via::Layer));
            assert!(outlets.set_class(own, &class));
            outlets.block(session.slot);
            assert_eq!(outlets.push(session, &message("queued")), Delivery::Queued);
            assert_eq!(outlets.push(own, &message("probe")), Delivery::Sent);
            outlets.put_before(own, session);
            outlets.close(own);
            outlets.redirect(session, Via::Connection(0));
            assert_eq!(outlets.push(session, &message("later")), Delivery::Queued);
            let mut wire = Vec::new();
            outlets.backlog(session.slot).unwrap().copy_to(&mut wire, 1000);
            let mut inflater = match class.deflate_context {
                true => crate::protocol::ws::deflate::Inflater::with_context(),
                false => crate::protocol::ws::deflate::Inflater::alone(),
            };
            let expected = ["probe", "queued", "later"].map(|part| part.repeat(30));
            assert_eq!(inflate(&wire, &mut inflater), expected);
            outlets.backlog(session.slot).unwrap().consume(wire.len());
            outlets.unblock(session.slot);
            assert_eq!(outlets.push(session, &message("and on")), Delivery::Sent);
            let wire = outlets.batch.joined(outlets.owed(session.slot)).to_vec();
            assert_eq!(inflate(&wire, &mut inflater), ["and on".repeat(30)]);
            assert_eq!(wire[0], 0xc1);
        }
    }

    #[test]
    fn a_limit_of_its_own_closes_or_drops() {
        for close_when_over in [true, false] {
            let mut outlets = Outlets::new(1000, 0);
            let id = outlets.open(Via::Connection(0));
            let class = Class { max_waiting: Some(150), close_when_over, ..Class::default() };
            assert!(outlets.set_class(id, &class));
            assert_eq!(outlets.push(id, &text("1234567890")), Delivery::Sent);
            assert_eq!(outlets.push(id, &text("fits: counted is what waits already")), Delivery::Sent);
            assert_eq!(outlets.push(id, &text("over")), Delivery::Dropped);
            let mut over = Vec::new();
            outlets.take_overflowed(&mut over);
            assert_eq!(over.len(), usize::from(close_when_over));
            if !close_when_over {
                assert_eq!(outlets.push_control(id, &text("pong")), Delivery::Sent);
                outlets.settle(id.slot);
                assert_eq!(outlets.push(id, &text("again")), Delivery::Sent);
            }
        }
    }

    #[test]
    fn there_are_not_more_classes_than_a_byte_can_name() {
        let mut outlets = Outlets::new(1000, 0);
        let id = outlets.open(Via::Layer);
        let set = |outlets: &mut Outlets, bytes| {
            outlets.set_class(id, &Class { max_waiting: Some(bytes), ..Class::default() })
        };
        assert!((0..255).all(|bytes| set(&mut outlets, bytes)));
        assert!(!set(&mut outlets, 255) && set(&mut outlets, 7) && outlets.set_class(id, &Class::default()));
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
