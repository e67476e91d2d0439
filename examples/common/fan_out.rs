//! The fan-out contract: what the load tests ask of a server, whichever it is. `load-tests/peers` has it too.

use sockring::io::{Ack, Args, Data, Server, Socket, Value};

pub(crate) fn serve(io: &Server) {
    let publisher = io.clone();
    io.sockets_on("join", |socket: Socket, Data(room): Data<String>, ack: Ack| {
        socket.join(room);
        ack.send(())
    });
    io.sockets_on("leave", |socket: Socket, Data(room): Data<String>, ack: Ack| {
        socket.leave(room);
        ack.send(())
    });
    io.sockets_on("publish", move |Data((room, payload)): Data<(String, Value)>| {
        publisher.to(room).emit("message", payload)
    });
    io.sockets_on("echo", |Args(args): Args, ack: Ack| ack.send(args.first().unwrap_or(&Value::Null)));
}
