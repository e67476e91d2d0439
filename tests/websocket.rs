//! WebSockets of an App as a client sees them: the opening handshake, which the Autobahn test suite does not try,
//! subprotocols, permessage-deflate, pings, limits and closing.

mod support;

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sockring::app::{App, Behavior, Closed, Message, PerMessageDeflate, Request, Upgrade, WebSocket};
use sockring::fanout::{Delivery, Frame};
use sockring::protocol::ws::deflate::{Deflater, Settings};
use sockring::protocol::ws::frame::{OpCode, close_payload};
use sockring::runtime::{Descriptors, Running};
use support::{Answer, Client, end, eventually, masked};

const HANDSHAKE: &str = "GET /echo HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const NO_CONTEXT: &str = "permessage-deflate; server_no_context_takeover";

fn start(workers: usize, setup: impl Fn(&App) + Send + Sync + 'static) -> Running {
    support::builder(support::options(Descriptors::Auto, workers)).start(setup).unwrap()
}

fn echo() -> Behavior<()> {
    Behavior::default().message(|ws, message| {
        let _ = match message {
            Message::Text(text) => ws.send_text(text),
            Message::Binary(data) => ws.send_binary(data),
        };
    })
}

fn with_context() -> PerMessageDeflate {
    PerMessageDeflate {
        server_no_context_takeover: false,
        client_no_context_takeover: false,
        ..PerMessageDeflate::default()
    }
}

fn ask(server: &Running, request: &str) -> Answer {
    let mut client = Client::connect(server.addresses()[0]);
    client.send(request.as_bytes());
    client.answer().unwrap()
}

/// A text compressible to a tenth or so, different for each number.
fn long_text(number: usize) -> String {
    format!("{number}: ") + &"the quick brown fox jumps over the lazy dog, ".repeat(100)
}

#[test]
fn the_opening_handshake_is_held_to_the_letter() {
    let _alone = support::alone();
    let server = start(1, |app| {
        app.ws("/echo", echo());
    });
    let good = [
        ("", ""),
        ("Upgrade: websocket", "UPGRADE: WebSocket"),
        ("Upgrade: websocket", "upgrade: h2c, websocket"),
        ("Connection: Upgrade", "Connection: keep-alive, upgrade"),
        ("Connection: Upgrade", "connection: keep-alive\r\nConnection: UPGRADE"),
        ("Host: test", "Host: test\r\nOrigin: null"),
    ];
    for (from, to) in good {
        let answer = ask(&server, &HANDSHAKE.replacen(from, to, 1));
        assert_eq!(answer.status, 101, "{to}: {}", answer.head);
        assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(answer.header("upgrade"), Some("websocket"));
        assert_eq!(answer.header("connection"), Some("Upgrade"));
        assert_eq!(answer.header("sec-websocket-extensions"), None);
        assert_eq!(answer.header("sec-websocket-protocol"), None);
    }
    let bad = [
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "", 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=", 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZTEyMzQ1Njc4", 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ", 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "====dGhlIHNhbXBsZSBub25j", 400),
        ("Sec-WebSocket-Version: 13\r\n", "", 426),
        ("Version: 13", "Version: 8", 426),
        ("Version: 13", "Version: 14", 426),
        ("Version: 13", "Version: 13, 8", 426),
        // Not one for a WebSocket, so it is an HTTP request to a path that has none.
        ("Upgrade: websocket\r\n", "", 426),
        ("Upgrade: websocket", "Upgrade: h2c", 426),
        ("Connection: Upgrade", "Connection: keep-alive", 426),
        ("GET ", "POST ", 426),
        ("GET ", "PUT ", 426),
        ("HTTP/1.1", "HTTP/1.0", 426),
        ("Host: test\r\n", "", 400),
    ];
    for (from, to, status) in bad {
        assert!(HANDSHAKE.contains(from));
        let answer = ask(&server, &HANDSHAKE.replacen(from, to, 1));
        assert_eq!(answer.status, status, "{from} -> {to}: {}", answer.head);
        if from.contains("Version") {
            assert_eq!(answer.header("sec-websocket-version"), Some("13"));
        }
    }
    // Whoever is refused may ask again on the same connection.
    let mut client = Client::connect(server.addresses()[0]);
    client.send(HANDSHAKE.replacen("Version: 13", "Version: 7", 1).as_bytes());
    assert_eq!(client.answer().unwrap().status, 426);
    client.send(HANDSHAKE.as_bytes());
    assert_eq!(client.answer().unwrap().status, 101);
    client.send_text("hello");
    assert_eq!(client.text(), "hello");
    end(server);
}

