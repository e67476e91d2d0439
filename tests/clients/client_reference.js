// The reference of `conformance_server --profile client`.
import { createServer } from "node:http";
import { Server } from "socket.io";
import { options, serve } from "./lib/cli.mjs";

const httpServer = createServer((_, res) => res.writeHead(404).end());
const io = new Server(httpServer, {
  pingInterval: 2_000,
  connectionStateRecovery: {},
  allowRequest: (_, answer) => setTimeout(() => answer(null, true), 10),
});
const BINARY = Buffer.from("asdfasdf");
const TEXTS = ["てすと", "Я Б Г Д Ж Й", "Ä ä Ü ü ß", "utf8 — string", "utf8 — string"];

io.use((socket, next) => next(socket.handshake.query.fail ? new Error("Auth failed (main namespace)") : undefined));

io.on("connection", (socket) => {
  const answers = {
    hi: () => socket.emit("hi"),
    echo: (value, ack) => ack(value),
    ack: () => socket.emit("ack", (a, b) => a === 5 && b.test && socket.emit("got it")),
    getAckDate: (_, ack) => ack(new Date()),
    getDate: () => socket.emit("takeDate", new Date()),
    getDateObj: () => socket.emit("takeDateObj", { date: new Date() }),
    getUtf8: () => TEXTS.forEach((text) => socket.emit("takeUtf8", text)),
    false: () => socket.emit("false", false),
    doge: () => socket.emit("doge", BINARY),
    buffa: (data) => Buffer.isBuffer(data) && socket.emit("buffack"),
    jsonbuff: ({ message }) => Buffer.isBuffer(message) && socket.emit("jsonbuff-ack"),
    blob: (data) => socket.emit("back", data),
    jsonblob: ({ message }) => Buffer.isBuffer(message) && socket.emit("jsonblob-ack"),
    getbin: () => socket.emit("takebin", BINARY),
    getHandshake: (ack) => ack(socket.handshake),
    getId: (ack) => ack(socket.id),
  };
  for (const [event, answer] of Object.entries(answers)) socket.on(event, answer);
  const binary = (data) => Buffer.isBuffer(data);
  const text = (expected) => (data) => data === expected;
  inOrder(socket, { abuff1: binary, abuff2: text("please arrive second") }, "abuff2-ack");
  inOrder(socket, { blob1: binary, blob2: text("second"), blob3: binary }, "blob3-ack");
});

/** Emits `answer` once the events, each with the right data, have come in this order. */
function inOrder(socket, events, answer) {
  let next = 0;
  Object.entries(events).forEach(([event, isRight], i) => {
    socket.on(event, (data) => {
      next = i === next && isRight(data) ? i + 1 : 0;
      if (next === Object.keys(events).length) socket.emit(answer);
    });
  });
}

io.of("/foo").on("connection", (socket) => socket.on("getId", (ack) => ack(socket.id)));
for (const name of ["/timeout_socket", "/valid", "/asd"]) io.of(name);
io.of("/abc").on("connection", (socket) => socket.emit("handshake", socket.handshake));
io.of("/no").use((_, next) => next(new Error("Auth failed (custom namespace)")));

serve(httpServer, options(3210).port, () => io.close());
