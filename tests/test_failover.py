"""After a failover the connection is at fault, and not the statement: the old primary answers, and refuses writes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from asgi_sessions import RedisStore, SQLStore, StoreError
from asgi_sessions.testing import a_record
from tests.conftest import Server
from tests.databases import DatabaseServer
from tests.proxy import Proxy
from tests.support import Browser, app_with, log_in, put, read

# ── Redis ──


def say(port: int, *command: Any) -> None:
    with redis.Redis(port=port) as client:
        client.execute_command(*command)


@pytest.fixture
def new_server() -> Any:
    server = Server()
    server.start()
    yield server
    server.remove()


@pytest.mark.parametrize("kind", ["own connections", "a client of the app", "its only connection"])
async def test_writes_go_to_the_new_primary_after_one_503_at_most(
    own_server: Server, proxy: Proxy, new_server: Server, kind: str
) -> None:
    """The old one lives on as a replica. The name leads to the new one, as DNS or a proxy in front has it."""
    url, is_single = proxy.url(own_server.url), kind == "its only connection"
    is_own = kind == "own connections"
    client = None if is_own else redis.asyncio.Redis.from_url(url, single_connection_client=is_single)
    store = RedisStore.from_url(url) if client is None else RedisStore(client)
    alice = Browser(app_with(store))
    await alice.do(log_in("alice"))
    await asyncio.to_thread(say, new_server.port, "REPLICAOF", "127.0.0.1", own_server.port)
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(has_keys, new_server.port):  # noqa: ASYNC110 - until it has them
            await asyncio.sleep(0.05)

    await asyncio.to_thread(say, new_server.port, "REPLICAOF", "NO", "ONE")
    await asyncio.to_thread(say, own_server.port, "REPLICAOF", "127.0.0.1", new_server.port)
    proxy.target = new_server.port  # for new connections
    statuses = [(await alice.do(put(a=n))).status for n in range(4)]

    assert set(statuses[1:]) == {200}
    assert (await read(alice))["data"] == {"a": 3}
    await store.aclose()
    if client is not None:
        await client.aclose()


def has_keys(port: int) -> bool:
    with redis.Redis(port=port) as client:
        return bool(client.keys("*:s:*"))


WRONG = {
    "READONLY": "READONLY You can't write against a read only replica.",
    "LOADING": "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN": "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "-READONLY": (  # Redis 6.2, in a script
        "ERR Error running script (call to f_1a2b): @user_script:9: @user_script: 9: "
        "-READONLY You can't write against a read only replica."
    ),
    "UNBLOCKED": "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
}
RIGHT = {
    "OOM": "OOM command not allowed when used memory > 'maxmemory'.",
    "NOPERM": "NOPERM User app has no permissions to run the 'evalsha' command",
    "BUSY": "BUSY Redis is busy running a script.",
}


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("words", [*WRONG, *RIGHT])
async def test_what_says_that_the_server_is_no_primary_closes_the_connection_and_nothing_else_does(
    own_server: Server, proxy: Proxy, words: str, write: bool
) -> None:
    store: Any = RedisStore.from_url(proxy.url(own_server.url))
    record = a_record()
    await store.create(record)
    before = store._client._here().current

    proxy.garbage = f"-{(WRONG | RIGHT)[words]}\r\n".encode()
    with pytest.raises(StoreError, match=words):
        await (store.touch(record.key, seen_at=9e9, expires_at=9e9) if write else store.load(record.key))

    assert (before.lost is not None) == (words in WRONG)
    assert await store.load(record.key) is not None
    await store.aclose()


async def test_a_server_that_stays_read_only_is_not_connected_to_again_and_again(own_server: Server) -> None:
    own_server.start()
    store: Any = RedisStore.from_url(own_server.url)
    record = a_record()
    await store.create(record)
    await asyncio.to_thread(say, own_server.port, "REPLICAOF", "127.0.0.1", "1")
    connections = set()

    for _ in range(20):
        with pytest.raises(StoreError, match="READONLY"):
            await store.update(record, rev=1)
        assert await store.load(record.key) is not None
        connections.add(store._client._here().current)

    assert len(connections) <= 3  # within a second or two
    await store.aclose()


# ── Databases ──


class Base:
    """A store on a real database, and its engine."""

    def __init__(self, store: SQLStore, engine: AsyncEngine, kind: str) -> None:
        self.store, self.engine, self.kind = store, engine, kind
        self.opened: list[Any] = []
        event.listen(engine.sync_engine, "connect", lambda connection, _: self.opened.append(connection))

    async def spoil_all(self, number: int) -> None:
        """Every connection that there is says from now on that it is read-only; new ones do not."""
        words = {
            "postgresql": "SET default_transaction_read_only = on",
            "mysql": "SET SESSION TRANSACTION READ ONLY",
            "mariadb": "SET SESSION TRANSACTION READ ONLY",
        }[self.engine.dialect.name]
        connections = [await self.engine.connect() for _ in range(number)]
        for connection in connections:
            # In autocommit, so that the end of a transaction does not take it back.
            autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await autocommit.exec_driver_sql(words)
        for connection in connections:
            await connection.close()


DRIVERS = {"postgresql": ["asyncpg"], "mariadb": ["asyncmy", "aiomysql"]}


@pytest.fixture(
    params=[
        pytest.param((kind, driver, own), id=f"{driver}, {'own engine' if own else 'engine of the app'}")
        for kind, drivers in DRIVERS.items()
        for driver in drivers
        for own in (True, False)
    ]
)
async def base(
    request: pytest.FixtureRequest, a_database: Callable[[str], DatabaseServer], anyio_backend: str
) -> AsyncIterator[Base]:
    kind, driver, own = request.param
    server = await asyncio.to_thread(a_database, kind)
    table = f"test_{secrets.token_hex(6)}"
    url = server.url.replace("+asyncmy", f"+{driver}")
    if own:
        store = SQLStore.from_url(url, table=table)
        engine = store._first
    else:
        engine = create_async_engine(url)
        store = SQLStore(engine, table=table)
    await store.create_tables()
    yield Base(store, engine, kind)
    await store.aclose()
    await engine.dispose()
    await server.say(f"DROP TABLE {table}", f"DROP TABLE {table}_history")


async def test_every_write_succeeds_though_all_old_connections_are_read_only(base: Base) -> None:
    alice = Browser(app_with(base.store))
    await alice.do(log_in("alice"))
    await base.spoil_all(4)

    tabs = [alice.another() for _ in range(4)]
    answers = await asyncio.gather(*(tab.do(put(**{f"k{n}": n})) for n, tab in enumerate(tabs)))

    assert {answer.status for answer in answers} == {200}
    assert len((await read(alice))["data"]) == 4


async def test_a_transaction_is_repeated_on_a_new_connection(base: Base) -> None:
    """A log-in and a log-out have several statements, and either all of them count or none."""
    await base.spoil_all(3)
    alice = Browser(app_with(base.store))

    assert (await alice.do(log_in("alice"))).status == 200
    await base.spoil_all(3)
    await asyncio.sleep(1.01)  # a second one so soon would be taken for a server that stays read-only
    assert (await alice.do(lambda session: session.destroy())).status == 200

    assert alice.token is None


async def test_a_database_that_stays_read_only_refuses_and_is_not_connected_to_again_and_again(
    base: Base, a_database: Callable[[str], DatabaseServer]
) -> None:
    server = a_database(base.kind)
    record = a_record()
    await base.store.create(record)
    if base.kind == "postgresql":
        spoil = ["ALTER ROLE app SET default_transaction_read_only = on"]
        mend = ["ALTER ROLE app RESET default_transaction_read_only"]
    else:
        spoil, mend = ["SET GLOBAL read_only = 1"], ["SET GLOBAL read_only = 0"]
    await server.say(*spoil)
    try:
        await base.spoil_all(1)
        before = len(base.opened)
        for _ in range(20):
            with pytest.raises(StoreError, match="read-only"):
                await base.store.touch(record.key, seen_at=9e9, expires_at=9e9)
            assert await base.store.load(record.key) is not None
        assert len(base.opened) - before <= 5  # one at once, and then one a second
    finally:
        await server.say(*mend)


Work = Callable[[SQLStore], Awaitable[Any]]


async def test_a_connection_that_the_server_ends_is_replaced(
    base: Base, a_database: Callable[[str], DatabaseServer]
) -> None:
    """57P01 of PostgreSQL, 1927 or the end of the connection of MariaDB."""
    server, record = a_database(base.kind), a_record()
    await base.store.create(record)
    if base.kind == "postgresql":
        await server.say("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
    else:
        async with server.connection() as admin:
            rows = await admin.exec_driver_sql("SELECT id FROM information_schema.processlist WHERE user = 'app'")
            for (number,) in rows.all():
                await admin.exec_driver_sql(f"KILL {number}")

    assert await base.store.load(record.key) == await base.store.load(record.key)
    assert await base.store.touch(record.key, seen_at=9e9, expires_at=9e9)
