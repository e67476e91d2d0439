// Attacks a feature server: whatever arrives, every connection ends with an error answer or a close within BOUND_MS, and two
// honest clients beside it (websocket and polling) get every echo in time. COPIES sets how often each attack runs at once.
import { fork } from "node:child_process";
import { randomBytes } from "node:crypto";
import { fileURLToPath } from "node:url";
import { io } from "socket.io-client";
import { sleep, within } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { call } from "./lib/clients.mjs";
import { Polling, Tcp, request } from "./lib/raw.mjs";

const BOUND_MS = 15_000;
const ECHO_MAX_MS = 3_000;
const HEAVY = /^POST|pipelined|not read/;
const COPIES = Number(process.env.COPIES ?? 8);
// The honest clients live in a process of their own, so that what is measured is the server and not the attacker's event loop.
const HONEST_URL = process.argv[2];
const server = HONEST_URL ? { url: HONEST_URL } : await target("feature_server.js");
const PATH = "/socket.io/?EIO=4&transport=polling";
const TLS_HELLO = Buffer.concat([Buffer.from("16030102000100 01fc0303".replace(" ", ""), "hex"), randomBytes(508)]);
const UPGRADE = "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
/** A client's frame; its mask is zero, so that the payload stands as it is. `bits`: 0x80 for the last one, 0x70 reserved. */
function frame(opcode, payload = "", bits = 0x80) {
  const data = Buffer.from(payload);
  const length = data.length < 126 ? [data.length] : data.length < 65_536 ? [126, data.length >> 8, data.length & 255] : [127, 0, 0, 0, 0, ...Buffer.from(new Uint32Array([data.length]).buffer).reverse()];
  length[0] |= 0x80;
  return Buffer.concat([Buffer.from([bits | opcode, ...length, 0, 0, 0, 0]), data]);
}
const [MORE, TEXT, CLOSE, PING] = [0, 1, 8, 9];
const socket = (...frames) => Buffer.concat([Buffer.from(UPGRADE), ...frames]);
const joined = (...frames) => socket(frame(TEXT, "40"), ...frames);
const many = (count, ...frames) => Buffer.concat(Array(count).fill(Buffer.concat(frames)));
const post = (...lines) => `POST ${PATH} HTTP/1.1\r\nHost: a\r\n${lines.join("\r\n")}`;

