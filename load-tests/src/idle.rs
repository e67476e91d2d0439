//! What an idle connection weighs, and what it costs to take it in.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::client::Swarm;
use crate::meter::{Memory, Meter};
use crate::report::{self, Quantiles, Table};
use crate::target::TargetArgs;
use crate::{Outcome, fanout};

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
    /// Write the report here
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct IdleReport {
    server: String,
    sockets: usize,
    connects_per_s: f64,
    connect_latency: Quantiles,
    cpu_us_per_connection: f64,
    softirq_us_per_connection: f64,
    idle_percent: f64,
    before: Memory,
    after: Memory,
    rss_bytes_per_connection: f64,
    pss_bytes_per_connection: f64,
    anonymous_bytes_per_connection: f64,
    closed: u64,
}

/// Runs the scenario.
pub(crate) fn run(args: &IdleArgs) -> Outcome<bool> {
    args.target.cores.pin_client();
    let server = args.target.start()?;
    let meter = Meter::new(server.pid, &args.target.cores.server_cores);
    let limit = Duration::from_secs(args.limit);
    let mut swarm = Swarm::begun(&server, args.sockets, false, limit)?;
    fanout::rest(&mut swarm, Duration::from_millis(500))?;
    let before = Memory::of(server.pid)?;
    let start = meter.sample()?;
    let bar = report::progress("connecting", args.sockets as u64);
    let connected =
        swarm.connect(0..args.sockets, args.in_flight, limit, &mut |ready| bar.set_position(ready as u64))?;
    bar.finish_and_clear();
    fanout::rest(&mut swarm, Duration::from_millis(100))?;
    let joined = meter.sample()?;
    fanout::rest(&mut swarm, Duration::from_secs(args.wait))?;
    let idled = meter.sample()?;
    let after = Memory::of(server.pid)?;

    let each = args.sockets.max(1) as f64;
    let per = |before: u64, after: u64| (after as f64 - before as f64) / each;
    let (connecting, idling) = (meter.between(&start, &joined), meter.between(&joined, &idled));
    let report = IdleReport {
        server: args.target.name(),
        sockets: args.sockets,
        connects_per_s: each / connected.wall.as_secs_f64(),
        connect_latency: Quantiles::of(&connected.latency_us),
        cpu_us_per_connection: connecting.total_us() / each,
        softirq_us_per_connection: connecting.softirq_us / each,
        idle_percent: idling.busy_percent(),
        before,
        after,
        rss_bytes_per_connection: per(before.rss_bytes, after.rss_bytes),
        pss_bytes_per_connection: per(before.pss_bytes, after.pss_bytes),
        anonymous_bytes_per_connection: per(before.anonymous_bytes, after.anonymous_bytes),
        closed: swarm.tally().closed,
    };
    let passed = connected.failed == 0 && report.closed == 0 && swarm.ready() == args.sockets + 1;
    print(&report);
    if !passed {
        println!("\nFAIL  {} did not get in, {} were closed", connected.failed, report.closed);
        println!("      {}", swarm.errors().join("; "));
    }
    drop(swarm);
    server.stop()?;
    if let Some(path) = &args.json {
        report::write_json(path, &report)?;
    }
    Ok(passed)
}

fn print(report: &IdleReport) {
    println!("idle: {}, {} connections in the namespace, in no room\n", report.server, report.sockets);
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
    table.print();
    println!(
        "\n{} connects/s, {:.1} µs of server CPU each ({:.1} of it ksoftirqd), latency p50/p99/max {} ms",
        report::thousands(report.connects_per_s),
        report.cpu_us_per_connection,
        report.softirq_us_per_connection,
        report.connect_latency.text()
    );
    println!("{:.2} % of a core while idle", report.idle_percent);
}
