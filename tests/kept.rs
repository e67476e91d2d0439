//! What the App keeps for a client, by what the client has sent: hostile clients, and the memory of the process.

mod support;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sockring::app::{self, App, Behavior, Message, Request, RequestStream, Response, Upgrade};
use sockring::engine;
use sockring::limits;
use sockring::runtime::{self, Descriptors, Running};
use support::{Answer, Client, alone, builder, end, eventually, options, resident_bytes, sid};

fn start(http: app::Options, routes: impl Fn(&App) + Send + Sync + 'static) -> (Running, SocketAddr) {
    let server = builder(options(Descriptors::Auto, 1)).http(http).start(routes).unwrap();
    let address = server.addresses()[0];
    (server, address)
}

/// The head of a POST in chunks.
fn chunked(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
}

/// The longest chunk that carries one byte: 21 bytes on the wire.
const CHUNK: &str = "0000000000000001\r\nx\r\n";

/// Bodies of one byte a chunk, not ended: all that is kept is what they carry.
#[test]
fn chunks_of_one_byte_keep_one_byte() {
    const CLIENTS: usize = 20;
    const BODY: usize = 150_000;
    let _alone = alone();
    let read = Arc::new(AtomicUsize::new(0));
    let told = read.clone();
    let (server, address) = start(app::Options::default(), move |app| {
        app.body_limit(BODY + 1).post("/whole", |request: Request, response: Response| {
            response.end(request.body().len().to_string());
        });
        let told = told.clone();
        app.body_stream(BODY + 1).post(
            "/stream",
            move |_: Request, mut body: RequestStream, response: Response| {
                let told = told.clone();
                async move {
                    // It takes nothing until the test says so.
                    while told.load(Ordering::Relaxed) == 0 {
                        monoio::time::sleep(Duration::from_millis(5)).await;
                    }
                    let mut bytes = 0;
                    while let Ok(Some(piece)) = body.read().await {
                        bytes += piece.len();
                    }
                    response.end(bytes.to_string());
                }
            },
        );
    });
    let body = CHUNK.repeat(BODY);
    // What allocators and kernel need for one of them.
    let one = |path: &str, end: &str| {
        let mut client = Client::connect(address);
        client.send(chunked(path).as_bytes());
        client.send(body.as_bytes());
        client.send(end.as_bytes());
        client
    };
    assert_eq!(one("/whole", "0\r\n\r\n").answer().unwrap().text(), BODY.to_string());
    let before = resident_bytes();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| one("/whole", "")).collect();
    let grown = resident_bytes().saturating_sub(before);
    // 63 MB came. What was decoded, in a buffer that doubles, and what the allocator keeps of the pieces.
    let most = CLIENTS * (3 * BODY + 128 * 1024);
    assert!(grown < most, "{grown} bytes are kept, {most} may be");
    for client in &mut clients {
        client.send(b"0\r\n\r\n");
        assert_eq!(client.answer().unwrap().text(), BODY.to_string());
    }
    drop(clients);
    // A handler that does not read: 64 KiB wait for it, then the client waits.
    let slow = std::thread::spawn({
        let body = body.clone();
        move || {
            let mut client = Client::connect(address);
            client.send(chunked("/stream").as_bytes());
            client.send(body.as_bytes());
            client.send(b"0\r\n\r\n");
            client.answer().unwrap().text().to_owned()
        }
    });
    std::thread::sleep(Duration::from_millis(200));
    read.store(1, Ordering::Relaxed);
    assert_eq!(slow.join().unwrap(), BODY.to_string());
    end(server);
}

/// The time of a body is earned by what it carries. This one sends 2 KB a second, of which 100 bytes count.
#[test]
fn what_chunks_add_earns_no_time() {
    let _alone = alone();
    let http =
        app::Options { body_timeout: Duration::from_millis(300), body_rate: 1000, ..app::Options::default() };
    let (server, address) = start(http, |app| {
        app.post("/", |_, response| response.end("all of it"));
    });
    let mut client = Client::connect(address);
    client.send(chunked("/").as_bytes());
    let mut writer = client.stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        // Gives up long after the server has.
        for _ in 0..500 {
            std::thread::sleep(Duration::from_millis(10));
            if std::io::Write::write_all(&mut writer, CHUNK.as_bytes()).is_err() {
                return true;
            }
        }
        false
    });
    assert_eq!(client.answer().unwrap().status, 408);
    drop(client);
    assert!(sending.join().unwrap(), "all was read");
    end(server);
}

