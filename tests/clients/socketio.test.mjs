// The official socket.io-client against the feature server, over polling, websocket, and the default with its upgrade.
// TRANSPORT=polling|websocket|upgrade runs one of the three. PARSER=msgpack has both sides use that parser.
import { randomBytes } from "node:crypto";
import { Socket as EngineSocket } from "engine.io-client";
import { assert, run, sleep, test, until, within } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { PARSER } from "./lib/parsers.mjs";
import { TRANSPORTS, call, clientsOf, collect, next, upgraded } from "./lib/clients.mjs";

const server = await target("feature_server.js", PARSER ? ["--parser", PARSER] : []);
const names = process.env.TRANSPORT ? [process.env.TRANSPORT] : Object.keys(TRANSPORTS);
let serial = 0;
const fresh = (prefix) => `${prefix}-${++serial}-${process.pid}`;
const bytes = (...values) => Buffer.from(values);
const numbers = (count) => Array.from({ length: count }, (_, i) => i);
const HANDSHAKE = ["address", "auth", "headers", "issued", "query", "secure", "time", "url", "xdomain"];

/** Records what the observer namespace says about one socket id. */
async function observer(t, clients) {
  const socket = await clients.connect(t, "/observer");
  const seen = [];
  for (const type of ["joined", "leaving", "left", "failed", "upgraded"]) {
    socket.on(type, (record) => seen.push({ type, ...record }));
  }
  const of = (id, type) => seen.filter((record) => record.id === id && record.type === type);
  return { of, left: (id, ms) => until(() => of(id, "left")[0], `disconnect of ${id}`, ms) };
}

/** Collects `event` and proves that nothing more of it comes behind a round trip. */
function silent(socket, event) {
  const seen = [];
  socket.on(event, (...args) => seen.push(args));
  return seen;
}

for (const name of names) {
  const clients = clientsOf(server.url, TRANSPORTS[name]);
  const check = (title, body, options) => test(`${name}: ${title}`, body, options);
  connecting(check, clients, name);
  messages(check, clients, name);
  acknowledgements(check, clients);
  roomsAndBroadcasts(check, clients);
  volatile(check, clients, name);
  namespaces(check, clients);
  leaving(check, clients, name);
  listeners(check, clients);
  order(check, clients, name);
}
connectTimeouts();

function connecting(check, clients, name) {
  check("connects and is welcomed with its id and its auth payload", async (t) => {
    const socket = clients.open(t, "/", { auth: { token: "abc", deep: { list: [1, null] } } });
    const [id, auth] = await next(socket, "welcome");
    assert.equal(socket.connected, true);
    assert.equal(id, socket.id);
    assert.deepEqual(auth, { token: "abc", deep: { list: [1, null] } });
    assert.notEqual(socket.id, socket.io.engine.id);
  });

  check("auth may be a function, and absent auth is an empty object", async (t) => {
    const [, auth] = await next(clients.open(t, "/", { auth: (send) => send({ late: true }) }), "welcome");
    assert.deepEqual(auth, { late: true });
    const [, none] = await next(clients.open(t, "/"), "welcome");
    assert.deepEqual(none, {});
  });

  check("handshake has the nine fields", async (t) => {
    const options = { query: { foo: "a b&=ü", bar: "2" }, auth: { k: 1 }, extraHeaders: { "X-Probe": "yes" } };
    const socket = await clients.connect(t, "/", options);
    const [handshake] = await call(socket, "handshake");
    assert.deepEqual(Object.keys(handshake).sort(), HANDSHAKE);
    assert.equal(handshake.query.foo, "a b&=ü");
    assert.equal(handshake.query.bar, "2");
    assert.equal(handshake.query.EIO, "4");
    assert.equal(handshake.query.transport, name === "websocket" ? "websocket" : "polling");
    assert.deepEqual(handshake.auth, { k: 1 });
    assert.equal(handshake.headers["x-probe"], "yes");
    assert.equal(handshake.headers.host, `${server.host}:${server.port}`);
    assert.match(handshake.address, /127\.0\.0\.1$/);
    assert.equal(handshake.secure, server.url.startsWith("https:"));
    assert.equal(handshake.xdomain, false);
    assert.match(handshake.url, /^\/socket\.io\/\?/);
    assert.ok(Math.abs(handshake.issued - Date.now()) < 60_000);
    assert.ok(Math.abs(Date.parse(handshake.time) - Date.now()) < 60_000);
  });

  check("a browser's Origin makes the handshake cross-domain", async (t) => {
    const socket = await clients.connect(t, "/", { extraHeaders: { Origin: "http://elsewhere.test" } });
    assert.equal((await call(socket, "handshake"))[0].xdomain, true);
  });

  check("the connection tells of its upgrade", async (t) => {
    const observed = await observer(t, clients);
    const socket = await clients.connect(t);
    const { id } = socket;
    if (name === "upgrade") {
      const { transport } = await until(() => observed.of(id, "upgraded")[0], "the upgrade", 10_000);
      assert.equal(transport, "websocket");
    }
    await call(socket, "echo");
    assert.equal(observed.of(id, "upgraded").length, name === "upgrade" ? 1 : 0);
  });

  check("info tells id, namespace, own room and transport", async (t) => {
    const socket = await clients.connect(t);
    if (name === "upgrade") await upgraded(socket);
    const [info] = await call(socket, "info");
    const transport = name === "polling" ? "polling" : "websocket";
    const expected = { id: socket.id, nsp: "/", connected: true, rooms: [socket.id], transport, recovered: false };
    assert.deepEqual(info, expected);
    assert.ok(!socket.recovered);
  });

  check("a URL without a path is the main namespace", async (t) => {
    for (const nsp of ["", "/"]) assert.equal((await call(await clients.connect(t, nsp), "info"))[0].nsp, "/");
  });

  check("sockets of one namespace have connections of their own", async (t) => {
    const [a, b] = await Promise.all(numbers(2).map(() => clients.connect(t, "/", { forceNew: false })));
    assert.notEqual(a.id, b.id);
    assert.notEqual(a.io.engine, b.io.engine);
  });

  check("nobody comes back as who it was unless the server recovers connections", async (t) => {
    const socket = await clients.connect(t, "/", { reconnection: true, reconnectionDelay: 20 });
    const { id } = socket;
    await call(socket, "join", "before");
    const gone = next(socket, "disconnect");
    socket.emit("close-conn");
    await gone;
    await next(socket, "connect");
    assert.ok(!socket.recovered);
    const [info] = await call(socket, "info");
    assert.deepEqual([info.recovered, info.rooms], [false, [socket.id]]);
    assert.notEqual(socket.id, id);
  });

  check("sends pings that keep an idle client connected", async (t) => {
    const socket = await clients.connect(t);
    let pings = 0;
    socket.io.on("ping", () => pings++);
    await sleep(3_500);
    assert.ok(pings >= 2, `${pings} pings`);
    assert.deepEqual(await call(socket, "echo", 1), [1]);
  });
}