#[test]
fn subprotocols_are_chosen_by_the_clients_preference_or_by_hand() {
    let _alone = support::alone();
    let server = start(1, |app| {
        app.ws("/echo", echo().protocols(["chat.v1", "chat.v2"]));
        app.ws(
            "/manual",
            Behavior::new(|request: Request, upgrade: Upgrade<()>| {
                let last = request.header("sec-websocket-protocol").and_then(|all| all.rsplit(", ").next());
                let last = last.unwrap_or_default().to_owned();
                upgrade.protocol(last).accept(());
            })
            .protocols(["first"]),
        );
    });
    let chosen = |path: &str, offer: &str| {
        let with = format!("Sec-WebSocket-Protocol: {offer}\r\n\r\n");
        let request = HANDSHAKE.replacen("\r\n\r\n", &format!("\r\n{with}"), 1).replacen("/echo", path, 1);
        let answer = ask(&server, &request);
        assert_eq!(answer.status, 101, "{}", answer.head);
        answer.header("sec-websocket-protocol").map(str::to_owned)
    };
    assert_eq!(chosen("/echo", "chat.v2, chat.v1").as_deref(), Some("chat.v2"));
    assert_eq!(chosen("/echo", "mqtt,chat.v1").as_deref(), Some("chat.v1"));
    assert_eq!(chosen("/echo", "x\r\nSec-WebSocket-Protocol: chat.v2").as_deref(), Some("chat.v2"));
    assert_eq!(chosen("/echo", "mqtt"), None);
    assert_eq!(chosen("/echo", "Chat.V1"), None);
    assert_eq!(chosen("/manual", "first, second").as_deref(), Some("second"));
    end(server);
}

#[test]
fn offers_of_compression_are_answered_as_rfc_7692_says() {
    let _alone = support::alone();
    let server = start(1, |app| {
        app.ws("/echo", echo().per_message_deflate(PerMessageDeflate::default()));
        app.ws("/never", echo());
    });
    let answer = |path: &str, offer: &str| {
        let with = format!("\r\nSec-WebSocket-Extensions: {offer}\r\n\r\n");
        ask(&server, &HANDSHAKE.replacen("\r\n\r\n", &with, 1).replacen("/echo", path, 1))
    };
    for (offer, expected) in [
        ("permessage-deflate; client_max_window_bits", Some("")),
        ("permessage-deflate; server_max_window_bits=10", Some("; server_max_window_bits=10")),
        ("permessage-deflate; server_max_window_bits=\"9\"", Some("; server_max_window_bits=9")),
        ("permessage-deflate; server_max_window_bits=17", None),
        ("permessage-deflate; server_max_window_bits=17, permessage-deflate", Some("")),
        ("permessage-deflate; nonsense\r\nSec-WebSocket-Extensions: permessage-deflate", Some("")),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
        ("x-webkit-deflate-frame", None),
    ] {
        let agreed = answer("/echo", offer);
        let agreed = agreed.header("sec-websocket-extensions");
        assert_eq!(agreed, expected.map(|more| format!("{NO_CONTEXT}{more}")).as_deref(), "{offer}");
    }
    for malformed in ["permessage-deflate;", "permessage-deflate; a=\"", "=", "permessage-deflate; ;"] {
        assert_eq!(answer("/echo", malformed).status, 400, "{malformed}");
        // Where nothing can be agreed nobody looks.
        assert_eq!(answer("/never", malformed).status, 101, "{malformed}");
    }
    assert_eq!(answer("/never", "permessage-deflate").header("sec-websocket-extensions"), None);
    end(server);
}

