//! axum and sockring on one port.
//!
//! sockring listens, serves `/socket.io/` itself, and gives every other request to an axum router on tokio
//! ([`bridge`]). This is the robust way: a browser sends requests for both over one keep-alive connection,
//! so what belongs to whom is decided for each request and not for each connection.
//!
//! `cargo run -p one-port`, then `curl http://127.0.0.1:3006/` and a Socket.IO client on the same address.

mod bridge;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Json, Path, State};
use axum::routing::{get, post};
use clap::Parser;
use sockring::app::App;
use sockring::io::{Ack, Args, Handle, Options, Server, Socket};

/// axum and sockring on one port
#[derive(Parser)]
struct Flags {
    /// Port to listen on, on 127.0.0.1
    #[arg(long, env = "PORT", default_value_t = 3006)]
    port: u16,
    /// Worker threads of sockring; 0 for one on each core
    #[arg(long, default_value_t = 1)]
    workers: usize,
}

/// What axum's handlers share: the way to the sockets, once the server runs.
type Sockets = Arc<OnceLock<Handle>>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    let tokio = tokio::runtime::Runtime::new()?;
    let sockets = Sockets::default();
    let (router, handle) = (router(sockets.clone()), tokio.handle().clone());
    let builder = App::builder().listen(("127.0.0.1", flags.port)).workers(flags.workers);
    let running = builder.start(move |app| {
        let io = Server::attach_app(app, Options::default());
        io.on_connection(|socket: Socket| {
            socket.on("echo", |Args(args): Args, ack: Ack| ack.send(Args(args)));
        });
        bridge::mount(app, &router, &handle);
    })?;
    let _ = sockets.set(Handle::of_server(&running, "/socket.io")?);
    for endpoint in running.endpoints() {
        println!("listening on {endpoint}");
    }
    running.run_until_signal()?;
    tokio.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}

/// An ordinary axum application.
fn router(sockets: Sockets) -> Router {
    Router::new()
        .route("/", get(|| async { "hello from axum" }))
        .route("/who", get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() }))
        .route("/slow", get(slow))
        .route("/stream", get(stream))
        .route("/echo", post(|Json(body): Json<serde_json::Value>| async move { Json(body) }))
        .route("/say/{event}", post(say))
        .with_state(sockets)
}

async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_millis(500)).await;
    "at last"
}

/// An answer whose pieces come one after the other, such as server-sent events.
async fn stream() -> Body {
    let pieces = futures_util::stream::unfold(0, |n| async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        (n < 5).then(|| (Ok::<_, std::convert::Infallible>(format!("data: {n}\n\n")), n + 1))
    });
    Body::from_stream(pieces)
}

/// Sends an event to every socket, from a handler of axum.
async fn say(State(sockets): State<Sockets>, Path(event): Path<String>, text: String) -> &'static str {
    if let Some(io) = sockets.get() {
        let _ = io.emit(&event, text);
    }
    "said"
}
