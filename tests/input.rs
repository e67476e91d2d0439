//! What a turn reads, and how much it works: only the turn reads input, within a budget, and not from a
//! client that does not take what it is owed.

mod support;

use std::cell::RefCell;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use sockring::app::{self, App, Behavior, PerMessageDeflate, Response, ResponseStream};
use sockring::engine::{Handlers, Message, Options, Server, Socket};
use sockring::protocol::ws::deflate::{Deflater, Settings};
use sockring::protocol::ws::frame::OpCode;
use sockring::runtime::{Descriptors, Running};
use support::*;

const POLL: &str = "/engine.io/?EIO=4&transport=polling";

/// Links of a chain: before, the stack was used up after some 150 of them.
const LINKS: usize = 5000;

fn start(workers: usize, setup: impl Fn(&App) + Send + Sync + 'static) -> (Running, SocketAddr) {
    let server = builder(options(Descriptors::Auto, workers)).start(setup).unwrap();
    let address = server.addresses()[0];
    (server, address)
}

/// Opens a session over a connection; the path of its requests.
fn handshake(client: &mut Client) -> String {
    format!("{POLL}&sid={}", sid(client.get(POLL).text()))
}

fn clients(address: SocketAddr, count: usize) -> Vec<Client> {
    (0..count).map(|_| Client::connect(address)).collect()
}

/// A number that many connections agree on, as far as the server has come with all of them.
fn wait_for(server: &Running, name: &str, at_least: u64) {
    eventually(name, || server.metrics().total(name) >= at_least);
}

// --- A verb never reads input ---------------------------------------------------------------------------------

/// Each connection has a waiting poll and behind it one that overlaps with the waiting poll of the next.
#[test]
fn a_chain_of_overlapping_polls_needs_no_stack() {
    let _alone = alone();
    let (server, address) = start(1, |app| {
        Server::attach(app, Options::default(), Handlers::default());
    });
    let mut clients = clients(address, LINKS);
    let paths: Vec<String> = clients.iter_mut().map(handshake).collect();
    for (k, client) in clients.iter_mut().enumerate() {
        let next = paths.get(k + 1).map(|path| get(path)).unwrap_or_default();
        client.send(format!("{}{next}", get(&paths[k])).as_bytes());
    }
    wait_for(&server, "http_requests", 2 * LINKS as u64);
    assert_eq!(Client::connect(address).get(&paths[0]).status, 400);
    for (k, client) in clients.iter_mut().enumerate() {
        let told = client.answer().unwrap();
        assert_eq!((told.status, told.text()), (200, "1"), "session {k} was told that it has ended");
        if k + 1 < LINKS {
            assert_eq!(client.answer().unwrap().status, 400, "the poll behind it overlaps");
        }
    }
    end(server);
}

/// Each connection has a waiting poll and behind it a POST whose handler ends the session of the next.
#[test]
fn a_chain_of_posts_that_kick_the_next_client_needs_no_stack() {
    let _alone = alone();
    let (server, address) = start(1, |app| {
        let sessions: Rc<RefCell<Vec<Socket>>> = Rc::default();
        let known = sessions.clone();
        let handlers = Handlers::default().connection(move |socket| known.borrow_mut().push(socket)).message(
            move |socket, message| {
                let Message::Text(text) = message else { return };
                let next = sessions.borrow().get(text.parse::<usize>().unwrap()).copied();
                if let Some(next) = next {
                    next.close();
                }
                let request = socket.data_request().expect("the POST that carries this message");
                assert_eq!(request.query_param("sid").as_deref(), Some(&*socket.id()), "and no other");
            },
        );
        Server::attach(app, Options::default(), handlers);
    });
    let mut clients = clients(address, LINKS);
    // The first sessions wait, as many others post.
    let waiting: Vec<String> = clients.iter_mut().map(handshake).collect();
    let posting: Vec<String> = clients.iter_mut().map(handshake).collect();
    for (k, client) in clients.iter_mut().enumerate() {
        let kick = post(&posting[k], format!("4{}", k + 1).as_bytes());
        client.send(&[get(&waiting[k]).as_bytes(), &kick].concat());
    }
    wait_for(&server, "http_requests", 3 * LINKS as u64);
    let mut first = Client::connect(address);
    let path = handshake(&mut first);
    assert_eq!(first.post(&path, b"40").text(), "ok");
    for client in &mut clients {
        assert_eq!(client.answer().unwrap().text(), "1", "the poll of a session that was kicked");
        assert_eq!(client.answer().unwrap().text(), "ok", "the POST that kicked the next");
    }
    end(server);
}

