//! What was emitted on a core lately, in the order in which its sockets were owed it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use smallvec::SmallVec;

use super::Offset;
use crate::fanout::{Frame, Moment};
use crate::time::Millis;

/// To whom a packet went: members of any of the rooms (all sockets, if there is none), and of none of the
/// excepted ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::io) struct Audience {
    pub(in crate::io) rooms: SmallVec<[Box<str>; 1]>,
    pub(in crate::io) except: SmallVec<[Box<str>; 1]>,
}

impl Audience {
    /// Whether a socket in these rooms is one of them. `member` says whether it is in a room.
    fn includes(&self, member: impl Fn(&str) -> bool) -> bool {
        (self.rooms.is_empty() || self.rooms.iter().any(|room| member(room)))
            && !self.except.iter().any(|room| member(room))
    }
}

/// A packet that was emitted to sockets of this core.
#[derive(Debug)]
pub(in crate::io) struct Emitted {
    pub(in crate::io) offset: Offset,
    pub(in crate::io) audience: Audience,
    pub(in crate::io) frame: Frame,
    /// When its cores were looked up.
    pub(in crate::io) moment: Moment,
    /// When it came to this core.
    pub(in crate::io) at: Millis,
}

/// What all namespaces of one core keep together: clients may bring many into being.
#[derive(Debug, Default)]
pub(in crate::io) struct Usage {
    bytes: Cell<usize>,
    /// Offsets of forgotten packets.
    offsets: Cell<usize>,
    pub(super) parked: Cell<usize>,
    pub(super) parked_bytes: Cell<usize>,
}

impl Usage {
    /// How many sessions wait for their clients.
    pub(in crate::io) fn parked(&self) -> usize {
        self.parked.get()
    }

    /// What is kept of them.
    pub(in crate::io) fn parked_bytes(&self) -> usize {
        self.parked_bytes.get()
    }
}

/// What packets take that a session has brought along, as long as it has them.
#[derive(Debug)]
pub(super) struct Counted {
    usage: Rc<Usage>,
    bytes: usize,
}

impl Counted {
    pub(super) fn new(usage: &Rc<Usage>, bytes: usize) -> Self {
        usage.bytes.set(usage.bytes.get() + bytes);
        Self { usage: usage.clone(), bytes }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.usage.bytes.set(self.usage.bytes.get() - self.bytes);
    }
}

/// How much a log keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Older packets are forgotten.
    pub(super) age: Millis,
    /// Of this log.
    pub(super) packets: usize,
    /// Of all logs of the core, and of what sessions have brought along. The log that grows beyond gives its
    /// oldest packets up.
    pub(super) bytes: usize,
}

/// Offsets of forgotten packets that are still known. What was forgotten for its age every client has
/// received that may come back, so a client whose last packet is an old one has missed nothing before the
/// log's beginning. They cost some 40 bytes each.
const OFFSETS_KEPT: usize = 65_536;

/// Beyond so many in all namespaces of a core, one keeps [`OFFSETS_KEPT_AT_LEAST`] of its own only, from its
/// next packet on: there may be ten thousand namespaces.
const OFFSETS_OF_A_CORE: usize = 1 << 20;
/// See [`OFFSETS_OF_A_CORE`].
const OFFSETS_KEPT_AT_LEAST: usize = 256;

/// What each entry costs beside its frame's bytes and the names of the rooms.
const ENTRY_BYTES: usize = 160;

/// What a room's name costs beside its bytes.
const NAME_BYTES: usize = 32;

/// The memory of a packet.
pub(super) fn cost(frame: &Frame) -> usize {
    frame.wire().len() + ENTRY_BYTES
}

impl Emitted {
    fn cost(&self) -> usize {
        let Audience { rooms, except } = &self.audience;
        // The first of each has its place in the entry.
        let names = rooms.iter().chain(except).map(|name| name.len() + NAME_BYTES).sum::<usize>();
        cost(&self.frame) + names
    }
}

