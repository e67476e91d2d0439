//! Many rooms, a few of them for each socket, and sockets that join and leave all the time.
//!
//! Every other socket stays in its rooms and must get each of their broadcasts once and in order. The others move:
//! they may get what was published while they came or went, but nothing twice, nothing late, and nothing of a room
//! that they have left.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::client::{News, Swarm};
use crate::crowd::{Crowd, CrowdArgs, Shape};
use crate::meter::Meter;
use crate::page::{Outputs, Page};
use crate::rate::by_the_clock;
use crate::record::{Recorded, Sampler};
use crate::report::Table;
use crate::target::TargetArgs;
use crate::{Outcome, fail, fanout};

/// Until when all must be connected and in their rooms.
const CONNECT_LIMIT: Duration = Duration::from_secs(120);
/// Nothing new for so long means that what is missing will not come.
const STALL: Duration = Duration::from_secs(10);

/// `load-tests rooms`
#[derive(Args, Debug)]
pub(crate) struct RoomsArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    load: RoomsLoad,
    #[command(flatten)]
    outputs: Outputs,
}

#[derive(Args, Debug, Clone, Copy, Serialize)]
struct RoomsLoad {
    /// Sockets; every other one moves
    #[arg(long, default_value_t = 2000)]
    sockets: usize,
    /// Rooms
    #[arg(long, default_value_t = 200)]
    rooms: u32,
    /// Rooms of a socket: all of one that stays, at most of one that moves
    #[arg(long, default_value_t = 5)]
    each: u32,
    /// Broadcasts a second, each to a room
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    /// Joins and leaves a second
    #[arg(long, default_value_t = 500.0)]
    moves: f64,
    /// Bytes of a broadcast's payload
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Seconds
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
}

#[derive(Serialize)]
struct RoomsReport {
    server: String,
    load: RoomsLoad,
    broadcasts: u32,
    /// Deliveries to those that stay, and how many there should have been.
    stayed: u64,
    expected: u64,
    /// Deliveries to those that move.
    moved: u64,
    joins: u64,
    leaves: u64,
    /// Deliveries of a room that the socket had left.
    strays: u64,
    /// Requests that were never answered.
    unanswered: u64,
    duplicate: u64,
    out_of_order: u64,
    closed: u64,
    server_percent: f64,
    others_percent: f64,
    recorded: Recorded,
    passed: bool,
}

/// Where a socket that moves is with a room.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Joining,
    In,
    Leaving,
}

/// All rooms and who is where, as the client knows it.
struct World {
    load: RoomsLoad,
    /// The room of each broadcast.
    rooms_of: Vec<u32>,
    /// Broadcasts of each room.
    published: Vec<u64>,
    places: HashMap<(usize, u32), Place>,
    random: u64,
    joins: u64,
    leaves: u64,
    strays: u64,
    moved: u64,
}

/// Runs the scenario.
pub(crate) fn run(args: &RoomsArgs) -> Outcome<bool> {
    args.target.cores.pin_client();
    let load = args.load;
    if load.each == 0 || load.each > load.rooms {
        return fail(format!("{} rooms cannot be {} for each", load.rooms, load.each));
    }
    let server = args.target.start()?;
    let shape = Shape { join: false, tells_deliveries: true, ..Shape::default() };
    let crowd_args = CrowdArgs::of(load.sockets, 1, 128);
    let crowd = Crowd::new(&server, &crowd_args, &args.target.cores, &shape)?;
    crowd.connect(CONNECT_LIMIT)?;
    crowd.first(move |swarm| settle(swarm, load), &mut || Ok(()))?;
    let meter = Meter::new(server.pid, &args.target.cores.server_cores);
    let before = meter.sample()?;
    let mut sampler = Sampler::new(&meter)?;
    let world = crowd.first(move |swarm| live(swarm, load), &mut || sampler.tick())?;
    let cost = meter.between(&before, &meter.sample()?);
    let usage = sampler.end();
    let stays: Vec<usize> = (0..load.sockets).filter(|&reader| !moves(reader)).collect();
    let expected = stays.iter().map(|&reader| world.expected(reader)).sum();
    let (tally, stayed, recorded) = crowd.first(
        move |swarm| {
            let stayed = stays.iter().map(|&reader| u64::from(swarm.received(reader))).sum::<u64>();
            Ok((swarm.tally(), stayed, Recorded::new(swarm.latency(), usage)))
        },
        &mut || Ok(()),
    )?;
    drop(crowd);
    server.stop()?;
    let unanswered = world.places.values().filter(|&&place| place != Place::In).count() as u64;
    let World { strays, moved, joins, leaves, .. } = world;
    let (duplicate, out_of_order, closed) = (tally.duplicate, tally.out_of_order, tally.closed);
    let report = RoomsReport {
        server: args.target.name(),
        load,
        broadcasts: world.rooms_of.len() as u32,
        stayed,
        expected,
        moved,
        joins,
        leaves,
        strays,
        unanswered,
        duplicate,
        out_of_order,
        closed,
        server_percent: cost.busy_percent(),
        others_percent: cost.others_percent,
        recorded,
        passed: stayed == expected && strays + unanswered + duplicate + out_of_order + closed == 0,
    };
    finish(args, &report)?;
    Ok(report.passed)
}

