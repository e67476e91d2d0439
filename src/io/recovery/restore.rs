//! How a socket goes and comes back, on this core or on another.
//!
//! The way of a session from core X to core Y, so that nothing is lost and nothing comes twice:
//!
//! 1. Y notes where its log ends and asks X.
//! 2. X announces the session's rooms for Y. Whoever looks cores up from this moment on finds Y.
//! 3. X waits until both cores have everything that was looked up before:
//!    [`Core::fence`](crate::runtime::Core).
//! 4. X gives the session away, with what it has missed and what was emitted before the moment of the
//!    announcement.
//! 5. Y holds the session's rooms. Its log has what was emitted since that moment.
//!
//! From there on it is a session of Y, which its client may resume, now or later.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::kept::Asked;
use super::sessions::Moved;
use super::{Audience, Emitted, ExpiredSession, Offset, Pid, Sessions, State};
use crate::fanout::{Frame, Moment, RoomKey, Space, Task};
use crate::io::broadcast::{Announced, Scope, arrived};
use crate::io::namespace::{ALL, Identity, NspInner};
use crate::io::{ConnectionStateRecovery, DisconnectReason, Socket, SocketId};
use crate::limits;
use crate::protocol::sio::Value;
use crate::runtime;
use crate::time::Millis;

type OnExpired = Rc<dyn Fn(&ExpiredSession)>;

/// Recovery in one namespace of this core.
pub(in crate::io) struct Recovery {
    pub(super) sessions: RefCell<Sessions>,
    /// Sockets whose middlewares run, and as whom they want to come back.
    waiting: RefCell<HashMap<u32, (Pid, Offset), RandomState>>,
    /// Sockets about which the adapter was asked.
    pub(super) asked: RefCell<Asked>,
    /// The directory says here where a session is that has left the core on which it began.
    pub(super) pids: Space,
    skip_middlewares: bool,
    on_expired: RefCell<Vec<OnExpired>>,
}

impl fmt::Debug for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recovery").finish_non_exhaustive()
    }
}

impl Recovery {
    pub(in crate::io) fn new(scope: &Scope, options: &ConnectionStateRecovery, sessions: Sessions) -> Self {
        Self {
            sessions: RefCell::new(sessions),
            waiting: RefCell::default(),
            asked: RefCell::default(),
            pids: super::kept::pids(scope),
            skip_middlewares: options.skip_middlewares,
            on_expired: RefCell::default(),
        }
    }

    pub(in crate::io) fn on_expired(&self, handler: impl Fn(&ExpiredSession) + 'static) {
        self.on_expired.borrow_mut().push(Rc::new(handler));
    }

    pub(in crate::io) fn emitted(&self, packet: Emitted) {
        self.sessions.borrow_mut().emitted(packet);
    }

    /// The offset of the last packet that was logged here, or of the beginning.
    pub(in crate::io) fn last_offset(&self) -> Option<Offset> {
        self.sessions.borrow_mut().last_offset()
    }

    /// The last packet that was logged here, if it is there still.
    pub(in crate::io) fn last_packet(&self) -> Option<Frame> {
        self.sessions.borrow().last_packet()
    }

    /// Since when broadcasts find a room here for the sake of sockets that are gone.
    pub(in crate::io) fn held(&self, room: &str) -> Option<Moment> {
        self.sessions.borrow().held(room)
    }

    /// A socket that is not let in wants nothing any more.
    pub(in crate::io) fn forget(&self, slot: u32) {
        self.waiting.borrow_mut().remove(&slot);
        self.asked.borrow_mut().remove(slot);
    }

    /// Whether somebody may come back.
    pub(in crate::io) fn is_awaiting(&self) -> bool {
        self.sessions.borrow().parked() > 0
    }

    fn pid_key<'a>(&self, pid: &'a str) -> RoomKey<'a> {
        RoomKey { space: self.pids.number(), room: pid }
    }
}

/// What a client says of itself that wants to come back.
pub(in crate::io) fn claim(auth: Option<&Value>) -> Option<(Pid, Offset)> {
    let text = |name: &str| auth?.get(name)?.as_str();
    Some((Pid::parse(text("pid")?)?, Offset::of(text("offset")?)))
}

impl NspInner {
    /// A packet was emitted to one socket of this core.
    pub(in crate::io) fn keep_own(&self, offset: Offset, id: &SocketId, frame: &Frame) {
        let Some(recovery) = &self.recovery else { return };
        let audience = Audience { rooms: [id.to_string().into()].into(), ..Audience::default() };
        let moment = self.core.shared().directory.now();
        let (frame, at) = (frame.clone(), self.core.now());
        recovery.emitted(Emitted { offset, audience, frame, moment, at });
    }

