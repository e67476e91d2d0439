//! Servers as a whole: several on one App, what an engine tells of what the layer above it sends, and how they
//! are closed on all cores.

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sockring::app::App;
use sockring::engine::{self, Handlers, Message};
use sockring::io::{ConnectionStateRecovery, Data, DisconnectReason, LocalAdapter, Server, Socket};
use sockring::protocol::eio::Packet;
use sockring::runtime::{self, Descriptors, Running};
use support::*;

const POLL: &str = "/socket.io/?EIO=4&transport=polling";
const WS: &str = "/socket.io/?EIO=4&transport=websocket";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(what.into());
    }

    fn count(&self, what: &str) -> usize {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|known| known.starts_with(what)).count()
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn start(workers: usize, setup: impl Fn(&App) + Send + Sync + 'static) -> (Running, SocketAddr) {
    let server = builder(options(Descriptors::Auto, workers)).start(setup).unwrap();
    let address = server.addresses()[0];
    (server, address)
}

#[test]
fn an_engine_tells_of_all_that_its_sessions_are_sent() {
    let _alone = alone();
    for query in ["", "&b64=1"] {
        let log = Log::default();
        let told = log.clone();
        let (server, address) = start(1, move |app| {
            let io = Server::attach_app(app, sockring::io::Options::default());
            let all = io.clone();
            io.on_connection(move |socket: Socket| {
                let all = all.clone();
                socket.on("all", move |socket: Socket| {
                    socket.join("room");
                    let _ = socket.emit("one", 1);
                    let room = all.within("room");
                    let _ = room.emit("room", ());
                    let asked = room.timeout(std::time::Duration::from_secs(60));
                    let _ = asked.emit_with_callback("asked", (), |_: Result<Vec<u8>, _>| ());
                    socket.leave("room");
                    let _ = socket.volatile().emit("lost", ());
                });
                socket.on("ask", |_: Socket, Data(n): Data<u32>, ack: sockring::io::Ack| {
                    let _ = ack.send(n + 1);
                });
            });
            let (made, flush, drain) = (told.clone(), told.clone(), told.clone());
            io.engine()
                .unwrap()
                .on_packet_create(move |_, packet| match packet {
                    Packet::Text { data, .. } if data.ends_with("[\"asked\"]") => {
                        made.add("create ..[\"asked\"]");
                    }
                    Packet::Text { data, .. } => made.add(format!("create {data}")),
                    Packet::Binary(data) => made.add(format!("create {data:?}")),
                })
                .on_flush(move |_| flush.add("flush"))
                .on_drain(move |_| drain.add("drain"));
        });
        let mut ws = Client::websocket(address, &format!("{WS}{query}"));
        ws.text();
        ws.send_text("40");
        ws.text();
        eventually("drained", || log.count("drain") >= 1);
        log.take();
        ws.send_text("42[\"all\"]");
        assert_eq!((ws.text(), ws.text()), ("42[\"one\",1]".to_owned(), "42[\"room\"]".to_owned()));
        // Ids of acknowledgements are counted for the process.
        assert!(ws.text().ends_with("[\"asked\"]"));
        ws.send_text("421[\"ask\",6]");
        assert_eq!(ws.text(), "431[7]");
        eventually("drained", || log.count("drain") >= 1);
        let mut seen = log.take();
        seen.retain(|what| what != "drain");
        assert_eq!(
            seen,
            [
                "create 2[\"one\",1]",
                "flush",
                "create 2[\"room\"]",
                "flush",
                "create ..[\"asked\"]",
                "flush",
                "create 31[7]",
                "flush"
            ]
        );
        // Over polling a packet is made at once, and flushed with the poll that takes it.
        let mut client = Client::connect(address);
        let path = format!("{POLL}&sid={}", sid(client.get(POLL).text()));
        client.post(&path, b"40");
        client.get(&path);
        log.take();
        client.post(&path, b"42[\"all\"]");
        assert_eq!(log.take(), ["create 2[\"one\",1]", "create 2[\"room\"]", "create ..[\"asked\"]"]);
        assert!(client.get(&path).text().starts_with("42[\"one\",1]\x1e42[\"room\"]\x1e42"));
        assert_eq!(log.take(), ["flush", "drain"]);
        end(server);
    }
}

