//! A WebSocket echo on the App layer alone, no Socket.IO.
//!
//! `cargo run --example echo -- --port 3002`, then `npx wscat -c ws://127.0.0.1:3002/`

mod common;

use clap::Parser;
use sockring::app::{Behavior, Message};

/// A WebSocket echo without Socket.IO
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    listen: common::Listen,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    let builder = flags.listen.builder(3002)?;
    common::serve(builder, |app| {
        let echo = Behavior::<()>::default()
            .open(|ws| println!("{:?} connected", ws.peer()))
            .message(|ws, message| {
                let _ = match message {
                    Message::Text(text) => ws.send_text(text),
                    Message::Binary(data) => ws.send_binary(data),
                };
            })
            .close(|_, closed| println!("closed with {}", closed.code));
        app.ws("/", echo);
    })
}
