// Engine.IO v3 against `conformance_server --profile engine3`: on the wire, and with engine.io-client 3.x and 6.x from npm.
import https from "node:https";
import { Socket } from "engine.io-client";
import eio3 from "engine.io-client-3";
import { assert, run, sleep, test, until, within } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { Ws, request } from "./lib/raw.mjs";

const server = await target("engine_reference.js", ["--profile", "engine3"]);
const base = `${server.url}/engine.io/`;
const polling = `${base}?EIO=3&transport=polling`;
const websocket = `${server.ws}/engine.io/?EIO=3&transport=websocket`;
const OPEN_KEYS = ["maxPayload", "pingInterval", "pingTimeout", "sid", "upgrades"];
const BYTES = { "Content-Type": "application/octet-stream" };

/** A polling session: its handshake's response and its URL. */
async function open(query = "") {
  const response = await request(polling + query);
  assert.equal(response.status, 200, response.text);
  const packet = JSON.parse(/{.*}/.exec(response.text)[0]);
  return { response, packet, url: `${polling}&sid=${packet.sid}` };
}

const post = (session, body, headers) => request(session.url, { method: "POST", body, headers });
const poll = (session) => request(session.url);

async function gone(session, ms = 1_500) {
  const code = async () => {
    const { status, text } = await post(session, "1:6");
    return status === 400 && JSON.parse(text).code === 1;
  };
  await until(code, "forgotten session", ms);
}

async function openWs(t, url = websocket) {
  const ws = await Ws.open(url);
  t.defer(() => ws.end());
  ws.answerPings = false;
  ws.packet = JSON.parse((await ws.next()).slice(1));
  return ws;
}

const utf16 = (packet) => `${packet.length}:${packet}`;

onTheWire();
broken();
heartbeat();
overWebSocket();
clients();
await run({ parallel: 4, finish: server.stop });

