"""How commands reach the server: the seam between the store and redis-py.

Two ways, one face. Our own: one :class:`Link` per event loop, opened when first needed and again when it was lost. The app's: a
client that it passed in, used as it is.
"""

from __future__ import annotations

import asyncio
import os
import random
import weakref
from typing import Any

import hiredis
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from asgi_sessions._errors import ConfigurationError, StoreError
from asgi_sessions.stores.redis._link import ConnectionLost, Link, open_link
from asgi_sessions.stores.redis._scripts import Script

# RESP2: nothing is pushed, so every reply belongs to a question. No retries in the driver: they are ours.
_OPTIONS: dict[str, Any] = {
    "protocol": 2,
    "decode_responses": False,
    "socket_connect_timeout": 0.4,
    "socket_timeout": 0.4,  # of the handshake; after that the link keeps the time
}

TIME_TO_OPEN = 0.45
"""Seconds that a command waits for a connection, or for room on it."""

FIRST_PAUSE = 0.02
LONGEST_PAUSE = 1.0
"""Seconds for which a server that could not be reached is not tried again: doubled each time, with jitter."""


class Refused(Exception):
    """The server answered with an error."""

    @property
    def code(self) -> str:
        """Its first word: OOM, READONLY, NOPERM … The text may quote the command, so it is shown to nobody."""
        words = str(self).split(None, 1)
        return words[0] if words and words[0].isupper() else "ERR"

    def as_store_error(self) -> StoreError:
        return StoreError(f"Redis refused: {self.code}")


class OwnClient:
    """Our own connections: one per event loop."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url = url
        try:
            # Opens nothing; knows how to.
            self._pool = ConnectionPool.from_url(url, **{**_OPTIONS, **options, "retry": Retry(NoBackoff(), 0)})
            new_connection(self._pool)
        except (ValueError, TypeError, RedisError) as error:
            # The URL may hold a password: say what is wrong with it, not what it is.
            raise ConfigurationError(
                f"RedisStore.from_url(): the URL or an option is not understood ({type(error).__name__}); "
                "use redis://host:6379/0, rediss://… for TLS, or unix://path"
            ) from None
        self._lines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Line] = weakref.WeakKeyDictionary()
        self._last: tuple[asyncio.AbstractEventLoop | None, Line | None] = (None, None)
        _after_fork.add(self)

    async def call(self, *command: Any) -> Any:
        """Send one command and return its reply; once more if the connection broke.

        Raises:
            Refused: the server answered with an error. StoreError: there was no answer.
        """
        loop = asyncio.get_running_loop()
        last, line = self._last  # mostly there is one loop, and looking it up costs 0.5 µs
        if last is not loop or line is None:
            line = self._lines.get(loop)
            if line is None:
                line = self._lines[loop] = Line(self._pool)
            self._last = (loop, line)
        try:
            link = line.link
            if link is None or link.lost is not None or link.is_full:
                link = await line.ready_in_time()
            try:
                reply = await link.ask(command)
            except ConnectionLost:
                # Every command we send is harmless to repeat; see the scripts.
                link = await line.ready_in_time()
                reply = await link.ask(command)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(f"Redis cannot be asked: {type(error).__name__}") from error
        if isinstance(reply, hiredis.ReplyError):
            raise Refused(str(reply))
        return reply

    async def aclose(self) -> None:
        """Close the connection of this loop."""
        self._last = (None, None)
        line = self._lines.pop(asyncio.get_running_loop(), None)
        if line is not None:
            await line.aclose()

    def forget(self) -> None:
        """In a forked child: the sockets are the parent's."""
        self._lines = weakref.WeakKeyDictionary()
        self._last = (None, None)


def new_connection(pool: ConnectionPool) -> AbstractConnection:
    """A connection as the pool would make one, not yet opened and not known to the pool."""
    connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]  # of redis-py
    return connection


class Line:
    """The way to the server in one event loop: the link, or the attempt to open one."""

    __slots__ = ("_error", "_opening", "_pause", "_pool", "_retry_at", "link")

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._opening: asyncio.Task[Link] | None = None
        self._error: BaseException | None = None
        self._pause = 0.0
        self._retry_at = 0.0
        self.link: Link | None = None

    async def ready_in_time(self) -> Link:
        """:meth:`ready`, or TimeoutError."""
        async with asyncio.timeout(TIME_TO_OPEN):
            return await self.ready()

    async def ready(self) -> Link:
        """A link with room for a command; all who ask at once wait for the same one.

        Raises:
            RedisError, OSError: there is none, and there was none a moment ago.
        """
        link = self.link
        while link is None or link.lost is not None or link.is_full:
            if link is not None and link.lost is None:
                await link.room()
                continue
            if self._opening is None:
                self._raise_if_pausing()
                # A task of its own: whoever asked first may be cancelled, and the others still want the connection.
                self._opening = asyncio.ensure_future(self._open())
                self._opening.add_done_callback(_retrieve)
            link = await asyncio.shield(self._opening)
        return link

    async def _open(self) -> Link:
        try:
            link = await open_link(new_connection(self._pool))
        except BaseException as error:
            self._pause = min(max(self._pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            pause = self._pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
            self._retry_at = asyncio.get_running_loop().time() + pause
            self._error = error
            raise
        else:
            self._pause = 0.0
            self._error = None
            self.link = link
            return link
        finally:
            self._opening = None

    def _raise_if_pausing(self) -> None:
        if self._error is not None and asyncio.get_running_loop().time() < self._retry_at:
            raise RedisConnectionError("the server could not be reached a moment ago") from self._error

    async def aclose(self) -> None:
        if self._opening is not None:
            await asyncio.wait({self._opening})  # others wait for it too
        if self.link is not None:
            await self.link.aclose()


def _retrieve(task: asyncio.Task[Link]) -> None:
    """Look at the outcome, so that asyncio does not complain when nobody is left to do so."""
    if not task.cancelled():
        task.exception()


_after_fork: weakref.WeakSet[OwnClient] = weakref.WeakSet()


def _forget_all() -> None:
    for client in list(_after_fork):
        client.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


class GivenClient:
    """A ``redis.asyncio`` client of the app: its pool, its retries, its care."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def call(self, *command: Any) -> Any:
        try:
            return await self._client.execute_command(*command)
        except ResponseError as error:
            # redis-py takes NOSCRIPT off the text and makes a class of it.
            raise Refused("NOSCRIPT" if isinstance(error, NoScriptError) else str(error)) from error
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(f"Redis cannot be asked: {type(error).__name__}") from error

    async def aclose(self) -> None:
        """Not ours to close."""


async def run(client: OwnClient | GivenClient, script: Script, keys: tuple[str, ...], *args: Any) -> Any:
    """Run a script: by its name, or with its text where the server does not know it (yet, or any more)."""
    try:
        try:
            return await client.call("EVALSHA", script.sha, len(keys), *keys, *args)
        except Refused as refused:
            if refused.code != "NOSCRIPT":
                raise
            return await client.call("EVAL", script.text, len(keys), *keys, *args)
    except Refused as refused:
        raise refused.as_store_error() from refused
