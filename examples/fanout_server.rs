//! The server of the load tests: rooms and echo over Socket.IO, and plain WebSocket and HTTP beside them.
//!
//! `cargo run --release --example fanout_server -- --port 3001 --workers 1`

mod common;

use std::time::{Duration, Instant};

use clap::Parser;
use sockring::app::{App, Behavior, Message, PerMessageDeflate};
use sockring::io::{Ack, Args, Data, Options, Server, Socket, Value};

/// The server of the load tests
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    listen: common::Listen,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    let builder = flags.listen.builder(3001);
    common::serve(builder, |app| {
        socketio(app);
        plain(app);
    })
}

fn socketio(app: &App) {
    let io = Server::attach_app(app, Options::default());
    let publisher = io.clone();
    io.sockets_on("join", |socket: Socket, Data(room): Data<String>, ack: Ack| {
        socket.join(room);
        ack.send(())
    });
    io.sockets_on("leave", |socket: Socket, Data(room): Data<String>, ack: Ack| {
        socket.leave(room);
        ack.send(())
    });
    io.sockets_on("publish", move |Data((room, payload)): Data<(String, Value)>| {
        publisher.to(room).emit("message", payload)
    });
    // A handler that keeps its core from everything else.
    io.sockets_on("busy", |Data(ms): Data<u64>, ack: Ack| {
        let end = Instant::now() + Duration::from_millis(ms.min(50));
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        ack.send(())
    });
    io.sockets_on("echo", |Args(args): Args, ack: Ack| ack.send(args.first().unwrap_or(&Value::Null)));
}

fn plain(app: &App) {
    const MESSAGE_BYTES: usize = 16 * 1024 * 1024;
    app.get("/", |_, response| response.end("sockring\n"));
    app.post("/", |request, response| response.end(request.body().clone()));
    let publisher = app.clone();
    let behavior = Behavior::<()>::default()
        .max_message_bytes(MESSAGE_BYTES)
        .max_fragments(1 << 20)
        .per_message_deflate(PerMessageDeflate::default())
        .message(move |ws, message| {
            let Message::Text(text) = message else {
                if let Message::Binary(data) = message {
                    let _ = ws.send_binary(data);
                }
                return;
            };
            if let Some(topic) = text.strip_prefix("sub ") {
                ws.subscribe(topic);
            } else if let Some((topic, payload)) =
                text.strip_prefix("pub ").and_then(|rest| rest.split_once(' '))
            {
                let _ = publisher.publish_text(topic, payload);
            } else {
                let _ = ws.send_text(text);
            }
        });
    app.ws("/ws", behavior);
}
