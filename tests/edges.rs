//! What shows only at an edge: limits that nobody reaches by accident, and sockets that leave in the middle of
//! something. Each test fails when the line is taken out that it is about.

mod support;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use sockring::io::{
    Ack, AckError, BroadcastAckError, ConnectionStateRecovery, Data, Handshake, Options, Server, Socket,
    Value,
};
use sockring::protocol::ws::frame::OpCode;
use sockring::runtime::{Descriptors, Running};
use support::{Client, masked};

const POLL: &str = "/socket.io/?EIO=4&transport=polling";
const WS: &str = "/socket.io/?EIO=4&transport=websocket";
/// Nobody waits for it unless something is wrong.
const LONG: Duration = Duration::from_secs(60);

fn start_with(
    options: impl Fn() -> Options + Send + Sync + 'static,
    set_up: impl Fn(&Server) + Send + Sync + 'static,
) -> Running {
    let server = support::builder(support::options(Descriptors::Auto, 1))
        .start(move |app| set_up(&Server::attach_app(app, options())));
    server.expect("a server starts")
}

fn start(set_up: impl Fn(&Server) + Send + Sync + 'static) -> Running {
    start_with(Options::default, set_up)
}

fn open(address: SocketAddr) -> Client {
    let mut client = Client::websocket(address, WS);
    assert!(client.text().starts_with("0{"));
    client
}

fn join(address: SocketAddr) -> Client {
    let mut client = open(address);
    client.send_text("40");
    assert!(client.text().starts_with("40{"));
    client
}

fn told<T>(from: &Receiver<T>) -> T {
    from.recv_timeout(Duration::from_secs(8)).expect("somebody tells")
}

#[test]
fn an_answer_that_cannot_come_is_not_waited_for() {
    let _alone = support::alone();
    let (tell, ends) = mpsc::channel();
    let server = start(move |io| {
        let tell = tell.clone();
        io.sockets_on("ask me", move |socket: Socket| {
            let tell = tell.clone();
            let asked = socket.emit_with_ack::<(), _>("question", ());
            async move {
                let _ = tell.send(asked.await);
            }
        });
    });
    for leave in ["41", "1", "\u{0}"] {
        let mut client = join(server.addresses()[0]);
        client.send_text("42[\"ask me\"]");
        assert!(client.text().ends_with("[\"question\"]"));
        match leave {
            "\u{0}" => client.reset(),
            leave => client.send_text(leave),
        }
        assert_eq!(told(&ends), Err(AckError::Disconnected));
    }
    support::end(server);
}

#[test]
fn a_client_that_is_passed_by_is_not_asked() {
    let _alone = support::alone();
    let (tell, ends) = mpsc::channel();
    let server = start(move |io| {
        let (tell, all) = (tell.clone(), io.clone());
        io.sockets_on("ask all", move || {
            let tell = tell.clone();
            let votes = all.volatile().timeout(LONG).emit_with_ack::<u8, _>("vote", ());
            async move {
                let _ = tell.send(votes.await);
            }
        });
    });
    // It does not poll, so that nothing can be sent to it at once.
    let mut client = Client::connect(server.addresses()[0]);
    let path = format!("{POLL}&sid={}", support::sid(client.get(POLL).text()));
    client.post(&path, b"40");
    client.get(&path);
    client.post(&path, b"42[\"ask all\"]");
    assert_eq!(told::<Result<Vec<u8>, BroadcastAckError<u8>>>(&ends), Ok(Vec::new()));
    support::end(server);
}

#[test]
fn an_acknowledgement_is_sent_once() {
    let _alone = support::alone();
    let server = start(|io| {
        for number in [1, 2] {
            io.sockets_on("who is first?", move |ack: Ack| ack.send(number));
        }
    });
    let mut client = join(server.addresses()[0]);
    client.send_text("427[\"who is first?\"]");
    client.send_text("428[\"who is first?\"]");
    assert_eq!((client.text(), client.text()), ("437[1]".to_owned(), "438[1]".to_owned()));
    support::end(server);
}

