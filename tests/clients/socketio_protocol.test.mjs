// Raw Socket.IO v5 packets against `conformance_server --profile socketio`, over websocket and polling.
import { readFileSync } from "node:fs";
import { brotliDecompressSync, gunzipSync, inflateSync } from "node:zlib";
import io2 from "socket.io-client-2";
import { assert, run, sleep, test, within } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { Polling, Ws, request } from "./lib/raw.mjs";

const server = await target("socketio_reference.js");
const base = `${server.url}/socket.io/`;
const FILES = ["socket.io.js", "socket.io.min.js", "socket.io.esm.min.js", "socket.io.msgpack.min.js"].flatMap((name) => [name, `${name}.map`]);
/** A bundle as the npm package has it. */
const onDisk = (file) => readFileSync(new URL(`node_modules/socket.io/client-dist/${file}`, import.meta.url));
const wsUrl = `${server.ws}/socket.io/?EIO=4&transport=websocket`;

/** One interface over both transports: `send` packets (a buffer is binary), `next` packet, `gone`. */
class WsLink {
  static async open(t) {
    const link = new WsLink();
    link.ws = await Ws.open(wsUrl);
    t.defer(() => link.ws.end());
    await link.ws.next();
    return link;
  }

  async send(...packets) {
    for (const packet of packets) this.ws.send(packet);
  }

  next(ms) {
    return this.ws.next(ms);
  }

  async gone(ms = 1_200) {
    await this.ws.gone(ms);
    return this.ws.queue;
  }
}

class PollingLink {
  static async open() {
    const link = new PollingLink();
    link.polling = await Polling.open(base);
    link.queue = [];
    return link;
  }

  async send(...packets) {
    const text = packets.map((packet) => (Buffer.isBuffer(packet) ? `b${packet.toString("base64")}` : packet));
    await this.polling.post(text.join("\x1e"));
  }

  async next() {
    while (!this.queue.length) {
      for (const packet of await this.polling.packets()) {
        this.queue.push(packet[0] === "b" ? Buffer.from(packet.slice(1), "base64") : packet);
      }
    }
    return this.queue.shift();
  }

  /** The session has ended when it is unknown, or when a poll hands over the close packet. */
  async gone(ms = 1_200) {
    const seen = [...this.queue];
    const end = Date.now() + ms;
    while (Date.now() < end) {
      const { status, text } = await this.polling.get();
      if (status === 400) return seen;
      for (const packet of text.split("\x1e")) {
        if (packet === "1") return seen;
        if (packet === "2") await this.polling.post("3");
        else if (packet !== "6") seen.push(packet);
      }
    }
    throw new Error("the session goes on");
  }
}

for (const [name, Link] of [["websocket", WsLink], ["polling", PollingLink]]) {
  const check = (title, body) => test(`${name}: ${title}`, body);
  const joined = async (t, nsp = "") => {
    const link = await Link.open(t);
    await link.send(nsp ? `40${nsp},` : "40");
    link.connected = await link.next();
    link.auth = await link.next();
    return link;
  };
  namespaces(check, Link, joined);
  disconnection(check, Link, joined);
  events(check, joined);
  violations(check, Link, joined);
}
http();
await run({ parallel: 4, finish: server.stop });

function namespaces(check, Link, joined) {
  const sid = (packet, prefix) => {
    assert.ok(packet.startsWith(prefix), packet);
    const body = JSON.parse(packet.slice(prefix.length));
    assert.deepEqual(Object.keys(body), ["sid"]);
    assert.match(body.sid, /^[\w-]{20,}$/);
    return body.sid;
  };

  check("connects to the main namespace without and with auth", async (t) => {
    const link = await joined(t);
    sid(link.connected, "40");
    assert.equal(link.auth, '42["auth",{}]');
    const other = await Link.open(t);
    await other.send('40{"token":"123"}');
    sid(await other.next(), "40");
    assert.equal(await other.next(), '42["auth",{"token":"123"}]');
  });

  check("connects to a custom namespace without and with auth", async (t) => {
    const link = await joined(t, "/custom");
    sid(link.connected, "40/custom,");
    assert.equal(link.auth, '42/custom,["auth",{}]');
    const other = await Link.open(t);
    await other.send('40/custom,{"token":"abc"}');
    sid(await other.next(), "40/custom,");
    assert.equal(await other.next(), '42/custom,["auth",{"token":"abc"}]');
  });

  check("a namespace may end without a comma", async (t) => {
    const link = await Link.open(t);
    await link.send("40/custom");
    sid(await link.next(), "40/custom,");
    await link.next();
  });

  check("two namespaces on one connection have ids of their own", async (t) => {
    const link = await joined(t);
    await link.send("40/custom,");
    const custom = sid(await link.next(), "40/custom,");
    assert.notEqual(custom, sid(link.connected, "40"));
  });

  check("an unknown namespace is refused, the connection stays", async (t) => {
    const link = await Link.open(t);
    await link.send("40/random");
    assert.equal(await link.next(), '44/random,{"message":"Invalid namespace"}');
    // NUL is a character like any other.
    await link.send("40/a\0pids,");
    assert.equal(await link.next(), '44/a\0pids,{"message":"Invalid namespace"}');
    await link.send("40");
    sid(await link.next(), "40");
  });

  check("without a CONNECT the connection ends after connectTimeout", async (t) => {
    const link = await Link.open(t);
    const start = performance.now();
    assert.deepEqual(await link.gone(3_000), []);
    if (link.ws) assert.ok(performance.now() - start > 800);
  });
}

