//! From an event to its handlers.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;

use super::broadcast::Selection;
use super::extract::{BoxedHandler, Called, EventContext, Sent};
use super::listeners::General;
use super::namespace::NspInner;
use super::server::by_index;
use super::told::Doing;
use super::unfinished::{First, Later, Relay, first_step, weight_of};
use super::{EventError, Failure, Socket};
use crate::fanout::Frame;
use crate::protocol::Shown;
use crate::protocol::sio::Value;
use crate::runtime;

type Handlers = SmallVec<[BoxedHandler; 4]>;

impl NspInner {
    /// An event came: first those are told who listen to all events, then the socket's middlewares decide.
    pub(super) fn event(self: &Rc<Self>, socket: Socket, name: &str, args: &[Value], id: Option<u64>) {
        let context = EventContext { ack: id, ..EventContext::new(socket, name, args) };
        let general = self.with(socket, |entry| {
            let general = entry.listeners()?.general()?;
            Some((general.any.handlers(), general.middlewares.handlers()))
        });
        let Some((any, middlewares)) = general.flatten() else { return self.dispatch(&context) };
        if any.iter().all(|handler| self.run(handler, &context)) {
            self.filter(&context, &middlewares);
        } else {
            self.panicked(socket);
        }
    }

    /// Lets an event through a socket's middlewares, to its handlers or to those of `error`.
    fn filter(self: &Rc<Self>, context: &EventContext<'_>, middlewares: &[BoxedHandler]) {
        for (i, middleware) in middlewares.iter().enumerate() {
            let doing = self.doing("a middleware", context.socket, context.event);
            let passed = match runtime::guarded(&doing, || middleware(context)) {
                None => return self.panicked(context.socket),
                Some(Called::Done(passed)) => passed,
                Some(Called::Later(mut first)) => match first_step(&doing, &mut first) {
                    First::Ready(passed) => passed,
                    First::Panicked => return,
                    First::Waits(relay) => {
                        let rest = middlewares[i + 1..].to_vec();
                        return self.filter_later(context, (relay, first), rest, doing.into_owned());
                    }
                },
            };
            if passed.is_err() {
                return self.filtered(context, passed);
            }
        }
        self.filtered(context, Ok(()));
    }

    /// Goes on in a task with a middleware that waits, and those after it.
    fn filter_later(
        self: &Rc<Self>,
        context: &EventContext<'_>,
        (relay, first): (Arc<Relay>, Later<Result<(), Failure>>),
        rest: Vec<BoxedHandler>,
        doing: Doing<'static>,
    ) {
        let (nsp, event) = (self.clone(), Waiting::new(context));
        let filter = Box::pin(async move {
            let mut passed = first.await;
            for middleware in rest {
                if passed.is_err() {
                    break;
                }
                passed = match middleware(&event.context()) {
                    Called::Done(result) => result,
                    Called::Later(later) => later.await,
                };
            }
            (event, passed)
        });
        // After a panic, which is logged, the event is dropped and the client stays.
        let then = move |filtered: Option<(Waiting, Result<(), Failure>)>| {
            if let Some((event, passed)) = filtered {
                nsp.filtered(&event.context(), passed);
            }
        };
        self.go_on(context.socket, weight_of(context.args), (relay, filter), doing, then);
    }

    fn filtered(self: &Rc<Self>, context: &EventContext<'_>, passed: Result<(), Failure>) {
        match passed {
            // A middleware may have disconnected the socket, or taken longer than it stayed.
            Ok(()) if self.is_connected(context.socket) => self.dispatch(context),
            Ok(()) => {}
            Err(failure) => self.failed(context.socket, &failure),
        }
    }

    /// A middleware has refused a packet, or the client has sent what is none: tells the handlers of `error`.
    pub(super) fn failed(self: &Rc<Self>, socket: Socket, failure: &Failure) {
        if self.is_connected(socket) {
            tracing::debug!("a packet is refused: {}", Shown(&failure.to_string()));
            self.dispatch(&EventContext {
                failure: Some(failure),
                ..EventContext::new(socket, "error", &[])
            });
        }
    }

    /// Runs all handlers of an event.
    pub(super) fn dispatch(self: &Rc<Self>, context: &EventContext<'_>) {
        let mut handlers = Handlers::new();
        self.listeners.borrow_mut().take(context.event, &mut handlers);
        self.with(context.socket, |entry| {
            if let Some(listeners) = entry.listeners_mut() {
                listeners.take(context.event, &mut handlers);
            }
        });
        if context.left.is_some() {
            // One that panics must not keep the others from tidying up.
            for handler in &handlers {
                let _ = self.run(handler, context);
            }
        } else if !handlers.iter().all(|handler| self.run(handler, context)) {
            self.panicked(context.socket);
        }
    }

