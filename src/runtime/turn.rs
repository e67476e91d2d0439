//! One turn of a core: read what came, run the handlers, send what is owed.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

use super::connection::{ConnectionId, Deadline, Ended, Phase, Receive};
use super::core::{Core, Work};
use super::guard::guarded;
use super::listener::Listening;
use super::ring::{Completion, Kind, Ring, Tag, Target};
use crate::fanout::{OutletId, Owed, Queue, Task};
use crate::limits;
use crate::time::Millis;

/// Buffers that a worker keeps from turn to turn.
#[derive(Default)]
pub(super) struct Scratch {
    mail: Queue,
    /// Taken out of the mailbox, and not run yet.
    pub(super) tasks: VecDeque<Task>,
    pub(super) dirty: Vec<OutletId>,
    pub(super) failed: VecDeque<Completion>,
    pub(super) backlog: Vec<u8>,
}

impl Core {
    /// Reads completions and tasks within the turn's budget, runs what they call for, and sends what that
    /// owes. Messages leave in the turn that made them; nothing is sent in reaction to a single `emit`.
    pub(super) fn turn(&self, scratch: &mut Scratch) -> io::Result<()> {
        let begun = Instant::now();
        let now = self.update_now();
        self.bell.hush();
        self.ring.borrow_mut().submit()?;
        self.begin_intake(begun, scratch)?;
        self.complete_all(scratch)?;
        self.run_tasks(scratch)?;
        if self.ticked.replace(false) {
            self.tick(now);
        }
        self.read_ready(scratch)?;
        self.end_intake();
        // Other cores begin with their part of a broadcast before this one sends its own, for a slice.
        self.deliver_tasks();
        self.flush(scratch)?;
        self.close_ready(now);
        self.rearm();
        self.publish_load();
        self.deliver_tasks();
        self.ring.borrow_mut().submit()?;
        self.counters.turn_took(begun.elapsed());
        Ok(())
    }

