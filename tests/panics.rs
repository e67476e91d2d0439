//! Code of the user that panics costs the socket that it ran for, and nobody else.

mod support;

use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use sockring::io::{Data, Handle, Options, Server, Socket, Value};
use sockring::runtime::Descriptors;
use support::*;

both!(a_middleware_that_panics_refuses, data_that_cannot_be_written);

#[derive(Deserialize)]
struct Auth {
    how: String,
}

fn a_middleware_that_panics_refuses(descriptors: Descriptors) {
    let server = builder(options(descriptors, 1))
        .start(|app| {
            let io = Server::attach_app(app, Options::default());
            io.middleware(|Data(auth): Data<Auth>| assert_ne!(auth.how, "at once", "on purpose"));
            io.middleware(|Data(auth): Data<Auth>| async move {
                assert_ne!(auth.how, "in a future", "on purpose");
                monoio::time::sleep(Duration::from_millis(1)).await;
                assert_ne!(auth.how, "later", "on purpose");
            });
            io.middleware(|Data(auth): Data<Auth>| assert_ne!(auth.how, "behind a future", "on purpose"));
        })
        .unwrap();
    for path in ["/socket.io/?EIO=4&transport=websocket", "/socket.io/"] {
        let address = server.addresses()[0];
        let mut client =
            if path.contains("websocket") { Connected::ws(address) } else { Connected::poll(address) };
        for how in ["at once", "in a future", "later", "behind a future"] {
            let refused = client.ask(&format!("40{{\"how\":\"{how}\"}}"));
            assert_eq!(refused, r#"44{"message":"internal server error"}"#, "{how}");
        }
        assert!(
            client.ask(r#"40{"how":"well"}"#).starts_with(r#"40{"sid":"#),
            "the connection is as good as before"
        );
    }
    end(server);
}

/// A session over either transport that gets one packet for each that it sends.
enum Connected {
    WebSocket(Client),
    Polling(Client, String),
}

impl Connected {
    fn ws(address: std::net::SocketAddr) -> Self {
        let mut client = Client::websocket(address, "/socket.io/?EIO=4&transport=websocket");
        assert!(client.text().starts_with('0'));
        Self::WebSocket(client)
    }

    fn poll(address: std::net::SocketAddr) -> Self {
        let mut client = Client::connect(address);
        let open = client.get("/socket.io/?EIO=4&transport=polling");
        let path = format!("/socket.io/?EIO=4&transport=polling&sid={}", sid(open.text()));
        Self::Polling(client, path)
    }

    fn ask(&mut self, packet: &str) -> String {
        match self {
            Self::WebSocket(client) => {
                client.send_text(packet);
                client.text()
            }
            Self::Polling(client, path) => {
                assert_eq!(client.post(path, packet.as_bytes()).text(), "ok");
                client.get(path).text().to_owned()
            }
        }
    }
}

/// Data of a socket whose writing fails in the hardest way.
struct Broken;

impl Serialize for Broken {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("on purpose")
    }
}

fn data_that_cannot_be_written(descriptors: Descriptors) {
    let server = builder(options(descriptors, 3))
        .start(|app| {
            let io = Server::attach_app(app, Options::default());
            io.on_connection(|socket: Socket, Data(broken): Data<Value>| {
                match broken.get("broken").is_some() {
                    true => drop(socket.set_data(Broken)),
                    false => drop(socket.set_data("sound")),
                }
            });
        })
        .unwrap();
    let mut clients: Vec<Connected> = (0..12).map(|_| Connected::ws(server.addresses()[0])).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        let auth = if i % 2 == 0 { "40{\"broken\":1}" } else { "40" };
        assert!(client.ask(auth).starts_with("40"));
    }
    let io = Handle::of_server(&server, "/socket.io").unwrap();
    let (found, sockets) = mpsc::channel();
    std::thread::spawn(move || found.send(block_on(io.fetch_sockets()).unwrap()));
    let sockets = sockets.recv_timeout(Duration::from_secs(8)).expect("an answer");
    let sound = sockets.iter().filter(|socket| socket.data.as_str() == Some("sound")).count();
    let broken = sockets.iter().filter(|socket| socket.data.is_null()).count();
    assert_eq!((sound, broken), (6, 6));
    drop(clients);
    end(server);
}
