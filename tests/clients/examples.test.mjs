// The examples, each as its user would try it, with the official client. EXAMPLE= names the one that SOCKRING_URL serves.
import { createHash, randomBytes } from "node:crypto";
import { call, clientsOf, collect, next, TRANSPORTS } from "./lib/clients.mjs";
import { assert, run, test, until, within } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";

const server = await target("none: these are the examples of sockring");
const suites = { acks, admin_namespace, binary_upload, presence, private_messaging, slow_readers };

for (const [transport, options] of Object.entries(TRANSPORTS)) {
  suites[process.env.EXAMPLE](clientsOf(server.url, options), (title, f) => test(`${transport}: ${title}`, f), transport);
}
await run({ finish: server.stop });

function acks(clients, check) {
  check("the server answers", async (t) => {
    const socket = await clients.connect(t);
    assert.equal(await socket.emitWithAck("add", 1, 2), 3);
  });
  check("the client answers, or does not", async (t) => {
    const socket = await clients.connect(t);
    const guess = async (...words) => {
      socket.off("is it").on("is it", (n, answer) => words[n - 1] && answer(words[n - 1]));
      socket.emit("guess");
      return (await next(socket, "guessed"))[0];
    };
    assert.equal(await guess("no", "yes"), "it is 2");
    assert.equal(await guess("no", "no", "no"), "I give up");
    assert.equal(await guess("no", undefined), "you took too long");
  });
  check("a room answers, and those who say nothing are not waited for", async (t) => {
    const room = `r${Math.random()}`;
    const crew = [];
    for (let n = 0; n < 4; n++) crew.push(await clients.connect(t));
    for (const [n, socket] of crew.entries()) {
      await call(socket, "join", room);
      socket.on("vote", (question, answer) => answer(`${question} ${n}`));
    }
    const [votes, complete] = await call(crew[0], "vote", room, "what");
    assert.deepEqual([votes.sort(), complete], [["what 0", "what 1", "what 2", "what 3"], true]);
    crew[3].off("vote");
    assert.equal((await call(crew[0], "vote", room, "so"))[0].length, 3);
    assert.deepEqual(await call(crew[0], "vote", "nobody is here", "?"), [[], true]);
  });
}

function slow_readers(clients, check, transport) {
  // A client that polls reads all the time.
  if (transport !== "websocket") return;
  const COUNT = 2400;
  // Nobody reads for the slow one while the other publishes far more than the kernel keeps for it.
  const flood = async (t, nsp) => {
    const [quick, slow] = [await clients.connect(t, nsp), await clients.connect(t, nsp)];
    const [all, seen] = [[], []];
    quick.on("tick", (n) => all.push(n));
    slow.on("tick", (n) => seen.push(n));
    slow.io.engine.transport.ws.pause();
    const once = (event) => new Promise((resolve) => slow.once(event, resolve));
    const [left, drained] = [once("disconnect"), once("drained")];
    const publish = (from, to) => call(quick, "publish", from, to, "x".repeat(8000));
    for (let n = 0; n < COUNT; n += 40) await publish(n, n + 40);
    assert.deepEqual(all, [...all.keys()], "who reads gets everything, once and in order");
    assert.equal(all.length, COUNT);
    slow.io.engine.transport.ws.resume();
    // An answer is never dropped, and comes behind what waits.
    const caughtUp = async (last) => {
      await call(slow, "publish", COUNT, COUNT, "");
      // What the other one has published last may be on its way between two cores.
      if (last !== undefined) await until(() => seen.at(-1) === last, `the last is ${last}`);
      assert.ok(seen.every((n, at) => at === 0 || n > seen[at - 1]), "in order, and once");
      await within(drained, 6_000, "drained");
      assert.ok(seen.length < COUNT, "some were dropped");
      return seen;
    };
    return { left, publish, caughtUp };
  };
  check("the newest positions", async (t) => {
    const { caughtUp } = await flood(t, "/positions");
    assert.deepEqual((await caughtUp(COUNT - 1)).slice(-50), Array.from({ length: 50 }, (_, at) => COUNT - 50 + at));
  });
  check("announcements from the first on", async (t) => {
    const { caughtUp, publish } = await flood(t, "/announcements");
    assert.deepEqual((await caughtUp()).slice(0, 50), Array.from({ length: 50 }, (_, at) => at));
    await publish(COUNT, COUNT + 1);
    assert.equal((await caughtUp(COUNT)).at(-1), COUNT, "what comes later is sent again");
  });
  check("the last price of each symbol", async (t) => {
    const { caughtUp } = await flood(t, "/prices");
    assert.deepEqual((await caughtUp(COUNT - 1)).slice(-5), [5, 4, 3, 2, 1].map((back) => COUNT - back));
  });
  check("all orders, or none: who is too slow is closed", async (t) => {
    const { left } = await flood(t, "/orders");
    assert.match(await within(left, 6_000, "the end"), /^transport (close|error)$/);
  });
}

