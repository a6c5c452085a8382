"""The client of a cluster: which node is asked, what is remembered of it, and who is notified of ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import signal
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import ConnectionPool
from redis.crc import key_slot
from redis.exceptions import RedisError

from asgi_sessions import ConfigurationError, RedisStore, StoreError
from asgi_sessions._core.token import owner_of, shard_of
from asgi_sessions.rekey import rekey
from asgi_sessions.stores.redis._client import Refused, new_connection
from asgi_sessions.stores.redis._cluster import (
    Address,
    ClusterClient,
    Map,
    _redirected,
    _rows_of,
    slot_of,
    slot_of_shard,
)
from asgi_sessions.stores.redis._subscriber import Subscriber
from asgi_sessions.testing import a_record
from tests.clusters import Cluster, until
from tests.conftest import Server
from tests.ports import free_port
from tests.proxy import Proxy
from tests.support import Browser, app_with, destroy, log_in, put, read
from tests.test_operators import rights

HERE = Address("127.0.0.1", 7000)


@pytest.fixture
async def store(cluster: Cluster) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_cluster(cluster.url)
    yield store
    await store.aclose()
    for node in cluster.nodes[:3]:
        node.ask("FLUSHALL")


def a_map(store: RedisStore) -> Map:
    assert isinstance(store._client, ClusterClient)
    return store._client._cluster.map()


def users_at(number: int) -> Any:
    """Names of users whose slots are with the primary of this number, at first."""
    names = (f"user {n}" for n in range(10**6))
    return (name for name in names if slot_of_shard(_shard(name)) in Cluster.SHARES[number])


def _shard(user: str) -> str:
    return shard_of(owner_of(user))


# ── Slots and maps ──


@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", min_size=3, max_size=3))
def test_a_slot_is_what_the_servers_take_it_for(shard: str) -> None:
    name = f"asgi-sessions:{{{shard}}}:s:xyz"

    assert slot_of(name) == slot_of_shard(shard) == key_slot(name.encode())


@pytest.mark.parametrize(
    ("host", "found"),
    [
        (b"192.0.2.7", "192.0.2.7"),
        (b"node-7.example", "node-7.example"),
        (b"", "127.0.0.1"),
        (None, "127.0.0.1"),
        (b"?", "127.0.0.1"),
    ],
    ids=["an address", "a name", "no name", "nothing", "an unknown name"],
)
def test_a_node_without_a_name_is_where_it_was_asked(host: bytes | None, found: str) -> None:
    rows = [[0, 16383, [host, 7001, b"id", []], [host, 7002, b"id", []]]]

    assert _rows_of(rows, HERE) == [(range(16384), [Address(found, 7001), Address(found, 7002)])]


@pytest.mark.parametrize(
    "rows",
    [
        [7],
        [[]],
        [[0, 5]],
        [[0, 5, 7]],
        [[0, 5, []]],
        [[0, 5, [b"\xff", 1]]],
        [[0, 5, [b"a", b"x"]]],
        [[b"a", 5, [b"a", 1]]],
    ],
)
def test_a_map_that_cannot_be_read_is_trouble_and_no_crash(rows: list[Any]) -> None:
    with pytest.raises(RedisError, match="map"):
        _rows_of(rows, HERE)


def test_slots_that_do_not_exist_are_on_no_map() -> None:
    assert _rows_of([[0, 99999, [b"a", 1]], [5, 4, [b"a", 1]], [-1, 4, [b"a", 1]]], HERE) == []


@pytest.mark.parametrize(
    ("text", "leads_to"),
    [
        ("MOVED 3999 192.0.2.7:6381", (3999, Address("192.0.2.7", 6381))),
        ("ASK 3999 2001:db8::7:6381", (3999, Address("2001:db8::7", 6381))),
        ("MOVED 3999 :6381", (3999, Address("127.0.0.1", 6381))),
        ("MOVED 3999 ?:6381", (3999, Address("127.0.0.1", 6381))),
    ],
)
def test_a_node_that_sends_on_is_understood(text: str, leads_to: tuple[int, Address]) -> None:
    assert _redirected(Refused(text), HERE) == leads_to


@pytest.mark.parametrize("text", ["MOVED", "MOVED x y", "MOVED 1 nowhere", "ASK 5 a:b"])
def test_a_node_that_sends_on_to_nowhere_is_a_store_error(text: str) -> None:
    with pytest.raises(StoreError, match="redirect without an address"):
        _redirected(Refused(text), HERE)


# ── What is asked of whom ──


async def test_requests_share_a_connection_to_each_node(store: RedisStore, cluster: Cluster) -> None:
    app = app_with(store)
    browsers = [Browser(app) for _ in range(120)]
    await asyncio.gather(*(browser.do(log_in(f"user {number}")) for number, browser in enumerate(browsers)))
    before = [node.ask("INFO", "stats")["total_connections_received"] for node in cluster.nodes[:3]]

    for _ in range(3):
        await asyncio.gather(*(browser.do(put(a=1)) for browser in browsers))

    after = [node.ask("INFO", "stats")["total_connections_received"] for node in cluster.nodes[:3]]
    assert [late - early for early, late in zip(before, after, strict=True)] == [1, 1, 1]  # that of the question
    own = [each for (_, purpose), each in a_map(store)._connections.items() if purpose == "requests"]
    assert len(own) == 3


async def test_one_node_is_enough_to_find_the_others(cluster: Cluster) -> None:
    nobody = free_port()
    store = RedisStore.from_cluster([f"redis://127.0.0.1:{nobody}", cluster.url])
    record = a_record()

    await store.create(record)

    assert await store.load(record.key) == record
    assert set(a_map(store).primaries) == {Address("127.0.0.1", node.port) for node in cluster.nodes[:3]}
    await store.aclose()


async def test_a_replica_shows_the_way(cluster: Cluster) -> None:
    store = RedisStore.from_cluster(f"redis://127.0.0.1:{cluster.nodes[4].port}")
    record = a_record()

    await store.create(record)

    assert await store.load(record.key) == record
    await store.aclose()


async def test_where_there_is_no_cluster_it_is_a_store_error(own_server: Server) -> None:
    store = RedisStore.from_cluster(own_server.url.removesuffix("/0"))
    with pytest.raises(StoreError):
        await store.load(a_record().key)

    own_server.start()  # a server, but no cluster
    with pytest.raises(StoreError):
        await store.load(a_record().key)
    await store.aclose()


async def test_a_map_that_is_wrong_is_put_right_by_the_nodes(store: RedisStore) -> None:
    records = [a_record(owner=next(users_at(number))) for number in range(3)]
    for record in records:
        await store.create(record)
    known = a_map(store)
    first, second, third = known.primaries
    known.at = [{first: second, second: third, third: first}[there] for there in known.at if there]

    assert [await store.load(record.key) for record in records] == records


async def test_where_a_slot_has_moved_to_is_remembered(store: RedisStore, cluster: Cluster) -> None:
    record = a_record(owner=next(users_at(0)))
    slot = slot_of_shard(record.key[:3])
    await store.create(record)
    source, target = cluster.nodes[:2]

    await asyncio.to_thread(cluster.move_slots, source, target, range(slot, slot + 1))
    found = await store.load(record.key)
    known = a_map(store).at[slot]

    await asyncio.to_thread(cluster.move_slots, target, source, range(slot, slot + 1))
    assert found == record
    assert known == Address(target.host, target.port)


async def test_who_is_under_suspicion_is_asked_last_for_the_map(
    store: RedisStore, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hang, and each look at the map would begin with waiting for it."""
    monkeypatch.setattr("asgi_sessions.stores.redis._cluster.REFRESH_PAUSE", 0)
    await store.load(a_record().key)
    known, node = a_map(store), cluster.nodes[0]

    def shown() -> int:
        return int(node.ask("INFO", "commandstats").get("cmdstat_cluster|slots", {"calls": 0})["calls"])

    before = shown()
    for _ in range(25):
        await known.suspect(Address(node.host, node.port))

    assert shown() == before


