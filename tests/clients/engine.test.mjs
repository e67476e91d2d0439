// Raw Engine.IO v4 against `conformance_server --profile engine`: what engine.io-protocol asks for, and the error table.
import { randomBytes } from "node:crypto";
import { brotliDecompressSync, gunzipSync, inflateSync } from "node:zlib";
import { assert, run, sleep, test, until, within } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { Polling, Tcp, Ws, request } from "./lib/raw.mjs";

const server = await target("engine_reference.js");
const base = `${server.url}/engine.io/`;
const wsBase = `${server.ws}/engine.io/`;
const wsUrl = `${wsBase}?EIO=4&transport=websocket`;
const OPEN_KEYS = ["maxPayload", "pingInterval", "pingTimeout", "sid", "upgrades"];

const open = (query) => Polling.open(base, query);

async function openWs(t, url = wsUrl, options) {
  const ws = await Ws.open(url, options);
  t.defer(() => ws.end());
  return ws;
}

/** A WebSocket past its open packet. */
async function session(t) {
  const ws = await openWs(t);
  ws.handshake = JSON.parse((await ws.next()).slice(1));
  return ws;
}

/** Waits until the server no longer knows the session; asks with a noop, which changes nothing. */
const forgotten = (polling, ms = 1_500) =>
  until(async () => {
    const { status, text } = await polling.post("6");
    return status === 400 && JSON.parse(text).code === 1;
  }, "forgotten session", ms);

function isError(response, code, message) {
  assert.equal(response.status, 400);
  assert.match(response.headers["content-type"], /^application\/json/);
  assert.deepEqual(JSON.parse(response.text), { code, message });
}

async function refusedWs(url, status = 400) {
  const ws = new Ws(url);
  const outcome = await ws.opened.then(
    () => within(ws.closed, 3_000, "end of a WebSocket that should be refused"),
    (error) => error,
  );
  ws.end();
  if (outcome.status !== undefined) assert.equal(outcome.status, status);
}

handshake();
errors();
messages();
limits();
heartbeat();
closing();
upgrade();
httpExtras();
await run({ parallel: 4, finish: server.stop });

function handshake() {
  test("polling handshake", async () => {
    const { response, handshake: packet } = await open();
    assert.equal(response.text[0], "0");
    assert.deepEqual(Object.keys(packet).sort(), OPEN_KEYS);
    assert.deepEqual(packet.upgrades, ["websocket"]);
    assert.deepEqual([packet.pingInterval, packet.pingTimeout, packet.maxPayload], [300, 200, 1_000_000]);
    assert.match(packet.sid, /^[\w-]{20,}$/);
    assert.match(response.headers["content-type"], /^text\/plain; charset=utf-8$/i);
    assert.equal(response.headers["cache-control"], "no-store");
    assert.equal(response.headers["set-cookie"], undefined);
    assert.equal(Number(response.headers["content-length"]), response.bytes.length);
  });

  test("websocket handshake", async (t) => {
    const ws = await openWs(t);
    const packet = await ws.next();
    assert.equal(packet[0], "0");
    const body = JSON.parse(packet.slice(1));
    assert.deepEqual(Object.keys(body).sort(), OPEN_KEYS);
    assert.deepEqual(body.upgrades, []);
    assert.deepEqual([body.pingInterval, body.pingTimeout, body.maxPayload], [300, 200, 1_000_000]);
  });

  test("session ids differ", async () => {
    const sessions = await Promise.all(Array.from({ length: 50 }, () => open()));
    assert.equal(new Set(sessions.map(({ sid }) => sid)).size, 50);
  });

  test("other query parameters, any order, any path behind the prefix", async () => {
    for (const url of [`${base}?x=1&transport=polling&t=abc&EIO=4`, `${base}deeper/?EIO=4&transport=polling`]) {
      assert.equal((await request(url)).status, 200);
    }
  });
}

