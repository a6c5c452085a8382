"""Sends statements to the database: one engine per event loop, and retries.

An operation that has begun is finished, even if its caller is cancelled. SQLAlchemy drops the connection of a cancelled task, and
a closed browser tab should not cost a connection. It gets two seconds, since an operation that waits for a dead server or a lock
occupies a connection. A caller that is cancelled in the queue has begun no operation.

On SQLite an operation is never cancelled, since it cannot be: its thread goes on, and waits as long as the ``busy_timeout``. If
SQLAlchemy is cancelled while it closes a connection, a task remains that keeps the event loop from ending.

The writes of one user queue here, before they take a connection. In the database each would hold a connection while it waits for
the user's lock, and a user who logs in ten times at once would block all others.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from importlib import import_module
from inspect import signature
from traceback import clear_frames
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from sqlalchemy import CursorResult, Executable, Select, UpdateBase, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import DBAPIError, IntegrityError, InternalError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool, StaticPool

from asgi_sessions._core.token import shard_of
from asgi_sessions._engine.deadline import Deadlines, Limit, limit_alone
from asgi_sessions._engine.failures import reason_of
from asgi_sessions._engine.loops import PerLoop, at_the_end, done, retrieve
from asgi_sessions.errors import (
    ConfigurationError,
    MissingExtra,
    SessionError,
    StoreError,
    StoreRefused,
    StoreUnreachable,
)
from asgi_sessions.stores.sql._server import ASK as ASK_SETTINGS
from asgi_sessions.stores.sql._server import settings_in

T = TypeVar("T")

LONGEST: Final = 5.0
"""Seconds that an operation may queue, and seconds that it may then take, retries included. A request times out long before."""

LONGEST_ALONE: Final = 2.0
"""Seconds that an operation may take if its caller was cancelled."""

TIME_TO_GIVE_BACK: Final = 2.0
"""Seconds to return a connection to the pool. Then it is cut off, since its server does not answer."""

TIME_TO_CLEAN_UP: Final = 5.0
"""Seconds after which a cancelled operation that has not ended is cancelled again. Returning its connection takes less."""

TIME_TO_CLOSE: Final = 2.0
"""Seconds to finish the running operations and to close all connections properly. Then they are cut off."""

MAX_ATTEMPTS: Final = 50
"""Tries of an operation that fails by conflicts. LONGEST usually ends it earlier."""

FOUND_ROWS: Final = 2
"""CLIENT_FOUND_ROWS of MySQL's protocol: an UPDATE counts the rows that match, not those that change."""

UNLIMITED: Final = 32
"""Concurrent operations if the pool has no limit."""

TRUST_AGAIN: Final = 1.0
"""Seconds for which the next connection is kept although it leads to the wrong server too: a third would not help."""

READ_ONLY: Final = frozenset({"25006", 1290, 1792, 1836})
"""PostgreSQL, appendix A: read_only_sql_transaction. MySQL and MariaDB, error reference: --read-only (or another option), a
read-only transaction, read-only."""

LEAVING: Final = frozenset({"57P01", "57P02", "57P03", "57P04", 1053, 1077, 1079, 1152, 1927, 1047})
"""PostgreSQL: admin_shutdown, crash_shutdown, cannot_connect_now, database_dropped. MySQL and MariaDB: the server or this
connection is shutting down; 1047 WSREP: it is not in its cluster."""

WRONG_SERVER: Final = READ_ONLY | LEAVING
"""Codes of a server that is not a primary now. After a failover the connection leads to the wrong server."""

NOT_LET_IN: Final = frozenset({"3D000", 1044, 1045, 1049, 1129, 1130})
"""PostgreSQL: invalid_catalog_name. MySQL and MariaDB: access denied, to the database too; unknown database; host is blocked, or
not allowed. PostgreSQL's classes 08 (no connection) and 28 (user refused) count as well."""

