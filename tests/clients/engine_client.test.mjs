// engine.io-client against `conformance_server --profile engine-client`, over polling, WebSocket and the upgrade.
import { Fetch, Socket, NodeWebSocket as WebSocket, NodeXHR as XHR } from "engine.io-client";
import { assert, run, sleep, test, until, within } from "./lib/runner.mjs";
import { Polling, Ws } from "./lib/raw.mjs";
import { target } from "./lib/target.mjs";

const server = await target("engine_client_reference.js");
const WAYS = { polling: ["polling"], websocket: ["websocket"], upgrade: ["polling", "websocket"] };

/** A client past its open event and the server's first word, with what it hears from then on in a list. */
async function connect(t, transports, options = {}) {
  const socket = new Socket(server.url, { transports, ...options });
  t.defer(() => socket.close());
  socket.heard = [];
  socket.on("message", (message) => socket.heard.push(message));
  const opened = new Promise((resolve, reject) => {
    socket.on("open", resolve);
    socket.on("error", reject);
  });
  await within(opened, 5_000, "open");
  await until(() => socket.heard[0] === "hi", "the first word");
  socket.heard.length = 0;
  return socket;
}

const heard = (socket, count) => until(() => socket.heard.length >= count, `${count} messages`).then(() => socket.heard);
const bytes = (data) => [...new Uint8Array(data.buffer ? data : new Uint8Array(data))];
const moved = (socket) => until(() => socket.transport.name === "websocket", "the upgrade");

for (const [way, transports] of Object.entries(WAYS)) {
  test(`${way}: text there and back, in order`, async (t) => {
    const socket = await connect(t, transports);
    const all = ["a", "тест €🏳️‍🌈", ...Array.from({ length: 200 }, (_, i) => `message ${i}`)];
    all.forEach((text) => socket.send(text));
    assert.deepEqual(await heard(socket, all.length), all);
  });

  test(`${way}: binary there and back`, async (t) => {
    const socket = await connect(t, transports);
    socket.send(new Int8Array([0, 1, 2, 3, 4]));
    socket.send(Buffer.from([5, 6]));
    socket.send(new ArrayBuffer(0));
    assert.deepEqual((await heard(socket, 3)).map(bytes), [[0, 1, 2, 3, 4], [5, 6], []]);
  });

  test(`${way}: the server's binary and its long text`, async (t) => {
    const socket = await connect(t, transports);
    socket.send("give binary");
    socket.send("give utf8");
    const [binary, text] = await heard(socket, 2);
    assert.deepEqual(bytes(binary), [0, 1, 2, 3, 4]);
    assert.ok(text.length > 200 && /^[а-яё ,—]+$/.test(text), text);
  });

  test(`${way}: an ArrayBuffer where one is asked for`, async (t) => {
    const socket = await connect(t, transports);
    socket.binaryType = "arraybuffer";
    socket.send("give binary");
    const [binary] = await heard(socket, 1);
    assert.ok(binary instanceof ArrayBuffer);
  });

  test(`${way}: more than the server takes at once leaves in several requests`, async (t) => {
    const socket = await connect(t, transports);
    const all = Array.from({ length: 40 }, (_, i) => `${i}:${"x".repeat(30)}`);
    all.forEach((text) => socket.send(text));
    assert.deepEqual(await heard(socket, 40), all);
  });

  test(`${way}: a denied handshake is an error`, async (t) => {
    const socket = new Socket(server.url, { transports, query: { deny: 1 } });
    t.defer(() => socket.close());
    const error = await within(new Promise((resolve) => socket.on("error", resolve)), 5_000, "error");
    assert.match(error.message, /xhr poll error|websocket error/);
    assert.equal(error.type, "TransportError");
  });

  test(`${way}: the session outlives several heartbeats`, async (t) => {
    const socket = await connect(t, transports);
    let beats = 0;
    socket.on("heartbeat", () => beats++);
    await until(() => beats >= 3, "three heartbeats");
    socket.send("alive");
    assert.deepEqual(await heard(socket, 1), ["alive"]);
  });

  test(`${way}: what was sent before a close arrives before it`, async (t) => {
    const socket = await connect(t, transports);
    const echo = await connect(t, transports);
    socket.send("last words");
    const closed = new Promise((resolve) => socket.on("close", resolve));
    socket.close();
    assert.equal(await within(closed, 5_000, "close"), "forced close");
    echo.send("another client");
    assert.deepEqual(await heard(echo, 1), ["another client"]);
  });

  test(`${way}: a message beyond the limit ends the connection`, async (t) => {
    const socket = await connect(t, transports);
    if (way === "upgrade") await moved(socket);
    const closed = new Promise((resolve) => socket.on("close", resolve));
    socket.send("x".repeat(200));
    assert.match(await within(closed, 5_000, "close"), /transport (error|close)/);
  });
}

test("upgrade: the client moves and keeps its id", async (t) => {
  const socket = await connect(t, WAYS.upgrade);
  const { id } = socket;
  socket.send("before");
  await moved(socket);
  socket.send("after");
  assert.deepEqual(await heard(socket, 2), ["before", "after"]);
  assert.equal(socket.id, id);
});

test("upgrade: a client that prefers WebSocket and gets it offers nothing else", async (t) => {
  const socket = await connect(t, ["websocket", "polling"]);
  assert.equal(socket.transport.name, "websocket");
  await sleep(50);
  assert.equal(socket.transport.name, "websocket");
});