/// The packets of one namespace on one core. Entries have consecutive numbers, their *places*.
#[derive(Debug)]
pub(super) struct Log {
    bounds: Bounds,
    usage: Rc<Usage>,
    entries: VecDeque<Emitted>,
    /// Of the usage, this log's own part.
    bytes: usize,
    /// The place of the first entry.
    first: u64,
    /// Entries before this place were dropped for want of room.
    whole_from: u64,
    places: HashMap<Offset, u64, RandomState>,
    /// Offsets of entries that were forgotten for their age, oldest first; the last is at `first - 1`.
    forgotten: VecDeque<Offset>,
}

impl Log {
    pub(super) fn new(bounds: Bounds, usage: Rc<Usage>) -> Self {
        let (entries, places, forgotten) = Default::default();
        Self { bounds, usage, entries, bytes: 0, first: 0, whole_from: 0, places, forgotten }
    }

    pub(super) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// The place of the next entry.
    pub(super) fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Whether nothing from this place on was dropped for want of room.
    pub(super) fn is_whole(&self, from: u64) -> bool {
        self.whole_from <= from
    }

    /// Where a packet stands, or stood before it became too old. Nothing after it was dropped for want of
    /// room.
    pub(super) fn place(&self, offset: Offset) -> Option<u64> {
        self.places.get(&offset).copied()
    }

    /// The offset of the last packet. Where there was none, one that stands for the beginning.
    pub(super) fn last_offset(&mut self) -> Option<Offset> {
        let last = self.entries.back().map(|entry| entry.offset).or(self.forgotten.back().copied());
        last.or_else(|| {
            // As if a packet of this name had been forgotten for its age.
            let beginning = Offset::next()?;
            self.places.insert(beginning, self.first);
            self.forgotten.push_back(beginning);
            self.usage.offsets.set(self.usage.offsets.get() + 1);
            self.first += 1;
            Some(beginning)
        })
    }

    /// The last packet, if it is there still.
    pub(super) fn last_packet(&self) -> Option<&Frame> {
        self.entries.back().map(|entry| &entry.frame)
    }

    pub(super) fn push(&mut self, packet: Emitted) {
        let now = packet.at;
        self.account(self.bytes + packet.cost());
        self.places.insert(packet.offset, self.end());
        self.entries.push_back(packet);
        self.prune(now);
        while self.usage.bytes.get() > self.bounds.bytes || self.entries.len() > self.bounds.packets {
            if !self.give_up() {
                break;
            }
        }
    }

    /// Gives old packets up until there is room for so many bytes beside the log; `false` if there is none
    /// even then.
    pub(super) fn make_room(&mut self, bytes: usize) -> bool {
        loop {
            if self.usage.bytes.get().saturating_add(bytes) <= self.bounds.bytes {
                return true;
            }
            if !self.give_up() {
                return false;
            }
        }
    }

    /// Gives the oldest packet up. Somebody may have missed it: whose last packet is an earlier one cannot
    /// come back.
    fn give_up(&mut self) -> bool {
        self.keep_offsets(0);
        let Some(offset) = self.pop() else { return false };
        self.places.remove(&offset);
        self.whole_from = self.first;
        true
    }

    /// Forgets what is too old.
    pub(super) fn prune(&mut self, now: Millis) {
        while self.entries.front().is_some_and(|entry| entry.at.saturating_add(self.bounds.age) < now) {
            let Some(offset) = self.pop() else { break };
            self.forgotten.push_back(offset);
            self.usage.offsets.set(self.usage.offsets.get() + 1);
            let crowded = self.usage.offsets.get() > OFFSETS_OF_A_CORE;
            self.keep_offsets(if crowded { OFFSETS_KEPT_AT_LEAST } else { OFFSETS_KEPT });
        }
    }

    /// Knows the last of the forgotten packets only.
    fn keep_offsets(&mut self, most: usize) {
        let gone = self.forgotten.len().saturating_sub(most);
        for offset in self.forgotten.drain(..gone) {
            self.places.remove(&offset);
        }
        self.usage.offsets.set(self.usage.offsets.get() - gone);
    }

    fn pop(&mut self) -> Option<Offset> {
        let entry = self.entries.pop_front()?;
        self.account(self.bytes - entry.cost());
        self.first += 1;
        Some(entry.offset)
    }

    fn account(&mut self, bytes: usize) {
        self.usage.bytes.set(self.usage.bytes.get() + bytes - self.bytes);
        self.bytes = bytes;
    }

