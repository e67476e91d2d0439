//! Slow readers: what becomes of messages for a client that does not keep up, by what they are worth.
//!
//! `cargo run --release --example slow_readers`

mod common;

use clap::Parser;
use sockring::io::{Ack, Backpressure, Data, Failure, Namespace, Options, Policy, Server, Socket};

#[derive(Parser)]
#[command(about)]
struct Flags {
    #[command(flatten)]
    listen: common::Listen,
}

/// Messages that may wait for one client where some are dropped.
const FEW: usize = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    common::serve(flags.listen.builder(3000)?, |app| {
        let io = Server::attach_app(app, Options::default());
        let few = |policy| Backpressure { max_messages: FEW, policy, ..Backpressure::default() };
        // None may be missed: who is too slow is closed, comes back, and asks for all of them.
        publishes(io.of("/orders"));
        // The newest are what matters.
        publishes(io.of("/positions").set_backpressure(few(Policy::DropOldest)).clone());
        // Who has heard the beginning hears it to the end.
        publishes(io.of("/announcements").set_backpressure(few(Policy::DropNewest)).clone());
        // Of each symbol only the last price.
        publishes(io.of("/prices"));
    })
}

/// Who publishes is answered when its messages are on their way to all.
fn publishes(nsp: Namespace) {
    nsp.on_drain(|socket: Socket| drop(socket.emit("drained", ())));
    let all = nsp.clone();
    nsp.sockets_on("publish", move |Data((from, to, text)): Data<(u32, u32, String)>, ack: Ack| {
        for n in from..to {
            let _ = match all.name() {
                "/prices" => all.latest(n % 5).emit("tick", (n, &text))?,
                _ => all.emit("tick", (n, &text))?,
            };
        }
        let _ = ack.send(())?;
        Ok::<(), Failure>(())
    });
}
