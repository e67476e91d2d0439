// The same work as in peers.rs, done by npm ws (from tests/clients): unmasking, and walking frames. Leaves its medians where
// criterion leaves its own, for table.mjs.
import { createRequire } from "node:module";
import { mkdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL("../../", import.meta.url));
const require = createRequire(`${here}tests/clients/package.json`);
const lib = require.resolve("ws").replace(/[^/]+$/, "lib/");
const { unmask } = require(`${lib}buffer-util.js`);
const Receiver = require(`${lib}receiver.js`);
const OUT = process.env.CRITERION_HOME ?? `${here}target/peers/criterion`;
const MASK = Buffer.from([0x12, 0x34, 0x56, 0x78]);
const FRAMES = 100;

/** Time on a processor, as peers.rs measures it: a busy machine changes it little. */
function processor_us() {
  const { user, system } = process.cpuUsage();
  return user + system;
}

/** The median time of one piece of work in nanoseconds, of 30 samples of 20 ms; `body` does `times` pieces. */
async function measure(group, times, body) {
  let warm = 0;
  const [begun, end] = [processor_us(), performance.now() + 200];
  for (; performance.now() < end; warm++) await body();
  const batch = Math.ceil((1_000 * warm) / Math.max(1, processor_us() - begun));
  const samples = [];
  for (let i = 0; i < 30; i++) {
    const start = processor_us();
    let calls = 0;
    while (processor_us() - start < 20_000) {
      // As many between two looks at the clock as take a millisecond or so.
      for (let k = 0; k < batch; k++) await body();
      calls += batch;
    }
    samples.push(((processor_us() - start) * 1_000) / calls / times);
  }
  const ns = samples.sort((a, b) => a - b)[15];
  const folder = `${OUT}/${group}/ws (npm)/new`;
  mkdirSync(folder, { recursive: true });
  writeFileSync(`${folder}/estimates.json`, JSON.stringify({ median: { point_estimate: ns } }));
  console.log(`${group}: ${Math.round(ns)} ns`);
}

function frame(opcode, payload) {
  const length = payload.length < 126 ? [0x80 | payload.length] : [0x80 | 126, payload.length >> 8, payload.length & 255];
  const masked = payload.map((byte, i) => byte ^ MASK[i & 3]);
  return Buffer.concat([Buffer.from([0x80 | opcode, ...length]), MASK, masked]);
}

for (const size of [16, 128, 1024, 65536]) {
  const data = Buffer.alloc(size, 7);
  // Many at a time: an await is dearer than the smallest of them.
  const times = Math.max(1, Math.round(16_384 / size));
  await measure(`unmask ${size}`, times, () => {
    for (let i = 0; i < times; i++) unmask(data, MASK);
  });
}

for (const [name, opcode, size] of [["text", 1, 20], ["text", 1, 100], ["binary", 2, 4000]]) {
  const wire = Buffer.concat(Array(FRAMES).fill(frame(opcode, Buffer.alloc(size, "x"))));
  await measure(`${FRAMES} ${name} frames of ${size}`, 1, () => {
    // Unmasking happens in place, so that each round needs its own copy: ws gets one from the kernel, too.
    const copy = Buffer.from(wire);
    return new Promise((resolve) => {
      const receiver = new Receiver({ isServer: true, allowSynchronousEvents: true });
      let seen = 0;
      receiver.on("message", () => ++seen === FRAMES && resolve());
      receiver.write(copy);
    });
  });
}
