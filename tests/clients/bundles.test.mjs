// The bundles of socket.io-client 2.x, 3.x and 4.x in a real browser, against the feature server: what Node's clients have no
// equal for is how a browser sends and takes binary (XHR, Blob), and JSONP, which only 2.x has. With PARSER=msgpack it is the
// bundle with that parser, as the server itself serves it.
import { createRequire } from "node:module";
import { chromium } from "playwright-core";
import { assert, run, test } from "./lib/runner.mjs";
import { BROWSER_ARGS, browserPath } from "./lib/browser.mjs";
import { PARSER } from "./lib/parsers.mjs";
import { target } from "./lib/target.mjs";

const require = createRequire(import.meta.url);
const BUNDLES = { 2: "socket.io-client-2", 3: "socket.io-client-3", 4: "socket.io-client" };
const WAYS = {
  polling: { transports: ["polling"] },
  "polling in base64": { transports: ["polling"], forceBase64: true },
  JSONP: { transports: ["polling"], forceJSONP: true },
  websocket: { transports: ["websocket"] },
  "websocket in base64": { transports: ["websocket"], forceBase64: true },
  upgrade: {},
};

const server = await target("feature_server.js", PARSER ? ["--parser", PARSER] : []);
const MSGPACK_BUNDLE = "socket.io.msgpack.min.js";
const browser = await chromium.launch({ executablePath: browserPath(), args: BROWSER_ARGS });

/** A page of the server's own origin with a client's bundle in it. */
async function pageWith(t, version) {
  const context = await browser.newContext({ ignoreHTTPSErrors: true });
  t.defer(() => context.close());
  const page = await context.newPage();
  page.errors = [];
  page.on("pageerror", (error) => page.errors.push(error.message));
  // Any page of the server will do; this one says that it knows no such transport.
  await page.goto(`${server.url}/socket.io/`);
  await page.addScriptTag(PARSER ? { url: `/socket.io/${MSGPACK_BUNDLE}` } : { path: require.resolve(`${BUNDLES[version]}/dist/socket.io.js`) });
  return page;
}

/** Runs in the page: what goes comes back, in both directions, and a private message finds the client. */
async function exchange({ blobs = true, ...options }) {
  const socket = window.io("/", { forceNew: true, reconnection: false, ...options });
  // Version 2 knows no other binary in a browser than ArrayBuffer and Blob.
  const bytes = (...values) => new Uint8Array(values).buffer;
  const list = (value) => (value instanceof ArrayBuffer ? [...new Uint8Array(value)] : value);
  const call = (event, ...args) =>
    new Promise((resolve) => socket.emit(event, ...args, (...reply) => resolve(reply.map(list))));
  await new Promise((resolve, reject) => {
    socket.on("connect", resolve);
    for (const event of ["error", "connect_error"]) socket.on(event, (error) => reject(new Error(String(error?.message ?? error))));
  });
  socket.on("question", (a, ack) => ack(bytes(8, 9), a));
  const seen = [];
  socket.on("private", (...args) => seen.push(args.map(list)));
  const text = "zwölf 🙂 \u2028 \\n \n \"'";
  const found = {
    text: await call("echo", text, { deep: [1, null] }),
    binary: await call("echo", "with", bytes(0, 1, 254, 255)),
    blob: blobs && (await call("echo", new Blob([bytes(4, 5)]))),
    // Version 2 cannot write more than this in base64.
    large: (await call("echo", new Uint8Array(60_000).fill(7).buffer))[0].length,
    asked: await call("ask-me", { event: "question", args: ["x"], timeout_ms: 3_000, style: "promise" }).then(([answer]) => [answer.error, answer.reply.map(list)]),
  };
  await call("emit-to", { to: [socket.id], event: "private", args: [1, "a"] });
  const end = Date.now() + 3_000;
  while (!seen.length && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 10));
  const transport = socket.io.engine.transport;
  found.transport = transport.name;
  socket.disconnect();
  return { ...found, seen, sent: text };
}

