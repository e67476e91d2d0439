// Dynamic namespaces and their parents, with the official socket.io-client against the feature server.
import { assert, run, test, until } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { TRANSPORTS, call, clientsOf, next } from "./lib/clients.mjs";

const server = await target("feature_server.js");
const clients = clientsOf(server.url, TRANSPORTS.websocket);
let serial = 0;
const fresh = () => `${process.pid}${++serial}`;
const silent = (socket, event) => {
  const seen = [];
  socket.on(event, (...args) => seen.push(args));
  return seen;
};

/** The names of the namespaces that have come into being since. */
async function births(t) {
  const socket = await clients.connect(t, "/observer");
  const seen = [];
  socket.on("new", ({ nsp }) => seen.push(nsp));
  const left = new Set();
  socket.on("left", ({ id }) => left.add(id));
  const of = (name) => seen.filter((nsp) => nsp === name).length;
  return { of, left: (id) => until(() => left.has(id), `disconnect of ${id}`) };
}

const refusal = async (t, name, options) => (await next(clients.open(t, name, options), "connect_error"))[0];

test("a pattern lets clients in, each name apart, and refuses what it does not match", async (t) => {
  const name = `/dynamic-${fresh()}`;
  const one = clients.open(t, name);
  assert.deepEqual(await next(one, "family"), [name]);
  const two = await clients.connect(t, name, { forceNew: true });
  const other = await clients.connect(t, `/dynamic-${fresh()}`, { manager: one.io });
  assert.equal((await call(one, "info"))[0].nsp, name);
  const [event, room] = [`event ${fresh()}`, `room ${fresh()}`];
  for (const socket of [two, other]) await call(socket, "join", room);
  const seen = silent(other, event);
  const got = next(two, event);
  await call(one, "emit-to", { to: [room], event, args: [1, Buffer.from([2])] });
  assert.deepEqual(await got, [1, Buffer.from([2])]);
  await call(other, "echo");
  assert.deepEqual(seen, []);
  for (const bad of ["/dynamic-", "/dynamic-1x", "/dynamic", "/xdynamic-1", "/_0", "/dynamic-1?a=b"]) {
    const error = await refusal(t, bad, { manager: one.io });
    assert.equal(error.message, "Invalid namespace", bad);
    assert.equal(error.data, undefined);
  }
  assert.deepEqual(await call(one, "echo", 1), [1], "the connection goes on");
});

test("a function decides by name and auth payload, and may take its time", async (t) => {
  const club = fresh();
  const member = clients.open(t, `/club-${club}`, { auth: { key: club } });
  assert.deepEqual(await next(member, "family"), [`/club-${club}`]);
  const wrong = await refusal(t, `/club-${fresh()}`, { auth: { key: "wrong" }, manager: member.io });
  assert.equal(wrong.message, "Invalid namespace");
  assert.equal((await refusal(t, "/elsewhere", { auth: { key: "x" } })).message, "Invalid namespace");
  // The function is asked for new names only: a namespace that is there takes everybody.
  assert.deepEqual(await call(member, "echo", 1), [1]);
});

test("clients that ask for a new name at the same time meet in one namespace", async (t) => {
  const club = fresh();
  const joining = Array.from({ length: 12 }, () => clients.connect(t, `/club-${club}`, { auth: { key: club } }));
  const members = await Promise.all(joining);
  const event = `event ${fresh()}`;
  const all = members.map((socket) => next(socket, event));
  await call(members[3], "emit-to", { event, args: ["hello"] });
  for (const got of await Promise.all(all)) assert.deepEqual(got, ["hello"]);
  assert.equal((await call(members[0], "fetch", null))[0].length, 12);
});

test("a client that leaves while the function thinks leaves nothing behind", async (t) => {
  const seen = await births(t);
  const club = fresh();
  const socket = clients.open(t, `/club-${club}`, { auth: { key: club }, forceNew: true });
  await next(socket.io, "open");
  socket.io.engine.close();
  const witness = await clients.connect(t, `/club-${club}`, { auth: { key: club } });
  assert.equal((await call(witness, "fetch", null))[0].length, 1);
  await until(() => seen.of(`/club-${club}`) >= 1, "the witness's namespace");
});

