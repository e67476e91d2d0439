//! Every feature of Socket.IO behind an event that drives it: the contract of
//! tests/clients/feature_server.md, for the suites of the official clients.
//!
//! `cargo run --example feature_server -- --port 3005 --workers 3`

mod common;
#[path = "common/json_lines.rs"]
mod json_lines;

use clap::Parser;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sockring::app::App;
use sockring::engine::{self, Cors};
use sockring::io::{
    Ack, AckError, Args, BroadcastAckError, BroadcastOperator, Data, DisconnectReason, Event, Failure,
    HandlerId, Handshake, MsgpackParser, Namespace, Options, RemoteSocket, Server, Socket, Value,
};

/// The npm package that the suites are installed with brings the client's bundles.
const CLIENT_DIST: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/node_modules/socket.io/client-dist");

/// The server of the feature suites
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    listen: common::Listen,
    /// Write and read packets in another form than the default one.
    #[arg(long)]
    parser: Option<Form>,
}

/// What packets may be written as.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Form {
    Msgpack,
    Json,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    let http = sockring::app::Options {
        head_timeout: Duration::from_secs(5),
        body_timeout: Duration::from_secs(10),
        keep_alive: Duration::from_secs(14),
        trust_proxy: flags.listen.trusted()?,
        ..sockring::app::Options::default()
    };
    let builder = flags.listen.builder(3005)?.http(http);
    let form = flags.parser;
    common::serve(builder, move |app| set_up(app, form))
}

fn set_up(app: &App, form: Option<Form>) {
    let options = Options {
        engine: engine::Options {
            cors: Some(Cors::any()),
            ping_interval: Duration::from_millis(1000),
            ping_timeout: Duration::from_millis(2000),
            max_http_buffer_size: 4_000_000,
            allow_eio3: true,
            ..Options::default().engine
        },
        connect_timeout: Duration::from_millis(1000),
        client_dist: Some(CLIENT_DIST.into()),
        cleanup_empty_child_namespaces: true,
        parser: form.map(|form| match form {
            Form::Msgpack => Arc::new(MsgpackParser) as _,
            Form::Json => Arc::new(json_lines::JsonLines) as _,
        }),
        ..Options::default()
    };
    let io = Server::attach_app(app, options);
    let observers = io.of("/observer");
    for name in ["/", "/nsp", "/auth"] {
        serve(&io, &io.of(name));
    }
    guard(&io.of("/auth"));
    families(&io);
    let made = io.clone();
    io.on_new_namespace(move |nsp| {
        let _ = observers.emit("new", serde_json::json!({ "nsp": nsp.name() }));
        serve(&made, &nsp);
    });
    let server = io.clone();
    io.of("/nsp").sockets_on("make-namespace", move |Data(name): Data<String>, ack: Ack| {
        server.of(&name);
        ack.send(())
    });
}

/// The parents: namespaces that are made when a client asks for them.
fn families(io: &Server) {
    let pattern = regex::Regex::new(r"^/dynamic-\d+$").expect("the pattern is well formed");
    let dynamic = io.of_pattern(pattern);
    dynamic.middleware(|Data(auth): Data<Value>| match auth.get("refuse").and_then(Value::as_bool) {
        Some(true) => Err(Failure::new("not here")),
        _ => Ok(()),
    });
    let clubs = io.of_fn(|name: String, handshake: Handshake| async move {
        sleep(20).await;
        let key = handshake.auth.get("key").and_then(Value::as_str);
        name.strip_prefix("/club-").is_some_and(|club| key == Some(club))
    });
    for parent in [dynamic, clubs] {
        let family = parent.clone();
        parent.sockets_on("family-say", move |Data(spec): Data<Spec>, ack: Ack| {
            family.to(&spec.to).except(&spec.except).emit(&spec.event, Args(spec.args))?;
            ack.send(())
        });
        parent.on_connection(|socket: Socket| socket.emit("family", socket.nsp()));
    }
}

/// What a socket carries.
#[derive(Default, Serialize)]
struct State {
    #[serde(flatten)]
    data: RefCell<serde_json::Map<String, serde_json::Value>>,
    #[serde(skip)]
    counted: RefCell<Vec<i64>>,
    #[serde(skip)]
    log: RefCell<Log>,
    #[serde(skip)]
    loggers: Cell<Option<(HandlerId, HandlerId)>>,
}

