// The reference of `conformance_server --profile engine-client`: what engine.io-client's own suite expects.
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { options, serve } from "./lib/cli.mjs";

// engine.io is a dependency of socket.io, so it is found from there.
const require = createRequire(createRequire(import.meta.url).resolve("socket.io"));
const { Server } = require("engine.io");

const httpServer = createServer((_, res) => res.writeHead(404).end());
const engine = new Server({
  pingInterval: 500,
  maxHttpBufferSize: 100,
  cors: { origin: true, credentials: true },
  allowRequest: (req, answer) => answer(null, !new URL(req.url, "http://a").searchParams.has("deny")),
});
engine.attach(httpServer, { path: "/engine.io/" });
engine.on("initial_headers", (headers) => {
  headers["Set-Cookie"] = ["1=1; Path=/; Max-Age=60", "2=2; Path=/; HttpOnly; SameSite=Lax", "3=3; Max-Age=0"];
});
engine.on("connection", (socket) => {
  socket.send("hi");
  socket.on("message", (message) => {
    if (message === "give binary") return socket.send(Buffer.from([0, 1, 2, 3, 4]));
    if (message === "give utf8") return socket.send("пойдём гулять вдоль реки, пока не стемнело — ".repeat(8));
    if (message === "sendHeaders") return socket.send(JSON.stringify(socket.transport.dataReq?.headers ?? {}));
    socket.send(message);
  });
});

serve(httpServer, options(3000).port, () => engine.close());
