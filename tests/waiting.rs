//! What waits for handlers, rooms and answers is bounded, and a client that does nothing wrong meets no
//! bound.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use sockring::engine;
use sockring::io::{
    Ack, AckError, Args, ConnectionStateRecovery, Data, Event, Handle, Joined, Options, Server, Socket, Value,
};
use sockring::protocol::ws::frame::OpCode;
use sockring::runtime::{Descriptors, Running};
use support::{Client, alone, end, eventually};

const POLLING: &str = "/socket.io/?EIO=4&transport=polling";
const WEBSOCKET: &str = "/socket.io/?EIO=4&transport=websocket";

fn start(
    workers: usize,
    options: impl Fn() -> Options + Send + Sync + 'static,
    set_up: impl Fn(&Server) + Send + Sync + 'static,
) -> Running {
    let server = support::builder(support::options(Descriptors::Auto, workers));
    server.start(move |app| set_up(&Server::attach_app(app, options()))).expect("a server starts")
}

fn open(address: SocketAddr) -> Client {
    let mut client = Client::websocket(address, WEBSOCKET);
    assert!(client.text().starts_with("0{"));
    client
}

/// Joins with an auth payload. What came before the CONNECT, and that.
fn join(client: &mut Client, auth: &serde_json::Value) -> (Vec<String>, serde_json::Value) {
    client.send_text(&format!("40{auth}"));
    let mut before = Vec::new();
    loop {
        let text = client.text();
        match text.strip_prefix("40{") {
            Some(_) => return (before, serde_json::from_str(&text[2..]).unwrap()),
            None => before.push(text),
        }
    }
}

fn until(client: &mut Client, start: &str) -> String {
    loop {
        let text = client.text();
        if text.starts_with(start) {
            return text;
        }
    }
}

/// A client that was away sends what it has kept in one POST. The middleware is async and ready at once.
#[test]
fn a_hundred_thousand_events_in_one_post_pass_in_order() {
    let _alone = alone();
    const EVENTS: usize = 100_000;
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let options = || Options {
        engine: engine::Options { max_http_buffer_size: 10 << 20, ..Options::default().engine },
        ..Options::default()
    };
    let server = start(1, options, move |io| {
        let count = count.clone();
        io.on_connection(move |socket: Socket| {
            socket.middleware(|Event(name): Event| async move {
                assert_eq!(name, "e");
                Ok::<(), sockring::io::Failure>(())
            });
            let count = count.clone();
            socket.on("e", move |Data(n): Data<usize>| {
                let expected = count.fetch_add(1, Ordering::SeqCst);
                async move { assert_eq!(n, expected, "in order") }
            });
        });
    });
    let mut client = Client::connect(server.addresses()[0]);
    let path = format!("{POLLING}&sid={}", support::sid(client.get(POLLING).text()));
    assert_eq!(client.post(&path, b"40").text(), "ok");
    assert!(client.get(&path).text().starts_with("40{"));
    let events: Vec<String> = (0..EVENTS).map(|n| format!("42[\"e\",{n}]")).collect();
    assert_eq!(client.post(&path, events.join("\u{1e}").as_bytes()).text(), "ok");
    eventually("all are handled", || seen.load(Ordering::SeqCst) == EVENTS);
    assert_eq!(server.metrics().total("panics"), 0);
    assert_eq!(server.metrics().total("sockets"), 1);
    end(server);
}