/// The events that any-listeners have seen.
#[derive(Default, Serialize)]
struct Log {
    incoming: Vec<String>,
    outgoing: Vec<String>,
}

fn state(socket: Socket) -> std::rc::Rc<State> {
    socket.data::<State>().unwrap_or_default()
}

fn sorted(mut rooms: Vec<String>) -> Vec<String> {
    rooms.sort();
    rooms
}

fn guard(nsp: &Namespace) {
    nsp.middleware(|socket: Socket, Data(auth): Data<Value>| {
        let state = State::default();
        state.data.borrow_mut().insert("order".into(), serde_json::json!(["first"]));
        if let Some(mark) = auth.get("mark").and_then(Value::as_str) {
            state.data.borrow_mut().insert("mark".into(), mark.into());
        }
        socket.set_data(state);
        socket.join("from-middleware");
    });
    nsp.middleware(|socket: Socket, Data(auth): Data<Value>| async move {
        // The socket may have left before this is polled: then there is nothing.
        if let Some(order) = state(socket).data.borrow_mut().get_mut("order").and_then(|o| o.as_array_mut()) {
            order.push("second".into());
        }
        let token = auth.get("token").and_then(Value::as_str);
        if token == Some("slow") {
            sleep(200).await;
        }
        match token {
            Some("letmein" | "slow") => Ok(()),
            _ => Err(Failure::new("bad token").data(&serde_json::json!({ "given": token }))),
        }
    });
}

async fn sleep(ms: u64) {
    monoio::time::sleep(Duration::from_millis(ms)).await;
}

#[derive(Serialize)]
struct Observed {
    nsp: String,
    id: String,
    reason: Option<&'static str>,
    rooms: Vec<String>,
}

fn observed(socket: Socket, reason: Option<DisconnectReason>) -> Observed {
    Observed {
        nsp: socket.nsp(),
        id: socket.id().to_string(),
        reason: reason.map(DisconnectReason::as_str),
        rooms: sorted(socket.rooms()),
    }
}

fn serve(io: &Server, nsp: &Namespace) {
    let observers = io.of("/observer");
    rooms(nsp);
    emits(io, nsp);
    echoes(nsp);
    listeners(nsp);
    errors(nsp, &observers);
    states(io, nsp);
    let (leaving, left) = (observers.clone(), observers.clone());
    nsp.sockets_on("disconnecting", move |socket: Socket, reason: DisconnectReason| {
        leaving.emit("leaving", observed(socket, Some(reason)))
    });
    nsp.sockets_on("disconnect", move |socket: Socket, reason: DisconnectReason| {
        left.emit("left", observed(socket, Some(reason)))
    });
    nsp.on_connection(move |socket: Socket, Data(auth): Data<Value>| {
        if socket.data::<State>().is_none() {
            socket.set_data(State::default());
        }
        listen(socket);
        watch(socket, &observers);
        observers.emit("joined", observed(socket, None))?;
        socket.emit("welcome", (socket.id(), auth))
    });
}

/// A room or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Several(Vec<String>),
}

impl Names {
    fn list(self) -> Vec<String> {
        match self {
            Self::One(name) => vec![name],
            Self::Several(names) => names,
        }
    }
}

