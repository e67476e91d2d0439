//! What becomes of messages that wait for a client: deterministic here, since between its polls everything
//! waits for one that polls. `examples/slow_readers.rs` is tried with clients that do not read.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sockring::adapter::InProcess;
use sockring::app::App;
use sockring::io::{
    Ack, Backpressure, ConnectionStateRecovery, Data, Delivery, Handle, Namespace, Options, Policy, Server,
    Socket,
};
use sockring::protocol::ws::frame::OpCode;
use sockring::runtime::{Descriptors, Running};
use support::Client;

const POLL: &str = "/socket.io/?EIO=4&transport=polling";

fn start(
    options: impl Fn() -> Options + Send + Sync + 'static,
    set_up: impl Fn(&Server) + Send + Sync + 'static,
) -> Running {
    let server = support::builder(support::options(Descriptors::Auto, 1));
    let server = server.start(move |app: &App| set_up(&Server::attach_app(app, options())));
    server.expect("a server starts")
}

/// A client that polls, and is in a namespace.
struct Poller {
    http: Client,
    path: String,
}

impl Poller {
    fn join(address: SocketAddr, nsp: &str) -> Self {
        let mut http = Client::connect(address);
        let path = format!("{POLL}&sid={}", support::sid(http.get(POLL).text()));
        let mut poller = Self { http, path };
        let name = if nsp == "/" { String::new() } else { format!("{nsp},") };
        poller.say(&format!("40{name}"));
        assert!(poller.poll().starts_with(&format!("40{name}{{")));
        poller
    }

    fn say(&mut self, packet: &str) {
        assert_eq!(self.http.post(&self.path, packet.as_bytes()).text(), "ok");
    }

    fn poll(&mut self) -> String {
        self.http.get(&self.path).text().to_owned()
    }

    /// What is left of what the server says, without everything that is always the same.
    fn left(&mut self, nsp: &str) -> Vec<String> {
        let packets = self.poll();
        let strip = |packet: &str| packet.replace(&format!("42{nsp},"), "").replace(['[', ']', '"'], "");
        packets.split('\x1e').map(strip).collect()
    }
}

fn few(policy: Policy) -> Backpressure {
    Backpressure { max_messages: 3, policy, ..Backpressure::default() }
}

/// Says what its client asks for: `say` with the numbers from 1 to 5, and an answer.
fn counts(nsp: &Namespace) {
    let all = nsp.clone();
    nsp.sockets_on("count", move |socket: Socket, ack: Ack| {
        for n in 1..=5 {
            let _ = if n % 2 == 0 { socket.emit("say", n) } else { all.emit("say", n) }?;
        }
        ack.send("counted").map(drop)
    });
}

#[test]
fn each_namespace_drops_as_it_says() {
    let _alone = support::alone();
    let usual = || Options { backpressure: few(Policy::DropOldest), ..Options::default() };
    let server = start(usual, |io| {
        counts(&io.of("/usual"));
        counts(io.of("/newest").set_backpressure(few(Policy::DropNewest)));
        counts(io.of("/latest").set_backpressure(few(Policy::KeepLatest)));
        counts(io.of("/all").set_backpressure(Backpressure::default()));
        let rooms = io.of_pattern(regex::Regex::new("^/room-").expect("a pattern"));
        rooms.set_backpressure(few(Policy::DropNewest));
        rooms.on_connection(|socket: Socket| socket.namespace().iter().for_each(counts));
    });
    for (nsp, expected) in [
        ("/usual", &["say,3", "say,4", "say,5", "answer"][..]),
        ("/newest", &["say,1", "say,2", "say,3", "answer"]),
        // One kind of message: its last one.
        ("/latest", &["say,5", "answer"]),
        ("/all", &["say,1", "say,2", "say,3", "say,4", "say,5", "answer"]),
        ("/room-1", &["say,1", "say,2", "say,3", "answer"]),
    ] {
        let mut client = Poller::join(server.addresses()[0], nsp);
        client.say(&format!("42{nsp},7[\"count\"]"));
        let left = client.left(nsp).into_iter().map(|p| p.replace(&format!("43{nsp},7counted"), "answer"));
        assert_eq!(left.collect::<Vec<_>>(), expected, "{nsp}");
    }
    support::end(server);
}

