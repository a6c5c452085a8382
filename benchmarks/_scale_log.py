"""What a log on disk costs: the same requests with ``appendonly`` off, with an fsync a second, with one for every answer."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import redis

from asgi_sessions import RedisStore
from benchmarks._kinds import CHANGES, Effort, Load, per_request
from benchmarks._work import a_server

MODES = {
    "off": ("--appendonly", "no"),
    "everysec": ("--appendonly", "yes", "--appendfsync", "everysec"),
    "always": ("--appendonly", "yes", "--appendfsync", "always"),
}
AT_A_TIME = (1, 10, 100)
FSYNC = re.compile(r"fdatasync\(.*<([\d.]+)>$|fdatasync resumed.*<([\d.]+)>$")


def fsync_alone(times: int = 200) -> float:
    """Seconds that this disk takes to keep a few hundred bytes more, in the middle of all tries."""
    took = []
    with tempfile.TemporaryFile(prefix="asgi-sessions-benchmark-") as file:
        for _ in range(times):
            file.write(b"x" * 400)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took)


async def costs(requests: int, rounds: int) -> dict[str, Any]:
    """CPU and latency of each mode, in turn in every round; a busy machine is unkind to all alike."""
    with ExitStack() as stack:
        loads: dict[str, tuple[Load, Any]] = {}
        for mode, options in MODES.items():
            url = stack.enter_context(a_server(*options)).url
            client = stack.enter_context(redis.Redis.from_url(url))
            loads[mode] = Load(RedisStore.from_url(url)), client
            await loads[mode][0].fill(requests)
        cpu: dict[str, list[float]] = {mode: [] for mode in MODES}
        logged: dict[str, dict[str, float]] = {mode: {} for mode in MODES}
        latency: dict[str, dict[int, list[float]]] = {mode: {n: [] for n in AT_A_TIME} for mode in MODES}
        for _ in range(rounds):
            for mode, (load, client) in loads.items():
                for kind in CHANGES:
                    cost = await per_request(client, load, kind, requests)
                    logged[mode][kind] = cost["log"]
                    if kind == "write":
                        cpu[mode].append(cost["cpu"])
                for in_flight in AT_A_TIME:
                    latency[mode][in_flight] += await load.send("write", requests // 5, in_flight)
        for load, _ in loads.values():
            await load.store.aclose()
    return {
        mode: {
            "cpu": statistics.median(cpu[mode]),
            "log": logged[mode],
            "median": {str(n): statistics.median(took) for n, took in latency[mode].items()},
            "p99": {str(n): sorted(took)[len(took) * 99 // 100] for n, took in latency[mode].items()},
        }
        for mode in MODES
    }


def fsyncs_in(trace: Path) -> list[float]:
    """Seconds of each."""
    found = (FSYNC.search(line) for line in trace.read_text().splitlines())
    return [float(one[1] or one[2]) for one in found if one]


async def fsyncs(mode: str, requests: int, count_for: float) -> dict[str, Any] | None:
    """How many there are for a write, and how long they take: counted by strace, apart from everything else."""
    if shutil.which("strace") is None:
        return None
    with tempfile.TemporaryDirectory(prefix="asgi-sessions-benchmark-") as folder:
        trace = Path(folder) / "trace"
        under = ["strace", "-f", "--seccomp-bpf", "-T", "-e", "trace=fdatasync", "-o", str(trace)]
        with a_server(*MODES[mode], under=under) as server:
            load = Load(RedisStore.from_url(server.url))
            await load.fill(requests)
            found: dict[str, Any] = {}
            for in_flight in AT_A_TIME:
                before, writes, began = len(fsyncs_in(trace)), 0, time.perf_counter()
                while (passed := time.perf_counter() - began) < count_for:
                    writes += len(await load.send("write", requests // 5, in_flight))
                took = fsyncs_in(trace)[before:]
                found[str(in_flight)] = {
                    "per write": len(took) / writes,
                    "per second": len(took) / passed,
                    "seconds": statistics.median(took) if took else None,
                }
            await load.store.aclose()
    return found


async def measure(effort: Effort) -> dict[str, Any]:
    many = effort.requests
    return {
        "fsync alone": fsync_alone(),
        "costs": await costs(many, effort.rounds),
        "fsyncs": {mode: await fsyncs(mode, many, effort.count_for) for mode in ("everysec", "always")},
    }