function messages(check, clients, name) {
  check("emits come back with every kind of JSON", async (t) => {
    const socket = await clients.connect(t);
    // notepack cannot write whole numbers of more than 64 bits.
    const args = [1, -1.5, PARSER ? 1e15 : 1e21, "text", "", true, false, null, [], {}, { a: [{ b: "c" }] }, "\u0000\u001e\\\"\n"];
    const back = next(socket, "echo-back");
    socket.emit("echo", ...args);
    assert.deepEqual(await back, args);
  });

  check("emits without arguments", async (t) => {
    const socket = await clients.connect(t);
    const back = next(socket, "echo-back");
    socket.emit("echo");
    assert.deepEqual(await back, []);
  });

  check("multibyte text survives", async (t) => {
    const socket = await clients.connect(t);
    const texts = ["てすと", "Я Б Г Д Ж Й", "Ä ä Ü ü ß", "utf8 — string", "👩‍💻🏳️‍🌈", "漢字".repeat(3_000), "\u2028\u2029"];
    assert.deepEqual(await call(socket, "echo", ...texts), texts);
    const back = next(socket, "echo-back");
    socket.emit("echo", { "ключ": texts });
    assert.deepEqual(await back, [{ "ключ": texts }]);
  });

  check("send() arrives as message", async (t) => {
    const socket = await clients.connect(t);
    const back = next(socket, "message");
    socket.send("a", { b: 1 });
    assert.deepEqual(await back, ["a", { b: 1 }]);
    const nothing = next(socket, "message");
    socket.send(null);
    assert.deepEqual(await nothing, [null]);
  });

  check("binary as an argument, twice, and empty", async (t) => {
    const socket = await clients.connect(t);
    const back = next(socket, "echo-back");
    socket.emit("echo", bytes(0, 255, 30), "between", bytes(), new Uint8Array([7, 8]));
    const [first, between, empty, list] = await back;
    // With msgpack a typed array is an ArrayBuffer to the reference.
    const second = Buffer.from(list);
    assert.deepEqual([first, between, empty, second], [bytes(0, 255, 30), "between", bytes(), bytes(7, 8)]);
  });

  check("binary at any depth of objects and lists", async (t) => {
    const socket = await clients.connect(t);
    const value = { a: [{ b: bytes(1) }, [[bytes(2, 3)]]], c: { d: { e: bytes(4) } }, f: null, g: "x" };
    assert.deepEqual(await call(socket, "echo", value, [bytes(5)]), [value, [bytes(5)]]);
    const back = next(socket, "echo-back");
    socket.emit("echo", value);
    assert.deepEqual(await back, [value]);
  });

  check("ten attachments are let through", async (t) => {
    const socket = await clients.connect(t);
    const list = numbers(10).map((i) => bytes(i));
    assert.deepEqual(await call(socket, "echo", list), [list]);
  });

  check("1 MB of binary, both ways", async (t) => {
    const socket = await clients.connect(t);
    const data = randomBytes(1_000_000);
    const [back] = await call(socket, "echo", data);
    assert.ok(data.equals(back));
    const event = next(socket, "echo-back");
    socket.emit("echo", { data });
    assert.ok(data.equals((await event)[0].data));
  });

  for (const [label, size] of [["70 KB", 70_000], ["900 KB", 900_000]]) {
    check(`${label} of JSON, both ways`, async (t) => {
      const socket = await clients.connect(t);
      const rows = numbers(Math.floor(size / 50)).map((i) => ({ i, text: `row ${i} é`, half: i / 2, list: [true] }));
      assert.deepEqual(await call(socket, "echo", rows), [rows]);
      const back = next(socket, "echo-back");
      socket.emit("echo", rows);
      assert.deepEqual(await back, [rows]);
    });
  }

  check("large messages interleave with small ones in order", async (t) => {
    const socket = await clients.connect(t);
    const sizes = [1, 100_000, 2, 60_000, 3, 300_000, 4];
    const all = collect(socket, "echo-back", sizes.length);
    for (const size of sizes) socket.emit("echo", "x".repeat(size), size % 2 ? bytes(size) : null);
    assert.deepEqual((await all).map(([text]) => text.length), sizes);
  });

  check("emits before the connection stands are sent afterwards, in order", async (t) => {
    for (const nsp of ["/", "/nsp"]) {
      const socket = clients.open(t, nsp);
      for (const i of numbers(20)) socket.emit("count", i);
      assert.deepEqual(await call(socket, "counted"), [numbers(20)]);
    }
  });

  check("an emit in the connection handler comes first", async (t) => {
    const socket = clients.open(t);
    const seen = [];
    socket.onAny((event) => seen.push(event));
    await next(socket, "connect");
    await call(socket, "echo");
    assert.deepEqual(seen, ["welcome"]);
  });

  check("an event nobody handles disturbs nothing", async (t) => {
    const socket = await clients.connect(t);
    socket.emit("nobody-handles-this", { a: 1 }, bytes(1), () => assert.fail("acknowledged"));
    socket.emit("42", 1);
    assert.deepEqual(await call(socket, "echo", "still"), ["still"]);
  });

  check("a typed event refuses the wrong types and goes on", async (t) => {
    const socket = await clients.connect(t);
    for (const args of [[1, 2], ["text", "2"], ["text", 1.5], ["text"], [], [null, 1], [{}, bytes(1)]]) {
      const error = next(socket, "typed-error");
      socket.emit("typed", ...args);
      const [text] = await error;
      assert.equal(typeof text, "string");
    }
    const back = next(socket, "typed-back");
    socket.emit("typed", "text", 7);
    assert.deepEqual(await back, ["text", 7]);
  });

  check("the client refuses reserved events, the server too", async (t) => {
    const socket = await clients.connect(t);
    for (const event of ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"]) {
      assert.throws(() => socket.emit(event), /reserved event name/);
      assert.match((await call(socket, "reserved", event))[0], /reserved event name/);
    }
  });

  check("a message over maxHttpBufferSize ends the connection or is refused, and only it", async (t) => {
    const other = await clients.connect(t);
    const socket = await clients.connect(t);
    if (name === "upgrade") await upgraded(socket);
    const gone = next(socket, "disconnect");
    socket.emit("echo", "x".repeat(4_200_000));
    const [reason] = await gone;
    assert.match(reason, /^transport (error|close)$/);
    assert.deepEqual(await call(other, "echo", 1), [1]);
  });
}

