"""Real databases that make trouble: what users see. The rows are those of the table of databases in docs/errors.md."""

from __future__ import annotations

import asyncio
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from asgi_sessions import Session, SQLStore, StoreError
from asgi_sessions._core.record import Record
from asgi_sessions._core.token import owner_of
from asgi_sessions.testing import an_end
from tests.databases import DatabaseServer
from tests.proxy import Proxy
from tests.support import Browser, app_with, log_in, put, read, sessions_there


@dataclass
class Scene:
    """Alice, who is logged in; her store, a proxy, and the server behind it."""

    alice: Browser
    store: SQLStore
    proxy: Proxy
    server: DatabaseServer
    table: str
    undo: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def is_postgresql(self) -> bool:
        return self.server.kind == "postgresql"

    @property
    def pool(self) -> Any:
        return self.store._connections()._engine.pool

    def say(self, on_postgresql: str, on_mariadb: str) -> Awaitable[None]:
        return self.server.say(on_postgresql if self.is_postgresql else on_mariadb)

    async def hold(self, *statements: str) -> AsyncConnection:
        """Somebody else's connection, which has said this and now does nothing, until the trouble is over."""
        connection = await self.undo.enter_async_context(self.server.connection())
        for statement in statements:
            await connection.exec_driver_sql(statement)
        return connection

    async def waiting(self, looking: AsyncConnection) -> int:
        """How many wait for a lock, as the server says. MariaDB says the same again to who asks within a tenth of a second."""
        await asyncio.sleep(0.2)
        if self.is_postgresql:
            question = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        else:
            question = (
                "SELECT (SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT')"
                " + (SELECT count(*) FROM information_schema.processlist WHERE state LIKE 'Waiting for table%%')"
            )
        return int((await looking.exec_driver_sql(question)).scalar_one())

    async def somebody_waits_for_a_lock(self) -> None:
        async with self.server.connection() as looking, asyncio.timeout(10):
            while not await self.waiting(looking):
                pass

    def be_patient(self) -> None:
        self.alice.app = app_with(self.store, store_deadline=timedelta(seconds=3))

    async def mend(self) -> None:
        await self.undo.aclose()
        self.proxy.hanging = self.proxy.refusing = self.proxy.swallowing = False
        self.proxy.delay, self.proxy.garbage, self.proxy.cut_after = 0.0, b"", None
        if not self.server.is_up:
            await asyncio.to_thread(self.server.start)

    async def is_well_again(self) -> dict[str, Any]:
        """What alice finds, as soon as somebody is let in; and nothing was left behind."""
        async with asyncio.timeout(15):
            while "data" not in (found := await read(self.alice)):  # noqa: ASYNC110 - until the breaker lets somebody ask
                await asyncio.sleep(0.05)
            while self.pool.checkedout() or self.store._connections()._tasks:  # noqa: ASYNC110 - of those who had given up
                await asyncio.sleep(0.05)
        return found


@pytest.fixture
async def scene(own_database: DatabaseServer) -> AsyncIterator[Scene]:
    table = f"test_{secrets.token_hex(6)}"
    with Proxy(own_database.port) as proxy:
        # asyncpg asks for TLS first, and that question would take the place of the one that is to be spoiled.
        options: dict[str, Any] = {"connect_args": {"ssl": False}} if own_database.kind == "postgresql" else {}
        store = SQLStore.from_url(proxy.url(own_database.url), table=table, **options)
        await store.create_tables()
        alice = Browser(app_with(store))
        async with asyncio.timeout(15):
            # New connections and a new table, on a busy disk.
            while (await alice.do(log_in("alice"))).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            while (await alice.do(put(a=1))).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        made = Scene(alice, store, proxy, own_database, table)
        yield made
        await made.mend()
        await store.aclose()
    await own_database.say(f"DROP TABLE IF EXISTS {table}", f"DROP TABLE IF EXISTS {table}_history")


Trouble = Callable[[Scene], Awaitable[Any]]


def proxy(**attributes: Any) -> Trouble:
    async def trouble(scene: Scene) -> None:
        for name, value in attributes.items():
            setattr(scene.proxy, name, value)

    return trouble


async def nothing(scene: Scene) -> None: ...


async def cut(scene: Scene) -> None:
    await asyncio.to_thread(scene.proxy.cut)


async def lose(scene: Scene) -> None:
    await asyncio.to_thread(scene.proxy.lose)


async def refuse(scene: Scene) -> None:
    scene.proxy.refusing = True
    await cut(scene)