async def test_the_store_is_used_again_after_it_was_closed(store: RedisStore) -> None:
    record = a_record()
    await store.create(record)
    await store.aclose()

    assert await store.load(record.key) == record


async def test_who_waits_for_the_map_when_the_store_is_closed_hears_a_store_error(proxy: Proxy) -> None:
    """And is not cancelled, which would be the end of a task that nobody cancelled."""
    proxy.hanging = True
    store = RedisStore.from_cluster(f"redis://127.0.0.1:{proxy.port}")
    asking = asyncio.ensure_future(store.load(a_record().key))
    await asyncio.sleep(0.05)

    await store.aclose()
    await asyncio.wait({asking})

    proxy.hanging = False
    assert not asking.cancelled()
    assert isinstance(asking.exception(), StoreError)


async def test_what_is_under_way_when_the_store_is_closed_opens_no_connection_afterwards(cluster: Cluster) -> None:
    """It would belong to nobody: the store has forgotten the map that the request goes by."""
    store = RedisStore.from_cluster(cluster.url)
    key, node = a_record(owner=next(users_at(1))).key, cluster.nodes[1]
    await store.load(key)
    known = a_map(store)
    with cluster.patient():
        node.signal(signal.SIGSTOP)
        asking = asyncio.ensure_future(store.load(key))
        await asyncio.sleep(0.05)

        await store.aclose()
        with pytest.raises(StoreError):
            await asking
        node.signal(signal.SIGCONT)

    assert known._connections == {}
    assert known._refreshing is None or known._refreshing.done()


