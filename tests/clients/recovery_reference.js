// The reference of the example `recovery`, on npm socket.io.
import { createServer } from "node:http";
import { parseArgs } from "node:util";
import { Server } from "socket.io";
import { parserOptions } from "./lib/parsers.mjs";

const { values } = parseArgs({
  options: {
    port: { type: "string", default: "3000" },
    workers: { type: "string", default: "1" },
    window: { type: "string", default: "120000" },
    tick: { type: "string", default: "0" },
    "ask-middlewares": { type: "boolean", default: false },
    msgpack: { type: "boolean", default: false },
  },
});
const httpServer = createServer();
const io = new Server(httpServer, {
  ...parserOptions(values.msgpack && "msgpack"),
  connectionStateRecovery: {
    maxDisconnectionDuration: Number(values.window),
    skipMiddlewares: !values["ask-middlewares"],
  },
});
io.use((socket, next) => next(socket.handshake.auth.banned === true ? new Error("banned") : undefined));
io.on("connection", (socket) => {
  if (!socket.recovered) socket.data.name = socket.handshake.auth.name;
  socket.on("join", (room, ack) => {
    socket.join(room);
    ack();
  });
  socket.on("say", (to, text) => socket.to(to).emit("said", socket.id, text));
  socket.on("publish", (to, text) => {
    socket.broadcast.to(to).volatile.emit("volatile");
    socket.broadcast.to(to).except("deaf").emit("published", text);
  });
  socket.on("whisper", (text) => socket.emit("whispered", text));
  socket.on("who am i", (ack) => {
    ack(socket.id, socket.recovered, socket.recovered ? (socket.data.name ?? null) : null, [...socket.rooms]);
  });
  socket.on("disconnect me", () => socket.disconnect());
});
if (Number(values.tick) > 0) {
  let number = 0;
  setInterval(() => io.emit("tick", number++), Number(values.tick));
}
httpServer.listen(Number(values.port), "127.0.0.1", () => {
  console.log(`listening on 127.0.0.1:${httpServer.address().port}`);
});
process.on("SIGTERM", () => process.exit(0));
