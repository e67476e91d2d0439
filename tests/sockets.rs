//! What a socket knows of itself, and what handlers take: driven by raw clients.

mod support;

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use sockring::io::{
    Ack, Args, Data, Description, DisconnectReason, Event, EventError, Namespace, Options, Server, Socket,
    State, Value,
};
use sockring::protocol::ws::frame::OpCode;
use sockring::runtime::{Descriptors, Running};
use support::Client;

/// What handlers have seen, for the test to look at.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, line: impl Into<String>) {
        self.0.lock().unwrap().push(line.into());
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    fn wait(&self, line: &str) {
        support::eventually(line, || self.lines().iter().any(|known| known == line));
    }
}

fn start(set_up: impl Fn(&Server) + Send + Sync + Clone + 'static) -> Running {
    let server = support::builder(support::options(Descriptors::Auto, 1)).start(move |app| {
        let options = Options { cleanup_empty_child_namespaces: true, ..Options::default() };
        set_up(&Server::attach_app(app, options));
    });
    server.expect("a server starts")
}

fn open(address: SocketAddr) -> Client {
    let mut client = Client::websocket(address, "/socket.io/?EIO=4&transport=websocket&who=me");
    assert!(client.text().starts_with("0{"));
    client
}

fn join(address: SocketAddr, nsp: &str) -> Client {
    let mut client = open(address);
    client.send_text(&format!("40{nsp},"));
    let text = client.text();
    assert!(text.starts_with("40"), "{text}");
    client
}

struct Visits(Cell<u32>);

#[test]
fn handlers_take_what_they_name() {
    let _alone = support::alone();
    let server = start(|io| {
        io.set_state(Visits(Cell::new(7)));
        type All = (Server, Namespace, Event);
        io.sockets_on(
            "all",
            |io: Server, nsp: Namespace, visits: State<Visits>, Event(name): Event, ack: Ack| {
                let _: All = (io.clone(), nsp.clone(), Event(name.clone()));
                visits.0.set(visits.0.get() + 1);
                ack.send((io.path(), nsp.name(), visits.0.get(), name))
            },
        );
        io.sockets_on("none", |_: State<String>, ack: Ack| ack.send("there is no such state"));
        io.on_error(|socket, error: &EventError| {
            let _ = socket.emit("failed", (&error.event, error.failure.to_string()));
        });
    });
    let mut client = join(server.addresses()[0], "/");
    client.send_text("421[\"all\"]");
    assert_eq!(client.text(), "431[\"/socket.io/\",\"/\",8,\"all\"]");
    client.send_text("42[\"none\"]");
    let text = client.text();
    assert!(text.starts_with("42[\"failed\",\"none\",\"the server was given no state of type"), "{text}");
    drop(client);
    support::end(server);
}

#[test]
fn wrong_data_is_told_with_the_events_name() {
    let _alone = support::alone();
    let server = start(|io| {
        io.sockets_on("move", |Data((x, y)): Data<(u8, u8)>, ack: Ack| ack.send(x + y));
        io.on_error(|socket, error: &EventError| {
            let _ = socket.emit("failed", (&error.event, error.failure.message()));
        });
    });
    let mut client = join(server.addresses()[0], "/");
    client.send_text("421[\"move\",1,\"b\"]");
    assert_eq!(
        client.text(),
        "42[\"failed\",\"move\",\"argument 1: invalid type: string \\\"b\\\", expected u8\"]"
    );
    client.send_text("42[\"move\",1]");
    assert_eq!(client.text(), "42[\"failed\",\"move\",\"argument 1 is missing\"]");
    client.send_text("422[\"move\",1,2]");
    assert_eq!(client.text(), "432[3]");
    drop(client);
    support::end(server);
}

#[derive(Serialize, Deserialize)]
struct Point(f64, f64);

#[derive(Serialize, Deserialize)]
struct Unit;