function disconnection(check, Link, joined) {
  check("leaving a namespace leaves the connection open for another", async (t) => {
    const link = await joined(t);
    await link.send("40/custom,");
    await link.next();
    await link.next();
    await link.send("41");
    await sleep(30);
    await link.send("40");
    assert.ok((await link.next()).startsWith("40{"));
    assert.equal(await link.next(), '42["auth",{}]');
    await link.send('42["message","back"]');
    assert.equal(await link.next(), '42["message-back","back"]');
  });

  check("leaving a custom namespace leaves the main one", async (t) => {
    const link = await joined(t);
    await link.send("40/custom,");
    await link.next();
    await link.next();
    await link.send("41/custom,");
    await link.send('42["message","still"]');
    assert.equal(await link.next(), '42["message-back","still"]');
  });

  check("a namespace may be left without a comma", async (t) => {
    const link = await joined(t, "/custom");
    await link.send("41/custom");
    await sleep(30);
    await link.send("40/custom,");
    assert.ok((await link.next()).startsWith("40/custom,"));
  });
}

function events(check, joined) {
  const exact = [
    ["plain arguments", '42["message",1,"2",{"3":[true]}]', '42["message-back",1,"2",{"3":[true]}]'],
    ["no arguments", '42["message"]', '42["message-back"]'],
    ["null and nested", '42["message",null,[[]],{"a":{}}]', '42["message-back",null,[[]],{"a":{}}]'],
    ["text of many bytes", '42["message","тест €🏳️‍🌈"]', '42["message-back","тест €🏳️‍🌈"]'],
    ["spaces in the JSON", '42[ "message" , 1 ]', '42["message-back",1]'],
    ["an acknowledgement", '42456["message-with-ack",1,"2",{"3":[false]}]', '43456[1,"2",{"3":[false]}]'],
    ["acknowledgement 0", '420["message-with-ack"]', "430[]"],
  ];
  for (const [title, packet, answer] of exact) {
    check(`event: ${title}`, async (t) => {
      const link = await joined(t);
      await link.send(packet);
      assert.equal(await link.next(), answer);
    });
  }

  check("binary event with two attachments", async (t) => {
    const link = await joined(t);
    const packet = '452-["message",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]';
    await link.send(packet, Buffer.from([1, 2, 3]), Buffer.from([4, 5, 6]));
    assert.equal(await link.next(), packet.replace('"message"', '"message-back"'));
    assert.deepEqual(await link.next(), Buffer.from([1, 2, 3]));
    assert.deepEqual(await link.next(), Buffer.from([4, 5, 6]));
  });

  check("binary event, nested and out of order", async (t) => {
    const link = await joined(t);
    const packet = '452-["message",{"a":[{"_placeholder":true,"num":1}],"b":{"_placeholder":true,"num":0}}]';
    await link.send(packet, Buffer.from([9]), Buffer.from([8, 8]));
    const answer = '452-["message-back",{"a":[{"_placeholder":true,"num":0}],"b":{"_placeholder":true,"num":1}}]';
    assert.equal(await link.next(), answer);
    assert.deepEqual([await link.next(), await link.next()], [Buffer.from([8, 8]), Buffer.from([9])]);
  });

  check("binary acknowledgement", async (t) => {
    const link = await joined(t);
    await link.send('451-789["message-with-ack",{"_placeholder":true,"num":0}]', Buffer.from([1, 2, 3]));
    assert.equal(await link.next(), '461-789[{"_placeholder":true,"num":0}]');
    assert.deepEqual(await link.next(), Buffer.from([1, 2, 3]));
  });

  check("attachments that come in messages of their own, with a pause", async (t) => {
    const link = await joined(t);
    await link.send('451-["message",{"_placeholder":true,"num":0}]');
    await sleep(60);
    await link.send(Buffer.from([1]));
    assert.equal(await link.next(), '451-["message-back",{"_placeholder":true,"num":0}]');
    assert.deepEqual(await link.next(), Buffer.from([1]));
  });

  check("an attachment that is named twice, and one that is not named", async (t) => {
    const link = await joined(t);
    const twice = '[{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}]';
    await link.send(`451-["message",${twice}]`, Buffer.from([1]));
    const packet = await link.next();
    assert.match(packet, /^45[12]-\["message-back",/);
    for (let i = 0; i < Number(packet[2]); i++) assert.deepEqual(await link.next(), Buffer.from([1]));
    await link.send('451-["message","x"]', Buffer.from([1]));
    assert.equal(await link.next(), '42["message-back","x"]');
  });

  check("acknowledgements that nobody waits for, unknown events and an event without payload are ignored", async (t) => {
    const link = await joined(t);
    await link.send("43999[1]");
    await link.send('42["nobody-handles-this",1]');
    await link.send("42[7,1]");
    await link.send('42["message","alive"]');
    assert.equal(await link.next(), '42["message-back","alive"]');
  });
}

function violations(check, Link, joined) {
  const bin = Buffer.from([1]);
  const closing = [
    ["a second CONNECT", ["40"]],
    ["CONNECT_ERROR from a client", ['44{"message":"x"}']],
    ["an event for a namespace not joined", ['42/custom,["message",1]']],
    ["an acknowledgement for a namespace not joined", ["43/custom,1[1]"]],
    ["a DISCONNECT of a namespace not joined", ["41/custom,"]],
    ["an unknown packet type", ["4abc"]],
    ["packet type 7", ["47"]],
    ["packet type 9", ['49["message"]']],
    ["an empty packet", ["4"]],
    ["invalid JSON", ["42{"]],
    ["JSON that is cut", ['42["message",1']],
    ["JSON with garbage behind", ['42["message",1]x']],
    ["an event that is an object", ['42{"message":1}']],
    ["an event that is an empty list", ["42[]"]],
    ["an event whose name is an object", ["42[{}]"]],
    ["an event whose name is null", ["42[null]"]],
    ["the reserved event connect", ['42["connect"]']],
    ["the reserved event connect_error", ['42["connect_error"]']],
    ["the reserved event disconnect", ['42["disconnect"]']],
    ["the reserved event disconnecting", ['42["disconnecting"]']],
    ["the reserved event newListener", ['42["newListener"]']],
    ["the reserved event removeListener", ['42["removeListener"]']],
    ["an acknowledgement that is an object", ["431{}"]],
    ["a DISCONNECT with a payload", ['41{"a":1}']],
    ["a binary event without anything", ["45"]],
    ["a binary event without a count", ['45["message",{"_placeholder":true,"num":0}]']],
    ["a binary event with a count of 0", ['450-["message",1]']],
    ["a binary event with a negative count", ['45-1-["message",1]']],
    ["a binary event with 11 attachments", ['4511-["message",1]']],
    ["a count that is no integer", ['451.5-["message",1]']],
    ["text while an attachment is due", ['451-["message",{"_placeholder":true,"num":0}]', '42["message",1]']],
    ["binary that was not announced", [bin]],
    ["a placeholder out of range", ['451-["message",{"_placeholder":true,"num":1}]', bin]],
    ["a placeholder whose number is text", ['451-["message",{"_placeholder":true,"num":"0"}]', bin]],
    ["a negative placeholder", ['451-["message",{"_placeholder":true,"num":-1}]', bin]],
  ];
  for (const [title, packets] of closing) {
    check(`closes the connection: ${title}`, async (t) => {
      const link = await joined(t);
      await link.send(...packets);
      assert.deepEqual(await link.gone(), []);
    });
  }

  const beforeConnect = [
    ["an event before CONNECT", ['42["message",1]']],
    ["an acknowledgement before CONNECT", ["431[1]"]],
    ["CONNECT with a list", ["40[1]"]],
    ["CONNECT with null", ["40null"]],
    ["CONNECT with a string", ['40"x"']],
    ["CONNECT with broken JSON", ["40{"]],
    ["binary before CONNECT", [bin]],
  ];
  for (const [title, packets] of beforeConnect) {
    check(`closes the connection: ${title}`, async (t) => {
      const link = await Link.open(t);
      await link.send(...packets);
      assert.deepEqual(await link.gone(900), []);
    });
  }
}

function http() {
  test("a client of Socket.IO v2 is refused, unless it is allowed", async (t) => {
    const socket = io2(server.url, { forceNew: true, reconnection: false });
    t.defer(() => socket.close());
    await within(new Promise((resolve) => socket.on("connect_error", resolve)), 3_000, "refusal");
    const { status, text } = await request(`${base}?EIO=3&transport=polling`);
    assert.deepEqual([status, text], [400, '{"code":5,"message":"Unsupported protocol version"}']);
  });

  test("the client bundles are served, with ETag and 304", async () => {
    for (const file of FILES) {
      const response = await request(base + file);
      assert.equal(response.status, 200, file);
      const type = file.endsWith(".map") ? "application/json" : "application/javascript";
      assert.equal(response.headers["content-type"], `${type}; charset=utf-8`);
      assert.equal(response.headers["cache-control"], "public, max-age=0");
      assert.equal(response.headers["content-encoding"], undefined);
      assert.match(response.headers.etag, /^"4\.\d+\.\d+"$/);
      assert.ok(response.bytes.equals(onDisk(file)), `${file} is not the file of the package`);
      for (const known of [response.headers.etag, `W/${response.headers.etag}`]) {
        const again = await request(base + file, { headers: { "If-None-Match": known } });
        assert.equal(again.status, 304);
        assert.equal(again.text, "");
      }
      const changed = await request(base + file, { headers: { "If-None-Match": '"0.0.0"' } });
      assert.equal(changed.status, 200);
    }
  });

  test("the client bundles are served with a query, and to HEAD", async () => {
    const response = await request(`${base}socket.io.js?buster=${Date.now()}&x=/../y`);
    assert.equal(response.status, 200);
    assert.ok(response.bytes.equals(onDisk("socket.io.js")));
    const head = await request(`${base}socket.io.js`, { method: "HEAD" });
    assert.equal(head.status, 200);
    assert.equal(head.text, "");
  });

  test("the client bundles are compressed as the client asks", async () => {
    const decoders = { br: brotliDecompressSync, gzip: gunzipSync, deflate: inflateSync };
    for (const file of ["socket.io.js", "socket.io.min.js.map"]) {
      for (const [coding, decode] of Object.entries(decoders)) {
        // The reference compresses anew for each answer, and takes seconds for Brotli.
        for (const accept of coding === "br" ? [coding] : [coding, `zstd, ${coding};q=0.8`, `${coding}, *;q=0`]) {
          const response = await request(base + file, { headers: { "Accept-Encoding": accept } });
          assert.equal(response.status, 200);
          assert.equal(response.headers["content-encoding"], coding, accept);
          assert.ok(response.bytes.length < onDisk(file).length / 2);
          assert.ok(decode(response.bytes).equals(onDisk(file)), `${file} as ${coding} is something else`);
        }
      }
      const weighed = await request(base + file, { headers: { "Accept-Encoding": "br;q=0.1, deflate;q=0.2, gzip;q=0.9" } });
      assert.equal(weighed.headers["content-encoding"], "gzip");
      for (const none of ["zstd", "br;q=0, gzip;q=0, deflate;q=0"]) {
        const response = await request(base + file, { headers: { "Accept-Encoding": none } });
        assert.equal(response.headers["content-encoding"], undefined, none);
        assert.ok(response.bytes.equals(onDisk(file)));
      }
    }
  }, { timeout_ms: 30_000 });

  test("the client bundles carry the CORS headers", async () => {
    const response = await request(`${base}socket.io.js`, { headers: { Origin: "https://example.org" } });
    assert.equal(response.headers["access-control-allow-origin"], "*");
    const preflight = await request(`${base}socket.io.js`, {
      method: "OPTIONS",
      headers: { Origin: "https://example.org", "Access-Control-Request-Method": "GET" },
    });
    assert.equal(preflight.status, 204);
    assert.equal(preflight.headers["access-control-allow-origin"], "*");
  });

  test("other files below the path are not served", async () => {
    for (const file of ["foo.js", "socket.io.jsx", "socket.io.js.gz", "package.json", "x/socket.io.js", "socket.io.js/", "Socket.io.js", ""]) {
      const response = await request(base + file);
      assert.equal(response.status, 400, file);
      assert.deepEqual(JSON.parse(response.text), { code: 0, message: "Transport unknown" });
    }
  });

  test("bundles below another path are not found", async () => {
    for (const path of ["/socket.io.js", "/dist/socket.io.js", "/socket.io", "/socketio/socket.io.js", "/"]) {
      assert.equal((await request(server.url + path)).status, 404, path);
    }
  });
}
