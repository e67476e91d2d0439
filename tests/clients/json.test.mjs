// What `JSON.parse` takes, sent to a handler that sends its arguments back: no connection is closed, and the value
// that comes back is the one that the reference's parser would bring back. Where it is another one on purpose, `ours` says how.
// SEED= and COUNT= change what is generated.
import { Decoder, Encoder } from "socket.io-parser";
import { assert, run, test } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { Polling, Ws } from "./lib/raw.mjs";

const server = await target("socketio_reference.js");
const url = `${server.ws}/socket.io/?EIO=4&transport=websocket`;
const SEED = Number(process.env.SEED ?? 20261201);
const COUNT = Number(process.env.COUNT ?? 4_000);
/** How many texts are on their way at a time. */
const BATCH = 100;

/** The reference's codec, there and back: what its echo sends. Its encoder recurses, so not for what nests deep. */
function reference(packet) {
  let found;
  const decoder = new Decoder();
  decoder.on("decoded", (decoded) => (found = decoded));
  decoder.add(packet);
  return new Encoder().encode({ type: found.type, nsp: found.nsp, data: found.data })[0];
}

/** What is different on purpose: half an emoji is U+FFFD. */
function ours(value) {
  if (server.isReference) return value;
  if (typeof value === "string") return value.toWellFormed();
  if (Array.isArray(value)) return value.map(ours);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, inside]) => [key.toWellFormed(), ours(inside)]));
}

/** Values, with 0 and -0 apart from each other only where the reference keeps them apart: it writes both as 0. */
const same = (text) => JSON.parse(text, (_, value) => (Object.is(value, -0) ? 0 : value));

async function joined(t) {
  const ws = await Ws.open(url);
  t.defer(() => ws.end());
  await ws.next();
  ws.send("40");
  await ws.next();
  await ws.next();
  return ws;
}

/** Sends each text as the arguments of an event, and gives what came back. */
async function echoes(ws, texts) {
  const found = [];
  for (let at = 0; at < texts.length; at += BATCH) {
    const batch = texts.slice(at, at + BATCH);
    for (const text of batch) ws.send(`42["message",${text}]`);
    for (const text of batch) {
      const answer = await ws.next(10_000).catch((error) => assert.fail(`${text.slice(0, 200)}: ${error.message}`));
      assert.ok(answer.startsWith('42["message-back"'), answer.slice(0, 200));
      found.push(answer.slice(2));
    }
  }
  return found;
}

async function compare(t, texts) {
  const found = await echoes(await joined(t), texts);
  texts.forEach((text, at) => {
    const expected = same(reference(`2["message-back",${text}]`).slice(1));
    // A list of arguments in which `undefined` is null, as JSON has it.
    assert.deepEqual(same(found[at]), ours(expected), text.slice(0, 200));
  });
}

const nested = (open, inside, close, depth) => open.repeat(depth) + inside + close.repeat(depth);

const ODD = [
  "-0", "-0.0", "0e5", "-0e-5", "1e400", "-1e400", "1E+400", "1e-400", "123456789012345678901234567890", "9".repeat(400),
  "9007199254740993", "-9007199254740993", "18446744073709551615", "18446744073709551616", "-9223372036854775809",
  "0.1", "0.1000000000000000055511151231257827021181583404541015625", "5e-324", "2.4703282292062328e-324", "1.7976931348623157e308",
  "1.7976931348623159e308", "2.2250738585072011e-308", "1e21", "1e20", "123456789.123456789e-9", `1${"0".repeat(400)}e-400`,
  `0.${"0".repeat(400)}1e401`, "1e-99999999999999999999", "0e99999999999999999999", "4.35", "1.0000000000000002",
  '"\\ud83d"', '"\\ude00\\ud83d"', '"\\ud83d\\ude00"', '"\\ud83d\\ud83d\\ude00"', '"\\uD83D\\u0041"', '"a\\udfffb"', '"\\\\ud83d"',
  '"\\u0000"', '"\\u001f\\u007f"', '"\u2028\u2029\ufeff\ufffe"', '"\\/\\b\\f\\n\\r\\t\\"\\\\"', '"\u{10ffff}\u00e9\u0301"', '""',
  " \t\r\n[ ] ", '{"a":1,"b":2,"a":3}', '{"":0," ":1}', '{"__proto__":1}', '{"__proto__":{"x":1},"constructor":2,"toString":null}',
  '[{"__proto__":[1]},{"hasOwnProperty":1}]', '{"10":1,"2":2,"a":3,"1":4}', '{"\\ud83d":1,"\\u0061":2,"a":3}', '{"\\u0000":"\\u0000"}',
  '{"_placeholder":true,"num":0}', '{"_placeholder":true,"num":1e400}', "null", "null,null", "true,false", "[null,[null]]", "[[],{},[{}]]",
];
test("odd values come back", (t) => compare(t, ODD));

