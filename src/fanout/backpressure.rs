//! What becomes of messages for clients that read more slowly than they are written to.

use std::fmt;
use std::hash::BuildHasher;
use std::str::FromStr;
use std::sync::OnceLock;

use foldhash::quality::RandomState;

/// What is done with a message when more waits for its client than may.
///
/// Messages that the server itself owes a client (answers, the packets of a connection, pings) know only
/// [`Close`](Self::Close), and none of the others ever drops one of them.
///
/// ```
/// use sockring::fanout::Policy;
/// assert_eq!(Policy::default(), Policy::Close);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// The client is closed: it may come back, and knows that it has missed something. What one handler emits
    /// without returning does not close it, since the client had no chance to read it.
    #[default]
    Close,
    /// The message is dropped; what waits is sent.
    DropNewest,
    /// What has waited longest is dropped. What is left is still in order.
    DropOldest,
    /// Of messages of one kind only the last one waits: a new one takes the place of the one before it, at
    /// the end. When too many kinds wait, the oldest is dropped.
    KeepLatest,
}

/// How much may wait for one client, and what is done beyond: for prices, positions and cursors, of which
/// nobody wants the old ones.
///
/// The client counts, not the sender: a message is looked at when it is to wait behind others, whoever sent
/// those. One message always fits, however large it is.
///
/// ```
/// use sockring::fanout::{Backpressure, Delivery, Frame, Outlets, Policy, Via};
/// let mut outlets = Outlets::new(1 << 20, 0);
/// let id = outlets.open(Via::Layer);
/// outlets.block(id);
/// let few = Backpressure { max_messages: 2, policy: Policy::DropOldest, ..Backpressure::default() };
/// for text in ["a", "b", "c"] {
///     assert_eq!(outlets.push(id, &Frame::raw(text).bounded(few)), Delivery::Queued);
/// }
/// let mut out = Vec::new();
/// outlets.backlog(id).unwrap().copy_to(&mut out, 100);
/// assert_eq!(out, b"bc");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backpressure {
    /// Bytes that may wait for a client before the next message meets the policy; never more than
    /// `backpressure_bytes` of the runtime.
    pub max_bytes: usize,
    /// Messages that may wait for a client.
    pub max_messages: usize,
    /// What is done with the message that comes when so much waits already.
    pub policy: Policy,
}

impl Default for Backpressure {
    /// The connection's own limit, which closes.
    fn default() -> Self {
        Self { max_bytes: usize::MAX, max_messages: usize::MAX, policy: Policy::Close }
    }
}

/// Tells the kinds of messages apart of which only the latest waits.
///
/// Two keys are taken for the same with a probability of 2^-128; no client can bring it about, since each
/// process has secrets of its own. So two processes have different keys for the same parts. A key's text is
/// 32 hexadecimal digits, for other processes.
///
/// ```
/// use sockring::fanout::Key;
/// assert_eq!(Key::of(&("/", "price", "ACME")), Key::of(&("/", "price", "ACME")));
/// assert_ne!(Key::of(&("/", "price", "ACME")), Key::of(&("/", "price", "EMCA")));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64, u64);

impl Key {
    /// The key of what is made up of these parts.
    pub fn of(parts: &impl std::hash::Hash) -> Self {
        static SECRETS: OnceLock<[RandomState; 2]> = OnceLock::new();
        let [first, second] = SECRETS.get_or_init(Default::default);
        Self(first.hash_one(parts), second.hash_one(parts))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.0, self.1)
    }
}

impl FromStr for Key {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten().ok_or(InvalidKey)?;
        Ok(Self((number >> 64) as u64, number as u64))
    }
}

/// A text that is no [`Key`].
///
/// ```
/// use sockring::fanout::Key;
/// assert_eq!("ACME".parse::<Key>().unwrap_err().to_string(), "a key is 32 hexadecimal digits");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidKey;

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key is 32 hexadecimal digits")
    }
}

impl std::error::Error for InvalidKey {}

/// What became of messages that could not leave at once, on one core, since it started.
///
/// ```
/// use sockring::fanout::Dropped;
/// let some = Dropped { newest: 1, conflated: 2, ..Dropped::default() };
/// assert_eq!(some.messages(), 3);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Messages that were dropped because too much waited.
    pub newest: u64,
    /// Messages that waited and were dropped for newer ones.
    pub oldest: u64,
    /// Messages in whose place came a later one of the same key.
    pub conflated: u64,
    /// Volatile messages for clients that were busy.
    pub volatile: u64,
    /// Clients that were closed because too much waited.
    pub closed: u64,
}

impl Dropped {
    /// All messages that their clients did not get, but for those of clients that were closed.
    pub fn messages(&self) -> u64 {
        self.newest + self.oldest + self.conflated + self.volatile
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_their_text() {
        for key in [Key::of(&"a"), Key(0, 1), Key(u64::MAX, 0)] {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
        for nonsense in ["", "1", &"g".repeat(32), &format!("+{}", "1".repeat(31)), &"1".repeat(33)] {
            assert_eq!(nonsense.parse::<Key>(), Err(InvalidKey), "{nonsense}");
        }
    }
}
