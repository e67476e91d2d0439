//! Closing what has its parts on all cores.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::fanout::Task;
use crate::limits;
use crate::runtime::{self, Core, Shared};

/// What the sessions of all cores are being closed with. It may be awaited, on any thread and executor, and
/// is ready when every core has closed its own. Dropped, it closes them all the same.
///
/// ```no_run
/// # fn set_up(io: sockring::io::Server) {
/// if let Some(core) = sockring::runtime::current() {
///     core.spawn(async move {
///         io.close().await;
///         println!("all sockets are gone");
///     });
/// }
/// # }
/// ```
pub struct Closing(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    complete: bool,
    waker: Option<Waker>,
}

/// Every core that has still to close holds it. Dropped with the last of them, whether its task was carried
/// out, panicked, or was dropped with the mailbox of a core that has ended.
struct Open(Arc<Mutex<State>>);

impl Drop for Open {
    fn drop(&mut self) {
        let waker = {
            let mut state = lock(&self.0);
            state.complete = true;
            state.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Closing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closing").field("complete", &lock(&self.0).complete).finish()
    }
}

impl Future for Closing {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0);
        if state.complete {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Closing {
    /// Runs `close` on all cores, from any thread. A core whose mailbox is full is asked again by a thread
    /// that waits for it: a close must not get lost.
    pub(crate) fn everywhere(shared: &Arc<Shared>, close: impl Fn() + Clone + Send + 'static) -> Self {
        if let Some(core) = runtime::current().filter(|core| Arc::ptr_eq(core.shared(), shared)) {
            return Self::begin(&core, close);
        }
        let state = Arc::new(Mutex::new(State::default()));
        let open = Arc::new(Open(state.clone()));
        for core in 0..shared.mesh.cores() {
            let (close, open) = (close.clone(), open.clone());
            let task = Task::new(move || {
                close();
                drop(open);
            });
            let Err(mut refused) = shared.mesh.post(core, task) else { continue };
            let shared = shared.clone();
            std::thread::spawn(move || {
                while !shared.is_stopping() {
                    std::thread::sleep(limits::TICK);
                    match shared.mesh.post(core, refused) {
                        Ok(()) => return,
                        Err(again) => refused = again,
                    }
                }
            });
        }
        Self(state)
    }

    /// Runs `close` on this core before it returns, and on all others as a task.
    pub(crate) fn begin(core: &Rc<Core>, close: impl Fn() + Clone + Send + 'static) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let open = Arc::new(Open(state.clone()));
        for other in (0..core.shared().mesh.cores()).filter(|other| *other != core.index()) {
            let (close, open) = (close.clone(), open.clone());
            let task = move || {
                let (close, open) = (close.clone(), open.clone());
                Task::new(move || {
                    close();
                    drop(open);
                })
            };
            if core.post(other, task()) {
                continue;
            }
            // Its mailbox is full. A close must not get lost, and there is time.
            let posting = core.clone();
            core.spawn(async move {
                while !posting.is_stopping() && !posting.post(other, task()) {
                    monoio::time::sleep(limits::TICK).await;
                }
            });
        }
        close();
        Self(state)
    }
}
