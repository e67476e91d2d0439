//! Messages between cores, and from other threads to a core.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::limits;

/// Something that a core is asked to do, on its own thread.
///
/// ```
/// use sockring::fanout::Task;
/// Task::new(|| println!("done")).run();
/// assert_eq!(Task::new(|| ()).holding(1000).bytes(), 1000);
/// ```
pub struct Task {
    act: Box<dyn FnOnce() + Send>,
    bytes: usize,
}

impl Task {
    /// A task that holds nothing worth counting.
    pub fn new(act: impl FnOnce() + Send + 'static) -> Self {
        Self { act: Box::new(act), bytes: 0 }
    }

    /// Says how many bytes of memory the task keeps alive while it waits: those of a frame.
    #[must_use]
    pub fn holding(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// The bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Carries it out.
    pub fn run(self) {
        (self.act)();
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// Tasks in order, at most [`limits::MAILBOX_TASKS`], that hold at most [`limits::MAILBOX_BYTES`] together.
///
/// ```
/// use sockring::fanout::{Queue, Task};
/// let mut queue = Queue::default();
/// queue.push(Task::new(|| ())).unwrap();
/// assert_eq!(queue.drain().count(), 1);
/// ```
#[derive(Debug, Default)]
pub struct Queue {
    list: Vec<Task>,
    bytes: usize,
}

impl Queue {
    /// Adds a task; it comes back if there is no room. A queue that is empty takes one of any size.
    pub fn push(&mut self, task: Task) -> Result<(), Task> {
        let bytes = self.bytes.saturating_add(task.bytes);
        let full = self.list.len() >= limits::MAILBOX_TASKS || bytes > limits::MAILBOX_BYTES;
        if full && !self.list.is_empty() {
            return Err(task);
        }
        self.bytes = bytes;
        self.list.push(task);
        Ok(())
    }

    /// Moves as many of another queue's tasks to the end as there is room for.
    fn append(&mut self, other: &mut Self) {
        if self.list.is_empty() {
            return std::mem::swap(self, other);
        }
        let mut rest = std::mem::take(other).list.into_iter();
        while let Some(task) = rest.next() {
            if let Err(task) = self.push(task) {
                other.bytes = task.bytes + rest.as_slice().iter().map(Task::bytes).sum::<usize>();
                other.list = std::iter::once(task).chain(rest).collect();
                return;
            }
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Takes all of them out, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = Task> {
        self.bytes = 0;
        self.list.drain(..)
    }
}

/// Wakes a core that sleeps. The runtime rings an eventfd.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// use sockring::fanout::Doorbell;
/// #[derive(Default)]
/// struct Counter(AtomicUsize);
/// impl Doorbell for Counter {
///     fn ring(&self) {
///         self.0.fetch_add(1, Ordering::Relaxed);
///     }
/// }
/// ```
pub trait Doorbell: Send + Sync {
    /// Wakes the core; may be called from any thread, and more often than needed.
    fn ring(&self);
}

/// The mailboxes of all cores: bounded queues in memory, and a doorbell for those who sleep.
///
/// Tasks of one sender for one core are carried out in the order in which they were posted.
///
/// ```
/// use sockring::fanout::{Mesh, Queue, Task};
/// let mesh = Mesh::new(2);
/// mesh.post(1, Task::new(|| println!("on core 1"))).unwrap();
/// let mut tasks = Queue::default();
/// mesh.take(1, &mut tasks);
/// assert_eq!(tasks.len(), 1);
/// tasks.drain().for_each(Task::run);
/// ```
pub struct Mesh {
    mailboxes: Box<[Mailbox]>,
}

#[derive(Default)]
struct Mailbox {
    tasks: Mutex<Tasks>,
    asleep: AtomicBool,
    doorbell: OnceLock<Box<dyn Doorbell>>,
}

#[derive(Default)]
struct Tasks {
    queue: Queue,
    /// The core has ended and carries nothing out any more.
    closed: bool,
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("cores", &self.mailboxes.len()).finish_non_exhaustive()
    }
}

impl Mesh {
    /// One mailbox for each core.
    pub fn new(cores: usize) -> Self {
        Self { mailboxes: (0..cores).map(|_| Mailbox::default()).collect() }
    }

    /// How many cores there are.
    pub fn cores(&self) -> usize {
        self.mailboxes.len()
    }

    /// Tells how a core is woken. Only the first call for a core counts.
    pub fn install(&self, core: usize, doorbell: Box<dyn Doorbell>) {
        let _ = self.mailboxes[core].doorbell.set(doorbell);
    }

    /// Posts a task and wakes the core if it sleeps. The task comes back if the mailbox is full, or the core
    /// has ended.
    pub fn post(&self, core: usize, task: Task) -> Result<(), Task> {
        let mailbox = &self.mailboxes[core];
        let mut tasks = mailbox.lock();
        if tasks.closed {
            return Err(task);
        }
        tasks.queue.push(task)?;
        drop(tasks);
        mailbox.wake();
        Ok(())
    }

    /// Posts a turn's tasks under one lock and with one doorbell. What does not fit stays in `tasks`; those
    /// for a core that has ended are dropped.
    pub fn post_all(&self, core: usize, tasks: &mut Queue) {
        if tasks.is_empty() {
            return;
        }
        let mailbox = &self.mailboxes[core];
        let mut theirs = mailbox.lock();
        if theirs.closed {
            drop(theirs);
            return drop(std::mem::take(tasks));
        }
        theirs.queue.append(tasks);
        drop(theirs);
        mailbox.wake();
    }

    /// Moves all tasks of a core into `out`, which must be empty: the two are swapped.
    pub fn take(&self, core: usize, out: &mut Queue) {
        debug_assert!(out.is_empty());
        std::mem::swap(&mut self.mailboxes[core].lock().queue, out);
    }

    /// The core has ended: nobody can post to it any more. Gives what was posted before.
    pub fn close(&self, core: usize) -> Queue {
        let mut tasks = self.mailboxes[core].lock();
        tasks.closed = true;
        std::mem::take(&mut tasks.queue)
    }

    /// The core wants to sleep. `false`: it must not, a task came in meanwhile.
    pub fn sleep(&self, core: usize) -> bool {
        let mailbox = &self.mailboxes[core];
        mailbox.asleep.store(true, Ordering::SeqCst);
        // A task posted before the store was made under the lock, so it is seen here; one posted after it
        // sees the store and rings.
        let idle = mailbox.lock().queue.is_empty();
        if !idle {
            mailbox.asleep.store(false, Ordering::SeqCst);
        }
        idle
    }

    /// The core is awake: nobody needs to ring.
    pub fn awake(&self, core: usize) {
        self.mailboxes[core].asleep.store(false, Ordering::SeqCst);
    }
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(doorbell) = self.doorbell.get()
        {
            doorbell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    struct Count(Arc<AtomicUsize>);

    impl Doorbell for Count {
        fn ring(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn nothing() -> Task {
        Task::new(|| ())
    }

    fn queue(tasks: impl IntoIterator<Item = Task>) -> Queue {
        let mut queue = Queue::default();
        tasks.into_iter().for_each(|task| queue.push(task).unwrap());
        queue
    }

    fn bytes(queue: &mut Queue) -> Vec<usize> {
        queue.drain().map(|task| task.bytes()).collect()
    }

    #[test]
    fn only_a_sleeper_is_rung_and_once() {
        let mesh = Mesh::new(1);
        let rings = Arc::new(AtomicUsize::new(0));
        mesh.install(0, Box::new(Count(rings.clone())));
        mesh.post(0, nothing()).unwrap();
        assert!(!mesh.sleep(0), "a task waits");
        let mut tasks = Queue::default();
        mesh.take(0, &mut tasks);
        assert!(mesh.sleep(0));
        mesh.post_all(0, &mut tasks);
        mesh.post(0, nothing()).unwrap();
        assert_eq!(rings.load(Ordering::SeqCst), 1);
    }

    #[test]
    #[cfg_attr(
        miri,
        ignore = "makes 65,536 tasks, which takes miri minutes; the next test fills one by bytes"
    )]
    fn a_full_mailbox_gives_tasks_back() {
        let mesh = Mesh::new(1);
        let mut tasks = queue((0..limits::MAILBOX_TASKS).map(|_| nothing()));
        mesh.post(0, nothing()).unwrap();
        mesh.post_all(0, &mut tasks);
        assert_eq!(tasks.len(), 1);
        assert!(mesh.post(0, nothing()).is_err());
    }

    #[test]
    fn a_mailbox_is_full_of_bytes_too() {
        const HALF: usize = limits::MAILBOX_BYTES / 2;
        let mesh = Mesh::new(1);
        mesh.post(0, nothing().holding(HALF)).unwrap();
        let mut tasks = queue([1, HALF, 2, 3].map(|bytes| nothing().holding(bytes)));
        mesh.post_all(0, &mut tasks);
        assert!(mesh.post(0, nothing().holding(HALF)).is_err());
        assert!(mesh.post(0, nothing().holding(5)).is_ok(), "a small one fits still");
        let mut out = Queue::default();
        mesh.take(0, &mut out);
        assert_eq!(bytes(&mut out), [HALF, 1, 5]);
        mesh.post_all(0, &mut tasks);
        mesh.take(0, &mut out);
        assert_eq!(bytes(&mut out), [HALF, 2, 3], "nothing is lost, and nothing overtakes");
        mesh.post(0, nothing().holding(10 * HALF)).expect("an empty one takes any");
    }

    #[test]
    fn a_core_that_has_ended_takes_nothing() {
        let mesh = Mesh::new(1);
        mesh.post(0, nothing()).unwrap();
        let mut left = mesh.close(0);
        assert_eq!(left.len(), 1);
        assert!(mesh.post(0, nothing()).is_err());
        mesh.post_all(0, &mut left);
        assert!(left.is_empty());
    }
}
