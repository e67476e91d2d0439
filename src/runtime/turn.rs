//! One turn of a core: read what came, run the handlers, send what is owed.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use smallvec::SmallVec;

use super::connection::{Connection, ConnectionId, Deadline, Ended, Phase, Receive};
use super::core::{Core, Work, survived};
use super::listener::Listening;
use super::ring::{Completion, Kind, Send, Tag, Target};
use crate::fanout::{Backlog, Outlets, Owed, Queue, Via};
use crate::limits;
use crate::time::Millis;

/// Buffers that a worker keeps from turn to turn.
#[derive(Default)]
pub(super) struct Scratch {
    tasks: Queue,
    pub(super) dirty: Vec<u32>,
    pub(super) failed: VecDeque<Completion>,
    pub(super) backlog: Vec<u8>,
}

impl Core {
    /// Reads completions and tasks within the turn's budget, runs what they call for, and sends what that
    /// owes. Messages leave in the turn that made them; nothing is sent in reaction to a single `emit`.
    pub(super) fn turn(&self, scratch: &mut Scratch) -> io::Result<()> {
        let now = self.update_now();
        self.bell.hush();
        self.ring.borrow_mut().submit()?;
        self.complete_all(scratch)?;
        self.run_tasks(scratch)?;
        if self.ticked.replace(false) {
            self.tick(now);
        }
        self.flush(scratch)?;
        self.close_ready(now);
        self.rearm();
        self.publish_load();
        self.deliver_tasks();
        self.ring.borrow_mut().submit()
    }

    fn complete_all(&self, scratch: &mut Scratch) -> io::Result<()> {
        let mut handled = 0;
        loop {
            let room = limits::COMPLETIONS_PER_TURN.saturating_sub(handled);
            self.ring.borrow_mut().reap(&mut self.inbox.borrow_mut(), room);
            while let Some(completion) = self.next_completion() {
                handled += 1;
                self.complete(completion);
                #[cfg(feature = "tls")]
                (handled += self.handshakes.take() * limits::HANDSHAKE_COMPLETIONS);
                self.flush_much(scratch)?;
            }
            // One enter runs at most 20 task works (R10).
            let mut ring = self.ring.borrow_mut();
            if handled >= limits::COMPLETIONS_PER_TURN || !ring.has_task_work() {
                return Ok(());
            }
            ring.submit()?;
            if !ring.has_completions() {
                // The flag may stand for nothing (R11). If it does not, the next turn goes on.
                return Ok(());
            }
        }
    }

    fn next_completion(&self) -> Option<Completion> {
        self.inbox.borrow_mut().pop_front()
    }

    fn complete(&self, mut completion: Completion) {
        let Tag { kind, generation, slot } = completion.tag;
        let known = self.id(slot).filter(|id| id.generation == generation);
        match kind {
            Kind::Accept => self.accepted(slot, completion.result),
            Kind::Arrived if completion.result < 0 => {
                self.shared.parcels(self.index).try_remove(slot as usize);
            }
            Kind::Arrived => self.arrived(slot, Target::Direct(completion.result as u32)),
            Kind::Receive => {
                if let Some(id) = known {
                    self.received(id, &mut completion);
                }
                // Also one that is for nobody any more carries a buffer.
                if let Some(lent) = completion.buffer.take() {
                    self.buffers.borrow_mut().recycle(lent);
                }
            }
            Kind::Writable => {
                if let Some(id) = known {
                    self.writable(id);
                }
            }
            Kind::Hangup => {
                if let Some(id) = known {
                    self.hung_up(id, completion.result);
                }
            }
            Kind::Moved => {
                if let Some(id) = known {
                    self.moved(id, completion.result);
                }
            }
            Kind::Installed => self.installed(known, completion.result),
            Kind::Send | Kind::Ignored => {}
        }
    }

