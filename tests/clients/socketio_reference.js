// The reference of `conformance_server --profile socketio`.
import { createServer } from "node:http";
import { Server } from "socket.io";
import { options, serve } from "./lib/cli.mjs";

const httpServer = createServer((_, res) => res.writeHead(404).end());
const io = new Server(httpServer, { pingInterval: 300, pingTimeout: 200, connectTimeout: 1_000, cors: { origin: "*" } });

io.on("connection", (socket) => {
  socket.emit("auth", socket.handshake.auth);
  socket.on("message", (...args) => socket.emit("message-back", ...args));
  socket.on("message-with-ack", (...args) => {
    const ack = args.pop();
    ack(...args);
  });
});
io.of("/custom").on("connection", (socket) => socket.emit("auth", socket.handshake.auth));

serve(httpServer, options(3000).port, () => io.close());