/** What is written at once on a new connection; then the attacker only waits. */
const SPOKEN = {
  "nothing at all": "",
  "random bytes": () => randomBytes(2_000),
  "random bytes in lines": () => randomBytes(500).toString("base64").replace(/(.{20})/g, "$1\r\n") + "\r\n\r\n",
  "a TLS hello": TLS_HELLO,
  "an HTTP/2 preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
  "an HTTP/0.9 request": "GET /\r\n\r\n",
  "half a request line": "GET /socket.io/?EIO=4&tra",
  "half a head": `GET ${PATH} HTTP/1.1\r\nHost: a\r\nX-Half: `,
  "a request line of 100 KB": `GET /${"x".repeat(100_000)} HTTP/1.1\r\nHost: a\r\n\r\n`,
  "a header of 100 KB": `GET /nowhere HTTP/1.1\r\nHost: a\r\nX: ${"x".repeat(100_000)}\r\n\r\n`,
  "10,000 headers": `GET /nowhere HTTP/1.1\r\nHost: a\r\n${"X: y\r\n".repeat(10_000)}\r\n`,
  "a head that never ends": `GET /nowhere HTTP/1.1\r\nHost: a\r\n${"X: y\r\n".repeat(50)}`,
  "a NUL in a header": "GET /nowhere HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
  "lone line feeds": "GET /nowhere HTTP/1.1\nHost: a\n\n",
  "a folded header": "GET /nowhere HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
  "no Host": "GET /nowhere HTTP/1.1\r\n\r\n",
  "Content-Length and Transfer-Encoding": post("Content-Length: 3", "Transfer-Encoding: chunked", "", "0\r\n\r\n"),
  "two Content-Lengths": post("Content-Length: 1", "Content-Length: 2", "", "ab"),
  "a negative Content-Length": post("Content-Length: -1", "", ""),
  "a Content-Length beyond numbers": post("Content-Length: 99999999999999999999999", "", ""),
  "a chunk size that is no number": post("Transfer-Encoding: chunked", "", "zz\r\n"),
  "a chunk size beyond numbers": post("Transfer-Encoding: chunked", "", "fffffffffffffffff\r\n"),
  "a chunk without its end": post("Transfer-Encoding: chunked", "", "3\r\nabcdef\r\n"),
  "an unknown transfer coding": post("Transfer-Encoding: gzip", "", ""),
  "an upgrade to something else": "GET /nowhere HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
  "an upgrade on a foreign path": UPGRADE.replace("/socket.io/", "/foreign/"),
  "an upgrade without a key": UPGRADE.replace(/Sec-WebSocket-Key.*\r\n/, ""),
  "a WebSocket that is silent afterwards": UPGRADE,
  "an unmasked frame": Buffer.concat([Buffer.from(UPGRADE), Buffer.from([0x81, 0x02, 0x34, 0x30])]),
  "a cut frame": Buffer.concat([Buffer.from(UPGRADE), Buffer.from([0x81, 0xfe, 0x10])]),
  "a frame of 2^60 bytes": Buffer.concat([Buffer.from(UPGRADE), Buffer.from("81ff1000000000000000", "hex")]),
  "random frames": () => Buffer.concat([Buffer.from(UPGRADE), randomBytes(5_000)]),
  "20,000 empty fragments": joined(frame(TEXT, "", 0), many(20_000, frame(MORE, "", 0))),
  "100,000 fragments of a byte": joined(frame(TEXT, "4", 0), many(100_000, frame(MORE, "x", 0))),
  "a fragment of nothing": joined(frame(MORE, "x")),
  "a message inside another": joined(frame(TEXT, "42", 0), frame(TEXT, "42")),
  "a fragmented ping": joined(frame(PING, "x", 0)),
  "a ping of 126 bytes": joined(frame(PING, "x".repeat(126))),
  "50,000 pings": joined(many(50_000, frame(PING, "x".repeat(125)))),
  "10,000 close frames": joined(many(10_000, frame(CLOSE, "\x03\xe8"))),
  "a close frame of one byte": joined(frame(CLOSE, "x")),
  "reserved bits": joined(frame(TEXT, "42", 0xf0)),
  "an unknown opcode": joined(frame(3, "x")),
  "half a character": joined(frame(TEXT, Buffer.from([0x34, 0xe2, 0x82]), 0), frame(MORE, "x")),
  "an attachment that never comes": joined(frame(TEXT, '451-["echo",{"_placeholder":true,"num":0}]')),
  "text instead of an attachment": joined(frame(TEXT, '451-["echo",{"_placeholder":true,"num":0}]'), frame(TEXT, "42[]")),
  "large attachments before anything": socket(frame(TEXT, '4510-["echo"]'), many(10, frame(2, Buffer.alloc(500_000)))),
  "an attachment of nothing": joined(frame(2, "x")),
  "a second CONNECT while a middleware waits": joined(many(2, frame(TEXT, '40/auth,{"token":"slow"}'))),
  "TLS behind the upgrade": Buffer.concat([Buffer.from(UPGRADE), TLS_HELLO]),
};

// npm socket.io 4.8.4 ends with "Maximum call stack size exceeded" when it echoes this one: not asked of the reference.
const FATAL_TO_REFERENCE = "POST: nested lists, 100,000 deep";