/// A compressed message of the client.
fn compressed(op: OpCode, message: &[u8]) -> Vec<u8> {
    let settings = Settings::new(&PerMessageDeflate::default(), 15);
    let mut payload = Vec::new();
    Deflater::new(&settings).next(message, &mut payload);
    let mut frame = masked(op, &payload);
    frame[0] |= 0x40;
    frame
}

#[test]
fn hostile_frames_are_closed_with_the_right_code() {
    let _alone = support::alone();
    let server = start(1, |app| {
        let options = PerMessageDeflate { client_no_context_takeover: true, ..PerMessageDeflate::default() };
        let shared = echo().per_message_deflate(options);
        app.ws("/shared", shared.max_message_bytes(100_000));
        app.ws("/context", echo().per_message_deflate(with_context()).max_message_bytes(100_000));
        app.ws("/plain", echo());
    });
    let address = server.addresses()[0];
    let rsv1 = |op| {
        let mut frame = masked(op, b"");
        frame[0] |= 0x40;
        frame
    };
    let mut bomb = Vec::new();
    Deflater::new(&Settings::new(&PerMessageDeflate::default(), 15)).next(&vec![0; 80_000_000], &mut bomb);
    assert!(bomb.len() < 100_000);
    let mut frame = masked(OpCode::Binary, &bomb);
    frame[0] |= 0x40;
    let mut cases = vec![
        (frame, 1009),
        (compressed(OpCode::Binary, &[7; 100_001]), 1009),
        (compressed(OpCode::Text, b"a\xff"), 1007),
        (rsv1(OpCode::Ping), 1002),
        (rsv1(OpCode::Pong), 1002),
        (rsv1(OpCode::Close), 1002),
        (rsv1(OpCode::Continuation), 1002),
    ];
    let mut corrupt = masked(OpCode::Text, b"\xff\xff\xff\xff");
    corrupt[0] |= 0x40;
    cases.push((corrupt, 1007));
    for (frame, code) in &cases {
        for path in ["/shared", "/context"] {
            let mut client = Client::connect(address);
            assert!(client.upgrade_with(path, "permessage-deflate").is_some());
            client.send(frame);
            let close = client.frame().unwrap();
            assert_eq!((close.opcode, &close.payload[..2]), (8, &u16::to_be_bytes(*code)[..]), "{path}");
            assert!(client.ends());
        }
    }
    let mut client = Client::websocket(address, "/plain");
    client.send(&compressed(OpCode::Text, b"not agreed"));
    assert_eq!(client.frame().unwrap().payload[..2], 1002u16.to_be_bytes());
    // The shared inflater has survived all that.
    for path in ["/shared", "/context"] {
        let mut client = Client::connect(address);
        client.upgrade_with(path, "permessage-deflate");
        client.send(&compressed(OpCode::Text, long_text(1).as_bytes()));
        assert_eq!(client.text(), long_text(1));
        client.send_text("a plain one is fine, too");
        assert_eq!(client.text(), "a plain one is fine, too");
        client.send(&compressed(OpCode::Binary, &[7; 100_000]));
        assert_eq!(client.frame().unwrap().payload, [7; 100_000]);
    }
    end(server);
}

