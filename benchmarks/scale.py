"""How large it gets: ``python -m benchmarks.scale [--quick] [SESSIONS]``, up to a million by default; about a quarter of an hour.

Fills servers of its own through the middleware and measures, at each power of ten, what a session takes in their memory and
what requests cost: commands, CPU, bytes on the wire. Then what a log on disk, a replica and databases cost. From these it
prints the plan for 10⁸ sessions and 10⁵ requests a second, formula by formula. Half of the sessions are anonymous, half
logged in, each user with one.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import replace
from typing import Any, NamedTuple

import redis

from asgi_sessions import RedisStore
from benchmarks import _scale_log, _scale_replica, _scale_sql
from benchmarks._kinds import CHANGES, IN_FLIGHT, KINDS, QUICK, Effort, Load, counted, per_request, stage
from benchmarks._work import Server, a_server, parsed, parser, save, table

AT_A_TIME = (1, 10, 100)
"""Requests in flight in the process of an app: what they ask together leaves together, and is cheaper."""

# What is assumed, and not measured. Yours will differ; the formulas say how that matters.
SESSIONS = 10**8
PER_SECOND = 10**5
"""Requests that bring a session's cookie, or log in."""
MIX = {"read": 0.75, "touch": 0.15, "write": 0.09, "log-in": 0.01}
"""Of these. Touches: a sixth of what only reads, as of people who send six requests in a minute. At one a minute all are."""
LINES = 10
"""Further entries in the history of each user who is logged in; 200 are the limit, 90 days the time."""
HEADROOM = 1.5
"""For fragmentation, and for pages that are copied while a server forks."""
NODE_BYTES = 25 * 2**30
"""Memory of a primary that still restarts, forks and resynchronises in minutes."""
NODE_CPU = 0.5
"""Of one core: a server carries out commands on one, and should be half idle."""
REPLICAS = 1
"""Of each primary."""
PLANNED = "10"
"""In the process of an app: 5,000 requests a second that take 2 ms are ten in flight."""
AWAY = 60
"""Seconds that a replica may be away and come back without a copy of everything."""


async def costs(client: Any, load: Load, many: int, in_flight: int, times: int) -> dict[str, dict[str, float]]:
    """What a request of each kind costs: the median of some rounds."""
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(times):
        for kind, seen in rounds.items():
            seen.append(await per_request(client, load, kind, many, in_flight))
    await load.forget_late()
    return {
        kind: {name: statistics.median(one[name] for one in seen) for name in seen[0]} for kind, seen in rounds.items()
    }


async def sessions(server: Server, effort: Effort) -> dict[str, Any]:
    """Rows for powers of ten; then a history, and a replica that copies the whole."""
    load, rows, size = Load(RedisStore.from_url(server.url)), [], min(1000, effort.sessions)
    with redis.Redis.from_url(server.url) as client:
        await load.fill(2)
        await costs(client, load, 2, 1, 1)  # so that the server knows the scripts
        empty = counted(client)
        while size <= effort.sessions:
            began, many = time.perf_counter(), size - len(load.cookies)
            await load.fill(many)
            took, full = time.perf_counter() - began, counted(client)
            row: dict[str, Any] = {"sessions": size, "filled per second": many / took}
            row |= {name: (full[name] - empty[name]) / size for name in ("memory", "resident")}
            row |= await costs(client, load, min(effort.requests, size), IN_FLIGHT, effort.rounds)
            rows.append(row)
            size *= 10
        by_in_flight = {str(n): await costs(client, load, effort.requests, n, effort.rounds) for n in AT_A_TIME}
        before = counted(client)["memory"]
        lines = await load.histories(*effort.histories)
        line = (counted(client)["memory"] - before) / lines
        await load.store.aclose()
    return {"rows": rows, "in flight": by_in_flight, "line": line, "copy": await _scale_replica.copy(server)}


