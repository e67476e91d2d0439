"""python-socketio (the sync and the asyncio client) against the feature server.

Each check runs over the default (polling, then the upgrade), websocket only and polling only, with both clients. The sync
client runs the same coroutines: `SyncClient` wraps its blocking calls into threads. What it changes of that client, and
why, is in README.md.
"""

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import engineio
import socketio
from lib import suite
from lib.one_at_a_time import one_at_a_time

TRANSPORTS = {"upgrade": None, "websocket": ["websocket"], "polling": ["polling"]}


class Events:
    """What a client received, by event name."""

    def __init__(self):
        self.queues = {}

    def put(self, event, args):
        self.queues.setdefault(event, asyncio.Queue()).put_nowait(args)

    async def next(self, event):
        queue = self.queues.setdefault(event, asyncio.Queue())
        return await asyncio.wait_for(queue.get(), 6)


class AsyncClient:
    """One asyncio client, connected to some namespaces."""

    def __init__(self, url, transports):
        self.url, self.transports = url, transports
        self.client = self.make()
        self.events = {}
        self.loop = asyncio.get_running_loop()

    def make(self):
        return socketio.AsyncClient(reconnection=False)

    def listen(self, namespace):
        events = self.events[namespace] = Events()
        put = lambda event, args: self.loop.call_soon_threadsafe(events.put, event, args)  # noqa: E731
        self.client.on("*", lambda event, *args: put(event, list(args)), namespace=namespace)
        for event in ("connect", "connect_error", "disconnect"):
            self.client.on(event, lambda *args, event=event: put(event, list(args)), namespace=namespace)

    async def run(self, function, *args, **kwargs):
        return await function(*args, **kwargs)

    async def connect(self, namespaces=("/",), **kwargs):
        for namespace in namespaces:
            self.listen(namespace)
        kwargs.setdefault("wait_timeout", 5)
        await self.run(self.client.connect, self.url, namespaces=list(namespaces), transports=self.transports, **kwargs)
        return self

    def answer(self, event, value, namespace="/"):
        self.client.on(event, lambda *_: value, namespace=namespace)

    async def emit(self, event, *args, namespace="/"):
        await self.run(self.client.emit, event, args, namespace=namespace)

    async def call(self, event, *args, namespace="/"):
        return await self.run(self.client.call, event, args, namespace=namespace, timeout=6)

    async def next(self, event, namespace="/"):
        return await self.events[namespace].next(event)

    def id(self, namespace="/"):
        return self.client.get_sid(namespace)

    async def close(self):
        await self.run(self.client.disconnect)


