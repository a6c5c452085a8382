"""One connection, many commands in flight: what is asked in one turn of the event loop leaves as one write.

redis-py opens the connection, authenticates and encrypts it; from then on this file owns the bytes. hiredis packs and
parses. Replies are matched to questions in order by one reader, so a caller that is cancelled abandons its future and
nothing else.
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
"""Commands without a reply, per connection. Whoever comes then waits until half of them are answered."""

MAX_UNSENT: Final = 1024 * 1024
"""Bytes that leave in one write, about; whoever comes then waits until they are with the kernel."""

TICK: Final = 0.1
"""Seconds between two looks at the clock: one timer serves all commands, and only while some are waiting."""

TICKS_TO_ANSWER: Final = 4
"""A command that has waited for this many ticks is given up: after 0.4 to 0.5 s."""

TICKS_TO_STALL: Final = 10
"""Without any reply for this many ticks, with commands waiting, the connection is given up."""

_NOT_YET: Final = object()


class ConnectionLost(RedisConnectionError):
    """The connection broke while a command was under way; whether the server has carried it out is not known."""


class ReplyTimeoutError(RedisTimeoutError, TimeoutError):
    """The server did not answer in time."""


class NotSent(StoreRefused):
    """A command holds text that is not valid Unicode."""

    def __init__(self) -> None:
        super().__init__("what is asked is not valid Unicode: it holds a lone surrogate")


class Connection(asyncio.Protocol):
    """A connection to the server. Made by :func:`open_connection`; dead once ``lost`` is set."""

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
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, writer: asyncio.StreamWriter) -> None:
        self._loop = loop
        # Kept only because a StreamWriter that is collected closes its transport, which is ours now.
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
        self.has_room = True
        """Whether a command may be asked now; otherwise wait for :meth:`room`, or see whether the connection is ``lost``."""
        self._transport.set_protocol(self)

    @property
    def peer(self) -> tuple[str, int] | None:
        """The address of the server, unless it is the path of a socket."""
        name = self._transport.get_extra_info("peername")
        return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None

    def ask(self, command: tuple[Any, ...]) -> asyncio.Future[Any]:
        """Send a command; the future holds the reply, an error reply included, or raises ConnectionLost.

        Raises:
            NotSent: it holds a lone surrogate.
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
        """Whether a shared command is under way: until it is through, the server answers nothing else on this connection."""
        return self._sharing

    def share(self, command: tuple[Any, ...]) -> asyncio.Future[Any]:
        """The reply to a command that speaks of all that was asked before it, and takes its time: WAIT.

        A server answers one after the other, so who comes while one is under way shares the next.
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
        """Wait until there is room again, or the connection is lost."""
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
        """Let those go on who wait for room, if there is some, or none will be."""
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
            # Whatever was asked before the oldest mark and has no reply yet has waited for long enough. The futures stay
            # in the queue: their replies may still come, and the order must hold.
            overdue = self._marks[0][0] - answered
            for future in islice(self._waiting, max(overdue, 0)):
                if not future.done():
                    future.set_exception(ReplyTimeoutError("no reply in time"))
        self._silent = self._silent + 1 if self._marks and self._marks[-1][1] == answered else 0
        if self._silent >= TICKS_TO_STALL:
            self.abort(ConnectionLost("no reply for a long time"))
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
            self.abort(ConnectionLost("a reply came to no question"))
        except hiredis.ProtocolError:
            self.abort(ConnectionLost("the server does not speak the Redis protocol"))
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
        """Give the connection up at once; all waiting commands fail."""
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
        """Close the connection; what is still waiting fails."""
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


async def open_connection(opened: AbstractConnection) -> Connection:
    """Have redis-py open and authenticate a connection, then take over its streams.

    Raises:
        RedisError: the server cannot be reached, or refuses us.
    """
    await opened.connect()  # type: ignore[no-untyped-call]  # of redis-py
    # Two private names of redis-py; tests/test_redis_connection.py pins them over the supported versions.
    writer = opened._writer
    opened._reader = opened._writer = None
    if writer is None:
        raise RedisError("the connection was closed while it was being opened")
    connection = Connection(asyncio.get_running_loop(), writer)
    await connection.close_with_the_loop()
    return connection
