//! What an idle connection weighs, and what it costs to take it in.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::client::{ROOM, Swarm};
use crate::meter::{Memory, Meter};
use crate::page::{Outputs, Page};
use crate::record::{Recorded, Sampler};
use crate::report::{self, Quantiles, Table};
use crate::target::{Server, TargetArgs};
use crate::{Outcome, fanout};

/// How often CPU and memory may be looked at while all idle.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// `load-tests idle`
#[derive(Args, Debug)]
pub(crate) struct IdleArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Connections
    #[arg(long, default_value_t = 15_000)]
    sockets: usize,
    /// Connects outstanding at once
    #[arg(long, default_value_t = 128)]
    in_flight: usize,
    /// Seconds of idling before the memory is read
    #[arg(long, default_value_t = 5)]
    wait: u64,
    /// Seconds that connecting may take
    #[arg(long, default_value_t = 120)]
    limit: u64,
    /// Let all join a room once they are in
    #[arg(long)]
    join: bool,
    #[command(flatten)]
    outputs: Outputs,
}

/// What to connect, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IdleLoad {
    pub(crate) sockets: usize,
    pub(crate) in_flight: usize,
    pub(crate) join: bool,
    /// Until when all must be in.
    pub(crate) limit: Duration,
    /// Idling before the memory is read.
    pub(crate) wait: Duration,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct IdleReport {
    server: String,
    sockets: usize,
    connects_per_s: f64,
    connect_latency: Quantiles,
    pub(crate) cpu_us_per_connection: f64,
    softirq_us_per_connection: f64,
    /// Of joining the room and acknowledging it, if all did.
    cpu_us_per_join: Option<f64>,
    /// Others on the server's cores while all connected: noise.
    pub(crate) others_percent: f64,
    idle_percent: f64,
    before: Memory,
    after: Memory,
    pub(crate) rss_bytes_per_connection: f64,
    pss_bytes_per_connection: f64,
    anonymous_bytes_per_connection: f64,
    closed: u64,
    errors: Vec<String>,
    /// Latency of connects, and what server and client used.
    recorded: Recorded,
    /// Whether all got in and stayed.
    pub(crate) passed: bool,
}

/// Runs the scenario.
pub(crate) fn run(args: &IdleArgs) -> Outcome<bool> {
    args.target.cores.pin_client();
    let server = args.target.start()?;
    let meter = Meter::new(server.pid, &args.target.cores.server_cores);
    let IdleArgs { sockets, in_flight, join, .. } = *args;
    let (limit, wait) = (Duration::from_secs(args.limit), Duration::from_secs(args.wait));
    let load = IdleLoad { sockets, in_flight, join, limit, wait };
    let report = measure(&args.target.name(), &server, &meter, load)?;
    let (title, table) = (title(&report, join), table(&report));
    print(&report, &title, &table);
    if !report.passed {
        println!("\nFAIL  not all got in and stayed, {} were closed", report.closed);
        println!("      {}", report.errors.join("; "));
    }
    server.stop()?;
    args.outputs.write(&report, || {
        let page = Page::new(&title).table(&table).text("Latencies are those of connecting.");
        page.recorded(&report.recorded)
    })?;
    Ok(report.passed)
}