async def kill(scene: Scene) -> None:
    await asyncio.to_thread(scene.server.kill)


async def freeze(scene: Scene) -> None:
    scene.undo.callback(scene.server.thaw)
    await asyncio.to_thread(scene.server.freeze)


async def be_read_only(scene: Scene) -> None:
    if scene.is_postgresql:
        # Of the database and not of the server, so that somebody can take it back.
        await scene.server.say("ALTER ROLE app SET default_transaction_read_only = on")
        scene.undo.push_async_callback(scene.server.say, "ALTER ROLE app RESET default_transaction_read_only")
        await cut(scene)  # for new connections
    else:
        await scene.server.say("SET GLOBAL read_only = 1")
        scene.undo.push_async_callback(scene.server.say, "SET GLOBAL read_only = 0")


async def give_others_all_connections(scene: Scene) -> None:
    await cut(scene)
    for _ in range(60):
        try:
            await scene.undo.enter_async_context(scene.server.connection(scene.server.url))
        except Exception:  # each driver has its own
            return
    raise RuntimeError("there is no end of connections")


async def lock_her_row(scene: Scene) -> None:
    quote = '"key"' if scene.is_postgresql else "`key`"
    await scene.hold("BEGIN", f"SELECT * FROM {scene.table} WHERE {quote} = '{scene.alice.key}' FOR UPDATE")


async def lock_the_table(scene: Scene) -> None:
    if scene.is_postgresql:
        await scene.hold("BEGIN", f"LOCK TABLE {scene.table} IN ACCESS EXCLUSIVE MODE")
    else:
        await scene.hold(f"LOCK TABLES {scene.table} WRITE")


async def be_impatient(scene: Scene) -> None:
    """It gives up on what takes longer than 0.1 s, as administrators set it; and somebody has locked her row."""
    if scene.is_postgresql:
        await scene.server.say("ALTER ROLE app SET statement_timeout = 100")
        scene.undo.push_async_callback(scene.server.say, "ALTER ROLE app RESET statement_timeout")
    else:
        await scene.server.say("SET GLOBAL max_statement_time = 0.1")
        scene.undo.push_async_callback(scene.server.say, "SET GLOBAL max_statement_time = 0")
    await cut(scene)
    await lock_her_row(scene)


WEB_SERVER = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"

# The trouble before the session is loaded, and before it is saved.
ROWS: dict[str, tuple[Trouble, Trouble]] = {
    "refuses connections": (refuse, nothing),
    "hangs": (freeze, nothing),
    "is gone without a word, like a host without power": (lose, nothing),
    "answers, 100 ms late": (proxy(delay=0.05), nothing),
    "answers, 600 ms late": (proxy(delay=0.3), nothing),
    "closes the connection before it answers": (cut, cut),
    "closes in the middle of a reply": (proxy(cut_after=5), proxy(cut_after=1)),
    "sends garbage": (proxy(garbage=WEB_SERVER), proxy(garbage=WEB_SERVER)),
    "carries out and loses the reply": (proxy(swallowing=True), proxy(swallowing=True)),
    "was killed": (kill, nothing),
    "is killed in the middle of a request": (nothing, kill),
    "has no connection left": (give_others_all_connections, nothing),
    "is read-only": (be_read_only, nothing),
    "waits for a lock on the row": (lock_her_row, nothing),
    "waits for a lock on the table": (lock_the_table, nothing),
    "gives up on a statement": (be_impatient, nothing),
}

ABOUT_TIME = {row for row in ROWS if re.search("hangs|without a word|late|lock|gives up", row)}
"""Rows in which the deadline decides. In the others a busy machine may take its time."""

AS_REDIS = set(list(ROWS)[:9])
"""Rows of the table above that one in the docs: databases are no exception there."""


def in_the_docs(table: str = "#### Databases") -> dict[str, tuple[int, int]]:
    text = Path("docs/errors.md").read_text().partition(table)[2].partition("\n\n|")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+) \| (\d{3}) \| (\d{3}) \|$", text, re.MULTILINE)
    return {name: (int(one), int(other)) for name, one, other in rows}


