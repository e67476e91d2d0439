//! Some readers stop reading: what becomes of the others, of the server's memory, and of those that come back.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::client::{Plan, Swarm};
use crate::fanout;
use crate::meter::{self, Meter};
use crate::page::{Outputs, Page};
use crate::rate::{RateLoad, publish_at_rate};
use crate::record::{Recorded, Sampler};
use crate::report::{self, Quantiles, Table, median};
use crate::tally::Tally;
use crate::target::{Server, TargetArgs};
use crate::{Outcome, fail};

/// Until when all must be connected.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// Warm-up with everybody reading.
const WARM_S: f64 = 1.0;
/// So long is published on after those that stalled read again.
const BACK_S: f64 = 1.0;
/// And so long they may go on reading what had waited.
const CATCH_UP: Duration = Duration::from_secs(2);
/// How long the server's metrics may take.
const SCRAPE: Duration = Duration::from_secs(2);

/// `load-tests slow-reader`
// Half of what a core takes, and enough for a reader to fill the kernel's buffers and a bound of 128 KiB.
#[derive(Args, Debug)]
#[command(mut_arg("rate", |arg| arg.default_value("20")), mut_arg("payload", |arg| arg.default_value("2048")))]
pub(crate) struct SlowArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Readers in the room, those that stall among them
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(2..))]
    sockets: u32,
    /// Readers that stall, or their share (`1%`)
    #[arg(long, default_value = "1%")]
    stalled: Count,
    #[command(flatten)]
    load: RateLoad,
    /// Turns without and with stalled readers
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// With --check: what the others' p99 with stalled readers may be, in times of that without
    #[arg(long, default_value_t = 1.1)]
    p99_times_max: f64,
    /// With --check: how much more the server may grow with stalled readers than without
    #[arg(long, default_value_t = 8.0)]
    growth_mib_max: f64,
    /// Exit with 1 if the others suffer or the server's memory grows
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    outputs: Outputs,
}

/// A number of readers, or a share of them.
#[derive(Debug, Clone, Copy)]
enum Count {
    Readers(u32),
    Percent(f64),
}

impl std::str::FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|at| (0.0..100.0).contains(at)).map(Self::Percent),
            None => text.parse().ok().map(Self::Readers),
        };
        parsed.ok_or_else(|| format!("`{text}` is neither a number nor a share like 1%"))
    }
}

impl Count {
    /// At least one stalls and at least one does not.
    fn of(self, sockets: u32) -> usize {
        let count = match self {
            Self::Readers(count) => count,
            Self::Percent(percent) => (f64::from(sockets) * percent / 100.0).round() as u32,
        };
        count.clamp(1, sockets - 1) as usize
    }
}

/// One turn.
#[derive(Serialize)]
struct Run {
    latency: Quantiles,
    /// From when a broadcast was due until the last of those that read had it.
    last_subscriber: Quantiles,
    rss_start_bytes: u64,
    rss_growth_bytes: u64,
    others: Tally,
    server_percent: f64,
    /// Others on the server's cores: noise.
    others_percent: f64,
    recorded: Recorded,
    stalled: Option<Stalled>,
}

/// What became of those that stalled.
#[derive(Serialize)]
struct Stalled {
    readers: usize,
    /// Bytes and messages that waited for them at the end, by the server's own metrics, if it has such.
    queued_bytes: Option<f64>,
    dropped_messages: Option<f64>,
    /// Still connected after all.
    open: usize,
    /// Of those, how many have the newest broadcast.
    current: usize,
    /// What they got after all, once they read again.
    tally: Tally,
}

impl Stalled {
    /// Whoever was not closed is up to date, and got nothing twice or in disorder.
    fn is_sensible(&self) -> bool {
        self.current == self.open && self.tally.duplicate == 0 && self.tally.out_of_order == 0
    }
}

#[derive(Serialize)]
struct SlowReport {
    server: String,
    sockets: u32,
    stalled: usize,
    payload: usize,
    rate: f64,
    seconds: f64,
    without: Vec<Run>,
    with: Vec<Run>,
    /// Medians of each round's ratio, with to without.
    p99_times: f64,
    last_subscriber_p99_times: f64,
    checks: Vec<(String, bool)>,
    passed: bool,
}

