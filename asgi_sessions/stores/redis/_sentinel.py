"""Asks the sentinels for the primary, and notices a failover at once.

After a failover a process may still hold connections to the old primary. When the old primary returns, it accepts commands until
a sentinel demotes it, for 10 seconds and more. If it is cut off, it is never demoted. So the store listens to the sentinels.
As soon as a sentinel names another server, the store drops its connections to the old one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError

from asgi_sessions._engine.loops import heed_cancellation, retrieve, stop

SWITCH: Final = b"+switch-master"

HEARTBEAT: Final = 5.0
"""Seconds without a message until a PING to the sentinel, and from there to the timeout."""

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0
"""Seconds between two attempts to listen to a sentinel: doubled each time, with jitter."""

Address = tuple[str, int]


class Sentinels(Sentinel):
    """Asks all sentinels at once and uses the answer with the newest configuration.

    redis-py uses the first answer. A sentinel on the side of a cut-off primary still names the old one.
    """

    async def discover_master(self, service_name: str) -> Address:
        """The address of the primary.

        Raises:
            RedisError: no sentinel names a primary that is up.
        """
        answers = await asyncio.gather(
            *(sentinel.sentinel_masters() for sentinel in self.sentinels), return_exceptions=True
        )
        found = [state for answer in answers if (state := self._up(answer, service_name)) is not None]
        if not found:
            raise RedisError(f"no sentinel names a primary of {service_name!r}")
        newest = max(found, key=lambda state: int(state.get("config-epoch", 0)))
        return str(newest["ip"]), int(newest["port"])

    async def leave(self) -> None:
        """Close the connections to the sentinels. They are rarely used."""
        for sentinel in self.sentinels:
            pool = sentinel.connection_pool
            for connection in (*pool._available_connections, *pool._in_use_connections):
                await connection.disconnect(nowait=True)  # does not wait, so it cannot be cancelled

    def _up(self, answer: object, service_name: str) -> Mapping[str, Any] | None:
        state = answer.get(service_name) if isinstance(answer, dict) else None
        return state if state and self.check_master_state(state, service_name) else None


class SentinelWatch:
    """Calls ``on_switch(address)`` when a sentinel names another server as the primary. One object per event loop."""

    def __init__(self, sentinels: Sentinels, service: str, on_switch: Callable[[Address], None]) -> None:
        self._sentinels = sentinels
        self._service = service
        self._on_switch = on_switch
        self._asking = asyncio.Lock()
        pools = [sentinel.connection_pool for sentinel in sentinels.sentinels]
        self._tasks = [asyncio.ensure_future(self._follow(pool.make_connection)) for pool in pools]
        self._looking: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Ask the sentinels now, since the primary may be another server."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._ask())
            self._looking.add_done_callback(retrieve)

    async def aclose(self) -> None:
        try:
            if self._looking is not None:
                await asyncio.wait({self._looking})  # it ends soon, and closes its connections
        finally:
            await stop(*self._tasks)

    async def _follow(self, connect: Callable[[], AbstractConnection]) -> None:
        """Listen to one sentinel, and connect again when the connection breaks."""
        pause = 0.0
        while True:
            heed_cancellation()
            connection = connect()
            try:
                await connection.connect()  # type: ignore[no-untyped-call]  # of redis-py
                await connection.send_command("SUBSCRIBE", SWITCH)
                await connection.read_response()
                pause = 0.0
                # Messages before this subscription may have been missed.
                await self._ask()
                await self._listen(connection)
            except (RedisError, OSError, TimeoutError):
                pause = min(max(pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            finally:
                await connection.disconnect(nowait=True)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing

    async def _ask(self) -> None:
        async with self._asking:
            try:
                self._on_switch(await self._sentinels.discover_master(self._service))
            finally:
                await self._sentinels.leave()

    async def _listen(self, connection: AbstractConnection) -> None:
        is_asked = False
        while True:
            heed_cancellation()
            message = await connection.read_response(timeout=HEARTBEAT)
            if message is not None:
                is_asked = False
                if (address := self._switch_in(message)) is not None:
                    self._on_switch(address)
            elif is_asked:
                raise TimeoutError
            else:
                is_asked = True
                await connection.send_command("PING")

    def _switch_in(self, message: Any) -> Address | None:
        """The new address in ``[message, +switch-master, "service old-ip old-port new-ip new-port"]``."""
        if not isinstance(message, list) or len(message) != 3 or message[1] != SWITCH:
            return None
        words = message[2].decode("utf-8", "replace").split(" ") if isinstance(message[2], bytes) else []
        if len(words) != 5 or words[0] != self._service or not words[4].isdecimal():
            return None
        return words[3], int(words[4])
