//! Bytes and connections under stress: what the socket ring promises, tried through the public API on both
//! kinds of descriptors.

pub(crate) mod support;

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sockring::app::{App, Behavior, Message};
use sockring::engine;
use sockring::fanout::Frame;
use sockring::io as sio;
use sockring::protocol::ws::frame::OpCode;
use sockring::runtime::{self, Descriptors};
use support::*;

crate::both!(
    slow_readers_disturb_nobody,
    large_messages_echo_while_others_ping,
    sessions_reached_over_other_workers,
    answers_owed_before_a_hand_over_arrive,
    upgrades_under_traffic,
    an_upgrade_in_one_segment,
    churn_leaves_nothing_behind,
    surplus_connections_are_told_so,
    each_listener_is_served,
    shutdown_ends_everything,
    requests_behind_a_hanging_poll,
    far_ahead_is_paused_then_served,
    pipelined_answers_wait_for_a_slow_reader,
    a_slow_reader_of_a_last_answer_gets_all_of_it,
    panics_end_their_socket_only,
    timers_run_under_load,
);

fn echo() -> Behavior<()> {
    Behavior::<()>::default().max_message_bytes(10_000_000).message(|ws, message| {
        let _ = match message {
            Message::Text(text) => ws.send_text(text),
            Message::Binary(data) => ws.send_binary(data),
        };
    })
}

// --- (a) ------------------------------------------------------------------------------------------------------

const MESSAGES: usize = 21_000;
const MESSAGE_BYTES: usize = 1024;

fn sequenced(number: usize) -> Vec<u8> {
    let mut payload = vec![number as u8; MESSAGE_BYTES];
    payload[..8].copy_from_slice(&(number as u64).to_be_bytes());
    payload
}

/// Reads sequenced frames until all have come or the stream ends; how many came. Panics unless they are
/// those from 0 on, without a gap.
fn read_sequence(mut client: Client, read: &AtomicUsize, mut pause: impl FnMut(usize)) -> usize {
    for expected in 0..MESSAGES {
        let Ok(frame) = client.frame() else { return expected };
        assert_eq!(frame.opcode, 2);
        assert_eq!(frame.payload, sequenced(expected), "message {expected}");
        read.store(expected + 1, Ordering::Relaxed);
        pause(expected);
    }
    MESSAGES
}

fn slow_readers_disturb_nobody(descriptors: Descriptors) {
    let server = builder(options(descriptors, 2))
        .start(|app| {
            let reader = Behavior::<()>::default().open(|ws| {
                ws.subscribe("t");
            });
            let publisher = Behavior::<()>::default().message(|ws, message| {
                let Message::Binary(data) = message else { return };
                let _ = ws.publish("t", &Frame::binary(data));
            });
            app.ws("/read", reader).ws("/publish", publisher);
        })
        .unwrap();
    let address = server.addresses()[0];
    let before = resident_bytes();
    let healthy: Vec<Arc<AtomicUsize>> = (0..6).map(|_| Arc::default()).collect();
    let mut readers = Vec::new();
    for read in &healthy {
        let (client, read) = (Client::websocket(address, "/read"), read.clone());
        readers.push(thread::spawn(move || read_sequence(client, &read, |_| ())));
    }
    let (done, mut slow) = (Arc::new(AtomicBool::new(false)), Vec::new());
    for kind in 0..4 {
        let mut client = Client::with_receive_buffer(address, 4096);
        client.upgrade("/read");
        let done = done.clone();
        slow.push(thread::spawn(move || {
            read_sequence(client, &AtomicUsize::new(0), |number| match kind {
                // Stalls at once, and reads what is left when all is over.
                0 if number == 0 => eventually("the end", || done.load(Ordering::Relaxed)),
                1 if number == 3000 => eventually("the end", || done.load(Ordering::Relaxed)),
                // Stops now and then, for less than it takes to reach its limit.
                2 if number % 1500 == 0 => thread::sleep(Duration::from_millis(4)),
                3 => thread::sleep(Duration::from_micros(900)),
                _ => {}
            })
        }));
    }
    let mut publisher = Client::websocket(address, "/publish");
    let mut most = 0;
    for number in 0..MESSAGES {
        publisher.send(&masked(OpCode::Binary, &sequenced(number)));
        if number % 128 == 0 {
            // The healthy ones set the pace, so that they are healthy on a busy machine as well.
            let behind = || healthy.iter().any(|read| read.load(Ordering::Relaxed) + 1000 < number);
            eventually("a healthy reader goes on", || !behind());
            most = most.max(resident_bytes());
        }
    }
    for reader in readers {
        assert_eq!(reader.join().unwrap(), MESSAGES);
    }
    done.store(true, Ordering::Relaxed);
    let slow: Vec<usize> = slow.into_iter().map(|reader| reader.join().unwrap()).collect();
    assert!(slow[0] < MESSAGES && slow[1] < MESSAGES, "the limit of 4 MB closes stalled readers: {slow:?}");
    let grown = most.saturating_sub(before);
    assert!(grown < 80 << 20, "memory grew by {grown} bytes");
    end(server);
}

