//! What one turn takes in: how much it works, and whose input it reads although nothing new has come.
//!
//! Only the turn reads input. A layer that could read on (a request was answered and the next one is here, or
//! the turn had no more time) says so with [`Core::read_again`], and the turn calls [`Service::ready`] for
//! one connection after the other. So no verb ever reads what a client has sent, and no chain of answers
//! nests.
//!
//! [`Service::ready`]: super::Service::ready

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use super::connection::{ConnectionId, Phase};
use super::core::Core;
use super::turn::Scratch;
use crate::limits;

/// The budget of a turn.
///
/// It is one of time, and work that was done tells when to look at the clock: a look costs as much as parsing
/// a short message.
#[derive(Debug)]
pub(super) struct Budget {
    begun: Cell<Instant>,
    time: Cell<Duration>,
    /// Work since the last look at the clock.
    worked: Cell<usize>,
    over: Cell<bool>,
    /// Bytes that this turn has compressed.
    compressed: Cell<usize>,
    /// Whether the whole of this turn's budget was used up.
    spent: Cell<bool>,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            begun: Cell::new(now),
            time: Cell::new(limits::TURN_INTAKE),
            worked: Cell::new(0),
            over: Cell::new(false),
            compressed: Cell::new(0),
            spent: Cell::new(false),
        }
    }

    /// A turn begins, in which some of the time is for what earlier ones have left.
    fn begin(&self, now: Instant) {
        self.begun.set(now);
        self.worked.set(0);
        self.spent.set(false);
        self.compressed.set(0);
        self.allow(limits::TURN_INTAKE_LEFT);
    }

    /// From now on so much of the time may have gone since the turn began.
    fn allow(&self, time: Duration) {
        self.time.set(time);
        self.over.set(false);
        self.look();
    }

    fn look(&self) {
        self.worked.set(0);
        let gone = self.begun.get().elapsed();
        self.over.set(gone >= self.time.get());
        if gone >= limits::TURN_INTAKE {
            self.spent.set(true);
        }
    }

    fn charge(&self, bytes: usize) {
        let worked = self.worked.get().saturating_add(bytes);
        self.worked.set(worked);
        if worked >= limits::WORK_BETWEEN_LOOKS && !self.over.get() {
            self.look();
        }
    }
}

/// The connections whose input is to be read, in order.
#[derive(Debug, Default)]
pub(super) struct Ready {
    queue: VecDeque<ConnectionId>,
    /// Those for which this turn had no time: they do not come again before the next.
    later: VecDeque<ConnectionId>,
    /// A bit for each slot: whether its connection is in the queue.
    queued: Vec<u64>,
}

impl Ready {
    fn push(&mut self, id: ConnectionId, later: bool) {
        let (word, bit) = ((id.slot() / 64) as usize, 1 << (id.slot() % 64));
        if word >= self.queued.len() {
            self.queued.resize(word + 1, 0);
        }
        if self.queued[word] & bit == 0 {
            self.queued[word] |= bit;
            if later { &mut self.later } else { &mut self.queue }.push_back(id);
        }
    }

    /// A turn begins.
    fn begin(&mut self) {
        self.queue.append(&mut self.later);
    }

    /// The next one, whose slot may be another connection's by now.
    fn pop(&mut self, is_current: impl FnOnce(ConnectionId) -> bool) -> Option<ConnectionId> {
        let id = self.queue.pop_front()?;
        if is_current(id) {
            self.forget(id);
        }
        Some(id)
    }

    /// A connection is gone, or out of the queue.
    pub(super) fn forget(&mut self, id: ConnectionId) {
        if let Some(word) = self.queued.get_mut((id.slot() / 64) as usize) {
            *word &= !(1 << (id.slot() % 64));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.later.is_empty()
    }
}

impl Core {
    /// Makes sure that [`Service::ready`](super::Service::ready) runs for a connection: in this turn, if its
    /// budget allows, or in one that follows. For a layer that has input of it which is to be read.
    pub fn read_again(&self, id: ConnectionId) {
        if self.with(id, |_| ()).is_some() {
            self.ready.borrow_mut().push(id, self.is_spent());
            self.bell.ring();
        }
    }

    /// Counts work against the turn's budget, in bytes that were parsed or copied; what takes longer for each
    /// byte counts more. Outside of a turn it counts nothing.
    pub fn charge(&self, bytes: usize) {
        self.budget.charge(bytes);
    }

