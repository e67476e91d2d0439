//! Boundaries: a panic in what runs for one connection, socket or task ends that alone and is reported; a
//! step that keeps its core for long is reported too.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{self, AssertUnwindSafe, Location, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use super::current;
use crate::limits;
use crate::protocol::Shown;

thread_local! {
    /// The place of the thread's last panic. Only the panic hook is told it.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
    /// Time of this thread that warnings about slow steps have told already.
    static TOLD: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Panics and slow steps on threads that are no worker's; the first core reports them.
pub(super) static PANICS_ELSEWHERE: AtomicU64 = AtomicU64::new(0);

/// A panic that was caught: its message, and its place in the source if the panic hook was told it.
#[derive(Debug)]
pub(crate) struct Panic {
    message: String,
    place: Option<String>,
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Shown(&self.message))?;
        match &self.place {
            Some(place) => write!(f, " at {place}"),
            None => Ok(()),
        }
    }
}

impl Panic {
    pub(super) fn new(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let message = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self {
            message: message.unwrap_or("a value that is no text").to_owned(),
            place: PLACE.try_with(RefCell::take).unwrap_or_default(),
        }
    }

    fn count() {
        match current() {
            Some(core) => core.counters.panics.add(1),
            None => drop(PANICS_ELSEWHERE.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// Has the panic hook note where a panic is; the hook that is set now runs as before. A hook that is set
/// later and does not call the one before it costs the reports their places, and nothing else.
pub(super) fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let place = info.location().map(Location::to_string);
            // A panic while the thread ends finds no storage any more.
            let _ = PLACE.try_with(|noted| noted.replace(place));
            before(info);
        }));
    });
}

/// Runs code that may panic and counts the panic; the caller reports it, with what it knows.
pub(crate) fn caught<T>(f: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let panic = Panic::new(&*payload);
        // The value of the panic may itself panic when it is dropped.
        if let Err(worse) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(worse);
        }
        Panic::count();
        panic
    })
}

/// Runs what calls code of layers above or of the user, within a boundary. `None`: it panicked, which is
/// counted and logged at ERROR with `doing`, a few words that name what was being done and for whom. A step
/// that takes longer than [`limits::SLOW_STEP`] is counted and logged at WARN. `doing` is formatted only
/// then: pass `format_args!`.
pub(crate) fn guarded<T>(doing: impl fmt::Display, f: impl FnOnce() -> T) -> Option<T> {
    match timed(&doing, || caught(f)) {
        Ok(value) => Some(value),
        Err(panic) => {
            tracing::error!("{doing}: panicked: {panic}");
            None
        }
    }
}

/// Runs a future, and each of its steps as [`guarded`] does. After a panic it is not polled again.
pub(crate) async fn guarded_future<F: Future>(doing: impl fmt::Display, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match guarded(&doing, || future.as_mut().poll(cx)) {
        Some(poll) => poll.map(Some),
        None => Poll::Ready(None),
    })
    .await
}

/// Runs something and warns if it has kept its thread for longer than [`limits::SLOW_STEP`]. Of steps within
/// each other, the innermost slow one is named, and the others only for what they took beside it.
pub(crate) fn timed<T>(doing: impl fmt::Display, f: impl FnOnce() -> T) -> T {
    let (begun, told) = (coarse_now(), TOLD.get());
    let value = f();
    let took = coarse_now().saturating_sub(begun).saturating_sub(TOLD.get().saturating_sub(told));
    if took > limits::SLOW_STEP {
        TOLD.set(TOLD.get() + took);
        if let Some(core) = current() {
            core.counters.slow_steps.add(1);
        }
        tracing::warn!("{doing}: kept its core for {} ms, and all clients of that core", took.as_millis());
    }
    value
}

/// The monotonic clock as of the kernel's last tick, some milliseconds ago: a fifth of the price of the exact
/// time, and two of these are paid for each event.
fn coarse_now() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the answer. The clock is there on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut now) };
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// A future that [`spawn`] runs; ready with its output, or with `None` if it has panicked. Dropping this
/// leaves the future running.
///
/// ```no_run
/// # async fn of_the_weather() -> u32 { 20 }
/// # async fn handler() {
/// let asked = sockring::spawn(of_the_weather());
/// if let Some(degrees) = asked.await {
///     println!("{degrees} degrees");
/// }
/// # }
/// ```
pub struct Spawned<T>(monoio::task::JoinHandle<Option<T>>);

impl<T> fmt::Debug for Spawned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spawned")
    }
}

impl<T> Future for Spawned<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// Runs a future on this worker's thread, beside the handlers. Use this in place of `monoio::spawn`: a panic
/// in the future ends the future alone, and is logged at ERROR with its message, its place, and the place
/// that called `spawn`; a panic in a task of monoio's own ends the server.
///
/// ```
/// use std::time::Duration;
/// use sockring::io::Socket;
///
/// fn remind(socket: Socket) {
///     sockring::spawn(async move {
///         monoio::time::sleep(Duration::from_secs(60)).await;
///         socket.emit("reminder", "a minute has passed");
///     });
/// }
/// ```
///
/// # Panics
///
/// On a thread that is no worker's and runs no monoio.
#[track_caller]
pub fn spawn<F>(future: F) -> Spawned<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let caller = Location::caller();
    Spawned(monoio::spawn(async move {
        guarded_future(format_args!("the task that was spawned at {caller}"), future).await
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_with_its_message_and_its_place() {
        watch_panics();
        let caught = caught(|| panic!("on {}", "purpose")).unwrap_err().to_string();
        assert!(caught.starts_with("\"on purpose\" at src/runtime/guard.rs:"), "{caught}");
        assert_eq!(guarded("a test", || 7), Some(7));
        assert_eq!(guarded("a test", || -> u8 { panic!("on purpose") }), None);
    }

    struct Grenade;

    impl Drop for Grenade {
        fn drop(&mut self) {
            panic!("on purpose, again");
        }
    }

    #[test]
    fn a_value_that_panics_as_it_is_dropped_is_caught_too() {
        assert_eq!(guarded("a test", || -> u8 { panic::panic_any(Grenade) }), None);
    }

    #[test]
    fn the_innermost_slow_step_is_told_and_the_time_counts_once() {
        let slow = || std::thread::sleep(limits::SLOW_STEP + Duration::from_millis(50));
        let before = TOLD.get();
        timed("the outer step", || timed("the inner step", slow));
        let told = TOLD.get() - before;
        assert!(told > limits::SLOW_STEP && told < limits::SLOW_STEP * 10, "{told:?}");
        let before = TOLD.get();
        timed("a step", || ());
        assert_eq!(TOLD.get(), before);
    }
}
