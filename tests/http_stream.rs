//! Answers that are written piece by piece, from outside.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use sockring::app::{App, Request, Response};
use sockring::runtime::{Descriptors, Running};
use support::{Client, builder, end, eventually, get, options};

fn serve(routes: impl Fn(&App) + Send + Sync + 'static) -> (Running, SocketAddr) {
    let server = builder(options(Descriptors::Auto, 1)).start(routes).unwrap();
    let address = server.addresses()[0];
    (server, address)
}

async fn pause(ms: u64) {
    monoio::time::sleep(Duration::from_millis(ms)).await;
}

fn pieces(app: &App) {
    app.get("/chunks", |_: Request, response: Response| async move {
        let mut body = response.header("Content-Type", "text/plain").stream();
        for piece in ["one ", "", "two ", "three"] {
            body.write(piece).await.unwrap();
            pause(5).await;
        }
        body.end();
    });
    app.get("/sized", |_: Request, response: Response| async move {
        let mut body = response.stream_of(8);
        body.write("four").await.unwrap();
        body.write("five, and more").await.unwrap();
        body.end();
    });
    app.get("/sync", |_, response| {
        let mut body = response.stream();
        let _ = body.send("at ");
        let _ = body.send("once");
        body.end();
    });
    app.get("/none/:status", |request: Request, response: Response| async move {
        let status = request.param("status").and_then(|status| status.parse().ok()).unwrap_or(200);
        let mut body = response.status(status).stream();
        let _ = body.write("not to be sent").await;
        body.end();
    });
    app.get("/dropped", |_: Request, response: Response| async move {
        let mut body = response.stream();
        let _ = body.write("part").await;
    });
    app.get("/short", |_: Request, response: Response| async move {
        let mut body = response.stream_of(100);
        let _ = body.write("part").await;
        body.end();
    });
    app.get("/panic", |_: Request, response: Response| async move {
        let mut body = response.stream();
        body.write("part").await.unwrap();
        assert!(body.is_aborted(), "as asked");
    });
    app.get("/after", |_, response| response.end("after"));
}

#[test]
fn pieces_make_up_a_body() {
    let _alone = support::alone();
    let (server, address) = serve(pieces);
    let mut client = Client::connect(address);
    // Pipelined: what is behind a stream waits for its end.
    for _ in 0..2 {
        client.send([get("/chunks"), get("/sized"), get("/sync"), get("/after")].concat().as_bytes());
        let chunked = client.answer().unwrap();
        assert_eq!(chunked.header("transfer-encoding"), Some("chunked"));
        assert_eq!((chunked.length(), chunked.text()), (None, "one two three"));
        let sized = client.answer().unwrap();
        assert_eq!((sized.header("transfer-encoding"), sized.length()), (None, Some(8)));
        assert_eq!(sized.text(), "fourfive");
        assert_eq!(client.answer().unwrap().text(), "at once");
        assert_eq!(client.answer().unwrap().text(), "after");
    }
    end(server);
}

#[test]
fn some_answers_have_no_body() {
    let _alone = support::alone();
    let (server, address) = serve(pieces);
    let mut client = Client::connect(address);
    for path in ["/none/204", "/none/304"] {
        let answer = client.get(path);
        assert_eq!((answer.length(), answer.header("transfer-encoding")), (None, None), "{}", answer.head);
        assert_eq!(client.get("/after").text(), "after");
    }
    for (path, length, coding) in [("/chunks", None, Some("chunked")), ("/sized", Some(8), None)] {
        client.send(get(path).replace("GET", "HEAD").as_bytes());
        let head = client.head().unwrap();
        assert_eq!((head.length(), head.header("transfer-encoding")), (length, coding));
        assert_eq!(client.get("/after").text(), "after");
    }
    end(server);
}

#[test]
fn http_1_0_ends_with_the_connection() {
    let _alone = support::alone();
    let (server, address) = serve(pieces);
    for (path, body) in [("/chunks", "one two three"), ("/sized", "fourfive")] {
        let mut client = Client::connect(address);
        client.send(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
        let head = client.head().unwrap();
        assert_eq!((head.header("transfer-encoding"), head.header("connection")), (None, Some("close")));
        assert_eq!(client.rest().unwrap(), body.as_bytes());
    }
    end(server);
}

#[test]
fn a_part_is_not_taken_for_the_whole() {
    let _alone = support::alone();
    let (server, address) = serve(pieces);
    for path in ["/dropped", "/short", "/panic"] {
        let mut client = Client::connect(address);
        client.send([get(path), get("/after")].concat().as_bytes());
        let error = client.answer().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{path}: {error}");
    }
    end(server);
}

#[test]
fn a_slow_reader_does_not_fill_the_memory() {
    const BYTES: usize = 64 << 20;
    let _alone = support::alone();
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let (server, address) = serve(move |app| {
        let count = count.clone();
        app.get("/large", move |_: Request, response: Response| {
            let count = count.clone();
            async move {
                let mut body = response.stream();
                // One piece that is larger than what may wait, again and again.
                let piece = bytes::Bytes::from(vec![b'p'; 1 << 20]);
                for _ in 0..BYTES >> 20 {
                    body.write(piece.clone()).await.unwrap();
                    count.fetch_add(1 << 20, Ordering::Relaxed);
                }
                body.end();
            }
        });
    });
    let mut client = Client::with_receive_buffer(address, 64 << 10);
    client.send(get("/large").as_bytes());
    let before = support::resident_bytes();
    thread::sleep(Duration::from_millis(300));
    let ahead = written.load(Ordering::Relaxed);
    assert!(ahead <= 2 << 20, "{ahead} bytes were written for a client that reads nothing");
    client.head().unwrap();
    let mut read = 0;
    loop {
        let chunk = client.chunk().unwrap();
        if chunk.is_empty() {
            break;
        }
        read += chunk.len();
    }
    assert_eq!(read, BYTES);
    let grown = support::resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "memory grew by {grown} bytes");
    end(server);
}

#[test]
fn a_writer_is_told_that_its_client_is_gone() {
    let _alone = support::alone();
    let stopped = Arc::new(AtomicUsize::new(0));
    let aborts = Arc::new(AtomicUsize::new(0));
    let (stops, told) = (stopped.clone(), aborts.clone());
    let (server, address) = serve(move |app| {
        let (stops, told) = (stops.clone(), told.clone());
        // Either waits for time to pass, or in `write`, when its client goes.
        app.get("/:piece/:pause", move |request: Request, response: Response| {
            let (stops, told) = (stops.clone(), told.clone());
            async move {
                let number = |name| request.param(name).and_then(|text| text.parse().ok()).unwrap_or(0);
                let (piece, wait) = (number("piece"), number("pause"));
                let mut body = response.stream();
                body.on_abort(move || _ = told.fetch_add(1, Ordering::Relaxed));
                while body.write(vec![b'x'; piece as usize]).await.is_ok() {
                    pause(wait).await;
                }
                stops.fetch_add(1, Ordering::Relaxed);
            }
        });
    });
    for (number, path) in ["/5/10", "/100000/0", "/5/10", "/100000/0"].into_iter().enumerate() {
        let mut client = Client::connect(address);
        client.send(get(path).as_bytes());
        client.head().unwrap();
        client.chunk().unwrap();
        thread::sleep(Duration::from_millis(100));
        if number < 2 {
            client.reset()
        } else {
            drop(client)
        }
        eventually("the writer stops", || stopped.load(Ordering::Relaxed) == number + 1);
        assert_eq!(aborts.load(Ordering::Relaxed), number + 1, "{path}");
    }
    end(server);
}