    fn accepted(&self, number: u32, result: i32) {
        let Some((listener, peer)) = self.ring.borrow_mut().accepted(number) else { return };
        let exhausted = matches!(-result, libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS);
        if exhausted {
            // It would fail again at once: the next tick tries.
            let resting = &mut self.work.borrow_mut().resting;
            if resting.is_empty() {
                tracing::warn!("core {}: accept: {}", self.index, io::Error::from_raw_os_error(-result));
            }
            return resting.push(listener);
        }
        if !self.is_stopping() {
            // Armed again at the end of the turn: see `rearm`.
            self.work.borrow_mut().parked.push_back(listener);
        }
        if result < 0 {
            if !matches!(-result, libc::ECANCELED | libc::ECONNABORTED) {
                tracing::warn!("core {}: accept: {}", self.index, io::Error::from_raw_os_error(-result));
            }
            return;
        }
        let target = if self.direct { Target::Direct(result as u32) } else { Target::Normal(result) };
        if self.stop_at.get().is_some() {
            // It was told nothing, and may try another server.
            return self.queue(|ring| ring.close(target));
        }
        let id = self.admit(target, peer, listener);
        self.arm_receive(id);
        self.begin(id);
    }

    fn received(&self, id: ConnectionId, completion: &mut Completion) {
        let result = completion.result;
        if let (Some(lent), true) = (&completion.buffer, result > 0) {
            let mut buffers = self.buffers.borrow_mut();
            self.feed(id, buffers.bytes(lent));
        }
        if completion.more {
            return;
        }
        let stopping = self.note_receive_ended(id);
        match result {
            // The receive ended although nothing is wrong: buffers ran out, or the completion queue did.
            1.. => self.arm_again(id, stopping),
            r if r == -libc::ENOBUFS => {
                if stopping {
                    self.receive_stopped(id);
                } else {
                    self.want_receive(id);
                }
            }
            r if r == -libc::ECANCELED && stopping => self.receive_stopped(id),
            // Resumed while the cancel was on its way.
            r if r == -libc::ECANCELED => self.arm_receive(id),
            0 => self.end_of_stream(id),
            _ => self.end(id, Ended::Reset),
        }
    }

    /// Notes that no receive is armed; whether that was asked for.
    fn note_receive_ended(&self, id: ConnectionId) -> bool {
        let mut connections = self.connections.borrow_mut();
        let Some(connection) = connections.get_mut(id.slot as usize) else { return false };
        mem::replace(&mut connection.receive, Receive::Idle) == Receive::Stopping
    }

    fn arm_again(&self, id: ConnectionId, stopping: bool) {
        if stopping {
            self.receive_stopped(id);
        } else if self.id(id.slot) == Some(id) {
            self.arm_receive(id);
        }
    }

    pub(super) fn receive_stopped(&self, id: ConnectionId) {
        // One that is to leave for another core looks whether it can: see `close_ready`.
        self.work.borrow_mut().closing.push(id.slot);
    }

    /// Arms a receive at the end of the turn, unless it is not wanted any more by then.
    pub(super) fn want_receive(&self, id: ConnectionId) {
        let mut connections = self.connections.borrow_mut();
        let connection = connections.get_mut(id.slot as usize);
        let Some(connection) = connection.filter(|c| c.generation == id.generation) else { return };
        connection.receive = Receive::Wanted;
        self.work.borrow_mut().wanted.push(id);
    }

    /// Takes bytes from a socket.
    pub(super) fn feed(&self, id: ConnectionId, bytes: &mut [u8]) {
        #[cfg(feature = "tls")]
        if self.decrypts(id.slot) {
            return self.receive_secure(id, bytes);
        }
        self.deliver(id, bytes);
    }

