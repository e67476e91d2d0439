//! Bookkeeping of broadcasts and deliveries.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{Outcome, fail, report};

/// Broadcasts of one run: a bound for the two arrays that follow them.
const BROADCASTS_MAX: usize = 10_000_000;
/// How far back a late delivery is told from a repeated one.
const WINDOW: u32 = u64::BITS;

/// What a group of readers got.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Tally {
    /// Deliveries that were counted once.
    pub(crate) delivered: u64,
    /// Deliveries that did not come (filled in when asked for).
    pub(crate) lost: u64,
    /// Deliveries that had come before.
    pub(crate) duplicate: u64,
    /// Deliveries that came after a later one of the same publisher.
    pub(crate) out_of_order: u64,
    /// Engine.IO pings that were answered.
    pub(crate) heartbeats: u64,
    /// Connections that ended after they had been in.
    pub(crate) closed: u64,
}

impl Tally {
    /// Adds another group's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.duplicate += other.duplicate;
        self.out_of_order += other.out_of_order;
        self.heartbeats += other.heartbeats;
        self.closed += other.closed;
    }

    /// Whether every broadcast reached every reader once and in order.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicate == 0 && self.out_of_order == 0 && self.closed == 0
    }
}

/// One reader's place in the sequence: 16 bytes.
#[derive(Default)]
pub(crate) struct Follower {
    /// Bit i: the delivery `next - 1 - i` came.
    seen: u64,
    /// One more than the highest sequence number that came.
    next: u32,
    /// Different ones that came.
    received: u32,
}

impl Follower {
    /// Different deliveries so far.
    pub(crate) fn received(&self) -> u32 {
        self.received
    }

    /// One more than the highest sequence number so far.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// Takes a delivery; true unless it came before. One that is late by more than the window counts as repeated.
    pub(crate) fn follow(&mut self, sequence: u32, tally: &mut Tally) -> bool {
        if sequence >= self.next {
            let ahead = sequence - self.next + 1;
            self.seen = if ahead < WINDOW { self.seen << ahead | 1 } else { 1 };
            self.next = sequence + 1;
        } else {
            let behind = self.next - 1 - sequence;
            if behind >= WINDOW || self.seen >> behind & 1 == 1 {
                tally.duplicate += 1;
                return false;
            }
            self.seen |= 1 << behind;
            tally.out_of_order += 1;
        }
        self.received += 1;
        tally.delivered += 1;
        true
    }
}

/// All broadcasts of a run: when each was sent, and how many readers have it.
pub(crate) struct Broadcasts {
    readers: u32,
    sent_us: Vec<u64>,
    delivered: Vec<u32>,
    completed: u32,
    completion_us: Histogram<u64>,
    /// When each was complete; 0 before.
    completed_at_us: Vec<u64>,
}

impl Broadcasts {
    /// No broadcast yet; one is complete when it came `readers` times.
    pub(crate) fn new(readers: u32) -> Outcome<Self> {
        Ok(Self {
            readers,
            sent_us: Vec::new(),
            delivered: Vec::new(),
            completed: 0,
            completion_us: report::microseconds()?,
            completed_at_us: Vec::new(),
        })
    }

    /// Broadcasts so far.
    pub(crate) fn published(&self) -> u32 {
        self.sent_us.len() as u32
    }

    /// Broadcasts that all readers have.
    pub(crate) fn completed(&self) -> u32 {
        self.completed
    }

    /// Microseconds from publish to the last reader.
    pub(crate) fn completion_us(&self) -> &Histogram<u64> {
        &self.completion_us
    }

    /// Forgets the completion times so far.
    pub(crate) fn reset_latencies(&mut self) {
        self.completion_us.reset();
    }

    /// The next broadcast's number.
    pub(crate) fn begin(&mut self, sent_us: u64) -> Outcome<u32> {
        if self.sent_us.len() >= BROADCASTS_MAX {
            return fail(format!("more than {BROADCASTS_MAX} broadcasts in one run"));
        }
        self.push(sent_us);
        Ok(self.sent_us.len() as u32 - 1)
    }

    fn push(&mut self, sent_us: u64) {
        self.sent_us.push(sent_us);
        self.delivered.push(0);
        self.completed_at_us.push(0);
    }

    /// Takes the number of a broadcast that another swarm published. Numbers before it count as published, too.
    pub(crate) fn learn(&mut self, sequence: u32, sent_us: u64) {
        while self.sent_us.len() <= sequence as usize && self.sent_us.len() < BROADCASTS_MAX {
            self.push(sent_us);
        }
    }

    /// When each broadcast was sent and when the last reader had it, 0 if one has it not.
    pub(crate) fn times_us(&self) -> impl Iterator<Item = (u64, u64)> {
        self.sent_us.iter().copied().zip(self.completed_at_us.iter().copied())
    }

    /// A reader got one. Numbers that were never published are a broken payload; the reader's count shows them.
    pub(crate) fn delivered(&mut self, sequence: u32, now_us: u64) {
        let Some(count) = self.delivered.get_mut(sequence as usize) else { return };
        *count += 1;
        if *count == self.readers {
            self.completed += 1;
            let sent_us = self.sent_us[sequence as usize];
            self.completion_us.saturating_record(now_us.saturating_sub(sent_us));
            self.completed_at_us[sequence as usize] = now_us;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(sequence: &[u32]) -> Tally {
        let mut tally = Tally::default();
        let mut follower = Follower::default();
        for &number in sequence {
            follower.follow(number, &mut tally);
        }
        assert_eq!(u64::from(follower.received()), tally.delivered);
        tally
    }

    #[test]
    fn in_order_is_clean() {
        let tally = follow(&(0..1000).collect::<Vec<_>>());
        assert!(tally.is_clean());
        assert_eq!(tally.delivered, 1000);
    }

    #[test]
    fn late_is_not_repeated() {
        let tally = follow(&[0, 2, 1, 3, 3, 1, 200, 199, 5]);
        assert_eq!((tally.delivered, tally.out_of_order, tally.duplicate), (6, 2, 3));
    }

    #[test]
    fn a_broadcast_completes_once() {
        let mut broadcasts = Broadcasts::new(2).unwrap();
        let first = broadcasts.begin(10).unwrap();
        broadcasts.delivered(first, 20);
        assert_eq!(broadcasts.completed(), 0);
        broadcasts.delivered(first, 30);
        broadcasts.delivered(7, 30);
        assert_eq!((broadcasts.published(), broadcasts.completed()), (1, 1));
        assert_eq!(broadcasts.completion_us().max(), 20);
    }
}
