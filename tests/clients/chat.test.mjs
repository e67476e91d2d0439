// The chat example in a real browser: two pages, two people.
import { mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { assert, run, test } from "./lib/runner.mjs";
import { BROWSER_ARGS, browserPath } from "./lib/browser.mjs";
import { target } from "./lib/target.mjs";

const ARTEFACTS = fileURLToPath(new URL("../../artefacts/", import.meta.url));
const WAIT = { timeout: 6_000 };

const server = await target("chat_reference.js");
const browser = await chromium.launch({ executablePath: browserPath(), args: BROWSER_ARGS });
mkdirSync(ARTEFACTS, { recursive: true });

/** A page of somebody, in a browser context of its own; errors of the page fail the test. */
async function person(t, username, query = "") {
  const context = await browser.newContext({ viewport: { width: 1_100, height: 720 }, ignoreHTTPSErrors: true });
  t.defer(() => context.close());
  const page = await context.newPage();
  page.setDefaultTimeout(WAIT.timeout);
  page.errors = [];
  page.on("pageerror", (error) => page.errors.push(error.message));
  await page.goto(`${server.url}/${query}`);
  await page.fill("#username", username);
  await page.click("#enter");
  await page.waitForSelector("#message", { state: "visible" });
  return page;
}

const online = (page, name) => page.locator("#online li", { hasText: name }).waitFor();
const offline = (page, name) => page.locator("#online li", { hasText: name }).waitFor({ state: "detached" });
const said = (page, text) => page.locator("#messages li", { has: page.locator(".text", { hasText: text }) });

async function say(page, text) {
  await page.fill("#message", text);
  await page.click("#send");
}

async function hears(page, from, text) {
  const item = said(page, text);
  await item.waitFor();
  assert.equal((await item.locator(".from").textContent()).trim(), from);
  assert.equal((await item.locator(".text").textContent()).trim(), text);
  assert.equal(await item.count(), 1);
}

for (const transport of ["", "polling", "websocket"]) {
  const label = transport || "default";
  test(`${label}: two people meet, talk, see each other type, and change rooms`, async (t) => {
    // The rooms keep their history over the three rounds, so every round says something else.
    const texts = ["Hello <b>Bob</b> €é", "Hi Ada", "I am typing", "Anybody here?", "There you are"];
    const [hello, hi, typed, anybody, there] = texts.map((text) => `${text} (${label})`);
    const query = transport && `?transports=${transport}`;
    const [ada, bob] = await Promise.all([person(t, `Ada ${label}`, query), person(t, `Bob ${label}`, query)]);
    await Promise.all([online(ada, `Bob ${label}`), online(bob, `Ada ${label}`)]);
    assert.equal((await ada.textContent("#room")).trim(), "general");

    await say(ada, hello);
    await Promise.all([hears(bob, `Ada ${label}`, hello), hears(ada, `Ada ${label}`, hello)]);
    await say(bob, hi);
    await hears(ada, `Bob ${label}`, hi);

    await bob.locator("#message").pressSequentially(typed, { delay: 20 });
    await ada.locator("#typing", { hasText: `Bob ${label}` }).waitFor();
    if (!transport) await ada.screenshot({ path: `${ARTEFACTS}chat.png` });
    await bob.click("#send");
    await hears(ada, `Bob ${label}`, typed);
    await ada.waitForFunction(() => document.querySelector("#typing").textContent.trim() === "");

    await ada.click('#rooms [data-room="random"]');
    await ada.locator("#room", { hasText: "random" }).waitFor();
    await offline(bob, `Ada ${label}`);
    await say(bob, anybody);
    await hears(bob, `Bob ${label}`, anybody);
    assert.equal(await said(ada, anybody).count(), 0);
    await bob.click('#rooms [data-room="random"]');
    await Promise.all([online(ada, `Bob ${label}`), online(bob, `Ada ${label}`)]);
    await say(bob, there);
    await hears(ada, `Bob ${label}`, there);

    await bob.close();
    await offline(ada, `Bob ${label}`);
    assert.deepEqual([...ada.errors, ...bob.errors], []);
  }, { timeout_ms: 40_000 });
}

async function finish() {
  await browser.close();
  await server.stop();
}

await run({ finish });
