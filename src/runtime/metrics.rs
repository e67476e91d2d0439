//! What a core counts, and how the counts of all cores are read.
//!
//! Nothing here is atomic: each core counts for itself, in words of its own, and is asked by a task like any
//! other when somebody wants to know.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::core::{Core, Shared};
use super::guard::PANICS_ELSEWHERE;
use super::{current, memory};
use crate::fanout::Task;

/// Times that are counted by how long they were: each bucket takes those of twice as long as the one before.
///
/// ```
/// use std::time::Duration;
/// use sockring::runtime::Histogram;
/// let mut times = Histogram::default();
/// times.add(Duration::from_micros(40));
/// times.add(Duration::from_secs(5));
/// assert_eq!((times.count(), times.sum()), (2, Duration::from_micros(5_000_040)));
/// assert_eq!(times.buckets().nth(1), Some((Some(Duration::from_micros(64)), 1)));
/// assert_eq!(times.buckets().last(), Some((None, 1)));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; BUCKETS],
    micros: u64,
}

/// From 32 µs, about what a turn with one message takes, to a second, and what is longer.
const BUCKETS: usize = 17;
const FIRST_BUCKET_BITS: u32 = 5;

impl Histogram {
    /// Counts a time.
    pub fn add(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let above = micros.saturating_sub(1) >> FIRST_BUCKET_BITS;
        let bucket = (u64::BITS - above.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
        self.micros = self.micros.saturating_add(micros);
    }

    /// How many times were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.micros)
    }

    /// The buckets: the longest time that counts in each, `None` for the last, and how many were counted in
    /// it.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        self.buckets.iter().enumerate().map(|(i, count)| {
            let longest = Duration::from_micros(1 << (FIRST_BUCKET_BITS + i as u32));
            ((i < BUCKETS - 1).then_some(longest), *count)
        })
    }
}

/// What a sample is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value {
    /// Something that was counted since the start.
    Counter(u64),
    /// Something as it is now.
    Gauge(u64),
    /// How long something took, each time.
    Times(Histogram),
}

/// One number of one core.
///
/// ```
/// use sockring::runtime::{Sample, Value};
/// let sample = Sample::new("jobs", "Jobs that were done.", Value::Counter(7)).label("kind", "small");
/// assert_eq!((sample.name, sample.value), ("jobs", Value::Counter(7)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sample {
    /// What it is called: without unit or suffix for counters.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// What tells it from others of the same name: a label and its value.
    pub label: Option<(&'static str, &'static str)>,
    /// How much it is.
    pub value: Value,
}

impl Sample {
    /// A sample without a label.
    pub fn new(name: &'static str, help: &'static str, value: Value) -> Self {
        Self { name, help, label: None, value }
    }

    /// The same with a label.
    #[must_use]
    pub fn label(self, label: &'static str, value: &'static str) -> Self {
        Self { label: Some((label, value)), ..self }
    }
}

/// The numbers of all cores.
///
/// ```
/// use sockring::app::App;
/// let server = App::builder().listen("127.0.0.1:0").workers(2).start(|_| ())?;
/// let metrics = server.metrics();
/// assert_eq!(metrics.cores().count(), 2);
/// assert_eq!(metrics.total("connections"), 0);
/// # server.shutdown();
/// # server.join()?;
/// # Ok::<(), sockring::runtime::StartError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    cores: Vec<(usize, Vec<Sample>)>,
}

impl Metrics {
    /// Asks all cores of a server, from any thread: see [`Measuring`].
    pub fn measure(shared: &Arc<Shared>) -> Measuring {
        let state = Arc::new(State::default());
        let open = Arc::new(Open(state.clone()));
        for index in 0..shared.mesh.cores() {
            let open = open.clone();
            let task = Task::new(move || {
                if let Some(core) = current() {
                    open.0.lock().metrics.cores.push((core.index(), core.samples()));
                }
            });
            // A core whose mailbox is full is missing.
            drop(shared.mesh.post(index, task));
        }
        Measuring(state)
    }

    /// The samples of each core that has answered, with its number.
    pub fn cores(&self) -> impl Iterator<Item = (usize, &[Sample])> {
        self.cores.iter().map(|(core, samples)| (*core, &**samples))
    }