/// A tuple is the list of arguments, anything else is one: what is acknowledged, emitted, and read.
#[test]
fn arguments_are_what_their_types_say() {
    let _alone = support::alone();
    fn both<T: Serialize + Clone + 'static>(io: &Server, event: &str, value: T) {
        io.sockets_on(event, move |socket: Socket, ack: Ack| {
            let _ = socket.emit("e", value.clone());
            ack.send(value.clone())
        });
    }
    let server = start(|io| {
        both(io, "unit", ());
        both(io, "value", Value::Null);
        both(io, "serde", serde_json::Value::Null);
        both(io, "none", None::<u8>);
        both(io, "array", [1.5, 2.5]);
        both(io, "reference", &[1.5, 2.5]);
        both(io, "vec", vec![1.5, 2.5]);
        both(io, "tuple", (1.5, 2.5));
        both(io, "args", Args(vec![Value::Null, 7.into()]));
        both(io, "no args", Args(vec![]));
        io.sockets_on("struct", |ack: Ack| ack.send(Point(1.5, 2.5)));
        io.sockets_on("unit struct", |ack: Ack| ack.send(Unit));
        io.sockets_on("read array", |Data([x, y]): Data<[f64; 2]>, ack: Ack| ack.send(x + y));
        io.sockets_on("read struct", |Data(Point(x, y)): Data<Point>, ack: Ack| ack.send(x + y));
        io.sockets_on("read tuple", |Data((x, y)): Data<(f64, f64)>, ack: Ack| ack.send(x + y));
        io.sockets_on("read null", |Data(null): Data<Option<u8>>, ack: Ack| ack.send(null.is_none()));
        io.sockets_on("read unit", |_: Data<()>, ack: Ack| ack.send(true));
    });
    let mut client = join(server.addresses()[0], "/");
    for (event, args) in [
        ("unit", ""),
        ("value", "null"),
        ("serde", "null"),
        ("none", "null"),
        ("array", "[1.5,2.5]"),
        ("reference", "[1.5,2.5]"),
        ("vec", "[1.5,2.5]"),
        ("tuple", "1.5,2.5"),
        ("args", "null,7"),
        ("no args", ""),
    ] {
        client.send_text(&format!("421[\"{event}\"]"));
        let comma = if args.is_empty() { "" } else { "," };
        assert_eq!(client.text(), format!("42[\"e\"{comma}{args}]"), "{event}");
        assert_eq!(client.text(), format!("431[{args}]"), "{event}");
    }
    for (event, answer) in [
        ("\"struct\"", "[1.5,2.5]"),
        ("\"unit struct\"", "null"),
        ("\"read array\",[1,2.5]", "3.5"),
        ("\"read struct\",[1,2.5]", "3.5"),
        ("\"read tuple\",1,2.5", "3.5"),
        ("\"read null\",null", "true"),
        ("\"read null\"", "true"),
        ("\"read unit\"", "true"),
        ("\"read unit\",[1],2", "true"),
    ] {
        client.send_text(&format!("421[{event}]"));
        assert_eq!(client.text(), format!("431[{answer}]"), "{event}");
    }
    drop(client);
    support::end(server);
}

