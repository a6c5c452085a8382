"""Real servers that fail, each in its own way: the line in the log says where and why, by the phrases of docs/errors.md."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy.ext.asyncio import create_async_engine

from asgi_sessions import RedisStore, SQLStore
from asgi_sessions.errors import StoreError, StoreRefused, StoreUnreachable
from asgi_sessions.stores import Store
from asgi_sessions.testing import FakeClock, a_record
from tests.conftest import Server
from tests.databases import DatabaseServer
from tests.ports import free_port, give_back
from tests.proxy import Proxy
from tests.support import Browser, app_with, destroy, log_in, put

PASSWORD = "hunter2-Zk3q0T4"

Lines = Callable[[], list[str]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.INFO, "asgi_sessions")
    return lambda: [each for record in caplog.records if (each := record.getMessage()).startswith("store.failed")]


def phrases() -> list[str]:
    table = Path("docs/errors.md").read_text().partition("| the reason contains |")[2].partition("\n\n")[0]
    return [phrase for line in table.splitlines() for phrase in re.findall(r"`([^`]+)`", line.split(" | ")[0])]


async def a_visit(store: Store, **options: Any) -> Browser:
    """Somebody tries to log in, and comes back."""
    alice = Browser(app_with(store, store_deadline=timedelta(seconds=5), **options))
    await alice.do(log_in("alice"))
    return alice


def holds(lines: Lines, host: str, phrase: str, *, step: str = "commit") -> None:
    """There is a line for the step that says where and why, in a phrase that the page explains, without the password."""
    said = lines()
    assert said
    assert set(phrase.split(" or ")) <= set(phrases())
    pattern = re.compile(re.escape(phrase).replace("…", ".*").replace(r"\ or\ ", "|"))
    assert any(line.startswith(f"store.failed step={step} host={host} ") and pattern.search(line) for line in said), (
        said
    )
    assert not [line for line in said if PASSWORD in line or len(line) > 600]


async def fails_by(store: Store, kind: type[StoreError]) -> None:
    """A write raises this kind of error, which says whether it counts against the store."""
    with pytest.raises(StoreError) as failed:
        await store.create(a_record(owner="bob"))

    assert type(failed.value) is kind


# ── Redis ──


def say(server: Server, *command: Any, **options: Any) -> None:
    with redis.Redis(port=server.port, **options) as client:
        client.execute_command(*command)


def with_password(server: Server) -> str:
    say(server, "CONFIG", "SET", "requirepass", PASSWORD)
    return f"redis://127.0.0.1:{server.port}/0"


def with_another_password(server: Server) -> str:
    say(server, "CONFIG", "SET", "requirepass", "another one")
    return f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0"


def with_few_rights(server: Server) -> str:
    say(server, "ACL", "SETUSER", "app", "on", f">{PASSWORD}", "~*", "&*", "+@connection", "+client", "+select")
    return f"redis://app:{PASSWORD}@127.0.0.1:{server.port}/0"


def with_few_rights_for_scripts(server: Server) -> str:
    say(server, "ACL", "SETUSER", "app", "on", f">{PASSWORD}", "~*", "&*", "+@all", "-set", "-hset")
    return f"redis://app:{PASSWORD}@127.0.0.1:{server.port}/0"


def with_other_keys(server: Server) -> str:
    say(server, "ACL", "SETUSER", "app", "on", f">{PASSWORD}", "~elsewhere:*", "&*", "+@all")
    return f"redis://app:{PASSWORD}@127.0.0.1:{server.port}/0"


def full(server: Server) -> str:
    say(server, "CONFIG", "SET", "maxmemory", "1mb")
    return server.url


def a_replica(server: Server) -> str:
    say(server, "REPLICAOF", "127.0.0.1", "1")
    return server.url


def a_replica_that_serves_nothing(server: Server) -> str:
    say(server, "CONFIG", "SET", "replica-serve-stale-data", "no")
    return a_replica(server)


def without_a_server(server: Server) -> str:
    server.stop()
    return server.url


REDIS: dict[str, tuple[Callable[[Server], str], str, type[StoreError]]] = {
    "no password": (with_password, "Authentication required or already authenticated", StoreUnreachable),
    "a wrong password": (with_another_password, "invalid username-password", StoreUnreachable),
    "a command that is not allowed": (with_few_rights, "NOPERM", StoreRefused),
    "a command that scripts may not call": (with_few_rights_for_scripts, "ACL failure in script", StoreRefused),
    "keys that are not allowed": (with_other_keys, "NOPERM", StoreRefused),
    "no memory": (full, "OOM", StoreRefused),
    "a replica": (a_replica, "READONLY", StoreRefused),
    "a replica without a primary": (a_replica_that_serves_nothing, "MASTERDOWN", StoreUnreachable),
    "no server": (without_a_server, "Connect call failed", StoreUnreachable),
}


@pytest.mark.parametrize("is_given", [False, True], ids=["own connections", "a client of the app"])
@pytest.mark.parametrize(("spoil", "phrase", "kind"), REDIS.values(), ids=REDIS)
async def test_redis_says_why(
    own_server: Server,
    lines: Lines,
    spoil: Callable[[Server], str],
    phrase: str,
    kind: type[StoreError],
    is_given: bool,
) -> None:
    own_server.start()
    url = await asyncio.to_thread(spoil, own_server)
    client = redis.asyncio.Redis.from_url(url) if is_given else None
    store = RedisStore.from_url(url) if client is None else RedisStore(client)

    await a_visit(store)

    holds(lines, f"127.0.0.1:{own_server.port}", phrase)
    await fails_by(store, kind)
    await store.aclose()
    if client is not None:
        await client.aclose()


async def test_a_full_server_that_still_ends_sessions_has_not_recovered(
    own_server: Server, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    """It refuses what needs memory: log-ins, changes and touches. A log-out needs none."""
    own_server.start()
    store, clock = RedisStore.from_url(own_server.url), FakeClock()
    app = app_with(store, clock=clock)
    alice, bob = Browser(app), Browser(app)
    for browser in (alice, bob):
        await browser.do(log_in("alice"))
    await asyncio.to_thread(say, own_server, "CONFIG", "SET", "maxmemory", "1")

    assert (await bob.do(put(a=1))).status == 503
    clock.advance(120)
    assert (await bob.do()).status == 200
    assert (await alice.do(destroy)).status == 200

    assert [line.split()[1] for line in lines() if "OOM" in line] == ["step=commit", "step=touch"]
    assert "store.recovered" not in caplog.text

    await asyncio.to_thread(say, own_server, "CONFIG", "SET", "maxmemory", "0")
    await bob.do(put(a=1))
    assert caplog.text.count("store.recovered: it answers again (write)") == 1
    await store.aclose()


@pytest.mark.parametrize(
    ("reply", "phrase"), [(b"", "Timeout connecting"), (b"-ERR no\r\n", "SSL")], ids=["waits", "replies"]
)
async def test_redis_without_tls_says_so(proxy: Proxy, lines: Lines, reply: bytes, phrase: str) -> None:
    """It waits for the end of a command, or replies with what is no TLS."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1] if reply else proxy.port
    store = RedisStore.from_url(f"rediss://:{PASSWORD}@127.0.0.1:{port}")

    await a_visit(store)

    holds(lines, f"127.0.0.1:{port}", phrase)
    await store.aclose()
    server.close()


