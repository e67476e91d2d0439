//! Acknowledgements, in both directions.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::broadcast_ack::is_broadcast;
use super::namespace::NspInner;
use super::server::by_index;
use super::socket::with_nsp;
use super::{Socket, SocketOperator};
use crate::fanout::Delivery;
use crate::protocol::sio::{ArgsError, EncodeError, Value, from_args};
use crate::time::Millis;

/// The acknowledgement that a client waits for; an extractor of event handlers. It can be sent now or later.
/// Where several handlers take it, the first to send it answers the client.
///
/// ```no_run
/// # use sockring::io::{Ack, Data, Socket};
/// # fn set_up(socket: Socket) {
/// socket.on("add", |Data((a, b)): Data<(i64, i64)>, ack: Ack| {
///     let _ = ack.send(a + b);
/// });
/// # }
/// ```
#[derive(Debug)]
pub struct Ack {
    socket: Socket,
    id: Option<u64>,
    /// Shared by all that were made for one event.
    sent: Rc<Cell<bool>>,
}

impl Ack {
    pub(super) fn new(socket: Socket, id: Option<u64>, sent: Rc<Cell<bool>>) -> Self {
        Self { socket, id, sent }
    }

    /// Whether the client asked for one.
    pub fn is_expected(&self) -> bool {
        self.id.is_some()
    }

    /// Sends it. A tuple is the list of arguments, `()` an empty one, anything else is one argument: see
    /// [`Socket::emit`]. Does nothing if the client did not ask for one, or has got it from another handler.
    ///
    /// ```no_run
    /// # use sockring::io::{Ack, Socket};
    /// # fn set_up(socket: Socket) {
    /// socket.on("none", |ack: Ack| ack.send(()).map(drop));
    /// socket.on("null", |ack: Ack| ack.send(None::<u32>).map(drop));
    /// socket.on("two", |ack: Ack| ack.send((1, 2)).map(drop));
    /// socket.on("list", |ack: Ack| ack.send([1, 2]).map(drop));
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Arguments that cannot be written as JSON, or are too large.
    pub fn send<T: Serialize>(self, args: T) -> Result<Delivery, EncodeError> {
        let Some(id) = self.id.filter(|_| !self.sent.get()) else { return Ok(Delivery::Dropped) };
        let sent = with_nsp(self.socket, |nsp| {
            let frame = nsp.scope.ack(id, &args)?;
            self.sent.set(true);
            Ok(if nsp.is_connected(self.socket) { nsp.send(self.socket, &frame) } else { Delivery::Dropped })
        });
        sent.unwrap_or(Ok(Delivery::Dropped))
    }
}

