"""WebSocketExchange: a WebSocket."""

from __future__ import annotations

from collections.abc import Awaitable

from asgi_sessions._asgi.exchange import Configured, Exchange, is_failure
from asgi_sessions._asgi.responses import WS_CRASHES, WS_INTERNAL_ERROR, WS_SESSION_ENDED, nothing
from asgi_sessions._core.types import Message, Receive, Scope, Send
from asgi_sessions.errors import StoreError


class WebSocketExchange(Exchange):
    """A WebSocket, from handshake to close."""

    __slots__ = ("_accepted", "_receive")

    def __init__(self, middleware: Configured, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(middleware, scope, send)
        self._receive = receive
        self._accepted = False

    async def receive(self) -> Message:
        """The app calls this to receive."""
        if self.live is None:
            message = await self._receive()
        else:
            ended: Message = {"type": "websocket.disconnect", "code": WS_SESSION_ENDED, "reason": "session ended"}
            message = await self.live.receive(self._receive) or ended
        if message["type"] == "websocket.disconnect" and self._accepted:
            # Many apps leave by an exception after this message. So their changes are saved now.
            await self._commit_late()
        return message

    def send(self, message: Message) -> Awaitable[None]:
        if self._failure is not None:
            return nothing()
        kind = message["type"]
        if kind == "websocket.close":
            is_closed = self.live is not None and self.live.ended is not None
            return nothing() if is_closed else self._close(message)
        if self.live is not None:
            return self.live.send(message)
        accepts = kind == "websocket.accept"
        if not self.session._started and (accepts or kind == "websocket.http.response.start"):
            self._accepted, self._failed = accepts, is_failure(message.get("status"))
            return self._accept(message) if accepts else self._commit_and_start(message)
        return self._send(message)

    async def _accept(self, message: Message) -> None:
        await self._commit_and_start(message, cacheable=False)
        self._begin_watching()

    async def _close(self, message: Message) -> None:
        # The server answers a refused handshake by itself, without our cookie.
        self.session._started = True
        self._failed = self._failed or message.get("code") in WS_CRASHES
        try:
            await self._middleware._manager.commit(self.session, failed=self._failed, step="commit at close")
        except StoreError:
            message = {**message, "code": WS_INTERNAL_ERROR}
        if self._accepted or not await self._answer_with_saved(403):
            await self._send(message)