    fn complete_all(&self, scratch: &mut Scratch) -> io::Result<()> {
        let mut handled = 0;
        loop {
            let room = limits::COMPLETIONS_PER_TURN.saturating_sub(handled);
            self.ring.borrow_mut().reap(&mut self.inbox.borrow_mut(), room);
            while let Some(completion) = self.next_completion() {
                handled += 1;
                self.charge(limits::MESSAGE_WORK);
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
        let Tag { kind, slot, .. } = completion.tag;
        let known = || self.connections.borrow().of_tag(completion.tag);
        let result = completion.result;
        match kind {
            Kind::Accept => self.accepted(slot, result),
            Kind::Arrived if result < 0 => {
                self.shared.parcels(self.index).try_remove(slot as usize);
            }
            Kind::Arrived => self.arrived(slot, Target::Direct(result as u32)),
            Kind::Receive => {
                if let Some(id) = known() {
                    self.step(id, "what a client has sent", || self.received(id, &mut completion));
                }
                // Also one that is for nobody any more, and one that failed, carries a buffer.
                if let Some(lent) = completion.buffer.take() {
                    self.buffers.borrow_mut().recycle(lent);
                }
            }
            Kind::Installed => self.installed(known(), result),
            Kind::Writable | Kind::Hangup | Kind::Moved => {
                let Some(id) = known() else { return };
                self.step(id, "the state of a connection", || match kind {
                    Kind::Writable => self.writable(id),
                    Kind::Hangup => self.hung_up(id, result, completion.more),
                    _ => self.moved(id, result),
                });
            }
            Kind::Send | Kind::Ignored => {}
        }
    }

    fn accepted(&self, number: u32, result: i32) {
        let Some((listener, peer)) = self.ring.borrow_mut().accepted(number) else { return };
        let exhausted = matches!(-result, libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS);
        if exhausted {
            self.counters.refused.add(1);
            let mut work = self.work.borrow_mut();
            // It would fail again at once: the next tick tries. It is said once, until one succeeds.
            if !mem::replace(&mut work.exhausted, true) {
                let error = io::Error::from_raw_os_error(-result);
                tracing::warn!("core {}: clients wait, accepts fail: {error}", self.index);
            }
            return work.resting.push(listener);
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
        let target = self.accepted_target(result as u32);
        if self.stop_at.get().is_some() {
            // It was told nothing, and may try another server.
            return self.queue(|ring| ring.close(target));
        }
        if mem::take(&mut self.work.borrow_mut().exhausted) {
            tracing::warn!("core {}: accepts succeed again", self.index);
        }
        let full = self.is_full() || self.is_short_of_memory();
        let id = self.admit(target, peer, listener);
        self.give_place(id, full);
        self.counters.accepted.add(1);
        self.arm_receive(id);
        self.step(id, "a new connection", || self.begin(id));
    }

    /// What an accept has given: a slot of the ring's table, or a descriptor.
    pub(super) fn accepted_target(&self, number: u32) -> Target {
        if self.direct { Target::Direct(number) } else { Target::Normal(number as RawFd) }
    }

    fn received(&self, id: ConnectionId, completion: &mut Completion) {
        let result = completion.result;
        if let (Some(lent), true) = (&completion.buffer, result > 0) {
            self.counters.receives.add(1);
            self.counters.received_bytes.add(result as usize);
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
                self.counters.buffers_exhausted.add(1);
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
        let Some(connection) = connections.get_mut(id) else { return false };
        mem::replace(&mut connection.receive, Receive::Idle) == Receive::Stopping
    }

    fn arm_again(&self, id: ConnectionId, stopping: bool) {
        if stopping {
            self.receive_stopped(id);
        } else {
            self.arm_receive(id);
        }
    }

    pub(super) fn receive_stopped(&self, id: ConnectionId) {
        // One that is to leave for another core looks whether it can: see `close_ready`.
        self.work.borrow_mut().closing.push(id);
    }

    /// Arms a receive at the end of the turn, unless it is not wanted any more by then.
    pub(super) fn want_receive(&self, id: ConnectionId) {
        let mut connections = self.connections.borrow_mut();
        let Some(connection) = connections.get_mut(id) else { return };
        connection.receive = Receive::Wanted;
        self.work.borrow_mut().wanted.push(id);
    }

    /// Takes bytes from a socket.
    pub(super) fn feed(&self, id: ConnectionId, bytes: &mut [u8]) {
        #[cfg(feature = "tls")]
        if self.decrypts(id) {
            return self.receive_secure(id, bytes);
        }
        self.deliver(id, bytes);
    }

    /// Hands bytes to whoever is to have them.
    pub(super) fn deliver(&self, id: ConnectionId, bytes: &mut [u8]) {
        let mut connections = self.connections.borrow_mut();
        let Some(connection) = connections.get_mut(id) else { return };
        match (&mut connection.phase, &mut connection.moving) {
            (Phase::Open, _) => {
                drop(connections);
                if let Some(service) = self.service() {
                    service.received(id, bytes);
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
                    self.work.borrow_mut().closing.push(id);
                }
            }
            _ => {}
        }
    }

    /// A connection ended by itself.
    pub(super) fn end(&self, id: ConnectionId, why: Ended) {
        let Some(phase) = self.connection(id).map(|connection| connection.phase) else { return };
        match phase {
            Phase::Open => {
                if let Some(service) = self.service() {
                    guarded("the end of a connection", || service.ended(id, why));
                }
                // A peer that has closed its side may still read what it is owed.
                if why == Ended::Eof && self.owed_bytes(id) > 0 {
                    self.close(id);
                } else {
                    self.remove(id);
                }
            }
            // What is owed still leaves; a dead peer is noticed by the send.
            Phase::Closing { .. } if why == Ended::Eof => {}
            Phase::Departed => {}
            Phase::Preface { .. }
            | Phase::Closing { .. }
            | Phase::Lingering { .. }
            | Phase::Moving { .. } => self.remove(id),
        }
    }

    fn writable(&self, id: ConnectionId) {
        let mut connections = self.connections.borrow_mut();
        let Some(connection) = connections.get_mut(id) else { return };
        connection.polled = false;
        self.work.borrow_mut().writable.push(connection.outlet);
    }

    fn run_tasks(&self, scratch: &mut Scratch) -> io::Result<()> {
        if scratch.tasks.is_empty() {
            self.shared.mesh.take(self.index, &mut scratch.mail);
            scratch.tasks.extend(scratch.mail.drain());
        }
        let begun = Instant::now();
        for done in 1.. {
            let Some(task) = scratch.tasks.pop_front() else { break };
            guarded("a task of another thread", || task.run());
            self.counters.tasks.add(1);
            self.flush_much(scratch)?;
            if done % TASKS_BETWEEN_LOOKS == 0 && begun.elapsed() >= self.send_slice {
                break;
            }
        }
        if !scratch.tasks.is_empty() {
            self.bell.ring();
        }
        Ok(())
    }

    /// Sends in the middle of a turn once much is owed: the limit of a client counts what waits for it, and
    /// one that takes everything at once must not go over it because nothing was sent meanwhile.
    pub(super) fn flush_much(&self, scratch: &mut Scratch) -> io::Result<()> {
        let much = self.outlets.borrow().batch.is_large();
        if much {
            self.deliver_tasks();
            return self.flush_all(scratch);
        }
        Ok(())
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
        self.watch_memory(now);
        self.outlets.borrow_mut().tick(self.stall_timeout.get(), self.is_short_of_memory());
        if let Some(service) = self.service() {
            guarded("timers", || service.tick(now));
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
        let patience = Millis::try_from(self.shutdown_timeout.as_millis()).unwrap_or(Millis::MAX);
        self.stop_at.set(Some(now.saturating_add(patience)));
        self.queue(Ring::cancel_accepts);
        self.drop_prefaces();
        if let Some(service) = self.service() {
            guarded("the shutdown", || service.shutdown());
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
        for (id, connection) in connections.iter() {
            if let Phase::Closing { deadline, .. }
            | Phase::Lingering { deadline, .. }
            | Phase::Preface { deadline }
            | Phase::Moving { deadline } = connection.phase
            {
                work.deadlines = true;
                if deadline.is_over(now) {
                    work.closing.push(id);
                }
            }
        }
    }

    /// Goes on with connections that wait for what they are owed to leave, before they close or move.
    fn close_ready(&self, now: Millis) {
        let closing = mem::take(&mut self.work.borrow_mut().closing);
        for id in closing {
            self.step(id, "the end of a connection", || self.close_if_ready(id, now));
        }
    }

    fn close_if_ready(&self, id: ConnectionId, now: Millis) {
        let known =
            self.connection(id).map(|connection| (connection.phase, connection.outlet, connection.receive));
        let Some((phase, outlet, receive)) = known else { return };
        let (owed, done) = {
            let outlets = self.outlets.borrow();
            (outlets.owed(outlet) != Owed::NOTHING, outlets.waiting(outlet) == 0)
        };
        #[cfg(feature = "tls")]
        if matches!(phase, Phase::Closing { deadline, .. } if done && !deadline.is_over(now))
            && self.finish_secure(id)
        {
            return;
        }
        match phase {
            Phase::Closing { deadline, linger: true } if done && !deadline.is_over(now) => {
                self.begin_linger(id, now);
            }
            Phase::Closing { .. } if done => self.remove(id),
            Phase::Moving { .. } if done && receive == Receive::Idle => self.depart(id),
            Phase::Closing { deadline, .. }
            | Phase::Lingering { deadline, .. }
            | Phase::Preface { deadline }
            | Phase::Moving { deadline }
                if deadline.is_over(now) =>
            {
                self.remove(id);
            }
            // A backlog that empties says so; what the next turn sends does not.
            Phase::Closing { .. } | Phase::Moving { .. } if owed => {
                self.work.borrow_mut().closing.push(id);
            }
            _ => {}
        }
    }

    fn begin_linger(&self, id: ConnectionId, now: Millis) {
        let mut connections = self.connections.borrow_mut();
        let Some(connection) = connections.get_mut(id) else { return };
        let deadline = Deadline::after(now, limits::LINGER);
        connection.phase = Phase::Lingering { deadline, bytes: limits::LINGER_BYTES };
        self.work.borrow_mut().deadlines = true;
        if connection.receive == Receive::Ended
            && let Some(tag) = connection.stop_receive(id)
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
                self.queue(|ring| ring.install(file, id.tag(Kind::Installed)));
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
                self.remove(id);
            }
            return;
        }
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(result) };
        let departed = known.filter(|id| self.connection(*id).is_some_and(|c| c.phase == Phase::Departed));
        if let Some(id) = departed {
            shut_down(fd.as_raw_fd(), libc::SHUT_RDWR);
            return self.remove(id);
        }
        shut_down(fd.as_raw_fd(), libc::SHUT_WR);
    }

    /// Arms what could not be armed before: receives that found no buffer (all buffers are back by now),
    /// and accepts, never more than places are free, the reserve included. Only a listener that has none
    /// armed gets one while any slot is free, or listeners that nobody comes to would keep the last slots
    /// from those that are used. So there may be one connection too many for each listener but one;
    /// descriptors are spared for them.
    fn rearm(&self) {
        let wanted = mem::take(&mut self.work.borrow_mut().wanted);
        for id in wanted {
            let wanted = self.connection(id).is_some_and(|c| c.receive == Receive::Wanted);
            if wanted {
                self.arm_receive(id);
            }
        }
        if self.is_stopping() {
            return;
        }
        self.look_at_places();
        self.clear_reserve(self.now());
        let mut work = self.work.borrow_mut();
        let free = self.free_places();
        // Each listener may keep one while there is any place.
        let most = if free == 0 { 0 } else { free.max(self.listeners.borrow().len()) };
        if self.ring.borrow().accepts_armed() > most {
            // Others have taken places that accepts wait for. As many as fit are armed anew.
            self.queue(Ring::cancel_accepts);
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
}

/// Tasks that are run before it is looked how long that has taken.
const TASKS_BETWEEN_LOOKS: usize = 16;

fn shut_down(fd: RawFd, how: i32) {
    // SAFETY: no memory is involved; a descriptor that is not a connected socket gets an error back.
    unsafe { libc::shutdown(fd, how) };
}

#[cfg(test)]
mod tests;
