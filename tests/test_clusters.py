"""Sentinel and Cluster, real ones, under a steady load: what was answered "done" is there, whatever dies.

The load is written down as it is acknowledged and checked from outside at the end: a write that was acknowledged is there, or was
lost by a failover, which is counted; a session that was acknowledged as ended answers to nobody.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis.asyncio
from redis.crc import key_slot

from asgi_sessions import ConfigurationError, MemoryStore, RedisStore, SessionMiddleware, Sessions, StoreError, Timeouts
from asgi_sessions._core.record import Record
from asgi_sessions._core.token import owner_of
from asgi_sessions.errors import EndUnconfirmed
from asgi_sessions.stores.redis import LARGE
from asgi_sessions.stores.redis._client import sentinels_of
from asgi_sessions.stores.redis._connection import ConnectionLost
from asgi_sessions.stores.redis._sentinel import Sentinels
from asgi_sessions.testing import FakeClock, UserStoreContract, a_record, moved
from asgi_sessions.tokens import SigningKey, Tokens
from asgi_sessions.trusted_devices import TrustedDevices
from tests.clusters import AT_ONCE, Apart, Cluster, Nodes, Watched, may_make_namespaces, until
from tests.conftest import Server, require
from tests.load import Load, recovered
from tests.ports import free_port
from tests.proxy import Proxy
from tests.support import Browser, app_with, destroy, log_in, put, read, regenerate
from tests.wrapped import Wrapped

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", params=["valkey", "redis"])
def either_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Of both servers: what they say of a slot that moves differs."""
    if request.param == "valkey":
        yield request.getfixturevalue("cluster")
        return
    executable = shutil.which("redis-server")
    if executable is None:
        require("no redis-server to make a cluster of")
    else:
        with Cluster(executable) as made:
            yield made


@pytest.fixture
def watched() -> Iterator[Watched]:
    with Watched() as made:
        yield made


# ── Cluster ──


def a_user(number: int) -> tuple[str, int]:
    """Somebody new whose slot is at the primary of this number, and the slot."""
    while True:
        name = f"user {secrets.token_hex(4)}"
        slot = key_slot(owner_of(name)[:3].encode())
        if slot in Cluster.SHARES[number]:
            return name, slot


async def settled(app: SessionMiddleware, user: str) -> None:
    """Wait until a log-in of this user is answered, and end it again."""
    give_up = time.monotonic() + 10
    browser = Browser(app)
    while (await browser.do(log_in(user))).status != 200:
        assert time.monotonic() < give_up, "it did not settle"
    await browser.do(destroy)


class TestTheContractOnACluster(UserStoreContract):
    @pytest.fixture(params=["from_cluster", "a client of redis-py"])
    async def store(self, request: pytest.FixtureRequest, cluster: Cluster) -> AsyncIterator[RedisStore]:
        client = None
        if request.param == "from_cluster":
            store = RedisStore.from_cluster(cluster.url)
        else:
            client = redis.asyncio.RedisCluster.from_url(cluster.url, protocol=2)
            store = RedisStore(client)
        yield store
        await store.aclose()
        if client is not None:
            await client.aclose()
        for node in cluster.nodes[:3]:
            node.ask("FLUSHALL")


async def test_slots_are_moved_under_load_and_nobody_notices(cluster: Cluster) -> None:
    store = RedisStore.from_cluster(cluster.url)
    app = app_with(store)
    load = Load(app)
    await asyncio.sleep(0.5)
    source, target = cluster.nodes[0], cluster.nodes[1]

    mine = sorted({key_slot(owner_of(f"user {n}")[:3].encode()) for n in range(8)} & set(Cluster.SHARES[0]))
    for slot in mine:
        await asyncio.to_thread(cluster.move_slots, source, target, range(slot, slot + 1))
    await asyncio.sleep(0.5)
    said = await load.stop()

    for slot in mine:
        await asyncio.to_thread(cluster.move_slots, target, source, range(slot, slot + 1))
    await store.aclose()
    assert (said["lost"], said["revived"], said["wrong"]) == (0, 0, [])
    assert said["answers"][200] > 50


