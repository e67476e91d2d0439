//! Connection state recovery: a client that comes back soon is the same socket again, in its rooms, and gets
//! what it has missed.
//!
//! Each core keeps a [`Log`](log::Log) of what was emitted to its sockets, in the order in which they were
//! owed it, and the sessions of those that have left it. A session that is gone for a while still holds its
//! rooms, so that what goes to them is logged. A client that comes back to another core brings its session
//! there (`restore.rs`); from then on that core's log tells what it is owed. An adapter may keep sessions and
//! packets beyond the process (`kept.rs`).

mod kept;
mod log;
mod restore;
mod sessions;

use std::cell::Cell;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use log::Bounds;
pub(super) use log::{Audience, Emitted, Usage};
pub(super) use restore::{Recovery, claim};
pub(super) use sessions::{Sessions, State};

use super::{DisconnectReason, SocketId};
use crate::engine;
use crate::engine::SocketSid;
use crate::protocol::sio::Value;
use crate::time::{Millis, millis};

/// Whether clients that lose their connection may come back as who they were, with the reference's names and
/// defaults, and bounds that it does not have.
///
/// A socket that comes back has [`recovered`](super::Socket::recovered) set, its id, its rooms and its data
/// ([`recovered_data`](super::Socket::recovered_data)), and gets what was emitted to it meanwhile. It does so
/// only if its connection ended by accident, not by `disconnect()` of either side. Packets that are volatile
/// or ask for acknowledgements are not kept. Every other packet takes 14 bytes more on the wire, and on each
/// core that has members some 200 bytes and a reference to its buffer for as long as it may be asked for.
///
/// ```
/// use std::time::Duration;
/// use sockring::io::{ConnectionStateRecovery, Options};
/// let recovery = ConnectionStateRecovery {
///     max_disconnection_duration: Duration::from_secs(30),
///     ..ConnectionStateRecovery::default()
/// };
/// let options = Options { connection_state_recovery: Some(recovery), ..Options::default() };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionStateRecovery {
    /// For how long a client may be gone.
    pub max_disconnection_duration: Duration,
    /// Whether a socket that comes back is let in without asking the middlewares.
    pub skip_middlewares: bool,
    /// Bytes that one core keeps of packets, 64 MiB by default, with what clients that move between cores
    /// bring along. Beyond, the oldest are forgotten, and clients that have not got them come back as new
    /// sockets.
    pub max_bytes: usize,
    /// Packets that one core keeps for one namespace, 100,000 by default.
    pub max_packets: usize,
    /// Sockets of one core that are gone and may come back, 100,000 by default. Beyond, the one that has been
    /// gone for longest is given up.
    pub max_sessions: usize,
    /// Bytes that one core keeps of them: their rooms' names and their data, 64 MiB by default. Beyond, the
    /// one that has been gone for longest is given up.
    pub max_session_bytes: usize,
}

impl Default for ConnectionStateRecovery {
    fn default() -> Self {
        Self {
            max_disconnection_duration: Duration::from_millis(120_000),
            skip_middlewares: true,
            max_bytes: 64 << 20,
            max_packets: 100_000,
            max_sessions: 100_000,
            max_session_bytes: 64 << 20,
        }
    }
}

impl ConnectionStateRecovery {
    pub(super) fn sessions(&self, engine: &engine::Options, usage: Rc<Usage>) -> Sessions {
        let window = millis(self.max_disconnection_duration);
        // Until it is noticed that a client is gone, what it is sent may be lost as well. See `OFFSETS_KEPT`.
        let unnoticed =
            millis(engine.ping_interval.saturating_add(engine.ping_timeout)).saturating_add(UNNOTICED_SLACK);
        let age = window.saturating_add(unnoticed);
        let bounds = Bounds { age, packets: self.max_packets, bytes: self.max_bytes };
        Sessions::new(window, bounds, usage)
    }
}

/// Ticks that a heartbeat's deadlines and a close take longer than they say.
const UNNOTICED_SLACK: Millis = 1000;

/// Whether a socket that leaves for this reason may come back.
pub(super) fn is_recoverable(reason: DisconnectReason) -> bool {
    use DisconnectReason as R;
    matches!(
        reason,
        R::TransportError | R::TransportClose | R::ForcedClose | R::PingTimeout | R::ServerShuttingDown
    )
}

/// A socket that may not come back any more: its time is over.
///
/// ```no_run
/// # use sockring::io::Server;
/// # fn set_up(io: &Server) {
/// io.sockets().on_session_expired(|session| println!("{} is gone, and leaves {:?}", session.id,
/// session.rooms));
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExpiredSession {
    /// The id that it had.
    pub id: SocketId,
    /// The rooms that it was in, that of its own id among them.
    pub rooms: Vec<String>,
    /// What [`Socket::set_data`](super::Socket::set_data) had attached, serialised when it left.
    pub data: Value,
}

/// The private id of a session, a secret of its client: random, and the core on which it began.
pub(super) type Pid = SocketSid;

/// The name of a packet, by which a client says what it has received last.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Offset(u64);

impl Offset {
    /// One that no other packet has. `None`: the kernel gives no random numbers.
    pub(super) fn next() -> Option<Self> {
        thread_local! {
            // Each thread counts from a number of its own, so they need nothing in common.
            static NEXT: Cell<Option<u64>> = const { Cell::new(None) };
        }
        let next = match NEXT.get() {
            Some(next) => next,
            None => getrandom::u64().ok()?,
        };
        NEXT.set(Some(next.wrapping_add(1)));
        Some(Self(next))
    }

    /// The packet with this name. Names of an adapter have a form of its own: what they stand for is all that
    /// counts here, since the packet has the name in it.
    pub(super) fn of(name: &str) -> Self {
        Self::parse(name).unwrap_or_else(|| {
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            Self(hasher.finish())
        })
    }

    fn parse(text: &str) -> Option<Self> {
        // The decoder asks for room for whole groups.
        let mut bytes = [0; 9];
        let len = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        Some(Self(u64::from_be_bytes(bytes.get(..len)?.try_into().ok()?)))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 11];
        let len = URL_SAFE_NO_PAD.encode_slice(self.0.to_be_bytes(), &mut text).map_err(|_| fmt::Error)?;
        f.write_str(str::from_utf8(&text[..len]).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Offset({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_their_text_and_differ() {
        let offsets: Vec<_> = (0..100).filter_map(|_| Offset::next()).collect();
        let others = std::thread::spawn(|| (0..100).filter_map(|_| Offset::next()).collect::<Vec<_>>());
        let mut all = std::collections::HashSet::new();
        for offset in offsets.into_iter().chain(others.join().unwrap()) {
            assert_eq!(Offset::parse(&offset.to_string()), Some(offset));
            assert!(all.insert(offset));
        }
        assert_eq!(all.len(), 200);
        for nonsense in ["", "abc", "AAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAA!", "AAAAAAAAAAB"] {
            assert_eq!(Offset::parse(nonsense), None, "{nonsense}");
        }
    }
}
