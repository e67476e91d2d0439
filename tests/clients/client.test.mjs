// The official client against `conformance_server --profile client`, as the client's own suite uses that server.
import { assert, run, sleep, test, until } from "./lib/runner.mjs";
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
  values(check, clients);
  lives(check, clients, name);
  handshakes(check, clients);
  retries(check, clients);
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
    const heard = (await texts).map(([text]) => text);
    assert.deepEqual(heard, ["てすと", "Я Б Г Д Ж Й", "Ä ä Ü ü ß", "utf8 — string", "utf8 — string"]);
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
    ["a binary and a text in order", [["abuff1", data], ["abuff2", "please arrive second"]], "abuff2-ack"],
    ["a blob within JSON", [["jsonblob", { hello: "lol", message: data, goodbye: "gotcha" }]], "jsonblob-ack"],
    ["blobs and a text in order", [["blob1", data], ["blob2", "second"], ["blob3", data]], "blob3-ack"],
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

/** What is emitted comes back as it was. */
function values(check, clients) {
  check("every kind of value in an argument and in an answer", async (t) => {
    const socket = await clients.connect(t);
    const all = [null, true, false, 0, -1, 1.5, 1e21, "", "\u2028\ud83d\ude00", [], {}, [null, [1, ["2"]]], { a: { b: null } }];
    for (const value of all) assert.deepEqual(await call(socket, "echo", value), [value]);
  });

  check("binary in an argument and in an answer", async (t) => {
    const socket = await clients.connect(t);
    const all = [Buffer.alloc(0), Buffer.from([1]), Buffer.alloc(70_000, 7)];
    for (const data of all) assert.deepEqual(await call(socket, "echo", data), [data]);
    const mixed = { a: all[1], b: [all[0], { c: all[1] }], d: "text" };
    assert.deepEqual(await call(socket, "echo", mixed), [mixed]);
  });

  check("binary of a client that writes it as base64", async (t) => {
    const socket = await clients.connect(t, "/", { forceBase64: true });
    assert.deepEqual(await call(socket, "echo", Buffer.from("howdy")), [Buffer.from("howdy")]);
  });

  check("a volatile packet of a client that is connected", async (t) => {
    const socket = await clients.connect(t);
    let heard = false;
    socket.on("hi", () => (heard = true));
    // The client itself drops one while its transport is busy, with the upgrade for instance.
    await until(() => heard || void socket.volatile.emit("hi"), "an answer");
  });

  check("events emitted before the connection stands arrive in order", async (t) => {
    const socket = clients.open(t, "/");
    const answers = [1, 2, 3].map((i) => call(socket, "echo", i));
    assert.deepEqual((await Promise.all(answers)).flat(), [1, 2, 3]);
  });

  check("an answer in time, and one that does not come", async (t) => {
    const socket = await clients.connect(t);
    assert.equal(await socket.timeout(5_000).emitWithAck("echo", 42), 42);
    await assert.rejects(socket.timeout(100).emitWithAck("unknown"), /timed out/);
    assert.equal(await socket.timeout(5_000).emitWithAck("echo", 43), 43);
  });
}

/** Sockets that come, go and come again. */
function lives(check, clients, name) {
  check("the id goes with the connection", async (t) => {
    const socket = await clients.connect(t);
    assert.equal(typeof socket.id, "string");
    assert.notEqual(socket.id, socket.io.engine.id);
    socket.disconnect();
    assert.equal(socket.id, undefined);
  });

  check("a client that has nothing to recover comes back with another id", async (t) => {
    const socket = await clients.connect(t, "/", { reconnection: true, reconnectionDelay: 10 });
    if (name === "upgrade") await upgraded(socket);
    const { id } = socket;
    const again = next(socket.io, "reconnect");
    const gone = next(socket, "disconnect");
    socket.io.engine.close();
    await gone;
    assert.equal(socket.id, undefined);
    await again;
    await until(() => socket.connected, "connected again");
    assert.notEqual(socket.id, id);
    assert.deepEqual(await call(socket, "getId"), [socket.id]);
  });

  check("a namespace is opened again after it was closed", async (t) => {
    const root = await clients.connect(t, "/");
    const foo = await clients.connect(t, "/foo", { manager: root.io });
    const first = foo.id;
    foo.disconnect();
    assert.equal(foo.id, undefined);
    // The reference closes the connection if both come in one read.
    await sleep(50);
    foo.connect();
    await next(foo, "connect");
    assert.notEqual(foo.id, first);
    assert.deepEqual(await call(foo, "getId"), [foo.id]);
    assert.deepEqual(await call(root, "getId"), [root.id]);
  });

  check("the last namespace that closes closes the connection", async (t) => {
    const root = await clients.connect(t, "/");
    const foo = await clients.connect(t, "/foo", { manager: root.io });
    const { engine } = root.io;
    root.disconnect();
    assert.deepEqual(await call(foo, "getId"), [foo.id]);
    assert.equal(engine.readyState, "open");
    foo.disconnect();
    await until(() => engine.readyState === "closed", "closed");
  });

  check("the manager hears the server's pings", async (t) => {
    const socket = await clients.connect(t);
    await next(socket.io, "ping");
    assert.deepEqual(await call(socket, "echo", 1), [1]);
  });

  check("sockets of one page do not share what is theirs", async (t) => {
    const all = await Promise.all(Array.from({ length: 5 }, () => clients.connect(t)));
    const ids = await Promise.all(all.map((socket) => call(socket, "getId")));
    assert.deepEqual(ids.flat(), all.map((socket) => socket.id));
    assert.equal(new Set(ids.flat()).size, 5);
  });
}

