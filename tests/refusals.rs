//! Requests on an engine's path that are refused before the engine has seen them: the answers have the headers
//! of its CORS, so that a script of a page can read what went wrong.

mod support;

use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use sockring::app;
use sockring::engine::{Cors, Handlers, Options, Server};
use sockring::runtime::{Descriptors, Running};
use support::{Answer, Client, alone, builder, end, options};

const PATH: &str = "/engine.io/?EIO=4&transport=polling";
const ORIGIN: &str = "https://page.example";

fn start(cors: fn() -> Option<Cors>) -> (Running, SocketAddr) {
    let http = app::Options {
        head_timeout: Duration::from_millis(300),
        body_timeout: Duration::from_millis(300),
        body_rate: 0,
        ..app::Options::default()
    };
    let server = builder(options(Descriptors::Auto, 1)).http(http).start(move |app| {
        let options = Options { cors: cors(), max_http_buffer_size: 1000, ..Options::default() };
        Server::attach(app, options, Handlers::default());
    });
    let server = server.unwrap();
    let address = server.addresses()[0];
    (server, address)
}

/// Requests that are refused by each rule, with their `Origin` before and after what is wrong, and the status.
fn refused() -> Vec<(&'static str, String, u16)> {
    let origin = format!("Origin: {ORIGIN}\r\n");
    let long = "x".repeat(20_000);
    let get = |query: &str, fields: &str| format!("GET {PATH}{query} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let post = |fields: &str, body: &str| format!("POST {PATH} HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}");
    vec![
        ("a query that is too long", get(&format!("&t={long}"), &origin), 414),
        ("a head that is too long", get("", &format!("{origin}X: {long}\r\n")), 431),
        ("a head that is too long, its origin last", get("", &format!("X: {long}\r\n{origin}")), 431),
        ("too many fields", get("", &format!("{origin}{}", "X: y\r\n".repeat(2000))), 431),
        ("too many fields, its origin last", get("", &format!("{}{origin}", "X: y\r\n".repeat(2000))), 431),
        ("a head that does not end", format!("GET {PATH} HTTP/1.1\r\nHost: a\r\n{origin}X: "), 408),
        ("a folded field", get("", &format!("{origin}X: y\r\n z\r\n")), 400),
        ("no host", format!("GET {PATH} HTTP/1.1\r\n{origin}\r\n"), 400),
        ("a version that is not served", format!("GET {PATH} HTTP/2.0\r\nHost: a\r\n{origin}\r\n"), 505),
        ("an expectation", get("", &format!("{origin}Expect: more\r\n")), 417),
        ("two lengths", post(&format!("{origin}Content-Length: 1\r\nContent-Length: 1\r\n"), "4"), 400),
        ("a coding", post(&format!("Transfer-Encoding: gzip, chunked\r\n{origin}"), ""), 501),
        ("a body that is too large", post(&format!("{origin}Content-Length: 1001\r\n"), ""), 413),
        (
            "a chunk that is too large",
            post(&format!("{origin}Transfer-Encoding: chunked\r\n"), "ffff\r\n"),
            413,
        ),
        ("a chunk that is none", post(&format!("{origin}Transfer-Encoding: chunked\r\n"), "x\r\n"), 400),
        ("a body that does not end", post(&format!("{origin}Content-Length: 9\r\n"), "4"), 408),
    ]
}

fn answers(address: SocketAddr) -> Vec<(&'static str, Answer)> {
    let answer = |(name, request, status): (&'static str, String, u16)| {
        let mut client = Client::connect(address);
        client.send(request.as_bytes());
        let answer = client.answer().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(answer.status, status, "{name}: {}", answer.head);
        assert!(client.ends(), "{name}");
        (name, answer)
    };
    refused().into_iter().map(answer).collect()
}

#[test]
fn refusals_have_the_headers_of_cors() {
    let _alone = alone();
    let kinds: [fn() -> Option<Cors>; 3] = [
        || Some(Cors::any()),
        || Some(Cors::list([ORIGIN]).credentials(true).exposed_headers("X-Seen")),
        || Some(Cors::predicate(|origin| origin == ORIGIN)),
    ];
    for (kind, cors) in kinds.into_iter().enumerate() {
        let (server, address) = start(cors);
        for (name, answer) in answers(address) {
            let allowed = if kind == 0 { "*" } else { ORIGIN };
            let head = &answer.head;
            assert_eq!(answer.header("access-control-allow-origin"), Some(allowed), "{name}: {head}");
            let credentials = answer.header("access-control-allow-credentials");
            assert_eq!(credentials, (kind == 1).then_some("true"), "{name}: {head}");
            assert_eq!(answer.header("vary"), (kind > 0).then_some("Origin"), "{name}: {head}");
            // As the reference.
            assert_eq!(answer.body.is_empty(), answer.status == 413, "{name}: {head}");
        }
        end(server);
    }
}

#[test]
fn refusals_have_no_more_than_was_asked_for() {
    let _alone = alone();
    let (server, address) = start(|| None);
    for (name, answer) in answers(address) {
        assert_eq!(answer.header("access-control-allow-origin"), None, "{name}: {}", answer.head);
    }
    end(server);
    let (server, address) = start(|| Some(Cors::any()));
    let long = "x".repeat(20_000);
    for request in [
        format!("GET /elsewhere?{long} HTTP/1.1\r\n\r\n"),
        format!("GET /elsewhere{long}"),
        "GET /engine.i HTTP/1.1\r\n\r\n".to_owned(),
        "\u{1}".to_owned(),
    ] {
        let mut client = Client::connect(address);
        client.send(request.as_bytes());
        let answer = client.answer().unwrap();
        assert_eq!(answer.header("access-control-allow-origin"), None, "{}", answer.head);
    }
    end(server);
}

/// A head that is too long is read on for its `Origin`, but neither for long nor far.
#[test]
fn a_refusal_does_not_wait_for_long() {
    let _alone = alone();
    let (server, address) = start(|| Some(Cors::list([ORIGIN])));
    let begun = format!("GET {PATH}&t={}", "x".repeat(17_000));
    for rest in [
        // All that is looked at.
        "x".repeat(20_000),
        // What does not come.
        String::new(),
        format!(" HTTP/1.1\r\nOrigin: {ORIGIN}\r\nX: "),
    ] {
        let mut client = Client::connect(address);
        client.send(begun.as_bytes());
        client.send(rest.as_bytes());
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, answer.header("vary")), (414, Some("Origin")), "{}", answer.head);
        let allowed = rest.contains(ORIGIN).then_some(ORIGIN);
        assert_eq!(answer.header("access-control-allow-origin"), allowed, "{}", answer.head);
    }
    let mut client = Client::connect(address);
    client.send(begun.as_bytes());
    std::thread::sleep(Duration::from_millis(20));
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.answer().unwrap().status, 414);
    end(server);
}
