// Connections that break and come back, all of a VU at once: everybody gets in again, what is sent afterwards arrives
// once, and nothing is left of the connections that are gone.
import { check } from "k6";
import { connect } from "./socketio.js";
import { delivered, expected, latency, options as once, size, until, URL, work, wrong } from "./common.js";

const VUS = size("VUS", 3, 10);
const SOCKETS = size("SOCKETS", 10, 50);
const ROUNDS = size("ROUNDS", 3, 10);

export const options = once(VUS, 300);

export default async function () {
  await work(async () => {
    const room = `reconnect-${__VU}`;
    let ids = new Set();
    for (let round = 0; round < ROUNDS; round++) {
      const start = Date.now();
      const sockets = await Promise.all(Array.from({ length: SOCKETS }, (_, number) => enter(room, number)));
      latency.add(Date.now() - start);
      check(sockets, { "nobody comes back as somebody else": () => sockets.every(({ id }) => !ids.has(id)) });
      ids = new Set(sockets.map(({ id }) => id));
      sockets[0].emit("publish", room, round);
      expected.add(SOCKETS);
      await until("all hear what comes after", 60, () => sockets.every(({ heard }) => heard.length > 0));
      const back = await sockets[SOCKETS - 1].emitWithAck("echo", round);
      check(sockets, {
        "once": () => back === round && sockets.every(({ heard }) => heard.length === 1 && heard[0] === round),
      });
      // Half without a word.
      sockets.forEach((socket, number) => (number % 2 === 0 ? socket.cut() : socket.close()));
    }
  });
}

async function enter(room, number) {
  const socket = await connect(URL, { transport: number % 5 === 4 ? "polling" : "websocket" });
  socket.heard = [];
  socket.on("message", (payload) => {
    delivered.add(1);
    socket.heard.push(payload);
  });
  const ours = ["io client disconnect", "transport close"];
  socket.on("disconnect", (why) => ours.includes(why) || wrong(`${room}: lost ${number}: ${why}`));
  await socket.emitWithAck("join", room);
  return socket;
}
