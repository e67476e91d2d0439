// permessage-deflate: npm ws and socket.io-client as clients that ask for it and some that do not, and Chromium, which always asks.
// What counts is that messages come back whole *and* that fewer bytes were on the wire.
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { chromium } from "playwright-core";
import { assert, run, sleep, test, until } from "./lib/runner.mjs";
import { call, clientsOf, collect, upgraded } from "./lib/clients.mjs";
import { Ws } from "./lib/raw.mjs";
import { target } from "./lib/target.mjs";

const server = await target("fanout_reference.js", ["--deflate"]);
const SHARED = { server_no_context_takeover: true };
const text = (bytes) => "In the beginning was the word, and the word was repeated. ".repeat(bytes / 58 + 1).slice(0, bytes);

async function open(t, path, perMessageDeflate = true) {
  const ws = await Ws.open(server.ws + path, { perMessageDeflate });
  ws.answerPings = false;
  t.defer(() => ws.end());
  return ws;
}

/** What was agreed, in the names of the header; undefined for nothing. */
const agreed = (ws) => ws.socket._extensions["permessage-deflate"]?.params;
/** Bytes received from the server since the connection was made. */
const received = (ws) => ws.socket._socket.bytesRead;

echoes();
windows();
topics();
socketio();
browser();
await run({ parallel: 3, finish: server.stop });

function echoes() {
  for (const [path, params] of [["/ws", SHARED], ["/ws-context", {}], ["/ws-limited", { server_max_window_bits: 10, client_max_window_bits: 10 }]]) {
    test(`${path}: agreed, echoed, and smaller on the wire`, async (t) => {
      const ws = await open(t, path);
      assert.deepEqual({ ...agreed(ws) }, params);
      for (const size of [0, 1, 5, 125, 126, 1_023, 1_024, 1_025, 20_000, 65_535, 65_536, 1_000_000]) {
        const messages = [[text(size), true], [Buffer.from(text(size)), true], [randomBytes(size), false]];
        for (const [message, worth] of messages) {
          const before = received(ws);
          ws.send(message);
          assert.deepEqual(await ws.next(), message);
          const took = received(ws) - before;
          const packed = size >= 20_000 && worth;
          assert.ok(took <= (packed ? size / 20 : size * 1.1 + 20), `${size} bytes took ${took}`);
        }
      }
    });

    test(`${path}: 500 messages in one go keep their order`, async (t) => {
      const ws = await open(t, path, { threshold: 0 });
      for (let i = 0; i < 500; i++) ws.send(`${i} ${text(i * 4)}`);
      for (let i = 0; i < 500; i++) assert.equal(await ws.next(10_000), `${i} ${text(i * 4)}`);
    }, { timeout_ms: 30_000 });

    test(`${path}: compressed fragments with a ping between them`, async (t) => {
      const ws = await open(t, path, { threshold: 0 });
      const pong = new Promise((resolve) => ws.socket.once("pong", resolve));
      ws.socket.send(text(3_000), { fin: false });
      ws.socket.ping("between");
      ws.socket.send("", { fin: false });
      ws.socket.send(text(500), { fin: true });
      assert.equal((await pong).toString(), "between");
      assert.equal(await ws.next(), text(3_000) + text(500));
    });
  }

  test("without context each message costs the same, with context the next ones next to nothing", async (t) => {
    const message = randomBytes(3_000).toString("hex");
    const costs = async (path) => {
      const ws = await open(t, path);
      const costs = [];
      for (let i = 0; i < 3; i++) {
        const before = received(ws);
        ws.send(message);
        await ws.next();
        costs.push(received(ws) - before);
      }
      return costs;
    };
    const [first, second, third] = await costs("/ws");
    assert.ok(first > 2_500 && second === first && third === first);
    const [alone, next, last] = await costs("/ws-context");
    assert.ok(alone > 2_500 && next < 100 && last < 100, `${alone} ${next} ${last}`);
  });

  test("small messages are sent as they are where no context is kept", async (t) => {
    const ws = await open(t, "/ws");
    const before = received(ws);
    ws.send(text(1_000));
    await ws.next();
    assert.equal(received(ws) - before, 1_004);
  });

  test("a client that does not ask gets nothing compressed", async (t) => {
    const ws = await open(t, "/ws", false);
    assert.equal(agreed(ws), undefined);
    const before = received(ws);
    ws.send(text(30_000));
    assert.equal(await ws.next(), text(30_000));
    assert.equal(received(ws) - before, 30_004);
  });
}

