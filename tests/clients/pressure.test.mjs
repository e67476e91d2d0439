// Much at once, to and from clients that read: nobody is closed for it, and everything arrives.
import { assert, run, test, within } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { TRANSPORTS, call, clientsOf, collect, upgraded } from "./lib/clients.mjs";

const server = await target("feature_server.js");
const LARGE = "x".repeat(100_000);
const CHUNK = "y".repeat(65_536);

/** Fails the test when the socket is closed. */
const stays = (socket) => new Promise((_, reject) => socket.once("disconnect", (reason) => reject(new Error(`closed: ${reason}`))));

for (const [name, transport] of Object.entries(TRANSPORTS)) {
  test(`${name}: fifty echoes of 100 kB that are asked for at once`, async (t) => {
    const socket = await clientsOf(server.url, transport).connect(t, "/");
    if (name === "upgrade") await upgraded(socket);
    const closed = stays(socket);
    const answers = Array.from({ length: 50 }, (_, i) => new Promise((resolve) => socket.emit("echo", i, LARGE, resolve)));
    const seen = await within(Promise.race([Promise.all(answers), closed]), 30_000, "fifty answers");
    assert.deepEqual(seen, Array.from({ length: 50 }, (_, i) => i));
    assert.deepEqual(await call(socket, "echo", "after"), ["after"]);
    socket.removeAllListeners("disconnect");
  }, { timeout_ms: 40_000 });

  test(`${name}: a file of 200 chunks of 64 kB that another client relays`, async (t) => {
    const receiver = await clientsOf(server.url, transport).connect(t, "/");
    if (name === "upgrade") await upgraded(receiver);
    const sender = await clientsOf(server.url, TRANSPORTS.websocket).connect(t, "/");
    const closed = Promise.race([stays(receiver), stays(sender)]);
    const chunks = collect(receiver, "chunk", 200, 30_000);
    for (let i = 0; i < 200; i++) {
      sender.emit("emit-to", { from: "socket", to: [receiver.id], event: "chunk", args: [i, CHUNK] });
    }
    const seen = await Promise.race([chunks, closed]);
    assert.deepEqual(seen.map(([i]) => i), Array.from({ length: 200 }, (_, i) => i));
    assert.ok(seen.every(([, chunk]) => chunk === CHUNK));
    receiver.removeAllListeners("disconnect");
    sender.removeAllListeners("disconnect");
  }, { timeout_ms: 40_000 });
}

await run({ finish: server.stop });
