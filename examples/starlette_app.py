"""A small shop in Starlette: a basket before the log-in, a log-in, an account, a log-out, a WebSocket.

Run it with ``uvicorn examples.starlette_app:app`` and try::

    curl -c jar -b jar -X POST localhost:8000/basket/apple
    curl -c jar -b jar -X POST localhost:8000/login/alice
    curl -c jar -b jar localhost:8000/account
    curl -c jar -b jar -X POST localhost:8000/logout
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi_sessions import CookieConfig, MemoryStore, SessionMiddleware
from asgi_sessions.frameworks.starlette import current_session


async def add_to_basket(request: Request) -> Response:
    basket = current_session(request).setdefault("basket", [])
    basket.append(request.path_params["item"])  # saved when the response starts; nothing else to call
    return JSONResponse(basket)


async def log_in(request: Request) -> Response:
    # A password would be checked here.
    current_session(request).log_in(request.path_params["user"])  # new token, same basket
    return Response(status_code=204)


async def account(request: Request) -> Response:
    session = current_session(request)
    if session.user_id is None:
        raise HTTPException(401, headers={"WWW-Authenticate": "Cookie"})
    return JSONResponse({"user": session.user_id, "basket": session.get("basket", [])})


async def log_out(request: Request) -> Response:
    current_session(request).destroy()
    return Response(status_code=204)


async def shop_by_voice(socket: WebSocket) -> None:
    session = current_session(socket)
    await socket.accept()
    async for item in socket.iter_text():
        session.setdefault("basket", []).append(item)
        await session.save()  # now; otherwise when the socket closes
        await socket.send_json(session["basket"])


app = Starlette(
    routes=[
        Route("/basket/{item}", add_to_basket, methods=["POST"]),
        Route("/login/{user}", log_in, methods=["POST"]),
        Route("/account", account),
        Route("/logout", log_out, methods=["POST"]),
        WebSocketRoute("/voice", shop_by_voice),
    ],
    # The cookie of a real shop needs https: leave `cookie=` out. The store of a real one is RedisStore.from_url("redis://…").
    middleware=[Middleware(SessionMiddleware, store=MemoryStore(), cookie=CookieConfig.insecure_development())],
)