function errors() {
  const unknown = [0, "Transport unknown"];
  const refusals = [
    ["no transport", "?EIO=4", {}, ...unknown],
    ["no query at all", "", {}, ...unknown],
    ["transport abc", "?EIO=4&transport=abc", {}, ...unknown],
    ["transport constructor", "?EIO=4&transport=constructor", {}, ...unknown],
    ["transport __proto__", "?EIO=4&transport=__proto__", {}, ...unknown],
    ["transport webtransport", "?EIO=4&transport=webtransport", {}, ...unknown],
    ["unknown sid", "?EIO=4&transport=polling&sid=abc", {}, 1, "Session ID unknown"],
    ["sid constructor", "?EIO=4&transport=polling&sid=constructor", {}, 1, "Session ID unknown"],
    ["POST without sid", "?EIO=4&transport=polling", { method: "POST", body: "x" }, 2, "Bad handshake method"],
    ["PUT without sid", "?EIO=4&transport=polling", { method: "PUT", body: "x" }, 2, "Bad handshake method"],
    ["websocket without upgrade", "?EIO=4&transport=websocket", {}, 3, "Bad request"],
    ["no EIO", "?transport=polling", {}, 5, "Unsupported protocol version"],
    ["EIO abc", "?EIO=abc&transport=polling", {}, 5, "Unsupported protocol version"],
    ["EIO 3", "?EIO=3&transport=polling", {}, 5, "Unsupported protocol version"],
    ["EIO 5", "?EIO=5&transport=polling", {}, 5, "Unsupported protocol version"],
  ];
  for (const [name, query, options, code, message] of refusals) {
    test(`refused: ${name}`, async () => isError(await request(base + query, options), code, message));
  }

  test("refused: a websocket session's sid over polling", async (t) => {
    const { handshake: { sid } } = await session(t);
    isError(await request(`${base}?EIO=4&transport=polling&sid=${sid}`), 3, "Bad request");
  });

  test("refused: another protocol version than the session's", async () => {
    const polling = await open();
    isError(await request(polling.url.replace("EIO=4", "EIO=3")), 3, "Bad request");
  });

  test("refused: an Origin with illegal characters", async (t) => {
    const tcp = await Tcp.open(server.host, server.port);
    t.defer(() => tcp.end());
    tcp.write(`GET /engine.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: a\r\nOrigin: http://a\x01b\r\nConnection: close\r\n\r\n`);
    await tcp.until(({ text }) => text.includes("\r\n\r\n"));
    assert.match(tcp.text, /^HTTP\/1\.1 400 /);
  });

  const wsRefusals = [
    ["no transport", "?EIO=4"],
    ["transport abc", "?EIO=4&transport=abc"],
    ["transport __proto__", "?EIO=4&transport=__proto__"],
    ["no EIO", "?transport=websocket"],
    ["EIO abc", "?EIO=abc&transport=websocket"],
    ["unknown sid", "?EIO=4&transport=websocket&sid=abc"],
  ];
  for (const [name, query] of wsRefusals) test(`websocket refused: ${name}`, () => refusedWs(wsBase + query));

  test("a method that is neither GET nor POST with a sid is refused", async () => {
    const polling = await open();
    assert.ok((await request(polling.url, { method: "PUT", body: "4x" })).status >= 400);
  });
}

