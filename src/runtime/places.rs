//! Places for connections: how many a core has, and those in reserve for clients beyond.
//!
//! A server that is full must say so. Some places are kept in reserve: connections beyond the capacity are
//! accepted there, the layer above answers their first request (503, or what watches the server), and they
//! are closed. One that asks for nothing is let go as soon as others want its place.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use super::connection::{ConnectionId, Ended, Phase};
use super::core::Core;
use crate::limits;
use crate::time::Millis;

/// The places of one core.
#[derive(Debug)]
pub(super) struct Places {
    /// Connections that are served.
    pub(super) capacity: usize,
    /// Connections beyond these that are told so.
    pub(super) reserve: usize,
    /// Connections in reserve, in the order in which they came, and since when.
    beyond: RefCell<VecDeque<(ConnectionId, Millis)>>,
    /// Whether it was said that all places are taken.
    full: Cell<bool>,
}

impl Places {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            reserve: limits::PLACES_RESERVED,
            beyond: RefCell::default(),
            full: Cell::new(false),
        }
    }

    /// Places in the tables of a core.
    pub(super) fn all(&self) -> usize {
        self.capacity + self.reserve
    }
}

impl Core {
    /// Whether all places of this core are taken, so that new connections come into the reserve.
    pub fn is_full(&self) -> bool {
        self.places_taken() >= self.places.capacity
    }

    /// Whether a connection was accepted beyond the capacity. The layer above answers its first request,
    /// with 503 unless it is about the state of the server, and closes it.
    pub fn is_in_reserve(&self, id: ConnectionId) -> bool {
        self.places.beyond.borrow().iter().any(|(one, _)| *one == id)
    }

    /// How many more connections may be accepted: while memory is short only those that are told so.
    pub(super) fn free_places(&self) -> usize {
        let (taken, in_reserve) = (self.places_taken(), self.in_reserve());
        let free = self.places.all().saturating_sub(taken + in_reserve);
        match self.is_short_of_memory() {
            true => free.min(self.places.reserve.saturating_sub(in_reserve)),
            false => free,
        }
    }

    /// How many connections are in reserve.
    pub(super) fn in_reserve(&self) -> usize {
        let mut beyond = self.places.beyond.borrow_mut();
        if !beyond.is_empty() {
            beyond.retain(|(id, _)| self.connection(*id).is_some());
        }
        beyond.len()
    }

    /// Connections that are served here or on their way here.
    pub(super) fn places_taken(&self) -> usize {
        let here = self.connections().saturating_sub(self.in_reserve());
        here + self.shared.admission.coming(self.index)
    }

    /// A connection was accepted: if there is no place for it, it is one in reserve. `full`: whether all
    /// places were taken before it came, or memory is short.
    pub(super) fn give_place(&self, id: ConnectionId, full: bool) {
        if full {
            self.counters.beyond_capacity.add(1);
            self.places.beyond.borrow_mut().push_back((id, self.now()));
        }
    }

    /// Gives connections in reserve the places that have become free. Says once that all are taken, and once
    /// that some are free again: not until a sixteenth of them is, or a server at its limit would say so
    /// with every client.
    pub(super) fn look_at_places(&self) {
        while self.in_reserve() > 0 && !self.is_full() && !self.is_short_of_memory() {
            self.places.beyond.borrow_mut().pop_front();
        }
        let (taken, capacity) = (self.places_taken(), self.places.capacity);
        if taken >= capacity {
            if !self.places.full.replace(true) {
                tracing::warn!(
                    "core {}: all {capacity} places for connections are taken, further clients get 503: \
                     more need `connections` or a higher limit of descriptors",
                    self.index
                );
            }
        } else if taken <= capacity - (capacity / 16).max(1) && self.places.full.replace(false) {
            tracing::warn!("core {}: there are free places for connections again", self.index);
        }
    }

    /// When the reserve is full as well, those in it make room for others: all that have had their answer, or
    /// else the one that has been silent for longest.
    pub(super) fn clear_reserve(&self, now: Millis) {
        if self.in_reserve() < self.places.reserve {
            return;
        }
        let patience = limits::RESERVE_PATIENCE.as_millis() as Millis;
        let answered = |id: ConnectionId| {
            let phase = self.connection(id).map(|connection| connection.phase);
            matches!(phase, Some(Phase::Lingering { .. }))
        };
        let mut over: Vec<ConnectionId> = {
            let beyond = self.places.beyond.borrow();
            beyond.iter().map(|(id, _)| *id).filter(|id| answered(*id)).collect()
        };
        if over.is_empty() {
            let oldest = self.places.beyond.borrow().front().copied();
            over.extend(oldest.filter(|(_, since)| now.saturating_sub(*since) >= patience).map(|(id, _)| id));
        }
        for id in over {
            self.step(id, "the end of a connection", || self.end(id, Ended::Reset));
        }
    }
}
