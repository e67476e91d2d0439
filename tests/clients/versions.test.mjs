// The same scenarios with socket.io-client 2.x, 3.x and 4.x from npm against the feature server, over polling, websocket and
// the default with its upgrade; then all of them in one room. CLIENT=2|3|4 and TRANSPORT= choose.
import https from "node:https";
import io2 from "socket.io-client-2";
import { io as io3 } from "socket.io-client-3";
import { io as io4 } from "socket.io-client";
import { assert, run, sleep, test, until } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { TRANSPORTS, call, clientsOf, collect, next, upgraded } from "./lib/clients.mjs";

const server = await target("feature_server.js");
const MAKERS = { 2: io2, 3: io3, 4: io4 };
const versions = process.env.CLIENT ? [process.env.CLIENT] : Object.keys(MAKERS);
const ways = process.env.TRANSPORT ? [process.env.TRANSPORT] : Object.keys(TRANSPORTS);
let serial = 0;
const fresh = (prefix) => `${prefix}-${++serial}-${process.pid}`;
const bytes = (...values) => Buffer.from(values);
const numbers = (count) => Array.from({ length: count }, (_, i) => i);

// Node's clients open a connection for each request. With TLS that is a handshake each: there they keep them, as browsers do.
const agent = server.url.startsWith("https:") ? new https.Agent({ keepAlive: true }) : undefined;

/** Clients of one version. */
const of = (version, way) => clientsOf(server.url, agent ? { ...TRANSPORTS[way], agent } : TRANSPORTS[way], MAKERS[version]);

/** Credentials for a namespace: v2 clients put them into its query. */
const credentials = (version, auth) => (version === "2" ? { query: auth } : { auth });

/** What a refusal of a namespace brings to the client. */
async function refusal(version, socket) {
  const [error] = await next(socket, version === "2" ? "error" : "connect_error");
  return error;
}

/** Records what the observer namespace says about one socket id. */
async function observer(t) {
  const socket = await of("4", "websocket").connect(t, "/observer");
  const seen = [];
  for (const type of ["leaving", "left"]) socket.on(type, (record) => seen.push({ type, ...record }));
  return (id) =>
    until(() => {
      const found = seen.filter((record) => record.id === id);
      return found.length === 2 && found;
    }, `disconnect of ${id}`);
}

for (const version of versions) {
  for (const way of ways) {
    const check = (title, body, options) => test(`client ${version}, ${way}: ${title}`, body, options);
    const clients = of(version, way);
    connecting(check, clients, version, way);
    messages(check, clients, way);
    rooms(check, clients, version);
    namespaces(check, clients, version);
    leaving(check, clients, version, way);
  }
}
if (!process.env.CLIENT && !process.env.TRANSPORT) together();
await run({ parallel: 6, finish: server.stop });

function connecting(check, clients, version, way) {
  check("connects and knows its id", async (t) => {
    const socket = clients.open(t);
    const [id, auth] = await next(socket, "welcome");
    assert.equal(id, socket.id);
    assert.deepEqual(auth, {});
    // Up to version 2 the session's id is no secret.
    assert.equal(socket.id === socket.io.engine.id, version === "2");
    const [info] = await call(socket, "info");
    assert.deepEqual([info.id, info.nsp, info.connected, info.rooms], [id, "/", true, [id]]);
    if (way !== "upgrade") assert.equal(info.transport, way);
  });

  check("the handshake has the query and an object for auth", async (t) => {
    const socket = await clients.connect(t, "/", { query: { first: "1", word: "a b&c" } });
    const [handshake] = await call(socket, "handshake");
    assert.equal(handshake.query.EIO, version === "2" ? "3" : "4");
    assert.deepEqual([handshake.query.first, handshake.query.word], ["1", "a b&c"]);
    assert.deepEqual(handshake.auth, {});
  });

  check("stays over several heartbeats", async (t) => {
    const socket = await clients.connect(t);
    if (way === "upgrade") await upgraded(socket);
    const reasons = [];
    socket.on("disconnect", (reason) => reasons.push(reason));
    await sleep(4_500);
    assert.deepEqual(await call(socket, "echo", "still here"), ["still here"]);
    assert.deepEqual(reasons, []);
  }, { timeout_ms: 20_000 });

  check("reconnects after the connection was closed", async (t) => {
    const socket = await clients.connect(t, "/", { reconnection: true, reconnectionDelay: 20, reconnectionDelayMax: 50 });
    const before = socket.id;
    const again = next(socket, "connect");
    socket.emit("close-conn");
    await again;
    assert.notEqual(socket.id, before);
    assert.deepEqual(await call(socket, "echo", 1), [1]);
  });
}

