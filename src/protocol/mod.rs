//! The wire: HTTP/1.1 heads and bodies, WebSocket frames, Engine.IO and Socket.IO packets.
//!
//! Everything here is a pure function of its input. No module of this layer does I/O, reads a clock, asks for
//! randomness or keeps global state, and none may name a layer above it. That is what makes it possible to
//! run the same code under a fuzzer, under miri and in a bench, and to know that what they see is what the
//! server does.
//!
//! | module | turns | into | text |
//! |---|---|---|---|
//! | [`http`] | bytes of a connection | heads, de-chunked bodies; responses back | RFC 9112, 9110 |
//! | [`proxy`] | the first bytes of a proxy's connection | the client's address | PROXY protocol 1 and 2 |
//! | [`query`] | the part behind `?` | decoded pairs | WHATWG URL, as Node reads it |
//! | [`ws`] | bytes after the 101 | messages; frames back | RFC 6455 |
//! | [`eio`] | a message or a polling body | Engine.IO packets and back | engine.io-protocol v4, v3 |
//! | [`sio`] | Engine.IO messages | packets with binary in place, and back | socket.io-protocol v5 |
//!
//! # Rules every codec here follows
//!
//! * **No input panics.** Errors are one enum per codec; a variant names the rule that was broken, and since
//!   only the peer's bytes can break one, the peer is the one at fault.
//! * **An error ends the connection.** A decoder that has returned an error is to be dropped; what it returns
//!   afterwards is unspecified (but memory-safe and free of panics).
//! * **Memory follows arrival.** Nothing is reserved because a peer announced it; limits are checked against
//!   the announcement, before the bytes come.
//! * **Idle is small.** Per-connection decoders are one pointer wide when nothing is pending, because a
//!   server holds a hundred thousand of them.
//! * **Cutting does not matter.** Feeding the same bytes in any pieces gives the same result.

pub mod eio;
pub mod http;
pub mod proxy;
pub mod query;
mod shown;
pub mod sio;
pub mod ws;

pub(crate) use shown::Shown;