function acknowledgements(check, clients) {
  check("client to server: sync and async handlers acknowledge", async (t) => {
    const socket = await clients.connect(t);
    assert.deepEqual(await call(socket, "echo"), []);
    assert.deepEqual(await call(socket, "echo", 1, "b", null), [1, "b", null]);
    assert.deepEqual(await call(socket, "echo-async", { c: [bytes(9)] }), [{ c: [bytes(9)] }]);
    assert.equal(await socket.emitWithAck("echo", "promised"), "promised");
  });

  check("a hundred acknowledgements in flight find their own", async (t) => {
    const socket = await clients.connect(t);
    const events = (i) => (i % 3 ? "echo" : "echo-async");
    const replies = await Promise.all(numbers(100).map((i) => call(socket, events(i), i)));
    assert.deepEqual(replies, numbers(100).map((i) => [i]));
  });

  check("client to server: a timeout", async (t) => {
    const socket = await clients.connect(t);
    await assert.rejects(socket.timeout(150).emitWithAck("nobody-handles-this"), /timed out/);
    assert.equal(await socket.timeout(5_000).emitWithAck("echo", 1), 1);
  });

  for (const style of ["callback", "promise"]) {
    check(`server to client: answered, ${style}`, async (t) => {
      const socket = await clients.connect(t);
      socket.on("question", (a, b, ack) => ack(b, a));
      const reply = style === "promise" ? ["y"] : ["y", { x: bytes(1) }];
      const spec = { event: "question", args: [{ x: bytes(1) }, "y"], style };
      assert.deepEqual(await call(socket, "ask-me", spec), [{ error: null, reply }]);
      assert.deepEqual(await call(socket, "ask-me", { ...spec, timeout_ms: 5_000 }), [{ error: null, reply }]);
    });

    check(`server to client: not answered in time, ${style}`, async (t) => {
      const socket = await clients.connect(t);
      const late = next(socket, "question");
      const [{ error, reply }] = await call(socket, "ask-me", { event: "question", timeout_ms: 100, style });
      assert.equal(error, "operation has timed out");
      assert.deepEqual(reply, []);
      (await late)[0]("too late");
      assert.deepEqual(await call(socket, "echo", "fine"), ["fine"]);
    });

    check(`broadcast with acknowledgements: all, none, some, ${style}`, async (t) => {
      const room = fresh("acks");
      const sockets = await Promise.all(numbers(3).map(() => clients.connect(t)));
      await Promise.all(sockets.map((socket) => call(socket, "join", room)));
      sockets.forEach((socket, i) => socket.on("question", (base, ack) => ack(base + i, "ignored")));
      const spec = { to: [room], event: "question", args: [10], timeout_ms: 4_000, style };
      const [all] = await call(sockets[0], "emit-to-with-ack", spec);
      assert.deepEqual({ ...all, reply: all.reply.sort() }, { error: null, reply: [10, 11, 12] });
      const [none] = await call(sockets[0], "emit-to-with-ack", { ...spec, to: [fresh("empty")] });
      assert.deepEqual(none, { error: null, reply: [] });
      sockets[1].off("question");
      const [some] = await call(sockets[0], "emit-to-with-ack", { ...spec, timeout_ms: 2_000 });
      assert.deepEqual({ ...some, reply: some.reply.sort() }, { error: "operation has timed out", reply: [10, 12] });
    });
  }

  check("a socket that was fetched is asked, wherever it is", async (t) => {
    const [a, b] = await Promise.all(numbers(2).map(() => clients.connect(t)));
    b.on("question", (text, ack) => ack(`${text}!`));
    const spec = { id: b.id, event: "question", args: ["well"], timeout_ms: 10_000 };
    assert.deepEqual(await call(a, "ask-remote", spec), [{ error: null, reply: ["well!"] }]);
    b.off("question");
    const [{ error }] = await call(a, "ask-remote", { ...spec, timeout_ms: 200 });
    assert.equal(error, "operation has timed out");
  });

  check("server to client: many values, in a callback", async (t) => {
    const socket = await clients.connect(t);
    socket.on("question", (ack) => ack(1, "b", [bytes()], null));
    const [{ reply }] = await call(socket, "ask-me", { event: "question", style: "callback" });
    assert.deepEqual(reply, [1, "b", [bytes()], null]);
  });
}

