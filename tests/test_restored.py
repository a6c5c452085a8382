"""A server that loses or brings back sessions: its settings are warned of, and what may have happened is an event."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from asgi_sessions import Event, RedisStore, Sessions, SessionWarning, StoreError
from asgi_sessions.stores.redis._server import Runs, advice, info_in, snapshots_in
from asgi_sessions.testing import a_record
from tests.clusters import AT_ONCE, Cluster, Node, Nodes, Watched, until
from tests.conftest import Server
from tests.ports import free_port
from tests.support import Browser, app_with, destroy, log_in, put, read

pytestmark = pytest.mark.timeout(120)

SNAPSHOTS = ("--save", "3600 1 300 100")


def restored(heard: list[Event]) -> list[dict[str, Any]]:
    return [dict(event.details) for event in heard if event.name == "store.restored"]


async def eventually(true: Any) -> None:
    give_up = time.monotonic() + 10
    while not true():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)


# ── Settings ──


async def said_of(store: RedisStore, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of a server's settings, while the store is used for a while."""
    caplog.set_level(logging.WARNING, "asgi_sessions")
    browser = Browser(app_with(store))
    await browser.do(log_in("alice"))
    await browser.do(put(long="x" * 20_000))
    await browser.do(destroy)
    await store.aclose()
    return [line for line in caplog.messages if line.startswith("store.settings")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (SNAPSHOTS, ["it has no append-only file; it keeps snapshots", "appendonly yes"]),
        ((*SNAPSHOTS, "--appendonly", "yes"), []),
        (("--appendonly", "yes"), []),
        ((), []),
        ((*SNAPSHOTS, "--rename-command", "CONFIG", ""), ["if it keeps snapshots", "appendonly yes"]),
        ((*SNAPSHOTS, "--rename-command", "INFO", ""), []),
    ],
    ids=["snapshots", "snapshots and log", "log", "nothing", "no CONFIG", "no INFO"],
)
async def test_settings_that_bring_sessions_back_are_warned_of_once(
    own_server: Server, caplog: pytest.LogCaptureFixture, options: tuple[str, ...], words: list[str]
) -> None:
    own_server.options = options
    own_server.start()

    said = await said_of(RedisStore.from_url(own_server.url), caplog)

    assert len(said) == bool(words)
    assert all(f"host=127.0.0.1:{own_server.port}: " in line and all(word in line for word in words) for line in said)


async def test_of_a_client_of_the_apps_too(own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    own_server.options = SNAPSHOTS
    own_server.start()
    async with redis.asyncio.Redis.from_url(own_server.url) as client:
        said = await said_of(RedisStore(client), caplog)

    assert len(said) == 1
    assert "it has no append-only file; it keeps snapshots" in said[0]


@pytest.mark.parametrize(
    ("wanted", "word"),
    [(0, "durable_ends='all'"), (1, None), ("all", None), (2, "durable_ends=2, but it has 1 replicas")],
)
async def test_replicas_and_what_is_asked_of_them(
    caplog: pytest.LogCaptureFixture, wanted: Any, word: str | None
) -> None:
    with Pair() as pair:
        said = await said_of(RedisStore.from_url(pair.url, durable_ends=wanted), caplog)

    assert len(said) == (word is not None)
    assert all(str(word) in line for line in said)


class Pair(Nodes):
    """A primary and a replica."""

    def build(self) -> None:
        port = free_port()
        primary = self.add(port, *AT_ONCE)
        self.add(free_port(), "--replicaof", f"127.0.0.1 {port}", *AT_ONCE)
        until(lambda: primary.ask("INFO", "replication").get("slave0", {}).get("state") == "online", "a replica")

    @property
    def primary(self) -> Node:
        return self.nodes[0]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.primary.port}"


@pytest.fixture
def uneven(cluster: Cluster) -> Iterator[Cluster]:
    """One primary of three keeps snapshots and evicts. The others have an append-only file."""
    ways: list[dict[str, tuple[str, str]]] = [
        {"appendonly": ("yes", "no")},
        {"appendonly": ("yes", "no")},
        {"save": ("3600 1", ""), "maxmemory-policy": ("allkeys-lru", "noeviction")},
    ]
    for is_over in (False, True):
        for node, settings in zip(cluster.nodes, ways, strict=False):
            for name, values in settings.items():
                node.ask("CONFIG", "SET", name, values[is_over])
        if not is_over:
            yield cluster


