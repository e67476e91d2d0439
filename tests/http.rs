//! HTTP/1.1 from outside, byte by byte: what each request is answered, and whether the connection goes on.

mod support;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use sockring::app::{App, Options, Request, Response, TrustProxy};
use sockring::runtime::{self, Descriptors, Running};
use support::{Answer, Client, builder, end, options};

/// What a row of the table expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The connection serves further requests.
    Kept,
    /// The connection ends with the last answer, and without a reset.
    Closed,
}
use Then::{Closed, Kept};

/// What is sent, the statuses of all answers to it, and what becomes of the connection.
type Row = (&'static str, Vec<u8>, &'static [u16], Then);

fn routes(app: &App) {
    app.get("/", |_, response| response.header("Content-Type", "text/plain").end("hello"));
    app.post("/", |request: Request, response: Response| response.end(request.body().clone()));
    app.any("/any", |request: Request, response: Response| {
        response.header("X-Method", request.method().to_owned()).end(request.body().clone());
    });
    app.get("/q", |request: Request, response: Response| response.end(request.query().to_owned()));
    let length = |request: Request, response: Response| response.end(request.body().len().to_string());
    app.body_limit(3_000_000).post("/upload", length);
    app.body_limit(3).post("/small", length).put("/small", length);
    app.get("/who", |request: Request, response: Response| {
        let ip = request.client_ip().map(|ip| ip.to_string()).unwrap_or_default();
        response.end(format!("{ip} {} {}", request.scheme(), request.host().unwrap_or_default()));
    });
    app.get("/later", |_: Request, response: Response| async move {
        monoio::time::sleep(Duration::from_millis(100)).await;
        response.end("late");
    });
    app.get("/panic", |request: Request, response: Response| {
        assert!(request.path().is_empty(), "as asked");
        response.end("");
    });
    app.get("/panic-later", |_: Request, response: Response| async move {
        monoio::time::sleep(Duration::from_millis(10)).await;
        assert!(response.is_aborted(), "as asked");
    });
    app.get("/dropped", |_: Request, _: Response| ());
    app.ws("/ws", sockring::app::Behavior::<()>::default());
}

fn serve() -> (Running, SocketAddr) {
    start(Options::default(), routes)
}

fn start(http: Options, routes: impl Fn(&App) + Send + Sync + 'static) -> (Running, SocketAddr) {
    // Silent clients are the server's, and not the kernel's: its limits are tested here.
    let options = runtime::Options { defer_accept: Duration::ZERO, ..options(Descriptors::Auto, 1) };
    let server = builder(options).http(http).start(routes).unwrap();
    let address = server.addresses()[0];
    (server, address)
}

/// A route that tells how many connections are open.
fn tell_open(app: &App) {
    app.get("/open", |_, response| {
        let open = sockring::app::current().map_or(0, |app| app.core().connections());
        response.end(open.to_string());
    });
}

/// How many connections are open, the one that asks included.
fn open(address: SocketAddr) -> usize {
    Client::connect(address).get("/open").text().parse().unwrap()
}

/// Sends all that it will ever send, and says so.
fn half_closed(address: SocketAddr, bytes: &[u8]) -> Client {
    let mut client = Client::connect(address);
    client.send(bytes);
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    client
}