# What of a user's slot has moved to the next node when something is asked, by the name of a key and that of the first record.
HALVES: dict[str, Callable[[str, str], bool]] = {
    "one record": lambda name, first: name == first,
    "all records": lambda name, first: ":s:" in name,
    "the index": lambda name, first: ":u:" in name,
    "the history": lambda name, first: ":h:" in name,
    "all but the history": lambda name, first: ":h:" not in name,
    "index and history": lambda name, first: ":s:" not in name,
    "all but one record": lambda name, first: name != first,
}


async def _told(work: Awaitable[Any]) -> str:
    try:
        await work
    except StoreError:
        return "refused"
    return "done"


async def _asked(browser: Browser, handler: Any) -> str:
    return {200: "done", 503: "refused"}[(await browser.do(handler)).status]


ASKED: dict[str, Callable[[Browser, Sessions, str], Awaitable[str]]] = {
    "list": lambda browser, sessions, user: _told(sessions.list(user)),
    "history": lambda browser, sessions, user: _told(sessions.history(user)),
    "revoke all": lambda browser, sessions, user: _told(sessions.revoke_all(user)),
    "erase": lambda browser, sessions, user: _told(sessions.erase(user)),
    "log in": lambda browser, sessions, user: _asked(Browser(browser.app), log_in(user)),
    "write": lambda browser, sessions, user: _asked(browser, put(written=True)),
    "regenerate": lambda browser, sessions, user: _asked(browser, regenerate),
    "destroy": lambda browser, sessions, user: _asked(browser, destroy),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("half", HALVES)
async def test_half_a_slot_is_never_taken_for_the_whole(
    half: str, asked: str, either_cluster: Cluster, clock: FakeClock
) -> None:
    """Whatever is asked of a user whose keys are on their way: it is refused or done, and nobody drops out of the index."""
    cluster = either_cluster
    store, hasty_store = RedisStore.from_cluster(cluster.url), RedisStore.from_cluster(cluster.url)
    app = app_with(store, clock=clock, store_deadline=timedelta(seconds=10))
    hasty = app_with(hasty_store, clock=clock, store_deadline=timedelta(seconds=0.1))
    sessions, everybody = app.sessions, [Browser(app) for _ in range(4)]
    user, slot = a_user(0)
    for browser in everybody:
        await browser.do(log_in(user))
    clock.advance(timedelta(minutes=2))  # so that a write moves the clocks, and the index with them
    first = everybody[0]
    name = f"asgi-sessions:{{{first.key[:3]}}}:s:{first.key[3:]}"
    old = first.another()

    source, target = cluster.nodes[:2]
    with cluster.half_moved(slot, source, target, lambda each: HALVES[half](each, name)):
        asking = Browser(hasty, first.token)
        answer = await ASKED[asked](asking, hasty.sessions, user)
        first.token = asking.token or first.token  # of a log-out that was refused it is not known whether it took place
        in_between = await asyncio.gather(*(read(browser) for browser in everybody[1:]))
    cluster.move_slots(target, source, range(slot, slot + 1))

    await settled(app, user)
    states = [await read(browser) for browser in everybody]
    listed = {session.id for session in await sessions.list(user)}
    assert {state["id"] for state in states if state["user_id"] == user} <= listed
    if asked not in ("revoke all", "erase"):
        assert {state.get("user_id") for state in in_between} == {user}  # those who only read notice nothing
        assert all(state["user_id"] == user for state in states[1:])
    if answer == "done":
        over = asked in ("destroy", "revoke all", "erase")
        assert states[0]["user_id"] == (None if over else user)
        assert asked != "write" or states[0]["data"]["written"]
        assert asked != "regenerate" or (await read(old))["user_id"] is None
        log_ins = [entry for entry in await sessions.history(user) if entry.event == "logged_in"]
        assert len(log_ins) == {"erase": 1, "log in": 6}.get(asked, 5)  # that of settled() included
    await sessions.revoke_all(user)
    assert {(await read(browser))["user_id"] for browser in everybody} == {None}
    await store.aclose()
    await hasty_store.aclose()


async def test_a_record_made_in_half_a_slot_begins_no_second_index(cluster: Cluster) -> None:
    store = RedisStore.from_cluster(cluster.url)
    user, slot = a_user(0)
    source, target = cluster.nodes[:2]
    there, more = a_record(owner=user), a_record(owner=user, number=1)
    await store.create(there)

    with (
        cluster.half_moved(slot, source, target, lambda name: ":s:" in name),
        pytest.raises(StoreError, match="TRYAGAIN"),
    ):
        await store.create(more)
    cluster.move_slots(target, source, range(slot, slot + 1))

    await store.create(more)
    assert (await store.index(owner_of(user))).keys() == {there.id, more.id}
    await store.aclose()


async def test_who_asks_while_a_slot_moves_waits_for_it(cluster: Cluster) -> None:
    store = RedisStore.from_cluster(cluster.url)
    app = app_with(store, store_deadline=timedelta(seconds=10))
    user, slot = a_user(0)
    source, target = cluster.nodes[:2]
    laptop, phone = Browser(app), Browser(app)
    await laptop.do(log_in(user))

    with cluster.half_moved(slot, source, target, lambda name: ":u:" in name):
        logging_in = asyncio.ensure_future(phone.do(log_in(user)))
        await asyncio.sleep(0.1)
        waited = not logging_in.done()
    answer = await logging_in

    cluster.move_slots(target, source, range(slot, slot + 1))
    assert waited
    assert answer.status == 200
    assert await app.sessions.revoke_all(user) == 2
    await store.aclose()


async def test_a_process_that_was_idle_is_not_answered_by_a_primary_that_is_cut_off() -> None:
    """It stops by itself before another takes over: ``cluster-allow-reads-when-down`` is ``no`` by default."""
    if not may_make_namespaces():
        require("network namespaces are for root, with iproute2")
    with Apart() as cluster:
        here, there = RedisStore.from_cluster(cluster.url), RedisStore.from_cluster(cluster.url)
        record = a_record(owner=a_user(cluster.VICTIM)[0])
        await here.create(record)
        assert await there.load(record.key) == record

        cluster.namespace.cut_off(clients_too=False)
        await asyncio.to_thread(until, lambda: cluster.nodes[4].ask("ROLE")[0] in (b"master", "master"), "a promotion")
        await there_is(here, record)
        await ended(here, record)
        began = time.monotonic()
        while time.monotonic() < began + 1:
            try:
                assert await there.load(record.key) is None
            except StoreError:
                pass
            await asyncio.sleep(0.01)

        assert cluster.nodes[cluster.VICTIM].ask("ROLE")[0] in (b"master", "master"), "it is still cut off"
        for store in (here, there):
            await store.aclose()


# ── Sentinel ──


@pytest.mark.parametrize("connection", ["requests", "large", "ends", "subscriber"])
async def test_a_process_that_was_idle_does_not_go_on_with_an_old_primary(watched: Watched, connection: str) -> None:
    """An old primary that returns takes commands for 10 seconds, until a sentinel demotes it. Nothing may be read there."""
    here, there = (
        RedisStore.from_sentinel(watched.addresses, watched.SERVICE, durable_ends=1, prefix=f"idle-{connection}")
        for _ in range(2)
    )
    large = a_record(body=bytes(LARGE) if connection == "large" else b"body")
    await here.create(large)
    assert await there.load(large.key) == large
    if connection == "ends":
        await there.delete(a_record(number=1).key)  # opens the third connection
    heard, gaps = list[str](), list[str]()
    listening = there.listen(heard.append, gaps.append)
    if connection == "subscriber":
        listening.add(large.key[:3])
        await asyncio.to_thread(until, lambda: gaps, "a subscription")
    victim = watched.primary

    victim.signal(signal.SIGSTOP)
    await asyncio.to_thread(until, lambda: watched.primary is not victim, "a failover")
    await there_is(here, large)
    await asyncio.to_thread(
        until, lambda: watched.primary.ask("INFO", "replication")["slave0"]["state"] == "online", "a replica"
    )
    victim.signal(signal.SIGCONT)
    await ended(here, large)

    give_up = time.monotonic() + 3  # a busy machine may take its time to hear
    while await there.load(large.key) is not None:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.05)
    while connection == "subscriber" and large.id not in heard and len(gaps) < 2:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.05)
    assert victim.ask("ROLE")[0] == b"master", "it was demoted before anything was shown"
    await ended(there, large)
    await listening.aclose()
    for store in (here, there):
        await store.aclose()