#[test]
fn close_reaches_the_sessions_of_all_cores() {
    let _alone = alone();
    let log = Log::default();
    let told = log.clone();
    let (server, address) = start(3, move |app| {
        let (left, closed, done) = (told.clone(), told.clone(), told.clone());
        let io = Server::attach_app(app, sockring::io::Options::default());
        io.on_connection(move |socket: Socket| {
            let left = left.clone();
            socket.on("disconnect", move |_: Socket, reason: DisconnectReason| {
                left.add(format!("left: {reason}"))
            });
        });
        io.engine().unwrap().on_close(move |_, reason, _| closed.add(format!("closed: {}", reason.as_str())));
        let engine = engine::Server::attach(app, engine::Options::default(), Handlers::default());
        app.get("/close/io", move |_, response: sockring::app::Response| {
            let (io, done) = (io.clone(), done.clone());
            async move {
                io.close().await;
                // Those of all cores, not only of the one that was asked.
                done.add(format!("{} are left", io.engine().unwrap().clients_count()));
                response.end("closed");
            }
        });
        app.get("/close/engine", move |_, response: sockring::app::Response| {
            let engine = engine.clone();
            async move {
                engine.close().await;
                response.end(engine.clients_count().to_string());
            }
        });
    });
    let mut clients: Vec<Client> = (0..12).map(|_| Client::socketio(address)).collect();
    let mut polls: Vec<Client> = (0..6).map(|_| Client::connect(address)).collect();
    for poll in &mut polls {
        let path = format!("{POLL}&sid={}", sid(poll.get(POLL).text()));
        poll.send(get(&path).as_bytes());
    }
    let own = WS.replace("socket.io", "engine.io");
    let mut others: Vec<Client> = (0..12).map(|_| Client::websocket(address, &own)).collect();
    others.iter_mut().for_each(|other| assert!(other.text().starts_with('0')));

    assert_eq!(Client::connect(address).get("/close/io").text(), "closed");
    for client in &mut clients {
        assert_eq!(client.frame().unwrap().opcode, 8);
    }
    for poll in &mut polls {
        assert_eq!(poll.answer().unwrap().text(), "1");
    }
    assert_eq!(log.count("left: server shutting down"), 12);
    assert_eq!(log.count("closed: forced close"), 18);
    assert_eq!(log.count("0 are left"), 1);
    // It takes nobody any more, and the other one does.
    for _ in 0..6 {
        assert_eq!(Client::connect(address).get(POLL).status, 503);
        let mut ws = Client::connect(address);
        ws.send(upgrade_request(WS).as_bytes());
        assert_eq!(ws.answer().unwrap().status, 503);
    }
    assert_eq!(Client::connect(address).get("/close/engine").text(), "0");
    for other in &mut others {
        assert_eq!(other.frame().unwrap().opcode, 8);
    }
    let mut again = Client::websocket(address, &own);
    assert!(again.text().starts_with('0'));
    end(server);
}

