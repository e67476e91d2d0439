//! Between servers: the trait that a cluster adapter implements.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BroadcastAcks, Handle};
use crate::fanout::Key;
use crate::protocol::sio::Value;

/// To whom a broadcast goes, beside its namespace, and how.
///
/// ```
/// use sockring::io::BroadcastOptions;
/// let options = BroadcastOptions { rooms: vec!["a".into()], ..BroadcastOptions::default() };
/// assert!(options.compress && !options.volatile);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BroadcastOptions {
    /// Members of any of these rooms; empty for all sockets.
    pub rooms: Vec<String>,
    /// And of none of these.
    pub except: Vec<String>,
    /// Only to sockets that can take it at once.
    pub volatile: bool,
    /// Whether it may be compressed on its way.
    pub compress: bool,
    /// How long answers are awaited, of sockets and of other servers; `None` for as long as by default.
    pub timeout: Option<Duration>,
    /// Not beyond this process.
    pub local: bool,
    /// Where a client is slow, only the last message with this event and key waits for it: see
    /// [`BroadcastOperator::latest`](super::BroadcastOperator::latest).
    pub latest: Option<Key>,
}

impl Default for BroadcastOptions {
    fn default() -> Self {
        let (rooms, except) = Default::default();
        Self { rooms, except, volatile: false, compress: true, timeout: None, local: false, latest: None }
    }
}

/// A socket, as servers tell each other of it.
///
/// ```
/// use sockring::io::SocketDetails;
/// let details: SocketDetails = serde_json::from_str(r#"{"id":"abc","rooms":["abc","lobby"]}"#)?;
/// assert_eq!((details.rooms.len(), details.data.is_null()), (2, true));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SocketDetails {
    /// Its id.
    pub id: String,
    /// Its handshake, with the reference's nine fields.
    #[serde(default)]
    pub handshake: Value,
    /// Its rooms, that of its own id among them.
    #[serde(default)]
    pub rooms: Vec<String>,
    /// Its data.
    #[serde(default)]
    pub data: Value,
}

/// Not all servers of a cluster have answered in time.
///
/// ```
/// use sockring::io::ClusterError;
/// let error = ClusterError { message: "timeout reached: missing 1 responses".into(), responses: vec![2] };
/// assert_eq!(error.to_string(), "timeout reached: missing 1 responses");
/// ```
#[derive(Clone, PartialEq)]
pub struct ClusterError<T> {
    /// What is wrong, in the reference's words.
    pub message: String,
    /// What has come all the same. Of [`fetch_sockets`](super::Namespace::fetch_sockets), the sockets of this
    /// server too.
    pub responses: Vec<T>,
}

impl<T> fmt::Display for ClusterError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl<T> Debug for ClusterError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.responses.len();
        f.debug_struct("ClusterError").field("message", &self.message).field("responses", &count).finish()
    }
}

impl<T> std::error::Error for ClusterError<T> {}

/// What is called once with the answers of the other servers, on any thread. It must not block.
pub type ClusterAnswer<T> = Box<dyn FnOnce(Result<Vec<T>, ClusterError<T>>) + Send>;

/// A client's session, to be restored when it comes back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// The private id, which the client alone knows.
    pub pid: String,
    /// The socket's id.
    pub sid: String,
    /// Its rooms.
    pub rooms: Vec<String>,
    /// Its data.
    pub data: Value,
}

/// A packet that was kept for those who come back.
///
/// ```
/// use sockring::io::KeptPacket;
/// // An entry of a stream of Redis, named by its id.
/// let packet = KeptPacket { offset: "1712345678901-0".into(), args: vec!["news".into(), 1.into()] };
/// assert_eq!(packet.args[0].as_str(), Some("news"));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeptPacket {
    /// Its name in the order of all packets: what [`Handle::deliver_kept`] was given with it.
    pub offset: String,
    /// The event's name, then its arguments.
    pub args: Vec<Value>,
}

/// A session that was restored, and the packets that its client has missed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RestoredSession {
    /// The session.
    pub session: Session,
    /// What it has missed, in order: see [`Adapter::restore_session`].
    pub missed: Vec<KeptPacket>,
}

/// Joins a server to others: the reference's adapter, as far as it is about other servers. The rooms of this
/// process are the server's own, shared by its cores, whatever the adapter.
///
/// Methods are called on the thread that acts, which may be a worker's, and must not block. The sockets of
/// this process are served beside them; what is [`local`](BroadcastOptions::local) never gets here. What
/// comes in from other servers goes through the [`Handle`] that [`init`](Self::init) was given, from any
/// thread.
///
/// One adapter serves one server: all of its cores and namespaces. Each core is set up with one; that of the
/// first counts. [`adapter::ClusterAdapter`](crate::adapter::ClusterAdapter) is one for any medium.
///
/// ```
/// use std::sync::mpsc::SyncSender;
/// use sockring::io::{Adapter, BroadcastOptions, Value};
///
/// /// Hands broadcasts to a thread that speaks to the other servers; sockets of theirs cannot be asked.
/// #[derive(Debug)]
/// struct Forward(SyncSender<(String, Vec<Value>, BroadcastOptions)>);
///
/// impl Adapter for Forward {
///     fn broadcast(&self, nsp: &str, args: Vec<Value>, options: &BroadcastOptions) {
///         // What finds no room in the queue is lost for the other servers.
///         let _ = self.0.try_send((nsp.to_owned(), args, options.clone()));
///     }
/// }
/// ```
pub trait Adapter: Debug + Send + Sync {
    /// The first core of the server has made a namespace. What is done through `nsp` stays in this process.
    fn init(&self, nsp: Handle) {
        let _ = nsp;
    }

