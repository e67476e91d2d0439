// What clients see when the server closes: `io.close()`, with clients of every transport and several namespaces.
import { assert, run, test } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { TRANSPORTS, call, clientsOf, next, upgraded } from "./lib/clients.mjs";

const server = await target("feature_server.js");

test("close() ends all connections, over every transport, and lets nobody in again", async (t) => {
  const options = { reconnection: true, reconnectionDelay: 10, reconnectionDelayMax: 20, reconnectionAttempts: 3 };
  const sockets = [];
  for (const [name, transport] of Object.entries(TRANSPORTS)) {
    const clients = clientsOf(server.url, transport);
    for (let i = 0; i < 4; i++) {
      const root = await clients.connect(t, "/", options);
      const nsp = await clients.connect(t, "/nsp", { manager: root.io });
      if (name === "upgrade") await upgraded(root);
      sockets.push(root, nsp);
    }
  }
  await Promise.all(sockets.map((socket) => call(socket, "echo")));
  const gone = sockets.map((socket) => next(socket, "disconnect", 15_000));
  const managers = [...new Set(sockets.map((socket) => socket.io))];
  const failures = managers.map(() => 0);
  managers.forEach((manager, i) => manager.on("reconnect_failed", () => failures[i]++));
  const failed = managers.map((manager) => next(manager, "reconnect_failed", 20_000));
  sockets[0].emit("close-server");
  for (const [reason] of await Promise.all(gone)) assert.equal(reason, "transport close");
  await Promise.all(failed);
  const late = clientsOf(server.url, TRANSPORTS.polling).open(t, "/");
  await next(late, "connect_error", 15_000);
  assert.deepEqual(failures, managers.map(() => 1), "each gives up once");
}, { timeout_ms: 50_000 });

await run({ finish: server.stop });
