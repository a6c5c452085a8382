"""One WebSocket, driven message by message."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup

from asgi_sessions import Session
from tests.support import Browser, Response


class Socket:
    """``async with Socket(browser) as socket``: connected, with its session loaded and nothing answered yet.

    The app side is played by the test: ``accept()``, ``deny()``, ``close()``, and ``receive()`` for what the client sends.
    Leaving the block disconnects the client (unless the app has closed) and lets the app return, or raise ``crash``.
    """

    session: Session

    def __init__(self, browser: Browser, *, extensions: bool = True, app: Any = None) -> None:
        self.browser = browser
        self.sent: list[Any] = []
        self.crash: BaseException | None = None
        self._app = app or browser.app
        self._extensions = extensions
        self._ready = anyio.Event()
        self._done = anyio.Event()
        self._closed = False
        self._tasks: TaskGroup

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        await self._ready.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        await self._tasks.__aexit__(kind, error, trace)

    async def accept(self) -> Response:
        await self._send({"type": "websocket.accept", "headers": [(b"x-app", b"1")]})
        return self._response()

    async def deny(self, status: int) -> Response:
        await self._send({"type": "websocket.http.response.start", "status": status, "headers": []})
        await self._send({"type": "websocket.http.response.body", "body": b""})
        self._closed = True
        return self._response()

    async def close(self, code: int = 1000) -> Any:
        self._closed = True
        await self._send({"type": "websocket.close", "code": code})
        return self.sent[-1]

    async def receive(self) -> Any:
        return await self._receive()

    def _response(self) -> Response:
        message = next(m for m in self.sent if "headers" in m)
        return Response(message.get("status", 101), list(message["headers"]), b"", self.sent)

    async def _run(self) -> None:
        cookie = (
            [] if self.browser.token is None else [(b"cookie", f"{self.browser.name}={self.browser.token}".encode())]
        )
        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "scheme": "wss",
            "path": "/",
            "headers": [(b"host", b"testserver"), *cookie],
            "extensions": {"websocket.http.response": {}} if self._extensions else {},
            "play": self._play,
        }
        messages = iter([{"type": "websocket.connect"}])

        async def receive() -> Any:
            return next(messages, {"type": "websocket.disconnect", "code": 1001})

        async def send(message: Any) -> None:
            self.sent.append(message)

        try:
            await self._app(scope, receive, send)
        finally:
            self._ready.set()

    async def _play(self, scope: Any, receive: Any, send: Any) -> None:
        self.session = scope["session"]
        self.scope = scope
        self._receive, self._send = receive, send
        await receive()
        self._ready.set()
        await self._done.wait()
        if not self._closed:
            await receive()
        if self.crash is not None:
            raise self.crash
