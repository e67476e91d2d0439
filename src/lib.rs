//! sockring: a Socket.IO server on io_uring, made for broadcasts to very large numbers of sockets.

pub mod adapter;
pub mod app;
pub mod engine;
pub mod fanout;
pub mod io;
pub mod limits;
pub mod protocol;
pub mod runtime;
pub mod time;

/// The README's server compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
