//! Namespaces that clients bring into being: what they cost, and what bounds them.

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use regex::Regex;
use sockring::io::{Handle, Handshake, Namespace, Options, ParentNamespace, Server, Socket};
use sockring::runtime::{Descriptors, Running};
use support::Client;

fn start(dynamic: usize, cleanup: bool, set_up: impl Fn(&Server) + Send + Sync + 'static) -> Running {
    let server = support::builder(support::options(Descriptors::Auto, 1)).start(move |app| {
        let options = Options {
            dynamic_namespaces: dynamic,
            cleanup_empty_child_namespaces: cleanup,
            ..Options::default()
        };
        set_up(&Server::attach_app(app, options));
    });
    server.expect("a server starts")
}

fn numbered(io: &Server) -> ParentNamespace {
    io.of_pattern(Regex::new(r"^/n-\w+$").unwrap())
}

fn open(address: SocketAddr) -> Client {
    let mut client = Client::websocket(address, "/socket.io/?EIO=4&transport=websocket");
    assert!(client.text().starts_with("0{"));
    client
}

/// Joins a namespace; whether it was let in.
fn join(client: &mut Client, name: &str) -> bool {
    client.send_text(&format!("40{name},"));
    let answer = client.text();
    if answer == format!("44{name},{{\"message\":\"Invalid namespace\"}}") {
        return false;
    }
    assert!(answer.starts_with(&format!("40{name},{{\"sid\":")), "{answer}");
    true
}

/// Leaves a namespace, and waits until that is done.
fn leave(client: &mut Client, name: &str) {
    client.send_text(&format!("41{name},"));
    client.send_text("40/nobody knows this,");
    assert!(client.text().starts_with("44/nobody"));
}

#[test]
fn clients_fill_no_table() {
    let _alone = support::alone();
    let born = Arc::new(AtomicUsize::new(0));
    let count = born.clone();
    let server = start(5, false, move |io| {
        numbered(io);
        let count = count.clone();
        io.on_new_namespace(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
    });
    let mut client = open(server.addresses()[0]);
    let before = server.shared().directory.spaces();
    // Empty ones go when there is no room for another.
    for i in 0..300 {
        let name = format!("/n-{i}");
        assert!(join(&mut client, &name));
        leave(&mut client, &name);
    }
    assert_eq!(born.load(Ordering::Relaxed), 300);
    assert!(server.shared().directory.spaces() <= before + 5);
    for i in 0..5 {
        assert!(join(&mut client, &format!("/n-held{i}")));
    }
    assert!(!join(&mut client, "/n-more"), "the limit is reached");
    leave(&mut client, "/n-held3");
    assert!(join(&mut client, "/n-more"), "there is room again");
    assert!(!join(&mut client, &format!("/n-{}", "x".repeat(300))), "no name is that long");
    drop(client);
    support::end(server);
}

#[test]
fn handles_on_names_of_clients_give_their_numbers_back() {
    let _alone = support::alone();
    let server = start(1000, false, |_| ());
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    let before = server.shared().directory.spaces();
    for i in 0..1000 {
        assert!(io.of(&format!("/{i}")).emit("nobody", ()).is_ok());
    }
    assert_eq!(server.shared().directory.spaces(), before);
    drop(io);
    support::end(server);
}

#[test]
fn children_stay_unless_the_options_say_otherwise() {
    let _alone = support::alone();
    for cleanup in [false, true] {
        let names = Arc::new(Mutex::new(Vec::new()));
        let seen = names.clone();
        let server = start(100, cleanup, move |io| {
            numbered(io);
            io.of("/kept");
            let seen = seen.clone();
            io.on_new_namespace(move |nsp| seen.lock().unwrap().push(nsp.name().to_owned()));
        });
        let mut client = open(server.addresses()[0]);
        for _ in 0..3 {
            for name in ["/n-1", "/kept"] {
                assert!(join(&mut client, name));
                leave(&mut client, name);
            }
        }
        let born = names.lock().unwrap().len();
        assert_eq!(born, if cleanup { 3 } else { 1 });
        drop(client);
        support::end(server);
    }
}

#[test]
fn parents_are_asked_in_order_and_a_panic_is_a_no() {
    let _alone = support::alone();
    let server = start(1000, false, |io| {
        let tell = |parent: &ParentNamespace, name: &'static str| {
            parent.on_connection(move |socket: Socket| socket.emit("parent", name));
        };
        tell(&io.of_fn(|name: String, _: Handshake| name != "/n-1" || panic!("by intent")), "never");
        tell(
            &io.of_fn(|name: String, _: Handshake| async move { name == "/n-2" || name == "/n-4" }),
            "later",
        );
        tell(&numbered(io), "pattern");
        tell(&io.of_fn(|_: String, _: Handshake| true), "anything");
        let made: Namespace = io.of("n-3");
        assert_eq!(made.name(), "/n-3");
    });
    let mut client = open(server.addresses()[0]);
    // The first function allows all but "/n-1", where it panics.
    for (name, parent) in [("/n-1", "pattern"), ("/n-2", "never"), ("/n-3", "pattern"), ("/other", "never")] {
        assert!(join(&mut client, name));
        assert_eq!(client.text(), format!("42{name},[\"parent\",\"{parent}\"]"));
    }
    drop(client);
    support::end(server);
}

#[test]
fn a_client_cannot_ask_without_end() {
    let _alone = support::alone();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let server = start(1000, false, move |io| {
        let count = count.clone();
        io.of_fn(move |_: String, _: Handshake| {
            count.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<bool>()
        });
    });
    let mut client = open(server.addresses()[0]);
    for i in 0..200 {
        client.send_text(&format!("40/{i},"));
    }
    assert!(client.ends(), "it has asked for more than a connection may have");
    assert_eq!(asked.load(Ordering::Relaxed), 100);
    support::end(server);
}
