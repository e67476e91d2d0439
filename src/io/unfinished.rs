//! Futures of handlers: their first step runs where the handler is called, what is left becomes a task, and
//! what waits is bounded.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use slab::Slab;

use super::Socket;
use super::namespace::NspInner;
use super::server::{Inner, by_index};
use crate::engine;
use crate::limits;
use crate::protocol::sio::Value;
use crate::runtime;

/// A future that a handler has returned.
pub(super) type Later<T> = Pin<Box<dyn Future<Output = T>>>;

/// What came of the first step of a future.
pub(super) enum First<T> {
    /// It has finished, and cost nothing but this step.
    Ready(T),
    /// It has panicked, which is logged and counted.
    Panicked,
    /// It waits, and will wake this.
    Waits(Arc<Relay>),
}

/// Takes the first step of a future where its handler is called, as an `async` function of JavaScript does.
/// Most futures finish with it: those need no task, no memory, and nothing counts as waiting.
pub(super) fn first_step<T>(doing: impl fmt::Display, future: &mut Later<T>) -> First<T> {
    thread_local! {
        // Of the last future that finished at once: for the next one.
        static SPARE: Cell<Option<Arc<Relay>>> = const { Cell::new(None) };
    }
    let relay = SPARE.try_with(Cell::take).ok().flatten().unwrap_or_default();
    let waker = Waker::from(relay.clone());
    let poll = runtime::guarded(doing, || future.as_mut().poll(&mut Context::from_waker(&waker)));
    drop(waker);
    match poll {
        Some(Poll::Pending) => First::Waits(relay),
        ended => {
            // A future that has kept the waker may still wake it.
            if Arc::strong_count(&relay) == 1 {
                let _ = SPARE.try_with(|spare| spare.set(Some(relay)));
            }
            match ended {
                Some(Poll::Ready(value)) => First::Ready(value),
                _ => First::Panicked,
            }
        }
    }
}

/// The waker of a future from its first step on. A future may keep the waker of that step (a timer of monoio
/// 0.2.4 does), and has a task only later: this wakes the task.
#[derive(Default)]
pub(super) struct Relay(Mutex<Relayed>);

#[derive(Default)]
struct Relayed {
    task: Option<Waker>,
    given_up: bool,
}

impl Relay {
    fn lock(&self) -> MutexGuard<'_, Relayed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task that is to be woken. `false`: the future is given up.
    fn set_task(&self, task: &Waker) -> bool {
        let earlier = {
            let mut relayed = self.lock();
            if relayed.given_up {
                return false;
            }
            relayed.task.replace(task.clone())
        };
        drop(earlier);
        true
    }

    /// Has the task drop its future.
    fn give_up(&self) {
        let task = {
            let mut relayed = self.lock();
            relayed.given_up = true;
            relayed.task.take()
        };
        task.into_iter().for_each(Waker::wake);
    }
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // A task has its first step after it was made in any case: until then there is nothing to wake.
        let task = self.lock().task.take();
        task.into_iter().for_each(Waker::wake);
    }
}

/// What the futures of one core cost that wait.
#[derive(Clone, Default)]
pub(super) struct Unfinished(Rc<All>);

#[derive(Default)]
struct All {
    /// By connection. Those that have none are not in it.
    accounts: RefCell<HashMap<engine::Socket, Rc<Account>, RandomState>>,
    /// Of connections that have ended, in that order. The futures of some have finished since.
    ended: RefCell<VecDeque<Rc<Account>>>,
    /// How many those may be before they are looked through.
    ended_max: Cell<usize>,
    bytes: Cell<usize>,
    /// Those of connections that have ended.
    ended_bytes: Cell<usize>,
    /// Futures that were dropped because too many waited for connections that had ended.
    given_up: Cell<u64>,
}

/// The futures of one connection.
#[derive(Default)]
struct Account {
    futures: RefCell<Slab<Arc<Relay>>>,
    bytes: Cell<usize>,
    ended: Cell<bool>,
    given_up: Cell<bool>,
}

/// One future that waits. It counts until this is dropped, however that comes about.
pub(super) struct Held {
    all: Rc<All>,
    /// `None` for a connection that had ended when the future began to wait.
    conn: Option<engine::Socket>,
    account: Rc<Account>,
    key: usize,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        let (all, account) = (&self.all, &self.account);
        // What the relay holds may be the last of its task: not while anything is borrowed.
        let relay = account.futures.borrow_mut().try_remove(self.key);
        account.bytes.set(account.bytes.get() - self.bytes);
        all.bytes.set(all.bytes.get() - self.bytes);
        if account.ended.get() {
            if !account.given_up.get() {
                all.ended_bytes.set(all.ended_bytes.get() - self.bytes);
            }
        } else if account.bytes.get() == 0 {
            self.conn.and_then(|conn| all.accounts.borrow_mut().remove(&conn));
        }
        drop(relay);
    }
}

