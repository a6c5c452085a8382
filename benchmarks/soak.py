"""An hour at a steady load, over real HTTP: does anything grow? ``python -m benchmarks.soak [--quick] [MINUTES]``, 60 by default.

uvicorn in a process of its own, a server of its own, and visitors who come at a steady rate, whatever became of those
before: they log in, read, write, regenerate, log out, log out everywhere, open sockets, hang up, come back too late, bring
forged cookies. Sessions end after two minutes of silence or six in all, so all that is kept should reach a plateau within
the warm-up, the first ten minutes. What the app answers is held against what it acknowledged before; a wrong answer is one
too many.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import redis.asyncio

from benchmarks._soak_client import MIX, Client, Journal
from benchmarks._work import a_server, parsed, parser, save, table

PER_SECOND = 160.0
WARM_UP = 600.0
"""Seconds; a third of a run that is shorter than half an hour."""
BLOCKS = 10
"""Means of so many stretches are fitted: neighbouring samples go up and down together, and would pretend to more certainty."""
WATCHED = {
    "rss": ("memory of the app, RSS", "MB", 1e6),
    "fds": ("file descriptors of the app", "", 1),
    "threads": ("threads of the app", "", 1),
    "tasks": ("asyncio tasks", "", 1),
    "objects": ("objects that gc knows", "thousand", 1e3),
    "blocks": ("blocks of memory that Python has given out", "thousand", 1e3),
    "server memory": ("memory of the server", "MB", 1e6),
    "keys": ("keys of the server", "", 1),
    "memory of a key": ("memory of the server for each key", "B", 1),
    "visitors": ("sessions whose cookie is still in use", "", 1),
    "server clients": ("connections to the server", "", 1),
    "p50": ("latency, median", "ms", 1e-3),
    "p99": ("latency, p99", "ms", 1e-3),
}
Sample = dict[str, float]


def start(url: str) -> tuple[subprocess.Popen[bytes], int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "uvicorn", "benchmarks._soak_app:app", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--log-level", "warning", "--no-access-log"], env={**os.environ, "REDIS_URL": url}
    )
    give_up = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return process, port
        except OSError:
            if time.monotonic() > give_up or process.poll() is not None:
                process.kill()
                raise
            time.sleep(0.05)


def of_process(pid: int) -> Sample:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return {
        "rss": float(status["VmRSS"].split()[0]) * 1024,
        "threads": float(status["Threads"]),
        "fds": float(len(os.listdir(f"/proc/{pid}/fd"))),
        "cpu": (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"),
    }


async def sample(pid: int, client: Client, admin: Any) -> tuple[Sample, Counter[str]]:
    """What there is now, latencies since the last time, and the objects of the app by their kind."""
    latencies, client.latencies = sorted(client.latencies), []
    taken = of_process(pid)
    inside, _ = await client.ask("/inside")
    info = await admin.info()
    taken |= {
        "tasks": inside["tasks"],
        "objects": inside["objects"],
        "blocks": inside["blocks"],
        "server memory": info["used_memory"],
        "server clients": info["connected_clients"],
        "keys": await admin.dbsize(),
        "visitors": len(client.journal.present),
        "requests": sum(client.done.values()),
        "wrong": sum(client.journal.wrong.values()),
    }
    if latencies:
        taken |= {"p50": latencies[len(latencies) // 2], "p99": latencies[len(latencies) * 99 // 100]}
    return taken, Counter(inside["kinds"])


def progress(at: float, of: float, client: Client) -> None:
    if sys.stderr.isatty():
        bar = "█" * int(30 * at / of)
        wrong = sum(client.journal.wrong.values())
        text = f"{at / 60:.0f} of {of / 60:.0f} min, {sum(client.done.values()):,} requests, {wrong} wrong"
        print(f"\r{bar:30} {text}   ", end="", file=sys.stderr, flush=True)


async def soak(pid: int, port: int, url: str, seconds: float, every: float) -> dict[str, Any]:
    client, samples, kinds = Client(port, Journal()), [], []
    warm_up = min(WARM_UP, seconds / 3)
    began = time.monotonic()
    async with redis.asyncio.Redis.from_url(url) as admin:
        load = asyncio.ensure_future(client.load(PER_SECOND, began + seconds))
        while (at := time.monotonic() - began) < seconds:
            await asyncio.sleep(every - at % every)
            taken, by_kind = await sample(pid, client, admin)
            samples.append({"at": round(time.monotonic() - began, 2), **taken})
            if samples[-1]["at"] >= warm_up:
                kinds.append(by_kind)
            progress(samples[-1]["at"], seconds, client)
        await load
        await client.aclose()
    grown = {name: kinds[-1][name] - kinds[0][name] for name in kinds[-1]} if kinds else {}
    return {
        "seconds": seconds,
        "warm-up": warm_up,
        "per second": PER_SECOND,
        "done": dict(client.done),
        "trouble": dict(client.trouble),
        "wrong": dict(client.journal.wrong),
        "examples": client.journal.examples,
        "grown": dict(Counter(grown).most_common(10)),
        "samples": samples,
    }


def fit(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Mean, slope per hour, and the slope's standard error, of (seconds, value) by least squares over means of blocks."""
    size = max(len(points) // BLOCKS, 1)
    blocks = [points[start : start + size] for start in range(0, len(points) - size + 1, size)]
    xs = [statistics.fmean(x for x, _ in block) / 3600 for block in blocks]
    ys = [statistics.fmean(y for _, y in block) for block in blocks]
    slope, start = statistics.linear_regression(xs, ys)
    spread = sum((x - statistics.fmean(xs)) ** 2 for x in xs)
    rest = sum((y - start - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    return statistics.fmean(ys), slope, (rest / max(len(xs) - 2, 1) / spread) ** 0.5


def fits(data: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Of each thing watched, over what came after the warm-up; in its unit."""
    found = {}
    samples = [
        {**one, "memory of a key": one["server memory"] / one["keys"]}
        for one in data["samples"]
        if one["at"] >= data["warm-up"]
    ]
    for name, (_, _, unit) in WATCHED.items():
        points = [(one["at"], one[name] / unit) for one in samples if name in one]
        found[name] = fit(points)
    return found


def is_flat(mean: float, slope: float, error: float) -> bool:
    """Whether growth is neither certain (two standard errors) nor, if it is, as much as a percent an hour."""
    return slope - 2 * error <= 0 or slope < 0.01 * mean


def markdown(data: dict[str, Any]) -> str:
    requests = sum(count for name, count in data["done"].items() if name in MIX)
    wrong = sum(data["wrong"].values())
    rows = []
    for name, (mean, slope, error) in fits(data).items():
        title, unit, _ = WATCHED[name]
        flat = "yes" if is_flat(mean, slope, error) else "**no**"
        rows.append([title, f"{mean:,.1f} {unit}".strip(), f"{slope:+,.2f} ± {2 * error:,.2f}", flat])
    trouble = ", ".join(f"{count} × {name}" for name, count in data["trouble"].items()) or "none"
    return (
        f"{data['server']}, {data['seconds'] / 60:.0f} minutes at {data['per second']:.0f} requests/s: {requests:,} requests, "
        f"**{wrong} wrong answer{'' if wrong == 1 else 's'}**. Other trouble: {trouble}. "
        f"The first {data['warm-up'] / 60:.0f} minutes are left out.\n\n"
        + table(["", "mean", "slope per hour (± 2 standard errors)", "flat"], rows)
        + "\n"
    )


def parts(data: dict[str, Any]) -> dict[str, str]:
    """What the page about capacity shows, by the names of its marks."""
    return {"soak": markdown(data)}


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("minutes", metavar="MINUTES", type=float, nargs="?", help="default: 60, with --quick 0.1")
    arguments = parsed(made, argv)
    minutes, every = arguments.minutes or (0.1 if arguments.quick else 60.0), 0.5 if arguments.quick else 10.0
    with a_server() as server:
        process, port = start(server.url)
        try:
            data = asyncio.run(soak(process.pid, port, server.url, minutes * 60, every))
        finally:
            process.terminate()
            process.wait()
        data = {"server": server.version, **data}
    save("soak", data, arguments.into)
    print("\n" + markdown(data))
    for example in data["examples"]:
        print(example)
    grew = [name for name, found in fits(data).items() if name not in ("p50", "p99") and not is_flat(*found)]
    # A few seconds are nothing but warm-up, in which much still grows.
    if data["wrong"] or (grew and not arguments.quick):
        print("objects that became more:", data["grown"])
        sys.exit(f"wrong answers: {data['wrong']}; not flat: {grew}")


if __name__ == "__main__":
    main()
