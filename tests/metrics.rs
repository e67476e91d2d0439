//! What the server counts, and that others can read it.

mod support;

use sockring::io::{Options, Server, Socket};
use sockring::runtime::{Descriptors, Running};
use support::Client;

const POLL: &str = "/socket.io/?EIO=4&transport=polling";

fn start() -> Running {
    let server = support::builder(support::options(Descriptors::Auto, 2)).start(|app| {
        app.serve_metrics("/metrics");
        let io = Server::attach_app(app, Options::default());
        io.on_connection(|socket: Socket| socket.join(["all", "some"]));
        let all = io.clone();
        io.sockets_on("say", move || all.to("all").emit("said", "something").map(drop));
        io.sockets_on("say quickly", |socket: Socket| {
            // Who has been told something in this turn is busy.
            let _ = socket.emit("said", 1)?;
            socket.volatile().emit("said", 2).map(drop)
        });
        // Another server beside it counts too.
        let mut other = Options::default();
        other.engine.path = "/other".into();
        Server::attach_app(app, other);
    });
    server.expect("a server starts")
}

#[test]
fn all_cores_are_counted_together() {
    let _alone = support::alone();
    let server = start();
    let address = server.addresses()[0];
    let mut clients: Vec<Client> = (0..8).map(|_| Client::socketio(address)).collect();
    let mut polling = Client::connect(address);
    let path = format!("{POLL}&sid={}", support::sid(polling.get(POLL).text()));
    polling.post(&path, b"40");
    assert!(polling.get(&path).text().starts_with("40{"));

    clients[0].send_text("42[\"say\"]");
    for client in &mut clients {
        assert_eq!(client.text(), "42[\"said\",\"something\"]");
    }
    assert_eq!(polling.get(&path).text(), "42[\"said\",\"something\"]");
    clients[1].send_text("42[\"say quickly\"]");
    assert_eq!(clients[1].text(), "42[\"said\",1]");

    let metrics = server.metrics();
    let cores: Vec<usize> = metrics.cores().map(|(core, _)| core).collect();
    assert_eq!(cores, [0, 1]);
    for (name, expected) in [
        ("connections", 9),
        ("accepted", 9),
        ("websockets", 8),
        ("engine_sessions", 9),
        ("engine_sessions_opened", 9),
        // CONNECT of all, and two events.
        ("engine_messages_received", 11),
        ("sockets", 9),
        // A core has a room where it has members; the other server has none.
        ("slow_connections", 0),
        ("queued_bytes", 0),
        ("dropped_messages", 1),
        ("closed_for_backpressure", 0),
        ("completions_lost", 0),
    ] {
        assert_eq!(metrics.total(name), expected, "{name}");
    }
    assert!((2..=4).contains(&metrics.total("rooms")));
    assert_eq!(metrics.total("namespaces"), 4, "`/` of two servers, on two cores");
    // Each handshake, open packet, CONNECT and event left in some send.
    let (messages, sends) = (metrics.total("sent_messages"), metrics.total("sends"));
    assert!(messages >= 8 * 4 && sends >= 8 * 2 && sends <= messages, "{messages} in {sends}");
    assert!(metrics.total("sent_bytes") > 8 * 200 && metrics.total("received_bytes") > 8 * 100);
    assert!(metrics.total("turn_seconds") > 8);
    drop(clients);
    support::eventually("they are gone", || server.metrics().total("sockets") <= 1);
    support::end(server);
}

#[test]
fn prometheus_reads_them() {
    let _alone = support::alone();
    let server = start();
    let client = Client::socketio(server.addresses()[0]);
    let mut scraper = Client::connect(server.addresses()[0]);
    let answer = scraper.get("/metrics");
    assert_eq!(
        answer.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    let text = answer.text();
    let has = |line: &str| assert!(text.lines().any(|known| known == line), "{line}\n{text}");
    has("# TYPE sockring_connections gauge");
    has("# HELP sockring_connections Connections that are open.");
    has("# TYPE sockring_accepted counter");
    has("# TYPE sockring_turn_seconds histogram");
    has("# EOF");
    let sum = |name: &str| {
        let of = |line: &str| line.strip_prefix(name)?.rsplit_once(' ')?.1.parse::<u64>().ok();
        text.lines().filter_map(of).sum::<u64>()
    };
    assert_eq!(sum("sockring_connections{"), 2);
    assert_eq!(sum("sockring_accepted_total{"), 2);
    assert_eq!(sum("sockring_engine_sessions{"), 1);
    assert_eq!(text.lines().filter(|line| line.starts_with("sockring_engine_sessions{")).count(), 4);
    assert!(text.contains("sockring_dropped_messages_total{core=\"1\",policy=\"volatile\"} 0"));
    assert!(text.contains("sockring_turn_seconds_bucket{le=\"+Inf\",core=\"0\"}"));
    drop((client, scraper));
    support::end(server);
}
