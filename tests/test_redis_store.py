"""What is particular to RedisStore: the server's side of it, its connections, and what is refused when it is built."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import redis
from redis.asyncio import Redis

from asgi_sessions import ConfigurationError, Event, RedisStore, Sessions, SessionWarning, StoreError
from asgi_sessions._core.history import Rules
from asgi_sessions._core.record import pack
from asgi_sessions._core.token import owner_of
from asgi_sessions.errors import RecordDamaged
from asgi_sessions.stores.redis import LARGE
from asgi_sessions.stores.redis._client import OwnClient
from asgi_sessions.stores.redis._connection import Connection
from asgi_sessions.stores.redis._scripts import CREATE, DELETE, INDEX, RENAME, TOUCH, UPDATE
from asgi_sessions.testing import FakeClock, a_note, a_record, moved
from tests.conftest import Server, a_store
from tests.support import Browser, app_with, destroy, log_in, put, read, regenerate


@pytest.fixture(params=["valkey", "redis"])
async def kind(request: pytest.FixtureRequest, anyio_backend: Any) -> Any:
    made = a_store(request, request.param)
    async with made:
        yield made


@pytest.fixture
def store(kind: a_store) -> RedisStore:
    assert isinstance(kind.store, RedisStore)
    return kind.store


@pytest.fixture
def server(kind: a_store) -> Any:
    """The same server, seen by an operator."""
    assert kind.url is not None
    with redis.Redis.from_url(kind.url) as client:
        yield client


# ── What lies in the server ──


async def test_every_key_has_a_ttl_a_minute_beyond_its_end(
    store: RedisStore, kind: a_store, server: redis.Redis, clock: FakeClock
) -> None:
    browser = Browser(app_with(store, clock=clock))
    await browser.do(put(a=1))
    await browser.do(log_in("alice"))
    await browser.do(put(b=1))
    clock.advance(120)
    await browser.do()
    await browser.do(regenerate)

    keys = list(server.scan_iter(f"{kind.prefix}:*"))

    assert len(keys) == 3  # the record, the index, the history
    for key in keys:
        most = 3660 if b":s:" in key else 90 * 86400  # what ended is told for ninety days, so that long is it known
        assert most - 60 < server.pttl(key) / 1000 <= most


async def test_the_index_outlives_every_record_in_it(
    store: RedisStore, kind: a_store, server: redis.Redis, clock: FakeClock
) -> None:
    app = app_with(store, clock=clock)
    await Browser(app).do(log_in("alice", remember=True))
    await Browser(app).do(log_in("alice"))

    (index,) = server.scan_iter(f"{kind.prefix}:*:u:*")

    assert server.pttl(index) > 13 * 24 * 3600 * 1000


async def test_nothing_but_the_history_remains_of_a_user_who_has_logged_out(
    store: RedisStore, kind: a_store, server: redis.Redis, clock: FakeClock
) -> None:
    app = app_with(store, clock=clock)
    browser = Browser(app)
    await browser.do(log_in("alice"))
    await browser.do(destroy)

    (history,) = server.scan_iter(f"{kind.prefix}:*")
    assert b":h:" in history
    await app.sessions.erase("alice")
    assert list(server.scan_iter(f"{kind.prefix}:*")) == []


async def test_all_keys_of_a_user_lie_in_one_slot(
    store: RedisStore, kind: a_store, server: redis.Redis, clock: FakeClock
) -> None:
    app = app_with(store, clock=clock)
    for _ in range(5):
        await Browser(app).do(log_in("alice"))

    tags = {re.search(rb"\{(.*?)\}", key).group(1) for key in server.scan_iter(f"{kind.prefix}:*")}  # type: ignore[union-attr]

    assert tags == {owner_of("alice")[:3].encode()}


async def test_the_index_forgets_records_that_the_server_has_dropped(
    store: RedisStore, server: redis.Redis, kind: a_store
) -> None:
    first, second = a_record(owner="alice"), a_record(owner="alice", number=1)
    await store.create(first)
    for key in server.scan_iter(f"{kind.prefix}:*:s:*"):
        server.delete(key)

    await store.create(second)

    (index,) = server.scan_iter(f"{kind.prefix}:*:u:*")
    assert server.hlen(index) == 1
    assert await store.index(owner_of("alice")) == {second.id: second.key}


async def test_another_type_under_the_key_is_a_damaged_record(store: RedisStore, server: redis.Redis) -> None:
    record = a_record()
    server.rpush(store._name(record.key), "x")

    try:
        with pytest.raises(RecordDamaged):
            await store.load(record.key)
    finally:
        server.delete(store._name(record.key))


async def test_a_read_is_one_get_and_a_write_one_script(
    own_server: Server, own_store: RedisStore, clock: FakeClock
) -> None:
    """Counted by the server itself."""
    browser = Browser(app_with(own_store, clock=clock))
    await browser.do(put(a=1))

    with redis.Redis.from_url(own_server.url) as server:
        server.config_resetstat()
        await browser.do(lambda s: s.get("a"))
        reading = {name: stat["calls"] for name, stat in server.info("commandstats").items()}
        server.config_resetstat()
        await browser.do(put(a=2))
        writing = {name: stat["calls"] for name, stat in server.info("commandstats").items()}

    ours = {"cmdstat_get", "cmdstat_getrange", "cmdstat_evalsha", "cmdstat_eval", "cmdstat_set"}
    assert {name: calls for name, calls in reading.items() if name in ours} == {"cmdstat_getrange": 1}
    assert writing["cmdstat_getrange"] == 2  # ours, and the script's look at the revision
    assert writing["cmdstat_evalsha"] + writing.get("cmdstat_eval", 0) <= 2  # EVAL once, the first time
    assert "cmdstat_get" not in writing


async def test_a_large_session_travels_on_a_connection_of_its_own(own_store: RedisStore, clock: FakeClock) -> None:
    """Both ways; a small one that is asked for at the same time does not wait behind it."""
    app = app_with(own_store, clock=clock)
    small, large = Browser(app), Browser(app)
    await small.do(put(a=1))
    assert isinstance(own_store._bulk, OwnClient)
    assert not own_store._bulk._connections  # not opened before there is something to carry
    most: dict[str, int] = {}

    def counted(connection: Connection, name: str) -> None:
        received = connection.data_received

        class Counting(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                most[name] = most.get(name, 0) + len(data)
                received(data)

        connection._transport.set_protocol(Counting())

    await large.do(put(text="x" * 500_000))
    assert isinstance(own_store._client, OwnClient)
    assert isinstance(own_store._bulk, OwnClient)
    (requests,), (bulk,) = own_store._client._connections.values(), own_store._bulk._connections.values()
    assert requests.current is not None
    assert bulk.current is not None
    counted(requests.current, "small")
    counted(bulk.current, "large")
    assert (await read(large))["data"] == {"text": "x" * 500_000}
    assert (await read(small))["data"] == {"a": 1}

    assert most["large"] > 500_000
    assert most["small"] < 2 * LARGE


@pytest.mark.parametrize("excess", [-1, 0, 1])
async def test_a_record_about_as_long_as_the_limit_comes_whole(store: RedisStore, excess: int) -> None:
    record = a_record(owner=None)
    record = msgspec.structs.replace(
        record, body=b"P" + b"x" * (LARGE + excess - len(pack(record)) + len(record.body) - 1)
    )
    assert len(pack(record)) == LARGE + excess

    await store.create(record)

    assert await store.load(record.key) == record
    await store.delete(record.key)


# ── Scripts ──


async def test_scripts_are_sent_again_when_the_server_has_forgotten_them(
    store: RedisStore, server: redis.Redis
) -> None:
    record = a_record(owner="alice")
    server.script_flush()
    await store.create(record)
    server.script_flush()
    await store.rename(record.key, moved(record), rev=1)
    server.script_flush()

    assert await store.touch(moved(record).key, seen_at=record.seen_at + 1, expires_at=record.expires_at + 1)


@pytest.mark.parametrize("script", [CREATE, UPDATE, TOUCH, RENAME, DELETE, INDEX])
def test_scripts_have_the_name_the_server_gives_them(script: Any, valkey_url: str) -> None:
    with redis.Redis.from_url(valkey_url) as server:
        assert server.script_load(script.text) == script.sha


# ── Policy ──


async def test_a_request_that_is_cancelled_while_it_asks_for_the_policy_leaves_that_to_the_next(
    own_server: Server,
) -> None:
    """It is the first one, and at a start many things take long."""
    own_server.options = ("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
    own_server.start()
    store = RedisStore.from_url(own_server.url)
    first = asyncio.ensure_future(store.load(a_record().key))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})

    with pytest.warns(SessionWarning, match="allkeys-lru"):
        await store.load(a_record().key)
    await store.aclose()


async def test_a_policy_that_evicts_sessions_is_warned_of_once(own_server: Server, clock: FakeClock) -> None:
    own_server.options = ("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
    own_server.start()
    events: list[Event] = []
    store = RedisStore.from_url(own_server.url)
    browser = Browser(app_with(store, clock=clock, on_event=events.append))

    with pytest.warns(SessionWarning, match="allkeys-lru.*noeviction"):
        await browser.do(put(a=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await read(browser)
    await store.aclose()

    assert [(event.name, event.details) for event in events if event.name.startswith("store")] == [
        ("store.evicts", {"policy": "allkeys-lru"})
    ]


# ── Connections ──


async def test_a_restarted_server_is_found_again(own_server: Server, own_store: RedisStore, clock: FakeClock) -> None:
    browser = Browser(app_with(own_store, clock=clock))
    await browser.do(put(a=1))
    own_server.restart()

    response = await browser.do(put(a=2))

    assert response.status == 200
    assert (await read(browser))["data"] == {"a": 2}


async def test_a_stopped_server_is_a_503_and_its_cause_is_kept(own_server: Server, own_store: RedisStore) -> None:
    browser = Browser(app_with(own_store))
    await browser.do(put(a=1))
    own_server.stop()

    assert (await browser.do()).status == 503
    with pytest.raises(StoreError) as caught:
        await own_store.load(browser.key)
    assert isinstance(caught.value.__cause__, redis.ConnectionError)


async def test_a_client_that_was_passed_in_stays_the_apps(valkey_url: str) -> None:
    client = Redis.from_url(valkey_url, protocol=2)
    store = RedisStore(client, prefix="test-given")
    record = a_record()
    await store.create(record)

    await store.aclose()

    assert await client.ping() is True
    assert await store.load(record.key) == record
    await store.delete(record.key)
    await client.aclose()


async def test_a_client_with_the_drivers_defaults_works_too(valkey_url: str, clock: FakeClock) -> None:
    client = Redis.from_url(valkey_url)
    browser = Browser(app_with(RedisStore(client, prefix="test-defaults"), clock=clock))

    await browser.do(log_in("alice"))
    await browser.do(regenerate)
    await browser.do(put(a=1))
    assert (await read(browser))["data"] == {"a": 1}
    await browser.do(destroy)
    await client.aclose()


def test_a_store_is_not_tied_to_a_loop(valkey_url: str) -> None:
    store = RedisStore.from_url(valkey_url, prefix="test-loops")
    record = a_record()

    async def first() -> None:
        await store.create(record)
        await store.aclose()

    async def second() -> None:
        assert await store.delete(record.key) == record
        await store.aclose()

    asyncio.run(first())
    asyncio.run(second())


LOOP_AFTER_LOOP = """
import asyncio, gc, sys
from asgi_sessions import RedisStore
store = RedisStore.from_url(sys.argv[1])
for _ in range(3):
    asyncio.run(store.load("A" * 46))  # never closed, as with a test client that leaves the lifespan out