for (const [name, Polling] of [["XHR", XHR], ["Fetch", Fetch]]) {
  test(`cookies of the handshake come back with ${name}`, async (t) => {
    const socket = await connect(t, [Polling], { withCredentials: true });
    await sleep(20);
    socket.send("sendHeaders");
    const headers = JSON.parse((await heard(socket, 1))[0]);
    assert.equal(headers.cookie, "1=1; 2=2");
  });

  test(`no cookies without credentials, ${name}`, async (t) => {
    const socket = await connect(t, [Polling]);
    socket.send("sendHeaders");
    assert.equal(JSON.parse((await heard(socket, 1))[0]).cookie, undefined);
  });
}

test("headers of the client arrive over polling and over WebSocket", async (t) => {
  for (const transports of [[XHR], [WebSocket]]) {
    const socket = await connect(t, transports, { extraHeaders: { "X-Mine": "yes" } });
    socket.send("sendHeaders");
    const headers = JSON.parse((await heard(socket, 1))[0]);
    // Over WebSocket no POST carries the message.
    assert.equal(headers["x-mine"], transports[0] === XHR ? "yes" : undefined);
  }
});

// --- What other clients do differently: raw, since they are no JavaScript. -------------------------------------

const base = `${server.url}/engine.io/`;
const wsBase = `${server.ws}/engine.io/?EIO=4&transport=websocket`;
const later = { timeout_ms: 20_000 };

/** A raw polling session past the server's first word. */
async function poller(t) {
  const session = await Polling.open(base);
  assert.deepEqual(await session.packets(1), ["4hi"]);
  t.defer(() => session.post("1"));
  return session;
}

/** Data in base64 as Java's and Android's encoders write it: lines of 76 characters, and a line end at the end. */
const inLines = (data) => data.toString("base64").replace(/.{76}/g, "$&\n") + "\n";

test("Java: base64 with line breaks after 76 characters and at the end", async (t) => {
  const session = await poller(t);
  for (const length of [0, 1, 2, 3, 57, 58, 60]) {
    const data = Buffer.from(Array.from({ length }, (_, i) => (i * 37) % 256));
    assert.equal((await session.post("b" + inLines(data))).text, "ok", `${length} bytes`);
    assert.deepEqual(await session.packets(1), ["b" + data.toString("base64")], `${length} bytes`);
  }
}, later);

test("other alphabets and paddings of base64", async (t) => {
  const session = await poller(t);
  const data = Buffer.from([0xfb, 0xff, 0xbf, 0xfe]);
  for (const text of ["+/+//g==", "-_-__g==", "+/+//g", "-_-__g", "+/-__g=", "+/+//g====", " +/ +//\tg==\r\n"]) {
    assert.equal((await session.post("b" + text)).text, "ok", text);
    assert.deepEqual(await session.packets(1), ["b" + data.toString("base64")], text);
  }
}, later);

test(".NET: an upgrade whose first frame is 5, without a probe", async (t) => {
  const session = await poller(t);
  const ws = await Ws.open(`${wsBase}&sid=${session.sid}`);
  t.defer(() => ws.end());
  ws.send("5");
  ws.send("4moved");
  assert.equal(await ws.next(), "4moved");
}, later);

test("a second probe is answered again", async (t) => {
  const session = await poller(t);
  const poll = session.get();
  const ws = await Ws.open(`${wsBase}&sid=${session.sid}`);
  t.defer(() => ws.end());
  for (let i = 0; i < 2; i++) {
    ws.send("2probe");
    assert.equal(await ws.next(), "3probe");
  }
  await poll;
  ws.send("5");
  ws.send("4moved");
  assert.equal(await ws.next(), "4moved");
}, later);

test("a client that closes while it polls has its poll answered", async () => {
  for (let i = 0; i < 10; i++) {
    const session = await Polling.open(base);
    assert.deepEqual(await session.packets(1), ["4hi"]);
    const poll = session.get();
    assert.equal((await session.post("1")).text, "ok");
    const { status, text } = await poll;
    assert.equal(status, 200, text);
    assert.match(text, /^(6|2\x1e6|1)$/);
  }
}, later);

test("a body and a message beyond the limit: 413 and 1009, with nothing to read", async (t) => {
  const session = await poller(t);
  const origin = "http://page.example";
  const { status, bytes: body, headers } = await session.post("4" + "x".repeat(200), { headers: { origin } });
  assert.deepEqual([status, body.length, headers["access-control-allow-origin"]], [413, 0, origin]);
  const ws = await Ws.open(wsBase);
  t.defer(() => ws.end());
  ws.send("4" + "x".repeat(200));
  assert.deepEqual(await ws.gone(), { code: 1009, reason: "" });
}, later);

test("subprotocols: the first that is offered", async (t) => {
  for (const protocols of [["a"], ["b", "a"]]) {
    const socket = await connect(t, ["websocket"], { protocols });
    assert.equal(socket.transport.ws.protocol, protocols[0]);
    socket.send("spoken");
    assert.deepEqual(await heard(socket, 1), ["spoken"]);
  }
}, later);

test("a client that writes base64 everywhere", async (t) => {
  for (const transports of Object.values(WAYS)) {
    const socket = await connect(t, transports, { forceBase64: true });
    socket.send(Buffer.from([1, 2, 3]));
    assert.deepEqual((await heard(socket, 1)).map(bytes), [[1, 2, 3]]);
  }
}, later);

test("a close during the upgrade waits for it, and so does what was sent", async (t) => {
  const echo = await connect(t, ["websocket"]);
  for (let i = 0; i < 10; i++) {
    const socket = await connect(t, WAYS.upgrade);
    const closed = new Promise((resolve) => socket.on("close", resolve));
    socket.send("last words");
    socket.close();
    assert.equal(await within(closed, 5_000, "close"), "forced close");
  }
  echo.send("still there");
  assert.deepEqual(await heard(echo, 1), ["still there"]);
}, later);

await run({ parallel: 6, finish: server.stop });
