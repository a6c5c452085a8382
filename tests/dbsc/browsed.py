"""The app that a real browser visits in the tests of device-bound sessions, and what these tests can do to its server.

Whatever is under ``/-/`` is for the tests: it passes no middleware, and is not in the log.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_sessions import (
    CookieConfig,
    DeviceBound,
    MemoryStore,
    SessionMiddleware,
    Sessions,
    SQLStore,
    StoreError,
    Timeouts,
)

# ── What a test can do to the server ──

log: list[dict[str, Any]] = []
"""The requests, in their order: what came, what the app saw, what it was answered."""
events: list[dict[str, Any]] = []
"""What the middleware said of sessions."""
ahead = 0.0
"""Seconds by which the clock of this server is ahead."""
trouble = ""
"""Of the store: its next ``update`` or ``load`` waits for ``/-/go``; or it lets the server ``die`` after its next update; or its
updates fail while it is ``down``."""
in_place_of_refresh = 0
"""A status, as a proxy might answer in place of the app."""
may_go = asyncio.Event()
may_regenerate = asyncio.Event()


def clock() -> float:
    return time.time() + ahead


class Troubled:
    """A store with trouble on demand. It stands before the class of a real one."""

    async def load(self, key: str, **options: Any) -> Any:
        await self._wait("load")
        return await super().load(key, **options)  # type: ignore[misc]

    async def update(self, record: Any, **options: Any) -> None:
        if trouble == "down":
            raise StoreError("it is down")
        await self._wait("update")
        await super().update(record, **options)  # type: ignore[misc]
        if trouble == "die":
            os._exit(1)

    async def _wait(self, what: str) -> None:
        global trouble
        if trouble == what:
            trouble = "waits"
            await may_go.wait()
            may_go.clear()


class InMemory(Troubled, MemoryStore):
    """In the memory of the server."""


class InFile(Troubled, SQLStore):
    """In a file: it survives the server."""


async def control(scope: Any, send: Any) -> None:
    """``/-/log``, ``/-/set?ahead=&trouble=&refresh=&clear``, ``/-/go``, ``/-/regenerate``: what the tests ask and set."""
    global ahead, trouble, in_place_of_refresh
    if scope["path"] == "/-/set":
        options = dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True))
        ahead, trouble = float(options.get("ahead", ahead)), options.get("trouble", trouble)
        in_place_of_refresh = int(options.get("refresh", in_place_of_refresh))
        if "clear" in options:
            log.clear()
            events.clear()
    elif scope["path"] == "/-/go":
        may_go.set()
    elif scope["path"] == "/-/regenerate":
        may_regenerate.set()
    body = JSONResponse({"log": log, "events": events, "trouble": trouble})
    await send({"type": "http.response.start", "status": 200, "headers": body.raw_headers})
    await send({"type": "http.response.body", "body": body.body})


# ── The app ──


def noted(connection: HTTPConnection) -> Any:
    """The session; what the app sees of it is in the log."""
    session: Any = connection.scope["session"]
    connection.scope["noted"] |= {
        "user": session.user_id,
        "bound": session.is_device_bound,
        "unproven": session.is_unproven,
        "id": session.id,
    }
    return session


PAGE = """<!doctype html><title>page</title><p>user %s, bound %s</p>
<form method=post action=/who?form><input name=text value="of a form"></form>"""


async def page(request: Request) -> Response:
    session = noted(request)
    return HTMLResponse(PAGE % (session.user_id, session.is_device_bound), headers={"cache-control": "no-store"})


async def who(request: Request) -> Response:
    session = noted(request)
    request.scope["noted"]["body"] = (await request.body()).decode()
    return JSONResponse({"user": session.user_id, "bound": session.is_device_bound, "unproven": session.is_unproven})


async def log_in(request: Request) -> Response:
    noted(request).log_in(request.query_params.get("user", "alice"), remember="remember" in request.query_params)
    return HTMLResponse("<!doctype html><title>in</title><p>in</p>")


async def log_in_and_on(request: Request) -> Response:
    """Where an identity provider sends the user: the log-in is a redirect."""
    noted(request).log_in("alice")
    return RedirectResponse("/page", 303)


async def verb(request: Request) -> Response:
    getattr(noted(request), request.path_params["verb"])()
    return PlainTextResponse("done")


async def regenerate_slowly(request: Request) -> Response:
    """It has begun before what the test does meanwhile."""
    session = noted(request)
    await may_regenerate.wait()
    may_regenerate.clear()
    session.regenerate()
    return PlainTextResponse("done")


async def write(request: Request) -> Response:
    noted(request)["text"] = "written"
    return PlainTextResponse("written")


async def image(request: Request) -> Response:
    noted(request)
    return Response('<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>', media_type="image/svg+xml")


WORKERS = {
    "worker": "fetch('/who?worker').then(() => postMessage(0))",
    "service": """
        addEventListener('install', () => skipWaiting());
        addEventListener('activate', event => event.waitUntil(clients.claim()));
        addEventListener('fetch', event => event.respondWith(fetch(event.request)));
    """,
}


async def worker(request: Request) -> Response:
    return Response(WORKERS[request.path_params["name"]], media_type="text/javascript")


async def stream(request: Request) -> Response:
    session = noted(request)

    async def parts() -> AsyncIterator[str]:
        yield f"retry: 100\ndata: {session.user_id} {session.is_device_bound}\n\n"
        while True:
            await asyncio.sleep(0.1)
            yield ":\n\n"

    return StreamingResponse(parts(), media_type="text/event-stream")


async def socket(websocket: WebSocket) -> None:
    session = noted(websocket)
    await websocket.accept()
    await websocket.send_text(f"{session.user_id} {session.is_device_bound}")
    try:
        async for text in websocket.iter_text():
            await websocket.send_text(text)
    except WebSocketDisconnect:
        pass


async def elsewhere(request: Request) -> Response:
    """A page of another site; on demand it sends the browser on."""
    if to := request.query_params.get("to"):
        return RedirectResponse(to, 302)
    return HTMLResponse("<!doctype html><title>elsewhere</title>elsewhere")


ROUTES = [
    Route("/page", page),
    Route("/who", who, methods=["GET", "POST"]),
    Route("/exempt/who", who),
    Route("/log-in", log_in, methods=["GET", "POST"]),
    Route("/log-in-and-on", log_in_and_on),
    Route("/do/{verb}", verb, methods=["GET", "POST"]),
    Route("/regenerate-slowly", regenerate_slowly),
    Route("/write", write),
    Route("/image", image),
    Route("/{name}.js", worker),
    Route("/stream", stream),
    WebSocketRoute("/socket", socket),
]


def a_sessions(options: dict[str, Any]) -> Sessions:
    bound = DeviceBound(
        lifetime=timedelta(seconds=options.get("lifetime", 200)),
        exempt=options.get("exempt", ["/exempt"]),
        refresh_initiators=options.get("refresh_initiators", []),
    )
    # Shorter than may be set, for tests that wait for it.
    object.__setattr__(bound, "socket_seconds", options.get("sockets", 3600))
    object.__setattr__(bound, "seconds", options.get("seconds", bound.seconds))
    return Sessions(
        InFile.from_url(options["store"]) if "store" in options else InMemory(),
        secret_keys=options.get("secrets", ["vE7nT0qk3mWz9YpLr5sXcB2aUhJd8GfK"]),
        device_bound=None if options.get("off") else bound,
        timeouts=Timeouts(renew=timedelta(minutes=5)),
        store_deadline=timedelta(seconds=20),
        on_event=lambda event: events.append({"name": event.name, **event.details}),
        clock=clock,
    )


def an_app() -> Any:
    """Its options are in the environment."""
    options = json.loads(os.environ.get("BROWSED", "{}"))
    app = SessionMiddleware(Starlette(routes=ROUTES), a_sessions(options), cookie=CookieConfig("__Host-session"))
    other = Starlette(routes=[Route("/{path:path}", elsewhere)])

    async def outermost(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            if isinstance(store := app.sessions.store, InFile):
                await store.create_tables()
            await app(scope, receive, send)
        elif scope["path"] == "/-/seen":
            await app(scope, receive, send)  # which is 404, and not in the log
        elif scope["path"].startswith("/-/"):
            await control(scope, send)
        elif dict(scope["headers"]).get(b"host", b"").startswith(b"localhost"):
            send = logged(scope, send)
            if in_place_of_refresh and scope["path"] == "/dbsc/refresh":
                await Response(None, in_place_of_refresh, {"location": "/page"})(scope, receive, send)
            else:
                await app(scope, receive, send)
        else:
            await other(scope, receive, send)

    return outermost


def logged(scope: Any, send: Any) -> Any:
    """``send``, with which the request is in the log, and whatever origin it came from may read the answer."""
    headers = [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]]
    entry: dict[str, Any] = {"path": scope["path"], "query": scope["query_string"].decode(), "headers": dict(headers)}
    entry |= {"method": scope.get("method"), "type": scope["type"], "http": scope["http_version"]}
    scope["noted"] = entry
    log.append(entry)
    origin = entry["headers"].get("origin", "")

    async def answered(message: Any) -> None:
        if message["type"] == "http.response.start":
            entry["status"] = message["status"]
            entry["answer"] = [(name.decode().lower(), value.decode("latin-1")) for name, value in message["headers"]]
            shared = [("access-control-allow-origin", origin), ("access-control-allow-credentials", "true")]
            more = [(name.encode(), value.encode()) for name, value in shared] if origin else []
            message = {**message, "headers": [*message["headers"], *more]}
        elif message["type"] == "http.response.body" and scope["path"].startswith("/dbsc/"):
            entry["text"] = entry.get("text", "") + message.get("body", b"").decode()
        await send(message)

    return answered


def a_front_end() -> Any:
    """A page of an origin of its own, on the same site."""
    return Starlette(routes=[Route("/{path:path}", elsewhere)])
