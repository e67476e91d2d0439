//! The end of a turn: what sockets are owed leaves.

use std::collections::VecDeque;
use std::io;
use std::iter;
use std::mem;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::connection::{Connection, ConnectionId, Deadline, Ended, Phase, Receive};
use super::core::Core;
use super::guard::guarded;
use super::ring::{Completion, Kind, Send};
use super::turn::Scratch;
use crate::fanout::{Backlog, OutletId, Outlets, Owed, Via};
use crate::limits;

/// The time that one flush may take.
struct Slice {
    begun: Instant,
    time: Duration,
}

impl Slice {
    fn is_over(&self) -> bool {
        self.begun.elapsed() >= self.time
    }

    fn is_endless(&self) -> bool {
        self.time == Duration::MAX
    }
}

impl Core {
    /// Sends as much as the kernel takes to the sockets that are owed something, for about a slice of time:
    /// what is still owed then leaves in the turns that follow, and messages to few sockets go before it.
    pub(super) fn flush(&self, scratch: &mut Scratch) -> io::Result<()> {
        self.flush_for(scratch, self.send_slice)
    }

    /// The same to its end.
    pub(super) fn flush_all(&self, scratch: &mut Scratch) -> io::Result<()> {
        self.flush_for(scratch, Duration::MAX)
    }

    fn flush_for(&self, scratch: &mut Scratch, time: Duration) -> io::Result<()> {
        let slice = Slice { begun: Instant::now(), time };
        let mut went_on = false;
        self.outlets.borrow_mut().begin_turn();
        // Handlers that run in here (a poll is answered, a slow client has drained) may owe more.
        for _ in 0..FLUSH_ROUNDS {
            self.end_dead();
            self.end_overflowed();
            self.outlets.borrow_mut().take_gathered(&mut self.work.borrow_mut().writable);
            self.drain_backlogs(&slice, scratch)?;
            self.tell_drained();
            scratch.dirty.clear();
            self.outlets.borrow_mut().take_dirty(&mut scratch.dirty);
            if !scratch.dirty.is_empty() {
                let dirty = mem::take(&mut scratch.dirty);
                self.send_first(&dirty, &slice, scratch)?;
                scratch.dirty = dirty;
            } else if mem::replace(&mut went_on, true) || !self.send_put_off(&slice, scratch)? {
                break;
            }
        }
        self.end_dead();
        let more = !self.work.borrow().drains.is_empty();
        let mut outlets = self.outlets.borrow_mut();
        if outlets.is_dirty() || more {
            self.bell.ring();
        }
        if !outlets.is_dirty() {
            outlets.batch.clear();
        }
        Ok(())
    }

    /// Sends to the outlets that this turn owes something. Those of a large broadcast that is not the first
    /// take their turn behind the others', and get in one send what both owe them.
    fn send_first(&self, dirty: &[OutletId], slice: &Slice, scratch: &mut Scratch) -> io::Result<()> {
        let mut left = dirty;
        let large = dirty.len() > limits::SENDS_PER_ENTER && !slice.is_endless();
        if !(large && self.outlets.borrow().has_put_off()) {
            while !left.is_empty() {
                let sent = self.send_some(left, slice, scratch)?;
                left = &left[sent..];
                if slice.is_over() {
                    break;
                }
            }
        }
        self.counters.put_off.add(left.len());
        self.outlets.borrow_mut().put_off(left);
        Ok(())
    }

    /// Goes on where an earlier turn has stopped, with one burst at least. `false`: there was nothing left.
    fn send_put_off(&self, slice: &Slice, scratch: &mut Scratch) -> io::Result<bool> {
        let mut some = mem::take(&mut scratch.dirty);
        let mut any = false;
        loop {
            some.clear();
            self.outlets.borrow_mut().take_put_off(&mut some, limits::SENDS_PER_ENTER);
            if some.is_empty() {
                break;
            }
            any = true;
            let sent = self.send_some(&some, slice, scratch)?;
            self.outlets.borrow_mut().put_off(&some[sent..]);
            if slice.is_over() {
                break;
            }
        }
        scratch.dirty = some;
        Ok(any)
    }

