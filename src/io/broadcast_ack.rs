//! Broadcasts whose receivers answer.
//!
//! Two sides that know each other only through [`BroadcastAcks`]: the sockets of a server that were asked, on
//! each core, and the [`Collector`] that waits for all of them, which may be another server's.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering as Order;
use std::collections::BinaryHeap;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::broadcast::{BroadcastOperator, Selection};
use super::namespace::NspInner;
use super::server::{by_index, by_path};
use super::server_side::named;
use super::unfinished::weight_of;
use super::{AckError, Socket};
use crate::fanout::{Delivery, Frame, Task};
use crate::limits;
use crate::protocol::sio::{EncodeError, Value, from_args};
use crate::runtime;
use crate::time::Millis;

/// How long answers are awaited unless [`BroadcastOperator::timeout`] says otherwise: as long as the
/// reference's adapters wait for each other. (Its own broadcasts without a timeout fail at once.)
const TIMEOUT: Duration = Duration::from_secs(5);

/// Broadcasts of one namespace and core whose answers are awaited. Beyond, nobody is asked: whoever emits
/// faster than clients answer, with a long timeout, would otherwise fill the memory.
const ASKED_MAX: usize = 10_000;

/// The ids of broadcasts are odd, those of single emits even: both are looked up by what a client says.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Whether an acknowledgement's id is that of a broadcast.
pub(super) fn is_broadcast(id: u64) -> bool {
    id % 2 == 1
}

/// Who is told of the answers to a broadcast: whoever waits for them, in this process or on another server.
/// An [`Adapter`](super::Adapter) tells what it hears of other servers.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// use sockring::io::{BroadcastAcks, Value};
///
/// #[derive(Default)]
/// struct Count(AtomicUsize);
///
/// impl BroadcastAcks for Count {
///     fn servers(&self, _count: usize) {}
///     fn clients(&self, _count: usize) {}
///     fn answer(&self, _args: Vec<Value>) {
///         self.0.fetch_add(1, Ordering::Relaxed);
///     }
/// }
/// ```
pub trait BroadcastAcks: Send + Sync {
    /// So many other servers are asked. Told once, before anything else of theirs.
    fn servers(&self, count: usize);

    /// A server has sent the broadcast to so many sockets, each of which is expected to answer. Told once for
    /// each server, maybe behind the first answers.
    fn clients(&self, count: usize);

    /// A socket has answered with these arguments.
    fn answer(&self, args: Vec<Value>);
}

/// What came of a broadcast: what each socket that has answered said, and what is wrong if not all have.
type Answers = (Vec<Vec<Value>>, Option<AckError>);

/// Waits until all servers have said how many sockets they have asked, and until so many have answered.
pub(super) struct Collector(Mutex<Collected>);

#[derive(Default)]
struct Collected {
    /// Servers that have not yet said how many sockets they have asked.
    servers: usize,
    /// Sockets that were asked so far.
    clients: usize,
    answers: Vec<Vec<Value>>,
    /// The memory of the answers, about.
    bytes: usize,
    result: Option<Answers>,
    ended: bool,
    waker: Option<Waker>,
}

