//! Broadcasts whose receivers answer, driven by clients that answer late, twice, wrongly, or not at all.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use sockring::io::{AckError, Data, Handle, Options, Server, Socket, Value};
use sockring::runtime::{Descriptors, Running};
use support::{Client, block_on};

const WORKERS: usize = 3;
/// Long enough for a busy machine: nobody waits for it unless something is wrong.
const LONG: Duration = Duration::from_secs(60);
/// For those who wait until it is over.
const SHORT: Duration = Duration::from_millis(300);

fn start() -> Running {
    let server = support::builder(support::options(Descriptors::Auto, WORKERS)).start(|app| {
        let io = Server::attach_app(app, Options::default());
        io.sockets_on("join", |socket: Socket, Data(room): Data<String>| {
            socket.join(room);
            socket.emit("joined", ())
        });
        let all = io.clone();
        io.sockets_on("ask", move |socket: Socket, Data(room): Data<String>| {
            let answered = move |result: Result<Vec<i64>, _>| {
                let answers = result.map_err(|_| "failed").map(|mut answers| {
                    answers.sort_unstable();
                    answers
                });
                let _ = socket.emit("answers", answers.unwrap_or_default());
            };
            all.to(room).timeout(LONG).emit_with_callback("question", (), answered)
        });
    });
    server.expect("a server starts")
}

fn join(address: SocketAddr, room: &str) -> Client {
    let mut client = Client::socketio(address);
    client.send_text(&format!("42[\"join\",\"{room}\"]"));
    assert_eq!(client.text(), "42[\"joined\"]");
    client
}

/// The id of the acknowledgement that a client is asked for.
fn asked(client: &mut Client, event: &str) -> u64 {
    let text = client.text();
    let rest = text.strip_prefix("42").expect("an event");
    let (id, args) = rest.split_once('[').expect("arguments");
    assert!(args.starts_with(&format!("\"{event}\"")), "{text}");
    id.parse().expect("an id")
}

#[test]
fn another_thread_asks_sockets_of_all_cores() {
    let _alone = support::alone();
    let server = start();
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    let mut clients: Vec<Client> = (0..9).map(|_| join(server.addresses()[0], "r")).collect();
    let mut outside = join(server.addresses()[0], "elsewhere");
    let answers = io.to("r").timeout(LONG).emit_with_ack::<(i64, String), _>("question", "why");
    let ids: Vec<u64> = clients.iter_mut().map(|client| asked(client, "question")).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "one packet for all");
    // Who was not asked may not answer, and nobody twice.
    outside.send_text(&format!("43{}[99,\"foreign\"]", ids[0]));
    outside.send_text("42[\"join\",\"x\"]");
    assert_eq!(outside.text(), "42[\"joined\"]");
    clients[0].send_text(&format!("43{}[0,\"first\"]", ids[0]));
    for (i, client) in clients.iter_mut().enumerate() {
        client.send_text(&format!("43{}[{i},\"because\"]", ids[0]));
    }
    let mut answers = block_on(answers).expect("all have answered");
    answers.sort_unstable();
    assert_eq!(answers.iter().map(|(i, _)| *i).collect::<Vec<_>>(), (0..9).collect::<Vec<_>>());
    assert_eq!(answers[0].1, "first");
    drop((clients, outside));
    support::end(server);
}

#[test]
fn with_nobody_to_ask_the_answer_is_empty_at_once() {
    let _alone = support::alone();
    let server = start();
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    assert_eq!(block_on(io.timeout(LONG).emit_with_ack::<Value, _>("question", ())), Ok(vec![]));
    let mut client = join(server.addresses()[0], "r");
    let nobody = io.to("r").except("r").timeout(LONG);
    assert_eq!(block_on(nobody.emit_with_ack::<Value, _>("question", ())), Ok(vec![]));
    client.send_text("42[\"ask\",\"nobody's\"]");
    assert_eq!(client.text(), "42[\"answers\",[]]");
    let refused = block_on(io.emit_with_ack::<Value, _>("disconnect", ()));
    assert!(matches!(refused.map_err(|error| error.reason), Err(AckError::Encode(_))));
    drop(client);
    support::end(server);
}

#[test]
fn who_leaves_or_says_nonsense_is_missed_and_the_others_are_not() {
    let _alone = support::alone();
    let server = start();
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    let mut clients: Vec<Client> = (0..3).map(|_| join(server.addresses()[0], "r")).collect();
    let answers = io.timeout(SHORT).emit_with_ack::<i64, _>("question", ());
    let ids: Vec<u64> = clients.iter_mut().map(|client| asked(client, "question")).collect();
    drop(clients.pop());
    (0..2).for_each(|i| clients[i].send_text(&format!("43{}[{i}]", ids[i])));
    let mut error = block_on(answers).expect_err("one has left");
    error.answers.sort_unstable();
    assert_eq!((error.reason, error.answers), (AckError::Timeout, vec![0, 1]));
    // Late is too late, and disturbs nothing.
    clients[0].send_text(&format!("43{}[5]", ids[0]));

    let answers = io.timeout(LONG).emit_with_ack::<i64, _>("question", ());
    let ids: Vec<u64> = clients.iter_mut().map(|client| asked(client, "question")).collect();
    clients[0].send_text(&format!("43{}[\"nonsense\"]", ids[0]));
    clients[1].send_text(&format!("43{}[7]", ids[1]));
    let error = block_on(answers).expect_err("one answer does not fit");
    assert_eq!(error.answers, [7]);
    assert!(matches!(error.reason, AckError::Args(_)), "{error}");
    drop(clients);
    support::end(server);
}

#[test]
fn a_handler_asks_by_callback() {
    let _alone = support::alone();
    let server = start();
    let mut clients: Vec<Client> = (0..4).map(|_| join(server.addresses()[0], "r")).collect();
    clients[0].send_text("42[\"ask\",\"r\"]");
    for (i, client) in clients.iter_mut().enumerate() {
        let id = asked(client, "question");
        client.send_text(&format!("43{id}[{i}]"));
    }
    assert_eq!(clients[0].text(), "42[\"answers\",[0,1,2,3]]");
    drop(clients);
    support::end(server);
}

#[test]
fn a_remote_socket_answers_with_one_value() {
    let _alone = support::alone();
    let server = start();
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    let mut client = join(server.addresses()[0], "r");
    let found = block_on(io.fetch_sockets()).unwrap().pop().expect("a socket");
    let answer = found.timeout(LONG).emit_with_ack::<i64, _>("question", 1);
    let id = asked(&mut client, "question");
    client.send_text(&format!("43{id}[42]"));
    assert_eq!(block_on(answer), Ok(42));
    let silent = found.timeout(SHORT).emit_with_ack::<i64, _>("question", 2);
    asked(&mut client, "question");
    assert_eq!(block_on(silent), Err(AckError::Timeout));
    drop(client);
    support::eventually("the socket is gone", || block_on(io.fetch_sockets()).unwrap().is_empty());
    assert_eq!(block_on(found.emit_with_ack::<i64, _>("question", 3)), Err(AckError::Disconnected));
    support::end(server);
}

#[test]
fn a_server_that_ends_lets_nobody_wait() {
    let _alone = support::alone();
    let server = start();
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    let mut client = join(server.addresses()[0], "r");
    let answers = io.timeout(LONG).emit_with_ack::<Value, _>("question", ());
    asked(&mut client, "question");
    drop(client);
    support::end(server);
    assert_eq!(block_on(answers).map_err(|error| error.reason), Err(AckError::Timeout));
}