#[test]
fn several_servers_share_an_app() {
    let _alone = alone();
    let (server, address) = start(3, |app| {
        for name in ["first", "second"] {
            let path = format!("/{name}");
            let handlers = Handlers::default().message(move |socket, message| {
                if let Message::Text(text) = message {
                    let _ = socket.send_text(&format!("{name}: {text}"));
                }
            });
            engine::Server::attach(app, engine::Options { path, ..engine::Options::default() }, handlers);
            let mut options = sockring::io::Options::default();
            options.engine.path = format!("/{name}.io");
            let io = Server::attach_app(app, options);
            let everywhere = io.clone();
            io.on_connection(move |socket: Socket| {
                let everywhere = everywhere.clone();
                let _ = socket.emit("welcome", name);
                socket.on("all", move |_: Socket| {
                    let _ = everywhere.within("all").emit("all", name);
                });
                socket.join("all");
            });
        }
        app.get("/", |_, response| response.end("mine"));
    });
    for (name, other) in [("first", "second"), ("second", "first")] {
        let poll = POLL.replace("socket.io", name);
        let sid = sid(Client::connect(address).get(&poll).text()).to_owned();
        let path = format!("{poll}&sid={sid}");
        // A session is its own engine's, on every core.
        for _ in 0..6 {
            let mut client = Client::connect(address);
            assert_eq!(client.post(&path, b"4hello").text(), "ok");
            assert_eq!(client.get(&path).text(), format!("4{name}: hello"));
            let foreign = client.get(&path.replace(name, other));
            assert_eq!(foreign.text(), r#"{"code":1,"message":"Session ID unknown"}"#);
        }
        let mut ws = Client::websocket(address, &path.replace("polling", "websocket"));
        ws.send_text("2probe");
        assert_eq!(ws.text(), "3probe");
    }
    // Rooms of the same name are apart.
    let welcomed = |name: &str| {
        let mut ws = Client::websocket(address, &WS.replacen("socket", name, 1));
        ws.text();
        ws.send_text("40");
        ws.text();
        assert_eq!(ws.text(), format!("42[\"welcome\",\"{name}\"]"));
        ws
    };
    let mut firsts: Vec<Client> = (0..6).map(|_| welcomed("first")).collect();
    let mut seconds: Vec<Client> = (0..6).map(|_| welcomed("second")).collect();
    firsts[0].send_text("42[\"all\"]");
    firsts.iter_mut().for_each(|ws| assert_eq!(ws.text(), "42[\"all\",\"first\"]"));
    seconds[0].send_text("42[\"all\"]");
    seconds.iter_mut().for_each(|ws| assert_eq!(ws.text(), "42[\"all\",\"second\"]"));
    // An upgrade that nobody takes is answered at once, and the connection goes on.
    let mut client = Client::connect(address);
    client.send(upgrade_request("/third/?EIO=4&transport=websocket").as_bytes());
    assert_eq!(client.answer().unwrap().status, 404);
    assert_eq!(client.get("/").text(), "mine");
    end(server);
}

#[test]
fn three_ways_to_a_server() {
    let _alone = alone();
    let hello = |io: &Server| {
        io.on_connection(|socket: Socket| socket.emit("hello", socket.nsp()));
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let later = Server::builder().options(|| sockring::io::Options {
        serve_client: false,
        connect_timeout: std::time::Duration::from_secs(7),
        ..sockring::io::Options::default()
    });
    let later = later.set_up(hello).set_up(|io| {
        assert!(!io.serve_client() && io.adapter().is_none());
        assert_eq!((io.path(), io.connect_timeout().as_secs()), ("/socket.io/", 7));
        io.of("/more");
    });
    let beside = later.clone();
    let servers = [
        Server::listen("127.0.0.1:0", hello).unwrap(),
        Server::attach(listener, hello).unwrap(),
        later.listen("127.0.0.1:0").unwrap(),
        later.start(builder(options(Descriptors::Auto, 1))).unwrap(),
        start(1, move |app| {
            app.get("/", |_, response| response.end("a page"));
            beside.attach_app(app);
        })
        .0,
    ];
    for (i, server) in servers.into_iter().enumerate() {
        let address = server.addresses()[0];
        let mut client = Client::socketio(address);
        assert_eq!(client.text(), "42[\"hello\",\"/\"]");
        let more = i >= 2;
        client.send_text("40/more,");
        assert_eq!(client.text().starts_with("40/more,"), more, "{i}");
        assert_eq!(Client::connect(address).get("/").status, if i == 4 { 200 } else { 404 });
        drop(client);
        end(server);
    }
}

/// A server takes sessions of another's engine over: all of them, or one by one.
#[test]
fn a_server_is_bound_to_an_engine() {
    let _alone = alone();
    for all in [true, false] {
        let (server, address) = start(1, move |app| {
            let echo = |socket: engine::Socket, message: Message<'_>| {
                if let Message::Text(text) = message {
                    let _ = socket.send_text(&format!("echo {text}"));
                }
            };
            let io = Server::new(app, sockring::io::Options::default());
            let own = Server::attach_app(
                app,
                sockring::io::Options {
                    engine: engine::Options { path: "/own".into(), ..engine::Options::default() },
                    ..sockring::io::Options::default()
                },
            );
            own.on_connection(|socket: Socket| socket.emit("own", ()));
            io.on_connection(|socket: Socket| socket.emit("hello", socket.connected()));
            io.sockets_on("say", |socket: Socket, Data(text): Data<String>| socket.emit("said", text));
            let (taker, second) = (io.clone(), own.clone());
            let handlers = Handlers::default().message(echo).connection(move |socket| {
                match socket.request().as_ref().and_then(|request| request.query_param("io")).as_deref() {
                    Some("1") => drop(taker.onconnection(socket)),
                    Some("2") => drop(second.onconnection(socket)),
                    _ => {}
                }
            });
            let engine = engine::Server::attach(app, engine::Options::default(), handlers);
            if all {
                io.bind(&engine);
            }
        });
        let open = |query: &str| {
            let path = format!("/engine.io/?EIO=4&transport=websocket{query}");
            let mut ws = Client::websocket(address, &path);
            assert!(ws.text().starts_with('0'));
            ws
        };
        let mut taken = open("&io=1");
        taken.send_text("40");
        assert!(taken.text().starts_with("40{"));
        assert_eq!(taken.text(), "42[\"hello\",true]");
        taken.send_text("42[\"say\",\"x\"]");
        assert_eq!(taken.text(), "42[\"said\",\"x\"]");
        if !all {
            let mut left = open("");
            left.send_text("4x");
            assert_eq!(left.text(), "4echo x");
            // One of a server that has an engine of its own, whose slots are numbered the same.
            let mut own = Client::websocket(address, "/own/?EIO=4&transport=websocket");
            assert!(own.text().starts_with('0'));
            let mut guest = open("&io=2");
            for client in [&mut own, &mut guest] {
                client.send_text("40");
                assert!(client.text().starts_with("40{"));
                assert_eq!(client.text(), "42[\"own\"]");
            }
            drop((left, own, guest));
        }
        drop(taken);
        end(server);
    }
}

#[test]
fn what_is_set_before_a_server_listens_counts() {
    let _alone = alone();
    let log = Log::default();
    let told = log.clone();
    let io = Server::builder()
        .path("/chat")
        .connect_timeout(Duration::from_millis(1234))
        .serve_client(false)
        .adapter(Arc::new(LocalAdapter))
        // Called later, but what was set by name goes before it.
        .options(|| sockring::io::Options { connect_timeout: Duration::ZERO, ..Default::default() })
        .set_up(move |io| {
            let (client, adapter) = (io.serve_client(), io.adapter().is_some());
            told.add(format!("{} {:?} {client} {adapter}", io.path(), io.connect_timeout()));
        });
    let server = io.start(builder(options(Descriptors::Auto, 1))).unwrap();
    assert_eq!(log.take(), ["/chat/ 1.234s false true"]);
    let address = server.addresses()[0];
    let mut ws = Client::websocket(address, "/chat/?EIO=4&transport=websocket");
    assert!(ws.text().starts_with('0'));
    assert_eq!(Client::connect(address).get("/chat/socket.io.js").status, 400);
    end(server);
}

#[test]
fn a_server_is_closed_from_any_thread() {
    let _alone = alone();
    let log = Log::default();
    let told = log.clone();
    let (server, address) = start(2, move |app| {
        let io = Server::attach_app(app, sockring::io::Options::default());
        let told = told.clone();
        io.sockets_on("disconnect", move |reason: DisconnectReason| told.add(reason.as_str()));
    });
    let mut clients: Vec<Client> = (0..6).map(|_| Client::socketio(address)).collect();
    let io = sockring::io::Handle::of_server(&server, "/socket.io").unwrap();
    block_on(io.close());
    assert_eq!(log.count("server shutting down"), 6, "when it is ready, all have left");
    clients.iter_mut().for_each(|client| assert!(client.ends()));
    assert_eq!(Client::connect(address).get(POLL).status, 503);
    end(server);
}

#[test]
fn who_has_missed_more_than_may_wait_for_it_is_a_new_one_and_not_closed() {
    let _alone = alone();
    let log = Log::default();
    let told = log.clone();
    let runtime = runtime::Options { backpressure_bytes: 64 << 10, ..options(Descriptors::Auto, 1) };
    let server = builder(runtime).start(move |app| {
        let connection_state_recovery = Some(ConnectionStateRecovery::default());
        let options = sockring::io::Options { connection_state_recovery, ..Default::default() };
        let io = Server::attach_app(app, options);
        let told = told.clone();
        io.sockets_on("disconnect", move || told.add("left"));
    });
    let server = server.expect("a server starts");
    let io = sockring::io::Handle::of_server(&server, "/socket.io").unwrap();
    let text = |packet: &str, name: &str| {
        let value: serde_json::Value =
            serde_json::from_str(packet.trim_start_matches(['4', '0', '2'])).unwrap();
        value[name].as_str().map(str::to_owned)
    };
    for (missed, recovers) in [(10, true), (450, false)] {
        let mut ws = Client::websocket(server.addresses()[0], WS);
        assert!(ws.text().starts_with('0'));
        ws.send_text("40");
        let connected = ws.text();
        let (sid, pid) = (text(&connected, "sid"), text(&connected, "pid").unwrap());
        assert!(io.emit("e", ()).is_ok());
        let event = ws.text();
        let offset = event.trim_end_matches("\"]").rsplit('"').next().unwrap().to_owned();
        let before = log.count("left");
        ws.reset();
        eventually("it has left", || log.count("left") > before);
        // Small ones: their records weigh more than their bytes.
        (0..missed).for_each(|_| assert!(io.emit("e", ()).is_ok()));
        let mut ws = Client::websocket(server.addresses()[0], WS);
        assert!(ws.text().starts_with('0'));
        ws.send_text(&format!(r#"40{{"pid":"{pid}","offset":"{offset}"}}"#));
        let mut heard = 0;
        let connected = loop {
            let packet = ws.text();
            if packet.starts_with("40") {
                break packet;
            }
            heard += 1;
        };
        assert_eq!((heard, text(&connected, "sid") == sid), (if recovers { missed } else { 0 }, recovers));
    }
    end(server);
}

#[test]
fn who_has_been_gone_for_longest_is_given_up_first_in_whichever_namespace() {
    let _alone = alone();
    two_may_be_gone(ConnectionStateRecovery { max_sessions: 2, ..Default::default() });
    // Each has 1,000 bytes of data, and some hundred beside.
    two_may_be_gone(ConnectionStateRecovery { max_session_bytes: 3900, ..Default::default() });
}

fn two_may_be_gone(recovery: ConnectionStateRecovery) {
    let log = Log::default();
    let told = log.clone();
    let (server, address) = start(1, move |app| {
        let connection_state_recovery = Some(recovery.clone());
        let options = sockring::io::Options { connection_state_recovery, ..Default::default() };
        let io = Server::attach_app(app, options);
        for name in ["/", "/later"] {
            let nsp = io.of(name);
            let (left, expired) = (told.clone(), told.clone());
            nsp.sockets_on("disconnect", move || left.add("left"));
            nsp.on_connection(|socket: Socket| drop(socket.set_data("x".repeat(1000))));
            nsp.on_session_expired(move |_| expired.add(format!("expired in {name}")));
        }
    });
    for (gone, name) in ["/later", "/", "/"].into_iter().enumerate() {
        let mut ws = Client::websocket(address, WS);
        assert!(ws.text().starts_with('0'));
        ws.send_text(&format!("40{name},"));
        assert!(ws.text().starts_with("40"));
        ws.reset();
        eventually("it has left", || log.count("left") == gone + 1);
        // So that their times differ.
        std::thread::sleep(Duration::from_millis(50));
    }
    eventually("one is too many", || log.count("expired") > 0);
    assert_eq!((log.count("expired in /later"), log.count("expired")), (1, 1));
    end(server);
}
