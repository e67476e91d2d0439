//! From an event to its handlers.

use std::rc::Rc;

use smallvec::SmallVec;

use super::broadcast::Selection;
use super::extract::{BoxedHandler, Called, EventContext, Sent};
use super::listeners::General;
use super::namespace::NspInner;
use super::{EventError, Failure, Socket};
use crate::fanout::Frame;
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
        any.iter().for_each(|handler| self.run(handler, &context));
        self.filter(&context, &middlewares);
    }

    /// Lets an event through a socket's middlewares, to its handlers or to those of `error`.
    fn filter(self: &Rc<Self>, context: &EventContext<'_>, middlewares: &[BoxedHandler]) {
        for (i, middleware) in middlewares.iter().enumerate() {
            match middleware(context) {
                Called::Done(Ok(())) => {}
                Called::Done(Err(failure)) => return self.failed(context.socket, &failure),
                Called::Later(first) => {
                    let (nsp, event) = (self.clone(), Waiting::new(context));
                    let (rest, held) =
                        (middlewares[i + 1..].to_vec(), self.hold(context.socket, context.args));
                    return self.core.spawn(async move {
                        let _held = held;
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
                        nsp.filtered(&event.context(), passed);
                    });
                }
            }
        }
        self.filtered(context, Ok(()));
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
            tracing::debug!("a packet is refused: {failure}");
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
        handlers.iter().for_each(|handler| self.run(handler, context));
    }

    /// Calls a handler and sees to its failure, now or later.
    pub(super) fn run(self: &Rc<Self>, handler: &BoxedHandler, context: &EventContext<'_>) {
        match handler(context) {
            Called::Done(result) => self.note(context.socket, context.event, result),
            Called::Later(future) => {
                let (nsp, socket, event) = (self.clone(), context.socket, context.event.to_owned());
                let held = self.hold(socket, context.args);
                self.core.spawn(async move {
                    let _held = held;
                    let result = future.await;
                    nsp.note(socket, &event, result);
                });
            }
        }
    }

    fn note(&self, socket: Socket, event: &str, result: Result<(), Failure>) {
        let Err(failure) = result else { return };
        let error = EventError { event: event.to_owned(), failure };
        let handler = self.on_error.borrow().clone();
        match handler {
            Some(handler) => handler(socket, &error),
            None => tracing::debug!("a handler has failed: {error}"),
        }
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
                handlers.iter().for_each(|handler| self.run(handler, &context))
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
