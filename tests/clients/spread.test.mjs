// One room, many clients, a stream of broadcasts: every client must get each message once and in order.
// Runs against `fanout_server --workers 3` with the official client, in the modes websocket, polling and mixed; in mixed, 50
// clients move from polling to websocket while the stream runs. MODE, CLIENTS and MESSAGES change the defaults.
//
// The publisher lives in this process, the receivers in two forked ones, which tell how far their slowest client is: the
// publisher keeps at most WINDOW messages ahead of it, so that what is tested is the server and not Node's event loop.
import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { io } from "socket.io-client";
import { call } from "./lib/clients.mjs";
import { assert, run, sleep, test, until } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";

const PROCESSES = 2;
const WINDOW = 100;
const MESSAGES = Number(process.env.MESSAGES ?? 1_000);
const DEFAULTS = { websocket: 300, polling: 300, mixed: 300 };
const BINARY_EVERY = 97;
const LARGE_EVERY = 50;

/** What message number `n` carries: mostly a few bytes, sometimes an attachment, sometimes 10 KB. */
function payload(n) {
  if (n % BINARY_EVERY === 0) return { n, data: Buffer.alloc(100, n % 256) };
  if (n % LARGE_EVERY === 0) return { n, text: "large ".repeat(1_700) };
  return { n, text: "short é" };
}

async function main() {
  const server = await target("fanout_reference.js", ["--workers", "3"]);
  const modes = process.env.MODE ? [process.env.MODE] : Object.keys(DEFAULTS);
  for (const mode of modes) {
    const clients = Number(process.env.CLIENTS ?? DEFAULTS[mode]);
    test(`${mode}: ${clients} clients, ${MESSAGES} messages`, (t) => stream(t, server, mode, clients), { timeout_ms: 58_000 });
  }
  await run({ finish: server.stop });
}

async function stream(t, server, mode, clients) {
  const room = `spread-${mode}-${process.pid}`;
  const crews = Array.from({ length: PROCESSES }, () => new Crew(t, { url: server.url, mode, room, count: clients / PROCESSES }));
  const start = performance.now();
  await until(() => crews.every(({ ready }) => ready), "all clients in the room", 30_000);
  const joined = performance.now();

  const publisher = io(server.url, { transports: ["websocket"], forceNew: true, reconnection: false });
  t.defer(() => publisher.disconnect());
  await call(publisher, "echo", "ready");
  const slowest = () => Math.min(...crews.map(({ progress }) => progress));
  let stalls = 0;
  for (let n = 0; n < MESSAGES; n++) {
    if (n % 10 === 0) {
      await call(publisher, "echo", n);
      // A client that lost messages must not stop the stream: count the stall and go on.
      await until(() => n - slowest() < WINDOW, "room in the window", 5_000).catch(() => stalls++);
    }
    publisher.emit("publish", room, payload(n));
  }
  await until(() => slowest() >= MESSAGES, "all messages", 5_000).catch(() => stalls++);
  const streamed = performance.now();
  await sleep(300);

  const results = await Promise.all(crews.map((crew) => crew.finish()));
  const sum = (key) => results.reduce((total, result) => total + result[key], 0);
  const counts = Object.fromEntries(["received", "lost", "duplicated", "disordered", "damaged", "disconnected", "upgraded"].map((key) => [key, sum(key)]));
  const seconds = (from, to) => Math.round((to - from) / 100) / 10;
  t.note(`${mode}: ${JSON.stringify({ clients, messages: MESSAGES, ...counts, stalls })}`);
  t.note(`joined in ${seconds(start, joined)} s, streamed in ${seconds(joined, streamed)} s, ${Math.round((counts.received / (streamed - joined)) * 1_000)} deliveries/s`);
  for (const key of ["lost", "duplicated", "disordered", "damaged", "disconnected"]) assert.equal(counts[key], 0, key);
  assert.equal(counts.received, clients * MESSAGES);
  if (mode === "mixed") assert.equal(counts.upgraded, 50);
}

/** A forked process with its share of the clients, as the publisher sees it. */
class Crew {
  constructor(t, job) {
    this.ready = false;
    this.progress = 0;
    this.child = fork(fileURLToPath(import.meta.url), { stdio: "inherit" });
    t.defer(() => this.child.kill("SIGKILL"));
    this.done = new Promise((resolve) => {
      this.child.on("message", ({ ready, progress, result }) => {
        if (ready) this.ready = true;
        if (progress !== undefined) this.progress = progress;
        if (result) resolve(result);
      });
    });
    this.child.send(job);
  }

  finish() {
    this.child.send({ finish: true });
    return this.done;
  }
}

/** The forked side. */
function receivers() {
  const clients = [];
  process.on("disconnect", () => process.exit(0));
  process.on("message", async (job) => {
    if (job.finish) return process.send({ result: tally(clients) });
    const kinds = Array.from({ length: job.count }, (_, i) => kindOf(job.mode, i));
    while (clients.length < kinds.length) {
      const batch = kinds.slice(clients.length, clients.length + 25).map((kind) => new Receiver(job, kind));
      clients.push(...batch);
      await Promise.all(batch.map((client) => client.joined));
    }
    process.send({ ready: true });
    watch(clients);
  });
}

/** Of every six mixed clients four are on websocket, one polls, one upgrades during the stream. */
function kindOf(mode, i) {
  return mode === "mixed" ? ["websocket", "polling", "websocket", "upgrading", "websocket", "websocket"][i % 6] : mode;
}

/** Tells the slowest client's progress, and starts the upgrades one after the other between 20 % and 80 % of the stream. */
function watch(clients) {
  const upgrading = clients.filter(({ kind }) => kind === "upgrading");
  let told = -1;
  setInterval(() => {
    const progress = clients.reduce((least, { highest }) => Math.min(least, highest + 1), Infinity);
    if (progress !== told) process.send({ progress: (told = progress) });
    const due = Math.min(1, Math.max(0, (progress / MESSAGES - 0.2) / 0.6)) * upgrading.length;
    for (const client of upgrading.slice(0, Math.ceil(due))) client.upgrade();
  }, 10);
}

class Receiver {
  constructor({ url, room }, kind) {
    Object.assign(this, { kind, seen: new Set(), highest: -1, received: 0, duplicated: 0, disordered: 0, damaged: 0, disconnected: 0, upgraded: 0 });
    const transports = kind === "websocket" || kind === "polling" ? [kind] : ["polling", "websocket"];
    this.socket = io(url, { transports, upgrade: false, forceNew: true, reconnection: false });
    this.socket.on("message", (message) => this.take(message));
    this.socket.on("disconnect", () => this.disconnected++);
    this.joined = call(this.socket, "join", room);
  }

  take(message) {
    const { n } = message;
    this.received++;
    if (this.seen.has(n)) this.duplicated++;
    else if (n < this.highest) this.disordered++;
    this.seen.add(n);
    this.highest = Math.max(this.highest, n);
    const expected = payload(n);
    const intact = expected.data ? expected.data.equals(message.data) : expected.text === message.text;
    if (!intact) this.damaged++;
  }

  upgrade() {
    if (this.upgrading) return;
    this.upgrading = true;
    const { engine } = this.socket.io;
    engine.once("upgrade", () => this.upgraded++);
    engine._probe("websocket");
  }
}

function tally(clients) {
  const total = { lost: 0 };
  for (const key of ["received", "duplicated", "disordered", "damaged", "disconnected", "upgraded"]) {
    total[key] = clients.reduce((sum, client) => sum + client[key], 0);
  }
  for (const { seen } of clients) total.lost += MESSAGES - seen.size;
  return total;
}

if (process.send) receivers();
else await main();
