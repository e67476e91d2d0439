// One client over each transport does everything once: is the server there, and does it answer rightly?
import { check } from "k6";
import { connect } from "./socketio.js";
import { options as once, pause, until, URL, work } from "./common.js";

const TRANSPORTS = ["websocket", "polling"];
export const options = once(TRANSPORTS.length, 60);

const same = (left, right) => JSON.stringify(left) === JSON.stringify(right);
const bytes = (buffer) => Array.from(new Uint8Array(buffer));

export default async function () {
  const transport = TRANSPORTS[__VU - 1];
  await work(async () => {
    const socket = await connect(URL, { transport });
    const got = [];
    socket.on("message", (payload) => got.push(payload));

    const object = { text: "grüße \u{1f680}", list: [1, null, true, { deep: [] }] };
    check(await socket.emitWithAck("echo", "hello"), { [`${transport}: text comes back`]: (back) => back === "hello" });
    check(await socket.emitWithAck("echo", object), { [`${transport}: JSON comes back`]: (back) => same(back, object) });
    const binary = new Uint8Array([0, 1, 30, 128, 255]).buffer;
    const back = await socket.emitWithAck("echo", { deep: [binary, "and text"] });
    check(back, {
      [`${transport}: bytes come back`]: ({ deep }) => same(bytes(deep[0]), bytes(binary)) && deep[1] === "and text",
    });

    const room = `smoke-${transport}`;
    await socket.emitWithAck("join", room);
    for (const payload of ["one", "two", "three"]) socket.emit("publish", room, payload);
    await until(`${transport}: a room's messages arrive`, 20, () => got.length >= 3);
    check(got, { [`${transport}: once and in order`]: () => same(got, ["one", "two", "three"]) });

    await socket.emitWithAck("leave", room);
    socket.emit("publish", room, "nobody hears this");
    check(await socket.emitWithAck("echo", "after it"), { [`${transport}: answers after it`]: (text) => text === "after it" });
    check(got, { [`${transport}: who left gets nothing`]: () => got.length === 3 });

    let reason = null;
    socket.on("disconnect", (why) => (reason = why));
    await pause(50);
    check(reason, { [`${transport}: stays connected`]: () => reason === null });
    socket.close();
    check(reason, { [`${transport}: ends`]: () => reason === "io client disconnect" });
  });
}
