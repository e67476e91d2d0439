// Sums up what criterion and ws.mjs have left: for each group our median, and the others with their ratio to it.
import { existsSync, readFileSync, readdirSync } from "node:fs";

const folder = process.argv[2];
const median = (group, name) => {
  const path = `${folder}/${group}/${name}/new/estimates.json`;
  return existsSync(path) ? JSON.parse(readFileSync(path, "utf8")).median.point_estimate : undefined;
};
const time = (ns) => (ns < 1_000 ? `${ns.toFixed(ns < 10 ? 1 : 0)} ns` : `${(ns / 1_000).toFixed(ns < 10_000 ? 2 : 1)} µs`);

console.log("| what | sockring | the others, and how many times our time that is |\n|---|---|---|");
for (const group of readdirSync(folder).sort()) {
  const ours = median(group, "sockring");
  if (ours === undefined) continue;
  const names = readdirSync(`${folder}/${group}`).filter((name) => name !== "sockring" && median(group, name) !== undefined);
  const peers = names.map((name) => `${name} ${time(median(group, name))} (${(median(group, name) / ours).toFixed(2)})`);
  console.log(`| ${group} | ${time(ours)} | ${peers.join(", ")} |`);
}