async def test_redis_without_such_a_host_says_so(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_sessions.stores.redis._client.TIME_TO_OPEN", 10.0)
    store = RedisStore.from_url(f"redis://app:{PASSWORD}@no-such-host.invalid:6379", socket_connect_timeout=5)

    await a_visit(store)

    said = lines()
    assert any(phrase in said[0] for phrase in ("Name or service not known", "Temporary failure in name resolution")), (
        said
    )
    assert said[0].startswith("store.failed step=commit host=no-such-host.invalid:6379 ")
    await store.aclose()


async def test_redis_that_loads_says_so(own_server: Server, proxy: Proxy, lines: Lines) -> None:
    store = RedisStore.from_url(proxy.url(own_server.url))
    alice = await a_visit(store)
    proxy.garbage = b"-LOADING Redis is loading the dataset in memory\r\n"
    await alice.do()

    holds(lines, f"127.0.0.1:{proxy.port}", "LOADING", step="load")
    await store.aclose()


async def test_redis_that_is_slow_says_so(own_server: Server, proxy: Proxy, lines: Lines) -> None:
    store = RedisStore.from_url(proxy.url(own_server.url))
    alice = await a_visit(store)
    alice.app = app_with(store, store_deadline=timedelta(seconds=0.05))
    proxy.hanging = True
    await alice.do()

    holds(lines, f"127.0.0.1:{proxy.port}", "did not answer within", step="load")
    proxy.hanging = False
    await store.aclose()


async def test_a_client_without_a_free_connection_says_so(valkey_url: str, lines: Lines) -> None:
    client = redis.asyncio.Redis.from_url(valkey_url, max_connections=1)
    store = RedisStore(client)
    await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]  # of redis-py; somebody else's

    await a_visit(store)

    holds(lines, valkey_url.removeprefix("redis://").removesuffix("/0"), "Too many connections")
    await fails_by(store, StoreRefused)
    await client.aclose()