SQLITE_UNREADABLE: Final = frozenset({10, 11, 14, 26})
"""Primary result codes of an unusable file: I/O error, corrupt, cannot be opened, not a database."""

SQLITE_READONLY: Final = 8
"""The primary result code for a read-only file, and for one that was moved or replaced (SQLITE_READONLY_DBMOVED)."""

_MADE_AT: Final = "asgi_sessions made at"
"""Key in the ``info`` of a connection: the time of its opening, by the monotonic clock."""

_SERVER_TIME: Final = "asgi_sessions server time"
"""Key in the ``info`` of a connection: the server's time at its opening, and the time by the monotonic clock."""

# READ COMMITTED: we lock the rows that we decide by, so each statement should see what others have committed.
_BEGIN: Final = {
    "postgresql": ("BEGIN ISOLATION LEVEL READ COMMITTED",),
    "mysql": ("START TRANSACTION",),
    "mariadb": ("START TRANSACTION",),
    "sqlite": ("BEGIN IMMEDIATE",),
}
DURABLY: Final = "SET LOCAL synchronous_commit = remote_apply"
"""PostgreSQL: COMMIT returns when the synchronous standbys have applied it; without any, when it is on this server's disk."""

_MYSQL = ("mysql", "mariadb")
_MAY_SKIP_ROLLBACK: Final = "skip_autocommit_rollback" in signature(DefaultDialect).parameters  # SQLAlchemy 2.0.43

_EXAMPLE = (
    "sqlite+aiosqlite:///sessions.db, postgresql+asyncpg://user@host/database, mysql+asyncmy://user@host/database"
)
_DRIVERS = {"postgresql": "asyncpg", "mysql": "asyncmy", "mariadb": "asyncmy", "sqlite": "aiosqlite"}


_OPTION = re.compile("[a-z][a-z_-]{1,40}")
_OF_SQLALCHEMY: Final = frozenset(
    {"async_creator_fn", "async_fallback", "prepared_statement_cache_size", "prepared_statement_name_func"}
)
"""Options that SQLAlchemy takes out before it calls the driver."""
_TLS: Final = {
    "postgresql": "; for TLS use ssl=require",
    **dict.fromkeys(_MYSQL, "; for TLS use ssl_ca=… or connect_args={'ssl': an SSLContext}"),
}


def build(url: str, options: dict[str, Any]) -> AsyncEngine:
    """Return an engine for our own use, without opening a connection.

    Raises:
        ConfigurationError: the URL or an option is not understood, or the driver is missing. It never quotes the password.
    """
    parsed, dialect = _parsed(url)
    if dialect == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigurationError(
            "SQLStore.from_url(): a SQLite database in memory belongs to one connection; use a file, or MemoryStore()"
        )
    if "isolation_level" in options:
        raise ConfigurationError("SQLStore.from_url(isolation_level=…): the store sets it itself; leave the option out")
    given = {"hide_parameters": True, **options}
    if "poolclass" not in given:
        given["poolclass"] = AsyncAdaptedQueuePool  # SQLAlchemy before 2.0.38 has another default for SQLite
        # No overflow: the pool would close such a connection on return, and the next request open another.
        given.setdefault("pool_size", 10)
        given.setdefault("max_overflow", 0)
    if dialect in _MYSQL:
        given.setdefault("pool_recycle", 1800)  # these servers close idle connections after eight hours
        if isinstance(connect := given.get("connect_args"), dict) and isinstance(connect.get("client_flag"), int):
            # The app's flags replace SQLAlchemy's. Without this flag, an UPDATE to the same values would match no row.
            given["connect_args"] = {**connect, "client_flag": connect["client_flag"] | FOUND_ROWS}
    if _MAY_SKIP_ROLLBACK:
        # We leave no open transaction, and a ROLLBACK after each statement costs a round trip on MariaDB.
        given.setdefault("skip_autocommit_rollback", True)
    try:
        # Most operations are one statement, without BEGIN and COMMIT.
        engine = create_async_engine(parsed, isolation_level="AUTOCOMMIT", **given)
    except ModuleNotFoundError as missing:
        raise MissingExtra(
            f"SQLStore.from_url(): the driver {missing.name} is missing: pip install {missing.name}", name=missing.name
        ) from None
    except (SQLAlchemyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"SQLStore.from_url(): the URL or an option is not understood ({type(error).__name__}); use {_EXAMPLE}"
        ) from None
    check(engine)
    _check_options(engine, parsed, given.get("connect_args"))
    if dialect == "sqlite":
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    elif dialect in _MYSQL:
        event.listen(engine.sync_engine, "connect", _prepare_mysql)
    return engine


