"""How statements reach the database: one engine per event loop, and what is tried again.

An operation that has begun is finished, even if its caller is cancelled: SQLAlchemy drops the connection of a cancelled task, and
a browser that hangs up should not cost a new one. It has two seconds for that, since an operation that waits for a dead server or
for a lock holds a connection that others could use. A caller that is cancelled while it waits for its turn has begun nothing.

The writes of one user wait for each other here, before they take a connection. In the database they would wait for that user's
lock, and with a connection each: one user who logs in ten times at once would keep out all others.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from inspect import signature
from traceback import clear_frames
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from sqlalchemy import CursorResult, Executable, Select, UpdateBase, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import DBAPIError, IntegrityError, InternalError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, StaticPool

from asgi_sessions._core.token import shard_of
from asgi_sessions._engine.deadline import Deadlines, Limit, limit_alone
from asgi_sessions._engine.failures import reason_of
from asgi_sessions._engine.loops import at_the_end, retrieve
from asgi_sessions.errors import (
    ConfigurationError,
    MissingExtra,
    SessionError,
    StoreError,
    StoreRefused,
    StoreUnreachable,
)

T = TypeVar("T")

LONGEST: Final = 5.0
"""Seconds that one operation may wait for its turn, and then take, its repetitions included; a request gives up long before."""

LONGEST_ALONE: Final = 2.0
"""Seconds that it may take once nobody waits for it any more."""

TIME_TO_GIVE_BACK: Final = 2.0
"""Seconds in which a connection is to be back in the pool; one whose server says nothing is cut off then."""

TIME_TO_CLEAN_UP: Final = 5.0
"""Seconds after which an operation that was cancelled and goes on is cancelled again. To give its connection back takes less."""

TIME_TO_CLOSE: Final = 5.0
"""Seconds in which connections are closed politely, all at once; drivers give a dead server two."""

MAX_ATTEMPTS: Final = 50
"""How often an operation is begun anew because others were faster; it ends by LONGEST, mostly."""

FOUND_ROWS: Final = 2
"""CLIENT_FOUND_ROWS of MySQL's protocol: rows that an UPDATE found are counted, not those that it changed."""

UNLIMITED: Final = 32
"""How many operations go on at once where the pool has no limit."""

TRUST_AGAIN: Final = 1.0
"""Seconds in which a new connection that leads to the wrong server as well is kept: to open another one would not help."""

READ_ONLY: Final = frozenset({"25006", 1290, 1792, 1836})
"""PostgreSQL, appendix A: read_only_sql_transaction. MySQL and MariaDB, error reference: --read-only (or another option), a
read-only transaction, read-only."""

LEAVING: Final = frozenset({"57P01", "57P02", "57P03", "57P04", 1053, 1077, 1079, 1152, 1927, 1047})
"""PostgreSQL: admin_shutdown, crash_shutdown, cannot_connect_now, database_dropped. MySQL and MariaDB: the server, or this
connection, is shutting down; 1047 WSREP: it is not in its cluster."""

WRONG_SERVER: Final = READ_ONLY | LEAVING
"""What a server says that is no primary now: after a failover it is the connection that leads to the wrong place."""

NOT_LET_IN: Final = frozenset({"3D000", 1044, 1045, 1049, 1129, 1130})
"""PostgreSQL: invalid_catalog_name. MySQL and MariaDB: access denied, to the database too; unknown database; host is blocked, or
not allowed. PostgreSQL's classes 08 and 28 say that there is no connection, and that there is none for this user."""

SQLITE_UNREADABLE: Final = frozenset({10, 11, 14, 26})
"""The primary result codes of a file that cannot be used: I/O error, corrupt, cannot be opened, no database."""

SQLITE_READONLY: Final = 8
"""The primary result code; of a file that was moved or replaced, too (SQLITE_READONLY_DBMOVED)."""

_MADE_AT: Final = "asgi_sessions made at"
"""In ``info`` of a connection: when it was opened, by the monotonic clock."""