/** Bodies POSTed to a polling session of their own: any answer will do, the session's fate is the server's. */
const POSTED = {
  "nested lists, 100,000 deep": () => `42["echo",${"[".repeat(100_000)}${"]".repeat(100_000)}]`,
  "20,000 packets": () => Array(20_000).fill("42[\"nobody\"]").join("\x1e"),
  "a million separators": () => "\x1e".repeat(1_000_000),
  "an endless acknowledgement id": () => `42${"9".repeat(1_000_000)}["echo"]`,
  "an endless attachment count": () => `45${"9".repeat(100_000)}-["echo"]`,
  "base64 that is none": () => "b!!!!\x1eb=\x1eb=====",
  "text that is no UTF-8": () => Buffer.from([0x34, 0x32, 0x5b, 0x22, 0xff, 0xfe, 0x22, 0x5d]),
  "a million quotes": () => `42[${'"'.repeat(1_000_000)}`,
  "an endless namespace": () => `40/${"n".repeat(1_000_000)},`,
  "100,000 acknowledgements that nobody asked for": () => Array.from({ length: 100_000 }, (_, i) => `43${i}[]`).join("\x1e"),
  "20,000 rooms": () => `420["join",${JSON.stringify(Array.from({ length: 20_000 }, (_, i) => `room ${i}`))}]`,
  "names with a meaning": () => ["connect", "connect_error", "disconnect", "disconnecting", "error", "__proto__", "constructor"].map((name) => `42["${name}",{"__proto__":1}]`).join("\x1e"),
  "packets without end for a client that never polls": () => Array(200).fill(`42["echo","${"x".repeat(19_000)}"]`).join("\x1e"),
  "a lone surrogate": () => String.raw`42["echo","\ud800",{"\u0000":1e999}]`,
  "keys that repeat": () => `42["echo",{${Array(100_000).fill('"k":1').join(",")}}]`,
  "1,000 namespaces": () => Array.from({ length: 1_000 }, (_, i) => `40/dynamic-${i},`).join("\x1e"),
};

/** The connection is over, or the server has said that it is: an error status, or a WebSocket close frame at the end. */
const ended = ({ over, text }) => over || /^HTTP\/1\.\d [45]\d\d /.test(text) || /^HTTP\/1\.1 101 [^]*\x88(\x00|\x02[^]{2})$/.test(text);
const answered = ({ over, text }) => over || /^HTTP\/1\.\d [245]\d\d /.test(text);
const connect = () => Tcp.open(server.host, server.port);

async function speak(bytes) {
  const tcp = await connect();
  tcp.write(typeof bytes === "function" ? bytes() : bytes);
  return finish(tcp, ended);
}

async function finish(tcp, probe) {
  const fine = await tcp.until(probe, BOUND_MS);
  tcp.end();
  if (!fine) throw new Error(`open after ${BOUND_MS} ms; received ${JSON.stringify(tcp.text.slice(0, 80))}`);
}

async function postTo(body) {
  const session = await Polling.open(`${server.url}/socket.io/`);
  await session.post("40");
  const answer = session.post(body()).catch((error) => ({ status: error.code }));
  await within(answer, BOUND_MS, "answer to a POST");
}

async function slowHead() {
  const tcp = await connect();
  const head = `GET ${PATH} HTTP/1.1\r\nHost: a\r\nX-Slow: ${"x".repeat(100)}`;
  const trickle = (async () => {
    for (const byte of head) {
      if (tcp.over) return;
      tcp.write(byte);
      await sleep(200);
    }
  })();
  await finish(tcp, ended);
  await trickle;
}

async function slowBody() {
  const session = await Polling.open(`${server.url}/socket.io/`);
  const tcp = await connect();
  tcp.write(`POST ${PATH}&sid=${session.sid} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n4`);
  await finish(tcp, ended);
}