#[test]
fn a_socket_has_so_many_topics_and_no_longer_names() {
    let _alone = alone();
    let http = app::Options { topics_per_socket: 3, ..app::Options::default() };
    let (server, address) = start(http, |app| {
        app.ws(
            "/ws",
            Behavior::<()>::default().message(|ws, message| {
                let Message::Text(text) = message else { return };
                let done = match text.split_at(1) {
                    ("+", topic) => ws.subscribe(topic),
                    (_, topic) => ws.unsubscribe(topic),
                };
                let _ = ws.send_text(if done { "yes" } else { "no" });
            }),
        );
    });
    let mut clients = [Client::websocket(address, "/ws"), Client::websocket(address, "/ws")];
    let (fits, long) = ("t".repeat(limits::TOPIC_BYTES), "t".repeat(limits::TOPIC_BYTES + 1));
    for client in &mut clients {
        for (said, heard) in [
            ("+a".to_owned(), "yes"),
            (format!("+{long}"), "no"),
            (format!("+{fits}"), "yes"),
            ("+c".to_owned(), "yes"),
            // No more, but for one that leaves, and what is there stays there.
            ("+d".to_owned(), "no"),
            ("+a".to_owned(), "no"),
            ("-a".to_owned(), "yes"),
            ("+d".to_owned(), "yes"),
            ("+a".to_owned(), "no"),
        ] {
            client.send_text(&said);
            assert_eq!(client.text(), heard, "{}", &said[..2]);
        }
    }
    let metrics = server.metrics();
    assert_eq!(metrics.total("topics_refused"), 6);
    end(server);
}

/// Subprotocols are chosen from, not kept: a head has room for thousands.
#[test]
fn offers_of_subprotocols_are_not_kept() {
    const CLIENTS: usize = 200;
    let _alone = alone();
    let (server, address) = start(app::Options::default(), |app| {
        let waiting = Rc::new(RefCell::new(Vec::new()));
        let count = waiting.clone();
        let behavior =
            Behavior::new(move |_: Request, upgrade: Upgrade<()>| waiting.borrow_mut().push(upgrade));
        app.ws("/ws", behavior.protocols(["wanted"]));
        app.get("/waiting", move |_, response| response.end(count.borrow().len().to_string()));
    });
    let offers = "a,".repeat(7000) + "wanted";
    let offer = || {
        let mut client = Client::connect(address);
        let field = format!("\r\nSec-WebSocket-Protocol: {offers}\r\n\r\n");
        client.send(support::upgrade_request("/ws").replace("\r\n\r\n", &field).as_bytes());
        client
    };
    let waiting = |count: usize| {
        let count = count.to_string();
        eventually("all wait", || Client::connect(address).get("/waiting").text() == count);
    };
    let first = offer();
    waiting(1);
    let before = resident_bytes();
    let clients: Vec<Client> = (0..CLIENTS).map(|_| offer()).collect();
    waiting(CLIENTS + 1);
    let grown = resident_bytes().saturating_sub(before);
    // The head as it came and as it was read, and what a connection takes. A text for each offer would be 35 MB.
    assert!(grown < CLIENTS * 80_000, "{grown} bytes are kept");
    drop((first, clients));
    end(server);
}

