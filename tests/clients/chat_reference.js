// The chat example's contract (examples/chat/README.md) on npm socket.io, to validate chat.test.mjs and the page.
// CHAT_PUBLIC names the folder of the page, where it is not in this tree.
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { extname, join, normalize } from "node:path";
import { Server } from "socket.io";
import { options, serve } from "./lib/cli.mjs";

const PUBLIC = process.env.CHAT_PUBLIC ?? fileURLToPath(new URL("../../examples/chat/public", import.meta.url));
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css" };

const httpServer = createServer(async (req, res) => {
  const [asked] = req.url.split("?");
  const path = normalize(asked === "/" ? "/index.html" : asked);
  const file = await readFile(join(PUBLIC, path)).catch(() => null);
  if (!file) return res.writeHead(404).end();
  res.writeHead(200, { "Content-Type": `${TYPES[extname(path)]}; charset=utf-8` }).end(file);
});
const io = new Server(httpServer);
const history = new Map();

const users = async (room) => (await io.in(room).fetchSockets()).map(({ data }) => data.username);

async function enter(socket, room) {
  socket.data.room = room;
  socket.join(room);
  const present = await users(room);
  socket.to(room).emit("user-joined", { username: socket.data.username, users: present });
  return { ok: true, room, users: present, history: history.get(room) ?? [] };
}

async function leave(socket) {
  const { room, username } = socket.data;
  socket.leave(room);
  io.to(room).emit("user-left", { username, users: await users(room) });
}

io.on("connection", (socket) => {
  socket.on("login", async (username, ack) => {
    const taken = (await io.fetchSockets()).some(({ data }) => data.username === username);
    if (taken) return ack({ ok: false, error: "This name is taken." });
    socket.data.username = username;
    ack(await enter(socket, "general"));
  });
  socket.on("switch-room", async (room, ack) => {
    await leave(socket);
    ack(await enter(socket, room));
  });
  socket.on("message", (text, ack) => {
    const { room, username } = socket.data;
    const message = { from: username, text, at: Date.now() };
    history.set(room, [...(history.get(room) ?? []), message].slice(-50));
    io.to(room).emit("message", message);
    ack({ ok: true });
  });
  socket.on("typing", (typing) => {
    socket.to(socket.data.room).emit("typing", { username: socket.data.username, typing });
  });
  socket.on("disconnect", () => socket.data.username && leave(socket));
});

serve(httpServer, options(3000).port, () => io.close());
