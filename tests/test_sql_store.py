"""What is particular to SQLStore; that it is a store like the others, the contract and the suites of promises say."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import AsyncIterator, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import event, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, StaticPool

from asgi_sessions import ConfigurationError, Devices, Sessions, SQLStore, StoreError
from asgi_sessions._core.adoption import OldCookie
from asgi_sessions._core.history import Rules
from asgi_sessions._core.token import owner_of
from asgi_sessions.cli import main
from asgi_sessions.errors import RecordDamaged
from asgi_sessions.migrate import FromDjango
from asgi_sessions.stores import SweepingStore
from asgi_sessions.stores.sql import session_tables
from asgi_sessions.stores.sql._connections import _MAY_SKIP_ROLLBACK, ConnectionManager
from asgi_sessions.testing import FakeClock, UserStoreContract, a_note, a_record, an_alias, entries, moved
from tests.conftest import SQL, TABLE, a_store, empty, sql_url
from tests.support import Browser, app_with, log_in, put, read


@pytest.fixture(params=SQL)
async def store(request: pytest.FixtureRequest, anyio_backend: Any, patience: None) -> AsyncIterator[SQLStore]:
    async with a_store(request, request.param) as made:
        assert isinstance(made, SQLStore)
        yield made


# ── The user's choice: the driver, and whose engine ──


class TestAnEngineOfTheApps(UserStoreContract):
    """With the transactions that the app's engine has by default, REPEATABLE READ on MariaDB."""

    @pytest.fixture(params=SQL)
    async def store(self, request: pytest.FixtureRequest) -> AsyncIterator[SQLStore]:
        engine = create_async_engine(sql_url(request, request.param))
        store = SQLStore(engine, table=TABLE)
        await empty(store)
        yield store
        await store.aclose()
        await engine.dispose()


class TestTheOtherDriverOfMariaDB(UserStoreContract):
    @pytest.fixture
    async def store(self, request: pytest.FixtureRequest) -> AsyncIterator[SQLStore]:
        store = SQLStore.from_url(sql_url(request, "mariadb").replace("asyncmy", "aiomysql"), table=TABLE)
        await empty(store)
        yield store
        await store.aclose()


@pytest.mark.parametrize("driver", ["asyncmy", "aiomysql"])
async def test_client_flags_of_ones_own_do_not_change_what_is_counted(
    request: pytest.FixtureRequest, driver: str
) -> None:
    """MariaDB counts the rows that an UPDATE changes, unless it is told otherwise, as SQLAlchemy does."""
    url = sql_url(request, "mariadb").replace("asyncmy", driver)
    multi_statements = 1 << 16
    store = SQLStore.from_url(url, table=TABLE, connect_args={"client_flag": multi_statements})
    record = a_record()
    await store.create(record)

    assert await store.touch(record.key, seen_at=record.seen_at, expires_at=record.expires_at)
    await empty(store)
    await store.aclose()


# ── Text that databases trip over ──

EMOJI = "🫖"


@pytest.mark.parametrize("size", [0, 1, 2, 3, 10, 11, 15, 16, 21, 22, 45, 46, 63, 64])
async def test_text_of_four_byte_characters_is_kept_at_every_width(
    store: SQLStore, clock: FakeClock, size: int
) -> None:
    """The widths of all columns and one beside each: a user, a name of a device, a key and a value of the session."""
    words = "x" * (size % 2) + EMOJI * size
    app = app_with(store, clock=clock, devices=Devices())
    alice = Browser(app)
    await alice.do(lambda session: (session.log_in(f"user {words}"), session.update({f"key {words}": words})))
    sessions = app.sessions
    (info,) = await sessions.list(f"user {words}")
    await sessions.rename(f"user {words}", info.id, words[:64])

    assert (await read(alice))["data"] == {f"key {words}": words}
    (info,) = await sessions.list(f"user {words}")
    assert info.name == words[:64]
    assert len(await sessions.history(f"user {words}")) == 1


async def test_nul_and_half_of_a_surrogate_pair_do_no_harm(store: SQLStore, clock: FakeClock) -> None:
    alice = Browser(app_with(store, clock=clock))

    await alice.do(lambda session: (session.log_in("nul \0 user"), session.update({"a\0b": "\0" * 100, "": b"\0\xff"})))

    assert (await read(alice))["data"] == {"a\0b": "\0" * 100, "": b"\0\xff"}
    assert len(await Sessions(store, clock=clock).list("nul \0 user")) == 1


