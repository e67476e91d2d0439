//! A broadcast to many sockets does not keep the others waiting: it is sent in slices.

mod support;

use std::thread;
use std::time::Duration;

use sockring::io::{Ack, Data, Handle, Options, Server, Socket};
use sockring::runtime::{self, Descriptors, Running};
use support::Client;

/// Some slices of 256.
const SOCKETS: usize = 1500;

/// A server whose slices are as small as they can be.
fn start() -> Running {
    let options = runtime::Options { send_slice: Duration::ZERO, ..support::options(Descriptors::Auto, 1) };
    let server = support::builder(options).start(|app| {
        let io = Server::attach_app(app, Options::default());
        let all = io.clone();
        io.sockets_on("publish", move |Data(n): Data<u32>| all.emit("tick", n).map(drop));
        // Whether something that others are owed has still to leave.
        io.sockets_on("look", |ack: Ack| {
            let in_between = runtime::current().is_some_and(|core| core.outlets().is_dirty());
            ack.send(in_between).map(drop)
        });
        io.sockets_on("whisper", |socket: Socket, Data(n): Data<u32>| socket.emit("tick", n).map(drop));
    });
    server.expect("a server starts")
}

#[test]
fn a_message_is_answered_before_a_large_broadcast_has_left() {
    let _alone = support::alone();
    let server = start();
    let mut clients: Vec<Client> = (0..SOCKETS).map(|_| Client::socketio(server.addresses()[0])).collect();
    let answered_meanwhile = (0..50).any(|n| {
        clients[1].send_text(&format!("42[\"publish\",{n}]"));
        // The first to get it is among the first to be sent it, and asks at once.
        assert_eq!(clients[0].text(), format!("42[\"tick\",{n}]"));
        clients[0].send_text("421[\"look\"]");
        let answer = clients[0].text();
        // All have it before the next one.
        for client in &mut clients[1..] {
            assert_eq!(client.text(), format!("42[\"tick\",{n}]"));
        }
        answer == "431[true]"
    });
    assert!(answered_meanwhile);
    drop(clients);
    support::end(server);
}

#[test]
fn each_socket_gets_everything_in_order_and_once() {
    const COUNT: u32 = 60;
    let _alone = support::alone();
    let server = start();
    let mut clients: Vec<Client> = (0..SOCKETS).map(|_| Client::socketio(server.addresses()[0])).collect();
    for n in 0..COUNT {
        // One sender: what it says to all and to itself has an order.
        clients[7].send_text(&format!("42[\"publish\",{}]", 2 * n));
        clients[7].send_text(&format!("42[\"whisper\",{}]", 2 * n + 1));
    }
    for (at, client) in clients.iter_mut().enumerate() {
        let step = if at == 7 { 1 } else { 2 };
        for n in (0..2 * COUNT).step_by(step) {
            assert_eq!(client.text(), format!("42[\"tick\",{n}]"), "client {at}");
        }
    }
    // And nothing more.
    for client in &mut clients {
        client.send_text("421[\"look\"]");
        assert!(client.text().starts_with("431"));
    }
    drop(clients);
    support::end(server);
}

#[test]
fn many_slow_readers_who_read_again_take_turns() {
    const READERS: usize = 60;
    const COUNT: u32 = 30;
    let _alone = support::alone();
    let server = start();
    let address = server.addresses()[0];
    // Fewer than one burst: nothing is put off for its number.
    let join = |_| {
        let mut client = Client::with_receive_buffer(address, 4096);
        client.upgrade("/socket.io/?EIO=4&transport=websocket");
        assert!(client.text().starts_with('0'));
        client.send_text("40");
        assert!(client.text().starts_with("40"));
        client
    };
    let readers: Vec<Client> = (0..READERS).map(join).collect();
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    let text = "x".repeat(100_000);
    for n in 0..COUNT {
        assert!(io.emit("tick", (n, &text)).is_ok());
    }
    let slow = || server.metrics().total("slow_connections") == READERS as u64;
    support::eventually("nobody reads", slow);
    let reading = readers.into_iter().map(|mut reader| {
        thread::spawn(move || {
            for n in 0..COUNT {
                assert!(reader.text().starts_with(&format!("42[\"tick\",{n},")));
            }
        })
    });
    let reading: Vec<_> = reading.collect();
    reading.into_iter().for_each(|reader| reader.join().expect("everything comes, in order"));
    assert!(server.metrics().total("sends_put_off") > 0);
    support::end(server);
}
