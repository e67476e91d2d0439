//! Which handlers an event has.

use std::rc::Rc;

use smallvec::SmallVec;

use super::extract::BoxedHandler;

/// The handlers of one socket, or of all sockets of a namespace. Few: they are searched, not hashed.
#[derive(Clone, Default)]
pub(super) struct Listeners {
    list: Vec<Listener>,
}

#[derive(Clone)]
struct Listener {
    event: Rc<str>,
    handler: BoxedHandler,
    once: bool,
}

impl Listeners {
    pub(super) fn add(&mut self, event: &str, handler: BoxedHandler, once: bool) {
        self.list.push(Listener { event: event.into(), handler, once });
    }

    /// Takes the handlers of an event out.
    pub(super) fn remove(&mut self, event: &str) -> Vec<BoxedHandler> {
        let removed = self.list.extract_if(.., |listener| *listener.event == *event);
        removed.map(|listener| listener.handler).collect()
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
        self.list.is_empty()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|listener| &*listener.event)
    }
}

#[cfg(test)]
mod tests {
    use super::super::extract::Called;
    use super::*;

    #[test]
    fn once_is_once_and_order_is_kept() {
        let mut listeners = Listeners::default();
        let handler = || Rc::new(|_: &super::super::EventContext<'_>| Called::Done(Ok(()))) as BoxedHandler;
        listeners.add("a", handler(), false);
        listeners.add("a", handler(), true);
        listeners.add("b", handler(), false);
        let mut out = SmallVec::new();
        listeners.take("a", &mut out);
        assert_eq!(out.len(), 2);
        out.clear();
        listeners.take("a", &mut out);
        assert_eq!(out.len(), 1);
        assert_eq!(listeners.remove("b").len(), 1);
        assert_eq!(listeners.names().collect::<Vec<_>>(), ["a"]);
    }
}