    /// The last core of the server has let a namespace go, or ends.
    fn close(&self, nsp: &str) {
        let _ = nsp;
    }

    /// Called by a core about every 20 ms: adapters need no thread of their own for what is due.
    fn tick(&self) {}

    /// How many servers there are, this one included.
    fn server_count(&self, nsp: &str) -> usize {
        let _ = nsp;
        1
    }

    /// Emits to the sockets of other servers. `args` is the event's name, then its arguments.
    fn broadcast(&self, nsp: &str, args: Vec<Value>, options: &BroadcastOptions);

    /// Emits to the sockets of other servers, which answer: `acks` is told first of how many servers, then
    /// of their sockets, then of the answers.
    fn broadcast_with_ack(
        &self,
        nsp: &str,
        args: Vec<Value>,
        options: &BroadcastOptions,
        acks: Arc<dyn BroadcastAcks>,
    ) {
        let _ = (nsp, args, options);
        acks.servers(0);
    }

    /// Makes sockets of other servers join rooms.
    fn add_sockets(&self, nsp: &str, options: &BroadcastOptions, rooms: Vec<String>) {
        let _ = (nsp, options, rooms);
    }

    /// Makes sockets of other servers leave rooms.
    fn del_sockets(&self, nsp: &str, options: &BroadcastOptions, rooms: Vec<String>) {
        let _ = (nsp, options, rooms);
    }

    /// Disconnects sockets of other servers; with `close`, their connections too.
    fn disconnect_sockets(&self, nsp: &str, options: &BroadcastOptions, close: bool) {
        let _ = (nsp, options, close);
    }

    /// Finds sockets of other servers.
    fn fetch_sockets(&self, nsp: &str, options: &BroadcastOptions, answer: ClusterAnswer<SocketDetails>) {
        let _ = (nsp, options);
        answer(Ok(Vec::new()));
    }

    /// Emits to the other servers themselves. `args` is the event's name, then its arguments; with `answer`,
    /// one value of each server is awaited.
    fn server_side_emit(&self, nsp: &str, args: Vec<Value>, answer: Option<ClusterAnswer<Value>>) {
        let _ = (nsp, args);
        if let Some(answer) = answer {
            answer(Ok(Vec::new()));
        }
    }

    /// Whether sessions are kept beyond this process, so that with
    /// [`ConnectionStateRecovery`](super::ConnectionStateRecovery) a client may come back to any server. Then
    /// the methods below are called, and the adapter has to put what is emitted into one order. The same for
    /// all calls; `false` by default.
    fn keeps_sessions(&self) -> bool {
        false
    }

    /// Emits to the sockets of *all* servers what clients who come back may ask for: instead of
    /// [`broadcast`](Self::broadcast), where sessions are kept. The server serves nobody itself. The adapter
    /// gives the packet an offset, keeps it, and brings it in with [`Handle::deliver_kept`], here as on all
    /// other servers, each packet behind the same others everywhere. If it cannot, [`Handle::deliver`] serves
    /// the sockets of this process with a packet that nobody can ask for.
    ///
    /// What is emitted to a single socket comes by here too, as a broadcast to the room of its id. What is
    /// volatile, local, or answered does not.
    fn broadcast_kept(&self, nsp: &str, args: Vec<Value>, options: &BroadcastOptions) {
        let _ = (nsp, args, options);
    }

    /// Keeps the session of a socket that has lost its connection, for so long.
    fn persist_session(&self, nsp: &str, session: Session, lifetime: Duration) {
        let _ = (nsp, session, lifetime);
    }

    /// A session is in use again on this server, or is over: nobody else may have it.
    fn forget_session(&self, nsp: &str, pid: &str) {
        let _ = (nsp, pid);
    }

    /// Takes a session out that was kept, with what was emitted behind an offset to sockets in its rooms.
    /// `None` if there is no such session, or if not everything behind the offset is known.
    ///
    /// `answer` may be called at any time within 5 seconds, on any thread, but in step with
    /// [`Handle::deliver_kept`] on this server: behind the last packet that it lists, and before the next.
    /// What comes later reaches the socket by itself; so nothing is missed and nothing comes twice.
    ///
    /// The connection may have ended without the server where it was having noticed, so that the session is
    /// not kept yet: [`Handle::end_stale_session`] there makes it notice. That server is to be told when its
    /// session was taken: [`Handle::release_session`].
    fn restore_session(&self, nsp: &str, pid: &str, offset: &str, answer: RestoreAnswer) {
        let _ = (nsp, pid, offset);
        answer(None);
    }
}

/// What is called once with the session that was asked for, if there is one, on any thread.
pub type RestoreAnswer = Box<dyn FnOnce(Option<RestoredSession>) + Send>;

/// The adapter of a server that is alone.
///
/// ```
/// use sockring::io::{Adapter, LocalAdapter};
/// assert_eq!(LocalAdapter.server_count("/"), 1);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalAdapter;

impl Adapter for LocalAdapter {
    fn broadcast(&self, _: &str, _: Vec<Value>, _: &BroadcastOptions) {}
}
