//! A board whose clients may lose their connection: they come back as who they were, in their rooms, and get what
//! they have missed.
//!
//! `cargo run --release --example recovery -- --workers 2`

mod common;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Parser;
use sockring::io::{
    Ack, ConnectionStateRecovery, Data, DisconnectReason, ExpiredSession, Handle, MsgpackParser, Options,
    Server, Socket, Value,
};

#[derive(Parser)]
#[command(about)]
struct Flags {
    #[command(flatten)]
    listen: common::Listen,
    /// Milliseconds for which a client may be gone
    #[arg(long, default_value_t = 120_000)]
    window: u64,
    /// Ask the middlewares also about clients that come back
    #[arg(long)]
    ask_middlewares: bool,
    /// Milliseconds between two ticks, which another thread emits to all; 0 for none
    #[arg(long, default_value_t = 0)]
    tick: u64,
    /// Speak MessagePack
    #[arg(long)]
    msgpack: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    let recovery = ConnectionStateRecovery {
        max_disconnection_duration: Duration::from_millis(flags.window),
        skip_middlewares: !flags.ask_middlewares,
        ..ConnectionStateRecovery::default()
    };
    let builder = flags.listen.builder(3000)?;
    let running = common::start(builder, move |app| {
        let options = Options {
            connection_state_recovery: Some(recovery.clone()),
            parser: flags.msgpack.then(|| Arc::new(MsgpackParser) as _),
            ..Options::default()
        };
        board(&Server::attach_app(app, options));
    })?;
    if flags.tick > 0 {
        let (io, pause) =
            (Handle::of_server(&running, "/socket.io").unwrap(), Duration::from_millis(flags.tick));
        thread::spawn(move || {
            for number in 0u64.. {
                let _ = io.emit("tick", number);
                thread::sleep(pause);
            }
        });
    }
    running.run_until_signal()?;
    Ok(())
}

fn board(io: &Server) {
    io.middleware(|Data(auth): Data<Value>| {
        let banned = auth.get("banned").and_then(Value::as_bool) == Some(true);
        if banned { Err("banned") } else { Ok(()) }
    });
    io.on_connection(|socket: Socket, Data(auth): Data<Value>| {
        if !socket.recovered() {
            // Only a client that is new has to be told apart: the others have their name still.
            socket.set_data(auth.get("name").cloned().unwrap_or(Value::Null));
        }
        socket.on("join", |socket: Socket, Data(room): Data<String>, ack: Ack| {
            socket.join(room);
            ack.send(())
        });
        socket.on("say", |socket: Socket, Data((to, text)): Data<(String, Value)>| {
            socket.to(to).emit("said", (socket.id(), text))
        });
        socket.on("publish", |socket: Socket, Data((to, text)): Data<(String, Value)>| {
            let nobody = socket.broadcast();
            let _ = nobody.to(&to).volatile().emit("volatile", ());
            nobody.to(to).except("deaf").emit("published", text)
        });
        socket.on("whisper", |socket: Socket, Data(text): Data<Value>| socket.emit("whispered", text));
        socket.on("who am i", |socket: Socket, ack: Ack| {
            let name = socket.recovered_data::<String>().and_then(Result::ok);
            ack.send((socket.id(), socket.recovered(), name, socket.rooms()))
        });
        socket.on("disconnect me", |socket: Socket| socket.disconnect(false));
        socket.on("disconnect", |reason: DisconnectReason| tracing::debug!("one is gone: {reason}"));
    });
    let others = io.clone();
    io.on_session_expired(move |session: &ExpiredSession| {
        let _ = others.emit("gone", (&session.id, &session.data));
    });
}
