//! Clients that lie about who they are and what they were asked, against a server of 3 workers: recovery,
//! namespaces, rooms and acknowledgements. After each attack an honest client is served, and the tables are as
//! they were before.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value as Json, json};
use sockring::app::App;
use sockring::io::{Ack, ConnectionStateRecovery, Data, Options, Server, Socket, Value};
use sockring::protocol::ws::frame::OpCode;
use sockring::runtime::{Descriptors, Running};
use support::*;

const WORKERS: usize = 3;
const WEBSOCKET: &str = "/socket.io/?EIO=4&transport=websocket";
/// How long a client may be gone, where a test waits until it may not any more.
const WINDOW: Duration = Duration::from_millis(600);
/// How much more memory may be resident after the second time of an attack than after the first.
const SLACK_BYTES: usize = 8 << 20;

/// What the cores say about themselves, every few milliseconds.
#[derive(Default)]
struct Tables {
    cores: [Core; WORKERS],
    /// Of the engine, on all cores.
    sessions: AtomicUsize,
    /// Entries of the directory, and namespaces that it knows.
    rooms: AtomicUsize,
    spaces: AtomicUsize,
    /// Sessions that have begun, and of those that have ended since, the expired ones.
    begun: AtomicUsize,
    expired: AtomicUsize,
    /// How often a socket has come back.
    recovered: AtomicUsize,
}

#[derive(Default)]
struct Core {
    connections: AtomicUsize,
    sockets: AtomicUsize,
    children: AtomicUsize,
}

impl Tables {
    fn sum(&self, count: impl Fn(&Core) -> &AtomicUsize) -> usize {
        self.cores.iter().map(|core| count(core).load(Ordering::Relaxed)).sum()
    }

    fn of(count: &AtomicUsize) -> usize {
        count.load(Ordering::Acquire)
    }

    /// Connections, sessions of the engine, sockets of `/`, and entries of the directory.
    fn now(&self) -> [usize; 4] {
        let sum = |count: fn(&Core) -> &AtomicUsize| self.sum(count);
        [
            sum(|core| &core.connections),
            Self::of(&self.sessions),
            sum(|core| &core.sockets),
            Self::of(&self.rooms),
        ]
    }
}

/// A server under attack, and a client that does nothing wrong.
struct Siege {
    server: Running,
    address: SocketAddr,
    tables: Arc<Tables>,
    honest: Client,
    honest_id: String,
    before: [usize; 4],
    descriptors: usize,
}

impl Siege {
    fn begin(options: impl Fn() -> Options + Send + Sync + 'static) -> Self {
        let tables = Arc::new(Tables::default());
        let told = tables.clone();
        let builder = builder(support::options(Descriptors::Auto, WORKERS));
        let server = builder.start(move |app| set_up(app, options(), &told)).unwrap();
        let address = server.addresses()[0];
        let (honest, connected) = join(address, &json!({}));
        // The room of all sockets; that of its own id has no entry.
        let before = [1; 4];
        eventually("the honest client is there", || tables.now() == before);
        let honest_id = text(&connected, "sid");
        Self { server, address, tables, honest, honest_id, before, descriptors: descriptors() }
    }

    fn count(&self, count: fn(&Tables) -> &AtomicUsize) -> usize {
        Tables::of(count(&self.tables))
    }

    /// The honest client is served, a new one is, and nothing is left of all others.
    fn is_over(&mut self) {
        assert_eq!(ask(&mut self.honest, "who", json!([]))[0], *self.honest_id);
        let (mut new, connected) = join(self.address, &json!({}));
        assert_eq!(ask(&mut new, "who", json!([]))[0], connected["sid"]);
        new.send_text("41");
        drop(new);
        let tables = &self.tables;
        eventually("the tables are as before", || {
            tables.now() == self.before || {
                show(tables, &self.before);
                false
            }
        });
        eventually("all descriptors are back", || descriptors() <= self.descriptors);
    }

    fn end(mut self) {
        self.is_over();
        support::end(self.server);
    }
}

