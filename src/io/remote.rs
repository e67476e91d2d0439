//! Sockets wherever they are: found on all cores, acted on by id.

use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use serde::Serialize;

use super::broadcast::{BroadcastOperator, RoomNames, Scope};
use super::namespace::NspInner;
use super::{Socket, SocketId};
use crate::fanout::Delivery;
use crate::protocol::sio::{EncodeError, Value, to_value};
use crate::runtime;

/// A socket as [`fetch_sockets`](BroadcastOperator::fetch_sockets) found it, on whichever core it is: what it
/// was at that moment, and the means to act on it. Unlike a [`Socket`] it may be sent to other threads.
///
/// ```no_run
/// # async fn f(io: sockring::io::Server) -> Result<(), sockring::io::EncodeError> {
/// for socket in io.to("lobby").fetch_sockets().await {
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
    fn new(nsp: &NspInner, socket: Socket) -> Option<Self> {
        let handshake = to_value(&socket.handshake()?).unwrap_or(Value::Null);
        let mut data = Value::Null;
        if let Some(attached) = nsp.with(socket, |entry| entry.data.clone()).flatten() {
            // A user's `Serialize` that panics must not take the other sockets with it.
            runtime::survived(|| data = attached.to_value());
        }
        Some(Self { id: socket.id(), handshake, rooms: socket.rooms(), data, scope: nsp.scope.clone() })
    }

    /// See [`Socket::emit`].
    ///
    /// # Errors
    ///
    /// A reserved name, or arguments that cannot be written as JSON.
    pub fn emit<T: Serialize>(&self, event: &str, args: T) -> Result<Delivery, EncodeError> {
        self.operator().emit(event, args)
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

/// What cores have answered so far.
#[derive(Default)]
struct Gathered {
    sockets: Vec<RemoteSocket>,
    complete: bool,
    waker: Option<Waker>,
}

/// Every task that is still to answer holds it. Dropped with the last of them, whether that was carried out,
/// panicked, or was dropped with the mailbox of a core that has ended.
struct Gathering(Arc<Mutex<Gathered>>);

impl Drop for Gathering {
    fn drop(&mut self) {
        let waker = {
            let mut gathered = lock(&self.0);
            gathered.complete = true;
            gathered.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

fn lock(gathered: &Mutex<Gathered>) -> MutexGuard<'_, Gathered> {
    gathered.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BroadcastOperator {
    /// The selected sockets of all cores. May be awaited on any thread and executor. A core whose mailbox is
    /// full is passed by.
    pub async fn fetch_sockets(&self) -> Vec<RemoteSocket> {
        let gathered = Arc::new(Mutex::new(Gathered::default()));
        let gathering = Arc::new(Gathering(gathered.clone()));
        self.on_cores(self.cores(), move |nsp: &Rc<NspInner>, selection| {
            let found = nsp.selected(selection).into_iter();
            let found: Vec<RemoteSocket> =
                found.filter_map(|socket| RemoteSocket::new(nsp, socket)).collect();
            lock(&gathering.0).sockets.extend(found);
        });
        poll_fn(|cx| {
            let mut gathered = lock(&gathered);
            if gathered.complete {
                return Poll::Ready(());
            }
            gathered.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        let mut gathered = lock(&gathered);
        std::mem::take(&mut gathered.sockets)
    }
}
