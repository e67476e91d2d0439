//! All servers, all kinds of work, turn by turn: one table with ratios.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::built::{self, said};
use crate::crowd::{Crowd, CrowdArgs, Shape};
use crate::echo::{self, EchoLoad};
use crate::fanout::{self, Load};
use crate::idle::{self, IdleLoad};
use crate::meter::Meter;
use crate::page::{Outputs, Page};
use crate::rate::{self, RateLoad};
use crate::report::{self, median, minimum};
use crate::target::{Cores, Server};
use crate::{Outcome, fail};

/// The window of the joined measurements.
const WINDOW: u32 = 16;
/// Above this share of the server's core used by others, the figures are not worth much.
const NOISE_PERCENT: f64 = 5.0;
/// Seconds until which all must be connected.
const CONNECT_LIMIT: Duration = Duration::from_secs(120);
/// The names of those that are always measured.
const FLOOR_SINGLE: &str = "floor-single";
const FLOOR: &str = "floor";
const TESTED: &str = "sockring";
/// The peer that targets are set by.
const RIVAL: &str = "uwebsockets";

/// `load-tests compare`
#[derive(Args, Debug)]
pub(crate) struct CompareArgs {
    /// Command that starts the server under test (`--port N` is appended)
    #[arg(long, default_value = "target/release/examples/fanout_server --workers 1")]
    server: String,
    /// Another server
    #[arg(long = "peer", value_name = "NAME=CMD")]
    peers: Vec<String>,
    /// File with a NAME=CMD on each line, as load-tests/peers/build writes it
    #[arg(long)]
    peers_file: Option<PathBuf>,
    /// Only these of the peers
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Work::ALL)]
    rows: Vec<Work>,
    /// Turns of each server
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds that each measurement takes
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Sockets of fan-out and rate
    #[arg(long, default_value_t = 5000)]
    sockets: usize,
    /// Sockets of fan-out-many and idle
    #[arg(long, default_value_t = 15_000)]
    many: usize,
    /// Sockets that echo
    #[arg(long, default_value_t = 100)]
    echo_sockets: usize,
    /// Broadcasts a second of rate
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// Broadcasts a second of last-subscriber
    #[arg(long, default_value_t = 10.0)]
    last_rate: f64,
    /// Bytes of a payload
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Connects outstanding at once
    #[arg(long, default_value_t = 128)]
    in_flight: usize,
    #[command(flatten)]
    cores: Cores,
    /// Exit with 1 if a target is missed, or a server lost or reordered something
    #[arg(long)]
    check: bool,
    /// Write report (.json), table (.md) and page (.html) under this name instead of a new one in the results folder
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    outputs: Outputs,
    /// Folder for results
    #[arg(long, default_value = "load-tests/results")]
    results: PathBuf,
}

/// A kind of work: what one turn of a server measures, one row or two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
enum Work {
    Fanout,
    FanoutMany,
    Idle,
    Echo,
    Rate,
    LastSubscriber,
}

impl Work {
    const ALL: [Self; 6] =
        [Self::Fanout, Self::FanoutMany, Self::Idle, Self::Echo, Self::Rate, Self::LastSubscriber];
}

/// What the server under test must reach in a row.
#[derive(Debug, Clone, Copy, Serialize)]
enum Target {
    /// At most so many times the floor, and below the rival.
    FloorAndRival(f64),
    /// At most so many times the rival.
    Rival(f64),
    /// At most so much.
    AtMost(f64),
    /// Below every peer.
    Peers,
    /// No more than the best peer.
    BestPeer,
}

impl Target {
    fn text(self) -> String {
        match self {
            Self::FloorAndRival(times) => format!("<= {times:.2} x floor, < {RIVAL}"),
            Self::Rival(times) => format!("<= {times:.2} x {RIVAL}"),
            Self::AtMost(value) => format!("<= {value:.0}"),
            Self::Peers => "below every peer".to_owned(),
            Self::BestPeer => "no worse than the best peer".to_owned(),
        }
    }
}

/// One line of the table.
#[derive(Serialize)]
struct Row {
    name: String,
    target: Target,
    /// What each server's turns gave, by the server's name; none for a turn that failed.
    values: BTreeMap<String, Vec<Option<f64>>>,
    /// The most that others used of the server's core in any turn.
    others_percent: f64,
}

#[derive(Serialize)]
struct Contender {
    name: String,
    command: String,
}

#[derive(Serialize)]
struct Machine {
    date: String,
    /// What the server under test was built from.
    build: String,
    cpu: String,
    cores: usize,
    kernel: String,
    load_before: String,
    load_after: String,
}

