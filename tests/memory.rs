//! The bound on the process's memory: while it is passed, the server takes on nothing new and serves those who
//! are there. This process is the server too, so the test makes it large by holding memory itself.

mod support;

use std::fs;

use sockring::app::{App, Behavior, Message};
use sockring::io::{Ack, Args, Options, Server};
use sockring::runtime::{self, Descriptors, Running};
use support::*;

/// Memory beyond what the process has at the start, until it is short.
const ROOM: usize = 96 << 20;
/// More than a body or message may be while the process is short of memory.
const LARGE: usize = 100 * 1024;
/// Messages of that size that a client asks for, 3 MB.
const MUCH: usize = 30;
const POLLING: &str = "/socket.io/?EIO=4&transport=polling";

/// Anonymous memory of this process.
fn used() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: Vec<usize> = statm.split_whitespace().map(|field| field.parse().unwrap()).collect();
    (pages[1] - pages[2]) * 4096
}

fn start(max_memory: usize) -> Running {
    let options = runtime::Options { max_memory, ..options(Descriptors::Auto, 1) };
    builder(options).start(set_up).unwrap()
}

fn set_up(app: &App) {
    app.get("/", |_, response| response.end("hello"));
    app.post("/", |request, response| response.end(request.body().len().to_string()));
    let echo = Behavior::<()>::default().message(|socket, message| {
        let Message::Text(text) = message else { return };
        let times = if text == "much" { MUCH } else { 0 };
        for _ in 0..times {
            let _ = socket.send_binary(&[0; LARGE]);
        }
        let _ = socket.send_text(text);
    });
    app.ws("/echo", echo);
    let io = Server::attach_app(app, Options::default());
    io.sockets_on("echo", |args: Args, ack: Ack| ack.send(args));
}

/// The status that a new connection's request gets.
fn status_of_newcomer(server: &Running) -> u16 {
    let mut client = Client::connect(server.addresses()[0]);
    client.get("/").status
}

#[test]
fn a_process_that_is_short_of_memory_takes_on_nothing_new() {
    let _alone = alone();
    let server = start(used() + ROOM);
    let address = server.addresses()[0];
    let mut http = Client::connect(address);
    assert_eq!(http.post("/", &[b'x'; LARGE]).text(), LARGE.to_string());
    let mut sessions = Client::connect(address);
    assert_eq!(sessions.get(POLLING).status, 200);
    let mut later = Client::connect(address);
    assert_eq!(later.get("/").status, 200);
    let mut honest = Client::socketio(address);
    let mut sender = Client::websocket(address, "/echo");

    let mut stalled = Client::with_receive_buffer(address, 4096);
    stalled.upgrade("/echo");
    stalled.send_text("much");
    eventually("much waits for it", || server.metrics().total("queued_bytes") > 2 << 20);

    let held = vec![1_u8; 2 * ROOM];
    eventually("new connections are refused", || status_of_newcomer(&server) == 503);
    let mut newcomer = Client::connect(address);
    let refused = newcomer.get("/");
    assert!(refused.header("retry-after").is_some(), "{}", refused.head);
    assert!(server.metrics().total("memory_bytes") > server.metrics().total("memory_max_bytes"));

    // A client that has much and takes none of it has it no longer.
    eventually("what waits is forgotten", || server.metrics().total("queued_bytes") == 0);

    // Those who are there are served, with anything small.
    assert_eq!(http.get("/").text(), "hello");
    assert_eq!(http.post("/", b"small").text(), "5");
    honest.send_text("421[\"echo\",\"still here\"]");
    assert_eq!(honest.text(), "431[\"still here\"]");
    sender.send_text("small");
    assert_eq!(sender.text(), "small");

    // No new session begins, on a connection of either kind.
    let refused = sessions.get(POLLING);
    assert_eq!(refused.status, 503, "{}", refused.head);
    assert!(refused.header("retry-after").is_some(), "{}", refused.head);
    later.send(upgrade_request(SOCKETIO).as_bytes());
    assert_eq!(later.answer().unwrap().status, 503);

    // Nor does anything large come in.
    let refused = http.post("/", &[b'x'; LARGE]);
    assert_eq!(refused.status, 503, "{}", refused.head);
    assert!(refused.header("retry-after").is_some(), "{}", refused.head);
    sender.send_text(&"x".repeat(LARGE));
    let close = sender.frame().unwrap();
    assert_eq!((close.opcode, &close.payload[..2]), (8, &1013_u16.to_be_bytes()[..]));

    drop(held);
    eventually("all are served again", || status_of_newcomer(&server) == 200);
    assert_eq!(Client::connect(address).get(POLLING).status, 200);
    assert_eq!(Client::connect(address).post("/", &[b'x'; LARGE]).text(), LARGE.to_string());
    honest.send_text("422[\"echo\",\"and still\"]");
    assert_eq!(honest.text(), "432[\"and still\"]");
    end(server);
}