async def ended(store: RedisStore, record: Record) -> None:
    """End it, and again until replicas have it: the new primary has just begun to have some."""
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        try:
            await store.delete(record.key)
            return
        except StoreError:
            await asyncio.sleep(0.05)
    raise AssertionError("no replica has the end")


async def there_is(store: RedisStore, record: Record) -> None:
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        try:
            if await store.load(record.key) == record:
                return
        except StoreError:
            pass
        await asyncio.sleep(0.05)
    raise AssertionError("it did not recover")


async def test_the_sentinel_with_the_newest_configuration_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is cut off together with the old primary still names that one, and may be the first that answers."""
    sentinels = sentinels_of([("127.0.0.1", 1), ("127.0.0.1", 2), ("127.0.0.1", 3)], {})
    up = {"is_master": True, "is_sdown": False, "is_odown": False, "num-other-sentinels": 2}

    def says(**state: Any) -> Callable[[], Awaitable[Any]]:
        async def answer() -> Any:
            return {Watched.SERVICE: {**up, **state}}

        return answer

    first, second, third = sentinels.sentinels
    monkeypatch.setattr(first, "sentinel_masters", says(ip="10.0.0.1", port=6379, **{"config-epoch": 9}))
    monkeypatch.setattr(second, "sentinel_masters", says(ip="10.0.0.2", port=6379, **{"config-epoch": 10}))
    monkeypatch.setattr(
        third, "sentinel_masters", says(ip="10.0.0.3", port=6379, is_odown=True, **{"config-epoch": 11})
    )

    assert await sentinels.discover_master(Watched.SERVICE) == ("10.0.0.2", 6379)


async def test_a_sentinel_may_name_the_primary_by_its_host(monkeypatch: pytest.MonkeyPatch, valkey_url: str) -> None:
    """``announce-hostnames yes``. A connection has an address, and that of the same server is no reason to drop it."""
    named = ("localhost", urlsplit(valkey_url).port)

    async def named_by_host(*_: Any) -> Any:
        return named

    monkeypatch.setattr(Sentinels, "discover_master", named_by_host)
    store: Any = RedisStore.from_sentinel([("127.0.0.1", 1)], "sessions")
    gaps: list[str] = []
    listening = store.listen(lambda _: None, gaps.append)
    listening.add("Zk3")
    await store.load(a_record().key)
    await asyncio.to_thread(until, lambda: gaps, "a subscription")
    connection = store._client._here().current

    store._lead_to(named)
    assert (connection.lost, listening.is_live) == (None, True)

    store._lead_to(("localhost", 1))
    assert isinstance(connection.lost, ConnectionLost)
    await asyncio.to_thread(until, lambda: len(gaps) == 2, "another subscription")
    await listening.aclose()
    await store.aclose()


async def test_sentinels_that_are_gone_are_passed_over(watched: Watched) -> None:
    watched.sentinels[0].kill()
    store = RedisStore.from_sentinel(watched.addresses, watched.SERVICE)
    record = a_record()

    await store.create(record)

    assert await store.load(record.key) == record
    await store.aclose()


# ── Ends that a failover does not undo ──


@pytest.mark.parametrize("durable", [0, 1])
async def test_a_failover_revives_a_session_unless_its_end_had_to_reach_a_replica(
    watched: Watched, durable: int
) -> None:
    """Both ways: that it matters, and that it helps. The replicas are made deaf for the moment of the log-out."""
    store = RedisStore.from_sentinel(watched.addresses, watched.SERVICE, durable_ends=durable)
    app = app_with(store)
    alice = Browser(app)
    await alice.do(log_in("alice"))
    token, primary = alice.token, watched.primary
    replicas = [server for server in watched.servers if server is not primary]
    await asyncio.to_thread(until, lambda: all(server.ask("DBSIZE") == primary.ask("DBSIZE") for server in replicas))
    for replica in replicas:
        replica.signal(signal.SIGSTOP)
    primary.ask("CLIENT", "KILL", "TYPE", "replica")  # else what is said now waits for them in the kernel

    response = await alice.do(destroy)
    if durable:
        with pytest.raises(EndUnconfirmed):
            await app.sessions.revoke_all("alice")  # it is ended here already; the replicas have still not heard

    primary.kill()
    for replica in replicas:
        replica.signal(signal.SIGCONT)
    await asyncio.to_thread(until, lambda: watched.primary is not primary, "a failover")
    await recovered(app)
    revived = (await read(Browser(app, token)))["user_id"] == "alice"
    await store.aclose()
    if durable:
        assert response.status == 503  # it was not said that it is over, so that it goes on is no lie
    else:
        assert response.status == 200
    assert revived


async def test_an_end_that_reached_a_replica_survives_the_failover(watched: Watched) -> None:
    store = RedisStore.from_sentinel(watched.addresses, watched.SERVICE, durable_ends=2)
    app = app_with(store)
    alice, phone = Browser(app), Browser(app)
    for browser in (alice, phone):
        await browser.do(log_in("alice"))
    token, primary = alice.token, watched.primary

    assert (await alice.do(destroy)).status == 200
    assert await app.sessions.revoke_all("alice") == 1
    primary.kill()
    await asyncio.to_thread(until, lambda: watched.primary is not primary, "a failover")
    await recovered(app)

    assert (await read(Browser(app, token)))["user_id"] is None
    assert (await read(phone))["user_id"] is None
    await store.aclose()


async def test_too_few_replicas_are_a_store_error(valkey_url: str) -> None:
    store = RedisStore.from_url(valkey_url, prefix="durable", durable_ends=1)
    record = a_record()
    await store.create(record)

    with pytest.raises(EndUnconfirmed, match="replicas"):
        await store.delete(record.key)
    with pytest.raises(EndUnconfirmed):
        await store.delete(record.key)  # it is gone here; there, nobody knows
    await store.aclose()


async def test_an_end_by_the_clock_waits_for_no_replica(valkey_url: str, clock: FakeClock) -> None:
    """It is over on every server; and who comes back after the week-end is no error page."""
    store = RedisStore.from_url(valkey_url, prefix="over", durable_ends=1)
    alice = Browser(app_with(store, clock=clock))
    await alice.do(log_in("alice"))
    clock.advance(timedelta(hours=2))

    assert (await read(alice))["user_id"] is None
    await store.aclose()


async def test_a_log_in_over_an_anonymous_session_waits_for_no_replica(valkey_url: str) -> None:
    """A basket that a failover brings back is nobody's; people could not log in while a replica is away."""
    store = RedisStore.from_url(valkey_url, prefix="basket", durable_ends=1)
    alice = Browser(app_with(store))
    await alice.do(put(basket=1))
    old = alice.another()

    assert (await alice.do(log_in("alice"))).status == 200
    alices = alice.another()
    assert (await alice.do(log_in("bob"))).status == 503  # alice's session ends by this, and that is to last
    assert (await alices.do(log_in("carol"))).status == 200  # it has ended, as it mostly has by its timeouts

    assert (await read(old))["data"] == {}
    await store.aclose()


