"""The doctor's checks for Redis and Valkey: version, eviction, persistence, role, rights, and the state of a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from asgi_sessions.cli._findings import Finding, note, ok, problem, warning
from asgi_sessions.cli._stores import url_of_a_node
from asgi_sessions.stores.redis._cluster import SLOTS
from asgi_sessions.stores.redis._server import ASK_SNAPSHOTS, advice, has_no_log, info_in, snapshots_in

OLDEST: Final = {"Redis": (6, 2), "Valkey": (7, 2)}

FULL: Final = 0.9
"""The share of ``maxmemory`` from which the doctor warns."""

TIME_LIMIT: Final = 2.0
"""Seconds for a connection, and for each answer."""

Address = tuple[str, int]


async def look(url: str) -> list[Finding]:
    """Check the server, or each primary of the cluster."""
    node = url_of_a_node(url)
    try:
        async with _client(node or url) as client:
            if node is None:
                return await _of_one(client)
            return await _of_cluster(client, node)
    except (RedisError, OSError) as error:
        return [problem("server", f"it does not say what it is: {type(error).__name__}", "grant INFO to this user")]


@asynccontextmanager
async def _client(url: str, **options: Any) -> AsyncIterator[Any]:
    limits: dict[str, Any] = {
        "socket_connect_timeout": TIME_LIMIT,
        "socket_timeout": TIME_LIMIT,
        "decode_responses": True,
    }
    client = Redis.from_url(url, **limits, **options)
    try:
        yield client
    finally:
        await client.aclose()


async def _ask(client: Any, *command: Any) -> Any:
    """The answer of a command, or ``None`` if this user lacks the right."""
    try:
        return await client.execute_command(*command)
    except ResponseError:
        return None


async def _of_one(client: Any) -> list[Finding]:
    said = info_in(await _ask(client, "INFO"))
    if not said:
        return [warning("server", "it does not say what it is", "grant INFO to this user")]
    found = await _about(client, said)
    if said.get("cluster_enabled") == "1":
        found.append(problem("cluster", "the server is a node of a cluster", "give the URL as redis+cluster://…"))
    return [*found, *await _rights(client)]


async def _about(client: Any, said: Mapping[str, str]) -> list[Finding]:
    snapshots = snapshots_in(await _ask(client, " ".join(ASK_SNAPSHOTS[:2]), ASK_SNAPSHOTS[2]))
    return [version(said), *eviction(said), *persistence(said, snapshots), *role(said)]


def version(said: Mapping[str, str]) -> Finding:
    """Check whether the server is new enough."""
    name = "Valkey" if "valkey_version" in said else "Redis"
    number = said.get("valkey_version") or said.get("redis_version", "?")
    parts = tuple(int(part) if part.isdecimal() else 0 for part in number.split(".")[:2])
    if parts < OLDEST[name]:
        least = ".".join(map(str, OLDEST[name]))
        return problem("version", f"{name} {number} is too old", f"upgrade to {name} {least} or newer")
    return ok("version", f"{name} {number}")


def eviction(said: Mapping[str, str]) -> Sequence[Finding]:
    """Check whether the server evicts sessions when memory is full."""
    policy, evicted = said.get("maxmemory_policy", "noeviction"), int(said.get("evicted_keys", 0))
    most, used = int(said.get("maxmemory", 0)), int(said.get("used_memory", 0))
    found: list[Finding] = []
    if policy == "noeviction":
        found.append(ok("eviction", "maxmemory-policy is noeviction"))
    else:
        finding = problem if evicted else warning
        so_far = f"; {evicted:,} keys are gone so far" if evicted else ""
        found.append(
            finding(
                "eviction",
                f"maxmemory-policy is {policy}: when memory runs short, users are logged out{so_far}",
                "set maxmemory-policy noeviction, and give sessions a server of their own",
            )
        )
    if most and used >= FULL * most:
        found.append(
            warning(
                "memory",
                f"{used / most:.0%} of maxmemory is used; a full server refuses log-ins",
                "raise maxmemory, or give sessions a server of their own",
            )
        )
    return found


def persistence(said: Mapping[str, str], snapshots: str | None) -> Sequence[Finding]:
    """Check whether sessions survive a restart."""
    failed = [name for name in _SAVED if said.get(name, "ok") != "ok"]
    if failed:
        return [
            problem(
                "persistence",
                f"the server cannot save to its disk ({', '.join(failed)})",
                "free space there; read its log",
            )
        ]
    # With the role of a replica, the advice leaves out replicas: role() reports them.
    if lines := advice({**said, "role": "slave"}, snapshots, 0):
        finding = note if snapshots is None else warning  # the app's own user may not call CONFIG GET
        return [finding("persistence", *line.rsplit("; ", 1)) for line in lines]
    if has_no_log(said):
        return [
            note(
                "persistence",
                "it keeps nothing on disk: a restart logs all users out",
                "set appendonly yes to keep them",
            )
        ]
    return [ok("persistence", "it has an append-only file")]


_SAVED: Final = ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status")


def role(said: Mapping[str, str]) -> Sequence[Finding]:
    """Check whether the server is a primary, and whether a failover could bring back ended sessions."""
    if said.get("role", "master") != "master":
        return [problem("role", "the server is a replica: it refuses writes", "give the URL of the primary")]
    replicas = said.get("connected_slaves", "0")
    if replicas != "0":
        return [
            note(
                "failover",
                f"{replicas} replicas: a failover may bring back sessions that ended a moment before",
                "give the app's RedisStore durable_ends='all', unless it has it",
            )
        ]
    return []


async def _rights(client: Any) -> list[Finding]:
    given = client.connection_pool.connection_kwargs
    if given.get("username") not in (None, "", "default"):
        return [ok("user", "the app connects as a user of its own")]
    if given.get("password"):
        return [
            note(
                "user",
                "the app connects as the default user, which may do everything",
                "docs/stores.md has an ACL",
            )
        ]
    if _is_local(given):
        return [ok("user", "no password, on this machine only")]
    return [
        warning("user", "the server asks for no password: each machine that reaches it can read and end sessions",
                "set a password, or an ACL: docs/stores.md, Least privilege")
    ]  # fmt: skip


def _is_local(given: Mapping[str, Any]) -> bool:
    host = given.get("host", "localhost")
    try:
        return "path" in given or host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


# ── A cluster ──


async def _of_cluster(client: Any, url: str) -> list[Finding]:
    state = info_in(await _ask(client, "CLUSTER", "INFO"))
    rows = await _ask(client, "CLUSTER", "SLOTS")
    if not isinstance(rows, list):
        return [
            problem("cluster", "the server is not part of a cluster", "give the URL as redis://…"),
            *await _of_one(client),
        ]
    given = client.connection_pool.connection_kwargs
    found = list(cluster_state(state, rows))
    asked = (str(given.get("host", "localhost")), int(given.get("port", 6379)))
    for host, port in primaries(rows, asked):
        async with _client(url, host=host, port=port) as node:
            try:
                said = info_in(await _ask(node, "INFO"))
                there = await _about(node, said) if said else []
            except (RedisError, OSError) as error:
                there = [
                    problem("node", f"it does not answer ({type(error).__name__})", "repair the node, or fail over")
                ]
        found += [
            Finding(each.level, each.check, f"{host}:{port}: {each.message}", each.advice)
            for each in there
            if each.check != "failover"  # cluster_state() reports it for all
        ]
    return [*found, *await _rights(client)]


def primaries(rows: Sequence[Any], asked: Address) -> Sequence[Address]:
    """The addresses of the primaries in an answer to ``CLUSTER SLOTS``. A node without a host is the asked one."""
    return list(dict.fromkeys((str(row[2][0] or asked[0]), int(row[2][1])) for row in rows))


def cluster_state(state: Mapping[str, str], rows: Sequence[Any]) -> Sequence[Finding]:
    """Check whether each slot has a primary, and each primary a replica."""
    covered = sum(int(row[1]) - int(row[0]) + 1 for row in rows)
    if covered < SLOTS or state.get("cluster_state", "ok") != "ok":
        return [
            problem(
                "cluster",
                f"{SLOTS - covered:,} of {SLOTS:,} slots have no primary; cluster_state is {state.get('cluster_state', '?')}",
                "repair it: redis-cli --cluster check, then --cluster fix",
            )
        ]
    nodes = {(row[2][0], row[2][1]) for row in rows}
    alone = {(row[2][0], row[2][1]) for row in rows if len(row) == 3}
    said = f"{len(nodes)} primaries have all slots"
    if alone:
        return [
            warning(
                "cluster",
                f"{said}; {len(alone)} of them have no replica",
                "add replicas",
            )
        ]
    return [
        ok("cluster", said),
        note(
            "failover",
            "a failover may bring back sessions that ended a moment before",
            "give the app's RedisStore durable_ends='all', unless it has it",
        ),
    ]
