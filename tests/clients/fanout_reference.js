// The reference of `fanout_server`: rooms on npm socket.io, raw WebSocket on npm ws, plain HTTP on Node.
import { createServer } from "node:http";
import { Server } from "socket.io";
import { WebSocketServer } from "ws";
import { options, serve } from "./lib/cli.mjs";
import { fanOut } from "./lib/fan_out.mjs";

const httpServer = createServer((req, res) => {
  if (req.url !== "/") return res.writeHead(404).end();
  if (req.method === "POST") {
    const parts = [];
    req.on("data", (part) => parts.push(part));
    return req.on("end", () => {
      const body = Buffer.concat(parts);
      res.writeHead(200, { "Content-Length": body.length }).end(body);
    });
  }
  res.writeHead(200, { "Content-Type": "text/plain", "Content-Length": 3 }).end("ok\n");
});

const { deflate, port } = options(3001);
const io = new Server(httpServer, { destroyUpgrade: false, perMessageDeflate: deflate });
fanOut(io);
io.on("connection", (socket) => {
  socket.on("busy", (ms, ack) => {
    for (const end = performance.now() + Math.min(ms, 50); performance.now() < end; );
    ack();
  });
});

const topics = new Map();
const paths = {
  "/ws": { serverNoContextTakeover: true },
  "/ws-context": {},
  "/ws-limited": { serverMaxWindowBits: 10, clientMaxWindowBits: 10 },
};
for (const [path, perMessageDeflate] of Object.entries(paths)) {
  const limits = { maxPayload: 16 << 20, maxFragments: 1 << 17, maxBufferedChunks: 1 << 20 };
  const wss = new WebSocketServer({ noServer: true, perMessageDeflate, ...limits });
  httpServer.on("upgrade", (req, stream, head) => {
    if (req.url === path) wss.handleUpgrade(req, stream, head, onSocket);
  });
}

function onSocket(ws) {
  ws.on("error", () => {});
  ws.on("message", (data, binary) => {
    const [verb, topic, ...rest] = binary ? [] : data.toString().split(" ");
    if (verb === "sub") topics.set(topic, (topics.get(topic) ?? new Set()).add(ws));
    else if (verb === "pub") topics.get(topic)?.forEach((member) => member.send(rest.join(" ")));
    else ws.send(data, { binary });
  });
  ws.on("close", () => topics.forEach((members) => members.delete(ws)));
}

serve(httpServer, port, () => io.close());