    /// All samples of a name together, whatever their labels; of times, how many there were.
    pub fn total(&self, name: &str) -> u64 {
        let samples = self.cores.iter().flat_map(|(_, samples)| samples).filter(|sample| sample.name == name);
        let number = |sample: &Sample| match sample.value {
            Value::Counter(number) | Value::Gauge(number) => number,
            Value::Times(times) => times.count(),
        };
        samples.map(number).sum()
    }
}

/// The answers of all cores, on their way. It may be awaited on any thread and executor, and is ready when
/// all have answered; a core that is stuck keeps it waiting, so put a limit on the time.
pub struct Measuring(Arc<State>);

#[derive(Default)]
struct State {
    answers: Mutex<Answers>,
    complete: Condvar,
}

#[derive(Default)]
struct Answers {
    metrics: Metrics,
    complete: bool,
    waker: Option<Waker>,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every core that has still to answer holds it. Dropped with the last of them, also if that has ended.
struct Open(Arc<State>);

impl Drop for Open {
    fn drop(&mut self) {
        let waker = {
            let mut answers = self.0.lock();
            answers.metrics.cores.sort_by_key(|(core, _)| *core);
            answers.complete = true;
            answers.waker.take()
        };
        self.0.complete.notify_all();
        waker.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for Measuring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Measuring").field("complete", &self.0.lock().complete).finish()
    }
}

impl Future for Measuring {
    type Output = Metrics;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Metrics> {
        let mut answers = self.0.lock();
        if answers.complete {
            return Poll::Ready(std::mem::take(&mut answers.metrics));
        }
        answers.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Measuring {
    /// What has come until now.
    pub fn so_far(&self) -> Metrics {
        self.0.lock().metrics.clone()
    }

    /// Blocks this thread, which must not be a worker's, until all have answered or the time is over.
    pub fn wait(self, time: Duration) -> Metrics {
        let deadline = Instant::now() + time;
        let mut answers = self.0.lock();
        while !answers.complete {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.0.complete.wait_timeout(answers, left);
            answers = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::take(&mut answers.metrics)
    }
}

/// A number that one core counts.
#[derive(Debug, Default)]
pub(super) struct Counter(Cell<u64>);

impl Counter {
    pub(super) fn add(&self, more: usize) {
        self.0.set(self.0.get().wrapping_add(more as u64));
    }

    pub(super) fn take_back(&self, some: usize) {
        self.0.set(self.0.get().saturating_sub(some as u64));
    }

    fn sample(&self, name: &'static str, help: &'static str) -> Sample {
        Sample::new(name, help, Value::Counter(self.0.get()))
    }
}

/// What one core counts.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: Counter,
    pub(super) refused: Counter,
    pub(super) beyond_capacity: Counter,
    pub(super) moved: Counter,
    pub(super) crowded: Counter,
    pub(super) received_bytes: Counter,
    pub(super) receives: Counter,
    pub(super) buffers_exhausted: Counter,
    pub(super) sends: Counter,
    pub(super) short_sends: Counter,
    pub(super) sent_bytes: Counter,
    pub(super) sent_messages: Counter,
    pub(super) put_off: Counter,
    pub(super) tasks: Counter,
    pub(super) turns_spent: Counter,
    pub(super) panics: Counter,
    pub(super) slow_steps: Counter,
    turns: Cell<Histogram>,
    lag: Cell<Histogram>,
}

impl Counters {
    pub(super) fn turn_took(&self, time: Duration) {
        add(&self.turns, time);
    }

    pub(super) fn timer_was_late(&self, time: Duration) {
        add(&self.lag, time);
    }
}

fn add(histogram: &Cell<Histogram>, time: Duration) {
    let mut all = histogram.get();
    all.add(time);
    histogram.set(all);
}

impl Core {
    /// Messages have left that the runtime has not sent by itself: in answers to polls.
    pub fn count_messages(&self, messages: usize) {
        self.counters.sent_messages.add(messages);
    }

    /// What this core has counted, and the layers above it.
    pub fn samples(&self) -> Vec<Sample> {
        let counted = &self.counters;
        let gauge = |name, help, value: usize| Sample::new(name, help, Value::Gauge(value as u64));
        let (queued, slow, waited, dropped) = {
            let outlets = self.outlets.borrow();
            let (queued, slow) = outlets.census();
            (queued, slow, outlets.queued(), outlets.dropped())
        };
        let elsewhere = if self.index == 0 { PANICS_ELSEWHERE.load(Ordering::Relaxed) } else { 0 };
        let (lost, withheld) = {
            let mut ring = self.ring.borrow_mut();
            (ring.completions_lost(), ring.buffers_withheld())
        };
        let mut samples = vec![
            gauge("connections", "Connections that are open.", self.connections()),
            gauge("connections_max", "Connections that there are places for.", self.places.capacity),
            gauge("connections_in_reserve", "Connections beyond that.", self.in_reserve()),
            counted.beyond_capacity.sample(
                "accepted_beyond_capacity",
                "Connections that came when all places were taken: most were answered with 503.",
            ),
            counted.accepted.sample("accepted", "Connections that were accepted."),
            counted.refused.sample("accept_failures", "Accepts that found no descriptor or no memory."),
            counted.crowded.sample(
                "refused_by_address",
                "Connections that were closed since their address had as many as it may have.",
            ),
            counted.moved.sample("moved", "Connections that came from another core."),
            counted.received_bytes.sample("received_bytes", "Bytes that came in, those of TLS included."),
            counted.receives.sample("receives", "Completions of receives with bytes."),
            counted.buffers_exhausted.sample("receive_buffers_exhausted", "Receives without a free buffer."),
            Sample::new(
                "receive_buffers_withheld",
                "Buffers of failed receives that are not used again.",
                Value::Counter(withheld),
            ),
            counted.sends.sample("sends", "Sends that were submitted."),
            counted.short_sends.sample("short_sends", "Sends that a socket took in part, or not at all."),
            counted.sent_bytes.sample("sent_bytes", "Bytes that sockets took, those of TLS left out."),
            counted.sent_messages.sample(
                "sent_messages",
                "Messages that left in their own turn, by client. By sends, how many leave together.",
            ),
            Sample::new(
                "queued_messages",
                "Messages that had to wait for a slow client.",
                Value::Counter(waited),
            ),
            counted.put_off.sample("sends_put_off", "Sends that were left to a later turn, for the pace."),
            counted.turns_spent.sample(
                "turns_over_budget",
                "Turns that had no time to read all that had come: the rest was left to the next.",
            ),
            counted.tasks.sample("tasks", "Tasks of other threads that were carried out."),
            Sample::new(
                "panics",
                "Panics that were caught.",
                Value::Counter(counted.panics.0.get() + elsewhere),
            ),
            counted
                .slow_steps
                .sample("slow_steps", "Handlers and other steps that kept their core for over 200 ms."),
            gauge("queued_bytes", "Bytes that wait for slow clients, for each of them.", queued),
            gauge("slow_connections", "Connections that take nothing for now.", slow),
            Sample::new("completions_lost", "Completions of the ring that were lost.", Value::Counter(lost)),
            Sample::new("turn_seconds", "How long turns took.", Value::Times(counted.turns.get())),
            Sample::new("timer_lag_seconds", "How late timers were.", Value::Times(counted.lag.get())),
        ];
        let drops = [
            ("newest", dropped.newest),
            ("oldest", dropped.oldest),
            ("conflated", dropped.conflated),
            ("volatile", dropped.volatile),
        ];
        let help = "Messages that clients did not get since they were slow, by policy.";
        let dropped_as =
            |(policy, n)| Sample::new("dropped_messages", help, Value::Counter(n)).label("policy", policy);
        samples.extend(drops.map(dropped_as));
        let help = "Clients that were closed since too much waited for them.";
        samples.push(Sample::new("closed_for_backpressure", help, Value::Counter(dropped.closed)));
        if self.index() == 0 {
            // Of the process, so one core says it.
            let (used, max) = (memory::used().unwrap_or(0), self.shared.memory.max());
            samples.push(gauge("memory_bytes", "Memory that belongs to the process alone.", used as usize));
            samples.push(gauge("memory_max_bytes", "Memory that it may use; 0 is no bound.", max as usize));
        }
        if let Some(service) = self.service() {
            service.measure(&mut samples);
        }
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_takes_times_up_to_its_bound() {
        let bucket_of = |micros| {
            let mut times = Histogram::default();
            times.add(Duration::from_micros(micros));
            times.buckets().find(|(_, count)| *count == 1).map(|(longest, _)| longest.map(|t| t.as_micros()))
        };
        for (micros, longest) in [
            (0, Some(32)),
            (32, Some(32)),
            (33, Some(64)),
            (64, Some(64)),
            (1_048_576, Some(1_048_576)),
            (1_048_577, None),
            (u64::MAX, None),
        ] {
            assert_eq!(bucket_of(micros), Some(longest), "{micros}");
        }
    }
}
