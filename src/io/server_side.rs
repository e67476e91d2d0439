//! Events for the servers of a cluster themselves.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::broadcast::BroadcastOperator;
use super::namespace::NspInner;
use super::{ClusterAnswer, ClusterError, Handle, Namespace, Server};
use crate::fanout::Task;
use crate::protocol::sio::{ArgsError, EncodeError, Value, from_args, to_args, to_value};
use crate::runtime;

/// An event that another server has sent with `server_side_emit`.
///
/// ```no_run
/// # use sockring::io::{Server, ServerEvent};
/// # fn set_up(io: &Server) {
/// io.on_server_event("load?", |event: ServerEvent| {
///     if let Ok((threshold,)) = event.data::<(f64,)>() {
///         let _ = event.ack.send(threshold < 0.5);
///     }
/// });
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerEvent {
    /// The name.
    pub event: String,
    /// The arguments, without the acknowledgement.
    pub args: Vec<Value>,
    /// The answer that the other server may wait for.
    pub ack: ServerAck,
}

impl ServerEvent {
    /// The typed arguments: a tuple takes all of them, any other type the first.
    ///
    /// # Errors
    ///
    /// What did not match.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, ArgsError> {
        from_args(&self.args)
    }
}

type Answer = Box<dyn FnOnce(Value) + Send>;

/// The answer to a [`ServerEvent`]. It may be sent from any thread, now or later; of several clones and
/// handlers the first counts.
///
/// ```no_run
/// # use sockring::io::{Server, ServerEvent};
/// # fn set_up(io: &Server) {
/// io.on_server_event("sum", |event: ServerEvent| {
///     std::thread::spawn(move || event.ack.send((1..1000).sum::<u64>()));
/// });
/// # }
/// ```
#[derive(Clone, Default)]
pub struct ServerAck(Arc<Mutex<Option<Answer>>>);

impl fmt::Debug for ServerAck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerAck").field(&self.is_expected()).finish()
    }
}

impl ServerAck {
    /// Whether the other server waits for an answer, and has none yet.
    pub fn is_expected(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Answers with one value.
    ///
    /// # Errors
    ///
    /// A value that cannot be written as JSON; it may be tried again then.
    pub fn send<T: Serialize>(&self, value: T) -> Result<(), EncodeError> {
        let value = to_value(&value)?;
        let answer = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(answer) = answer {
            answer(value);
        }
        Ok(())
    }
}

/// The handlers of a namespace for events of other servers.
pub(super) type ServerListeners = RefCell<Vec<(Rc<str>, Rc<dyn Fn(ServerEvent)>)>>;

impl Namespace {
    /// Runs `handler` for an event that another server of the cluster has sent to this namespace with
    /// `server_side_emit`. It runs once for a server, on the first of the cores that have the namespace:
    /// register it on all of them.
    pub fn on_server_event(&self, event: &str, handler: impl Fn(ServerEvent) + 'static) -> &Self {
        self.0.server_listeners.borrow_mut().push((event.into(), Rc::new(handler)));
        self
    }

    /// The names of the events of other servers that have handlers.
    pub fn server_event_names(&self) -> Vec<String> {
        self.0.server_listeners.borrow().iter().map(|(name, _)| (**name).to_owned()).collect()
    }
}

impl Server {
    /// See [`Namespace::on_server_event`].
    pub fn on_server_event(&self, event: &str, handler: impl Fn(ServerEvent) + 'static) -> &Self {
        self.sockets().on_server_event(event, handler);
        self
    }
}

impl Handle {
    /// Runs the handlers of an event that another server has sent: how an [`Adapter`](super::Adapter) brings
    /// it in. `args` is the event's name, then its arguments; `answer` is called at most once, on any thread.
    pub fn server_event(&self, mut args: Vec<Value>, answer: Option<Box<dyn FnOnce(Value) + Send>>) {
        let scope = self.scope().clone();
        let Some(core) = scope.registry.first_core(&scope.nsp) else { return };
        let Some(Value::String(event)) = (!args.is_empty()).then(|| args.remove(0)) else { return };
        let event = ServerEvent { event, args, ack: ServerAck(Arc::new(Mutex::new(answer))) };
        let shared = scope.shared.clone();
        let task = Task::new(move || {
            if let Some(nsp) = scope.on_this_core() {
                nsp.server_event(&event);
            }
        });
        if shared.mesh.post(core, task).is_err() {
            tracing::warn!("an event of another server is lost: the mailbox of core {core} is full");
        }
    }
}

impl NspInner {
    fn server_event(&self, event: &ServerEvent) {
        let listeners = self.server_listeners.borrow();
        let fitting = listeners.iter().filter(|(name, _)| **name == *event.event);
        let handlers: Vec<Rc<dyn Fn(ServerEvent)>> = fitting.map(|(_, handler)| handler.clone()).collect();
        drop(listeners);
        for handler in handlers {
            runtime::guarded(format_args!("a handler of the server's event {:?}", event.event), || {
                handler(event.clone())
            });
        }
    }
}

/// The reference's names of its own events on a server.
const RESERVED: [&str; 3] = ["connect", "connection", "new_namespace"];

impl BroadcastOperator {
    pub(super) fn server_side_emit<T: Serialize>(&self, event: &str, args: T) -> Result<(), EncodeError> {
        let args = server_args(event, &args)?;
        if let Some(adapter) = self.adapter() {
            adapter.server_side_emit(&self.scope.nsp, args, None);
        }
        Ok(())
    }

