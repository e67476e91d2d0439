//! Bodies that a handler reads as they come, from outside.

mod support;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use sockring::app::{App, BodyError, Request, RequestStream, Response};
use sockring::runtime::{Descriptors, Running};
use support::{Client, alone, builder, end, eventually, options, post};

#[derive(Clone, Default)]
struct Seen {
    go: Arc<AtomicBool>,
    bytes: Arc<AtomicUsize>,
    ends: Arc<Mutex<Vec<String>>>,
}

impl Seen {
    fn end(&self, how: impl Into<String>) {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).push(how.into());
    }

    fn ended(&self, how: &str) {
        eventually(how, || {
            let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
            let at = ends.iter().position(|known| known == how);
            at.map(|at| ends.remove(at)).is_some()
        });
    }
}

async fn pause(ms: u64) {
    monoio::time::sleep(Duration::from_millis(ms)).await;
}

fn set_up(app: &App, seen: &Seen) {
    let stream = app.body_stream(50_000_000);
    stream.post("/sum", |_: Request, mut body: RequestStream, response: Response| async move {
        let (mut sum, mut bytes) = (0u64, 0);
        while let Ok(Some(piece)) = body.read().await {
            sum += piece.iter().map(|byte| u64::from(*byte)).sum::<u64>();
            bytes += piece.len();
        }
        response.end(format!("{bytes} {sum}"));
    });
    // What comes goes back at once.
    stream.any("/echo", |_: Request, mut body: RequestStream, response: Response| async move {
        let mut out = response.stream();
        while let Ok(Some(piece)) = body.read().await {
            if out.write(piece).await.is_err() {
                return;
            }
        }
        out.end();
    });
    let told = seen.clone();
    stream.post("/slow", move |_: Request, mut body: RequestStream, response: Response| {
        let told = told.clone();
        async move {
            while !told.go.load(Ordering::Relaxed) {
                pause(5).await;
            }
            loop {
                match body.read().await {
                    Ok(Some(piece)) => told.bytes.fetch_add(piece.len(), Ordering::Relaxed),
                    Ok(None) => break,
                    Err(error) => return told.end(error.to_string()),
                };
                pause(1).await;
            }
            response.end("all");
        }
    });
    stream.post("/at-once/:status", |request: Request, _: RequestStream, response: Response| {
        response.status(request.param("status").unwrap().parse().unwrap()).end("no need");
    });
    stream.post("/both", |_: Request, mut body: RequestStream, response: Response| async move {
        // Whoever reads is told when somebody else answers.
        let (told, telling) = (std::rc::Rc::new(std::cell::Cell::new(false)), response);
        let reader = told.clone();
        sockring::runtime::current().unwrap().spawn(async move {
            while let Ok(Some(_)) = body.read().await {}
            assert_eq!(body.read().await, Err(BodyError::Aborted));
            reader.set(true);
        });
        pause(50).await;
        telling.end("answered");
        while !told.get() {
            pause(1).await;
        }
    });
    let told = seen.clone();
    app.body_stream(10).post("/small", move |_: Request, mut body: RequestStream, response: Response| {
        let told = told.clone();
        async move {
            told.end("begun");
            loop {
                match body.read().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return response.end("small"),
                    Err(error) => return told.end(format!("{error} {}", response.is_aborted())),
                }
            }
        }
    });
    app.post("/whole", |request: Request, response: Response| response.end(request.body().clone()));
}

fn serve(seen: &Seen) -> (Running, SocketAddr) {
    serve_with(seen, sockring::app::Options::default())
}

fn serve_with(seen: &Seen, http: sockring::app::Options) -> (Running, SocketAddr) {
    let seen = seen.clone();
    let server =
        builder(options(Descriptors::Auto, 1)).http(http).start(move |app| set_up(app, &seen)).unwrap();
    let address = server.addresses()[0];
    (server, address)
}

fn head(path: &str, fields: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n\r\n").into_bytes()
}

#[test]
fn bodies_come_in_pieces_and_requests_follow_them() {
    let _alone = alone();
    let (server, address) = serve(&Seen::default());
    let mut client = Client::connect(address);
    assert_eq!(client.post("/sum", b"\x01\x02").text(), "2 3");
    assert_eq!(client.post("/sum", b"").text(), "0 0");
    // Pipelined, before and behind such a body.
    let chunked =
        [&head("/sum", "Transfer-Encoding: chunked")[..], b"2\r\n\x01\x01\r\n1\r\n\x05\r\n0\r\n\r\n"];
    let all = [&post("/whole", b"a")[..], &post("/sum", b"\x04"), &chunked.concat(), &post("/whole", b"b")];
    for all in [all.concat()] {
        client.send(&all);
        for text in ["a", "1 4", "3 7", "b"] {
            assert_eq!(client.answer().unwrap().text(), text);
        }
        // Split anywhere.
        for cut in (1..all.len()).step_by(7) {
            client.send(&all[..cut]);
            thread::sleep(Duration::from_millis(1));
            client.send(&all[cut..]);
            for text in ["a", "1 4", "3 7", "b"] {
                assert_eq!(client.answer().unwrap().text(), text, "cut at {cut}");
            }
        }
    }
    // An answer may leave while the body still comes.
    client.send(&head("/echo", "Transfer-Encoding: chunked\r\nConnection: close"));
    client.send(b"5\r\nhello\r\n");
    thread::sleep(Duration::from_millis(30));
    client.send(b"6\r\n world\r\n0\r\n\r\n");
    assert_eq!(client.answer().unwrap().text(), "hello world");
    let mut client = Client::connect(address);
    let answer = client.get("/echo");
    assert_eq!((answer.status, answer.text()), (200, ""));
    end(server);
}

