"""A small shop in Litestar: a basket before the log-in, a log-in, an account, a log-out, a WebSocket.

Run it with ``uvicorn examples.litestar_app:app``, look at http://localhost:8000/schema, or try::

    curl -c jar -b jar -X POST localhost:8000/basket/apple
    curl -c jar -b jar -X POST localhost:8000/login/alice
    curl -c jar -b jar localhost:8000/account
    curl -c jar -b jar -X POST localhost:8000/logout
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from litestar import Litestar, WebSocket, delete, get, post, websocket
from litestar.params import FromPath

from asgi_sessions import CookieConfig, MemoryStore
from asgi_sessions.frameworks.litestar import CurrentSession, SessionPlugin, require_fresh, require_user


@post("/basket/{item:str}")
async def add_to_basket(item: FromPath[str], session: CurrentSession) -> list[str]:
    basket: list[str] = session.setdefault("basket", [])
    basket.append(item)  # saved when the response starts; nothing else to call
    return basket


@post("/login/{user:str}", status_code=204)
async def log_in(user: FromPath[str], session: CurrentSession) -> None:
    """A password would be checked here."""
    session.log_in(user)  # new token, same basket


@get("/account", guards=[require_user], security=[{"SessionCookie": []}])
async def account(session: CurrentSession) -> dict[str, Any]:
    """401 if nobody is logged in."""
    return {"user": session.user_id, "basket": session.get("basket", [])}


@delete("/account", guards=[require_fresh(timedelta(minutes=5))])
async def close_account(session: CurrentSession) -> None:
    """401 as well if the log-in was more than five minutes ago."""
    session.destroy()


@post("/logout", status_code=204)
async def log_out(session: CurrentSession) -> None:
    session.destroy()


@websocket("/voice")
async def shop_by_voice(socket: WebSocket[Any, Any, Any], session: CurrentSession) -> None:
    await socket.accept()
    async for item in socket.iter_data("text"):
        session.setdefault("basket", []).append(item)
        await session.save()  # now; otherwise when the socket closes
        await socket.send_json(session["basket"])


# The cookie of a real shop needs https: leave `cookie=` out. The store of a real one is RedisStore.from_url("redis://…").
app = Litestar(
    [add_to_basket, log_in, account, close_account, log_out, shop_by_voice],
    plugins=[SessionPlugin(MemoryStore(), cookie=CookieConfig.insecure_development())],
)