class FarReplica(Nodes):
    """A primary, and a replica that hears of everything by way of a proxy."""

    def build(self) -> None:
        first, second = free_port(), free_port()
        self.way = Proxy(first).__enter__()
        self.primary = self.add(first, *AT_ONCE)
        self.add(second, "--replicaof", f"127.0.0.1 {self.way.port}")
        until(lambda: self.primary.ask("INFO", "replication").get("slave0", {}).get("state") == "online", "a replica")

    def __exit__(self, *error: object) -> None:
        self.way.__exit__()
        super().__exit__(None, None, None)


async def test_ends_at_the_same_time_wait_together() -> None:
    """A server answers one WAIT after the other: sixty of 20 ms would not be through in the time that a commit has."""
    with FarReplica() as servers:
        store = RedisStore.from_url(f"redis://127.0.0.1:{servers.primary.port}", durable_ends=1)
        app = app_with(store)
        for _ in range(5):  # a machine that is busy may keep everybody waiting for once
            servers.way.delay = 0.0
            browsers = [Browser(app) for _ in range(60)]
            async with asyncio.timeout(30):
                for number, browser in enumerate(browsers):
                    while (await browser.do(log_in(f"user {number}"))).status != 200:  # noqa: ASYNC110 - until it may be asked
                        await asyncio.sleep(0.1)
            servers.way.delay = 0.01

            answers = Counter(
                answer.status for answer in await asyncio.gather(*(each.do(destroy) for each in browsers))
            )
            if answers == {200: 60}:
                break

        assert answers == {200: 60}
        await store.aclose()