function admin_namespace(clients, check) {
  const login = { auth: { token: process.env.ADMIN_TOKEN } };
  check("who has no token, or a wrong one, is refused and told why", async (t) => {
    for (const [auth, message, data] of [
      [{}, "a token is needed", ["auth", "token"]],
      [{ token: 7 }, "a token is needed", ["auth", "token"]],
      [{ token: "wrong" }, "not authorized", undefined],
    ]) {
      const socket = clients.open(t, "/admin", { auth });
      const [error] = await next(socket, "connect_error");
      assert.deepEqual([error.message, error.data], [message, data]);
    }
  });
  check("who has it sees who is there, speaks to all, and sends somebody away", async (t) => {
    const admin = await clients.connect(t, "/admin", login);
    const came = next(admin, "came");
    const socket = await clients.connect(t);
    const { id } = socket;
    assert.deepEqual(await came, [id]);
    assert.ok((await call(admin, "sockets"))[0].includes(id));
    const announced = next(socket, "announcement");
    admin.emit("announce", "tea");
    assert.deepEqual(await announced, ["tea"]);
    const [gone, went] = [next(socket, "disconnect"), next(admin, "went")];
    admin.emit("kick", id);
    assert.deepEqual(await went, [id]);
    await gone;
  });
}

function binary_upload(clients, check) {
  const PIECE = 100_000;
  check("a file arrives whole", async (t) => {
    const socket = await clients.connect(t);
    const file = randomBytes(1_234_567);
    let [offset] = await call(socket, "begin", "a.bin", file.length);
    let hash;
    while (offset < file.length) [offset, hash] = await call(socket, "piece", offset, file.subarray(offset, offset + PIECE));
    assert.equal(hash, createHash("sha1").update(file).digest("hex"));
  });
  check("what is wrong is said", async (t) => {
    const socket = await clients.connect(t);
    const failed = async (...event) => {
      const failure = next(socket, "upload failed");
      socket.emit(...event);
      return failure;
    };
    assert.deepEqual(await failed("piece", 0, Buffer.alloc(1)), ["piece", "nothing was begun"]);
    assert.match((await failed("begin", "big", 1e12))[1], /more than/);
    assert.match((await failed("begin", 5, "x"))[1], /argument/);
    await call(socket, "begin", "small", 3);
    assert.deepEqual(await failed("piece", 1, Buffer.alloc(1)), ["piece", "byte 0 of 3 comes next"]);
    assert.deepEqual(await failed("piece", 0, Buffer.alloc(4)), ["piece", "byte 0 of 3 comes next"]);
    assert.match((await failed("piece", 0, "text"))[1], /argument/);
  });
}

function presence(clients, check) {
  const names = (events, room) => {
    for (const [where] of events) assert.equal(where, room);
    return events.map(([, { name }]) => name).sort();
  };
  check("people come, type and go", async (t) => {
    const room = `r${Math.random()}`;
    const person = async (name) => clients.connect(t, "/rooms", { auth: { name } });
    const [ann, bob, eve] = [await person("ann"), await person("bob"), await person("eve")];
    assert.deepEqual(await call(ann, "enter", room), [[]]);
    const entered = collect(ann, "entered", 2);
    assert.deepEqual(await call(bob, "enter", room), [[{ name: "ann" }]]);
    const [there] = await call(eve, "enter", room);
    assert.deepEqual(there.map(({ name }) => name).sort(), ["ann", "bob"]);
    assert.deepEqual(names(await entered, room), ["bob", "eve"]);
    const typing = next(bob, "typing");
    // Over a poll that is not there yet it would be dropped, as it says.
    const again = setInterval(() => ann.emit("typing", room), 50);
    t.defer(() => clearInterval(again));
    assert.deepEqual(await typing, [room, { name: "ann" }]);
    const left = collect(ann, "left", 2);
    bob.emit("leave", room);
    eve.disconnect();
    // They are on cores of their own, which have no common order.
    assert.deepEqual(names(await left, room), ["bob", "eve"]);
  });
  check("who says nothing of itself is refused", async (t) => {
    const [error] = await next(clients.open(t, "/rooms"), "connect_error");
    assert.match(error.message, /name/);
  });
}

function private_messaging(clients, check) {
  const login = async (t, auth) => {
    const socket = clients.open(t, "/", { auth });
    const [session, users] = [next(socket, "session"), next(socket, "users")];
    const [sessionId, userID] = await session;
    return Object.assign(socket, { sessionId, userID, users: (await users)[0] });
  };
  check("messages reach all tabs of two people, and nobody else", async (t) => {
    const ann = await login(t, { username: "ann" });
    const connected = collect(ann, "user connected", 2);
    const bob = await login(t, { username: "bob" });
    const tab = await login(t, { sessionId: bob.sessionId });
    assert.equal(tab.userID, bob.userID);
    assert.ok(bob.users.some(({ username, userID }) => username === "ann" && userID === ann.userID));
    assert.ok(!JSON.stringify(bob.users).includes(ann.sessionId), "the session is a secret");
    assert.deepEqual((await connected).map(([{ username }]) => username), ["bob", "bob"]);
    const eve = await login(t, { username: "eve" });
    eve.on("private message", () => assert.fail("eve hears it"));
    const heard = [bob, tab].map((socket) => next(socket, "private message"));
    ann.emit("private message", "hi", bob.userID);
    for (const message of await Promise.all(heard)) assert.deepEqual(message, ["hi", ann.userID, bob.userID]);
    const mine = next(tab, "private message");
    bob.emit("private message", "hello", ann.userID);
    assert.deepEqual(await mine, ["hello", bob.userID, ann.userID]);
    const gone = next(ann, "user disconnected");
    bob.disconnect();
    assert.ok((await eve.emit("private message", "are you there", ann.userID)).connected);
    tab.disconnect();
    assert.deepEqual(await gone, [bob.userID]);
  });
  check("nobody is nobody", async (t) => {
    for (const auth of [{}, { username: "" }, { sessionId: "stolen" }]) {
      const [error] = await next(clients.open(t, "/", { auth }), "connect_error");
      assert.equal(error.message, "invalid username");
    }
  });
}
