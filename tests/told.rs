//! What an operator is told of handlers that fail, and what clients are not told.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use sockring::io::{Ack, Data, Event, EventError, Failure, Handle, Options, Server, Socket, State, Value};
use sockring::runtime::{Descriptors, Running};
use support::{Client, alone, end, eventually, logs};

const WEBSOCKET: &str = "/socket.io/?EIO=4&transport=websocket";

fn start(
    options: impl Fn() -> Options + Send + Sync + 'static,
    set_up: impl Fn(&Server) + Send + Sync + 'static,
) -> Running {
    let server = support::builder(support::options(Descriptors::Auto, 1));
    server.start(move |app| set_up(&Server::attach_app(app, options()))).expect("a server starts")
}

fn open(address: SocketAddr) -> Client {
    let mut client = Client::websocket(address, WEBSOCKET);
    assert!(client.text().starts_with("0{"));
    client
}

/// Joins `/`; its id.
fn join(client: &mut Client) -> String {
    client.send_text("40");
    let connected = client.text();
    connected.split('"').nth(3).expect("an id").to_owned()
}

type Wrong = Result<(), Box<dyn std::error::Error>>;

#[test]
fn panics_and_failures_name_event_namespace_and_socket() {
    let _alone = alone();
    logs::keep();
    let server = start(Options::default, |io| {
        io.sockets_on("panic", |_: Socket| -> () { panic!("on purpose") });
        io.sockets_on("panic later", |event: Event| async move {
            assert!(event.0.is_empty(), "on purpose, later")
        });
        io.sockets_on("fail", || -> Wrong { Err("the table is locked")? });
        io.sockets_on("fail later", || async {
            monoio::time::sleep(Duration::from_millis(1)).await;
            Err::<(), _>(Failure::new("too late"))
        });
        io.sockets_on("misfit", |Data(_): Data<u8>| ());
        io.sockets_on("sleep", |ack: Ack| {
            std::thread::sleep(Duration::from_millis(400));
            ack.send(())
        });
        io.sockets_on("sleep later", |ack: Ack| async {
            monoio::time::sleep(Duration::from_millis(300)).await;
            ack.send("waiting does not count")
        });
        io.sockets_on("hello", |ack: Ack| ack.send(()));
    });
    let mut client = open(server.addresses()[0]);
    let id = join(&mut client);
    for event in ["fail", "fail later", "misfit", "panic later"] {
        client.send_text(&format!("42[\"{event}\",\"x\"]"));
    }
    for slow in ["sleep", "sleep later"] {
        client.send_text(&format!("421[\"{slow}\"]"));
        assert!(client.text().starts_with("431"), "{slow}");
    }
    let said = |level: &str, event: &str, what: &str| {
        let parts = [level, &format!("\"{event}\""), "\"/\"", &id, what];
        eventually(&format!("{parts:?}"), || !logs::with(&parts).is_empty());
    };
    said("WARN", "fail", "the table is locked");
    said("WARN", "fail later", "too late");
    said("WARN", "misfit", "failed");
    said("ERROR", "panic later", "on purpose, later");
    said("WARN", "sleep", "kept its core");
    assert!(logs::with(&["sleep later"]).is_empty(), "{:?}", logs::with(&["sleep later"]));
    client.send_text("42[\"panic\"]");
    assert!(client.ends(), "a handler that panics ends its client's connection");
    said("ERROR", "panic", "on purpose");
    assert!(server.metrics().total("panics") >= 2);
    assert_eq!(server.metrics().total("handler_failures"), 3);
    end(server);
}

