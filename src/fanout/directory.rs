//! Which cores have members of a room.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use hashbrown::{Equivalent, HashMap};

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

/// The cores of one room.
#[derive(Debug, Default)]
struct Entry {
    /// Cores that have members.
    present: Cores,
    /// Joins that another thread has posted to a core and that the core has not carried out yet. Without
    /// them a broadcast that follows such a join, from the same thread, would pass that core by.
    announced: Vec<usize>,
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
    spaces: Arc<Spaces>,
}

/// The spaces that somebody holds.
#[derive(Debug, Default)]
struct Spaces(Mutex<Numbers>);

#[derive(Debug, Default)]
struct Numbers {
    /// Each with its number, and how many hold it.
    by_name: HashMap<Box<str>, (u32, usize), RandomState>,
    /// Numbers that were given back.
    free: Vec<u32>,
}

impl Spaces {
    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number that stands for a space's name, the same for all threads while one of them holds it. It is
/// given back, and may become another space's, with the last of them; whoever has members in a room of the
/// space, or tasks under way that name one, must hold it.
///
/// ```
/// use sockring::fanout::Directory;
/// let directory = Directory::default();
/// let (a, b) = (directory.space("/a"), directory.space("/b"));
/// assert_eq!(directory.space("/a").number(), a.number());
/// drop(b);
/// assert_eq!(directory.spaces(), 1);
/// ```
#[derive(Debug)]
pub struct Space {
    number: u32,
    name: Box<str>,
    spaces: Arc<Spaces>,
}

impl Space {
    /// The number, for a [`RoomKey`].
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let mut numbers = self.spaces.lock();
        let Some((number, holders)) = numbers.by_name.get_mut(&self.name) else { return };
        *holders -= 1;
        if *holders == 0 {
            let number = *number;
            numbers.by_name.remove(&self.name);
            numbers.free.push(number);
        }
    }
}

impl Default for Directory {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { hasher: RandomState::default(), shards, spaces: Arc::default() }
    }
}

impl Directory {
    /// The space with a name, made if nobody holds it.
    pub fn space(&self, name: &str) -> Space {
        let mut numbers = self.spaces.lock();
        let known = numbers.by_name.get_mut(name).map(|(number, holders)| {
            *holders += 1;
            *number
        });
        let number = known.unwrap_or_else(|| {
            // The numbers in use and the free ones are together those from 0 on.
            let next = numbers.by_name.len() as u32;
            let number = numbers.free.pop().unwrap_or(next);
            numbers.by_name.insert(name.into(), (number, 1));
            number
        });
        Space { number, name: name.into(), spaces: self.spaces.clone() }
    }

    /// How many spaces somebody holds.
    pub fn spaces(&self) -> usize {
        self.spaces.lock().by_name.len()
    }

    /// The cores that have members of a room, or are about to.
    pub fn cores(&self, key: RoomKey<'_>) -> Cores {
        let shard = self.shard(key);
        let Some(entry) = shard.get(&key) else { return Cores::default() };
        entry.announced.iter().fold(entry.present, |mut cores, core| {
            cores.insert(*core);
            cores
        })
    }

    /// A room has its first member on a core; whether no other core had any.
    pub fn enter(&self, key: RoomKey<'_>, core: usize) -> bool {
        self.change(key, |entry| {
            let first = entry.present.is_empty();
            entry.present.insert(core);
            first
        })
    }

    /// A room has lost its last member on a core; whether no other core has any.
    pub fn exit(&self, key: RoomKey<'_>, core: usize) -> bool {
        self.change(key, |entry| entry.present.remove(core) && entry.present.is_empty())
    }

    /// A join is on its way to a core.
    pub fn announce(&self, key: RoomKey<'_>, core: usize) {
        self.change(key, |entry| entry.announced.push(core));
    }

    /// An announced join was carried out, or came to nothing.
    pub fn arrived(&self, key: RoomKey<'_>, core: usize) {
        self.change(key, |entry| {
            if let Some(at) = entry.announced.iter().position(|announced| *announced == core) {
                entry.announced.swap_remove(at);
            }
        });
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
            let changed = change(entry);
            if entry.present.is_empty() && entry.announced.is_empty() {
                shard.remove(&key);
            }
            return changed;
        }
        let mut entry = Entry::default();
        let changed = change(&mut entry);
        if !entry.present.is_empty() || !entry.announced.is_empty() {
            shard.insert(OwnedKey { space: key.space, room: key.room.into() }, entry);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_is_known_while_a_core_has_members_or_a_join_is_on_its_way() {
        let directory = Directory::default();
        let key = RoomKey { space: directory.space("/").number(), room: "a" };
        directory.announce(key, 1);
        directory.announce(key, 1);
        assert!(directory.cores(key).contains(1));
        assert!(directory.enter(key, 1));
        assert!(!directory.enter(key, 2));
        directory.arrived(key, 1);
        assert!(!directory.exit(key, 1));
        assert!(directory.exit(key, 2));
        assert!(!directory.exit(key, 2), "nobody was there");
        assert!(directory.cores(key).contains(1), "the second join is still on its way");
        directory.arrived(key, 1);
        assert!(directory.is_empty());
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
    fn numbers_of_spaces_are_given_back() {
        let directory = Directory::default();
        let kept = directory.space("kept");
        for i in 0..1000 {
            let (one, again) = (directory.space(&format!("/{i}")), directory.space(&format!("/{i}")));
            assert_eq!(one.number(), again.number());
            assert_eq!(one.number(), 1, "the number of the one before");
            drop(one);
            assert_eq!(directory.spaces(), 2, "one still holds it");
        }
        assert_eq!((directory.spaces(), kept.number()), (1, 0));
    }

    #[test]
    fn all_cores_fit() {
        let cores = Cores::first(limits::WORKERS_MAX);
        assert_eq!(cores.iter().count(), limits::WORKERS_MAX);
        assert_eq!(Cores::first(3).iter().collect::<Vec<_>>(), [0, 1, 2]);
    }
}