/// Runs the scenario: without stalled readers and with them, in turns, each on a fresh server.
pub(crate) fn run(args: &SlowArgs) -> Outcome<bool> {
    args.target.cores.pin_client();
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        // A B, B A, ...: whatever the machine does more and more of, it does to both.
        for stalls in [round % 2 == 0, round % 2 == 1] {
            let run = one_run(args, if stalls { args.stalled.of(args.sockets) } else { 0 })?;
            let what = if stalls { "with" } else { "without" };
            eprintln!("round {round}/{} {what}: p50/p99/max {} ms", args.rounds, run.latency.text());
            if stalls { &mut with } else { &mut without }.push(run);
        }
    }
    let report = judge(args, without, with);
    let (title, table) = (title(&report), table(&report));
    println!("{title}\n\n{}\n", report.server);
    table.print();
    let notes = notes(&report);
    println!("\n{}\n", notes.join("\n"));
    for (what, passed) in &report.checks {
        println!("{}  {what}", report::verdict(*passed));
    }
    args.outputs.write(&report, || page(&report, &title, &table, &notes))?;
    Ok(report.passed || !args.check)
}

fn one_run(args: &SlowArgs, stalled: usize) -> Outcome<Run> {
    let server = args.target.start()?;
    let RateLoad { rate, payload, seconds } = args.load;
    let sockets = args.sockets as usize;
    let plan = Plan { slow: stalled, time_deliveries: true, ..Plan::new(&server, sockets) };
    let mut swarm = Swarm::new(plan)?;
    if swarm.connect(0..sockets + 1, 128, CONNECT_LIMIT, &mut |_| {})?.failed > 0 {
        return fail(format!("not all got in: {}", swarm.errors().join("; ")));
    }
    publish_at_rate(&mut swarm, rate, payload, WARM_S, &mut |_| Ok(()))?;
    fanout::await_all(&mut swarm)?;
    swarm.reset_latencies();
    let slow = swarm.slow_readers();
    for &reader in &slow {
        swarm.pause(reader)?;
    }
    let meter = Meter::new(server.pid, &args.target.cores.server_cores);
    let rss_start_bytes = meter::resident_bytes(server.pid)?;
    let before = meter.sample()?;
    let mut sampler = Sampler::new(&meter)?;
    publish_at_rate(&mut swarm, rate, payload, seconds, &mut |_| sampler.tick())?;
    fanout::await_all(&mut swarm)?;
    let cost = meter.between(&before, &meter.sample()?);
    let usage = sampler.end();
    let rss_most_bytes = usage.iter().map(|usage| usage.server_rss_bytes).max().unwrap_or(0);
    let rss_most_bytes = rss_most_bytes.max(meter::resident_bytes(server.pid)?);
    let latency = Quantiles::of(swarm.latency().all());
    let last_subscriber = Quantiles::of(swarm.broadcasts().completion_us());
    let recorded = Recorded::new(swarm.latency(), usage);
    let stalled = (!slow.is_empty()).then(|| come_back(&server, &mut swarm, &slow, args.load)).transpose()?;
    let others = swarm.tally();
    drop(swarm);
    server.stop()?;
    Ok(Run {
        latency,
        last_subscriber,
        rss_start_bytes,
        rss_growth_bytes: rss_most_bytes.saturating_sub(rss_start_bytes),
        others,
        server_percent: cost.busy_percent(),
        others_percent: cost.others_percent,
        recorded,
        stalled,
    })
}

/// Lets those that stalled read again, while broadcasts go on.
fn come_back(server: &Server, swarm: &mut Swarm, slow: &[usize], load: RateLoad) -> Outcome<Stalled> {
    let metrics = if server.tls { None } else { scrape(server.addr) };
    let sum = |name| metrics.as_deref().and_then(|text| metric(text, name));
    let (queued_bytes, dropped_messages) =
        (sum("sockring_queued_bytes"), sum("sockring_dropped_messages_total"));
    for &reader in slow {
        swarm.resume(reader)?;
    }
    publish_at_rate(swarm, load.rate, load.payload, BACK_S, &mut |_| Ok(()))?;
    fanout::await_all(swarm)?;
    fanout::rest(swarm, CATCH_UP)?;
    let open: Vec<usize> = slow.iter().copied().filter(|&reader| swarm.is_open(reader)).collect();
    Ok(Stalled {
        readers: slow.len(),
        queued_bytes,
        dropped_messages,
        current: open.iter().filter(|&&reader| swarm.is_current(reader)).count(),
        open: open.len(),
        tally: swarm.slow_tally(),
    })
}