fn moves(reader: usize) -> bool {
    reader % 2 == 1
}

fn name(room: u32) -> String {
    format!("room-{room}")
}

/// The rooms of a socket that stays.
fn rooms_of(reader: usize, load: RoomsLoad) -> impl Iterator<Item = u32> {
    let step = (load.rooms / load.each).max(1);
    (0..load.each).map(move |number| (reader as u32 / 2 + number * step) % load.rooms)
}

/// Lets those that stay join their rooms.
fn settle(swarm: &mut Swarm, load: RoomsLoad) -> Outcome {
    let (start, mut asked, mut answered) = (Instant::now(), 0, 0);
    let count = |news: Vec<News>| news.iter().filter(|news| matches!(news, News::Answer { .. })).count();
    for reader in (0..load.sockets).filter(|&reader| !moves(reader)) {
        for room in rooms_of(reader, load) {
            swarm.request(reader, &format!("42{room}[\"join\",\"{}\"]", name(room)));
            asked += 1;
        }
        swarm.poll(0)?;
        answered += count(swarm.take_news());
    }
    while answered < asked {
        if start.elapsed() > CONNECT_LIMIT {
            return fail(format!("{answered} of {asked} joins were answered"));
        }
        swarm.poll(100)?;
        answered += count(swarm.take_news());
    }
    swarm.reset_latencies();
    Ok(())
}

/// Publishes and moves by the clock, then waits for what is under way.
fn live(swarm: &mut Swarm, load: RoomsLoad) -> Outcome<World> {
    let mut world = World {
        load,
        rooms_of: Vec::new(),
        published: vec![0; load.rooms as usize],
        places: HashMap::new(),
        random: 0x9e37_79b9_7f4a_7c15,
        joins: 0,
        leaves: 0,
        strays: 0,
        moved: 0,
    };
    let start = Instant::now();
    let count = (load.rate * load.seconds).max(1.0) as u64;
    by_the_clock("broadcasts", swarm, load.rate, count, &mut |swarm, due_us| {
        world.hear(swarm);
        let moves_due = (start.elapsed().as_secs_f64() * load.moves) as u64;
        while world.joins + world.leaves < moves_due && world.step(swarm) {}
        let Some(due_us) = due_us else { return Ok(()) };
        let room = world.draw(load.rooms);
        world.rooms_of.push(room);
        world.published[room as usize] += 1;
        swarm.publish_to(&name(room), 1, load.payload, due_us)
    })?;
    world.come_to_rest(swarm)?;
    Ok(world)
}

impl World {
    /// Broadcasts to the rooms of a socket that stays.
    fn expected(&self, reader: usize) -> u64 {
        rooms_of(reader, self.load).map(|room| self.published[room as usize]).sum()
    }