#[derive(Serialize)]
struct Report {
    machine: Machine,
    contenders: Vec<Contender>,
    rounds: usize,
    seconds: f64,
    payload: usize,
    rows: Vec<Row>,
    /// What failed, was lost, repeated or out of order.
    problems: Vec<String>,
    targets_met: bool,
}

/// Runs the comparison.
pub(crate) fn run(args: &CompareArgs) -> Outcome<bool> {
    args.cores.pin_client();
    let mut machine = Machine::here(&args.server);
    let contenders = contenders(args)?;
    let (mut rows, mut problems) = (Vec::new(), Vec::new());
    for &work in &args.rows {
        rows.extend(rows_of(work, args));
    }
    for round in 1..=args.rounds {
        let mut first = 0;
        for &work in &args.rows {
            let count = rows_of(work, args).len();
            let group = &mut rows[first..first + count];
            first += count;
            for Contender { name, command } in &contenders {
                if name == FLOOR_SINGLE && !matches!(work, Work::Fanout | Work::FanoutMany) {
                    continue;
                }
                let values = match turn(args, work, command) {
                    Ok(turn) => {
                        if !turn.clean {
                            problems.push(format!("{name}, {work:?}: lost, repeated or out of order"));
                        }
                        for row in &mut *group {
                            row.others_percent = row.others_percent.max(turn.others_percent);
                        }
                        turn.values.into_iter().map(Some).collect()
                    }
                    Err(error) => {
                        problems.push(format!("{name}, {work:?}: {error}"));
                        vec![None; count]
                    }
                };
                let text: Vec<String> = values.iter().map(|value| cell(*value)).collect();
                eprintln!("round {round}/{} {work:?} {name}: {}", args.rounds, text.join(", "));
                for (row, value) in group.iter_mut().zip(values) {
                    row.values.entry(name.clone()).or_default().push(value);
                }
            }
        }
    }
    machine.load_after = load();
    let targets_met = rows.iter().all(|row| row.met() != Some(false));
    let CompareArgs { rounds, seconds, payload, .. } = *args;
    let report = Report { machine, contenders, rounds, seconds, payload, rows, problems, targets_met };
    write(args, &report)?;
    Ok(!args.check || report.targets_met && report.problems.is_empty())
}

fn contenders(args: &CompareArgs) -> Outcome<Vec<Contender>> {
    let own = |name: &str, command: &str| Contender { name: name.to_owned(), command: command.to_owned() };
    let mut contenders =
        vec![own(FLOOR_SINGLE, "floor:single"), own(FLOOR, "floor:joined"), own(TESTED, &args.server)];
    let mut lines = args.peers.clone();
    if let Some(path) = &args.peers_file {
        let text = fs::read_to_string(path).map_err(|error| format!("{path:?}: {error}"))?;
        lines.extend(text.lines().map(str::to_owned));
    }
    for line in lines {
        let Some((name, command)) = line.split_once('=') else {
            return fail(format!("`{line}` is not NAME=CMD"));
        };
        if args.only.is_empty() || args.only.iter().any(|only| only == name) {
            contenders.push(own(name, command));
        }
    }
    Ok(contenders)
}

fn rows_of(work: Work, args: &CompareArgs) -> Vec<Row> {
    let row = |name: String, target| Row { name, target, values: BTreeMap::new(), others_percent: 0.0 };
    let fanout = |sockets: usize| {
        let name = |window: u32| format!("{sockets} sockets, W={window}, µs per delivery");
        vec![row(name(1), Target::FloorAndRival(1.10)), row(name(WINDOW), Target::FloorAndRival(1.15))]
    };
    match work {
        Work::Fanout => fanout(args.sockets),
        Work::FanoutMany => fanout(args.many),
        Work::Idle => vec![
            row("memory of an idle joined socket, bytes".to_owned(), Target::AtMost(512.0)),
            row("accept, handshake and CONNECT, µs".to_owned(), Target::Rival(1.0)),
        ],
        Work::Echo => [(1, 1.05), (WINDOW, 1.2)]
            .map(|(window, times)| {
                row(
                    format!("echo, {} sockets, W={window}, µs per round trip", args.echo_sockets),
                    Target::Rival(times),
                )
            })
            .into(),
        Work::Rate => {
            let name = format!("{} sockets, {} broadcasts/s, p99 ms", args.sockets, args.rate);
            vec![row(name, Target::Peers)]
        }
        Work::LastSubscriber => {
            let name = format!(
                "{} sockets, {} broadcasts/s, last subscriber's p99 ms",
                args.sockets, args.last_rate
            );
            vec![row(name, Target::BestPeer)]
        }
    }
}

