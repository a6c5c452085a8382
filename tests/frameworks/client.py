"""A browser for the apps of the frameworks: httpx for HTTP, bare ASGI messages for WebSockets, one cookie jar."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from asgi_sessions import CookieConfig

NAME = CookieConfig().name


class Client(httpx.AsyncClient):
    def __init__(self, app: Any, *, cookie: str = NAME, raise_app_exceptions: bool = False) -> None:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=raise_app_exceptions)
        super().__init__(transport=transport, base_url="https://testserver")
        self.app = app
        self.cookie = cookie

    @property
    def token(self) -> str | None:
        """The session's token in the jar."""
        return self.cookies.get(self.cookie)

    def hold(self, token: str | None) -> None:
        """Put a token into the jar."""
        if token is not None:
            self.cookies.set(self.cookie, token, domain="testserver.local")

    def another(self) -> Client:
        """A second browser that holds the same cookie; its jar goes its own way."""
        other = Client(self.app, cookie=self.cookie)
        other.hold(self.token)
        return other

    async def session(self) -> Any:
        response = await self.get("/session")
        assert response.status_code == 200
        return response.json()

    @asynccontextmanager
    async def websocket(self, path: str, *, cookie: str = "") -> AsyncIterator[Socket]:
        """A WebSocket after its handshake; when the block is left, the client goes away and the app has returned.

        ``cookie``: one more.
        """
        headers = [(b"host", b"testserver")]
        cookies = [cookie] if cookie else []
        if self.token is not None:
            cookies.append(f"{self.cookie}={self.token}")
        if cookies:
            headers.append((b"cookie", "; ".join(cookies).encode()))
        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "wss",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "client": ("127.0.0.1", 50000),
            "server": ("testserver", 443),
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
            "state": {},
        }
        to_app, app_receives = anyio.create_memory_object_stream[Any](100)
        app_sends, from_app = anyio.create_memory_object_stream[Any](100)
        async with to_app, app_receives, app_sends, from_app, anyio.create_task_group() as tasks:
            tasks.start_soon(self.app, scope, app_receives.receive, app_sends.send)
            await to_app.send({"type": "websocket.connect"})
            socket = Socket(to_app, from_app, await from_app.receive())
            for key, value in socket.answer.get("headers", ()):
                name, _, content = value.decode().partition("=")
                if key == b"set-cookie" and name == self.cookie and b"Max-Age=0" not in value:
                    self.hold(content.split(";")[0])
            yield socket
            await to_app.send({"type": "websocket.disconnect", "code": 1000})


class Socket:
    def __init__(
        self, to_app: MemoryObjectSendStream[Any], from_app: MemoryObjectReceiveStream[Any], answer: Any
    ) -> None:
        self._to_app = to_app
        self._from_app = from_app
        self.answer = answer
        """What the app said to the handshake."""

    @property
    def accepted(self) -> bool:
        return bool(self.answer["type"] == "websocket.accept")

    def headers(self, name: str) -> list[str]:
        return [value.decode() for key, value in self.answer.get("headers", ()) if key.lower() == name.encode()]

    async def say(self, text: str) -> Any:
        """Send a text and wait for the app's next message."""
        await self.send(text)
        return await self.next()

    async def send(self, text: str) -> None:
        await self._to_app.send({"type": "websocket.receive", "text": text, "bytes": None})

    async def next(self) -> Any:
        """The app's next message."""
        return await self._from_app.receive()