@pytest.mark.parametrize("seed", [0, 2, 3], ids=["another primary", "that primary", "a replica"])
async def test_each_primary_of_a_cluster_is_looked_at(
    uneven: Cluster, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    heard: list[Event] = []
    store = RedisStore.from_cluster(f"redis://127.0.0.1:{uneven.nodes[seed].port}", durable_ends=1)
    Sessions(store, on_event=heard.append)
    caplog.set_level(logging.WARNING, "asgi_sessions")

    with pytest.warns(SessionWarning, match="allkeys-lru") as warned:
        await asyncio.gather(*(store.create(a_record(owner=f"user {number}")) for number in range(60)))  # at each node
    await store.aclose()

    said = [line for line in caplog.messages if "it keeps snapshots" in line]
    assert [line.partition(": ")[0] for line in said] == [f"store.settings host=127.0.0.1:{uneven.nodes[2].port}"]
    assert [(event.name, dict(event.details)) for event in heard] == [("store.evicts", {"policy": "allkeys-lru"})]
    assert len(warned) == 1


@pytest.mark.parametrize("answer", [b"", b"hello", None, 7, [], {"a": 1}, {}])
def test_a_strange_answer_says_nothing(answer: Any) -> None:
    said = info_in(answer)

    assert advice(said, snapshots_in(answer), 3) == []
    assert Runs().note(None, None, said, None) is None


# ── Another run ──


async def test_a_restart_is_an_event_and_the_app_can_end_what_came_back(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """It loads a snapshot of a time before the log-out. Nobody else would notice."""
    own_server.options = SNAPSHOTS
    own_server.start()
    heard: list[Event] = []

    async def on_event(event: Event) -> None:
        heard.append(event)
        if event.name == "store.restored":
            await sessions.end_all(before=event.at)

    store = RedisStore.from_url(own_server.url)
    sessions = Sessions(store, on_event=on_event)
    app = app_with(sessions)
    browser = Browser(app)
    await browser.do(log_in("alice"))
    await browser.do(put(long="x" * 20_000))  # a second connection
    thief = Browser(app, browser.token)
    with redis.Redis.from_url(own_server.url) as client:
        client.save()
    assert (await browser.do(destroy)).status == 200
    own_server.restart()

    came_back = await read(thief)

    assert came_back["user_id"] == "alice"
    await eventually(lambda: any(event.details.get("reason") == "revoked_all" for event in heard))
    assert (await read(thief))["user_id"] is None
    assert restored(heard) == [{"host": f"127.0.0.1:{own_server.port}", "reason": "the server restarted"}]
    assert [line for line in caplog.messages if line.startswith("store.restored")] == [
        f"store.restored host=127.0.0.1:{own_server.port} session=None reason=the server restarted"
    ]
    later = Browser(app)
    await later.do(log_in("alice"))
    assert (await read(later))["user_id"] == "alice"
    await store.aclose()


async def test_a_connection_that_breaks_is_none(own_server: Server) -> None:
    own_server.start()
    heard: list[Event] = []
    store = RedisStore.from_url(own_server.url)
    browser = Browser(app_with(store, on_event=heard.append))
    await browser.do(log_in("alice"))
    with redis.Redis.from_url(own_server.url) as client:
        for _ in range(3):
            client.client_kill_filter(_type="normal", skipme=True)
            assert (await browser.do(put(a=1))).status == 200
    await store.aclose()

    assert restored(heard) == []


async def test_a_replica_that_comes_is_none_and_one_that_takes_over_is() -> None:
    """By the name of the server, as services do it: the address stays."""
    with Pair() as pair:
        pair.nodes[1].ask("REPLICAOF", "NO", "ONE")
        heard: list[Event] = []
        store = RedisStore.from_url(pair.url)
        browser = Browser(app_with(store, on_event=heard.append))
        await browser.do(put(a=1))
        pair.nodes[1].ask("REPLICAOF", "127.0.0.1", pair.primary.port)
        await asyncio.to_thread(
            until, lambda: pair.primary.ask("INFO", "replication").get("slave0", {}).get("state") == "online"
        )
        pair.primary.ask("CLIENT", "KILL", "TYPE", "normal")
        await browser.do(put(a=1))
        assert restored(heard) == []

        # It follows the other one, which nobody has heard of, and becomes the primary again.
        pair.nodes[1].ask("REPLICAOF", "NO", "ONE")
        pair.primary.ask("REPLICAOF", "127.0.0.1", pair.nodes[1].port)
        await asyncio.to_thread(until, lambda: pair.primary.ask("INFO", "replication")["master_link_status"] == "up")
        pair.primary.ask("REPLICAOF", "NO", "ONE")
        pair.primary.ask("CLIENT", "KILL", "TYPE", "normal")
        assert (await browser.do(put(a=1))).status == 200
        await store.aclose()

    assert [each["reason"] for each in restored(heard)] == ["the server was a replica meanwhile"]


async def test_a_failover_is_one_event_in_each_process() -> None:
    with Watched() as watched:
        heard: tuple[list[Event], list[Event]] = ([], [])
        stores = [RedisStore.from_sentinel(watched.addresses, watched.SERVICE, durable_ends=1) for _ in range(2)]
        browsers = [Browser(app_with(store, on_event=each.append)) for store, each in zip(stores, heard, strict=True)]
        for browser in browsers:
            await browser.do(log_in("alice"))
        victim = watched.primary
        victim.signal(signal.SIGKILL)
        await asyncio.to_thread(until, lambda: watched.primary is not victim, "a failover")
        for browser in browsers:
            await eventually_saved(browser)
        for store in stores:
            await store.aclose()

        port = watched.primary.port
    assert [restored(each) for each in heard] == [
        [{"host": f"127.0.0.1:{port}", "reason": "another server took over"}]
    ] * 2


async def eventually_saved(browser: Browser) -> None:
    give_up = time.monotonic() + 20
    while (await browser.do(put(a=1))).status != 200:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.05)


async def test_a_node_of_a_cluster_by_itself() -> None:
    with Cluster() as cluster:
        heard: list[Event] = []
        store = RedisStore.from_cluster(f"redis://127.0.0.1:{cluster.nodes[0].port}")
        Sessions(store, on_event=heard.append)
        records = [a_record(owner=f"user {number}") for number in range(60)]  # at each node there are some
        for record in records:
            await store.create(record)
        assert restored(heard) == []
        victim = cluster.nodes[0]
        victim.signal(signal.SIGKILL)

        for record in records:
            await eventually_loaded(store, record.key)
        await store.aclose()

    assert [each["reason"] for each in restored(heard)] == ["another server took over"]
    assert restored(heard)[0]["host"] in {f"127.0.0.1:{node.port}" for node in cluster.nodes[3:]}


async def eventually_loaded(store: RedisStore, key: str) -> None:
    give_up = time.monotonic() + 20
    while True:
        try:
            await store.load(key)
            return
        except StoreError:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.05)