    /// Hands bytes to whoever is to have them.
    pub(super) fn deliver(&self, id: ConnectionId, bytes: &mut [u8]) {
        let mut connections = self.connections.borrow_mut();
        let Some(connection) = connections.get_mut(id.slot as usize) else { return };
        match (&mut connection.phase, &mut connection.moving) {
            (Phase::Open, _) => {
                drop(connections);
                let Some(service) = self.service() else { return };
                if !survived(|| service.received(id, bytes)) {
                    self.end(id, Ended::Panic);
                }
            }
            (Phase::Preface { .. }, _) => {
                drop(connections);
                self.read_preface(id, bytes);
            }
            (Phase::Moving { .. }, Some(moving)) => moving.parcel.bytes.extend_from_slice(bytes),
            (Phase::Lingering { bytes: left, deadline }, _) => {
                *left = left.saturating_sub(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
                if *left == 0 {
                    *deadline = Deadline::passed(self.now());
                    self.work.borrow_mut().closing.push(id.slot);
                }
            }
            _ => {}
        }
    }

    /// A connection ended by itself.
    pub(super) fn end(&self, id: ConnectionId, why: Ended) {
        let Some(phase) = self.connection(id.slot).map(|connection| connection.phase) else { return };
        match phase {
            Phase::Open => {
                if let Some(service) = self.service() {
                    survived(|| service.ended(id, why));
                }
                // A peer that has closed its side may still read what it is owed.
                let waiting = self.outlet(id).is_some_and(|o| self.outlets.borrow().waiting(o.slot()) > 0);
                if why == Ended::Eof && waiting {
                    self.close(id);
                } else {
                    self.remove(id.slot);
                }
            }
            // What is owed still leaves; a dead peer is noticed by the send.
            Phase::Closing { .. } if why == Ended::Eof => {}
            Phase::Departed => {}
            Phase::Preface { .. }
            | Phase::Closing { .. }
            | Phase::Lingering { .. }
            | Phase::Moving { .. } => self.remove(id.slot),
        }
    }

    fn writable(&self, id: ConnectionId) {
        let mut connections = self.connections.borrow_mut();
        let Some(connection) = connections.get_mut(id.slot as usize) else { return };
        connection.polled = false;
        self.work.borrow_mut().writable.push(connection.outlet.slot());
    }

    fn run_tasks(&self, scratch: &mut Scratch) -> io::Result<()> {
        let mut tasks = mem::take(&mut scratch.tasks);
        self.shared.mesh.take(self.index, &mut tasks);
        for task in tasks.drain() {
            survived(|| task.run());
            self.flush_much(scratch)?;
        }
        scratch.tasks = tasks;
        Ok(())
    }

    /// Sends in the middle of a turn once much is owed: the limit of a client counts what waits for it, and
    /// one that takes everything at once must not go over it because nothing was sent meanwhile.
    fn flush_much(&self, scratch: &mut Scratch) -> io::Result<()> {
        let much = self.outlets.borrow().batch.frame_bytes() > limits::FLUSH_BYTES;
        if much { self.flush(scratch) } else { Ok(()) }
    }

    /// Posts what this turn asks of other cores: one lock and one doorbell for each of them.
    fn deliver_tasks(&self) {
        for (core, tasks) in self.outgoing.borrow_mut().iter_mut().enumerate() {
            if !tasks.is_empty() {
                self.shared.mesh.post_all(core, tasks);
            }
        }
    }

    fn tick(&self, now: Millis) {
        if self.shared.is_stopping() && self.stop_at.get().is_none() {
            self.begin_shutdown(now);
        }
        if let Some(service) = self.service() {
            survived(|| service.tick(now));
        }
        let mut work = self.work.borrow_mut();
        let Work { parked, resting, .. } = &mut *work;
        parked.extend(resting.drain(..));
        drop(work);
        if self.work.borrow().deadlines {
            self.sweep(now);
        }
    }

    /// Stops accepting and asks the layers above to end what is open.
    pub(super) fn begin_shutdown(&self, now: Millis) {
        if self.stop_at.get().is_some() {
            return;
        }
        self.stop_at.set(Some(now + self.shutdown_timeout.as_millis() as Millis));
        self.queue(|ring| ring.trim_accepts(0));
        self.drop_prefaces();
        if let Some(service) = self.service() {
            survived(|| service.shutdown());
        }
    }

    /// Whether the core stops and all its accepts are back (R8).
    pub(super) fn accepts_no_more(&self) -> bool {
        self.stop_at.get().is_some() && self.ring.borrow().accepts_armed() == 0
    }

    /// Whether a stopping core has nothing left to do, or no time.
    pub(super) fn is_stopped(&self) -> bool {
        let Some(stop_at) = self.stop_at.get() else { return false };
        let quiet = self.connections.borrow().is_empty() && self.ring.borrow().accepts_armed() == 0;
        quiet || self.now() >= stop_at
    }

    /// Puts connections whose closing takes too long on the list of those to close.
    fn sweep(&self, now: Millis) {
        let connections = self.connections.borrow();
        let mut work = self.work.borrow_mut();
        work.deadlines = false;
        for (slot, connection) in connections.iter() {
            if let Phase::Closing { deadline, .. }
            | Phase::Lingering { deadline, .. }
            | Phase::Preface { deadline }
            | Phase::Moving { deadline } = connection.phase
            {
                work.deadlines = true;
                if deadline.is_over(now) {
                    work.closing.push(slot as u32);
                }
            }
        }
    }

    /// Goes on with connections that wait for what they are owed to leave, before they close or move.
    fn close_ready(&self, now: Millis) {
        let closing = mem::take(&mut self.work.borrow_mut().closing);
        for slot in closing {
            let Some((phase, outlet, receive)) =
                self.connection(slot).map(|c| (c.phase, c.outlet, c.receive))
            else {
                continue;
            };
            let (owed, done) = {
                let outlets = self.outlets.borrow();
                (outlets.owed(outlet.slot()) != Owed::NOTHING, outlets.waiting(outlet.slot()) == 0)
            };
            #[cfg(feature = "tls")]
            if matches!(phase, Phase::Closing { deadline, .. } if done && !deadline.is_over(now))
                && self.finish_secure(slot)
            {
                continue;
            }
            match phase {
                Phase::Closing { deadline, linger: true } if done && !deadline.is_over(now) => {
                    self.begin_linger(slot, now);
                }
                Phase::Closing { .. } if done => self.remove(slot),
                Phase::Moving { .. } if done && receive == Receive::Idle => self.depart(slot),
                Phase::Closing { deadline, .. }
                | Phase::Lingering { deadline, .. }
                | Phase::Preface { deadline }
                | Phase::Moving { deadline }
                    if deadline.is_over(now) =>
                {
                    self.remove(slot);
                }
                // A backlog that empties says so; what the next turn sends does not.
                Phase::Closing { .. } | Phase::Moving { .. } if owed => {
                    self.work.borrow_mut().closing.push(slot);
                }
                _ => {}
            }
        }
    }

    fn begin_linger(&self, slot: u32, now: Millis) {
        let mut connections = self.connections.borrow_mut();
        let Some(connection) = connections.get_mut(slot as usize) else { return };
        let deadline = Deadline::after(now, limits::LINGER);
        connection.phase = Phase::Lingering { deadline, bytes: limits::LINGER_BYTES };
        self.work.borrow_mut().deadlines = true;
        let id = ConnectionId { slot, generation: connection.generation };
        if connection.receive == Receive::Ended
            && let Some(tag) = connection.stop_receive(slot)
        {
            self.queue(|ring| ring.cancel(tag));
        }
        let idle = connection.receive == Receive::Idle;
        if connection.receive == Receive::Stopping {
            connection.receive = Receive::Armed;
        }
        match connection.target {
            Target::Normal(fd) => shut_down(fd, libc::SHUT_WR),
            Target::Direct(file) => {
                let tag = connection.tag(Kind::Installed, slot);
                self.queue(|ring| ring.install(file, tag));
            }
        }
        drop(connections);
        if idle {
            // What was paused must be read to be thrown away, and an end that was seen is seen again.
            self.arm_receive(id);
        }
    }

    fn installed(&self, known: Option<ConnectionId>, result: i32) {
        if result < 0 {
            if let Some(id) = known {
                self.remove(id.slot);
            }
            return;
        }
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(result) };
        let departed =
            known.filter(|id| self.connection(id.slot).is_some_and(|c| c.phase == Phase::Departed));
        if let Some(id) = departed {
            shut_down(fd.as_raw_fd(), libc::SHUT_RDWR);
            return self.remove(id.slot);
        }
        shut_down(fd.as_raw_fd(), libc::SHUT_WR);
    }