function roomsAndBroadcasts(check, clients) {
  const crowd = (t, count) => Promise.all(numbers(count).map(() => clients.connect(t)));

  check("joins one or several rooms, leaves, and lists", async (t) => {
    const socket = await clients.connect(t);
    const sorted = (...rooms) => [[...rooms, socket.id].sort()];
    await call(socket, "join", "a");
    await call(socket, "join", ["b", "комната"]);
    await call(socket, "join", "a");
    assert.deepEqual(await call(socket, "rooms"), sorted("a", "b", "комната"));
    await call(socket, "leave", "a");
    await call(socket, "leave", "never joined");
    assert.deepEqual(await call(socket, "rooms"), sorted("b", "комната"));
    await call(socket, "leave", socket.id);
    assert.deepEqual(await call(socket, "rooms"), [["b", "комната"]]);
  });

  check("to, in, except, the sender excluded, no duplicates", async (t) => {
    const [a, b, c, outside] = await crowd(t, 4);
    const [r1, r2, event] = [fresh("r"), fresh("r"), fresh("event")];
    await call(a, "join", [r1, r2]);
    await call(b, "join", [r1, r2]);
    await call(c, "join", [r2]);
    const seen = [a, b, c, outside].map((socket) => silent(socket, event));
    const emit = (spec, value) => call(a, "emit-to", { event, args: [value], ...spec });
    await emit({ to: [r1, r2] }, "both");
    await emit({ to: [r2], except: [r1] }, "only c");
    await emit({ from: "socket", to: [r1, r2] }, "not a");
    await emit({ to: [r1, r2], except: [b.id, c.id] }, "only a");
    await emit({ to: [c.id] }, "by id");
    await emit({ from: "socket", to: [r1, r2], except: [r1] }, "not a, only c");
    await emit({ to: [r1], local: true, compress: false }, "flags");
    await Promise.all([a, b, c, outside].map((socket) => call(socket, "echo")));
    assert.deepEqual(seen.map((list) => list.map(([value]) => value)), [
      ["both", "only a", "flags"],
      ["both", "not a", "flags"],
      ["both", "only c", "not a", "by id", "not a, only c"],
      [],
    ]);
  });

  check("to the whole namespace, and to all but the sender", async (t) => {
    const [a, b] = await crowd(t, 2);
    const other = await clients.connect(t, "/nsp");
    const event = fresh("event");
    const seen = [a, b, other].map((socket) => silent(socket, event));
    await call(a, "emit-to", { event, args: ["all"] });
    await call(a, "emit-to", { from: "socket", event, args: ["rest"] });
    await Promise.all([a, b, other].map((socket) => call(socket, "echo")));
    assert.deepEqual(seen, [[["all"]], [["all"], ["rest"]], []]);
  });

  check("binary to a room", async (t) => {
    const [a, b] = await crowd(t, 2);
    const [room, event] = [fresh("r"), fresh("event")];
    await call(a, "join", room);
    await call(b, "join", room);
    const got = [a, b].map((socket) => next(socket, event));
    a.emit("emit-to", { to: [room], event, args: [{ x: bytes(1, 2) }, bytes(), "t"] });
    for (const args of await Promise.all(got)) assert.deepEqual(args, [{ x: bytes(1, 2) }, bytes(), "t"]);
  });

  check("binary to the whole namespace, and from a socket to the others", async (t) => {
    const [a, b] = await crowd(t, 2);
    const [room, event] = [fresh("r"), fresh("event")];
    await call(b, "join", room);
    const seen = [a, b].map((socket) => silent(socket, event));
    await call(a, "emit-to", { event, args: [bytes(1), "all"] });
    await call(a, "emit-to", { from: "socket", event, args: [[bytes(2)], "others"] });
    await call(a, "emit-to", { from: "socket", to: [room], event, args: [{ x: bytes(3) }, "room"] });
    await Promise.all([a, b].map((socket) => call(socket, "echo")));
    const all = [bytes(1), "all"];
    assert.deepEqual(seen, [[all], [all, [[bytes(2)], "others"], [{ x: bytes(3) }, "room"]]]);
  });

  check("all of a namespace are found, moved and disconnected", async (t) => {
    const nsp = `/dynamic-${process.pid}${++serial}`;
    const [a, b, c] = await Promise.all(numbers(3).map(() => clients.connect(t, nsp)));
    const ids = (...sockets) => sockets.map(({ id }) => id).sort();
    const found = (rooms) => call(a, "fetch", rooms).then(([rows]) => rows.map(({ id }) => id));
    const become = (rooms, expected, what) => until(async () => String(await found(rooms)) === String(expected), what);
    assert.deepEqual(await found(null), ids(a, b, c));
    await call(a, "sockets-join", null, ["x", "y"]);
    await become("x", ids(a, b, c), "all in x");
    await call(b, "leave", "x");
    await call(c, "leave", "y");
    assert.deepEqual(await found("x"), ids(a, c));
    assert.deepEqual(await found("y"), ids(a, b));
    assert.deepEqual(await found(["x", "y"]), ids(a, b, c));
    await call(a, "sockets-leave", null, ["y"]);
    await become("y", [], "nobody in y");
    assert.deepEqual(await found("x"), ids(a, c));
    const gone = [a, b, c].map((socket) => next(socket, "disconnect"));
    a.emit("disconnect-room", null, false);
    for (const [reason] of await Promise.all(gone)) assert.equal(reason, "io server disconnect");
  });

  check("rooms are left on leave and on disconnect", async (t) => {
    const [a, b] = await crowd(t, 2);
    const [room, event] = [fresh("r"), fresh("event")];
    await call(a, "join", room);
    await call(b, "join", room);
    await call(a, "leave", room);
    const seen = silent(a, event);
    b.disconnect();
    const members = async () => (await call(a, "fetch", room))[0].length === 0;
    await until(members, "an empty room");
    await call(a, "emit-to", { to: [room], event });
    await call(a, "echo");
    assert.deepEqual(seen, []);
  });

  check("sockets-join, sockets-leave and fetch see every member with rooms and data", async (t) => {
    const [a, b, c] = await crowd(t, 3);
    const [room, more] = [fresh("r"), fresh("more")];
    await call(a, "join", room);
    await call(b, "join", room);
    await call(a, "data-set", "name", { first: "Ada" });
    await call(c, "sockets-join", room, [more, `${more}-2`]);
    const joined = () => call(c, "fetch", more).then(([rows]) => rows.length === 2 && rows);
    const rows = await until(joined, "two members");
    const row = (socket, data) => ({ id: socket.id, rooms: [socket.id, room, more, `${more}-2`].sort(), data });
    const expected = [row(a, { name: { first: "Ada" } }), row(b, {})].sort((x, y) => (x.id < y.id ? -1 : 1));
    assert.deepEqual(rows, expected);
    const ids = (await call(c, "fetch", null))[0].map(({ id }) => id);
    for (const socket of [a, b, c]) assert.ok(ids.includes(socket.id));
    await call(c, "sockets-leave", room, [more]);
    await until(async () => (await call(c, "fetch", more))[0].length === 0, "nobody left");
    await call(c, "sockets-join", c.id, [more]);
    await until(async () => (await call(c, "rooms"))[0].includes(more), "joined by own id");
  });

  check("disconnectSockets of a room takes its members and nobody else", async (t) => {
    const [a, b, c] = await crowd(t, 3);
    const room = fresh("r");
    await call(a, "join", room);
    await call(b, "join", room);
    const gone = [a, b].map((socket) => next(socket, "disconnect"));
    c.emit("disconnect-room", room, false);
    for (const [reason] of await Promise.all(gone)) assert.equal(reason, "io server disconnect");
    assert.deepEqual(await call(c, "fetch", room), [[]]);
    assert.deepEqual(await call(c, "echo", 1), [1]);
  });

  check("an emit from outside every handler reaches all", async (t) => {
    const sockets = await crowd(t, 3);
    const token = fresh("tick");
    const seen = sockets.map((socket) => {
      const mine = new Promise((resolve) => socket.on("tick", (got) => got === token && resolve(got)));
      return within(mine, 5_000, "tick");
    });
    sockets[0].emit("tick-please", token);
    assert.deepEqual(await Promise.all(seen), [token, token, token]);
  });
}