class OrderlyEngine(engineio.Client):
    """Handles messages one after the other; the original has a thread for each, which may run in any order."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.worker = ThreadPoolExecutor(1)

    def _trigger_event(self, event, *args, **kwargs):
        if event != "message":
            return super()._trigger_event(event, *args, **kwargs)
        return self.worker.submit(self.handlers[event], *args)


class OrderlyClient(socketio.Client):
    def _engineio_client_class(self):
        return OrderlyEngine


class SyncClient(AsyncClient):
    """The same around the blocking client: every call in a thread."""

    def make(self):
        return OrderlyClient(reconnection=False, websocket_extra_options={"sslopt": {"context": one_at_a_time()}})

    async def run(self, function, *args, **kwargs):
        return await asyncio.to_thread(function, *args, **kwargs)


async def connects(new):
    client = await new().connect(auth={"token": "abc"})
    ident, auth = await client.next("welcome")
    assert ident == client.id(), (ident, client.id())
    assert auth == {"token": "abc"}
    info = await client.call("info")
    assert info["id"] == ident and info["nsp"] == "/" and info["connected"]
    handshake = await client.call("handshake")
    assert len(handshake) == 9 and handshake["query"]["EIO"] == "4"


async def events(new):
    client = await new().connect()
    args = [1, "two", None, True, {"three": [4.5, {}]}, "тест €🏳️‍🌈"]
    await client.emit("echo", *args)
    assert await client.next("echo-back") == args
    await client.emit("multi", "x")
    assert [await client.next("multi-back") for _ in range(3)] == [[1, "x"], [2, "x"], [3, "x"]]
    await client.emit("typed", 1, 2)
    assert isinstance((await client.next("typed-error"))[0], str)
    await client.emit("message", "hi")
    assert await client.next("message") == ["hi"]


async def acks(new):
    client = await new().connect()
    assert await client.call("echo", 7) == 7
    assert list(await client.call("echo", 1, "b")) == [1, "b"]
    assert await client.call("echo-async", {"a": 1}) == {"a": 1}
    client.answer("question", ("yes", 2))
    report = await client.call("ask-me", {"event": "question", "args": [1], "timeout_ms": 5000, "style": "callback"})
    assert report == {"error": None, "reply": ["yes", 2]}, report


async def binary(new):
    client = await new().connect()
    for data in (b"\x00\xff\x1e", b"", os.urandom(1_000_000)):
        assert await client.call("echo", data) == data
    nested = {"a": [{"b": b"\x01"}], "c": b"\x02\x03", "d": "text"}
    await client.emit("echo", nested, b"\x04")
    assert await client.next("echo-back") == [nested, b"\x04"]
    client.answer("question", b"answer")
    report = await client.call("ask-me", {"event": "question", "args": [b"q"], "timeout_ms": 5000, "style": "promise"})
    assert report == {"error": None, "reply": [b"answer"]}, report


async def large(new):
    client = await new().connect()
    rows = [{"n": i, "text": f"row {i} é"} for i in range(20_000)]
    assert await client.call("echo", rows) == rows


async def namespaces(new):
    client = await new().connect(("/", "/nsp", "/dynamic-3"))
    assert len({client.id(name) for name in ("/", "/nsp", "/dynamic-3")}) == 3
    await client.emit("echo", "n", namespace="/nsp")
    assert await client.next("echo-back", "/nsp") == ["n"]
    assert (await client.call("info", namespace="/dynamic-3"))["nsp"] == "/dynamic-3"
    assert await client.call("echo", 1) == 1


async def refusal(new):
    for namespace, auth in (("/auth", {"token": "wrong"}), ("/nowhere", None)):
        client = new()
        try:
            await client.connect((namespace,), auth=auth)
        except socketio.exceptions.ConnectionError:
            pass
        else:
            raise AssertionError(f"{namespace} was not refused")
        [error] = await client.next("connect_error", namespace)
        expected = {"message": "bad token", "data": {"given": "wrong"}} if auth else {"message": "Invalid namespace"}
        assert error == expected, error
    client = await new().connect(("/auth",), auth={"token": "letmein"})
    assert await client.call("data-get", "order", namespace="/auth") == ["first", "second"]


async def rooms(new):
    members = [await new().connect() for _ in range(3)]
    room = f"python-{id(members)}"
    for member in members[:2]:
        await member.call("join", room)
    assert await members[0].call("rooms") == sorted([members[0].id(), room])
    await members[0].call("emit-to", {"to": [room], "event": "news", "args": ["all"]})
    await members[0].call("emit-to", {"from": "socket", "to": [room], "event": "news", "args": ["rest"]})
    assert await members[0].next("news") == ["all"]
    assert [await members[1].next("news") for _ in range(2)] == [["all"], ["rest"]]
    await members[2].call("echo", 1)
    assert "news" not in members[2].events["/"].queues
    await members[1].call("leave", room)
    assert len(await members[2].call("fetch", room)) == 1


async def leaving(new):
    observer = await new().connect(("/observer",))
    client = await new().connect()
    ident = client.id()
    await client.close()
    while True:
        [record] = await observer.next("left", "/observer")
        if record["id"] == ident:
            break
    assert record["reason"] in ("client namespace disconnect", "transport close"), record
    client = await new().connect()
    await client.emit("disconnect-me", False)
    await client.next("disconnect")


async def order(new):
    client = await new().connect()
    # python-engineio refuses a polled payload of more than 16 packets, whatever server sends it: short bursts there.
    bursts, length = (10, 12) if client.transports == ["polling"] else (1, 500)
    for _ in range(bursts):
        await client.emit("burst", {"event": "number", "count": length})
        assert [await client.next("number") for _ in range(length)] == [[i] for i in range(length)]
    for i in range(300):
        await client.emit("count", i)
    assert await client.call("counted") == list(range(300))


async def run_check(check, kind, url, transports):
    clients = []

    def new():
        clients.append(kind(url, transports))
        return clients[-1]

    try:
        await asyncio.wait_for(check(new), 15)
    finally:
        for client in clients:
            if client.client.connected:
                await asyncio.wait_for(client.close(), 5)


async def main():
    url, child = suite.start_server("feature_server.js")
    checks = [connects, events, acks, binary, large, namespaces, refusal, rooms, leaving, order]
    each = (
        (f"{kind.__name__}, {name}: {check.__name__}", run_check(check, kind, url, transports))
        for kind in (AsyncClient, SyncClient)
        for name, transports in TRANSPORTS.items()
        for check in checks
    )
    return 1 if await suite.run(url, child, each) else 0


if __name__ == "__main__":
    code = asyncio.run(main())
    sys.stdout.flush()
    # Threads of the sync client may linger; the verdict stands.
    os._exit(code)
