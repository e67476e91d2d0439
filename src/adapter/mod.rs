//! Clusters: several servers that act as one.
//!
//! A server with an [`Adapter`] shares broadcasts, rooms, acknowledgements and more with others. What they
//! say to each other are the [`Message`]s of the reference's `ClusterAdapter`; the logic behind them is a
//! [`Node`], which is pure, for each namespace; [`ClusterAdapter`] drives it over any [`Medium`].
//!
//! There is one medium so far, [`InProcess`], for tests.

mod cluster;
mod in_process;
mod message;
mod node;

pub use cluster::{ClusterAdapter, Inbox, Medium};
pub use in_process::{InProcess, Link};
pub use message::{
    Answer, Body, Broadcast, ClientCount, Disconnect, EMITTER, Fetch, Fetched, Flags, Message, Opts, Packet,
    Rooms, ServerSideEmit,
};
pub use node::{Action, Asker, ClusterOptions, Node, Request};

pub use crate::io::{
    Adapter, BroadcastAcks, BroadcastOptions, ClusterAnswer, ClusterError, KeptPacket, LocalAdapter,
    RestoreAnswer, RestoredSession, Session, SocketDetails,
};
