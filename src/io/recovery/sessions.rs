//! Who may come back: the sessions of one namespace on one core.

use std::collections::VecDeque;
use std::rc::Rc;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};

use super::log::{Bounds, Counted, Emitted, Log, Usage, cost};
use super::{Offset, Pid};
use crate::fanout::{Frame, Key, Moment};
use crate::io::SocketId;
use crate::io::unfinished::weight;
use crate::protocol::sio::Value;
use crate::time::Millis;

/// What a socket was when its connection ended.
#[derive(Clone, Debug)]
pub(in crate::io) struct State {
    pub(in crate::io) id: SocketId,
    /// Its rooms as the tables know them, that of all sockets among them.
    pub(in crate::io) rooms: Vec<Box<str>>,
    pub(in crate::io) data: Value,
}

/// What a parked session costs beside the names of its rooms and its data.
const SESSION_BYTES: usize = 256;
/// What each of its rooms costs beside its name, which stands in two places.
const ROOM_BYTES: usize = 96;

impl State {
    fn bytes(&self) -> usize {
        let names = self.rooms.iter().map(|room| 2 * room.len() + ROOM_BYTES).sum::<usize>();
        SESSION_BYTES + names + weight(&self.data)
    }
}

/// Since when a core's log tells what a session was owed, and what that was before.
#[derive(Clone, Debug, Default)]
pub(in crate::io) struct Lineage {
    /// The last packet that it had received when it moved to this core.
    base: Option<Offset>,
    /// What it was owed behind that on the core where it was before.
    before: Vec<(Offset, Frame)>,
    /// The place in this core's log behind which the rest is found.
    from: u64,
    /// When broadcasts began to find it on this core. What was emitted before is in `before`.
    moment: Moment,
}

/// A session that has moved from another core.
#[derive(Clone, Debug)]
pub(in crate::io) struct Moved {
    pub(in crate::io) pid: Pid,
    pub(in crate::io) state: State,
    pub(in crate::io) lineage: Lineage,
}

#[derive(Debug)]
struct Session {
    whereabouts: Whereabouts,
    lineage: Lineage,
    /// What the packets from another core take.
    counted: Option<Counted>,
    /// When these are too old.
    trim_at: Option<Millis>,
}

#[derive(Debug)]
enum Whereabouts {
    /// The slot of its socket.
    Live(u32),
    Parked(Box<State>, Millis),
}

/// A room that a parked session is in.
#[derive(Debug)]
struct Held {
    sessions: usize,
    born: Moment,
}

/// Earlier ends that may stand in the queue beside those of parked sessions, before it is looked through.
const ENDS_SLACK: usize = 1024;

/// What is remembered for those who come back.
#[derive(Debug)]
pub(in crate::io) struct Sessions {
    log: Log,
    usage: Rc<Usage>,
    window: Millis,
    sessions: HashMap<Pid, Session, RandomState>,
    live: HashMap<u32, Pid, RandomState>,
    held: HashMap<Box<str>, Held, RandomState>,
    /// Parked sessions in the order of their ends, and some that have come back since.
    ends: VecDeque<(Millis, Pid)>,
    parked: usize,
    parked_bytes: usize,
    /// Live sessions with packets from another core, by the time at which these are too old.
    trims: VecDeque<(Millis, Pid)>,
    age: Millis,
}

impl Lineage {
    /// Of a session that was kept elsewhere: what it has missed up to now behind its last packet, and since
    /// when its rooms are found on this core.
    pub(super) fn kept(base: Offset, before: Vec<(Offset, Frame)>, moment: Moment) -> Self {
        Self { base: Some(base), before, from: 0, moment }
    }
}

impl Moved {
    fn bytes(&self) -> usize {
        self.lineage.before.iter().map(|(_, frame)| cost(frame)).sum()
    }

    /// The rest is found in this core's log, from a place on.
    pub(super) fn continued_at(&mut self, place: u64) {
        self.lineage.from = place;
    }
}

impl Sessions {
    pub(super) fn new(window: Millis, bounds: Bounds, usage: Rc<Usage>) -> Self {
        let (sessions, live, held, ends, trims) = Default::default();
        let (log, age) = (Log::new(bounds, usage.clone()), bounds.age);
        Self { log, usage, window, sessions, live, held, ends, parked: 0, parked_bytes: 0, trims, age }
    }

