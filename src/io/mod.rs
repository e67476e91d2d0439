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
//!
//! # Servers
//!
//! A server is part of an App ([`Server::attach_app`]), listens by itself ([`Server::listen`]), or is built
//! first and listens later ([`Server::builder`], with [`attach`](Builder::attach) for a listener that is
//! there already). [`Server::bind`] takes an engine's sessions, [`Server::close`] ends it gracefully, and
//! [`Options`] has the reference's names and defaults. Among them,
//! [`allow_eio3`](crate::engine::Options::allow_eio3) lets clients of Socket.IO v2 in.
//!
//! ```no_run
//! use sockring::engine;
//! use sockring::io::{Options, Server};
//!
//! let io = Server::builder()
//!     .options(|| Options {
//!         engine: engine::Options { allow_eio3: true, ..Options::default().engine },
//!         ..Options::default()
//!     })
//!     .set_up(|io| {
//!         let server = io.clone();
//!         io.sockets_on("shut down", move || {
//!             let closed = server.close();
//!             async move { closed.await }
//!         });
//!     });
//! let running = io.listen("127.0.0.1:3000")?;
//! running.run_until_signal()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Namespaces
//!
//! By name, by a regular expression, or by a function that may be async. A [`ParentNamespace`] lends its
//! handlers and middlewares to its children, and broadcasts to all of them.
//!
//! ```no_run
//! # use sockring::io::{Handshake, Namespace, Server, Socket};
//! # async fn is_tenant(name: &str) -> bool { name.len() < 20 }
//! # fn set_up(io: &Server) -> Result<(), Box<dyn std::error::Error>> {
//! io.of("/admin").on_connection(|socket: Socket| println!("{} is an admin", socket.id()));
//! let rooms = io.of_pattern(regex::Regex::new(r"^/room-\d+$")?);
//! let tenants = io.of_fn(|name: String, _: Handshake| async move { is_tenant(&name).await });
//! tenants.on_connection(|socket: Socket| socket.join("everybody"));
//! io.on_new_namespace(|nsp: Namespace| println!("{} is there now", nsp.name()));
//! let _ = rooms.emit("maintenance", "in five minutes")?;
//! # Ok(())
//! # }
//! ```
//!
//! # Middlewares
//!
//! Those of a namespace decide who joins it: [`Namespace::middleware`]. Those of a socket see each packet:
//! [`Socket::middleware`]; what they refuse is told to the handlers of `error`.
//!
//! ```no_run
//! # use sockring::io::{Event, Data, Failure, Server, Socket, Value};
//! # async fn user_of(token: &str) -> Option<String> { Some(token.into()) }
//! # fn set_up(io: &Server) {
//! io.middleware(|socket: Socket, Data(auth): Data<Value>| async move {
//!     let token = auth.get("token").and_then(Value::as_str).unwrap_or_default();
//!     match user_of(token).await {
//!         Some(user) => Ok(drop(socket.set_data(user))),
//!         // The client's `connect_error` has both.
//!         None => Err(Failure::new("who are you?").data("unknown token")),
//!     }
//! });
//! io.on_connection(|socket: Socket| {
//!     socket.middleware(|Event(name): Event| if name == "sudo" { Err("not you") } else { Ok(()) });
//!     socket.on("error", |failure: Failure| println!("refused: {failure}"));
//! });
//! # }
//! ```
//!
//! # Sockets, events and acknowledgements
//!
//! ```no_run
//! # use std::time::Duration;
//! # use sockring::io::{Ack, Args, Data, Description, DisconnectReason, Event, Server, Socket};
//! # fn set_up(io: &Server) {
//! io.on_connection(|socket: Socket| {
//!     socket.on("add", |Data((a, b)): Data<(i64, i64)>, ack: Ack| ack.send(a + b));
//!     socket.once("first", |socket: Socket| socket.emit("thank you", ()));
//!     let any = socket.on_any(|Event(name): Event, args: Args| println!("{name} {args:?}"));
//!     socket.on("enough", move |socket: Socket| socket.off_any(any));
//!     socket.on("ask me", |socket: Socket| async move {
//!         let asked = socket.timeout(Duration::from_secs(3)).emit_with_ack::<String, _>("name?", ());
//!         match asked.await {
//!             Ok(name) => println!("it is {name}"),
//!             Err(error) => println!("no answer: {error}"),
//!         }
//!     });
//!     let _ = socket.volatile().emit("position", (1.5, 2.5));
//!     socket.on("disconnecting", |socket: Socket| println!("it was in {:?}", socket.rooms()));
//!     socket.on("disconnect", |reason: DisconnectReason, Description(more): Description| {
//!         println!("{reason} {more:?}");
//!     });
//!     socket.on("leave me", |socket: Socket| socket.disconnect(true));
//! });
//! # }
//! ```
//!
//! # Data, state and errors
//!
//! Arguments are of any types that serde knows, with binary ([`bytes::Bytes`]) at any depth; [`Data`] reads
//! them, [`Args`] has them as they are, as [`Value`]s. [`State`] is what all handlers of a core share,
//! [`Socket::set_data`] what belongs to one socket. A handler that fails, or whose arguments are not what it
//! takes, is told to [`Server::on_error`].
//!
//! ```no_run
//! # use std::cell::Cell;
//! # use sockring::io::{Ack, Data, EventError, Server, Socket, State};
//! #[derive(serde::Deserialize)]
//! struct Upload {
//!     name: String,
//!     content: bytes::Bytes,
//! }
//! struct Total(Cell<usize>);
//!
//! # fn set_up(io: &Server) {
//! io.set_state(Total(Cell::new(0)));
//! io.sockets_on("upload", |Data(file): Data<Upload>, total: State<Total>, ack: Ack| {
//!     if file.content.is_empty() {
//!         return Err(format!("{} is empty", file.name).into());
//!     }
//!     total.0.set(total.0.get() + file.content.len());
//!     ack.send(total.0.get())?;
//!     Ok::<(), Box<dyn std::error::Error>>(())
//! });
//! io.on_error(|socket: Socket, error: &EventError| println!("{}: {error}", socket.id()));
//! # }
//! ```
//!
//! # Rooms and broadcasts
//!
//! Operators are values: they can be kept, and each call gives a new one. Whoever is in several of the rooms
//! gets a message once. From another thread the same calls are those of a [`Handle`].
//!
//! ```no_run
//! # use std::time::Duration;
//! # use sockring::io::{Server, Socket};
//! # async fn f(io: Server, socket: Socket) -> Result<(), Box<dyn std::error::Error>> {
//! socket.join(["lobby", "news"]);
//! let others = socket.to("lobby").to("news").except("away");
//! let _ = others.emit("said", "hello")?;
//! let _ = io.local().volatile().emit("tick", 1)?;
//! let votes = io.to("jury").timeout(Duration::from_secs(10)).emit_with_ack::<u8, _>("vote", ());
//! match votes.await {
//!     Ok(votes) => println!("{votes:?}"),
//!     Err(error) => println!("{error}, but these have voted: {:?}", error.answers),
//! }
//! let handle = io.handle();
//! std::thread::spawn(move || handle.to("news").emit("headline", "all is well"));
//! # Ok(())
//! # }
//! ```
//!
//! # Sockets of all cores and servers
//!
//! With an [`Adapter`] several servers act as one: see [`adapter`](crate::adapter).
//!
//! ```no_run
//! # use sockring::io::{Server, ServerEvent};
//! # async fn f(io: Server) -> Result<(), Box<dyn std::error::Error>> {
//! for socket in io.to("lobby").fetch_sockets().await? {
//!     println!("{} is in {:?}", socket.id, socket.rooms);
//!     socket.join("seen");
//! }
//! io.to("lobby").sockets_join("arena");
//! io.to("banned").disconnect_sockets(true);
//! io.on_server_event("how many?", |event: ServerEvent| drop(event.ack.send(7)));
//! let answers: Vec<u32> = io.server_side_emit_with_ack("how many?", ()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Connection state recovery
//!
//! ```no_run
//! # use sockring::app::App;
//! use sockring::io::{ConnectionStateRecovery, ExpiredSession, Options, Server, Socket};
//! # fn set_up(app: &App) {
//! let recovery = Some(ConnectionStateRecovery::default());
//! let io = Server::attach_app(app, Options { connection_state_recovery: recovery, ..Options::default() });
//! io.on_connection(|socket: Socket| {
//!     if socket.recovered() {
//!         println!("{} is back, with its rooms, and has got what it missed", socket.id());
//!     }
//! });
//! io.on_session_expired(|gone: &ExpiredSession| println!("{} comes back no more", gone.id));
//! # }
//! ```
//!
//! # Other parsers
//!
//! [`Options::parser`] takes `MsgpackParser` (feature `msgpack`) or a [`Parser`] of one's own.

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
mod middlewares;
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
mod told;
mod unfinished;
mod wire;

pub use ack::{Ack, AckError, AckFuture};
pub use adapter::{
    Adapter, BroadcastOptions, ClusterAnswer, ClusterError, KeptPacket, LocalAdapter, RestoreAnswer,
    RestoredSession, Session, SocketDetails,
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
pub use handle::{Handle, NotServed};
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
pub use socket::{Joined, Socket, SocketData, SocketId, SocketOperator};
pub use state::State;

pub use crate::fanout::{Backpressure, Delivery, Policy};
pub use crate::protocol::sio::{ArgsError, EncodeError, Value};
