//! All connect at once, as after a restart, beside sockets that stay: do they get in, and do those that live suffer?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::client::Swarm;
use crate::crowd::{Crowd, CrowdArgs, Shape};
use crate::meter::Meter;
use crate::page::{Outputs, Page};
use crate::record::{Recorded, Sampler, Series};
use crate::report::{self, Quantiles, Table};
use crate::target::TargetArgs;
use crate::{Outcome, fanout};

/// A live socket echoes this often.
const PROBES_PER_S: f64 = 100.0;
/// How long the live sockets are watched before the storm.
const CALM: Duration = Duration::from_secs(2);
/// How long the last echoes may take.
const HOME_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of an echo's payload.
const PROBE_BYTES: usize = 64;
/// With --check: the longest wait may be so many times what the server's work for all explains, and this longer.
const EXPLAINED_TIMES: f64 = 3.0;
const EXPLAINED_SLACK_MS: f64 = 1000.0;

/// `load-tests storm`
#[derive(Args, Debug)]
pub(crate) struct StormArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Connections
    #[arg(long, default_value_t = 10_000)]
    sockets: usize,
    /// Let them be connected already, and lose their connections all at once
    #[arg(long)]
    reconnect: bool,
    /// Sockets that stay, and echo meanwhile
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    live: u32,
    /// Threads of this client for the storm
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// Seconds until which all must be in
    #[arg(long, default_value_t = 60)]
    limit: u64,
    /// Exit with 1 if somebody waited for longer than the server's work for all explains
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    outputs: Outputs,
}

#[derive(Serialize)]
struct Live {
    sockets: u32,
    /// Echoes before the storm, from when they were due.
    before: Quantiles,
    /// And during it.
    during: Recorded,
    /// Echoes that did not come home.
    lost: u64,
    /// Engine.IO pings that were answered.
    heartbeats: u64,
    closed: u64,
}

#[derive(Serialize)]
struct StormReport {
    server: String,
    sockets: usize,
    reconnect: bool,
    joined: usize,
    failed: usize,
    all_joined_s: f64,
    handshake: Quantiles,
    cpu_us_per_connection: f64,
    /// The server's work for all of them: who comes last waits for so long.
    explained_ms: f64,
    others_percent: f64,
    live: Live,
    errors: Vec<String>,
}

impl StormReport {
    fn all_got_in(&self) -> bool {
        self.failed == 0 && self.joined == self.sockets && self.live.closed == 0 && self.live.lost == 0
    }

    fn is_explained(&self) -> bool {
        self.handshake.max_ms <= self.explained_ms * EXPLAINED_TIMES + EXPLAINED_SLACK_MS
    }
}

/// Runs the scenario.
pub(crate) fn run(args: &StormArgs) -> Outcome<bool> {
    args.target.cores.pin_client();
    let server = args.target.start()?;
    let meter = Meter::new(server.pid, &args.target.cores.server_cores);
    let limit = Duration::from_secs(args.limit);
    // The live ones come first: what the server sets up once is not charged to the storm.
    let shape = |join| Shape { join, own_tables: true, ..Shape::default() };
    let live_args = CrowdArgs::of(args.live as usize, 1, 64);
    let live = Crowd::new(&server, &live_args, &args.target.cores, &shape(false))?;
    live.connect(limit)?;
    let storm_args = CrowdArgs::of(args.sockets, args.threads, args.sockets);
    let storm = Crowd::new(&server, &storm_args, &args.target.cores, &shape(true))?;
    if args.reconnect {
        storm.connect(limit)?;
    }
    let before = probe(&live, || {
        std::thread::sleep(CALM);
        Ok(())
    })?;
    let start = meter.sample()?;
    let mut sampler = Sampler::new(&meter)?;
    let mut connected = None;
    let during = probe(&live, || {
        if args.reconnect {
            storm.each(|_, swarm| {
                swarm.cut(0..swarm.publisher() + 1);
                Ok(())
            })?;
        }
        connected = Some(storm.try_connect_watching(limit, &mut || sampler.tick())?);
        Ok(())
    })?;
    let Some(connected) = connected else { return crate::fail("the storm did not begin".into()) };
    storm.each(|_, swarm| fanout::rest(swarm, Duration::from_millis(50)))?;
    let cost = meter.between(&start, &meter.sample()?);
    let lost = come_home(&live)?;
    let tally = live.first(|swarm| Ok(swarm.tally()), &mut || Ok(()))?;
    let ready = storm.each(|_, swarm| Ok((swarm.ready(), swarm.errors().to_vec())))?;
    let report = StormReport {
        server: args.target.name(),
        sockets: args.sockets,
        reconnect: args.reconnect,
        // The publisher of the storm's crowd is in as well.
        joined: ready.iter().map(|(ready, _)| ready).sum::<usize>().saturating_sub(1),
        failed: connected.failed,
        all_joined_s: connected.wall.as_secs_f64(),
        handshake: Quantiles::of(&connected.latency_us),
        cpu_us_per_connection: cost.total_us() / args.sockets.max(1) as f64,
        explained_ms: cost.total_us() / 1e3,
        others_percent: cost.others_percent,
        live: Live {
            sockets: args.live,
            before: Quantiles::of(before.all()),
            during: Recorded::new(&during, sampler.end()),
            lost,
            heartbeats: tally.heartbeats,
            closed: tally.closed,
        },
        errors: ready.into_iter().flat_map(|(_, errors)| errors).collect(),
    };
    drop((live, storm));
    server.stop()?;
    finish(args, &report)?;
    Ok(report.all_got_in() && (report.is_explained() || !args.check))
}