function volatile(check, clients, name) {
  const script = async (t, steps, extra = {}) => {
    const socket = await clients.connect(t);
    if (name === "upgrade") await upgraded(socket);
    const seen = silent(socket, "volatile-back");
    socket.emit("volatile-script", { steps, delay_ms: 150, ...extra });
    await sleep(400);
    await call(socket, "echo");
    return seen.map(([i]) => i);
  };
  const rule = (title, steps, expected, extra) =>
    check(title, async (t) => assert.deepEqual(await script(t, steps, extra), expected));

  rule("a volatile event arrives when nothing is ahead of it", "v", [0]);
  rule("a volatile event behind a regular one is dropped", "rv", [0]);
  rule("of consecutive volatile events one arrives", "vvv", [0]);
  rule("of consecutive volatile events with binary one arrives", "vv", [0], { binary: true });
  rule("a broadcast volatile event with binary: one arrives", "vv", [0], { binary: true, broadcast: true });
  rule("regular events follow a dropped volatile one", "rvrr", [0, 2, 3]);
}

function namespaces(check, clients) {
  check("several namespaces share one connection and stay apart", async (t) => {
    const root = await clients.connect(t, "/");
    const nsp = await clients.connect(t, "/nsp", { manager: root.io });
    const dynamic = await clients.connect(t, "/dynamic-42", { manager: root.io });
    assert.equal(root.io.engine, nsp.io.engine);
    assert.equal(new Set([root.id, nsp.id, dynamic.id]).size, 3);
    const seen = [root, nsp, dynamic].map((socket) => silent(socket, "echo-back"));
    nsp.emit("echo", "n", bytes(1));
    dynamic.emit("echo", "d");
    await Promise.all([root, nsp, dynamic].map((socket) => call(socket, "echo")));
    assert.deepEqual(seen, [[], [["n", bytes(1)]], [["d"]]]);
    const [{ nsp: name }] = await call(dynamic, "info");
    assert.equal(name, "/dynamic-42");
  });

  check("a room of one namespace is not a room of another", async (t) => {
    const root = await clients.connect(t, "/");
    const nsp = await clients.connect(t, "/nsp", { manager: root.io });
    const [room, event] = [fresh("r"), fresh("event")];
    await call(root, "join", room);
    await call(nsp, "join", room);
    const seen = silent(root, event);
    const got = next(nsp, event);
    await call(nsp, "emit-to", { to: [room], event });
    await got;
    await call(root, "echo");
    assert.deepEqual(seen, []);
  });

  check("dynamic namespaces are apart from each other and from what does not match", async (t) => {
    const one = await clients.connect(t, "/dynamic-1");
    const two = await clients.connect(t, "/dynamic-2", { manager: one.io });
    const event = fresh("event");
    const seen = silent(two, event);
    const got = next(one, event);
    await call(one, "emit-to", { event });
    await got;
    await call(two, "echo");
    assert.deepEqual(seen, []);
    const [error] = await next(clients.open(t, "/dynamic-x", { manager: one.io }), "connect_error");
    assert.equal(error.message, "Invalid namespace");
  });

  check("an unknown namespace is refused and the connection stays", async (t) => {
    const root = await clients.connect(t);
    const [error] = await next(clients.open(t, "/nowhere", { manager: root.io }), "connect_error");
    assert.equal(error.message, "Invalid namespace");
    assert.equal(error.data, undefined);
    assert.deepEqual(await call(root, "echo", 1), [1]);
  });

  check("a namespace refuses by auth payload, with message and data", async (t) => {
    const [error] = await next(clients.open(t, "/auth", { auth: { token: "wrong" } }), "connect_error");
    assert.equal(error.message, "bad token");
    assert.deepEqual(error.data, { given: "wrong" });
    const [none] = await next(clients.open(t, "/auth"), "connect_error");
    assert.deepEqual(none.data, { given: null });
  });

  check("a refused socket may come back with better auth on the same connection", async (t) => {
    const socket = clients.open(t, "/auth", { auth: { token: "wrong" } });
    await next(socket, "connect_error");
    socket.auth = { token: "letmein" };
    socket.connect();
    await next(socket, "connect");
    assert.deepEqual(await call(socket, "data-get", "order"), [["first", "second"]]);
  });

  check("middlewares run in order, may be slow, and their rooms hold", async (t) => {
    const socket = await clients.connect(t, "/auth", { auth: { token: "slow" } });
    assert.deepEqual(await call(socket, "data-get", "order"), [["first", "second"]]);
    assert.deepEqual((await call(socket, "rooms"))[0], [socket.id, "from-middleware"].sort());
    await next(clients.open(t, "/auth"), "connect_error");
    const members = (await call(socket, "fetch", "from-middleware"))[0];
    assert.ok(members.every(({ data }) => data.order.length === 2), "a refused socket left its room");
  });

  check("a socket that leaves while the middleware is slow never connects", async (t) => {
    const witness = await clients.connect(t, "/auth", { auth: { token: "letmein" } });
    const mark = fresh("mark");
    const socket = clients.open(t, "/auth", { auth: { token: "slow", mark } });
    socket.on("connect", () => assert.fail("connected"));
    await next(socket.io, "open");
    await sleep(60);
    socket.disconnect();
    socket.io.engine.close();
    await sleep(400);
    const rows = (await call(witness, "fetch", null))[0];
    assert.ok(rows.every(({ data }) => data.mark !== mark), "it is a member of the namespace");
  });

  check("leaving one namespace leaves the others, and one may come back", async (t) => {
    const root = await clients.connect(t, "/");
    const nsp = await clients.connect(t, "/nsp", { manager: root.io });
    const first = nsp.id;
    nsp.disconnect();
    assert.deepEqual(await call(root, "echo", 1), [1]);
    nsp.connect();
    await next(nsp, "connect");
    assert.notEqual(nsp.id, first);
    assert.deepEqual(await call(nsp, "echo", 2), [2]);
  });
}

