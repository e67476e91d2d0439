//! Clients join rooms and leave them as they say.

use sockring::io::{Ack, Data, Server, Socket};

pub(crate) fn serve(io: &Server) {
    io.sockets_on("join", |socket: Socket, Data(room): Data<String>, ack: Ack| {
        socket.join(room);
        ack.send(())
    });
    io.sockets_on("leave", |socket: Socket, Data(room): Data<String>, ack: Ack| {
        socket.leave(room);
        ack.send(())
    });
}