def test_each_event_loop_has_its_own_connections(cluster: Cluster) -> None:
    store, record = RedisStore.from_cluster(cluster.url), a_record()

    asyncio.run(store.create(record))

    assert asyncio.run(store.load(record.key)) == record


@pytest.mark.parametrize("servers", ["a cluster", "one server"])
def test_event_loops_that_have_ended_are_let_go(cluster: Cluster, valkey_url: str, servers: str) -> None:
    """A worker thread that calls ``asyncio.run()`` for each job would keep them all, and their connections."""
    is_cluster = servers == "a cluster"
    store = RedisStore.from_cluster(cluster.url) if is_cluster else RedisStore.from_url(valkey_url)
    loops = []

    async def job() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await store.load(a_record().key)

    for _ in range(10):
        asyncio.run(job())
    gc.collect()

    assert sum(loop() is not None for loop in loops) == 1  # the last one, until there is another


@pytest.mark.parametrize(
    "url",
    ["redis://localhost:6379/1", "unix:///run/redis.sock", "nonsense", [], ["redis://localhost", "nonsense"], [7], 7],
)
def test_what_leads_to_no_cluster_fails_when_the_store_is_built(url: Any) -> None:
    with pytest.raises(ConfigurationError, match="from_cluster"):
        RedisStore.from_cluster(url)


@pytest.mark.parametrize(
    "other",
    ["rediss://two:7000", "redis://two:7000", "redis://:s3cret@two:7000?socket_timeout=0.2", "redis://:other@two:7000"],
    ids=["in TLS", "in the password: one has none", "in an option", "in the password"],
)
def test_nodes_whose_urls_differ_fail_when_the_store_is_built(other: str) -> None:
    """Only those of the first would count: a node that was given with TLS would be sent the password without."""
    with pytest.raises(ConfigurationError, match="differ") as refused:
        RedisStore.from_cluster(["redis://:s3cret@one:7000", other])

    assert "s3cret" not in str(refused.value)
    RedisStore.from_cluster(["redis://:s3cret@one:7000", "redis://:s3cret@two:7001/0"])


# ── A node in trouble ──


async def test_of_several_nodes_the_first_that_answers_tells_of_the_others(cluster: Cluster) -> None:
    """Those that hang are passed over within the time that a request has."""
    with Proxy(cluster.nodes[0].port) as one, Proxy(cluster.nodes[1].port) as two:
        one.hanging = two.hanging = True
        store = RedisStore.from_cluster([one.url(cluster.url), two.url(cluster.url), cluster.url])

        response = await Browser(app_with(store)).do(put(a=1))

        assert response.status == 200
        one.hanging = two.hanging = False
        await store.aclose()