function leaving(check, clients, name) {
  const wsTransport = name !== "polling";

  check("client disconnect(): both sides say why, rooms full, then empty", async (t) => {
    const observed = await observer(t, clients);
    const socket = await clients.connect(t);
    const { id } = socket;
    await call(socket, "join", ["a", "b"]);
    const gone = next(socket, "disconnect");
    socket.disconnect();
    assert.equal((await gone)[0], "io client disconnect");
    const record = await observed.left(id);
    assert.deepEqual(record, { type: "left", nsp: "/", id, reason: "client namespace disconnect", rooms: [] });
    const [before] = observed.of(id, "leaving");
    assert.deepEqual(before.rooms, ["a", "b", id].sort());
    assert.equal(before.reason, "client namespace disconnect");
    await sleep(50);
    assert.equal(observed.of(id, "left").length, 1);
    assert.equal(observed.of(id, "joined").length, 1);
  });

  check("client closes the connection: transport close in every namespace", async (t) => {
    const observed = await observer(t, clients);
    const root = await clients.connect(t);
    const nsp = await clients.connect(t, "/nsp", { manager: root.io });
    const ids = [root.id, nsp.id];
    if (name === "upgrade") await upgraded(root);
    root.io.engine.close();
    for (const id of ids) assert.equal((await observed.left(id)).reason, "transport close");
  });

  check("a connection that is cut: transport close or error", async (t) => {
    const observed = await observer(t, clients);
    const id = wsTransport ? await cutWebSocket(t) : await cutPoll();
    assert.match((await observed.left(id)).reason, /^transport (close|error)$/);
  }, { skip: PARSER && !wsTransport ? "it is driven by hand, with the default parser" : "" });

  async function cutWebSocket(t) {
    const socket = await clients.connect(t);
    const { id } = socket;
    if (name === "upgrade") await upgraded(socket);
    socket.io.engine.transport.ws.terminate();
    return id;
  }

  // The official client cannot cut a poll under Node, so this session is driven by hand.
  async function cutPoll() {
    const url = `${server.url}/socket.io/?EIO=4&transport=polling`;
    const { sid } = JSON.parse((await (await fetch(url)).text()).slice(1));
    await fetch(`${url}&sid=${sid}`, { method: "POST", body: "40" });
    const connected = await (await fetch(`${url}&sid=${sid}`)).text();
    const cut = new AbortController();
    const poll = fetch(`${url}&sid=${sid}`, { signal: cut.signal }).catch(() => {});
    await sleep(50);
    cut.abort();
    await poll;
    return JSON.parse(connected.split("\x1e")[0].slice(2)).sid;
  }

  check("a client that answers no ping: ping timeout", async (t) => {
    const observed = await observer(t, clients);
    const socket = await clients.connect(t);
    const { id } = socket;
    if (name === "upgrade") await upgraded(socket);
    const { engine } = socket.io;
    const send = engine._sendPacket.bind(engine);
    engine._sendPacket = (type, ...rest) => type !== "pong" && send(type, ...rest);
    assert.equal((await observed.left(id, 6_000)).reason, "ping timeout");
  });

  check("server disconnect(): the client hears it and does not reconnect by itself", async (t) => {
    const observed = await observer(t, clients);
    const socket = await clients.connect(t, "/", { reconnection: true, reconnectionDelay: 20 });
    const { id } = socket;
    const gone = next(socket, "disconnect");
    socket.emit("disconnect-me", false);
    assert.equal((await gone)[0], "io server disconnect");
    assert.equal((await observed.left(id)).reason, "server namespace disconnect");
    await sleep(100);
    assert.equal(socket.connected, false);
    socket.connect();
    await next(socket, "connect");
    assert.notEqual(socket.id, id);
    assert.deepEqual(await call(socket, "echo", 1), [1]);
  });

  check("server disconnect() leaves the other namespaces alone", async (t) => {
    const root = await clients.connect(t);
    const nsp = await clients.connect(t, "/nsp", { manager: root.io });
    const gone = next(nsp, "disconnect");
    nsp.emit("disconnect-me", false);
    assert.equal((await gone)[0], "io server disconnect");
    assert.deepEqual(await call(root, "echo", 1), [1]);
  });

  check("server disconnect(true) takes every namespace of the connection", async (t) => {
    const observed = await observer(t, clients);
    const root = await clients.connect(t);
    const nsp = await clients.connect(t, "/nsp", { manager: root.io });
    const dynamic = await clients.connect(t, "/dynamic-7", { manager: root.io });
    const sockets = [root, nsp, dynamic];
    const ids = sockets.map(({ id }) => id);
    const gone = sockets.map((socket) => next(socket, "disconnect"));
    nsp.emit("disconnect-me", true);
    for (const [reason] of await Promise.all(gone)) assert.equal(reason, "io server disconnect");
    for (const id of ids) assert.equal((await observed.left(id)).reason, "server namespace disconnect");
  });

  check("the server closes the connection below: the client reconnects by itself", async (t) => {
    const observed = await observer(t, clients);
    const socket = await clients.connect(t, "/", { reconnection: true, reconnectionDelay: 20, randomizationFactor: 0 });
    const { id } = socket;
    if (name === "upgrade") await upgraded(socket);
    const gone = next(socket, "disconnect");
    socket.emit("close-conn");
    assert.equal((await gone)[0], "transport close");
    await next(socket, "connect");
    assert.notEqual(socket.id, id);
    assert.deepEqual(await call(socket, "echo", 1), [1]);
    assert.equal((await observed.left(id)).reason, "forced close");
  });

  check("handlers do not run twice after a reconnection", async (t) => {
    const socket = await clients.connect(t);
    socket.disconnect();
    socket.connect();
    await next(socket, "connect");
    const seen = silent(socket, "echo-back");
    socket.emit("echo", 1);
    await call(socket, "echo");
    assert.deepEqual(seen, [[1]]);
  });

  check("a packet that cannot be decoded closes the connection", async (t) => {
    const observed = await observer(t, clients);
    const socket = await clients.connect(t);
    const { id } = socket;
    if (name === "upgrade") await upgraded(socket);
    const gone = next(socket, "disconnect");
    socket.io.engine.send("2{not json");
    await gone;
    await until(() => observed.of(id, "failed")[0], "the error event");
    assert.match((await observed.left(id)).reason, /^(forced close|parse error|transport close)$/);
  });

  check("joining after the disconnection does nothing, messages behind it are ignored", async (t) => {
    const socket = await clients.connect(t);
    const witness = await clients.connect(t);
    const [room, token] = [fresh("r"), fresh("tick")];
    const seen = silent(witness, "tick");
    socket.emit("disconnect-me", false);
    socket.emit("join", room, () => {});
    socket.emit("tick-please", token);
    await next(socket, "disconnect");
    await sleep(80);
    assert.deepEqual(await call(witness, "fetch", room), [[]]);
    assert.ok(!seen.some(([got]) => got === token));
  });
}