# READ COMMITTED: what we decide by is locked, not remembered, so each statement should see what others have committed.
_BEGIN: Final = {
    "postgresql": ("BEGIN ISOLATION LEVEL READ COMMITTED",),
    "mysql": ("START TRANSACTION",),
    "mariadb": ("START TRANSACTION",),
    "sqlite": ("BEGIN IMMEDIATE",),
}
DURABLY: Final = "SET LOCAL synchronous_commit = remote_apply"
"""PostgreSQL: COMMIT answers when the synchronous standbys show what was done; without any, when it is on this server's disk."""

_MYSQL = ("mysql", "mariadb")
_TIME: Final = {
    "postgresql": "SELECT EXTRACT(EPOCH FROM clock_timestamp())",
    **dict.fromkeys(_MYSQL, "SELECT UNIX_TIMESTAMP(SYSDATE(6))"),
}
"""How a server is asked what time it is. SQLite has none."""
_MAY_SKIP_ROLLBACK: Final = "skip_autocommit_rollback" in signature(DefaultDialect).parameters  # SQLAlchemy 2.0.43

_EXAMPLE = (
    "sqlite+aiosqlite:///sessions.db, postgresql+asyncpg://user@host/database, mysql+asyncmy://user@host/database"
)
_DRIVERS = {"postgresql": "asyncpg", "mysql": "asyncmy", "mariadb": "asyncmy", "sqlite": "aiosqlite"}


def build(url: str, options: dict[str, Any]) -> AsyncEngine:
    """An engine for our own use. Opens nothing.

    Raises:
        ConfigurationError: the URL or an option is not understood, or the driver is not there; without the URL's password.
    """
    parsed, dialect = _parsed(url)
    if dialect == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigurationError(
            "SQLStore.from_url(): SQLite in memory is one connection's; use a file, or MemoryStore()"
        )
    if "isolation_level" in options:
        raise ConfigurationError("SQLStore.from_url(isolation_level=…): the store chooses it, by what it does")
    given = {"hide_parameters": True, **options}
    if "poolclass" not in given:
        given["poolclass"] = AsyncAdaptedQueuePool  # SQLAlchemy before 2.0.38 has another for SQLite
        # None beyond those: the pool would close it as soon as it is back, and the next request open another.
        given.setdefault("pool_size", 10)
        given.setdefault("max_overflow", 0)
    if dialect in _MYSQL:
        given.setdefault("pool_recycle", 1800)  # these servers hang up after eight hours without a word
        if isinstance(connect := given.get("connect_args"), dict) and isinstance(connect.get("client_flag"), int):
            # In the place of SQLAlchemy's, it says: an UPDATE that changes nothing, as it is so already, has found nothing.
            given["connect_args"] = {**connect, "client_flag": connect["client_flag"] | FOUND_ROWS}
    if _MAY_SKIP_ROLLBACK:
        # We leave nothing in a transaction, and a ROLLBACK after each statement is one question more on MariaDB.
        given.setdefault("skip_autocommit_rollback", True)
    try:
        # Most of what is asked is one statement; that needs no BEGIN and no COMMIT around it.
        engine = create_async_engine(parsed, isolation_level="AUTOCOMMIT", **given)
    except ModuleNotFoundError as missing:
        raise MissingExtra(
            f"SQLStore.from_url(): there is no driver {missing.name}: pip install {missing.name}", name=missing.name
        ) from None
    except (SQLAlchemyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"SQLStore.from_url(): the URL or an option is not understood ({type(error).__name__}); use {_EXAMPLE}"
        ) from None
    check(engine)
    if dialect == "sqlite":
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    elif dialect in _MYSQL:
        event.listen(engine.sync_engine, "connect", _prepare_mysql)
    return engine