    /// A packet was emitted to sockets of this core.
    pub(in crate::io) fn emitted(&mut self, packet: Emitted) {
        self.log.push(packet);
    }

    /// The offset of the last packet, or of the beginning.
    pub(in crate::io) fn last_offset(&mut self) -> Option<Offset> {
        self.log.last_offset()
    }

    /// The last packet, if it is there still.
    pub(in crate::io) fn last_packet(&self) -> Option<Frame> {
        self.log.last_packet().cloned()
    }

    /// Where the next packet will stand.
    pub(in crate::io) fn end(&self) -> u64 {
        self.log.end()
    }

    /// A socket has a new session.
    pub(in crate::io) fn begin(&mut self, slot: u32, pid: Pid) {
        let lineage = Lineage { from: self.log.end(), ..Lineage::default() };
        self.sessions.insert(
            pid,
            Session { whereabouts: Whereabouts::Live(slot), lineage, counted: None, trim_at: None },
        );
        self.live.insert(slot, pid);
    }

    /// The socket of a session, if it is there still.
    pub(in crate::io) fn live(&self, pid: Pid) -> Option<u32> {
        match self.sessions.get(&pid)?.whereabouts {
            Whereabouts::Live(slot) => Some(slot),
            Whereabouts::Parked(..) => None,
        }
    }

    /// A socket is gone for good; whether it had a session.
    pub(in crate::io) fn end_of(&mut self, slot: u32) -> Option<Pid> {
        let pid = self.live.remove(&slot)?;
        self.sessions.remove(&pid);
        Some(pid)
    }

    /// A socket's connection has ended, and it may come back. `born` says since when broadcasts find each
    /// of its rooms on this core.
    pub(in crate::io) fn park(
        &mut self,
        now: Millis,
        slot: u32,
        state: State,
        born: impl Fn(&str) -> Moment,
    ) -> Option<Pid> {
        let pid = self.live.remove(&slot)?;
        self.hold(&state.rooms, born);
        let end = self.count_parked(now, pid, &state);
        if let Some(session) = self.sessions.get_mut(&pid) {
            session.whereabouts = Whereabouts::Parked(Box::new(state), end);
        }
        Some(pid)
    }

    /// Whether a session is here, whatever has become of it.
    pub(in crate::io) fn has(&self, pid: Pid) -> bool {
        self.sessions.contains_key(&pid)
    }

    /// What is parked of a session.
    pub(in crate::io) fn parked_state(&self, pid: Pid) -> Option<&State> {
        self.parked_session(pid).map(|(state, _)| state)
    }

    /// For how long a client may be gone.
    pub(in crate::io) fn window(&self) -> Millis {
        self.window
    }

    /// Whether there is room for what a session brings along; older packets go for it.
    pub(in crate::io) fn make_room(&mut self, moved: &Moved) -> bool {
        self.log.make_room(moved.bytes())
    }

    /// A session has come from another core, and there is [room](Self::make_room) for it.
    pub(in crate::io) fn adopt(&mut self, now: Millis, moved: Moved, born: impl Fn(&str) -> Moment) {
        let bytes = moved.bytes();
        let counted = (bytes > 0).then(|| Counted::new(&self.usage, bytes));
        let Moved { pid, state, lineage } = moved;
        self.hold(&state.rooms, born);
        let end = self.count_parked(now, pid, &state);
        let trim_at = (!lineage.before.is_empty()).then(|| now.saturating_add(self.age));
        if let Some(due) = trim_at {
            self.await_trim(due, pid);
        }
        let whereabouts = Whereabouts::Parked(Box::new(state), end);
        self.sessions.insert(pid, Session { whereabouts, lineage, counted, trim_at });
    }

    /// Since when broadcasts find a room on this core for the sake of parked sessions.
    pub(in crate::io) fn held(&self, room: &str) -> Option<Moment> {
        self.held.get(room).map(|held| held.born)
    }

    /// A parked session is in a room no more; whether it was the last.
    pub(in crate::io) fn release(&mut self, room: &str) -> bool {
        let Some(held) = self.held.get_mut(room) else { return false };
        held.sessions -= 1;
        let last = held.sessions == 0;
        if last {
            self.held.remove(room);
        }
        last
    }

