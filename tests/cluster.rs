//! Several servers that act as one, over the medium within this process.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sockring::adapter::{ClusterAdapter, ClusterOptions, InProcess, Link};
use sockring::io::{
    Ack, AckError, Adapter, BroadcastAcks, BroadcastOptions, ClusterAnswer, ConnectionStateRecovery, Data,
    EncodeError, Handle, Options, RemoteSocket, RestoreAnswer, RoomEvent, Server, ServerEvent, Session,
    Socket, SocketDetails, Value,
};
use sockring::runtime::{Descriptors, Running};
use support::{Client, block_on};

/// One server of a cluster.
struct Node {
    server: Running,
    io: Handle,
    adapter: ClusterAdapter<Link>,
}

/// What the servers' own events were answered with: the number of the server, and how often it was asked.
static ASKED: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

fn start(hub: &InProcess, number: usize) -> Node {
    let adapter = hub.adapter();
    let theirs = adapter.clone();
    let server = support::builder(support::options(Descriptors::Auto, 2)).start(move |app| {
        let options = Options { adapter: Some(Arc::new(theirs.clone())), ..Options::default() };
        let io = Server::attach_app(app, options);
        let everybody = io.clone();
        io.sockets_on("join", |socket: Socket, Data(room): Data<String>, ack: Ack| {
            socket.join(room);
            ack.send(())
        });
        io.sockets_on("shout", move |Data((room, text)): Data<(String, Value)>| {
            everybody.to(room).emit("heard", text)
        });
        io.sockets_on("others", |socket: Socket, Data(text): Data<Value>| {
            socket.broadcast().emit("heard", text)
        });
        io.sockets_on("set", |socket: Socket, Data(value): Data<u32>, ack: Ack| {
            socket.set_data(value);
            ack.send(())
        });
        io.on_server_event("which?", move |event: ServerEvent| {
            ASKED[number].fetch_add(1, Ordering::Relaxed);
            let _ = event.ack.send(number);
            let _ = event.ack.send("the first answer counts");
        });
        io.on_server_event("only 1", move |event: ServerEvent| {
            if number == 1 {
                let _ = event.ack.send(event.data::<(u32, u32)>().map(|(a, b)| a + b).unwrap_or(0));
            }
        });
        let chat = io.of("/chat");
        let out = chat.clone();
        chat.sockets_on("shout", move |Data(text): Data<Value>| out.emit("heard", text));
    });
    let server = server.expect("a server starts");
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    Node { server, io, adapter }
}

fn cluster(hub: &InProcess) -> [Node; 3] {
    let nodes = [0, 1, 2].map(|i| start(hub, i));
    support::eventually("they know each other", || {
        nodes.iter().all(|node| node.adapter.server_count("/") == 3)
    });
    nodes
}

fn end(nodes: impl IntoIterator<Item = Node>) {
    nodes.into_iter().for_each(|node| support::end(node.server));
}

/// Emits with an acknowledgement and waits for it.
fn call(client: &mut Client, event: &str) {
    client.send_text(&format!("427{event}"));
    assert_eq!(client.text(), "437[]");
}

