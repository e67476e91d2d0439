"""What the Python suites share: the server to test, and one line of TAP for each check."""

import os
import re
import subprocess
import time
import traceback
from pathlib import Path

CLIENTS = Path(__file__).parent.parent


def start_server(reference, *flags):
    """The URL to test: SOCKRING_URL, or a reference server of our own with its process."""
    url = os.environ.get("SOCKRING_URL")
    if url:
        return url, None
    command = ["node", str(CLIENTS / reference), "--port", "0", *flags]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    address = re.search(r"listening on (\S+)", child.stdout.readline())
    return f"http://{address[1]}", child


async def run(url, child, checks):
    """Awaits pairs of a title and a coroutine, one after the other; how many failed. Ends the server."""
    start, number, failed = time.monotonic(), 0, 0
    print(f"# server: {url}\nTAP version 13")
    try:
        for number, (title, check) in enumerate(checks, 1):
            begun = time.monotonic()
            try:
                await check
                print(f"ok {number} - {title} ({(time.monotonic() - begun) * 1000:.0f} ms)")
            except Exception:  # noqa: BLE001 - every failure is a result
                failed += 1
                print(f"not ok {number} - {title}\n{traceback.format_exc()}")
    finally:
        if child:
            child.terminate()
            child.wait(5)
    print(f"1..{number}\n# {number - failed} passed, {failed} failed, {time.monotonic() - start:.1f} s", flush=True)
    return failed
