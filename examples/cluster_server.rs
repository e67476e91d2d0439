//! Several servers that act as one, in one process: the contract of tests/clients/cluster.test.mjs. The first
//! listens on the port that was asked for, the others on free ones, which the event `servers` tells.
//!
//! `cargo run --example cluster_server -- --port 3006 --workers 2 --servers 3`

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use sockring::adapter::{ClusterAdapter, ClusterOptions, InProcess, Link};
use sockring::engine::{self, Cors};
use sockring::io::{
    Ack, Adapter, Args, BroadcastOperator, ConnectionStateRecovery, Data, Failure, Handle, MsgpackParser,
    Options, RemoteSocket, Server, ServerEvent, Socket, Value,
};
use sockring::runtime::Running;

/// Servers of a cluster
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    listen: common::Listen,
    /// How many
    #[arg(long, default_value_t = 2)]
    servers: usize,
    /// Write and read packets as MessagePack
    #[arg(long)]
    msgpack: bool,
    /// Let clients come back to any of them
    #[arg(long)]
    recovery: bool,
    /// Milliseconds between two ticks, which the servers emit in turn; 0 for none
    #[arg(long, default_value_t = 0)]
    tick: u64,
}

/// One of the servers.
#[derive(Clone)]
struct Member {
    number: usize,
    adapter: ClusterAdapter<Link>,
    /// Where the others are.
    others: Vec<SocketAddr>,
    msgpack: bool,
    recovery: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    let requests_timeout = Duration::from_millis(1500);
    let hub = InProcess::new().with_options(ClusterOptions { requests_timeout, ..ClusterOptions::default() });
    let hub = if flags.recovery { hub.keeping_sessions() } else { hub };
    let member = |number, others| {
        let (msgpack, recovery) = (flags.msgpack, flags.recovery);
        Member { number, adapter: hub.adapter(), others, msgpack, recovery }
    };
    let mut others: Vec<Running> = Vec::new();
    for number in 1..flags.servers {
        let member = member(number, Vec::new());
        others.push(
            flags
                .listen
                .beside()?
                .start(move |app| member.serve(&Server::attach_app(app, member.options())))?,
        );
    }
    let addresses = others.iter().flat_map(|server| server.addresses().to_vec()).collect();
    let first = member(0, addresses);
    let first = common::start(flags.listen.builder(3006)?, move |app| {
        first.serve(&Server::attach_app(app, first.options()));
    })?;
    if flags.tick > 0 {
        let handles = others
            .iter()
            .chain([&first])
            .map(|server| Handle::of_server(server, "/socket.io").expect("each serves the same path"));
        tick(handles.collect(), Duration::from_millis(flags.tick));
    }
    first.run_until_signal()?;
    for server in others {
        server.shutdown();
        server.join()?;
    }
    Ok(())
}

fn tick(handles: Vec<Handle>, pause: Duration) {
    thread::spawn(move || {
        for (number, io) in handles.iter().cycle().enumerate() {
            let _ = io.emit("tick", number);
            thread::sleep(pause);
        }
    });
}

/// A broadcast, as a client describes it.
#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    from_socket: bool,
    #[serde(default)]
    to: Vec<String>,
    #[serde(default)]
    except: Vec<String>,
    #[serde(default)]
    local: bool,
    #[serde(default)]
    volatile: bool,
    event: String,
    #[serde(default)]
    args: Vec<Value>,
    #[serde(default)]
    timeout_ms: u64,
}

impl Spec {
    fn operator(&self, io: &Server, socket: Socket) -> BroadcastOperator {
        let operator = if self.from_socket { socket.broadcast() } else { io.to(Vec::<String>::new()) };
        let operator = operator.to(&self.to).except(&self.except);
        let operator = if self.local { operator.local() } else { operator };
        let operator = if self.volatile { operator.volatile() } else { operator };
        if self.timeout_ms > 0 { operator.timeout(Duration::from_millis(self.timeout_ms)) } else { operator }
    }
}

/// What came of a question to many.
#[derive(Serialize)]
struct Answers {
    error: Option<String>,
    replies: Vec<Value>,
}

impl Answers {
    fn all(replies: Vec<Value>) -> Self {
        Self { error: None, replies }
    }

    fn some(error: impl ToString, replies: Vec<Value>) -> Self {
        Self { error: Some(error.to_string()), replies }
    }
}

#[derive(Serialize)]
struct Row {
    id: String,
    rooms: Vec<String>,
    data: Value,
    handshake: Value,
}

impl From<RemoteSocket> for Row {
    fn from(socket: RemoteSocket) -> Self {
        let RemoteSocket { mut rooms, data, handshake, .. } = socket.clone();
        rooms.sort();
        Self { id: socket.id.to_string(), rooms, data, handshake }
    }
}

impl Member {
    fn options(&self) -> Options {
        Options {
            engine: engine::Options { cors: Some(Cors::any()), ..Options::default().engine },
            connection_state_recovery: self.recovery.then(ConnectionStateRecovery::default),
            parser: self.msgpack.then(|| Arc::new(MsgpackParser) as _),
            adapter: Some(Arc::new(self.adapter.clone())),
            ..Options::default()
        }
    }

    fn serve(&self, io: &Server) {
        self.tell(io);
        sockets(io);
        broadcasts(io);
        remote(io);
        self.servers(io);
    }

