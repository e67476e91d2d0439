//! Echo with acknowledgement: what a round trip costs the server when each socket has one outstanding, or several.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::crowd::{Crowd, CrowdArgs, Shape};
use crate::meter::Meter;
use crate::page::{Outputs, Page};
use crate::record::{Recorded, Sampler, Series};
use crate::report::{self, Table};
use crate::tally::Tally;
use crate::target::TargetArgs;
use crate::wire::Stamp;
use crate::{Outcome, fanout, sys};

/// Echoes that may be outstanding: what the client's window of sequence numbers can tell apart.
const WINDOW_MAX: i64 = 64;
/// Until when all must be connected.
const CONNECT_LIMIT: Duration = Duration::from_secs(120);
/// How long the last echoes may take.
const HOME_LIMIT: Duration = Duration::from_secs(10);
/// The server comes to rest before its clocks are read.
const REST: Duration = Duration::from_millis(30);

/// The echoes of one swarm.
pub(crate) struct Echoes {
    window: u32,
    payload_bytes: usize,
    /// Each reader's next number.
    next: Vec<u32>,
    text: Vec<u8>,
    /// Sent so far.
    pub(crate) sent: u64,
    /// Come home so far.
    pub(crate) answered: u64,
}

impl Echoes {
    /// None yet.
    pub(crate) fn new(readers: usize) -> Self {
        Self { window: 0, payload_bytes: 0, next: vec![0; readers], text: Vec::new(), sent: 0, answered: 0 }
    }

    /// From now on an echo that comes home is followed by another, unless the window is 0.
    pub(crate) fn set(&mut self, payload_bytes: usize, window: u32) {
        (self.payload_bytes, self.window) = (payload_bytes, window);
    }

    /// Whether an echo that came home is followed by another.
    pub(crate) fn refills(&self) -> bool {
        self.window > 0
    }

    /// The next packet of a reader, stamped with `sent_us`.
    pub(crate) fn next(&mut self, reader: usize, sent_us: u64) -> &[u8] {
        self.text.clear();
        // Only readers echo; the table has one entry for each.
        let Some(next) = self.next.get_mut(reader) else { return &self.text };
        self.text.extend_from_slice(format!("42{next}[\"echo\",\"").as_bytes());
        Stamp { sequence: *next, sent_us }.push_payload(self.payload_bytes, &mut self.text);
        self.text.extend_from_slice(b"\"]");
        *next = next.wrapping_add(1);
        self.sent += 1;
        &self.text
    }
}

/// `load-tests echo`
#[derive(Args, Debug)]
pub(crate) struct EchoArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    crowd: CrowdArgs,
    #[command(flatten)]
    load: EchoLoad,
    #[command(flatten)]
    outputs: Outputs,
}

/// How many echoes.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct EchoLoad {
    /// Echoes outstanding for each socket: the next follows when one comes home
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=WINDOW_MAX))]
    pub(crate) window: u32,
    /// Bytes of a payload
    #[arg(long, default_value_t = 128)]
    pub(crate) payload: usize,
    /// Seconds; a tenth of it, at most 2, comes before as warm-up
    #[arg(long, default_value_t = 5.0)]
    pub(crate) seconds: f64,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct EchoMeasured {
    pub(crate) sockets: usize,
    pub(crate) payload: usize,
    pub(crate) window: u32,
    pub(crate) round_trips: u64,
    pub(crate) round_trips_per_s: f64,
    pub(crate) cpu_us_per_round_trip: f64,
    pub(crate) server_percent: f64,
    pub(crate) client_percent: f64,
    pub(crate) others_percent: f64,
    /// Echoes that never came home.
    pub(crate) lost: u64,
    /// Order and repetition, warm-up included.
    pub(crate) tally: Tally,
    pub(crate) recorded: Recorded,
}

impl EchoMeasured {
    /// Whether all came home once and in order.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost == 0 && self.tally.is_clean()
    }
}

