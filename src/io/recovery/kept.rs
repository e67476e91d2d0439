//! Sessions that an adapter keeps beyond this process: what it is told of them, and asked for.
//!
//! A client that comes to a server of which none of the cores knows it may have been another server's. The
//! adapter has what that server has told of its session, and all packets in one order. It answers in step
//! with what it brings in; the rooms of the session are announced there and then, so that each packet behind
//! those that the answer lists finds the client's core, behind the answer.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::restore::{Arrival, Recovery};
use super::sessions::{Lineage, Moved};
use super::{Offset, Pid, State};
use crate::fanout::{Frame, RoomKey, Space, Task};
use crate::io::broadcast::{Announced, Scope};
use crate::io::namespace::{ALL, NspInner, escape, unescape};
use crate::io::{Handle, KeptPacket, RestoreAnswer, RestoredSession, Session, Socket, SocketId};
use crate::limits;
use crate::time::Millis;

/// The longest name of a packet that an adapter is asked about: more than any broker's names have. Clients
/// may say anything.
const OFFSET_BYTES_MAX: usize = 256;

/// Where the directory says on which core a session is that is not where it began.
pub(super) fn pids(scope: &Scope) -> Space {
    // A namespace's own space begins with its path: clients may choose its name, NUL included, and no name
    // may lead to the private ids of another namespace.
    scope.shared.directory.space(&format!("\0pids{}\0{}", scope.path, scope.nsp))
}

/// Sockets about which the adapter was asked, by slot.
#[derive(Debug, Default)]
pub(super) struct Asked(HashMap<u32, Question, RandomState>);

#[derive(Clone, Copy, Debug)]
struct Question {
    generation: u32,
    pid: Pid,
    offset: Offset,
    deadline: Millis,
}

impl Asked {
    pub(super) fn remove(&mut self, slot: u32) {
        self.0.remove(&slot);
    }

    /// Whether an answer about a socket is awaited still; it is no more.
    fn take(&mut self, socket: Socket) -> bool {
        let awaited = self.0.get(&socket.slot).is_some_and(|asked| asked.generation == socket.generation);
        if awaited {
            self.0.remove(&socket.slot);
        }
        awaited
    }
}

impl NspInner {
    /// Offers a session to the adapter whose client is gone.
    pub(super) fn persist(&self, recovery: &Recovery, pid: Pid) {
        let Some(keeper) = self.scope.registry.keeper() else { return };
        let (session, window) = {
            let sessions = recovery.sessions.borrow();
            let Some(state) = sessions.parked_state(pid) else { return };
            let rooms = state.rooms.iter().filter(|room| ***room != *ALL);
            let session = Session {
                pid: pid.to_string(),
                sid: state.id.to_string(),
                rooms: rooms.map(|room| unescape(room).to_owned()).collect(),
                data: state.data.clone(),
            };
            (session, sessions.window())
        };
        keeper.persist_session(&self.scope.nsp, session, Duration::from_millis(window));
    }

    /// A session is not to be had any more.
    pub(super) fn forget_kept(&self, pid: Pid) {
        if let Some(keeper) = self.scope.registry.keeper() {
            keeper.forget_session(&self.scope.nsp, &pid.to_string());
        }
    }

    /// Asks the adapter for a session that no core knows; whether it was asked.
    pub(super) fn ask_adapter(&self, recovery: &Recovery, socket: Socket, pid: Pid, offset: Offset) -> bool {
        let Some(keeper) = self.scope.registry.keeper() else { return false };
        let text = self.with(socket, |entry| Some(entry.auth().get("offset")?.as_str()?.to_owned()));
        let Some(Some(text)) = text else { return false };
        if text.len() > OFFSET_BYTES_MAX {
            return false;
        }
        {
            let mut asked = recovery.asked.borrow_mut();
            if asked.0.len() >= limits::RESTORES_MAX {
                tracing::debug!("too many clients wait for their sessions: one is a new one");
                return false;
            }
            let deadline = self.core.now().saturating_add(limits::RESTORE.as_millis() as Millis);
            let question = Question { generation: socket.generation, pid, offset, deadline };
            asked.0.insert(socket.slot, question);
        }
        let asking = Asking {
            scope: self.scope.clone(),
            pids: recovery.pids.number(),
            core: self.core.index(),
            slot: socket.slot,
            generation: socket.generation,
            pid,
            offset,
            arrival: None,
        };
        let answer: RestoreAnswer = Box::new(move |restored| asking.answer(restored));
        keeper.restore_session(&self.scope.nsp, &pid.to_string(), &text, answer);
        true
    }

    /// Those for whom the adapter has no answer in time are new ones.
    pub(super) fn give_up_asking(self: &Rc<Self>, recovery: &Recovery) {
        let now = self.core.now();
        let due: Vec<(u32, Question)> =
            recovery.asked.borrow_mut().0.extract_if(|_, asked| asked.deadline <= now).collect();
        for (slot, Question { generation, pid, offset, .. }) in due {
            tracing::debug!("the adapter does not answer: a client that wanted to come back is a new one");
            self.let_in(recovery, self.socket(slot, generation), pid, offset);
        }
    }

