//! A medium within one process: for tests of what several servers do together.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cluster::{ClusterAdapter, Inbox, Medium};
use super::message::Message;
use super::node::ClusterOptions;

/// Links servers of one process, so that what a cluster does can be tested without one. A clone is a
/// reference to the same.
///
/// Messages are delivered at once, on the sender's thread. For servers that really are in one process,
/// workers of one server are the better choice.
///
/// ```
/// use sockring::adapter::InProcess;
/// use sockring::io::Adapter;
/// let hub = InProcess::new();
/// let adapter = hub.adapter();
/// assert_eq!(adapter.server_count("/"), 1);
/// // The others hear nothing of it any more, as if its cable was cut.
/// adapter.medium().cut(true);
/// ```
#[derive(Clone, Default)]
pub struct InProcess {
    subscribers: Arc<Mutex<Vec<Subscriber>>>,
    options: ClusterOptions,
    counted: bool,
}

struct Subscriber {
    nsp: String,
    uid: String,
    inbox: Inbox,
    cut: Arc<AtomicBool>,
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcess").field("counted", &self.counted).finish_non_exhaustive()
    }
}

impl InProcess {
    /// One whose servers know of each other by heartbeats.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that knows how many servers there are, as Redis does.
    pub fn counted() -> Self {
        Self { counted: true, ..Self::default() }
    }

    /// The same with other options, for the adapters that are made from now on.
    #[must_use]
    pub fn with_options(self, options: ClusterOptions) -> Self {
        Self { options, ..self }
    }

    /// An adapter for one more server.
    pub fn adapter(&self) -> ClusterAdapter<Link> {
        let link = Link { hub: self.clone(), cut: Arc::default() };
        ClusterAdapter::new(link, self.options.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Subscriber>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One server's end of an [`InProcess`] medium.
///
/// ```
/// let adapter = sockring::adapter::InProcess::new().adapter();
/// adapter.medium().cut(true);
/// ```
#[derive(Debug)]
pub struct Link {
    hub: InProcess,
    cut: Arc<AtomicBool>,
}

impl Link {
    /// Whether nothing gets through any more, in either direction.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }

    fn deliver(&self, message: &Message, fits: impl Fn(&Subscriber) -> bool) {
        if self.cut.load(Ordering::SeqCst) {
            return;
        }
        let inboxes: Vec<Inbox> = {
            let subscribers = self.hub.lock();
            let reached = subscribers.iter().filter(|to| !to.cut.load(Ordering::SeqCst) && fits(to));
            reached.map(|to| to.inbox.clone()).collect()
        };
        inboxes.iter().for_each(|inbox| inbox.deliver(message.clone()));
    }
}

impl Medium for Link {
    fn subscribe(&self, nsp: &str, uid: &str, inbox: Inbox) {
        let (nsp, uid, cut) = (nsp.to_owned(), uid.to_owned(), self.cut.clone());
        self.hub.lock().push(Subscriber { nsp, uid, inbox, cut });
    }

    fn unsubscribe(&self, _: &str, uid: &str) {
        let mut subscribers = self.hub.lock();
        let gone: Vec<Subscriber> = subscribers.extract_if(.., |subscriber| subscriber.uid == uid).collect();
        drop(subscribers);
        drop(gone);
    }

    fn publish(&self, message: &Message) {
        self.deliver(message, |to| to.nsp == message.nsp);
    }

    fn publish_response(&self, uid: &str, message: &Message) {
        self.deliver(message, |to| to.uid == uid);
    }

    fn server_count(&self, nsp: &str) -> Option<usize> {
        let count = || self.hub.lock().iter().filter(|subscriber| subscriber.nsp == nsp).count();
        self.hub.counted.then(count)
    }
}