    /// What a parked session has missed behind a packet, in order, as far as it was emitted before a moment.
    /// `None`: it is not parked here, or nobody knows any more.
    pub(in crate::io) fn missed(
        &self,
        pid: Pid,
        offset: Offset,
        until: Moment,
    ) -> Option<Vec<(Offset, Frame)>> {
        let (state, lineage) = self.parked_session(pid)?;
        let (before, from) = self.behind(lineage, offset)?;
        let rooms: HashSet<&str, RandomState> = state.rooms.iter().map(|room| &**room).collect();
        let here = self.log.since(from, lineage.moment..until, |room| rooms.contains(room));
        let here = here.map(|(offset, frame)| (offset, frame.clone()));
        Some(latest(before.iter().cloned().chain(here).collect()))
    }

    /// The rooms of a parked session whose client can be told what it has missed behind a packet.
    pub(in crate::io) fn rooms(&self, pid: Pid, offset: Offset) -> Option<Vec<Box<str>>> {
        let (state, lineage) = self.parked_session(pid)?;
        self.behind(lineage, offset).map(|_| state.rooms.clone())
    }

    /// How many sessions are parked.
    pub(in crate::io) fn parked(&self) -> usize {
        self.parked
    }

    /// Takes all sessions out, with what is parked of them, and forgets all packets.
    pub(in crate::io) fn take_all(&mut self) -> Vec<(Pid, Option<State>)> {
        let empty = Self::new(self.window, self.log.bounds(), self.usage.clone());
        let mut taken = std::mem::replace(self, empty);
        let state = |session: Session| match session.whereabouts {
            Whereabouts::Parked(state, _) => Some(*state),
            Whereabouts::Live(_) => None,
        };
        std::mem::take(&mut taken.sessions).into_iter().map(|(pid, session)| (pid, state(session))).collect()
    }

    fn parked_session(&self, pid: Pid) -> Option<(&State, &Lineage)> {
        match self.sessions.get(&pid)? {
            Session { whereabouts: Whereabouts::Parked(state, _), lineage, .. } => Some((state, lineage)),
            Session { whereabouts: Whereabouts::Live(_), .. } => None,
        }
    }

