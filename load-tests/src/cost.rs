//! The acceptance run: what a delivery costs the server, against what it must cost.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::fanout::{self, Load, Measured};
use crate::meter::Meter;
use crate::page::{Outputs, Page};
use crate::report::{self, Table, median, minimum};
use crate::target::{Cores, Server};
use crate::{Outcome, fail};

/// One message at a time: at most this much of the floor's cost.
const W1_RATIO_MAX: f64 = 1.5;
/// Sixteen waiting messages joined: at most this share of what one at a time costs.
const W16_SHARE_MAX: f64 = 0.2;
/// Above this share of the server's core used by others, the figures are not worth much.
const NOISE_PERCENT: f64 = 5.0;
/// The window of the joined measurement.
const WINDOW: u32 = 16;

/// `load-tests fanout-cost`
#[derive(Args, Debug)]
pub(crate) struct CostArgs {
    /// Command that starts the server under test (`--port N` is appended)
    #[arg(long, default_value = "target/release/examples/fanout_server --workers 1")]
    server: String,
    /// Another server to measure in the same rounds, without any acceptance
    #[arg(long = "peer", value_name = "NAME=CMD")]
    peers: Vec<String>,
    /// Turns of each server
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Readers in the room
    #[arg(long, default_value_t = 5000)]
    sockets: usize,
    /// Bytes of a broadcast's payload
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Seconds that each measurement takes
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Connects outstanding at once
    #[arg(long, default_value_t = 128)]
    in_flight: usize,
    #[command(flatten)]
    cores: Cores,
    /// Exit with 1 if the acceptance fails
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    outputs: Outputs,
    /// Folder for the report, without `--json`
    #[arg(long, default_value = "load-tests/results")]
    results: PathBuf,
}

/// One server and what its rounds gave.
#[derive(Serialize)]
struct Contender {
    name: String,
    command: String,
    one: Vec<Measured>,
    sixteen: Vec<Measured>,
}

impl Contender {
    fn new(name: &str, command: &str) -> Self {
        Self { name: name.to_owned(), command: command.to_owned(), one: Vec::new(), sixteen: Vec::new() }
    }

    fn is_clean(&self) -> bool {
        self.one.iter().chain(&self.sixteen).all(Measured::is_clean)
    }
}

#[derive(Serialize)]
struct Acceptance {
    what: String,
    value: f64,
    limit: f64,
    passed: bool,
}

#[derive(Serialize)]
struct CostReport {
    sockets: usize,
    payload: usize,
    rounds: usize,
    contenders: Vec<Contender>,
    acceptance: Vec<Acceptance>,
    /// Whether every run of every server delivered all, once and in order.
    clean: bool,
    passed: bool,
}

fn costs(runs: &[Measured]) -> Vec<f64> {
    runs.iter().map(|run| run.cpu_us_per_delivery).collect()
}

/// Median of each round's ratio: what the machine does to one round it does to both.
fn ratio(runs: &[Measured], reference: &[Measured]) -> f64 {
    let ratios: Vec<f64> = runs
        .iter()
        .zip(reference)
        .map(|(run, reference)| run.cpu_us_per_delivery / reference.cpu_us_per_delivery)
        .collect();
    median(&ratios)
}

/// A result must not bear this project's name when something else was run in its place.
fn tested_name(command: &str) -> &'static str {
    let program = command.split_whitespace().next().unwrap_or_default();
    if program.rsplit('/').next() == Some("fanout_server") { "sockring" } else { "tested" }
}

/// Runs the scenario.
pub(crate) fn run(args: &CostArgs) -> Outcome<bool> {
    args.cores.pin_client();
    let mut contenders = vec![
        Contender::new("floor-single", "floor:single"),
        Contender::new("floor-joined", "floor:joined"),
        Contender::new(tested_name(&args.server), &args.server),
    ];
    for peer in &args.peers {
        let Some((name, command)) = peer.split_once('=') else {
            return fail(format!("`{peer}` is not NAME=CMD"));
        };
        contenders.push(Contender::new(name, command));
    }
    for round in 1..=args.rounds {
        for contender in &mut contenders {
            turn(args, contender)?;
            if let (Some(one), Some(sixteen)) = (contender.one.last(), contender.sixteen.last()) {
                eprintln!(
                    "round {round}/{}: {:<14} W=1 {:.2} µs, W={WINDOW} {:.2} µs a delivery, others {:.0} and {:.0} %",
                    args.rounds,
                    contender.name,
                    one.cpu_us_per_delivery,
                    sixteen.cpu_us_per_delivery,
                    one.others_percent,
                    sixteen.others_percent
                );
            }
        }
    }
    let report = judge(args, contenders);
    let (title, table) = (title(&report), table(&report));
    print(&report, &title, &table);
    let Outputs { json, html } = args.outputs.clone();
    let json = json.or_else(|| Some(report::result_path(&args.results, "fanout-cost")));
    Outputs { json, html }.write(&report, || page(&report, &title, &table))?;
    Ok(report.passed || !args.check)
}

