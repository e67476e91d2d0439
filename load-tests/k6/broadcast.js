// One room with everybody in it. The first VU publishes when all are in; every socket must have every broadcast, once
// and in order. VUs share no memory, so what they must know of each other goes through the server, too.
import { check } from "k6";
import { connect } from "./socketio.js";
import { delivered, expected, latency, options as once, pause, size, until, URL, work, wrong } from "./common.js";

const VUS = size("VUS", 4, 20);
const SOCKETS = size("SOCKETS", 25, 100);
const BROADCASTS = size("BROADCASTS", 20, 200);
const EVERY_MS = size("EVERY_MS", 20, 100);
const WAIT_S = 120;

export const options = once(VUS, 300);

export default async function () {
  await work(async () => {
    const readers = [];
    for (let number = 0; number < SOCKETS; number++) {
      const socket = await connect(URL);
      const reader = { socket, next: 0 };
      socket.on("message", (payload) => hear(reader, payload));
      socket.on("disconnect", (why) => why === "io client disconnect" || wrong(`lost a reader: ${why}`));
      await socket.emitWithAck("join", "broadcast");
      readers.push(reader);
    }
    const publisher = __VU === 1 ? await publish(readers) : readers[0].socket;
    // A VU whose message came before the first one listened says it again.
    while (__VU !== 1 && readers[0].next === 0) {
      publisher.emit("publish", "ready", __VU);
      await pause(200);
    }
    expected.add(SOCKETS * BROADCASTS);
    await until("every reader has every broadcast", WAIT_S, () => readers.every(({ next }) => next >= BROADCASTS));
    check(readers, { "and nothing after the last": () => readers.every(({ next }) => next === BROADCASTS) });
    readers.forEach(({ socket }) => socket.close());
    if (__VU === 1) publisher.close();
  });
}

/** Waits for all other VUs, and publishes. */
async function publish() {
  const socket = await connect(URL);
  const ready = new Set([1]);
  socket.on("message", (vu) => ready.add(vu));
  await socket.emitWithAck("join", "ready");
  await until("all VUs are in", WAIT_S, () => ready.size === VUS);
  for (let count = 0; count < BROADCASTS; count++) {
    socket.emit("publish", "broadcast", { count, at: Date.now(), text: "x".repeat(100) });
    await pause(EVERY_MS);
  }
  return socket;
}

function hear(reader, { count, at }) {
  delivered.add(1);
  latency.add(Date.now() - at);
  if (reader.next !== count) wrong(`a reader got ${count} instead of ${reader.next}`);
  reader.next = count + 1;
}
