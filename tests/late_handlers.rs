//! Async handlers and middlewares that take long, and clients that do not wait for them.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sockring::io::{Ack, ConnectionStateRecovery, Data, Options, Server, Socket, Value};
use sockring::runtime::{Descriptors, Running};
use support::Client;

fn start(recovery: bool, set_up: impl Fn(&Server) + Send + Sync + 'static) -> Running {
    let server = support::builder(support::options(Descriptors::Auto, 1)).start(move |app| {
        let recovery = recovery.then(|| ConnectionStateRecovery {
            skip_middlewares: false,
            ..ConnectionStateRecovery::default()
        });
        set_up(&Server::attach_app(
            app,
            Options { connection_state_recovery: recovery, ..Options::default() },
        ));
    });
    server.expect("a server starts")
}

fn open(address: SocketAddr) -> Client {
    let mut client = Client::websocket(address, "/socket.io/?EIO=4&transport=websocket");
    assert!(client.text().starts_with("0{"));
    client
}

fn field(packet: &str, name: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(packet.trim_start_matches("40")).unwrap();
    value[name].as_str().unwrap_or_default().to_owned()
}

async fn until(gate: &AtomicUsize, value: usize) {
    while gate.load(Ordering::Acquire) < value {
        monoio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A client that sends and sends while its events wait costs a bounded amount of memory, and only itself.
#[test]
fn events_that_wait_are_limited() {
    let _alone = support::alone();
    let (gate, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (opened, count) = (gate.clone(), begun.clone());
    let server = start(false, move |io| {
        let (gate, begun) = (opened.clone(), count.clone());
        io.sockets_on("wait", move |Data(_): Data<String>, ack: Ack| {
            let (gate, begun) = (gate.clone(), begun.clone());
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                until(&gate, 1).await;
                ack.send(())
            }
        });
        io.on_connection(|socket: Socket| {
            socket.middleware(|| async { monoio::time::sleep(Duration::from_millis(1)).await });
        });
    });
    let address = server.addresses()[0];
    let mut patient = open(address);
    patient.send_text("40");
    assert!(patient.text().starts_with("40{"));
    for id in 0..1000 {
        patient.send_text(&format!("42{id}[\"wait\",\"a few\"]"));
    }
    support::eventually("they all begin", || begun.load(Ordering::Relaxed) == 1000);
    let mut flood = open(address);
    flood.send_text("40");
    assert!(flood.text().starts_with("40{"));
    let event = format!("42[\"wait\",\"{}\"]", "x".repeat(20_000));
    // Twice what may wait; the end comes before.
    let closed = (0..2000).any(|_| {
        flood
            .try_send(&support::masked(sockring::protocol::ws::frame::OpCode::Text, event.as_bytes()))
            .is_err()
    });
    assert!(closed || flood.ends(), "a client that floods is closed");
    gate.store(1, Ordering::Release);
    // What has waited within the limit is answered, and counts no more.
    let mut answered = 0;
    while answered < 1000 {
        answered += usize::from(patient.text().starts_with("43"));
    }
    for id in 0..2000 {
        patient.send_text(&format!("42{id}[\"wait\",\"{}\"]", "x".repeat(20_000)));
        while !patient.text().starts_with("43") {}
    }
    support::end(server);
}

/// A socket that has left while its middleware ran does not take the claim of the next one in its slot.
#[test]
fn a_late_middleware_takes_nobody_s_place() {
    let _alone = support::alone();
    let (gate, decided) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (opened, count) = (gate.clone(), decided.clone());
    let server = start(true, move |io| {
        let (gate, decided) = (opened.clone(), count.clone());
        io.middleware(move |Data(auth): Data<Value>| {
            let (gate, decided) = (gate.clone(), decided.clone());
            async move {
                let wait: usize =
                    auth.get("wait").map(ToString::to_string).and_then(|n| n.parse().ok()).unwrap_or(0);
                until(&gate, wait).await;
                decided.fetch_add(1, Ordering::Release);
            }
        });
        io.on_connection(|socket: Socket| socket.emit("hello", ()));
    });
    let address = server.addresses()[0];
    let mut first = open(address);
    first.send_text("40");
    let joined = first.text();
    let (sid, pid) = (field(&joined, "sid"), field(&joined, "pid"));
    let hello: serde_json::Value = serde_json::from_str(&first.text()[2..]).unwrap();
    let offset = hello[1].as_str().unwrap().to_owned();
    first.reset();
    let mut again = open(address);
    // The third is in the slot of the first, which has left.
    for wait in [1, 3, 2] {
        again.send_text(&format!("40{{\"wait\":{wait},\"pid\":\"{pid}\",\"offset\":\"{offset}\"}}"));
    }
    again.send_text("40/nobody knows this,");
    assert!(again.text().starts_with("44/nobody"));
    gate.store(1, Ordering::Release);
    support::eventually("the first decides", || decided.load(Ordering::Acquire) == 2);
    gate.store(2, Ordering::Release);
    let back = again.text();
    assert_eq!((field(&back, "sid"), field(&back, "pid")), (sid, pid), "{back}");
    gate.store(3, Ordering::Release);
    support::end(server);
}
