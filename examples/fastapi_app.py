"""A small shop in FastAPI: a basket before the log-in, a log-in, an account, a log-out, a WebSocket.

Run it with ``uvicorn examples.fastapi_app:app``, look at http://localhost:8000/docs, or try::

    curl -c jar -b jar -X POST localhost:8000/basket/apple
    curl -c jar -b jar -X POST localhost:8000/login/alice
    curl -c jar -b jar localhost:8000/account
    curl -c jar -b jar -X POST localhost:8000/logout
"""

from datetime import timedelta
from typing import Any

from fastapi import Depends, FastAPI, WebSocket

from asgi_sessions import CookieConfig, MemoryStore, SessionMiddleware
from asgi_sessions.frameworks.fastapi import CurrentSession, CurrentUser, require_fresh

app = FastAPI(title="Shop")
# The cookie of a real shop needs https: leave `cookie=` out. The store of a real one is RedisStore.from_url("redis://…").
app.add_middleware(SessionMiddleware, store=MemoryStore(), cookie=CookieConfig.insecure_development())


@app.post("/basket/{item}")
async def add_to_basket(item: str, session: CurrentSession) -> list[str]:
    basket: list[str] = session.setdefault("basket", [])
    basket.append(item)  # saved when the response starts; nothing else to call
    return basket


@app.post("/login/{user}", status_code=204)
def log_in(user: str, session: CurrentSession) -> None:
    """A plain function, which FastAPI runs in a thread, is as good. A password would be checked here."""
    session.log_in(user)  # new token, same basket


@app.get("/account")
async def account(user: CurrentUser, session: CurrentSession) -> dict[str, Any]:
    """401 if nobody is logged in."""
    return {"user": user, "basket": session.get("basket", [])}


@app.delete("/account", status_code=204, dependencies=[Depends(require_fresh(timedelta(minutes=5)))])
async def close_account(session: CurrentSession) -> None:
    """401 as well if the log-in was more than five minutes ago."""
    session.destroy()


@app.post("/logout", status_code=204)
async def log_out(session: CurrentSession) -> None:
    session.destroy()


@app.websocket("/voice")
async def shop_by_voice(socket: WebSocket, session: CurrentSession) -> None:
    await socket.accept()
    async for item in socket.iter_text():
        session.setdefault("basket", []).append(item)
        await session.save()  # now; otherwise when the socket closes
        await socket.send_json(session["basket"])
