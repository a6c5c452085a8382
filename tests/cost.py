"""How much work the hot paths are, counted and not timed: calls in our own code and calls that it makes into C.

``python -m tests.cost`` shows them, ``python -m tests.cost --record`` makes them the baseline that ``test_cost.py`` holds
against: do that where a path is meant to cost more, and say why in the commit.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asgi_sessions
from asgi_sessions import MemoryStore, RedisStore, SessionMiddleware
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock

PACKAGE = str(Path(asgi_sessions.__file__).parent)
BASELINE = Path(__file__).parent / "baseline.json"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
KEY = "k7Q2v9Zr4Wc8Ty1Nb6Mx3Lp5Jd0Hs_Gf"
REQUESTS = 20

DATA = {"user": "alice", "cart": [{"id": number, "quantity": 1} for number in range(5)], "csrf": "x" * 40}
BROWSER = [(b"host", b"example.org"), (b"user-agent", b"Mozilla/5.0"), (b"accept", b"*/*")]


async def app(scope: Any, receive: Any, send: Any) -> None:
    session, path = scope["session"], scope["path"]
    if path == "/fill":
        session.update(DATA)
    elif path == "/read":
        session.get("user")
    elif path == "/write":
        session["n"] = session.get("n", 0) + 1
    elif path == "/log-in":
        session.log_in("alice")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def ask(middleware: Any, path: str, cookie: bytes | None) -> bytes | None:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [*BROWSER, *([(b"cookie", b"a=b; " + cookie)] if cookie else [])]
    await middleware({"type": "http", "method": "GET", "path": path, "headers": headers}, receive, send)
    set_cookies = [value for name, value in messages[0]["headers"] if name == b"set-cookie"]
    return set_cookies[0].split(b";")[0] if set_cookies else None


class Counted:
    """Counts, while it is on, the calls of functions of the package and the calls that these make into C."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        # Resuming a coroutine is a call too, and costs as one.
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(PACKAGE):
            self.calls += 1


async def calls_of(middleware: Any, path: str, cookie: bytes | None) -> float:
    """Calls per request, one request at a time."""
    for _ in range(5):  # connections, scripts, caches
        await ask(middleware, path, cookie)
    counted = Counted()
    gc.disable()  # it would close coroutines that other tests have left, and these calls would count
    sys.setprofile(counted)
    try:
        for _ in range(REQUESTS):
            await ask(middleware, path, cookie)
    finally:
        sys.setprofile(None)
        gc.enable()
    return round(counted.calls / REQUESTS, 1)


async def count(url: str) -> dict[str, float]:
    """Calls per request by path, in memory and on the server at ``url``."""
    stores: list[tuple[str, Callable[[], Store], dict[str, Any]]] = [
        ("memory", MemoryStore, {}),
        ("memory, secret_keys", MemoryStore, {"secret_keys": [KEY]}),
        ("Redis", lambda: RedisStore.from_url(url, prefix="asgi-sessions-cost"), {}),
    ]
    counts: dict[str, float] = {}
    for name, make, options in stores:
        store = make()
        middleware = SessionMiddleware(app, store, clock=FakeClock(), **options)
        cookie = await ask(middleware, "/fill", None)
        assert cookie is not None
        forged = cookie[:-6] + b"AAAAAA"
        for path, mine in (
            ("/hello", None),
            ("/read", cookie),
            ("/write", cookie),
            ("/log-in", None),
            ("/read", forged),
        ):
            kind = "forged" if mine is forged else "anonymous" if path == "/hello" else path[1:]
            counts[f"{name}: {kind}"] = await calls_of(middleware, path, mine)
        await store.aclose()
    return counts


def baseline() -> dict[str, float] | None:
    """What was recorded with this version of Python, if anything was."""
    recorded: dict[str, float] | None = json.loads(BASELINE.read_text(encoding="utf-8")).get(VERSION)
    return recorded


if __name__ == "__main__" and "--json" in sys.argv:
    print(json.dumps(asyncio.run(count(sys.argv[-1]))))
elif __name__ == "__main__":
    from tests.conftest import Server

    server = Server()
    server.start()
    counts = asyncio.run(count(server.url))
    server.remove()
    known = json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.exists() else {}
    for path, calls in counts.items():
        print(f"{path:32} {calls:7.1f}  was {known.get(VERSION, {}).get(path)}")
    if "--record" in sys.argv:
        known[VERSION] = counts
        BASELINE.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")