/// Two clients on each server, the first of them in room "r".
fn clients(nodes: &[Node; 3]) -> Vec<Client> {
    let mut clients = Vec::new();
    for node in nodes {
        for member in [true, false] {
            let mut client = Client::socketio(node.server.addresses()[0]);
            if member {
                call(&mut client, r#"["join","r"]"#);
            }
            clients.push(client);
        }
    }
    clients
}

/// What comes next for each client; a marker behind it shows who got nothing.
fn heard(nodes: &[Node; 3], clients: &mut [Client]) -> Vec<bool> {
    for node in nodes {
        assert!(node.io.local().emit("mark", ()).is_ok());
    }
    let got = |client: &mut Client| {
        let first = client.text();
        let heard = first.starts_with("42[\"heard\"");
        assert_eq!(if heard { client.text() } else { first }, "42[\"mark\"]");
        heard
    };
    clients.iter_mut().map(got).collect()
}

#[test]
fn broadcasts_reach_the_sockets_of_all_servers() {
    let _alone = support::alone();
    let hub = InProcess::new();
    let nodes = cluster(&hub);
    let mut clients = clients(&nodes);
    let (all, members) = ([true; 6], [true, false, true, false, true, false]);
    let io = &nodes[0].io;
    let binary = bytes::Bytes::from_static(&[1, 2]);
    type Emit<'a> = Box<dyn Fn() -> Result<(), EncodeError> + 'a>;
    let cases: [(Emit<'_>, [bool; 6]); 6] = [
        (Box::new(|| io.emit("heard", (1, "x")).map(drop)), all),
        (Box::new(|| io.to("r").emit("heard", ()).map(drop)), members),
        (Box::new(|| io.to(["r", "s"]).to("r").emit("heard", ()).map(drop)), members),
        (Box::new(|| io.except("r").emit("heard", ()).map(drop)), members.map(|member| !member)),
        (Box::new(|| io.local().emit("heard", ()).map(drop)), [true, true, false, false, false, false]),
        (Box::new(|| io.of("/chat").emit("heard", ()).map(drop)), [false; 6]),
    ];
    for (emit, expected) in cases {
        emit().unwrap();
        assert_eq!(heard(&nodes, &mut clients), expected);
    }
    assert!(io.to("r").emit("bytes", binary).is_ok());
    for client in clients.iter_mut().step_by(2) {
        assert!(client.text().starts_with("451-[\"bytes\""));
        assert_eq!(client.frame().unwrap().payload, [1, 2]);
    }
    // From a socket's handler: to all others, wherever they are.
    clients[3].send_text("42[\"others\",{\"a\":[1]}]");
    for (i, client) in clients.iter_mut().enumerate().filter(|(i, _)| *i != 3) {
        assert_eq!(client.text(), "42[\"heard\",{\"a\":[1]}]", "{i}");
    }
    assert_eq!(heard(&nodes, &mut clients), [false; 6], "none twice");
    drop(clients);
    end(nodes);
}

#[test]
fn sockets_are_moved_found_and_disconnected_on_all_servers() {
    let _alone = support::alone();
    let hub = InProcess::counted();
    let nodes = cluster(&hub);
    let mut clients = clients(&nodes);
    call(&mut clients[4], r#"["set",7]"#);
    let io = &nodes[1].io;
    let found = block_on(io.fetch_sockets()).unwrap();
    assert_eq!(found.len(), 6);
    assert_eq!(block_on(io.all_sockets()).unwrap().len(), 6);
    assert_eq!(block_on(io.local().fetch_sockets()).unwrap().len(), 2);
    let with_data: Vec<&RemoteSocket> = found.iter().filter(|socket| !socket.data.is_null()).collect();
    let [other] = with_data[..] else { panic!("{found:?}") };
    assert_eq!(other.data, Value::from(7));
    assert_eq!(other.rooms, [other.id.to_string(), "r".into()]);
    assert!(other.handshake.get("headers").and_then(|headers| headers.get("host")).is_some());

    io.to("r").sockets_join("s");
    other.join(["t", "u"]);
    other.leave("r");
    let count = |room: &'static str| block_on(nodes[0].io.to(room).fetch_sockets()).unwrap().len();
    support::eventually("they are moved", || count("s") == 3 && count("t") == 1 && count("r") == 2);
    assert!(other.emit("heard", ()).is_ok());
    assert_eq!(heard(&nodes, &mut clients), [false, false, false, false, true, false]);

    other.disconnect(true);
    assert_eq!(clients[4].text(), "41");
    assert!(clients[4].ends());
    io.to("s").sockets_leave("s");
    support::eventually("none is left", || count("s") == 0 && count("r") == 2);
    nodes[2].io.disconnect_sockets(false);
    for (i, client) in clients.iter_mut().enumerate().filter(|(i, _)| *i != 4) {
        assert_eq!(client.text(), "41", "{i}");
    }
    drop(clients);
    end(nodes);
}

#[test]
fn sockets_of_all_servers_acknowledge() {
    let _alone = support::alone();
    let hub = InProcess::new();
    let nodes = cluster(&hub);
    let mut clients = clients(&nodes);
    let io = nodes[0].io.clone();
    let long = Duration::from_secs(60);
    let answer = |client: &mut Client, answer: &str| {
        let asked = client.text();
        let id: String = asked[2..].chars().take_while(char::is_ascii_digit).collect();
        assert_eq!(asked[2 + id.len()..], *r#"["vote"]"#);
        client.send_text(&format!("43{id}[{answer}]"));
    };
    let votes = io.timeout(long).emit_with_ack::<usize, _>("vote", ());
    clients.iter_mut().enumerate().for_each(|(i, client)| answer(client, &i.to_string()));
    let mut votes = block_on(votes).unwrap();
    votes.sort_unstable();
    assert_eq!(votes, [0, 1, 2, 3, 4, 5]);

    // One of another server says nothing.
    let votes = io.to("r").timeout(Duration::from_millis(300)).emit_with_ack::<String, _>("vote", ());
    answer(&mut clients[0], "\"a\"");
    answer(&mut clients[2], "\"b\"");
    let mut error = block_on(votes).unwrap_err();
    error.answers.sort();
    assert_eq!((error.reason, error.answers), (AckError::Timeout, vec!["a".to_owned(), "b".to_owned()]));
    assert!(clients[4].text().contains("vote"));

    let nobody = io.to("nobody").timeout(long).emit_with_ack::<u8, _>("vote", ());
    assert_eq!(block_on(nobody), Ok(vec![]));

    let found = block_on(io.fetch_sockets()).unwrap();
    let ids: Vec<String> = found.iter().map(|socket| socket.id.to_string()).collect();
    assert_eq!(ids.len(), 6);
    let far =
        found.iter().find(|socket| block_on(io.local().to(&socket.id).all_sockets()).unwrap().is_empty());
    let asked = far.unwrap().timeout(long).emit_with_ack::<u8, _>("vote", ());
    // Whoever was asked answers; the others are told in between that there was nothing for them.
    for node in &nodes {
        assert!(node.io.local().emit("mark", ()).is_ok());
    }
    for client in &mut clients {
        let first = client.text();
        if let Some(id) = first.strip_suffix(r#"["vote"]"#) {
            client.send_text(&format!("43{}[9]", &id[2..]));
            assert_eq!(client.text(), "42[\"mark\"]");
        }
    }
    assert_eq!(block_on(asked), Ok(9));
    drop(clients);
    end(nodes);
}

#[test]
fn servers_speak_to_each_other() {
    let _alone = support::alone();
    let hub = InProcess::new().with_options(short_requests());
    let nodes = cluster(&hub);
    let asked = || ASKED.each_ref().map(|asked| asked.load(Ordering::Relaxed));
    let before = asked();
    let mut answers = block_on(nodes[0].io.server_side_emit_with_ack::<usize, _>("which?", ())).unwrap();
    answers.sort_unstable();
    assert_eq!(answers, [1, 2], "each of the others once, and not the asker");
    nodes[2].io.server_side_emit("which?", ("no", "answer")).unwrap();
    support::eventually("they are told", || {
        let now = asked();
        [0, 1, 2].map(|i| now[i] - before[i]) == [1, 2, 1]
    });
    let error = block_on(nodes[0].io.server_side_emit_with_ack::<u32, _>("only 1", (3, 4))).unwrap_err();
    assert_eq!((&*error.message, error.responses), ("timeout reached: missing 1 responses", vec![7]));
    for reserved in ["connect", "connection", "new_namespace"] {
        assert!(matches!(nodes[0].io.server_side_emit(reserved, ()), Err(EncodeError::ReservedEvent)));
    }
    end(nodes);
}

/// Short waits, for tests in which a server says nothing.
fn short_requests() -> ClusterOptions {
    let requests_timeout = Duration::from_millis(400);
    ClusterOptions { requests_timeout, ..ClusterOptions::default() }
}

#[test]
fn a_server_that_goes_or_is_cut_off_is_not_waited_for() {
    let _alone = support::alone();
    let mut options = short_requests();
    options.requests_timeout = Duration::from_secs(60);
    options.heartbeat_interval = Duration::from_millis(100);
    options.heartbeat_timeout = Duration::from_millis(1500);
    let hub = InProcess::new().with_options(options);
    let [one, two, three] = cluster(&hub);
    // Cut off: it does not hear the question. Its silence ends the wait, long before the request's time.
    three.adapter.medium().cut(true);
    let answers = block_on(one.io.server_side_emit_with_ack::<usize, _>("which?", ()));
    assert_eq!(answers.unwrap(), [1]);
    assert_eq!(one.adapter.server_count("/"), 2);
    assert!(block_on(one.io.fetch_sockets()).is_ok());
    // Ended in the midst of a request, which nobody answers.
    let asked = one.io.server_side_emit_with_ack::<usize, _>("nobody answers", ());
    support::end(two.server);
    assert_eq!(block_on(asked).unwrap(), Vec::<usize>::new());
    assert_eq!(one.adapter.server_count("/"), 1);
    // It comes back.
    three.adapter.medium().cut(false);
    support::eventually("they know each other", || one.adapter.server_count("/") == 2);
    end([one, three]);
}

/// Whoever is told of answers may ask for more: nothing is locked meanwhile.
struct Curious {
    adapter: ClusterAdapter<Link>,
    told: Mutex<Vec<String>>,
}

impl Curious {
    fn note(&self, what: String) {
        assert!(self.adapter.uid("/").is_some() && self.adapter.server_count("/") == 3);
        self.told.lock().unwrap().push(what);
    }
}

impl BroadcastAcks for Curious {
    fn servers(&self, count: usize) {
        self.note(format!("{count} servers"));
    }

    fn clients(&self, count: usize) {
        self.note(format!("{count} clients"));
    }

    fn answer(&self, args: Vec<Value>) {
        self.note(format!("{args:?}"));
    }
}

#[test]
fn who_is_told_of_answers_may_ask_again() {
    let _alone = support::alone();
    let nodes = cluster(&InProcess::new());
    let adapter = nodes[0].adapter.clone();
    let curious = Arc::new(Curious { adapter: adapter.clone(), told: Mutex::default() });
    let options = BroadcastOptions::default();
    adapter.broadcast_with_ack("/", vec![Value::from("vote")], &options, curious.clone());
    support::eventually("both have counted", || {
        *curious.told.lock().unwrap() == ["2 servers", "0 clients", "0 clients"]
    });
    end(nodes);
}

/// Takes all questions and forgets them, as an adapter whose broker has gone may do.
#[derive(Debug)]
struct Forgetful;

impl Adapter for Forgetful {
    fn broadcast(&self, _: &str, _: Vec<Value>, _: &BroadcastOptions) {}

    fn fetch_sockets(&self, _: &str, _: &BroadcastOptions, answer: ClusterAnswer<SocketDetails>) {
        drop(answer);
    }

    fn server_side_emit(&self, _: &str, _: Vec<Value>, answer: Option<ClusterAnswer<Value>>) {
        drop(answer);
    }
}

#[test]
fn an_adapter_that_forgets_a_question_has_answered_it() {
    let _alone = support::alone();
    let server = support::builder(support::options(Descriptors::Auto, 1)).start(|app| {
        let options = Options { adapter: Some(Arc::new(Forgetful)), ..Options::default() };
        Server::attach_app(app, options);
    });
    let server = server.unwrap();
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    let error = block_on(io.server_side_emit_with_ack::<Value, _>("event", ())).unwrap_err();
    assert_eq!(error.message, "the adapter does not answer");
    assert!(block_on(io.fetch_sockets()).is_err());
    support::end(server);
}

#[test]
fn children_of_a_parent_hear_other_servers() {
    let _alone = support::alone();
    let hub = InProcess::new();
    let heard = Arc::new(AtomicUsize::new(0));
    let nodes = [(); 2].map(|()| {
        let (adapter, heard) = (hub.adapter(), heard.clone());
        let server = support::builder(support::options(Descriptors::Auto, 2)).start(move |app| {
            let options = Options { adapter: Some(Arc::new(adapter.clone())), ..Options::default() };
            let io = Server::attach_app(app, options);
            let heard = heard.clone();
            let rooms = io.of_fn(|name: String, _| name.starts_with("/room-"));
            rooms.on_server_event("ping", move |event: ServerEvent| {
                heard.fetch_add(1, Ordering::Relaxed);
                let _ = event.ack.send("pong");
            });
        });
        server.unwrap()
    });
    let mut clients = nodes.each_ref().map(|server| Client::socketio(server.addresses()[0]));
    for client in &mut clients {
        client.send_text("40/room-7,");
        assert!(client.text().starts_with("40/room-7,{"));
    }
    let room = Handle::of_server(&nodes[0], "/socket.io").unwrap().of("/room-7");
    let ping = || block_on(room.server_side_emit_with_ack::<String, _>("ping", ())).unwrap();
    support::eventually("the other one knows the child", || ping() == ["pong"]);
    assert!(heard.load(Ordering::Relaxed) > 0);
    drop(clients);
    nodes.into_iter().for_each(support::end);
}

/// What a server tells its adapter about sessions.
#[derive(Debug, Default)]
struct Keeper {
    keeps: bool,
    /// Questions are never answered, but dropped.
    told: Mutex<Vec<String>>,
    handle: Mutex<Option<Handle>>,
}

impl Keeper {
    fn tell(&self, what: String) {
        self.told.lock().unwrap().push(what);
    }
}

impl Adapter for Keeper {
    fn init(&self, nsp: Handle) {
        *self.handle.lock().unwrap() = Some(nsp);
    }

    fn broadcast(&self, _: &str, args: Vec<Value>, _: &BroadcastOptions) {
        self.tell(format!("broadcast {}", args[0].as_str().unwrap()));
    }

    fn keeps_sessions(&self) -> bool {
        self.keeps
    }

    fn broadcast_kept(&self, _: &str, args: Vec<Value>, options: &BroadcastOptions) {
        let event = args[0].as_str().unwrap().to_owned();
        self.tell(format!("broadcast_kept {event}"));
        let handle = self.handle.lock().unwrap().clone().unwrap();
        handle.deliver_kept(args, options, &format!("named after {event}")).unwrap();
    }

    fn persist_session(&self, _: &str, session: Session, lifetime: Duration) {
        let rooms = session.rooms.len();
        self.tell(format!("persist {} {rooms} {}", session.pid, lifetime.as_secs()));
        assert!(session.rooms.contains(&session.sid) && session.data == Value::from("data"));
    }

    fn forget_session(&self, _: &str, pid: &str) {
        self.tell(format!("forget {pid}"));
    }

    fn restore_session(&self, _: &str, pid: &str, offset: &str, answer: RestoreAnswer) {
        self.tell(format!("restore {pid} {offset}"));
        drop(answer);
    }
}

fn field<'a>(packet: &'a str, name: &str) -> &'a str {
    packet.split_once(&format!("\"{name}\":\"")).unwrap().1.split_once('"').unwrap().0
}

#[test]
fn sessions_are_told_of_where_they_are_kept_and_nowhere_else() {
    let _alone = support::alone();
    for (keeps, recovery) in [(true, true), (true, false), (false, true)] {
        let keeper = Arc::new(Keeper { keeps, ..Keeper::default() });
        let theirs = keeper.clone();
        let server = support::builder(support::options(Descriptors::Auto, 2)).start(move |app| {
            let connection_state_recovery = recovery.then(ConnectionStateRecovery::default);
            let adapter = Some(theirs.clone() as _);
            let options = Options { adapter, connection_state_recovery, ..Options::default() };
            let io = Server::attach_app(app, options);
            io.on_connection(|socket: Socket| {
                socket.set_data("data");
                socket.join("r");
            });
        });
        let server = server.unwrap();
        let io = Handle::of_server(&server, "/socket.io").unwrap();
        let address = server.addresses()[0];
        let told = || keeper.told.lock().unwrap().clone();
        let open = |connect: &str| {
            let mut client = Client::websocket(address, "/socket.io/?EIO=4&transport=websocket");
            client.text();
            client.send_text(connect);
            let welcome = client.text();
            (client, welcome)
        };
        let (mut client, welcome) = open("40");
        assert!(io.to("r").emit("news", 1).is_ok());
        let text = client.text();
        assert!(io.volatile().emit("gossip", ()).is_ok() && io.local().emit("local", 1).is_ok());
        let stranger = "AAAAAAAAAAAAAAAAAAAAAA";
        let (_stranger, new) = open(&format!(r#"40{{"pid":"{stranger}","offset":"3-0"}}"#));
        assert!(new.starts_with("40{"), "a new one: {new}");
        client.reset();
        if !(keeps && recovery) {
            assert_eq!(told(), ["broadcast news", "broadcast gossip"]);
            support::end(server);
            continue;
        }
        assert_eq!(text, r#"42["news",1,"named after news"]"#);
        let pid = field(&welcome, "pid");
        let mut expected = vec!["broadcast_kept news".to_owned(), "broadcast gossip".to_owned()];
        expected.push(format!("restore {stranger} 3-0"));
        expected.push(format!("persist {pid} 2 120"));
        support::eventually("its session is offered", || told().len() >= 4);
        assert_eq!(told()[..4], expected);
        // It comes back here: nobody else may have it.
        let (_client, back) = open(&format!(r#"40{{"pid":"{pid}","offset":"named after news"}}"#));
        assert_eq!(field(&back, "pid"), pid);
        assert!(told().contains(&format!("forget {pid}")));
        support::end(server);
    }
}

#[test]
fn a_server_that_is_alone_has_nobody_to_ask() {
    let _alone = support::alone();
    let server = support::builder(support::options(Descriptors::Auto, 2)).start(|app| {
        Server::attach_app(app, Options::default());
    });
    let server = server.unwrap();
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    assert!(io.server_side_emit("event", (1, 2)).is_ok());
    assert_eq!(block_on(io.server_side_emit_with_ack::<Value, _>("event", ())).unwrap(), Vec::<Value>::new());
    assert!(block_on(io.fetch_sockets()).unwrap().is_empty());
    support::end(server);
}

#[test]
fn changes_in_rooms_are_told() {
    let _alone = support::alone();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let told = seen.clone();
    let server = support::builder(support::options(Descriptors::Auto, 1)).start(move |app| {
        let io = Server::attach_app(app, Options::default());
        let told = told.clone();
        let ids: Mutex<Vec<String>> = Mutex::default();
        io.on_room_event(move |event| {
            let mut ids = ids.lock().unwrap();
            let mut short = |name: &str| {
                let known = ids.iter().position(|id| id == name).unwrap_or_else(|| {
                    ids.push(name.to_owned());
                    ids.len() - 1
                });
                format!("#{known}")
            };
            let mut room = |name: &str| if name.len() > 3 { short(name) } else { name.to_owned() };
            told.lock().unwrap().push(match event {
                RoomEvent::Create { room: name } => format!("create {}", room(name)),
                RoomEvent::Join { room: name, id } => {
                    format!("join {} {}", room(name), room(&id.to_string()))
                }
                RoomEvent::Leave { room: name, id } => {
                    format!("leave {} {}", room(name), room(&id.to_string()))
                }
                RoomEvent::Delete { room: name } => format!("delete {}", room(name)),
            });
        });
        io.sockets_on("join", |socket: Socket, Data(room): Data<String>, ack: Ack| {
            socket.join(&room);
            socket.join(room);
            ack.send(())
        });
        let all = io.sockets();
        io.sockets_on("leave", move |socket: Socket, Data(room): Data<String>, ack: Ack| {
            assert_eq!((all.sockets().len(), all.rooms()), (2, vec![room.clone()]));
            assert_eq!(all.socket(&socket.id()), Some(socket));
            socket.leave(&room);
            socket.leave(room);
            ack.send(())
        });
    });
    let server = server.unwrap();
    let mut one = Client::socketio(server.addresses()[0]);
    let mut two = Client::socketio(server.addresses()[0]);
    call(&mut one, r#"["join","r"]"#);
    call(&mut two, r#"["join","r"]"#);
    call(&mut one, r#"["leave","r"]"#);
    call(&mut one, r#"["join","s"]"#);
    one.send_text("41");
    two.send_text("42[\"nothing\"]");
    let expected = [
        "create #0",
        "join #0 #0",
        "create #1",
        "join #1 #1",
        "create r",
        "join r #0",
        "join r #1",
        "leave r #0",
        "create s",
        "join s #0",
        "leave #0 #0",
        "delete #0",
        "leave s #0",
        "delete s",
    ];
    support::eventually("all is told", || seen.lock().unwrap().len() >= expected.len());
    assert_eq!(*seen.lock().unwrap(), expected);
    drop((one, two));
    support::end(server);
}
