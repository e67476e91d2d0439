//! socketioxide on axum under the contract of the load tests, on one thread: `--port N`.

use serde_json::Value;
use socketioxide::SocketIo;
use socketioxide::extract::{AckSender, Data, SocketRef};
use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};

/// A storm must not be lost to a short queue.
const BACKLOG: u32 = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = std::env::args().skip_while(|word| word != "--port").nth(1).unwrap_or_else(|| "3001".to_owned());
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(port.parse()?))
}

async fn serve(port: u16) -> Result<(), Box<dyn std::error::Error>> {
    let (layer, io) = SocketIo::new_layer();
    io.ns("/", async |socket: SocketRef| {
        socket.on("join", async |socket: SocketRef, Data::<String>(room), ack: AckSender| {
            socket.join(room);
            let _ = ack.send(&());
        });
        socket.on("leave", async |socket: SocketRef, Data::<String>(room), ack: AckSender| {
            socket.leave(room);
            let _ = ack.send(&());
        });
        socket.on("publish", async |io: SocketIo, Data::<(String, Value)>((room, payload))| {
            let _ = io.to(room).emit("message", &payload).await;
        });
        socket.on("echo", async |Data::<Value>(payload), ack: AckSender| {
            let _ = ack.send(&payload);
        });
    });
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(([127, 0, 0, 1], port).into())?;
    let listener = socket.listen(BACKLOG)?;
    println!("listening on 127.0.0.1:{port}");
    let mut ended = signal(SignalKind::terminate())?;
    let served = axum::serve(axum::serve::ListenerExt::tap_io(listener, |stream| {
        let _ = stream.set_nodelay(true);
    }), axum::Router::new().layer(layer));
    tokio::select! {
        outcome = served => outcome?,
        _ = ended.recv() => {}
    }
    Ok(())
}
