"""What open sockets cost: memory and tasks for each, and how long until all of a user's are closed.

``python -m benchmarks.live [--quick] [SOCKETS]``. In one process, on bare ASGI messages and a real Redis or Valkey.
The apps wait in ``receive()``, as an echo would.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import time
import tracemalloc
from typing import Any

import redis

from asgi_sessions import Devices, RedisStore, SessionMiddleware, Sessions
from benchmarks._work import parser

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
PREFIX = "benchmark-live"


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        scope["session"].log_in("alice")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


class Socket:
    def __init__(self, middleware: Any, cookie: bytes) -> None:
        self.closed_at = 0.0
        self.open = asyncio.Event()
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        self._messages.put_nowait({"type": "websocket.connect"})
        scope = {"type": "websocket", "path": "/", "headers": [(b"cookie", cookie)]}
        self.task = asyncio.ensure_future(middleware(scope, self._messages.get, self._send))

    async def _send(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            self.closed_at = time.perf_counter()
        self.open.set()


async def log_in(middleware: Any) -> bytes:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await middleware({"type": "http", "method": "GET", "path": "/", "headers": []}, None, send)
    (cookie,) = [value for name, value in sent[0]["headers"] if name == b"set-cookie"]
    return bytes(cookie.partition(b";")[0])


async def measure(sockets: int, settle: float, *, live: bool) -> tuple[float, int, list[float]]:
    """Bytes of Python's memory for each socket, tasks beside those of the apps, and the milliseconds until each was closed."""
    store = RedisStore.from_url(URL, prefix=PREFIX)
    sessions = Sessions(store, devices=Devices(live=live, max_sessions=None))
    middleware = SessionMiddleware(app, sessions)
    cookies = [await log_in(middleware) for _ in range(sockets)]
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    opened = [Socket(middleware, cookie) for cookie in cookies]
    for socket in opened:
        await socket.open.wait()
    await asyncio.sleep(settle)
    gc.collect()
    memory = (tracemalloc.get_traced_memory()[0] - before) / sockets
    tracemalloc.stop()
    tasks = len(asyncio.all_tasks()) - sockets - 1
    began = time.perf_counter()
    await sessions.revoke_all("alice")
    waits: list[float] = []
    if live:
        await asyncio.wait([socket.task for socket in opened], timeout=10)
        waits = [(socket.closed_at - began) * 1000 for socket in opened]
    for socket in opened:
        socket.task.cancel()
    await asyncio.gather(*(socket.task for socket in opened), return_exceptions=True)
    if middleware._watch is not None:
        await middleware._watch.aclose()
    await store.aclose()
    return memory, tasks, waits


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__, keeps=False)
    made.add_argument("sockets", metavar="SOCKETS", type=int, nargs="?", help="default: 1000, with --quick 10")
    arguments = made.parse_args(argv)
    sockets, settle = arguments.sockets or (10 if arguments.quick else 1000), 0.1 if arguments.quick else 1.5
    try:
        off = asyncio.run(measure(sockets, settle, live=False))
        on = asyncio.run(measure(sockets, settle, live=True))
    finally:
        with redis.Redis.from_url(URL) as admin:
            if keys := list(admin.scan_iter(f"{PREFIX}:*", count=1000)):
                admin.delete(*keys)
    print(f"{sockets} open sockets, each of a session of its own, one user")
    print(f"memory: {on[0]:,.0f} bytes each, {off[0]:,.0f} with live=False: {on[0] - off[0]:,.0f} for watching")
    print(f"tasks beside the apps' own: {on[1]}, {off[1]} with live=False")
    waits = sorted(on[2])
    print(f"closed after revoke_all: median {statistics.median(waits):.0f} ms, the last one {waits[-1]:.0f} ms")


if __name__ == "__main__":
    main()