/// What one turn gave: a value for each row of its work.
struct Turn {
    values: Vec<f64>,
    others_percent: f64,
    clean: bool,
}

/// One server's turn on a fresh instance.
fn turn(args: &CompareArgs, work: Work, command: &str) -> Outcome<Turn> {
    // Huge pages make tables resident that nobody has touched: what is asked is the memory of a connection.
    let command = match work {
        Work::Idle if !command.starts_with("floor:") => format!("env MIMALLOC_ALLOW_THP=0 {command}"),
        _ => command.to_owned(),
    };
    let server = Server::start(&command, &args.cores.server_cores)?;
    let meter = Meter::new(server.pid, &args.cores.server_cores);
    let turn = match work {
        Work::Fanout => fan_out(args, &server, &meter, args.sockets),
        Work::FanoutMany => fan_out(args, &server, &meter, args.many),
        Work::Idle => idle(args, &server, &meter),
        Work::Echo => echoes(args, &server, &meter),
        Work::Rate => by_rate(args, &server, &meter, args.rate),
        Work::LastSubscriber => by_rate(args, &server, &meter, args.last_rate),
    }?;
    server.stop()?;
    Ok(turn)
}

fn fan_out(args: &CompareArgs, server: &Server, meter: &Meter, sockets: usize) -> Outcome<Turn> {
    let mut swarm = fanout::connect(server, sockets, args.in_flight)?;
    let mut turn = Turn { values: Vec::new(), others_percent: 0.0, clean: true };
    for window in [1, WINDOW] {
        let (payload, seconds) = (args.payload, args.seconds);
        // The time is the bound: a joining server does many more broadcasts in it.
        let load = Load { payload, window, broadcasts: 1_000_000, warmup: 4 * window, seconds };
        let measured = fanout::measure(&mut swarm, meter, sockets, &load)?;
        turn.values.push(measured.cpu_us_per_delivery);
        turn.others_percent = turn.others_percent.max(measured.others_percent);
        turn.clean &= measured.is_clean();
    }
    Ok(turn)
}

fn idle(args: &CompareArgs, server: &Server, meter: &Meter) -> Outcome<Turn> {
    let wait = Duration::from_secs_f64(args.seconds.min(5.0));
    let (sockets, in_flight) = (args.many, args.in_flight);
    let load = IdleLoad { sockets, in_flight, join: true, limit: CONNECT_LIMIT, wait };
    let report = idle::measure("", server, meter, load)?;
    Ok(Turn {
        values: vec![report.rss_bytes_per_connection, report.cpu_us_per_connection],
        others_percent: report.others_percent,
        clean: report.passed,
    })
}

fn crowd(args: &CompareArgs, server: &Server, sockets: usize, join: bool) -> Outcome<Crowd> {
    let shape = Shape { join, ..Shape::default() };
    let one = CrowdArgs { sockets, threads: 1, in_flight: args.in_flight };
    let crowd = Crowd::new(server, &one, &args.cores, &shape)?;
    crowd.connect(CONNECT_LIMIT)?;
    Ok(crowd)
}

fn echoes(args: &CompareArgs, server: &Server, meter: &Meter) -> Outcome<Turn> {
    let crowd = crowd(args, server, args.echo_sockets, false)?;
    let mut turn = Turn { values: Vec::new(), others_percent: 0.0, clean: true };
    for window in [1, WINDOW] {
        let load = EchoLoad { window, payload: args.payload, seconds: args.seconds };
        let measured = echo::measure(&crowd, meter, args.echo_sockets, load)?;
        turn.values.push(measured.cpu_us_per_round_trip);
        turn.others_percent = turn.others_percent.max(measured.others_percent);
        turn.clean &= measured.is_clean();
    }
    Ok(turn)
}

fn by_rate(args: &CompareArgs, server: &Server, meter: &Meter, rate: f64) -> Outcome<Turn> {
    let crowd = crowd(args, server, args.sockets, true)?;
    // As many broadcasts at either rate: a quantile of few says little.
    let seconds = args.seconds * args.rate / rate;
    let load = RateLoad { rate, payload: args.payload, seconds };
    let measured = rate::measure(&crowd, meter, args.sockets, load)?;
    let all = measured.recorded.latency.p99_ms;
    Ok(Turn {
        values: vec![if rate == args.rate { all } else { measured.last_subscriber.p99_ms }],
        others_percent: measured.others_percent,
        clean: measured.is_clean(),
    })
}

