//! One reader stops reading: what becomes of the others, and of the server's memory.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::client::{Plan, Swarm};
use crate::fanout;
use crate::meter;
use crate::rate::publish_at_rate;
use crate::report::{self, Quantiles, Table};
use crate::tally::Tally;
use crate::target::TargetArgs;
use crate::{Outcome, fail};

/// How often the server's memory is looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// How long the slow reader may read up at the end.
const CATCH_UP: Duration = Duration::from_secs(3);
/// Allowed on top of the ratio: what a busy machine does to either run.
const P99_SLACK_MS: f64 = 10.0;
const MAX_SLACK_MS: f64 = 100.0;
/// Allowed ratio of latency with the slow reader to latency without.
const RATIO_MAX: f64 = 2.0;

/// `load-tests slow-reader`
#[derive(Args, Debug)]
pub(crate) struct SlowArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Readers in the room, the slow one among them
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..))]
    sockets: u32,
    /// Bytes of a broadcast's payload
    #[arg(long, default_value_t = 4096)]
    payload: usize,
    /// Broadcasts a second
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    /// Seconds of publishing
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// With --check: how much more the server may grow than without the slow reader. The default is the
    /// server's own limit for one client (4 MiB), and as much again for the allocator
    #[arg(long, default_value_t = 8.0)]
    growth_mib_max: f64,
    /// Exit with 1 if the others suffer or the server's memory grows
    #[arg(long)]
    check: bool,
    /// Write the report here
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Run {
    latency: Quantiles,
    rss_start_bytes: u64,
    rss_growth_bytes: u64,
    others: Tally,
    slow: Option<SlowEnd>,
}

#[derive(Serialize)]
struct SlowEnd {
    /// What it got after all, once it read again.
    tally: Tally,
    open: bool,
}

#[derive(Serialize)]
struct SlowReport {
    server: String,
    sockets: u32,
    payload: usize,
    rate: f64,
    seconds: f64,
    without: Run,
    with: Run,
    checks: Vec<(String, bool)>,
    passed: bool,
}

/// Runs the scenario: without a slow reader, then with one, each on a fresh server.
pub(crate) fn run(args: &SlowArgs) -> Outcome<bool> {
    args.target.cores.pin_client();
    let without = one_run(args, false)?;
    let with = one_run(args, true)?;
    let checks = judge(args, &without, &with);
    let passed = checks.iter().all(|(_, passed)| *passed);
    let report = SlowReport {
        server: args.target.name(),
        sockets: args.sockets,
        payload: args.payload,
        rate: args.rate,
        seconds: args.seconds,
        without,
        with,
        checks,
        passed,
    };
    print(&report);
    if let Some(path) = &args.json {
        report::write_json(path, &report)?;
    }
    Ok(passed || !args.check)
}

fn one_run(args: &SlowArgs, with_slow: bool) -> Outcome<Run> {
    let server = args.target.start()?;
    let sockets = args.sockets as usize;
    // In the middle: a server that goes through its readers in order has some before it and some behind.
    let slow = with_slow.then_some(sockets / 2);
    let plan = Plan { slow, time_deliveries: true, ..Plan::new(&server, sockets) };
    let mut swarm = Swarm::new(plan)?;
    if swarm.connect(0..sockets + 1, 64, Duration::from_secs(30), &mut |_| {})?.failed > 0 {
        return fail(format!("not all got in: {}", swarm.errors().join("; ")));
    }
    // A second of warm-up with everybody reading.
    publish_at_rate(&mut swarm, args.rate, args.payload, 1.0, &mut |_| Ok(()))?;
    fanout::await_all(&mut swarm)?;
    swarm.reset_latencies();
    if let Some(slow) = slow {
        swarm.pause(slow)?;
    }
    let rss_start_bytes = meter::resident_bytes(server.pid)?;
    let mut rss_most_bytes = rss_start_bytes;
    let mut sampled = Instant::now();
    publish_at_rate(&mut swarm, args.rate, args.payload, args.seconds, &mut |now| {
        if now - sampled >= SAMPLE_EVERY {
            sampled = now;
            rss_most_bytes = rss_most_bytes.max(meter::resident_bytes(server.pid)?);
        }
        Ok(())
    })?;
    fanout::await_all(&mut swarm)?;
    rss_most_bytes = rss_most_bytes.max(meter::resident_bytes(server.pid)?);
    let latency = Quantiles::of(swarm.latency().all());
    let slow = match slow {
        Some(slow) => {
            swarm.resume(slow)?;
            fanout::rest(&mut swarm, CATCH_UP)?;
            Some(SlowEnd { tally: swarm.slow_tally(), open: swarm.is_open(slow) })
        }
        None => None,
    };
    let others = swarm.tally();
    drop(swarm);
    server.stop()?;
    Ok(Run { latency, rss_start_bytes, rss_growth_bytes: rss_most_bytes - rss_start_bytes, others, slow })
}

fn judge(args: &SlowArgs, without: &Run, with: &Run) -> Vec<(String, bool)> {
    let at_most = |what: &str, value: f64, limit: f64, unit: &str| {
        (format!("{what} {value:.1} {unit} <= {limit:.1} {unit}"), value <= limit)
    };
    let mib = |run: &Run| run.rss_growth_bytes as f64 / f64::from(1 << 20);
    vec![
        at_most("others' p99", with.latency.p99_ms, without.latency.p99_ms * RATIO_MAX + P99_SLACK_MS, "ms"),
        at_most("others' max", with.latency.max_ms, without.latency.max_ms * RATIO_MAX + MAX_SLACK_MS, "ms"),
        at_most("server's growth", mib(with), mib(without) + args.growth_mib_max, "MiB"),
        ("the others got everything, once and in order".to_owned(), {
            without.others.is_clean() && with.others.is_clean()
        }),
    ]
}

fn print(report: &SlowReport) {
    println!(
        "slow-reader: {}, {} readers, {} bytes, {}/s for {} s ({:.1} MiB to each)\n",
        report.server,
        report.sockets,
        report.payload,
        report.rate,
        report.seconds,
        report.rate * report.seconds * report.payload as f64 / f64::from(1 << 20)
    );
    let mut table =
        Table::new(&["run", "latency p50/p99/max ms", "RSS at start", "growth", "lost/dup/order"]);
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    for (name, run) in [("without", &report.without), ("with", &report.with)] {
        table.row(vec![
            name.to_owned(),
            run.latency.text(),
            mib(run.rss_start_bytes),
            mib(run.rss_growth_bytes),
            fanout::loss_text(&run.others),
        ]);
    }
    table.print();
    if let Some(SlowEnd { tally, open }) = &report.with.slow {
        println!(
            "\nthe slow reader, reading again: {}, got {} deliveries, lost/dup/order {}",
            if *open { "still connected" } else { "disconnected by the server" },
            tally.delivered,
            fanout::loss_text(tally)
        );
    }
    println!();
    for (what, passed) in &report.checks {
        println!("{}  {what}", report::verdict(*passed));
    }
}
