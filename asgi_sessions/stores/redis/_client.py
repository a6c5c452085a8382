"""How commands reach the server: one redis-py client per event loop, opened when first needed.

The seam between the store and the driver. Everything above sees one coroutine, :meth:`Clients.call`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from asgi_sessions._errors import ConfigurationError, StoreError
from asgi_sessions.stores.redis._scripts import Script

logger = logging.getLogger("asgi_sessions")

# RESP2: nothing is pushed, so the pool's check for unread data on a connection works, and a stray reply is noticed
# before the next caller gets it (with RESP3 and maintenance notifications redis-py 8 leaves that check out). No retries
# in the driver: it would also repeat commands that timed out; we repeat once, after a lost connection.
_OPTIONS: dict[str, Any] = {
    "protocol": 2,
    "decode_responses": False,
    "socket_connect_timeout": 0.4,
    "socket_timeout": 2.0,
    "health_check_interval": 0,
    "max_connections": 64,
    "timeout": 0.4,  # how long to wait for a free connection
}


class Clients:
    """The client of the running event loop; or always the one that the app passed in."""

    def __init__(self, *, url: str = "", options: dict[str, Any] | None = None, given: Any = None) -> None:
        self._url = url
        self._options = {**_OPTIONS, **(options or {})}
        self._given = given
        # Sockets belong to the loop and the process that opened them; a forked worker must not share them.
        self._own: dict[tuple[int, int], tuple[asyncio.AbstractEventLoop, Redis]] = {}
        if given is None:
            self._new()  # so that a bad URL fails when the app is built; opens nothing

    def get(self) -> Any:
        """The client to use right here."""
        if self._given is not None:
            return self._given
        loop = asyncio.get_running_loop()
        entry = self._own.get((os.getpid(), id(loop)))
        if entry is not None and entry[0] is loop:
            return entry[1]
        for key in [key for key, (other, _) in self._own.items() if other.is_closed()]:
            del self._own[key]
        client = self._new()
        self._own[os.getpid(), id(loop)] = (loop, client)
        return client

    def _new(self) -> Redis:
        try:
            pool = BlockingConnectionPool.from_url(self._url, retry=Retry(NoBackoff(), 0), **self._options)
            return Redis(connection_pool=pool)
        except (ValueError, TypeError, RedisError) as error:
            # The URL may hold a password: say what is wrong with it, not what it is.
            raise ConfigurationError(
                f"RedisStore.from_url(): the URL or an option is not understood ({type(error).__name__}); "
                "use redis://host:6379/0, rediss://… for TLS, or unix://path"
            ) from error

    async def call(self, *command: Any) -> Any:
        """Send one command, repeat it once if the connection was lost, and return the answer.

        Raises:
            ResponseError: the server refused it. StoreError: anything else.
        """
        client = self.get()
        try:
            try:
                return await client.execute_command(*command)
            except RedisConnectionError:
                return await client.execute_command(*command)
        except ResponseError:
            raise
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(f"Redis cannot be asked: {type(error).__name__}") from error

    async def run(self, script: Script, keys: list[str], *args: Any) -> Any:
        """Run a script: by its name, or with its text where the server does not know it (yet, or any more)."""
        try:
            try:
                return await self.call("EVALSHA", script.sha, len(keys), *keys, *args)
            except NoScriptError:
                return await self.call("EVAL", script.text, len(keys), *keys, *args)
        except ResponseError as error:
            raise refused(error) from error

    async def aclose(self) -> None:
        """Close our own client of this loop; one that was passed in is the app's."""
        with contextlib.suppress(KeyError):
            _, client = self._own.pop((os.getpid(), id(asyncio.get_running_loop())))
            await client.connection_pool.disconnect()


def refused(error: ResponseError) -> StoreError:
    """The server's refusal as a StoreError: its code only (OOM, READONLY, NOPERM …), since the text may quote the command."""
    words = str(error).split(None, 1)
    code = words[0] if words and words[0].isupper() else type(error).__name__
    return StoreError(f"Redis refused: {code}")
