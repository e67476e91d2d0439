// What every reference server shares: the command line, the ready line, the end on SIGTERM.
import { parseArgs } from "node:util";

export function options(port) {
  const { values } = parseArgs({
    options: { port: { type: "string" }, workers: { type: "string" }, profile: { type: "string" }, deflate: { type: "boolean", default: false }, parser: { type: "string" } },
  });
  return { port: Number(values.port ?? process.env.PORT ?? port), profile: values.profile, deflate: values.deflate, parser: values.parser };
}

/** Listens, says so on stdout, and ends the process on SIGTERM. */
export function serve(httpServer, port, close = () => {}) {
  httpServer.listen(port, "127.0.0.1", () => {
    console.log(`listening on 127.0.0.1:${httpServer.address().port}`);
  });
  process.on("SIGTERM", () => {
    close();
    process.exit(0);
  });
}
