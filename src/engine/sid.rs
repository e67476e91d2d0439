//! Session ids: secrets that name their owner.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The id of a session, or of a socket: 96 random bits, then the core and the slot of its owner, so that
/// any core finds the owner without a table.
///
/// ```
/// use sockring::engine::SocketSid;
/// let sid = SocketSid::from_parts([7; 12], 3, 70_000);
/// let text = sid.to_string();
/// assert_eq!(text.len(), 22);
/// assert_eq!(SocketSid::parse(&text), Some(sid));
/// assert_eq!((sid.core(), sid.slot()), (3, 70_000));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketSid([u8; 16]);

/// Characters of an id: 16 bytes as URL-safe base64 without padding.
const TEXT_LEN: usize = 22;

impl SocketSid {
    /// An id out of random bytes and its owner; of the slot, 24 bits count.
    pub fn from_parts(random: [u8; 12], core: u8, slot: u32) -> Self {
        let mut bytes = [0; 16];
        bytes[..12].copy_from_slice(&random);
        bytes[12..].copy_from_slice(&(u32::from(core) << 24 | (slot & 0x00FF_FFFF)).to_be_bytes());
        Self(bytes)
    }

    /// Reads what [`Display`](fmt::Display) has written; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != TEXT_LEN {
            return None;
        }
        // The decoder asks for room for whole groups.
        let mut bytes = [0; 18];
        let len = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        Some(Self(bytes.get(..len)?.try_into().ok()?))
    }

    /// The core that owns it.
    pub fn core(&self) -> usize {
        usize::from(self.0[12])
    }

    /// The slot on that core.
    pub fn slot(&self) -> u32 {
        u32::from_be_bytes([0, self.0[13], self.0[14], self.0[15]])
    }
}

impl fmt::Display for SocketSid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; TEXT_LEN];
        let len = URL_SAFE_NO_PAD.encode_slice(self.0, &mut text).map_err(|_| fmt::Error)?;
        f.write_str(str::from_utf8(&text[..len]).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for SocketSid {
    /// Session ids are secrets: a log shows only the owner.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SocketSid(core {}, slot {})", self.core(), self.slot())
    }
}

/// Random bytes from the kernel, fetched for many ids at once.
#[derive(Debug)]
pub(crate) struct Pool {
    bytes: [u8; 12 * 64],
    used: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Self { bytes: [0; 12 * 64], used: 12 * 64 }
    }
}

impl Pool {
    /// Bytes for one id. `None`: the kernel gave none, which only a broken system does.
    pub(crate) fn take(&mut self) -> Option<[u8; 12]> {
        if self.used == self.bytes.len() {
            getrandom::fill(&mut self.bytes).ok()?;
            self.used = 0;
        }
        let taken = self.bytes.get_mut(self.used..self.used + 12)?;
        self.used += 12;
        let random = (&*taken).try_into().ok()?;
        // What was given out is a secret of its session only.
        taken.fill(0);
        Some(random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_hide_themselves() {
        let mut pool = Pool::default();
        let ids: std::collections::HashSet<String> = (0..1000)
            .map(|slot| SocketSid::from_parts(pool.take().unwrap(), 1, slot % 3).to_string())
            .collect();
        assert_eq!(ids.len(), 1000);
        let sid = SocketSid::from_parts(pool.take().unwrap(), 1, 2);
        assert!(!format!("{sid:?}").contains(&sid.to_string()));
    }

    #[test]
    fn nonsense_is_no_id() {
        for text in [
            "",
            "abc",
            "__proto__",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "!!!!!!!!!!!!!!!!!!!!!!",
            "äaaaaaaaaaaaaaaaaaaaa",
        ] {
            assert_eq!(SocketSid::parse(text), None, "{text}");
        }
    }
}