    /// Sends to the first of these outlets, as many as one burst takes: how many those are.
    fn send_some(&self, all: &[OutletId], slice: &Slice, scratch: &mut Scratch) -> io::Result<usize> {
        let some = &all[..all.len().min(limits::SENDS_PER_ENTER)];
        let some = &some[..self.offer_to_layers(some, slice)];
        let some = &some[..self.fits_burst(some)];
        self.burst(some, &mut scratch.failed)?;
        Ok(some.len())
    }

    /// How many of these outlets one burst is for: as many as are owed so much together.
    fn fits_burst(&self, some: &[OutletId]) -> usize {
        let outlets = self.outlets.borrow();
        let mut bytes = 0;
        let fit = some.iter().take_while(|outlet| {
            let before = bytes;
            // A socket's buffer takes no more at a time.
            bytes += outlets.batch.bytes(outlets.owed(**outlet)).min(limits::BACKLOG_SEND_BYTES);
            before < limits::BURST_BYTES
        });
        fit.count()
    }

    /// Tells layers that asked that nothing is owed to a connection any more.
    fn tell_drained(&self) {
        let drains = mem::take(&mut self.work.borrow_mut().drains);
        for outlet in drains {
            let (owed, waiting) = {
                let outlets = self.outlets.borrow();
                (outlets.owed(outlet) != Owed::NOTHING, outlets.waiting(outlet))
            };
            if owed {
                self.work.borrow_mut().drains.push(outlet);
            } else if waiting == 0
                && let Some(id) = self.carrier(outlet)
            {
                self.drained(id);
            }
            // A backlog tells by itself when it has drained.
        }
    }

    fn drained(&self, id: ConnectionId) {
        if let Some(service) = self.service() {
            self.step(id, "a client that has taken everything", || service.drained(id));
        }
    }

    /// Ends connections whose peer a send has found gone.
    fn end_dead(&self) {
        let dead = mem::take(&mut self.work.borrow_mut().dead);
        for id in dead {
            self.step(id, "the end of a connection", || self.end(id, Ended::Reset));
        }
    }

    fn end_overflowed(&self) {
        let mut over = Vec::new();
        self.outlets.borrow_mut().take_overflowed(&mut over);
        for outlet in over {
            let via = self.outlets.borrow().via(outlet);
            match via {
                Some(Via::Connection(_)) => {
                    if let Some(id) = self.carrier(outlet) {
                        tracing::debug!("core {}: a client is too slow, closing it", self.index);
                        self.step(id, "the end of a slow client", || self.end(id, Ended::Overflow));
                    }
                }
                Some(Via::Layer) => {
                    if let Some(service) = self.service() {
                        guarded("the end of a slow client", || service.overflowed(outlet));
                    }
                }
                None => {}
            }
        }
    }

    /// Lets layers take what their outlets are owed, until the slice is over: of how many.
    fn offer_to_layers(&self, dirty: &[OutletId], slice: &Slice) -> usize {
        let mut offered = false;
        for (at, outlet) in dirty.iter().enumerate() {
            let layers = {
                let outlets = self.outlets.borrow();
                outlets.owed(*outlet) != Owed::NOTHING && outlets.via(*outlet) == Some(Via::Layer)
            };
            if let (true, Some(service)) = (layers, self.service()) {
                if mem::replace(&mut offered, true) && slice.is_over() {
                    return at;
                }
                guarded("the answer to a poll", || service.owed(*outlet));
                // A layer that has panicked has left it. What was owed since then is dirty again.
                let mut outlets = self.outlets.borrow_mut();
                if !outlets.is_dirty_outlet(*outlet) {
                    outlets.settle(*outlet);
                }
            }
        }
        dirty.len()
    }