// --- (b) ------------------------------------------------------------------------------------------------------

fn large_messages_echo_while_others_ping(descriptors: Descriptors) {
    let server = builder(runtime::Options { backpressure_bytes: 16 << 20, ..options(descriptors, 2) })
        .start(|app| {
            app.ws("/echo", echo());
        })
        .unwrap();
    let address = server.addresses()[0];
    let large: Vec<_> = [1, 3, 8]
        .into_iter()
        .map(|megabytes| {
            thread::spawn(move || {
                let mut client = Client::websocket(address, "/echo");
                for round in 0..3u8 {
                    let payload: Vec<u8> =
                        (0..megabytes * 1_000_000usize).map(|i| (i / 7) as u8 ^ round).collect();
                    client.send(&masked(OpCode::Binary, &payload));
                    let frame = client.frame().unwrap();
                    assert!(frame.opcode == 2 && frame.payload == payload);
                }
            })
        })
        .collect();
    let mut pinger = Client::websocket(address, "/echo");
    let (mut worst, mut pings) = (Duration::ZERO, 0);
    while !large.iter().all(thread::JoinHandle::is_finished) {
        let start = Instant::now();
        pinger.send_text("ping");
        assert_eq!(pinger.text(), "ping");
        worst = worst.max(start.elapsed());
        pings += 1;
        thread::sleep(Duration::from_millis(1));
    }
    for thread in large {
        thread.join().unwrap();
    }
    assert!(pings > 10 && worst < Duration::from_millis(700), "{pings} pings, the slowest took {worst:?}");
    end(server);
}

// --- (c) ------------------------------------------------------------------------------------------------------

fn engine_echo(app: &App) {
    let echo = engine::Handlers::default().message(|socket, message| {
        let _ = match message {
            engine::Message::Text(text) => socket.send_text(text),
            engine::Message::Binary(data) => socket.send_binary(data),
        };
    });
    engine::Server::attach(app, engine::Options::default(), echo);
}

fn open_session(address: SocketAddr, path: &str) -> String {
    let open = Client::connect(address).get(&format!("{path}?EIO=4&transport=polling"));
    assert_eq!(open.status, 200, "{}", open.head);
    format!("{path}?EIO=4&transport=polling&sid={}", sid(open.text()))
}

