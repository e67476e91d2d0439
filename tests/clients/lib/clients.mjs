// Helpers around the official socket.io-client.
import { io } from "socket.io-client";
import { PARSER, parserOptions } from "./parsers.mjs";
import { within } from "./runner.mjs";

/** The ways a client may reach the server; `upgrade` is the client's own default. */
export const TRANSPORTS = {
  polling: { transports: ["polling"] },
  websocket: { transports: ["websocket"] },
  upgrade: { transports: ["polling", "websocket"] },
};

/** The next time `event` fires on `emitter`: its arguments as a list. */
export function next(emitter, event, ms = 6_000) {
  return within(new Promise((resolve) => emitter.once(event, (...args) => resolve(args))), ms, `"${event}"`);
}

/** The first `count` times `event` fires: a list of argument lists. */
export function collect(emitter, event, count, ms = 10_000) {
  const seen = [];
  const all = new Promise((resolve) => {
    emitter.on(event, function listener(...args) {
      seen.push(args);
      if (seen.length === count) {
        emitter.off(event, listener);
        resolve(seen);
      }
    });
  });
  return within(all, ms, `${count} times "${event}"`);
}

/** Emits with an acknowledgement and returns all its arguments. */
export function call(socket, event, ...args) {
  const answered = new Promise((resolve) => socket.emit(event, ...args, (...reply) => resolve(reply)));
  return within(answered, 8_000, `acknowledgement of "${event}"`);
}

/** A factory of clients for one URL; every client is closed when the test ends. `make` is the `io` of another version. */
export function clientsOf(url, transport, make = io) {
  return {
    /** Makes a socket without waiting. `options.manager` shares another socket's connection. */
    open(t, nsp = "/", { manager, ...options } = {}) {
      const base = { forceNew: true, reconnection: false, ...parserOptions(PARSER), ...transport };
      const socket = manager ? manager.socket(nsp, options) : make(url + nsp, { ...base, ...options });
      t.defer(() => socket.disconnect());
      return socket;
    },
    /** Makes a socket and waits until it is connected. */
    async connect(t, nsp, options) {
      const socket = this.open(t, nsp, options);
      const refused = new Promise((_, reject) => socket.once("connect_error", reject));
      await Promise.race([next(socket, "connect"), refused]);
      socket.off("connect_error");
      return socket;
    },
  };
}

/** Waits until the client's connection runs over websocket. */
export async function upgraded(socket) {
  const engine = socket.io.engine;
  if (engine.transport.name !== "websocket") await next(engine, "upgrade");
}
