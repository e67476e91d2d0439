//! A point that everything has passed which was on its way before.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Core, Shared, current};
use crate::fanout::Task;

/// What runs when the last of those has passed that were asked to.
struct Fence {
    shared: Arc<Shared>,
    home: usize,
    /// A mailbox was full, so something may still be on its way.
    broken: AtomicBool,
    then: Mutex<Option<Then>>,
}

type Then = Box<dyn FnOnce(bool) + Send>;

impl Drop for Fence {
    fn drop(&mut self) {
        let Some(then) = self.then.get_mut().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let whole = !self.broken.load(Ordering::Relaxed);
        // If it comes back, the core has ended, or is stuck: it is dropped.
        let _ = self.shared.mesh.post(self.home, Task::new(move || then(whole)));
    }
}

impl Core {
    /// Runs `then` on this core, once this core and another one have carried out all tasks whose senders had
    /// looked for their cores before now. `false`: a mailbox was full, so it may not be so; if a core has
    /// ended,
    /// `then` may be dropped instead.
    ///
    /// Looking up and posting are one step of a core. So each core sends a task to both behind those that it
    /// has sent already. Threads that are no cores hold [`Shared::outside`] for these two steps.
    pub fn fence(self: &Rc<Self>, other: usize, then: impl FnOnce(bool) + Send + 'static) {
        self.shared().wait_for_outside();
        let fence = Arc::new(Fence {
            shared: self.shared().clone(),
            home: self.index(),
            broken: AtomicBool::new(false),
            then: Mutex::new(Some(Box::new(then))),
        });
        for core in 0..self.shared().mesh.cores() {
            if core == self.index() {
                pass(self, other, &fence);
                continue;
            }
            let passing = fence.clone();
            let task = Task::new(move || {
                let Some(here) = current() else { return };
                pass(&here, passing.home, &passing);
                if here.index() != other {
                    pass(&here, other, &passing);
                }
            });
            if !self.post(core, task) {
                fence.broken.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// Sends a task that does nothing but hold the fence.
fn pass(from: &Core, to: usize, fence: &Arc<Fence>) {
    let passing = fence.clone();
    if !from.post(to, Task::new(move || drop(passing))) {
        fence.broken.store(true, Ordering::Relaxed);
    }
}
