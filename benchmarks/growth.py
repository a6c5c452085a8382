"""How cost grows: ``python -m benchmarks.growth [--quick]``. µs of CPU per read, and of a log-in, against what may grow."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import redis

from asgi_sessions import RedisStore, SessionMiddleware
from asgi_sessions._core.record import Record, pack
from benchmarks._work import (
    a_scope,
    a_server,
    answer,
    ask,
    cpu,
    cpu_of,
    median,
    nowhere,
    options,
    progress,
    receive,
    run,
    save,
    table,
)

SIZES = (100, 300, 1_000, 4_000, 16_000, 64_000, 256_000)
Points = list[list[float]]


async def app(scope: Any, receive: Any, send: Any) -> None:
    session, path = scope["session"], scope["path"]
    if path == "/read":
        session.get("user")
    elif path == "/fill":
        session.update(user="alice")
    elif path == "/log-in":
        session.log_in("alice")
    elif path.startswith("/size/"):
        session.update(user="alice", text="x" * int(path[6:]))
    await answer(send, b"ok")


def both_ways(store: RedisStore) -> list[SessionMiddleware]:
    """A process that has seen the record before, and one that has not: without the cache of opened records."""
    return [SessionMiddleware(app, store), SessionMiddleware(app, store, cache_bytes=0)]


async def in_turn(works: Sequence[Callable[[], Awaitable[float]]], rounds: int) -> list[float]:
    """The median of each."""
    found = [[await work() for work in works] for _ in range(rounds)]
    return [median([*each]) for each in zip(*found, strict=True)]


async def against_concurrency(url: str, rounds: int, requests: int, most: int) -> Points:
    store = RedisStore.from_url(url)
    both = both_ways(store)
    points = [
        [n, *await in_turn([partial(cpu_of, each, "read", n, requests) for each in both], rounds)]
        for n in (1, 4, 16, 64, 256, 1024)
        if n <= most
    ]
    await store.aclose()
    return points


async def against_size(url: str, rounds: int, requests: int) -> Points:
    store = RedisStore.from_url(url)
    both = both_ways(store)
    points: Points = []
    for size in SIZES:
        cookies = [(await ask(both[0], f"/size/{size}"))[1] for _ in range(16)]
        scopes = [a_scope("/read", [(b"cookie", cookie or b"")]) for cookie in cookies]
        few = max(min(requests, 30_000_000 // (size + 1_000)), 160)

        async def read(each: SessionMiddleware, number: int, scopes: list[Any] = scopes) -> None:
            await each(scopes[number].copy(), receive, nowhere)

        points.append([size, *await in_turn([partial(cpu, partial(read, each), 16, few) for each in both], rounds)])
    await store.aclose()
    return points


def fill(url: str, many: int) -> None:
    """So many records as they are, straight into the server."""
    with redis.Redis.from_url(url) as client:
        now = time.time()
        for start in range(0, many, 5_000):
            pipe = client.pipeline(transaction=False)
            for _ in range(start, min(start + 5_000, many)):
                key = secrets.token_urlsafe(35)[:46]
                record = Record(key, 1, now, now + 3600, key[:16], None, b"P" + b"x" * 340)
                pipe.set(f"asgi-sessions:{{{record.key[:3]}}}:s:{record.key[3:]}", pack(record), px=3_660_000)
            pipe.execute()


async def against_stored(url: str, rounds: int, requests: int, most: int) -> Points:
    store = RedisStore.from_url(url)
    both = both_ways(store)
    points: Points = []
    there = 0
    for many in (1_000, 10_000, 100_000, 1_000_000):
        if many > most:
            break
        fill(url, many - there)
        there = many
        progress(f"  {many:,} sessions stored")
        points.append([many, *await in_turn([partial(cpu_of, each, "read", 64, requests) for each in both], rounds)])
    await store.aclose()
    return points


async def against_sessions_of_one(url: str, rounds: int, logins: int, most: int) -> Points:
    """A log-in of a user who has so many sessions: µs of the app's CPU, and of the server's."""
    points: Points = []
    for many in (1, 10, 100, 1_000):
        if many > most:
            break
        store = RedisStore.from_url(url, prefix=f"one-{many}")
        middleware = SessionMiddleware(app, store)
        for _ in range(many):
            await ask(middleware, "/log-in")
        spent, served = [], []
        with redis.Redis.from_url(url) as client:
            for _ in range(rounds):
                before: Any = client.info("cpu")

                async def log_in(_: int, middleware: SessionMiddleware = middleware) -> None:
                    await ask(middleware, "/log-in")

                spent.append(await cpu(log_in, 4, logins))
                after: Any = client.info("cpu")
                used = sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))
                served.append(used / (logins // 4 * 4 + 40) * 1e6)
        await store.aclose()
        points.append([many, median(spent), median(served)])
    return points


def markdown(data: dict[str, Any]) -> str:
    parts = [f"{data['server']}. µs of CPU.\n"]
    for title, head, points in data["series"]:
        rows = [[f"{point[0]:,.0f}", *(f"{value:.1f}" for value in point[1:])] for point in points]
        parts.append(f"\n**{title}**\n\n" + table(head, rows) + "\n")
    return "".join(parts)


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv)
    quick = arguments.quick
    rounds, requests, most = (1, 160, 1_000) if quick else (3, 6_400, 1_000_000)
    with a_server() as server:
        url = server.url
        series: list[list[Any]] = [
            [
                "A read, against requests in flight",
                ["in flight", "app, seen", "app, not seen"],
                run(against_concurrency(url, rounds, requests, 16 if quick else 1_024)),
            ],
            [
                "A read, 16 in flight, against the size of the session",
                ["bytes", "app, seen", "app, not seen"],
                run(against_size(url, rounds, requests)),
            ],
            [
                "A log-in, against the sessions that the user has",
                ["sessions", "app", "Redis"],
                run(against_sessions_of_one(url, rounds, *((8, 10) if quick else (200, 1_000)))),
            ],
            [
                "A read, against the sessions that are stored",
                ["stored", "app, seen", "app, not seen"],
                run(against_stored(url, rounds, requests, most)),
            ],
        ]
        data = {"server": server.version, "series": series}
        save("growth", data, arguments.into)
    print(markdown(data))


if __name__ == "__main__":
    main()
