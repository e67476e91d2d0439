//! Which cores have members of a room.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use hashbrown::{Equivalent, HashMap};

use super::space::{Space, Spaces};
use crate::limits;

/// A set of cores.
///
/// ```
/// use sockring::fanout::Cores;
/// let mut cores = Cores::default();
/// cores.insert(3);
/// cores.insert(0);
/// assert_eq!(cores.iter().collect::<Vec<_>>(), [0, 3]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cores(u128);

impl Cores {
    /// The cores from 0 up to `count`.
    pub fn first(count: usize) -> Self {
        debug_assert!(count <= limits::WORKERS_MAX);
        Self(if count >= limits::WORKERS_MAX { u128::MAX } else { (1 << count) - 1 })
    }

    /// Adds a core.
    pub fn insert(&mut self, core: usize) {
        self.0 |= 1 << core;
    }

    /// Removes a core; whether it was there.
    pub fn remove(&mut self, core: usize) -> bool {
        let was = self.contains(core);
        self.0 &= !(1 << core);
        was
    }

    /// Whether a core is in the set.
    pub fn contains(self, core: usize) -> bool {
        self.0 & (1 << core) != 0
    }

    /// Everything that is in one of the two.
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether no core is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The cores in ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let core = rest.trailing_zeros() as usize;
            rest &= rest.wrapping_sub(1);
            (core < limits::WORKERS_MAX).then_some(core)
        })
    }
}

/// A room of a space; a space is a namespace of one server, or the topics of an App.
///
/// ```
/// use sockring::fanout::{Directory, RoomKey};
/// let directory = Directory::default();
/// let topics = directory.space("topics");
/// let key = RoomKey { space: topics.number(), room: "news" };
/// assert_eq!(directory.cores(key).iter().count(), 0);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct RoomKey<'a> {
    /// The number of a [`Space`].
    pub space: u32,
    /// The room's name.
    pub room: &'a str,
}

#[derive(Debug, PartialEq, Eq)]
struct OwnedKey {
    space: u32,
    room: Box<str>,
}

impl Hash for RoomKey<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.space.hash(state);
        self.room.hash(state);
    }
}

impl Hash for OwnedKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        RoomKey { space: self.space, room: &self.room }.hash(state);
    }
}

impl Equivalent<OwnedKey> for RoomKey<'_> {
    fn equivalent(&self, key: &OwnedKey) -> bool {
        self.space == key.space && *self.room == *key.room
    }
}

/// A point in the order of all changes that give a room a core. What looked the cores of a room up at an
/// earlier moment than the room was [born](Directory::enter) on a core did not mean the members it has there.
///
/// ```
/// use sockring::fanout::{Directory, Moment, RoomKey};
/// let directory = Directory::default();
/// let space = directory.space("/");
/// let key = RoomKey { space: space.number(), room: "lobby" };
/// let before = directory.now();
/// let born = directory.enter(key, 0);
/// assert!(before < born && born <= directory.now() && born < Moment::LAST);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Later than all others: that of what is done at once.
    pub const LAST: Self = Self(u64::MAX);
}

/// The cores of one room.
#[derive(Debug, Default)]
struct Entry {
    /// Cores that have members.
    present: Cores,
    /// Joins that another thread has posted to a core and that the core has not carried out yet. Without
    /// them a broadcast that follows such a join, from the same thread, would pass that core by.
    announced: Vec<(usize, Moment)>,
}

const SHARDS: usize = 64;

type Shard = HashMap<OwnedKey, Entry, RandomState>;

/// The map from rooms to cores, shared by all threads, sharded so that rooms do not contend.
///
/// A core writes here when a room gets its first member on that core, or loses its last: not for the joins
/// in between, and not for broadcasts, which read one shard.
///
/// ```
/// use sockring::fanout::{Directory, RoomKey};
/// let directory = Directory::default();
/// let space = directory.space("/");
/// let key = RoomKey { space: space.number(), room: "lobby" };
/// directory.enter(key, 2);
/// assert_eq!(directory.cores(key).iter().collect::<Vec<_>>(), [2]);
/// ```
#[derive(Debug)]
pub struct Directory {
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    spaces: Spaces,
    /// Counts the changes that give a room a core. Changes and look-ups are made under the shard's lock, and
    /// who looks up reads this before it: so who has read a room's birth finds the room.
    changes: AtomicU64,
}

impl Default for Directory {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let (hasher, spaces, changes) = Default::default();
        Self { hasher, shards, spaces, changes }
    }
}

impl Directory {
    /// The space with a name, made if nobody holds it.
    pub fn space(&self, name: &str) -> Space {
        self.spaces.hold(name)
    }

    /// How many spaces somebody holds.
    pub fn spaces(&self) -> usize {
        self.spaces.len()
    }

    /// This moment. It must be read before the cores are looked up that it is to go with.
    pub fn now(&self) -> Moment {
        Moment(self.changes.load(Ordering::Relaxed))
    }