async def test_what_any_node_may_answer_is_asked_of_one_that_does(cluster: Cluster) -> None:
    """The first request asks for the policy of the servers too, and is not to wait for another node than its own that hangs."""
    asked = set()
    for _ in range(16):
        store = RedisStore.from_cluster(cluster.url)
        asked.add(await a_map(store).find(None))
        await store.aclose()

    assert asked == {Address("127.0.0.1", cluster.nodes[0].port)}


async def test_a_node_that_shows_nonsense_is_passed_over(cluster: Cluster) -> None:
    with Proxy(cluster.nodes[0].port) as proxy:
        store = RedisStore.from_cluster([proxy.url(cluster.url), cluster.url])
        known = a_map(store)
        await known.connection_to(Address("127.0.0.1", proxy.port), "map").ready()
        proxy.garbage = b"$2\r\nok\r\n*1\r\n*1\r\n:5\r\n"

        await known.refresh()

        assert known.primaries
        assert proxy.garbage == b""  # it was shown
        await store.aclose()


async def test_a_node_that_hangs_is_left_alone_and_the_others_are_asked(cluster: Cluster, store: RedisStore) -> None:
    """Each node may fail by itself: a third of the users hear 503 at once, and two thirds hear nothing of it."""
    app = app_with(store)
    there, elsewhere = [Browser(app) for _ in range(8)], Browser(app)
    names = users_at(1)
    for browser in there:
        await browser.do(log_in(next(names)))
    await elsewhere.do(log_in(next(users_at(0))))

    assert store.server_of is not None
    with cluster.patient():
        cluster.nodes[1].signal(signal.SIGSTOP)
        try:
            answers = await asyncio.gather(*(browser.do(put(a=1)) for browser in there))
            others = await elsewhere.do(put(a=1))
            is_left_alone = app._manager.guard.breakers.of(store.server_of(there[0].key)).is_open
        finally:
            cluster.nodes[1].signal(signal.SIGCONT)

    assert {answer.status for answer in answers} == {503}
    assert is_left_alone
    assert others.status == 200


async def test_who_hung_is_asked_about_before_it_is_asked_again() -> None:
    """It was replaced meanwhile. A request is cut off by its own deadline, so nobody hears of the connection's time limit."""
    with Cluster() as own:
        store = RedisStore.from_cluster(own.url)
        alice = Browser(app_with(store))
        await alice.do(log_in(next(users_at(1))))
        own.nodes[1].signal(signal.SIGSTOP)
        try:
            await asyncio.to_thread(
                until, lambda: own.nodes[4].ask("ROLE")[0] in (b"master", "master"), "a new primary"
            )
            await asyncio.to_thread(until, lambda: own.is_ok(own.nodes[4]), "all slots")

            statuses = [(await alice.do(put(a=1))).status for _ in range(3)]
        finally:
            own.nodes[1].signal(signal.SIGCONT)
        await store.aclose()

    assert statuses == [503, 200, 200]


# ── Least privilege ──

MORE_RIGHTS = ["+cluster|slots", "+cluster|info", "+asking", "+wait"]
"""Those that the page names for a cluster with ``durable_ends``, beside the others."""