async function pipelined() {
  const tcp = await connect();
  tcp.write("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2_000));
  await finish(tcp, answered);
}

async function unread() {
  const tcp = await connect();
  tcp.socket.pause();
  tcp.write(`GET ${PATH} HTTP/1.1\r\nHost: a\r\n\r\n`.repeat(500));
  await sleep(3_000);
  tcp.socket.resume();
  await finish(tcp, answered);
}

async function resetMidway() {
  for (const text of [UPGRADE, "GET /socket.io/?EI", post("Content-Length: 100", "", "4")]) {
    const tcp = await connect();
    tcp.write(text);
    tcp.reset();
  }
}

const attacks = Object.fromEntries([
  ...Object.entries(SPOKEN).map(([name, bytes]) => [name, () => speak(bytes)]),
  ...Object.entries(POSTED).map(([name, body]) => [`POST: ${name}`, () => postTo(body)]),
  ["a slow head", slowHead],
  ["a slow body", slowBody],
  ["2,000 pipelined requests", pipelined],
  ["500 handshakes whose answers are not read", unread],
  ["connections that are reset", resetMidway],
]);

/** An honest client that echoes all the time and measures. */
class Honest {
  constructor(transport) {
    Object.assign(this, { transport, echoes: 0, slowest_ms: 0, failures: [] });
    this.socket = io(server.url, { transports: [transport], forceNew: true, reconnection: false });
    this.socket.on("disconnect", (reason) => this.failures.push(`disconnected: ${reason}`));
    this.running = this.run();
  }

  async run() {
    while (!this.stopped) {
      const start = performance.now();
      try {
        const [back] = await call(this.socket, "echo", this.echoes);
        if (back !== this.echoes) this.failures.push(`echo ${this.echoes} came back as ${back}`);
      } catch (error) {
        this.failures.push(error.message);
      }
      this.slowest_ms = Math.max(this.slowest_ms, performance.now() - start);
      this.echoes++;
      await sleep(30);
    }
  }

  async stop() {
    this.stopped = true;
    await this.running;
    this.socket.off("disconnect");
    this.socket.disconnect();
    const slow = this.slowest_ms > ECHO_MAX_MS;
    const fine = !slow && this.failures.length === 0;
    console.log(`${fine ? "ok" : "not ok"} - honest client over ${this.transport}: ${this.echoes} echoes, slowest ${Math.round(this.slowest_ms)} ms`);
    for (const failure of this.failures.slice(0, 5)) console.log(`    ${failure}`);
    return fine;
  }
}

async function attack() {
  const honest = fork(fileURLToPath(import.meta.url), [server.url]);
  const verdict = new Promise((resolve) => honest.once("exit", (code) => resolve(code === 0)));
  await sleep(500);
  const start = performance.now();
  const asked = (name) => !process.env.ONLY || new RegExp(process.env.ONLY).test(name);
  const names = Object.keys(attacks).filter((name) => asked(name) && !(server.isReference && name === FATAL_TO_REFERENCE));
  const results = await Promise.all(names.map(repeat));
  await sleep(500);
  honest.send("stop");
  const served = await verdict;
  const alive = await request(`${server.url}${PATH}`).then(({ status }) => status === 200, () => false);
  console.log(`${alive ? "ok" : "not ok"} - a handshake afterwards`);
  const failed = results.filter((fine) => !fine).length + (served ? 0 : 1) + (alive ? 0 : 1);
  console.log(`# ${names.length} attacks, up to ${COPIES} of each, ${failed} failed, ${Math.round((performance.now() - start) / 100) / 10} s`);
  await server.stop();
  process.exit(failed ? 1 : 0);
}

async function repeat(name) {
  const begun = performance.now();
  // What costs a server real work comes twice only: this is about garbage, not about how much of it one core can take.
  const copies = HEAVY.test(name) ? Math.min(2, COPIES) : COPIES;
  const outcomes = await Promise.allSettled(Array.from({ length: copies }, () => attacks[name]()));
  const errors = outcomes.filter(({ status }) => status === "rejected").map(({ reason }) => reason.message);
  const took = `${Math.round(performance.now() - begun)} ms`;
  console.log(errors.length ? `not ok - ${name} (${took}): ${errors.length} of ${copies}: ${errors[0]}` : `ok - ${name} (${took})`);
  return errors.length === 0;
}

async function beHonest() {
  const clients = ["websocket", "polling"].map((transport) => new Honest(transport));
  await new Promise((resolve) => process.once("message", resolve));
  const fine = await Promise.all(clients.map((client) => client.stop()));
  process.exit(fine.every(Boolean) ? 0 : 1);
}

await (HONEST_URL ? beHonest() : attack());
