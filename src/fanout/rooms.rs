//! Who is in which room, on one core.

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use slab::Slab;
use smallvec::SmallVec;

use super::Moment;

/// One member of a room, dense so that a broadcast walks an array.
///
/// ```
/// use sockring::fanout::{Directory, Member, Rooms};
/// let (mut rooms, born) = (Rooms::default(), Directory::default().now());
/// rooms.join(7, 100, "lobby", || born);
/// let &[Member { member, outlet, .. }] = rooms.members("lobby") else { panic!() };
/// assert_eq!((member, outlet), (7, 100));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The member's slot in the table of its owner (a namespace's sockets, a topic's subscribers).
    pub member: u32,
    /// The slot of the member's outlet.
    pub outlet: u32,
    /// Where the member's own list of rooms names this one.
    link: u32,
}

/// A membership, seen from the member.
#[derive(Clone, Copy, Debug)]
struct Link {
    room: u32,
    position: u32,
}

#[derive(Debug)]
struct Room {
    name: Box<str>,
    /// When broadcasts of other threads began to find the room on this core.
    born: Moment,
    members: Vec<Member>,
}

/// Up to this many rooms a member's list is searched; beyond, an index answers.
const LINKS_SEARCHED: usize = 16;

/// The rooms of one namespace on one core.
///
/// Joining and leaving cost the same in a room of every socket and for a socket in every room; leaving all
/// rooms is linear in the rooms of that member. A room exists while it has members.
///
/// ```
/// use sockring::fanout::{Directory, Rooms};
/// let mut rooms = Rooms::default();
/// let born = Directory::default().now();
/// assert!(rooms.join(0, 100, "lobby", || born));
/// assert!(rooms.join(1, 101, "lobby", || unreachable!("not the first")));
/// assert_eq!(rooms.members("lobby").iter().map(|m| m.outlet).collect::<Vec<_>>(), [100, 101]);
/// ```
#[derive(Debug, Default)]
pub struct Rooms {
    by_name: HashMap<Box<str>, u32, RandomState>,
    rooms: Slab<Room>,
    links: Vec<SmallVec<[Link; 2]>>,
    /// (member, room) to position in the member's links, for members of many rooms.
    index: HashMap<(u32, u32), u32, RandomState>,
}

impl Rooms {
    /// With room for so many members from the start: a table that grows is copied, and leaves a hole.
    pub(crate) fn with_reserve(members: usize) -> Self {
        Self { links: Vec::with_capacity(members), ..Self::default() }
    }

    /// Adds a member; whether it was not there already. For the first member of a room `born` says since when
    /// broadcasts find the room on this core.
    pub fn join(&mut self, member: u32, outlet: u32, name: &str, born: impl FnOnce() -> Moment) -> bool {
        let room = match self.by_name.get(name) {
            Some(room) => *room,
            None => {
                let new = Room { name: name.into(), born: born(), members: Vec::new() };
                let room = self.rooms.insert(new) as u32;
                self.by_name.insert(name.into(), room);
                room
            }
        };
        if self.find(member, room).is_some() {
            return false;
        }
        if self.links.len() <= member as usize {
            self.links.resize_with(member as usize + 1, SmallVec::new);
        }
        let links = &mut self.links[member as usize];
        let members = &mut self.rooms[room as usize].members;
        let (position, link) = (members.len() as u32, links.len() as u32);
        members.push(Member { member, outlet, link });
        links.push(Link { room, position });
        if links.len() == LINKS_SEARCHED + 1 {
            self.index.extend(links.iter().enumerate().map(|(i, link)| ((member, link.room), i as u32)));
        } else if links.len() > LINKS_SEARCHED {
            self.index.insert((member, room), link);
        }
        true
    }

    /// Removes a member. `None`: it was not there; otherwise whether it was the room's last.
    pub fn leave(&mut self, member: u32, name: &str) -> Option<bool> {
        let room = *self.by_name.get(name)?;
        let link = self.find(member, room)?;
        Some(self.unlink(member, link))
    }

    /// Removes a member from all its rooms; `emptied` is told each room that it was the last in.
    pub fn leave_all(&mut self, member: u32, mut emptied: impl FnMut(&str)) {
        while let Some(link) = self.links.get(member as usize).and_then(|links| links.last().copied()) {
            let name = &self.rooms[link.room as usize].name;
            if self.rooms[link.room as usize].members.len() == 1 {
                emptied(name);
            }
            let last = self.links[member as usize].len() - 1;
            self.unlink(member, last);
        }
        if let Some(links) = self.links.get_mut(member as usize) {
            *links = SmallVec::new();
        }
    }

    /// The members of a room, in no particular order.
    pub fn members(&self, name: &str) -> &[Member] {
        self.by_name.get(name).map_or(&[], |room| &self.rooms[*room as usize].members)
    }

    /// The members of a room for a broadcast that has looked for its cores at a moment; none, if the room was
    /// born later. A room that was empty meanwhile was passed by, so what is older than its birth would reach
    /// its new members with a gap behind it.
    pub fn members_at(&self, name: &str, moment: Moment) -> &[Member] {
        let room = self.by_name.get(name).map(|room| &self.rooms[*room as usize]);
        room.filter(|room| room.born <= moment).map_or(&[], |room| &room.members)
    }

    /// Since when broadcasts of others find a room on this core, if it has members.
    pub fn born(&self, name: &str) -> Option<Moment> {
        self.by_name.get(name).map(|room| self.rooms[*room as usize].born)
    }

