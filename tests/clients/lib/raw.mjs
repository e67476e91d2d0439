// Raw Engine.IO: one HTTP request at a time, one WebSocket with a queue, a plain TCP connection. No official client here.
import http from "node:http";
import https from "node:https";
import net from "node:net";
import tls from "node:tls";
import { WebSocket } from "ws";
import { within } from "./runner.mjs";

// The server under test speaks TLS, or it does not; its certificate comes by NODE_EXTRA_CA_CERTS.
const secure = process.env.SOCKRING_URL?.startsWith("https:") ?? false;
const { Agent, request: begin } = secure ? https : http;
const agent = new Agent({ keepAlive: true });

/** One HTTP request; resolves with status, headers, the body's bytes and text. */
export function request(url, { method = "GET", headers = {}, body, chunks, signal } = {}) {
  return new Promise((resolve, reject) => {
    const req = begin(url, { method, headers, agent, signal }, (res) => {
      const parts = [];
      res.on("data", (part) => parts.push(part));
      res.on("error", reject);
      res.on("end", () => {
        const bytes = Buffer.concat(parts);
        resolve({ status: res.statusCode, headers: res.headers, bytes, text: bytes.toString() });
      });
    });
    req.on("error", reject);
    if (chunks) for (const chunk of chunks) req.write(chunk);
    else if (body !== undefined) req.setHeader("Content-Length", Buffer.byteLength(body));
    req.end(body);
  });
}

/** A polling session. `base` is the URL up to and including the path. */
export class Polling {
  static async open(base, query = "") {
    const session = new Polling();
    session.url = `${base}?EIO=4&transport=polling${query}`;
    session.response = await request(session.url);
    if (session.response.status !== 200) throw new Error(`handshake: ${session.response.status} ${session.response.text}`);
    session.handshake = JSON.parse(session.response.text.split("\x1e")[0].slice(1));
    session.sid = session.handshake.sid;
    session.url += `&sid=${session.sid}`;
    return session;
  }

  get(options) {
    return request(this.url, options);
  }

  post(body, options) {
    return request(this.url, { method: "POST", body, ...options });
  }

  /** Polls, answering pings, until `count` other packets came. */
  async packets(count = 1) {
    const found = [];
    while (found.length < count) {
      const { status, text } = await this.get();
      if (status !== 200) throw new Error(`poll: ${status} ${text}`);
      for (const packet of text.split("\x1e")) {
        if (packet === "2") await this.post("3");
        else found.push(packet);
      }
    }
    return found;
  }
}

/** A WebSocket whose messages queue up; text comes as strings, binary as buffers. */
export class Ws {
  constructor(url, options = {}, protocols = []) {
    this.queue = [];
    this.waiting = [];
    this.answerPings = true;
    this.socket = new WebSocket(url, protocols, { maxPayload: 64 << 20, ...options });
    this.opened = within(
      new Promise((resolve, reject) => {
        this.socket.on("open", () => resolve(this));
        this.socket.on("error", reject);
        this.socket.on("close", () => reject(new Error("closed before it opened")));
        this.socket.on("unexpected-response", (_, res) => {
          let text = "";
          res.on("data", (part) => (text += part));
          const refused = () => reject(Object.assign(new Error(`refused: ${res.statusCode}`), { status: res.statusCode, text }));
          res.on("end", refused);
          res.on("error", refused);
        });
      }),
      5_000,
      "WebSocket handshake",
    );
    this.closed = new Promise((resolve) => {
      this.socket.on("close", (code, reason) => resolve({ code, reason: reason.toString() }));
    });
    this.socket.on("message", (data, binary) => this.#arrived(binary ? data : data.toString()));
  }

  static open(url, options, protocols) {
    return new Ws(url, options, protocols).opened;
  }

  #arrived(message) {
    if (message === "2" && this.answerPings) return this.send("3");
    const taker = this.waiting.shift();
    if (taker) taker(message);
    else this.queue.push(message);
  }

  send(message) {
    this.socket.send(message);
  }

  next(ms = 3_000) {
    if (this.queue.length) return Promise.resolve(this.queue.shift());
    return within(new Promise((resolve) => this.waiting.push(resolve)), ms, "WebSocket message");
  }

  gone(ms = 3_000) {
    return within(this.closed, ms, "end of the WebSocket");
  }

  end() {
    this.socket.terminate();
  }
}

/** A plain TCP connection: `write`, and everything received until now in `text`. */
export class Tcp {
  static async open(host, port) {
    const tcp = new Tcp();
    tcp.bytes = Buffer.alloc(0);
    tcp.raw = net.connect(port, host);
    tcp.socket = secure ? tls.connect({ socket: tcp.raw, host }) : tcp.raw;
    tcp.socket.on("data", (part) => {
      tcp.bytes = Buffer.concat([tcp.bytes, part]);
      tcp.wake?.();
    });
    tcp.closed = new Promise((resolve) => {
      tcp.socket.on("error", () => {});
      tcp.socket.on("close", () => {
        tcp.over = true;
        tcp.wake?.();
        resolve(tcp.bytes);
      });
    });
    await within(new Promise((resolve) => tcp.socket.once(secure ? "secureConnect" : "connect", resolve)), 5_000, "TCP connection");
    tcp.socket.setNoDelay(true);
    return tcp;
  }

  get text() {
    return this.bytes.toString("latin1");
  }

  write(data) {
    this.socket.write(data);
  }

  /** Ends the connection with a reset; Node resets no TLS socket, but what is below it. */
  reset() {
    this.raw.resetAndDestroy();
  }

  /** Waits until `probe(this)` is truthy, the connection ends, or the time is over. */
  async until(probe, ms = 5_000) {
    const end = Date.now() + ms;
    while (!probe(this) && !this.over && Date.now() < end) {
      await Promise.race([
        new Promise((resolve) => (this.wake = resolve)),
        new Promise((resolve) => setTimeout(resolve, end - Date.now())),
      ]);
    }
    return probe(this);
  }

  end() {
    this.socket.destroy();
  }
}
