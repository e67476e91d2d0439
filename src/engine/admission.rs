//! How many sessions there may be, and how many of them have done nothing since their handshake.
//!
//! The session of a WebSocket lives no longer than its connection, and connections have a limit of their own.
//! A polling handshake costs its client one request, and leaves a session that needs no connection.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::server::{Inner, Link};
use super::{CloseReason, Socket, Transport};
use crate::app::Request;
use crate::limits;
use crate::runtime::{Sample, Value};
use crate::time::Millis;

/// What the sessions of all cores count for.
pub(super) struct Places {
    /// All of them, by their cores.
    all: [AtomicUsize; limits::WORKERS_MAX],
    /// Those that have done nothing since their handshake.
    fresh: [AtomicUsize; limits::WORKERS_MAX],
}

impl Default for Places {
    fn default() -> Self {
        let none = || std::array::from_fn(|_| AtomicUsize::new(0));
        Self { all: none(), fresh: none() }
    }
}

fn sum(counts: &[AtomicUsize]) -> usize {
    counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
}

/// The part of one core.
pub(super) struct Admission {
    places: Arc<Places>,
    /// Sessions that had done nothing when they were put here, with the times at which they opened.
    fresh: RefCell<VecDeque<(Socket, Millis)>>,
    refused: Cell<u64>,
    given_up: Cell<u64>,
    /// Whether the last handshake found a place.
    room: Cell<bool>,
}

impl Admission {
    pub(super) fn new(places: Arc<Places>) -> Self {
        let (refused, given_up) = (Cell::default(), Cell::default());
        Self { places, fresh: RefCell::default(), refused, given_up, room: Cell::new(true) }
    }
}

/// Sessions that may have done nothing, of so many.
fn share(max: usize) -> usize {
    (max / limits::FRESH_SHARE).max(1)
}

/// What a session counts for that keeps this request.
pub(super) fn weight(request: &Request) -> u8 {
    u8::try_from(request.own_bytes() / limits::SESSION_HEAD_BYTES).unwrap_or(u8::MAX).max(1)
}

/// When a client may try again that found no place, in seconds: within it, some that do nothing give way.
pub(super) const RETRY_AFTER: (&str, &str) = ("Retry-After", "10");

impl Inner {
    /// Whether one more session may find a place, for now: asked before the application is asked for more.
    /// While the process is short of memory there is none (the runtime says so in the log).
    pub(super) fn has_place(&self, transport: Transport) -> bool {
        if self.core.is_short_of_memory() {
            self.admission.refused.set(self.admission.refused.get() + 1);
            return false;
        }
        self.fits(transport) || self.oldest_fresh().is_some_and(|(_, late)| late) || self.turn_away()
    }

    /// Whether one more session has a place, for which others may have to give way.
    pub(super) fn make_place(&self, transport: Transport) -> bool {
        while !self.fits(transport) {
            if !self.give_up_oldest() {
                return self.turn_away();
            }
        }
        if self.has_room() {
            self.admission.room.set(true);
        }
        true
    }

    fn fits(&self, transport: Transport) -> bool {
        let (max, places) = (self.options.max_sessions, &self.admission.places);
        let fresh = || transport != Transport::Polling || sum(&places.fresh) < share(max);
        max == 0 || sum(&places.all) < max && fresh()
    }

    /// Whether a sixteenth of all places is free: a server at its limit would say so with every client
    /// otherwise.
    fn has_room(&self) -> bool {
        let (max, places) = (self.options.max_sessions, &self.admission.places);
        let free = |taken: usize, of: usize| taken + (of / 16).max(1) <= of;
        max == 0 || free(sum(&places.all), max) && free(sum(&places.fresh), share(max))
    }

    /// Counts a handshake that finds no place: `false`.
    fn turn_away(&self) -> bool {
        self.admission.refused.set(self.admission.refused.get() + 1);
        if self.admission.room.replace(false) {
            let (max, places) = (self.options.max_sessions, &self.admission.places);
            tracing::warn!(
                "core {}: no place for a session below {:?}: {} of {max} are taken, {} of {} by sessions \
                 that have done nothing since their handshake",
                self.core.index(),
                self.prefix(),
                sum(&places.all),
                sum(&places.fresh),
                share(max),
            );
        }
        false
    }

