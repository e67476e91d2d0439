// Runs k6's scenarios: `node load-tests/k6/run.mjs [SCENARIO...]`, all by default. SOCKRING_URL names the server;
// without it one is started (K6_SERVER, by default the release build of examples/fanout_server). SIZE=small makes them
// as small as in `make test`; other sizes are at the top of each scenario. Ends with k6's verdict, which is on counts
// and errors and never on time.
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const root = fileURLToPath(new URL("../..", import.meta.url));
const k6 = process.env.K6 ?? `${root}/.venv/bin/k6`;
const ALL = ["smoke", "chat", "broadcast", "reconnect"];
const asked = process.env.SCENARIO ? [process.env.SCENARIO] : process.argv.slice(2);
const scenarios = asked.length > 0 ? asked : ALL;

if (!existsSync(k6)) {
  console.error(`${k6} is missing: make deps`);
  process.exit(1);
}

const server = process.env.SOCKRING_URL ? null : await start();
let failed = 0;
for (const scenario of scenarios) {
  const code = await run(scenario);
  if (code !== 0) failed++;
  console.log(`# k6 ${scenario}: ${code === 0 ? "passed" : `failed, exit code ${code}`}`);
}
server?.child.kill("SIGTERM");
process.exit(failed === 0 ? 0 : 1);

function run(scenario) {
  const words = ["run", "--no-color", "--no-usage-report", "--address", "", `${here}/${scenario}.js`];
  if (!process.stderr.isTTY) words.splice(1, 0, "--quiet");
  const env = { ...process.env, SOCKRING_URL: process.env.SOCKRING_URL ?? server.url, K6_NO_USAGE_REPORT: "true" };
  const child = spawn(k6, words, { env, stdio: "inherit" });
  return new Promise((resolve) => child.on("exit", (code) => resolve(code ?? 1)));
}

/** Starts the server and waits until it says where it listens. */
function start() {
  const command = process.env.K6_SERVER ?? `${root}/target/release/examples/fanout_server --port 3901`;
  const [program, ...words] = command.split(" ");
  const child = spawn(program, words, { stdio: ["ignore", "pipe", "inherit"] });
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", (code) => reject(new Error(`${command} ended with ${code}`)));
    createInterface(child.stdout).on("line", (line) => {
      const [, address] = /^listening on (\S+)/.exec(line) ?? [];
      if (address) resolve({ child, url: `http://${address}` });
    });
  });
}
