//! Handlers that call everything from everywhere: no table may be borrowed while a handler runs, an end is
//! told once, and whoever goes on is served.

mod support;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sockring::app::{self, App, Behavior, Request, Response, WebSocket};
use sockring::engine;
use sockring::fanout::Frame;
use sockring::io::{self as sio, Ack, DisconnectReason, Failure, Socket};
use sockring::runtime::Descriptors;
use support::*;

both!(
    websockets_call_everything,
    sessions_call_everything,
    sockets_call_everything,
    a_session_ends_once,
    values_call_back_when_they_are_dropped,
    refused_and_aborted_handshakes,
);

// --- Raw WebSockets -------------------------------------------------------------------------------------------

/// Every verb of a WebSocket and of its App.
fn all_of_app(ws: WebSocket<Cell<u32>>, close: bool) {
    let app = app::current().unwrap();
    let _ = ws.data().map(|data| data.set(data.get() + 1));
    let _ = (ws.peer(), ws.connection(), ws.is_subscribed("t"));
    ws.subscribe("t");
    ws.subscribe("u");
    let _ = ws.send_text("s");
    let _ = ws.publish_text("t", "p");
    let _ = app.publish("t", &Frame::binary(b"b"));
    ws.unsubscribe("u");
    app.get("/late", |_, response| response.end("late"));
    app.core().spawn(async move {
        let _ = ws.send_text("later");
        ws.subscribe("t");
    });
    if close {
        ws.close(1000, "enough");
        ws.close(1001, "twice");
        ws.subscribe("t");
        let _ = ws.publish_text("t", "after");
    }
}

fn websockets_call_everything(descriptors: Descriptors) {
    let closed = Arc::new(AtomicUsize::new(0));
    let count = closed.clone();
    let server = builder(options(descriptors, 2))
        .start(move |app| {
            let count = count.clone();
            let behavior = Behavior::<Cell<u32>>::default()
                .open(|ws| all_of_app(ws, false))
                .message(|ws, _| all_of_app(ws, ws.data().is_some_and(|data| data.get() > 3)))
                .drain(|ws| all_of_app(ws, true))
                .close(move |ws, _| {
                    assert!(ws.data().is_some(), "the data is there until the handler returns");
                    all_of_app(ws, true);
                    count.fetch_add(1, Ordering::Relaxed);
                });
            app.ws("/all", behavior);
            app.ws(
                "/quiet",
                Behavior::<()>::default().message(|ws, _| {
                    let _ = ws.send_text("quiet");
                }),
            );
        })
        .unwrap();
    let address = server.addresses()[0];
    let mut opened = 0;
    for round in 0..40 {
        let mut ends: Vec<Client> = (0..4).map(|_| Client::websocket(address, "/all")).collect();
        opened += ends.len();
        for client in &mut ends {
            assert!(client.frame().is_ok());
            client.send_text("x");
        }
        for (i, mut client) in ends.into_iter().enumerate() {
            match (round + i) % 4 {
                0 => client.reset(),
                1 => drop(client),
                2 => client.send(&masked(sockring::protocol::ws::frame::OpCode::Close, &[3, 232])),
                _ => {
                    (0..3).for_each(|_| client.send_text("x"));
                    while client.frame().is_ok_and(|frame| frame.opcode != 8) {}
                    client.send(&masked(sockring::protocol::ws::frame::OpCode::Close, &[3, 232]));
                    assert!(client.ends());
                }
            }
        }
        // Nobody who came later hears of a topic that it has not subscribed to.
        let mut quiet = Client::websocket(address, "/quiet");
        let mut loud = Client::websocket(address, "/all");
        opened += 1;
        loud.send_text("x");
        assert!(loud.frame().is_ok());
        quiet.send_text("?");
        assert_eq!(quiet.text(), "quiet");
    }
    eventually("each socket is closed once", || closed.load(Ordering::Relaxed) == opened);
    assert_eq!(Client::connect(address).get("/late").text(), "late");
    end(server);
    assert_eq!(closed.load(Ordering::Relaxed), opened);
}

// --- Engine sessions ------------------------------------------------------------------------------------------

