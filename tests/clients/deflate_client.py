"""permessage-deflate with python `websockets`, which asks for windows of 4 KB by default."""

import asyncio
import os
import sys

from lib import suite
from websockets.asyncio.client import connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

TEXT = "to be or not to be, that is the question; "


async def echo(ws):
    for count in (0, 1, 20, 30, 500, 5_000):
        text = f"{count} é " + TEXT * count
        for message in (text, text.encode(), os.urandom(count)):
            await ws.send(message)
            assert await asyncio.wait_for(ws.recv(), 6) == message, f"{count} came back different"


async def default(url, path):
    async with connect(url + path, max_size=None) as ws:
        names = [extension.name for extension in ws.protocol.extensions]
        assert names == ["permessage-deflate"], names
        await echo(ws)


async def exactly(url, path, **parameters):
    factory = ClientPerMessageDeflateFactory(**parameters)
    async with connect(url + path, max_size=None, compression=None, extensions=[factory]) as ws:
        assert ws.protocol.extensions, "nothing was agreed"
        await echo(ws)


async def main():
    url, child = suite.start_server("fanout_reference.js", "--deflate")
    url = url.replace("http", "ws", 1)
    checks = []
    for path in ("/ws", "/ws-context", "/ws-limited"):
        checks.append((f"{path}, as websockets does by itself", default(url, path)))
        for bits in (9, 12, 15):
            # The reference takes no window of the client's that is smaller than its own limit.
            if path == "/ws-limited" and bits < 10 and child:
                continue
            parameters = {"server_max_window_bits": max(bits, 10) if child else bits, "client_max_window_bits": bits}
            checks.append((f"{path}, windows of {bits} bits", exactly(url, path, **parameters)))
        both = {"server_no_context_takeover": True, "client_no_context_takeover": True, "client_max_window_bits": True}
        checks.append((f"{path}, no context", exactly(url, path, **both)))
    return 1 if await suite.run(url, child, checks) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