gc.collect()
print("done")
"""


def test_loops_that_end_without_closing_the_store_leave_no_noise(valkey_url: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOOP_AFTER_LOOP, valkey_url], capture_output=True, text=True, check=False
    )

    assert answer.stdout == "done\n"
    assert answer.stderr == ""


# ── Refused when built ──


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://localhost", "redis://localhost:notaport"])
def test_a_url_that_is_not_one_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"redis://host:6379/0"):
        RedisStore.from_url(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://localhost/shop", "number of the database"),
        ("rediss://localhost/0/1", "number of the database"),
        ("redis://localhost/-1", "number of the database"),
        ("unix://", "no path"),
        ("unix://socket", "no path"),
        ("unix://user@?db=1", "no path"),
    ],
)
@pytest.mark.parametrize("build", [RedisStore.from_url, RedisStore.from_cluster], ids=["a server", "a cluster"])
def test_a_path_that_redis_py_would_ignore_is_refused(build: Any, url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build(url)


def test_a_password_in_a_bad_url_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisStore.from_url("redis://:hunter2@localhost:notaport")

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: RedisStore.from_url("redis://localhost?protocol=3"),
        lambda: RedisStore.from_url("redis://localhost", protocol=3),
        lambda: RedisStore.from_cluster("redis://localhost?protocol=3"),
        lambda: RedisStore.from_sentinel([("localhost", 26379)], "main", protocol=3),
    ],
    ids=["in a URL", "as an option", "of a cluster", "of sentinels"],
)
def test_a_protocol_in_which_not_all_that_arrives_is_a_reply_is_refused(build: Callable[[], RedisStore]) -> None:
    with pytest.raises(ConfigurationError, match="protocol=3"):
        build()


@pytest.mark.parametrize("prefix", ["", "{x}", "a b", "é", "*", "a\n", "x" * 101])
def test_a_prefix_that_would_break_keys_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="prefix"):
        RedisStore.from_url("redis://localhost", prefix=prefix)


def test_a_synchronous_client_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"redis\.asyncio"):
        RedisStore(redis.Redis())


async def test_a_client_that_decodes_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="decode_responses"):
        RedisStore(Redis(decode_responses=True))


async def test_an_index_that_was_tampered_with_ends_nobody_else(
    store: RedisStore, kind: a_store, server: redis.Redis, clock: FakeClock
) -> None:
    """The index stands in the clear; what it leads to must be of that session and that user."""
    app = app_with(store, clock=clock)
    one, other = Browser(app), Browser(app)
    for browser in (one, other):
        await browser.do(log_in("alice"))
    index = f"{store._stem(one.key)}u:{owner_of('alice')}"
    ids = {key: id for id, key in (await store.index(owner_of("alice"))).items()}
    server.hset(index, ids[one.key], other.key[3:] + "9999999999999")

    ended = await app.sessions.revoke("alice", ids[one.key])

    assert not ended
    assert await store.load(other.key) is not None


async def test_the_history_knows_when_a_session_ended_whose_record_the_server_has_dropped(
    store: RedisStore, kind: a_store, server: redis.Redis, clock: FakeClock
) -> None:
    browser = Browser(app_with(store, clock=clock))
    await browser.do(log_in("alice"))
    clock.advance(1800)
    await browser.do()  # touched, so the end moves
    server.delete(store._name(browser.key))
    ends_at = clock() + 3600
    clock.advance(7200)

    (end, _) = await Sessions(store, clock=clock).history("alice")

    assert (end.event, end.reason) == ("ended", "idle")
    assert -60 < end.at.timestamp() - ends_at <= 0


async def test_a_new_limit_ends_more_sessions_than_lua_returns_at_once(own_server: Server) -> None:
    """A user with thousands of sessions, from before there was a limit. Lua unpacks 8,000 values at most."""
    own_server.start()
    client = Redis.from_url(own_server.url, socket_timeout=30)  # a busy machine may take its time
    store, record = RedisStore(client), a_record(owner="alice")
    async with client.pipeline(transaction=False) as pipe:
        for old in (a_record(owner="alice") for _ in range(8_100)):
            pipe.set(store._name(old.key), pack(old))
            pipe.hset(store._index(owner_of("alice")), old.id, f"{old.key[3:]}{old.expires_at * 1000:013.0f}")
        await pipe.execute()

    admission = await store.create(record, note=a_note(record, rules=Rules(limit=3)))

    assert admission is not None
    assert len(admission.ended) == 8_098
    assert record.id in await store.index(owner_of("alice"))
    await client.aclose()
