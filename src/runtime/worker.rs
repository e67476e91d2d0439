//! The threads: one for each core, each with monoio, a socket ring and its own listeners.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc;
use std::task::Poll;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::adopt::{Admission, AdoptError, Adopter};
use super::connection::ConnectionId;
use super::core::{Core, Service, Setup, Shared};
use super::doorbell::EventFd;
use super::error::WorkerEnded;
use super::guard::{self, Panic, caught, guarded};
use super::listener::Listening;
use super::memory::Memory;
use super::metrics::Metrics;
use super::ring::{Kind, Rig, Ring};
use super::turn::Scratch;
use super::{Descriptors, Endpoint, Options, StartError, listener, probe};
use crate::fanout::{Doorbell, Task};
use crate::limits;
use crate::time::Millis;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// The core whose thread this is; `None` on a thread that is no worker.
pub fn current() -> Option<Rc<Core>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Makes the protocol above the runtime: called once on each worker's thread.
pub type MakeService = dyn Fn(&Rc<Core>) -> Rc<dyn Service> + Send + Sync;

/// A server whose threads run. Dropping it does not stop them; [`shutdown`](Self::shutdown) does.
///
/// ```no_run
/// use sockring::app::App;
/// let server = App::builder().listen("127.0.0.1:0").start(|_| ())?;
/// println!("{} workers listen on {:?}", server.workers(), server.addresses());
/// server.shutdown();
/// server.join()?;
/// # Ok::<(), sockring::runtime::StartError>(())
/// ```
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    endpoints: Vec<Endpoint>,
    threads: Vec<JoinHandle<Result<(), WorkerEnded>>>,
}

impl Running {
    /// The TCP addresses that the server listens on, with the ports that were chosen for port 0.
    /// [`endpoints`](Self::endpoints) has Unix sockets too.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// All that the server listens on, in the order in which it was given.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.shared.mesh.cores()
    }

    /// What the cores share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What gives connections of other servers to this one, from any thread.
    pub fn adopter(&self) -> Adopter {
        Adopter::new(self.shared.clone())
    }

    /// Gives this server a connection that another has accepted; see [`Adopter::adopt`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn adopt(&self, stream: impl Into<OwnedFd>, read: impl Into<Vec<u8>>) -> Result<(), AdoptError> {
        self.adopter().adopt(stream, read)
    }

    /// What all cores have counted. A core that does not answer within a second is missing. To be called on a
    /// thread that is no worker's; [`App::metrics`](crate::app::App::metrics) is for those.
    pub fn metrics(&self) -> Metrics {
        Metrics::measure(&self.shared).wait(limits::MEASURING)
    }

    /// Asks the workers to stop: they accept nothing more, clients get their close, and the threads end
    /// when the last connection is gone, or after `shutdown_timeout`. Returns at once.
    pub fn shutdown(&self) {
        stop(&self.shared);
    }

    /// Waits until all workers have ended.
    ///
    /// # Errors
    ///
    /// When a worker ended by itself: the first that did. The others are stopped then, as by
    /// [`shutdown`](Self::shutdown).
    pub fn join(self) -> Result<(), WorkerEnded> {
        let mut outcome = Ok(());
        for (worker, thread) in self.threads.into_iter().enumerate() {
            let ended = thread.join().unwrap_or_else(|panic| {
                Err(WorkerEnded { worker, why: format!("it panicked: {}", Panic::new(&*panic)) })
            });
            outcome = outcome.and(ended);
        }
        outcome
    }

    /// Waits for SIGTERM or SIGINT, then stops the workers and waits for them. A second signal ends the
    /// process at once.
    ///
    /// # Errors
    ///
    /// When signals cannot be waited for; a [`WorkerEnded`] when a worker ended by itself. A `main` that
    /// returns the error ends the process with a status that says so.
    pub fn run_until_signal(self) -> io::Result<()> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
        let shared = self.shared.clone();
        thread::Builder::new().name("sockring-signals".into()).spawn(move || {
            let mut signals = signals.forever();
            if signals.next().is_some() {
                stop(&shared);
            }
            if signals.next().is_some() {
                std::process::exit(1);
            }
        })?;
        self.join().map_err(io::Error::other)
    }
}

