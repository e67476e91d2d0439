// Runs every suite against its reference server, one after the other, and sums up.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const python = fileURLToPath(new URL("../../.venv/bin/python", import.meta.url));
const page = process.env.CHAT_PUBLIC ?? fileURLToPath(new URL("../../examples/chat/public", import.meta.url));
const suites = ["engine.test.mjs", "engine3.test.mjs", "engine_client.test.mjs", "socketio_protocol.test.mjs"];
suites.push("client.test.mjs", "socketio.test.mjs", "namespaces.test.mjs", "close.test.mjs", "versions.test.mjs", "bundles.test.mjs", "ws_app.test.mjs");
suites.push("PARSER=msgpack socketio.test.mjs", "PARSER=msgpack parsers.test.mjs", "PARSER=json parsers.test.mjs");
suites.push("PARSER=msgpack bundles.test.mjs", "PARSER=msgpack recovery.test.mjs");
suites.push("proxy.test.mjs", "one_port.test.mjs", "spread.test.mjs", "python_client.py", "garbage.mjs", "churn.mjs");
if (existsSync(page)) suites.push("chat.test.mjs");
suites.push("cluster.test.mjs", "SERVERS=3 cluster.test.mjs", "PARSER=msgpack cluster.test.mjs");
suites.push("recovery.test.mjs", "browser.test.mjs");

let failed = 0;
for (const suite of suites) {
  const start = performance.now();
  const [script, ...settings] = suite.split(" ").reverse();
  const env = { ...process.env, SOCKRING_URL: "", SOCKRING_PID: "", ...Object.fromEntries(settings.map((setting) => setting.split("="))) };
  const interpreter = suite.endsWith(".py") ? python : process.execPath;
  const { status, stdout } = spawnSync(interpreter, [here + script], { env, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });
  const took = `${Math.round((performance.now() - start) / 100) / 10} s`;
  const verdict = stdout.split("\n").filter((line) => /^# .*failed/.test(line)).at(-1) ?? "no verdict";
  console.log(`${status === 0 ? "ok" : "not ok"} - ${suite} in ${took}: ${verdict.slice(2)}`);
  if (status === 0) continue;
  failed++;
  console.log(stdout);
}
process.exit(failed ? 1 : 0);
