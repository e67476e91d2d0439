//! More connections than one descriptor table holds: all joined, and a broadcast reaches every one.
//!
//! The limit of descriptors is one of a table, not of a process. This client gives each of its threads a table of its own; sockring
//! keeps its sockets in its rings' tables (direct descriptors), each of which may be as large as the limit.

use std::fs;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::crowd::{Crowd, CrowdArgs, Shape};
use crate::meter::{Memory, Meter};
use crate::page::{Outputs, Page};
use crate::rate::{self, RateLoad, RateMeasured};
use crate::report::{self, Quantiles, Table};
use crate::target::TargetArgs;
use crate::{Outcome, fail, fanout};

/// What a connection takes at most, both ends together: 8.7 KB of the kernel's memory were measured, and user space
/// of both sides on top.
const BYTES_PER_CONNECTION: u64 = 14 << 10;
/// What the machine keeps for others.
const BYTES_SPARE: u64 = 2 << 30;
/// Connections of a thread, below the usual hard limit of 20,000 descriptors.
const PER_THREAD: usize = 18_000;
/// The server comes to rest before its memory is read.
const SETTLE: Duration = Duration::from_secs(2);

/// `load-tests hold`
#[derive(Args, Debug)]
pub(crate) struct HoldArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Readers
    #[arg(long, default_value_t = 100_000)]
    sockets: usize,
    /// Threads of this client, each with a descriptor table of its own; by default one for 18,000 sockets
    #[arg(long)]
    threads: Option<u32>,
    /// Connects outstanding at once, over all threads
    #[arg(long, default_value_t = 512)]
    in_flight: usize,
    /// Seconds that connecting may take
    #[arg(long, default_value_t = 240)]
    limit: u64,
    /// Broadcasts to all, one every two seconds
    #[arg(long, default_value_t = 5)]
    broadcasts: u32,
    /// Bytes of a broadcast's payload
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Seconds of idling afterwards; more than 25 include a heartbeat of each
    #[arg(long, default_value_t = 30)]
    wait: u64,
    #[command(flatten)]
    outputs: Outputs,
}

#[derive(Serialize)]
struct HoldReport {
    server: String,
    sockets: usize,
    threads: u32,
    joined: usize,
    all_joined_s: f64,
    connect: Quantiles,
    cpu_us_per_connection: f64,
    server_before: Memory,
    server_after: Memory,
    server_rss_bytes_per_connection: f64,
    /// The kernel's slabs, both ends of a connection together.
    slab_bytes_per_connection: f64,
    /// What the machine has less, both ends and both programs.
    machine_bytes_per_connection: f64,
    broadcasts: RateMeasured,
    /// Engine.IO pings that were answered.
    heartbeats: u64,
    idle_percent: f64,
    closed: u64,
    passed: bool,
}