def _parsed(url: str) -> tuple[URL, str]:
    """A URL and the kind of its database. No message quotes more of the URL than its scheme: the rest may hold a password.

    Raises:
        ConfigurationError: it names no database that we know, or no driver for asyncio; with the one to use.
    """
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):  # ValueError: the port is no number
        raise ConfigurationError(f"SQLStore.from_url(): the URL is not understood; use {_EXAMPLE}") from None
    backend, _, driver = parsed.drivername.partition("+")
    dialect = "postgresql" if backend == "postgres" else backend
    said = f"SQLStore.from_url('{parsed.drivername}://…')"
    if dialect not in _DRIVERS:
        raise ConfigurationError(f"{said}: not for such a database; use {_EXAMPLE}")
    try:
        kind = parsed.get_dialect()
        is_async = bool(driver) and kind.get_async_dialect_cls(parsed).is_async
    except SQLAlchemyError:
        is_async = False
    if not is_async:
        why = f"{driver} is no driver for asyncio" if driver else "the URL names no driver"
        raise ConfigurationError(
            f"{said}: {why}; use '{dialect}+{_DRIVERS[dialect]}://…' (pip install {_DRIVERS[dialect]})"
        )
    return parsed, dialect


def check(engine: AsyncEngine) -> None:
    """Refuse an engine for a database that the store was not written for.

    Raises:
        ConfigurationError: it is for another one.
    """
    if engine.dialect.name not in _BEGIN:
        raise ConfigurationError(
            f"SQLStore: not for {engine.dialect.name}; it is held to its promises on {', '.join(_BEGIN)}"
        )


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """Readers and one writer at a time, nobody waits for a reader, and what was said to be kept survives a power cut."""
    _say(connection, "PRAGMA busy_timeout=5000", "PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL")


def _prepare_mysql(connection: Any, _record: object) -> None:
    # Who waits for a lock does not notice that its client is gone, for 50 seconds, or a day if it is a table's.
    seconds = round(LONGEST)
    _say(
        connection,
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        f"SET SESSION innodb_lock_wait_timeout = {seconds}, lock_wait_timeout = {seconds}",
    )


def _say(connection: Any, *statements: str) -> None:
    cursor = connection.cursor()
    for statement in statements:
        cursor.execute(statement)
    cursor.close()


class OutOfStep(Exception):
    """What came is the answer to another question: a stray one came before it, and others would follow."""


def _look_whether_in_step(
    _connection: object, asked: Executable, _many: object, _values: object, _options: object, result: CursorResult[Any]
) -> None:
    """For SQLAlchemy, rows that nobody asked for are as good as none where there should be some."""
    if (isinstance(asked, Select) and not result.returns_rows) or (
        isinstance(asked, UpdateBase) and result.returns_rows
    ):
        raise OutOfStep