/// Handlers that end the answer of another connection, whole or piece by piece.
#[test]
fn a_chain_of_answers_needs_no_stack() {
    enum Waiting {
        Whole(Response),
        Stream(ResponseStream),
    }
    let _alone = alone();
    for kind in ["whole", "stream"] {
        let (server, address) = start(1, |app| {
            let waiting: Rc<RefCell<Vec<Waiting>>> = Rc::default();
            let (whole, stream, kick) = (waiting.clone(), waiting.clone(), waiting);
            app.get("/whole", move |_, response| whole.borrow_mut().push(Waiting::Whole(response)));
            app.get("/stream", move |_, response| {
                stream.borrow_mut().push(Waiting::Stream(response.stream()));
            });
            app.get("/kick", move |_, response| {
                response.end("kicked");
                let next = kick.borrow_mut().pop();
                match next {
                    Some(Waiting::Whole(response)) => response.end("end"),
                    Some(Waiting::Stream(stream)) => stream.end(),
                    None => {}
                }
            });
        });
        let mut clients = clients(address, LINKS);
        for client in &mut clients {
            client.send(format!("{}{}", get(&format!("/{kind}")), get("/kick")).as_bytes());
        }
        wait_for(&server, "http_requests", LINKS as u64);
        assert_eq!(Client::connect(address).get("/kick").text(), "kicked");
        for client in &mut clients {
            assert_eq!(client.answer().unwrap().status, 200);
            assert_eq!(client.answer().unwrap().text(), "kicked");
        }
        end(server);
    }
}

// --- A turn counts work ---------------------------------------------------------------------------------------

/// Holds a core in a handler until everything that a test sends has arrived.
#[derive(Clone)]
struct Gate {
    entered: mpsc::Sender<()>,
    opens: Arc<Mutex<mpsc::Receiver<()>>>,
}

/// The other side of a [`Gate`].
struct Porter {
    entered: mpsc::Receiver<()>,
    open: mpsc::Sender<()>,
}

const PATIENCE: Duration = Duration::from_secs(20);

fn gate() -> (Gate, Porter) {
    let ((entered, seen), (open, opens)) = (mpsc::channel(), mpsc::channel());
    (Gate { entered, opens: Arc::new(Mutex::new(opens)) }, Porter { entered: seen, open })
}

impl Gate {
    fn wait(&self) {
        self.entered.send(()).unwrap();
        let opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        opens.recv_timeout(PATIENCE).unwrap();
    }
}

impl Porter {
    fn wait(&self) {
        self.entered.recv_timeout(PATIENCE).unwrap();
    }

    /// Opens when the kernel has had time to receive what was sent.
    fn open(&self) {
        thread::sleep(Duration::from_millis(100));
        self.open.send(()).unwrap();
    }
}

/// What a server has done, in order: `work` for work, and how much of that was done when others were heard.
#[derive(Clone, Default)]
struct Order {
    work: Arc<AtomicUsize>,
    heard_after: Arc<Mutex<Vec<usize>>>,
}

impl Order {
    fn worked(&self) {
        self.work.fetch_add(1, Ordering::Relaxed);
    }

    fn work(&self) -> usize {
        self.work.load(Ordering::Relaxed)
    }

    fn heard(&self) {
        self.heard_after.lock().unwrap_or_else(PoisonError::into_inner).push(self.work());
    }