    /// Arms what could not be armed before: receives that found no buffer (all buffers are back by now),
    /// and accepts, never more than slots are free. Only a listener that has none armed gets one while any
    /// slot is free, or listeners that nobody comes to would keep the last slots from those that are used.
    /// So there may be one connection too many for each listener but one; descriptors are spared for them.
    fn rearm(&self) {
        let wanted = mem::take(&mut self.work.borrow_mut().wanted);
        for id in wanted {
            let known = self.connection(id.slot);
            let wanted = known.is_some_and(|c| c.generation == id.generation && c.receive == Receive::Wanted);
            if wanted {
                self.arm_receive(id);
            }
        }
        if self.is_stopping() {
            return;
        }
        let mut work = self.work.borrow_mut();
        let taken = self.connections() + self.shared.admission.coming(self.index);
        let free = self.capacity.saturating_sub(taken);
        if self.ring.borrow().accepts_armed() > free {
            // Others have taken places that accepts wait for: clients wait in the listener's queue instead.
            self.queue(|ring| ring.trim_accepts(free));
        }
        if free == 0 {
            return;
        }
        work.parked.retain(|listener| {
            let fits = {
                let ring = self.ring.borrow();
                ring.accepts_armed() < free || !ring.accepts_on(*listener)
            };
            let fd = self.listeners.borrow().get(usize::from(*listener)).and_then(Listening::raw_fd);
            if let (true, Some(fd)) = (fits, fd) {
                self.queue(|ring| ring.accept(fd, *listener, self.direct));
            }
            // One that is gone is forgotten.
            !fits && fd.is_some()
        });
    }