def _parsed(url: str) -> tuple[URL, str]:
    """The parsed URL and its dialect. Messages quote only the scheme of the URL: the rest may hold a password.

    Raises:
        ConfigurationError: the database is unknown, or the driver is missing or not for asyncio. It names the one to use.
    """
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):  # ValueError: the port is not a number
        raise ConfigurationError(f"SQLStore.from_url(): the URL is not understood; use {_EXAMPLE}") from None
    backend, _, driver = parsed.drivername.partition("+")
    dialect = "postgresql" if backend == "postgres" else backend
    call = f"SQLStore.from_url('{parsed.drivername}://…')"
    if dialect not in _DRIVERS:
        raise ConfigurationError(f"{call}: this database is not supported; use {_EXAMPLE}")
    try:
        kind = parsed.get_dialect()
        is_async = bool(driver) and kind.get_async_dialect_cls(parsed).is_async
    except SQLAlchemyError:
        is_async = False
    if not is_async:
        why = f"{driver} is not a driver for asyncio" if driver else "the URL names no driver"
        raise ConfigurationError(
            f"{call}: {why}; use '{dialect}+{_DRIVERS[dialect]}://…' (pip install {_DRIVERS[dialect]})"
        )
    return parsed, dialect


def _check_options(engine: AsyncEngine, url: URL, connect_args: object) -> None:
    """Check the names of the options for the driver. SQLAlchemy hands them on, so each connection would fail.

    Raises:
        ConfigurationError: the driver has no such option.
    """
    try:
        known = signature(import_module(engine.dialect.driver).connect).parameters
    except (ImportError, AttributeError, TypeError, ValueError):
        return  # not every driver shows its options
    if any(each.kind is each.VAR_KEYWORD for each in known.values()):
        return
    _, options = engine.dialect.create_connect_args(url)
    given = {*url.query.keys() & options.keys(), *(connect_args if isinstance(connect_args, dict) else ())}
    unknown = sorted(str(name) for name in given - known.keys() - _OF_SQLALCHEMY)
    if not unknown:
        return
    name = unknown[0] if _OPTION.fullmatch(unknown[0]) else "…"  # a part of a password with special characters
    advice = _TLS.get(engine.dialect.name, "") if "ssl" in name else ""
    raise ConfigurationError(f"SQLStore.from_url(): the driver {engine.dialect.driver} has no option {name}{advice}")


def check(engine: AsyncEngine, called: str = "SQLStore", or_else: str = "") -> None:
    """Check that we support the database of an engine.

    Raises:
        ConfigurationError: it does not.
    """
    if engine.dialect.name not in _BEGIN:
        raise ConfigurationError(
            f"{called}: {engine.dialect.name} is not supported; use one of {', '.join(_BEGIN)}{or_else}"
        )


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """Set WAL, so that readers block no one, and a full sync, so that a committed write survives a power cut."""
    _execute(connection, "PRAGMA busy_timeout=5000", "PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL")


def _prepare_mysql(connection: Any, _record: object) -> None:
    # A session in wait for a lock does not notice a lost client, by default for 50 seconds (a table lock: a day).
    seconds = round(LONGEST)
    _execute(
        connection,
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        f"SET SESSION innodb_lock_wait_timeout = {seconds}, lock_wait_timeout = {seconds}",
    )


