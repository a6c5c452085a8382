"""The cache of opened records: the store is asked all the same, and nothing but the very same bytes is taken from the cache."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from asgi_sessions import ConfigurationError, MemoryStore, RedisStore, Sessions
from asgi_sessions._core.record import Body, Record, pack
from asgi_sessions._engine.opened import DEFAULT_BYTES, OVERHEAD, OpenedRecords
from asgi_sessions.testing import FakeClock, a_record
from tests.conftest import Server
from tests.support import Browser, app_with, destroy, log_in, put, read

SECRETS: dict[str, Any] = {"secret_keys": ["an excellent secret of at least 32 bytes"]}
BODY = Body("session", None, 1.0, None, 1.0, False, b"x" * 300)


@pytest.fixture(params=[{}, SECRETS], ids=["plain", "sealed"])
def options(request: pytest.FixtureRequest) -> Any:
    return request.param


async def opened_of(server: Server, options: Any, clock: FakeClock) -> tuple[Sessions, RedisStore, Browser]:
    """A user whose record is in the cache."""
    server.start()
    store = RedisStore.from_url(server.url)
    sessions = Sessions(store, clock=clock, **options)
    browser = Browser(app_with(sessions))
    await browser.do(log_in("alice"))
    await browser.do(put(cart=[1, [2]], a=1))
    await read(browser)
    assert len(sessions._manager.cache) == 1
    return sessions, store, browser


async def test_who_is_in_the_cache_is_asked_for_all_the_same(
    own_server: Server, clock: FakeClock, options: Any
) -> None:
    sessions, store, browser = await opened_of(own_server, options, clock)
    thief = browser.another()
    elsewhere = RedisStore.from_url(own_server.url)
    await Sessions(elsewhere, clock=clock, **options).revoke_all("alice")

    assert (await read(thief))["user_id"] is None
    assert len(sessions._manager.cache) == 0, "nor does it stay opened"
    await store.aclose()
    await elsewhere.aclose()


async def test_what_another_process_wrote_is_read(own_server: Server, clock: FakeClock, options: Any) -> None:
    _, store, browser = await opened_of(own_server, options, clock)
    elsewhere = RedisStore.from_url(own_server.url)
    there = Browser(app_with(Sessions(elsewhere, clock=clock, **options)), browser.token)
    for number in range(3):
        await there.do(put(a=number))
        assert (await read(browser))["data"]["a"] == number
    await store.aclose()
    await elsewhere.aclose()


async def test_no_two_requests_share_an_object(own_server: Server, clock: FakeClock, options: Any) -> None:
    _, store, browser = await opened_of(own_server, options, clock)
    seen: list[Any] = []
    for _ in range(2):
        await browser.do(lambda session: seen.append(dict.__getitem__(session, "cart")))  # past what notes changes
        seen[-1][1].append("mine alone")

    assert (await read(browser))["data"]["cart"] == [1, [2]]
    assert seen[0] is not seen[1]
    await store.aclose()


async def test_every_bit_of_the_record_counts(own_server: Server, clock: FakeClock, options: Any) -> None:
    """Whoever can write to the server cannot make use of what was opened before."""
    _, store, browser = await opened_of(own_server, options, clock)
    name = store._name(browser.key)
    with redis.Redis.from_url(own_server.url) as client:
        value: Any = client.get(name)
        for at in range(0, len(value), 7):
            client.set(name, value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :])
            changed = await read(browser)
            if "secret_keys" in options and not 1 <= at < 35:  # the clocks and the revision are the store's to change
                assert changed["is_new"], at
        client.set(name, value)
    assert (await read(browser))["user_id"] == "alice"
    await store.aclose()


async def test_what_is_too_large_to_be_asked_for_at_once_is_not_kept(own_server: Server, clock: FakeClock) -> None:
    sessions, store, browser = await opened_of(own_server, {}, clock)
    await browser.do(put(a=bytes(20_000)))

    assert (await read(browser))["data"]["a"] == bytes(20_000)
    kept = [entry for half in (sessions._manager.cache._new, sessions._manager.cache._old) for entry in half.values()]
    assert all(len(value) < 16_384 for value, _, _ in kept)
    await store.aclose()


async def test_the_time_is_looked_at_with_every_request(own_server: Server, clock: FakeClock, options: Any) -> None:
    _, store, browser = await opened_of(own_server, options, clock)
    clock.advance(3 * 3600)

    assert (await read(browser))["user_id"] is None
    await store.aclose()


async def test_none_is_kept_where_there_is_no_room(own_store: RedisStore, clock: FakeClock) -> None:
    sessions = Sessions(own_store, clock=clock, cache_bytes=0)
    browser = Browser(app_with(sessions))
    await browser.do(log_in("alice"))
    await browser.do(put(a=1))

    assert (await read(browser))["data"] == {"a": 1}
    await browser.do(destroy)
    assert len(sessions._manager.cache) == 0


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "8M", None])
def test_a_size_that_is_none_fails_when_the_app_is_built(memory: MemoryStore, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="cache_bytes"):
        Sessions(memory, cache_bytes=wrong)


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["put", "get", "other", "drop"])), max_size=60))
def test_it_says_what_was_put_in_or_nothing(steps: list[tuple[int, str]]) -> None:
    cache, put_in = OpenedRecords(6 * (3 * len(pack(a_record())) + OVERHEAD)), dict[str, tuple[bytes, Record]]()
    records = [a_record(number=number) for number in range(10)]
    for number, step in steps:
        record = records[number]
        key, value = record.key, pack(record)
        if step == "put":
            cache.put(key, value, record, BODY)
            put_in[key] = (value, record)
        elif step == "drop":
            cache.drop(key)
            put_in.pop(key, None)
            assert cache.get(key, value) is None
        elif step == "other":
            assert cache.get(key, value + b"x") is None
        else:
            found = cache.get(key, value)
            assert found is None or found == (value, put_in[key][1], BODY)


@pytest.mark.parametrize("size", [300, 2_000, 15_000])
def test_its_memory_is_bounded(size: int) -> None:
    """Measured, with all that an entry is made of."""
    most = DEFAULT_BYTES // 4
    cache = OpenedRecords(most)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(4 * most // size):
        record = a_record(number=number, owner="alice", body=b"P" + bytes(size))
        body = Body("session", f"user {number}", 1.5 + number, 2.5 + number, 3.5 + number, False, bytes(size))
        cache.put(record.key, pack(record), record, body)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert most / 4 < taken < most


def test_who_is_used_stays() -> None:
    size = 3 * len(pack(a_record())) + OVERHEAD
    cache = OpenedRecords(20 * size)
    busy = a_record(number=1)
    cache.put(busy.key, pack(busy), busy, BODY)
    for number in range(2, 200):
        other = a_record(number=number)
        cache.put(other.key, pack(other), other, BODY)
        assert cache.get(busy.key, pack(busy)) is not None
    assert len(cache) <= 20


async def test_a_subclass_with_a_load_of_its_own_is_asked_by_it(own_server: Server, clock: FakeClock) -> None:
    class Counting(RedisStore):
        keeps_its_own_deadline = True
        loads = 0

        async def load(self, key: str, asked: Any = None) -> Record | None:
            self.loads += 1
            return await super().load(key)

    own_server.start()
    store = Counting.from_url(own_server.url)
    sessions = Sessions(store, clock=clock)
    browser = Browser(app_with(sessions))
    await browser.do(put(a=1))
    for _ in range(3):
        await read(browser)

    assert store.loads == 3
    assert len(sessions._manager.cache) == 0
    await store.aclose()


@pytest.mark.parametrize("what", ["nothing", "a wrong type", "an error", "no record"])
async def test_what_is_no_plain_answer_is_left_to_the_method(
    own_server: Server, own_store: RedisStore, clock: FakeClock, what: str
) -> None:
    browser = Browser(app_with(Sessions(own_store, clock=clock)))
    await browser.do(put(a=1))
    await read(browser)
    name = own_store._name(browser.key)
    with redis.Redis.from_url(own_server.url) as client:
        if what == "an error":
            client.acl_setuser("default", enabled=True, nopass=True, commands=["+@all", "-getrange"], keys=["*"])
            assert (await browser.do()).status == 503
            client.acl_setuser("default", enabled=True, nopass=True, commands=["+@all"], keys=["*"])
            assert (await read(browser))["data"] == {"a": 1}
        else:
            client.delete(name)
            if what == "a wrong type":
                client.lpush(name, "x")
            elif what == "no record":
                client.set(name, b"nonsense")
            assert (await read(browser))["is_new"]


async def test_a_script_that_the_server_forgot_is_sent_again(
    own_server: Server, own_store: RedisStore, clock: FakeClock
) -> None:
    browser = Browser(app_with(Sessions(own_store, clock=clock)))
    await browser.do(put(a=1))
    await browser.do(put(a=2))
    with redis.Redis.from_url(own_server.url) as client:
        client.script_flush()

    assert (await browser.do(put(a=3))).status == 200
    assert (await read(browser))["data"] == {"a": 3}
