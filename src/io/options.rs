//! What an operator sets about Socket.IO.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Adapter, Backpressure, ConnectionStateRecovery, Parser};
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
    /// How long a client may take for each attachment of a packet that it has announced, a minute by default:
    /// at the largest size that is some 130 kbit/s. What has come of the packet is kept until then, up to
    /// [`attachment_bytes`](Limits::attachment_bytes) for each connection. One that takes longer is closed.
    /// It does not hold with a [`parser`](Self::parser) of one's own, which knows by itself what it waits
    /// for.
    pub attachment_timeout: Duration,
    /// How much one packet may be; `attachments` is the reference's `maxAttachments`.
    pub packet: Limits,
    /// Whether the client's bundles and their source maps are served below the path, as
    /// `/socket.io/socket.io.js`: see [`client_dist`](Self::client_dist).
    pub serve_client: bool,
    /// The folder that holds the bundles: `client-dist` of the npm package `socket.io`, or `dist` of
    /// `socket.io-client`. `None`, the default: those that the feature `client-bundles` has embedded, or
    /// else those of the nearest `node_modules`, in the working directory or above. If there are none,
    /// requests for them are the engine's, which refuses them.
    pub client_dist: Option<PathBuf>,
    /// Whether a child of a [`ParentNamespace`](super::ParentNamespace) goes when its last socket on this
    /// core has left, with what was registered on it.
    pub cleanup_empty_child_namespaces: bool,
    /// How many namespaces clients may bring into being on one core: each costs some hundred bytes and its
    /// name, and clients choose the names. At the limit those go that no socket is in, also without the
    /// option above; if there are none, a client that asks for another is refused. At most 60,000.
    pub dynamic_namespaces: usize,
    /// Rooms that one socket may be in beside that of its own id, 10,000 by default: each takes some hundred
    /// bytes and its name three times, on its core and in the directory. Where clients choose, this bounds
    /// what one of them costs. A join beyond it gives [`Joined::Full`](super::Joined), is counted
    /// (`rooms_refused`), and the first is logged at WARN.
    pub rooms_per_socket: usize,
    /// Bytes that a room's name may have, 1,024 by default. A join of a longer one is refused likewise.
    pub room_name_bytes: usize,
    /// How much of what the application emits may wait for one client, and what is done beyond. By default
    /// that is the connection's own limit,
    /// [`backpressure_bytes`](crate::runtime::Options::backpressure_bytes), which closes it. A namespace may
    /// say [something else](super::Namespace::set_backpressure). Acknowledgements, emits that await one, and
    /// the packets that belong to a connection are never dropped.
    pub backpressure: Backpressure,
    /// Whether clients that lose their connection may come back as who they were; `None`, the default: no.
    pub connection_state_recovery: Option<ConnectionStateRecovery>,
    /// How packets are written and read; `None` for the default, which is faster and which all clients know.
    pub parser: Option<Arc<dyn Parser>>,
    /// Joins other servers; `None` for one process alone.
    pub adapter: Option<Arc<dyn Adapter>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            engine: engine::Options { path: "/socket.io".into(), ..engine::Options::default() },
            connect_timeout: Duration::from_millis(45_000),
            attachment_timeout: Duration::from_secs(60),
            packet: Limits::default(),
            serve_client: true,
            client_dist: None,
            cleanup_empty_child_namespaces: false,
            dynamic_namespaces: 10_000,
            rooms_per_socket: 10_000,
            room_name_bytes: 1024,
            backpressure: Backpressure::default(),
            connection_state_recovery: None,
            parser: None,
            adapter: None,
        }
    }
}