def _execute(connection: Any, *statements: str) -> None:
    cursor = connection.cursor()
    for statement in statements:
        cursor.execute(statement)
    cursor.close()


class OutOfStep(Exception):
    """The result belongs to another statement: after a stray reply, all replies on the connection are shifted."""


def _check_in_step(
    _connection: object, asked: Executable, _many: object, _values: object, _options: object, result: CursorResult[Any]
) -> None:
    """Raise OutOfStep for rows after an UPDATE, or none after a SELECT. SQLAlchemy accepts both."""
    if (isinstance(asked, Select) and not result.returns_rows) or (
        isinstance(asked, UpdateBase) and result.returns_rows
    ):
        raise OutOfStep


class _Turns:
    """What operations wait for, before they take a connection. All managers of a pool have the same in an event loop.

    An app may give the engine to SQLStore and to a reader of old sessions. Two operations at a time on the one connection of a
    StaticPool would be one transaction.
    """

    def __init__(self, limit: int) -> None:
        # As many as the pool has connections. A task that waits here can be cancelled without a trace.
        self.connections = asyncio.Semaphore(limit)
        self.writes: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


_SHARED: Final[WeakKeyDictionary[Pool, PerLoop[_Turns]]] = WeakKeyDictionary()


class ConnectionManager:
    """The connections of one event loop to the database.

    Args:
        is_own: whether the engine is ours, so that its connections are closed with it.
        no_table: what to do if the table is missing, for the error message.
        note_time: receives the server's time at the opening of each connection that is used, and our monotonic time then.
        note_settings: receives once the settings of the server. They are empty if the user may not read them.
        longest: seconds that an operation may take, if that is more than LONGEST.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        is_own: bool,
        no_table: str,
        note_time: Callable[[tuple[float, float]], None] | None = None,
        note_settings: Callable[[Mapping[str, str]], None] | None = None,
        longest: float | None = None,
    ) -> None:
        self._no_table = no_table
        self._longest = LONGEST if longest is None else max(longest, LONGEST)
        self._engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._begin: tuple[str, ...] = _BEGIN[engine.dialect.name]
        if engine.dialect.name in _MYSQL and not is_own:
            self._begin = ("SET TRANSACTION ISOLATION LEVEL READ COMMITTED", *self._begin)
        self._single = (
            engine if is_own else engine.execution_options()
        )  # a copy, so that the listener sees only our statements
        self._is_own = is_own
        event.listen(self._single.sync_engine, "after_execute", _check_in_step)
        # SQLAlchemy adds each of these functions once to an engine, however many managers it has had.
        event.listen(engine.sync_engine, "connect", _note_when)
        self._note_time = note_time
        if note_time is not None and (ask_time := _ASK_TIME.get(engine.dialect.name)) is not None:
            event.listen(engine.sync_engine, "connect", ask_time)
        self._note_settings = note_settings if engine.dialect.name in ASK_SETTINGS else None
        self._distrusted_at = -math.inf
        """Connections opened before this time lead to a server that is not a primary now."""
        shared = _SHARED.setdefault(engine.pool, PerLoop(partial(_Turns, _pool_limit(engine.pool)))).here()
        self._semaphore, self._turns = shared.connections, shared.writes
        self._patience = Deadlines(self._longest)
        self._tasks: dict[asyncio.Task[Any], Limit] = {}
        self._in_use: set[Any] = set()
        """The driver's connections."""
        self._is_cut_off = self._opens_none = False
        if is_own:
            event.listen(engine.sync_engine, "do_connect", self._check_opening)
        self._at_loop_end: AsyncGenerator[None, None] | None = None

    async def run(self, work: Callable[[ConnectionManager], Awaitable[T]], *, writes: str | None = None) -> T:
        """Run one operation, and repeat it after a conflict or a broken connection. All our operations may be repeated.

        Args:
            writes: a key or owner of the written rows. The writes of one user run one after the other. On SQLite all writes
                do, since it has one writer at a time, and others would wait in steps of up to 0.1 s.
        Raises:
            StoreUnreachable, StoreRefused: the driver's error is the cause.
        """
        if self._is_own and self._at_loop_end is None:
            self._at_loop_end = await at_the_end(self._close)
        turn = None if writes is None else "" if self._is_sqlite else shard_of(writes)
        lock = None if turn is None else self._turns.setdefault(turn, asyncio.Lock())
        await self._wait_for_turn(lock)
        limit = limit_alone(self._longest, again=TIME_TO_CLEAN_UP)
        task = asyncio.ensure_future(self._carry_out(work, limit))
        self._tasks[task] = limit
        task.add_done_callback(partial(self._done, lock))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            limit.hasten(max(self._longest - LONGEST_ALONE, 0.0))
            raise

    async def _wait_for_turn(self, lock: asyncio.Lock | None) -> None:
        waited_for = "an earlier write of the same user"
        try:
            with self._patience.limit():
                if lock is not None:
                    await lock.acquire()
                waited_for = "a free connection"
                await self._semaphore.acquire()
        except BaseException as error:
            if lock is not None and waited_for == "a free connection":
                lock.release()
            if isinstance(error, TimeoutError):
                raise StoreRefused(f"the operation waited {self._longest:.0f} s for {waited_for}") from error
            raise

    def _done(self, lock: asyncio.Lock | None, task: asyncio.Task[Any]) -> None:
        self._semaphore.release()
        if lock is not None:
            lock.release()
        del self._tasks[task]
        retrieve(task)

    async def _carry_out(self, work: Callable[[ConnectionManager], Awaitable[T]], limit: Limit) -> T:
        if self._is_cut_off:  # the task waited for its turn
            raise StoreUnreachable("the store was closed")
        breaks = 0
        over = time.monotonic() + self._longest
        try:
            with nullcontext() if self._is_sqlite else limit:
                for attempt in range(1, MAX_ATTEMPTS + 1):
                    try:
                        return await work(self)
                    except (SessionError, TimeoutError):
                        raise
                    except Exception as error:
                        broken = _is_broken(error)
                        breaks += broken
                        again = breaks == 1 if broken else is_conflict(error)
                        if not again or attempt == MAX_ATTEMPTS or self._is_cut_off:
                            # The cause is the driver's error: SQLAlchemy's quotes the statement and its values.
                            cause = error.orig if isinstance(error, DBAPIError) else error
                            raise _store_error(error, self._no_table) from cause
                        if self._is_sqlite and time.monotonic() > over:
                            raise TimeoutError from error
                    pause = 0.001 * min(2**attempt, 64)
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing
        except TimeoutError as error:
            raise StoreUnreachable(f"the database did not answer within {self._longest:.0f} s") from error
        raise StoreRefused(f"the operation conflicted with others {MAX_ATTEMPTS} times")

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[AsyncConnection]:
        """A connection for single statements. Each takes effect at once."""
        connection = await self._trusted()
        driver = _driver_of(connection)
        self._in_use.add(driver)
        if self._is_cut_off:
            self._terminate(driver)
        try:
            if not self._is_own:
                # Not as an option of the engine: SQLAlchemy would set it within connect(), and a task that is cancelled there has
                # no connection to return.
                try:
                    await connection.execution_options(isolation_level="AUTOCOMMIT")
                except Exception:
                    # This is the driver's error. A statement lets SQLAlchemy notice what it means for the whole pool.
                    await connection.exec_driver_sql("SELECT 1")
                    raise
            if self._note_settings is not None:
                await self._look_at_settings(connection, self._note_settings)
            yield connection
        except SessionError:
            raise
        except BaseException as error:
            if self._is_sqlite and isinstance(error, asyncio.CancelledError):
                _let_go_of_cursors(error)
            if isinstance(error, DBAPIError) and _is_of_wrong_server(error) and self._distrusts(connection):
                error.connection_invalidated = True
            if not isinstance(error, Exception) or _is_broken(error):
                await connection.invalidate()  # a late reply would be taken for the next one
            raise
        finally:
            try:
                await self._give_back(connection)
            finally:
                self._in_use.discard(driver)

    async def _look_at_settings(self, connection: AsyncConnection, note: Callable[[Mapping[str, str]], None]) -> None:
        settings: Mapping[str, str] = {}
        try:
            settings = settings_in(await connection.exec_driver_sql(ASK_SETTINGS[self._engine.dialect.name]))
        except DBAPIError as error:
            if _is_broken(error):
                raise  # the next operation looks again
        self._note_settings = None
        note(settings)

    async def _trusted(self) -> AsyncConnection:
        """A connection opened since the last failover."""
        while True:
            connection = await self._single.connect()
            ours = connection.sync_connection
            if ours is None:
                return connection
            if self._note_time is not None and (server_time := ours.info.get(_SERVER_TIME)) is not None:
                self._note_time(server_time)
            if ours.info.get(_MADE_AT, 0.0) > self._distrusted_at:
                return connection
            await connection.invalidate()
            await self._give_back(connection)

    def _distrusts(self, connection: AsyncConnection) -> bool:
        """Whether a new connection may help after an error with a code of WRONG_SERVER."""
        ours, now = connection.sync_connection, time.monotonic()
        if ours is None or ours.invalidated:
            return True
        if ours.info.get(_MADE_AT, 0.0) <= self._distrusted_at:
            return True
        if now - self._distrusted_at < TRUST_AGAIN:
            return False  # a new connection had the same error a moment ago
        self._distrusted_at = now
        return True

    async def _give_back(self, connection: AsyncConnection) -> None:
        """Return a connection to the pool, in limited time.

        SQLAlchemy sends another statement and ignores a cancellation. If the server vanished, it would wait until TCP times
        out, a quarter of an hour. Meanwhile the pool would miss this connection.

        Raises:
            TimeoutError: it did not return, even after it was cut off.
        """
        ours = connection.sync_connection
        pooled = ours.connection if ours is not None and not ours.invalidated else None
        driver = pooled.dbapi_connection if pooled is not None else None

        def detach_if_failed(closing: asyncio.Future[None]) -> None:
            if not closing.cancelled() and closing.exception() is not None and pooled is not None:
                # The operation is finished. But SQLAlchemy loses a place of the pool if it fails to reset AUTOCOMMIT.
                pooled.detach()
                self._terminate(driver)

        closing = asyncio.ensure_future(connection.close())
        closing.add_done_callback(detach_if_failed)
        try:
            await asyncio.wait({closing}, timeout=TIME_TO_GIVE_BACK)
        finally:
            if not closing.done():
                self._terminate(driver)
                await asyncio.wait({closing}, timeout=TIME_TO_GIVE_BACK)
        if not closing.done():
            raise TimeoutError

    def _terminate(self, driver: Any) -> None:
        """Cut off a connection. An operation on it fails at once."""
        if driver is not None and self._engine.dialect.has_terminate and not self._is_sqlite:
            self._engine.dialect.do_terminate(driver)

    @asynccontextmanager
    async def transaction(self, *, durably: bool = False) -> AsyncIterator[AsyncConnection]:
        """A connection for an atomic transaction. Rows read FOR UPDATE cannot change until its end.

        It sends BEGIN and COMMIT as statements. SQLAlchemy's own would switch the isolation level, four round trips on MariaDB.
        SQLite's driver begins by itself, but only at the first write, when rows read before may have changed.

        Args:
            durably: COMMIT waits for the synchronous standbys of PostgreSQL.
        """
        async with self.statement() as connection:
            for statement in (*self._begin, DURABLY) if durably else self._begin:
                await connection.exec_driver_sql(statement)
            try:
                yield connection
                await connection.exec_driver_sql("COMMIT")  # SQLite may refuse and keep the transaction open
            except BaseException:
                try:
                    await connection.exec_driver_sql("ROLLBACK")
                except Exception:
                    await connection.invalidate()  # no other operation gets it within our transaction
                raise

    async def aclose(self) -> None:
        if self._at_loop_end is None:
            await self._close()
        else:
            await self._at_loop_end.aclose()

    async def _close(self) -> None:
        limit = limit_alone(TIME_TO_CLOSE, again=TIME_TO_CLEAN_UP)
        closing = asyncio.ensure_future(self._close_in_order(limit))
        timer = asyncio.get_running_loop().call_later(TIME_TO_CLOSE, self._cut_off, limit)
        try:
            await done(closing)
        finally:
            timer.cancel()
        closing.result()

    async def _close_in_order(self, limit: Limit) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)
            # A task begins now if it waited for the semaphore, and its connection would never be closed.
            await asyncio.sleep(0)
        if self._is_own:
            await self._close_connections(limit)

    def _check_opening(self, *_: object) -> None:
        """Refuse to open a connection for a place of the pool that is empty, while all are closed."""
        if self._opens_none:
            raise StoreUnreachable("the store was closed")

    def _cut_off(self, closing: Limit) -> None:
        """End what still runs, since the database does not answer. SQLite is waited for: its threads go on in any case."""
        if self._is_sqlite:
            return
        self._is_cut_off = True
        for driver in tuple(self._in_use):
            self._terminate(driver)
        for limit in (*self._tasks.values(), closing):
            limit.hasten(self._longest)  # it may be opening a connection

    async def _close_connections(self, limit: Limit) -> None:
        self._opens_none = True
        # dispose() closes one after the other and waits for a silent server.
        idle = getattr(self._engine.pool, "checkedin", int)()
        try:
            with nullcontext() if self._is_sqlite else limit:
                await asyncio.gather(*(self._close_one() for _ in range(idle)), return_exceptions=True)
                await self._engine.dispose()
        except TimeoutError:
            pass

    async def _close_one(self) -> None:
        async with self.statement() as connection:
            await connection.invalidate()


