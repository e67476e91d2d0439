// Tabs of a real browser beside a saturated server: many official clients share a browser's few keep-alive connections, so that
// requests of sessions on all cores come over each of them, while other clients keep the cores busy. Runs against
// `fanout_server --workers 3`. No live session may be answered 400, and every client gets every message in order.
import { fork } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { io } from "socket.io-client";
import { call } from "./lib/clients.mjs";
import { assert, run, sleep, test, within } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";

const BROWSERS = [process.env.CHROMIUM, "/usr/bin/chromium-headless-shell", "/usr/bin/chromium"];
const ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const BUNDLE = fileURLToPath(new URL("node_modules/socket.io-client/dist/socket.io.js", import.meta.url));
const STREAM_MS = Number(process.env.STREAM_MS ?? 12_000);
const TABS = 3;
// A browser opens six connections to a host, for all tabs together, and a poll that hangs takes one: polling clients stay few.
const POLLING_PER_TAB = 1;
const UPGRADING_PER_TAB = 4;
const NOISY_CLIENTS = 30;

/** Runs in the page: one client that listens to the stream and echoes; polls all the time, or upgrades, leaves and comes back. */
function startClients({ room, polling, upgrading }) {
  const state = { stopping: false, clients: [], left: [], failures: [] };
  window.state = state;
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const options = { forceNew: true, reconnection: false };

  function listen(client) {
    let expected = null;
    client.socket.on("message", ({ n }) => {
      if (expected !== null && n !== expected) state.failures.push(`${client.name}: message ${n} instead of ${expected}`);
      expected = n + 1;
      client.heard++;
      client.last = n;
    });
    client.socket.on("disconnect", (reason) => client.leaving || state.failures.push(`${client.name}: disconnected: ${reason}`));
    client.socket.on("connect_error", (error) => state.failures.push(`${client.name}: ${error.message} ${error.description ?? ""}`));
    client.socket.io.engine.on("upgrade", () => client.upgrades++);
  }

  async function live(client, rounds) {
    const { socket } = client;
    await socket.timeout(20_000).emitWithAck("join", room);
    for (let i = 0; rounds === undefined ? !state.stopping : i < rounds; i++) {
      const asked = [1, 2, 3].map((k) => socket.timeout(20_000).emitWithAck("echo", `${i} ${k}`));
      const answers = await Promise.all(asked);
      client.echoes += 3;
      if (String(answers) !== `${i} 1,${i} 2,${i} 3`) state.failures.push(`${client.name}: echoed ${answers}`);
      await pause(15);
    }
  }

  async function stay(client) {
    client.socket = io({ ...options, transports: ["polling"] });
    listen(client);
    await live(client);
  }

  async function comeAndGo(client) {
    while (!state.stopping) {
      client.socket = io({ ...options });
      client.leaving = false;
      listen(client);
      await live(client, 12);
      client.leaving = true;
      state.left.push(client.socket.io.engine.id);
      client.socket.disconnect();
      client.lives++;
    }
  }

  const kinds = [...Array(polling).fill(stay), ...Array(upgrading).fill(comeAndGo)];
  state.running = kinds.map((kind, i) => {
    const client = { name: `${kind.name} ${i}`, heard: 0, last: -1, echoes: 0, upgrades: 0, lives: 0 };
    state.clients.push(client);
    return kind(client).catch((error) => state.failures.push(`${client.name}: ${error.message}`));
  });
}

/** Runs in the page: waits until every client has done what it was doing, and tells. */
async function finishClients(last) {
  const { state } = window;
  state.stopping = true;
  await Promise.all(state.running);
  const staying = state.clients.filter(({ name }) => name.startsWith("stay"));
  const end = Date.now() + 15_000;
  while (staying.some((client) => client.last < last) && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 20));
  const clients = state.clients.map(({ socket, leaving, ...rest }) => rest);
  return { clients, left: state.left, failures: state.failures };
}