/// What is there beside what should be; shown when a test fails.
fn show(tables: &Tables, before: &[usize; 4]) {
    thread_local!(static SEEN: std::cell::Cell<[usize; 4]> = const { std::cell::Cell::new([0; 4]) });
    let now = tables.now();
    if SEEN.replace(now) != now {
        println!("connections, sessions, sockets, rooms: {now:?}, before: {before:?}");
    }
}

fn set_up(app: &App, options: Options, tables: &Arc<Tables>) {
    let io = Server::attach_app(app, options);
    let counted = tables.clone();
    io.on_connection(move |socket: Socket| {
        let count = if socket.recovered() { &counted.recovered } else { &counted.begun };
        count.fetch_add(1, Ordering::AcqRel);
    });
    let counted = tables.clone();
    io.on_session_expired(move |_| {
        counted.expired.fetch_add(1, Ordering::AcqRel);
    });
    io.sockets_on("who", |socket: Socket, ack: Ack| {
        ack.send((socket.id(), socket.recovered(), socket.rooms().len()))
    });
    io.sockets_on("join", |socket: Socket, Data(rooms): Data<Vec<String>>, ack: Ack| {
        socket.join(rooms);
        ack.send(())
    });
    io.sockets_on("offset", |socket: Socket| socket.emit("offset", ()));
    let server = io.clone();
    io.sockets_on("emit", move |Data(wanted): Data<(String, String, u32, usize)>, ack: Ack| {
        let (server, (room, event, count, bytes)) = (server.clone(), wanted);
        for number in 0..count {
            let _ = server.to(&room).emit(&event, (number, "x".repeat(bytes)));
        }
        async move {
            // When all cores have answered this, they have carried out what was posted to them before.
            let _ = server.fetch_sockets().await;
            ack.send(())
        }
    });
    let server = io.clone();
    io.sockets_on("jury", move |Data(room): Data<String>, ack: Ack| {
        let answers = server.to(room).timeout(Duration::from_secs(8)).emit_with_ack::<Value, _>("vote", ());
        async move {
            match answers.await {
                Ok(answers) => ack.send((Value::Null, answers)),
                Err(error) => ack.send((error.to_string(), error.answers)),
            }
        }
    });
    io.sockets_on("ask me", |socket: Socket, ack: Ack| {
        let answer = socket.timeout(Duration::from_secs(8)).emit_with_ack::<Value, _>("question", ());
        async move { ack.send(answer.await.unwrap_or_else(|error| error.to_string().as_str().into())) }
    });
    let children = io.of_pattern(regex::Regex::new(r"^/child-\d+$").unwrap());
    children.sockets_on("who", |socket: Socket, ack: Ack| ack.send((socket.id(), socket.nsp())));
    let (core, tables) = (app.core().clone(), tables.clone());
    app.core().spawn(async move {
        loop {
            let own = &tables.cores[core.index()];
            let sessions = io.engine().map_or(0, |engine| engine.clients_count());
            own.connections.store(core.connections(), Ordering::Relaxed);
            tables.sessions.store(sessions, Ordering::Relaxed);
            own.sockets.store(io.sockets().local_sockets(), Ordering::Relaxed);
            own.children.store(children.children().len(), Ordering::Relaxed);
            tables.rooms.store(core.shared().directory.len(), Ordering::Relaxed);
            tables.spaces.store(core.shared().directory.spaces(), Ordering::Relaxed);
            monoio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

fn recovery(window: Duration) -> Options {
    let recovery =
        ConnectionStateRecovery { max_disconnection_duration: window, ..ConnectionStateRecovery::default() };
    Options { connection_state_recovery: Some(recovery), ..Options::default() }
}

fn open(address: SocketAddr) -> Client {
    let mut client = Client::websocket(address, WEBSOCKET);
    assert!(client.text().starts_with("0{"));
    client
}

/// Joins `/`; what the CONNECT said. What came before it is passed by.
fn join(address: SocketAddr, auth: &Json) -> (Client, Json) {
    let mut client = open(address);
    client.send_text(&format!("40{auth}"));
    let connected = until(&mut client, "40{");
    let connected = serde_json::from_str(&connected[2..]).unwrap();
    (client, connected)
}

/// The next message that begins with this.
fn until(client: &mut Client, start: &str) -> String {
    loop {
        let message = client.text();
        if message.starts_with(start) {
            return message;
        }
    }
}

fn text(value: &Json, name: &str) -> String {
    value[name].as_str().unwrap().to_owned()
}

/// Emits with an acknowledgement, and waits for it.
fn ask(client: &mut Client, event: &str, args: Json) -> Json {
    say(client, "7", event, args);
    serde_json::from_str(&until(client, "437[")[3..]).unwrap()
}

fn say(client: &mut Client, id: &str, event: &str, mut args: Json) {
    args.as_array_mut().unwrap().insert(0, event.into());
    client.send_text(&format!("42{id}{args}"));
}

/// A client that could come back: it has a packet to refer to. Its private id, its last offset and its id.
fn member(address: SocketAddr, rooms: &[String]) -> (Client, Json, String) {
    let (mut client, connected) = join(address, &json!({}));
    ask(&mut client, "join", json!([rooms]));
    say(&mut client, "", "offset", json!([]));
    let offset: Json = serde_json::from_str(&until(&mut client, "42[\"offset\"")[2..]).unwrap();
    let claim = json!({ "pid": connected["pid"], "offset": offset[1] });
    (client, claim, text(&connected, "sid"))
}

/// Many frames in one write.
fn at_once(client: &mut Client, texts: impl Iterator<Item = String>) {
    let frames: Vec<u8> = texts.flat_map(|text| masked(OpCode::Text, text.as_bytes())).collect();
    client.send(&frames);
}

/// Guessed, stolen and malformed ids make nobody somebody else, and cost nothing for long.
#[test]
fn nobody_comes_back_as_a_stranger() {
    let _alone = alone();
    let mut siege = Siege::begin(|| recovery(WINDOW));
    let (mut victim, claim, id) = member(siege.address, &["vault".to_owned()]);
    let (pid, offset) = (text(&claim, "pid"), text(&claim, "offset"));
    let flipped = |at: usize| {
        let mut pid = pid.clone().into_bytes();
        pid[at] = if pid[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(pid).unwrap()
    };
    let mut lies: Vec<Json> =
        (0..pid.len()).map(|at| json!({ "pid": flipped(at), "offset": offset })).collect();
    let nonsense = [
        json!(null),
        json!(7),
        json!({}),
        json!([pid]),
        json!(""),
        json!("_".repeat(22)),
        json!("-".repeat(22)),
        json!("A".repeat(22)),
        json!("x".repeat(100_000)),
        json!("\u{0}\u{10ffff}"),
        json!(id),
        json!(siege.honest_id),
        json!(format!("{pid}=")),
        json!(format!(" {pid}")),
    ];
    lies.extend(nonsense.iter().map(|pid| json!({ "pid": pid, "offset": offset })));
    let mut resident = Vec::new();
    for _ in 0..2 {
        let (begun, expired) = (siege.count(|t| &t.begun), siege.count(|t| &t.expired));
        for lie in lies.iter().cycle().take(1500) {
            let (mut stranger, connected) = join(siege.address, lie);
            assert!(connected["sid"] != *id && connected["pid"] != *pid, "{lie}");
            assert_eq!(ask(&mut stranger, "who", json!([])), json!([connected["sid"], false, 1]));
            stranger.reset();
        }
        assert_eq!(siege.count(|t| &t.recovered), 0);
        eventually("all of them expire", || siege.count(|t| &t.expired) - expired == 1500);
        assert_eq!(siege.count(|t| &t.begun) - begun, 1500);
        resident.push(resident_bytes());
    }
    println!("resident after each round: {resident:?}");
    assert!(resident[1].saturating_sub(resident[0]) < SLACK_BYTES, "{resident:?}");
    // The victim has noticed nothing, and is the one who may come back.
    assert_eq!(ask(&mut victim, "who", json!([])), json!([id, false, 2]));
    victim.reset();
    let (victim, connected) = join(siege.address, &claim);
    assert_eq!((text(&connected, "sid"), text(&connected, "pid")), (id.clone(), pid.clone()));
    // With its own private id it may say what it likes about its last packet: it is a new one then.
    victim.reset();
    for offset in
        [json!(null), json!(""), json!("AAAAAAAAAAA"), json!("x".repeat(100_000)), json!({}), json!(1)]
    {
        let (_, connected) = join(siege.address, &json!({ "pid": pid, "offset": offset }));
        assert_ne!(connected["sid"], *id);
    }
    siege.is_over();
    siege.end();
}

/// However many say at once that they are one who was there: one of them is, the others are new ones, and what
/// it has missed comes once.
#[test]
fn one_of_those_who_race_for_an_id_gets_it() {
    let _alone = alone();
    let siege = Siege::begin(|| recovery(Duration::from_secs(60)));
    let mut talker = join(siege.address, &json!({})).0;
    for round in 0..60 {
        let room = format!("race {round}");
        let (client, claim, id) = member(siege.address, std::slice::from_ref(&room));
        client.reset();
        ask(&mut talker, "emit", json!([room, "missed", 3, 10]));
        let racers: Vec<_> = (0..6)
            .map(|_| {
                let (address, claim) = (siege.address, claim.clone());
                let mut racer = open(address);
                thread::spawn(move || {
                    racer.send_text(&format!("40{claim}"));
                    racer
                })
            })
            .collect();
        let mut racers: Vec<Client> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
        // When all are answered, nobody takes anybody's place any more.
        let answered: Vec<_> = racers.iter_mut().map(let_in).collect();
        let mut winners = 0;
        for (mut racer, missed) in racers.into_iter().zip(answered) {
            winners += usize::from(missed.is_some_and(|missed| is_the_one(&mut racer, &id, &missed)));
            let _ = racer.try_send(&masked(OpCode::Text, b"41"));
        }
        assert_eq!(winners, 1, "round {round}");
    }
    talker.send_text("41");
    drop(talker);
    siege.end();
}

/// What a racer gets before it is let in; `None` if another has taken its place meanwhile.
fn let_in(racer: &mut Client) -> Option<Vec<Json>> {
    let mut missed = Vec::new();
    loop {
        let frame = racer.frame().ok().filter(|frame| frame.opcode == 1)?;
        if frame.text().starts_with("40") {
            return Some(missed);
        }
        let event: Json = serde_json::from_str(frame.text().strip_prefix("42").unwrap()).unwrap();
        assert_eq!(event[0], "missed");
        missed.push(event[1].clone());
    }
}

/// Whether a racer that was let in is the one who was there, and nobody has taken its place.
fn is_the_one(racer: &mut Client, id: &str, missed: &[Json]) -> bool {
    let asked = racer.try_send(&masked(OpCode::Text, b"427[\"who\"]"));
    let Some(frame) = asked.and_then(|()| racer.frame()).ok().filter(|frame| frame.opcode == 1) else {
        return false;
    };
    let answer: Json = serde_json::from_str(frame.text().strip_prefix("437").unwrap()).unwrap();
    assert_eq!(answer[1] == true, answer[0] == *id);
    assert_eq!(missed, (0..if answer[1] == true { 3 } else { 0 }).map(|n| json!(n)).collect::<Vec<_>>());
    answer[1] == true
}

/// Sessions that end while they move, or move when their time is over: each of them ends once, and nothing of
/// it stays.
#[test]
fn a_session_ends_once_wherever_it_is() {
    let _alone = alone();
    let window = Duration::from_millis(150);
    let siege = Siege::begin(move || recovery(window));
    let begun = siege.count(|t| &t.begun);
    thread::scope(|scope| {
        for worker in 0..4u64 {
            let address = siege.address;
            scope.spawn(move || {
                for round in 0..60 {
                    let (client, claim, _) =
                        member(address, &[format!("{worker} {round}"), "all".to_owned()]);
                    client.reset();
                    // Around the end of the window; the sweep that ends it comes a while later.
                    thread::sleep(Duration::from_millis(120 + (worker * 37 + round * 13) % 160));
                    let mut again = open(address);
                    again.send_text(&format!("40{claim}"));
                    // Half of them do not wait for the answer, which may be on its way between cores.
                    if round % 2 == 0 {
                        until(&mut again, "40{");
                    }
                    again.reset();
                }
            });
        }
    });
    eventually("every session ends", || siege.count(|t| &t.expired) == siege.count(|t| &t.begun) - begun);
    println!("{} sessions, {} came back", siege.count(|t| &t.begun), siege.count(|t| &t.recovered));
    assert!(siege.count(|t| &t.recovered) > 0, "some came in time");
    siege.end();
}

/// A log that overflows, by packets or by bytes, makes new ones of those who have missed what it has lost, and
/// nobody gets a part of it.
#[test]
fn a_log_that_overflows_makes_new_ones() {
    let _alone = alone();
    let mut siege = Siege::begin(|| {
        let small = ConnectionStateRecovery {
            max_packets: 50,
            max_bytes: 100_000,
            max_disconnection_duration: Duration::from_secs(4),
            ..ConnectionStateRecovery::default()
        };
        Options { connection_state_recovery: Some(small), ..Options::default() }
    });
    let address = siege.address;
    for (count, bytes, comes_back) in [(40, 10, true), (60, 10, false), (3, 20_000, true), (8, 20_000, false)]
    {
        for round in 0..6 {
            let (client, claim, id) = member(address, &["log".to_owned()]);
            client.reset();
            ask(&mut siege.honest, "emit", json!(["log", "filler", count, bytes]));
            let mut again = open(address);
            again.send_text(&format!("40{claim}"));
            let mut missed = 0;
            let connected = loop {
                let message = again.text();
                if message.starts_with("40") {
                    break message;
                }
                missed += 1;
            };
            let what = format!("{count} packets of {bytes} bytes, round {round}");
            assert_eq!(connected.contains(&id), comes_back, "{what}");
            assert_eq!(missed, if comes_back { count } else { 0 }, "{what}");
            again.send_text("41");
        }
    }
    // Emitted to nobody at all it costs nobody else anything.
    ask(&mut siege.honest, "emit", json!(["nobody", "filler", 1000, 10_000]));
    siege.end();
}

/// A socket in ten thousand rooms that goes and comes back, to any core, is in all of them again; and in none
/// when it has gone for good.
#[test]
fn ten_thousand_rooms_come_back() {
    const ROOMS: usize = 10_000;
    let _alone = alone();
    let siege = Siege::begin(|| recovery(Duration::from_secs(4)));
    let rooms: Vec<String> = (0..ROOMS).map(|room| format!("room {room}")).collect();
    let mut talker = join(siege.address, &json!({})).0;
    let mut resident = Vec::new();
    for _ in 0..2 {
        let (mut client, claim, id) = member(siege.address, &rooms);
        for round in 0..12 {
            // From time to time its old connection is not known to have ended.
            let stale = (round % 4 == 3).then(|| client.stream.try_clone().unwrap());
            if stale.is_none() {
                client.reset();
            }
            let room = &rooms[round * 797 % ROOMS];
            ask(&mut talker, "emit", json!([room, "missed", 1, 10]));
            let connected;
            (client, connected) = join(siege.address, &claim);
            assert_eq!(connected["sid"], *id, "round {round}");
            assert_eq!(ask(&mut client, "who", json!([])), json!([id, true, ROOMS + 1]));
            ask(&mut talker, "emit", json!([rooms[ROOMS - 1 - round], "here", 1, 10]));
            assert!(until(&mut client, "42[\"here\"").contains("here"));
        }
        client.reset();
        eventually("its rooms are gone", || siege.tables.now()[3] == siege.before[3]);
        resident.push(resident_bytes());
    }
    println!("resident after each round: {resident:?}");
    assert!(resident[1].saturating_sub(resident[0]) < SLACK_BYTES, "{resident:?}");
    talker.send_text("41");
    drop(talker);
    siege.end();
}

/// Clients bring namespaces into being up to the limit of each core and not beyond, in any disorder, and all
/// of it is given back.
#[test]
fn namespaces_of_clients_are_limited_and_given_back() {
    const LIMIT: usize = 150;
    let _alone = alone();
    let siege = Siege::begin(|| Options {
        dynamic_namespaces: LIMIT,
        cleanup_empty_child_namespaces: true,
        ..recovery(Duration::from_millis(200))
    });
    let spaces = siege.count(|t| &t.spaces);
    for _ in 0..2 {
        let (mut clients, mut refused) = (Vec::new(), 0);
        for client in 0..12 {
            let (mut one, _) = join(siege.address, &json!({}));
            let names = (0..90).map(|name| format!("40/child-{},", client * 90 + name));
            at_once(&mut one, names);
            for _ in 0..90 {
                let answer = one.text();
                assert!(answer.starts_with("40/child-") || answer.contains("Invalid namespace"), "{answer}");
                refused += usize::from(answer.starts_with("44"));
            }
            clients.push(one);
        }
        assert!(refused >= 12 * 90 - WORKERS * LIMIT, "{refused} are refused");
        eventually("no core has more than it may", || {
            let made = siege.tables.sum(|core| &core.children);
            made == 12 * 90 - refused
                && siege.tables.cores.iter().all(|core| Tables::of(&core.children) <= LIMIT)
        });
        // Half of them leave in order, the others are lost, and may come back for a while.
        for (number, mut client) in clients.into_iter().enumerate() {
            if number % 2 == 0 {
                at_once(&mut client, (0..90).map(|name| format!("41/child-{},", number * 90 + name)));
            }
            // What was refused is not left: that ends the connection.
            client.reset();
        }
        eventually("they are gone", || siege.tables.sum(|core| &core.children) == 0);
        eventually("nobody holds them", || siege.count(|t| &t.spaces) == spaces);
    }
    siege.end();
}

/// In and out of a namespace thousands of times in one write is answered in order.
#[test]
fn in_and_out_in_one_write() {
    const TIMES: usize = 5000;
    let _alone = alone();
    let siege = Siege::begin(|| Options { cleanup_empty_child_namespaces: true, ..recovery(WINDOW) });
    let spaces = siege.count(|t| &t.spaces);
    let mut resident = Vec::new();
    for _ in 0..3 {
        let (mut client, _) = join(siege.address, &json!({}));
        let mut reader = client.stream.try_clone().unwrap();
        let visits = (0..TIMES).flat_map(|time| {
            let name = time % 7;
            [
                format!("40/child-{name},"),
                format!("42/child-{name},{time}[\"who\"]"),
                format!("41/child-{name},"),
            ]
        });
        let frames: Vec<u8> = visits.flat_map(|text| masked(OpCode::Text, text.as_bytes())).collect();
        let writer = thread::spawn(move || std::io::Write::write_all(&mut reader, &frames).unwrap());
        let mut ids = std::collections::HashSet::new();
        for time in 0..TIMES {
            let name = format!("/child-{}", time % 7);
            let connected = client.text();
            let connected: Json =
                serde_json::from_str(connected.strip_prefix(&format!("40{name},")).unwrap()).unwrap();
            let answer = client.text();
            let answer: Json =
                serde_json::from_str(answer.strip_prefix(&format!("43{name},{time}")).unwrap()).unwrap();
            assert_eq!(answer, json!([connected["sid"], name]));
            assert!(ids.insert(text(&connected, "sid")));
        }
        writer.join().unwrap();
        client.send_text("41");
        drop(client);
        eventually("nobody holds a namespace", || siege.count(|t| &t.spaces) == spaces);
        resident.push(resident_bytes());
    }
    println!("resident after each round: {resident:?}");
    assert!(resident[2].saturating_sub(resident[1]) < SLACK_BYTES, "{resident:?}");
    siege.end();
}

/// An acknowledgement counts once, and only from the socket that was asked; ids that were never given out, or
/// are no numbers that a server gives out, are ignored or close who sends them.
#[test]
fn acknowledgements_are_forged_in_vain() {
    let _alone = alone();
    let mut siege = Siege::begin(Options::default);
    let address = siege.address;
    let liars: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(move || {
                let (mut liar, _) = join(address, &json!({}));
                // Whatever anybody is asked meanwhile has one of these ids.
                for _ in 0..20 {
                    at_once(&mut liar, (0..3000).map(|id| format!("43{id}[\"forged\"]")));
                }
                assert_ne!(ask(&mut liar, "who", json!([]))[0], Json::Null);
                liar.send_text("41");
            })
        })
        .collect();
    for round in 0..20 {
        let room = format!("jury {round}");
        let mut jury: Vec<Client> = (0..3)
            .map(|_| {
                let (mut juror, _) = join(address, &json!({}));
                ask(&mut juror, "join", json!([[room]]));
                juror
            })
            .collect();
        say(&mut siege.honest, "7", "jury", json!([room]));
        say(&mut jury[0], "8", "ask me", json!([]));
        // The first one's two events come from different cores, in any order.
        let (one, two) = (jury[0].text(), jury[0].text());
        let (vote, question) = if one.contains("vote") { (one, two) } else { (two, one) };
        let (mut votes, question) = (vec![id_of(&vote)], id_of(&question));
        votes.extend(jury[1..].iter_mut().map(|juror| id_of(&juror.text())));
        // One answers for the others and many times, and to a question that was not put to it.
        for _ in 0..5 {
            jury[1].send_text(&format!("43{}[\"second\"]", votes[1]));
        }
        jury[2].send_text(&format!("43{question}[\"forged\"]"));
        ask(&mut jury[2], "who", json!([]));
        jury[0].send_text(&format!("43{question}[\"own\"]"));
        assert_eq!(until(&mut jury[0], "438"), "438[\"own\"]");
        jury[0].send_text(&format!("43{}[\"first\"]", votes[0]));
        jury[2].send_text(&format!("43{}[\"third\"]", votes[2]));
        let answers: Json = serde_json::from_str(&until(&mut siege.honest, "437[")[3..]).unwrap();
        let mut said: Vec<&str> =
            answers[1].as_array().unwrap().iter().map(|vote| vote.as_str().unwrap()).collect();
        said.sort_unstable();
        assert_eq!((&answers[0], said), (&Json::Null, vec!["first", "second", "third"]));
        // Late, and once more.
        jury[0].send_text(&format!("43{}[\"late\"]", votes[0]));
        assert_ne!(ask(&mut jury[0], "who", json!([]))[0], Json::Null);
        jury.iter_mut().for_each(|juror| juror.send_text("41"));
    }
    liars.into_iter().for_each(|liar| liar.join().unwrap());
    for id in [
        "9007199254740991",
        "9007199254740992",
        "18446744073709551615",
        "18446744073709551616",
        "1e3",
        "-1",
        "007",
        &"9".repeat(10_000),
    ] {
        for packet in [format!("43{id}[]"), format!("42{id}[\"who\"]"), format!("43{id}")] {
            let (mut client, _) = join(address, &json!({}));
            client.send_text(&packet);
            client.send_text("41");
            client.send_text("40");
            // Either it is closed or it goes on; it never hangs.
            while let Ok(frame) = client.frame() {
                if frame.opcode != 1 || frame.text().starts_with("40{") {
                    break;
                }
            }
        }
    }
    siege.end();
}

/// The acknowledgement's id of an event.
fn id_of(event: &str) -> String {
    event[2..].chars().take_while(char::is_ascii_digit).collect()
}