function messages(check, clients, way) {
  const values = [null, true, -1.5, "zwölf 🙂 \u2028", [], { a: [{ b: "c" }] }, bytes(0, 1, 255), { deep: [bytes(7), { x: bytes() }] }];

  check("events come back as they went, binary at any depth", async (t) => {
    const socket = await clients.connect(t);
    const back = next(socket, "echo-back");
    socket.emit("echo", ...values);
    assert.deepEqual(await back, values);
  });

  check("the server acknowledges, with binary too", async (t) => {
    const socket = await clients.connect(t);
    assert.deepEqual(await call(socket, "echo", ...values), values);
    assert.deepEqual(await call(socket, "echo-async", bytes(1)), [bytes(1)]);
    assert.deepEqual(await call(socket, "echo"), []);
  });

  check("the client acknowledges, with binary too", async (t) => {
    const socket = await clients.connect(t);
    socket.on("question", (a, b, ack) => ack(b, a, bytes(3)));
    const [{ error, reply }] = await call(socket, "ask-me", { event: "question", args: [1, "x"], timeout_ms: 4_000, style: "callback" });
    assert.deepEqual([error, reply], [null, ["x", 1, bytes(3)]]);
  });

  check("many messages keep their order, both ways and through an upgrade", async (t) => {
    const socket = await clients.connect(t);
    const burst = collect(socket, "burst-back", 300);
    socket.emit("burst", { event: "burst-back", count: 300 });
    for (const i of numbers(200)) socket.emit("count", i);
    const [counted] = await call(socket, "counted");
    assert.deepEqual(counted, numbers(200));
    assert.deepEqual((await burst).flat(), numbers(300));
    if (way === "upgrade") await upgraded(socket);
  });

  check("a large message survives", async (t) => {
    const socket = await clients.connect(t);
    const large = Buffer.alloc(700_000, "0123456789");
    const text = "ä€🙂".repeat(50_000);
    assert.deepEqual(await call(socket, "echo", large, text), [large, text]);
  }, { timeout_ms: 20_000 });
}

function rooms(check, clients, version) {
  check("broadcasts reach a room, and pass the sender by", async (t) => {
    const room = fresh("room");
    const [one, two, apart] = await Promise.all([clients.connect(t), clients.connect(t), clients.connect(t)]);
    for (const socket of [one, two]) await call(socket, "join", room);
    const seen = { one: [], two: [], apart: [] };
    for (const [name, socket] of Object.entries({ one, two, apart })) socket.on("news", (...args) => seen[name].push(args));
    await call(one, "emit-to", { to: [room], event: "news", args: ["all", bytes(1, 2)] });
    await call(one, "emit-to", { from: "socket", to: [room], event: "news", args: ["others"] });
    await call(apart, "emit-to", { to: [room], except: [two.id], event: "news", args: ["not two"] });
    await until(() => seen.one.length === 2 && seen.two.length === 2, "broadcasts");
    for (const socket of [one, two, apart]) await call(socket, "echo", 0);
    assert.deepEqual(seen, {
      one: [["all", bytes(1, 2)], ["not two"]],
      two: [["all", bytes(1, 2)], ["others"]],
      apart: [],
    });
  });

  for (const nsp of ["/", "/nsp"]) {
    check(`a socket of ${nsp} is a room by its id, from any core`, async (t) => {
      const sockets = await Promise.all(numbers(6).map(() => clients.connect(t, nsp)));
      for (const [i, socket] of sockets.entries()) {
        const { id } = sockets[(i + 1) % 6];
        const told = next(sockets[(i + 1) % 6], "private");
        await call(socket, "emit-to", { to: [id], event: "private", args: [i, bytes(i)] });
        assert.deepEqual(await told, [i, bytes(i)]);
        const [found] = await call(socket, "fetch", id);
        assert.deepEqual(found.map((row) => [row.id, row.rooms]), [[id, [id]]]);
      }
      // Left and joined again, like any room.
      const [first, second] = sockets;
      const seen = [];
      first.on("private", (value) => seen.push(value));
      await call(first, "leave", first.id);
      await call(second, "emit-to", { to: [first.id], event: "private", args: ["lost"] });
      // What one core posts to another comes in order: once this has its answer, the message was delivered or lost.
      assert.deepEqual(await call(second, "fetch", first.id), [[]]);
      await call(first, "join", first.id);
      await call(second, "emit-to", { to: [first.id], event: "private", args: ["found"] });
      await until(() => seen.length > 0, "a private message");
      assert.deepEqual(seen, ["found"]);
    });
  }

  check("is found by fetchSockets and moved by socketsJoin", async (t) => {
    const socket = await clients.connect(t);
    const other = await of("4", "websocket").connect(t);
    const [room, next_room] = [fresh("room"), fresh("room")];
    await call(socket, "data-set", "version", version);
    await call(socket, "join", room);
    await call(other, "sockets-join", room, [next_room]);
    const rooms = await until(async () => {
      const [found] = await call(other, "fetch", next_room);
      return found.length === 1 && found;
    }, "the socket in its new room");
    assert.deepEqual(rooms, [{ id: socket.id, rooms: [room, next_room, socket.id].sort(), data: { version } }]);
    const gone = next(socket, "disconnect");
    other.emit("disconnect-room", next_room, true);
    await gone;
  });
}

