// The feature server on the reference implementation (npm socket.io): see feature_server.md for the contract.
import { createServer } from "node:http";
import { Server } from "socket.io";
import { options, serve } from "./lib/cli.mjs";
import { parserOptions } from "./lib/parsers.mjs";

// Node would let a request take five minutes; a server under attack must not.
const limits = { headersTimeout: 5_000, requestTimeout: 10_000, connectionsCheckingInterval: 1_000 };
const httpServer = createServer(limits, (_, res) => res.writeHead(404).end());
const flags = options(3005);
const io = new Server(httpServer, {
  ...parserOptions(flags.parser),
  cors: { origin: true },
  pingInterval: 1_000,
  pingTimeout: 2_000,
  connectTimeout: 1_000,
  maxHttpBufferSize: 4_000_000,
  allowEIO3: true,
  cleanupEmptyChildNamespaces: true,
});

const byText = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
const sorted = (rooms) => [...rooms].sort(byText);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const observers = io.of("/observer");

/** The broadcast operator that `spec` describes. */
function operator(socket, spec) {
  let op = spec.from === "socket" ? socket.broadcast : socket.nsp.except([]);
  if (spec.to?.length) op = op.to(spec.to);
  if (spec.except?.length) op = op.except(spec.except);
  if (spec.local) op = op.local;
  if (spec.volatile) op = op.volatile;
  if (spec.compress !== undefined) op = op.compress(spec.compress);
  return op;
}

/** Runs an emit that expects answers and tells how it ended: { error, reply }. */
async function outcome(promise) {
  try {
    return { error: null, reply: await promise };
  } catch (error) {
    return { error: error.message, reply: error.responses ?? [] };
  }
}

function rooms(socket) {
  socket.on("join", async (names, ack) => {
    await socket.join(names);
    ack();
  });
  socket.on("leave", async (room, ack) => {
    await socket.leave(room);
    ack();
  });
  socket.on("rooms", (ack) => ack(sorted(socket.rooms)));
  const members = (rooms) => (rooms === null ? socket.nsp : socket.nsp.in(rooms));
  socket.on("sockets-join", (rooms, names, ack) => {
    members(rooms).socketsJoin(names);
    ack();
  });
  socket.on("sockets-leave", (rooms, names, ack) => {
    members(rooms).socketsLeave(names);
    ack();
  });
  socket.on("disconnect-room", (rooms, close) => members(rooms).disconnectSockets(close));
  socket.on("fetch", async (rooms, ack) => {
    const found = await members(rooms).fetchSockets();
    const rows = found.map(({ id, rooms, data }) => ({ id, rooms: sorted(rooms), data }));
    ack(rows.sort((a, b) => byText(a.id, b.id)));
  });
}

function emits(socket) {
  socket.on("emit-to", (spec, ack) => {
    operator(socket, spec).emit(spec.event, ...(spec.args ?? []));
    ack?.();
  });
  socket.on("emit-to-with-ack", async (spec, ack) => {
    const op = operator(socket, spec).timeout(spec.timeout_ms);
    if (spec.style === "promise") return ack(await outcome(op.emitWithAck(spec.event, ...(spec.args ?? []))));
    op.emit(spec.event, ...(spec.args ?? []), (error, reply) => ack({ error: error ? error.message : null, reply }));
  });
  socket.on("ask-me", async (spec, ack) => {
    const from = spec.timeout_ms === undefined ? socket : socket.timeout(spec.timeout_ms);
    if (spec.style === "promise") {
      const { error, reply } = await outcome(from.emitWithAck(spec.event, ...(spec.args ?? [])));
      return ack({ error, reply: error ? [] : [reply] });
    }
    from.emit(spec.event, ...(spec.args ?? []), (...reply) => {
      const error = spec.timeout_ms === undefined ? null : reply.shift();
      ack({ error: error ? error.message : null, reply });
    });
  });
  socket.on("ask-remote", async (spec, ack) => {
    const [remote] = await socket.nsp.in(spec.id).fetchSockets();
    const { error, reply } = await outcome(remote.timeout(spec.timeout_ms).emitWithAck(spec.event, ...spec.args));
    ack({ error, reply: error ? [] : [reply] });
  });
  socket.on("burst", ({ event, count }) => {
    for (let i = 0; i < count; i++) socket.emit(event, i);
  });
  socket.on("volatile-script", async ({ steps, delay_ms, binary, broadcast }) => {
    await sleep(delay_ms);
    [...steps].forEach((step, i) => {
      const op = broadcast ? socket.nsp.to(socket.id) : socket;
      (step === "v" ? op.volatile : op).emit("volatile-back", i, ...(binary ? [Buffer.from([1, 2, 3])] : []));
    });
  });
  socket.on("tick-please", (token) => {
    const { nsp } = socket;
    setTimeout(() => nsp.emit("tick", token), 20);
  });
  socket.on("reserved", (name, ack) => {
    try {
      socket.emit(name);
      ack(null);
    } catch (error) {
      ack(error.message);
    }
  });
}

