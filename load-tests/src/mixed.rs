//! One room with clients of both transports: what those that poll wait, and what they do to the others.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::crowd::{Crowd, CrowdArgs, Shape};
use crate::meter::Meter;
use crate::page::{Outputs, Page};
use crate::polling::{Pollers, PollersPlan};
use crate::rate::{self, RateLoad, RateMeasured};
use crate::record::Recorded;
use crate::report::Table;
use crate::tally::Tally;
use crate::target::TargetArgs;
use crate::{Outcome, fail, fanout};

/// Until when all must be connected.
const CONNECT_LIMIT: Duration = Duration::from_secs(120);

/// `load-tests mixed`
#[derive(Args, Debug)]
#[command(mut_arg("rate", |arg| arg.default_value("20")))]
pub(crate) struct MixedArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Readers over WebSocket
    #[arg(long, default_value_t = 1000)]
    sockets: usize,
    /// Readers over long-polling
    #[arg(long, default_value_t = 200)]
    polling: usize,
    #[command(flatten)]
    load: RateLoad,
    #[command(flatten)]
    outputs: Outputs,
}

#[derive(Serialize)]
struct MixedReport {
    server: String,
    websocket: RateMeasured,
    polling_clients: usize,
    polling: Recorded,
    polling_tally: Tally,
    /// Requests of the polling clients.
    requests: u64,
    errors: Vec<String>,
    passed: bool,
}

/// Runs the scenario.
pub(crate) fn run(args: &MixedArgs) -> Outcome<bool> {
    args.target.cores.pin_client();
    let server = args.target.start()?;
    if server.tls {
        return fail("the polling clients do not speak TLS".into());
    }
    let shape = Shape::default();
    let crowd_args = CrowdArgs::of(args.sockets, 1, 128);
    let crowd = Crowd::new(&server, &crowd_args, &args.target.cores, &shape)?;
    crowd.connect(CONNECT_LIMIT)?;
    let core = args.target.cores.client_core.first().copied().unwrap_or_default();
    let pollers = Pollers::start(PollersPlan {
        addr: server.addr,
        clients: args.polling,
        epoch: shape.epoch,
        core,
        limit: CONNECT_LIMIT,
    })?;
    let meter = Meter::new(server.pid, &args.target.cores.server_cores);
    pollers.reset_latencies();
    let websocket = rate::measure(&crowd, &meter, args.sockets, args.load)?;
    let published = crowd.first(|swarm| Ok(swarm.broadcasts().published()), &mut || Ok(()))?;
    let polled = pollers.finish(published)?;
    drop(crowd);
    server.stop()?;
    let report = MixedReport {
        server: args.target.name(),
        polling_clients: args.polling,
        polling: Recorded::new(&polled.latency, Vec::new()),
        polling_tally: polled.tally,
        requests: polled.requests,
        passed: websocket.is_clean() && polled.tally.is_clean(),
        errors: polled.errors,
        websocket,
    };
    finish(args, &report)?;
    Ok(report.passed)
}

fn finish(args: &MixedArgs, report: &MixedReport) -> Outcome {
    let title = format!(
        "mixed: {} sockets over WebSocket and {} over polling, {}/s for {} s",
        args.sockets, args.polling, args.load.rate, args.load.seconds
    );
    println!("{title}\n{}\n", report.server);
    let mut table =
        Table::new(&["transport", "deliveries", "latency p50/p90/p99/p99.9/max ms", "lost/dup/order"]);
    let rows = [
        ("WebSocket", &report.websocket.recorded, &report.websocket.tally),
        ("polling", &report.polling, &report.polling_tally),
    ];
    for (name, recorded, tally) in rows {
        table.row(vec![
            name.to_owned(),
            tally.delivered.to_string(),
            recorded.latency.long_text(),
            fanout::loss_text(tally),
        ]);
    }
    table.print();
    println!(
        "\n{} requests of the polling clients; server {:.0} % of a core, others {:.0} %",
        report.requests, report.websocket.server_percent, report.websocket.others_percent
    );
    for error in &report.errors {
        println!("{error}");
    }
    args.outputs.write(report, || {
        let page = Page::new(&title).table(&table).text("WebSocket:").recorded(&report.websocket.recorded)?;
        page.text("Polling:").recorded(&report.polling)
    })
}