/// Sends each row on a connection of its own, and says what was different.
fn check(rows: &[Row]) {
    let _alone = support::alone();
    let (server, address) = serve();
    let wrong: Vec<String> = rows.iter().filter_map(|row| mismatch(address, row)).collect();
    end(server);
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

fn mismatch(address: SocketAddr, (name, bytes, statuses, then): &Row) -> Option<String> {
    let mut client = Client::connect(address);
    client.send(bytes);
    let mut seen = Vec::new();
    for expected in *statuses {
        match answer_to(&mut client, bytes) {
            Ok(answer) => {
                if let Err(why) = is_sound(&answer) {
                    return Some(format!("{name}: {why}\n{}", answer.head));
                }
                seen.push(answer.status);
            }
            Err(error) => return Some(format!("{name}: {seen:?}, then {error} instead of {expected}")),
        }
    }
    if seen != *statuses {
        return Some(format!("{name}: {seen:?} instead of {statuses:?}"));
    }
    match then {
        Closed => match client.rest() {
            Ok(rest) if rest.is_empty() => None,
            Ok(rest) => Some(format!("{name}: more than was expected: {}", String::from_utf8_lossy(&rest))),
            Err(error) => Some(format!("{name}: not closed but {error}")),
        },
        Kept => {
            client.send(b"GET /q?still HTTP/1.1\r\nHost: a\r\n\r\n");
            match client.answer() {
                Ok(answer) if answer.text() == "still" => None,
                Ok(answer) => Some(format!("{name}: out of step: {}", answer.head)),
                Err(error) => Some(format!("{name}: not kept but {error}")),
            }
        }
    }
}

fn answer_to(client: &mut Client, request: &[u8]) -> io::Result<Answer> {
    if request.starts_with(b"HEAD ") { client.head() } else { client.answer() }
}

/// What holds for every final answer (RFC 9110 sections 6.6.1, 8.3 and 8.6).
fn is_sound(answer: &Answer) -> Result<(), &'static str> {
    if answer.status < 200 {
        return if answer.length().is_none() { Ok(()) } else { Err("a length with 1xx") };
    }
    let Some(date) = answer.header("date") else { return Err("no Date") };
    httpdate::parse_http_date(date).map_err(|_| "not a date")?;
    if answer.status == 204 {
        return if answer.length().is_none() { Ok(()) } else { Err("a length with 204") };
    }
    if answer.length().is_none() {
        return Err("no length");
    }
    if answer.status >= 400 && answer.length() > Some(0) && answer.header("content-type").is_none() {
        return Err("an error without a type");
    }
    Ok(())
}

/// A request head with these lines behind `Host`, and a body.
fn request(line: &str, fields: &str, body: &str) -> Vec<u8> {
    format!("{line} HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}").into_bytes()
}

fn row(name: &'static str, bytes: impl Into<Vec<u8>>, statuses: &'static [u16], then: Then) -> Row {
    (name, bytes.into(), statuses, then)
}

/// A GET with these lines behind the request line.
fn fields(name: &'static str, fields: &str, statuses: &'static [u16], then: Then) -> Row {
    row(name, format!("GET / HTTP/1.1\r\n{fields}\r\n"), statuses, then)
}

/// A POST with these lines behind `Host`, and a body.
fn post(name: &'static str, lines: &str, body: &str, statuses: &'static [u16], then: Then) -> Row {
    row(name, request("POST /", lines, body), statuses, then)
}

fn line(name: &'static str, line: &str, statuses: &'static [u16], then: Then) -> Row {
    row(name, format!("{line}\r\nHost: a\r\n\r\n"), statuses, then)
}

/// Bytes that are a request of their own to whoever misreads where the one before ended.
const SMUGGLED: &str = "GET /any HTTP/1.1\r\nHost: b\r\n\r\n";