    /// The oldest session of this core that has done nothing since its handshake, and whether it had its
    /// time.
    fn oldest_fresh(&self) -> Option<(Socket, bool)> {
        loop {
            let (socket, opened) = self.admission.fresh.borrow().front().copied()?;
            if self.is_fresh(socket) {
                let time = limits::FRESH.as_millis() as Millis;
                return Some((socket, self.core.now() >= opened + time));
            }
            self.admission.fresh.borrow_mut().pop_front();
        }
    }

    /// Ends the oldest session that has done nothing, if it had its time.
    fn give_up_oldest(&self) -> bool {
        let Some((socket, true)) = self.oldest_fresh() else { return false };
        self.admission.given_up.set(self.admission.given_up.get() + 1);
        self.close(socket, CloseReason::TransportError, "no poll came, and another needs the place");
        // One that was closed before has waited to be told so.
        self.take(socket);
        true
    }

    fn is_fresh(&self, socket: Socket) -> bool {
        self.with_any(socket, |entry| entry.is_fresh()).unwrap_or(false)
    }

    /// The places that the sessions of all cores take.
    pub(super) fn places_taken(&self) -> usize {
        sum(&self.admission.places.all)
    }

    /// A session has opened.
    pub(super) fn take_place(&self, socket: Socket, weight: u8, fresh: bool) {
        let (core, weight) = (self.core.index(), usize::from(weight));
        self.admission.places.all[core].fetch_add(weight, Ordering::Relaxed);
        if !fresh {
            return;
        }
        if self.options.max_sessions == 0 {
            // Nobody will look for the oldest.
            self.admission.places.fresh[core].fetch_add(weight, Ordering::Relaxed);
            return;
        }
        self.admission.places.fresh[core].fetch_add(weight, Ordering::Relaxed);
        let mut queue = self.admission.fresh.borrow_mut();
        if queue.len() > 64 + 2 * share(self.options.max_sessions) {
            // Most have polled by now, or are gone.
            queue.retain(|(socket, _)| self.is_fresh(*socket));
        }
        queue.push_back((socket, self.core.now()));
    }

    /// A session is gone.
    pub(super) fn leave_place(&self, weight: u8, fresh: bool) {
        let (core, weight) = (self.core.index(), usize::from(weight));
        self.admission.places.all[core].fetch_sub(weight, Ordering::Relaxed);
        if fresh {
            self.admission.places.fresh[core].fetch_sub(weight, Ordering::Relaxed);
        }
    }

    /// The client of a session has read the answer to its handshake, and goes on.
    pub(super) fn goes_on(&self, socket: Socket) {
        let weight = self.with(socket, |entry| match &mut entry.link {
            Link::Polling(polling) => std::mem::take(&mut polling.fresh).then_some(entry.weight),
            Link::WebSocket(_) => None,
        });
        if let Some(Some(weight)) = weight {
            self.admission.places.fresh[self.core.index()].fetch_sub(usize::from(weight), Ordering::Relaxed);
        }
    }

    /// Forgets the sessions of this core, which has stopped.
    pub(super) fn clear_places(&self) {
        let core = self.core.index();
        self.admission.places.all[core].store(0, Ordering::Relaxed);
        self.admission.places.fresh[core].store(0, Ordering::Relaxed);
        self.admission.fresh.take();
    }

    pub(super) fn measure_places(&self, samples: &mut Vec<Sample>) {
        let (core, admission) = (self.core.index(), &self.admission);
        let gauge = |name, help, count: &AtomicUsize| {
            Sample::new(name, help, Value::Gauge(count.load(Ordering::Relaxed) as u64))
        };
        let counter = |name, help, count: &Cell<u64>| Sample::new(name, help, Value::Counter(count.get()));
        samples.extend([
            gauge(
                "engine_places",
                "Places of engine::Options::max_sessions that sessions take, closed ones that wait for a \
                 poll among them.",
                &admission.places.all[core],
            ),
            gauge(
                "engine_places_fresh",
                "Those of sessions that have done nothing since their polling handshake.",
                &admission.places.fresh[core],
            ),
            counter(
                "engine_handshakes_without_place",
                "Engine.IO handshakes that were answered with 503 because there are too many sessions.",
                &admission.refused,
            ),
            counter(
                "engine_sessions_given_up",
                "Engine.IO sessions that did nothing after their handshake and gave way to others.",
                &admission.given_up,
            ),
        ]);
    }
}