/// What the server says at `/metrics`, if it says anything there.
fn scrape(addr: SocketAddrV4) -> Option<String> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(SCRAPE)).ok()?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The sum of a metric over its labels; `None` if there is none of that name.
fn metric(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']))?;
        rest.split_whitespace().last()?.parse::<f64>().ok()
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

fn judge(args: &SlowArgs, without: Vec<Run>, with: Vec<Run>) -> SlowReport {
    let RateLoad { rate, payload, seconds } = args.load;
    let times = |pick: fn(&Run) -> f64| {
        median(
            &with.iter().zip(&without).map(|(with, without)| pick(with) / pick(without)).collect::<Vec<_>>(),
        )
    };
    let p99_times = times(|run| run.latency.p99_ms);
    let last_subscriber_p99_times = times(|run| run.last_subscriber.p99_ms);
    let growth = |runs: &[Run]| {
        runs.iter().map(|run| run.rss_growth_bytes).max().unwrap_or(0) as f64 / f64::from(1 << 20)
    };
    let at_most = |what: &str, value: f64, limit: f64, unit: &str| {
        (format!("{what} {value:.2}{unit} (<= {limit:.2}{unit})"), value <= limit)
    };
    let checks = vec![
        at_most("the others' p99 is", p99_times, args.p99_times_max, " times that without"),
        at_most("the server grew by", growth(&with), growth(&without) + args.growth_mib_max, " MiB"),
        ("the others got everything, once and in order".to_owned(), {
            without.iter().chain(&with).all(|run| run.others.is_clean())
        }),
        (
            "those that came back are up to date, and got nothing twice or in disorder, or were closed"
                .to_owned(),
            with.iter().filter_map(|run| run.stalled.as_ref()).all(Stalled::is_sensible),
        ),
    ];
    SlowReport {
        server: args.target.name(),
        sockets: args.sockets,
        stalled: args.stalled.of(args.sockets),
        payload,
        rate,
        seconds,
        without,
        with,
        p99_times,
        last_subscriber_p99_times,
        passed: checks.iter().all(|(_, passed)| *passed),
        checks,
    }
}

fn title(report: &SlowReport) -> String {
    let SlowReport { sockets, stalled, payload, rate, seconds, .. } = report;
    let mib = rate * seconds * *payload as f64 / f64::from(1 << 20);
    format!(
        "slow-reader: {sockets} readers, {stalled} of them stall, {payload} bytes, {rate}/s for {seconds} s ({mib:.1} MiB to each)"
    )
}

fn table(report: &SlowReport) -> Table {
    let mut table = Table::new(&[
        "run",
        "latency p50/p99/max ms",
        "last subscriber p50/p99/max ms",
        "RSS at start",
        "growth",
        "server %",
        "others %",
        "lost/dup/order",
    ]);
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    for (without, with) in report.without.iter().zip(&report.with) {
        for (name, run) in [("none stalls", without), ("some stall", with)] {
            table.row(vec![
                name.to_owned(),
                run.latency.text(),
                run.last_subscriber.text(),
                mib(run.rss_start_bytes),
                mib(run.rss_growth_bytes),
                format!("{:.0}", run.server_percent),
                format!("{:.0}", run.others_percent),
                fanout::loss_text(&run.others),
            ]);
        }
    }
    table
}

fn notes(report: &SlowReport) -> Vec<String> {
    let mut notes = vec![format!(
        "p99 with to p99 without, median of {} rounds: {:.2} of all deliveries, {:.2} of the last subscriber",
        report.with.len(),
        report.p99_times,
        report.last_subscriber_p99_times
    )];
    for stalled in report.with.iter().filter_map(|run| run.stalled.as_ref()) {
        let Stalled { readers, queued_bytes, dropped_messages, open, current, tally } = stalled;
        let metrics = match (queued_bytes, dropped_messages) {
            (Some(bytes), Some(messages)) => {
                let each = bytes / 1024.0 / *readers as f64;
                format!("; {each:.0} KiB waited for each and {messages:.0} messages were dropped")
            }
            _ => String::new(),
        };
        notes.push(format!(
            "of {readers} that came back {open} were still connected and {current} are up to date: {} deliveries, \
             lost/dup/order {}{metrics}",
            tally.delivered,
            fanout::loss_text(tally)
        ));
    }
    notes
}

fn page(report: &SlowReport, title: &str, table: &Table, notes: &[String]) -> Outcome<Page> {
    let mut page = Page::new(title).text(&report.server).table(table);
    for note in notes {
        page = page.text(note);
    }
    for (name, runs) in
        [("None stalls, last round:", &report.without), ("Some stall, last round:", &report.with)]
    {
        if let Some(run) = runs.last() {
            page = page.text(name).recorded(&run.recorded)?;
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_at_least_one_and_never_all() {
        let of = |text: &str, sockets| text.parse::<Count>().unwrap().of(sockets);
        assert_eq!((of("1%", 5000), of("7", 5000), of("1%", 20), of("9", 4)), (50, 7, 1, 3));
        for wrong in ["", "%", "-1", "100%", "x%", "NaN%"] {
            assert!(wrong.parse::<Count>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn metrics_add_up_over_cores() {
        let text = "# TYPE a gauge\na{core=\"0\"} 3\na{core=\"1\"} 4\na_total{core=\"0\"} 9\nb 2\n";
        assert_eq!((metric(text, "a"), metric(text, "b"), metric(text, "c")), (Some(7.0), Some(2.0), None));
    }
}
