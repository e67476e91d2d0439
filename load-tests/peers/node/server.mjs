// Socket.IO for Node under the contract of the load tests: `--engine ws` (its default) or `--engine uws`
// (uWebSockets.js, from a package that carries its bindings). Everything else is as a new application has it.
import { createServer } from "node:http";
import { parseArgs } from "node:util";
import { Server } from "socket.io";
import { fanOut } from "../../../tests/clients/lib/fan_out.mjs";

const { values } = parseArgs({
  options: { engine: { type: "string", default: "ws" }, port: { type: "string", default: "3001" } },
});
const port = Number(values.port);
const ready = () => console.log(`listening on 127.0.0.1:${port}`);

const io = new Server();
fanOut(io);

if (values.engine === "uws") {
  const { App } = await import("uws-pack");
  const app = App();
  io.attachApp(app);
  app.listen("127.0.0.1", port, (listening) => (listening ? ready() : process.exit(1)));
} else {
  const server = createServer();
  io.attach(server);
  server.listen({ port, host: "127.0.0.1", backlog: 4096 }, ready);
}
process.on("SIGTERM", () => process.exit(0));
