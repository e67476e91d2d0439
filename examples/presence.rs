//! Presence: who is in a room, who comes and goes, and who is typing.
//!
//! `cargo run --release --example presence`

mod common;

use clap::Parser;
use serde::{Deserialize, Serialize};
use sockring::io::{Ack, Data, Failure, Namespace, Options, Server, Socket, Value};

#[derive(Parser)]
#[command(about)]
struct Flags {
    #[command(flatten)]
    listen: common::Listen,
}

/// What the others see of somebody; it travels with the socket, also to other cores and servers.
#[derive(Clone, Deserialize, Serialize)]
struct Person {
    name: String,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    common::serve(flags.listen.builder(3000)?, |app| {
        let io = Server::attach_app(app, Options::default());
        let rooms = io.of("/rooms");
        rooms.middleware(|socket: Socket, Data(person): Data<Person>| drop(socket.set_data(person)));
        let nsp = rooms.clone();
        rooms.sockets_on("enter", move |socket: Socket, Data(room): Data<String>, ack: Ack| {
            enter(nsp.clone(), socket, room, ack)
        });
        rooms.sockets_on("leave", |socket: Socket, Data(room): Data<String>| {
            socket.leave(&room);
            socket.to(&room).emit("left", (&room, person(socket)))
        });
        // Nobody needs to know it late: it is dropped for who cannot take it at once.
        rooms.sockets_on("typing", |socket: Socket, Data(room): Data<String>| {
            socket.to(&room).volatile().emit("typing", (&room, person(socket)))
        });
        // While it disconnects, a socket is still in its rooms.
        rooms.sockets_on("disconnecting", |socket: Socket| {
            for room in socket.rooms().iter().filter(|room| **room != socket.id().to_string()) {
                let _ = socket.to(room).emit("left", (room, person(socket)))?;
            }
            Ok::<(), Failure>(())
        });
    })
}

fn person(socket: Socket) -> Option<Person> {
    socket.data::<Person>().map(|person| (*person).clone())
}

/// The answer is who is there already; they are told who has come.
async fn enter(rooms: Namespace, socket: Socket, room: String, ack: Ack) -> Result<(), Failure> {
    let there = rooms.to(&room).fetch_sockets().await?;
    let people: Vec<Value> = there.into_iter().map(|socket| socket.data).collect();
    socket.join(&room);
    let _ = socket.to(&room).emit("entered", (&room, person(socket)))?;
    let _ = ack.send(people)?;
    Ok(())
}