/// The waker of a future's first step, which runs where its handler is called, wakes its task.
#[test]
fn futures_that_wait_go_on() {
    let _alone = alone();
    let server = start(1, Options::default, |io| {
        io.middleware(|| async { monoio::time::sleep(Duration::from_millis(2)).await });
        io.on_connection(|socket: Socket| {
            socket.middleware(|| async { monoio::time::sleep(Duration::from_millis(2)).await });
        });
        io.sockets_on("timer", |ack: Ack| async {
            for _ in 0..3 {
                monoio::time::sleep(Duration::from_millis(2)).await;
            }
            ack.send(1)
        });
        io.sockets_on("thread", |ack: Ack| async {
            let (done, wait) = futures_of_another_thread();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                done();
            });
            wait.await;
            ack.send(2)
        });
        io.sockets_on("ask", |socket: Socket, ack: Ack| async move {
            ack.send(socket.emit_with_ack::<u8, _>("how much?", ()).await.unwrap())
        });
    });
    let mut client = open(server.addresses()[0]);
    join(&mut client, &json!({}));
    client.send_text("421[\"timer\"]");
    assert_eq!(client.text(), "431[1]");
    client.send_text("422[\"thread\"]");
    assert_eq!(client.text(), "432[2]");
    client.send_text("423[\"ask\"]");
    let asked = client.text();
    let id = asked.strip_prefix("42").and_then(|rest| rest.split('[').next()).unwrap();
    client.send_text(&format!("43{id}[3]"));
    assert_eq!(client.text(), "433[3]");
    end(server);
}

/// A future that another thread finishes, and how it does.
fn futures_of_another_thread() -> (impl FnOnce() + Send, impl Future<Output = ()>) {
    use std::sync::Mutex;
    use std::task::{Poll, Waker};
    let state: Arc<Mutex<(bool, Option<Waker>)>> = Arc::default();
    let ours = state.clone();
    let done = move || {
        let mut state = state.lock().unwrap();
        state.0 = true;
        state.1.take().into_iter().for_each(Waker::wake);
    };
    let wait = std::future::poll_fn(move |cx| {
        let mut state = ours.lock().unwrap();
        // The first waker is kept, as some timers do.
        state.1.get_or_insert_with(|| cx.waker().clone());
        if state.0 { Poll::Ready(()) } else { Poll::Pending }
    });
    (done, wait)
}

/// Counts itself as long as it is there.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Clients that come, leave futures that wait for ever, and go.
#[test]
fn futures_of_those_who_have_gone_are_bounded() {
    let _alone = alone();
    let waiting = Arc::new(AtomicUsize::new(0));
    let count = waiting.clone();
    let server = start(1, Options::default, move |io| {
        let count = count.clone();
        io.sockets_on("wait", move |Args(args): Args| {
            count.fetch_add(1, Ordering::SeqCst);
            let counted = Counted(count.clone());
            async move {
                std::future::pending::<()>().await;
                drop((args, counted));
            }
        });
        io.sockets_on("leave", |socket: Socket, Args(args): Args| {
            socket.disconnect(true);
            async move {
                std::future::pending::<()>().await;
                drop(args);
            }
        });
        io.sockets_on("hello", |ack: Ack| ack.send(()));
        // Also those of middlewares.
        let slow = io.of("/slow");
        slow.middleware(std::future::pending::<()>);
    });
    let address = server.addresses()[0];
    let large = format!("42[\"wait\",\"{}\"]", "x".repeat(900_000));
    for _ in 0..10 {
        let mut client = open(address);
        join(&mut client, &json!({}));
        for _ in 0..14 {
            client.send_text(&large);
        }
        client.send_text(&format!("40/slow,{{\"x\":\"{}\"}}", "x".repeat(900_000)));
        client.send_text("421[\"hello\"]");
        until(&mut client, "431");
    }
    let bytes = || server.metrics().total("unfinished_bytes");
    // A handler that has disconnected its client counts as well.
    let before = bytes();
    let mut client = open(address);
    join(&mut client, &json!({}));
    client.send_text(&large.replacen("wait", "leave", 1));
    assert!(client.ends());
    eventually("it is counted or given up", || bytes() != before);
    eventually("the oldest are dropped", || bytes() <= 64 << 20);
    eventually("they are dropped", || waiting.load(Ordering::SeqCst) < 75);
    assert!(waiting.load(Ordering::SeqCst) > 30, "only as many as must be");
    assert!(server.metrics().total("futures_given_up") >= 70);
    end(server);
}