function messages() {
  test("polling: text there and back", async () => {
    const polling = await open();
    const post = await polling.post("4hello");
    assert.equal(post.status, 200);
    assert.equal(post.text, "ok");
    assert.match(post.headers["content-type"], /^text\/html/);
    const get = await polling.get();
    assert.equal(get.text, "4hello");
    assert.match(get.headers["content-type"], /^text\/plain; charset=utf-8$/i);
  });

  test("polling: several packets in a payload, multibyte text between", async () => {
    const polling = await open();
    await polling.post("4test1\x1e4тест €🏳️‍🌈\x1e4\x1e4test3");
    assert.deepEqual(await polling.packets(4), ["4test1", "4тест €🏳️‍🌈", "4", "4test3"]);
  });

  test("polling: binary as base64, padded or empty, mixed with text", async () => {
    const polling = await open();
    await polling.post("bAQIDBA==\x1e4text\x1eb\x1eb//79");
    assert.deepEqual(await polling.packets(4), ["bAQIDBA==", "4text", "b", "b//79"]);
  });

  // Android's encoder breaks lines after 76 characters and at the end, others use the alphabet for URLs. The reference
  // passes all of it to Buffer.from, so that is what counts.
  const lines = (text, end = "\n") => text.replace(/.{76}/g, `$&${end}`) + end;
  const dressed = {
    "line breaks after 76 characters and at the end": (base64) => lines(base64),
    "CRLF after 76 characters and at the end": (base64) => lines(base64, "\r\n"),
    "- and _": (base64) => base64.replaceAll("+", "-").replaceAll("/", "_"),
    "- and _ without padding": (base64) => base64.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", ""),
    "surplus padding": (base64) => `${base64}===`,
    "too little padding": (base64) => base64.replace(/==$/, "="),
    "white space": (base64) => base64.split("").join(" \t"),
    "characters of no alphabet": (base64) => `!${base64.slice(0, 5)}é${base64.slice(5)}.`,
    "a second text after the padding": (base64) => `${base64}=${base64}`,
  };
  for (const [name, dress] of Object.entries(dressed)) {
    test(`base64 with ${name}`, async (t) => {
      const polling = await open();
      const ws = await session(t);
      for (const length of [1, 2, 3, 4, 5, 56, 57, 58, 200, 1_000]) {
        const text = dress(randomBytes(length).toString("base64"));
        const back = Buffer.from(text, "base64");
        await polling.post(`4before\x1eb${text}\x1e4after`);
        assert.deepEqual(await polling.packets(3), ["4before", `b${back.toString("base64")}`, "4after"]);
        ws.send(`b${text}`);
        assert.ok(back.equals(await ws.next()), text);
      }
    });
  }

  test("base64 that is any text is read as Buffer.from reads it", async () => {
    const polling = await open();
    const alphabet = ["A", "Q", "b", "z", "9", "+", "/", "-", "_", "=", "\n", " ", "!", "é", "Ł", "😀", "\0", "\r"];
    const any = () => Array.from({ length: Math.random() * 14 }, () => alphabet[Math.floor(Math.random() ** 1.5 * 18)]).join("");
    for (let round = 0; round < 20; round++) {
      const texts = Array.from({ length: 100 }, any);
      await polling.post(texts.map((text) => `b${text}`).join("\x1e"));
      const back = await polling.packets(texts.length);
      texts.forEach((text, i) => assert.equal(back[i], `b${Buffer.from(text, "base64").toString("base64")}`, JSON.stringify(text)));
    }
  });

  test("polling: a waiting GET is answered by the message", async () => {
    const polling = await open();
    const get = polling.get();
    await sleep(50);
    await polling.post("4late");
    assert.equal((await get).text, "4late");
  });

  test("polling: a chunked POST, split inside a character", async () => {
    const polling = await open();
    const body = Buffer.from("4тест");
    const post = await polling.post(undefined, { chunks: [body.subarray(0, 2), body.subarray(2, 5), body.subarray(5)] });
    assert.equal(post.status, 200);
    assert.deepEqual(await polling.packets(), ["4тест"]);
  });

  test("polling: other content types are accepted", async () => {
    const polling = await open();
    for (const type of ["application/json", "text/plain;charset=UTF-8", "x/y"]) {
      await polling.post("4typed", { headers: { "Content-Type": type } });
      assert.deepEqual(await polling.packets(), ["4typed"]);
    }
  });

  test("polling: many messages keep their order", async () => {
    const polling = await open();
    const all = Array.from({ length: 500 }, (_, i) => `4${i}`);
    for (let i = 0; i < 500; i += 100) await polling.post(all.slice(i, i + 100).join("\x1e"));
    assert.deepEqual(await polling.packets(500), all);
  });

  test("websocket: text, multibyte, empty", async (t) => {
    const ws = await session(t);
    for (const text of ["4hello", "4тест €🏳️‍🌈", "4", `4${"x".repeat(70_000)}`]) {
      ws.send(text);
      assert.equal(await ws.next(), text);
    }
  });

  test("websocket: binary, small, empty, 70 KB", async (t) => {
    const ws = await session(t);
    for (const data of [Buffer.from([1, 2, 3, 4]), Buffer.alloc(0), Buffer.alloc(70_000, 7)]) {
      ws.send(data);
      const back = await ws.next();
      assert.ok(Buffer.isBuffer(back) && back.equals(data));
    }
  });

  test("websocket: many messages in one go keep their order", async (t) => {
    const ws = await session(t);
    const all = Array.from({ length: 1_000 }, (_, i) => `4${i}`);
    for (const message of all) ws.send(message);
    for (const message of all) assert.equal(await ws.next(), message);
  });

  test("websocket: noop, upgrade and open packets of a client are ignored", async (t) => {
    const ws = await session(t);
    for (const packet of ["6", "5", "0"]) ws.send(packet);
    ws.send("4after");
    assert.equal(await ws.next(), "4after");
  });
}