/// Accounts of connections that have ended of which it is not looked whether they have any futures left.
const ENDED_MIN: usize = 256;

impl Unfinished {
    /// `None` for `conn`: the handler has disconnected its client before it waited.
    fn hold(&self, conn: Option<engine::Socket>, weight: usize, relay: &Arc<Relay>) -> Held {
        let bytes = limits::EVENT_COST_BYTES + weight;
        let account = match conn {
            Some(conn) => self.0.accounts.borrow_mut().entry(conn).or_default().clone(),
            None => Rc::default(),
        };
        let key = account.futures.borrow_mut().insert(relay.clone());
        account.bytes.set(account.bytes.get() + bytes);
        self.0.bytes.set(self.0.bytes.get() + bytes);
        let held = Held { all: self.0.clone(), conn, account, key, bytes };
        if conn.is_none() {
            self.end_account(held.account.clone());
        }
        held
    }

    fn of(&self, conn: engine::Socket) -> usize {
        self.0.accounts.borrow().get(&conn).map_or(0, |account| account.bytes.get())
    }

    /// Bytes of all futures that wait.
    pub(super) fn bytes(&self) -> usize {
        self.0.bytes.get()
    }

    /// Futures that were given up since the start.
    pub(super) fn given_up(&self) -> u64 {
        self.0.given_up.get()
    }

    /// A connection has ended: its futures go on, but the oldest of those whose connections have ended are
    /// given up when they are too many.
    pub(super) fn end(&self, conn: engine::Socket) {
        let account = self.0.accounts.borrow_mut().remove(&conn);
        if let Some(account) = account {
            self.end_account(account);
        }
    }

    fn end_account(&self, account: Rc<Account>) {
        let all = &*self.0;
        account.ended.set(true);
        all.ended_bytes.set(all.ended_bytes.get() + account.bytes.get());
        {
            let mut ended = all.ended.borrow_mut();
            if ended.len() >= all.ended_max.get().max(ENDED_MIN) {
                ended.retain(|account| account.bytes.get() > 0);
                all.ended_max.set(ended.len() * 2);
            }
            ended.push_back(account);
        }
        while all.ended_bytes.get() > limits::ENDED_UNFINISHED_BYTES {
            let Some(oldest) = all.ended.borrow_mut().pop_front() else { break };
            self.give_up(&oldest);
        }
    }

    fn give_up(&self, account: &Account) {
        let all = &*self.0;
        all.ended_bytes.set(all.ended_bytes.get() - account.bytes.get());
        account.given_up.set(true);
        let relays: Vec<Arc<Relay>> =
            account.futures.borrow().iter().map(|(_, relay)| relay.clone()).collect();
        if all.given_up.get() == 0 && !relays.is_empty() {
            tracing::warn!(
                "too many handlers wait although their clients have gone: the oldest are given up"
            );
        }
        all.given_up.set(all.given_up.get() + relays.len() as u64);
        relays.iter().for_each(|relay| relay.give_up());
    }
}

/// The memory of arguments, about.
pub(super) fn weight_of(args: &[Value]) -> usize {
    args.iter().map(weight).sum()
}

