//! What an application sees of an engine: the reference's own test cases that need its API (`server.js`,
//! `middlewares.js`). Those that a client can see are in `tests/clients/engine.test.mjs`.

mod support;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sockring::app::{App, Request};
use sockring::engine::{
    Cookie, Cors, Handlers, Headers, HttpCompression, Message, Next, Options, ReadyState, SendOptions,
    Server, Socket, Transport,
};
use sockring::protocol::eio::Packet;
use sockring::runtime::{Descriptors, Running};
use support::*;

const POLL: &str = "/engine.io/?EIO=4&transport=polling";
const WS: &str = "/engine.io/?EIO=4&transport=websocket";

/// What happened, in order, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(what.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until so many things have happened, and takes them.
    fn wait(&self, count: usize) -> Vec<String> {
        eventually("events", || self.0.lock().unwrap_or_else(PoisonError::into_inner).len() >= count);
        self.take()
    }
}

fn start(workers: usize, setup: impl Fn(&App) + Send + Sync + 'static) -> (Running, SocketAddr) {
    let server = builder(options(Descriptors::Auto, workers)).start(setup).unwrap();
    let address = server.addresses()[0];
    (server, address)
}

fn echo() -> Handlers {
    Handlers::default().message(|socket, message| {
        let _ = match message {
            Message::Text(text) => socket.send_text(text),
            Message::Binary(data) => socket.send_binary(data),
        };
    })
}

