//! Several workers beside one: how many times the broadcasts do they carry?
//!
//! A client that reads would take the cores that are to be measured. So nobody reads while the clock runs: over loopback
//! the kernel does the receiver's part on the sender's core, the bytes stay in the receive buffers, and no watch is set on
//! those sockets. Only some that connected last, whom a server reaches last, are read, to know when the next broadcast may
//! leave. That all have all is seen in their buffers' lengths; then all read, and loss and order are counted as usual.
//!
//! Measured beside: one floor, and as many floors as cores, which share nothing. What the machine does to those it does to
//! any server.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::client::{Plan, Swarm};
use crate::crowd::Readers;
use crate::fanout::{self, loss_text};
use crate::meter::{Meter, Sample};
use crate::page::{Outputs, Page};
use crate::report::{self, Table, median};
use crate::tally::Tally;
use crate::target::{Cores, Server};
use crate::wire::Stamp;
use crate::{Outcome, fail, sys};

/// What several workers must carry for each one's, for two of them.
const RATIO_MIN: f64 = 1.8;
/// The client's share of one core while the clock runs, above which it has a part in the figures.
const CLIENT_PERCENT_MAX: f64 = 3.0;
/// Until when all must be connected.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// Nothing new for so long means that what is missing will not come.
const STALL: Duration = Duration::from_secs(10);
/// Both sides come to rest before the clocks are read; delayed acknowledgements (40 ms) are over by then.
const REST: Duration = Duration::from_millis(60);
/// Receive buffers are made so many times larger than what is to lie in them: the kernel counts its own records as well.
const ROOM_TIMES: usize = 12;

/// `load-tests scale`
#[derive(Args, Debug)]
#[command(mut_arg("sockets", |arg| arg.default_value("12000")))]
pub(crate) struct ScaleArgs {
    /// Command that starts the server; `--workers N` and `--port N` are appended
    #[arg(long, default_value = "target/release/examples/fanout_server")]
    server: String,
    /// Cores of the server: all for as many workers, the first for one
    #[arg(long, value_delimiter = ',', default_value = "0,1")]
    server_cores: Vec<usize>,
    /// Core of this client
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// Turns of each
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[command(flatten)]
    readers: Readers,
    /// Readers that are read while the clock runs, the last that connected
    #[arg(long, default_value_t = 16)]
    probes: usize,
    /// Bytes of a broadcast's payload
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Broadcasts outstanding
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    window: u32,
    /// Broadcasts of a burst: so many lie in each socket's buffer before all read
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    broadcasts: u32,
    /// Bursts that are measured, after one that is not
    #[arg(long, default_value_t = 4)]
    bursts: usize,
    /// Exit with 1 if the workers carry less than 1.8 times (0.9 of each), or the client took part
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    outputs: Outputs,
}

/// One burst's measurement.
#[derive(Debug, Clone, Serialize)]
struct Burst {
    deliveries: u64,
    /// From the first publish until the last reader's bytes are in its buffer.
    wall_s: f64,
    deliveries_per_s: f64,
    /// Server and ksoftirqd of its cores.
    cpu_us_per_delivery: f64,
    /// 100 for one core.
    server_percent: f64,
    client_percent: f64,
    others_percent: f64,
    /// CPU of each of the server's threads that did something, in percent of one core.
    threads_percent: Vec<f64>,
    /// Readers that lacked something when the last probe had all; waiting for them is part of the time.
    behind: usize,
}

/// What is measured: one server with a number of workers, or so many floors.
#[derive(Serialize)]
struct Contender {
    name: String,
    /// Commands and the cores of each.
    servers: Vec<(String, Vec<usize>)>,
    /// The bursts of each round.
    rounds: Vec<Vec<Burst>>,
    tally: Tally,
}

#[derive(Serialize)]
struct ScaleReport {
    sockets: usize,
    payload: usize,
    window: u32,
    broadcasts: u32,
    contenders: Vec<Contender>,
    /// Several workers to one, median of each round's ratio.
    ratio: f64,
    /// Several floors to one: what it takes to share nothing, on this machine and with this client.
    machine_ratio: f64,
    client_percent_max: f64,
    checks: Vec<(String, bool)>,
    passed: bool,
}

