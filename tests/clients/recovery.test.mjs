// Connection state recovery with the official client, against the example `recovery`. TICK, WINDOW and ASK say how the
// server was started: milliseconds between ticks, milliseconds for which a client may be gone, whether middlewares are asked.
// PARSER=msgpack goes with `--msgpack`.
import { call, clientsOf, collect, next, TRANSPORTS } from "./lib/clients.mjs";
import { PARSER } from "./lib/parsers.mjs";
import { assert, run, sleep, test, until } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";

const WINDOW = Number(process.env.WINDOW ?? 120_000);
const ASK = process.env.ASK === "1";
const TICK = Number(process.env.TICK ?? 0);
const RECONNECT = { reconnection: true, reconnectionDelay: 20, reconnectionDelayMax: 60 };

const args = ["--window", `${WINDOW}`, "--tick", `${TICK}`];
if (ASK) args.push("--ask-middlewares");
if (PARSER) args.push(`--${PARSER}`);
const server = await target("recovery_reference.js", args);

/** A client with a name that has received a packet, so that it has something to refer to. */
async function member(t, clients, name, rooms = []) {
  const socket = await clients.connect(t, "/", { ...RECONNECT, auth: { name } });
  for (const room of rooms) await call(socket, "join", room);
  const whispered = next(socket, "whispered");
  socket.emit("whisper", "an offset");
  await whispered;
  return socket;
}

/** Loses the connection, lets `meanwhile` happen, and comes back. */
async function lose(socket, meanwhile = async () => {}) {
  const reconnection = socket.io.reconnection();
  socket.io.reconnection(false);
  // A client that is to close while it upgrades goes on for a while and takes some events twice, also from the reference.
  await until(() => !socket.io.engine.upgrading, "the end of the upgrade");
  const lost = next(socket, "disconnect");
  socket.io.engine.close();
  await lost;
  await sleep(30);
  await meanwhile();
  const connected = next(socket, "connect");
  socket.io.reconnection(reconnection);
  socket.connect();
  await connected;
}

async function whoAmI(socket) {
  const [id, recovered, name, rooms] = await call(socket, "who am i");
  return { id, recovered, name, rooms: rooms.sort() };
}

