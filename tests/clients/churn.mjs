// 10,000 connections that come and go in every way: WebSockets closed or cut, polling sessions abandoned in a poll, heads cut
// in half. Afterwards the server must know no session of them, and (given SOCKRING_PID) hold no descriptor of them.
import { readdirSync, readFileSync } from "node:fs";
import { io } from "socket.io-client";
import { assert, run, sleep, test, until } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { call } from "./lib/clients.mjs";
import { Polling, Tcp, Ws } from "./lib/raw.mjs";

const COUNT = Number(process.env.COUNT ?? 10_000);
const PARALLEL = 40;
const FD_SLACK = 8;
const server = await target("feature_server.js");
const wsUrl = `${server.ws}/socket.io/?EIO=4&transport=websocket`;

async function webSocket(i) {
  const ws = await Ws.open(wsUrl);
  await ws.next();
  ws.send("40");
  for (;;) {
    const packet = await ws.next();
    assert.ok(packet.startsWith("40{") || packet.startsWith('42["welcome"'), packet);
    if (packet.startsWith("42")) break;
  }
  ws.send('420["echo",1]');
  assert.equal(await ws.next(), "430[1]");
  if (i % 2) ws.end();
  else {
    ws.socket.close();
    await ws.gone();
  }
}

async function pollingCut() {
  const session = await Polling.open(`${server.url}/socket.io/`);
  await session.post("40");
  await session.get();
  const cut = new AbortController();
  const poll = session.get({ signal: cut.signal }).catch(() => {});
  await sleep(5);
  cut.abort();
  await poll;
}

async function pollingAbandoned() {
  await Polling.open(`${server.url}/socket.io/`);
}

async function halfHead() {
  const tcp = await Tcp.open(server.host, server.port);
  tcp.write("GET /socket.io/?EIO=4&transport=poll");
  tcp.end();
}

async function cutUpgrade() {
  const tcp = await Tcp.open(server.host, server.port);
  tcp.write("GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n");
  if (Math.random() < 0.5) tcp.reset();
  else tcp.end();
}

/** Of every ten connections: five WebSockets, two cut polls, one abandoned session, one half head, one cut upgrade. */
const WAYS = [webSocket, webSocket, pollingCut, webSocket, halfHead, webSocket, pollingAbandoned, webSocket, pollingCut, cutUpgrade];

async function churn(count) {
  let next = 0;
  const failures = [];
  const worker = async () => {
    while (next < count) {
      const i = next++;
      await WAYS[i % WAYS.length](i).catch((error) => failures.push(`${WAYS[i % WAYS.length].name}: ${error.message}`));
    }
  };
  await Promise.all(Array.from({ length: PARALLEL }, worker));
  return failures;
}

const descriptors = () => readdirSync(`/proc/${server.pid}/fd`).length;
const resident_kib = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${server.pid}/status`, "utf8"))[1]);

test(`${COUNT} connections come and go`, async (t) => {
  const witness = io(server.url, { transports: ["websocket"], reconnection: false });
  t.defer(() => witness.disconnect());
  const sessions = async () => (await call(witness, "clients-count"))[0];
  const settled = () => until(async () => (await sessions()) === 1, "one session left", 12_000);

  await churn(200);
  await settled();
  // What is kept is measured against a warm server, whose pools and caches exist already.
  const before = server.pid && { fds: descriptors(), rss: resident_kib() };
  const start = performance.now();
  const failures = await churn(COUNT);
  const took = performance.now() - start;
  assert.deepEqual(failures.slice(0, 5), [], `${failures.length} of ${COUNT} failed`);
  t.note(`${COUNT} connections in ${Math.round(took / 100) / 10} s, ${Math.round((COUNT / took) * 1_000)}/s`);
  await settled();
  if (before) {
    await until(() => descriptors() <= before.fds + FD_SLACK, `descriptors back at ${before.fds}`, 12_000).catch((error) => {
      throw new Error(`${error.message}, now ${descriptors()}`);
    });
    t.note(`descriptors ${before.fds} before, ${descriptors()} after; resident ${before.rss} KiB before, ${resident_kib()} after`);
  }
  assert.equal(witness.connected, true);
}, { timeout_ms: 59_000 });

await run({ finish: server.stop });