function namespaces(check, clients, version) {
  check("joins a second namespace over the same connection", async (t) => {
    const main = await clients.connect(t);
    const socket = clients.open(t, "/nsp", { manager: main.io });
    const [id] = await next(socket, "welcome");
    assert.equal(id, socket.id);
    if (version === "2") assert.equal(id, `/nsp#${main.id}`);
    else assert.notEqual(id, main.id);
    assert.deepEqual(await call(socket, "echo", bytes(1)), [bytes(1)]);
    assert.deepEqual(await call(main, "echo", bytes(2)), [bytes(2)]);
    const left = next(socket, "disconnect");
    socket.emit("disconnect-me", false);
    assert.equal((await left)[0], "io server disconnect");
    assert.deepEqual(await call(main, "echo", 3), [3]);
  });

  check("credentials reach the namespace as auth", async (t) => {
    const socket = clients.open(t, "/auth", credentials(version, { token: "letmein", mark: "a b&c=é" }));
    const [id, auth] = await next(socket, "welcome");
    assert.equal(id, socket.id);
    assert.deepEqual(auth, { token: "letmein", mark: "a b&c=é" });
    const [rooms] = await call(socket, "rooms");
    assert.deepEqual(rooms, ["from-middleware", id].sort());
  });

  check("a slow middleware lets the socket in", async (t) => {
    const socket = await clients.connect(t, "/auth", credentials(version, { token: "slow" }));
    assert.deepEqual(await call(socket, "data-get", "order"), [["first", "second"]]);
  });

  check("a middleware's refusal reaches the client", async (t) => {
    const socket = clients.open(t, "/auth", credentials(version, { token: "wrong" }));
    const error = await refusal(version, socket);
    // Up to version 2 the client gets the data, or the message if there is none.
    if (version === "2") assert.deepEqual(error, { given: "wrong" });
    else assert.deepEqual([error.message, error.data], ["bad token", { given: "wrong" }]);
    assert.equal(socket.connected, false);
  });

  check("an unknown namespace is refused, and the connection stays", async (t) => {
    const main = await clients.connect(t);
    const socket = clients.open(t, "/nowhere", { manager: main.io });
    const error = await refusal(version, socket);
    if (version === "2") assert.deepEqual(error, { message: "Invalid namespace" });
    else assert.equal(error.message, "Invalid namespace");
    assert.deepEqual(await call(main, "echo", 1), [1]);
  });
}