fn sessions_reached_over_other_workers(descriptors: Descriptors) {
    let server = builder(options(descriptors, 3)).start(engine_echo).unwrap();
    let address = server.addresses()[0];
    let path = open_session(address, "/engine.io/");
    // Two of three connections land on another worker: some 180 move.
    for round in 0..270 {
        let size = match round {
            _ if round % 54 == 53 => 900_000,
            _ if round % 9 == 8 => 40_000,
            _ => 10 + round,
        };
        let message = format!("{round}:{}", "x".repeat(size));
        let request = post(&path, format!("4{message}").as_bytes());
        let mut client = Client::connect(address);
        for (i, piece) in request.chunks(request.len() / 5 + 1).enumerate() {
            client.send(piece);
            if round % 6 == 5 || i == 0 && round % 3 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(client.answer().unwrap().text(), "ok");
        // The connection lives on with its session.
        for part in 0..3 {
            let poll = client.get(&path);
            assert_eq!(poll.status, 200);
            let expected = if part == 0 { message.clone() } else { format!("{round}.{part}") };
            assert!(poll.text() == format!("4{expected}"), "round {round} part {part}");
            if part < 2 {
                let again = format!("4{round}.{}", part + 1);
                assert_eq!(client.post(&path, again.as_bytes()).text(), "ok");
            }
        }
        if round % 5 == 0 {
            client.reset();
        }
    }
    end(server);
}

/// Answers that were owed when a pipelined request made the connection move must not get lost.
fn answers_owed_before_a_hand_over_arrive(descriptors: Descriptors) {
    let server = builder(options(descriptors, 3))
        .start(|app| {
            app.get("/hello", |_, response| response.end("hello"));
            app.get("/large", |_, response| response.end(vec![b'l'; 2_000_000]));
            engine_echo(app);
        })
        .unwrap();
    let address = server.addresses()[0];
    for round in 0..30 {
        let path = open_session(address, "/engine.io/");
        let mut client = Client::with_receive_buffer(address, 16_384);
        let (first, length) = if round % 3 == 2 { ("/large", 2_000_000) } else { ("/hello", 5) };
        let message = post(&path, format!("4{round}").as_bytes());
        client.send(&[get(first).as_bytes(), &message, get(&path).as_bytes()].concat());
        if round % 6 == 5 {
            thread::sleep(Duration::from_millis(60));
        }
        assert_eq!(client.answer().expect("the first answer").body.len(), length, "round {round}");
        assert_eq!(client.answer().expect("the second answer").text(), "ok", "round {round}");
        assert_eq!(client.answer().expect("the third answer").text(), format!("4{round}"));
    }
    end(server);
}

// --- (d) ------------------------------------------------------------------------------------------------------

/// Numbers out of `42["n",17]` packets must follow each other.
struct Follow {
    next: Option<u64>,
    seen: usize,
}

impl Follow {
    fn packet(&mut self, packet: &str) {
        let Some(number) = packet.strip_prefix("42[\"n\",").and_then(|rest| rest.strip_suffix(']')) else {
            assert!(
                matches!(packet.as_bytes()[0], b'0' | b'2' | b'6') || packet.starts_with("40"),
                "{packet}"
            );
            return;
        };
        let number = number.parse().unwrap();
        assert_eq!(number, self.next.unwrap_or(number), "lost, repeated or out of order");
        self.next = Some(number + 1);
        self.seen += 1;
    }

    fn payload(&mut self, payload: &str) {
        payload.split('\x1e').for_each(|packet| self.packet(packet));
    }
}

fn upgrades_under_traffic(descriptors: Descriptors) {
    let server = builder(options(descriptors, 3))
        .start(|app| {
            sio::Server::attach_app(app, sio::Options::default());
        })
        .unwrap();
    let address = server.addresses()[0];
    let (handle, done) =
        (sio::Handle::of_server(&server, "/socket.io").unwrap(), Arc::new(AtomicBool::new(false)));
    let stop = done.clone();
    let emitter = thread::spawn(move || {
        for number in 0u64.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let _ = handle.emit("n", number).unwrap();
            thread::sleep(Duration::from_micros(150));
        }
    });
    let clients: Vec<_> = (0..6)
        .map(|i| {
            thread::spawn(move || {
                for round in 0..8 {
                    upgrade_once(address, i * 8 + round);
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    done.store(true, Ordering::Relaxed);
    emitter.join().unwrap();
    end(server);
}

fn upgrade_once(address: SocketAddr, variant: usize) {
    let path = open_session(address, "/socket.io/");
    let mut follow = Follow { next: None, seen: 0 };
    let mut poller = Client::connect(address);
    assert_eq!(poller.post(&path, b"40").text(), "ok");
    for _ in 0..variant % 5 {
        follow.payload(poller.get(&path).text());
    }
    let hanging = variant.is_multiple_of(2);
    if hanging {
        poller.send(get(&path).as_bytes());
    }
    let mut ws = Client::websocket(address, &path.replace("transport=polling", "transport=websocket"));
    ws.send_text("2probe");
    assert_eq!(ws.text(), "3probe");
    if hanging {
        follow.payload(poller.answer().unwrap().text());
    }
    if variant.is_multiple_of(3) {
        thread::sleep(Duration::from_millis(20));
    }
    ws.send_text("5");
    let before = follow.seen;
    while follow.seen < before + 100 {
        let packet = ws.text();
        follow.packet(&packet);
    }
    if variant.is_multiple_of(4) {
        ws.reset()
    }
}

/// All of an upgrade in one segment, with a ping: what the WebSocket was owed by itself must leave before
/// what the session is owed.
fn an_upgrade_in_one_segment(descriptors: Descriptors) {
    let server = builder(options(descriptors, 2)).start(engine_echo).unwrap();
    let address = server.addresses()[0];
    for _ in 0..20 {
        let path = open_session(address, "/engine.io/");
        let mut poller = Client::connect(address);
        assert_eq!(poller.post(&path, b"4first").text(), "ok");
        let mut ws = Client::connect(address);
        let upgrade = upgrade_request(&path.replace("transport=polling", "transport=websocket"));
        let frames = [
            masked(OpCode::Text, b"2probe"),
            masked(OpCode::Ping, b"?"),
            masked(OpCode::Text, b"5"),
            masked(OpCode::Text, b"4second"),
        ];
        ws.send(&[upgrade.into_bytes(), frames.concat()].concat());
        assert_eq!(ws.answer().unwrap().status, 101);
        assert_eq!(ws.text(), "3probe");
        assert_eq!(ws.frame().unwrap(), Incoming { opcode: 10, payload: b"?".to_vec() });
        assert_eq!(ws.text(), "4first");
        assert_eq!(ws.text(), "4second");
    }
    end(server);
}

// --- (e) ------------------------------------------------------------------------------------------------------

/// Connections of each worker, as it says itself now and then.
fn watch_connections(app: &App, counts: &Arc<[AtomicUsize; 3]>) {
    let (core, counts) = (app.core().clone(), counts.clone());
    app.core().spawn(async move {
        loop {
            counts[core.index()].store(core.connections(), Ordering::Relaxed);
            monoio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

fn churn_leaves_nothing_behind(descriptors: Descriptors) {
    let counts: Arc<[AtomicUsize; 3]> = Arc::default();
    let watched = counts.clone();
    // Where data and the end of a connection come together, kernels may tell of the data only (see
    // `send_failed` in src/runtime/turn.rs): then these timeouts end it.
    let timeout = Duration::from_secs(1);
    let limits = sockring::app::Options {
        head_timeout: timeout,
        body_timeout: timeout,
        keep_alive: timeout,
        ..sockring::app::Options::default()
    };
    let server = builder(options(descriptors, 2))
        .http(limits)
        .start(move |app| {
            watch_connections(app, &watched);
            app.get("/hello", |_, response| response.end("hello"));
            app.get("/large", |_, response| response.end(vec![0; 1_000_000]));
            app.get("/late", |_, response| async move {
                monoio::time::sleep(Duration::from_millis(30)).await;
                response.end("late");
            });
            app.ws("/echo", echo().idle_timeout(timeout));
            engine_echo(app);
        })
        .unwrap();
    let address = server.addresses()[0];
    Client::connect(address).get("/hello");
    let connections = || counts.iter().map(|count| count.load(Ordering::Relaxed)).sum::<usize>();
    eventually("no connection is left", || connections() == 0);
    thread::sleep(Duration::from_millis(50));
    let before = support::descriptors();
    let threads: Vec<_> = (0..2)
        .map(|i| thread::spawn(move || (0..1500).for_each(|round| come_and_go(address, i + round * 2))))
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(Client::connect(address).get("/hello").text(), "hello");
    thread::sleep(Duration::from_millis(4500));
    if connections() > 0 {
        let o = std::process::Command::new("ss").arg("-tnpoe").output().unwrap();
        let pid = format!("pid={}", std::process::id());
        for l in String::from_utf8_lossy(&o.stdout).lines() {
            if l.contains(&pid) || l.contains(&address.port().to_string()) {
                eprintln!("SS {l}");
            }
        }
    }
    eventually("all connections are gone", || connections() == 0);
    eventually("all descriptors are back", || support::descriptors() <= before);
    end(server);
}

fn come_and_go(address: SocketAddr, round: usize) {
    let mut client = Client::connect(address);
    match round / 2 % 9 {
        0 => {}
        1 => client.send(b"GET /hello HT"),
        2 => client.send(get("/hello").as_bytes()),
        3 => client.send(b"POST /hello HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\nhalf"),
        4 => client.send(&[upgrade_request("/echo").as_bytes(), &[0x81, 0xFE, 0x10]].concat()),
        5 => {
            client.upgrade("/echo");
            client.send(&masked(OpCode::Binary, &[7; 3000])[..1000]);
        }
        6 => client.send(get("/large").as_bytes()),
        7 => client.send(get("/late").as_bytes()),
        _ => {
            client.upgrade("/echo");
            client.send(&masked(OpCode::Close, &[3, 232]));
        }
    }
    match round % 3 {
        0 => client.reset(),
        1 => {
            // A half-closed client that goes away a moment later.
            let _ = client.stream.shutdown(Shutdown::Write);
        }
        _ => {}
    }
}

// --- (f) ------------------------------------------------------------------------------------------------------

fn surplus_connections_are_told_so(descriptors: Descriptors) {
    if support::OVER_TLS {
        // Its clients of the surplus are plain.
        return;
    }
    const LIMIT: usize = 8;
    let server = builder(runtime::Options { connections: LIMIT, ..options(descriptors, 1) })
        .start(|app| {
            app.ws("/echo", echo());
        })
        .unwrap();
    let address = server.addresses()[0];
    let mut clients: Vec<Client> = (0..LIMIT).map(|_| Client::websocket(address, "/echo")).collect();
    for _ in 0..3 {
        let mut surplus: Vec<Client> = (0..5).map(|_| Client::connect(address)).collect();
        for client in &mut surplus {
            client.send(upgrade_request("/echo").as_bytes());
            let answer = client.answer().unwrap();
            assert_eq!((answer.status, answer.header("Retry-After")), (503, Some("5")));
            assert!(client.ends());
        }
        for client in &mut clients {
            client.send_text("still here");
            assert_eq!(client.text(), "still here");
        }
        for i in 0..surplus.len() {
            let leaving = clients.remove(0);
            if i % 2 == 0 {
                leaving.reset()
            } else {
                drop(leaving)
            }
            // The place is free as soon as the server has seen it.
            support::eventually("a place", || server.metrics().total("connections") < LIMIT as u64);
            clients.push(Client::websocket(address, "/echo"));
        }
    }
    end(server);
}

/// Listeners that nobody comes to do not keep the last slots from one that is used.
fn each_listener_is_served(descriptors: Descriptors) {
    if support::OVER_TLS {
        // Its other listeners are plain.
        return;
    }
    const LIMIT: usize = 2;
    let server = builder(runtime::Options { connections: LIMIT, ..options(descriptors, 1) })
        .listen("127.0.0.1:0")
        .listen("127.0.0.1:0")
        .listen("127.0.0.1:0")
        .start(|app| {
            app.ws("/echo", echo());
        })
        .unwrap();
    assert_eq!(server.addresses().len(), 4);
    for _ in 0..3 {
        for address in server.addresses() {
            let mut client = Client::websocket(*address, "/echo");
            client.send_text("here");
            assert_eq!(client.text(), "here");
        }
    }
    let open: Vec<Client> =
        server.addresses()[2..].iter().map(|address| Client::websocket(*address, "/echo")).collect();
    let mut surplus: Vec<Client> = (0..8).map(|i| Client::connect(server.addresses()[i % 4])).collect();
    for client in &mut surplus {
        client.send(upgrade_request("/echo").as_bytes());
        assert_eq!(client.answer().unwrap().status, 503);
    }
    drop((open, surplus));
    end(server);
}

// --- (g) ------------------------------------------------------------------------------------------------------

fn shutdown_ends_everything(descriptors: Descriptors) {
    let flooding = |app: &App| {
        app.ws(
            "/flood",
            Behavior::<()>::default().open(|ws| {
                for _ in 0..30 {
                    let _ = ws.send_binary(&[1; 100_000]);
                }
            }),
        );
        app.ws("/echo", echo());
        app.get("/never", |_, response| async move {
            monoio::time::sleep(Duration::from_secs(60)).await;
            response.end("never");
        });
        engine_echo(app);
    };
    // Silent connections are to be with the server, not with the kernel.
    let options = |descriptors| runtime::Options { defer_accept: Duration::ZERO, ..options(descriptors, 3) };
    let server = builder(options(descriptors)).start(flooding).unwrap();
    let address = server.addresses()[0];
    let path = open_session(address, "/engine.io/");
    let mut clients: Vec<Client> = Vec::new();
    for round in 0..6 {
        clients.push(Client::connect(address));
        clients.push(Client::websocket(address, "/echo"));
        let mut stalled = Client::with_receive_buffer(address, 4096);
        stalled.upgrade("/flood");
        clients.push(stalled);
        for request in ["GET /nev", "GET /never HTTP/1.1\r\nHost: a\r\n\r\n", &get(&path)] {
            // One poll: a second one would end the session.
            if round == 0 || !request.contains("sid") {
                let mut client = Client::connect(address);
                client.send(request.as_bytes());
                clients.push(client);
            }
        }
        let half_open = Client::websocket(address, "/echo");
        half_open.stream.shutdown(Shutdown::Write).unwrap();
        clients.push(half_open);
    }
    thread::sleep(Duration::from_millis(30));
    end(server);
    for (i, client) in clients.iter_mut().enumerate() {
        assert!(client.ends(), "client {i} still has a connection");
    }
    let again = builder_on(options(descriptors), address).start(flooding).unwrap();
    let mut client = Client::websocket(address, "/echo");
    client.send_text("back");
    assert_eq!(client.text(), "back");
    end(again);
}

// --- (h) ------------------------------------------------------------------------------------------------------

fn requests_behind_a_hanging_poll(descriptors: Descriptors) {
    let server = builder(options(descriptors, 3)).start(engine_echo).unwrap();
    let address = server.addresses()[0];
    for round in 0..10 {
        let path = open_session(address, "/engine.io/");
        let mut client = Client::connect(address);
        let polls = get(&path).repeat(3);
        client.send([polls.as_bytes(), b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n"].concat().as_slice());
        thread::sleep(Duration::from_millis(round % 3));
        for message in ["one", "two", "three"] {
            let posted = Client::connect(address).post(&path, format!("4{message}").as_bytes());
            assert_eq!(posted.text(), "ok");
            assert_eq!(client.answer().unwrap().text(), format!("4{message}"));
        }
        assert_eq!(client.answer().unwrap().status, 404);
    }
    end(server);
}

fn far_ahead_is_paused_then_served(descriptors: Descriptors) {
    if support::OVER_TLS {
        // It writes with one half of the connection and reads with the other.
        return;
    }
    const REQUESTS: usize = 40_000;
    let server = builder(options(descriptors, 1))
        .start(|app| {
            app.get("/hello", |_, response| response.end("hello"));
            app.get("/slow", |_, response| async move {
                monoio::time::sleep(Duration::from_millis(300)).await;
                response.end("slow");
            });
        })
        .unwrap();
    let address = server.addresses()[0];
    let mut client = Client::connect(address);
    client.send(get("/slow").as_bytes());
    let (mut writer, sent) = (client.stream.try_clone().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counter = sent.clone();
    let ahead = thread::spawn(move || {
        let some = get("/hello").repeat(100);
        for _ in 0..REQUESTS / 100 {
            writer.write_all(some.as_bytes()).unwrap();
            counter.fetch_add(100, Ordering::Relaxed);
        }
    });
    assert_eq!(client.answer().unwrap().text(), "slow");
    let mut other = Client::connect(address);
    for number in 0..REQUESTS {
        assert_eq!(client.answer().unwrap().text(), "hello", "request {number}");
        if number % 4000 == 0 {
            let start = Instant::now();
            assert_eq!(other.get("/hello").text(), "hello");
            assert!(
                start.elapsed() < Duration::from_millis(500),
                "the core was busy for {:?}",
                start.elapsed()
            );
        }
    }
    ahead.join().unwrap();
    end(server);
}

/// A client may send many requests before it reads the first answer: it is slow, not hostile.
fn pipelined_answers_wait_for_a_slow_reader(descriptors: Descriptors) {
    const REQUESTS: usize = 24;
    let server = builder(options(descriptors, 1))
        .start(|app| {
            app.get("/large", |_, response| response.end(vec![b'l'; 1_000_000]));
        })
        .unwrap();
    let mut client = Client::with_receive_buffer(server.addresses()[0], 16_384);
    client.send(get("/large").repeat(REQUESTS).as_bytes());
    thread::sleep(Duration::from_millis(100));
    for number in 0..REQUESTS {
        let answer = client.answer().unwrap_or_else(|error| panic!("answer {number}: {error}"));
        assert_eq!(answer.body.len(), 1_000_000);
    }
    end(server);
}

/// The time to leave is counted from the last progress, not from the first byte.
fn a_slow_reader_of_a_last_answer_gets_all_of_it(descriptors: Descriptors) {
    const BYTES: usize = 3_000_000;
    let server =
        builder(runtime::Options { shutdown_timeout: Duration::from_millis(400), ..options(descriptors, 1) })
            .start(|app| {
                app.get("/large", |_, response| response.end(vec![b'l'; BYTES]));
            })
            .unwrap();
    let mut client = Client::with_receive_buffer(server.addresses()[0], 65_536);
    client.send(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let (mut read, mut chunk) = (0, vec![0; 60_000]);
    loop {
        match client.stream.read(&mut chunk).unwrap() {
            0 => break,
            count => read += count,
        }
        thread::sleep(Duration::from_millis(20));
    }
    assert!(read > BYTES, "only {read} bytes came");
    end(server);
}

// --- (i) ------------------------------------------------------------------------------------------------------

fn on_purpose() {
    panic!("on purpose");
}

fn panics_end_their_socket_only(descriptors: Descriptors) {
    let server = builder(options(descriptors, 2))
        .start(|app| {
            app.get("/panic", |_, _response| on_purpose());
            app.get("/panic-later", |_, response| async move {
                monoio::time::sleep(Duration::from_millis(1)).await;
                let _response = response;
                on_purpose();
            });
            app.get("/hello", |_, response| response.end("hello"));
            app.ws("/open", Behavior::<()>::default().open(|_| on_purpose()));
            app.ws("/message", Behavior::<()>::default().message(|_, _| on_purpose()));
            app.ws("/close", Behavior::<()>::default().close(|_, _| on_purpose()));
            app.ws("/echo", echo());
            let io = sio::Server::attach_app(app, sio::Options::default());
            io.on_connection(|socket: sio::Socket| {
                socket.join("room");
                socket.on("panic", |_: sio::Socket| on_purpose());
                socket.on("disconnecting", |_: sio::Socket| on_purpose());
                socket.on("disconnect", |_: sio::Socket| on_purpose());
            });
            let (io, calm) = (io.clone(), io.of("/calm"));
            calm.on_connection(move |socket: sio::Socket| {
                let io = io.clone();
                socket.on("tell", move |_: sio::Socket| {
                    let _ = io.to("room").emit("told", ());
                });
            });
        })
        .unwrap();
    let address = server.addresses()[0];
    std::panic::set_hook(Box::new(|info| {
        if !info.to_string().contains("on purpose") {
            eprintln!("{info}");
        }
    }));
    let mut calm = Client::websocket(address, "/socket.io/?EIO=4&transport=websocket");
    assert!(calm.text().starts_with('0'));
    calm.send_text("40/calm,");
    assert!(calm.text().starts_with("40/calm,"));
    for _ in 0..10 {
        let mut client = Client::connect(address);
        client.send(get("/panic").as_bytes());
        assert!(client.ends());
        let mut client = Client::connect(address);
        client.send([get("/panic-later"), get("/hello")].concat().as_bytes());
        assert_eq!(client.answer().unwrap().status, 500);
        assert_eq!(client.answer().unwrap().text(), "hello");
        let mut client = Client::connect(address);
        client.send(upgrade_request("/open").as_bytes());
        assert!(client.ends());
        let mut client = Client::websocket(address, "/message");
        client.send_text("x");
        assert!(client.ends());
        drop(Client::websocket(address, "/close"));
        let mut socket = Client::websocket(address, "/socket.io/?EIO=4&transport=websocket");
        socket.send_text("40");
        assert!(socket.text().starts_with('0') && socket.text().starts_with("40"));
        socket.send_text("42[\"panic\"]");
        assert!(socket.ends());
    }
    // Whoever panicked while it left is in no room any more: those who came after must not hear of it.
    let mut echoes: Vec<Client> = (0..20).map(|_| Client::websocket(address, "/echo")).collect();
    calm.send_text("42/calm,[\"tell\"]");
    thread::sleep(Duration::from_millis(50));
    for client in &mut echoes {
        client.send_text("mine");
        assert_eq!(client.text(), "mine");
    }
    let _ = std::panic::take_hook();
    end(server);
}

// --- Starvation -----------------------------------------------------------------------------------------------

/// Clients that keep a core busy must not stop its timers (R6).
fn timers_run_under_load(descriptors: Descriptors) {
    let ticks = Arc::new(AtomicUsize::new(0));
    let counter = ticks.clone();
    let server = builder(options(descriptors, 1))
        .start(move |app| {
            let counter = counter.clone();
            app.core().spawn(async move {
                loop {
                    monoio::time::sleep(Duration::from_millis(5)).await;
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
            app.ws("/echo", echo());
            let later = Behavior::<Rc<Cell<u32>>>::default().message(|ws, message| {
                let Message::Text(text) = message else { return };
                let (text, core) = (text.to_owned(), runtime::current().unwrap());
                core.spawn(async move {
                    let _ = ws.send_text(&text);
                });
            });
            app.ws("/later", later);
        })
        .unwrap();
    let address = server.addresses()[0];
    for path in ["/echo", "/later"] {
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let (mut client, stop) = (Client::websocket(address, path), stop.clone());
                thread::spawn(move || {
                    let some = masked(OpCode::Text, &[b'x'; 64]).repeat(100);
                    client.send(&some);
                    while !stop.load(Ordering::Relaxed) {
                        client.send(&some);
                        (0..100).for_each(|_| drop(client.frame().unwrap()));
                    }
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(200));
        let before = ticks.load(Ordering::Relaxed);
        thread::sleep(Duration::from_millis(1000));
        let fired = ticks.load(Ordering::Relaxed) - before;
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().unwrap();
        }
        eprintln!("{path}: {fired} of 200 timers fired");
        assert!(fired > 60, "{path}: {fired} of 200 timers fired");
    }
    end(server);
}
