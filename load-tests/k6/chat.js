// Rooms with people in them: everybody joins, everybody says something from time to time, and everybody must hear
// everybody in their room, once and in each one's order. One room a VU; half of the rooms have members on polling.
import { check } from "k6";
import { connect } from "./socketio.js";
import { delivered, expected, latency, options as once, pause, size, until, URL, work, wrong } from "./common.js";

const ROOMS = size("ROOMS", 3, 20);
const PEOPLE = size("PEOPLE", 6, 20);
const MESSAGES = size("MESSAGES", 5, 20);
const EVERY_MS = size("EVERY_MS", 40, 500);

export const options = once(ROOMS, 300);

export default async function () {
  await work(async () => {
    const room = `chat-${__VU}`;
    const people = [];
    for (let number = 0; number < PEOPLE; number++) {
      const transport = __VU % 2 === 0 && number % 3 === 0 ? "polling" : "websocket";
      const socket = await connect(URL, { transport });
      const person = { socket, number, heard: 0, next: new Array(PEOPLE).fill(0) };
      socket.on("message", ({ from, count, at }) => hear(person, from, count, at));
      socket.on("disconnect", (why) => why === "io client disconnect" || wrong(`${room}: lost ${number}: ${why}`));
      await socket.emitWithAck("join", room);
      people.push(person);
    }
    await Promise.all(people.map((person) => talk(person, room)));
    const all = PEOPLE * MESSAGES;
    expected.add(all * PEOPLE);
    await until("everybody heard everything", 60, () => people.every(({ heard }) => heard >= all));
    check(people, { "and nothing twice": () => people.every(({ heard }) => heard === all) });
    people.forEach(({ socket }) => socket.close());
  });
}

async function talk({ socket, number }, room) {
  await pause(Math.random() * EVERY_MS);
  for (let count = 0; count < MESSAGES; count++) {
    socket.emit("publish", room, { from: number, count, at: Date.now(), text: "x".repeat(60) });
    await pause(EVERY_MS);
  }
}

function hear(person, from, count, at) {
  delivered.add(1);
  latency.add(Date.now() - at);
  person.heard++;
  if (person.next[from] !== count) wrong(`${person.number} heard ${count} of ${from} instead of ${person.next[from]}`);
  person.next[from] = count + 1;
}
