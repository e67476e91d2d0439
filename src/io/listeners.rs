//! Which handlers an event has.

use std::cell::Cell;
use std::rc::Rc;

use smallvec::SmallVec;

use super::Failure;
use super::extract::{BoxedHandler, Outcome};

/// Names one handler of a socket, so that it can be removed. Every call that adds a handler returns one.
///
/// ```no_run
/// # use sockring::io::Socket;
/// # fn on_connection(socket: Socket) {
/// let chat = socket.on("chat", || println!("somebody talks"));
/// socket.on("quiet", move |socket: Socket| socket.off(chat));
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandlerId(u64);

impl HandlerId {
    /// One that no other handler of this thread has.
    pub(super) fn next() -> Self {
        thread_local! {
            static NEXT: Cell<u64> = const { Cell::new(0) };
        }
        NEXT.with(|next| Self(next.replace(next.get() + 1)))
    }
}

/// So that a handler may end with the call that adds another.
impl Outcome for HandlerId {
    fn into_result(self) -> Result<(), Failure> {
        Ok(())
    }
}

/// What [`Socket::off`](super::Socket::off) removes. Made from an event's name or a [`HandlerId`].
///
/// ```
/// use sockring::io::Off;
/// assert!(matches!(Off::from("chat"), Off::Event("chat")));
/// ```
#[derive(Clone, Copy, Debug)]
pub enum Off<'a> {
    /// All handlers of an event.
    Event(&'a str),
    /// One handler.
    Handler(HandlerId),
}

impl<'a> From<&'a str> for Off<'a> {
    fn from(event: &'a str) -> Self {
        Self::Event(event)
    }
}

impl<'a> From<&'a String> for Off<'a> {
    fn from(event: &'a String) -> Self {
        Self::Event(event)
    }
}

impl From<HandlerId> for Off<'_> {
    fn from(handler: HandlerId) -> Self {
        Self::Handler(handler)
    }
}

/// When and where among the others a handler runs.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    pub(super) once: bool,
    pub(super) first: bool,
}

/// The handlers of one socket, or of all sockets of a namespace. Few: they are searched, not hashed.
#[derive(Clone, Default)]
pub(super) struct Listeners {
    list: Vec<Listener>,
    /// Handlers of all events and middlewares, which few sockets have.
    general: Option<Box<General>>,
}

#[derive(Clone)]
struct Listener {
    event: Rc<str>,
    handler: BoxedHandler,
    id: HandlerId,
    once: bool,
}

/// Handlers that do not ask for an event's name.
#[derive(Clone, Default)]
pub(super) struct General {
    /// Of all events that come.
    pub(super) any: Unnamed,
    /// Of all events that are sent.
    pub(super) outgoing: Unnamed,
    pub(super) middlewares: Unnamed,
}

/// Handlers in the order in which they run.
#[derive(Clone, Default)]
pub(super) struct Unnamed(Vec<(HandlerId, BoxedHandler)>);

impl Unnamed {
    pub(super) fn add(&mut self, handler: BoxedHandler, first: bool) -> HandlerId {
        let id = HandlerId::next();
        let at = if first { 0 } else { self.0.len() };
        self.0.insert(at, (id, handler));
        id
    }

    /// Takes one handler out, or all.
    pub(super) fn remove(&mut self, id: Option<HandlerId>) -> Vec<BoxedHandler> {
        let removed = self.0.extract_if(.., |(known, _)| id.is_none_or(|id| id == *known));
        removed.map(|(_, handler)| handler).collect()
    }

    pub(super) fn handlers(&self) -> SmallVec<[BoxedHandler; 4]> {
        self.0.iter().map(|(_, handler)| handler.clone()).collect()
    }