def test_the_rows_are_those_of_the_docs() -> None:
    assert list(in_the_docs()) == [*(row for row in ROWS if row not in AS_REDIS), "has lost its tables"]
    assert in_the_docs("### What trouble looks like").keys() >= AS_REDIS


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
async def test_what_users_see(scene: Scene, row: str, write: bool) -> None:
    before, during = ROWS[row]
    token = scene.alice.token
    if row not in ABOUT_TIME:
        scene.be_patient()

    async def handler(session: Session) -> None:
        await during(scene)
        if write:
            session["b"] = 2

    await before(scene)
    response = await scene.alice.do(handler)
    anonymous = await Browser(scene.alice.app).do()

    expected = (in_the_docs("### What trouble looks like") | in_the_docs())[row]
    assert response.status == expected[write]
    assert response.set_cookie is None
    assert anonymous.status == 200
    if response.status == 503:
        assert response.get("retry-after") is not None
    await scene.mend()
    found = await scene.is_well_again()
    assert scene.alice.token == token
    assert found["user_id"] == "alice"
    assert found["data"]["a"] == 1
    assert write is False or response.status != 200 or found["data"]["b"] == 2  # nothing is lost that was acknowledged


async def test_without_its_tables_everybody_hears_503_and_with_new_ones_is_logged_out(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    await scene.server.say(f"DROP TABLE {scene.table}", f"DROP TABLE {scene.table}_history")
    old = scene.alice.another()

    assert (await scene.alice.do()).status == in_the_docs()["has lost its tables"][0]
    assert (await scene.alice.do(put(b=1))).status == in_the_docs()["has lost its tables"][1]
    await scene.store.create_tables()

    assert (await scene.is_well_again())["user_id"] is None
    await scene.alice.do(put(b=1))
    assert scene.alice.token != old.token  # a token is never adopted
    assert (await read(old))["data"] == {}


# ── What is left behind ──


@pytest.mark.parametrize(
    "trouble", [proxy(hanging=True), freeze, lock_the_table], ids=["hangs", "stands still", "locked"]
)
async def test_a_thousand_requests_on_a_dead_database_leave_nothing_behind(scene: Scene, trouble: Trouble) -> None:
    await trouble(scene)
    tasks, there = len(asyncio.all_tasks()), sessions_there()
    most = 0

    async def count() -> None:
        nonlocal most
        while True:
            most = max(most, len(asyncio.all_tasks()))
            await asyncio.sleep(0.01)

    counting = asyncio.ensure_future(count())
    responses = await asyncio.gather(*(scene.alice.another().do(put(n=n)) for n in range(1000)))
    counting.cancel()

    assert {response.status for response in responses} == {503}
    assert most < tasks + 1000 + 50  # the requests themselves, and one for each connection
    del responses
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > tasks + 2:  # noqa: ASYNC110 - while it is still dead
            await asyncio.sleep(0.05)
    assert sessions_there() < there + 20
    await scene.mend()
    assert (await scene.is_well_again())["user_id"] == "alice"


async def test_what_was_begun_on_a_database_that_stands_still_ends_by_itself(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a transaction, and nobody comes to wake it."""
    monkeypatch.setattr("asgi_sessions.stores.sql._connections.LONGEST", 1.0)
    await scene.hold("BEGIN", f"UPDATE {scene.table}_history SET at = at + 1")
    ending = asyncio.ensure_future(scene.alice.app.sessions.revoke_all("alice"))
    await scene.somebody_waits_for_a_lock()

    await freeze(scene)

    with pytest.raises(StoreError):
        await ending
    async with asyncio.timeout(10):
        while scene.store._connections()._tasks or scene.pool.checkedout():  # noqa: ASYNC110 - while it stands still
            await asyncio.sleep(0.05)
    await scene.mend()
    assert (await scene.is_well_again())["user_id"] == "alice"


async def test_a_database_that_falls_silent_while_a_connection_is_given_back_keeps_no_place(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an engine of the app's SQLAlchemy says ROLLBACK then, and is not to be cancelled."""
    monkeypatch.setattr("asgi_sessions.stores.sql._connections.LONGEST", 1.0)
    options: dict[str, Any] = {"connect_args": {"ssl": False}} if scene.is_postgresql else {}
    engine = create_async_engine(scene.proxy.url(scene.server.url), pool_size=2, max_overflow=0, **options)
    store, key = SQLStore(engine, table=scene.table), scene.alice.key
    assert await store.load(key) is not None

    def fall_silent(_connection: object) -> None:
        scene.proxy.hanging = True

    event.listen(engine.sync_engine, "rollback", fall_silent, once=True)
    answers = await asyncio.gather(*(store.load(key) for _ in range(5)), return_exceptions=True)

    assert scene.proxy.hanging
    assert any(isinstance(answer, StoreError) for answer in answers)
    assert all(isinstance(answer, StoreError | Record) for answer in answers)
    pool: Any = engine.pool
    async with asyncio.timeout(10):
        while store._connections()._tasks or pool.checkedout():  # noqa: ASYNC110 - while it says nothing
            await asyncio.sleep(0.05)
    await scene.mend()
    assert await store.load(key) is not None
    await engine.dispose()


@pytest.mark.parametrize("own_database", ["mariadb"], indirect=True)
@pytest.mark.parametrize("silently", [False, True], ids=["closes", "hangs"])
async def test_a_connection_that_ends_while_autocommit_is_taken_back_keeps_no_place(
    scene: Scene, silently: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy does so after the ROLLBACK, on an engine of the app's, and forgets the place of one that fails then."""
    monkeypatch.setattr("asgi_sessions.stores.sql._connections.TIME_TO_GIVE_BACK", 0.3)
    engine = create_async_engine(scene.proxy.url(scene.server.url), pool_size=2, max_overflow=0, pool_timeout=1)
    store, key = SQLStore(engine, table=scene.table), scene.alice.key
    dialect: Any = engine.sync_engine.dialect
    taken_back = dialect.reset_isolation_level

    def fail(connection: Any) -> None:
        if silently:
            scene.proxy.hanging = True
        else:
            scene.proxy.cut()
        taken_back(connection)

    for _ in range(4):
        dialect.reset_isolation_level = fail
        assert await store.load(key) is not None
        scene.proxy.hanging = False
    dialect.reset_isolation_level = taken_back

    assert await asyncio.gather(*(store.load(key) for _ in range(4))) == [await store.load(key)] * 4
    pool: Any = engine.pool
    assert pool.checkedout() == 0
    await engine.dispose()


@pytest.mark.parametrize("stops", [freeze, proxy(hanging=True)], ids=["stands still", "is not reached"])
@pytest.mark.parametrize("is_own", [True, False], ids=["our connections", "an engine of the app's"])
@pytest.mark.parametrize("first", [False, True], ids=["at once", "after a request was given up"])
async def test_an_app_can_be_stopped_while_its_database_stands_still(
    scene: Scene, stops: Trouble, is_own: bool, first: bool
) -> None:
    """Two seconds are for what runs; the rest is for a busy machine."""
    engine = create_async_engine(scene.proxy.url(scene.server.url))
    store = scene.store if is_own else SQLStore(engine, table=scene.table)
    browsers = [scene.alice.another() for _ in range(5)]
    for browser in browsers:
        browser.app = app_with(store)
    await asyncio.gather(*(browser.do() for browser in browsers))
    await stops(scene)
    if first:
        assert (await browsers[0].do(put(n=0))).status == 503
    asking = [asyncio.ensure_future(browser.do(put(n=1))) for browser in browsers[1:4]]
    await asyncio.sleep(0)

    async with asyncio.timeout(4):
        await store.aclose()
    await asyncio.gather(*asking)

    assert is_own or not engine.pool.checkedout()  # type: ignore[attr-defined]  # of this pool
    await scene.mend()
    await engine.dispose()


STRAY = {
    "a message of an impossible length": ("postgresql", b"?\0\0\0\1"),
    "a packet out of its turn": ("mariadb", b"\0\0\0\x63"),
    "one row was changed": ("mariadb", b"\7\0\0\1\0\1\0\2\0\0\0"),
}


@pytest.mark.parametrize(("own_database", "stray"), STRAY.values(), ids=STRAY, indirect=["own_database"])
async def test_a_stray_reply_is_nobodys_answer(scene: Scene, stray: bytes) -> None:
    """A connection on which something came that was no answer is not used again, though it stays open."""
    scene.be_patient()
    others = [Browser(scene.alice.app) for _ in range(9)]
    for n, other in enumerate(others):
        await other.do(log_in(f"user {n}"))
    scene.proxy.stray = stray

    assert (await scene.alice.do(put(b=2))).status == 200

    for _ in range(3):
        found = await asyncio.gather(*(read(other) for other in others))
        assert [each["user_id"] for each in found] == [f"user {n}" for n in range(9)]
    assert (await scene.is_well_again())["data"] == {"a": 1, "b": 2}


# ── Locks ──


async def test_one_user_whose_row_is_locked_keeps_no_others_out(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many requests of hers as there are connections, while the lock is held for good."""
    monkeypatch.setattr("asgi_sessions.stores.sql._connections.LONGEST", 60.0)
    bob = Browser(scene.alice.app)
    await bob.do(log_in("bob"))
    await lock_her_row(scene)

    responses = await asyncio.gather(*(scene.alice.another().do(put(n=n)) for n in range(20)))

    assert {response.status for response in responses} == {503}
    async with asyncio.timeout(15):
        while "data" not in await read(bob):  # noqa: ASYNC110 - until the breaker lets somebody ask
            await asyncio.sleep(0.05)
    await scene.mend()
    await scene.is_well_again()


@pytest.mark.parametrize("trouble", [lock_her_row, lock_the_table], ids=["row", "table"])
async def test_what_was_given_up_does_not_go_on_waiting_at_the_server(scene: Scene, trouble: Trouble) -> None:
    await trouble(scene)

    await asyncio.gather(*(scene.alice.another().do(put(n=n)) for n in range(10)))

    async with scene.server.connection() as looking, asyncio.timeout(20):
        while await scene.waiting(looking):  # and the lock is still there
            pass
    await scene.mend()
    await scene.is_well_again()


async def test_who_loses_a_deadlock_begins_anew(scene: Scene) -> None:
    """Somebody locked her session first and wants her history next; "log out everywhere" goes the other way round."""
    history = f"{scene.table}_history"
    await scene.server.say(f"CREATE TABLE {scene.table}_heavy (n BIGINT)")
    scene.undo.push_async_callback(scene.server.say, f"DROP TABLE {scene.table}_heavy")
    many = ", ".join(f"({n})" for n in range(1000))
    other = await scene.hold(
        # MariaDB lets those win who have done more, PostgreSQL those who look for deadlocks later.
        *(["SET deadlock_timeout = '60s'"] if scene.is_postgresql else []),
        "BEGIN", f"INSERT INTO {scene.table}_heavy VALUES {many}",
    )  # fmt: skip
    quote = '"key"' if scene.is_postgresql else "`key`"
    await other.exec_driver_sql(f"SELECT * FROM {scene.table} WHERE {quote} = '{scene.alice.key}' FOR UPDATE")

    note = replace(an_end("a"), now=time.time())
    ending = asyncio.ensure_future(scene.store.end(owner_of("alice"), note=note))
    await scene.somebody_waits_for_a_lock()
    await other.exec_driver_sql(f"UPDATE {history} SET at = at + 1 WHERE owner = '{owner_of('alice')}' AND seq = 0")
    await other.exec_driver_sql("COMMIT")

    assert len(await ending) == 1
    assert (await read(scene.alice))["user_id"] is None


# ── SQLite, where the others are processes ──

LOCKS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
input()
"""


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """By another process, as a backup or a migration does it."""
    with subprocess.Popen([sys.executable, "-c", LOCKS, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            yield
        finally:
            other.kill()


@pytest.fixture
async def on_sqlite(tmp_path: Path) -> AsyncIterator[tuple[Browser, SQLStore, Path]]:
    file = tmp_path / "sessions.db"
    store = SQLStore.from_url(f"sqlite+aiosqlite:///{file}")
    await store.create_tables()
    alice = Browser(app_with(store))
    async with asyncio.timeout(15):
        while (await alice.do(log_in("alice"))).status != 200:  # noqa: ASYNC110 - a busy disk
            await asyncio.sleep(0.1)
    yield alice, store, file
    await store.aclose()


async def test_a_locked_file_can_be_read_and_not_written(on_sqlite: tuple[Browser, SQLStore, Path]) -> None:
    alice, _, file = on_sqlite
    with locked(file):
        reading, writing = await alice.do(), await alice.do(put(b=2))
        anonymous = await Browser(alice.app).do()

    assert (reading.status, writing.status, anonymous.status) == (*in_the_docs()["waits for a lock on the row"], 200)
    async with asyncio.timeout(15):
        while (await alice.do(put(c=3))).status != 200:  # noqa: ASYNC110 - until the breaker lets somebody ask
            await asyncio.sleep(0.05)
    assert (await read(alice))["data"].keys() >= {"c"}


async def test_writes_that_wait_for_a_locked_file_leave_nothing_behind_and_keep_no_reader_out(
    on_sqlite: tuple[Browser, SQLStore, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times as many as there are connections, all with their session loaded before the file was locked."""
    monkeypatch.setattr("asgi_sessions.stores.sql._connections.LONGEST", 60.0)
    alice, store, file = on_sqlite
    app = app_with(store, store_deadline=timedelta(seconds=1))
    tasks, threads = len(asyncio.all_tasks()), threading.active_count()
    pool: Any = store._connections()._engine.pool
    at_the_gate, gate = asyncio.Semaphore(0), asyncio.Event()

    async def write(session: Session) -> None:
        at_the_gate.release()
        await gate.wait()
        session["b"] = 2

    writing = [asyncio.ensure_future(Browser(app, alice.token).do(write)) for _ in range(100)]
    for _ in writing:
        await at_the_gate.acquire()
    with locked(file):
        gate.set()
        assert {response.status for response in await asyncio.gather(*writing)} == {503}
        async with asyncio.timeout(20):
            while "data" not in await read(alice):  # noqa: ASYNC110 - until the breaker lets somebody ask
                await asyncio.sleep(0.05)
            while len(asyncio.all_tasks()) > tasks or pool.checkedout():  # noqa: ASYNC110 - while it is still locked
                await asyncio.sleep(0.05)

    assert threading.active_count() <= threads + 10
    async with asyncio.timeout(15):
        while (await alice.do(put(c=3))).status != 200:  # noqa: ASYNC110 - until the breaker lets somebody ask
            await asyncio.sleep(0.05)


async def test_who_makes_tables_in_a_locked_file_waits_no_longer_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables of another process are waited for in several tries, and each would wait for the lock once more."""
    monkeypatch.setattr("asgi_sessions.stores.sql._connections.LONGEST", 0.1)
    file = tmp_path / "sessions.db"
    engine = create_async_engine(f"sqlite+aiosqlite:///{file}", connect_args={"timeout": 0.2})
    tries: list[str] = []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: tries.append(args[2]))

    with locked(file), pytest.raises(StoreError, match="did not answer"):
        await SQLStore(engine).create_tables()

    assert tries == ["BEGIN IMMEDIATE"]
    await engine.dispose()


STOPS = """
import asyncio, sys
from datetime import timedelta
from sqlalchemy.ext.asyncio import create_async_engine
from asgi_sessions import SQLStore
from asgi_sessions.migrate import FromDjango
from asgi_sessions.stores.sql import _connections
from asgi_sessions.testing import a_record

_connections.LONGEST = _connections.LONGEST_ALONE = 0.1
file, what = sys.argv[1:]

async def main():
    engine = create_async_engine(f"sqlite+aiosqlite:///{file}", connect_args={"timeout": 2})
    if what == "a session":
        waiting = SQLStore(engine).create(a_record())
    else:
        django = FromDjango(engine, secret_key="k", deadline=timedelta(seconds=0.1))
        waiting = django.forget(django.recognise(b"abcdefghijklmnop", 0.0))
    task = asyncio.ensure_future(waiting)
    await asyncio.sleep(0.3)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.sleep(0.3)

asyncio.run(main())
"""


@pytest.mark.parametrize("what", ["a session", "an old session"])
def test_a_process_can_stop_while_a_file_is_locked(tmp_path: Path, what: str) -> None:
    """Nobody waits for the write any more, and no lifespan closes the store."""
    with locked(file := tmp_path / "sessions.db"):
        subprocess.run([sys.executable, "-c", STOPS, file, what], check=True, timeout=20)


CLOSES = """
import asyncio, sqlite3, sys, time
from asgi_sessions import SQLStore
from asgi_sessions.stores.sql import _connections
from asgi_sessions.testing import a_record

_connections.TIME_TO_CLOSE = _connections.TIME_TO_CLEAN_UP = 0.1
file, cancellations = sys.argv[1:]

class Slow(sqlite3.Connection):
    def close(self):
        time.sleep(0.5)
        super().close()

async def main():
    store = SQLStore.from_url(f"sqlite+aiosqlite:///{file}", connect_args={"factory": Slow})
    await store.create_tables()
    await asyncio.gather(*(store.load(a_record(number=number).key) for number in range(3)))
    closing = asyncio.ensure_future(store.aclose())
    for _ in range(int(cancellations)):
        await asyncio.sleep(0.1)
        closing.cancel()
    await asyncio.wait({closing})

asyncio.run(main())
"""


@pytest.mark.parametrize("cancellations", [0, 1, 3])
def test_a_process_can_stop_although_a_file_takes_long_to_close(tmp_path: Path, cancellations: int) -> None:
    """On a slow disk, as the last connection moves what was written from the log into the file."""
    command = [sys.executable, "-c", CLOSES, str(tmp_path / "sessions.db"), str(cancellations)]
    subprocess.run(command, check=True, timeout=20)
