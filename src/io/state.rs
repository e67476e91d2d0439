//! What handlers take beside the event: state of the application, and what their socket belongs to.

use std::any::{Any, TypeId, type_name};
use std::ops::Deref;
use std::rc::Rc;

use super::server::by_index;
use super::socket::with_nsp;
use super::{EventContext, Failure, FromEvent, Handshake, Namespace, Server};

/// A value of the application that all handlers of a server and core share, given by [`Server::set_state`]. A
/// handler that takes a state which the server was not given does not run: that is logged at ERROR at the
/// first event, and `on_error` is told each time.
///
/// What cores are to share as well goes in as an `Arc`.
///
/// ```no_run
/// # use std::cell::Cell;
/// # use sockring::io::{Server, Socket, State};
/// struct Visits(Cell<u64>);
/// # fn set_up(io: &Server) {
/// io.set_state(Visits(Cell::new(0)));
/// io.on_connection(|socket: Socket, visits: State<Visits>| {
///     visits.0.set(visits.0.get() + 1);
///     socket.emit("visits", visits.0.get())
/// });
/// # }
/// ```
#[derive(Debug)]
pub struct State<T>(Rc<T>);

impl<T> Clone for State<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for State<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl Server {
    /// Gives the handlers of this server, on this core, a value: one of each type, and a later one takes the
    /// place of an earlier. Handlers take it as a [`State`].
    pub fn set_state<T: Any>(&self, state: T) -> &Self {
        let state: Rc<dyn Any> = Rc::new(state);
        let earlier = self.0.state.borrow_mut().insert(std::any::TypeId::of::<T>(), state);
        // It may call back when it is dropped: not while the table is borrowed.
        drop(earlier);
        self
    }

    /// The value of a type that [`set_state`](Self::set_state) was given.
    pub fn state<T: Any>(&self) -> Option<State<T>> {
        let state = self.0.state.borrow().get(&std::any::TypeId::of::<T>()).cloned()?;
        state.downcast().ok().map(State)
    }
}

impl<T: Any> FromEvent for State<T> {
    fn from_event(context: &EventContext<'_>) -> Result<Self, Failure> {
        let server = Server::from_event(context)?;
        server.state().ok_or_else(|| {
            server.0.told.missing_state(TypeId::of::<T>(), type_name::<T>());
            Failure::internal(format_args!("the server was given no state of type {}", type_name::<T>()))
        })
    }
}

/// The server of the socket.
impl FromEvent for Server {
    fn from_event(context: &EventContext<'_>) -> Result<Self, Failure> {
        by_index(context.socket.server).map(Self).ok_or_else(|| Failure::new("the server has ended"))
    }
}

/// The namespace of the socket.
impl FromEvent for Namespace {
    fn from_event(context: &EventContext<'_>) -> Result<Self, Failure> {
        let nsp = with_nsp(context.socket, Rc::clone);
        nsp.map(Self).ok_or_else(|| Failure::new("the namespace is gone"))
    }
}

/// What the socket came with.
impl FromEvent for Handshake {
    fn from_event(context: &EventContext<'_>) -> Result<Self, Failure> {
        context.socket.handshake().ok_or_else(|| Failure::new("the socket has left"))
    }
}
