"""How large it gets: ``python -m benchmarks.scale [SESSIONS]``, up to a million by default; about five minutes.

Fills a server of its own through the middleware and measures, at each power of ten, what a session takes in its memory, and
what requests cost it: commands, CPU, bytes on the wire. From these it prints the plan for 10⁸ sessions and 10⁵ requests a
second, formula by formula. Half of the sessions are anonymous, half logged in.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

import redis

from asgi_sessions import RedisStore, SessionMiddleware
from benchmarks._work import DATA, RESULTS, a_server, answer, ask

IN_FLIGHT = 100
REQUESTS = 5000

SESSIONS = 10**8
PER_SECOND = 10**5
MIX = {"read": 0.90, "write": 0.09, "log-in": 0.01}
"""What we assume of the requests; yours will differ, and the formulas say how that matters."""
HEADROOM = 1.5
"""For fragmentation and for what is copied while a server forks; what Redis' documentation calls maxmemory is 1 / this."""
NODE_BYTES = 25 * 2**30
"""Memory of a primary that still restarts, forks and resynchronises in minutes."""
NODE_CPU = 0.5
"""Of one core: a server carries out commands on one, and should be half idle."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    session, path = scope["session"], scope["path"]
    if path.startswith("/log-in/"):
        session.log_in(path[8:])
        session.update(DATA)
    elif path == "/fill":
        session.update(DATA)
    elif path == "/write":
        session["n"] = session.get("n", 0) + 1
    else:
        session.get("user")
    await answer(send, b"ok")


def progress(done: int, of: int, what: str) -> None:
    if sys.stderr.isatty():
        bar = "█" * (30 * done // of)
        print(f"\r{bar:30} {done:>9,} of {of:,} {what}   ", end="" if done < of else "\n", file=sys.stderr, flush=True)


async def each(middleware: Any, paths: list[tuple[str, bytes | None]], what: str = "") -> list[bytes | None]:
    """Ask for all of them, so many at a time."""
    cookies: list[bytes | None] = []
    for start in range(0, len(paths), IN_FLIGHT):
        answers = await asyncio.gather(*(ask(middleware, *one) for one in paths[start : start + IN_FLIGHT]))
        cookies += [cookie for _, cookie in answers]
        if what and start % (IN_FLIGHT * 50) == 0:
            progress(start, len(paths), what)
    return cookies


def counted(client: Any) -> dict[str, float]:
    stats, cpu, memory = client.info("stats"), client.info("cpu"), client.info("memory")
    return {
        "commands": stats["total_commands_processed"],
        "in": stats["total_net_input_bytes"],
        "out": stats["total_net_output_bytes"],
        "cpu": cpu["used_cpu_user"] + cpu["used_cpu_sys"],
        "memory": memory["used_memory"],
        "resident": memory["used_memory_rss"],
    }


async def per_request(client: Any, middleware: Any, paths: list[tuple[str, bytes | None]]) -> dict[str, float]:
    before = counted(client)
    await each(middleware, paths)
    after = counted(client)
    return {name: (after[name] - before[name]) / len(paths) for name in ("commands", "in", "out", "cpu")}


async def measure(url: str, most: int) -> list[dict[str, Any]]:
    store = RedisStore.from_url(url)
    middleware = SessionMiddleware(app, store)
    rows: list[dict[str, Any]] = []
    kept: list[bytes] = []
    with redis.Redis.from_url(url) as client:
        await each(middleware, [("/fill", None), ("/log-in/first", None)])
        empty, total, size = counted(client), 0, 1000
        while size <= most:
            paths = [(f"/log-in/user {n}" if n % 2 else "/fill", None) for n in range(total, size)]
            began = time.monotonic()
            cookies = await each(middleware, paths, "sessions")
            took, total = time.monotonic() - began, size
            progress(len(paths), len(paths), "sessions")
            kept += [cookie for cookie in random.sample(cookies, min(len(cookies), REQUESTS)) if cookie is not None]
            full = counted(client)
            some = [random.choice(kept) for _ in range(REQUESTS)]
            rows.append(
                {
                    "sessions": total,
                    "bytes": (full["memory"] - empty["memory"]) / total,
                    "resident": (full["resident"] - empty["resident"]) / total,
                    "filled per second": len(paths) / took,
                    "read": await per_request(client, middleware, [("/read", cookie) for cookie in some]),
                    "write": await per_request(client, middleware, [("/write", cookie) for cookie in some]),
                    "log-in": await per_request(
                        client, middleware, [(f"/log-in/late {total} {n}", None) for n in range(REQUESTS)]
                    ),
                }
            )
            size *= 10
    await store.aclose()
    return rows


def plan(row: dict[str, Any]) -> list[str]:
    """What that comes to, with the numbers put in."""
    size = row["bytes"]
    memory = size * SESSIONS * HEADROOM
    cpu = sum(share * row[kind]["cpu"] for kind, share in MIX.items())
    wire = sum(share * (row[kind]["in"] + row[kind]["out"]) for kind, share in MIX.items())
    commands = sum(share * row[kind]["commands"] for kind, share in MIX.items())
    changed = sum(MIX[kind] * row[kind]["in"] for kind in ("write", "log-in")) * PER_SECOND
    by_memory, by_cpu = -(-memory // NODE_BYTES), -(-cpu * PER_SECOND // NODE_CPU)
    mix = ", ".join(f"{share:.0%} {kind}s" for kind, share in MIX.items())
    return [
        f"{SESSIONS:.0e} sessions, {PER_SECOND:.0e} requests/s: {mix}",
        f"memory: {size:.0f} B × {SESSIONS:.0e} × {HEADROOM} headroom = {memory / 2**30:.0f} GiB",
        f"primaries by memory: {memory / 2**30:.0f} GiB / {NODE_BYTES / 2**30:.0f} GiB = {by_memory:.0f}",
        f"primaries by CPU: {cpu * 1e6:.1f} µs × {PER_SECOND:.0e}/s / {NODE_CPU} of a core = {by_cpu:.0f}",
        f"commands: {commands:.2f} × {PER_SECOND:.0e}/s = {commands * PER_SECOND:,.0f}/s",
        f"network: {wire:.0f} B × {PER_SECOND:.0e}/s × 8 = {wire * PER_SECOND * 8 / 1e9:.2f} Gbit/s between apps and servers",
        f"log and replication: {changed / 1e6:.1f} MB/s of writes in all; to each replica as much again, and so much to disk "
        "with appendonly (one fsync a second and server with everysec: what a power cut may take)",
        f"a replica that lags by t seconds is behind by {changed / 1e6:.1f} MB × t / {max(by_memory, by_cpu):.0f} per primary",
    ]


def main() -> None:
    most = int(sys.argv[1].replace("_", "")) if len(sys.argv) > 1 else 10**6
    with a_server() as server:
        rows = asyncio.run(measure(server.url, most))
    name = server.version
    print(f"{name}; sessions of about 300 bytes, half of them logged in\n")
    print(
        "| sessions | bytes each | resident | read: commands, µs, bytes | write | log-in |\n|---|---|---|---|---|---|"
    )
    for row in rows:
        costs = [
            f"{c['commands']:.2f}, {c['cpu'] * 1e6:.1f}, {c['in'] + c['out']:.0f}"
            for c in (row[kind] for kind in ("read", "write", "log-in"))
        ]
        print(f"| {row['sessions']:,} | {row['bytes']:.0f} | {row['resident']:.0f} | {' | '.join(costs)} |")
    print("\n" + "\n".join(plan(rows[-1])))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scale.json").write_text(json.dumps({"server": name, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
