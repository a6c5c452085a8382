"""The app that real servers serve in these tests. Its store is named by the environment.

Where a request has to wait for another it waits at an event, and a path without a session tells when it is there.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from asgi_sessions import RedisStore, Session, SessionMiddleware

URL, PREFIX = os.environ["SESSIONS_REDIS_URL"], os.environ["SESSIONS_PREFIX"]

arrived = asyncio.Event()
released = asyncio.Event()
may_leave: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
"""By the session's id: set when a socket of it that was closed here may come to its end."""
left: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
"""By the session's id: set when a socket of it is over."""


async def read(request: Request) -> Response:
    session = session_of(request)
    facts = {"user_id": session.user_id, "data": session.copy(), "process": os.getpid()}
    return JSONResponse(facts | {"connections": connections()})


async def log_in(request: Request) -> Response:
    session_of(request).log_in(request.path_params["user"])
    return PlainTextResponse("logged in")


async def log_out(request: Request) -> Response:
    session_of(request).destroy()
    return PlainTextResponse("logged out")


async def put(request: Request) -> Response:
    session_of(request)[request.path_params["key"]] = "put"
    return PlainTextResponse("put")


async def put_slowly(request: Request) -> Response:
    """Changes the session, then waits until it is released."""
    session_of(request)[request.path_params["key"]] = "put slowly"
    arrived.set()
    await released.wait()
    for event in (arrived, released):
        event.clear()
    return PlainTextResponse("put")


async def wait_for_arrival(request: Request) -> Response:
    await arrived.wait()
    return PlainTextResponse("somebody waits")


async def release(request: Request) -> Response:
    released.set()
    return PlainTextResponse("released")


async def socket(websocket: WebSocket) -> None:
    """Notes in the session what it hears. On ``bye`` it closes, and stays for a while after that."""
    session: Session = websocket.scope["session"]
    session["socket"] = "accepted"
    await websocket.accept()
    try:
        while (heard := await websocket.receive_text()) != "bye":
            session.setdefault("heard", []).append(heard)
            await websocket.send_text(f"{session.id} heard {heard}")
    except WebSocketDisconnect:
        return
    await websocket.close()
    await may_leave[session.id].wait()


async def stream(request: Request) -> Response:
    """Says the session's id, then nothing more, for as long as the session lasts."""
    id = session_of(request).id

    async def parts() -> AsyncIterator[str]:
        yield f"data: {id}\n\n"
        while True:
            await asyncio.sleep(0.1)
            yield ":\n\n"

    return StreamingResponse(parts(), media_type="text/event-stream")


async def let_leave(request: Request) -> Response:
    may_leave[request.path_params["id"]].set()
    return PlainTextResponse("it may leave")


async def wait_for_leaving(request: Request) -> Response:
    """Answers when a socket of this session is over and all of it has been saved."""
    await left[request.path_params["id"]].wait()
    return PlainTextResponse("it left")


def session_of(request: Request) -> Session:
    session: Session = request.scope["session"]
    return session


def _post(path: str, handler: Callable[[Request], Awaitable[Response]]) -> Route:
    async def endpoint(request: Request) -> Response:
        await request.body()  # to its end before the answer begins, as an app that takes forms does
        return await handler(request)

    return Route(path, endpoint, methods=["POST"])


sessions = SessionMiddleware(
    Starlette(
        routes=[
            Route("/", read),
            _post("/log-in/{user}", log_in),
            _post("/log-out", log_out),
            _post("/put/{key}", put),
            _post("/put-slowly/{key}", put_slowly),
            Route("/wait-for-arrival", wait_for_arrival),
            _post("/release", release),
            _post("/let-leave/{id}", let_leave),
            Route("/wait-for-leaving/{id}", wait_for_leaving),
            Route("/stream", stream),
            WebSocketRoute("/socket", socket),
        ]
    ),
    # The name stands in the server's list of connections.
    RedisStore.from_url(URL, prefix=PREFIX, client_name=f"{PREFIX}-{os.getpid()}"),
)


async def app(scope: Any, receive: Any, send: Any) -> None:
    async def watched(message: Any) -> None:
        if message["type"] == "lifespan.shutdown.complete":
            print("connections left:", connections(), file=sys.stderr, flush=True)
        await send(message)

    if scope["type"] == "lifespan":
        await sessions(scope, receive, watched)
    else:
        await sessions(scope, receive, send)
    if scope["type"] == "websocket":
        left[scope["session"].id].set()


def connections() -> int:
    """How many connections of this process's store the Redis server knows."""
    with redis.Redis.from_url(URL) as client:
        return [entry["name"] for entry in client.client_list()].count(f"{PREFIX}-{os.getpid()}")