class ConnectionManager:
    """The connections of one event loop to the database."""

    def __init__(self, engine: AsyncEngine, *, is_own: bool, hear_time: Callable[[float], None]) -> None:
        self._engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._begin: tuple[str, ...] = _BEGIN[engine.dialect.name]
        if engine.dialect.name in _MYSQL and not is_own:
            self._begin = ("SET TRANSACTION ISOLATION LEVEL READ COMMITTED", *self._begin)
        self._single = engine if is_own else engine.execution_options()  # the same, for listeners that hear us alone
        self._is_own = is_own
        event.listen(self._single.sync_engine, "after_execute", _look_whether_in_step)
        event.listen(engine.sync_engine, "connect", _note_when)
        if (question := _TIME.get(engine.dialect.name)) is not None:
            event.listen(engine.sync_engine, "connect", partial(_ask_time, question, hear_time))
        self._distrusted_at = -math.inf
        """Connections that were opened before this lead to a server that is no primary now."""
        # As many as the pool gives connections. A task that waits here can be cancelled and leaves nothing behind.
        self._semaphore = asyncio.Semaphore(_pool_limit(engine.pool))
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._patience = Deadlines(LONGEST)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._at_loop_end: AsyncGenerator[None, None] | None = None

    async def run(self, work: Callable[[ConnectionManager], Awaitable[T]], *, writes: str | None = None) -> T:
        """Carry out one operation, again where others were faster or a connection broke: all of ours are harmless to repeat.

        Args:
            writes: a key or the owner of what it writes. The writes of one user are carried out one after the other. SQLite has
                one writer at a time, and others would wait in steps of up to 0.1 s: there it holds for all writes.
        Raises:
            StoreUnreachable, StoreRefused: the driver's error is the cause.
        """
        if self._is_own and self._at_loop_end is None:
            self._at_loop_end = await at_the_end(self._close)
        turn = None if writes is None else "" if self._is_sqlite else shard_of(writes)
        lock = None if turn is None else self._turns.setdefault(turn, asyncio.Lock())
        await self._wait_for_turn(lock)
        limit = limit_alone(LONGEST, again=TIME_TO_CLEAN_UP)
        task = asyncio.ensure_future(self._carry_out(work, limit))
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, lock))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            limit.hasten(max(LONGEST - LONGEST_ALONE, 0.0))
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
                raise StoreRefused(f"it would have to wait for {waited_for}") from error
            raise

    def _done(self, lock: asyncio.Lock | None, task: asyncio.Task[Any]) -> None:
        self._semaphore.release()
        if lock is not None:
            lock.release()
        self._tasks.discard(task)
        retrieve(task)

    async def _carry_out(self, work: Callable[[ConnectionManager], Awaitable[T]], limit: Limit) -> T:
        breaks = 0
        try:
            with limit:
                for attempt in range(1, MAX_ATTEMPTS + 1):
                    try:
                        return await work(self)
                    except (SessionError, TimeoutError):
                        raise
                    except Exception as error:
                        broken = _is_broken(error)
                        breaks += broken
                        again = breaks == 1 if broken else _others_were_faster(error)
                        if not again or attempt == MAX_ATTEMPTS:
                            # Of the driver's error: SQLAlchemy's quotes the statement and what was in it.
                            raise _store_error(error) from (error.orig if isinstance(error, DBAPIError) else error)
                    pause = 0.001 * min(2**attempt, 64)
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing
        except TimeoutError as error:
            raise StoreUnreachable(f"the database did not answer within {LONGEST:.0f} s") from error
        raise StoreRefused("others were faster each time")

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[AsyncConnection]:
        """For single statements: each takes effect at once."""
        connection = await self._trusted()
        try:
            if not self._is_own:
                # Not as an option of the engine: SQLAlchemy would say it within connect(), and who is cancelled there has nothing
                # that could be given back.
                try:
                    await connection.execution_options(isolation_level="AUTOCOMMIT")
                except Exception:
                    # The driver's own error. By a question of its own SQLAlchemy notices what that means for the whole pool.
                    await connection.exec_driver_sql("SELECT 1")
                    raise
            yield connection
        except SessionError:
            raise
        except BaseException as error:
            if self._is_sqlite and isinstance(error, asyncio.CancelledError):
                _let_go_of_cursors(error)
            if isinstance(error, DBAPIError) and _is_of_wrong_server(error) and self._distrusts(connection):
                error.connection_invalidated = True
            if not isinstance(error, Exception) or _is_broken(error):
                await connection.invalidate()  # what is still on its way would be the next one's answer
            raise
        finally:
            await self._give_back(connection)

    async def _trusted(self) -> AsyncConnection:
        """A connection that was opened since the last failover."""
        while True:
            connection = await self._single.connect()
            ours = connection.sync_connection
            if ours is None or ours.info.get(_MADE_AT, 0.0) > self._distrusted_at:
                return connection
            await connection.invalidate()
            await self._give_back(connection)

    def _distrusts(self, connection: AsyncConnection) -> bool:
        """After an error of a wrong server: whether the connection is at fault, so that a new one may help."""
        ours, now = connection.sync_connection, time.monotonic()
        if ours is None or ours.invalidated:
            return True
        if ours.info.get(_MADE_AT, 0.0) <= self._distrusted_at:
            return True
        if now - self._distrusted_at < TRUST_AGAIN:
            return False  # a new one said the same a moment ago
        self._distrusted_at = now
        return True

    async def _give_back(self, connection: AsyncConnection) -> None:
        """To the pool, and soon.

        SQLAlchemy asks the server for one thing more, goes on though it is cancelled, and would wait for a server that has gone
        without a word until TCP gives up, which takes a quarter of an hour. Meanwhile nobody else could use that connection.

        Raises:
            TimeoutError: it did not come back, not even after it was cut off.
        """
        ours = connection.sync_connection
        pooled = ours.connection if ours is not None and not ours.invalidated else None
        driver = pooled.dbapi_connection if pooled is not None else None

        def cut_off() -> None:
            if driver is not None and self._engine.dialect.has_terminate and not self._is_sqlite:
                self._engine.dialect.do_terminate(driver)

        def look(closing: asyncio.Future[None]) -> None:
            if not closing.cancelled() and closing.exception() is not None and pooled is not None:
                # What was asked is answered. But SQLAlchemy loses that place of the pool where it fails to take back AUTOCOMMIT.
                pooled.detach()
                cut_off()

        closing = asyncio.ensure_future(connection.close())
        closing.add_done_callback(look)
        try:
            await asyncio.wait({closing}, timeout=TIME_TO_GIVE_BACK)
        finally:
            if not closing.done():
                cut_off()
                await asyncio.wait({closing}, timeout=TIME_TO_GIVE_BACK)
        if not closing.done():
            raise TimeoutError

    @asynccontextmanager
    async def transaction(self, *, durably: bool = False) -> AsyncIterator[AsyncConnection]:
        """All of it takes effect, or nothing. What is read FOR UPDATE stays as it is until the end.

        Begun and ended in words, on a connection that SQLAlchemy need not switch to and fro: on MariaDB that were four questions
        more; and SQLite's driver begins by itself, but too late, when what was read before the first write may have changed.

        Args:
            durably: its COMMIT waits for the synchronous standbys of PostgreSQL.
        """
        async with self.statement() as connection:
            for words in (*self._begin, DURABLY) if durably else self._begin:
                await connection.exec_driver_sql(words)
            try:
                yield connection
                await connection.exec_driver_sql("COMMIT")  # SQLite may refuse, and goes on with the transaction
            except BaseException:
                try:
                    await connection.exec_driver_sql("ROLLBACK")
                except Exception:
                    await connection.invalidate()  # nobody else gets it with half of our work on it
                raise

    async def aclose(self) -> None:
        if self._at_loop_end is None:
            await self._close()
        else:
            await self._at_loop_end.aclose()

    async def _close(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)
            # A task that waited for the semaphore begins now, and would open a connection that nobody closes.
            await asyncio.sleep(0)
        if not self._is_own:
            return
        # dispose() says goodbye to one after the other and waits for a server that says nothing.
        idle = getattr(self._engine.pool, "checkedin", int)()
        try:
            with limit_alone(TIME_TO_CLOSE, again=TIME_TO_CLEAN_UP):
                await asyncio.gather(*(self._close_one() for _ in range(idle)), return_exceptions=True)
                await self._engine.dispose()
        except TimeoutError:
            pass

    async def _close_one(self) -> None:
        async with self.statement() as connection:
            await connection.invalidate()