#[test]
fn line_ends_and_fields() {
    check(&[
        row("bare LF after the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n", &[400], Closed),
        row("bare LF after a field", "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", &[400], Closed),
        row("bare LF as the empty line", "GET / HTTP/1.1\r\nHost: a\r\n\n", &[400], Closed),
        fields("bare CR in a value", "Host: a\r\nX: a\rb\r\n", &[400], Closed),
        fields("NUL in a value", "Host: a\r\nX: a\0b\r\n", &[400], Closed),
        fields("a control character in a value", "Host: a\r\nX: a\x01b\r\n", &[400], Closed),
        fields("DEL in a value", "Host: a\r\nX: a\x7fb\r\n", &[400], Closed),
        fields("obs-fold", "Host: a\r\nX: a\r\n b\r\n", &[400], Closed),
        fields("obs-fold with a tab", "Host: a\r\nX: a\r\n\tb\r\n", &[400], Closed),
        fields("space before the colon", "Host: a\r\nX : a\r\n", &[400], Closed),
        fields("space before the colon of a length", "Host: a\r\nContent-Length : 3\r\n", &[400], Closed),
        fields("white space before the first field", " Host: a\r\n", &[400], Closed),
        fields("an empty name", "Host: a\r\n: x\r\n", &[400], Closed),
        fields("no colon", "Host: a\r\nnothing\r\n", &[400], Closed),
        fields("a name that is no token", "Host: a\r\nX(y): z\r\n", &[400], Closed),
        fields("8-bit text in a value", "Host: a\r\nX: caf\u{e9}\r\n", &[200], Kept),
        fields("an empty value", "Host: a\r\nX:\r\n", &[200], Kept),
        row("one empty line before the request", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept),
        row("a TLS client hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &[400], Closed),
    ]);
}

#[test]
fn hosts() {
    check(&[
        fields("no Host", "X: y\r\n", &[400], Closed),
        fields("Host twice, the same", "Host: a\r\nHost: a\r\n", &[400], Closed),
        fields("Host twice, different", "Host: a\r\nHost: b\r\n", &[400], Closed),
        fields("an empty Host", "Host:\r\n", &[400], Closed),
        fields("a path in Host", "Host: a/b\r\n", &[400], Closed),
        fields("user information in Host", "Host: u@a\r\n", &[400], Closed),
        fields("a list in Host", "Host: a, b\r\n", &[400], Closed),
        fields("Host with a port", "Host: a.example:8080\r\n", &[200], Kept),
        fields("Host is IPv6", "Host: [::1]:80\r\n", &[200], Kept),
        row("HTTP/1.0 without Host", "GET / HTTP/1.0\r\n\r\n", &[200], Closed),
        row("HTTP/1.0 with keep-alive", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &[200], Closed),
    ]);
}

#[test]
fn request_lines() {
    let long = |bytes: usize| format!("GET /q?{} HTTP/1.1", "x".repeat(bytes));
    check(&[
        line("a method in lower case", "get / HTTP/1.1", &[501], Closed),
        line("an unknown method", "BREW / HTTP/1.1", &[501], Closed),
        line("a method without a route", "DELETE / HTTP/1.1", &[405], Kept),
        line("TRACE", "TRACE / HTTP/1.1", &[405], Kept),
        line("HTTP/2.0", "GET / HTTP/2.0", &[505], Closed),
        line("HTTP/1.2", "GET / HTTP/1.2", &[505], Closed),
        line("the version in lower case", "GET / http/1.1", &[400], Closed),
        line("no version", "GET /", &[400], Closed),
        row("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[400], Closed),
        line("two spaces", "GET  / HTTP/1.1", &[400], Closed),
        line("a space in the target", "GET /a b HTTP/1.1", &[400], Closed),
        line("8-bit text in the target", "GET /caf\u{e9} HTTP/1.1", &[400], Closed),
        line("a fragment", "GET /#top HTTP/1.1", &[400], Closed),
        line("no slash", "GET index.html HTTP/1.1", &[400], Closed),
        line("an asterisk with GET", "GET * HTTP/1.1", &[400], Closed),
        line("an asterisk with OPTIONS", "OPTIONS * HTTP/1.1", &[204], Kept),
        line("CONNECT", "CONNECT b:443 HTTP/1.1", &[501], Closed),
        line("absolute-form", "GET http://b.example/q?x HTTP/1.1", &[200], Kept),
        line("absolute-form without a path", "GET http://b.example HTTP/1.1", &[200], Kept),
        line("absolute-form with user information", "GET http://u@b/ HTTP/1.1", &[400], Closed),
        line("absolute-form of another scheme", "GET ftp://b/ HTTP/1.1", &[400], Closed),
        line("no route", "GET /nowhere HTTP/1.1", &[404], Kept),
        line("a WebSocket's path", "GET /ws HTTP/1.1", &[426], Kept),
        line("a target of 8,000 bytes", &long(8000 - 3), &[200], Kept),
        line("a query of 8,500 bytes", &long(8500), &[200], Kept),
        line("a query of 15,000 bytes", &long(15_000), &[200], Kept),
        line("a target that is too long", &long(17_000), &[414], Closed),
        row("a request line without end", format!("GET /{}", "x".repeat(17_000)), &[414], Closed),
    ]);
}

#[test]
fn limits_of_the_head() {
    let many = |count: usize| "X: y\r\n".repeat(count);
    check(&[
        fields("100 fields", &format!("Host: a\r\n{}", many(99)), &[200], Kept),
        fields("101 fields", &format!("Host: a\r\n{}", many(100)), &[200], Kept),
        fields("2,000 fields", &format!("Host: a\r\n{}", many(1999)), &[200], Kept),
        fields("2,001 fields", &format!("Host: a\r\n{}", many(2000)), &[431], Closed),
        fields(
            "fields that fit by their size",
            &format!("Host: a\r\n{}", "X:\r\n".repeat(4050)),
            &[431],
            Closed,
        ),
        fields("a field of 15 KiB", &format!("Host: a\r\nX: {}\r\n", "x".repeat(15 << 10)), &[200], Kept),
        fields("a field of 17 KiB", &format!("Host: a\r\nX: {}\r\n", "x".repeat(17 << 10)), &[431], Closed),
        fields("a head of 1 MiB", &format!("Host: a\r\nX: {}\r\n", "x".repeat(1 << 20)), &[431], Closed),
    ]);
}

#[test]
fn lengths() {
    let with = |name, lines, then| post(name, lines, SMUGGLED, &[400], then);
    check(&[
        post("neither length nor chunks", "", "", &[200], Kept),
        post("length 0", "Content-Length: 0\r\n", "", &[200], Kept),
        post("length 3", "Content-Length: 3\r\n", "abc", &[200], Kept),
        with("lengths that differ", "Content-Length: 2\r\nContent-Length: 3\r\n", Closed),
        with("the same length twice", "Content-Length: 2\r\nContent-Length: 2\r\n", Closed),
        with("a list of lengths", "Content-Length: 2, 3\r\n", Closed),
        with("a list of the same length", "Content-Length: 2, 2\r\n", Closed),
        with("+2", "Content-Length: +2\r\n", Closed),
        with("-1", "Content-Length: -1\r\n", Closed),
        with("0x2", "Content-Length: 0x2\r\n", Closed),
        with("002", "Content-Length: 002\r\n", Closed),
        with("an empty length", "Content-Length:\r\n", Closed),
        with("a length beyond 63 bits", "Content-Length: 9223372036854775808\r\n", Closed),
        with("a length beyond 64 bits", "Content-Length: 18446744073709551617\r\n", Closed),
        row("GET with a body", request("GET /any", "Content-Length: 5\r\n", "body!"), &[200], Kept),
        row(
            "a request in the body of GET",
            request("GET /any", &format!("Content-Length: {}\r\n", SMUGGLED.len()), SMUGGLED),
            &[200],
            Kept,
        ),
        post("a body that is too large", "Content-Length: 1000001\r\n", "", &[413], Closed),
        post(
            "a body that is too large, and comes",
            "Content-Length: 2000000\r\n",
            &"x".repeat(2_000_000),
            &[413],
            Closed,
        ),
        post("the largest body", "Content-Length: 1000000\r\n", &"x".repeat(1_000_000), &[200], Kept),
        row("a body for no route", request("POST /nowhere", "Content-Length: 3\r\n", "abc"), &[404], Kept),
        row("length with HTTP/1.0", "POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", &[200], Closed),
    ]);
}

#[test]
fn transfer_codings() {
    const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
    let bad = |name, lines| post(name, lines, "0\r\n\r\n", &[400], Closed);
    check(&[
        post("chunked", CHUNKED, "3\r\nabc\r\n0\r\n\r\n", &[200], Kept),
        post("chunKed", "Transfer-Encoding: chunKed\r\n", "3\r\nabc\r\n0\r\n\r\n", &[200], Kept),
        post("a request behind", CHUNKED, &format!("0\r\n\r\n{SMUGGLED}"), &[200, 200], Kept),
        bad("chunked and a length", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        bad("a length and chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        bad("gzip", "Transfer-Encoding: gzip\r\n"),
        bad("identity", "Transfer-Encoding: identity\r\n"),
        bad("an empty coding", "Transfer-Encoding:\r\n"),
        bad("chunked, gzip", "Transfer-Encoding: chunked, gzip\r\n"),
        bad("chunked, chunked", "Transfer-Encoding: chunked, chunked\r\n"),
        bad("xchunked", "Transfer-Encoding: xchunked\r\n"),
        bad("a vertical tab before chunked", "Transfer-Encoding: \x0bchunked\r\n"),
        bad("two lines", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        bad("two lines, one identity", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
        bad("a space before the colon", "Transfer-Encoding : chunked\r\n"),
        post("gzip, chunked", "Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n", &[501], Closed),
        row(
            "chunked with HTTP/1.0",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            &[400],
            Closed,
        ),
    ]);
}

#[test]
fn chunks() {
    let chunked =
        |name, body: &str, statuses, then| post(name, "Transfer-Encoding: chunked\r\n", body, statuses, then);
    let bad = |name, body: &str| chunked(name, body, &[400], Closed);
    let trailers = |bytes: usize| format!("0\r\nX: {}\r\n\r\n", "x".repeat(bytes));
    check(&[
        bad("a size beyond 64 bits", "00000000000000003\r\nabc\r\n0\r\n\r\n"),
        // Refused at the digit that goes beyond the limit of the body, before it overflows.
        chunked("an overflowing size", "10000000000000003\r\nabc\r\n0\r\n\r\n", &[413], Closed),
        bad("0x3", "0x3\r\nabc\r\n0\r\n\r\n"),
        bad("+3", "+3\r\nabc\r\n0\r\n\r\n"),
        bad("-3", "-3\r\nabc\r\n0\r\n\r\n"),
        bad("1_0", "1_0\r\nabc\r\n0\r\n\r\n"),
        bad("a space before the size", " 3\r\nabc\r\n0\r\n\r\n"),
        bad("a space behind the size", "3 \r\nabc\r\n0\r\n\r\n"),
        bad("an empty size", "\r\nabc\r\n0\r\n\r\n"),
        bad("bare LF behind the size", "3\nabc\r\n0\r\n\r\n"),
        bad("bare LF behind the data", "3\r\nabc\n0\r\n\r\n"),
        bad("bare LF at the end", "0\r\n\n"),
        bad("bare LF in an extension", "3;a\nb\r\nabc\r\n0\r\n\r\n"),
        bad("data longer than its size", "3\r\nabcd\r\n0\r\n\r\n"),
        bad("data shorter than its size", "5\r\nabc\r\n0\r\n\r\n"),
        chunked("a huge size", "fffffffffffffff\r\nabc", &[413], Closed),
        chunked("an extension", "3;name=\"value\"\r\nabc\r\n0;last\r\n\r\n", &[200], Kept),
        chunked("20 KB of extensions", &format!("3;{}\r\nabc\r\n", "x".repeat(20_000)), &[413], Closed),
        chunked("trailers", "3\r\nabc\r\n0\r\nX: y\r\nContent-Length: 9\r\n\r\n", &[200], Kept),
        chunked("trailers that are too long", &trailers(20_000), &[431], Closed),
        bad("a folded trailer", "0\r\nX: y\r\n z\r\n\r\n"),
        chunked(
            "too much",
            &format!("{:x}\r\n{}\r\n", 999_999, "x".repeat(999_999)).repeat(2),
            &[413],
            Closed,
        ),
    ]);
}

#[test]
fn connections() {
    let get = |lines| request("GET /", lines, "");
    let two = [get(""), get("")].concat();
    check(&[
        row("persists", get(""), &[200], Kept),
        row("Connection: close", get("Connection: close\r\n"), &[200], Closed),
        row("close in a list, in capitals", get("Connection: Keep-Alive, CLOSE\r\n"), &[200], Closed),
        row(
            "what follows close is not read",
            [get("Connection: close\r\n"), get("")].concat(),
            &[200],
            Closed,
        ),
        row("two at once", two, &[200, 200], Kept),
        row("HEAD", request("HEAD /", "", ""), &[200], Kept),
        row("HEAD for no route", request("HEAD /nowhere", "", ""), &[404], Kept),
        row("HEAD for a POST route", request("HEAD /ws", "", ""), &[426], Kept),
        post(
            "100-continue, with the body",
            "Content-Length: 3\r\nExpect: 100-continue\r\n",
            "abc",
            &[200],
            Kept,
        ),
        post("another expectation", "Content-Length: 3\r\nExpect: 200-ok\r\n", "abc", &[417], Closed),
        post(
            "100-continue, and too large",
            "Content-Length: 1000001\r\nExpect: 100-continue\r\n",
            "",
            &[413],
            Closed,
        ),
        row("an unknown Upgrade", get("Upgrade: h2c\r\nConnection: Upgrade\r\n"), &[200], Kept),
        row("Upgrade without Connection", get("Upgrade: websocket\r\n"), &[200], Kept),
        row(
            "Expect with HTTP/1.0",
            "POST / HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc",
            &[200],
            Closed,
        ),
    ]);
}

#[test]
fn a_handler_that_fails_answers_500() {
    check(&[
        row("a dropped response", request("GET /dropped", "", ""), &[500], Kept),
        row("a panic", request("GET /panic", "", ""), &[500], Closed),
        row("a panic in a future", request("GET /panic-later", "", ""), &[500], Kept),
    ]);
}

#[test]
fn expect_100_continue_is_answered_before_the_body() {
    let _alone = support::alone();
    let (server, address) = serve();
    let mut client = Client::connect(address);
    for body in ["one", "two"] {
        client.send(&request("POST /", "Content-Length: 3\r\nExpect: 100-continue\r\n", ""));
        assert_eq!(client.answer().unwrap().status, 100);
        client.send(body.as_bytes());
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, answer.text()), (200, body));
    }
    end(server);
}

/// A machine whose clock shows no time that a date can say is served; only the date is left out.
#[test]
fn a_clock_that_no_date_can_say() {
    let _alone = support::alone();
    let clocks: [fn() -> SystemTime; 4] = [
        || SystemTime::UNIX_EPOCH - Duration::from_secs(1),
        || SystemTime::UNIX_EPOCH - Duration::from_secs(1 << 50),
        || SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800),
        || SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 50),
    ];
    for clock in clocks {
        let (server, address) = start(Options { clock, ..Default::default() }, |app| {
            routes(app);
            app.get("/stream", |_: Request, response: Response| async move {
                let mut body = response.stream();
                let _ = body.write("streamed").await;
                body.end();
            });
            app.static_files("/files", concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        });
        let mut client = Client::connect(address);
        for (path, status) in [
            ("/q?still", 200),
            ("/stream", 200),
            ("/nowhere", 404),
            ("/dropped", 500),
            ("/files/lib.rs", 200),
        ] {
            let answer = client.get(path);
            assert_eq!((answer.status, answer.header("date")), (status, None), "{path}: {}", answer.head);
        }
        let condition = "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\n";
        client.send(&request("GET /files/lib.rs", condition, ""));
        assert_eq!(client.answer().unwrap().status, 200);
        client.send(b"BREW / HTTP/1.1\r\n\r\n");
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, answer.header("date")), (501, None));
        end(server);
    }
}

/// A request that is cut off is nobody's.
#[test]
fn a_partial_request_is_not_dispatched() {
    let _alone = support::alone();
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let (server, address) = start(Options::default(), move |app| {
        let count = count.clone();
        app.any("/*", move |_: Request, response: Response| {
            count.fetch_add(1, Ordering::Relaxed);
            response.end("");
        });
    });
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: a\r\n"[..],
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        assert_eq!(half_closed(address, bytes).rest().unwrap(), b"");
    }
    assert_eq!(seen.load(Ordering::Relaxed), 0);
    end(server);
}