function onTheWire() {
  for (const query of ["EIO=3&", "", "EIO=2&"]) {
    test(`polling handshake with "${query}"`, async () => {
      const { status, text, headers } = await request(`${base}?${query}transport=polling`);
      assert.equal(status, 200);
      const [, length, packet] = /^(\d+):(0.*)$/.exec(text);
      assert.equal(Number(length), packet.length);
      const body = JSON.parse(packet.slice(1));
      assert.deepEqual(Object.keys(body).sort(), OPEN_KEYS);
      assert.deepEqual(body.upgrades, ["websocket"]);
      assert.match(headers["content-type"], /^text\/plain; charset=utf-8$/i);
    });
  }

  test("the version does not change in mid-session", async () => {
    const old = await open();
    const response = await request(old.url.replace("EIO=3", "EIO=4"));
    assert.deepEqual([response.status, JSON.parse(response.text).code], [400, 3]);
    const wrong = websocket.replace("EIO=3", "EIO=4") + `&sid=${old.packet.sid}`;
    await assert.rejects(Ws.open(wrong), { status: 400 });
    const fresh = await request(`${base}?EIO=4&transport=polling`);
    const { sid } = JSON.parse(fresh.text.slice(1));
    for (const query of ["EIO=3&", ""]) {
      const response = await request(`${base}?${query}transport=polling&sid=${sid}`);
      assert.deepEqual([response.status, JSON.parse(response.text).code], [400, 3]);
    }
  });

  test("lengths are UTF-16 code units", async () => {
    const session = await open();
    const packets = ["4a", "4é", "4€uro", "4🙂🙂", "4"].map(utf16);
    const response = await post(session, packets.join(""));
    assert.deepEqual([response.status, response.text], [200, "ok"]);
    let text = "";
    while (text.length < packets.join("").length) text += (await poll(session)).text;
    assert.equal(text, packets.join(""));
  });

  test("a payload with binary is binary as a whole", async () => {
    const session = await open();
    const answer = poll(session);
    const text = Buffer.from("4é🙂");
    const body = Buffer.concat([Buffer.from([0, text.length, 255]), text, Buffer.from([1, 4, 255, 4, 0, 255, 7])]);
    assert.equal((await post(session, body, BYTES)).text, "ok");
    // The reference answers the poll with the first packet, if it is waiting.
    const parts = [];
    for (let found = (await answer); ; found = await poll(session)) {
      parts.push(found);
      if (found.headers["content-type"] === "application/octet-stream") break;
    }
    const binary = parts.at(-1).bytes;
    if (parts.length === 1) assert.deepEqual(binary, body);
    else assert.deepEqual([parts[0].text, binary], [utf16("4é🙂"), body.subarray(-7)]);
  });

  test("a long binary packet has a digit for each digit", async () => {
    const session = await open();
    const data = Buffer.alloc(1_233, 0xfe);
    const body = Buffer.concat([Buffer.from([1, 1, 2, 3, 4, 255, 4]), data]);
    await post(session, body, BYTES);
    assert.deepEqual((await poll(session)).bytes, body);
  });

  test("b64 means base64, both ways", async () => {
    const session = await open("&b64=1");
    await post(session, "6:b4AQID2:4a");
    let text = "";
    while (text.length < 12) {
      const response = await poll(session);
      assert.match(response.headers["content-type"], /^text\/plain/);
      text += response.text;
    }
    assert.equal(text, "6:b4AQID2:4a");
  });

  test("base64 with line breaks after 76 characters and at the end, with - and _, with surplus padding", async () => {
    const session = await open("&b64=1");
    const data = Buffer.from(Array.from({ length: 200 }, (_, i) => 255 - i));
    const base64 = data.toString("base64");
    for (const dressed of [`${base64.replace(/.{76}/g, "$&\n")}\n`, base64.replaceAll("+", "-").replaceAll("/", "_"), `${base64}==`]) {
      await post(session, utf16(`b4${dressed}`));
      let text = "";
      while (!text.includes("b4")) text = (await poll(session)).text;
      assert.ok(text.includes(utf16(`b4${base64}`)), text);
    }
  });

  test("JSONP: answers are calls, POSTs are forms, binary is base64", async () => {
    const script = (response, j) => {
      const [, index, argument] = /^___eio\[(\d*)\]\((".*")\);$/s.exec(response.text);
      assert.equal(index, j);
      return JSON.parse(argument);
    };
    const { text } = await request(`${polling}&j=7&b64=1`);
    const { sid } = JSON.parse(/{.*}/.exec(script({ text }, "7"))[0]);
    const url = `${polling}&j=8&sid=${sid}`;
    const packets = ["4é🙂\n", "b4AQID"].map(utf16).join("");
    const body = `d=${encodeURIComponent(packets.replaceAll("\n", "\\n"))}`;
    const headers = { "Content-Type": "application/x-www-form-urlencoded" };
    assert.equal((await request(url, { method: "POST", body, headers })).text, "ok");
    let back = "";
    while (back.length < packets.length) back += script(await request(url), "7");
    assert.equal(back, packets);
  });

  test("a client may close", async () => {
    const session = await open();
    const waiting = poll(session);
    await sleep(50);
    assert.equal((await post(session, "1:1")).text, "ok");
    assert.equal((await waiting).text, "1:6");
    await gone(session);
  });

  test("an upgrade, packet by packet", async (t) => {
    const session = await open();
    const waiting = poll(session);
    const ws = await Ws.open(`${websocket}&sid=${session.packet.sid}`);
    t.defer(() => ws.end());
    ws.answerPings = false;
    ws.send("2probe");
    assert.equal(await ws.next(), "3probe");
    assert.equal((await waiting).text, "1:6");
    ws.send("5");
    ws.send("4hello");
    assert.equal(await ws.next(), "4hello");
    ws.send(Buffer.from([4, 1, 2]));
    assert.deepEqual(await ws.next(), Buffer.from([4, 1, 2]));
    ws.send("2");
    assert.equal(await ws.next(), "3");
    assert.equal((await poll(session)).status, 400);
  });

  test("what waits for a poll leaves through the WebSocket, in order", async (t) => {
    const session = await open();
    const ws = await Ws.open(`${websocket}&sid=${session.packet.sid}`);
    t.defer(() => ws.end());
    ws.send("2probe");
    assert.equal(await ws.next(), "3probe");
    await post(session, "2:4a6:b4AQID2:4b");
    ws.send("5");
    assert.equal(await ws.next(), "4a");
    assert.deepEqual(await ws.next(), Buffer.from([4, 1, 2, 3]));
    assert.equal(await ws.next(), "4b");
  });
}

function broken() {
  const texts = ["", "4a", "x:4a", "2:", "5:4a", "2:4a3", "2:9a", ":", "-1:4a", "99999999999999999999:4a"];
  for (const body of texts) {
    test(`the payload "${body}" ends the session`, async () => {
      const session = await open();
      await post(session, body);
      await gone(session);
    });
  }

  const bytes = { "no end of the length": [0, 1, 1, 1], "unknown type": [0, 2, 255, 0x39, 0x61], "no UTF-8": [0, 2, 255, 0x34, 0xff] };
  for (const [what, body] of Object.entries(bytes)) {
    test(`a binary payload with ${what} ends the session`, async () => {
      const session = await open();
      await post(session, Buffer.from(body), BYTES);
      await gone(session);
    });
  }

  test("payloads that lie about themselves cost nothing", async () => {
    const bodies = ["0:".repeat(490_000), "1".repeat(990_000), `${"1:6".repeat(330_000)}`, "9999999999:".repeat(80_000)];
    const began = performance.now();
    for (const body of bodies) await post(await open(), body);
    for (const body of [Buffer.alloc(990_000), Buffer.alloc(990_000, 9), Buffer.alloc(990_000, Buffer.from([0, 1, 255, 0x36]))]) {
      await post(await open(), body, BYTES);
    }
    assert.ok(performance.now() - began < 6_000, `${Math.round(performance.now() - began)} ms`);
  }, { alone: true });

  test("a payload over maxHttpBufferSize is refused, and the session stays", async () => {
    const session = await open();
    const response = await post(session, utf16(`4${"a".repeat(1_000_000)}`));
    assert.equal(response.status, 413);
    await post(session, "2:4a");
    assert.equal((await poll(session)).text, "2:4a");
  });
}

