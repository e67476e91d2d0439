//! Clients of Socket.IO v2 that are slow: what waits for them, and what their limit is.

pub(crate) mod support;

use std::thread;
use std::time::Duration;

use bytes::Bytes;
use sockring::engine;
use sockring::io::{Handle, Options, Server};
use sockring::runtime::{self, Descriptors};
use support::*;

crate::both!(
    a_slow_client_gets_everything_but_what_is_volatile,
    a_client_that_does_not_read_is_closed,
    what_was_emitted_before_a_disconnect_arrives,
);

const DATA_BYTES: usize = 8192;
/// More than the kernel takes for a client that does not read.
const MESSAGES: usize = 1000;
const LIMIT_BYTES: usize = 4 << 20;
/// The opcode of the frame with which a connection ends that the server could still write to.
const CLOSE: u8 = 8;
const ROUNDS: usize = 25;
/// What two clients are owed that do not read, each in its own form, one of them in base64. Beside their limits
/// a round is on its way through the mailboxes, and the allocator of the tests keeps about as much for itself.
const EMITTED_BYTES: usize = ROUNDS * MESSAGES * DATA_BYTES * (3 + 4) / 3;

fn start(descriptors: Descriptors) -> (runtime::Running, Handle) {
    let options = runtime::Options { backpressure_bytes: LIMIT_BYTES, ..options(descriptors, 2) };
    let server = builder(options)
        .start(|app| {
            let engine = engine::Options { allow_eio3: true, ..Options::default().engine };
            Server::attach_app(app, Options { engine, ..Options::default() });
        })
        .unwrap();
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    (server, io)
}

/// A client past its CONNECT, whose kernel takes little if it is to be slow.
fn connect(server: &runtime::Running, query: &str, slow: bool) -> Client {
    let mut client = Client::with_receive_buffer(server.addresses()[0], if slow { 4096 } else { 0 });
    client.upgrade(&format!("/socket.io/?EIO=3&transport=websocket{query}"));
    assert!(client.frame().unwrap().text().starts_with("0{"));
    assert_eq!(client.frame().unwrap().text(), "40");
    client
}

fn data(number: usize) -> Bytes {
    vec![number as u8; DATA_BYTES].into()
}

fn emit(io: &Handle, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let _ = io.emit("n", (number, data(number))).unwrap();
    }
}

/// Reads the messages of these numbers, without a gap; how many came before the end of the stream.
fn read(client: &mut Client, numbers: std::ops::Range<usize>) -> usize {
    let first = numbers.start;
    for number in numbers {
        let Ok(text) = client.frame() else { return number - first };
        if text.opcode == CLOSE {
            return number - first;
        }
        assert_eq!(text.text(), format!(r#"451-["n",{number},{{"_placeholder":true,"num":0}}]"#));
        let Ok(attachment) = client.frame() else { return number - first };
        assert_eq!((attachment.opcode, attachment.payload[0]), (2, 4));
        assert!(attachment.payload[1..] == data(number), "message {number}");
    }
    usize::MAX
}

fn a_slow_client_gets_everything_but_what_is_volatile(descriptors: Descriptors) {
    let (server, io) = start(descriptors);
    let mut slow = connect(&server, "", true);
    let mut healthy = connect(&server, "", false);
    let healthy = thread::spawn(move || read(&mut healthy, 0..MESSAGES));
    emit(&io, 0..MESSAGES);
    assert_eq!(healthy.join().unwrap(), usize::MAX);
    // The other one is blocked by now.
    thread::sleep(Duration::from_millis(200));
    for _ in 0..20 {
        let _ = io.volatile().emit("lost", data(0)).unwrap();
    }
    emit(&io, MESSAGES..MESSAGES + 10);
    assert_eq!(read(&mut slow, 0..MESSAGES + 10), usize::MAX);
    // It is as good as any other now.
    thread::sleep(Duration::from_millis(100));
    let _ = io.volatile().emit("found", ()).unwrap();
    assert_eq!(slow.frame().unwrap().text(), r#"42["found"]"#);
    end(server);
}

fn a_client_that_does_not_read_is_closed(descriptors: Descriptors) {
    let (server, io) = start(descriptors);
    let mut stalled = [connect(&server, "", true), connect(&server, "&b64=1", true)];
    let mut healthy = connect(&server, "", false);
    let before = resident_bytes();
    for round in 0..ROUNDS {
        emit(&io, round * MESSAGES..(round + 1) * MESSAGES);
        assert_eq!(read(&mut healthy, round * MESSAGES..(round + 1) * MESSAGES), usize::MAX);
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < EMITTED_BYTES / 2, "memory grew by {grown} of {EMITTED_BYTES} bytes");
    let came = read(&mut stalled[0], 0..ROUNDS * MESSAGES);
    assert!(came < ROUNDS * MESSAGES, "the limit closes a client that does not read");
    let mut frames = 0;
    while stalled[1].frame().is_ok() {
        frames += 1;
    }
    assert!(frames < 2 * ROUNDS * MESSAGES);
    end(server);
}

fn what_was_emitted_before_a_disconnect_arrives(descriptors: Descriptors) {
    let (server, io) = start(descriptors);
    let mut client = connect(&server, "", true);
    emit(&io, 0..MESSAGES);
    thread::sleep(Duration::from_millis(100));
    io.disconnect_sockets(true);
    assert_eq!(read(&mut client, 0..MESSAGES), usize::MAX);
    assert_eq!(client.frame().unwrap().text(), "41");
    assert_eq!(client.frame().unwrap().opcode, 8);
    end(server);
}