/// The client's FIN comes behind its request, its answer later.
#[test]
fn a_half_closed_client_gets_its_late_answers() {
    let _alone = support::alone();
    let (server, address) = serve();
    for (bytes, answers) in [
        (request("GET /later", "", ""), &["late"][..]),
        ([request("GET /later", "", ""), request("GET /q?2", "", "")].concat(), &["late", "2"]),
        ([request("GET /later", "", ""), request("GET /later", "", "")].concat(), &["late", "late"]),
        // What is cut off is dropped without a word, as if nothing had been pending.
        ([&request("GET /later", "", "")[..], b"GET / HTTP/1.1\r\nHo"].concat(), &["late"]),
    ] {
        let mut client = half_closed(address, &bytes);
        for expected in answers {
            assert_eq!(client.answer().unwrap().text(), *expected);
        }
        assert_eq!(client.rest().unwrap(), b"");
    }
    end(server);
}

#[test]
fn an_abort_is_told_once_whether_half_closed_or_reset() {
    let _alone = support::alone();
    let aborts = Arc::new(AtomicUsize::new(0));
    let count = aborts.clone();
    let (server, address) = start(Options::default(), move |app| {
        let count = count.clone();
        let kept = Rc::new(RefCell::new(Vec::new()));
        app.get("/hang", move |_: Request, response: Response| {
            let count = count.clone();
            response.on_abort(move || _ = count.fetch_add(1, Ordering::Relaxed));
            kept.borrow_mut().push(response);
        });
        tell_open(app);
    });
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect(address);
        client.send(&request("GET /hang", "", ""));
        clients.push(client);
    }
    support::eventually("three hang", || open(address) >= 4);
    let [reset, half_closed, closed] = <[Client; 3]>::try_from(clients).ok().unwrap();
    reset.reset();
    support::eventually("a reset is told", || aborts.load(Ordering::Relaxed) == 1);
    half_closed.stream.shutdown(std::net::Shutdown::Write).unwrap();
    support::eventually("a closed side is told", || aborts.load(Ordering::Relaxed) == 2);
    assert_eq!(open(address), 3, "the half-closed client may still be answered");
    // Nothing is sent to it, and no receive is armed: the poll for its hangup sees the reset.
    half_closed.reset();
    support::eventually("it is gone", || open(address) == 2);
    drop(closed);
    support::eventually("a close is told", || aborts.load(Ordering::Relaxed) == 3);
    end(server);
    assert_eq!(aborts.load(Ordering::Relaxed), 3);
}