    /// One burst: at most one send for each of these outlets, in one enter.
    fn burst(&self, some: &[OutletId], failed: &mut VecDeque<Completion>) -> io::Result<()> {
        let mut outlets = self.outlets.borrow_mut();
        let connections = self.connections.borrow();
        for outlet in some {
            let owed = outlets.owed(*outlet);
            outlets.batch.prepare(owed);
        }
        let mut sends: SmallVec<[Send<'_>; limits::SENDS_PER_ENTER]> = SmallVec::new();
        #[cfg(feature = "tls")]
        let sessions = self.sessions.borrow();
        #[cfg(feature = "tls")]
        let mut secure: SmallVec<[(OutletId, ConnectionId); limits::SENDS_PER_ENTER]> = SmallVec::new();
        let (mut bytes_sent, mut messages) = (0, 0);
        for outlet in some {
            let owed = outlets.owed(*outlet);
            let bytes = outlets.batch.prepared(owed);
            let carrier = connections.of_outlet(*outlet, outlets.via(*outlet));
            let Some((id, connection)) = carrier else { continue };
            if !bytes.is_empty() && !matches!(connection.phase, Phase::Departed | Phase::Lingering { .. }) {
                messages += outlets.batch.len(owed);
                #[cfg(feature = "tls")]
                if sessions.has(id) {
                    secure.push((*outlet, id));
                    continue;
                }
                bytes_sent += bytes.len();
                sends.push(Send { target: connection.target, bytes, tag: id.tag(Kind::Send) });
            }
        }
        self.ring.borrow_mut().burst(&sends)?;
        self.counters.sends.add(sends.len());
        self.counters.sent_bytes.add(bytes_sent);
        self.counters.sent_messages.add(messages);
        drop((sends, connections));
        #[cfg(feature = "tls")]
        drop(sessions);
        self.reap_failures(failed);
        while let Some(completion) = failed.pop_front() {
            let bytes = |outlets: &Outlets, outlet| outlets.batch.bytes(outlets.owed(outlet));
            self.send_failed(completion, &mut outlets, bytes, Outlets::spill);
        }
        #[cfg(feature = "tls")]
        if !secure.is_empty() {
            self.burst_secure(&secure, &mut outlets, failed)?;
        }
        for outlet in some {
            // The others were offered to layers, and may be owed something again since then.
            if outlets.via(*outlet) != Some(Via::Layer) {
                outlets.settle(*outlet);
            }
        }
        Ok(())
    }

    /// Moves the completions of failed sends into `failed`; all others wait for the next turn.
    pub(super) fn reap_failures(&self, failed: &mut VecDeque<Completion>) {
        let mut inbox = self.inbox.borrow_mut();
        self.ring.borrow_mut().reap(failed, usize::MAX);
        for _ in 0..failed.len() {
            match failed.pop_front() {
                Some(completion) if completion.tag.kind == Kind::Send => failed.push_back(completion),
                other => inbox.extend(other),
            }
        }
        if !inbox.is_empty() {
            self.bell.ring();
        }
    }

    /// A socket did not take all that was counted: keep the rest, by `spill`, and ask to be told, or find it
    /// dead.
    pub(super) fn send_failed(
        &self,
        completion: Completion,
        outlets: &mut Outlets,
        counted: impl FnOnce(&Outlets, OutletId) -> usize,
        spill: impl FnOnce(&mut Outlets, OutletId, usize),
    ) {
        let mut connections = self.connections.borrow_mut();
        let Some(id) = connections.of_tag(completion.tag) else { return };
        let Some(connection) = connections.get_mut(id) else { return };
        let outlet = connection.outlet;
        self.counters.short_sends.add(1);
        let sent = usize::try_from(completion.result).unwrap_or(0);
        self.counters.sent_bytes.take_back(counted(outlets, outlet).saturating_sub(sent));
        match completion.result {
            0.. => spill(outlets, outlet, sent),
            again if again == -libc::EAGAIN => spill(outlets, outlet, 0),
            _ => {
                if connection.receive == Receive::Armed && connection.phase == Phase::Open {
                    // The receive says so too, behind what the peer has sent before. But a multishot receive
                    // can miss an end that comes together with data (liburing issue 1549; seen here on 6.18
                    // with TCP, once in some ten thousand connections): armed again, it looks.
                    self.queue(|ring| ring.cancel(id.tag(Kind::Receive)));
                } else {
                    // Nobody else would say so.
                    self.work.borrow_mut().dead.push(id);
                }
                return;
            }
        }
        self.watch(connection, id);
    }

    /// Asks to be told when a full socket takes bytes again.
    fn watch(&self, connection: &mut Connection, id: ConnectionId) {
        if !mem::replace(&mut connection.polled, true) {
            let target = connection.target;
            self.queue(|ring| ring.poll_writable(target, id.tag(Kind::Writable)));
        }
    }

    /// Sends what waits for sockets that take bytes again, one after the other, for a slice of time, and to
    /// one at least: the others go on in the next turn.
    fn drain_backlogs(&self, slice: &Slice, scratch: &mut Scratch) -> io::Result<()> {
        let mut writable = mem::take(&mut self.work.borrow_mut().writable).into_iter();
        let mut any = false;
        while let Some(outlet) = writable.next() {
            if mem::replace(&mut any, true) && slice.is_over() {
                self.counters.put_off.add(writable.len() + 1);
                let later = &mut self.work.borrow_mut().writable;
                later.splice(0..0, iter::once(outlet).chain(writable));
                self.bell.ring();
                break;
            }
            let Some(id) = self.carrier(outlet) else { continue };
            let mut outcome = Ok(false);
            self.step(id, "what a slow client is sent", || {
                outcome = self.drain_backlog(id, outlet, scratch);
            });
            if !outcome? {
                continue;
            }
            if self.with(id, |_| ()).is_some() {
                self.drained(id);
            } else {
                self.work.borrow_mut().closing.push(id);
            }
        }
        Ok(())
    }

    /// A client that takes what it is owed, however slowly, is given more time to do so.
    fn note_progress(&self, id: ConnectionId) {
        let later = Deadline::after(self.now(), self.close_timeout.get());
        if let Some(connection) = self.connections.borrow_mut().get_mut(id)
            && let Phase::Closing { deadline, .. } | Phase::Moving { deadline } = &mut connection.phase
        {
            *deadline = later;
        }
    }

    /// Copies what is to be sent next; whether it is sealed, and not in the backlog any more.
    fn copy_backlog(&self, id: ConnectionId, backlog: &mut Backlog, out: &mut Vec<u8>) -> bool {
        #[cfg(feature = "tls")]
        if self.seal_backlog(id, backlog, out) {
            return true;
        }
        let _ = id;
        backlog.copy_to(out, limits::BACKLOG_SEND_BYTES);
        false
    }

    /// Whether the backlog is empty now.
    fn drain_backlog(&self, id: ConnectionId, outlet: OutletId, scratch: &mut Scratch) -> io::Result<bool> {
        for _ in 0..BACKLOG_SENDS {
            scratch.backlog.clear();
            let mut outlets = self.outlets.borrow_mut();
            let sealed = outlets
                .backlog(outlet)
                .is_some_and(|backlog| self.copy_backlog(id, backlog, &mut scratch.backlog));
            if scratch.backlog.is_empty() {
                outlets.unblock(outlet);
                return Ok(true);
            }
            let Some(send) = self.connection(id).map(|connection| Send {
                target: connection.target,
                bytes: &scratch.backlog,
                tag: id.tag(Kind::Send),
            }) else {
                return Ok(false);
            };
            self.ring.borrow_mut().burst(&[send])?;
            self.reap_failures(&mut scratch.failed);
            let failure = scratch.failed.pop_front().map(|completion| completion.result);
            let Some(backlog) = outlets.backlog(outlet) else { return Ok(false) };
            let sent = failure.map_or(scratch.backlog.len(), |result| result.max(0) as usize);
            self.counters.sends.add(1);
            self.counters.sent_bytes.add(sent);
            if sealed {
                backlog.seal(&scratch.backlog[sent..]);
                backlog.note_taken(sent);
            } else {
                backlog.consume(sent);
            }
            if sent > 0 {
                self.note_progress(id);
            }
            match failure {
                None => {}
                Some(result) if result >= 0 || result == -libc::EAGAIN => {
                    drop(outlets);
                    if let Some(connection) = self.connections.borrow_mut().get_mut(id) {
                        self.watch(connection, id);
                    }
                    return Ok(false);
                }
                Some(_) => {
                    drop(outlets);
                    self.end(id, Ended::Reset);
                    return Ok(false);
                }
            }
        }
        // A very large backlog goes on in the next turn.
        self.work.borrow_mut().writable.push(outlet);
        self.bell.ring();
        Ok(false)
    }
}

/// How often a turn flushes what its own flush has made handlers owe.
const FLUSH_ROUNDS: usize = 4;

/// Sends from one backlog in one turn.
const BACKLOG_SENDS: usize = 8;