    /// Runs one handler. `false`: it has panicked, which is logged and counted.
    pub(super) fn run(self: &Rc<Self>, handler: &BoxedHandler, context: &EventContext<'_>) -> bool {
        let (socket, event) = (context.socket, context.event);
        let doing = self.doing("a handler", socket, event);
        match runtime::guarded(&doing, || handler(context)) {
            None => return false,
            Some(Called::Done(result)) => self.note(&doing, socket, event, result),
            Some(Called::Later(mut future)) => match first_step(&doing, &mut future) {
                First::Ready(result) => self.note(&doing, socket, event, result),
                // A panic in a future ends the future alone.
                First::Panicked => {}
                First::Waits(relay) => {
                    let (nsp, name, told) = (self.clone(), event.to_owned(), doing.clone().into_owned());
                    let then = move |result: Option<Result<(), Failure>>| {
                        if let Some(result) = result {
                            nsp.note(&told, socket, &name, result);
                        }
                    };
                    self.go_on(socket, weight_of(context.args), (relay, future), doing.into_owned(), then);
                }
            },
        }
        true
    }

    /// A handler has panicked. What it has left half done is not for further packets of its client.
    pub(super) fn panicked(&self, socket: Socket) {
        if let Some(conn) = self.with(socket, |entry| entry.conn) {
            conn.fail("a handler panicked");
        }
    }

    /// Tells `on_error`, the log and the counters of a handler that has failed.
    pub(super) fn note(&self, doing: &Doing<'_>, socket: Socket, event: &str, result: Result<(), Failure>) {
        let Err(failure) = result else { return };
        if let Some(server) = by_index(self.server) {
            server.told.failure(self.core.now(), doing, &failure);
        }
        let error = EventError { event: event.to_owned(), failure };
        let handler = self.on_error.borrow().clone();
        if let Some(handler) = handler {
            runtime::guarded("a handler of on_error", || handler(socket, &error));
        }
    }

    /// What is being done, for the log.
    pub(super) fn doing<'a>(&'a self, what: &'static str, socket: Socket, event: &'a str) -> Doing<'a> {
        let (event, nsp) = (Cow::Borrowed(event), Cow::Borrowed(&*self.scope.nsp));
        Doing { what, event, nsp, id: self.id(socket) }
    }

    /// Changes a socket's middlewares and its handlers of all events. What comes out is dropped by the
    /// caller: not while the table is borrowed.
    pub(super) fn change_general<T>(
        &self,
        socket: Socket,
        change: impl FnOnce(&mut General) -> T,
    ) -> Option<T> {
        self.with(socket, |entry| {
            let listeners = entry.make_listeners();
            let (changed, before, after) = listeners.change(|general| {
                let before = general.outgoing.is_empty();
                (change(general), before, general.outgoing.is_empty())
            });
            entry.tidy_listeners();
            match (before, after) {
                (true, false) => self.outgoing.set(self.outgoing.get() + 1),
                (false, true) => self.outgoing.set(self.outgoing.get() - 1),
                _ => {}
            }
            changed
        })
    }

    /// Tells the selected sockets that listen to what they are sent. Costs a comparison where none does.
    pub(super) fn tell_outgoing(self: &Rc<Self>, selection: &Selection, frame: &Frame) {
        if self.outgoing.get() > 0 {
            self.tell(&self.selected(selection), frame);
        }
    }

    /// The same for one socket.
    pub(super) fn tell_outgoing_of(self: &Rc<Self>, socket: Socket, frame: &Frame) {
        if self.outgoing.get() > 0 {
            self.tell(&[socket], frame);
        }
    }

    #[cold]
    fn tell(self: &Rc<Self>, sockets: &[Socket], frame: &Frame) {
        let handlers = |socket: &Socket| {
            let handlers = self.with(*socket, |entry| {
                let general = entry.listeners()?.general()?;
                Some(general.outgoing.handlers())
            });
            handlers.flatten().map(|handlers| (*socket, handlers))
        };
        let listening: Vec<(Socket, Handlers)> = sockets.iter().filter_map(handlers).collect();
        if listening.is_empty() {
            return;
        }
        let Some((name, args)) = self.scope.registry.wire.event_of(frame) else { return };
        for (socket, handlers) in listening {
            let context = EventContext::new(socket, &name, &args);
            // One listener's panic must not keep a broadcast from all others.
            runtime::guarded("a listener of outgoing packets", || {
                for handler in &handlers {
                    let _ = self.run(handler, &context);
                }
            });
        }
    }
}

/// An event that waits for a middleware.
struct Waiting {
    socket: Socket,
    event: String,
    args: Vec<Value>,
    ack: Option<u64>,
    sent: Sent,
}

impl Waiting {
    fn new(context: &EventContext<'_>) -> Self {
        Self {
            socket: context.socket,
            event: context.event.to_owned(),
            args: context.args.to_vec(),
            ack: context.ack,
            sent: context.sent.clone(),
        }
    }

    fn context(&self) -> EventContext<'_> {
        let sent = self.sent.clone();
        EventContext { ack: self.ack, sent, ..EventContext::new(self.socket, &self.event, &self.args) }
    }
}
