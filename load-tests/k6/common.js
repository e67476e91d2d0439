// What the scenarios share: sizes from the environment, the metrics that decide, and waiting with a limit.
import { check } from "k6";
import { Counter, Trend } from "k6/metrics";

/** The server. */
export const URL = __ENV.SOCKRING_URL || "http://127.0.0.1:3001";

/** A size: `small` in tests, `real` otherwise, and from the environment if it says so. */
export function size(name, small, real) {
  return Number(__ENV[name] || (__ENV.SIZE === "small" ? small : real));
}

/** What went wrong; every threshold is on this and on checks, none on time. */
export const errors = new Counter("sio_errors");
/** What arrived, and what should have. */
export const delivered = new Counter("sio_delivered");
export const expected = new Counter("sio_expected");
/** Milliseconds from a message's leaving to its arrival, at this client's clock. */
export const latency = new Trend("sio_latency", true);

/** Options of a scenario whose VUs do their work once. */
export function options(vus, seconds) {
  return {
    scenarios: { all: { executor: "per-vu-iterations", vus, iterations: 1, maxDuration: `${seconds}s`, gracefulStop: "5s" } },
    thresholds: { checks: ["rate==1"], sio_errors: ["count==0"] },
    summaryTrendStats: ["med", "p(90)", "p(99)", "max"],
  };
}

/** Notes that something went wrong. */
export function wrong(why) {
  errors.add(1);
  console.error(why);
}

/** Runs a VU's work: an exception is an error and nothing else. */
export async function work(act) {
  errors.add(0);
  try {
    await act();
  } catch (error) {
    wrong(String(error.stack || error));
  }
}

/** Waits until `done()`, and checks that it came to that within `seconds`. */
export async function until(what, seconds, done) {
  const end = Date.now() + seconds * 1000;
  while (!done() && Date.now() < end) await pause(20);
  if (!check(null, { [what]: done })) errors.add(1);
}

export function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
