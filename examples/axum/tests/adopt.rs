//! The other way round: tokio accepts, looks at the first request, and gives Socket.IO's connections away.
//!
//! The limit of this way: what a connection is for is decided by its first request, once. A client whose
//! keep-alive connection carries requests for both sides (a browser does that) gets 404 for one of them.
//! It fits where the two can be told apart by connection: other hosts, other listeners, or clients that use
//! WebSocket only.

use std::io::{Read, Write};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use sockring::app::App;
use sockring::io::{Options, Server, Socket};
use sockring::runtime::Adopter;
use tokio::net::{TcpListener, TcpStream};

const PATH: &[u8] = b"/socket.io/";

/// Whether a request that begins like this is for Socket.IO; `None`: more is needed.
fn is_for_socketio(first: &[u8]) -> Option<bool> {
    let method = first.iter().position(|byte| *byte == b' ')?;
    let path = &first[method + 1..];
    let known = path.len().min(PATH.len());
    (path.len() >= PATH.len() || path != &PATH[..known]).then(|| path.starts_with(PATH))
}

/// Looks at the first bytes of a connection without taking them.
async fn is_socketio(stream: &TcpStream) -> std::io::Result<bool> {
    let mut first = [0; 64];
    for _ in 0..200 {
        let count = stream.peek(&mut first).await?;
        match is_for_socketio(&first[..count]) {
            Some(verdict) => return Ok(verdict),
            None if count == 0 || count == first.len() => return Ok(false),
            // What is there already makes the next peek return at once.
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    Ok(false)
}

async fn serve(stream: TcpStream, router: Router, adopter: Adopter) -> std::io::Result<()> {
    if is_socketio(&stream).await? {
        // Some of it is taken out here, so that the test shows that nothing is lost.
        let mut read = vec![0; 20];
        let count = stream.try_read(&mut read)?;
        read.truncate(count);
        return adopter.adopt(stream.into_std()?, read).map_err(std::io::Error::other);
    }
    let service = TowerToHyperService::new(router);
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    served.map_err(std::io::Error::other)
}

/// One request on a connection of its own.
fn ask(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn tokio_accepts_and_sockring_adopts() {
    let server = App::builder().adopt_only().workers(2).start(|app| {
        let io = Server::attach_app(app, Options::default());
        io.on_connection(|socket: Socket| socket.emit("welcome", "from sockring"));
    });
    let server = server.unwrap();
    let tokio = tokio::runtime::Runtime::new().unwrap();
    let listener = tokio.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let adopter = server.adopter();
    tokio.spawn(async move {
        let router = Router::new().route("/", get(|| async { "hello from axum" }));
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, router.clone(), adopter.clone()));
        }
    });

    let answer = ask(address, "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    assert!(answer.ends_with("hello from axum"), "{answer}");
    let polling = "/socket.io/?EIO=4&transport=polling";
    let answer = ask(address, &format!("GET {polling} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"));
    let sid = answer.split("\"sid\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let path = format!("{polling}&sid={sid}");
    let post =
        format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\nConnection: close\r\n\r\n40");
    assert!(ask(address, &post).ends_with("ok"));

    // A WebSocket: the official client's first frames by hand.
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    let upgrade = "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\n\
                   Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(upgrade.as_bytes()).unwrap();
    // The CONNECT of the main namespace, masked with zeroes.
    socket.write_all(b"\x81\x82\0\0\0\x0040").unwrap();
    let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&seen).contains("42[\"welcome\",\"from sockring\"]") {
        let count = socket.read(&mut chunk).unwrap();
        assert!(count > 0, "it was closed: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&chunk[..count]);
    }
    server.shutdown();
    server.join().unwrap();
}
