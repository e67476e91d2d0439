// The reference of `one-port` (examples/axum): node:http beside socket.io on one port.
import { createServer } from "node:http";
import { Server } from "socket.io";
import { options, serve } from "./lib/cli.mjs";

const text = (res, status, body) =>
  res.writeHead(status, { "Content-Type": "text/plain", "Content-Length": body.length }).end(body);

const httpServer = createServer(async (req, res) => {
  // socket.io answers its own requests; this listener runs for those that are not below its path.
  let body = "";
  for await (const part of req.setEncoding("utf8")) body += part;
  const path = req.url.split("?")[0];
  if (path === "/") return text(res, ["GET", "HEAD"].includes(req.method) ? 200 : 405, "hello from axum");
  if (path === "/who") return text(res, 200, `${req.socket.remoteAddress}:${req.socket.remotePort}`);
  if (path === "/slow") return setTimeout(() => text(res, 200, "at last"), 500);
  if (path === "/stream") {
    for (let n = 0; n < 5; n++) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      res.write(`data: ${n}\n\n`);
    }
    return res.end();
  }
  if (path.startsWith("/say/")) {
    io.emit(path.slice(5), body);
    return text(res, 200, "said");
  }
  if (path !== "/echo") return text(res, 404, "");
  try {
    const echo = JSON.stringify(JSON.parse(body));
    res.writeHead(200, { "Content-Type": "application/json" }).end(echo);
  } catch {
    text(res, 400, "");
  }
});
const io = new Server(httpServer);
io.on("connection", (socket) => socket.on("echo", (...args) => args.pop()(...args)));

serve(httpServer, options(3006).port, () => io.close());