async def test_a_user_agent_of_64_kilobytes_does_no_harm(store: SQLStore, clock: FakeClock) -> None:
    app = app_with(store, clock=clock)

    for agent in (b"A" * 65536, bytes(range(32, 256)) * 290, EMOJI.encode() * 16384):
        scope = {
            "type": "http", "method": "POST", "path": "/", "query_string": b"",
            "headers": [(b"user-agent", agent)], "plan": None,
        }  # fmt: skip
        session = app._manager.begin()
        session._origin = scope
        session.log_in("alice")
        await app._manager.commit(session)

    assert len(await app.sessions.list("alice")) == 3


async def test_keys_that_differ_in_case_only_are_two(store: SQLStore) -> None:
    """MySQL and MariaDB compare text without regard to case, unless the column says otherwise."""
    record = a_record()
    other = replace(record, key=record.key.swapcase(), id=record.id.swapcase())

    await store.create(record)

    assert await store.load(other.key) is None
    await store.create(other)
    assert await store.load(record.key) == record


async def test_a_body_of_a_megabyte_is_kept(store: SQLStore) -> None:
    """The smallest BLOB of MySQL and MariaDB ends at 64 kB; a server that is not strict cuts off what is longer."""
    record = a_record(body=bytes(range(256)) * 4096)

    await store.create(record)

    assert await store.load(record.key) == record


async def test_a_row_of_nonsense_is_a_damaged_record(store: SQLStore) -> None:
    record = a_record()
    await store.create(record)
    async with store._connections().statement() as connection:
        if connection.dialect.name != "sqlite":
            pytest.skip("this database looks at types")
        await connection.execute(text(f"UPDATE {TABLE} SET rev = 'nonsense', body = 7"))

    with pytest.raises(RecordDamaged):
        await store.load(record.key)
    assert await store.delete(record.key) is None


# ── Sweeping ──


async def rows(store: SQLStore) -> tuple[int, int]:
    """Of records, and of history, the sweeper's own left out."""
    async with store._connections().statement() as connection:
        records, history = (store.metadata.tables[name] for name in (TABLE, f"{TABLE}_history"))
        kept = (await connection.execute(select(records))).all()
        noted = (await connection.execute(select(history).where(history.c.owner != "~sweeper"))).all()
    return len(kept), len(noted)


async def test_what_is_over_is_swept_and_what_is_not_stays(store: SQLStore) -> None:
    over, living = a_record(), replace(a_record(), expires_at=a_record().expires_at + 9999)
    of_alice = a_record(owner="alice")
    for record in (over, living, of_alice):
        await store.create(record)
    await store.rename(over.key, moved(over), rev=1, alias=an_alias(over))

    removed = await store.sweep(now=over.expires_at + 61)

    assert removed == 3  # with the alias
    assert await store.load(living.key) == living
    assert (await rows(store))[0] == 1
    assert await entries(store) == [("t", of_alice.id)]


async def test_what_was_touched_meanwhile_is_not_swept(store: SQLStore) -> None:
    record = a_record(owner="alice")
    await store.create(record)
    await store.touch(record.key, seen_at=record.seen_at + 3000, expires_at=record.expires_at + 3000)

    assert await store.sweep(now=record.expires_at + 100) == 0
    assert await store.load(record.key) is not None


async def test_what_is_touched_between_two_statements_of_a_sweep_stays(store: SQLStore) -> None:
    record = a_record()
    await store.create(record)
    cut = round((record.expires_at + 1) * 1000)
    async with store._connections().statement() as connection:
        rows = (await connection.execute(store._say.keys_over, {"now_": cut, "some": 10})).all()
    await store.touch(record.key, seen_at=record.seen_at + 99, expires_at=record.expires_at + 99)

    async with store._connections().statement() as connection:
        await connection.execute(store._say.delete_over, {"keys_": [row.key for row in rows], "now_": cut})

    assert [row.key for row in rows] == [record.key]
    assert await store.load(record.key) is not None