    /// Whether so many bytes more may be compressed in this turn: all of them together are bounded, by number
    /// and not by time, so that who is answered in which form does not depend on how busy the machine is.
    pub fn may_compress(&self, bytes: usize) -> bool {
        self.budget.compressed.get() + bytes <= limits::COMPRESSED_BYTES
    }

    /// Counts bytes that were compressed against the turn's budget.
    pub fn charge_compression(&self, bytes: usize) {
        self.budget.compressed.set(self.budget.compressed.get() + bytes);
        self.charge(bytes * limits::COMPRESSION_WORK);
    }

    /// Whether the turn has no more time for input: what is still to be read waits for
    /// [`Service::ready`](super::Service::ready).
    pub fn is_spent(&self) -> bool {
        self.budget.over.get()
    }

    /// A turn begins: what earlier ones have left comes first, for a part of the time.
    pub(super) fn begin_intake(&self, now: Instant, scratch: &mut Scratch) -> io::Result<()> {
        self.budget.begin(now);
        self.ready.borrow_mut().begin();
        if !self.ready.borrow().is_empty() {
            self.read_one(scratch)?;
            self.read_ready(scratch)?;
        }
        self.budget.allow(limits::TURN_INTAKE);
        Ok(())
    }

    /// Reads from connections whose input is here, until the turn has no more time.
    pub(super) fn read_ready(&self, scratch: &mut Scratch) -> io::Result<()> {
        while !self.is_spent() && self.read_one(scratch)? {}
        Ok(())
    }

    fn read_one(&self, scratch: &mut Scratch) -> io::Result<bool> {
        let next = self.ready.borrow_mut().pop(|id| self.connection(id).is_some());
        let Some(id) = next else { return Ok(false) };
        let open = self.connection(id).is_some_and(|connection| connection.phase == Phase::Open);
        if let (true, Some(service)) = (open, self.service()) {
            self.charge(limits::MESSAGE_WORK);
            self.step(id, "what a connection has sent before", || service.ready(id));
            self.flush_much(scratch)?;
        }
        Ok(true)
    }

    /// The turn takes in no more; whatever is left rings the bell for the next one.
    pub(super) fn end_intake(&self) {
        if self.budget.spent.get() {
            self.counters.turns_spent.add(1);
        }
        // Nothing that runs outside of turns finds the budget of the last one spent.
        self.budget.over.set(false);
        if !self.ready.borrow().is_empty() {
            self.bell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32, generation: u32) -> ConnectionId {
        ConnectionId::of(slot, generation)
    }

    #[test]
    fn a_connection_is_in_the_list_once_and_in_order() {
        let mut ready = Ready::default();
        for slot in [70, 3, 70, 3, 0] {
            ready.push(id(slot, 1), slot == 0);
        }
        let take = |ready: &mut Ready| -> Vec<u32> {
            std::iter::from_fn(|| ready.pop(|_| true)).map(ConnectionId::slot).collect()
        };
        assert_eq!(take(&mut ready), [70, 3]);
        ready.begin();
        assert_eq!(take(&mut ready), [0], "in the next turn");
        ready.push(id(3, 1), false);
        assert!(!ready.is_empty(), "one that was read may come again");
    }

    #[test]
    fn a_slot_that_is_used_again_is_another_connection() {
        let mut ready = Ready::default();
        ready.push(id(5, 1), false);
        ready.forget(id(5, 1));
        ready.push(id(5, 2), false);
        let current = |known: ConnectionId| known == id(5, 2);
        assert_eq!(ready.pop(current), Some(id(5, 1)), "whoever takes it looks whether it is still there");
        ready.push(id(5, 2), false);
        assert_eq!(ready.pop(current), Some(id(5, 2)));
        assert_eq!(ready.pop(current), None, "it was in the list once");
    }

    #[test]
    fn work_says_when_the_clock_is_looked_at() {
        let budget = Budget::new(Instant::now());
        budget.begin(Instant::now() - limits::TURN_INTAKE);
        assert!(budget.over.get() && budget.spent.get(), "a turn that began long ago");
        budget.begin(Instant::now());
        budget.begun.set(Instant::now() - limits::TURN_INTAKE);
        budget.charge(limits::WORK_BETWEEN_LOOKS - 1);
        assert!(!budget.over.get());
        budget.charge(1);
        assert!(budget.over.get());
    }
}
