//! Connections that another server has accepted, and perhaps read from.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use sockring::app::{App, Request, Response};
use sockring::engine::{self, Handlers, Message};
use sockring::runtime::{self, Adopter, Descriptors, NotAdopted, Running};
use support::{Client, builder, end, eventually, get, options, post, sid, upgrade_request};

fn set_up(app: &App) {
    app.get("/who", |request: Request, response: Response| {
        response.end(request.peer().map_or("nobody".into(), |peer| peer.to_string()));
    });
    app.get("/core", |_: Request, response: Response| {
        response.end(runtime::current().unwrap().index().to_string());
    });
    let echo = Handlers::default().message(|socket, message| {
        let _ = match message {
            Message::Text(text) => socket.send_text(text),
            Message::Binary(data) => socket.send_binary(data),
        };
    });
    engine::Server::attach(app, engine::Options::default(), echo);
}

fn start(descriptors: Descriptors, workers: usize) -> Running {
    App::builder().runtime(options(descriptors, workers)).adopt_only().start(set_up).unwrap()
}

/// A client, and the other end of its connection, of which a server has read `read`.
fn connect(listener: &TcpListener, read: &[u8]) -> (Client, TcpStream) {
    let mut client = Client::connect(listener.local_addr().unwrap());
    client.send(read);
    let (mut accepted, _) = listener.accept().unwrap();
    let mut got = vec![0; read.len()];
    accepted.read_exact(&mut got).unwrap();
    (client, accepted)
}

/// A client whose connection was adopted, with what it has sent until then.
fn adopted(listener: &TcpListener, adopter: &Adopter, read: &[u8]) -> Client {
    let (client, accepted) = connect(listener, read);
    adopter.adopt(accepted, read).unwrap();
    client
}

both!(
    what_was_read_is_answered,
    the_stream_may_be_of_any_kind,
    sessions_move_between_cores,
    a_full_server_gives_it_back,
    adopted_connections_take_the_places_of_accepted_ones,
    a_stopping_server_gives_it_back,
);

fn what_was_read_is_answered(descriptors: Descriptors) {
    let server = start(descriptors, 2);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let adopter = server.adopter();
    let request = get("/who");
    for at in [0, 1, 20, request.len()] {
        let (read, rest) = request.as_bytes().split_at(at);
        let mut client = adopted(&listener, &adopter, read);
        client.send(rest);
        let own = client.stream.local_addr().unwrap().to_string();
        assert_eq!(client.answer().unwrap().text(), own);
        // It goes on as any other connection does.
        assert_eq!(client.get("/who").text(), own);
    }
    // Pipelined requests, and half of a third.
    let (first, second) = request.as_bytes().split_at(9);
    let read = [request.as_bytes(), request.as_bytes(), first].concat();
    let mut client = adopted(&listener, &adopter, &read);
    assert_eq!(client.answer().unwrap().status, 200);
    assert_eq!(client.answer().unwrap().status, 200);
    client.send(second);
    assert_eq!(client.answer().unwrap().status, 200);
    // Each core gets its share.
    let mut cores: Vec<String> = (0..6)
        .map(|_| adopted(&listener, &adopter, get("/core").as_bytes()).answer().unwrap().text().to_owned())
        .collect();
    cores.sort();
    assert_eq!(cores, ["0", "0", "0", "1", "1", "1"]);
    end(server);
}

fn the_stream_may_be_of_any_kind(descriptors: Descriptors) {
    let server = start(descriptors, 1);
    for nonblocking in [false, true] {
        // As a descriptor, a Unix socket, and one that does not block: what tokio gives away is so.
        let (mut client, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(nonblocking).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
        server.adopt(OwnedFd::from(theirs), get("/who")).unwrap();
        let mut answer = [0; 1024];
        let count = client.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("nobody"), "{answer}");
        client.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        assert!(rest.starts_with(b"HTTP/1.1 404"));
    }
    // What is no connection comes back.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = server.adopt(listener, "x").unwrap_err();
    assert!(matches!(error.why, NotAdopted::Stream(_)), "{error}");
    assert_eq!(error.read, b"x");
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(server.adopt(file, "").unwrap_err().why, NotAdopted::Stream(_)));
    end(server);
}

