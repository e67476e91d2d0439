//! Several swarms, a thread each: more than one core's worth of clients, or more than one descriptor table's.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;

use crate::client::{Connected, Plan, Swarm};
use crate::target::{Cores, Server};
use crate::{Outcome, fail, report, sys};

/// A thread that has no order looks for one so often.
const IDLE_MS: i32 = 5;
/// Without an answer to an order for so long something is broken.
const ORDER_LIMIT: Duration = Duration::from_secs(600);
/// Threads at most: 64 tables of 20,000 descriptors are more than the machine's memory takes.
const THREADS_MAX: i64 = 64;
/// Descriptors of a thread's table that are not connections: what the process had open before, and epoll.
const DESCRIPTORS_SPARE: u64 = 100;

/// How many readers, and how they connect; common to the scenarios. Those that need another number by default say so.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct Readers {
    /// Readers
    #[arg(long, default_value_t = 5000)]
    pub(crate) sockets: usize,
    /// Connects outstanding at once, over all threads
    #[arg(long, default_value_t = 128)]
    pub(crate) in_flight: usize,
}

/// How a crowd is made.
#[derive(Args, Debug, Clone)]
pub(crate) struct CrowdArgs {
    #[command(flatten)]
    pub(crate) readers: Readers,
    /// Threads of this client; they share the client's cores. The first one publishes, too
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=THREADS_MAX))]
    pub(crate) threads: u32,
}

impl CrowdArgs {
    /// A crowd that no flags ask for.
    pub(crate) fn of(sockets: usize, threads: u32, in_flight: usize) -> Self {
        Self { readers: Readers { sockets, in_flight }, threads }
    }
}

type Order = Box<dyn FnOnce(&mut Swarm) + Send>;
type Answer<R> = Result<R, String>;

struct Member {
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
    sockets: usize,
}

/// What makes one crowd different from another.
#[derive(Clone)]
pub(crate) struct Shape {
    /// Whether the readers join the room.
    pub(crate) join: bool,
    /// Whether each thread has a descriptor table of its own.
    pub(crate) own_tables: bool,
    /// Whether deliveries are told one by one.
    pub(crate) tells_deliveries: bool,
    /// The clock's zero.
    pub(crate) epoch: Instant,
}

impl Default for Shape {
    fn default() -> Self {
        Self { join: true, own_tables: false, tells_deliveries: false, epoch: Instant::now() }
    }
}

/// Swarms on threads. The first has the publisher.
pub(crate) struct Crowd {
    members: Vec<Member>,
    in_flight: usize,
}

impl Crowd {
    /// Starts the threads; nothing is connected yet.
    pub(crate) fn new(server: &Server, args: &CrowdArgs, cores: &Cores, shape: &Shape) -> Outcome<Self> {
        let threads = args.threads as usize;
        let table = usize::try_from(sys::raise_descriptor_limit()? - DESCRIPTORS_SPARE)?;
        let shares = if shape.own_tables { threads } else { 1 };
        if args.readers.sockets.div_ceil(shares) > table {
            return fail(format!(
                "{} sockets need more descriptors than {shares} times {table}",
                args.readers.sockets
            ));
        }
        let mut crowd = Self { members: Vec::new(), in_flight: args.readers.in_flight.div_ceil(threads) };
        for number in 0..threads {
            let sockets =
                args.readers.sockets / threads + usize::from(number < args.readers.sockets % threads);
            let plan = Plan {
                join: shape.join,
                time_deliveries: true,
                epoch: Some(shape.epoch),
                follows: number > 0,
                tells_deliveries: shape.tells_deliveries,
                ..Plan::new(server, sockets)
            };
            let core = cores.client_core[number % cores.client_core.len().max(1)];
            let own_table = shape.own_tables;
            let (orders, taken) = mpsc::channel::<Order>();
            let (say, made) = mpsc::channel::<Answer<()>>();
            let thread = std::thread::spawn(move || match make(plan, core, own_table) {
                Ok(swarm) => {
                    let _ = say.send(Ok(()));
                    serve(swarm, &taken);
                }
                Err(error) => drop(say.send(Err(error.to_string()))),
            });
            crowd.members.push(Member { orders: Some(orders), thread: Some(thread), sockets });
            made.recv_timeout(ORDER_LIMIT)??;
        }
        Ok(crowd)
    }

    /// Connects all readers and the publisher, and fails if one does not get in.
    pub(crate) fn connect(&self, limit: Duration) -> Outcome<Connected> {
        let connected = self.try_connect(limit)?;
        if connected.failed > 0 {
            let errors = self.each(|_, swarm| Ok(swarm.errors().join("; ")))?;
            return fail(format!("{} connections did not get in: {}", connected.failed, errors.join("; ")));
        }
        Ok(connected)
    }