    /// What comes behind a packet: of that from another core, and from which place of the log on.
    fn behind<'a>(&self, lineage: &'a Lineage, offset: Offset) -> Option<(&'a [(Offset, Frame)], u64)> {
        let position = || lineage.before.iter().position(|(known, _)| *known == offset);
        let (before, from) = if lineage.base == Some(offset) {
            (&*lineage.before, lineage.from)
        } else if let Some(at) = position() {
            (&lineage.before[at + 1..], lineage.from)
        } else {
            // The packet before its beginning is what a volatile event may have named.
            (&[][..], self.log.place(offset).filter(|place| *place + 1 >= lineage.from)? + 1)
        };
        self.log.is_whole(from).then_some((before, from))
    }

    /// A parked session is a socket again. Its rooms are held until they are [released](Self::release).
    pub(in crate::io) fn resume(&mut self, pid: Pid, slot: u32) -> Option<State> {
        let session = self.sessions.get_mut(&pid)?;
        match std::mem::replace(&mut session.whereabouts, Whereabouts::Live(slot)) {
            Whereabouts::Parked(state, _) => {
                self.set_parked(self.parked - 1, self.parked_bytes - state.bytes());
                self.live.insert(slot, pid);
                Some(*state)
            }
            live @ Whereabouts::Live(_) => {
                session.whereabouts = live;
                None
            }
        }
    }

    /// Takes a parked session out for another core, where broadcasts have found its rooms since `moment`, and
    /// whose log tells the rest from `from` on. What was emitted before `moment` must have arrived here. Its
    /// rooms are held until they are [released](Self::release).
    pub(in crate::io) fn depart(
        &mut self,
        pid: Pid,
        offset: Offset,
        from: u64,
        moment: Moment,
    ) -> Option<Moved> {
        let before = self.missed(pid, offset, moment)?;
        let state = self.drop_parked(pid)?;
        Some(Moved { pid, state, lineage: Lineage { base: Some(offset), before, from, moment } })
    }

    /// A parked session is given up. Its rooms are held until they are [released](Self::release).
    pub(in crate::io) fn drop_parked(&mut self, pid: Pid) -> Option<State> {
        let parked = |session: &Session| matches!(session.whereabouts, Whereabouts::Parked(..));
        let session =
            self.sessions.get(&pid).is_some_and(parked).then(|| self.sessions.remove(&pid)).flatten()?;
        let Whereabouts::Parked(state, _) = session.whereabouts else { return None };
        self.set_parked(self.parked - 1, self.parked_bytes - state.bytes());
        Some(*state)
    }

    /// Gives a parked session up whose time is over; to be called until there is none. Its rooms are held
    /// until they are [released](Self::release).
    pub(in crate::io) fn expire(&mut self, now: Millis) -> Option<(Pid, State)> {
        self.log.prune(now);
        self.trim(now);
        if self.oldest()? > now { None } else { self.give_up_oldest() }
    }

    /// When the time of the session is over that has been parked for longest.
    pub(in crate::io) fn oldest(&mut self) -> Option<Millis> {
        loop {
            let (end, pid) = *self.ends.front()?;
            if self.is_parked_until(pid, end) {
                return Some(end);
            }
            self.ends.pop_front();
        }
    }

    /// Gives the session up that has been parked for longest. Its rooms are held until they are
    /// [released](Self::release).
    pub(in crate::io) fn give_up_oldest(&mut self) -> Option<(Pid, State)> {
        self.oldest()?;
        let (_, pid) = self.ends.pop_front()?;
        self.drop_parked(pid).map(|state| (pid, state))
    }

    fn is_parked_until(&self, pid: Pid, end: Millis) -> bool {
        let whereabouts = self.sessions.get(&pid).map(|session| &session.whereabouts);
        matches!(whereabouts, Some(Whereabouts::Parked(_, known)) if *known == end)
    }

    /// Lets packets from other cores go that are too old.
    fn trim(&mut self, now: Millis) {
        while let Some((due, pid)) = self.trims.pop_front_if(|(due, _)| *due < now) {
            if let Some(session) = self.sessions.get_mut(&pid).filter(|session| session.trim_at == Some(due))
                && let Some((last, _)) = session.lineage.before.last()
            {
                // Who is there still has received them: see `OFFSETS_KEPT`.
                session.lineage.base = Some(*last);
                session.lineage.before = Vec::new();
                session.counted = None;
            }
        }
    }

    fn await_trim(&mut self, due: Millis, pid: Pid) {
        // Those who come and go between cores leave their earlier times behind.
        if self.trims.len() > 2 * self.sessions.len() + ENDS_SLACK {
            let mut trims = std::mem::take(&mut self.trims);
            trims
                .retain(|(due, pid)| self.sessions.get(pid).is_some_and(|found| found.trim_at == Some(*due)));
            self.trims = trims;
        }
        self.trims.push_back((due, pid));
    }

    fn set_parked(&mut self, parked: usize, bytes: usize) {
        let usage = &self.usage;
        usage.parked.set(usage.parked.get() + parked - self.parked);
        usage.parked_bytes.set(usage.parked_bytes.get() + bytes - self.parked_bytes);
        (self.parked, self.parked_bytes) = (parked, bytes);
    }

    fn count_parked(&mut self, now: Millis, pid: Pid, state: &State) -> Millis {
        let end = now.saturating_add(self.window);
        self.set_parked(self.parked + 1, self.parked_bytes + state.bytes());
        // Those who come and go leave their earlier ends behind.
        if self.ends.len() > 2 * self.parked + ENDS_SLACK {
            let mut ends = std::mem::take(&mut self.ends);
            ends.retain(|(end, pid)| self.is_parked_until(*pid, *end));
            self.ends = ends;
        }
        self.ends.push_back((end, pid));
        end
    }

    fn hold(&mut self, rooms: &[Box<str>], born: impl Fn(&str) -> Moment) {
        for room in rooms {
            let held = self.held.entry(room.clone());
            held.or_insert_with(|| Held { sessions: 0, born: born(room) }).sessions += 1;
        }
    }
}

/// Of packets that are the latest of a key, only the last: as where they wait for a client that is slow.
fn latest(mut packets: Vec<(Offset, Frame)>) -> Vec<(Offset, Frame)> {
    if packets.iter().any(|(_, frame)| frame.key().is_some()) {
        let mut seen: HashSet<Key, RandomState> = HashSet::default();
        packets.reverse();
        packets.retain(|(_, frame)| frame.key().is_none_or(|key| seen.insert(key)));
        packets.reverse();
    }
    packets
}

