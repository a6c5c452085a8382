"""One small app, four times: the same routes in Starlette, FastAPI, Litestar and Quart.

========================  ==================================================================================
``GET  /untouched``       does not look at the session
``GET  /session``         the session as JSON
``POST /basket/{item}``   a nested change
``POST /login/{user}``    logs in, in an async handler
``POST /sync/{user}``     logs in, in a plain function that the framework runs in a thread
``POST /confirm``         the user proved again who they are
``POST /logout``          ends the session
``POST /crash/{verb}``    changes the data, logs in or ends the session, then raises
``GET  /stream``          a change after the first chunk has left
``POST /background``      a change in a background task
``GET  /account``         needs a user
``GET  /grave``           needs a user who logged in less than five minutes ago
``GET  /bound``           needs a session that is bound to its device
``WS   /ws``              counts, accepts, notes what it hears, closes at "bye"
``WS   /ws/account``      needs a user
``WS   /ws/bound``        needs a session that is bound to its device
========================  ==================================================================================
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

import fastapi
import litestar
import quart
from fastapi.responses import StreamingResponse as FastAPIStream
from litestar.background_tasks import BackgroundTask as LitestarTask
from litestar.params import FromPath
from litestar.response import Stream as LitestarStream
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_sessions import Session, SessionMiddleware, Sessions
from asgi_sessions.frameworks import fastapi as for_fastapi
from asgi_sessions.frameworks import litestar as for_litestar
from asgi_sessions.frameworks import quart as for_quart
from asgi_sessions.stores import Store

LATELY = timedelta(minutes=5)


@dataclass
class App:
    asgi: Any
    settle: Callable[[], Awaitable[None]]
    """Waits for tasks that the framework runs apart from the request."""


async def at_once() -> None:
    """Nothing to wait for: the framework runs its tasks before the request is over."""


# ── What the handlers do: the same everywhere ──


def fill(session: Session, item: str) -> None:
    session.setdefault("basket", []).append(item)


def crash(session: Session, verb: str) -> None:
    match verb:
        case "data":
            fill(session, "crashed")
        case "login":
            session.log_in("mallory")
        case "logout":
            session.destroy()
    raise RuntimeError("meant to happen")


async def late_chunks(session: Session) -> AsyncIterator[bytes]:
    yield b"first, "
    session["late"] = "stream"
    yield b"last"


async def in_the_background(session: Session) -> None:
    session["late"] = "background"


def arrive(session: Session) -> None:
    session["sockets"] = session.get("sockets", 0) + 1


async def talk(session: Session, socket: Any, texts: Callable[[], AsyncIterator[str]]) -> None:
    arrive(session)
    await socket.accept()
    async for text in texts():
        hear(session, text)
        if text == "bye":
            await socket.close()
            return
        await socket.send_json(session)
    session["left"] = True


def hear(session: Session, text: str) -> None:
    session.setdefault("heard", []).append(text)
    if text == "crash":
        raise RuntimeError("meant to happen")


async def greet(socket: Any, user: str | None) -> None:
    await socket.accept()
    await socket.send_json(user)


# ── Starlette ──


def starlette_app(store: Sessions | Store, **options: Any) -> App:
    def user_of(connection: HTTPConnection) -> str:
        session: Any = connection.session
        if session.user_id is None:
            raise HTTPException(401, headers={"WWW-Authenticate": "Cookie"})
        return str(session.user_id)

    async def untouched(request: Request) -> Response:
        return JSONResponse("ok")

    async def session(request: Request) -> Response:
        return JSONResponse(request.session)

    async def basket(request: Request) -> Response:
        fill(request.scope["session"], request.path_params["item"])
        return JSONResponse("ok")

    async def login(request: Request) -> Response:
        request.scope["session"].log_in(request.path_params["user"])
        return JSONResponse("ok")

    def sync_login(request: Request) -> Response:
        request.scope["session"].log_in(request.path_params["user"])
        return JSONResponse("ok")

    async def confirm(request: Request) -> Response:
        request.scope["session"].confirm()
        return JSONResponse("ok")

    async def logout(request: Request) -> Response:
        request.scope["session"].destroy()
        return JSONResponse("ok")

    async def crashing(request: Request) -> Response:
        crash(request.scope["session"], request.path_params["verb"])
        raise AssertionError

    async def stream(request: Request) -> Response:
        return StreamingResponse(late_chunks(request.scope["session"]))

    async def background(request: Request) -> Response:
        return JSONResponse("ok", background=BackgroundTask(in_the_background, request.scope["session"]))

    async def account(request: Request) -> Response:
        return JSONResponse({"user": user_of(request)})

    async def grave(request: Request) -> Response:
        user = user_of(request)
        if not request.scope["session"].is_fresh(LATELY):
            challenge = "Cookie error=insufficient_user_authentication, max_age=300"
            raise HTTPException(401, headers={"WWW-Authenticate": challenge})
        return JSONResponse({"user": user})

    def bound_user_of(connection: HTTPConnection) -> str:
        user = user_of(connection)
        if not connection.scope["session"].is_device_bound:
            raise HTTPException(403)
        return user

    async def bound(request: Request) -> Response:
        return JSONResponse({"user": bound_user_of(request)})

    async def ws_bound(socket: WebSocket) -> None:
        await greet(socket, bound_user_of(socket))

    async def ws(socket: WebSocket) -> None:
        await talk(socket.scope["session"], socket, socket.iter_text)

    async def ws_account(socket: WebSocket) -> None:
        await greet(socket, user_of(socket))

    routes = [
        Route("/untouched", untouched),
        Route("/session", session),
        Route("/basket/{item}", basket, methods=["POST"]),
        Route("/login/{user}", login, methods=["POST"]),
        Route("/sync/{user}", sync_login, methods=["POST"]),
        Route("/confirm", confirm, methods=["POST"]),
        Route("/logout", logout, methods=["POST"]),
        Route("/crash/{verb}", crashing, methods=["POST"]),
        Route("/stream", stream),
        Route("/background", background, methods=["POST"]),
        Route("/account", account),
        Route("/grave", grave),
        Route("/bound", bound),
        WebSocketRoute("/ws", ws),
        WebSocketRoute("/ws/account", ws_account),
        WebSocketRoute("/ws/bound", ws_bound),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(SessionMiddleware, store=store, **options)
    return App(app, at_once)


# ── FastAPI ──

CurrentSession = for_fastapi.CurrentSession
CurrentUser = for_fastapi.CurrentUser
FreshUser = Annotated[str, fastapi.Depends(for_fastapi.require_fresh(LATELY))]
BoundUser = Annotated[str, fastapi.Depends(for_fastapi.require_device_bound)]


def fastapi_app(store: Sessions | Store, **options: Any) -> App:
    app = fastapi.FastAPI()
    app.add_middleware(SessionMiddleware, store=store, **options)

    @app.get("/untouched")
    async def untouched() -> str:
        return "ok"

    @app.get("/session")
    async def session(session: CurrentSession) -> dict[str, Any]:
        return session

    @app.post("/basket/{item}")
    async def basket(item: str, session: CurrentSession) -> None:
        fill(session, item)

    @app.post("/login/{user}")
    async def login(user: str, session: CurrentSession) -> None:
        session.log_in(user)

    @app.post("/sync/{user}")
    def sync_login(user: str, session: CurrentSession) -> None:
        session.log_in(user)

    @app.post("/confirm")
    async def confirm(session: CurrentSession) -> None:
        session.confirm()

    @app.post("/logout")
    async def logout(session: CurrentSession) -> None:
        session.destroy()

    @app.post("/crash/{verb}")
    async def crashing(verb: str, session: CurrentSession) -> None:
        crash(session, verb)

    @app.get("/stream")
    async def stream(session: CurrentSession) -> FastAPIStream:
        return FastAPIStream(late_chunks(session))

    @app.post("/background")
    async def background(tasks: fastapi.BackgroundTasks, session: CurrentSession) -> None:
        tasks.add_task(in_the_background, session)

    @app.get("/account")
    async def account(user: CurrentUser) -> dict[str, str]:
        return {"user": user}

    @app.get("/grave")
    async def grave(user: FreshUser) -> dict[str, str]:
        return {"user": user}

    @app.get("/bound")
    async def bound(user: BoundUser) -> dict[str, str]:
        return {"user": user}

    @app.websocket("/ws/bound")
    async def ws_bound(socket: fastapi.WebSocket, user: BoundUser) -> None:
        await greet(socket, user)

    @app.websocket("/ws")
    async def ws(socket: fastapi.WebSocket, session: CurrentSession) -> None:
        await talk(session, socket, socket.iter_text)

    @app.websocket("/ws/account")
    async def ws_account(socket: fastapi.WebSocket, user: CurrentUser) -> None:
        await greet(socket, user)

    return App(app, at_once)


# ── Litestar ──

InjectedSession = for_litestar.CurrentSession
AnyRequest = litestar.Request[Any, Any, Any]


@litestar.get("/untouched")
async def ls_untouched() -> str:
    return "ok"


@litestar.get("/session")
async def ls_session(request: AnyRequest) -> dict[str, Any]:
    return request.session


@litestar.post("/basket/{item:str}")
async def ls_basket(item: FromPath[str], session: InjectedSession) -> None:
    fill(session, item)


@litestar.post("/login/{user:str}")
async def ls_login(user: FromPath[str], session: InjectedSession) -> None:
    session.log_in(user)


@litestar.post("/sync/{user:str}", sync_to_thread=True)
def ls_sync_login(user: FromPath[str], session: InjectedSession) -> None:
    session.log_in(user)


@litestar.post("/confirm")
async def ls_confirm(session: InjectedSession) -> None:
    session.confirm()


@litestar.post("/logout")
async def ls_logout(session: InjectedSession) -> None:
    session.destroy()


@litestar.post("/crash/{verb:str}")
async def ls_crash(verb: FromPath[str], session: InjectedSession) -> None:
    crash(session, verb)


@litestar.get("/stream")
async def ls_stream(session: InjectedSession) -> LitestarStream:
    return LitestarStream(late_chunks(session))


@litestar.post("/background")
async def ls_background(session: InjectedSession) -> litestar.Response[str]:
    return litestar.Response("ok", background=LitestarTask(in_the_background, session))


@litestar.get("/account", guards=[for_litestar.require_user])
async def ls_account(session: InjectedSession) -> dict[str, Any]:
    return {"user": session.user_id}


@litestar.get("/grave", guards=[for_litestar.require_fresh(LATELY)])
async def ls_grave(session: InjectedSession) -> dict[str, Any]:
    return {"user": session.user_id}


@litestar.get("/bound", guards=[for_litestar.require_device_bound])
async def ls_bound(session: InjectedSession) -> dict[str, Any]:
    return {"user": session.user_id}


@litestar.websocket("/ws/bound", guards=[for_litestar.require_device_bound])
async def ls_ws_bound(socket: litestar.WebSocket[Any, Any, Any], session: InjectedSession) -> None:
    await greet(socket, session.user_id)


@litestar.websocket("/ws")
async def ls_ws(socket: litestar.WebSocket[Any, Any, Any], session: InjectedSession) -> None:
    await talk(session, socket, lambda: socket.iter_data("text"))


@litestar.websocket("/ws/account", guards=[for_litestar.require_user])
async def ls_ws_account(socket: litestar.WebSocket[Any, Any, Any], session: InjectedSession) -> None:
    await greet(socket, session.user_id)


def litestar_app(store: Sessions | Store, **options: Any) -> App:
    handlers: list[Any] = [value for name, value in globals().items() if name.startswith("ls_")]
    plugin = for_litestar.SessionPlugin(store, **options)
    return App(litestar.Litestar(handlers, plugins=[plugin], logging_config=None), at_once)


# ── Quart ──


def quart_app(store: Sessions | Store, **options: Any) -> App:
    app = quart.Quart(__name__)
    for_quart.init_app(app, store, **options)

    @app.get("/untouched")
    async def untouched() -> str:
        return "ok"

    @app.get("/session")
    async def session() -> Any:
        return for_quart.current_session()

    @app.post("/basket/<item>")
    async def basket(item: str) -> str:
        quart.session.setdefault("basket", []).append(item)
        return "ok"

    @app.post("/login/<user>")
    async def login(user: str) -> str:
        for_quart.current_session().log_in(user)
        return "ok"

    @app.post("/sync/<user>")
    def sync_login(user: str) -> str:
        for_quart.current_session().log_in(user)
        return "ok"

    @app.post("/confirm")
    async def confirm() -> str:
        for_quart.current_session().confirm()
        return "ok"

    @app.post("/logout")
    async def logout() -> str:
        for_quart.current_session().destroy()
        return "ok"

    @app.post("/crash/<verb>")
    async def crashing(verb: str) -> str:
        crash(for_quart.current_session(), verb)
        raise AssertionError

    @app.get("/stream")
    async def stream() -> Any:
        return late_chunks(for_quart.current_session())

    @app.post("/background")
    async def background() -> str:
        session = for_quart.current_session()

        async def task() -> None:
            # Quart runs it apart from the request, which may be over by then: it saves for itself.
            await in_the_background(session)
            await session.save()

        app.add_background_task(task)
        return "ok"

    @app.get("/account")
    @for_quart.require_user
    async def account() -> Any:
        return {"user": for_quart.current_session().user_id}

    @app.get("/grave")
    @for_quart.require_fresh(LATELY)
    def grave() -> Any:
        return {"user": for_quart.current_session().user_id}

    @app.get("/bound")
    @for_quart.require_device_bound
    def bound() -> Any:
        return {"user": for_quart.current_session().user_id}

    @app.websocket("/ws/bound")
    @for_quart.require_device_bound
    async def ws_bound() -> None:
        await quart.websocket.send_json(for_quart.current_session().user_id)

    @app.websocket("/ws")
    async def ws() -> None:
        session = for_quart.current_session()
        arrive(session)
        await quart.websocket.accept()
        try:
            while True:
                text = await quart.websocket.receive()
                hear(session, str(text))
                if text == "bye":
                    return
                await quart.websocket.send_json(dict(quart.session))
        finally:
            if text != "bye":
                quart.session["left"] = True

    @app.websocket("/ws/account")
    @for_quart.require_user
    async def ws_account() -> None:
        await quart.websocket.send_json(for_quart.current_session().user_id)

    async def settle() -> None:
        for running in list(app.background_tasks):
            await running

    return App(app, settle)


BUILDERS: dict[str, Callable[..., App]] = {
    "starlette": starlette_app,
    "fastapi": fastapi_app,
    "litestar": litestar_app,
    "quart": quart_app,
}
