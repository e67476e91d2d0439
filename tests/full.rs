//! A server that is full says so: to clients, to whoever watches it, and in its log.

mod support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sockring::app::{App, Behavior};
use sockring::io::{Options, Server};
use sockring::runtime::Descriptors;
use support::*;

both!(
    more_clients_than_descriptors,
    a_full_server_answers_requests_of_all_kinds,
    silent_clients_do_not_keep_the_reserve,
);

fn set_up(app: &App) {
    app.ws("/hold", Behavior::<()>::default());
    app.post("/body", |_, response| response.end("taken"));
    app.serve_health("/healthz");
    app.serve_metrics("/metrics");
    app.when_full().get("/log", |_, response| {
        response.end(logs::with(&["places for connections"]).join("\n"));
    });
    Server::attach_app(app, Options::default());
}

/// Run by [`more_clients_than_descriptors`], in a process of its own.
#[test]
fn a_server_with_few_descriptors() {
    let Ok(kind) = std::env::var("FEW_DESCRIPTORS") else { return };
    logs::keep();
    let kind = if kind == "Direct" { Descriptors::Direct } else { Descriptors::Normal };
    let running = builder(options(kind, 1)).start(set_up).unwrap();
    let capacity = logs::with(&["INFO", "1 workers, each with places for"]);
    println!("at {} {capacity:?}", running.addresses()[0]);
    running.run_until_signal().unwrap();
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The server, and the number of places that it has said.
fn with_few_descriptors(descriptors: Descriptors, limit: u64) -> (Process, SocketAddr, usize) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_server_with_few_descriptors", "--nocapture"]);
    command.env("FEW_DESCRIPTORS", format!("{descriptors:?}")).stdout(Stdio::piped());
    let limits = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: between fork and exec only setrlimit is called, which reads a value of the closure's.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &limits) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut process = Process(command.spawn().unwrap());
    let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
    let said = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("at 127")?.1.to_owned()));
    let said = said.expect("it listens");
    let (address, capacity) = said.split_once(' ').unwrap();
    let capacity = capacity.split_once("places for ").unwrap().1.split(' ').next().unwrap();
    (process, format!("127{address}").parse().unwrap(), capacity.parse().unwrap())
}

/// What a client gets that wants a place: the status, or `None` if its connection was closed without one.
fn asks(client: &mut Client) -> Option<u16> {
    let answer = client.answer();
    if let Err(error) = &answer {
        let hangs = matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
        assert!(!hangs, "a client hangs");
    }
    let answer = answer.ok()?;
    if answer.status == 503 {
        assert_eq!(answer.header("Retry-After"), Some("5"));
        assert_eq!(answer.header("Connection"), Some("close"));
    }
    Some(answer.status)
}

fn more_clients_than_descriptors(descriptors: Descriptors) {
    let (_process, address, capacity) = with_few_descriptors(descriptors, 128);
    assert!((20..128).contains(&capacity), "{capacity}");
    let mut clients: Vec<Client> = (0..300).map(|_| Client::connect(address)).collect();
    for client in &mut clients {
        // One that was closed already is found out by what it reads.
        let _ = client.try_send(upgrade_request("/hold").as_bytes());
    }
    let mut statuses: Vec<Option<u16>> = clients.iter_mut().map(asks).collect();
    let inside = statuses.iter().filter(|status| **status == Some(101)).count();
    assert_eq!(inside, capacity, "{statuses:?}");
    statuses.retain(|status| *status != Some(101));
    let told = statuses.iter().filter(|status| **status == Some(503)).count();
    assert!(statuses.iter().all(|status| matches!(status, Some(503) | None)), "{statuses:?}");
    assert!(told * 2 > statuses.len(), "most are told: {statuses:?}");
    // What watches the server is served meanwhile.
    let health = Client::connect(address).get("/healthz");
    assert_eq!((health.status, health.text()), (200, "ok"));
    assert_eq!(health.header("Connection"), Some("close"));
    let metrics = Client::connect(address).get("/metrics");
    let value = |name: &str| -> usize {
        let line = metrics.text().lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{name}"))
    };
    assert_eq!(value("sockring_connections_max{"), capacity);
    assert!(value("sockring_connections{") > capacity);
    assert!(value("sockring_accepted_beyond_capacity_total{") >= told);
    let said = Client::connect(address).get("/log").text().to_owned();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("WARN") && said.contains("are taken"), "{said}");
    // Clients leave: others are served, and it is said.
    drop(clients);
    let again = || {
        let mut client = Client::connect(address);
        client.try_send(upgrade_request("/hold").as_bytes()).is_ok() && asks(&mut client) == Some(101)
    };
    eventually("there are places again", again);
    let said = || Client::connect(address).get("/log").text().to_owned();
    eventually("it is said", || said().lines().count() == 2);
    assert!(said().contains("there are free places"), "{}", said());
}

/// A server with one place, which is taken.
fn full(descriptors: Descriptors) -> (sockring::runtime::Running, Client) {
    logs::keep();
    let few = sockring::runtime::Options {
        connections: 1,
        defer_accept: Duration::ZERO,
        ..options(descriptors, 1)
    };
    let server = builder(few).start(set_up).unwrap();
    let inside = Client::websocket(server.addresses()[0], "/hold");
    (server, inside)
}

fn a_full_server_answers_requests_of_all_kinds(descriptors: Descriptors) {
    let (server, inside) = full(descriptors);
    let address = server.addresses()[0];
    let post = |length: usize, body: &str| {
        format!("POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    let requests = [
        (get("/nowhere"), 503),
        (upgrade_request("/hold"), 503),
        (post(5, "hello"), 503),
        (get("/socket.io/?EIO=4&transport=polling"), 503),
        (upgrade_request(SOCKETIO), 503),
        (get("/healthz"), 200),
        (get("/healthz").replace("GET", "HEAD"), 200),
        (get("/metrics"), 200),
        // What is no request is told so, as ever.
        ("GET / HTTP/9.9\r\n\r\n".into(), 505),
    ];
    for (request, status) in requests {
        let mut client = Client::connect(address);
        client.send(request.as_bytes());
        client.send(get("/healthz").as_bytes());
        let answer = client.head().unwrap();
        assert_eq!(answer.status, status, "{request}");
        assert_eq!(answer.header("Retry-After").is_some(), status == 503, "{request}");
        let _ = client.rest();
        assert!(client.ends(), "one request for each: {request}");
    }
    // A page of another origin can read the status of the engine's path.
    let mut client = Client::connect(address);
    let request =
        get("/socket.io/?EIO=4&transport=polling").replace("\r\n\r\n", "\r\nOrigin: http://a\r\n\r\n");
    client.send(request.as_bytes());
    assert_eq!(client.answer().unwrap().status, 503);
    drop(inside);
    eventually("a place", || server.metrics().total("connections") == 0);
    assert_eq!(Client::connect(address).post("/body", b"hello").text(), "taken");
    end(server);
}

fn silent_clients_do_not_keep_the_reserve(descriptors: Descriptors) {
    let (server, _inside) = full(descriptors);
    let address = server.addresses()[0];
    let mut silent: Vec<Client> = (0..100).map(|_| Client::connect(address)).collect();
    let health = Client::connect(address).get("/healthz");
    assert_eq!((health.status, health.text()), (200, "ok"));
    // Those that have had their time are gone.
    assert!(silent[0].ends());
    assert!(server.metrics().total("connections") <= 1 + 16 + 1);
    end(server);
}