    /// What a client asks about the server and about itself.
    fn tell(&self, io: &Server) {
        let others: Vec<String> = self.others.iter().map(|address| format!("http://{address}")).collect();
        io.sockets_on("servers", move |ack: Ack| ack.send(&others));
        let number = self.number;
        io.sockets_on("which", move |ack: Ack| ack.send(number));
        let adapter = self.adapter.clone();
        io.sockets_on("count", move |ack: Ack| ack.send(adapter.server_count("/")));
        io.sockets_on("who am i", |socket: Socket, ack: Ack| {
            let mut rooms = socket.rooms();
            rooms.sort();
            let data = socket.recovered_data::<Value>().and_then(Result::ok);
            ack.send((socket.id(), socket.recovered(), rooms, data))
        });
        let server = io.clone();
        io.sockets_on("close-server", move || server.close());
    }

    /// Servers that speak to each other.
    fn servers(&self, io: &Server) {
        let (number, all) = (self.number, io.clone());
        io.on_server_event("told", move |event: ServerEvent| {
            let _ = all.local().emit("told", (number, event.args));
        });
        io.on_server_event("which?", move |event: ServerEvent| {
            let _ = event.ack.send((number, event.args));
            let _ = event.ack.send("the first answer counts");
        });
        io.on_server_event("silent?", move |event: ServerEvent| {
            if number == 1 {
                let _ = event.ack.send(1);
            }
        });
        io.sockets_on(
            "server-emit",
            |io: Server, Data((event, args)): Data<(String, Vec<Value>)>, ack: Ack| {
                let refused = io.server_side_emit(&event, Args(args)).err();
                ack.send(refused.map(|error| error.to_string()))
            },
        );
        io.sockets_on(
            "server-ask",
            |io: Server, Data((event, args)): Data<(String, Vec<Value>)>, ack: Ack| async move {
                let answers = match io.server_side_emit_with_ack(&event, Args(args)).await {
                    Ok(replies) => Answers::all(replies),
                    Err(error) => Answers::some(&error.message, error.responses),
                };
                ack.send(answers)
            },
        );
    }
}

fn sockets(io: &Server) {
    io.sockets_on("join", |socket: Socket, Data(rooms): Data<Vec<String>>, ack: Ack| {
        socket.join(rooms);
        ack.send(())
    });
    io.sockets_on("set", |socket: Socket, Data(value): Data<Value>, ack: Ack| {
        socket.set_data(value);
        ack.send(())
    });
    io.sockets_on("whisper", |socket: Socket, Data(text): Data<Value>| socket.emit("whispered", text));
    io.sockets_on("sockets-join", |io: Server, Data((of, rooms)): Data<(String, Vec<String>)>, ack: Ack| {
        io.to(of).sockets_join(rooms);
        ack.send(())
    });
    io.sockets_on("sockets-leave", |io: Server, Data((of, rooms)): Data<(String, Vec<String>)>, ack: Ack| {
        io.to(of).sockets_leave(rooms);
        ack.send(())
    });
    io.sockets_on("disconnect", |_: Socket| ());
    io.sockets_on("disconnect-sockets", |io: Server, Data((of, close)): Data<(String, bool)>| {
        io.to(of).disconnect_sockets(close);
    });
    io.sockets_on("fetch", |io: Server, Data((of, local)): Data<(Vec<String>, bool)>, ack: Ack| async move {
        let operator = io.to(of);
        let operator = if local { operator.local() } else { operator };
        let mut rows: Vec<Row> = operator.fetch_sockets().await?.into_iter().map(Row::from).collect();
        rows.sort_by(|a, b| a.id.cmp(&b.id));
        ack.send(rows).map_err(Failure::from)
    });
}

fn broadcasts(io: &Server) {
    io.sockets_on("emit", |io: Server, socket: Socket, Data(spec): Data<Spec>, ack: Ack| {
        let _ = spec.operator(&io, socket).emit(&spec.event, Args(spec.args.clone()))?;
        ack.send(())
    });
    io.sockets_on("ask", |io: Server, socket: Socket, Data(spec): Data<Spec>, ack: Ack| {
        let answers = spec.operator(&io, socket).emit_with_ack::<Value, _>(&spec.event, Args(spec.args));
        async move {
            ack.send(match answers.await {
                Ok(replies) => Answers::all(replies),
                Err(error) => Answers::some(&error.reason, error.answers),
            })
        }
    });
}

/// One socket, wherever it is.
fn remote(io: &Server) {
    #[derive(Deserialize)]
    struct One {
        id: String,
        action: String,
        #[serde(default)]
        args: Vec<Value>,
        #[serde(default)]
        timeout_ms: u64,
    }
    io.sockets_on("remote", |io: Server, Data(one): Data<One>, ack: Ack| async move {
        let remote = io.to(one.id).fetch_sockets().await?.pop().ok_or("there is no such socket")?;
        let rooms: Vec<String> = one.args.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        match &*one.action {
            "join" => remote.join(rooms),
            "leave" => remote.leave(rooms),
            "disconnect" => remote.disconnect(true),
            "emit" => drop(remote.emit("news", Args(one.args))?),
            _ => {
                let asked = remote.timeout(Duration::from_millis(one.timeout_ms));
                let answers = match asked.emit_with_ack::<Value, _>("question", Args(one.args)).await {
                    Ok(reply) => Answers::all(vec![reply]),
                    Err(error) => Answers::some(error, Vec::new()),
                };
                return ack.send(answers).map_err(Failure::from);
            }
        }
        ack.send(()).map_err(Failure::from)
    });
}