    /// What went to a socket in these rooms, from a place on, of that which was emitted between two moments.
    pub(super) fn since<'a>(
        &'a self,
        place: u64,
        moments: Range<Moment>,
        member: impl Fn(&str) -> bool + 'a,
    ) -> impl Iterator<Item = (Offset, &'a Frame)> {
        let skipped = usize::try_from(place.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let entries = self.entries.range(skipped.min(self.entries.len())..);
        let missed =
            move |entry: &&Emitted| moments.contains(&entry.moment) && entry.audience.includes(&member);
        entries.filter(missed).map(|entry| (entry.offset, &entry.frame))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.account(0);
        self.keep_offsets(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fanout::Directory;

    const BOUNDS: Bounds = Bounds { age: 1000, packets: 10, bytes: 1 << 20 };

    fn audience(rooms: &[&str], except: &[&str]) -> Audience {
        let names = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
        Audience { rooms: names(rooms), except: names(except) }
    }

    fn push(log: &mut Log, now: Millis, offset: u64, audience: Audience) {
        let frame = Frame::message(&[b"4x"], &[]);
        log.push(Emitted { offset: Offset(offset), audience, frame, moment: Moment::default(), at: now });
    }

    fn since(log: &Log, place: u64, rooms: &[&str]) -> Vec<u64> {
        let member = |room: &str| rooms.contains(&room);
        log.since(place, Moment::default()..Moment::LAST, member).map(|(offset, _)| offset.0).collect()
    }

    #[test]
    fn a_session_gets_what_went_to_its_rooms() {
        let mut log = Log::new(BOUNDS, Rc::default());
        push(&mut log, 0, 1, audience(&[], &[]));
        push(&mut log, 0, 2, audience(&["a", "b"], &[]));
        push(&mut log, 0, 3, audience(&["c"], &[]));
        push(&mut log, 0, 4, audience(&[], &["a"]));
        push(&mut log, 0, 5, audience(&["b"], &["c"]));
        assert_eq!(since(&log, 0, &["a", "b"]), [1, 2, 5]);
        assert_eq!(since(&log, 2, &["c"]), [3, 4]);
        assert_eq!(since(&log, 9, &["c"]), [0; 0]);
    }

    #[test]
    fn what_was_meant_for_others_before_is_left_out() {
        let directory = Directory::default();
        let mut log = Log::new(BOUNDS, Rc::default());
        let old = directory.now();
        let key = crate::fanout::RoomKey { space: 0, room: "a" };
        let moved = directory.enter(key, 0);
        let frame = Frame::message(&[b"4x"], &[]);
        for (offset, moment) in [(1, moved), (2, old)] {
            let (audience, frame) = (Audience::default(), frame.clone());
            log.push(Emitted { offset: Offset(offset), audience, frame, moment, at: 0 });
        }
        let between =
            |moments| log.since(0, moments, |_| true).map(|(offset, _)| offset.0).collect::<Vec<_>>();
        assert_eq!(between(moved..Moment::LAST), [1], "the second was on its way since before");
        assert_eq!(between(Moment::default()..moved), [2]);
    }

    #[test]
    fn what_is_old_is_forgotten_but_known() {
        let mut log = Log::new(BOUNDS, Rc::default());
        push(&mut log, 0, 1, audience(&[], &[]));
        push(&mut log, 900, 2, audience(&[], &[]));
        log.prune(1001);
        assert_eq!(log.place(Offset(1)), Some(0));
        assert!(log.is_whole(0));
        assert_eq!(since(&log, 1, &[]), [2]);
    }

    #[test]
    fn what_had_no_room_is_not_known() {
        let mut log = Log::new(BOUNDS, Rc::default());
        push(&mut log, 0, 1, audience(&[], &[]));
        log.prune(2000);
        for offset in 2..=12 {
            push(&mut log, 2000, offset, audience(&[], &[]));
        }
        assert_eq!(log.place(Offset(1)), None, "2 is missing behind it");
        assert_eq!(log.place(Offset(2)), None);
        assert_eq!(log.place(Offset(3)), Some(2));
        assert!(!log.is_whole(1) && log.is_whole(2));
        assert_eq!(log.end(), 12);
    }

    #[test]
    fn many_logs_have_one_bound() {
        let usage = Rc::new(Usage::default());
        let bounds = Bounds { bytes: 5 * (ENTRY_BYTES + 10), packets: usize::MAX, ..BOUNDS };
        let mut logs = [(); 3].map(|()| Log::new(bounds, usage.clone()));
        for offset in 0..30 {
            push(&mut logs[offset as usize % 2], 0, offset, audience(&[], &[]));
        }
        let kept: usize = logs.iter().map(|log| log.entries.len()).sum();
        assert!((1..=5).contains(&kept) && usage.bytes.get() <= bounds.bytes, "{kept} are kept");
        push(&mut logs[2], 0, 30, audience(&[], &[]));
        assert!(usage.bytes.get() <= bounds.bytes);
        drop(logs);
        assert_eq!(usage.bytes.get(), 0);
    }

    #[test]
    fn offsets_of_old_packets_are_bounded() {
        let mut log = Log::new(Bounds { packets: usize::MAX, ..BOUNDS }, Rc::default());
        for offset in 0..OFFSETS_KEPT as u64 + 10 {
            push(&mut log, 0, offset, audience(&[], &[]));
            log.prune(5000);
        }
        assert_eq!(log.place(Offset(9)), None);
        assert_eq!(log.place(Offset(10)), Some(10));
        assert_eq!(log.places.len(), OFFSETS_KEPT);
    }

    #[test]
    fn offsets_of_all_logs_together_are_bounded() {
        let usage = Rc::new(Usage::default());
        let bounds = Bounds { packets: usize::MAX, ..BOUNDS };
        let mut logs = [(); 2].map(|()| Log::new(bounds, usage.clone()));
        let forget = |log: &mut Log, offsets: Range<u64>| {
            for offset in offsets {
                push(log, 0, offset, audience(&[], &[]));
            }
            log.prune(5000);
        };
        forget(&mut logs[0], 0..1000);
        assert_eq!(logs[0].places.len(), 1000);
        // As if other namespaces had so many.
        usage.offsets.set(usage.offsets.get() + OFFSETS_OF_A_CORE);
        forget(&mut logs[1], 0..1000);
        forget(&mut logs[0], 1000..1001);
        assert_eq!(logs.each_ref().map(|log| log.places.len()), [OFFSETS_KEPT_AT_LEAST; 2]);
        assert_eq!(logs[0].place(Offset(1000)), Some(1000));
        drop(logs);
        assert_eq!(usage.offsets.get(), OFFSETS_OF_A_CORE);
    }

    #[test]
    fn the_names_of_rooms_count() {
        let bounds = Bounds { bytes: 10_000, ..BOUNDS };
        let mut log = Log::new(bounds, Rc::default());
        let names: Vec<String> = (0..100).map(|n| format!("a room with quite a name, {n:030}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for offset in 0..5 {
            push(&mut log, 0, offset, audience(&names, &names[..10]));
        }
        assert_eq!(log.entries.len(), 1, "each has nearly 10,000 bytes of names");
        assert!(log.pop().is_some());
        assert_eq!(log.bytes, 0);
    }

    proptest! {
        #[test]
        fn bounds_hold(sizes in prop::collection::vec((0..3000usize, 0..400u64), 0..60)) {
            let bounds = Bounds { age: 1000, packets: 10, bytes: 8000 };
            let mut log = Log::new(bounds, Rc::default());
            let mut now = 0;
            for (offset, (size, pause)) in sizes.into_iter().enumerate() {
                now += pause;
                let frame = Frame::message(&[&vec![b'x'; size]], &[]);
                let (audience, moment) = Default::default();
                log.push(Emitted { offset: Offset(offset as u64), audience, frame, moment, at: now });
                let size = |entry: &Emitted| entry.frame.wire().len() + ENTRY_BYTES;
                let bytes: usize = log.entries.iter().map(size).sum();
                prop_assert_eq!(bytes, log.bytes);
                prop_assert!(bytes <= bounds.bytes && log.entries.len() <= bounds.packets);
                prop_assert!(log.entries.iter().all(|entry| entry.at + bounds.age >= now));
                for known in 0..=offset as u64 {
                    let Some(place) = log.place(Offset(known)) else { continue };
                    prop_assert_eq!(place, known);
                    prop_assert!(log.is_whole(place + 1));
                }
            }
        }
    }
}