/// A megabyte that is referred to 3,000 times is three gigabytes for who sends it back.
#[test]
fn every_reference_to_an_attachment_counts() {
    let _alone = support::alone();
    let server = start(|io| {
        io.sockets_on("echo", |socket: Socket, args: Args| socket.emit("back", args));
    });
    let address = server.addresses()[0];
    let send = |client: &mut Client, references: usize, bytes: usize| {
        let placeholders = vec![r#"{"_placeholder":true,"num":0}"#; references].join(",");
        client.send_text(&format!("451-[\"echo\",{placeholders}]"));
        client.send(&support::masked(OpCode::Binary, &vec![7; bytes]));
    };
    let mut client = join(address, "/");
    send(&mut client, 2, 1000);
    assert!(client.text().starts_with("452-[\"back\","));
    for _ in 0..2 {
        assert_eq!(client.frame().unwrap().payload.len(), 1000);
    }
    send(&mut client, 3000, 900_000);
    assert!(client.ends());
    drop(join(address, "/"));
    support::end(server);
}

#[test]
fn a_client_knows_its_sockets() {
    let _alone = support::alone();
    let server = start(|io| {
        io.of("/b").middleware(|socket: Socket| {
            // Nobody is in the list before the middlewares have let it in.
            let joined = socket.client().map(|client| client.sockets().len());
            assert_eq!(joined, Some(1));
        });
        io.sockets_on("who", |socket: Socket, ack: Ack| {
            let client = socket.client().ok_or("no client")?;
            let nsps: Vec<String> = client.sockets().into_iter().map(Socket::nsp).collect();
            let same = client.request().zip(socket.request()).is_some_and(|(a, b)| a.url() == b.url());
            let who =
                socket.request().and_then(|request| request.query_param("who").map(|who| who.to_string()));
            assert_eq!(socket.namespace().map(|nsp| nsp.name().to_owned()), Some(socket.nsp()));
            assert!(socket.server().is_some() && client.id() == client.conn().id());
            ack.send((nsps, same, who)).map_err(|error| error.to_string())
        });
    });
    let mut client = join(server.addresses()[0], "/");
    client.send_text("40/b,");
    assert!(client.text().starts_with("40/b,{"));
    client.send_text("421[\"who\"]");
    assert_eq!(client.text(), "431[[\"/\",\"/b\"],true,\"me\"]");
    drop(client);
    support::end(server);
}

#[test]
fn connected_is_told_as_in_the_reference() {
    let _alone = support::alone();
    let log = Log::default();
    let seen = log.clone();
    let server = start(move |io| {
        let told = |when: &'static str| {
            let seen = seen.clone();
            move |socket: Socket| seen.add(format!("{when} {} {}", socket.connected(), socket.disconnected()))
        };
        io.middleware(told("middleware"));
        io.on_connection(told("connection"));
        io.sockets_on("disconnecting", told("disconnecting"));
        io.sockets_on("disconnect", told("disconnect"));
    });
    let mut client = join(server.addresses()[0], "/");
    client.send_text("41");
    log.wait("disconnect false true");
    let expected = [
        "middleware false true",
        "connection true false",
        "disconnecting true false",
        "disconnect false true",
    ];
    assert_eq!(log.lines(), expected);
    drop(client);
    support::end(server);
}

#[test]
fn a_disconnection_has_a_description() {
    let _alone = support::alone();
    let log = Log::default();
    let seen = log.clone();
    let server = start(move |io| {
        for event in ["disconnecting", "disconnect"] {
            let seen = seen.clone();
            io.sockets_on(event, move |reason: DisconnectReason, Description(details): Description| {
                seen.add(format!("{event}: {reason}: {details:?}"));
            });
        }
    });
    let mut client = join(server.addresses()[0], "/");
    // A ping, which only the server may send.
    client.send(&support::masked(sockring::protocol::ws::frame::OpCode::Text, b"2"));
    log.wait("disconnect: transport error: Some(\"invalid heartbeat direction\")");
    let mut other = join(server.addresses()[0], "/");
    other.send_text("41");
    log.wait("disconnecting: client namespace disconnect: None");
    drop((client, other));
    support::end(server);
}