impl Collector {
    /// Waits for this server, and for others that it is told of.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Collected { servers: 1, ..Collected::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, Collected> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, and ends the wait if that was all or if it has failed.
    fn change(&self, change: impl FnOnce(&mut Collected) -> Option<AckError>) {
        let waker = {
            let mut collected = self.lock();
            if collected.ended {
                return;
            }
            let error = change(&mut collected);
            let complete = collected.servers == 0 && collected.answers.len() >= collected.clients;
            if error.is_none() && !complete {
                return;
            }
            collected.ended = true;
            collected.result = Some((std::mem::take(&mut collected.answers), error));
            collected.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Gives up: what has come so far is all.
    fn fail(&self, error: AckError) {
        self.change(|_| Some(error));
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Answers> {
        let mut collected = self.lock();
        match collected.result.take() {
            Some(answers) => Poll::Ready(answers),
            None => {
                collected.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl BroadcastAcks for Collector {
    fn servers(&self, count: usize) {
        self.change(|collected| {
            collected.servers = collected.servers.saturating_add(count);
            None
        });
    }

    fn clients(&self, count: usize) {
        self.change(|collected| {
            collected.servers = collected.servers.saturating_sub(1);
            // Other servers may say any number.
            collected.clients = collected.clients.saturating_add(count);
            None
        });
    }

    fn answer(&self, args: Vec<Value>) {
        self.change(|collected| {
            collected.bytes += weight_of(&args);
            if collected.bytes > limits::ANSWERS_BYTES {
                return Some(AckError::Dropped);
            }
            collected.answers.push(args);
            None
        });
    }
}

/// Gives the wait up when it is dropped: at the deadline, or because the core that watches it has ended.
struct Watch(Arc<Collector>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.fail(AckError::Timeout);
    }
}

/// The deadlines of broadcasts, on the core that emitted them. Some have all their answers.
#[derive(Default)]
pub(super) struct Watches {
    all: RefCell<BinaryHeap<Watched>>,
    /// How many those may be before those that have ended are taken out.
    max: Cell<usize>,
}

/// Broadcasts of which it is not looked whether they have all their answers.
const WATCHED_MIN: usize = 64;

struct Watched {
    deadline: Millis,
    watch: Watch,
}

impl Watches {
    fn add(&self, watched: Watched) {
        let mut all = self.all.borrow_mut();
        let mut ended = Vec::new();
        if all.len() >= self.max.get().max(WATCHED_MIN) {
            let (over, open): (Vec<_>, Vec<_>) =
                std::mem::take(&mut *all).into_vec().into_iter().partition(|one| one.watch.0.has_ended());
            (ended, *all) = (over, open.into());
            self.max.set(2 * all.len());
        }
        all.push(watched);
        drop(all);
        drop(ended);
    }

    /// Gives up whatever has not ended by now.
    pub(super) fn expire(&self, now: Millis) {
        loop {
            let due = {
                let mut watches = self.all.borrow_mut();
                if watches.peek().is_none_or(|first| first.deadline > now) {
                    return;
                }
                watches.pop()
            };
            drop(due.map(|watched| watched.watch));
        }
    }

    /// Gives up everything.
    pub(super) fn clear(&self) {
        drop(self.all.take());
    }
}

impl Ord for Watched {
    /// The earliest is the greatest, which is what a heap gives first.
    fn cmp(&self, other: &Self) -> Order {
        other.deadline.cmp(&self.deadline)
    }
}

impl PartialOrd for Watched {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        self.deadline == other.deadline
    }
}

impl Eq for Watched {}

/// Adds up how many sockets the cores have asked. Every task that is still to ask holds it; dropped with the
/// last of them, whether that was carried out, panicked, or was refused by a full mailbox.
struct Counting {
    count: AtomicUsize,
    acks: Arc<dyn BroadcastAcks>,
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.acks.clients(*self.count.get_mut());
    }
}

/// A broadcast that sockets of one core were asked to answer.
pub(super) struct Asked {
    /// Slot and generation of those who have not answered.
    owing: HashMap<u32, u32, RandomState>,
    acks: Arc<dyn BroadcastAcks>,
    deadline: Millis,
}

impl Asked {
    pub(super) fn deadline(&self) -> Millis {
        self.deadline
    }
}

/// What a core knows of the broadcasts that its sockets are to answer, by the acknowledgement's id.
pub(super) type AskedById = RefCell<HashMap<u64, Asked, RandomState>>;

impl NspInner {
    /// Owes a frame to the selected sockets of this core and expects an answer of each; of how many. As with
    /// the reference, who leaves meanwhile is still expected to answer.
    fn ask(
        self: &Rc<Self>,
        selection: &Selection,
        frame: &Frame,
        id: u64,
        timeout: Millis,
        acks: &Arc<dyn BroadcastAcks>,
    ) -> usize {
        let mut slots = Vec::new();
        if self.asked.borrow().len() >= ASKED_MAX {
            tracing::debug!("a broadcast is not sent: too many wait for answers");
            // They count as asked, so that the silence is noticed.
            self.select(selection, |slot, _| slots.push(slot));
            return slots.len();
        }
        self.owe(selection, frame, |slot, delivery| {
            if !selection.volatile || delivery != Delivery::Dropped {
                slots.push(slot);
            }
        });
        let count = slots.len();
        if count > 0 {
            let sockets = self.sockets.borrow();
            let generation = |slot: u32| Some((slot, sockets.get(slot as usize)?.generation));
            let owing = slots.into_iter().filter_map(generation).collect();
            let deadline = self.core.now().saturating_add(timeout);
            drop(sockets);
            self.asked.borrow_mut().insert(id, Asked { owing, acks: acks.clone(), deadline });
            if let Some(server) = by_index(self.server) {
                server.await_ack(deadline, self.index, id);
            }
        }
        count
    }

    /// A client has answered a broadcast. Late, repeated and foreign answers are ignored.
    pub(super) fn broadcast_acknowledged(&self, socket: Socket, id: u64, args: Vec<Value>) {
        let acks = {
            let mut asked = self.asked.borrow_mut();
            let Some(broadcast) = asked.get_mut(&id) else { return };
            if broadcast.owing.get(&socket.slot) != Some(&socket.generation) {
                return;
            }
            broadcast.owing.remove(&socket.slot);
            let (acks, deadline) = (broadcast.acks.clone(), broadcast.deadline);
            if broadcast.owing.is_empty() {
                asked.remove(&id);
                if let Some(server) = by_index(self.server) {
                    server.forget_ack(deadline, self.index, id);
                }
            }
            acks
        };
        acks.answer(args);
    }

    /// Nobody waits for the answers to a broadcast any more.
    pub(super) fn broadcast_timed_out(&self, id: u64) {
        let asked = self.asked.borrow_mut().remove(&id);
        drop(asked);
    }
}

impl BroadcastOperator {
    /// Limits the time for the answers to what is emitted through the result. Without it they are awaited
    /// for 5 seconds.
    pub fn timeout(&self, timeout: Duration) -> Self {
        let mut new = self.clone();
        new.timeout = Some(timeout);
        new
    }

    /// Emits an event and awaits an answer of each socket, for the time that [`timeout`](Self::timeout) says.
    /// With nobody to ask, the answer is an empty list at once. The event is emitted by this call, whether
    /// the future is awaited or not; it may be awaited on any thread.
    ///
    /// A tuple `T` takes all values of an answer, any other type the first. The answers come in no particular
    /// order.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn f(io: sockring::io::Server) {
    /// let votes = io.to("jury").timeout(Duration::from_secs(10)).emit_with_ack::<u32, _>("vote", "finale");
    /// match votes.await {
    ///     Ok(votes) => println!("all have voted: {votes:?}"),
    ///     Err(error) => println!("{error}; so far: {:?}", error.answers),
    /// }
    /// # }
    /// ```
    pub fn emit_with_ack<T, A>(&self, event: &str, args: A) -> BroadcastAckFuture<T>
    where
        T: DeserializeOwned,
        A: Serialize,
    {
        let collector = Collector::new();
        if let Err(error) = self.ask_all(event, &args, &collector) {
            collector.fail(AckError::Encode(error.to_string()));
        }
        BroadcastAckFuture { collector, answer: PhantomData }
    }

    /// Like [`emit_with_ack`](Self::emit_with_ack), and calls `done` on this core with what came of it. On a
    /// thread that is no worker nothing could call it: `done` gets [`AckError::NoWorker`] at once, and
    /// nothing is emitted.
    ///
    /// # Errors
    ///
    /// A reserved name, or arguments that cannot be written as JSON; `done` is not called then.
    pub fn emit_with_callback<T, A>(
        &self,
        event: &str,
        args: A,
        done: impl FnOnce(Result<Vec<T>, BroadcastAckError<T>>) + 'static,
    ) -> Result<Delivery, EncodeError>
    where
        T: DeserializeOwned + 'static,
        A: Serialize,
    {
        let Some(core) = runtime::current() else {
            done(Err(BroadcastAckError { reason: AckError::NoWorker, answers: Vec::new() }));
            return Ok(Delivery::Dropped);
        };
        let collector = Collector::new();
        let delivery = self.ask_all(event, &args, &collector)?;
        let future = BroadcastAckFuture { collector, answer: PhantomData };
        core.spawn(async move { done(future.await) });
        Ok(delivery)
    }

    /// Asks all selected sockets, and watches the time.
    fn ask_all<A: Serialize>(
        &self,
        event: &str,
        args: &A,
        collector: &Arc<Collector>,
    ) -> Result<Delivery, EncodeError> {
        let encode = |id| {
            let frame = self.scope.event(Some(id), event, args)?;
            // The others are told first: this server's count must not be taken for that of all.
            if let Some(adapter) = self.adapter() {
                let (named, options) = (named(event, args)?, self.options());
                adapter.broadcast_with_ack(&self.scope.nsp, named, &options, collector.clone());
            }
            Ok(frame)
        };
        let delivery = self.ask(encode, collector.clone())?;
        if !collector.lock().ended {
            self.watch(Watch(collector.clone()));
        }
        Ok(delivery)
    }

    /// Sends what `encode` makes of the acknowledgement's id to the selected sockets of this process, and has
    /// `acks` told of them.
    ///
    /// # Errors
    ///
    /// Those of `encode`; then nothing is told.
    pub(super) fn ask(
        &self,
        encode: impl FnOnce(u64) -> Result<Frame, EncodeError>,
        acks: Arc<dyn BroadcastAcks>,
    ) -> Result<Delivery, EncodeError> {
        let id = NEXT_ID.fetch_add(2, Ordering::Relaxed);
        let frame = encode(id)?;
        let frame = if self.selection.plain { frame.uncompressed() } else { frame };
        let (bytes, timeout) = (frame.wire().len(), self.ack_timeout());
        let counting = Arc::new(Counting { count: AtomicUsize::new(0), acks: acks.clone() });
        let ask = move |nsp: &Rc<NspInner>, selection: &Selection| {
            counting.count.fetch_add(nsp.ask(selection, &frame, id, timeout, &acks), Ordering::Relaxed);
        };
        let refused = self.on_cores_holding(self.cores(), bytes, ask);
        Ok(if refused.is_empty() { Delivery::Sent } else { Delivery::Dropped })
    }

    fn ack_timeout(&self) -> Millis {
        Millis::try_from(self.timeout.unwrap_or(TIMEOUT).as_millis()).unwrap_or(Millis::MAX)
    }

    /// Has a core keep the watch until its deadline: this one, or from another thread any that takes it. If
    /// none does, it is given up.
    fn watch(&self, watch: Watch) {
        let (path, timeout) = (self.scope.path.clone(), self.ack_timeout());
        let mut keep = Task::new(move || {
            if let (Some(server), Some(core)) = (by_path(&path), runtime::current()) {
                let deadline = core.now().saturating_add(timeout);
                server.watches.add(Watched { deadline, watch });
            }
        });
        if runtime::current().is_some_and(|core| Arc::ptr_eq(core.shared(), &self.scope.shared)) {
            return keep.run();
        }
        let mesh = &self.scope.shared.mesh;
        for core in 0..mesh.cores() {
            match mesh.post(core, keep) {
                Ok(()) => return,
                Err(refused) => keep = refused,
            }
        }
    }
}

/// Not all sockets have answered a broadcast as they should.
///
/// ```
/// use sockring::io::{AckError, BroadcastAckError};
/// let error = BroadcastAckError { reason: AckError::Timeout, answers: vec![1, 2] };
/// assert_eq!(error.to_string(), "operation has timed out");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct BroadcastAckError<T> {
    /// What is wrong: mostly [`AckError::Timeout`]. [`AckError::Args`] is about the first answer that did
    /// not fit, if all have come.
    pub reason: AckError,
    /// The answers that came and fit.
    pub answers: Vec<T>,
}

impl<T> fmt::Display for BroadcastAckError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl<T: fmt::Debug> std::error::Error for BroadcastAckError<T> {}

/// The answers to a broadcast, to come. Made by [`BroadcastOperator::emit_with_ack`].
///
/// ```no_run
/// # use sockring::io::{BroadcastAckError, Handle};
/// # async fn ask(io: Handle) -> Result<(), BroadcastAckError<String>> {
/// let names: Vec<String> = io.emit_with_ack("name?", ()).await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "the event is emitted already; the answers are lost"]
pub struct BroadcastAckFuture<T> {
    collector: Arc<Collector>,
    answer: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for BroadcastAckFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BroadcastAckFuture").finish_non_exhaustive()
    }
}

impl<T: DeserializeOwned> Future for BroadcastAckFuture<T> {
    type Output = Result<Vec<T>, BroadcastAckError<T>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.collector.poll(cx).map(|(answers, mut reason)| {
            let mut fitting = Vec::with_capacity(answers.len());
            for args in &answers {
                match from_args(args) {
                    Ok(answer) => fitting.push(answer),
                    // One client's nonsense must not cost the others' answers.
                    Err(misfit) => reason = reason.or(Some(AckError::Args(misfit))),
                }
            }
            match reason {
                None => Ok(fitting),
                Some(reason) => Err(BroadcastAckError { reason, answers: fitting }),
            }
        })
    }
}

/// The answer of the one socket that was asked.
pub(super) async fn single<T: DeserializeOwned>(answers: BroadcastAckFuture<T>) -> Result<T, AckError> {
    match answers.await {
        Ok(mut answers) => answers.pop().ok_or(AckError::Disconnected),
        Err(error) => Err(error.reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls once.
    fn answers(collector: &Collector) -> Option<Answers> {
        match collector.poll(&Context::from_waker(Waker::noop())) {
            Poll::Ready(answers) => Some(answers),
            Poll::Pending => None,
        }
    }

    #[test]
    fn answers_are_bounded_together() {
        let collector = Collector::new();
        collector.clients(1000);
        let large = "x".repeat(1 << 20);
        for _ in 0..limits::ANSWERS_BYTES / (1 << 20) {
            assert!(answers(&collector).is_none());
            collector.answer(vec![Value::from(large.as_str())]);
        }
        let (came, error) = answers(&collector).unwrap();
        assert_eq!(error, Some(AckError::Dropped));
        assert_eq!(came.len(), limits::ANSWERS_BYTES / (1 << 20) - 1, "those that came are there");
    }

    #[test]
    fn broadcasts_that_are_answered_do_not_stay_until_their_deadlines() {
        let watches = Watches::default();
        for number in 0..10_000 {
            let collector = Collector::new();
            watches.add(Watched { deadline: Millis::MAX, watch: Watch(collector.clone()) });
            if number % 100 > 0 {
                collector.clients(0);
            }
        }
        assert!(watches.all.borrow().len() <= 2 * 100 + WATCHED_MIN, "{}", watches.all.borrow().len());
    }
}
