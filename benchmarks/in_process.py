"""CPU per request in the app's process: ours on memory and Redis, beside Starlette's signed cookie and no session at all.

    python benchmarks/in_process.py [--redis redis://127.0.0.1:6379/0] [--in-flight 64] [--requests 12800] [--rounds 5]

Drives the bare ASGI interface on uvloop (or asyncio, with ``--loop asyncio``), no server and no socket but Redis's own.
The variants take turns in every round, so that a noisy machine is unkind to all of them alike; the medians are shown,
and the ratio to the signed cookie. Look at the ratios: absolute figures are this machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import resource
import secrets
import statistics
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from asgi_sessions import MemoryStore, RedisStore, SessionMiddleware

try:
    import uvloop
    from starlette.middleware.sessions import SessionMiddleware as SignedCookie  # needs itsdangerous
except ImportError as error:
    sys.exit(f"benchmarks need uvloop and itsdangerous ({error}): pip install uvloop itsdangerous")

Headers = list[tuple[bytes, bytes]]
Wrap = Callable[[Any], Any]

# About 300 bytes, nested as real sessions are.
DATA = {
    "user": "alice",
    "cart": [{"id": number, "name": f"product {number}", "quantity": 1} for number in range(5)],
    "csrf": "x" * 40,
    "theme": "dark",
    "seen": "y" * 60,
}
BROWSER: Headers = [(b"host", b"example.org"), (b"user-agent", b"Mozilla/5.0"), (b"accept", b"*/*")]
KINDS = ("anonymous", "read", "write", "forged")


def app_that(does: str) -> Any:
    """A bare ASGI app that does one thing with its session and says ok."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if does == "fill":
            scope["session"].update(DATA)
        elif does in ("read", "forged"):
            scope["session"].get("user")
        elif does == "write":
            scope["session"]["n"] = scope["session"].get("n", 0) + 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"ok"})

    return app


async def request(app: Any, headers: Headers, send: Any) -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    await app({"type": "http", "method": "GET", "path": "/", "headers": headers, "asgi": {}}, receive, send)


async def nowhere(message: Any) -> None:
    """Sends to nobody."""


async def a_session(wrap: Wrap) -> bytes:
    """The Cookie header of a session that holds the data."""
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    await request(wrap(app_that("fill")), BROWSER, send)
    (line,) = (value for name, value in messages[0]["headers"] if name == b"set-cookie")
    return bytes(line.split(b";")[0])


async def cpu_per_request(wrap: Wrap, kind: str, in_flight: int, requests: int) -> float:
    """Microseconds of this process's CPU, user and system."""
    app = wrap(app_that(kind))
    if kind == "anonymous":
        headers = [BROWSER] * in_flight
    else:
        cookies = [await a_session(wrap) for _ in range(in_flight)]
        if kind == "forged":
            cookies = [cookie[:-6] + b"AAAAAA" for cookie in cookies]
        headers = [[*BROWSER, (b"cookie", b"a=b; c=d; " + cookie)] for cookie in cookies]

    async def client(mine: Headers, times: int) -> None:
        for _ in range(times):
            await request(app, mine, nowhere)

    await asyncio.gather(*(client(mine, 20) for mine in headers))
    before = resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.gather(*(client(mine, requests // in_flight) for mine in headers))
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent / (requests // in_flight * in_flight) * 1e6


async def main(options: argparse.Namespace) -> None:
    key = secrets.token_urlsafe(32)
    memory = MemoryStore()
    redis = RedisStore.from_url(options.redis, prefix="asgi-sessions-benchmark")
    variants: dict[str, Wrap] = {
        "no session": lambda app: app,
        "Starlette's signed cookie": lambda app: SignedCookie(app, key, https_only=True),
        "ours, memory": lambda app: SessionMiddleware(app, memory),
        "ours, Redis": lambda app: SessionMiddleware(app, redis),
        "ours, Redis, secret_keys": lambda app: SessionMiddleware(app, redis, secret_keys=[key]),
    }
    figures: dict[tuple[str, str], list[float]] = {}
    for round_ in range(options.rounds):
        for name, wrap in variants.items():
            for kind in KINDS if name != "no session" else KINDS[:1]:
                spent = await cpu_per_request(wrap, kind, options.in_flight, options.requests)
                figures.setdefault((name, kind), []).append(spent)
        print(f"round {round_ + 1} of {options.rounds}", file=sys.stderr)
    await redis.aclose()

    medians = {case: statistics.median(spent) for case, spent in figures.items()}
    print(f"µs of CPU per request, {options.in_flight} in flight, {options.loop}, Python {platform.python_version()}")
    print(f"\n| | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}")
    for name in variants:
        cells = []
        for kind in KINDS:
            median = medians.get((name, kind))
            signed = medians["Starlette's signed cookie", kind]
            cells.append("" if median is None else f"{median:.1f} ({median / signed:.2f})")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="CPU per request, in process")
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/0")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--requests", type=int, default=12800, help="per variant, kind and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    arguments = parser.parse_args()
    run: Callable[[Coroutine[Any, Any, None]], None] = uvloop.run if arguments.loop == "uvloop" else asyncio.run
    run(main(arguments))