fn stop(shared: &Shared) {
    shared.stopping.store(true, Ordering::SeqCst);
    for core in 0..shared.mesh.cores() {
        // A full mailbox changes nothing: the next tick sees the flag.
        let wake = Task::new(|| {
            if let Some(core) = current() {
                core.begin_shutdown(core.now());
            }
        });
        let _ = shared.mesh.post(core, wake);
    }
}

/// Starts the workers and waits until all of them listen.
pub fn start(options: &Options, make: Arc<MakeService>) -> Result<Running, StartError> {
    if options.listen.is_empty() && !options.adopt_only {
        return Err(StartError::NoListener);
    }
    if options.listen.len() > limits::LISTENERS_MAX {
        return Err(StartError::Listeners(options.listen.len()));
    }
    guard::watch_panics();
    let cores = affinity();
    let workers = if options.workers == 0 { cores.len() } else { options.workers };
    if workers == 0 || workers > limits::WORKERS_MAX {
        return Err(StartError::Workers(workers));
    }
    let direct = probe(options.descriptors)?;
    let (listeners, endpoints) = listener::open(options, workers)?;
    let tcp = |endpoint: &Endpoint| match endpoint {
        Endpoint::Tcp(address) => Some(*address),
        Endpoint::Unix(_) => None,
    };
    let addresses = endpoints.iter().filter_map(tcp).collect();
    let capacity = capacity(options, direct, workers);
    let admission = Admission::new(workers, capacity, options.send_buffer);
    let shared = Arc::new(Shared::new(workers, admission, Memory::new(options.max_memory)));
    let _ = shared.cpus.set(cores.clone());
    let (ready, started) = mpsc::channel();
    let mut threads = Vec::with_capacity(workers);
    let epoch = Instant::now();
    for (index, listeners) in listeners.into_iter().enumerate() {
        let worker = Worker {
            index,
            shared: shared.clone(),
            capacity,
            direct,
            cpu: options.pin.then(|| cores[index % cores.len()]),
            // A listener of the user's must not stay open for as long as the last worker.
            options: Options { listen: Vec::new(), ..options.clone() },
            listeners,
            epoch,
        };
        let (make, ready) = (make.clone(), ready.clone());
        let thread = thread::Builder::new()
            .name(format!("sockring-{index}"))
            .spawn(move || worker.run(&*make, &ready))
            .map_err(|error| StartError::Thread(error.to_string()))?;
        threads.push(thread);
    }
    drop(ready);
    let running = Running { shared, addresses, endpoints, threads };
    let kind = if direct { "direct" } else { "normal" };
    tracing::info!("{workers} workers, each with places for {capacity} connections on {kind} descriptors");
    for _ in 0..workers {
        match started.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                running.shutdown();
                return Err(error);
            }
            Err(_) => {
                running.shutdown();
                return Err(StartError::Thread("it ended while it started".into()));
            }
        }
    }
    Ok(running)
}

/// Whether sockets get direct descriptors. On a thread of its own: what the kernel still has to do for a
/// ring that is gone interrupts system calls of the thread that made it, and the caller's are not ours.
fn probe(descriptors: Descriptors) -> Result<bool, StartError> {
    let probe = move || {
        probe::check()?;
        let direct = descriptors != Descriptors::Normal && probe::direct_descriptors_close();
        if descriptors == Descriptors::Direct && !direct {
            return Err(StartError::TooOld("direct descriptors that close at once (6.13)"));
        }
        Ok(direct)
    };
    let thread = thread::Builder::new().name("sockring-probe".into()).spawn(probe);
    let thread = thread.map_err(|error| StartError::Thread(error.to_string()))?;
    thread.join().unwrap_or_else(|_| Err(StartError::Thread("the probe of the kernel panicked".into())))
}

