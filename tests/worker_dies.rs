//! A panic outside all boundaries costs its worker, and with it the server, loudly; one within a boundary
//! costs only what it was for.

mod support;

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sockring::app::App;
use sockring::runtime::{Descriptors, Running};
use support::*;

both!(
    a_worker_that_dies_stops_the_server_and_says_so,
    a_task_that_panics_costs_itself_alone,
    a_step_that_panics_costs_its_connection_alone,
    a_handler_that_keeps_its_core_is_named,
);

fn set_up(app: &App) {
    app.get("/", |_, response| response.end("here"));
    app.get("/spawned", |_, response| {
        drop(sockring::spawn(async { panic!("spawned on purpose") }));
        response.end("it will");
    });
    app.get("/raw", |_, response| {
        monoio::spawn(async { panic!("raw on purpose") });
        response.end("it will");
    });
    app.get("/handler", |request, response| {
        assert_ne!(request.path(), "/handler", "handled on purpose");
        response.end("unreachable");
    });
    app.get("/slow", |_, response| {
        std::thread::sleep(Duration::from_millis(300));
        response.end("at last");
    });
}

fn server(descriptors: Descriptors, workers: usize) -> Running {
    builder(options(descriptors, workers)).start(set_up).unwrap()
}

/// A connection is refused, or ends; it must not hang.
fn is_let_go(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(8)) else { return true };
    stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    let _ = std::io::Write::write_all(&mut stream, get("/").as_bytes());
    match stream.read(&mut [0; 64]) {
        Ok(0) => true,
        // Another worker has answered, which stops as well.
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
    }
}

fn a_worker_that_dies_stops_the_server_and_says_so(descriptors: Descriptors) {
    logs::keep();
    for workers in [1, 2] {
        let server = server(descriptors, workers);
        let address = server.addresses()[0];
        let mut open: Vec<Client> = (0..20).map(|_| Client::connect(address)).collect();
        for client in &mut open {
            assert_eq!(client.get("/").text(), "here");
        }
        assert_eq!(Client::connect(address).get("/raw").text(), "it will");
        for (i, client) in open.iter_mut().enumerate() {
            assert!(client.ends(), "client {i} of {workers} workers hangs");
        }
        let ended = server.join().expect_err("a worker has died");
        assert!(ended.why.contains("\"raw on purpose\" at tests/worker_dies.rs:"), "{ended}");
        assert!(ended.worker < workers);
        for _ in 0..30 {
            assert!(is_let_go(address), "a new connection hangs");
        }
        assert!(TcpStream::connect(address).is_err(), "nobody listens");
    }
    assert_eq!(logs::with(&["ERROR", "has ended", "raw on purpose"]).len(), 2);
}

/// The server of the next test, in a process of its own: see [`in_a_process`].
#[test]
fn a_server_in_a_process_of_its_own() {
    if std::env::var_os("WORKER_DIES").is_none() {
        return;
    }
    let running = server(Descriptors::Auto, 1);
    println!("at {}", running.addresses()[0]);
    if let Err(error) = running.run_until_signal() {
        eprintln!("{error}");
        std::process::exit(3);
    }
}

#[test]
fn the_status_of_the_process_says_so() {
    let _alone = alone();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_server_in_a_process_of_its_own", "--nocapture"])
        .env("WORKER_DIES", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let address = lines.map_while(Result::ok).find_map(|line| line.split_once("at ")?.1.parse().ok());
    assert_eq!(Client::connect(address.expect("it listens")).get("/raw").text(), "it will");
    let output = process.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("worker 0 has ended: it panicked: \"raw on purpose\""), "{said}");
}

fn a_task_that_panics_costs_itself_alone(descriptors: Descriptors) {
    logs::keep();
    let server = server(descriptors, 1);
    let mut client = Client::connect(server.addresses()[0]);
    for _ in 0..3 {
        assert_eq!(client.get("/spawned").text(), "it will");
    }
    eventually("the panics are counted", || server.metrics().total("panics") == 3);
    assert_eq!(client.get("/").text(), "here");
    let place = "spawned at tests/worker_dies.rs:";
    let said = logs::with(&["ERROR", "\"spawned on purpose\" at tests/worker_dies.rs:", place]);
    assert_eq!(said.len(), 3, "{:?}", logs::with(&["ERROR"]));
    end(server);
}

fn a_step_that_panics_costs_its_connection_alone(descriptors: Descriptors) {
    logs::keep();
    let server = server(descriptors, 1);
    let mut stranger = Client::connect(server.addresses()[0]);
    assert_eq!(stranger.get("/").text(), "here");
    for _ in 0..5 {
        let mut client = Client::connect(server.addresses()[0]);
        client.send(get("/handler").as_bytes());
        assert_eq!(client.answer().unwrap().status, 500);
        assert!(client.ends());
        assert_eq!(stranger.get("/").text(), "here");
    }
    assert_eq!(server.metrics().total("panics"), 5);
    assert_eq!(logs::with(&["ERROR", "handled on purpose"]).len(), 5);
    end(server);
}

fn a_handler_that_keeps_its_core_is_named(descriptors: Descriptors) {
    logs::keep();
    let server = server(descriptors, 1);
    let start = Instant::now();
    assert_eq!(Client::connect(server.addresses()[0]).get("/slow").text(), "at last");
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(server.metrics().total("slow_steps"), 1);
    let said = logs::with(&["WARN", "kept its core for"]);
    assert_eq!(said.len(), 1, "once, by the innermost step: {said:?}");
    end(server);
}

/// A panic's value may panic again when it is dropped, and a panic may come while another thread panics.
#[test]
fn panics_of_all_kinds_are_survived() {
    static KINDS: LazyLock<Mutex<Vec<u8>>> = LazyLock::new(|| Mutex::new((0..4).collect()));
    struct Grenade;
    impl Drop for Grenade {
        fn drop(&mut self) {
            panic!("dropped on purpose");
        }
    }
    let _alone = alone();
    logs::keep();
    let server = builder(options(Descriptors::Auto, 1)).start(|app| {
        app.get("/", |_, response| match KINDS.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            Some(0) => panic!("a text"),
            Some(1) => panic!("{} made", "a text"),
            Some(2) => std::panic::panic_any(7),
            Some(_) => std::panic::panic_any(Grenade),
            None => response.end("here"),
        });
    });
    let server = server.unwrap();
    for _ in 0..4 {
        let mut client = Client::connect(server.addresses()[0]);
        client.send(get("/").as_bytes());
        assert_eq!(client.answer().unwrap().status, 500);
    }
    assert_eq!(Client::connect(server.addresses()[0]).get("/").text(), "here");
    assert_eq!(server.metrics().total("panics"), 4);
    end(server);
}