/// A body that was decoded goes along to the core of its session, whatever its framing, and so does what was
/// sent after it.
#[test]
fn a_request_moves_to_another_core_with_its_body() {
    let _alone = alone();
    let server = builder(options(Descriptors::Auto, 3)).start(|app| {
        let echo = engine::Handlers::default().message(|socket, message| {
            if let engine::Message::Text(text) = message {
                let _ = socket.send_text(text);
            }
        });
        engine::Server::attach(app, engine::Options::default(), echo);
    });
    let server = server.unwrap();
    let address = server.addresses()[0];
    const POLL: &str = "/engine.io/?EIO=4&transport=polling";
    let mut poller = Client::connect(address);
    let path = format!("{POLL}&sid={}", sid(poller.get(POLL).text()));
    let head = |framing: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
    let large = format!("4{}", "y".repeat(50_000));
    let kinds = [
        (head("Content-Length: 6") + "4hello", "hello"),
        (head("Transfer-Encoding: chunked") + "3;x=y\r\n4he\r\n003\r\nllo\r\n0\r\nT: t\r\n\r\n", "hello"),
        (head(&format!("Content-Length: {}", large.len())) + &large, &large[1..]),
        (
            head("Transfer-Encoding: chunked") + &format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len()),
            &large[1..],
        ),
    ];
    // So many connections that some are another core's.
    for turn in 0..12 {
        for (number, (request, text)) in kinds.iter().enumerate() {
            let mut client = Client::connect(address);
            let both = format!("{request}GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            let cut = both.len() * turn / 12;
            client.send(&both.as_bytes()[..cut]);
            if cut > 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
            client.send(&both.as_bytes()[cut..]);
            let name = format!("turn {turn}, kind {number}");
            assert_eq!(client.answer().unwrap().text(), "ok", "{name}");
            assert_eq!(client.answer().unwrap().text().strip_prefix('4'), Some(*text), "{name}");
        }
    }
    end(server);
}

/// While the process is short of memory, large bodies and new connections are told to come again, and small
/// requests of those who are there are served.
#[test]
fn large_bodies_and_new_connections_are_refused_first_when_memory_is_short() {
    let _alone = alone();
    let max_memory = resident_bytes() + (64 << 20);
    let runtime = runtime::Options { max_memory, ..options(Descriptors::Auto, 1) };
    let server = builder(runtime).start(|app| {
        app.post("/", |request: Request, response: Response| response.end(request.body().len().to_string()));
        app.get("/", |_, response| response.end("served"));
        app.serve_health("/healthz");
    });
    let server = server.unwrap();
    let address = server.addresses()[0];
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(address)).collect();
    let whole = |client: &mut Client, bytes: usize| client.post("/", &vec![b'x'; bytes]);
    let [mut length, mut chunks, mut small, mut after] =
        <[Client; 4]>::try_from(clients.split_off(0)).ok().unwrap();
    for client in [&mut length, &mut chunks, &mut small, &mut after] {
        assert_eq!(whole(client, 200_000).text(), "200000");
    }
    let memory = || server.metrics().total("memory_bytes") as usize;
    let ballast = vec![1u8; 160 << 20];
    eventually("memory is short", || memory() > max_memory);
    std::thread::sleep(Duration::from_millis(300));
    let refused = |answer: Answer| {
        assert_eq!(answer.status, 503, "{}", answer.head);
        let head = answer.head.to_ascii_lowercase();
        assert_eq!(head.matches("\r\nretry-after: ").count(), 1, "{head}");
    };
    length.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n");
    refused(length.answer().unwrap());
    chunks.send(chunked("/").as_bytes());
    chunks.send(format!("1ffff\r\n{}", "x".repeat(100_000)).as_bytes());
    refused(chunks.answer().unwrap());
    assert_eq!(whole(&mut small, 1000).text(), "1000");
    // New connections are told so, as many as come; what watches the server is served.
    for _ in 0..50 {
        let mut new = Client::connect(address);
        refused(new.get("/"));
        assert!(new.ends());
    }
    assert_eq!(Client::connect(address).get("/healthz").text(), "ok");
    assert_eq!(ballast.iter().map(|byte| usize::from(*byte)).sum::<usize>(), ballast.len());
    drop(ballast);
    eventually("there is room again", || memory() < max_memory - max_memory / 16);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(whole(&mut after, 200_000).text(), "200000");
    assert_eq!(Client::connect(address).get("/").text(), "served");
    end(server);
}
