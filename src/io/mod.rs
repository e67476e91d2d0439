//! Socket.IO v5: namespaces, sockets, rooms, broadcasts and acknowledgements.
//!
//! The names are those of the reference's server API, in Rust's spelling. The closure that sets a server
//! up runs once on each core and registers handlers, which may be async and need not be `Send`: a [`Socket`]
//! is a small copy that belongs to its core. What goes to many sockets (`to`, `emit`, `sockets_join`) reaches
//! those of all cores, and a [`Handle`] does the same from any other thread.
//!
//! ```no_run
//! use sockring::app::App;
//! use sockring::io::{Ack, Data, Options, Server, Socket};
//!
//! App::builder()
//!     .listen("127.0.0.1:3000")
//!     .run(|app| {
//!         let io = Server::attach_app(app, Options::default());
//!         io.on_connection(|socket: Socket| {
//!             socket.join("lobby");
//!             socket.on("chat", |socket: Socket, Data(text): Data<String>, ack: Ack| {
//!                 let _ = socket.to("lobby").emit("chat", (socket.id(), text));
//!                 let _ = ack.send("delivered");
//!             });
//!         });
//!     })
//!     .unwrap();
//! ```

mod ack;
mod adapter;
mod binding;
mod broadcast;
mod broadcast_ack;
mod builder;
mod client;
mod client_bundles;
mod client_files;
mod connection;
mod dispatch;
mod entry;
mod error;
mod extract;
mod handle;
mod handshake;
mod listeners;
mod namespace;
mod options;
mod parent;
mod parser;
mod reason;
mod recovery;
mod registry;
mod remote;
mod room_events;
mod server;
mod server_side;
mod socket;
mod state;
mod unfinished;
mod wire;

pub use ack::{Ack, AckError, AckFuture};
pub use adapter::{
    Adapter, BroadcastOptions, ClusterAnswer, ClusterError, LocalAdapter, RestoreAnswer, RestoredSession,
    Session, SocketDetails,
};
pub use broadcast::{BroadcastOperator, RoomNames};
pub use broadcast_ack::{BroadcastAckError, BroadcastAckFuture, BroadcastAcks};
pub use builder::Builder;
pub use connection::Client;
pub use error::{EventError, Failure};
pub use extract::{
    Args, AsyncFn, Called, Data, Description, Event, EventContext, FromEvent, Handler, Outcome, SyncFn,
    TryData,
};
pub use handle::Handle;
pub use handshake::Handshake;
pub use listeners::{HandlerId, Off};
pub use namespace::Namespace;
pub use options::Options;
pub use parent::{ParentNamespace, ParentOperator, Permission, Permit};
#[cfg(feature = "msgpack")]
pub use parser::MsgpackParser;
pub use parser::{Encoded, PacketDecoder, Parser};
pub use reason::DisconnectReason;
pub use recovery::{ConnectionStateRecovery, ExpiredSession};
pub use remote::{RemoteOperator, RemoteSocket};
pub use room_events::RoomEvent;
pub use server::Server;
pub use server_side::{ClusterFuture, ServerAck, ServerEvent};
pub use socket::{Socket, SocketData, SocketId, SocketOperator};
pub use state::State;

pub use crate::fanout::{Backpressure, Delivery, Policy};
pub use crate::protocol::sio::{ArgsError, EncodeError, Value};