@pytest.mark.parametrize("left_out", [None, *MORE_RIGHTS])
async def test_the_rights_of_the_page_are_enough_on_a_cluster(cluster: Cluster, left_out: str | None) -> None:
    words = [word.replace("asgi-sessions:", "acl:") for word in rights() if word not in ("resetkeys", "resetchannels")]
    for node in cluster.nodes:
        node.ask("ACL", "SETUSER", "sessions", "reset", *words, *(word for word in MORE_RIGHTS if word != left_out))
    store = RedisStore.from_cluster(
        cluster.url.replace("redis://", "redis://sessions:s3cret@"), prefix="acl", durable_ends=1
    )
    alice, user = Browser(app_with(store)), next(users_at(0))
    slot = slot_of_shard(_shard(user))

    answers = [(await alice.do(log_in(user))).status]
    with cluster.half_moved(slot, cluster.nodes[0], cluster.nodes[1], lambda _: True):
        answers.append((await alice.do(put(a=1))).status)
    cluster.move_slots(cluster.nodes[1], cluster.nodes[0], range(slot, slot + 1))
    answers.append((await alice.do(destroy)).status)

    await store.aclose()
    for node in cluster.nodes:
        node.ask("ACL", "DELUSER", "sessions")
        if node in cluster.nodes[:3]:
            node.ask("FLUSHALL")
    # Without CLUSTER INFO a node that is cut off is not told from the others: nobody is, here.
    assert (answers == [200, 200, 200]) is (left_out in (None, "+cluster|info"))


# ── Ends ──


@pytest.fixture
async def listening(store: RedisStore) -> AsyncIterator[tuple[Any, list[str], list[str]]]:
    ended: list[str] = []
    gaps: list[str] = []
    made = store.listen(ended.append, gaps.append)
    yield made, ended, gaps
    await made.aclose()


async def soon(condition: Any) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - a look now and then is enough
                await asyncio.sleep(0.01)
    return bool(condition())


async def test_ends_are_received_at_every_node(store: RedisStore, cluster: Cluster, listening: Any) -> None:
    subscriber, ended, _ = listening
    records = [a_record(owner=next(users_at(number))) for number in range(3)]
    for record in records:
        await store.create(record)
        subscriber.add(record.key[:3])
    assert await soon(lambda: subscriber.is_live)
    other = RedisStore.from_cluster(cluster.url)

    for record in records:
        await other.delete(record.key)

    assert await soon(lambda: sorted(ended) == sorted(record.id for record in records))
    await other.aclose()


async def test_ends_are_received_where_the_slot_has_moved_to(
    store: RedisStore, cluster: Cluster, listening: Any
) -> None:
    subscriber, ended, gaps = listening
    record = a_record(owner=next(users_at(0)))
    shard, slot = record.key[:3], slot_of_shard(record.key[:3])
    await store.create(record)
    subscriber.add(shard)
    assert await soon(lambda: gaps == [shard])
    source, target = cluster.nodes[:2]

    await asyncio.to_thread(cluster.move_slots, source, target, range(slot, slot + 1))
    assert await soon(lambda: len(gaps) > 1 and subscriber.is_live)
    await store.delete(record.key)

    assert await soon(lambda: ended == [record.id])
    await asyncio.to_thread(cluster.move_slots, target, source, range(slot, slot + 1))


async def test_a_shard_that_a_node_refuses_is_asked_for_more_and_more_seldom(cluster: Cluster) -> None:
    """Each try is a gap for the other shards, and whatever is watched there is asked for."""
    node, gaps = cluster.nodes[0], list[str]()
    pool = ConnectionPool(host=node.host, port=node.port, protocol=2)
    subscriber = Subscriber(
        lambda: new_connection(pool), lambda shard: f"ears:{{{shard}}}:", lambda _: None, gaps.append
    )
    here, elsewhere = (_shard(next(users_at(number))) for number in (0, 1))
    subscriber.add(here)
    subscriber.add(elsewhere)

    rests = await soon(lambda: subscriber._pause > 0.5)

    await subscriber.aclose()
    assert rests
    assert set(gaps) == {here}


async def test_idle_subscribers_are_closed(store: RedisStore, listening: Any) -> None:
    subscriber, _, _ = listening
    await store.load(a_record().key)
    shards = [_shard(next(users_at(number))) for number in range(3)]
    for shard in shards:
        subscriber.add(shard)
    assert await soon(lambda: subscriber.is_live)

    for shard in shards[1:]:
        subscriber.remove(shard)

    assert await soon(lambda: len(subscriber._subscribers) == 1 and not subscriber._closing)
    assert subscriber.is_live


