//! Sockets wherever they are: found on all cores, acted on by id.

use std::fmt;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::broadcast::{BroadcastOperator, RoomNames, Scope};
use super::broadcast_ack::single;
use super::namespace::NspInner;
use super::server_side::cluster_answer;
use super::{AckError, ClusterError, Socket, SocketDetails, SocketId};
use crate::fanout::Delivery;
use crate::protocol::sio::{EncodeError, Value, to_value};
use crate::runtime;

/// A socket as [`fetch_sockets`](BroadcastOperator::fetch_sockets) found it, on whichever core it is: what it
/// was at that moment, and the means to act on it. Unlike a [`Socket`] it may be sent to other threads.
///
/// ```no_run
/// # async fn f(io: sockring::io::Server) -> Result<(), Box<dyn std::error::Error>> {
/// for socket in io.to("lobby").fetch_sockets().await? {
///     let _ = socket.emit("your rooms", &socket.rooms)?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct RemoteSocket {
    /// The socket's id.
    pub id: SocketId,
    /// Its handshake, with the reference's nine fields.
    pub handshake: Value,
    /// Its rooms, that of its own id among them.
    pub rooms: Vec<String>,
    /// What [`Socket::set_data`] attached; null if nothing, or nothing that can be serialised.
    pub data: Value,
    scope: Arc<Scope>,
}

impl fmt::Debug for RemoteSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteSocket")
            .field("id", &self.id)
            .field("rooms", &self.rooms)
            .finish_non_exhaustive()
    }
}

impl RemoteSocket {
    fn new(details: SocketDetails, scope: Arc<Scope>) -> Self {
        let SocketDetails { id, handshake, rooms, data } = details;
        Self { id: SocketId::of_text(&id), handshake, rooms, data, scope }
    }

    /// See [`Socket::emit`].
    ///
    /// # Errors
    ///
    /// A reserved name, or arguments that cannot be written as JSON.
    pub fn emit<T: Serialize>(&self, event: &str, args: T) -> Result<Delivery, EncodeError> {
        self.operator().emit(event, args)
    }

    /// Emits an event and awaits its answer, for 5 seconds; see [`timeout`](Self::timeout). The event is
    /// emitted by this call. A tuple `T` takes all values of the answer, any other type the first. A socket
    /// that is gone is [`AckError::Disconnected`].
    pub fn emit_with_ack<T, A>(
        &self,
        event: &str,
        args: A,
    ) -> impl Future<Output = Result<T, AckError>> + use<T, A>
    where
        T: DeserializeOwned,
        A: Serialize,
    {
        single(self.operator().emit_with_ack(event, args))
    }

    /// Limits the time for the answer to what is emitted through the result.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use sockring::io::{AckError, RemoteSocket};
    /// # async fn f(socket: RemoteSocket) -> Result<(), AckError> {
    /// let name: String = socket.timeout(Duration::from_secs(1)).emit_with_ack("name?", ()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn timeout(&self, timeout: Duration) -> RemoteOperator {
        RemoteOperator(self.operator().timeout(timeout))
    }

    /// Makes it join rooms.
    pub fn join(&self, rooms: impl RoomNames) {
        self.operator().sockets_join(rooms);
    }

    /// Makes it leave rooms.
    pub fn leave(&self, rooms: impl RoomNames) {
        self.operator().sockets_leave(rooms);
    }

    /// Disconnects it; with `close`, its connection too.
    pub fn disconnect(&self, close: bool) {
        self.operator().disconnect_sockets(close);
    }

    fn operator(&self) -> BroadcastOperator {
        BroadcastOperator::new(self.scope.clone()).to(&self.id)
    }
}

/// What is emitted to one socket, wherever it is, with a limit for its answer. Made by
/// [`RemoteSocket::timeout`].
///
/// ```no_run
/// # use std::time::Duration;
/// # use sockring::io::{AckError, RemoteSocket};
/// # async fn f(socket: RemoteSocket) {
/// let quickly = socket.timeout(Duration::from_millis(500));
/// let name: Result<String, AckError> = quickly.emit_with_ack("name?", ()).await;
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "an operator does nothing until it emits"]
pub struct RemoteOperator(BroadcastOperator);

impl RemoteOperator {
    /// See [`RemoteSocket::emit_with_ack`].
    pub fn emit_with_ack<T, A>(
        &self,
        event: &str,
        args: A,
    ) -> impl Future<Output = Result<T, AckError>> + use<T, A>
    where
        T: DeserializeOwned,
        A: Serialize,
    {
        single(self.0.emit_with_ack(event, args))
    }

    /// See [`RemoteSocket::emit`].
    ///
    /// # Errors
    ///
    /// A reserved name, or arguments that cannot be written as JSON.
    pub fn emit<T: Serialize>(&self, event: &str, args: T) -> Result<Delivery, EncodeError> {
        self.0.emit(event, args)
    }
}

