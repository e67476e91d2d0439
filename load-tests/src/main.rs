//! Load tools for sockring: the bare server that its cost is compared with, a client that holds thousands of
//! connections, and scenarios that measure servers of any make over the wire.
//!
//! `README.md` beside this crate says how cost is measured and what the figures do not say.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod built;
mod client;
mod compare;
mod cost;
mod crowd;
mod echo;
mod fanout;
mod floor;
mod hold;
mod idle;
mod listener;
mod meter;
mod mixed;
mod page;
mod polling;
mod rate;
mod record;
mod report;
mod rooms;
mod scale;
mod slow;
mod storm;
mod sys;
mod tally;
mod target;
mod tls;
mod wire;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What every fallible step of these tools returns: an error is printed and ends the run.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// An error from a sentence.
pub(crate) fn fail<T>(sentence: String) -> Outcome<T> {
    Err(sentence.into())
}

/// Measures Socket.IO servers over the wire, against the least that a server must do.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve as the floor: accept, join, and send ready-made frames
    Floor(floor::FloorArgs),
    /// One publisher, N readers, a window of broadcasts: cost of a delivery
    Fanout(fanout::FanoutArgs),
    /// The acceptance run: the server against both floors, turn by turn
    FanoutCost(cost::CostArgs),
    /// All servers and all kinds of work, turn by turn: one table with ratios
    Compare(compare::CompareArgs),
    /// Memory of an idle connection, and CPU of accepting it
    Idle(idle::IdleArgs),
    /// Broadcasts by the clock: what a subscriber waits
    Rate(rate::RateArgs),
    /// Echo with acknowledgement: cost of a round trip
    Echo(echo::EchoArgs),
    /// Many rooms, and sockets that join and leave all the time
    Rooms(rooms::RoomsArgs),
    /// Several workers beside one, with a client that costs nothing meanwhile
    Scale(scale::ScaleArgs),
    /// Long-polling clients beside WebSockets
    Mixed(mixed::MixedArgs),
    /// More connections than one descriptor table holds
    Hold(hold::HoldArgs),
    /// What one reader that stops reading does to the others
    SlowReader(slow::SlowArgs),
    /// All connect at once, beside sockets that stay
    Storm(storm::StormArgs),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let outcome = sys::raise_descriptor_limit().map_err(Into::into).and_then(|_| match command {
        Command::Floor(args) => floor::run(&args).map(|()| true),
        Command::Fanout(args) => fanout::run(&args),
        Command::FanoutCost(args) => cost::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Idle(args) => idle::run(&args),
        Command::Rate(args) => rate::run(&args),
        Command::Echo(args) => echo::run(&args),
        Command::Rooms(args) => rooms::run(&args),
        Command::Scale(args) => scale::run(&args),
        Command::Mixed(args) => mixed::run(&args),
        Command::Hold(args) => hold::run(&args),
        Command::SlowReader(args) => slow::run(&args),
        Command::Storm(args) => storm::run(&args),
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("load-tests: {error}");
            ExitCode::from(2)
        }
    }
}