/// Opens a polling session; the path of its requests.
fn open(address: SocketAddr, query: &str) -> String {
    let answer = Client::connect(address).get(&format!("{POLL}{query}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    format!("{POLL}&sid={}", sid(answer.text()))
}

fn quick() -> Options {
    Options {
        ping_interval: Duration::from_millis(200),
        ping_timeout: Duration::from_millis(100),
        ..Options::default()
    }
}

/// A request that is not finished: its head and the first bytes of its body.
fn unfinished(path: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n4abc").into_bytes()
}

#[test]
fn refusals_are_told_with_their_context() {
    let _alone = alone();
    let log = Log::default();
    let told = log.clone();
    let (server, address) = start(1, move |app| {
        let told = told.clone();
        let options = Options::default()
            .allow_request(|request: Request| match request.query_param("deny") {
                Some(why) => Err(why.into_owned()),
                None => Ok(()),
            })
            .generate_id(|request| async move {
                match request.query_param("id") {
                    Some(id) if id == "none" => Err("no number left".to_owned()),
                    Some(id) => Ok(id.into_owned()),
                    None => {
                        Ok(format!("{:?}", request.peer().map(|peer| peer.port())).replace(['(', ')'], ""))
                    }
                }
            });
        let handlers = Handlers::default().connection_error(move |error| {
            told.add(format!("{} {} {}", error.code(), error.message(), error.refusal.context()));
        });
        Server::attach(app, options, handlers);
    });
    let websocket = Client::websocket(address, &format!("{WS}&id=ws"));
    let polling = open(address, "&id=poll");
    let refused = |path: &str, status: u16, body: &str, told: &str| {
        let answer = Client::connect(address).get(path);
        assert_eq!((answer.status, answer.text()), (status, body), "{path}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(log.take(), [told], "{path}");
    };
    let bad = r#"{"code":3,"message":"Bad request"}"#;
    refused(
        "/engine.io/?EIO=4&transport=tobi",
        400,
        r#"{"code":0,"message":"Transport unknown"}"#,
        r#"0 Transport unknown {"transport":"tobi"}"#,
    );
    refused(
        &format!("{POLL}&sid=test"),
        400,
        r#"{"code":1,"message":"Session ID unknown"}"#,
        r#"1 Session ID unknown {"sid":"test"}"#,
    );
    refused(
        &format!("{POLL}&sid=ws"),
        400,
        bad,
        r#"3 Bad request {"name":"TRANSPORT_MISMATCH","previousTransport":"websocket","transport":"polling"}"#,
    );
    refused(
        &polling.replace("EIO=4", "EIO=3"),
        400,
        bad,
        r#"3 Bad request {"name":"PROTOCOL_MISMATCH","previousProtocol":4,"protocol":3}"#,
    );
    refused(WS, 400, bad, r#"3 Bad request {"name":"TRANSPORT_HANDSHAKE_ERROR"}"#);
    refused(
        "/engine.io/?EIO=5&transport=polling",
        400,
        r#"{"code":5,"message":"Unsupported protocol version"}"#,
        r#"5 Unsupported protocol version {"protocol":3}"#,
    );
    refused(
        &format!("{POLL}&id=none"),
        400,
        bad,
        r#"3 Bad request {"error":"no number left","name":"ID_GENERATION_ERROR"}"#,
    );
    refused(
        &format!("{POLL}&id=poll"),
        400,
        bad,
        r#"3 Bad request {"error":"the id is in use","name":"ID_GENERATION_ERROR"}"#,
    );
    // allowRequest is asked before the version is looked at.
    refused(
        "/engine.io/?EIO=3&transport=polling&deny=Thou%20shall%20not%20pass",
        403,
        r#"{"code":4,"message":"Thou shall not pass"}"#,
        r#"4 Forbidden {"message":"Thou shall not pass"}"#,
    );
    refused(
        &format!("{POLL}&deny="),
        403,
        r#"{"code":4,"message":"Forbidden"}"#,
        r#"4 Forbidden {"message":null}"#,
    );
    let mut post = Client::connect(address);
    assert_eq!(post.post(POLL, b"4").text(), r#"{"code":2,"message":"Bad handshake method"}"#);
    assert_eq!(log.take(), [r#"2 Bad handshake method {"method":"POST"}"#]);
    // A WebSocket is refused with 400, whatever the reason, in plain words.
    for (path, words, told) in [
        (format!("{WS}&deny=go"), "go", r#"4 Forbidden {"message":"go"}"#),
        (WS.replace("websocket", "tobi"), "Transport unknown", r#"0 Transport unknown {"transport":"tobi"}"#),
        (format!("{WS}&sid=x"), "Session ID unknown", r#"1 Session ID unknown {"sid":"x"}"#),
        (
            WS.replace("=4", "=3"),
            "Unsupported protocol version",
            r#"5 Unsupported protocol version {"protocol":3}"#,
        ),
        (
            format!("{WS}&id=none"),
            "Bad request",
            r#"3 Bad request {"error":"no number left","name":"ID_GENERATION_ERROR"}"#,
        ),
    ] {
        let mut client = Client::connect(address);
        client.send(upgrade_request(&path).as_bytes());
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, answer.text()), (400, words), "{path}");
        assert_eq!(answer.header("content-type"), Some("text/html"));
        assert!(client.ends());
        assert_eq!(log.take(), [told], "{path}");
    }
    drop(websocket);
    end(server);
}

#[test]
fn ids_of_the_application_find_their_session_from_any_worker() {
    let _alone = alone();
    let (server, address) = start(3, |app| {
        let options = Options::default().generate_id(|request: Request| {
            request.query_param("id").map(|id| id.into_owned()).ok_or_else(String::new)
        });
        Server::attach(app, options, echo());
    });
    for round in 0..12 {
        let path = open(address, &format!("&id=my-{round}"));
        assert!(path.ends_with(&format!("my-{round}")));
        assert_eq!(Client::connect(address).post(&path, b"4hello").text(), "ok");
        assert_eq!(Client::connect(address).get(&path).text(), "4hello");
        let mut ws = Client::websocket(address, &path.replace("polling", "websocket"));
        ws.send_text("2probe");
        assert_eq!(ws.text(), "3probe");
        ws.send_text("5");
        ws.send_text("4moved");
        assert_eq!(ws.text(), "4moved");
        let again = Client::connect(address).get(&format!("{POLL}&id=my-{round}"));
        assert_eq!(again.status, 400, "the id is in use");
        drop(ws);
        eventually("the id is free", || {
            Client::connect(address).get(&format!("{POLL}&id=my-{round}")).status == 200
        });
    }
    // An id of the server's own form means nothing here.
    let own = Client::connect(address).get(&format!("{POLL}&sid=AAAAAAAAAAAAAAAAAAAAAA"));
    assert_eq!(own.text(), r#"{"code":1,"message":"Session ID unknown"}"#);
    end(server);
}

#[test]
fn headers_of_the_first_and_of_every_answer() {
    let _alone = alone();
    let log = Log::default();
    let told = log.clone();
    let (server, address) = start(1, move |app| {
        let (first, every) = (told.clone(), told.clone());
        let cookie = Cookie { name: "woot".to_owned(), ..Cookie::default() };
        let engine = Server::attach(app, Options { cookie: Some(cookie), ..Options::default() }, echo());
        engine.on_initial_headers(move |headers, request| {
            first.add(format!("initial {}", request.method()));
            headers.append("Set-Cookie", "mycookie=1");
            headers.append("set-cookie", "mycookie=2");
        });
        engine.on_headers(move |headers: &mut Headers, request: &Request| {
            every.add(format!("headers {}", request.method()));
            headers.set("X-Test", request.query_param("transport").unwrap_or_default().into_owned());
        });
    });
    let mut client = Client::connect(address);
    let hello = client.get(POLL);
    let cookies: Vec<&str> =
        hello.head.lines().filter(|line| line.to_ascii_lowercase().starts_with("set-cookie")).collect();
    let sid = sid(hello.text());
    assert_eq!(
        cookies,
        [
            &format!("Set-Cookie: woot={sid}; Path=/; HttpOnly; SameSite=Lax"),
            "Set-Cookie: mycookie=1",
            "set-cookie: mycookie=2"
        ]
    );
    assert_eq!(hello.header("x-test"), Some("polling"));
    let path = format!("{POLL}&sid={sid}");
    assert_eq!(client.post(&path, b"4a").header("x-test"), Some("polling"));
    let answer = client.get(&path);
    assert_eq!((answer.header("x-test"), answer.header("set-cookie")), (Some("polling"), None));
    assert_eq!(log.take(), ["initial GET", "headers GET", "headers POST", "headers GET"]);
    // An upgrade is no first answer, a WebSocket of its own is.
    for (path, cookies) in [(path.replace("polling", "websocket"), 0), (WS.to_owned(), 2)] {
        let mut ws = Client::connect(address);
        ws.send(upgrade_request(&path).as_bytes());
        let answer = ws.answer().unwrap();
        assert_eq!((answer.status, answer.header("x-test")), (101, Some("websocket")));
        assert_eq!(answer.head.to_ascii_lowercase().matches("set-cookie").count(), cookies);
    }
    assert_eq!(log.take(), ["headers GET", "initial GET", "headers GET"]);
    end(server);
}

#[test]
fn middlewares_pass_answer_and_fail() {
    let _alone = alone();
    let log = Log::default();
    let told = log.clone();
    let (server, address) = start(2, move |app| {
        let (first, second, errors) = (told.clone(), told.clone(), told.clone());
        let options = Options { cors: Some(Cors::any()), ..Options::default() };
        let engine = Server::attach(app, options, echo());
        engine
            .middleware(move |request: Request, mut next: Next| {
                first.add(format!("1 {} {}", request.method(), next.is_upgrade()));
                next.headers().set("X-First", "1");
                next.next();
            })
            .middleware(move |request: Request, next: Next| {
                let second = second.clone();
                async move {
                    second.add("2");
                    match request.query_param("do").as_deref() {
                        Some("answer") => next.answer(503, "not now"),
                        Some("fail") => next.fail("on purpose"),
                        Some("drop") => drop(next),
                        _ => next.next(),
                    }
                }
            })
            .on_connection_error(move |error| errors.add(error.refusal.context().to_string()));
    });
    let mut client = Client::connect(address);
    let hello = client.get(POLL);
    assert_eq!((hello.status, hello.header("x-first")), (200, Some("1")));
    assert_eq!(hello.header("access-control-allow-origin"), Some("*"));
    assert_eq!(log.take(), ["1 GET false", "2"]);
    // A request that comes to the wrong worker is seen once.
    let path = format!("{POLL}&sid={}", sid(hello.text()));
    for _ in 0..8 {
        assert_eq!(Client::connect(address).post(&path, b"4x").header("x-first"), Some("1"));
        assert_eq!(log.take(), ["1 POST false", "2"]);
    }
    let answer = client.get(&format!("{POLL}&do=answer"));
    assert_eq!((answer.status, answer.text(), answer.header("x-first")), (503, "not now", Some("1")));
    log.take();
    for (how, why) in [("fail", "on purpose"), ("drop", "a middleware has dropped the request")] {
        let answer = client.get(&format!("{POLL}&do={how}"));
        assert_eq!((answer.status, answer.text()), (400, r#"{"code":3,"message":"Bad request"}"#));
        assert_eq!(log.take().pop(), Some(format!(r#"{{"error":"{why}","name":"MIDDLEWARE_FAILURE"}}"#)));
    }
    // CORS answers preflights itself.
    client.send(format!("OPTIONS {POLL} HTTP/1.1\r\nHost: test\r\nOrigin: http://a\r\n\r\n").as_bytes());
    assert_eq!(client.answer().unwrap().status, 204);
    assert!(log.take().is_empty());
    for (query, status, words) in
        [("", 101, ""), ("&do=answer", 503, "not now"), ("&do=fail", 400, "Bad request")]
    {
        let mut ws = Client::connect(address);
        ws.send(upgrade_request(&format!("{WS}{query}")).as_bytes());
        let answer = ws.answer().unwrap();
        assert_eq!((answer.status, answer.text(), answer.header("x-first")), (status, words, Some("1")));
    }
    assert_eq!(log.take()[..2], ["1 GET true", "2"]);
    end(server);
}

#[test]
fn answers_that_nobody_has_written_have_the_headers_of_cors() {
    let _alone = alone();
    let log = Log::default();
    let told = log.clone();
    let (server, address) = start(1, move |app| {
        let told = told.clone();
        let cors = Some(Cors::list(["http://a"]).credentials(true));
        let options = Options { cors, max_http_buffer_size: 1000, ..Options::default() };
        let engine = Server::attach(app, options, echo());
        // What is there by then can be taken away.
        engine.on_headers(move |headers, _| {
            told.add(headers.get("vary").unwrap_or("none"));
            headers.remove("Vary");
        });
    });
    let allowed = |answer: &Answer| {
        let of = |name| answer.header(name).map(str::to_owned);
        (of("access-control-allow-origin"), of("access-control-allow-credentials"), of("vary"))
    };
    let yes =
        |vary: Option<&str>| (Some("http://a".to_owned()), Some("true".to_owned()), vary.map(str::to_owned));
    let mut ws = Client::connect(address);
    ws.send(upgrade_request(WS).replace("Host:", "Origin: http://a\r\nHost:").as_bytes());
    let answer = ws.answer().unwrap();
    assert_eq!((answer.status, allowed(&answer)), (101, yes(None)));
    assert_eq!(log.take(), ["Origin"]);
    let path = open(address, "");
    let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\n");
    let mut large = Client::connect(address);
    large.send(format!("{head}Content-Length: 1001\r\n\r\n").as_bytes());
    let answer = large.answer().unwrap();
    assert_eq!((answer.status, allowed(&answer)), (413, yes(Some("Origin"))));
    let mut large = Client::connect(address);
    large.send(format!("{head}Transfer-Encoding: chunked\r\n\r\nffff\r\n").as_bytes());
    let answer = large.answer().unwrap();
    assert_eq!((answer.status, allowed(&answer)), (413, yes(Some("Origin"))));
    let mut first = Client::connect(address);
    first.send(&unfinished(&path));
    std::thread::sleep(Duration::from_millis(50));
    let mut second = Client::connect(address);
    second.send(format!("{head}Content-Length: 9\r\n\r\n4").as_bytes());
    let answer = second.answer().unwrap();
    assert_eq!((answer.status, allowed(&answer)), (400, yes(Some("Origin"))));
    // Elsewhere than below the engine's path nobody has asked for them.
    let mut other = Client::connect(address);
    other.send(b"POST /x HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\nContent-Length: 1000001\r\n\r\n");
    let answer = other.answer().unwrap();
    assert_eq!((answer.status, allowed(&answer)), (413, (None, None, None)));
    end(server);
}

#[test]
fn a_packet_comes_with_the_handshake() {
    let _alone = alone();
    let (server, address) = start(1, |app| {
        Server::attach(app, Options::default().initial_text("faster!"), echo());
        let options = Options { path: "/b".into(), add_trailing_slash: false, ..Options::default() };
        Server::attach(app, options.initial_binary(&[1, 2]), echo());
    });
    let hello = Client::connect(address).get(POLL);
    assert!(hello.text().ends_with("}\x1e4faster!"), "{}", hello.text());
    let mut ws = Client::websocket(address, WS);
    assert!(ws.text().starts_with('0'));
    assert_eq!(ws.text(), "4faster!");
    // Without its slash the path is a prefix of itself.
    for path in ["/b?EIO=4&transport=polling", "/b/?EIO=4&transport=polling", "/bc?EIO=4&transport=polling"] {
        let hello = Client::connect(address).get(path);
        assert!(hello.text().ends_with("}\x1ebAQI="), "{path}: {}", hello.text());
    }
    assert_eq!(Client::connect(address).get("/engine.io?EIO=4&transport=polling").status, 404);
    end(server);
}

#[test]
fn transports_and_upgrades_are_as_the_options_say() {
    let _alone = alone();
    let (server, address) = start(1, |app| {
        let with = |path: &str, transports: &[Transport], allow_upgrades| {
            let transports = transports.to_vec();
            let options = Options { path: path.into(), transports, allow_upgrades, ..Options::default() };
            let engine = Server::attach(app, options, echo());
            assert_eq!(
                (engine.options().allow_upgrades, engine.path()),
                (allow_upgrades, &*format!("{path}/"))
            );
        };
        with("/polling", &[Transport::Polling], true);
        with("/websocket", &[Transport::WebSocket], true);
        with("/either", &[Transport::WebSocket, Transport::Polling], false);
    });
    let refused = |path: &str| {
        let mut client = Client::connect(address);
        client.send(upgrade_request(path).as_bytes());
        let answer = client.answer().unwrap();
        (answer.status, answer.text().to_owned())
    };
    let path = |engine: &str, transport: &str| format!("/{engine}/?EIO=4&transport={transport}");
    let unknown = (400, "Transport unknown".to_owned());
    for engine in ["polling", "either"] {
        let open = Client::connect(address).get(&path(engine, "polling"));
        assert!(open.text().contains(r#""upgrades":[]"#), "{engine}: {}", open.text());
        let upgrade = refused(&format!("{}&sid={}", path(engine, "websocket"), sid(open.text())));
        if engine == "polling" {
            assert_eq!(upgrade, unknown);
        } else {
            assert_eq!(upgrade.0, 400, "{upgrade:?}");
        }
    }
    assert_eq!(refused(&path("polling", "websocket")), unknown);
    let poll = Client::connect(address).get(&path("websocket", "polling"));
    assert_eq!((poll.status, poll.text()), (400, r#"{"code":0,"message":"Transport unknown"}"#));
    for engine in ["websocket", "either"] {
        let mut ws = Client::websocket(address, &path(engine, "websocket"));
        assert!(ws.text().contains(r#""upgrades":[]"#));
        ws.send_text("4still here");
        assert_eq!(ws.text(), "4still here");
    }
    end(server);
}

/// A server that logs why its sessions end.
fn watched(options: fn() -> Options) -> (Running, SocketAddr, Log) {
    let log = Log::default();
    let told = log.clone();
    let (server, address) = start(1, move |app| {
        let told = told.clone();
        let handlers = Handlers::default().message(|socket, message| match message {
            Message::Text("close") => socket.close(),
            Message::Text("discard") => {
                let _ = socket.send_text("never seen");
                socket.discard();
                assert_eq!(socket.ready_state(), ReadyState::Closed);
            }
            Message::Text("say and close") => {
                let _ = socket.send_text("goodbye");
                assert_eq!((socket.buffered() > 0, socket.ready_state()), (true, ReadyState::Open));
                socket.close();
            }
            Message::Text("panic") => panic!("on purpose"),
            _ => {}
        });
        let engine = Server::attach(app, options(), handlers);
        engine.on_close(move |_, reason, details| told.add(format!("{}: {details}", reason.as_str())));
    });
    (server, address, log)
}

#[test]
fn sessions_end_for_the_references_reasons() {
    let _alone = alone();
    let (server, address, log) = watched(Options::default);
    let ends = |what: &str| assert_eq!(log.wait(1), [what]);
    let mut client = Client::connect(address);

    let path = open(address, "");
    client.send(get(&path).as_bytes());
    assert_eq!(Client::connect(address).get(&path).status, 400);
    assert_eq!(client.answer().unwrap().text(), "1");
    ends("transport error: overlap from client");

    let path = open(address, "");
    let mut poll = Client::connect(address);
    poll.send(get(&path).as_bytes());
    std::thread::sleep(Duration::from_millis(50));
    poll.reset();
    ends("transport error: poll connection closed prematurely");

    let path = open(address, "");
    let mut post = Client::connect(address);
    post.send(&unfinished(&path));
    std::thread::sleep(Duration::from_millis(50));
    post.reset();
    ends("transport error: data request connection closed prematurely");

    // The second is answered, the first is cut off.
    for complete in [true, false] {
        let path = open(address, "");
        let (mut first, mut second) = (Client::connect(address), Client::connect(address));
        first.send(&unfinished(&path));
        std::thread::sleep(Duration::from_millis(50));
        second.send(&if complete { post_of(&path) } else { unfinished(&path) });
        assert_eq!(second.answer().unwrap().status, 400);
        ends("transport error: data request overlap from client");
        assert!(first.ends());
    }

    // A body that is too large ends neither the session nor, with its rest, another request.
    let path = open(address, "");
    let mut large = Client::connect(address);
    large
        .send(format!("POST {path} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes());
    std::thread::sleep(Duration::from_millis(30));
    large.send(b"fffffff\r\n");
    assert_eq!(large.answer().unwrap().status, 413);
    assert_eq!(client.post(&path, b"4x").text(), "ok");
    assert_eq!(client.post(&path, b"2").text(), "ok");
    ends("transport error: invalid heartbeat direction");

    let path = open(address, "");
    let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/octet-stream\r\n");
    client.send(format!("{head}Content-Length: 2\r\n\r\n4a").as_bytes());
    assert_eq!(client.answer().unwrap().status, 400);
    ends("transport error: invalid content");

    assert_eq!(client.post(&open(address, ""), b"9").text(), "ok");
    ends("parse error: the client sent a packet of unknown type");
    assert_eq!(client.post(&open(address, ""), b"1").text(), "ok");
    ends("transport close: ");
    assert_eq!(client.post(&open(address, ""), b"4close").text(), "ok");
    ends("forced close: ");
    // A handler that panics ends its session, and the connection goes on.
    assert_eq!(client.post(&open(address, ""), b"4panic").text(), "ok");
    ends("transport error: a handler panicked");
    assert_eq!(client.get(POLL).status, 200);

    for (say, reason) in
        [("9", "parse error: the client sent a packet of unknown type"), ("4close", "forced close: ")]
    {
        let mut ws = Client::websocket(address, WS);
        ws.text();
        ws.send_text(say);
        ends(reason);
        assert!(ws.ends());
    }
    Client::websocket(address, WS).reset();
    ends("transport close: ");
    end(server);
}

fn post_of(path: &str) -> Vec<u8> {
    post(path, b"4x")
}

#[test]
fn what_waits_leaves_before_a_close_and_is_dropped_by_a_discard() {
    let _alone = alone();
    let (server, address, log) = watched(Options::default);
    let mut client = Client::connect(address);
    let path = open(address, "");
    assert_eq!(client.post(&path, b"4say and close").text(), "ok");
    assert_eq!(log.wait(1), ["forced close: "]);
    assert_eq!(client.get(&path).text(), "4goodbye");
    assert_eq!(client.get(&path).text(), "6\x1e1");
    assert_eq!(client.get(&path).text(), r#"{"code":1,"message":"Session ID unknown"}"#);
    // A POST to a session that has been closed is taken, as in the reference, and read by nobody.
    let path = open(address, "");
    assert_eq!(client.post(&path, b"4close").text(), "ok");
    assert_eq!(client.post(&path, b"4x").text(), "ok");

    let path = open(address, "");
    assert_eq!(client.post(&path, b"4discard").text(), "ok");
    assert_eq!(client.get(&path).text(), r#"{"code":1,"message":"Session ID unknown"}"#);
    // A waiting poll is told.
    let path = open(address, "");
    let mut poll = Client::connect(address);
    poll.send(get(&path).as_bytes());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(client.post(&path, b"4discard").text(), "ok");
    assert_eq!(poll.answer().unwrap().text(), "1");

    let mut ws = Client::websocket(address, WS);
    ws.text();
    ws.send_text("4say and close");
    assert_eq!(ws.text(), "4goodbye");
    assert_eq!(ws.frame().unwrap().opcode, 8);
    let mut ws = Client::websocket(address, WS);
    ws.text();
    ws.send_text("4discard");
    assert_eq!(ws.frame().unwrap().opcode, 8);
    end(server);
}

#[test]
fn silent_sessions_end_with_a_ping_timeout() {
    let _alone = alone();
    let (server, address, log) = watched(quick);
    let mut ws = Client::websocket(address, WS);
    open(address, "");
    ws.text();
    assert_eq!(ws.text(), "2");
    assert_eq!(log.wait(2), ["ping timeout: ", "ping timeout: "]);
    end(server);
}

#[test]
fn events_of_a_session() {
    let _alone = alone();
    let log = Log::default();
    let told = log.clone();
    let (server, address) = start(1, move |app| {
        let on = || told.clone();
        let name = |packet: &Packet<'_>| match packet {
            Packet::Text { kind, data } if data.len() < 20 => format!("{kind:?} {data}"),
            Packet::Text { kind, .. } => format!("{kind:?} .."),
            Packet::Binary(data) => format!("Binary {data:?}"),
        };
        // The first ping comes when all else is done, however busy the machine is.
        let (ping_interval, ping_timeout) = (Duration::from_secs(2), Duration::from_secs(6));
        let options = Options { ping_interval, ping_timeout, ..Options::default() };
        let engine = Server::attach(app, options, echo());
        let (open, probe, moved, beat, came, made) = (on(), on(), on(), on(), on(), on());
        let (flush, drain) = (on(), on());
        engine
            .on_connection(move |_| open.add("connection"))
            .on_upgrading(move |_| probe.add("upgrading"))
            .on_upgrade(move |socket| moved.add(format!("upgrade {:?}", socket.transport())))
            .on_heartbeat(move |_| beat.add("heartbeat"))
            .on_packet(move |_, packet| came.add(format!("packet {}", name(packet))))
            .on_packet_create(move |_, packet| made.add(format!("create {}", name(packet))))
            .on_flush(move |_| flush.add("flush"))
            .on_drain(move |_| drain.add("drain"));
    });
    let path = open(address, "");
    assert_eq!(log.take(), ["create Open ..", "flush", "drain", "connection"]);
    let mut client = Client::connect(address);
    client.post(&path, b"4a\x1ebAQI=");
    assert_eq!(
        log.take(),
        ["packet Message a", "create Message a", "packet Binary [1, 2]", "create Binary [1, 2]"]
    );
    client.get(&path);
    assert_eq!(log.take(), ["flush", "drain"]);
    let mut ws = Client::websocket(address, &path.replace("polling", "websocket"));
    ws.send_text("2probe");
    ws.text();
    ws.send_text("5");
    ws.send_text("4b");
    assert_eq!(ws.text(), "4b");
    eventually("drained", || log.0.lock().unwrap().contains(&"drain".to_owned()));
    let mut seen = log.take();
    // What was sent while the session moved drains twice: where it waited, and at the end of the turn.
    seen.dedup();
    assert_eq!(
        seen,
        ["upgrading", "upgrade Some(WebSocket)", "packet Message b", "create Message b", "flush", "drain"]
    );
    assert_eq!(ws.text(), "2");
    ws.send_text("3");
    let mut seen = log.wait(5);
    // When the kernel has taken the ping, and when the pong comes, depends on nobody but them.
    let drained = seen.iter().position(|what| what == "drain").unwrap();
    seen.remove(drained);
    assert_eq!(seen, ["create Ping ", "flush", "packet Pong ", "heartbeat"]);
    end(server);
}

#[test]
fn what_a_session_tells_of_itself() {
    let _alone = alone();
    let log = Log::default();
    let told = log.clone();
    let (server, address) = start(3, move |app| {
        let told = told.clone();
        let counting: Rc<std::cell::OnceCell<Server>> = Rc::default();
        let counted = counting.clone();
        let tell = move |socket: Socket, message: Message<'_>| {
            let posted = socket.data_request();
            let header = posted.as_ref().and_then(|request| request.header("x-mine")).unwrap_or("none");
            told.add(format!(
                "{message:?} {header} {:?} {:?} {:?} {} {}",
                socket.protocol(),
                socket.transport().map(Transport::as_str),
                socket.ready_state(),
                socket.remote_address().is_some_and(|address| address.ip().is_loopback()),
                counted.get().map_or(0, Server::clients_count),
            ));
        };
        let engine = Server::attach(app, Options::default(), Handlers::default().message(tell));
        let _ = counting.set(engine);
    });
    let paths: Vec<String> = (0..6).map(|_| open(address, "")).collect();
    let mut client = Client::connect(address);
    let head =
        format!("POST {} HTTP/1.1\r\nHost: test\r\nX-Mine: yes\r\nContent-Length: 2\r\n\r\n4a", paths[0]);
    client.send(head.as_bytes());
    assert_eq!(client.answer().unwrap().text(), "ok");
    assert_eq!(log.take(), [r#"Text("a") yes Some(4) Some("polling") Open true 6"#]);
    let mut ws = Client::websocket(address, WS);
    ws.text();
    client.post(&paths[1], b"1");
    ws.send_text("4b");
    assert_eq!(log.wait(1), [r#"Text("b") none Some(4) Some("websocket") Open true 6"#]);
    end(server);
}

#[test]
fn what_is_compressed_and_how_much_a_client_reads() {
    let _alone = alone();
    let (server, address) = start(1, |app| {
        let handlers = || {
            Handlers::default().message(|socket, message| {
                let text = "long ".repeat(400);
                match message {
                    Message::Text("plain") => {
                        let _ = socket.send_with(Message::Text(&text), SendOptions { compress: false });
                    }
                    Message::Text("many") => {
                        for i in 0..40 {
                            let _ = socket.send_text(&i.to_string());
                        }
                    }
                    _ => {
                        let _ = socket.send_text(&text);
                    }
                }
            })
        };
        Server::attach(app, Options::default(), handlers());
        let options = Options { path: "/off".into(), http_compression: None, ..Options::default() };
        Server::attach(app, options, handlers());
        let http_compression = Some(HttpCompression { threshold: 10_000 });
        let options = Options { path: "/later".into(), http_compression, ..Options::default() };
        Server::attach(app, options, handlers());
    });
    let mut client = Client::connect(address);
    let mut poll = |path: &str, say: &str, more: &str| {
        client.post(path, say.as_bytes());
        client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n{more}\r\n\r\n").as_bytes());
        let answer = client.answer().unwrap();
        (answer.header("content-encoding").map(str::to_owned), answer.body)
    };
    let gzip = "Accept-Encoding: gzip";
    for (prefix, say, coded) in [
        ("/engine.io", "4", true),
        ("/engine.io", "4plain", false),
        ("/engine.io", "4plain\x1e4", true),
        ("/off", "4", false),
        ("/later", "4", false),
    ] {
        let path = POLL.replace("/engine.io", prefix);
        let path = format!("{path}&sid={}", sid(Client::connect(address).get(&path).text()));
        let (coding, body) = poll(&path, say, gzip);
        assert_eq!(
            (coding.as_deref(), body.len() < 1000),
            (coded.then_some("gzip"), coded),
            "{prefix} {say}"
        );
    }
    // python-engineio gives up on a payload of more than 16 packets; others take all at once.
    for (agent, sizes) in [
        ("python-requests/2.32.0", vec![16, 16, 8]),
        ("Python/3.13 aiohttp/3.12.0", vec![16, 16, 8]),
        ("Mozilla/5.0", vec![40]),
    ] {
        let path = open(address, "");
        client.post(&path, b"4many");
        let mut seen = Vec::new();
        for size in sizes {
            client
                .send(format!("GET {path} HTTP/1.1\r\nHost: test\r\nUser-Agent: {agent}\r\n\r\n").as_bytes());
            let answer = client.answer().unwrap();
            let packets: Vec<String> = answer.text().split('\x1e').map(str::to_owned).collect();
            assert_eq!(packets.len(), size, "{agent}");
            seen.extend(packets);
        }
        assert_eq!(seen, (0..40).map(|i| format!("4{i}")).collect::<Vec<_>>());
    }
    end(server);
}