    /// A socket is in: its session begins. The private id, for its client.
    pub(in crate::io) fn begin_session(&self, slot: u32, random: [u8; 12]) -> Option<Pid> {
        let recovery = self.recovery.as_ref()?;
        let pid = Pid::from_parts(random, self.core.index() as u8, slot);
        recovery.sessions.borrow_mut().begin(slot, pid);
        Some(pid)
    }

    /// A socket leaves. Before it leaves its rooms: it may come back to them.
    pub(in crate::io) fn leave_session(&self, socket: Socket, reason: DisconnectReason) {
        let Some(recovery) = &self.recovery else { return };
        if !super::is_recoverable(reason) {
            let ended = recovery.sessions.borrow_mut().end_of(socket.slot);
            return ended.into_iter().for_each(|pid| self.forget_pid(recovery, pid));
        }
        let Some(Identity { id, own, data }) = self.identity(socket) else { return };
        let mut data_value = Value::Null;
        if let Some(data) = data {
            // A user's `Serialize` that panics must not keep the socket in its rooms.
            runtime::guarded("the writing of a socket's data", || data_value = data.to_value());
        }
        let parked = {
            let rooms = self.rooms.borrow();
            let mut names: Vec<Box<str>> = rooms.of(socket.slot).map(Into::into).collect();
            if let Some(own) = own {
                // From now on nobody here has this id, so that only the directory leads here.
                self.core.shared().directory.enter(self.room_key(&own), self.core.index());
                names.push(own.into());
            }
            let state = State { id, rooms: names, data: data_value };
            let born = |room: &str| rooms.born(room).unwrap_or_default();
            recovery.sessions.borrow_mut().park(self.core.now(), socket.slot, state, born)
        };
        parked.into_iter().for_each(|pid| self.persist(recovery, pid));
    }

    /// Those who have been gone for too long are gone.
    pub(in crate::io) fn expire_sessions(self: &Rc<Self>) {
        let Some(recovery) = &self.recovery else { return };
        self.give_up_asking(recovery);
        loop {
            let expired = recovery.sessions.borrow_mut().expire(self.core.now());
            let Some((pid, state)) = expired else { break };
            self.give_up(recovery, pid, state);
        }
    }

    /// When the time of the one is over that has been gone for longest.
    pub(in crate::io) fn oldest_session(&self) -> Option<Millis> {
        self.recovery.as_ref()?.sessions.borrow_mut().oldest()
    }

    /// Gives the one up that has been gone for longest.
    pub(in crate::io) fn give_up_oldest_session(self: &Rc<Self>) {
        let Some(recovery) = &self.recovery else { return };
        let oldest = recovery.sessions.borrow_mut().give_up_oldest();
        if let Some((pid, state)) = oldest {
            self.give_up(recovery, pid, state);
        }
    }

    fn give_up(self: &Rc<Self>, recovery: &Recovery, pid: Pid, state: State) {
        self.release(&state.rooms);
        self.forget_pid(recovery, pid);
        self.forget_kept(pid);
        let handlers = recovery.on_expired.borrow().clone();
        if !handlers.is_empty() {
            let rooms = state.rooms.iter().filter(|room| ***room != *ALL).map(|room| room.to_string());
            let expired = ExpiredSession { id: state.id, rooms: rooms.collect(), data: state.data };
            for handler in handlers {
                runtime::guarded("a handler of on_session_expired", || handler(&expired));
            }
        }
        self.tidy();
    }

    /// The namespace ends: nobody comes back to it.
    pub(in crate::io) fn retire_sessions(&self) {
        let Some(recovery) = &self.recovery else { return };
        recovery.on_expired.take();
        for (pid, state) in recovery.sessions.borrow_mut().take_all() {
            self.forget_pid(recovery, pid);
            for room in state.iter().flat_map(|state| &state.rooms) {
                self.core.shared().directory.exit(self.room_key(room), self.core.index());
            }
        }
    }

    /// A new socket wants to be one that was there: it is let in as that one, or as a new one.
    pub(in crate::io) fn recover(self: &Rc<Self>, socket: Socket, pid: Pid, offset: Offset) {
        let Some(recovery) = &self.recovery else { return self.run_middlewares(socket) };
        let directory = &self.core.shared().directory;
        let moved = directory.cores(recovery.pid_key(&pid.to_string()));
        let home = moved.iter().next().unwrap_or(pid.core());
        if home >= self.core.shared().mesh.cores() {
            return self.come_back(socket, pid, offset);
        }
        if home == self.core.index() {
            self.end_stale(recovery, pid);
            return self.come_back(socket, pid, offset);
        }
        let request = Request {
            scope: self.scope.clone(),
            core: self.core.index(),
            slot: socket.slot,
            generation: socket.generation,
            pid,
            offset,
            from: recovery.sessions.borrow().end(),
            known: false,
            arrival: None,
        };
        // Should it come to nothing anywhere, the request answers when it is dropped.
        let ask = move || {
            if let Some(nsp) = request.scope.on_this_core() {
                nsp.requested(request);
            }
        };
        self.core.post(home, Task::new(ask));
    }

