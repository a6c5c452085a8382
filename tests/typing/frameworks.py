"""The session in each framework, with its type; pyright (strict) and mypy (strict) must find nothing in it.

A wrong argument must be found: a comment that ignores an error of the checkers is itself an error where there is none.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, assert_type

import fastapi
import httpx
import httpx2  # type: ignore[import-not-found, unused-ignore]  # not everybody has it
import litestar
import quart
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_sessions import MemoryStore, Session, SessionMiddleware
from asgi_sessions.frameworks import fastapi as for_fastapi
from asgi_sessions.frameworks import litestar as for_litestar
from asgi_sessions.frameworks import quart as for_quart
from asgi_sessions.frameworks.starlette import current_session
from asgi_sessions.tokens.client import TokenAuth

# ── Starlette ──


async def starlette_http(request: Request) -> JSONResponse:
    session = current_session(request)
    assert_type(session, Session)
    session.log_in("alice")
    assert_type(session.modified, bool)
    assert_type(session.accessed, bool)
    session.modified = True
    session.mark_modified()
    return JSONResponse(session)


async def starlette_ws(socket: WebSocket) -> None:
    assert_type(current_session(socket), Session)
    await socket.close()


def starlette_user(connection: HTTPConnection) -> str | None:
    return current_session(connection).user_id


def not_a_request(scope: dict[str, Any]) -> None:
    current_session(scope)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    session: Session = Request(scope).session  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    session.invalidate()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


starlette_app = Starlette(
    routes=[Route("/", starlette_http), WebSocketRoute("/ws", starlette_ws)],
    middleware=[Middleware(SessionMiddleware, store=MemoryStore())],
)


def wrong_options(app: Starlette) -> None:
    app.add_middleware(SessionMiddleware, secret_key="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Middleware(SessionMiddleware, MemoryStore(), max_age=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    SessionMiddleware(app)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    SessionMiddleware(app, "redis://localhost")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for_litestar.SessionPlugin()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    for_quart.init_app(app, MemoryStore())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# ── FastAPI ──

fastapi_app = fastapi.FastAPI()
fastapi_app.add_middleware(SessionMiddleware, store=MemoryStore())


@fastapi_app.get("/")
async def fastapi_http(request: fastapi.Request, session: for_fastapi.CurrentSession) -> dict[str, Any]:
    assert_type(session, Session)
    assert_type(for_fastapi.current_session(request), Session)
    return session


@fastapi_app.get("/account")
def fastapi_account(
    user: for_fastapi.CurrentUser,
    fresh: Annotated[str, fastapi.Depends(for_fastapi.require_fresh(timedelta(minutes=5)))],
    bound: Annotated[str, fastapi.Depends(for_fastapi.require_device_bound)],
) -> str:
    assert_type(user, str)
    return fresh


@fastapi_app.websocket("/ws")
async def fastapi_ws(socket: fastapi.WebSocket, session: for_fastapi.CurrentSession) -> None:
    assert_type(for_fastapi.current_session(socket), Session)
    assert_type(session, Session)
    await socket.close()


assert_type(for_fastapi.document_refusals(fastapi_app.openapi()), dict[str, Any])

# ── Litestar ──


@litestar.get("/", guards=[for_litestar.require_user])
async def litestar_http(
    request: litestar.Request[Any, Any, Any], session: for_litestar.CurrentSession
) -> dict[str, Any]:
    assert_type(session, Session)
    assert_type(for_litestar.current_session(request), Session)
    return session


@litestar.websocket("/ws")
async def litestar_ws(socket: litestar.WebSocket[Any, Any, Any], session: for_litestar.CurrentSession) -> None:
    assert_type(for_litestar.current_session(socket), Session)
    assert_type(session, Session)
    await socket.close()


plugin = for_litestar.SessionPlugin(MemoryStore())
litestar_app = litestar.Litestar([litestar_http, litestar_ws], plugins=[plugin], logging_config=None)

# ── Quart ──

quart_app = quart.Quart(__name__)
for_quart.init_app(quart_app, MemoryStore())


@quart_app.get("/")
@for_quart.require_user
async def quart_http() -> dict[str, Any]:
    session = for_quart.current_session()
    assert_type(session, Session)
    return session


@quart_app.websocket("/ws")
async def quart_ws() -> None:
    assert_type(for_quart.current_session(), Session)


# ── Clients ──


def clients(auth: TokenAuth) -> None:
    httpx.AsyncClient(auth=auth)
    httpx2.AsyncClient(auth=auth)