/// Connections that one worker may hold.
fn capacity(options: &Options, direct: bool, workers: usize) -> usize {
    let limit = descriptor_limit();
    // The ring's table has nothing but connections in it; the process's has all that all workers need.
    let most = if direct {
        limit.saturating_sub(limits::DESCRIPTORS_SPARE)
    } else {
        let each = limits::WORKER_DESCRIPTORS + options.listen.len() + limits::PLACES_RESERVED;
        (limit.saturating_sub(limits::DESCRIPTORS_SPARE) / workers).saturating_sub(each)
    };
    let most = most.max(1);
    if options.connections == 0 { most } else { options.connections.min(most) }
}

fn descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    // The ring's table has a limit of its own in the kernel (2^20); "unlimited" must not overflow it.
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX).min(1 << 20)
}

/// The cores of the process's affinity mask.
fn affinity() -> Vec<usize> {
    const WORD: usize = libc::c_ulong::BITS as usize;
    // The kernel wants room for all cores that it was built for, which may be more than a `cpu_set_t` has.
    for words in (0..6).map(|doubled| (libc::CPU_SETSIZE as usize / WORD) << doubled) {
        let mut set: Vec<libc::c_ulong> = vec![0; words];
        let bytes = size_of_val(&set[..]);
        // SAFETY: the kernel writes at most so many bytes, to memory that is a mask of cores in words, like a
        // `cpu_set_t`.
        if unsafe { libc::sched_getaffinity(0, bytes, set.as_mut_ptr().cast()) } == 0 {
            let cores: Vec<usize> =
                (0..words * WORD).filter(|cpu| set[cpu / WORD] >> (cpu % WORD) & 1 == 1).collect();
            return if cores.is_empty() { vec![0] } else { cores };
        }
    }
    vec![0]
}

struct Worker {
    index: usize,
    shared: Arc<Shared>,
    capacity: usize,
    direct: bool,
    cpu: Option<usize>,
    options: Options,
    listeners: Vec<Listening>,
    epoch: Instant,
}

/// Closes a worker's mailbox, however it ends: whoever posts to it is told so.
struct Mailbox(Arc<Shared>, usize);

impl Drop for Mailbox {
    fn drop(&mut self) {
        drop(self.0.mesh.close(self.1));
    }
}

type Ready = mpsc::Sender<Result<(), StartError>>;

impl Worker {
    fn run(self, make: &MakeService, ready: &Ready) -> Result<(), WorkerEnded> {
        let (worker, shared) = (self.index, self.shared.clone());
        let _span = tracing::info_span!("worker", core = worker).entered();
        let _mailbox = Mailbox(shared.clone(), worker);
        if let Some(cpu) = self.cpu
            && let Err(error) = monoio::utils::bind_to_cpu_set([cpu])
        {
            tracing::warn!("worker {worker} could not be bound to core {cpu}: {error}");
        }
        let monoio = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().enable_timer().build();
        let outcome = match monoio {
            Ok(mut monoio) => {
                let outcome = caught(|| monoio.block_on(self.serve(make, ready)));
                if !matches!(outcome, Ok(Ok(()))) {
                    bury();
                }
                // Tasks that were waiting go with it, and run what users have written for their end.
                guarded("the end of the tasks of a worker", || drop(monoio));
                outcome
            }
            Err(source) => Ok(Err(StartError::Ring { source })),
        };
        let core = CURRENT.take();
        guarded("the end of a core", || drop(core));
        let (error, why) = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => {
                let why = error.to_string();
                (error, why)
            }
            Err(panic) => {
                let why = format!("it panicked: {panic}");
                (StartError::Thread(why.clone()), why)
            }
        };
        tracing::error!("worker {worker} has ended, and the server stops: {why}");
        // Nobody listens any more unless the server is still starting.
        let _ = ready.send(Err(error));
        stop(&shared);
        Err(WorkerEnded { worker, why })
    }

    async fn serve(self, make: &MakeService, ready: &Ready) -> Result<(), StartError> {
        let all = self.capacity + limits::PLACES_RESERVED + limits::DESCRIPTORS_SPARE / 2;
        let slots = self.direct.then_some(all as u32);
        let rig = Rig::new(slots).map_err(|source| StartError::Ring { source })?;
        let bell = EventFd::new().map_err(|source| StartError::Ring { source })?;
        self.shared.rings[self.index].store(rig.ring.raw_fd(), Ordering::Release);
        self.shared.mesh.install(self.index, Box::new(bell.clone()));
        let core = Core::new(Setup {
            index: self.index,
            shared: self.shared.clone(),
            rig,
            listeners: self.listeners,
            capacity: self.capacity,
            connections_per_address: self.options.connections_per_address,
            direct: self.direct,
            backpressure_bytes: self.options.backpressure_bytes,
            send_slice: self.options.send_slice,
            shutdown_timeout: self.options.shutdown_timeout,
            epoch: self.epoch,
        });
        core.ring
            .borrow_mut()
            .register_eventfd(bell.as_raw_fd())
            .map_err(|source| StartError::Ring { source })?;
        CURRENT.set(Some(core.clone()));
        core.install(make(&core));
        let listeners = core.listeners.borrow().len();
        let accepts = limits::ACCEPTS_ARMED.min(self.capacity / listeners.max(1)).max(1);
        for number in 0..listeners as u16 {
            core.work.borrow_mut().parked.extend((0..accepts).map(|_| number));
        }
        let _ = ready.send(Ok(()));
        monoio::spawn(tick(Rc::downgrade(&core)));
        turns(&core, &bell).await.map_err(|source| StartError::Ring { source })?;
        core.retire();
        Ok(())
    }
}