/// Adopted sockets are in the process's table, accepted ones may be in the ring's: both go to the core of
/// their session, whatever the kind of the others.
fn sessions_move_between_cores(descriptors: Descriptors) {
    let server = builder(options(descriptors, 3)).start(set_up).unwrap();
    let (listener, adopter) = (TcpListener::bind("127.0.0.1:0").unwrap(), server.adopter());
    let address = server.addresses()[0];
    for round in 0..12 {
        let mut first = adopted(&listener, &adopter, get("/engine.io/?EIO=4&transport=polling").as_bytes());
        let sid = sid(first.answer().unwrap().text());
        let path = format!("/engine.io/?EIO=4&transport=polling&sid={sid}");
        // The next connections of the session come to any core, by either way.
        let mut poster = match round % 2 {
            0 => adopted(&listener, &adopter, &post(&path, b"4hello")),
            _ => {
                let mut client = Client::connect(address);
                client.send(&post(&path, b"4hello"));
                client
            }
        };
        assert_eq!(poster.answer().unwrap().text(), "ok");
        assert_eq!(first.get(&path).text(), "4hello");
        let upgrade = upgrade_request(&format!("/engine.io/?EIO=4&transport=websocket&sid={sid}"));
        let mut socket = adopted(&listener, &adopter, upgrade.as_bytes());
        assert_eq!(socket.answer().unwrap().status, 101);
        socket.send_text("2probe");
        assert_eq!(socket.text(), "3probe");
        socket.send_text("5");
        socket.send_text("4world");
        assert_eq!(socket.text(), "4world");
    }
    end(server);
}

fn a_full_server_gives_it_back(descriptors: Descriptors) {
    let few = runtime::Options { connections: 5, ..options(descriptors, 2) };
    let server = App::builder().runtime(few).adopt_only().start(set_up).unwrap();
    let (listener, adopter) = (TcpListener::bind("127.0.0.1:0").unwrap(), server.adopter());
    let mut clients: Vec<Client> =
        (0..10).map(|_| adopted(&listener, &adopter, get("/who").as_bytes())).collect();
    assert!(clients.iter_mut().all(|client| client.answer().unwrap().status == 200));
    let (mut client, accepted) = connect(&listener, b"GET");
    accepted.set_nonblocking(true).unwrap();
    let error = adopter.adopt(accepted, "GET").unwrap_err();
    assert!(matches!(error.why, NotAdopted::Full), "{error}");
    assert_eq!(error.read, b"GET");
    // It is as it was: whoever gave it can answer.
    let mut stream = TcpStream::from(error.stream);
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    stream.write_all(b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\n\r\n").unwrap();
    assert_eq!(client.answer().unwrap().status, 503);
    // Whoever leaves makes room.
    drop(clients.pop());
    let (mut client, accepted) = connect(&listener, b"");
    let mut given = Some(OwnedFd::from(accepted));
    for _ in 0..400 {
        match adopter.adopt(given.take().unwrap(), get("/who")) {
            Ok(()) => break,
            Err(error) => given = Some(error.stream),
        }
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(client.answer().unwrap().status, 200);
    end(server);
}

fn adopted_connections_take_the_places_of_accepted_ones(descriptors: Descriptors) {
    let few = runtime::Options { connections: 4, ..options(descriptors, 1) };
    let server = builder(few).start(set_up).unwrap();
    let (listener, adopter) = (TcpListener::bind("127.0.0.1:0").unwrap(), server.adopter());
    let mut inside: Vec<Client> =
        (0..4).map(|_| adopted(&listener, &adopter, get("/who").as_bytes())).collect();
    assert!(inside.iter_mut().all(|client| client.answer().unwrap().status == 200));
    thread::sleep(Duration::from_millis(100));
    // The server is full: a client that connects now is told so, until one leaves.
    assert_eq!(Client::connect(server.addresses()[0]).get("/who").status, 503);
    drop(inside.pop());
    eventually("a place", || server.metrics().total("connections") < 4);
    assert_eq!(Client::connect(server.addresses()[0]).get("/who").status, 200);
    end(server);
}

fn a_stopping_server_gives_it_back(descriptors: Descriptors) {
    let server = start(descriptors, 2);
    let (listener, adopter) = (TcpListener::bind("127.0.0.1:0").unwrap(), server.adopter());
    let stop = thread::spawn({
        let adopter = adopter.clone();
        move || {
            let (mut taken, mut given_back) = (Vec::new(), 0);
            while given_back < 3 {
                let (client, accepted) = connect(&listener, b"GET / HT");
                match adopter.adopt(accepted, "GET / HT") {
                    Ok(()) => taken.push(client),
                    Err(error) => {
                        assert!(matches!(error.why, NotAdopted::Stopping), "{error}");
                        given_back += 1;
                    }
                }
            }
            taken
        }
    });
    thread::sleep(Duration::from_millis(100));
    end(server);
    let taken = stop.join().unwrap();
    assert!(!taken.is_empty());
    // Nobody is left hanging.
    for mut client in taken {
        assert!(client.ends());
    }
    let (_client, accepted) = UnixStream::pair().unwrap();
    assert!(matches!(adopter.adopt(accepted, "").unwrap_err().why, NotAdopted::Stopping));
}
