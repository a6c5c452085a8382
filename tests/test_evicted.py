"""A server that evicts has thrown away the index of a user, but not all of their sessions.

Nobody is told that there is none, or that all have ended, while one lives: the store searches the server, or says that it
could not.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from redis.asyncio import Redis, RedisCluster

from asgi_sessions import Devices, Event, RedisStore, SessionLimitReached, StoreError
from asgi_sessions._core.history import LOGGED_IN, Note, Rules
from asgi_sessions._core.record import Record
from asgi_sessions._core.token import owner_of
from asgi_sessions.stores.redis._client import run
from asgi_sessions.stores.redis._scripts import SEARCH
from asgi_sessions.testing import FakeClock, a_record, an_alias, moved
from tests.clusters import Cluster
from tests.conftest import Server
from tests.support import Browser, app_with, destroy, log_in, read, regenerate

pytestmark = pytest.mark.filterwarnings("ignore:Redis has maxmemory-policy")

ALICE = owner_of("alice")
NOW = a_record().seen_at
RULES = Rules(0)
OTHERS = 3_500
"""Records of other users, anonymous: the walk through the server takes some steps."""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked is what is true, not how fast on a busy machine."""
    monkeypatch.setattr("asgi_sessions.stores.redis.PATIENCE", 20.0)
    monkeypatch.setattr("asgi_sessions._engine.guard.DEADLINE", 20.0)


def fill(server: redis.Redis, number: int = OTHERS) -> None:
    with server.pipeline(transaction=False) as pipe:
        for _ in range(number):
            pipe.set(f"asgi-sessions:{{{secrets.token_urlsafe(2)}}}:s:{secrets.token_urlsafe(32)}", "1" * 100, px=10**8)
        pipe.execute()


def evict(server: redis.Redis, what: str = "u") -> None:
    names = list(server.scan_iter(f"asgi-sessions:*:{what}:*", count=10_000))
    assert names
    server.delete(*names)


def note(rules: Rules = RULES) -> Note:
    return Note(LOGGED_IN, NOW, "", rules)


@pytest.fixture(scope="module")
def evicting() -> Iterator[Server]:
    server = Server("--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru")
    server.start()
    yield server
    server.remove()


@pytest.fixture
def server(evicting: Server) -> Iterator[redis.Redis]:
    """The same server, seen by an operator."""
    with redis.Redis.from_url(evicting.url) as client:
        client.flushall()
        yield client


@pytest.fixture(params=["own connections", "client of the app"])
async def store(request: pytest.FixtureRequest, evicting: Server, server: redis.Redis) -> AsyncIterator[RedisStore]:
    if request.param == "own connections":
        store = RedisStore.from_url(evicting.url)
        yield store
        await store.aclose()
    else:
        async with Redis.from_url(evicting.url, protocol=2) as client:
            yield RedisStore(client)


# ── Whatever is asked of all sessions of a user ──


async def listed(store: RedisStore, one: Record) -> set[str]:
    return {record.id for record in await store.records(ALICE, now=NOW, rules=RULES)}


async def revoked(store: RedisStore, one: Record) -> set[str]:
    return {*await store.end(ALICE, note=note(), id=one.id)}


async def revoked_all(store: RedisStore, one: Record) -> set[str]:
    return {*await store.end(ALICE, note=note())}


async def ended_others(store: RedisStore, one: Record) -> set[str]:
    return {*await store.end(ALICE, note=note(), keep=one.id)}


async def erased(store: RedisStore, one: Record) -> set[str]:
    return {*await store.erase(ALICE, sessions=True)}


async def made_room(store: RedisStore, one: Record) -> set[str]:
    admission = await store.create(a_record(owner="alice"), note=note(Rules(0, limit=1)))
    assert admission is not None
    return {*admission.ended}


async def found_by_id(store: RedisStore, one: Record) -> set[str]:
    return {*await store.index(ALICE)}


ASKED: list[tuple[Callable[[RedisStore, Record], Awaitable[set[str]]], Callable[[str, str], set[str]]]] = [
    (listed, lambda one, two: {one, two}),
    (revoked, lambda one, two: {one}),
    (revoked_all, lambda one, two: {one, two}),
    (ended_others, lambda one, two: {two}),
    (erased, lambda one, two: {one, two}),
    (made_room, lambda one, two: {one, two}),
    (found_by_id, lambda one, two: {one, two}),
]


