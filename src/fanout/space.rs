//! Numbers that stand for the names of spaces.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

/// The spaces that somebody holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Spaces(Arc<Mutex<Numbers>>);

#[derive(Debug, Default)]
struct Numbers {
    /// Each with its number, and how many hold it.
    by_name: HashMap<Box<str>, (u32, usize), RandomState>,
    /// Numbers that were given back.
    free: Vec<u32>,
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
    spaces: Spaces,
}

impl Space {
    /// The number, for a [`RoomKey`](super::RoomKey).
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

impl Spaces {
    /// The space with a name, made if nobody holds it.
    pub(super) fn hold(&self, name: &str) -> Space {
        let mut numbers = self.lock();
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
        drop(numbers);
        Space { number, name: name.into(), spaces: self.clone() }
    }

    pub(super) fn len(&self) -> usize {
        self.lock().by_name.len()
    }

    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_back() {
        let spaces = Spaces::default();
        let kept = spaces.hold("kept");
        for i in 0..1000 {
            let (one, again) = (spaces.hold(&format!("/{i}")), spaces.hold(&format!("/{i}")));
            assert_eq!((one.number(), again.number()), (1, 1), "the number of the one before");
            drop(one);
            assert_eq!(spaces.len(), 2, "one still holds it");
        }
        assert_eq!((spaces.len(), kept.number()), (1, 0));
    }
}