/// Sends a byte now and then until the server has had enough; the status that it ends with, and when.
fn trickle(address: SocketAddr, first: &[u8], more: &[u8]) -> (Option<u16>, Duration) {
    let mut client = Client::connect(address);
    let start = Instant::now();
    client.send(first);
    let mut writer = client.stream.try_clone().unwrap();
    let more = more.to_vec();
    let sender = std::thread::spawn(move || {
        for byte in more {
            std::thread::sleep(Duration::from_millis(20));
            if io::Write::write_all(&mut writer, &[byte]).is_err() {
                return;
            }
        }
    });
    let status = client.answer().map(|answer| answer.status).ok();
    let elapsed = start.elapsed();
    if status.is_some_and(|status| status >= 400) {
        assert_eq!(client.rest().unwrap(), b"", "the connection ends with the error");
    }
    sender.join().unwrap();
    (status, elapsed)
}

#[test]
fn slow_requests_end_in_time() {
    let _alone = support::alone();
    let limit = Duration::from_millis(600);
    let http = Options { head_timeout: limit, body_timeout: limit, ..Default::default() };
    let (server, address) = start(Options { body_rate: 1000, ..http.clone() }, routes);
    // Looked at twice a second, so up to half a second late.
    let in_time = |(status, after): (Option<u16>, Duration)| {
        assert_eq!(status, Some(408));
        assert!(after >= limit && after < limit + Duration::from_millis(1200), "after {after:?}");
    };
    in_time(trickle(address, b"GET / HTTP/1.1\r\nHost: a\r\nX: ", &[b'x'; 200]));
    in_time(trickle(address, &request("POST /", "Content-Length: 500\r\n", ""), &[b'x'; 200]));
    in_time(trickle(address, &request("POST /", "Transfer-Encoding: chunked\r\n", "ff\r\n"), &[b'x'; 200]));
    end(server);
    // 50 bytes a second, and 25 are enough: the bytes that came have earned the time for the rest.
    let (server, address) = start(Options { body_rate: 25, ..http }, routes);
    let (status, after) = trickle(address, &request("POST /", "Content-Length: 80\r\n", ""), &[b'x'; 80]);
    assert_eq!(status, Some(200));
    assert!(after > limit + Duration::from_millis(500), "after {after:?}: nothing was tried");
    end(server);
}

