// Socket.IO v5 over Engine.IO v4 for k6: over WebSocket (the API with a global event loop, so that one VU has many
// sockets) and over HTTP long-polling. Events with JSON and ArrayBuffers at any depth, acknowledgements in both
// directions, namespaces, heartbeats. No upgrade between the transports and no reconnection by itself: a script says
// what happens.
//
//   const socket = await connect("http://127.0.0.1:3001", { transport: "polling" });
//   socket.on("message", (payload) => ...);
//   const answer = await socket.emitWithAck("echo", "hello");
//   socket.close();
import encoding from "k6/encoding";
import http from "k6/http";

let WebSocket;
try {
  ({ WebSocket } = require("k6/websockets"));
} catch (_) {
  ({ WebSocket } = require("k6/experimental/websockets"));
}

const SEPARATOR = "\x1e";
const CONNECT_MS = 30000;
const LOST_OPEN_MS = 2000;

/** A connected socket; rejects if the server refuses it or does not answer in time. */
export function connect(url, { transport = "websocket", namespace = "/", auth, query = "" } = {}) {
  return new Promise((resolve, reject) => {
    const socket = new Socket(namespace, auth, resolve, reject);
    const address = `${url.replace(/\/$/, "")}/socket.io/?EIO=4&transport=${transport}${query && `&${query}`}`;
    socket.timer = setTimeout(() => socket.fail(`no answer over ${transport}, ${socket.stage}`), CONNECT_MS);
    socket.transport = transport === "polling" ? new Polling(address, socket) : new Framed(address, socket);
  });
}

class Socket {
  constructor(namespace, auth, resolve, reject) {
    Object.assign(this, { namespace, auth, resolve, reject });
    this.handlers = {};
    this.acks = {};
    this.nextAck = 0;
    this.incoming = null;
    this.id = null;
    // How far it is, for whoever must find out why it is no further.
    this.stage = "before the handshake";
    this.closed = false;
  }

  /** One handler an event; "disconnect" gets the reason. */
  on(event, handler) {
    this.handlers[event] = handler;
    return this;
  }

  emit(event, ...args) {
    this.write(2, "", [event, ...args]);
  }

  emitWithAck(event, ...args) {
    const id = this.nextAck++;
    return new Promise((resolve, reject) => {
      this.acks[id] = { resolve, reject };
      this.write(2, String(id), [event, ...args]);
    });
  }

  /** Leaves the namespace and ends the connection. */
  close() {
    if (this.closed) return;
    this.transport.send([`41${this.prefix()}`]);
    this.end("io client disconnect");
  }

  /**
   * Ends the connection without a word, as a network does. Over polling the server is told after all: k6 cannot take
   * back the poll that hangs, and would wait for it.
   */
  cut() {
    this.end("transport close");
  }

  // --- What the transports call.

  /** A packet of Engine.IO: text, or an ArrayBuffer. */
  receive(packet) {
    if (this.closed) return;
    if (typeof packet !== "string") return this.attach(packet);
    switch (packet[0]) {
      case "0":
        this.handshake = JSON.parse(packet.slice(1));
        this.stage = `session ${this.handshake.sid}`;
        this.transport.opened(this.handshake);
        return this.join();
      case "1":
        return this.end("transport close");
      case "2":
        return this.transport.send([`3${packet.slice(1)}`]);
      case "4":
        return this.message(packet.slice(1));
      case "6":
        return undefined;
      default:
        return this.fail(`unexpected packet ${packet.slice(0, 40)}`);
    }
  }

  /** Asks for the namespace, once. */
  join() {
    clearTimeout(this.openTimer);
    if (this.closed || this.joining) return;
    this.joining = true;
    this.transport.send([`40${this.prefix()}${this.auth ? JSON.stringify(this.auth) : ""}`]);
  }

  /** The connection is over, whoever wanted it. */
  end(reason) {
    if (this.closed) return;
    this.closed = true;
    clearTimeout(this.timer);
    clearTimeout(this.openTimer);
    this.transport.close();
    if (!this.id) this.reject(new Error(reason));
    for (const { reject } of Object.values(this.acks)) reject(new Error(reason));
    if (this.handlers.disconnect) this.handlers.disconnect(reason);
  }

  fail(why) {
    this.end(`error: ${why}`);
  }

  // --- Socket.IO.

  prefix() {
    return this.namespace === "/" ? "" : `${this.namespace},`;
  }

  write(type, ack, data) {
    if (this.closed) return;
    const attachments = [];
    const json = JSON.stringify(withoutBinary(data, attachments));
    const head = attachments.length > 0 ? `${type + 3}${attachments.length}-` : String(type);
    this.transport.send([`4${head}${this.prefix()}${ack}${json}`, ...attachments]);
  }

