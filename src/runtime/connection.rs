//! One accepted socket, as the runtime sees it.

use std::any::Any;
use std::net::SocketAddr;

use super::ring::{GENERATION_MASK, Kind, Tag, Target};
use crate::fanout::OutletId;
use crate::time::Millis;

/// A handle on a connection of this core, void once the connection is closed.
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
}

/// Why a connection ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// The peer has closed its side.
    Eof,
    /// The connection was reset, or timed out in the kernel.
    Reset,
    /// More waited for the client than `backpressure_bytes` allows.
    Overflow,
    /// A handler panicked while it read from this connection.
    Panic,
}

/// What travels with a connection that moves to another core.
#[derive(Debug)]
pub struct Parcel {
    /// Bytes that were received and belong to a request that the new core is to read.
    pub bytes: Vec<u8>,
    /// The peer's address; `None` for a Unix socket.
    pub peer: Option<SocketAddr>,
    /// Whatever the layer above wants to tell itself.
    pub note: Box<dyn Any + Send>,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) target: Target,
    pub(super) generation: u32,
    pub(super) outlet: OutletId,
    pub(super) peer: Option<SocketAddr>,
    pub(super) receive: Receive,
    /// Whether a poll for writability is armed.
    pub(super) polled: bool,
    pub(super) phase: Phase,
    pub(super) moving: Option<Box<Moving>>,
}

/// The state of the multishot receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    Armed,
    /// A cancel was submitted; data may still come before the last completion does.
    Stopping,
    Idle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// The layer above is done with it: it closes when everything owed has left.
    Closing { deadline: Millis, linger: bool },
    /// The writing side is shut down; what still comes is thrown away.
    Lingering { deadline: Millis, bytes: usize },
    /// Waits for the last completion of its receive, then leaves for another core.
    Moving,
}

#[derive(Debug)]
pub(super) struct Moving {
    pub(super) core: usize,
    pub(super) parcel: Parcel,
}

impl Connection {
    pub(super) fn tag(&self, kind: Kind, slot: u32) -> Tag {
        Tag { kind, generation: self.generation & GENERATION_MASK, slot }
    }
}