function limits() {
  test("polling: a POST as long as the limit passes", async () => {
    const polling = await open();
    const body = `4${"x".repeat(999_999)}`;
    assert.equal((await polling.post(body)).status, 200);
    assert.equal((await polling.packets())[0].length, 1_000_000);
  });

  test("polling: a longer POST gets 413 and the session stays", async () => {
    const polling = await open();
    const post = await polling.post(`4${"x".repeat(1_000_000)}`).catch((error) => ({ status: error.code }));
    assert.ok([413, "ECONNRESET", "EPIPE"].includes(post.status), `status ${post.status}`);
    assert.equal(post.text ?? "", "");
    await polling.post("4still");
    assert.deepEqual(await polling.packets(), ["4still"]);
  });

  test("polling: a chunked POST over the limit gets 413", async () => {
    const polling = await open();
    const chunks = Array.from({ length: 12 }, () => Buffer.alloc(100_000, 0x34));
    const post = await polling.post(undefined, { chunks }).catch((error) => ({ status: error.code }));
    assert.ok([413, "ECONNRESET", "EPIPE"].includes(post.status), `status ${post.status}`);
  });

  test("websocket: a message of the limit's length passes, a longer one closes with 1009", async (t) => {
    const ws = await session(t);
    ws.send(`4${"x".repeat(999_999)}`);
    assert.equal((await ws.next()).length, 1_000_000);
    ws.send(`4${"x".repeat(1_000_000)}`);
    assert.deepEqual(await ws.gone(), { code: 1009, reason: "" });
  });
}

function heartbeat() {
  test("polling: pings every interval, pongs keep the session", async () => {
    const polling = await open();
    for (let i = 0; i < 3; i++) {
      const start = performance.now();
      assert.equal((await polling.get()).text, "2");
      const took = performance.now() - start;
      assert.ok(took > 150 && took < 700, `a ping after ${took} ms`);
      assert.equal((await polling.post("3")).status, 200);
    }
  });

  test("polling: without a pong the session ends", async () => {
    const polling = await open();
    assert.equal((await polling.get()).text, "2");
    await sleep(500);
    isError(await polling.get(), 1, "Session ID unknown");
  });

  test("polling: without any poll the session ends too", async () => {
    const polling = await open();
    await sleep(900);
    isError(await polling.post("4x"), 1, "Session ID unknown");
  });

  test("websocket: pings every interval, pongs keep the session", async (t) => {
    const ws = await session(t);
    ws.answerPings = false;
    for (let i = 0; i < 3; i++) {
      assert.equal(await ws.next(), "2");
      ws.send("3");
    }
    ws.send("4alive");
    assert.equal(await ws.next(), "4alive");
  });

  test("websocket: without a pong the connection ends", async (t) => {
    const ws = await session(t);
    ws.answerPings = false;
    const start = performance.now();
    await ws.gone();
    const took = performance.now() - start;
    assert.ok(took > 350 && took < 1_000, `${took} ms`);
  });

  test("websocket: another packet while the pong is due prolongs the wait", async (t) => {
    const ws = await session(t);
    ws.answerPings = false;
    assert.equal(await ws.next(), "2");
    const start = performance.now();
    await sleep(120);
    ws.send("4instead of a pong");
    await ws.gone();
    const took = performance.now() - start;
    assert.ok(took > 270 && took < 900, `${took} ms`);
  });

  test("websocket: a ping from the client is an error", async (t) => {
    const ws = await session(t);
    ws.send("2");
    await ws.gone(1_000);
  });
}

