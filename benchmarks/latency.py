"""Latency of a read under an open-loop load: ``python -m benchmarks.latency [--quick]``.

Requests arrive at random at a fixed rate (Poisson), whether or not earlier ones are answered, and each is timed from the moment
at which it was due; so a pause counts for everybody who came meanwhile. The rate is 50 % and 80 % of what the peer's CPU
figure allows. Redis is asked directly, and behind a proxy that adds 1 or 5 ms each way, in a process of its own.
"""

from __future__ import annotations

import asyncio
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import _peers
from benchmarks._peers import Peer
from benchmarks._work import a_scope, a_server, a_session, cpu_of, nowhere, options, progress, receive, run, save, table


@contextmanager
def delayed(port: int, milliseconds: float) -> Iterator[str]:
    """The URL of the server; if it is to be late, by way of a proxy, which costs time itself."""
    if not milliseconds:
        yield f"redis://127.0.0.1:{port}/0"
        return
    command = [sys.executable, "-m", "tests.proxy", str(port), str(milliseconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"redis://127.0.0.1:{int(process.stdout.readline())}/0"
    finally:
        process.kill()
        process.communicate()


async def under(peer: Peer, rate: float, seconds: float) -> tuple[list[float], int]:
    """Sorted latencies in milliseconds of reads that arrive at ``rate`` per second, and how many failed."""
    cookies = [await a_session(peer.app) for _ in range(64)]
    scopes = [a_scope("/read", [(b"cookie", cookie)]) for cookie in cookies]
    latencies: list[float] = []
    failed = 0
    running: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        nonlocal failed
        try:
            await peer.app(random.choice(scopes).copy(), receive, nowhere)
        except Exception:  # such as a pool that has run out of connections
            failed += 1
        latencies.append((time.perf_counter() - due) * 1000)

    due = time.perf_counter() + 0.05
    end = due + seconds
    while due < end:
        now = time.perf_counter()
        if due > now:
            await asyncio.sleep(max(due - now, 0.0))
        while due <= time.perf_counter() and due < end:  # a busy machine may never catch up
            task = asyncio.ensure_future(one(due))
            running.add(task)
            task.add_done_callback(running.discard)
            due += random.expovariate(rate)
    await asyncio.gather(*running)
    return sorted(latencies), failed


def at(latencies: list[float], share: float) -> float:
    return latencies[min(int(len(latencies) * share), len(latencies) - 1)]


PROXY = 20_000
"""Requests per second that the proxy carries; what is more would be its latency."""


async def measure(peer: Peer, seconds: float, requests: int, most: float = math.inf) -> dict[str, Any]:
    # The driver itself, a task for each request and its timing, takes about as much again as the app of no session.
    capacity = min(1e6 / (await cpu_of(peer.app, "read", 64, requests) + 6), most)
    figures = {}
    await under(peer, capacity * 0.3, seconds / 4)  # connections are there, and nothing is new any more
    for share in (0.5, 0.8):
        latencies, failed = await under(peer, capacity * share, seconds)
        figures[f"{share:.0%}"] = [
            at(latencies, 0.5),
            at(latencies, 0.99),
            at(latencies, 0.999),
            failed / len(latencies),
        ]
    if peer.close is not None:
        await peer.close()
    return {"name": peer.name, "rate": capacity, "figures": figures}


def markdown(data: dict[str, Any]) -> str:
    parts = [
        f"{data['server']}. p50 / p99 / p99.9 of a read in ms, at a share of each one's own capacity, or of the {PROXY:,} per "
        "second that the proxy carries.\n"
    ]
    for delay, found in data["delays"].items():
        rows = []
        for one in found:
            cells = []
            for *values, failed in one["figures"].values():
                cells.append(
                    " / ".join(f"{value:.2f}" for value in values) + (f", {failed:.1%} failed" if failed else "")
                )
            rows.append([one["name"], f"{one['rate'] / 1000:.1f}", *cells])
        head = ["", "capacity, thousands per second", "at 50 %", "at 80 %"]
        parts.append(f"\n**{delay} to Redis, each way**\n\n" + table(head, rows) + "\n")
    return "".join(parts)


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv)
    seconds, requests, delays = (0.1, 64, (0, 1)) if arguments.quick else (4.0, 2_000, (0, 1, 5))
    found: dict[str, list[dict[str, Any]]] = {}
    with a_server() as server:
        for delay in delays:
            with delayed(server.port, delay) as url:
                makers: list[Callable[[], Peer]] = [
                    lambda url=url: _peers.ours(url),  # type: ignore[misc]  # mypy cannot infer a lambda's default
                    lambda url=url: _peers.pool(url),  # type: ignore[misc]
                    lambda url=url: _peers.starsessions(url),  # type: ignore[misc]
                ]
                if delay == 0:
                    makers.insert(0, _peers.signed_cookie)
                for make in makers:
                    try:
                        peer = make()
                    except ImportError as error:
                        progress(f"left out: {error}")
                        continue
                    one = run(measure(peer, seconds, requests, PROXY if delay else math.inf))
                    found.setdefault(f"{delay} ms", []).append(one)
                    progress(f"  {delay} ms: {one['name']}")
        data = {"server": server.version, "delays": found}
        save("latency", data, arguments.into)
    print(markdown(data))


if __name__ == "__main__":
    main()
