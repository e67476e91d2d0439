//! The fan-out contract: what the load tests ask of a server, whichever it is. `load-tests/peers` has it too.

#[path = "rooms.rs"]
mod rooms;

use sockring::io::{Ack, Args, Data, Server, Value};

pub(crate) fn serve(io: &Server) {
    let publisher = io.clone();
    rooms::serve(io);
    io.sockets_on("publish", move |Data((room, payload)): Data<(String, Value)>| {
        publisher.to(room).emit("message", payload)
    });
    io.sockets_on("echo", |Args(args): Args, ack: Ack| ack.send(args.first().unwrap_or(&Value::Null)));
}