/// Why an acknowledgement did not come, or was of no use.
///
/// ```
/// assert_eq!(sockring::io::AckError::Timeout.to_string(), "operation has timed out");
/// ```
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AckError {
    /// The client did not answer in time.
    #[error("operation has timed out")]
    Timeout,
    /// The client left without an answer, or owes 10,000 answers already and was not asked.
    #[error("the socket has been disconnected")]
    Disconnected,
    /// The event was not sent: too much waits for the client, or the event is volatile and the client was
    /// busy. Of a broadcast: the answers are too large together.
    #[error("the event was dropped")]
    Dropped,
    /// The answer is not of the type that was asked for.
    #[error("the acknowledgement does not fit: {0}")]
    Args(#[from] ArgsError),
    /// The event could not be emitted.
    #[error("{0}")]
    Encode(String),
    /// A callback can only be called on a worker: await the future instead.
    #[error("a callback was given on a thread that is no worker")]
    NoWorker,
}

pub(super) type Callback = Box<dyn FnOnce(Result<Vec<Value>, AckError>)>;

/// An acknowledgement that a socket owes.
pub(super) struct PendingAck {
    socket: Socket,
    done: Callback,
    deadline: Option<Millis>,
}

/// Acknowledgements that one socket may owe. Whoever emits with an acknowledgement and no timeout to a
/// client that never answers would otherwise fill the memory.
const PENDING_PER_SOCKET: usize = 10_000;

impl NspInner {
    /// Emits an event and waits for its acknowledgement, at most for the operator's timeout.
    pub(super) fn emit_with_ack<T: Serialize>(
        self: &Rc<Self>,
        operator: SocketOperator,
        event: &str,
        args: &T,
        done: Callback,
    ) -> Result<Delivery, EncodeError> {
        let SocketOperator { socket, timeout, volatile, plain, .. } = operator;
        let id = self.next_ack.get();
        let frame = self.scope.event(Some(id), event, args)?;
        let here = self.is_connected(socket) || self.is_connecting(socket);
        let owing = self.with(socket, |entry| {
            let owed = entry.acks_mut().map_or(0, |acks| acks.len());
            let room = owed < PENDING_PER_SOCKET;
            if here && room {
                entry.extra_mut().acks.get_or_insert_default().push(id);
            }
            room
        });
        if owing != Some(true) || !here {
            done(Err(AckError::Disconnected));
            return Ok(Delivery::Dropped);
        }
        self.next_ack.set(id + 2);
        let deadline = timeout.map(|timeout| self.core.now().saturating_add(timeout));
        self.acks.borrow_mut().insert(id, PendingAck { socket, done, deadline });
        if let (Some(deadline), Some(server)) = (deadline, by_index(self.server)) {
            server.await_ack(deadline, self.index, id);
        }
        let frame = if plain { frame.uncompressed() } else { frame };
        self.tell_outgoing_of(socket, &frame);
        let delivery = self.send_watched(socket, &frame, volatile);
        if delivery == Delivery::Dropped {
            // The client has not got it, so it will not answer.
            self.settle_ack(id, Err(AckError::Dropped));
        }
        Ok(delivery)
    }

    /// The deadlines of all acknowledgements that are awaited, each with its id.
    pub(super) fn ack_deadlines(&self) -> Vec<(Millis, u64)> {
        let acks = self.acks.borrow();
        let own = acks.iter().filter_map(|(id, pending)| Some((pending.deadline?, *id)));
        own.chain(self.asked.borrow().iter().map(|(id, asked)| (asked.deadline(), *id))).collect()
    }

    /// A client has answered. Late, repeated and foreign answers are ignored.
    pub(super) fn acknowledged(&self, socket: Socket, id: u64, args: Vec<Value>) {
        if is_broadcast(id) {
            return self.broadcast_acknowledged(socket, id, args);
        }
        let known = self.acks.borrow().get(&id).is_some_and(|pending| pending.socket == socket);
        if known {
            self.settle_ack(id, Ok(args));
        }
    }

    pub(super) fn ack_timed_out(&self, id: u64) {
        if is_broadcast(id) {
            return self.broadcast_timed_out(id);
        }
        self.settle_ack(id, Err(AckError::Timeout));
    }

    pub(super) fn ack_lost(&self, id: u64) {
        self.settle_ack(id, Err(AckError::Disconnected));
    }

    fn settle_ack(&self, id: u64, result: Result<Vec<Value>, AckError>) {
        let Some(pending) = self.acks.borrow_mut().remove(&id) else { return };
        if let (Some(deadline), Some(server)) = (pending.deadline, by_index(self.server)) {
            server.forget_ack(deadline, self.index, id);
        }
        self.with(pending.socket, |entry| {
            if let Some(acks) = entry.acks_mut() {
                acks.retain(|owed| *owed != id);
            }
        });
        (pending.done)(result);
    }
}

struct Slot {
    result: Option<Result<Vec<Value>, AckError>>,
    waker: Option<Waker>,
}

/// The answer of a client, to come. Made by [`Socket::emit_with_ack`]. The event was emitted already;
/// dropping the future forgets the answer.
///
/// ```no_run
/// # use sockring::io::{AckError, Socket};
/// # async fn ask(socket: Socket) -> Result<(), AckError> {
/// let sum: i64 = socket.emit_with_ack("add", (1, 2)).await?;
/// # Ok(())
/// # }
/// ```
pub struct AckFuture<T> {
    slot: Rc<RefCell<Slot>>,
    answer: PhantomData<T>,
}

impl<T> fmt::Debug for AckFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AckFuture").finish_non_exhaustive()
    }
}

impl<T> AckFuture<T> {
    /// A future, and what fulfils it.
    pub(super) fn new() -> (Self, Callback) {
        let slot = Rc::new(RefCell::new(Slot { result: None, waker: None }));
        let fulfil = slot.clone();
        let done: Callback = Box::new(move |result| {
            let mut slot = fulfil.borrow_mut();
            slot.result = Some(result);
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        });
        (Self { slot, answer: PhantomData }, done)
    }
}

impl<T: DeserializeOwned> Future for AckFuture<T> {
    type Output = Result<T, AckError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.slot.borrow_mut();
        match slot.result.take() {
            Some(Ok(args)) => Poll::Ready(from_args(&args).map_err(AckError::Args)),
            Some(Err(error)) => Poll::Ready(Err(error)),
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
