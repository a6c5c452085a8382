"""Ends that a failover of PostgreSQL does not undo: a primary, a synchronous standby that lags, and its promotion."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from asgi_sessions import ConfigurationError, MemoryStore, SQLStore
from asgi_sessions.stores.sql._server import advice
from asgi_sessions.testing import a_record
from tests.conftest import require
from tests.databases import SERVERS, DatabaseServer
from tests.properties.faults import Faulty
from tests.standby import Pair, a_pair
from tests.support import Browser, app_with, destroy, log_in, put, read


@pytest.fixture
async def pair(anyio_backend: Any) -> AsyncIterator[Pair]:
    if SERVERS["postgresql"].find() is None:
        require("no PostgreSQL server is installed here")
    async with a_pair() as made:
        yield made


async def answered(browser: Browser, handler: Any, status: int) -> None:
    give_up = time.monotonic() + 10
    while (response := await browser.another().do(handler)).status != status:
        assert time.monotonic() < give_up, response.status
        await asyncio.sleep(0.1)


@pytest.mark.timeout(120)
async def test_an_end_counts_when_the_standby_shows_it(pair: Pair) -> None:
    """Both ways: that it matters, and that it helps."""
    durable = SQLStore.from_url(pair.primary.url, durable_ends=True)
    plain = SQLStore.from_url(pair.primary.url)
    careful, careless, early = Browser(app_with(durable)), Browser(app_with(plain)), Browser(app_with(durable))
    for browser in (careful, careless, early):
        await answered(browser, lambda session: None, 200)
        await browser.do(log_in("alice"))
        await browser.do(put(a=1))
    early_token, careless_token, careful_token = early.token, careless.token, careful.token

    assert (await early.do(destroy)).status == 200
    await pair.part()
    again = careful.another()

    assert (await careful.do(destroy)).status == 503  # it is not said that the session has ended
    assert (await again.another().do(destroy)).status == 503  # nor does a second look find nothing and say so
    assert (await careless.do(destroy)).status == 200
    assert (await careful.do(log_in("alice"))).status == 200  # which nobody waits for

    for store in (durable, plain):
        await store.aclose()
    await pair.fail_over()
    promoted = SQLStore.from_url(pair.standby.url)
    alive = {
        name: (await read(Browser(app_with(promoted), token)))["user_id"]
        for name, token in (("early", early_token), ("careless", careless_token), ("careful", careful_token))
    }
    await promoted.aclose()

    assert alive == {
        "early": None,
        "careless": "alice",
        "careful": "alice",
    }  # and only one of them was told that it is over


@pytest.mark.timeout(120)
async def test_a_standby_that_catches_up_confirms_a_repeated_log_out(pair: Pair) -> None:
    store = SQLStore.from_url(pair.primary.url, durable_ends=True)
    alice = Browser(app_with(store))
    await answered(alice, lambda session: None, 200)
    await alice.do(log_in("alice"))
    again = alice.another()
    await pair.part()
    assert (await alice.do(destroy)).status == 503

    pair.standby.thaw()
    await answered(again, destroy, 200)
    await store.aclose()


@pytest.mark.parametrize("url", ["sqlite+aiosqlite:///x.db", "mysql+asyncmy://root@127.0.0.1/test"])
def test_other_databases_say_where_it_is_set(url: str) -> None:
    with pytest.raises(ConfigurationError, match="on the server instead"):
        SQLStore.from_url(url, durable_ends=True)


async def test_a_store_without_replicas_is_not_asked_to_confirm(memory: MemoryStore) -> None:
    store: Any = Faulty(memory)
    browser = Browser(app_with(store))
    await browser.do(log_in("alice"))
    again = browser.another()
    await browser.do(destroy)
    store.arm()

    await again.do(destroy)

    assert store.calls == ["load"]


# ── Settings of a server that undo acknowledged ends ──


@pytest.mark.parametrize(
    ("own_database", "settings", "options", "words"),
    [
        pytest.param("postgresql", {}, {}, [], id="as it comes"),
        pytest.param("postgresql", {}, {"durable_ends": True}, ["set synchronous_standby_names"], id="no standby"),
        pytest.param(
            "postgresql", {"synchronous_commit": "off"}, {}, ["set synchronous_commit = on"], id="late commits"
        ),
        pytest.param(
            "postgresql",
            {"synchronous_commit": "off", "synchronous_standby_names": "'*'"},
            {"durable_ends": True},
            [],
            id="late commits of others",
        ),
        pytest.param("postgresql", {"fsync": "off"}, {}, ["set fsync = on"], id="no disk"),
        pytest.param("mariadb", {}, {}, [], id="MariaDB as it comes"),
        pytest.param(
            "mariadb",
            {"innodb_flush_log_at_trx_commit": "2"},
            {},
            ["set innodb_flush_log_at_trx_commit = 1"],
            id="MariaDB, late commits",
        ),
    ],
    indirect=["own_database"],
)
async def test_settings_that_undo_ends_are_warned_of_once(
    own_database: DatabaseServer,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, str],
    options: dict[str, Any],
    words: list[str],
) -> None:
    await changed(own_database, settings)
    store = SQLStore.from_url(own_database.url, **options)

    for _ in range(2):
        await asyncio.gather(*(store.load(a_record().key) for _ in range(4)), return_exceptions=True)  # no tables
        await store.aclose()
    await changed(own_database, dict.fromkeys(settings, "DEFAULT"))

    said = [line for line in caplog.messages if line.startswith("store.settings")]
    assert len(said) == len(words)
    assert all(f"host={store.address}: " in line and word in line for line, word in zip(said, words, strict=True))


async def changed(server: DatabaseServer, settings: dict[str, str]) -> None:
    if server.kind == "mariadb":
        await server.say(*(f"SET GLOBAL {name} = {value}" for name, value in settings.items()))
        return
    await server.say(
        *(f"ALTER SYSTEM SET {name} = {value}" for name, value in settings.items()), "SELECT pg_reload_conf()"
    )
    async with server.connection() as connection:
        for name, value in settings.items():
            while value != "DEFAULT" and await connection.scalar(text(f"SHOW {name}")) != value.strip("'"):  # noqa: ASYNC110 - it reads its file a moment later
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("own_database", ["postgresql"], indirect=True)
async def test_settings_that_may_not_be_read_are_no_error(
    own_database: DatabaseServer, caplog: pytest.LogCaptureFixture
) -> None:
    maker, store = (
        SQLStore.from_url(own_database.url, durable_ends=durable, table="unread") for durable in (False, True)
    )
    await maker.create_tables()
    await maker.aclose()
    await own_database.say("REVOKE SELECT ON pg_settings FROM PUBLIC")

    found = await store.load(a_record().key)

    await own_database.say("GRANT SELECT ON pg_settings TO PUBLIC")
    await store.aclose()
    assert (found, caplog.messages) == (None, [])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"log_bin": "on", "sync_binlog": "0"}, ["sync_binlog = 1"]),
        ({"log_bin": "off", "sync_binlog": "0", "innodb_flush_log_at_trx_commit": "3"}, []),
    ],
    ids=["a binary log", "no binary log"],
)
def test_advice_on_the_binary_log(settings: dict[str, str], words: list[str]) -> None:
    said = advice(settings, durable_ends=False)

    assert len(said) == len(words)
    assert all(word in line for line, word in zip(said, words, strict=True))