/** A tab with its clients, and what the browser saw of the server's answers. */
async function openTab(t, context, room, kinds) {
  const page = await context.newPage();
  const seen = { answers: 0, reused: 0, connections: new Set(), refused: [] };
  const devtools = await context.newCDPSession(page);
  await devtools.send("Network.enable");
  devtools.on("Network.responseReceived", ({ type, response }) => {
    if (type === "Document" || response.status === 101) return;
    seen.answers++;
    seen.reused += response.connectionReused ? 1 : 0;
    seen.connections.add(response.connectionId);
    if (response.status >= 400) seen.refused.push(`${response.status} ${response.url}`);
  });
  page.on("pageerror", (error) => seen.refused.push(error.message));
  await page.goto(server.url);
  await page.addScriptTag({ path: BUNDLE });
  await page.evaluate(startClients, { room, ...kinds });
  return { page, seen };
}

/** Clients in a process of their own that keep every core busy with handlers that take their time, and with bursts of broadcasts.
 * Each asks for more when it has an answer. */
async function makeNoise() {
  const sockets = Array.from({ length: NOISY_CLIENTS }, () => io(process.argv[2], { transports: ["websocket"], forceNew: true }));
  await Promise.all(sockets.map((socket) => call(socket, "join", "noise")));
  let done = 0;
  sockets.forEach(async (socket, i) => {
    for (let round = i; ; round++) {
      if (round % 20 === 0) for (let k = 0; k < 20; k++) socket.emit("publish", "noise", { k, text: "x".repeat(300) });
      await new Promise((resolve) => socket.emit("busy", 10, resolve));
      done++;
    }
  });
  process.send("ready");
  process.on("message", () => process.send(done, () => process.exit(0)));
}

/** Seconds of processor time that the server has used, if it can be looked at. */
function processorTime() {
  const stat = server.pid ? readFileSync(`/proc/${server.pid}/stat`, "utf8") : "";
  const [user, system] = stat.slice(stat.lastIndexOf(")") + 2).split(" ").slice(11, 13);
  return (Number(user) + Number(system)) / 100;
}

/** Noise, tabs, and a stream of messages to all clients in them: what the tabs tell in the end. */
async function besiege(t) {
  const room = `stream-${process.pid}-${Math.random()}`;
  const noise = fork(fileURLToPath(import.meta.url), [server.url]);
  t.defer(() => noise.kill("SIGKILL"));
  await within(new Promise((resolve) => noise.once("message", resolve)), 20_000, "noise");
  const context = await browser.newContext();
  t.defer(() => context.close());
  const kinds = { polling: POLLING_PER_TAB, upgrading: UPGRADING_PER_TAB };
  const tabs = await Promise.all(Array.from({ length: TABS }, () => openTab(t, context, room, kinds)));

  const publisher = io(server.url, { transports: ["websocket"], forceNew: true, reconnection: false });
  t.defer(() => publisher.disconnect());
  let n = 0;
  const [start, used] = [performance.now(), processorTime()];
  const end = start + STREAM_MS;
  while (performance.now() < end) {
    for (let k = 0; k < 5; k++) publisher.emit("publish", room, { n: n++ });
    await call(publisher, "echo", n);
    await sleep(20);
  }
  const cores = (processorTime() - used) / ((performance.now() - start) / 1_000);
  const told = await Promise.all(tabs.map(({ page }) => within(page.evaluate(finishClients, n - 1), 45_000, "end of a tab")));
  const worked = new Promise((resolve) => noise.once("message", resolve));
  noise.send("stop");
  return { told, tabs, published: n, worked: await worked, cores };
}