    /// Takes answers and deliveries in the order in which they came.
    fn hear(&mut self, swarm: &mut Swarm) {
        for news in swarm.take_news() {
            match news {
                News::Answer { reader, number } => match self.places.get(&(reader, number)) {
                    Some(Place::Joining) => drop(self.places.insert((reader, number), Place::In)),
                    _ => drop(self.places.remove(&(reader, number))),
                },
                News::Delivery { reader, sequence } if moves(reader) => {
                    self.moved += 1;
                    let room = self.rooms_of.get(sequence as usize).copied();
                    let known = room.is_some_and(|room| self.places.contains_key(&(reader, room)));
                    self.strays += u64::from(!known);
                }
                News::Delivery { .. } => {}
            }
        }
    }

    /// One join or leave of a socket drawn at random; false if the one that was drawn waits for an answer.
    fn step(&mut self, swarm: &mut Swarm) -> bool {
        let reader = self.draw(self.load.sockets as u32 / 2) as usize * 2 + 1;
        // Of the rooms that it would stay in, so that no set of its rooms has to be kept.
        let number = self.draw(self.load.each) as usize;
        let Some(room) = rooms_of(reader, self.load).nth(number) else { return false };
        if !swarm.is_open(reader) {
            return false;
        }
        let (event, place) = match self.places.get(&(reader, room)) {
            None => ("join", Place::Joining),
            Some(Place::In) => ("leave", Place::Leaving),
            Some(_) => return false,
        };
        match place {
            Place::Joining => self.joins += 1,
            _ => self.leaves += 1,
        }
        self.places.insert((reader, room), place);
        swarm.request(reader, &format!("42{room}[\"{event}\",\"{}\"]", name(room)));
        true
    }

    /// Waits until those that stay have everything and every request is answered, or nothing comes any more.
    fn come_to_rest(&mut self, swarm: &mut Swarm) -> Outcome {
        let stays: Vec<usize> = (0..self.load.sockets).filter(|&reader| !moves(reader)).collect();
        let expected: u64 = stays.iter().map(|&reader| self.expected(reader)).sum();
        let mut last = (0, 0, Instant::now());
        loop {
            swarm.poll(50)?;
            self.hear(swarm);
            let have: u64 = stays.iter().map(|&reader| u64::from(swarm.received(reader))).sum();
            let waiting = self.places.values().filter(|&&place| place != Place::In).count();
            if have >= expected && waiting == 0 {
                return fanout::rest(swarm, Duration::from_millis(50));
            }
            if (have, waiting) != (last.0, last.1) {
                last = (have, waiting, Instant::now());
            } else if last.2.elapsed() > STALL {
                return Ok(());
            }
        }
    }

    /// A number below `below`, from xorshift: the same in every run.
    fn draw(&mut self, below: u32) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) as u32 % below.max(1)
    }
}

fn finish(args: &RoomsArgs, report: &RoomsReport) -> Outcome {
    let RoomsLoad { sockets, rooms, each, rate, moves, seconds, .. } = report.load;
    let title = format!(
        "rooms: {sockets} sockets, {each} of {rooms} rooms for each, {rate} broadcasts/s, {moves} moves/s, {seconds} s"
    );
    println!("{title}\n");
    let mut table = Table::new(&[
        "server",
        "broadcasts",
        "to those that stay",
        "to those that move",
        "joins/leaves",
        "latency p50/p90/p99/p99.9/max ms",
        "server %",
        "others %",
        "lost/dup/order/stray",
    ]);
    table.row(vec![
        report.server.clone(),
        report.broadcasts.to_string(),
        report.stayed.to_string(),
        report.moved.to_string(),
        format!("{}/{}", report.joins, report.leaves),
        report.recorded.latency.long_text(),
        format!("{:.0}", report.server_percent),
        format!("{:.0}", report.others_percent),
        format!(
            "{}/{}/{}/{}",
            report.expected.abs_diff(report.stayed),
            report.duplicate,
            report.out_of_order,
            report.strays
        ),
    ]);
    table.print();
    if report.unanswered + report.closed > 0 {
        println!("\n{} requests without an answer, {} connections closed", report.unanswered, report.closed);
    }
    args.outputs.write(report, || Page::new(&title).table(&table).recorded(&report.recorded))
}