@pytest.mark.parametrize(("ask", "right"), ASKED, ids=[ask.__name__ for ask, _ in ASKED])
async def test_sessions_outside_of_an_index_are_found(
    store: RedisStore, server: redis.Redis, ask: Any, right: Any
) -> None:
    one, two = a_record(owner="alice"), a_record(owner="alice", number=1)
    await store.create(one)
    await store.create(two)
    fill(server)
    evict(server)

    assert await ask(store, one) == right(one.id, two.id)


@pytest.mark.parametrize(("ask", "right"), ASKED, ids=[ask.__name__ for ask, _ in ASKED])
async def test_an_index_that_a_log_in_began_anew_lacks_older_sessions(
    store: RedisStore, server: redis.Redis, ask: Any, right: Any
) -> None:
    one, two = a_record(owner="alice"), a_record(owner="alice", number=1)
    await store.create(one)
    evict(server)
    await store.create(two)

    assert await ask(store, one) == right(one.id, two.id)


async def test_a_log_in_beyond_the_limit_is_refused(store: RedisStore, server: redis.Redis) -> None:
    await store.create(a_record(owner="alice"))
    evict(server)

    with pytest.raises(SessionLimitReached):
        await store.create(a_record(owner="alice"), note=note(Rules(0, limit=1, refuses=True)))


async def test_only_records_of_the_user_are_found(store: RedisStore, server: redis.Redis) -> None:
    mine, renewed = a_record(owner="alice"), a_record(owner="alice", number=1)
    await store.create(mine)
    await store.create(renewed)
    now_at = moved(renewed)
    await store.rename(renewed.key, now_at, rev=1, alias=an_alias(renewed))
    # In the place of alice, but not hers.
    for other in (a_record(owner="bob"), a_record()):
        name = store._name(mine.key)
        server.set(name[:-22] + secrets.token_urlsafe(16), server.get(store._name(other.key)) or b"1" * 100)
    server.lpush(name[:-22] + secrets.token_urlsafe(16), "no record at all")
    evict(server)

    assert await store.index(ALICE) == {mine.id: mine.key, renewed.id: now_at.key}


# ── How the search goes ──


