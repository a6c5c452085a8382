"""A browser, an app and a way to stop in between, all in one process and on bare ASGI messages.

A test says what the app does in the request itself::

    browser = Browser(app_with(store, clock=clock))
    await browser.do(lambda session: session.log_in("alice"))

and holds a request between load and commit with::

    async with browser.paused(lambda session: session.update(a=1)):
        await other.do(…)
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from asgi_sessions import CookieConfig, Session, SessionMiddleware, Sessions
from asgi_sessions._core.token import key_of
from asgi_sessions.stores import Store

Handler = Callable[[Session], Any]
Headers = list[tuple[bytes, bytes]]


async def inner_app(scope: Any, receive: Any, send: Any) -> None:
    """Runs the handler that the test put into the scope, then answers as the scope says."""
    if "play" in scope:  # a WebSocket, see tests.websockets
        await scope["play"](scope, receive, send)
        return
    plan: Plan = scope["plan"]
    if plan.before is not None:
        await plan.before()
    result = plan.handler(scope["session"])
    if inspect.isawaitable(result):
        result = await result
    if plan.crash is not None:
        raise plan.crash
    await send({"type": "http.response.start", "status": plan.status, "headers": list(plan.headers)})
    await send({"type": "http.response.body", "body": repr(result).encode()})
    if plan.after is not None:
        late = plan.after(scope["session"])
        if inspect.isawaitable(late):
            await late


@dataclass
class Plan:
    handler: Handler = lambda session: None
    status: int = 200
    headers: Headers = field(default_factory=list)
    crash: BaseException | None = None
    after: Handler | None = None
    before: Callable[[], Any] | None = None


@dataclass
class Response:
    status: int
    headers: Headers
    body: bytes
    messages: list[Any]

    def all(self, name: str) -> list[str]:
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == name.encode()]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        return ", ".join(values) if values else None

    @property
    def set_cookie(self) -> str | None:
        return self.get("set-cookie")


def app_with(store: Sessions | Store, **options: Any) -> SessionMiddleware:
    return SessionMiddleware(inner_app, store, **options)


class Browser:
    """Keeps one cookie, as browsers do, and knows nothing else of sessions."""

    def __init__(self, app: SessionMiddleware, token: str | None = None) -> None:
        self.app = app
        self.name = app.cookie.name
        self.token = token

    @property
    def key(self) -> str:
        """Where the record of the present token lives."""
        assert self.token is not None
        return key_of(self.token)

    def another(self) -> Browser:
        """A second tab before it hears of anything new: same cookie, its own jar from here on."""
        return Browser(self.app, self.token)

    async def do(self, handler: Handler = lambda session: None, **plan: Any) -> Response:
        """One request whose handler is ``handler``; ``plan`` takes what :meth:`raw` takes."""
        self.last = Response(0, [], b"", [])
        try:
            response = await self.raw(self._cookie_header(), handler, **plan)
        except BaseException:
            self.hear(self.last)  # the app crashed after it had answered
            raise
        self.hear(response)
        return response

    def _cookie_header(self) -> Headers:
        return [] if self.token is None else [(b"cookie", f"{self.name}={self.token}".encode())]

    async def raw(
        self,
        cookie_headers: Iterable[tuple[bytes, bytes]],
        handler: Handler = lambda session: None,
        *,
        method: str = "GET",
        request_headers: Iterable[tuple[bytes, bytes]] = (),
        **plan: Any,
    ) -> Response:
        """One request with these very Cookie headers; the jar is not touched."""
        messages: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "https",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"testserver"), *request_headers, *cookie_headers],
            "plan": Plan(handler, **plan),
        }
        try:
            await self.app(scope, receive, send)
        except BaseException:
            self.last = response_of(messages)
            raise
        return response_of(messages)

    def hear(self, response: Response) -> None:
        """Do with Set-Cookie what browsers do."""
        for line in response.all("set-cookie"):
            pair, *attributes = line.split("; ")
            name, value = pair.split("=", 1)
            if name == self.name:
                self.token = None if "Max-Age=0" in attributes else value

    @asynccontextmanager
    async def paused(self, handler: Handler = lambda session: None, **plan: Any) -> AsyncIterator[Paused]:
        """A request that has loaded its session and waits; at the end of the block it goes on and commits."""
        slow = Paused()

        async def run() -> None:
            try:
                slow.response = await self.do(handler, before=slow.pause, **plan)
            finally:
                slow.loaded.set()  # answered before it got so far: nothing to wait for

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await slow.loaded.wait()
            try:
                yield slow
            finally:
                slow.go_on.set()


def response_of(messages: list[Any]) -> Response:
    """What the client has heard."""
    start: Any = next((m for m in messages if m["type"] == "http.response.start"), {"status": 0, "headers": []})
    body = b"".join(m.get("body", b"") for m in messages if m["type"] == "http.response.body")
    return Response(start["status"], list(start.get("headers", ())), body, messages)


class Paused:
    """A request in the middle; ``response`` is there once it has finished."""

    response: Response

    def __init__(self) -> None:
        self.loaded = anyio.Event()
        self.go_on = anyio.Event()

    async def pause(self) -> None:
        self.loaded.set()
        await self.go_on.wait()


async def read(browser: Browser) -> dict[str, Any]:
    """What is in the browser's session now."""
    found: dict[str, Any] = {}

    def look(session: Session) -> None:
        found.update(data=dict(session), user_id=session.user_id, id=session.id, is_new=session.is_new)

    await browser.do(look)
    return found


def put(**items: Any) -> Handler:
    """A handler that puts these into the session."""

    def handler(session: Session) -> None:
        session.update(items)

    return handler


def log_in(user_id: str, **options: Any) -> Handler:
    def handler(session: Session) -> None:
        session.log_in(user_id, **options)

    return handler


def regenerate(session: Session) -> None:
    session.regenerate()


def destroy(session: Session) -> None:
    session.destroy()


PLAIN = CookieConfig(name="session_id")
"""A cookie without prefix, for tests of what is tried in order."""


def sessions_there() -> int:
    """How many sessions this process holds, those of other tests included."""
    gc.collect()
    return sum(isinstance(thing, Session) for thing in gc.get_objects())
