"""A connection with many commands in flight. All commands of one turn of the event loop leave as one write.

redis-py opens, authenticates and encrypts the connection. Then this file reads and writes the bytes, and hiredis packs and
parses them. One reader matches replies to commands by their order. So a cancelled caller abandons only its own future.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from functools import partial
from itertools import islice
from typing import Any, Final

import hiredis
from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from asgi_sessions._engine.loops import at_the_end
from asgi_sessions.errors import StoreRefused

MAX_IN_FLIGHT: Final = 4096
"""Commands in flight per connection. Further ones wait until half of these are answered."""

MAX_UNSENT: Final = 1024 * 1024
"""Bytes of one write, about. Further commands wait until the kernel has them."""

TICK: Final = 0.1
"""Seconds between two checks of the clock. One timer serves all commands, and runs only while some are in flight."""

TICKS_TO_ANSWER: Final = 4
"""Ticks after which a command fails: 0.4 to 0.5 s."""

TICKS_TO_STALL: Final = 10
"""Ticks without any reply after which the connection is closed, if commands are in flight."""

_NOT_YET: Final = object()


class ConnectionLost(RedisConnectionError):
    """The connection broke with a command in flight. The server may have executed it."""


class ReplyTimeoutError(RedisTimeoutError, TimeoutError):
    """The server did not answer in time."""


class NotSent(StoreRefused):
    """A command contains invalid Unicode."""

    def __init__(self) -> None:
        super().__init__("the command is not valid Unicode: it contains a lone surrogate")


class Connection(asyncio.Protocol):
    """A connection to the server. :func:`open_connection` creates it; it is closed once ``lost`` is set."""

    __slots__ = (
        "_asked",
        "_at_loop_end",
        "_flushing",
        "_loop",
        "_marks",
        "_out",
        "_paused",
        "_reader",
        "_room",
        "_sharers",
        "_sharing",
        "_silent",
        "_timer",
        "_transport",
        "_unsent",
        "_waiting",
        "_writer",
        "has_room",
        "lost",
        "names",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, writer: asyncio.StreamWriter) -> None:
        self._loop = loop
        # Kept alive because a collected StreamWriter closes its transport.
        self._writer = writer
        self._transport = writer.transport
        self._reader = hiredis.Reader(notEnoughData=_NOT_YET)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._out: list[bytes] = []
        self._unsent = 0  # bytes in it
        self._flushing = False
        self._paused = False
        self._room: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._asked = 0
        self._marks: deque[tuple[int, int]] = deque(maxlen=TICKS_TO_ANSWER)  # asked and answered, at the last ticks
        self._silent = 0  # ticks without a reply
        self._sharing = False
        self._sharers: list[asyncio.Future[Any]] = []
        self._at_loop_end: AsyncGenerator[None, None] | None = None
        self.lost: Exception | None = None
        self.names: frozenset[tuple[str, int]] = frozenset()
        """The addresses of the server: see :func:`names_of`."""
        self.has_room = True
        """Whether a command may be sent now. Otherwise wait for :meth:`room`, unless the connection is ``lost``."""
        self._transport.set_protocol(self)

    @property
    def peer(self) -> tuple[str, int] | None:
        """The address of the server, or None for a Unix socket."""
        name = self._transport.get_extra_info("peername")
        return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None

    def ask(self, command: tuple[Any, ...]) -> asyncio.Future[Any]:
        """Send a command. The future holds the reply, or an error reply, or raises ConnectionLost.

        Raises:
            NotSent: the command contains a lone surrogate.
        """
        future = self._loop.create_future()
        if self.lost is not None:
            future.set_exception(ConnectionLost(str(self.lost)))
            return future
        try:
            packed = pack_command(command)
        except UnicodeEncodeError:
            raise NotSent from None
        self._out.append(packed)
        self._unsent += len(packed)
        self._waiting.append(future)
        self._asked += 1
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
            if self._timer is None:
                self._marks.clear()
                self._silent = 0
                self._timer = self._loop.call_later(TICK, self._tick)
        if len(self._waiting) >= MAX_IN_FLIGHT or self._unsent >= MAX_UNSENT:
            self.has_room = False
        return future

    @property
    def is_held_up(self) -> bool:
        """Whether a shared command is in flight. Until its reply, the server answers no other command on this connection."""
        return self._sharing

    def share(self, command: tuple[Any, ...]) -> asyncio.Future[Any]:
        """The reply to WAIT. It blocks the connection and covers every command before it.

        Callers during a WAIT in flight share the next one.
        """
        future = self._loop.create_future()
        self._sharers.append(future)
        if not self._sharing:
            self._ask_shared(command)
        return future

    def _ask_shared(self, command: tuple[Any, ...]) -> None:
        sharers, self._sharers = self._sharers, []
        self._sharing = bool(sharers)
        if sharers:
            self.ask(command).add_done_callback(partial(self._hand_on, command, sharers))

    def _hand_on(
        self, command: tuple[Any, ...], sharers: list[asyncio.Future[Any]], reply: asyncio.Future[Any]
    ) -> None:
        error = reply.exception()
        for future in sharers:
            if future.done():
                continue
            if error is None:
                future.set_result(reply.result())
            else:
                future.set_exception(error)
        self._ask_shared(command)

    async def room(self) -> None:
        """Wait until there is room for a command, or the connection is lost."""
        future = self._loop.create_future()
        self._room.append(future)
        await future

    def _flush(self) -> None:
        self._flushing = False
        out, self._out, self._unsent = self._out, [], 0
        if self.lost is None:
            self._transport.write(b"".join(out))
            if not self.has_room:
                self._make_room()

    def _make_room(self) -> None:
        """Wake the callers of :meth:`room`, if there is room or the connection is lost."""
        if self.lost is None:
            if self._paused or len(self._waiting) > MAX_IN_FLIGHT // 2:
                return
            self.has_room = True
        room, self._room = self._room, []
        for future in room:
            if not future.done():
                future.set_result(None)

    def _tick(self) -> None:
        self._timer = None
        if not self._waiting or self.lost is not None:
            return
        answered = self._asked - len(self._waiting)
        if len(self._marks) == TICKS_TO_ANSWER:
            # Commands from before the oldest mark time out. Their futures stay in the queue: the replies may still come, and
            # the order must hold.
            overdue = self._marks[0][0] - answered
            for future in islice(self._waiting, max(overdue, 0)):
                if not future.done():
                    future.set_exception(ReplyTimeoutError("no reply in time"))
        self._silent = self._silent + 1 if self._marks and self._marks[-1][1] == answered else 0
        if self._silent >= TICKS_TO_STALL:
            self.abort(ConnectionLost("no reply for about a second"))
            return
        self._marks.append((self._asked, answered))
        self._timer = self._loop.call_later(TICK, self._tick)

    # ── asyncio.Protocol ──

    def data_received(self, data: bytes) -> None:
        waiting, next_reply = self._waiting, self._reader.gets
        self._reader.feed(data)
        try:
            while (reply := next_reply()) is not _NOT_YET:
                future = waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except IndexError:
            self.abort(ConnectionLost("a reply came without a command"))
        except hiredis.ProtocolError:
            self.abort(ConnectionLost("the server does not use the Redis protocol"))
        if not self.has_room:
            self._make_room()

    def pause_writing(self) -> None:
        self._paused = True
        self.has_room = False

    def resume_writing(self) -> None:
        self._paused = False
        self._make_room()

    def connection_lost(self, error: Exception | None) -> None:
        self._die(error or ConnectionLost("the server closed the connection"))

    # ── The end ──

    def abort(self, error: Exception) -> None:
        """Close the connection at once. Commands in flight fail."""
        self._die(error)
        self._transport.abort()

    def _die(self, error: Exception) -> None:
        if self.lost is not None:
            return
        self.lost = error
        self.has_room = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if not future.done():
                future.set_exception(ConnectionLost(str(error)))
        self._make_room()

    async def aclose(self) -> None:
        """Close the connection. Commands in flight fail."""
        self.abort(ConnectionLost("the store was closed"))
        if self._at_loop_end is not None:
            at_loop_end, self._at_loop_end = self._at_loop_end, None
            await at_loop_end.aclose()
        await asyncio.sleep(0)  # the transport closes its socket in the next turn

    async def close_with_the_loop(self) -> None:
        """Close the connection when its event loop ends, even if the app does not close the store."""

        async def close() -> None:
            self.abort(ConnectionLost("the event loop ended"))
            await asyncio.sleep(0)

        self._at_loop_end = await at_the_end(close)


def names_of(opened: AbstractConnection, writer: asyncio.StreamWriter) -> frozenset[tuple[str, int]]:
    """The address of the server, and the one by which redis-py knows it. Sentinels may tell host names instead of addresses."""
    peer = writer.get_extra_info("peername")
    found = [peer, (getattr(opened, "host", ""), getattr(opened, "port", 0))]
    return frozenset((str(name[0]), int(name[1])) for name in found if isinstance(name, tuple))


async def open_connection(opened: AbstractConnection) -> Connection:
    """Let redis-py open and authenticate a connection, then take over its streams.

    Raises:
        RedisError: the server cannot be reached, or refuses the connection.
    """
    await opened.connect()  # type: ignore[no-untyped-call]  # of redis-py
    # Two private names of redis-py. tests/test_redis_connection.py checks them on the supported versions.
    writer = opened._writer
    opened._reader = opened._writer = None
    if writer is None:
        raise RedisError("the connection was closed while it was being opened")
    connection = Connection(asyncio.get_running_loop(), writer)
    connection.names = names_of(opened, writer)
    await connection.close_with_the_loop()
    return connection