/// A server and its share of the readers.
struct Party {
    server: Server,
    meter: Meter,
    swarm: Swarm,
    sockets: usize,
}

/// Runs the scenario.
pub(crate) fn run(args: &ScaleArgs) -> Outcome<bool> {
    if args.server_cores.len() < 2
        || args.readers.sockets / args.server_cores.len() <= args.probes
        || args.probes == 0
    {
        return fail("two cores or more, and more readers than probes on each".into());
    }
    let cores = Cores { server_cores: args.server_cores.clone(), client_core: vec![args.client_core] };
    cores.pin_client();
    let mut contenders = contenders(args);
    for round in 1..=args.rounds {
        for contender in &mut contenders {
            let bursts = turn(args, contender)?;
            eprintln!(
                "round {round}/{} {}: {} deliveries/s",
                args.rounds,
                contender.name,
                report::thousands(rate(&bursts))
            );
            contender.rounds.push(bursts);
        }
    }
    let report = judge(args, contenders);
    let (title, table) = (title(&report), table(&report));
    println!("{title}\n");
    table.print();
    let summary = summary(args, &report);
    println!("\n{summary}\n");
    for (what, passed) in &report.checks {
        println!("{}  {what}", report::verdict(*passed));
    }
    args.outputs.write(&report, || page(&report, &title, &table, &summary))?;
    Ok(report.passed || !args.check)
}

fn contenders(args: &ScaleArgs) -> Vec<Contender> {
    let (first, all) = (vec![args.server_cores[0]], args.server_cores.clone());
    let several = all.len();
    // The floors that are built in know nothing of workers: a dry run of the scenario itself.
    let command = |workers: usize| match args.server.starts_with("floor:") {
        true => args.server.clone(),
        false => format!("{} --workers {workers}", args.server),
    };
    let floor = |core: &usize| ("floor:single".to_owned(), vec![*core]);
    let of = |name: String, servers| Contender { name, servers, rounds: Vec::new(), tally: Tally::default() };
    vec![
        of("1 worker".to_owned(), vec![(command(1), first)]),
        of(format!("{several} workers"), vec![(command(several), all.clone())]),
        of("1 floor".to_owned(), vec![floor(&all[0])]),
        of(format!("{several} floors"), all.iter().map(floor).collect()),
    ]
}

/// One contender's turn on fresh servers.
fn turn(args: &ScaleArgs, contender: &mut Contender) -> Outcome<Vec<Burst>> {
    let mut parties = Vec::new();
    let receive_bytes = args.broadcasts as usize * Stamp::delivery_bytes(args.payload) * ROOM_TIMES;
    for (command, cores) in &contender.servers {
        let server = Server::start(command, cores)?;
        let sockets = args.readers.sockets / contender.servers.len();
        let plan = Plan { receive_bytes: Some(receive_bytes), ..Plan::new(&server, sockets) };
        let mut swarm = Swarm::new(plan)?;
        if swarm.connect(0..sockets + 1, args.readers.in_flight, CONNECT_LIMIT, &mut |_| {})?.failed > 0 {
            return fail(format!("{command}: not all got in: {}", swarm.errors().join("; ")));
        }
        parties.push(Party { meter: Meter::new(server.pid, cores), server, swarm, sockets });
    }
    let mut bursts = Vec::new();
    for number in 0..=args.bursts {
        let measured = burst(args, &mut parties)?;
        if number > 0 {
            bursts.push(measured);
        }
    }
    for party in parties {
        contender.tally.add(&party.swarm.tally());
        drop(party.swarm);
        party.server.stop()?;
    }
    Ok(bursts)
}