function leaving(check, clients, version, way) {
  check("leaves when the client says so, out of its rooms", async (t) => {
    const observed = await observer(t);
    const socket = await clients.connect(t);
    const [{ id }, room] = [socket, fresh("room")];
    await call(socket, "join", room);
    const gone = next(socket, "disconnect");
    socket.disconnect();
    assert.deepEqual((await gone)[0], "io client disconnect");
    const [leaving, left] = await observed(id);
    assert.deepEqual([leaving.reason, leaving.rooms], ["client namespace disconnect", [room, id].sort()]);
    assert.deepEqual([left.reason, left.rooms], ["client namespace disconnect", []]);
  });

  check("is told when the server disconnects it, behind what was emitted before", async (t) => {
    for (const close of [false, true]) {
      const observed = await observer(t);
      const socket = await clients.connect(t);
      if (way === "upgrade") await upgraded(socket);
      const [{ id }, seen] = [socket, []];
      socket.on("burst-back", (i) => seen.push(i));
      const gone = next(socket, "disconnect");
      socket.emit("burst", { event: "burst-back", count: 20 });
      socket.emit("disconnect-me", close);
      assert.equal((await gone)[0], "io server disconnect");
      assert.deepEqual(seen, numbers(20));
      const [, left] = await observed(id);
      assert.equal(left.reason, "server namespace disconnect");
    }
  });

  check("notices when its connection is closed", async (t) => {
    const observed = await observer(t);
    const socket = await clients.connect(t);
    if (way === "upgrade") await upgraded(socket);
    const { id } = socket;
    const gone = next(socket, "disconnect");
    socket.emit("close-conn");
    assert.equal((await gone)[0], "transport close");
    const [, left] = await observed(id);
    assert.equal(left.reason, "forced close");
  });

  check("is noticed when it vanishes", async (t) => {
    const observed = await observer(t);
    const socket = await clients.connect(t);
    if (way === "upgrade") await upgraded(socket);
    const { id } = socket;
    const { transport } = socket.io.engine;
    if (transport.name === "websocket") {
      transport.ws.terminate();
    } else {
      // The connection may stay for other requests: then it is the heartbeat that stops.
      await until(() => transport.pollXhr ?? transport._pollXhr, "a waiting poll");
      (transport.pollXhr ?? transport._pollXhr).abort();
    }
    const [, left] = await observed(id);
    const reasons = transport.name === "websocket" ? ["transport close"] : ["transport error", "transport close", "ping timeout"];
    assert.ok(reasons.includes(left.reason), left.reason);
  });
}

function together() {
  const kinds = versions.flatMap((version) => ways.map((way) => [version, way]));

  test("clients of all versions and transports in one room get the same broadcasts, in order", async (t) => {
    const room = fresh("mixed");
    const COUNT = 120;
    const members = await Promise.all(
      [...kinds, ...kinds].map(async ([version, way]) => {
        const socket = await of(version, way).connect(t);
        await call(socket, "join", room);
        const seen = [];
        socket.on("news", (...args) => seen.push(args));
        return { name: `client ${version}, ${way}`, socket, seen };
      }),
    );
    const sender = await of("4", "websocket").connect(t);
    const expected = [];
    for (const i of numbers(COUNT)) {
      const args = [["text", i, "é🙂"], ["binary", i, bytes(i)], ["both", i, { a: bytes(i, i), b: [bytes()] }, "end"]][i % 3];
      expected.push(args);
      sender.emit("emit-to", { to: [room], event: "news", args });
      if (i % 10 === 9) await sleep(5);
    }
    for (const { name, seen } of members) {
      await until(() => seen.length >= COUNT, `all broadcasts at ${name}, ${seen.length}`, 15_000);
      assert.deepEqual(seen, expected, name);
    }
  }, { timeout_ms: 40_000 });

  test("clients of all versions talk to each other", async (t) => {
    const sockets = await Promise.all(kinds.map(([version, way]) => of(version, way).connect(t)));
    for (const [i, socket] of sockets.entries()) {
      const others = sockets.filter((other) => other !== socket);
      const told = others.map((other) => next(other, `from-${i}`));
      const room = fresh("talk");
      for (const other of sockets) await call(other, "join", room);
      await call(socket, "emit-to", { from: "socket", to: [room], event: `from-${i}`, args: [bytes(i), "x"] });
      for (const args of await Promise.all(told)) assert.deepEqual(args, [bytes(i), "x"]);
    }
  }, { timeout_ms: 20_000 });

  test("a room of both kinds answers fetchSockets with all", async (t) => {
    const room = fresh("fetch");
    const sockets = await Promise.all(kinds.map(([version, way]) => of(version, way).connect(t)));
    for (const socket of sockets) await call(socket, "join", room);
    const [found] = await call(sockets[0], "fetch", room);
    assert.deepEqual(found.map((row) => row.id), sockets.map((socket) => socket.id).sort());
  });
}