#[test]
fn a_slow_handler_makes_its_client_wait() {
    let _alone = alone();
    let seen = Seen::default();
    // The time for a body does not run while the handler has not read what is there.
    let body_timeout = Duration::from_millis(300);
    let http = sockring::app::Options { body_timeout, ..sockring::app::Options::default() };
    let (server, address) = serve_with(&seen, http);
    const BYTES: usize = 20_000_000;
    let mut client = Client::connect(address);
    client.send(&head("/slow", &format!("Content-Length: {BYTES}")));
    let mut writer = client.stream.try_clone().unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let writing = thread::spawn(move || {
        let piece = vec![7; 100_000];
        for _ in 0..BYTES / piece.len() {
            writer.write_all(&piece).unwrap();
            counted.fetch_add(piece.len(), Ordering::Relaxed);
        }
    });
    // While it does not read, only the kernel's buffers and 64 KiB take anything.
    eventually("something was sent", || sent.load(Ordering::Relaxed) > 0);
    thread::sleep(Duration::from_millis(300));
    assert!(sent.load(Ordering::Relaxed) < BYTES, "everything was read");
    seen.go.store(true, Ordering::Relaxed);
    assert_eq!(client.answer().unwrap().text(), "all");
    writing.join().unwrap();
    assert_eq!(seen.bytes.load(Ordering::Relaxed), BYTES);
    assert_eq!(client.post("/whole", b"next").text(), "next");
    end(server);
}

#[test]
fn bodies_that_do_not_come_whole() {
    let _alone = alone();
    let seen = Seen::default();
    let (server, address) = serve(&seen);
    let (aborted, large) = ("the body ended before its end", "the body is larger than its route allows");
    // Announced, it is refused before the handler runs; in chunks, when one goes too far.
    let mut client = Client::connect(address);
    client.send(&head("/small", "Content-Length: 11"));
    assert_eq!(client.answer().unwrap().status, 413);
    let mut client = Client::connect(address);
    client.send(&head("/small", "Transfer-Encoding: chunked"));
    client.send(b"5\r\nhello\r\n");
    seen.ended("begun");
    client.send(b"6\r\n");
    assert_eq!(client.answer().unwrap().status, 413);
    seen.ended(&format!("{large} true"));
    let mut client = Client::connect(address);
    client.send(&head("/small", "Transfer-Encoding: chunked"));
    seen.ended("begun");
    client.send(b"x\r\n");
    assert_eq!(client.answer().unwrap().status, 400);
    seen.ended(&format!("{aborted} true"));
    assert_eq!(Client::connect(address).post("/small", b"1234567890").text(), "small");
    seen.ended("begun");
    // The client goes away, or says no more.
    let mut client = Client::connect(address);
    client.send(&head("/small", "Content-Length: 10"));
    seen.ended("begun");
    client.reset();
    seen.ended(&format!("{aborted} true"));
    let mut client = Client::connect(address);
    client.send(&[&head("/small", "Content-Length: 10")[..], b"half"].concat());
    seen.ended("begun");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    seen.ended(&format!("{aborted} true"));
    end(server);
}

#[test]
fn a_slow_client_is_late() {
    let _alone = alone();
    let seen = Seen::default();
    let body_timeout = Duration::from_millis(200);
    let http = sockring::app::Options { body_timeout, ..sockring::app::Options::default() };
    let (server, address) = serve_with(&seen, http);
    let mut client = Client::connect(address);
    client.send(&[&head("/small", "Content-Length: 10")[..], b"half"].concat());
    assert_eq!(client.answer().unwrap().status, 408);
    seen.ended("the body ended before its end true");
    // One whose answer has begun cannot be told.
    let mut client = Client::connect(address);
    client.send(&[&head("/echo", "Content-Length: 10")[..], b"half"].concat());
    assert!(client.answer().is_err());
    end(server);
}

#[test]
fn an_early_answer_closes_and_a_client_is_asked_when_it_is_read() {
    let _alone = alone();
    let (server, address) = serve(&Seen::default());
    for path in ["/at-once/403", "/both"] {
        let mut client = Client::connect(address);
        client.send(&head(path, "Content-Length: 1000000"));
        client.send(&[0; 1000]);
        let answer = client.answer().unwrap();
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(client.ends());
    }
    // All of it is there: the connection goes on.
    let mut client = Client::connect(address);
    assert_eq!(client.post("/at-once/200", b"x").text(), "no need");
    assert_eq!(client.post("/at-once/200", b"x").text(), "no need");
    let expect = "Content-Length: 2\r\nExpect: 100-continue";
    client.send(&head("/sum", expect));
    assert_eq!(client.answer().unwrap().status, 100);
    client.send(b"\x01\x01");
    assert_eq!(client.answer().unwrap().text(), "2 2");
    // Nobody asks for what nobody reads.
    client.send(&head("/at-once/403", expect));
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (403, Some("close")));
    end(server);
}
