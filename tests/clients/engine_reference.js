// The reference of `conformance_server --profile engine` and `engine3`: npm engine.io that sends every message back.
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { options, serve } from "./lib/cli.mjs";

// engine.io is a dependency of socket.io, so it is found from there.
const require = createRequire(createRequire(import.meta.url).resolve("socket.io"));
const { Server } = require("engine.io");

const httpServer = createServer((_, res) => res.writeHead(404).end());
const { port, profile } = options(3000);
const allowEIO3 = profile === "engine3";
const engine = new Server({ pingInterval: 300, pingTimeout: 200, maxHttpBufferSize: 1e6, cors: { origin: "*" }, allowEIO3 });
engine.attach(httpServer, { path: "/engine.io/" });
engine.on("connection", (socket) => socket.on("message", (message) => socket.send(message)));

serve(httpServer, port, () => engine.close());