for (const [transport, options] of Object.entries(TRANSPORTS)) {
  const clients = clientsOf(server.url, options);
  const check = (title, f) => test(`${transport}: ${title}`, f);

  if (TICK) {
    check("everybody gets every tick once and in order, however often they lose their connections", ticks(clients));
    continue;
  }
  if (ASK) {
    check("middlewares are asked about those who come back", async (t) => {
      const socket = await member(t, clients, "ann");
      const { id } = socket;
      await lose(socket);
      assert.ok(socket.recovered);
      assert.equal(socket.id, id);
      socket.auth = { banned: true };
      await assert.rejects(Promise.race([lose(socket), next(socket, "connect_error").then(([e]) => Promise.reject(e))]), /banned/);
    });
    continue;
  }
  if (WINDOW < 10_000) {
    check("who is gone for too long is somebody else, and the others are told", async (t) => {
      const socket = await member(t, clients, "ann", ["r"]);
      const observer = await member(t, clients, "bob");
      const { id } = socket;
      const gone = server.isReference ? Promise.resolve([id, "ann"]) : next(observer, "gone", 10_000);
      await lose(socket, async () => {
        assert.deepEqual((await gone).slice(0, 2), [id, "ann"]);
        await sleep(server.isReference ? WINDOW + 100 : 0);
      });
      assert.ok(!socket.recovered);
      assert.notEqual(socket.id, id);
      assert.deepEqual((await whoAmI(socket)).rooms, [socket.id]);
    });
    continue;
  }

  check("who comes back has its id, its rooms and its data, and gets what it has missed", async (t) => {
    const socket = await member(t, clients, "ann", ["a", "b"]);
    const other = await member(t, clients, "bob");
    const { id } = socket;
    const got = [];
    socket.onAny((...event) => got.push(event));
    await lose(socket, async () => {
      other.emit("publish", "a", 1);
      other.emit("publish", "elsewhere", 2);
      other.emit("publish", "b", { binary: Buffer.from([1, 2, 3]) });
      other.emit("say", id, "to you alone");
      await call(other, "who am i");
    });
    assert.ok(socket.recovered);
    assert.equal(socket.id, id);
    assert.deepEqual(await whoAmI(socket), { id, recovered: true, name: "ann", rooms: ["a", "b", id].sort() });
    // With recovery, an offset follows the arguments of what is emitted.
    const events = got.map(([name, first, second]) => [name, first, name === "said" ? second : null]);
    assert.deepEqual(events, [
      ["published", 1, null],
      ["published", { binary: Buffer.from([1, 2, 3]) }, null],
      ["said", other.id, "to you alone"],
    ]);
    // It is in its rooms again, also in that of its id.
    const said = collect(socket, "said", 2);
    other.emit("say", "a", "x");
    other.emit("say", id, "y");
    assert.deepEqual((await said).map(([, text]) => text), ["x", "y"]);
  });

  check("it works again and again, also if nothing came in between", async (t) => {
    const socket = await member(t, clients, "ann", ["again"]);
    const other = await member(t, clients, "bob");
    const { id } = socket;
    const got = [];
    socket.on("published", (n) => got.push(n));
    for (let round = 0; round < 8; round++) {
      await lose(socket, async () => {
        if (round % 3 === 0) return;
        other.emit("publish", "again", round);
        await call(other, "who am i");
      });
      assert.ok(socket.recovered, `round ${round}`);
      assert.equal(socket.id, id);
    }
    await call(socket, "who am i");
    assert.deepEqual(got, [1, 2, 4, 5, 7]);
  });

  check("who is excepted misses nothing", async (t) => {
    const socket = await member(t, clients, "ann", ["a2", "deaf"]);
    const other = await member(t, clients, "bob");
    let came = 0;
    socket.on("published", () => came++);
    await lose(socket, async () => {
      other.emit("publish", "a2", 1);
      await call(other, "who am i");
    });
    assert.ok(socket.recovered);
    await call(socket, "who am i");
    assert.equal(came, 0);
  });

  check("who has left on purpose, or was sent away, is somebody else", async (t) => {
    const socket = await member(t, clients, "ann", ["a"]);
    const { id } = socket;
    socket.disconnect();
    await sleep(50);
    socket.connect();
    await next(socket, "connect");
    assert.ok(!socket.recovered && socket.id !== id);
    const second = socket.id;
    const gone = next(socket, "disconnect");
    socket.emit("disconnect me");
    await gone;
    socket.connect();
    await next(socket, "connect");
    assert.ok(!socket.recovered && socket.id !== second);
  });

  check("nobody comes back as somebody who never was", async (t) => {
    const socket = await member(t, clients, "ann");
    const { id } = socket;
    for (const [pid, offset] of [["no-such-pid", socket._lastOffset], [socket._pid, "AAAAAAAAAAA"], ["A".repeat(22), "x"]]) {
      const stranger = clients.open(t, "/", { autoConnect: false });
      stranger._pid = pid;
      stranger._lastOffset = offset;
      stranger.connect();
      await next(stranger, "connect");
      assert.ok(!stranger.recovered && stranger.id !== id);
      stranger.disconnect();
    }
  });

  if (!server.isReference) {
    check("who comes back before the server has noticed takes the place of the stale one", async (t) => {
      const stale = await member(t, clients, "ann", ["s"]);
      stale.io.reconnection(false);
      const closed = next(stale, "disconnect");
      const fresh = clients.open(t, "/", { autoConnect: false });
      fresh._pid = stale._pid;
      fresh._lastOffset = stale._lastOffset;
      fresh.connect();
      await next(fresh, "connect");
      assert.ok(fresh.recovered);
      assert.deepEqual((await whoAmI(fresh)).rooms, ["s", fresh.id].sort());
      await closed;
    });
  }

  check("middlewares are not asked about those who come back", async (t) => {
    const socket = await member(t, clients, "ann");
    socket.auth = { banned: true };
    await lose(socket);
    assert.ok(socket.recovered);
  });
}

/** Clients that lose their connections at random while ticks come from a thread, and messages from each other. */
function ticks(clients) {
  return async (t) => {
    const crew = [];
    for (let n = 0; n < 12; n++) crew.push(await member(t, clients, `m${n}`, ["crew", `team ${n % 3}`]));
    const faults = [];
    const gaps = (socket, label) => {
      let last;
      return (number) => {
        if (last !== undefined && number !== last + 1) faults.push(`${socket.id} ${label}: ${number} after ${last}`);
        last = number;
        socket.seen = (socket.seen ?? 0) + 1;
      };
    };
    for (const [n, socket] of crew.entries()) {
      socket.on("tick", gaps(socket, "tick"));
      const bySender = new Map();
      socket.on("published", ([from, number]) => {
        if (!bySender.has(from)) bySender.set(from, gaps(socket, `from ${from}`));
        bySender.get(from)(number);
      });
      socket.number = n;
    }
    let stop = false;
    const publishers = crew.slice(0, 3).map(async (_, n) => {
      const publisher = await member(t, clients, `p${n}`);
      for (let number = 0; !stop; number++) {
        publisher.emit("publish", n === 0 ? "crew" : `team ${n}`, [n, number]);
        await sleep(3);
      }
    });
    let recovered = 0;
    const losers = crew.map(async (socket) => {
      for (let round = 0; round < 12; round++) {
        await sleep(Math.random() * 120);
        await lose(socket, () => sleep(Math.random() * 40));
        if (socket.recovered) recovered++;
        else faults.push(`${socket.id} was not recovered`);
      }
    });
    await Promise.all(losers);
    const seen = crew.map((socket) => socket.seen);
    await until(() => crew.every((socket, n) => socket.seen > seen[n] + 5), "ticks after it all");
    stop = true;
    await Promise.all(publishers);
    assert.deepEqual(faults.slice(0, 10), []);
    assert.equal(recovered, crew.length * 12);
  };
}

await run({ finish: server.stop });
