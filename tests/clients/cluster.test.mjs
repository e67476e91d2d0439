// Several servers that act as one, against the example `cluster_server`: what a client of one server sees of the
// others. SERVERS, PARSER and RECOVERY say how it was started; TICK are the milliseconds between ticks.
import { assert, run, sleep, test, until } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { TRANSPORTS, call, clientsOf, collect, next } from "./lib/clients.mjs";
import { PARSER, parserOptions } from "./lib/parsers.mjs";
import { io } from "socket.io-client";

const SERVERS = Number(process.env.SERVERS ?? 2);
const RECOVERY = process.env.RECOVERY === "1";
const TICK = Number(process.env.TICK ?? 0);
const server = await target("cluster_reference.js", ["--servers", `${SERVERS}`, ...(PARSER ? ["--msgpack"] : [])]);

const scout = io(server.url, { transports: ["websocket"], ...parserOptions(PARSER) });
const [others] = await call(scout, "servers");
const urls = [server.url, ...others];
assert.equal(urls.length, SERVERS);
await until(async () => (await call(scout, "count"))[0] === SERVERS, "all servers know each other");
scout.disconnect();

let rooms = 0;

for (const [name, transport] of Object.entries({ websocket: TRANSPORTS.websocket, polling: TRANSPORTS.polling })) {
  const on = urls.map((url) => clientsOf(url, transport));
  const check = (title, body) => test(`${name}: ${title}`, body);

  /** A room that no other test knows, and two clients on each server, of whom the first has joined it. */
  async function party(t) {
    const room = `room ${rooms++}`;
    const clients = await Promise.all(on.flatMap((clients) => [clients.connect(t), clients.connect(t)]));
    const members = clients.filter((_, i) => i % 2 === 0);
    await Promise.all(members.map((member) => call(member, "join", [room])));
    return { room, clients, members, first: clients[0], far: members[1] };
  }

  /** Who of the clients gets `event` when `cause` is run; a later broadcast to each server's own clients marks the end. */
  async function reached(clients, event, cause) {
    const got = clients.map(() => []);
    const listeners = clients.map((client, i) => (...args) => got[i].push(args));
    clients.forEach((client, i) => client.on(event, listeners[i]));
    await cause();
    const mark = `mark ${rooms++}`;
    const marked = clients.map((client) => next(client, mark));
    // From the server that has emitted, so it comes behind; a broadcast is not overtaken by its sender's next one.
    await call(clients[0], "emit", { event: mark });
    await Promise.all(marked);
    clients.forEach((client, i) => client.off(event, listeners[i]));
    return got;
  }

  const pattern = (clients, fits) => clients.map((client) => (fits(client) ? 1 : 0));
  const counts = (got) => got.map((seen) => seen.length);

  if (TICK) {
    check("whoever goes from server to server gets every tick once and in order", ticks(on));
    continue;
  }
  if (RECOVERY) {
    recovery(check, on, party);
    continue;
  }

  check("broadcasts reach the clients of all servers once", async (t) => {
    const { clients, members, room, first, far } = await party(t);
    const inRoom = (client) => members.includes(client);
    const cases = [
      [{}, () => true],
      [{ to: [room] }, inRoom],
      [{ to: [room, first.id, far.id] }, inRoom],
      [{ except: [room] }, (client) => !inRoom(client)],
      [{ to: [far.id] }, (client) => client === far],
      [{ except: [far.id, first.id] }, (client) => client !== far && client !== first],
      [{ local: true }, (client) => client === first || client === clients[1]],
      [{ from_socket: true }, (client) => client !== first],
      [{ from_socket: true, to: [room] }, (client) => inRoom(client) && client !== first],
      [{ to: ["nobody is here"] }, () => false],
    ];
    for (const [spec, fits] of cases) {
      const event = `event ${rooms++}`;
      const got = await reached(clients, event, () => call(first, "emit", { ...spec, event, args: [1, { a: [null] }] }));
      assert.deepEqual(counts(got), pattern(clients, fits), JSON.stringify(spec));
      for (const seen of got.flat()) assert.deepEqual(seen, [1, { a: [null] }]);
    }
  });

  check("binary arrives as binary, at any depth", async (t) => {
    const { clients, first } = await party(t);
    const event = `event ${rooms++}`;
    const bytes = Buffer.from([1, 2, 3]);
    const got = await reached(clients, event, () => call(first, "emit", { event, args: [bytes, { deep: [bytes] }] }));
    for (const [[one, { deep }]] of got) {
      assert.deepEqual(Buffer.from(one), bytes);
      assert.deepEqual(Buffer.from(deep[0]), bytes);
    }
  });

  check("volatile broadcasts reach those who can take them", async (t) => {
    const { clients, members, room, first } = await party(t);
    const event = `event ${rooms++}`;
    await until(async () => {
      const got = await reached(clients, event, async () => {
        await sleep(50);
        await call(first, "emit", { to: [room], volatile: true, event });
      });
      got.forEach((seen, i) => assert.ok(seen.length <= (members.includes(clients[i]) ? 1 : 0)));
      return counts(got).slice(2).some((count) => count === 1);
    }, "one of another server is reached");
  });

  check("sockets of all servers acknowledge", async (t) => {
    const { clients, members, room, first } = await party(t);
    clients.forEach((client, i) => client.on("vote", (question, ack) => ack(`${question} ${i}`, "only the first value travels")));
    const [{ error, replies }] = await call(first, "ask", { to: [room], event: "vote", args: ["who"], timeout_ms: 6_000 });
    assert.equal(error, null);
    assert.deepEqual(replies.sort(), members.map((_, i) => `who ${2 * i}`));
    const [nobody] = await call(first, "ask", { to: ["nobody is here"], event: "vote", timeout_ms: 6_000 });
    assert.deepEqual(nobody, { error: null, replies: [] });
  });

  check("who does not answer costs only its own answer", async (t) => {
    const { members, room, first, far } = await party(t);
    members.filter((client) => client !== far).forEach((client) => client.on("vote", (ack) => ack("yes")));
    const [{ error, replies }] = await call(first, "ask", { to: [room], event: "vote", timeout_ms: 600 });
    assert.equal(error, "operation has timed out");
    assert.deepEqual(replies, members.slice(1).map(() => "yes"));
  });

  check("sockets are found with handshake, rooms and data", async (t) => {
    const { clients, members, room, first, far } = await party(t);
    const data = { name: "far", list: [1, null] };
    await call(far, "set", data);
    const [rows] = await call(first, "fetch", [room], false);
    assert.deepEqual(rows.map((row) => row.id), members.map((member) => member.id).sort());
    const row = rows.find(({ id }) => id === far.id);
    assert.deepEqual(row.data, data);
    assert.deepEqual(row.rooms, [far.id, room].sort());
    assert.equal(row.handshake.query.EIO, "4");
    assert.ok(row.handshake.headers.host && row.handshake.url && row.handshake.time && row.handshake.address);
    const [local] = await call(first, "fetch", [room], true);
    assert.deepEqual(local.map((row) => row.id), [first.id]);
    const [all] = await call(first, "fetch", [], false);
    const ids = all.map((row) => row.id);
    for (const client of clients) assert.ok(ids.includes(client.id));
  });

  check("sockets of all servers join and leave rooms", async (t) => {
    const { members, room, first } = await party(t);
    const [one, two] = [`${room} one`, `${room} two`];
    const size = async (name) => (await call(first, "fetch", [name], false))[0].length;
    await call(first, "sockets-join", room, [one, two]);
    await until(async () => (await size(one)) === members.length && (await size(two)) === members.length, "all have joined");
    await call(first, "sockets-leave", room, [one]);
    await until(async () => (await size(one)) === 0, "all have left");
    assert.equal(await size(two), members.length);
  });

  check("sockets of all servers are disconnected", async (t) => {
    const { clients, members, room, first } = await party(t);
    const gone = members.slice(1).map((member) => next(member, "disconnect"));
    const left = next(first, "disconnect");
    first.emit("disconnect-sockets", room, false);
    for (const [reason] of [...(await Promise.all(gone)), await left]) assert.equal(reason, "io server disconnect");
    for (const [i, client] of clients.entries()) assert.equal(client.connected, i % 2 === 1);
  });

  check("a socket of another server is asked, told, moved and disconnected", async (t) => {
    const { room, first, far } = await party(t);
    const remote = (action, args = [], timeout_ms = 6_000) => call(first, "remote", { id: far.id, action, args, timeout_ms });
    far.on("question", (n, ack) => (n > 0 ? ack(n + 1) : undefined));
    assert.deepEqual(await remote("ask", [4]), [{ error: null, replies: [5] }]);
    assert.deepEqual(await remote("ask", [0], 300), [{ error: "operation has timed out", replies: [] }]);
    const news = next(far, "news");
    await remote("emit", ["x", { y: 1 }]);
    assert.deepEqual(await news, ["x", { y: 1 }]);
    const whereabouts = async () => (await call(first, "fetch", [far.id], false))[0][0].rooms;
    await remote("join", [`${room} more`]);
    await until(async () => (await whereabouts()).includes(`${room} more`), "it has joined");
    await remote("leave", [room]);
    await until(async () => !(await whereabouts()).includes(room), "it has left");
    const lost = next(far, "disconnect");
    await remote("disconnect");
    assert.equal((await lost)[0], "io server disconnect");
  });

  check("servers speak to each other", async (t) => {
    const { clients, first } = await party(t);
    const got = clients.map(() => []);
    const token = `token ${rooms++}`;
    clients.forEach((client, i) => client.on("told", (...args) => args[1][0] === token && got[i].push(args)));
    assert.deepEqual(await call(first, "server-emit", "told", [token, { b: 1 }]), [null]);
    await until(() => got.slice(2).every((seen) => seen.length === 1), "all others have told their clients");
    got.forEach((seen, i) => assert.deepEqual(seen, i < 2 ? [] : [[Math.floor(i / 2), [token, { b: 1 }]]]));
    const [{ error, replies }] = await call(first, "server-ask", "which?", [7]);
    assert.equal(error, null);
    assert.deepEqual(replies.map((reply) => JSON.stringify(reply)).sort(), urls.slice(1).map((_, i) => `[${i + 1},[7]]`));
    const [partial] = await call(first, "server-ask", "silent?", []);
    assert.deepEqual(partial.replies, [1]);
    assert.equal(partial.error, SERVERS > 2 ? `timeout reached: missing ${SERVERS - 2} responses` : null);
    const [refused] = await call(first, "server-emit", "connection", []);
    assert.match(refused, /reserved/);
  });
}