    fn next(&self) -> Moment {
        Moment(self.changes.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The cores that have members of a room, or are about to.
    pub fn cores(&self, key: RoomKey<'_>) -> Cores {
        let shard = self.shard(key);
        let Some(entry) = shard.get(&key) else { return Cores::default() };
        entry.announced.iter().fold(entry.present, |mut cores, (core, _)| {
            cores.insert(*core);
            cores
        })
    }

    /// A room has its first member on a core. Gives the moment of its birth there: what has looked its cores
    /// up since then has found this one, without a gap.
    pub fn enter(&self, key: RoomKey<'_>, core: usize) -> Moment {
        self.change(key, |entry| {
            entry.present.insert(core);
            let announced = entry.announced.iter().filter(|(announced, _)| *announced == core);
            announced.map(|(_, moment)| *moment).min().unwrap_or_else(|| self.next())
        })
    }

    /// A room has lost its last member on a core; whether no other core has any.
    pub fn exit(&self, key: RoomKey<'_>, core: usize) -> bool {
        self.change(key, |entry| entry.present.remove(core) && entry.present.is_empty())
    }

    /// A join is on its way to a core. The moment stands for it until it has [`arrived`](Self::arrived).
    pub fn announce(&self, key: RoomKey<'_>, core: usize) -> Moment {
        self.change(key, |entry| {
            let moment = self.next();
            entry.announced.push((core, moment));
            moment
        })
    }

    /// An announced join was carried out, or came to nothing.
    pub fn arrived(&self, key: RoomKey<'_>, core: usize, announced: Moment) {
        self.change(key, |entry| entry.announced.retain(|known| *known != (core, announced)));
    }

    /// How many rooms are known.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Whether no room is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, key: RoomKey<'_>) -> MutexGuard<'_, Shard> {
        let hash = self.hasher.hash_one(key) as usize;
        self.shards[hash % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, key: RoomKey<'_>, change: impl FnOnce(&mut Entry) -> T) -> T {
        let mut shard = self.shard(key);
        if let Some(entry) = shard.get_mut(&key) {
            let result = change(entry);
            if entry.present.is_empty() && entry.announced.is_empty() {
                shard.remove(&key);
            }
            return result;
        }
        let mut entry = Entry::default();
        let result = change(&mut entry);
        if !entry.present.is_empty() || !entry.announced.is_empty() {
            shard.insert(OwnedKey { space: key.space, room: key.room.into() }, entry);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_known_while_a_core_has_members_or_a_join_is_on_its_way() {
        let directory = Directory::default();
        let key = RoomKey { space: 0, room: "a" };
        let first = directory.announce(key, 1);
        let second = directory.announce(key, 1);
        assert!(directory.cores(key).contains(1));
        directory.enter(key, 1);
        directory.arrived(key, 1, first);
        directory.exit(key, 1);
        assert!(directory.cores(key).contains(1), "the second join is still on its way");
        directory.arrived(key, 1, second);
        assert!(directory.is_empty());
    }

    #[test]
    fn a_room_is_born_when_broadcasts_begin_to_find_it() {
        let directory = Directory::default();
        let key = RoomKey { space: 0, room: "a" };
        let before = directory.now();
        let first = directory.enter(key, 1);
        assert!(before < first && first <= directory.now());
        let between = directory.now();
        directory.exit(key, 1);
        assert!(between < directory.enter(key, 1), "not what was meant for those who were there before");
        assert!(directory.enter(key, 2) > first);
        directory.enter(key, 3);
        assert!(!directory.exit(key, 1) && !directory.exit(key, 2) && directory.exit(key, 3));
        assert!(!directory.exit(key, 3), "nobody was there");
    }

    #[test]
    fn an_announced_join_is_born_with_its_announcement() {
        let directory = Directory::default();
        let key = RoomKey { space: 0, room: "a" };
        let first = directory.announce(key, 1);
        let emitted = directory.now();
        let second = directory.announce(key, 1);
        assert_eq!(directory.enter(key, 1), first, "the earlier one, though the later one came first");
        directory.arrived(key, 1, second);
        directory.exit(key, 1);
        assert!(directory.enter(key, 1) <= emitted, "the earlier one has held the room all the time");
        directory.arrived(key, 1, first);
        directory.exit(key, 1);
        assert!(directory.enter(key, 1) > emitted);
    }

    #[test]
    fn spaces_keep_rooms_apart() {
        let directory = Directory::default();
        let (a, b) = (directory.space("/a"), directory.space("/b"));
        assert_ne!(a.number(), b.number());
        assert_eq!(directory.space("/a").number(), a.number());
        directory.enter(RoomKey { space: a.number(), room: "x" }, 0);
        assert!(directory.cores(RoomKey { space: b.number(), room: "x" }).is_empty());
    }

    #[test]
    fn all_cores_fit() {
        let cores = Cores::first(limits::WORKERS_MAX);
        assert_eq!(cores.iter().count(), limits::WORKERS_MAX);
        assert_eq!(Cores::first(3).iter().collect::<Vec<_>>(), [0, 1, 2]);
    }
}