async def test_a_key_of_another_type_shows_no_key(valkey_url: str, lines: Lines) -> None:
    """The server names it in some of its errors; here a script stumbles over it."""
    store = RedisStore.from_url(valkey_url, prefix=f"test-{secrets.token_hex(4)}")
    alice = await a_visit(store)
    with redis.Redis.from_url(valkey_url) as client:
        (index,) = client.keys(f"{store.namespace}:*:u:*")
        client.delete(index)
        client.set(index, "not a hash")
        await alice.do(lambda session: session.regenerate())

        assert "WRONGTYPE" in lines()[0]
        assert alice.key not in "".join(lines())
        assert index.decode() not in "".join(lines())
        client.delete(*client.keys(f"{store.namespace}:*"))
    await store.aclose()


# ── Databases ──


class Base:
    """A database server, a table of this test, and what is undone afterwards."""

    def __init__(self, server: DatabaseServer) -> None:
        self.server = server
        self.table = f"test_{secrets.token_hex(6)}"
        self.undo = AsyncExitStack()
        self.options: dict[str, Any] = {}

    @property
    def is_postgresql(self) -> bool:
        return self.server.kind == "postgresql"

    def url(self, user: str = "app", password: str = "", port: int | None = None, database: str = "test") -> str:
        driver = "postgresql+asyncpg" if self.is_postgresql else "mysql+asyncmy"
        who = f"{user}:{password}" if password else user
        return f"{driver}://{who}@127.0.0.1:{self.server.port if port is None else port}/{database}"

    async def say(self, on_postgresql: str, on_mariadb: str) -> None:
        await self.server.say(on_postgresql if self.is_postgresql else on_mariadb)


@pytest.fixture
async def base(own_database: DatabaseServer) -> AsyncIterator[Base]:
    made = Base(own_database)
    async with made.undo:
        store = SQLStore.from_url(own_database.url, table=made.table)
        await store.create_tables()
        await store.aclose()
        yield made
    await own_database.say(f"DROP TABLE IF EXISTS {made.table}", f"DROP TABLE IF EXISTS {made.table}_history")


async def no_tables(base: Base) -> str:
    base.table += "_x"
    return base.url()


async def no_database(base: Base) -> str:
    return base.url("admin" if base.is_postgresql else "root", database="nothing_here")


async def no_server(base: Base) -> str:
    port = free_port()
    base.undo.callback(give_back, port)
    return base.url(port=port, password=PASSWORD)


async def a_wrong_password(base: Base) -> str:
    if base.is_postgresql:
        rules = base.server.directory / "data" / "pg_hba.conf"
        before = rules.read_text()
        rules.write_text(f"host all other 127.0.0.1/32 scram-sha-256\n{before}")
        await base.server.say("CREATE ROLE other LOGIN PASSWORD 'right'", "SELECT pg_reload_conf()")

        async def undo() -> None:
            rules.write_text(before)
            await base.server.say("SELECT pg_reload_conf()", "DROP ROLE other")
    else:
        await base.server.say("CREATE USER other@'127.0.0.1' IDENTIFIED BY 'right'")

        async def undo() -> None:
            await base.server.say("DROP USER other@'127.0.0.1'")

    base.undo.push_async_callback(undo)
    return base.url("other", PASSWORD)


async def no_rights(base: Base) -> str:
    await base.say("CREATE ROLE guest LOGIN", "CREATE USER guest@'127.0.0.1'")
    base.undo.push_async_callback(base.say, "DROP ROLE guest", "DROP USER guest@'127.0.0.1'")
    if not base.is_postgresql:
        await base.server.say(
            "CREATE TABLE IF NOT EXISTS test.other (a INT)", "GRANT SELECT ON test.other TO guest@'127.0.0.1'"
        )
        base.undo.push_async_callback(base.server.say, "DROP TABLE test.other")
    return base.url("guest")