    /// On the core of a session: another core has its client.
    fn requested(self: &Rc<Self>, mut request: Request) {
        let Some(recovery) = &self.recovery else { return };
        self.end_stale(recovery, request.pid);
        request.known = recovery.sessions.borrow().has(request.pid);
        if !self.may_catch_up(recovery, request.pid, request.offset) {
            return;
        }
        let rooms = recovery.sessions.borrow().rooms(request.pid, request.offset);
        let Some(rooms) = rooms else { return };
        let directory = &self.core.shared().directory;
        let announce = |room: Box<str>| {
            let moment = directory.announce(self.room_key(&room), request.core);
            Announced { room: room.into(), core: request.core, moment }
        };
        let announced: Vec<Announced> = rooms.into_iter().map(announce).collect();
        let moment = directory.now();
        self.core.fence(request.core, move |whole| match request.scope.on_this_core() {
            Some(nsp) if whole => nsp.send_session(request, moment, announced),
            _ => arrived(&request.scope, &announced, |_| true),
        });
    }

    fn send_session(&self, mut request: Request, moment: Moment, announced: Vec<Announced>) {
        let Some(recovery) = &self.recovery else { return };
        let Request { pid, offset, from, core, .. } = request;
        let moved = recovery.sessions.borrow_mut().depart(pid, offset, from, moment);
        let Some(moved) = moved else { return arrived(&self.scope, &announced, |_| true) };
        let (directory, name) = (&self.core.shared().directory, pid.to_string());
        if core != pid.core() {
            directory.enter(recovery.pid_key(&name), core);
        }
        directory.exit(recovery.pid_key(&name), self.core.index());
        self.release(&moved.state.rooms);
        let pids = recovery.pids.number();
        request.arrival =
            Some(Arrival { scope: self.scope.clone(), core, pids, moved: Some(moved), announced });
    }

    /// On the core of a client: its session has come, or does not come.
    fn answered(self: &Rc<Self>, socket: Socket, pid: Pid, offset: Offset, arrival: Option<Arrival>) {
        self.adopt(arrival);
        if self.is_connecting(socket) {
            self.come_back(socket, pid, offset);
        }
    }

    pub(super) fn adopt(&self, arrival: Option<Arrival>) {
        let Some(recovery) = &self.recovery else { return };
        let Some(mut arrival) = arrival else { return };
        let room = |moved: &mut Moved| recovery.sessions.borrow_mut().make_room(moved);
        if let Some(moved) = arrival.moved.take_if(room) {
            let rooms = self.rooms.borrow();
            let born = |room: &str| {
                let enter = || self.core.shared().directory.enter(self.room_key(room), self.core.index());
                rooms.born(room).unwrap_or_else(enter)
            };
            recovery.sessions.borrow_mut().adopt(self.core.now(), moved, born);
        }
    }

    /// The session is here, if it is anywhere in this process.
    fn come_back(self: &Rc<Self>, socket: Socket, pid: Pid, offset: Offset) {
        let Some(recovery) = &self.recovery else { return self.run_middlewares(socket) };
        // Handlers that were told of the end of its earlier connection may have let it go.
        if !self.is_connecting(socket) {
            return;
        }
        let elsewhere = !recovery.sessions.borrow().has(pid);
        if !(elsewhere && self.ask_adapter(recovery, socket, pid, offset)) {
            self.let_in(recovery, socket, pid, offset);
        }
    }

    /// As whom it was, if that is known, or as a new one.
    pub(super) fn let_in(self: &Rc<Self>, recovery: &Recovery, socket: Socket, pid: Pid, offset: Offset) {
        let known = recovery.sessions.borrow().rooms(pid, offset).is_some();
        if known {
            recovery.waiting.borrow_mut().insert(socket.slot, (pid, offset));
            self.with(socket, |entry| entry.recovered = true);
        }
        if known && recovery.skip_middlewares { self.accept(socket) } else { self.run_middlewares(socket) }
    }