#[test]
fn idle_connections_end_in_time() {
    let _alone = support::alone();
    let limit = Duration::from_millis(600);
    let (server, address) =
        start(Options { head_timeout: limit, keep_alive: 2 * limit, ..Default::default() }, routes);
    let start = Instant::now();
    assert_eq!(Client::connect(address).rest().unwrap(), b"", "a client that says nothing is told nothing");
    assert!(start.elapsed() >= limit && start.elapsed() < 3 * limit, "after {:?}", start.elapsed());
    let mut client = Client::connect(address);
    for _ in 0..3 {
        assert_eq!(client.get("/").text(), "hello");
        std::thread::sleep(limit);
    }
    let start = Instant::now();
    assert_eq!(client.rest().unwrap(), b"");
    assert!(start.elapsed() >= limit / 2 && start.elapsed() < 3 * limit, "after {:?}", start.elapsed());
    end(server);
}

#[test]
fn a_connection_makes_only_so_many_requests() {
    let _alone = support::alone();
    let (server, address) = start(Options { keep_alive_requests: 3, ..Default::default() }, routes);
    let mut client = Client::connect(address);
    client.send(&request("GET /", "", "").repeat(5));
    for last in [false, false, true] {
        let answer = client.answer().unwrap();
        assert_eq!(answer.header("connection"), last.then_some("close"), "{}", answer.head);
    }
    assert_eq!(client.rest().unwrap(), b"");
    end(server);
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let _alone = support::alone();
    let limit = Duration::from_millis(700);
    let (server, address) = start(Options { write_timeout: limit, ..Default::default() }, |app| {
        app.get("/large", |_, response| response.end(vec![b'l'; 1_200_000]));
        tell_open(app);
    });
    for close in ["", "Connection: close\r\n"] {
        let mut stalled = Client::with_receive_buffer(address, 16_384);
        let mut slow = Client::with_receive_buffer(address, 16_384);
        for client in [&mut stalled, &mut slow] {
            client.send(&request("GET /large", close, ""));
        }
        let reader = std::thread::spawn(move || {
            let (mut read, mut chunk) = (0, vec![0; 100_000]);
            while read < 1_200_000 {
                std::thread::sleep(Duration::from_millis(20));
                match io::Read::read(&mut slow.stream, &mut chunk) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => read += count,
                }
            }
            read
        });
        support::eventually("both are served", || open(address) == 3);
        let start = Instant::now();
        support::eventually("the stalled one is given up", || open(address) <= 2);
        assert!(start.elapsed() < 3 * limit, "after {:?}", start.elapsed());
        assert!(reader.join().unwrap() >= 1_200_000, "who reads slowly gets everything");
        assert!(start.elapsed() > limit, "nothing was tried");
        drop(stalled);
        support::eventually("the slow one has left", || open(address) <= 2);
    }
    end(server);
}