#[test]
fn a_connection_tells_its_own_events() {
    let _alone = support::alone();
    let log = Log::default();
    let seen = log.clone();
    let server = start(move |io| {
        let (seen, all) = (seen.clone(), io.clone());
        io.sockets_on("listen", move |socket: Socket, ack: Ack| {
            let conn = socket.conn().ok_or("no connection")?;
            let (packets, created, closed) = (seen.clone(), seen.clone(), seen.clone());
            conn.on_packet(move |_, packet| packets.add(format!("in {packet:?}")))
                .on_packet_create(move |_, packet| created.add(format!("out {packet:?}")))
                .on_close(move |_, reason, _| closed.add(format!("closed: {}", reason.as_str())));
            ack.send(()).map_err(|error| error.to_string())
        });
        io.sockets_on("shout", move |Data(text): Data<String>| all.emit("heard", text));
    });
    let address = server.addresses()[0];
    let (mut one, mut other) = (join(address, "/"), join(address, "/"));
    one.send_text("421[\"listen\"]");
    assert_eq!(one.text(), "431[]");
    other.send_text("42[\"shout\",\"by the other\"]");
    for client in [&mut one, &mut other] {
        assert_eq!(client.text(), "42[\"heard\",\"by the other\"]");
    }
    one.send_text("42[\"shout\",\"by the one\"]");
    assert_eq!(one.text(), "42[\"heard\",\"by the one\"]");
    drop(one);
    log.wait("closed: transport close");
    drop(other);
    support::end(server);
    let lines = log.lines();
    let count = |what: &str, text: &str| {
        lines.iter().filter(|line| line.starts_with(what) && line.contains(text)).count()
    };
    assert_eq!((count("in ", "by the other"), count("in ", "by the one")), (0, 1), "{lines:?}");
    assert_eq!((count("out ", "by the other"), count("out ", "by the one")), (1, 1), "{lines:?}");
    assert_eq!(count("closed", ""), 1);
}

#[test]
fn who_keeps_a_socket_of_a_namespace_that_is_gone_reaches_nobody() {
    let _alone = support::alone();
    let server = start(|io| {
        let tenants = io.of_fn(|_: String, _| true);
        let kept = std::rc::Rc::new(Cell::new(None::<Socket>));
        let keep = kept.clone();
        tenants.on_connection(move |socket: Socket| {
            if socket.nsp() == "/first" {
                keep.set(Some(socket));
            }
        });
        io.sockets_on("leak", move |ack: Ack| {
            let socket = kept.get().ok_or("nothing was kept")?;
            let _ = socket.broadcast().emit("leaked", ());
            let _ = socket.to("room").emit("leaked", ());
            ack.send((socket.nsp(), socket.connected())).map_err(|error| error.to_string())
        });
    });
    let address = server.addresses()[0];
    let mut main = join(address, "/");
    let mut first = join(address, "/first");
    first.send_text("41/first,");
    // Its place is taken by another namespace, once it is empty and gone.
    first.send_text("40/second,");
    assert!(first.text().starts_with("40/second,{"));
    main.send_text("421[\"leak\"]");
    assert_eq!(main.text(), "431[\"\",false]");
    first.send_text("40/third,");
    assert!(first.text().starts_with("40/third,{"), "the next it hears");
    drop((main, first));
    support::end(server);
}

#[test]
fn who_asks_again_before_it_is_decided_joins_once() {
    let _alone = support::alone();
    let log = Log::default();
    let seen = log.clone();
    let server = start(move |io| {
        let seen = seen.clone();
        io.of("/slow").middleware(|socket: Socket| async move {
            socket.join("asked");
            monoio::time::sleep(std::time::Duration::from_millis(100)).await;
        });
        io.of("/slow").on_connection(move |_: Socket| seen.add("joined"));
        let slow = io.of("/slow");
        io.sockets_on("count", move |ack: Ack| {
            let slow = slow.clone();
            async move { ack.send(slow.to("asked").fetch_sockets().await.unwrap().len()) }
        });
    });
    let mut client = join(server.addresses()[0], "/");
    (0..3).for_each(|_| client.send_text("40/slow,"));
    assert!(client.text().starts_with("40/slow,{"));
    client.send_text("421[\"count\"]");
    assert_eq!(client.text(), "431[1]");
    assert_eq!(log.lines(), ["joined"]);
    // Once it has joined, asking again breaks the protocol.
    client.send_text("40/slow,");
    assert!(client.ends());
    support::end(server);
}
