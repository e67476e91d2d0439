//! All connect at once, as after a restart.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::client::Swarm;
use crate::meter::Meter;
use crate::report::{self, Quantiles, Table};
use crate::target::TargetArgs;
use crate::{Outcome, fanout};

/// `load-tests storm`
#[derive(Args, Debug)]
pub(crate) struct StormArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Connections
    #[arg(long, default_value_t = 10_000)]
    sockets: usize,
    /// Seconds until which all must be in
    #[arg(long, default_value_t = 60)]
    limit: u64,
    /// Write the report here
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct StormReport {
    server: String,
    sockets: usize,
    joined: usize,
    failed: usize,
    all_joined_s: f64,
    handshake: Quantiles,
    cpu_us_per_connection: f64,
    errors: Vec<String>,
}

/// Runs the scenario.
pub(crate) fn run(args: &StormArgs) -> Outcome<bool> {
    args.target.cores.pin_client();
    let server = args.target.start()?;
    let meter = Meter::new(server.pid, &args.target.cores.server_cores);
    let limit = Duration::from_secs(args.limit);
    let mut swarm = Swarm::begun(&server, args.sockets, true, limit)?;
    let start = meter.sample()?;
    let bar = report::progress("connecting", args.sockets as u64);
    let connected =
        swarm.connect(0..args.sockets, args.sockets, limit, &mut |ready| bar.set_position(ready as u64))?;
    bar.finish_and_clear();
    fanout::rest(&mut swarm, Duration::from_millis(50))?;
    let cost = meter.between(&start, &meter.sample()?);
    let report = StormReport {
        server: args.target.name(),
        sockets: args.sockets,
        joined: swarm.ready() - usize::from(swarm.is_open(swarm.publisher())),
        failed: connected.failed,
        all_joined_s: connected.wall.as_secs_f64(),
        handshake: Quantiles::of(&connected.latency_us),
        cpu_us_per_connection: cost.total_us() / args.sockets.max(1) as f64,
        errors: swarm.errors().to_vec(),
    };
    drop(swarm);
    server.stop()?;

    println!("storm: {} connections at once\n", report.sockets);
    let mut table = Table::new(&[
        "server",
        "joined",
        "failed",
        "all joined s",
        "connect to join p50/p99/max ms",
        "server µs/connection",
    ]);
    table.row(vec![
        report.server.clone(),
        report.joined.to_string(),
        report.failed.to_string(),
        format!("{:.2}", report.all_joined_s),
        report.handshake.text(),
        format!("{:.1}", report.cpu_us_per_connection),
    ]);
    table.print();
    for error in &report.errors {
        println!("{error}");
    }
    if let Some(path) = &args.json {
        report::write_json(path, &report)?;
    }
    Ok(report.failed == 0 && report.joined == report.sockets)
}
