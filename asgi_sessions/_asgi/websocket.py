"""WebSocketExchange: a WebSocket."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping
from typing import ClassVar

import anyio

from asgi_sessions._asgi.exchange import Exchange
from asgi_sessions._asgi.responses import (
    WS_INTERNAL_ERROR,
    WS_POLICY_VIOLATION,
    WS_SESSION_ENDED,
    WS_TRY_AGAIN_LATER,
    nothing,
    response,
)
from asgi_sessions._core.types import Message, Receive
from asgi_sessions.errors import StoreError


class WebSocketExchange(Exchange):
    """A WebSocket, from handshake to close."""

    __slots__ = ("_accepted", "_receive", "_waiting")
    _ENDED: ClassVar[Mapping[str, object]] = {"code": WS_SESSION_ENDED, "reason": "session ended"}

    def _closing_messages(self) -> Iterator[Message]:
        yield {"type": "websocket.close", **self._ENDED}

    def receiver(self, receive: Receive) -> Receive:
        self._accepted = False
        self._receive = receive
        self._waiting: anyio.CancelScope | None = None
        return self.receive

    async def receive(self) -> Message:
        if self.watcher is None:
            message = await self._receive()
        else:
            if self._ended is None:
                with anyio.CancelScope() as self._waiting:
                    message = await self._receive()
                self._waiting = None
            if self._ended is not None:
                await self.closed()
                message = {"type": "websocket.disconnect", **self._ENDED}
        if message["type"] == "websocket.disconnect" and self._accepted:
            # Many apps leave by an exception now; what they changed before was well meant.
            await self._commit_late()
        return message

    def send(self, message: Message) -> Awaitable[None]:
        if self._failure is not None:
            return nothing()
        kind = message["type"]
        if kind == "websocket.close":
            is_closed = self.watcher is not None and self._ended is not None
            return nothing() if is_closed else self._close(message)
        if self.watcher is not None:
            return self._send_watched(message)
        accepts = kind == "websocket.accept"
        if not self._started and (accepts or kind == "websocket.http.response.start"):
            settled = self._is_settled(message.get("status"))
            self._accepted = accepts
            if accepts and self._middleware.watch is not None:
                return self._accept(message, settled=settled)
            if not settled:
                return self._commit_and_start(message, cacheable=not accepts)
            message = self._with_headers(message, cacheable=not accepts)
        return self._send(message)

    async def _accept(self, message: Message, *, settled: bool) -> None:
        if settled:
            await self._send(self._with_headers(message, cacheable=False))
        else:
            await self._commit_and_start(message, cacheable=False)
        self._begin_watching()

    def _session_ended(self) -> None:
        super()._session_ended()
        if self._waiting is not None:
            self._waiting.cancel()

    async def _close(self, message: Message) -> None:
        self._started = True
        self.session._started = True  # a refused handshake is answered by the server, without our cookie
        manager = self._middleware.manager
        try:
            await manager.commit(self.session)
        except StoreError as failure:
            await manager.failed("commit at close", failure, self.session)
            message = {**message, "code": WS_INTERNAL_ERROR}
        await self._send(message)

    async def _answer(
        self,
        status: int,
        text: bytes,
        retry_after: int | None = None,
        cookie: tuple[bytes, bytes] | None = None,
    ) -> None:
        if "websocket.http.response" in (self._scope.get("extensions") or {}):
            for message in response("websocket.http.response", status, text, retry_after, cookie):
                await self._send(message)
        elif retry_after is not None:
            await self._send(
                {"type": "websocket.close", "code": WS_TRY_AGAIN_LATER, "reason": "session store unavailable"}
            )
        else:
            await self._send({"type": "websocket.close", "code": WS_POLICY_VIOLATION, "reason": "too many sessions"})
