// What a proxy says of a client reaches `handshake`, where the proxy is trusted. With TRUSTED=yes the server trusts this
// machine (`--trust-proxy loopback`); otherwise, and in the reference, which knows no such thing, nobody is believed.
import { assert, run, test } from "./lib/runner.mjs";
import { target } from "./lib/target.mjs";
import { TRANSPORTS, call, clientsOf, upgraded } from "./lib/clients.mjs";

const server = await target("feature_server.js");
const trusted = process.env.TRUSTED === "yes" && !server.isReference;
const secure = server.url.startsWith("https:");

for (const [name, transport] of Object.entries(TRANSPORTS)) {
  const clients = clientsOf(server.url, transport);
  const handshake = async (t, extraHeaders) => {
    const socket = await clients.connect(t, "/", { extraHeaders });
    if (name === "upgrade") await upgraded(socket);
    return (await call(socket, "handshake"))[0];
  };

  test(`${name}: address and scheme are the client's, as far as the proxy is believed`, async (t) => {
    // The proxy itself has written the last address; what stands before it a client may have made up.
    const said = { "X-Forwarded-For": "192.0.2.66, 203.0.113.7", "X-Forwarded-Proto": "https" };
    const { address, secure: isSecure, headers } = await handshake(t, said);
    if (trusted) assert.equal(address, "203.0.113.7");
    else assert.match(address, /127\.0\.0\.1$/);
    assert.equal(isSecure, trusted || secure);
    assert.equal(headers["x-forwarded-for"], said["X-Forwarded-For"]);
  });

  test(`${name}: plain http behind the proxy is not secure`, async (t) => {
    const { address, secure: isSecure } = await handshake(t, {
      "X-Forwarded-For": "2001:db8::7",
      "X-Forwarded-Proto": "http",
    });
    if (trusted) assert.equal(address, "2001:db8::7");
    assert.equal(isSecure, trusted ? false : secure);
  });

  test(`${name}: without a word from the proxy it is the peer`, async (t) => {
    const { address, secure: isSecure } = await handshake(t, {});
    assert.match(address, /127\.0\.0\.1$/);
    assert.equal(isSecure, secure);
  });
}
await run({ parallel: 4, finish: server.stop });