def a_run(**said: str) -> dict[str, str]:
    return {
        "role": "master",
        "run_id": "1",
        "master_replid": "a",
        "master_replid2": "0",
        "master_repl_offset": "9",
        **said,
    }


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, None),
        ({"master_repl_offset": "10"}, None),
        ({"master_repl_offset": "8"}, "its replication offset went back"),
        ({"run_id": "2"}, "the server restarted"),
        ({"run_id": "2", "master_replid": "b", "master_replid2": "a"}, "the server restarted"),
        ({"master_replid": "b"}, None),  # without replicas for an hour
        ({"master_replid": "b", "master_replid2": "a"}, "the server was a replica meanwhile"),
        ({"master_replid": "b", "master_replid2": "c"}, "the server was a replica meanwhile"),
        ({"run_id": "2", "role": "slave"}, None),  # that is for whoever looks for the primary
    ],
)
def test_what_a_server_says_and_what_it_means(said: dict[str, str], why: str | None) -> None:
    runs = Runs()
    assert heard(runs, a_run()) is None

    assert heard(runs, a_run(**said)) == why
    assert heard(runs, a_run(**said)) is None


def heard(runs: Runs, said: dict[str, str], place: object = None, at: object = "here") -> str | None:
    return runs.note(place, at, said, runs.last(place))


def test_answers_that_come_in_another_order_are_no_restart() -> None:
    """Connections are opened at the same time, and the offset moves meanwhile."""
    runs = Runs()
    assert heard(runs, a_run(master_repl_offset="95")) is None
    before = [runs.last(None) for _ in range(3)]
    for asked_after, offset in zip(before, ("100", "105", "103"), strict=True):
        assert runs.note(None, "here", a_run(master_repl_offset=offset), asked_after) is None
    late = runs.last(None)

    assert heard(runs, a_run(run_id="2", master_replid="b")) == "the server restarted"
    assert runs.note(None, "here", a_run(master_repl_offset="104"), late) is None, "an answer of the run before"
    assert heard(runs, a_run(run_id="2", master_replid="b")) is None


def test_a_restart_is_told_from_a_failover() -> None:
    """A server that loads a snapshot says that it followed the history in it."""
    runs = Runs()
    assert heard(runs, a_run(master_replid="0a0")) is None
    again = a_run(run_id="2", master_replid="b", master_replid2="0a0")
    assert heard(runs, again) == "the server restarted"
    assert (
        heard(runs, a_run(run_id="3", master_replid="c", master_replid2="b"), at="there") == "another server took over"
    )


def test_nodes_of_a_cluster_have_runs_of_their_own() -> None:
    runs = Runs()
    first = a_run(master_replid="0a")
    second = a_run(run_id="2", master_replid="b", master_replid2="z")  # that took over before our time
    for at, said in (("A", first), ("B", second), ("A", first)):
        assert heard(runs, said, at, at) is None

    heir = a_run(run_id="3", master_replid="c", master_replid2="0a")
    assert heard(runs, heir, "C", "C") == "another server took over"
    assert heard(runs, heir, "C", "C") is None
    assert heard(runs, a_run(run_id="4", master_replid="d"), "B", "B") == "the server restarted"
