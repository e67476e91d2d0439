// Where the server under test is. With SOCKRING_URL set it is that one; without, the suite starts its own reference
// server (npm socket.io), which is how the suites themselves are validated.
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";

/** Starts `script` of this folder (or takes SOCKRING_URL) and returns { url, host, port, pid, isReference, stop }. */
export async function target(script, args = []) {
  if (process.env.SOCKRING_URL) {
    const pid = process.env.SOCKRING_PID ? Number(process.env.SOCKRING_PID) : undefined;
    return describe(process.env.SOCKRING_URL, pid, false, () => {});
  }
  const path = fileURLToPath(new URL(`../${script}`, import.meta.url));
  const child = spawn(process.execPath, [path, "--port", "0", ...args], { stdio: ["ignore", "pipe", "inherit"] });
  process.on("exit", () => child.kill("SIGKILL"));
  const address = await new Promise((resolve, reject) => {
    let text = "";
    child.once("exit", (code) => reject(new Error(`${script} ended with ${code} before it listened`)));
    child.stdout.on("data", (chunk) => {
      text += chunk;
      const found = /listening on (\S+)/.exec(text);
      if (found) resolve(found[1]);
    });
  });
  const stop = () =>
    new Promise((resolve) => {
      if (child.exitCode !== null || child.signalCode !== null) return resolve();
      child.removeAllListeners("exit");
      child.once("exit", resolve);
      child.kill("SIGTERM");
    });
  return describe(`http://${address}`, child.pid, true, stop);
}

function describe(url, pid, isReference, stop) {
  const { hostname, port } = new URL(url);
  console.log(`# server: ${isReference ? "reference" : "SOCKRING_URL"} ${url} pid ${pid ?? "unknown"}`);
  const ws = url.replace(/^http/, "ws");
  return { url, ws, host: hostname, port: Number(port), pid, isReference, stop };
}