#[test]
fn who_never_waits_for_a_decision_is_closed() {
    let _alone = support::alone();
    let server = start(|io| {
        io.of("/slow").middleware(std::future::pending::<()>);
    });
    let mut client = join(server.addresses()[0]);
    let wishes: Vec<u8> = (0..200).flat_map(|_| masked(OpCode::Text, b"40/slow,")).collect();
    client.send(&wishes);
    assert!(client.ends());
    let mut patient = join(server.addresses()[0]);
    (0..50).for_each(|_| patient.send_text("40/slow,"));
    patient.send_text("40/nowhere,");
    assert!(patient.text().starts_with("44/nowhere,"));
    support::end(server);
}

#[test]
fn who_has_left_the_room_of_its_id_is_not_in_it() {
    let _alone = support::alone();
    let server = start(|io| {
        let all = io.clone();
        io.sockets_on("reach me", move |socket: Socket, ack: Ack| {
            let _ = all.to(socket.id()).emit("reached", 1);
            socket.leave(socket.id().to_string());
            let _ = all.to(socket.id()).emit("reached", 2);
            socket.join(socket.id().to_string());
            let _ = all.to(socket.id()).emit("reached", 3);
            ack.send(socket.rooms().len())
        });
    });
    let mut client = join(server.addresses()[0]);
    client.send_text("427[\"reach me\"]");
    assert_eq!(
        [client.text(), client.text(), client.text()],
        ["42[\"reached\",1]", "42[\"reached\",3]", "437[1]"]
    );
    support::end(server);
}

#[test]
fn a_socket_owes_so_many_acknowledgements_and_no_more() {
    let _alone = support::alone();
    let (tell, ends) = mpsc::channel();
    let server = start(move |io| {
        let tell = tell.clone();
        io.sockets_on("ask much", move |socket: Socket| {
            let refused = Rc::new(Cell::new(0));
            for _ in 0..10_050 {
                let refused = refused.clone();
                let _ = socket.emit_with_callback("q", (), move |result| {
                    if result == Err(AckError::Disconnected) {
                        refused.set(refused.get() + 1);
                    }
                });
            }
            let _ = tell.send(refused.get());
        });
    });
    let mut client = join(server.addresses()[0]);
    client.send_text("42[\"ask much\"]");
    assert_eq!(told(&ends), 50);
    support::end(server);
}

#[test]
fn broadcasts_that_await_answers_are_limited_until_they_are_over() {
    let _alone = support::alone();
    let server = start(|io| {
        let all = io.clone();
        io.sockets_on("ask much", move |Data((count, millis)): Data<(usize, u64)>, ack: Ack| {
            for _ in 0..count {
                let asked = all.timeout(Duration::from_millis(millis));
                let _ = asked.emit_with_callback::<(), _>("q", (), |_| ());
            }
            ack.send(())
        });
    });
    let mut client = join(server.addresses()[0]);
    let mut ask = |count: usize, millis: u64| {
        client.send_text(&format!("427[\"ask much\",{count},{millis}]"));
        let mut asked = 0;
        while client.text() != "437[]" {
            asked += 1;
        }
        asked
    };
    assert_eq!(ask(10_050, 1500), 10_000);
    assert_eq!(ask(1, 1500), 0, "as long as nobody has answered");
    // When their time is over they count no more.
    let start = std::time::Instant::now();
    while ask(1, 10) == 0 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(50));
    }
    support::end(server);
}

