// Sums up what criterion and ws.mjs have left in a folder: our median, and the others with their ratio to it. Prints the
// table, and puts it between the marks of docs/BENCHMARKS.md.
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { cpus, loadavg, release } from "node:os";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL("../../", import.meta.url));
const [folder, page] = [process.argv[2], `${here}docs/BENCHMARKS.md`];
const ROWS = {
  "unmask 16": "unmask 16 bytes",
  "unmask 128": "unmask 128 bytes",
  "unmask 1024": "unmask 1,024 bytes",
  "unmask 65536": "unmask 65,536 bytes",
  "100 text frames of 20": "walk 100 text frames of 20 bytes",
  "100 text frames of 100": "walk 100 text frames of 100 bytes",
  "100 binary frames of 4000": "walk 100 binary frames of 4,000 bytes",
  "request head": "parse a request head of Chromium",
  "decode a payload of 21 packets": "decode a polling payload, 20 events and 1,000 bytes",
  "encode a payload of 21 packets": "encode the same",
  "accept key": "accept key",
};

const median = (group, name) => {
  const path = `${folder}/${group}/${name}/new/estimates.json`;
  return existsSync(path) ? JSON.parse(readFileSync(path, "utf8")).median.point_estimate : undefined;
};
const digits = (number) => number.toFixed(number < 10 ? 1 : 0);
const time = (ns) => (ns < 1_000 ? `${digits(ns)} ns` : `${(ns / 1_000).toFixed(ns < 10_000 ? 2 : 1)} µs`);

function peer(group, name) {
  const [ours, theirs] = [median(group, "sockring"), median(group, name)];
  const ratio = theirs / ours;
  const text = `${name} ${time(theirs)} (${ratio < 2 ? ratio.toFixed(2) : digits(ratio)})`;
  // What is within the noise is no loss.
  return ratio < 0.95 ? `**${text}**` : text;
}

const lines = ["| what | sockring | the others |", "|---|---|---|"];
for (const [group, title] of Object.entries(ROWS)) {
  const ours = median(group, "sockring");
  if (ours === undefined) throw new Error(`no measurement of "${group}" in ${folder}`);
  const names = readdirSync(`${folder}/${group}`).filter((name) => name !== "sockring" && median(group, name) !== undefined);
  const peers = names.sort((a, b) => median(group, a) - median(group, b)).map((name) => peer(group, name));
  lines.push(`| ${title} | ${time(ours)} | ${peers.join(", ")} |`);
}

const run = (command, ...flags) => execFileSync(command, flags, { cwd: here, encoding: "utf8" }).trim();
const changed = run("git", "status", "--porcelain", "--", "src", "benches") ? ", with changes" : "";
const version = (name) => JSON.parse(readFileSync(`${here}tests/clients/node_modules/${name}/package.json`, "utf8")).version;
const circumstances = [
  `Measured on ${new Date().toISOString().slice(0, 10)} at ${run("git", "rev-parse", "--short", "HEAD")}${changed}: `,
  `${cpus().length} cores (${cpus()[0].model.trim()}), Linux ${release()}, ${run("rustc", "--version").split(" (")[0]},\n`,
  `Node ${process.versions.node}, ws ${version("ws")}; load average ${loadavg()[1].toFixed(1)}.`,
].join("");

const [BEGIN, END] = ["<!-- table -->\n", "<!-- /table -->\n"];
const text = readFileSync(page, "utf8");
const [start, end] = [text.indexOf(BEGIN), text.indexOf(END)];
if (start < 0 || end < start) throw new Error(`${page} has no marks`);
const table = `${circumstances}\n\n${lines.join("\n")}\n`;
writeFileSync(page, text.slice(0, start + BEGIN.length) + table + text.slice(end));
console.log(`${table}\nwritten to docs/BENCHMARKS.md`);
