// Socket.IO for Node under the contract of the load tests: `--engine ws` (its default) or `--engine uws`
// (uWebSockets.js, from a package that carries its bindings). Everything else is as a new application has it.
import { createServer } from "node:http";
import { parseArgs } from "node:util";
import { Server } from "socket.io";

const { values } = parseArgs({
  options: { engine: { type: "string", default: "ws" }, port: { type: "string", default: "3001" } },
});
const port = Number(values.port);
const ready = () => console.log(`listening on 127.0.0.1:${port}`);

const io = new Server();
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

if (values.engine === "uws") {
  const { App } = await import("uws-pack");
  const app = App();
  io.attachApp(app);
  app.listen("127.0.0.1", port, (listening) => (listening ? ready() : process.exit(1)));
} else {
  const server = createServer();
  io.attach(server);
  server.listen({ port, host: "127.0.0.1", backlog: 4096 }, ready);
}
process.on("SIGTERM", () => process.exit(0));
