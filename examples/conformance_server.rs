//! The servers that outside conformance suites expect (docs: `shared/conformance.md`).
//!
//! `cargo run --example conformance_server -- --profile NAME --port 3000 --workers 1`, NAME being one of engine,
//! engine3, engine-client, socketio and client.

mod common;

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use clap::{Parser, ValueEnum};
use serde_json::json;
use sockring::app::{App, Request};
use sockring::engine::{self, Cors, Handlers, Message};
use sockring::io::{
    Ack, Args, ConnectionStateRecovery, Data, Failure, Namespace, Options, Server, Socket, Value,
};

/// The servers that outside conformance suites expect
#[derive(Parser)]
struct Flags {
    /// Which of them
    #[arg(long, value_enum, default_value_t = Profile::Socketio)]
    profile: Profile,
    #[command(flatten)]
    listen: common::Listen,
}

#[derive(Clone, Copy, ValueEnum)]
enum Profile {
    Engine,
    EngineClient,
    Engine3,
    Socketio,
    Client,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    let (setup, port): (fn(&App), u16) = match flags.profile {
        Profile::Engine => (|app| engine(app, quick("/engine.io")), 3000),
        Profile::EngineClient => (engine_client, 3000),
        Profile::Engine3 => {
            (|app| engine(app, engine::Options { allow_eio3: true, ..quick("/engine.io") }), 3000)
        }
        Profile::Socketio => (socketio, 3000),
        Profile::Client => (client, 3210),
    };
    let builder = flags.listen.builder(port)?;
    common::serve(builder, setup)
}

fn quick(path: &str) -> engine::Options {
    engine::Options {
        path: path.into(),
        ping_interval: Duration::from_millis(300),
        ping_timeout: Duration::from_millis(200),
        cors: Some(Cors::any()),
        ..engine::Options::default()
    }
}

const CLIENT_DIST: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/node_modules/socket.io/client-dist");

/// Plain Engine.IO: sends every message back.
fn engine(app: &App, options: engine::Options) {
    let echo = Handlers::default().message(|socket, message| {
        let _ = match message {
            Message::Text(text) => socket.send_text(text),
            Message::Binary(data) => socket.send_binary(data),
        };
    });
    engine::Server::attach(app, options, echo);
}

/// The server of engine.io-client's own test suite.
fn engine_client(app: &App) {
    let options = engine::Options {
        ping_interval: Duration::from_millis(500),
        max_http_buffer_size: 100,
        cors: Some(Cors::reflect().credentials(true)),
        ..engine::Options::default()
    };
    let options = options.allow_request(|request: Request| match request.query_param("deny") {
        Some(_) => Err(String::new()),
        None => Ok(()),
    });
    let handlers = Handlers::default()
        .connection(|socket| {
            let _ = socket.send_text("hi");
        })
        .message(give);
    engine::Server::attach(app, options, handlers).on_initial_headers(|headers, _| {
        for cookie in ["1=1; Path=/; Max-Age=60", "2=2; Path=/; HttpOnly; SameSite=Lax", "3=3; Max-Age=0"] {
            headers.append("Set-Cookie", cookie);
        }
    });
}

fn give(socket: engine::Socket, message: Message<'_>) {
    let _ = match message {
        Message::Text("give binary") => socket.send_binary(&[0, 1, 2, 3, 4]),
        Message::Text("give utf8") => {
            socket.send_text(&"пойдём гулять вдоль реки, пока не стемнело — ".repeat(8))
        }
        Message::Text("sendHeaders") => {
            let request = socket.data_request();
            let headers = request.iter().flat_map(Request::headers);
            let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), json!(value)));
            socket.send_text(&json!(headers.collect::<serde_json::Map<_, _>>()).to_string())
        }
        Message::Text(text) => socket.send_text(text),
        Message::Binary(data) => socket.send_binary(data),
    };
}

fn socketio(app: &App) {
    let options = Options {
        engine: quick("/socket.io"),
        client_dist: Some(CLIENT_DIST.into()),
        connect_timeout: Duration::from_millis(1000),
        ..Options::default()
    };
    let io = Server::attach_app(app, options);
    io.on_connection(|socket: Socket, Data(auth): Data<Value>| socket.emit("auth", auth));
    io.sockets_on("message", |socket: Socket, Args(args): Args| socket.emit("message-back", Args(args)));
    io.sockets_on("message-with-ack", |Args(args): Args, ack: Ack| ack.send(Args(args)));
    io.of("/custom").on_connection(|socket: Socket, Data(auth): Data<Value>| socket.emit("auth", auth));
}

