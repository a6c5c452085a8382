"""The servers of old sessions: Redis and SQL databases. Each query has a time limit, and a failure is a StoreError."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, Final, TypeVar

from asgi_sessions._core.extras import needs
from asgi_sessions._core.hidden import Hidden
from asgi_sessions._core.timeouts import duration
from asgi_sessions._engine.deadline import Deadlines
from asgi_sessions._engine.failures import reason_of
from asgi_sessions._engine.loops import PerLoop
from asgi_sessions.errors import ConfigurationError, StoreError, StoreUnreachable

DEADLINE: Final = timedelta(seconds=0.4)
"""The time limit of one query."""

AT_ONCE: Final = 20
"""Concurrent queries with a client of the app. Its pool may refuse more, and the app needs it too."""

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


class _Server:
    """A server with a time limit."""

    def __init__(self, called: str, host: str, deadline: timedelta) -> None:
        self._called = called
        self._host = host
        self._seconds = duration(f"{called}(deadline)", deadline).total_seconds()
        if self._seconds <= 0:
            raise ConfigurationError(f"{called}(deadline={deadline!r}): give a time of more than 0")
        self._limits = Deadlines(self._seconds)

    async def _in_time(self, ask: Callable[[Any], Awaitable[T]], key: Hidden[Any]) -> T:
        """The reply to a query for a key. The key logs in, so the errors have no frames that hold it.

        Raises:
            StoreUnreachable: there was no reply in time, or the server failed.
        """
        try:
            with self._limits.limit():  # a blocked event loop does not count against the server
                return await ask(key.value)
        except TimeoutError:
            failure: StoreError = StoreUnreachable(
                f"{self._called}: the old store did not answer within {self._seconds:.2f} s"
            )
        except StoreError as error:
            failure = _without_frames(error)
        except Exception as error:
            failure = StoreUnreachable(f"{self._called}: the old store failed: {reason_of(error)}")
            failure.__cause__ = _without_frames(error)
        failure.host = self._host
        raise failure


class RedisServer(_Server):
    """A Redis server, with a client of the app or our own connections."""

    def __init__(self, called: str, redis: Any, deadline: timedelta) -> None:
        from asgi_sessions.stores.redis._client import GivenClient, OwnClient, address_of, pool_from_url

        if isinstance(redis, str):
            pool = pool_from_url(redis, {})
            super().__init__(called, address_of(pool), deadline)
            self._client: Any = OwnClient(lambda: pool_from_url(redis, {}))
            self._turns: PerLoop[Any] = PerLoop(nullcontext)
            return
        if isinstance(redis, type) or not inspect.iscoroutinefunction(getattr(redis, "execute_command", None)):
            raise ConfigurationError(
                f"{called}({type(redis).__name__}): give a client from redis.asyncio, or a URL such as 'redis://localhost'"
            )
        if redis.get_encoder().decode_responses:
            raise ConfigurationError(
                f"{called}: the client has decode_responses=True, but old sessions are bytes; create the client without it"
            )
        super().__init__(called, address_of(redis), deadline)
        self._client = GivenClient(redis)
        most = getattr(getattr(redis, "connection_pool", None), "max_connections", AT_ONCE)
        self._turns = PerLoop(lambda: asyncio.Semaphore(max(1, min(most, AT_ONCE))))

    async def ask(self, name: str, key: Hidden[bytes], *more: str) -> Any:
        """The reply to one command.

        Raises:
            StoreError: there was no reply in time, or an error.
        """
        from asgi_sessions.stores.redis._client import Refused

        async def reply(key: bytes) -> Any:
            try:
                async with self._turns.here():
                    return await self._client.call((name, key, *more))
            except Refused as refused:
                raise refused.as_store_error() from refused

        return await self._in_time(reply, key)

    async def aclose(self) -> None:
        """Close our own connection of this event loop."""
        await self._client.aclose()


class SQLServer(_Server):
    """The table of Django's sessions, with an engine of SQLAlchemy or with functions of the app."""

    def __init__(self, called: str, database: Any, delete: Any, table: str, deadline: timedelta) -> None:
        super().__init__(called, "the old database", deadline)
        if callable(database):
            if delete is not None and not callable(delete):
                raise ConfigurationError(f"{called}(delete=…): give a coroutine function of the session key")
            self._find, self._delete = database, delete
            self._managers: PerLoop[Any] = PerLoop(nullcontext)
            return
        with needs("sql", called):
            import sqlalchemy
            from sqlalchemy.ext.asyncio import AsyncEngine

            from asgi_sessions.stores.sql._connections import ConnectionManager, check
        if delete is not None or not isinstance(database, AsyncEngine):
            raise ConfigurationError(
                f"{called}({type(database).__name__}): give an AsyncEngine of SQLAlchemy, or a coroutine function of the "
                "session key and, as delete=…, a second one"
            )
        check(database, called, ", or a coroutine function of the session key")
        there = sqlalchemy.table(
            table,
            sqlalchemy.column("session_key", sqlalchemy.String()),
            sqlalchemy.column("session_data", sqlalchemy.Text()),
            sqlalchemy.column("expire_date", sqlalchemy.DateTime(timezone=True)),
        )
        no_table = f"{called}(table=…): there is no such table"
        self._managers = PerLoop(
            lambda: ConnectionManager(database, is_own=False, no_table=no_table, longest=self._seconds)
        )

        async def find(key: str) -> Any:
            query = sqlalchemy.select(there.c.session_data, there.c.expire_date).where(there.c.session_key == key)

            async def work(connections: ConnectionManager) -> Any:
                async with connections.statement() as connection:
                    return (await connection.execute(query)).first()

            return await self._managers.here().run(work)

        async def remove(key: str) -> None:
            statement = sqlalchemy.delete(there).where(there.c.session_key == key)

            async def work(connections: ConnectionManager) -> None:
                async with connections.statement() as connection:
                    await connection.execute(statement)

            await self._managers.here().run(work, writes=key)

        self._find, self._delete = find, remove

    async def row(self, key: Hidden[str]) -> tuple[str, object] | None:
        """``session_data`` and ``expire_date``.

        Raises:
            StoreError: the database failed, refused the query, or took too long.
        """
        found = await self._in_time(self._find, key)
        return None if found is None else (str(found[0]), found[1])

    async def delete(self, key: Hidden[str]) -> None:
        """Delete a session.

        Raises:
            StoreError: the database failed, refused the query, or took too long.
        """
        if self._delete is not None:
            await self._in_time(self._delete, key)

    async def aclose(self) -> None:
        """Wait for the queries that are still running. The engine is the app's."""
        if (connections := self._managers.taken()) is not None:
            await connections.aclose()


def _without_frames(error: E) -> E:
    """Drop the frames of an error and of all its causes: those of drivers hold the command with its key."""
    left: list[BaseException | None] = [error]
    met = set[int]()
    while left:
        each = left.pop()
        if each is not None and id(each) not in met:
            met.add(id(each))
            each.__traceback__ = None
            left += [each.__cause__, each.__context__]
    return error


def found_by(parse: Callable[[Any], T], value: object) -> T | None:
    """The result of a parser, or ``None`` if it fails."""
    try:
        return parse(value)
    except (TypeError, ValueError, OverflowError):
        return None
