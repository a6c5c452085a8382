"""Live: closes a socket or stream when its session ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from asgi_sessions._core.types import Message, Receive, Send
from asgi_sessions._engine.loops import running_loop
from asgi_sessions._engine.watch import Watcher

logger = logging.getLogger("asgi_sessions")

SEND_GRACE: Final = 5.0
"""Seconds for a message in flight when the session ends. Without a limit it would never finish if the client stopped reading,
because the server waits until its buffer drains."""


class SessionEnded(ConnectionResetError):
    """Raised if the app sends to a socket or stream after the end of its session.

    An ``OSError``, as servers raise it for a closed connection (ASGI, HTTP & WebSocket message format 2.4).
    """


class Live:
    """One socket or stream, closed when its session ends. ``close`` sends the closing messages."""

    __slots__ = ("_close", "_closing", "_receiving", "_send", "_sending", "_timer", "ended", "watchers")

    def __init__(self, send: Send, close: Callable[[], Awaitable[None]]) -> None:
        self._send = send
        self._close = close
        self._sending: set[anyio.CancelScope] = set()  # one for each message on its way
        self._receiving: anyio.CancelScope | None = None
        self._closing: asyncio.Future[None] | None = None
        self.ended: SessionEnded | None = None
        self.watchers: list[Watcher] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_watched(self) -> bool:
        """Whether anything may close this."""
        return bool(self.watchers) or self._timer is not None

    def end_after(self, seconds: float) -> None:
        """Close this after so many seconds; under asyncio only."""
        if (loop := running_loop()) is not None:
            self._timer = loop.call_later(seconds, self.end)

    def leave(self) -> None:
        """Stop all watchers and the timer, so that this stays open."""
        for watcher in self.watchers:
            watcher.leave()
        if self._timer is not None:
            self._timer.cancel()

    def end(self) -> None:
        """End this socket or stream: its session has ended, or its device must be proved again."""
        if self.ended is not None:
            return
        self.ended = SessionEnded("the session has ended, and its sockets and streams with it")
        if self._sending:
            asyncio.get_running_loop().call_later(SEND_GRACE, self._abandon)
        else:
            self._close_soon()
        if self._receiving is not None:
            self._receiving.cancel()

    async def send(self, message: Message) -> None:
        """Send a message of the app.

        Raises:
            SessionEnded: the session has ended, before or meanwhile.
        """
        self._raise_if_ended()
        with anyio.CancelScope() as sending:
            self._sending.add(sending)
            try:
                await self._send(message)
            finally:
                self._sending.discard(sending)
        self._raise_if_ended()

    async def receive(self, receive: Receive) -> Message | None:
        """The next message of the client, or ``None`` after the end of the session."""
        message: Message | None = None
        if self.ended is None:
            with anyio.CancelScope() as self._receiving:
                message = await receive()
            self._receiving = None
        if self.ended is None:
            return message
        await self.closed()
        return None

    async def closed(self) -> None:
        """Wait for the closing messages, if any. Servers report a failure if the app returns before them."""
        if self._closing is not None:
            await asyncio.wait({self._closing})

    def _raise_if_ended(self) -> None:
        if self.ended is not None:
            # Only now, because two messages must not be sent at the same time, and one may have been in flight.
            self._close_soon()
            raise self.ended

    def _abandon(self) -> None:
        """Give up messages not read by the client. The server drops the connection when the app returns."""
        for sending in tuple(self._sending):
            sending.cancel()

    def _close_soon(self) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close_now())

    async def _close_now(self) -> None:
        with anyio.move_on_after(SEND_GRACE):
            try:
                await self._close()
            except Exception as error:
                logger.debug("the socket or stream of an ended session was closed already (%s)", type(error).__name__)