    pub(super) fn server_side_emit_with_ack<T, A>(&self, event: &str, args: A) -> ClusterFuture<T>
    where
        T: DeserializeOwned,
        A: Serialize,
    {
        let future = ClusterFuture::new();
        match server_args(event, &args) {
            Ok(args) => match self.adapter() {
                Some(adapter) => {
                    adapter.server_side_emit(&self.scope.nsp, args, Some(future.fulfil()));
                }
                None => future.fulfil()(Ok(Vec::new())),
            },
            Err(error) => {
                let error = ClusterError { message: error.to_string(), responses: Vec::new() };
                future.fulfil()(Err(error));
            }
        }
        future
    }
}

fn server_args<T: Serialize>(event: &str, args: &T) -> Result<Vec<Value>, EncodeError> {
    if RESERVED.contains(&event) {
        return Err(EncodeError::ReservedEvent);
    }
    named(event, args)
}

/// An event's name, then its arguments.
pub(super) fn named<T: Serialize + ?Sized>(event: &str, args: &T) -> Result<Vec<Value>, EncodeError> {
    let mut named = to_args(args)?;
    named.insert(0, Value::from(event));
    Ok(named)
}

/// The answers of other servers, to come: one value of each. Made by `server_side_emit_with_ack`; it may be
/// awaited on any thread. The event was sent already.
///
/// ```no_run
/// # use sockring::io::{ClusterError, Handle};
/// # async fn f(io: Handle) -> Result<(), ClusterError<usize>> {
/// let users: Vec<usize> = io.server_side_emit_with_ack("how many users?", ()).await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "the event is sent already; the answers are lost"]
pub struct ClusterFuture<T> {
    slot: Arc<Mutex<Slot>>,
    answer: std::marker::PhantomData<fn() -> T>,
}

#[derive(Default)]
struct Slot {
    result: Option<Result<Vec<Value>, ClusterError<Value>>>,
    waker: Option<Waker>,
}

impl<T> fmt::Debug for ClusterFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterFuture").finish_non_exhaustive()
    }
}

impl<T> ClusterFuture<T> {
    fn new() -> Self {
        Self { slot: Arc::default(), answer: std::marker::PhantomData }
    }

    fn fulfil(&self) -> ClusterAnswer<Value> {
        let slot = self.slot.clone();
        cluster_answer(move |result| {
            let waker = {
                let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
                slot.result = Some(result);
                slot.waker.take()
            };
            waker.into_iter().for_each(Waker::wake);
        })
    }
}

/// What an adapter is given to answer with. One that drops it has answered too: nobody waits for ever because
/// a connection to a broker has gone.
pub(super) fn cluster_answer<T: 'static>(
    answer: impl FnOnce(Result<Vec<T>, ClusterError<T>>) + Send + 'static,
) -> ClusterAnswer<T> {
    let mut given = Given(Some(Box::new(answer)));
    Box::new(move |result| given.answer(result))
}

struct Given<T>(Option<ClusterAnswer<T>>);

impl<T> Given<T> {
    fn answer(&mut self, result: Result<Vec<T>, ClusterError<T>>) {
        if let Some(answer) = self.0.take() {
            answer(result);
        }
    }
}

impl<T> Drop for Given<T> {
    fn drop(&mut self) {
        let message = "the adapter does not answer".to_owned();
        self.answer(Err(ClusterError { message, responses: Vec::new() }));
    }
}

impl<T: DeserializeOwned> Future for ClusterFuture<T> {
    type Output = Result<Vec<T>, ClusterError<T>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = {
            let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(result) = slot.result.take() else {
                slot.waker = Some(cx.waker().clone());
                return Poll::Pending;
            };
            result
        };
        let (values, mut message) = match result {
            Ok(values) => (values, None),
            Err(error) => (error.responses, Some(error.message)),
        };
        let mut responses = Vec::with_capacity(values.len());
        for value in &values {
            match value.to() {
                Ok(response) => responses.push(response),
                // One server's nonsense must not cost the others' answers.
                Err(misfit) => message = message.or_else(|| Some(misfit.to_string())),
            }
        }
        Poll::Ready(match message {
            None => Ok(responses),
            Some(message) => Err(ClusterError { message, responses }),
        })
    }
}
