//! Clients for which much waits: whether to read from them, how long they may be over their limit, and how
//! what is large leaves.

use std::time::Duration;

use super::super::{Backlog, Backpressure, Delivery, Frame};
use super::{NO_CONNECTION, OutletId, Outlets, State};
use crate::limits;

/// A client over its limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Overdraft {
    generation: u32,
    /// What it had taken of its backlog.
    taken: u64,
    /// Since when, in ticks.
    since: u32,
}

impl Outlets {
    /// Puts what an outlet of a connection is owed, and will be until all that has left, into its backlog,
    /// although its client may take it.
    pub(super) fn gather(&mut self, slot: u32) {
        if self.hot[slot as usize].connection != NO_CONNECTION {
            self.spill_slot(slot, 0);
            self.gathered.push(self.id(slot));
        }
    }

    /// Owes the client a large frame, which leaves in pieces as the client takes it: nothing is joined to it.
    ///
    /// ```
    /// use sockring::fanout::{Delivery, Frame, Outlets, Via};
    /// let mut outlets = Outlets::new(1024, 0);
    /// let id = outlets.open(Via::Connection(0));
    /// assert_eq!(outlets.push_large(id, &Frame::raw("very long")), Delivery::Queued);
    /// let mut writable = Vec::new();
    /// outlets.take_gathered(&mut writable);
    /// assert_eq!((writable, outlets.waiting(id)), (vec![id], 9));
    /// ```
    pub fn push_large(&mut self, id: OutletId, frame: &Frame) -> Delivery {
        if self.hot(id).is_some_and(|hot| matches!(hot.state, State::Ready | State::ReadyApart)) {
            self.gather(id.slot);
        }
        self.push(id, frame)
    }

    /// Whether a client may go beyond the limit of all for a while: others may send to it faster than it
    /// takes what they send, and one that polls takes nothing between two polls. When the time is over it
    /// must have taken some.
    pub(super) fn may_overdraw(&mut self, slot: u32, frame: &Frame) -> bool {
        let hot = &self.hot[slot as usize];
        let (class, generation) = (usize::from(hot.class).wrapping_sub(1), hot.generation);
        let now = Overdraft { generation, taken: self.taken(self.id(slot)), since: self.ticks };
        let own = self.classes.get(class).is_some_and(|shared| shared.class.max_waiting.is_some());
        let bounds = Backpressure { max_bytes: self.limit * limits::OVERDRAFT, ..Backpressure::default() };
        if own || self.short || frame.backpressure().is_some() || !self.fits(slot, &bounds) {
            return false;
        }
        let known = self.overdrawn.entry(slot).or_insert(now);
        if (known.generation, known.taken) != (generation, now.taken) {
            *known = now;
        }
        self.ticks.wrapping_sub(known.since) <= limits::OVERDRAFT_TICKS
    }

    /// Some [`limits::TICK`] has passed: a client that is over its limit has so much time less to take some.
    /// Once a second, clients that have taken nothing of what waits for them for the time of `stall` go over
    /// their limit, whatever it is. `short`: the process is short of memory. An eighth of each limit counts
    /// then, and a client that is over it and takes nothing for a second is closed.
    pub fn tick(&mut self, stall: Duration, short: bool) {
        self.ticks = self.ticks.wrapping_add(1);
        self.short = short;
        if self.ticks.is_multiple_of(limits::STALL_TICKS) {
            self.overflow_stalled(stall);
        }
    }

    fn overflow_stalled(&mut self, stall: Duration) {
        let ticks =
            |time: Duration| u32::try_from(time.as_millis() / limits::TICK.as_millis()).unwrap_or(u32::MAX);
        for slot in 0..self.hot.len() as u32 {
            if self.hot[slot as usize].state != State::Blocked {
                continue;
            }
            let (limit, now) = (self.limit_of(slot), self.ticks);
            let Some(backlog) = self.backlogs[slot as usize].as_deref_mut() else { continue };
            let patience = match self.short && backlog.cost() > limit {
                true => limits::STALL_TICKS,
                false => ticks(stall),
            };
            if backlog.has_stalled(now, patience) {
                self.overflow(slot);
            }
        }
    }

    /// Whether so much waits for the client, together with what waits for it `elsewhere`, that no more should
    /// be asked of its server: more than half of what may wait before the client is closed. Not where
    /// messages are dropped instead.
    ///
    /// ```
    /// use sockring::fanout::{Frame, Outlets, Via};
    /// let mut outlets = Outlets::new(1024, 0);
    /// let id = outlets.open(Via::Connection(0));
    /// assert!(!outlets.is_pressed(id, 512) && outlets.is_pressed(id, 513));
    /// let _ = outlets.push(id, &Frame::raw(vec![0; 512]));
    /// assert!(outlets.is_pressed(id, 0), "the record of a frame counts as well");
    /// ```
    pub fn is_pressed(&self, id: OutletId, elsewhere: usize) -> bool {
        let Some(hot) = self.hot(id) else { return false };
        let class = self.classes.get(usize::from(hot.class).wrapping_sub(1));
        let backlog = self.backlogs[id.slot as usize].as_deref().map_or(0, Backlog::cost);
        let closes = class.is_none_or(|shared| shared.class.close_when_over);
        closes && self.batch.cost(hot.owed) + backlog + elsewhere > self.limit_of(id.slot) / 2
    }

    /// Bytes that the client has taken since something waits for it; 0 if nothing does.
    pub fn taken(&self, id: OutletId) -> u64 {
        let backlog = self.hot(id).and_then(|_| self.backlogs[id.slot as usize].as_deref());
        backlog.map_or(0, Backlog::taken)
    }
}