  message(text) {
    const [, type, count, namespace, ack, json] = /^(\d)(?:(\d+)-)?(?:(\/[^,]*),)?(\d*)([^]*)$/.exec(text) || [];
    if (type === undefined) return this.fail(`no packet of Socket.IO: ${text.slice(0, 40)}`);
    if ((namespace || "/") !== this.namespace) return this.fail(`for another namespace: ${namespace}`);
    const packet = { type: Number(type), ack, data: json ? JSON.parse(json) : undefined, attachments: [] };
    if (!count || count === "0") return this.dispatch(packet);
    this.incoming = { packet: { ...packet, type: packet.type - 3 }, missing: Number(count) };
    return undefined;
  }

  attach(buffer) {
    if (!this.incoming) return this.fail("an attachment without a packet");
    const { packet } = this.incoming;
    packet.attachments.push(buffer);
    if (packet.attachments.length < this.incoming.missing) return undefined;
    this.incoming = null;
    return this.dispatch({ ...packet, data: withBinary(packet.data, packet.attachments) });
  }

  dispatch({ type, ack, data }) {
    if (type === 0) {
      this.id = data.sid;
      clearTimeout(this.timer);
      return this.resolve(this);
    }
    if (type === 1) return this.end("io server disconnect");
    if (type === 4) return this.fail(`CONNECT_ERROR ${JSON.stringify(data)}`);
    if (type === 3) {
      const waiting = this.acks[ack];
      delete this.acks[ack];
      return waiting ? waiting.resolve(data[0]) : this.fail(`an answer to nothing: ${ack}`);
    }
    const [event, ...args] = data;
    const handler = this.handlers[event];
    if (ack) args.push((...answer) => this.write(3, ack, answer));
    return handler ? handler(...args) : undefined;
  }
}

/** Buffers become placeholders, and go to `attachments`. */
function withoutBinary(value, attachments) {
  if (value instanceof ArrayBuffer) return { _placeholder: true, num: attachments.push(value) - 1 };
  if (Array.isArray(value)) return value.map((item) => withoutBinary(item, attachments));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, withoutBinary(item, attachments)]));
}

function withBinary(value, attachments) {
  if (Array.isArray(value)) return value.map((item) => withBinary(item, attachments));
  if (value === null || typeof value !== "object") return value;
  if (value._placeholder) return attachments[value.num];
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, withBinary(item, attachments)]));
}

class Framed {
  constructor(address, socket) {
    this.ws = new WebSocket(address.replace(/^http/, "ws"));
    this.ws.binaryType = "arraybuffer";
    this.open = false;
    // k6 1.1 loses the first message now and then where it comes in one segment with the 101: the open packet. (Seen
    // on the wire; the pings that follow are answered.) The namespace can be asked for without it.
    this.ws.onopen = () => {
      this.open = true;
      socket.openTimer = setTimeout(() => socket.join(), LOST_OPEN_MS);
    };
    this.ws.onmessage = ({ data }) => socket.receive(data);
    this.ws.onclose = () => socket.end("transport close");
    this.ws.onerror = (event) => socket.fail(`transport error ${event.error}`);
  }

  opened() {}

  send(packets) {
    packets.forEach((packet) => this.ws.send(packet));
  }

  close() {
    if (this.open) this.ws.close();
    this.open = false;
  }
}

class Polling {
  constructor(address, socket) {
    Object.assign(this, { address, socket });
    this.queue = [];
    this.posting = false;
    this.done = false;
    this.poll();
  }

  opened({ sid }) {
    this.address += `&sid=${sid}`;
  }

  /** Asks for packets until the end. */
  async poll() {
    while (!this.done) {
      const response = await http.asyncRequest("GET", this.address, null, { timeout: "60s", tags: { name: "poll" } });
      if (this.done) return;
      if (response.status !== 200) {
        this.socket.fail(`poll: ${response.status} ${response.error} ${response.body}`);
        return;
      }
      for (const packet of response.body.split(SEPARATOR)) {
        this.socket.receive(
          packet[0] === "b" ? encoding.b64decode(packet.slice(1), "std") : packet,
        );
      }
    }
  }

  send(packets) {
    for (const packet of packets) {
      this.queue.push(typeof packet === "string" ? packet : `b${encoding.b64encode(packet, "std")}`);
    }
    if (!this.posting) this.post();
  }

  /** Sends what waits, one request after the other. */
  async post() {
    this.posting = true;
    while (this.queue.length > 0) {
      const body = this.queue.splice(0).join(SEPARATOR);
      const headers = { "Content-Type": "text/plain;charset=UTF-8" };
      const response = await http.asyncRequest("POST", this.address, body, { headers, tags: { name: "post" } });
      if (response.status !== 200 && !this.done) this.socket.fail(`post: ${response.status} ${response.error} ${response.body}`);
    }
    this.posting = false;
  }

  close() {
    if (this.done) return;
    // The server answers by ending the poll that hangs.
    this.send(["1"]);
    this.done = true;
  }
}
