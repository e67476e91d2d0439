//! Broadcasts by the clock, whatever the server does: what a subscriber waits for them.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::client::Swarm;
use crate::crowd::{Crowd, CrowdArgs, Shape};
use crate::meter::Meter;
use crate::page::{Outputs, Page};
use crate::record::{Recorded, Sampler, Series};
use crate::report::{self, Quantiles, Table};
use crate::tally::Tally;
use crate::target::TargetArgs;
use crate::{Outcome, fanout};

/// No delivery for so long means that what is missing will not come.
const STALL: Duration = Duration::from_secs(10);
/// Until when all must be connected.
const CONNECT_LIMIT: Duration = Duration::from_secs(120);
/// The server comes to rest before its clocks are read.
const REST: Duration = Duration::from_millis(30);

/// `load-tests rate`
#[derive(Args, Debug)]
pub(crate) struct RateArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    crowd: CrowdArgs,
    #[command(flatten)]
    load: RateLoad,
    #[command(flatten)]
    outputs: Outputs,
}

/// How much to publish.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct RateLoad {
    /// Broadcasts a second
    #[arg(long, default_value_t = 50.0)]
    pub(crate) rate: f64,
    /// Bytes of a broadcast's payload
    #[arg(long, default_value_t = 128)]
    pub(crate) payload: usize,
    /// Seconds of publishing; a tenth of it, at most 2, comes before as warm-up
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RateMeasured {
    pub(crate) sockets: usize,
    pub(crate) payload: usize,
    pub(crate) rate: f64,
    pub(crate) broadcasts: u32,
    pub(crate) deliveries: u64,
    /// From when a broadcast was due to when its last subscriber had it.
    pub(crate) last_subscriber: Quantiles,
    pub(crate) cpu_us_per_delivery: f64,
    /// Server, 100 for one core.
    pub(crate) server_percent: f64,
    /// Others on the server's cores: noise.
    pub(crate) others_percent: f64,
    /// Loss and order, warm-up included.
    pub(crate) tally: Tally,
    /// Whether the server stopped delivering.
    pub(crate) stalled: bool,
    /// Latency of every delivery, from when it was due.
    pub(crate) recorded: Recorded,
}

impl RateMeasured {
    /// Whether all came once and in order.
    pub(crate) fn is_clean(&self) -> bool {
        !self.stalled && self.tally.is_clean()
    }
}

/// Runs the scenario.
pub(crate) fn run(args: &RateArgs) -> Outcome<bool> {
    args.target.cores.pin_client();
    let server = args.target.start()?;
    let crowd = Crowd::new(&server, &args.crowd, &args.target.cores, &Shape::default())?;
    crowd.connect(CONNECT_LIMIT)?;
    let meter = Meter::new(server.pid, &args.target.cores.server_cores);
    let measured = measure(&crowd, &meter, args.crowd.readers.sockets, args.load)?;
    drop(crowd);
    server.stop()?;
    let name = args.target.name();
    let table = table(&name, &measured);
    let title = format!(
        "rate: {} sockets, {} bytes, {}/s for {} s",
        measured.sockets, measured.payload, measured.rate, args.load.seconds
    );
    println!("{title}\n");
    table.print();
    if measured.stalled {
        println!("\nSTALLED: nothing came for {STALL:?}");
    }
    args.outputs.write(&measured, || Page::new(&title).table(&table).recorded(&measured.recorded))?;
    Ok(measured.is_clean())
}

fn table(name: &str, measured: &RateMeasured) -> Table {
    let mut table = Table::new(&[
        "server",
        "deliveries",
        "latency p50/p90/p99/p99.9/max ms",
        "last subscriber p50/p99/max ms",
        "µs/delivery",
        "server %",
        "others %",
        "lost/dup/order",
    ]);
    table.row(vec![
        name.to_owned(),
        measured.deliveries.to_string(),
        measured.recorded.latency.long_text(),
        measured.last_subscriber.text(),
        format!("{:.2}", measured.cpu_us_per_delivery),
        format!("{:.0}", measured.server_percent),
        format!("{:.0}", measured.others_percent),
        fanout::loss_text(&measured.tally),
    ]);
    table
}

