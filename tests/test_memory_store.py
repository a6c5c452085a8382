"""What is particular to MemoryStore: it is bounded, purges itself, and works under trio."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from asgi_sessions import ConfigurationError, MemoryStore
from asgi_sessions._core.token import owner_of
from asgi_sessions.testing import FakeClock, UserStoreContract, a_record
from tests.support import Browser, app_with, destroy, log_in, put, read


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
class TestMemoryStoreUnderEveryLoop(UserStoreContract):
    @pytest.fixture
    async def store(self) -> MemoryStore:
        return MemoryStore()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_whole_life_under_trio(memory: MemoryStore) -> None:
    browser = Browser(app_with(memory))
    await browser.do(put(basket=1))
    await browser.do(log_in("alice"))
    slow = browser.another()
    async with slow.paused(put(a=1)):
        await browser.do(put(b=2))

    assert (await read(browser))["data"] == {"basket": 1, "a": 1, "b": 2}
    await browser.do(destroy)
    assert len(memory) == 0


async def test_it_is_bounded_and_the_one_idle_for_longest_goes_first(clock: FakeClock) -> None:
    store = MemoryStore(max_records=3)
    app = app_with(store, clock=clock)
    browsers = [Browser(app) for _ in range(4)]
    for browser in browsers[:3]:
        await browser.do(log_in("alice"))
        clock.advance(61)
    await browsers[0].do()  # is heard from again

    await browsers[3].do(log_in("alice"))

    assert len(store) == 3
    assert [(await read(browser))["user_id"] for browser in browsers] == ["alice", None, "alice", "alice"]
    assert len(await store.index(owner_of("alice"))) == 3


async def test_it_purges_what_has_expired(clock: FakeClock) -> None:
    store = MemoryStore()
    app = app_with(store, clock=clock)
    for _ in range(100):
        await Browser(app).do(log_in("alice"))
    clock.advance(3601)

    await Browser(app).do(log_in("bob"))

    assert len(store) == 1
    assert await store.index(owner_of("alice")) == {}


async def test_it_keeps_what_has_not_expired(memory: MemoryStore) -> None:
    long, short = a_record(owner="alice"), a_record(number=1)
    long = replace(long, expires_at=long.seen_at + 99_999)
    await memory.create(long)
    await memory.create(short)

    await memory.create(replace(a_record(number=2), seen_at=short.expires_at + 1, expires_at=short.expires_at + 9))

    assert await memory.load(long.key) == long
    assert await memory.load(short.key) is None


@pytest.mark.parametrize("bound", [0, -1, 1.5, "many"])
def test_a_bound_that_is_none_is_refused(bound: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_records"):
        MemoryStore(max_records=bound)