/** Runs in the page: binary far down, in both directions and in a broadcast that all answer, and a refusal. */
async function exchangeAtDepth(options) {
  const open = (nsp, more) => window.io(nsp, { forceNew: true, reconnection: false, ...options, ...more });
  const [one, two] = [open("/"), open("/")];
  const list = (value) => (value instanceof ArrayBuffer ? [...new Uint8Array(value)] : value);
  // In a browser the parser takes typed arrays for objects.
  const bytes = (...values) => new Uint8Array(values).buffer;
  const call = (socket, event, ...args) => new Promise((resolve) => socket.emit(event, ...args, (...reply) => resolve(reply)));
  const connected = (socket) => new Promise((resolve) => socket.on("connect", resolve));
  await Promise.all([one, two].map(connected));
  const room = `depth of ${one.id}`;
  for (const socket of [one, two]) await call(socket, "join", room);
  const heard = [];
  for (const [n, socket] of [one, two].entries()) {
    socket.on("deep", ({ a }, ack) => {
      heard.push(list(a[1].b.c));
      ack({ from: n, bytes: bytes(n, 9) });
    });
  }
  const deep = { a: [null, { b: { c: bytes(1, 2, 255) } }] };
  const [back] = await call(one, "echo", deep);
  const spec = { from: "server", to: [room], event: "deep", args: [deep], timeout_ms: 5_000, style: "promise" };
  const [{ error, reply }] = await call(one, "emit-to-with-ack", spec);
  const refused = await new Promise((resolve) => open("/auth", { auth: { token: "no" } }).on("connect_error", resolve));
  const found = { echoed: list(back.a[1].b.c), heard, error, refused: [refused.message, refused.data] };
  found.answers = reply.map(({ from, bytes }) => [from, list(bytes)]).sort();
  for (const socket of [one, two]) socket.disconnect();
  return found;
}

if (PARSER) {
  for (const way of ["polling", "websocket", "upgrade"]) {
    test(`${MSGPACK_BUNDLE} in a browser over ${way}`, async (t) => {
      const page = await pageWith(t);
      // This parser knows no Blobs.
      const found = await page.evaluate(exchange, { ...WAYS[way], blobs: false });
      assert.deepEqual(found.text, [found.sent, { deep: [1, null] }]);
      assert.deepEqual(found.binary, ["with", [0, 1, 254, 255]]);
      assert.equal(found.large, 60_000);
      assert.deepEqual(found.asked, [null, [[8, 9]]]);
      assert.deepEqual(found.seen, [[1, "a"]]);
      if (way !== "upgrade") assert.equal(found.transport, way);
      assert.deepEqual(await page.evaluate(exchangeAtDepth, WAYS[way]), {
        echoed: [1, 2, 255],
        heard: [[1, 2, 255], [1, 2, 255]],
        error: null,
        refused: ["bad token", { given: "no" }],
        answers: [[0, [0, 9]], [1, [1, 9]]],
      });
      assert.deepEqual(page.errors, []);
    }, { timeout_ms: 20_000 });
  }
}

for (const version of PARSER ? [] : Object.keys(BUNDLES)) {
  for (const [way, options] of Object.entries(WAYS)) {
    // From 3.x on the client knows neither JSONP nor, in a browser, a reason for base64.
    if (version !== "2" && /JSONP|base64/.test(way)) continue;
    test(`client ${version} in a browser over ${way}`, async (t) => {
      const page = await pageWith(t, version);
      const found = await page.evaluate(exchange, options);
      assert.deepEqual(found.text, [found.sent, { deep: [1, null] }]);
      assert.deepEqual(found.binary, ["with", [0, 1, 254, 255]]);
      assert.deepEqual(found.blob, [[4, 5]]);
      assert.equal(found.large, 60_000);
      assert.deepEqual(found.asked, [null, [[8, 9]]]);
      assert.deepEqual(found.seen, [[1, "a"]]);
      if (options.transports) assert.equal(found.transport, options.transports[0]);
      assert.deepEqual(page.errors, []);
    }, { timeout_ms: 20_000 });
  }
}

await run({
  parallel: 3,
  finish: async () => {
    await browser.close();
    await server.stop();
  },
});