fn rooms(nsp: &Namespace) {
    nsp.sockets_on("join", |socket: Socket, Data(names): Data<Names>, ack: Ack| {
        socket.join(names.list());
        ack.send(())
    });
    nsp.sockets_on("leave", |socket: Socket, Data(room): Data<String>, ack: Ack| {
        socket.leave(room);
        ack.send(())
    });
    let found = nsp.clone();
    nsp.sockets_on("fetch", move |Data(rooms): Data<Option<Names>>, ack: Ack| {
        let found = found.clone();
        async move {
            let sockets = match rooms {
                Some(rooms) => found.to(rooms.list()).fetch_sockets().await?,
                None => found.fetch_sockets().await?,
            };
            let mut rows: Vec<Row> = sockets.into_iter().map(Row::from).collect();
            rows.sort_by(|a, b| a.id.cmp(&b.id));
            ack.send(rows)?;
            Ok::<(), Failure>(())
        }
    });
    nsp.sockets_on("rooms", |socket: Socket, ack: Ack| ack.send(sorted(socket.rooms())));
    let joined = nsp.clone();
    nsp.sockets_on("sockets-join", move |Data((rooms, names)): Data<(Option<Names>, Names)>, ack: Ack| {
        match rooms {
            Some(rooms) => joined.to(rooms.list()).sockets_join(names.list()),
            None => joined.sockets_join(names.list()),
        }
        ack.send(())
    });
    let left = nsp.clone();
    nsp.sockets_on("sockets-leave", move |Data((rooms, names)): Data<(Option<Names>, Names)>, ack: Ack| {
        match rooms {
            Some(rooms) => left.to(rooms.list()).sockets_leave(names.list()),
            None => left.sockets_leave(names.list()),
        }
        ack.send(())
    });
}

#[derive(Serialize)]
struct Row {
    id: String,
    rooms: Vec<String>,
    data: Value,
}

impl From<RemoteSocket> for Row {
    fn from(socket: RemoteSocket) -> Self {
        Self { id: socket.id.to_string(), rooms: sorted(socket.rooms), data: socket.data }
    }
}

/// A broadcast, as a client describes it.
#[derive(Deserialize)]
struct Spec {
    from: Option<String>,
    #[serde(default)]
    to: Vec<String>,
    #[serde(default)]
    except: Vec<String>,
    #[serde(default)]
    local: bool,
    #[serde(default)]
    volatile: bool,
    compress: Option<bool>,
    event: String,
    #[serde(default)]
    args: Vec<Value>,
    timeout_ms: Option<u64>,
    style: Option<String>,
}

fn operator(nsp: &Namespace, socket: Socket, spec: &Spec) -> BroadcastOperator {
    let all = || nsp.except(Vec::<String>::new());
    let mut operator = if spec.from.as_deref() == Some("socket") { socket.broadcast() } else { all() };
    operator = operator.to(&spec.to).except(&spec.except);
    if spec.local {
        operator = operator.local();
    }
    if let Some(compress) = spec.compress {
        operator = operator.compress(compress);
    }
    if let Some(timeout) = spec.timeout_ms {
        operator = operator.timeout(Duration::from_millis(timeout));
    }
    if spec.volatile { operator.volatile() } else { operator }
}

#[derive(Deserialize)]
struct Ask {
    event: String,
    #[serde(default)]
    args: Vec<Value>,
    timeout_ms: Option<u64>,
    style: Option<String>,
}

#[derive(Serialize)]
struct Answer {
    error: Option<String>,
    reply: Vec<Value>,
}

fn answer(result: Result<Vec<Value>, AckError>) -> Answer {
    match result {
        Ok(reply) => Answer { error: None, reply },
        Err(error) => Answer { error: Some(error.to_string()), reply: Vec::new() },
    }
}

fn answers(result: Result<Vec<Value>, BroadcastAckError<Value>>) -> Answer {
    match result {
        Ok(reply) => Answer { error: None, reply },
        Err(error) => Answer { error: Some(error.to_string()), reply: error.answers },
    }
}

#[derive(Deserialize)]
struct Script {
    steps: String,
    delay_ms: u64,
    #[serde(default)]
    binary: bool,
    #[serde(default)]
    broadcast: bool,
}