@pytest.mark.parametrize("deaf", [False, True], ids=["the replica has heard", "the replica has not"])
async def test_an_end_waits_for_the_replica_of_its_own_node(cluster: Cluster, deaf: bool) -> None:
    store = RedisStore.from_cluster(cluster.url, durable_ends=1)
    app = app_with(store)
    alice, user = Browser(app), next(users_at(2))
    await alice.do(log_in(user))
    replica = cluster.nodes[5]
    if deaf:
        replica.signal(signal.SIGSTOP)

    try:
        response = await alice.another().do(destroy)
    finally:
        replica.signal(signal.SIGCONT)

    assert response.status == (503 if deaf else 200)
    assert (await read(alice))["user_id"] is None
    assert await app.sessions.revoke_all(user) == 0
    await store.aclose()


@pytest.mark.parametrize("gone_ahead", [False, True], ids=["not moved yet", "moved already"])
async def test_an_end_waits_for_a_replica_while_its_slot_moves(cluster: Cluster, gone_ahead: bool) -> None:
    """The node takes no new key of such a slot, and so no mark in it to wait for."""
    store = RedisStore.from_cluster(cluster.url, prefix="ends", durable_ends=1)
    alice, user = Browser(app_with(store)), next(users_at(0))
    await alice.do(log_in(user))
    source, target = cluster.nodes[:2]
    slot = slot_of_shard(_shard(user))

    with cluster.half_moved(slot, source, target, lambda _: gone_ahead):
        response = await alice.another().do(destroy)
        state = await read(alice)
    await asyncio.to_thread(cluster.move_slots, target, source, range(slot, slot + 1))

    assert response.status == 200
    assert state["user_id"] is None
    await store.aclose()


@pytest.mark.parametrize("is_there", [False, True], ids=["on its way to another node", "with another node already"])
async def test_an_end_whose_mark_is_refused_is_not_asked_for_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """It has happened. The second time it would say that there was nothing to end."""
    store = RedisStore.from_cluster(cluster.url, prefix="ends", durable_ends=1)
    app, names = app_with(store), users_at(0)
    alice, other = next(names), next(names)
    await Browser(app).do(log_in(alice))
    await Browser(app).do(log_in(other))
    source, target = cluster.nodes[:2]
    slot, choices, chosen = slot_of_shard(_shard(other)), random.choices, iter([_shard(other)])

    with monkeypatch.context() as patched, contextlib.ExitStack() as moving:
        patched.setattr(random, "choices", lambda *args, **more: next(chosen, None) or choices(*args, **more))
        if is_there:
            await asyncio.to_thread(cluster.move_slots, source, target, range(slot, slot + 1))
        else:
            moving.enter_context(cluster.half_moved(slot, source, target, lambda _: False))
        ended = await app.sessions.revoke_all(alice)
    await asyncio.to_thread(cluster.move_slots, target, source, range(slot, slot + 1))

    assert next(chosen, None) is None  # it was tried
    assert ended == 1
    await store.aclose()


async def test_a_slot_that_stays_half_moved_is_no_trouble_for_the_others_of_its_node(
    store: RedisStore, cluster: Cluster
) -> None:
    """Who would log in there is refused; the node answers, and is not to be left alone for it."""
    app, names = app_with(store), users_at(0)
    stuck, other, staying = next(names), next(names), Browser(app)
    await staying.do(log_in(other))
    await Browser(app).do(log_in(stuck))
    source, target = cluster.nodes[:2]
    slot = slot_of_shard(_shard(stuck))

    with cluster.half_moved(slot, source, target, lambda name: ":u:" in name):
        refused = await asyncio.gather(*(Browser(app).do(log_in(stuck)) for _ in range(6)))
        saved = await staying.do(put(a=1))
    await asyncio.to_thread(cluster.move_slots, target, source, range(slot, slot + 1))

    assert {answer.status for answer in refused} == {503}
    assert saved.status == 200


