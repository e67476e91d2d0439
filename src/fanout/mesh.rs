//! Messages between cores, and from other threads to a core.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::limits;

/// Something that a core is asked to do, on its own thread.
pub type Task = Box<dyn FnOnce() + Send>;

/// Wakes a core that sleeps. The runtime rings an eventfd.
pub trait Doorbell: Send + Sync {
    /// Wakes the core; may be called from any thread, and more often than needed.
    fn ring(&self);
}

/// The mailboxes of all cores: bounded queues in memory, and a doorbell for those who sleep.
///
/// Tasks of one sender for one core are carried out in the order in which they were posted.
///
/// ```
/// use sockring::fanout::Mesh;
/// let mesh = Mesh::new(2);
/// mesh.post(1, Box::new(|| println!("on core 1"))).ok().unwrap();
/// let mut tasks = Vec::new();
/// mesh.take(1, &mut tasks);
/// assert_eq!(tasks.len(), 1);
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
    list: Vec<Task>,
    /// The core has ended and carries nothing out any more.
    closed: bool,
}

impl Tasks {
    fn room(&self) -> usize {
        if self.closed { 0 } else { limits::MAILBOX_TASKS.saturating_sub(self.list.len()) }
    }
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
        if tasks.room() == 0 {
            return Err(task);
        }
        tasks.list.push(task);
        drop(tasks);
        mailbox.wake();
        Ok(())
    }

    /// Posts a turn's tasks under one lock and with one doorbell. What does not fit stays in `tasks`; those
    /// for a core that has ended are dropped.
    pub fn post_all(&self, core: usize, tasks: &mut Vec<Task>) {
        if tasks.is_empty() {
            return;
        }
        let mailbox = &self.mailboxes[core];
        let mut queue = mailbox.lock();
        let room = queue.room().min(tasks.len());
        queue.list.extend(tasks.drain(..room));
        let closed = queue.closed;
        drop(queue);
        if closed {
            tasks.clear();
        }
        mailbox.wake();
    }

    /// Moves all tasks of a core into `out`, which should be empty so that the two buffers are swapped.
    pub fn take(&self, core: usize, out: &mut Vec<Task>) {
        let mut tasks = self.mailboxes[core].lock();
        if out.is_empty() {
            std::mem::swap(&mut tasks.list, out);
        } else {
            out.append(&mut tasks.list);
        }
    }

    /// The core has ended: nobody can post to it any more. What was posted before goes to `out`.
    pub fn close(&self, core: usize, out: &mut Vec<Task>) {
        let mut tasks = self.mailboxes[core].lock();
        tasks.closed = true;
        out.append(&mut tasks.list);
    }

    /// The core wants to sleep. `false`: it must not, a task came in meanwhile.
    pub fn sleep(&self, core: usize) -> bool {
        let mailbox = &self.mailboxes[core];
        mailbox.asleep.store(true, Ordering::SeqCst);
        // A task posted before the store was made under the lock, so it is seen here; one posted after it
        // sees the store and rings.
        let idle = mailbox.lock().list.is_empty();
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

    #[test]
    fn only_a_sleeper_is_rung_and_once() {
        let mesh = Mesh::new(1);
        let rings = Arc::new(AtomicUsize::new(0));
        mesh.install(0, Box::new(Count(rings.clone())));
        mesh.post(0, Box::new(|| ())).ok().unwrap();
        assert!(!mesh.sleep(0), "a task waits");
        let mut tasks = Vec::new();
        mesh.take(0, &mut tasks);
        assert!(mesh.sleep(0));
        mesh.post_all(0, &mut tasks);
        mesh.post(0, Box::new(|| ())).ok().unwrap();
        assert_eq!(rings.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_full_mailbox_gives_tasks_back() {
        let mesh = Mesh::new(1);
        let mut tasks: Vec<Task> = (0..limits::MAILBOX_TASKS + 2).map(|_| Box::new(|| ()) as Task).collect();
        mesh.post_all(0, &mut tasks);
        assert_eq!(tasks.len(), 2);
        assert!(mesh.post(0, Box::new(|| ())).is_err());
    }

    #[test]
    fn a_core_that_has_ended_takes_nothing() {
        let mesh = Mesh::new(1);
        mesh.post(0, Box::new(|| ())).ok().unwrap();
        let mut left = Vec::new();
        mesh.close(0, &mut left);
        assert_eq!(left.len(), 1);
        assert!(mesh.post(0, Box::new(|| ())).is_err());
        mesh.post_all(0, &mut left);
        assert!(left.is_empty());
    }
}