/// An answer takes its deadline along.
#[test]
fn deadlines_go_with_the_answers() {
    let _alone = alone();
    let server = start(1, Options::default, |io| {
        let all = io.clone();
        io.sockets_on("ask", move |socket: Socket| {
            let hour = Duration::from_secs(3600);
            let done = |answer: Result<Vec<Value>, AckError>| drop(answer);
            socket.timeout(hour).emit_with_callback("question", (), done)?;
            drop(all.timeout(hour).emit_with_ack::<u8, _>("vote", ()));
            Ok::<(), sockring::io::EncodeError>(())
        });
    });
    let mut client = open(server.addresses()[0]);
    join(&mut client, &json!({}));
    for _ in 0..500 {
        client.send_text("42[\"ask\"]");
        for _ in 0..2 {
            let asked = client.text();
            let id = asked.strip_prefix("42").and_then(|rest| rest.split('[').next()).unwrap();
            client.send_text(&format!("43{id}[1]"));
        }
    }
    client.send_text("42[\"ask\"]");
    client.text();
    let metrics = server.metrics();
    assert!((1..=2).contains(&metrics.total("ack_deadlines")), "{}", metrics.total("ack_deadlines"));
    drop(client);
    eventually("who leaves owes nothing", || server.metrics().total("pending_acks") == 0);
    end(server);
}