async def measure(effort: Effort) -> dict[str, Any]:
    with a_server() as server:
        stage("sessions and requests")
        found = {"server": server.version, **await sessions(server, effort)}
    stage("a log on disk")
    found["log"] = await _scale_log.measure(effort)
    stage("a replica")
    found["replica"] = await _scale_replica.measure(effort)
    stage("databases")
    found["sql"] = await _scale_sql.measure(min(effort.in_sql, effort.sessions), effort.requests // 5)
    return found


STYLE = {"read": "o-", "touch": "^:", "write": "s--", "log-in": "D-."}
"""How the kinds are drawn."""

# ── The plan ──


class Step(NamedTuple):
    """One figure of the plan, and the numbers it follows from."""

    what: str
    formula: str
    result: str


def mixed(costs: dict[str, float], kinds: tuple[str, ...] = KINDS) -> float:
    return sum(MIX[kind] * costs[kind] for kind in kinds)


def gib(size: float) -> str:
    return f"{size / 2**30:,.0f} GiB"


def plan(data: dict[str, Any]) -> list[Step]:
    row, log, replica = data["rows"][-1], data["log"], data["replica"]
    at_work = data["in flight"][PLANNED]
    costs = {name: {kind: at_work[kind][name] for kind in KINDS} for name in ("commands", "cpu", "in", "out", "app")}
    per_session = row["memory"] + LINES / 2 * data["line"]
    memory, cpu = per_session * SESSIONS * HEADROOM, mixed(costs["cpu"])
    by_memory, by_cpu = -(-memory // NODE_BYTES), -(-cpu * PER_SECOND // NODE_CPU)
    primaries = max(by_memory, by_cpu)
    commands, wire = mixed(costs["commands"]), mixed(costs["in"]) + mixed(costs["out"])
    changes = sum(MIX[kind] for kind in CHANGES) * PER_SECOND / primaries
    stream = mixed(replica["costs"]["bytes"], CHANGES) * PER_SECOND / primaries
    logged = mixed(log["costs"]["everysec"]["log"], CHANGES) * PER_SECOND / primaries
    node = per_session * SESSIONS / primaries
    copied = data["copy"]["memory"] / data["copy"]["seconds"]
    behind = replica["lag"]["wait p99"]
    a_second = f"{PER_SECOND:.0e} requests/s"
    steps = [
        Step(
            "memory of a session",
            f"{row['memory']:.0f} B + {LINES} history entries × {data['line']:.0f} B / 2, since half have a user",
            f"{per_session:.0f} B",
        ),
        Step("memory", f"{per_session:.0f} B × {SESSIONS:.0e} sessions × {HEADROOM} headroom", gib(memory)),
        Step("primaries, by memory", f"{gib(memory)} / {gib(NODE_BYTES)} of a node", f"{by_memory:.0f}"),
        Step("primaries, by CPU", f"{cpu * 1e6:.1f} µs a request × {a_second} / {NODE_CPU} of a core", f"{by_cpu:.0f}"),
        Step("servers", f"{primaries:.0f} primaries × (1 + {REPLICAS} replicas)", f"{primaries * (1 + REPLICAS):.0f}"),
        Step(
            "commands",
            f"{commands:.2f} a request × {a_second} / {primaries:.0f} primaries",
            f"{commands * PER_SECOND / primaries:,.0f}/s on each",
        ),
        Step(
            "network, apps",
            f"{wire:.0f} B a request, both ways × {a_second} × 8 bits",
            f"{wire * PER_SECOND * 8 / 1e9:.2f} Gbit/s in all, {wire * PER_SECOND * 8 / 1e6 / primaries:.0f} Mbit/s at each",
        ),
        Step(
            "network, replicas",
            f"{stream / changes:.0f} B a change × {changes:,.0f} changes/s × {REPLICAS} replicas × 8 bits",
            f"{stream * REPLICAS * 8 / 1e6:.1f} Mbit/s from each",
        ),
        Step(
            "log", f"{logged / changes:.0f} B a change × {changes:,.0f} changes/s", f"{logged / 1e6:.2f} MB/s on each"
        ),
        Step(
            "rewrite of the log",
            f"{gib(node)} of a primary, without headroom / {logged / 1e6:.2f} MB/s",
            f"every {node / logged / 3600:.1f} h",
        ),
        Step(
            "lost in a power cut, with everysec",
            f"{changes:,.0f} changes/s × 1 s",
            f"up to {changes:,.0f} acknowledged changes of each primary",
        ),
        Step(
            "lost in a failover",
            f"{changes:,.0f} changes/s × {behind * 1e3:.1f} ms of replica lag, p99",
            f"about {changes * behind:.0f} acknowledged changes, if the old primary is dead",
        ),
        Step(
            "backlog",
            f"{stream / 1e6:.2f} MB/s × {AWAY} s without the replica",
            f"repl-backlog-size {stream * AWAY / 2**20:.0f} MiB",
        ),
        Step("a new replica", f"{gib(node)} / {copied / 1e6:.0f} MB/s copied", f"{node / copied / 60:.0f} min"),
        Step(
            "cores of the apps, for sessions",
            f"{mixed(costs['app']) * 1e6:.0f} µs a request × {a_second}",
            f"{mixed(costs['app']) * PER_SECOND:.1f}",
        ),
    ]
    if log["fsyncs"]["always"] is not None:
        always = log["fsyncs"]["always"][PLANNED]
        per_fsync = 1 / always["per write"]
        steps.insert(
            11,
            Step(
                "fsyncs, with always",
                f"{changes:,.0f} changes/s / {per_fsync:.0f} an fsync, with {PLANNED} in flight",
                f"{changes / per_fsync:,.0f}/s on each (this disk can do {1 / always['seconds']:,.0f}/s)",
            ),
        )
    return steps


def shown(steps: list[Step]) -> str:
    return "\n".join(f"{step.what}: {step.result}\n    {step.formula}" for step in steps)


# ── What was measured ──


def of_sessions(data: dict[str, Any]) -> str:
    head = ["sessions", "memory of each", "resident", *(f"{kind}: commands, µs, bytes" for kind in KINDS)]
    rows = []
    for row in data["rows"]:
        costs = [
            f"{cost['commands']:.2f}, {cost['cpu'] * 1e6:.1f}, {cost['in'] + cost['out']:,.0f}"
            for cost in (row[kind] for kind in KINDS)
        ]
        rows.append([f"{row['sessions']:,}", f"{row['memory']:.0f} B", f"{row['resident']:.0f} B", *costs])
    return table(head, rows) + f"\n\nA history entry takes {data['line']:.0f} B.\n"


def of_in_flight(data: dict[str, Any]) -> str:
    rows = [
        [n, *(f"{costs[kind]['cpu'] * 1e6:.1f}, {costs[kind]['app'] * 1e6:.0f}" for kind in KINDS)]
        for n, costs in data["in flight"].items()
    ]
    return table(["in flight", *(f"{kind}: µs of the server, of the app" for kind in KINDS)], rows) + "\n"


def of_log(data: dict[str, Any]) -> str:
    log = data["log"]
    head = ["appendonly", "CPU of a write", "log: touch, write, log-in", *(f"{n} in flight" for n in (1, 10, 100))]
    head += ["writes to an fsync, at 1, 10, 100", "fsyncs/s"]
    rows = []
    for mode, cost in log["costs"].items():
        fsyncs = log["fsyncs"].get(mode)
        rows.append(
            [
                mode,
                f"{cost['cpu'] * 1e6:.1f} µs",
                ", ".join(f"{cost['log'][kind]:,.0f}" for kind in CHANGES) + " B",
                *(f"{cost['median'][n] * 1e3:.2f} / {cost['p99'][n] * 1e3:.1f} ms" for n in ("1", "10", "100")),
                ", ".join(f"{1 / fsyncs[n]['per write']:,.0f}" if fsyncs[n]["per write"] else "–" for n in fsyncs)
                if fsyncs
                else "–",
                ", ".join(f"{fsyncs[n]['per second']:,.0f}" for n in fsyncs) if fsyncs else "–",
            ]
        )
    return table(head, rows) + f"\n\nOne fsync of 400 bytes alone: {log['fsync alone'] * 1e3:.2f} ms.\n"


def of_replica(data: dict[str, Any]) -> str:
    found = data["replica"]
    lag, cost, copy = found["lag"], found["costs"], data["copy"]
    rows = [
        [
            "stream to a replica: touch, write, log-in",
            ", ".join(f"{cost['bytes'][kind]:,.0f}" for kind in CHANGES) + " B",
        ],
        [
            "CPU of a write: without a replica, with one, on the replica",
            f"{cost['cpu']['alone'] * 1e6:.1f}, {cost['cpu']['with a replica'] * 1e6:.1f}, "
            f"{cost['cpu']['of the replica'] * 1e6:.1f} µs",
        ],
        [
            f"until a replica has a write (`WAIT`), at {lag['writes per second']:,.0f} writes/s",
            f"median {lag['wait median'] * 1e3:.1f} ms, p99 {lag['wait p99'] * 1e3:.1f} ms, "
            f"at most {lag['wait most'] * 1e3:.1f} ms",
        ],
        [
            "bytes behind the primary",
            f"median {lag['bytes median']:,.0f}, at most {lag['bytes most']:,.0f}",
        ],
        *(
            [
                f"stopped for {one['away']:.0f} s, connection kept: missed {one['missed'] / 1e6:.1f} MB",
                f"caught up after {one['caught up after'] * 1e3:.0f} ms, "
                f"{max(one['held for it'], 0) / 1e6:.1f} MB buffered by the primary",
            ]
            for one in found["stopped"]
        ),
        *(
            [
                f"stopped for {one['away']:.0f} s, connection lost: missed {one['missed'] / 1e6:.1f} MB, "
                f"backlog of {one['backlog'] / 1e6:.1f} MB",
                f"{'**full copy**' if one['copied anew'] else 'resumed'}, "
                f"caught up after {one['caught up after'] * 1e3:.0f} ms",
            ]
            for one in found["cut off"]
        ),
        [
            f"a new replica of {copy['keys']:,} keys, {copy['memory'] / 1e6:,.0f} MB of memory",
            f"{copy['seconds']:.1f} s: {copy['memory'] / copy['seconds'] / 1e6:.0f} MB/s, {copy['sent'] / 1e6:,.0f} MB sent",
        ],
    ]
    return table(["", ""], rows) + "\n"


def of_sql(data: dict[str, Any]) -> str:
    head = ["", "sessions", "tables, each", "indexes", *(f"{kind}: statements, µs, ms" for kind in KINDS)]
    rows = []
    for name, found in data["sql"].items():
        if "left out" in found:
            rows.append([name, f"left out: {found['left out']}", *[""] * (len(head) - 2)])
            continue
        for row in found["rows"]:
            costs = [
                f"{cost['statements']:.1f}, {cost['app'] * 1e6:.0f}, {cost['alone'] * 1e3:.1f}"
                for cost in (row[kind] for kind in KINDS)
            ]
            rows.append(
                [
                    f"{name} {found['version'].split()[0]}",
                    f"{row['sessions']:,}",
                    f"{row['tables']:.0f} B",
                    f"{row['indexes']:.0f} B",
                    *costs,
                ]
            )
    return table(head, rows) + "\n"


def parts(data: dict[str, Any]) -> dict[str, str]:
    """What the page about capacity shows, by the names of its marks."""
    about = data["about"]
    return {
        "sessions": of_sessions(data),
        "in flight": of_in_flight(data),
        "log": of_log(data),
        "replica": of_replica(data),
        "databases": of_sql(data),
        "plan": f"```text\n{shown(plan(data))}\n```",
        "machine": f"{data['server']}, {about['machine']}, Python {about['python']}, {about['date']}.",
    }


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument(
        "sessions", metavar="SESSIONS", type=int, nargs="?", help="at most; default: 10**6, with --quick 100"
    )
    arguments = parsed(made, argv)
    effort = QUICK if arguments.quick else Effort()
    most = arguments.sessions or effort.sessions
    data = asyncio.run(measure(replace(effort, sessions=most, requests=min(effort.requests, most))))
    save("scale", data, arguments.into)
    print(f"{data['server']}; sessions of about 300 bytes, half of them logged in\n")
    for part in (of_sessions, of_in_flight, of_log, of_replica, of_sql):
        print(part(data))
    print(shown(plan(data)))


if __name__ == "__main__":
    main()