fn emits(io: &Server, nsp: &Namespace) {
    let out = nsp.clone();
    nsp.sockets_on("emit-to", move |socket: Socket, Data(spec): Data<Spec>, ack: Ack| {
        operator(&out, socket, &spec).emit(&spec.event, Args(spec.args.clone()))?;
        ack.send(())
    });
    let out = nsp.clone();
    nsp.sockets_on("emit-to-with-ack", move |socket: Socket, Data(spec): Data<Spec>, ack: Ack| {
        let operator = operator(&out, socket, &spec);
        async move {
            if spec.style.as_deref() == Some("promise") {
                let result = operator.emit_with_ack(&spec.event, Args(spec.args)).await;
                return ack.send(answers(result)).map(drop);
            }
            let answered = move |result| {
                let _ = ack.send(answers(result));
            };
            operator.emit_with_callback(&spec.event, Args(spec.args), answered).map(drop)
        }
    });
    nsp.sockets_on("ask-me", |socket: Socket, Data(ask): Data<Ask>, ack: Ack| async move {
        let timeout = Duration::from_millis(ask.timeout_ms.unwrap_or(u64::from(u32::MAX)));
        let from = socket.timeout(timeout);
        if ask.style.as_deref() == Some("promise") {
            let first = from.emit_with_ack::<Value, _>(&ask.event, Args(ask.args)).await;
            return ack.send(answer(first.map(|value| vec![value])));
        }
        let answered = move |result| {
            let _ = ack.send(answer(result));
        };
        from.emit_with_callback(&ask.event, Args(ask.args), answered)
    });
    asks_remote(nsp);
    #[derive(Deserialize)]
    struct Burst {
        event: String,
        count: u32,
    }
    nsp.sockets_on("burst", |socket: Socket, Data(burst): Data<Burst>| {
        (0..burst.count).try_for_each(|i| socket.emit(&burst.event, i).map(drop))
    });
    let out = nsp.clone();
    nsp.sockets_on("volatile-script", move |socket: Socket, Data(script): Data<Script>| {
        let out = out.clone();
        async move {
            sleep(script.delay_ms).await;
            script
                .steps
                .chars()
                .enumerate()
                .try_for_each(|(i, step)| play(&out, socket, &script, i, step == 'v'))
        }
    });
    let (handle, name) = (io.handle(), nsp.name().to_owned());
    nsp.sockets_on("tick-please", move |Data(token): Data<Value>| {
        let handle = handle.of(&name);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            let _ = handle.emit("tick", token);
        });
    });
    nsp.sockets_on("reserved", |socket: Socket, Data(name): Data<String>, ack: Ack| {
        let refused = socket.emit(&name, ()).err();
        ack.send(refused.map(|error| error.to_string()))
    });
}

#[derive(Deserialize)]
struct AskRemote {
    id: String,
    event: String,
    args: Vec<Value>,
    timeout_ms: u64,
}

fn asks_remote(nsp: &Namespace) {
    nsp.sockets_on("ask-remote", |nsp: Namespace, Data(ask): Data<AskRemote>, ack: Ack| async move {
        let remote = nsp.to(ask.id).fetch_sockets().await?.pop().ok_or("there is no such socket")?;
        let remote = remote.timeout(Duration::from_millis(ask.timeout_ms));
        let reply = remote.emit_with_ack::<Value, _>(&ask.event, Args(ask.args)).await;
        ack.send(answer(reply.map(|value| vec![value]))).map_err(Failure::from)
    });
}

#[derive(Serialize)]
struct Upgraded {
    nsp: String,
    id: String,
    transport: Option<&'static str>,
}

/// Tells the observers when a connection has moved to another transport.
fn watch(socket: Socket, observers: &Namespace) {
    let Some(conn) = socket.conn() else { return };
    let observers = observers.clone();
    conn.on_upgrade(move |conn| {
        let transport = conn.transport().map(|transport| transport.as_str());
        let _ = observers
            .emit("upgraded", Upgraded { nsp: socket.nsp(), id: socket.id().to_string(), transport });
    });
}

fn play(
    nsp: &Namespace,
    socket: Socket,
    script: &Script,
    i: usize,
    volatile: bool,
) -> Result<(), sockring::io::EncodeError> {
    let bytes = script.binary.then(|| Value::from(bytes::Bytes::from_static(&[1, 2, 3])));
    let args = Args(std::iter::once(Value::from(i as u64)).chain(bytes).collect());
    let event = "volatile-back";
    let sent = match (script.broadcast, volatile) {
        (true, true) => nsp.to(socket.id()).volatile().emit(event, args),
        (true, false) => nsp.to(socket.id()).emit(event, args),
        (false, true) => socket.volatile().emit(event, args),
        (false, false) => socket.emit(event, args),
    };
    sent.map(drop)
}