#[test]
fn a_topic_is_compressed_once_for_all_cores() {
    let _alone = support::alone();
    let server = start(3, |app| {
        let behavior = |options| {
            Behavior::<()>::default()
                .per_message_deflate(options)
                .open(|ws| {
                    ws.subscribe("news");
                    let _ = ws.send_text("subscribed");
                })
                .message(|ws, message| {
                    if let Message::Text(text) = message {
                        let _ = ws.publish_text("news", text);
                    }
                })
        };
        app.ws("/shared", behavior(PerMessageDeflate::default()));
        app.ws("/context", behavior(with_context()));
        app.ws("/publish", behavior(PerMessageDeflate::default()).open(|_| ()));
    });
    let address = server.addresses()[0];
    let mut members: Vec<Client> = (0..40)
        .map(|i| {
            let mut client = Client::connect(address);
            match i % 4 {
                0 => client.upgrade("/shared"),
                1 => assert!(client.upgrade_with("/shared", "permessage-deflate").is_some()),
                2 => {
                    let offer = "permessage-deflate; server_max_window_bits=9";
                    assert!(client.upgrade_with("/shared", offer).is_some_and(|it| it.ends_with("=9")));
                }
                _ => {
                    let agreed = client.upgrade_with("/context", "permessage-deflate");
                    assert_eq!(agreed.as_deref(), Some("permessage-deflate"));
                }
            }
            assert_eq!(client.text(), "subscribed");
            client
        })
        .collect();
    let mut publisher = Client::websocket(address, "/publish");
    for number in 0..30 {
        publisher.send_text(&long_text(number));
        publisher.send_text(&format!("short {number}"));
    }
    for client in &mut members {
        for number in 0..30 {
            assert_eq!(client.text(), long_text(number));
            assert_eq!(client.text(), format!("short {number}"));
        }
    }
    end(server);
}

#[test]
fn a_slow_reader_gets_compressed_messages_whole_and_in_order() {
    let _alone = support::alone();
    const COUNT: usize = 4000;
    let server = start(1, |app| {
        for (path, options) in [("/shared", PerMessageDeflate::default()), ("/context", with_context())] {
            let behavior = Behavior::<()>::default().per_message_deflate(options).message(|ws, _| {
                for number in 0..COUNT {
                    assert_ne!(ws.send_text(&noisy(number)), Delivery::Dropped);
                }
            });
            app.ws(path, behavior.max_backpressure(64 << 20));
        }
    });
    for path in ["/shared", "/context"] {
        let mut client = Client::with_receive_buffer(server.addresses()[0], 8192);
        client.upgrade_with(path, "permessage-deflate");
        client.send_text("go");
        std::thread::sleep(Duration::from_millis(300));
        for number in 0..COUNT {
            assert_eq!(client.text(), noisy(number));
        }
    }
    end(server);
}

/// A text that shrinks by half only.
fn noisy(number: usize) -> String {
    let mut state = number as u64 + 1;
    (0..300)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            format!("{:08x}", state >> 32)
        })
        .collect()
}

#[test]
fn pings_and_pongs_are_told_and_not_more_than_sixty_wait() {
    let _alone = support::alone();
    let server = start(1, |app| {
        let behavior = echo()
            .ping(|ws, payload| {
                let _ = ws.send_text(&format!("ping of {}", payload.len()));
            })
            .pong(|ws, payload| {
                let _ = ws.send_text(&format!("pong {}", String::from_utf8_lossy(payload)));
            })
            .open(|ws| {
                assert_eq!(ws.ping(&[0; 126]), Delivery::Dropped);
                assert_eq!(ws.ping(b"there?"), Delivery::Sent);
            });
        app.ws("/told", behavior);
        app.ws("/echo", echo());
        app.ws("/lax", echo().max_pending_pongs(0));
    });
    let address = server.addresses()[0];
    let mut client = Client::websocket(address, "/told");
    assert_eq!(client.frame().unwrap().payload, b"there?");
    client.send(&masked(OpCode::Pong, b"here"));
    assert_eq!(client.text(), "pong here");
    client.send(&masked(OpCode::Ping, b"abc"));
    let pong = client.frame().unwrap();
    assert_eq!((pong.opcode, pong.payload.as_slice()), (10, &b"abc"[..]));
    assert_eq!(client.text(), "ping of 3");

    let pings = |count: usize| masked(OpCode::Ping, b"?").repeat(count);
    let mut client = Client::websocket(address, "/echo");
    // In one read of the server: no pong can leave between them, and the client reads all of them.
    for count in [60, 61, 500] {
        client.send(&pings(count));
        for _ in 0..count {
            assert_eq!(client.frame().unwrap().opcode, 10);
        }
    }
    // A client that does not read what it is owed gets no pongs on top.
    let mut client = Client::with_receive_buffer(address, 4096);
    client.upgrade("/echo");
    let large = masked(OpCode::Binary, &[0; 900_000]);
    client.send(&large);
    support::eventually("something waits", || server.metrics().total("slow_connections") == 1);
    client.send(&pings(61));
    assert!(client.ends());
    let mut client = Client::websocket(address, "/lax");
    client.send(&pings(500));
    for _ in 0..500 {
        assert_eq!(client.frame().unwrap().opcode, 10);
    }
    end(server);
}