if (!RECOVERY && !TICK) {
  // The last test: it costs a server.
  test("a server that closes costs the others nothing", async (t) => {
    const [first, last] = [clientsOf(urls[0], TRANSPORTS.websocket), clientsOf(urls.at(-1), TRANSPORTS.websocket)];
    const [here, there] = [await first.connect(t), await last.connect(t)];
    here.on("vote", (ack) => ack("here"));
    const gone = next(there, "disconnect");
    there.emit("close-server");
    assert.match((await gone)[0], /transport|io server disconnect/);
    const [{ error, replies }] = await call(here, "ask", { event: "vote", timeout_ms: 6_000 });
    assert.deepEqual([error, replies], [null, ["here"]]);
    const [rows] = await call(here, "fetch", [], false);
    assert.deepEqual(rows.map(({ id }) => id), [here.id]);
    const heard = next(here, "news");
    await call(here, "emit", { event: "news" });
    await heard;
  }, { alone: true });
}

/** Lets a client lose its connection; the next one is made to another server. */
async function move(socket, url, meanwhile = async () => {}) {
  socket.io.reconnection(false);
  const lost = next(socket, "disconnect");
  socket.io.engine.close();
  await lost;
  await meanwhile();
  socket.io.uri = url;
  const connected = next(socket, "connect");
  socket.connect();
  await connected;
}

