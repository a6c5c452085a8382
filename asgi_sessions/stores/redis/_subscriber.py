"""Receives the ends of sessions: one connection per event loop, subscribed to the channels of the watched shards.

It uses sharded channels (SSUBSCRIBE) on servers that have them, Redis and Valkey 7.0 and newer. On a cluster such a message stays
on the node of its slot. Older servers have plain channels. A message is the id of a session.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Final

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from asgi_sessions._engine.failures import reason_of
from asgi_sessions._engine.loops import cancel, heed_cancellation, stop
from asgi_sessions.stores.redis._connection import names_of

logger = logging.getLogger("asgi_sessions")

HEARTBEAT: Final = 5.0
"""Seconds without a message until a PING to the server, and from there to the timeout."""

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0
"""Seconds between two attempts to subscribe: doubled each time, with jitter. Watched sessions are rechecked meanwhile."""

_NO_SHARDED_CHANNELS: Final = re.compile(r"unknown command\W+s(un)?subscribe\b", re.IGNORECASE)
"""The error of Redis 6.2 for each SSUBSCRIBE and SUNSUBSCRIBE."""

Connect = Callable[[], AbstractConnection]


class Subscriber:
    """Calls ``on_end(id)`` for each end. Calls ``on_gap(shard)`` when a subscription begins: earlier ends may have been missed.

    Calls ``on_lost()`` when the connection is lost, or a shard has moved to another server.
    """

    def __init__(
        self,
        connect: Connect,
        stem: Callable[[str], str],
        on_end: Callable[[str], None],
        on_gap: Callable[[str], None],
        on_lost: Callable[[], object] = lambda: None,
    ) -> None:
        self._connect = connect
        self._stem = stem
        self._on_end = on_end
        self._on_gap = on_gap
        self._on_lost = on_lost
        self._shards: Counter[str] = Counter()
        self._asked: dict[bytes, str] = {}  # subscribed channels and their shards
        self._leaving: Counter[bytes] = Counter()  # unsubscribed channels, and the number of confirmations to come
        self._waiting: set[str] = set()  # shards without a confirmed subscription
        self._sharded = True
        self._pause = 0.0  # before the next try; 0 while all subscriptions are confirmed
        self._writer: asyncio.StreamWriter | None = None
        self._names: frozenset[tuple[str, int]] = frozenset()  # as those of a Connection
        self._task = asyncio.ensure_future(self._run())

    @property
    def is_live(self) -> bool:
        return self._writer is not None and not self._waiting

    def add(self, shard: str) -> None:
        self._shards[shard] += 1
        if self._shards[shard] == 1:
            self._waiting.add(shard)
            self._send("SUBSCRIBE", shard)

    def remove(self, shard: str) -> None:
        self._shards[shard] -= 1
        if self._shards[shard] <= 0:
            del self._shards[shard]
            self._waiting.discard(shard)
            self._asked.pop(self._channel(shard), None)
            self._send("UNSUBSCRIBE", shard)

    def lead_to(self, names: Collection[tuple[str, int]]) -> None:
        """Connect again unless the connection leads to one of these addresses, which are the primary's."""
        if self._writer is not None and self._names.isdisjoint(names):
            self._writer.transport.abort()

    def leave(self) -> asyncio.Task[None]:
        """Begin to close. The task is done when the connection is closed."""
        cancel(self._task)
        return self._task

    async def aclose(self) -> None:
        await stop(self._task)

    def _channel(self, shard: str) -> bytes:
        return f"{self._stem(shard)}e".encode()

    def _send(self, verb: str, shard: str) -> None:
        if self._writer is None:
            return
        channel = self._channel(shard)
        if verb == "SUBSCRIBE":
            self._asked[channel] = shard
        else:
            self._leaving[channel] += 1
        command: Any = (f"S{verb}" if self._sharded else verb, channel)
        self._writer.write(hiredis.pack_command(command))

    async def _run(self) -> None:
        while True:
            heed_cancellation()
            try:
                await self._listen()
            except (RedisError, OSError, TimeoutError, hiredis.HiredisError) as error:
                if self._pause == 0.0:
                    logger.warning("store.unsubscribed: ends of sessions are not received. reason=%s", reason_of(error))
                self._pause = min(max(self._pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
                self._on_lost()
            await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing

    async def _listen(self) -> None:
        """Open one connection and receive until it ends."""
        connection: Any = self._connect()
        try:
            await connection.connect()
            heed_cancellation()
            # As in _connection.py: two private names of redis-py, pinned by tests.
            reader, writer = connection._reader, connection._writer
            if reader is None or writer is None:
                raise RedisError("the connection was closed while it was being opened")
            self._names = names_of(connection, writer)
            self._writer, self._sharded = writer, True  # the server may be a newer one now
            self._waiting = set(self._shards)
            self._asked.clear()
            self._leaving.clear()
            for shard in self._shards:
                self._send("SUBSCRIBE", shard)
            await self._receive(reader, writer)
        finally:
            self._writer = None
            await connection.disconnect(nowait=True)

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser, silent = hiredis.Reader(notEnoughData=None), False
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT):
                    data = await reader.read(65536)
            except TimeoutError:
                if silent:
                    raise
                silent = True
                writer.write(hiredis.pack_command(("PING",)))
                continue
            if not data:
                raise RedisError("the server closed the connection")
            silent = False
            parser.feed(data)
            while (message := parser.gets()) is not None:
                self._handle(message)

    def _handle(self, message: Any) -> None:
        if isinstance(message, hiredis.ReplyError):
            if not _NO_SHARDED_CHANNELS.search(str(message)):
                raise RedisError("the server refuses a subscription")
            if self._sharded:  # later errors belong to commands from before the first reply
                self._sharded = False
                self._leaving.clear()
                for shard in tuple(self._shards):
                    self._send("SUBSCRIBE", shard)
            return
        if not isinstance(message, list) or len(message) != 3:
            return  # the answer to a PING
        kind, channel, content = message
        if not isinstance(channel, bytes):
            raise RedisError("the server sends a message without a channel")
        if kind in (b"smessage", b"message") and isinstance(content, bytes):
            self._on_end(content.decode("ascii", "replace"))
        elif kind in (b"ssubscribe", b"subscribe") and channel in self._asked:
            self._waiting.discard(self._asked[channel])
            if not self._waiting:
                self._pause = 0.0
            self._on_gap(self._asked[channel])
        elif kind in (b"sunsubscribe", b"unsubscribe"):
            left = self._leaving.pop(channel, 0) - 1
            if left > 0:
                self._leaving[channel] = left
            elif left < 0 and channel in self._asked:
                raise RedisError("the server ended a subscription: its slot has moved")


class NullSubscriber:
    """Receives no events. For clients without a connection to listen on."""

    is_live = False

    def add(self, shard: str) -> None:
        """Do nothing."""

    def remove(self, shard: str) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""
