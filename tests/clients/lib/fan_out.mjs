// The fan-out contract, which the load tools and the suites speak: rooms, a publisher, an echo. It needs nothing from npm.
export function fanOut(io) {
  io.on("connection", (socket) => {
    socket.on("join", (room, ack) => {
      socket.join(room);
      ack();
    });
    socket.on("leave", (room, ack) => {
      socket.leave(room);
      ack();
    });
    socket.on("publish", (room, payload) => io.to(room).emit("message", payload));
    socket.on("echo", (payload, ack) => ack(payload));
  });
}