impl Drop for Sessions {
    fn drop(&mut self) {
        self.set_parked(0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Audience;
    use super::*;
    use crate::fanout::Directory;

    const WINDOW: Millis = 1000;

    fn sessions() -> Sessions {
        Sessions::new(WINDOW, Bounds { age: 1500, packets: 100, bytes: 1 << 20 }, Rc::default())
    }

    fn pid(number: u8) -> Pid {
        Pid::from_parts([number; 12], 0, u32::from(number))
    }

    fn state(rooms: &[&str]) -> State {
        let rooms = rooms.iter().map(|room| (*room).into()).collect();
        State { id: SocketId::own(pid(0)), rooms, data: Value::Null }
    }

    #[test]
    fn what_is_parked_counts_by_its_size() {
        let mut sessions = sessions();
        let usage = sessions.usage.clone();
        let large = State { data: "x".repeat(1000).into(), ..state(&["a", "b"]) };
        let bytes = large.bytes();
        assert!(bytes > 1000 + 2 * ROOM_BYTES);
        for number in 1..=3 {
            sessions.begin(number.into(), pid(number));
            assert!(sessions.park(0, number.into(), large.clone(), |_| Moment::default()).is_some());
        }
        assert_eq!(usage.parked_bytes(), 3 * bytes);
        assert!(sessions.resume(pid(1), 7).is_some() && sessions.resume(pid(1), 7).is_none());
        assert!(sessions.drop_parked(pid(2)).is_some() && sessions.drop_parked(pid(2)).is_none());
        assert_eq!(usage.parked_bytes(), bytes);
        drop(sessions);
        assert_eq!((usage.parked(), usage.parked_bytes()), (0, 0));
    }

    #[test]
    fn who_has_moved_here_twice_is_trimmed_by_its_last_time() {
        let moment = Moment::default();
        let mut sessions = sessions();
        let moved = || {
            let before = vec![(Offset(2), Frame::message(&[b"4x"], &[]))];
            let lineage = Lineage { base: Some(Offset(1)), before, from: 0, moment };
            Moved { pid: pid(1), state: state(&["a"]), lineage }
        };
        for round in 0..2 {
            sessions.adopt(round * 1000, moved(), |_| moment);
            assert!(sessions.resume(pid(1), 8).is_some());
            if round == 0 {
                assert!(sessions.end_of(8).is_some());
            }
        }
        park(&mut sessions, 1400, 8, &["a"]);
        // The first of them is due, the second is not.
        assert!(sessions.expire(1600).is_none());
        assert_eq!(missed(&sessions, 1, 1), Some(vec![2]));
        for round in 0..3 * ENDS_SLACK as Millis {
            assert!(sessions.drop_parked(pid(1)).is_some());
            sessions.adopt(1700 + round % 7, moved(), |_| moment);
        }
        assert!(sessions.trims.len() <= ENDS_SLACK + 3, "{}", sessions.trims.len());
    }

    fn emit(sessions: &mut Sessions, offset: u64, room: &str, moment: Moment) {
        let audience = Audience { rooms: [room.into()].into(), ..Audience::default() };
        let frame = Frame::message(&[b"4x"], &[]);
        sessions.emitted(Emitted { offset: Offset(offset), audience, frame, moment, at: 0 });
    }

    fn missed(sessions: &Sessions, number: u8, offset: u64) -> Option<Vec<u64>> {
        let missed = sessions.missed(pid(number), Offset(offset), Moment::LAST)?;
        Some(missed.into_iter().map(|(offset, _)| offset.0).collect())
    }

    fn park(sessions: &mut Sessions, now: Millis, number: u8, rooms: &[&str]) {
        let parked = sessions.park(now, u32::from(number), state(rooms), |_| Moment::default());
        assert!(parked.is_some());
    }

    #[test]
    fn who_comes_back_gets_what_came_behind_its_last_packet() {
        let mut sessions = sessions();
        let now = Moment::default();
        emit(&mut sessions, 0, "a", now);
        emit(&mut sessions, 1, "a", now);
        sessions.begin(7, pid(7));
        assert_eq!(sessions.live(pid(7)), Some(7));
        for offset in 2..5 {
            emit(&mut sessions, offset, "a", now);
        }
        assert_eq!(missed(&sessions, 7, 2), None, "it is there");
        park(&mut sessions, 0, 7, &["a"]);
        emit(&mut sessions, 5, "a", now);
        emit(&mut sessions, 6, "b", now);
        assert_eq!(missed(&sessions, 7, 3), Some(vec![4, 5]));
        assert_eq!(missed(&sessions, 7, 1), Some(vec![2, 3, 4, 5]), "all since its beginning");
        assert_eq!(missed(&sessions, 7, 0), None, "that was before its time");
        assert_eq!(missed(&sessions, 7, 99), None);
        assert_eq!(missed(&sessions, 8, 3), None);
        assert!(sessions.resume(pid(7), 9).is_some());
        assert!(sessions.resume(pid(7), 10).is_none(), "once");
        assert_eq!(sessions.live(pid(7)), Some(9));
    }

    #[test]
    fn rooms_are_held_while_somebody_may_come_back_to_them() {
        let mut sessions = sessions();
        for number in [1, 2] {
            sessions.begin(u32::from(number), pid(number));
            park(&mut sessions, 0, number, &["a"]);
        }
        assert!(sessions.held("a").is_some() && sessions.held("b").is_none());
        let state = sessions.resume(pid(1), 1).unwrap();
        assert!(!state.rooms.iter().any(|room| sessions.release(room)), "the other one holds it");
        assert!(sessions.drop_parked(pid(2)).is_some());
        assert!(sessions.release("a"));
        assert!(sessions.held("a").is_none() && !sessions.release("a"));
        assert_eq!(sessions.parked(), 0);
    }

    #[test]
    fn time_and_number_of_the_absent_are_limited() {
        let mut sessions = sessions();
        for number in 1..=5 {
            sessions.begin(u32::from(number), pid(number));
            park(&mut sessions, 10 * Millis::from(number), number, &[]);
        }
        assert!(sessions.expire(60).is_none());
        assert_eq!(sessions.oldest(), Some(1010));
        assert_eq!(sessions.give_up_oldest().unwrap().0, pid(1));
        assert_eq!(sessions.give_up_oldest().unwrap().0, pid(2));
        assert_eq!((sessions.oldest(), sessions.usage.parked()), (Some(1030), 3));
        // Who comes and goes has its time anew.
        assert!(sessions.resume(pid(3), 3).is_some());
        park(&mut sessions, 500, 3, &[]);
        assert_eq!(sessions.expire(1040).unwrap().0, pid(4));
        assert_eq!(sessions.expire(1050).unwrap().0, pid(5));
        assert!(sessions.expire(1499).is_none());
        assert_eq!(sessions.expire(1500).unwrap().0, pid(3));
        assert_eq!((sessions.parked(), sessions.sessions.len(), sessions.ends.len()), (0, 0, 0));
    }

    #[test]
    fn those_who_come_and_go_leave_nothing_behind() {
        let mut sessions = sessions();
        sessions.begin(1, pid(1));
        for _ in 0..10 * ENDS_SLACK {
            park(&mut sessions, 0, 1, &["a"]);
            for room in &sessions.resume(pid(1), 1).unwrap().rooms {
                sessions.release(room);
            }
        }
        assert!(sessions.ends.len() <= ENDS_SLACK + 3);
        assert_eq!(sessions.end_of(1), Some(pid(1)));
        assert!(sessions.sessions.is_empty() && sessions.live.is_empty() && sessions.held.is_empty());
    }

    #[test]
    fn what_a_session_brings_along_counts() {
        let bounds = Bounds { age: 1500, packets: 100, bytes: 10_000 };
        let mut sessions = Sessions::new(WINDOW, bounds, Rc::default());
        let moved = |number: u8, bytes: usize| {
            let before = vec![(Offset(1), Frame::message(&[&vec![b'x'; bytes]], &[]))];
            let lineage = Lineage::kept(Offset(0), before, Moment::default());
            Moved { pid: pid(number), state: state(&["a"]), lineage }
        };
        for offset in 2..10 {
            emit(&mut sessions, offset, "a", Moment::default());
        }
        let (first, second) = (moved(1, 5000), moved(2, 4000));
        assert!(sessions.make_room(&first));
        sessions.adopt(0, first, |_| Moment::default());
        assert!(sessions.log.place(Offset(2)).is_some());
        assert!(sessions.make_room(&second), "packets go for it");
        assert!(sessions.log.place(Offset(2)).is_none() && sessions.log.place(Offset(9)).is_some());
        sessions.adopt(0, second, |_| Moment::default());
        let third = moved(3, 4000);
        assert!(!sessions.make_room(&third), "two have all of it");
        assert!(sessions.drop_parked(pid(1)).is_some());
        assert!(sessions.make_room(&third));
        drop(sessions.take_all());
        assert!(sessions.make_room(&moved(4, 9000)), "nothing is left behind");
    }

    /// A session goes from one core to another while packets are on their way to both, and comes back there
    /// twice.
    #[test]
    fn a_session_that_moves_loses_nothing_and_gets_nothing_twice() {
        let directory = Directory::default();
        let key = crate::fanout::RoomKey { space: 0, room: "a" };
        let (mut x, mut y) = (sessions(), sessions());
        let before = directory.enter(key, 0);
        x.begin(1, pid(1));
        emit(&mut x, 1, "a", before);
        park(&mut x, 0, 1, &["a"]);
        emit(&mut x, 2, "a", before);
        // Others are in the room on core Y, so it gets the packets as well.
        emit(&mut y, 2, "a", before);
        let from = y.end();
        emit(&mut y, 3, "a", before);
        let moment = directory.announce(key, 1);
        // From here on both are found, and what is older arrives late.
        emit(&mut y, 4, "a", moment);
        emit(&mut x, 3, "a", before);
        emit(&mut x, 4, "a", moment);
        let moved = x.depart(pid(1), Offset(1), from, moment).unwrap();
        assert!(x.release("a") && x.parked() == 0);
        emit(&mut y, 5, "a", moment);
        y.adopt(0, moved, |_| moment);
        assert_eq!(y.held("a"), Some(moment));
        assert_eq!(missed(&y, 1, 1), Some(vec![2, 3, 4, 5]));
        assert!(y.resume(pid(1), 8).is_some());
        emit(&mut y, 6, "a", moment);
        park(&mut y, 100, 8, &["a"]);
        for (last, expected) in [(1, vec![2, 3, 4, 5, 6]), (2, vec![3, 4, 5, 6]), (5, vec![6]), (6, vec![])] {
            assert_eq!(missed(&y, 1, last), Some(expected), "behind {last}");
        }
        assert!(y.resume(pid(1), 8).is_some());
        // By then it has got them all, or has gone for good. Until then they count beside the log.
        let counted = |sessions: &Sessions| sessions.sessions[&pid(1)].counted.is_some();
        assert!(counted(&y));
        assert!(y.expire(2000).is_none());
        assert!(y.sessions[&pid(1)].lineage.before.is_empty() && !counted(&y));
        park(&mut y, 2000, 8, &["a"]);
        assert_eq!(missed(&y, 1, 6), Some(vec![]));
        assert_eq!(missed(&y, 1, 2), Some(vec![]), "it was the last here before the session came");
        assert_eq!(missed(&y, 1, 1), None);
    }

    #[test]
    fn a_volatile_event_names_the_last_packet_or_the_beginning() {
        let mut sessions = sessions();
        sessions.begin(7, pid(7));
        let beginning = sessions.last_offset().unwrap();
        assert_eq!(sessions.last_offset(), Some(beginning));
        emit(&mut sessions, 1, "a", Moment::default());
        sessions.begin(8, pid(8));
        let last = sessions.last_offset().unwrap();
        assert_eq!(last, Offset(1));
        emit(&mut sessions, 2, "a", Moment::default());
        for number in [7, 8] {
            park(&mut sessions, 0, number, &["a"]);
        }
        let all = |number, offset: Offset| missed(&sessions, number, offset.0);
        assert_eq!(all(7, beginning), Some(vec![1, 2]));
        assert_eq!((all(7, last), all(8, last)), (Some(vec![2]), Some(vec![2])));
        assert_eq!(all(8, beginning), None, "that was before its time");
    }

    #[test]
    fn of_a_key_the_last_packet_is_missed() {
        let mut sessions = sessions();
        sessions.begin(7, pid(7));
        let room = || Audience { rooms: ["a".into()].into(), ..Audience::default() };
        for offset in 1..10 {
            let frame = Frame::message(&[b"4x"], &[]);
            let frame = if offset % 3 == 0 { frame } else { frame.latest(Key::of(&(offset % 3))) };
            let (offset, audience, moment) = (Offset(offset), room(), Moment::default());
            sessions.emitted(Emitted { offset, audience, frame, moment, at: 0 });
        }
        park(&mut sessions, 0, 7, &["a"]);
        assert_eq!(missed(&sessions, 7, 1), Some(vec![3, 6, 7, 8, 9]));
    }
}
