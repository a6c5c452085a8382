"""Latency of a read under an open-loop load: ``python -m benchmarks.latency [--quick]``.

Requests arrive at random at a fixed rate (Poisson), whether or not earlier ones are answered, and each is timed from the moment
at which it was due; so a pause counts for everybody who came meanwhile. The rate is 50 % and 80 % of what the peer's CPU
figure allows. A process of its own says when a request is due. Redis is asked directly, and behind a proxy that adds 1 or 5 ms
each way, in a process of its own.

Where that is allowed, as it is for root, the app, the process that sends the load, the proxy and Redis have real-time scheduling
(``SCHED_FIFO``): what else the machine does is no part of the figures then.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _peers
from benchmarks._arrivals import in_real_time
from benchmarks._peers import Peer
from benchmarks._work import (
    a_scope,
    a_server,
    a_session,
    cpu_of,
    median,
    nowhere,
    on_core,
    on_its_core,
    options,
    progress,
    receive,
    run,
    save,
    table,
)

ARRIVALS = Path(__file__).parent / "_arrivals.py"
SIGNED, OURS = "Starlette's signed cookie", "ours, Redis"
PROXY = 20_000
"""Requests per second that the proxy carries; what is more would be its latency."""


@dataclass(frozen=True)
class Effort:
    """How long it is measured."""

    seconds: float = 1.0
    rounds: int = 5
    requests: int = 2_000
    """For the figure of CPU."""
    delays: tuple[int, ...] = (0, 1, 5)
    """Milliseconds."""


QUICK = Effort(seconds=0.1, rounds=1, requests=64, delays=(0, 1))


@contextmanager
def real_time() -> Iterator[None]:
    """The same for this process, for the time of a block."""
    allowed = in_real_time()
    try:
        yield
    finally:
        if allowed:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@contextmanager
def delayed(port: int, milliseconds: float) -> Iterator[str]:
    """The URL of the server; if it is to be late, by way of a proxy, which costs time itself."""
    if not milliseconds:
        yield f"redis://127.0.0.1:{port}/0"
        return
    command = [sys.executable, "-m", "tests.proxy", str(port), str(milliseconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    on_its_core(1, process.pid)
    in_real_time(process.pid)
    try:
        yield f"redis://127.0.0.1:{int(process.stdout.readline())}/0"
    finally:
        process.kill()
        process.communicate()


@contextmanager
def arriving(rate: float, seconds: float) -> Iterator[int]:
    """A pipe on which the moments are heard at which a request is due, as doubles."""
    command = on_core(1, [sys.executable, "-IS", str(ARRIVALS), str(rate), str(seconds)])
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        yield process.stdout.fileno()


async def under(peer: Peer, rate: float, seconds: float) -> tuple[list[float], int]:
    """Sorted latencies in milliseconds of reads that arrive at ``rate`` per second, and how many failed."""
    cookies = [await a_session(peer.app) for _ in range(64)]
    scopes = [a_scope("/read", [(b"cookie", cookie)]) for cookie in cookies]
    latencies: list[float] = []
    failed = 0
    running: set[asyncio.Task[None]] = set()
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    async def one(due: float) -> None:
        nonlocal failed
        try:
            await peer.app(random.choice(scopes).copy(), receive, nowhere)
        except Exception:  # such as a pool that has run out of connections
            failed += 1
        latencies.append((time.perf_counter() - due) * 1000)

    def arrived() -> None:
        data = os.read(pipe, 1 << 16)
        if not data:
            loop.remove_reader(pipe)
            over.set()
        for due in array("d", data):
            task = loop.create_task(one(due))
            running.add(task)
            task.add_done_callback(running.discard)

    with arriving(rate, seconds) as pipe, real_time():
        loop.add_reader(pipe, arrived)
        await over.wait()
        await asyncio.gather(*running)
    return sorted(latencies), failed


def at(latencies: list[float], share: float) -> float:
    return latencies[min(int(len(latencies) * share), len(latencies) - 1)]


async def capacity(peer: Peer, effort: Effort, most: float) -> float:
    """Requests per second."""
    # The driver itself, a task for each request and its timing, takes about as much again as the app of no session.
    with real_time():
        found = min(1e6 / (await cpu_of(peer.app, "read", 64, effort.requests) + 6), most)
    await under(peer, found * 0.3, effort.seconds / 4)  # connections are there
    return found


async def measure(peers: list[Peer], effort: Effort, most: float = math.inf) -> list[dict[str, Any]]:
    """Medians of the rounds, in which all take turns: a virtual machine stands still now and then, and hits anybody."""
    rates = [await capacity(peer, effort, most) for peer in peers]
    rounds: dict[tuple[str, str], list[list[float]]] = {}
    for number in range(effort.rounds):
        for peer, rate in zip(peers, rates, strict=True):
            for share in (0.5, 0.8):
                latencies, failed = await under(peer, rate * share, effort.seconds)
                figures = [*(at(latencies, part) for part in (0.5, 0.99, 0.999)), failed / len(latencies)]
                rounds.setdefault((peer.name, f"{share:.0%}"), []).append(figures)
        progress(f"  round {number + 1} of {effort.rounds}")
    for peer in peers:
        if peer.close is not None:
            await peer.close()
    return [
        {
            "name": peer.name,
            "rate": rate,
            "figures": {
                share: [median([*each]) for each in zip(*rounds[peer.name, share], strict=True)]
                for share in ("50%", "80%")
            },
        }
        for peer, rate in zip(peers, rates, strict=True)
    ]


def bounds(found: dict[str, list[dict[str, Any]]]) -> list[list[Any]]:
    at_half = {one["name"]: one["figures"]["50%"][1] for one in found["0 ms"]}
    if SIGNED not in at_half:
        return []
    reached = at_half[OURS] / at_half[SIGNED]
    return [["p99 at 50 %, Redis asked directly, to the signed cookie's", "≤ 2", f"{reached:.2f}", reached <= 2]]


def markdown(data: dict[str, Any]) -> str:
    parts = [
        f"{data['server']}. p50 / p99 / p99.9 of a read in ms, at a share of each one's own capacity, or of the {PROXY:,} per "
        "second that the proxy carries. ",
        "The app, the load and Redis had real-time scheduling.\n"
        if data["real time"]
        else "Real-time scheduling was not allowed: the figures contain what else the machine did.\n",
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
    rows = [[what, limit, reached, "yes" if good else "**no**"] for what, limit, reached, good in data["bounds"]]
    parts.append("\n**What it should reach**\n\n" + table(["", "bound", "measured", "reached"], rows) + "\n")
    return "".join(parts)


def peers_at(url: str, delay: int) -> list[Peer]:
    directly: list[Callable[[], Peer]] = [_peers.signed_cookie, lambda: _peers.ours_not_seen(url)]
    always: list[Callable[[], Peer]] = [
        lambda: _peers.ours(url),
        lambda: _peers.pool(url),
        lambda: _peers.starsessions(url),
    ]
    found = []
    for make in [*(directly if delay == 0 else ()), *always]:
        try:
            found.append(make())
        except ImportError as error:
            progress(f"left out: {error}")
    return found


def measure_all(port: int, effort: Effort) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for delay in effort.delays:
        progress(f"{delay} ms to Redis")
        with delayed(port, delay) as url:

            async def there(url: str = url, delay: int = delay) -> list[dict[str, Any]]:
                return await measure(peers_at(url, delay), effort, PROXY if delay else math.inf)

            found[f"{delay} ms"] = run(there())
    return found


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv)
    on_its_core(0)
    with a_server() as server:
        on_its_core(1, server.pid)
        allowed = in_real_time(server.pid)
        if not allowed:
            progress("real-time scheduling is not allowed here: the figures contain what else the machine does")
        found = measure_all(server.port, QUICK if arguments.quick else Effort())
        data = {"server": server.version, "real time": allowed, "delays": found, "bounds": bounds(found)}
        save("latency", data, arguments.into)
    print(markdown(data))


if __name__ == "__main__":
    main()
