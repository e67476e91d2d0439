//! One accepted socket, as the runtime sees it.

use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::ring::{GENERATION_MASK, Kind, Tag, Target};
#[cfg(feature = "tls")]
use super::secure::Session;
use crate::fanout::OutletId;
use crate::time::Millis;

/// A handle on a connection of this core, void once the connection is closed.
///
/// ```
/// # use sockring::runtime::ConnectionId;
/// fn close_all(connections: &[ConnectionId]) {
///     let Some(core) = sockring::runtime::current() else { return };
///     connections.iter().for_each(|connection| core.close(*connection));
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl ConnectionId {
    /// The index of the connection on its core, for tables beside the runtime's own. It is used again
    /// after the connection has closed.
    pub fn slot(self) -> u32 {
        self.slot
    }

    /// What tells it apart from others with its slot, for tables by slot that need no more.
    pub(crate) fn generation(self) -> u32 {
        self.generation
    }

    pub(crate) fn of(slot: u32, generation: u32) -> Self {
        Self { slot, generation }
    }
}

/// Why a connection ended by itself.
///
/// ```
/// use sockring::runtime::Ended;
/// assert_ne!(Ended::Eof, Ended::Reset);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// The peer has closed its side, and nobody has anything more to say to it.
    Eof,
    /// The connection was reset, or timed out in the kernel.
    Reset,
    /// More waited for the client than `backpressure_bytes` allows.
    Overflow,
    /// A handler panicked while it read from this connection.
    Panic,
}

/// What travels with a connection that moves to another core.
///
/// ```
/// use sockring::runtime::Parcel;
/// fn whence(parcel: &Parcel) -> String {
///     format!("{} bytes of {:?}", parcel.bytes.len(), parcel.peer)
/// }
/// ```
#[derive(Debug)]
pub struct Parcel {
    /// Bytes that were received and belong to a request that the new core is to read.
    pub bytes: Vec<u8>,
    /// The peer's address; `None` for a Unix socket.
    pub peer: Option<SocketAddr>,
    pub(super) listener: u16,
    /// Whatever the layer above wants to tell itself.
    pub note: Box<dyn Any + Send>,
    #[cfg(feature = "tls")]
    pub(super) session: Option<Box<Session>>,
}

impl Parcel {
    pub(super) fn new(
        bytes: Vec<u8>,
        peer: Option<SocketAddr>,
        listener: u16,
        note: Box<dyn Any + Send>,
    ) -> Self {
        Self {
            bytes,
            peer,
            listener,
            note,
            #[cfg(feature = "tls")]
            session: None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) target: Target,
    pub(super) generation: u32,
    pub(super) outlet: OutletId,
    pub(super) peer: Peer,
    /// The number of the listener that it came through, for what its connections have in common.
    pub(super) listener: u16,
    pub(super) receive: Receive,
    /// Whether a poll for writability is armed.
    pub(super) polled: bool,
    pub(super) phase: Phase,
    pub(super) moving: Option<Box<Moving>>,
}

// There is one for each socket, and a cache line holds it.
const _: () = assert!(size_of::<Connection>() <= 64);

/// An address in 20 bytes instead of 32: there is one for each connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(Option<(IpAddr, u16)>);

impl From<Option<SocketAddr>> for Peer {
    fn from(address: Option<SocketAddr>) -> Self {
        Self(address.map(|address| (address.ip(), address.port())))
    }
}

impl From<Peer> for Option<SocketAddr> {
    fn from(peer: Peer) -> Self {
        peer.0.map(|(ip, port)| SocketAddr::new(ip, port))
    }
}

/// The state of the multishot receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    Armed,
    /// A cancel was submitted; data may still come before the last completion does.
    Stopping,
    /// To be armed at the end of the turn: it found no buffer, or the connection has just arrived.
    Wanted,
    /// Not to be armed.
    Idle,
    /// The peer has closed its side, and a poll for its going away is armed.
    Ended,
}

/// A time in milliseconds, in 32 bits: good for 49 days, and what is compared with it lies seconds away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadline(u32);

impl Deadline {
    /// A time that has always passed.
    pub(super) fn passed(now: Millis) -> Self {
        Self(now as u32)
    }

    pub(super) fn after(now: Millis, wait: Duration) -> Self {
        Self((now as u32).wrapping_add(wait.as_millis() as u32))
    }

    pub(super) fn is_over(self, now: Millis) -> bool {
        // The difference wraps: a deadline ahead is a large number.
        (now as u32).wrapping_sub(self.0) < u32::MAX / 2
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// A header of the PROXY protocol is to come first: the layer above knows nothing of it yet.
    Preface {
        deadline: Deadline,
    },
    Open,
    /// The layer above is done with it: it closes when everything owed has left.
    Closing {
        deadline: Deadline,
        linger: bool,
    },
    /// The writing side is shut down; what still comes is thrown away.
    Lingering {
        deadline: Deadline,
        bytes: u32,
    },
    /// Waits for the last completion of its receive and until everything owed has left, then leaves for
    /// another core.
    Moving {
        deadline: Deadline,
    },
    /// Its descriptor is on the way.
    Departed,
}

#[derive(Debug)]
pub(super) struct Moving {
    pub(super) core: usize,
    pub(super) parcel: Parcel,
}

impl Connection {
    /// Wants no more to be received: the tag of what is to be cancelled, if something is armed.
    pub(super) fn stop_receive(&mut self, slot: u32) -> Option<Tag> {
        match self.receive {
            Receive::Armed => {
                self.receive = Receive::Stopping;
                Some(self.tag(Kind::Receive, slot))
            }
            Receive::Wanted => {
                self.receive = Receive::Idle;
                None
            }
            Receive::Ended => {
                self.receive = Receive::Idle;
                Some(self.tag(Kind::Hangup, slot))
            }
            Receive::Stopping | Receive::Idle => None,
        }
    }

    pub(super) fn tag(&self, kind: Kind, slot: u32) -> Tag {
        Tag { kind, generation: self.generation & GENERATION_MASK, slot }
    }
}
