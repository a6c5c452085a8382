"""Failovers, splits, restarts and crashes under load, and a journal of what was acknowledged, judged after the recovery.

Eight users log in, write, read and log out without a pause. Then a server dies, is cut off or starts again. When all is well, the
journal is held against what is there: whose log-out was acknowledged has no session. ``docs/stores.md`` has the table of the long
form, ``make failover``. ``make test`` plays once each row whose outcome is certain.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pytest

from asgi_sessions import Devices, Event, RedisStore, Sessions, SQLStore
from asgi_sessions.stores import Store
from asgi_sessions.stores.redis._cluster import Address, ClusterClient
from tests.clusters import Apart, Cluster, Node, Nodes, Split, Watched, may_make_namespaces, until
from tests.conftest import require
from tests.databases import SERVERS
from tests.load import Load, recovered
from tests.ports import free_port
from tests.proxy import Proxy
from tests.standby import a_pair, made_tables
from tests.support import app_with

ROUNDS = int(os.environ.get("FAILOVER_ROUNDS", "0"))
"""Of each row; 0 is the short form."""

SECONDS = 2.0 if ROUNDS else 0.5
ENDS = 50 if ROUNDS else 10
"""So long at least, and so many log-outs, does a load go on before something happens, or between a snapshot and a restart."""

pytestmark = pytest.mark.timeout(120 + 60 * ROUNDS)

SNAPSHOTS: tuple[str, ...] = ("--save", "3600 1")
LOG = ("--appendonly", "yes", "--appendfsync", "everysec")


@dataclass
class Play:
    """A store, and what happens to its servers. After that they are as they will stay."""

    store: Store
    strike: Callable[[Load], Awaitable[None]]


Servers = Callable[[], AbstractAsyncContextManager[Play]]


def in_a_thread(strike: Callable[[Any, Load], None], servers: Any) -> Callable[[Load], Awaitable[None]]:
    return lambda load: asyncio.to_thread(strike, servers, load)


# ── Redis ──


@asynccontextmanager
async def up(nodes: Nodes) -> AsyncIterator[Any]:
    await asyncio.to_thread(nodes.__enter__)
    try:
        yield nodes
    finally:
        await asyncio.to_thread(nodes.__exit__, None, None, None)


@asynccontextmanager
async def sentinel(
    strike: Callable[[Any, Load], None], durable_ends: Any, kind: type[Watched] = Watched
) -> AsyncIterator[Play]:
    async with up(kind()) as watched:
        store = RedisStore.from_sentinel(watched.addresses, watched.SERVICE, durable_ends=durable_ends)
        yield Play(store, in_a_thread(strike, watched))


def goes_on(load: Load) -> None:
    """Blocks."""
    before, began = len(load.ended), time.monotonic()
    until(lambda: len(load.ended) >= before + ENDS and time.monotonic() >= began + SECONDS, "log-outs")


def dies(watched: Watched, load: Load) -> None:
    victim = watched.primary
    victim.kill()
    until(lambda: watched.primary is not victim, "a failover")


def hangs(watched: Watched, load: Load) -> None:
    victim = watched.primary
    victim.signal(signal.SIGSTOP)
    until(lambda: watched.primary is not victim, "a failover")
    victim.signal(signal.SIGCONT)  # it takes itself for the primary until a sentinel tells it otherwise
    goes_on(load)


def is_cut_off_with_a_replica(split: Split, load: Load) -> None:
    """The apps reach both sides."""
    victim = split.primary
    split.namespace.cut_off(clients_too=False)
    until(lambda: split.primary is not victim, "a failover")
    time.sleep(SECONDS)
    split.namespace.reconnect()


def restarts(watched: Watched, load: Load) -> None:
    again(watched.primary, load)
    until(lambda: watched.primary.ask("INFO", "replication")["connected_slaves"] == 2, "its replicas")


def again(node: Node, load: Load) -> None:
    node.ask("SAVE")
    goes_on(load)
    node.kill()
    node.start()


class Slow(Watched):
    """Sentinels that do not notice a restart; servers with snapshots."""

    OPTIONS = SNAPSHOTS
    DOWN_AFTER = 10_000


class SlowWithLog(Slow):
    OPTIONS = LOG


class One(Nodes):
    def __init__(self, *options: str) -> None:
        super().__init__()
        self._options = options

    def build(self) -> None:
        self.add(free_port(), *self._options)


@asynccontextmanager
async def one(*options: str) -> AsyncIterator[Play]:
    async with up(One(*options)) as servers:
        node = servers.nodes[0]
        yield Play(RedisStore.from_url(f"redis://127.0.0.1:{node.port}"), in_a_thread(again, node))


@asynccontextmanager
async def cluster(
    strike: Callable[[Any, RedisStore, Load], Awaitable[None]], kind: type[Cluster]
) -> AsyncIterator[Play]:
    async with up(kind()) as nodes:
        store = RedisStore.from_cluster(nodes.url, durable_ends=1)
        yield Play(store, partial(strike, nodes, store))


async def promoted(nodes: Cluster) -> None:
    await asyncio.to_thread(until, lambda: nodes.nodes[4].ask("ROLE")[0] in (b"master", "master"), "a promotion")


async def one_dies(nodes: Cluster, store: RedisStore, load: Load) -> None:
    nodes.nodes[1].kill()
    await promoted(nodes)


async def one_hangs(nodes: Cluster, store: RedisStore, load: Load) -> None:
    nodes.nodes[1].signal(signal.SIGSTOP)
    await promoted(nodes)
    nodes.nodes[1].signal(signal.SIGCONT)


async def is_cut_off(nodes: Apart, store: RedisStore, load: Load, *, clients_too: bool) -> None:
    """It comes back with the map and the sessions of the day on which it went."""
    nodes.namespace.cut_off(clients_too=clients_too)
    await promoted(nodes)
    if not clients_too:
        await recovered(app_with(store), shards=12)
        await told_the_truth(nodes)
    nodes.namespace.reconnect()
    await asyncio.to_thread(until, lambda: nodes.nodes[1].ask("ROLE")[0] in (b"slave", "slave"), "it to give in")


async def told_the_truth(nodes: Apart) -> None:
    """Who asks the one that was cut off for the map is shown that of yesterday, and asks somebody else."""
    victim = nodes.nodes[nodes.VICTIM]
    store = RedisStore.from_cluster([f"redis://{victim.host}:{victim.port}", nodes.url])
    assert isinstance(store._client, ClusterClient)
    known = store._client._cluster.map()
    await known.refresh()
    assert Address(victim.host, victim.port) not in known.primaries
    await store.aclose()


# ── Databases ──


@asynccontextmanager
async def standby(*, durable_ends: bool) -> AsyncIterator[Play]:
    """The standby hears nothing for a while, and then takes over. The name leads there."""
    async with a_pair() as pair:
        with Proxy(pair.primary.port) as proxy:
            url = proxy.url(pair.primary.url)

            async def strike(load: Load) -> None:
                await pair.part()
                await asyncio.sleep(SECONDS)
                if not durable_ends:
                    await asyncio.to_thread(goes_on, load)
                await pair.fail_over()
                proxy.target = pair.standby.port

            yield Play(SQLStore.from_url(url, durable_ends=durable_ends), strike)


@asynccontextmanager
async def database(kind: str, *settings: str) -> AsyncIterator[Play]:
    server = SERVERS[kind]()
    try:
        await asyncio.to_thread(server.start)
        await made_tables(server)
        await server.say(*settings)

        async def strike(load: Load) -> None:
            await asyncio.to_thread(server.restart)

        yield Play(SQLStore.from_url(server.url), strike)
    finally:
        await asyncio.to_thread(server.remove)


# ── The table ──

NEEDS_NAMESPACES = "network namespaces are for root, with iproute2"
Revives = Literal["none", "some", "perhaps"]


@dataclass(frozen=True)
class Row:
    """What happens, and what that may do to ends that were acknowledged."""

    what: str
    servers: Servers
    revives: Revives = "none"
    ends_all: bool = False
    """The app ends all sessions at ``store.restored``."""
    needs: str | None = None


ROWS = (
    Row("Sentinel: the primary dies, no `durable_ends`", partial(sentinel, dies, 0), "perhaps"),
    Row("Sentinel: the primary dies, `durable_ends=1`", partial(sentinel, dies, 1)),
    Row('Sentinel: the primary dies, `durable_ends="all"`', partial(sentinel, dies, "all")),
    Row("Sentinel: the primary hangs and comes back, `durable_ends=1`", partial(sentinel, hangs, 1)),
    Row(
        "Sentinel: the primary and a replica are cut off, `durable_ends=1`",
        partial(sentinel, is_cut_off_with_a_replica, 1, Split),
        "perhaps",
        needs=NEEDS_NAMESPACES,
    ),
    Row(
        'Sentinel: the primary and a replica are cut off, `durable_ends="all"`',
        partial(sentinel, is_cut_off_with_a_replica, "all", Split),
        needs=NEEDS_NAMESPACES,
    ),
    Row(
        'Sentinel: the primary restarts unnoticed, snapshots, `durable_ends="all"`',
        partial(sentinel, restarts, "all", Slow),
        "some",
    ),
    Row(
        "Sentinel: the same, and the app ends all at `store.restored`",
        partial(sentinel, restarts, "all", Slow),
        ends_all=True,
    ),
    Row(
        'Sentinel: the primary restarts unnoticed, `appendonly yes`, `durable_ends="all"`',
        partial(sentinel, restarts, "all", SlowWithLog),
    ),
    Row("one server: restarts, snapshots", partial(one, *SNAPSHOTS), "some"),
    Row("one server: the same, and the app ends all at `store.restored`", partial(one, *SNAPSHOTS), ends_all=True),
    Row("one server: restarts, `appendonly yes`", partial(one, *LOG)),
    Row("cluster: a primary dies, `durable_ends=1`", partial(cluster, one_dies, Cluster)),
    Row("cluster: a primary hangs and comes back, `durable_ends=1`", partial(cluster, one_hangs, Cluster)),
    Row(
        "cluster: a primary is cut off from the other nodes, `durable_ends=1`",
        partial(cluster, partial(is_cut_off, clients_too=False), Apart),
        needs=NEEDS_NAMESPACES,
    ),
    Row(
        "cluster: a primary is cut off from everybody, `durable_ends=1`",
        partial(cluster, partial(is_cut_off, clients_too=True), Apart),
        needs=NEEDS_NAMESPACES,
    ),
    Row("PostgreSQL: a standby that lags takes over", partial(standby, durable_ends=False), "some", needs="postgresql"),
    Row("PostgreSQL: the same, `durable_ends=True`", partial(standby, durable_ends=True), needs="postgresql"),
    Row("PostgreSQL: crashes and restarts", partial(database, "postgresql"), needs="postgresql"),
    Row(
        "PostgreSQL: the same, `synchronous_commit = off`",
        partial(database, "postgresql", "ALTER SYSTEM SET synchronous_commit = off", "SELECT pg_reload_conf()"),
        "perhaps",
        needs="postgresql",
    ),
    Row("MariaDB: crashes and restarts", partial(database, "mariadb"), needs="mariadb"),
    Row(
        "MariaDB: the same, `innodb_flush_log_at_trx_commit = 0`",
        partial(database, "mariadb", "SET GLOBAL innodb_flush_log_at_trx_commit = 0"),
        "perhaps",
        needs="mariadb",
    ),
)

SHORT = [row for row in ROWS if row.revives != "perhaps"]


@dataclass
class Outcome:
    ended: int = 0
    revived: int = 0
    lost: int = 0
    seconds: float = 0.0


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    print("\n| what happens | ends acknowledged | undone | writes lost | refused for |\n|---|---|---|---|---|")
    print(*rows, sep="\n")


async def play(row: Row, outcome: Outcome) -> None:
    over = asyncio.Event()
    # asyncpg leaves futures behind in connections that break while they are opened or cancelled.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)

    async def on_event(event: Event) -> None:
        if event.name == "store.restored" and row.ends_all:
            await sessions.end_all(before=event.at)
            over.set()

    async with row.servers() as played:
        sessions = Sessions(played.store, on_event=on_event, devices=Devices(max_sessions=None))  # none ends by that
        app = app_with(sessions)
        load = Load(app)
        await asyncio.to_thread(goes_on, load)
        await played.strike(load)
        await recovered(app, shards=12)
        if row.ends_all:
            await asyncio.wait_for(over.wait(), 30)
        await asyncio.sleep(SECONDS / 2)
        said = await load.stop()
        await played.store.aclose()
    print(row.what, said)
    assert said["wrong"] == []
    assert set(said["answers"]) <= {200, 503}
    assert said["answers"][200] > 50
    outcome.ended += said["ended"]
    outcome.revived += said["revived"]
    outcome.lost += said["lost"]
    outcome.seconds = max(outcome.seconds, said["seconds"])


@pytest.mark.parametrize("row", ROWS if ROUNDS else SHORT, ids=lambda row: row.what)
async def test_what_was_acknowledged_holds(row: Row, table: list[str]) -> None:
    if row.needs == NEEDS_NAMESPACES and not may_make_namespaces():
        require(NEEDS_NAMESPACES)
    if row.needs in SERVERS and SERVERS[row.needs].find() is None:
        require(f"no {row.needs} server is installed here")
    outcome = Outcome()

    for _ in range(max(ROUNDS, 1)):
        await play(row, outcome)

    lost = "all, on purpose" if row.ends_all else outcome.lost
    table.append(f"| {row.what} | {outcome.ended:,} | {outcome.revived} | {lost} | {outcome.seconds:.1f} s |")
    assert outcome.ended >= ENDS
    if row.revives != "perhaps":
        assert (outcome.revived > 0) == (row.revives == "some")
