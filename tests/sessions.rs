//! Sessions of the engine under clients that do what few clients do: they take sessions over, shake hands and go
//! away, close and poll at the same time, are late, or send large heads.

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use sockring::app::{App, PerMessageDeflate};
use sockring::engine::{Cors, Handlers, Message, Options, Server};
use sockring::protocol::ws::deflate::{Deflater, Settings};
use sockring::protocol::ws::frame::OpCode;
use sockring::runtime::{Descriptors, Running};
use support::*;

const POLL: &str = "/engine.io/?EIO=4&transport=polling";
const WS: &str = "/engine.io/?EIO=4&transport=websocket";

fn echo() -> Handlers {
    Handlers::default().message(|socket, message| {
        let _ = match message {
            Message::Text(text) => socket.send_text(text),
            Message::Binary(data) => socket.send_binary(data),
        };
    })
}

/// A server with a plain listener and one for TLS, in this order.
fn start(workers: usize, setup: impl Fn(&App) + Send + Sync + 'static) -> Running {
    let runtime =
        sockring::runtime::Options { send_buffer: 16 * 1024, ..options(Descriptors::Auto, workers) };
    builder(runtime).listen_tls("127.0.0.1:0", IDENTITY.tls()).start(setup).unwrap()
}

fn echo_with(workers: usize, options: fn() -> Options) -> Running {
    start(workers, move |app| drop(Server::attach(app, options(), echo())))
}

fn connect(server: &Running, tls: bool) -> Client {
    let address = server.addresses()[usize::from(tls)];
    if tls {
        Client::over_tls(address, IDENTITY.client(), "localhost").unwrap()
    } else {
        Client::connect(address)
    }
}

/// A WebSocket with a session, and its id.
fn session(server: &Running, tls: bool, path: &str) -> (Client, String) {
    let mut client = connect(server, tls);
    client.upgrade(path);
    let sid = sid(&client.text());
    (client, sid)
}

/// A WebSocket for a session that exists.
fn another(server: &Running, tls: bool, path: &str, sid: &str) -> Client {
    let mut client = connect(server, tls);
    client.upgrade(&format!("{path}&sid={sid}"));
    client
}

fn take_over(client: &mut Client) {
    client.send_text("2probe");
    assert_eq!(client.text(), "3probe");
    client.send_text("5");
}

/// The server closes a WebSocket with a frame that says nothing, as the reference does.
fn closes(client: &mut Client) {
    let frame = client.frame().unwrap();
    assert_eq!((frame.opcode, frame.payload.as_slice()), (8, &[][..]));
}

fn hears_itself(client: &mut Client, text: &str) {
    client.send_text(text);
    assert_eq!(client.text(), text);
}

#[test]
fn a_second_websocket_takes_over_and_strangers_are_left_alone() {
    let _alone = alone();
    let server = echo_with(1, || Options { allow_eio3: true, ..Options::default() });
    let (three, base64) = (WS.replace("EIO=4", "EIO=3"), format!("{WS}&b64=1"));
    for tls in [false, true] {
        for (first, second) in [(WS, WS), (WS, &base64), (&base64, WS), (&three, &three)] {
            for _ in 0..12 {
                let (mut old, sid) = session(&server, tls, first);
                hears_itself(&mut old, "4on the old one");
                let mut new = another(&server, tls, second, &sid);
                take_over(&mut new);
                closes(&mut old);
                hears_itself(&mut new, "4on the new one");
                drop(old);
                let (mut stranger, _) = session(&server, tls, WS);
                for text in ["4a", "4b", "4c"] {
                    new.send_text(text);
                    stranger.send_text(text);
                    assert_eq!((new.text(), stranger.text()), (text.to_owned(), text.to_owned()));
                }
                // A session moves once.
                closes(&mut another(&server, tls, second, &sid));
                hears_itself(&mut new, "4still");
                drop(new);
                hears_itself(&mut stranger, "4still");
            }
        }
    }
    end(server);
}

