//! A siege: thousands of connections that begin something and never finish it. Afterwards everything is as
//! before, and two honest clients have noticed nothing.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sockring::app::{self, App};
use sockring::engine;
use sockring::io::{Ack, Args, Options, Server};
use sockring::runtime::{Descriptors, Running};
use support::*;

both!(a_siege_leaves_nothing_behind);

const WORKERS: usize = 2;
/// Hostile connections of each of the three kinds.
const OF_EACH: usize = 1000;
/// The first round fills allocators, caches and the descriptor table; what counts is what the next one adds.
const ROUNDS: usize = 2;
/// How much more memory may be resident after the last round than after the first: 1.4 kilobytes for each
/// hostile connection of a round would be too much.
const SLACK_BYTES: usize = 4 << 20;
/// How long an honest client may wait for an echo while the machine is busy with other tests.
const ECHO_MAX: Duration = Duration::from_secs(3);
/// When a round must be over. The longest timeouts of the server, `ping_interval` and `ping_timeout`, make 4 s.
const ROUND_MAX: Duration = Duration::from_secs(30);

/// What the cores say about themselves, every few milliseconds.
#[derive(Default)]
struct Tables {
    connections: [AtomicUsize; WORKERS],
    /// Of all cores.
    sessions: AtomicUsize,
}

impl Tables {
    fn total(&self) -> (usize, usize) {
        let connections = self.connections.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        (connections, self.sessions.load(Ordering::Relaxed))
    }
}

fn start(descriptors: Descriptors, tables: &Arc<Tables>) -> Running {
    let tables = tables.clone();
    let http = app::Options {
        head_timeout: Duration::from_secs(1),
        body_timeout: Duration::from_secs(2),
        keep_alive: Duration::from_secs(1),
        ..app::Options::default()
    };
    let builder = builder(options(descriptors, WORKERS)).listen_tls("127.0.0.1:0", IDENTITY.tls()).http(http);
    builder.start(move |app| set_up(app, tables.clone())).unwrap()
}