static DRAINED: AtomicUsize = AtomicUsize::new(0);

#[test]
fn a_route_has_a_limit_of_its_own_that_drops_or_closes() {
    let _alone = support::alone();
    let fill = |ws: WebSocket<Cell<u32>>, _: Message<'_>| {
        let frame = Frame::binary(&[7; 50_000]);
        let mut sent = 0;
        while ws.send(&frame) != Delivery::Dropped {
            sent += 1;
            assert!(sent < 1000, "the limit does not hold");
        }
        assert!(ws.buffered_amount() > 200_000);
        if let Some(data) = ws.data() {
            data.set(sent);
        }
    };
    let server = start(1, move |app| {
        let behavior = || Behavior::<Cell<u32>>::default().max_backpressure(200_000).message(fill);
        let told = |ws: WebSocket<Cell<u32>>| {
            DRAINED.fetch_add(1, Ordering::SeqCst);
            let _ = ws.send_text(&format!("drained {}", ws.data().map_or(0, |data| data.get())));
        };
        app.ws("/drop", behavior().close_on_backpressure(false).drain(told));
        app.ws("/close", behavior());
    });
    let address = server.addresses()[0];
    let mut client = Client::with_receive_buffer(address, 8192);
    client.upgrade("/drop");
    client.send_text("fill");
    let mut seen = 0;
    let last = loop {
        let frame = client.frame().unwrap();
        if frame.opcode == 1 {
            break frame;
        }
        assert_eq!(frame.payload.len(), 50_000);
        seen += 1;
    };
    assert_eq!(last.text(), format!("drained {seen}"));
    assert_eq!(seen, 4, "a message fits as long as less than the limit waits");
    assert!(DRAINED.load(Ordering::SeqCst) > 0);
    let mut client = Client::with_receive_buffer(address, 8192);
    client.upgrade("/close");
    client.send_text("fill");
    assert!(client.ends());
    end(server);
}

static CLOSED: AtomicUsize = AtomicUsize::new(0);

#[test]
fn closing_by_the_application() {
    let _alone = support::alone();
    let server = start(1, |app| {
        let behavior = Behavior::<()>::default()
            .message(|ws, message| {
                let Message::Text(text) = message else { return };
                assert!(ws.is_open());
                match text.parse() {
                    Ok(code) => ws.close(code, "a reason"),
                    Err(_) => ws.terminate(),
                }
            })
            .close(|ws, Closed { code, .. }| {
                assert!(!ws.is_open());
                CLOSED.store(usize::from(code), Ordering::SeqCst);
            });
        app.ws("/close", behavior);
    });
    let address = server.addresses()[0];
    for code in [1000u16, 1001, 1008, 1014, 3000, 4999] {
        let mut client = Client::websocket(address, "/close");
        client.send_text(&code.to_string());
        assert_eq!(client.frame().unwrap().payload, close_payload(code, "a reason"));
        client.send(&masked(OpCode::Close, &code.to_be_bytes()));
        assert!(client.ends());
    }
    // Codes that may not be sent: a close frame that says nothing.
    for code in [0u16, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535] {
        let mut client = Client::websocket(address, "/close");
        client.send_text(&code.to_string());
        let close = client.frame().unwrap();
        assert_eq!((close.opcode, close.payload.len()), (8, 0), "{code}");
        client.send(&masked(OpCode::Close, b""));
        assert!(client.ends());
    }
    let mut client = Client::websocket(address, "/close");
    client.send_text("terminate");
    assert!(client.ends());
    eventually("the handler is told", || CLOSED.load(Ordering::SeqCst) == 1006);
    end(server);
}