function windows() {
  for (const bits of [9, 10, 12, 15]) {
    test(`windows of ${bits} bits, asked for by the client`, async (t) => {
      const ws = await open(t, "/ws", { serverMaxWindowBits: bits, clientMaxWindowBits: bits, threshold: 0 });
      const { server_max_window_bits: down, client_max_window_bits: up } = agreed(ws);
      assert.equal(down, bits);
      assert.ok(up === undefined || up <= bits);
      // Repetition at a distance of 700 bytes: out of reach for the smallest window.
      const block = randomBytes(350).toString("hex");
      const before = received(ws);
      ws.send(block.repeat(50));
      assert.equal(await ws.next(), block.repeat(50));
      const took = received(ws) - before;
      assert.ok(bits === 9 ? took > 10_000 : took < 6_000, `${took} bytes`);
    });
  }
}

function topics() {
  test("a broadcast reaches those who agreed compressed, and the others as it is", async (t) => {
    const topic = `t${process.pid}`;
    const members = await Promise.all(
      Array.from({ length: 30 }, (_, i) => open(t, ["/ws", "/ws-context", "/ws"][i % 3], i % 3 < 2)),
    );
    const publisher = await open(t, "/ws", false);
    for (const ws of members) ws.send(`sub ${topic}`);
    await until(async () => {
      publisher.send(`pub ${topic} warm`);
      await sleep(30);
      return members.every(({ queue }) => queue.length > 0);
    }, "a subscription on every core");
    await sleep(100);
    for (const ws of members) ws.queue.length = 0;
    const before = members.map(received);
    for (let i = 0; i < 50; i++) publisher.send(`pub ${topic} ${i} ${text(8_000)}`);
    for (const ws of members) {
      for (let i = 0; i < 50; i++) assert.equal(await ws.next(), `${i} ${text(8_000)}`);
    }
    members.forEach((ws, i) => {
      const took = received(ws) - before[i];
      assert.ok(i % 3 < 2 ? took < 50 * 400 : took > 50 * 8_000, `member ${i}: ${took} bytes`);
    });
    const each = [0, 1, 2].map((i) => received(members[i]) - before[i]);
    t.note(`bytes of 50 broadcasts of 8,000: shared ${each[0]}, with context ${each[1]}, plain ${each[2]}`);
  });
}