    /// On the core of a client: the adapter has its session, or has not.
    fn restored(self: &Rc<Self>, socket: Socket, pid: Pid, offset: Offset, arrival: Option<Arrival>) {
        let Some(recovery) = &self.recovery else { return };
        let found = arrival.is_some();
        let end = recovery.sessions.borrow().end();
        self.adopt(arrival.map(|arrival| arrival.continued_at(end)));
        if recovery.asked.borrow_mut().take(socket) && self.is_connecting(socket) {
            self.let_in(recovery, socket, pid, offset);
        } else if found {
            // Its client has gone, or was told already that it is a new one. The former may come again.
            self.persist(recovery, pid);
        }
    }
}

impl Arrival {
    /// What comes behind what it brings stands in this core's log from a place on.
    fn continued_at(mut self, place: u64) -> Self {
        if let Some(moved) = &mut self.moved {
            moved.continued_at(place);
        }
        self
    }
}

/// What the adapter is asked for. Answered when it is dropped, wherever that is.
struct Asking {
    scope: Arc<Scope>,
    pids: u32,
    core: usize,
    slot: u32,
    generation: u32,
    pid: Pid,
    offset: Offset,
    arrival: Option<Arrival>,
}

impl Asking {
    fn answer(mut self, restored: Option<RestoredSession>) {
        self.arrival = restored.and_then(|restored| self.arrives(restored));
    }

    /// A session has come from beyond the process. On the adapter's thread, between two packets: whoever
    /// looks for the session's rooms from now on finds this core.
    fn arrives(&self, restored: RestoredSession) -> Option<Arrival> {
        let RestoredSession { session, missed } = restored;
        let mut before = Vec::with_capacity(missed.len());
        for KeptPacket { offset, args } in missed {
            let frame: Frame = self.scope.kept_event(args, &offset, None).ok()?;
            before.push((Offset::of(&offset), frame));
        }
        let own = session.rooms.iter().map(|room| escape(room).into_owned().into());
        let rooms: Vec<Box<str>> = own.chain([ALL.into()]).collect();
        let directory = &self.scope.shared.directory;
        let space = self.scope.space.number();
        let announce = |room: &str| {
            let moment = directory.announce(RoomKey { space, room }, self.core);
            Announced { room: room.to_owned(), core: self.core, moment }
        };
        let announced: Vec<Announced> = rooms.iter().map(|room| announce(room)).collect();
        if self.core != self.pid.core() {
            directory.enter(RoomKey { space: self.pids, room: &self.pid.to_string() }, self.core);
        }
        let state = State { id: SocketId::of_text(&session.sid), rooms, data: session.data };
        let moment = announced.first().map(|first| first.moment).unwrap_or_default();
        let lineage = Lineage::kept(self.offset, before, moment);
        let moved = Some(Moved { pid: self.pid, state, lineage });
        Some(Arrival { scope: self.scope.clone(), core: self.core, pids: self.pids, moved, announced })
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let Self { slot, generation, pid, offset, core, .. } = *self;
        let (scope, arrival) = (self.scope.clone(), self.arrival.take());
        let answer = move || {
            if let Some(nsp) = scope.on_this_core() {
                nsp.restored(nsp.socket(slot, generation), pid, offset, arrival);
            }
        };
        if self.scope.shared.mesh.post(core, Task::new(answer)).is_err() {
            tracing::debug!("a core is stuck: a client that wanted to come back to it cannot");
        }
    }
}

impl Handle {
    /// A client has come to another server whose session may be here: if it has a socket still, whose
    /// connection has ended without anybody noticing, the socket leaves, and its session is offered to the
    /// adapter. `done` is called behind that, on any thread, in any case.
    pub fn end_stale_session(&self, pid: &str, done: impl FnOnce() + Send + 'static) {
        let done = Done(Some(done));
        self.at_session(pid, move |nsp, pid| {
            if let Some(recovery) = &nsp.recovery {
                nsp.end_stale(recovery, pid);
            }
            drop(done);
        });
    }

    /// The session of a client is another server's now: here nobody waits for it any more.
    pub fn release_session(&self, pid: &str) {
        self.at_session(pid, |nsp, pid| {
            let Some(recovery) = &nsp.recovery else { return };
            let parked = recovery.sessions.borrow_mut().drop_parked(pid);
            if let Some(state) = parked {
                nsp.release(&state.rooms);
                nsp.forget_pid(recovery, pid);
                nsp.tidy();
            }
        });
    }

    /// Does something on the core where a session is, if it is in this process.
    fn at_session(&self, pid: &str, act: impl FnOnce(&Rc<NspInner>, Pid) + Send + 'static) {
        let scope = self.scope().clone();
        let Some(pid) = Pid::parse(pid) else { return };
        let space = pids(&scope);
        let key = RoomKey { space: space.number(), room: &pid.to_string() };
        let core = scope.shared.directory.cores(key).iter().next().unwrap_or(pid.core());
        let shared = scope.shared.clone();
        let task = Task::new(move || {
            if let Some(nsp) = scope.on_this_core() {
                act(&nsp, pid);
            }
        });
        if core < shared.mesh.cores() && shared.mesh.post(core, task).is_err() {
            tracing::debug!("a core is stuck: a session that was there cannot be told of its client");
        }
    }
}

/// Calls back when it is dropped, whether the task that had it was carried out or not.
struct Done<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for Done<F> {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done();
        }
    }
}
