//! Session ids that the application makes: they do not say where their session is, so a table does.

use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

/// Characters of an id. Longer than any that a generator makes; each is kept as long as its session.
const ID_CHARS_MAX: usize = 128;

/// Locks of the table: cores that open sessions at the same time seldom want the same.
const SHARDS: usize = 64;

/// The ids of all cores, each with the core of its session.
#[derive(Debug)]
pub(super) struct Ids([Mutex<HashMap<Arc<str>, u8>>; SHARDS]);

impl Default for Ids {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl Ids {
    fn shard(&self, id: &str) -> MutexGuard<'_, HashMap<Arc<str>, u8>> {
        let hash = FixedState::default().hash_one(id) as usize;
        self.0[hash % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The core of an id's session.
    pub(super) fn core(&self, id: &str) -> Option<usize> {
        self.shard(id).get(id).map(|core| usize::from(*core))
    }

    /// Takes an id for a session of a core, until the reservation is dropped.
    pub(super) fn reserve(self: &Arc<Self>, id: &str, core: usize) -> Result<Reserved, String> {
        // What may stand in a cookie's value as it is (RFC 6265 section 4.1.1).
        let sound = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\');
        if id.is_empty() || id.len() > ID_CHARS_MAX || !id.bytes().all(sound) {
            return Err(format!("an id has 1 to {ID_CHARS_MAX} visible ASCII characters without \" , ; \\"));
        }
        let id: Arc<str> = id.into();
        match self.shard(&id).entry(id.clone()) {
            Entry::Occupied(_) => return Err("the id is in use".to_owned()),
            Entry::Vacant(entry) => entry.insert(core as u8),
        };
        Ok(Reserved { ids: self.clone(), id })
    }
}

/// An id that nobody else can have while this lives.
#[derive(Debug)]
pub(super) struct Reserved {
    ids: Arc<Ids>,
    id: Arc<str>,
}

impl Reserved {
    pub(super) fn id(&self) -> &Arc<str> {
        &self.id
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.ids.shard(&self.id).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_session_at_a_time() {
        let ids = Arc::new(Ids::default());
        let first = ids.reserve("mine", 3).unwrap();
        assert_eq!(ids.core("mine"), Some(3));
        assert_eq!(ids.reserve("mine", 1).unwrap_err(), "the id is in use");
        drop(first);
        assert_eq!(ids.core("mine"), None);
        assert!(ids.reserve("mine", 1).is_ok());
    }

    #[test]
    fn ids_are_short_and_visible() {
        let ids = Arc::new(Ids::default());
        for id in ["", "a b", "a\n", "ä", "a;b", "a\"", &"x".repeat(ID_CHARS_MAX + 1)] {
            assert!(ids.reserve(id, 0).is_err(), "{id:?}");
        }
        for id in ["0", "a.b-c_d~e", "__proto__", &"x".repeat(ID_CHARS_MAX)] {
            assert!(ids.reserve(id, 0).is_ok(), "{id:?}");
        }
    }
}