    /// Sends as much as the kernel takes to the sockets that are owed something.
    fn flush(&self, scratch: &mut Scratch) -> io::Result<()> {
        // Handlers that run in here (a poll is answered, a slow client has drained) may owe more.
        for _ in 0..FLUSH_ROUNDS {
            self.end_dead();
            self.end_overflowed();
            self.outlets.borrow_mut().take_gathered(&mut self.work.borrow_mut().writable);
            self.drain_backlogs(scratch)?;
            self.tell_drained();
            scratch.dirty.clear();
            self.outlets.borrow_mut().take_dirty(&mut scratch.dirty);
            if scratch.dirty.is_empty() {
                break;
            }
            self.offer_to_layers(&scratch.dirty);
            let mut rest = mem::take(&mut scratch.dirty);
            for some in rest.chunks(limits::SENDS_PER_ENTER) {
                self.burst(some, &mut scratch.failed)?;
            }
            rest.clear();
            scratch.dirty = rest;
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

    /// Tells layers that asked that nothing is owed to a connection any more.
    fn tell_drained(&self) {
        let drains = mem::take(&mut self.work.borrow_mut().drains);
        for outlet in drains {
            let (owed, waiting, via) = {
                let outlets = self.outlets.borrow();
                if !outlets.is_open(outlet) {
                    continue;
                }
                let slot = outlet.slot();
                (outlets.owed(slot) != Owed::NOTHING, outlets.waiting(slot), outlets.via(slot))
            };
            if owed {
                self.work.borrow_mut().drains.push(outlet);
            } else if let (0, Via::Connection(at)) = (waiting, via)
                && let (Some(id), Some(service)) = (self.id(at), self.service())
                && !survived(|| service.drained(id))
            {
                self.end(id, Ended::Panic);
            }
            // A backlog tells by itself when it has drained.
        }
    }

    /// Ends connections whose peer a send has found gone.
    fn end_dead(&self) {
        let dead = mem::take(&mut self.work.borrow_mut().dead);
        for id in dead {
            if self.id(id.slot) == Some(id) {
                self.end(id, Ended::Reset);
            }
        }
    }

    fn end_overflowed(&self) {
        let mut over = Vec::new();
        self.outlets.borrow_mut().take_overflowed(&mut over);
        for outlet in over {
            let via = {
                let outlets = self.outlets.borrow();
                if !outlets.is_open(outlet) {
                    continue;
                }
                outlets.via(outlet.slot())
            };
            match via {
                Via::Connection(slot) => {
                    if let Some(id) = self.id(slot) {
                        tracing::debug!("core {}: a client is too slow, closing it", self.index);
                        self.end(id, Ended::Overflow);
                    }
                }
                Via::Layer => {
                    if let Some(service) = self.service() {
                        survived(|| service.overflowed(outlet));
                    }
                }
            }
        }
    }

    /// Lets layers take what their outlets are owed.
    fn offer_to_layers(&self, dirty: &[u32]) {
        for slot in dirty {
            let outlet = {
                let outlets = self.outlets.borrow();
                let layers = outlets.owed(*slot) != Owed::NOTHING && outlets.via(*slot) == Via::Layer;
                layers.then(|| outlets.id(*slot))
            };
            if let (Some(outlet), Some(service)) = (outlet, self.service()) {
                survived(|| service.owed(outlet));
                // A layer that has panicked has left it. What was owed since then is dirty again.
                let mut outlets = self.outlets.borrow_mut();
                if !outlets.is_dirty_slot(*slot) {
                    outlets.settle(*slot);
                }
            }
        }
    }

    /// One burst: at most one send for each of these outlets, in one enter.
    fn burst(&self, some: &[u32], failed: &mut VecDeque<Completion>) -> io::Result<()> {
        let mut outlets = self.outlets.borrow_mut();
        let connections = self.connections.borrow();
        for slot in some {
            let owed = outlets.owed(*slot);
            outlets.batch.prepare(owed);
        }
        let mut sends: SmallVec<[Send<'_>; limits::SENDS_PER_ENTER]> = SmallVec::new();
        #[cfg(feature = "tls")]
        let sessions = self.sessions.borrow();
        #[cfg(feature = "tls")]
        let mut secure: SmallVec<[u32; limits::SENDS_PER_ENTER]> = SmallVec::new();
        for slot in some {
            let bytes = outlets.batch.prepared(outlets.owed(*slot));
            let Via::Connection(at) = outlets.via(*slot) else { continue };
            let Some(connection) = connections.get(at as usize) else { continue };
            if !bytes.is_empty() && !matches!(connection.phase, Phase::Departed | Phase::Lingering { .. }) {
                #[cfg(feature = "tls")]
                if sessions.has(at) {
                    secure.push(*slot);
                    continue;
                }
                sends.push(Send { target: connection.target, bytes, tag: connection.tag(Kind::Send, at) });
            }
        }
        self.ring.borrow_mut().burst(&sends)?;
        drop((sends, connections));
        #[cfg(feature = "tls")]
        drop(sessions);
        self.reap_failures(failed);
        while let Some(completion) = failed.pop_front() {
            self.send_failed(completion, &mut outlets, Outlets::spill);
        }
        #[cfg(feature = "tls")]
        if !secure.is_empty() {
            self.burst_secure(&secure, &mut outlets, failed)?;
        }
        for slot in some {
            // The others were offered to layers, and may be owed something again since then.
            if outlets.via(*slot) != Via::Layer {
                outlets.settle(*slot);
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

    /// A socket did not take everything: keep the rest, by `spill`, and ask to be told, or find it dead.
    pub(super) fn send_failed(
        &self,
        completion: Completion,
        outlets: &mut Outlets,
        spill: impl FnOnce(&mut Outlets, u32, usize),
    ) {
        let slot = completion.tag.slot;
        let mut connections = self.connections.borrow_mut();
        let Some(connection) = connections.get_mut(slot as usize) else { return };
        if connection.generation != completion.tag.generation {
            return;
        }
        let outlet = connection.outlet.slot();
        match completion.result {
            sent if sent >= 0 => spill(outlets, outlet, sent as usize),
            again if again == -libc::EAGAIN => spill(outlets, outlet, 0),
            _ => {
                let id = ConnectionId { slot, generation: connection.generation };
                if connection.receive == Receive::Armed && connection.phase == Phase::Open {
                    // The receive says so too, behind what the peer has sent before. But a multishot receive
                    // can miss an end that comes together with data (liburing issue 1549; seen here on 6.18
                    // with TCP, once in some ten thousand connections): armed again, it looks.
                    let tag = connection.tag(Kind::Receive, slot);
                    self.queue(|ring| ring.cancel(tag));
                } else {
                    // Nobody else would say so.
                    self.work.borrow_mut().dead.push(id);
                }
                return;
            }
        }
        self.watch(connection, slot);
    }

    /// Asks to be told when a full socket takes bytes again.
    fn watch(&self, connection: &mut Connection, slot: u32) {
        if !mem::replace(&mut connection.polled, true) {
            let (target, tag) = (connection.target, connection.tag(Kind::Writable, slot));
            self.queue(|ring| ring.poll_writable(target, tag));
        }
    }

    /// Sends what waits for sockets that take bytes again, one after the other.
    fn drain_backlogs(&self, scratch: &mut Scratch) -> io::Result<()> {
        let writable = mem::take(&mut self.work.borrow_mut().writable);
        for slot in writable {
            let id = {
                let outlets = self.outlets.borrow();
                match outlets.via(slot) {
                    Via::Connection(at) => self.id(at),
                    Via::Layer => None,
                }
            };
            let Some(id) = id else { continue };
            let emptied = self.drain_backlog(id, slot, scratch)?;
            let open = self.with(id, |_| ()).is_some();
            if let (true, true, Some(service)) = (emptied, open, self.service()) {
                if !survived(|| service.drained(id)) {
                    self.end(id, Ended::Panic);
                }
            } else if emptied {
                self.work.borrow_mut().closing.push(id.slot);
            }
        }
        Ok(())
    }

    /// A client that takes what it is owed, however slowly, is given more time to do so.
    fn note_progress(&self, id: ConnectionId) {
        let later = Deadline::after(self.now(), self.close_timeout.get());
        if let Some(connection) = self.connections.borrow_mut().get_mut(id.slot as usize)
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
    fn drain_backlog(&self, id: ConnectionId, slot: u32, scratch: &mut Scratch) -> io::Result<bool> {
        for _ in 0..BACKLOG_SENDS {
            scratch.backlog.clear();
            let mut outlets = self.outlets.borrow_mut();
            let sealed = outlets
                .backlog(slot)
                .is_some_and(|backlog| self.copy_backlog(id, backlog, &mut scratch.backlog));
            if scratch.backlog.is_empty() {
                outlets.unblock(slot);
                return Ok(true);
            }
            let Some(send) = self.connection(id.slot).map(|c| Send {
                target: c.target,
                bytes: &scratch.backlog,
                tag: c.tag(Kind::Send, id.slot),
            }) else {
                return Ok(false);
            };
            self.ring.borrow_mut().burst(&[send])?;
            self.reap_failures(&mut scratch.failed);
            let failure = scratch.failed.pop_front().map(|completion| completion.result);
            let Some(backlog) = outlets.backlog(slot) else { return Ok(false) };
            let sent = failure.map_or(scratch.backlog.len(), |result| result.max(0) as usize);
            if sealed {
                backlog.seal(&scratch.backlog[sent..]);
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
                    if let Some(connection) = self.connections.borrow_mut().get_mut(id.slot as usize) {
                        self.watch(connection, id.slot);
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
        self.work.borrow_mut().writable.push(slot);
        self.bell.ring();
        Ok(false)
    }
}

/// How often a turn flushes what its own flush has made handlers owe.
const FLUSH_ROUNDS: usize = 4;

/// Sends from one backlog in one turn.
const BACKLOG_SENDS: usize = 8;

fn shut_down(fd: RawFd, how: i32) {
    // SAFETY: no memory is involved; a descriptor that is not a connected socket gets an error back.
    unsafe { libc::shutdown(fd, how) };
}

#[cfg(test)]
mod tests;