/// Runs the scenario.
pub(crate) fn run(args: &EchoArgs) -> Outcome<bool> {
    args.target.cores.pin_client();
    let server = args.target.start()?;
    let shape = Shape { join: false, ..Shape::default() };
    let crowd = Crowd::new(&server, &args.crowd, &args.target.cores, &shape)?;
    crowd.connect(CONNECT_LIMIT)?;
    let meter = Meter::new(server.pid, &args.target.cores.server_cores);
    let measured = measure(&crowd, &meter, args.crowd.readers.sockets, args.load)?;
    drop(crowd);
    server.stop()?;
    let mut table = Table::new(&[
        "server",
        "W",
        "µs/round trip",
        "round trips/s",
        "p50/p90/p99/p99.9/max ms",
        "server %",
        "client %",
        "others %",
        "lost/dup/order",
    ]);
    table.row(vec![
        args.target.name(),
        measured.window.to_string(),
        format!("{:.2}", measured.cpu_us_per_round_trip),
        report::thousands(measured.round_trips_per_s),
        measured.recorded.latency.long_text(),
        format!("{:.0}", measured.server_percent),
        format!("{:.0}", measured.client_percent),
        format!("{:.0}", measured.others_percent),
        fanout::loss_text(&Tally { lost: measured.lost, ..measured.tally }),
    ]);
    let title = format!("echo: {} sockets, {} bytes", measured.sockets, measured.payload);
    println!("{title}\n");
    table.print();
    args.outputs.write(&measured, || Page::new(&title).table(&table).recorded(&measured.recorded))?;
    Ok(measured.is_clean())
}

/// Warms the server up, then measures it. The sockets are in the namespace and in no room.
pub(crate) fn measure(crowd: &Crowd, meter: &Meter, sockets: usize, load: EchoLoad) -> Outcome<EchoMeasured> {
    let EchoLoad { window, payload, seconds } = load;
    crowd.each(move |_, swarm| {
        swarm.run_echoes(payload, window);
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs_f64((seconds / 10.0).clamp(0.2, 2.0)));
    crowd.each(|_, swarm| {
        swarm.reset_latencies();
        Ok(())
    })?;
    let client_before = sys::process_cpu();
    let before = meter.sample()?;
    let mut sampler = Sampler::new(meter)?;
    let bar = report::progress("echoing, ms", (seconds * 1e3) as u64);
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < seconds {
        std::thread::sleep(Duration::from_millis(20));
        sampler.tick()?;
        bar.set_position(start.elapsed().as_millis() as u64);
    }
    bar.finish_and_clear();
    let wall_s = start.elapsed().as_secs_f64();
    let client_percent = (sys::process_cpu() - client_before).as_secs_f64() / wall_s * 100.0;
    crowd.each(move |_, swarm| {
        swarm.run_echoes(payload, 0);
        Ok(())
    })?;
    let lost = come_home(crowd)?;
    crowd.each(|_, swarm| fanout::rest(swarm, REST))?;
    let cost = meter.between(&before, &meter.sample()?);
    let (mut series, mut tally) = (Series::new()?, Tally::default());
    for (part, part_tally) in crowd.each(|_, swarm| Ok((swarm.latency().copy(), swarm.tally())))? {
        series.add(part)?;
        tally.add(&part_tally);
    }
    let recorded = Recorded::new(&series, sampler.end());
    Ok(EchoMeasured {
        sockets,
        payload,
        window,
        round_trips: recorded.count,
        round_trips_per_s: recorded.count as f64 / wall_s,
        cpu_us_per_round_trip: cost.total_us() / recorded.count.max(1) as f64,
        server_percent: cost.busy_percent(),
        client_percent,
        others_percent: cost.others_percent,
        lost,
        tally,
        recorded,
    })
}

/// Waits for the echoes that are out, and says how many do not come.
fn come_home(crowd: &Crowd) -> Outcome<u64> {
    let start = Instant::now();
    loop {
        let out = crowd.each(|_, swarm| Ok(swarm.echoes().sent - swarm.echoes().answered))?;
        let out = out.iter().sum();
        if out == 0 || start.elapsed() > HOME_LIMIT {
            return Ok(out);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