    /// Connects all readers and the publisher.
    pub(crate) fn try_connect(&self, limit: Duration) -> Outcome<Connected> {
        self.try_connect_watching(limit, &mut || Ok(()))
    }

    /// The same, and `watch` here until it is done.
    pub(crate) fn try_connect_watching(
        &self,
        limit: Duration,
        watch: &mut dyn FnMut() -> Outcome,
    ) -> Outcome<Connected> {
        let in_flight = self.in_flight;
        let start = Instant::now();
        let bar =
            report::progress("connecting", self.members.iter().map(|member| member.sockets as u64).sum());
        let watched = bar.clone();
        let connect = move |number: usize, swarm: &mut Swarm| {
            let last = swarm.publisher() + usize::from(number == 0);
            let mut before = 0;
            swarm.connect(0..last, in_flight, limit, &mut |ready| {
                watched.inc((ready - before.min(ready)) as u64);
                before = ready;
            })
        };
        let mut answers = Vec::new();
        for number in 0..self.members.len() {
            let connect = connect.clone();
            answers.push(self.begin(number, move |swarm| connect(number, swarm))?);
        }
        let connected: Vec<Connected> =
            answers.iter().map(|answer| Self::wait(answer, watch)).collect::<Outcome<_>>()?;
        bar.finish_and_clear();
        let mut sum = Connected { wall: start.elapsed(), latency_us: report::microseconds()?, failed: 0 };
        for one in connected {
            sum.failed += one.failed;
            sum.latency_us.add(&one.latency_us)?;
        }
        Ok(sum)
    }

    /// Does the same on every thread and waits for all.
    pub(crate) fn each<R: Send + 'static>(
        &self,
        work: impl Fn(usize, &mut Swarm) -> Outcome<R> + Clone + Send + 'static,
    ) -> Outcome<Vec<R>> {
        let mut answers = Vec::new();
        for number in 0..self.members.len() {
            let work = work.clone();
            answers.push(self.begin(number, move |swarm| work(number, swarm))?);
        }
        answers.into_iter().map(|answer| Ok(answer.recv_timeout(ORDER_LIMIT)??)).collect()
    }

    /// Begins something on one thread.
    pub(crate) fn begin<R: Send + 'static>(
        &self,
        number: usize,
        work: impl FnOnce(&mut Swarm) -> Outcome<R> + Send + 'static,
    ) -> Outcome<Receiver<Answer<R>>> {
        let (say, answer) = mpsc::channel();
        let order = Box::new(move |swarm: &mut Swarm| {
            let _ = say.send(work(swarm).map_err(|error| error.to_string()));
        });
        match &self.members[number].orders {
            Some(orders) if orders.send(order).is_ok() => Ok(answer),
            _ => fail("a thread of the client ended".into()),
        }
    }

    /// Does something on the first thread, and `watch` here until it is done.
    pub(crate) fn first<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Swarm) -> Outcome<R> + Send + 'static,
        watch: &mut dyn FnMut() -> Outcome,
    ) -> Outcome<R> {
        Self::wait(&self.begin(0, work)?, watch)
    }

    fn wait<R>(answer: &Receiver<Answer<R>>, watch: &mut dyn FnMut() -> Outcome) -> Outcome<R> {
        loop {
            match answer.recv_timeout(Duration::from_millis(50)) {
                Ok(answer) => return Ok(answer?),
                Err(RecvTimeoutError::Timeout) => watch()?,
                Err(RecvTimeoutError::Disconnected) => return fail("a thread of the client ended".into()),
            }
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.orders = None;
        }
        for member in &mut self.members {
            if member.thread.take().is_some_and(|thread| thread.join().is_err()) {
                eprintln!("a thread of the client panicked");
            }
        }
    }
}

fn make(plan: Plan, core: usize, own_table: bool) -> Outcome<Swarm> {
    // One that does not exist was reported by `pin_client` already.
    let _ = sys::pin_to_cores(&[core]);
    if own_table {
        sys::own_descriptor_table()?;
    }
    Swarm::new(plan)
}

/// Handles events, and orders between them, until nobody gives orders any more.
fn serve(mut swarm: Swarm, orders: &Receiver<Order>) {
    loop {
        match orders.try_recv() {
            Ok(order) => order(&mut swarm),
            Err(mpsc::TryRecvError::Empty) => {
                if let Err(error) = swarm.poll(IDLE_MS) {
                    eprintln!("load-tests: {error}");
                    return;
                }
            }
            Err(mpsc::TryRecvError::Disconnected) => return,
        }
    }
}
