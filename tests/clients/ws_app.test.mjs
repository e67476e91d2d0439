// The npm `ws` client and raw sockets against the App layer of `fanout_server`: WebSocket echo and topics at /ws, HTTP at /.
import { randomBytes } from "node:crypto";
import { assert, run, sleep, test, until, within } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { Tcp, Ws, request } from "./lib/raw.mjs";

const server = await target("fanout_reference.js");
const url = `${server.ws}/ws`;
const MASK = [1, 2, 3, 4];

const open = async (t, options) => {
  const ws = await Ws.open(url, { perMessageDeflate: false, ...options });
  ws.answerPings = false;
  t.defer(() => ws.end());
  return ws;
};

/** One client frame, as wrong as the arguments say. */
function frame(first, payload = Buffer.alloc(0), { masked = true, length } = {}) {
  const data = Buffer.from(payload);
  const size = length ?? BigInt(data.length);
  const bit = masked ? 0x80 : 0;
  let head;
  if (length === undefined && size < 126n) head = Buffer.from([first, bit | Number(size)]);
  else if (length === undefined && size < 65_536n) head = Buffer.from([first, bit | 126, Number(size) >> 8, Number(size) & 255]);
  else {
    head = Buffer.alloc(10);
    head.set([first, bit | 127]);
    head.writeBigUInt64BE(size, 2);
  }
  if (!masked) return Buffer.concat([head, data]);
  return Buffer.concat([head, Buffer.from(MASK), data.map((byte, i) => byte ^ MASK[i % 4])]);
}

/** A WebSocket on a plain TCP connection, past the handshake. */
async function rawWs(t) {
  const tcp = await Tcp.open(server.host, server.port);
  t.defer(() => tcp.end());
  const key = randomBytes(16).toString("base64");
  tcp.write(`GET /ws HTTP/1.1\r\nHost: ${server.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: ${key}\r\nSec-WebSocket-Version: 13\r\n\r\n`);
  assert.ok(await tcp.until(({ text }) => text.includes("\r\n\r\n")), "no handshake");
  assert.match(tcp.text, /^HTTP\/1\.1 101 /);
  tcp.bytes = tcp.bytes.subarray(tcp.text.indexOf("\r\n\r\n") + 4);
  return tcp;
}

/** The close code that ends the bytes received. */
const closeCode = (bytes) => {
  const at = bytes.lastIndexOf(0x88);
  return at >= 0 && bytes.length >= at + 4 ? bytes.readUInt16BE(at + 2) : undefined;
};

echoes();
controls();
broken();
topics();
http();
await run({ parallel: 3, finish: server.stop });

function echoes() {
  test("text and binary come back as such", async (t) => {
    const ws = await open(t);
    for (const message of ["hello", "тест €🏳️‍🌈", "", Buffer.from([0, 255]), Buffer.alloc(0)]) {
      ws.send(message);
      assert.deepEqual(await ws.next(), message);
    }
  });

  test("every length class", async (t) => {
    const ws = await open(t);
    for (const size of [1, 124, 125, 126, 127, 128, 4_095, 65_535, 65_536, 65_537, 1_000_000]) {
      const data = randomBytes(size);
      ws.send(data);
      assert.ok((await ws.next()).equals(data), `${size} bytes`);
    }
  });

  test("a message of 16 MiB", async (t) => {
    const ws = await open(t);
    const data = Buffer.alloc(16 << 20, "sixteen ");
    ws.send(data);
    assert.ok((await ws.next(10_000)).equals(data));
  }, { timeout_ms: 20_000 });

  test("a message of 65,536 fragments", async (t) => {
    const ws = await open(t);
    const count = 65_536;
    for (let i = 0; i < count; i++) {
      ws.socket.send("x", { fin: i === count - 1 });
      if (i % 4_096 === 0) await sleep(1);
    }
    const back = await ws.next(15_000);
    assert.equal(back.length, count);
    assert.equal(typeof back, "string");
  }, { timeout_ms: 25_000 });

  test("2,000 messages in one go keep their order", async (t) => {
    const ws = await open(t);
    for (let i = 0; i < 2_000; i++) ws.send(`m${i}`);
    for (let i = 0; i < 2_000; i++) assert.equal(await ws.next(), `m${i}`);
  });

  test("frames that arrive byte by byte, and many in one segment", async (t) => {
    const tcp = await rawWs(t);
    for (const byte of frame(0x81, "slow")) {
      tcp.write(Buffer.from([byte]));
      await sleep(1);
    }
    assert.ok(await tcp.until(({ text }) => text.includes("slow")));
    tcp.write(Buffer.concat(Array.from({ length: 100 }, (_, i) => frame(0x81, `<${i}>`))));
    assert.ok(await tcp.until(({ text }) => text.includes("<99>")));
  });

  test("compression is agreed on or not, messages come back either way", async (t) => {
    const ws = await open(t, { perMessageDeflate: true });
    const text = "compress me ".repeat(1_000);
    for (let i = 0; i < 5; i++) {
      ws.send(text + i);
      assert.equal(await ws.next(), text + i);
    }
    t.note(`extensions: ${JSON.stringify(ws.socket.extensions)}`);
  });
}