/// One server's turn: both windows on one instance.
fn turn(args: &CostArgs, contender: &mut Contender) -> Outcome {
    let context = |error| format!("{}: {error}", contender.name);
    let server = Server::start(&contender.command, &args.cores.server_cores).map_err(context)?;
    let mut swarm = fanout::connect(&server, args.sockets, args.in_flight).map_err(context)?;
    let meter = Meter::new(server.pid, &args.cores.server_cores);
    for (window, runs) in [(1, &mut contender.one), (WINDOW, &mut contender.sixteen)] {
        // The time is the bound: a joining server does many more broadcasts in it.
        let load = Load {
            payload: args.payload,
            window,
            broadcasts: 1_000_000,
            warmup: 4 * window,
            seconds: args.seconds,
        };
        runs.push(fanout::measure(&mut swarm, &meter, args.sockets, &load)?);
    }
    drop(swarm);
    server.stop()
}

fn judge(args: &CostArgs, contenders: Vec<Contender>) -> CostReport {
    let [single, joined, tested, ..] = contenders.as_slice() else { unreachable!("three are always there") };
    let at_most = |what, value, limit| Acceptance { what, value, limit, passed: value <= limit };
    let acceptance = vec![
        at_most(
            format!("{} W=1 / floor W=1 <= 1.5", tested.name),
            ratio(&tested.one, &single.one),
            W1_RATIO_MAX,
        ),
        at_most(
            format!("{} W=16 cost per broadcast <= 1/5 of W=1 cost", tested.name),
            ratio(&tested.sixteen, &tested.one),
            W16_SHARE_MAX,
        ),
    ];
    // A peer that loses messages is its own matter.
    let clean = [single, joined, tested].into_iter().all(Contender::is_clean);
    let passed = clean && acceptance.iter().all(|line| line.passed);
    CostReport {
        sockets: args.sockets,
        payload: args.payload,
        rounds: args.rounds,
        contenders,
        acceptance,
        clean,
        passed,
    }
}

fn title(report: &CostReport) -> String {
    format!(
        "fanout-cost: {} sockets, {} bytes, {} rounds; server CPU with ksoftirqd, µs per delivery: median (min)",
        report.sockets, report.payload, report.rounds
    )
}

fn table(report: &CostReport) -> Table {
    let mut table = Table::new(&[
        "server",
        "W=1",
        "/floor-single",
        "deliveries/s",
        "p50/p99/max ms",
        "W=16",
        "/floor-joined",
        "W=16/W=1",
        "deliveries/s",
        "p50/p99/max ms",
        "lost/dup/order",
    ]);
    let [single, joined, ..] = report.contenders.as_slice() else { return table };
    let cost = |runs: &[Measured]| format!("{:.2} ({:.2})", median(&costs(runs)), minimum(&costs(runs)));
    let rate = |runs: &[Measured]| {
        report::thousands(median(&runs.iter().map(|run| run.deliveries_per_s).collect::<Vec<_>>()))
    };
    let times = |runs: &[Measured]| runs.last().map(|run| run.completion.text()).unwrap_or_default();
    for contender in &report.contenders {
        let Contender { name, one, sixteen, .. } = contender;
        let unclean = one.iter().chain(sixteen).find(|run| !run.is_clean());
        table.row(vec![
            name.clone(),
            cost(one),
            format!("{:.2}", ratio(one, &single.one)),
            rate(one),
            times(one),
            cost(sixteen),
            format!("{:.2}", ratio(sixteen, &joined.sixteen)),
            format!("{:.3}", ratio(sixteen, one)),
            rate(sixteen),
            times(sixteen),
            unclean.map_or_else(|| "0/0/0".to_owned(), |run| fanout::loss_text(&run.tally)),
        ]);
    }
    table
}

/// Each server's costs by round, one at a time and joined.
fn page(report: &CostReport, title: &str, table: &Table) -> Outcome<Page> {
    let lines = |pick: fn(&Contender) -> &[Measured]| -> Vec<(&str, Vec<(f64, f64)>)> {
        let points = |runs: &[Measured]| {
            costs(runs).into_iter().enumerate().map(|(round, cost)| ((round + 1) as f64, cost)).collect()
        };
        report.contenders.iter().map(|one| (one.name.as_str(), points(pick(one)))).collect()
    };
    let round = |at: &f64| format!("{at:.0}");
    let mut page = Page::new(title).table(table);
    for line in &report.acceptance {
        page = page.text(&format!(
            "{}  {} (measured {:.3})",
            report::verdict(line.passed),
            line.what,
            line.value
        ));
    }
    page.plot("W=1, µs per delivery", "round", &lines(|one| &one.one), &round)?.plot(
        &format!("W={WINDOW}, µs per delivery"),
        "round",
        &lines(|one| &one.sixteen),
        &round,
    )
}

fn print(report: &CostReport, title: &str, table: &Table) {
    println!("{title}\n");
    for Contender { name, command, .. } in &report.contenders {
        println!("{name}: {command}");
    }
    println!();
    table.print();
    println!();
    for line in &report.acceptance {
        println!("{}  {} (measured {:.3})", report::verdict(line.passed), line.what, line.value);
    }
    let runs = report.contenders.iter().flat_map(|contender| contender.one.iter().chain(&contender.sixteen));
    let others_percent = runs.map(|run| run.others_percent).fold(0.0, f64::max);
    if others_percent > NOISE_PERCENT {
        println!(
            "NOISY others used up to {others_percent:.0} % of the server's core: repeat on an idle machine"
        );
    }
    if !report.clean {
        println!("FAIL  a run lost, repeated or reordered deliveries, or stalled");
    }
}