    fn heard_after(&self) -> Vec<usize> {
        self.heard_after.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A WebSocket whose messages are counted as work, block the core, or are heard and answered.
fn listener(order: Order, gate: Gate) -> Behavior<()> {
    let ended = order.clone();
    Behavior::<()>::default()
        .per_message_deflate(PerMessageDeflate::default())
        .message(move |ws, message| match message {
            app::Message::Text("block") => gate.wait(),
            app::Message::Text("hello") => {
                order.heard();
                let _ = ws.send_text("hello");
            }
            _ => order.worked(),
        })
        .close(move |_, closed| {
            if closed.code == 1000 {
                ended.heard();
            }
        })
}

/// A message of 1 MB in some kilobyte.
fn bomb() -> Vec<u8> {
    let settings = Settings::new(&PerMessageDeflate::default(), 15);
    let mut packed = Vec::new();
    assert!(Deflater::new(&settings).alone(&vec![b'a'; 990_000], &mut packed));
    let mut frame = masked(OpCode::Binary, &packed);
    frame[0] |= 0x40;
    frame
}

const BOMBS: usize = 64;

#[test]
fn a_connection_that_inflates_much_does_not_keep_a_turn() {
    let _alone = alone();
    let (order, (gate, porter)) = (Order::default(), gate());
    let known = order.clone();
    let (server, address) = start(1, move |app| {
        app.ws("/", listener(known.clone(), gate.clone()));
    });
    let mut bomber = Client::connect(address);
    assert!(bomber.upgrade_with("/", "permessage-deflate; client_no_context_takeover").is_some());
    let mut other = Client::websocket(address, "/");
    let mut blocker = Client::websocket(address, "/");
    blocker.send_text("block");
    porter.wait();
    bomber.send(&bomb().repeat(BOMBS));
    // What a client has said before it left is still read, its close frame as well.
    bomber.send(&masked(OpCode::Close, &1000u16.to_be_bytes()));
    bomber.stream.shutdown(Shutdown::Write).unwrap();
    other.send_text("hello");
    porter.open();
    assert_eq!(other.text(), "hello");
    eventually("the end of the bomber", || order.heard_after().len() == 2);
    let heard = order.heard_after();
    assert!(heard[0] < BOMBS, "the other was heard after {} of {BOMBS}", heard[0]);
    assert_eq!(heard[1], BOMBS, "all of them were read, and then the close frame");
    assert!(server.metrics().total("turns_over_budget") > 0);
    end(server);
}

const PACKETS: usize = 100_000;

/// Sessions whose messages are work, and whose core waits at the first until the test has done what it must.
fn start_posted(order: &Order, gate: &Gate) -> (Running, SocketAddr) {
    let (order, gate) = (order.clone(), gate.clone());
    start(1, move |app| {
        app.ws("/", listener(order.clone(), gate.clone()));
        let (order, gate) = (order.clone(), gate.clone());
        let handlers = Handlers::default().message(move |socket, _| {
            assert!(socket.data_request().is_some(), "each message knows the POST that carries it");
            order.worked();
            if order.work() == 1 {
                gate.wait();
            }
        });
        Server::attach(app, Options::default(), handlers);
    })
}

#[test]
fn a_post_of_many_packets_does_not_keep_a_turn() {
    let _alone = alone();
    let (order, (gate, porter)) = (Order::default(), gate());
    let (server, address) = start_posted(&order, &gate);
    let mut poster = Client::connect(address);
    let path = handshake(&mut poster);
    let mut other = Client::websocket(address, "/");
    poster.send(&post(&path, vec!["4x"; PACKETS].join("\x1e").as_bytes()));
    porter.wait();
    other.send_text("hello");
    porter.open();
    assert_eq!(other.text(), "hello");
    let answer = poster.answer().unwrap();
    assert_eq!((answer.status, answer.text()), (200, "ok"), "answered when all is read");
    assert_eq!(order.work(), PACKETS);
    let heard = order.heard_after()[0];
    assert!(heard < PACKETS, "the other was heard after {heard} of {PACKETS}");
    // One POST at a time, also while it is being read: and its end is no end of the session.
    assert_eq!(poster.post(&path, b"4x").text(), "ok");
    end(server);
}

/// A client that posts and goes has said what it has said.
#[test]
fn what_was_posted_is_read_although_the_client_has_gone() {
    let _alone = alone();
    let (order, (gate, porter)) = (Order::default(), gate());
    let (server, address) = start_posted(&order, &gate);
    let mut poster = Client::connect(address);
    let path = handshake(&mut poster);
    // Closed while the POST is read, and with a side that was closed before it: the session goes on.
    for (round, way) in [Shutdown::Both, Shutdown::Write].into_iter().enumerate() {
        let mut poster = Client::connect(address);
        poster.send(&post(&path, vec!["4x"; PACKETS].join("\x1e").as_bytes()));
        if way == Shutdown::Write {
            poster.stream.shutdown(way).unwrap();
        }
        if round == 0 {
            porter.wait();
            drop(poster);
            porter.open();
        } else {
            // Not a reset, which would take what the kernel holds along.
            drop(poster);
        }
        eventually("all packets are read", || order.work() == (round + 1) * PACKETS);
        eventually("another may be posted", || Client::connect(address).post(&path, b"3").status == 200);
    }
    end(server);
}

#[test]
fn large_answers_to_polls_are_not_compressed() {
    const POLLERS: usize = 20;
    const LARGE: usize = 3_600_000;
    let _alone = alone();
    let (server, address) = start(1, |app| {
        let all: Rc<RefCell<Vec<Socket>>> = Rc::default();
        let known = all.clone();
        let handlers = Handlers::default().connection(move |socket| known.borrow_mut().push(socket)).message(
            move |socket, message| {
                let Message::Text(text) = message else { return };
                let text = "x".repeat(text.parse().unwrap());
                for socket in all.borrow().iter().filter(|other| **other != socket) {
                    let _ = socket.send_text(&text);
                }
            },
        );
        Server::attach(app, Options::default(), handlers);
    });
    let mut pollers = clients(address, POLLERS);
    let paths: Vec<String> = pollers.iter_mut().map(handshake).collect();
    let mut sender = Client::connect(address);
    let path = handshake(&mut sender);
    let accept = |path: &String| get(path).replace("\r\n\r\n", "\r\nAccept-Encoding: gzip, br\r\n\r\n");
    for (bytes, coding) in [(10_000, Some("gzip")), (LARGE, None)] {
        let asked = server.metrics().total("http_requests");
        for (poller, path) in pollers.iter_mut().zip(&paths) {
            poller.send(accept(path).as_bytes());
        }
        wait_for(&server, "http_requests", asked + POLLERS as u64);
        assert_eq!(sender.post(&path, format!("4{bytes}").as_bytes()).text(), "ok");
        for poller in &mut pollers {
            let answer = poller.answer().unwrap();
            assert_eq!(answer.header("content-encoding"), coding, "{bytes} bytes");
            assert!(coding.is_some() || answer.body.len() == bytes + 1);
        }
    }
    end(server);
}

// --- A client that does not take what it is owed is not read from ---------------------------------------------

const REPLY: usize = 64 * 1024;

/// Each message is a request for as much as it says.
fn give() -> Behavior<()> {
    Behavior::<()>::default().message(|ws, message| {
        let app::Message::Text(text) = message else { return };
        let _ = ws.send_text(&"x".repeat(text.parse().unwrap()));
    })
}

fn give_to_sessions() -> Handlers {
    Handlers::default().message(|socket, message| {
        let Message::Text(text) = message else { return };
        let _ = socket.send_text(&"x".repeat(text.parse().unwrap()));
    })
}

fn start_giving(options: impl Fn() -> Options + Send + Sync + 'static) -> (Running, SocketAddr) {
    start(1, move |app| {
        app.ws("/", give());
        Server::attach(app, options(), give_to_sessions());
    })
}

const WS: &str = "/engine.io/?EIO=4&transport=websocket";

#[test]
fn a_client_that_reads_gets_all_that_it_has_asked_for_at_once() {
    const ASKED: usize = 200;
    let _alone = alone();
    let (server, address) = start_giving(Options::default);
    // In a few receives, 12.8 MB are asked for.
    let mut raw = Client::websocket(address, "/");
    raw.send(&masked(OpCode::Text, REPLY.to_string().as_bytes()).repeat(ASKED));
    let mut session = Client::websocket(address, WS);
    session.text();
    session.send(&masked(OpCode::Text, format!("4{REPLY}").as_bytes()).repeat(ASKED));
    for _ in 0..ASKED {
        assert_eq!(raw.text().len(), REPLY);
        assert_eq!(session.text().len(), REPLY + 1);
    }
    // And with large requests, by one that sends and reads at the same time.
    let mut echoes = Client::connect(address);
    echoes.upgrade("/");
    let mut writer = echoes.stream.try_clone().unwrap();
    let writes = thread::spawn(move || {
        let one = masked(OpCode::Text, format!("{}100000", "0".repeat(99_994)).as_bytes());
        std::io::Write::write_all(&mut writer, &one.repeat(50)).unwrap();
    });
    for _ in 0..50 {
        assert_eq!(echoes.text().len(), 100_000);
    }
    writes.join().unwrap();
    assert_eq!(server.metrics().total("closed_for_backpressure"), 0);
    end(server);
}

#[test]
fn a_polling_client_that_reads_gets_all_that_it_has_posted_for() {
    const ASKED: usize = 200;
    let _alone = alone();
    let (server, address) = start_giving(Options::default);
    let mut poster = Client::connect(address);
    let path = handshake(&mut poster);
    poster.send(&post(&path, vec![format!("4{REPLY}"); ASKED].join("\x1e").as_bytes()));
    let mut poller = Client::connect(address);
    let mut packets = 0;
    while packets < ASKED {
        let answer = poller.get(&path);
        assert_eq!(answer.status, 200);
        packets += answer.text().split('\x1e').filter(|packet| packet.len() == REPLY + 1).count();
    }
    assert_eq!(packets, ASKED);
    assert_eq!(poster.answer().unwrap().text(), "ok");
    assert_eq!(server.metrics().total("closed_for_backpressure"), 0);
    end(server);
}

/// Asks for far more than a client may be owed, and does not read.
fn greedy(address: SocketAddr, path: &str, request: &str) -> Client {
    let mut client = Client::with_receive_buffer(address, 4096);
    client.upgrade(path);
    client.send(&masked(OpCode::Text, request.as_bytes()).repeat(2000));
    client
}

#[test]
fn a_client_that_never_reads_costs_no_more_than_half_its_limit_and_ends_by_its_heartbeat() {
    let _alone = alone();
    let quick = || Options {
        ping_interval: Duration::from_millis(300),
        ping_timeout: Duration::from_millis(700),
        ..Options::default()
    };
    let (server, address) = start_giving(quick);
    let limit = 4 * 1024 * 1024;
    let raw = greedy(address, "/", &REPLY.to_string());
    eventually("it is owed much", || server.metrics().total("queued_bytes") > limit / 4);
    let session = greedy(address, WS, &format!("4{REPLY}"));
    let most = (0..20).map(|_| {
        thread::sleep(Duration::from_millis(10));
        server.metrics().total("queued_bytes")
    });
    let bound = 2 * (limit / 2 + 2 * REPLY as u64);
    assert!(most.max().is_some_and(|most| most < bound), "two clients, each with half of its limit");
    eventually("the session has ended", || server.metrics().total("engine_sessions") == 0);
    assert_eq!(server.metrics().total("closed_for_backpressure"), 0, "by its heartbeat");
    drop((raw, session));
    end(server);
}

#[test]
fn a_client_that_reads_slowly_is_not_closed_for_pongs_that_nobody_reads() {
    const ASKED: usize = 60;
    let _alone = alone();
    let quick = || Options {
        ping_interval: Duration::from_millis(100),
        ping_timeout: Duration::from_millis(700),
        ..Options::default()
    };
    let (server, address) = start_giving(quick);
    let mut slow = Client::with_receive_buffer(address, 64 * 1024);
    slow.upgrade(WS);
    assert!(slow.text().starts_with('0'));
    slow.send(&masked(OpCode::Text, format!("4{REPLY}").as_bytes()).repeat(ASKED));
    // It takes several times as long as its heartbeat allows, and comes to no ping before it is through.
    for reply in 0..ASKED {
        let mut text = slow.text();
        while text == "2" {
            text = slow.text();
        }
        assert_eq!(text.len(), REPLY + 1, "reply {reply}");
        thread::sleep(Duration::from_millis(40));
    }
    slow.send_text("3");
    slow.send_text("45");
    while slow.text() != "4xxxxx" {}
    end(server);
}