    /// Lets a socket in as the one that it was, if it was one: `None` otherwise. It is told in this order
    /// what it has missed, and that it is connected; the official clients keep the one for the other.
    pub(in crate::io) fn accept_recovered(&self, socket: Socket) -> Option<()> {
        let recovery = self.recovery.as_ref()?;
        let (pid, offset) = recovery.waiting.borrow_mut().remove(&socket.slot)?;
        let missed = recovery.sessions.borrow().missed(pid, offset, Moment::LAST)?;
        if !self.may_catch_up(recovery, pid, offset) {
            return None;
        }
        let state = recovery.sessions.borrow_mut().resume(pid, socket.slot)?;
        self.forget_kept(pid);
        let outlet = self.assume(socket, &state)?;
        for room in &state.rooms {
            self.join_room(socket, outlet, room);
        }
        self.release(&state.rooms);
        for (_, frame) in missed {
            let _ = self.send(socket, &frame);
        }
        let answer = self.scope.connect(&state.id.to_string(), Some(&pid.to_string()));
        let _ = answer.map(|answer| self.send(socket, &answer));
        Some(())
    }

    /// Whether what a client has missed may wait for it: it takes it all at once.
    fn may_catch_up(&self, recovery: &Recovery, pid: Pid, offset: Offset) -> bool {
        let missed = recovery.sessions.borrow().missed(pid, offset, Moment::LAST);
        // As it will weigh against the client's limit.
        let weight = |(_, frame): &(Offset, Frame)| frame.wire().len() + limits::FRAME_COST_BYTES;
        let bytes: usize = missed.iter().flatten().map(weight).sum();
        let may = bytes <= self.core.backpressure_bytes() / 2;
        if !may {
            tracing::debug!("a client has missed {bytes} bytes, more than may wait for it: it is a new one");
        }
        may
    }

    /// The connection of a client that is here again has ended, only that nobody has noticed.
    pub(super) fn end_stale(self: &Rc<Self>, recovery: &Recovery, pid: Pid) {
        let slot = recovery.sessions.borrow().live(pid);
        let Some(stale) = slot.and_then(|slot| self.socket_at(slot)) else { return };
        let conn = stale.conn();
        self.drop_client(stale);
        self.leave(stale, DisconnectReason::TransportClose, "the client has come back");
        conn.into_iter().for_each(crate::engine::Socket::close);
    }

    /// Sessions that were in rooms hold them no more.
    pub(super) fn release(&self, rooms: &[Box<str>]) {
        let Some(recovery) = &self.recovery else { return };
        for room in rooms {
            let free = recovery.sessions.borrow_mut().release(room);
            if free && self.rooms.borrow().members(room).is_empty() {
                self.core.shared().directory.exit(self.room_key(room), self.core.index());
            }
        }
    }

    pub(super) fn forget_pid(&self, recovery: &Recovery, pid: Pid) {
        if pid.core() != self.core.index() {
            let directory = &self.core.shared().directory;
            directory.exit(recovery.pid_key(&pid.to_string()), self.core.index());
        }
    }
}

/// A session on its way to a core, and the joins that were announced for it there. They have arrived when it
/// is dropped; and if nobody has taken the session, it is lost, and known there no more.
pub(super) struct Arrival {
    pub(super) scope: Arc<Scope>,
    pub(super) core: usize,
    /// The number of the space of private ids.
    pub(super) pids: u32,
    pub(super) moved: Option<Moved>,
    pub(super) announced: Vec<Announced>,
}

impl Drop for Arrival {
    fn drop(&mut self) {
        arrived(&self.scope, &self.announced, |_| true);
        if let Some(lost) = self.moved.take() {
            let key = RoomKey { space: self.pids, room: &lost.pid.to_string() };
            self.scope.shared.directory.exit(key, self.core);
        }
    }
}

/// What a core asks of another for a socket whose client wants to come back. Answered when it is dropped,
/// wherever that is.
struct Request {
    scope: Arc<Scope>,
    /// The core of the socket, and the socket.
    core: usize,
    slot: u32,
    generation: u32,
    pid: Pid,
    offset: Offset,
    /// Where that core's log ended.
    from: u64,
    /// Whether the session is there, even if it cannot come.
    known: bool,
    arrival: Option<Arrival>,
}

impl Drop for Request {
    fn drop(&mut self) {
        let Self { slot, generation, pid, offset, known, .. } = *self;
        let (scope, arrival) = (self.scope.clone(), self.arrival.take());
        let answer = move || {
            let Some(nsp) = scope.on_this_core() else { return };
            let socket = nsp.socket(slot, generation);
            match &nsp.recovery {
                // Nobody else has it then.
                Some(recovery) if known && arrival.is_none() => {
                    if nsp.is_connecting(socket) {
                        nsp.let_in(recovery, socket, pid, offset);
                    }
                }
                _ => nsp.answered(socket, pid, offset, arrival),
            }
        };
        if self.scope.shared.mesh.post(self.core, Task::new(answer)).is_err() {
            tracing::debug!("a core is stuck: a client that wanted to come back to it cannot");
        }
    }
}
