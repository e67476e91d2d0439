//! One room, one publisher, a window of broadcasts: what a delivery costs the server.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::client::{Plan, Swarm};
use crate::meter::{Cost, Meter};
use crate::page::{Outputs, Page};
use crate::record::{Recorded, Sampler, Series};
use crate::report::{self, Quantiles, Table};
use crate::tally::Tally;
use crate::target::{Server, TargetArgs};
use crate::{Outcome, fail, sys};

/// No delivery for so long means that what is missing will not come.
const STALL: Duration = Duration::from_secs(10);
/// The server comes to rest before its clocks are read, so that they are exact.
const REST: Duration = Duration::from_millis(30);
/// Broadcasts that may be outstanding: what the client's window of sequence numbers can tell apart.
const WINDOW_MAX: u32 = 64;

/// `load-tests fanout`
#[derive(Args, Debug)]
pub(crate) struct FanoutArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    load: Load,
    /// Readers in the room
    #[arg(long, default_value_t = 5000)]
    sockets: usize,
    /// Connects outstanding at once
    #[arg(long, default_value_t = 128)]
    in_flight: usize,
    #[command(flatten)]
    outputs: Outputs,
}

/// How much to publish.
#[derive(Args, Debug, Clone)]
pub(crate) struct Load {
    /// Bytes of a broadcast's payload
    #[arg(long, default_value_t = 128)]
    pub(crate) payload: usize,
    /// Broadcasts outstanding: so many are published in one write, and the next when all have them all
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=WINDOW_MAX as i64))]
    pub(crate) window: u32,
    /// Broadcasts to measure at most
    #[arg(long, default_value_t = 1000)]
    pub(crate) broadcasts: u32,
    /// Broadcasts before the measuring, at least one window
    #[arg(long, default_value_t = 64)]
    pub(crate) warmup: u32,
    /// Seconds to measure at most
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measured {
    /// Readers.
    pub(crate) sockets: usize,
    /// Bytes of a payload.
    pub(crate) payload: usize,
    /// Broadcasts outstanding.
    pub(crate) window: u32,
    /// Broadcasts measured.
    pub(crate) broadcasts: u32,
    /// Deliveries measured.
    pub(crate) deliveries: u64,
    /// Server CPU and ksoftirqd of its cores, per delivery.
    pub(crate) cpu_us_per_delivery: f64,
    /// The part of it in ksoftirqd.
    pub(crate) softirq_us_per_delivery: f64,
    /// Whether ksoftirqd could be seen at all.
    pub(crate) softirq_seen: bool,
    /// From the first publish to the last delivery.
    pub(crate) wall_s: f64,
    /// Deliveries by that time.
    pub(crate) deliveries_per_s: f64,
    /// From publish to the last reader.
    pub(crate) completion: Quantiles,
    /// Server, 100 for one core.
    pub(crate) server_percent: f64,
    /// Client, 100 for its one thread.
    pub(crate) client_percent: f64,
    /// Others on the server's cores: noise.
    pub(crate) others_percent: f64,
    /// Loss and order since the swarm was connected, warm-up included.
    pub(crate) tally: Tally,
    /// Whether the server stopped delivering.
    pub(crate) stalled: bool,
    /// Completion times, and what server and client used.
    pub(crate) recorded: Recorded,
}

impl Measured {
    /// Whether all came once and in order.
    pub(crate) fn is_clean(&self) -> bool {
        !self.stalled && self.tally.is_clean()
    }
}

/// Runs the scenario.
pub(crate) fn run(args: &FanoutArgs) -> Outcome<bool> {
    args.target.cores.pin_client();
    let server = args.target.start()?;
    let mut swarm = connect(&server, args.sockets, args.in_flight)?;
    let meter = Meter::new(server.pid, &args.target.cores.server_cores);
    let measured = measure(&mut swarm, &meter, args.sockets, &args.load)?;
    drop(swarm);
    server.stop()?;

    let mut table = Table::new(&[
        "server",
        "W",
        "µs/delivery",
        "of it ksoftirqd",
        "deliveries/s",
        "completion p50/p99/max ms",
        "server %",
        "client %",
        "others %",
        "lost/dup/order",
    ]);
    table.row(vec![
        args.target.name(),
        measured.window.to_string(),
        format!("{:.2}", measured.cpu_us_per_delivery),
        softirq_text(&measured),
        report::thousands(measured.deliveries_per_s),
        measured.completion.text(),
        format!("{:.0}", measured.server_percent),
        format!("{:.0}", measured.client_percent),
        format!("{:.0}", measured.others_percent),
        loss_text(&measured.tally),
    ]);
    let title = format!(
        "fanout: {} sockets, {} bytes, {} broadcasts, {} deliveries in {:.2} s",
        measured.sockets, measured.payload, measured.broadcasts, measured.deliveries, measured.wall_s
    );
    println!("{title}\n");
    table.print();
    if measured.stalled {
        println!("\nSTALLED: nothing came for {STALL:?}");
    }
    args.outputs.write(&measured, || {
        let page = Page::new(&title).table(&table).text("Latencies are completion times of broadcasts.");
        page.recorded(&measured.recorded)
    })?;
    Ok(measured.is_clean())
}