/// Publishes to readers that do not read, waits until all have all, and only then lets them.
fn burst(args: &ScaleArgs, parties: &mut [Party]) -> Outcome<Burst> {
    for party in &mut *parties {
        for reader in 0..party.sockets - args.probes {
            party.swarm.silence(reader)?;
        }
        fanout::rest(&mut party.swarm, REST)?;
    }
    let before: Vec<Sample> = parties.iter().map(|party| party.meter.sample()).collect::<Result<_, _>>()?;
    let (start, client_before) = (Instant::now(), sys::process_cpu());
    let mut left = args.broadcasts;
    while left > 0 {
        let count = left.min(args.window);
        left -= count;
        for party in &mut *parties {
            let now_us = party.swarm.now_us();
            party.swarm.publish(count, args.payload, now_us)?;
        }
        for party in &mut *parties {
            party.await_probes(args.probes)?;
        }
    }
    let client_s = (sys::process_cpu() - client_before).as_secs_f64();
    let (wall, behind) = await_buffers(args, parties, start)?;
    std::thread::sleep(REST);
    let after: Vec<Sample> = parties.iter().map(|party| party.meter.sample()).collect::<Result<_, _>>()?;
    let measured = measured(parties, args.broadcasts, wall, client_s, behind, &before, &after);
    for party in &mut *parties {
        for reader in 0..party.sockets - args.probes {
            party.swarm.hear(reader)?;
        }
        if !fanout::await_all(&mut party.swarm)? {
            return fail("readers lack deliveries that lay in their buffers".into());
        }
    }
    Ok(measured)
}

impl Party {
    /// Sleeps until those that are read have all.
    fn await_probes(&mut self, probes: usize) -> Outcome {
        let published = self.swarm.broadcasts().published();
        let start = Instant::now();
        for probe in self.sockets - probes..self.sockets {
            while self.swarm.received(probe) < published {
                self.swarm.poll(100)?;
                if start.elapsed() > STALL {
                    return fail(format!("nothing came for {STALL:?}"));
                }
            }
        }
        Ok(())
    }

    /// Readers that do not have a whole burst in their buffers yet.
    fn behind(&self, probes: usize, burst_bytes: usize) -> Outcome<usize> {
        let mut behind = 0;
        for reader in 0..self.sockets - probes {
            behind += usize::from(self.swarm.unread_bytes(reader)? < burst_bytes);
        }
        Ok(behind)
    }
}

/// Waits until the burst lies in all buffers; the time since `start`, and how many lacked something at first.
fn await_buffers(args: &ScaleArgs, parties: &[Party], start: Instant) -> Outcome<(Duration, usize)> {
    let burst_bytes = args.broadcasts as usize * Stamp::delivery_bytes(args.payload);
    let mut first = None;
    loop {
        // Before the look: who has all now had it by then.
        let wall = start.elapsed();
        let mut behind = 0;
        for party in parties {
            behind += party.behind(args.probes, burst_bytes)?;
        }
        let first = *first.get_or_insert(behind);
        if behind == 0 {
            return Ok((wall, first));
        }
        if wall > STALL * 6 {
            return fail(format!("{behind} readers do not get what was published"));
        }
    }
}

fn measured(
    parties: &[Party],
    broadcasts: u32,
    wall: Duration,
    client_s: f64,
    behind: usize,
    before: &[Sample],
    after: &[Sample],
) -> Burst {
    let wall_s = wall.as_secs_f64();
    let readers: usize = parties.iter().map(|party| party.sockets).sum();
    let deliveries = readers as u64 * u64::from(broadcasts);
    let (mut cpu_us, mut others, mut threads) = (0.0, 0.0, Vec::new());
    for (party, (before, after)) in parties.iter().zip(before.iter().zip(after)) {
        let cost = party.meter.between(before, after);
        cpu_us += cost.total_us();
        others += cost.others_percent / parties.len() as f64;
        threads.extend(party.meter.by_thread_us(before, after));
    }
    let percent = |us: f64| us / wall_s / 1e4;
    Burst {
        deliveries,
        wall_s,
        deliveries_per_s: deliveries as f64 / wall_s,
        cpu_us_per_delivery: cpu_us / deliveries as f64,
        server_percent: percent(cpu_us),
        client_percent: client_s / wall_s * 100.0,
        others_percent: others,
        threads_percent: threads.into_iter().map(percent).filter(|percent| *percent >= 1.0).collect(),
        behind,
    }
}

fn rate(bursts: &[Burst]) -> f64 {
    median(&bursts.iter().map(|burst| burst.deliveries_per_s).collect::<Vec<_>>())
}

/// Median of each round's ratio: what the machine does to one round it does to both.
fn ratio(several: &Contender, one: &Contender) -> f64 {
    let ratios: Vec<f64> =
        several.rounds.iter().zip(&one.rounds).map(|(several, one)| rate(several) / rate(one)).collect();
    median(&ratios)
}

