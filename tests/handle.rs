//! Servers driven from outside their cores: handles on other threads, and adapters between servers.

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use sockring::fanout::Frame;
use sockring::io::{Adapter, BroadcastOptions, Data, Handle, Options, Server, Socket, Value};
use sockring::runtime::{Descriptors, Running};
use support::{Client, block_on};

const WORKERS: usize = 3;

fn start(adapter: Option<Arc<dyn Adapter>>) -> Running {
    let server = support::builder(support::options(Descriptors::Auto, WORKERS)).start(move |app| {
        let options = Options { adapter: adapter.clone(), ..Options::default() };
        let io = Server::attach_app(app, options);
        let everybody = io.clone();
        io.sockets_on("join", |socket: Socket, Data(room): Data<String>| socket.join(room));
        io.sockets_on("shout", move |Data((room, text)): Data<(String, Value)>| {
            everybody.to(room).emit("heard", text)
        });
        io.sockets_on("whisper", |socket: Socket, Data(text): Data<Value>| {
            socket.local().emit("heard", text)
        });
    });
    server.expect("a server starts")
}

fn join(address: SocketAddr) -> Client {
    let mut client = Client::websocket(address, "/socket.io/?EIO=4&transport=websocket");
    assert!(client.text().starts_with("0{"));
    client.send_text("40");
    assert!(client.text().starts_with("40{"));
    client
}

#[test]
fn what_a_thread_does_takes_effect_in_its_order() {
    let _alone = support::alone();
    let server = start(None);
    let io = Handle::of_server(&server, "/socket.io");
    let mut clients: Vec<Client> = (0..12).map(|_| join(server.addresses()[0])).collect();
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
    let found = block_on(io.fetch_sockets());
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
        let server = start(None);
        let clients: Vec<Client> = (0..3).map(|_| join(server.addresses()[0])).collect();
        drop(clients);
        support::end(server);
    };
    run();
    let before = support::descriptors();
    (0..5).for_each(|_| run());
    // The kernel takes a ring down a moment after its descriptor is closed.
    support::eventually("no descriptor is left over", || support::descriptors() <= before);
}

/// Carries broadcasts to one other server of the same process.
#[derive(Debug, Default)]
struct Link(OnceLock<Handle>);

impl Adapter for Link {
    fn broadcast(&self, nsp: &str, frame: &Frame, options: &BroadcastOptions) {
        if let Some(other) = self.0.get() {
            let _ = other.of(nsp).deliver(frame, options);
        }
    }

    fn server_count(&self) -> usize {
        2
    }
}

#[test]
fn an_adapter_joins_two_servers() {
    let _alone = support::alone();
    let links = [Arc::new(Link::default()), Arc::new(Link::default())];
    let servers = [0, 1].map(|i| start(Some(links[i].clone() as Arc<dyn Adapter>)));
    for i in [0, 1] {
        let other = Handle::of_server(&servers[1 - i], "/socket.io");
        links[i].0.set(other).expect("each link is made once");
    }
    let [mut here, mut there] = [0, 1].map(|i| join(servers[i].addresses()[0]));
    for client in [&mut here, &mut there] {
        client.send_text("42[\"join\",\"lobby\"]");
        // The echo of a packet that is answered at once: the join before it is done.
        client.send_text("42[\"shout\",\"nowhere\",1]");
    }
    support::eventually("both are in the room", || {
        servers.iter().all(|server| {
            let io = Handle::of_server(server, "/socket.io");
            block_on(io.to("lobby").fetch_sockets()).len() == 1
        })
    });
    here.send_text("42[\"shout\",\"lobby\",{\"bytes\":[1,2]}]");
    there.send_text("42[\"whisper\",\"stays here\"]");
    here.send_text("42[\"shout\",\"lobby\",2]");
    for expected in ["42[\"heard\",{\"bytes\":[1,2]}]", "42[\"heard\",2]"] {
        assert_eq!(here.text(), expected);
        assert_eq!(there.text(), expected);
    }
    drop((here, there));
    servers.into_iter().for_each(support::end);
}