function closing() {
  test("polling: a close packet ends the session, the waiting GET gets a noop", async () => {
    const polling = await open();
    const get = polling.get();
    await sleep(30);
    assert.equal((await polling.post("1")).status, 200);
    assert.equal((await get).text, "6");
    isError(await polling.get(), 1, "Session ID unknown");
  });

  // The reference has one thread: there a poll that was sent first comes first.
  test("polling: a close packet may overtake a poll, which gets a noop", async () => {
    for (let round = 0; round < 10; round++) {
      const polling = await open();
      assert.equal((await polling.post("1")).status, 200);
      const get = await polling.get();
      assert.deepEqual([get.status, get.text], [200, "6"]);
      isError(await polling.get(), 1, "Session ID unknown");
    }
  }, { skip: server.isReference ? "ours alone" : "" });

  test("polling: a poll and a close packet at once", async () => {
    for (let round = 0; round < 10; round++) {
      const polling = await open();
      const [get, post] = await Promise.all([polling.get(), polling.post("1")]);
      assert.deepEqual([get.status, get.text, post.status], [200, "6", 200]);
      isError(await polling.get(), 1, "Session ID unknown");
    }
  });

  test("polling: a second GET beside a waiting one ends the session", async () => {
    const polling = await open();
    const first = polling.get();
    await sleep(30);
    assert.equal((await polling.get()).status, 400);
    const { status, text } = await first;
    assert.deepEqual([status, text], [200, "1"]);
    isError(await polling.get(), 1, "Session ID unknown");
  });

  test("polling: a second POST beside an unfinished one ends the session", async (t) => {
    const polling = await open();
    const tcp = await Tcp.open(server.host, server.port);
    t.defer(() => tcp.end());
    const path = new URL(polling.url).pathname + new URL(polling.url).search;
    tcp.write(`POST ${path} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n4abc`);
    await sleep(80);
    assert.equal((await polling.post("4x")).status, 400);
    isError(await polling.get(), 1, "Session ID unknown");
  });

  test("polling: an aborted GET ends the session", async () => {
    const polling = await open();
    const cut = new AbortController();
    const get = polling.get({ signal: cut.signal }).catch(() => {});
    await sleep(50);
    cut.abort();
    await get;
    await sleep(100);
    isError(await polling.get(), 1, "Session ID unknown");
  });

  test("polling: an aborted POST ends the session", async () => {
    const polling = await open();
    const tcp = await Tcp.open(server.host, server.port);
    const path = new URL(polling.url).pathname + new URL(polling.url).search;
    tcp.write(`POST ${path} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n4abc`);
    await sleep(50);
    tcp.end();
    await sleep(100);
    isError(await polling.get(), 1, "Session ID unknown");
  });

  for (const [name, body] of [["an unknown packet type", "abc"], ["an empty body", ""], ["an empty packet", "4a\x1e"]]) {
    test(`polling: ${name} ends the session`, async () => {
      const polling = await open();
      assert.ok([200, 400].includes((await polling.post(body)).status));
      await forgotten(polling);
    });
  }

  test("polling: a binary content type is refused and ends the session", async () => {
    const polling = await open();
    const post = await polling.post("4x", { headers: { "Content-Type": "application/octet-stream" } });
    assert.equal(post.status, 400);
    await forgotten(polling);
  });

  test("polling: packets before an undecodable one are still delivered or dropped, never both", async () => {
    const polling = await open();
    const get = polling.get();
    await sleep(30);
    await polling.post("4one\x1eabc");
    assert.ok(["4one", "1", "6", "4one\x1e1"].includes((await get).text));
    await forgotten(polling);
  });

  test("websocket: a close packet ends the connection", async (t) => {
    const ws = await session(t);
    ws.answerPings = false;
    ws.send("1");
    await ws.gone(1_500);
  });

  for (const [name, message] of [["an unknown packet type", "abc"], ["an empty frame", ""]]) {
    test(`websocket: ${name} ends the connection`, async (t) => {
      const ws = await session(t);
      ws.send(message);
      await ws.gone(1_000);
    });
  }

  test("websocket: a closed socket is a closed session", async (t) => {
    const ws = await session(t);
    ws.socket.close();
    await ws.gone();
    await sleep(50);
    await refusedWs(`${wsUrl}&sid=${ws.handshake.sid}`);
  });
}

