//! The handle on a client's connection.

use super::Socket;
use super::server::by_index;
use super::socket::with_nsp;
use crate::app::Request;
use crate::engine;

/// A client: one connection, and the sockets that it has in the server's namespaces. A small copy that stays
/// void once the connection has ended.
///
/// ```no_run
/// # use sockring::io::Socket;
/// # fn on_connection(socket: Socket) {
/// let Some(client) = socket.client() else { return };
/// let joined: Vec<String> = client.sockets().into_iter().map(Socket::nsp).collect();
/// println!("{} is in {}", client.id(), joined.join(", "));
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    pub(super) server: u16,
    pub(super) conn: engine::Socket,
}

impl Client {
    /// The id of the session below, a secret between server and client.
    pub fn id(self) -> String {
        self.conn.id()
    }

    /// The session below.
    pub fn conn(self) -> engine::Socket {
        self.conn
    }

    /// The request that opened the connection.
    pub fn request(self) -> Option<Request> {
        self.conn.request()
    }

    /// Its sockets, one for each namespace that it has joined.
    pub fn sockets(self) -> Vec<Socket> {
        let server = by_index(self.server);
        let sockets = server.and_then(|server| server.client(self.conn, |client| client.sockets.clone()));
        let joined = |socket: &Socket| with_nsp(*socket, |nsp| nsp.is_connected(*socket)) == Some(true);
        sockets.unwrap_or_default().iter().copied().filter(joined).collect()
    }
}
