//! A medium within one process: for tests of what several servers do together.

mod stream;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::cluster::{ClusterAdapter, Inbox, Medium};
use super::message::Message;
use super::node::ClusterOptions;
use crate::io::{RestoreAnswer, RestoredSession, Session};
use stream::Stream;

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
    /// What clients who come back ask for. Locked while a packet is delivered, so that all servers see the
    /// packets in one order.
    stream: Option<Arc<Mutex<Stream>>>,
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

    /// The same, and it keeps packets and sessions: with
    /// [`ConnectionStateRecovery`](crate::io::ConnectionStateRecovery), a client may lose its connection to
    /// one server and come back to another. The last 10,000 packets are kept, and 10,000 sessions.
    #[must_use]
    pub fn keeping_sessions(self) -> Self {
        Self { stream: Some(Arc::default()), ..self }
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

    fn stream(&self) -> Option<MutexGuard<'_, Stream>> {
        Some(self.stream.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn inboxes(&self, fits: impl Fn(&Subscriber) -> bool) -> Vec<Inbox> {
        let subscribers = self.lock();
        let reached = subscribers.iter().filter(|to| !to.cut.load(Ordering::SeqCst) && fits(to));
        reached.map(|to| to.inbox.clone()).collect()
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
        self.hub.inboxes(fits).iter().for_each(|inbox| inbox.deliver(message.clone()));
    }

    /// The other servers of a namespace.
    fn others(&self, nsp: &str) -> Vec<Inbox> {
        self.hub.inboxes(|to| to.nsp == nsp && !Arc::ptr_eq(&to.cut, &self.cut))
    }
}

/// A session that a server asks for. It is looked for when this is dropped: when all other servers have
/// looked whether they have it still.
struct Wanted {
    hub: InProcess,
    others: Vec<Inbox>,
    nsp: String,
    pid: String,
    offset: String,
    answer: Mutex<Option<RestoreAnswer>>,
}

impl Drop for Wanted {
    fn drop(&mut self) {
        let answer = self.answer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(mut stream), Some(answer)) = (self.hub.stream(), answer) else { return };
        let restored = stream.restore(&self.nsp, &self.pid, &self.offset);
        let found = restored.is_some();
        // Before the next packet is delivered.
        answer(restored.map(|(session, missed)| RestoredSession { session, missed }));
        drop(stream);
        if found {
            self.others.iter().for_each(|other| other.release_session(&self.pid));
        }
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

    fn keeps_sessions(&self) -> bool {
        self.hub.stream.is_some()
    }

    fn publish_kept(&self, message: &Message) {
        let Some(mut stream) = self.hub.stream() else { return };
        let here = |to: &Subscriber| to.nsp == message.nsp && Arc::ptr_eq(&to.cut, &self.cut);
        let (offset, inboxes) = if self.cut.load(Ordering::SeqCst) {
            // Its own clients get it all the same. Nobody else has heard of it.
            let own = self.hub.lock().iter().filter(|to| here(to)).map(|to| to.inbox.clone()).collect();
            (stream.unheard(), own)
        } else {
            (stream.push(message), self.hub.inboxes(|to| to.nsp == message.nsp))
        };
        inboxes.iter().for_each(|inbox: &Inbox| inbox.deliver_kept(message.clone(), &offset));
    }

    fn persist_session(&self, nsp: &str, session: Session, lifetime: Duration) {
        if !self.cut.load(Ordering::SeqCst)
            && let Some(mut stream) = self.hub.stream()
        {
            stream.persist(nsp, session, lifetime);
        }
    }

    fn forget_session(&self, nsp: &str, pid: &str) {
        if !self.cut.load(Ordering::SeqCst)
            && let Some(mut stream) = self.hub.stream()
        {
            stream.forget(nsp, pid);
        }
    }

    fn restore_session(&self, nsp: &str, pid: &str, offset: &str, answer: RestoreAnswer) {
        if self.cut.load(Ordering::SeqCst) {
            return answer(None);
        }
        let known = self.hub.stream().is_some_and(|stream| stream.has(nsp, pid));
        let others = self.others(nsp);
        let (nsp, pid, offset) = (nsp.to_owned(), pid.to_owned(), offset.to_owned());
        let asked = if known { Vec::new() } else { others.clone() };
        let (hub, answer) = (self.hub.clone(), Mutex::new(Some(answer)));
        let wanted = Arc::new(Wanted { hub, others, nsp, pid: pid.clone(), offset, answer });
        for other in asked {
            let waiting = wanted.clone();
            other.end_stale_session(&pid, move || drop(waiting));
        }
    }
}