async def test_an_end_on_a_server_that_is_full_reaches_the_replicas() -> None:
    """The server refuses what needs memory; to end a session needs none."""
    with FarReplica() as servers:
        store = RedisStore.from_url(f"redis://127.0.0.1:{servers.primary.port}", durable_ends=1)
        app = app_with(store)
        phone, laptop = Browser(app), Browser(app)
        for browser in (phone, laptop):
            await browser.do(log_in("alice"))
        servers.primary.ask("CONFIG", "SET", "maxmemory", "1")

        assert (await laptop.do(put(a=1))).status == 503
        give_up = time.monotonic() + 10
        while (await laptop.another().do(destroy)).status != 200:  # a replica on a busy machine may be late
            assert time.monotonic() < give_up
        assert await Sessions(store).revoke_all("alice") == 1

        assert (await read(phone))["user_id"] is None
        await store.aclose()


@pytest.mark.parametrize("renewed", [False, True], ids=["a session of nobody", "a token that was renewed"])
async def test_what_is_over_and_nobodys_waits_for_no_replica(valkey_url: str, clock: FakeClock, renewed: bool) -> None:
    """There is no history to write it into, and yet it is the clock that ends it."""
    store = RedisStore.from_url(valkey_url, prefix="nobody", durable_ends=1)
    app = app_with(store, clock=clock, timeouts=Timeouts(renew=timedelta(minutes=10)))
    visitor = Browser(app)
    await visitor.do(put(a=1))
    old = visitor.another()
    if renewed:
        clock.advance(timedelta(minutes=11))
        await visitor.do(put(a=2))
        assert visitor.token != old.token
    clock.advance(timedelta(minutes=5) if renewed else timedelta(hours=2))

    response = await old.do()

    assert response.status == 200
    await store.aclose()