/// Lets go of what a worker that has died leaves: clients must not wait in the queue of a listener that
/// nobody accepts from, nor on connections that nobody reads.
fn bury() {
    let Some(core) = current() else { return };
    guarded("the listeners of a worker that has died", || core.stop_listening());
    guarded("the connections of a worker that has died", || core.let_go());
    // The service holds the core, and the core the service.
    core.retire();
}

/// Tells the turn that some time has passed.
async fn tick(core: Weak<Core>) {
    loop {
        let begun = Instant::now();
        monoio::time::sleep(limits::TICK).await;
        let Some(core) = core.upgrade() else { return };
        core.counters.timer_was_late(begun.elapsed().saturating_sub(limits::TICK));
        core.ticked.set(true);
        core.ring_bell();
    }
}

/// Turn after turn, and in between monoio, until the core has stopped (R5, R6).
async fn turns(core: &Rc<Core>, eventfd: &EventFd) -> io::Result<()> {
    let file = Rc::new(monoio::fs::File::from_std(std::fs::File::from(eventfd.duplicate()?))?);
    let mut signal = Signal::new(file);
    let outcome = turn_after_turn(core, eventfd, &mut signal).await;
    signal.end(eventfd).await;
    outcome
}

async fn turn_after_turn(core: &Rc<Core>, eventfd: &EventFd, signal: &mut Signal) -> io::Result<()> {
    let mut scratch = Scratch::default();
    let mut parked = core.now();
    core.ring.borrow_mut().disable_eventfd();
    loop {
        core.turn(&mut scratch)?;
        if core.accepts_no_more() {
            // Clients that come now are another server's, not ones that wait here in vain.
            core.listeners.borrow_mut().iter_mut().for_each(Listening::close);
        }
        if core.is_stopped() {
            return core.leave(&mut scratch);
        }
        core.ring.borrow_mut().enable_eventfd();
        // The kernel must see the flag before we look whether something came meanwhile.
        fence(Ordering::SeqCst);
        let more =
            core.bell.is_rung() || core.ring.borrow_mut().has_work() || !core.inbox.borrow().is_empty();
        if more || !core.shared.mesh.sleep(core.index) {
            // The next turn comes through monoio's driver, or other tasks would starve. The bell must not cut
            // that short: under load a handler rings it in every turn.
            eventfd.ring();
            poll_fn(|cx| signal.poll(cx)).await;
            // Timers are looked at only where monoio parks, which it does not while a task can run, and this
            // turn may have spawned some. They have run by now: a second round finds nothing else to do.
            if core.now() >= parked + PARK_MS {
                parked = core.now();
                eventfd.ring();
                poll_fn(|cx| signal.poll(cx)).await;
            }
        } else {
            poll_fn(|cx| {
                if core.bell.poll(cx) {
                    return Poll::Ready(());
                }
                signal.poll(cx)
            })
            .await;
        }
        core.shared.mesh.awake(core.index);
        core.ring.borrow_mut().disable_eventfd();
    }
}

