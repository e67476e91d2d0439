//! Sessions whose events go elsewhere than to what the engine was made with.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::server::{Inner, with_server};
use super::{Events, Server, Socket};

/// Who has taken which sessions over, by their slots. Most engines have none of it.
#[derive(Default)]
pub(super) struct Taken {
    any: Cell<bool>,
    /// Takes over all that open from now on.
    new: RefCell<Option<Rc<dyn Events>>>,
    by_slot: RefCell<HashMap<u32, Rc<dyn Events>, RandomState>>,
}

impl Taken {
    pub(super) fn clear(&self) {
        drop((self.new.take(), self.by_slot.take()));
    }

    fn of(&self, slot: u32) -> Option<Rc<dyn Events>> {
        if !self.any.get() {
            return None;
        }
        self.by_slot.borrow().get(&slot).cloned()
    }

    fn take_over(&self, slot: u32, events: Rc<dyn Events>) {
        self.any.set(true);
        drop(self.by_slot.borrow_mut().insert(slot, events));
    }
}

impl Inner {
    /// Tells whoever a session's events go to.
    pub(super) fn tell(&self, socket: Socket, f: impl FnOnce(&dyn Events)) {
        match self.taken.of(socket.slot) {
            Some(events) => f(&*events),
            None => f(&*self.events),
        }
    }

    /// A session has opened: it is whose who has taken over all that open.
    pub(super) fn assign(&self, socket: Socket) {
        let new = self.taken.new.borrow().clone();
        if let Some(events) = new {
            self.taken.take_over(socket.slot, events);
        }
    }

    /// A session has ended, and all have been told.
    pub(super) fn release(&self, socket: Socket) {
        if self.taken.any.get() {
            let released = self.taken.by_slot.borrow_mut().remove(&socket.slot);
            drop(released);
        }
    }
}

impl Server {
    /// The events of all sessions that open from now on go to `events`.
    pub(crate) fn hand_over(&self, events: Rc<dyn Events>) {
        self.0.taken.any.set(true);
        drop(self.0.taken.new.borrow_mut().replace(events));
    }
}

impl Socket {
    /// The events of this session go to `events` from now on; whether it is open.
    pub(crate) fn hand_over(self, events: Rc<dyn Events>) -> bool {
        let taken = with_server(self, |server| {
            let open = server.with(self, |_| ()).is_some();
            if open {
                server.taken.take_over(self.slot, events);
            }
            open
        });
        taken == Some(true)
    }
}