#[test]
fn rooms_of_a_socket_and_their_names_are_bounded() {
    let _alone = alone();
    let options = || Options { rooms_per_socket: 5, room_name_bytes: 10, ..Options::default() };
    let server = start(1, options, |io| {
        io.sockets_on("join", |socket: Socket, Data(rooms): Data<Vec<String>>, ack: Ack| {
            let joined = match socket.join(rooms) {
                Joined::Yes => "yes",
                Joined::Gone => "gone",
                Joined::Full => "full",
            };
            ack.send((joined, socket.rooms().len()))
        });
        io.sockets_on("leave", |socket: Socket, Data(room): Data<String>| socket.leave(room));
    });
    let mut client = open(server.addresses()[0]);
    join(&mut client, &json!({}));
    let mut ask = |rooms: serde_json::Value, answer: &str| {
        client.send_text(&format!("421[\"join\",{rooms}]"));
        assert_eq!(client.text(), format!("431{answer}"), "{rooms}");
    };
    // With the room of its own id, which does not count.
    ask(json!(["1", "2", "3", "4"]), r#"["yes",5]"#);
    ask(json!(["12345678901"]), r#"["full",5]"#);
    ask(json!(["5", "6", "7"]), r#"["full",6]"#);
    ask(json!(["1", "5"]), r#"["yes",6]"#);
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    io.sockets_join(["8", "1"]);
    eventually("joins from elsewhere meet the limit", || server.metrics().total("rooms_refused") == 4);
    client.send_text("42[\"leave\",\"1\"]");
    client.send_text("421[\"join\",[\"8\"]]");
    assert_eq!(client.text(), r#"431["yes",6]"#);
    end(server);
}

#[test]
fn what_a_middleware_emits_leaves_before_connect() {
    let _alone = alone();
    for recovers in [false, true] {
        let options = move || Options {
            connection_state_recovery: recovers.then(ConnectionStateRecovery::default),
            ..Options::default()
        };
        let server = start(1, options, |io| {
            io.middleware(|socket: Socket| {
                socket.emit("early", 1)?;
                let asked = socket.emit_with_ack::<u8, _>("well?", ());
                sockring::spawn(async move { socket.emit("answered", asked.await.unwrap()) });
                Ok::<(), sockring::io::EncodeError>(())
            });
            io.middleware(|socket: Socket| async move {
                monoio::time::sleep(Duration::from_millis(2)).await;
                socket.emit("early", 2).map(drop)
            });
        });
        let mut client = open(server.addresses()[0]);
        let (before, _) = join(&mut client, &json!({}));
        let id = before[1].strip_prefix("42").and_then(|rest| rest.split('[').next()).unwrap().to_owned();
        let expected =
            [r#"42["early",1]"#.to_owned(), format!("42{id}[\"well?\"]"), r#"42["early",2]"#.into()];
        assert_eq!(before, expected);
        client.send_text(&format!("43{id}[7]"));
        assert!(client.text().starts_with(r#"42["answered",7"#));
        end(server);
    }
}

/// A client of Socket.IO as far as recovery is concerned: it takes the last string of an event for its
/// offset.
struct Returning {
    client: Client,
    pid: String,
    offset: serde_json::Value,
}

impl Returning {
    fn join(address: SocketAddr) -> Self {
        let mut client = open(address);
        let (_, connected) = join(&mut client, &json!({}));
        Self { client, pid: connected["pid"].as_str().unwrap().to_owned(), offset: json!(null) }
    }

    /// The next event with its arguments.
    fn event(&mut self) -> serde_json::Value {
        let text = until(&mut self.client, "42[");
        self.note(&text)
    }

    fn note(&mut self, packet: &str) -> serde_json::Value {
        let event: serde_json::Value = serde_json::from_str(&packet[2..]).unwrap();
        let last = event.as_array().unwrap().last().unwrap();
        if last.is_string() {
            self.offset = last.clone();
        }
        event
    }

    /// Loses its connection, and comes back after `meanwhile`: whether it is the same, and what it has
    /// missed.
    fn comes_back(
        &mut self,
        address: SocketAddr,
        meanwhile: impl FnOnce(),
    ) -> (bool, Vec<serde_json::Value>) {
        std::mem::replace(&mut self.client, open(address)).reset();
        meanwhile();
        let auth = json!({ "pid": self.pid, "offset": self.offset });
        let (before, connected) = join(&mut self.client, &auth);
        (connected["pid"] == self.pid, before.iter().map(|packet| self.note(packet)).collect())
    }
}

/// Returns when all cores have carried out what was posted to them.
fn settled(io: &Handle) {
    assert!(support::block_on(io.fetch_sockets()).is_ok());
}

fn recovering() -> Options {
    Options { connection_state_recovery: Some(ConnectionStateRecovery::default()), ..Options::default() }
}

#[test]
fn a_volatile_event_with_a_string_does_not_keep_a_client_from_coming_back() {
    let _alone = alone();
    for workers in [1, 3] {
        let server = start(workers, recovering, |io| {
            let all = io.clone();
            io.sockets_on("say", move |socket: Socket, Data(how): Data<String>| match &*how {
                "broadcast" => all.volatile().emit("v", "a string"),
                "without arguments" => all.volatile().emit("v", ()),
                "alone" => socket.volatile().emit("v", ("x", "a string")),
                "binary" => all.volatile().emit("v", (bytes::Bytes::from_static(b"x"), "a string")),
                _ => socket.volatile().emit("v", 1),
            });
        });
        let address = server.addresses()[0];
        let io = Handle::of_server(&server, "/socket.io").unwrap();
        for first in [false, true] {
            let hows = ["broadcast", "without arguments", "alone", "binary", "number"];
            for how in hows {
                let mut client = Returning::join(address);
                if first || how == "number" {
                    assert!(io.emit("n", 1).is_ok());
                    client.event();
                }
                client.client.send_text(&format!("42[\"say\",\"{how}\"]"));
                if how == "binary" {
                    let text = until(&mut client.client, "451-[");
                    client.client.frame().unwrap();
                    client.note(&format!("42{}", &text[4..]));
                } else {
                    assert_eq!(client.event()[0], "v");
                }
                let missed = || {
                    assert!(io.emit("missed", 2).is_ok());
                    settled(&io);
                };
                let (same, missed) = client.comes_back(address, missed);
                assert!(same, "{how}, after a packet: {first}, workers: {workers}");
                let missed: Vec<_> = missed.iter().map(|event| event[0].as_str().unwrap()).collect();
                assert_eq!(missed, ["missed"], "{how}");
            }
        }
        end(server);
    }
}

#[test]
fn the_latest_of_a_key_is_missed_once() {
    let _alone = alone();
    let server = start(1, recovering, |_| ());
    let address = server.addresses()[0];
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    let mut client = Returning::join(address);
    assert!(io.emit("hello", ()).is_ok());
    client.event();
    let prices = || {
        for n in 0..3009 {
            assert!(io.latest(n % 3).emit("price", (n % 3, n)).is_ok());
        }
        assert!(io.emit("trade", 1).is_ok());
        settled(&io);
    };
    let (same, missed) = client.comes_back(address, prices);
    assert!(same);
    let missed: Vec<_> = missed.iter().map(|event| (event[0].as_str().unwrap(), event[2].as_u64())).collect();
    assert_eq!(missed.len(), 4, "{missed:?}");
    assert_eq!(missed[..3], [("price", Some(3006)), ("price", Some(3007)), ("price", Some(3008))]);
    assert_eq!(missed[3].0, "trade");
    end(server);
}

/// Clients that announce attachments and do not send them hold what has come no longer than they may.
#[test]
fn attachments_that_do_not_come_are_given_up() {
    let _alone = alone();
    let options = || Options { attachment_timeout: Duration::from_millis(300), ..Options::default() };
    let server = start(1, options, |io| {
        io.sockets_on("file", |Args(args): Args, ack: Ack| ack.send(args.len()));
    });
    let address = server.addresses()[0];
    let announce = "453-7[\"file\",{\"_placeholder\":true,\"num\":0},1,{\"_placeholder\":true,\"num\":2}]";
    let mut honest = open(address);
    join(&mut honest, &json!({}));
    let mut liars: Vec<Client> = (0..20).map(|_| open(address)).collect();
    for (sent, liar) in liars.iter_mut().enumerate() {
        join(liar, &json!({}));
        liar.send_text(announce);
        for _ in 0..sent % 3 {
            liar.send(&support::masked(OpCode::Binary, &vec![0; 900_000]));
        }
    }
    eventually("they are noticed", || server.metrics().total("pending_attachments") > 0);
    // One that sends is not hurried: each attachment has its own time.
    honest.send_text(announce);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(120));
        honest.send(&support::masked(OpCode::Binary, b"some"));
    }
    assert_eq!(honest.text(), "437[3]");
    for mut liar in liars {
        assert!(liar.ends());
    }
    assert_eq!(server.metrics().total("pending_attachments"), 0);
    assert_eq!(server.metrics().total("sockets"), 1);
    end(server);
}

/// The private ids of a namespace cannot be reached by the name of another.
#[test]
fn a_name_with_nul_is_a_name_like_any_other() {
    let _alone = alone();
    let server = start(3, recovering, |io| {
        io.of_pattern(regex::Regex::new("(?s)^/n").unwrap());
        io.of("/n");
    });
    let address = server.addresses()[0];
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    for name in ["/n\0", "/n\0pids", "/n\0all", "/n\0\0"] {
        let mut clients = [open(address), open(address)];
        for (client, name) in clients.iter_mut().zip(["/n", name]) {
            client.send_text(&format!("40{name},"));
            assert!(client.text().starts_with(&format!("40{name},{{")), "{name:?}");
        }
        for name in [name, "/n"] {
            assert!(io.of(name).emit("to", name.len()).is_ok());
        }
        for (client, name) in clients.iter_mut().zip(["/n", name]) {
            let event = client.text();
            assert!(event.starts_with(&format!("42{name},[\"to\",{}", name.len())), "{event:?}");
        }
    }
    end(server);
}