#[test]
fn an_error_in_a_middleware_is_for_the_operator() {
    let _alone = alone();
    logs::keep();
    let (told, causes) = mpsc::channel();
    let server = start(Options::default, move |io| {
        let told = told.clone();
        io.on_error(move |_: Socket, error: &EventError| {
            let failure = &error.failure;
            told.send((error.event.clone(), failure.cause().map(str::to_owned))).unwrap();
        });
        io.middleware(|Data(auth): Data<Value>| -> Result<(), Box<dyn std::error::Error>> {
            match auth.get("how").and_then(Value::as_str).unwrap_or_default() {
                "?" => Err(std::io::Error::other("10.0.0.7 does not answer"))?,
                "text" => Err("no such file: /etc/secret")?,
                "told" => Err(Failure::new("come back later").data(&5))?,
                "later" | "well" => Ok(()),
                how => panic!("{how}"),
            }
        });
        io.middleware(|Data(auth): Data<Value>| async move {
            monoio::time::sleep(Duration::from_millis(1)).await;
            let later = auth.get("how").and_then(Value::as_str) == Some("later");
            let refused: Box<dyn std::error::Error + Send + Sync> = "the pool is empty".into();
            if later { Err(refused) } else { Ok(()) }
        });
    });
    let mut client = open(server.addresses()[0]);
    let mut ask = |how: &str| {
        client.send_text(&format!("40{{\"how\":\"{how}\"}}"));
        client.text()
    };
    for (how, cause) in [
        ("?", "10.0.0.7 does not answer"),
        ("text", "no such file: /etc/secret"),
        ("later", "the pool is empty"),
    ] {
        assert_eq!(ask(how), r#"44{"message":"internal server error"}"#, "{how}");
        let wait = Duration::from_secs(8);
        assert_eq!(causes.recv_timeout(wait), Ok(("connection".to_owned(), Some(cause.to_owned()))));
        eventually(cause, || !logs::with(&["WARN", "\"connection\"", cause]).is_empty());
    }
    assert_eq!(ask("told"), r#"44{"message":"come back later","data":5}"#);
    assert!(ask("well").starts_with("40{"));
    assert!(causes.try_recv().is_err(), "a refusal is no error");
    end(server);
}

struct NeverSet;

#[test]
fn a_state_that_was_never_set_is_told_at_the_first_use() {
    let _alone = alone();
    logs::keep();
    let errors = Arc::new(AtomicUsize::new(0));
    let count = errors.clone();
    let server = start(Options::default, move |io| {
        let count = count.clone();
        io.on_error(move |_: Socket, error: &EventError| {
            assert!(error.failure.to_string().contains("NeverSet"), "{error}");
            count.fetch_add(1, Ordering::SeqCst);
        });
        io.sockets_on("use", |_: State<NeverSet>| -> () { unreachable!("there is none") });
    });
    let mut client = open(server.addresses()[0]);
    join(&mut client);
    for _ in 0..3 {
        client.send_text("42[\"use\"]");
    }
    eventually("each event is told", || errors.load(Ordering::SeqCst) == 3);
    assert_eq!(logs::with(&["ERROR", "NeverSet"]).len(), 1);
    assert!(!logs::with(&["WARN", "NeverSet", "\"use\""]).is_empty());
    end(server);
}

/// Names that clients choose make one line each, without control characters, and short.
#[test]
fn names_of_clients_are_escaped_and_cut_in_every_line() {
    let _alone = alone();
    logs::keep_all();
    let options = || Options { dynamic_namespaces: 1, ..Options::default() };
    let server = start(options, |io| {
        let rooms = io.of_pattern(regex::Regex::new("(?s)^/open").unwrap());
        rooms.middleware(|socket: Socket| match socket.nsp().len() > 20 {
            true => Err(std::io::Error::other(socket.nsp())),
            false => Ok(()),
        });
        let judged = io.of_fn(|name: String, _| {
            assert!(!name.contains("panic"), "on purpose: {name}");
            async move {
                monoio::time::sleep(Duration::from_millis(1)).await;
                assert!(!name.contains("later"), "on purpose: {name}");
                false
            }
        });
        judged.on_connection(|| ());
        io.on_connection(|socket: Socket| {
            socket.on_any(|Event(name): Event| match &*name {
                name if name.contains("panic") => panic!("on purpose: {name}"),
                name if name.contains("slow") => {
                    std::thread::sleep(Duration::from_millis(400));
                    Err::<(), _>(Failure::new(name))
                }
                name => Err(Failure::new(name)),
            });
            socket.middleware(|Event(name): Event| match name.contains("refuse") {
                true => Err(Failure::new(name)),
                false => Ok(()),
            });
            socket.on("join", |socket: Socket, Data(room): Data<String>| socket.join(room));
        });
    });
    let nasty = "\\n\\u001b[2J\\u0000\\r\\u202eERROR forged ";
    let long = "x".repeat(5000);
    let address = server.addresses()[0];
    let mut client = open(address);
    for name in ["/open", "/open-panic", "/judged", "/judged-panic", "/judged-later"] {
        // Names of namespaces are not JSON: as they are, but for the comma that ends them.
        let name = format!("{name}\n\u{1b}[2J\u{0}\r\u{202e}ERROR forged");
        client.send_text(&format!("40{name},{{}}"));
        client.send_text(&format!("40{name}{},", &long[..150]));
    }
    client.send_text("40/open,");
    while !client.text().starts_with("40/open,") {}
    client.send_text("40/open\n\u{1b}[2J forged,");
    for what in ["slow", "refuse", "join", "panic"] {
        let mut client = open(address);
        join(&mut client);
        client.send_text(&format!("42[\"{what}{nasty}{long}\"]"));
        client.send_text(&format!("42[\"join\",\"{nasty}{long}\"]"));
        client.send_text(&format!("42[\"{what}\",\"{nasty}{long}\"]"));
        client.send_text(&format!("4{nasty}{long}"));
        assert!(client.ends());
    }
    let says = |parts: &[&str]| eventually(&format!("{parts:?}"), || !logs::with(parts).is_empty());
    says(&["WARN", "too many dynamic namespaces", "forged"]);
    says(&["WARN", "/open", "forged"]);
    says(&["ERROR", "/judged-panic", "forged"]);
    says(&["ERROR", "/judged-later", "forged"]);
    says(&["WARN", "kept its core", "forged"]);
    says(&["ERROR", "panic", "forged"]);
    says(&["DEBUG", "a packet is refused", "forged"]);
    says(&["WARN", "a join of a room"]);
    for line in logs::with(&[]) {
        assert!(!line.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
        assert!(line.len() < 2000, "{line:?}");
    }
    drop(client);
    end(server);
}

/// Each client that is refused costs a count, and not a line.
#[test]
fn clients_cannot_fill_the_log() {
    let _alone = alone();
    logs::keep();
    let options = || Options { dynamic_namespaces: 10, ..Options::default() };
    let server = start(options, |io| {
        io.of_pattern(regex::Regex::new("^/d").unwrap());
        io.sockets_on("misfit", |Data(_): Data<u8>| ());
        io.sockets_on("done", |ack: Ack| ack.send(()));
    });
    let mut client = open(server.addresses()[0]);
    join(&mut client);
    let mut inside = Vec::new();
    for n in 0..10 {
        client.send_text(&format!("40/d{n},"));
        inside.push(client.text());
    }
    assert!(inside.iter().all(|joined| joined.starts_with("40/d")), "{inside:?}");
    for n in 10..1010 {
        client.send_text(&format!("40/d{n},"));
        assert!(client.text().contains("Invalid namespace"));
        client.send_text("42[\"misfit\",\"no number\"]");
    }
    // One that nobody is in any more goes for the next one.
    client.send_text("41/d3,");
    client.send_text("40/d2000,");
    assert!(client.text().starts_with("40/d2000,{"));
    client.send_text("40/d3,");
    assert!(client.text().contains("Invalid namespace"));
    client.send_text("421[\"done\"]");
    assert_eq!(client.text(), "431[]");
    let metrics = server.metrics();
    assert_eq!((metrics.total("namespaces_refused"), metrics.total("handler_failures")), (1001, 1000));
    assert_eq!(metrics.total("namespaces"), 11);
    for what in ["too many dynamic namespaces", "misfit"] {
        let lines = logs::with(&["WARN", what]).len();
        assert!((1..900).contains(&lines), "{what}: {lines}");
    }
    end(server);
}

#[test]
fn a_path_that_is_not_served_is_an_error() {
    let _alone = alone();
    let server = start(Options::default, |_| ());
    let error = Handle::of_server(&server, "/socket.oi/").unwrap_err();
    assert_eq!(error.to_string(), "no Socket.IO server has the path /socket.oi/");
    for path in ["/socket.io", "socket.io", "/socket.io/"] {
        assert!(Handle::of_server(&server, path).is_ok(), "{path}");
    }
    end(server);
}