test("odd values come back together", (t) => compare(t, [ODD.join(","), ODD.map((text) => `[${text}]`).join(" , ")]));

test("what nests deep comes back", async (t) => {
  const depths = [100, 124, 125, 126, 127, 128, 129, 130, 200, 400, 1_000];
  const texts = depths.flatMap((depth) => [
    nested("[", "", "]", depth),
    nested('{"a":', '[1e400,"\\ud83d",-0,{"b":1,"b":2}]', "}", depth),
    nested('[0,{"k":', "1.5", '},"x"]', depth >> 1),
  ]);
  await compare(t, texts);
});

test("what nests so deep that it ends the reference's process comes back", async (t) => {
  const ws = await joined(t);
  for (const text of [nested("[", "", "]", 400_000), nested('{"a":', "null", "}", 150_000), nested("[{}, ", "1", "]", 150_000)]) {
    const [found] = await echoes(ws, [text]);
    assert.ok(found === `["message-back",${text.replaceAll(" ", "")}]`, "the same text");
  }
  assert.deepEqual(await echoes(ws, ["1"]), ['["message-back",1]']);
}, { skip: server.isReference && "hasBinary recurses" });

test("the same over polling, as auth, and in an acknowledgement", async (t) => {
  const session = await Polling.open(`${server.url}/socket.io/`);
  await session.post(`40{"deep":${nested("[", "1e400", "]", 300)}}`);
  const [, auth] = await session.packets(2);
  assert.equal(auth, `42["auth",{"deep":${nested("[", "null", "]", 300)}}]`);
  await session.post(`427["message-with-ack",${nested("[", '"\\ud83d\\ude00"', "]", 300)},-1e999]`);
  assert.deepEqual(await session.packets(1), [`437[${nested("[", '"😀"', "]", 300)},null]`]);
});

/** Texts that `JSON.parse` takes, from a seed. */
function* generated(seed, count) {
  let state = seed >>> 0;
  const below = (limit) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
  const of = (...list) => list[below(list.length)];
  const many = (least, most, make) => Array.from({ length: least + below(most - least + 1) }, make);
  const digits = (most) => many(1, most, () => below(10)).join("");
  const space = () => (below(4) ? "" : many(1, 3, () => of(" ", "\t", "\n", "\r")).join(""));
  const hex = (unit) => (below(2) ? unit.toString(16) : unit.toString(16).toUpperCase()).padStart(4, "0");
  const number = () => {
    const whole = below(3) ? of("0", `${1 + below(9)}${below(2) ? digits(25) : ""}`) : String(below(100));
    const fraction = below(2) ? "" : `.${digits(of(2, 25))}`;
    const exponent = below(3) ? "" : `${of("e", "E")}${of("", "+", "-")}${digits(of(2, 3, 20))}`;
    return of("", "-") + whole + fraction + exponent;
  };
  const piece = () => {
    switch (below(9)) {
      case 0: return `\\u${hex(below(0x10000))}`;
      case 1: return `\\u${hex(0xd800 + below(0x800))}`;
      case 2: return `\\u${hex(0xd800 + below(0x400))}\\u${hex(0xdc00 + below(0x400))}`;
      case 3: return `\\${of('"', "\\", "/", "b", "f", "n", "r", "t")}`;
      case 4: return of("\u2028", "\u2029", "\ufeff", "\u007f", "\u0080", "é", "😀", "\ufffd");
      default: return of(" ", "!", "a", "0", "[", "]", "{", "}", ",", ":", "'");
    }
  };
  const string = () => `"${many(0, 6, piece).join("")}"`;
  const key = () => (below(3) ? string() : `"${of("__proto__", "a", "b", "", "0", "10", "constructor", "_placeholder", "num", "toJSON")}"`);
  const value = (depth) => {
    const kind = below(depth > 6 ? 4 : 7);
    if (kind === 0) return of("null", "true", "false");
    if (kind === 1) return number();
    if (kind <= 3) return string();
    const [open, close] = kind === 4 ? "{}" : "[]";
    const item = () => space() + (kind === 4 ? `${key()}${space()}:${space()}` : "") + value(depth + 1) + space();
    return open + (many(0, 5, item).join(",") || space()) + close;
  };
  for (let at = 0; at < count; at++) {
    const inside = many(1, 3, () => space() + value(0) + space()).join(",");
    yield below(20) ? inside : nested("[", inside, "]", 100 + below(60));
  }
}

test(`${COUNT} generated texts come back (SEED=${SEED})`, async (t) => {
  const texts = [...generated(SEED, COUNT)];
  texts.forEach((text) => JSON.parse(`[${text}]`));
  await compare(t, texts);
}, { timeout_ms: 60_000 });

await run();
