"""A small shop in Quart: a basket before the log-in, a log-in, an account, a log-out, a WebSocket.

Run it with ``uvicorn examples.quart_app:app`` and try::

    curl -c jar -b jar -X POST localhost:8000/basket/apple
    curl -c jar -b jar -X POST localhost:8000/login/alice
    curl -c jar -b jar localhost:8000/account
    curl -c jar -b jar -X POST localhost:8000/logout
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from quart import Quart, flash, get_flashed_messages, session, websocket

from asgi_sessions import CookieConfig, MemoryStore
from asgi_sessions.frameworks.quart import current_session, init_app, require_fresh, require_user

app = Quart(__name__)
# The cookie of a real shop needs https: leave `cookie=` out. The store of a real one is RedisStore.from_url("redis://…").
init_app(app, MemoryStore(), cookie=CookieConfig.insecure_development())


@app.post("/basket/<item>")
async def add_to_basket(item: str) -> list[str]:
    basket: list[str] = session.setdefault("basket", [])
    basket.append(item)  # saved when the response starts; nothing else to call
    return basket


@app.post("/login/<user>")
async def log_in(user: str) -> tuple[str, int]:
    """A password would be checked here."""
    current_session().log_in(user)  # new token, same basket
    await flash(f"Welcome, {user}")
    return "", 204


@app.get("/account")
@require_user
async def account() -> dict[str, Any]:
    """401 if nobody is logged in."""
    return {
        "user": current_session().user_id,
        "basket": session.get("basket", []),
        "messages": get_flashed_messages(),
    }


@app.delete("/account")
@require_fresh(timedelta(minutes=5))
async def close_account() -> tuple[str, int]:
    """401 as well if the log-in was more than five minutes ago."""
    current_session().destroy()
    return "", 204


@app.post("/logout")
async def log_out() -> tuple[str, int]:
    current_session().destroy()
    return "", 204


@app.websocket("/voice")
async def shop_by_voice() -> None:
    while True:
        item = await websocket.receive()
        session.setdefault("basket", []).append(item)
        await current_session().save()  # now; otherwise when the socket closes
        await websocket.send_json(session["basket"])