/// Connects all, lets them idle, and reads the server's memory before and after.
pub(crate) fn measure(name: &str, server: &Server, meter: &Meter, load: IdleLoad) -> Outcome<IdleReport> {
    let IdleLoad { sockets, in_flight, join, limit, wait } = load;
    let mut swarm = Swarm::begun(server, sockets, false, limit)?;
    fanout::rest(&mut swarm, Duration::from_millis(500))?;
    let before = Memory::of(server.pid)?;
    let start = meter.sample()?;
    let bar = report::progress("connecting", sockets as u64);
    let (mut sampler, mut sampled) = (Sampler::new(meter)?, Ok(()));
    let connected = swarm.connect(0..sockets, in_flight, limit, &mut |ready| {
        bar.set_position(ready as u64);
        if sampled.is_ok() {
            sampled = sampler.tick();
        }
    })?;
    sampled?;
    bar.finish_and_clear();
    fanout::rest(&mut swarm, Duration::from_millis(100))?;
    let joined = meter.sample()?;
    let all_joined = !join || join_all(&mut swarm, sockets, limit)?;
    fanout::rest(&mut swarm, Duration::from_millis(100))?;
    let settled = meter.sample()?;
    let resting = Instant::now();
    while let Some(left) = wait.checked_sub(resting.elapsed()) {
        fanout::rest(&mut swarm, left.min(LOOK_EVERY))?;
        sampler.tick()?;
    }
    let idled = meter.sample()?;
    let after = Memory::of(server.pid)?;

    let each = sockets.max(1) as f64;
    let per = |before: u64, after: u64| (after as f64 - before as f64) / each;
    let (connecting, idling) = (meter.between(&start, &joined), meter.between(&settled, &idled));
    let closed = swarm.tally().closed;
    Ok(IdleReport {
        server: name.to_owned(),
        sockets,
        connects_per_s: each / connected.wall.as_secs_f64(),
        connect_latency: Quantiles::of(&connected.latency_us),
        cpu_us_per_connection: connecting.total_us() / each,
        softirq_us_per_connection: connecting.softirq_us / each,
        cpu_us_per_join: join.then(|| meter.between(&joined, &settled).total_us() / each),
        others_percent: connecting.others_percent,
        idle_percent: idling.busy_percent(),
        before,
        after,
        rss_bytes_per_connection: per(before.rss_bytes, after.rss_bytes),
        pss_bytes_per_connection: per(before.pss_bytes, after.pss_bytes),
        anonymous_bytes_per_connection: per(before.anonymous_bytes, after.anonymous_bytes),
        closed,
        errors: swarm.errors().to_vec(),
        recorded: Recorded::of(&connected.latency_us, sampler.end()),
        passed: connected.failed == 0 && closed == 0 && all_joined && swarm.ready() == sockets + 1,
    })
}

/// Lets all readers join the room, and waits for the answers; false if some do not come.
fn join_all(swarm: &mut Swarm, sockets: usize, limit: Duration) -> Outcome<bool> {
    let (start, mut answered) = (Instant::now(), 0);
    for reader in 0..sockets {
        swarm.request(reader, &format!("421[\"join\",\"{ROOM}\"]"));
        // The answers are read between the requests.
        swarm.poll(0)?;
        answered += swarm.take_news().len();
    }
    while answered < sockets && start.elapsed() < limit {
        swarm.poll(100)?;
        answered += swarm.take_news().len();
    }
    Ok(answered == sockets)
}

fn title(report: &IdleReport, join: bool) -> String {
    let room = if join { "one room" } else { "no room" };
    format!("idle: {}, {} connections in the namespace, in {room}", report.server, report.sockets)
}

fn table(report: &IdleReport) -> Table {
    let mut table = Table::new(&["memory of the process", "before", "after", "bytes/connection"]);
    let kib = |bytes: u64| format!("{} KiB", bytes / 1024);
    let Memory { rss_bytes, pss_bytes, anonymous_bytes, descriptors } = report.before;
    let after = report.after;
    for (name, before, after, each) in [
        ("RSS", rss_bytes, after.rss_bytes, report.rss_bytes_per_connection),
        ("PSS", pss_bytes, after.pss_bytes, report.pss_bytes_per_connection),
        ("anonymous", anonymous_bytes, after.anonymous_bytes, report.anonymous_bytes_per_connection),
    ] {
        table.row(vec![name.to_owned(), kib(before), kib(after), format!("{each:.0}")]);
    }
    table.row(vec!["descriptors".to_owned(), descriptors.to_string(), after.descriptors.to_string()]);
    table
}

fn print(report: &IdleReport, title: &str, table: &Table) {
    println!("{title}\n");
    table.print();
    println!(
        "\n{} connects/s, {:.1} µs of server CPU each ({:.1} of it ksoftirqd), latency p50/p99/max {} ms",
        report::thousands(report.connects_per_s),
        report.cpu_us_per_connection,
        report.softirq_us_per_connection,
        report.connect_latency.text()
    );
    if let Some(join_us) = report.cpu_us_per_join {
        println!("{join_us:.1} µs of server CPU to join a room");
    }
    println!("{:.2} % of a core while idle", report.idle_percent);
}