fn softirq_text(measured: &Measured) -> String {
    if measured.softirq_seen {
        format!("{:.2}", measured.softirq_us_per_delivery)
    } else {
        "not visible".to_owned()
    }
}

/// `lost/duplicate/out of order`, and closed connections if there are any.
pub(crate) fn loss_text(tally: &Tally) -> String {
    let closed = if tally.closed > 0 { format!(", {} closed", tally.closed) } else { String::new() };
    format!("{}/{}/{}{closed}", tally.lost, tally.duplicate, tally.out_of_order)
}

/// Connects all readers, joined, and the publisher; fails if one does not get in.
pub(crate) fn connect(server: &Server, sockets: usize, in_flight: usize) -> Outcome<Swarm> {
    let mut swarm = Swarm::new(Plan::new(server, sockets))?;
    let bar = report::progress("connecting", sockets as u64 + 1);
    let limit = Duration::from_secs(60);
    let connected =
        swarm.connect(0..sockets + 1, in_flight, limit, &mut |ready| bar.set_position(ready as u64))?;
    bar.finish_and_clear();
    if connected.failed > 0 {
        return fail(format!(
            "{} of {sockets} connections did not get in: {}",
            connected.failed,
            swarm.errors().join("; ")
        ));
    }
    Ok(swarm)
}

/// Warms the server up, then measures it.
pub(crate) fn measure(swarm: &mut Swarm, meter: &Meter, sockets: usize, load: &Load) -> Outcome<Measured> {
    let warm_limit = Duration::from_secs_f64(load.seconds);
    let warmed = drive(swarm, load, load.warmup.max(load.window), warm_limit, &mut || Ok(()))?;
    swarm.reset_latencies();
    rest(swarm, REST)?;
    let (published, delivered) = (swarm.broadcasts().published(), swarm.delivered());
    let thread_before = sys::thread_cpu();
    let before = meter.sample()?;
    let (mut sampler, start_us) = (Sampler::new(meter)?, swarm.now_us());
    let driven = if warmed.stalled {
        warmed
    } else {
        drive(swarm, load, load.broadcasts, Duration::from_secs_f64(load.seconds), &mut || sampler.tick())?
    };
    let thread_s = (sys::thread_cpu() - thread_before).as_secs_f64();
    rest(swarm, REST)?;
    let cost: Cost = meter.between(&before, &meter.sample()?);
    let mut completions = Series::new()?;
    completions.reset(start_us);
    let times = swarm.broadcasts().times_us().skip(published as usize);
    times
        .filter(|(_, done_us)| *done_us > 0)
        .for_each(|(sent_us, done_us)| completions.record(sent_us, done_us));
    let deliveries = swarm.delivered() - delivered;
    let each = deliveries.max(1) as f64;
    let wall_s = driven.wall.as_secs_f64();
    Ok(Measured {
        sockets,
        payload: load.payload,
        window: load.window,
        broadcasts: swarm.broadcasts().published() - published,
        deliveries,
        cpu_us_per_delivery: cost.total_us() / each,
        softirq_us_per_delivery: cost.softirq_us / each,
        softirq_seen: meter.sees_softirq(),
        wall_s,
        deliveries_per_s: deliveries as f64 / wall_s,
        completion: Quantiles::of(swarm.broadcasts().completion_us()),
        server_percent: cost.total_us() / wall_s / 1e4,
        client_percent: thread_s / wall_s * 100.0,
        others_percent: cost.others_percent,
        tally: swarm.tally(),
        stalled: driven.stalled,
        recorded: Recorded::new(&completions, sampler.end()),
    })
}

struct Driven {
    wall: Duration,
    stalled: bool,
}

/// Publishes window by window until `count` are complete or the time is up; `watch` is called between.
fn drive(
    swarm: &mut Swarm,
    load: &Load,
    count: u32,
    limit: Duration,
    watch: &mut dyn FnMut() -> Outcome,
) -> Outcome<Driven> {
    let start = Instant::now();
    let bar = report::progress("broadcasts", u64::from(count));
    let goal = swarm.broadcasts().published() + count;
    let mut stalled = false;
    while swarm.broadcasts().published() < goal && start.elapsed() < limit && !stalled {
        let left = goal - swarm.broadcasts().published();
        let now_us = swarm.now_us();
        swarm.publish(load.window.min(left), load.payload, now_us)?;
        stalled = !await_all(swarm)?;
        watch()?;
        bar.set_position(u64::from(count - (goal - swarm.broadcasts().published())));
    }
    bar.finish_and_clear();
    Ok(Driven { wall: start.elapsed(), stalled })
}

/// Waits until all that is published is complete; false when nothing comes any more.
pub(crate) fn await_all(swarm: &mut Swarm) -> Outcome<bool> {
    let mut last = (swarm.delivered(), Instant::now());
    while swarm.broadcasts().completed() < swarm.broadcasts().published() {
        swarm.poll(100)?;
        if swarm.delivered() != last.0 {
            last = (swarm.delivered(), Instant::now());
        } else if last.1.elapsed() > STALL {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Goes on handling events for a while.
pub(crate) fn rest(swarm: &mut Swarm, duration: Duration) -> Outcome {
    let start = Instant::now();
    while let Some(left) = duration.checked_sub(start.elapsed()) {
        swarm.poll((left.as_millis() as i32).max(1))?;
    }
    Ok(())
}