/// A socket of this core, as others are told of it; with `id_only` nothing else.
fn details(nsp: &NspInner, socket: Socket, id_only: bool) -> Option<SocketDetails> {
    let id = nsp.id(socket)?.to_string();
    if id_only {
        return Some(SocketDetails { id, ..SocketDetails::default() });
    }
    let handshake = to_value(&socket.handshake()?).unwrap_or(Value::Null);
    let mut data = Value::Null;
    if let Some(attached) = nsp.with(socket, |entry| entry.data()).flatten() {
        // A user's `Serialize` that panics must not take the other sockets with it.
        runtime::guarded("the writing of a socket's data", || data = attached.to_value());
    }
    Some(SocketDetails { id, handshake, rooms: socket.rooms(), data })
}

type Found = Box<dyn FnOnce(Vec<SocketDetails>) + Send>;

/// What cores have found. Every task that is still to answer holds it. Dropped with the last of them, whether
/// that was carried out, panicked, or was dropped with the mailbox of a core that has ended.
struct Finding(Mutex<(Vec<SocketDetails>, Option<Found>)>);

impl Drop for Finding {
    fn drop(&mut self) {
        let (sockets, done) = std::mem::take(self.0.get_mut().unwrap_or_else(PoisonError::into_inner));
        if let Some(done) = done {
            done(sockets);
        }
    }
}

/// What this server and the others have answered so far.
#[derive(Default)]
struct Gathered {
    sockets: Vec<SocketDetails>,
    /// Two: this server's, and that of all others.
    answers: usize,
    error: Option<String>,
    waker: Option<Waker>,
}

/// Adds an answer; wakes who waits if it was the second.
fn gather(gathered: &Mutex<Gathered>, result: Result<Vec<SocketDetails>, ClusterError<SocketDetails>>) {
    let waker = {
        let mut gathered = lock(gathered);
        let (sockets, error) = match result {
            Ok(sockets) => (sockets, None),
            Err(error) => (error.responses, Some(error.message)),
        };
        gathered.sockets.extend(sockets);
        gathered.error = gathered.error.take().or(error);
        gathered.answers += 1;
        gathered.waker.take()
    };
    waker.into_iter().for_each(Waker::wake);
}

fn lock(gathered: &Mutex<Gathered>) -> MutexGuard<'_, Gathered> {
    gathered.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BroadcastOperator {
    /// The selected sockets of all cores, and of all servers of the cluster. May be awaited on any thread and
    /// executor. A core whose mailbox is full is passed by.
    ///
    /// # Errors
    ///
    /// Another server has not answered within 5 seconds, or what [`timeout`](Self::timeout) says. The error
    /// has the sockets that are known all the same.
    pub async fn fetch_sockets(&self) -> Result<Vec<RemoteSocket>, ClusterError<RemoteSocket>> {
        let remote = |details| RemoteSocket::new(details, self.scope.clone());
        self.gather(false, remote).await
    }

    /// The ids of the selected sockets; as [`fetch_sockets`](Self::fetch_sockets), and on this server with
    /// less work.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn all_sockets(&self) -> Result<Vec<SocketId>, ClusterError<SocketId>> {
        self.gather(true, |details| SocketId::of_text(&details.id)).await
    }

    async fn gather<T>(
        &self,
        id_only: bool,
        make: impl Fn(SocketDetails) -> T,
    ) -> Result<Vec<T>, ClusterError<T>> {
        let gathered = Arc::new(Mutex::new(Gathered::default()));
        let (here, there) = (gathered.clone(), gathered.clone());
        let others = cluster_answer(move |result| gather(&there, result));
        match self.adapter() {
            Some(adapter) => adapter.fetch_sockets(&self.scope.nsp, &self.options(), others),
            None => others(Ok(Vec::new())),
        }
        self.find(id_only, Box::new(move |sockets| gather(&here, Ok(sockets))));
        poll_fn(|cx| {
            let mut gathered = lock(&gathered);
            if gathered.answers == 2 {
                return Poll::Ready(());
            }
            gathered.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        let (sockets, error) = {
            let mut gathered = lock(&gathered);
            (std::mem::take(&mut gathered.sockets), gathered.error.take())
        };
        let sockets = sockets.into_iter().map(make).collect();
        match error {
            None => Ok(sockets),
            Some(message) => Err(ClusterError { message, responses: sockets }),
        }
    }

    /// Finds the selected sockets of this process.
    pub(super) fn find(&self, id_only: bool, done: Found) {
        let finding = Arc::new(Finding(Mutex::new((Vec::new(), Some(done)))));
        self.on_cores(self.cores(), move |nsp: &Rc<NspInner>, selection| {
            let found = nsp.selected(selection).into_iter();
            let found: Vec<SocketDetails> =
                found.filter_map(|socket| details(nsp, socket, id_only)).collect();
            finding.0.lock().unwrap_or_else(PoisonError::into_inner).0.extend(found);
        });
    }
}