/// Who believes what a client says of itself has nobody to blame.
#[test]
fn forwarded_headers_are_believed_from_proxies_only() {
    let _alone = support::alone();
    let who = |http: Options, target: &str, fields: &str| {
        let (server, address) = start(http, routes);
        let mut client = Client::connect(address);
        client.send(&request(&format!("GET {target}"), fields, ""));
        let seen = client.answer().unwrap().text().to_owned();
        end(server);
        seen
    };
    let trusting =
        |list: &[&str]| Options { trust_proxy: TrustProxy::networks(list).unwrap(), ..Default::default() };
    const SAID: &str = "X-Forwarded-For: 203.0.113.7, 192.0.2.9\r\nX-Forwarded-Proto: https\r\n\
                        X-Forwarded-Host: public.example\r\nForwarded: for=192.0.2.1;proto=https;host=b\r\n";
    assert_eq!(who(Default::default(), "/who", SAID), "127.0.0.1 http a");
    assert_eq!(who(trusting(&["10.0.0.0/8"]), "/who", SAID), "127.0.0.1 http a");
    assert_eq!(who(trusting(&["loopback"]), "/who", SAID), "192.0.2.9 https public.example");
    assert_eq!(who(trusting(&["loopback"]), "/who", ""), "127.0.0.1 http a");
    // The target's host replaces the header's (RFC 9112 section 3.2.2).
    assert_eq!(who(Default::default(), "http://b.example:80/who", ""), "127.0.0.1 http b.example:80");
}

#[test]
fn a_route_may_have_a_limit_of_its_own() {
    let upload = |path: &str, bytes: usize| {
        request(&format!("POST {path}"), &format!("Content-Length: {bytes}\r\n"), &"x".repeat(bytes))
    };
    // Who sends on for long after a refusal may be reset: only so much is thrown away for its sake.
    let begin = |path: &str, bytes: usize| {
        request(&format!("POST {path}"), &format!("Content-Length: {bytes}\r\n"), "the first of it")
    };
    check(&[
        row("as much as the route takes", upload("/upload", 3_000_000), &[200], Kept),
        row("more", begin("/upload", 3_000_001), &[413], Closed),
        row("less than others take", upload("/small", 4), &[413], Closed),
        row("little", upload("/small", 3), &[200], Kept),
    ]);
}