    /// Whether a member is in a room.
    pub fn contains(&self, member: u32, name: &str) -> bool {
        self.by_name.get(name).is_some_and(|room| self.find(member, *room).is_some())
    }

    /// The rooms of a member.
    pub fn of(&self, member: u32) -> impl Iterator<Item = &str> {
        let links = self.links.get(member as usize).map_or(&[][..], |links| links.as_slice());
        links.iter().map(|link| &*self.rooms[link.room as usize].name)
    }

    /// How many rooms a member is in.
    pub fn count_of(&self, member: u32) -> usize {
        self.links.get(member as usize).map_or(0, SmallVec::len)
    }

    /// The names of the rooms that have members on this core.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.rooms.iter().map(|(_, room)| &*room.name)
    }

    /// How many rooms have members on this core.
    pub fn len(&self) -> usize {
        self.rooms.len()
    }

    /// Whether no room has a member.
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    fn find(&self, member: u32, room: u32) -> Option<usize> {
        let links = self.links.get(member as usize)?;
        if links.len() > LINKS_SEARCHED {
            return self.index.get(&(member, room)).map(|link| *link as usize);
        }
        links.iter().position(|link| link.room == room)
    }

    /// Takes one membership out of both lists; whoever fills a gap is told its new place.
    fn unlink(&mut self, member: u32, at: usize) -> bool {
        let links = &mut self.links[member as usize];
        let indexed = links.len() > LINKS_SEARCHED;
        let Link { room, position } = links.swap_remove(at);
        let moved = links.get(at).copied();
        if indexed {
            self.index.remove(&(member, room));
            if links.len() == LINKS_SEARCHED {
                for link in links.iter() {
                    self.index.remove(&(member, link.room));
                }
            } else if let Some(moved) = moved {
                self.index.insert((member, moved.room), at as u32);
            }
        }
        if let Some(moved) = moved {
            self.rooms[moved.room as usize].members[moved.position as usize].link = at as u32;
        }
        let members = &mut self.rooms[room as usize].members;
        members.swap_remove(position as usize);
        if let Some(filler) = members.get(position as usize) {
            self.links[filler.member as usize][filler.link as usize].position = position;
        }
        let last = members.is_empty();
        if last {
            let gone = self.rooms.remove(room as usize);
            self.by_name.remove(&gone.name);
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::super::{Directory, RoomKey};
    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Join(u32, u8),
        Leave(u32, u8),
        LeaveAll(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..6u32, 0..40u8).prop_map(|(m, r)| Step::Join(m, r)),
            3 => (0..6u32, 0..40u8).prop_map(|(m, r)| Step::Leave(m, r)),
            1 => (0..6u32).prop_map(Step::LeaveAll),
        ]
    }

    /// Every step looks at everything: miri would take many minutes for as many.
    const STEPS: usize = if cfg!(miri) { 20 } else { 300 };

    proptest! {
        #[test]
        fn behaves_like_a_set_of_pairs(steps in prop::collection::vec(step(), 0..STEPS)) {
            let mut rooms = Rooms::default();
            let mut model: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Join(member, room) => {
                        let name = format!("r{room}");
                        let set = model.entry(name.clone()).or_default();
                        let (mut first, was_empty) = (false, set.is_empty());
                        let joined = rooms.join(member, member + 100, &name, || {
                            first = true;
                            Moment::default()
                        });
                        prop_assert_eq!((joined, first), (set.insert(member), was_empty));
                    }
                    Step::Leave(member, room) => {
                        let name = format!("r{room}");
                        let set = model.entry(name.clone()).or_default();
                        let expected = set.remove(&member).then_some(set.is_empty());
                        prop_assert_eq!(rooms.leave(member, &name), expected);
                    }
                    Step::LeaveAll(member) => {
                        let mut emptied = BTreeSet::new();
                        rooms.leave_all(member, |name| { emptied.insert(name.to_owned()); });
                        let mut expected = BTreeSet::new();
                        for (name, set) in &mut model {
                            if set.remove(&member) && set.is_empty() {
                                expected.insert(name.clone());
                            }
                        }
                        prop_assert_eq!(emptied, expected);
                    }
                }
                model.retain(|_, set| !set.is_empty());
                prop_assert_eq!(rooms.len(), model.len());
                for (name, set) in &model {
                    let members: BTreeSet<u32> = rooms.members(name).iter().map(|m| m.member).collect();
                    prop_assert_eq!(&members, set);
                }
                for member in 0..6 {
                    let of: BTreeSet<String> = rooms.of(member).map(str::to_owned).collect();
                    let expected: BTreeSet<String> = model.iter()
                        .filter(|(_, set)| set.contains(&member)).map(|(name, _)| name.clone()).collect();
                    prop_assert_eq!(of, expected);
                }
            }
        }
    }

    #[test]
    fn what_is_older_than_a_room_passes_it_by() {
        let directory = Directory::default();
        let key = RoomKey { space: 0, room: "a" };
        let mut rooms = Rooms::default();
        let before = directory.now();
        assert!(rooms.join(0, 100, "a", || directory.enter(key, 0)));
        let after = directory.now();
        assert!(rooms.join(1, 101, "a", || unreachable!()));
        assert!(rooms.members_at("a", before).is_empty());
        assert_eq!(rooms.members_at("a", after).len(), 2);
        assert_eq!(rooms.members_at("a", Moment::LAST).len(), 2);
        assert!(rooms.members_at("b", Moment::LAST).is_empty());
    }
}