#[test]
fn what_waits_for_the_old_websocket_leaves_through_it() {
    let _alone = alone();
    const MESSAGES: usize = 60;
    let server = start(1, |app| {
        let handlers = Handlers::default().message(|socket, message| match message {
            Message::Text("flood") => (0..MESSAGES).for_each(|number| {
                let _ = socket.send_text(&format!("{number} {}", "x".repeat(10_000)));
            }),
            Message::Text(text) => drop(socket.send_text(text)),
            Message::Binary(_) => {}
        });
        Server::attach(app, Options::default(), handlers);
    });
    for tls in [false, true] {
        let address = server.addresses()[usize::from(tls)];
        let mut old = Client::with_receive_buffer(address, 4096);
        if tls {
            old.secure(IDENTITY.client(), "localhost").unwrap();
        }
        old.upgrade(WS);
        let sid = sid(&old.text());
        old.send_text("4flood");
        let mut new = another(&server, tls, WS, &sid);
        take_over(&mut new);
        hears_itself(&mut new, "4after");
        for number in 0..MESSAGES {
            assert!(old.text().starts_with(&format!("4{number} ")), "message {number}");
        }
        closes(&mut old);
    }
    end(server);
}

#[test]
fn no_websocket_stays_without_a_session() {
    let _alone = alone();
    let server = echo_with(1, || Options { upgrade_timeout: Duration::from_secs(2), ..Options::default() });
    for tls in [false, true] {
        let mut sessions: Vec<_> = (0..50).map(|_| session(&server, tls, WS)).collect();
        // These never probe, or probe and go no further.
        let mut idle = Vec::new();
        for (number, (_, sid)) in sessions.iter().enumerate() {
            let mut client = another(&server, tls, WS, sid);
            if number % 2 == 0 {
                client.send_text("2probe");
                assert_eq!(client.text(), "3probe");
            }
            idle.push(client);
        }
        idle.iter_mut().for_each(closes);
        let mut taken = Vec::new();
        for (_, sid) in &sessions {
            let mut client = another(&server, tls, WS, sid);
            take_over(&mut client);
            taken.push(client);
        }
        sessions.iter_mut().for_each(|(old, _)| closes(old));
        taken.iter_mut().for_each(|client| hears_itself(client, "4here"));
        assert_eq!(server.metrics().total("engine_sessions"), 50);
        drop((sessions, idle, taken));
        eventually("all are gone", || {
            let metrics = server.metrics();
            metrics.total("websockets") + metrics.total("engine_sessions") + metrics.total("connections") == 0
        });
    }
    end(server);
}

#[test]
fn an_upgrade_needs_no_probe_and_may_have_several() {
    let _alone = alone();
    let server = echo_with(1, Options::default);
    for probes in [0, 1, 2, 5] {
        let mut polls = connect(&server, false);
        let sid = sid(polls.get(POLL).text());
        polls.send(get(&format!("{POLL}&sid={sid}")).as_bytes());
        let mut ws = another(&server, false, WS, &sid);
        for _ in 0..probes {
            ws.send_text("2probe");
            assert_eq!(ws.text(), "3probe");
        }
        ws.send_text("5");
        // Without a probe the poll still waits, and the transport that it belongs to closes.
        assert_eq!(polls.answer().unwrap().text(), if probes == 0 { "1" } else { "6" });
        hears_itself(&mut ws, "4moved");
        assert_eq!(polls.get(&format!("{POLL}&sid={sid}")).status, 400);
    }
    end(server);
}