fn sessions_call_everything(descriptors: Descriptors) {
    let (opened, closed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (opens, closes) = (opened.clone(), closed.clone());
    let server = builder(options(descriptors, 2))
        .start(move |app| {
            let known: Rc<RefCell<Vec<engine::Socket>>> = Rc::default();
            let (opens, closes) = (opens.clone(), closes.clone());
            let (come, heard, drained, left) = (known.clone(), known.clone(), known.clone(), known);
            let all = |known: &Rc<RefCell<Vec<engine::Socket>>>| {
                for socket in known.borrow().clone() {
                    let _ = (socket.id(), socket.transport(), socket.request(), socket.is_open());
                    let _ = socket.send_text("to all");
                    let _ = socket.send_binary(b"\x01\x02");
                }
            };
            let handlers = engine::Handlers::default()
                .connection(move |socket| {
                    opens.fetch_add(1, Ordering::Relaxed);
                    come.borrow_mut().push(socket);
                    all(&come);
                })
                .message(move |socket, message| {
                    all(&heard);
                    let engine::Message::Text(text) = message else { return };
                    if text == "end me" {
                        socket.close();
                        socket.close();
                        let _ = socket.send_text("too late");
                    }
                    if text == "end another" {
                        let other = heard.borrow().iter().copied().find(|other| *other != socket);
                        if let Some(other) = other {
                            other.close();
                        }
                    }
                })
                .drain(move |socket| {
                    all(&drained);
                    let _ = socket.send_text("drained");
                })
                .close(move |socket, _| {
                    closes.fetch_add(1, Ordering::Relaxed);
                    assert!(!socket.is_open());
                    socket.close();
                    left.borrow_mut().retain(|other| *other != socket);
                    all(&left);
                });
            engine::Server::attach(app, engine::Options::default(), handlers);
        })
        .unwrap();
    let address = server.addresses()[0];
    for round in 0..30 {
        let path = open(address, "/engine.io/");
        let mut poller = Client::connect(address);
        let mut ws = Client::websocket(address, "/engine.io/?EIO=4&transport=websocket");
        assert!(ws.text().starts_with('0'));
        assert_eq!(poller.post(&path, b"4hello\x1e4hello").text(), "ok");
        poller.send([get(&path), get(&path)].concat().as_bytes());
        assert_eq!(poller.answer().unwrap().status, 200);
        ws.send_text("4hello");
        let message = ["4end me", "4end another", "1", "4hello"][round % 4];
        if round % 2 == 0 {
            ws.send_text(message);
        } else {
            let _ = Client::connect(address).post(&path, message.as_bytes());
        }
        if round % 3 == 0 {
            ws.reset();
        }
    }
    let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    assert_eq!(count(&opened), 60);
    end(server);
    assert_eq!(count(&closed), 60, "every session ends once");
}

fn open(address: SocketAddr, path: &str) -> String {
    let open = Client::connect(address).get(&format!("{path}?EIO=4&transport=polling"));
    format!("{path}?EIO=4&transport=polling&sid={}", sid(open.text()))
}

/// Two closes at once: the session's answer to a waiting poll lets a request behind it be handled, which
/// breaks the protocol itself.
fn a_session_ends_once(descriptors: Descriptors) {
    let closed = Arc::new(AtomicUsize::new(0));
    let count = closed.clone();
    let server = builder(options(descriptors, 1))
        .start(move |app| {
            let count = count.clone();
            let handlers =
                engine::Handlers::default().message(|socket, _| socket.close()).close(move |_, _| {
                    count.fetch_add(1, Ordering::Relaxed);
                });
            engine::Server::attach(app, engine::Options::default(), handlers);
        })
        .unwrap();
    let address = server.addresses()[0];
    for round in 1..=20 {
        let path = open(address, "/engine.io/");
        let mut poller = Client::connect(address);
        poller.send(&[get(&path).as_bytes(), &post(&path, b"no packet")].concat());
        std::thread::sleep(std::time::Duration::from_millis(5));
        let _ = Client::connect(address).post(&path, b"4close");
        assert_eq!(poller.answer().unwrap().status, 200);
        assert_eq!(closed.load(Ordering::Relaxed), round);
    }
    end(server);
}

// --- Socket.IO ------------------------------------------------------------------------------------------------

/// Every verb of a socket and of its server.
fn all_of_io(io: &sio::Server, socket: Socket) {
    let _ = (socket.id(), socket.connected(), socket.nsp(), socket.handshake(), socket.conn());
    let _ = (socket.rooms(), socket.event_names());
    socket.join(["a", "b"]);
    socket.leave("b");
    let _ = socket.emit("x", 1);
    let _ = socket.to("a").emit("y", 2);
    let _ = socket.broadcast().emit("z", 3);
    let _ = socket.volatile().emit("v", 4);
    let _ = io.emit("all", 5);
    let _ = io.to("a").except("b").emit("some", 6);
    let _ = io.of("/other").emit("other", 7);
    let _ = io.of("/new").to("a").emit("new", 8);
    io.sockets_join("c");
    io.to("c").sockets_leave("c");
    let _ = io.handle().to("a").emit("handle", 9);
    let _ = socket.emit_with_callback("ack", (), |_| ());
    socket.on("more", |_: Socket| ());
    socket.once("once", |_: Socket| ());
    socket.off("more");
    let _ = socket.set_data(String::from("data"));
    let _ = socket.data::<String>();
    io.sockets_on("never", |_: Socket| ());
    io.on_connection(|_: Socket| ());
}

fn leave_in_every_way(io: &sio::Server, socket: Socket, way: usize) {
    match way % 6 {
        0 => socket.disconnect(false),
        1 => socket.disconnect(true),
        2 => drop(socket.conn().map(engine::Socket::close)),
        3 => io.to(socket.id()).disconnect_sockets(true),
        4 => io.of("/other").disconnect_sockets(false),
        _ => {}
    }
}

fn sockets_call_everything(descriptors: Descriptors) {
    let (came, left) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (comes, leaves) = (came.clone(), left.clone());
    let server = builder(options(descriptors, 2))
        .start(move |app| {
            let io = sio::Server::attach_app(app, sio::Options::default());
            let way = Rc::new(Cell::new(0));
            for name in ["/", "/other"] {
                let (comes, leaves) = (comes.clone(), leaves.clone());
                let (on_error, way, server) = (io.clone(), way.clone(), io.clone());
                io.of(name).on_error(move |socket, _| {
                    all_of_io(&on_error, socket);
                    socket.disconnect(true);
                });
                let guard = io.clone();
                io.of(name).middleware(move |socket: Socket| {
                    all_of_io(&guard, socket);
                    if socket.rooms().len() > 1_000_000 { Err(Failure::new("no")) } else { Ok(()) }
                });
                io.of(name).on_connection(move |socket: Socket| {
                    comes.fetch_add(1, Ordering::Relaxed);
                    all_of_io(&server, socket);
                    let handlers = server.clone();
                    socket.on("all", move |socket: Socket, ack: Ack| {
                        all_of_io(&handlers, socket);
                        let _ = ack.send("done");
                    });
                    let (handlers, ways) = (server.clone(), way.clone());
                    socket.on("leave", move |socket: Socket| {
                        let _ = socket.emit_with_callback("ack", (), move |_| {
                            let _ = socket.emit("in an ack", socket.connected());
                            socket.disconnect(true);
                        });
                        ways.set(ways.get() + 1);
                        leave_in_every_way(&handlers, socket, ways.get());
                        all_of_io(&handlers, socket);
                    });
                    socket.on("fail", |_: Socket| Err::<(), _>(Failure::new("on purpose")));
                    for event in ["disconnecting", "disconnect"] {
                        let (handlers, ways, leaves) = (server.clone(), way.clone(), leaves.clone());
                        socket.on(event, move |socket: Socket, _: DisconnectReason| {
                            if event == "disconnect" {
                                leaves.fetch_add(1, Ordering::Relaxed);
                            }
                            all_of_io(&handlers, socket);
                            leave_in_every_way(&handlers, socket, ways.get());
                            socket.remove_all_listeners();
                            socket.on("disconnect", |_: Socket| too_late());
                            let own = leaves.clone();
                            if event == "disconnecting" {
                                socket.off("disconnect");
                                socket.on("disconnect", move |_: Socket| {
                                    own.fetch_add(1, Ordering::Relaxed);
                                });
                            }
                        });
                    }
                });
            }
        })
        .unwrap();
    let address = server.addresses()[0];
    for round in 0..48 {
        let mut client = Client::websocket(address, "/socket.io/?EIO=4&transport=websocket");
        assert!(client.text().starts_with('0'));
        client.send_text("40");
        client.send_text("40/other,");
        client.send_text("421[\"all\"]");
        loop {
            let text = client.text();
            if text.starts_with("431[") {
                break;
            }
        }
        match round % 4 {
            0 => client.send_text("42[\"leave\"]"),
            1 => client.send_text("42/other,[\"leave\"]"),
            2 => client.send_text("42[\"fail\"]"),
            _ => client.send_text("41"),
        }
        if round % 5 == 0 {
            client.reset();
        }
    }
    let path = open(address, "/socket.io/");
    let mut poller = Client::connect(address);
    assert_eq!(poller.post(&path, b"40\x1e40/other,\x1e42[\"all\"]\x1e42[\"leave\"]").status, 200);
    drop(poller);
    end(server);
    let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    assert_eq!(count(&came), 98);
    assert_eq!(count(&left), 98, "every socket leaves once");
}

/// A value that emits when it goes.
struct Farewell(Socket);

impl Drop for Farewell {
    fn drop(&mut self) {
        let _ = self.0.to("room").emit("farewell", ());
        self.0.leave("room");
        let _ = (self.0.rooms(), self.0.connected());
    }
}

impl serde::Serialize for Farewell {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

fn values_call_back_when_they_are_dropped(descriptors: Descriptors) {
    let server = builder(options(descriptors, 1))
        .start(|app| {
            let io = sio::Server::attach_app(app, sio::Options::default());
            io.on_connection(|socket: Socket| {
                socket.join("room");
                let _ = socket.set_data(Farewell(socket));
                let (first, second) = (Rc::new(Farewell(socket)), Rc::new(Farewell(socket)));
                socket.on("first", move |_: Socket| drop(first.clone()));
                socket.once("second", move |_: Socket| drop(second.clone()));
                socket.on("drop", |socket: Socket, ack: Ack| {
                    let _ = socket.set_data(Farewell(socket));
                    socket.off("first");
                    socket.remove_all_listeners();
                    let _ = ack.send("dropped");
                });
            });
            let farewell = Behavior::new(|_: Request, upgrade| upgrade.accept(Rc::new(RefCell::new(None))))
                .open(|ws: WebSocket<Rc<RefCell<Option<OnDrop>>>>| {
                    ws.subscribe("t");
                    if let Some(data) = ws.data() {
                        data.replace(Some(OnDrop(Box::new(move || {
                            let _ = ws.publish_text("t", "farewell");
                            ws.subscribe("t");
                            ws.close(1000, "");
                        }))));
                    }
                });
            app.ws("/farewell", farewell);
        })
        .unwrap();
    let address = server.addresses()[0];
    for round in 0..6 {
        let mut client = Client::websocket(address, "/socket.io/?EIO=4&transport=websocket");
        client.send_text("40");
        client.send_text("42[\"second\"]");
        client.send_text("421[\"drop\"]");
        while !client.text().starts_with("431[\"dropped\"]") {}
        if round % 2 == 0 {
            client.reset()
        } else {
            client.send_text("1")
        }
        let client = Client::websocket(address, "/farewell");
        if round % 2 == 0 { client.reset() } else { drop(client) }
    }
    end(server);
}

struct OnDrop(Box<dyn Fn()>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        (self.0)();
    }
}

// --- Handshakes -----------------------------------------------------------------------------------------------

/// `allow_request` that calls back, waits, refuses and panics, while clients go away.
fn refused_and_aborted_handshakes(descriptors: Descriptors) {
    let server = builder(options(descriptors, 2))
        .start(|app: &App| {
            let io: Rc<RefCell<Option<sio::Server>>> = Rc::default();
            let known = io.clone();
            let engine = sio::Options::default().engine.allow_request(move |request: Request| {
                let io = known.borrow().clone();
                if let Some(io) = &io {
                    let _ = io.emit("asked", ());
                    io.disconnect_sockets(false);
                }
                async move {
                    sockring_sleep().await;
                    if let Some(io) = &io {
                        let _ = io.emit("asked", ());
                    }
                    match request.query_param("how").as_deref() {
                        Some("refuse") => Err("no".to_owned()),
                        Some("panic") => panic!("on purpose"),
                        _ => Ok(()),
                    }
                }
            });
            let options = sio::Options { engine, ..sio::Options::default() };
            io.replace(Some(sio::Server::attach_app(app, options)));
            app.get("/hello", |_, response: Response| response.end("hello"));
        })
        .unwrap();
    let address = server.addresses()[0];
    for round in 0..60 {
        let how = ["allow", "refuse", "panic"][round % 3];
        let polling = format!("/socket.io/?EIO=4&transport=polling&how={how}");
        let mut client = Client::connect(address);
        if round % 2 == 0 {
            client.send([get(&polling), get("/hello")].concat().as_bytes());
        } else {
            client.send(upgrade_request(&polling.replace("=polling", "=websocket")).as_bytes());
        }
        if round % 5 == 0 {
            client.reset();
            continue;
        }
        let status = client.answer().unwrap().status;
        let expected = match (how, round % 2) {
            ("allow", 0) => 200,
            ("allow", _) => 101,
            ("refuse", 0) => 403,
            ("refuse", _) => 400,
            _ => 500,
        };
        assert_eq!(status, expected, "round {round}: {how}");
        if round % 2 == 0 {
            assert_eq!(client.answer().unwrap().text(), "hello");
        }
    }
    end(server);
}

async fn sockring_sleep() {
    monoio::time::sleep(std::time::Duration::from_millis(2)).await;
}

fn too_late() {
    panic!("this handler was replaced");
}
