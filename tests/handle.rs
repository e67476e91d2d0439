//! Servers driven from outside their cores: handles on other threads.

mod support;

use sockring::io::{Handle, Options, Server};
use sockring::runtime::{Descriptors, Running};
use support::{Client, block_on};

const WORKERS: usize = 3;

fn start() -> Running {
    let server = support::builder(support::options(Descriptors::Auto, WORKERS)).start(move |app| {
        Server::attach_app(app, Options::default());
    });
    server.expect("a server starts")
}

#[test]
fn what_a_thread_does_takes_effect_in_its_order() {
    let _alone = support::alone();
    let server = start();
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    let mut clients: Vec<Client> = (0..12).map(|_| Client::socketio(server.addresses()[0])).collect();
    for round in 0..20 {
        let room = format!("room {round}");
        // The room is new: a broadcast right behind the join must find its members on every core.
        io.sockets_join(&room);
        assert!(io.to(&room).emit("n", round).is_ok());
        io.to(&room).sockets_leave(&room);
        assert!(io.to(&room).emit("nobody hears this", ()).is_ok());
    }
    for client in &mut clients {
        for round in 0..20 {
            assert_eq!(client.text(), format!("42[\"n\",{round}]"));
        }
    }
    let found = block_on(io.fetch_sockets()).unwrap();
    let ids = block_on(io.all_sockets()).unwrap();
    assert!(found.iter().all(|socket| ids.contains(&socket.id)) && ids.len() == found.len());
    assert_eq!(found.len(), clients.len());
    assert!(found.iter().all(|socket| socket.rooms == [socket.id.to_string()]));
    io.disconnect_sockets(true);
    assert!(clients.iter_mut().all(|client| client.text() == "41"));
    support::end(server);
}

#[test]
fn servers_come_and_go() {
    let _alone = support::alone();
    let run = || {
        let server = start();
        let clients: Vec<Client> = (0..3).map(|_| Client::socketio(server.addresses()[0])).collect();
        drop(clients);
        support::end(server);
    };
    run();
    let before = support::descriptors();
    (0..5).for_each(|_| run());
    // The kernel takes a ring down a moment after its descriptor is closed.
    support::eventually("no descriptor is left over", || support::descriptors() <= before);
}