function listeners(check, clients) {
  check("several handlers of one event run in order", async (t) => {
    const socket = await clients.connect(t);
    const all = collect(socket, "multi-back", 3);
    socket.emit("multi", "x");
    assert.deepEqual(await all, [[1, "x"], [2, "x"], [3, "x"]]);
  });

  check("once and removed handlers", async (t) => {
    const socket = await clients.connect(t);
    const [once, removable] = [silent(socket, "once-back"), silent(socket, "removable-back")];
    socket.emit("only-once");
    socket.emit("only-once");
    socket.emit("removable");
    await call(socket, "remove-handler");
    socket.emit("removable");
    await call(socket, "echo");
    assert.equal(once.length, 1);
    assert.equal(removable.length, 1);
  });

  check("any-listeners see what comes and what goes, broadcasts included", async (t) => {
    const socket = await clients.connect(t);
    await call(socket, "any-start");
    socket.emit("echo", 1);
    socket.emit("nobody-handles-this");
    await call(socket, "emit-to", { to: [socket.id], event: "by-broadcast" });
    const [log] = await call(socket, "any-stop");
    assert.deepEqual(log.incoming, ["echo", "nobody-handles-this", "emit-to", "any-stop"]);
    assert.deepEqual(log.outgoing, ["echo-back", "by-broadcast"]);
    socket.emit("echo", 1);
    assert.deepEqual(await call(socket, "any-stop"), [{ incoming: [], outgoing: [] }]);
  });

  check("prepended any-listeners are told first, and all of them go at once", async (t) => {
    const socket = await clients.connect(t);
    await call(socket, "any-order-start");
    const back = next(socket, "echo-back");
    socket.emit("echo", 1);
    await back;
    const incoming = ["in-2", "in-1"];
    const order = [...incoming, "out-2", "out-1", ...incoming];
    assert.deepEqual(await call(socket, "any-order-stop"), [{ order, left: 0 }]);
    assert.deepEqual(await call(socket, "any-order-stop"), [{ order: [], left: 0 }]);
  });

  check("any-listeners of sockets on all cores see a broadcast with binary and an acknowledgement", async (t) => {
    const sockets = await Promise.all(numbers(4).map(() => clients.connect(t)));
    const [room, event] = [fresh("any"), fresh("event")];
    for (const socket of sockets) {
      await call(socket, "join", room);
      await call(socket, "any-start");
      socket.on(event, (data, ack) => ack(data.length));
    }
    const spec = { to: [room], event, args: [bytes(1, 2)], timeout_ms: 10_000, style: "promise" };
    const [{ error, reply }] = await call(sockets[0], "emit-to-with-ack", spec);
    assert.deepEqual({ error, reply }, { error: null, reply: [2, 2, 2, 2] });
    for (const socket of sockets) assert.deepEqual((await call(socket, "any-stop"))[0].outgoing, [event]);
  });

  check("handlers are prepended, run once, and are removed one by one or together", async (t) => {
    const socket = await clients.connect(t);
    const seen = silent(socket, "trio-back");
    const round = async () => {
      socket.emit("trio");
      await call(socket, "echo");
      return seen.splice(0).flat();
    };
    assert.deepEqual(await call(socket, "trio-on"), [5]);
    assert.deepEqual(await round(), [5, 3, 1, 2, 4]);
    assert.deepEqual(await round(), [3, 1, 2]);
    assert.deepEqual(await call(socket, "trio-off", 1), [true]);
    assert.deepEqual(await round(), [3, 2]);
    assert.deepEqual(await call(socket, "trio-off", null), [false]);
    assert.deepEqual(await round(), []);
  });

  check("the first of two acknowledgements counts", async (t) => {
    const socket = await clients.connect(t);
    assert.deepEqual(await call(socket, "ack-twice"), [1]);
    assert.deepEqual(await call(socket, "echo", 1), [1]);
  });

  check("per-socket middlewares run in order, may be slow, and refuse with data", async (t) => {
    const socket = await clients.connect(t);
    assert.deepEqual(await call(socket, "mw-log"), [["first", "third"]]);
    const order = [];
    const slow = call(socket, "mw-slow", { a: bytes(1) }).then((reply) => order.push(reply));
    const fast = call(socket, "mw-fast", 2).then((reply) => order.push(reply));
    await Promise.all([slow, fast]);
    assert.deepEqual(order, [[2], [{ a: bytes(1) }]]);
    const data = next(socket, "middleware-data");
    socket.emit("mw-data");
    assert.deepEqual(await data, [{ code: 7 }]);
  });

  check("a socket that leaves while its middleware is slow is not told of the event", async (t) => {
    const observed = await observer(t, clients);
    const socket = await clients.connect(t);
    const { id } = socket;
    socket.emit("mw-slow", 1, () => assert.fail("acknowledged"));
    socket.disconnect();
    await observed.left(id);
    await sleep(150);
    assert.equal(observed.of(id, "left").length, 1);
  });

  check("a client may send an event of the name error", async (t) => {
    const socket = await clients.connect(t);
    socket.emit("error", { message: "mine" });
    assert.deepEqual(await call(socket, "echo", 1), [1]);
  });

  check("a per-socket middleware refuses an event and the error listener hears of it", async (t) => {
    const socket = await clients.connect(t);
    const error = next(socket, "middleware-error");
    socket.emit("forbidden", 1);
    assert.deepEqual(await error, ["event forbidden"]);
    assert.deepEqual(await call(socket, "echo", 1), [1]);
  });

  check("socket data holds what was set, and names of Object's own are no trap", async (t) => {
    const socket = await clients.connect(t);
    await call(socket, "data-set", "key", { a: [1] });
    assert.deepEqual(await call(socket, "data-get", "key"), [{ a: [1] }]);
    assert.deepEqual(await call(socket, "data-get", "missing"), [null]);
    socket.emit("__proto__", 1);
    socket.emit("constructor", 1);
    socket.emit("hasOwnProperty", 1);
    assert.deepEqual(await call(socket, "echo", 1), [1]);
  });
}