/** Tests of clients who come back to another server. */
function recovery(check, on, party) {
  /** A client that has received a packet, so that it has something to refer to. */
  async function member(t, clients, names = []) {
    const socket = await clients.connect(t);
    await call(socket, "join", names);
    await call(socket, "set", { name: "ann" });
    const whispered = next(socket, "whispered");
    socket.emit("whisper", "an offset");
    await whispered;
    return socket;
  }

  check("a client comes back to another server as who it was, with what it has missed", async (t) => {
    const room = `room ${rooms++}`;
    const socket = await member(t, on[0], [room]);
    const { id } = socket;
    const others = await Promise.all(on.map((clients) => clients.connect(t)));
    const got = [];
    socket.on("news", (...args) => got.push(args));
    const bytes = Buffer.from([1, 2]);
    for (let round = 0; round < 3; round++) {
      got.length = 0;
      await move(socket, urls[(round + 1) % urls.length], async () => {
        for (const [i, other] of others.entries()) {
          await call(other, "emit", { to: [room], event: "news", args: [i, bytes] });
          await call(other, "emit", { to: [id], event: "news", args: [`own ${i}`] });
          await call(other, "emit", { to: [room], except: [id], event: "news", args: ["not for it"] });
          await call(other, "emit", { to: ["another room"], event: "news", args: ["not for it"] });
          await call(other, "emit", { to: [room], volatile: true, event: "news", args: ["lost"] });
        }
      });
      assert.ok(socket.recovered);
      assert.equal(socket.id, id);
      const [which] = await call(socket, "which");
      assert.equal(which, (round + 1) % urls.length);
      const [sid, recovered, joined, data] = await call(socket, "who am i");
      assert.deepEqual([sid, recovered, joined, data], [id, true, [id, room].sort(), { name: "ann" }]);
      await call(others[0], "emit", { to: [room], event: "news", args: ["live"] });
      await until(() => got.at(-1)?.[0] === "live", "it is in its rooms");
      const expected = others.flatMap((_, i) => [i, `own ${i}`]);
      assert.deepEqual(got.map(([first]) => first), [...expected, "live"]);
      assert.deepEqual(Buffer.from(got[0][1]), bytes);
      // It is one socket, wherever it was.
      const [rows] = await call(others[0], "fetch", [room], false);
      assert.deepEqual(rows.map((row) => row.id), [id]);
    }
  });

  check("a client whose old server has not noticed takes its place", async (t) => {
    const room = `room ${rooms++}`;
    const old = await member(t, on[0], [room]);
    const { id } = old;
    const again = on[1].open(t, "/", { autoConnect: false });
    [again._pid, again._lastOffset] = [old._pid, old._lastOffset];
    const lost = next(old, "disconnect");
    const connected = next(again, "connect");
    again.connect();
    await connected;
    assert.ok(again.recovered);
    assert.equal(again.id, id);
    await lost;
    const [rows] = await call(again, "fetch", [room], false);
    assert.deepEqual(rows.map((row) => row.id), [id]);
  });

  check("a client that nobody knows, or that has left, is a new one", async (t) => {
    const socket = await member(t, on[0]);
    const { id } = socket;
    await move(socket, urls[1], async () => (socket._pid = "AAAAAAAAAAAAAAAAAAAAAA"));
    assert.ok(!socket.recovered);
    assert.notEqual(socket.id, id);
    const left = await member(t, on[0]);
    const [pid, offset] = [left._pid, left._lastOffset];
    left.disconnect();
    const again = on[1].open(t, "/", { autoConnect: false });
    [again._pid, again._lastOffset] = [pid, offset];
    const connected = next(again, "connect");
    again.connect();
    await connected;
    assert.ok(!again.recovered);
  });

  check("a client comes back to the same server too", async (t) => {
    const { first, far, room } = await party(t);
    const whispered = next(first, "whispered");
    first.emit("whisper", "an offset");
    await whispered;
    const { id } = first;
    const got = collect(first, "news", 2);
    await move(first, urls[0], async () => {
      await call(far, "emit", { to: [room], event: "news", args: [1] });
    });
    assert.ok(first.recovered);
    assert.equal(first.id, id);
    await call(far, "emit", { to: [room], event: "news", args: [2] });
    assert.deepEqual((await got).map(([n]) => n), [1, 2]);
    // And from there to another one.
    await move(first, urls[1]);
    assert.deepEqual([first.recovered, first.id], [true, id]);
  });
}

