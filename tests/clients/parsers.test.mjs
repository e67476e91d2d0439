// A server and clients with another parser than the default one, PARSER=msgpack or json: what the parser's packets
// look like on the wire, all types of packet, and what is refused. socketio.test.mjs runs every feature with msgpack.
import { io } from "socket.io-client";
import { assert, run, test, until } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { TRANSPORTS, call, clientsOf, next, upgraded } from "./lib/clients.mjs";
import { PARSER } from "./lib/parsers.mjs";

const server = await target("feature_server.js", ["--parser", PARSER]);

for (const [name, transport] of Object.entries(TRANSPORTS)) {
  const clients = clientsOf(server.url, transport);
  const check = (title, body) => test(`${name}: ${title}`, body);

  check("connects, emits, acknowledges", async (t) => {
    const socket = clients.open(t, "/", { auth: { token: "abc" } });
    const [id, auth] = await next(socket, "welcome");
    assert.deepEqual([id, auth], [socket.id, { token: "abc" }]);
    if (name === "upgrade") await upgraded(socket);
    const args = [1, -70_000, 1.5, "text é", true, null, [], {}, { a: [{ b: null }] }];
    assert.deepEqual(await call(socket, "echo", ...args), args);
    const back = next(socket, "echo-back");
    socket.emit("echo", ...args);
    assert.deepEqual(await back, args);
  });

  check("rooms, broadcasts and their acknowledgements", async (t) => {
    const [a, b, c] = await Promise.all([clients.connect(t), clients.connect(t), clients.connect(t)]);
    const room = `room of ${a.id}`;
    await call(a, "join", [room]);
    await call(b, "join", [room]);
    const missed = [];
    c.on("news", (...args) => missed.push(args));
    const both = [next(a, "news"), next(b, "news")];
    await call(c, "emit-to", { from: "server", to: [room], event: "news", args: ["x", { y: 1 }] });
    assert.deepEqual(await Promise.all(both), [["x", { y: 1 }], ["x", { y: 1 }]]);
    for (const socket of [a, b]) socket.once("ask", (n, ack) => ack(n + 1));
    const spec = { from: "server", to: [room], event: "ask", args: [1], timeout_ms: 5_000, style: "promise" };
    const [{ error, reply }] = await call(c, "emit-to-with-ack", spec);
    assert.deepEqual([error, reply], [null, [2, 2]]);
    assert.deepEqual(missed, []);
  });

  check("a refusal has message and data, an unknown namespace is refused", async (t) => {
    const refused = clients.open(t, "/auth", { auth: { token: "wrong" } });
    const [error] = await next(refused, "connect_error");
    assert.deepEqual([error.message, error.data], ["bad token", { given: "wrong" }]);
    const [unknown] = await next(clients.open(t, "/nowhere"), "connect_error");
    assert.equal(unknown.message, "Invalid namespace");
  });

  check("either side leaves a namespace, the connection stays", async (t) => {
    const main = await clients.connect(t);
    const other = await clients.connect(t, "/nsp", { manager: main.io });
    const left = next(other, "disconnect");
    other.emit("disconnect-me", false);
    assert.deepEqual((await left)[0], "io server disconnect");
    const again = other.connect();
    await next(again, "connect");
    again.disconnect();
    assert.deepEqual(await call(main, "echo", 1), [1]);
  });

  for (const [what, encoder] of Object.entries(broken())) {
    check(`closes a client that sends ${what}`, async (t) => {
      const [honest, broken] = await Promise.all([clients.connect(t), clients.connect(t)]);
      const closed = next(broken, "disconnect");
      for (const message of encoder) broken.io.engine.write(message);
      await closed;
      assert.deepEqual(await call(honest, "echo", 1), [1]);
    });
  }

  check("a client with the default parser gets nowhere", async (t) => {
    const lost = io(server.url, { forceNew: true, reconnection: false, ...transport });
    t.defer(() => lost.disconnect());
    let end;
    lost.io.on("close", (reason) => (end = reason));
    await until(() => end, "the end of the connection");
    assert.equal(lost.connected, false);
  });
}

/** Messages that are no packet to the parser. */
function broken() {
  if (PARSER === "msgpack") {
    const packet = (...bytes) => [Buffer.from([0x83, 0xa4, ...Buffer.from("type"), 2, 0xa3, ...Buffer.from("nsp"), 0xa1, 0x2f, 0xa4, ...Buffer.from("data"), ...bytes])];
    return {
      "a message that ends too early": packet(0x93, 0xa1, 0x61),
      "an array that is not all there": packet(0xdd, 0xff, 0xff, 0xff, 0xff),
      "an event that is no array": packet(0x80),
      "no packet": [Buffer.from([0x01])],
      "text": ['2["echo",1]'],
    };
  }
  return { "no JSON": ["{"], "no packet": ["[]"], "an unknown type": ['{"type":7,"nsp":"/"}'] };
}

await run({ parallel: 6, finish: server.stop });