STEPS = st.lists(st.sampled_from(["search", "evict", "log in", "rename", "touch"]), max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_whatever_happens_during_a_search_no_session_is_missed(
    evicting: Server, server: redis.Redis, steps: list[str]
) -> None:
    """The walk goes on where any process left it, and begins anew where the index has been evicted since."""
    client = Redis.from_url(evicting.url, protocol=2)
    store = RedisStore(client)
    if theirs := list(server.scan_iter(f"{store._stem(ALICE)}*", count=10_000)):
        server.delete(*theirs)
    if server.dbsize() < OTHERS:
        fill(server)
    alive = [a_record(owner="alice", number=number) for number in range(5)]
    for record in alive:
        await store.create(record)
    evict(server)

    for number, step in enumerate(steps):
        match step:
            case "search":
                await run(store._bulk, SEARCH, (store._index(ALICE),), store._stem(ALICE))
            case "evict":
                server.delete(store._index(ALICE))
            case "log in":
                alive.append(a_record(owner="alice", number=5 + number))
                await store.create(alive[-1])
            case "rename":
                old = alive.pop(0)
                alive.append(moved(old, number))
                await store.rename(old.key, alive[-1], rev=old.rev)
            case "touch":
                one = alive[0]
                await store.touch(one.key, seen_at=NOW + number + 1, expires_at=one.expires_at + number + 1)

    assert await store.index(ALICE) == {record.id: record.key for record in alive}
    assert len(await store.end(ALICE, note=note())) == len(alive)
    await client.aclose()


async def _ended_or_why(store: RedisStore) -> object:
    try:
        return await store.end(ALICE, note=note())
    except StoreError as failure:
        return failure


async def test_a_search_that_takes_long_is_an_error_and_the_next_call_goes_on_with_it(
    evicting: Server, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_sessions.stores.redis.PATIENCE", -1.0)  # one step of the search
    store = RedisStore.from_url(evicting.url)
    record = a_record(owner="alice")
    await store.create(record)
    fill(server)
    evict(server)

    failures = 0
    while (ended := await _ended_or_why(store)) != [record.id]:
        failures += 1
        assert "may have evicted" in str(ended)
        assert await store.load(record.key) == record

    assert 1 <= failures <= 2 * OTHERS / 1000
    assert await run(store._bulk, SEARCH, (store._index(ALICE),), store._stem(ALICE)) == 1  # nobody searches again
    await store.aclose()


async def test_a_search_of_another_run_of_the_server_begins_anew(own_server: Server) -> None:
    """A cursor means nothing there: it would pass over a part of the keys."""
    # Without fsync: while one takes long, the server holds its writes back, and they are lost when it is killed.
    to_disk = ("--appendonly", "yes", "--appendfsync", "no")
    own_server.options = ("--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru", *to_disk)
    own_server.start()
    store = RedisStore.from_url(own_server.url)
    with redis.Redis.from_url(own_server.url) as server:
        records = [a_record(owner="alice", number=number) for number in range(30)]
        for record in records:
            await store.create(record)
        fill(server)
        evict(server)
        for _ in range(2):
            await run(store._bulk, SEARCH, (store._index(ALICE),), store._stem(ALICE))
        # What was found goes again, but not how far the search had come.
        entries = [id for id in server.hkeys(store._index(ALICE)) if id != b"."]
        if entries:
            server.hdel(store._index(ALICE), *entries)
    own_server.restart()

    assert (await store.index(ALICE)).keys() == {record.id for record in records}
    await store.aclose()


async def test_an_index_that_is_known_to_be_whole_is_believed_until_it_is_evicted(
    store: RedisStore, server: redis.Redis
) -> None:
    def scans() -> int:
        return int(server.info("commandstats").get("cmdstat_scan", {"calls": 0})["calls"])

    record = a_record(owner="alice")
    await store.create(record)
    server.config_resetstat()

    for _ in range(3):
        assert {*await store.index(ALICE)} == {record.id}
    first = scans()
    server.delete(store._index(ALICE))
    assert {*await store.index(ALICE)} == {record.id}

    assert (first, scans()) == (1, 2)


async def test_what_the_search_leaves_in_an_index_has_a_ttl(store: RedisStore, server: redis.Redis) -> None:
    assert await store.index(ALICE) == {}

    assert 0 < server.ttl(store._index(ALICE)) <= 86_400

    lasting = a_record(owner="bob")
    await store.create(replace(lasting, expires_at=lasting.seen_at + 30 * 86_400))
    evict(server)
    assert {*await store.index(owner_of("bob"))} == {lasting.id}
    assert server.ttl(store._index(owner_of("bob"))) >= 30 * 86_400


# ── Which servers are believed ──


async def test_a_server_that_evicts_nothing_is_not_searched(own_server: Server, own_store: RedisStore) -> None:
    for ask, _ in ASKED:
        await own_store.create(one := a_record(owner="alice"))
        await ask(own_store, one)

    with redis.Redis.from_url(own_server.url) as server:
        assert "cmdstat_scan" not in server.info("commandstats")


async def test_a_server_that_evicted_before_it_was_told_not_to_is_searched(own_server: Server) -> None:
    own_server.options = ("--maxmemory", "10mb", "--maxmemory-policy", "allkeys-random")
    own_server.start()
    store = RedisStore.from_url(own_server.url)
    with redis.Redis.from_url(own_server.url) as server:
        number = 0
        while not server.info("stats")["evicted_keys"]:
            server.set(f"junk {number}", "x" * 100_000)
            number += 1
        server.config_set("maxmemory", "1gb")
        server.config_set("maxmemory-policy", "noeviction")
        await store.create(record := a_record(owner="alice"))
        evict(server)

    assert await store.end(ALICE, note=note()) == [record.id]
    await store.aclose()


async def test_where_the_policy_may_not_be_asked_for_it_is_an_error(evicting: Server, server: redis.Redis) -> None:
    server.acl_setuser("half", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@all"], commands=["-info"])
    store = RedisStore.from_url(evicting.url.replace("//", "//half:pw@"))
    await store.create(a_record(owner="alice"))
    evict(server)

    with pytest.raises(StoreError, match=r"permission.*'info'"):
        await store.end(ALICE, note=note())
    await store.aclose()
    server.acl_deluser("half")


@pytest.mark.parametrize("policy", ["allkeys-random", "volatile-random"])
async def test_after_a_real_eviction_nobodys_session_outlives_the_end_of_all(own_server: Server, policy: str) -> None:
    own_server.options = ("--maxmemory", "12mb", "--maxmemory-policy", policy)
    own_server.start()
    store = RedisStore.from_url(own_server.url)
    users = [f"user {number}" for number in range(100)]
    records = {user: [a_record(owner=user, number=number) for number in range(3)] for user in users}
    for each in records.values():
        for record in each:
            await store.create(record)
    with redis.Redis.from_url(own_server.url) as server:
        number = 0
        while server.exists(*(store._index(owner_of(user)) for user in users)) > len(users) / 2:
            server.set(f"junk {number}", "x" * 10_000, px=10**8)
            number += 1
        server.config_set("maxmemory", "1gb")
        orphans = 0

        for user, theirs in records.items():
            alive = {each.id for each in theirs if server.exists(store._name(each.key))}
            orphans += bool(alive) and not server.exists(store._index(owner_of(user)))
            assert {*await store.end(owner_of(user), note=note())} == alive
            assert not server.exists(*(store._name(each.key) for each in theirs))

    assert orphans > 0  # else this was no test
    await store.aclose()


# ── Over HTTP ──


async def test_end_others_ends_a_session_that_no_index_knows(
    store: RedisStore, server: redis.Redis, clock: FakeClock
) -> None:
    app = app_with(store, clock=clock)
    thief, owner = Browser(app), Browser(app)
    await thief.do(log_in("alice"))
    await owner.do(log_in("alice"))
    evict(server)

    await owner.do(lambda session: session.end_others())

    assert [(await read(browser))["user_id"] for browser in (thief, owner)] == [None, "alice"]


async def test_a_limit_holds(store: RedisStore, server: redis.Redis, clock: FakeClock) -> None:
    app = app_with(store, clock=clock, devices=Devices(max_sessions=1, at_limit="refuse"))
    first, second = Browser(app), Browser(app)
    await first.do(log_in("alice"))
    evict(server)

    assert (await second.do(log_in("alice"))).status == 403


async def test_a_log_out_finds_a_session_that_was_regenerated_long_ago(
    store: RedisStore, server: redis.Redis, clock: FakeClock
) -> None:
    """As an open WebSocket holds one: it was loaded under a token that is no more."""
    app = app_with(store, clock=clock)
    browser = Browser(app)
    await browser.do(log_in("alice"))

    async with browser.another().paused(destroy):
        await browser.do(regenerate)
        evict(server)

    assert (await read(browser))["user_id"] is None


@pytest.mark.parametrize("evicted", ["h", "[hu]"], ids=["history", "history and index"])
async def test_a_device_is_not_the_first_where_the_history_may_have_been_evicted(
    store: RedisStore, server: redis.Redis, clock: FakeClock, evicted: str
) -> None:
    """An app mails a notice of a new device, but not of the first."""
    events: list[Event] = []
    app = app_with(store, clock=clock, on_event=events.append)
    await Browser(app).do(log_in("alice"))
    evict(server, evicted)
    await Browser(app).do(log_in("alice"))

    last = [event.details for event in events if event.name == "session.logged_in"][-1]
    assert (last["new_device"], last["first"]) == (True, False)


# ── On a cluster ──


@pytest.fixture
def evicting_cluster(cluster: Cluster) -> Iterator[Cluster]:
    for node in cluster.nodes:
        node.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    yield cluster
    for node in cluster.nodes:
        node.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")


@pytest.mark.parametrize("way", ["own connections", "client of the app"])
async def test_on_a_cluster(evicting_cluster: Cluster, way: str) -> None:
    cluster = evicting_cluster
    client = RedisCluster.from_url(cluster.url, protocol=2)
    store = RedisStore.from_cluster(cluster.url) if way == "own connections" else RedisStore(client)
    for number in range(6):
        user = f"user {secrets.token_hex(4)}"
        owner, records = owner_of(user), [a_record(owner=user, number=number) for number in range(3)]
        for record in records:
            await store.create(record)
        await client.delete(store._index(owner))

        assert {*await store.end(owner, note=note())} == {record.id for record in records}
    await store.aclose()
    await client.aclose()


async def test_a_search_of_half_a_slot_is_an_error(evicting_cluster: Cluster) -> None:
    from tests.test_clusters import a_user

    cluster = evicting_cluster
    store = RedisStore.from_cluster(cluster.url)
    user, slot = a_user(0)
    source, target = cluster.nodes[:2]
    here, there = a_record(owner=user), a_record(owner=user, number=1)
    await store.create(here)
    await store.create(there)
    index = store._index(owner_of(user))
    source.ask("DEL", index)

    with (
        cluster.half_moved(slot, source, target, lambda name: name == store._name(there.key)),
        pytest.raises(StoreError, match="TRYAGAIN"),
    ):
        await store.end(owner_of(user), note=note())

    assert {*await store.end(owner_of(user), note=note())} == {here.id, there.id}
    cluster.move_slots(target, source, range(slot, slot + 1))
    await store.aclose()
