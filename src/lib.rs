//! A Socket.IO server on io_uring, made for broadcasts to very large numbers of sockets.
//!
//! One process runs one thread for each core, each with an io_uring of its own for all client sockets. A
//! packet is encoded once and shared by every socket, core and transport; what a socket is owed in one turn
//! leaves in one send. Official Socket.IO clients connect unchanged.
//!
//! Start with [`io`] for Socket.IO, or with [`app`] for plain HTTP and WebSocket with topics. The layers
//! stand on one another, each is usable alone, and none knows those above it:
//!
//! | layer | what it is |
//! |---|---|
//! | [`adapter`] | clusters: servers that act as one (over any medium) |
//! | [`io`] | Socket.IO v5: namespaces, sockets, rooms, broadcasts, acknowledgements |
//! | [`engine`] | Engine.IO v4: sessions over polling and WebSocket, upgrade, heartbeat |
//! | [`app`] | HTTP routes, raw WebSockets, topics |
//! | [`runtime`] | monoio and the socket ring: accept, receive, send, threads; the only `unsafe` |
//! | [`fanout`] | frames, outlets, rooms, the directory of rooms, the mesh between cores; no I/O |
//! | [`protocol`] | codecs: HTTP, WebSocket, Engine.IO, Socket.IO; no I/O, no clock |
//!
//! # Contents
//!
//! Each line leads to a section with a snippet, and to what it is about.
//!
//! * [A server](#a-server), and [what to know first](#what-to-know-before-the-first-handler): on this page
//! * [Listening, attaching, closing](io#servers): [`io::Server`], [`io::Builder`], [`io::Options`]
//! * [Namespaces](io#namespaces): [`io::Namespace`], [`io::ParentNamespace`]
//! * [Middlewares](io#middlewares): [`io::Namespace::middleware`], [`io::Socket::middleware`]
//! * [Sockets, events, acknowledgements](io#sockets-events-and-acknowledgements): [`io::Socket`], [`io::Ack`]
//! * [Data, state and errors](io#data-state-and-errors): [`io::Data`], [`io::State`], [`io::EventError`]
//! * [Rooms and broadcasts](io#rooms-and-broadcasts), also from other threads: [`io::BroadcastOperator`],
//!   [`io::Handle`]
//! * [Sockets of all cores and servers](io#sockets-of-all-cores-and-servers): [`io::RemoteSocket`],
//!   [`io::ServerEvent`], [`adapter`]
//! * [Connection state recovery](io#connection-state-recovery): [`io::ConnectionStateRecovery`]
//! * [Other parsers](io#other-parsers), MessagePack: [`io::Parser`]
//! * Slow clients: [`io::Backpressure`], [`io::Namespace::on_drain`]
//! * Engine.IO alone: [`engine::Server`]
//! * HTTP routes, static files, raw WebSockets, topics: [`app`]
//! * TLS, Unix sockets, sockets that are open already: [`app::Builder`], [`runtime::Options`]
//!
//! # A server
//!
//! ```no_run
//! use sockring::app::App;
//! use sockring::io::{Data, Options, Server, Socket};
//!
//! fn main() -> Result<(), sockring::runtime::StartError> {
//!     App::builder().listen("127.0.0.1:3000").run(|app| {
//!         let io = Server::attach_app(app, Options::default());
//!         io.on_connection(|socket: Socket| {
//!             socket.join("lobby");
//!             socket.on("say", |socket: Socket, Data(text): Data<String>| {
//!                 socket.to("lobby").emit("said", (socket.id(), text))
//!             });
//!         });
//!     })
//! }
//! ```
//!
//! # What to know before the first handler
//!
//! * The closure given to [`run`](app::Builder::run) runs once on each core. What it makes stays there, so
//!   `Rc` and `RefCell` are fine; what cores share needs `Arc` and a lock.
//! * Handlers run on the core of their socket and must not block it: no file, no sleep, no lock that others
//!   hold for long. `async` handlers run beside the turns, on [monoio](https://docs.rs/monoio); so
//!   does what [`spawn`] is given, where a panic ends that future alone.
//! * A [`io::Socket`] belongs to its core. From other threads, use an [`io::Handle`].
//! * `emit` does not send: it notes what is owed, and everything leaves at the end of the turn.
//! * Whoever does not read is bounded by [`backpressure_bytes`](runtime::Options::backpressure_bytes) and
//!   closed beyond it; it delays nobody else.

pub mod adapter;
pub mod app;
pub mod engine;
pub mod fanout;
pub mod io;
pub mod limits;
pub mod protocol;
pub mod runtime;
pub mod time;

pub use runtime::spawn;
#[cfg(feature = "tls")]
pub use runtime::tls;

/// The README's server compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../docs/PORTING_BY_EXAMPLE.md")]
struct PortingByExample;