async def read_only(base: Base) -> str:
    if base.is_postgresql:
        await base.server.say("ALTER ROLE app SET default_transaction_read_only = on")
        base.undo.push_async_callback(base.server.say, "ALTER ROLE app RESET default_transaction_read_only")
    else:
        await base.server.say("SET GLOBAL read_only = 1")
        base.undo.push_async_callback(base.server.say, "SET GLOBAL read_only = 0")
    return base.url()


async def tls_where_there_is_none(base: Base) -> str:
    import ssl

    base.options["connect_args"] = {"ssl": ssl.create_default_context()}
    return base.url()


SQL: dict[str, tuple[Callable[[Base], Awaitable[str]], str, str, type[StoreError]]] = {
    # the phrases of PostgreSQL and of MariaDB
    "no tables": (no_tables, "there are no tables", "there are no tables", StoreRefused),
    "no database": (no_database, "database … does not exist", "Unknown database", StoreUnreachable),
    "no server": (no_server, "Connect call failed", "Can't connect", StoreUnreachable),
    "a wrong password": (a_wrong_password, "password authentication failed", "Access denied", StoreUnreachable),
    "no rights": (no_rights, "permission denied", "command denied", StoreRefused),
    "read-only": (read_only, "read-only", "read-only", StoreRefused),
    "TLS where there is none": (tls_where_there_is_none, "SSL", "SSL", StoreUnreachable),
}


@pytest.mark.parametrize(("spoil", "on_postgresql", "on_mariadb", "kind"), SQL.values(), ids=SQL)
async def test_a_database_says_why(
    base: Base,
    lines: Lines,
    spoil: Callable[[Base], Awaitable[str]],
    on_postgresql: str,
    on_mariadb: str,
    kind: type[StoreError],
) -> None:
    url = await spoil(base)
    store = SQLStore.from_url(url, table=base.table, **base.options)

    await a_visit(store)

    holds(lines, url.partition("@")[2], on_postgresql if base.is_postgresql else on_mariadb)
    await fails_by(store, kind)
    await store.aclose()


async def test_a_pool_without_a_free_connection_says_so(base: Base, lines: Lines) -> None:
    engine = create_async_engine(base.url(), pool_size=1, max_overflow=0, pool_timeout=0.1)
    store = SQLStore(engine, table=base.table)

    async with engine.connect():
        await a_visit(store)
        await fails_by(store, StoreRefused)

    holds(lines, base.url().partition("@")[2], "QueuePool limit")
    await engine.dispose()


@asynccontextmanager
async def sqlite(path: Path) -> AsyncIterator[SQLStore]:
    store = SQLStore.from_url(f"sqlite+aiosqlite:///{path}")
    yield store
    await store.aclose()


async def test_sqlite_without_tables_says_so(tmp_path: Path, lines: Lines) -> None:
    async with sqlite(tmp_path / "sessions.db") as store:
        await a_visit(store)
        await fails_by(store, StoreRefused)

    holds(lines, f"sqlite:{tmp_path}/sessions.db", "there are no tables")
    assert any("run the statements of asgi-sessions schema" in line for line in lines())


async def test_sqlite_that_is_full_says_so(tmp_path: Path, lines: Lines) -> None:
    async with sqlite(tmp_path / "sessions.db") as store:
        await store.create_tables()
        async with store._connections().statement() as connection:
            await connection.exec_driver_sql("PRAGMA max_page_count = 1")
        alice = await a_visit(store)
        await alice.do(put(much="x" * 200_000))
        with pytest.raises(StoreRefused):
            await store.create(a_record(body=b"x" * 200_000))

    holds(lines, f"sqlite:{tmp_path}/sessions.db", "disk is full")


async def test_sqlite_that_is_read_only_says_so(tmp_path: Path, lines: Lines) -> None:
    path = tmp_path / "sessions.db"
    async with sqlite(path) as store:
        await store.create_tables()
    async with sqlite(Path(f"file:{path}?mode=ro&uri=true")) as store:
        await a_visit(store)
        await fails_by(store, StoreRefused)

    said = lines()
    assert "readonly" in said[0], said