function heartbeat() {
  test("the client pings over polling", async () => {
    const session = await open();
    const began = performance.now();
    while (performance.now() - began < 1_000) {
      await post(session, "1:2");
      assert.equal((await poll(session)).text, "1:3");
      await sleep(200);
    }
  });

  test("the client pings over websocket, and the server does not", async (t) => {
    const ws = await openWs(t);
    for (let i = 0; i < 4; i++) {
      await sleep(250);
      ws.send("2");
      assert.equal(await ws.next(), "3");
    }
    assert.deepEqual(ws.queue, []);
  });

  for (const how of ["polling", "websocket"]) {
    test(`a silent client is given up over ${how}`, async (t) => {
      const began = performance.now();
      if (how === "polling") {
        const session = await open();
        await poll(session);
      } else {
        const ws = await openWs(t);
        await ws.gone();
      }
      const took = performance.now() - began;
      assert.ok(took > 450 && took < 1_500, `after ${Math.round(took)} ms`);
    });
  }

  test("messages do not stand for pings", async (t) => {
    const ws = await openWs(t);
    const chatter = setInterval(() => ws.send("4x"), 50);
    t.defer(() => clearInterval(chatter));
    await ws.gone(1_500);
  });

  test("a pong from the client ends the session", async (t) => {
    const ws = await openWs(t);
    ws.send("3");
    await ws.gone(400);
    const session = await open();
    await post(session, "1:3");
    await gone(session, 400);
  });
}

function overWebSocket() {
  test("websocket handshake", async (t) => {
    const ws = await openWs(t);
    assert.deepEqual(Object.keys(ws.packet).sort(), OPEN_KEYS);
    assert.deepEqual(ws.packet.upgrades, []);
  });

  test("binary frames have a type", async (t) => {
    const ws = await openWs(t);
    ws.send(Buffer.from([4, 0, 255]));
    ws.send("b4AQID");
    ws.send("4text");
    assert.deepEqual(await ws.next(), Buffer.from([4, 0, 255]));
    assert.deepEqual(await ws.next(), Buffer.from([4, 1, 2, 3]));
    assert.equal(await ws.next(), "4text");
  });

  for (const [EIO, packet] of [["3", "b4AP8="], ["4", "bAP8="]]) {
    test(`b64 over websocket is base64 for version ${EIO}`, async (t) => {
      const ws = await openWs(t, `${server.ws}/engine.io/?EIO=${EIO}&transport=websocket&b64=1`);
      ws.answerPings = EIO === "4";
      ws.send(packet);
      assert.equal(await ws.next(), packet);
      ws.send(EIO === "3" ? Buffer.from([4, 0, 255]) : Buffer.from([0, 255]));
      assert.equal(await ws.next(), packet);
    });
  }

  for (const packet of ["", "9x"]) {
    test(`the packet "${packet}" ends a websocket session`, async (t) => {
      const ws = await openWs(t);
      ws.send(packet);
      await ws.gone(400);
    });
  }
}

function clients() {
  const ways = {
    polling: { transports: ["polling"] },
    websocket: { transports: ["websocket"] },
    upgrade: { transports: ["polling", "websocket"] },
  };
  // Without it the clients make a handshake of TLS for each request.
  const agent = server.url.startsWith("https:") ? { agent: new https.Agent({ keepAlive: true }) } : {};
  const versions = { 3: eio3, 6: (url, options) => new Socket(url, options) };
  for (const [version, connect] of Object.entries(versions)) {
    for (const [way, options] of Object.entries(ways)) {
      for (const forceBase64 of [false, true]) {
        test(`engine.io-client ${version} over ${way}${forceBase64 ? " with forceBase64" : ""}`, async (t) => {
          const socket = connect(server.url, { path: "/engine.io/", forceBase64, ...agent, ...options });
          t.defer(() => socket.close());
          // An empty text is no data to the old client.
        const back = [];
          socket.on("message", (message = "") => back.push(typeof message === "string" ? message : Buffer.from(message)));
          await within(new Promise((resolve) => socket.on("open", resolve)), 4_000, "open");
          const sent = ["first", Buffer.from([0, 1, 254, 255]), "zwölf 🙂", Buffer.from([]), Buffer.alloc(70_000, 7), ""];
          for (const message of sent) socket.send(message);
          await until(() => back.length === sent.length, "all messages back");
          assert.deepEqual(back.splice(0), sent);
          if (way === "upgrade") await until(() => socket.transport.name === "websocket", "the upgrade");
          // Longer than interval and timeout together: the heartbeat keeps it.
          await sleep(1_200);
          socket.send(Buffer.from([9]));
          socket.send("last");
          await until(() => back.length === 2, "the last messages");
          assert.deepEqual(back, [Buffer.from([9]), "last"]);
        });
      }
    }
  }
}