async def test_many_are_swept_in_batches(store: SQLStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_sessions.stores.sql.BATCH", 20)
    records = [a_record(number=number) for number in range(45)]
    users = [a_record(owner=f"user {number}", number=number) for number in range(5)]
    for record in (*records, *users):
        await store.create(record)

    assert await store.sweep(now=records[0].expires_at + 61) == 50
    assert (await rows(store))[0] == 0


async def test_one_of_many_sweeps(store: SQLStore) -> None:
    await store.create(a_record())
    now = a_record().expires_at + 100

    said = await asyncio.gather(*(store.sweep(now=now) for _ in range(8)))

    assert sorted(said, key=str) == [1, *[None] * 7]
    # And somebody comes after one that died.
    assert await store.sweep(now=now + 29) is None
    assert await store.sweep(now=now + 31) == 0


async def test_old_history_is_swept_and_nothing_of_a_user_who_is_gone_stays(store: SQLStore) -> None:
    record = a_record(owner="alice")
    await store.create(record, note=a_note(record))
    await store.delete(record.key, note=replace(a_note(record), what="o", fingerprints=()))
    assert (await rows(store))[1] == 3  # log-in, end, and the row that is the user's lock

    await store.sweep(now=record.seen_at + 89 * 86400, rules=Rules(keep=90 * 86400.0))
    assert (await rows(store))[1] == 3

    await store.sweep(now=record.seen_at + 91 * 86400, rules=Rules(keep=90 * 86400.0))
    assert await rows(store) == (0, 0)
    assert await store.create(record, note=a_note(record)) is not None  # and it begins anew


async def test_an_app_sweeps_by_itself(store: SQLStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SQLStore, "sweep_every", 0.02)
    record = a_record()
    await store.create(record)
    clock.now = record.expires_at + 100
    stop = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})
        await stop.wait()
        await send({"type": "lifespan.shutdown.complete"})

    async def ignore(message: Any) -> None: ...

    from asgi_sessions import SessionMiddleware

    middleware = SessionMiddleware(app, store, clock=clock)
    lifespan = asyncio.ensure_future(middleware({"type": "lifespan"}, None, ignore))
    async with asyncio.timeout(10):
        while await store.load(record.key) is not None:  # noqa: ASYNC110 - it is the database that changes
            await asyncio.sleep(0.01)
    stop.set()
    await lifespan

    assert isinstance(store, SweepingStore)
    assert not [task for task in asyncio.all_tasks() if "sweep" in repr(task)]


