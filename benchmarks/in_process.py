"""CPU per request in the app's process, ours beside others: ``python -m benchmarks.in_process [--quick]``.

Drives the bare ASGI interface, no server and no socket but Redis's own. Everybody takes turns in every round, so that a noisy
machine is unkind to all alike; medians and ratios are shown. Look at the ratios: absolute figures are this machine's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import redis

from benchmarks import _peers
from benchmarks._peers import Peer
from benchmarks._work import (
    KINDS,
    Server,
    a_newer_server,
    a_server,
    a_session,
    ask,
    both,
    check,
    cpu_of,
    median,
    options,
    progress,
    run,
    save,
    table,
)
from tests.cost import BASELINE

SIGNED, OURS, SEALED = "Starlette's signed cookie", "ours, Redis", "ours, Redis, secret_keys"
NEW, SDK = f"{OURS}, not seen before", "fastapi-redis-sdk"
FEW = {
    "no session",
    SIGNED,
    OURS,
    f"{OURS}, not seen before",
    SEALED,
    f"{SEALED}, not seen before",
    "ours, memory",
    "starsessions + Redis",
}
"""Those that are measured with other numbers in flight and on asyncio, too."""
SLOW = {"starsessions + Redis", "Litestar server-side + Redis", SDK}
"""They take as long as all others together: fewer requests of theirs say as much."""
Figures = dict[str, dict[str, float]]


def makers(url: str, newer: str | None) -> dict[str, Callable[[], Peer]]:
    """``newer``: a server that has the commands of Redis 8."""
    found: dict[str, Callable[[], Peer]] = {
        "no session": _peers.no_session,
        SIGNED: _peers.signed_cookie,
        OURS: lambda: _peers.ours(url),
        f"{OURS}, not seen before": lambda: _peers.ours_not_seen(url),
        SEALED: lambda: _peers.ours_with_secrets(url),
        f"{SEALED}, not seen before": lambda: _peers.ours_not_seen(url, secret_keys=[_peers.KEY]),
        "ours, memory": _peers.ours_in_memory,
        "ours over a raw protocol": lambda: _peers.raw_limit(url),
        "a bare GET, decoded": lambda: _peers.raw_get(url),
        "GETEX through redis-py's pool": lambda: _peers.pool(url),
        "starsessions + Redis": lambda: _peers.starsessions(url),
        "Litestar without sessions": lambda: _peers.litestar(url, sessions=False),
        "Litestar server-side + Redis": lambda: _peers.litestar(url),
        "FastAPI without sessions": lambda: _peers.fastapi_redis_sdk(url, sessions=False),
    }
    if newer is not None:
        found[SDK] = lambda: _peers.fastapi_redis_sdk(newer)
    return found


def kinds_of(name: str) -> tuple[str, ...]:
    if name == "no session" or name.endswith("without sessions"):
        return ("anonymous",)
    if name == "ours over a raw protocol" or name.endswith("not seen before"):
        return ("read",)
    if name == "a bare GET, decoded":
        return ("read",)
    return KINDS


async def peers_of(made: dict[str, Callable[[], Peer]]) -> list[Peer]:
    """Those whose packages are there, and that do the work."""
    peers: list[Peer] = []
    for make in made.values():
        try:
            peer = make()
        except ImportError as error:
            progress(f"left out: {error}")
            continue
        if len(kinds_of(peer.name)) == len(KINDS):
            await check(peer.app)
        peers.append(peer)
    return peers


async def measure(made: dict[str, Callable[[], Peer]], in_flight: int, requests: int, rounds: int) -> Figures:
    """Medians of µs of CPU per request, by peer and kind."""
    peers = await peers_of(made)
    spent: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for peer in peers:
            few = 4 if peer.name in SLOW else 1
            for kind in kinds_of(peer.name):
                if peer.name == "a bare GET, decoded":
                    spent.setdefault((peer.name, kind), []).append(await _bare_get(peer, in_flight, requests))
                else:
                    figure = await cpu_of(peer.app, kind, in_flight, max(requests // few, in_flight))
                    spent.setdefault((peer.name, kind), []).append(figure)
        progress(f"  {in_flight} in flight: round {number + 1} of {rounds}")
    for peer in peers:
        if peer.close is not None:
            await peer.close()
    figures: Figures = {}
    for (name, kind), values in spent.items():
        figures.setdefault(name, {})[kind] = median(values)
    return figures


async def _bare_get(peer: Peer, in_flight: int, requests: int) -> float:
    await ask(peer.app, "/read")
    return await cpu_of(peer.app, "anonymous", in_flight, requests)


async def on_the_server(server: Server, requests: int) -> dict[str, float]:
    """What requests cost Redis: commands per read, and µs of its CPU, by its own count."""
    peer, found = _peers.ours(server.url), dict[str, float]()
    total = requests + 64 * min(requests // 64, 10)  # cpu_of() warms up
    with redis.Redis.from_url(server.url) as client:
        for kind in ("read", "write", "log-in"):
            client.flushall()  # nobody has logged in before
            await cpu_of(peer.app, kind, 64, 64)
            client.config_resetstat()
            before: Any = client.info("cpu")
            await cpu_of(peer.app, kind, 64, requests)
            after: Any = client.info("cpu")
            used = sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))
            found[f"µs of the server's CPU: {kind}"] = used / total * 1e6
            if kind == "read":
                stats: Any = client.info("commandstats")
                found["commands per read"] = stats["cmdstat_getrange"]["calls"] / total
    assert peer.close is not None
    await peer.close()
    return found


async def forged_sends_nothing(server: Server) -> bool:
    peer = _peers.ours_with_secrets(server.url)
    cookie = await a_session(peer.app)
    with redis.Redis.from_url(server.url) as client:
        await ask(peer.app, "/read", cookie)
        client.config_resetstat()
        for _ in range(10):
            await ask(peer.app, "/read", cookie[:-6] + b"AAAAAA")
        stats: Any = client.info("commandstats")
    assert peer.close is not None
    await peer.close()
    return set(stats) <= {"cmdstat_info", "cmdstat_config|resetstat"}


def bounds(figures: Figures, server: dict[str, float], silent: bool) -> list[list[Any]]:
    """What this project wants to reach, what it did reach, and whether that is enough."""
    ours, sealed, star, new, sealed_new = OURS, SEALED, "starsessions + Redis", NEW, f"{SEALED}, not seen before"
    raw, litestar = "ours over a raw protocol", "Litestar server-side + Redis"
    found: list[list[Any]] = []

    def at_most(what: str, limit: float, reached: float) -> None:
        found.append([what, f"≤ {limit:g}", f"{reached:.2f}", reached <= limit])

    for what, limit, name, other, kind in (
        ("read of a record that the process has not seen, to the signed cookie's", 0.72, new, SIGNED, "read"),
        ("read of one that it has seen", 0.6, ours, SIGNED, "read"),
        ("write", 0.72, ours, SIGNED, "write"),
        ("anonymous", 0.69, ours, SIGNED, "anonymous"),
        ("forged", 0.5, ours, SIGNED, "forged"),
        ("`secret_keys`: read, not seen", 1.05, sealed_new, SIGNED, "read"),
        ("`secret_keys`: read, seen", 0.66, sealed, SIGNED, "read"),
        ("`secret_keys`: write", 0.92, sealed, SIGNED, "write"),
        ("`secret_keys`: forged", 0.36, sealed, SIGNED, "forged"),
        ("read, to the same over a raw protocol", 1.3, ours, raw, "read"),
    ):
        if other in figures:
            at_most(what, limit, figures[name][kind] / figures[other][kind])
    for what, limit, other, kind in (
        ("read, requests per CPU second to starsessions'", 12, star, "read"),
        ("write, likewise", 5.5, star, "write"),
        ("read, likewise to Litestar's", 18, litestar, "read"),
    ):
        if other in figures:
            reached = figures[other][kind] / figures[ours][kind]
            found.append([what, f"≥ {limit:g}", f"{reached:.1f}", reached >= limit])
    for what, limit, name in (
        ("log-in, to our write", 2.1, ours),
        ("`secret_keys`: log-in, to our write", 2.5, sealed),
    ):
        at_most(what, limit, figures[name]["log-in"] / figures[name]["write"])
    for kind, limit in (("read", 1.5), ("write", 8), ("log-in", 18)):
        at_most(f"µs of the server's CPU per {kind}", limit, server[f"µs of the server's CPU: {kind}"])
    at_most("commands per read", 1, server["commands per read"])
    found.append(["a forged token sends a command", "no", "no" if silent else "yes", silent])
    return found


def figures_table(figures: Figures) -> str:
    signed, rows = figures.get(SIGNED, {}), []
    for name, by_kind in figures.items():
        cells = [f"{by_kind[kind]:.1f}" if kind in by_kind else "" for kind in KINDS]
        if signed:
            cells = [
                f"{cell} ({by_kind[kind] / signed[kind]:.2f})" if cell else ""
                for kind, cell in zip(KINDS, cells, strict=True)
            ]
        rows.append([name, *cells])
    return table(["", *KINDS], rows)


def markdown(data: dict[str, Any]) -> str:
    parts = [
        f"µs of CPU per request in the app's process, app included; in brackets the ratio to {SIGNED}. {data['server']}.\n"
    ]
    for case, figures in data["cases"].items():
        parts.append(f"\n**{case}**\n\n{figures_table(figures)}\n")
    rows = [[what, limit, reached, "yes" if good else "**no**"] for what, limit, reached, good in data["bounds"]]
    parts.append(
        "\n**What it should reach** (64 in flight, uvloop)\n\n" + table(["", "bound", "measured", "reached"], rows)
    )
    return "".join(parts) + "\n"


def all_cases(url: str, newer: str | None, *, quick: bool) -> dict[str, Figures]:
    made = makers(url, newer)
    few = {name: make for name, make in made.items() if name in FEW}
    cases: dict[str, Figures] = {}
    for loop in ("uvloop", "asyncio"):
        for in_flight in (64,) if quick else (1, 16, 64, 256):
            progress(f"{loop}, {in_flight} in flight")
            all_of_them = in_flight == 64 and loop == "uvloop"
            size, rounds = (64, 1) if quick else (6400, 7 if all_of_them else 3)
            cases[f"{in_flight} in flight, {loop}"] = run(
                measure(made if all_of_them else few, in_flight, size, rounds), loop
            )
    return cases


def main(argv: list[str] | None = None) -> None:
    arguments = options(__doc__, argv)
    quick = arguments.quick
    with a_server() as server, a_newer_server() as newer:
        cases = all_cases(server.url, newer.url if newer else None, quick=quick)
        costs = run(on_the_server(server, 640 if quick else 8_000 // 64 * 64))
        silent = run(forged_sends_nothing(server))
        data = {
            "server": both(server, newer),
            "cases": cases,
            "on the server": costs,
            "bounds": bounds(cases["64 in flight, uvloop"], costs, silent),
            "calls": json.loads(BASELINE.read_text(encoding="utf-8")),
        }
        save("in_process", data, arguments.into)
    print(markdown(data))


if __name__ == "__main__":
    main()