function upgrade() {
  const probe = async (t, polling) => {
    const ws = await openWs(t, `${wsUrl}&sid=${polling.sid}`);
    ws.send("2probe");
    assert.equal(await ws.next(), "3probe");
    return ws;
  };

  test("upgrade: probe, noop for the waiting GET, then everything over websocket", async (t) => {
    const polling = await open();
    const get = polling.get();
    await sleep(30);
    const ws = await probe(t, polling);
    assert.equal((await get).text, "6");
    ws.send("5");
    ws.send("4over websocket");
    assert.equal(await ws.next(), "4over websocket");
    isError(await polling.get(), 3, "Bad request");
    ws.send("4still");
    assert.equal(await ws.next(), "4still");
  });

  test("upgrade: messages sent before and during the probe arrive once, in order", async (t) => {
    const polling = await open();
    await polling.post("41");
    const ws = await probe(t, polling);
    await polling.post("42\x1e43");
    ws.send("5");
    ws.send("44");
    const seen = [];
    while (seen.length < 4) seen.push(await ws.next());
    assert.deepEqual(seen, ["41", "42", "43", "44"]);
  });

  test("upgrade: a poll that waits when it ends gets a close, and the session goes on", async (t) => {
    // While it probes, a poll is released with a noop every 100 ms: the next one should be there before the end.
    for (let wait = 20; wait < 1_000; wait *= 2) {
      const polling = await open();
      const first = polling.get();
      const ws = await probe(t, polling);
      assert.equal((await first).text, "6");
      const second = polling.get();
      await sleep(wait);
      ws.send("5");
      ws.send("4still here");
      assert.equal(await ws.next(), "4still here");
      const { status, text } = await second;
      if (text === "1") return;
      assert.ok(text === "6" || status === 400, text);
    }
    assert.fail("no poll was told");
  });

  test("upgrade: messages during the probe leave by a waiting poll", async (t) => {
    const polling = await open();
    const ws = await probe(t, polling);
    await polling.post("4by poll");
    assert.deepEqual((await polling.packets()).filter((packet) => packet !== "6"), ["4by poll"]);
    ws.send("5");
    ws.send("4by websocket");
    assert.equal(await ws.next(), "4by websocket");
  });

  test("upgrade: heartbeats go on over the new transport", async (t) => {
    const polling = await open();
    const ws = await probe(t, polling);
    ws.answerPings = false;
    ws.send("5");
    for (let i = 0; i < 2; i++) {
      assert.equal(await ws.next(), "2");
      ws.send("3");
    }
  });

  for (const first of ["4hello", "2abc", "6", "abc"]) {
    test(`upgrade: ${JSON.stringify(first)} instead of a probe closes only the new transport`, async (t) => {
      const polling = await open();
      const ws = await openWs(t, `${wsUrl}&sid=${polling.sid}`);
      ws.send(first);
      await ws.gone(1_500);
      await polling.post("4alive");
      assert.deepEqual((await polling.packets()).filter((packet) => packet !== "6"), ["4alive"]);
    });
  }

  test("upgrade: without a probe", async (t) => {
    const polling = await open();
    const get = polling.get();
    await sleep(50);
    const ws = await openWs(t, `${wsUrl}&sid=${polling.sid}`);
    ws.send("5");
    // The transport that is left closes.
    assert.equal((await get).text, "1");
    ws.send("4moved");
    assert.equal(await ws.next(), "4moved");
    isError(await polling.get(), 3, "Bad request");
  });

  test("upgrade: a client may probe again", async (t) => {
    const polling = await open();
    const ws = await probe(t, polling);
    ws.send("2probe");
    assert.equal(await ws.next(), "3probe");
    ws.send("5");
    ws.send("4moved");
    assert.equal(await ws.next(), "4moved");
  });

  test("upgrade: a second WebSocket takes a session over that began on one", async (t) => {
    const old = await session(t);
    const ws = await openWs(t, `${wsUrl}&sid=${old.handshake.sid}`);
    ws.send("2probe");
    assert.equal(await ws.next(), "3probe");
    ws.send("5");
    assert.deepEqual(await old.gone(), { code: 1005, reason: "" });
    ws.send("4moved");
    assert.equal(await ws.next(), "4moved");
    const third = await openWs(t, `${wsUrl}&sid=${old.handshake.sid}`);
    await third.gone(1_500);
    ws.send("4still here");
    assert.equal(await ws.next(), "4still here");
  });

  test("upgrade: a probe that is given up leaves the session on polling", async (t) => {
    const polling = await open();
    const ws = await probe(t, polling);
    ws.end();
    await sleep(50);
    await polling.post("4alive");
    assert.deepEqual((await polling.packets()).filter((packet) => packet !== "6"), ["4alive"]);
    const again = await probe(t, polling);
    again.send("5");
    again.send("4second try");
    assert.equal(await again.next(), "4second try");
  });

  test("upgrade: a second WebSocket while upgrading is closed, the first goes on", async (t) => {
    const polling = await open();
    const ws = await probe(t, polling);
    const second = await openWs(t, `${wsUrl}&sid=${polling.sid}`);
    await second.gone(1_500);
    ws.send("5");
    ws.send("4first");
    assert.equal(await ws.next(), "4first");
  });

  test("upgrade: a second WebSocket after the upgrade is closed, the first goes on", async (t) => {
    const polling = await open();
    const ws = await probe(t, polling);
    ws.send("5");
    ws.send("4upgraded");
    assert.equal(await ws.next(), "4upgraded");
    const second = await openWs(t, `${wsUrl}&sid=${polling.sid}`);
    second.send("2probe");
    await second.gone(1_500);
    ws.send("4unaffected");
    assert.equal(await ws.next(), "4unaffected");
  });

  test("upgrade: an unknown sid is refused", () => refusedWs(`${wsUrl}&sid=nope`));

  test("upgrade: closing the session while probing closes both", async (t) => {
    const polling = await open();
    const ws = await probe(t, polling);
    await polling.post("1");
    await ws.gone(1_500);
    await forgotten(polling);
  });
}