/// The server of the official client's own test suite.
fn client(app: &App) {
    let options = Options {
        engine: engine::Options { ping_interval: Duration::from_millis(2000), ..Options::default().engine }
            .allow_request(|_| async {
                monoio::time::sleep(Duration::from_millis(10)).await;
                Ok(())
            }),
        connection_state_recovery: Some(ConnectionStateRecovery::default()),
        ..Options::default()
    };
    let io = Server::attach_app(app, options);
    let main = io.sockets();
    main.middleware(|socket: Socket| {
        let fails =
            |request: &sockring::app::Request| request.query_param("fail").is_some_and(|v| !v.is_empty());
        match socket.handshake().is_some_and(|handshake| fails(&handshake.request)) {
            true => Err(Failure::new("Auth failed (main namespace)")),
            false => Ok(()),
        }
    });
    answers(&main);
    binaries(&main);
    main.on_connection(|socket: Socket| {
        in_order(socket, &[("abuff1", None), ("abuff2", Some("please arrive second"))], "abuff2-ack");
        in_order(socket, &[("blob1", None), ("blob2", Some("second")), ("blob3", None)], "blob3-ack");
    });
    io.of("/foo").sockets_on("getId", |socket: Socket, ack: Ack| ack.send(socket.id()));
    for name in ["/timeout_socket", "/valid", "/asd"] {
        io.of(name);
    }
    io.of("/abc").on_connection(|socket: Socket| socket.emit("handshake", socket.handshake()));
    io.of("/no").middleware(|| Err::<(), _>(Failure::new("Auth failed (custom namespace)")));
}

fn date() -> String {
    // JSON has no dates: JavaScript writes them as ISO 8601.
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days as i64);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.000Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The date of a day counted from 1970, in the Gregorian calendar.
fn civil(mut days: i64) -> (i64, i64, i64) {
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let mut year = 1970;
    while days >= 365 + i64::from(leap(year)) {
        days -= 365 + i64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month as i64 + 1, days + 1)
}

fn answers(nsp: &Namespace) {
    const TEXTS: [&str; 5] = ["てすと", "Я Б Г Д Ж Й", "Ä ä Ü ü ß", "utf8 — string", "utf8 — string"];
    nsp.sockets_on("hi", |socket: Socket| socket.emit("hi", ()));
    nsp.sockets_on("echo", |Data(value): Data<Value>, ack: Ack| ack.send(value));
    nsp.sockets_on("ack", |socket: Socket| async move {
        let (five, object): (i64, Value) = socket.emit_with_ack("ack", ()).await?;
        if five == 5 && object.get("test").and_then(Value::as_bool) == Some(true) {
            socket.emit("got it", ())?;
        }
        Ok::<(), Failure>(())
    });
    nsp.sockets_on("getAckDate", |ack: Ack| ack.send(date()));
    nsp.sockets_on("getDate", |socket: Socket| socket.emit("takeDate", date()));
    nsp.sockets_on("getDateObj", |socket: Socket| socket.emit("takeDateObj", json!({ "date": date() })));
    nsp.sockets_on("getUtf8", |socket: Socket| {
        TEXTS.iter().try_for_each(|text| socket.emit("takeUtf8", text).map(drop))
    });
    nsp.sockets_on("false", |socket: Socket| socket.emit("false", false));
    nsp.sockets_on("getHandshake", |socket: Socket, ack: Ack| ack.send(socket.handshake()));
    nsp.sockets_on("getId", |socket: Socket, ack: Ack| ack.send(socket.id()));
}

fn binaries(nsp: &Namespace) {
    const BINARY: Bytes = Bytes::from_static(b"asdfasdf");
    nsp.sockets_on("doge", |socket: Socket| socket.emit("doge", BINARY));
    nsp.sockets_on("getbin", |socket: Socket| socket.emit("takebin", BINARY));
    nsp.sockets_on("buffa", |socket: Socket, Data(_): Data<Bytes>| socket.emit("buffack", ()));
    nsp.sockets_on("blob", |socket: Socket, Data(data): Data<Bytes>| socket.emit("back", data));
    for event in ["jsonbuff", "jsonblob"] {
        nsp.sockets_on(event, move |socket: Socket, Data(object): Data<Value>| {
            match object.get("message").and_then(Value::as_binary) {
                Some(_) => socket.emit(&format!("{event}-ack"), ()).map(drop).map_err(Failure::from),
                None => Err(Failure::new("no binary in it")),
            }
        });
    }
}

/// Emits `answer` once the events have come in this order, each with this text, or with binary.
fn in_order(socket: Socket, events: &[(&str, Option<&'static str>)], answer: &'static str) {
    let (seen, last) = (std::rc::Rc::new(RefCell::new(0)), events.len());
    for (i, (event, text)) in events.iter().enumerate() {
        let (seen, text) = (seen.clone(), *text);
        socket.on(event, move |socket: Socket, Data(data): Data<Value>| {
            let expected = match text {
                Some(text) => data.as_str() == Some(text),
                None => data.as_binary().is_some(),
            };
            let mut next = seen.borrow_mut();
            *next = if *next == i && expected { i + 1 } else { 0 };
            if *next == last { socket.emit(answer, ()).map(drop) } else { Ok(()) }
        });
    }
}