if (RECOVERY && !TICK) {
  test("the clients of a server that closes go on at another one", async (t) => {
    const clients = clientsOf(urls.at(-1), TRANSPORTS.websocket);
    const socket = await clients.connect(t);
    const other = await clientsOf(urls[0], TRANSPORTS.websocket).connect(t);
    await call(socket, "join", ["survivors"]);
    const whispered = next(socket, "whispered");
    socket.emit("whisper", "an offset");
    await whispered;
    const { id } = socket;
    socket.io.reconnection(false);
    const lost = next(socket, "disconnect");
    socket.emit("close-server");
    await lost;
    await call(other, "emit", { to: ["survivors"], event: "news", args: ["missed"] });
    socket.io.uri = urls[0];
    const news = next(socket, "news");
    const connected = next(socket, "connect");
    socket.connect();
    await connected;
    assert.deepEqual([socket.recovered, socket.id], [true, id]);
    assert.equal((await news)[0], "missed");
  }, { alone: true });
}

/** Clients that go from server to server while all of these emit. */
function ticks(on) {
  return async (t) => {
    const sockets = await Promise.all(Array.from({ length: 6 }, (_, i) => on[i % on.length].connect(t)));
    const seen = sockets.map(() => []);
    sockets.forEach((socket, i) => socket.on("tick", (n) => seen[i].push(n)));
    await until(() => seen.every((numbers) => numbers.length > 0), "the first tick");
    for (let round = 1; round <= 8; round++) {
      await Promise.all(sockets.map((socket, i) => move(socket, urls[(i + round) % urls.length], () => sleep(i * 7))));
      for (const socket of sockets) assert.ok(socket.recovered);
      await sleep(50);
    }
    const last = Math.max(...seen.map((numbers) => numbers.at(-1)));
    await until(() => seen.every((numbers) => numbers.at(-1) >= last), "all have the last tick");
    for (const numbers of seen) {
      const expected = Array.from({ length: numbers.length }, (_, i) => numbers[0] + i);
      assert.deepEqual(numbers, expected);
    }
    t.note(`${seen.reduce((sum, numbers) => sum + numbers.length, 0)} ticks`);
  };
}

await run({ parallel: TICK ? 1 : 4, finish: () => server.stop() });