function httpExtras() {
  const allowed = (origin) => ["*", "http://page.test"].includes(origin);

  test("CORS: preflight", async () => {
    const headers = {
      Origin: "http://page.test",
      "Access-Control-Request-Method": "POST",
      "Access-Control-Request-Headers": "X-Probe",
    };
    const response = await request(`${base}?EIO=4&transport=polling`, { method: "OPTIONS", headers });
    assert.equal(response.status, 204);
    assert.ok(allowed(response.headers["access-control-allow-origin"]));
    assert.match(response.headers["access-control-allow-methods"], /GET/);
    assert.match(response.headers["access-control-allow-methods"], /POST/);
    assert.equal(response.headers["access-control-allow-headers"], "X-Probe");
    assert.equal(response.text, "");
  });

  test("CORS: on answers and on errors", async () => {
    for (const query of ["?EIO=4&transport=polling", "?EIO=4&transport=abc"]) {
      const response = await request(base + query, { headers: { Origin: "http://page.test" } });
      assert.ok(allowed(response.headers["access-control-allow-origin"]), query);
    }
  });

  test("answers over 1,024 bytes are compressed for who accepts it", async () => {
    const polling = await open();
    const long = `4${"long ".repeat(400)}`;
    await polling.post(long);
    const packed = await polling.get({ headers: { "Accept-Encoding": "gzip, deflate" } });
    assert.equal(packed.headers["content-encoding"], "gzip");
    assert.equal(gunzipSync(packed.bytes).toString(), long);
    await polling.post("4short");
    const short = await polling.get({ headers: { "Accept-Encoding": "gzip" } });
    assert.equal(short.headers["content-encoding"], undefined);
    assert.equal(short.text, "4short");
    await polling.post(long);
    assert.equal((await polling.get()).text, long);
  });

  for (const [accept, coding, unpack] of [
    ["deflate", "deflate", inflateSync],
    ["gzip;q=0, deflate;q=0.5, *;q=0", "deflate", inflateSync],
    ["gzip, deflate, br, zstd", "gzip", gunzipSync],
    ["br", "br", brotliDecompressSync],
    ["identity", undefined, (bytes) => bytes],
    ["*;q=0", undefined, (bytes) => bytes],
  ]) {
    // The reference knows no Brotli.
    const skip = server.isReference && coding === "br" ? "ours alone" : "";
    test(`Accept-Encoding: ${accept}`, async () => {
      const polling = await open();
      const long = `4${"long тест ".repeat(300)}`;
      const get = polling.get({ headers: { "Accept-Encoding": accept } });
      await sleep(20);
      await polling.post(long);
      const { headers, bytes } = await get;
      assert.equal(headers["content-encoding"], coding);
      // On a busy machine a ping may come along.
      assert.ok(unpack(bytes).toString().split("\x1e").includes(long));
    }, { skip });
  }

  test("JSONP: long calls are compressed as a whole", async () => {
    const hello = (await request(`${base}?EIO=4&transport=polling&j=7`)).text;
    const { sid } = JSON.parse(JSON.parse(/^___eio\[7\]\((.*)\);$/s.exec(hello)[1]).slice(1));
    const url = `${base}?EIO=4&transport=polling&sid=${sid}`;
    const headers = { "Content-Type": "application/x-www-form-urlencoded" };
    const text = "4line\nline ".repeat(200);
    const body = `d=${encodeURIComponent(text.replaceAll("\n", "\\n"))}`;
    await request(url, { method: "POST", body, headers });
    const packed = await request(url, { headers: { "Accept-Encoding": "gzip" } });
    assert.equal(packed.headers["content-encoding"], "gzip");
    const call = gunzipSync(packed.bytes).toString();
    assert.equal(JSON.parse(/^___eio\[7\]\((.*)\);$/s.exec(call)[1]), text);
  });

  test("other methods with a sid are refused and change nothing", async () => {
    const polling = await open();
    for (const method of ["PUT", "DELETE", "PATCH"]) {
      const { status, text } = await request(polling.url, { method, body: "4x" });
      assert.deepEqual([status, text], [500, ""]);
    }
    await polling.post("4alive");
    assert.deepEqual(await polling.packets(), ["4alive"]);
  });

  test("the first subprotocol of a client is chosen", async (t) => {
    const polling = await open();
    for (const url of [wsUrl, `${wsUrl}&sid=${polling.sid}`]) {
      const ws = await Ws.open(url, {}, ["chat.v2", "chat.v1"]);
      t.defer(() => ws.end());
      assert.equal(ws.socket.protocol, "chat.v2");
    }
  });

  test("old browsers get X-XSS-Protection: 0", async () => {
    const headers = { "User-Agent": "Mozilla/5.0 (Windows NT 6.3; Trident/7.0; rv:11.0) like Gecko" };
    const response = await request(`${base}?EIO=4&transport=polling`, { headers });
    assert.equal(response.headers["x-xss-protection"], "0");
  });

  test("JSONP: answers are calls, POST bodies are forms", async () => {
    const unwrap = (text) => JSON.parse(/^___eio\[0\]\((.*)\);$/s.exec(text)[1]);
    const hello = unwrap((await request(`${base}?EIO=4&transport=polling&j=0`)).text);
    const { sid } = JSON.parse(hello.slice(1));
    const url = `${base}?EIO=4&transport=polling&j=0&sid=${sid}`;
    const headers = { "Content-Type": "application/x-www-form-urlencoded" };
    const body = `d=${encodeURIComponent("4hello \"you\" \u2028")}`;
    assert.equal((await request(url, { method: "POST", body, headers })).status, 200);
    assert.equal(unwrap((await request(url)).text), "4hello \"you\" \u2028");
  });
}
