//! The server of the README.
//!
//! `cargo run --release --example hello`

use sockring::app::App;
use sockring::io::{Ack, Data, DisconnectReason, Options, Server, Socket};

fn main() -> Result<(), sockring::runtime::StartError> {
    App::builder().listen("127.0.0.1:3000").run(|app| {
        let io = Server::attach_app(app, Options::default());
        io.on_connection(|socket: Socket| {
            println!("{} came", socket.id());
            socket.on("join", |socket: Socket, Data(room): Data<String>, ack: Ack| {
                socket.join(room.as_str());
                ack.send(format!("you are in {room}"))
            });
            socket.on("say", |socket: Socket, Data((room, text)): Data<(String, String)>| {
                socket.to(room).emit("said", (socket.id(), text))
            });
            socket.on("disconnect", |reason: DisconnectReason| println!("one left: {reason}"));
        });
    })
}