async def test_nodes_that_name_each_other_are_not_asked_without_a_pause(store: RedisStore, cluster: Cluster) -> None:
    """A slot that was left half moved: its new node does not know of it, and its old one sends there."""
    source, target = cluster.nodes[:2]
    key = a_record(owner=next(users_at(0))).key
    slot = slot_of_shard(key[:3])
    await store.load(key)
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))

    def sent_on() -> int:
        return int(source.ask("INFO", "errorstats").get("errorstat_ASK", {"count": 0})["count"])

    before = sent_on()
    try:
        with pytest.raises(StoreError):
            await store.load(key)
    finally:
        source.ask("CLUSTER", "SETSLOT", slot, "STABLE")

    assert 0 < sent_on() - before < 30


async def test_replicas_that_do_not_hear_of_ends_are_no_trouble_for_others(cluster: Cluster) -> None:
    """Their primary answers: it is not to be left alone because of them."""
    store = RedisStore.from_cluster(cluster.url, prefix="ends", durable_ends=1)
    app, names = app_with(store), users_at(2)
    leaving, staying = [Browser(app) for _ in range(8)], Browser(app)
    for browser in (*leaving, staying):
        await browser.do(log_in(next(names)))

    cluster.nodes[5].signal(signal.SIGSTOP)
    try:
        answers = await asyncio.gather(*(browser.do(destroy) for browser in leaving))
        other = await staying.do(put(a=1))
    finally:
        cluster.nodes[5].signal(signal.SIGCONT)

    assert {answer.status for answer in answers} == {503}
    assert other.status == 200
    await store.aclose()


# ── Walking through ──


async def test_every_record_of_a_cluster_is_walked_through(store: RedisStore) -> None:
    records = [a_record(number=number, owner=f"user {number}") for number in range(150)]
    for record in records:
        await store.create(record)

    found: list[str] = []
    cursor, shares = "", [0.0]
    while cursor or len(shares) == 1:
        keys, cursor = await store.scan(cursor, 40)
        found += keys
        shares.append(store.walked(cursor) or 0.0 if cursor else 1.0)

    assert sorted(found) == sorted(record.key for record in records)
    assert shares == sorted(shares)
    assert len(shares) > 16384 // 256


async def test_a_cluster_is_sealed_anew(cluster: Cluster) -> None:
    old, new = "o" * 15 + "ld secret 0123456789", "n" * 15 + "ew secret 0123456789"
    store = RedisStore.from_cluster(cluster.url)
    browsers = [Browser(app_with(store, secret_keys=[old])) for _ in range(30)]
    for number, browser in enumerate(browsers):
        await browser.do(log_in(f"user {number}"))

    progress = await rekey(store, [new, old])

    assert (progress.sealed, progress.damaged) == (30, 0)
    assert (await rekey(store, [new, old])).sealed == 0
    again = app_with(store, secret_keys=[new, old])
    states = [await read(Browser(again, browser.token)) for browser in browsers]
    assert [state["user_id"] for state in states] == [f"user {number}" for number in range(30)]
    await store.aclose()


async def test_slots_that_moved_since_the_map_was_drawn_are_walked_through_where_they_are(
    store: RedisStore, cluster: Cluster
) -> None:
    """A node that is asked for the keys of a slot which it has no more says "none", and not where they are."""
    record = a_record(owner=next(users_at(0)))
    slot = slot_of_shard(record.key[:3])
    await store.create(record)
    source, target = cluster.nodes[:2]
    await asyncio.to_thread(cluster.move_slots, source, target, range(slot, slot + 1))

    found, _ = await store.scan(str(slot), 10)

    await asyncio.to_thread(cluster.move_slots, target, source, range(slot, slot + 1))
    assert record.key in found


async def test_a_slot_that_is_on_its_way_is_not_walked_through(store: RedisStore, cluster: Cluster) -> None:
    """Some of its keys are here and some there, and some would be missed."""
    record = a_record(owner=next(users_at(0)))
    slot = slot_of_shard(record.key[:3])
    await store.create(record)
    source, target = cluster.nodes[:2]

    with cluster.half_moved(slot, source, target, lambda _: True), pytest.raises(StoreError, match="is moving to"):
        await store.scan(str(slot), 10)
    await asyncio.to_thread(cluster.move_slots, target, source, range(slot, slot + 1))
