//! Behaviours of the reference's own tests that no official client can see, or not in a suite that shares its server.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sockring::app::{App, Response};
use sockring::io::{
    AckError, BroadcastAckError, EncodeError, Failure, Handle, Handshake, Options, Server, Socket,
};
use sockring::runtime::{Descriptors, Running};
use support::{Client, block_on};

const POLL: &str = "/socket.io/?EIO=4&transport=polling";

fn start(set_up: impl Fn(&App, &Server) + Send + Sync + 'static) -> Running {
    let server = support::builder(support::options(Descriptors::Auto, 1)).start(move |app| {
        set_up(app, &Server::attach_app(app, Options::default()));
    });
    server.expect("a server starts")
}

#[test]
fn what_is_to_stay_uncompressed_does() {
    let _alone = support::alone();
    let server = start(|_, io| {
        let long = "long ".repeat(400);
        let (text, all) = (long.clone(), io.clone());
        io.sockets_on("socket", move |socket: Socket| socket.emit("long", &text));
        let text = long.clone();
        io.sockets_on("socket plain", move |socket: Socket| socket.compress(false).emit("long", &text));
        let (text, some) = (long.clone(), all.clone());
        io.sockets_on("room", move |socket: Socket| some.to(socket.id()).emit("long", &text));
        io.sockets_on("room plain", move |socket: Socket| {
            all.to(socket.id()).compress(false).emit("long", &long)
        });
    });
    let mut client = Client::connect(server.addresses()[0]);
    let path = format!("{POLL}&sid={}", support::sid(client.get(POLL).text()));
    client.post(&path, b"40");
    client.get(&path);
    for (event, coding) in
        [("socket", Some("gzip")), ("socket plain", None), ("room", Some("gzip")), ("room plain", None)]
    {
        client.post(&path, format!("42[\"{event}\"]").as_bytes());
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nAccept-Encoding: gzip\r\n\r\n");
        client.send(request.as_bytes());
        let answer = client.answer().expect("an answer");
        assert_eq!(answer.header("content-encoding"), coding, "{event}");
        assert_eq!(answer.body.len() < 1000, coding.is_some(), "{event}");
    }
    drop(client);
    support::end(server);
}

#[test]
fn operators_stay_what_they_were() {
    let _alone = support::alone();
    let server = start(|_, io| {
        for room in ["a", "b"] {
            io.sockets_on(room, move |socket: Socket| {
                socket.join(room);
                socket.emit("joined", ())
            });
        }
        let all = io.clone();
        io.sockets_on("say", move |socket: Socket| {
            for first in [all.to("a"), all.sockets().to("a"), socket.broadcast().to("a")] {
                let _ = (first.to("b"), first.except("a"), first.volatile(), first.timeout(Duration::ZERO));
                let _ = first.emit("to a", ())?;
            }
            all.emit("end", ())
        });
    });
    let address = server.addresses()[0];
    let [mut a, mut b, mut speaker] = [(); 3].map(|()| Client::socketio(address));
    for (client, room) in [(&mut a, "a"), (&mut b, "b")] {
        client.send_text(&format!("42[\"{room}\"]"));
        assert_eq!(client.text(), "42[\"joined\"]");
    }
    speaker.send_text("42[\"say\"]");
    (0..3).for_each(|_| assert_eq!(a.text(), "42[\"to a\"]"));
    for client in [&mut a, &mut b, &mut speaker] {
        assert_eq!(client.text(), "42[\"end\"]");
    }
    drop((a, b, speaker));
    support::end(server);
}

#[test]
fn reserved_names_are_refused_by_all_that_emits() {
    let _alone = support::alone();
    let server = start(|_, io| {
        let parent = io.of_fn(|_: String, _: Handshake| true);
        for name in
            ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"]
        {
            let tries = [
                io.emit(name, ()),
                io.of("/b").emit(name, ()),
                io.to("room").emit(name, ()),
                io.handle().emit(name, ()),
                parent.emit(name, ()),
            ];
            assert!(tries.iter().all(|tried| matches!(tried, Err(EncodeError::ReservedEvent))), "{name}");
        }
    });
    support::end(server);
}

#[test]
fn a_child_whose_client_was_refused_stays_by_default() {
    let _alone = support::alone();
    let born = Arc::new(AtomicUsize::new(0));
    let count = born.clone();
    let server = start(move |_, io| {
        io.of_fn(|_: String, _: Handshake| true).middleware(|| Err::<(), _>(Failure::new("not here")));
        let count = count.clone();
        io.on_new_namespace(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
    });
    let mut client = Client::socketio(server.addresses()[0]);
    for _ in 0..3 {
        client.send_text("40/child,");
        assert_eq!(client.text(), "44/child,{\"message\":\"not here\"}");
    }
    assert_eq!(born.load(Ordering::Relaxed), 1);
    drop(client);
    support::end(server);
}

#[test]
fn without_a_timeout_answers_are_awaited_for_a_while() {
    let _alone = support::alone();
    let server = start(|_, _| ());
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    let [mut quick, silent] = [(); 2].map(|()| Client::socketio(server.addresses()[0]));
    let answers = io.emit_with_ack::<u32, _>("question", ());
    let text = quick.text();
    let id = text.trim_start_matches("42").trim_end_matches("[\"question\"]").to_owned();
    // It is not over at once, as with the reference.
    std::thread::sleep(Duration::from_secs(1));
    quick.send_text(&format!("43{id}[7]"));
    let BroadcastAckError { reason, answers, .. } = block_on(answers).expect_err("one has said nothing");
    assert_eq!((reason, answers), (AckError::Timeout, vec![7]));
    drop((quick, silent));
    support::end(server);
}

#[test]
fn close_may_be_said_again() {
    let _alone = support::alone();
    let server = start(|app, io| {
        let io = io.clone();
        app.get("/close", move |_, response: Response| {
            let io = io.clone();
            async move {
                let (first, second) = (io.close(), io.close());
                first.await;
                second.await;
                io.close().await;
                response.end("closed");
            }
        });
    });
    let address = server.addresses()[0];
    let mut client = Client::socketio(address);
    assert_eq!(Client::connect(address).get("/close").text(), "closed");
    assert_eq!(client.frame().expect("a close frame").opcode, 8);
    assert_eq!(Client::connect(address).get("/close").text(), "closed");
    drop(client);
    support::end(server);
}

#[test]
fn a_server_comes_back_at_its_address() {
    let _alone = support::alone();
    let set_up = |app: &App| {
        let io = Server::attach_app(app, Options::default());
        io.on_connection(|socket: Socket| socket.emit("welcome", ()));
    };
    let options = || support::options(Descriptors::Auto, 1);
    let first = support::builder(options()).start(set_up).expect("a server starts");
    let address = first.addresses()[0];
    let mut before = Client::socketio(address);
    assert_eq!(before.text(), "42[\"welcome\"]");
    support::end(first);
    assert!(before.ends());
    let second = support::builder_on(options(), address).start(set_up).expect("the address is free again");
    assert_eq!(Client::socketio(address).text(), "42[\"welcome\"]");
    support::end(second);
}
