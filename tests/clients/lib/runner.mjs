// A small test runner: tests are declared with `test`, run with a bounded number at a time, and reported as TAP.
// The process ends with code 1 when a test failed, so that a shell or the Rust harness can judge the suite.
import assert from "node:assert/strict";
import { monitorEventLoopDelay } from "node:perf_hooks";

export { assert };

const tests = [];
const only = process.env.ONLY ? new RegExp(process.env.ONLY) : null;

/** Declares a test. `alone` keeps every other test away while it runs. */
export function test(name, body, { timeout_ms = 12_000, alone = false, skip = "" } = {}) {
  if (only && !only.test(name)) return;
  tests.push({ name, body, timeout_ms, alone, skip });
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Fails after `ms` with `what` in its message unless `promise` settles before. */
export function within(promise, ms, what) {
  let timer;
  const late = new Promise((_, reject) => {
    const error = new Error(`no ${what} within ${ms} ms`);
    timer = setTimeout(() => reject(error), ms);
  });
  const first = Promise.race([promise, late]).finally(() => clearTimeout(timer));
  // A test may fail before it looks at a promise that it prepared: that promise's failure is not another one.
  first.catch(() => {});
  return first;
}

/** Polls `probe` until it returns something truthy. */
export async function until(probe, what, ms = 5_000) {
  const end = Date.now() + ms;
  for (;;) {
    const value = await probe();
    if (value) return value;
    if (Date.now() > end) throw new Error(`${what}: not so within ${ms} ms`);
    await sleep(20);
  }
}

/** How late this process may have been for a failure to count: heartbeats of the suites allow 200 ms. */
const LATE_MS = 100;
const AGAIN_MAX = 2;

/** Runs a test; once more if it failed while this process itself got no time to answer. */
async function runOne(entry) {
  for (let tries = 0; ; tries++) {
    delete entry.error;
    const delay = monitorEventLoopDelay({ resolution: 10 });
    delay.enable();
    await tryOne(entry);
    delay.disable();
    const late = Math.round(delay.max / 1e6);
    if (!entry.error || late < LATE_MS || tries === AGAIN_MAX) return;
    console.log(`# again, since this process was ${late} ms late: ${entry.name}: ${entry.error.message.slice(0, 120)}`);
  }
}

async function tryOne(entry) {
  const cleanups = [];
  const context = { defer: (undo) => cleanups.push(undo), note: (line) => entry.notes.push(line) };
  entry.notes = [];
  const start = performance.now();
  try {
    if (!entry.skip) await within(entry.body(context), entry.timeout_ms, `end of "${entry.name}"`);
  } catch (error) {
    entry.error = error;
  }
  for (const undo of cleanups.reverse()) {
    try {
      await undo();
    } catch {
      // A cleanup that fails leaves nothing to judge: the test itself has been judged already.
    }
  }
  entry.took_ms = performance.now() - start;
}

function report(entry, number) {
  const took = `${Math.round(entry.took_ms)} ms`;
  if (entry.skip) return console.log(`ok ${number} - ${entry.name} # SKIP ${entry.skip}`);
  console.log(`${entry.error ? "not ok" : "ok"} ${number} - ${entry.name} (${took})`);
  for (const line of entry.notes) console.log(`# ${line}`);
  if (entry.error) console.log(String(entry.error.stack ?? entry.error).replace(/^/gm, "    "));
}

/** Runs what was declared, at most `parallel` at a time, then `finish`, and ends the process. */
export async function run({ parallel = 1, finish = () => {} } = {}) {
  const start = performance.now();
  console.log("TAP version 13");
  let next = 0;
  let done = 0;
  async function worker() {
    while (next < tests.length && !tests[next].alone) {
      const entry = tests[next++];
      await runOne(entry);
      report(entry, ++done);
    }
  }
  while (next < tests.length) {
    if (tests[next].alone) {
      const entry = tests[next++];
      await runOne(entry);
      report(entry, ++done);
    } else {
      await Promise.all(Array.from({ length: parallel }, worker));
    }
  }
  const failed = tests.filter((entry) => entry.error).length;
  console.log(`1..${tests.length}`);
  console.log(`# ${tests.length - failed} passed, ${failed} failed, ${Math.round((performance.now() - start) / 100) / 10} s`);
  await finish();
  process.exit(failed || tests.length === 0 ? 1 : 0);
}

process.on("unhandledRejection", (error) => {
  console.log(`# unhandled rejection: ${error?.stack ?? error}`);
  process.exit(2);
});
