//! Fan-out: one packet, encoded once, owed to many sockets. No I/O, no clock, no threads of its own.
//!
//! The life of a broadcast through this layer:
//!
//! 1. a packet becomes a [`Frame`]: one immutable buffer in which the WebSocket header already stands in
//!    front of the payload; sockets, transports and cores share it;
//! 2. the [`Directory`] says which cores have members of the room; the [`Mesh`] carries one task to each;
//! 3. on a core, [`Rooms`] lists the members densely, and [`Outlets::push`] notes for each of them, in
//!    four bytes, that it is owed the frame;
//! 4. at the end of the turn everything that is owed to a socket leaves in one send. Sockets that are owed
//!    the same sequence of frames share one joined buffer, made once by the [`Batch`];
//! 5. only a socket that could not take everything keeps references to frames, in a bounded [`Backlog`];
//!    what is done beyond its bounds is a matter of [`Backpressure`].
//!
//! Nothing is allocated, hashed, locked or reference-counted per recipient on this path.
//!
//! Outlets that want something else than the plain form or the usual limit have a [`Class`] of their own.
//! Members who have negotiated permessage-deflate are owed the frame's compressed form, which is made once.

mod backlog;
mod backpressure;
mod batch;
mod directory;
mod frame;
mod mesh;
mod outlets;
mod rooms;
mod space;

pub use backlog::{Backlog, Load};
pub use backpressure::{Backpressure, Dropped, InvalidKey, Key, Policy};
pub use batch::{Batch, Owed};
pub use directory::{Cores, Directory, Moment, RoomKey};
pub use frame::{Frame, PACKED_FORMS};
pub use mesh::{Doorbell, Mesh, Queue, Task};
pub use outlets::{Class, Delivery, OutletId, Outlets, Via};
pub use rooms::{Member, Rooms};
pub use space::Space;