#[test]
fn the_latest_of_a_key_is_of_one_event_and_namespace() {
    let _alone = support::alone();
    let server = start(Options::default, |io| {
        let all = io.of("/prices");
        io.of("/prices").sockets_on("go", move |socket: Socket| {
            for n in 0..4 {
                let _ = all.latest(n % 2).emit("price", (n % 2, n))?;
                let _ = socket.latest(n % 2).emit("volume", (n % 2, n))?;
                let _ = socket.emit("trade", n)?;
            }
            let _ = all.latest("a").emit("price", ("a", 4))?;
            all.to(socket.id()).latest(String::from("a")).emit("price", ("a", 5)).map(drop)
        });
    });
    let mut client = Poller::join(server.addresses()[0], "/prices");
    client.say("42/prices,[\"go\"]");
    let expected = [
        "trade,0",
        "trade,1",
        "price,0,2",
        "volume,0,2",
        "trade,2",
        "price,1,3",
        "volume,1,3",
        "trade,3",
        "price,a,5",
    ];
    assert_eq!(client.left("/prices"), expected);
    support::end(server);
}

#[test]
fn the_latest_of_a_key_is_known_to_all_servers() {
    let _alone = support::alone();
    for (hub, keeps) in [(InProcess::new(), false), (InProcess::new().keeping_sessions(), true)] {
        let servers = [(), ()].map(|()| {
            let adapter = Arc::new(hub.adapter());
            let recovery = keeps.then(ConnectionStateRecovery::default);
            let options = move || Options {
                adapter: Some(adapter.clone()),
                connection_state_recovery: recovery.clone(),
                ..Options::default()
            };
            start(options, |io| drop(io.of("/prices")))
        });
        let mut pollers = [0, 1].map(|i| Poller::join(servers[i].addresses()[0], "/prices"));
        let mut witnesses = [0, 1].map(|i| Client::socketio(servers[i].addresses()[0]));
        witnesses.iter_mut().for_each(|witness| {
            witness.send_text("40/prices,");
            assert!(witness.text().starts_with("40/prices,{"));
        });
        let io = Handle::of_server(&servers[0], "/socket.io").unwrap().of("/prices");
        for n in 0..4 {
            assert!(io.latest(n % 2).emit("price", (n % 2, n)).is_ok());
        }
        assert!(io.emit("end", ()).is_ok());
        for (poller, witness) in pollers.iter_mut().zip(&mut witnesses) {
            while !witness.text().starts_with("42/prices,[\"end\"") {}
            let said = poller.poll();
            let said: Vec<&str> = said.split('\x1e').collect();
            // Where sessions are kept, each packet has an offset behind its arguments.
            let expected = [r#"["price",0,2"#, r#"["price",1,3"#, r#"["end""#];
            assert_eq!(said.len(), expected.len(), "{said:?}");
            let fits = expected.iter().all(|start| said.iter().any(|packet| packet.contains(start)));
            assert!(fits, "{said:?}, kept: {keeps}");
        }
        servers.into_iter().for_each(support::end);
    }
}

#[test]
fn who_emits_is_told_and_who_has_waited_is_drained() {
    let _alone = support::alone();
    let drained = Arc::new(AtomicUsize::new(0));
    let count = drained.clone();
    let server = start(Options::default, move |io| {
        let nsp = io.of("/told");
        nsp.set_backpressure(few(Policy::DropNewest));
        let count = count.clone();
        nsp.on_drain(move |socket: Socket| {
            assert!(socket.connected());
            count.fetch_add(1, Ordering::SeqCst);
        });
        nsp.sockets_on("go", |socket: Socket, ack: Ack| {
            let told = (0..5).map(|n| socket.emit("n", n)).collect::<Result<Vec<_>, _>>()?;
            assert_eq!(
                told,
                [Delivery::Queued; 3].into_iter().chain([Delivery::Dropped; 2]).collect::<Vec<_>>()
            );
            let volatile = socket.volatile().emit("n", 5)?;
            let waiting = socket.conn().map_or(0, |conn| conn.buffered());
            ack.send((volatile == Delivery::Dropped, waiting > 0)).map(drop)
        });
    });
    let mut client = Poller::join(server.addresses()[0], "/told");
    let before = drained.load(Ordering::SeqCst);
    client.say("42/told,7[\"go\"]");
    assert_eq!(client.left("/told").last().map(String::as_str), Some("43/told,7true,true"));
    support::eventually("a drain", || drained.load(Ordering::SeqCst) > before);
    support::end(server);
}

/// Emits as many small messages as its client asks for without returning, and says how many of them were taken.
fn floods(io: &Server) {
    io.sockets_on("flood", |socket: Socket, Data(count): Data<u32>, ack: Ack| {
        let taken = (0..count).filter(|n| socket.emit("n", n).is_ok_and(|sent| sent != Delivery::Dropped));
        ack.send(taken.count()).map(drop)
    });
}

/// Reads what a flood brings, in order, to its answer.
fn read_flood(client: &mut Client) -> u32 {
    let mut next = 0;
    loop {
        match client.text() {
            ping if ping == "2" => client.send_text("3"),
            answer if answer.starts_with("437") => return next,
            packet => {
                assert_eq!(packet, format!("42[\"n\",{next}]"));
                next += 1;
            }
        }
    }
}

/// The reference takes them all; here they weighed more than the limit before the client could read any.
#[test]
fn a_hundred_thousand_emits_of_one_handler_arrive() {
    let _alone = support::alone();
    const COUNT: u32 = 100_000;
    let server = start(Options::default, floods);
    let address = server.addresses()[0];
    let mut client = Client::socketio(address);
    for _ in 0..2 {
        client.send_text(&format!("427[\"flood\",{COUNT}]"));
        assert_eq!(read_flood(&mut client), COUNT);
    }
    let mut poller = Poller::join(address, "/");
    poller.say(&format!("427[\"flood\",{COUNT}]"));
    let mut next = 0;
    while next < COUNT {
        for packet in poller.poll().split('\x1e').filter(|packet| packet.starts_with("42")) {
            assert_eq!(packet, format!("42[\"n\",{next}]"));
            next += 1;
        }
    }
    support::end(server);
}

/// More than a turn may bring is dropped, which the handler is told; the client stays and gets the rest.
#[test]
fn a_handler_that_emits_without_end_is_told_what_is_dropped() {
    let _alone = support::alone();
    const COUNT: u32 = 600_000;
    let server = start(Options::default, floods);
    let mut client = Client::socketio(server.addresses()[0]);
    client.send_text(&format!("427[\"flood\",{COUNT}]"));
    let mut read = 0;
    while read < COUNT / 2 {
        match client.text() {
            ping if ping == "2" => client.send_text("3"),
            packet => {
                assert_eq!(packet, format!("42[\"n\",{read}]"));
                read += 1;
            }
        }
    }
    let dropped = || server.metrics().total("dropped_messages");
    assert!(dropped() > 0 && dropped() < u64::from(COUNT / 2), "{}", dropped());
    support::end(server);
}

/// A client that does not read what it asks for is not read from any more, and ends by its heartbeat.
#[test]
fn a_client_that_does_not_read_floods_is_closed() {
    let _alone = support::alone();
    let quick = || {
        let mut options = Options::default();
        options.engine.ping_interval = Duration::from_millis(500);
        options.engine.ping_timeout = Duration::from_millis(500);
        options
    };
    let server = start(quick, floods);
    let mut client = Client::with_receive_buffer(server.addresses()[0], 4096);
    client.upgrade("/socket.io/?EIO=4&transport=websocket");
    client.send_text("40");
    // Many of them in one turn share its bound.
    for _ in 0..200 {
        let flood = support::masked(OpCode::Text, b"427[\"flood\",100000]");
        if client.try_send(&flood).is_err() || server.metrics().total("connections") == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    support::eventually("the client is closed", || server.metrics().total("connections") == 0);
    support::end(server);
}