    pub(super) fn ids(&self) -> Vec<HandlerId> {
        self.0.iter().map(|(id, _)| *id).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl General {
    fn is_empty(&self) -> bool {
        self.any.is_empty() && self.outgoing.is_empty() && self.middlewares.is_empty()
    }
}

impl Listeners {
    pub(super) fn add(&mut self, event: &str, handler: BoxedHandler, place: Place) -> HandlerId {
        let id = HandlerId::next();
        let at = if place.first { 0 } else { self.list.len() };
        self.list.insert(at, Listener { event: event.into(), handler, id, once: place.once });
        id
    }

    /// Takes handlers of events out.
    pub(super) fn remove(&mut self, off: Off<'_>) -> Vec<BoxedHandler> {
        let removed = self.list.extract_if(.., |listener| match off {
            Off::Event(event) => *listener.event == *event,
            Off::Handler(id) => listener.id == id,
        });
        removed.map(|listener| listener.handler).collect()
    }

    /// Takes all handlers of events out.
    pub(super) fn clear(&mut self) -> Vec<BoxedHandler> {
        self.list.drain(..).map(|listener| listener.handler).collect()
    }

    /// The handlers of an event, in the order in which they were added; those for once are gone after it.
    pub(super) fn take(&mut self, event: &str, out: &mut SmallVec<[BoxedHandler; 4]>) {
        let mut once = false;
        for listener in self.list.iter().filter(|listener| *listener.event == *event) {
            out.push(listener.handler.clone());
            once |= listener.once;
        }
        if once {
            self.list.retain(|listener| !listener.once || *listener.event != *event);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty() && self.general.is_none()
    }

    /// The handlers of an event.
    pub(super) fn of(&self, event: &str) -> Vec<HandlerId> {
        let of = |listener: &&Listener| *listener.event == *event;
        self.list.iter().filter(of).map(|listener| listener.id).collect()
    }

    /// The events that have handlers, each once.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for listener in &self.list {
            if !names.iter().any(|name| **name == *listener.event) {
                names.push(listener.event.to_string());
            }
        }
        names
    }

    pub(super) fn general(&self) -> Option<&General> {
        self.general.as_deref()
    }

    /// Changes the handlers that ask for no name.
    pub(super) fn change<T>(&mut self, change: impl FnOnce(&mut General) -> T) -> T {
        let general = self.general.get_or_insert_default();
        let changed = change(general);
        if general.is_empty() {
            self.general = None;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::super::extract::Called;
    use super::*;

    fn handler() -> BoxedHandler {
        Rc::new(|_: &super::super::EventContext<'_>| Called::Done(Ok(())))
    }

    #[test]
    fn once_is_once_and_order_is_kept() {
        let mut listeners = Listeners::default();
        let (a, b) = (handler(), handler());
        listeners.add("a", a.clone(), Place::default());
        listeners.add("a", handler(), Place { once: true, first: false });
        listeners.add("a", b.clone(), Place { once: false, first: true });
        listeners.add("b", handler(), Place::default());
        let mut out = SmallVec::new();
        listeners.take("a", &mut out);
        assert_eq!(out.len(), 3);
        out.clear();
        listeners.take("a", &mut out);
        assert_eq!(out.len(), 2);
        assert!(Rc::ptr_eq(&out[0], &b) && Rc::ptr_eq(&out[1], &a));
        assert_eq!(listeners.remove("b".into()).len(), 1);
        assert_eq!(listeners.names(), ["a"]);
    }

    #[test]
    fn one_handler_goes_and_the_others_stay() {
        let mut listeners = Listeners::default();
        let first = listeners.add("a", handler(), Place::default());
        let second = listeners.add("a", handler(), Place::default());
        assert_eq!(listeners.remove(first.into()).len(), 1);
        assert_eq!(listeners.of("a"), [second]);
        let any = listeners.change(|general| general.any.add(handler(), false));
        listeners.clear();
        assert!(!listeners.is_empty(), "handlers of all events are apart");
        listeners.change(|general| general.any.remove(Some(any)));
        assert!(listeners.is_empty());
    }
}