test("tabs of a browser beside a saturated server", async (t) => {
  const { told, tabs, published, worked, cores } = await besiege(t);
  const left = new Set(told.flatMap((tab) => tab.left));
  // A client that leaves may have a request on its way for a session that it has just closed itself.
  const refused = tabs.flatMap(({ seen }) => seen.refused).filter((text) => !left.has(/sid=([\w-]+)/.exec(text)?.[1]));
  const clients = told.flatMap((tab) => tab.clients);
  const sum = (key, kind) => clients.filter(({ name }) => name.startsWith(kind)).reduce((total, client) => total + client[key], 0);
  const answers = tabs.reduce((total, { seen }) => total + seen.answers, 0);
  const reused = tabs.reduce((total, { seen }) => total + seen.reused, 0);
  const connections = new Set(tabs.flatMap(({ seen }) => [...seen.connections])).size;
  t.note(JSON.stringify({ published, echoes: sum("echoes", ""), lives: sum("lives", ""), upgrades: sum("upgrades", ""), answers, reused, connections, noise: worked, cores: Math.round(cores * 100) / 100 }));
  assert.deepEqual(told.flatMap((tab) => tab.failures), []);
  assert.deepEqual(refused, []);
  for (const { name, last, heard } of clients) {
    if (name.startsWith("stay")) assert.equal(last, published - 1, `${name} has heard ${heard}`);
  }
  assert.ok(sum("lives", "come") >= (TABS * UPGRADING_PER_TAB) / 2, "clients come and go");
  assert.ok(sum("upgrades", "come") >= sum("lives", "come") / 2, "clients upgrade");
  assert.ok(reused > answers * 0.9, "requests share connections");
}, { timeout_ms: 90_000 });

test("a browser's connection serves pages, files and sessions of all cores in turn", async (t) => {
  const context = await browser.newContext();
  t.defer(() => context.close());
  const page = await context.newPage();
  await page.goto(server.url);
  const result = await page.evaluate(async () => {
    const ask = async (url, options) => {
      const response = await fetch(url, { cache: "no-store", ...options });
      return `${response.status} ${await response.text()}`;
    };
    const path = "/socket.io/?EIO=4&transport=polling";
    const sessions = [];
    const wrong = [];
    const expect = (what, answer, pattern) => pattern.test(answer) || wrong.push(`${what}: ${answer}`);
    for (let i = 0; i < 12; i++) {
      const answer = await ask(path);
      expect("handshake", answer, /^200 0\{/);
      sessions.push(`${path}&sid=${JSON.parse(answer.slice(5)).sid}`);
    }
    for (const session of sessions) expect("connect", await ask(session, { method: "POST", body: "40" }), /^200 ok$/);
    for (const session of sessions) expect("connected", await ask(session), /^200 40\{"sid":/);
    for (let round = 0; round < 20; round++) {
      await Promise.all(sessions.map(async (session, i) => {
        if (i % 3 === 0) expect("page", await ask("/"), /^200 /);
        expect("echo", await ask(session, { method: "POST", body: `42${round}["echo",${i}]` }), /^200 ok$/);
        if (i % 4 === 0) expect("nothing", await ask("/nowhere"), /^404 /);
        expect("echoed", await ask(session), new RegExp(`^200 (2\\x1e)?43${round}\\[${i}\\]$`));
      }));
    }
    const entries = performance.getEntriesByType("resource");
    return { wrong, requests: entries.length, connects: entries.filter((entry) => entry.connectEnd > entry.connectStart).length };
  });
  t.note(`${result.requests} requests, ${result.connects} connections opened`);
  assert.deepEqual(result.wrong, []);
  assert.ok(result.connects <= 6, "six connections carry everything");
}, { timeout_ms: 60_000 });

let server;
let browser;
if (process.send) {
  await makeNoise();
} else {
  const executablePath = BROWSERS.find((path) => path && existsSync(path));
  if (!executablePath) {
    console.log("not ok - no browser: `make deps` installs chromium-headless-shell");
    process.exit(1);
  }
  server = await target("fanout_reference.js");
  browser = await chromium.launch({ executablePath, args: ARGS });
  await run({
    finish: async () => {
      await browser.close();
      await server.stop();
    },
  });
}