async def test_a_sweep_that_takes_long_keeps_its_turn(store: SQLStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_sessions.stores.sql.BATCH", 1)
    monkeypatch.setattr("asgi_sessions.stores.sql.TURN", 2.0)
    for number in range(3):
        await store.create(a_record(number=number))
    now, began, said = a_record().expires_at + 100, time.monotonic(), []
    sweep_one = SQLStore._sweep_anonymous

    async def slowly(self: SQLStore, *args: Any) -> int:
        await asyncio.sleep(0.6)
        said.append(await SQLStore._take_turn(store, store._connections(), now + time.monotonic() - began))
        return await sweep_one(self, *args)

    monkeypatch.setattr(SQLStore, "_sweep_anonymous", slowly)

    assert await store.sweep(now=now) == 3
    assert said == [False] * 4


# ── Tables ──


async def test_many_processes_may_make_the_tables_at_once(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    for kind in SQL:
        url = f"sqlite+aiosqlite:///{tmp_path}/new.db" if kind == "sqlite" else sql_url(request, kind)
        stores = [SQLStore.from_url(url, table=f"{TABLE}_new") for _ in range(4)]
        await asyncio.gather(*(store.create_tables() for store in stores))
        record = a_record(owner="alice")
        await stores[0].create(record)

        assert await stores[1].load(record.key) == record

        async with stores[0]._connections().transaction() as connection:
            await connection.run_sync(stores[0].metadata.drop_all)
        for store in stores:
            await store.aclose()


@pytest.mark.parametrize("kind", SQL)
async def test_without_tables_it_says_what_to_do(request: pytest.FixtureRequest, kind: str) -> None:
    store = SQLStore.from_url(sql_url(request, kind), table="not_there")

    with pytest.raises(StoreError, match="create_tables"):
        await store.load(a_record().key)
    await store.aclose()


@pytest.mark.parametrize("kind", SQL)
async def test_the_printed_schema_makes_what_the_store_needs(
    request: pytest.FixtureRequest, kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["schema", "--dialect", kind, "--table", f"{TABLE}_p"]) == 0
    statements = [each for each in capsys.readouterr().out.split(";") if each.strip()]
    url = f"sqlite+aiosqlite:///{tmp_path}/printed.db" if kind == "sqlite" else sql_url(request, kind)
    store = SQLStore.from_url(url, table=f"{TABLE}_p")
    async with store._connections().transaction() as connection:
        for statement in statements:
            await connection.execute(text(statement))

    record = a_record(owner="alice")
    await store.create(record, note=a_note(record))

    assert await store.load(record.key) == record
    async with store._connections().transaction() as connection:
        await connection.run_sync(store.metadata.drop_all)
    await store.aclose()


def test_the_tables_join_the_apps_own_metadata() -> None:
    from sqlalchemy import MetaData

    metadata = MetaData()
    records, history = session_tables(metadata)

    assert set(metadata.tables) == {"asgi_sessions", "asgi_sessions_history"}
    assert session_tables(metadata) == (records, history)


@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_columns_are_what_the_database_calls_them(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Alembic compares types by name: of BLOB(16777215) these servers make a MEDIUMBLOB, a change in every autogenerate."""
    assert main(["schema", "--dialect", kind]) == 0

    printed = capsys.readouterr().out
    assert "body MEDIUMBLOB" in printed
    assert "facts MEDIUMBLOB" in printed


def test_sweep_from_cron(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/cron.db"

    async def fill() -> None:
        store = SQLStore.from_url(url)
        await store.create_tables()
        await store.create(replace(a_record(), seen_at=1e9, expires_at=1e9 + 60))
        await store.aclose()

    (tmp_path / "cron.db").touch()  # one that does not exist is refused: it is a mistyped one
    assert main(["sweep", url]) == 1
    assert "create_tables" in capsys.readouterr().err
    asyncio.run(fill())
    assert main(["sweep", url]) == 0
    assert capsys.readouterr().out == "1 expired session removed\n"


def test_who_comes_right_after_a_sweep_is_not_told_that_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The turn lasts for half a minute, though the work may be done."""
    url = f"sqlite+aiosqlite:///{tmp_path}/cron.db"

    async def make() -> None:
        store = SQLStore.from_url(url)
        await store.create_tables()
        await store.aclose()

    asyncio.run(make())
    assert main(["sweep", url]) == 0
    assert main(["sweep", url]) == 0

    assert (
        capsys.readouterr().out.splitlines()[1]
        == "another process is sweeping, or has swept within the last 30 seconds"
    )


def test_the_help_of_sweep_names_databases_only(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])

    said = capsys.readouterr().out
    assert "postgresql+asyncpg://" in said
    assert "redis" not in said


# ── Trouble ──


async def test_a_database_that_is_not_there_is_a_store_error_without_the_password() -> None:
    store = SQLStore.from_url("postgresql+asyncpg://alice:s3cret@127.0.0.1:9/nothing")

    with pytest.raises(StoreError) as caught:
        await store.load(a_record().key)

    assert "s3cret" not in f"{caught.value!r} {caught.value.__cause__!r} {store!r}"
    await store.aclose()


async def test_no_error_quotes_what_was_kept(store: SQLStore, request: pytest.FixtureRequest) -> None:
    """SQLAlchemy's errors hold statements and values; only the driver's is the cause, also on an engine of the app's."""
    engine = create_async_engine(store._first.url)
    theirs = SQLStore(engine, table=TABLE)
    records = store.metadata.tables[TABLE]
    async with store._connections().statement() as connection:
        await connection.execute(text(f"DROP TABLE {TABLE}"))
    record = a_record(body=b"a secret body")
    try:
        with pytest.raises(StoreError) as caught:
            await theirs.create(record)
    finally:
        await engine.dispose()
        async with store._connections().transaction() as connection:
            await connection.run_sync(records.create)

    shown = "".join(traceback.format_exception(caught.value))
    assert record.key not in shown
    assert "secret body" not in shown


async def hang_up(store: SQLStore, ask: str, kill: str) -> None:
    """The database closes all connections of this store, and nobody else's."""
    async with AsyncExitStack() as held:
        opened = [await held.enter_async_context(store._connections().statement()) for _ in range(10)]
        ids = [(await connection.execute(text(ask))).scalar_one() for connection in opened]
    other = create_async_engine(store._first.url, isolation_level="AUTOCOMMIT")
    async with other.connect() as connection:
        for id in ids:
            await connection.execute(text(kill.format(id)))
    await other.dispose()


@pytest.mark.parametrize("store", ["mariadb"], indirect=True)
async def test_connections_that_mariadb_closed_hurt_nobody(store: SQLStore) -> None:
    """It says so only when something is asked, and the pool has nine more."""
    record = a_record()
    await store.create(record)
    await hang_up(store, "SELECT connection_id()", "KILL {}")

    assert [await store.load(record.key) for _ in range(20)] == [record] * 20


@pytest.mark.parametrize("store", ["mariadb"], indirect=True)
async def test_connections_of_the_apps_that_mariadb_closed_hurt_nobody(store: SQLStore) -> None:
    """There the first question is SQLAlchemy's, for autocommit, and it lets the driver's error through as it is."""
    engine = create_async_engine(store._first.url, pool_size=10)
    theirs, record = SQLStore(engine, table=TABLE), a_record()
    await store.create(record)
    await hang_up(theirs, "SELECT connection_id()", "KILL {}")

    assert [await theirs.load(record.key) for _ in range(20)] == [record] * 20
    await engine.dispose()


@pytest.mark.parametrize("store", ["postgresql"], indirect=True)
async def test_connections_that_postgresql_closed_hurt_nobody(store: SQLStore) -> None:
    record = a_record()
    await store.create(record)
    await hang_up(store, "SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})")

    assert await asyncio.gather(*(store.load(record.key) for _ in range(20))) == [record] * 20


async def test_cancelled_callers_leave_whole_connections_behind(store: SQLStore) -> None:
    record = a_record(owner="alice")
    await store.create(record)

    for round_ in range(30):
        tasks = [asyncio.ensure_future(store.records(owner_of("alice"), now=1.8e9, rules=Rules())) for _ in range(5)]
        await asyncio.sleep(0.0005 * (round_ % 5))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    assert await store.load(record.key) == record
    await store.end(owner_of("alice"), note=replace(a_note(record), what="a"))
    assert await store.load(record.key) is None


@pytest.mark.parametrize("store", ["mariadb"], indirect=True)
async def test_a_load_is_one_question(store: SQLStore) -> None:
    """No ROLLBACK after it, which SQLAlchemy would say though nothing was begun."""
    if not _MAY_SKIP_ROLLBACK:
        pytest.skip("SQLAlchemy before 2.0.43 says it")
    record = a_record()
    await store.create(record)

    async with store._connections().statement() as connection:
        held = (await connection.execute(text("SELECT CONNECTION_ID()"))).scalar_one()
    said = "SELECT variable_value FROM information_schema.session_status WHERE variable_name = 'QUESTIONS'"

    async def questions() -> int:
        async with store._connections().statement() as connection:
            assert (await connection.execute(text("SELECT CONNECTION_ID()"))).scalar_one() == held
            return int((await connection.execute(text(said))).scalar_one())

    before = await questions()
    for _ in range(10):
        assert await store.load(record.key) == record
    after = await questions()

    assert after - before == 10 + 2  # the loads, and the two by which it was found out


class CutOff:
    """A coroutine whose task is cancelled when it waits for the ``at``-th time, before or ``late``, after what it waits for."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: int, *, late: bool) -> None:
        self.work, self.at, self.late = work, at, late

    def __await__(self) -> Generator[Any, Any, Any]:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        steps, error = self.work.__await__(), None
        while True:
            try:
                waited_for = next(steps) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            self.at -= 1
            if self.at == 0 and self.late and waited_for is not None:
                waited_for.add_done_callback(lambda _: task.cancel())
            elif self.at == 0:
                loop.call_soon(task.cancel)
            try:
                error = yield waited_for
            except BaseException as thrown:
                error = thrown


@pytest.mark.parametrize("whose", ["its own", "the app's"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
async def test_what_is_cut_off_anywhere_keeps_no_lock_and_no_connection(
    store: SQLStore, whose: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each await in turn; nor does it need the garbage collector, which may come much later."""
    record = a_record(owner="alice")
    await store.create(record, note=a_note(record))
    if whose == "its own":
        cut = SQLStore.from_url(store._first.url.render_as_string(), table=TABLE)
    else:
        cut = SQLStore(create_async_engine(store._first.url, poolclass=AsyncAdaptedQueuePool), table=TABLE)
    carry_out, at = ConnectionManager._carry_out, 0
    cut_off: CutOff

    async def until_cut_off(self: ConnectionManager, *args: Any) -> Any:
        nonlocal cut_off
        if self is not cut._connections() or not at:
            return await carry_out(self, *args)
        cut_off = CutOff(carry_out(self, *args), at, late=late)
        return await cut_off

    monkeypatch.setattr(ConnectionManager, "_carry_out", until_cut_off)
    pool: Any = cut._connections()._engine.pool
    gc.collect()
    gc.disable()
    try:
        while True:
            at, there = 0, at
            await cut.load(record.key)  # asyncpg complains to the event loop when it is cut off while it connects
            at = there + 1
            try:
                await cut.create(replace(record, key=record.key[:-4] + f"{at:04}"), note=a_note(record))
            except (asyncio.CancelledError, StoreError):
                pass
            async with asyncio.timeout(3):
                while pool.checkedout():  # noqa: ASYNC110 - what was cut off gives its connection back
                    await asyncio.sleep(0.001)
                assert await store.touch(record.key, seen_at=record.seen_at + at, expires_at=record.expires_at + at)
                await store.create(replace(record, key=record.key[:-4] + f"x{at:03}"), note=a_note(record))
            if cut_off.at > 0:
                break
    finally:
        gc.enable()
        await cut.aclose()
        await cut._first.dispose()
    assert at > 5


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
async def test_a_commit_that_fails_keeps_nobody_else_from_writing(
    store: SQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite goes on with the transaction then; here a table of the app's wants the record to stay."""
    monkeypatch.setattr("asgi_sessions.stores.sql._connections.LONGEST", 0.5)
    record, other = a_record(owner="alice", number=1), a_record(number=2)
    await store.create(record, note=a_note(record))
    refusing = SQLStore.from_url(store._first.url.render_as_string(), table=TABLE)
    event.listen(refusing._first.sync_engine, "connect", lambda new, _: new.execute("PRAGMA foreign_keys=ON"))
    async with refusing._connections().statement() as connection:
        await connection.execute(
            text(f'CREATE TABLE theirs (s REFERENCES {TABLE} ("key") DEFERRABLE INITIALLY DEFERRED)')
        )
        await connection.execute(text(f"INSERT INTO theirs VALUES ('{record.key}')"))
    try:
        with pytest.raises(StoreError):
            await refusing.delete(record.key)

        async with asyncio.timeout(2):
            await store.create(other)
        assert await refusing.load(record.key) == record
    finally:
        async with refusing._connections().statement() as connection:
            await connection.execute(text("DROP TABLE theirs"))
        await refusing.aclose()


@pytest.mark.parametrize("times", [1, 2])
async def test_what_a_driver_lets_through_is_tried_once_more(
    store: SQLStore, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Some errors of a connection that has just been closed reach us as the driver made them, past SQLAlchemy."""
    record, load = a_record(), SQLStore._load
    await store.create(record)
    failures = [OSError("injected")] * times

    async def fails(self: SQLStore, connection: Any, key: str) -> Any:
        if failures:
            raise failures.pop()
        return await load(self, connection, key)

    monkeypatch.setattr(SQLStore, "_load", fails)
    if times == 1:
        assert await store.load(record.key) == record
    else:
        with pytest.raises(StoreError, match="OSError"):
            await store.load(record.key)


async def test_half_a_transaction_is_none(store: SQLStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails at its last step has done nothing, and the connection carries nothing over."""
    record = a_record(owner="alice")

    async def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("injected")

    with monkeypatch.context() as patched:
        patched.setattr(SQLStore, "_note", fails)
        with pytest.raises(StoreError):
            await store.create(record, note=a_note(record))

    assert await store.load(record.key) is None
    assert await entries(store) == []


async def test_a_store_is_not_tied_to_one_loop(store: SQLStore) -> None:
    record = a_record()
    await store.create(record)

    def elsewhere() -> Any:
        async def look() -> Any:
            try:
                return await store.load(record.key)
            finally:
                await store.aclose()

        return asyncio.run(look())

    assert await asyncio.to_thread(elsewhere) == record
    assert await store.load(record.key) == record


@pytest.mark.parametrize("kind", SQL)
def test_connections_are_closed_when_their_event_loop_ends(request: pytest.FixtureRequest, kind: str) -> None:
    """Though nobody closes the store: a script that asks in one ``asyncio.run()`` after the other would use up the server's."""
    store = SQLStore.from_url(sql_url(request, kind), table=TABLE)
    pools: list[Any] = []

    async def ask() -> None:
        await store.load(a_record().key)
        pools.append(store._connections()._engine.pool)
        assert pools[-1].checkedin() == 1

    for _ in range(3):
        asyncio.run(ask())

    assert [pool.checkedin() for pool in pools] == [0, 0, 0]
    assert len(store._managers) == 1


@pytest.mark.parametrize("kind", SQL)
def test_who_waited_for_a_connection_while_the_store_was_closed_leaves_none(
    request: pytest.FixtureRequest, kind: str
) -> None:
    store = SQLStore.from_url(sql_url(request, kind), table=TABLE, pool_size=1)

    async def ask() -> Any:
        loads = [asyncio.ensure_future(store.load(a_record().key)) for _ in range(20)]
        await asyncio.sleep(0)
        engine = store._connections()._engine
        await store.aclose()
        assert await asyncio.gather(*loads) == [None] * 20
        return engine

    assert asyncio.run(ask()).pool.checkedin() == 0


def test_loops_that_begin_at_once_share_no_engine(tmp_path: Path) -> None:
    def begin(store: SQLStore, together: threading.Barrier) -> Any:
        async def opened() -> Any:
            together.wait()
            return store._connections()._engine

        return asyncio.run(opened())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            for _ in range(50):
                store, together = SQLStore.from_url(f"sqlite+aiosqlite:///{tmp_path}/a.db"), threading.Barrier(4)
                engines = {each.result() for each in [threads.submit(begin, store, together) for _ in range(4)]}
                assert len(engines) == 4
    finally:
        sys.setswitchinterval(interval)


# ── Pools of the app's ──


async def test_who_has_one_connection_for_everything_has_whole_transactions() -> None:
    """SQLite in memory, as in the tests of apps. A load would end the transaction that is under way on the same connection,
    and so would that of another store or of a reader of old sessions."""
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    stores = [SQLStore(engine), SQLStore(engine, table="other")]
    for store in stores:
        await store.create_tables()
    async with engine.begin() as connection:
        await connection.execute(
            text("CREATE TABLE django_session (session_key TEXT, session_data TEXT, expire_date TEXT)")
        )
    reader = FromDjango(engine, secret_key="old", deadline=timedelta(seconds=20))
    old = OldCookie(b"a" * 32, 0.0)
    records = [a_record(owner=f"user {number}", number=number) for number in range(20)]

    await asyncio.gather(
        *(
            ask
            for each in records
            for store in stores
            for ask in (store.create(each, note=a_note(each)), store.load(each.key), reader.read(old, 0.0))
        ),
        reader.forget(old),
    )

    for store in stores:
        assert [await store.load(each.key) for each in records] == records
    await engine.dispose()


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 15),
        ({"pool_size": 3, "max_overflow": 0}, 3),
        ({"pool_size": 3, "max_overflow": -1}, 32),
        ({"pool_size": 0}, 32),
        ({"poolclass": NullPool}, 32),
        ({"poolclass": StaticPool}, 1),
    ],
    ids=["by default", "three", "any number beyond three", "any number", "no pool", "one for all"],
)
async def test_as_many_go_on_at_once_as_the_pool_has_connections(options: dict[str, Any], limit: int) -> None:
    store = SQLStore(create_async_engine("postgresql+asyncpg://127.0.0.1/nothing", **options))

    assert store._connections()._semaphore._value == limit


async def test_stores_that_come_and_go_leave_nothing_on_an_engine_of_the_apps() -> None:
    """One that stays would ask the server for its time once more with each connection that the app opens."""
    engine = create_async_engine("postgresql+asyncpg://127.0.0.1/nothing")
    left = weakref.WeakSet[object]()
    listeners = set()

    for _ in range(10):
        store = SQLStore(engine)
        left.update((store, store._connections()))
        await store.aclose()
        listeners.add(len(list(engine.sync_engine.pool.dispatch.connect)))
    del store
    gc.collect()

    assert not left
    assert len(list(engine.sync_engine.dispatch.after_execute)) == 0
    assert len(listeners) == 1


# ── What a developer may get wrong ──


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SQLStore.from_url("sqlite:///x.db"), "names no driver"),
        (lambda: SQLStore.from_url("nonsense"), "not understood"),
        (lambda: SQLStore.from_url("sqlite+aiosqlite://"), "in memory"),
        (lambda: SQLStore.from_url("sqlite+aiosqlite:///x.db", isolation_level="SERIALIZABLE"), "isolation_level"),
        (lambda: SQLStore.from_url("sqlite+aiosqlite:///x.db", no_such_option=1), "option"),
        (lambda: SQLStore.from_url("sqlite+aiosqlite:///x.db", table="a; DROP"), "table"),
        (lambda: SQLStore.from_url("postgresql+psycopg://x/y"), "pip install"),
        (
            lambda: SQLStore.from_url("postgresql+asyncpg://x/y?sslmode=require"),
            "no option sslmode; for TLS use ssl=req",
        ),
        (lambda: SQLStore.from_url("postgresql+asyncpg://x/y", connect_args={"sslmode": "require"}), "sslmode"),
        (lambda: SQLStore.from_url("postgresql+asyncpg://x/y?channel_binding=require"), "no option channel_binding$"),
        (lambda: SQLStore.from_url("mysql+asyncmy://x/y?ssl-mode=REQUIRED"), "no option ssl-mode; for TLS use ssl_ca="),
        (lambda: SQLStore.from_url("mysql+asyncmy://u:p@ss?hunter2=x@h/y"), "no option …"),
        (lambda: SQLStore.from_url(7), "give a str"),  # type: ignore[arg-type]
        (lambda: SQLStore("sqlite:///x"), "AsyncEngine"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_fails_when_the_store_is_built(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://x/y?ssl=require&prepared_statement_cache_size=5&timeout=4",
        "postgresql+asyncpg:///y?host=a:1&host=b:2",
        "mysql+asyncmy://x/y?charset=utf8mb4&read_timeout=4&unix_socket=/run/s",
        "mysql+aiomysql://x/y?charset=utf8mb4",
        "sqlite+aiosqlite:///x.db?timeout=4",
    ],
)
def test_the_options_of_a_driver_are_accepted_in_the_url(url: str) -> None:
    assert SQLStore.from_url(url) is not None