#[test]
fn who_is_sent_away_by_a_middleware_gets_no_further() {
    let _alone = support::alone();
    let (tell, ends) = mpsc::channel();
    let server = start(move |io| {
        let (tell, also) = (tell.clone(), tell.clone());
        // One of the namespace outlives those of the socket.
        io.sockets_on("event", move || {
            let _ = also.send("handled");
        });
        io.on_connection(move |socket: Socket| {
            socket.middleware(|socket: Socket| socket.disconnect(false));
            let (handled, left) = (tell.clone(), tell.clone());
            socket.on("event", move || {
                let _ = handled.send("handled");
            });
            socket.on("disconnect", move |socket: Socket| {
                socket.join("a room");
                let _ = left.send(if socket.rooms().is_empty() { "left" } else { "in a room" });
            });
        });
    });
    let mut client = join(server.addresses()[0]);
    client.send_text("42[\"event\"]");
    assert_eq!(client.text(), "41");
    assert_eq!(told(&ends), "left");
    client.send_text("40");
    assert!(client.text().starts_with("40{"));
    assert!(ends.try_recv().is_err(), "the event reaches no handler");
    support::end(server);
}

#[test]
fn who_was_refused_may_try_again() {
    let _alone = support::alone();
    let server = start(|io| {
        io.of("/auth").middleware(|Data(auth): Data<Value>| match auth.get("token") {
            Some(_) => Ok(()),
            None => Err("who are you?"),
        });
    });
    let mut client = join(server.addresses()[0]);
    // More often than it may have namespaces.
    for _ in 0..150 {
        client.send_text("40/auth,");
        assert_eq!(client.text(), "44/auth,{\"message\":\"who are you?\"}");
    }
    client.send_text("40/auth,{\"token\":1}");
    assert!(client.text().starts_with("40/auth,{"));
    support::end(server);
}

#[test]
fn names_of_namespaces_are_limited() {
    let _alone = support::alone();
    let server = start(|io| {
        io.of_fn(|_: String, _: Handshake| true);
    });
    let mut client = join(server.addresses()[0]);
    for (length, welcome) in [(256, true), (257, false)] {
        let name = format!("/{}", "n".repeat(length - 1));
        client.send_text(&format!("40{name},"));
        let answer = client.text();
        assert_eq!(answer.starts_with(&format!("40{name},{{")), welcome, "{answer}");
    }
    support::end(server);
}

#[test]
fn who_has_missed_more_than_may_wait_is_a_new_one() {
    let _alone = support::alone();
    let recovery = || Options {
        connection_state_recovery: Some(ConnectionStateRecovery::default()),
        ..Options::default()
    };
    let server = start_with(recovery, |io| {
        let all = io.clone();
        io.sockets_on("emit", move |Data(count): Data<usize>, ack: Ack| {
            for _ in 0..count {
                let _ = all.to("missed").emit("large", "x".repeat(100_000));
            }
            ack.send(())
        });
        io.on_connection(|socket: Socket| {
            socket.join("missed");
            socket.emit("hello", ())
        });
    });
    let address = server.addresses()[0];
    for (count, comes_back) in [(10, true), (25, false)] {
        let mut client = open(address);
        client.send_text("40");
        let connected: serde_json::Value = serde_json::from_str(&client.text()[2..]).unwrap();
        let hello: serde_json::Value = serde_json::from_str(&client.text()[2..]).unwrap();
        let claim = serde_json::json!({ "pid": connected["pid"], "offset": hello[1] });
        client.send_text("1");
        assert!(client.ends());
        // Half of what may wait for a client is 2 MiB. It listens to it itself, which is as much at most.
        let mut other = join(address);
        other.send_text(&format!("427[\"emit\",{count}]"));
        while !other.text().starts_with("437") {}
        other.send_text("41");
        let mut again = open(address);
        again.send_text(&format!("40{claim}"));
        let mut missed = 0;
        let answer = loop {
            let message = again.text();
            if message.starts_with("40") {
                break message;
            }
            missed += 1;
        };
        assert_eq!(missed, if comes_back { count } else { 0 });
        assert_eq!(answer.contains(connected["sid"].as_str().unwrap()), comes_back, "{answer}");
        again.send_text("41");
    }
    support::end(server);
}