function socketio() {
  const clients = clientsOf(server.url, {});
  const node = (socket) => socket.io.engine.transport.ws._extensions["permessage-deflate"];
  const bytes = (socket) => socket.io.engine.transport.ws._socket.bytesRead;
  const OPTIONS = {
    websocket: { transports: ["websocket"], perMessageDeflate: { threshold: 0 } },
    upgrade: { transportOptions: { websocket: { perMessageDeflate: { threshold: 0 } } } },
  };

  for (const [name, options] of Object.entries(OPTIONS)) {
    test(`socket.io-client by ${name}: events with text and binary come back`, async (t) => {
      const socket = await clients.connect(t, "/", options);
      await upgraded(socket);
      assert.ok(node(socket), "not agreed");
      const before = bytes(socket);
      const payload = { text: text(50_000), data: Buffer.from(text(50_000)), list: [1, "a", null], noise: randomBytes(2_000) };
      for (let i = 0; i < 5; i++) assert.deepEqual(await call(socket, "echo", payload), [payload]);
      assert.ok(bytes(socket) - before < 5 * 10_000, `${bytes(socket) - before} bytes`);
    });
  }

  test("socket.io-client: a room of clients with and without compression, over every transport", async (t) => {
    const kinds = [...Object.values(OPTIONS), { transports: ["websocket"], perMessageDeflate: false }, { transports: ["polling"] }];
    const members = await Promise.all(Array.from({ length: 16 }, (_, i) => clients.connect(t, "/", kinds[i % 4])));
    const room = `r${process.pid}`;
    for (const socket of members) await call(socket, "join", room);
    const all = members.map((socket) => collect(socket, "message", 40));
    for (let i = 0; i < 40; i++) members[i % 16].emit("publish", room, i % 2 ? `${i} ${text(5_000)}` : Buffer.from(text(5_000)));
    for (const seen of await Promise.all(all)) {
      assert.equal(seen.filter(([message]) => Buffer.isBuffer(message)).length, 20);
      assert.ok(seen.every(([message]) => message.toString().endsWith(text(5_000))));
    }
  });

  test("socket.io-client: what was emitted while the transport changes arrives once, in order", async (t) => {
    const sockets = await Promise.all(Array.from({ length: 10 }, () => clients.connect(t, "/", OPTIONS.upgrade)));
    const room = `u${process.pid}`;
    const seen = sockets.map((socket) => collect(socket, "message", 60));
    await Promise.all(sockets.map((socket) => call(socket, "join", room)));
    const publisher = await clients.connect(t, "/", { transports: ["websocket"] });
    for (let i = 0; i < 60; i++) {
      publisher.emit("publish", room, `${i} ${text(3_000)}`);
      await sleep(2);
    }
    for (const messages of await Promise.all(seen)) {
      assert.deepEqual(messages.map(([message]) => Number.parseInt(message, 10)), Array.from({ length: 60 }, (_, i) => i));
    }
    await Promise.all(sockets.map(upgraded));
  }, { timeout_ms: 20_000 });
}

function browser() {
  const executablePath = [process.env.CHROMIUM, "/usr/bin/chromium-headless-shell", "/usr/bin/chromium"].find((path) => path && existsSync(path));
  const args = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];

  test("Chromium agrees on it by itself, on every route", async (t) => {
    assert.ok(executablePath, "no browser: `make deps` installs chromium-headless-shell");
    const chromiumBrowser = await chromium.launch({ executablePath, args });
    t.defer(() => chromiumBrowser.close());
    const page = await chromiumBrowser.newPage();
    await page.goto(`${server.url}/`);
    for (const path of ["/ws", "/ws-context", "/ws-limited"]) {
      const extensions = await page.evaluate(async (url) => {
        const ws = new WebSocket(url);
        ws.binaryType = "arraybuffer";
        await new Promise((resolve, reject) => ((ws.onopen = resolve), (ws.onerror = reject)));
        const next = () => new Promise((resolve) => (ws.onmessage = ({ data }) => resolve(data)));
        for (let i = 0; i < 50; i++) {
          const message = `${i} été € `.repeat(i * 40);
          const back = next();
          ws.send(message);
          if ((await back) !== message) throw new Error(`message ${i} came back different`);
        }
        const data = new Uint8Array(200_000).map((_, i) => (i * i) >> 3);
        const back = next();
        ws.send(data);
        const bytes = new Uint8Array(await back);
        if (bytes.length !== data.length || bytes.some((byte, i) => byte !== data[i])) throw new Error("binary came back different");
        ws.close(1000);
        const closed = await new Promise((resolve) => (ws.onclose = resolve));
        if (closed.code !== 1000 || !closed.wasClean) throw new Error(`closed with ${closed.code}`);
        return ws.extensions;
      }, server.ws + path);
      assert.match(extensions, /^permessage-deflate/);
    }
  }, { timeout_ms: 30_000 });
}