function order(check, clients, name) {
  check("1,000 messages to the server and 1,000 back keep their order", async (t) => {
    const socket = await clients.connect(t);
    const all = collect(socket, "number", 1_000);
    socket.emit("burst", { event: "number", count: 1_000 });
    for (const i of numbers(1_000)) socket.emit("count", i);
    assert.deepEqual(await call(socket, "counted"), [numbers(1_000)]);
    assert.deepEqual((await all).flat(), numbers(1_000));
  });

  check("a slow stream of acknowledged messages keeps its order, binary between", async (t) => {
    const socket = await clients.connect(t);
    const back = collect(socket, "echo-back", 60);
    for (const i of numbers(60)) {
      socket.emit("echo", i, ...(i % 4 ? [] : [bytes(i)]));
      if (i % 6 === 0) await sleep(5);
    }
    assert.deepEqual((await back).map(([i]) => i), numbers(60));
  });

  if (name !== "upgrade") return;
  check("the same while the connection is upgrading", async (t) => {
    const socket = clients.open(t);
    const all = collect(socket, "number", 1_000);
    await next(socket, "connect");
    const toUpgrade = upgraded(socket);
    for (let i = 0; i < 1_000; i += 50) {
      for (let j = i; j < i + 50; j++) socket.emit("count", j);
      socket.emit("burst", { event: "number", count: 50 });
      await sleep(1);
    }
    assert.deepEqual(await call(socket, "counted"), [numbers(1_000)]);
    assert.deepEqual((await all).flat(), numbers(1_000).map((i) => i % 50));
    await toUpgrade;
    assert.deepEqual(await call(socket, "echo", 1), [1]);
  });

  check("twenty clients upgrade at once under traffic", async (t) => {
    const work = async () => {
      const socket = clients.open(t);
      await next(socket, "connect");
      for (const i of numbers(40)) assert.deepEqual(await call(socket, "echo", i), [i]);
      await upgraded(socket);
      assert.deepEqual(await call(socket, "echo", "end"), ["end"]);
    };
    await Promise.all(numbers(20).map(work));
  });
}

function connectTimeouts() {
  for (const transport of ["polling", "websocket"]) {
    test(`${transport}: a connection that joins no namespace is closed after connectTimeout`, async (t) => {
      const engine = new EngineSocket(server.url, { path: "/socket.io/", transports: [transport] });
      t.defer(() => engine.close());
      const start = performance.now();
      await next(engine, "open");
      await next(engine, "close");
      const took = performance.now() - start;
      assert.ok(took > 800 && took < 3_000, `${took} ms`);
    });
  }
}

await run({ parallel: 6, finish: server.stop });