fn echo(socket: Socket, args: Vec<Value>, ack: Ack) -> Result<(), sockring::io::EncodeError> {
    let sent = if ack.is_expected() { ack.send(Args(args)) } else { socket.emit("echo-back", Args(args)) };
    sent.map(drop)
}

fn echoes(nsp: &Namespace) {
    nsp.sockets_on("echo", |socket: Socket, Args(args): Args, ack: Ack| echo(socket, args, ack));
    nsp.sockets_on("echo-async", |socket: Socket, Args(args): Args, ack: Ack| async move {
        sleep(50).await;
        echo(socket, args, ack)
    });
    nsp.sockets_on("message", |socket: Socket, Args(args): Args| socket.send(Args(args)));
    nsp.sockets_on("typed", |socket: Socket, Data((text, number)): Data<(String, i64)>| {
        socket.emit("typed-back", (text, number))
    });
    nsp.on_error(|socket, error| {
        let _ = socket.emit(&format!("{}-error", error.event), error.failure.message());
    });
    nsp.sockets_on("count", |socket: Socket, Data(number): Data<i64>| {
        state(socket).counted.borrow_mut().push(number);
    });
    nsp.sockets_on("counted", |socket: Socket, ack: Ack| ack.send(state(socket).counted.take()));
}

fn listeners(nsp: &Namespace) {
    for i in 1..=3 {
        nsp.sockets_on("multi", move |socket: Socket, Data(value): Data<Value>| {
            socket.emit("multi-back", (i, value))
        });
    }
    nsp.sockets_on("any-start", |socket: Socket, ack: Ack| {
        let incoming = socket.on_any(|socket: Socket, Event(name): Event| {
            state(socket).log.borrow_mut().incoming.push(name);
        });
        let outgoing = socket.on_any_outgoing(|socket: Socket, Event(name): Event| {
            state(socket).log.borrow_mut().outgoing.push(name);
        });
        state(socket).loggers.set(Some((incoming, outgoing)));
        ack.send(())
    });
    nsp.sockets_on("any-stop", |socket: Socket, ack: Ack| {
        if let Some((incoming, outgoing)) = state(socket).loggers.take() {
            socket.off_any(incoming);
            socket.off_any_outgoing(outgoing);
        }
        ack.send(state(socket).log.take())
    });
}

/// Handlers of one socket.
fn listen(socket: Socket) {
    socket.once("only-once", |socket: Socket| socket.emit("once-back", ()));
    let removable = socket.on("removable", |socket: Socket| socket.emit("removable-back", ()));
    socket.on("remove-handler", move |socket: Socket, ack: Ack| {
        socket.off(removable);
        ack.send(())
    });
    middlewares(socket);
    emitter(socket);
}

fn middlewares(socket: Socket) {
    let order = Rc::new(RefCell::new(Vec::new()));
    let (first, third, log) = (order.clone(), order.clone(), order);
    socket.middleware(move |Event(name): Event| match &*name {
        "mw-log" => {
            first.replace(vec!["first"]);
            Ok(())
        }
        "forbidden" => Err(Failure::new("event forbidden")),
        _ => Ok(()),
    });
    socket.middleware(|Event(name): Event| async move {
        if name == "mw-slow" {
            sleep(100).await;
        }
    });
    socket.middleware(move |Event(name): Event| {
        third.borrow_mut().push("third");
        match &*name {
            "mw-data" => Err(Failure::new("no data").data(&serde_json::json!({ "code": 7 }))),
            _ => Ok(()),
        }
    });
    socket.on("mw-log", move |ack: Ack| ack.send(log.take()));
    for event in ["mw-slow", "mw-fast"] {
        socket.on(event, |Data(value): Data<Value>, ack: Ack| ack.send(value));
    }
    socket.on("mw-data", |socket: Socket| socket.emit("middleware-data", "passed"));
}

#[derive(Serialize)]
struct Failed {
    nsp: String,
    id: String,
    message: String,
}

fn errors(nsp: &Namespace, observers: &Namespace) {
    let observers = observers.clone();
    nsp.sockets_on("error", move |socket: Socket, failure: Failure| {
        if let Some(data) = failure.details() {
            return socket.emit("middleware-data", data);
        }
        socket.emit("middleware-error", failure.message())?;
        let message = failure.message().to_owned();
        observers.emit("failed", Failed { nsp: socket.nsp(), id: socket.id().to_string(), message })
    });
}