/// The memory of a value, about: nested empty arrays take many times what they take on the wire.
pub(super) fn weight(value: &Value) -> usize {
    let inside = match value {
        Value::String(text) => text.len(),
        Value::Binary(bytes) => bytes.len(),
        Value::Array(values) => values.iter().map(weight).sum(),
        Value::Object(entries) => {
            entries.iter().map(|(key, value)| size_of::<String>() + key.len() + weight(value)).sum()
        }
        Value::Deep(json) => json.as_str().len(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    size_of::<Value>() + inside
}

impl NspInner {
    /// Lets a future go on in a task that has waited in its [first step](first_step), and counts it for its
    /// socket's connection until then. `then` is told what came of it, `None` after a panic; not if the
    /// future is given up.
    pub(super) fn go_on<T: 'static>(
        &self,
        socket: Socket,
        weight: usize,
        (relay, future): (Arc<Relay>, Later<T>),
        doing: impl fmt::Display + 'static,
        then: impl FnOnce(Option<T>) + 'static,
    ) {
        let conn = self.with(socket, |entry| entry.conn);
        if let Some(server) = by_index(self.server) {
            server.go_on(conn, weight, (relay, future), doing, then);
        }
    }
}

impl Inner {
    /// See [`NspInner::go_on`].
    pub(super) fn go_on<T: 'static>(
        &self,
        conn: Option<engine::Socket>,
        weight: usize,
        (relay, mut future): (Arc<Relay>, Later<T>),
        doing: impl fmt::Display + 'static,
        then: impl FnOnce(Option<T>) + 'static,
    ) {
        let held = self.unfinished.hold(conn, weight, &relay);
        self.core.spawn(async move {
            let waker = Waker::from(relay.clone());
            let step = poll_fn(|cx| {
                if !relay.set_task(cx.waker()) {
                    return Poll::Ready(None);
                }
                future.as_mut().poll(&mut Context::from_waker(&waker)).map(Some)
            });
            let ended = runtime::guarded_future(&doing, step).await;
            drop(future);
            drop(held);
            match ended {
                Some(Some(value)) => then(Some(value)),
                Some(None) => {}
                None => then(None),
            }
        });
    }

    /// Whether a client has made as many events as may wait for their handlers.
    pub(super) fn is_overburdened(&self, conn: engine::Socket) -> bool {
        let largest = self.options.engine.max_http_buffer_size.saturating_mul(4);
        self.unfinished.of(conn) > largest.max(limits::UNFINISHED_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_weighs_what_it_takes_in_memory() {
        let one = size_of::<Value>();
        assert_eq!(weight(&Value::Null), one);
        assert_eq!(weight(&Value::from("abc")), one + 3);
        let empty = Value::Array(vec![Value::Array(Vec::new()); 10]);
        assert_eq!(weight(&empty), 11 * one);
    }

    #[test]
    fn a_future_that_is_ready_needs_no_task() {
        let mut ready: Later<u8> = Box::pin(async { 7 });
        assert!(matches!(first_step("a test", &mut ready), First::Ready(7)));
        let mut panics: Later<u8> = Box::pin(async { panic!("on purpose") });
        assert!(matches!(first_step("a test", &mut panics), First::Panicked));
        let mut waits: Later<u8> = Box::pin(std::future::pending());
        assert!(matches!(first_step("a test", &mut waits), First::Waits(_)));
    }

    #[test]
    fn the_waker_of_the_first_step_wakes_the_task() {
        #[derive(Default)]
        struct Woken(std::sync::atomic::AtomicUsize);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
        let woken = Arc::new(Woken::default());
        let relay = Arc::new(Relay::default());
        let first = Waker::from(relay.clone());
        first.wake_by_ref();
        assert!(relay.set_task(&Waker::from(woken.clone())));
        first.wake_by_ref();
        assert_eq!(woken.0.load(std::sync::atomic::Ordering::Relaxed), 1);
        assert!(relay.set_task(&Waker::from(woken.clone())));
        relay.give_up();
        assert_eq!(woken.0.load(std::sync::atomic::Ordering::Relaxed), 2);
        assert!(!relay.set_task(&Waker::from(woken)));
    }

    #[test]
    fn the_oldest_futures_of_those_who_have_gone_are_given_up() {
        let unfinished = Unfinished::default();
        let each = limits::ENDED_UNFINISHED_BYTES / 10 - limits::EVENT_COST_BYTES;
        let mut held = Vec::new();
        for slot in 0..12 {
            let conn = engine::Socket::of(0, slot, 0);
            let relay = Arc::new(Relay::default());
            held.push((unfinished.hold(Some(conn), each, &relay), relay));
            unfinished.end(conn);
        }
        let given_up: Vec<bool> = held.iter().map(|(_, relay)| relay.lock().given_up).collect();
        assert_eq!(given_up.iter().filter(|gone| **gone).count(), 2);
        assert!(given_up[0] && given_up[1], "{given_up:?}");
        assert_eq!(unfinished.given_up(), 2);
        drop(held);
        assert_eq!((unfinished.bytes(), unfinished.0.ended_bytes.get()), (0, 0));
    }

    #[test]
    fn those_who_come_and_go_leave_no_accounts() {
        let unfinished = Unfinished::default();
        for slot in 0..10_000 {
            let conn = engine::Socket::of(0, slot, 0);
            let held = unfinished.hold(Some(conn), 0, &Arc::default());
            unfinished.end(conn);
            drop(held);
        }
        assert!(unfinished.0.ended.borrow().len() <= 2 * ENDED_MIN);
        assert!(unfinished.0.accounts.borrow().is_empty());
    }
}