def _driver_of(connection: AsyncConnection) -> Any:
    ours = connection.sync_connection
    return None if ours is None else ours.connection.dbapi_connection


def _note_when(_connection: object, record: Any) -> None:
    record.info[_MADE_AT] = time.monotonic()


def _ask_time(statement: str, connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(statement)
    row = cursor.fetchone()
    cursor.close()
    connection.rollback()
    if row is not None:
        record.info[_SERVER_TIME] = (float(row[0]), time.monotonic())


_ASK_TIME: Final = {
    "postgresql": partial(_ask_time, "SELECT EXTRACT(EPOCH FROM clock_timestamp())"),
    **dict.fromkeys(_MYSQL, partial(_ask_time, "SELECT UNIX_TIMESTAMP(SYSDATE(6))")),
}
"""Asks for the server's time. SQLite has none."""


def address_of(engine: AsyncEngine) -> str:
    """The address of an engine's database, without user and password, for the log."""
    url = engine.url
    if engine.dialect.name == "sqlite":
        return f"sqlite:{url.database or ':memory:'}"
    given = url.host or url.query.get("host") or url.query.get("unix_socket") or engine.dialect.name
    host = given if isinstance(given, str) else ",".join(given)
    host = f"[{host}]" if url.host and ":" in host else host
    return f"{host}{f':{url.port}' if url.port else ''}/{url.database or ''}"


def _pool_limit(pool: Any) -> int:
    """The largest number of connections that a pool hands out, or UNLIMITED."""
    if isinstance(pool, StaticPool):
        return 1  # it hands out one shared connection, which must not be used within the transaction of another task
    if hasattr(pool, "size") and getattr(pool, "_max_overflow", -1) >= 0:
        return int(pool.size() + pool._max_overflow)
    return UNLIMITED


def _let_go_of_cursors(error: BaseException) -> None:
    """Clear the frames of an error in the middle of a statement.

    They hold its cursor for as long as the error exists, and until then SQLite neither closes the connection nor drops its locks.
    """
    cause: BaseException | None = error
    while cause is not None:
        clear_frames(cause.__traceback__)
        cause = cause.__context__


def _codes_of(error: Exception) -> tuple[object, object]:
    """The SQLSTATE and the error number of the driver's error, or None for each."""
    cause: Any = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    number = cause.args[0] if isinstance(error, DBAPIError) and cause.args else None
    return state, number if isinstance(number, int) else None


def _sqlite_code_of(error: DBAPIError) -> int:
    return int(getattr(error.orig, "sqlite_errorcode", 0) or 0) & 0xFF


def _is_of_wrong_server(error: DBAPIError) -> bool:
    return bool(WRONG_SERVER.intersection(_codes_of(error))) or _sqlite_code_of(error) == SQLITE_READONLY


def _is_broken(error: Exception) -> bool:
    """Whether the connection is unusable: it is closed, or its replies are shifted.

    Drivers pass on errors of the socket, of TLS or of a starting server. Those of MariaDB report an unreadable reply as an
    InternalError without a number, which SQLAlchemy takes for an error reply.
    """
    if not isinstance(error, DBAPIError):
        return True
    return error.connection_invalidated or (isinstance(error, InternalError) and _codes_of(error) == (None, None))


def is_conflict(error: Exception) -> bool:
    """Whether to repeat: a deadlock, a conflict, a row that appeared between two statements, a locked SQLite file."""
    if isinstance(error, IntegrityError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    # PostgreSQL: serialization failure, deadlock. MySQL and MariaDB: lock wait, deadlock, record has changed since last read.
    conflicts = {"40001", "40P01", 1205, 1213, 1020}.intersection(_codes_of(error))
    return bool(conflicts) or _sqlite_code_of(error) in (5, 6)  # SQLITE_BUSY, SQLITE_LOCKED


def _store_error(error: Exception, no_table: str) -> StoreError:
    """The error to raise. An error reply means a reachable server, and so StoreRefused."""
    state, number = _codes_of(error)
    if isinstance(error, DBAPIError) and (READ_ONLY.intersection((state, number)) or _sqlite_code_of(error)):
        is_refusal = _sqlite_code_of(error) not in SQLITE_UNREADABLE
    elif not isinstance(error, DBAPIError):
        is_refusal = isinstance(error, PoolTimeoutError | StatementError | UnicodeError) or _is_refusal(state, None)
    else:
        is_refusal = not error.connection_invalidated and _is_refusal(state, number)
    return (StoreRefused if is_refusal else StoreUnreachable)(_reason(error, no_table))


def _is_refusal(state: object, number: object) -> bool:
    if state is None and number is None:
        return False
    is_connection = str(state)[:2] in ("08", "28") or (isinstance(number, int) and 2000 <= number < 3000)
    return not (is_connection or (LEAVING | NOT_LET_IN).intersection((state, number)))


_NO_TABLE = frozenset({"42P01", "42S02", 1146})


def _reason(error: Exception, no_table: str) -> str:
    if isinstance(error, OutOfStep):
        return "the database sent the reply to another statement"
    reason = reason_of(error)
    if isinstance(error, DBAPIError) and (_NO_TABLE.intersection(_codes_of(error)) or "no such table" in reason):
        return f"{no_table} ({reason})"
    return f"{'the database failed' if isinstance(error, DBAPIError) else 'the database is unreachable'}: {reason}"
