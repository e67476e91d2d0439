// The official client against `conformance_server --profile client`, as the client's own suite uses that server.
import { assert, run, sleep, test } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { TRANSPORTS, call, clientsOf, collect, next, upgraded } from "./lib/clients.mjs";

const server = await target("client_reference.js");
const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/;

for (const [name, transport] of Object.entries(TRANSPORTS)) {
  const clients = clientsOf(server.url, transport);
  const check = (title, body, options) => test(`${name}: ${title}`, body, options);
  events(check, clients);
  binaries(check, clients);
  namespaces(check, clients);
  connections(check, clients, name);
  recovery(check, clients, name);
}
await run({ parallel: 4, finish: server.stop });

function events(check, clients) {
  check("hi, echo, false", async (t) => {
    const socket = await clients.connect(t);
    const [hi, no] = [next(socket, "hi"), next(socket, "false")];
    socket.emit("hi");
    socket.emit("false");
    await hi;
    // With recovery on, an offset follows the event's own arguments.
    assert.equal((await no)[0], false);
    assert.deepEqual(await call(socket, "echo", { a: 1 }), [{ a: 1 }]);
  });

  check("the server asks, the client acknowledges", async (t) => {
    const socket = await clients.connect(t);
    socket.on("ack", (ack) => ack(5, { test: true }));
    const got = next(socket, "got it");
    socket.emit("ack");
    await got;
  });

  check("dates arrive as ISO text", async (t) => {
    const socket = await clients.connect(t);
    assert.match((await call(socket, "getAckDate", { test: true }))[0], ISO);
    const [date, object] = [next(socket, "takeDate"), next(socket, "takeDateObj")];
    socket.emit("getDate");
    socket.emit("getDateObj");
    assert.match((await date)[0], ISO);
    assert.match((await object)[0].date, ISO);
  });

  check("text of many scripts", async (t) => {
    const socket = await clients.connect(t);
    const texts = collect(socket, "takeUtf8", 5);
    socket.emit("getUtf8");
    for (const [text] of await texts) assert.match(text, /[^\x00-\x7f]/);
  });

  check("a thousand echoes in flight", async (t) => {
    const socket = await clients.connect(t);
    const all = await Promise.all(Array.from({ length: 1_000 }, (_, i) => call(socket, "echo", i)));
    assert.deepEqual(all.flat(), Array.from({ length: 1_000 }, (_, i) => i));
  });
}

function binaries(check, clients) {
  const data = Buffer.from("howdy");

  check("binary from the server", async (t) => {
    const socket = await clients.connect(t);
    const [doge, bin] = [next(socket, "doge"), next(socket, "takebin")];
    socket.emit("doge");
    socket.emit("getbin");
    assert.equal((await doge)[0].toString(), "asdfasdf");
    assert.ok(Buffer.isBuffer((await bin)[0]));
  });

  const sent = [
    ["binary to the server", [["buffa", data]], "buffack"],
    ["binary within JSON", [["jsonbuff", { hello: "lol", message: data, goodbye: "gotcha" }]], "jsonbuff-ack"],
    ["two binaries in order", [["abuff1", data], ["abuff2", data]], "abuff2-ack"],
    ["a blob within JSON", [["jsonblob", { hello: "lol", message: data, goodbye: "gotcha" }]], "jsonblob-ack"],
    ["three blobs in order", [["blob1", data], ["blob2", data], ["blob3", data]], "blob3-ack"],
  ];
  for (const [title, emits, answer] of sent) {
    check(title, async (t) => {
      const socket = await clients.connect(t);
      const answered = next(socket, answer);
      for (const emit of emits) socket.emit(...emit);
      await answered;
    });
  }

  check("a blob there and back", async (t) => {
    const socket = await clients.connect(t);
    const back = next(socket, "back");
    socket.emit("blob", data);
    assert.deepEqual((await back)[0], data);
  });
}

function namespaces(check, clients) {
  check("ids: the same on both sides, one per namespace", async (t) => {
    const root = await clients.connect(t, "/");
    const foo = await clients.connect(t, "/foo", { manager: root.io });
    assert.deepEqual(await call(root, "getId"), [root.id]);
    assert.deepEqual(await call(foo, "getId"), [foo.id]);
    assert.notEqual(root.id, foo.id);
  });

  check("plain namespaces connect, a query belongs to the connection", async (t) => {
    const socket = await clients.connect(t, "/timeout_socket");
    for (const name of ["/valid", "/asd"]) await clients.connect(t, name, { manager: socket.io });
    const abc = clients.open(t, "/abc", { query: { b: "c", d: "e" } });
    const [handshake] = await next(abc, "handshake");
    assert.deepEqual([handshake.query.b, handshake.query.d], ["c", "e"]);
    assert.equal(handshake.headers.host, `${server.host}:${server.port}`);
  });

  check("middlewares refuse, in the main and in a custom namespace", async (t) => {
    const [main] = await next(clients.open(t, "/", { query: { fail: "1" } }), "connect_error");
    assert.equal(main.message, "Auth failed (main namespace)");
    const [custom] = await next(clients.open(t, "/no"), "connect_error");
    assert.equal(custom.message, "Auth failed (custom namespace)");
    const [unknown] = await next(clients.open(t, "/unknown"), "connect_error");
    assert.equal(unknown.message, "Invalid namespace");
  });

  check("auth and query reach the handshake", async (t) => {
    const socket = await clients.connect(t, "/", { auth: { a: "b" }, query: { c: "d", "e f": "&=#é" } });
    const [handshake] = await call(socket, "getHandshake");
    assert.deepEqual(handshake.auth, { a: "b" });
    assert.equal(handshake.query.c, "d");
    assert.equal(handshake.query["e f"], "&=#é");
  });
}

function connections(check, clients, name) {
  check("reconnects after the connection is closed below, and again by hand", async (t) => {
    const socket = await clients.connect(t, "/", { reconnection: true, reconnectionDelay: 10 });
    if (name === "upgrade") await upgraded(socket);
    socket.io.engine.close();
    await next(socket, "connect");
    socket.disconnect();
    socket.connect();
    await next(socket, "connect");
    assert.deepEqual(await call(socket, "echo", 1), [1]);
  });

  check("a client that times out retries its emit", async (t) => {
    const socket = await clients.connect(t, "/", { retries: 2, ackTimeout: 200 });
    await assert.rejects(socket.emitWithAck("nobody-handles-this"), /timed out/);
    assert.equal(await socket.emitWithAck("echo", "after"), "after");
  });
}

function recovery(check, clients, name) {
  check("connection state recovery: same id, missed packets, where the server offers it", async (t) => {
    const socket = await clients.connect(t, "/", { reconnection: true, reconnectionDelay: 100 });
    if (name === "upgrade") await upgraded(socket);
    if (!socket._pid) return t.note("the server offers no recovery");
    // The client stores an offset only once an event with one has come.
    const hi = next(socket, "hi");
    socket.emit("hi");
    await hi;
    const { id } = socket;
    const ack = next(socket, "hi");
    socket.emit("hi");
    socket.io.engine.close();
    await next(socket, "connect");
    assert.equal(socket.recovered, true);
    assert.equal(socket.id, id);
    await Promise.race([ack, sleep(300)]);
    assert.deepEqual(await call(socket, "echo", 1), [1]);
  });
}