function echoes(socket) {
  const counted = [];
  const isAck = (value) => typeof value === "function";
  const echo = (args) => (isAck(args.at(-1)) ? args.pop()(...args) : socket.emit("echo-back", ...args));
  socket.on("echo", (...args) => echo(args));
  socket.on("echo-async", async (...args) => {
    await sleep(50);
    echo(args);
  });
  socket.on("message", (...args) => socket.send(...args));
  socket.on("typed", (text, number) => {
    if (typeof text !== "string") return socket.emit("typed-error", "the first argument is not a string");
    if (!Number.isInteger(number)) return socket.emit("typed-error", "the second argument is not an integer");
    socket.emit("typed-back", text, number);
  });
  socket.on("count", (number) => counted.push(number));
  socket.on("counted", (ack) => ack(counted.splice(0)));
}

function listeners(socket) {
  for (const i of [1, 2, 3]) socket.on("multi", (value) => socket.emit("multi-back", i, value));
  socket.once("only-once", () => socket.emit("once-back"));
  const removable = () => socket.emit("removable-back");
  socket.on("removable", removable);
  socket.on("remove-handler", (ack) => {
    socket.off("removable", removable);
    ack();
  });
  const log = { incoming: [], outgoing: [] };
  const incoming = (event) => log.incoming.push(event);
  const outgoing = (event) => log.outgoing.push(event);
  socket.on("any-start", (ack) => {
    socket.onAny(incoming);
    socket.onAnyOutgoing(outgoing);
    ack();
  });
  socket.on("any-stop", (ack) => {
    socket.offAny(incoming);
    socket.offAnyOutgoing(outgoing);
    ack({ incoming: log.incoming.splice(0), outgoing: log.outgoing.splice(0) });
  });
  middlewares(socket);
  emitter(socket);
}

function middlewares(socket) {
  let order = [];
  socket.use(([event], next) => {
    if (event === "mw-log") order = ["first"];
    next(event === "forbidden" ? new Error("event forbidden") : undefined);
  });
  socket.use(async ([event], next) => {
    if (event === "mw-slow") await sleep(100);
    next();
  });
  socket.use(([event], next) => {
    order.push("third");
    next(event === "mw-data" ? Object.assign(new Error("no data"), { data: { code: 7 } }) : undefined);
  });
  socket.on("mw-log", (ack) => ack(order));
  for (const event of ["mw-slow", "mw-fast"]) socket.on(event, (value, ack) => ack(value));
  socket.on("mw-data", () => socket.emit("middleware-data", "passed"));
  socket.on("error", (error) => {
    if (error.data) return socket.emit("middleware-data", error.data);
    socket.emit("middleware-error", error.message);
    observers.emit("failed", { nsp: socket.nsp.name, id: socket.id, message: error.message });
  });
}