async def test_an_end_whose_answer_was_lost_is_waited_for_all_the_same(own_server: Server, proxy: Proxy) -> None:
    """The first try has ended it, and the second finds nothing to end: that is no reason not to wait."""
    store = RedisStore.from_url(proxy.url(own_server.url), durable_ends=1)
    record = a_record()
    await store.create(record)
    with pytest.raises(StoreError, match="replicas"):
        await store.delete(moved(record).key)  # the scripts are known now
    proxy.swallowing = True

    with pytest.raises(EndUnconfirmed):
        await store.delete(record.key)
    assert await store.load(record.key) is None
    await store.aclose()


async def test_a_server_that_says_nothing_to_an_end_is_trouble_of_its_own_and_not_of_replicas(
    own_server: Server, proxy: Proxy
) -> None:
    """Whether anything ended is not known; and it counts against the server, which others should leave alone."""
    store = RedisStore.from_url(proxy.url(own_server.url), durable_ends=1)
    sessions = Sessions(store)
    alice = Browser(app_with(sessions))
    await alice.do(log_in("alice"))
    with pytest.raises(EndUnconfirmed):
        await store.delete(a_record().key)  # the connection for ends is there now
    proxy.hanging = True

    with pytest.raises(StoreError) as failed:
        await sessions.revoke_all("alice")

    proxy.hanging = False
    assert not isinstance(failed.value, EndUnconfirmed)
    assert sessions._manager.guard.breakers.whole.failures == 1
    await store.aclose()


@pytest.mark.parametrize("reply", [b":1\r\n", b":0\r\n", b"*0\r\n"], ids=["a number", "zero", "a list"])
async def test_an_answer_of_another_kind_is_a_store_error_and_not_an_absence(
    own_server: Server, proxy: Proxy, reply: bytes
) -> None:
    store = RedisStore.from_url(proxy.url(own_server.url))
    record = a_record()
    await store.create(record)
    proxy.garbage = reply

    with pytest.raises(StoreError):
        await store.load(record.key)
    await store.aclose()