/// Warms the server up, then measures it.
pub(crate) fn measure(crowd: &Crowd, meter: &Meter, sockets: usize, load: RateLoad) -> Outcome<RateMeasured> {
    let RateLoad { rate, payload, seconds } = load;
    let publish = move |seconds: f64| {
        move |swarm: &mut Swarm| {
            publish_at_rate(swarm, rate, payload, seconds, &mut |_| Ok(()))?;
            Ok(swarm.broadcasts().published())
        }
    };
    let warmed = crowd.first(publish((seconds / 10.0).clamp(0.2, 2.0)), &mut || Ok(()))?;
    let warm = drain(crowd, warmed, sockets, &mut || Ok(()))?;
    crowd.each(|_, swarm| {
        swarm.reset_latencies();
        fanout::rest(swarm, REST)
    })?;
    let before = meter.sample()?;
    let mut sampler = Sampler::new(meter)?;
    let published = crowd.first(publish(seconds), &mut || sampler.tick())?;
    let drained = drain(crowd, published, sockets, &mut || sampler.tick())?;
    let stalled = warm.is_none() || drained.is_none();
    crowd.each(|_, swarm| fanout::rest(swarm, REST))?;
    let cost = meter.between(&before, &meter.sample()?);
    let usage = sampler.end();
    let parts = crowd.each(move |_, swarm| {
        let times: Vec<(u64, u64)> = swarm.broadcasts().times_us().skip(warmed as usize).collect();
        let behind = u64::from(published - swarm.broadcasts().published()) * swarm.publisher() as u64;
        let mut tally = swarm.tally();
        tally.lost += behind;
        Ok((swarm.latency().copy(), tally, times))
    })?;
    let (mut series, mut tally, mut times) = (Series::new()?, Tally::default(), Vec::new());
    for (one, part, part_times) in parts {
        series.add(one)?;
        tally.add(&part);
        times.push(part_times);
    }
    let recorded = Recorded::new(&series, usage);
    let deliveries = recorded.count;
    Ok(RateMeasured {
        sockets,
        payload,
        rate,
        broadcasts: published - warmed,
        deliveries,
        last_subscriber: last_subscriber(&times)?,
        cpu_us_per_delivery: cost.total_us() / deliveries.max(1) as f64,
        server_percent: cost.busy_percent(),
        others_percent: cost.others_percent,
        tally,
        stalled,
        recorded,
    })
}

/// From when each broadcast was due to when the last reader of all threads had it; those that one lacks are left out
/// (they are counted as lost).
fn last_subscriber(times: &[Vec<(u64, u64)>]) -> Outcome<Quantiles> {
    let mut histogram = report::microseconds()?;
    let Some((first, others)) = times.split_first() else { return Ok(Quantiles::default()) };
    for (number, &(due_us, done_us)) in first.iter().enumerate() {
        let done = others.iter().map(|part| part.get(number).map_or(0, |&(_, done_us)| done_us));
        let last = done.fold(Some(done_us).filter(|&at| at > 0), |last, at| {
            last.filter(|_| at > 0).map(|last| last.max(at))
        });
        if let Some(last) = last {
            histogram.saturating_record(last.saturating_sub(due_us));
        }
    }
    Ok(Quantiles::of(&histogram))
}

/// Waits until every reader has every broadcast; `None` when nothing comes any more.
pub(crate) fn drain(
    crowd: &Crowd,
    published: u32,
    sockets: usize,
    watch: &mut dyn FnMut() -> Outcome,
) -> Outcome<Option<()>> {
    let wanted = u64::from(published) * sockets as u64;
    let mut last = (0, Instant::now());
    loop {
        let delivered = crowd.each(|_, swarm| Ok(swarm.delivered()))?.iter().sum::<u64>();
        if delivered >= wanted {
            return Ok(Some(()));
        }
        if delivered != last.0 {
            last = (delivered, Instant::now());
        } else if last.1.elapsed() > STALL {
            return Ok(None);
        }
        watch()?;
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Publishes by the clock, whatever the server does: a late broadcast is stamped with the time it was due.
pub(crate) fn publish_at_rate(
    swarm: &mut Swarm,
    rate: f64,
    payload: usize,
    seconds: f64,
    watch: &mut dyn FnMut(Instant) -> Outcome,
) -> Outcome {
    let count = (rate * seconds).max(1.0) as u64;
    by_the_clock("broadcasts", swarm, rate, count, &mut |swarm, due_us| {
        watch(Instant::now())?;
        if let Some(due_us) = due_us { swarm.publish(1, payload, due_us) } else { Ok(()) }
    })
}

/// Calls `act` with the time each of `count` things is due, `rate` a second; with `None` now and then between them.
pub(crate) fn by_the_clock(
    what: &str,
    swarm: &mut Swarm,
    rate: f64,
    count: u64,
    act: &mut dyn FnMut(&mut Swarm, Option<u64>) -> Outcome,
) -> Outcome {
    let (start, start_us) = (Instant::now(), swarm.now_us());
    let bar = report::progress(what, count);
    for number in 0..count {
        let due = Duration::from_secs_f64(number as f64 / rate);
        loop {
            act(swarm, None)?;
            let Some(left) = due.checked_sub(start.elapsed()) else { break };
            // The last millisecond is spent polling, or every broadcast would be late by half of one.
            // Never below 0, which would be to wait for ever.
            swarm.poll((i32::try_from(left.as_millis())? - 1).max(0))?;
        }
        act(swarm, Some(start_us + due.as_micros() as u64))?;
        bar.set_position(number + 1);
    }
    bar.finish_and_clear();
    Ok(())
}