fn set_up(app: &App, tables: Arc<Tables>) {
    let options = Options {
        engine: engine::Options {
            ping_interval: Duration::from_secs(1),
            ping_timeout: Duration::from_secs(3),
            upgrade_timeout: Duration::from_secs(1),
            ..Options::default().engine
        },
        connect_timeout: Duration::from_secs(1),
        ..Options::default()
    };
    let io = Server::attach_app(app, options);
    io.sockets_on("echo", |args: Args, ack: Ack| ack.send(args));
    let core = app.core().clone();
    app.core().spawn(async move {
        loop {
            let sessions = io.engine().map_or(0, |engine| engine.clients_count());
            tables.connections[core.index()].store(core.connections(), Ordering::Relaxed);
            tables.sessions.store(sessions, Ordering::Relaxed);
            monoio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

fn a_siege_leaves_nothing_behind(descriptors: Descriptors) {
    let tables = Arc::new(Tables::default());
    let server = start(descriptors, &tables);
    let (address, over_tls) = (server.addresses()[0], server.addresses()[1]);
    let honest = [Honest::start(address, false), Honest::start(address, true)];
    eventually("the honest clients are there", || tables.total().1 == 2);
    let at_peace = support::descriptors();
    let mut resident = Vec::new();
    for _ in 0..ROUNDS {
        siege(address, over_tls);
        // A session over WebSocket, and one over a poll and a connection for its POSTs.
        eventually("only the honest sessions are left", || tables.total().1 == 2);
        eventually("only the honest connections are left", || tables.total().0 <= 3);
        eventually("all descriptors are back", || support::descriptors() <= at_peace);
        resident.push(resident_bytes());
    }
    for honest in honest {
        honest.stop();
    }
    println!("resident after each round: {resident:?}");
    let grown = resident[ROUNDS - 1].saturating_sub(resident[0]);
    assert!(grown < SLACK_BYTES, "resident after each round: {resident:?}");
    end(server);
}

/// All attacks at once. Returns when the server has ended every hostile connection.
fn siege(address: SocketAddr, over_tls: SocketAddr) {
    let begun = Instant::now();
    let slow = thread::spawn(move || slowloris(address));
    let named = |name: &'static str, clients: Vec<Client>| {
        clients.into_iter().enumerate().map(move |(number, client)| (name, number, client))
    };
    let mut held: Vec<_> = named("half handshake", half_handshakes(address, over_tls)).collect();
    held.extend(named("silent session", never_again(address)));
    held.extend(named("slow request", slow.join().unwrap()));
    for (name, number, mut client) in held {
        let left = ROUND_MAX.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
        client.stream.set_nonblocking(false).unwrap();
        client.stream.set_read_timeout(Some(left)).unwrap();
        assert!(client.ends(), "{name} {number} is open after {:?}", begun.elapsed());
    }
}

const POLLING: &str = "/socket.io/?EIO=4&transport=polling";
const WEBSOCKET: &str = "/socket.io/?EIO=4&transport=websocket";

/// A session over long-polling: its connection, and the path with its id.
fn session(address: SocketAddr) -> (Client, String) {
    let mut client = Client::connect(address);
    let open = client.get(POLLING);
    (client, format!("{POLLING}&sid={}", sid(open.text())))
}

/// Heads and bodies that come a byte at a time, for as long as the server reads them.
fn slowloris(address: SocketAddr) -> Vec<Client> {
    let mut dribbling: Vec<Client> = (0..OF_EACH)
        .map(|i| {
            if i % 2 == 0 {
                let mut client = Client::connect(address);
                client.send(b"GET /socket.io/ HTTP/1.1\r\nHost: test\r\nX-Slow: ");
                return client;
            }
            let (mut client, path) = session(address);
            client.send(
                format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 99999\r\n\r\n4").as_bytes(),
            );
            client
        })
        .collect();
    for client in &dribbling {
        client.stream.set_nonblocking(true).unwrap();
    }
    let begun = Instant::now();
    let mut gone = Vec::new();
    while !dribbling.is_empty() {
        assert!(begun.elapsed() < ROUND_MAX, "{} are still read", dribbling.len());
        let (open, ended) = dribbling.into_iter().partition(|client| {
            let unread = |error: &std::io::Error| error.kind() == ErrorKind::WouldBlock;
            let open = (&client.stream).read(&mut [0; 512]).is_err_and(|error| unread(&error));
            open && (&client.stream).write(b"x").is_ok()
        });
        dribbling = open;
        gone.extend::<Vec<Client>>(ended);
        thread::sleep(Duration::from_millis(50));
    }
    gone
}

/// How a client of TLS begins, cut short: a record of 512 bytes that never come.
const TLS_HELLO: [u8; 11] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

/// Connections that stop in the middle of becoming something.
fn half_handshakes(address: SocketAddr, over_tls: SocketAddr) -> Vec<Client> {
    let half = |i: usize| {
        if i % 7 == 6 {
            let mut client = Client::connect(over_tls);
            client.send(&TLS_HELLO[..i % TLS_HELLO.len()]);
            return client;
        }
        let mut client = Client::connect(address);
        let request = upgrade_request(WEBSOCKET);
        match i % 7 {
            0 => {}
            1 => client.send(&request.as_bytes()[..request.len() / 2]),
            2 => client.send(&request.as_bytes()[..request.len() - 2]),
            3 => client.upgrade(WEBSOCKET),
            4 => {
                let (_, path) = session(address);
                client.upgrade(&path.replace("=polling", "=websocket"));
            }
            _ => {
                let (_, path) = session(address);
                client.upgrade(&path.replace("=polling", "=websocket"));
                client.send_text("2probe");
                assert_eq!(client.text(), "3probe");
            }
        }
        client
    };
    (0..OF_EACH).map(half).collect()
}

/// Clients that join and are never heard of again, over polling (with their connection open or closed, with
/// something to read) and over WebSocket.
fn never_again(address: SocketAddr) -> Vec<Client> {
    let join = |i: usize| {
        if i.is_multiple_of(4) {
            let mut client = Client::websocket(address, WEBSOCKET);
            client.send_text("40");
            return Some(client);
        }
        let (mut client, path) = session(address);
        assert_eq!(client.post(&path, b"40").text(), "ok");
        if i % 4 == 1 {
            assert_eq!(client.post(&path, b"420[\"echo\",\"who reads this?\"]").text(), "ok");
        }
        (i % 4 != 2).then_some(client)
    };
    (0..OF_EACH).filter_map(join).collect()
}

/// A client that does nothing wrong: it asks for echoes and answers pings.
struct Honest {
    stopping: Arc<AtomicBool>,
    running: JoinHandle<(usize, Duration)>,
}

impl Honest {
    fn start(address: SocketAddr, polling: bool) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let running = thread::spawn(move || {
            let mut client = if polling { Talker::poll(address) } else { Talker::connect(address) };
            client.say("40");
            while !client.hear().starts_with("40{") {}
            let (mut echoes, mut slowest) = (0, Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                client.say(&format!("42{echoes}[\"echo\",{echoes}]"));
                assert_eq!(client.hear(), format!("43{echoes}[{echoes}]"));
                slowest = slowest.max(asked.elapsed());
                echoes += 1;
                thread::sleep(Duration::from_millis(20));
            }
            (echoes, slowest)
        });
        Self { stopping, running }
    }

    fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        let (echoes, slowest) = self.running.join().expect("an honest client is served without a break");
        println!("{echoes} echoes, the slowest took {slowest:?}");
        assert!(echoes > 10 && slowest < ECHO_MAX, "{echoes} echoes, the slowest took {slowest:?}");
    }
}

/// One session, packet by packet, whatever its transport is.
struct Talker {
    client: Client,
    /// The path of a polling session, and packets that were read ahead.
    polling: Option<(String, Vec<String>)>,
}

impl Talker {
    fn connect(address: SocketAddr) -> Self {
        let mut client = Client::websocket(address, WEBSOCKET);
        assert!(client.text().starts_with("0{"));
        Self { client, polling: None }
    }

    fn poll(address: SocketAddr) -> Self {
        let (client, path) = session(address);
        Self { client, polling: Some((path, Vec::new())) }
    }

    fn say(&mut self, packet: &str) {
        match &self.polling {
            Some((path, _)) => assert_eq!(self.client.post(path, packet.as_bytes()).text(), "ok"),
            None => self.client.send_text(packet),
        }
    }

    /// The next packet that is no ping.
    fn hear(&mut self) -> String {
        loop {
            let packet = match &mut self.polling {
                None => self.client.text(),
                Some((path, ahead)) => {
                    if ahead.is_empty() {
                        let answer = self.client.get(path);
                        assert_eq!(answer.status, 200, "{}", answer.head);
                        ahead.extend(answer.text().split('\x1e').map(str::to_owned));
                    }
                    ahead.remove(0)
                }
            };
            if packet != "2" {
                return packet;
            }
            self.say("3");
        }
    }
}