test("a parent broadcasts to all its children and to nobody else", async (t) => {
  const names = [fresh(), fresh(), fresh()].map((n) => `/dynamic-${n}`);
  const [a, b, c] = await Promise.all(names.map((name) => clients.connect(t, name)));
  const club = fresh();
  const member = await clients.connect(t, `/club-${club}`, { auth: { key: club } });
  const root = await clients.connect(t, "/");
  const outside = [member, root].map((socket) => silent(socket, "family-news"));
  const room = `room ${fresh()}`;
  await Promise.all([a, b].map((socket) => call(socket, "join", room)));
  const all = [a, b, c].map((socket) => next(socket, "family-news"));
  await call(a, "family-say", { event: "family-news", args: [1] });
  for (const got of await Promise.all(all)) assert.deepEqual(got, [1]);
  const some = [a, b].map((socket) => next(socket, "some"));
  const none = silent(c, "some");
  await call(c, "family-say", { to: [room], event: "some", args: [2] });
  for (const got of await Promise.all(some)) assert.deepEqual(got, [2]);
  const rest = next(c, "rest");
  const left = [a, b].map((socket) => silent(socket, "rest"));
  await call(a, "family-say", { except: [room], event: "rest", args: [3] });
  assert.deepEqual(await rest, [3]);
  for (const socket of [a, b, c, member, root]) await call(socket, "echo");
  assert.deepEqual([...outside, none, ...left], [[], [], [], [], []]);
});

test("children have the parent's middlewares", async (t) => {
  const name = `/dynamic-${fresh()}`;
  assert.equal((await refusal(t, name, { auth: { refuse: true } })).message, "not here");
  const socket = await clients.connect(t, name);
  assert.equal((await refusal(t, name, { auth: { refuse: true } })).message, "not here");
  assert.deepEqual(await call(socket, "echo", 1), [1]);
});

test("a child goes with its last socket, and comes again", async (t) => {
  const seen = await births(t);
  const name = `/dynamic-${fresh()}`;
  for (const round of [1, 2, 3]) {
    const socket = await clients.connect(t, name);
    const { id } = socket;
    await until(() => seen.of(name) >= round, `birth ${round} of ${name}`);
    socket.disconnect();
    await seen.left(id);
  }
});

test("a child whose only client was refused goes as well; one with other clients stays", async (t) => {
  const seen = await births(t);
  const name = `/dynamic-${fresh()}`;
  for (const round of [1, 2]) {
    await refusal(t, name, { auth: { refuse: true } });
    await until(() => seen.of(name) >= round, `birth ${round} of ${name}`);
  }
  const socket = await clients.connect(t, name);
  await refusal(t, name, { auth: { refuse: true } });
  assert.deepEqual(await call(socket, "echo", 1), [1]);
  const event = `event ${fresh()}`;
  const got = next(socket, event);
  await call(await clients.connect(t, name), "emit-to", { event });
  await got;
});

test("a namespace made by hand that a pattern matches is the pattern's child", async (t) => {
  const seen = await births(t);
  const maker = await clients.connect(t, "/nsp");
  const name = `/dynamic-${fresh()}`;
  await call(maker, "make-namespace", name);
  await until(() => seen.of(name) === 1, `birth of ${name}`);
  const socket = clients.open(t, name, { manager: maker.io });
  assert.deepEqual(await next(socket, "family"), [name]);
  assert.equal((await refusal(t, name, { auth: { refuse: true } })).message, "not here");
  const news = next(socket, "family-news");
  const other = await clients.connect(t, `/dynamic-${fresh()}`);
  await call(other, "family-say", { event: "family-news" });
  await news;
});

test("a namespace that no parent made stays when its last socket has gone", async (t) => {
  const seen = await births(t);
  const maker = await clients.connect(t, "/nsp");
  const name = `/made-${fresh()}`;
  await call(maker, "make-namespace", name);
  for (const _ of [1, 2]) {
    const socket = await clients.connect(t, name, { manager: maker.io });
    socket.disconnect();
    await call(maker, "echo"); // behind it on the same connection
  }
  assert.equal(seen.of(name), 1);
});

await run({ parallel: 4, finish: server.stop });