impl Row {
    fn all(&self, name: &str) -> Vec<f64> {
        self.values.get(name).into_iter().flatten().copied().flatten().collect()
    }

    fn median(&self, name: &str) -> Option<f64> {
        let values = self.all(name);
        (!values.is_empty()).then(|| median(&values))
    }

    /// The reference of this row: frames one by one where nothing can be joined.
    fn floor(&self) -> &'static str {
        if self.name.contains("W=1,") && self.values.contains_key(FLOOR_SINGLE) {
            FLOOR_SINGLE
        } else {
            FLOOR
        }
    }

    /// Median of each round's ratio: what the machine does to one round it does to both.
    fn ratio(&self, reference: &str) -> Option<f64> {
        let (own, others) = (self.values.get(TESTED)?, self.values.get(reference)?);
        let ratios: Vec<f64> =
            own.iter().zip(others).filter_map(|(own, other)| Some(own.as_ref()? / other.as_ref()?)).collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    /// The least of the peers' medians.
    fn best_peer(&self) -> Option<f64> {
        let floors = [FLOOR_SINGLE, FLOOR, TESTED];
        let peers = self.values.keys().filter(|name| !floors.contains(&name.as_str()));
        peers.filter_map(|peer| self.median(peer)).min_by(f64::total_cmp)
    }

    /// Whether the target is met; `None` where what it is set by was not measured.
    fn met(&self) -> Option<bool> {
        let own = self.median(TESTED)?;
        Some(match self.target {
            Target::FloorAndRival(times) => {
                self.ratio(self.floor())? <= times && self.ratio(RIVAL).is_none_or(|ratio| ratio < 1.0)
            }
            Target::Rival(times) => self.ratio(RIVAL)? <= times,
            Target::AtMost(value) => own <= value,
            Target::Peers => own < self.best_peer()?,
            Target::BestPeer => own <= self.best_peer()?,
        })
    }
}

