//! One accepted socket, as the runtime sees it.

use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use slab::Slab;

use super::addresses::Addresses;
use super::ring::{GENERATION_MASK, Kind, Tag, Target};
#[cfg(feature = "tls")]
use super::secure::Session;
use crate::fanout::{OutletId, Via};
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
    slot: u32,
    generation: u32,
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

    /// The user data of a request for this connection.
    pub(super) fn tag(self, kind: Kind) -> Tag {
        Tag { kind, generation: self.generation & GENERATION_MASK, slot: self.slot }
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
    generation: u32,
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

/// A time in milliseconds, in 32 bits, which go round after 49 days: what is compared with it lies less than
/// half of that away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadline(u32);

impl Deadline {
    /// A time that has always passed.
    pub(super) fn passed(now: Millis) -> Self {
        Self(now as u32)
    }

    /// The time some while from now. An operator's endless timeout ends after 24 days: nothing that is
    /// closing takes as long, and a longer wait would count as one that is over.
    pub(super) fn after(now: Millis, wait: Duration) -> Self {
        const LONGEST: u32 = u32::MAX / 2;
        let wait = u32::try_from(wait.as_millis()).unwrap_or(LONGEST).min(LONGEST);
        Self((now as u32).wrapping_add(wait))
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
    pub(super) fn stop_receive(&mut self, id: ConnectionId) -> Option<Tag> {
        match self.receive {
            Receive::Armed => {
                self.receive = Receive::Stopping;
                Some(id.tag(Kind::Receive))
            }
            Receive::Wanted => {
                self.receive = Receive::Idle;
                None
            }
            Receive::Ended => {
                self.receive = Receive::Idle;
                Some(id.tag(Kind::Hangup))
            }
            Receive::Stopping | Receive::Idle => None,
        }
    }
}

/// The connections of a core. None is reached but by a handle: a number by itself may be another client's.
#[derive(Debug)]
pub(super) struct Connections {
    slots: Slab<Connection>,
    /// Counts each connection but those that wait for a header of the PROXY protocol, whose client is not
    /// known yet.
    addresses: Addresses,
    /// Of the next connection. The kernel's requests carry its lower 24 bits.
    generation: u32,
}

impl Connections {
    pub(super) fn new(capacity: usize, per_address: usize) -> Self {
        Self { slots: Slab::with_capacity(capacity), addresses: Addresses::new(per_address), generation: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Takes a socket in; its outlet is made for the handle.
    pub(super) fn insert(
        &mut self,
        target: Target,
        peer: Option<SocketAddr>,
        listener: u16,
        outlet: impl FnOnce(ConnectionId) -> OutletId,
    ) -> ConnectionId {
        self.addresses.enter(peer);
        let entry = self.slots.vacant_entry();
        let id = ConnectionId { slot: entry.key() as u32, generation: self.generation };
        self.generation = self.generation.wrapping_add(1);
        entry.insert(Connection {
            target,
            generation: id.generation,
            outlet: outlet(id),
            peer: peer.into(),
            listener,
            receive: Receive::Idle,
            polled: false,
            phase: Phase::Open,
            moving: None,
        });
        id
    }

    /// A connection that is there, whatever its phase.
    #[inline]
    pub(super) fn get(&self, id: ConnectionId) -> Option<&Connection> {
        self.slots.get(id.slot as usize).filter(|connection| connection.generation == id.generation)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.slots.get_mut(id.slot as usize).filter(|connection| connection.generation == id.generation)
    }

    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        self.get(id)?;
        let connection = self.slots.try_remove(id.slot as usize)?;
        if !matches!(connection.phase, Phase::Preface { .. }) {
            self.addresses.leave(connection.peer.into());
        }
        Some(connection)
    }

    /// Whether the address of a connection has more of them than it may have.
    pub(super) fn is_crowded(&self, id: ConnectionId) -> bool {
        self.get(id).is_some_and(|connection| self.addresses.are_too_many(connection.peer.into()))
    }

    /// A header of the PROXY protocol is to say whose connection this is.
    pub(super) fn begin_preface(&mut self, id: ConnectionId, deadline: Deadline) {
        let Some(connection) = self.get_mut(id) else { return };
        connection.phase = Phase::Preface { deadline };
        let peer = connection.peer;
        self.addresses.leave(peer.into());
    }

    /// The header has come; `peer` is the client's address if it says one.
    pub(super) fn end_preface(&mut self, id: ConnectionId, peer: impl FnOnce(Peer) -> Peer) {
        let Some(connection) = self.get_mut(id) else { return };
        connection.phase = Phase::Open;
        connection.peer = peer(connection.peer);
        let peer = connection.peer;
        self.addresses.enter(peer.into());
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ConnectionId, &Connection)> {
        let id = |(slot, connection): (usize, &Connection)| ConnectionId {
            slot: slot as u32,
            generation: connection.generation,
        };
        self.slots.iter().map(move |entry| (id(entry), entry.1))
    }

    /// The connection that a request was made for.
    pub(super) fn of_tag(&self, tag: Tag) -> Option<ConnectionId> {
        let generation = self.slots.get(tag.slot as usize)?.generation;
        (generation & GENERATION_MASK == tag.generation)
            .then_some(ConnectionId { slot: tag.slot, generation })
    }

    /// The connection that has an outlet, which names it as its way.
    #[inline]
    pub(super) fn of_outlet(
        &self,
        outlet: OutletId,
        via: Option<Via>,
    ) -> Option<(ConnectionId, &Connection)> {
        let Some(Via::Connection(slot)) = via else { return None };
        let connection = self.slots.get(slot as usize).filter(|connection| connection.outlet == outlet)?;
        Some((ConnectionId { slot, generation: connection.generation }, connection))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_over_after_its_time_and_never_before() {
        const DAY: u64 = 24 * 60 * 60 * 1000;
        let waits = [0, 1, 20, 3_000, DAY, 20 * DAY].map(Duration::from_millis);
        for now in [0, 1, u64::from(u32::MAX) - 5, u64::from(u32::MAX) + 1, 400 * DAY] {
            for wait in waits {
                let (deadline, millis) = (Deadline::after(now, wait), wait.as_millis() as u64);
                assert!(millis == 0 || !deadline.is_over(now), "{now} {wait:?}");
                assert!(millis == 0 || !deadline.is_over(now + millis - 1), "{now} {wait:?}");
                assert!(
                    deadline.is_over(now + millis) && deadline.is_over(now + millis + DAY),
                    "{now} {wait:?}"
                );
            }
            for endless in [Duration::MAX, Duration::from_secs(50 * 24 * 60 * 60)] {
                let deadline = Deadline::after(now, endless);
                assert!(!deadline.is_over(now) && !deadline.is_over(now + 24 * DAY), "{now}");
            }
        }
    }

    #[test]
    fn a_handle_that_is_void_reaches_no_connection() {
        let mut outlets = crate::fanout::Outlets::new(1000, 0);
        let mut connections = Connections::new(0, 0);
        let mut open = |connections: &mut Connections| {
            connections.insert(Target::Normal(9), None, 0, |id| outlets.open(Via::Connection(id.slot())))
        };
        let old = open(&mut connections);
        let outlet = connections.get(old).unwrap().outlet;
        assert!(connections.remove(old).is_some());
        let new = open(&mut connections);
        assert_eq!(new.slot(), old.slot());
        assert!(connections.get(old).is_none() && connections.get_mut(old).is_none());
        assert!(connections.remove(old).is_none() && connections.get(new).is_some());
        assert_eq!(connections.of_tag(old.tag(Kind::Send)), None);
        assert_eq!(connections.of_tag(new.tag(Kind::Send)), Some(new));
        let via = Some(Via::Connection(new.slot()));
        assert!(connections.of_outlet(outlet, via).is_none(), "the outlet was the old one's");
        let own = connections.get(new).unwrap().outlet;
        assert_eq!(connections.of_outlet(own, via).map(|(id, _)| id), Some(new));
        assert!(connections.of_outlet(own, Some(Via::Layer)).is_none());
    }
}