/** What a client says when it connects. */
function handshakes(check, clients) {
  check("a query in the URL and in the options, of the main and of a custom namespace", async (t) => {
    const inUrl = await clients.connect(t, "/?c=d&e=f%26");
    const { query } = (await call(inUrl, "getHandshake"))[0];
    assert.deepEqual([query.c, query.e], ["d", "f&"]);
    const abc = clients.open(t, "/abc?b=c&d=e");
    const [handshake] = await next(abc, "handshake");
    assert.deepEqual([handshake.query.b, handshake.query.d], ["c", "e"]);
  });

  check("a query is encoded and decoded", async (t) => {
    const socket = await clients.connect(t, "/", { query: { "&a": "&=?a", "+": "+ %", é: "€" } });
    const { query } = (await call(socket, "getHandshake"))[0];
    assert.deepEqual([query["&a"], query["+"], query["é"]], ["&=?a", "+ %", "€"]);
  });

  check("auth from a function", async (t) => {
    const socket = await clients.connect(t, "/", { auth: (give) => give({ token: "abcd" }) });
    assert.deepEqual((await call(socket, "getHandshake"))[0].auth, { token: "abcd" });
    const none = await clients.connect(t);
    assert.deepEqual((await call(none, "getHandshake"))[0].auth, {});
  });

  check("the fields of a handshake", async (t) => {
    const socket = await clients.connect(t);
    const [handshake] = await call(socket, "getHandshake");
    const fields = ["headers", "time", "address", "xdomain", "secure", "issued", "url", "query", "auth"];
    assert.deepEqual(Object.keys(handshake).sort(), fields.sort());
    assert.equal(handshake.query.EIO, "4");
    assert.ok(!Number.isNaN(Date.parse(handshake.time)), handshake.time);
    assert.ok(Math.abs(Date.now() - handshake.issued) < 60_000);
    assert.ok(handshake.url.startsWith("/socket.io/?"), handshake.url);
  });

  check("a long query and many headers", async (t) => {
    const headers = (length) => Object.fromEntries(Array.from({ length }, (_, i) => [`x-h${i}`, String(i)]));
    for (const [bytes, count] of [[9_000, 120], [12_000, 200]]) {
      const socket = await clients.connect(t, "/", { query: { token: "t".repeat(bytes) }, extraHeaders: headers(count) });
      assert.deepEqual(await call(socket, "echo", bytes), [bytes]);
    }
    // Of a larger request a server need not keep everything.
    const token = "t".repeat(3_000);
    const socket = await clients.connect(t, "/", { query: { token }, extraHeaders: headers(20) });
    const [handshake] = await call(socket, "getHandshake");
    assert.equal(handshake.query.token, token);
    assert.equal(handshake.headers["x-h19"], "19");
  });
}

/** The option `retries`: one packet after the other, each until it is acknowledged. */
function retries(check, clients) {
  const options = { retries: 1, ackTimeout: 2_000 };

  check("retried packets keep their order", async (t) => {
    const socket = clients.open(t, "/", options);
    const answers = [];
    const all = [1, 2, 3].map((i) => socket.emitWithAck("echo", i).then((value) => answers.push(value)));
    await Promise.all(all);
    assert.deepEqual(answers, [1, 2, 3]);
  });

  check("a packet that is never acknowledged fails, and the next one goes on", async (t) => {
    const socket = await clients.connect(t, "/", { ...options, ackTimeout: 500 });
    const failed = assert.rejects(socket.emitWithAck("unknown"), /timed out/);
    const after = socket.emitWithAck("getId");
    await failed;
    assert.equal(await after, socket.id);
  });

  check("a packet emitted on connect is not sent twice", async (t) => {
    const socket = clients.open(t, "/", options);
    let answers = 0;
    socket.on("connect", () => socket.emit("echo", 1, () => answers++));
    await until(() => answers > 0, "an answer");
    assert.deepEqual(await socket.emitWithAck("echo", 2), 2);
    assert.equal(answers, 1);
  });
}