def test_without_sqlalchemy_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['sqlalchemy'] = None; from asgi_sessions import SQLStore"

    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert answer.returncode == 1
    assert re.search(r"pip install 'asgi-server-sessions\[sql\]'", answer.stderr)


async def test_a_session_begun_before_a_restart_is_there_after_it(tmp_path: Path, clock: FakeClock) -> None:
    """SQLite, as the demo has it."""
    url = f"sqlite+aiosqlite:///{tmp_path}/demo.db"
    before = SQLStore.from_url(url)
    await before.create_tables()
    alice = Browser(app_with(before, clock=clock))
    await alice.do(log_in("alice"))
    await alice.do(put(cart=["tea"]))
    await before.aclose()

    after = SQLStore.from_url(url)
    again = Browser(app_with(after, clock=clock), alice.token)

    clock.advance(timedelta(minutes=5))
    assert (await read(again))["data"] == {"cart": ["tea"]}
    await after.aclose()


def test_the_example_can_be_run_twice(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "examples" / "sql_with_your_tables.py"

    # Its database is a file in the folder for temporary files. The disk of a busy machine takes longer than a request may.
    env = {**os.environ, **({"TMPDIR": "/dev/shm"} if Path("/dev/shm").is_dir() else {})}
    for _ in range(2):
        command = [sys.executable, str(script)]
        ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr

    assert not list(tmp_path.iterdir())


async def test_the_example_joins_sessions_with_tables_of_the_app(tmp_path: Path) -> None:
    from examples.sql_with_your_tables import main as example

    shown = await example(f"sqlite+aiosqlite:///{tmp_path}/app.db")

    assert shown == [[("ada", 2), ("alan", 1)], [("alan", 1)]]