/// Runs the scenario.
pub(crate) fn run(args: &HoldArgs) -> Outcome<bool> {
    args.target.cores.pin_client();
    let need = args.sockets as u64 * BYTES_PER_CONNECTION + BYTES_SPARE;
    let have = meminfo("MemAvailable:")?;
    if have < need {
        return fail(format!("{} MiB are available and {} MiB may be needed", have >> 20, need >> 20));
    }
    let threads = args.threads.unwrap_or(args.sockets.div_ceil(PER_THREAD) as u32);
    let server = args.target.start()?;
    let meter = Meter::new(server.pid, &args.target.cores.server_cores);
    let shape = Shape { own_tables: true, ..Shape::default() };
    let crowd_args = CrowdArgs::of(args.sockets, threads, args.in_flight);
    let crowd = Crowd::new(&server, &crowd_args, &args.target.cores, &shape)?;
    std::thread::sleep(SETTLE);
    let (slab, available) = (meminfo("Slab:")?, meminfo("MemAvailable:")?);
    let server_before = Memory::of(server.pid)?;
    let before = meter.sample()?;
    let connected = crowd.connect(Duration::from_secs(args.limit))?;
    let connecting = meter.between(&before, &meter.sample()?);
    eprintln!("all are in after {:.1} s", connected.wall.as_secs_f64());
    std::thread::sleep(SETTLE);
    let each = args.sockets.max(1) as f64;
    let (slab_after, available_after) = (meminfo("Slab:")?, meminfo("MemAvailable:")?);
    let server_after = Memory::of(server.pid)?;
    // The first one is a warm-up.
    let seconds = f64::from(args.broadcasts) * 2.0;
    let load = RateLoad { rate: 0.5, payload: args.payload, seconds };
    let broadcasts = rate::measure(&crowd, &meter, args.sockets, load)?;
    let idle_before = meter.sample()?;
    idle(args.wait);
    let idling = meter.between(&idle_before, &meter.sample()?);
    let mut tally = crate::tally::Tally::default();
    crowd.each(|_, swarm| Ok(swarm.tally()))?.iter().for_each(|part| tally.add(part));
    let joined = crowd.each(|_, swarm| Ok(swarm.ready()))?.iter().sum::<usize>() - 1;
    drop(crowd);
    server.stop()?;
    let report = HoldReport {
        server: args.target.name(),
        sockets: args.sockets,
        threads,
        joined,
        all_joined_s: connected.wall.as_secs_f64(),
        connect: Quantiles::of(&connected.latency_us),
        cpu_us_per_connection: connecting.total_us() / each,
        server_rss_bytes_per_connection: (server_after.rss_bytes as f64 - server_before.rss_bytes as f64)
            / each,
        server_before,
        server_after,
        slab_bytes_per_connection: (slab_after as f64 - slab as f64) / each,
        machine_bytes_per_connection: (available as f64 - available_after as f64) / each,
        passed: broadcasts.is_clean() && joined == args.sockets && tally.closed == 0,
        broadcasts,
        heartbeats: tally.heartbeats,
        idle_percent: idling.busy_percent(),
        closed: tally.closed,
    };
    finish(args, &report)?;
    Ok(report.passed)
}

fn idle(seconds: u64) {
    let bar = report::progress("idle, s", seconds);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(200));
        bar.set_position(start.elapsed().as_secs());
    }
    bar.finish_and_clear();
}

fn finish(args: &HoldArgs, report: &HoldReport) -> Outcome {
    let title = format!("hold: {} sockets, {} threads of the client", report.sockets, report.threads);
    println!("{title}\n");
    let mut table = Table::new(&[report.server.as_str(), ""]);
    let mut line = |what: &str, value: String| table.row(vec![what.to_owned(), value]);
    line("joined", report.joined.to_string());
    line("all joined after", format!("{:.1} s", report.all_joined_s));
    line("server CPU for each", format!("{:.1} µs", report.cpu_us_per_connection));
    line("resident memory of the server", format!("{} MiB", report.server_after.rss_bytes >> 20));
    line("of it for each connection", format!("{:.0} bytes", report.server_rss_bytes_per_connection));
    line("descriptors in the server's table", report.server_after.descriptors.to_string());
    line("kernel's slabs, both ends", format!("{:.0} bytes", report.slab_bytes_per_connection));
    line(
        "the machine's, both ends and programs",
        format!("{:.0} bytes", report.machine_bytes_per_connection),
    );
    let RateMeasured { deliveries, broadcasts, last_subscriber, cpu_us_per_delivery, tally, .. } =
        &report.broadcasts;
    line("broadcasts", format!("{broadcasts}, {deliveries} deliveries"));
    line("until the last has it, p50/p99/max", format!("{} ms", last_subscriber.text()));
    line("server CPU of a delivery", format!("{cpu_us_per_delivery:.2} µs"));
    line("lost/dup/order", fanout::loss_text(tally));
    line("heartbeats answered", report.heartbeats.to_string());
    line("server while idle", format!("{:.2} % of a core", report.idle_percent));
    line("closed", report.closed.to_string());
    table.print();
    println!("\n{}  all in, all reached, none closed", report::verdict(report.passed));
    args.outputs.write(report, || Page::new(&title).table(&table).recorded(&report.broadcasts.recorded))
}

/// A line of the machine's memory, in bytes.
fn meminfo(name: &str) -> Outcome<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let kib: u64 = line.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(kib * 1024)
}
