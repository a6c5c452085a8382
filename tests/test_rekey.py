"""Sealing everything anew, while the app is up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from asgi_sessions import ConfigurationError, MemoryStore, RedisStore, StoreError, UserSessions
from asgi_sessions._cipher import Secrets
from asgi_sessions._record import sealed_by_first
from asgi_sessions.cli import main
from asgi_sessions.cli._rekey import VARIABLE
from asgi_sessions.rekey import Progress, rekey
from asgi_sessions.testing import FakeClock, a_record
from tests.conftest import a_store
from tests.support import Browser, app_with, destroy, log_in, put, read

OLD, NEW = "the old secret of at least 32 bytes!", "the new secret of at least 32 bytes!"


@pytest.fixture(params=["valkey", "redis", "sqlite", "mariadb"])
async def store(request: pytest.FixtureRequest, anyio_backend: Any) -> AsyncIterator[Any]:
    async with a_store(request, request.param) as made:
        yield made


async def visitors(store: Any, clock: FakeClock, many: int) -> list[Browser]:
    app = app_with(store, clock=clock, secret_keys=[OLD])
    browsers = [Browser(app) for _ in range(many)]
    for number, browser in enumerate(browsers):
        await browser.do(log_in(f"user {number}") if number % 2 else put(anonymous=number))
        await browser.do(put(number=number))
    return browsers


async def test_afterwards_nothing_opens_with_the_old_secret_and_nobody_is_out(store: Any, clock: FakeClock) -> None:
    browsers = await visitors(store, clock, 12)

    done = await rekey(store, [NEW, OLD])

    assert (done.looked_at, done.sealed, done.damaged, done.cursor) == (12, 12, 0, "")
    rotated = app_with(store, clock=clock, secret_keys=[NEW, OLD])
    for number, browser in enumerate(browsers):
        record = await store.load(browser.key)
        assert sealed_by_first(record, Secrets([NEW]))
        seen = await read(Browser(rotated, browser.token))
        assert seen["data"]["number"] == number
        assert seen["user_id"] == (f"user {number}" if number % 2 else None)
    assert len(await UserSessions(store).list("user 1")) == 1
    assert (await rekey(store, [NEW, OLD])).sealed == 0


async def test_it_goes_on_where_it_was_stopped(store: Any, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_sessions.rekey.BATCH", 5)
    await visitors(store, clock, 20)
    stops: list[str] = []

    def stop(progress: Progress) -> None:
        stops.append(progress.cursor)
        raise StoreError("stopped")

    with pytest.raises(StoreError):
        await rekey(store, [NEW, OLD], report=stop)
    rest = await rekey(store, [NEW, OLD], cursor=stops[0])

    assert rest.looked_at < 20 or isinstance(store, RedisStore)  # SCAN gives as many as it likes
    assert (await rekey(store, [NEW, OLD])).sealed == 0


async def test_under_load_nothing_is_lost_and_nothing_comes_back(store: Any, clock: FakeClock) -> None:
    browsers = await visitors(store, clock, 20)
    rotated = app_with(store, clock=clock, secret_keys=[NEW, OLD])
    mine = [Browser(rotated, browser.token) for browser in browsers]
    counts = dict.fromkeys(range(20), 0)
    done = asyncio.Event()

    async def write(number: int) -> None:
        while not done.is_set():
            if number >= 15:
                await mine[number].do(destroy)
                return
            counts[number] += 1
            assert (await mine[number].do(put(count=counts[number]))).status == 200

    writers = [asyncio.ensure_future(write(number)) for number in range(20)]
    for _ in range(5):
        await rekey(store, [NEW, OLD])
    done.set()
    await asyncio.gather(*writers)

    for number in range(15):
        assert (await read(Browser(rotated, browsers[number].token)))["data"]["count"] == counts[number]
    for number in range(15, 20):
        assert await store.load(browsers[number].key) is None


async def test_what_does_not_open_is_left_alone_and_counted(store: Any, clock: FakeClock) -> None:
    await visitors(store, clock, 3)
    stranger = a_record(body=b"Snot sealed by anybody here, whatever it looks like")
    await store.create(stranger)

    done = await rekey(store, [NEW, OLD])

    assert (done.looked_at, done.sealed, done.damaged) == (4, 3, 1)
    assert await store.load(stranger.key) == stranger


async def test_it_keeps_to_its_rate(store: Any, clock: FakeClock) -> None:
    await visitors(store, clock, 10)
    loop = asyncio.get_running_loop()
    began = loop.time()

    await rekey(store, [NEW, OLD], rate=50)

    assert loop.time() - began >= 0.2  # ten records at fifty a second; never earlier, whatever the machine does


async def test_from_the_command_line(
    store: Any, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], valkey_url: str
) -> None:
    if not isinstance(store, RedisStore):
        pytest.skip("the other ways are the same from here")
    store = RedisStore.from_url(valkey_url, prefix=f"rekey-{id(store)}")
    await visitors(store, clock, 4)
    monkeypatch.setenv(VARIABLE, f"{NEW.replace(' ', '_')} {OLD.replace(' ', '_')}")

    code = await asyncio.to_thread(main, ["rekey", valkey_url, "--name", store.namespace])

    assert code == 0
    assert capsys.readouterr().out == "4 looked at, 0 sealed anew, 4 do not open; done\n"  # sealed with other ones
    monkeypatch.delenv(VARIABLE)
    assert await asyncio.to_thread(main, ["rekey", valkey_url]) == 2
    assert VARIABLE in capsys.readouterr().err
    await store.aclose()


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((MemoryStore(), [NEW]), {}), ((RedisStore.from_url("redis://x"), []), {}),
     ((RedisStore.from_url("redis://x"), [NEW]), {"rate": 0}), ((RedisStore.from_cluster("redis://x"), [NEW]), {})],
    ids=["memory", "no secrets", "no rate", "a cluster"],
)  # fmt: skip
async def test_what_does_not_fit_is_said(arguments: Any, options: Any) -> None:
    with pytest.raises(ConfigurationError):
        await rekey(*arguments, **options)
