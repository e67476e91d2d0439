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
        f.debug_struct("RemoteSocket").field("id", &self.id).field("rooms", &self.rooms).finish_non_exhaustive()
    }
}

impl RemoteSocket {
    fn new(nsp: &NspInner, socket: Socket) -> Option<Self> {
        let handshake = to_value(&*socket.handshake()?).unwrap_or(Value::Null);
        let data = nsp.with(socket, |entry| entry.data.clone()).flatten();
        Some(Self {
            id: socket.id(),
            handshake,
            rooms: socket.rooms(),
            data: data.map_or(Value::Null, |data| data.to_value()),
            scope: nsp.scope.clone(),
        })
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
        BroadcastOperator::new(self.scope.clone()).to(self.id)
    }
}

/// What cores have answered so far.
#[derive(Default)]
struct Gathered {
    sockets: Vec<RemoteSocket>,
    missing: usize,
    waker: Option<Waker>,
}

fn lock(gathered: &Mutex<Gathered>) -> MutexGuard<'_, Gathered> {
    gathered.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BroadcastOperator {
    /// The selected sockets of all cores. May be awaited on any thread and executor. A core whose mailbox is
    /// full is passed by.
    pub async fn fetch_sockets(&self) -> Vec<RemoteSocket> {
        let gathered = Arc::new(Mutex::new(Gathered::default()));
        let cores = self.cores();
        lock(&gathered).missing = cores.iter().count();
        let answer = gathered.clone();
        let refused = self.on_cores(cores, move |nsp: &Rc<NspInner>, selection| {
            let found = nsp.selected(selection).into_iter();
            let found: Vec<RemoteSocket> = found.filter_map(|socket| RemoteSocket::new(nsp, socket)).collect();
            let mut gathered = lock(&answer);
            gathered.sockets.extend(found);
            gathered.missing -= 1;
            if let (0, Some(waker)) = (gathered.missing, gathered.waker.take()) {
                waker.wake();
            }
        });
        lock(&gathered).missing -= refused.iter().count();
        poll_fn(|cx| {
            let mut gathered = lock(&gathered);
            if gathered.missing == 0 {
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