def _note_when(_connection: object, record: Any) -> None:
    record.info[_MADE_AT] = time.monotonic()


def _ask_time(question: str, hear: Callable[[float], None], connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(question)
    row = cursor.fetchone()
    cursor.close()
    connection.rollback()
    if row is not None:
        hear(float(row[0]))


def address_of(engine: AsyncEngine) -> str:
    """Where an engine leads to; without user and password. For the log."""
    url = engine.url
    if engine.dialect.name == "sqlite":
        return f"sqlite:{url.database or ':memory:'}"
    given = url.host or url.query.get("host") or url.query.get("unix_socket") or engine.dialect.name
    host = given if isinstance(given, str) else ",".join(given)
    host = f"[{host}]" if url.host and ":" in host else host
    return f"{host}{f':{url.port}' if url.port else ''}/{url.database or ''}"


def _pool_limit(pool: Any) -> int:
    """How many connections a pool gives at once, as far as it has a limit."""
    if isinstance(pool, StaticPool):
        return 1  # it gives the same to everybody, and one would be in the transaction of another
    if hasattr(pool, "size") and getattr(pool, "_max_overflow", -1) >= 0:
        return int(pool.size() + pool._max_overflow)
    return UNLIMITED


def _let_go_of_cursors(error: BaseException) -> None:
    """SQLite closes a connection only when nobody has a cursor any more that was not read to its end; so long its locks stay.

    Where a statement was cut off, the frames that the error came through have one, for as long as the error is somewhere.
    """
    cause: BaseException | None = error
    while cause is not None:
        clear_frames(cause.__traceback__)
        cause = cause.__context__


def _codes_of(error: Exception) -> tuple[object, object]:
    """What the driver says in figures: the SQLSTATE, and the number in front of the message; ``None`` where there is none."""
    cause: Any = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    number = cause.args[0] if isinstance(error, DBAPIError) and cause.args else None
    return state, number if isinstance(number, int) else None


def _sqlite_code_of(error: DBAPIError) -> int:
    return int(getattr(error.orig, "sqlite_errorcode", 0) or 0) & 0xFF


def _is_of_wrong_server(error: DBAPIError) -> bool:
    return bool(WRONG_SERVER.intersection(_codes_of(error))) or _sqlite_code_of(error) == SQLITE_READONLY


def _is_broken(error: Exception) -> bool:
    """Whether the connection is of no use any more: it is closed, or what it says is no answer to what it was asked.

    Drivers let through what the socket, TLS or a server that starts says. Those of MariaDB say that they do not understand, but
    without a number, and SQLAlchemy takes it for an answer.
    """
    if not isinstance(error, DBAPIError):
        return True
    return error.connection_invalidated or (isinstance(error, InternalError) and _codes_of(error) == (None, None))


def _others_were_faster(error: Exception) -> bool:
    """Whether to begin anew: a deadlock, a conflict, a row that appeared between two statements, a locked SQLite file."""
    if isinstance(error, IntegrityError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    # PostgreSQL: serialization failure, deadlock. MySQL and MariaDB: lock wait, deadlock, record has changed since last read.
    faster = {"40001", "40P01", 1205, 1213, 1020}.intersection(_codes_of(error))
    return bool(faster) or _sqlite_code_of(error) in (5, 6)  # SQLITE_BUSY, SQLITE_LOCKED


def _store_error(error: Exception) -> StoreError:
    """The error to raise. A server that answers with an error of its own can be asked, and refuses this."""
    state, number = _codes_of(error)
    if isinstance(error, DBAPIError) and (READ_ONLY.intersection((state, number)) or _sqlite_code_of(error)):
        is_refusal = _sqlite_code_of(error) not in SQLITE_UNREADABLE
    elif not isinstance(error, DBAPIError):
        is_refusal = isinstance(error, PoolTimeoutError | StatementError | UnicodeError) or _is_refusal(state, None)
    else:
        is_refusal = not error.connection_invalidated and _is_refusal(state, number)
    return (StoreRefused if is_refusal else StoreUnreachable)(_reason(error))


def _is_refusal(state: object, number: object) -> bool:
    if state is None and number is None:
        return False
    is_connection = str(state)[:2] in ("08", "28") or (isinstance(number, int) and 2000 <= number < 3000)
    return not (is_connection or (LEAVING | NOT_LET_IN).intersection((state, number)))


_NO_TABLE = frozenset({"42P01", "42S02", 1146})


def _reason(error: Exception) -> str:
    if isinstance(error, OutOfStep):
        return "the database answered another question"
    said = reason_of(error)
    if isinstance(error, DBAPIError) and (_NO_TABLE.intersection(_codes_of(error)) or "no such table" in said):
        return (
            "there are no tables: await store.create_tables(), or migrate by what `asgi-sessions schema` prints "
            f"({said})"
        )
    return f"{'the database failed' if isinstance(error, DBAPIError) else 'the database cannot be asked'}: {said}"
