//! Engine.IO v4, and v3 for older clients: sessions over long-polling and WebSocket, with upgrade and
//! heartbeat.
//!
//! What the npm package `engine.io` is to Node.js: usable without Socket.IO, for bidirectional messages
//! that survive proxies without WebSocket. The state machines ([`Session`], [`Heartbeat`], [`Upgrade`]) are
//! pure and take the time as an argument; the [`Server`] joins them to an [`App`](crate::app::App).
//!
//! A session lives on one core. Its id names that core, so a request that lands on another one is handed
//! over with its connection, which then stays with the session.
//!
//! ```no_run
//! use sockring::app::App;
//! use sockring::engine::{Handlers, Message, Options, Server};
//!
//! App::builder()
//!     .listen("127.0.0.1:3000")
//!     .run(|app| {
//!         let echo = Handlers::default().message(|socket, message| {
//!             let _ = match message {
//!                 Message::Text(text) => socket.send_text(text),
//!                 Message::Binary(data) => socket.send_binary(data),
//!             };
//!         });
//!         Server::attach(app, Options::default(), echo);
//!     })
//!     .unwrap();
//! ```

mod admission;
mod closing;
mod cookie;
mod cors;
mod decide;
mod events;
mod headers;
mod heartbeat;
mod hooks;
mod http;
mod ids;
mod jsonp;
mod middleware;
mod options;
mod payload;
mod polling;
mod posted;
mod server;
mod session;
mod sid;
mod socket;
mod taken;
mod translate;
mod upgrade;
mod verify;
mod websocket;

pub use closing::Closing;
pub use cookie::{Cookie, SameSite};
pub use cors::{Cors, Origins};
pub use decide::{Decide, Decision};
pub use events::{ConnectionError, Events, Handlers};
pub use headers::Headers;
pub use heartbeat::{Beat, Heartbeat};
pub use middleware::Next;
pub use options::{AllowRequest, GenerateId, HandleProtocols, HttpCompression, Options};
pub use server::Server;
pub use session::{Due, Heard, Session, Transport};
pub use sid::SocketSid;
pub use socket::{CloseReason, Message, ReadyState, SendOptions, Socket};
pub use upgrade::{Step, Upgrade};
pub use verify::{BadRequest, Refusal};

pub(crate) use hooks::is_watched;
pub(crate) use sid::Pool as IdPool;