/// Three significant digits, as far as figures go that vary by more.
fn cell(value: Option<f64>) -> String {
    match value {
        None => "failed".to_owned(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

/// The table as markdown, with what one must know to read it.
fn markdown(report: &Report) -> String {
    let Report { machine, contenders, rows, .. } = report;
    let peers: Vec<&str> = contenders
        .iter()
        .map(|contender| contender.name.as_str())
        .filter(|name| ![FLOOR_SINGLE, FLOOR, TESTED].contains(name))
        .collect();
    let mut text = format!(
        "Measured on {}; {TESTED}: {}. {} cores ({}), Linux {}, loopback, {} bytes, {} rounds of {} s, turn by turn; load \
         average {} before and {} after. Medians, minima in brackets; ratios are medians of each round's ratio.\n\n",
        machine.date,
        machine.build,
        machine.cores,
        machine.cpu,
        machine.kernel,
        report.payload,
        report.rounds,
        report.seconds,
        machine.load_before,
        machine.load_after
    );
    let _ =
        writeln!(text, "| work | floor | {} | {TESTED} | / floor | / {RIVAL} | target | met | others % |", {
            peers.join(" | ")
        });
    let _ = writeln!(text, "|---|{}", "---:|".repeat(peers.len() + 4) + "---|---|---:|");
    for row in rows {
        let value = |name: &str| match row.median(name) {
            Some(middle) if row.all(name).len() > 1 => {
                format!("{} ({})", cell(Some(middle)), cell(Some(minimum(&row.all(name)))))
            }
            middle => cell(middle),
        };
        let times = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let met = match row.met() {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "-",
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {met} | {:.0} |",
            row.name,
            value(row.floor()),
            peers.iter().map(|peer| value(peer)).collect::<Vec<_>>().join(" | "),
            value(TESTED),
            times(row.ratio(row.floor())),
            times(row.ratio(RIVAL)),
            row.target.text(),
            row.others_percent
        );
    }
    if rows.iter().any(|row| row.others_percent > NOISE_PERCENT) {
        text +=
            "\nNOISY: others used more than 5 % of the server's core. These figures show the shape only.\n";
    }
    for problem in &report.problems {
        let _ = writeln!(text, "\n- {problem}");
    }
    text
}

fn write(args: &CompareArgs, report: &Report) -> Outcome {
    let name = args.out.clone().unwrap_or_else(|| report::result_path(&args.results, "compare"));
    let text = markdown(report);
    println!("{text}");
    let Outputs { json, html } = args.outputs.clone();
    let outputs = Outputs {
        json: json.or_else(|| Some(name.with_extension("json"))),
        html: html.or_else(|| Some(name.with_extension("html"))),
    };
    outputs.write(report, || Ok(page(report)))?;
    let path = name.with_extension("md");
    fs::write(&path, text).map_err(|error| format!("{path:?}: {error}"))?;
    println!("Markdown: {}", path.display());
    Ok(())
}

/// Bars of all servers for each row, the server under test last.
fn page(report: &Report) -> Page {
    let Machine { date, build, cpu, kernel, load_before, load_after, .. } = &report.machine;
    let mut page = Page::new("compare: kinds of work, turn by turn").text(&format!(
        "{date}; {TESTED}: {build}. {cpu}, Linux {kernel}, loopback, {} bytes; medians of {} rounds of {} s; load average \
         {load_before} before and {load_after} after.",
        report.payload, report.rounds, report.seconds
    ));
    for row in &report.rows {
        let floor = report.contenders.iter().filter(|contender| contender.name == row.floor());
        let peers = report
            .contenders
            .iter()
            .filter(|contender| ![FLOOR_SINGLE, FLOOR, TESTED].contains(&contender.name.as_str()));
        let tested = report.contenders.iter().filter(|contender| contender.name == TESTED);
        let bars: Vec<_> = (floor.chain(peers).chain(tested))
            .filter_map(|contender| Some((contender.name.as_str(), row.median(&contender.name)?)))
            .collect();
        let met = row.met().map_or("not known", |met| if met { "met" } else { "missed" });
        page = page.bars(&row.name, &bars).text(&format!(
            "Target: {}: {met}. Others used up to {:.0} % of the server's core.",
            row.target.text(),
            row.others_percent
        ));
    }
    report.problems.iter().fold(page, |page, problem| page.text(problem))
}

impl Machine {
    fn here(server: &str) -> Self {
        let first = |text: String, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            line.unwrap_or_default().trim_start_matches([' ', '\t', ':']).to_owned()
        };
        Self {
            date: said("date", &["-u", "+%Y-%m-%d"]),
            build: built::from_what(server),
            cpu: first(fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from).max(processors()),
            kernel: said("uname", &["-r"]),
            load_before: load(),
            load_after: String::new(),
        }
    }
}

/// Processors of the machine; this process may be on one of them only.
fn processors() -> usize {
    fs::read_to_string("/proc/cpuinfo")
        .map_or(0, |text| text.lines().filter(|line| line.starts_with("processor")).count())
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, target: Target, values: &[(&str, f64)]) -> Row {
        let values = values
            .iter()
            .map(|&(name, value)| (name.to_owned(), vec![Some(value), None, Some(value)]))
            .collect();
        Row { name: name.to_owned(), target, values, others_percent: 0.0 }
    }

    #[test]
    fn targets_are_judged_by_what_they_are_set_by() {
        let fanout = |own: f64| {
            let values = [(FLOOR_SINGLE, 5.0), (FLOOR, 1.0), (TESTED, own), (RIVAL, 5.6)];
            row("5 sockets, W=1, µs", Target::FloorAndRival(1.1), &values).met()
        };
        assert_eq!([5.4, 5.55, 6.0].map(fanout), [Some(true), Some(false), Some(false)]);
        let rate =
            |peer: f64| row("rate", Target::Peers, &[(FLOOR, 9.0), (TESTED, 2.0), ("node", peer)]).met();
        assert_eq!([3.0, 1.0].map(rate), [Some(true), Some(false)]);
        assert_eq!(row("rate", Target::Peers, &[(TESTED, 2.0)]).met(), None);
        let last = |peer: f64| row("last", Target::BestPeer, &[(TESTED, 2.0), ("a", peer), ("b", 9.0)]).met();
        assert_eq!([2.0, 1.9].map(last), [Some(true), Some(false)]);
        assert_eq!(row("idle", Target::AtMost(512.0), &[(TESTED, 600.0)]).met(), Some(false));
        assert_eq!(row("echo", Target::Rival(1.05), &[(TESTED, 6.0)]).met(), None);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let mut row = row("echo", Target::Rival(1.0), &[]);
        row.values.insert(TESTED.to_owned(), vec![Some(2.0), None, Some(30.0)]);
        row.values.insert(RIVAL.to_owned(), vec![Some(1.0), Some(9.0), Some(10.0)]);
        assert_eq!(row.ratio(RIVAL), Some(2.5));
    }
}