fn judge(args: &ScaleArgs, contenders: Vec<Contender>) -> ScaleReport {
    let [one, several, floor, floors] = contenders.as_slice() else { unreachable!("there are always four") };
    let (ratio, machine_ratio) = (ratio(several, one), ratio(floors, floor));
    let bursts = || [one, several].into_iter().flat_map(|contender| contender.rounds.iter().flatten());
    let client_percent_max = bursts().map(|burst| burst.client_percent).fold(0.0, f64::max);
    let wanted = RATIO_MIN / 2.0 * args.server_cores.len() as f64;
    let clean = contenders.iter().all(|contender| contender.tally.is_clean());
    let checks = vec![
        (format!("{} carry {ratio:.2} times as much as {} (>= {wanted:.2})", several.name, one.name), {
            ratio >= wanted
        }),
        (
            format!(
                "the client used at most {client_percent_max:.1} % of a core meanwhile (<= {CLIENT_PERCENT_MAX:.0} %)"
            ),
            client_percent_max <= CLIENT_PERCENT_MAX,
        ),
        ("all got everything, once and in order".to_owned(), clean),
    ];
    ScaleReport {
        sockets: args.readers.sockets,
        payload: args.payload,
        window: args.window,
        broadcasts: args.broadcasts,
        ratio,
        machine_ratio,
        client_percent_max,
        passed: checks.iter().all(|(_, passed)| *passed),
        checks,
        contenders,
    }
}

fn title(report: &ScaleReport) -> String {
    let ScaleReport { sockets, payload, window, broadcasts, .. } = report;
    format!("scale: {sockets} sockets, {payload} bytes, W={window}, bursts of {broadcasts}")
}

fn summary(args: &ScaleArgs, report: &ScaleReport) -> String {
    let cores = args.server_cores.len();
    format!(
        "{cores} workers to one {:.2}; {cores} floors, which share nothing, to one {:.2}",
        report.ratio, report.machine_ratio
    )
}

fn table(report: &ScaleReport) -> Table {
    let mut table = Table::new(&[
        "server",
        "deliveries/s",
        "each round's",
        "µs/delivery",
        "server %",
        "its threads %",
        "client %",
        "others %",
        "behind",
        "lost/dup/order",
    ]);
    for contender in &report.contenders {
        let bursts: Vec<Burst> = contender.rounds.iter().flatten().cloned().collect();
        let of = |pick: fn(&Burst) -> f64| median(&bursts.iter().map(pick).collect::<Vec<_>>());
        let rounds: Vec<String> =
            contender.rounds.iter().map(|round| report::thousands(rate(round))).collect();
        let threads = bursts.last().map(|burst| burst.threads_percent.as_slice()).unwrap_or_default();
        let threads: Vec<String> = threads.iter().map(|percent| format!("{percent:.0}")).collect();
        table.row(vec![
            contender.name.clone(),
            report::thousands(rate(&bursts)),
            rounds.join(" "),
            format!("{:.2}", of(|burst| burst.cpu_us_per_delivery)),
            format!("{:.0}", of(|burst| burst.server_percent)),
            threads.join("+"),
            format!("{:.1}", of(|burst| burst.client_percent)),
            format!("{:.0}", of(|burst| burst.others_percent)),
            bursts.iter().map(|burst| burst.behind).max().unwrap_or(0).to_string(),
            loss_text(&contender.tally),
        ]);
    }
    table
}

fn page(report: &ScaleReport, title: &str, table: &Table, summary: &str) -> Outcome<Page> {
    let line = |contender: &Contender| {
        let bursts = contender.rounds.iter().flatten().enumerate();
        bursts.map(|(number, burst)| (number as f64, burst.deliveries_per_s / 1e3)).collect::<Vec<_>>()
    };
    let lines: Vec<_> =
        report.contenders.iter().map(|contender| (contender.name.as_str(), line(contender))).collect();
    let number = |at: &f64| format!("{at:.0}");
    Page::new(title).table(table).text(summary).plot(
        "Deliveries a second, thousands",
        "burst",
        &lines,
        &number,
    )
}
