//! Order under load: each socket gets what each sender emits in the order in which it was emitted, none of it twice
//! and none of it lost, while sockets join rooms and leave them.

#[path = "../examples/common/rooms.rs"]
mod rooms;
mod support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use sockring::io::{Data, Handle, Options, Server};
use sockring::runtime::{Descriptors, Running};
use support::{Client, eventually};

crate::both!(each_sender_is_heard_in_order);

const SOCKETS: usize = 200;
/// They emit from handlers, on whichever core they are.
const PUBLISHERS: usize = 4;
/// What each of them emits to its own room, and what a thread emits to all.
const MESSAGES: usize = 600;
/// How often a socket joins the room of a publisher and leaves it again.
const STAYS: usize = 12;

fn start(descriptors: Descriptors) -> Running {
    let server = support::builder(support::options(descriptors, 2)).start(|app| {
        let io = Server::attach_app(app, Options::default());
        let everybody = io.clone();
        rooms::serve(&io);
        io.sockets_on("publish", move |Data((room, number)): Data<(String, usize)>| {
            let (rooms, members) = (everybody.to(&room), everybody.to("members"));
            let _ = rooms.emit("n", (&room, number))?;
            // Most of them are in both rooms, and get it once.
            members.to(&room).emit("n", (format!("{room} and all"), number))
        });
    });
    server.expect("a server starts")
}

/// A socket, and what it has heard of each sender since it began to hear it.
struct Listener {
    client: Client,
    last: HashMap<String, usize>,
    acks: usize,
}

impl Listener {
    fn new(address: SocketAddr) -> Self {
        let mut client = Client::websocket(address, "/socket.io/?EIO=4&transport=websocket");
        assert!(client.text().starts_with("0{"));
        client.send_text("40");
        assert!(client.text().starts_with("40{"));
        Self { client, last: HashMap::new(), acks: 0 }
    }

    /// Reads one packet; whether it was an acknowledgement.
    fn read(&mut self) -> bool {
        let packet = self.client.text();
        if packet.starts_with("43") {
            return true;
        }
        let event = packet.strip_prefix("42[\"n\",\"").and_then(|rest| rest.strip_suffix(']'));
        let (sender, number) =
            event.and_then(|rest| rest.split_once("\",")).unwrap_or_else(|| panic!("{packet}"));
        let number = number.parse().unwrap();
        match self.last.insert(sender.to_owned(), number) {
            Some(last) => assert_eq!(number, last + 1, "of {sender}"),
            // It was there before anybody began to speak to all.
            None => assert!(number == 0 || !is_to_all(sender), "{number} is the first of {sender}"),
        }
        false
    }

    fn call(&mut self, event: &str, room: &str) {
        self.acks += 1;
        self.client.send_text(&format!("42{}[\"{event}\",\"{room}\"]", self.acks));
        while !self.read() {}
    }

    fn heard(&self, sender: &str) -> Option<usize> {
        self.last.get(sender).copied()
    }

    fn has_heard_all(&self, senders: &[String]) -> bool {
        senders.iter().all(|sender| self.heard(sender) == Some(MESSAGES - 1))
    }
}

fn is_to_all(sender: &str) -> bool {
    sender == "thread" || sender.ends_with(" and all")
}

/// Is in the room of all throughout, and in that of one publisher now and then.
fn listen(address: SocketAddr, number: usize, ready: &AtomicUsize) {
    let mut listener = Listener::new(address);
    listener.call("join", "members");
    ready.fetch_add(1, Ordering::SeqCst);
    let room = format!("room {}", number % PUBLISHERS);
    let mut senders: Vec<String> = (0..PUBLISHERS).map(|n| format!("room {n} and all")).collect();
    senders.push("thread".to_owned());
    for stay in 0..STAYS {
        listener.call("join", &room);
        for _ in 0..(number + stay) % 40 {
            // On a busy machine all may have been said by now: nothing more comes then.
            if listener.has_heard_all(&senders) {
                break;
            }
            let _ = listener.read();
        }
        listener.call("leave", &room);
        // What comes from now on is not meant for it, until it joins again.
        listener.last.remove(&room);
    }
    while !listener.has_heard_all(&senders) {
        assert!(!listener.read());
    }
    assert_eq!(listener.heard(&room), None, "it is not in that room");
    assert_eq!(listener.last.len(), senders.len());
}

fn each_sender_is_heard_in_order(descriptors: Descriptors) {
    let server = start(descriptors);
    let (address, ready) = (server.addresses()[0], Arc::new(AtomicUsize::new(0)));
    let listeners: Vec<_> = (0..SOCKETS)
        .map(|number| {
            let ready = ready.clone();
            thread::spawn(move || listen(address, number, &ready))
        })
        .collect();
    eventually("all are there", || ready.load(Ordering::SeqCst) == SOCKETS);
    let mut senders: Vec<_> = (0..PUBLISHERS)
        .map(|number| {
            thread::spawn(move || {
                let mut publisher = Listener::new(address);
                for message in 0..MESSAGES {
                    publisher.client.send_text(&format!("42[\"publish\",\"room {number}\",{message}]"));
                    thread::sleep(Duration::from_micros(500));
                }
                publisher
            })
        })
        .collect();
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    for message in 0..MESSAGES {
        let _ = io.emit("n", ("thread", message)).unwrap();
        thread::sleep(Duration::from_micros(500));
    }
    // They stay, or the server would forget what they have said last.
    let publishers: Vec<Listener> = senders.drain(..).map(|sender| sender.join().unwrap()).collect();
    listeners.into_iter().for_each(|listener| listener.join().unwrap());
    drop(publishers);
    support::end(server);
}