fn emitter(socket: Socket) {
    let order = Rc::new(RefCell::new(Vec::new()));
    let started = order.clone();
    socket.on("any-order-start", move |socket: Socket, ack: Ack| {
        let push = |what: &'static str| {
            let order = started.clone();
            move || order.borrow_mut().push(what)
        };
        socket.on_any(push("in-1"));
        socket.prepend_any(push("in-2"));
        socket.on_any_outgoing(push("out-1"));
        socket.prepend_any_outgoing(push("out-2"));
        ack.send(())
    });
    socket.on("any-order-stop", move |socket: Socket, ack: Ack| {
        socket.off_any(None);
        socket.off_any_outgoing(None);
        let left = socket.listeners_any().len() + socket.listeners_any_outgoing().len();
        ack.send(serde_json::json!({ "order": order.take(), "left": left }))
    });
    let trio = Rc::new(Cell::new([None; 5]));
    let added = trio.clone();
    socket.on("trio-on", move |socket: Socket, ack: Ack| {
        let back = |i: u32| move |socket: Socket| socket.emit("trio-back", i);
        let ids = [
            socket.on("trio", back(1)),
            socket.on("trio", back(2)),
            socket.prepend_listener("trio", back(3)),
            socket.once("trio", back(4)),
            socket.prepend_once_listener("trio", back(5)),
        ];
        added.set(ids.map(Some));
        ack.send(socket.listeners("trio").len())
    });
    socket.on("trio-off", move |socket: Socket, Data(i): Data<Option<usize>>, ack: Ack| {
        match i {
            None => socket.off("trio"),
            Some(i) => trio.get().get(i - 1).copied().flatten().into_iter().for_each(|id| socket.off(id)),
        }
        ack.send(socket.event_names().iter().any(|name| name == "trio"))
    });
    socket.on("ack-twice", |ack: Ack| ack.send(1));
    socket.on("ack-twice", |ack: Ack| ack.send(2));
}

#[derive(Serialize)]
struct Info {
    id: String,
    nsp: String,
    connected: bool,
    rooms: Vec<String>,
    transport: Option<&'static str>,
    recovered: bool,
}

fn states(io: &Server, nsp: &Namespace) {
    nsp.sockets_on(
        "data-set",
        |socket: Socket, Data((key, value)): Data<(String, serde_json::Value)>, ack: Ack| {
            state(socket).data.borrow_mut().insert(key, value);
            ack.send(())
        },
    );
    nsp.sockets_on("data-get", |socket: Socket, Data(key): Data<String>, ack: Ack| {
        ack.send(state(socket).data.borrow().get(&key).cloned())
    });
    nsp.sockets_on("handshake", |socket: Socket, ack: Ack| ack.send(socket.handshake()));
    nsp.sockets_on("info", |socket: Socket, ack: Ack| {
        ack.send(Info {
            id: socket.id().to_string(),
            nsp: socket.nsp(),
            connected: socket.connected(),
            rooms: sorted(socket.rooms()),
            transport: socket.conn().and_then(|conn| conn.transport()).map(|transport| transport.as_str()),
            recovered: socket.recovered(),
        })
    });
    let server = io.clone();
    nsp.sockets_on("clients-count", move |ack: Ack| {
        ack.send(server.engine().map_or(0, |engine| engine.clients_count()))
    });
    nsp.sockets_on("disconnect-me", |socket: Socket, Data(close): Data<bool>| socket.disconnect(close));
    let out = nsp.clone();
    nsp.sockets_on("disconnect-room", move |Data((rooms, close)): Data<(Option<Names>, bool)>| match rooms {
        Some(rooms) => out.to(rooms.list()).disconnect_sockets(close),
        None => out.disconnect_sockets(close),
    });
    let server = io.clone();
    nsp.sockets_on("close-server", move || server.close());
    nsp.sockets_on("close-conn", |socket: Socket| {
        if let Some(conn) = socket.conn() {
            conn.close();
        }
    });
}