function controls() {
  test("a ping is answered by a pong with its payload, also between fragments", async (t) => {
    const ws = await open(t);
    const pong = () => within(new Promise((resolve) => ws.socket.once("pong", resolve)), 3_000, "pong");
    const first = pong();
    ws.socket.ping("are you there");
    assert.equal((await first).toString(), "are you there");
    ws.socket.send("one ", { fin: false });
    const second = pong();
    ws.socket.ping(Buffer.alloc(125, 1));
    assert.equal((await second).length, 125);
    ws.socket.send("two", { fin: true });
    assert.equal(await ws.next(), "one two");
  });

  test("an unasked pong is ignored", async (t) => {
    const ws = await open(t);
    ws.socket.pong("unasked");
    ws.send("still");
    assert.equal(await ws.next(), "still");
  });

  for (const code of [1000, 1001, 1003, 1011, 3000, 4999]) {
    test(`a close with ${code} comes back with ${code}`, async (t) => {
      const ws = await open(t);
      ws.socket.close(code, "bye");
      assert.equal((await ws.gone()).code, code);
    });
  }

  test("a close without a code comes back without one", async (t) => {
    const ws = await open(t);
    ws.socket.close();
    assert.ok([1000, 1005].includes((await ws.gone()).code));
  });
}

function broken() {
  const text = (...bytes) => Buffer.from(bytes);
  const code = (value) => text(value >> 8, value & 255);
  const cases = [
    ["an unmasked frame", [frame(0x81, "x", { masked: false })], 1002],
    ["reserved bits 2 and 3", [frame(0xb1, "x")], 1002],
    ["reserved bit 1 without an extension", [frame(0xc1, "x")], 1002],
    ["opcode 3", [frame(0x83, "x")], 1002],
    ["opcode 11", [frame(0x8b, "x")], 1002],
    ["a fragmented ping", [frame(0x09, "x")], 1002],
    ["a ping of 126 bytes", [frame(0x89, Buffer.alloc(126))], 1002],
    ["a continuation of nothing", [frame(0x80, "x")], 1002],
    ["a new message within a fragmented one", [frame(0x01, "a"), frame(0x81, "b")], 1002],
    ["a close payload of one byte", [frame(0x88, text(3))], 1002],
    ["close code 999", [frame(0x88, code(999))], 1002],
    ["close code 1004", [frame(0x88, code(1004))], 1002],
    ["close code 1005", [frame(0x88, code(1005))], 1002],
    ["close code 1006", [frame(0x88, code(1006))], 1002],
    ["close code 2999", [frame(0x88, code(2999))], 1002],
    ["close code 5000", [frame(0x88, code(5000))], 1002],
    ["a close reason that is no UTF-8", [frame(0x88, Buffer.concat([code(1000), text(0xff)]))], 1007],
    ["text that is no UTF-8", [frame(0x81, text(0x61, 0xff))], 1007],
    ["text with a surrogate", [frame(0x81, text(0xed, 0xa0, 0x80))], 1007],
    ["text that is overlong", [frame(0x81, text(0xc0, 0xaf))], 1007],
    ["text that ends within a character", [frame(0x81, text(0xe2, 0x82))], 1007],
    ["text that is no UTF-8, over two fragments", [frame(0x01, "a"), frame(0x80, text(0xc3, 0x28))], 1007],
    ["a length over the limit", [frame(0x82, "x", { length: (16n << 20n) + 1n })], 1009],
    ["a length over 2^53", [frame(0x82, "x", { length: 1n << 60n })], 1009],
    ["fragments over the limit", Array.from({ length: 17 }, (_, i) => frame(i ? 0x00 : 0x02, Buffer.alloc(1 << 20))), 1009],
  ];
  for (const [name, frames, expected] of cases) {
    test(`broken: ${name} closes with ${expected}`, async (t) => {
      const tcp = await rawWs(t);
      for (const data of frames) tcp.write(data);
      await within(tcp.closed.then(() => {}), 5_000, "end of the connection").catch(() => {});
      assert.equal(closeCode(tcp.bytes), expected);
    }, { timeout_ms: 15_000 });
  }

  test("text split inside a character, over fragments, is fine", async (t) => {
    const tcp = await rawWs(t);
    tcp.write(Buffer.concat([frame(0x01, text(0xe2)), frame(0x00, text(0x82)), frame(0x80, text(0xac))]));
    assert.ok(await tcp.until(({ bytes }) => bytes.includes("€")));
  });

  test("upgrades that are wrong are refused", async (t) => {
    const good = { Upgrade: "websocket", Connection: "Upgrade", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13" };
    const variants = [
      { ...good, "Sec-WebSocket-Version": "12" },
      { ...good, "Sec-WebSocket-Key": "short" },
      { ...good, "Sec-WebSocket-Key": undefined },
    ];
    for (const headers of variants) {
      const tcp = await Tcp.open(server.host, server.port);
      t.defer(() => tcp.end());
      const lines = Object.entries(headers).filter(([, value]) => value).map(([name, value]) => `${name}: ${value}\r\n`);
      tcp.write(`GET /ws HTTP/1.1\r\nHost: a\r\n${lines.join("")}\r\n`);
      await tcp.until(({ text: head }) => head.includes("\r\n\r\n"));
      assert.match(tcp.text, /^HTTP\/1\.1 4\d\d /);
    }
  });

  test("the handshake's answer is the one of RFC 6455", async (t) => {
    const tcp = await Tcp.open(server.host, server.port);
    t.defer(() => tcp.end());
    tcp.write("GET /ws HTTP/1.1\r\nHost: a\r\nUPGRADE: WebSocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n");
    await tcp.until(({ text: head }) => head.includes("\r\n\r\n"));
    assert.match(tcp.text, /^HTTP\/1\.1 101 /);
    assert.match(tcp.text, /sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK\+xOo=\r\n/i);
  });

  test("a first frame that comes with the handshake's request is not lost", async (t) => {
    const tcp = await Tcp.open(server.host, server.port);
    t.defer(() => tcp.end());
    const head = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    tcp.write(Buffer.concat([Buffer.from(head), frame(0x81, "eager")]));
    assert.ok(await tcp.until((now) => now.text.includes("eager")));
  });
}

function topics() {
  test("a topic's subscribers get what is published, once and in order, others nothing", async (t) => {
    const [publisher, outsider, ...members] = await Promise.all(Array.from({ length: 12 }, () => open(t)));
    const topic = `t${process.pid}`;
    for (const ws of members) ws.send(`sub ${topic}`);
    outsider.send(`sub ${topic}-other`);
    // Subscriptions reach every core a moment later: publish until all hear.
    await until(async () => {
      publisher.send(`pub ${topic} warm`);
      await sleep(30);
      return members.every(({ queue }) => queue.length > 0);
    }, "a subscription on every core");
    for (let i = 0; i < 500; i++) publisher.send(`pub ${topic} number ${i} é`);
    const rest = async (ws) => {
      const seen = [];
      while (seen.length < 500) {
        const message = await ws.next();
        if (message !== "warm") seen.push(message);
      }
      return seen;
    };
    const expected = Array.from({ length: 500 }, (_, i) => `number ${i} é`);
    for (const seen of await Promise.all(members.map(rest))) assert.deepEqual(seen, expected);
    outsider.send("anything");
    assert.equal(await outsider.next(), "anything");
  });

  test("a subscriber that left is no member any more", async (t) => {
    const [publisher, member] = [await open(t), await open(t)];
    member.send("sub gone");
    member.end();
    await sleep(30);
    publisher.send("pub gone x");
    publisher.send("alive");
    assert.equal(await publisher.next(), "alive");
  });
}

function http() {
  const root = `${server.url}/`;
  const raw = async (t, text, done, ms) => {
    const tcp = await Tcp.open(server.host, server.port);
    t.defer(() => tcp.end());
    tcp.write(text);
    await tcp.until(done, ms);
    return tcp;
  };
  const heads = (text) => text.split("HTTP/1.1 ").slice(1);

  test("GET / answers 200 with a body", async () => {
    const response = await request(root);
    assert.equal(response.status, 200);
    assert.ok(response.text.length > 0);
    assert.equal(Number(response.headers["content-length"]), response.bytes.length);
  });

  test("POST / answers the body: empty, text, binary, chunked, large", async () => {
    for (const body of ["", "hello", randomBytes(5_000), randomBytes(500_000)]) {
      const response = await request(root, { method: "POST", body });
      assert.equal(response.status, 200);
      assert.ok(response.bytes.equals(Buffer.from(body)));
    }
    const response = await request(root, { method: "POST", chunks: ["a", "bc", "", "def"] });
    assert.equal(response.text, "abcdef");
  });

  test("HEAD / answers the head of GET and no body", async (t) => {
    const tcp = await raw(t, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", () => false, 1_500);
    const [head, get] = heads(tcp.text);
    assert.match(head, /^200 /);
    assert.ok(head.endsWith("\r\n\r\n"), "a body follows HEAD's head");
    assert.match(get, /^200 /);
  });

  test("unknown paths answer 404", async () => {
    for (const path of ["nowhere", "socket.io", "ws2", "%2f"]) assert.equal((await request(root + path)).status, 404, path);
  });

  test("GET /ws without an upgrade is refused", async () => {
    const { status } = await request(`${root}ws`);
    assert.ok(status >= 400 && status < 500, String(status));
  });

  test("one connection serves many requests", async (t) => {
    const tcp = await Tcp.open(server.host, server.port);
    t.defer(() => tcp.end());
    for (let i = 1; i <= 20; i++) {
      tcp.write(`POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n#${String(i).padStart(3, "0")}`);
      assert.ok(await tcp.until(({ text }) => text.includes(`#${String(i).padStart(3, "0")}`)), `request ${i}`);
    }
  });

  test("pipelined requests are answered in order", async (t) => {
    const one = (i) => `POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n#${String(i).padStart(3, "0")}`;
    const all = Array.from({ length: 50 }, (_, i) => one(i)).join("");
    const tcp = await raw(t, all, ({ text }) => text.includes("#049"));
    const seen = [...tcp.text.matchAll(/#(\d{3})/g)].map(([, i]) => Number(i));
    assert.deepEqual(seen, Array.from({ length: 50 }, (_, i) => i));
  });

  test("Connection: close and HTTP/1.0 end the connection after the answer", async (t) => {
    for (const head of ["GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"]) {
      const tcp = await raw(t, head, () => false, 3_000);
      assert.ok(tcp.over, "still open");
      assert.match(tcp.text, /^HTTP\/1\.\d 200 /);
    }
  });

  test("Expect: 100-continue is answered before the body", async (t) => {
    const head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    const tcp = await raw(t, head, ({ text }) => text.includes("100 Continue"), 2_000);
    assert.match(tcp.text, /^HTTP\/1\.1 100 /);
    tcp.write("after");
    assert.ok(await tcp.until(({ text }) => text.endsWith("after")));
  });

  test("broken requests are refused and the connection ends", async (t) => {
    const broken = [
      "GET / HTTP/1.1\r\n\r\n",
      "NONSENSE\r\n\r\n",
      "GET / HTTP/9.9\r\nHost: a\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: abc\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
      "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      "GET / HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n",
      "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    ];
    for (const text of broken) {
      const tcp = await raw(t, text, () => false, 3_000);
      assert.ok(tcp.over, `still open: ${JSON.stringify(text)}`);
      assert.ok(tcp.text === "" || /^HTTP\/1\.\d [45]\d\d /.test(tcp.text), `${JSON.stringify(text)}: ${tcp.text.slice(0, 60)}`);
    }
  }, { timeout_ms: 30_000 });
}