@pytest.mark.parametrize(
    "make",
    [
        lambda: RedisStore.from_url("redis://localhost", durable_ends=-1),
        lambda: RedisStore.from_url("redis://localhost", durable_ends=True),
        lambda: RedisStore.from_sentinel([], "sessions"),
        lambda: RedisStore.from_sentinel("localhost:26379", "sessions"),  # type: ignore[arg-type]
        lambda: RedisStore.from_sentinel([("localhost", "x")], "sessions"),  # type: ignore[list-item]
        lambda: RedisStore.from_sentinel([("localhost", None)], "sessions"),  # type: ignore[list-item]
        lambda: RedisStore.from_sentinel([("localhost", 1, 2)], "sessions"),  # type: ignore[list-item]
        lambda: RedisStore.from_cluster(7),  # type: ignore[arg-type]
        lambda: RedisStore.from_cluster("nonsense://x"),
    ],
)
def test_what_does_not_fit_fails_when_the_store_is_built(make: Any) -> None:
    with pytest.raises(ConfigurationError):
        make()


async def test_a_log_out_that_finds_nothing_waits_for_the_replicas_too(valkey_url: str) -> None:
    """The first one ended the session on the primary and said 503. The second must not say that all is well."""
    store = RedisStore.from_url(valkey_url, prefix=f"again-{secrets.token_hex(4)}", durable_ends=1)
    app = app_with(store)
    alice = Browser(app)
    await alice.do(log_in("alice"))
    token = alice.token

    answers = [(await Browser(app, token).do(destroy)).status for _ in range(2)]
    anonymous = (await Browser(app).do(destroy)).status
    forged = (await Browser(app, "nonsense").do(destroy)).status

    assert answers == [503, 503]
    assert (anonymous, forged) == (200, 200)
    await store.aclose()


Ends = Callable[[], Awaitable[object]]
OF_GOOGLE = ("https://accounts.google.com", "a1", "s1")


async def of_a_refresh_token(sessions: Sessions) -> Ends:
    tokens = Tokens(sessions, keys=[SigningKey.generate("EdDSA")], issuer="https://a", audience="https://a")
    pair = await tokens.log_in("alice")
    return lambda: tokens.revoke(pair.refresh_token)


async def of_a_provider(sessions: Sessions, **claims: Any) -> Ends:
    await Browser(app_with(sessions)).do(log_in("alice", provider=OF_GOOGLE))
    return lambda: sessions.revoke_provider(OF_GOOGLE[0], **claims)


async def of_a_device(sessions: Sessions) -> Ends:
    devices = TrustedDevices(sessions)
    await devices.remember({"type": "http", "headers": []}, "alice")
    return lambda: devices.forget("alice")


async def of_everybody(sessions: Sessions) -> Ends:
    await Browser(app_with(sessions)).do(put(a=1))
    return sessions.end_all


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(of_a_refresh_token, id="a refresh token"),
        pytest.param(partial(of_a_provider, sid="s1"), id="a session at the provider"),
        pytest.param(partial(of_a_provider, subject="a1"), id="a subject of the provider"),
        pytest.param(of_a_device, id="the trusted devices of a user"),
        pytest.param(of_everybody, id="all sessions"),
    ],
)
async def test_a_repeated_end_waits_for_the_replicas_like_the_first(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch, begin: Callable[[Sessions], Awaitable[Ends]]
) -> None:
    """The primary has no session any more. A replica may have it, and it may take over."""
    monkeypatch.setattr("asgi_sessions._engine.everyone.PATIENCE", 0.0)
    store = RedisStore.from_url(valkey_url, prefix=f"twice-{secrets.token_hex(4)}", durable_ends=1)
    end = await begin(Sessions(store, secret_keys=["an excellent secret of at least 32 bytes"]))

    for _ in range(3):
        with pytest.raises(EndUnconfirmed):
            await end()
    await store.aclose()


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(of_a_refresh_token, id="a refresh token"),
        pytest.param(partial(of_a_provider, sid="s1"), id="a session at the provider"),
    ],
)
async def test_a_session_that_a_failover_brings_back_in_between_ends(
    memory: MemoryStore, begin: Callable[[Sessions], Awaitable[Ends]]
) -> None:
    """The call found nothing on the old primary, and the new one confirms that."""
    store: Any = Wrapped(memory)
    store.confirms_ends = True
    sessions = Sessions(store, secret_keys=["an excellent secret of at least 32 bytes"])
    end = await begin(sessions)
    (key,) = (await memory.index(owner_of("alice"))).values()
    record = await memory.delete(key)
    assert record is not None

    async def restore() -> None:
        store.before.clear()
        await memory.create(record)

    store.before["delete"] = restore
    assert await end()
    assert await sessions.list("alice") == []