/// Lets the live sockets echo by the clock while `act` goes on, and returns how long their echoes took.
fn probe(live: &Crowd, act: impl FnOnce() -> Outcome) -> Outcome<Series> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let probing = live.begin(0, move |swarm| {
        swarm.reset_latencies();
        echo_by_the_clock(swarm, &stopped)
    })?;
    let acted = act();
    stop.store(true, Ordering::Relaxed);
    let probed = probing.recv_timeout(HOME_LIMIT);
    acted?;
    probed??;
    come_home(live)?;
    live.first(|swarm| Ok(swarm.latency().copy()), &mut || Ok(()))
}

fn echo_by_the_clock(swarm: &mut Swarm, stop: &AtomicBool) -> Outcome {
    swarm.run_echoes(PROBE_BYTES, 0);
    let (start, start_us, readers) = (Instant::now(), swarm.now_us(), swarm.publisher());
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let due = Duration::from_secs_f64(number as f64 / PROBES_PER_S);
        match due.checked_sub(start.elapsed()) {
            Some(left) => swarm.poll((i32::try_from(left.as_millis())? - 1).max(0))?,
            None => {
                // Round and round, so that each has at most a few under way.
                let reader = number as usize % readers;
                if swarm.is_open(reader) {
                    swarm.echo_once(reader, start_us + due.as_micros() as u64);
                }
                number += 1;
            }
        }
    }
    Ok(())
}

/// Waits for the echoes that are out, and says how many do not come.
fn come_home(live: &Crowd) -> Outcome<u64> {
    let start = Instant::now();
    loop {
        let out = live.first(|swarm| Ok(swarm.echoes().sent - swarm.echoes().answered), &mut || Ok(()))?;
        if out == 0 || start.elapsed() > HOME_LIMIT {
            return Ok(out);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn finish(args: &StormArgs, report: &StormReport) -> Outcome {
    let what = if report.reconnect { "reconnections" } else { "connections" };
    let title = format!("storm: {} {what} at once, beside {} live sockets", report.sockets, args.live);
    println!("{title}\n");
    let mut table = Table::new(&[
        "server",
        "joined",
        "failed",
        "all joined s",
        "connect to join p50/p99/max ms",
        "server µs/connection",
        "explained ms",
        "others %",
    ]);
    table.row(vec![
        report.server.clone(),
        report.joined.to_string(),
        report.failed.to_string(),
        format!("{:.2}", report.all_joined_s),
        report.handshake.text(),
        format!("{:.1}", report.cpu_us_per_connection),
        format!("{:.0}", report.explained_ms),
        format!("{:.0}", report.others_percent),
    ]);
    table.print();
    let live = &report.live;
    let mut living = Table::new(&["live sockets' echoes", "p50/p99/max ms", "lost", "closed", "heartbeats"]);
    living.row(vec!["before".to_owned(), live.before.text()]);
    living.row(vec![
        "during".to_owned(),
        live.during.latency.text(),
        live.lost.to_string(),
        live.closed.to_string(),
        live.heartbeats.to_string(),
    ]);
    println!();
    living.print();
    for error in &report.errors {
        println!("{error}");
    }
    println!("\n{}  all got in, and none of the live ones suffered more than delay", {
        report::verdict(report.all_got_in())
    });
    if args.check {
        println!(
            "{}  the longest wait {:.0} ms <= {EXPLAINED_TIMES} x {:.0} ms + {EXPLAINED_SLACK_MS} ms",
            report::verdict(report.is_explained()),
            report.handshake.max_ms,
            report.explained_ms
        );
    }
    args.outputs.write(report, || Page::new(&title).table(&table).table(&living).recorded(&live.during))
}
