//! What an operator sets about Socket.IO.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Adapter;
use crate::engine;
use crate::protocol::sio::Limits;

/// Options of a server, with the reference's names and defaults.
///
/// ```
/// use std::time::Duration;
/// use sockring::{engine, io};
/// let options = io::Options {
///     connect_timeout: Duration::from_secs(10),
///     engine: engine::Options { ping_interval: Duration::from_secs(10), ..io::Options::default().engine },
///     ..io::Options::default()
/// };
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    /// Options of the engine below; its path is `/socket.io` here.
    pub engine: engine::Options,
    /// How long a client may stay connected without joining a namespace.
    pub connect_timeout: Duration,
    /// How much one packet may be; `attachments` is the reference's `maxAttachments`.
    pub packet: Limits,
    /// The folder of the npm package `socket.io-client` that holds its bundles (`dist`). They are served
    /// below the path, as the reference's `serveClient` does. `None` serves nothing.
    pub client_dist: Option<PathBuf>,
    /// Joins other servers; `None` for one process alone.
    pub adapter: Option<Arc<dyn Adapter>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            engine: engine::Options { path: "/socket.io".into(), ..engine::Options::default() },
            connect_timeout: Duration::from_millis(45_000),
            packet: Limits::default(),
            client_dist: None,
            adapter: None,
        }
    }
}