/// How late timers may be on a busy core because of turns that follow each other.
const PARK_MS: Millis = 2;

/// The read of the eventfd, kept across turns: dropping it would cost a cancellation each time.
struct Signal {
    file: Rc<monoio::fs::File>,
    read: Pin<Box<dyn Future<Output = ()>>>,
}

impl Signal {
    fn new(file: Rc<monoio::fs::File>) -> Self {
        let read = Box::pin(Self::read(file.clone(), vec![0; 8]));
        Self { file, read }
    }

    async fn read(file: Rc<monoio::fs::File>, buffer: Vec<u8>) {
        let (result, _) = file.read_at(buffer, 0).await;
        if let Err(error) = result {
            tracing::error!("the eventfd cannot be read: {error}");
        }
    }

    /// Waits for the read that is under way. monoio keeps the buffer of a read whose future was dropped
    /// until the kernel has answered, and with its feature `async-cancel` asks it to; but it frees the
    /// buffers of all that is still under way when the runtime is dropped, while the kernel may yet write to
    /// this one.
    async fn end(self, eventfd: &EventFd) {
        eventfd.ring();
        self.read.await;
    }

    fn poll(&mut self, cx: &mut std::task::Context<'_>) -> Poll<()> {
        std::task::ready!(self.read.as_mut().poll(cx));
        self.read = Box::pin(Self::read(self.file.clone(), vec![0; 8]));
        Poll::Ready(())
    }
}

impl Core {
    /// Closes what is left and lets the kernel finish, so that nothing refers to our memory (R8).
    fn leave(&self, scratch: &mut Scratch) -> io::Result<()> {
        // What others have asked for until now is done, so that nobody waits for it.
        let mut mail = self.shared.mesh.close(self.index);
        for task in scratch.tasks.drain(..).chain(mail.drain()) {
            guarded("a task of another thread", || task.run());
        }
        self.flush_all(scratch)?;
        self.remove_all();
        for _ in 0..LEAVING_TURNS {
            self.turn(scratch)?;
            if self.ring.borrow().accepts_armed() == 0 {
                break;
            }
        }
        self.turn(scratch)
    }

    fn remove_all(&self) {
        let left: Vec<ConnectionId> = self.connections.borrow().iter().map(|(id, _)| id).collect();
        left.into_iter().for_each(|id| self.remove(id));
    }

    /// Closes the listeners, outside of a turn. An accept that is armed would keep its listener open.
    fn stop_listening(&self) {
        self.queue(Ring::cancel_accepts);
        self.queue(Ring::submit);
        self.listeners.borrow_mut().iter_mut().for_each(Listening::close);
        for _ in 0..LEAVING_TURNS {
            let mut completions = VecDeque::new();
            self.queue(Ring::submit);
            self.ring.borrow_mut().reap(&mut completions, usize::MAX);
            for accepted in completions.into_iter().chain(self.inbox.take()) {
                if accepted.tag.kind == Kind::Accept {
                    self.ring.borrow_mut().accepted(accepted.tag.slot);
                    if let Ok(number) = u32::try_from(accepted.result) {
                        self.queue(|ring| ring.close(self.accepted_target(number)));
                    }
                }
            }
            if self.ring.borrow().accepts_armed() == 0 {
                break;
            }
        }
    }

    /// Closes all connections, outside of a turn. The ring may outlive its worker, since monoio keeps tasks
    /// that wait for it: the sockets are closed once what was armed on them has been cancelled, in further
    /// enters (R3).
    fn let_go(&self) {
        self.remove_all();
        for _ in 0..LEAVING_TURNS {
            self.queue(Ring::submit);
            self.ring.borrow_mut().reap(&mut VecDeque::new(), usize::MAX);
            if !self.ring.borrow_mut().has_work() {
                break;
            }
        }
    }
}

/// Turns in which cancelled accepts are waited for; one is enough unless the kernel is very busy.
const LEAVING_TURNS: usize = 100;