#[test]
fn sessions_and_upgrades_end_at_the_millisecond() {
    let _alone = alone();
    let server = echo_with(2, || Options {
        ping_interval: Duration::from_millis(300),
        ping_timeout: Duration::from_millis(200),
        upgrade_timeout: Duration::from_millis(170),
        ..Options::default()
    });
    let address = server.addresses()[0];
    let late = move |number: u64| {
        thread::sleep(Duration::from_millis(number * 7));
        let mut client = Client::connect(address);
        let sid = sid(client.get(POLL).text());
        let mut ws = Client::websocket(address, &format!("{WS}&sid={sid}"));
        thread::sleep(Duration::from_millis(170));
        ws.send_text("2probe");
        closes(&mut ws);
        let born = sid_of_a_new_session(address);
        thread::sleep(Duration::from_millis(500));
        let answer = Client::connect(address).get(&format!("{POLL}&sid={born}"));
        assert_eq!((answer.status, answer.text()), (400, r#"{"code":1,"message":"Session ID unknown"}"#));
    };
    let clients: Vec<_> = (0..24).map(|number| thread::spawn(move || late(number))).collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    end(server);
}

fn sid_of_a_new_session(address: SocketAddr) -> String {
    sid(Client::connect(address).get(POLL).text())
}

#[test]
fn a_session_that_its_client_has_closed_answers_one_more_poll() {
    let _alone = alone();
    let server = echo_with(3, Options::default);
    let address = server.addresses()[0];
    for round in 0..40 {
        let (mut polls, mut posts) = (Client::connect(address), Client::connect(address));
        let path = format!("{POLL}&sid={}", sid_of_a_new_session(address));
        if round % 2 == 0 {
            polls.send(get(&path).as_bytes());
        }
        assert_eq!(posts.post(&path, b"1").text(), "ok");
        if round % 2 == 1 {
            polls.send(get(&path).as_bytes());
        }
        let poll = polls.answer().unwrap();
        assert_eq!((poll.status, poll.text()), (200, "6"), "round {round}");
        for answer in [posts.post(&path, b"4x"), polls.get(&path)] {
            assert_eq!((answer.status, answer.text()), (400, r#"{"code":1,"message":"Session ID unknown"}"#));
        }
    }
    // Nothing else reaches it, and no poll need come.
    let path = format!("{POLL}&sid={}", sid_of_a_new_session(address));
    let mut client = Client::connect(address);
    client.post(&path, b"1");
    assert_eq!(client.post(&path, b"4x").status, 400);
    client.send(upgrade_request(&path.replace("polling", "websocket")).as_bytes());
    assert_eq!(client.answer().unwrap().status, 400);
    eventually("its place is free", || server.metrics().total("engine_places") == 0);
    end(server);
}

#[test]
fn too_much_is_refused_without_words() {
    let _alone = alone();
    let server = echo_with(1, || Options { max_http_buffer_size: 1000, ..Options::default() });
    let (mut ws, _) = session(&server, false, WS);
    ws.send(&masked(OpCode::Text, &[b'4'; 1001]));
    let close = ws.frame().unwrap();
    assert_eq!((close.opcode, close.payload.as_slice()), (8, &1009u16.to_be_bytes()[..]));
    let mut post = connect(&server, false);
    let path = format!("{POLL}&sid={}", sid(post.get(POLL).text()));
    let answer = post.post(&path, &[b'4'; 1001]);
    assert_eq!((answer.status, answer.text()), (413, ""));
    end(server);
}

#[test]
fn the_first_subprotocol_or_that_of_the_hook_is_chosen() {
    let _alone = alone();
    let server = start(1, |app| {
        Server::attach(app, Options::default(), echo());
        let options =
            Options { path: "/chosen".into(), ..Options::default() }.handle_protocols(|offered, request| {
                match request.query_param("choose") {
                    Some(choice) => Some(choice.into_owned()),
                    None => offered.last().map(|last| (*last).to_owned()),
                }
            });
        Server::attach(app, options, echo());
    });
    let chosen = |path: &str, offer: &str| {
        let mut client = connect(&server, false);
        let header = format!("\r\nSec-WebSocket-Protocol: {offer}\r\n\r\n");
        let header = if offer.is_empty() { "\r\n\r\n" } else { &header };
        client.send(upgrade_request(path).replace("\r\n\r\n", header).as_bytes());
        let answer = client.answer().unwrap();
        assert_eq!(answer.status, 101);
        answer.header("sec-websocket-protocol").map(str::to_owned)
    };
    let sid = sid_of_a_new_session(server.addresses()[0]);
    for path in [WS.to_owned(), format!("{WS}&sid={sid}")] {
        assert_eq!(chosen(&path, "chat.v2, chat.v1").as_deref(), Some("chat.v2"), "{path}");
    }
    assert_eq!(chosen(WS, ""), None);
    let other = WS.replace("engine.io", "chosen");
    assert_eq!(chosen(&other, "a, b").as_deref(), Some("b"));
    assert_eq!(chosen(&format!("{other}&choose=a"), "a, b").as_deref(), Some("a"));
    assert_eq!(chosen(&format!("{other}&choose=c"), "a, b"), None, "it was not offered");
    assert_eq!(chosen(&other, ""), None);
    end(server);
}

#[test]
fn scripts_of_other_sites_are_kept_out_of_every_transport() {
    let _alone = alone();
    static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let server = start(1, |app| {
        let options = Options { cors: Some(Cors::list(["http://a.test"])), ..Options::default() }
            .allowed_origins(["http://a.test", "https://b.test/"]);
        let handlers = echo().connection_error(|error| {
            let context = error.refusal.context().to_string();
            SEEN.lock().unwrap_or_else(PoisonError::into_inner).push(context);
        });
        Server::attach(app, options, handlers);
    });
    let ask = |path: &str, upgrade: bool, origin: Option<&str>| {
        let request = if upgrade { upgrade_request(path) } else { get(path) };
        let header = origin.map_or(String::new(), |origin| format!("\r\nOrigin: {origin}"));
        let mut client = connect(&server, false);
        client.send(request.replacen("\r\n\r\n", &format!("{header}\r\n\r\n"), 1).as_bytes());
        client.answer().unwrap()
    };
    let sid = sid(ask(POLL, false, Some("http://a.test")).text());
    let jsonp = format!("{POLL}&j=0");
    for origin in [Some("http://a.test"), Some("https://b.test"), None] {
        assert_eq!(ask(POLL, false, origin).status, 200, "{origin:?}");
        assert_eq!(ask(WS, true, origin).status, 101, "{origin:?}");
        assert_eq!(ask(&jsonp, false, origin).status, if origin.is_some() { 200 } else { 403 }, "{origin:?}");
    }
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).clear();
    for origin in
        ["http://evil.test", "null", "http://a.test.evil.test", "http://a.test:81", "", "HTTP://A.TEST"]
    {
        for path in [POLL, &format!("{POLL}&sid={sid}"), &jsonp] {
            let answer = ask(path, false, Some(origin));
            assert_eq!(
                (answer.status, answer.text()),
                (403, r#"{"code":4,"message":"Forbidden"}"#),
                "{origin}"
            );
            assert_eq!(answer.header("vary"), Some("Origin"));
        }
        for path in [WS, &format!("{WS}&sid={sid}")] {
            let answer = ask(path, true, Some(origin));
            assert_eq!((answer.status, answer.text()), (403, "Forbidden"), "{origin}");
        }
    }
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(seen.len(), 30);
    assert_eq!(seen[0], r#"{"name":"FOREIGN_ORIGIN","origin":"http://evil.test"}"#);
    drop(seen);
    end(server);
}

fn small() -> Options {
    // A share of two.
    Options { max_sessions: 32, cors: Some(Cors::any()), ..Options::default() }
}

#[test]
fn handshakes_beyond_the_limit_are_told_to_come_again() {
    let _alone = alone();
    let server = echo_with(2, small);
    let address = server.addresses()[0];
    let refused = |transport: &str| {
        let mut client = Client::connect(address);
        match transport {
            "polling" => client.send(get(POLL).as_bytes()),
            _ => client.send(upgrade_request(WS).as_bytes()),
        }
        let answer = client.answer().unwrap();
        let found = (answer.status, answer.text(), answer.header("retry-after"));
        assert_eq!(found, (503, "", Some("10")), "{transport}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{transport}");
    };
    let path = |sid: &str| format!("{POLL}&sid={sid}");
    let ids = [sid_of_a_new_session(address), sid_of_a_new_session(address)];
    // Those that have done nothing have used up their share.
    (0..20).for_each(|_| refused("polling"));
    assert_eq!(server.metrics().total("engine_places_fresh"), 2);
    // The others go on, whatever shakes hands beside them.
    let mut client = Client::connect(address);
    assert_eq!(client.post(&path(&ids[0]), b"4hello").text(), "ok");
    assert_eq!(client.get(&path(&ids[0])).text(), "4hello");
    let third = sid_of_a_new_session(address);
    refused("polling");
    assert_eq!(client.post(&path(&third), b"6").text(), "ok");
    let upgraded = another(&server, false, WS, &ids[1]);
    assert_eq!(server.metrics().total("engine_places_fresh"), 0);
    // WebSockets have connections, but all sessions together have a limit too.
    let sockets: Vec<_> = (0..29).map(|_| session(&server, false, WS)).collect();
    for transport in ["polling", "websocket"] {
        refused(transport);
    }
    assert_eq!(client.post(&path(&third), b"4still").text(), "ok");
    assert_eq!(client.get(&path(&third)).text(), "4still");
    let metrics = server.metrics();
    assert_eq!((metrics.total("engine_places"), metrics.total("engine_handshakes_without_place")), (32, 23));
    drop((sockets, upgraded));
    eventually("places are free", || server.metrics().total("engine_places") == 3);
    sid_of_a_new_session(address);
    end(server);
}

#[test]
fn the_oldest_that_does_nothing_gives_way() {
    let _alone = alone();
    let server = echo_with(1, small);
    let address = server.addresses()[0];
    let old = [sid_of_a_new_session(address), sid_of_a_new_session(address)];
    thread::sleep(Duration::from_millis(10_050));
    let new = sid_of_a_new_session(address);
    let mut client = Client::connect(address);
    let status = |client: &mut Client, sid: &str| client.post(&format!("{POLL}&sid={sid}"), b"6").status;
    assert_eq!(status(&mut client, &old[0]), 400);
    assert_eq!((status(&mut client, &old[1]), status(&mut client, &new)), (200, 200));
    assert_eq!(server.metrics().total("engine_sessions_given_up"), 1);
    end(server);
}

#[test]
fn a_session_that_the_server_has_closed_takes_posts_until_its_client_knows() {
    let _alone = alone();
    let server = start(1, |app| {
        Server::attach(app, Options::default(), Handlers::default().message(|socket, _| socket.close()));
    });
    let address = server.addresses()[0];
    let path = format!("{POLL}&sid={}", sid_of_a_new_session(address));
    let mut client = Client::connect(address);
    for packet in ["4close", "4more", "3", "4and more"] {
        let answer = client.post(&path, packet.as_bytes());
        assert_eq!((answer.status, answer.text()), (200, "ok"), "{packet}");
    }
    assert_eq!(client.get(&path).text(), "6\x1e1");
    assert_eq!(client.post(&path, b"4x").status, 400);
    end(server);
}

#[test]
fn posted_bytes_that_are_no_text_are_replaced() {
    let _alone = alone();
    let server = echo_with(1, Options::default);
    let address = server.addresses()[0];
    let broken: [&[u8]; 6] =
        [b"4a\xFFb", b"4\xC3", b"4\xED\xA0\xBD", b"4\xF0\x9F\x98", b"4\xC0\x80", b"4a\xE2\x82\x1E4b"];
    for form in [false, true] {
        let jsonp = if form { "&j=0" } else { "" };
        let poll = format!("{POLL}{jsonp}");
        let mut client = Client::connect(address);
        let open = client.get(&poll).text().replace("\\\"", "\"");
        let path = format!("{poll}&sid={}", sid(&open));
        for bytes in broken {
            let body = if form { [b"d=", bytes].concat() } else { bytes.to_vec() };
            assert_eq!(client.post(&path, &body).text(), "ok");
            let answer = client.get(&path);
            let expected =
                String::from_utf8_lossy(bytes).replace('\x1E', if form { "\\u001e" } else { "\x1E" });
            assert!(answer.text().contains(&expected), "{form} {bytes:?}: {}", answer.text());
        }
    }
    // Over WebSocket they break the protocol (RFC 6455 section 8.1).
    let (mut client, _) = session(&server, false, WS);
    client.send(&masked(OpCode::Text, b"4\xFF"));
    assert_eq!(client.frame().unwrap().payload, 1007_u16.to_be_bytes());
    end(server);
}

#[test]
fn large_heads_are_not_kept_and_count_for_several() {
    let _alone = alone();
    static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let whole = Arc::new(AtomicBool::new(true));
    let told = whole.clone();
    let server = start(1, move |app| {
        let told = told.clone();
        let options = Options { kept_head_bytes: 8 * 1024, ..Options::default() };
        let options = options.allow_request(move |request| {
            let all = request.header("x-large").is_some() && request.query_param("large").is_some();
            told.fetch_and(all, Ordering::Relaxed);
            Ok(())
        });
        let handlers = Handlers::default().connection(|socket| {
            let Some(request) = socket.request() else { return };
            let large = [request.header("x-large").is_some(), request.query_param("large").is_some()];
            let rest = (request.header("cookie"), request.query_param("EIO"), request.method());
            let seen = format!("{large:?} {rest:?} {:?}", request.host());
            SEEN.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        });
        Server::attach(app, options, handlers);
    });
    let mut client = connect(&server, false);
    for (x, query) in [(12_000, 1), (1, 12_000), (7000, 1), (4000, 3000)] {
        let path = format!("{POLL}&large={}", "q".repeat(query));
        let header = format!("\r\nX-Large: {}\r\nCookie: a=1\r\n\r\n", "x".repeat(x));
        client.send(get(&path).replacen("\r\n\r\n", &header, 1).as_bytes());
        assert_eq!(client.answer().unwrap().status, 200);
    }
    assert!(whole.load(Ordering::Relaxed), "who decides sees all");
    let rest = r#"(Some("a=1"), Some("4"), "GET") Some("test")"#;
    let expected = ["[false, true]", "[true, false]", "[true, true]", "[true, true]"];
    let expected: Vec<String> = expected.iter().map(|large| format!("{large} {rest}")).collect();
    assert_eq!(*SEEN.lock().unwrap_or_else(PoisonError::into_inner), expected);
    // One, one, seven, six or seven with what a field costs.
    let places = server.metrics().total("engine_places");
    assert!((14..=16).contains(&places), "{places}");
    end(server);
}

#[test]
fn clients_that_keep_their_context_whatever_is_agreed_are_understood() {
    let _alone = alone();
    let server = echo_with(1, || Options {
        per_message_deflate: Some(PerMessageDeflate::default()),
        ..Options::default()
    });
    // Safari 15: its offer has no parameters, and it does not look at those of the answer.
    let mut client = connect(&server, false);
    assert!(client.upgrade_with(WS, "permessage-deflate").is_some());
    assert!(client.text().starts_with('0'));
    let mut deflater = Deflater::new(&Settings::new(&PerMessageDeflate::default(), 15));
    for number in 0..5 {
        let message = format!("4{number} {}", "the same words again and again, and once more ".repeat(50));
        let mut payload = Vec::new();
        deflater.next(message.as_bytes(), &mut payload);
        assert!(number == 0 || payload.len() < 60, "it refers to the messages before: {}", payload.len());
        let mut frame = masked(OpCode::Text, &payload);
        frame[0] |= 0x40;
        client.send(&frame);
        assert_eq!(client.text(), message);
    }
    end(server);
}