function emitter(socket) {
  let order = [];
  socket.on("any-order-start", (ack) => {
    socket.onAny(() => order.push("in-1"));
    socket.prependAny(() => order.push("in-2"));
    socket.onAnyOutgoing(() => order.push("out-1"));
    socket.prependAnyOutgoing(() => order.push("out-2"));
    ack();
  });
  socket.on("any-order-stop", (ack) => {
    socket.offAny();
    socket.offAnyOutgoing();
    ack({ order: order.splice(0), left: socket.listenersAny().length + socket.listenersAnyOutgoing().length });
  });
  const trio = [1, 2, 3, 4, 5].map((i) => () => socket.emit("trio-back", i));
  socket.on("trio-on", (ack) => {
    socket.on("trio", trio[0]);
    socket.on("trio", trio[1]);
    socket.prependListener("trio", trio[2]);
    socket.once("trio", trio[3]);
    socket.prependOnceListener("trio", trio[4]);
    ack(socket.listeners("trio").length);
  });
  socket.on("trio-off", (i, ack) => {
    if (i === null) socket.removeAllListeners("trio");
    else socket.off("trio", trio[i - 1]);
    ack(socket.eventNames().includes("trio"));
  });
  socket.on("ack-twice", (ack) => ack(1));
  socket.on("ack-twice", (ack) => ack(2));
}

function state(socket) {
  socket.on("data-set", (key, value, ack) => {
    socket.data[key] = value;
    ack();
  });
  socket.on("data-get", (key, ack) => ack(socket.data[key] ?? null));
  socket.on("handshake", (ack) => ack(socket.handshake));
  socket.on("info", (ack) =>
    ack({
      id: socket.id,
      nsp: socket.nsp.name,
      connected: socket.connected,
      rooms: sorted(socket.rooms),
      transport: socket.conn.transport.name,
      recovered: socket.recovered,
    }),
  );
  socket.on("clients-count", (ack) => ack(io.engine.clientsCount));
}

function closes(socket) {
  socket.on("disconnect-me", (close) => socket.disconnect(close));
  socket.on("close-conn", () => socket.conn.close());
  socket.on("close-server", () => io.close());
  const told = (type, reason) =>
    observers.emit(type, { nsp: socket.nsp.name, id: socket.id, reason, rooms: sorted(socket.rooms) });
  socket.conn.once("upgrade", (transport) =>
    observers.emit("upgraded", { nsp: socket.nsp.name, id: socket.id, transport: transport.name }),
  );
  observers.emit("joined", { nsp: socket.nsp.name, id: socket.id });
  socket.on("disconnecting", (reason) => told("leaving", reason));
  socket.on("disconnect", (reason) => told("left", reason));
}

function onConnection(socket) {
  for (const part of [rooms, emits, echoes, listeners, state, closes]) part(socket);
  socket.emit("welcome", socket.id, socket.handshake.auth);
}

io.on("new_namespace", ({ name }) => observers.emit("new", { nsp: name }));
const dynamic = io.of(/^\/dynamic-\d+$/);
dynamic.use((socket, next) => next(socket.handshake.auth.refuse ? new Error("not here") : undefined));
const clubs = io.of(async (name, auth, next) => {
  await sleep(20);
  next(null, name.startsWith("/club-") && auth.key === name.slice(6));
});

/** What only the children of a parent have. */
function family(parent) {
  parent.on("connection", (socket) => {
    socket.emit("family", socket.nsp.name);
    onConnection(socket);
    socket.on("family-say", ({ to, except, event, args }, ack) => {
      let op = parent;
      if (to) op = op.to(to);
      if (except) op = op.except(except);
      op.emit(event, ...(args ?? []));
      ack();
    });
  });
}

for (const parent of [dynamic, clubs]) family(parent);
for (const name of ["/", "/nsp", "/auth"]) io.of(name).on("connection", onConnection);
io.of("/nsp").on("connection", (socket) =>
  socket.on("make-namespace", (name, ack) => {
    io.of(name);
    ack();
  }),
);

io.of("/auth").use((socket, next) => {
  socket.data.order = ["first"];
  socket.data.mark = socket.handshake.auth.mark;
  socket.join("from-middleware");
  next();
});
io.of("/auth").use(async (socket, next) => {
  socket.data.order.push("second");
  const { token } = socket.handshake.auth;
  if (token === "slow") await sleep(200);
  if (token === "letmein" || token === "slow") return next();
  const error = new Error("bad token");
  error.data = { given: token ?? null };
  next(error);
});

serve(httpServer, flags.port, () => io.close());
