// The reference of the example `cluster_server`, on npm socket.io: servers of one process that speak to each other by its own
// ClusterAdapterWithHeartbeat. None of the reference's adapters keeps sessions without a broker, so there is no recovery here.
import { EventEmitter } from "node:events";
import { createServer } from "node:http";
import { parseArgs } from "node:util";
import { Server } from "socket.io";
import adapter from "socket.io-adapter";
import msgpack from "socket.io-msgpack-parser";

const { values } = parseArgs({
  options: {
    port: { type: "string", default: "3006" },
    workers: { type: "string", default: "1" },
    servers: { type: "string", default: "2" },
    msgpack: { type: "boolean", default: false },
  },
});

const bus = new EventEmitter().setMaxListeners(0);

class BusAdapter extends adapter.ClusterAdapterWithHeartbeat {
  constructor(nsp) {
    super(nsp, { heartbeatInterval: 5_000, heartbeatTimeout: 10_000 });
    this.listen = (message) => this.onMessage(message);
    this.answer = (message) => this.onResponse(message);
    bus.on("message", this.listen);
    bus.on(this.uid, this.answer);
    this.init();
  }

  close() {
    super.close();
    bus.off("message", this.listen);
    bus.off(this.uid, this.answer);
  }

  async doPublish(message) {
    setImmediate(() => bus.emit("message", message));
    return "";
  }

  async doPublishResponse(uid, message) {
    setImmediate(() => bus.emit(uid, message));
  }
}

/** What came of a question to many. */
async function answers(promise) {
  try {
    return { error: null, replies: [].concat(await promise) };
  } catch (error) {
    return { error: error.message, replies: error.responses ?? [] };
  }
}

const urls = [];
const sorted = (rooms) => [...rooms].sort();

function serve(io, number) {
  const operator = (socket, spec) => {
    let op = spec.from_socket ? socket.broadcast : io.except([]);
    if (spec.to?.length) op = op.to(spec.to);
    if (spec.except?.length) op = op.except(spec.except);
    if (spec.local) op = op.local;
    if (spec.volatile) op = op.volatile;
    return spec.timeout_ms ? op.timeout(spec.timeout_ms) : op;
  };
  const row = ({ id, rooms, data, handshake }) => ({ id, rooms: sorted(rooms), data: data.value ?? null, handshake });
  io.on("told", (...args) => io.local.emit("told", number, args));
  io.on("which?", (...args) => args.pop()([number, args]));
  io.on("silent?", (ack) => (number === 1 ? ack(1) : undefined));
  io.on("connection", (socket) => {
    const { server } = io._nsps.get("/");
    socket.on("servers", (ack) => ack(urls.slice(1)));
    socket.on("which", (ack) => ack(number));
    socket.on("count", async (ack) => ack(await io.of("/").adapter.serverCount()));
    socket.on("close-server", () => server.close());
    socket.on("join", (rooms, ack) => ack(void socket.join(rooms)));
    socket.on("set", (value, ack) => ack(void (socket.data.value = value)));
    socket.on("sockets-join", (of, rooms, ack) => ack(void io.to(of).socketsJoin(rooms)));
    socket.on("sockets-leave", (of, rooms, ack) => ack(void io.to(of).socketsLeave(rooms)));
    socket.on("disconnect-sockets", (of, close) => io.to(of).disconnectSockets(close));
    socket.on("fetch", async (of, local, ack) => {
      const op = io.in(of);
      ack((await (local ? op.local : op).fetchSockets()).map(row).sort((a, b) => (a.id < b.id ? -1 : 1)));
    });
    socket.on("emit", (spec, ack) => {
      operator(socket, spec).emit(spec.event, ...(spec.args ?? []));
      ack();
    });
    socket.on("ask", async (spec, ack) => ack(await answers(operator(socket, spec).emitWithAck(spec.event, ...(spec.args ?? [])))));
    socket.on("server-emit", (event, args, ack) => {
      try {
        io.serverSideEmit(event, ...args);
        ack(null);
      } catch (error) {
        ack(error.message);
      }
    });
    socket.on("server-ask", async (event, args, ack) => ack(await answers(io.serverSideEmitWithAck(event, ...args))));
    socket.on("remote", async ({ id, action, args = [], timeout_ms }, ack) => {
      const [remote] = await io.in(id).fetchSockets();
      if (action === "ask") return ack(await answers(remote.timeout(timeout_ms).emitWithAck("question", ...args)));
      if (action === "emit") remote.emit("news", ...args);
      else if (action === "disconnect") remote.disconnect(true);
      else args.forEach((room) => remote[action](room));
      ack();
    });
  });
}

for (let number = 0; number < Number(values.servers); number++) {
  const httpServer = createServer();
  const io = new Server(httpServer, { adapter: BusAdapter, cors: { origin: true }, ...(values.msgpack ? { parser: msgpack } : {}) });
  serve(io, number);
  await new Promise((resolve) => httpServer.listen(number === 0 ? Number(values.port) : 0, "127.0.0.1", resolve));
  urls.push(`http://127.0.0.1:${httpServer.address().port}`);
}
console.log(`listening on ${new URL(urls[0]).host}`);
process.on("SIGTERM", () => process.exit(0));
