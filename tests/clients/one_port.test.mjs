// axum and Socket.IO on one port: `one-port` (examples/axum), plain HTTP and the official client.
import { assert, run, test } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { TRANSPORTS, call, clientsOf, next, upgraded } from "./lib/clients.mjs";
import { Tcp, request } from "./lib/raw.mjs";

const server = await target("one_port_reference.js");

test("plain HTTP is answered by the other server", async () => {
  const home = await request(`${server.url}/`);
  assert.equal(home.status, 200);
  assert.equal(home.text, "hello from axum");
  assert.equal((await request(`${server.url}/nothing`)).status, 404);
  assert.equal((await request(`${server.url}/`, { method: "DELETE" })).status, 405);
  const head = await request(`${server.url}/`, { method: "HEAD" });
  assert.equal(head.status, 200);
  assert.equal(head.text, "");
  assert.match((await request(`${server.url}/who`)).text, /^127\.0\.0\.1:\d+$/);
});

test("bodies go both ways", async () => {
  const body = JSON.stringify({ text: "ü".repeat(100_000), list: [1, 2, 3] });
  const headers = { "Content-Type": "application/json" };
  for (const how of [{ body }, { chunks: [body.slice(0, 10), body.slice(10)] }]) {
    const answer = await request(`${server.url}/echo`, { method: "POST", headers, ...how });
    assert.equal(answer.status, 200);
    assert.match(answer.headers["content-type"], /^application\/json/);
    assert.deepEqual(JSON.parse(answer.text), JSON.parse(body));
  }
  const broken = await request(`${server.url}/echo`, { method: "POST", headers, body: "{" });
  assert.equal(broken.status, 400);
});

test("answers of the other server stream", async (t) => {
  const tcp = await Tcp.open(server.host, server.port);
  t.defer(() => tcp.end());
  tcp.write("GET /stream HTTP/1.1\r\nHost: test\r\n\r\n");
  await tcp.until(() => tcp.text.includes("data: 0"));
  assert.ok(!tcp.text.includes("data: 4"), "it came in one piece");
  await tcp.until(() => tcp.text.endsWith("0\r\n\r\n"));
  assert.match(tcp.text, /transfer-encoding: chunked/i);
  assert.match(tcp.text, /data: 4/);
});

test("one keep-alive connection carries requests for both", async (t) => {
  const tcp = await Tcp.open(server.host, server.port);
  t.defer(() => tcp.end());
  const get = (path) => `GET ${path} HTTP/1.1\r\nHost: test\r\n\r\n`;
  let answers = 0;
  const ask = async (path, expected) => {
    tcp.write(get(path));
    answers++;
    await tcp.until(() => tcp.text.split("HTTP/1.1 200").length > answers && expected.test(tcp.text.split("HTTP/1.1 200").at(-1)));
    assert.match(tcp.text.split("HTTP/1.1 200").at(-1), expected, path);
  };
  for (let round = 0; round < 10; round++) {
    await ask("/", /hello from axum$/);
    await ask("/socket.io/?EIO=4&transport=polling", /0\{"sid":".*\}$/);
  }
  // And without waiting in between.
  tcp.bytes = Buffer.alloc(0);
  tcp.write(get("/slow") + get("/socket.io/?EIO=4&transport=polling") + get("/"));
  await tcp.until(() => tcp.text.endsWith("hello from axum"));
  const order = ["at last", '0{"sid":"', "hello from axum"].map((part) => tcp.text.indexOf(part));
  assert.ok(order[0] > 0 && order[0] < order[1] && order[1] < order[2], tcp.text);
});

for (const [name, transport] of Object.entries(TRANSPORTS)) {
  test(`socket.io-client over ${name}`, async (t) => {
    const clients = clientsOf(server.url, transport);
    const socket = await clients.connect(t);
    if (name === "upgrade") await upgraded(socket);
    assert.deepEqual(await call(socket, "echo", 1, { a: [Buffer.from("b")] }), [1, { a: [Buffer.from("b")] }]);
  });

  test(`a handler of the other server sends to sockets, over ${name}`, async (t) => {
    const socket = await clientsOf(server.url, transport).connect(t);
    if (name === "upgrade") await upgraded(socket);
    const said = next(socket, `news-${name}`);
    const answer = await request(`${server.url}/say/news-${name}`, { method: "POST", body: "hello" });
    assert.equal(answer.text, "said");
    assert.deepEqual(await said, ["hello"]);
  });
}

test("a slow handler of the other server holds nobody up", async (t) => {
  const socket = await clientsOf(server.url, TRANSPORTS.websocket).connect(t);
  const slow = Array.from({ length: 20 }, () => request(`${server.url}/slow`));
  const start = performance.now();
  for (let i = 0; i < 10; i++) await call(socket, "echo", i);
  assert.ok(performance.now() - start < 400, "the slow answers came first");
  for (const answer of await Promise.all(slow)) assert.equal(answer.text, "at last");
});

await run();