async def test_once_replicas_have_it_a_repeated_log_out_is_done_and_more_can_follow(watched: Watched) -> None:
    store = RedisStore.from_sentinel(watched.addresses, watched.SERVICE, durable_ends=1)
    app = app_with(store)
    alice = Browser(app)
    await alice.do(log_in("alice"))
    again, writes, logs_in = (alice.another() for _ in range(3))
    await alice.do(destroy)

    answers = [
        (await again.do(destroy)).status,
        (await writes.do(lambda session: (session.destroy(), session.update(a=1)))).status,
        (await logs_in.do(lambda session: (session.destroy(), session.log_in("bob")))).status,
    ]

    assert (answers, again.token) == ([200, 200, 200], None)
    assert (await read(writes))["data"] == {"a": 1}
    assert (await read(logs_in))["user_id"] == "bob"
    await store.aclose()


async def test_all_replicas_are_as_many_as_the_primary_has_had(watched: Watched) -> None:
    """One that hangs, or is gone, still counts: it may be the one that takes over, and has not heard of the end."""
    store = RedisStore.from_sentinel(watched.addresses, watched.SERVICE, durable_ends="all")
    app = app_with(store)
    primary = watched.primary
    slow = next(server for server in watched.servers if server is not primary)

    async def log_out() -> int:
        browser = Browser(app)
        await browser.do(log_in("alice"))
        return (await browser.do(destroy)).status

    answers = [await log_out()]
    slow.signal(signal.SIGSTOP)
    answers.append(await log_out())
    primary.ask("CLIENT", "KILL", "TYPE", "replica")
    await asyncio.to_thread(until, lambda: primary.ask("INFO", "replication")["connected_slaves"] == 1)
    answers += [await log_out(), await log_out()]
    slow.signal(signal.SIGCONT)
    await asyncio.to_thread(until, lambda: primary.ask("INFO", "replication")["connected_slaves"] == 2)
    await asyncio.to_thread(until, lambda: primary.ask("INFO", "replication")["slave0"]["state"] == "online")
    await asyncio.to_thread(until, lambda: primary.ask("INFO", "replication")["slave1"]["state"] == "online")
    answers.append(await log_out())

    assert answers == [200, 503, 503, 503, 200]
    await store.aclose()


async def test_a_replica_that_is_lost_before_the_first_end_counts_too(watched: Watched) -> None:
    """The process has seen it, when it connected."""
    store = RedisStore.from_sentinel(watched.addresses, watched.SERVICE, durable_ends="all")
    alice = Browser(app_with(store))
    await alice.do(log_in("alice"))
    primary = watched.primary
    next(server for server in watched.servers if server is not primary).kill()
    await asyncio.to_thread(until, lambda: primary.ask("INFO", "replication")["connected_slaves"] == 1)

    with pytest.raises(EndUnconfirmed, match="1 of 2 replicas"):
        await Sessions(store).revoke_all("alice")
    await store.aclose()


async def test_all_of_no_replicas_is_none_that_has_it(valkey_url: str) -> None:
    store = RedisStore.from_url(valkey_url, prefix="all", durable_ends="all")

    with pytest.raises(EndUnconfirmed, match="0 of 1 replicas"):
        await store.delete(a_record().key)
    await store.aclose()


@pytest.mark.parametrize("end", [destroy, lambda session: session.clear()], ids=["destroy", "clear"])
async def test_the_end_of_an_anonymous_session_waits_too(valkey_url: str, end: Any) -> None:
    store = RedisStore.from_url(valkey_url, prefix=f"anonymous-{secrets.token_hex(4)}", durable_ends=1)
    browser = Browser(app_with(store))
    await browser.do(put(a=1))

    assert (await browser.do(end)).status == 503
    await store.aclose()


async def test_sentinels_are_left_at_once(watched: Watched) -> None:
    """Whoever stops a task cancels it again and again. Nothing may come between two connections."""
    sentinels = sentinels_of(watched.addresses, {})
    await sentinels.discover_master(watched.SERVICE)
    opened = [each.connection_pool._available_connections[0] for each in sentinels.sentinels]
    assert all(connection.is_connected for connection in opened)

    with pytest.raises(StopIteration):
        sentinels.leave().send(None)  # without a turn of the loop

    assert not any(connection.is_connected for connection in opened)
