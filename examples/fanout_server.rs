//! The server of the load tests: rooms and echo over Socket.IO, and plain WebSocket and HTTP beside them.
//!
//! `cargo run --release --example fanout_server -- --port 3001 --workers 1`

mod common;
#[path = "common/fan_out.rs"]
mod fan_out;

use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use sockring::app::{App, Behavior, Message, PerMessageDeflate};
use sockring::fanout::{Backpressure, Policy};
use sockring::io::{Ack, Data, Options, Server};

/// The server of the load tests
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    listen: common::Listen,
    /// Offer permessage-deflate to Socket.IO clients, too; /ws does in any case
    #[arg(long)]
    deflate: bool,
    /// Milliseconds between heartbeats, and as many until an answer must be there
    #[arg(long)]
    ping_interval: Option<u64>,
    /// Bytes of broadcasts that may wait for one Socket.IO client, instead of the connection's own limit
    #[arg(long)]
    waiting_bytes: Option<usize>,
    /// What is done when more would wait
    #[arg(long, value_enum, default_value_t = WhenFull::Close, requires = "waiting_bytes")]
    when_full: WhenFull,
}

/// The library's policies, as words.
#[derive(Clone, Copy, ValueEnum)]
enum WhenFull {
    Close,
    DropNewest,
    DropOldest,
}

impl Flags {
    fn backpressure(&self) -> Backpressure {
        let policy = match self.when_full {
            WhenFull::Close => Policy::Close,
            WhenFull::DropNewest => Policy::DropNewest,
            WhenFull::DropOldest => Policy::DropOldest,
        };
        let max_bytes = self.waiting_bytes.unwrap_or(usize::MAX);
        Backpressure { max_bytes, policy, ..Backpressure::default() }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    let builder = flags.listen.builder(3001)?;
    common::serve(builder, move |app| {
        app.serve_metrics("/metrics");
        socketio(app, &flags);
        plain(app);
    })
}

fn socketio(app: &App, flags: &Flags) {
    let mut options = Options { backpressure: flags.backpressure(), ..Options::default() };
    options.engine.per_message_deflate = flags.deflate.then(PerMessageDeflate::default);
    if let Some(ms) = flags.ping_interval {
        options.engine.ping_interval = Duration::from_millis(ms);
        options.engine.ping_timeout = Duration::from_millis(ms);
    }
    let io = Server::attach_app(app, options);
    fan_out::serve(&io);
    // A handler that keeps its core from everything else.
    io.sockets_on("busy", |Data(ms): Data<u64>, ack: Ack| {
        let end = Instant::now() + Duration::from_millis(ms.min(50));
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        ack.send(())
    });
}

fn plain(app: &App) {
    let shared = PerMessageDeflate::default();
    let context =
        PerMessageDeflate { server_no_context_takeover: false, client_no_context_takeover: false, ..shared };
    let limited = PerMessageDeflate { server_max_window_bits: 10, client_max_window_bits: 10, ..context };
    app.get("/", |_, response| response.end("sockring\n"));
    app.post("/", |request, response| response.end(request.body().clone()));
    app.ws("/ws", echo(app, shared));
    app.ws("/ws-context", echo(app, context));
    app.ws("/ws-limited", echo(app, limited));
}

/// Sends back what comes, except for `sub TOPIC` and `pub TOPIC TEXT`.
fn echo(app: &App, deflate: PerMessageDeflate) -> Behavior<()> {
    const MESSAGE_BYTES: usize = 16 * 1024 * 1024;
    let publisher = app.clone();
    Behavior::default()
        .max_message_bytes(MESSAGE_BYTES)
        .max_fragments(1 << 20)
        .per_message_deflate(deflate)
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
        })
}
